"""The OpenAI-compatible API: lists of models, and an answer as an async generator of its parts."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from pathlib import PureWindowsPath
from typing import Any, TypeGuard
from urllib.parse import urlsplit

import httpx
import msgspec

from ..config import Provider
from ..errors import Invalid, ProviderFailed
from .answer import AnswerParser, Part, Sent
from .failures import unexpected_response
from .http import Connections, fetch, open_response, read_body
from .loose import at, count_at, decode_small

USAGE_SECONDS = 2.0  # that usage and [DONE] may come after a finish_reason
END_SECONDS = 0.2  # that the end of the body may come after [DONE]; LM Studio logs an earlier close as a cancellation
ERROR_BYTES = PROPS_BYTES = 64 * 1024
LIST_BYTES = 2 * 1024 * 1024  # of a list of models: a hostile one of this size takes 40 ms to split
EMBEDDING_BYTES = 64 * 1024 * 1024
LIST_MODELS = 1000
NO_PATH_STATUSES = (404, 405, 501)
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")  # values of `reasoning_effort`
DOWNLOAD_STATUSES = ("downloading", "paused", "completed", "failed", "already_downloaded")
NAME_CHARACTERS = 300  # of a model's id, as in web.schemas.Name

Take = Callable[[list[Part]], None]


class Model(msgspec.Struct, frozen=True):
    """A model that a server offers. None: the server does not say."""

    id: str
    label: str
    state: str | None = None  # loaded, loading, not-loaded
    context_length: int | None = None  # tokens, of the loaded instance
    max_context_length: int | None = None
    vision: bool | None = None
    tools: bool | None = None
    quantization: str | None = None
    size_bytes: int | None = None
    reasoning_efforts: list[str] | None = None  # those of EFFORTS that it takes
    parallel: int | None = None  # answers at a time of the loaded instance
    variants: list[str] | None = None  # names of the quantizations that are on the disk


class ModelDownload(msgspec.Struct, frozen=True):
    """A model that a server downloads. None: the server does not say."""

    model: str
    status: str  # one of DOWNLOAD_STATUSES
    downloaded_bytes: int | None = None
    total_bytes: int | None = None
    bytes_per_second: int | None = None


class OpenAI:
    """A server with the OpenAI-compatible API. Other kinds of model servers override the methods in which they differ.

    All methods raise ProviderFailed.
    """

    reports_loading = False  # whether its list of models says which one is being loaded

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        self.is_llama_cpp = False  # by its list of models
        self._connections = Connections()
        self.jobs: dict[str, str] = {}  # names of the models that are downloaded, by the id of the job, the newest last

    @property
    def chat_url(self) -> str | None:
        """The address that answers are requested from; None if only Fireside can reach it."""
        return _chat_url(self.provider)

    @property
    def continues_answers(self) -> bool:
        """Whether a request that ends with an assistant message lets the model go on with it."""
        return self.is_llama_cpp

    async def models(self) -> list[Model] | None:
        """Return the models that the settings name, otherwise those that the server lists, or None if it lists none."""
        names = self.provider.models
        try:
            entries = await fetch_entries(self.provider, f"{base_url(self.provider)}/models", "data")
        except ProviderFailed as failure:
            if not names or failure.code != "PROVIDER_ERROR" or failure.detail:
                raise
            entries = None
        self.is_llama_cpp = any(at(entry, "owned_by") == "llamacpp" for entry in entries or [])
        listed = parse_models(entries or [], _model)
        if self.is_llama_cpp and len(listed) == 1:
            efforts = reasoning_efforts(await self._chat_template())
            listed = [msgspec.structs.replace(listed[0], reasoning_efforts=efforts)]
        if names:
            details = {model.id: model for model in listed}
            return [details.get(name) or Model(name, name) for name in names]
        return listed or None

    async def _chat_template(self) -> Any:
        with suppress(ProviderFailed):
            url = f"{base_url(self.provider).removesuffix('/v1')}/props"
            return at(decode_small((await fetch(self.provider, "GET", url, PROPS_BYTES))[1]), "chat_template")

    async def load(self, model: str, options: dict[str, Any]) -> None:
        """Return when the model is loaded with these options of web.schemas.ModelLoad. Raises Invalid if that is not possible."""
        raise Invalid(f"{self.provider.name} loads and unloads models by itself.")

    async def unload(self, model: str) -> None:
        """Return when no instance of the model is loaded. Raises Invalid if that is not possible."""
        raise Invalid(f"{self.provider.name} loads and unloads models by itself.")

    async def download(self, model: str, quantization: str | None) -> ModelDownload:
        """Start to download a model. Raises Invalid if that is not possible."""
        raise Invalid(f"{self.provider.name} downloads no models for Fireside.")

    async def downloads(self) -> list[ModelDownload]:
        """Return the downloads that `download` has started, with their progress."""
        return []

    async def can_start(self) -> bool:
        """Return whether `start` can start the server."""
        return False

    async def start(self) -> None:
        raise ProviderFailed("PROVIDER_UNREACHABLE", "Only LM Studio on this computer can be started from here.")

    async def embed(self, body: dict[str, Any]) -> bytes:
        """Return the response to a request for embeddings. Raises Invalid if the server makes none."""
        status, response = await fetch(
            self.provider, "POST", f"{base_url(self.provider)}/embeddings", EMBEDDING_BYTES, body
        )
        if status != 200 or not response.lstrip().startswith(b"{") or b'"data"' not in response:
            raise unexpected_response(self.provider, status, response, "embeddings")
        if len(response) == EMBEDDING_BYTES:
            message = (
                f"{self.provider.name} sent over {EMBEDDING_BYTES >> 20} MiB of embeddings. Send fewer texts at a time."
            )
            raise ProviderFailed("PROVIDER_ERROR", message)
        return response

    def chat(
        self, body: dict[str, Any], for_program: bool = False, take: Take | None = None
    ) -> AsyncGenerator[list[Part], None]:
        """Send a chat request; see `stream_answer`. That of another program is sent as it is."""
        if self.is_llama_cpp and not for_program:
            body = for_llama_cpp(body)
        return stream_answer(self.provider, body, for_program, take, self._connections)

    def connect_early(self) -> None:
        """Open a connection for an answer that will soon be requested."""
        if self.provider.url:
            self._connections.open(_chat_url(self.provider))

    def close_idle(self) -> None:
        """Close the connections that no answer uses."""
        self._connections.close()


def for_llama_cpp(body: dict[str, Any]) -> dict[str, Any]:
    """Return a chat request with what only llama.cpp takes: progress of the prompt, and the effort as its templates name it."""
    body = body | {"return_progress": True}
    if effort := body.pop("reasoning_effort", None):
        options = {"enable_thinking": effort != "none", "reasoning_effort": effort}
        body["chat_template_kwargs"] = options | body.get("chat_template_kwargs", {})
    return body


def reasoning_efforts(chat_template: Any) -> list[str] | None:
    """Return the efforts between which a chat template distinguishes."""
    if not isinstance(chat_template, str):
        return None
    if "enable_thinking" in chat_template:
        return ["none", "medium"]
    return ["low", "medium", "high"] if "reasoning_effort" in chat_template else []


def base_url(provider: Provider) -> str:
    """Return what precedes /chat/completions."""
    if provider.kind == "openai" and urlsplit(provider.url).path:
        return provider.url
    return f"{provider.url.removesuffix('/v1')}/v1"


def _chat_url(provider: Provider) -> str:
    return f"{base_url(provider)}/chat/completions"


# ---- lists of models. Every field may be missing or have any type.


class _Lists(msgspec.Struct):
    models: msgspec.Raw = msgspec.Raw(b"null")  # LM Studio
    data: msgspec.Raw = msgspec.Raw(b"null")  # OpenAI


async def fetch_entries(provider: Provider, url: str, key: str) -> list[Any] | None:
    """Return the decoded entries of the list under `key`, None for an entry that is too large. Raises ProviderFailed.

    Return None if the server has no such path.
    """
    status, body = await fetch(provider, "GET", url, LIST_BYTES)
    if status in NO_PATH_STATUSES:
        return None
    try:
        lists = msgspec.json.decode(body.decode("utf-8", "replace"), type=_Lists)
        raw = msgspec.json.decode(getattr(lists, key), type=list[msgspec.Raw])[:LIST_MODELS]
    except (ValueError, RecursionError):
        raw = None
    if status == 200 and len(body) == LIST_BYTES:
        message = f"{provider.name} sent a list of models of over {LIST_BYTES >> 20} MiB."
        raise ProviderFailed("PROVIDER_ERROR", message)
    if status != 200 or raw is None:
        raise unexpected_response(provider, status, body, "a list of models")
    entries = []
    for entry in raw:
        entries.append(decode_small(bytes(entry)))
        await asyncio.sleep(0)  # other tasks run: a hostile list takes 0.3 s to decode
    return entries


def parse_models(entries: list[Any], parse: Callable[[Any], Model | None]) -> list[Model]:
    return [model for entry in entries if (model := parse(entry))]


def is_name(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value) <= NAME_CHARACTERS


def name_at(value: Any, *path: str) -> str | None:
    """Return the string at this path if it is usable as a name."""
    found = at(value, *path)
    return found if is_name(found) else None


def _model(entry: Any) -> Model | None:
    """llama.cpp has the context length in `meta`, vLLM in `max_model_len`; LM Studio and Ollama do not have it.

    llama.cpp and OpenRouter have `architecture`.
    """
    identity = name_at(entry, "id")
    if identity is None or "embed" in identity.lower():
        return None
    modalities = at(entry, "architecture", "input_modalities")
    length = count_at(entry, "meta", "n_ctx") or count_at(entry, "max_model_len") or None
    return Model(
        id=identity,
        label=PureWindowsPath(identity).stem if identity.lower().endswith(".gguf") else identity,
        context_length=length,
        max_context_length=count_at(entry, "meta", "n_ctx_train") or length,
        vision="image" in modalities if isinstance(modalities, list) else None,
        quantization=name_at(entry, "meta", "ftype"),
        size_bytes=count_at(entry, "meta", "size") or None,
    )


# ---- an answer


async def stream_answer(
    provider: Provider,
    body: dict[str, Any],
    for_program: bool = False,
    take: Take | None = None,
    connections: Connections | None = None,
) -> AsyncGenerator[list[Part], None]:
    """Yield Sent, then a list of parts whenever the network brought some; the last one is Finish. Raises ProviderFailed.

    While the next list is waited for, `take` gets what arrives, without a change of tasks. What it raises, the generator raises.

    Close it (contextlib.aclosing): when it is closed or cancelled, so is the connection. It waits for as long as the
    server does.
    """
    parser = AnswerParser(provider, for_program)
    content = msgspec.json.encode(body)

    def take_data(data: bytes) -> bool:
        assert take is not None
        if parts := parser.feed(data):
            take(parts)
        return not parser.finished and parser.finish_reason is None

    if not for_program:
        yield [Sent(body, hashlib.sha256(content).hexdigest())]
    async with open_response(provider, "POST", _chat_url(provider), content, connections) as response:
        content_type = response.headers.get("content-type", "text/event-stream").lower()
        if response.status != 200 or not content_type.startswith("text/event-stream"):
            error = await read_body(response, ERROR_BYTES)
            raise unexpected_response(provider, response.status, error, "a stream of events")
        disconnected = False
        try:
            while not parser.finished:
                if parser.finish_reason is None:
                    data = await response.read(take_data if take else None)
                else:  # some servers do not end what they have finished
                    async with asyncio.timeout(USAGE_SECONDS):
                        data = await response.read()
                if data is None:
                    break
                if data and (parts := parser.feed(data)):
                    yield parts
        except TimeoutError:
            pass
        except httpx.TransportError:
            disconnected = True
        if parts := parser.end(disconnected):
            yield parts
        if parser.failure:
            raise parser.failure
        with suppress(TimeoutError, httpx.TransportError):
            async with asyncio.timeout(END_SECONDS):
                while await response.read() is not None:
                    pass
