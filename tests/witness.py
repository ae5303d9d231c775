"""Checks that a fault loses nothing that was acknowledged and leaves nothing behind."""

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
    threads: int  # without those of the thread pool
    files: int  # open descriptors, or 0 where the system does not list them
    upstream: int  # connections


class ErrorRecords(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(f"{record.name}: {record.getMessage()} {record.exc_info or ''}")


class Witness:
    """Watches a running service and all answers to these people."""

    def __init__(self, running: Running, upstream: Upstream, *people: Person) -> None:
        self.running = running
        self.upstream = upstream
        self.people = people
        self.acknowledged: defaultdict[tuple[Person, int], dict[int, str]] = defaultdict(dict)  # by conversation
        self.statuses: set[int] = set()
        self.errors = ErrorRecords()

    async def __aenter__(self) -> "Witness":
        for person in self.people:
            person.event_hooks = {"response": [self._record]}
        for name in ("fireside", "asyncio"):
            logging.getLogger(name).addHandler(self.errors)
        await self._check_next_request(self.people[0])
        await asyncio.gather(*(self._query("SELECT 1 FROM users") for _ in range(8)))  # every reader opens its files
        database = self.running.config.database
        await asyncio.to_thread(db.copy, database, database.with_name("copy.db"))  # SQLite keeps a descriptor after it
        self._before = await self._footprint()
        return self

    async def __aexit__(self, *_: object) -> None:
        for name in ("fireside", "asyncio"):
            logging.getLogger(name).removeHandler(self.errors)

    async def _record(self, response: httpx.Response) -> None:
        self.statuses.add(response.status_code)

    async def question(self, person: Person, content: str = "Why is the sky blue?", **fields: Any) -> int:
        """Return the id of a new conversation with one message."""
        conversation_id = await person.conversation(**fields)
        await self.add_message(person, conversation_id, content)
        return conversation_id

    async def add_message(self, person: Person, conversation_id: int, content: str) -> None:
        message_id = await person.say(conversation_id, content)
        self.acknowledged[person, conversation_id][message_id] = content

    def forget(self, person: Person, conversation_id: int) -> None:
        """Expect a purged conversation no longer."""
        del self.acknowledged[person, conversation_id]

    async def nothing_lost(self, person: Person, conversation_id: int, *streams: list[Event]) -> None:
        """Check everything, this conversation in particular. `streams` are complete streams of one generation each."""
        await until(lambda: not self.running.state.hub.generations, "the generations to end")
        for events in streams:
            well_formed(events)
            await self._check_replay(person, events)
        await self._check_messages(person, conversation_id)
        assert not await self._query("SELECT id FROM messages WHERE status = 'generating'")
        assert not await self._query("SELECT generation_id FROM generation_parts")
        assert [row[0] for row in await self._query("PRAGMA quick_check")] == ["ok"]
        assert not await self._query("PRAGMA foreign_key_check")
        assert not {status for status in self.statuses if status >= 500} - DECLARED, self.statuses
        assert not self.errors.found, self.errors.found
        await self._check_footprint()
        await self._check_next_request(person)

    async def everything_is_there(self) -> None:
        """Check all acknowledged messages."""
        for person, conversation_id in list(self.acknowledged):
            await self._check_messages(person, conversation_id)

    async def _check_replay(self, person: Person, events: list[Event]) -> None:
        """Check that the stored answer and its replay equal what was streamed."""
        done = events[-1].data
        assert await person.resume(done["generation_id"]) == [event for event in events if event.id is not None]
        sql = "SELECT content, reasoning, status, token_usage IS NULL FROM messages WHERE id = ?"
        row = await self._query(sql, done["message_id"])
        if row:  # else its conversation was purged
            has_usage = any(event.event == "usage" for event in events)
            stored = (text(events), text(events, "reasoning"), STATUS[done["status"]], not has_usage)
            assert tuple(row[0]) == stored

    async def _check_messages(self, person: Person, conversation_id: int) -> None:
        acknowledged = self.acknowledged.get((person, conversation_id), {})
        rows = await self._query("SELECT id, content FROM messages WHERE conversation_id = ?", conversation_id)
        stored = {row["id"]: row["content"] for row in rows}
        assert {message_id: stored.get(message_id) for message_id in acknowledged} == acknowledged

    async def _check_footprint(self) -> None:
        for server in self.running.state.providers.enabled:
            await server.aclose()  # also closes the idle connections, which wait for a second
        now = await self._footprint()
        for _ in range(400):
            if all(after <= before for after, before in zip(now, self._before, strict=True)):
                return
            await asyncio.sleep(0.01)  # the other ends close their sockets a little later
            now = await self._footprint()
        raise AssertionError(f"left behind: {now}, before: {self._before}: {asyncio.all_tasks()}")

    async def _footprint(self) -> Footprint:
        await asyncio.sleep(0)
        threads = sum(not thread.name.startswith("asyncio_") for thread in threading.enumerate())
        files = 0
        with contextlib.suppress(FileNotFoundError):
            files = len(os.listdir("/proc/self/fd"))
        return Footprint(len(asyncio.all_tasks()), threads, files, self.upstream.open_connections)

    async def _check_next_request(self, person: Person) -> None:
        conversation_id = await person.conversation("Still there?")
        events = await person.answer(conversation_id, **MODEL)
        assert text(events) == "Hello from upstream.", events
        good(await person.delete(f"/conversations/{conversation_id}?purge=true"))

    async def _query(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        return await self.running.state.database.read(lambda conn: conn.execute(sql, values).fetchall())


def well_formed(events: list[Event]) -> None:
    """Check a complete stream: ids count up, one generation, `error` only if it ends in one, one `done` at the end."""
    assert [event.event for event in events].count("done") == 1 and events[-1].event == "done", events
    ids = [event.id for event in events if event.id is not None]
    assert ids == list(range(1, len(ids) + 1))
    assert all(event.event == "ping" for event in events if event.id is None)
    assert len({event.data["generation_id"] for event in events}) == 1
    assert events[0].event == "ping" and events[0].id == 1
    assert any(event.event == "error" for event in events) == (events[-1].data["status"] == "error")


def whole(database: Path) -> None:
    """Check a database file that is not open."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        db.check(connection)
        assert connection.execute("SELECT count(*) FROM messages WHERE status = 'generating'").fetchone()[0] == 0
