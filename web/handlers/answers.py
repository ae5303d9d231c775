"""Handlers of answers: stream, retry, continue, cancel."""

import contextlib
from collections.abc import AsyncIterator
from typing import Annotated

from starlette.requests import ClientDisconnect
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from ...queries import generations
from .. import schemas
from ..endpoint import Request, read_query, while_connected

Events = Annotated[Response, "text/event-stream"]


class EventStream(StreamingResponse):
    media_type = "text/event-stream"
    charset = "utf-8"

    def __init__(self, events: AsyncIterator[bytes]) -> None:
        super().__init__(events, headers={"X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.suppress(ClientDisconnect):
            await while_connected(receive, self.stream_response(send))


def _events(events: AsyncIterator[bytes] | None) -> Response:
    """Return the stream of an answer, or 204 for a reader that has its last event: an EventSource then stops reconnecting."""
    return Response(status_code=204) if events is None else EventStream(events)


async def stream(request: Request, conversation_id: int, body: schemas.AnswerRequest) -> Events:
    state = request.app_state
    options = generations.AnswerRequest(body.provider_id, body.model, body.given())
    found = await state.hub.answer(request.user_id, conversation_id, options)
    return _events(await state.hub.follow(request.user_id, found.generation_id))


async def retry(request: Request, body: schemas.RetryRequest) -> schemas.NewAnswerIds:
    options = generations.AnswerRequest(
        body.provider_id, body.model, body.given(), retry=True, message_id=body.message_id
    )
    begun = await request.app_state.hub.answer(request.user_id, body.conversation_id, options)
    return schemas.NewAnswerIds(begun.message_id, body.conversation_id, begun.generation_id)


async def continue_answer(request: Request, body: schemas.ContinueRequest) -> schemas.NewAnswerIds:
    options = generations.AnswerRequest(body.provider_id, body.model, body.given(), message_id=body.message_id)
    continued = await request.app_state.hub.answer(
        request.user_id, body.conversation_id, options, generations.begin_continuation
    )
    return schemas.NewAnswerIds(continued.message_id, body.conversation_id, continued.generation_id)


async def cancel(request: Request, generation_id: str) -> schemas.Confirmation:
    await request.app_state.hub.cancel(request.user_id, generation_id)
    return schemas.Confirmation("Generation canceled")


async def resume(request: Request, generation_id: str, query: schemas.ResumeQuery) -> Events:
    after = query.after
    if last := request.headers.get("last-event-id"):
        after = read_query({"Last-Event-ID": last}, schemas.ResumeHeader).after
    token_id = request.token.id if request.token else None
    return _events(await request.app_state.hub.follow(request.user_id, generation_id, after, token_id))
