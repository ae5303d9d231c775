"""Imports go down the floors only: a module can be read with nothing in mind but those below it."""

import ast
from pathlib import Path

import fireside

ROOT = Path(fireside.__file__).parent

# From the ground up. A module may import from any floor below its own, never from its own or from above.
FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"errors", "llama", "render", "search", "service", "slots", "transcript", "transport"}),  # know nobody
    frozenset({"config", "lmstudio"}),
    frozenset({"db", "gguf", "guard", "wire"}),
    frozenset({"accounts", "engine", "queries"}),
    frozenset({"archive", "auth", "eventlog", "formats", "prompt", "providers"}),
    frozenset({"bodies", "generation", "source"}),
    frozenset({"chat", "salvage", "transfer"}),
    frozenset({"call"}),
    frozenset({"openapi"}),
    frozenset({"handlers"}),
    frozenset({"commands", "server"}),
    frozenset({"__main__"}),
)


def modules() -> set[str]:
    return {file.stem for file in ROOT.glob("*.py")} - {"__init__"}


def imported(module: str) -> set[str]:
    """The modules of ours that a module names in any import, at its top, in a function, or for its types alone."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / f"{module}.py").read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.removeprefix("fireside.") for alias in node.names if alias.name.startswith("fireside")}
        elif isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("fireside")):
            path = (node.module or "").removeprefix("fireside").strip(".")
            names |= {path} if path else {alias.name for alias in node.names}
    return names - {"__version__"}


def test_every_module_has_its_floor() -> None:
    assert modules() == frozenset().union(*FLOORS)
    assert sum(map(len, FLOORS)) == len(modules()), "a module stands on two floors"


def test_imports_go_down_only() -> None:
    height = {module: floor for floor, names in enumerate(FLOORS) for module in names}
    wrong = [
        f"{module} (floor {height[module]}) imports {other} (floor {height[other]})"
        for module in sorted(modules())
        for other in sorted(imported(module))
        if height[other] >= height[module]
    ]
    assert not wrong, "\n".join(wrong)
