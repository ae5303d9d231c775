"""Reads the conversations and saved prompts in a file, folder or zip, one at a time, in a sandbox child.

The files are untrusted. The sandbox bounds memory and time (importer.py); the limits below bound the rest.
"""

import binascii
import contextlib
import functools
import hashlib
import io
import itertools
import lzma
import os
import re
import sqlite3
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import msgspec

from ..backends.loose import clean, decode
from ..queries.attachments import clean_name
from ..queries.types import folder_name
from . import database, formats
from .split import ELEMENT_BYTES, lift, split
from .steps import Add, Attached, Begin, End, File, Save, Skip, Skipped, Step
from .transcript import ATTACHMENTS, Attachment, Conversation, Message, Queued, Saved, Unreadable

CHUNK_BYTES = 256 * 1024  # read at a time
MAX_MESSAGES = 50_000  # of one conversation
MAX_READ_BYTES = 8 * 1024**3  # of conversations and files, unpacked
MAX_READS = 4  # times the size of all files
MAX_FILES = 200_000  # in a folder or zip
MAX_RATIO = 200  # of unpacked to packed bytes of a zip above ELEMENT_BYTES; text seldom exceeds 20, but small models repeat themselves
MAX_FILE_BYTES = 64 * 1024 * 1024  # of an image or a document
MAX_BESIDE_BYTES = 1024 * 1024  # of a file with facts about the conversation beside it
MAX_PACKED_DATABASE_BYTES = 256 * 1024 * 1024  # of a database in a zip, which is unpacked into memory
MAX_SKIPPED = 1000  # conversations of one file; the rest of it is left out
PIECE_BYTES = 256 * 1024  # of steps, from which on they are sent

_UNREADABLE = (  # what reading a file raises, and a damaged or forged zip
    OSError,
    EOFError,
    RuntimeError,
    UnicodeDecodeError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    binascii.Error,
)


def read(encoded_path: bytes) -> Iterator[bytes]:
    """Read a file, folder or zip to its end and yield encoded pieces."""
    path = Path(os.fsdecode(encoded_path))
    steps: list[msgspec.Raw] = []
    size = 0
    try:
        with contextlib.closing(Source(path)) as source:
            for step in source.steps():
                steps.append(msgspec.Raw(msgspec.msgpack.encode(step)))
                size += len(steps[-1])
                if size >= PIECE_BYTES:
                    yield msgspec.msgpack.encode({"done": source.read / (source.size or 1), "steps": steps})
                    steps, size = [], 0
    except Unreadable as error:
        steps.append(msgspec.Raw(msgspec.msgpack.encode(Skip(Skipped(clean(path.name), str(error))))))
    yield msgspec.msgpack.encode({"done": 1.0, "steps": steps})


class Member(NamedTuple):
    """A file, a member of a zip, or a file within a JSON file."""

    size: int  # bytes, unpacked
    open: Callable[[], IO[bytes]]


class _Row(NamedTuple):
    """A decoded element of a file."""

    where: str
    value: Any
    size: int  # bytes


class _Unknown(Skipped):
    """A row that is not a conversation of any program."""


_Found = Conversation | Saved | Skipped

USER_FILES = "user-files"  # the folder of LM Studio's attachments
_JSON = (".json", ".jsonl", ".ndjson")
_DATABASES = (".db", ".sqlite", ".sqlite3")
_TAKEOUT_HTML = re.compile(r"(Gemini|Bard)[^/]*/[^/]+\.html$")
_EXPORTED = re.compile(r"(^|/)(conversations(-[0-9]+)?\.json|logs\.db)$|\.conversation\.json$")
_FILE_ID = re.compile(r"file[-_][A-Za-z0-9]+")  # in file-service://file-Abc and in file-Abc-photo.png


class Source:
    """A file, folder or zip with conversations. Iterate it once, and close it after the attachments were read."""

    def __init__(self, path: Path) -> None:
        """Raises Unreadable."""
        self.read = 0  # bytes of conversations so far, of `size`
        self._path = path
        self._sent = set[bytes]()  # SHA-256 of the files that were sent
        self._hashes: dict[str, bytes] = {}  # of these, by name
        self._zip: zipfile.ZipFile | None = None
        with _explained():
            self._members = self._list()
        self._names = [path.name]
        if self._zip or path.is_dir():
            with _explained():
                self._names = [name for name in self._members if self._may_have_conversations(name)]
        if not self._names:
            raise Unreadable("has no conversations in it")
        # Files in the folder of a file that an export is known by are read too, but need not have conversations in them.
        exported = {name for name in self._names if _EXPORTED.search(name)}
        folders = {PurePosixPath(name).parent for name in exported}
        others = (name for name in self._names if not folders.isdisjoint(PurePosixPath(name).parents))
        self._companions = set(others) - exported
        self._names = [name for name in self._names if name not in self._companions or not _is_upload(name)]
        self._members = _list_attachments(path) | self._members
        others = (name for name in self._members if not _EXPORTED.search(name))
        self._by_reference = {reference: name for name in others for reference in _references(name)}
        self._left = min(MAX_READ_BYTES, MAX_READS * sum(member.size for member in self._members.values()))
        self.size = sum(self._members[name].size for name in self._names)

    def _list(self) -> dict[str, Member]:
        if self._path.is_dir():
            members = dict(itertools.islice(_walk(self._path), MAX_FILES + 1))
        elif zipfile.is_zipfile(self._path):
            self._zip = zipfile.ZipFile(self._path)
            files = [info for info in self._zip.infolist() if not info.filename.endswith("/")]
            members = {info.filename: Member(info.file_size, functools.partial(self._zip.open, info)) for info in files}
            unpacked = sum(info.file_size for info in files)
            if unpacked > max(ELEMENT_BYTES, MAX_RATIO * self._path.stat().st_size):
                raise Unreadable(f"unpacks to more than {MAX_RATIO} times its size")
        else:
            members = {self._path.name: _file(self._path)}
        if len(members) > MAX_FILES:
            raise Unreadable(f"has more than {MAX_FILES:,} files in it")
        return members

    def _may_have_conversations(self, name: str) -> bool:
        if _is_hidden(name) or _is_attachment(name):
            return False
        if name.endswith(_DATABASES):
            return self._is_database(name)
        if _TAKEOUT_HTML.search(name):
            return True
        if PurePosixPath(name).name == "thread.json":  # of Jan, which is read with the messages beside it
            return PurePosixPath(name).with_name("messages.jsonl").as_posix() not in self._members
        return name.endswith(_JSON)

    def _is_database(self, name: str) -> bool:
        with self._members[name].open() as opened:
            return opened.read(len(database.MAGIC)) == database.MAGIC

    def close(self) -> None:
        if self._zip:
            self._zip.close()

    def steps(self) -> Iterator[Step]:
        for item in self:
            if isinstance(item, Conversation):
                yield from self.send(item)
            else:
                yield Skip(item) if isinstance(item, Skipped) else Save(item)

    def send(self, conversation: Conversation) -> Iterator[Step]:
        """Yield the steps of a conversation of this source."""
        messages, conversation.messages = conversation.messages, []
        queue = [_take_attachments(message) for message in conversation.queue]
        question = next((message.content for message in messages if message.parent_id is None), None)
        yield Begin(conversation, question)
        keys: dict[int | None, str | None] = {None: None}
        repeats = Counter[str]()
        try:
            for message in messages:
                attached = yield from self._send_files(_take_attachments(message))
                moment = f"{message.created_at} {message.role}"
                repeats[moment] += 1
                key = keys[message.id] = message.source or f"{moment} {repeats[moment]}"
                yield Add(message, attached, key, keys[message.parent_id])
            queued: list[list[Attached]] = []
            for attachments in queue:
                queued.append((yield from self._send_files(attachments)))
            yield End(keys[conversation.active_message_id], queued)
        except Unreadable as error:
            yield Skip(Skipped(conversation.title, str(error)))

    def __iter__(self) -> Iterator[_Found]:
        for name in self._names:
            skipped = 0
            is_ours = report_unknown = name not in self._companions  # unknown rows are reported once in a file
            try:
                with _explained():
                    for found in self._read_file(name):
                        if report_unknown or not isinstance(found, _Unknown):
                            yield found
                            is_ours = True
                        report_unknown &= not isinstance(found, _Unknown)
                        skipped += isinstance(found, Skipped)
                        if skipped > MAX_SKIPPED and not is_ours:
                            break
                        if skipped > MAX_SKIPPED:
                            raise Unreadable("has too much in it that cannot be read; the rest was left out")
            except Unreadable as error:
                yield Skipped(clean(name), str(error))
            if self._left < 0:
                break

    def _read_file(self, name: str) -> Iterator[_Found]:
        """Raises Unreadable when the rest of the file cannot be read."""
        rows = self._read_rows(name)
        for row in rows:
            if isinstance(row, Skipped):
                yield row
            elif format := formats.of_message(row.value):
                yield from self._read_messages(name, format, itertools.chain([row], rows))
            else:
                yield from self._read_conversation(name, row)

    def _read_messages(self, name: str, format: formats.Format, rows: Iterator[_Row | Skipped]) -> Iterator[_Found]:
        """Read the conversations of a file whose rows are messages."""
        values: list[dict[str, Any]] = []
        size = 0
        for row in rows:
            if isinstance(row, Skipped):
                yield row
            elif isinstance(row.value, dict):
                values.append(row.value)
                size += row.size
            if size > ELEMENT_BYTES:
                raise Unreadable(f"is larger than {ELEMENT_BYTES >> 20} MB")
        for value in format.join(values, functools.partial(self._read_beside, name)):
            yield from self._read_conversation(name, _Row(clean(name), value, 0))

    def _read_conversation(self, name: str, row: _Row) -> Iterator[_Found]:
        """Raises Unsupported."""
        try:
            found = formats.parse(row.value, self._find_file)
            if isinstance(found, Conversation):
                if len(found.messages) > MAX_MESSAGES:
                    raise Unreadable(f"has more than {MAX_MESSAGES:,} messages")
                if folder := _folder_of(name):
                    found.folder = folder
            yield found
        except formats.Unsupported:
            raise
        except Unreadable as error:
            title = formats.title_of(row.value)
            kind = _Unknown if isinstance(error, formats.Unknown) else Skipped
            yield kind(f"{clean(name)}: {title}" if title else row.where, str(error))

    def _read_rows(self, name: str) -> Iterator[_Row | Skipped]:
        if _TAKEOUT_HTML.search(name):
            raise formats.Unsupported("is Gemini activity as HTML; choose JSON for My Activity in Google Takeout")
        if self._is_database(name):
            with contextlib.closing(database.open_untrusted(self._load_database(name))) as conn:
                for value in formats.read_database(database.Reader(conn)):
                    yield _Row(clean(name), value, 0)
            return
        for number, element in enumerate(split(self._chunks(name)), 1):
            where = clean(name) if number == 1 else f"{clean(name)}, no. {number}"
            if element is None:
                yield Skipped(where, f"is larger than {ELEMENT_BYTES >> 20} MB")
                continue
            try:
                value = decode(element)
            except ValueError as error:
                yield Skipped(where, str(error))
                continue
            for row in formats.unpack(value):
                yield _Row(where, row, len(element))

    def _load_database(self, name: str) -> Path | bytes:
        """Return the path of a database, or its bytes when it is in a zip."""
        member = self._members[name]
        self._take(member.size)
        self.read += member.size
        if self._zip is None:
            return self._path / name if self._path.is_dir() else self._path
        if member.size > MAX_PACKED_DATABASE_BYTES:
            raise Unreadable(f"is larger than {MAX_PACKED_DATABASE_BYTES >> 20} MB; unpack the zip first")
        with member.open() as opened:
            return opened.read()

    def _read_beside(self, name: str, beside: str) -> Any:
        """Return the decoded JSON file of this name in the same folder, or None."""
        member = self._members.get(PurePosixPath(name).with_name(beside).as_posix())
        if member is None or member.size > MAX_BESIDE_BYTES:
            return None
        self._take(member.size)
        with member.open() as opened:
            try:
                return decode(opened.read())
            except ValueError:
                return None

    def _send_files(self, attachments: list[Attachment]) -> Generator[File, None, list[Attached]]:
        """Yield the files that were not sent before, and return how the message refers to them. Raises Unreadable."""
        attached: list[Attached] = []
        for attachment in attachments:
            name = clean_name(attachment.name) if attachment.name else ""
            sha256 = self._hashes.get(attachment.file)
            if sha256 is None:
                data = attachment.data or self._read_attachment(attachment.file)
                sha256 = hashlib.sha256(data).digest()
                if sha256 not in self._sent:
                    self._sent.add(sha256)
                    yield File(sha256, name, attachment.media_type, data)
                if attachment.file:
                    self._hashes[attachment.file] = sha256
            attached.append(Attached(attachment.id, sha256, name))
        return attached

    def _read_attachment(self, name: str) -> bytes:
        """Raises Unreadable."""
        member = self._members.get(name) or self._members.get(self._by_reference.get(PurePosixPath(name).name, ""))
        name = clean(name[:100])
        if member is None or member.size > MAX_FILE_BYTES:
            raise Unreadable(f"its file {name} is missing or larger than {MAX_FILE_BYTES >> 20} MB")
        self._take(member.size)
        try:
            with member.open() as opened:
                data = opened.read(MAX_FILE_BYTES)
        except _UNREADABLE as error:
            raise Unreadable(f"its file {name} cannot be read") from error
        if not data:
            raise Unreadable(f"its file {name} is empty")
        return data

    def _find_file(self, reference: str) -> Attachment | None:
        """Find a file by the name or the id with which a message of another program refers to it."""
        names = map(self._by_reference.get, _references(reference.rpartition("://")[2]))
        name = next(filter(None, names), None)
        if name is None or not 0 < self._members[name].size <= MAX_FILE_BYTES:
            return None
        return Attachment(file=name)

    def _take(self, size: int) -> None:
        """Count bytes that are read. Raises Unreadable when they are too many."""
        self._left -= size
        if self._left < 0:
            most = f"more than {MAX_READ_BYTES >> 30} GB, or {MAX_READS} times the size of its files"
            raise Unreadable(f"has {most}, to be read; the rest was left out")

    def _chunks(self, name: str) -> Iterator[bytes]:
        member = self._members[name]
        with member.open() as opened:
            chunks = map(self._counted, iter(lambda: opened.read(CHUNK_BYTES), b""))
            # A file in a member of a zip could only be read by unpacking the member from its start again.
            yield from chunks if self._zip else lift(chunks, functools.partial(self._add_file, member))

    def _counted(self, chunk: bytes) -> bytes:
        self.read += len(chunk)
        self._take(len(chunk))
        return chunk

    def _add_file(self, member: Member, start: int, end: int) -> str:
        """Add a file in a JSON file as a member, under a name that no other has."""
        name = f"//{len(self._members)}"
        self._members[name] = Member((end - start) * 3 // 4, functools.partial(_open_base64, member, start, end))
        return name


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Raise Unreadable for what goes wrong while a file is read."""
    try:
        yield
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror or 'it is damaged'}") from error
    except sqlite3.Error as error:
        raise Unreadable("is a database that is damaged or of an unknown version") from error
    except _UNREADABLE as error:
        raise Unreadable("cannot be unpacked: it is damaged or encrypted") from error


def _file(path: Path) -> Member:
    return Member(path.stat().st_size, lambda: path.open("rb"))


def _open_base64(member: Member, start: int, end: int) -> IO[bytes]:
    with member.open() as file:
        file.seek(start)
        return io.BytesIO(binascii.a2b_base64(file.read(end - start), strict_mode=True))


def _walk(folder: Path) -> Iterator[tuple[str, Member]]:
    for parent, _, names in sorted(os.walk(folder)):
        for name in sorted(names):
            path = Path(parent, name)
            if path.is_file():
                yield path.relative_to(folder).as_posix(), _file(path)


def _list_attachments(path: Path) -> dict[str, Member]:
    """Return LM Studio's attachments, which are in a folder beside its conversations."""
    homes = (parent.parent for parent in (path, *path.parents) if parent.name == "conversations")
    return {f"{USER_FILES}/{name}": member for home in homes for name, member in _walk(home / USER_FILES)}


def _references(name: str) -> Iterator[str]:
    """Yield the names by which messages refer to a file."""
    base = PurePosixPath(name).name
    yield base
    if found := _FILE_ID.match(base):
        yield found[0]


def _folder_of(name: str) -> str:
    """Return the user's folder of a conversation of LM Studio, or ""."""
    if not name.endswith(".conversation.json"):
        return ""
    *folders, _ = name.split("/")
    if "conversations" in folders:
        folders = folders[folders.index("conversations") + 1 :]
    return folder_name(clean("/".join(folders)))


def _take_attachments(message: Message | Queued) -> list[Attachment]:
    """Take the attachments out of a message: they are sent as files."""
    taken, message.attachments = message.attachments, []
    return taken


def _is_attachment(name: str) -> bool:
    """Return whether a file is an attachment in an export of Fireside, or in the home of LM Studio: one may be JSON with conversations."""
    folders = PurePosixPath(name).parts[:-1]
    return not name.endswith(".conversation.json") and (ATTACHMENTS in folders or USER_FILES in folders)


def _is_upload(name: str) -> bool:
    """Return whether a file is one that a user of ChatGPT uploaded, by the id in its name."""
    return _FILE_ID.match(PurePosixPath(name).name) is not None


def _is_hidden(name: str) -> bool:
    return name.startswith("__MACOSX/") or PurePosixPath(name).name.startswith(".")
