"""The real application on a real uvicorn with a real database file, used over HTTP."""

import asyncio
import contextlib
import functools
import inspect
import json
import socket
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from fireside import config, db
from fireside.server import Server, create_app
from fireside.web.connection import Listener
from fireside.web.endpoint import AppState

sys.modules.setdefault("sniffio", None)  # type: ignore[arg-type]  # else httpcore searches for it at every connection

BOOTSTRAP_TOKEN = "the bootstrap token of the tests"
PASSWORD = "a long enough phrase"
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # the default one reads all certificate authorities for each client
PATIENCE = 30.0  # seconds after which a test gives up, on a busy machine


class Event(NamedTuple):
    id: int | None
    event: str
    data: dict[str, Any]


class Person(httpx.AsyncClient):
    """A signed-in client, with its cookie and its CSRF token."""

    name = ""

    async def conversation(self, question: str | None = None, **fields: Any) -> int:
        """Create a conversation, with a first message if `question` is given. Return its id."""
        conversation_id: int = good(await self.post("/conversations", json=fields))["id"]
        if question is not None:
            await self.say(conversation_id, question)
        return conversation_id

    async def say(self, conversation_id: int, content: str, **fields: Any) -> int:
        answer = await self.post(f"/conversations/{conversation_id}/messages", json={"content": content, **fields})
        message_id: int = good(answer)["message_id"]
        return message_id

    async def messages(self, conversation_id: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = good(await self.get(f"/conversations/{conversation_id}/messages"))
        return found

    async def contents(self, conversation_id: int) -> list[str]:
        return [message["content"] for message in await self.messages(conversation_id)]

    async def answer(self, conversation_id: int, **fields: Any) -> list[Event]:
        """Return all events of POST .../stream."""
        async with self.streaming(conversation_id, **fields) as events:
            return [event async for event in events]

    @contextlib.asynccontextmanager
    async def streaming(self, conversation_id: int, **fields: Any) -> AsyncIterator[AsyncIterator[Event]]:
        async with self.stream("POST", f"/conversations/{conversation_id}/stream", json=fields) as response:
            yield parse(response)

    @contextlib.asynccontextmanager
    async def resuming(self, generation_id: str, after: int = 0) -> AsyncIterator[AsyncIterator[Event]]:
        async with self.stream("GET", f"/generations/{generation_id}/stream", params={"after": after}) as response:
            yield parse(response)

    async def resume(self, generation_id: str, after: int = 0) -> list[Event]:
        """Return the events after one, to the end of the answer."""
        async with self.resuming(generation_id, after) as events:
            return [event async for event in events]


def session(person: httpx.Client | httpx.AsyncClient) -> dict[str, str]:
    """Return the headers of a signed-in client, for requests that another one sends."""
    cookies = "; ".join(f"{cookie.name}={cookie.value}" for cookie in person.cookies.jar)
    return {"Cookie": cookies, "X-CSRF-Token": person.headers["X-CSRF-Token"]}


def good(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()


def code(response: httpx.Response) -> tuple[int, str]:
    """Return status and error code, after checking the shape of the error, which is OpenAI's for /v1."""
    body = response.json()
    if "error" in body:
        assert list(body) == ["error"] and sorted(body["error"]) == ["code", "message", "param", "type"], body
        return response.status_code, body["error"]["code"].upper()
    assert sorted(body) == ["code", "message", "request_id"], body
    assert body["request_id"] == response.headers["x-request-id"]
    return response.status_code, body["code"]


async def parse(response: httpx.Response) -> AsyncIterator[Event]:
    """Yield the events of a stream. Allow only id, event and data lines, each once, that end in LF."""
    if response.status_code != 200:
        await response.aread()
        raise AssertionError(response.text)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    buffer = b""
    async for chunk in response.aiter_raw():
        buffer += chunk
        *whole, buffer = buffer.split(b"\n\n")
        for block in whole:
            yield parse_event(block)
    assert buffer == b"", "the stream ended in the middle of an event"


def parse_event(block: bytes) -> Event:
    fields: dict[str, str] = {}
    for line in block.decode().split("\n"):
        name, colon, value = line.partition(": ")
        assert colon and name in ("id", "event", "data") and name not in fields, block
        fields[name] = value
    return Event(int(fields["id"]) if "id" in fields else None, fields["event"], json.loads(fields["data"]))


def text(events: list[Event], kind: str = "delta") -> str:
    return "".join(event.data["delta"] for event in events if event.event == kind)


@functools.cache
def _new_database() -> bytes:
    """Return the file that the first start in an empty data directory creates, which takes a third of such a start."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "fireside.db")
        db.prepare(path)
        return path.read_bytes()


class Running:
    """A Fireside in this event loop. `settings` are environment variables in lower case without FIRESIDE_."""

    keep_alive = True  # its clients keep connections open; tests that count them as leaks set it to False

    def __init__(self, data_dir: Path, **settings: str) -> None:
        environ = {"FIRESIDE_BOOTSTRAP_TOKEN": BOOTSTRAP_TOKEN, "FIRESIDE_ENGINE_THREADS": "1"}
        environ |= {f"FIRESIDE_{name.upper()}": value for name, value in settings.items()}
        self.config = config.load({"data_dir": str(data_dir)}, environ)
        self.url = ""
        self._people: list[Person] = []

    async def start(self) -> "Running":
        self._lock = contextlib.ExitStack()
        self._lock.enter_context(db.lock(self.config.data_dir))
        if [file.name for file in self.config.data_dir.iterdir()] == ["lock"]:
            with db.create_private(self.config.database) as file:
                file.write(_new_database())
        listener = Listener(socket.AF_INET, socket.SOCK_STREAM)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
        self.url = f"{self.config.scheme}://127.0.0.1:{listener.getsockname()[1]}"
        self.server = Server(create_app(self.config), self.config)
        started = asyncio.get_running_loop().create_future()
        self.server.on_started = lambda: started.set_result(None)
        self._task = asyncio.create_task(self.server.serve(sockets=[listener]))
        await asyncio.wait({self._task, started}, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        assert started.done(), "the server did not start"
        return self

    async def stop(self) -> None:
        for person in self._people:
            await person.aclose()
        self.server.should_exit = True
        async with asyncio.timeout(PATIENCE):
            await self._task
        self._lock.close()

    async def __aenter__(self) -> "Running":
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def state(self) -> AppState:
        state: AppState = self.server.app.state.fireside
        return state

    def anybody(self) -> Person:
        """Return a client that is not signed in. It is closed when the server stops."""
        limits = httpx.Limits(max_keepalive_connections=None if self.keep_alive else 0)
        person = Person(base_url=self.url, trust_env=False, verify=NO_TLS, timeout=PATIENCE, limits=limits)
        self._people.append(person)
        return person

    async def raw(self, request: bytes) -> tuple[int, httpx.Headers, bytes]:
        """Send exactly these bytes. Return the status, headers and body of the response."""
        host, _, port = self.url.partition("//")[2].rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(request)
            async with asyncio.timeout(PATIENCE):
                response = await reader.read()
        finally:
            writer.close()
            await writer.wait_closed()
        head, _, body = response.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        pairs = [line.partition(": ")[::2] for line in lines]
        return int(status.split()[1]), httpx.Headers(pairs), body

    async def first(self, name: str = "ann") -> Person:
        """Create the first user, an administrator."""
        person = self.anybody()
        body = {"username": name, "password": PASSWORD, "token": BOOTSTRAP_TOKEN}
        return await self._signed_in(person, name, "/admin/bootstrap", body)

    async def join(self, admin: Person, name: str, role: str = "user") -> Person:
        """Create another user with an invite of `admin`."""
        code = good(await admin.post("/admin/invites", json={"role": role}))["invite_code"]
        body = {"username": name, "password": PASSWORD, "invite_code": code}
        return await self._signed_in(self.anybody(), name, "/auth/register", body)

    async def login(self, name: str, password: str = PASSWORD) -> Person:
        return await self._signed_in(self.anybody(), name, "/auth/login", {"username": name, "password": password})

    async def _signed_in(self, person: Person, name: str, path: str, body: dict[str, str]) -> Person:
        person.headers["X-CSRF-Token"] = good(await person.post(path, json=body))["csrf_token"]
        person.name = name
        return person


async def until(condition: Any, what: str = "a condition") -> None:
    """Wait until a condition holds, which may be a coroutine function."""
    try:
        async with asyncio.timeout(PATIENCE):
            while not (await found if inspect.isawaitable(found := condition()) else found):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"waited {PATIENCE:g} s for {what}") from None
