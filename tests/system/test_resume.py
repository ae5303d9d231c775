"""A reader who comes back, from anywhere and after anything, has every event exactly once, byte for byte."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from fireside import queries
from fireside.chat import events as eventlog
from fireside.chat.events import CRASH_GAP, EventLog
from fireside.queries.generations import AnswerRequest, Recording
from hypothesis import given
from hypothesis import strategies as st

from ..live import Event, Person, Running, code, good, parse_event, text, until
from ..upstream import DONE, Gate, Step, Upstream, close, finish, hang, pause, reasoning, usage
from ..upstream import text as says
from ..witness import MODEL, STATUS

STRANGE = ("Größe ", "東京", " 😀𝄞", '"\\\n', "\u2028\u2029\x85", "a\0b", "\r\n\r\n", "event: done\n\n")
ANSWER = (reasoning("hm, ", "well"), says(*STRANGE), finish("stop"), usage(12, 8), DONE)


def blocks(body: bytes) -> list[bytes]:
    """The events of a stream as bytes, without the pings of silence."""
    assert body.endswith(b"\n\n") or not body
    return [block for block in body.split(b"\n\n") if block and not block.startswith(b"event: ping")]


async def body_after(person: Person, generation_id: str, position: int) -> bytes:
    answer = await person.get(f"/generations/{generation_id}/stream", headers={"Last-Event-ID": str(position)})
    assert answer.status_code == 200, answer.text
    return answer.content


async def streamed(person: Person, conversation_id: int) -> tuple[str, list[bytes]]:
    """The id of a generation, and its whole stream as bytes."""
    answer = await person.post(f"/conversations/{conversation_id}/stream", json=MODEL)
    events = blocks(answer.content)
    return parse_event(events[0]).data["generation_id"], events


async def check_from_everywhere(person: Person, generation_id: str, events: list[bytes]) -> None:
    """After each event comes what came after it, and after an id that never was, all of it."""
    for count in range(len(events) + 1):
        assert blocks(await body_after(person, generation_id, count)) == events[count:]
    reset, *whole = blocks(await body_after(person, generation_id, len(events) + 1))
    assert parse_event(reset) == Event(None, "reset", {"generation_id": generation_id})
    assert whole == events


async def check_stored(person: Person, conversation_id: int, events: list[bytes]) -> None:
    message = (await person.messages(conversation_id))[-1]
    parsed = [parse_event(event) for event in events]
    assert (message["content"], message["reasoning"]) == (text(parsed), text(parsed, "reasoning"))
    assert message["status"] == STATUS[parsed[-1].data["status"]]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        pytest.param(ANSWER, "".join(STRANGE), id="complete"),
        pytest.param((says("one ", "two"), close()), "one two", id="cut short"),
        pytest.param((close(),), "", id="without a word"),
    ],
)
async def test_an_answer_that_has_ended_is_resumed_after_every_event(
    ann: Person, upstream: Upstream, script: tuple[Step, ...], said: str
) -> None:
    conversation_id = await ann.conversation("Why?")
    upstream.enqueue(*script)
    generation_id, events = await streamed(ann, conversation_id)
    assert text([parse_event(event) for event in events]) == said
    await check_from_everywhere(ann, generation_id, events)
    await check_stored(ann, conversation_id, events)


async def test_a_running_answer_is_resumed_after_every_event_by_two_readers_at_once(
    ann: Person, upstream: Upstream
) -> None:
    conversation_id = await ann.conversation("Why?")
    gates = [Gate() for _ in STRANGE]
    steps = [step for gate, word in zip(gates, STRANGE, strict=True) for step in (pause(gate), says(word))]
    upstream.enqueue(reasoning("hm"), *steps, finish("stop"), usage(12, 8), DONE)
    seen: list[Event] = []
    readers: list[tuple[int, asyncio.Task[bytes]]] = []
    async with ann.streaming(conversation_id, **MODEL) as events:
        async for event in events:
            seen.append(event)
            generation_id = event.data["generation_id"]
            readers += [(len(seen), asyncio.create_task(body_after(ann, generation_id, len(seen)))) for _ in range(2)]
            if event.event in ("reasoning", "delta") and gates:
                gates.pop(0).open()
            if len(seen) == 5:
                beyond = asyncio.create_task(body_after(ann, generation_id, 1000))
    whole = blocks(await body_after(ann, generation_id, 0))
    assert [parse_event(event) for event in whole] == seen
    assert parse_event(blocks(await beyond)[0]).event == "reset" and blocks(await beyond)[1:] == whole
    for count, reader in readers:
        assert blocks(await reader) == whole[count:]
    assert text(seen) == "".join(STRANGE)


async def test_a_canceled_answer_is_resumed_after_every_event(ann: Person, upstream: Upstream) -> None:
    conversation_id = await ann.conversation("Why?")
    upstream.enqueue(says("one ", "two"), hang())
    async with ann.streaming(conversation_id, **MODEL) as stream:
        async for event in stream:
            if event.event == "delta":
                good(await ann.post(f"/chat/cancel/{event.data['generation_id']}"))
    events = blocks(await body_after(ann, event.data["generation_id"], 0))
    await check_from_everywhere(ann, event.data["generation_id"], events)
    await check_stored(ann, conversation_id, events)


async def test_an_answer_that_a_stop_interrupts_is_resumed_after_the_restart(
    tmp_path: Path, upstream: Upstream
) -> None:
    async with Running(tmp_path, lmstudio_url=upstream.url) as running:
        ann = await running.first()
        conversation_id = await ann.conversation("Why?")
        upstream.enqueue(reasoning("hm"), says("one ", "two"), hang())
        reader = asyncio.create_task(streamed(ann, conversation_id))
        await until(lambda: any(generation.log.content for generation in running.state.hub.generations.values()))
        running.server.should_exit = True
        generation_id, events = await reader
    assert parse_event(events[-1]).data["status"] == "interrupted"
    async with Running(tmp_path, lmstudio_url=upstream.url) as running:
        ann = await running.login("ann")
        await check_from_everywhere(ann, generation_id, events)
        await check_stored(ann, conversation_id, events)


async def test_a_finished_answer_is_the_same_after_a_restart(tmp_path: Path, upstream: Upstream) -> None:
    async with Running(tmp_path, lmstudio_url=upstream.url) as running:
        ann = await running.first()
        conversation_id = await ann.conversation("Why?")
        upstream.enqueue(*ANSWER)
        generation_id, events = await streamed(ann, conversation_id)
    async with Running(tmp_path, lmstudio_url=upstream.url) as running:
        ann = await running.login("ann")
        assert (await streamed(ann, conversation_id)) == (generation_id, events)
        await check_from_everywhere(ann, generation_id, events)


async def test_after_a_crash_a_reader_continues_or_begins_anew_but_never_misses(
    tmp_path: Path, upstream: Upstream
) -> None:
    """The database is left as a kill leaves it: five events were saved, in two commits."""
    first = [{"event": "ping", "data": {"ts": "now"}}, {"event": "progress", "data": {"phase": "prompt"}}]
    saved: list[tuple[int, str, str, list[Any]]] = [(1, "", "", first), (3, "one two", "hm", [-2, 4, 3])]
    async with Running(tmp_path, lmstudio_url=upstream.url) as running:
        ann = await running.first()
        conversation_id = await ann.conversation("Why?")
        begun = await running.state.database.write(
            queries.generations.begin_answer, 1, conversation_id, AnswerRequest(), "lmstudio", "m"
        )
        generation_id = begun.generation_id
        parts = [
            queries.generations.SavedPart(generation_id, start, content, thought, json.dumps(log))
            for start, content, thought, log in saved
        ]
        await running.state.database.write(queries.generations.add_parts, parts)
    async with Running(tmp_path, lmstudio_url=upstream.url) as running:
        ann = await running.login("ann")
        events = blocks(await body_after(ann, generation_id, 0))
        parsed = [parse_event(event) for event in events]
        assert [event.id for event in parsed] == [1, 2, 3, 4, 5, 6 + CRASH_GAP]
        assert [event.event for event in parsed] == ["ping", "progress", "reasoning", "delta", "delta", "done"]
        assert (text(parsed), parsed[-1].data["status"]) == ("one two", "interrupted")
        for count in range(6):
            assert blocks(await body_after(ann, generation_id, count)) == events[count:]
        for lost in (6, 7, 1000, CRASH_GAP, 10**18):
            assert parse_event(blocks(await body_after(ann, generation_id, lost))[0]).event == "reset"
            assert blocks(await body_after(ann, generation_id, lost))[1:] == events
        assert await body_after(ann, generation_id, 6 + CRASH_GAP) == b""
        await check_stored(ann, conversation_id, events)


async def test_an_interrupted_answer_is_given_another_version(ann: Person, upstream: Upstream, tmp_path: Path) -> None:
    conversation_id = await ann.conversation("Why?")
    upstream.enqueue(says("one "), close())
    first, _ = await streamed(ann, conversation_id)
    upstream.enqueue(*ANSWER)
    second, events = await streamed(ann, conversation_id)
    assert first != second and text([parse_event(event) for event in events]) == "".join(STRANGE)
    message = (await ann.messages(conversation_id))[-1]
    assert len(message["versions"]["ids"]) == 2 and message["versions"]["index"] == 1
    good(await ann.post(f"/conversations/{conversation_id}/active", json={"message_id": message["versions"]["ids"][0]}))
    assert (await ann.messages(conversation_id))[-1]["content"] == "one "


async def test_only_its_owner_reads_a_generation(
    ann: Person, bob: Person, running: Running, upstream: Upstream
) -> None:
    conversation_id = await ann.conversation("Why?")
    gate = Gate()
    upstream.enqueue(says("secret"), pause(gate), finish("stop"), DONE)
    reader = asyncio.create_task(streamed(ann, conversation_id))
    await until(lambda: running.state.hub.generations)
    (generation_id,) = running.state.hub.generations
    path = f"/generations/{generation_id}/stream"
    unknown = "/generations/00000000-0000-4000-8000-000000000000/stream"

    def told(answer: Any) -> Any:
        return answer.status_code, {name: value for name, value in answer.json().items() if name != "request_id"}

    while_it_runs = await bob.get(path)
    gate.open()
    await reader
    for refused in (while_it_runs, await bob.get(path), await ann.get(unknown)):
        assert code(refused) == (404, "GENERATION_NOT_FOUND") and told(refused) == told(while_it_runs)
    assert code(await running.anybody().get(path)) == (401, "AUTH_REQUIRED")


async def test_the_place_is_given_by_header_or_query_and_the_header_counts(ann: Person, upstream: Upstream) -> None:
    conversation_id = await ann.conversation("Why?")
    upstream.enqueue(*ANSWER)
    generation_id, events = await streamed(ann, conversation_id)
    path = f"/generations/{generation_id}/stream"
    assert blocks((await ann.get(path)).content) == events
    assert blocks((await ann.get(path, params={"after": 3})).content) == events[3:]
    both = await ann.get(path, params={"after": 1}, headers={"Last-Event-ID": "4"})
    assert blocks(both.content) == events[4:]
    for wrong in ("-1", "x", "1.5", "", "٣", "9" * 20):
        assert code(await ann.get(path, params={"after": wrong})) == (400, "VALIDATION_ERROR"), wrong


# ---- the log by itself: any answer, saved at any moments

DONE_DATA = {"status": "ok", "message_id": 1, "stats": {}}
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("say"), TEXTS),
        st.tuples(st.just("think"), TEXTS),
        st.tuples(st.just("add"), TEXTS),
        st.tuples(st.just("save"), st.just("")),
    ),
    max_size=30,
)


async def written(
    steps: list[tuple[str, str]],
) -> tuple[EventLog, list[queries.generations.SavedPart], Recording, list[bytes]]:
    """A log that has ended, what was saved of it meanwhile, what was saved before its end was told, and what was told."""
    log, parts = EventLog("g"), []
    for step, words in steps:
        match step:
            case "say":
                log.append_content(words)
            case "think":
                log.append_reasoning(words)
            case "add":
                log.add("progress", {"phase": words})
            case "save" if len(log) > log.saved:
                parts.append(log.unsaved_part())
                log.saved = len(log)
    recording = log.recording(1, "complete", DONE_DATA)
    log.end(DONE_DATA)
    return log, parts, recording, blocks(b"".join([event async for event in log.follow(0, 60)]))


def replayed(recording: Recording, position: int) -> list[bytes]:
    async def read() -> bytes:
        return b"".join([batch async for batch in eventlog.replay("g", recording, position)])

    return blocks(asyncio.run(read()))


@given(EVENTS, st.integers(0, 40))
def test_a_recording_replays_what_was_told(steps: list[tuple[str, str]], position: int) -> None:
    log, _, recording, told = asyncio.run(written(steps))
    assert log.recording(1, "complete", DONE_DATA) == recording, "saved late, it is the same"
    assert replayed(recording, 0) == told
    rest = replayed(recording, position)
    assert rest == told[position:] or (rest[1:] == told and position > len(told))


@given(EVENTS)
def test_what_was_saved_of_a_log_is_its_beginning(steps: list[tuple[str, str]]) -> None:
    _, parts, _, told = asyncio.run(written(steps))
    events = [entry for part in parts for entry in json.loads(part.log)]
    texts = "".join(part.content for part in parts), "".join(part.reasoning for part in parts)
    left = eventlog.interrupted(Recording(1, "generating", *texts, json.dumps(events)))
    *kept, done = replayed(left, 0)
    assert kept == told[: len(events)]
    assert parse_event(done).id == len(events) + 1 + CRASH_GAP
