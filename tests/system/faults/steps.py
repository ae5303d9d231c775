"""What the tests of faults share: scripts of the model server, and steps of a client."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from ...live import PATIENCE, Event, Person, Running, good, session, text, until
from ...upstream import DONE, Pace, Step, Upstream, finish, pause, usage
from ...upstream import text as content
from ...witness import MODEL

WORDS = [f"{number} " for number in range(20)]


WRITING: tuple[Step, ...] = tuple(step for word in WORDS for step in (content(word), pause(Pace())))
SLOW_ANSWER: tuple[Step, ...] = (*WRITING, finish("stop"), usage(7, 20), DONE)
WHOLE_ANSWER = content("one ", "two") + finish("stop") + usage(7, 2) + DONE


@contextlib.contextmanager
def answering(upstream: Upstream, *script: Step) -> Iterator[None]:
    """Answer every request with this script."""
    usual, upstream.default = upstream.default, list(script)
    try:
        yield
    finally:
        upstream.default = usual


async def retry(person: Person, conversation_id: int, **fields: Any) -> list[Event]:
    """Ask for another version of the answer and return its events."""
    made = good(await person.post("/chat/retry", json={"conversation_id": conversation_id, **MODEL, **fields}))
    return await person.resume(made["generation_id"])


async def newest_answer(person: Person, conversation_id: int) -> list[Event]:
    """All events of the newest answer, once it has ended."""
    return await person.resume((await person.messages(conversation_id))[-1]["generation_id"])


async def first(events: AsyncIterator[Event], count: int) -> list[Event]:
    """The next `count` events, or all that there are."""
    seen: list[Event] = []
    while len(seen) < count:
        try:
            seen.append(await anext(events))
        except StopAsyncIteration:
            break
    return seen


async def first_words(events: AsyncIterator[Event], count: int) -> list[Event]:
    """The events up to the word of that number. How many words an event brings depends on the load of the machine."""
    seen: list[Event] = []
    while len(text(seen).split()) < count:
        seen.append(await anext(events))
    return seen


def error_codes(events: list[Event]) -> list[str]:
    return [event.data["code"] for event in events if event.event == "error"]


@contextlib.asynccontextmanager
async def raw_post(person: Person, path: str, body: bytes, length: int | None = None) -> AsyncIterator[Any]:
    """A request on a socket of its own. `length`: the Content-Length that it announces."""
    url = person.base_url
    reader, writer = await asyncio.open_connection(url.host, url.port, limit=2**20)
    headers = {"Host": f"{url.host}:{url.port}", "Content-Type": "application/json", **session(person)}
    headers["Content-Length"] = str(len(body) if length is None else length)
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    writer.write(f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def log_in_again(running: Running, person: Person, name: str) -> None:
    again = await running.login(name)
    person.cookies, person.headers["X-CSRF-Token"] = again.cookies, again.headers["X-CSRF-Token"]


@contextlib.asynccontextmanager
async def blocked_writer(running: Running) -> AsyncIterator[Callable[[int], bool]]:
    """Block the database's writer. Yields whether so many transactions wait for it."""
    database, begun, release = running.state.database, threading.Event(), threading.Event()

    def block(_: object) -> bool:
        begun.set()
        return release.wait(PATIENCE)

    def turns() -> int:
        """Transactions that wait for another one of their user."""
        return sum(len(lock._waiters or ()) for lock in database._turns.values())

    blocking = asyncio.create_task(database.write(block))
    await until(begun.is_set)
    try:
        yield lambda count: database._writer._tx.qsize() + turns() >= count
    finally:
        release.set()
        assert await blocking
