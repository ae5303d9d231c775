"""Temporary conversations: which tabs have one open, and the removal of those that were left.

A tab says when it opens and when it leaves one. A conversation is removed when its last tab has left it, GRACE_SECONDS later, so
that reloading the page keeps it, and not before its answer has ended. A tab that loses its connection or sleeps says nothing, so its
conversation stays until it was not heard of for a day. A restart removes all temporary conversations, so this is kept in memory.
"""

import asyncio
import logging
import time

from .. import queries
from ..db import Database, ago, now
from ..errors import FiresideError
from .hub import Hub

log = logging.getLogger("fireside.chat")

GRACE_SECONDS = 30.0
DAY_SECONDS = 86_400
MAX_TABS = 50  # of a conversation; of more, the oldest are forgotten


class TemporaryChats:
    def __init__(self, database: Database, hub: Hub) -> None:
        self.grace = GRACE_SECONDS
        self._database = database
        self._hub = hub
        self._tabs: dict[int, dict[str, float]] = {}  # by conversation: when each tab was last heard of
        self._leaving: dict[int, asyncio.Task[None]] = {}  # by conversation

    async def start(self) -> None:
        """Hide what an earlier run has left. Housekeeping removes it."""
        await self._database.write(queries.conversations.hide_temporary, now())

    async def aclose(self) -> None:
        for task in self._leaving.values():
            task.cancel()
        await asyncio.gather(*self._leaving.values(), return_exceptions=True)

    async def note(self, user_id: int, conversation_id: int, tab: str, is_open: bool) -> None:
        """A tab opens a conversation, still has it open, or leaves it. Raises NotFound."""
        if not self._database.read_here(queries.conversations.is_temporary, user_id, conversation_id):
            return
        if leaving := self._leaving.pop(conversation_id, None):
            leaving.cancel()
        tabs = self._tabs.setdefault(conversation_id, {})
        tabs.pop(tab, None)
        if is_open:
            tabs[tab] = time.monotonic()
            while len(tabs) > MAX_TABS:
                del tabs[next(iter(tabs))]
        if not tabs:
            self._leaving[conversation_id] = asyncio.create_task(self._remove_left(conversation_id))

    async def clean_up(self) -> None:
        """Remove those that no tab was heard of for a day."""
        since = time.monotonic() - DAY_SECONDS
        self._tabs = {one: tabs for one, tabs in self._tabs.items() if any(heard > since for heard in tabs.values())}
        hide = queries.conversations.hide_temporary
        await self._remove(await self._database.write(hide, ago(days=1), list(self._tabs)))

    async def _remove_left(self, conversation_id: int) -> None:
        await asyncio.sleep(self.grace)
        while running := [
            one.task
            for one in self._hub.generations.values()
            if one.job.conversation_id == conversation_id and not one.task.done()
        ]:
            await asyncio.wait(running)
        del self._leaving[conversation_id]  # from here on it is not canceled
        try:
            await self._remove(
                await self._database.write(queries.conversations.hide_temporary, now(), (), conversation_id)
            )
        except FiresideError as error:
            log.warning("a temporary conversation is removed later: %s", error)

    async def _remove(self, conversation_ids: list[int]) -> None:
        for conversation_id in conversation_ids:
            self._tabs.pop(conversation_id, None)
        await queries.conversations.remove_hidden(self._database, conversation_ids)
