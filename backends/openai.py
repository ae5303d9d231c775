"""One streamed answer: bytes in, parts out; and what a server's error means. There is no network here.

The format is OpenAI's chat completion chunks in server-sent events, as LM Studio, Ollama, llama.cpp and vLLM write it,
which is not quite alike: usage in a chunk with or without choices, reasoning under two names or between tags, errors in
five shapes, the end with or without [DONE].
"""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

import msgspec

from ..config import Provider
from ..errors import ProviderFailed

LIMIT = 1024 * 1024  # bytes of one line, and of one event
UNDECODABLE = 3  # events that are not JSON and are passed over; one more is a failure
# Decoding without types blocks the event loop for up to 0.15 s per MiB, so larger values are not decoded.
UNTYPED_BYTES = 64 * 1024
# Bytes that an answer may have: comments, empty events and JSON around the text. Usual chunks have 50 to 150 bytes per character.
OVERHEAD_BYTES = 16 * 1024 * 1024
OVERHEAD_BYTES_PER_CHARACTER = 1024
SHOWN = 300  # characters of a server's own words that people get to see
ERROR_CHARACTERS = 2000  # of an error message that are searched for its meaning


class Content(msgspec.Struct, frozen=True):
    text: str


class Reasoning(msgspec.Struct, frozen=True):
    text: str


class Answering(msgspec.Struct, frozen=True):
    """The model that really answers; it need not be the one that was asked (lmstudio-bug-tracker#1217)."""

    model: str


class Progress(msgspec.Struct, frozen=True):
    """Tokens of the prompt: processed, and in all."""

    done: int
    total: int


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Finish(msgspec.Struct, frozen=True):
    """The server's own word: stop, length, tool_calls; empty when [DONE] was all that it said."""

    reason: str


Part = Content | Reasoning | Answering | Progress | Usage | Finish


# In this order: a model that cannot be loaded is told of its context length too.
_WORDINGS = [
    (code, re.compile(wording, re.IGNORECASE | re.DOTALL))
    for code, wording in (
        ("MODEL_LOAD_FAILED", "failed to load|error loading|loading aborted|has crashed|is unloaded|channel error"),
        ("CONTEXT_OVERFLOW", r"context[ _](length|size|window|overflow)|context the overflow|n_ctx|maximum model len"),
        ("PROVIDER_AUTH", r"invalid_api_key|\bapi (token|key)\b"),
        ("MODEL_NOT_LOADED", "no models? (is |are )?(currently )?loaded"),
        ("VISION_UNSUPPORTED", r"not support\w* (image|vision)|image input is not supported|not a multimodal|mmproj"),
        # (?>...) keeps the first "model": trying each of them would take quadratic time.
        ("MODEL_NOT_FOUND", r"model_not_found|invalid model identifier|\A(?>.*?\bmodel\b).*\bnot (found|exist)"),
        ("PROVIDER_BUSY", "unavailable_error|loading model|overloaded|queue (is )?full|too many requests|server busy"),
    )
]
_STATUSES: dict[int | None, str] = {
    401: "PROVIDER_AUTH",
    403: "PROVIDER_AUTH",
    429: "PROVIDER_BUSY",
    503: "PROVIDER_BUSY",
}
_STATUSES |= {408: "PROVIDER_TIMEOUT", 504: "PROVIDER_TIMEOUT"}
_ROOM = re.compile(r"(?:n_ctx: |context (?:length (?:of|is)(?: only)? |size \(|window of )|model length of )(\d{1,9})")
_TAKEN = re.compile(r"(?:n_keep: |the first |request \(|requested |[Tt]okens \(|\(length |resulted in )(\d{1,9})")


def refusal(provider: Provider, body: bytes, status: int | None = None) -> ProviderFailed:
    """Map an error of a server to a ProviderFailed. `body` is that of a response with this HTTP status, or an event's data."""
    payload = loads(body)
    if payload is None:
        payload = body[: 4 * ERROR_CHARACTERS].decode("utf-8", "replace")
    outer = payload if isinstance(payload, dict) else {"error": payload}
    inner = outer.get("error") or outer
    inner = inner if isinstance(inner, dict) else {"message": inner}
    said = (inner.get("message"), outer.get("message"), outer.get("detail"))
    text = next((text for text in said if text and isinstance(text, str)), "")[:ERROR_CHARACTERS]
    labels = [label[:SHOWN] for label in (inner.get("type"), inner.get("code")) if isinstance(label, str)]
    hints = " ".join([text, *labels])
    code = next((code for code, wording in _WORDINGS if wording.search(hints)), None)
    code = code or _STATUSES.get(status, "PROVIDER_ERROR")
    if code == "CONTEXT_OVERFLOW":
        n_ctx, n_prompt = inner.get("n_ctx"), inner.get("n_prompt_tokens")
        return _overflow(
            n_ctx if type(n_ctx) is int and 0 < n_ctx < 2**53 else _number(_ROOM, text),
            n_prompt if type(n_prompt) is int and 0 < n_prompt < 2**53 else _number(_TAKEN, text),
        )
    if text.lstrip().startswith("<"):
        message = f"{provider.name} answered with a web page and HTTP status {status}."
    elif words := shown(_without_address(text, provider), provider.api_key):
        message = f"{provider.name} said: {words}"
    else:
        message = f"{provider.name} reported an error" + (f" with HTTP status {status}." if status else ".")
    return ProviderFailed(code, message + _advice(provider, code, status, text))


def _without_address(text: str, provider: Provider) -> str:
    address = urlsplit(provider.url).netloc
    return text.replace(address, "[address]") if address else text


def _overflow(n_ctx: int | None, n_prompt: int | None) -> ProviderFailed:
    """With the tokens that there is room for, and those of the prompt, where the server tells."""
    room = f", which has room for {n_ctx} tokens" if n_ctx else ""
    taken = f" It takes {n_prompt}." if n_prompt else ""
    return ProviderFailed(
        "CONTEXT_OVERFLOW",
        f"The conversation does not fit into the model's context{room}.{taken} "
        "Load the model with a larger context length, or continue in a new conversation.",
    )


def _advice(provider: Provider, code: str, status: int | None, text: str) -> str:
    if code == "PROVIDER_AUTH":
        variable = "FIRESIDE_LMSTUDIO_API_KEY or " if provider.id == "lmstudio" else ""
        return f" Fireside takes the key from {variable}api_key of the provider {provider.id} in config.toml."
    astray = text.lstrip().startswith("<") or "Unexpected endpoint" in text
    if code == "PROVIDER_ERROR" and (astray or status in (301, 302, 303, 307, 308, 404, 405)):
        return f" Check the url of the provider {provider.id}."
    return ""


def shown(text: str, secret: str = "") -> str:
    """Return a server's words as one short line, without the key or a beginning of it."""
    text = text[: 4 * SHOWN + len(secret)]
    for length in range(len(secret), max(0, min(len(secret), 8) - 1), -1):
        text = text.replace(secret[:length], "[key]")
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in text[: 4 * SHOWN]).split())
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


def _number(pattern: re.Pattern[str], text: str) -> int | None:
    found = pattern.search(text)
    return int(found[1]) if found else None


_Count = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
_S = TypeVar("_S", bound=msgspec.Struct)


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Counts(msgspec.Struct):
    prompt_tokens: _Count = 0
    completion_tokens: _Count = 0
    total_tokens: _Count = 0


class _PromptProgress(msgspec.Struct):
    processed: _Count
    total: _Count


class _Chunk(msgspec.Struct):
    model: str | None = None
    choices: list[_Choice] | None = None
    usage: _Counts | None = None
    prompt_progress: _PromptProgress | None = None
    object: str | None = None
    error: Any = None


_typed = msgspec.json.Decoder(_Chunk).decode
_FIELDS: dict[Any, tuple[msgspec.structs.FieldInfo, ...]] = {
    kind: msgspec.structs.fields(kind) for kind in (_Chunk, _Choice, _Delta)
}


def _chunk(data: bytes) -> _Chunk | None:
    """Decode an event, without the fields that have the wrong type. None: it is not a JSON object, or is too large to look into."""
    try:
        return _typed(data)
    except (ValueError, RecursionError):
        found = loads(data)
    if not isinstance(found, dict):
        return None
    choices = found.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        found["choices"] = [_salvaged(_Choice, choices[0] | {"delta": _salvaged(_Delta, choices[0].get("delta"))})]
    return _salvaged(_Chunk, found)


def loads(data: bytes) -> Any:
    """Decode JSON, also with the lone surrogates and invalid UTF-8 that msgspec refuses. None: it is not JSON or too large."""
    if len(data) > UNTYPED_BYTES:
        return None
    try:
        return json.loads(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None


def _salvaged(kind: type[_S], value: Any) -> _S:
    """Return `kind` with those fields of `value` that have the right type."""
    fields = {}
    for field in _FIELDS[kind] if isinstance(value, dict) else ():
        if field.name in value:
            with suppress(ValueError):
                fields[field.name] = msgspec.convert(value[field.name], field.type)
    return kind(**fields)


class _Events:
    """Bytes in, server-sent events out, wherever the reads have cut them.

    Lines end with \\n, \\r\\n or \\r and with nothing else: U+2028 and its like may stand raw inside of JSON.
    """

    def __init__(self) -> None:
        self._rest = bytearray()  # a line that has not ended
        self._after_cr = False
        self._first = True
        self._name = b""
        self._data: list[bytes] = []
        self._size = 0

    def split(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """(name, data) of each event that ends in these bytes. Raises OverflowError past LIMIT."""
        for line in self._lines(data):
            if line:
                self._field(line)
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
        ended = data.endswith((b"\n", b"\r"))
        lines = data.splitlines()
        if self._rest or not ended:
            self._rest += lines[0]
            if len(self._rest) > LIMIT:
                raise OverflowError
            if len(lines) == 1 and not ended:
                return []
            lines[0] = bytes(self._rest)
            self._rest = bytearray() if ended else bytearray(lines.pop())
        return lines

    def _field(self, line: bytes) -> None:
        if self._first:
            self._first = False
            line = line.removeprefix(b"\xef\xbb\xbf")
        self._size += len(line)
        if self._size > LIMIT:
            raise OverflowError
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._name = value
        elif name == b"error":  # so wrote older llama.cpp servers
            self._name = name
            self._data.append(value)


_SURROGATE = re.compile("[\ud800-\udfff]")
_OPEN, _CLOSE = "<think>", "</think>"
_BLANK = 1000  # characters of white space after which no <think> is waited for


class Wire:
    """One streamed answer. `over`: nothing more is wanted. `finish`: finish_reason, once known.

    `failure`: what was wrong with the answer, final after `end`. Complete is an answer with a finish_reason or [DONE]
    and at least one word.
    """

    def __init__(self, provider: Provider) -> None:
        self.over = False
        self.finish: str | None = None
        self.failure: ProviderFailed | None = None
        self._provider = provider
        self._events = _Events()
        self._undecodable = 0
        self._done = self._answered = False
        self._model = ""
        self._usage: Usage | None = None
        self._parts: list[Part] = []
        self._kind: type[Content] | type[Reasoning] = Content
        self._texts: list[str] = []  # of this kind, not yet a part
        self._half = ""  # of a surrogate pair
        self._overhead_left = OVERHEAD_BYTES
        self._stage = "start"  # of content: start, opened, thinking, closed, answer
        self._held = ""  # content that may be the beginning of a tag

    def feed(self, data: bytes) -> list[Part]:
        """Return the parts that these bytes complete. Adjacent texts of one kind become one part."""
        self._overhead_left -= len(data)
        try:
            if not self.over:
                for name, event in self._events.split(data):
                    self._event(name, event)
                    if self.over:
                        break
        except ProviderFailed as failure:
            self.over, self.failure = True, failure
        except OverflowError:
            self.over, self.failure = True, self._failed("PROVIDER_ERROR", "sent a line or an event of over 1 MiB.")
        self._flush()
        if self._overhead_left < 0 and not self.over:
            self.over, self.failure = True, self._failed("PROVIDER_ERROR", "sent too much data with too little text.")
        parts, self._parts = self._parts, []
        return parts

    def end(self, broken: bool = False) -> list[Part]:
        """After the last byte: what was held back, then Usage if it is known, then Finish if all is well.

        `broken`: it was not the server's will that this was the last.
        """
        parts = self.feed(b"\n\n")  # the blank line after the last event may be missing
        if self._held and not self._held.isspace():
            self._add(Reasoning if self._stage == "thinking" else Content, self._held)
        self._flush(last=True)
        self.over = True
        self.failure = self.failure or self._shortcoming(broken)
        parts += self._parts
        if self._usage:
            parts.append(self._usage)
        if not self.failure:
            parts.append(Finish(self.finish or ""))
        return parts

    def _failed(self, code: str, what: str) -> ProviderFailed:
        return ProviderFailed(code, f"{self._provider.name} {what}")

    def _shortcoming(self, broken: bool) -> ProviderFailed | None:
        complete = self._done or self.finish is not None
        if not complete and (broken or self._answered):
            return self._failed("ANSWER_CUT_SHORT", "broke off before its answer was complete.")
        if self._answered:
            return None
        if self.finish == "length":
            return self._failed("EMPTY_ANSWER", "ran out of tokens before the first word. Allow more (max_tokens).")
        if self.finish in ("tool_calls", "function_call"):
            return self._failed("EMPTY_ANSWER", "called a tool and wrote nothing. Fireside has no tools to offer.")
        return self._failed("EMPTY_ANSWER", "answered nothing. The conversation may be too long for its context.")

    def _event(self, name: bytes, data: bytes) -> None:
        if name == b"error":
            raise refusal(self._provider, data)
        if data == b"[DONE]":
            self._done = self.over = True
        elif data:
            chunk = _chunk(data)
            if chunk is None:
                self._undecodable += 1
                if self._undecodable > UNDECODABLE:
                    raise self._failed("PROVIDER_ERROR", "sent events that are not JSON.")
            elif chunk.error or chunk.object == "error":
                raise refusal(self._provider, data)
            else:
                self._take(chunk)

    def _take(self, chunk: _Chunk) -> None:
        if chunk.model and chunk.model != self._model:
            self._model = chunk.model
            self._put(Answering(shown(chunk.model)))
        if counts := chunk.usage:
            total = counts.total_tokens or counts.prompt_tokens + counts.completion_tokens
            self._usage = Usage(counts.prompt_tokens, counts.completion_tokens, total) if total else self._usage
        if chunk.prompt_progress:
            self._put(Progress(chunk.prompt_progress.processed, chunk.prompt_progress.total))
        if not chunk.choices:
            return
        choice = chunk.choices[0]
        if choice.finish_reason:
            self.finish = shown(choice.finish_reason)
        if delta := choice.delta:
            if reasoning := delta.reasoning_content or delta.reasoning:
                self._add(Reasoning, reasoning)
            if delta.content and self._stage == "answer":
                self._add(Content, delta.content)
            elif delta.content:
                self._content(self._held + delta.content)

    def _content(self, text: str) -> None:
        """Content until the answer proper has begun: <think> counts only before everything but white space."""
        self._held = ""
        if self._stage == "start":
            tag = text.lstrip()
            if _OPEN.startswith(tag) and len(text) < _BLANK:
                self._held = text
                return
            self._stage, text = ("opened", tag[len(_OPEN) :]) if tag.startswith(_OPEN) else ("answer", text)
        if self._stage == "opened":
            text = text.lstrip()
            self._stage = "thinking" if text else "opened"
        if self._stage == "thinking":
            thought, closed, text = text.partition(_CLOSE)
            if closed:
                self._stage = "closed"
            else:
                kept = next((size for size in range(len(_CLOSE) - 1, 0, -1) if thought.endswith(_CLOSE[:size])), 0)
                thought, self._held = thought[: len(thought) - kept], thought[len(thought) - kept :]
            self._add(Reasoning, thought)
        if self._stage == "closed":
            text = text.lstrip()
            self._stage = "answer" if text else "closed"
        if self._stage == "answer":
            self._add(Content, text)

    def _put(self, part: Part) -> None:
        self._flush()
        self._parts.append(part)

    def _add(self, kind: type[Content] | type[Reasoning], text: str) -> None:
        if kind is not self._kind:
            self._flush(last=True)
            self._kind = kind
        self._texts.append(text)

    def _flush(self, last: bool = False) -> None:
        """Make one part of the texts. The halves of a surrogate pair are joined, also across reads."""
        text = self._half + "".join(self._texts)
        self._texts.clear()
        self._half = ""
        if not text.isascii() and _SURROGATE.search(text):
            if not last and "\ud800" <= text[-1] <= "\udbff":
                text, self._half = text[:-1], text[-1]
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if text:
            self._overhead_left += OVERHEAD_BYTES_PER_CHARACTER * len(text)
            self._answered = self._answered or not text.isspace()
            self._parts.append(self._kind(text))
