"""Receipts: the exact body of the request for an answer, built again from what is stored and compared with the hash of what was sent."""

import asyncio
import hashlib

import msgspec

from .. import queries
from ..db import Database
from ..providers import Providers
from ..queries.generations import FoundRequest, SentRequest
from ..queries.turns import Prompt
from ..safety.queue import Slots
from . import continuation, prompt

NOT_STORED = "There is no request for this message: it was written, edited or imported, or an earlier version of Fireside made it."
PASSED_ON = "Another program asked for this answer. Its request was passed on unchanged and is not kept."
CHANGED = "The request cannot be shown: a message or file that was sent has been deleted or moved since."


class Receipt(msgspec.Struct):
    message_id: int
    provider_id: str | None
    url: str | None  # of the request, for administrators
    sha256: str | None
    body: str | None  # exactly as it was sent; None: see `problem`
    problem: str | None


class Receipts:
    """Builds one receipt at a time for each user, in a thread: a body may have 40 MB."""

    def __init__(self, database: Database, providers: Providers) -> None:
        self._database = database
        self._providers = providers
        self._queue = Slots(2, per_user=1)

    async def encoded(self, user_id: int, message_id: int, with_url: bool) -> bytes:
        """Return the receipt of an answer as JSON. Raises NotFound."""
        async with self._queue.slot(user_id):
            found = await self._database.read(queries.generations.get_sent_request, user_id, message_id)
            server = self._providers.find(found.provider_id)
            url = server.backend.chat_url if server and with_url else None
            return await asyncio.to_thread(_encoded, message_id, url, found)


def _encoded(message_id: int, url: str | None, found: FoundRequest) -> bytes:
    receipt = Receipt(message_id, found.provider_id, url, None, None, PASSED_ON if found.was_passed_on else NOT_STORED)
    if found.sent is not None:
        receipt.sha256, receipt.problem = found.sent.sha256, CHANGED
        content = _build(found.sent, found.path) if found.path else b""
        if hashlib.sha256(content).hexdigest() == found.sent.sha256:
            receipt.body, receipt.problem = content.decode(), None
    return msgspec.json.encode(receipt)


def _build(sent: SentRequest, path: Prompt) -> bytes:
    path.system_prompt = sent.system_prompt
    if sent.leaf_characters is not None:
        path.turns[-1].content = path.turns[-1].content[: sent.leaf_characters]
    messages = prompt.messages(path, sent.omitted)
    if sent.asks_to_continue:
        messages.append({"role": "user", "content": continuation.INSTRUCTION})
    return msgspec.json.encode(sent.body | {"messages": messages})
