"""The hub: answers being written, and their readers.

A generation is a task of the hub, not of the HTTP response that asked for it. It appends events to a log; a reader is a cursor
over that log, so there is no queue a reader, nothing to drop for a slow one, and no gap between replay and live. Texts are saved
for all running generations together, at most SAVE_SECONDS behind. What a `done` event announces is on disk.
"""

import asyncio
import contextlib
import json
import logging
import sqlite3
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from json.encoder import encode_basestring_ascii
from typing import Any

from . import prompt, queries
from .config import Config
from .db import Database, now
from .errors import FiresideError, Invalid, NotFound, ProviderFailed, StorageUnavailable
from .providers import Answering, ChatRequest, Content, Finish, Progress, Providers, Reasoning, Usage
from .queries import Begun, Recording

log = logging.getLogger("fireside.chat")

SAVE_SECONDS = 0.4  # between two commits of what running generations have made
LOADING_POLL_SECONDS = 1.0
CLOSING_SECONDS = 3.0  # what a stop waits for; what is not saved by then is what the last commit had
BACKLOG = 512  # events that a reader is handed at a time
CRASH_GAP = 1 << 32  # added to the ids that follow a crash: no reader can have seen them before it
SLEEP_SECONDS = 5.0  # a timer that is later than this has slept with the computer


def frame(event_id: int | None, event: str, generation_id: str, data: dict[str, Any]) -> bytes:
    """One server-sent event. JSON in ASCII: some readers end lines at U+2028 too."""
    head = "" if event_id is None else f"id: {event_id}\n"
    return f"{head}event: {event}\ndata: {json.dumps({'generation_id': generation_id, **data})}\n\n".encode()


def replay(generation_id: str, recording: Recording) -> Iterator[tuple[int, bytes]]:
    """The events of an answer that has ended, with their ids, exactly as its live readers were sent them."""
    event_id = said = thought = 0
    for entry in json.loads(recording.log):
        event_id += 1
        if isinstance(entry, dict):
            event_id = entry.get("id", event_id)
            yield event_id, frame(event_id, entry["event"], generation_id, entry["data"])
        elif entry > 0:
            text, said = recording.content[said : said + entry], said + entry
            yield event_id, frame(event_id, "delta", generation_id, {"delta": text})
        else:
            text, thought = recording.reasoning[thought : thought - entry], thought - entry
            yield event_id, frame(event_id, "reasoning", generation_id, {"delta": text})


def after(events: list[tuple[int, bytes]], generation_id: str, position: int) -> list[bytes]:
    """What follows event `position`; all of it after a `reset` when that event was never saved."""
    if position and position not in {event_id for event_id, _ in events}:
        return [frame(None, "reset", generation_id, {}), *(event for _, event in events)]
    return [event for event_id, event in events if event_id > position]


class Generation:
    """An answer being written. Event n of the log has the id n, from 1 on."""

    def __init__(self, user_id: int, conversation_id: int, begun: Begun) -> None:
        self.id = begun.generation_id
        self.user_id = user_id
        self.conversation_id = conversation_id
        self.begun = begun
        self.frames: list[bytes] = []
        self.log: list[int | dict[str, Any]] = []
        self.content: list[str] = []
        self.reasoning: list[str] = []
        self.size = 0  # characters of both
        self.saved = (0, 0, 0)  # how much of log, content and reasoning the database has
        self.model: str | None = None  # that really answers
        self.usage: dict[str, int] | None = None
        self.stats: dict[str, Any] = {}
        self.phase = ""
        self.task: asyncio.Task[None] | None = None
        self.started = False
        self.stopped: str | FiresideError | None = None  # "canceled", "interrupted", or what went wrong
        self.status = "generating"
        self.ending = False  # nothing can stop it any more
        self.ended = asyncio.Event()
        self.changed = asyncio.Event()
        self.spoke_at = 0.0  # loop time of the newest text

    def event(self, event: str, data: dict[str, Any]) -> None:
        self.log.append({"event": event, "data": data})
        self.frames.append(frame(len(self.log), event, self.id, data))
        self.publish()

    def delta(self, text: str, reasoning: bool) -> None:
        (self.reasoning if reasoning else self.content).append(text)
        self.log.append(-len(text) if reasoning else len(text))
        self.size += len(text)
        event = "reasoning" if reasoning else "delta"
        self.frames.append(
            f'id: {len(self.log)}\nevent: {event}\ndata: {{"generation_id": "{self.id}", '
            f'"delta": {encode_basestring_ascii(text)}}}\n\n'.encode()
        )

    def progress(self, phase: str, **details: int) -> None:
        if (phase, details) != (self.phase, {}):
            self.phase = phase
            self.event("progress", {"phase": phase, **details})

    def publish(self) -> None:
        """Wake the readers. Everything that has come together is handed over together."""
        self.changed.set()
        self.changed = asyncio.Event()

    def stop(self, reason: str | FiresideError) -> None:
        """Ask the task to end. Only the first reason counts: a second cancel() would leak the upstream connection
        (encode/httpx#3782)."""
        if self.stopped is None and not self.ending:
            self.stopped = reason
            if self.task is not None and self.started:  # a task that is cancelled before its first step never takes one
                self.task.cancel()

    def part(self) -> tuple[str, int, str, str, str] | None:
        """What queries.add_parts wants of this generation since the last time; None when there is nothing new."""
        events, said, thought = self.saved
        if self.ending or len(self.log) == events:
            return None
        content, reasoning = "".join(self.content[said:]), "".join(self.reasoning[thought:])
        return self.id, events + 1, content, reasoning, json.dumps(self.log[events:])

    def mark(self) -> tuple[int, int, int]:
        return len(self.log), len(self.content), len(self.reasoning)

    def recording(self) -> Recording:
        status = "complete" if self.status == "ok" else self.status
        content, reasoning = "".join(self.content), "".join(self.reasoning)
        return Recording(self.begun.message_id, status, content, reasoning, json.dumps(self.log))

    async def follow(self, position: int, ping_seconds: float) -> AsyncIterator[bytes]:
        """The events after `position` as they come, joined where several wait; a `ping` after every silence."""
        if position > len(self.frames):
            position = 0
            yield frame(None, "reset", self.id, {})
        while True:
            changed = self.changed
            if position < len(self.frames):
                waiting = self.frames[position : position + BACKLOG]
                position += len(waiting)
                yield b"".join(waiting)
            elif self.ended.is_set():
                return
            else:
                try:
                    async with asyncio.timeout(ping_seconds):
                        await changed.wait()
                except TimeoutError:
                    yield frame(None, "ping", self.id, {"ts": now()})


class Slots:
    """Who may generate at a provider: `capacity` at a time, the others first come first served, the users in turn."""

    def __init__(self, capacity: int) -> None:
        self.free = capacity
        self.waiting: dict[
            int, deque[tuple[Generation, asyncio.Future[None]]]
        ] = {}  # by user, in the order of their turns

    async def enter(self, generation: Generation) -> None:
        if self.free > 0 and not self.waiting:
            self.free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.setdefault(generation.user_id, deque()).append((generation, turn))
        self._announce()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()
            else:
                self._forget(generation)
            raise

    def leave(self) -> None:
        self.free += 1
        while self.free > 0 and self.waiting:
            user_id, queue = next(iter(self.waiting.items()))
            _, turn = queue.popleft()
            del self.waiting[user_id]
            if queue:
                self.waiting[user_id] = queue  # this user's next one comes after everybody else's first
            self.free -= 1
            turn.set_result(None)
        self._announce()

    def _forget(self, generation: Generation) -> None:
        queue = self.waiting[generation.user_id]
        queue.remove(next(entry for entry in queue if entry[0] is generation))
        if not queue:
            del self.waiting[generation.user_id]
        self._announce()

    def _announce(self) -> None:
        """Tell everybody their place. It is the order of `leave`: round after round, a generation of each user."""
        rounds = max(map(len, self.waiting.values()), default=0)
        line = [queue[turn][0] for turn in range(rounds) for queue in self.waiting.values() if turn < len(queue)]
        for place, generation in enumerate(line, 1):
            if generation.stats.get("place") != place:
                generation.stats["place"] = place
                generation.progress("queued", place=place)


class Hub:
    """All generations of this process."""

    def __init__(self, config: Config, database: Database, providers: Providers) -> None:
        self.config = config
        self.database = database
        self.providers = providers
        self.running: dict[str, Generation] = {}
        self.unsaved: dict[str, Generation] = {}  # ended, but the disk has not taken it yet
        self.slots = {provider.id: Slots(provider.concurrency) for provider in providers.settings.values()}
        self.dirty = asyncio.Event()
        self.saver: asyncio.Task[None] | None = None
        self.beginning: set[asyncio.Task[Begun]] = set()
        self.closing = False

    async def start(self) -> None:
        """End what a killed server left behind, with the text that was saved, and begin to save."""
        count = await self.database.write(_recover)
        if count:
            log.warning("%d answers were interrupted when the server stopped; their text was kept", count)
        self.saver = asyncio.create_task(self._save_regularly(), name="saver")

    async def aclose(self) -> None:
        """Interrupt every generation, save them, and tell their readers."""
        self.closing = True
        await asyncio.gather(*self.beginning, return_exceptions=True)
        for generation in self.running.values():
            generation.stop("interrupted")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSING_SECONDS):
                await asyncio.gather(*(generation.ended.wait() for generation in self.running.values()))
        if self.saver is not None:
            self.saver.cancel()
            await asyncio.gather(self.saver, return_exceptions=True)
            self.saver = None
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
        self.beginning.add(beginning)
        beginning.add_done_callback(self.beginning.discard)
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
            begun = await self.database.write(
                queries.begin_answer,
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
            fallback = await self._loaded_model(provider_id, model)
        raise Invalid("model: name one, since no model server that can be reached offers any")

    def _run(self, generation: Generation) -> None:
        self.running[generation.id] = generation
        details = {"message_id": generation.begun.message_id, "conversation_id": generation.conversation_id}
        generation.event("ping", details | {"ts": now()})
        generation.task = asyncio.create_task(self._generate(generation), name=f"generation {generation.id}")
        if self.closing:
            generation.stop("interrupted")

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
        generation = self._find(user_id, generation_id)
        if generation is not None:
            return generation.follow(position, self.config.ping_seconds)
        recording = await self.database.read(queries.get_recording, user_id, generation_id)
        events = after(list(replay(generation_id, recording)), generation_id, position)
        return _chunks(events)

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

    def overlay(self, messages: Iterable[queries.Message]) -> None:
        """Put what has been written so far into a running answer, whose row has no text before its end."""
        for message in messages:
            if message.status == "generating" and isinstance(message.generation_id, str):
                generation = self.running.get(message.generation_id)
                if generation is not None:
                    message.content, message.reasoning = "".join(generation.content), "".join(generation.reasoning)

    def _find(self, user_id: int, generation_id: str) -> Generation | None:
        generation = self.running.get(generation_id) or self.unsaved.get(generation_id)
        return generation if generation is not None and generation.user_id == user_id else None

    # ------------------------------------------------------------------------------------------------ a generation's life

    async def _generate(self, generation: Generation) -> None:
        """The task of a generation, from its first step to its last event."""
        generation.started = True
        error: FiresideError | None = None
        try:
            if generation.stopped is None:
                await self._write_answer(generation)
            generation.status = "ok"
        except asyncio.CancelledError:
            pass
        except FiresideError as failure:
            error = failure
        except Exception:
            log.exception("generation %s failed", generation.id)
            error = FiresideError()
        generation.ending = True
        if isinstance(generation.stopped, FiresideError):
            error = error or generation.stopped
        elif generation.stopped is not None and error is None:
            generation.status = generation.stopped
        await self._finish(generation, error)

    async def _write_answer(self, generation: Generation) -> None:
        loop = asyncio.get_running_loop()
        slots, asked_at = self.slots[generation.begun.provider_id], loop.time()
        await slots.enter(generation)
        try:
            sent_at = loop.time()
            if generation.stats.pop("place", None):
                generation.stats["queued_ms"] = _ms(sent_at - asked_at)
            with self._deadlines(generation):
                try:
                    await self._stream(generation, sent_at)
                finally:
                    self._measure(generation, sent_at)
        finally:
            slots.leave()

    async def _stream(self, generation: Generation, sent_at: float) -> None:
        """Ask the model, with less history each time that it says the context is too small before it has said anything else."""
        begun = generation.begun
        history = await self.database.read(queries.get_prompt, begun.question_id)
        offer = self.providers.known(begun.provider_id, begun.model)
        if offer is not None and offer.vision is False and any(turn.images for turn in history.turns):
            raise ProviderFailed("VISION_UNSUPPORTED", f"{begun.model} cannot see images. Choose a model that can.")
        context = offer.context_length if offer is not None else None
        omitted = prompt.omit(history, context, begun.params.get("max_tokens"))
        generation.stats |= {"context_length": context} if context else {}
        waiting = asyncio.create_task(self._watch_loading(generation))
        generation.progress("loading" if offer is not None and offer.state == "not-loaded" else "prompt")
        try:
            while True:
                generation.stats["omitted_messages"] = omitted
                request = ChatRequest(begun.model, prompt.messages(history, omitted), begun.params)
                try:
                    await self._read(generation, request, sent_at)
                    return
                except ProviderFailed as failure:
                    less = prompt.omit_more(history, omitted)
                    if failure.code != "CONTEXT_OVERFLOW" or generation.size or less is None:
                        raise
                    omitted = less
        finally:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

    async def _read(self, generation: Generation, request: ChatRequest, sent_at: float) -> None:
        """Take the answer in, a network read at a time."""
        loop = asyncio.get_running_loop()
        stats = generation.stats
        async with contextlib.aclosing(self.providers.chat(generation.begun.provider_id, request)) as reads:
            async for parts in reads:
                for part in parts:
                    match part:
                        case Content(text) | Reasoning(text):
                            generation.spoke_at = loop.time()
                            reasoning = isinstance(part, Reasoning)
                            if generation.phase != "generating":
                                stats["ttft_ms"] = _ms(generation.spoke_at - sent_at)
                                generation.progress("generating")
                            if not reasoning and generation.reasoning and not generation.content:
                                stats["reasoning_ms"] = _ms(generation.spoke_at - sent_at) - stats["ttft_ms"]
                            generation.delta(text, reasoning)
                        case Usage(prompt_tokens, completion_tokens, total_tokens):
                            generation.usage = {
                                "prompt_tokens": prompt_tokens,
                                "completion_tokens": completion_tokens,
                                "total_tokens": total_tokens,
                            }
                        case Answering(model):
                            generation.model = model
                        case Progress(done, total) if generation.phase != "generating":
                            generation.progress("prompt", done=done, total=total)
                        case Finish(reason):
                            stats["finish_reason"] = reason
                generation.publish()
                self.dirty.set()
                if generation.size > self.config.answer_max_bytes:
                    raise ProviderFailed("ANSWER_TOO_LARGE", "The answer grew too large and was ended.")

    def _measure(self, generation: Generation, sent_at: float) -> None:
        """Speed and times as seen from here: LM Studio's stream tells neither."""
        stats, usage = generation.stats, generation.usage
        stats["total_ms"] = _ms(asyncio.get_running_loop().time() - sent_at)
        spent = generation.spoke_at - sent_at - stats.get("ttft_ms", 0) / 1000
        if usage is not None and usage["completion_tokens"] > 1 and spent > 0:
            stats["tokens_per_second"] = round((usage["completion_tokens"] - 1) / spent, 2)
        if generation.model not in (None, generation.begun.model):
            stats["requested_model"] = generation.begun.model

    @contextlib.contextmanager
    def _deadlines(self, generation: Generation) -> Iterator[None]:
        """Stop a generation that is silent or lasts for too long. One timer, set anew only when it fires."""
        loop, config = asyncio.get_running_loop(), self.config
        end = loop.time() + config.total_seconds
        generation.spoke_at = loop.time()

        def due() -> float:
            patience = config.between_tokens_seconds if generation.size else config.first_token_seconds
            return min(generation.spoke_at + patience, end)

        def look(expected: float) -> None:
            nonlocal timer, end
            late = loop.time() - expected
            if late > SLEEP_SECONDS:  # the computer slept, and the model with it: begin to wait anew
                generation.spoke_at += late
                end += late
            if loop.time() < due():
                timer = loop.call_at(due(), look, due())
                return
            if loop.time() >= end:
                what = f"The answer was not complete after {config.total_seconds:g} s and was ended."
            elif generation.size:
                what = f"The model server was silent for {config.between_tokens_seconds:g} s."
            else:
                what = f"The model server did not begin to answer within {config.first_token_seconds:g} s."
            generation.stop(ProviderFailed("PROVIDER_TIMEOUT", what))

        timer = loop.call_at(due(), look, due())
        try:
            yield
        finally:
            timer.cancel()

    async def _watch_loading(self, generation: Generation) -> None:
        """While nothing has come: say whether the model is being loaded, where the server tells."""
        provider_id, model = generation.begun.provider_id, generation.begun.model
        while generation.phase in ("loading", "prompt"):
            await asyncio.sleep(LOADING_POLL_SECONDS)
            with contextlib.suppress(ProviderFailed):
                await self.providers.models(provider_id, max_age=LOADING_POLL_SECONDS / 2)
            offer = self.providers.known(provider_id, model)
            if offer is not None and offer.state is not None and generation.phase in ("loading", "prompt"):
                generation.progress("prompt" if offer.state == "loaded" else "loading")

    async def _finish(self, generation: Generation, error: FiresideError | None) -> None:
        """Save, then tell. When the disk does not take it, tell that, and go on trying."""
        if error is not None:
            generation.status = "error"
            generation.event("error", {"code": error.code, "message": error.message})
        if generation.usage is not None:
            generation.event("usage", {"usage": generation.usage})
        try:
            await self._save(generation, error)
        except StorageUnavailable as failure:
            generation.status, error = "error", failure
            generation.event("error", {"code": failure.code, "message": failure.message})
            self.unsaved[generation.id] = generation
        except Exception:
            log.exception("generation %s could not be saved", generation.id)
        del self.running[generation.id]
        generation.ended.set()
        generation.event("done", _summary(generation))

    async def _save(self, generation: Generation, error: FiresideError | None) -> None:
        recording = generation.recording()
        recording.log = json.dumps([*generation.log, {"event": "done", "data": _summary(generation)}])
        await self.database.write(
            queries.finish_generation,
            generation.id,
            recording,
            model=generation.model,
            token_usage=generation.usage,
            stats=generation.stats,
            error=None if error is None else {"code": error.code, "message": error.message},
        )

    # ------------------------------------------------------------------------------------------------ saving

    async def _save_regularly(self) -> None:
        while True:
            await self.dirty.wait()
            await asyncio.sleep(SAVE_SECONDS)
            self.dirty.clear()
            try:
                await self._save_parts()
                await self._save_unsaved()
            except StorageUnavailable:
                self.dirty.set()
            except Exception:
                log.exception("partial answers could not be saved")

    async def _save_parts(self) -> None:
        parts, marks = [], {}
        for generation in self.running.values():
            part = generation.part()
            if part is not None:
                parts.append(part)
                marks[generation.id] = generation.mark()
        if parts:
            await self.database.write(queries.add_parts, parts)
            for generation in self.running.values():
                generation.saved = marks.get(generation.id, generation.saved)

    async def _save_unsaved(self) -> None:
        for generation in list(self.unsaved.values()):
            await self._save_again(generation)
            del self.unsaved[generation.id]


def _summary(generation: Generation) -> dict[str, Any]:
    """The data of `done`."""
    return {"status": generation.status, "message_id": generation.begun.message_id, "stats": generation.stats}


def _recover(tx: sqlite3.Connection) -> int:
    unfinished = queries.list_unfinished(tx)
    for generation_id, recording in unfinished:
        events = json.loads(recording.log)
        done = {"status": "interrupted", "message_id": recording.message_id, "stats": {}}
        events.append({"id": len(events) + 1 + CRASH_GAP, "event": "done", "data": done})
        recording.status, recording.log = "interrupted", json.dumps(events)
        queries.finish_generation(tx, generation_id, recording)
    return len(unfinished)


async def _chunks(events: Iterable[bytes]) -> AsyncIterator[bytes]:
    waiting = list(events)
    for start in range(0, len(waiting), BACKLOG):
        yield b"".join(waiting[start : start + BACKLOG])


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
