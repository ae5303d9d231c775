"""The HTTP application: every route in one table, a handler each, and what stands around them.

A handler takes a Call, which is a request that has passed its route's guards, and returns what is to be sent as JSON, or a
Response. It parses nothing that a body's type can say, and holds no SQL.
"""

import asyncio
import contextlib
import enum
import gzip
import hashlib
import logging
import mimetypes
import secrets
import sqlite3
import tempfile
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, cast
from urllib.parse import quote

import msgspec
import uvicorn
from msgspec import UNSET, Meta, Struct, UnsetType
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Scope

from . import __version__, db, queries, render, transfer
from .auth import INVITE_HOURS, Auth, Identity, Login, same
from .chat import Hub
from .config import Config
from .db import Database
from .engine import Engine
from .errors import (
    AuthRequired,
    BodyTooLarge,
    FiresideError,
    Forbidden,
    Invalid,
    MethodNotAllowed,
    NotFound,
    UnsupportedMediaType,
)
from .guard import PAGE_POLICY, Guard, error_answer
from .providers import Providers

log = logging.getLogger("fireside.server")

BODY_BYTES = 4 * 1024 * 1024
MESSAGE_BYTES = 32 * 1024 * 1024  # of a message with images
BODY_SECONDS = 10.0
IMAGES, IMAGE_BYTES = 8, 8 * 1024 * 1024
MESSAGE_CHARACTERS = 200_000
IMPORT_BYTES = 1024**3
HOUSE_SECONDS = 60.0  # after the start, which it must not slow down
GOODBYE_SECONDS = 3  # what open connections get after the generations have ended and said so

# ---------------------------------------------------------------------------------------------------- bodies

Text = Annotated[str, Meta(pattern=r"\A[^\0]*\Z")]
Title = Annotated[str, Meta(min_length=1, max_length=200, pattern=r"\A(?!\s*\Z)[^\0]*\Z")]
Name = Annotated[str, Meta(min_length=1, max_length=300, pattern=r"\A[^\0]*\Z")]
Id = Annotated[int, Meta(ge=1, le=2**63 - 1)]
Role = Literal["user", "admin"]


class Credentials(Struct):
    username: str
    password: str


class Registration(Struct):
    invite_code: str
    username: str
    password: str


class Bootstrap(Struct):
    username: str
    password: str
    token: str = ""


class PasswordChange(Struct):
    current_password: str
    new_password: str


class Link(Struct):
    token: str


class InviteRequest(Struct):
    expires_in_hours: Annotated[int, Meta(ge=INVITE_HOURS[0], le=INVITE_HOURS[1])] = 24
    role: Role = "user"


class UserChange(Struct):
    role: Role | None = None
    status: Literal["active", "disabled"] | None = None


class Parameters(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Generation parameters, in OpenAI's names. None is the same as absent: the provider decides."""

    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=1000)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=1048576)] | None = None
    stop: (
        Annotated[str, Meta(max_length=500)]
        | Annotated[list[Annotated[str, Meta(max_length=500)]], Meta(max_length=16)]
        | None
    ) = None
    seed: Annotated[int, Meta(ge=-(2**31), le=2**32)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    repeat_penalty: Annotated[float, Meta(ge=0, le=2)] | None = None
    response_format: dict[str, Any] | None = None

    def given(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in Parameters.__struct_fields__}
        return {name: value for name, value in values.items() if value is not None}


class AnswerRequest(Parameters):
    provider_id: Name | None = None
    model: Name | None = None


class RetryRequest(AnswerRequest, kw_only=True):
    conversation_id: Id


class ConversationFields(Struct):
    title: Title | None | UnsetType = UNSET
    system_prompt: Annotated[Text, Meta(max_length=100_000)] | UnsetType = UNSET
    pinned: bool | UnsetType = UNSET
    provider_id: Name | None | UnsetType = UNSET
    model: Name | None | UnsetType = UNSET
    settings: Parameters | UnsetType = UNSET

    def given(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in self.__struct_fields__}
        return {
            name: value.given() if isinstance(value, Parameters) else value
            for name, value in values.items()
            if value is not UNSET
        }


class NewImage(Struct):
    media_type: Literal["image/png", "image/jpeg", "image/webp"]
    data: Annotated[bytes, Meta(min_length=12, max_length=IMAGE_BYTES)]  # base64 in the JSON


class NewMessage(Struct):
    content: Annotated[Text, Meta(max_length=MESSAGE_CHARACTERS)]
    parent_id: Id | None | UnsetType = UNSET
    client_id: Annotated[str, Meta(min_length=1, max_length=100, pattern=r"\A[\x21-\x7e]+\Z")] | None = None
    images: Annotated[list[NewImage], Meta(max_length=IMAGES)] = []


class Selection(Struct):
    message_id: Id


class Markdown(Struct):
    text: Annotated[str, Meta(max_length=MESSAGE_CHARACTERS * 10)]


class ModelChoice(Struct):
    model: Name


class ModelLoad(Struct):
    model: Name
    context_length: Annotated[int, Meta(ge=256, le=16 * 1024 * 1024)] | None = None


class Person(Struct):
    username: str | None = None


class NewPassword(Struct):
    password: str
    username: str | None = None


class BackupTarget(Struct):
    file: str


class Sources(Struct):
    paths: list[str]
    username: str | None = None


class Nothing(Struct):
    """For requests whose body, if there is one, says nothing."""


# ---------------------------------------------------------------------------------------------------- calls


class Access(enum.Enum):
    PUBLIC = "public"
    USER = "user"
    ADMIN = "admin"
    OWNER = "owner"  # the command line of the person who runs the service, who can read its private file


PUBLIC, USER, ADMIN, OWNER = Access.PUBLIC, Access.USER, Access.ADMIN, Access.OWNER


@dataclass
class State:
    """What the application has while it runs."""

    config: Config
    database: Database
    providers: Providers
    hub: Hub
    auth: Auth
    secret: str  # what the command line proves itself with


class Call:
    """A request that has passed the guards of its route."""

    def __init__(self, request: Request, state: State) -> None:
        self.request = request
        self.state = state
        self._identity: Identity | None = None
        self.body: Any = None

    @property
    def identity(self) -> Identity:
        assert self._identity is not None, "a public route asked who is calling"
        return self._identity

    @property
    def user_id(self) -> int:
        return self.identity.user.id

    @property
    def client(self) -> str:
        return self.request.headers.get("user-agent", "")

    @property
    def address(self) -> str:
        return self.request.client.host if self.request.client else ""

    @property
    def cookie(self) -> str | None:
        return self.request.cookies.get(cookie_name(self.request.scope))

    def path_id(self, name: str) -> int:
        """A whole number below 2**63 from the path; NotFound, as for one that does not exist, when it is not."""
        text = self.request.path_params[name]
        if not (text.isascii() and text.isdigit() and len(text) <= 19 and 0 < int(text) < 2**63):
            raise NotFound(name.removesuffix("_id"))
        return int(text)

    def text(self, name: str, default: str = "") -> str:
        value = self.request.query_params.get(name, default)
        if "\0" in value or len(value) > 1000:
            raise Invalid(f"{name}: must have at most 1000 characters, and no NUL")
        return value

    def number(self, name: str, default: int | None, low: int, high: int) -> int | None:
        value = self.request.query_params.get(name)
        if value is None:
            return default
        if not (value.isascii() and value.isdigit() and len(value) <= 19 and low <= int(value) <= high):
            raise Invalid(f"{name}: must be a whole number from {low} to {high}")
        return int(value)

    def flag(self, name: str) -> bool:
        value = self.request.query_params.get(name, "false")
        if value not in ("true", "false"):
            raise Invalid(f"{name}: must be true or false")
        return value == "true"


def cookie_name(scope: Scope) -> str:
    """On https a __Host- cookie; on plain http one named by the port, since cookies are shared between the ports of a host."""
    if scope["scheme"] == "https":
        return "__Host-fireside"
    return f"fireside_{(scope.get('server') or ('', 0))[1]}"


Handler = Callable[[Call], Awaitable[Any]]


def route(
    method: str,
    path: str,
    handler: Handler,
    access: Access,
    body: Any = Nothing,
    *,
    csrf: str = "required",
    limit: int = BODY_BYTES,
) -> Route:
    """A row of ROUTES. `csrf`: "required" of everything that changes something, "lenient" as the contract wants it of
    /stream, "none" where there is no session yet."""

    decoder = msgspec.json.Decoder(body) if body is not None else None  # None: the handler takes the body itself

    async def endpoint(request: Request) -> Response:
        call = Call(request, request.app.state.fireside)
        await _admit(call, access, csrf if method != "GET" else "none")
        if method != "GET" and decoder is not None:
            call.body = await _read_body(request, decoder, limit)
        result = await handler(call)
        return result if isinstance(result, Response) else answer(result)

    made = Route(path, endpoint, methods=[method], name=f"{method} {path}")
    made.access = access  # type: ignore[attr-defined]
    made.body = body  # type: ignore[attr-defined]
    made.csrf = csrf  # type: ignore[attr-defined]
    return made


async def _admit(call: Call, access: Access, csrf: str) -> None:
    """401, then 403: who is asking, does the page that asks know the session's token, may they."""
    if access is PUBLIC:
        return
    auth, headers = call.state.auth, call.request.headers
    if access is OWNER:
        if not same(headers.get("authorization", ""), f"Bearer {call.state.secret}"):
            raise AuthRequired
        return
    call._identity = await auth.identify(call.cookie)
    call.request.scope["state"]["user_id"] = call.user_id
    token = headers.get("x-csrf-token")
    if csrf == "required" or (csrf == "lenient" and token is not None):
        auth.check_csrf(call.identity, token)
    if access is ADMIN and call.identity.user.role != "admin":
        raise Forbidden


async def _read_body(request: Request, decoder: msgspec.json.Decoder[Any], limit: int) -> Any:
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    raw = await read_limited(request, limit)
    if raw and content_type != "application/json":
        raise UnsupportedMediaType
    try:
        return decoder.decode(raw or b"{}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(_explain(error)) from None


def _explain(error: Exception) -> str:
    """msgspec's `Expected ..., got ... - at `$.title`` with the field in front."""
    what, _, where = str(error).partition(" - at `$")
    field = where.rstrip("`").lstrip(".")
    return f"{field}: {what}" if field else what


async def read_limited(request: Request, limit: int) -> bytes:
    """The body. Raises BodyTooLarge, and Invalid when it does not come."""
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limit:
        raise BodyTooLarge(f"The body has more than {limit} bytes.")
    raw = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                raw += chunk
                if len(raw) > limit:
                    raise BodyTooLarge(f"The body has more than {limit} bytes.")
    except TimeoutError:
        raise Invalid("The body did not come.") from None
    except ClientDisconnect:
        raise Invalid("The connection was closed before the body had come.") from None
    return bytes(raw)


def answer(value: Any, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json", headers=headers)


# ---------------------------------------------------------------------------------------------------- account


def _logged_in(call: Call, login: Login) -> Response:
    user = login.user
    body = {"user": {"id": user.id, "username": user.username, "role": user.role}, "csrf_token": login.csrf_token}
    response = answer(body)
    secure = call.request.scope["scheme"] == "https"
    max_age = round(call.state.config.session_days * 86400)
    response.set_cookie(
        cookie_name(call.request.scope), login.cookie, max_age=max_age, httponly=True, samesite="strict", secure=secure
    )
    return response


async def login(call: Call) -> Response:
    body: Credentials = call.body
    return _logged_in(
        call, await call.state.auth.login(body.username, body.password, call.client, call.address, call.cookie)
    )


async def logout(call: Call) -> Response:
    state = call.state
    await state.database.write(queries.delete_session, call.user_id, call.identity.session_id)
    if not await state.database.read(queries.count_sessions, call.user_id):
        await state.hub.cancel_all(call.user_id)
    response = answer({"message": "Logged out successfully"}, {"Clear-Site-Data": '"cache", "storage"'})
    response.delete_cookie(cookie_name(call.request.scope), httponly=True, samesite="strict")
    return response


async def me(call: Call) -> Any:
    user = call.identity.user
    return {
        "user": {"id": user.id, "username": user.username, "role": user.role},
        "csrf_token": call.identity.csrf_token,
    }


async def register(call: Call) -> Response:
    body: Registration = call.body
    return _logged_in(
        call,
        await call.state.auth.register(body.invite_code, body.username, body.password, call.client, call.address),
    )


async def change_password(call: Call) -> Any:
    body: PasswordChange = call.body
    await call.state.auth.change_password(call.identity, body.current_password, body.new_password)
    return {"message": "Password changed"}


async def redeem_link(call: Call) -> Response:
    body: Link = call.body
    return _logged_in(call, await call.state.auth.redeem_link(body.token, call.client, call.address, call.cookie))


async def list_sessions(call: Call) -> Any:
    sessions = await call.state.database.read(queries.list_sessions, call.user_id)
    return {"sessions": [{**session, "current": session["id"] == call.identity.session_id} for session in sessions]}


async def delete_session(call: Call) -> Any:
    await call.state.database.write(queries.delete_session, call.user_id, call.path_id("session_id"))
    return {"message": "Session ended"}


# ---------------------------------------------------------------------------------------------------- administration


async def bootstrap(call: Call) -> Response:
    body: Bootstrap = call.body
    token = call.request.headers.get("x-bootstrap-token", body.token)
    return _logged_in(
        call, await call.state.auth.bootstrap(token, body.username, body.password, call.client, call.address)
    )


async def list_users(call: Call) -> Any:
    return {"users": await call.state.database.read(queries.list_users)}


async def change_user(call: Call) -> Any:
    body: UserChange = call.body
    user = await call.state.database.write(queries.set_user, call.path_id("user_id"), body.role, body.status)
    if user.status == "disabled":
        await call.state.hub.cancel_all(user.id)
    return user


async def create_invite(call: Call) -> Any:
    body: InviteRequest = call.body
    return await call.state.auth.invite(call.user_id, body.role, body.expires_in_hours)


async def list_invites(call: Call) -> Any:
    return {"invites": await call.state.database.read(queries.list_invites)}


async def revoke_invite(call: Call) -> Any:
    await call.state.database.write(queries.revoke_invite, call.path_id("invite_id"))
    return {"message": "Invite revoked"}


# ---------------------------------------------------------------------------------------------------- conversations


async def create_conversation(call: Call) -> Any:
    fields: ConversationFields = call.body
    return await call.state.database.write(queries.add_conversation, call.user_id, fields.given())


async def list_conversations(call: Call) -> Any:
    return await call.state.database.read(
        queries.list_conversations,
        call.user_id,
        q=call.text("q"),
        limit=call.number("limit", -1, 1, 1000) or -1,
        before=call.number("before", None, 1, 2**63 - 1),
        pinned=call.flag("pinned"),
        deleted=call.flag("deleted"),
    )


async def get_conversation(call: Call) -> Any:
    return await call.state.database.read(queries.get_conversation, call.user_id, call.path_id("conversation_id"))


async def change_conversation(call: Call) -> Any:
    fields = cast(ConversationFields, call.body).given()
    if fields.get("title", "") is None:
        raise Invalid("title: must be a text")
    await call.state.database.write(queries.set_conversation, call.user_id, call.path_id("conversation_id"), fields)
    return {"message": "Conversation renamed" if "title" in fields else "Conversation updated"}


async def delete_conversation(call: Call) -> Any:
    conversation_id = call.path_id("conversation_id")
    delete = queries.purge_conversation if call.flag("purge") else queries.delete_conversation
    await call.state.hub.cancel_all(call.user_id, conversation_id)
    await call.state.database.write(delete, call.user_id, conversation_id)
    return {"message": "Conversation deleted"}


async def restore_conversation(call: Call) -> Any:
    return await call.state.database.write(queries.restore_conversation, call.user_id, call.path_id("conversation_id"))


async def search(call: Call) -> Any:
    limit = call.number("limit", 50, 1, 200) or 50
    return {"results": await call.state.database.read(queries.search_all, call.user_id, call.text("q"), limit)}


# ---------------------------------------------------------------------------------------------------- messages


async def list_messages(call: Call) -> Any:
    conversation_id = call.path_id("conversation_id")
    limit, before = call.number("limit", -1, 1, 1000) or -1, call.number("before", None, 1, 2**63 - 1)
    shown = call.flag("render")
    messages = await call.state.database.read(queries.list_messages, call.user_id, conversation_id, limit, before)
    call.state.hub.overlay(messages)
    if shown:
        await asyncio.to_thread(_render, messages)
    return messages


def _render(messages: list[queries.Message]) -> None:
    for message in messages:
        message.blocks = [] if message.status == "generating" else trees(message.content)


_trees: OrderedDict[bytes, Any] = OrderedDict()


def trees(markdown: str) -> Any:
    """The blocks of a text, from the few hundred that were rendered last if it is among them."""
    key = hashlib.sha256(markdown.encode("utf-8", "surrogatepass")).digest()
    found = _trees.pop(key, None) or [block["node"] for block in render.blocks(markdown)]
    _trees[key] = found
    if len(_trees) > 400:
        _trees.popitem(last=False)
    return found


async def add_message(call: Call) -> Any:
    body: NewMessage = call.body
    conversation_id = call.path_id("conversation_id")
    if not body.content and not body.images:
        raise Invalid("content: must not be empty")
    images = [_image(place, image) for place, image in enumerate(body.images)]
    message_id = await call.state.database.write(
        queries.add_message, call.user_id, conversation_id, body.content, body.parent_id, body.client_id, images
    )
    return {"message_id": message_id, "conversation_id": conversation_id}


def _image(place: int, image: NewImage) -> queries.Image:
    """An image whose first bytes are what its type says: it is served under that type again."""
    head = image.data[:12]
    right = {
        "image/png": head.startswith(b"\x89PNG\r\n\x1a\n"),
        "image/jpeg": head.startswith(b"\xff\xd8\xff"),
        "image/webp": head.startswith(b"RIFF") and head.endswith(b"WEBP"),
    }
    if not right[image.media_type]:
        raise Invalid(f"images[{place}].data: is not {image.media_type}")
    return queries.Image(image.media_type, image.data)


async def get_image(call: Call) -> Response:
    image = await call.state.database.read(queries.get_image, call.user_id, call.path_id("image_id"))
    return Response(image.data, media_type=image.media_type, headers={"Cache-Control": "private, max-age=86400"})


async def select_version(call: Call) -> Any:
    body: Selection = call.body
    leaf = await call.state.database.write(
        queries.set_active, call.user_id, call.path_id("conversation_id"), body.message_id
    )
    return {"message": "Version selected", "active_message_id": leaf}


async def render_markdown(call: Call) -> Any:
    body: Markdown = call.body
    blocks = await asyncio.to_thread(render.blocks, body.text)
    closed = [block for block in blocks if block["closed"]]
    return {
        "closed": closed[-1]["end"] if closed else 0,
        "blocks": [block["node"] for block in closed],
        "tail": [block["node"] for block in blocks[len(closed) :]],
    }


# ---------------------------------------------------------------------------------------------------- answers


class EventStream(StreamingResponse):
    media_type = "text/event-stream"
    charset = "utf-8"

    def __init__(self, events: AsyncIterator[bytes]) -> None:
        super().__init__(events, headers={"X-Accel-Buffering": "no"})


async def stream(call: Call) -> Response:
    body: AnswerRequest = call.body
    state = call.state
    begun = await state.hub.answer(
        call.user_id, call.path_id("conversation_id"), body.provider_id, body.model, body.given()
    )
    return EventStream(await state.hub.follow(call.user_id, begun.generation_id))


async def retry(call: Call) -> Any:
    body: RetryRequest = call.body
    begun = await call.state.hub.answer(
        call.user_id, body.conversation_id, body.provider_id, body.model, body.given(), retry=True
    )
    return {
        "message_id": begun.message_id,
        "conversation_id": body.conversation_id,
        "generation_id": begun.generation_id,
    }


async def cancel(call: Call) -> Any:
    await call.state.hub.cancel(call.user_id, call.request.path_params["generation_id"])
    return {"message": "Generation canceled"}


async def resume(call: Call) -> Response:
    text = call.request.headers.get("last-event-id", call.request.query_params.get("after", "0"))
    if not (text.isascii() and text.isdigit() and len(text) <= 19):
        raise Invalid("after: must be the id of an event, a whole number")
    generation_id = call.request.path_params["generation_id"]
    return EventStream(await call.state.hub.follow(call.user_id, generation_id, int(text)))


# ---------------------------------------------------------------------------------------------------- providers


async def list_providers(call: Call) -> Any:
    return await call.state.providers.catalog()


async def list_models(call: Call) -> Any:
    return {"models": await call.state.providers.models(call.request.path_params["provider_id"])}


async def provider_health(call: Call) -> Any:
    provider_id = call.request.path_params["provider_id"]
    call.state.providers.get(provider_id)
    entry = next(entry for entry in await call.state.providers.catalog() if entry["provider_id"] == provider_id)
    return {"online": entry["online"], "error": entry["error"]}


async def load_model(call: Call) -> Any:
    body: ModelLoad = call.body
    await call.state.providers.load(call.request.path_params["provider_id"], body.model, body.context_length)
    return {"message": "Model loaded"}


async def unload_model(call: Call) -> Any:
    body: ModelChoice = call.body
    await call.state.providers.unload(call.request.path_params["provider_id"], body.model)
    return {"message": "Model unloaded"}


# ---------------------------------------------------------------------------------------------------- one's data


async def import_upload(call: Call) -> Any:
    """The file goes to the disk as it comes: it may be larger than the memory."""
    content_type = call.request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type not in ("application/json", "application/zip"):
        raise UnsupportedMediaType("An import is application/json or application/zip.")
    with tempfile.TemporaryDirectory(prefix="import-", dir=call.state.config.data_dir) as folder:
        file = Path(folder) / ("upload.zip" if content_type == "application/zip" else "upload.json")
        size = 0
        with file.open("wb") as upload:
            async for chunk in call.request.stream():
                size += len(chunk)
                if size > IMPORT_BYTES:
                    raise BodyTooLarge(f"The body has more than {IMPORT_BYTES} bytes.")
                await asyncio.to_thread(upload.write, chunk)
        return await transfer.import_files(call.state.database, call.user_id, [file])


async def export_all(call: Call) -> Response:
    return _zip(transfer.export_zip(call.state.database, call.user_id))


def _zip(chunks: AsyncIterator[bytes]) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="fireside-{db.now()[:10]}.zip"'}
    return StreamingResponse(chunks, media_type="application/zip", headers=headers)


async def export_one(call: Call) -> Response:
    form: Literal["markdown", "json"]
    match call.text("format", "markdown"):
        case "markdown" | "json" as form:
            pass
        case _:
            raise Invalid("format: must be markdown or json")
    name, body = await transfer.export_conversation(
        call.state.database, call.user_id, call.path_id("conversation_id"), form
    )
    kind = "text/markdown; charset=utf-8" if form == "markdown" else "application/json"
    headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(name)}", "Content-Type": kind}
    return Response(body, headers=headers)


# ---------------------------------------------------------------------------------------------------- the command line


async def control_link(call: Call) -> Any:
    return {"token": await call.state.auth.login_link(call.body.username)}


async def control_invite(call: Call) -> Any:
    user = await call.state.database.read(queries.get_user_named, None)
    return await call.state.auth.invite(user.id, "user", 24)


async def control_password(call: Call) -> Any:
    return {"username": await call.state.auth.reset_password(call.body.username, call.body.password)}


async def control_backup(call: Call) -> Any:
    await asyncio.to_thread(db.copy, call.state.config.database, Path(call.body.file))
    return {"message": "Backup written"}


async def control_import(call: Call) -> Response:
    """A line of JSON for each step, the last with the report."""
    database = call.state.database
    user = await database.read(queries.get_user_named, call.body.username)
    paths = [Path(path) for path in call.body.paths]
    return StreamingResponse(import_steps(database, user.id, paths), media_type="application/x-ndjson")


async def import_steps(database: Database, user_id: int, paths: list[Path]) -> AsyncIterator[bytes]:
    """{"done": fraction, "report": {...}} a step; when it failed, {"error": "..."}."""
    steps: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

    async def run() -> None:
        try:
            report = await transfer.import_files(
                database, user_id, paths, lambda report, done: steps.put_nowait({"done": done, "report": report})
            )
            steps.put_nowait({"done": 1.0, "report": report})
        except FiresideError as error:
            steps.put_nowait({"error": error.message})
        finally:
            steps.put_nowait(None)

    importing = asyncio.create_task(run())
    while (step := await steps.get()) is not None:
        yield msgspec.json.encode(step) + b"\n"
    await importing


async def control_export(call: Call) -> Response:
    user = await call.state.database.read(queries.get_user_named, call.body.username)
    return _zip(transfer.export_zip(call.state.database, user.id))


# ---------------------------------------------------------------------------------------------------- the service


async def usage(call: Call) -> Any:
    return {"usage": await call.state.database.read(queries.list_usage, call.user_id)}


async def health(call: Call) -> Any:
    await call.state.database.read(queries.count_users)
    if call.state.database.damaged:
        raise FiresideError("The database is damaged. Run: fireside doctor")
    return {"status": "healthy"}


async def version(call: Call) -> Any:
    return {"version": __version__}


@dataclass(frozen=True)
class File:
    """A file of the page, held in memory: there are few, they are small, and nothing can lead out of their folder."""

    body: bytes
    packed: bytes
    media_type: str
    tag: str


def read_files() -> dict[str, File]:
    files = {}
    for entry in resources.files(__package__).joinpath("static").iterdir():
        if entry.is_file():
            body = entry.read_bytes()
            kind = mimetypes.guess_type(entry.name)[0] or "application/octet-stream"
            kind = {".js": "text/javascript", ".webmanifest": "application/manifest+json"}.get(
                Path(entry.name).suffix, kind
            )
            kind += "; charset=utf-8" if kind.startswith("text/") else ""
            files[entry.name] = File(
                body, gzip.compress(body, mtime=0), kind, f'"{hashlib.sha256(body).hexdigest()[:20]}"'
            )
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


# fmt: off
ROUTES: tuple[Route, ...] = (
    route("POST",   "/auth/login",                                login,                PUBLIC, Credentials, csrf="none"),
    route("POST",   "/auth/register",                             register,             PUBLIC, Registration, csrf="none"),
    route("POST",   "/auth/link",                                 redeem_link,          PUBLIC, Link, csrf="none"),
    route("POST",   "/auth/logout",                               logout,               USER),
    route("GET",    "/auth/me",                                   me,                   USER),
    route("POST",   "/auth/password",                             change_password,      USER,   PasswordChange),
    route("GET",    "/auth/sessions",                             list_sessions,        USER),
    route("DELETE", "/auth/sessions/{session_id}",                delete_session,       USER),

    route("POST",   "/admin/bootstrap",                           bootstrap,            PUBLIC, Bootstrap, csrf="none"),
    route("GET",    "/admin/users",                               list_users,           ADMIN),
    route("PATCH",  "/admin/users/{user_id}",                     change_user,          ADMIN,  UserChange),
    route("POST",   "/admin/invites",                             create_invite,        ADMIN,  InviteRequest),
    route("GET",    "/admin/invites",                             list_invites,         ADMIN),
    route("POST",   "/admin/invites/{invite_id}/revoke",          revoke_invite,        ADMIN),

    route("POST",   "/conversations",                             create_conversation,  USER,   ConversationFields),
    route("GET",    "/conversations",                             list_conversations,   USER),
    route("GET",    "/conversations/{conversation_id}",           get_conversation,     USER),
    route("PATCH",  "/conversations/{conversation_id}",           change_conversation,  USER,   ConversationFields),
    route("DELETE", "/conversations/{conversation_id}",           delete_conversation,  USER),
    route("POST",   "/conversations/{conversation_id}/restore",   restore_conversation, USER),
    route("GET",    "/search",                                    search,               USER),

    route("GET",    "/conversations/{conversation_id}/messages",  list_messages,        USER),
    route("POST",   "/conversations/{conversation_id}/messages",  add_message,          USER,   NewMessage, limit=MESSAGE_BYTES),
    route("POST",   "/conversations/{conversation_id}/active",    select_version,       USER,   Selection),
    route("GET",    "/images/{image_id}",                         get_image,            USER),
    route("POST",   "/render",                                    render_markdown,      USER,   Markdown),

    route("POST",   "/conversations/{conversation_id}/stream",    stream,               USER,   AnswerRequest, csrf="lenient"),
    route("POST",   "/chat/retry",                                retry,                USER,   RetryRequest),
    route("POST",   "/chat/cancel/{generation_id}",               cancel,               USER),
    route("GET",    "/generations/{generation_id}/stream",        resume,               USER),

    route("GET",    "/providers",                                 list_providers,       USER),
    route("GET",    "/providers/{provider_id}/models",            list_models,          USER),
    route("GET",    "/providers/{provider_id}/health",            provider_health,      USER),
    route("POST",   "/providers/{provider_id}/models/load",       load_model,           ADMIN,  ModelLoad),
    route("POST",   "/providers/{provider_id}/models/unload",     unload_model,         ADMIN,  ModelChoice),

    route("POST",   "/import",                                    import_upload,        USER,   None),
    route("GET",    "/export",                                    export_all,           USER),
    route("GET",    "/conversations/{conversation_id}/export",    export_one,           USER),
    route("GET",    "/usage",                                     usage,                USER),

    route("POST",   "/control/link",                              control_link,         OWNER,  Person),
    route("POST",   "/control/invite",                            control_invite,       OWNER),
    route("POST",   "/control/password",                          control_password,     OWNER,  NewPassword),
    route("POST",   "/control/backup",                            control_backup,       OWNER,  BackupTarget),
    route("POST",   "/control/import",                            control_import,       OWNER,  Sources),
    route("POST",   "/control/export",                            control_export,       OWNER,  Person),

    route("GET",    "/health",                                    health,               PUBLIC),
    route("GET",    "/version",                                   version,              PUBLIC),
    route("GET",    "/",                                          page,                 PUBLIC),
    route("GET",    "/static/{name}",                             static,               PUBLIC),
)
# fmt: on


# ---------------------------------------------------------------------------------------------------- the application


async def _say_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, FiresideError)
    status, headers, body = error_answer(error, request.state.request_id)
    return Response(body, status, headers)


async def _no_route(request: Request, error: Exception) -> Response:
    allowed = getattr(error, "headers", None) or {}
    response = await _say_error(request, MethodNotAllowed() if "Allow" in allowed else NotFound("path"))
    response.headers.update(allowed)
    return response


def create_app(config: Config) -> Starlette:
    """The application; what it needs is opened when it starts and closed when it stops. The caller holds db.lock."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            database = await db.open_database(config.database)
            stack.push_async_callback(database.close)
            providers = Providers(config, Engine(config))
            stack.push_async_callback(providers.aclose)
            hub = Hub(config, database, providers)
            stack.push_async_callback(hub.aclose)
            auth = Auth(config, database)
            await hub.start()
            await auth.start()
            app.state.fireside = State(config, database, providers, hub, auth, secrets.token_urlsafe(32))
            housekeeping = asyncio.create_task(_keep_house(config, database, auth), name="housekeeping")
            stack.push_async_callback(_end, housekeeping)
            yield

    app = Starlette(
        routes=list(ROUTES),
        lifespan=lifespan,
        exception_handlers={FiresideError: _say_error, 404: _no_route, 405: _no_route},
    )
    app.router.redirect_slashes = False
    app.state.files = read_files()
    app.add_middleware(Guard, config=config)
    return app


async def _keep_house(config: Config, database: Database, auth: Auth) -> None:
    """Once an hour: what time has ended goes, and once a day a backup is made; the newest `backups` of them stay."""
    await asyncio.sleep(HOUSE_SECONDS)
    while True:
        try:
            await auth.clean_up()
            await database.write(queries.optimize)
            await asyncio.to_thread(db.back_up_daily, config.database, config.backups)
        except (FiresideError, OSError, sqlite3.Error) as error:
            log.error("housekeeping: %s", error)
        await asyncio.sleep(3600)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


class Server(uvicorn.Server):
    """uvicorn closes the lifespan only when all connections have ended, and an event stream would never: so the generations
    end first, and their readers with them."""

    def __init__(self, app: Starlette, config: Config) -> None:
        self.app = app
        self.on_started: Callable[[], None] = lambda: None
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=bool(config.trusted_proxies),
                forwarded_allow_ips=",".join(config.trusted_proxies) or None,
                timeout_graceful_shutdown=GOODBYE_SECONDS,
                h11_max_incomplete_event_size=64 * 1024,
                ws="none",
            )
        )

    async def startup(self, sockets: list[Any] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.on_started()

    async def shutdown(self, sockets: list[Any] | None = None) -> None:
        state: State | None = getattr(self.app.state, "fireside", None)
        if state is not None:
            await state.hub.aclose()
        await super().shutdown(sockets)
