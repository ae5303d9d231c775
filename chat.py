"""The hub: answers being written, and their readers.

A generation is a task of the hub, not of the HTTP response that asked for it. It writes to an event log; a reader is a cursor
over that log, so there is no queue a reader, nothing to drop for a slow one, and no gap between replay and live. Texts are saved
for all running generations together, at most SAVE_SECONDS behind. What a `done` event announces is on disk.
"""

import asyncio
import contextlib
import itertools
import json
import logging
import sqlite3
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import Any

from msgspec import Raw

from . import accounts, eventlog, prompt, queries
from .config import Config
from .db import Database, now
from .errors import AuthRequired, FiresideError, Invalid, NotFound, ProviderFailed, StorageUnavailable
from .eventlog import EventLog
from .providers import Answering, ChatRequest, Content, Finish, Model, Part, Progress, Providers, Reasoning, Usage
from .queries import Begun, Message

log = logging.getLogger("fireside.chat")

SAVE_SECONDS = 0.4  # between two commits of what running generations have made
RETRY_SECONDS = 2.0  # between two of them when the disk does not take it
CLOSING_SECONDS = 3.0  # what a stop waits for; what is not saved by then is what the last commit had
SLEEP_SECONDS = 5.0  # a timer that is later than this has slept with the computer
LOOK_SECONDS = 1.5  # what an answer waits for news of its model
LOOK_AGE_SECONDS = 30.0  # after which it wants news
LOADING_POLL_SECONDS = 1.0
MEASURABLE_SECONDS = 0.02  # an answer that came within less has no speed that would mean anything


class Generation:
    """An answer being written. All times are the event loop's."""

    def __init__(self, user_id: int, conversation_id: int, begun: Begun) -> None:
        self.id = begun.generation_id
        self.user_id = user_id
        self.conversation_id = conversation_id
        self.begun = begun
        self.log = EventLog(begun.generation_id)
        self.status = "generating"  # then that of `done`
        self.error: FiresideError | None = None
        self.model: str | None = None  # that really answers
        self.usage: dict[str, int] | None = None
        self.stats: dict[str, Any] = {}
        self.phase = ""
        self.asked_at = self.spoke_at = asyncio.get_running_loop().time()  # spoke_at: the newest text
        self.first_at: float | None = None  # the first text
        self.task: asyncio.Task[None] | None = None
        self.started = False
        self.stopped: str | FiresideError | None = None  # "canceled", "interrupted", or what went wrong
        self.ending = False  # nothing can stop it any more
        self.unkept: StorageUnavailable | None = None  # why `done` says error, however good the answer is
        self.ended = asyncio.Event()
        self._told: tuple[str, dict[str, int]] | None = None

    def progress(self, phase: str, **details: int) -> None:
        """Tell the phase, unless that was told last."""
        self.phase = phase
        if self._told != (phase, details):
            self._told = phase, details
            self.log.add("progress", {"phase": phase, **details})

    def stop(self, reason: str | FiresideError) -> None:
        """Ask the task to end. Only the first reason counts."""
        if self.stopped is None and not self.ending:
            self.stopped = reason
            if self.task is not None and self.started:  # a task that is cancelled before its first step never takes one
                self.task.cancel()

    def conclude(self, outcome: str | FiresideError) -> None:
        """All that is told before `done`: "ok", "canceled", "interrupted", or what went wrong."""
        if isinstance(outcome, FiresideError):
            self.status, self.error = "error", outcome
            self.log.add("error", _told(outcome))
        else:
            self.status = outcome

    def keep_waiting(self) -> None:
        """The disk does not take the end. Readers are told so once and for all; the answer is saved as what it is."""
        self.unkept = StorageUnavailable("The disk does not take the answer. It is saved as soon as it does.")
        if self.error is None:
            self.log.add("error", _told(self.unkept))

    def done(self) -> dict[str, Any]:
        return {
            "status": "error" if self.unkept else self.status,
            "message_id": self.begun.message_id,
            "stats": self.stats,
        }

    def save(self, tx: sqlite3.Connection) -> None:
        status, error = "complete" if self.status == "ok" else self.status, _told(self.error) if self.error else None
        recording = self.log.recording(self.begun.message_id, status, self.done())
        queries.finish_generation(
            tx, self.id, recording, model=self.model, token_usage=self.usage, stats=self.stats, error=error
        )

    def show(self, message: Message) -> None:
        """Put into its message what is not in its row yet."""
        message.content, message.reasoning = self.log.content, self.log.reasoning
        if self.unkept:
            message.status, message.error = "error", Raw(json.dumps(_told(self.error or self.unkept)).encode())
            message.stats = Raw(json.dumps(self.stats).encode())
            if self.usage is not None:
                message.token_usage = Raw(json.dumps(self.usage).encode())


def _told(error: FiresideError) -> dict[str, str]:
    return {"code": error.code, "message": error.message}


class Slots:
    """Who may generate at a provider: `capacity` at a time, the others first come first served, the users in turn."""

    def __init__(self, capacity: int) -> None:
        self._free = capacity
        self._line: dict[int, deque[tuple[Generation, asyncio.Event]]] = {}  # by user, in the order of their turns

    @contextlib.asynccontextmanager
    async def slot(self, generation: Generation) -> AsyncIterator[None]:
        if self._free:
            self._free -= 1
        else:
            await self._wait(generation)
        try:
            yield
        finally:
            self._leave()

    async def _wait(self, generation: Generation) -> None:
        place = generation, asyncio.Event()
        self._line.setdefault(generation.user_id, deque()).append(place)
        self._announce()
        try:
            await place[1].wait()
        except asyncio.CancelledError:
            if place[1].is_set():  # it had its turn in the same moment
                self._leave()
            else:
                self._line[generation.user_id].remove(place)
                self._line = {user_id: line for user_id, line in self._line.items() if line}
                self._announce()
            raise

    def _leave(self) -> None:
        """The slot goes to who is next. That user's next one comes after everybody else's first."""
        if not self._line:
            self._free += 1
            return
        user_id = next(iter(self._line))
        line = self._line.pop(user_id)
        line.popleft()[1].set()
        if line:
            self._line[user_id] = line
        self._announce()

    def _announce(self) -> None:
        """Tell everybody their place: round after round, a generation of each user."""
        rounds = itertools.zip_longest(*self._line.values())
        line = [place for turn in rounds for place in turn if place]
        for number, (generation, _) in enumerate(line, 1):
            generation.progress("queued", place=number)


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
        self._beginning: set[asyncio.Task[Begun]] = set()

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

    async def answer(
        self,
        user_id: int,
        conversation_id: int,
        provider_id: str | None,
        model: str | None,
        params: dict[str, Any],
        retry: bool = False,
    ) -> Begun:
        """Begin, or find, the answer to the last question (queries.begin_answer). It goes on whoever reads it, or nobody."""
        if self.closing:
            raise StorageUnavailable("Fireside is stopping. Try again when it runs.")
        if provider_id is not None:
            self.providers.get(provider_id)
        if conversation_id in {generation.conversation_id for generation in self.unsaved.values()}:
            await self._save_unsaved()
        beginning = asyncio.create_task(self._begin(user_id, conversation_id, provider_id, model, params, retry))
        self._beginning.add(beginning)
        beginning.add_done_callback(self._beginning.discard)
        return await asyncio.shield(beginning)  # a caller who is cancelled must leave no row that nobody writes

    async def _begin(
        self,
        user_id: int,
        conversation_id: int,
        provider_id: str | None,
        model: str | None,
        params: dict[str, Any],
        retry: bool,
    ) -> Begun:
        fallback: tuple[str, str] | None = None
        for _ in range(2):
            begun = await self.database.write_unsynced(
                _begin_answer,
                user_id,
                conversation_id,
                provider_id,
                model,
                params,
                retry=retry,
                providers=self.slots,
                fallback=fallback,
            )
            if begun is not None:
                if begun.new:
                    self._run(Generation(user_id, conversation_id, begun))
                return begun
            last = await self.database.read(queries.get_conversation, user_id, conversation_id)
            fallback = await self._loaded_model(
                provider_id or (last.provider_id if last.provider_id in self.slots else None), model
            )
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
        recording = await self.database.read(queries.get_recording, user_id, generation_id)
        return _joined(eventlog.replay(generation_id, recording, position))

    async def messages(self, user_id: int, conversation_id: int, limit: int, before: int | None) -> list[Message]:
        """queries.list_messages, with what has been written so far of an answer, whose row has no text before its end."""
        writing = self.unsaved | self.running  # those that end while the rows are read too
        messages = await self.database.read(queries.list_messages, user_id, conversation_id, limit, before)
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
                await self._write_answer(generation)
        except asyncio.CancelledError:
            outcome = "interrupted"  # whoever did it without `stop`
        except FiresideError as failure:
            outcome = failure
        except Exception:
            log.exception("generation %s failed", generation.id)
            outcome = FiresideError()
        generation.ending = True
        await self._finish(generation, generation.stopped or outcome)

    async def _write_answer(self, generation: Generation) -> None:
        async with self.slots[generation.begun.provider_id].slot(generation):
            generation.spoke_at = sent_at = asyncio.get_running_loop().time()
            if generation.phase == "queued":
                generation.stats["queued_ms"] = _ms(sent_at - generation.asked_at)
            with self._deadlines(generation):
                try:
                    await self._stream(generation)
                finally:
                    self._measure(generation, sent_at)

    async def _stream(self, generation: Generation) -> None:
        """Ask the model, with less history each time that it says the context is too small before it has said anything else."""
        begun = generation.begun
        history = begun.history
        assert history is not None, "an answer began without its prompt"
        offer = await self._offer(begun.provider_id, begun.model)
        if offer is not None and offer.vision is False and any(turn.images for turn in history.turns):
            raise ProviderFailed("VISION_UNSUPPORTED", f"{begun.model} cannot see images. Choose a model that can.")
        context = offer.context_length if offer is not None else None
        omitted = prompt.omit(history, context, begun.params.get("max_tokens"))
        generation.progress(_phase(offer))
        async with self._watching_the_load(generation):
            while True:
                generation.stats["omitted_messages"] = omitted
                request = ChatRequest(begun.model, prompt.messages(history, omitted), begun.params)
                try:
                    return await self._read(generation, request)
                except ProviderFailed as failure:
                    less = prompt.omit_more(history, omitted)
                    if failure.code != "CONTEXT_OVERFLOW" or generation.first_at is not None or less is None:
                        raise
                    omitted = less

    async def _offer(self, provider_id: str, model: str) -> Model | None:
        """What is known of a model: not older than half a minute, unless its server is too slow to say. One that was not loaded
        when it was looked at is looked at anew, for the last answer will have loaded it."""
        age = 0.0 if _phase(self.providers.known(provider_id, model)) == "loading" else LOOK_AGE_SECONDS
        with contextlib.suppress(ProviderFailed, TimeoutError):
            async with asyncio.timeout(LOOK_SECONDS):
                await self.providers.models(provider_id, age)
        return self.providers.known(provider_id, model)

    async def _read(self, generation: Generation, request: ChatRequest) -> None:
        """Take the answer in, a network read at a time."""
        async with contextlib.aclosing(self.providers.chat(generation.begun.provider_id, request)) as reads:
            async for parts in reads:
                for part in parts:
                    self._take(generation, part)
                generation.log.publish()
                self._dirty.set()
                if generation.log.size > self.config.answer_max_bytes:
                    raise ProviderFailed("ANSWER_TOO_LARGE", "The answer grew too large and was ended.")

    def _take(self, generation: Generation, part: Part) -> None:
        match part:
            case Content(text) | Reasoning(text):
                generation.spoke_at = asyncio.get_running_loop().time()
                if generation.first_at is None:
                    generation.first_at = generation.spoke_at
                    generation.progress("generating")
                if isinstance(part, Reasoning):
                    generation.log.think(text)
                    generation.stats["reasoning_ms"] = _ms(generation.spoke_at - generation.first_at)
                else:
                    generation.log.say(text)
            case Usage(prompt_tokens, completion_tokens, total_tokens):
                generation.usage = {
                    "prompt_tokens": prompt_tokens,
                    "completion_tokens": completion_tokens,
                    "total_tokens": total_tokens,
                }
            case Answering(model):
                generation.model = model
            case Progress(done, total) if generation.first_at is None:
                generation.progress("prompt", done=done, total=total)
            case Finish(reason):
                generation.stats["finish_reason"] = reason

    def _measure(self, generation: Generation, sent_at: float) -> None:
        """Speed and times as seen from here: LM Studio's stream tells neither."""
        begun, stats, usage = generation.begun, generation.stats, generation.usage
        stats["total_ms"] = _ms(asyncio.get_running_loop().time() - sent_at)
        if generation.first_at is not None:
            stats["ttft_ms"] = _ms(generation.first_at - sent_at)
            spent = generation.spoke_at - generation.first_at
            if usage is not None and usage["completion_tokens"] > 1 and spent >= MEASURABLE_SECONDS:
                stats["tokens_per_second"] = round((usage["completion_tokens"] - 1) / spent, 2)
        offer = self.providers.known(begun.provider_id, begun.model)  # loaded meanwhile, perhaps
        if offer is not None and offer.context_length is not None:
            stats["context_length"] = offer.context_length
        if generation.model not in (None, begun.model):
            stats["requested_model"] = begun.model

    @contextlib.contextmanager
    def _deadlines(self, generation: Generation) -> Iterator[None]:
        """Stop a generation that is silent or lasts for too long. One timer, set anew only when it fires: tokens cost nothing."""
        loop, config = asyncio.get_running_loop(), self.config
        end = loop.time() + config.total_seconds
        timer: asyncio.TimerHandle

        def due() -> float:
            patience = config.first_token_seconds if generation.first_at is None else config.between_tokens_seconds
            return min(generation.spoke_at + patience, end)

        def wait() -> None:  # for less than `due` when the first token may shorten it meanwhile
            nonlocal timer
            moment = min(due(), loop.time() + config.between_tokens_seconds)
            timer = loop.call_at(moment, look, moment)

        def look(expected: float) -> None:
            nonlocal end
            late = loop.time() - expected
            if late > SLEEP_SECONDS:  # the computer slept, and the model with it: begin to wait anew
                generation.spoke_at += late
                end += late
            if loop.time() < due():
                wait()
                return
            if loop.time() >= end:
                what = f"The answer was not complete after {config.total_seconds:g} s and was ended."
            elif generation.first_at is not None:
                what = f"The model server was silent for {config.between_tokens_seconds:g} s."
            else:
                what = f"The model server did not begin to answer within {config.first_token_seconds:g} s."
            generation.stop(ProviderFailed("PROVIDER_TIMEOUT", what))

        wait()
        try:
            yield
        finally:
            timer.cancel()

    @contextlib.asynccontextmanager
    async def _watching_the_load(self, generation: Generation) -> AsyncIterator[None]:
        """While nothing has come: say whether the model is being loaded, where the server can tell."""
        provider_id, model = generation.begun.provider_id, generation.begun.model

        async def watch() -> None:
            while generation.first_at is None:
                await asyncio.sleep(LOADING_POLL_SECONDS)
                with contextlib.suppress(ProviderFailed):
                    await self.providers.models(provider_id, LOADING_POLL_SECONDS / 2)
                phase = _phase(self.providers.known(provider_id, model))
                if phase != generation.phase and generation.first_at is None:
                    generation.progress(phase)

        if self.providers.get(provider_id).kind == "openai":  # whose servers do not tell
            yield
            return
        watching = asyncio.create_task(watch())
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _finish(self, generation: Generation, outcome: str | FiresideError) -> None:
        """Save, then tell. When the disk does not take it, tell that, and go on trying."""
        if generation.usage is not None:
            generation.log.add("usage", {"usage": generation.usage})
        generation.conclude(outcome)
        try:
            await self.database.write(generation.save)
        except Exception as failure:
            _report(failure)
            generation.keep_waiting()
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
            await self.database.write(queries.add_parts, [part for _, _, part in news])
        for events, mark, _ in news:
            events.saved = mark

    async def _save_unsaved(self) -> None:
        for generation in list(self.unsaved.values()):
            await self.database.write(generation.save)
            self.unsaved.pop(generation.id, None)


def _begin_answer(tx: sqlite3.Connection, user_id: int, *args: Any, **kw: Any) -> Begun | None:
    """queries.begin_answer, unless the user was logged out for good after the request was let in; with what is to be asked."""
    if not accounts.count_sessions(tx, user_id):
        raise AuthRequired
    begun = queries.begin_answer(tx, user_id, *args, **kw)
    if begun is not None and begun.new:
        begun.history = queries.get_prompt(tx, begun.question_id)
    return begun


def _recover(tx: sqlite3.Connection) -> int:
    unfinished = queries.list_unfinished(tx)
    for generation_id, recording in unfinished:
        queries.finish_generation(tx, generation_id, eventlog.interrupted(recording))
    return len(unfinished)


def _phase(offer: Model | None) -> str:
    """Of an answer before its first token."""
    return "loading" if offer is not None and offer.state in ("loading", "not-loaded") else "prompt"


def _report(failure: Exception) -> None:
    if not isinstance(failure, StorageUnavailable):  # of which the database has spoken
        log.error("answers could not be saved", exc_info=failure)


async def _joined(events: Iterator[bytes]) -> AsyncIterator[bytes]:
    while batch := list(itertools.islice(events, eventlog.BACKLOG)):
        yield b"".join(batch)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
