"""Whatever a model server or a client does wrong: an honest end, the text kept, nothing lost, nothing left behind."""

import asyncio
import contextlib
import json
import random
import socket
import sqlite3
import struct
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fireside import queries
from fireside.chat import hub as chat
from fireside.chat.events import EVENT_BYTES
from fireside.chat.generation import Generation
from fireside.queries.generations import Wanted
from fireside.web import connection

from ..live import PATIENCE, Event, Person, Running, code, good, text, until
from ..trials import some
from ..upstream import (
    CHAT,
    DONE,
    Gate,
    Request,
    Step,
    Upstream,
    chunk,
    close,
    error,
    event,
    finish,
    hang,
    headers,
    pause,
    reasoning,
    refused_url,
    reset,
    split,
    status,
    usage,
    wire,
)
from ..upstream import reasoning as thinks
from ..upstream import text as says
from ..witness import MODEL, Witness, well_formed, whole

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def upstream() -> Any:
    with Upstream() as upstream:
        yield upstream


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def standing(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> AsyncIterator[Witness]:
    """One Fireside for all faults, each of which must leave it as it was."""
    async with watched(tmp_path_factory.mktemp("faults"), upstream) as witness:
        yield witness


@pytest.fixture
def witness(standing: Witness) -> Witness:
    standing.errors.found.clear()  # which may be those of another Fireside, in another test
    return standing


@contextlib.asynccontextmanager
async def watched(data_dir: Path, upstream: Upstream, **settings: str) -> AsyncIterator[Witness]:
    """A Fireside whose users are ann and bob."""
    async with Running(data_dir, lmstudio_url=upstream.url, **settings) as running:
        ann = await running.first()
        bob = await running.join(ann, "bob")
        async with Witness(running, upstream, ann, bob) as witness:
            yield witness
            await witness.everything_is_there()


# ---- group A: the model server

PLACES = ("before", "middle", "end")
BEGIN = {"before": b"", "middle": says("one ", "two"), "end": says("one ", "two") + finish("stop") + usage(7, 2)}
REST = {"before": says("one ", "two") + finish("stop") + usage(7, 2) + DONE}
REST["middle"] = REST["end"] = finish("stop") + usage(7, 2) + DONE


@dataclass(frozen=True)
class Fault:
    """What comes before the first token, after two, or after the finish; and the code of the error there, None for none."""

    name: str
    steps: tuple[Step, ...]
    codes: tuple[str | None, str | None, str | None] = (None, None, None)
    adds: str = ""  # to the answer
    thinks: str = ""
    places: tuple[str, ...] = PLACES


def harmless(name: str, *steps: Step, adds: str = "", thinks: str = "") -> Fault:
    return Fault(name, steps, adds=adds, thinks=thinks)


def fatal(name: str, code: str, *steps: Step) -> Fault:
    return Fault(name, steps, (code, code, code))


def breaking(name: str, code: str, *steps: Step) -> Fault:
    """It just breaks off: with this code before the first token, cut short after it, complete after the finish."""
    return Fault(name, steps, (code, "ANSWER_CUT_SHORT", None))


def refusing(name: str, code: str | None, *steps: Step) -> Fault:
    """In place of an answer."""
    return Fault(name, steps, (code, None, None), places=("before",))


OVERFLOW = (
    "The number of tokens to keep from the initial prompt is greater than the context length (n_keep: 13055>= n_ctx: 4096)."
    " Try to load the model with a larger context length, or provide a shorter input."
)
UNLOADED = "No models loaded. Please load a model in the developer page or use the 'lms load' command."
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
WHOLE = says("one ", "two") + finish("stop") + usage(7, 2) + DONE
MEBIBYTE = 1024 * 1024


def bare(data: str) -> bytes:
    """An event with this JSON in it, as it stands there."""
    return b'data: {"choices":[{"index":0,"delta":' + data.encode() + b"}]}\n\n"


FAULTS = [
    # the connection breaks
    breaking("the connection is closed", "PROVIDER_ERROR", close()),
    breaking("the connection is reset", "PROVIDER_ERROR", reset()),
    breaking("the connection is closed within a chunk", "ANSWER_CUT_SHORT", b":\n\n", wire(b"40\r\ndata: {"), close()),
    breaking("a chunk has no size", "ANSWER_CUT_SHORT", b":\n\n", wire(b"zz\r\ndata\r\n")),
    breaking("a chunk is longer than its size", "ANSWER_CUT_SHORT", b":\n\n", wire(b"1\r\n: a comment\n\r\n")),
    breaking("the body ends", "EMPTY_ANSWER", b":\n\n", wire(b"0\r\n\r\n"), close()),
    breaking("the body ends within an event", "EMPTY_ANSWER", b'data: {"choi', wire(b"0\r\n\r\n"), close()),
    # errors in the stream, in every server's shape
    fatal("an error event", "PROVIDER_ERROR", event({"message": "Compute error."}, "error")),
    fatal("an error event that is text", "PROVIDER_ERROR", event("it broke", "error")),
    fatal("an error event without a word", "PROVIDER_ERROR", b"event: error\ndata:\n\n"),
    fatal("an error object", "PROVIDER_ERROR", error("Compute error.")),
    fatal("an error that is text", "PROVIDER_ERROR", event({"error": "Compute error."})),
    fatal("an error and a message", "PROVIDER_ERROR", event({"error": {"message": "No."}, "message": "No."})),
    fatal("an error of the old vLLM", "PROVIDER_ERROR", event({"object": "error", "message": "No.", "code": 500})),
    fatal("an error and [DONE]", "PROVIDER_ERROR", error("Compute error.") + DONE),
    fatal("a crash of the model", "MODEL_LOAD_FAILED", error("The model has crashed without additional information.")),
    fatal("too little context", "CONTEXT_OVERFLOW", error(OVERFLOW)),
    fatal("too little context, as text", "CONTEXT_OVERFLOW", event({"error": OVERFLOW}, "error")),
    # what is too much, or makes no sense
    fatal("four events that are not JSON", "PROVIDER_ERROR", b"data: what?\n\n" * 4),
    fatal("a line of 1 MiB", "PROVIDER_ERROR", b"data: " + b"x" * MEBIBYTE + b"\n\n"),
    fatal("a line of 13 MB that does not end", "PROVIDER_ERROR", b"data: " + b"x" * 13_000_000),
    fatal("an event of 1 MiB in short lines", "PROVIDER_ERROR", b"data: 0123456789\n" * (MEBIBYTE // 10) + b"\n"),
    harmless("three events that are not JSON", b"data: what?\n\n" * 3),
    harmless("JSON nested too deep", b"data: " + b"[" * 10_000 + b"\n\n"),
    harmless("JSON that is no object", b"data: [1, 2]\n\ndata: null\n\n"),
    # the format, as it may be
    harmless("comments", b": keep-alive\n\n:\n\n"),
    harmless("empty events", b"\n\n\ndata:\n\ndata\n\n"),
    harmless("fields that nobody knows", b"id: 7\nretry: 100\nwhat\nhow: ever\n\n"),
    harmless("an event with a name", event({"choices": [{"delta": {"content": "!"}}]}, "message"), adds="!"),
    harmless("CRLF", says("!").replace(b"\n", b"\r\n"), adds="!"),
    harmless("CR", says("!").replace(b"\n", b"\r"), adds="!"),
    harmless("no space after the colon", says("!").replace(b"data: ", b"data:"), adds="!"),
    harmless("JSON over several lines", says("!").replace(b', "', b',\ndata: "'), adds="!"),
    harmless("ten thousand tiny deltas", says("x") * 10_000, adds="x" * 10_000),
    harmless("one byte at a time", split(1), says("!"), adds="!"),
    harmless("a chunk with an extension", b":\n\n", wire(b"5;what=ever\r\n: a\n\n\r\n")),
    # characters
    harmless("line ends of Unicode", bare('{"content":"a\u2028b\u2029c\u0085d"}'), adds="a\u2028b\u2029c\u0085d"),
    harmless(
        "control characters", bare(r'{"content":"a\u000bb\u000cc\u001cd\u001ee\u007f"}'), adds="a\vb\fc\x1cd\x1ee\x7f"
    ),
    harmless("NUL", bare(r'{"content":"a\u0000b"}'), adds="a\0b"),
    harmless("bytes that are not UTF-8", bare('{"content":"a!b"}').replace(b"!", b"\xff"), adds="a\ufffdb"),
    harmless("halves of a character", bare(r'{"content":"\ud83d"}') + bare(r'{"content":"\ude00"}'), adds="😀"),
    harmless("half of a character", bare(r'{"content":"a\ude00b"}'), adds="a\ufffdb"),
    harmless("characters of four bytes in tiny chunks", split(1), bare('{"content":"𝄞😀"}'), adds="𝄞😀"),
    # chunks, as they may be
    harmless("a role and nothing else", chunk({"role": "assistant"})),
    harmless("no choices", event({"id": "x"})),
    harmless("empty choices", event({"choices": []})),
    harmless("choices that are null", event({"choices": None})),
    harmless("a delta that is null", event({"choices": [{"delta": None}]})),
    harmless("content that is null", chunk({"content": None})),
    harmless("content that is empty", says("")),
    harmless("content that is a number", chunk({"content": 5})),
    harmless("choices that are text", event({"choices": "one"})),
    harmless("a call of a tool", chunk({"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "{}"}}]})),
    harmless("thoughts", reasoning("hm"), thinks="hm"),
    harmless("thoughts under their other name", reasoning("hm", key="reasoning"), thinks="hm"),
    harmless("usage that is text", chunk(usage={"prompt_tokens": "many"})),
    harmless("usage below zero", chunk(usage={"prompt_tokens": -1, "completion_tokens": -1, "total_tokens": -2})),
    harmless("usage that is null", chunk({}, usage=None)),
    harmless("another model", says("!", model="another"), adds="!"),
    harmless("a model with a strange name", says("!", model="\x1b[31m\u202e" + "x" * 10_000), adds="!"),
    harmless(
        "progress of the prompt", chunk({}, prompt_progress={"total": 9, "processed": 3, "cache": 0, "time_ms": 1})
    ),
    # in place of an answer
    refusing("a status line that is none", "PROVIDER_ERROR", wire(b"what?\r\n\r\n"), close()),
    refusing("an answer of HTTP/0.9", "PROVIDER_ERROR", wire(b"<html>Hello</html>"), close()),
    refusing("a head of 200 kB", "PROVIDER_ERROR", wire(HEAD + b"X: " + b"x" * 200_000 + b"\r\n\r\n"), close()),
    refusing("a head that breaks off", "PROVIDER_ERROR", wire(HEAD), close()),
    refusing("an empty body", "EMPTY_ANSWER", wire(HEAD + b"Content-Length: 0\r\n\r\n")),
    refusing("[DONE] and nothing else", "EMPTY_ANSWER", DONE),
    refusing("nothing but white space", "EMPTY_ANSWER", says(" ", "\n") + finish("stop") + DONE),
    refusing("no room for a word", "EMPTY_ANSWER", finish("length") + DONE),
    refusing(
        "a body shorter than promised",
        "ANSWER_CUT_SHORT",
        wire(HEAD + b"Content-Length: 9999\r\n\r\n" + says("a")),
        close(),
    ),
    refusing("a compressed body", "PROVIDER_ERROR", headers(content_encoding="gzip"), b"\x1f\x8b\x08\x00"),
    refusing("a page in place of a stream", "PROVIDER_ERROR", status(200, "<html>Sign in</html>", "text/html")),
    refusing(
        "a path that is not known", "PROVIDER_ERROR", status(200, {"error": "Unexpected endpoint or method. (POST /)"})
    ),
    refusing("JSON in place of a stream", "PROVIDER_ERROR", status(200, {"choices": []})),
    refusing("a redirect", "PROVIDER_ERROR", status(302, location="http://127.0.0.1:1/")),
    refusing("no content", "PROVIDER_ERROR", status(204)),
    refusing(
        "400 and no model loaded", "MODEL_NOT_LOADED", status(400, {"error": {"message": UNLOADED, "param": "model"}})
    ),
    refusing("400 and too little context", "CONTEXT_OVERFLOW", status(400, {"error": OVERFLOW})),
    refusing("400 and nothing", "PROVIDER_ERROR", status(400)),
    refusing("401", "PROVIDER_AUTH", status(401, {"error": {"message": "No.", "code": "invalid_api_key"}})),
    refusing("403 and a page", "PROVIDER_AUTH", status(403, "<html>No.</html>", "text/html")),
    refusing("404 and no such model", "MODEL_NOT_FOUND", status(404, {"error": {"message": "model 'x' not found"}})),
    refusing("404 and a page", "PROVIDER_ERROR", status(404, "<html>Nothing here.</html>", "text/html")),
    refusing("408", "PROVIDER_TIMEOUT", status(408)),
    refusing("413", "PROVIDER_ERROR", status(413, "too large", "text/plain")),
    refusing("429", "PROVIDER_BUSY", status(429, {"error": {"message": "Slow down."}}, retry_after="1")),
    refusing("500 and JSON", "PROVIDER_ERROR", status(500, {"error": {"message": "Internal error"}})),
    refusing("500 and broken JSON", "PROVIDER_ERROR", status(500, '{"error": {')),
    refusing("500 and 10 MB", "PROVIDER_ERROR", status(500, b"x" * 10_000_000, "text/plain")),
    refusing("502 and a page", "PROVIDER_ERROR", status(502, "<html>Bad gateway</html>", "text/html")),
    refusing("503 while it loads", "PROVIDER_BUSY", status(503, {"error": {"message": "Loading model", "code": 503}})),
    refusing("504", "PROVIDER_TIMEOUT", status(504)),
    refusing(
        "100 and 103 before the answer",
        None,
        wire(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\n"),
    ),
    refusing("a head without a type", None, headers(content_type=None)),
    refusing("a byte order mark", None, b"\xef\xbb\xbf"),
    refusing("an answer that ends with its connection", None, headers(framing="close")),
    Fault("thoughts between tags", (says("<th", "ink>", "hm", "</think>"),), thinks="hm", places=("before",)),
    # after the end
    Fault("[DONE] twice", (DONE + DONE,), places=("end",)),
    Fault("words after [DONE]", (DONE + says("and more"),), places=("end",)),
    Fault("an error after [DONE]", (DONE + error("No."),), places=("end",)),
    Fault("words after the finish", (says("!"),), adds="!", places=("end",)),
    Fault("the finish twice", (finish("length") + finish("stop"),), places=("end",)),
]
assert len(FAULTS) >= 60 and len({fault.name for fault in FAULTS}) == len(FAULTS)
CASES = [(fault, place) for fault in FAULTS for place in fault.places]


@pytest.mark.parametrize(("fault", "place"), [pytest.param(*case, id=f"{case[0].name}, {case[1]}") for case in CASES])
async def test_answer_ends_honestly_whatever_the_model_server_does(witness: Witness, fault: Fault, place: str) -> None:
    ann = witness.people[0]
    expected = fault.codes[PLACES.index(place)]
    conversation_id = await witness.question(ann)
    witness.upstream.enqueue(*([BEGIN[place]] if BEGIN[place] else []), *fault.steps, REST[place])
    events = await ann.answer(conversation_id, **MODEL)
    codes = [event.data["code"] for event in events if event.event == "error"]
    assert codes == ([] if expected is None else [expected])
    if expected is None:
        assert text(events) == ("one two" + fault.adds if BEGIN[place] else fault.adds + "one two")
        assert text(events, "reasoning") == fault.thinks
    elif BEGIN[place]:
        assert text(events).startswith("one two")
    await witness.nothing_lost(ann, conversation_id, events)


REFERENCE = (
    bare('{"reasoning":"hm"}') + bare(r'{"content":"a\u00df\ud83d"}') + bare(r'{"content":"\ude00 ja"}') + bare("{}")
)
REFERENCE = REFERENCE.replace(b'"delta":{}', b'"delta":{},"finish_reason":"stop"') + DONE


class Moment(Gate):
    """A gate that opens by itself: what comes before it and what comes after are not read together."""

    async def _pass(self) -> None:
        await asyncio.sleep(0.001)


async def again(person: Person, conversation_id: int, **fields: Any) -> list[Event]:
    """The events of another version of the answer."""
    made = good(await person.post("/chat/retry", json={"conversation_id": conversation_id, **MODEL, **fields}))
    async with person.resuming(made["generation_id"]) as events:
        return [event async for event in events]


@contextlib.contextmanager
def answering(upstream: Upstream, *script: Step) -> Iterator[None]:
    """To whatever it is asked."""
    usual, upstream.default = upstream.default, list(script)
    try:
        yield
    finally:
        upstream.default = usual


async def at_every_byte(witness: Witness, check: Callable[[int, list[Event]], None], *script: Step) -> None:
    """An answer for the places in REFERENCE, several at a time. The script finds the place in the request, as its seed."""
    ann = witness.people[0]
    chosen = some(len(REFERENCE))[1:]
    places = iter(chosen)

    async def lane() -> tuple[int, list[Event]]:
        conversation_id = await witness.question(ann)
        for place in places:
            events = await again(ann, conversation_id, seed=place)
            check(place, events)
        return conversation_id, events

    with answering(witness.upstream, *script):
        async with asyncio.TaskGroup() as group:
            lanes = [group.create_task(lane()) for _ in range(min(4, len(chosen)))]
    for one in lanes:
        await witness.nothing_lost(ann, *one.result())


def until_place(request: Request) -> bytes:
    return REFERENCE[: request.json["seed"]]


def from_place(request: Request) -> bytes:
    return REFERENCE[request.json["seed"] :]


async def test_a_stream_means_the_same_wherever_it_is_split(witness: Witness) -> None:
    def check(place: int, events: list[Event]) -> None:
        assert (text(events, "reasoning"), text(events)) == ("hm", "aß😀 ja"), place

    await at_every_byte(witness, check, until_place, pause(Moment()), from_place)


async def test_a_stream_that_breaks_off_anywhere_leaves_what_had_come(witness: Witness) -> None:
    enough = REFERENCE.index(b'"stop"}]}') + len(b'"stop"}]}')

    def check(place: int, events: list[Event]) -> None:
        assert "aß😀 ja".startswith(text(events).removesuffix("\ufffd")), place
        assert events[-1].data["status"] == ("ok" if place >= enough else "error"), place
        assert len(text(events)) >= REFERENCE[:place].count(b"content") - 1, place

    await at_every_byte(witness, check, until_place, close())


async def test_mutated_streams_never_cost_more_than_themselves(witness: Witness) -> None:
    """Those that a parser can be mutated with are in test_wire.py, by the thousand: these go through the whole service."""
    ann = witness.people[0]
    conversation_id = await witness.question(ann)
    dice = random.Random(20261123)
    for _ in some(150):
        stream = bytearray(WHOLE if dice.random() < 0.5 else REFERENCE)
        for _ in range(dice.randint(1, 8)):
            start = dice.randrange(len(stream))
            stream[start : start + dice.choice((0, 0, 1, 1, 4, 40))] = dice.choice(
                (
                    b"",
                    b"\n",
                    b"\r",
                    b"\xff",
                    b'"',
                    b"{",
                    b"\0",
                    b"data: ",
                    bytes([dice.randrange(256)]),
                    bytes(stream[-60:]),
                )
            )
        witness.upstream.enqueue(bytes(stream))
        events = await again(ann, conversation_id)
        well_formed(events)
        message = (await ann.messages(conversation_id))[-1]
        assert (message["content"], message["reasoning"]) == (text(events), text(events, "reasoning")), bytes(stream)
    await witness.nothing_lost(ann, conversation_id, events)


# ---- group A: servers that say nothing, or never enough

DRIP = tuple(step for _ in range(400) for step in (pause(Moment()), b": still here\n\n"))
SILENCES: list[tuple[str, str | None, str, tuple[Step, ...]]] = [
    ("no head", "PROVIDER_TIMEOUT", "", (hang(),)),
    ("half a head", "PROVIDER_TIMEOUT", "", (wire(HEAD), hang())),
    ("a head", "PROVIDER_TIMEOUT", "", (headers(), hang())),
    ("comments and no word", "PROVIDER_TIMEOUT", "", (*DRIP * 20, hang())),
    ("a role and no word", "PROVIDER_TIMEOUT", "", (chunk({"role": "assistant"}), hang())),
    ("silence after two words", "PROVIDER_TIMEOUT", "one two", (BEGIN["middle"], hang())),
    ("comments after two words", "PROVIDER_TIMEOUT", "one two", (BEGIN["middle"], *DRIP * 20, hang())),
    ("silence after the finish", None, "one two", (BEGIN["end"], hang())),
    ("silence after [DONE]", None, "one two", (WHOLE, hang())),
    ("half an error", "PROVIDER_ERROR", "", (wire(b"HTTP/1.1 500 No\r\nContent-Length: 99\r\n\r\nIt"), close())),
    ("comments before the answer", None, "one two", (*DRIP[:20], WHOLE)),
]


async def test_silence_is_ended_by_the_deadlines(tmp_path: Path, upstream: Upstream) -> None:
    settings = {"first_token_seconds": "1", "between_tokens_seconds": "2.5", "lmstudio_concurrency": "20"}
    async with watched(tmp_path, upstream, **settings) as witness:
        ann, readers = witness.people[0], []
        for number, (_, _, _, steps) in enumerate(SILENCES, upstream.count(CHAT) + 1):
            conversation_id = await witness.question(ann)
            upstream.enqueue(*steps)
            readers.append((conversation_id, asyncio.create_task(ann.answer(conversation_id, **MODEL))))
            await upstream.received(number)
        for (name, expected, said, _), (conversation_id, reader) in zip(SILENCES, readers, strict=True):
            events = await reader
            codes = [event.data["code"] for event in events if event.event == "error"]
            assert (codes, text(events)) == ([expected] if expected else [], said), name
            await witness.nothing_lost(ann, conversation_id, events)


async def test_servers_that_are_not_there_are_told_apart(tmp_path: Path, upstream: Upstream) -> None:
    full = socket.create_server(("127.0.0.1", 0), backlog=0)
    with full, contextlib.ExitStack() as stack:
        for _ in range(4):  # from now on nobody gets in, and nobody is told
            caller = stack.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(full.getsockname())
        urls = {
            "refused": (refused_url(), "PROVIDER_UNREACHABLE"),
            "nameless": ("http://nobody.invalid", "PROVIDER_UNREACHABLE"),
            "deaf": (f"http://127.0.0.1:{full.getsockname()[1]}", "PROVIDER_UNREACHABLE"),
            "no-http": (f"https://127.0.0.1:{upstream.port}", "PROVIDER_UNREACHABLE"),
        }
        tables = [f'[[providers]]\nid = "{name}"\nurl = "{url}"\n' for name, (url, _) in urls.items()]
        (tmp_path / "config.toml").write_text("\n".join(tables))
        async with watched(tmp_path, upstream) as witness:
            ann = witness.people[0]

            async def asked(name: str) -> tuple[str, int, list[Event]]:
                conversation_id = await witness.question(ann)
                return name, conversation_id, await ann.answer(conversation_id, provider_id=name, model="m")

            for name, conversation_id, events in await asyncio.gather(*map(asked, urls)):
                assert [event.data["code"] for event in events if event.event == "error"] == [urls[name][1]]
                await witness.nothing_lost(ann, conversation_id, events)


async def test_an_answer_without_end_is_ended(tmp_path: Path, upstream: Upstream) -> None:
    flood = says("flood ") * 1000
    async with watched(tmp_path, upstream, answer_max_bytes="10000") as witness:
        ann = witness.people[0]
        conversation_id = await witness.question(ann)
        upstream.enqueue(*[flood] * 100)
        events = await ann.answer(conversation_id, **MODEL)
        assert [event.data["code"] for event in events if event.event == "error"] == ["ANSWER_TOO_LARGE"]
        assert 9_000 < len(text(events)) < 10_000 + len(flood)  # the other events count too
        await witness.nothing_lost(ann, conversation_id, events)


async def test_answer_of_too_many_events_is_ended(tmp_path: Path, upstream: Upstream) -> None:
    async with watched(tmp_path, upstream, answer_max_bytes="20000") as witness:
        ann = witness.people[0]
        conversation_id = await witness.question(ann)
        upstream.enqueue(*[(thinks("x") + says("y")) * 100] * 100)
        events = await ann.answer(conversation_id, **MODEL)
        assert [event.data["code"] for event in events if event.event == "error"] == ["ANSWER_TOO_LARGE"]
        assert 20_000 / EVENT_BYTES < len(events) < 20_000 / EVENT_BYTES + 300
        await witness.nothing_lost(ann, conversation_id, events)


async def test_a_prompt_that_is_read_without_end_is_ended(tmp_path: Path, upstream: Upstream) -> None:
    """What a server tells of its progress is kept, too."""
    async with watched(tmp_path, upstream, answer_max_bytes="10000") as witness:
        ann = witness.people[0]
        conversation_id = await witness.question(ann)
        progress = [chunk({}, prompt_progress={"processed": number, "total": 10**6}) for number in range(10_000)]
        upstream.enqueue(*progress, *SLOWLY)
        events = await ann.answer(conversation_id, **MODEL)
        assert [event.data["code"] for event in events if event.event == "error"] == ["ANSWER_TOO_LARGE"]
        assert len(events) < 1000
        await witness.nothing_lost(ann, conversation_id, events)


# ---- group B: the client

WORDS = [f"{number} " for number in range(20)]
WRITING: tuple[Step, ...] = tuple(step for word in WORDS for step in (says(word), pause(Moment())))
SLOWLY: tuple[Step, ...] = (*WRITING, finish("stop"), usage(7, 20), DONE)
Client = Callable[[Witness, int], Awaitable[None]]
CLIENTS: list[tuple[Client, int]] = []


def cases(count: int) -> Callable[[Client], Client]:
    """The fault, in so many variants: the function gets the number of each."""

    def add(client: Client) -> Client:
        CLIENTS.append((client, count))
        return client

    return add


async def ended(witness: Witness, person: Person, conversation_id: int) -> list[Event]:
    """All events of the newest answer, once it has ended."""
    generation_id = (await person.messages(conversation_id))[-1]["generation_id"]
    async with person.resuming(generation_id) as events:
        return [event async for event in events]


async def first(events: AsyncIterator[Event], count: int) -> list[Event]:
    seen: list[Event] = []
    while len(seen) < count:
        try:
            seen.append(await anext(events))
        except StopAsyncIteration:
            break
    return seen


async def words(events: AsyncIterator[Event], count: int) -> list[Event]:
    """The events until so many words have come: how many of them an event brings depends on how busy the machine is."""
    seen: list[Event] = []
    while len(text(seen).split()) < count:
        seen.append(await anext(events))
    return seen


@contextlib.asynccontextmanager
async def by_hand(person: Person, method: str, path: str, body: bytes = b"", length: int | None = None) -> Any:
    """A request on a socket of its own."""
    url = person.base_url
    reader, writer = await asyncio.open_connection(url.host, url.port, limit=2**20)
    cookies = "; ".join(f"{cookie.name}={cookie.value}" for cookie in person.cookies.jar)
    head = f"{method} {path} HTTP/1.1\r\nHost: {url.host}:{url.port}\r\nCookie: {cookies}\r\n"
    head += f"X-CSRF-Token: {person.headers['X-CSRF-Token']}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


@cases(51)
async def leaves_at_an_event(witness: Witness, number: int) -> None:
    ann = witness.people[0]
    conversation_id = await witness.question(ann)
    witness.upstream.enqueue(*SLOWLY)
    async with ann.streaming(conversation_id, **MODEL) as stream:
        await first(stream, number)
    events = await ended(witness, ann, conversation_id)
    assert text(events) == "".join(WORDS)
    await witness.nothing_lost(ann, conversation_id, events)


@cases(20)
async def resets_its_connection(witness: Witness, number: int) -> None:
    ann = witness.people[0]
    conversation_id = await witness.question(ann)
    witness.upstream.enqueue(*SLOWLY)
    path, body = f"/conversations/{conversation_id}/stream", json.dumps(MODEL).encode()
    async with by_hand(ann, "POST", path, body) as (reader, writer):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with contextlib.suppress(asyncio.IncompleteReadError):  # it has read it all, in fewer events
            for _ in range(1 + number):
                await reader.readuntil(b"\n\n" if number else b"\r\n\r\n")
    events = await ended(witness, ann, conversation_id)
    assert text(events) == "".join(WORDS)
    await witness.nothing_lost(ann, conversation_id, events)


@cases(10)
async def closes_its_half_of_the_connection(witness: Witness, number: int) -> None:
    ann = witness.people[0]
    conversation_id = await witness.question(ann)
    witness.upstream.enqueue(*SLOWLY)
    path, body = f"/conversations/{conversation_id}/stream", json.dumps(MODEL).encode()
    async with by_hand(ann, "POST", path, body) as (reader, writer):
        for _ in range(1 + number):
            await reader.readuntil(b"\n\n")
        writer.write_eof()
        await reader.read()
    events = await ended(witness, ann, conversation_id)
    assert text(events) == "".join(WORDS)
    await witness.nothing_lost(ann, conversation_id, events)


@cases(10)
async def cancels_before_the_first_token(witness: Witness, number: int) -> None:
    ann = witness.people[0]
    conversation_id = await witness.question(ann)
    witness.upstream.enqueue(*((headers(), hang()) if number % 2 else (hang(),)))
    async with ann.streaming(conversation_id, **MODEL) as events:
        seen = await first(events, 1 + number // 5)
        good(await ann.post(f"/chat/cancel/{seen[0].data['generation_id']}"))
        await witness.upstream.closed()
        seen += [event async for event in events]
    assert (seen[-1].data["status"], text(seen)) == ("canceled", "")
    await witness.nothing_lost(ann, conversation_id, seen)


@cases(20)
async def cancels_in_the_middle(witness: Witness, number: int) -> None:
    ann = witness.people[0]
    conversation_id = await witness.question(ann)
    witness.upstream.enqueue(*WRITING, hang())
    async with ann.streaming(conversation_id, **MODEL) as events:
        seen = await words(events, 1 + number // 2)
        good(await ann.post(f"/chat/cancel/{seen[0].data['generation_id']}"))
        await witness.upstream.closed()
        assert (await ann.messages(conversation_id))[-1]["status"] == "canceled"
        seen += [event async for event in events]
    assert seen[-1].data["status"] == "canceled" and "".join(WORDS).startswith(text(seen)) and text(seen)
    await witness.nothing_lost(ann, conversation_id, seen)


@cases(10)
async def cancels_as_the_answer_ends(witness: Witness, number: int) -> None:
    """Whoever comes first: either it was cancelled, or there was nothing to cancel any more."""
    ann = witness.people[0]
    conversation_id = await witness.question(ann)
    gate = Gate()
    witness.upstream.enqueue(says("one ", "two"), pause(gate), finish("stop"), DONE)
    async with ann.streaming(conversation_id, **MODEL) as events:
        seen = await first(events, 4)
        gate.open()
        for _ in range(number):
            await asyncio.sleep(0)
        answer = await ann.post(f"/chat/cancel/{seen[0].data['generation_id']}")
        seen += [event async for event in events]
    assert (answer.status_code, seen[-1].data["status"]) in ((200, "canceled"), (404, "ok"))
    assert text(seen) == "one two"
    await witness.nothing_lost(ann, conversation_id, seen)


@cases(10)
async def cancels_several_times_at_once(witness: Witness, number: int) -> None:
    ann = witness.people[0]
    conversation_id = await witness.question(ann)
    witness.upstream.enqueue(says("one"), hang())
    async with ann.streaming(conversation_id, **MODEL) as events:
        seen = await first(events, 1 + number % 4)
        path = f"/chat/cancel/{seen[0].data['generation_id']}"
        answers = await asyncio.gather(*(ann.post(path) for _ in range(2 + number)))
        seen += [event async for event in events]
    statuses = {answer.status_code for answer in answers}
    assert 200 in statuses and statuses <= {200, 404}  # 404: it had arrived when all was over
    assert code(await ann.post(path)) == (404, "GENERATION_NOT_FOUND")
    await witness.nothing_lost(ann, conversation_id, seen)


@cases(10)
async def cancels_what_is_not_its_own_to_cancel(witness: Witness, number: int) -> None:
    ann, bob = witness.people[:2]
    conversation_id = await witness.question(ann)
    gate = Gate()
    witness.upstream.enqueue(says("one "), pause(gate), says("two"), finish("stop"), DONE)
    async with ann.streaming(conversation_id, **MODEL) as events:
        seen = await first(events, 4)
        mine = seen[0].data["generation_id"]
        strangers = (mine, str(uuid.uuid4()), mine.upper(), f"{mine}x", "x" * 2000, "%00", "..", "0", "-1", "💥")
        refused = await bob.post(f"/chat/cancel/{strangers[number]}")
        assert refused.status_code == 404
        gate.open()
        seen += [event async for event in events]
    assert (seen[-1].data["status"], text(seen)) == ("ok", "one two")
    await witness.nothing_lost(ann, conversation_id, seen)


@cases(5)
async def stops_reading(witness: Witness, number: int) -> None:
    """Its own connection stands still, and nothing else."""
    ann = witness.people[0]
    conversation_id = await witness.question(ann)
    flood = says("x" * 1000) * 1000
    witness.upstream.enqueue(flood, finish("stop"), DONE)
    path, body = f"/conversations/{conversation_id}/stream", json.dumps(MODEL).encode()
    async with by_hand(ann, "POST", path, body) as (reader, writer):
        await reader.readuntil(b"event: ping")
        writer.transport.pause_reading()
        await until(lambda: not witness.running.state.hub.running, "the answer to end")
        events = await ended(witness, ann, conversation_id)
    assert len(text(events)) == 1_000_000
    await witness.nothing_lost(ann, conversation_id, events)


@cases(20)
async def reads_in_two_tabs(witness: Witness, number: int) -> None:
    ann = witness.people[0]
    conversation_id = await witness.question(ann)
    witness.upstream.enqueue(*SLOWLY)
    async with ann.streaming(conversation_id, **MODEL) as one:
        seen = await first(one, 1 + number)
        generation_id = seen[0].data["generation_id"]
        other = ann.resuming(generation_id) if number % 2 else ann.streaming(conversation_id, **MODEL)
        async with other as events:
            theirs = [event async for event in events]
        seen += [event async for event in one]
    assert seen == theirs and text(seen) == "".join(WORDS)
    await witness.nothing_lost(ann, conversation_id, seen)


@cases(5)
async def submits_twenty_times_at_once(witness: Witness, number: int) -> None:
    ann = witness.people[0]
    conversation_id = await witness.question(ann)
    before = witness.upstream.count(CHAT)
    witness.upstream.enqueue(*SLOWLY)
    answers = await asyncio.gather(*(ann.answer(conversation_id, **MODEL) for _ in range(20)))
    assert witness.upstream.count(CHAT) == before + 1
    assert all(events == answers[0] for events in answers) and text(answers[0]) == "".join(WORDS)
    await witness.nothing_lost(ann, conversation_id, answers[0])


@cases(20)
async def asks_for_more_while_it_is_answered(witness: Witness, number: int) -> None:
    ann = witness.people[0]
    conversation_id = await witness.question(ann)
    gate = Gate()
    witness.upstream.enqueue(says("one "), pause(gate), says("two"), finish("stop"), DONE)
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
                await witness.say(ann, conversation_id, "And why is it red?")
                refused = await ann.post(stream, json=MODEL)
        assert code(refused) == (409, "GENERATION_ACTIVE")
        gate.open()
        seen += [event async for event in events]
    assert (seen[-1].data["status"], text(seen)) == ("ok", "one two")
    await witness.nothing_lost(ann, conversation_id, seen)


@cases(20)
async def deletes_the_conversation(witness: Witness, number: int) -> None:
    ann = witness.people[0]
    conversation_id = await witness.question(ann)
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
        await witness.nothing_lost(ann, conversation_id)
    else:
        good(await ann.post(f"/conversations/{conversation_id}/restore"))
        await witness.nothing_lost(ann, conversation_id, seen)


@cases(6)
async def is_logged_out_for_good(witness: Witness, number: int) -> None:
    ann, bob = witness.people[:2]
    conversation_id = await witness.question(bob)
    witness.upstream.enqueue(says("one"), hang())
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
    again = await witness.running.login("bob")
    bob.cookies, bob.headers["X-CSRF-Token"] = again.cookies, again.headers["X-CSRF-Token"]
    await witness.nothing_lost(bob, conversation_id, seen)


@cases(1)
async def logs_out_on_one_device_only(witness: Witness, number: int) -> None:
    bob = witness.people[1]
    phone = await witness.running.login("bob")
    conversation_id = await witness.question(bob)
    gate = Gate()
    witness.upstream.enqueue(says("one "), pause(gate), says("two"), finish("stop"), DONE)
    async with bob.streaming(conversation_id, **MODEL) as events:
        seen = await first(events, 4)
        good(await phone.post("/auth/logout"))
        gate.open()
        seen += [event async for event in events]
    assert (seen[-1].data["status"], text(seen)) == ("ok", "one two")
    await witness.nothing_lost(bob, conversation_id, seen)


@cases(50)
async def comes_back_after_an_event(witness: Witness, number: int) -> None:
    ann = witness.people[0]
    conversation_id = await witness.question(ann)
    witness.upstream.enqueue(*SLOWLY)
    async with ann.streaming(conversation_id, **MODEL) as events:
        seen = await first(events, 1 + number // 2)
    async with ann.resuming(seen[0].data["generation_id"], seen[-1].id or 0) as events:
        seen += [event async for event in events]
    assert text(seen) == "".join(WORDS)
    await witness.nothing_lost(ann, conversation_id, seen)


@cases(32)
async def sends_half_a_request(witness: Witness, number: int) -> None:
    """Cut off anywhere, or never what its head had promised."""
    ann = witness.people[0]
    conversation_id = await witness.question(ann)
    before = witness.upstream.count(CHAT)
    body = json.dumps(MODEL).encode()
    path = f"/conversations/{conversation_id}/{'stream' if number % 2 else 'messages'}"
    async with by_hand(ann, "POST", path, body[: len(body) * number // 32], length=len(body)) as (reader, writer):
        if number % 3:
            writer.write_eof()
            await reader.read()
    assert witness.upstream.count(CHAT) == before and len(await ann.messages(conversation_id)) == 1
    await witness.nothing_lost(ann, conversation_id)


assert sum(count for _, count in CLIENTS) == 300


@pytest.mark.parametrize(("client", "count"), [pytest.param(*case, id=case[0].__name__) for case in CLIENTS])
async def test_nothing_is_lost_when_a_client(witness: Witness, client: Client, count: int) -> None:
    for number in some(count):
        await client(witness, number)


@pytest.mark.parametrize("what", ["delete", "purge", "logout"])
@pytest.mark.parametrize("begins_first", [True, False])
async def test_nothing_begins_after_an_end_that_it_met(witness: Witness, what: str, begins_first: bool) -> None:
    """Both wait for the database at once. Whoever comes first: when the end is acknowledged, nothing runs any more."""
    bob, running = witness.people[1], witness.running
    conversation_id = await witness.question(bob)
    path = f"/conversations/{conversation_id}"
    ends: dict[str, Callable[[], Coroutine[Any, Any, httpx.Response]]] = {
        "delete": lambda: bob.delete(path),
        "purge": lambda: bob.delete(f"{path}?purge=true"),
        "logout": lambda: bob.post("/auth/logout"),
    }
    requests = [lambda: bob.post(f"{path}/stream", json=MODEL), ends[what]]
    with answering(witness.upstream, says("one"), hang()):
        tasks = []
        async with held(running) as waiting:
            for number, request in enumerate(requests if begins_first else reversed(requests), 1):
                tasks.append(asyncio.create_task(request()))
                await until(partial(waiting, number), "both to wait for the database")
        begun, ended = tasks if begins_first else reversed(tasks)
        good(await ended)
        assert not running.state.hub.running, "it began all the same"
        refused = await begun
        assert refused.status_code in (401, 404) or b'"status": "canceled"' in refused.content
    if what == "logout":
        again = await witness.running.login("bob")
        bob.cookies, bob.headers["X-CSRF-Token"] = again.cookies, again.headers["X-CSRF-Token"]
    if what == "purge":
        witness.forget(bob, conversation_id)
    await witness.nothing_lost(bob, conversation_id)


async def test_a_request_that_outlasts_its_session_begins_nothing(witness: Witness) -> None:
    """It was let in by its head; when its body has come, nobody is signed in any more."""
    bob = witness.people[1]
    conversation_id = await witness.question(bob)
    body = json.dumps(MODEL).encode()
    async with by_hand(bob, "POST", f"/conversations/{conversation_id}/stream", body[:5], len(body)) as (
        reader,
        writer,
    ):
        await until(lambda: witness.running.server.server_state.tasks, "the head to arrive")
        good(await bob.post("/auth/logout"))
        writer.write(body[5:])
        assert b" 401 " in await reader.readline()
    again = await witness.running.login("bob")
    bob.cookies, bob.headers["X-CSRF-Token"] = again.cookies, again.headers["X-CSRF-Token"]
    await witness.nothing_lost(bob, conversation_id)


async def test_a_caller_who_is_cancelled_leaves_no_answer_that_nobody_writes(witness: Witness) -> None:
    ann, hub = witness.people[0], witness.running.state.hub
    (user,) = [user for user in good(await ann.get("/admin/users"))["users"] if user["username"] == "ann"]
    for steps in range(12):
        conversation_id = await witness.question(ann)
        asking = asyncio.create_task(
            hub.answer(user["id"], conversation_id, Wanted(MODEL["provider_id"], MODEL["model"]))
        )
        for _ in range(steps):
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        events = await ann.answer(conversation_id, **MODEL)
        assert text(events) == "Hello from upstream."
        await witness.nothing_lost(ann, conversation_id, events)


async def test_an_answer_can_be_stopped_before_its_first_step(witness: Witness) -> None:
    ann, state = witness.people[0], witness.running.state
    conversation_id = await witness.question(ann)
    user_id = await state.database.read(
        lambda conn: conn.execute("SELECT id FROM users WHERE username = 'ann'").fetchone()[0]
    )
    begun = await state.database.write(
        queries.generations.begin_answer, user_id, conversation_id, Wanted("lmstudio", "m"), ["lmstudio"]
    )
    assert isinstance(begun, queries.generations.Begun)
    generation = Generation(state.config, state.providers, user_id, conversation_id, begun)
    state.hub._run(generation)
    generation.stop("canceled")  # in the same step of the event loop
    events = await ended(witness, ann, conversation_id)
    assert [event.event for event in events] == ["ping", "done"] and events[-1].data["status"] == "canceled"
    await witness.nothing_lost(ann, conversation_id, events)


async def test_hundreds_of_cancelled_answers_leave_nothing_behind(witness: Witness) -> None:
    """At every moment of their lives: in the queue, before the head, before the first token, in the middle."""
    ann = witness.people[0]
    script = (pause(Moment()), headers(), pause(Moment()), *WRITING, hang())
    numbers = iter(some(500))

    async def lane() -> int:
        conversation_id = await witness.question(ann)
        for number in numbers:
            made = good(await ann.post("/chat/retry", json={"conversation_id": conversation_id, **MODEL}))
            if number % 3:
                async with ann.resuming(made["generation_id"]) as events:
                    await words(events, number % 6) if number % 2 else await first(events, number % 4)
            good(await ann.post(f"/chat/cancel/{made['generation_id']}"))
        return conversation_id

    with answering(witness.upstream, *script):
        async with asyncio.TaskGroup() as group:
            lanes = [group.create_task(lane()) for _ in range(6)]
    for one in lanes:
        await witness.nothing_lost(ann, one.result(), await ended(witness, ann, one.result()))


async def test_a_reader_that_stops_reading_for_ever_is_left(
    tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "STALL_SECONDS", 0.2)
    async with watched(tmp_path, upstream, answer_max_bytes="20000000") as witness:
        ann = witness.people[0]
        conversation_id = await witness.question(ann)
        gate = Gate()
        upstream.enqueue(
            *[says("x" * 10_000) * 100] * 10, pause(gate), finish("stop"), DONE
        )  # more than the kernel takes
        path, body = f"/conversations/{conversation_id}/stream", json.dumps(MODEL).encode()
        async with by_hand(ann, "POST", path, body) as (reader, writer):
            await reader.readuntil(b"event: ping")
            writer.transport.pause_reading()
            connections = witness.running.server.server_state.connections
            assert len(connections) == 1
            await gate.reached()
            await until(lambda: not connections, "the connection to be closed")
        monkeypatch.setattr(
            connection, "STALL_SECONDS", PATIENCE
        )  # what follows reads in this process, which may be busy
        gate.open()
        events = await ended(witness, ann, conversation_id)
        assert len(text(events)) == 10_000_000
        await witness.nothing_lost(ann, conversation_id, events)


async def test_a_slow_reader_is_not_left(tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "STALL_SECONDS", 1.0)
    async with watched(tmp_path, upstream, answer_max_bytes="20000000") as witness:
        ann = witness.people[0]
        conversation_id = await witness.question(ann)
        upstream.enqueue(*[says("x" * 10_000) * 100] * 10, finish("stop"), DONE)
        path, body = f"/conversations/{conversation_id}/stream", json.dumps(MODEL).encode()
        received = 0
        async with by_hand(ann, "POST", path, body) as (reader, _):
            while data := await reader.read(400_000):
                received += len(data)
                if data.endswith(b"0\r\n\r\n"):
                    break
                await asyncio.sleep(0.08)
        assert received > 10_000_000
        monkeypatch.setattr(connection, "STALL_SECONDS", PATIENCE)
        await witness.nothing_lost(ann, conversation_id, await ended(witness, ann, conversation_id))


# ---- group D: the disk


def fill(conn: sqlite3.Connection) -> None:
    """From now on every page more is one too many: SQLite's own limit, which it tells as a full disk."""
    conn.execute(f"PRAGMA max_page_count = {conn.execute('PRAGMA page_count').fetchone()[0]}")


def free(conn: sqlite3.Connection) -> None:
    conn.execute("PRAGMA max_page_count = 1073741823")


LONG = "".join(f"{number:08} " for number in range(20_000))  # needs new pages


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(chat, "SAVE_SECONDS", 0.05)


async def test_a_disk_that_is_full_for_a_while_costs_nothing(
    tmp_path: Path, upstream: Upstream, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    async with Running(tmp_path, lmstudio_url=upstream.url) as running:
        ann, database = await running.first(), running.state.database
        conversation_id = await ann.conversation("Why?")
        gate = Gate()
        upstream.enqueue(says(LONG), pause(gate), says("the end"), finish("stop"), DONE)
        await database.write(fill)
        reader = asyncio.create_task(ann.answer(conversation_id, **MODEL))
        await until(lambda: "SQLITE_FULL" in caplog.text)
        await database.write(free)
        await until(lambda: all(one.log.saved == one.log.mark for one in running.state.hub.running.values()))
        gate.open()
        events = await reader
        assert (text(events), events[-1].data["status"]) == (f"{LONG}the end", "ok")
        assert (await ann.messages(conversation_id))[-1]["content"] == text(events)


@pytest.mark.parametrize("canceled", [False, True])
async def test_an_answer_that_the_full_disk_does_not_take_is_told_kept_and_saved_later(
    tmp_path: Path, upstream: Upstream, impatient: None, canceled: bool
) -> None:
    async with Running(tmp_path, lmstudio_url=upstream.url) as running:
        ann, database, hub = await running.first(), running.state.database, running.state.hub
        conversation_id = await ann.conversation("Why?")
        gate = Gate()
        upstream.enqueue(says(LONG), pause(gate), finish("stop"), usage(9, 3), DONE)
        async with ann.streaming(conversation_id, **MODEL) as stream:
            events = await first(stream, 4)
            await database.write(fill)
            if canceled:
                refused = await ann.post(f"/chat/cancel/{events[0].data['generation_id']}")
                assert code(refused) == (503, "STORAGE_UNAVAILABLE")
            gate.open()
            events += [event async for event in stream]
        well_formed(events)
        assert events[-1].data["status"] == "error"
        assert [event.data["code"] for event in events if event.event == "error"] == ["STORAGE_UNAVAILABLE"]
        generation_id = events[0].data["generation_id"]

        async def again() -> tuple[list[Event], dict[str, Any]]:
            async with ann.resuming(generation_id) as replayed:
                return [event async for event in replayed], (await ann.messages(conversation_id))[-1]

        kept, shown = await again()
        assert kept == events and hub.unsaved
        assert (shown["content"], shown["status"], shown["error"]["code"]) == (LONG, "error", "STORAGE_UNAVAILABLE")
        assert code(await ann.post(f"/conversations/{conversation_id}/stream", json=MODEL)) == (
            503,
            "STORAGE_UNAVAILABLE",
        )
        await database.write(free)
        await until(lambda: not hub.unsaved)
        saved, stored = await again()
        assert saved == events, "what was told stays told"
        assert (stored["content"], stored["error"]) == (LONG, None)
        assert stored["status"] == ("canceled" if canceled else "complete"), "the answer is what it was"
        assert text(await ann.answer(conversation_id, **MODEL)) == ("Hello from upstream." if canceled else LONG)


async def test_what_the_disk_never_took_is_what_the_last_commit_had(
    tmp_path: Path, upstream: Upstream, impatient: None
) -> None:
    async with Running(tmp_path, lmstudio_url=upstream.url) as running:
        ann, database = await running.first(), running.state.database
        conversation_id = await ann.conversation("Why?")
        gate = Gate()
        upstream.enqueue(says("one "), pause(gate), says(LONG), hang())
        async with ann.streaming(conversation_id, **MODEL) as stream:
            events = await first(stream, 4)
            await until(lambda: all(one.log.saved == one.log.mark for one in running.state.hub.running.values()))
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
        async with ann.resuming(events[0].data["generation_id"], events[-1].id or 0) as stream:
            again = [event async for event in stream]
        assert again[0].event == "reset" and text(again) == "one " and again[-1].data["status"] == "interrupted"


@contextlib.asynccontextmanager
async def held(running: Running) -> AsyncIterator[Callable[[int], bool]]:
    """The database is slow: nothing is written while the block runs. Yields whether so many wait for it."""
    database, begun, release = running.state.database, threading.Event(), threading.Event()

    def hold(_: object) -> bool:
        begun.set()
        return release.wait(PATIENCE)

    holding = asyncio.create_task(database.write(hold))
    await until(begun.is_set)
    try:
        yield lambda count: database._writer._tx.qsize() >= count
    finally:
        release.set()
        assert await holding


async def test_what_ends_while_the_database_is_slow_is_not_saved_twice(
    tmp_path: Path, upstream: Upstream, impatient: None
) -> None:
    async with Running(tmp_path, lmstudio_url=upstream.url) as running:
        ann = await running.first()
        conversation_id, other_id = [await ann.conversation("Why?") for _ in range(2)]
        gates = Gate(), Gate()
        for gate in gates:
            upstream.enqueue(says("one "), pause(gate), says("two"), finish("stop"), DONE)
        async with ann.streaming(conversation_id, **MODEL) as stream, ann.streaming(other_id, **MODEL) as other:
            events, others = await first(stream, 4), await first(other, 4)
            async with held(running) as waiting:
                gates[0].open()
                await until(lambda: waiting(1), "the end to wait for the database")
                gates[1].open()
                await until(lambda: waiting(2), "the other's end, or what is new of it")
                await asyncio.sleep(2 * chat.SAVE_SECONDS)  # in which the saver would save what has ended
            events += [event async for event in stream]
            others += [event async for event in other]
        assert text(events) == text(others) == "one two"
        parts = "SELECT count(*) FROM generation_parts"
        assert await running.state.database.read(lambda conn: conn.execute(parts).fetchone()[0]) == 0


async def test_an_answer_that_begins_as_the_service_stops_is_ended_too(tmp_path: Path, upstream: Upstream) -> None:
    async with Running(tmp_path, lmstudio_url=upstream.url) as running:
        ann, hub = await running.first(), running.state.hub
        conversation_id = await ann.conversation("Why?")
        async with held(running) as waiting:
            asking = asyncio.create_task(ann.answer(conversation_id, **MODEL))
            await until(lambda: waiting(1), "the answer to begin")
            running.server.should_exit = True
            await until(lambda: hub.closing)
        assert (await asking)[-1].data["status"] == "interrupted"
    whole(tmp_path / "fireside.db")


async def test_an_answer_waits_for_a_database_that_another_program_holds(tmp_path: Path, upstream: Upstream) -> None:
    async with Running(tmp_path, lmstudio_url=upstream.url) as running:
        ann = await running.first()
        conversation_id = await ann.conversation("Why?")
        gate = Gate()
        upstream.enqueue(says("one "), pause(gate), says("two"), finish("stop"), DONE)
        with contextlib.closing(sqlite3.connect(running.config.database, isolation_level=None)) as other:
            async with ann.streaming(conversation_id, **MODEL) as stream:
                events = await first(stream, 4)
                other.execute("BEGIN IMMEDIATE")
                gate.open()
                events += await first(stream, 1)
                other.execute("ROLLBACK")
                events += [event async for event in stream]
        assert (text(events), events[-1].data["status"]) == ("one two", "ok")
