"""Documents in chat requests of other programs: the `file` parts of OpenAI's API, which local model servers do not know.

Each becomes a text part with all pages of the document, framed as in a question of the page.
"""

import asyncio
import base64
import binascii
import hashlib
from collections import Counter
from typing import Any

import msgspec
from msgspec import Raw, Struct

from ..backends.loose import array_at, at, object_at, objects_at, text_at
from ..db import Connection, Database
from ..documents.reader import Reader
from ..errors import Invalid, NotFound, ProviderFailed
from ..queries import attachments, documents
from ..queries.documents import Document, Excerpt
from ..queries.recorder import RecordedFile
from ..queries.types import Unit
from . import prompt as prompts
from .history import MAX_COMMAS

FILES = 20  # of a request
MAX_CHARACTERS = 5_000_000  # of the text of all file parts: more fit into no model, and fill the memory


class Replaced(Struct):
    """The messages of a request without the bytes of files."""

    sent: Raw  # with the text of each file, for the model server
    recorded: Raw  # with the hash of each file in place of its bytes
    files: dict[str, RecordedFile]  # by hash


class _Message(Struct):
    """A message with files, decoded, and the places of their parts in its content."""

    place: int
    value: dict[str, Any]
    files: list[tuple[int, str]]  # with their hashes


def has_files(messages: bytes) -> bool:
    return b'"file"' in messages


async def replace(
    database: Database, reader: Reader, user_id: int, messages: bytes, context_length: int | None
) -> Replaced | None:
    """Read the files of a request and replace them by their text. Return None if it has none.

    Raises Invalid for a file that cannot be read, and ProviderFailed when the text does not fit into the context.
    """
    raw, found, files = await asyncio.to_thread(_find, messages)
    if not files:
        return None
    texts: dict[str, str] = {}
    parts = Counter(key for message in found for _, key in message.files)
    characters = 0
    for key, file in files.items():
        opened = await database.read(_get_known, user_id, bytes.fromhex(key))
        unit, pages = opened or await reader.read_now(user_id, file.data, file.name)
        characters += parts[key] * sum(map(len, pages))
        if characters > MAX_CHARACTERS:
            raise ProviderFailed(
                "CONTEXT_OVERFLOW",
                f"The documents have more than {MAX_CHARACTERS:,} characters of text. Send fewer pages.",
            )
        texts[key] = await asyncio.to_thread(_text, file.name, unit, pages)
    return await asyncio.to_thread(_replace, raw, found, files, texts, context_length)


def _text(name: str, unit: Unit, pages: list[str]) -> str:
    """Return all pages of a document as they stand in a request."""
    document = Document(0, name, unit, len(pages), 0)
    excerpt = prompts.excerpt_text(document, Excerpt(0, [(1, len(pages))], dict(enumerate(pages, 1))))
    return f"{prompts.FRAME}\n\n{excerpt}"


def _get_known(conn: Connection, user_id: int, digest: bytes) -> tuple[Unit, list[str]] | None:
    """Return the unit and the pages of a document that the user has and that was read."""
    attachment_id = attachments.find(conn, user_id, digest)
    if attachment_id is None:
        return None
    try:
        attachment = attachments.owned_attachment(conn, user_id, attachment_id)
    except NotFound:  # its conversations are in the bin
        return None
    if attachment.status != "ready" or attachment.unit is None:
        return None
    return attachment.unit, list(documents.get_pages(conn, attachment_id).values())


def _find(messages: bytes) -> tuple[list[Raw], list[_Message], dict[str, RecordedFile]]:
    """Return the messages undecoded, those with files, and the files by their hashes. Raises Invalid."""
    if messages.count(b",") > MAX_COMMAS:
        raise Invalid("messages has too many parts.")
    try:
        raw = msgspec.json.decode(messages, type=list[Raw])
        decoded = {place: msgspec.json.decode(one) for place, one in enumerate(raw) if has_files(bytes(one))}
    except (ValueError, RecursionError):
        raise Invalid("messages must be a list of one or more messages.") from None
    found: list[_Message] = []
    files: dict[str, RecordedFile] = {}
    for place, value in decoded.items():
        message = _Message(place, object_at({"message": value}, "message"), [])
        for index, part in enumerate(array_at(value, "content")):
            if at(part, "type") == "file":
                file = _decode(object_at(part, "file"))
                key = hashlib.sha256(file.data).hexdigest()
                files.setdefault(key, file)
                message.files.append((index, key))
        if message.files:
            found.append(message)
    if sum(len(message.files) for message in found) > FILES:
        raise Invalid(f"messages: at most {FILES} file parts are allowed.")
    return raw, found, files


def _decode(part: dict[str, Any]) -> RecordedFile:
    """Return the file of a part. Raises Invalid."""
    name = attachments.clean_name(text_at(part, "filename"))
    encoded = part.get("file_data")
    if not isinstance(encoded, str) or not encoded:
        if part.get("file_id"):
            raise Invalid("file_id is not supported: files are not kept apart from messages. Send file_data instead.")
        raise Invalid("A file part must have file_data: the file in base64, as a data URL or alone.")
    if encoded.startswith("data:"):
        encoded = encoded.partition(",")[2]
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise Invalid(f"{name}: file_data is not base64.") from None
    if not data:
        raise Invalid(f"{name}: the file is empty.")
    return RecordedFile(name, data)


def _replace(
    raw: list[Raw],
    found: list[_Message],
    files: dict[str, RecordedFile],
    texts: dict[str, str],
    context_length: int | None,
) -> Replaced:
    sent, recorded = list(raw), list(raw)
    for message in found:
        content = message.value["content"]
        for index, key in message.files:
            content[index] = {"type": "file", "file": {"filename": files[key].name, "sha256": key}}
        recorded[message.place] = _encode(message.value)
        for index, key in message.files:
            content[index] = {"type": "text", "text": texts[key]}
        sent[message.place] = _encode(message.value)
    replaced = Replaced(Raw(msgspec.json.encode(sent)), Raw(msgspec.json.encode(recorded)), files)
    if context_length is not None:
        _check_length(replaced.sent, files, texts, context_length)
    return replaced


def _encode(message: dict[str, Any]) -> Raw:
    try:
        return Raw(msgspec.json.encode(message))
    except UnicodeEncodeError:
        raise Invalid("A message has a text that is not Unicode.") from None


def _check_length(sent: Raw, files: dict[str, RecordedFile], texts: dict[str, str], context_length: int) -> None:
    """Raise ProviderFailed when the messages with their documents are longer than the context: some servers would leave out the beginning."""
    tokens = 0.0
    for message in objects_at({"messages": msgspec.json.decode(sent)}, "messages"):
        parts = [text_at(message, "content"), *(text_at(part, "text") for part in objects_at(message, "content"))]
        tokens += sum(map(prompts.estimate, parts))
    if tokens > context_length:
        sizes = ", ".join(f"{file.name} about {round(prompts.estimate(texts[key])):,}" for key, file in files.items())
        raise ProviderFailed(
            "CONTEXT_OVERFLOW",
            f"The documents do not fit into the model's context of {context_length:,} tokens: {sizes}."
            " Send fewer pages, or load the model with a larger context.",
        )
