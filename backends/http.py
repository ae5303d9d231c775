"""HTTP/1.1 requests to model servers, each on a connection of its own or an idle one.

Of httpx, only the types are used. Its transport leaks connections when a request is cancelled twice (encode/httpx#3782, measured:
20 of 20) and takes 5 times the CPU: 0.50 s instead of 0.09 s for 6,000 tokens in 60 streams. This module yields all that one read
from the socket brought, and ends a request by aborting its socket, which cannot be interrupted.

The only timeout is the one for connecting. No proxies, redirects, cookies, caching or compression.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from functools import cache, lru_cache
from typing import Any

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
CHUNK_BYTES = 32 * 1024  # given to the reader at a time: hostile ones keep it busy for up to 10 ms
BUSY_SECONDS = (
    0.005  # after which the reader sleeps for as long, so that other tasks run; 256 KiB of usual tokens take 3 ms
)
HEADERS = {
    "accept": "*/*",
    "accept-encoding": "identity",
    "user-agent": f"fireside/{__version__}",
}


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
            response = await send(request, await idle.streams() if idle else None)
        except httpx.ConnectError:  # nothing was sent, and a server that restarts may be back
            response = await send(request)
        if response.headers.get("content-encoding", "identity") != "identity":
            raise ProviderFailed(
                "PROVIDER_ERROR", f"{provider.name} sent a compressed response, which is not supported."
            )
        yield response
        if connections is not None and response.is_reusable:
            connections.keep(url, response.streams)
            response = None
    except httpx.TransportError as error:
        raise connection_error(provider, error) from error
    finally:
        if response is not None:
            await response.aclose()


async def read_body(response: "Response", limit: int) -> bytes:
    """Read the body, at most `limit` bytes of it."""
    data = bytearray()
    async with aclosing(response.chunks()) as chunks:
        async for chunk in chunks:
            data += chunk
            if len(data) > limit:
                break
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


class _Reader(asyncio.StreamReader):
    """A StreamReader that raises the error of a lost connection only after what arrived before has been read."""

    error: Exception | None = None
    _buffer: bytearray  # asyncio's

    @property
    def is_silent(self) -> bool:
        """Whether nothing is left to read, and the connection is open."""
        return not self._buffer and not self.at_eof()

    def set_exception(self, exc: Exception) -> None:
        self.error = exc
        self.feed_eof()


Streams = tuple[_Reader, asyncio.StreamWriter]


class IdleConnection:
    """A connection that waits for a request, or is still being opened. If that fails, so does the request."""

    def __init__(self, url: str, streams: asyncio.Future[Streams]) -> None:
        self.url = url
        self._streams = streams
        streams.add_done_callback(lambda opened: opened.cancelled() or opened.exception())  # no request may ask for it

    @property
    def is_usable(self) -> bool:
        """Whether it is open and silent, as far as is known. The error of one that could not be opened is the request's."""
        if not self._streams.done() or self._streams.cancelled() or self._streams.exception():
            return True
        reader, writer = self._streams.result()
        return reader.is_silent and not writer.is_closing()

    async def streams(self) -> Streams:
        try:
            return await self._streams
        except asyncio.CancelledError:
            self.close()
            raise

    def close(self) -> None:
        def abort(opened: asyncio.Future[Streams]) -> None:
            if not opened.cancelled() and not opened.exception():
                opened.result()[1].transport.abort()

        self._streams.cancel()
        self._streams.add_done_callback(abort)


class Connections:
    """The idle connections to a server: opened before their request is known, or kept after a response."""

    def __init__(self) -> None:
        self._idle: deque[tuple[IdleConnection, asyncio.TimerHandle]] = deque()

    def open(self, url: str) -> None:
        """Open a connection for a request to `url`, unless there is one."""
        if not self._idle:
            self._add(url, asyncio.create_task(_connect(_parsed(url))))

    def keep(self, url: str, streams: Streams) -> None:
        future = asyncio.get_running_loop().create_future()
        future.set_result(streams)
        self._add(url, future)

    def _add(self, url: str, streams: asyncio.Future[Streams]) -> None:
        timer = asyncio.get_running_loop().call_later(IDLE_SECONDS, lambda: self._idle.popleft()[0].close())
        self._idle.append((IdleConnection(url, streams), timer))

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


async def send(request: httpx.Request, streams: Streams | None = None) -> "Response":
    """Send a request and return the response once its headers have arrived.

    Raises ConnectError, ConnectTimeout, ReadError, RemoteProtocolError.
    """
    response = Response(streams or await _connect(request.url))
    try:
        response.send(request)
        while not response.status:
            await response.receive()
    except BaseException:
        await response.aclose()
        raise
    return response


async def _connect(url: httpx.URL) -> Streams:
    loop = asyncio.get_running_loop()
    reader = _Reader(limit=BUFFER_BYTES // 2, loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    host, secure = url.raw_host.decode("ascii"), url.scheme == "https"
    options: dict[str, Any] = {"ssl": _ssl_context()} if secure else {}
    if isinstance(loop, asyncio.BaseEventLoop) and not host.endswith(tuple("0123456789")):
        options["happy_eyeballs_delay"] = 0.25  # Windows takes 2 s to refuse ::1; uvloop has no such option
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            port = url.port or (443 if secure else 80)
            transport, _ = await loop.create_connection(lambda: protocol, host, port, **options)
    except TimeoutError:
        raise httpx.ConnectTimeout("the connection was not made in time") from None
    except ConnectionRefusedError as error:
        raise httpx.ConnectError("the connection was refused") from error
    except OSError as error:
        raise httpx.ConnectError(error.strerror or str(error)) from error
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


class Response:
    """One response, and its request: asyncio reads the bytes, httptools parses them."""

    def __init__(self, streams: Streams) -> None:
        self.status = 0
        self._fields: list[tuple[bytes, bytes]] = []
        self.streams = streams
        self._reader, self._writer = streams
        self._parser = httptools.HttpResponseParser(self)
        self._overhead = 0  # bytes since the last piece of the body
        self._body: list[bytes] = []
        self._complete = self._kept_open = False
        self._time = asyncio.get_running_loop().time
        self._more_waiting = False
        self._busy = 0.0  # seconds of parsing, and of the reader's work, since the last pause
        self._failure: httpx.RemoteProtocolError | None = None

    @property
    def headers(self) -> httpx.Headers:
        return httpx.Headers(self._fields)

    @property
    def is_reusable(self) -> bool:
        """Whether the connection can take another request: the response is complete, and the server keeps it open."""
        return self._kept_open and not self._failure and self._reader.is_silent

    def send(self, request: httpx.Request) -> None:
        lines = [b"%s %s HTTP/1.1" % (request.method.encode("ascii"), request.url.raw_path)]
        lines += [b"%s: %s" % field for field in request.headers.raw]
        self._writer.write(b"\r\n".join([*lines, b"", request.content]))

    async def receive(self) -> None:
        """Read from the socket once, and parse what arrived. An error that follows a piece of the body waits until the next call."""
        if self._failure:
            raise self._failure
        data = await self._reader.read(CHUNK_BYTES)
        started = self._time()
        if not data:
            if error := self._reader.error:
                raise httpx.ReadError(getattr(error, "strerror", None) or str(error)) from error
            names = {name.lower() for name, _ in self._fields}
            if not self.status or names & {b"content-length", b"transfer-encoding"}:
                raise httpx.RemoteProtocolError("the connection was closed")
            self._complete = True
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._failure = httpx.RemoteProtocolError("the response is not HTTP/1.1")
        self._more_waiting = len(data) == CHUNK_BYTES
        self._busy += self._time() - started
        self._overhead = 0 if self._body else self._overhead + len(data)
        if self._overhead > OVERHEAD_BYTES and not self._complete:
            raise httpx.RemoteProtocolError("the headers or trailers are too long")

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the body as it arrives. A reader that is slower than the server yields to other tasks."""
        while True:
            if not self._more_waiting:
                self._busy = 0.0
            elif self._busy > BUSY_SECONDS:
                await asyncio.sleep(self._busy)
                self._busy = 0.0
            if self._body:
                data = b"".join(self._body)
                self._body.clear()
                started = self._time()
                yield data
                self._busy += self._time() - started
            elif self._complete:
                return
            else:
                await self.receive()

    async def aclose(self) -> None:
        """Close the socket, also when this is cancelled at once. Return when it is closed."""
        self._writer.transport.abort()
        with suppress(OSError):
            await self._writer.wait_closed()

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

    def on_body(self, body: bytes) -> None:
        if not self._complete:
            self._body.append(body)

    def on_message_complete(self) -> None:
        self._kept_open = self.status != 0 and not self._complete and self._parser.should_keep_alive()
        self._complete = self.status != 0
