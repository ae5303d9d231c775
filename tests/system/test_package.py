"""The wheel holds the package and nothing else, and runs in an environment with nothing but its dependencies."""

import ast
import importlib.metadata
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import fireside
import pytest
from fireside import db
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ..live import BOOTSTRAP_TOKEN, good, parse_event, text
from ..rehearsal import serving, sign_in
from ..upstream import Upstream, answer
from ..witness import MODEL
from .test_imports import FILES, FOLDERS

ROOT = Path(fireside.__file__).parent
NOT_SOURCES = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "build", "dist", "bench")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the checkout, tests included."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "any name", ignore=NOT_SOURCES)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    done = subprocess.run([*command, str(folder / "any name")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    [built] = folder.glob("*.whl")
    return built


def read_metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return Parser().parsestr(archive.read(name).decode())


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    info = f"fireside-{fireside.__version__}.dist-info/"
    package = {name.removeprefix("fireside/") for name in names if name.startswith("fireside/")}
    rest = {name.removeprefix(info) for name in names if not name.startswith("fireside/")}
    assert rest == {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt", "licenses/LICENSE"}
    modules = {file.name for file in ROOT.glob("*.py")}
    folders = {file.relative_to(ROOT).as_posix() for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")}
    static = {f"static/{file.name}" for file in (ROOT / "static").iterdir()}
    docs = {f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md")}
    migrations = {f"migrations/{version}.sql" for version in range(2, db.VERSION + 1)}
    assert package == modules | folders | static | docs | migrations | {"schema.sql", "passwords.txt", "py.typed"}
    assert {"__main__.py", "server.py"} <= modules and {"static/index.html", "static/app.js"} <= static


def test_wheel_is_pure_python_with_the_right_metadata(wheel: Path) -> None:
    assert wheel.name == f"fireside-{fireside.__version__}-py3-none-any.whl"
    metadata = read_metadata(wheel)
    names = ("Name", "Version", "License-Expression", "Requires-Python")
    assert [metadata[name] for name in names] == ["fireside", fireside.__version__, "MIT", ">=3.11"]


def test_every_import_is_a_declared_dependency(wheel: Path) -> None:
    """A package that is only installed as another's dependency may disappear with an update of that one."""
    requirements = map(Requirement, read_metadata(wheel).get_all("Requires-Dist", []))
    declared = {canonicalize_name(one.name) for one in requirements if "extra" not in str(one.marker)}
    providers = importlib.metadata.packages_distributions()
    imported = set()
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add((node.module or "").split(".")[0])
    imported -= {*sys.stdlib_module_names, "fireside"}
    needed = {canonicalize_name(providers[name][0]) for name in imported}
    assert needed - declared - {"xllamacpp"} == set()
    assert declared - needed == set(), "not imported"


@pytest.mark.long
def test_folder_named_fireside_beside_the_checkout_is_not_tested(tmp_path: Path) -> None:
    (tmp_path / "fireside").mkdir()
    (tmp_path / "fireside" / "__init__.py").write_text("raise RuntimeError('the wrong folder')", "utf-8")
    shutil.copytree(ROOT, tmp_path / "checkout", ignore=NOT_SOURCES)
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "tests/test_config.py"]
    done = subprocess.run(command, cwd=tmp_path / "checkout", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


# ---- installed


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts folder of an environment with the wheel and its dependencies only."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=os.name == "posix")
    programs = folder / ("Scripts" if sys.platform == "win32" else "bin")
    pip = [sys.executable, "-m", "pip", "--python", str(programs / "python"), "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "install", "--quiet", "--no-compile", str(wheel)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return programs


@pytest.mark.long
def test_installed_command_answers_a_chat(
    installed: Path, tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.enqueue(answer("The capital is", " Tokyo."))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    program = installed / "fireside"
    version = subprocess.run([program, "--version"], capture_output=True, text=True)
    assert version.stdout == f"fireside {fireside.__version__}\n", version.stderr
    with serving(program, tmp_path / "data", lmstudio_url=upstream.url) as client:
        assert client.get("/").text.startswith("<!doctype html>")
        assert client.get("/static/app.js").status_code == 200
        sign_in(client, "/admin/bootstrap", token=BOOTSTRAP_TOKEN)
        conversation = f"/conversations/{good(client.post('/conversations', json={}))['id']}"
        good(client.post(f"{conversation}/messages", json={"content": "What is the capital of Japan?"}))
        streamed = client.post(f"{conversation}/stream", json=MODEL).content
        messages = good(client.get(f"{conversation}/messages", params={"render": "true"}))
    events = [parse_event(block) for block in streamed.split(b"\n\n")[:-1]]
    assert text(events) == "The capital is Tokyo." and events[-1].data["status"] == "ok"
    assert [message["content"] for message in messages] == ["What is the capital of Japan?", "The capital is Tokyo."]
    assert messages[1]["blocks"] == [["p", {}, "The capital is Tokyo."]]
