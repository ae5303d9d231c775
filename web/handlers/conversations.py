"""Handlers of conversations: the list, the bin, search."""

import logging
from collections.abc import AsyncIterator
from typing import Annotated, Any

import msgspec
from starlette.responses import StreamingResponse

from ... import db
from ...errors import Invalid, StorageUnavailable
from ...queries import bin, conversations, messages, prompts, queued
from ...queries.search import find
from ...safety.logs import audit
from .. import responses, schemas
from ..endpoint import Request
from .messages import check_message

SEARCH_SECONDS = 2.0
CONVERSATIONS_PER_CHUNK = 100  # their system prompts may have 100,000 characters each
log = logging.getLogger("fireside.handlers")


async def get_defaults(request: Request) -> prompts.Defaults:
    return await request.read(prompts.get_effective_defaults)


async def change_defaults(request: Request, body: schemas.DefaultsChange) -> prompts.Defaults:
    return await request.write(prompts.set_defaults, msgspec.to_builtins(body))


async def create_conversation(request: Request, body: schemas.NewConversation) -> conversations.Conversation:
    message, fields = body.message, msgspec.to_builtins(msgspec.structs.replace(body, message=msgspec.UNSET))
    if body.title is None or not body.title.strip():
        del fields["title"]
    fields = _copy_preset(request, fields.pop("preset_id")) | fields
    if not isinstance(message, schemas.NewMessage):
        return await request.write(conversations.add_conversation, fields, request.max_bytes)
    images = check_message(message, "message.")
    question = (message.content, message.client_id, images, request.max_bytes, message.attachment_ids)
    return await request.write(messages.begin_conversation, fields, *question)


def _copy_preset(request: Request, preset_id: int | None) -> dict[str, Any]:
    """Return the fields that a new conversation copies from its preset: without the model if the model's server no longer has it."""
    preset = request.database.read_here(prompts.get_first_preset, request.user_id, preset_id)
    if preset is None:
        return {}
    copied = {"system_prompt": preset.system_prompt, "settings": msgspec.json.decode(preset.settings)}
    server = request.app_state.providers.find(preset.provider_id)
    if preset.model and not (server and server.lacks(preset.model)):
        copied |= {"provider_id": preset.provider_id, "model": preset.model}
    return copied


async def list_conversations(
    request: Request, query: schemas.ConversationQuery
) -> Annotated[Any, list[conversations.Conversation]]:
    by_name = query.sort == "name"
    folder = query.folder if isinstance(query.folder, int) else None
    filters = (query.q, query.limit or -1, query.before or None, query.pinned, query.deleted, folder, by_name)
    if query.limit and not query.q:
        return await request.read(conversations.list_conversations, *filters)
    ids = await request.read_long(SEARCH_SECONDS, conversations.find_conversations, *filters)
    return StreamingResponse(_conversations(request.database, ids), media_type="application/json")


async def _conversations(database: db.Database, ids: list[int]) -> AsyncIterator[bytes]:
    """Yield a JSON array in chunks, so that a long list keeps neither a reader nor the event loop busy."""
    separator = b"["
    for start in range(0, len(ids), CONVERSATIONS_PER_CHUNK):
        chunk = ids[start : start + CONVERSATIONS_PER_CHUNK]
        if found := await database.read(conversations.get_conversations, chunk):
            yield separator + msgspec.json.encode(found)[1:-1]
            separator = b","
    yield b"[]" if separator == b"[" else b"]"


async def get_conversation(request: Request, conversation_id: int) -> conversations.Conversation:
    return await request.read(queued.get_conversation, conversation_id)


async def change_conversation(
    request: Request, conversation_id: int, body: schemas.ConversationChange
) -> responses.Confirmation:
    fields = msgspec.to_builtins(body)
    if fields.get("temporary"):
        raise Invalid("temporary must be false: only a new conversation can be temporary.")
    await request.write(conversations.set_conversation, conversation_id, fields, request.max_bytes)
    return responses.Confirmation("Conversation renamed" if "title" in fields else "Conversation updated")


async def delete_conversation(
    request: Request, conversation_id: int, query: schemas.DeleteQuery
) -> responses.Confirmation:
    hidden: list[int] = []
    if query.purge:
        hidden = await request.write(conversations.hide_conversation, conversation_id)
        audit("conversations purged", request.identity.user, request.address, count=1)
    else:
        await request.write(conversations.delete_conversation, conversation_id)
    # After the deletion, so that no new generation can begin.
    await request.app_state.hub.cancel_all(request.user_id, conversation_id)
    if query.purge:
        try:
            await conversations.remove_hidden(request.database, hidden)
        except StorageUnavailable as error:  # the conversation is hidden; housekeeping removes the rest
            log.warning("a purged conversation is removed later: %s", error)
    return responses.Confirmation("Conversation deleted")


async def restore_conversation(request: Request, conversation_id: int) -> conversations.Conversation:
    return await request.write(bin.restore, conversation_id)


async def change_conversations(request: Request, body: schemas.BulkChange) -> responses.ChangedIds:
    """One transaction for all, so that half of a large selection is never changed, and undoing it is one request too."""
    changed = await request.write(conversations.change_many, body.ids, body.action, body.folder_id)
    if body.action == "delete":
        for conversation_id in {one.job.conversation_id for one in request.app_state.hub.generations.values()}:
            if conversation_id in changed:
                await request.app_state.hub.cancel_all(request.user_id, conversation_id)
    return responses.ChangedIds(changed)


async def note_presence(request: Request, conversation_id: int, body: schemas.Presence) -> responses.Confirmation:
    await request.app_state.temporary.note(request.user_id, conversation_id, body.tab, body.open)
    return responses.Confirmation("Noted")


async def search(request: Request, query: schemas.SearchQuery) -> responses.SearchResults:
    found = await request.read_long(SEARCH_SECONDS, find, query.q, query.limit + 1, query.offset)
    return responses.SearchResults(found[: query.limit], len(found) > query.limit)
