"""Model servers behind one interface: which models they have, and one answer as an async generator of its parts.

Each kind of model server is a class in `backends/`, derived from `backends.openai.OpenAI`.
"""

import asyncio
import itertools
import json
import logging
import re
import time
import unicodedata
from collections.abc import AsyncGenerator, Awaitable, Container
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from .backends.answer import Part
from .backends.engine import Embedded, Engine
from .backends.lmstudio import LMStudio
from .backends.openai import Model, ModelDownload, OpenAI, Take, base_url
from .config import BUILT_IN, MAX_CONCURRENCY, Config, Provider
from .db import write_private
from .errors import Invalid, NotFound, ProviderExists, ProviderFailed, ProviderFixed, StorageUnavailable
from .safety.queue import Slots

T = TypeVar("T")

log = logging.getLogger("fireside.providers")

CATALOG_SECONDS = 1.5  # that GET /providers waits for the slowest server
LIST_SECONDS = 10.0  # after which a server that does not list its models counts as offline
DOWNLOAD_SECONDS = 60.0  # in which LM Studio must have found a model to download
RESOLVE_AGE_SECONDS = 30.0  # of the lists in which a model is looked up by its name alone
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


class ModelServer:
    """A model server: its settings, its models, its answers, and the queue of those that wait. Every failure is a ProviderFailed.

    It is the same object while its settings change, and for an answer also after it was removed.
    """

    def __init__(self, provider: Provider, engine: Engine) -> None:
        self._engine = engine
        self.slots = Slots(provider.concurrency)
        self._tasks: set[asyncio.Task[_ModelList]] = set()
        self._use(provider)

    def configure(self, provider: Provider) -> None:
        """Use other settings from the next request on. Answers that are being written keep their connections."""
        jobs = self.backend.jobs if self.settings.url == provider.url else {}
        self._use(provider)
        self.backend.jobs = jobs
        self.slots.resize(provider.concurrency)

    def _use(self, provider: Provider) -> None:
        self.settings = provider
        self.backend = _create_backend(provider, self._engine)
        self._last: _ModelList | None = None
        self.last_models: list[Model] = []  # of the last list that was received
        self._refresh: asyncio.Task[_ModelList] | None = None

    @property
    def id(self) -> str:
        return self.settings.id

    async def aclose(self) -> None:
        """Cancel the requests for models. Answers are closed by their readers, the engine by its owner."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.backend.close_idle()

    # ---- models

    async def entry(self, max_age: float = 0.0, details: bool = False) -> dict[str, Any]:
        """Return this server's part of GET /providers. `details`: errors with addresses, for administrators.

        A server that takes longer than CATALOG_SECONDS counts as offline until it has answered.
        """
        models_known = True
        try:
            async with asyncio.timeout(CATALOG_SECONDS):
                found = await self._list(max_age)
            models, error = found.models, found.failure.message if found.failure else None
            models_known = not found.unlisted
            if found.failure and found.failure.detail and details:
                error = f"{error} ({found.failure.detail})"
        except TimeoutError:
            models = self.last_models
            error = f"{self.settings.name} has not answered within {CATALOG_SECONDS} s."
        lengths = [length for model in models for length in (model.context_length, model.max_context_length) if length]
        return {
            "provider_id": self.id,
            "name": self.settings.name,
            "kind": self.settings.kind,
            "online": error is None,
            "error": error,
            "models_known": models_known,
            "can_start": error is not None and await self.backend.can_start(),
            "capabilities": {
                "streaming": True,
                "vision": any(model.vision for model in models),
                "tools": any(model.tools for model in models),
                "json_mode": True,
                "max_context_tokens": max(lengths, default=None),
            },
            "models": [msgspec.structs.asdict(model) for model in models],
        }

    async def models(self, max_age: float = 0.0) -> list[Model]:
        """Return the models, as they were at most `max_age` seconds ago."""
        found = await self._list(max_age)
        if found.failure:
            raise ProviderFailed(found.failure.code, found.failure.message)
        return found.models

    def known(self, model_id: str) -> Model | None:
        """Return the model as the server last listed it, without waiting."""
        return next((model for model in self.last_models if model_id in (model.id, *(model.variants or ()))), None)

    def lacks(self, model_id: str) -> bool:
        """Return whether the server is known, without waiting, not to have the model."""
        last = self._last
        is_listed = last is not None and not last.failure and not last.unlisted
        return is_listed and self.known(model_id) is None

    def concurrency(self) -> int:
        """Return how many answers the server gives at a time: what a loaded model reports, else the setting."""
        reported = [model.parallel for model in self.last_models if model.parallel]
        return min(max(reported, default=self.settings.concurrency), MAX_CONCURRENCY)

    async def _list(self, max_age: float) -> _ModelList:
        """Return the last list if it is young enough, otherwise a new one. Concurrent calls share one request."""
        if self._last and time.monotonic() - self._last.received_at < max_age:
            return self._last
        if self._refresh is None or self._refresh.done():
            self._refresh = asyncio.create_task(self._ask_for_models(self.backend))
            self._tasks.add(self._refresh)
            self._refresh.add_done_callback(self._tasks.discard)
        return await asyncio.shield(self._refresh)

    async def _ask_for_models(self, backend: OpenAI) -> _ModelList:
        models: list[Model] | None = []
        failure: ProviderFailed | None = None
        try:
            backend.close_idle()  # a server with one thread would wait for their requests first
            models = await self._within(LIST_SECONDS, backend.models())
        except ProviderFailed as failed:
            failure = failed
        except Exception:  # an unexpected response of one server must not hide the others
            log.exception("cannot read the list of models of %s", self.id)
            message = f"{self.settings.name} sent a list of models that cannot be read."
            failure = ProviderFailed("PROVIDER_ERROR", message)
        found = _ModelList(time.monotonic(), models or [], failure, models is None)
        if backend is self.backend:  # the settings have not changed
            self._last = found
            if failure is None:
                self.last_models = found.models
        return found

    # ---- starting a server, loading and unloading models

    async def start(self) -> None:
        """Start the server of LM Studio on this computer."""
        await self.backend.start()
        await self._list(0.0)

    async def load(self, model: str, **options: Any) -> None:
        """Load a model with the options that are not None. Raises Invalid if the server cannot be told to."""
        given = {name: value for name, value in options.items() if value is not None}
        await self._change(self.backend.load(model, given))

    async def unload(self, model: str) -> None:
        """Unload all instances of a model. Raises Invalid as `load` does."""
        await self._change(self.backend.unload(model))

    async def _change(self, change: Awaitable[None]) -> None:
        """Wait until models are loaded or unloaded, and ask for the models again."""
        try:
            minutes = f"{LOAD_SECONDS / 60:.0f} minutes"
            await self._within(LOAD_SECONDS, change, f"has not finished after {minutes}. It may finish later.")
        finally:
            self._last = None
        if self._refresh is not None:
            await asyncio.wait([self._refresh])
        await self._list(0.0)

    async def download(self, model: str, quantization: str | None = None) -> ModelDownload:
        """Start to download a model. Raises Invalid if the server cannot be told to."""
        return await self._within(DOWNLOAD_SECONDS, self.backend.download(model, quantization))

    async def downloads(self) -> list[ModelDownload]:
        """Return the downloads that were started by `download`."""
        return await self._within(LIST_SECONDS, self.backend.downloads())

    async def _within(self, seconds: float, work: Awaitable[T], problem: str = "does not answer.") -> T:
        try:
            async with asyncio.timeout(seconds):
                return await work
        except TimeoutError:
            raise ProviderFailed("PROVIDER_TIMEOUT", f"{self.settings.name} {problem}") from None

    # ---- answers

    def connect_early(self) -> None:
        """Open a connection for an answer that will soon be requested, if a slot is free."""
        if self.slots.held < self.concurrency():
            self.backend.connect_early()

    def chat(self, request: ChatRequest, take: Take | None = None) -> AsyncGenerator[list[Part], None]:
        """Return one answer as a generator of lists of parts. The last part is Finish. There is no deadline.

        `take`: see backends.openai.stream_answer.

        A `reasoning_effort` that the model is known not to take is not sent.

        Raises ProviderFailed while it runs, after the parts that arrived before. Close it (contextlib.aclosing): when it is
        closed or cancelled, so is the connection.
        """
        body = {name: value for name, value in request.params.items() if value is not None}
        model = self.known(request.model)
        if (
            model
            and model.reasoning_efforts is not None
            and body.get("reasoning_effort") not in model.reasoning_efforts
        ):
            body.pop("reasoning_effort", None)
        body |= {"model": request.model, "messages": request.messages}
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        return self.backend.chat(body, take=take)

    def relay(self, body: dict[str, Any], take: Take | None = None) -> AsyncGenerator[list[Part], None]:
        """Return the answer to a chat request of another program, as `chat` does. The request is sent as it is."""
        return self.backend.chat(body, for_program=True, take=take)


class Providers:
    """The model servers by id. Those that are not built in or set in config.toml can be changed while Fireside runs."""

    def __init__(self, config: Config, engine: Engine) -> None:
        self._file = config.servers_file
        self._downloads_file = config.data_dir / "downloads.json"
        self._engine = engine
        self._servers = {provider.id: ModelServer(provider, engine) for provider in config.providers}
        self._removed: list[ModelServer] = []
        self._saving = asyncio.Lock()
        for provider_id, jobs in _read_downloads(self._downloads_file).items():
            if provider_id in self._servers:
                self._servers[provider_id].backend.jobs.update(jobs)

    async def aclose(self) -> None:
        await asyncio.gather(*(server.aclose() for server in (*self._servers.values(), *self._removed)))

    @property
    def enabled(self) -> list[ModelServer]:
        return [server for server in self._servers.values() if server.settings.enabled]

    def find(self, provider_id: str | None) -> ModelServer | None:
        """Return the server if it is enabled, else None."""
        server = self._servers.get(provider_id or "")
        return server if server and server.settings.enabled else None

    def get(self, provider_id: str) -> ModelServer:
        """Raises NotFound."""
        if server := self.find(provider_id):
            return server
        raise NotFound("provider")

    async def resolve(self, name: str) -> tuple[ModelServer, str]:
        """Return the server and the model of a name: `server/model`, or a model that only one server has. "" is a loaded one, or any.

        A server that does not list its models may have any. Raises ProviderFailed with MODEL_NOT_FOUND, and Invalid.
        """
        server_id, _, model = name.partition("/")
        if model and (server := self.find(server_id)):
            return server, model
        catalog = await self.catalog(RESOLVE_AGE_SECONDS)
        offers = [(entry["provider_id"], model) for entry in catalog for model in entry["models"]]
        having = [(server, name) for server, model in offers if name in (model["id"], *(model["variants"] or ()))]
        having = list(dict.fromkeys(having))
        if not name:
            having = [(server, model["id"]) for server, model in offers if model["state"] == "loaded"] or [
                (server, model["id"]) for server, model in offers
            ]
            having = having[:1]
        elif not having:
            having = [
                (entry["provider_id"], name) for entry in catalog if entry["online"] and not entry["models_known"]
            ]
        if len(having) > 1:
            choices = " or ".join(f"{server}/{model}" for server, model in having[:3])
            raise Invalid(f"model: more than one server may have it. Use {choices}.")
        if not having:
            what = f"no model {name}" if name else "no model"
            raise ProviderFailed("MODEL_NOT_FOUND", f"There is {what}. GET /v1/models lists all.")
        return self.get(having[0][0]), having[0][1]

    def models_with_vision(self) -> list[str]:
        """Return the names of the models that can see images, as the servers last listed them, loaded ones first."""
        models = [model for server in self.enabled for model in server.last_models if model.vision]
        return [model.label or model.id for model in sorted(models, key=lambda model: model.state != "loaded")]

    async def catalog(self, max_age: float = 0.0, details: bool = False) -> list[dict[str, Any]]:
        """Return the response of GET /providers. All servers are asked at once."""
        return list(await asyncio.gather(*(server.entry(max_age, details) for server in self.enabled)))

    # ---- changing the servers

    async def status(self) -> list[tuple[ModelServer, dict[str, Any] | None]]:
        """Return all servers, each with its entry of the catalog if it is enabled."""
        entries = {entry["provider_id"]: entry for entry in await self.catalog()}
        return [(server, entries.get(server.id)) for server in self._servers.values()]

    def configured(self, provider_id: str) -> ModelServer:
        """Return a server, also one that is not enabled. Raises NotFound."""
        if provider_id not in self._servers:
            raise NotFound("provider")
        return self._servers[provider_id]

    async def add(self, provider: Provider) -> ModelServer:
        """Add a server, save it, and use it at once. Its id is made of its name. Raises ProviderExists, StorageUnavailable."""
        async with self._saving:
            self._check_address(provider)
            identity = _free_id(provider.name, self._servers.keys() | BUILT_IN.keys())
            provider = replace(provider, id=identity, source="page")
            await self._save({provider.id: provider})
            server = self._servers[identity] = ModelServer(provider, self._engine)
            return server

    async def change(self, provider_id: str, **fields: Any) -> ModelServer:
        """Change a server's settings. Raises NotFound, ProviderFixed, ProviderExists, StorageUnavailable."""
        async with self._saving:
            provider = replace(self._changeable(provider_id), **fields, source="page")
            self._check_address(provider)
            await self._save({provider_id: provider})
            server = self._servers[provider_id]
            server.configure(provider)
            return server

    async def remove(self, provider_id: str) -> None:
        """Remove a server, or give a built-in one its first settings again. Answers that it was asked for are finished.

        Raises NotFound, ProviderFixed, StorageUnavailable.
        """
        async with self._saving:
            self._changeable(provider_id)
            await self._save({provider_id: None})
            if provider_id in BUILT_IN:
                self._servers[provider_id].configure(BUILT_IN[provider_id])
            else:
                self._removed.append(self._servers.pop(provider_id))

    async def save_downloads(self) -> None:
        """Save which models are downloaded, so that their progress can be asked for after a restart."""
        jobs = {server.id: server.backend.jobs for server in self._servers.values() if server.backend.jobs}
        async with self._saving:
            try:
                await asyncio.to_thread(write_private, self._downloads_file, json.dumps(jobs, ensure_ascii=False))
            except OSError as error:  # the download goes on
                log.warning("%s cannot be written: %s", self._downloads_file.name, error.strerror)

    def _changeable(self, provider_id: str) -> Provider:
        provider = self.configured(provider_id).settings
        if provider.source not in ("built-in", "page"):
            raise ProviderFixed(provider.source)
        return provider

    def _check_address(self, provider: Provider) -> None:
        """Raise ProviderExists if another server has this address: its models would be listed twice."""

        def address(of: Provider) -> str:
            return base_url(of).replace("//localhost", "//127.0.0.1")

        for server in self._servers.values():
            other = server.backend.provider
            if server.id != provider.id and other.url and address(other) == address(provider):
                raise ProviderExists(server.settings.name)

    async def _save(self, changed: dict[str, Provider | None]) -> None:
        settings = {server.id: server.settings for server in self._servers.values()} | changed
        added = [_stored(one) for one in settings.values() if one is not None and one.source == "page"]
        text = json.dumps({"servers": added}, indent=1, ensure_ascii=False)
        try:
            await asyncio.to_thread(write_private, self._file, text)
        except OSError as error:
            raise StorageUnavailable(f"{self._file.name} cannot be written: {error.strerror}.") from error


def _stored(provider: Provider) -> dict[str, Any]:
    """Return a provider's entry in the file, as config.load reads it."""
    unset = Provider(provider.id, provider.kind, provider.name)
    fields = {name: value for name, value in asdict(provider).items() if value != getattr(unset, name)}
    fields.pop("source")
    return {"id": provider.id, "kind": provider.kind, "name": provider.name, **fields}


def _read_downloads(file: Path) -> dict[str, dict[str, str]]:
    """Return what `save_downloads` wrote. A missing or damaged file counts as empty."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, dict[str, str]])
    except (OSError, ValueError, RecursionError):
        return {}


def _free_id(name: str, taken: Container[str]) -> str:
    """Return an id such as `ollama` or `ollama-2`."""
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "-", ascii_name).strip("-")[:50].strip("-") or "server"
    return next(one for n in itertools.count(1) if (one := slug if n == 1 else f"{slug}-{n}") not in taken)


def _create_backend(provider: Provider, engine: Engine) -> OpenAI:
    match provider.kind:
        case "lmstudio":
            return LMStudio(provider)
        case "embedded":
            return Embedded(provider, engine)
        case _:
            return OpenAI(provider)
