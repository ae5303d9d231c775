"""The log files in the data directory, one JSON object per line.

`fireside.log` is about operation and `audit.log` about security. Each has its own size limit, so that many requests cannot rotate a
sign-in out of the log. No line has content, titles, headers, query strings or tokens.
"""

import contextlib
import json
import logging
import logging.handlers
import queue
import time
from pathlib import Path
from typing import Any, Protocol

from .. import db

AUDIT_FILE = "audit.log"
CONSOLE_LINES = 100  # that wait until the terminal takes them
CONSOLE_SECONDS = 1.0  # that the end of the service waits for them
TERMINAL = "terminal"  # the address of the owner at the command line
# fmt: off
FIELDS = (
    "request", "method", "route", "user", "account", "about", "status", "ms", "code", "address", "by", "role", "invite", "token", "count",
)
# fmt: on

_audit = logging.getLogger("fireside.audit")


class _User(Protocol):
    id: int
    username: str


def audit(event: str, user: _User, address: str, **details: object) -> None:
    """Write a line to audit.log. `address` is the client's, or TERMINAL. The names of `details` must be in FIELDS."""
    _audit.info(event, extra={"user": user.id, "account": user.username, "address": address, **details})


def open_logs(data_dir: Path) -> None:
    """Write to fireside.log and audit.log, and Fireside's own errors to the terminal too."""
    terminal = logging.StreamHandler()
    terminal.setFormatter(logging.Formatter("fireside: %(message)s"))
    console = _Console(queue.Queue(CONSOLE_LINES))
    console.setLevel(logging.ERROR)
    console.addFilter(logging.Filter("fireside"))
    logging.handlers.QueueListener(console.queue, terminal).start()
    logging.raiseExceptions = False  # otherwise each line on a full disk prints a traceback to the terminal
    root = logging.getLogger()
    root.handlers = [_rotating(data_dir / "fireside.log", 2_000_000, 2), console]
    root.setLevel(logging.WARNING)
    logging.getLogger("fireside").setLevel(logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.ERROR)  # its warnings are about requests that are not HTTP
    incomplete = "ASGI callable returned without completing response."  # handlers.Download has logged the reason
    logging.getLogger("uvicorn.error").addFilter(lambda record: record.msg != incomplete)
    open_audit_log(data_dir)


def open_audit_log(data_dir: Path) -> None:
    _audit.handlers = [_rotating(data_dir / AUDIT_FILE, 5_000_000, 3)]
    _audit.setLevel(logging.INFO)
    _audit.propagate = False


def _rotating(file: Path, max_bytes: int, older: int) -> logging.Handler:
    handler = _PrivateFile(file, maxBytes=max_bytes, backupCount=older, encoding="utf-8")
    handler.setFormatter(_JsonLines())
    return handler


class _Console(logging.handlers.QueueHandler):
    """Hand lines to a thread, and drop them while too many wait.

    Writing blocks while a terminal is stopped (by Ctrl+S, or by a selection on Windows) or while the other end of a pipe reads nothing.
    """

    queue: "queue.Queue[logging.LogRecord]"

    def flush(self) -> None:
        """Wait for the thread, at most CONSOLE_SECONDS."""
        deadline = time.monotonic() + CONSOLE_SECONDS
        while self.queue.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.01)


class _PrivateFile(logging.handlers.RotatingFileHandler):
    """A rotating log file that only its owner can read."""

    def _open(self) -> Any:
        with contextlib.suppress(FileExistsError):
            db.create_private(Path(self.baseFilename)).close()
        return super()._open()


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": db.now(),
            "level": record.levelname.lower(),
            "from": record.name,
            "event": record.getMessage(),
        }
        line |= {name: vars(record)[name] for name in FIELDS if name in vars(record)}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line)
