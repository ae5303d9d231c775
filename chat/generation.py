"""An answer being written: the model is asked, what comes is taken in, timed and bounded, and an end is put to it.

When it may be written, by which task, and when it is saved is the hub's affair (hub.py).
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from msgspec import Raw

from .. import queries
from ..backends.listings import Model
from ..backends.openai import Answering, Content, Finish, Part, Progress, Reasoning, Usage
from ..config import Config
from ..db import Connection
from ..errors import FiresideError, ProviderFailed, StorageUnavailable
from ..providers import ChatRequest, Providers
from ..queries.generations import Begun
from ..queries.messages import Message
from . import prompt
from .events import EventLog

SLEEP_SECONDS = 5.0  # a timer that is later than this has slept with the computer
LOOK_SECONDS = 1.5  # what an answer waits for news of its model
LOOK_AGE_SECONDS = 30.0  # after which it wants news
LOADING_POLL_SECONDS = 1.0
MEASURABLE_SECONDS = 0.02  # an answer that came within less has no speed that would mean anything


class Generation:
    """All times are the event loop's."""

    def __init__(self, config: Config, providers: Providers, user_id: int, conversation_id: int, begun: Begun) -> None:
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
        self._config = config
        self._providers = providers
        self._told: tuple[str, dict[str, int]] | None = None

    def progress(self, phase: str, **details: int) -> None:
        """Tell the phase, unless that was told last."""
        self.phase = phase
        if self._told != (phase, details):
            self._told = phase, details
            self.log.add("progress", {"phase": phase, **details})

    def queued(self, place: int) -> None:
        self.progress("queued", place=place)
        self.begun.history = None  # its images may be large, and the queue long

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

    def tell_unsaved(self) -> None:
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

    def save(self, conn: Connection) -> None:
        status, error = "complete" if self.status == "ok" else self.status, _told(self.error) if self.error else None
        recording = self.log.recording(self.begun.message_id, status, self.done())
        queries.generations.finish_generation(
            conn, self.id, recording, model=self.model, token_usage=self.usage, stats=self.stats, error=error
        )

    def show(self, message: Message) -> None:
        """Put into its message what is not in its row yet."""
        message.content, message.reasoning = self.log.content, self.log.reasoning
        if self.unkept:
            message.status, message.error = "error", Raw(json.dumps(_told(self.error or self.unkept)).encode())
            message.stats = Raw(json.dumps(self.stats).encode())
            if self.usage is not None:
                message.token_usage = Raw(json.dumps(self.usage).encode())

    async def write(self, news: Callable[[], None]) -> None:
        """Ask, and take the answer in; `news` is called when something has come. Raises ProviderFailed."""
        self.spoke_at = sent_at = asyncio.get_running_loop().time()
        if self.phase == "queued":
            self.stats["queued_ms"] = _ms(sent_at - self.asked_at)
        with self._deadlines():
            try:
                await self._ask(news)
            finally:
                self._measure(sent_at)

    async def _ask(self, news: Callable[[], None]) -> None:
        """Ask with less history each time that the model says its context is too small before it has said anything else."""
        begun, history = self.begun, self.begun.history
        assert history is not None
        offer = await self._offer(begun.provider_id, begun.model)
        context = offer.context_length if offer is not None else None
        omitted = prompt.omit(history, context, begun.params.get("max_tokens"))
        if offer is not None and offer.vision is False and any(turn.images for turn in history.turns[omitted:]):
            raise ProviderFailed("VISION_UNSUPPORTED", f"{begun.model} cannot see images. Choose a model that can.")
        self.progress(_phase(offer))
        async with self._watching_the_load():
            while True:
                self.stats["omitted_messages"] = omitted
                self.stats["omitted_images"] = sum(turn.omitted_images for turn in history.turns[omitted:])
                request = ChatRequest(begun.model, prompt.messages(history, omitted), begun.params)
                try:
                    await self._read(request, news)
                    break
                except ProviderFailed as failure:
                    less = prompt.omit_more(history, omitted)
                    if failure.code != "CONTEXT_OVERFLOW" or self.first_at is not None or less is None:
                        raise
                    omitted = less
        if _phase(self._providers.known(begun.provider_id, begun.model)) == "loading":
            # This answer has loaded it; `stats` says with what context.
            await self._offer(begun.provider_id, begun.model)

    async def _offer(self, provider_id: str, model: str) -> Model | None:
        """What is known of a model: not older than half a minute, unless its server is too slow to say. One that was not loaded
        when it was looked at is looked at anew, for the last answer will have loaded it."""
        age = 0.0 if _phase(self._providers.known(provider_id, model)) == "loading" else LOOK_AGE_SECONDS
        with contextlib.suppress(ProviderFailed, TimeoutError):
            async with asyncio.timeout(LOOK_SECONDS):
                await self._providers.models(provider_id, age)
        return self._providers.known(provider_id, model)

    async def _read(self, request: ChatRequest, news: Callable[[], None]) -> None:
        """Take the answer in, a network read at a time."""
        async with contextlib.aclosing(self._providers.chat(self.begun.provider_id, request)) as reads:
            async for parts in reads:
                for part in parts:
                    self._take(part)
                self.log.publish()
                news()
                if self.log.size > self._config.answer_max_bytes:
                    raise ProviderFailed("ANSWER_TOO_LARGE", "The answer grew too large and was ended.")

    def _take(self, part: Part) -> None:
        match part:
            case Content(text) | Reasoning(text):
                self.spoke_at = asyncio.get_running_loop().time()
                if self.first_at is None:
                    self.first_at = self.spoke_at
                    self.progress("generating")
                if isinstance(part, Reasoning):
                    self.log.think(text)
                    self.stats["reasoning_ms"] = _ms(self.spoke_at - self.first_at)
                else:
                    self.log.say(text)
            case Usage(prompt_tokens, completion_tokens, total_tokens):
                self.usage = {
                    "prompt_tokens": prompt_tokens,
                    "completion_tokens": completion_tokens,
                    "total_tokens": total_tokens,
                }
            case Answering(model):
                self.model = model
            case Progress(done, total) if self.first_at is None:
                self.progress("prompt", done=done, total=total)
            case Finish(reason):
                self.stats["finish_reason"] = reason

    def _measure(self, sent_at: float) -> None:
        """Speed and times as seen from here: LM Studio's stream tells neither."""
        begun, stats, usage = self.begun, self.stats, self.usage
        stats["total_ms"] = _ms(asyncio.get_running_loop().time() - sent_at)
        if self.first_at is not None:
            stats["ttft_ms"] = _ms(self.first_at - sent_at)
            spent = self.spoke_at - self.first_at
            if usage is not None and usage["completion_tokens"] > 1 and spent >= MEASURABLE_SECONDS:
                stats["generation_ms"] = _ms(spent)
                stats["tokens_per_second"] = round((usage["completion_tokens"] - 1) * 1000 / stats["generation_ms"], 2)
        offer = self._providers.known(begun.provider_id, begun.model)  # loaded meanwhile, perhaps
        if offer is not None and offer.context_length is not None:
            stats["context_length"] = offer.context_length
        if self.model not in (None, begun.model):
            stats["requested_model"] = begun.model

    @contextlib.contextmanager
    def _deadlines(self) -> Iterator[None]:
        """Stop when it is silent or lasts for too long. One timer, set anew only when it fires: tokens cost nothing."""
        loop, config = asyncio.get_running_loop(), self._config
        end = loop.time() + config.total_seconds
        timer: asyncio.TimerHandle

        def due() -> float:
            patience = config.first_token_seconds if self.first_at is None else config.between_tokens_seconds
            return min(self.spoke_at + patience, end)

        def wait() -> None:  # for less than `due` when the first token may shorten it meanwhile
            nonlocal timer
            moment = min(due(), loop.time() + config.between_tokens_seconds)
            timer = loop.call_at(moment, look, moment)

        def look(expected: float) -> None:
            nonlocal end
            late = loop.time() - expected
            if late > SLEEP_SECONDS:  # the computer slept, and the model with it: begin to wait anew
                self.spoke_at += late
                end += late
            if loop.time() < due():
                wait()
                return
            if loop.time() >= end:
                what = f"The answer was not complete after {config.total_seconds:g} s and was ended."
            elif self.first_at is not None:
                what = f"The model server was silent for {config.between_tokens_seconds:g} s."
            else:
                what = f"The model server did not begin to answer within {config.first_token_seconds:g} s."
            self.stop(ProviderFailed("PROVIDER_TIMEOUT", what))

        wait()
        try:
            yield
        finally:
            timer.cancel()

    @contextlib.asynccontextmanager
    async def _watching_the_load(self) -> AsyncIterator[None]:
        """While nothing has come: say whether the model is being loaded, where the server can tell."""
        provider_id, model = self.begun.provider_id, self.begun.model

        async def watch() -> None:
            while self.first_at is None:
                await asyncio.sleep(LOADING_POLL_SECONDS)
                with contextlib.suppress(ProviderFailed):
                    await self._providers.models(provider_id, LOADING_POLL_SECONDS / 2)
                phase = _phase(self._providers.known(provider_id, model))
                if phase != self.phase and self.first_at is None:
                    self.progress(phase)

        if self._providers.get(provider_id).kind == "openai":  # whose servers do not tell
            yield
            return
        watching = asyncio.create_task(watch())
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


def _phase(offer: Model | None) -> str:
    """Of an answer before its first token."""
    return "loading" if offer is not None and offer.state in ("loading", "not-loaded") else "prompt"


def _told(error: FiresideError) -> dict[str, str]:
    return {"code": error.code, "message": error.message}


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
