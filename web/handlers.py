"""The handlers of server.ROUTES.

A handler gets an authorized request and its validated body or query, and returns a value that is sent as JSON, or a Response. Its annotation
is the type of the JSON in both cases, or the media types of other content; GET /openapi.json describes that.
The SQL is in queries/, whose functions the handlers pass to the database.
"""

import asyncio
import contextlib
import gzip
import hashlib
import logging
import shutil
import sqlite3
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar
from urllib.parse import quote

import msgspec
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from .. import __version__, db
from ..auth import Login
from ..backends.detect import Finding, examine, origin, parse_address
from ..backends.openai import ModelDownload
from ..chat.prompt import Forecast, forecast
from ..chat.receipt import Receipt
from ..config import Provider
from ..errors import (
    FiresideError,
    ImportUnreadable,
    Invalid,
    NotFound,
    ProviderFailed,
    StorageUnavailable,
    UnsupportedMediaType,
)
from ..providers import ModelServer
from ..queries import accounts, bin, branches, conversations, folders, generations, messages, prompts, queued, tokens
from ..queries.search import find
from ..queries.types import folder_name, image_type
from ..queries.usage import find_changes, list_usage
from ..safety.logs import TERMINAL, audit
from ..transfer.importer import Report
from . import icons, openapi, schemas
from .endpoint import AppState, JSONResponse, Request, read_query, while_connected
from .middleware import PAGE_POLICY
from .renderer import GrowingText

P = ParamSpec("P")
T = TypeVar("T")
SignedIn = Annotated[Response, schemas.SignedIn]
Events = Annotated[Response, "text/event-stream"]
Zip = Annotated[Response, "application/zip"]

log = logging.getLogger("fireside.handlers")

IMPORT_BYTES = 1024**3
SEARCH_SECONDS = 2.0
MESSAGES_PER_PAGE = 200
CONVERSATIONS_PER_CHUNK = 100  # their system prompts may have 100,000 characters each
UPLOADS = "uploads"  # the folder in the data directory that holds uploads while they are imported

# ---------------------------------------------------------------------------------------------------- accounts


def _logged_in(request: Request, login: Login) -> Response:
    request.state.user_id = login.user.id  # for the log
    response = JSONResponse(_signed_in(login.user, login.csrf_token))
    max_age = round(request.app_state.config.session_days * 86400)
    response.set_cookie(request.cookie_name, login.cookie, max_age=max_age, **_cookie_attributes(request))
    return response


def _signed_in(user: accounts.User, csrf_token: str) -> schemas.SignedIn:
    return schemas.SignedIn(_person(user), csrf_token)


def _person(user: accounts.User) -> schemas.Person:
    return schemas.Person(user.id, user.username, user.display_name, user.role)


def _cookie_attributes(request: Request) -> Any:
    """A browser ignores a change of a __Host- cookie, also its deletion, without Secure."""
    return {"httponly": True, "samesite": "strict", "secure": request.scope["scheme"] == "https"}


async def login(request: Request, body: schemas.Credentials) -> SignedIn:
    return _logged_in(request, await request.app_state.auth.login(body.username, body.password, request.visitor))


async def logout(request: Request) -> Annotated[Response, schemas.Confirmation]:
    await request.database.write(accounts.delete_session, request.user_id, request.identity.session_id)
    await _cancel_without_sessions(request.app_state, request.user_id)
    return _signed_out(request, "Logged out successfully")


def _signed_out(request: Request, message: str) -> Response:
    response = JSONResponse(schemas.Confirmation(message), headers={"Clear-Site-Data": '"cache"'})
    response.delete_cookie(request.cookie_name, **_cookie_attributes(request))
    return response


async def _cancel_without_sessions(state: AppState, user_id: int) -> None:
    """Cancel the generations of a user who has no session left, and those of tokens that are no longer valid."""
    has_session = await state.database.read(accounts.count_sessions, user_id) > 0
    valid = await state.database.read(tokens.list_valid_ids, user_id)
    await state.hub.cancel_unless(user_id, lambda token_id: has_session if token_id is None else token_id in valid)


async def me(request: Request) -> schemas.SignedIn:
    return _signed_in(request.identity.user, request.identity.csrf_token)


async def register(request: Request, body: schemas.Registration) -> SignedIn:
    return _logged_in(
        request, await request.app_state.auth.register(body.invite_code, body.username, body.password, request.visitor)
    )


async def change_password(request: Request, body: schemas.PasswordChange) -> schemas.Confirmation:
    await request.app_state.auth.change_password(
        request.identity, body.current_password, body.new_password, request.address
    )
    return schemas.Confirmation("Password changed")


async def change_name(request: Request, body: schemas.NameChange) -> schemas.SignedIn:
    identity = request.identity
    user = await request.app_state.auth.change_name(identity, body.username, body.current_password, request.address)
    return _signed_in(user, identity.csrf_token)


async def delete_account(request: Request, body: schemas.AccountDeletion) -> Annotated[Response, schemas.Confirmation]:
    await request.app_state.auth.delete_own_account(request.identity, body.current_password, request.address)
    await _remove_closed(request.app_state, request.user_id)
    return _signed_out(request, "Account deleted")


async def _remove_closed(state: AppState, user_id: int) -> None:
    """End the answers and remove the data of a closed account. After its sessions have ended, no new answer can begin."""
    await state.hub.cancel_all(user_id)
    try:
        await accounts.remove_closed(state.database)
    except StorageUnavailable as error:  # nobody can reach the data; housekeeping removes the rest
        log.warning("the data of a deleted account is removed later: %s", error)


async def reset_by_link(request: Request, body: schemas.ResetByLink) -> SignedIn:
    return _logged_in(request, await request.app_state.auth.reset_by_link(body.token, body.password, request.visitor))


async def redeem_link(request: Request, body: schemas.Link) -> SignedIn:
    return _logged_in(request, await request.app_state.auth.redeem_link(body.token, request.visitor))


async def list_sessions(request: Request) -> schemas.Sessions:
    sessions = await request.database.read(accounts.list_sessions, request.user_id)
    current = request.identity.session_id
    return schemas.Sessions([schemas.SessionEntry(**one, current=one["id"] == current) for one in sessions])


async def delete_session(request: Request, session_id: int) -> schemas.Confirmation:
    await request.database.write(accounts.delete_session, request.user_id, session_id)
    await _cancel_without_sessions(request.app_state, request.user_id)
    return schemas.Confirmation("Session ended")


# ---------------------------------------------------------------------------------------------------- tokens


async def create_token(request: Request, body: schemas.TokenRequest) -> schemas.NewToken:
    return await _new_token(request, request.identity.user, body, request.address)


async def _new_token(
    request: Request, user: accounts.User, body: schemas.TokenRequest, address: str
) -> schemas.NewToken:
    auth, name = request.app_state.auth, body.name.strip()
    token, text = await auth.create_token(user, name, body.record, body.expires_in_days, address)
    return schemas.NewToken(**msgspec.structs.asdict(token), token=text)


async def list_tokens(request: Request) -> schemas.Tokens:
    return schemas.Tokens(await request.database.read(tokens.list_tokens, request.user_id))


async def delete_token(request: Request, token_id: int) -> schemas.Confirmation:
    return await _revoke(request, request.identity.user, token_id, request.address)


async def _revoke(request: Request, user: accounts.User, token_id: int, address: str) -> schemas.Confirmation:
    await request.app_state.auth.revoke_token(user, token_id, address)
    await _cancel_without_sessions(request.app_state, user.id)
    return schemas.Confirmation("Token revoked")


# ---------------------------------------------------------------------------------------------------- administration


async def bootstrap(request: Request, body: schemas.Bootstrap) -> SignedIn:
    token = request.headers.get("x-bootstrap-token", body.token)
    return _logged_in(
        request, await request.app_state.auth.bootstrap(token, body.username, body.password, request.visitor)
    )


async def list_users(request: Request) -> schemas.Users:
    return schemas.Users(await request.database.read(accounts.list_users))


async def change_user(request: Request, user_id: int, body: schemas.UserChange) -> accounts.User:
    user = await request.database.write(accounts.set_user, user_id, body.role, body.status)
    audit(
        "user changed", request.identity.user, request.address, about=user.username, role=user.role, status=user.status
    )
    await _cancel_without_sessions(request.app_state, user.id)
    return user


async def create_reset_link(request: Request, user_id: int) -> schemas.ResetLink:
    return schemas.ResetLink(*await request.app_state.auth.reset_link(request.identity.user, user_id, request.address))


async def delete_user(request: Request, user_id: int) -> schemas.Confirmation:
    await request.app_state.auth.delete_user(request.identity.user, user_id, request.address)
    await _remove_closed(request.app_state, user_id)
    return schemas.Confirmation("User deleted")


async def create_invite(request: Request, body: schemas.InviteRequest) -> schemas.NewInvite:
    user, hours = request.identity.user, body.expires_in_hours
    return schemas.NewInvite(**await request.app_state.auth.invite(user, body.role, hours, request.address))


async def list_invites(request: Request) -> schemas.Invites:
    invites = await request.database.read(accounts.list_invites)
    return schemas.Invites([schemas.InviteEntry(**invite) for invite in invites])


async def revoke_invite(request: Request, invite_id: int) -> schemas.Confirmation:
    await request.database.write(accounts.revoke_invite, invite_id)
    audit("invite revoked", request.identity.user, request.address, invite=invite_id)
    return schemas.Confirmation("Invite revoked")


# ---------------------------------------------------------------------------------------------------- conversations


async def get_defaults(request: Request) -> prompts.Defaults:
    return await request.database.read(prompts.get_effective_defaults, request.user_id)


async def change_defaults(request: Request, body: schemas.DefaultsChange) -> prompts.Defaults:
    return await request.database.write(prompts.set_defaults, request.user_id, msgspec.to_builtins(body))


async def create_conversation(request: Request, body: schemas.NewConversation) -> conversations.Conversation:
    message, fields = body.message, msgspec.to_builtins(msgspec.structs.replace(body, message=msgspec.UNSET))
    if body.title is None or not body.title.strip():
        del fields["title"]
    fields = _copy_preset(request, fields.pop("preset_id")) | fields
    quota = request.app_state.config.user_max_bytes
    if not isinstance(message, schemas.NewMessage):
        return await request.database.write(conversations.add_conversation, request.user_id, fields, quota)
    return await request.database.write(
        messages.begin_conversation,
        request.user_id,
        fields,
        message.content,
        message.client_id,
        _check_message(message, "message."),
        quota,
    )


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
        return await request.database.read(conversations.list_conversations, request.user_id, *filters)
    ids = await _search(request, conversations.find_conversations, request.user_id, *filters)
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


async def _search(request: Request, function: db.Function[P, T], *args: P.args, **kw: P.kwargs) -> T:
    """Run a read whose time depends on what the user typed: one per user at a time, for at most SEARCH_SECONDS.

    Cancel it when the client disconnects: the page does so at each letter typed. Other reads have no time limit, because
    their cost is bounded by what they return.
    """

    async def search() -> T:
        async with request.app_state.searches.slot(request.user_id):
            return await request.database.read_within(SEARCH_SECONDS, function, *args, **kw)

    return await while_connected(request.receive, search())


async def get_conversation(request: Request, conversation_id: int) -> conversations.Conversation:
    return await request.database.read(queued.get_conversation, request.user_id, conversation_id)


async def change_conversation(
    request: Request, conversation_id: int, body: schemas.ConversationChange
) -> schemas.Confirmation:
    fields = msgspec.to_builtins(body)
    if fields.get("temporary"):
        raise Invalid("temporary must be false: only a new conversation can be temporary.")
    quota = request.app_state.config.user_max_bytes
    await request.database.write(conversations.set_conversation, request.user_id, conversation_id, fields, quota)
    return schemas.Confirmation("Conversation renamed" if "title" in fields else "Conversation updated")


async def delete_conversation(
    request: Request, conversation_id: int, query: schemas.DeleteQuery
) -> schemas.Confirmation:
    hidden: list[int] = []
    if query.purge:
        hidden = await request.database.write(conversations.hide_conversation, request.user_id, conversation_id)
        audit("conversations purged", request.identity.user, request.address, count=1)
    else:
        await request.database.write(conversations.delete_conversation, request.user_id, conversation_id)
    # After the deletion, so that no new generation can begin.
    await request.app_state.hub.cancel_all(request.user_id, conversation_id)
    if query.purge:
        try:
            await conversations.remove_hidden(request.database, hidden)
        except StorageUnavailable as error:  # the conversation is hidden; housekeeping removes the rest
            log.warning("a purged conversation is removed later: %s", error)
    return schemas.Confirmation("Conversation deleted")


async def restore_conversation(request: Request, conversation_id: int) -> conversations.Conversation:
    return await request.database.write(bin.restore, request.user_id, conversation_id)


async def change_conversations(request: Request, body: schemas.BulkChange) -> schemas.ChangedIds:
    """One transaction for all, so that half of a large selection is never changed, and undoing it is one request too."""
    change = conversations.change_many
    changed = await request.database.write(change, request.user_id, body.ids, body.action, body.folder_id)
    if body.action == "delete":
        for conversation_id in {one.job.conversation_id for one in request.app_state.hub.generations.values()}:
            if conversation_id in changed:
                await request.app_state.hub.cancel_all(request.user_id, conversation_id)
    return schemas.ChangedIds(changed)


async def note_presence(request: Request, conversation_id: int, body: schemas.Presence) -> schemas.Confirmation:
    await request.app_state.temporary.note(request.user_id, conversation_id, body.tab, body.open)
    return schemas.Confirmation("Noted")


async def list_folders(request: Request) -> schemas.Folders:
    return schemas.Folders(await request.database.read(folders.list_folders, request.user_id))


async def create_folder(request: Request, body: schemas.FolderName) -> folders.Folder:
    return await request.database.write(folders.create_folder, request.user_id, folder_name(body.name))


async def rename_folder(request: Request, folder_id: int, body: schemas.FolderName) -> folders.Folder:
    return await request.database.write(folders.rename_folder, request.user_id, folder_id, folder_name(body.name))


async def delete_folder(request: Request, folder_id: int) -> schemas.FolderDeleted:
    ids = await request.database.write(folders.delete_folder, request.user_id, folder_id)
    return schemas.FolderDeleted("Folder deleted", ids)


async def search(request: Request, query: schemas.SearchQuery) -> schemas.SearchResults:
    found = await _search(request, find, request.user_id, query.q, query.limit + 1, query.offset)
    return schemas.SearchResults(found[: query.limit], len(found) > query.limit)


# ---------------------------------------------------------------------------------------------------- prompts and presets


async def list_prompts(request: Request) -> schemas.Prompts:
    return schemas.Prompts(await request.database.read(prompts.list_prompts, request.user_id))


async def add_prompt(request: Request, body: schemas.NewPrompt) -> prompts.Prompt:
    fields, quota = msgspec.to_builtins(body), request.app_state.config.user_max_bytes
    return await request.database.write(prompts.add_prompt, request.user_id, fields, quota)


async def change_prompt(request: Request, prompt_id: int, body: schemas.PromptChange) -> prompts.Prompt:
    fields, quota = msgspec.to_builtins(body), request.app_state.config.user_max_bytes
    return await request.database.write(prompts.set_prompt, request.user_id, prompt_id, fields, quota)


async def delete_prompt(request: Request, prompt_id: int) -> schemas.Confirmation:
    await request.database.write(prompts.delete_prompt, request.user_id, prompt_id)
    return schemas.Confirmation("Prompt deleted")


async def list_presets(request: Request) -> schemas.Presets:
    return schemas.Presets(await request.database.read(prompts.list_presets, request.user_id))


async def add_preset(request: Request, body: schemas.NewPreset) -> prompts.Preset:
    fields, quota = msgspec.to_builtins(body), request.app_state.config.user_max_bytes
    return await request.database.write(prompts.add_preset, request.user_id, fields, quota)


async def change_preset(request: Request, preset_id: int, body: schemas.PresetChange) -> prompts.Preset:
    fields, quota = msgspec.to_builtins(body), request.app_state.config.user_max_bytes
    return await request.database.write(prompts.set_preset, request.user_id, preset_id, fields, quota)


async def delete_preset(request: Request, preset_id: int) -> schemas.Confirmation:
    await request.database.write(prompts.delete_preset, request.user_id, preset_id)
    return schemas.Confirmation("Preset deleted")


# ---------------------------------------------------------------------------------------------------- messages


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


async def get_context(request: Request, conversation_id: int, query: schemas.ContextQuery) -> Forecast:
    return await _context(request, conversation_id, query)


async def get_new_context(request: Request, query: schemas.ContextQuery) -> Forecast:
    return await _context(request, None, query)


async def _context(request: Request, conversation_id: int | None, query: schemas.ContextQuery) -> Forecast:
    prompt, params = await request.database.read(generations.get_next_prompt, request.user_id, conversation_id)
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


async def add_message(request: Request, conversation_id: int, body: schemas.AddedMessage) -> schemas.AddedMessageIds:
    if body.queue:
        return await _queue_message(request, conversation_id, body)
    message_id = await request.database.write(
        messages.add_message,
        request.user_id,
        conversation_id,
        body.content,
        body.parent_id,
        body.client_id,
        _check_message(body),
        request.app_state.config.user_max_bytes,
    )
    return schemas.AddedMessageIds(message_id, conversation_id)


async def _queue_message(request: Request, conversation_id: int, body: schemas.AddedMessage) -> schemas.AddedMessageIds:
    if body.parent_id is not msgspec.UNSET:
        raise Invalid("parent_id: a queued message follows the answer before it. Leave parent_id out.")
    queued_id, message_id = await request.database.write(
        queued.add_queued,
        request.user_id,
        conversation_id,
        body.content,
        body.client_id,
        _check_message(body),
        request.app_state.config.user_max_bytes,
    )
    await request.app_state.hub.begin_next(request.user_id, conversation_id)
    return schemas.AddedMessageIds(message_id, conversation_id, msgspec.UNSET if queued_id is None else queued_id)


async def change_queued(
    request: Request, conversation_id: int, queued_id: int, body: schemas.QueuedContent
) -> schemas.Confirmation:
    limit = request.app_state.config.user_max_bytes
    await request.database.write(queued.change_queued, request.user_id, conversation_id, queued_id, body.content, limit)
    return schemas.Confirmation("Message changed")


async def remove_queued(request: Request, conversation_id: int, queued_id: int) -> schemas.Confirmation:
    await request.database.write(queued.remove_queued, request.user_id, conversation_id, queued_id)
    return schemas.Confirmation("Message removed")


async def send_queued(
    request: Request, conversation_id: int, queued_id: int, body: schemas.AnswerRequest
) -> schemas.NewAnswerIds:
    def begin(conn: db.Connection, user_id: int, conversation_id: int, *choice: Any) -> generations.Answer:
        return queued.send_queued(conn, user_id, conversation_id, queued_id, *choice)

    options = generations.AnswerRequest(body.provider_id, body.model, body.given())
    begun = await request.app_state.hub.answer(request.user_id, conversation_id, options, begin)
    return schemas.NewAnswerIds(begun.message_id, conversation_id, begun.generation_id)


async def get_message(
    request: Request, conversation_id: int, message_id: int, query: schemas.RenderQuery
) -> messages.Message:
    message = await request.app_state.hub.message(request.user_id, conversation_id, message_id)
    return (await _rendered(request, [message]))[0] if query.render else message


async def edit_answer(
    request: Request, conversation_id: int, message_id: int, body: schemas.EditedAnswer
) -> schemas.NewMessageIds:
    quota = request.app_state.config.user_max_bytes
    version_id = await request.database.write(
        messages.edit_answer, request.user_id, conversation_id, message_id, body.content, body.client_id, quota
    )
    return schemas.NewMessageIds(version_id, conversation_id)


async def delete_message(request: Request, conversation_id: int, message_id: int) -> schemas.MessageDeleted:
    deleted = await request.database.write(bin.delete_message, request.user_id, conversation_id, message_id)
    return schemas.MessageDeleted("Message deleted", deleted.deleted_id, deleted.active_message_id)


async def branch(request: Request, conversation_id: int, body: schemas.BranchRequest) -> conversations.Conversation:
    quota = request.app_state.config.user_max_bytes
    return await branches.branch(
        request.database, request.user_id, conversation_id, body.message_id, body.client_id, quota
    )


def _check_message(message: schemas.NewMessage, path: str = "") -> list[messages.Image]:
    """Return the images. Raises Invalid for an empty message, and for an image whose first bytes contradict its type."""
    if not message.content and not message.images:
        raise Invalid(f"{path}content must not be empty.")
    for index, image in enumerate(message.images):
        if image_type(image.data[:12]) != image.media_type:
            raise Invalid(f"{path}images[{index}].data is not {image.media_type}.")
    return [messages.Image(image.media_type, image.data) for image in message.images]


async def get_image(request: Request, image_id: int) -> Annotated[Response, "image/png", "image/jpeg", "image/webp"]:
    image = await request.database.read(messages.get_image, request.user_id, image_id)
    return Response(image.data, media_type=image.media_type)


async def select_version(request: Request, conversation_id: int, body: schemas.Selection) -> schemas.VersionSelected:
    leaf = await request.database.write(messages.set_active, request.user_id, conversation_id, body.message_id)
    return schemas.VersionSelected("Version selected", leaf)


async def get_sent_request(request: Request, message_id: int) -> Annotated[Response, Receipt]:
    content = await request.app_state.receipts.encoded(request.user_id, message_id, with_url=request.is_admin)
    return Response(content, media_type="application/json")


async def render_markdown(request: Request, body: schemas.Markdown) -> GrowingText:
    return await while_connected(request.receive, request.app_state.renderer.growing(request.user_id, body.text))


# ---------------------------------------------------------------------------------------------------- answers


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


# ---------------------------------------------------------------------------------------------------- providers


async def list_providers(request: Request) -> list[schemas.ProviderEntry]:
    catalog = await request.app_state.providers.catalog(details=request.is_admin)
    return [schemas.ProviderEntry(**entry, health=_health(entry)) for entry in catalog]


async def list_models(request: Request, provider_id: str) -> schemas.Models:
    return schemas.Models(await request.app_state.providers.get(provider_id).models())


async def provider_health(request: Request, provider_id: str) -> schemas.ProviderHealth:
    return _health(await request.app_state.providers.get(provider_id).entry(details=request.is_admin))


def _health(entry: dict[str, Any]) -> schemas.ProviderHealth:
    return schemas.ProviderHealth(entry["online"], entry["error"])


async def start_provider(request: Request, provider_id: str) -> schemas.Confirmation:
    await request.app_state.providers.get(provider_id).start()
    return schemas.Confirmation("Server started")


async def load_model(request: Request, provider_id: str, body: schemas.ModelLoad) -> schemas.Confirmation:
    await request.app_state.providers.get(provider_id).load(**msgspec.structs.asdict(body))
    return schemas.Confirmation("Model loaded")


async def download_model(request: Request, provider_id: str, body: schemas.DownloadRequest) -> ModelDownload:
    audit("model download", request.identity.user, request.address)
    download = await request.app_state.providers.get(provider_id).download(body.model, body.quantization)
    await request.app_state.providers.save_downloads()
    return download


async def list_downloads(request: Request, provider_id: str) -> schemas.Downloads:
    return schemas.Downloads(await request.app_state.providers.get(provider_id).downloads())


async def unload_model(request: Request, provider_id: str, body: schemas.ModelChoice) -> schemas.Confirmation:
    await request.app_state.providers.get(provider_id).unload(body.model)
    return schemas.Confirmation("Model unloaded")


async def list_servers(request: Request) -> schemas.ModelServers:
    return schemas.ModelServers([_server(*each) for each in await request.app_state.providers.status()])


async def test_server(request: Request, body: schemas.ServerAddress) -> Finding:
    """A saved key is sent only where it was saved for, so that a session cannot be used to read it."""
    url, key = parse_address(body.url), body.api_key or ""
    if body.api_key is msgspec.UNSET and body.provider_id is not None:
        settings = request.app_state.providers.configured(body.provider_id).settings
        key = settings.api_key if origin(settings.url) == origin(url) else ""
    return await while_connected(request.receive, examine(url, key))


async def add_server(request: Request, body: schemas.NewServer) -> schemas.ModelServer:
    found = await examine(parse_address(body.url), body.api_key)
    if found.problem and not body.untested:
        raise ProviderFailed(found.problem, found.message)
    server = await request.app_state.providers.add(
        Provider(
            id="",
            kind=body.kind or found.kind,
            name=(body.name or found.name).strip(),
            url=found.url,
            api_key=body.api_key,
            concurrency=body.concurrency,
            models=tuple(body.models) if found.kind == "openai" else (),
        )
    )
    audit("model server added", request.identity.user, request.address, about=server.id)
    return _server(server, await server.entry())


async def change_server(request: Request, provider_id: str, body: schemas.ServerChange) -> schemas.ModelServer:
    providers = request.app_state.providers
    address, settings = providers.configured(provider_id).address, providers.configured(provider_id).settings
    fields = msgspec.to_builtins(body)
    untested = fields.pop("untested")
    if "name" in fields:
        fields["name"] = fields["name"].strip()
    if "models" in fields:
        fields["models"] = tuple(fields["models"])
    if "url" in fields:
        fields["url"] = _changed_address(settings, body)
    if settings.kind == "embedded" and fields.keys() - {"name", "enabled"}:
        raise Invalid("The embedded engine has no address, no key and no queue to set.")
    if not untested and fields.get("enabled", settings.enabled) and fields.keys() & {"url", "api_key"}:
        url = fields.get("url", address)  # empty: LM Studio is looked for
        found = await examine(url, fields.get("api_key", settings.api_key)) if url else None
        if found and found.problem:
            raise ProviderFailed(found.problem, found.message)
    server = await providers.change(provider_id, **fields)
    audit("model server changed", request.identity.user, request.address, about=server.id)
    return _server(server, await server.entry() if server.settings.enabled else None)


def _changed_address(settings: Provider, body: schemas.ServerChange) -> str:
    """Raises Invalid for a new address that a saved key would be sent to unseen."""
    if not body.url and settings.id == "lmstudio":
        return ""
    url = parse_address(str(body.url))
    if settings.api_key and body.api_key is msgspec.UNSET and origin(url) != origin(settings.url):
        raise Invalid("api_key must be entered again, because the address is another one.")
    return url


async def remove_server(request: Request, provider_id: str) -> schemas.Confirmation:
    await request.app_state.providers.remove(provider_id)
    audit("model server removed", request.identity.user, request.address, about=provider_id)
    return schemas.Confirmation("Model server removed")


def _server(server: ModelServer, entry: dict[str, Any] | None) -> schemas.ModelServer:
    """`entry` is None for a server that is not enabled."""
    settings = server.settings
    return schemas.ModelServer(
        provider_id=settings.id,
        name=settings.name,
        kind=settings.kind,
        url=settings.url,
        address=server.address,
        has_key=bool(settings.api_key),
        concurrency=server.concurrency(),
        models=list(settings.models),
        enabled=settings.enabled,
        source=settings.source,
        online=bool(entry and entry["online"]),
        error=entry["error"] if entry else None,
        models_known=bool(entry and entry["models_known"]),
        models_found=len(entry["models"]) if entry else 0,
        answering=server.slots.held,
        waiting=server.slots.waiting(),
    )


# ---------------------------------------------------------------------------------------------------- import and export


async def import_upload(request: Request, query: schemas.ImportQuery) -> Annotated[Any, Report, "application/x-ndjson"]:
    """Write the body to a file as it arrives, because it may be larger than the memory, and import the file."""
    suffix = schemas.IMPORT_TYPES.get(request.content_type)
    if suffix is None:
        raise UnsupportedMediaType(f"An import must be {', '.join(schemas.IMPORT_TYPES)}.")
    importer = request.app_state.importer
    try:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(importer.uploading[request.user_id])
            folder = tempfile.TemporaryDirectory(dir=request.app_state.config.data_dir / UPLOADS)
            file = Path(stack.enter_context(folder)) / f"upload{suffix}"
            with file.open("wb") as upload:
                async for chunk in request.chunks(IMPORT_BYTES):
                    await asyncio.to_thread(upload.write, chunk)
            audit("import preview" if query.dry_run else "import", request.identity.user, request.address)
            if query.progress:
                steps = importer.import_steps(request.user_id, [file], dry_run=query.dry_run)
                return ImportProgress(steps, stack.pop_all())
            report = await importer.import_files(request.user_id, [file], dry_run=query.dry_run)
    except OSError as error:
        raise StorageUnavailable(f"The upload could not be saved: {error.strerror}.") from error
    if report.skipped and not report.conversations + report.messages + report.unchanged:
        raise ImportUnreadable(
            [_reason(one.file.removeprefix(file.name).lstrip(":, "), one.reason) for one in report.skipped]
        )
    return report


def _reason(part: str, reason: str) -> str:
    """Return a reason why a part of an upload, or all of it, was skipped. The client has not sent the file's name."""
    return f"{part}: {reason}" if part else f"The file {reason}"


def make_upload_folder(data_dir: Path) -> None:
    """Create the folder for uploads, and delete those that a killed server has left."""
    shutil.rmtree(data_dir / UPLOADS, ignore_errors=True)
    (data_dir / UPLOADS).mkdir(mode=0o700, exist_ok=True)


class Download(StreamingResponse):
    """A file that is produced while it is sent. On an error the connection is closed before the end of the file."""

    body_iterator: AsyncGenerator[bytes, None]

    async def stream_response(self, send: Send) -> None:
        try:
            async with contextlib.aclosing(self.body_iterator):
                await super().stream_response(send)
        except (FiresideError, OSError, sqlite3.Error) as error:
            log.error("A download ended early: %s", error)


class ImportProgress(Download):
    """The steps of an import as lines of JSON. The uploaded file is removed at the end."""

    def __init__(self, steps: AsyncGenerator[bytes, None], upload: contextlib.AsyncExitStack) -> None:
        super().__init__(steps, media_type="application/x-ndjson")
        self._upload = upload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._upload:
            await super().__call__(scope, receive, send)


async def export_all(request: Request, query: schemas.ExportAllQuery) -> Zip:
    if not query.ids:
        audit("export of all conversations", request.identity.user, request.address)
        return _zip(request.app_state.exporter.export_zip(request.user_id))
    ids = await request.database.read(
        conversations.owned_ids, request.user_id, [int(one) for one in query.ids.split(",")]
    )
    audit("export of conversations", request.identity.user, request.address, count=len(ids))
    return _zip(request.app_state.exporter.export_zip(request.user_id, ids))


def _zip(chunks: AsyncGenerator[bytes, None]) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="fireside-{db.now()[:10]}.zip"'}
    return Download(chunks, media_type="application/zip", headers=headers)


async def export_one(
    request: Request, conversation_id: int, query: schemas.ExportQuery
) -> Annotated[Response, "text/markdown", "application/json"]:
    name, chunks = await request.app_state.exporter.export_conversation(request.user_id, conversation_id, query.format)
    audit("export of one conversation", request.identity.user, request.address)
    kind = "text/markdown; charset=utf-8" if query.format == "markdown" else "application/json"
    headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(name)}", "Content-Type": kind}
    return Download(chunks, headers=headers)


# ---------------------------------------------------------------------------------------------------- the command line


async def control_link(request: Request, body: schemas.OptionalUser) -> schemas.LoginToken:
    return schemas.LoginToken(await request.app_state.auth.login_link(body.username))


async def control_session(request: Request, body: schemas.OptionalUser) -> SignedIn:
    return _logged_in(request, await request.app_state.auth.terminal_session(body.username, request.visitor))


async def control_invite(request: Request) -> schemas.NewInvite:
    user = await request.database.read(accounts.get_user_named, None)
    return schemas.NewInvite(**await request.app_state.auth.invite(user, "user", 24))


async def control_password(request: Request, body: schemas.PasswordReset) -> schemas.PasswordOwner:
    user = await request.app_state.auth.reset_password(body.username, body.password)
    await _cancel_without_sessions(request.app_state, user.id)
    return schemas.PasswordOwner(user.username)


async def control_create_token(request: Request, body: schemas.TokenOfUser) -> schemas.NewToken:
    return await _new_token(request, await request.app_state.auth.user_named(body.username), body, TERMINAL)


async def control_list_tokens(request: Request, body: schemas.OptionalUser) -> schemas.Tokens:
    user = await request.app_state.auth.user_named(body.username)
    return schemas.Tokens(await request.database.read(tokens.list_tokens, user.id))


async def control_revoke_token(request: Request, body: schemas.TokenChoice) -> schemas.Confirmation:
    user = await request.app_state.auth.user_named(body.username)
    return await _revoke(request, user, body.token_id, TERMINAL)


async def control_backup(request: Request, body: schemas.BackupTarget) -> schemas.Confirmation:
    database = request.app_state.config.database
    try:
        await asyncio.to_thread(db.copy, database, Path(body.file))
    except db.DatabaseDamaged as error:
        raise StorageUnavailable(db.explain(database, error)) from None
    except OSError as error:
        raise StorageUnavailable(f"{body.file}: {error.strerror}") from None
    except sqlite3.Error as error:
        raise StorageUnavailable(f"{body.file}: {db.describe(error)}") from None
    return schemas.Confirmation("Backup written")


async def control_import(request: Request, body: schemas.ImportSources) -> Annotated[Response, "application/x-ndjson"]:
    """Send a line of JSON for each step; the last has the report."""
    user = await request.database.read(accounts.get_user_named, body.username)
    paths = [Path(path) for path in body.paths]
    audit("import preview" if body.dry_run else "import", user, TERMINAL)
    steps = request.app_state.importer.import_steps(user.id, paths, dry_run=body.dry_run)
    return Download(steps, media_type="application/x-ndjson")


async def control_export(request: Request, body: schemas.OptionalUser) -> Zip:
    user = await request.database.read(accounts.get_user_named, body.username)
    audit("export of all conversations", user, TERMINAL)
    return _zip(request.app_state.exporter.export_zip(user.id))


# ---------------------------------------------------------------------------------------------------- the service


async def usage(request: Request) -> schemas.UsageByDay:
    entries = await request.database.read(list_usage, request.user_id)
    return schemas.UsageByDay(entries, find_changes(entries))


async def storage(request: Request) -> schemas.Storage:
    config = request.app_state.config
    data = await request.database.read(accounts.measure_data, request.user_id)
    server = None
    if request.is_admin:
        all_images = await request.database.read(accounts.count_image_bytes)
        sizes = await asyncio.to_thread(db.measure, config.database)
        server = schemas.ServerStorage(image_bytes=all_images, **sizes)
    limit = config.user_max_bytes or None
    return schemas.Storage(**data, limit_bytes=limit, daily_backups=config.backups, server=server)


async def health(request: Request) -> schemas.Health:
    await request.database.read(accounts.count_users)
    if request.database.damaged:
        raise StorageUnavailable("The database is damaged. Run: fireside doctor")
    return schemas.Health("healthy")


async def describe_api(request: Request) -> Annotated[Response, dict[str, Any]]:
    return Response(await asyncio.to_thread(_openapi, request.app), media_type="application/json")  # 0.1 s, once


@lru_cache(maxsize=1)
def _openapi(app: Starlette) -> bytes:
    return msgspec.json.encode(openapi.document(app.routes))


async def version(request: Request) -> schemas.Version:
    return schemas.Version(__version__)


# ---------------------------------------------------------------------------------------------------- the page's files


# Not from the mimetypes module: it reads the Windows registry, where .js can be text/plain, which browsers do not run.
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".webmanifest": "application/manifest+json",
}


@cache
def _load(name: str) -> tuple[bytes, bytes, dict[str, str]]:
    """Return a file of the page, the same gzipped, and its headers. Raises NotFound.

    They stay in memory. For the 22 files of a first visit this takes 5 ms of CPU; StaticFiles and GZipMiddleware, which open and
    compress each file each time, take 29 ms and delay the first paint by as much.
    """
    if name in icons.FILES:
        body = icons.draw(name)
    else:
        files = resources.files("fireside").joinpath("static").iterdir()
        found = next((file for file in files if file.name == name), None)
        if found is None or Path(name).suffix not in MEDIA_TYPES:
            raise NotFound("file")
        body = found.read_bytes()
    headers = {
        "Cache-Control": "no-cache",
        "Content-Security-Policy": PAGE_POLICY,
        "Content-Type": MEDIA_TYPES[Path(name).suffix],
        "ETag": f'"{hashlib.sha256(body).hexdigest()[:20]}"',
        "Vary": "Accept-Encoding",
    }
    return body, gzip.compress(body, mtime=0), headers


async def page(request: Request) -> Annotated[Response, "text/html"]:
    return await static(request, "index.html")


async def static(request: Request, name: str) -> Annotated[Response, "*/*"]:
    if name in icons.FILES:
        await asyncio.to_thread(icons.draw, name)
    body, gzipped, headers = _load(name)
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(gzipped, headers=headers | {"Content-Encoding": "gzip"})
    return Response(body, headers=headers)
