"""The command line."""

import argparse
import asyncio
import contextlib
import difflib
import errno
import html
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import webbrowser
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__, config, db
from .config import Config
from .errors import ConfigError
from .safety.throttle import is_loopback

if TYPE_CHECKING:
    from .server import Server
    from .web.endpoint import AppState

WORKERS = "fireside-worker"
WORKERS_SECONDS = 0.2  # that the idle ones may take to end


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 failed with one line that says why, 2 a wrong setting or argument."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # under pythonw
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        with contextlib.suppress(AttributeError, ValueError):
            getattr(sys, name).reconfigure(encoding="utf-8", errors="replace")  # consoles on Windows are not
    os.umask(0o077)  # whatever is written is its owner's alone
    try:
        options = _parse(sys.argv[1:] if arguments is None else arguments)
        command = options.pop("command", "serve")
        if command == "serve":
            return serve(options)
        from .cli import commands as commands

        try:
            return int(getattr(commands, command)(options))
        except commands.ERRORS as error:
            print(f"fireside: {_told(error)}", file=sys.stderr)
            return 1
    except ConfigError as error:
        print(f"fireside: {error}", file=sys.stderr)
        return 2
    except db.DatabaseUnusable as error:
        print(f"fireside: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _told(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _parse(arguments: Sequence[str]) -> dict[str, Any]:
    """Exits with a line on what is wrong. Raises ConfigError for an option that there is not: argparse would take the next word,
    the value that was meant for it, for the command."""
    parser, commands = _parser()
    try:
        found, unknown = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        without_commands = argparse.ArgumentParser(add_help=False, exit_on_error=False)
        without_commands.add_argument("--help", "-h", "--version", action="store_true")
        _options(without_commands)
        with contextlib.suppress(argparse.ArgumentError):
            _, unknown = without_commands.parse_known_args(arguments)
            if unknown[0].startswith("-"):
                raise _no_such_option(unknown[0], parser) from None
        parser.error(str(error))
    chosen = next((commands[word] for word in arguments if word in commands), parser)
    for word in unknown:
        if word.startswith("-"):
            raise _no_such_option(word, chosen)
    if unknown:
        chosen.error(f"unrecognized arguments: {' '.join(unknown)}")
    return vars(found)


def _no_such_option(word: str, parser: argparse.ArgumentParser) -> ConfigError:
    name = word.partition("=")[0]
    near = difflib.get_close_matches(name, re.findall(r"--[a-z-]+", parser.format_help()), 1)
    return ConfigError(
        f"{name}: there is no such option. " + (f"Did you mean {near[0]}?" if near else f"Run: {parser.prog} --help")
    )


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The whole one, and those of the commands by their names."""
    parser = argparse.ArgumentParser(
        prog="fireside",
        description="Chat with the models on your own computer. Without a command: serve.",
        exit_on_error=False,
    )
    parser.add_argument("--version", action="version", version=f"fireside {__version__}")
    _options(parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def command(name: str, function: str, text: str, *, user: bool = False) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text.capitalize() + ".")
        made.set_defaults(command=function)
        made.add_argument("--data-dir", default=argparse.SUPPRESS, help="where the conversations are kept")
        if user:
            made.add_argument("--user", help="whose; without it, the first administrator")
        return made

    _serve_options(command("serve", "serve", "run the service (also without a command)"), argparse.SUPPRESS)
    command("backup", "backup", "write a copy of the database").add_argument("file")
    command("restore", "restore", "put a backup in the database's place").add_argument("file")
    salvaging = command("salvage", "salvage", "write what can still be read of a damaged database to a new one")
    salvaging.add_argument("new", help="the file to write")
    salvaging.add_argument("damaged", nargs="?", help="the file to read; without it, the database")
    command("doctor", "doctor", "look for what is wrong, and say what to do")
    command("import", "import_", "add conversations from other programs", user=True).add_argument(
        "paths", nargs="*", help="files and folders; without any, LM Studio's conversations"
    )
    command("export", "export", "write all conversations as a zip", user=True).add_argument("file")
    command("login-link", "login_link", "print a link that signs a browser in", user=True)
    command("reset-password", "reset_password", "set a new password", user=True)
    managing = command("service", "manage_service", "start Fireside with the computer")
    managing.add_argument("action", choices=("install", "remove"))
    managing.add_argument("--dry-run", action="store_true", help="only say what would be done")
    return parser, dict(commands.choices)


def _options(parser: argparse.ArgumentParser) -> None:
    """What may stand before a command."""
    parser.add_argument("--data-dir", help="where the conversations are kept")
    _serve_options(parser, None)


def _serve_options(parser: argparse.ArgumentParser, default: Any) -> None:
    add = parser.add_argument
    add("--host", default=default, help="address to listen on (127.0.0.1)")
    add("--port", default=default, help="port to listen on (8000); 0 for a free one")
    add("--lan", action="store_true", default=default, help="let other devices on this network in, and print an invite")
    add("--open", action=argparse.BooleanOptionalAction, default=default, help="open the page in a browser")


def serve(options: dict[str, Any]) -> int:
    """Run until told to stop. The first line printed is the address."""
    settings = config.load(options)
    if settings.lan and is_loopback(settings.host):
        settings = replace(settings, host="0.0.0.0")
    from .cli.client import SERVICE_FILE, find_service, ports, say_setup

    try:
        with db.lock(settings.data_dir):
            (settings.data_dir / SERVICE_FILE).unlink(missing_ok=True)  # of a service that was killed
            code = _serve(settings, ports(settings, options))
            _leave_behind_workers(code)
            return code
    except OSError as error:  # a full disk, or a file in the way
        print(f"fireside: {error.filename or settings.data_dir}: {error.strerror or error}", file=sys.stderr)
        return 1
    except db.DatabaseUnusable:
        running = find_service(settings)
        if running is None:
            raise
        print(f"Fireside runs already, at {running.url}")
        _open(settings, running.url, say_setup(settings, running.url), wait=True)
        return 0


def _serve(settings: Config, ports: list[int]) -> int:
    from .cli.autostart import warnings
    from .cli.client import address, announced, remember
    from .safety.logs import open_logs
    from .server import Server, create_app

    with _listen(settings, ports) as listener:
        open_logs(settings.data_dir)
        app = create_app(settings)
        host, port = listener.getsockname()[:2]
        server, local = Server(app, settings), address(settings, host, port)
        with announced(settings, local, lambda: app.state.fireside.secret) as announce:

            def started() -> None:
                announce()
                remember(settings, port)
                for warning in warnings(settings.data_dir):
                    print(f"Warning: {warning}", file=sys.stderr)
                _say(settings, local, app.state.fireside)

            server.on_started = started
            _stop_quietly(server)
            try:
                asyncio.run(_run(server, listener))
            except SystemExit as stop:  # uvicorn's word for a start that failed
                failure = app.state.failure
                if failure is None:
                    return int(stop.code or 1)
                if isinstance(failure, (db.DatabaseUnusable, OSError)):
                    raise failure from None
                print(
                    f"fireside: could not start: {failure}. {settings.data_dir / 'fireside.log'} says more.",
                    file=sys.stderr,
                )
            return 0 if server.started else 1


async def _run(server: "Server", listener: socket.socket) -> None:
    asyncio.get_running_loop().set_default_executor(_Workers(thread_name_prefix=WORKERS))
    await server.serve(sockets=[listener])


class _Workers(ThreadPoolExecutor):
    """The threads of asyncio.to_thread, which the end of the event loop does not wait for."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait=False, cancel_futures=True)


def _leave_behind_workers(code: int) -> None:
    """Ends the process here, if a thread still works: Python would wait for it, and a large text or a drive that hangs takes long.

    Nothing is lost by that: whatever is written for good has been, when the database is closed.
    """
    workers = [thread for thread in threading.enumerate() if thread.name.startswith(WORKERS)]
    end = time.monotonic() + WORKERS_SECONDS
    for thread in workers:
        thread.join(max(0.0, end - time.monotonic()))
    if any(thread.is_alive() for thread in workers):
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def _stop_quietly(server: "Server") -> None:
    """uvicorn raises the signal that stopped it once more, after it has stopped: that must not end us before we have cleaned up."""

    def handle(number: int, _: object) -> None:
        if not server.should_exit:  # before uvicorn listens to signals
            sys.exit(128 + number)

    for name in ("SIGINT", "SIGTERM", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), handle)


def _listen(settings: Config, ports: list[int]) -> socket.socket:
    """A listening socket, on the first of the ports that is free."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    failure: OSError | None = None
    for port in ports:
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # asyncio looks: else Nagle's 40 ms
        try:
            if os.name == "posix":  # on Windows it would let two programs have one port
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((settings.host.strip("[]"), port))
            listener.listen(2048)
        except OSError as error:
            listener.close()
            failure = error
            if error.errno not in (errno.EADDRINUSE, errno.EACCES, 10013, 10048):
                break
        else:
            return listener
    assert failure is not None
    raise ConfigError(f"--host {settings.host} --port {settings.port}: cannot be listened on: {failure.strerror}")


def _say(settings: Config, local: str, state: "AppState") -> None:
    """`local`: the address of the listener, as this computer reaches it."""
    from .cli.client import say_setup

    url = settings.public_url or local
    print(f"Fireside is at {url}", flush=True)
    link = say_setup(settings, url)
    if state.auth.bootstrap_token and settings.bootstrap_token:
        print("Create the first account there with the token from FIRESIDE_BOOTSTRAP_TOKEN or config.toml.", flush=True)
    if not is_loopback(settings.host):
        asyncio.get_running_loop().create_task(_say_lan(settings, local, state)).add_done_callback(
            lambda task: task.result()
        )
    _open(settings, url, link)


async def _say_lan(settings: Config, local: str, state: "AppState") -> None:
    """What listening on the network means, where it is to be found, and a way in."""
    from .cli.client import EVERYWHERE

    port = local.rpartition(":")[2]
    there = f"{settings.scheme}://{_lan_address()}:{port}" if settings.host.strip("[]") in EVERYWHERE else local
    print(f"On this network it is at {there}", flush=True)
    print("Whoever is on the network can see the sign-in page; only who has an account gets further.", flush=True)
    if settings.tls_certificate is None:
        print("The connection is not encrypted: use it on a network that you trust.", flush=True)
    if sys.platform == "win32":
        print("If Windows asks, allow Python on private networks only.", flush=True)
    elif sys.platform == "darwin":
        print("If macOS asks, allow incoming connections for Python.", flush=True)
    else:
        print(f"If a firewall is on, allow the port, for example: sudo ufw allow {port}/tcp", flush=True)
    if settings.lan and not state.auth.bootstrap_token:
        link = f"{settings.public_url or there}/#invite={await state.auth.lan_invite()}"
        print(f"Invite one person (works once, for a day at most): {link}", flush=True)


def _lan_address() -> str:
    """The address that other devices reach this one at. Connecting a UDP socket sends nothing; it only picks the interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])
    return f"{socket.gethostname().split('.')[0]}.local"


_REDIRECT = """\
<!doctype html>
<meta charset="utf-8">
<meta http-equiv="refresh" content="0;url={link}">
<title>Fireside</title>
<p><a href="{link}">Open Fireside</a></p>
"""


def _open(settings: Config, url: str, link: str | None, *, wait: bool = False) -> None:
    """Open the page in a browser; `link` is the set-up link, if there is one. `wait` for the browser's command to end."""

    def run() -> None:
        webbrowser.open(_without_token(settings, url, link))

    if settings.open and sys.stdout.isatty():
        opening = threading.Thread(target=run, daemon=True)
        opening.start()
        if wait:
            opening.join()


def _without_token(settings: Config, url: str, link: str | None) -> str:
    """Return an address for the browser's command line, which all users of the computer can read: a private file that leads
    to the link or, where the browser could not read that file, `url`, whose page says where to find the link."""
    from .auth import write_private

    if link is None or _default_browser_is_snap():
        return url
    try:
        write_private(settings.setup_page, _REDIRECT.format(link=html.escape(link)))
    except OSError:
        return url
    return settings.setup_page.as_uri()


def _default_browser_is_snap() -> bool:
    """Snaps cannot read hidden folders such as ~/.local, where the data directory is."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["xdg-settings", "get", "default-web-browser"]
        name = subprocess.run(command, capture_output=True, text=True, timeout=5).stdout.strip()
        return Path("/var/lib/snapd/desktop/applications", name).is_file()
    return False


if __name__ == "__main__":
    sys.exit(main())
