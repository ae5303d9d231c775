"""The check of an answer's quotations: in sandbox children, some pages at a time, within a time limit."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from .. import queries
from ..db import Database
from ..queries.documents import Document
from ..queries.types import Citation
from ..safety.queue import Slots
from ..safety.sandbox import Sandbox, WorkFailed
from . import quotations
from .types import Place

log = logging.getLogger("fireside.documents")

CHECK_SECONDS = 20.0  # 20 million characters take 5 s
CHECKS = 2  # at a time
BATCH_CHARACTERS = 500_000  # of the pages that are looked through at a time

_decode_places = msgspec.msgpack.Decoder(list[Place]).decode
_decode_citations = msgspec.msgpack.Decoder(list[Citation]).decode


class QuotationChecker:
    def __init__(self, database: Database, sandbox: Sandbox) -> None:
        self._database = database
        self._sandbox = sandbox
        self._queue = Slots(CHECKS, per_user=1)

    async def check(
        self, user_id: int, answer: str, documents: Sequence[Document], seconds: float = CHECK_SECONDS
    ) -> list[Citation] | None:
        """Return the quotations of an answer and where these documents have them; None if there are no documents or no time."""
        if not documents or not quotations.may_quote(answer):
            return [] if documents else None
        try:
            async with asyncio.timeout(seconds), self._queue.slot(user_id):
                return await self._check(answer, documents, seconds)
        except TimeoutError:
            log.warning("the quotations of an answer were not checked within %g s", seconds)
        except WorkFailed as error:
            log.warning("the quotations of an answer were not checked: %s", error)
        return None

    async def _check(self, answer: str, documents: Sequence[Document], seconds: float) -> list[Citation]:
        parsed = await self._run(seconds, quotations.parse, answer)
        if parsed is None:
            return []
        places: list[tuple[int, Place]] = []
        for index, document in enumerate(documents):
            first = 1
            while first:
                read = queries.attachments.read_pages
                numbers, texts = await self._database.read(read, document.id, first, BATCH_CHARACTERS)
                found = await self._run(seconds, quotations.search, parsed, texts)
                for place in _decode_places(found or b"\x90"):
                    place.page = numbers[place.page] - 1
                    places.append((index, place))
                # The last page is searched again with those that follow it: a quotation may cross pages.
                first = numbers[-1] if len(numbers) > 1 else 0
        named = [(document.id, document.name) for document in documents]
        judged = await self._run(seconds, quotations.judge, parsed, named, msgspec.msgpack.encode(places))
        return _decode_citations(judged or b"\x90")

    async def _run(self, seconds: float, function: Callable[..., Iterator[bytes]], *args: Any) -> bytes | None:
        """Return the only item of a generator that runs in a child, or None if it has none."""
        async with contextlib.aclosing(self._sandbox.iterate(function, *args, seconds=seconds)) as items:
            result = None
            async for item in items:
                result = item
            return result
