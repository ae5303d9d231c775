"""A session of a user for one terminal command: answers as they are generated."""

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPResponse
from typing import Any

from ..config import Config
from .client import Client, CommandFailed, lines, open_service, text

RECONNECT_SECONDS = 30.0
RECONNECT_PAUSE_SECONDS = 0.25


@dataclass
class Event:
    """An event of an answer, as docs/api.md lists them."""

    name: str
    data: dict[str, Any]
    id: int | None = None  # None: it is not part of the recorded answer


@dataclass
class Result:
    """An answer, or what has arrived of it."""

    content: str = ""
    reasoning: str = ""
    status: str = "generating"
    conversation_id: int | None = None
    message_id: int | None = None
    generation_id: str | None = None
    usage: dict[str, int] | None = None
    stats: dict[str, Any] = field(default_factory=dict)
    error: dict[str, str] | None = None
    citations: list[dict[str, Any]] = field(default_factory=list)

    def add(self, event: Event) -> None:
        match event.name:
            case "delta":
                self.content += event.data["delta"]
            case "reasoning":
                self.reasoning += event.data["delta"]
            case "reset":
                self.content = self.reasoning = ""
            case "usage":
                self.usage = event.data["usage"]
            case "error":
                self.error = {"code": event.data["code"], "message": event.data["message"]}
            case "done":
                self.status, self.stats = event.data["status"], event.data["stats"]
                self.citations = event.data.get("citations") or []
        for name in ("generation_id", "conversation_id", "message_id"):
            if name in event.data:
                setattr(self, name, event.data[name])


class Session(Client):
    """Requests of a signed-in user."""

    def answer(self, conversation_id: int, options: dict[str, Any]) -> Iterator[Event]:
        """Answer the last question of a conversation and yield the events."""
        return self._follow(None, f"/conversations/{conversation_id}/stream", options)

    def retry(self, conversation_id: int, options: dict[str, Any]) -> Iterator[Event]:
        """Answer the last question again and yield the events of the new version."""
        started = self.post("/chat/retry", {"conversation_id": conversation_id, **options})
        return self._follow(started["generation_id"])

    def cancel(self, generation_id: str) -> None:
        """Stop an answer. Return when its text is saved, also if it had ended before."""
        try:
            self.post(f"/chat/cancel/{generation_id}")
        except CommandFailed as failure:
            if failure.status != 404:
                raise

    def _follow(self, generation_id: str | None, path: str = "", body: dict[str, Any] | None = None) -> Iterator[Event]:
        """Yield the events of an answer. When the connection is lost, connect again and go on after the last event."""
        position, deadline = 0, 0.0
        while True:
            try:
                if generation_id is None:
                    response = self.open("POST", path, body)
                else:
                    response = self.open("GET", f"/generations/{generation_id}/stream", query={"after": position})
                for event in _events(response):
                    generation_id, deadline = event.data["generation_id"], 0.0
                    if event.name == "reset":
                        position = 0
                    elif event.id is not None:
                        position = event.id
                    yield event
                    if event.name == "done":
                        return
            except CommandFailed as failure:
                if failure.status != 503:
                    raise
            deadline = deadline or time.monotonic() + RECONNECT_SECONDS
            if time.monotonic() > deadline:
                raise CommandFailed("The connection to Fireside was lost. The answer is kept as far as it is written.")
            time.sleep(RECONNECT_PAUSE_SECONDS)


def _events(response: HTTPResponse) -> Iterator[Event]:
    """Parse server-sent events."""
    fields: dict[bytes, bytes] = {}
    for line in lines(response):
        name, _, value = line.rstrip(b"\n").partition(b": ")
        if name:
            fields[name] = value
        elif fields:
            event_id = int(fields[b"id"]) if b"id" in fields else None
            yield Event(fields[b"event"].decode(), json.loads(fields[b"data"]), event_id)
            fields = {}


@contextlib.contextmanager
def open_session(settings: Config, username: str | None) -> Iterator[Session]:
    """Sign in as a user (None: the first administrator), and sign out at the end.

    Raises CommandFailed when there is no such user, and DatabaseUnusable.
    """
    with open_service(settings) as service:
        signed_in = service.open("POST", "/control/session", {"username": username})
        csrf_token = json.loads(text(signed_in))["csrf_token"]
        cookies = "; ".join(cookie.partition(";")[0] for cookie in signed_in.headers.get_all("Set-Cookie", []))
        session = Session(service.url, service.certificate, {"Cookie": cookies, "X-CSRF-Token": csrf_token})
        try:
            yield session
        finally:
            with contextlib.suppress(CommandFailed):
                session.open("POST", "/auth/logout", timeout=5).close()
