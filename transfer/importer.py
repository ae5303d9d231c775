"""Import: conversations from files into the database.

A sandbox child reads the files, and the database takes what it read in short transactions. A new conversation is hidden until all of
it is there. What is here already is never changed: a conversation that has grown since gains its new messages, unless it is in the
bin. What cannot be read is skipped and named, and the rest goes in.
"""

import asyncio
import contextlib
import json
import logging
import os
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import msgspec

from .. import queries
from ..db import Connection, Database
from ..errors import FiresideError, NotFound
from ..queries.types import image_type
from ..safety.queue import Slots
from ..safety.sandbox import Sandbox, WorkFailed, WorkTooLarge, WorkTooLong
from . import archive, source, transcript
from .source import Skipped
from .transcript import Conversation, Message, Unreadable

log = logging.getLogger("fireside.importer")

IMPORTS = 2  # at a time
READING_BYTES = 2 * 1024**3  # of memory that a child may have: a conversation may be 64 MB of JSON
SILENT_SECONDS = 60.0  # without anything read
FILE_SECONDS = 3600.0  # for one file, folder or zip


class Report(msgspec.Struct):
    """What an import did: conversations and messages added, conversations that had nothing new, and what was left out."""

    conversations: int = 0
    messages: int = 0
    unchanged: int = 0
    skipped: list[Skipped] = []


class Importer:
    """The imports of a service: one at a time for each user, IMPORTS in all, users in turn."""

    def __init__(self, database: Database, user_max_bytes: int = 0) -> None:
        self.uploading: defaultdict[int, asyncio.Lock] = defaultdict(
            asyncio.Lock
        )  # by user: one file is kept at a time
        self._database = database
        self._user_max_bytes = user_max_bytes
        self._sandbox = Sandbox(READING_BYTES)
        self._queue = Slots(IMPORTS, per_user=1)
        self._running = 0

    async def aclose(self) -> None:
        await self._sandbox.aclose()

    async def remove_leftovers(self) -> None:
        """Remove what a crash left hidden, unless an import is running."""
        if not self._running:
            await queries.conversations.remove_hidden(
                self._database, self._database.read_here(queries.conversations.list_hidden)
            )

    async def import_files(
        self,
        user_id: int,
        paths: list[Path],
        on_progress: Callable[[Report, float], None] = lambda report, done: None,
    ) -> Report:
        """Add what is new in these files, folders and zips. `on_progress` gets the report so far and the fraction that is done.

        Raises StorageUnavailable when the disk is full and QuotaExceeded when the user's messages take too much; what was added
        before stays, and the next import goes on from there.
        """
        async with self._queue.slot(user_id):
            self._running += 1
            try:
                made_here = await self._database.read(archive.list_made_here, user_id)
                importing = _Import(user_id, self._user_max_bytes, made_here)
                for number, path in enumerate(paths):

                    def tell(done: float, number: int = number) -> None:
                        on_progress(importing.report, (number + done) / len(paths))

                    await self._import_file(importing, path, tell)
                return importing.report
            finally:
                self._running -= 1
                hidden = await self._database.write(
                    queries.conversations.list_hidden, user_id
                )  # after a write that was cancelled
                await queries.conversations.remove_hidden(self._database, hidden)

    async def _import_file(self, importing: "_Import", path: Path, on_progress: Callable[[float], None]) -> None:
        end = time.monotonic() + FILE_SECONDS
        pieces = self._sandbox.iterate(source.read, os.fsencode(path), seconds=SILENT_SECONDS)
        try:
            async with contextlib.aclosing(pieces):
                async for encoded in pieces:
                    piece = _decode(encoded)
                    await self._store(importing, piece.steps)
                    on_progress(piece.done)
                    if time.monotonic() > end:
                        raise Unreadable(f"takes more than {FILE_SECONDS / 60:.0f} minutes; the rest was left out")
            return
        except Unreadable as error:
            reason = str(error)
        except WorkTooLong:
            reason = f"takes more than {SILENT_SECONDS:.0f} s to read at one place; the rest was left out"
        except WorkTooLarge:
            reason = f"needs more than {READING_BYTES >> 30} GB of memory; the rest was left out"
        except (WorkFailed, msgspec.DecodeError) as error:
            log.error("an import ended early: %s", error)
            reason = "cannot be read to its end; the rest was left out"
        await self._store(importing, [source.Skip(Skipped(transcript.clean(path.name), reason))])

    async def _store(self, importing: "_Import", steps: list[source.Step]) -> None:
        while steps:
            steps = steps[await self._database.write_part(importing.store, steps) :]
            if importing.grows:
                importing.here = await self._database.read(_list_keys, importing.conversation_id)
                importing.grows = False
            while importing.undone:
                importing.undone = await self._database.write_part(
                    queries.conversations.remove_messages, importing.undone
                )

    async def import_steps(self, user_id: int, paths: list[Path]) -> AsyncGenerator[bytes, None]:
        """Import and yield a line of JSON for each step: {"done": fraction, "report": {...}}, or {"error": "..."} when it failed."""
        found: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

        async def run() -> None:
            try:
                report = await self.import_files(
                    user_id, paths, lambda report, done: found.put_nowait({"done": done, "report": report})
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
            await asyncio.wait([importing])


_decode = msgspec.msgpack.Decoder(source.Piece).decode
Key = str | tuple[str, str, int]  # by which a message is known in its conversation


class _Keys:
    """The key of each message, in order: its id where it came from, or when it was written, by whom, and which of several it is."""

    def __init__(self) -> None:
        self._several: Counter[tuple[str, str]] = Counter()

    def next(self, source: str | None, created_at: str, role: str) -> Key:
        self._several[created_at, role] += 1
        return source or (created_at, role, self._several[created_at, role])


def _list_keys(conn: Connection, conversation_id: int) -> dict[Key, int]:
    keys = _Keys()
    return {keys.next(*origin): id for id, origin in archive.list_message_origins(conn, conversation_id)}


class _Import:
    """Stores what a child has read, step by step, and knows how far it is within a conversation."""

    def __init__(self, user_id: int, max_bytes: int, made_here: dict[str, list[int]]) -> None:
        self.user_id = user_id
        self.report = Report()
        self.grows = False  # the conversation is known: `here` is needed before its messages are stored
        self.here: dict[Key, int] = {}  # its messages in the database
        self.undone: list[int] = []  # messages that are to be removed again
        self._max_bytes = max_bytes
        self._made_here = made_here
        self._conversation: Conversation | None = (
            None  # that is being stored; None between two, and after one that was given up
        )

    def store(self, conn: Connection, steps: list[source.Step]) -> int:
        """Do the first of these steps, for PART_SECONDS, and return how many. Raises QuotaExceeded."""
        end, done, self._size = time.monotonic() + queries.conversations.PART_SECONDS, 0, 0
        if self._conversation is not None and not self._new:
            try:
                queries.conversations.owned(conn, self.user_id, self.conversation_id)
            except NotFound:
                self._give_up("was deleted during the import")
        for step in steps:
            try:
                self._do(conn, step)
            except Unreadable as error:
                self._give_up(str(error))
            done += 1
            if self.grows or self.undone or time.monotonic() > end:
                break
        queries.conversations.add_stored_bytes(conn, self.user_id, self._size, self._max_bytes)
        return done

    def _do(self, conn: Connection, step: source.Step) -> None:
        if isinstance(step, source.Begin):
            self._begin(conn, step)
        elif isinstance(step, source.Skip):
            self._give_up("")
            self.report.skipped.append(step.skipped)
        elif self._conversation is None:
            return
        elif isinstance(step, source.Add):
            self._add(conn, step.message)
        elif isinstance(step, source.Picture):
            self._add_image(conn, step)
        else:
            self._end(conn, self._conversation)

    def _give_up(self, reason: str) -> None:
        """Leave nothing of the conversation that is being stored. A new one stays hidden, and is removed when the import ends."""
        if self._conversation is None:
            return
        if reason:
            self.report.skipped.append(Skipped(self._conversation.title, reason))
        if not self._new:
            self.undone = self._added[::-1]
        self._conversation = None

    def _begin(self, conn: Connection, step: source.Begin) -> None:
        conversation = step.conversation
        known = self._find(conn, step)
        if known is not None and known["deleted_at"]:
            self.report.unchanged += 1
            return
        self._conversation, self._new, self.grows = conversation, known is None, known is not None
        self.conversation_id = known["id"] if known else self._add_conversation(conn, conversation)
        self.here = {}
        self._keys, self._key_of, self._added = _Keys(), dict[int, Key](), list[int]()

    def _find(self, conn: Connection, step: source.Begin) -> sqlite3.Row | None:
        """The conversation that this one is, if it is here. One that was begun in Fireside is known by when and how it began."""
        conversation = step.conversation
        if conversation.source is not None:
            return archive.get_imported(conn, self.user_id, conversation.source)
        for conversation_id in self._made_here.get(conversation.created_at, ()):
            row = archive.get_beginning(conn, conversation_id)
            if row is not None and (row["question"] is None or step.question in (None, row["question"])):
                return row
        return None

    def _add_conversation(self, conn: Connection, conversation: Conversation) -> int:
        row = msgspec.structs.asdict(conversation) | {"settings": _encode(conversation.settings)}
        self._size += len(conversation.system_prompt.encode())
        return archive.add_conversation(conn, self.user_id, row)

    def _add(self, conn: Connection, message: Message) -> None:
        key = self._keys.next(message.source, message.created_at, message.role)
        self._key_of[message.id] = key
        self._message_id: int | None = None
        if key in self.here:
            return
        row = msgspec.structs.asdict(message)
        try:
            row["parent_id"] = None if message.parent_id is None else self.here[self._key_of[message.parent_id]]
        except KeyError:
            raise Unreadable("has messages that do not fit together") from None
        for column in ("token_usage", "stats", "error"):
            row[column] = None if row[column] is None else _encode(row[column])
        self._message_id = self.here[key] = archive.add_message(conn, self.user_id, self.conversation_id, row)
        self._position = 0
        self._added.append(self._message_id)
        self._size += len(message.content.encode()) + len(message.reasoning.encode())
        if message.generation:
            ids = {"message_id": self._message_id, "conversation_id": self.conversation_id}
            entries = [_with_ids(entry, ids) if isinstance(entry, dict) else entry for entry in message.generation.log]
            fields = msgspec.structs.asdict(message.generation)
            fields |= {"params": _encode(message.generation.params), "log": _encode(entries)}
            archive.add_generation(conn, message.generation.id, self._message_id, fields)

    def _add_image(self, conn: Connection, picture: source.Picture) -> None:
        if self._message_id is None:  # it is here already
            return
        kind = image_type(picture.data)
        if kind is None:
            raise Unreadable(f"{picture.file} is not an image that can be shown (PNG, JPEG or WebP)")
        queries.messages.add_image(conn, self._message_id, self._position, queries.messages.Image(kind, picture.data))
        self._position += 1
        self._size += len(picture.data)

    def _end(self, conn: Connection, conversation: Conversation) -> None:
        """Show what was added, and the new path unless something was written here."""
        written_here = archive.count_messages(conn, self.conversation_id) > len(set(self._key_of.values()))
        key = self._key_of.get(conversation.active_message_id or 0)
        leaf = None if written_here or key is None else self.here[key]
        if self._new:
            archive.show_imported(conn, self.conversation_id, conversation.source, leaf)
            if conversation.source is None:
                self._made_here.setdefault(conversation.created_at, []).append(self.conversation_id)
        elif self._added:
            archive.set_imported(conn, self.conversation_id, conversation.updated_at, leaf)
        self.report.conversations += self._new
        self.report.messages += len(self._added)
        self.report.unchanged += not (self._new or self._added)
        self._conversation = None


def _encode(value: Any) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        raise Unreadable("has messages that do not fit together") from None


def _with_ids(event: dict[str, Any], ids: dict[str, int]) -> dict[str, Any]:
    """An event of a log, with the ids that hold in this database."""
    data = event["data"]
    return event | {"data": data | {name: id for name, id in ids.items() if name in data}}
