"""The zip formats: their members and their XML."""

import io
import zipfile
import zlib
from collections.abc import Iterator
from typing import Literal, NamedTuple
from xml.parsers import expat

from .common import MAX_DEPTH, MAX_UNPACKED_BYTES, Unreadable

CHUNK_BYTES = 64 * 1024
DAMAGED = "The file is damaged or incomplete. Download or save it again."


class Event(NamedTuple):
    """The start or end of an element, with its name without a prefix, or text."""

    kind: Literal["start", "end", "text"]
    name: str  # or the text
    attributes: dict[str, str] = {}  # noqa: RUF012


class Archive:
    """The members of a zip, unpacked as a stream and within MAX_UNPACKED_BYTES in all."""

    def __init__(self, data: bytes) -> None:
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(data))
        except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, OverflowError):
            raise Unreadable(DAMAGED) from None
        self.names = frozenset(self._zip.namelist())
        self._unpacked = 0

    def chunks(self, name: str) -> Iterator[bytes]:
        try:
            with self._zip.open(name) as member:
                while chunk := member.read(CHUNK_BYTES):
                    self._unpacked += len(chunk)
                    if self._unpacked > MAX_UNPACKED_BYTES:
                        raise Unreadable(
                            f"The file unpacks to more than {MAX_UNPACKED_BYTES // 1024**2} MB, which is too much for a document."
                        )
                    yield chunk
        except KeyError:
            raise Unreadable(DAMAGED) from None
        except RuntimeError:  # zipfile's error for a member with a password
            raise Unreadable("The file is encrypted. Open it in its program and save it without a password.") from None
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, OSError):
            raise Unreadable(DAMAGED) from None

    def read(self, name: str) -> bytes:
        return b"".join(self.chunks(name))

    def events(self, name: str) -> Iterator[Event]:
        """Parse a member as XML. A document type definition, which could define entities, is refused."""
        found: list[Event] = []
        names: dict[str, str] = {}
        depth = 0

        def local(name: str) -> str:
            if (short := names.get(name)) is None:
                short = names[name] = name.rpartition(" ")[2]
            return short

        def start(name: str, attributes: dict[str, str]) -> None:
            nonlocal depth
            depth += 1
            if depth > MAX_DEPTH:
                raise Unreadable(f"The file's elements are nested more than {MAX_DEPTH} levels deep.")
            found.append(Event("start", local(name), {local(key): value for key, value in attributes.items()}))

        def end(name: str) -> None:
            nonlocal depth
            depth -= 1
            found.append(Event("end", local(name)))

        def refuse(*_: object) -> None:
            raise Unreadable(
                "The file contains a document type definition, which is not read because it can be an attack."
            )

        parser = expat.ParserCreate(namespace_separator=" ")
        parser.buffer_text = True
        parser.StartElementHandler = start
        parser.EndElementHandler = end
        parser.CharacterDataHandler = lambda text: found.append(Event("text", text))
        parser.StartDoctypeDeclHandler = refuse
        try:
            for chunk in self.chunks(name):
                parser.Parse(chunk, False)
                yield from found
                found.clear()
            parser.Parse(b"", True)
        except expat.ExpatError:
            yield from found
            raise Unreadable(DAMAGED) from None
        yield from found

    def relations(self, name: str) -> dict[str, tuple[str, str]]:
        """Return the relations of an Office part: {id: (type, path of the other part)}."""
        folder, _, file = name.rpartition("/")
        path = f"{folder}/_rels/{file}.rels".lstrip("/")
        found: dict[str, tuple[str, str]] = {}
        if path not in self.names:
            return found
        for event in self.events(path):
            values = event.attributes
            if event.kind == "start" and event.name == "Relationship" and values.get("TargetMode") != "External":
                target = values.get("Target", "")
                parts = [] if target.startswith("/") else folder.split("/") if folder else []
                for part in target.split("/"):
                    if part == "..":
                        del parts[-1:]
                    elif part not in ("", "."):
                        parts.append(part)
                found[values.get("Id", "")] = (values.get("Type", "").rpartition("/")[2], "/".join(parts))
        return found
