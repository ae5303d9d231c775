"""Where the service listens, and the links under which people reach it."""

import contextlib
import os
from typing import Any

from ..config import Config

PORT_FILE = "port"
PORTS_TO_TRY = 20
ANY_ADDRESS = ("0.0.0.0", "::")


def ports_to_try(settings: Config, options: dict[str, Any]) -> list[int]:
    """Return the ports to listen on, in order of preference. A port from a flag or a variable is the only one."""
    if options.get("port") or os.environ.get("FIRESIDE_PORT") or settings.port == 0:
        return [settings.port]
    ports = range(settings.port, min(settings.port + PORTS_TO_TRY, 65536))
    with contextlib.suppress(OSError, ValueError):
        port = int((settings.data_dir / PORT_FILE).read_text("utf-8"))
        if port in ports:
            return [port, *ports]
    return [*ports]


def remember_port(settings: Config, port: int) -> None:
    """Save a port other than the configured one, so that the next start tries it first and bookmarks and cookies stay valid."""
    file = settings.data_dir / PORT_FILE
    with contextlib.suppress(OSError):
        if settings.port and port != settings.port:
            file.write_text(str(port), "utf-8")
        else:
            file.unlink(missing_ok=True)


def local_url(settings: Config, host: str, port: int) -> str:
    """Return the URL by which this computer reaches a service that listens on a host and port."""
    if host in ANY_ADDRESS:
        host = "127.0.0.1"
    return f"{settings.scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def next_url(settings: Config, options: dict[str, Any]) -> str:
    """Return the URL that the service will have when it is started, or "" if it may be any port."""
    port = ports_to_try(settings, options)[0]
    return local_url(settings, settings.host.strip("[]"), port) if port else ""


def setup_link(settings: Config, url: str) -> str | None:
    """Return the link that creates the first account, or None if there is an account or the token comes from the settings."""
    with contextlib.suppress(OSError):
        return f"{url}/#setup={settings.bootstrap_file.read_text('utf-8')}"
    return None


def print_setup_link(settings: Config, url: str) -> str | None:
    """Print and return the setup link, if there is one."""
    link = setup_link(settings, url)
    if link:
        print(f"Create the first account at {link}", flush=True)
    return link
