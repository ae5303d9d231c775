"""Install, upgrade and remove Fireside as its users do: python -m tests.rehearsal WHEEL, and part of `make release`.

Earlier versions are built from their commits. Each writes a database with a picture, versions, an unfinished answer and a chat in the
bin; the new version must open it with everything in it.
"""

import base64
import contextlib
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import fireside
import httpx

from .live import BOOTSTRAP_TOKEN, PASSWORD, PATIENCE
from .processes import environment
from .upstream import Gate, Upstream, answer, pause, text

ROOT = Path(fireside.__file__).resolve().parent
FIRST = "85fbff5"  # the state that version 0.1.0 names
LANDINGS = (
    FIRST,
    "00a8563",
    "33d3ab7",
    "fcc3939",
    "fca7739",
    "47ff7e9",
    "044dc7a",
)  # states that people may have installed from the repository
Command = Path | tuple[str | Path, ...]
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="  # a PNG


def run(*command: str | Path, **settings: str) -> str:
    """Run a command and return its output. Exits with the output when the command fails."""
    done = subprocess.run(command, cwd=ROOT, env=os.environ | settings, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def program(environment: Path, name: str) -> Path:
    return environment / ("Scripts" if sys.platform == "win32" else "bin") / name


@contextlib.contextmanager
def serving(command: Command, data: Path, **settings: str) -> Iterator[httpx.Client]:
    """Run the service and yield a client without a session."""
    command = command if isinstance(command, tuple) else (command,)
    options = ("--port", "0", "--no-open", "--data-dir", data)
    environ = environment(bootstrap_token=BOOTSTRAP_TOKEN, **settings)
    with subprocess.Popen((*command, *options), env=environ, stdout=subprocess.PIPE, text=True) as service:
        try:
            assert service.stdout is not None
            url = service.stdout.readline().rpartition(" ")[2].strip()
            with httpx.Client(base_url=url, trust_env=False, timeout=PATIENCE) as client:
                yield client
        finally:
            service.terminate()


def sign_in(client: httpx.Client, path: str = "/auth/login", **fields: str) -> None:
    person = {"username": "ann", "password": PASSWORD} | fields
    client.headers["X-CSRF-Token"] = _good(client.post(path, json=person))["csrf_token"]


def _good(response: httpx.Response) -> Any:
    return response.raise_for_status().json()


def fill(client: httpx.Client, upstream: Upstream) -> None:
    """Write what an upgrade must keep. Leaves an answer that is still generated when the service stops."""
    sign_in(client, "/admin/bootstrap", token=BOOTSTRAP_TOKEN)
    model = {"provider_id": "lmstudio", "model": upstream.models[0].key}
    picture = {"media_type": "image/png", "data": PIXEL}
    for title, question in (
        ("Boats", "Why does a boat float? ⛵"),
        ("Bin", "What is a bin?"),
        ("", "Zwölf Boxkämpfer"),
    ):
        number = _good(client.post("/conversations", json={"title": title} if title else {}))["id"]
        conversation = f"/conversations/{number}"
        body = {"content": question, "images": [picture] if title == "Boats" else []}
        _good(client.post(f"{conversation}/messages", json=body))
        client.post(f"{conversation}/stream", json=model).raise_for_status()
        if title == "Boats":
            started = _good(client.post("/chat/retry", json=model | {"conversation_id": number}))
            client.get(f"/generations/{started['generation_id']}/stream").raise_for_status()
            _good(client.patch(conversation, json={"system_prompt": "Be brief.", "settings": {"temperature": 0.5}}))
        elif title == "Bin":
            client.delete(conversation).raise_for_status()
    _good(client.post(f"{conversation}/messages", json={"content": "And then?"}))
    upstream.enqueue(text("The beginning"), pause(Gate()), answer(" and the end."))
    with client.stream("POST", f"{conversation}/stream", json=model) as response:
        for line in response.iter_lines():
            if "The beginning" in line:
                return


def read(client: httpx.Client) -> dict[str, Any]:
    """Return what the API shows of the user's data."""
    found = {"bin": _good(client.get("/conversations?deleted=true")), "list": _good(client.get("/conversations"))}
    for conversation in found["list"]:
        path = f"/conversations/{conversation['id']}"
        found[path] = _good(client.get(path))
        found[f"{path}/messages"] = _good(client.get(f"{path}/messages"))
        for message in found[f"{path}/messages"]:
            for image in message.get("images", []):
                content = client.get(f"/images/{image['id']}").raise_for_status().content
                found[f"images of {message['id']}"] = base64.b64encode(content).decode()
    found["/search"] = [hit["conversation_id"] for hit in _good(client.get("/search?q=boat"))["results"]]
    return found


def _filled(client: httpx.Client) -> dict[str, Any]:
    """Return what `read` finds with the old version. Exits when a part of `fill` is missing."""
    found = read(client)
    text = str(found)
    for part in ("Why does a boat float?", PIXEL[:40], "'interrupted'", "The beginning", "'temperature': 0.5"):
        if part not in text:
            raise SystemExit(f"The old version did not keep {part!r}.")
    if not found["bin"] or not found["/search"]:
        raise SystemExit("The old version has nothing in the bin or finds nothing.")
    return found


def check_kept(old: Any, new: Any, place: str = "") -> None:
    """Exit unless everything in `old` is in `new`, which may have more fields."""
    if isinstance(old, Mapping):
        for name, value in old.items():
            check_kept(value, new.get(name), f"{place}/{name}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (one, other) in enumerate(zip(old, new, strict=True)):
            check_kept(one, other, f"{place}/{number}")
    elif old != new:
        raise SystemExit(f"The upgrade changed {place}: {old!r} became {new!r}.")


def export(commit: str, folder: Path) -> None:
    """Write the files of a commit."""
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True)
    if archive.returncode:
        raise SystemExit(f"Commit {commit} is not in this clone. Fetch the whole history.")
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")


def upgrade(old: Command, new: Command, data: Path, install: Callable[[], None] = lambda: None) -> None:
    """Fill a data directory with the old version and check that the new one, after `install`, shows it all."""
    with Upstream() as upstream:
        with serving(old, data, lmstudio_url=upstream.url) as client:
            fill(client, upstream)
        with serving(old, data, lmstudio_url=upstream.url) as client:  # it marks the unfinished answer
            sign_in(client)
            before = _filled(client)
        install()
        with serving(new, data, lmstudio_url=upstream.url) as client:
            sign_in(client)
            check_kept(before, read(client))


def rehearse_landings(folder: Path) -> None:
    """Upgrade from each earlier state, run from its files with the packages of this environment, to this checkout."""
    for commit in LANDINGS:
        export(commit, folder / commit / "fireside")
        bootstrap = (
            "import sys; sys.path.insert(0, sys.argv.pop(1)); from fireside.__main__ import main; sys.exit(main())"
        )
        old = (sys.executable, "-P", "-c", bootstrap, folder / commit)
        upgrade(old, (sys.executable, "-m", "fireside"), folder / commit / "data")
        print("upgraded with all data from", commit)


def rehearse(wheel: Path, folder: Path) -> None:
    """Install the wheel and the repository with pipx and uv, upgrade the first version with pipx, and remove all of them."""
    export(FIRST, folder / "first")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder / "wheels", folder / "first")
    [first] = (folder / "wheels").iterdir()
    for package in (first, wheel):
        run(sys.executable, "-m", "pip", "download", "--quiet", "--dest", folder / "wheels", package)
    (folder / "wheels" / wheel.name).unlink(missing_ok=True)

    homes = {
        "PIPX_HOME": str(folder / "pipx"),
        "PIPX_BIN_DIR": str(folder / "bin"),
        "PIPX_MAN_DIR": str(folder / "man"),
    }
    homes |= {"UV_TOOL_DIR": str(folder / "uv"), "UV_TOOL_BIN_DIR": str(folder / "uvbin")}
    pipx, uv = (sys.executable, "-m", "pipx"), Path(sys.executable).with_name("uv")
    offline = f"--pip-args=--no-index --find-links={folder / 'wheels'}"
    installed, of_uv = folder / "bin" / "fireside", folder / "uvbin" / "fireside"

    run(*pipx, "install", offline, "fireside", **homes)
    data = folder / "data"

    def install_new() -> None:
        (folder / "wheels" / wheel.name).write_bytes(wheel.read_bytes())
        run(*pipx, "upgrade", "fireside", **homes)
        _check_version(installed)

    upgrade(installed, installed, data, install_new)
    run(*pipx, "uninstall", "fireside", **homes)
    if installed.exists() or not (data / "fireside.db").exists():
        raise SystemExit("pipx uninstall must remove the command and leave the data.")
    print("pipx: installed the first version, upgraded it with all data, uninstalled it")

    repository = f"git+{ROOT.as_uri()}"
    for source in (wheel, repository):
        run(*pipx, "install", str(source), **homes)
        _check_version(installed)
        run(*pipx, "uninstall", "fireside", **homes)
        run(uv, "tool", "install", str(source), **homes)
        _check_version(of_uv)
        run(uv, "tool", "uninstall", "fireside", **homes)
        print("pipx and uv: installed and uninstalled", "the wheel" if source == wheel else "the repository")


def _check_version(command: Path) -> None:
    found = run(command, "--version").strip()
    if found != f"fireside {fireside.__version__}":
        raise SystemExit(f"{found} is installed instead of {fireside.__version__}.")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        rehearse_landings(Path(temporary))
        if len(sys.argv) > 1:
            rehearse(Path(sys.argv[1]).resolve(), Path(temporary) / "packages")
