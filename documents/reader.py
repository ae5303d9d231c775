"""Reads uploaded documents in the background, a page at a time, and stores their text.

What has to be read is in the database, so a restart continues it. A user's documents are read one after the other, newest upload first;
users take turns.
"""

import asyncio
import contextlib
import logging

import msgspec

from .. import queries
from ..db import Connection, Database
from ..errors import FiresideError, Invalid, NotFound, QuotaExceeded
from ..queries.attachments import Unread
from ..queries.types import AttachmentStatus
from ..safety.queue import Slots
from ..safety.sandbox import Sandbox, WorkFailed, WorkTooLarge, WorkTooLong
from . import extract
from .types import Item, Opened, Page, Problem, Remark, Unit

log = logging.getLogger("fireside.reader")

PROCESSES = 2
SAVE_SECONDS = 0.3  # between two saves of pages
SAVE_CHARACTERS = 200_000  # of pages that are not saved yet
TOO_LARGE = "Reading it needs more memory than is allowed. Split it, and attach its parts."
TOO_LONG = "Reading it takes too long. Split it, and attach its parts."
UNREADABLE = "It cannot be read: it is damaged, or has a format that is not supported."
_PROBLEMS: dict[type[Exception], str] = {WorkTooLarge: TOO_LARGE, WorkTooLong: TOO_LONG}
NO_SPACE = "There is no space left for its text. Delete some conversations for good, then attach it again."

_decode = msgspec.msgpack.Decoder(Item).decode


class Reader:
    def __init__(self, database: Database, max_bytes: int = 0) -> None:
        """`max_bytes`: that a user may store (0: no limit)."""
        self._database, self._max_bytes = database, max_bytes
        self._sandbox = Sandbox(extract.MEMORY_BYTES, extract.PRELOAD, sealed=True)
        self._slots = Slots(PROCESSES, per_user=1)
        self._tasks: dict[int, asyncio.Task[None]] = {}  # by user
        self._begun: set[int] = set()  # users whose documents have to be looked up again
        self._ended = asyncio.Event()  # set, and replaced, when any document is read
        self._passwords: dict[int, str] = {}  # by document, until it is read

    async def aclose(self) -> None:
        """Stop reading. What is left is read after the next start."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        await self._sandbox.aclose()

    async def wake(self) -> None:
        """Read the documents of all users that have to be read."""
        for user_id in await self._database.read(queries.attachments.list_users_with_unread):
            self.begin(user_id)

    def begin(self, user_id: int) -> None:
        """Read the documents of a user that have to be read. To be called when some were added."""
        self._begun.add(user_id)
        if user_id not in self._tasks:
            self._tasks[user_id] = asyncio.create_task(self._read_all(user_id), name="document reader")

    async def wait(self, document_id: int, seconds: float) -> None:
        """Wait until a document is read, for at most so many seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                ended = self._ended
                while await self._database.read(queries.attachments.is_unread, document_id):
                    await ended.wait()
                    ended = self._ended

    async def read_encrypted(self, user_id: int, document_id: int, password: str) -> None:
        """Read an encrypted document again. The password is kept in memory only, until then. Raises NotFound and Invalid."""

        def begin(conn: Connection) -> None:
            queries.attachments.read_again(conn, user_id, document_id)
            self._passwords[document_id] = password  # before the commit, after which it may be read

        await self._database.write(begin)
        self.begin(user_id)

    async def read_now(self, user_id: int, data: bytes, name: str) -> tuple[Unit, list[str]]:
        """Return the unit and the pages of a document without storing them. Raises Invalid when it cannot be read."""
        pages: list[str] = []
        unit: Unit = "page"
        arguments = (data, name, queries.attachments.OTHER, None)
        try:
            async with (
                self._slots.slot(user_id),
                contextlib.aclosing(
                    self._sandbox.iterate(extract.extract, *arguments, seconds=extract.ITEM_SECONDS)
                ) as items,
            ):
                async for encoded in items:
                    match _decode(encoded):
                        case Opened(unit=named):
                            unit = named
                        case Page(text):
                            pages.append(text)
                        case Problem(_, message):
                            raise Invalid(f"{name}: {message}")
        except (WorkFailed, msgspec.ValidationError) as error:
            log.warning("a document of a request cannot be read: %s", error)
            raise Invalid(f"{name}: {_PROBLEMS.get(type(error), UNREADABLE)}") from None
        return unit, pages

    async def _read_all(self, user_id: int) -> None:
        try:
            while user_id in self._begun:
                self._begun.discard(user_id)
                while unread := await self._database.read(queries.attachments.next_unread, user_id):
                    async with self._slots.slot(user_id):
                        await self._read(unread)
                    self._ended.set()
                    self._ended = asyncio.Event()
        except FiresideError as error:  # the disk may be full; housekeeping calls `wake`
            log.warning("documents are read later: %s", error)
        except Exception:
            log.exception("reading documents failed")
        finally:
            del self._tasks[user_id]

    async def _read(self, document: Unread) -> None:
        """Read one document, unless it is removed while it is read."""
        try:
            status, problem = await self._store_pages(document)
        except NotFound:
            return
        except QuotaExceeded:
            status, problem = "failed", NO_SPACE
        except (WorkFailed, msgspec.ValidationError) as error:
            log.warning("document %d cannot be read: %s", document.id, error)
            status, problem = "failed", _PROBLEMS.get(type(error), UNREADABLE)

        def end(conn: Connection) -> None:
            if status == "encrypted" and document.id in self._passwords:  # entered while another was tried
                return
            self._passwords.pop(document.id, None)
            queries.attachments.set_read(conn, document.id, status, problem)

        await self._database.write(end)

    async def _store_pages(self, document: Unread) -> tuple[AttachmentStatus, str | None]:
        """Store the pages as they come, without those that were stored before a restart. Return the status, and what to tell the person."""
        clock = asyncio.get_running_loop().time
        remarks: list[str] = []
        waiting: list[str] = []
        number, saved, saved_at = 0, document.pages_read, clock()
        work = self._sandbox.iterate(
            extract.extract,
            await self._database.read(queries.attachments.get_data, document.id),  # no name keeps it while it is read
            document.name,
            document.media_type,
            self._passwords.pop(document.id, None),
            seconds=extract.ITEM_SECONDS,
        )
        async with contextlib.aclosing(work) as items:
            async for encoded in items:
                match _decode(encoded):
                    case Opened(media_type, unit, pages, remark):
                        fields = (media_type, unit, pages, remark or None)
                        await self._database.write(queries.attachments.set_opened, document.id, *fields)
                        remarks += [remark] if remark else []
                    case Page(text):
                        number += 1
                        if number > saved + len(waiting):
                            waiting.append(text)
                    case Remark(text):
                        remarks.append(text)
                    case Problem(status, message):
                        await self._save(document.id, saved, waiting)
                        return status, message
                if clock() - saved_at > SAVE_SECONDS or sum(map(len, waiting)) > SAVE_CHARACTERS:
                    saved += await self._save(document.id, saved, waiting)
                    waiting, saved_at = [], clock()
        await self._save(document.id, saved, waiting)
        return "ready", " ".join(remarks) or None

    async def _save(self, document_id: int, saved: int, texts: list[str]) -> int:
        """Store pages after the first `saved` ones in several transactions. Return how many."""
        done = 0
        while done < len(texts):
            added = await self._database.write_part(
                queries.attachments.add_pages, document_id, saved + done + 1, texts[done:], self._max_bytes
            )
            done += added
        return done
