"""Sends a file to the service, which reads it, and waits until it is read."""

import getpass
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .client import CommandFailed
from .printer import printable, show_status
from .session import Session

CHUNK_BYTES = 256 * 1024
POLL_SECONDS = 0.2


def upload(session: Session, path: Path) -> dict[str, Any]:
    """Return the attachment that a file became. Ask for the password of an encrypted document once.

    Raises OSError, and CommandFailed when the document cannot be used.
    """
    try:
        attachment = _wait(session, _send(session, path))
        if attachment["status"] == "encrypted" and sys.stdin.isatty():
            show_status("")
            password = getpass.getpass(f"Password of {printable(path.name)}: ")
            again = session.post(f"/attachments/{attachment['id']}/password", {"password": password})
            attachment = _wait(session, again)
    finally:
        show_status("")
    if attachment["status"] == "encrypted" and not sys.stdin.isatty():
        raise CommandFailed(printable(f"{path.name}: needs a password. Run the command in a terminal to enter it."))
    if attachment["status"] != "ready":
        raise CommandFailed(printable(f"{path.name}: {attachment['problem'] or 'It has no text.'}"))
    return attachment


def _send(session: Session, path: Path) -> dict[str, Any]:
    from ..queries.attachments import MAX_BYTES

    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        if size > MAX_BYTES:
            raise CommandFailed(printable(f"{path.name}: is larger than {MAX_BYTES // 1_000_000} MB."))

        def chunks() -> Iterator[bytes]:
            sent = 0
            while chunk := file.read(min(CHUNK_BYTES, size - sent)):  # it may be growing
                yield chunk
                sent += len(chunk)
                show_status(f"Sending {path.name}: {sent * 100 // size} %")

        attachment: dict[str, Any] = session.upload("/attachments", size, chunks(), name=path.name)
        return attachment


def _wait(session: Session, attachment: dict[str, Any]) -> dict[str, Any]:
    """Return the attachment once it is read."""
    while attachment["status"] == "reading":
        in_all = f" of {attachment['pages']}" if attachment["pages"] else ""
        show_status(
            f"Reading {attachment['name']}: {attachment['unit'] or 'page'} {attachment['pages_read']}{in_all} ..."
        )
        time.sleep(POLL_SECONDS)
        attachment = session.get(f"/attachments/{attachment['id']}")
    return attachment
