"""Handlers of messages: write, edit, delete, branch, and what was sent for an answer."""

import asyncio
from typing import Annotated, Any

import msgspec
from starlette.responses import Response

from ...chat.prompt import Forecast, forecast
from ...chat.receipt import Receipt
from ...errors import Invalid
from ...queries import attachments, bin, branches, conversations, messages, queued, turns
from ...queries.types import Image, image_type
from .. import responses, schemas
from ..endpoint import LONG_READ_SECONDS, Request, while_connected
from ..renderer import GrowingText

MESSAGES_PER_PAGE = 200


async def list_messages(
    request: Request, conversation_id: int, query: schemas.MessageQuery
) -> Annotated[Any, list[messages.Message]]:
    before = query.before or None
    if query.limit:
        return await _messages(request, conversation_id, query.limit, before, query.render)
    pages = []  # one query for 50,000 messages would keep other requests waiting
    while page := await _messages(request, conversation_id, MESSAGES_PER_PAGE, before, query.render):
        pages.append(msgspec.json.encode(page)[1:-1])
        before = page[0].id
        if len(page) < MESSAGES_PER_PAGE:
            break
    return Response(b"[" + b",".join(reversed(pages)) + b"]", media_type="application/json")


async def get_context(request: Request, query: schemas.ContextQuery, conversation_id: int | None = None) -> Forecast:
    """Forecast the next prompt of a conversation, or of a new one."""
    prompt, params = await request.read_long(LONG_READ_SECONDS, turns.get_next_prompt, conversation_id)
    server = request.app_state.providers.find(query.provider_id)
    model = server.known(query.model or "") if server else None
    context_length = model.context_length if model is not None else None
    arguments = (prompt, context_length, params.get("max_tokens"), query.question_tokens)
    return await asyncio.to_thread(forecast, *arguments)  # a long conversation takes a second


async def _messages(
    request: Request, conversation_id: int, limit: int, before: int | None, render: bool
) -> list[messages.Message]:
    page = await request.app_state.hub.messages(request.user_id, conversation_id, limit, before)
    return await _rendered(request, page) if render else page


async def _rendered(request: Request, page: list[messages.Message]) -> list[messages.Message]:
    texts = ["" if message.status == "generating" else message.content for message in page]
    renderer = request.app_state.renderer
    rendered = await while_connected(request.receive, renderer.finished(request.user_id, texts))
    for message, blocks in zip(page, rendered, strict=True):
        message.blocks = blocks
    return page


async def add_message(request: Request, conversation_id: int, body: schemas.AddedMessage) -> responses.AddedMessageIds:
    fields = (body.client_id, check_message(body), request.max_bytes, body.attachment_ids)
    if not body.queue:
        message_id = await request.write(messages.add_message, conversation_id, body.content, body.parent_id, *fields)
        return responses.AddedMessageIds(message_id, conversation_id)
    if body.parent_id is not msgspec.UNSET:
        raise Invalid("parent_id: a queued message follows the answer before it. Leave parent_id out.")
    queued_id, sent_id = await request.write(queued.add_queued, conversation_id, body.content, *fields)
    await request.app_state.hub.begin_next(request.user_id, conversation_id)
    return responses.AddedMessageIds(sent_id, conversation_id, msgspec.UNSET if queued_id is None else queued_id)


async def change_queued(
    request: Request, conversation_id: int, queued_id: int, body: schemas.QueuedContent
) -> responses.Confirmation:
    fields = (body.content, request.max_bytes, body.attachment_ids)
    await request.write(queued.change_queued, conversation_id, queued_id, *fields)
    await attachments.remove_released(request.database)
    return responses.Confirmation("Message changed")


async def remove_queued(request: Request, conversation_id: int, queued_id: int) -> responses.Confirmation:
    await request.write(queued.remove_queued, conversation_id, queued_id)
    await attachments.remove_released(request.database)
    return responses.Confirmation("Message removed")


async def get_message(
    request: Request, conversation_id: int, message_id: int, query: schemas.RenderQuery
) -> messages.Message:
    message = await request.app_state.hub.message(request.user_id, conversation_id, message_id)
    return (await _rendered(request, [message]))[0] if query.render else message


async def edit_answer(
    request: Request, conversation_id: int, message_id: int, body: schemas.EditedAnswer
) -> responses.NewMessageIds:
    documents = await request.read(messages.list_documents_above, conversation_id, message_id)
    citations = await request.app_state.hub.checker.check(request.user_id, body.content, documents)
    fields = (body.content, body.client_id, request.max_bytes, citations)
    version_id = await request.write(messages.edit_answer, conversation_id, message_id, *fields)
    return responses.NewMessageIds(version_id, conversation_id)


async def delete_message(request: Request, conversation_id: int, message_id: int) -> responses.MessageDeleted:
    deleted = await request.write(bin.delete_message, conversation_id, message_id)
    return responses.MessageDeleted("Message deleted", deleted.deleted_id, deleted.active_message_id)


async def branch(request: Request, conversation_id: int, body: schemas.BranchRequest) -> conversations.Conversation:
    fields = (conversation_id, body.message_id, body.client_id, request.max_bytes)
    return await branches.branch(request.database, request.user_id, *fields)


def check_message(message: schemas.NewMessage, path: str = "") -> list[Image]:
    """Return the images. Raises Invalid for an empty message, and for an image whose first bytes contradict its type."""
    if not (message.content or message.images or message.attachment_ids):
        raise Invalid(f"{path}content must not be empty.")
    for index, image in enumerate(message.images):
        if image_type(image.data[:12]) != image.media_type:
            raise Invalid(f"{path}images[{index}].data is not {image.media_type}.")
    return [Image(image.media_type, image.data) for image in message.images]


async def get_image(request: Request, image_id: int) -> Annotated[Response, "image/png", "image/jpeg", "image/webp"]:
    image = await request.read(attachments.get_image, image_id)
    return Response(image.data, media_type=image.media_type)


async def select_version(request: Request, conversation_id: int, body: schemas.Selection) -> responses.VersionSelected:
    leaf = await request.write(messages.set_active, conversation_id, body.message_id)
    return responses.VersionSelected("Version selected", leaf)


async def get_sent_request(request: Request, message_id: int) -> Annotated[Response, Receipt]:
    content = await request.app_state.receipts.encoded(request.user_id, message_id, with_url=request.is_admin)
    return Response(content, media_type="application/json")


async def render_markdown(request: Request, body: schemas.Markdown) -> GrowingText:
    return await while_connected(request.receive, request.app_state.renderer.growing(request.user_id, body.text))
