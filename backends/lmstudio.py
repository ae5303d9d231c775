"""LM Studio as it is installed on this computer: where it keeps its files, where its server listens, and how to start it.

Read from LM Studio's own files, which it documents nowhere and may change: whatever is missing or odd counts as not there.
"""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from ..errors import ProviderFailed

PORT = 1234  # its default in all its documentation
START_SECONDS = 60.0  # the app has to start first when it does not run


def homes() -> list[Path]:
    """The folders in which LM Studio may keep its files, the likeliest first. They need not exist.

    The pointer file and the order are those of its own command line tool (github.com/lmstudio-ai/lms).
    """
    try:
        home = Path.home()
    except RuntimeError:
        return []
    pointed = _absolute(_read_small(home / ".lmstudio-home-pointer").strip())
    return list(dict.fromkeys([*pointed, home / ".lmstudio", home / ".cache" / "lm-studio"]))


def model_folders() -> list[Path]:
    """`settings.json` names the models folder if the user has moved it."""
    return [
        folder
        for home in homes()
        for folder in (*_absolute(_read_json(home / "settings.json").get("downloadsFolder")), home / "models")
    ]


def conversation_folders() -> list[Path]:
    """Those that exist."""
    folders = [home.resolve() / "conversations" for home in homes()]
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def server_url() -> str:
    """Where its server listens, or would: the port stays in a file when the user changes it."""
    ports = [_read_json(home / ".internal" / "http-server-config.json").get("port") for home in homes()]
    good = [port for port in ports if isinstance(port, int) and not isinstance(port, bool) and 0 < port < 65536]
    return f"http://127.0.0.1:{good[0] if good else PORT}"


def command() -> Path | None:
    """LM Studio's command line tool, which comes with it."""
    name = "lms.exe" if sys.platform == "win32" else "lms"
    found = [home / "bin" / name for home in homes()]
    return next((path for path in found if path.is_file()), None)


async def start_server() -> None:
    """What `lms server start` does. Raises ProviderFailed."""
    lms = command()
    if lms is None:
        raise ProviderFailed("PROVIDER_UNREACHABLE", "LM Studio's command line tool was not found on this computer.")
    try:
        starting = await asyncio.create_subprocess_exec(
            lms, "server", "start", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    except OSError as error:
        raise ProviderFailed("PROVIDER_UNREACHABLE", f"{lms.name} could not be run: {error.strerror}") from None
    try:
        async with asyncio.timeout(START_SECONDS):
            said, _ = await starting.communicate()
    except TimeoutError:
        raise ProviderFailed("PROVIDER_TIMEOUT", f"LM Studio did not start within {START_SECONDS:.0f} s.") from None
    finally:
        if starting.returncode is None:
            starting.kill()
            await starting.wait()
    if starting.returncode:
        words = " ".join(said.decode("utf-8", "replace").split())[:300]
        raise ProviderFailed("PROVIDER_UNREACHABLE", f"LM Studio's server did not start: {words}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_read_small(path))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _read_small(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(1024 * 1024).decode("utf-8", "replace")
    except OSError:
        return ""


def _absolute(text: object) -> list[Path]:
    usable = isinstance(text, str) and "\0" not in text and "\ufffd" not in text and Path(text).is_absolute()
    return [Path(str(text))] if usable else []
