"""Reads the conversations in a file, folder or zip, one at a time, in a sandbox child.

The files are untrusted. Memory is bounded by the largest conversation, and the work by the limits below.
"""

import binascii
import codecs
import contextlib
import io
import itertools
import lzma
import os
import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

import msgspec

from ..queries.types import image_type
from . import formats
from .transcript import Conversation, Image, Message, Unreadable, clean

CHUNK = 256 * 1024  # bytes read at a time
MAX_CONVERSATION = 64 * 1024 * 1024  # bytes of JSON, without the images in it
MAX_MESSAGES = 50_000  # of one conversation
MAX_FILE = 4 * 1024**3  # bytes, unpacked
MAX_UNPACKED = 8 * 1024**3  # bytes of conversations and images that one import reads
MAX_FILES = 200_000  # in a folder or zip
MAX_DIRECTORY = 32 * 1024 * 1024  # bytes of a zip's list of files: read at once, and ten times that in memory
MAX_RATIO = 200  # of unpacked to packed bytes, from MAX_CONVERSATION on; text seldom passes 20, but small models repeat themselves
MAX_IMAGE = 64 * 1024 * 1024  # bytes
MAX_COPIES = 4  # of all images together: some are shown twice, none a thousand times
MAX_SKIPPED = 1000  # of one file, before it is given up
PIECE_BYTES = 256 * 1024  # of texts and images, from which on steps are sent
STEP_BYTES = 200  # that a step takes besides those

_BROKEN = (  # what reading a file, and a zip that somebody made by hand, raises
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


class Skipped(msgspec.Struct):
    file: str
    reason: str


# ---- what the child sends: pieces of steps. A conversation is a Begin, its messages each with its images, and an End; a Skip in place of
# the End says that the rest cannot be read.


class Begin(msgspec.Struct, tag=True):
    conversation: Conversation  # without its messages
    question: str | None  # the first message, by which a conversation that was made in Fireside is known


class Add(msgspec.Struct, tag=True):
    message: Message  # without its images


class Picture(msgspec.Struct, tag=True):
    file: str
    data: bytes


class End(msgspec.Struct, tag=True):
    pass


class Skip(msgspec.Struct, tag=True):
    skipped: Skipped


Step = Begin | Add | Picture | End | Skip


class Piece(msgspec.Struct):
    done: float  # the fraction of the file that was read
    steps: list[Step]


def read(encoded_path: bytes) -> Iterator[bytes]:
    """Read a file, folder or zip to its end and yield encoded pieces. A sandbox child runs this."""
    path = Path(os.fsdecode(encoded_path))
    try:
        source = Source(path)
    except Unreadable as error:
        yield msgspec.msgpack.encode(Piece(1.0, [Skip(Skipped(clean(path.name), str(error)))]))
        return
    with contextlib.closing(source):
        steps: list[Step] = []
        weight = 0
        for step in source.steps():
            steps.append(step)
            weight += STEP_BYTES
            if isinstance(step, Add):
                weight += len(step.message.content) + len(step.message.reasoning)
            elif isinstance(step, Picture):
                weight += len(step.data)
            if weight >= PIECE_BYTES:
                yield msgspec.msgpack.encode(Piece(source.read / (source.size or 1), steps))
                steps, weight = [], 0
        yield msgspec.msgpack.encode(Piece(1.0, steps))


class _Within(NamedTuple):
    """An image as base64 in a JSON file."""

    path: Path
    start: int  # bytes
    end: int


_LIFTED = "//"  # so begin the names of such images; no file in a folder or a zip is called so
Member = Path | zipfile.ZipInfo | _Within

_EXPORTED = re.compile(r"(^|/)conversations(-[0-9]+)?\.json$|\.conversation\.json$")
_MENTIONED = re.compile(r"file[-_][A-Za-z0-9]+")  # the id within file-service://file-Abc and file-Abc-photo.png


class Source:
    """A file, folder or zip that holds conversations. Iterate it once, and close it after the images were read."""

    def __init__(self, path: Path) -> None:
        """Raises Unreadable."""
        self.read = 0  # bytes of conversations so far, of `size`
        self._left = MAX_UNPACKED
        self._open_files = contextlib.ExitStack()
        self._zip: zipfile.ZipFile | None = None
        self._members: dict[str, Member] = {}
        try:
            self._list(path)
            others = [name for name in self._members if not name.endswith(".json")]
            self._mentioned = {key: name for name in others for key in _mentions(name)}
            self._images_left = MAX_COPIES * sum(map(self._size, others))  # bytes
            self.size = sum(map(self._size, self._names))
        except _BROKEN as error:
            self.close()
            raise Unreadable(_reason(error)) from error
        if not self._names or len(self._members) > MAX_FILES:
            self.close()
            many = f"has more than {MAX_FILES:,} files in it"
            raise Unreadable(many if self._names else "has no conversations in it")

    def _list(self, path: Path) -> None:
        self._names = [path.name]
        if path.is_dir():
            self._members = dict(itertools.islice(_walk(path), MAX_FILES + 1))
        elif _is_zip(path):
            self._zip = _open_zip(path, self._open_files)
            self._members = {info.filename: info for info in self._zip.infolist() if not info.filename.endswith("/")}
            if _is_bomb(sum(map(self._size, self._members)), path.stat().st_size):
                raise zipfile.BadZipFile(_BOMB)
        else:
            self._members = {path.name: path}
        if path.is_dir() or self._zip:
            names = [name for name in self._members if name.endswith(".json") and not _hidden(name)]
            self._names = [name for name in names if _EXPORTED.search(name)] or names
        self._members = _beside(path) | self._members

    def close(self) -> None:
        self._open_files.close()

    def steps(self) -> Iterator[Step]:
        for item in self:
            if isinstance(item, Skipped):
                yield Skip(item)
                continue
            question = next((message.content for message in item.messages if message.parent_id is None), None)
            messages, item.messages = item.messages, []
            yield Begin(item, question)
            try:
                for message in messages:
                    images, message.images = message.images, []
                    yield Add(message)
                    for image in images:
                        yield Picture(clean(image.file[:100]), image.data or self.image(image.file))
                yield End()
            except Unreadable as error:
                yield Skip(Skipped(item.title, str(error)))

    def __iter__(self) -> Iterator[Conversation | Skipped]:
        for name in self._names:
            skipped = 0
            try:
                if self._left <= 0:
                    break
                for number, raw in enumerate(split(self._chunks(name)), 1):
                    for found in self._conversations(clean(name), number, raw):
                        yield found
                        skipped += isinstance(found, Skipped)
                        if skipped > MAX_SKIPPED:
                            raise Unreadable("has too much in it that cannot be read; the rest was left out")
            except Unreadable as error:
                yield Skipped(clean(name), str(error))
            except _BROKEN as error:
                yield Skipped(clean(name), _reason(error))

    def _conversations(self, name: str, number: int, raw: bytes | None) -> Iterator[Conversation | Skipped]:
        where = name if number == 1 else f"{name}, conversation {number}"
        try:
            if raw is None:
                raise Unreadable(f"is larger than {MAX_CONVERSATION >> 20} MB")
            values = formats.unpack(formats.decode(raw))
        except Unreadable as error:
            yield Skipped(where, str(error))
            return
        for value in values:
            try:
                conversation = formats.parse(value, self._find)
                if len(conversation.messages) > MAX_MESSAGES:
                    raise Unreadable(f"has more than {MAX_MESSAGES:,} messages")
                yield conversation
            except Unreadable as error:
                title = formats.name_of(value)
                yield Skipped(f"{name}: {title}" if title else where, str(error))

    def image(self, file: str) -> bytes:
        """The bytes of an image that a conversation names. Raises Unreadable."""
        name = self._member(file)
        what = "an image in it" if file.startswith(_LIFTED) else f"its image {file[:100]}"
        try:
            if name is None or self._size(name) > min(MAX_IMAGE, self._images_left):
                raise Unreadable(f"{what} is missing or too large")
            self._images_left -= self._size(name)
            self._take(self._size(name))
            with self._open(name) as opened:
                return opened.read(MAX_IMAGE)
        except _BROKEN as error:
            raise Unreadable(f"{what} cannot be read") from error

    def _take(self, size: int) -> None:
        """Count bytes that are read. Raises Unreadable when they are too many."""
        self._left -= size
        if self._left <= 0:
            raise Unreadable(f"is more than the {MAX_UNPACKED >> 30} GB that an import may have; the rest was left out")

    def _member(self, file: str) -> str | None:
        return file if file in self._members else self._mentioned.get(PurePosixPath(file).name)

    def _find(self, mention: str) -> Image | None:
        for key in _mentions(mention.rpartition("://")[2]):
            name = self._mentioned.get(key)
            if name is None:
                continue
            try:
                with self._open(name) as opened:
                    kind = image_type(opened.read(12))
                return Image(kind, file=name) if kind and self._size(name) <= MAX_IMAGE else None
            except _BROKEN:
                return None
        return None

    def _size(self, name: str) -> int:
        member = self._members[name]
        if isinstance(member, _Within):
            return (member.end - member.start) * 3 // 4
        return member.file_size if isinstance(member, zipfile.ZipInfo) else member.stat().st_size

    def _open(self, name: str) -> IO[bytes]:
        member = self._members[name]
        if isinstance(member, Path):
            return member.open("rb")
        if isinstance(member, _Within):
            with member.path.open("rb") as file:
                file.seek(member.start)
                return io.BytesIO(binascii.a2b_base64(file.read(member.end - member.start), strict_mode=True))
        if _is_bomb(member.file_size, member.compress_size):
            raise zipfile.BadZipFile(_BOMB)
        assert self._zip is not None
        return self._zip.open(member)

    def _chunks(self, name: str) -> Iterator[bytes]:
        if self._size(name) > MAX_FILE:
            raise Unreadable(f"is larger than {MAX_FILE >> 30} GB")
        with self._open(name) as opened:
            chunks = self._read(opened)
            member = self._members[name]
            if not isinstance(member, Path):
                yield from chunks
                return

            def note(start: int, end: int) -> str:
                image = f"{_LIFTED}{len(self._members)}"
                self._members[image] = _Within(member, start, end)
                self._images_left += MAX_COPIES * self._size(image)
                return image

            yield from lift(chunks, note)

    def _read(self, opened: IO[bytes]) -> Iterator[bytes]:
        while chunk := opened.read(CHUNK):
            self.read += len(chunk)
            self._take(len(chunk))
            yield chunk


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    for parent, _, names in sorted(os.walk(folder)):
        for name in sorted(names):
            path = Path(parent, name)
            if path.is_file():
                yield path.relative_to(folder).as_posix(), path


def _beside(path: Path) -> dict[str, Member]:
    """LM Studio's attachments, which lie in a folder beside its conversations."""
    home = next((parent.parent for parent in (path, *path.parents) if parent.name == "conversations"), None)
    try:
        return (
            {f"user-files/{file.name}": file for file in (home / "user-files").iterdir() if file.is_file()}
            if home
            else {}
        )
    except OSError:
        return {}


def _mentions(name: str) -> Iterator[str]:
    base = PurePosixPath(name).name
    yield base
    if mentioned := _MENTIONED.match(base):
        yield mentioned[0]


def _hidden(name: str) -> bool:
    return name.startswith("__MACOSX/") or PurePosixPath(name).name.startswith(".")


_BOMB = f"it unpacks to more than {MAX_RATIO} times its size"


def _is_bomb(unpacked: int, packed: int) -> bool:
    return unpacked > MAX_CONVERSATION and unpacked > MAX_RATIO * packed


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) in (b"PK\3\4", b"PK\5\6")


def _open_zip(path: Path, open_files: contextlib.ExitStack) -> zipfile.ZipFile:
    """Raises BadZipFile for one whose list of files would fill the memory."""
    file = open_files.enter_context(_Guarded(path, "r"))
    file.limit = MAX_DIRECTORY
    archive = open_files.enter_context(zipfile.ZipFile(file))
    file.limit = sys.maxsize
    return archive


class _Guarded(io.FileIO):
    """zipfile reads a zip's whole list of files at once, and believes the zip how long that is."""

    limit = sys.maxsize

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > self.limit:
            raise zipfile.BadZipFile("it lists more files than an export has")
        return super().read(-1 if size is None else size) or b""


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    return f"cannot be unpacked: {str(error) or 'it ends too early'}"[:200]


LIFTED = 16 * 1024  # characters of base64, from which on an image is not kept with its conversation
# Not within a text: there a quote has a backslash before it.
_DATA = re.compile(rb'"data"\s{0,9}:\s{0,9}"(?=[A-Za-z0-9+/]{%d})' % LIFTED)
_BASE64 = re.compile(rb"[A-Za-z0-9+/=]*")


def lift(chunks: Iterator[bytes], note: Callable[[int, int], str]) -> Iterator[bytes]:
    """JSON without the images that Fireside's has in it, so that it can be held: `note` is told from where to where one is, in bytes
    of the file, and says by what name it is to be found."""
    held = b""
    at = 0  # of `held` in the file
    image: int | None = None  # where the one begins that is being passed over
    for chunk in chunks:
        held += chunk
        while True:
            if image is None:
                found = _DATA.search(held)
                kept = found.start() if found else max(0, len(held) - LIFTED - 32)
                if kept:
                    yield held[:kept]
                passed = found.end() if found else kept
                held, at = held[passed:], at + passed
                if not found:
                    break
                image = at
            else:
                passed = _end(_BASE64, held, 0)
                held, at = held[passed:], at + passed
                if not held:
                    break
                whole = held.startswith(b'"')  # else it is no image, and of no use to anybody
                yield b'"data":"","file":"%s' % note(image, at).encode() if whole else b'"data":"'
                image = None
    yield held if image is None else b'"data":"'


_REST = rb'[^"\\]*(?:\\.[^"\\]*)*'  # of a string, from anywhere in it to its last quote
_UNQUOTED = re.compile(rb'[^"]*(?:"%s"[^"]*)*' % _REST, re.DOTALL)
_TO_BRACKET = re.compile(rb'[^"\[\]{}]*(?:"%s"[^"\[\]{}]*)*([\[\]{}])' % _REST, re.DOTALL)
_TO_COMMA = re.compile(rb'[^"\[\]{},]*(?:"%s"[^"\[\]{},]*)*([\[\]{},])' % _REST, re.DOTALL)
_IN_STRING = re.compile(_REST, re.DOTALL)


def split(chunks: Iterator[bytes]) -> Iterator[bytes | None]:
    """The elements of a JSON array, undecoded, one at a time; None for one above MAX_CONVERSATION. What is no array is one.

    Raises Unreadable when the array's end is missing, or is not the end.
    """
    first = b""
    for chunk in chunks:
        first = (first + chunk).lstrip()
        if first.startswith(codecs.BOM_UTF8):
            first = codecs.BOM_UTF8 + first[3:].lstrip()
        if len(first) > 3:
            break
    first = first.removeprefix(codecs.BOM_UTF8)
    kept = _Kept()
    if not first.startswith(b"["):
        for chunk in itertools.chain((first,), chunks):
            kept.add(chunk)
        yield kept.take()
        return
    depth = 1
    quoted = escaped = False  # whether a chunk begins within a string, or with the second half of an escape
    for chunk in itertools.chain((first[1:],), chunks):
        start = at = 0
        if quoted:
            at = _end(_IN_STRING, chunk, int(escaped))
            quoted, escaped = at == len(chunk) or chunk[at : at + 1] == b"\\", at < len(chunk)
            if quoted:
                kept.add(chunk)
                continue
            at += 1
        while found := (_TO_COMMA if depth == 1 else _TO_BRACKET).match(chunk, at):
            at, sign = found.end(), found[1]
            depth += (sign in b"[{") - (sign in b"]}")
            if depth == 0 or (depth == 1 and sign == b","):
                kept.add(chunk[start : at - 1])
                start, element = at, kept.take()
                if element is None or element.strip():
                    yield element
            if depth == 0:
                if chunk[at:].strip() or any(rest.strip() for rest in chunks):
                    raise Unreadable("goes on after its end")
                return
        kept.add(chunk[start:])
        opening = _end(_UNQUOTED, chunk, at)
        quoted = opening < len(chunk)
        escaped = quoted and _end(_IN_STRING, chunk, opening + 1) < len(chunk)
    raise Unreadable("ends in the middle")


def _end(pattern: re.Pattern[bytes], chunk: bytes, at: int) -> int:
    """Where a match ends of a pattern that matches everywhere, if only nothing."""
    found = pattern.match(chunk, at)
    return found.end() if found else at


class _Kept:
    """Pieces of one conversation, as long as they do not grow too large."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0

    def add(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size <= MAX_CONVERSATION:
            self._pieces.append(piece)
        else:
            self._pieces.clear()

    def take(self) -> bytes | None:
        pieces, size, self._pieces, self._size = self._pieces, self._size, [], 0
        return b"".join(pieces) if size <= MAX_CONVERSATION else None
