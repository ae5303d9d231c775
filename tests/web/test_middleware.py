"""Allowed hosts and origins, the headers of all responses, and cookies."""

import base64
import json
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fireside import config
from fireside.server import create_app
from fireside.web.endpoint import Request
from fireside.web.middleware import LOOPBACK, SecurityMiddleware

from ..live import Person, Running, code, good, parse_event
from ..upstream import Gate, Upstream, pause

FRONT = "https://front.example"
HOST_NAME = socket.gethostname().split(".")[0]


async def ask(running: Running, *lines: str, method: str = "GET", path: str = "/version") -> tuple[int, str]:
    """Return status and error code of a request with exactly these header lines."""
    head = "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "Connection: close", "", ""])
    status, _, body = await running.raw(head.encode("latin-1"))
    return status, json.loads(body).get("code", "") if body.startswith(b'{"code"') else ""


# ---- hosts


NO_HOST = (403, "HOST_NOT_ALLOWED")


async def test_only_loopback_names_are_hosts(running: Running) -> None:
    port = running.url.rpartition(":")[2]
    for host in ("127.0.0.1", "localhost", "[::1]", "LocalHost", f"127.0.0.1:{port}", f"[::1]:{port}", "localhost:1"):
        assert await ask(running, f"Host: {host}") == (200, ""), host
    wrong = """evil.example 127.0.0.1.evil.example localhost.evil.example evil.example:80:127.0.0.1 localhost. 127.1 0.0.0.0
        192.168.1.7 [::] ::1 [::1 :8000 localhost:x localhost:8000@evil.example user@localhost localhost/ loc\xe4lhost"""
    for host in [*wrong.split(), "", " ", "localhost, evil.example", f"evil.example:{port}"]:
        assert await ask(running, f"Host: {host}") == NO_HOST, host
        assert await ask(running, f"Host: {host}", path="/") == NO_HOST, host


async def test_request_has_exactly_one_host(running: Running) -> None:
    for lines in (
        [],
        ["Host: localhost"] * 2,
        ["Host: localhost", "Host: evil.example"],
        ["Host: evil.example", "host: localhost"],
    ):
        assert await ask(running, *lines) == NO_HOST
    status, _, _ = await running.raw(b"GET /version HTTP/1.0\r\n\r\n")
    assert status == 403
    assert await ask(running, "Host: evil.example", path="http://localhost/version") == NO_HOST


async def test_settings_add_hosts(tmp_path: Path) -> None:
    for settings, allowed, refused in (
        (
            {"allowed_hosts": "Fireside.home.arpa,[fd00::7]", "public_url": "https://chat.example.org:8443"},
            ["fireside.home.arpa", "FIRESIDE.home.arpa:8000", "[fd00::7]:1", "chat.example.org:8443"],
            ["example.org", "10.0.0.1"],
        ),
        (
            {"host": "0.0.0.0"},
            ["192.168.1.7:8000", "10.0.0.1", "[fd00::1]:8000", "localhost", f"{HOST_NAME}.local:8000"],
            ["evil.example", "1.2.3.4.example", "[fd00::1].example", "1.2.3", f"{HOST_NAME}.example", HOST_NAME],
        ),
    ):
        async with Running(tmp_path, **settings) as running:
            for host in allowed:
                assert await ask(running, f"Host: {host}") == (200, ""), host
            for host in refused:
                assert await ask(running, f"Host: {host}") == NO_HOST, host


@pytest.mark.parametrize(
    ("name", "value", "host"),
    [
        ("public_url", "http://[fd00::8]:8000", "[fd00::8]"),
        ("host", "127.0.0.2", "127.0.0.2"),
        ("host", "0::1", "[0::1]"),
        ("host", "[0::1]", "[0::1]"),
        ("host", "Fireside.home.arpa", "fireside.home.arpa"),
    ],
)
def test_address_in_the_settings_is_a_host_in_every_form(tmp_path: Path, name: str, value: str, host: str) -> None:
    settings = config.load({"data_dir": str(tmp_path)}, {f"FIRESIDE_{name.upper()}": value})
    assert SecurityMiddleware(create_app(settings), settings).hosts >= LOOPBACK | {host}


# ---- origins


NO_ORIGIN = (403, "ORIGIN_NOT_ALLOWED")


async def test_other_origins_are_refused_for_every_method(running: Running) -> None:
    own = running.url
    host, port = own.removeprefix("http://"), own.rpartition(":")[2]
    others = (
        "http://evil.example null file:// http://127.0.0.1 {own}/ https://{host} {own}.evil.example {own}@evil.example"
    )
    origins = [*others.format(own=own, host=host).split(), "", own.upper(), f"http://localhost:{port}", f"{own[:-1]}"]
    for origin in origins:
        for method in ("GET", "POST", "DELETE", "OPTIONS", "HEAD"):
            status, error = await ask(running, f"Host: {host}", f"Origin: {origin}", method=method)
            assert (status, error) == (403, "" if method == "HEAD" else "ORIGIN_NOT_ALLOWED"), (origin, method)
    assert await ask(running, f"Host: {host}", f"Origin: {own}") == (200, "")
    for name, one, other in (("Origin", own, "http://evil.example"), ("Sec-Fetch-Site", "same-origin", "cross-site")):
        assert await ask(running, f"Host: {host}", f"{name}: {one}", f"{name}: {other}") == NO_ORIGIN, "sent twice"


# Sec-Fetch-Site, -Mode, -Dest; whether it may read (GET, HEAD) and write (POST, PATCH, DELETE)
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


async def test_fetch_metadata_decides(running: Running) -> None:
    for site, mode, dest, reads, writes in FETCHES:
        given = (("Site", site), ("Mode", mode), ("Dest", dest))
        lines = ["Host: localhost", *(f"Sec-Fetch-{name}: {value}" for name, value in given if value is not None)]
        for method in ("GET", "HEAD", "POST", "DELETE", "PATCH"):
            status, _ = await ask(running, *lines, method=method, path="/")
            assert (status != 403) is (reads if method in ("GET", "HEAD") else writes), (given, method)


async def test_websocket_is_refused(running: Running) -> None:
    lines = ["Host: localhost", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"]
    request = "\r\n".join(
        ["GET / HTTP/1.1", *lines, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Connection: close", "", ""]
    )
    status, _, _ = await running.raw(request.encode())
    assert status != 101


# ---- allowed origins


@pytest.fixture
async def cross_origin(tmp_path: Path, upstream: Upstream) -> AsyncIterator[Running]:
    async with Running(tmp_path / "data", allowed_origins=FRONT, lmstudio_url=upstream.url) as running:
        yield running


async def test_allowed_origin_gets_cors_headers_on_every_response(cross_origin: Running) -> None:
    person = await cross_origin.first()
    person.headers["Origin"] = FRONT
    names = "authorization,content-type,x-csrf-token,x-of-a-library"
    asks = {"Access-Control-Request-Method": "PATCH", "Access-Control-Request-Headers": names}
    before = await person.options("/conversations/1", headers=asks)
    assert before.status_code == 204 and before.content == b""
    assert before.headers["access-control-allow-methods"] == "GET, POST, PATCH, DELETE"
    assert before.headers["access-control-allow-headers"] == names
    assert "access-control-request-headers" in before.headers["vary"].lower()
    assert int(before.headers["access-control-max-age"]) > 0
    assert "access-control-allow-headers" not in (await person.options("/conversations/1")).headers
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


async def test_allowed_origin_streams_only_with_the_csrf_token(cross_origin: Running, upstream: Upstream) -> None:
    person = await cross_origin.first()
    path = f"/conversations/{await person.conversation('Hello?')}/stream"
    body = {"provider_id": "lmstudio", "model": "m"}
    token = person.headers.pop("X-CSRF-Token")
    for headers in ({"Origin": FRONT}, {"Origin": FRONT, "Sec-Fetch-Site": "same-site"}):
        assert code(await person.post(path, json=body, headers=headers)) == (403, "CSRF_INVALID")
    assert upstream.chats == []
    assert (await person.post(path, json=body, headers={"Origin": FRONT, "X-CSRF-Token": token})).status_code == 200
    assert (await person.post(path, json=body)).status_code == 200


async def test_other_origins_get_no_cors_headers(cross_origin: Running) -> None:
    client = cross_origin.anybody()
    for origin in ("https://evil.example", f"{FRONT}.evil.example", f"{FRONT}:444", "null", "http://front.example"):
        for method in ("OPTIONS", "GET", "POST"):
            response = await client.request(method, "/version", headers={"Origin": origin})
            assert code(response) == NO_ORIGIN
            assert not any(name.startswith("access-control") for name in response.headers)
    response = await client.get("/version")
    assert good(response) and not any(name.startswith("access-control") for name in response.headers)


# ---- headers


def assert_secure(headers: httpx.Headers, page: bool = False) -> None:
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


async def test_every_response_has_the_security_headers(running: Running, ann: Person, upstream: Upstream) -> None:
    stranger = running.anybody()
    conversation_id = await ann.conversation()
    picture = {"media_type": "image/png", "data": base64.b64encode(b"\x89PNG\r\n\x1a\n....").decode()}
    await ann.say(conversation_id, "Hello?", images=[picture])
    responses = {
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
    for status, response in responses.items():
        assert response.status_code == status and response.headers["content-type"] == "application/json"
    others = [
        await ann.get("/images/1"),
        await ann.head("/version"),
        await stranger.get("/version", headers={"Host": "evil.example"}),
        await stranger.get("/version", headers={"Origin": "http://evil.example"}),
    ]
    for response in (*responses.values(), *others):
        assert_secure(response.headers)
        assert response.headers["cache-control"] == "no-store"
    for path in ("/", "/static/app.js"):
        response = await stranger.get(path)
        again = await stranger.get(path, headers={"If-None-Match": response.headers["etag"]})
        assert (response.status_code, again.status_code) == (200, 304)
        assert_secure(response.headers, page=True)
        assert_secure(again.headers, page=True)
    upstream.enqueue(pause(Gate()))
    body = {"provider_id": "lmstudio", "model": "m"}
    async with ann.stream("POST", f"/conversations/{conversation_id}/stream", json=body) as response:
        assert_secure(response.headers)
        assert response.headers["cache-control"] == "no-store" and response.headers["x-accel-buffering"] == "no"
        first = await anext(response.aiter_raw())
        assert parse_event(first.split(b"\n\n")[0]).event == "ping"


async def test_internal_error_reveals_nothing(running: Running, ann: Person) -> None:
    await running.state.database.write(lambda conn: conn.execute("ALTER TABLE invites RENAME TO gone"))
    answer = await ann.get("/admin/invites")
    assert code(answer) == (500, "INTERNAL_ERROR")
    assert_secure(answer.headers)
    for said in ("invites", "sqlite", "Traceback", "SELECT"):
        assert said not in answer.text
    await running.state.database.write(lambda conn: conn.execute("ALTER TABLE gone RENAME TO invites"))
    good(await ann.get("/admin/invites"))


async def test_request_ids_are_unique_and_not_the_clients(running: Running) -> None:
    client = running.anybody()
    given = {"X-Request-ID": "mine"}
    ids = {(await client.get("/version", headers=given)).headers["x-request-id"] for _ in range(20)}
    assert len(ids) == 20 and "mine" not in ids


async def test_invalid_http_gets_the_same_shape_of_error(running: Running) -> None:
    status, headers, body = await running.raw(b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: abc\r\n\r\n")
    error = json.loads(body)
    assert status == 400 and error["code"] == "VALIDATION_ERROR" and error["request_id"] == headers["x-request-id"]
    assert_secure(headers)


# ---- cookies


async def test_hostile_cookie_of_another_server_is_parsed_quickly(running: Running) -> None:
    """Python before 3.12.6 unquotes 60,000 backslashes in 18.7 s."""
    port = running.url.rpartition(":")[2]
    for count, answer in ((60_000, (431, "HEADERS_TOO_LARGE")), (16_000, (401, "AUTH_REQUIRED"))):
        started = time.perf_counter()
        cookie = f'Cookie: fireside_{port}="{count * chr(92)}"'
        assert await ask(running, "Host: localhost", cookie, path="/auth/me") == answer
        assert time.perf_counter() - started < 0.5


async def test_other_cookies_of_the_same_name_do_not_hide_the_session(running: Running, ann: Person) -> None:
    """Another server on this host can set cookies for longer paths, which browsers send first."""
    [session] = ann.cookies.jar
    planted = "; ".join(f"{session.name}={value}" for value in ("x", "x" * 87, f'"{session.value}"') * 50)
    for header in (f"{planted}; {session.name}={session.value}", f"{session.name}={session.value};{planted}"):
        assert await ask(running, "Host: localhost", f"Cookie: {header}", path="/auth/me") == (200, "")
    assert await ask(running, "Host: localhost", f"Cookie: {planted}", path="/auth/me") == (401, "AUTH_REQUIRED")


# ---- routes of the command line


async def test_control_routes_are_refused_through_a_proxy(running: Running, ann: Person) -> None:
    owner = running.anybody()
    owner.headers["Authorization"] = f"Bearer {running.state.secret}"
    good(await owner.post("/control/link", json={"username": "ann"}))
    for name in ("X-Forwarded-For", "X-Forwarded-Proto", "Forwarded"):
        response = await owner.post("/control/link", json={"username": "ann"}, headers={name: "http"})
        assert code(response) == (401, "AUTH_REQUIRED")


@pytest.mark.parametrize(
    ("client", "local"),
    [("127.0.0.1", True), ("::1", True), ("::ffff:127.0.0.1", True), ("10.0.0.1", True), ("10.0.0.2", False)],
)
def test_local_addresses_are_loopback_and_the_servers_own(client: str, local: bool) -> None:
    scope = {"type": "http", "client": (client, 1), "server": ("10.0.0.1", 8000), "headers": []}
    assert Request(scope).is_local is local
