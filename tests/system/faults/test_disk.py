"""Nothing that was acknowledged is lost when the disk is full or the database is slow."""

import asyncio
import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from fireside.chat import hub as chat

from ...live import Event, Person, Running, code, good, text, until
from ...upstream import DONE, Gate, Upstream, finish, hang, pause, usage
from ...upstream import text as content
from ...witness import MODEL, well_formed, whole
from .steps import blocked_writer, error_codes, first


def fill(conn: sqlite3.Connection) -> None:
    """Allow the database no further page: SQLite reports its own limit as a full disk."""
    conn.execute(f"PRAGMA max_page_count = {conn.execute('PRAGMA page_count').fetchone()[0]}")


def free(conn: sqlite3.Connection) -> None:
    conn.execute("PRAGMA max_page_count = 1073741823")


LONG = "".join(f"{number:08} " for number in range(20_000))  # needs new pages


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(chat, "SAVE_SECONDS", 0.05)


async def test_disk_full_for_a_while_costs_nothing(
    running: Running, ann: Person, upstream: Upstream, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    database = running.state.database
    conversation_id = await ann.conversation("Why?")
    gate = Gate()
    upstream.enqueue(content(LONG), pause(gate), content("the end"), finish("stop"), DONE)
    await database.write(fill)
    reader = asyncio.create_task(ann.answer(conversation_id, **MODEL))
    await until(lambda: "SQLITE_FULL" in caplog.text)
    await database.write(free)
    await until(lambda: all(one.log.saved == len(one.log) for one in running.state.hub.generations.values()))
    gate.open()
    events = await reader
    assert (text(events), events[-1].data["status"]) == (f"{LONG}the end", "ok")
    assert (await ann.messages(conversation_id))[-1]["content"] == text(events)


async def test_purge_that_the_full_disk_interrupts_succeeds_and_is_finished_by_housekeeping(
    running: Running, ann: Person, upstream: Upstream
) -> None:
    database = running.state.database
    conversation_id = await ann.conversation(LONG)  # to remove it from the index of the search takes new pages
    await database.write(fill)
    good(await ann.delete(f"/conversations/{conversation_id}?purge=true"))
    assert good(await ann.get("/conversations")) == good(await ann.get("/conversations?deleted=true")) == []
    count = "SELECT count(*) FROM messages"
    assert await database.read(lambda conn: conn.execute(count).fetchone()[0]) == 1
    await database.write(free)
    await running.state.importer.remove_leftovers()
    assert await database.read(lambda conn: conn.execute(count).fetchone()[0]) == 0


@pytest.mark.parametrize("canceled", [False, True])
async def test_answer_that_could_not_be_saved_is_reported_and_saved_later(
    running: Running, ann: Person, upstream: Upstream, impatient: None, canceled: bool
) -> None:
    database, hub = running.state.database, running.state.hub
    conversation_id = await ann.conversation("Why?")
    gate = Gate()
    upstream.enqueue(content(LONG), pause(gate), finish("stop"), usage(9, 3), DONE)
    async with ann.streaming(conversation_id, **MODEL) as stream:
        events = await first(stream, 4)
        await database.write(fill)
        generation_id = events[0].data["generation_id"]
        if canceled:
            assert code(await ann.post(f"/chat/cancel/{generation_id}")) == (503, "STORAGE_UNAVAILABLE")
        gate.open()
        events += [event async for event in stream]
    well_formed(events)
    assert events[-1].data["status"] == "error"
    assert error_codes(events) == ["STORAGE_UNAVAILABLE"]
    assert code(await ann.post(f"/chat/cancel/{generation_id}")) == (404, "GENERATION_NOT_FOUND")  # it has ended

    async def again() -> tuple[list[Event], dict[str, Any]]:
        return await ann.resume(generation_id), (await ann.messages(conversation_id))[-1]

    kept, shown = await again()
    assert kept == events and hub.generations
    assert (shown["content"], shown["status"], shown["error"]["code"]) == (LONG, "error", "STORAGE_UNAVAILABLE")
    assert code(await ann.post(f"/conversations/{conversation_id}/stream", json=MODEL)) == (503, "STORAGE_UNAVAILABLE")
    await database.write(free)
    await until(lambda: not hub.generations)
    saved, stored = await again()
    assert saved == events
    assert (stored["content"], stored["error"]) == (LONG, None)
    assert stored["status"] == ("canceled" if canceled else "complete")
    assert text(await ann.answer(conversation_id, **MODEL)) == ("Hello from upstream." if canceled else LONG)


async def test_answer_never_saved_is_that_of_the_last_commit_after_a_restart(
    tmp_path: Path, upstream: Upstream, impatient: None
) -> None:
    async with Running(tmp_path, lmstudio_url=upstream.url) as running:
        ann, database = await running.first(), running.state.database
        conversation_id = await ann.conversation("Why?")
        gate = Gate()
        upstream.enqueue(content("one "), pause(gate), content(LONG), hang())
        async with ann.streaming(conversation_id, **MODEL) as stream:
            events = await first(stream, 4)
            await until(lambda: all(one.log.saved == len(one.log) for one in running.state.hub.generations.values()))
            await database.write(fill)
            gate.open()
            events += await first(stream, 1)
            running.server.should_exit = True
            events += [event async for event in stream]
        assert events[-1].data["status"] == "error" and text(events).startswith("one 0000")
    async with Running(tmp_path, lmstudio_url=upstream.url) as running:
        ann = await running.login("ann")
        message = (await ann.messages(conversation_id))[-1]
        assert (message["content"], message["status"]) == ("one ", "interrupted")
        again = await ann.resume(events[0].data["generation_id"], events[-1].id or 0)
        assert again[0].event == "reset" and text(again) == "one " and again[-1].data["status"] == "interrupted"


async def test_answer_that_ends_while_the_database_is_slow_is_saved_once(
    running: Running, ann: Person, upstream: Upstream, impatient: None
) -> None:
    conversation_id, other_id = [await ann.conversation("Why?") for _ in range(2)]
    gates = []
    for _ in range(2):
        [gate] = upstream.enqueue_paused("one ", "two")
        gates.append(gate)
    async with ann.streaming(conversation_id, **MODEL) as stream, ann.streaming(other_id, **MODEL) as other:
        events, others = await first(stream, 4), await first(other, 4)
        async with blocked_writer(running) as waiting:
            gates[0].open()
            await until(lambda: waiting(1), "the first end to wait for the database")
            gates[1].open()
            await until(lambda: waiting(2), "the second end, or a part of it")
            await asyncio.sleep(2 * chat.SAVE_SECONDS)  # a save of the running answers is due
        events += [event async for event in stream]
        others += [event async for event in other]
    assert text(events) == text(others) == "one two"
    parts = "SELECT count(*) FROM generation_parts"
    assert await running.state.database.read(lambda conn: conn.execute(parts).fetchone()[0]) == 0


async def test_answer_that_begins_as_the_service_stops_is_interrupted(tmp_path: Path, upstream: Upstream) -> None:
    async with Running(tmp_path, lmstudio_url=upstream.url) as running:
        ann, hub = await running.first(), running.state.hub
        conversation_id = await ann.conversation("Why?")
        async with blocked_writer(running) as waiting:
            asking = asyncio.create_task(ann.answer(conversation_id, **MODEL))
            await until(lambda: waiting(1), "the answer to begin")
            running.server.should_exit = True
            await until(lambda: hub.closing)
        assert (await asking)[-1].data["status"] == "interrupted"
    whole(tmp_path / "fireside.db")


async def test_answer_waits_for_a_database_locked_by_another_program(
    running: Running, ann: Person, upstream: Upstream
) -> None:
    conversation_id = await ann.conversation("Why?")
    [gate] = upstream.enqueue_paused("one ", "two")
    with contextlib.closing(sqlite3.connect(running.config.database, isolation_level=None)) as other:
        async with ann.streaming(conversation_id, **MODEL) as stream:
            events = await first(stream, 4)
            other.execute("BEGIN IMMEDIATE")
            gate.open()
            events += await first(stream, 1)
            other.execute("ROLLBACK")
            events += [event async for event in stream]
    assert (text(events), events[-1].data["status"]) == ("one two", "ok")
