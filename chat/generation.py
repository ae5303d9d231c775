"""A generation: the task that writes one answer, from its place in the queue to its last event."""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, Callable
from typing import Any

from msgspec import Raw, to_builtins
from msgspec.structs import asdict

from .. import queries
from ..backends.answer import ActualModel, Content, Finish, Part, Progress, Reasoning, Sent, Usage
from ..backends.openai import Model
from ..config import Config
from ..db import Connection, Database
from ..documents.checker import CHECK_SECONDS, QuotationChecker
from ..errors import FiresideError, ProviderFailed, StorageUnavailable
from ..providers import ChatRequest, ModelServer, Providers
from ..queries.generations import Answer, SentRequest
from ..queries.messages import Message
from ..queries.turns import Prompt
from ..queries.types import Citation, ToolCall
from . import continuation
from . import prompt as prompts
from .events import EventLog
from .excerpts import Excerpts, sent_pages, statistic

log = logging.getLogger("fireside.chat")

SUSPENDED_SECONDS = 5.0  # a timer this late means that the computer was suspended
LOOK_SECONDS = 1.5  # that an answer waits for the list of models
LOOK_AGE_SECONDS = 30.0  # of a list of models that needs no new look
LOADING_POLL_SECONDS = 1.0
FULL_CONTEXT = 0.9  # of the context: a prompt above it leaves no room for an answer
SUGGESTED_MODELS = 3
STOPPED_CHECK_SECONDS = 5.0  # for the quotations of an answer that was stopped or failed
MIN_MEASURED_SECONDS = 0.02  # an answer that arrived in less time has no meaningful speed


Begun = tuple[Answer, ModelServer | None]  # an answer that exists or is new, and the server that writes it


class Generation:
    """An answer that is written. Once it has ended it is kept until it is saved. All times are the event loop's."""

    task: asyncio.Task[None]

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
    ) -> None:
        """`begin_next` begins the answer to the next queued message when this one is complete; `start` starts its generation."""
        assert answer.job is not None
        self.id = answer.generation_id
        self.message_id = answer.message_id
        self.job = answer.job
        self.log = EventLog(self.id)
        self._first_event = queries.generations.first_event(answer)
        earlier = self.job.earlier
        self._joint = continuation.Joint(earlier.content) if earlier else None
        self._asks_to_continue = False  # the server cannot go on by itself
        self.running = False  # can be stopped
        self.is_recorded = True  # has a message in the database
        self.status = "generating"  # at the end: ok, canceled, interrupted or error
        self.save_error: StorageUnavailable | None = None  # set when the answer has ended and could not be saved
        self._config = config
        self._database = database
        self._providers = providers
        self._checker = checker
        self._server = server
        self._begin_next = begin_next
        self._start = start
        self._stop_reason: str | FiresideError | None = None
        self._error: FiresideError | None = None
        self._sent: SentRequest | None = None  # the last request; without a hash, it was not sent
        self._model: str | None = None  # that answers, by the server's account
        self._usage: dict[str, int] | None = None
        self._stats: dict[str, Any] = {}
        self._may_check = True  # the quotations, when the answer has ended
        self._is_checking = False
        self._citations: list[Citation] | None = None  # None: not checked
        self._progress: dict[str, str | int] = {}  # the last event of this kind
        self._time = asyncio.get_running_loop().time  # each look at the running loop is a system call in Python 3.11
        self._started_at = self._text_at = self._time()  # _text_at: of the newest text
        self._first_text_at: float | None = None

    # ---- life

    def start(self) -> None:
        """Start the task. It waits for one of the server's slots first."""
        self._server.slots.resize(self._server.concurrency())
        self.log.add(**self._first_event)
        if earlier := self.job.earlier:
            if earlier.reasoning:
                self.log.append_reasoning(earlier.reasoning)
            self.log.append_content(earlier.content)
            self.log.publish()
        self.task = asyncio.create_task(self._run(), name=f"generation {self.id}")

    def stop(self, reason: str | FiresideError, check: bool = True) -> None:
        """Ask the task to end: "canceled", "interrupted" or an error. The first reason counts.

        One that comes while the quotations are checked ends the check. Without `check` they are not checked.
        """
        self._may_check = self._may_check and check
        if self._stop_reason is None or self._is_checking:
            self._stop_reason = self._stop_reason or reason
            if self.running:  # a task that is canceled before its first step would not run at all
                self.task.cancel()

    async def _run(self) -> None:
        self.running = True
        outcome: str | FiresideError = "ok"
        try:
            if self._stop_reason is None:
                async with self._server.slots.slot(self.job.user_id, self._report_place):
                    if self.job.prompt is None:
                        read = queries.turns.get_prompt
                        self.job.prompt = await self._database.read(read, self.job.leaf_id)
                    await self._write(self.job.prompt)
        except asyncio.CancelledError:
            outcome = "interrupted"
        except FiresideError as error:
            outcome = error
        except Exception:
            log.exception("generation %s failed", self.id)
            outcome = FiresideError()
        await self._conclude(self._stop_reason or outcome)

    async def _check_quotations(self, outcome: str | FiresideError) -> None:
        """Look for the answer's quotations in the documents of its path. A stop ends the check; the answer has ended already."""
        prompt = self.job.prompt
        if outcome == "interrupted" or not self._may_check or prompt is None or not prompt.documents:
            return
        self._is_checking = True
        try:
            seconds = CHECK_SECONDS if outcome == "ok" else STOPPED_CHECK_SECONDS
            documents = [*prompt.documents.values()]
            self._citations = await self._checker.check(self.job.user_id, self.log.content, documents, seconds)
        except asyncio.CancelledError:
            pass
        except Exception:
            log.exception("the quotations of generation %s were not checked", self.id)
        self._is_checking = False

    async def _conclude(self, outcome: str | FiresideError) -> None:
        """Save the answer, then end its log. Readers learn when it cannot be saved."""
        if self._joint and (rest := self._joint.end()):
            self.log.append_content(rest)
            self.log.publish()
        await self._check_quotations(outcome)
        self.running = False
        if self.job.earlier:
            wrote = self._first_text_at is not None
            self._usage = continuation.whole_usage(self.job.earlier, self._usage, wrote)
            self._stats = continuation.whole_stats(self.job.earlier, self._stats, self._usage, wrote)
        if self._usage is not None:
            self.log.add("usage", {"usage": self._usage})
        if isinstance(outcome, FiresideError):
            self.status, self._error = "error", outcome
            self.log.add("error", _error_fields(outcome))
        else:
            self.status = outcome
        following = None
        try:
            following = await self._database.write_for(self.job.user_id, self.save)
        except Exception as error:
            log_save_error(error)
            self.save_error = StorageUnavailable(
                "The disk cannot be written. The answer is saved as soon as it can be."
            )
            if self._error is None:
                self.log.add("error", _error_fields(self.save_error))
        self._start(following)  # a reader that gets `done` finds it
        self.log.end(self._done())

    def save(self, conn: Connection) -> Begun | None:
        """Save the ended answer. Return the next one of the conversation's queue, which has begun in the same transaction.

        A `save_error` that its readers were told stays in its events, but not in its status.
        """
        wrote = not self.job.earlier or self._first_text_at is not None
        queries.generations.finish_generation(
            conn,
            self.id,
            self.log.recording(self.message_id, "complete" if self.status == "ok" else self.status, self._done()),
            provider_id=self.job.provider_id if wrote else None,
            model=(self._model or self.job.model) if wrote else None,
            token_usage=self._usage,
            stats=self._stats,
            error=_error_fields(self._error) if self._error else None,
            sent=self._sent if self._sent and self._sent.sha256 else None,
            citations=self._citations,
        )
        queries.recorder.record_answer(conn, self.message_id, self.calls)
        if self.status != "ok":
            return None
        return self._begin_next(conn, self.job.user_id, self.job.conversation_id, self.message_id)

    @property
    def calls(self) -> list[ToolCall]:
        """Return the calls of tools in the answer."""
        return []

    def _done(self) -> dict[str, Any]:
        status = "error" if self.save_error else self.status
        done = {"status": status, "message_id": self.message_id, "stats": self._stats}
        return done if self._citations is None else done | {"citations": to_builtins(self._citations)}

    def complete(self, message: Message) -> None:
        """Fill in what the row of its message does not have yet."""
        message.content, message.reasoning = self.log.content, self.log.reasoning
        if self.save_error:
            message.status = "error"
            message.citations = self._citations
            message.error = Raw(json.dumps(_error_fields(self._error or self.save_error)).encode())
            message.stats = Raw(json.dumps(self._stats).encode())
            if self._usage is not None:
                message.token_usage = Raw(json.dumps(self._usage).encode())

    # ---- progress

    def _report_progress(self, phase: str, **details: int) -> None:
        progress: dict[str, str | int] = {"phase": phase, **details}
        if progress != self._progress:
            self._progress = progress
            self.log.add("progress", progress)

    def _report_place(self, place: int) -> None:
        self._report_progress("queued", place=place)
        self.job.prompt = None  # read again at its turn: the images of a long queue would fill the memory

    # ---- asking

    async def _write(self, prompt: Prompt) -> None:
        """Get the answer from the model server. Raises ProviderFailed."""
        sent_at = self._text_at = self._time()
        if self._progress:  # it was queued
            self._stats["queued_ms"] = _ms(sent_at - self._started_at)
        watchers = [asyncio.create_task(self._enforce_deadlines()), asyncio.create_task(self._watch_loading())]
        try:
            await self._ask(prompt)
        finally:
            for watcher in watchers:
                watcher.cancel()
            await asyncio.gather(*watchers, return_exceptions=True)
            self._measure(sent_at)

    async def _ask(self, prompt: Prompt) -> None:
        """Ask, and ask again with fewer messages while the server refuses them as too many for the model's context."""
        job = self.job
        model = await self._look_up_model()
        context_length = model.context_length if model is not None else None
        max_tokens = job.params.get("max_tokens")
        excerpts = Excerpts(self._database, prompt)
        omitted = await excerpts.choose(context_length, max_tokens)
        if model is not None and model.vision is False and any(turn.images for turn in prompt.turns[omitted:]):
            seeing = self._providers.models_with_vision()[:SUGGESTED_MODELS]
            which = f"Choose one that can: {', '.join(seeing)}." if seeing else "No model of the model servers can."
            raise ProviderFailed("VISION_UNSUPPORTED", f"{job.model} cannot see images. {which}")
        self._report_progress(self._first_phase())
        self._asks_to_continue = bool(job.earlier) and not self._server.backend.continues_answers
        while True:
            self._stats["omitted_messages"] = omitted
            self._stats["sent_messages"] = len(prompt.turns) - omitted - bool(job.earlier)
            self._stats["omitted_images"] = sum(turn.omitted_images for turn in prompt.turns[omitted:])
            if prompt.documents:  # of many pages they take up to 70 ms
                self._stats["documents"] = await asyncio.to_thread(statistic, prompt, omitted)
                request = await asyncio.to_thread(self._request, prompt, omitted)
            else:
                request = self._request(prompt, omitted)
            try:
                await self._read(self._server.chat(request, self._record_all))
                break
            except ProviderFailed as failure:
                if job.earlier and failure.code == "EMPTY_ANSWER" and self._first_text_at is None:  # it was complete
                    break
                if job.earlier and not self._asks_to_continue and self._is_refusal(failure):
                    self._asks_to_continue = True
                    continue
                if failure.code == "EMPTY_ANSWER":
                    raise self._explain_empty(failure) from failure
                if failure.code != "CONTEXT_OVERFLOW" or self._first_text_at is not None:
                    raise
                if prompt.documents and context_length is None and (model := await self._look_up_model()):
                    context_length = model.context_length  # the refused request has loaded it
                    if context_length is not None:
                        omitted = await excerpts.choose(context_length, max_tokens)
                        continue
                fewer = await excerpts.choose_fewer(omitted)
                if fewer is None:
                    raise
                omitted = fewer
        if self._first_phase() == "loading":
            await self._look_up_model()  # this answer loaded it: `stats` gets its context length

    def _request(self, prompt: Prompt, omitted: int) -> ChatRequest:
        messages, params = prompts.messages(prompt, omitted), self.job.params
        characters = len(self.job.earlier.content) if self.job.earlier else None
        leaf_id, asks = self.job.leaf_id, self._asks_to_continue
        pages = sent_pages(prompt, omitted)
        self._sent = SentRequest("", {}, leaf_id, omitted, prompt.system_prompt, characters, asks, pages)
        if self._asks_to_continue:
            messages.append({"role": "user", "content": continuation.INSTRUCTION})
        elif self.job.earlier:
            params = params | {"reasoning_effort": "none"}  # llama.cpp refuses to continue an answer with reasoning
        return ChatRequest(self.job.model, messages, params)

    def _is_refusal(self, failure: ProviderFailed) -> bool:
        return failure.code == "PROVIDER_ERROR" and self._first_text_at is None

    def _explain_empty(self, failure: ProviderFailed) -> ProviderFailed:
        """Add the size of the prompt, as far as it is known, and what can be done."""
        model = self._known_model()
        context_length = model.context_length if model is not None else None
        taken = self._usage["prompt_tokens"] if self._usage else 0
        context = f" of the {context_length:,}" if context_length else ""
        size = f" The prompt took {taken:,}{context} tokens{' of the context' if context else ''}." if taken else ""
        is_full = taken and context_length and taken > context_length * FULL_CONTEXT
        advice = "Load the model with a larger context length" if is_full else "Try again, choose another model"
        return ProviderFailed(failure.code, f"{failure.message}{size} {advice}, or continue in a new conversation.")

    async def _look_up_model(self) -> Model | None:
        """Return what is known about the model, after a look at its server if that is old or shows the model as not loaded.

        A server that takes longer than LOOK_SECONDS is not waited for.
        """
        max_age = 0.0 if self._first_phase() == "loading" else LOOK_AGE_SECONDS
        with contextlib.suppress(ProviderFailed, TimeoutError):
            async with asyncio.timeout(LOOK_SECONDS):
                await self._server.models(max_age)
        return self._known_model()

    def _known_model(self) -> Model | None:
        return self._server.known(self.job.model)

    def _first_phase(self) -> str:
        """Return the phase of an answer before its first token."""
        model = self._known_model()
        return "loading" if model is not None and model.state in ("loading", "not-loaded") else "prompt"

    async def _read(self, answer: AsyncGenerator[list[Part], None]) -> None:
        async with contextlib.aclosing(answer) as reads:
            async for parts in reads:
                self._record_all(parts)

    def _record_all(self, parts: list[Part]) -> None:
        """Record what arrived together, and hand it to the readers."""
        for part in parts:
            self._record(part)
        self.log.publish()
        if self.log.size > self._config.answer_max_bytes:
            raise self._too_large()

    def _too_large(self) -> ProviderFailed:
        limit = self._config.answer_max_bytes
        message = f"The answer was ended at {limit:,} bytes. The setting answer_max_bytes is the limit."
        return ProviderFailed("ANSWER_TOO_LARGE", message)

    def _note_text(self) -> float:
        """Note that the model has written something just now. Return when it began to."""
        self._text_at = self._time()
        if self._first_text_at is None:
            self._first_text_at = self._text_at
            self._report_progress("generating")
        return self._first_text_at

    def _record(self, part: Part) -> None:
        match part:
            case Content() | Reasoning():
                text, began_at = part.text, self._note_text()
                if isinstance(part, Reasoning):
                    self.log.append_reasoning(self._new_paragraph(text))
                    self._stats["reasoning_ms"] = _ms(self._text_at - began_at)
                elif text := self._joint.add(text) if self._joint else text:
                    self.log.append_content(text)
            case Usage():
                self._usage = asdict(part)
            case ActualModel(model, engine):
                self._model = model
                if engine:
                    self._stats["engine"] = engine
            case Progress(done, total) if self._first_text_at is None:
                self._report_progress("prompt", done=done, total=total)
            case Finish(reason):
                self._stats["finish_reason"] = reason
            case Sent(body, sha256):
                assert self._sent is not None
                self._sent.sha256, self._sent.body = sha256, body | {"messages": None}

    def _new_paragraph(self, text: str) -> str:
        """Return the first reasoning of a continuation below that of the first part."""
        is_first = self.job.earlier and self.job.earlier.reasoning and "reasoning_ms" not in self._stats
        return f"\n\n{text}" if is_first else text

    def _measure(self, sent_at: float) -> None:
        """Add times and speed to the statistics. They are measured here, because LM Studio's stream has none."""
        stats, usage = self._stats, self._usage
        stats["total_ms"] = _ms(self._time() - sent_at)
        if self._first_text_at is not None:
            stats["ttft_ms"] = _ms(self._first_text_at - sent_at)
            seconds = self._text_at - self._first_text_at
            if usage is not None and usage["completion_tokens"] > 1 and seconds >= MIN_MEASURED_SECONDS:
                stats["generation_ms"] = _ms(seconds)
                stats["tokens_per_second"] = round((usage["completion_tokens"] - 1) * 1000 / stats["generation_ms"], 2)
        model = self._known_model()
        if model is not None and model.context_length is not None:
            stats["context_length"] = model.context_length
        if self._model not in (None, self.job.model):
            stats["requested_model"] = self.job.model

    # ---- watching

    async def _enforce_deadlines(self) -> None:
        """Stop the answer when the model server is silent or the answer takes too long."""
        loop, config = asyncio.get_running_loop(), self._config
        end = loop.time() + config.total_seconds
        while True:
            silence = config.first_token_seconds if self._first_text_at is None else config.between_tokens_seconds
            deadline = min(self._text_at + silence, end)
            if loop.time() >= deadline:
                break
            # The first token may bring the deadline forward. Tokens set no timer: there are too many.
            wake_at = min(deadline, loop.time() + config.between_tokens_seconds)
            await asyncio.sleep(wake_at - loop.time())
            late = loop.time() - wake_at
            if late > SUSPENDED_SECONDS:  # the model was suspended too: wait for its next token from now on
                self._text_at = loop.time()
                end += late
        if deadline == end:
            message = f"The answer was not complete after {config.total_seconds:g} s and was ended."
        elif self._first_text_at is not None:
            message = f"The model server was silent for {config.between_tokens_seconds:g} s."
        else:
            message = f"The model server did not begin to answer within {config.first_token_seconds:g} s."
        self.stop(ProviderFailed("PROVIDER_TIMEOUT", message))

    async def _watch_loading(self) -> None:
        """Until the first token, report whether the model is loading, if the server says so."""
        if not self._server.backend.reports_loading:
            return
        while True:
            await asyncio.sleep(LOADING_POLL_SECONDS)
            if self._first_text_at is not None:
                return
            with contextlib.suppress(ProviderFailed):
                await self._server.models(LOADING_POLL_SECONDS / 2)
            phase = self._first_phase()
            if phase != self._progress.get("phase") and self._first_text_at is None:
                self._report_progress(phase)


def log_save_error(error: Exception) -> None:
    if not isinstance(error, StorageUnavailable):  # which the database has logged
        log.error("answers could not be saved", exc_info=error)


def _error_fields(error: FiresideError) -> dict[str, str]:
    return {"code": error.code, "message": error.message}


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
