"""Whatever a model server or a client does wrong: an honest end, the text kept, nothing lost, nothing left behind."""

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from .live import Event, Person, Running, good, text
from .upstream import (
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
from .upstream import text as says
from .witness import MODEL, Witness, well_formed

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def upstream() -> Any:
    with Upstream() as upstream:
        yield upstream


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def witness(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> AsyncIterator[Witness]:
    """One Fireside for all faults, each of which must leave it as it was."""
    async with Running(tmp_path_factory.mktemp("faults"), lmstudio_url=upstream.url) as running:
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
    harmless("control characters", bare(r'{"content":"a\u000bb\u000cc\u001cd\u001ee\u007f"}'), adds="a\vb\fc\x1cd\x1ee\x7f"),
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
    harmless("progress of the prompt", chunk({}, prompt_progress={"total": 9, "processed": 3, "cache": 0, "time_ms": 1})),
    # in place of an answer
    refusing("a status line that is none", "PROVIDER_ERROR", wire(b"what?\r\n\r\n"), close()),
    refusing("an answer of HTTP/0.9", "PROVIDER_ERROR", wire(b"<html>Hello</html>"), close()),
    refusing("a head of 200 kB", "PROVIDER_ERROR", wire(HEAD + b"X: " + b"x" * 200_000 + b"\r\n\r\n"), close()),
    refusing("a head that breaks off", "PROVIDER_ERROR", wire(HEAD), close()),
    refusing("an empty body", "EMPTY_ANSWER", wire(HEAD + b"Content-Length: 0\r\n\r\n")),
    refusing("[DONE] and nothing else", "EMPTY_ANSWER", DONE),
    refusing("nothing but white space", "EMPTY_ANSWER", says(" ", "\n") + finish("stop") + DONE),
    refusing("no room for a word", "EMPTY_ANSWER", finish("length") + DONE),
    refusing("a body shorter than promised", "ANSWER_CUT_SHORT", wire(HEAD + b"Content-Length: 9999\r\n\r\n" + says("a")), close()),
    refusing("a compressed body", "PROVIDER_ERROR", headers(content_encoding="gzip"), b"\x1f\x8b\x08\x00"),
    refusing("a page in place of a stream", "PROVIDER_ERROR", status(200, "<html>Sign in</html>", "text/html")),
    refusing("a path that is not known", "PROVIDER_ERROR", status(200, {"error": "Unexpected endpoint or method. (POST /)"})),
    refusing("JSON in place of a stream", "PROVIDER_ERROR", status(200, {"choices": []})),
    refusing("a redirect", "PROVIDER_ERROR", status(302, location="http://127.0.0.1:1/")),
    refusing("no content", "PROVIDER_ERROR", status(204)),
    refusing("400 and no model loaded", "MODEL_NOT_LOADED", status(400, {"error": {"message": UNLOADED, "param": "model"}})),
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
    refusing("100 and 103 before the answer", None, wire(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\n")),
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


REFERENCE = bare('{"reasoning":"hm"}') + bare(r'{"content":"a\u00df\ud83d"}') + bare(r'{"content":"\ude00 ja"}') + bare("{}")
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


async def at_every_byte(witness: Witness, check: Callable[[int, list[Event]], None], *script: Step) -> None:
    """An answer for each place in REFERENCE, several at a time. The script finds the place in the request, as its seed."""
    ann = witness.people[0]
    usual, witness.upstream.default = witness.upstream.default, list(script)
    places = iter(range(1, len(REFERENCE)))

    async def lane() -> tuple[int, list[Event]]:
        conversation_id = await witness.question(ann)
        for place in places:
            events = await again(ann, conversation_id, seed=place)
            check(place, events)
        return conversation_id, events

    ends = await asyncio.gather(*(lane() for _ in range(4)))
    witness.upstream.default = usual
    for conversation_id, events in ends:
        await witness.nothing_lost(ann, conversation_id, events)


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
    for _ in range(150):
        stream = bytearray(WHOLE if dice.random() < 0.5 else REFERENCE)
        for _ in range(dice.randint(1, 8)):
            start = dice.randrange(len(stream))
            stream[start : start + dice.choice((0, 0, 1, 1, 4, 40))] = dice.choice(
                (b"", b"\n", b"\r", b"\xff", b'"', b"{", b"\0", b"data: ", bytes([dice.randrange(256)]), bytes(stream[-60:]))
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
    async with Running(tmp_path, lmstudio_url=upstream.url, **settings) as running:
        async with Witness(running, upstream, await running.first()) as witness:
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
        async with Running(tmp_path, lmstudio_url=upstream.url) as running:
            async with Witness(running, upstream, await running.first()) as witness:
                ann = witness.people[0]

                async def asked(name: str) -> tuple[str, int, list[Event]]:
                    conversation_id = await witness.question(ann)
                    return name, conversation_id, await ann.answer(conversation_id, provider_id=name, model="m")

                for name, conversation_id, events in await asyncio.gather(*map(asked, urls)):
                    assert [event.data["code"] for event in events if event.event == "error"] == [urls[name][1]]
                    await witness.nothing_lost(ann, conversation_id, events)


async def test_an_answer_without_end_is_ended(tmp_path: Path, upstream: Upstream) -> None:
    flood = says("flood ") * 1000
    async with Running(tmp_path, lmstudio_url=upstream.url, answer_max_bytes="10000") as running:
        async with Witness(running, upstream, await running.first()) as witness:
            ann = witness.people[0]
            conversation_id = await witness.question(ann)
            upstream.enqueue(*[flood] * 100)
            events = await ann.answer(conversation_id, **MODEL)
            assert [event.data["code"] for event in events if event.event == "error"] == ["ANSWER_TOO_LARGE"]
            assert 10_000 < len(text(events)) < 10_000 + 2 * len(flood)
            await witness.nothing_lost(ann, conversation_id, events)
