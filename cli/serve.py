"""The command `fireside serve`: run the service until a signal stops it."""

import asyncio
import contextlib
import errno
import gc
import logging
import os
import signal
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .. import config, db
from ..config import Config
from ..errors import ConfigError
from ..safety.throttle import is_loopback
from .address import ANY_ADDRESS, local_url, ports_to_try, print_setup_link, remember_port
from .browser import open_page
from .client import SERVICE_FILE, find_service, write_service_file

if TYPE_CHECKING:
    from ..server import Server
    from ..web.endpoint import AppState


def serve(options: dict[str, Any]) -> int:
    """Run the service until a signal stops it. The first line printed is its address."""
    settings = config.load(options)
    if settings.lan and is_loopback(settings.host):
        settings = replace(settings, host="0.0.0.0")
    try:
        with db.lock(settings.data_dir):
            (settings.data_dir / SERVICE_FILE).unlink(missing_ok=True)  # left by a service that was killed
            code = _run_service(settings, ports_to_try(settings, options))
    except OSError as error:  # such as a full disk, or a folder where a file should be
        print(f"fireside: {error.filename or settings.data_dir}: {error.strerror or error}", file=sys.stderr)
        return 1
    except db.DatabaseUnusable:
        running = find_service(settings)
        if running is None:
            raise
        print(f"Fireside is already running at {running.url}")
        open_page(settings, running.url, print_setup_link(settings, running.url))
        return 0
    # Python would wait for threads that still work, and checking a large database or reading a network drive may take minutes.
    # Nothing is lost: the database is closed.
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _run_service(settings: Config, ports: list[int]) -> int:
    gc.disable()  # until Server.startup: collecting while modules are imported takes 15 ms and finds little
    # Not at the top: a second start, which only prints the address of the first, does not need the service.
    from ..safety.logs import open_logs
    from ..server import Server, create_app
    from .doctor import readable_by_others

    with _listen(settings, ports) as listener:
        open_logs(settings.data_dir)
        app = create_app(settings)
        host, port = listener.getsockname()[:2]
        server, url = Server(app, settings), local_url(settings, host, port)

        def started() -> None:
            write_service_file(settings, url, app.state.fireside.secret)
            remember_port(settings, port)
            for line in readable_by_others([settings.data_dir.resolve()]):
                print(f"Warning: {line}", file=sys.stderr)
            _print_address(settings, url, app.state.fireside)

        server.on_started = started
        _keep_signals_from_ending(server)
        try:
            asyncio.run(_serve(server, listener))
        except SystemExit as stop:  # raised by uvicorn when the start failed
            failure = app.state.failure
            if failure is None:
                return int(stop.code or 1)
            if isinstance(failure, (db.DatabaseUnusable, OSError)):
                raise failure from None
            log = settings.data_dir / "fireside.log"
            print(f"fireside: could not start because of an internal error. See {log}.", file=sys.stderr)
        finally:
            (settings.data_dir / SERVICE_FILE).unlink(missing_ok=True)
        return 0 if server.started else 1


async def _serve(server: "Server", listener: socket.socket) -> None:
    await server.serve(sockets=[listener])
    # asyncio.run waits for the threads of the default executor, so give it one without threads: see the end of serve().
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor())


def _keep_signals_from_ending(server: "Server") -> None:
    """Let the process clean up after uvicorn has stopped: uvicorn then raises the signal that stopped it a second time."""

    def handle(number: int, _: object) -> None:
        if not server.should_exit:  # uvicorn does not handle signals yet
            sys.exit(128 + number)

    for name in ("SIGINT", "SIGTERM", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), handle)


def _listen(settings: Config, ports: list[int]) -> socket.socket:
    """Return a socket that listens on the first free port. Raises ConfigError."""
    from ..web.connection import Listener

    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    failure: OSError | None = None
    for port in ports:
        # With the protocol named, asyncio sets TCP_NODELAY. Nagle's algorithm would delay small writes by 40 ms.
        listener = Listener(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            if os.name == "posix":  # on Windows it would let two programs share a port
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((settings.host.strip("[]"), port))
            listener.listen(2048)
        except OSError as error:
            listener.close()
            failure = error
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                break
        else:
            return listener
    assert failure is not None
    raise ConfigError(f"cannot listen on --host {settings.host} --port {settings.port}: {failure.strerror}")


def _print_address(settings: Config, local_url: str, state: "AppState") -> None:
    """Print where the page is and how to sign in for the first time, and open it."""
    url = settings.public_url or local_url
    print(f"Fireside is at {url}", flush=True)
    link = print_setup_link(settings, url)
    if state.auth.bootstrap_token and settings.bootstrap_token:
        print("Create the first account there with the token from FIRESIDE_BOOTSTRAP_TOKEN or config.toml.", flush=True)
    if not is_loopback(settings.host):
        printing = asyncio.get_running_loop().create_task(print_network_address(settings, local_url, state))
        printing.add_done_callback(lambda task: task.result())
    threading.Thread(target=open_page, args=(settings, url, link), daemon=True).start()


async def print_network_address(settings: Config, local_url: str, state: "AppState") -> None:
    """Print the address for other devices, what to know about it and, with `lan`, an invite."""
    port, url = local_url.rpartition(":")[2], local_url
    if settings.host.strip("[]") in ANY_ADDRESS:
        url = f"{settings.scheme}://{_lan_address()}:{port}"
    lines = [
        f"Other devices on this network can open {url}",
        "Everyone on the network can see the sign-in page. Only people with an account can sign in.",
    ]
    if settings.tls_certificate is None:
        lines.append("Connections are not encrypted. Use this only on a network that you trust.")
    if sys.platform == "win32":
        lines.append("If Windows asks, allow Python on private networks only.")
    elif sys.platform == "darwin":
        lines.append("If macOS asks, allow incoming connections for Python.")
    else:
        lines.append(f"If a firewall is active, allow the port, for example: sudo ufw allow {port}/tcp")
    if settings.lan and not state.auth.bootstrap_token:
        link = f"{settings.public_url or url}/#invite={await state.auth.lan_invite()}"
        lines.append(f"Invite for one person (works once, within 24 hours): {link}")
    print("\n".join(lines), flush=True)


def _lan_address() -> str:
    """Return the address by which other devices reach this computer. Connecting a UDP socket sends nothing, but picks the
    network interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])
    return f"{socket.gethostname().split('.')[0]}.local"
