"""The handlers of /v1, the OpenAI-compatible API for other programs.

What a client sends reaches the model server unchanged, byte for byte, except for the name of the model and the wish for a stream.
Errors have OpenAI's shape (middleware.openai_error).
"""

import asyncio
from typing import Annotated, Any

import msgspec
from msgspec import Raw
from starlette.responses import Response

from ..errors import Invalid, ProviderFailed, UnsupportedMediaType
from ..queries import tokens
from . import schemas
from .endpoint import Later, Request

REQUEST_BYTES = 32 * 1024 * 1024
MODELS_AGE_SECONDS = 5.0  # of a list of models that needs no new look
Json = Annotated[Response, dict[str, Any]]

_decode_object = msgspec.json.Decoder(dict[str, Raw]).decode


async def read_object(request: Request) -> dict[str, Raw]:
    """Return the fields of the body, undecoded. Raises Invalid, BodyTooLarge, UnsupportedMediaType."""
    body = b"".join([chunk async for chunk in request.chunks(REQUEST_BYTES)])
    if request.content_type != "application/json":
        raise UnsupportedMediaType
    try:
        return _decode_object(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Invalid("The request body must be a JSON object.") from None


async def list_models(request: Request) -> schemas.OpenAIModels:
    catalog = await request.app_state.providers.catalog(MODELS_AGE_SECONDS)
    found = [(entry["provider_id"], model["id"]) for entry in catalog for model in entry["models"]]
    return schemas.OpenAIModels([_model(*names) for names in found])


async def get_model(request: Request, model_id: str) -> schemas.OpenAIModel:
    providers = request.app_state.providers
    server, model = await providers.resolve(model_id)
    if model not in [one.id for one in await server.models(MODELS_AGE_SECONDS)]:
        raise ProviderFailed("MODEL_NOT_FOUND", f"There is no model {model_id}. GET /v1/models lists all.")
    return _model(server.id, model)


def _model(provider_id: str, model: str) -> schemas.OpenAIModel:
    return schemas.OpenAIModel(f"{provider_id}/{model}", owned_by=provider_id)


async def embed(request: Request) -> Json:
    state, token = request.app_state, request.token
    assert token is not None
    fields = await read_object(request)
    server, model = await state.providers.resolve(model_name(fields))
    await state.database.write_unsynced(tokens.count_request, token.id)

    async def respond() -> Response:
        try:
            async with asyncio.timeout(state.config.first_token_seconds):
                body = await server.embed(fields | {"model": model})
        except TimeoutError:
            message = f"The model server did not answer within {state.config.first_token_seconds:g} s."
            raise ProviderFailed("PROVIDER_TIMEOUT", message) from None
        return Response(body, media_type="application/json")

    return Later(respond)


def model_name(fields: dict[str, Raw]) -> str:
    """Return the field `model`, "" when it is missing. Raises Invalid."""
    try:
        return msgspec.json.decode(fields.get("model", b'""'), type=schemas.ModelName)
    except msgspec.ValidationError:
        raise Invalid("model must be a string of at most 300 characters.") from None
