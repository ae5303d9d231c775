"""Handlers of answers: stream, retry, continue, send a queued message, cancel."""

from typing import Annotated, Any

from starlette.responses import Response

from ... import db
from ...chat.hub import BeginQuery
from ...queries import generations, queued
from .. import responses, schemas
from ..endpoint import EventStream, Request, read_query

Events = Annotated[Response, "text/event-stream"]


async def _follow(request: Request, generation_id: str, after: int = 0, token_id: int | None = None) -> Response:
    """Return the stream of an answer, or 204 for a reader that has its last event: an EventSource then stops reconnecting."""
    hub = request.app_state.hub
    events = await hub.follow(request.user_id, generation_id, after, token_id, request.write_body)
    return Response(status_code=204) if events is None else EventStream(events)


async def _begin(
    request: Request,
    conversation_id: int,
    body: schemas.AnswerRequest,
    query: BeginQuery = generations.begin_answer,
    **more: Any,
) -> responses.NewAnswerIds:
    options = generations.AnswerRequest(body.provider_id, body.model, body.given(), **more)
    answer = await request.app_state.hub.answer(request.user_id, conversation_id, options, query)
    return responses.NewAnswerIds(answer.message_id, conversation_id, answer.generation_id)


async def stream(request: Request, conversation_id: int, body: schemas.AnswerRequest) -> Events:
    return await _follow(request, (await _begin(request, conversation_id, body)).generation_id)


async def retry(request: Request, body: schemas.RetryRequest) -> responses.NewAnswerIds:
    return await _begin(request, body.conversation_id, body, retry=True, message_id=body.message_id)


async def continue_answer(request: Request, body: schemas.ContinueRequest) -> responses.NewAnswerIds:
    query = generations.begin_continuation
    return await _begin(request, body.conversation_id, body, query, message_id=body.message_id)


async def send_queued(
    request: Request, conversation_id: int, queued_id: int, body: schemas.AnswerRequest
) -> responses.NewAnswerIds:
    def query(conn: db.Connection, user_id: int, conversation_id: int, *choice: Any) -> generations.Answer:
        return queued.send_queued(conn, user_id, conversation_id, queued_id, *choice)

    return await _begin(request, conversation_id, body, query)


async def cancel(request: Request, generation_id: str) -> responses.Confirmation:
    await request.app_state.hub.cancel(request.user_id, generation_id)
    return responses.Confirmation("Generation canceled")


async def resume(request: Request, generation_id: str, query: schemas.ResumeQuery) -> Events:
    after = query.after
    if last := request.headers.get("last-event-id"):
        after = read_query({"Last-Event-ID": last}, schemas.ResumeHeader).after
    return await _follow(request, generation_id, after, request.token.id if request.token else None)
