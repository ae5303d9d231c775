"""The handlers of /v1, the OpenAI-compatible API for other programs.

What a client sends reaches the model server unchanged, byte for byte, except for the name of the model and the wish for a stream.
Documents in `file` parts become text (chat/file_parts.py).
Errors have OpenAI's shape (middleware.openai_error).
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Raw
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..chat import file_parts
from ..chat.events import Write
from ..chat.hub import Hub
from ..chat.relay import COMMENT, Relay
from ..errors import Invalid, ProviderFailed, UnsupportedMediaType
from ..providers import ModelServer
from ..queries import tokens
from . import responses, schemas
from .completion import Completion
from .endpoint import EventStream, Later, Request, decode_body, while_connected
from .middleware import openai_error

REQUEST_BYTES = 32 * 1024 * 1024
FIELDS = 200_000  # of a request and all in it: a million take the event loop 0.2 s
OPTION_BYTES = 64 * 1024  # of a field that Fireside itself reads
MODELS_AGE_SECONDS = 5.0  # of a list of models that needs no new look
M = TypeVar("M", bound=schemas.ModelRequest)
Json = Annotated[Response, dict[str, Any]]
Chat = Annotated[Response, dict[str, Any], "text/event-stream"]

_decode_object = msgspec.json.Decoder(dict[str, Raw]).decode


async def read_object(request: Request) -> dict[str, Raw]:
    """Return the fields of the body, undecoded. Raises Invalid, BodyTooLarge, UnsupportedMediaType."""
    body = b"".join([chunk async for chunk in request.chunks(REQUEST_BYTES)])
    if request.content_type != "application/json":
        raise UnsupportedMediaType
    if body.count(b'":') > FIELDS:
        raise Invalid(f"The request must have at most {FIELDS:,} fields.")
    try:
        if not body.isascii():
            body.decode()  # msgspec does not check that Raw values are UTF-8
        return _decode_object(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Invalid("The request body must be a JSON object.") from None


async def list_models(request: Request) -> responses.OpenAIModels:
    catalog = await request.app_state.providers.catalog(MODELS_AGE_SECONDS)
    found = [(entry["provider_id"], model["id"]) for entry in catalog for model in entry["models"]]
    return responses.OpenAIModels([_model(*names) for names in found])


async def get_model(request: Request, model_id: str) -> responses.OpenAIModel:
    providers = request.app_state.providers
    server, model = await providers.resolve(model_id)
    if model not in [one.id for one in await server.models(MODELS_AGE_SECONDS)]:
        raise ProviderFailed("MODEL_NOT_FOUND", f"There is no model {model_id}. GET /v1/models lists all.")
    return _model(server.id, model)


def _model(provider_id: str, model: str) -> responses.OpenAIModel:
    return responses.OpenAIModel(f"{provider_id}/{model}", owned_by=provider_id)


async def embed(request: Request) -> Json:
    state, token = request.app_state, request.token
    assert token is not None
    fields = await read_object(request)
    server, model = await state.providers.resolve(_options(fields, schemas.ModelRequest).model)
    await state.database.write_unsynced(tokens.count_request, token.id)

    async def respond() -> Response:
        try:
            async with asyncio.timeout(state.config.first_token_seconds):
                body = await server.backend.embed(fields | {"model": model})
        except TimeoutError:
            message = f"The model server did not answer within {state.config.first_token_seconds:g} s."
            raise ProviderFailed("PROVIDER_TIMEOUT", message) from None
        return Response(body, media_type="application/json")

    return Later(respond)


def _options(fields: dict[str, Raw], kind: type[M]) -> M:
    """Return the fields that Fireside reads itself. Raises Invalid."""
    given = {name: fields[name] for name in kind.__struct_fields__ if name in fields}
    if long := [name for name, value in given.items() if len(value) > OPTION_BYTES]:
        raise Invalid(f"{long[0]} is too long.")
    options: M = decode_body(msgspec.json.encode(given), kind)
    return options


# ---- chats


async def chat(request: Request) -> Chat:
    state, token = request.app_state, request.token
    assert token is not None
    fields = await read_object(request)
    options = _options(fields, schemas.ChatOptions)
    server, model = await state.providers.resolve(options.model)
    wants_usage = not options.stream or bool((options.stream_options or {}).get("include_usage"))
    replaced = await _replace_files(request, fields, server, model)
    relay = await state.hub.relay(request.user_id, token, server, model, fields, wants_usage, replaced)
    if replaced:
        state.reader.begin(request.user_id)  # those that were recorded
    headers = {"X-Fireside-Generation-Id": relay.id}
    if relay.is_recorded:
        headers["X-Fireside-Conversation-Id"] = str(relay.job.conversation_id)
    if options.stream:
        return ChatStream(state.hub, relay, headers, request.write_body)
    return Later(lambda: _complete(state.hub, relay, headers))


async def _replace_files(
    request: Request, fields: dict[str, Raw], server: ModelServer, model: str
) -> file_parts.Replaced | None:
    """Read the files in the messages. Raises Invalid and ProviderFailed, and ClientDisconnect when the program disconnects."""
    messages = bytes(fields.get("messages", b""))
    if not file_parts.has_files(messages):
        return None
    with contextlib.suppress(ProviderFailed):  # the answer will say so
        await server.models(MODELS_AGE_SECONDS)
    known = server.known(model)
    context_length = known.context_length if known else None
    database, reader = request.database, request.app_state.reader
    work = file_parts.replace(database, reader, request.user_id, messages, context_length)
    return await while_connected(request.receive, work)


async def _complete(hub: Hub, relay: Relay, headers: dict[str, str]) -> Response:
    """Return the whole answer, put together from its chunks."""
    completion = Completion()
    try:
        async for items in relay.chunks.read(hub.config.ping_seconds):
            for item in items:
                if not item.startswith(COMMENT):
                    completion.add(item)
    finally:
        await hub.abandon(relay)
    if relay.failure:
        raise relay.failure
    return Response(msgspec.json.encode(completion.result()), headers=headers, media_type="application/json")


class ChatStream(EventStream):
    """The chunks of an answer as the model server sent them. An error before the first of them is a response of its own."""

    def __init__(self, hub: Hub, relay: Relay, headers: dict[str, str], write: Write | None) -> None:
        super().__init__(_events(hub, relay, write), headers)
        self._hub = hub
        self._relay = relay

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._hub.abandon(self._relay)

    async def stream_response(self, send: Send) -> None:
        events = aiter(self.body_iterator)
        first = await anext(events)  # raises the error of an answer without a chunk
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": first, "more_body": True})
        async for event in events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _events(hub: Hub, relay: Relay, write: Write | None) -> AsyncIterator[bytes]:
    begun = False
    write_items = (lambda items: write(_frames(items))) if write else None
    async for items in relay.chunks.read(hub.config.ping_seconds, write_items):
        begun = True
        yield _frames(items)
    if relay.failure and not begun:
        raise relay.failure
    yield _frame(json.dumps(openai_error(relay.failure)[1]).encode()) if relay.failure else _frame(b"[DONE]")


def _frames(items: list[bytes]) -> bytes:
    return b"".join(map(_frame, items))


def _frame(item: bytes) -> bytes:
    if item.startswith(COMMENT):
        return item + b"\n\n"
    if b"\n" in item:  # JSON may stand on several lines
        item = item.replace(b"\n", b"\ndata: ")
    return b"data: " + item + b"\n\n"
