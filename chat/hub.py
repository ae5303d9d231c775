"""The hub: all running generations, their queues, their readers, and their regular saves.

A generation is a task of the hub, not of the request that asked for it, so a reader that leaves does not stop it. Readers are
positions in its event log: there is no queue per reader, and no gap between replay and live events. All running generations are
saved together every SAVE_SECONDS. An event `done` is sent only when the answer is on disk.
"""

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from msgspec import Raw

from .. import queries
from ..backends.loose import decode
from ..config import Config
from ..db import Connection, Database, now
from ..documents.checker import QuotationChecker
from ..errors import AuthRequired, InvalidToken, NotFound, RateLimited, Stopping, StorageUnavailable
from ..providers import ModelServer, Providers
from ..queries.generations import Answer, AnswerRequest, Job
from ..queries.messages import Message
from ..queries.tokens import Token
from ..queries.turns import Prompt
from . import history
from .events import Write, interrupted, last_id, replay
from .file_parts import Replaced
from .generation import Begun, Generation, log_save_error
from .relay import Relay

log = logging.getLogger("fireside.chat")

SAVE_SECONDS = 0.4  # between two saves of the running answers
RETRY_SECONDS = 2.0  # between two saves while the disk cannot be written
CLOSING_SECONDS = 3.0  # that a stop of the server waits for the answers to be saved
RELAYS_PER_USER = 256  # requests of other programs that are answered or wait
RELAY_BYTES_PER_USER = 128 * 1024 * 1024  # of these requests
BUSY_SECONDS = 5
BEGIN_LOOKS, BEGIN_SECONDS = 100, 0.01  # for the generation of an answer that has just begun, and between them
CATALOG_AGE_SECONDS = 5.0  # of a list of models that needs no new look

B = TypeVar("B", bound=Begun | None)
BeginQuery = Callable[[Connection, int, int, AnswerRequest, str | None, str | None], Answer]


class Hub:
    def __init__(self, config: Config, database: Database, providers: Providers, checker: QuotationChecker) -> None:
        self.config = config
        self.database = database
        self.providers = providers
        self.checker = checker
        self.generations: dict[str, Generation] = {}  # by id: running, or ended and not saved yet
        self.closing = False
        self._beginning: set[asyncio.Task[Any]] = set()
        self._begun = asyncio.Event()
        self._saver: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """End the answers that a killed server left unfinished, with the text that was saved, and start saving."""
        count = await self.database.write(_interrupt_unfinished)
        if count:
            log.warning("%d answers were interrupted when the server stopped; their text was kept", count)
        self._saver = asyncio.create_task(self._save_regularly(), name="saver")

    async def aclose(self) -> None:
        """Interrupt all generations and save them."""
        self.closing = True
        await asyncio.gather(*self._beginning, return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSING_SECONDS):
                await self._stop_all("interrupted")
        if self._saver is not None:
            self._saver.cancel()
            await asyncio.gather(self._saver, return_exceptions=True)
            self._saver = None
            with contextlib.suppress(StorageUnavailable):
                await self._save_ended()

    # ---- answers

    async def answer(
        self,
        user_id: int,
        conversation_id: int,
        request: AnswerRequest,
        query: BeginQuery = queries.generations.begin_answer,
    ) -> Answer:
        """Begin an answer, or find the one that exists, as `query` says: `begin_answer` or another query with its parameters."""
        await self._save_ended(conversation_id)
        server, model = await self._choose_model(user_id, conversation_id, request)

        def begin(conn: Connection) -> Begun:
            if not queries.accounts.count_sessions(conn, user_id):  # the last one may have ended since the request came
                raise AuthRequired
            return query(conn, user_id, conversation_id, request, server.id if server else None, model), server

        if self.closing:
            raise Stopping
        return (await self._begin(begin, server))[0]

    async def begin_next(self, user_id: int, conversation_id: int) -> None:
        """Begin the answer to the oldest queued message if its turn has come. The end of an answer does so too."""
        await self._begin(lambda conn: self._begin_next(conn, user_id, conversation_id))

    def _begin_next(self, conn: Connection, *place: int) -> Begun | None:
        """Run queries.queued.begin_next in its transaction, unless the server stops or the user has no session left."""
        if self.closing or not queries.accounts.count_sessions(conn, place[0]):
            return None
        return queries.queued.begin_next(conn, self.providers.find, *place)

    async def _begin(
        self, begin: Callable[[Connection], B], server: ModelServer | None = None, synced: bool = False
    ) -> B:
        async def begin_and_start() -> B:
            if server is not None:
                server.connect_early()  # while the transaction runs
            write = self.database.write if synced else self.database.write_unsynced
            begun = await write(begin)
            self._start(begun)
            return begun

        beginning = asyncio.create_task(begin_and_start())
        self._beginning.add(beginning)
        beginning.add_done_callback(self._beginning.discard)
        return await asyncio.shield(beginning)  # a canceled caller must not leave a row without its generation

    def _start(self, begun: Begun | None) -> None:
        """Start the generation of an answer if it is new."""
        answer, server = begun or (None, None)
        if answer is None or answer.job is None:
            return
        assert server is not None
        parts = (self.config, self.database, self.providers, self.checker)
        self._run(Generation(*parts, server, answer, self._begin_next, self._start))

    def _run(self, generation: Generation) -> None:
        def remove(_: object) -> None:
            if generation.save_error is None:
                del self.generations[generation.id]

        self.generations[generation.id] = generation
        generation.start()
        generation.task.add_done_callback(remove)
        self._begun.set()

    async def _choose_model(
        self, user_id: int, conversation_id: int, request: AnswerRequest
    ) -> tuple[ModelServer | None, str | None]:
        """Return the server and the model for a new answer, as docs/api.md says under "Which model answers".

        Either is None if no server that can be reached offers one. Raises NotFound.
        """
        providers, model = self.providers, request.model
        server = None if request.provider_id is None else providers.get(request.provider_id)
        if server and model:
            return server, model
        last = self.database.read_here(queries.conversations.get_conversation, user_id, conversation_id)
        own = providers.find(last.provider_id)
        if server is None and model is None:
            server = own
        if model is None and server is own:
            model = last.model or None
        if server and model:
            return server, model
        online = [one for one in await providers.catalog(CATALOG_AGE_SECONDS) if one["online"]]
        if server:
            online = [one for one in online if one["provider_id"] == server.id]
        own_id = own.id if own else None
        best = _best_offer(online, model, own_id)
        if best is None and request.model is None:  # the conversation's server was removed, and no other has its model
            best = _best_offer(online, None, own_id)
        if best is not None:
            return providers.find(best[0]), best[1]
        return server or own or providers.find(online[0]["provider_id"] if online else None), model

    async def follow(
        self,
        user_id: int,
        generation_id: str,
        position: int = 0,
        token_id: int | None = None,
        write: Write | None = None,
    ) -> AsyncIterator[bytes] | None:
        """Return the events after `position` of a generation, running or not; None if `position` is its `done`.

        `token_id`: the token of the reader, which finds only what its conversations have. `write`: see EventLog.follow.
        Raises NotFound, TooManyReaders.
        """
        generation = self.generations.get(generation_id)
        if generation is not None and generation.job.user_id == user_id and token_id in (None, generation.job.token_id):
            return self._follow_live(generation, position, write)
        read = queries.generations.get_recording
        for _ in range(BEGIN_LOOKS):  # this thread may see a new answer in the database before it hears of the commit
            recording = await self.database.read(read, user_id, generation_id, token_id)
            if recording.status != "generating":
                break
            if generation := self.generations.get(generation_id):  # or begun by the page in a conversation of the token
                return self._follow_live(generation, position, write)
            await asyncio.sleep(BEGIN_SECONDS)
        return None if position and position == last_id(recording) else replay(generation_id, recording, position)

    def _follow_live(self, generation: Generation, position: int, write: Write | None) -> AsyncIterator[bytes] | None:
        if generation.log.ends_at(position):
            return None
        generation.log.check_readers()
        return generation.log.follow(position, self.config.ping_seconds, write)

    async def messages(self, user_id: int, conversation_id: int, limit: int, before: int | None) -> list[Message]:
        """Return queries.messages.list_messages with the texts of running answers, whose rows have none yet."""
        earlier = self.generations.copy()  # one may end while the rows are read
        messages = await self.database.read(queries.messages.list_messages, user_id, conversation_id, limit, before)
        return self._completed(messages, earlier)

    async def message(self, user_id: int, conversation_id: int, message_id: int) -> Message:
        """Return queries.messages.get_message with the text of a running answer."""
        earlier = self.generations.copy()
        message = await self.database.read(queries.messages.get_message, user_id, conversation_id, message_id)
        return self._completed([message], earlier)[0]

    def _completed(self, messages: list[Message], earlier: dict[str, Generation]) -> list[Message]:
        for message in messages:
            if message.status == "generating" and isinstance(message.generation_id, str):
                generation = earlier.get(message.generation_id) or self.generations.get(message.generation_id)
                if generation is not None:
                    generation.complete(message)
        return messages

    async def cancel(self, user_id: int, generation_id: str) -> None:
        """Return when the connection to the model server is closed and the text is saved. Raises NotFound, StorageUnavailable."""
        generation = self.generations.get(generation_id)
        if generation is None or generation.job.user_id != user_id or generation.log.ended:
            raise NotFound("generation")
        await self._stop([generation], "canceled", check=True)
        if generation.save_error:
            raise StorageUnavailable(
                "The answer was stopped, but the disk cannot be written. It is saved when it can be."
            )
        if generation.status != "canceled":
            raise NotFound("generation")

    async def cancel_all(self, user_id: int, conversation_id: int | None = None) -> None:
        """Cancel all generations of a user, or those in one conversation."""
        await self._stop_all("canceled", user_id, conversation_id)

    async def _stop_all(self, reason: str, user_id: int | None = None, conversation_id: int | None = None) -> None:
        """Stop generations, and those that begin while they end: of messages in the queue."""
        while running := [
            generation
            for generation in self.generations.values()
            if user_id in (None, generation.job.user_id)
            and conversation_id in (None, generation.job.conversation_id)
            and not generation.task.done()
        ]:
            await self._stop(running, reason)

    async def cancel_unless(self, user_id: int, may_run: Callable[[int | None], bool]) -> None:
        """Cancel the user's generations whose token (None: a session) may no longer let them run."""
        everything = [one for one in self.generations.values() if one.job.user_id == user_id]
        await self._stop([one for one in everything if not may_run(one.job.token_id)], "canceled")

    async def _stop(self, generations: list[Generation], reason: str, check: bool = False) -> None:
        """Stop generations and wait for their ends; without `check`, not for the check of their quotations."""
        for generation in generations:
            generation.stop(reason, check)
        if generations:
            await asyncio.wait([generation.task for generation in generations])

    # ---- other programs

    async def relay(
        self,
        user_id: int,
        token: Token,
        server: ModelServer,
        model: str,
        fields: dict[str, Raw],
        wants_usage: bool,
        replaced: Replaced | None = None,
    ) -> Relay:
        """Begin to answer the request of another program, which is recorded unless the token says otherwise.

        `fields` are those of the request, undecoded, and `replaced` has its messages if they had files. Raises Invalid, InvalidToken, RateLimited, QuotaExceeded.
        """
        size = sum(map(len, fields.values())) + (len(replaced.sent) if replaced else 0)
        waiting = [
            one.size for one in self.generations.values() if isinstance(one, Relay) and one.job.user_id == user_id
        ]
        if len(waiting) >= RELAYS_PER_USER or sum(waiting) + size > max(RELAY_BYTES_PER_USER, size):
            raise RateLimited(BUSY_SECONDS)
        if self.closing:
            raise Stopping
        messages, params = bytes(fields.get("messages", Raw(b"null"))), history.parameters(fields)
        body = fields | {"model": model, "stream": True, "stream_options": _with_usage(fields)}
        files = replaced.files if replaced else {}
        if replaced:
            messages, body["messages"] = bytes(replaced.recorded), replaced.sent

        def begin(conn: Connection) -> Answer:
            if token.id not in queries.tokens.list_valid_ids(
                conn, user_id
            ):  # it may have been revoked since the request came
                raise InvalidToken
            queries.tokens.count_request(conn, token.id)
            sent = history.parse(messages, files)
            if not token.record:
                job = Job(user_id, 0, server.id, model, params, 0, Prompt("", []), now(), token_id=token.id)
                return Answer(str(uuid.uuid4()), 0, job)
            decode, quota = history.decode_images, self.config.user_max_bytes
            return queries.recorder.begin_recorded(
                conn, user_id, token, sent, server.id, model, params, decode, files, quota
            )

        async def start() -> Relay:
            server.connect_early()  # while the transaction runs
            answer = await self.database.write_unsynced(begin)
            next_answer = (self._begin_next, self._start)
            parts = (self.config, self.database, self.providers, self.checker)
            relay = Relay(*parts, server, answer, *next_answer, body, size, wants_usage)
            self._run(relay)
            return relay

        beginning = asyncio.create_task(start())
        self._beginning.add(beginning)
        beginning.add_done_callback(self._beginning.discard)
        try:
            return await asyncio.shield(beginning)
        except asyncio.CancelledError:
            beginning.add_done_callback(self._abandon_begun)
            raise

    def _abandon_begun(self, beginning: asyncio.Task[Relay]) -> None:
        """Cancel the answer to a request that was canceled while it began."""
        if not beginning.cancelled() and beginning.exception() is None:
            beginning.result().stop("canceled")

    async def abandon(self, relay: Relay) -> None:
        """Cancel an answer whose program has left. Return when the connection to the model server is closed and the text is saved."""
        if not relay.log.ended:
            await self._stop([relay], "canceled")

    # ---- saving

    async def _save_regularly(self) -> None:
        while True:
            await self._begun.wait()
            self._begun.clear()
            while self.generations:
                await asyncio.sleep(SAVE_SECONDS)
                try:
                    await self._save_parts()
                    await self._save_ended()
                except Exception as error:
                    log_save_error(error)
                    await asyncio.sleep(RETRY_SECONDS)

    async def _save_parts(self) -> None:
        """Save what the running generations have added since the last save."""
        logs = [one.log for one in self.generations.values() if one.running and one.is_recorded]
        unsaved = [(events, len(events), events.unsaved_part()) for events in logs if len(events) > events.saved]
        if unsaved:
            await self.database.write(queries.generations.add_parts, [part for _, _, part in unsaved])
        for events, length, _ in unsaved:
            events.saved = length

    async def _save_ended(self, conversation_id: int | None = None) -> None:
        """Save again what could not be saved at its end, in all conversations or in one. Raises the last error after trying all."""
        failure: Exception | None = None
        for generation in list(self.generations.values()):
            if generation.save_error and conversation_id in (None, generation.job.conversation_id):
                try:
                    await self._begin(generation.save, synced=True)
                    self.generations.pop(generation.id, None)
                except Exception as error:
                    failure = error
        if failure:
            raise failure


def _best_offer(catalog: list[dict[str, Any]], model: str | None, own_id: str | None) -> tuple[str, str] | None:
    """Return the provider and the model, by name or any, that is best for a conversation: its own server, then a loaded model.

    A server that does not list its models may have one of this name, so it comes after those that list it.
    """
    offers: list[tuple[tuple[bool, bool, bool], str, str]] = []
    for server in catalog:
        provider_id = server["provider_id"]
        is_own = provider_id == own_id
        for offer in server["models"]:
            if model in (None, offer["id"], *(offer["variants"] or ())):
                offers.append(((is_own, True, offer["state"] == "loaded"), provider_id, model or offer["id"]))
        if model is not None and not server["models_known"]:
            offers.append(((is_own, False, False), provider_id, model))
    best = max(offers, key=lambda offer: offer[0], default=None)
    return best and best[1:]


def _with_usage(fields: dict[str, Raw]) -> dict[str, Any]:
    """Return `stream_options` with the usage, which every answer is recorded with."""
    try:
        options = decode(bytes(fields.get("stream_options", Raw(b"null"))))
    except ValueError:
        options = None
    return (options if isinstance(options, dict) else {}) | {"include_usage": True}


def _interrupt_unfinished(conn: Connection) -> int:
    unfinished = queries.generations.list_unfinished(conn)
    for generation_id, recording in unfinished:
        queries.generations.finish_generation(conn, generation_id, interrupted(recording))
        queries.recorder.record_answer(conn, recording.message_id)
    return len(unfinished)
