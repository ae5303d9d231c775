"""What stands before every route: whose host, whose origin, and the headers that every answer leaves with."""

import asyncio
import base64
import json
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fireside import config
from fireside.web import endpoint, handlers, middleware

from ..live import PATIENCE, Person, Running, code, good, parse_event
from ..upstream import Gate, Upstream, pause

FRONT = "https://front.example"


async def raw(running: Running, request: bytes) -> tuple[int, dict[str, list[str]], bytes]:
    """An answer to exactly these bytes: status, headers (names in small letters), body."""
    host, _, port = running.url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request)
        async with asyncio.timeout(PATIENCE):
            answer = await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers: dict[str, list[str]] = {}
    for line in lines:
        name, _, value = line.partition(": ")
        headers.setdefault(name.lower(), []).append(value)
    return int(first.split()[1]), headers, body


async def ask(running: Running, *lines: str, method: str = "GET", path: str = "/version") -> tuple[int, str]:
    """Status and error code of a request with exactly these header lines."""
    head = "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "Connection: close", "", ""])
    status, _, body = await raw(running, head.encode("latin-1"))
    return status, json.loads(body).get("code", "") if body.startswith(b'{"code"') else ""


# ---- hosts


async def test_it_answers_to_its_own_hosts_only(running: Running) -> None:
    port = running.url.rpartition(":")[2]
    for host in ("127.0.0.1", "localhost", "[::1]", "LocalHost", f"127.0.0.1:{port}", f"[::1]:{port}", "localhost:1"):
        assert await ask(running, f"Host: {host}") == (200, ""), host
    for host in (
        "evil.example",
        f"evil.example:{port}",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "evil.example:80:127.0.0.1",
        "localhost.",
        "127.1",
        "0.0.0.0",
        "192.168.1.7",
        "[::]",
        "::1",
        "[::1",
        "",
        " ",
        ":8000",
        "localhost:x",
        "localhost:8000@evil.example",
        "user@localhost",
        "localhost/",
        "localhost, evil.example",
        "locälhost",
    ):
        assert await ask(running, f"Host: {host}") == (403, "HOST_NOT_ALLOWED"), host
        assert await ask(running, f"Host: {host}", path="/") == (403, "HOST_NOT_ALLOWED"), host


async def test_a_request_has_exactly_one_host(running: Running) -> None:
    refused = (403, "HOST_NOT_ALLOWED")
    assert await ask(running, "Host: localhost", "Host: localhost") == refused
    assert await ask(running, "Host: localhost", "Host: evil.example") == refused
    assert await ask(running, "Host: evil.example", "host: localhost") == refused
    assert await ask(running) == refused
    status, _, _ = await raw(running, b"GET /version HTTP/1.0\r\n\r\n")
    assert status == 403


async def test_a_host_in_the_request_line_does_not_count(running: Running) -> None:
    line = "http://localhost/version"
    assert await ask(running, "Host: evil.example", path=line) == (403, "HOST_NOT_ALLOWED")
    status, _ = await ask(running, "Host: localhost", path="http://evil.example/version")
    assert status in (200, 400, 403, 404)


async def test_more_hosts_can_be_allowed(tmp_path: Path) -> None:
    async with Running(
        tmp_path, allowed_hosts="Fireside.home.arpa,[fd00::7]", public_url="https://chat.example.org:8443"
    ) as running:
        for host in ("fireside.home.arpa", "FIRESIDE.home.arpa:8000", "[fd00::7]:1", "chat.example.org:8443"):
            assert await ask(running, f"Host: {host}") == (200, ""), host
        assert await ask(running, "Host: example.org") == (403, "HOST_NOT_ALLOWED")
        assert await ask(running, "Host: 10.0.0.1") == (403, "HOST_NOT_ALLOWED")
    async with Running(tmp_path, public_url="http://[fd00::8]:8000") as running:
        assert await ask(running, "Host: [fd00::8]:8000") == (200, "")


async def test_on_the_network_addresses_are_hosts_and_names_are_not(tmp_path: Path) -> None:
    name = socket.gethostname().split(".")[0]
    async with Running(tmp_path, host="0.0.0.0") as running:
        for host in ("192.168.1.7:8000", "10.0.0.1", "[fd00::1]:8000", "localhost", f"{name}.local:8000"):
            assert await ask(running, f"Host: {host}") == (200, ""), host
        for host in ("evil.example", "1.2.3.4.example", "[fd00::1].example", "1.2.3", f"{name}.example", name):
            assert await ask(running, f"Host: {host}") == (403, "HOST_NOT_ALLOWED"), host


@pytest.mark.parametrize(("listens", "host"), [("127.0.0.2", "127.0.0.2"), ("0::1", "[0::1]"), ("[0::1]", "[0::1]")])
async def test_the_loopback_address_that_it_listens_on_is_a_host(tmp_path: Path, listens: str, host: str) -> None:
    async with Running(tmp_path, host=listens) as running:
        assert await ask(running, f"Host: {host}:8000") == (200, "")
        assert await ask(running, "Host: 127.0.0.3") == (403, "HOST_NOT_ALLOWED")


async def test_the_name_that_it_listens_on_is_a_host(tmp_path: Path) -> None:
    async with Running(tmp_path, host="Fireside.home.arpa") as running:
        assert await ask(running, "Host: fireside.home.arpa:8000") == (200, "")
        assert await ask(running, "Host: home.arpa") == (403, "HOST_NOT_ALLOWED")


# ---- origins


async def test_other_origins_are_refused_whatever_they_ask(running: Running) -> None:
    host = running.url.removeprefix("http://")
    own = f"http://{host}"
    port = int(host.rpartition(":")[2])
    for origin in (
        "http://evil.example",
        "null",
        "",
        f"https://{host}",
        f"http://localhost:{port}",
        f"http://127.0.0.1:{port - 1}",
        "http://127.0.0.1",
        f"{own}/",
        f"{own}.evil.example",
        f"{own}@evil.example",
        own.upper(),
        "file://",
    ):
        for method in ("GET", "POST", "DELETE", "OPTIONS", "HEAD"):
            status, told = await ask(running, f"Host: {host}", f"Origin: {origin}", method=method)
            assert (status, told) == (403, "" if method == "HEAD" else "ORIGIN_NOT_ALLOWED"), (origin, method)
    assert await ask(running, f"Host: {host}", f"Origin: {own}") == (200, "")
    twice = await ask(running, f"Host: {host}", f"Origin: {own}", "Origin: http://evil.example")
    assert twice == (403, "ORIGIN_NOT_ALLOWED")


# Sec-Fetch-Site, -Mode, -Dest; may it read (GET), may it write (POST)?
FETCHES = [
    (None, None, None, True, True),
    ("same-origin", "cors", "empty", True, True),
    ("same-origin", "navigate", "document", True, True),
    ("same-origin", "no-cors", "script", True, True),
    ("none", "navigate", "document", True, False),
    ("none", None, None, True, False),
    ("same-site", "cors", "empty", False, False),
    ("same-site", "no-cors", "image", False, False),
    ("same-site", "navigate", "document", True, False),
    ("cross-site", "navigate", "document", True, False),
    ("cross-site", "navigate", "iframe", False, False),
    ("same-site", "navigate", "iframe", False, False),
    ("cross-site", "navigate", "object", False, False),
    ("cross-site", "no-cors", "script", False, False),
    ("cross-site", "cors", "empty", False, False),
    ("cross-site", "websocket", "websocket", False, False),
    ("cross-site", None, None, False, False),
    ("", None, None, False, False),
    ("SAME-ORIGIN", "cors", "empty", False, False),
    ("same-origin, cross-site", "cors", "empty", False, False),
    ("new-word", "navigate-not", "document", False, False),
]


@pytest.mark.parametrize(("site", "mode", "dest", "reads", "writes"), FETCHES)
async def test_what_a_browser_says_of_itself_decides(
    site: str | None, mode: str | None, dest: str | None, reads: bool, writes: bool
) -> None:
    headers = [(b"host", b"localhost")]
    for name, value in ((b"sec-fetch-site", site), (b"sec-fetch-mode", mode), (b"sec-fetch-dest", dest)):
        headers += [(name, value.encode())] if value is not None else []
    for method, may in (("GET", reads), ("HEAD", reads), ("POST", writes), ("DELETE", writes), ("PATCH", writes)):
        assert await admitted(method, headers) is may, method


async def admitted(method: str, headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether a request gets past the guard, which is asked as uvicorn asks it."""
    reached = False

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal reached
        reached = True

    async def nothing(*_: Any) -> Any:
        return None

    guarded = middleware.SecurityMiddleware(app, config.load({"data_dir": "nowhere"}, {}))
    await guarded({"type": "http", "method": method, "scheme": "http", "headers": headers}, nothing, nothing)
    return reached


async def test_the_same_holds_over_http(running: Running) -> None:
    host = f"Host: {running.url.removeprefix('http://')}"
    assert await ask(running, host, "Sec-Fetch-Site: same-site") == (403, "ORIGIN_NOT_ALLOWED")
    assert await ask(running, host, "Sec-Fetch-Site: cross-site", path="/static/app.js") == (403, "ORIGIN_NOT_ALLOWED")
    assert await ask(running, host, "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", path="/") == (200, "")
    twice = await ask(running, host, "Sec-Fetch-Site: same-origin", "Sec-Fetch-Site: cross-site")
    assert twice == (403, "ORIGIN_NOT_ALLOWED")


async def test_a_websocket_is_refused(running: Running) -> None:
    head = (
        "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    host, _, port = running.url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(head.encode())
    first = await reader.readline()
    writer.close()
    await writer.wait_closed()
    assert b" 101 " not in first


# ---- front ends that are allowed


@pytest.fixture
async def shared(tmp_path: Path, upstream: Upstream) -> AsyncIterator[Running]:
    async with Running(tmp_path / "data", allowed_origins=FRONT, lmstudio_url=upstream.url) as running:
        yield running


async def test_a_listed_origin_may_ask_and_read(shared: Running) -> None:
    person = await shared.first()
    person.headers["Origin"] = FRONT
    asks = {"Access-Control-Request-Method": "PATCH", "Access-Control-Request-Headers": "x-csrf-token,content-type"}
    before = await person.options("/conversations/1", headers=asks)
    assert before.status_code == 204 and before.content == b""
    assert "PATCH" in before.headers["access-control-allow-methods"]
    assert {"x-csrf-token", "content-type"} <= set(before.headers["access-control-allow-headers"].split(", "))
    answers = [
        before,
        await person.post("/conversations", json={}, headers={"Sec-Fetch-Site": "cross-site"}),
        await person.get("/nowhere"),
        await person.post("/conversations", json={}, headers={"X-CSRF-Token": "x"}),
    ]
    assert [answer.status_code for answer in answers] == [204, 200, 404, 403]
    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == FRONT
        assert answer.headers["access-control-allow-credentials"] == "true"
        assert "origin" in answer.headers["vary"].lower()


async def test_a_listed_origin_streams_with_the_token_only(shared: Running, upstream: Upstream) -> None:
    person = await shared.first()
    path = f"/conversations/{await person.conversation('Hello?')}/stream"
    body = {"provider_id": "lmstudio", "model": "m"}
    token = person.headers.pop("X-CSRF-Token")
    for headers in ({"Origin": FRONT}, {"Origin": FRONT, "Sec-Fetch-Site": "same-site"}):
        assert code(await person.post(path, json=body, headers=headers)) == (403, "CSRF_INVALID")
    assert upstream.chats == []
    assert (await person.post(path, json=body, headers={"Origin": FRONT, "X-CSRF-Token": token})).status_code == 200
    assert (await person.post(path, json=body)).status_code == 200


async def test_an_unlisted_origin_may_not_and_nobody_else_is_told(shared: Running) -> None:
    client = shared.anybody()
    for origin in (
        "https://evil.example",
        f"{FRONT}.evil.example",
        "https://front.example:444",
        "null",
        "http://front.example",
    ):
        for method in ("OPTIONS", "GET", "POST"):
            answer = await client.request(method, "/version", headers={"Origin": origin})
            assert code(answer) == (403, "ORIGIN_NOT_ALLOWED")
            assert not any(name.startswith("access-control") for name in answer.headers)
    answer = await client.get("/version")
    assert good(answer) and not any(name.startswith("access-control") for name in answer.headers)


# ---- headers


def assert_guarded(headers: httpx.Headers, page: bool = False) -> None:
    policy = dict(part.partition(" ")[::2] for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'" and policy["frame-ancestors"] == "'none'"
    if page:
        assert policy["script-src"] == "'self'" and policy["require-trusted-types-for"] == "'script'"
        assert not any("unsafe" in value or "*" in value or "http" in value for value in policy.values())
    else:
        assert set(policy) == {"default-src", "base-uri", "form-action", "frame-ancestors", "sandbox"}
        assert policy["base-uri"] == policy["form-action"] == "'none'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-dns-prefetch-control"] == "off"
    assert headers["cross-origin-resource-policy"] == headers["cross-origin-opener-policy"] == "same-origin"
    assert len(headers.get_list("x-request-id")) == 1 and len(headers["x-request-id"]) >= 16
    assert len(headers.get_list("content-security-policy")) == 1
    assert "server" not in headers


async def test_every_answer_has_the_headers(running: Running, ann: Person, upstream: Upstream) -> None:
    stranger = running.anybody()
    conversation_id = await ann.conversation()
    picture = {"media_type": "image/png", "data": base64.b64encode(b"\x89PNG\r\n\x1a\n....").decode()}
    await ann.say(conversation_id, "Hello?", images=[picture])
    image = await ann.get("/images/1")
    assert image.status_code == 200 and image.headers["cache-control"] == "no-store"
    assert_guarded(image.headers)
    answers = {
        200: await ann.get("/conversations"),
        400: await ann.post("/conversations", content=b"{", headers={"content-type": "application/json"}),
        401: await stranger.get("/conversations"),
        403: await ann.post("/conversations", headers={"X-CSRF-Token": ""}),
        404: await ann.get("/nowhere/at/all"),
        405: await ann.put("/conversations"),
        413: await ann.post("/render", content=b" " * (5 * 1024 * 1024), headers={"content-type": "application/json"}),
        415: await ann.post("/conversations", content=b"{}", headers={"content-type": "text/plain"}),
        409: await ann.patch("/admin/users/1", json={"role": "user"}),
    }
    for status, answer in answers.items():
        assert answer.status_code == status
        assert_guarded(answer.headers)
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["content-type"] == "application/json"
    assert_guarded((await ann.head("/version")).headers)
    assert_guarded((await stranger.get("/version", headers={"Host": "evil.example"})).headers)
    assert_guarded((await stranger.get("/version", headers={"Origin": "http://evil.example"})).headers)
    for path in ("/", "/static/app.js", "/static/app.css"):
        answer = await stranger.get(path)
        assert answer.status_code == 200
        assert_guarded(answer.headers, page=True)
        again = await stranger.get(path, headers={"If-None-Match": answer.headers["etag"]})
        assert again.status_code == 304
        assert_guarded(again.headers, page=True)
    upstream.enqueue(pause(Gate()))
    body = {"provider_id": "lmstudio", "model": "m"}
    async with ann.stream("POST", f"/conversations/{conversation_id}/stream", json=body) as response:
        assert_guarded(response.headers)
        assert response.headers["cache-control"] == "no-store" and response.headers["x-accel-buffering"] == "no"
        first = await anext(response.aiter_raw())
        assert parse_event(first.split(b"\n\n")[0]).event == "ping"


async def test_a_fault_of_ours_is_an_answer_like_any_other(running: Running, ann: Person) -> None:
    """A table that is gone stands for whatever nobody has thought of."""
    await running.state.database.write(lambda conn: conn.execute("ALTER TABLE invites RENAME TO gone"))
    answer = await ann.get("/admin/invites")
    assert code(answer) == (500, "INTERNAL_ERROR")
    assert_guarded(answer.headers)
    for said in ("invites", "sqlite", "Traceback", "SELECT"):
        assert said not in answer.text
    await running.state.database.write(lambda conn: conn.execute("ALTER TABLE gone RENAME TO invites"))
    good(await ann.get("/admin/invites"))


async def test_each_answer_has_a_request_id_of_its_own(running: Running) -> None:
    client = running.anybody()
    given = {"X-Request-ID": "mine"}
    ids = {(await client.get("/version", headers=given)).headers["x-request-id"] for _ in range(20)}
    assert len(ids) == 20 and "mine" not in ids


async def test_what_is_not_http_gets_the_same_shape_of_error(running: Running) -> None:
    host, port = running.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: abc\r\n\r\n")
    said = await reader.read()
    writer.close()
    await writer.wait_closed()
    head, _, body = said.partition(b"\r\n\r\n")
    error = json.loads(body)
    assert head.startswith(b"HTTP/1.1 400 ") and b"content-security-policy: default-src 'none'" in head
    assert error["code"] == "VALIDATION_ERROR" and f"x-request-id: {error['request_id']}".encode() in head


# ---- cookies


async def test_a_hostile_cookie_of_another_server_on_this_host_costs_no_time(running: Running) -> None:
    """Python before 3.12.6 unquotes 60,000 backslashes in 18.7 s."""
    port = running.url.rpartition(":")[2]
    for count, answer in ((60_000, (431, "HEADERS_TOO_LARGE")), (16_000, (401, "AUTH_REQUIRED"))):
        started = time.perf_counter()
        cookie = f'Cookie: fireside_{port}="{count * chr(92)}"'
        assert await ask(running, "Host: localhost", cookie, path="/auth/me") == answer
        assert time.perf_counter() - started < 0.5


async def test_cookies_of_the_same_name_do_not_hide_the_session(running: Running, ann: Person) -> None:
    """Another server on this host can set cookies for longer paths, which browsers send first."""
    [session] = ann.cookies.jar
    planted = "; ".join(f"{session.name}={value}" for value in ("x", "x" * 87, f'"{session.value}"') * 50)
    for header in (f"{planted}; {session.name}={session.value}", f"{session.name}={session.value};{planted}"):
        assert await ask(running, "Host: localhost", f"Cookie: {header}", path="/auth/me") == (200, "")
    assert await ask(running, "Host: localhost", f"Cookie: {planted}", path="/auth/me") == (401, "AUTH_REQUIRED")


# ---- the command line's routes


async def test_the_command_line_s_routes_answer_to_this_computer_only(running: Running, ann: Person) -> None:
    owner = running.anybody()
    owner.headers["Authorization"] = f"Bearer {running.state.secret}"
    good(await owner.post("/control/link", json={"username": "ann"}))
    for name in ("X-Forwarded-For", "X-Forwarded-Proto", "Forwarded"):
        answer = await owner.post("/control/link", json={"username": "ann"}, headers={name: "http"})
        assert code(answer) == (401, "AUTH_REQUIRED")


@pytest.mark.parametrize(
    ("client", "local"),
    [("127.0.0.1", True), ("::1", True), ("::ffff:127.0.0.1", True), ("10.0.0.1", True), ("10.0.0.2", False)],
)
def test_this_computer_is_its_loopback_and_the_address_it_was_reached_at(client: str, local: bool) -> None:
    scope = {"type": "http", "client": (client, 1), "server": ("10.0.0.1", 8000), "headers": []}
    assert endpoint.Request(scope).is_local is local


async def test_the_description_of_the_api_is_built_once(running: Running) -> None:
    first, second = [await running.anybody().get("/openapi.json") for _ in range(2)]
    assert good(first)["openapi"] and first.content == second.content
    assert handlers._openapi.cache_info().hits
