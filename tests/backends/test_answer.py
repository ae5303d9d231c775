"""The event stream without a network: each server's dialect, every split, and invalid bytes."""

import json
import random
import time
from typing import Any

import pytest
from fireside.backends import answer as module
from fireside.backends.answer import (
    EVENT_BYTES,
    OVERHEAD_BYTES,
    ActualModel,
    AnswerParser,
    Content,
    Finish,
    Part,
    Progress,
    Reasoning,
    Usage,
)
from fireside.config import Provider
from fireside.errors import ProviderFailed

from ..upstream import DONE, MODEL, answer, chunk, error, event, finish, reasoning, text, usage

LMSTUDIO = Provider("lmstudio", "lmstudio", "LM Studio")
HI = text("Hi") + finish()
COUNTS = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}


def parse(*reads: bytes, disconnected: bool = False) -> tuple[list[Part], ProviderFailed | None]:
    """Return all parts, with texts joined that were split only by reads, and the failure."""
    parser = AnswerParser(LMSTUDIO)
    joined: list[Part] = []
    for part in [part for read in reads for part in parser.feed(read)] + parser.end(disconnected):
        if joined and isinstance(part, Content | Reasoning) and type(part) is type(joined[-1]):
            part = type(part)(joined.pop().text + part.text)  # type: ignore[union-attr]
        joined.append(part)
    assert (parser.failure is None) == isinstance(joined[-1] if joined else None, Finish)
    return joined, parser.failure


def joined(parts: list[Part], kind: type[Content] | type[Reasoning] = Content) -> str:
    return "".join(part.text for part in parts if isinstance(part, kind))


def content(*reads: bytes) -> str:
    """Return the text of an answer that must be complete."""
    parts, failure = parse(*reads)
    assert failure is None
    return joined(parts)


def failure_of(*reads: bytes, disconnected: bool = False) -> ProviderFailed:
    _, failure = parse(*reads, disconnected=disconnected)
    assert failure is not None
    return failure


def bytewise(stream: bytes) -> list[bytes]:
    return [stream[place : place + 1] for place in range(len(stream))]


# ---- complete answers


def test_answer_has_its_model_text_usage_and_finish_reason() -> None:
    parts = [ActualModel(MODEL), Content("Hello"), Usage(12, 2, 14), Finish("stop")]
    assert parse(answer("Hel", "lo")) == (parts, None)
    assert parse(text("Hi") + finish("length"))[0][-1] == Finish("length")
    assert parse(text("Hi") + DONE)[0][-1] == Finish("")


def test_read_yields_one_part_for_adjacent_texts_of_one_kind() -> None:
    parser = AnswerParser(LMSTUDIO)
    assert parser.feed(reasoning("a", "b") + text("c", "d")) == [ActualModel(MODEL), Reasoning("ab"), Content("cd")]
    assert parser.feed(text("e") + text("f")) == [Content("ef")]


def test_version_of_the_engine_is_reported_if_the_server_names_it() -> None:
    for fingerprint, engine in (
        ("b6139-c1a2b3c4", "b6139-c1a2b3c4"),
        (MODEL, ""),
        (7, ""),
    ):  # LM Studio names the model
        first = chunk({"content": "a"}, system_fingerprint=fingerprint)
        assert parse(first, finish(), DONE)[0][0] == ActualModel(MODEL, engine)


def test_change_of_the_model_is_reported() -> None:
    parts, _ = parse(text("a", model="small"), text("b", model="large"), finish(model="large"))
    assert parts[:4] == [ActualModel("small"), Content("a"), ActualModel("large"), Content("b")]


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(HI + DONE, id="finish and [DONE]"),
        pytest.param(HI, id="finish only, as transformers serve"),
        pytest.param(text("Hi") + DONE, id="[DONE] only"),
        pytest.param(HI + b"data: [DONE]", id="no line end after [DONE]"),
        pytest.param(chunk() + HI + chunk(), id="empty choices"),
        pytest.param(chunk({"content": "Hi"}, "stop"), id="finish with the last text"),
        pytest.param(chunk({"content": "Hi"}, "") + finish(), id="finish_reason empty before the end"),
        pytest.param(event({"choices": [{"delta": {"content": "Hi"}, "finish_reason": "stop"}]}), id="nothing else"),
        pytest.param(b"id: 7\nretry: 5\nevent: message\n" + HI, id="other fields"),
        pytest.param(event("not json") * 3 + HI, id="three events that are not JSON"),
        pytest.param(b'data: {"choices":[{"delta":\ndata: {"content":"Hi"}}]}\n\n' + finish(), id="data in two lines"),
        pytest.param(HI + chunk(error=None), id="error null"),
    ],
)
def test_dialects_are_understood(stream: bytes) -> None:
    """tests/system/faults/test_model_server.py has more."""
    assert content(stream) == content(*bytewise(stream)) == "Hi"


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(HI + usage(5, 2) + DONE, id="with empty choices"),
        pytest.param(text("Hi") + chunk({}, "stop", usage=COUNTS), id="in the finish chunk"),
        pytest.param(chunk({"content": "H"}, usage={**COUNTS, "total_tokens": 6}) + chunk({}, "stop", usage=COUNTS),
                     id="in each chunk"),
        pytest.param(HI + event({"usage": COUNTS}), id="without choices"),
        pytest.param(HI + chunk(usage={"prompt_tokens": 5, "completion_tokens": 2}), id="without a total"),
        pytest.param(HI + usage(5, 2) + chunk(usage=None), id="null afterwards"),
        pytest.param(HI + chunk(usage={**COUNTS, "prompt_tokens_details": {"cached_tokens": 1}}), id="details"),
    ],
)  # fmt: skip
def test_usage_is_reported_once_wherever_it_is(stream: bytes) -> None:
    parts, failure = parse(stream)
    assert failure is None
    assert [part for part in parts if isinstance(part, Usage)] == [Usage(5, 2, 7)]


@pytest.mark.parametrize(
    "wrong",
    [
        *("many", 7, [], {}, {"total_tokens": 1e99}, {**COUNTS, "prompt_tokens": "5"}, {**COUNTS, "total_tokens": -7}),
        *({**COUNTS, "total_tokens": 2**64}, {**COUNTS, "completion_tokens": True}),
    ],
)
def test_invalid_usage_is_left_out(wrong: Any) -> None:
    parts, failure = parse(HI + chunk(usage=wrong) + DONE)
    assert (parts, failure) == ([ActualModel(MODEL), Content("Hi"), Finish("stop")], None)


def test_prompt_progress_of_llama_cpp_is_reported() -> None:
    progress = {"total": 900, "cache": 0, "processed": 512, "time_ms": 1034}
    parts, _ = parse(chunk({"role": "assistant", "content": None}, prompt_progress=progress), answer("Hi"))
    assert parts[:3] == [ActualModel(MODEL), Progress(512, 900), Content("Hi")]
    newer = chunk({}, prompt_progress=progress | {"processed": 900})
    assert Progress(512, 900) not in parse(chunk({}, prompt_progress=progress) + newer, answer("Hi"))[0]


@pytest.mark.parametrize(
    "stream",
    [
        reasoning("Let me ", "see.", key="reasoning_content"),
        reasoning("Let me ", "see.", key="reasoning"),
        chunk({"reasoning": "Let me see.", "reasoning_content": "Let me see.", "content": ""}),
        reasoning("Let me ", "see.", key="thinking"),
        chunk(
            {
                "reasoning_details": [
                    {"type": "reasoning.text", "text": "Let me "},
                    {"summary": "see.", "type": "reasoning.summary"},
                ]
            }
        ),
        chunk({"reasoning_details": [{"type": "reasoning.encrypted", "data": "x"}]})
        + chunk({"reasoning": "Let me see."}),
        chunk({"reasoning": "Let me see.", "reasoning_details": [{"type": "reasoning.text", "text": "Let me see."}]}),
        chunk({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "Let me "}, "see."]}]}),
        chunk({"content": [{"type": "thinking", "thinking": "Let me "}, {"type": "reasoning", "text": "see."}]}),
    ],
)
def test_reasoning_has_several_names_and_shapes(stream: bytes) -> None:
    parts, failure = parse(stream + answer("Four."))
    assert (parts[1:3], failure) == ([Reasoning("Let me see."), Content("Four.")], None)


@pytest.mark.parametrize(
    "stream",
    [
        chunk({"content": [{"type": "text", "text": "I can"}, "not "], "role": "assistant"}),
        chunk(
            {"content": [{"type": "output_text", "text": "I can"}, {"type": "image", "image": {}}, {"text": "not "}]}
        ),
        chunk({"refusal": "I can"}) + chunk({"content": None, "refusal": "not "}),
    ],
)
def test_content_in_parts_and_refusals_are_text(stream: bytes) -> None:
    assert content(stream + text("help.") + finish()) == "I cannot help."


@pytest.mark.parametrize(
    ("sent", "thought", "answered"),
    [
        ("<think>Hm.</think>Four.", "Hm.", "Four."),
        ("\n <think>\nHm.\n</think>\n\nFour.\n", "Hm.\n", "Four.\n"),
        ("<think>\n\n</think>\n\nFour.", "", "Four."),
        ("<think></think>Four.", "", "Four."),
        ("<think>a < b </thin </think>Four.", "a < b </thin ", "Four."),
        ("<think>Hm, and no end </thi", "Hm, and no end </thi", ""),
        ("<think>Hm.</think>Four. <think>is a tag</think>", "Hm.", "Four. <think>is a tag</think>"),
        ("Write <think> first.", "", "Write <think> first."),
        ("<thinking>no</thinking>", "", "<thinking>no</thinking>"),
        ("</think>Four.", "", "</think>Four."),
        ("  Four.", "", "  Four."),
        ("<thi", "", "<thi"),
    ],
)
def test_think_tags_are_reasoning_only_at_the_beginning(sent: str, thought: str, answered: str) -> None:
    for reads in ([text(sent)], [text(*sent)], bytewise(text(*sent)), [text(sent[:8]), text(sent[8:])]):
        parts, failure = parse(*reads, finish())
        assert (joined(parts, Reasoning), joined(parts), failure) == (thought, answered, None)


def test_much_white_space_is_not_held_back() -> None:
    assert Content(" " * 2000) in AnswerParser(LMSTUDIO).feed(text(" " * 2000))


# ---- bytes and characters


AWKWARD = "Grüße, 世界 \U0001f600 \u2028\u2029\u0085\x0b\x0c\x1c e\u0301 \ufeff"


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_answer_is_the_same_wherever_it_is_split(line_end: bytes) -> None:
    stream = (
        b": hello\n\n"
        + reasoning("Hm \U0001f914", "...")
        + text("<think>more</think>")
        + text(AWKWARD, "ab")
        + (b'data: {"choices":[{"delta":\ndata: {"content":"\\ud83d"}}]}\n\n')
        + (b'data:{"choices":[{"delta":{"content":"\\ude00!"}}]}\n\n')
        + finish()
        + usage(5, 2)
        + DONE
    ).replace(b"\n", line_end)
    whole = parse(stream)
    assert whole[1] is None
    assert whole[0][1:4] == [Reasoning("Hm \U0001f914...more"), Content(AWKWARD + "ab\U0001f600!"), Usage(5, 2, 7)]
    for place in range(len(stream) + 1):
        assert parse(stream[:place], stream[place:]) == whole, place
    assert parse(*bytewise(stream)) == whole


@pytest.mark.parametrize(
    ("halves", "meant"),
    [
        ((r"\ud83d", r"\ude00"), "\U0001f600"),
        ((r"a\ud83d", r"\ude00b"), "a\U0001f600b"),
        ((r"\ud83d", "a"), "\ufffda"),
        ((r"\ud83d", ""), "\ufffd"),
        ((r"\ude00", r"\ud83d"), "\ufffd\ufffd"),
        ((r"\ud83d", r"\ud83d\ude00"), "\ufffd\U0001f600"),
        ((r"x\ud83d\ude00", "y"), "x\U0001f600y"),
    ],
)
def test_surrogates_are_joined_or_replaced(halves: tuple[str, str], meant: str) -> None:
    first, second = (b'data: {"choices":[{"delta":{"content":"%s"}}]}\n\n' % half.encode() for half in halves)
    rest = text(".") + finish()
    assert content(first + second + rest) == content(first, second, rest) == meant + "."


def test_surrogates_of_reasoning_and_content_are_not_joined() -> None:
    half = b'data: {"choices":[{"delta":{"reasoning":"\\ud83d"}}]}\n\n'
    parts, _ = parse(half, text("a") + finish())
    assert parts == [ActualModel(MODEL), Reasoning("\ufffd"), Content("a"), Finish("stop")]


@pytest.mark.parametrize("broken", [b"\xff", b"\xc3", b"\xed\xa0\xbd", b"\xf0\x9f\x98"])
def test_invalid_utf8_becomes_replacement_characters(broken: bytes) -> None:
    stream = text("a~b").replace(b"~", broken) + finish()
    found = content(stream)
    assert found == content(*bytewise(stream))
    assert found.startswith("a\ufffd") and found.endswith("b") and found.strip("ab\ufffd") == ""


def test_finish_reason_is_a_short_text() -> None:
    parts, _ = parse(text("Hi"), b'data: {"choices":[{"finish_reason":"\\ud800%s"}]}\n\n' % (b"x" * 10_000))
    [finish] = [part.reason for part in parts if isinstance(part, Finish)]
    assert finish.encode() and 0 < len(finish) <= 300


# ---- incomplete answers


def test_text_is_kept_when_the_stream_ends_early() -> None:
    for disconnected in (False, True):
        parts, failure = parse(text("Hi <thi", "<think>")[:-40], disconnected=disconnected)
        assert parts == [ActualModel(MODEL), Content("Hi <thi")]
        assert failure is not None and failure.code == "ANSWER_CUT_SHORT"
    assert failure_of(chunk({"role": "assistant"}), disconnected=True).code == "ANSWER_CUT_SHORT"
    assert parse(HI, disconnected=True) == ([ActualModel(MODEL), Content("Hi"), Finish("stop")], None)


@pytest.mark.parametrize(
    ("stream", "hint"),
    [
        (b"", "an empty answer and no reason."),
        (DONE, "an empty answer and no reason."),
        (chunk({"role": "assistant", "content": ""}) + finish() + usage(9, 0) + DONE, "with the reason “stop”."),
        (reasoning("\n") + text("\n") + finish() + DONE, "with the reason “stop”."),
        (chunk({"role": "assistant"}) + finish("length"), "max_tokens"),
        (chunk({"tool_calls": [{"index": 0, "function": {"name": "f"}}]}) + finish("tool_calls"), "tool"),
    ],
)
def test_answer_without_a_word_is_an_error_with_a_reason(stream: bytes, hint: str) -> None:
    parts, failure = parse(stream)
    assert failure is not None and failure.code == "EMPTY_ANSWER" and hint in failure.message
    assert (Usage(9, 0, 9) in parts) == (b"usage" in stream)


@pytest.mark.parametrize(
    "frame",
    [
        event({"error": {"message": "Compute error."}}, "error"),
        event({"message": "Compute error."}, "error"),
        event("Compute error.", "error"),
        error("Compute error."),
        event({"error": "Compute error."}),
        event({"error": {"message": "Compute error."}, "message": "Compute error."}),
        event({"object": "error", "message": "Compute error.", "code": 500}),
        b'error: {"code":500,"message":"Compute error."}\n\n',
        b'data: {"error": {"message": "Compute error. \\ud83d"}}\n\n',
    ],
)
@pytest.mark.parametrize("before", [b"", text("Hi"), HI])
def test_error_in_the_stream_ends_the_answer_with_the_servers_message(frame: bytes, before: bytes) -> None:
    for reads in ([before + frame + HI], bytewise(before + frame), [before + frame.rstrip()]):
        parts, failure = parse(*reads)
        assert failure is not None
        assert (failure.code, failure.message.strip(" .")) == ("PROVIDER_ERROR", "LM Studio said: Compute error")
        assert joined(parts) == ("Hi" if before else "")


def test_error_event_without_a_message_is_an_error() -> None:
    assert failure_of(HI + b"event: error\n\n").code == "PROVIDER_ERROR"
    assert failure_of(HI + event({}, "error")).message == "LM Studio reported an error."


# ---- hostile servers


def test_many_comments_and_tiny_deltas_are_no_error() -> None:
    parser = AnswerParser(LMSTUDIO)
    for _ in range(3):
        parser.feed((b": " + b" " * 2000 + b"\n\n") * (EVENT_BYTES // 4000))
    parser.feed(HI)
    assert parser.failure is None and parser.finish_reason == "stop"
    assert content(text("ab") * 20_000 + finish()) == "ab" * 20_000


@pytest.mark.parametrize(
    "flood", [b"\n", b": ping\n\n", b"data:\n\n", chunk({}), text("x", model="y") + chunk(model="z" * 5000)]
)
def test_answer_with_too_much_overhead_is_ended(flood: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OVERHEAD_BYTES", 500_000)
    parser, size = AnswerParser(LMSTUDIO), 0
    read = flood * (50_000 // len(flood))
    while not parser.finished:
        parser.feed(read)
        size += len(read)
    assert parser.failure is not None and parser.failure.message == "LM Studio sent too much data with too little text."
    assert 500_000 < size < 1_000_000


def test_answer_with_one_character_per_event_is_not_ended() -> None:
    parser, event = AnswerParser(LMSTUDIO), text("x", model="y" * 300)
    for _ in range(2 * OVERHEAD_BYTES // len(event) // 1000):
        parser.feed(event * 1000)
    assert not parser.finished


@pytest.mark.parametrize("delta", ['"model":1', '"choices":[0]', '"choices":[{"delta":{"content":"\\ud800"}}]'])
def test_repairing_an_event_takes_little_longer_than_decoding_it(delta: str) -> None:
    def spent(event: bytes) -> float:
        began = time.thread_time()
        AnswerParser(LMSTUDIO).feed(event * 3_000)
        return time.thread_time() - began

    assert spent(f"data:{{{delta}}}\n\n".encode()) < 22 * spent(b'data:{"choices":[{"delta":{"content":"x"}}]}\n\n')


# ---- invalid values and bytes


WRONG: list[Any] = [None, True, 0, -1, 1.5, 2**70, "", "x", [], [[]], [None], {}, {"a": 1}, "\udc00"]
CHUNK = json.loads(chunk({"role": "assistant", "content": "Hi", "reasoning": "Hm"}, "stop", usage=COUNTS)[5:])


def paths(value: Any) -> list[list[Any]]:
    """Return the path to each value within a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [[name, *path] for name, child in inner for path in [[], *paths(child)]]


@pytest.mark.parametrize("path", paths(CHUNK), ids=str)
def test_field_of_a_wrong_type_costs_no_other_field(path: list[Any]) -> None:
    for wrong in WRONG:
        value = json.loads(json.dumps(CHUNK))
        at = value
        for name in path[:-1]:
            at = at[name]
        at[path[-1]] = wrong
        parts, failure = parse(event(json.dumps(value)))
        if "choices" not in path or path[-1] in ("finish_reason", "index", "role", "reasoning", "logprobs"):
            assert joined(parts) == "Hi", wrong
        if "usage" not in path and not failure:
            assert Usage(5, 2, 7) in parts, wrong


PIECES = (
    *(b"", b"\n", b"\r", b"\r\n", b"\n\n", b"data: ", b"event: error\n", b":", b'"', b"{", b"}", b"]", b"\\ud83d"),
    *(b"\\ude00", b"\\u", b"\xe2\x80\xa8", b"<think>", b"</think>", b"null", b"-1", b"\xef\xbb\xbf"),
    *(DONE, error("x"), finish(), usage(1, 1), text("z")),
)


def mutated(stream: bytes, chance: random.Random) -> bytes:
    data = bytearray(stream)
    for _ in range(chance.randint(1, 6)):
        start = chance.randrange(len(data) + 1)
        stop = min(len(data), start + chance.choice((0, 1, 1, 2, 8, 60)))
        data[start:stop] = chance.choice((*PIECES, chance.randbytes(3), bytes(data[start:stop]) * 2))
    return bytes(data)


def test_mutated_streams_mean_the_same_wherever_they_are_split() -> None:
    chance = random.Random(20240115)
    streams = [
        answer("Hel", "lo \U0001f600", AWKWARD),
        reasoning("Hm") + text("<think>a</think>b", "c") + finish("length") + usage(3, 4),
        text("<think>", "x", "</thi", "nk>", "y").replace(b"\n", b"\r\n") + finish() + DONE,
        b'data: {"choices":[{"delta":{"content":"\\ud83d"}}]}\n\ndata: {"choices":[{"delta":{"content":"\\ude00"}}]}\n\n'
        + DONE,
    ]
    outcomes: set[str] = set()
    for _ in range(2000):
        stream = mutated(chance.choice(streams), chance)
        whole, failure = parse(stream)
        cuts = sorted(chance.sample(range(len(stream) + 1), min(4, len(stream))))
        reads = [stream[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
        parts, again = parse(*reads)
        assert parts == whole
        assert (again and (again.code, again.message)) == (failure and (failure.code, failure.message))
        (joined(whole) + joined(whole, Reasoning) + (failure.message if failure else "")).encode()
        outcomes.add(failure.code if failure else "ok")
    assert outcomes >= {"ok", "PROVIDER_ERROR", "ANSWER_CUT_SHORT", "EMPTY_ANSWER"}
    for size in (0, 1, 10, 1000, 100_000):
        assert failure_of(chance.randbytes(size)).code in ("EMPTY_ANSWER", "PROVIDER_ERROR")
