"""Deadlines in every state of a connection, limits on connections and headers, and TLS."""

import asyncio
import base64
import contextlib
import itertools
import json
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fireside import config, db
from fireside.cli import client as cli_client
from fireside.errors import ConfigError
from fireside.web import connection
from fireside.web.connection import CONNECTIONS_PER_ADDRESS, NEVER, Limits
from fireside.web.endpoint import REQUESTS_PER_USER
from fireside.web.schemas import IMAGE_BYTES

from ..certificates import make_certificate, needs_openssl, trusting
from ..cli.test_commands import serving
from ..live import BOOTSTRAP_TOKEN, PATIENCE, Person, Running, code, good, session, until
from ..processes import environment, run
from ..upstream import Gate, Upstream, answer, pause

posix = pytest.mark.skipif(os.name != "posix", reason="needs ulimit")
HOST = b"Host: localhost\r\n"


@contextlib.asynccontextmanager
async def connected(running: Running, **more: Any) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(running.url.rpartition(":")[2]), **more)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def shorten_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEAD_SECONDS", "BODY_SECONDS", "KEEP_ALIVE_SECONDS", "STALL_SECONDS"):
        monkeypatch.setattr(connection, name, 0.2)


@pytest.fixture
def short_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_deadlines(monkeypatch)


# ---- deadlines


CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
STATES = (  # the begin of a request, what is sent after it again and again, and the status of the response
    (b"", b"", b""),
    (b"GET /", b"a", b""),
    (b"GET / HTTP/1.1\r\n" + HOST, b"X: y\r\n", b""),
    (b"POST /auth/login HTTP/1.1\r\n" + HOST + b"Content-Length: 9999\r\n\r\n{", b"x", b"408"),
    (b"POST /auth/login HTTP/1.1\r\n" + HOST + CHUNKED, b"X: y\r\n", b"408"),
    (b"GET /version HTTP/1.1\r\n" + HOST + b"\r\n", b"\r\n", b"200"),
    (b"GET /version HTTP/1.1\r\n" + HOST + b"Content-Length: 9999\r\n\r\n", b"x", b"200"),
    (b"POST /render HTTP/1.1\r\n" + HOST + b"Content-Length: 9999\r\n\r\n", b"x", b"401"),
    (b"POST /nowhere HTTP/1.1\r\n" + HOST + b"Content-Length: 9999\r\n\r\n", b"x", b"404"),
    (b"POST /auth/login HTTP/1.1\r\n" + HOST + b"Content-Length: 99999\r\n\r\n", b"x", b"413"),
    (b"POST /nowhere HTTP/1.1\r\n" + HOST + CHUNKED, b"X: y\r\n", b"404"),
)


async def test_every_state_of_a_connection_has_a_deadline(running: Running, short_deadlines: None) -> None:
    async def try_state(begin: bytes, more: bytes, status: bytes) -> None:
        async def send_more(writer: asyncio.StreamWriter) -> None:
            while more and not writer.is_closing():
                writer.write(more)
                await asyncio.sleep(0.02)

        async with connected(running) as (reader, writer):
            writer.write(begin)
            sending = asyncio.create_task(send_more(writer))
            with contextlib.suppress(ConnectionError):
                head, _, body = (await reader.read()).partition(b"\r\n\r\n")
                assert head.partition(b" ")[2][:3] == status, begin
                if status == b"408":
                    error = json.loads(body)
                    assert error["code"] == "REQUEST_TIMEOUT" and b"connection: close" in head
                    assert f"x-request-id: {error['request_id']}".encode() in head
            sending.cancel()

    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*(try_state(*state) for state in STATES))
    await until(lambda: not running.server.server_state.connections)


@pytest.mark.parametrize("then", ["the client closes its side", "the client sends another request"])
async def test_unread_response_is_aborted(
    running: Running, ann: Person, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    data = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(IMAGE_BYTES - 8)).decode()  # more than the kernel buffers
    await ann.conversation(message={"content": "", "images": [{"media_type": "image/png", "data": data}]})
    cookie = "; ".join(f"{cookie.name}={cookie.value}" for cookie in ann.cookies.jar).encode()
    shorten_deadlines(monkeypatch)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", int(running.url.rpartition(":")[2])))
        request = b"GET /images/1 HTTP/1.1\r\n" + HOST + b"Cookie: " + cookie + b"\r\n\r\n"
        await asyncio.get_running_loop().sock_sendall(client, request)
        connections = running.server.server_state.connections
        await until(lambda: any(vars(each)["deadline"] < NEVER for each in connections))
        if then == "the client closes its side":
            client.shutdown(socket.SHUT_WR)
        else:
            await asyncio.get_running_loop().sock_sendall(client, request)
        await until(lambda: not connections)


async def test_stream_may_be_silent_for_longer_than_every_deadline(
    tmp_path: Path, upstream: Upstream, short_deadlines: None
) -> None:
    async with Running(tmp_path, lmstudio_url=upstream.url, ping_seconds="0.5") as running:
        ann = await running.first()
        conversation_id = await ann.conversation("Hello?")
        gate = Gate()
        upstream.enqueue(pause(gate))
        async with ann.streaming(conversation_id, provider_id="lmstudio", model="m") as events:
            pings = 0
            while pings < 4:
                pings += (await anext(events)).event == "ping"
            gate.open()
            assert [event.event async for event in events][-1] in ("done", "error")


async def test_half_a_request_after_a_stream_does_not_end_it(
    tmp_path: Path, upstream: Upstream, short_deadlines: None
) -> None:
    async with Running(tmp_path, lmstudio_url=upstream.url, ping_seconds="0.5") as running:
        ann = await running.first()
        path = f"/conversations/{await ann.conversation('Hello?')}/stream"
        fields = "".join(f"{name}: {value}\r\n" for name, value in session(ann).items()).encode()
        head = f"POST {path} HTTP/1.1\r\nContent-Type: application/json\r\n".encode() + HOST + fields
        body = b'{"provider_id": "lmstudio", "model": "m"}'
        gate = Gate()
        upstream.enqueue(pause(gate), answer("Hi."))
        async with connected(running) as (reader, writer):
            writer.write(head + b"Content-Length: %d\r\n\r\n" % len(body) + body + head + b"Content-Length: 9\r\n\r\n{")
            for _ in range(4):
                await asyncio.wait_for(reader.readuntil(b"event: ping"), PATIENCE)
            gate.open()
            await asyncio.wait_for(reader.readuntil(b"event: done"), PATIENCE)


async def test_slow_body_at_the_allowed_rate_is_read(
    running: Running, ann: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "BODY_SECONDS", 0.5)
    monkeypatch.setattr(connection, "BODY_BYTES_PER_SECOND", 10)
    conversation_id = await ann.conversation()

    async def body() -> AsyncIterator[bytes]:
        yield b'{"content": "'
        for _ in range(15):
            await asyncio.sleep(0.05)
            yield b"word "
        yield b'"}'

    path, head = f"/conversations/{conversation_id}/messages", {"Content-Type": "application/json"}
    good(await ann.post(path, content=body(), headers=head))


# ---- the size of headers


async def test_headers_are_limited_to_16_kib(running: Running) -> None:
    for size, status in ((15_000, b"200 OK"), (17_000, b"431 Request Header Fields Too Large")):
        async with connected(running) as (reader, writer):
            writer.write(b"GET /version HTTP/1.1\r\n" + HOST + b"Connection: close\r\nX: " + b"a" * size + b"\r\n\r\n")
            head, _, body = (await asyncio.wait_for(reader.read(), PATIENCE)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 " + status)
    assert json.loads(body)["code"] == "HEADERS_TOO_LARGE" and "cookies" in json.loads(body)["message"]


async def test_endless_head_is_cut_off(running: Running) -> None:
    beginnings = (b"GET / HTTP/1.1\r\nX: ", b"GET /", b"POST / HTTP/1.1\r\n" + HOST + CHUNKED + b"X: ")
    for begin, more in itertools.product(beginnings, (b"a" * 65536, b"X: y\r\n" * 10_000)):
        async with connected(running) as (_, writer):
            with pytest.raises(ConnectionError):
                writer.write(begin)
                for _ in range(100):
                    writer.write(more)
                    await writer.drain()


# ---- the number of connections


@dataclass
class FakeConnection:
    network: str
    deadline: float = 1.0


def test_connections_are_limited_by_address_and_by_side(tmp_path: Path) -> None:
    limits = Limits(config.load({"data_dir": str(tmp_path)}, {"FIRESIDE_TRUSTED_PROXIES": "10.0.0.2"}))

    def full(address: str, open_connections: list[FakeConnection]) -> Any:
        return limits.full_group(address, open_connections)  # type: ignore[arg-type]

    own = [FakeConnection("10.0.0.1")] * CONNECTIONS_PER_ADDRESS
    assert full("10.0.0.1", own) == own and full("10.0.0.1", own[1:]) == []
    assert full("10.0.0.9", own) == [] and full("127.0.0.1", own) == []
    assert full("10.0.0.2", [FakeConnection("10.0.0.2")] * 2 * CONNECTIONS_PER_ADDRESS) == []
    others = [FakeConnection(str(number)) for number in range(limits.per_side)]
    assert full("10.0.0.9", others) == others and full("127.0.0.1", others) == []
    local = [FakeConnection("loopback")] * limits.per_side
    assert full("127.0.0.9", local) == local and full("10.0.0.9", local) == []


async def test_new_connection_replaces_an_idle_one_but_no_stream(
    tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "MAX_CONNECTIONS", 8)
    monkeypatch.setattr(connection, "HEAD_SECONDS", 2 * PATIENCE)
    async with Running(tmp_path, lmstudio_url=upstream.url) as running, contextlib.AsyncExitStack() as stack:
        ann = await running.first()
        conversation_id = await ann.conversation("Hello?")
        gate = Gate()
        upstream.enqueue(pause(gate))
        events = await stack.enter_async_context(ann.streaming(conversation_id, provider_id="lmstudio", model="m"))
        assert (await anext(events)).event == "ping"
        held = [await stack.enter_async_context(connected(running)) for _ in range(12)]
        assert await asyncio.wait_for(held[0][0].read(), PATIENCE) == b""
        assert len(running.server.server_state.connections) <= 4
        good(await running.anybody().get("/health"))
        gate.open()
        assert [event.event async for event in events][-1] in ("done", "error")


async def test_streams_of_one_session_do_not_keep_others_from_connecting(
    tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "MAX_CONNECTIONS", 8)
    monkeypatch.setattr(connection, "HEAD_SECONDS", 2 * PATIENCE)
    async with Running(tmp_path, lmstudio_url=upstream.url) as running, contextlib.AsyncExitStack() as stack:
        ann = await running.first()
        conversation_id, gate = await ann.conversation("Hello?"), Gate()
        stack.callback(gate.open)
        upstream.enqueue(pause(gate))
        head = f"POST /conversations/{conversation_id}/stream HTTP/1.1\r\nContent-Type: application/json\r\n"
        fields = "".join(f"{name}: {value}\r\n" for name, value in session(ann).items())
        await ann.aclose()
        body = '{"provider_id": "lmstudio", "model": "m"}'
        for _ in range(3):
            reader, writer = await stack.enter_async_context(connected(running))
            writer.write(f"{head}{fields}Content-Length: {len(body)}\r\n".encode() + HOST + b"\r\n" + body.encode())
            assert (await asyncio.wait_for(reader.readline(), PATIENCE)).startswith(b"HTTP/1.1 200")
        await stack.enter_async_context(connected(running))
        await until(lambda: len(running.server.server_state.connections) == 4)
        good(await running.anybody().get("/health"))


async def test_requests_of_a_session_do_not_wait_for_those_of_strangers(running: Running, ann: Person) -> None:
    strangers = running.server.limits.strangers
    strangers.resize(0)
    async with running.anybody() as stranger:
        waiting = asyncio.create_task(stranger.get("/version"))
        await until(strangers.waiting)
        good(await ann.get("/auth/me"))
        good(await ann.get("/version"))
        assert not waiting.done()
        strangers.resize(connection.BEGINNING_STRANGERS)
        good(await waiting)


async def test_sessions_take_turns(running: Running, ann: Person, bob: Person) -> None:
    users, answered = running.server.limits.users, []

    async def ask(person: Person) -> None:
        good(await person.get("/version"))
        answered.append(person.name)

    users.resize(0)
    many = [asyncio.create_task(ask(ann)) for _ in range(20)]
    await until(lambda: users.waiting() == 20)
    one = asyncio.create_task(ask(bob))
    await until(lambda: users.waiting() == 21)
    users.resize(1)
    await asyncio.gather(*many, one)
    assert answered.index(bob.name) <= 2


async def test_new_connections_wait_while_many_strangers_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_CONNECTIONS", 8)
    async with Running(tmp_path) as running, contextlib.AsyncExitStack() as stack:
        ann = await running.first()
        good(await ann.get("/auth/me"))
        strangers = running.server.limits.strangers
        strangers.resize(0)

        async def ask() -> asyncio.StreamReader:
            reader, writer = await stack.enter_async_context(connected(running))
            writer.write(b"GET /version HTTP/1.1\r\n" + HOST + b"\r\n")
            return reader

        await ask()
        await until(lambda: strangers.waiting() == 1)
        await ask()
        await until(lambda: strangers.waiting() == 2)
        reader = await ask()
        for _ in range(5):  # the third connection still waits in the backlog
            good(await ann.get("/auth/me"))
        assert strangers.waiting() == 2
        strangers.resize(connection.BEGINNING_STRANGERS)
        assert (await asyncio.wait_for(reader.readline(), PATIENCE)).startswith(b"HTTP/1.1 200")


async def test_session_with_the_most_connections_loses_one_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "MAX_CONNECTIONS", 8)
    monkeypatch.setattr(connection, "KEEP_ALIVE_SECONDS", 2 * PATIENCE)
    async with Running(tmp_path) as running, contextlib.AsyncExitStack() as stack:
        ann = await running.first()
        head = b"GET /auth/me HTTP/1.1\r\n" + HOST
        cookies = [
            f"Cookie: {session(person)['Cookie']}\r\n\r\n".encode() for person in (ann, await running.join(ann, "bob"))
        ]
        await ann.aclose()
        held = []
        for cookie in (cookies[0], *[cookies[1]] * 6):
            reader, writer = await stack.enter_async_context(connected(running))
            writer.write(head + cookie)
            assert (await asyncio.wait_for(reader.readline(), PATIENCE)).startswith(b"HTTP/1.1 200")
            held.append((reader, writer))
        reader, writer = held[0]
        writer.write(head + cookies[0])
        assert b"ann" in await asyncio.wait_for(reader.readuntil(b'"username":"ann"'), PATIENCE)


@posix
def test_few_descriptors_suffice_for_strangers_and_the_command_line(tmp_path: Path) -> None:
    limited = ["/bin/sh", "-c", 'ulimit -n 256 && exec "$@"', "sh", sys.executable, "-m", "fireside"]
    command = [*limited, "--no-open", "--port", "0", "--data-dir", str(tmp_path / "data")]
    environ = environment(bootstrap_token=BOOTSTRAP_TOKEN, lmstudio_url="http://127.0.0.1:9")
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as service:
        try:
            assert service.stdout is not None
            port = int(service.stdout.readline().rpartition(":")[2])
            with contextlib.ExitStack() as stack:
                for _ in range(400):
                    held = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE / 3))
                    held.sendall(b"GET /version HTTP/1.1\r\n" + HOST + b"\r\n")
                    assert held.recv(100).startswith(b"HTTP/1.1 200 OK")
                    held.sendall(b"\r\n")
                with httpx.Client(trust_env=False, timeout=PATIENCE) as client:
                    assert client.get(f"http://127.0.0.1:{port}/health").status_code == 200
                done = run("backup", str(tmp_path / "copy.db"), "--data-dir", str(tmp_path / "data"))
                assert done.returncode == 0, done.stderr
        finally:
            service.terminate()
    assert (tmp_path / "copy.db").stat().st_size


# ---- TLS


@needs_openssl
async def test_certificate_turns_on_https_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = make_certificate(tmp_path / "tls")
    async with Running(tmp_path, tls_certificate=str(certificate), tls_key=str(key)) as running:
        assert running.url.startswith("https://")
        context = trusting(certificate)
        async with httpx.AsyncClient(base_url=running.url, verify=context, trust_env=False, timeout=PATIENCE) as client:
            body = {"username": "ann", "password": "a long enough phrase", "token": BOOTSTRAP_TOKEN}
            answer = await client.post("/admin/bootstrap", json=body, headers={"Origin": running.url})
            good(answer)
            cookie = answer.headers["set-cookie"]
            assert cookie.startswith("__Host-fireside=") and "; Secure" in cookie
            assert good(await client.get("/auth/me"))["user"]["username"] == "ann"
        shorten_deadlines(monkeypatch)
        for begin, more in ((b"", {}), (b"\x16\x03\x01", {}), (b"", {"ssl": context}), (b"GET /", {"ssl": context})):
            async with connected(running, **more) as (reader, writer):
                writer.write(begin)
                with contextlib.suppress(ConnectionError, ssl.SSLError):
                    assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
        await until(lambda: not running.server.server_state.connections)


@needs_openssl
def test_command_line_trusts_only_the_certificate_of_the_service(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path / "tls")
    data = tmp_path / "data"
    with serving(data, tls_certificate=str(certificate), tls_key=str(key)) as service:
        assert service.url.startswith("https://127.0.0.1:")
        done = run("backup", str(tmp_path / "copy.db"), "--data-dir", str(data))
        assert done.returncode == 0, done.stderr
        told = json.loads((data / "service.json").read_text("utf-8"))
        assert cli_client.find_service(config.load({"data_dir": str(data)}, {})) is not None
        told["certificate"] = make_certificate(tmp_path / "tls", "other")[0].read_text("utf-8")
        (data / "service.json").write_text(json.dumps(told), "utf-8")
        assert cli_client.find_service(config.load({"data_dir": str(data)}, {})) is None


@needs_openssl
def test_unusable_certificate_is_named(tmp_path: Path) -> None:
    certificate, key = (str(file) for file in make_certificate(tmp_path / "tls"))
    other = str(make_certificate(tmp_path / "tls", "other")[1])
    missing = str(tmp_path / "missing.pem")
    for given, names in (
        ((certificate, None), ["tls_certificate and tls_key: set both"]),
        ((None, key), ["tls_certificate and tls_key: set both"]),
        ((missing, key), ["tls_certificate: ", missing]),
        ((certificate, missing), ["tls_key: ", missing]),
        ((certificate, other), ["tls_certificate, tls_key: ", certificate, other]),
        ((key, key), ["tls_certificate, tls_key: ", key]),
    ):
        variables = zip(("FIRESIDE_TLS_CERTIFICATE", "FIRESIDE_TLS_KEY"), given, strict=True)
        environ = {name: file for name, file in variables if file is not None}
        with pytest.raises(ConfigError) as error:
            Limits(config.load({"data_dir": str(tmp_path)}, environ))
        assert all(name in str(error.value) for name in names), error.value


# ---- the service file


def test_old_service_file_is_deleted_before_the_start_can_fail(tmp_path: Path) -> None:
    (tmp_path / "service.json").write_text("{}", "utf-8")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run("--port", str(taken.getsockname()[1]), "--data-dir", str(tmp_path))
    assert done.returncode == 2 and not (tmp_path / "service.json").exists()
    assert db.lock_holder(tmp_path) is None


async def test_error_closes_the_connection_of_a_stranger_only(running: Running, ann: Person) -> None:
    refused, missing = await running.anybody().get("/conversations"), await ann.get("/conversations/999")
    assert (refused.status_code, refused.headers.get("connection")) == (401, "close")
    assert (missing.status_code, missing.headers.get("connection")) == (404, None)


async def test_too_many_pipelined_requests_close_the_connection(tmp_path: Path) -> None:
    async with Running(tmp_path) as running:
        for count, answered in ((8, 8), (2000, 0)):
            async with connected(running) as (reader, writer):
                writer.write(b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n" * count)
                received = b""
                with contextlib.suppress(ConnectionResetError, TimeoutError):
                    async with asyncio.timeout(PATIENCE):
                        while received.count(b"HTTP/1.1 200 ") < count and (data := await reader.read(65536)):
                            received += data
                assert answered <= received.count(b"HTTP/1.1 200 ") < 200


async def test_unread_downloads_of_a_user_are_limited(running: Running, ann: Person, bob: Person) -> None:
    data = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(IMAGE_BYTES - 8)).decode()  # more than the kernel buffers
    await ann.conversation(message={"content": "", "images": [{"media_type": "image/png", "data": data}]})
    running.state.waiting_per_user = 20
    async with contextlib.AsyncExitStack() as stack:
        unread = [await stack.enter_async_context(ann.stream("GET", "/images/1")) for _ in range(REQUESTS_PER_USER)]
        waiting = asyncio.create_task(ann.get("/auth/me"))
        for _ in range(20):
            good(await bob.get("/auth/me"))
        assert not waiting.done()
        more = [asyncio.create_task(ann.get("/auth/me")) for _ in range(20)]
        assert code(await next(asyncio.as_completed(more))) == (429, "RATE_LIMITED"), (
            "connections that wait are bounded"
        )
        await unread[0].aclose()
        good(await waiting)
        assert sorted([(await each).status_code for each in more]) == [200] * 19 + [429]
