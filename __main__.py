"""The command line."""

import argparse
import asyncio
import contextlib
import errno
import logging
import logging.handlers
import os
import socket
import sys
import threading
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import __version__, config, db
from .config import Config
from .errors import ConfigError
from .guard import is_loopback

PORTS_TRIED = 20  # after the one that is configured, when that is taken


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 failed with one line that says why, 2 a wrong setting or argument."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]  # consoles on Windows are not
    parser = _parser()
    options = vars(parser.parse_args(arguments))
    command = options.pop("command", None) or serve
    try:
        return int(command(options) or 0)
    except ConfigError as error:
        print(f"fireside: {error}", file=sys.stderr)
        return 2
    except db.DatabaseUnusable as error:
        print(f"fireside: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fireside", description="Chat with the models on your own computer. Without a command: serve."
    )
    parser.add_argument("--version", action="version", version=f"fireside {__version__}")
    _serve_options(parser)
    commands = parser.add_subparsers(title="commands", metavar="")
    serving = commands.add_parser("serve", help="run the service (also without a command)")
    _serve_options(serving, default=argparse.SUPPRESS)
    serving.set_defaults(command=serve)
    return parser


def _serve_options(parser: argparse.ArgumentParser, default: Any = None) -> None:
    add = parser.add_argument
    add("--host", default=default, help="address to listen on (127.0.0.1)")
    add("--port", default=default, help="port to listen on (8000); 0 for a free one")
    add("--data-dir", default=default, help="where the conversations are kept")
    add("--open", action=argparse.BooleanOptionalAction, default=default, help="open the page in a browser")


def serve(options: dict[str, Any]) -> int:
    """Run until told to stop. The first line printed is the address."""
    from .server import Server, create_app

    settings = config.load(options)
    chosen = options.get("port") is not None or "FIRESIDE_PORT" in os.environ
    with db.lock(settings.data_dir), _listen(settings, exact=chosen) as listener:
        _log_to_file(settings.data_dir)
        app = create_app(settings)
        server = Server(app, settings)
        url = address(listener, settings)
        server.on_started = lambda: _announce(settings, url, app.state.fireside.auth.bootstrap_token)
        asyncio.run(server.serve(sockets=[listener]))
        if not server.started:
            print("fireside: could not start; the log says why:", settings.data_dir / "fireside.log", file=sys.stderr)
            return 1
    return 0


def _listen(settings: Config, exact: bool) -> socket.socket:
    """A listening socket: on the configured port or, unless it was asked for by name, on the next that is free."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    ports = [settings.port] if exact or settings.port == 0 else range(settings.port, settings.port + PORTS_TRIED)
    failure: OSError | None = None
    for port in ports:
        listener = socket.socket(family, socket.SOCK_STREAM)
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


def address(listener: socket.socket, settings: Config) -> str:
    host, port = listener.getsockname()[:2]
    if settings.public_url:
        return settings.public_url
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _announce(settings: Config, url: str, bootstrap_token: str) -> None:
    link = url
    print(f"Fireside is at {url}", flush=True)
    if bootstrap_token and not settings.bootstrap_token:
        link = f"{url}/#setup={bootstrap_token}"
        print(f"Create the first account at {link}", flush=True)
    elif bootstrap_token:
        print("Create the first account there with the token from FIRESIDE_BOOTSTRAP_TOKEN.", flush=True)
    if not is_loopback(settings.host):
        print("Others on this network can reach it too; only who has an account gets in.", flush=True)
    if settings.open and sys.stdout.isatty():
        threading.Thread(target=webbrowser.open, args=(link,), daemon=True).start()


def _log_to_file(data_dir: Path) -> None:
    """One JSON object a line: no content, no titles, no headers, no query strings, no tokens."""
    file = data_dir / "fireside.log"
    with contextlib.suppress(FileExistsError):
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    handler = logging.handlers.RotatingFileHandler(file, maxBytes=2_000_000, backupCount=2, encoding="utf-8")
    handler.setFormatter(_JsonLines())
    console = logging.StreamHandler()
    console.setLevel(logging.ERROR)
    console.setFormatter(logging.Formatter("fireside: %(message)s"))
    root = logging.getLogger()
    root.handlers = [handler, console]
    root.setLevel(logging.WARNING)
    logging.getLogger("fireside").setLevel(logging.INFO)


class _JsonLines(logging.Formatter):
    EXTRAS = ("request", "method", "route", "user", "status", "ms", "address")

    def format(self, record: logging.LogRecord) -> str:
        import json

        line: dict[str, Any] = {
            "time": db.now(),
            "level": record.levelname.lower(),
            "from": record.name,
            "event": record.getMessage(),
        }
        line |= {name: vars(record)[name] for name in self.EXTRAS if name in vars(record)}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line)


if __name__ == "__main__":
    sys.exit(main())
