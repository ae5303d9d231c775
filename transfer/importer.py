"""Import: conversations, saved prompts and presets from files into the database.

A sandbox child reads the files, and the database stores what it read in short transactions. A new conversation is hidden until all of it is
stored. What is in the database is never changed: a conversation that has grown since gains its new messages, unless it is in the bin, and a
prompt or preset gets another name if its own is taken. What cannot be read is skipped and reported.
"""

import asyncio
import contextlib
import json
import logging
import os
import sqlite3
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec

from .. import queries
from ..backends.loose import at, clean, objects_at
from ..db import Connection, Database, one_part
from ..errors import FiresideError, Invalid, NotFound, StorageUnavailable
from ..queries.attachments import Table
from ..safety.queue import Slots
from ..safety.sandbox import Sandbox, WorkFailed, WorkTooLarge, WorkTooLong
from . import archive, child
from .steps import Add, Attached, Begin, End, File, Piece, Save, Skip, Skipped, Step
from .transcript import LOSSES, Conversation, Generation, Saved, SavedPreset, Unreadable

log = logging.getLogger("fireside.importer")

IMPORTS = 2  # at a time
READING_BYTES = 2 * 1024**3  # of memory for a child, which decodes one conversation at a time
SILENT_SECONDS = 60.0  # without anything read
FILE_SECONDS = 3600.0  # for one file, folder or zip
MAX_LISTED = 100  # kinds of losses in a report, and conversations for each


class LossIn(msgspec.Struct):
    title: str
    count: int


class Loss(msgspec.Struct):
    """Things of one kind that were not kept as they were, and in which conversations: the first MAX_LISTED."""

    kind: str
    text: str  # what the kind is, for people
    count: int = 0
    conversations: list[LossIn] = []


class Report(msgspec.Struct):
    """What an import did. `unchanged` counts the conversations, prompts and presets that had nothing new, `folders` names the new ones."""

    conversations: int = 0
    messages: int = 0
    prompts: int = 0
    presets: int = 0
    unchanged: int = 0
    skipped: list[Skipped] = []
    losses: list[Loss] = []
    folders: list[str] = []

    def has_any(self) -> bool:
        return bool(self.conversations or self.messages or self.prompts or self.presets or self.unchanged)

    def add_losses(self, conversation: Conversation) -> None:
        by_kind = {loss.kind: loss for loss in self.losses}
        for kind, count in conversation.losses.items():
            loss = by_kind.get(kind)
            if loss is None:
                if len(self.losses) == MAX_LISTED:
                    continue
                base, _, name = kind.partition(": ")
                loss = Loss(kind, f"{LOSSES.get(base, base)} {name}".rstrip())
                self.losses.append(loss)
            loss.count += count
            if len(loss.conversations) < MAX_LISTED:
                loss.conversations.append(LossIn(conversation.title, count))


class Importer:
    """The imports of a service: one at a time for each user, IMPORTS in all, users in turn."""

    def __init__(
        self, database: Database, user_max_bytes: int = 0, on_end: Callable[[int], object] = lambda user_id: None
    ) -> None:
        """`on_end` gets the id of a user whose import has ended: there may be documents to read."""
        self._on_end = on_end
        self.uploading: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)  # by user
        self._database = database
        self._user_max_bytes = user_max_bytes
        self._sandbox = Sandbox(READING_BYTES)
        self._queue = Slots(IMPORTS, per_user=1)
        self._running = 0

    async def aclose(self) -> None:
        await self._sandbox.aclose()

    async def remove_leftovers(self) -> None:
        """Remove the hidden conversations of an import that a crash ended, unless an import is running."""
        if not self._running:
            hidden = self._database.read_here(queries.conversations.list_hidden)
            await queries.conversations.remove_hidden(self._database, hidden)

    async def import_files(self, user_id: int, paths: list[Path], *, dry_run: bool = False) -> Report:
        """Import as `iterate` does and return the report."""
        async with contextlib.aclosing(self.iterate(user_id, paths, dry_run=dry_run)) as steps:
            return [report async for _, report in steps][-1]

    async def import_steps(
        self, user_id: int, paths: list[Path], *, dry_run: bool = False
    ) -> AsyncGenerator[bytes, None]:
        """Import and yield a line of JSON for each step: {"done": fraction, "report": {...}}, or {"error": "..."} when it failed."""
        line: dict[str, Any]
        try:
            async with contextlib.aclosing(self.iterate(user_id, paths, dry_run=dry_run)) as steps:
                async for done, report in steps:
                    yield msgspec.json.encode({"done": done, "report": report}) + b"\n"
            return
        except FiresideError as error:
            line = {"error": error.message}
        except Exception:
            log.exception("an import failed")
            line = {"error": FiresideError.message}
        yield msgspec.json.encode(line) + b"\n"

    async def iterate(
        self, user_id: int, paths: list[Path], *, dry_run: bool = False
    ) -> AsyncGenerator[tuple[float, Report], None]:
        """Add what is new in these files, folders and zips. Yield the fraction that is done and the report so far.

        `dry_run`: add nothing, and report what would be added.
        Raises StorageUnavailable and QuotaExceeded (the user's messages take too much). What was added before stays, and the next
        import adds the rest.
        """
        try:
            async with self._queue.slot(user_id), self._cleaned_up(user_id):
                made_here = await self._database.read(archive.list_made_here, user_id)
                importing = _Import(user_id, self._user_max_bytes, made_here, dry_run)
                for number, path in enumerate(paths):
                    async with contextlib.aclosing(self._import_file(importing, path)) as fractions:
                        async for done in fractions:
                            yield (number + done) / len(paths), importing.report
                yield 1.0, importing.report
        except StorageUnavailable as error:
            raise type(error)(f"{error.message} What was imported before stays.") from error

    @contextlib.asynccontextmanager
    async def _cleaned_up(self, user_id: int) -> AsyncIterator[None]:
        """Remove the user's hidden conversations at the end, also of an import that failed or was cancelled."""
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            self._on_end(user_id)
            # `write`, not `read`: it waits for a transaction whose caller was cancelled.
            hidden = await self._database.write(queries.conversations.list_hidden, user_id)
            await queries.conversations.remove_hidden(self._database, hidden)

    async def _import_file(self, importing: "_Import", path: Path) -> AsyncGenerator[float, None]:
        end = time.monotonic() + FILE_SECONDS
        try:
            pieces = self._sandbox.iterate(child.read, os.fsencode(path), seconds=SILENT_SECONDS)
            async with contextlib.aclosing(pieces):
                async for encoded in pieces:
                    piece = _decode(encoded)
                    await self._store(importing, piece.steps)
                    yield piece.done
                    if time.monotonic() > end:
                        raise WorkTooLong
            return
        except WorkTooLong:
            reason = f"takes more than {FILE_SECONDS / 60:.0f} minutes, or {SILENT_SECONDS:.0f} s at one place"
        except WorkTooLarge:
            reason = f"needs more than {READING_BYTES >> 30} GB of memory"
        except (WorkFailed, msgspec.DecodeError) as error:
            log.error("an import ended early: %s", error)
            reason = "cannot be read to its end"
        await self._store(importing, [Skip(Skipped(clean(path.name), f"{reason}; the rest was left out"))])

    async def _store(self, importing: "_Import", steps: list[Step]) -> None:
        run = self._database.read if importing.dry_run else self._database.write_part
        while steps:
            steps = steps[await run(importing.store, steps) :]
            if importing.needs_ids:
                importing.ids = await self._database.read(importing.read_ids)
                importing.needs_ids = False
            while importing.to_remove:
                importing.to_remove = await self._database.write_part(
                    queries.conversations.remove_messages, importing.to_remove
                )


_decode = msgspec.msgpack.Decoder(Piece).decode
_Files = list[tuple[str, int | None]]  # the name of each attachment of a message, and its id in the database


class _Import:
    """Stores the steps that a child sends, or counts in a dry run what they would add.

    `_conversation` is the one being stored; None between two, and after one that was given up.
    """

    def __init__(self, user_id: int, max_bytes: int, made_here: dict[str, list[int]], dry_run: bool) -> None:
        self.user_id = user_id
        self.dry_run = dry_run
        self.report = Report()
        self.ids: dict[str, int | None] = {}  # of the conversation's messages in the database, by key
        self.needs_ids = False  # `ids` must be read, because the conversation is in the database
        self.to_remove: list[int] = []  # ids of messages of a conversation that was given up
        self._max_bytes = max_bytes
        self._made_here = made_here
        self._conversation: Conversation | None = None
        self._full = set[queries.prompts.Table]()  # tables that take no more
        self._unindexed: list[tuple[int, str]] = []  # ids and contents of the messages of this transaction
        # What a dry run has counted: the keys of messages by conversation, prompts and presets, files by SHA-256, and bytes.
        self._counted: dict[str, dict[str, int | None]] = {}
        self._counted_saved = defaultdict[queries.prompts.Table, queries.prompts.DryRun](dict)
        self._counted_files = set[bytes]()
        self._counted_bytes = 0

    def store(self, conn: Connection, steps: list[Step]) -> int:
        """Do the first of these steps, for PART_SECONDS, and return how many. Raises QuotaExceeded, NotFound."""
        queries.accounts.get_user(conn, self.user_id)  # the account may have been deleted during the import
        done = self._size = 0
        self._unindexed.clear()
        if self._conversation is not None and not self._new and not self.dry_run:
            try:
                queries.conversations.owned(conn, self.user_id, self.conversation_id)
            except NotFound:
                self._give_up("was deleted during the import")
        for step in one_part(steps):
            try:
                self._do(conn, step)
            except Unreadable as error:
                self._give_up(str(error))
            done += 1
            if self.needs_ids or self.to_remove:
                break
        # Last, because FTS5 writes what it has gathered before each update of a foreign key: a third of the time of an import.
        for message_id, content in self._unindexed:
            queries.search.index_message(conn, self.user_id, message_id, content)
        if self.dry_run:
            self._counted_bytes += self._size
            queries.quota.check_quota(conn, self.user_id, self._counted_bytes, self._max_bytes)
        else:
            queries.quota.add_stored_bytes(conn, self.user_id, self._size, self._max_bytes)
        return done

    def read_ids(self, conn: Connection) -> dict[str, int | None]:
        return archive.list_message_keys(conn, self.conversation_id) | self._counted.get(self._identity, {})

    def _do(self, conn: Connection, step: Step) -> None:
        if isinstance(step, Begin):
            self._begin(conn, step)
        elif isinstance(step, Skip):
            self._give_up()
            self.report.skipped.append(step.skipped)
        elif isinstance(step, Save):
            self._save(conn, step.saved)
        elif isinstance(step, File):
            self._store_file(conn, step)
        elif self._conversation is None:
            return
        elif isinstance(step, Add):
            self._add(conn, step)
        else:
            self._end(conn, self._conversation, step)

    def _give_up(self, reason: str = "") -> None:
        """Keep nothing of the conversation being stored. A new one stays hidden until the import ends and removes it."""
        if self._conversation is None:
            return
        if reason:
            self.report.skipped.append(Skipped(self._conversation.title, reason))
        if not (self._new or self.dry_run):
            self.to_remove = self._added[::-1]
        self._conversation = None

    def _begin(self, conn: Connection, step: Begin) -> None:
        conversation = step.conversation
        self._identity = conversation.source or f"{conversation.created_at} {step.question}"
        known = self._find(conn, step)
        if known is not None and known["deleted_at"]:
            self.report.unchanged += 1
            return
        self._conversation, self._new = conversation, known is None and self._identity not in self._counted
        self.needs_ids = not self._new
        self.conversation_id = known["id"] if known else 0
        if self._new:
            self._size += len(conversation.system_prompt.encode())
            if not self.dry_run:
                self.conversation_id = archive.add_conversation(conn, self.user_id, conversation)
        self.ids = {}
        self._attachment_ids = dict[int, int]()  # in the database, by those in the conversation
        self._keys, self._added = set[str](), list[int]()

    def _find(self, conn: Connection, step: Begin) -> sqlite3.Row | None:
        """Find the conversation in the database. One that began in Fireside is known by its time and its first message."""
        conversation = step.conversation
        if conversation.source is not None:
            return archive.get_imported(conn, self.user_id, conversation.source)
        for conversation_id in self._made_here.get(conversation.created_at, ()):
            row = archive.get_beginning(conn, conversation_id)
            if row is not None and (row["question"] is None or step.question in (None, row["question"])):
                return row
        return None

    def _add(self, conn: Connection, step: Add) -> None:
        message = step.message
        self._keys.add(step.key)
        files = [] if self.dry_run else self._find_files(conn, step.attachments)
        if step.key in self.ids:
            return
        tools = msgspec.json.encode(message.tools).decode() if message.tools else None
        message_id = 0 if self.dry_run else self._insert_message(conn, step, tools, files)
        self.ids[step.key] = message_id
        self._added.append(message_id)
        self._size += sum(len(text.encode()) for text in (message.content, message.reasoning, tools or ""))

    def _insert_message(self, conn: Connection, step: Add, tools: str | None, files: _Files) -> int:
        message = step.message
        columns = msgspec.structs.asdict(message) | {"conversation_id": self.conversation_id, "tools": tools}
        for name in ("id", "attachments", "sent_pages", "generation"):
            del columns[name]
        columns["parent_id"] = None if step.parent_key is None else self.ids[step.parent_key]
        citations = msgspec.to_builtins(message.citations)
        self._refer(citations, message.stats)
        columns["citations"] = None if citations is None else msgspec.json.encode(citations).decode()
        for name in ("token_usage", "stats", "error"):
            columns[name] = None if columns[name] is None else json.dumps(columns[name])
        message_id = archive.add_message(conn, columns)
        self._unindexed.append((message_id, message.content))
        if message.generation:
            self._insert_generation(conn, message_id, message.generation)
        _link(conn, message_id, files, "message_attachments")
        for sent in message.sent_pages:
            if attachment_id := self._attachment_ids.get(sent.attachment_id):
                archive.add_sent_pages(conn, message_id, attachment_id, sent.pages)
        return message_id

    def _insert_generation(self, conn: Connection, message_id: int, generation: Generation) -> None:
        ids = {"message_id": message_id, "conversation_id": self.conversation_id}
        entries = [_with_ids(entry, ids) if isinstance(entry, dict) else entry for entry in generation.log]
        for entry in entries:
            self._refer(at(entry, "data", "citations"), at(entry, "data", "stats"))
        columns = msgspec.structs.asdict(generation) | {"message_id": message_id}
        archive.add_generation(conn, columns | {"params": json.dumps(generation.params), "log": json.dumps(entries)})

    def _find_files(self, conn: Connection, attachments: list[Attached]) -> _Files:
        """Return the name of each attachment, and its id in the database: None when it was removed since its file was stored."""
        files: _Files = []
        for attached in attachments:
            attachment_id = queries.attachments.find(conn, self.user_id, attached.sha256)
            if attachment_id is not None and attached.id is not None:
                self._attachment_ids[attached.id] = attachment_id
            files.append((attached.name, attachment_id))
        return files

    def _refer(self, citations: Any, stats: Any) -> None:
        """Let citations and the statistic of documents refer to the attachments in this database, or to none."""
        for row in (*objects_at({"rows": citations}, "rows"), *objects_at(stats, "documents")):
            known = row.get("attachment_id")
            if isinstance(known, int) and known in self._attachment_ids:
                row["attachment_id"] = self._attachment_ids[known]
            else:
                row.pop("attachment_id", None)

    def _store_file(self, conn: Connection, file: File) -> None:
        if not self.dry_run:
            archive.add_file(conn, self.user_id, file.data, file.name, file.media_type, self._max_bytes)
        elif file.sha256 not in self._counted_files and not queries.attachments.find(conn, self.user_id, file.sha256):
            self._counted_files.add(file.sha256)
            self._size += len(file.data)

    def _end(self, conn: Connection, conversation: Conversation, step: End) -> None:
        if self.dry_run:
            self._counted[self._identity] = dict(self.ids)
            self._count_folder(conn, conversation)
        else:
            self._show(conn, conversation, step)
        self.report.conversations += self._new
        self.report.messages += len(self._added)
        self.report.unchanged += not (self._new or self._added)
        if self._new or self._added:
            self.report.add_losses(conversation)
        self._conversation = None

    def _show(self, conn: Connection, conversation: Conversation, step: End) -> None:
        """Show what was added, and the new path unless the conversation was continued in Fireside."""
        continued = archive.count_messages(conn, self.conversation_id) > len(self._keys)
        leaf = None if continued or step.active_key is None else self.ids[step.active_key]
        if self._new:
            folder_id = self._add_folder(conn, conversation)
            archive.show_imported(conn, self.conversation_id, conversation.source, leaf, folder_id)
            for message, attachments in zip(conversation.queue, step.queue, strict=True):
                fields = (message.content, None, self._max_bytes, message.created_at)
                queued_id = queries.queued.insert_queued(conn, self.user_id, self.conversation_id, *fields)
                _link(conn, queued_id, self._find_files(conn, attachments), "queued_attachments")
            if conversation.source is None:
                self._made_here.setdefault(conversation.created_at, []).append(self.conversation_id)
        elif self._added:
            archive.set_imported(conn, self.conversation_id, conversation.updated_at, leaf)

    def _add_folder(self, conn: Connection, conversation: Conversation) -> int | None:
        """Return the id of the conversation's folder, which is added if there is none."""
        if not conversation.folder:
            return None
        is_new = queries.folders.find_folder(conn, self.user_id, conversation.folder) is None
        try:
            folder_id = queries.folders.add_folder(conn, self.user_id, conversation.folder)
        except Invalid:
            _lose_folder(conversation)
            return None
        if is_new:
            self.report.folders.append(conversation.folder)
        return folder_id

    def _count_folder(self, conn: Connection, conversation: Conversation) -> None:
        """Report what `_add_folder` would do with a new conversation."""
        name, folders = conversation.folder, self.report.folders
        is_there = name in folders or queries.folders.find_folder(conn, self.user_id, name) is not None
        if not name or not self._new or is_there:
            return
        if queries.folders.count_folders(conn, self.user_id) + len(folders) >= queries.folders.MAX_FOLDERS:
            _lose_folder(conversation)
        else:
            folders.append(name)

    def _save(self, conn: Connection, saved: Saved) -> None:
        table: queries.prompts.Table = "presets" if isinstance(saved, SavedPreset) else "prompts"
        if table in self._full:
            return
        fields = msgspec.structs.asdict(saved)
        del fields["fireside"]
        if isinstance(saved, SavedPreset):
            fields["settings"] = saved.settings.given()
        counted = self._counted_saved[table] if self.dry_run else None
        try:
            is_new = queries.prompts.save_imported(conn, self.user_id, table, fields, self._max_bytes, counted)
        except Invalid:  # there are too many
            self._full.add(table)
            most = queries.prompts.MAX_SAVED[table]
            self.report.skipped.append(Skipped(table, f"at most {most} can be saved; the rest was left out"))
            return
        if is_new and self.dry_run:
            self._size += len(fields[queries.prompts.COUNTED[table]].encode())
        setattr(self.report, table, getattr(self.report, table) + is_new)
        self.report.unchanged += not is_new


def _link(conn: Connection, message_id: int, files: _Files, table: Table) -> None:
    """Attach files to a message. Raises Unreadable."""
    for position, (name, attachment_id) in enumerate(files):
        if attachment_id is None:
            raise Unreadable(f"its file {name} is missing")
        queries.attachments.link(conn, message_id, position, attachment_id, name, table)


def _lose_folder(conversation: Conversation) -> None:
    """Note that a conversation is added without its folder, because there are too many."""
    conversation.losses[f"folder: {conversation.folder}"] = 1


def _with_ids(event: dict[str, Any], ids: dict[str, int]) -> dict[str, Any]:
    """Return an event of a log with the ids that are valid in this database."""
    data = event["data"]
    return event | {"data": data | {name: id for name, id in ids.items() if name in data}}
