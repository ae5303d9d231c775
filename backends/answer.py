"""One streamed answer of an OpenAI-compatible server: bytes in, parts out.

Servers write the same server-sent events with differences: usage in a chunk with or without choices, content as a text or
as an array of parts, reasoning under several names, among these parts or between <think> tags, errors in five shapes, the
end with or without [DONE].
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Annotated, Any, TypeVar

import msgspec

from ..config import Provider
from ..errors import ProviderFailed
from .failures import display_text, reported_error
from .loose import clean, decode_small

EVENT_BYTES = 1024 * 1024  # of one line, and of one event
UNDECODABLE_EVENTS = 3  # are ignored; one more is an error
# Bytes of an answer besides its text: comments, empty events and JSON. Usual chunks have 50 to 150 bytes per character.
OVERHEAD_BYTES = 16 * 1024 * 1024
OVERHEAD_BYTES_PER_CHARACTER = 1024
ENGINE_CHARACTERS = 100  # of the name of a version
MAX_CALLS = 1000  # of tools in one answer
THINK_TAG_CHARACTERS = 1000  # of white space, after which a <think> no longer counts


_Count = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]


class Sent(msgspec.Struct, frozen=True):
    """The body of the request, before any part of the answer, and the SHA-256 of its bytes."""

    body: dict[str, Any]
    sha256: str


class Content(msgspec.Struct, frozen=True):
    text: str


class Reasoning(msgspec.Struct, frozen=True):
    text: str


class ActualModel(msgspec.Struct, frozen=True):
    """The model that answers. It need not be the requested one (lmstudio-bug-tracker#1217)."""

    model: str
    engine: str = ""  # the version of the server's engine, such as llama.cpp's "b6139-c1a2b3c4"


class Progress(msgspec.Struct, frozen=True):
    """Tokens of the prompt: processed so far, and in total."""

    done: _Count = msgspec.field(name="processed")
    total: _Count


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: _Count = 0
    completion_tokens: _Count = 0
    total_tokens: _Count = 0


class Finish(msgspec.Struct, frozen=True):
    """The end of a complete answer. The server's reason: stop, length, tool_calls; "" if it sent only [DONE]."""

    reason: str


class Chunks(msgspec.Struct, frozen=True):
    """Chunks as the server sent them, for another program. Chunks with nothing but the usage come apart: they need not be wanted."""

    data: list[bytes]  # JSON
    usage_only: bool = False


class CallPiece(msgspec.Struct, frozen=True):
    """A piece of a call of a tool: the first has `id` and `name`, the others more of `arguments`."""

    index: int
    id: str
    name: str
    arguments: str


Part = Sent | Content | Reasoning | ActualModel | Progress | Usage | Finish | Chunks | CallPiece


_Struct = TypeVar("_Struct", bound=msgspec.Struct)


class _TextPart(msgspec.Struct):
    """A part of an array. Its kind is in `type`, or in which field has the text."""

    type: str | None = None
    text: str | None = None
    summary: str | None = None
    thinking: "str | list[str | _TextPart] | None" = None  # Mistral: an array again


_TextParts = list[str | _TextPart]


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct):
    index: Annotated[int, msgspec.Meta(ge=0, lt=MAX_CALLS)] = 0
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct):
    tool_calls: list[_Call] | None = None
    function_call: _Function | None = None  # OpenAI's first form
    content: str | _TextParts | None = None
    reasoning_content: str | None = None  # DeepSeek, llama.cpp, LM Studio
    reasoning: str | None = None  # Ollama, vLLM
    thinking: str | None = None
    reasoning_details: _TextParts | None = None  # OpenRouter, which repeats `reasoning` in it
    refusal: str | None = None  # OpenAI: the text that replaces an answer


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    model: str | None = None
    system_fingerprint: str | None = None  # LM Studio: the model; llama.cpp: its version
    choices: list[_Choice] | None = None
    usage: Usage | None = None
    prompt_progress: Progress | None = None
    object: str | None = None
    error: Any = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_FIELDS: dict[Any, tuple[msgspec.structs.FieldInfo, ...]] = {
    kind: msgspec.structs.fields(kind) for kind in (_Chunk, _Choice, _Delta)
}


def _parse_chunk(data: bytes) -> _Chunk | None:
    """Decode an event, without fields of a wrong type. Return None for what is not a JSON object."""
    try:
        return _decode_chunk(data)
    except (ValueError, RecursionError):
        value = decode_small(data)
    if not isinstance(value, dict):
        return None
    choices = value.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        value["choices"] = [_convert(_Choice, choices[0] | {"delta": _convert(_Delta, choices[0].get("delta"))})]
    return _convert(_Chunk, value)


def _convert(kind: type[_Struct], value: Any) -> _Struct:
    """Return `kind` with those fields of `value` that have the right type."""
    fields = {}
    for field in _FIELDS[kind] if isinstance(value, dict) else ():
        if field.name in value:
            with suppress(ValueError):
                fields[field.name] = msgspec.convert(value[field.name], field.type)
    return kind(**fields)


def _split_parts(parts: _TextParts) -> tuple[str, str]:
    """Return (reasoning, answer)."""
    reasoning: list[str] = []
    answer: list[str] = []
    for part in parts:
        if isinstance(part, str):
            answer.append(part)
        elif isinstance(part.thinking, list):
            reasoning += _split_parts(
                [one if isinstance(one, str) else _TextPart(text=one.text) for one in part.thinking]
            )
        else:
            is_reasoning = part.thinking or (part.type or "").startswith(("reasoning", "thinking"))
            (reasoning if is_reasoning else answer).append(part.thinking or part.text or part.summary or "")
    return "".join(reasoning), "".join(answer)


class _EventSplitter:
    """Split bytes into server-sent events, wherever the reads have cut them.

    Lines end with \\n, \\r\\n or \\r only: U+2028 and similar characters may stand inside JSON strings.
    """

    def __init__(self) -> None:
        self._rest = bytearray()  # an incomplete line
        self._after_cr = False
        self._first_line = True
        self._name = b""
        self._data: list[bytes] = []
        self._size = 0

    def split(self, data: bytes) -> Iterable[tuple[bytes, bytes]]:
        """Return (name, data) of each event that ends in these bytes. Raises OverflowError beyond EVENT_BYTES."""
        is_new = not (self._size or self._rest or self._after_cr)
        if is_new and data.startswith(b"data: ") and data.endswith(b"\n\n") and len(data) <= EVENT_BYTES:
            events = data[6:-2].split(b"\n\ndata: ")
            if data.count(b"\n") == 2 * len(events) and b"\r" not in data:  # as nearly all servers send them
                self._first_line = False
                return [(b"", event) for event in events]
        return self._split_lines(data)

    def _split_lines(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        for line in self._lines(data):
            if line:
                self._add_field(line)
            elif self._size:
                name, values = self._name, self._data
                self._name, self._data, self._size = b"", [], 0
                if name or values:
                    yield name, b"\n".join(values)

    def _lines(self, data: bytes) -> list[bytes]:
        if self._after_cr and data:
            self._after_cr = False
            data = data.removeprefix(b"\n")
        if not data:
            return []
        self._after_cr = data.endswith(b"\r")
        complete = data.endswith((b"\n", b"\r"))
        lines = data.splitlines()
        if self._rest or not complete:
            self._rest += lines[0]
            if len(self._rest) > EVENT_BYTES:
                raise OverflowError
            if len(lines) == 1 and not complete:
                return []
            lines[0] = bytes(self._rest)
            self._rest = bytearray() if complete else bytearray(lines.pop())
        return lines

    def _add_field(self, line: bytes) -> None:
        if self._first_line:
            self._first_line = False
            line = line.removeprefix(b"\xef\xbb\xbf")
        self._size += len(line)
        if self._size > EVENT_BYTES:
            raise OverflowError
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._name = value
        elif name == b"error":  # older llama.cpp servers
            self._name = name
            self._data.append(value)


class _ThinkTags:
    """Split content into reasoning and answer. A <think> counts only at the beginning, after white space at most."""

    def __init__(self) -> None:
        self.stage = "start"  # start, opened, reasoning, closed, answer
        self.held = ""  # what may be the beginning of a tag

    def split(self, text: str) -> tuple[str, str]:
        """Return (reasoning, answer)."""
        text, self.held, reasoning = self.held + text, "", ""
        if self.stage == "start":
            stripped = text.lstrip()
            if "<think>".startswith(stripped) and len(text) < THINK_TAG_CHARACTERS:
                self.held = text
                return "", ""
            is_tag = stripped.startswith("<think>")
            self.stage, text = ("opened", stripped.removeprefix("<think>")) if is_tag else ("answer", text)
        if self.stage == "opened" and (text := text.lstrip()):
            self.stage = "reasoning"
        if self.stage == "reasoning":
            reasoning, closed, text = text.partition("</think>")
            if closed:
                self.stage = "closed"
            else:
                held = next((size for size in range(7, 0, -1) if reasoning.endswith("</think>"[:size])), 0)
                reasoning, self.held = reasoning[: len(reasoning) - held], reasoning[len(reasoning) - held :]
        if self.stage == "closed" and (text := text.lstrip()):
            self.stage = "answer"
        return reasoning, text


_SURROGATE = re.compile("[\ud800-\udfff]")


class AnswerParser:
    """Parse one streamed answer: bytes in, parts out.

    An answer is complete when it has a finish_reason or [DONE], and at least one word.

    `for_program`: another program gets the chunks too. It may ask for calls of tools, or for nothing but a finish_reason.
    """

    def __init__(self, provider: Provider, for_program: bool = False) -> None:
        self._for_program = for_program
        self._chunks: list[bytes] = []
        self.finished = False  # nothing more is expected
        self.finish_reason: str | None = None
        self.failure: ProviderFailed | None = None  # final after `end`
        self._provider = provider
        self._events = _EventSplitter()
        self._think_tags = _ThinkTags()
        self._undecodable_events = 0
        self._done = self._has_words = False
        self._model = ""
        self._usage: Usage | None = None
        self._parts: list[Part] = []
        self._kind: type[Content] | type[Reasoning] = Content
        self._texts: list[str] = []  # of this kind, not yet a part
        self._high_surrogate = ""  # the other half may follow
        self._overhead_left = OVERHEAD_BYTES

    def feed(self, data: bytes) -> list[Part]:
        """Return the parts that these bytes complete. Adjacent texts of one kind become one part. Of adjacent Progress, the last is returned."""
        self._overhead_left -= len(data)
        try:
            if not self.finished:
                for name, event in self._events.split(data):
                    self._add_event(name, event)
                    if self.finished:
                        break
        except ProviderFailed as failure:
            self._fail(failure)
        except OverflowError:
            self._fail(self._error("PROVIDER_ERROR", "sent a line or an event of over 1 MiB."))
        self._flush()
        if self._chunks:
            self._flush_chunks()
        if self._overhead_left < 0 and not self.finished:
            self._fail(self._error("PROVIDER_ERROR", "sent too much data with too little text."))
        parts, self._parts = self._parts, []
        return parts

    def end(self, disconnected: bool = False) -> list[Part]:
        """Return the last parts: text that was held back, Usage if known, Finish if the answer is complete.

        `disconnected`: the connection was lost, not closed by the server.
        """
        parts = self.feed(b"\n\n")  # the blank line after the last event may be missing
        if (held := self._think_tags.held) and not held.isspace():
            self._add_text(Reasoning if self._think_tags.stage == "reasoning" else Content, held)
        self._flush(last=True)
        self.finished = True
        self.failure = self.failure or self._incompleteness(disconnected)
        parts += self._parts
        if self._usage:
            parts.append(self._usage)
        if not self.failure:
            parts.append(Finish(self.finish_reason or ""))
        return parts

    def _fail(self, failure: ProviderFailed) -> None:
        self.finished, self.failure = True, failure

    def _error(self, code: str, what: str) -> ProviderFailed:
        return ProviderFailed(code, f"{self._provider.name} {what}")

    def _incompleteness(self, disconnected: bool) -> ProviderFailed | None:
        ends_early = disconnected or self._has_words or self._for_program
        if not self._done and self.finish_reason is None and ends_early:
            return self._error("ANSWER_CUT_SHORT", "broke off before its answer was complete.")
        if self._has_words or self._for_program:
            return None
        if self.finish_reason == "length":
            return self._error(
                "EMPTY_ANSWER", "reached its limit of tokens before the first word. Increase max_tokens."
            )
        if self.finish_reason in ("tool_calls", "function_call"):
            return self._error("EMPTY_ANSWER", "called a tool instead of answering. Fireside does not support tools.")
        reason = f" with the reason “{self.finish_reason}”" if self.finish_reason else " and no reason"
        return self._error("EMPTY_ANSWER", f"sent an empty answer{reason}.")

    def _add_event(self, name: bytes, data: bytes) -> None:
        if name == b"error":
            raise reported_error(self._provider, data)
        if data == b"[DONE]":
            self._done = self.finished = True
        elif data:
            chunk = _parse_chunk(data)
            if chunk is None:
                self._undecodable_events += 1
                if self._undecodable_events > UNDECODABLE_EVENTS:
                    raise self._error("PROVIDER_ERROR", "sent events that are not JSON.")
            elif chunk.error or chunk.object == "error":
                raise reported_error(self._provider, data)
            else:
                if self._for_program and chunk.usage and not chunk.choices:
                    self._flush_chunks()
                    self._parts.append(Chunks([data], usage_only=True))
                elif self._for_program:
                    self._chunks.append(data)
                self._add_chunk(chunk)

    def _add_chunk(self, chunk: _Chunk) -> None:
        if chunk.model and chunk.model != self._model:
            self._model = chunk.model
            engine = chunk.system_fingerprint if chunk.system_fingerprint != chunk.model else None
            self._add_part(ActualModel(display_text(chunk.model), display_text(engine or "")[:ENGINE_CHARACTERS]))
        if usage := chunk.usage:
            total = usage.total_tokens or usage.prompt_tokens + usage.completion_tokens
            self._usage = msgspec.structs.replace(usage, total_tokens=total) if total else self._usage
        if chunk.prompt_progress:
            if self._parts and isinstance(self._parts[-1], Progress):
                self._parts.pop()
            self._add_part(chunk.prompt_progress)
        if not chunk.choices:
            return
        choice = chunk.choices[0]
        if choice.finish_reason:
            self.finish_reason = display_text(choice.finish_reason)
        if delta := choice.delta:
            content = delta.content
            if reasoning := delta.reasoning_content or delta.reasoning or delta.thinking:
                self._add_text(Reasoning, reasoning)
            elif delta.reasoning_details:
                self._add_text(Reasoning, _split_parts(delta.reasoning_details)[0])
            if isinstance(content, list):
                thought, content = _split_parts(content)
                self._add_text(Reasoning, thought)
            if content and self._think_tags.stage == "answer":
                self._add_text(Content, content)
            elif content:
                thought, answer = self._think_tags.split(content)
                self._add_text(Reasoning, thought)
                self._add_text(Content, answer)
            if delta.refusal:
                self._add_text(Content, delta.refusal)
            if self._for_program:
                self._add_calls(delta)

    def _flush_chunks(self) -> None:
        if self._chunks:
            self._parts.append(Chunks(self._chunks))
            self._chunks = []

    def _add_calls(self, delta: _Delta) -> None:
        calls = delta.tool_calls or ([_Call(function=delta.function_call)] if delta.function_call else [])
        for call in calls:
            function = call.function or _Function()
            name, arguments = function.name or "", function.arguments or ""
            self._overhead_left += OVERHEAD_BYTES_PER_CHARACTER * len(arguments)
            self._parts.append(CallPiece(call.index, clean(call.id or ""), clean(name), clean(arguments)))

    def _add_part(self, part: Part) -> None:
        self._flush()
        self._parts.append(part)

    def _add_text(self, kind: type[Content] | type[Reasoning], text: str) -> None:
        if kind is not self._kind and text:
            self._flush(last=True)
            self._kind = kind
        self._texts.append(text)

    def _flush(self, last: bool = False) -> None:
        """Make one part of the texts. The halves of a surrogate pair are joined, also across reads."""
        text = self._high_surrogate + "".join(self._texts)
        self._texts.clear()
        self._high_surrogate = ""
        if not text.isascii() and _SURROGATE.search(text):
            if not last and "\ud800" <= text[-1] <= "\udbff":
                text, self._high_surrogate = text[:-1], text[-1]
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if text:
            self._overhead_left += OVERHEAD_BYTES_PER_CHARACTER * len(text)
            self._has_words = self._has_words or not text.isspace()
            self._parts.append(self._kind(text))
