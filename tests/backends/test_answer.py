"""The wire format without a network: every server's dialect, every cut, and bytes that make no sense."""

import json
import random
import time
from typing import Any

import pytest
from fireside.backends import answer as wire
from fireside.backends import failures
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
from fireside.backends.failures import MESSAGE_CHARACTERS, display_text
from fireside.config import Provider
from fireside.errors import ProviderFailed

from ..upstream import DONE, MODEL, answer, chunk, error, event, finish, reasoning, text, usage

LMSTUDIO = Provider("lmstudio", "lmstudio", "LM Studio")
OTHER = Provider("box", "openai", "The box", api_key="sk-secret-0123456789")


def parse(*reads: bytes, broken: bool = False) -> tuple[list[Part], ProviderFailed | None]:
    """All parts, with texts that only the cut between two reads had parted joined again, and the failure."""
    wire = AnswerParser(LMSTUDIO)
    parts = [part for read in reads for part in wire.feed(read)] + wire.end(broken)
    joined: list[Part] = []
    for part in parts:
        if joined and isinstance(part, Content | Reasoning) and type(part) is type(joined[-1]):
            part = type(part)(joined[-1].text + part.text)
            joined.pop()
        joined.append(part)
    assert (wire.failure is None) == isinstance(joined[-1] if joined else None, Finish)
    return joined, wire.failure


def content(*reads: bytes) -> str:
    """The text of an answer that must be complete."""
    parts, failure = parse(*reads)
    assert failure is None
    return "".join(part.text for part in parts if isinstance(part, Content))


def failure_of(*reads: bytes) -> ProviderFailed:
    _, failure = parse(*reads)
    assert failure is not None
    return failure


def refusal(provider: Provider, payload: Any, status: int) -> ProviderFailed:
    return failures.reported_error(
        provider, payload.encode() if isinstance(payload, str) else json.dumps(payload).encode(), status
    )


def bytewise(stream: bytes) -> list[bytes]:
    return [stream[place : place + 1] for place in range(len(stream))]


# ---- what a complete answer is


def test_answer_of_lmstudio_is_its_model_its_text_its_usage_and_its_finish() -> None:
    assert parse(answer("Hel", "lo")) == (
        [ActualModel(MODEL), Content("Hello"), Usage(12, 2, 14), Finish("stop")],
        None,
    )


def test_one_read_gives_one_part_of_each_run_of_a_kind() -> None:
    wire = AnswerParser(LMSTUDIO)
    assert wire.feed(reasoning("a", "b") + text("c", "d")) == [ActualModel(MODEL), Reasoning("ab"), Content("cd")]
    assert wire.feed(text("e") + text("f")) == [Content("ef")]


def test_model_is_named_again_when_another_one_goes_on() -> None:
    parts, _ = parse(text("a", model="small"), text("b", model="large"), finish(model="large"))
    assert parts[:4] == [ActualModel("small"), Content("a"), ActualModel("large"), Content("b")]


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(text("Hi") + finish() + DONE, id="finish and [DONE]"),
        pytest.param(text("Hi") + finish(), id="finish alone, as transformers serve ends"),
        pytest.param(text("Hi") + DONE, id="[DONE] alone"),
        pytest.param(text("Hi") + finish() + b"data: [DONE]", id="no line end after [DONE]"),
        pytest.param(text("Hi") + finish() + DONE + DONE, id="[DONE] twice"),
        pytest.param(text("Hi") + finish() + DONE + text("!") + error("late"), id="events after [DONE]"),
        pytest.param(chunk({"role": "assistant", "content": None}) + text("Hi") + finish(), id="content null first"),
        pytest.param(chunk({"role": "assistant"}) + text("Hi") + finish(), id="role alone first"),
        pytest.param(chunk() + text("Hi") + finish() + chunk(), id="no choices"),
        pytest.param(event({"model": MODEL}) + text("Hi") + finish(), id="choices absent"),
        pytest.param(event({"model": MODEL, "choices": None}) + text("Hi") + finish(), id="choices null"),
        pytest.param(event({"choices": [{"delta": None}]}) + text("Hi") + finish(), id="delta null"),
        pytest.param(chunk({"content": "Hi"}, "stop"), id="finish with the last text"),
        pytest.param(chunk({"content": "Hi"}, "") + finish(), id="finish_reason empty before the end"),
        pytest.param(event({"choices": [{"delta": {"content": "Hi"}, "finish_reason": "stop"}]}), id="nothing else"),
        pytest.param(b": ping\n\n" + text("H") + b":\n\n:\n" + text("i") + finish(), id="comments"),
        pytest.param(b"\xef\xbb\xbf" + text("Hi") + finish(), id="byte order mark"),
        pytest.param((text("Hi") + finish()).replace(b"data: ", b"data:"), id="no space after the colon"),
        pytest.param(b"id: 7\nretry: 5\nevent: message\n" + text("Hi") + finish(), id="other fields"),
        pytest.param(event("not json") * 3 + text("Hi") + finish(), id="three events that are not JSON"),
        pytest.param(b"data\n\n" + text("Hi") + finish() + b"\n\n\n", id="empty events"),
        pytest.param(b'data: {"choices":[{"delta":\ndata: {"content":"Hi"}}]}\n\n' + finish(), id="data of two lines"),
        pytest.param(text("Hi") + finish() + chunk(error=None), id="error null"),
    ],
)
def test_answer_is_complete(stream: bytes) -> None:
    assert content(stream) == "Hi"
    assert content(*bytewise(stream)) == "Hi"


def test_reason_to_finish_is_the_servers_and_empty_when_it_gave_none() -> None:
    assert parse(text("Hi") + finish("length"))[0][-1] == Finish("length")
    assert parse(text("Hi") + DONE)[0][-1] == Finish("")


# ---- usage


COUNTS = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(text("Hi") + finish() + usage(5, 2) + DONE, id="with empty choices"),
        pytest.param(text("Hi") + chunk({}, "stop", usage=COUNTS), id="in the finish chunk"),
        pytest.param(
            chunk({"content": "H"}, usage={**COUNTS, "completion_tokens": 1, "total_tokens": 6})
            + chunk({"content": "i"}, "stop", usage=COUNTS),
            id="on every chunk",
        ),
        pytest.param(text("Hi") + finish() + event({"usage": COUNTS}), id="without choices"),
        pytest.param(
            text("Hi") + finish() + chunk(usage={"prompt_tokens": 5, "completion_tokens": 2}), id="without a total"
        ),
        pytest.param(text("Hi") + finish() + usage(5, 2) + chunk(usage=None), id="null afterwards"),
        pytest.param(
            text("Hi") + finish() + chunk(usage={**COUNTS, "prompt_tokens_details": {"cached_tokens": 1}}), id="details"
        ),
    ],
)
def test_usage_is_found_wherever_it_stands_and_comes_once(stream: bytes) -> None:
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
def test_usage_that_makes_no_sense_is_left_out(wrong: Any) -> None:
    parts, failure = parse(text("Hi") + finish() + chunk(usage=wrong) + DONE)
    assert (parts, failure) == ([ActualModel(MODEL), Content("Hi"), Finish("stop")], None)


def test_progress_of_llama_cpp_is_passed_on() -> None:
    progress = {"total": 900, "cache": 0, "processed": 512, "time_ms": 1034}
    parts, _ = parse(chunk({"role": "assistant", "content": None}, prompt_progress=progress), answer("Hi"))
    assert parts[:3] == [ActualModel(MODEL), Progress(512, 900), Content("Hi")]


# ---- reasoning


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning"])
def test_reasoning_has_two_names(key: str) -> None:
    parts, failure = parse(reasoning("Let me ", "see.", key=key) + text("Four.") + finish())
    assert (parts[1:3], failure) == ([Reasoning("Let me see."), Content("Four.")], None)


def test_reasoning_under_both_names_counts_once() -> None:
    parts, _ = parse(chunk({"reasoning": "Hm.", "reasoning_content": "Hm.", "content": ""}) + answer("Four."))
    assert parts[1:3] == [Reasoning("Hm."), Content("Four.")]


@pytest.mark.parametrize(
    ("said", "thought", "answered"),
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
def test_think_tags_are_reasoning_at_the_very_beginning_only(said: str, thought: str, answered: str) -> None:
    for reads in ([text(said)], [text(*said)], bytewise(text(*said)), [text(said[:8]), text(said[8:])]):
        parts, failure = parse(*reads, finish())
        assert failure is None
        assert "".join(part.text for part in parts if isinstance(part, Reasoning)) == thought
        assert "".join(part.text for part in parts if isinstance(part, Content)) == answered


def test_white_space_is_not_held_back_for_ever() -> None:
    wire = AnswerParser(LMSTUDIO)
    assert Content(" " * 2000) in wire.feed(text(" " * 2000))


# ---- bytes and characters


AWKWARD = "Grüße, 世界 \U0001f600 \u2028\u2029\u0085\x0b\x0c\x1c e\u0301 \ufeff"


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_answer_is_the_same_wherever_it_is_cut(line_end: bytes) -> None:
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
def test_halves_of_a_surrogate_pair_are_joined_and_lone_ones_replaced(halves: tuple[str, str], meant: str) -> None:
    first, second = (b'data: {"choices":[{"delta":{"content":"%s"}}]}\n\n' % half.encode() for half in halves)
    rest = text(".") + finish()
    assert content(first + second + rest) == meant + "."
    assert content(first, second, rest) == meant + "."


def test_a_reason_to_finish_is_a_short_text() -> None:
    reason = rb"\ud800" + b"x" * 10_000
    end = b'data: {"choices":[{"delta":{},"finish_reason":"%s"}]}\n\n' % reason
    parts, _ = parse(text("Hi"), end)
    [told] = [part.reason for part in parts if isinstance(part, Finish)]
    assert told.encode() and 0 < len(told) <= MESSAGE_CHARACTERS


def test_half_of_a_pair_does_not_reach_over_into_another_kind() -> None:
    half = b'data: {"choices":[{"delta":{"reasoning":"\\ud83d"}}]}\n\n'
    parts, _ = parse(half, text("a") + finish())
    assert parts == [ActualModel(MODEL), Reasoning("\ufffd"), Content("a"), Finish("stop")]


@pytest.mark.parametrize("broken", [b"\xff", b"\xc3", b"\xed\xa0\xbd", b"\xf0\x9f\x98"])
def test_bytes_that_are_not_utf8_become_replacement_characters(broken: bytes) -> None:
    stream = text("a~b").replace(b"~", broken) + finish()
    said = content(stream)
    assert said == content(*bytewise(stream))
    assert said.startswith("a\ufffd") and said.endswith("b") and said.strip("ab\ufffd") == ""


# ---- what is not an answer


def test_stream_that_just_ends_was_cut_short() -> None:
    parts, failure = parse(text("Hi"))
    assert parts == [ActualModel(MODEL), Content("Hi")]
    assert failure is not None and failure.code == "ANSWER_CUT_SHORT"


def test_text_that_was_held_back_is_not_lost_when_the_stream_ends() -> None:
    parts, failure = parse(text("Hi <thi", "<think>")[:-40], broken=True)
    assert parts == [ActualModel(MODEL), Content("Hi <thi")]
    assert failure is not None and failure.code == "ANSWER_CUT_SHORT"


@pytest.mark.parametrize(
    ("stream", "hint"),
    [
        (b"", "too long for its context"),
        (DONE, "too long for its context"),
        (chunk({"role": "assistant", "content": ""}) + finish() + usage(9, 0) + DONE, "too long for its context"),
        (text("\n") + finish() + DONE, "too long for its context"),
        (reasoning("\n") + text("\n") + finish() + DONE, "too long for its context"),
        (chunk({"role": "assistant"}) + finish("length"), "max_tokens"),
        (chunk({"tool_calls": [{"index": 0, "function": {"name": "f"}}]}) + finish("tool_calls"), "tool"),
    ],
)
def test_answer_without_a_word_is_an_error_that_says_why(stream: bytes, hint: str) -> None:
    failure = failure_of(stream)
    assert failure.code == "EMPTY_ANSWER" and hint in failure.message


def test_usage_is_told_even_when_the_answer_is_empty() -> None:
    assert Usage(9, 0, 9) in parse(finish() + usage(9, 0) + DONE)[0]


def test_connection_that_breaks_before_the_first_word_is_not_called_an_empty_answer() -> None:
    _, failure = parse(chunk({"role": "assistant"}), broken=True)
    assert failure is not None and failure.code == "ANSWER_CUT_SHORT"


def test_connection_that_breaks_after_the_finish_breaks_nothing() -> None:
    assert parse(text("Hi") + finish(), broken=True) == ([ActualModel(MODEL), Content("Hi"), Finish("stop")], None)


def test_four_events_that_are_not_json_are_a_failure() -> None:
    stream = event("{") + event("[]") + event("7") + event('"x"') + answer("Hi")
    assert failure_of(stream).code == "PROVIDER_ERROR"


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(b"data: " + b"x" * EVENT_BYTES, id="a line"),
        pytest.param(b": " + b"x" * EVENT_BYTES + b"\n\n", id="a comment"),
        pytest.param((b"data: " + b"x" * 1000 + b"\n") * 1100, id="an event of many lines"),
    ],
)
def test_line_and_event_are_bounded(stream: bytes) -> None:
    wire = AnswerParser(LMSTUDIO)
    reads = 0
    for place in range(0, 13 * EVENT_BYTES, 65536):
        reads += 1
        wire.feed((stream * 13)[place : place + 65536])
        if wire.finished:
            break
    assert reads <= EVENT_BYTES // 65536 + 2
    assert wire.failure is not None and wire.failure.code == "PROVIDER_ERROR"


def test_a_server_that_only_keeps_the_connection_alive_does_so_for_as_long_as_it_likes() -> None:
    wire = AnswerParser(LMSTUDIO)
    for _ in range(3):
        wire.feed((b": " + b" " * 2000 + b"\n\n") * (EVENT_BYTES // 4000))
    wire.feed(text("Hi") + finish())
    assert wire.failure is None and wire.finish_reason == "stop"


def test_a_hundred_thousand_tiny_deltas_are_one_text() -> None:
    assert content(text("ab") * 100_000 + finish()) == "ab" * 100_000


# ---- errors inside of the stream


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(event({"error": {"message": "Compute error."}}, "error"), id="event: error with an object"),
        pytest.param(event({"message": "Compute error."}, "error"), id="event: error with a message"),
        pytest.param(event("Compute error.", "error"), id="event: error with text"),
        pytest.param(error("Compute error."), id="data with an object"),
        pytest.param(event({"error": "Compute error."}), id="data with a text"),
        pytest.param(
            event({"error": {"message": "Compute error."}, "message": "Compute error."}), id="error and message"
        ),
        pytest.param(
            event({"error": {"code": 500, "message": "Compute error.", "type": "server_error"}}), id="llama.cpp"
        ),
        pytest.param(event({"object": "error", "message": "Compute error.", "code": 500}), id="vLLM, older"),
        pytest.param(b'error: {"code":500,"message":"Compute error."}\n\n', id="llama.cpp, older"),
        pytest.param(b'data: {"error": {"message": "Compute error. \\ud83d"}}\n\n', id="with half a character"),
        pytest.param(b'event: error\ndata: {"error": {"message": "Compute error."}}', id="no line end"),
    ],
)
@pytest.mark.parametrize("before", [b"", text("Hi"), text("Hi") + finish()])
def test_error_in_the_stream_ends_the_answer_with_the_servers_words(frame: bytes, before: bytes) -> None:
    for reads in ([before + frame + answer("no")], bytewise(before + frame)):
        if frame.endswith(b"}") and len(reads) == 1:
            continue  # an event that never ended is one only at the end of the stream
        parts, failure = parse(*reads)
        assert failure is not None
        assert (failure.code, failure.message.strip(" .")) == ("PROVIDER_ERROR", "LM Studio said: Compute error")
        assert [part for part in parts if isinstance(part, Content)] == ([Content("Hi")] if before else [])


def test_error_event_without_a_word_is_still_an_error() -> None:
    assert failure_of(text("Hi") + b"event: error\n\n").code == "PROVIDER_ERROR"
    assert failure_of(text("Hi") + event({}, "error")).message == "LM Studio reported an error."


# ---- what errors mean, in every server's words


OLD_OVERFLOW = (
    "Trying to keep the first 5210 tokens when context the overflows. However, the model is loaded with context length "
    "of only 4096 tokens, which is not enough. Try to load the model with a larger context length, or provide a shorter "
    "input"
)
NEW_OVERFLOW = (
    "The number of tokens to keep from the initial prompt is greater than the context length (n_keep: 13055>= n_ctx: "
    "4096). Try to load the model with a larger context length, or provide a shorter input."
)
GPT_OSS_OVERFLOW = (
    "Reached context length of 32000 tokens with model (arch: gpt-oss) that does not currently support mid-generation "
    "context overflow. Try reloading with a larger context length or shortening the prompt/chat."
)


@pytest.mark.parametrize(
    ("payload", "n_ctx", "n_prompt"),
    [
        pytest.param({"error": OLD_OVERFLOW}, 4096, 5210, id="LM Studio 0.3"),
        pytest.param({"error": NEW_OVERFLOW}, 4096, 13055, id="LM Studio 0.4"),
        pytest.param({"error": {"message": GPT_OSS_OVERFLOW}}, 32000, None, id="LM Studio, gpt-oss"),
        pytest.param(
            {"error": {"code": 400, "message": "the request exceeds the available context size, try increasing it",
                       "type": "exceed_context_size_error", "n_prompt_tokens": 9001, "n_ctx": 8192}},
            8192, 9001, id="llama.cpp",
        ),
        pytest.param(
            {"error": {"message": "request (9001 tokens) exceeds the available context size (8192 tokens), try increasing it"}},
            8192, 9001, id="llama.cpp, in words",
        ),
        pytest.param(
            {"object": "error", "type": "BadRequestError", "code": 400, "message": "This model's maximum context length is "
             "4096 tokens. However, you requested 5000 tokens (4900 in the messages, 100 in the completion)."},
            4096, 5000, id="vLLM",
        ),
        pytest.param(
            {"error": {"message": "The decoder prompt (length 5000) is longer than the maximum model length of 4096."}},
            4096, 5000, id="vLLM, newer",
        ),
        pytest.param({"error": {"message": "the input length exceeds the context length"}}, None, None, id="Ollama"),
        pytest.param(
            {"error": {"message": "Requested tokens (5000) exceed context window of 4096"}}, 4096, 5000, id="llama-cpp-python",
        ),
        pytest.param({"error": {"message": "Too long.", "code": "context_length_exceeded"}}, None, None, id="OpenAI"),
    ],
)  # fmt: skip
def test_context_overflow_is_known_in_every_wording_with_its_numbers(
    payload: Any, n_ctx: int | None, n_prompt: int | None
) -> None:
    for failure in (refusal(LMSTUDIO, payload, 400), failure_of(event(payload)), failure_of(event(payload, "error"))):
        room = f", which has room for {n_ctx} tokens" if n_ctx else ""
        taken = f" It takes {n_prompt}." if n_prompt else ""
        assert failure.code == "CONTEXT_OVERFLOW"
        assert f"context{room}.{taken} Load the model with a larger context length" in failure.message


NO_MODEL = "No models loaded. Please load a model in the developer page or use the 'lms load' command."


@pytest.mark.parametrize(
    ("status", "payload", "code"),
    [
        (404, {"error": {"message": NO_MODEL, "type": "invalid_request_error", "param": "model", "code": None}},
         "MODEL_NOT_LOADED"),
        (400, {"error": {"message": NO_MODEL}}, "MODEL_NOT_LOADED"),
        (404, {"error": {"message": 'Invalid model identifier "X".', "type": "invalid_request", "code": "model_not_found"}},
         "MODEL_NOT_FOUND"),
        (404, {"error": {"message": "model 'x' not found, try pulling it first", "type": "not_found_error"}},
         "MODEL_NOT_FOUND"),
        (404, {"error": {"message": "The model `x` does not exist.", "type": "NotFoundError", "code": 404}},
         "MODEL_NOT_FOUND"),
        (400, {"error": 'Failed to load model "X". Error: Operation canceled.'}, "MODEL_LOAD_FAILED"),
        (400, {"error": {"message": 'Failed to load model "X". Error: Model loading aborted due to insufficient system '
                                    "resources. Overloading the system will likely cause it to freeze. Try a smaller "
                                    "context length."}}, "MODEL_LOAD_FAILED"),
        (400, {"error": {"message": "Model is unloaded."}}, "MODEL_LOAD_FAILED"),
        (400, {"error": {"message": "The model has crashed without additional information. (Exit code: 6)"}},
         "MODEL_LOAD_FAILED"),
        (400, {"error": {"message": "Channel Error"}}, "MODEL_LOAD_FAILED"),
        (500, {"error": {"message": "Model does not support images. Please use a model that does."}}, "VISION_UNSUPPORTED"),
        (500, {"error": {"message": "image input is not supported - hint: you may need to provide the mmproj"}},
         "VISION_UNSUPPORTED"),
        (503, {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}, "PROVIDER_BUSY"),
        (503, {"error": {"message": "server busy, please try again.  maximum pending requests exceeded"}}, "PROVIDER_BUSY"),
        (429, {"error": {"message": "Slow down."}}, "PROVIDER_BUSY"),
        (504, "", "PROVIDER_TIMEOUT"),
        (401, {"error": "no"}, "PROVIDER_AUTH"),
        (403, "", "PROVIDER_AUTH"),
        (400, {"error": {"message": "Error rendering prompt with jinja template"}}, "PROVIDER_ERROR"),
        (422, {"detail": "messages: field required"}, "PROVIDER_ERROR"),
        (500, "", "PROVIDER_ERROR"),
        (500, None, "PROVIDER_ERROR"),
        (500, {"error": {"message": {"deep": [1]}}}, "PROVIDER_ERROR"),
        (500, ["?"], "PROVIDER_ERROR"),
    ],
)  # fmt: skip
def test_refusal_has_the_code_that_its_words_and_status_mean(status: int, payload: Any, code: str) -> None:
    failure = refusal(LMSTUDIO, payload, status)
    assert failure.code == code
    assert failure.message.startswith("LM Studio")


def test_servers_own_words_are_kept_because_they_say_what_to_do() -> None:
    assert refusal(LMSTUDIO, {"error": {"message": NO_MODEL}}, 400).message == f"LM Studio said: {NO_MODEL}"


def test_web_page_is_not_shown_but_named() -> None:
    message = refusal(LMSTUDIO, " <!DOCTYPE html><title>nginx</title>", 502).message
    assert message == "LM Studio answered with a web page and HTTP status 502. Check the url of the provider lmstudio."


def test_refusal_of_a_key_names_the_setting() -> None:
    assert "FIRESIDE_LMSTUDIO_API_KEY" in refusal(LMSTUDIO, {"error": "bad"}, 401).message
    assert refusal(OTHER, {"error": "bad"}, 401).message.endswith("api_key of the provider box in config.toml.")


@pytest.mark.parametrize(
    "words",
    [
        "Incorrect API key provided: sk-secret-0123456789.",
        "Malformed LM Studio API token provided: sk-secret-**************",
        "x" * 290 + "sk-secret-0123456789",
    ],
)
def test_key_is_never_shown_not_even_its_beginning(words: str) -> None:
    assert "sk-secre" not in refusal(OTHER, {"error": {"message": words}}, 401).message


def test_words_are_shown_short_on_one_line_and_without_control_characters() -> None:
    assert display_text("a\x1b[31m\r\n\tb \u202ec\x00 d\ud800") == "a [31m b c d"
    assert len(display_text("wörd " * 1000)) == 300
    assert len(refusal(OTHER, {"error": "y" * 100_000}, 500).message) < 400
    refusal(OTHER, {"error": "\ud800" * 400}, 500).message.encode()


def test_address_of_the_server_is_never_display_text() -> None:
    provider = Provider("box", "openai", "The box", "http://10.0.0.5:1234/v1")
    words = {"error": "Cannot POST http://10.0.0.5:1234/v1/chat"}
    assert refusal(provider, words, 500).message == "The box said: Cannot POST http://[address]/v1/chat"


# ---- a hostile server


@pytest.mark.parametrize("words", ["model ", "no models ", "not support", "context ", "(length ", " "])
def test_error_of_a_mebibyte_is_understood_at_once(words: str) -> None:
    began = time.thread_time()
    failure_of(event({"error": {"message": words * (1_000_000 // len(words))}}))
    failure_of(event({"error": {"message": words * (60_000 // len(words)), "code": [[]] * 1000}}))
    assert time.thread_time() - began < 0.3


@pytest.mark.parametrize("delta", ['"model":1', '"choices":[0]', '"choices":[{"delta":{"content":"\\ud800"}}]'])
def test_repairing_an_event_takes_little_longer_than_reading_it(delta: str) -> None:
    def spent(event: bytes) -> float:
        began = time.thread_time()
        AnswerParser(LMSTUDIO).feed(event * 10_000)
        return time.thread_time() - began

    assert spent(f"data:{{{delta}}}\n\n".encode()) < 22 * spent(b'data:{"choices":[{"delta":{"content":"x"}}]}\n\n')


@pytest.mark.parametrize(
    "flood", [b"\n", b": ping\n\n", b"data:\n\n", chunk({}), text("x", model="y") + chunk(model="z" * 5000)]
)
def test_answer_with_too_much_around_its_text_is_ended(flood: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "OVERHEAD_BYTES", 500_000)
    answer, fed = AnswerParser(LMSTUDIO), 0
    read = flood * (50_000 // len(flood))
    while not answer.finished:
        answer.feed(read)
        fed += len(read)
    assert answer.failure is not None and answer.failure.message == "LM Studio sent too much data with too little text."
    assert 500_000 < fed < 1_000_000


def test_answer_of_one_character_per_event_is_not_ended() -> None:
    answer, event = AnswerParser(LMSTUDIO), text("x", model="y" * 300)
    for _ in range(2 * OVERHEAD_BYTES // len(event) // 1000):
        answer.feed(event * 1000)
    assert not answer.finished


# ---- bytes that make no sense


WRONG: list[Any] = [None, True, 0, -1, 1.5, 2**70, "", "x", [], [[]], [None], {}, {"a": 1}, "\udc00"]
CHUNK = json.loads(chunk({"role": "assistant", "content": "Hi", "reasoning": "Hm"}, "stop", usage=COUNTS)[5:])


def places(value: Any) -> list[list[Any]]:
    """The path to everything within a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [[name, *path] for name, child in inner for path in [[], *places(child)]]


@pytest.mark.parametrize("path", places(CHUNK), ids=str)
def test_no_field_of_a_wrong_type_costs_more_than_itself(path: list[Any]) -> None:
    for wrong in WRONG:
        value = json.loads(json.dumps(CHUNK))
        at = value
        for name in path[:-1]:
            at = at[name]
        at[path[-1]] = wrong
        parts, failure = parse(event(json.dumps(value)))
        texts = [part.text for part in parts if isinstance(part, Content)]
        if "choices" not in path or path[-1] in ("finish_reason", "index", "role", "reasoning", "logprobs"):
            assert texts == ["Hi"], wrong
        if "usage" not in path and not failure:
            assert Usage(5, 2, 7) in parts, wrong


def mutated(stream: bytes, chance: random.Random) -> bytes:
    data = bytearray(stream)
    for _ in range(chance.randint(1, 6)):
        start = chance.randrange(len(data) + 1)
        stop = min(len(data), start + chance.choice((0, 1, 1, 2, 8, 60)))
        piece = chance.choice(
            [
                b"",
                chance.randbytes(chance.randint(1, 4)),
                bytes(data[start:stop]) * 2,
                chance.choice(
                    [b"\n", b"\r", b"\r\n", b"\n\n", b"data: ", b"event: error\n", b":", b'"', b"{", b"}", b"]"]
                ),
                chance.choice(
                    [b"\\ud83d", b"\\ude00", b"\\u", b"\xe2\x80\xa8", b"<think>", b"</think>", b"null", b"-1"]
                ),
                chance.choice([DONE, error("x"), finish(), usage(1, 1), text("z"), b"\xef\xbb\xbf"]),
            ]
        )
        data[start:stop] = piece
    return bytes(data)


def test_five_thousand_mutated_streams_never_crash_and_mean_the_same_however_they_are_cut() -> None:
    chance = random.Random(20240115)
    streams = [
        answer("Hel", "lo \U0001f600", AWKWARD),
        reasoning("Hm") + text("<think>a</think>b", "c") + finish("length") + usage(3, 4),
        text("<think>", "x", "</thi", "nk>", "y").replace(b"\n", b"\r\n") + finish() + DONE,
        b'data: {"choices":[{"delta":{"content":"\\ud83d"}}]}\n\ndata: {"choices":[{"delta":{"content":"\\ude00"}}]}\n\n'
        + DONE,
    ]
    outcomes: set[str] = set()
    for _ in range(5000):
        stream = mutated(chance.choice(streams), chance)
        whole, failure = parse(stream)
        cuts = sorted(chance.sample(range(len(stream) + 1), min(4, len(stream))))
        reads = [stream[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
        parts, again = parse(*reads)
        assert parts == whole
        assert (again and (again.code, again.message)) == (failure and (failure.code, failure.message))
        for part in whole:
            if isinstance(part, Content | Reasoning):
                part.text.encode()
        if failure:
            failure.message.encode()
        outcomes.add(failure.code if failure else "ok")
    assert outcomes >= {"ok", "PROVIDER_ERROR", "ANSWER_CUT_SHORT", "EMPTY_ANSWER"}


def test_noise_is_no_answer() -> None:
    chance = random.Random(7)
    for size in (0, 1, 10, 1000, 100_000):
        assert failure_of(chance.randbytes(size)).code in ("EMPTY_ANSWER", "PROVIDER_ERROR")


@pytest.mark.parametrize("name", ["choices", "error", "other"])
def test_json_nested_too_deep_is_passed_over(name: str) -> None:
    deep = event(f'{{"{name}":' + "[" * 100_000 + "]" * 100_000 + "}")
    assert content(deep + answer("Hi")) == "Hi"
