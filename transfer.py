"""Import and export: conversations into the database, and out of it.

An import runs in batches, each of them a transaction and each conversation in it a savepoint, so that a conversation
goes in whole or not at all. What is here already is never changed: a conversation that has grown since gains its new
messages, unless it is in the bin. What cannot be read is skipped and named, and the rest goes in.
"""

import asyncio
import contextlib
import json
import logging
import sqlite3
import zipfile
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import msgspec

from . import archive, queries, transcript
from .archive import Origin
from .db import Database, Tx, now
from .errors import FiresideError, NotFound
from .source import Skipped, Source
from .transcript import Conversation, Generation, Image, Message, Unreadable

log = logging.getLogger("fireside.transfer")

EXPORT_CHUNK = 256 * 1024  # bytes
BATCH = 100  # conversations in one transaction, fewer when they are long
BATCH_WEIGHT = 1_000_000  # characters in one transaction, or one conversation: some 0.1 s, while others wait
MESSAGE_WEIGHT = 1_000  # characters that take as long as the row of a message
IMAGE_WEIGHT = 1 / 8  # characters that take as long as a byte of an image's file


class Report(msgspec.Struct):
    """What an import did: conversations and messages added, conversations that had nothing new, and what was left out."""

    conversations: int = 0
    messages: int = 0
    unchanged: int = 0
    skipped: list[Skipped] = []


# ---------------------------------------------------------------------------------------------------- import


async def import_files(
    database: Database,
    user_id: int,
    paths: Iterable[Path],
    on_progress: Callable[[Report, float], None] = lambda report, done: None,
) -> Report:
    """Add what is new in these files, folders and zips. `on_progress` hears what was done and the fraction that it is.

    Raises StorageUnavailable when the disk is full; what had gone in before stays, and the next import goes on from there.
    """
    report = Report()
    paths = list(paths)
    for number, path in enumerate(paths):
        try:
            source = await asyncio.to_thread(Source, path)
        except Unreadable as error:
            report.skipped.append(Skipped(path.name, str(error)))
            continue
        with contextlib.closing(source):
            async with contextlib.aclosing(_batches(source)) as batches:
                async for batch in batches:
                    await _store(database, user_id, batch, source, report)
                    on_progress(report, (number + source.read / (source.size or 1)) / len(paths))
    return report


async def _batches(source: Source) -> AsyncGenerator[list[Conversation | Skipped], None]:
    """Reads ahead by one, so that reading and writing go on side by side."""
    found = iter(source)
    ahead = asyncio.create_task(asyncio.to_thread(_take, found, source))
    try:
        while batch := await asyncio.shield(ahead):
            ahead = asyncio.create_task(asyncio.to_thread(_take, found, source))
            yield batch
    finally:
        await asyncio.gather(ahead, return_exceptions=True)  # the source must not be closed while it is read


async def steps(database: Database, user_id: int, paths: list[Path]) -> AsyncGenerator[bytes, None]:
    """{"done": fraction, "report": {...}} a step; when it failed, {"error": "..."}."""
    found: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

    async def run() -> None:
        try:
            report = await import_files(
                database, user_id, paths, lambda report, done: found.put_nowait({"done": done, "report": report})
            )
            found.put_nowait({"done": 1.0, "report": report})
        except FiresideError as error:
            found.put_nowait({"error": error.message})
        except Exception:
            log.exception("an import failed")
            found.put_nowait({"error": FiresideError().message})
        finally:
            found.put_nowait(None)

    importing = asyncio.create_task(run())
    try:
        while (step := await found.get()) is not None:
            yield msgspec.json.encode(step) + b"\n"
    finally:  # of a reader who leaves too: what was stored stays
        importing.cancel()
        await asyncio.wait([importing])  # however often this is cancelled itself: the source is being read


def _take(found: Iterator[Conversation | Skipped], source: Source) -> list[Conversation | Skipped]:
    """What goes in together."""
    batch: list[Conversation | Skipped] = []
    weight = 0.0
    for item in found:
        batch.append(item)
        weight += _weight(item.messages, source) if isinstance(item, Conversation) else 0
        if len(batch) >= BATCH or weight >= BATCH_WEIGHT:
            break
    return batch


def _weight(messages: Iterable[Message], source: Source) -> float:
    """How long they take to store, in characters."""
    return sum(
        MESSAGE_WEIGHT
        + len(message.content)
        + len(message.reasoning)
        + sum(len(image.data) or source.image_size(image.file) * IMAGE_WEIGHT for image in message.images)
        for message in messages
    )


async def _store(
    database: Database, user_id: int, batch: list[Conversation | Skipped], source: Source, report: Report
) -> None:
    report.skipped += [item for item in batch if isinstance(item, Skipped)]
    conversations = [item for item in batch if isinstance(item, Conversation)]
    outcomes = await database.write(_add_all, user_id, conversations, source.image) if conversations else []
    for conversation, (new, messages, reason) in zip(conversations, outcomes, strict=True):
        if reason:
            report.skipped.append(Skipped(conversation.title, reason))
        else:
            report.conversations += new
            report.messages += messages
            report.unchanged += not (new or messages)


ReadImage = Callable[[str], bytes]
Key = str | tuple[str, str, int]  # what a message is known by, in its conversation


def _add_all(
    tx: Tx, user_id: int, conversations: list[Conversation], read_image: ReadImage
) -> list[tuple[bool, int, str]]:
    """For each whether it is new here, how many messages it brought, and why it did not go in."""
    times = [conversation.created_at for conversation in conversations if conversation.source is None]
    made_here = archive.list_made_at(tx, user_id, times) if times else []
    with archive.importing(tx, user_id):
        return [_add(tx, user_id, conversation, made_here, read_image) for conversation in conversations]


def _add(
    tx: Tx, user_id: int, conversation: Conversation, made_here: list[Origin], read_image: ReadImage
) -> tuple[bool, int, str]:
    try:
        with archive.savepoint(tx):
            known = _known(tx, user_id, conversation, made_here)
            if known and known.deleted_at:
                return False, 0, ""
            if known:
                return False, _grow(tx, known.id, conversation, read_image), ""
            row = _columns(conversation) | {"settings": json.dumps(conversation.settings)}
            added = archive.add_conversation(tx, user_id, row)
            messages = _grow(tx, added, conversation, read_image)
            if conversation.source is None:
                made_here.append(_origin(added, conversation))
            return True, messages, ""
    except Unreadable as error:
        return False, 0, str(error)
    except (sqlite3.IntegrityError, RecursionError):
        return False, 0, "contradicts itself"


def _origin(conversation_id: int, conversation: Conversation) -> Origin:
    question = next((message.content for message in conversation.messages if message.parent_id is None), None)
    return Origin(conversation_id, conversation.created_at, conversation.deleted_at, question)


def _known(tx: Tx, user_id: int, conversation: Conversation, made_here: list[Origin]) -> Origin | None:
    """The conversation that this one is, if it is here. One begun in Fireside is known by when and how it began."""
    if conversation.source is not None:
        return archive.get_imported(tx, user_id, conversation.source)
    its = _origin(0, conversation)
    for origin in made_here:
        if origin.created_at == its.created_at and (
            origin.question == its.question or origin.question is None or its.question is None
        ):
            return origin
    return None


def _grow(tx: Tx, conversation_id: int, conversation: Conversation, read_image: ReadImage) -> int:
    """Add the messages that are not there yet, and show the new path unless something was written here. Returns how many."""
    here = {key: id for id, key in _keys(archive.list_message_origins(tx, conversation_id)).items()}
    keys = _keys((m.id, m.source, m.created_at, m.role) for m in conversation.messages)
    written_here = here.keys() - keys.values()
    added = 0
    for message in conversation.messages:
        if keys[message.id] not in here:
            parent_id = None if message.parent_id is None else here[keys[message.parent_id]]
            here[keys[message.id]] = _add_message(tx, conversation_id, message, parent_id, read_image)
            added += 1
    if added:
        leaf = None if written_here else keys.get(conversation.active_message_id or 0)
        archive.set_imported(tx, conversation_id, conversation.updated_at, here[leaf] if leaf else None)
    return added


def _keys(origins: Iterable[tuple[int, str | None, str, str]]) -> dict[int, Key]:
    """By id: the message's own id where it came from, or when it was written, by whom, and which of several that is."""
    several: Counter[tuple[str, str]] = Counter()
    keys: dict[int, Key] = {}
    for id, source, created_at, role in origins:
        several[created_at, role] += 1
        keys[id] = source or (created_at, role, several[created_at, role])
    return keys


def _add_message(
    tx: Tx,
    conversation_id: int,
    message: Message,
    parent_id: int | None,
    read_image: ReadImage,
) -> int:
    row = _columns(message) | {"parent_id": parent_id}
    for column in ("token_usage", "stats", "error"):
        row[column] = None if row[column] is None else json.dumps(row[column])
    message_id = archive.add_message(tx, conversation_id, row)
    for position, image in enumerate(message.images):
        data = image.data or read_image(image.file)
        kind = transcript.image_type(data)
        if kind is None:
            raise Unreadable(f"its image {image.file[:100]} is none")
        queries.add_image(tx, message_id, position, queries.Image(kind, data))
    if message.generation:
        ids = {"message_id": message_id, "conversation_id": conversation_id}
        log = [_with_ids(entry, ids) if isinstance(entry, dict) else entry for entry in message.generation.log]
        fields = _columns(message.generation) | {
            "params": json.dumps(message.generation.params),
            "log": json.dumps(log),
        }
        archive.add_generation(tx, message.generation.id, message_id, fields)
    return message_id


def _with_ids(event: dict[str, Any], ids: dict[str, int]) -> dict[str, Any]:
    """An event of a log, with the ids that hold in this database."""
    data = event["data"]
    return event | {"data": data | {name: id for name, id in ids.items() if name in data}}


def _columns(struct: msgspec.Struct) -> dict[str, Any]:
    return {name: getattr(struct, name) for name in struct.__struct_fields__}


# ---------------------------------------------------------------------------------------------------- export


README = """\
These are conversations from Fireside.

conversations/  Each conversation twice. The .md file is for reading: what was last shown of it. The .json file is all
                of it, with every version of every message.
bin/            The same of conversations that were deleted in the last 30 days.
images/         The images in them; the files name them.

A .json file is UTF-8. It has a conversation's title, its times (ISO 8601, UTC), its system_prompt, the model and the
provider_id that were used last, the settings of the generation, and its messages, oldest first.
A message has an id, the parent_id of the message that it follows (null: it begins the conversation), a role (user or
assistant), content, the reasoning that preceded it, its status, its images, and for answers the model that gave it,
token_usage, stats, error and generation: how it was made, and in log how it arrived (a number n is a piece of n
characters of the content, -n one of n characters of the reasoning). Messages with the same parent_id are versions of
each other. active_message_id is the end of the path that was shown. What is missing was empty.

`fireside import` reads this zip, or the folder it unpacks to, and adds what is not there yet.
"""


async def export_conversation(
    database: Database, user_id: int, conversation_id: int, format: Literal["markdown", "json"]
) -> tuple[str, bytes]:
    """The name and the content of the file. Raises NotFound, also for one in the bin."""
    conversation, images = await database.read(_load, user_id, conversation_id)
    for image, image_id in images:
        image.file = ""
        if format == "json":
            image.data = await database.read(archive.get_image_data, image_id)
    if format == "json":
        return transcript.file_name(conversation, ".json"), await asyncio.to_thread(_json, conversation)
    return transcript.file_name(conversation, ".md"), "".join(transcript.markdown(conversation)).encode()


def _json(conversation: Conversation) -> bytes:
    return b"".join(transcript.encode(conversation))


async def export_zip(database: Database, user_id: int) -> AsyncGenerator[bytes, None]:
    """All of a user's conversations, also those in the bin, a conversation at a time."""
    pipe = _Pipe()
    zipped = zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED)
    zipped.writestr(_entry("README.txt", now()), README)
    for conversation_id, deleted in await database.read(archive.list_conversation_ids, user_id):
        try:
            conversation, images = await database.read(_load, user_id, conversation_id, deleted)
            for image, image_id in images:
                data = await database.read(archive.get_image_data, image_id)
                await asyncio.to_thread(zipped.writestr, _entry(image.file, conversation.updated_at, False), data)
                yield pipe.take()
        except NotFound:
            continue  # it was purged, restored or deleted meanwhile
        await asyncio.to_thread(_write, zipped, conversation, conversation_id)
        if pipe.size >= EXPORT_CHUNK:
            yield pipe.take()
    zipped.close()
    yield pipe.take()


def _write(zipped: zipfile.ZipFile, conversation: Conversation, conversation_id: int) -> None:
    folder = "bin" if conversation.deleted_at else "conversations"
    name = f"{folder}/{transcript.file_name(conversation, f' {conversation_id}')}"
    text = "".join(transcript.markdown(conversation, "../"))
    zipped.writestr(_entry(f"{name}.md", conversation.updated_at), text)
    zipped.writestr(_entry(f"{name}.json", conversation.updated_at), _json(conversation))


def _entry(name: str, moment: str, deflate: bool = True) -> zipfile.ZipInfo:
    time = datetime.fromisoformat(
        min(max(moment, "1980-01-01T00:00:00"), "2107-12-31T23:59:59")
    )  # a zip knows no other
    info = zipfile.ZipInfo(name, time.timetuple()[:6])
    info.compress_type = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
    info.external_attr = 0o600 << 16
    return info


class _Pipe:
    """What a zip is written to: it holds only what nobody has taken yet. No io.RawIOBase, which is closed before a zip that its reader
    has left comes to its end."""

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


def _load(
    tx: Tx, user_id: int, conversation_id: int, deleted: bool = False
) -> tuple[Conversation, list[tuple[Image, int]]]:
    """A conversation as it is in this moment, and its images with their ids."""
    row = queries.owned(tx, user_id, conversation_id, deleted)
    made = {generation["message_id"]: generation for generation in archive.list_generations(tx, conversation_id)}
    images: dict[int, list[tuple[Image, int]]] = {}
    for found in archive.list_images(tx, conversation_id):
        ending = found["media_type"].removeprefix("image/")
        file = f"images/{found['message_id']}-{found['position']}.{ending}"
        images.setdefault(found["message_id"], []).append((Image(found["media_type"], file=file), found["id"]))
    messages = [
        _message(message, made.get(message["id"]), [image for image, _ in images.get(message["id"], ())])
        for message in archive.list_whole_messages(tx, conversation_id)
    ]
    columns = {name: value for name, value in dict(row).items() if name not in ("id", "user_id", "title_key")}
    columns |= {"named": bool(row["named"]), "pinned": bool(row["pinned"]), "settings": json.loads(row["settings"])}
    conversation = Conversation(fireside=transcript.VERSION, messages=messages, **columns)
    return conversation, [pair for pairs in images.values() for pair in pairs]


def _message(row: sqlite3.Row, made: sqlite3.Row | None, images: list[Image]) -> Message:
    columns = dict(row)
    for name in ("token_usage", "stats", "error"):
        columns[name] = json.loads(columns[name]) if columns[name] else None
    generation = None
    if made:
        params, log = json.loads(made["params"]), json.loads(made["log"])
        generation = Generation(made["id"], made["provider_id"], made["model"], params, log)
    return Message(images=images, generation=generation, **columns)
