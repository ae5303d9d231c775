"""A transport for httpx: each request has a connection of its own, parsed by httptools.

httpx's own transport keeps a pool. Its slots leak when a request is cancelled twice (encode/httpx#3782, measured: 20 of
20), it hands out one HTTP chunk at a time though fifty came in one read, and it arms a timeout for each: a token costs
three times as much through it. Here a read is what the network gave, and the end of a request is the abort of a
socket, which is no coroutine, so that nothing can interrupt it.

The only timeout is that of connecting. No proxy, no redirect, no cookie, no cache, no decoding.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator
from functools import cached_property
from typing import Any, cast

import httptools
import httpx

CONNECT_SECONDS = 5.0
HEAD_LIMIT = 64 * 1024  # bytes without a body: of the heads, between two pieces of the body, and after it
BUFFER = 256 * 1024  # bytes of the body that wait for the reader; then reading from the socket pauses
READ_BYTES = 32 * 1024  # that the reader gets at a time: hostile ones take it up to 10 ms
TURN_SECONDS = 0.005  # that the reader may take, as other tasks may then; usual tokens of 256 KiB take 3 ms


class Transport(httpx.AsyncBaseTransport):
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Raises ConnectError, ConnectTimeout, ReadError, RemoteProtocolError."""
        body = await request.aread()
        exchange = await self._connect(request.url)
        try:
            exchange.send(request, body)
            await exchange.head()
        except BaseException:
            await exchange.aclose()
            raise
        return httpx.Response(exchange.status, headers=exchange.headers, stream=exchange)

    async def _connect(self, url: httpx.URL) -> "_Exchange":
        loop = asyncio.get_running_loop()
        host, secure = url.raw_host.decode("ascii"), url.scheme == "https"
        options: dict[str, Any] = {"ssl": self._ssl} if secure else {}
        if isinstance(loop, asyncio.BaseEventLoop) and not host.endswith(tuple("0123456789")):
            options["happy_eyeballs_delay"] = 0.25  # Windows takes 2 s to refuse ::1; uvloop has no such option
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                port = url.port or (443 if secure else 80)
                _, exchange = await loop.create_connection(_Exchange, host, port, **options)
        except TimeoutError:
            raise httpx.ConnectTimeout("the connection was not made in time") from None
        except ConnectionRefusedError as error:
            raise httpx.ConnectError("the connection was refused") from error
        except OSError as error:
            raise httpx.ConnectError(error.strerror or str(error)) from error
        return exchange

    @cached_property
    def _ssl(self) -> ssl.SSLContext:
        context = httpx.create_ssl_context(trust_env=False)  # takes 0.1 s, hence one for all
        context.set_alpn_protocols(["http/1.1"])
        return context


class _Exchange(asyncio.Protocol, httpx.AsyncByteStream):
    """One request and its answer: asyncio brings the bytes, httptools takes them apart, httpx reads the body."""

    _transport: asyncio.Transport

    def __init__(self) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self._parser = httptools.HttpResponseParser(self)
        self._bodiless = 0  # bytes since the last piece of the body
        self._body: list[bytes] = []
        self._size = 0
        self._ended = False
        self._failure: httpx.TransportError | None = None
        self._paused = False
        self._news: asyncio.Future[None] | None = None
        self._lost = asyncio.get_running_loop().create_future()

    # what Transport and httpx ask for

    def send(self, request: httpx.Request, body: bytes) -> None:
        lines = [b"%s %s HTTP/1.1" % (request.method.encode("ascii"), request.url.raw_path)]
        lines += [b"%s: %s" % field for field in request.headers.raw]
        self._transport.write(b"\r\n".join([*lines, b"", body]))

    async def head(self) -> None:
        while not self.status:
            await self._wait()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield what has arrived since the last read, READ_BYTES of it at a time."""
        time = asyncio.get_running_loop().time
        while True:
            if self._body:
                data = b"".join(self._body)
                self._body.clear()
                self._size = 0
                self._resume()
                began = time()
                for start in range(0, len(data), READ_BYTES):
                    yield data[start : start + READ_BYTES]
                    taken = time() - began
                    if taken > TURN_SECONDS:
                        await asyncio.sleep(taken)
                        began = time()
            elif self._ended:
                return
            else:
                await self._wait()

    async def aclose(self) -> None:
        """Returns when the socket is closed; it is closed even if this is cancelled at once."""
        self._transport.abort()
        await asyncio.shield(self._lost)

    async def _wait(self) -> None:
        if self._failure:
            raise self._failure
        self._news = asyncio.get_running_loop().create_future()
        await self._news

    def _resume(self) -> None:
        if self._paused and not self._transport.is_closing():
            self._transport.resume_reading()
        self._paused = False

    # what asyncio says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none, but does as one

    def data_received(self, data: bytes) -> None:
        waiting = self._size
        try:
            if not self._ended:
                self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(httpx.RemoteProtocolError(f"what came is not HTTP/1.1: {error}"))
        self._bodiless = 0 if self._size > waiting else self._bodiless + len(data)
        if self._bodiless > HEAD_LIMIT and not self._ended:
            self._fail(httpx.RemoteProtocolError("the answer's head or trailer is too long"))
        if self._size > BUFFER and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        self._tell()

    def connection_lost(self, error: Exception | None) -> None:
        names = {name.lower() for name, _ in self.headers}
        if self.status and not error and not names & {b"content-length", b"transfer-encoding"}:
            self._ended = True
        if not self._ended:
            what = (getattr(error, "strerror", None) or str(error)) if error else "the connection was closed"
            self._fail(httpx.ReadError(what) if error else httpx.RemoteProtocolError(what))
        self._lost.set_result(None)
        self._tell()

    def _fail(self, failure: httpx.TransportError) -> None:
        self._failure = self._failure or failure
        self._transport.abort()

    def _tell(self) -> None:
        if self._news and not self._news.done():
            self._news.set_result(None)

    # what httptools finds: perhaps messages with a status below 200, then the answer; what follows that is ignored

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
        if not self._ended:
            self._body.append(body)
            self._size += len(body)

    def on_message_complete(self) -> None:
        self._ended = self.status != 0
