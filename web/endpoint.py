"""A request on its way to its handler: who sends it, may they, and what does it say."""

import asyncio
import contextlib
import enum
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from ..auth import Auth, Identity, Visitor, constant_time_equals
from ..chat.hub import Hub
from ..config import Config
from ..db import READERS, Database
from ..errors import AuthRequired, BodyTooLarge, Forbidden, Invalid, NotFound, RateLimited, UnsupportedMediaType
from ..providers import Providers
from ..safety.queue import Slots
from ..transfer.exporter import Exporter
from ..transfer.importer import Importer
from .middleware import is_loopback
from .renderer import Renderer
from .schemas import Nothing

Q = TypeVar("Q", bound=msgspec.Struct)
T = TypeVar("T")

BODY_BYTES = 4 * 1024 * 1024
PIECE_BYTES = 256 * 1024
REQUESTS_PER_USER = 8  # at a time; a browser opens six connections
PUBLIC_BYTES = 64 * 1024  # from somebody who has not signed in
COOKIE_LENGTH = 87  # 32 bytes and their signature of 32 bytes in base64, and the dot between them


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
    renderer: Renderer
    importer: Importer
    exporter: Exporter
    waiting_per_user: int  # requests; their connections have no deadline, so they must not be all that there may be
    searching: Slots = field(default_factory=lambda: Slots(READERS - 1, per_user=1))
    requests: Slots = field(default_factory=lambda: Slots(sys.maxsize, per_user=REQUESTS_PER_USER))


class Call:
    """A request that has passed the guards of its route."""

    def __init__(self, request: Request, state: State) -> None:
        self.request = request
        self.state = state
        self._identity: Identity | None = None
        self.query: Any = None  # of the route's own types
        self.body: Any = None

    @property
    def identity(self) -> Identity:
        assert self._identity is not None, "a public route asked who is calling"
        return self._identity

    @property
    def user_id(self) -> int:
        return self.identity.user.id

    @property
    def visitor(self) -> Visitor:
        return Visitor(self.request.headers.get("user-agent", ""), self.address, next(iter(self.cookies), None))

    @property
    def address(self) -> str:
        """The client's address, "" for a connection that has none."""
        return self.request.client.host if self.request.client else ""

    @property
    def cookies(self) -> list[str]:
        """All values of the session cookie: another server on this host can add some under the same name, for other paths.

        Starlette's parser unquotes every cookie, which is quadratic before Python 3.12.6 (CVE-2024-7592)."""
        name = cookie_name(self.request.scope)
        pairs = ";".join(self.request.headers.getlist("cookie")).split(";")
        values = [value for given, _, value in (pair.strip().partition("=") for pair in pairs) if given == name]
        return [value for value in values if len(value) == COOKIE_LENGTH]

    def path_id(self, name: str) -> int:
        """A whole number below 2**63 from the path; NotFound, as for one that does not exist, when it is not."""
        text = self.request.path_params[name]
        if not (text.isascii() and text.isdigit() and len(text) <= 19 and 0 < int(text) < 2**63):
            raise NotFound(name.removesuffix("_id"))
        return int(text)


def cookie_name(scope: Scope) -> str:
    """On https a __Host- cookie; on plain http one named by the port, since cookies are shared between the ports of a host."""
    if scope["scheme"] == "https":
        return "__Host-fireside"
    return f"fireside_{(scope.get('server') or ('', 0))[1]}"


Handler = Callable[[Call], Awaitable[Any]]


class Endpoint(Route):
    """A row of ROUTES. `csrf`: "required" of everything that changes something, "lenient" as the contract wants it of
    /stream, "none" where there is no session yet. `limit`: bytes that a body may have. `body` None: the handler takes it itself.
    """

    def __init__(
        self,
        method: str,
        path: str,
        handler: Handler,
        access: Access,
        body: Any = Nothing,
        *,
        query: type[msgspec.Struct] = Nothing,
        csrf: str = "required",
        limit: int | None = None,
    ) -> None:
        super().__init__(path, self._answer, methods=[method], name=f"{method} {path}")
        self.method, self.handler, self.access, self.body, self.query = method, handler, access, body, query
        self.csrf = "none" if method == "GET" else csrf
        self._limit = limit or (PUBLIC_BYTES if access is PUBLIC else BODY_BYTES)
        self._decoder = None if method == "GET" or body is None else msgspec.json.Decoder(body)

    async def _answer(self, request: Request) -> Response:
        call = Call(request, request.app.state.fireside)
        await _admit(call, self.access, self.csrf)
        call.query = read_query(request.query_params, self.query)
        async with contextlib.AsyncExitStack() as stack:
            if self.access in (USER, ADMIN):
                if call.state.requests.waiting(call.user_id) >= call.state.waiting_per_user:
                    raise RateLimited(1)
                await stack.enter_async_context(call.state.requests.slot(call.user_id))
            if self._decoder is not None:
                call.body = await _read_body(request, self._decoder, self._limit)
            result = await self.handler(call)
            response = result if isinstance(result, Response) else answer(result)
            if isinstance(response, StreamingResponse):
                return response  # an answer may stream for an hour; exports have limits of their own
            return _Held(response, stack.pop_all())


class _Held(Response):
    """A response that holds a slot until it is sent, so that unread downloads of one user cannot fill the memory."""

    def __init__(self, response: Response, stack: contextlib.AsyncExitStack) -> None:
        self._response, self._stack = response, stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_pieces(message: Message) -> None:
            """uvicorn takes a piece when the reader has taken most of the earlier ones."""
            body = memoryview(message.get("body", b""))
            while len(body) > PIECE_BYTES:
                await send({"type": message["type"], "body": bytes(body[:PIECE_BYTES]), "more_body": True})
                body = body[PIECE_BYTES:]
            await send({**message, "body": bytes(body)} if "body" in message else message)

        async with self._stack:
            await self._response(scope, receive, send_in_pieces)


async def _admit(call: Call, access: Access, csrf: str) -> None:
    """401, then 403: who is asking, does the page that asks know the session's token, may they."""
    if access is PUBLIC:
        return
    auth, headers = call.state.auth, call.request.headers
    if access is OWNER:
        if not constant_time_equals(headers.get("authorization", ""), f"Bearer {call.state.secret}"):
            raise AuthRequired
        if not is_local(call.request):
            raise AuthRequired
        return
    call._identity = await _identify(call)
    call.request.scope["state"]["user_id"] = call.user_id
    token = headers.get("x-csrf-token")
    if csrf == "required" or (csrf == "lenient" and (token is not None or call.request.state.foreign)):
        auth.check_csrf(call.identity, token)
    if access is ADMIN and call.identity.user.role != "admin":
        raise Forbidden


async def _identify(call: Call) -> Identity:
    """The identity of the first cookie that has one. Raises AuthRequired."""
    for cookie in call.cookies:
        with contextlib.suppress(AuthRequired):
            return await call.state.auth.identify(cookie)
    raise AuthRequired


def is_local(request: Request) -> bool:
    """Whether the request comes from this computer, and through no proxy."""
    forwarded = any(name.startswith(("forwarded", "x-forwarded-")) for name in request.headers)
    peer = request.client.host if request.client else ""
    return not forwarded and (is_loopback(peer) or peer == request.scope["server"][0])


def read_query(given: Mapping[str, str], kind: type[Q]) -> Q:
    """What stands behind the question mark. Raises Invalid."""
    try:
        return msgspec.convert(dict(given), kind, strict=False)
    except msgspec.ValidationError as error:
        raise Invalid(_explain(error)) from None


async def _read_body(request: Request, decoder: msgspec.json.Decoder[Any], limit: int) -> Any:
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    raw = b"".join([piece async for piece in pieces(request, limit)])
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
    if what.startswith("Expected `str` matching regex"):
        what = "must be a text that is not blank, without characters that no text has"
    elif not isinstance(error, msgspec.ValidationError):
        what = f"the body is not JSON in UTF-8: {what}"
    return f"{field}: {what}" if field else what


async def pieces(request: Request, limit: int) -> AsyncIterator[bytes]:
    """The body as it arrives. Raises BodyTooLarge, and Invalid if the connection is closed, also by its deadline."""
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and (len(length) > 18 or int(length) > limit):
        raise BodyTooLarge(f"The body has more than {limit} bytes.")
    size = 0
    try:
        async for piece in request.stream():
            size += len(piece)
            if size > limit:
                raise BodyTooLarge(f"The body has more than {limit} bytes.")
            yield piece
    except ClientDisconnect:
        raise Invalid("The connection was closed before the whole body was received.") from None


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """Run `work` and return its result. Cancel it and return None when the client disconnects. For requests that were read."""

    async def disconnect() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(disconnect())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


def answer(value: Any, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json", headers=headers)
