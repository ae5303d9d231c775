"""A route with an access rule, a typed body and typed query parameters, and the request that its handler gets."""

import asyncio
import contextlib
import enum
import re
import secrets
import sqlite3
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar

import msgspec
from starlette import requests
from starlette.requests import ClientDisconnect
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from ..auth import Auth, Identity, Visitor, constant_time_equals
from ..chat.hub import Hub
from ..chat.receipt import Receipts
from ..chat.temporary import TemporaryChats
from ..config import Config
from ..db import READERS, Connection, Database
from ..documents.reader import Reader
from ..errors import (
    AuthRequired,
    BodyTooLarge,
    Forbidden,
    Invalid,
    InvalidToken,
    NotFound,
    RateLimited,
    UnsupportedMediaType,
)
from ..providers import Providers
from ..queries.tokens import Token
from ..safety.queue import Slots
from ..safety.throttle import is_loopback
from ..transfer.exporter import Exporter
from ..transfer.importer import Importer
from .connection import connections_per_side
from .renderer import Renderer
from .schemas import Empty
from .validation import explain

P = ParamSpec("P")
Q = TypeVar("Q", bound=msgspec.Struct)
T = TypeVar("T")
UserFunction: TypeAlias = Callable[Concatenate[Connection, int, P], T]

BODY_BYTES = 1024 * 1024  # JSON of 4 MB keeps the event loop busy for 0.3 s
PUBLIC_BODY_BYTES = 64 * 1024  # without a session
CHUNK_BYTES = 256 * 1024
REQUESTS_PER_USER = 8  # at a time; a browser opens six connections
OBJECTS = (
    "conversation", "folder", "message", "image", "attachment", "user", "session", "invite", "prompt", "preset", "token",
)  # fmt: skip
INTEGERS = {f"{thing}_id": thing for thing in OBJECTS} | {"queued_id": "message"}  # in paths, with the thing
LONG_READ_SECONDS = 30.0  # all answers of a user, or all messages of a conversation
COOKIE_LENGTH = 87  # 32 bytes and their signature of 32 bytes in base64, and the dot between them


class Access(enum.Enum):
    PUBLIC = "public"
    USER = "user"
    ADMIN = "admin"
    CLI = "command line"  # it proves that it can read a private file of this service
    TOKEN = "token"  # another program, with a personal access token and without a session
    USER_OR_TOKEN = "user or token"


PUBLIC, USER, ADMIN, CLI, TOKEN, USER_OR_TOKEN = Access


@dataclass
class AppState:
    """What the application opens at its start and closes at its end: `app.state.fireside`."""

    config: Config
    database: Database
    providers: Providers
    hub: Hub
    temporary: TemporaryChats
    auth: Auth
    reader: Reader
    importer: Importer
    renderer: Renderer
    exporter: Exporter
    receipts: Receipts
    secret: str = field(default_factory=lambda: secrets.token_urlsafe(32))  # the bearer token of the command line
    # Waiting requests have no deadline, so one user must not fill all connections with them.
    waiting_per_user: int = field(default_factory=lambda: connections_per_side() // 2)
    long_reads: Slots = field(default_factory=lambda: Slots(READERS - 1, per_user=1))
    storing: Slots = field(default_factory=lambda: Slots(2, per_user=1))  # uploads, each of them in memory
    requests: Slots = field(default_factory=lambda: Slots(sys.maxsize, per_user=REQUESTS_PER_USER))


class Request(requests.Request):
    """Starlette's Request, with the application's state and the user who sent it."""

    identity: Identity  # not on public routes
    token: Token | None = None  # of a request without a session

    @property
    def app_state(self) -> AppState:
        state: AppState = self.app.state.fireside
        return state

    @property
    def database(self) -> Database:
        return self.app_state.database

    @property
    def user_id(self) -> int:
        return self.identity.user.id

    @property
    def max_bytes(self) -> int:
        """What a user may store, 0 for no limit."""
        return self.app_state.config.user_max_bytes

    @property
    def is_admin(self) -> bool:
        return self.identity.user.role == "admin"

    @property
    def address(self) -> str:
        """The client's address, "" for a connection that has none."""
        return self.client.host if self.client else ""

    @property
    def is_local(self) -> bool:
        """Whether the request comes from this computer, and through no proxy."""
        forwarded = any(name.startswith(("forwarded", "x-forwarded-")) for name in self.headers)
        return not forwarded and (is_loopback(self.address) or self.address == (self.scope.get("server") or ("",))[0])

    @property
    def visitor(self) -> Visitor:
        return Visitor(self.headers.get("user-agent", ""), self.address, next(iter(self.session_cookies()), None))

    @property
    def cookie_name(self) -> str:
        """On https a __Host- cookie; on plain http one named by the port, since a host's ports share their cookies."""
        if self.scope["scheme"] == "https":
            return "__Host-fireside"
        return f"fireside_{(self.scope.get('server') or ('', 0))[1]}"

    def session_cookies(self) -> list[str]:
        """Return all values of the session cookie: another server on this host can set more of them, for other paths.

        Starlette's parser unquotes every cookie, which is quadratic before Python 3.12.6 (CVE-2024-7592).
        """
        cookies = [cookie.strip() for cookie in ";".join(self.headers.getlist("cookie")).split(";")]
        prefix = f"{self.cookie_name}="
        values = [cookie.removeprefix(prefix) for cookie in cookies if cookie.startswith(prefix)]
        return [value for value in values if len(value) == COOKIE_LENGTH]

    def path_arguments(self) -> dict[str, int | str]:
        """Return the path's parameters. Raises NotFound for an id that is not an integer from 1 to 2**63 - 1."""
        arguments: dict[str, int | str] = dict(self.path_params)
        for name in INTEGERS.keys() & arguments.keys():
            text = self.path_params[name]
            if not (text.isascii() and text.isdigit() and len(text) <= 19 and 0 < int(text) < 2**63):
                raise NotFound(INTEGERS[name])
            arguments[name] = int(text)
        return arguments

    async def read(self, function: UserFunction[P, T], *args: P.args, **kw: P.kwargs) -> T:
        """Run a function of queries/ that reads what belongs to the user of the request."""
        return await self.database.read(function, self.user_id, *args, **kw)

    async def write(self, function: UserFunction[P, T], *args: P.args, **kw: P.kwargs) -> T:
        """Run a function of queries/ that changes what belongs to the user of the request."""
        return await self.database.write_for(self.user_id, function, self.user_id, *args, **kw)

    async def read_long(self, seconds: float, function: UserFunction[P, T], *args: P.args, **kw: P.kwargs) -> T:
        """Run a read whose cost is not bounded by what it returns: one per user at a time, for at most so many seconds.

        Cancel it when the client disconnects: the page does so at each letter typed.
        """

        async def read() -> T:
            async with self.app_state.long_reads.slot(self.user_id):
                return await self.database.read_within(seconds, function, self.user_id, *args, **kw)

        return await while_connected(self.receive, read())

    @property
    def write_body(self) -> Callable[[bytes], bool] | None:
        """web.connection.write_body for this request."""
        write: Callable[[bytes], bool] | None = self.scope["state"].get("write_body")
        return write

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    async def chunks(self, limit: int) -> AsyncIterator[bytes]:
        """Yield the body as it arrives. Raises BodyTooLarge beyond `limit` bytes, and ClientDisconnect."""
        if int(self.headers.get("content-length", "0")) > limit:  # the parser admits only digits, below 2**64
            raise BodyTooLarge(limit)
        size = 0
        async for chunk in self.stream():
            size += len(chunk)
            if size > limit:
                raise BodyTooLarge(limit)
            yield chunk


class JSONResponse(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return msgspec.json.encode(content)


class Later(Response):
    """A response that `make` returns, perhaps after minutes. It is canceled when the client disconnects."""

    def __init__(self, make: Callable[[], Coroutine[Any, Any, Response]]) -> None:
        super().__init__()
        self._make = make

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await while_connected(receive, self._make())
        await response(scope, receive, send)


class EventStream(StreamingResponse):
    media_type = "text/event-stream"
    charset = "utf-8"

    def __init__(self, events: AsyncIterator[bytes], headers: Mapping[str, str] | None = None) -> None:
        super().__init__(events, headers={"X-Accel-Buffering": "no", **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.suppress(ClientDisconnect):
            await while_connected(receive, self.stream_response(send))


class Endpoint(Route):
    """A row of ROUTES.

    The handler gets the request, each parameter of the path, and `body` and `query` if the row has their types. It returns
    a Response or a value that is sent as JSON.

    body      type of the JSON body; None if the handler reads the body itself
    query     type of the query parameters
    csrf      "required" for requests that change something; "lenient" checks only a token that is sent, as the contract
              has it for /stream; "none" where there is no session yet
    limit     bytes that the body may have
    """

    def __init__(
        self,
        method: str,
        path: str,
        handler: Callable[..., Awaitable[Any]],
        access: Access,
        body: Any = Empty,
        *,
        query: type[msgspec.Struct] = Empty,
        csrf: str = "required",
        limit: int | None = None,
    ) -> None:
        super().__init__(path, handler, methods=[method], name=f"{method} {path}")
        # A trailing slash changes nothing, except for files: imports in /static/app.js/ would be relative to another folder.
        slash = "" if path == "/" or path.startswith("/static/") else "/?"
        pattern = self.path_regex.pattern.removesuffix("$").replace(
            "(?P<model_id>[^/]+)", "(?P<model_id>.+?)"
        )  # has slashes
        self.path_regex = re.compile(pattern + slash + r"\Z")  # $ matches before a newline
        self.method, self.handler, self.access, self.body, self.query = method, handler, access, body, query
        self.csrf = "none" if method == "GET" else csrf
        self._limit = limit or (PUBLIC_BODY_BYTES if access is PUBLIC else BODY_BYTES)
        self.app = self._respond

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        sessions = filter(None, map(request.app_state.auth.unsign, request.session_cookies()))
        await scope["state"].pop("take_turn")(next(sessions, None), request.address)
        await self._authorize(request)
        arguments: dict[str, Any] = request.path_arguments()
        if self.query is not Empty:
            arguments["query"] = read_query(request.query_params, self.query)
        async with contextlib.AsyncExitStack() as stack:
            if self.access not in (PUBLIC, CLI):
                if request.app_state.requests.waiting(request.user_id) >= request.app_state.waiting_per_user:
                    raise RateLimited(1)
                await stack.enter_async_context(request.app_state.requests.slot(request.user_id))
            body = await self._read_body(request) if self.method != "GET" and self.body is not None else None
            if not isinstance(body, Empty | None):
                arguments["body"] = body
            try:
                result = await self.handler(request, **arguments)
            except sqlite3.IntegrityError:
                if self.access in (USER, ADMIN):
                    await _identify(request)  # raises AuthRequired if the account was deleted while the request ran
                raise
            response = result if isinstance(result, Response) else JSONResponse(result)
            if isinstance(response, StreamingResponse | Later):
                await stack.aclose()  # an answer may stream for an hour; exports have limits of their own
            # Else the slot is held until the response is sent, so that unread downloads of a user cannot fill the memory.
            await response(scope, receive, _in_chunks(send))

    async def _authorize(self, request: Request) -> None:
        """Raise AuthRequired without a session, CsrfInvalid without its token, Forbidden without the role.

        Where a personal access token is accepted, raise InvalidToken without one.
        """
        if self.access is PUBLIC:
            return
        auth, headers = request.app_state.auth, request.headers
        if self.access is CLI:
            bearer = f"Bearer {request.app_state.secret}"
            if not constant_time_equals(headers.get("authorization", ""), bearer) or not request.is_local:
                raise AuthRequired
            return
        if self.access is TOKEN or (self.access is USER_OR_TOKEN and "authorization" in headers):
            await _identify_by_token(request)
            return
        request.identity = await _identify(request)
        request.state.user_id = request.user_id
        token = headers.get("x-csrf-token")
        if self.csrf == "required" or (self.csrf == "lenient" and (token is not None or request.state.cross_origin)):
            auth.check_csrf(request.identity, token)
        if self.access is ADMIN and not request.is_admin:
            raise Forbidden

    async def _read_body(self, request: Request) -> Any:
        body = b"".join([chunk async for chunk in request.chunks(self._limit)])
        if body and request.content_type != "application/json":
            raise UnsupportedMediaType
        return decode_body(body or b"{}", self.body)


async def _identify(request: Request) -> Identity:
    """Return the identity of the first session cookie that has one. Raises AuthRequired."""
    for cookie in request.session_cookies():
        with contextlib.suppress(AuthRequired):
            return await request.app_state.auth.identify(cookie)
    raise AuthRequired


async def _identify_by_token(request: Request) -> None:
    """Set the request's token and its user. Raises InvalidToken, also when there is a session cookie: a browser adds that by itself."""
    kind, _, text = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or len(request.headers.getlist("authorization")) > 1:
        raise InvalidToken
    if request.session_cookies():
        raise InvalidToken("Send the token without a session cookie.")
    request.token, user = await request.app_state.auth.identify_token(text.strip(), request.address)
    request.identity = Identity(user, session_id=0, csrf_token="")
    request.state.user_id = request.user_id


def decode_body(body: bytes, kind: Any) -> Any:
    """Convert JSON to its type. Raises Invalid."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(explain(error, kind)) from None


def read_query(params: Mapping[str, str], kind: type[Q]) -> Q:
    """Convert query parameters to their type. Raises Invalid."""
    try:
        return msgspec.convert(dict(params), kind, strict=False)
    except msgspec.ValidationError as error:
        raise Invalid(explain(error, kind)) from None


def _in_chunks(send: Send) -> Send:
    """Split large bodies: uvicorn takes a chunk when the client has read most of those before it."""

    async def send_in_chunks(message: Message) -> None:
        body = memoryview(message.get("body", b""))
        while len(body) > CHUNK_BYTES:
            await send({"type": message["type"], "body": bytes(body[:CHUNK_BYTES]), "more_body": True})
            body = body[CHUNK_BYTES:]
        await send({**message, "body": bytes(body)} if "body" in message else message)

    return send_in_chunks


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`. If the client disconnects first, cancel it and raise ClientDisconnect.

    For requests whose body has been read.
    """

    async def disconnect() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, disconnecting = asyncio.ensure_future(work), asyncio.ensure_future(disconnect())
    try:
        await asyncio.wait((working, disconnecting), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        disconnecting.cancel()
        await asyncio.gather(working, disconnecting, return_exceptions=True)
