"""The messages of a chat request of another program, as Fireside records them."""

import base64
import binascii
from collections.abc import Container
from typing import Any, NamedTuple

import msgspec

from ..backends.loose import array_at, at, clean, decode, object_at, objects_at, text_at
from ..errors import Invalid
from ..queries.recorder import History, RecordedTurn
from ..queries.types import Image, ToolCall, ToolResult, Tools, image_type

IMAGES = 64  # of a message that are kept
MAX_COMMAS = 500_000  # in all messages; decoding as many values takes 0.1 s
PARAMS_BYTES = 16 * 1024  # of JSON that are kept of the parameters
MAX_PARAMS = 100


def parse(data: bytes, files: Container[str] = ()) -> History:
    """Return the messages of a request. Raises Invalid for what is no list of messages. `files`: hashes of the documents in them.

    What Fireside has no place for is named in the text. Instructions anywhere count as one; alone they are the question.
    """
    if data.count(b",") > MAX_COMMAS:
        raise Invalid("messages has too many parts.")
    sent = decode(data)
    if not isinstance(sent, list) or not sent or not all(isinstance(one, dict) for one in sent):
        raise Invalid("messages must be a list of one or more messages.")
    instructions: list[str] = []
    turns: list[RecordedTurn] = []
    results: list[ToolResult] = []
    for message in sent:
        match message.get("role"):
            case "system" | "developer":
                instructions.append(_content(message).text)
            case "tool" | "function":
                results.append(ToolResult(_content(message).text, text_at(message, "tool_call_id")))
            case role:
                content = _content(message, files)
                kind, calls = ("assistant", _calls(message)) if role == "assistant" else ("user", [])
                turn = RecordedTurn(kind, content.text, Tools(results, calls))
                if kind == "user":
                    turn.images, turn.files = content.images, content.files
                turns.append(turn)
                results = []
    if not turns:
        return History("", [RecordedTurn("user", "\n\n".join(instructions), Tools(results))], [])
    return History("\n\n".join(instructions), turns, results)


class _Content(NamedTuple):
    text: str
    images: list[str]  # data URLs
    files: list[str]  # hashes


def _content(message: dict[str, Any], known_files: Container[str] = ()) -> _Content:
    content = message.get("content")
    if isinstance(content, str):
        return _Content(clean(content), [], [])
    texts: list[str] = []
    images: list[str] = []
    files: list[str] = []
    for part in array_at(message, "content"):
        kind = text_at(part, "type")
        if isinstance(part, str) or at(part, "text") is not None or kind == "refusal":
            texts.append(clean(part) if isinstance(part, str) else text_at(part, "text") or text_at(part, "refusal"))
        elif kind == "image_url":
            url = text_at(part, "image_url") or text_at(part, "image_url", "url")
            if url.startswith("data:") and len(images) < IMAGES:
                images.append(url)
            else:
                texts.append(f"(image: {url[:2000]})")
        elif kind == "file" and (key := text_at(part, "file", "sha256")) in known_files:
            files.append(key)
        else:
            texts.append(f"({kind[:100] or 'unknown part'})")
    return _Content("\n\n".join(texts), images, files)


def _calls(message: dict[str, Any]) -> list[ToolCall]:
    calls = [
        ToolCall(text_at(call, "function", "name"), text_at(call, "function", "arguments"), text_at(call, "id"))
        for call in objects_at(message, "tool_calls")
    ]
    if function := object_at(message, "function_call"):
        calls.append(ToolCall(text_at(function, "name"), text_at(function, "arguments")))
    return calls


def decode_images(urls: list[str]) -> list[Image]:
    """Return the images of data URLs, without those that are no PNG, JPEG or WebP."""
    images = []
    for url in urls:
        try:
            data = base64.b64decode(url.partition(",")[2], validate=False)
        except (binascii.Error, ValueError):
            continue
        if kind := image_type(data[:12]):
            images.append(Image(kind, data))
    return images


def parameters(fields: dict[str, msgspec.Raw]) -> dict[str, Any]:
    """Return the parameters of a request that are kept with its answer: all but the messages, the tools, and what the row has."""
    skipped = ("messages", "model", "stream", "stream_options", "tools", "functions")
    short = {name: value for name, value in fields.items() if name not in skipped and len(value) <= PARAMS_BYTES}
    kept = {clean(name): decode(bytes(value)) for name, value in list(short.items())[:MAX_PARAMS]}
    try:
        return kept if len(msgspec.json.encode(kept)) <= PARAMS_BYTES else {}
    except (ValueError, UnicodeEncodeError):
        return {}
