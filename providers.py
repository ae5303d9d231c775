"""Model servers behind one interface: which models they have, and one answer as an async generator of its parts.

LM Studio is asked through its own API for models, loading and unloading, and through the OpenAI-compatible one for
answers, because its own takes no history (https://lmstudio.ai/docs/developer/rest). Every other server is
OpenAI-compatible, and so is the embedded engine.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec

from . import __version__
from .backends import lmstudio
from .backends.engine import Engine
from .backends.http import CONNECT_SECONDS, Transport
from .backends.listings import _LISTINGS, Model, _at, _size
from .backends.openai import UNTYPED_BYTES, Part, Wire, loads, refusal, shown
from .config import Config, Provider
from .errors import Invalid, NotFound, ProviderFailed

log = logging.getLogger("fireside.providers")

CATALOG_SECONDS = 1.5  # what GET /providers waits for the slowest server
OFFLINE_SECONDS = 10.0  # after this a server that was asked for its models counts as offline
LOAD_SECONDS = 600.0  # a large model on a slow disk takes minutes
USAGE_SECONDS = 2.0  # for what may follow a finish_reason: usage and [DONE]
LINGER_SECONDS = 0.2  # for the body's end after [DONE]: a server that is left before it believes it was cancelled
ERROR_LIMIT = 64 * 1024  # bytes of a refusal that are read
LISTING_LIMIT = 2 * 1024 * 1024  # bytes of a list of models: a hostile one of this size takes 40 ms to split
MAX_MODELS = 1000  # of one server
HEADERS = {
    "accept": "*/*",
    "accept-encoding": "identity",
    "connection": "close",
    "user-agent": f"fireside/{__version__}",
}


class ChatRequest(msgspec.Struct, frozen=True):
    """`messages` and `params` go to the server as they are, in OpenAI's names. None in `params` is left out."""

    model: str
    messages: list[dict[str, Any]]
    params: dict[str, Any] = {}


@dataclass(frozen=True)
class _Look:
    """What a server said when it was asked for its models."""

    at: float  # time.monotonic
    models: list[Model]
    failure: ProviderFailed | None = None


class Providers:
    """All model servers of the settings. Whatever goes wrong with one of them is ProviderFailed."""

    def __init__(self, config: Config, engine: Engine) -> None:
        self.settings = {provider.id: provider for provider in config.providers}
        self._engine = engine
        self._local = {
            name for name, provider in self.settings.items() if provider.kind == "lmstudio" and not provider.url
        }
        for name in self._local:
            self._locate(name)
        self._transport = Transport()
        self._looks: dict[str, _Look] = {}
        self._looking: dict[str, asyncio.Task[_Look]] = {}
        self._known: dict[str, list[Model]] = {}  # of the last look that succeeded

    def get(self, provider_id: str) -> Provider:
        """Raises NotFound."""
        provider = self.settings.get(provider_id)
        if provider is None:
            raise NotFound("provider")
        return provider

    def _locate(self, provider_id: str) -> None:
        """Find where LM Studio on this computer listens now. Reads files."""
        self.settings[provider_id] = replace(self.settings[provider_id], url=lmstudio.server_url())

    async def aclose(self) -> None:
        """Ends the questions for models. Answers are ended by who reads them, the engine by who made it."""
        looking = list(self._looking.values())
        for task in looking:
            task.cancel()
        await asyncio.gather(*looking, return_exceptions=True)

    # which models there are

    async def catalog(self, max_age: float = 0.0, details: bool = False) -> list[dict[str, Any]]:
        """Return the answer of GET /providers. All servers are asked at once.

        A server that takes longer than CATALOG_SECONDS counts as offline until it has answered.
        """
        return list(await asyncio.gather(*(self.entry(name, max_age, details) for name in self.settings)))

    async def start(self, provider_id: str) -> None:
        """Start the server of LM Studio on this computer. Raises ProviderFailed."""
        if not await self._can_start(self.get(provider_id)):
            raise ProviderFailed("PROVIDER_UNREACHABLE", "Only LM Studio on this computer can be started from here.")
        await lmstudio.start_server()
        await self._look(provider_id, 0.0)

    async def _can_start(self, provider: Provider) -> bool:
        here = urlsplit(provider.url).hostname in ("127.0.0.1", "localhost", "::1")
        return provider.kind == "lmstudio" and here and await asyncio.to_thread(lmstudio.command) is not None

    async def models(self, provider_id: str, max_age: float = 0.0) -> list[Model]:
        look = await self._look(provider_id, max_age)
        if look.failure:
            raise ProviderFailed(look.failure.code, look.failure.message)
        return look.models

    def known(self, provider_id: str, model_id: str) -> Model | None:
        """The model as it was at the last look that succeeded. Never waits."""
        return next((model for model in self._known.get(provider_id, []) if model.id == model_id), None)

    async def entry(self, provider_id: str, max_age: float = 0.0, details: bool = False) -> dict[str, Any]:
        """Return a server's entry in the catalog. `details`: errors with addresses, for administrators. Raises NotFound."""
        provider = self.get(provider_id)
        try:
            async with asyncio.timeout(CATALOG_SECONDS):
                look = await self._look(provider_id, max_age)
            models, error = look.models, look.failure.message if look.failure else None
            if look.failure and look.failure.detail and details:
                error = f"{error} ({look.failure.detail})"
        except TimeoutError:
            models = self._known.get(provider.id, [])
            error = f"{provider.name} has not answered within {CATALOG_SECONDS} s."
        lengths = [length for model in models for length in (model.context_length, model.max_context_length) if length]
        return {
            "provider_id": provider.id,
            "name": provider.name,
            "kind": provider.kind,
            "online": error is None,
            "error": error,
            "can_start": error is not None and await self._can_start(provider),
            "capabilities": {
                "streaming": True,
                "vision": any(model.vision for model in models),
                "tools": any(model.tools for model in models),
                "json_mode": True,
                "max_context_tokens": max(lengths, default=None),
            },
            "models": [msgspec.structs.asdict(model) for model in models],
        }

    async def _look(self, provider_id: str, max_age: float) -> _Look:
        """The last look if it is young enough, else a new one, which all who want one at the moment share. Raises NotFound."""
        look = self._looks.get(provider_id)
        if look and time.monotonic() - look.at < max_age:
            return look
        task = self._looking.get(provider_id)
        if task is None:
            task = asyncio.create_task(self._ask(self.get(provider_id)))
            self._looking[provider_id] = task
            task.add_done_callback(lambda _: self._looking.pop(provider_id))
        return await asyncio.shield(task)

    async def _ask(self, provider: Provider) -> _Look:
        models: list[Model] = []
        failure: ProviderFailed | None = None
        try:
            async with asyncio.timeout(OFFLINE_SECONDS):
                if provider.id in self._local:
                    await asyncio.to_thread(self._locate, provider.id)
                models = self._known[provider.id] = await self._list(self.get(provider.id))
        except ProviderFailed as failed:
            failure = failed
        except TimeoutError:
            failure = ProviderFailed("PROVIDER_TIMEOUT", f"{provider.name} does not answer.")
        except Exception:  # whatever one server says must not hide the others
            log.exception("the models of %s", provider.id)
            failure = ProviderFailed("PROVIDER_ERROR", f"{provider.name} gave a list of models that makes no sense.")
        look = self._looks[provider.id] = _Look(time.monotonic(), models, failure)
        return look

    async def _list(self, provider: Provider) -> list[Model]:
        if provider.kind == "embedded":
            return await self._files()
        status, body = 0, b""
        for path, key, parse in _LISTINGS[provider.kind]:
            status, body = await self._fetch(provider, "GET", path)
            entries = _entries(body, key) if status == 200 else None
            if entries is not None:
                models = [parse(entry) async for entry in _decoded(entries)]
                return [model for model in models if model]
            if status in (401, 403):
                break
        raise _refused(provider, status, body, "a list of models")

    async def _files(self) -> list[Model]:
        models = []
        for file in await self._engine.models():
            state = self._engine.state(file.id)
            length = self._engine.context_length if state == "loaded" else None
            models.append(
                Model(
                    id=file.id,
                    label=file.label,
                    state=state,
                    context_length=length,
                    max_context_length=file.max_context_length,
                    vision=False,
                    quantization=file.quantization,
                    size_bytes=file.size_bytes,
                )
            )
        return models

    # loading and unloading

    async def load(self, provider_id: str, model: str, context_length: int | None = None) -> None:
        """Returns when the model is loaded, with this context length if one is given. Raises Invalid where that is
        not to be asked of the server.
        """
        provider = self.get(provider_id)
        async with self._changing(provider):
            if provider.kind == "embedded":
                await self._engine.load(model, context_length)
                return
            instances = await self._instances(provider, model)
            if instances and context_length in (None, *instances.values()):
                return  # LM Studio would load a second instance beside it
            for instance in instances:
                await self._order(provider, "unload", {"instance_id": instance})
            wanted = {"context_length": context_length} if context_length else {}
            await self._order(provider, "load", {"model": model, **wanted})

    async def unload(self, provider_id: str, model: str) -> None:
        """Returns when the model is no longer loaded, all of its instances. Raises Invalid as `load` does."""
        provider = self.get(provider_id)
        async with self._changing(provider):
            if provider.kind == "embedded":
                if self._engine.state(model) != "not-loaded":
                    await self._engine.unload()
                return
            for instance in await self._instances(provider, model):
                await self._order(provider, "unload", {"instance_id": instance})

    @asynccontextmanager
    async def _changing(self, provider: Provider) -> AsyncIterator[None]:
        """Bounds a change of what is loaded, and looks at the outcome."""
        if provider.kind == "openai":
            raise Invalid(f"{provider.name} loads its models by itself.")
        try:
            async with asyncio.timeout(LOAD_SECONDS):
                yield
        except TimeoutError:
            raise ProviderFailed("PROVIDER_TIMEOUT", f"{provider.name} is still not done. It may be later.") from None
        finally:
            self._looks.pop(provider.id, None)
        if earlier := self._looking.get(provider.id):
            await asyncio.wait([earlier])
        await self._look(provider.id, 0.0)

    async def _instances(self, provider: Provider, model: str) -> dict[str, int | None]:
        """The loaded instances of a model, or the one that has this id: their ids and context lengths."""
        status, body = await self._fetch(provider, "GET", "/api/v1/models")
        entries = _entries(body, "models")
        if status != 200 or entries is None:
            raise _refused(provider, status, body, "a list of models")
        found: dict[str, int | None] = {}
        async for entry in _decoded(entries):
            instances = _at(entry, "loaded_instances")
            for instance in instances if isinstance(instances, list) else []:
                identity = _at(instance, "id")
                if isinstance(identity, str) and model in (identity, _at(entry, "key")):
                    found[identity] = _size(_at(instance, "config", "context_length"))
        return found

    async def _order(self, provider: Provider, verb: str, body: dict[str, Any]) -> None:
        status, outcome = await self._fetch(provider, "POST", f"/api/v1/models/{verb}", body)
        if status != 200 or not _at(loads(outcome), "instance_id"):
            raise _refused(provider, status, outcome, f"the outcome of the {verb}")

    # answers

    def chat(self, provider_id: str, request: ChatRequest) -> AsyncGenerator[list[Part], None]:
        """One answer: a list of parts whenever the network brought some, at the end of which stands Finish.

        Raises NotFound at once and ProviderFailed while it runs, after the parts that came before. Close it
        (contextlib.aclosing): when it is closed or cancelled, so is the connection. It waits as long as the server
        does; deadlines are the reader's.
        """
        provider = self.get(provider_id)
        body = {name: value for name, value in request.params.items() if value is not None}
        body |= {"model": request.model, "messages": request.messages}
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        return self._embedded(provider, body) if provider.kind == "embedded" else self._stream(provider, body)

    async def _embedded(self, provider: Provider, body: dict[str, Any]) -> AsyncGenerator[list[Part], None]:
        async with self._engine.use(body["model"]) as endpoint:
            local = replace(provider, url=endpoint.url, api_key=endpoint.api_key)
            body |= {"model": endpoint.model_id, "return_progress": True}
            async with aclosing(self._stream(local, body)) as answer:
                async for parts in answer:
                    yield parts

    async def _stream(self, provider: Provider, body: dict[str, Any]) -> AsyncGenerator[list[Part], None]:
        wire = Wire(provider)
        async with self._open(provider, "POST", f"{_base(provider)}/chat/completions", body) as response:
            kind = response.headers.get("content-type", "text/event-stream").lower()
            if response.status_code != 200 or not kind.startswith("text/event-stream"):
                refused = await _read(response, ERROR_LIMIT)
                raise _refused(provider, response.status_code, refused, "a stream of events")
            broken = False
            async with aclosing(_reads(response)) as reads:
                try:
                    while not wire.over:
                        data = await (anext(reads, b"") if wire.finish is None else _soon(reads))
                        if not data:
                            break
                        if parts := wire.feed(data):
                            yield parts
                except httpx.TransportError:
                    broken = True
                if parts := wire.end(broken):
                    yield parts
                if wire.failure:
                    raise wire.failure
                with suppress(TimeoutError, httpx.TransportError):
                    async with asyncio.timeout(LINGER_SECONDS):
                        async for _ in reads:
                            pass

    # HTTP

    async def _fetch(
        self, provider: Provider, method: str, path: str, body: dict[str, Any] | None = None
    ) -> tuple[int, bytes]:
        """Return the status and the body, cut at LISTING_LIMIT."""
        root = _base(provider) if provider.kind == "openai" else _base(provider).removesuffix("/v1")
        async with self._open(provider, method, root + path, body) as response:
            return response.status_code, await _read(response, LISTING_LIMIT)

    @asynccontextmanager
    async def _open(
        self, provider: Provider, method: str, url: str, body: dict[str, Any] | None
    ) -> AsyncIterator[httpx.Response]:
        """The answer, when its head has come; closed at the end, whatever that is.

        Without httpx's client: its cookies, redirects and sign-ins are not wanted here, and take a tenth of a millisecond.
        """
        headers = dict(HEADERS)
        if provider.api_key:
            headers["authorization"] = f"Bearer {provider.api_key}"
        if body is not None:
            headers["content-type"] = "application/json"
        content = None if body is None else msgspec.json.encode(body)
        request = httpx.Request(method, url, headers=headers, content=content)
        response = None
        try:
            try:
                response = await self._transport.handle_async_request(request)
            except httpx.ConnectError:  # nothing was sent, and a server that is being restarted may be back
                response = await self._transport.handle_async_request(request)
            if response.headers.get("content-encoding", "identity") != "identity":
                raise ProviderFailed("PROVIDER_ERROR", f"{provider.name} compresses its answers and should not.")
            yield response
        except httpx.TransportError as error:
            raise _unreached(provider, error) from error
        finally:
            if response is not None:
                await response.aclose()


def _base(provider: Provider) -> str:
    """What precedes /chat/completions."""
    if provider.kind == "openai" and urlsplit(provider.url).path:
        return provider.url
    return f"{provider.url.removesuffix('/v1')}/v1"


def _reads(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    """Return the transport's own generator of the body. response.aiter_raw() would add two more around it, for each token."""
    assert isinstance(response.stream, AsyncIterable)
    reads = aiter(response.stream)
    assert isinstance(reads, AsyncGenerator)
    return reads


async def _soon(reads: AsyncGenerator[bytes, None]) -> bytes:
    """The next read, unless none comes in time; some servers never end what they have finished."""
    with suppress(TimeoutError):
        async with asyncio.timeout(USAGE_SECONDS):
            return await anext(reads, b"")
    return b""


async def _read(response: httpx.Response, limit: int) -> bytes:
    data = bytearray()
    async with aclosing(_reads(response)) as reads:
        async for piece in reads:
            data += piece
            if len(data) > limit:
                break
    return bytes(data[:limit])


def _unreached(provider: Provider, error: httpx.TransportError) -> ProviderFailed:
    """Map a failed connection to a ProviderFailed. The system's words may contain the address, so they go into its detail."""
    detail = f"{provider.url}: {shown(str(error))}"
    if isinstance(error, httpx.ConnectTimeout):
        what = f"{provider.name} did not answer within {CONNECT_SECONDS:.0f} s. Is its server running?"
        return ProviderFailed("PROVIDER_UNREACHABLE", what, detail)
    if isinstance(error, httpx.ConnectError):
        what = f"{provider.name} cannot be reached. Is its server running?"
        return ProviderFailed("PROVIDER_UNREACHABLE", what, detail)
    return ProviderFailed("PROVIDER_ERROR", f"{provider.name} broke the connection off: {shown(str(error))}.", detail)


def _refused(provider: Provider, status: int, body: bytes, wanted: str) -> ProviderFailed:
    """Map an unexpected response to a ProviderFailed."""
    payload = loads(body)
    said_no = status != 200 or _at(payload, "error") or _at(payload, "object") == "error"
    if said_no or body.lstrip().startswith(b"<"):
        return refusal(provider, body, status)
    if len(body) == LISTING_LIMIT:
        return ProviderFailed(
            "PROVIDER_ERROR", f"{provider.name} sent a list of models of over {LISTING_LIMIT >> 20} MiB."
        )
    what = f"{provider.name} did not answer with {wanted}. Check the url of the provider {provider.id}."
    return ProviderFailed("PROVIDER_ERROR", what)


# lists of models, of which nothing is believed


class _Listing(msgspec.Struct):
    models: msgspec.Raw = msgspec.Raw(b"null")
    data: msgspec.Raw = msgspec.Raw(b"null")


def _entries(body: bytes, key: str) -> list[msgspec.Raw] | None:
    """Split a list of models into its entries. None: it is not such a list."""
    with suppress(ValueError, RecursionError):
        listing = msgspec.json.decode(body.decode("utf-8", "replace"), type=_Listing)
        return msgspec.json.decode(getattr(listing, key), type=list[msgspec.Raw])[:MAX_MODELS]
    return None


async def _decoded(entries: list[msgspec.Raw]) -> AsyncIterator[Any]:
    """Decode the entries, and let the event loop run other tasks every UNTYPED_BYTES."""
    size = 0
    for entry in entries:
        size += len(entry)
        if size > UNTYPED_BYTES:
            size = 0
            await asyncio.sleep(0)
        yield loads(bytes(entry))
