"""The `fireside` command: its table of commands, and the one that runs the service."""

import argparse
import asyncio
import contextlib
import errno
import logging
import os
import re
import signal
import socket
import sqlite3
import sys
import threading
from argparse import SUPPRESS
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import resources
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import httpx

from . import __version__, config, db
from .config import Config
from .errors import ConfigError, FiresideError
from .safety.throttle import is_loopback

if TYPE_CHECKING:
    from .server import Server
    from .web.endpoint import AppState

Argument: TypeAlias = tuple[str, dict[str, Any]]


def _argument(name: str, text: str, **settings: Any) -> Argument:
    return name, {"help": text, **settings}


# Options that may stand before or after the command have no default, so that one place does not overwrite the other.
DATA_DIR = _argument(
    "--data-dir",
    f"where Fireside keeps its data (default: {config.default_data_dir()})",
    metavar="DIR",
    default=SUPPRESS,
)
YES_OR_NO = argparse.BooleanOptionalAction
SERVE = (
    _argument("--host", "address to listen on (default: 127.0.0.1)", metavar="ADDRESS", default=SUPPRESS),
    _argument("--port", "port to listen on; 0 for any free port (default: 8000)", default=SUPPRESS),
    _argument("--lan", "let other devices connect, and print an invite link", action="store_true", default=SUPPRESS),
    _argument(
        "--open",
        "open the page in a browser (default: yes, when started from a terminal)",
        action=YES_OR_NO,
        default=SUPPRESS,
    ),
)
USER = _argument("--user", "name of the user (default: the first administrator)", metavar="NAME")
FILE = _argument("file", "file to write", metavar="FILE")
BACKUP = _argument("file", "backup to restore", metavar="FILE")
SALVAGE = (
    _argument("new", "file to write", metavar="NEW"),
    _argument("damaged", "damaged file to read (default: the database)", metavar="DAMAGED", nargs="?"),
)
PATHS = _argument("paths", "file or folder (default: the conversations of LM Studio)", metavar="PATH", nargs="*")
DRY_RUN = _argument("--dry-run", "only print what would be added and lost", action="store_true")
MODEL = _argument("--model", "model to ask, such as qwen3-8b or lmstudio/qwen3-8b", metavar="NAME")
CONVERSATION = _argument("--conversation", "continue this conversation", metavar="ID|last")
SYSTEM = _argument("--system", "instructions for the model", metavar="TEXT")
ASK = (
    _argument("question", "the question; text on standard input is appended", metavar="QUESTION", nargs="*"),
    _argument(
        "--file", "send this document or image too; may be repeated", metavar="FILE", action="append", default=[]
    ),
    _argument("--image", "send this image too; may be repeated", metavar="FILE", action="append", default=[]),
    MODEL,
    CONVERSATION,
    SYSTEM,
    _argument("--json", "print the answer and what is known about it as JSON, at its end", action="store_true"),
    _argument("--no-save", "delete the conversation afterwards", action="store_true"),
    USER,
)
CHAT = (MODEL, CONVERSATION, SYSTEM, USER)
LIMIT = _argument("--limit", "lines to print at most (default: 20)", metavar="NUMBER", default="20")
SEARCH = (_argument("words", "words to find", metavar="WORD", nargs="+"), LIMIT, USER)
SHOW = (_argument("conversation", "id of the conversation, or last", metavar="ID"), USER)
TOKEN = (
    _argument("action", "create, list or revoke", choices=("create", "list", "revoke")),
    _argument("name", "name of a new token; name or number of the one to revoke", metavar="NAME", nargs="?"),
    _argument("--no-record", "do not keep the program's conversations", action="store_true"),
    _argument("--days", "days after which the token expires (default: never)", type=int, metavar="N"),
    USER,
)
TOPICS = ("api", "configuration", "security", "self-hosting")  # of docs/
TOPIC = _argument("topic", f"a command, or one of: {', '.join(TOPICS)}", metavar="TOPIC", nargs="?")
SHELLS = ("bash", "zsh", "fish", "powershell")
SHELL = _argument("shell", f"one of: {', '.join(SHELLS)}", metavar="SHELL", choices=SHELLS)
SERVICE = (
    _argument("action", "install or remove the service that starts at login", choices=("install", "remove")),
    _argument("--dry-run", "only print what would be done", action="store_true"),
)
COMMANDS: tuple[tuple[str, str, tuple[Argument, ...]], ...] = (
    ("serve", "start Fireside, as without a command", SERVE),
    ("ask", "ask one question and print the answer; text can be piped in", ASK),
    ("chat", "ask questions in turn in the terminal", CHAT),
    ("list", "list the most recently used conversations", (LIMIT, USER)),
    ("search", "search all conversations", SEARCH),
    ("show", "print a conversation as Markdown", SHOW),
    ("backup", "write a backup of the database, also while Fireside is running", (FILE,)),
    ("restore", "replace the database with a backup, while Fireside is stopped", (BACKUP,)),
    ("salvage", "copy what is readable in a damaged database to a new file, while Fireside is stopped", SALVAGE),
    ("doctor", "check the installation and say what to do about problems", ()),
    ("import", "import conversations from LM Studio or from exports of other programs", (PATHS, DRY_RUN, USER)),
    ("export", "write a user's conversations, prompts and presets to a zip file", (FILE, USER)),
    ("login-link", "print a link that signs in without a password, once, within ten minutes", (USER,)),
    ("reset-password", "set a new password without the old one", (USER,)),
    ("token", "manage the tokens with which other programs use this Fireside like an OpenAI server", TOKEN),
    ("service", "install or remove a service that starts Fireside when you log in", SERVICE),
    ("completion", "print a script that completes commands and options in a shell", (SHELL,)),
    ("help", "explain a command, or print a part of the documentation", (TOPIC,)),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns 0 for success, 1 for a failure, 2 for a wrong setting or argument; prints one line about an error."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # under pythonw
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        with contextlib.suppress(AttributeError, ValueError):
            getattr(sys, name).reconfigure(encoding="utf-8", errors="replace")  # Windows consoles have other encodings
    os.umask(0o077)  # create files for the owner only
    try:
        options = _parse(sys.argv[1:] if arguments is None else arguments)
        command = options.pop("command", "serve")
        if command in HERE:
            return HERE[command](options)
        from .cli.commands import FUNCTIONS

        return FUNCTIONS[command](options)
    except KeyboardInterrupt:
        return 130
    except ConfigError as error:
        code, message = 2, str(error)
    except (FiresideError, db.DatabaseUnusable) as error:
        code, message = 1, str(error)
    except OSError as error:
        reason = error.strerror or str(error)
        code, message = 1, f"{error.filename}: {reason}" if error.filename else reason
    except sqlite3.Error:
        code, message = 1, "The database cannot be used. Run: fireside doctor"
    except httpx.HTTPError:
        code, message = 1, "The running Fireside does not answer. Run: fireside doctor"
    print(f"fireside: {message}", file=sys.stderr)
    return code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        message = message.replace("unrecognized arguments:", "unknown argument")
        message = message.replace("the following arguments are required:", "missing argument")
        command = re.match(r"argument COMMAND: invalid choice: (\S+)", message)
        if command:  # argparse takes the value of an unknown option for the command
            message = f"unknown command {command[1]}, or an unknown option before it"
        raise ConfigError(f"{message}. See {self.prog} --help.")


def _parse(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the options given. Exits after --help and --version. Raises ConfigError."""
    return vars(_parser().parse_args(arguments))


def _parser(completions: Mapping[str, Any] | None = None) -> _Parser:
    """Return the parser of the command line. `completions`: what shtab is to complete, by metavar."""
    description = (
        "Chat in the browser with the language models on your own computer."
        " Without a command, fireside starts the service and opens the page."
    )
    parser = _Parser(prog="fireside", usage="fireside [OPTIONS] [COMMAND]", description=description)
    parser.add_argument(
        "--version", action="version", help="print the version and exit", version=f"fireside {__version__}"
    )
    for name, settings in (DATA_DIR, *SERVE):
        parser.add_argument(name, **settings)
    commands = parser.add_subparsers(prog="fireside", title="commands", metavar="COMMAND")
    for command, text, command_arguments in COMMANDS:
        subparser = commands.add_parser(command, help=text, description=f"{text[0].upper()}{text[1:]}.")
        subparser.set_defaults(command=command)
        for name, settings in (*command_arguments, DATA_DIR):
            argument: Any = subparser.add_argument(name, **settings)
            if completions and settings.get("metavar") in completions:
                argument.complete = completions[settings["metavar"]]
    return parser


def print_completion(options: dict[str, Any]) -> int:
    """Print the completion script of a shell."""
    import shtab

    files = dict.fromkeys(("FILE", "PATH", "NEW", "DAMAGED"), shtab.FILE) | {"DIR": shtab.DIRECTORY}
    print(shtab.complete(_parser(files), options["shell"]))
    return 0


def print_help(options: dict[str, Any]) -> int:
    """Print the help of a command, or a file of docs/, which a terminal shows page by page."""
    import pydoc  # slow to import

    topic = options["topic"]
    if topic is None or topic in (command for command, _, _ in COMMANDS):
        _parse([topic, "--help"] if topic else ["--help"])  # exits
    if topic not in TOPICS:
        raise ConfigError(f"there is no help about {topic}. Choose a command or one of: {', '.join(TOPICS)}.")
    pydoc.pager(resources.files("fireside").joinpath("docs", f"{topic}.md").read_text("utf-8"))
    return 0


def serve(options: dict[str, Any]) -> int:
    """Run the service until a signal stops it. The first line printed is its address."""
    settings = config.load(options)
    if settings.lan and is_loopback(settings.host):
        settings = replace(settings, host="0.0.0.0")
    from .cli import browser, client

    try:
        with db.lock(settings.data_dir):
            (settings.data_dir / client.SERVICE_FILE).unlink(missing_ok=True)  # left by a service that was killed
            code = _run_service(settings, client.ports_to_try(settings, options))
    except OSError as error:  # such as a full disk, or a folder where a file should be
        print(f"fireside: {error.filename or settings.data_dir}: {error.strerror or error}", file=sys.stderr)
        return 1
    except db.DatabaseUnusable:
        running = client.find_service(settings)
        if running is None:
            raise
        print(f"Fireside is already running at {running.url}")
        browser.open_page(settings, running.url, client.print_setup_link(settings, running.url))
        return 0
    # Python would wait for threads that still work, and checking a large database or reading a network drive may take minutes.
    # Nothing is lost: the database is closed.
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _run_service(settings: Config, ports: list[int]) -> int:
    from .cli.client import SERVICE_FILE, local_url, remember_port, write_service_file
    from .cli.doctor import readable_by_others
    from .safety.logs import open_logs
    from .server import Server, create_app

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
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    failure: OSError | None = None
    for port in ports:
        # With the protocol named, asyncio sets TCP_NODELAY. Nagle's algorithm would delay small writes by 40 ms.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
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
    from .cli.browser import open_page
    from .cli.client import print_setup_link

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
    from .cli.client import ANY_ADDRESS

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


# The commands of this module; the others are in cli/commands.py.
HERE = {"serve": serve, "completion": print_completion, "help": print_help}

if __name__ == "__main__":
    sys.exit(main())
