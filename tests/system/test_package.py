"""What is built is the package and nothing else, and it runs where there is nothing else."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import fireside
import httpx
import pytest

from ..live import BOOTSTRAP_TOKEN, PASSWORD, PATIENCE, parse_event, text
from ..upstream import Upstream, answer
from .test_imports import FILES, FOLDERS

ROOT = Path(fireside.__file__).parent
NOT_SOURCES = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "build", "dist", "bench")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing is left in the checkout. The tests are in the copy, and must not be in the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "any name", ignore=NOT_SOURCES)
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(folder),
        str(folder / "any name"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return Parser().parsestr(archive.read(name).decode())


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    info = f"fireside-{fireside.__version__}.dist-info/"
    package = {name.removeprefix("fireside/") for name in names if name.startswith("fireside/")}
    rest = {name.removeprefix(info) for name in names if not name.startswith("fireside/")}
    assert rest == {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt", "licenses/LICENSE"}
    modules = {file.name for file in ROOT.glob("*.py")}
    folders = {file.relative_to(ROOT).as_posix() for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")}
    static = {f"static/{file.name}" for file in (ROOT / "static").iterdir()}
    assert package == modules | folders | static | {"schema.sql", "passwords.txt", "py.typed"}
    assert {"__main__.py", "server.py"} <= modules and {"static/index.html", "static/app.js"} <= static


def test_it_is_pure_python_for_any_system(wheel: Path) -> None:
    assert wheel.name == f"fireside-{fireside.__version__}-py3-none-any.whl"


def test_its_metadata_says_what_it_is(metadata: Message) -> None:
    assert (metadata["Name"], metadata["Version"]) == ("fireside", fireside.__version__)
    assert (metadata["License-Expression"], metadata["Requires-Python"]) == ("MIT", ">=3.11")


def test_what_it_imports_is_what_it_depends_on(metadata: Message) -> None:
    """An import that some other dependency happens to bring breaks on the day that that one lets go of it."""
    declared = {
        normal(re.split(r"[^\w.-]", entry)[0])
        for entry in metadata.get_all("Requires-Dist", [])
        if "extra ==" not in entry
    }
    providers = importlib.metadata.packages_distributions()
    imported = set()
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add((node.module or "").split(".")[0])
    imported -= {*sys.stdlib_module_names, "fireside"}
    needed = {normal(providers[name][0]) for name in imported}
    assert needed - declared - {"xllamacpp"} == set()
    assert declared - needed == set(), "nobody imports it"


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_checkout_is_tested_and_not_a_folder_named_fireside_beside_it(tmp_path: Path) -> None:
    (tmp_path / "fireside").mkdir()
    (tmp_path / "fireside" / "__init__.py").write_text("raise RuntimeError('the wrong folder')", "utf-8")
    shutil.copytree(ROOT, tmp_path / "checkout", ignore=NOT_SOURCES)
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "tests/test_config.py"]
    done = subprocess.run(command, cwd=tmp_path / "checkout", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


# ---- installed


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment in which the wheel and what it depends on are all there is."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=os.name == "posix")
    programs = folder / ("Scripts" if sys.platform == "win32" else "bin")
    pip = [sys.executable, "-m", "pip", "--python", str(programs / "python"), "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "install", "--quiet", "--no-compile", str(wheel)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return programs


def environment(**settings: str) -> dict[str, str]:
    names = ("PATH", "HOME", "SYSTEMROOT", "USERPROFILE", "LOCALAPPDATA", "TEMP")
    return {name: os.environ[name] for name in names if name in os.environ} | settings


def test_installed_it_says_what_it_can_do(installed: Path, tmp_path: Path) -> None:
    for arguments, said in ((["--help"], "usage: fireside"), (["--version"], f"fireside {fireside.__version__}\n")):
        done = subprocess.run(
            [str(installed / "fireside"), *arguments],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0 and done.stdout.startswith(said), done.stderr


def test_installed_it_holds_a_chat(installed: Path, tmp_path: Path, upstream: Upstream) -> None:
    upstream.enqueue(answer("The capital is", " Tokyo."))
    command = [str(installed / "fireside"), "--port", "0", "--no-open", "--data-dir", str(tmp_path / "data")]
    settings = environment(FIRESIDE_BOOTSTRAP_TOKEN=BOOTSTRAP_TOKEN, FIRESIDE_LMSTUDIO_URL=upstream.url)
    with subprocess.Popen(command, cwd=tmp_path, env=settings, stdout=subprocess.PIPE, text=True) as service:
        try:
            assert service.stdout is not None
            url = service.stdout.readline().rpartition(" ")[2].strip()
            with httpx.Client(base_url=url, trust_env=False, timeout=PATIENCE) as client:
                assert client.get("/").text.startswith("<!doctype html>")
                assert client.get("/static/app.js").status_code == 200
                body = {"username": "ann", "password": PASSWORD, "token": BOOTSTRAP_TOKEN}
                client.headers["X-CSRF-Token"] = client.post("/admin/bootstrap", json=body).json()["csrf_token"]
                conversation = f"/conversations/{client.post('/conversations', json={}).json()['id']}"
                client.post(f"{conversation}/messages", json={"content": "What is the capital of Japan?"})
                model = {"provider_id": "lmstudio", "model": "llama-3.2-3b-instruct"}
                streamed = client.post(f"{conversation}/stream", json=model).content
                messages = client.get(f"{conversation}/messages", params={"render": "true"}).json()
        finally:
            service.terminate()
    events = [parse_event(block) for block in streamed.split(b"\n\n")[:-1]]
    assert text(events) == "The capital is Tokyo." and events[-1].data["status"] == "ok"
    assert [message["content"] for message in messages] == ["What is the capital of Japan?", "The capital is Tokyo."]
    assert messages[1]["blocks"] == [["p", {}, "The capital is Tokyo."]]
