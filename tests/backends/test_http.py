"""HTTP/1.1 from a raw socket: what is part of the answer, what is not, and how much of it waits in memory."""

import asyncio
import time

import httpx
import pytest
from fireside.backends.http import BUFFER, READ_BYTES, TURN_SECONDS, Transport, _Exchange

from ..upstream import CHAT, Step, Upstream, close, eventually, hang, headers, status, wire

PLAIN = b"Content-Type: text/plain\r\n"


async def answer_to(upstream: Upstream, *steps: Step) -> httpx.Response:
    upstream.enqueue(*steps)
    async with httpx.AsyncClient(transport=Transport()) as client:
        response = await client.get(upstream.url + CHAT)
    await upstream.closed()
    return response


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\n%sContent-Length: 5\r\n\r\nhello", id="with its length"),
        pytest.param(b"HTTP/1.1 200 OK\r\n%sContent-Length: 5\r\n\r\nhello, and more", id="with more than its length"),
        pytest.param(b"HTTP/1.1 200 OK\r\n%sTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", id="chunked"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\n%sTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\nX-Late: 1\r\n\r\n"
            b"HTTP/1.1 500 Another\r\nX: y\r\nContent-Length: 1\r\n\r\nz",
            id="chunked, with extensions, trailers, and another answer behind it",
        ),
        pytest.param(b"HTTP/1.1 200 OK\r\n%s\r\nhello", id="until the connection is closed"),
        pytest.param(b"HTTP/1.0 200 OK\r\n%s\r\nhello", id="HTTP/1.0"),
        pytest.param(
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nX-Hint: 1\r\n\r\n"
            b"HTTP/1.1 200 OK\r\n%sContent-Length: 5\r\n\r\nhello",
            id="after provisional ones",
        ),
    ],
)
async def test_answer_is_its_status_its_head_and_its_body(upstream: Upstream, sent: bytes) -> None:
    response = await answer_to(upstream, wire(sent % PLAIN), close())
    assert (response.status_code, response.text) == (200, "hello")
    assert response.headers["content-type"] == "text/plain"
    assert not {"x-late", "x-hint", "x"} & set(response.headers)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nhello",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nhello",
        b"HTTP/2 200 OK\r\n\r\nhello",
    ],
)
async def test_answer_that_is_not_whole_is_an_error(upstream: Upstream, sent: bytes) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        await answer_to(upstream, wire(sent), close())
    await upstream.closed()


async def test_head_that_arrives_bit_by_bit_is_a_head(upstream: Upstream) -> None:
    letters = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
    assert (await answer_to(upstream, *(wire(bytes([letter])) for letter in letters))).text == "hi"


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("before", "endless"),
    [
        pytest.param(b"", b"HTTP/1.1 103 Early Hints\r\nX-Hint: 1\r\n\r\n", id="informational responses"),
        pytest.param(CHUNKED + b"2\r\nhi\r\n0\r\n", b"X-Late: 1\r\n", id="fields of the trailer"),
        pytest.param(CHUNKED + b"2\r\nhi\r\n0\r\nX-Late: ", b"y" * 1000, id="one field of the trailer"),
        pytest.param(CHUNKED + b"2;", b"y" * 1000, id="extension of a chunk"),
    ],
)
async def test_endless_head_or_trailer_is_an_error(upstream: Upstream, before: bytes, endless: bytes) -> None:
    with pytest.raises(httpx.RemoteProtocolError, match="head or trailer is too long"):
        await answer_to(upstream, wire(before), *[wire(endless * 100)] * 1000, hang())
    await upstream.closed()


async def test_reader_that_takes_long_leaves_time_to_other_tasks(upstream: Upstream) -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    upstream.enqueue(headers(framing="close"), b"x" * 40 * READ_BYTES)
    response = await Transport().handle_async_request(httpx.Request("GET", upstream.url + CHAT))
    task = asyncio.create_task(others())
    received = before = 0
    async for read in response.aiter_raw():
        assert 0 < len(read) <= READ_BYTES
        assert turns > before or not received, "no other task has run since the last read"
        received, before = received + len(read), turns
        time.sleep(1.2 * TURN_SECONDS)  # noqa: ASYNC251
    assert received == 40 * READ_BYTES
    task.cancel()
    await response.aclose()


async def test_server_has_to_wait_for_a_reader_that_does_not_read(upstream: Upstream) -> None:
    size = 64 * BUFFER
    upstream.enqueue(headers(framing="close"), b"x" * size)
    response = await Transport().handle_async_request(httpx.Request("GET", upstream.url + CHAT))
    exchange = response.stream
    assert isinstance(exchange, _Exchange)
    await eventually(lambda: exchange._paused)
    assert exchange._size <= 2 * BUFFER
    received = 0
    async for read in response.aiter_raw():
        received += len(read)
        assert len(read) <= 2 * BUFFER
    assert received == size
    await response.aclose()


async def test_closing_while_the_server_waits_closes(upstream: Upstream) -> None:
    upstream.enqueue(headers(framing="close"), b"x" * 64 * BUFFER)
    response = await Transport().handle_async_request(httpx.Request("GET", upstream.url + CHAT))
    exchange = response.stream
    assert isinstance(exchange, _Exchange)
    await eventually(lambda: exchange._paused)
    await response.aclose()
    await upstream.closed()


async def test_large_request_is_sent_whole(upstream: Upstream) -> None:
    upstream.enqueue(status(200, "thanks"))
    async with httpx.AsyncClient(transport=Transport()) as client:
        response = await client.post(upstream.url + CHAT, content=b"y" * 20_000_000)
    assert response.text == "thanks"
    assert len(upstream.requests[0].body) == 20_000_000


async def test_connecting_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*args: object, **options: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr("fireside.backends.http.CONNECT_SECONDS", 0.05)
    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", never)
    async with httpx.AsyncClient(transport=Transport()) as client:
        with pytest.raises(httpx.ConnectTimeout):
            await client.get("http://127.0.0.1:9")
