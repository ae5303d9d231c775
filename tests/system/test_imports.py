"""Imports go down the floors only, so a module can be read by knowing only those below it."""

import ast
import functools
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import fireside

ROOT = Path(fireside.__file__).parent

# From the ground up. A module or folder imports only from floors below its own.
FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"errors"}),
    frozenset({"config", "db"}),
    frozenset({"backends", "queries", "safety"}),
    frozenset({"auth", "documents", "providers", "transfer"}),
    frozenset({"chat"}),
    frozenset({"web"}),
    frozenset({"server"}),
    frozenset({"cli"}),
    frozenset({"__main__"}),
)
FOLDERS = frozenset(file.parent.name for file in ROOT.glob("*/__init__.py")) - {"tests", "bench"}
FILES = sorted((*ROOT.glob("*.py"), *(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))))


def name(file: Path) -> str:
    """Return the dotted name below the package: `queries.messages`, or `queries` for its `__init__`."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = frozenset(map(name, FILES)) - {"__init__"}


@functools.cache
def imported(file: Path) -> set[str]:
    """Return the modules of ours that a file names in any import: at its top, in a function, or for its types alone."""
    package = ["fireside", *file.relative_to(ROOT).parts[:-1]]
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return {found.removeprefix("fireside.") for found in names} & MODULES - {name(file)}


def unit(module: str) -> str:
    return module.partition(".")[0]


def test_every_module_and_folder_has_its_floor() -> None:
    assert {unit(module) for module in MODULES} == frozenset().union(*FLOORS)
    assert sum(map(len, FLOORS)) == len(frozenset().union(*FLOORS)), "one stands on two floors"


def test_imports_go_down_only() -> None:
    height = {unit: floor for floor, names in enumerate(FLOORS) for unit in names}
    wrong = [
        f"{name(file)} (floor {height[unit(name(file))]}) imports {other} (floor {height[unit(other)]})"
        for file in FILES
        if name(file) in MODULES
        for other in sorted(imported(file))
        if unit(other) != unit(name(file)) and height[unit(other)] >= height[unit(name(file))]
    ]
    assert not wrong, "\n".join(wrong)


def test_no_imports_go_in_a_circle() -> None:
    packages = {name(file) for file in FILES if file.name == "__init__.py"}
    graph = {name(file): imported(file) - packages for file in FILES}
    graphlib.TopologicalSorter(graph).prepare()


def test_the_root_holds_seven_modules() -> None:
    assert sorted(module for module in MODULES if "." not in module and module not in FOLDERS) == [
        "__main__", "auth", "config", "db", "errors", "providers", "server",
    ]  # fmt: skip


def test_state_of_the_page_imports_no_view() -> None:
    state = {"api", "context", "conversation", "events", "library", "list", "models", "storage", "stream"}
    texts = [(ROOT / "static" / f"{name}.js").read_text("utf-8") for name in state]
    assert {name for text in texts for name in re.findall(r'"\./(\w+)\.js"', text)} <= state


def test_service_starts_without_the_import_formats() -> None:
    program = "import sys, fireside.server; print([name for name in sys.modules if 'transfer.formats' in name])"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
