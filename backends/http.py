"""HTTP/1.1 requests to model servers, with an httpx transport that opens one connection for each request.

httpx's own transport leaks connections when a request is cancelled twice (encode/httpx#3782, measured: 20 of 20) and takes
5 times the CPU: 0.50 s instead of 0.09 s for 6,000 tokens in 60 streams. This one yields all that one read from the
socket brought, and ends a request by aborting its socket, which cannot be interrupted.

The only timeout is the one for connecting. No proxies, redirects, cookies, caching or compression.
"""

import asyncio
import ssl
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from functools import cache
from typing import Any

import httptools
import httpx
import msgspec

from .. import __version__
from ..config import Provider
from ..errors import ProviderFailed
from .failures import connection_error

CONNECT_SECONDS = 5.0
OVERHEAD_BYTES = 64 * 1024  # of headers and trailers, and between two pieces of the body
BUFFER_BYTES = 256 * 1024  # of the body that wait for the reader before reading from the socket pauses
CHUNK_BYTES = 32 * 1024  # given to the reader at a time: hostile ones keep it busy for up to 10 ms
BUSY_SECONDS = (
    0.005  # after which the reader sleeps for as long, so that other tasks run; 256 KiB of usual tokens take 3 ms
)
HEADERS = {
    "accept": "*/*",
    "accept-encoding": "identity",
    "connection": "close",
    "user-agent": f"fireside/{__version__}",
}


@asynccontextmanager
async def open_response(
    provider: Provider, method: str, url: str, content: bytes | None = None
) -> AsyncIterator[httpx.Response]:
    """Send a request, with `content` as JSON, and yield the response once its headers have arrived. Raises ProviderFailed.

    Leaving the block closes the connection. This bypasses httpx.Client, whose cookies, redirects and authentication
    cost 0.1 ms and are not wanted.
    """
    headers = dict(HEADERS)
    if provider.api_key:
        headers["authorization"] = f"Bearer {provider.api_key}"
    if content is not None:
        headers["content-type"] = "application/json"
    request = httpx.Request(method, url, headers=headers, content=content)
    response = None
    try:
        try:
            response = await Transport().handle_async_request(request)
        except httpx.ConnectError:  # nothing was sent, and a server that restarts may be back
            response = await Transport().handle_async_request(request)
        if response.headers.get("content-encoding", "identity") != "identity":
            raise ProviderFailed(
                "PROVIDER_ERROR", f"{provider.name} sent a compressed response, which is not supported."
            )
        yield response
    except httpx.TransportError as error:
        raise connection_error(provider, error) from error
    finally:
        if response is not None:
            await response.aclose()


def body_chunks(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    """Return the transport's generator of the body. response.aiter_raw() adds two generators to it, which each token passes."""
    assert isinstance(response.stream, AsyncIterable)
    chunks = aiter(response.stream)
    assert isinstance(chunks, AsyncGenerator)
    return chunks


async def read_body(response: httpx.Response, limit: int) -> bytes:
    """Read the body, at most `limit` bytes of it."""
    data = bytearray()
    async with aclosing(body_chunks(response)) as chunks:
        async for chunk in chunks:
            data += chunk
            if len(data) > limit:
                break
    return bytes(data[:limit])


async def fetch(provider: Provider, method: str, url: str, limit: int, body: Any = None) -> tuple[int, bytes]:
    """Return the status and at most `limit` bytes of the body. Raises ProviderFailed."""
    content = None if body is None else msgspec.json.encode(body)
    async with open_response(provider, method, url, content) as response:
        return response.status_code, await read_body(response, limit)


@cache
def _ssl_context() -> ssl.SSLContext:
    context = httpx.create_ssl_context(trust_env=False)  # takes 0.1 s
    context.set_alpn_protocols(["http/1.1"])
    return context


class _Reader(asyncio.StreamReader):
    """A StreamReader that raises the error of a lost connection only after what arrived before has been read."""

    error: Exception | None = None

    def set_exception(self, exc: Exception) -> None:
        self.error = exc
        self.feed_eof()


class Transport(httpx.AsyncBaseTransport):
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Raises ConnectError, ConnectTimeout, ReadError, RemoteProtocolError."""
        body = await request.aread()
        exchange = _Exchange(*await _connect(request.url))
        try:
            exchange.send(request, body)
            while not exchange.status:
                await exchange.receive()
        except BaseException:
            await exchange.aclose()
            raise
        return httpx.Response(exchange.status, headers=exchange.headers, stream=exchange)


async def _connect(url: httpx.URL) -> tuple[_Reader, asyncio.StreamWriter]:
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


class _Exchange(httpx.AsyncByteStream):
    """One request and its response: asyncio reads the bytes, httptools parses them."""

    def __init__(self, reader: _Reader, writer: asyncio.StreamWriter) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self._reader = reader
        self._writer = writer
        self._parser = httptools.HttpResponseParser(self)
        self._overhead = 0  # bytes since the last piece of the body
        self._body: list[bytes] = []
        self._complete = False
        self._time = asyncio.get_running_loop().time
        self._more_waiting = False
        self._busy = 0.0  # seconds of parsing, and of the reader's work, since the last pause
        self._failure: httpx.RemoteProtocolError | None = None

    def send(self, request: httpx.Request, body: bytes) -> None:
        lines = [b"%s %s HTTP/1.1" % (request.method.encode("ascii"), request.url.raw_path)]
        lines += [b"%s: %s" % field for field in request.headers.raw]
        self._writer.write(b"\r\n".join([*lines, b"", body]))

    async def receive(self) -> None:
        """Read from the socket once, and parse what arrived. An error that follows a piece of the body waits until the next call."""
        if self._failure:
            raise self._failure
        data = await self._reader.read(CHUNK_BYTES)
        started = self._time()
        if not data:
            if error := self._reader.error:
                raise httpx.ReadError(getattr(error, "strerror", None) or str(error)) from error
            names = {name.lower() for name, _ in self.headers}
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

    async def __aiter__(self) -> AsyncIterator[bytes]:
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
        if not self.status:
            self.headers.clear()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.status:
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if not self.status and self._parser.get_status_code() >= 200:
            self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if not self._complete:
            self._body.append(body)

    def on_message_complete(self) -> None:
        self._complete = self.status != 0
