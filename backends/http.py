"""HTTP/1.1 requests to model servers, each on a connection of its own or an idle one.

Of httpx, only the types are used. Its transport leaks connections when a request is cancelled twice (encode/httpx#3782, measured:
20 of 20) and takes 5 times the CPU: 0.50 s instead of 0.09 s for 6,000 tokens in 60 streams. This module hands over all that one
read from the socket brought, and ends a request by aborting its socket, which cannot be interrupted.

The only timeout is the one for connecting. No proxies, redirects, cookies, caching or compression.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache, lru_cache
from typing import Any, ClassVar

import httptools
import httpx
import msgspec

from .. import __version__
from ..config import Provider
from ..errors import ProviderFailed
from .failures import connection_error

CONNECT_SECONDS = 5.0
IDLE_SECONDS = 1.0  # that a connection waits for a request; servers close idle ones after 5 s or more
OVERHEAD_BYTES = 64 * 1024  # of headers and trailers, and between two pieces of the body
BUFFER_BYTES = 256 * 1024  # of the body that wait for the reader before reading from the socket pauses
CHUNK_BYTES = 32 * 1024  # read at a time: hostile ones keep the reader busy for up to 10 ms
BUSY_SECONDS = 0.005  # of work for one of several servers that are faster than Fireside, before it must pause
HEADERS = {
    "accept": "*/*",
    "accept-encoding": "identity",
    "user-agent": f"fireside/{__version__}",
}

Take = Callable[[bytes], bool]  # takes a part of a body, and returns whether it takes another one


@asynccontextmanager
async def open_response(
    provider: Provider, method: str, url: str, content: bytes | None = None, connections: "Connections | None" = None
) -> AsyncIterator["Response"]:
    """Send a request, with `content` as JSON, and yield the response once its headers have arrived. Raises ProviderFailed.

    Leaving the block closes the connection, unless `connections` is given and the response is complete. This bypasses
    httpx.Client, whose cookies, redirects and authentication cost 0.1 ms and are not wanted.
    """
    headers = HEADERS | {"connection": "close" if connections is None else "keep-alive"}
    if provider.api_key:
        headers["authorization"] = f"Bearer {provider.api_key}"
    if content is not None:
        headers["content-type"] = "application/json"
    request = httpx.Request(method, _parsed(url), headers=headers, content=content)
    response = None
    try:
        try:
            idle = connections.take(url) if connections is not None else None
            response = await send(request, await idle.opened() if idle else None)
        except httpx.ConnectError:  # nothing was sent, and a server that restarts may be back
            response = await send(request)
        if response.headers.get("content-encoding", "identity") != "identity":
            raise ProviderFailed(
                "PROVIDER_ERROR", f"{provider.name} sent a compressed response, which is not supported."
            )
        yield response
        if connections is not None and response.is_reusable:
            connections.keep(url, response.connection)
            response = None
    except httpx.TransportError as error:
        raise connection_error(provider, error) from error
    finally:
        if response is not None:
            await response.aclose()


async def read_body(response: "Response", limit: int) -> bytes:
    """Read the body, at most `limit` bytes of it."""
    data = bytearray()
    while len(data) <= limit and (chunk := await response.read()) is not None:
        data += chunk
    return bytes(data[:limit])


async def fetch(provider: Provider, method: str, url: str, limit: int, body: Any = None) -> tuple[int, bytes]:
    """Return the status and at most `limit` bytes of the body. Raises ProviderFailed."""
    content = None if body is None else msgspec.json.encode(body)
    async with open_response(provider, method, url, content) as response:
        return response.status, await read_body(response, limit)


@lru_cache(64)
def _parsed(url: str) -> httpx.URL:
    return httpx.URL(url)


@cache
def _ssl_context() -> ssl.SSLContext:
    context = httpx.create_ssl_context(trust_env=False)  # takes 0.1 s
    context.set_alpn_protocols(["http/1.1"])
    return context


class _Connection(asyncio.BufferedProtocol):
    """A connection to a server, with one request at a time. It reads at most CHUNK_BYTES in a turn of the event loop."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.response: Response | None = None
        self._buffer = memoryview(bytearray(CHUNK_BYTES))
        self._closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def aclose(self) -> None:
        """Close the socket, also when this is cancelled at once. Return when it is closed."""
        self.transport.abort()
        await asyncio.shield(self._closed)

    # ---- called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self.response is None:  # nothing was asked
            self.transport.abort()
        else:
            self.response.feed(self._buffer[:nbytes])

    def eof_received(self) -> None:
        """Close the connection, which asyncio does when this returns None."""
        if self.response is not None:
            self.response.end(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._closed.set_result(None)
        self._buffer = memoryview(b"")  # garbage may refer to this
        if self.response is not None:
            self.response.end(error)


class IdleConnection:
    """A connection that waits for a request, or is still being opened. If that fails, so does the request."""

    def __init__(self, url: str, connection: asyncio.Future[_Connection]) -> None:
        self.url = url
        self._connection = connection
        connection.add_done_callback(
            lambda opened: opened.cancelled() or opened.exception()
        )  # no request may ask for it

    @property
    def is_usable(self) -> bool:
        """Whether it is open, as far as is known. The error of one that could not be opened is the request's."""
        if not self._connection.done() or self._connection.cancelled() or self._connection.exception():
            return True
        return not self._connection.result().transport.is_closing()

    async def opened(self) -> _Connection:
        try:
            return await self._connection
        except asyncio.CancelledError:
            self.close()
            raise

    def close(self) -> None:
        def abort(opened: asyncio.Future[_Connection]) -> None:
            if not opened.cancelled() and not opened.exception():
                opened.result().transport.abort()

        self._connection.cancel()
        self._connection.add_done_callback(abort)


class Connections:
    """The idle connections to a server: opened before their request is known, or kept after a response."""

    def __init__(self) -> None:
        self._idle: deque[tuple[IdleConnection, asyncio.TimerHandle]] = deque()

    def open(self, url: str) -> None:
        """Open a connection for a request to `url`, unless there is one."""
        if not self._idle:
            self._add(url, asyncio.create_task(_connect(_parsed(url))))

    def keep(self, url: str, connection: _Connection) -> None:
        connection.response = None
        future = asyncio.get_running_loop().create_future()
        future.set_result(connection)
        self._add(url, future)

    def _add(self, url: str, connection: asyncio.Future[_Connection]) -> None:
        timer = asyncio.get_running_loop().call_later(IDLE_SECONDS, lambda: self._idle.popleft()[0].close())
        self._idle.append((IdleConnection(url, connection), timer))

    def take(self, url: str) -> IdleConnection | None:
        """Return a connection for a request to `url`, if there is one."""
        while self._idle:
            connection, timer = self._idle.popleft()
            timer.cancel()
            if connection.url == url and connection.is_usable:
                return connection
            connection.close()
        return None

    def close(self) -> None:
        self.take("")


async def send(request: httpx.Request, connection: _Connection | None = None) -> "Response":
    """Send a request and return the response once its headers have arrived.

    Raises ConnectError, ConnectTimeout, ReadError, RemoteProtocolError.
    """
    response = Response(connection or await _connect(request.url))
    try:
        response.send(request)
        await response.receive_headers()
    except BaseException:
        await response.aclose()
        raise
    return response


async def _connect(url: httpx.URL) -> _Connection:
    loop = asyncio.get_running_loop()
    host, secure = url.raw_host.decode("ascii"), url.scheme == "https"
    options: dict[str, Any] = {"ssl": _ssl_context()} if secure else {}
    if isinstance(loop, asyncio.BaseEventLoop) and not host.endswith(tuple("0123456789")):
        options["happy_eyeballs_delay"] = 0.25  # Windows takes 2 s to refuse ::1; uvloop has no such option
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            port = url.port or (443 if secure else 80)
            _, connection = await loop.create_connection(_Connection, host, port, **options)
    except TimeoutError:
        raise httpx.ConnectTimeout("the connection was not made in time") from None
    except ConnectionRefusedError as error:
        raise httpx.ConnectError("the connection was refused") from error
    except OSError as error:
        raise httpx.ConnectError(error.strerror or str(error)) from error
    return connection


class Response:
    """One response, and its request. httptools parses it as it arrives.

    If several servers are faster than Fireside, they take turns, and together get half of the time of the event loop.
    """

    _fast: ClassVar[set["Response"]] = set()  # whose servers are faster
    _turns_until = 0.0  # the end of the last turn that one of them was given

    def __init__(self, connection: _Connection) -> None:
        self.status = 0
        self._fields: list[tuple[bytes, bytes]] = []
        self.connection = connection
        connection.response = self
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._overhead = 0  # bytes since the last piece of the body
        self._pieces: list[bytes] = []  # of the body, in the bytes that are being parsed
        self._unread: deque[bytes] = deque()  # at most BUFFER_BYTES and one chunk
        self._complete = self._kept_open = False
        self._failure: httpx.TransportError | None = None
        self._waiting: asyncio.Future[None] | None = None
        self._take: Take | None = None
        self._busy = 0.0  # seconds of work since the last pause, or since the server was slower
        self._pausing: asyncio.TimerHandle | None = None  # ends the pause
        self._is_fast = False  # whether the last read from the socket brought much
        self._returned_at = 0.0  # when `read` returned the last part, if the server was faster; 0 otherwise

    @property
    def headers(self) -> httpx.Headers:
        return httpx.Headers(self._fields)

    @property
    def is_reusable(self) -> bool:
        """Whether the connection can take another request: the response is complete, and the server keeps it open."""
        return self._kept_open and not self.connection.transport.is_closing()

    def send(self, request: httpx.Request) -> None:
        lines = [b"%s %s HTTP/1.1" % (request.method.encode("ascii"), request.url.raw_path)]
        lines += [b"%s: %s" % field for field in request.headers.raw]
        transport = self.connection.transport
        if transport.is_closing():  # the server has closed it before it could know of this request
            raise httpx.ConnectError("the connection was closed before the request was sent")
        transport.resume_reading()
        transport.write(b"\r\n".join([*lines, b"", request.content]))

    async def receive_headers(self) -> None:
        while not self.status:
            if self._failure:
                raise self._failure
            await self._wait(None)

    async def read(self, take: Take | None = None) -> bytes | None:
        """Return the next part of the body, or None at its end.

        While it waits, what arrives goes to `take`, without a change of tasks. When that returns False, return b"".
        """
        if self._returned_at:
            self._busy += self._loop.time() - self._returned_at
            self._returned_at = 0.0
            await asyncio.sleep(self._pause())
        if not self._unread and not self._failure and not self._complete:
            await self._wait(take)
        if self._unread:
            if self._pausing is None:
                self.connection.transport.resume_reading()
            part = self._unread.popleft()
            if self._is_fast or self._unread:
                self._returned_at = self._loop.time()
            return part
        if self._failure:
            raise self._failure
        return None if self._complete else b""

    async def aclose(self) -> None:
        Response._fast.discard(self)
        await self.connection.aclose()

    async def _wait(self, take: Take | None) -> None:
        self._take = take
        self._waiting = self._loop.create_future()
        await self._waiting

    def _wake(self, error: Exception | None = None) -> None:
        if self._waiting is not None and not self._waiting.done():
            if error:
                self._waiting.set_exception(error)
            else:
                self._waiting.set_result(None)

    # ---- called by the connection

    def feed(self, data: memoryview) -> None:
        """Parse what arrived. An error that follows a part of the body is raised after that was read."""
        if self._failure:
            return
        self._is_fast = len(data) > CHUNK_BYTES // 2
        started = self._loop.time() if self._is_fast else 0.0
        if self._is_fast:
            Response._fast.add(self)
        else:
            Response._fast.discard(self)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail(httpx.RemoteProtocolError("the response is not HTTP/1.1"))
        if self._pieces:
            body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
            self._pieces.clear()
            self._overhead = 0
            self._hand_over(body)
        else:
            self._overhead += len(data)
            if self._overhead > OVERHEAD_BYTES:
                self._fail(httpx.RemoteProtocolError("the headers or trailers are too long"))
        self._busy = self._busy + self._loop.time() - started if self._is_fast else 0.0
        self._pause()

    def _pause(self) -> float:
        """Stop reading from the socket if this server and another keep the event loop busy. Return for how many seconds, or 0."""
        work, now = self._busy, self._loop.time()
        if work <= BUSY_SECONDS:
            return 0.0
        self._busy = 0.0
        if len(Response._fast) < 2:
            return 0.0
        self.connection.transport.pause_reading()
        resumes_at = max(now, Response._turns_until) + work
        Response._turns_until = resumes_at + work
        if self._pausing is not None:
            self._pausing.cancel()
        self._pausing = self._loop.call_at(resumes_at, self._resume)
        return resumes_at - now

    def _resume(self) -> None:
        self._pausing = None
        self.connection.transport.resume_reading()

    def end(self, error: Exception | None) -> None:
        """End the response with the connection."""
        names = {name.lower() for name, _ in self._fields}
        if error is not None:
            self._fail(httpx.ReadError(getattr(error, "strerror", None) or str(error)))
        elif not self.status or names & {b"content-length", b"transfer-encoding"}:
            self._fail(httpx.RemoteProtocolError("the connection was closed"))
        else:
            self._complete = True
            self._wake()

    def _hand_over(self, body: bytes) -> None:
        """Give a part of the body to the task that waits, or keep it."""
        if self._take is None or self._waiting is None or self._waiting.done():
            self._unread.append(body)
            if sum(map(len, self._unread)) > BUFFER_BYTES:
                self.connection.transport.pause_reading()
            self._wake()
            return
        try:
            if not self._take(body):
                self._wake()
        except Exception as error:
            self._wake(error)

    def _fail(self, failure: httpx.TransportError) -> None:
        """End the response with a failure, unless it is complete: what follows it is ignored."""
        self._kept_open = False
        if not self._complete:
            self._failure = self._failure or failure
            self._wake()

    # ---- called by httptools: informational responses first, then the response; anything after it is ignored

    def on_message_begin(self) -> None:
        self._kept_open = False
        if not self.status:
            self._fields.clear()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.status:
            self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        if not self.status and self._parser.get_status_code() >= 200:
            self.status = self._parser.get_status_code()
            self._wake()

    def on_body(self, body: bytes) -> None:
        if not self._complete:
            self._pieces.append(body)

    def on_message_complete(self) -> None:
        Response._fast.discard(self)
        self._kept_open = self.status != 0 and not self._complete and self._parser.should_keep_alive()
        self._complete = self.status != 0
        self._wake()
