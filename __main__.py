"""The `fireside` command: its table of commands and their arguments."""

import argparse
import contextlib
import importlib
import os
import re
import sqlite3
import sys
from argparse import SUPPRESS
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any, NoReturn, TypeAlias

from . import __version__, config, db
from .errors import ConfigError, FiresideError

Argument: TypeAlias = tuple[str, dict[str, Any]]
Command: TypeAlias = Callable[[dict[str, Any]], int]


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
DRY_RUN = _argument("--dry-run", "import nothing; print what would be added and lost", action="store_true")
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
    _argument("--json", "print one JSON object with the answer and its statistics at the end", action="store_true"),
    _argument("--no-save", "delete the conversation afterwards", action="store_true"),
    USER,
)
CHAT = (MODEL, CONVERSATION, SYSTEM, USER)
LIMIT = _argument("--limit", "maximum number of results (default: 20)", metavar="NUMBER", default="20")
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


def _in(module: str, function: str) -> Command:
    """Return a command of cli/, which is imported when it runs."""

    def run(options: dict[str, Any]) -> int:
        code: int = getattr(importlib.import_module(f"fireside.cli.{module}"), function)(options)
        return code

    return run


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
    if topic is None or topic in (command for command, *_ in COMMANDS):
        _parse([topic, "--help"] if topic else ["--help"])  # exits
    if topic not in TOPICS:
        raise ConfigError(f"there is no help about {topic}. Choose a command or one of: {', '.join(TOPICS)}.")
    pydoc.pager(resources.files("fireside").joinpath("docs", f"{topic}.md").read_text("utf-8"))
    return 0


COMMANDS: tuple[tuple[str, str, tuple[Argument, ...], Command], ...] = (
    ("serve", "start Fireside; the same as no command", SERVE, _in("serve", "serve")),
    ("ask", "ask one question and print the answer; text can be piped in", ASK, _in("chat", "ask")),
    ("chat", "chat in the terminal", CHAT, _in("chat", "chat")),
    ("list", "list the most recently used conversations", (LIMIT, USER), _in("chat", "list_conversations")),
    ("search", "search all conversations", SEARCH, _in("chat", "search")),
    ("show", "print a conversation as Markdown", SHOW, _in("chat", "show")),
    ("backup", "write a backup of the database, also while Fireside is running", (FILE,), _in("commands", "backup")),
    ("restore", "replace the database with a backup, while Fireside is stopped", (BACKUP,), _in("commands", "restore")),
    (
        "salvage",
        "copy what is readable in a damaged database to a new file, while Fireside is stopped",
        SALVAGE,
        _in("commands", "salvage_database"),
    ),
    ("doctor", "check the installation and say what to do about problems", (), _in("doctor", "doctor")),
    (
        "import",
        "import conversations from LM Studio or from exports of other programs",
        (PATHS, DRY_RUN, USER),
        _in("commands", "import_conversations"),
    ),
    (
        "export",
        "write a user's conversations, prompts and presets to a zip file",
        (FILE, USER),
        _in("commands", "export"),
    ),
    (
        "login-link",
        "print a link that signs in without a password, once, within ten minutes",
        (USER,),
        _in("commands", "login_link"),
    ),
    ("reset-password", "set a new password without the old one", (USER,), _in("commands", "reset_password")),
    (
        "token",
        "create, list or revoke tokens for programs that use the OpenAI-compatible API",
        TOKEN,
        _in("tokens", "manage_tokens"),
    ),
    (
        "service",
        "install or remove a service that starts Fireside when you log in",
        SERVICE,
        _in("commands", "manage_service"),
    ),
    ("completion", "print a completion script for a shell", (SHELL,), print_completion),
    ("help", "explain a command, or print a part of the documentation", (TOPIC,), print_help),
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
        command: Command = options.pop("run")
        return command(options)
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
    parser.set_defaults(run=COMMANDS[0][3])
    commands = parser.add_subparsers(prog="fireside", title="commands", metavar="COMMAND")
    for command, text, command_arguments, run in COMMANDS:
        subparser = commands.add_parser(command, help=text, description=f"{text[0].upper()}{text[1:]}.")
        subparser.set_defaults(run=run)
        for name, settings in (*command_arguments, DATA_DIR):
            argument: Any = subparser.add_argument(name, **settings)
            if completions and settings.get("metavar") in completions:
                argument.complete = completions[settings["metavar"]]
    return parser


if __name__ == "__main__":
    sys.exit(main())
