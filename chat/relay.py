"""Answers for other programs: the model server's chunks pass through as they are, beside the events that the page reads.

The hub runs such a generation like any other: in its queue, with its deadlines, saved as it grows. When the program that asked
leaves, the hub cancels it.
"""

from collections.abc import AsyncIterator, Callable
from typing import Any

from ..backends.answer import CallPiece, Chunks, Part
from ..config import Config
from ..db import Connection, Database
from ..documents.checker import QuotationChecker
from ..errors import Canceled, FiresideError, ProviderFailed, Stopping
from ..providers import ModelServer, Providers
from ..queries.generations import Answer
from ..queries.turns import Prompt
from ..queries.types import ToolCall
from .events import Reader
from .generation import Begun, Generation

UNREAD_BYTES = 8 * 1024 * 1024  # of chunks that wait for the program
COMMENT = b":"  # the first byte of a comment; JSON never begins with it


class ChunkLog:
    """What one reader has not read yet: the JSON of chunks, and comments, which begin with a colon."""

    def __init__(self) -> None:
        self.size = 0  # bytes
        self._unread: list[bytes] = []
        self._ended = False
        self._reader: Reader | None = None

    def add(self, *items: bytes) -> None:
        self._unread += items
        self.size += sum(map(len, items))

    def publish(self) -> None:
        if self._reader is None:
            return
        if self._unread and not self._ended and self._reader.write(self._unread):
            self._unread, self.size = [], 0
        else:
            self._reader.wake()

    def end(self) -> None:
        self._ended = True
        self.publish()

    async def read(
        self, ping_seconds: float, write: Callable[[list[bytes]], bool] | None = None
    ) -> AsyncIterator[list[bytes]]:
        """Yield what has been added since the last time, and a comment after each silence of `ping_seconds`.

        While nothing is left to yield, what is added goes to `write` if it takes it.
        """
        self._reader = reader = Reader(ping_seconds, write)
        try:
            while True:
                if self._unread:
                    unread, self._unread, self.size = self._unread, [], 0
                    yield unread
                elif self._ended:
                    return
                elif not await reader.wait():
                    yield [b": ping"]
        finally:
            reader.close()


class Relay(Generation):
    """An answer to a request of another program. `body` is the request as it is sent. Without a message nothing is saved."""

    def __init__(
        self,
        config: Config,
        database: Database,
        providers: Providers,
        checker: QuotationChecker,
        server: ModelServer,
        answer: Answer,
        begin_next: Callable[[Connection, int, int, int], Begun | None],
        start: Callable[[Begun | None], None],
        body: dict[str, Any],
        size: int,
        wants_usage: bool,
    ) -> None:
        super().__init__(config, database, providers, checker, server, answer, begin_next, start)
        self.chunks = ChunkLog()
        self.size = size  # bytes of the request
        self.is_recorded = answer.message_id > 0
        self._body = body
        self._wants_usage = wants_usage
        self._calls: dict[int, ToolCall] = {}
        self._call_bytes = 0

    @property
    def failure(self) -> FiresideError | None:
        """Return the error of an answer that has ended without being complete."""
        if self.status == "canceled":
            return Canceled()
        return Stopping() if self.status == "interrupted" else self._error

    @property
    def calls(self) -> list[ToolCall]:
        return [self._calls[index] for index in sorted(self._calls)]

    def save(self, conn: Connection) -> Begun | None:
        return super().save(conn) if self.is_recorded else None

    async def _conclude(self, outcome: str | FiresideError) -> None:
        if self.calls:
            calls = [{"id": call.id, "name": call.name, "arguments": call.arguments} for call in self.calls]
            self.log.add("tools", {"calls": calls})
        await super()._conclude(outcome)
        self._body = {}
        self.chunks.end()

    def _report_place(self, place: int) -> None:
        self._report_progress("queued", place=place)
        self.chunks.add(b": queued, place %d" % place)
        self.chunks.publish()

    async def _ask(self, prompt: Prompt) -> None:
        self._report_progress(self._first_phase())
        await self._read(self._server.relay(self._body, self._record_all))

    def _record_all(self, parts: list[Part]) -> None:
        super()._record_all(parts)
        self.chunks.publish()
        if self.chunks.size > UNREAD_BYTES:
            raise ProviderFailed("ANSWER_TOO_LARGE", "The program reads its answer too slowly.")

    def _record(self, part: Part) -> None:
        match part:
            case Chunks(data, usage_only):
                if self._wants_usage or not usage_only:
                    self.chunks.add(*data)
            case CallPiece():
                self._add_call(part)
            case _:
                super()._record(part)

    def _add_call(self, piece: CallPiece) -> None:
        self._note_text()
        call = self._calls.setdefault(piece.index, ToolCall("", ""))
        call.id = call.id or piece.id
        call.name = call.name or piece.name
        call.arguments += piece.arguments
        self._call_bytes += len(piece.arguments)
        if self._call_bytes > self._config.answer_max_bytes:
            raise self._too_large()
