"""An answer ends honestly and its text is kept, whatever the model server does."""

import asyncio
import contextlib
import random
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from fireside.chat.events import MIN_EVENT_BYTES

from ...live import Event, text
from ...trials import spread
from ...upstream import (
    CHAT,
    DONE,
    Pace,
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
from ...upstream import text as content
from ...witness import MODEL, Witness, well_formed
from .conftest import watched
from .steps import SLOW_ANSWER, WHOLE_ANSWER, answering, error_codes, retry

pytestmark = pytest.mark.asyncio(loop_scope="package")

PLACES = ("before", "middle", "end")
BEGIN = {"before": b"", "middle": content("one ", "two"), "end": content("one ", "two") + finish("stop") + usage(7, 2)}
REST = {"before": content("one ", "two") + finish("stop") + usage(7, 2) + DONE}
REST["middle"] = REST["end"] = finish("stop") + usage(7, 2) + DONE


@dataclass(frozen=True)
class Fault:
    """Steps that come before the first token, after two, or after the finish; and the error code expected in each place."""

    name: str
    steps: tuple[Step, ...]
    codes: tuple[str | None, str | None, str | None] = (None, None, None)
    added: str = ""  # content
    reasoning_text: str = ""
    places: tuple[str, ...] = PLACES


def harmless(name: str, *steps: Step, added: str = "", reasoning_text: str = "") -> Fault:
    return Fault(name, steps, added=added, reasoning_text=reasoning_text)


def fatal(name: str, code: str, *steps: Step) -> Fault:
    return Fault(name, steps, (code, code, code))


def breaking(name: str, code: str, *steps: Step) -> Fault:
    """The response breaks off: an error before the first token, cut short after it, complete after the finish."""
    return Fault(name, steps, (code, "ANSWER_CUT_SHORT", None))


def refusing(name: str, code: str | None, *steps: Step) -> Fault:
    """A response other than an answer."""
    return Fault(name, steps, (code, None, None), places=("before",))


OVERFLOW = (
    "The number of tokens to keep from the initial prompt is greater than the context length (n_keep: 13055>= n_ctx: 4096)."
    " Try to load the model with a larger context length, or provide a shorter input."
)
UNLOADED = "No models loaded. Please load a model in the developer page or use the 'lms load' command."
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
MEBIBYTE = 1024 * 1024


def delta(data: str) -> bytes:
    """An event whose delta is this JSON text."""
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
    # errors in the stream, in each server's shape
    fatal("an error event", "PROVIDER_ERROR", event({"message": "Compute error."}, "error")),
    fatal("an error event that is text", "PROVIDER_ERROR", event("it broke", "error")),
    fatal("an error event without data", "PROVIDER_ERROR", b"event: error\ndata:\n\n"),
    fatal("an error object", "PROVIDER_ERROR", error("Compute error.")),
    fatal("an error that is text", "PROVIDER_ERROR", event({"error": "Compute error."})),
    fatal("an error and a message", "PROVIDER_ERROR", event({"error": {"message": "No."}, "message": "No."})),
    fatal(
        "an error object of an old vLLM", "PROVIDER_ERROR", event({"object": "error", "message": "No.", "code": 500})
    ),
    fatal("an error and [DONE]", "PROVIDER_ERROR", error("Compute error.") + DONE),
    fatal("a crash of the model", "MODEL_LOAD_FAILED", error("The model has crashed without additional information.")),
    fatal("context overflow", "CONTEXT_OVERFLOW", error(OVERFLOW)),
    fatal("context overflow as text", "CONTEXT_OVERFLOW", event({"error": OVERFLOW}, "error")),
    # too much, or nonsense
    fatal("four events that are not JSON", "PROVIDER_ERROR", b"data: what?\n\n" * 4),
    fatal("a line of 1 MiB", "PROVIDER_ERROR", b"data: " + b"x" * MEBIBYTE + b"\n\n"),
    fatal("a line of 13 MB that does not end", "PROVIDER_ERROR", b"data: " + b"x" * 13_000_000),
    fatal("an event of 1 MiB in short lines", "PROVIDER_ERROR", b"data: 0123456789\n" * (MEBIBYTE // 10) + b"\n"),
    harmless("three events that are not JSON", b"data: what?\n\n" * 3),
    harmless("JSON nested too deep", b"data: " + b"[" * 10_000 + b"\n\n"),
    harmless("JSON that is no object", b"data: [1, 2]\n\ndata: null\n\n"),
    # variants of the format
    harmless("comments", b": keep-alive\n\n:\n\n"),
    harmless("empty events", b"\n\n\ndata:\n\ndata\n\n"),
    harmless("unknown fields", b"id: 7\nretry: 100\nwhat\nhow: ever\n\n"),
    harmless("an event with a name", event({"choices": [{"delta": {"content": "!"}}]}, "message"), added="!"),
    harmless("CRLF", content("!").replace(b"\n", b"\r\n"), added="!"),
    harmless("CR", content("!").replace(b"\n", b"\r"), added="!"),
    harmless("no space after the colon", content("!").replace(b"data: ", b"data:"), added="!"),
    harmless("JSON over several lines", content("!").replace(b', "', b',\ndata: "'), added="!"),
    harmless("ten thousand tiny deltas", content("x") * 10_000, added="x" * 10_000),
    harmless("one byte at a time", split(1), content("!"), added="!"),
    harmless("a chunk with an extension", b":\n\n", wire(b"5;what=ever\r\n: a\n\n\r\n")),
    # characters
    harmless("Unicode line separators", delta('{"content":"a\u2028b\u2029c\u0085d"}'), added="a\u2028b\u2029c\u0085d"),
    harmless(
        "control characters", delta(r'{"content":"a\u000bb\u000cc\u001cd\u001ee\u007f"}'), added="a\vb\fc\x1cd\x1ee\x7f"
    ),
    harmless("NUL", delta(r'{"content":"a\u0000b"}'), added="a\0b"),
    harmless("invalid UTF-8", delta('{"content":"a!b"}').replace(b"!", b"\xff"), added="a\ufffdb"),
    harmless(
        "a surrogate pair in two events", delta(r'{"content":"\ud83d"}') + delta(r'{"content":"\ude00"}'), added="😀"
    ),
    harmless("a lone surrogate", delta(r'{"content":"a\ude00b"}'), added="a\ufffdb"),
    harmless("four-byte characters in one-byte chunks", split(1), delta('{"content":"𝄞😀"}'), added="𝄞😀"),
    # variants of chunks
    harmless("a role and nothing else", chunk({"role": "assistant"})),
    harmless("no choices", event({"id": "x"})),
    harmless("empty choices", event({"choices": []})),
    harmless("choices that are null", event({"choices": None})),
    harmless("a delta that is null", event({"choices": [{"delta": None}]})),
    harmless("content that is null", chunk({"content": None})),
    harmless("content that is empty", content("")),
    harmless("content that is a number", chunk({"content": 5})),
    harmless("choices that are text", event({"choices": "one"})),
    harmless("a tool call", chunk({"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "{}"}}]})),
    harmless("reasoning", reasoning("hm"), reasoning_text="hm"),
    harmless("reasoning under its other name", reasoning("hm", key="reasoning"), reasoning_text="hm"),
    harmless("usage as text", chunk(usage={"prompt_tokens": "many"})),
    harmless("negative usage", chunk(usage={"prompt_tokens": -1, "completion_tokens": -1, "total_tokens": -2})),
    harmless("usage that is null", chunk({}, usage=None)),
    harmless("another model", content("!", model="another"), added="!"),
    harmless("a model with a strange name", content("!", model="\x1b[31m\u202e" + "x" * 10_000), added="!"),
    harmless(
        "progress of the prompt", chunk({}, prompt_progress={"total": 9, "processed": 3, "cache": 0, "time_ms": 1})
    ),
    # instead of an answer
    refusing("an invalid status line", "PROVIDER_ERROR", wire(b"what?\r\n\r\n"), close()),
    refusing("an HTTP/0.9 response", "PROVIDER_ERROR", wire(b"<html>Hello</html>"), close()),
    refusing("a head of 200 kB", "PROVIDER_ERROR", wire(HEAD + b"X: " + b"x" * 200_000 + b"\r\n\r\n"), close()),
    refusing("a head that breaks off", "PROVIDER_ERROR", wire(HEAD), close()),
    refusing("an empty body", "EMPTY_ANSWER", wire(HEAD + b"Content-Length: 0\r\n\r\n")),
    refusing("[DONE] only", "EMPTY_ANSWER", DONE),
    refusing("white space only", "EMPTY_ANSWER", content(" ", "\n") + finish("stop") + DONE),
    refusing("no tokens before the length limit", "EMPTY_ANSWER", finish("length") + DONE),
    refusing(
        "a body shorter than its Content-Length",
        "ANSWER_CUT_SHORT",
        wire(HEAD + b"Content-Length: 9999\r\n\r\n" + content("a")),
        close(),
    ),
    refusing("a compressed body", "PROVIDER_ERROR", headers(content_encoding="gzip"), b"\x1f\x8b\x08\x00"),
    refusing("HTML instead of a stream", "PROVIDER_ERROR", status(200, "<html>Sign in</html>", "text/html")),
    refusing("an unknown path", "PROVIDER_ERROR", status(200, {"error": "Unexpected endpoint or method. (POST /)"})),
    refusing("JSON instead of a stream", "PROVIDER_ERROR", status(200, {"choices": []})),
    refusing("a redirect", "PROVIDER_ERROR", status(302, location="http://127.0.0.1:1/")),
    refusing("no content", "PROVIDER_ERROR", status(204)),
    refusing(
        "400 and no model loaded", "MODEL_NOT_LOADED", status(400, {"error": {"message": UNLOADED, "param": "model"}})
    ),
    refusing("400 and context overflow", "CONTEXT_OVERFLOW", status(400, {"error": OVERFLOW})),
    refusing("400 without a body", "PROVIDER_ERROR", status(400)),
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
    refusing("a head without Content-Type", None, headers(content_type=None)),
    refusing("a byte order mark", None, b"\xef\xbb\xbf"),
    refusing("a body that ends with the connection", None, headers(framing="close")),
    Fault(
        "reasoning in think tags", (content("<th", "ink>", "hm", "</think>"),), reasoning_text="hm", places=("before",)
    ),
    # after the end
    Fault("[DONE] twice", (DONE + DONE,), places=("end",)),
    Fault("content after [DONE]", (DONE + content("and more"),), places=("end",)),
    Fault("an error after [DONE]", (DONE + error("No."),), places=("end",)),
    Fault("content after the finish", (content("!"),), added="!", places=("end",)),
    Fault("two finishes", (finish("length") + finish("stop"),), places=("end",)),
]
CASES = [
    pytest.param(fault, place, id=f"{fault.name}, {place}", marks=[] if place == sampled else [pytest.mark.long])
    for number, fault in enumerate(FAULTS)
    for sampled in [fault.places[number % len(fault.places)]]
    for place in fault.places
]


@pytest.mark.parametrize(("fault", "place"), CASES)
async def test_answer_ends_honestly(witness: Witness, fault: Fault, place: str) -> None:
    ann = witness.people[0]
    expected = fault.codes[PLACES.index(place)]
    conversation_id = await witness.question(ann)
    witness.upstream.enqueue(*([BEGIN[place]] if BEGIN[place] else []), *fault.steps, REST[place])
    events = await ann.answer(conversation_id, **MODEL)
    assert error_codes(events) == ([] if expected is None else [expected])
    if expected is None:
        assert text(events) == ("one two" + fault.added if BEGIN[place] else fault.added + "one two")
        assert text(events, "reasoning") == fault.reasoning_text
    elif BEGIN[place]:
        assert text(events).startswith("one two")
    await witness.nothing_lost(ann, conversation_id, events)


REFERENCE = (
    delta('{"reasoning":"hm"}')
    + delta(r'{"content":"a\u00df\ud83d"}')
    + delta(r'{"content":"\ude00 ja"}')
    + delta("{}")
)
REFERENCE = REFERENCE.replace(b'"delta":{}', b'"delta":{},"finish_reason":"stop"') + DONE


async def at_every_byte(witness: Witness, check: Callable[[int, list[Event]], None], *script: Step) -> None:
    """One answer per position in REFERENCE, several at a time. The script reads the position from the request's seed."""
    ann = witness.people[0]
    chosen = spread(len(REFERENCE))[1:]
    places = iter(chosen)

    async def lane() -> tuple[int, list[Event]]:
        conversation_id = await witness.question(ann)
        for place in places:
            events = await retry(ann, conversation_id, seed=place)
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


async def test_stream_means_the_same_wherever_it_is_split(witness: Witness) -> None:
    def check(place: int, events: list[Event]) -> None:
        assert (text(events, "reasoning"), text(events)) == ("hm", "aß😀 ja"), place

    await at_every_byte(witness, check, until_place, pause(Pace()), from_place)


async def test_stream_that_breaks_off_keeps_what_had_arrived(witness: Witness) -> None:
    enough = REFERENCE.index(b'"stop"}]}') + len(b'"stop"}]}')

    def check(place: int, events: list[Event]) -> None:
        assert "aß😀 ja".startswith(text(events).removesuffix("\ufffd")), place
        assert events[-1].data["status"] == ("ok" if place >= enough else "error"), place
        assert len(text(events)) >= REFERENCE[:place].count(b"content") - 1, place

    await at_every_byte(witness, check, until_place, close())


PIECES = (b"", b"\n", b"\r", b"\xff", b'"', b"{", b"\0", b"data: ")


async def test_mutated_stream_is_stored_as_it_was_streamed(witness: Witness) -> None:
    """tests/backends/test_answer.py mutates the parser's input some thousand times; this is the whole service."""
    ann = witness.people[0]
    conversation_id = await witness.question(ann)
    dice = random.Random(20261123)
    for _ in spread(150):
        stream = bytearray(WHOLE_ANSWER if dice.random() < 0.5 else REFERENCE)
        for _ in range(dice.randint(1, 8)):
            start = dice.randrange(len(stream))
            piece = dice.choice((*PIECES, bytes([dice.randrange(256)]), bytes(stream[-60:])))
            stream[start : start + dice.choice((0, 0, 1, 1, 4, 40))] = piece
        witness.upstream.enqueue(bytes(stream))
        events = await retry(ann, conversation_id)
        well_formed(events)
        message = (await ann.messages(conversation_id))[-1]
        assert (message["content"], message["reasoning"]) == (text(events), text(events, "reasoning")), bytes(stream)
    await witness.nothing_lost(ann, conversation_id, events)


COMMENTS = tuple(step for _ in range(400) for step in (pause(Pace()), b": still here\n\n"))
SILENCES: list[tuple[str, str | None, str, tuple[Step, ...]]] = [
    ("no head", "PROVIDER_TIMEOUT", "", (hang(),)),
    ("half a head", "PROVIDER_TIMEOUT", "", (wire(HEAD), hang())),
    ("a head", "PROVIDER_TIMEOUT", "", (headers(), hang())),
    ("comments and no token", "PROVIDER_TIMEOUT", "", (*COMMENTS * 20, hang())),
    ("a role and no token", "PROVIDER_TIMEOUT", "", (chunk({"role": "assistant"}), hang())),
    ("silence after two tokens", "PROVIDER_TIMEOUT", "one two", (BEGIN["middle"], hang())),
    ("comments after two tokens", "PROVIDER_TIMEOUT", "one two", (BEGIN["middle"], *COMMENTS * 20, hang())),
    ("silence after the finish", None, "one two", (BEGIN["end"], hang())),
    ("silence after [DONE]", None, "one two", (WHOLE_ANSWER, hang())),
    ("half an error", "PROVIDER_ERROR", "", (wire(b"HTTP/1.1 500 No\r\nContent-Length: 99\r\n\r\nIt"), close())),
    ("comments before the answer", None, "one two", (*COMMENTS[:20], WHOLE_ANSWER)),
]


async def test_deadlines_end_silent_answers(tmp_path: Path, upstream: Upstream) -> None:
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
            assert (error_codes(events), text(events)) == ([expected] if expected else [], said), name
            await witness.nothing_lost(ann, conversation_id, events)


async def test_unreachable_servers_are_reported(tmp_path: Path, upstream: Upstream) -> None:
    full = socket.create_server(("127.0.0.1", 0), backlog=0)
    with full, contextlib.ExitStack() as stack:
        for _ in range(4):  # fill the backlog: further connections are neither accepted nor refused
            caller = stack.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(full.getsockname())
        urls = {
            "refused": refused_url(),
            "unknown-host": "http://nobody.invalid",
            "not-accepting": f"http://127.0.0.1:{full.getsockname()[1]}",
            "no-tls": f"https://127.0.0.1:{upstream.port}",
        }
        tables = [f'[[providers]]\nid = "{name}"\nurl = "{url}"\n' for name, url in urls.items()]
        (tmp_path / "config.toml").write_text("\n".join(tables))
        async with watched(tmp_path, upstream) as witness:
            ann = witness.people[0]

            async def ask(name: str) -> tuple[int, list[Event]]:
                conversation_id = await witness.question(ann)
                return conversation_id, await ann.answer(conversation_id, provider_id=name, model="m")

            for conversation_id, events in await asyncio.gather(*map(ask, urls)):
                assert error_codes(events) == ["PROVIDER_UNREACHABLE"]
                await witness.nothing_lost(ann, conversation_id, events)


FLOODS: dict[str, tuple[int, tuple[Step, ...]]] = {  # answer_max_bytes, and what exceeds it
    "content": (10_000, (content("flood ") * 1000,) * 100),
    "tiny events": (20_000, ((reasoning("x") + content("y")) * 100,) * 100),
    "prompt progress": (
        10_000,
        tuple(chunk({}, prompt_progress={"processed": number, "total": 10**6}) for number in range(10_000)),
    ),
}


@pytest.mark.parametrize("flood", FLOODS)
async def test_endless_answer_is_ended(tmp_path: Path, upstream: Upstream, flood: str) -> None:
    limit, steps = FLOODS[flood]
    async with watched(tmp_path, upstream, answer_max_bytes=str(limit)) as witness:
        ann = witness.people[0]
        conversation_id = await witness.question(ann)
        upstream.enqueue(*steps, *SLOW_ANSWER)
        events = await ann.answer(conversation_id, **MODEL)
        assert error_codes(events) == ["ANSWER_TOO_LARGE"]
        assert len(text(events)) < limit + 6000  # one read of the network more
        assert len(events) < limit / MIN_EVENT_BYTES + 300
        await witness.nothing_lost(ann, conversation_id, events)
