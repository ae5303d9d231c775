"""The hub: answers being written, and their readers.

A generation is a task of the hub, not of the HTTP response that asked for it. It writes to an event log; a reader is a cursor
over that log, so there is no queue a reader, nothing to drop for a slow one, and no gap between replay and live. Texts are saved
for all running generations together, at most SAVE_SECONDS behind. What a `done` event announces is on disk.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

from .. import queries
from ..config import Config
from ..db import Connection, Database, now
from ..errors import AuthRequired, FiresideError, Invalid, NotFound, Stopping, StorageUnavailable
from ..providers import Providers
from ..queries.generations import Begun, Found, Wanted
from ..queries.messages import Message
from ..safety.queue import Slots
from . import events as eventlog
from .generation import Generation

log = logging.getLogger("fireside.chat")

SAVE_SECONDS = 0.4  # between two commits of what running generations have made
RETRY_SECONDS = 2.0  # between two of them when the disk does not take it
CLOSING_SECONDS = 3.0  # what a stop waits for; what is not saved by then is what the last commit had


class Hub:
    """All generations of this process."""

    def __init__(self, config: Config, database: Database, providers: Providers) -> None:
        self.config = config
        self.database = database
        self.providers = providers
        self.running: dict[str, Generation] = {}
        self.unsaved: dict[str, Generation] = {}  # ended, and told so, but the disk has not taken them yet
        self.slots = {provider.id: Slots(provider.concurrency) for provider in providers.settings.values()}
        self.closing = False
        self._dirty = asyncio.Event()
        self._saver: asyncio.Task[None] | None = None
        self._beginning: set[asyncio.Task[Found]] = set()

    async def start(self) -> None:
        """End what a killed server left behind, with the text that was saved, and begin to save."""
        count = await self.database.write(_recover)
        if count:
            log.warning("%d answers were interrupted when the server stopped; their text was kept", count)
        self._saver = asyncio.create_task(self._save_regularly(), name="saver")

    async def aclose(self) -> None:
        """Interrupt every generation, save them, and tell their readers."""
        self.closing = True
        await asyncio.gather(*self._beginning, return_exceptions=True)
        running = list(self.running.values())
        for generation in running:
            generation.stop("interrupted")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSING_SECONDS):
                await asyncio.gather(*(generation.ended.wait() for generation in running))
        if self._saver is not None:
            self._saver.cancel()
            await asyncio.gather(self._saver, return_exceptions=True)
            self._saver = None
            with contextlib.suppress(StorageUnavailable):
                await self._save_unsaved()

    # ------------------------------------------------------------------------------------------------ what is asked of it

    async def answer(self, user_id: int, conversation_id: int, wanted: Wanted) -> Found:
        """Begin, or find, the answer to the last question (queries.begin_answer). It goes on whoever reads it, or nobody."""
        if self.closing:
            raise Stopping
        if wanted.provider_id is not None:
            self.providers.get(wanted.provider_id)
        if conversation_id in {generation.conversation_id for generation in self.unsaved.values()}:
            await self._save_unsaved()
        beginning = asyncio.create_task(self._begin(user_id, conversation_id, wanted))
        self._beginning.add(beginning)
        beginning.add_done_callback(self._beginning.discard)
        return await asyncio.shield(beginning)  # a caller who is cancelled must leave no row that nobody writes

    async def _begin(self, user_id: int, conversation_id: int, wanted: Wanted) -> Found:
        fallback: tuple[str, str] | None = None
        for _ in range(2):
            found = await self.database.write_unsynced(
                _begin_answer, user_id, conversation_id, wanted, self.providers.settings, fallback
            )
            if isinstance(found, Begun):
                self._run(Generation(self.config, self.providers, user_id, conversation_id, found))
            if found is not None:
                return found
            last = await self.database.read(queries.conversations.get_conversation, user_id, conversation_id)
            usual = last.provider_id if last.provider_id in self.providers.settings else None
            named = last.model if last.provider_id is None and wanted.provider_id is None else None
            fallback = await self._loaded_model(wanted.provider_id or usual, wanted.model or named)
        raise Invalid("model: name one, since no model server that can be reached offers any")

    def _run(self, generation: Generation) -> None:
        self.running[generation.id] = generation
        details = {"message_id": generation.begun.message_id, "conversation_id": generation.conversation_id}
        generation.log.add("ping", details | {"ts": now()})
        generation.task = asyncio.create_task(self._generate(generation), name=f"generation {generation.id}")

    async def _loaded_model(self, provider_id: str | None, model: str | None) -> tuple[str, str] | None:
        """A provider and model for a conversation that has had none: one that is loaded, if there is one."""
        catalog = await self.providers.catalog(max_age=5.0)
        offers = [
            (entry["provider_id"], offer)
            for entry in catalog
            if entry["online"] and provider_id in (None, entry["provider_id"])
            for offer in entry["models"]
            if model in (None, offer["id"])
        ]
        offers.sort(key=lambda offer: offer[1]["state"] != "loaded")  # stable: the providers' own order otherwise
        if offers:
            return offers[0][0], offers[0][1]["id"]
        known = [entry["provider_id"] for entry in catalog if entry["online"]]
        return (provider_id or known[0], model) if model and (provider_id or known) else None

    async def follow(self, user_id: int, generation_id: str, position: int = 0) -> AsyncIterator[bytes]:
        """A reader of a generation, from the event after `position`. Raises NotFound before the first event."""
        generation = self.running.get(generation_id) or self.unsaved.get(generation_id)
        if generation is not None and generation.user_id == user_id:
            return generation.log.follow(position, self.config.ping_seconds)
        recording = await self.database.read(queries.generations.get_recording, user_id, generation_id)
        return _readable(eventlog.replay(generation_id, recording, position))

    async def messages(self, user_id: int, conversation_id: int, limit: int, before: int | None) -> list[Message]:
        """queries.list_messages, with what has been written so far of an answer, whose row has no text before its end."""
        writing = self.unsaved | self.running  # those that end while the rows are read too
        messages = await self.database.read(queries.messages.list_messages, user_id, conversation_id, limit, before)
        for message in messages:
            if message.status == "generating" and isinstance(message.generation_id, str):
                generation = writing.get(message.generation_id) or self.running.get(message.generation_id)
                if generation is not None:
                    generation.show(message)
        return messages

    async def cancel(self, user_id: int, generation_id: str) -> None:
        """Returns when the upstream connection is closed and the text is saved."""
        generation = self.running.get(generation_id)
        if generation is None or generation.user_id != user_id:
            raise NotFound("generation")
        await self._cancel(generation)
        if generation.id in self.unsaved:
            raise StorageUnavailable("The answer was stopped, but its text cannot be saved: the disk does not take it.")
        if generation.status != "canceled":
            raise NotFound("generation")

    async def cancel_all(self, user_id: int, conversation_id: int | None = None) -> None:
        """Cancel whatever is being written for a user, or in one conversation."""
        mine = [
            generation
            for generation in self.running.values()
            if generation.user_id == user_id and conversation_id in (None, generation.conversation_id)
        ]
        await asyncio.gather(*map(self._cancel, mine))

    async def _cancel(self, generation: Generation) -> None:
        generation.stop("canceled")
        await generation.ended.wait()

    # ------------------------------------------------------------------------------------------------ a generation's life

    async def _generate(self, generation: Generation) -> None:
        """The task of a generation, from its first step to its last event."""
        generation.started = True
        outcome: str | FiresideError = "ok"
        try:
            if generation.stopped is None:
                begun = generation.begun
                async with self.slots[begun.provider_id].slot(generation.user_id, generation.queued):
                    if begun.history is None:
                        begun.history = await self.database.read(queries.generations.get_prompt, begun.question_id)
                    await generation.write(self._dirty.set)
        except asyncio.CancelledError:
            outcome = "interrupted"  # whoever did it without `stop`
        except FiresideError as failure:
            outcome = failure
        except Exception:
            log.exception("generation %s failed", generation.id)
            outcome = FiresideError()
        generation.ending = True
        await self._finish(generation, generation.stopped or outcome)

    async def _finish(self, generation: Generation, outcome: str | FiresideError) -> None:
        """Save, then tell. When the disk does not take it, tell that, and go on trying."""
        if generation.usage is not None:
            generation.log.add("usage", {"usage": generation.usage})
        generation.conclude(outcome)
        try:
            await self.database.write(generation.save)
        except Exception as failure:
            _report(failure)
            generation.tell_unsaved()
            self.unsaved[generation.id] = generation
            self._dirty.set()
        del self.running[generation.id]
        generation.log.end(generation.done())
        generation.ended.set()

    # ------------------------------------------------------------------------------------------------ saving

    async def _save_regularly(self) -> None:
        while True:
            await self._dirty.wait()
            await asyncio.sleep(SAVE_SECONDS)
            self._dirty.clear()
            try:
                await self._save_parts()
                await self._save_unsaved()
            except Exception as failure:
                _report(failure)
                self._dirty.set()
                await asyncio.sleep(RETRY_SECONDS)

    async def _save_parts(self) -> None:
        logs = [generation.log for generation in self.running.values() if not generation.ending]
        news = [(events, events.mark, events.part()) for events in logs if events.mark != events.saved]
        if news:
            await self.database.write(queries.generations.add_parts, [part for _, _, part in news])
        for events, mark, _ in news:
            events.saved = mark

    async def _save_unsaved(self) -> None:
        for generation in list(self.unsaved.values()):
            await self.database.write(generation.save)
            self.unsaved.pop(generation.id, None)


def _begin_answer(conn: Connection, user_id: int, *args: Any) -> Begun | Found | None:
    """queries.begin_answer, unless the user was logged out for good after the request was let in."""
    if not queries.accounts.count_sessions(conn, user_id):
        raise AuthRequired
    return queries.generations.begin_answer(conn, user_id, *args)


def _recover(conn: Connection) -> int:
    unfinished = queries.generations.list_unfinished(conn)
    for generation_id, recording in unfinished:
        queries.generations.finish_generation(conn, generation_id, eventlog.interrupted(recording))
    return len(unfinished)


def _report(failure: Exception) -> None:
    if not isinstance(failure, StorageUnavailable):  # of which the database has spoken
        log.error("answers could not be saved", exc_info=failure)


async def _readable(events: Iterator[bytes]) -> AsyncIterator[bytes]:
    for batch in events:
        yield batch
