"""What each route does. A handler takes a Call, which has passed its route's guards, and returns what is sent as JSON, or a Response.

It parses nothing that a body's type can say, and holds no SQL: the functions it hands to the database are in queries/.
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
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast
from urllib.parse import quote

import msgspec
from starlette.applications import Starlette
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from .. import __version__, db, queries
from ..auth import Login
from ..errors import FiresideError, Invalid, NotFound, StorageUnavailable, UnsupportedMediaType
from ..queries.search import find
from ..queries.types import image_type
from ..safety.logs import TERMINAL, audit
from . import openapi, schemas
from .endpoint import Call, State, answer, cookie_name, pieces, read_query, while_connected
from .middleware import PAGE_POLICY

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger("fireside.handlers")

IMPORT_BYTES = 1024**3
SEARCH_SECONDS = 2.0
MESSAGE_PAGE = 200
LIST_CHUNK = 100  # conversations, whose system prompts may have 100,000 characters each
UPLOADS = "uploads"  # the folder in the data directory where an upload is kept while it is imported

# ---------------------------------------------------------------------------------------------------- account


def _logged_in(call: Call, login: Login) -> Response:
    user = login.user
    call.request.scope["state"]["user_id"] = user.id  # for the log
    body = {"user": {"id": user.id, "username": user.username, "role": user.role}, "csrf_token": login.csrf_token}
    response = answer(body)
    secure = call.request.scope["scheme"] == "https"
    max_age = round(call.state.config.session_days * 86400)
    response.set_cookie(
        cookie_name(call.request.scope), login.cookie, max_age=max_age, httponly=True, samesite="strict", secure=secure
    )
    return response


async def login(call: Call) -> Response:
    body: schemas.Credentials = call.body
    return _logged_in(call, await call.state.auth.login(body.username, body.password, call.visitor))


async def logout(call: Call) -> Response:
    state = call.state
    await state.database.write(queries.accounts.delete_session, call.user_id, call.identity.session_id)
    await _stop_without_sessions(state, call.user_id)
    response = answer({"message": "Logged out successfully"}, {"Clear-Site-Data": '"cache"'})
    secure = call.request.scope["scheme"] == "https"  # without it a browser keeps a __Host- cookie
    response.delete_cookie(cookie_name(call.request.scope), httponly=True, samesite="strict", secure=secure)
    return response


async def _stop_without_sessions(state: State, user_id: int) -> None:
    """Whoever is signed in nowhere has nobody to write for."""
    if not await state.database.read(queries.accounts.count_sessions, user_id):
        await state.hub.cancel_all(user_id)


async def me(call: Call) -> Any:
    user = call.identity.user
    return {
        "user": {"id": user.id, "username": user.username, "role": user.role},
        "csrf_token": call.identity.csrf_token,
    }


async def register(call: Call) -> Response:
    body: schemas.Registration = call.body
    return _logged_in(
        call, await call.state.auth.register(body.invite_code, body.username, body.password, call.visitor)
    )


async def change_password(call: Call) -> Any:
    body: schemas.PasswordChange = call.body
    await call.state.auth.change_password(call.identity, body.current_password, body.new_password, call.address)
    return {"message": "Password changed"}


async def redeem_link(call: Call) -> Response:
    body: schemas.Link = call.body
    return _logged_in(call, await call.state.auth.redeem_link(body.token, call.visitor))


async def list_sessions(call: Call) -> Any:
    sessions = await call.state.database.read(queries.accounts.list_sessions, call.user_id)
    return {"sessions": [{**session, "current": session["id"] == call.identity.session_id} for session in sessions]}


async def delete_session(call: Call) -> Any:
    await call.state.database.write(queries.accounts.delete_session, call.user_id, call.path_id("session_id"))
    await _stop_without_sessions(call.state, call.user_id)
    return {"message": "Session ended"}


# ---------------------------------------------------------------------------------------------------- administration


async def bootstrap(call: Call) -> Response:
    body: schemas.Bootstrap = call.body
    token = call.request.headers.get("x-bootstrap-token", body.token)
    return _logged_in(call, await call.state.auth.bootstrap(token, body.username, body.password, call.visitor))


async def list_users(call: Call) -> Any:
    return {"users": await call.state.database.read(queries.accounts.list_users)}


async def change_user(call: Call) -> Any:
    body: schemas.UserChange = call.body
    user = await call.state.database.write(queries.accounts.set_user, call.path_id("user_id"), body.role, body.status)
    audit("user changed", call.identity.user, call.address, about=user.username, role=user.role, status=user.status)
    await _stop_without_sessions(call.state, user.id)
    return user


async def create_invite(call: Call) -> Any:
    body: schemas.InviteRequest = call.body
    return await call.state.auth.invite(call.identity.user, body.role, body.expires_in_hours, call.address)


async def list_invites(call: Call) -> Any:
    return {"invites": await call.state.database.read(queries.accounts.list_invites)}


async def revoke_invite(call: Call) -> Any:
    invite_id = call.path_id("invite_id")
    await call.state.database.write(queries.accounts.revoke_invite, invite_id)
    audit("invite revoked", call.identity.user, call.address, invite=invite_id)
    return {"message": "Invite revoked"}


# ---------------------------------------------------------------------------------------------------- conversations


async def get_defaults(call: Call) -> Any:
    return _defaults(await call.state.database.read(queries.conversations.get_defaults, call.user_id))


async def change_defaults(call: Call) -> Any:
    fields: schemas.Defaults = call.body
    return _defaults(await call.state.database.write(queries.conversations.set_defaults, call.user_id, fields.given()))


def _defaults(found: dict[str, Any]) -> dict[str, Any]:
    return {"system_prompt": "", "settings": {}} | found


async def create_conversation(call: Call) -> Any:
    body: schemas.NewConversation = call.body
    quota = call.state.config.user_max_bytes
    if not isinstance(body.message, schemas.NewMessage):
        return await call.state.database.write(
            queries.conversations.add_conversation, call.user_id, body.given(), quota
        )
    images = _check_message(body.message, "message.")
    message = body.message
    return await call.state.database.write(
        queries.messages.begin_conversation,
        call.user_id,
        body.given(),
        message.content,
        message.client_id,
        images,
        quota,
    )


async def list_conversations(call: Call) -> Any:
    query: schemas.ConversationQuery = call.query
    database = call.state.database
    filters = (query.q, query.limit or -1, query.before or None, query.pinned, query.deleted)
    if query.limit and not query.q:
        return await database.read(queries.conversations.list_conversations, call.user_id, *filters)
    ids = await _search(call, queries.conversations.find_conversations, call.user_id, *filters)
    return StreamingResponse(_conversations(database, ids or []), media_type="application/json")


async def _conversations(database: db.Database, ids: list[int]) -> AsyncIterator[bytes]:
    """A JSON array in chunks, so that neither a reader nor the event loop is busy with all of them at once."""
    separator = b"["
    for start in range(0, len(ids), LIST_CHUNK):
        if found := await database.read(queries.conversations.get_conversations, ids[start : start + LIST_CHUNK]):
            yield separator + msgspec.json.encode(found)[1:-1]
            separator = b","
    yield b"[]" if separator == b"[" else b"]"


async def _search(call: Call, function: db.Function[P, T], *args: P.args, **kw: P.kwargs) -> T | None:
    """Run a read whose time depends on what the user typed: at most one of a user at a time, for SEARCH_SECONDS.

    It ends when the client disconnects, and returns None then: the page drops a search at the next letter typed.
    Other reads have no time limit: what they cost is bounded by what they return.
    """

    async def search() -> T:
        async with call.state.searching.slot(call.user_id):
            return await call.state.database.read_within(SEARCH_SECONDS, function, *args, **kw)

    return await while_connected(call.request.receive, search())


async def get_conversation(call: Call) -> Any:
    return await call.state.database.read(
        queries.conversations.get_conversation, call.user_id, call.path_id("conversation_id")
    )


async def change_conversation(call: Call) -> Any:
    fields = cast(schemas.ConversationFields, call.body).given()
    if fields.get("title", "") is None:
        raise Invalid("title: must be a text")
    await call.state.database.write(
        queries.conversations.set_conversation,
        call.user_id,
        call.path_id("conversation_id"),
        fields,
        call.state.config.user_max_bytes,
    )
    return {"message": "Conversation renamed" if "title" in fields else "Conversation updated"}


async def delete_conversation(call: Call) -> Any:
    conversation_id = call.path_id("conversation_id")
    query: schemas.DeleteQuery = call.query
    delete = queries.conversations.hide_conversation if query.purge else queries.conversations.delete_conversation
    await call.state.database.write(delete, call.user_id, conversation_id)
    if query.purge:
        audit("conversations purged", call.identity.user, call.address, count=1)
    await call.state.hub.cancel_all(call.user_id, conversation_id)  # after it: in between, nothing new can begin
    if query.purge:
        await queries.conversations.remove_hidden(call.state.database, [conversation_id])
    return {"message": "Conversation deleted"}


async def restore_conversation(call: Call) -> Any:
    return await call.state.database.write(
        queries.conversations.restore_conversation, call.user_id, call.path_id("conversation_id")
    )


async def search(call: Call) -> Any:
    query: schemas.SearchQuery = call.query
    return {"results": await _search(call, find, call.user_id, query.q, query.limit)}


# ---------------------------------------------------------------------------------------------------- messages


async def list_messages(call: Call) -> Any:
    query: schemas.MessageQuery = call.query
    if query.limit:
        return await _messages(call, query, query.limit, query.before or None)
    pages, before = [], query.before or None
    while page := await _messages(
        call, query, MESSAGE_PAGE, before
    ):  # else 50,000 messages would keep all others waiting
        pages.append(msgspec.json.encode(page)[1:-1])
        before = page[0].id
        if len(page) < MESSAGE_PAGE:
            break
    return Response(b"[" + b",".join(reversed(pages)) + b"]", media_type="application/json")


async def _messages(
    call: Call, query: schemas.MessageQuery, limit: int, before: int | None
) -> list[queries.messages.Message]:
    messages = await call.state.hub.messages(call.user_id, call.path_id("conversation_id"), limit, before)
    if query.render:
        texts = ["" if message.status == "generating" else message.content for message in messages]
        nodes = await while_connected(call.request.receive, call.state.renderer.nodes(call.user_id, texts)) or []
        messages = messages[: len(nodes)]
        for message, blocks in zip(messages, nodes, strict=True):
            message.blocks = blocks
    return messages


async def add_message(call: Call) -> Any:
    body: schemas.NewMessage = call.body
    conversation_id = call.path_id("conversation_id")
    images = _check_message(body)
    message_id = await call.state.database.write(
        queries.messages.add_message,
        call.user_id,
        conversation_id,
        body.content,
        body.parent_id,
        body.client_id,
        images,
        call.state.config.user_max_bytes,
    )
    return {"message_id": message_id, "conversation_id": conversation_id}


def _check_message(message: schemas.NewMessage, where: str = "") -> list[queries.messages.Image]:
    """Return the images. Raises Invalid for an empty message, and for an image whose first bytes contradict its type."""
    if not message.content and not message.images:
        raise Invalid(f"{where}content: must not be empty")
    for place, image in enumerate(message.images):
        if image_type(image.data[:12]) != image.media_type:
            raise Invalid(f"{where}images[{place}].data: is not {image.media_type}")
    return [queries.messages.Image(image.media_type, image.data) for image in message.images]


async def get_image(call: Call) -> Response:
    image = await call.state.database.read(queries.messages.get_image, call.user_id, call.path_id("image_id"))
    return Response(image.data, media_type=image.media_type)


async def select_version(call: Call) -> Any:
    body: schemas.Selection = call.body
    leaf = await call.state.database.write(
        queries.messages.set_active, call.user_id, call.path_id("conversation_id"), body.message_id
    )
    return {"message": "Version selected", "active_message_id": leaf}


async def render_markdown(call: Call) -> Any:
    body: schemas.Markdown = call.body
    blocks = await while_connected(call.request.receive, call.state.renderer.blocks(call.user_id, body.text)) or []
    closed = [block for block in blocks if block.closed]
    return {
        "closed": closed[-1].end if closed else 0,
        "blocks": [block.node for block in closed],
        "tail": [block.node for block in blocks[len(closed) :]],
    }


# ---------------------------------------------------------------------------------------------------- answers


class EventStream(StreamingResponse):
    media_type = "text/event-stream"
    charset = "utf-8"

    def __init__(self, events: AsyncIterator[bytes]) -> None:
        super().__init__(events, headers={"X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await while_connected(receive, self.stream_response(send))


async def stream(call: Call) -> Response:
    body: schemas.AnswerRequest = call.body
    state = call.state
    wanted = queries.generations.Wanted(body.provider_id, body.model, body.given())
    begun = await state.hub.answer(call.user_id, call.path_id("conversation_id"), wanted)
    return EventStream(await state.hub.follow(call.user_id, begun.generation_id))


async def retry(call: Call) -> Any:
    body: schemas.RetryRequest = call.body
    wanted = queries.generations.Wanted(
        body.provider_id, body.model, body.given(), retry=True, message_id=body.message_id
    )
    begun = await call.state.hub.answer(call.user_id, body.conversation_id, wanted)
    return {
        "message_id": begun.message_id,
        "conversation_id": body.conversation_id,
        "generation_id": begun.generation_id,
    }


async def cancel(call: Call) -> Any:
    await call.state.hub.cancel(call.user_id, call.request.path_params["generation_id"])
    return {"message": "Generation canceled"}


async def resume(call: Call) -> Response:
    query: schemas.ResumeQuery = call.query
    if (last := call.request.headers.get("last-event-id")) is not None:
        query = read_query({"after": last}, schemas.ResumeQuery)
    generation_id = call.request.path_params["generation_id"]
    return EventStream(await call.state.hub.follow(call.user_id, generation_id, query.after))


# ---------------------------------------------------------------------------------------------------- providers


def _sees_addresses(call: Call) -> bool:
    return call.identity.user.role == "admin"


async def list_providers(call: Call) -> Any:
    return await call.state.providers.catalog(details=_sees_addresses(call))


async def list_models(call: Call) -> Any:
    return {"models": await call.state.providers.models(call.request.path_params["provider_id"])}


async def provider_health(call: Call) -> Any:
    entry = await call.state.providers.entry(call.request.path_params["provider_id"], details=_sees_addresses(call))
    return {"online": entry["online"], "error": entry["error"]}


async def start_provider(call: Call) -> Any:
    await call.state.providers.start(call.request.path_params["provider_id"])
    return {"message": "Server started"}


async def load_model(call: Call) -> Any:
    body: schemas.ModelLoad = call.body
    await call.state.providers.load(call.request.path_params["provider_id"], body.model, body.context_length)
    return {"message": "Model loaded"}


async def unload_model(call: Call) -> Any:
    body: schemas.ModelChoice = call.body
    await call.state.providers.unload(call.request.path_params["provider_id"], body.model)
    return {"message": "Model unloaded"}


# ---------------------------------------------------------------------------------------------------- one's data


async def import_upload(call: Call) -> Any:
    """Write the body to a file as it arrives, since it may be larger than the memory, and import that."""
    content_type = call.request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type not in ("application/json", "application/zip"):
        raise UnsupportedMediaType("An import is application/json or application/zip.")
    importer, folder = call.state.importer, call.state.config.data_dir / UPLOADS
    try:
        async with importer.uploading[call.user_id]:
            with tempfile.TemporaryDirectory(dir=folder) as own:
                file = Path(own) / ("upload.zip" if content_type == "application/zip" else "upload.json")
                with file.open("wb") as upload:
                    async for piece in pieces(call.request, IMPORT_BYTES):
                        await asyncio.to_thread(upload.write, piece)
                audit("import", call.identity.user, call.address)
                return await importer.import_files(call.user_id, [file])
    except OSError as error:
        raise StorageUnavailable(f"The upload could not be kept: {error.strerror}.") from error


def make_upload_folder(data_dir: Path) -> None:
    """Make the folder for uploads, without what a killed server left there."""
    shutil.rmtree(data_dir / UPLOADS, ignore_errors=True)
    (data_dir / UPLOADS).mkdir(mode=0o700, exist_ok=True)


class Download(StreamingResponse):
    """A file that is made while it is sent. When that fails, the connection ends without the end of the file."""

    body_iterator: AsyncGenerator[bytes, None]

    async def stream_response(self, send: Send) -> None:
        try:
            async with contextlib.aclosing(self.body_iterator):
                await super().stream_response(send)
        except (FiresideError, OSError, sqlite3.Error) as error:
            log.error("A download ended early: %s", error)


async def export_all(call: Call) -> Response:
    audit("export of all conversations", call.identity.user, call.address)
    return _zip(call.state.exporter.export_zip(call.user_id))


def _zip(chunks: AsyncGenerator[bytes, None]) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="fireside-{db.now()[:10]}.zip"'}
    return Download(chunks, media_type="application/zip", headers=headers)


async def export_one(call: Call) -> Response:
    query: schemas.ExportQuery = call.query
    name, chunks = await call.state.exporter.export_conversation(
        call.user_id, call.path_id("conversation_id"), query.format
    )
    audit("export of one conversation", call.identity.user, call.address)
    kind = "text/markdown; charset=utf-8" if query.format == "markdown" else "application/json"
    headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(name)}", "Content-Type": kind}
    return Download(chunks, headers=headers)


# ---------------------------------------------------------------------------------------------------- the command line


async def control_link(call: Call) -> Any:
    return {"token": await call.state.auth.login_link(call.body.username)}


async def control_invite(call: Call) -> Any:
    user = await call.state.database.read(queries.accounts.get_user_named, None)
    return await call.state.auth.invite(user, "user", 24)


async def control_password(call: Call) -> Any:
    user = await call.state.auth.reset_password(call.body.username, call.body.password)
    await _stop_without_sessions(call.state, user.id)
    return {"username": user.username}


async def control_backup(call: Call) -> Any:
    body: schemas.BackupTarget = call.body
    database = call.state.config.database
    try:
        await asyncio.to_thread(db.copy, database, Path(body.file))
    except db.DatabaseDamaged as error:
        raise StorageUnavailable(db.explain(database, error)) from None
    except (OSError, sqlite3.Error) as error:
        raise StorageUnavailable(f"{body.file}: {getattr(error, 'strerror', None) or error}") from None
    return {"message": "Backup written"}


async def control_import(call: Call) -> Response:
    """A line of JSON for each step, the last with the report."""
    database = call.state.database
    user = await database.read(queries.accounts.get_user_named, call.body.username)
    paths = [Path(path) for path in call.body.paths]
    audit("import", user, TERMINAL)
    return Download(call.state.importer.import_steps(user.id, paths), media_type="application/x-ndjson")


async def control_export(call: Call) -> Response:
    user = await call.state.database.read(queries.accounts.get_user_named, call.body.username)
    audit("export of all conversations", user, TERMINAL)
    return _zip(call.state.exporter.export_zip(user.id))


# ---------------------------------------------------------------------------------------------------- the service


async def usage(call: Call) -> Any:
    return {"usage": await call.state.database.read(queries.generations.list_usage, call.user_id)}


async def health(call: Call) -> Any:
    await call.state.database.read(queries.accounts.count_users)
    if call.state.database.damaged:
        raise StorageUnavailable("The database is damaged. Run: fireside doctor")
    return {"status": "healthy"}


async def describe_api(call: Call) -> Any:
    return Response(_openapi(call.request.app), media_type="application/json")


@lru_cache(maxsize=1)
def _openapi(app: Starlette) -> bytes:
    return msgspec.json.encode(openapi.document(app.routes))


async def version(call: Call) -> Any:
    return {"version": __version__}


@dataclass(frozen=True)
class File:
    """A file of the page, held in memory: there are few, they are small, and nothing can lead out of their folder."""

    body: bytes
    media_type: str
    tag: str

    @cached_property
    def packed(self) -> bytes:
        return gzip.compress(self.body, mtime=0)


# Not from mimetypes: what it says is the computer's, and it reads files to say it.
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".webmanifest": "application/manifest+json",
}


def read_files() -> dict[str, File]:
    files = {}
    for entry in resources.files("fireside").joinpath("static").iterdir():
        if entry.is_file():
            body = entry.read_bytes()
            tag = f'"{hashlib.sha256(body).hexdigest()[:20]}"'
            files[entry.name] = File(body, MEDIA_TYPES[Path(entry.name).suffix], tag)
    return files


async def page(call: Call) -> Response:
    return _file(call, "index.html")


async def static(call: Call) -> Response:
    return _file(call, call.request.path_params["name"])


def _file(call: Call, name: str) -> Response:
    file: File | None = call.request.app.state.files.get(name)
    if file is None:
        raise NotFound("file")
    headers = {
        "Cache-Control": "no-cache",
        "ETag": file.tag,
        "Vary": "Accept-Encoding",
        "Content-Security-Policy": PAGE_POLICY,
        "Content-Type": file.media_type,
    }
    if call.request.headers.get("if-none-match") == file.tag:
        return Response(status_code=304, headers=headers)
    if "gzip" in call.request.headers.get("accept-encoding", ""):
        return Response(file.packed, headers=headers | {"Content-Encoding": "gzip"})
    return Response(file.body, headers=headers)
