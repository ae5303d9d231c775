"""Imports go down the floors only, so a module can be read by knowing only those below it."""

import ast
from pathlib import Path

import fireside

ROOT = Path(fireside.__file__).parent

# From the ground up. A module or folder may import from any floor below its own, never from its own or from above.
FLOORS: tuple[frozenset[str], ...] = (
    frozenset(
        {"errors", "llama", "render", "sandbox", "search", "service", "slots", "transcript", "transport"}
    ),  # import none of ours
    frozenset({"config", "lmstudio", "throttle"}),
    frozenset({"db", "gguf", "guard", "renderer", "wire"}),
    frozenset({"accounts", "connection", "engine", "logs", "queries"}),
    frozenset({"archive", "auth", "eventlog", "formats", "prompt", "providers"}),
    frozenset({"bodies", "generation", "source"}),
    frozenset({"chat", "exporter", "importer", "salvage"}),
    frozenset({"call"}),
    frozenset({"openapi"}),
    frozenset({"handlers"}),
    frozenset({"commands", "server"}),
    frozenset({"__main__"}),
)
FOLDERS = tuple(file.parent.name for file in ROOT.glob("*/__init__.py") if file.parent.name not in ("tests", "bench"))


def files(unit: str) -> list[Path]:
    return sorted((ROOT / unit).glob("*.py")) if unit in FOLDERS else [ROOT / f"{unit}.py"]


def units() -> set[str]:
    return {file.stem for file in ROOT.glob("*.py")} - {"__init__"} | set(FOLDERS)


def imported(file: Path) -> set[str]:
    """Return the units that a file names in any import: at its top, in a function, or for its types alone."""
    package = ["fireside", *file.relative_to(ROOT).parts[:-1]]
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    parts = {name.split(".")[1] for name in names if name.startswith("fireside.")}
    return parts & units()


def test_every_module_and_folder_has_its_floor() -> None:
    assert units() == frozenset().union(*FLOORS)
    assert sum(map(len, FLOORS)) == len(units()), "one stands on two floors"


def test_imports_go_down_only() -> None:
    height = {unit: floor for floor, names in enumerate(FLOORS) for unit in names}
    wrong = [
        f"{file.relative_to(ROOT)} (floor {height[unit]}) imports {other} (floor {height[other]})"
        for unit in sorted(units())
        for file in files(unit)
        for other in sorted(imported(file) - ({unit} if unit in FOLDERS else set()))
        if height[other] >= height[unit]
    ]
    assert not wrong, "\n".join(wrong)
