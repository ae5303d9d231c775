"""What must hold whatever has happened: nothing that was acknowledged is lost, and nothing is left behind.

A Witness watches one running Fireside. `nothing_lost` is its one question, asked after every fault.
"""

import asyncio
import contextlib
import logging
import os
import sqlite3
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from fireside import db

from .live import Event, Person, Running, good, text, until
from .upstream import Upstream

MODEL = {"provider_id": "lmstudio", "model": "llama-3.2-3b-instruct"}
STATUS = {"ok": "complete", "canceled": "canceled", "interrupted": "interrupted", "error": "error"}
DECLARED = {502, 503}  # the only statuses from 500 on that an answer may have


class Footprint(NamedTuple):
    tasks: int
    threads: int  # but those of the pool, which stay
    files: int  # open descriptors, sockets among them; 0 where nobody tells
    upstream: int  # connections


class Records(logging.Handler):
    """What the program has logged as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(f"{record.name}: {record.getMessage()} {record.exc_info or ''}")


class Witness:
    def __init__(self, running: Running, upstream: Upstream, *people: Person) -> None:
        """All that the people are answered from now on is looked at."""
        self.running = running
        self.upstream = upstream
        self.people = people
        self.said: defaultdict[tuple[Person, int], dict[int, str]] = defaultdict(dict)  # what was acknowledged
        self.statuses: set[int] = set()
        self.errors = Records()

    async def __aenter__(self) -> "Witness":
        """Remembers what Fireside takes up when it has nothing to do."""
        for person in self.people:
            person.event_hooks = {"response": [self._look]}
        logging.getLogger("fireside").addHandler(self.errors)
        logging.getLogger("asyncio").addHandler(self.errors)
        await self._works(self.people[0])
        await asyncio.gather(*(self._ask("SELECT 1 FROM users") for _ in range(8)))  # every reader opens its files
        database = self.running.config.database  # of whose copying SQLite keeps a descriptor, for the next one
        await asyncio.to_thread(db.copy, database, database.with_name("copy.db"))
        self._before = await self._footprint()
        return self

    async def __aexit__(self, *_: object) -> None:
        logging.getLogger("fireside").removeHandler(self.errors)
        logging.getLogger("asyncio").removeHandler(self.errors)

    async def _look(self, response: httpx.Response) -> None:
        self.statuses.add(response.status_code)

    async def question(self, person: Person, content: str = "Why is the sky blue?", **fields: Any) -> int:
        """A new conversation with one message, which is acknowledged from here on. Returns the conversation's id."""
        conversation_id = await person.conversation(**fields)
        await self.say(person, conversation_id, content)
        return conversation_id

    async def say(self, person: Person, conversation_id: int, content: str) -> int:
        message_id = await person.say(conversation_id, content)
        self.said[person, conversation_id][message_id] = content
        return message_id

    async def nothing_lost(self, person: Person, conversation_id: int, *streams: list[Event]) -> None:
        """Checks the invariants, of this conversation in particular. `streams`: whole ones, each of one generation."""
        await until(lambda: not self.running.state.hub.generations, "the generations to end")
        for events in streams:
            well_formed(events)
            await self._same_again(person, events)
        await self._readable(person, conversation_id)
        await self._database_is_whole()
        assert not {status for status in self.statuses if status >= 500} - DECLARED, self.statuses
        assert not self.errors.found, self.errors.found
        await self._nothing_left()
        await self._works(person)

    async def everything_is_there(self) -> None:
        """All that was ever acknowledged in conversations that were not deleted."""
        for person, conversation_id in list(self.said):
            await self._readable(person, conversation_id)

    def forget(self, person: Person, conversation_id: int) -> None:
        """The person has purged it."""
        del self.said[person, conversation_id]

    # the invariants, one by one

    async def _same_again(self, person: Person, events: list[Event]) -> None:
        """What was streamed is what is stored, and is streamed again the same."""
        done = events[-1].data
        async with person.resuming(done["generation_id"]) as again:
            assert [event async for event in again] == [event for event in events if event.id is not None]
        sql = "SELECT content, reasoning, status, token_usage IS NULL FROM messages WHERE id = ?"
        row = await self._ask(sql, done["message_id"])
        if row:  # else its conversation was purged
            told = any(event.event == "usage" for event in events)
            assert tuple(row[0]) == (text(events), text(events, "reasoning"), STATUS[done["status"]], not told)

    async def _readable(self, person: Person, conversation_id: int) -> None:
        acknowledged = self.said.get((person, conversation_id), {})
        rows = await self._ask("SELECT id, content FROM messages WHERE conversation_id = ?", conversation_id)
        kept = {row["id"]: row["content"] for row in rows}
        assert {message_id: kept.get(message_id) for message_id in acknowledged} == acknowledged

    async def _database_is_whole(self) -> None:
        assert not await self._ask("SELECT id FROM messages WHERE status = 'generating'")
        assert not await self._ask("SELECT generation_id FROM generation_parts")
        assert [row[0] for row in await self._ask("PRAGMA quick_check")] == ["ok"]
        assert not await self._ask("PRAGMA foreign_key_check")

    async def _nothing_left(self) -> None:
        before = self._before
        now = await self._footprint()
        for _ in range(400):
            if all(after <= earlier for after, earlier in zip(now, before, strict=True)):
                return
            await asyncio.sleep(0.01)  # sockets are closed by their other end, in its own time
            now = await self._footprint()
        raise AssertionError(f"left behind: {now}, before: {before}: {asyncio.all_tasks()}")

    async def _footprint(self) -> Footprint:
        await asyncio.sleep(0)
        return Footprint(
            len(asyncio.all_tasks()),
            sum(not thread.name.startswith("asyncio_") for thread in threading.enumerate()),
            _descriptors(),
            self.upstream.open_connections,
        )

    async def _works(self, person: Person) -> None:
        """The next normal request is answered."""
        other = await person.conversation("Still there?")
        events = await person.answer(other, **MODEL)
        assert text(events) == "Hello from upstream.", events
        good(await person.delete(f"/conversations/{other}?purge=true"))

    async def _ask(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        return await self.running.state.database.read(lambda conn: conn.execute(sql, values).fetchall())


def _descriptors() -> int:
    with contextlib.suppress(FileNotFoundError):
        return len(os.listdir("/proc/self/fd"))
    return 0


def well_formed(events: list[Event]) -> None:
    """Of a whole stream: ids that count up, a generation that is always named, `error` where it ends in one, one `done`."""
    assert [event.event for event in events].count("done") == 1 and events[-1].event == "done", events
    ids = [event.id for event in events if event.id is not None]
    assert ids == list(range(1, len(ids) + 1))
    assert all(event.event == "ping" for event in events if event.id is None)
    assert len({event.data["generation_id"] for event in events}) == 1
    assert events[0].event == "ping" and events[0].id == 1
    assert any(event.event == "error" for event in events) == (events[-1].data["status"] == "error")


def whole(database: Path) -> None:
    """Of a file that nobody has open."""
    connection = sqlite3.connect(database)
    try:
        db.check(connection)
        assert connection.execute("SELECT count(*) FROM messages WHERE status = 'generating'").fetchone()[0] == 0
    finally:
        connection.close()
