"""HTTP/1.1 responses from a raw socket: what belongs to the response, and how much of it waits in memory."""

import asyncio
import time

import httpx
import pytest
from fireside.backends import http
from fireside.backends.http import BUFFER_BYTES, BUSY_SECONDS, CHUNK_BYTES, Response, read_body

from ..upstream import CHAT, Gate, Step, Upstream, close, eventually, hang, headers, pause, reset, status, wire

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


async def send(upstream: Upstream, content: bytes = b"") -> Response:
    return await http.send(httpx.Request("POST", upstream.url + CHAT, content=content))


async def response_to(upstream: Upstream, *steps: Step) -> tuple[Response, bytes]:
    """Return the response to a script, and its body."""
    upstream.enqueue(*steps)
    response = await send(upstream)
    try:
        return response, await read_body(response, 1_000_000)
    finally:
        await response.aclose()
        await upstream.closed()


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(HEAD + b"Content-Length: 5\r\n\r\nhello", id="content length"),
        pytest.param(HEAD + b"Content-Length: 5\r\n\r\nhello, and more", id="more than the content length"),
        pytest.param(CHUNKED + b"5\r\nhello\r\n0\r\n\r\n", id="chunked"),
        pytest.param(
            CHUNKED + b"2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\nX-Late: 1\r\n\r\n"
            b"HTTP/1.1 500 Another\r\nX: y\r\nContent-Length: 1\r\n\r\nz",
            id="chunk extensions, trailers, and a second response",
        ),
        pytest.param(HEAD + b"\r\nhello", id="until the connection is closed"),
        pytest.param(HEAD.replace(b"1.1", b"1.0") + b"\r\nhello", id="HTTP/1.0"),
        pytest.param(
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nX-Hint: 1\r\n\r\n"
            + HEAD + b"Content-Length: 5\r\n\r\nhello",
            id="after informational responses",
        ),
    ],
)  # fmt: skip
async def test_response_has_its_status_headers_and_body(upstream: Upstream, sent: bytes) -> None:
    for steps in ([wire(sent)], [wire(bytes([byte])) for byte in sent]):
        response, body = await response_to(upstream, *steps, close())
        assert (response.status, body) == (200, b"hello")
        assert response.headers["content-type"] == "text/plain"
        assert not {"x-late", "x-hint", "x"} & set(response.headers)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\r\n\r\n",
        HEAD + b"Content-Length: 9\r\n\r\nhello",
        CHUNKED + b"5\r\nhello",
        CHUNKED + b"5\r\nhello\r\n",
        HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nhello",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nhello",
        b"HTTP/2 200 OK\r\n\r\nhello",
    ],
)
async def test_incomplete_or_invalid_response_is_an_error(upstream: Upstream, sent: bytes) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        await response_to(upstream, wire(sent), close())
    await upstream.closed()


@pytest.mark.parametrize(
    ("before", "endless"),
    [
        pytest.param(b"", b"HTTP/1.1 103 Early Hints\r\nX-Hint: 1\r\n\r\n", id="informational responses"),
        pytest.param(CHUNKED + b"2\r\nhi\r\n0\r\n", b"X-Late: 1\r\n", id="trailers"),
        pytest.param(CHUNKED + b"2\r\nhi\r\n0\r\nX-Late: ", b"y" * 1000, id="one trailer"),
        pytest.param(CHUNKED + b"2;", b"y" * 1000, id="a chunk extension"),
    ],
)
async def test_endless_headers_or_trailers_are_an_error(upstream: Upstream, before: bytes, endless: bytes) -> None:
    with pytest.raises(httpx.RemoteProtocolError, match="headers or trailers are too long"):
        await response_to(upstream, wire(before), *[wire(endless * 100)] * 1000, hang())
    await upstream.closed()


async def test_connection_that_is_closed_before_the_request_is_an_error(upstream: Upstream) -> None:
    request = httpx.Request("POST", upstream.url + CHAT)
    connection = await http._connect(request.url)
    await eventually(lambda: upstream.connections == 1)
    await connection.aclose()
    await upstream.closed()
    with pytest.raises(httpx.ConnectError):
        await http.send(request, connection)


async def test_body_before_an_error_is_read_first(upstream: Upstream) -> None:
    upstream.enqueue(wire(CHUNKED + b"5\r\nhello\r\n!\r\n"), hang())
    response = await send(upstream)
    assert await response.read() == b"hello"
    with pytest.raises(httpx.RemoteProtocolError):
        await response.read()
    await response.aclose()


async def test_body_before_a_reset_is_read_first(upstream: Upstream) -> None:
    gate = Gate()
    upstream.enqueue(headers(framing="close"), b"x" * 3 * CHUNK_BYTES, pause(gate), reset())
    response = await send(upstream)
    await eventually(lambda: sum(map(len, response._unread)) == 3 * CHUNK_BYTES)
    gate.open()
    await eventually(response.connection.transport.is_closing)
    received = 0
    with pytest.raises(httpx.ReadError):
        while read := await response.read():
            received += len(read)
    assert received == 3 * CHUNK_BYTES
    await response.aclose()


async def test_slow_reader_lets_other_tasks_run(upstream: Upstream) -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    upstream.enqueue(headers(framing="close"), b"x" * 40 * CHUNK_BYTES)
    response = await send(upstream)
    task = asyncio.create_task(others())
    received = before = 0
    while read := await response.read():
        assert 0 < len(read) <= CHUNK_BYTES
        assert turns > before or not received, "no other task has run since the last read"
        received, before = received + len(read), turns
        time.sleep(1.2 * BUSY_SECONDS)  # noqa: ASYNC251
    assert received == 40 * CHUNK_BYTES
    task.cancel()
    await response.aclose()


async def test_fast_servers_together_get_half_of_the_time(upstream: Upstream) -> None:
    worked = 0.0

    async def read() -> None:
        nonlocal worked
        upstream.enqueue(headers(framing="close"), b"x" * 20 * CHUNK_BYTES)
        response = await send(upstream)
        while await response.read():
            began = time.monotonic()
            time.sleep(1.2 * BUSY_SECONDS)  # noqa: ASYNC251
            worked += time.monotonic() - began
        await response.aclose()

    began = time.monotonic()
    await asyncio.gather(*(read() for _ in range(4)))
    assert time.monotonic() - began > 1.6 * worked


@pytest.mark.parametrize("servers", [1, 2])
async def test_fast_server_is_paused_only_beside_another_and_until_the_pause_ends(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch, servers: int
) -> None:
    monkeypatch.setattr(http, "BUSY_SECONDS", 0.0001)
    reading: list[bool] = []  # during pauses

    async def watch() -> None:
        while True:
            reading.extend(one.connection.transport.is_reading() for one in responses if one._pausing)
            await asyncio.sleep(0)

    for _ in range(servers):
        upstream.enqueue(wire(CHUNKED + b"1\r\nx\r\n" * 1_000_000 + b"0\r\n\r\n"))
    responses = [await send(upstream) for _ in range(servers)]
    task = asyncio.create_task(watch())
    bodies = await asyncio.gather(*(read_body(response, 2_000_000) for response in responses))
    assert {len(body) for body in bodies} == {1_000_000}
    task.cancel()
    assert bool(reading) == (servers > 1) and not any(reading)
    for response in responses:
        await response.aclose()


@pytest.mark.parametrize("reads", [True, False])
async def test_server_waits_for_a_reader_that_does_not_read(upstream: Upstream, reads: bool) -> None:
    size = 64 * BUFFER_BYTES
    upstream.enqueue(headers(framing="close"), b"x" * size)
    response = await send(upstream)
    await eventually(lambda: not response.connection.transport.is_reading())
    assert sum(map(len, response._unread)) <= BUFFER_BYTES + CHUNK_BYTES
    if reads:
        assert len(await read_body(response, size)) == size
    await response.aclose()
    await upstream.closed()


async def test_large_request_is_sent_whole(upstream: Upstream) -> None:
    upstream.enqueue(status(200, "thanks"))
    response = await send(upstream, b"y" * 20_000_000)
    assert await read_body(response, 100) == b"thanks"
    assert len(upstream.requests[0].body) == 20_000_000
    await response.aclose()


async def test_connecting_has_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*args: object, **options: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr("fireside.backends.http.CONNECT_SECONDS", 0.05)
    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", never)
    with pytest.raises(httpx.ConnectTimeout):
        await http.send(httpx.Request("GET", "http://127.0.0.1:9"))
