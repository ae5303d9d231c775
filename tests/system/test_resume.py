"""A reader that reconnects gets every event exactly once, byte for byte, also after a restart or a crash."""

import asyncio
import contextlib
import json
from pathlib import Path

import pytest
from fireside.chat import events as eventlog
from fireside.chat.events import CRASH_GAP, MAX_READERS, EventLog
from fireside.queries import generations
from fireside.queries.generations import AnswerRequest, Recording, SavedPart
from hypothesis import given
from hypothesis import strategies as st

from ..live import PATIENCE, Event, Person, Running, code, good, parse_event, text, until
from ..upstream import DONE, Gate, Step, Upstream, close, finish, hang, pause, reasoning, usage
from ..upstream import text as says
from ..witness import MODEL, STATUS

STRANGE = ("Größe ", "東京", " 😀𝄞", '"\\\n', "\u2028\u2029\x85", "a\0b", "\r\n\r\n", "event: done\n\n")
ANSWER = (reasoning("hm, ", "well"), says(*STRANGE), finish("stop"), usage(12, 8), DONE)


def blocks(body: bytes) -> list[bytes]:
    """The events of a stream as bytes, without those that are not replayed."""
    assert body.endswith(b"\n\n") or not body
    return [block for block in body.split(b"\n\n") if block and not block.startswith(b"event: ping")]


def parsed(events: list[bytes]) -> list[Event]:
    return [parse_event(event) for event in events]


async def resume(person: Person, generation_id: str, position: int) -> list[bytes]:
    response = await person.get(f"/generations/{generation_id}/stream", headers={"Last-Event-ID": str(position)})
    assert response.status_code == (200 if response.content else 204), response.text
    return blocks(response.content)


async def stream(person: Person, conversation_id: int, cancel: bool = False) -> tuple[str, list[bytes]]:
    """Return the id of the generation and its whole stream. `cancel` it after its first text."""
    body = b""
    async with person.stream("POST", f"/conversations/{conversation_id}/stream", json=MODEL) as response:
        async for chunk in response.aiter_raw():
            body += chunk
            generation_id = parse_event(body.split(b"\n\n")[0]).data["generation_id"]
            if cancel and b"event: delta" in body:
                good(await person.post(f"/chat/cancel/{generation_id}"))
                cancel = False
    return generation_id, blocks(body)


async def check_all_positions(person: Person, conversation_id: int, generation_id: str, events: list[bytes]) -> None:
    """After each event come the events after it, and after an unknown id all of them. The message has the same text."""
    for count in range(len(events) + 1):
        assert await resume(person, generation_id, count) == events[count:]
    reset, *everything = await resume(person, generation_id, len(events) + 1)
    assert parse_event(reset) == Event(None, "reset", {"generation_id": generation_id})
    assert everything == events
    await check_message(person, conversation_id, events)


async def check_message(person: Person, conversation_id: int, events: list[bytes]) -> None:
    message, streamed = (await person.messages(conversation_id))[-1], parsed(events)
    assert (message["content"], message["reasoning"]) == (text(streamed), text(streamed, "reasoning"))
    assert message["status"] == STATUS[streamed[-1].data["status"]]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        pytest.param(ANSWER, "".join(STRANGE), id="complete"),
        pytest.param((says("one ", "two"), close()), "one two", id="broken off"),
        pytest.param((close(),), "", id="without text"),
        pytest.param((says("one ", "two"), hang()), "one two", id="canceled"),
    ],
)
async def test_ended_answer_is_resumed_after_every_event(
    ann: Person, upstream: Upstream, script: tuple[Step, ...], said: str
) -> None:
    conversation_id = await ann.conversation("Why?")
    upstream.enqueue(*script)
    generation_id, events = await stream(ann, conversation_id, cancel=script[-1] == hang())
    assert text(parsed(events)) == said
    await check_all_positions(ann, conversation_id, generation_id, events)


async def test_running_answer_is_resumed_after_every_event_by_two_readers(ann: Person, upstream: Upstream) -> None:
    conversation_id = await ann.conversation("Why?")
    gates = [Gate() for _ in STRANGE]
    steps = [step for gate, word in zip(gates, STRANGE, strict=True) for step in (pause(gate), says(word))]
    upstream.enqueue(reasoning("hm"), *steps, finish("stop"), usage(12, 8), DONE)
    seen: list[Event] = []
    readers: list[tuple[int, asyncio.Task[list[bytes]]]] = []
    async with ann.streaming(conversation_id, **MODEL) as events:
        async for event in events:
            seen.append(event)
            generation_id = event.data["generation_id"]
            readers += [(len(seen), asyncio.create_task(resume(ann, generation_id, len(seen)))) for _ in range(2)]
            if event.event in ("reasoning", "delta") and gates:
                gates.pop(0).open()
            if len(seen) == 5:
                beyond = asyncio.create_task(resume(ann, generation_id, 1000))
    everything = await resume(ann, generation_id, 0)
    assert parsed(everything) == seen and text(seen) == "".join(STRANGE)
    assert parse_event((await beyond)[0]).event == "reset" and (await beyond)[1:] == everything
    for count, reader in readers:
        assert await reader == everything[count:]


async def test_number_of_readers_of_a_running_answer_is_limited(ann: Person, upstream: Upstream) -> None:
    gate = Gate()
    upstream.enqueue(says("one "), pause(gate), says("two"), finish("stop"), DONE)
    async with ann.streaming(await ann.conversation("Why?"), **MODEL) as events:
        path = f"/generations/{(await anext(events)).data['generation_id']}/stream"
        async with contextlib.AsyncExitStack() as readers:
            for _ in range(MAX_READERS - 1):
                response = await readers.enter_async_context(ann.stream("GET", path))
                assert response.status_code == 200
            assert code(await ann.get(path)) == (429, "TOO_MANY_READERS")
        status = 429  # until the server has noticed that the readers left
        async with asyncio.timeout(PATIENCE):
            while status == 429:
                async with ann.stream("GET", path) as response:
                    status = response.status_code
        assert status == 200
        gate.open()
        assert text([event async for event in events]) == "one two"


@pytest.mark.parametrize("status", ["ok", "interrupted"])
async def test_answer_is_the_same_after_a_restart(tmp_path: Path, upstream: Upstream, status: str) -> None:
    async with Running(tmp_path, lmstudio_url=upstream.url) as running:
        ann = await running.first()
        conversation_id = await ann.conversation("Why?")
        upstream.enqueue(*(ANSWER if status == "ok" else (reasoning("hm"), says("one ", "two"), hang())))
        reader = asyncio.create_task(stream(ann, conversation_id))
        if status == "interrupted":
            await until(lambda: any(one.log.content for one in running.state.hub.generations.values()))
            running.server.should_exit = True
        generation_id, events = await reader
    assert parse_event(events[-1]).data["status"] == status
    async with Running(tmp_path, lmstudio_url=upstream.url) as running:
        ann = await running.login("ann")
        await check_all_positions(ann, conversation_id, generation_id, events)


async def test_reader_of_a_crashed_answer_resumes_or_is_reset(tmp_path: Path, upstream: Upstream) -> None:
    """The database is as a kill leaves it: five events in two commits."""
    first = [{"event": "ping", "data": {"ts": "now"}}, {"event": "progress", "data": {"phase": "prompt"}}]
    saved = [(1, "", "", json.dumps(first)), (3, "one two", "hm", "[-2, 4, 3]")]
    async with Running(tmp_path, lmstudio_url=upstream.url) as running:
        write = running.state.database.write
        conversation_id = await (await running.first()).conversation("Why?")
        begun = await write(generations.begin_answer, 1, conversation_id, AnswerRequest(), "lmstudio", "m")
        generation_id = begun.generation_id
        await write(generations.add_parts, [SavedPart(generation_id, *part) for part in saved])
    async with Running(tmp_path, lmstudio_url=upstream.url) as running:
        ann = await running.login("ann")
        events = await resume(ann, generation_id, 0)
        assert [event.id for event in parsed(events)] == [1, 2, 3, 4, 5, 6 + CRASH_GAP]
        kinds = [event.event for event in parsed(events)]
        assert kinds == ["ping", "progress", "reasoning", "delta", "delta", "done"]
        for count in range(6):
            assert await resume(ann, generation_id, count) == events[count:]
        for lost in (6, 7, 1000, CRASH_GAP, 10**18):
            reset, *everything = await resume(ann, generation_id, lost)
            assert parse_event(reset).event == "reset" and everything == events
        assert await resume(ann, generation_id, 6 + CRASH_GAP) == []
        await check_message(ann, conversation_id, events)
        assert (await ann.messages(conversation_id))[-1]["status"] == "interrupted"


async def test_only_its_owner_reads_a_generation(
    ann: Person, bob: Person, running: Running, upstream: Upstream
) -> None:
    conversation_id = await ann.conversation("Why?")
    gate = Gate()
    upstream.enqueue(says("secret"), pause(gate), finish("stop"), DONE)
    reader = asyncio.create_task(stream(ann, conversation_id))
    await until(lambda: running.state.hub.generations)
    (generation_id,) = running.state.hub.generations
    path = f"/generations/{generation_id}/stream"
    running_answer = await bob.get(path)
    gate.open()
    await reader
    unknown = await ann.get("/generations/00000000-0000-4000-8000-000000000000/stream")
    refusals = [running_answer, await bob.get(path), unknown]
    assert {code(refused) for refused in refusals} == {(404, "GENERATION_NOT_FOUND")}
    assert len({refused.json()["message"] for refused in refusals}) == 1
    assert code(await running.anybody().get(path)) == (401, "AUTH_REQUIRED")


async def test_position_is_a_header_or_a_parameter(ann: Person, upstream: Upstream) -> None:
    conversation_id = await ann.conversation("Why?")
    upstream.enqueue(*ANSWER)
    generation_id, events = await stream(ann, conversation_id)
    path = f"/generations/{generation_id}/stream"
    assert blocks((await ann.get(path)).content) == events
    assert blocks((await ann.get(path, params={"after": 3})).content) == events[3:]
    both = await ann.get(path, params={"after": 1}, headers={"Last-Event-ID": "4"})
    assert blocks(both.content) == events[4:]
    for wrong in ("-1", "x", "1.5", "", "٣", "9" * 20):
        assert code(await ann.get(path, params={"after": wrong})) == (400, "VALIDATION_ERROR"), wrong


# ---- the log alone

DONE_DATA = {"status": "ok", "message_id": 1, "stats": {}}
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)
STEPS = st.lists(st.tuples(st.sampled_from(["content", "reasoning", "event", "save"]), TEXTS), max_size=30)


async def write(steps: list[tuple[str, str]]) -> tuple[EventLog, list[SavedPart], Recording, list[bytes]]:
    """Return an ended log, its saved parts, its recording before its end was published, and its published events."""
    log, parts = EventLog("g"), []
    for step, words in steps:
        match step:
            case "content":
                log.append_content(words)
            case "reasoning":
                log.append_reasoning(words)
            case "event":
                log.add("progress", {"phase": words})
            case "save" if len(log) > log.saved:
                parts.append(log.unsaved_part())
                log.saved = len(log)
    recording = log.recording(1, "complete", DONE_DATA)
    log.end(DONE_DATA)
    return log, parts, recording, blocks(b"".join([event async for event in log.follow(0, 60)]))


async def replay(recording: Recording, position: int) -> list[bytes]:
    return blocks(b"".join([batch async for batch in eventlog.replay("g", recording, position)]))


@given(STEPS, st.integers(0, 40))
def test_recording_replays_the_published_events(steps: list[tuple[str, str]], position: int) -> None:
    log, _, recording, published = asyncio.run(write(steps))
    assert log.recording(1, "complete", DONE_DATA) == recording
    assert asyncio.run(replay(recording, 0)) == published
    rest = asyncio.run(replay(recording, position))
    assert rest == published[position:] or (rest[1:] == published and position > len(published))


@given(STEPS)
def test_saved_parts_are_the_beginning_of_the_log(steps: list[tuple[str, str]]) -> None:
    _, parts, _, published = asyncio.run(write(steps))
    entries = [entry for part in parts for entry in json.loads(part.log)]
    texts = "".join(part.content for part in parts), "".join(part.reasoning for part in parts)
    recording = eventlog.interrupted(Recording(1, "generating", *texts, json.dumps(entries)))
    *events, done = asyncio.run(replay(recording, 0))
    assert events == published[: len(entries)]
    assert parse_event(done).id == len(entries) + 1 + CRASH_GAP
