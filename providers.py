"""Model servers behind one interface: which models they have, and one answer as an async generator of its parts.

Each kind of model server is a class in `backends/`, derived from `backends.openai.OpenAI`.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec

from .backends.answer import Part
from .backends.engine import Embedded, Engine
from .backends.lmstudio import LMStudio
from .backends.openai import Model, ModelDownload, OpenAI
from .config import MAX_CONCURRENCY, Config, Provider
from .errors import NotFound, ProviderFailed

log = logging.getLogger("fireside.providers")

CATALOG_SECONDS = 1.5  # that GET /providers waits for the slowest server
LIST_SECONDS = 10.0  # after which a server that does not list its models counts as offline
DOWNLOAD_SECONDS = 60.0  # in which LM Studio must have found a model to download
LOAD_SECONDS = 600.0  # a large model on a slow disk takes minutes


class ChatRequest(msgspec.Struct, frozen=True):
    """`messages` and `params` are sent unchanged, in OpenAI's names. A parameter that is None is left out."""

    model: str
    messages: list[dict[str, Any]]
    params: dict[str, Any] = {}


@dataclass(frozen=True)
class _ModelList:
    """The answer of a server that was asked for its models."""

    received_at: float  # time.monotonic
    models: list[Model]
    failure: ProviderFailed | None = None
    unlisted: bool = False  # it answers, but does not list its models


class Providers:
    """All model servers of the settings. Every failure of a server is a ProviderFailed."""

    def __init__(self, config: Config, engine: Engine) -> None:
        self.settings = {provider.id: provider for provider in config.providers}
        self._servers = {provider.id: _create_server(provider, engine) for provider in config.providers}
        self._lists: dict[str, _ModelList] = {}
        self._known: dict[str, list[Model]] = {}  # of the last list that was received
        self._refreshes: dict[str, asyncio.Task[_ModelList]] = {}

    async def aclose(self) -> None:
        """Cancel the requests for models. Answers are closed by their readers, the engine by its owner."""
        tasks = list(self._refreshes.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def get(self, provider_id: str) -> Provider:
        """Raises NotFound."""
        return self._server(provider_id).provider

    def reports_loading(self, provider_id: str) -> bool:
        return self._server(provider_id).reports_loading

    def _server(self, provider_id: str) -> OpenAI:
        if provider_id not in self._servers:
            raise NotFound("provider")
        return self._servers[provider_id]

    # ---- models

    async def catalog(self, max_age: float = 0.0, details: bool = False) -> list[dict[str, Any]]:
        """Return the response of GET /providers. All servers are asked at once."""
        return list(await asyncio.gather(*(self.entry(name, max_age, details) for name in self._servers)))

    async def entry(self, provider_id: str, max_age: float = 0.0, details: bool = False) -> dict[str, Any]:
        """Return one server's part of the catalog. `details`: errors with addresses, for administrators. Raises NotFound.

        A server that takes longer than CATALOG_SECONDS counts as offline until it has answered.
        """
        server = self._server(provider_id)
        provider = server.provider
        models_known = True
        try:
            async with asyncio.timeout(CATALOG_SECONDS):
                found = await self._list(provider_id, max_age)
            models, error = found.models, found.failure.message if found.failure else None
            models_known = not found.unlisted
            if found.failure and found.failure.detail and details:
                error = f"{error} ({found.failure.detail})"
        except TimeoutError:
            models = self._known.get(provider_id, [])
            error = f"{provider.name} has not answered within {CATALOG_SECONDS} s."
        lengths = [length for model in models for length in (model.context_length, model.max_context_length) if length]
        return {
            "provider_id": provider.id,
            "name": provider.name,
            "kind": provider.kind,
            "online": error is None,
            "error": error,
            "models_known": models_known,
            "can_start": error is not None and await server.can_start(),
            "capabilities": {
                "streaming": True,
                "vision": any(model.vision for model in models),
                "tools": any(model.tools for model in models),
                "json_mode": True,
                "max_context_tokens": max(lengths, default=None),
            },
            "models": [msgspec.structs.asdict(model) for model in models],
        }

    async def models(self, provider_id: str, max_age: float = 0.0) -> list[Model]:
        """Return a server's models, not older than `max_age` seconds. Raises NotFound and ProviderFailed."""
        found = await self._list(provider_id, max_age)
        if found.failure:
            raise ProviderFailed(found.failure.code, found.failure.message)
        return found.models

    def known(self, provider_id: str, model_id: str) -> Model | None:
        """Return the model as the server last listed it, without waiting."""
        return next((model for model in self._known.get(provider_id, []) if model.id == model_id), None)

    def models_with_vision(self) -> list[str]:
        """Return the names of the models that can see images, as the servers last listed them, loaded ones first."""
        models = [model for known in self._known.values() for model in known if model.vision]
        return [model.label or model.id for model in sorted(models, key=lambda model: model.state != "loaded")]

    def concurrency(self, provider_id: str) -> int:
        """Return how many answers the server gives at a time: what a loaded model reports, else the setting."""
        reported = [model.parallel for model in self._known.get(provider_id, []) if model.parallel]
        return min(max(reported, default=self.settings[provider_id].concurrency), MAX_CONCURRENCY)

    async def _list(self, provider_id: str, max_age: float) -> _ModelList:
        """Return the last list if it is young enough, otherwise a new one. Concurrent calls share one request."""
        found = self._lists.get(provider_id)
        if found and time.monotonic() - found.received_at < max_age:
            return found
        task = self._refreshes.get(provider_id)
        if task is None:
            task = asyncio.create_task(self._refresh(self._server(provider_id)))
            self._refreshes[provider_id] = task
            task.add_done_callback(lambda _: self._refreshes.pop(provider_id))
        return await asyncio.shield(task)

    async def _refresh(self, server: OpenAI) -> _ModelList:
        provider = server.provider
        models: list[Model] | None = []
        failure: ProviderFailed | None = None
        try:
            async with asyncio.timeout(LIST_SECONDS):
                models = await server.models()
                self._known[provider.id] = models or []
        except ProviderFailed as failed:
            failure = failed
        except TimeoutError:
            failure = ProviderFailed("PROVIDER_TIMEOUT", f"{provider.name} does not answer.")
        except Exception:  # an unexpected response of one server must not hide the others
            log.exception("cannot read the list of models of %s", provider.id)
            failure = ProviderFailed("PROVIDER_ERROR", f"{provider.name} sent a list of models that cannot be read.")
        found = self._lists[provider.id] = _ModelList(time.monotonic(), models or [], failure, models is None)
        return found

    # ---- starting a server, loading and unloading models

    async def start(self, provider_id: str) -> None:
        """Start the server of LM Studio on this computer. Raises ProviderFailed."""
        await self._server(provider_id).start()
        await self._list(provider_id, 0.0)

    async def load(self, provider_id: str, model: str, **options: Any) -> None:
        """Load a model with the options that are not None. Raises Invalid if the server cannot be told to."""
        async with self._changing(provider_id) as server:
            await server.load(model, {name: value for name, value in options.items() if value is not None})

    async def unload(self, provider_id: str, model: str) -> None:
        """Unload all instances of a model. Raises Invalid as `load` does."""
        async with self._changing(provider_id) as server:
            await server.unload(model)

    async def download(self, provider_id: str, model: str, quantization: str | None = None) -> ModelDownload:
        """Start to download a model. Raises Invalid if the server cannot be told to."""
        async with self._within(DOWNLOAD_SECONDS, provider_id) as server:
            return await server.download(model, quantization)

    async def downloads(self, provider_id: str) -> list[ModelDownload]:
        """Return the downloads that were started by `download`."""
        async with self._within(LIST_SECONDS, provider_id) as server:
            return await server.downloads()

    @asynccontextmanager
    async def _within(self, seconds: float, provider_id: str) -> AsyncIterator[OpenAI]:
        server = self._server(provider_id)
        try:
            async with asyncio.timeout(seconds):
                yield server
        except TimeoutError:
            raise ProviderFailed("PROVIDER_TIMEOUT", f"{server.provider.name} does not answer.") from None

    @asynccontextmanager
    async def _changing(self, provider_id: str) -> AsyncIterator[OpenAI]:
        """Limit the time that loading takes, and ask for the models again afterwards."""
        server = self._server(provider_id)
        try:
            async with asyncio.timeout(LOAD_SECONDS):
                yield server
        except TimeoutError:
            message = (
                f"{server.provider.name} has not finished after {LOAD_SECONDS / 60:.0f} minutes. It may finish later."
            )
            raise ProviderFailed("PROVIDER_TIMEOUT", message) from None
        finally:
            self._lists.pop(provider_id, None)
        if earlier := self._refreshes.get(provider_id):
            await asyncio.wait([earlier])
        await self._list(provider_id, 0.0)

    # ---- answers

    def chat(self, provider_id: str, request: ChatRequest) -> AsyncGenerator[list[Part], None]:
        """Return one answer as a generator of lists of parts. The last part is Finish. There is no deadline.

        A `reasoning_effort` that the model is known not to take is not sent.

        Raises NotFound at once, and ProviderFailed while it runs, after the parts that arrived before. Close it
        (contextlib.aclosing): when it is closed or cancelled, so is the connection.
        """
        body = {name: value for name, value in request.params.items() if value is not None}
        model = self.known(provider_id, request.model)
        if (
            model
            and model.reasoning_efforts is not None
            and body.get("reasoning_effort") not in model.reasoning_efforts
        ):
            body.pop("reasoning_effort", None)
        body |= {"model": request.model, "messages": request.messages}
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        return self._server(provider_id).chat(body)


def _create_server(provider: Provider, engine: Engine) -> OpenAI:
    match provider.kind:
        case "lmstudio":
            return LMStudio(provider)
        case "embedded":
            return Embedded(provider, engine)
        case _:
            return OpenAI(provider)
