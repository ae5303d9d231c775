"""Nothing is lost and nothing is left behind, whatever a client does."""

import asyncio
import contextlib
import json
import socket
import struct
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from fireside import queries
from fireside.queries.generations import AnswerRequest
from fireside.web import connection

from ...live import PATIENCE, Event, Person, code, good, text, until
from ...trials import spread
from ...upstream import CHAT, DONE, Gate, Pace, Upstream, finish, hang, headers, pause
from ...upstream import text as content
from ...witness import MODEL, Witness
from .conftest import watched
from .steps import (
    SLOW_ANSWER,
    WORDS,
    WRITING,
    answering,
    blocked_writer,
    first,
    first_words,
    log_in_again,
    newest_answer,
    raw_post,
)

pytestmark = pytest.mark.asyncio(loop_scope="package")

Client = Callable[[Witness, Person, int, int], Awaitable[list[Event] | None]]
CLIENTS: list[tuple[Client, int]] = []


def cases(count: int) -> Callable[[Client], Client]:
    """A fault in `count` variants: the function gets the witness, ann, a conversation of hers with one question, and the
    number of the variant. It returns the events of a whole stream, if it has read one."""

    def add(client: Client) -> Client:
        CLIENTS.append((client, count))
        return client

    return add


def stream_request(conversation_id: int) -> tuple[str, bytes]:
    return f"/conversations/{conversation_id}/stream", json.dumps(MODEL).encode()


async def whole_answer(person: Person, conversation_id: int) -> list[Event]:
    events = await newest_answer(person, conversation_id)
    assert text(events) == "".join(WORDS)
    return events


@cases(51)
async def leaves_at_an_event(witness: Witness, ann: Person, conversation_id: int, number: int) -> list[Event]:
    witness.upstream.enqueue(*SLOW_ANSWER)
    async with ann.streaming(conversation_id, **MODEL) as stream:
        await first(stream, number)
    return await whole_answer(ann, conversation_id)


@cases(20)
async def resets_its_connection(witness: Witness, ann: Person, conversation_id: int, number: int) -> list[Event]:
    witness.upstream.enqueue(*SLOW_ANSWER)
    async with raw_post(ann, *stream_request(conversation_id)) as (reader, writer):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with contextlib.suppress(asyncio.IncompleteReadError):  # the answer has ended in fewer events
            for _ in range(1 + number):
                await reader.readuntil(b"\n\n" if number else b"\r\n\r\n")
    return await whole_answer(ann, conversation_id)


@cases(10)
async def half_closes_its_connection(witness: Witness, ann: Person, conversation_id: int, number: int) -> list[Event]:
    witness.upstream.enqueue(*SLOW_ANSWER)
    async with raw_post(ann, *stream_request(conversation_id)) as (reader, writer):
        with contextlib.suppress(asyncio.IncompleteReadError):  # a busy service sends several deltas in one event
            for _ in range(1 + number):
                await reader.readuntil(b"\n\n")
        if not reader.at_eof():
            writer.write_eof()
            await reader.read()
    return await whole_answer(ann, conversation_id)


@cases(10)
async def cancels_before_the_first_token(
    witness: Witness, ann: Person, conversation_id: int, number: int
) -> list[Event]:
    witness.upstream.enqueue(*((headers(), hang()) if number % 2 else (hang(),)))
    async with ann.streaming(conversation_id, **MODEL) as events:
        seen = await first(events, 1 + number // 5)
        good(await ann.post(f"/chat/cancel/{seen[0].data['generation_id']}"))
        await witness.upstream.closed()
        seen += [event async for event in events]
    assert (seen[-1].data["status"], text(seen)) == ("canceled", "")
    return seen


@cases(20)
async def cancels_in_the_middle(witness: Witness, ann: Person, conversation_id: int, number: int) -> list[Event]:
    witness.upstream.enqueue(*WRITING, hang())
    async with ann.streaming(conversation_id, **MODEL) as events:
        seen = await first_words(events, 1 + number // 2)
        good(await ann.post(f"/chat/cancel/{seen[0].data['generation_id']}"))
        await witness.upstream.closed()
        assert (await ann.messages(conversation_id))[-1]["status"] == "canceled"
        seen += [event async for event in events]
    assert seen[-1].data["status"] == "canceled" and "".join(WORDS).startswith(text(seen)) and text(seen)
    return seen


@cases(10)
async def cancels_as_the_answer_ends(witness: Witness, ann: Person, conversation_id: int, number: int) -> list[Event]:
    """Either the answer is cancelled, or there is nothing left to cancel."""
    [gate] = witness.upstream.enqueue_paused("one ", "two")
    async with ann.streaming(conversation_id, **MODEL) as events:
        seen = await first(events, 4)
        gate.open()
        for _ in range(number):
            await asyncio.sleep(0)
        response = await ann.post(f"/chat/cancel/{seen[0].data['generation_id']}")
        seen += [event async for event in events]
    assert (response.status_code, seen[-1].data["status"]) in ((200, "canceled"), (404, "ok"))
    assert "one two".startswith(text(seen))
    return seen


@cases(10)
async def cancels_several_times_at_once(
    witness: Witness, ann: Person, conversation_id: int, number: int
) -> list[Event]:
    witness.upstream.enqueue(content("one"), hang())
    async with ann.streaming(conversation_id, **MODEL) as events:
        seen = await first(events, 1 + number % 4)
        path = f"/chat/cancel/{seen[0].data['generation_id']}"
        responses = await asyncio.gather(*(ann.post(path) for _ in range(2 + number)))
        seen += [event async for event in events]
    statuses = {response.status_code for response in responses}
    assert 200 in statuses and statuses <= {200, 404}  # 404: it arrived after the end
    assert code(await ann.post(path)) == (404, "GENERATION_NOT_FOUND")
    return seen


@cases(10)
async def cancels_a_generation_of_another_user(
    witness: Witness, ann: Person, conversation_id: int, number: int
) -> list[Event]:
    [gate] = witness.upstream.enqueue_paused("one ", "two")
    async with ann.streaming(conversation_id, **MODEL) as events:
        seen = await first(events, 4)
        own = seen[0].data["generation_id"]
        ids = (own, str(uuid.uuid4()), own.upper(), f"{own}x", "x" * 2000, "%00", "..", "0", "-1", "💥")
        assert (await witness.people[1].post(f"/chat/cancel/{ids[number]}")).status_code == 404
        gate.open()
        seen += [event async for event in events]
    assert (seen[-1].data["status"], text(seen)) == ("ok", "one two")
    return seen


@cases(5)
async def stops_reading(witness: Witness, ann: Person, conversation_id: int, number: int) -> list[Event]:
    """Only its own connection stops."""
    witness.upstream.enqueue(content("x" * 1000) * 1000, finish("stop"), DONE)
    async with raw_post(ann, *stream_request(conversation_id)) as (reader, writer):
        await reader.readuntil(b"event: ping")
        writer.transport.pause_reading()
        await until(lambda: not witness.running.state.hub.generations, "the answer to end")
        events = await newest_answer(ann, conversation_id)
    assert len(text(events)) == 1_000_000
    return events


@cases(20)
async def reads_in_two_tabs(witness: Witness, ann: Person, conversation_id: int, number: int) -> list[Event]:
    witness.upstream.enqueue(*SLOW_ANSWER)
    async with ann.streaming(conversation_id, **MODEL) as one:
        seen = await first(one, 1 + number)
        generation_id = seen[0].data["generation_id"]
        other = ann.resuming(generation_id) if number % 2 else ann.streaming(conversation_id, **MODEL)
        async with other as events:
            in_other_tab = [event async for event in events]
        seen += [event async for event in one]
    assert seen == in_other_tab and text(seen) == "".join(WORDS)
    return seen


@cases(5)
async def submits_twenty_times_at_once(witness: Witness, ann: Person, conversation_id: int, number: int) -> list[Event]:
    before = witness.upstream.count(CHAT)
    witness.upstream.enqueue(*SLOW_ANSWER)
    streams = await asyncio.gather(*(ann.answer(conversation_id, **MODEL) for _ in range(20)))
    assert witness.upstream.count(CHAT) == before + 1
    assert all(events == streams[0] for events in streams) and text(streams[0]) == "".join(WORDS)
    return streams[0]


@cases(20)
async def asks_again_while_it_is_answered(
    witness: Witness, ann: Person, conversation_id: int, number: int
) -> list[Event]:
    [gate] = witness.upstream.enqueue_paused("one ", "two")
    async with ann.streaming(conversation_id, **MODEL) as events:
        seen = await first(events, 1 + number // 5)
        stream, retry = f"/conversations/{conversation_id}/stream", {"conversation_id": conversation_id, **MODEL}
        match number % 4:
            case 0:
                refused = await ann.post("/chat/retry", json=retry)
            case 1:
                refused = await ann.post(stream, json=MODEL | {"model": "another"})
            case 2:
                refused = await ann.post("/chat/retry", json=retry | {"model": "another"})
            case _:
                await witness.add_message(ann, conversation_id, "And why is it red?")
                refused = await ann.post(stream, json=MODEL)
        assert code(refused) == (409, "GENERATION_ACTIVE")
        gate.open()
        seen += [event async for event in events]
    assert (seen[-1].data["status"], text(seen)) == ("ok", "one two")
    return seen


@cases(20)
async def deletes_the_conversation(
    witness: Witness, ann: Person, conversation_id: int, number: int
) -> list[Event] | None:
    silent, purged = number % 4 < 2, number % 2
    witness.upstream.enqueue(*((hang(),) if silent else (*WRITING, hang())))
    async with ann.streaming(conversation_id, **MODEL) as events:
        seen = await first(events, min(1 + number // 4, 2) if silent else 1 + number // 4)
        good(await ann.delete(f"/conversations/{conversation_id}" + ("?purge=true" if purged else "")))
        await witness.upstream.closed()
        seen += [event async for event in events]
    assert seen[-1].data["status"] == "canceled"
    assert code(await ann.get(f"/generations/{seen[0].data['generation_id']}/stream")) == (404, "GENERATION_NOT_FOUND")
    if purged:
        witness.forget(ann, conversation_id)
        return None
    good(await ann.post(f"/conversations/{conversation_id}/restore"))
    return seen


@cases(6)
async def loses_its_last_session(witness: Witness, ann: Person, _: int, number: int) -> None:
    bob = witness.people[1]
    conversation_id = await witness.question(bob)
    witness.upstream.enqueue(content("one"), hang())
    async with bob.streaming(conversation_id, **MODEL) as events:
        seen = await first(events, 4)
        if number % 2:
            good(await bob.post("/auth/logout"))
        else:
            user = next(user for user in good(await ann.get("/admin/users"))["users"] if user["username"] == "bob")
            good(await ann.patch(f"/admin/users/{user['id']}", json={"status": "disabled"}))
        seen += [event async for event in events]
    assert (seen[-1].data["status"], text(seen)) == ("canceled", "one")
    if not number % 2:
        good(await ann.patch(f"/admin/users/{user['id']}", json={"status": "active"}))
    await log_in_again(witness.running, bob, "bob")
    await witness.nothing_lost(bob, conversation_id, seen)


@cases(1)
async def logs_out_on_another_device(witness: Witness, ann: Person, _: int, number: int) -> None:
    bob = witness.people[1]
    phone = await witness.running.login("bob")
    conversation_id = await witness.question(bob)
    [gate] = witness.upstream.enqueue_paused("one ", "two")
    async with bob.streaming(conversation_id, **MODEL) as events:
        seen = await first(events, 4)
        good(await phone.post("/auth/logout"))
        gate.open()
        seen += [event async for event in events]
    assert (seen[-1].data["status"], text(seen)) == ("ok", "one two")
    await witness.nothing_lost(bob, conversation_id, seen)


@cases(50)
async def resumes_after_an_event(witness: Witness, ann: Person, conversation_id: int, number: int) -> list[Event]:
    witness.upstream.enqueue(*SLOW_ANSWER)
    async with ann.streaming(conversation_id, **MODEL) as events:
        seen = await first(events, 1 + number // 2)
    if seen[-1].event != "done":
        seen += await ann.resume(seen[0].data["generation_id"], seen[-1].id or 0)
    assert text(seen) == "".join(WORDS)
    return seen


@cases(32)
async def sends_half_a_request(witness: Witness, ann: Person, conversation_id: int, number: int) -> None:
    before = witness.upstream.count(CHAT)
    body = json.dumps(MODEL).encode()
    path = f"/conversations/{conversation_id}/{'stream' if number % 2 else 'messages'}"
    async with raw_post(ann, path, body[: len(body) * number // 32], length=len(body)) as (reader, writer):
        if number % 3:
            writer.write_eof()
            await reader.read()
    assert witness.upstream.count(CHAT) == before and len(await ann.messages(conversation_id)) == 1


@pytest.mark.parametrize(("client", "count"), [pytest.param(*case, id=case[0].__name__) for case in CLIENTS])
async def test_nothing_is_lost_when_a_client(witness: Witness, client: Client, count: int) -> None:
    ann = witness.people[0]
    for number in spread(count):
        conversation_id = await witness.question(ann)
        events = await client(witness, ann, conversation_id, number)
        await witness.nothing_lost(ann, conversation_id, *([events] if events else []))


@pytest.mark.parametrize("ending", ["delete", "purge", "logout"])
@pytest.mark.parametrize("answer_first", [True, False])
async def test_no_generation_survives_an_end_that_was_acknowledged(
    witness: Witness, ending: str, answer_first: bool
) -> None:
    """Both requests wait for the database, in either order."""
    bob, running = witness.people[1], witness.running
    conversation_id = await witness.question(bob)
    path = f"/conversations/{conversation_id}"
    endings: dict[str, Callable[[], Coroutine[Any, Any, httpx.Response]]] = {
        "delete": lambda: bob.delete(path),
        "purge": lambda: bob.delete(f"{path}?purge=true"),
        "logout": lambda: bob.post("/auth/logout"),
    }
    requests = [lambda: bob.post(f"{path}/stream", json=MODEL), endings[ending]]
    with answering(witness.upstream, content("one"), hang()):
        tasks = []
        async with blocked_writer(running) as waiting:
            for number, request in enumerate(requests if answer_first else reversed(requests), 1):
                tasks.append(asyncio.create_task(request()))
                await until(partial(waiting, number), "both to wait for the database")
        answer, end = tasks if answer_first else reversed(tasks)
        good(await end)
        assert not running.state.hub.generations
        refused = await answer
        assert refused.status_code in (401, 404) or b'"status": "canceled"' in refused.content
    if ending == "logout":
        await log_in_again(running, bob, "bob")
    if ending == "purge":
        witness.forget(bob, conversation_id)
    await witness.nothing_lost(bob, conversation_id)


async def test_request_whose_session_ends_before_its_body_arrives_is_refused(witness: Witness) -> None:
    bob = witness.people[1]
    conversation_id = await witness.question(bob)
    path, body = stream_request(conversation_id)
    async with raw_post(bob, path, body[:5], len(body)) as (reader, writer):
        await until(lambda: witness.running.server.server_state.tasks, "the head to arrive")
        good(await bob.post("/auth/logout"))
        writer.write(body[5:])
        assert b" 401 " in await reader.readline()
    await log_in_again(witness.running, bob, "bob")
    await witness.nothing_lost(bob, conversation_id)


async def test_cancelled_caller_leaves_no_orphaned_generation(witness: Witness) -> None:
    ann, hub = witness.people[0], witness.running.state.hub
    (user,) = [user for user in good(await ann.get("/admin/users"))["users"] if user["username"] == "ann"]
    for steps in range(12):
        conversation_id = await witness.question(ann)
        asking = asyncio.create_task(
            hub.answer(user["id"], conversation_id, AnswerRequest(MODEL["provider_id"], MODEL["model"]))
        )
        for _ in range(steps):
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        events = await ann.answer(conversation_id, **MODEL)
        assert text(events) == "Hello from upstream."
        await witness.nothing_lost(ann, conversation_id, events)


async def test_generation_can_be_stopped_before_its_first_step(witness: Witness) -> None:
    ann, state = witness.people[0], witness.running.state
    conversation_id = await witness.question(ann)
    user_id = await state.database.read(
        lambda conn: conn.execute("SELECT id FROM users WHERE username = 'ann'").fetchone()[0]
    )
    begun = await state.database.write(
        queries.generations.begin_answer, user_id, conversation_id, AnswerRequest(), "lmstudio", "m"
    )
    state.hub._start((begun, state.providers.get("lmstudio")))
    state.hub.generations[begun.generation_id].stop("canceled")  # in the same step of the event loop
    events = await newest_answer(ann, conversation_id)
    assert [event.event for event in events] == ["ping", "done"] and events[-1].data["status"] == "canceled"
    await witness.nothing_lost(ann, conversation_id, events)


async def test_hundreds_of_cancelled_answers_leave_nothing_behind(witness: Witness) -> None:
    """Cancelled in the queue, before the response's head, before the first token, and in the middle."""
    ann = witness.people[0]
    script = (pause(Pace()), headers(), pause(Pace()), *WRITING, hang())
    numbers = iter(spread(500))

    async def lane() -> int:
        conversation_id = await witness.question(ann)
        for number in numbers:
            made = good(await ann.post("/chat/retry", json={"conversation_id": conversation_id, **MODEL}))
            if number % 3:
                async with ann.resuming(made["generation_id"]) as events:
                    await (first_words(events, number % 6) if number % 2 else first(events, number % 4))
            good(await ann.post(f"/chat/cancel/{made['generation_id']}"))
        return conversation_id

    with answering(witness.upstream, *script):
        async with asyncio.TaskGroup() as group:
            lanes = [group.create_task(lane()) for _ in range(6)]
    for one in lanes:
        await witness.nothing_lost(ann, one.result(), await newest_answer(ann, one.result()))


async def test_reader_that_stops_reading_is_disconnected(
    tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "STALL_SECONDS", 0.2)
    async with watched(tmp_path, upstream, answer_max_bytes="20000000") as witness:
        ann = witness.people[0]
        conversation_id = await witness.question(ann)
        gate = Gate()
        flood = [content("x" * 10_000) * 100] * 10  # more than the kernel buffers
        upstream.enqueue(*flood, pause(gate), finish("stop"), DONE)
        async with raw_post(ann, *stream_request(conversation_id)) as (reader, writer):
            await reader.readuntil(b"event: ping")
            writer.transport.pause_reading()
            connections = witness.running.server.server_state.connections
            assert len(connections) == 1
            await gate.reached()
            await until(lambda: not connections, "the connection to be closed")
        monkeypatch.setattr(connection, "STALL_SECONDS", PATIENCE)  # the next reader shares this busy process
        gate.open()
        events = await newest_answer(ann, conversation_id)
        assert len(text(events)) == 10_000_000
        await witness.nothing_lost(ann, conversation_id, events)


async def test_slow_reader_is_not_disconnected(
    tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "STALL_SECONDS", 1.0)
    async with watched(tmp_path, upstream, answer_max_bytes="20000000") as witness:
        ann = witness.people[0]
        conversation_id = await witness.question(ann)
        upstream.enqueue(*[content("x" * 10_000) * 100] * 10, finish("stop"), DONE)
        received = 0
        async with raw_post(ann, *stream_request(conversation_id)) as (reader, _):
            while data := await reader.read(400_000):
                received += len(data)
                if data.endswith(b"0\r\n\r\n"):
                    break
                await asyncio.sleep(0.08)
        assert received > 10_000_000
        monkeypatch.setattr(connection, "STALL_SECONDS", PATIENCE)
        await witness.nothing_lost(ann, conversation_id, await newest_answer(ann, conversation_id))
