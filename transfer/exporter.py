"""Export: conversations as JSON and Markdown, one as a file or all in a zip with the saved prompts and presets.

A file is made while it is sent. At most CHUNK_BYTES of messages or one part of an attachment are in memory.
"""

import asyncio
import base64
import contextlib
import itertools
import json
import sqlite3
import zipfile
from collections import defaultdict
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import msgspec

from .. import queries
from ..db import Connection, Database, now
from ..errors import NotFound
from ..queries.attachments import Table
from ..queries.prompts import Kind
from ..queries.types import Citation, Parameters, Tools
from ..safety.queue import Slots
from . import archive, transcript
from .transcript import Attachment, Conversation, Generation, Message, SentPages

CHUNK_BYTES = 256 * 1024
MESSAGE_BYTES = 200  # of a message besides its texts
COMPRESSIONS = 2  # at a time
SAVED_FILE = "prompts.json"


class Exporter:
    """The exports of a service: one at a time for each user."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._exporting: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)  # by user
        self._compressing = Slots(COMPRESSIONS)

    async def export_conversation(
        self, user_id: int, conversation_id: int, format: Literal["markdown", "json"]
    ) -> tuple[str, AsyncGenerator[bytes, None]]:
        """Return the file's name and its content. Raises NotFound, also for a conversation in the bin or a temporary one."""
        outline = await self._database.read(_outline, user_id, conversation_id)
        name = transcript.file_name(outline.conversation, ".json" if format == "json" else ".md")
        pieces = self._json(outline) if format == "json" else self._markdown(outline)

        async def in_turn() -> AsyncGenerator[bytes, None]:
            async with self._exporting[user_id], contextlib.aclosing(_join(pieces)) as chunks:
                async for chunk in chunks:
                    yield chunk

        return name, in_turn()

    async def export_zip(self, user_id: int, ids: list[int] | None = None) -> AsyncGenerator[bytes, None]:
        """Yield a zip of a user's conversations, also of those in the bin, prompts and presets; or only of these conversations."""
        async with self._exporting[user_id], contextlib.aclosing(self._files(user_id, ids)) as files:
            pipe = _Pipe()
            zipped = zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED)
            zipped.writestr(_entry("README.txt", now()), README)
            async for entry, pieces in files:
                with zipped.open(entry, "w") as file:
                    async with contextlib.aclosing(_join(pieces)) as chunks:
                        async for chunk in chunks:
                            async with self._compressing.slot(user_id):
                                await asyncio.to_thread(file.write, chunk)
                            if pipe.size >= CHUNK_BYTES:
                                yield pipe.take()
            zipped.close()
            yield pipe.take()

    async def _files(
        self, user_id: int, ids: list[int] | None
    ) -> AsyncGenerator[tuple[zipfile.ZipInfo, AsyncGenerator[bytes, None]], None]:
        """Yield the files of a zip, each with its content in pieces. An attachment stands before the first conversation that names it."""
        saved = [] if ids is not None else await self._database.read(queries.prompts.list_saved_ids, user_id)
        if saved:
            yield _entry(SAVED_FILE, now()), self._saved_json(user_id, saved)
        names: dict[int, str] = {}  # of the files in the zip, by attachment
        for row in await self._database.read(archive.list_conversations, user_id, ids):
            deleted = row["deleted_at"] is not None
            try:
                outline = await self._database.read(_outline, user_id, row["id"], deleted)
            except NotFound:  # it was removed, restored or deleted during the export
                continue
            conversation = outline.conversation
            for attachment in conversation.files:
                assert attachment.id
                is_new = attachment.id not in names
                attachment.file = names.setdefault(attachment.id, transcript.attachment_file(attachment))
                if is_new:
                    is_text = _is_text(attachment.media_type)
                    yield _entry(attachment.file, conversation.updated_at, is_text), self._data(attachment.id)
            folder = "bin" if deleted else "conversations"
            name = f"{folder}/{transcript.file_name(conversation, '')} {row['id']}"
            yield _entry(f"{name}.md", conversation.updated_at), self._markdown(outline)
            yield _entry(f"{name}.json", conversation.updated_at), self._json(outline)

    async def _saved_json(self, user_id: int, rows: list[tuple[Kind, int]]) -> AsyncGenerator[bytes, None]:
        comma = b"[\n"
        for kind, row_id in rows:
            with contextlib.suppress(NotFound):  # it was deleted during the export
                yield comma + await self._database.read(_encode_saved, user_id, kind, row_id)
                comma = b",\n"
        yield b"\n]\n" if comma == b",\n" else b"[]\n"

    async def _json(self, outline: "_Outline") -> AsyncGenerator[bytes, None]:
        """Yield the JSON form. An attachment without a file is in it as base64, in pieces."""
        yield transcript.json_head(outline.conversation)
        comma = b'"files":[\n'
        for attachment in outline.conversation.files:
            encoded = comma + msgspec.json.encode(attachment)
            if not attachment.file and attachment.id:
                yield encoded.removesuffix(b"}") + b',"data":"'
                async with contextlib.aclosing(self._data(attachment.id)) as pieces:
                    async for piece in pieces:
                        yield await asyncio.to_thread(base64.b64encode, piece)
                encoded = b'"}'
            yield encoded
            comma = b",\n"
        yield b'"messages":[\n' if comma == b'"files":[\n' else b'\n],"messages":[\n'
        comma = b""
        async for message in self._messages(outline, list(outline.parents)):
            yield comma + msgspec.json.encode(message)
            comma = b",\n"
        yield transcript.JSON_END

    async def _data(self, attachment_id: int) -> AsyncGenerator[bytes, None]:
        """Yield the bytes of an attachment in pieces."""
        for part in itertools.count():
            piece = await self._database.read(queries.attachments.get_part, attachment_id, part)
            if not piece:
                return
            yield piece

    async def _markdown(self, outline: "_Outline") -> AsyncGenerator[bytes, None]:
        """Yield the active path."""
        yield transcript.markdown_head(outline.conversation).encode()
        files = {attachment.id: attachment for attachment in outline.conversation.files}
        versions = defaultdict[int | None, list[int]](list)
        for message_id, parent_id in outline.parents.items():
            versions[parent_id].append(message_id)
        path: list[int] = []
        leaf = outline.conversation.active_message_id
        while leaf is not None:
            path.append(leaf)
            leaf = outline.parents[leaf]
        async for message in self._messages(outline, path[::-1]):
            siblings = versions[message.parent_id]
            pieces = transcript.markdown(message, siblings.index(message.id) + 1, len(siblings), files)
            yield "".join(pieces).encode()

    async def _messages(self, outline: "_Outline", ids: list[int]) -> AsyncGenerator[Message, None]:
        """Yield these messages without the files of their attachments. Those removed since are left out."""
        while ids:
            messages, count = await self._database.read(_read_messages, outline, ids)
            ids = ids[count:]
            for message in messages:
                yield message


README = """\
Conversations from Fireside.

conversations/  Each conversation as .md (the path that was last shown, for reading) and as .json (everything).
bin/            The same of conversations deleted in the last 30 days.
attachments/    Images and documents, each once; the other files name them.
prompts.json    The saved prompts and presets, if there are any.

The .json files are UTF-8. A conversation has a title, times (ISO 8601, UTC), system_prompt, the model and provider_id
used last, settings of the generation, the name of its folder, and messages, oldest first. A message has an id, the parent_id of the message
before it (null for a first one), a role (user or assistant), content, reasoning, status and attachments. An answer also has
model, token_usage, stats, error and generation: its parameters, and a log of how it arrived (n: n characters of the
content, -n: n of the reasoning). Messages with the same parent_id are versions of each other. active_message_id is the
last message of the path that was shown. files lists the attachments of all messages, which name them by id. The pages of a long document
that were chosen for a question are its sent_pages; citations are the quotations of an answer and where the documents have them. queue has the messages that waited to be sent. Empty fields are left out.
In prompts.json each element is a prompt (name and content) or a preset (name, system_prompt, provider_id, model and
settings), as its field `saved` says.

`fireside import` reads this zip, or the folder it unpacks to, and adds what is missing.
"""


@dataclass
class _Outline:
    """A conversation without its messages, read in one transaction."""

    conversation: Conversation
    parents: dict[int, int | None]  # the parent_id of each message by its id, oldest first
    attachments: dict[int, list[Attachment]]  # by message


def _outline(conn: Connection, user_id: int, conversation_id: int, deleted: bool = False) -> _Outline:
    row = queries.conversations.owned(conn, user_id, conversation_id, deleted)
    if row["temporary"]:
        raise NotFound("conversation")
    columns = {name: row[name] for name in dict(row) if name in Conversation.__struct_fields__}
    columns |= {"named": bool(row["named"]), "pinned": bool(row["pinned"]), "settings": json.loads(row["settings"])}
    columns["folder"] = archive.get_folder_name(conn, row["folder_id"])
    conversation = Conversation(fireside=transcript.VERSION, messages=[], **columns)
    files: dict[int, Attachment] = {}

    def list_attachments(table: Table) -> defaultdict[int, list[Attachment]]:
        """Return the attachments by message, and put their files into `files`."""
        found = defaultdict[int, list[Attachment]](list)
        for row in archive.list_attachments(conn, conversation_id, table):
            name = row["file_name"] or row["name"]
            files[row["id"]] = Attachment(id=row["id"], name=name, media_type=row["media_type"])
            found[row["message_id"]].append(Attachment(id=row["id"], name=row["name"]))
        return found

    attachments, queued = list_attachments("message_attachments"), list_attachments("queued_attachments")
    for row in archive.list_queued(conn, conversation_id):
        conversation.queue.append(transcript.Queued(row["content"], row["created_at"], queued[row["id"]]))
    conversation.files = list(files.values())
    return _Outline(conversation, queries.conversations.list_parents(conn, conversation_id), attachments)


def _read_messages(conn: Connection, outline: _Outline, ids: list[int]) -> tuple[list[Message], int]:
    """Return the first of these messages, about CHUNK_BYTES of them, and how many of the ids were done."""
    messages: list[Message] = []
    done = size = 0
    for message_id in ids:
        row = archive.get_whole_message(conn, message_id)
        if row is not None:
            sent = archive.list_sent_pages(conn, message_id) if row["role"] == "user" else []
            messages.append(_message(row, archive.get_generation(conn, message_id), sent, outline))
            size += len(row["content"]) + len(row["reasoning"]) + MESSAGE_BYTES
        done += 1
        if size >= CHUNK_BYTES:
            break
    return messages, done


def _message(row: sqlite3.Row, made: sqlite3.Row | None, sent: list[sqlite3.Row], outline: _Outline) -> Message:
    columns = dict(row)
    columns |= {"edited": bool(row["edited"]), "copied": bool(row["copied"])}
    for name in ("token_usage", "stats", "error"):
        columns[name] = json.loads(columns[name]) if columns[name] else None
    columns["citations"] = msgspec.json.decode(row["citations"], type=list[Citation]) if row["citations"] else None
    columns["tools"] = msgspec.json.decode(row["tools"], type=Tools) if row["tools"] else None
    generation = None
    if made:
        params, entries = json.loads(made["params"]), json.loads(made["log"])
        generation = Generation(made["id"], made["provider_id"], made["model"], params, entries)
    return Message(
        attachments=outline.attachments.get(row["id"], []),
        sent_pages=[SentPages(one["attachment_id"], json.loads(one["pages"])) for one in sent],
        generation=generation,
        **columns,
    )


def _encode_saved(conn: Connection, user_id: int, kind: Kind, row_id: int) -> bytes:
    """Return a prompt or a preset as JSON. Raises NotFound."""
    saved = queries.prompts.get_saved(conn, user_id, kind, row_id)
    if isinstance(saved, queries.prompts.Prompt):
        return msgspec.json.encode(transcript.SavedPrompt(name=saved.name, content=saved.content))
    fields: dict[str, Any] = {name: getattr(saved, name) for name in ("name", "system_prompt", "provider_id", "model")}
    settings = msgspec.json.decode(saved.settings, type=Parameters)
    return msgspec.json.encode(transcript.SavedPreset(settings=settings, **fields))


def _is_text(media_type: str) -> bool:
    """Return whether a file is worth compressing: other documents and images are compressed already."""
    return media_type.startswith("text/") or media_type == "application/json"


def _entry(name: str, moment: str, deflate: bool = True) -> zipfile.ZipInfo:
    in_range = min(max(moment, "1980-01-01T00:00:00"), "2107-12-31T23:59:59")  # the times that a zip can have
    info = zipfile.ZipInfo(name, datetime.fromisoformat(in_range).timetuple()[:6])
    info.compress_type = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
    info.external_attr = 0o600 << 16
    return info


async def _join(pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """Join small pieces to chunks of CHUNK_BYTES."""
    async with contextlib.aclosing(pieces):
        pipe = _Pipe()
        async for piece in pieces:
            pipe.write(piece)
            if pipe.size >= CHUNK_BYTES:
                yield pipe.take()
        yield pipe.take()


class _Pipe:
    """Collects what is written to it until `take`. Not an io.RawIOBase, which would be closed before an unfinished ZipFile."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self.size = 0

    def flush(self) -> None: ...

    def close(self) -> None: ...

    def write(self, data: Any, /) -> int:
        self._pieces.append(bytes(data))
        self.size += len(data)
        return len(data)

    def take(self) -> bytes:
        data = b"".join(self._pieces)
        self._pieces, self.size = [], 0
        return data
