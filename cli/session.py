"""A session of a user for one terminal command, with the running service or, if none runs, with one in this process."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

import httpx

from .. import db
from ..config import Config
from ..safety.logs import open_logs
from .client import CommandFailed, Service, checked, find_service, require_database

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
        self.generation_id = event.data.get("generation_id", self.generation_id)
        self.conversation_id = event.data.get("conversation_id", self.conversation_id)
        self.message_id = event.data.get("message_id", self.message_id)


class Session:
    """Requests of a signed-in user. All methods raise CommandFailed with the service's message when it refuses."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def get(self, path: str, **query: Any) -> Any:
        return checked(self._http.get(path, params=query)).json()

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return checked(self._http.post(path, json=body)).json()

    def upload(self, name: str, size: int, chunks: Iterator[bytes]) -> Any:
        """Send a file and return its attachment."""
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        return checked(self._http.post("/attachments", params={"name": name}, content=chunks, headers=headers)).json()

    def patch(self, path: str, body: dict[str, Any]) -> Any:
        return checked(self._http.patch(path, json=body)).json()

    def delete(self, path: str, **query: Any) -> Any:
        return checked(self._http.delete(path, params=query)).json()

    def read(self, path: str, **query: Any) -> str:
        return checked(self._http.get(path, params=query)).text

    def answer(self, conversation_id: int, options: dict[str, Any]) -> Iterator[Event]:
        """Answer the last question of a conversation and yield the events."""
        return self._follow(
            None, self._http.build_request("POST", f"/conversations/{conversation_id}/stream", json=options)
        )

    def retry(self, conversation_id: int, options: dict[str, Any]) -> Iterator[Event]:
        """Answer the last question again and yield the events of the new version."""
        started = self.post("/chat/retry", {"conversation_id": conversation_id, **options})
        return self._follow(started["generation_id"])

    def cancel(self, generation_id: str) -> None:
        """Stop an answer. Return when its text is saved, also if it had ended before."""
        response = self._http.post(f"/chat/cancel/{generation_id}")
        if response.status_code != 404:
            checked(response)

    def _follow(self, generation_id: str | None, first: httpx.Request | None = None) -> Iterator[Event]:
        """Yield the events of an answer. When the connection is lost, connect again and go on after the last event."""
        position, deadline = 0, 0.0
        while True:
            request = first if generation_id is None else self._resume(generation_id, position)
            assert request is not None
            try:
                response = self._http.send(request, stream=True)
                with contextlib.closing(response):
                    if response.status_code not in (200, 503):
                        response.read()
                        checked(response)
                    deadline = 0.0
                    for event in _events(response):
                        generation_id = event.data["generation_id"]
                        if event.name == "reset":
                            position = 0
                        position = position if event.id is None else event.id
                        yield event
                        if event.name == "done":
                            return
            except httpx.TransportError:
                pass
            deadline = deadline or time.monotonic() + RECONNECT_SECONDS
            if time.monotonic() > deadline:
                raise CommandFailed("The connection to Fireside was lost. The answer is kept as far as it is written.")
            time.sleep(RECONNECT_PAUSE_SECONDS)

    def _resume(self, generation_id: str, position: int) -> httpx.Request:
        return self._http.build_request("GET", f"/generations/{generation_id}/stream", params={"after": position})


def _events(response: httpx.Response) -> Iterator[Event]:
    """Parse server-sent events. httpx's iter_lines would also split at U+2028."""
    rest = b""
    for chunk in response.iter_bytes():
        *blocks, rest = (rest + chunk).split(b"\n\n")
        for block in blocks:
            fields = dict(line.split(b": ", 1) for line in block.split(b"\n"))
            event_id = int(fields[b"id"]) if b"id" in fields else None
            yield Event(fields[b"event"].decode(), json.loads(fields[b"data"]), event_id)


@contextlib.contextmanager
def open_session(settings: Config, username: str | None) -> Iterator[Session]:
    """Sign in as a user (None: the first administrator), and sign out at the end.

    Raises CommandFailed when there is no such user, and DatabaseUnusable.
    """
    with contextlib.ExitStack() as stack:
        service = find_service(settings) or stack.enter_context(_service_in_this_process(settings))
        signed_in = checked(service.http.post("/control/session", json={"username": username}))
        headers = {"X-CSRF-Token": signed_in.json()["csrf_token"]}
        http = httpx.Client(
            base_url=service.url,
            headers=headers,
            cookies=dict(signed_in.cookies),
            verify=service.certificate,
            trust_env=False,
            timeout=httpx.Timeout(10, read=None),
        )
        with http:
            try:
                yield Session(http)
            finally:
                with contextlib.suppress(httpx.HTTPError):
                    http.post("/auth/logout", timeout=5)


@contextlib.contextmanager
def _service_in_this_process(settings: Config) -> Iterator[Service]:
    """Run the service in a thread, on a free port that only this computer reaches."""
    from ..server import Server, create_app

    require_database(settings)
    settings = replace(settings, host="127.0.0.1", port=0, lan=False, public_url="", tls_certificate=None, tls_key=None)
    with db.lock(settings.data_dir), socket.create_server(("127.0.0.1", 0)) as listener:
        open_logs(settings.data_dir)
        app = create_app(settings)
        server = Server(app, settings)
        started: Future[None] = Future()
        server.on_started = lambda: started.set_result(None)

        def run() -> None:
            try:
                asyncio.run(server.serve(sockets=[listener]))
            except BaseException as error:
                if not started.done():
                    started.set_exception(app.state.failure or error)

        thread = threading.Thread(target=run, name="service")
        thread.start()
        try:
            started.result()
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            yield Service(url, app.state.fireside.secret, "")
        finally:
            server.should_exit = True
            thread.join()
