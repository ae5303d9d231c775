"""Every route against every kind of input: errors are 4xx with one JSON shape, and no input causes a 500."""

import asyncio
import base64
import contextlib
import functools
import json
import os
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fireside.db import Connection
from fireside.errors import Invalid
from fireside.queries.types import Parameters
from fireside.server import ROUTES, create_app
from fireside.web.endpoint import (
    ADMIN,
    BODY_BYTES,
    CLI,
    INTEGERS,
    PUBLIC,
    PUBLIC_BODY_BYTES,
    USER,
    Access,
    Endpoint,
    decode_body,
)
from msgspec import inspect

from .live import NO_TLS, PATIENCE, Person, Running, code, good, until
from .upstream import Upstream, answer

JSON = {"Content-Type": "application/json"}
INVALID = (400, "VALIDATION_ERROR")
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(50)).decode()
IMAGE = {"media_type": "image/png", "data": PNG}

# Values of the right type for some field.
HOSTILE = {
    "str": [
        b'"\\udc00\\ud800"',
        b'"a\\u0000b"',
        b'"' + b"x" * 300_000 + b'"',
        '"\u202e\u2028\ufeff\U0010ffff"'.encode(),
        b'"\\u0001\\u001b[31m"',
        b'""',
        b'" "',
    ],
    "int": [*b"-1 0 -0 9223372036854775807 9223372036854775808 18446744073709551616".split(), b"1" + b"0" * 5000],
    "float": [*b"-0.0 1e999 -1e999 1e-999".split(), b"0." + b"1" * 5000],
    "array": [b"[" * 200 + b"]" * 200, b"[null]", b"[" + b"{}," * 5000 + b"{}]"],
    "object": [b'{"": null}', b'{"x":' * 200 + b"1" + b"}" * 200, b'{"__proto__": {"x": 1}}'],
}

MALFORMED = [
    *b'{ {] } [] null true "x" 7 NaN Infinity {"x":NaN} {"x":-Infinity} {"x":01} {\'x\':1} {"x":1,} {"x"1} {}{} {}x'.split(),
    *(b"// x\n{}", b"\xef\xbb\xbf{}", b"\xff\xfe{\x00}\x00", b'{"x": "\\x"}', b'{"x": "\n"}', b"\0", b" "),
    *(b"[" * 20_000, b'{"x":' * 10_000, b'{"x":' + b"[" * 10_000 + b"]" * 10_000 + b"}"),
]

BODIES = [route for route in ROUTES if route.method != "GET" and route.body is not None]


def types(kind: inspect.Type) -> set[str]:
    """Return the JSON types that a field accepts."""
    match kind:
        case inspect.UnionType(alternatives):
            return set().union(*map(types, alternatives))
        case inspect.NoneType():
            return {"null"}
        case inspect.BoolType():
            return {"bool"}
        case inspect.IntType():
            return {"int"}
        case inspect.FloatType():
            return {"int", "float"}
        case inspect.StrType() | inspect.BytesType() | inspect.LiteralType():
            return {"str"}
        case inspect.ListType():
            return {"array"}
        case inspect.DictType() | inspect.StructType():
            return {"object"}
    raise AssertionError(kind)


@functools.cache
def fields(body: Any) -> tuple[inspect.Field, ...]:
    described = inspect.type_info(body)
    assert isinstance(described, inspect.StructType)
    return described.fields


def minimal_body(body: Any) -> dict[str, Any]:
    """Return a body of this type with the required fields only."""
    samples = {"str": "x" * 12, "int": 1, "bool": True, "array": [], "object": {}}
    return {
        field.encode_name: field.type.values[0]
        if isinstance(field.type, inspect.LiteralType)
        else samples[next(iter(types(field.type)))]
        for field in fields(body)
        if field.required
    }


def with_field(body: dict[str, Any], name: str, value: bytes) -> bytes:
    """Return a body as JSON, with these bytes as the value of one field."""
    return json.dumps(body | {name: "VALUE"}).encode().replace(b'"VALUE"', value)


def hostile_bodies(route: Endpoint) -> Iterator[bytes]:
    """Yield bodies with a hostile value in one field. Only one for each field is refused before it reaches the handler.

    The parameters of an answer are the same for all routes that begin one, so they are tried with the first of these.
    """
    body, known = route.body, () if route.path.endswith("/stream") else Parameters.__struct_fields__
    for field in [field for field in fields(body) if field.name not in known]:
        refused = False
        for value in [value for kind in types(field.type) for value in HOSTILE.get(kind, ())]:
            content = with_field(minimal_body(body), field.encode_name, value)
            try:
                decode_body(content, body)
            except Invalid:
                if refused:
                    continue
                refused = True
            yield content


@contextlib.asynccontextmanager
async def keep_alive(person: Person) -> AsyncIterator[httpx.AsyncClient]:
    """Return a client of the same user that reuses its connections, for hundreds of requests."""
    async with httpx.AsyncClient(
        base_url=person.base_url,
        cookies=person.cookies,
        headers=person.headers,
        trust_env=False,
        verify=NO_TLS,
        timeout=PATIENCE,
    ) as client:
        yield client


async def get_raw(running: Running, target: str) -> tuple[int, str]:
    """Return status and error code of a path that the client does not normalize."""
    head = f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    status, _, body = await running.raw(head.encode("latin-1"))
    return status, json.loads(body)["code"] if body.startswith(b'{"code"') else ""


class Objects(dict[str, Any]):
    """An object for each name in the routes' paths."""

    def path(self, route: Endpoint) -> str:
        return re.sub(r"\{(\w+)\}", lambda name: str(self[name[1]]), route.path)


async def create_objects(person: Person) -> Objects:
    conversation_id = await person.conversation("Hello?")
    await person.say(conversation_id, "Look", images=[IMAGE])
    events = await person.answer(conversation_id, provider_id="lmstudio", model="llama-3.2-3b-instruct")
    *_, question, _ = await person.messages(conversation_id)
    return Objects(
        conversation_id=conversation_id,
        message_id=question["id"],
        image_id=question["images"][0]["id"],
        attachment_id=question["images"][0]["id"],
        generation_id=events[0].data["generation_id"],
        session_id=good(await person.get("/auth/sessions"))["sessions"][0]["id"],
        user_id=good(await person.get("/auth/me"))["user"]["id"],
        invite_id=1,
        queued_id=1,
        prompt_id=good(await person.post("/prompts", json={"name": "Greeting", "content": "Hello"}))["id"],
        preset_id=good(await person.post("/presets", json={"name": "Brief"}))["id"],
        token_id=good(await person.post("/tokens", json={"name": "Zed"}))["id"],
        model_id="llama-3.2-3b-instruct",
        folder_id=good(await person.post("/folders", json={"name": "Work"}))["id"],
        provider_id="lmstudio",
        name="app.js",
    )


def bearer(running: Running, route: Endpoint) -> dict[str, str]:
    return {"Authorization": f"Bearer {running.state.secret}"} if route.access is CLI else {}


# ---- routes


def test_every_route_declares_its_access_and_changes_need_a_csrf_token(running: Running) -> None:
    routes = create_app(running.config).routes
    assert all(isinstance(route, Endpoint) and isinstance(route.access, Access) for route in routes)
    public = {route.path for route in ROUTES if route.access is PUBLIC}
    assert not any(path.startswith(("/conversations", "/chat", "/admin/users", "/search")) for path in public)
    for route in ROUTES:
        if route.method != "GET" and route.access in (USER, ADMIN):
            assert route.csrf == ("lenient" if route.path.endswith("/stream") else "required"), route.name


async def test_unknown_path_is_not_found(running: Running) -> None:
    paths = (
        "/nowhere /conversations// /Conversations //conversations /auth /%00 /%ff /./version /version// // /%2e/version"
    )
    static = "/static /static/ /static/app.js/"
    for path in [*paths.split(), *static.split(), "/docs", "/favicon.ico", "/" + "x" * 9000]:
        assert await get_raw(running, path) == (404, "PATH_NOT_FOUND"), path


async def test_path_with_a_trailing_slash_is_the_same_path(
    running: Running, ann: Person, caplog: pytest.LogCaptureFixture
) -> None:
    conversation_id = await ann.conversation("Hello?")
    for path in ("/conversations", f"/conversations/{conversation_id}", f"/conversations/{conversation_id}/messages"):
        with caplog.at_level("INFO", "fireside.access"):
            assert good(await ann.get(f"{path}/?limit=5")) == good(await ann.get(f"{path}?limit=5"))
        routes = {vars(record)["route"] for record in caplog.records if record.name == "fireside.access"}
        assert len(routes) == 1, routes
        caplog.clear()
    assert good(await ann.post("/conversations/", json={"title": "Mine"}))["title"] == "Mine"
    assert code(await ann.put("/conversations/")) == (405, "METHOD_NOT_ALLOWED")
    assert code(await running.anybody().get("/conversations/")) == (401, "AUTH_REQUIRED")
    assert code(await ann.get("/auth/me%0A")) == (404, "PATH_NOT_FOUND")


async def test_route_accepts_only_its_methods(ann: Person) -> None:
    objects = await create_objects(ann)
    paths: dict[str, set[str]] = {}
    for route in ROUTES:
        paths.setdefault(objects.path(route), set()).update(route.methods or ())
    async with keep_alive(ann) as client:
        for path, methods in paths.items():
            every = {"GET", "POST", "PATCH", "DELETE", "OPTIONS", "TRACE"} if path == "/defaults" else set()
            for method in (every | {"PUT"}) - methods:
                response = await client.request(method, path)
                assert code(response) == (405, "METHOD_NOT_ALLOWED"), (method, path)
                assert set(response.headers["allow"].split(", ")) <= methods
    for path in ("/health", "/", "/static/app.js", "/auth/me"):
        response = await ann.head(path)
        assert response.status_code == 200 and response.content == b"" and int(response.headers["content-length"]) > 0


async def test_path_ids_are_positive_integers(ann: Person) -> None:
    objects = await create_objects(ann)
    wrong = "0 -1 +1 1.0 1e3 0x1 %201 1%00 abc null ٣ １ ² 9999999999999999999 1%2F2 %F0%9F%94%A5 %ff"  # noqa: RUF001
    async with keep_alive(ann) as client:
        for route in ROUTES:
            for name in {*re.findall(r"\{(\w+_id)\}", route.path)} - {"provider_id", "generation_id", "model_id"}:
                every = [*wrong.split(), "9" * 5000] if route.name == "GET /conversations/{conversation_id}" else []
                for value in [*every, "x", str(2**63)]:
                    path = Objects(objects | {name: value}).path(route)
                    response = await client.request(route.method, path, json={"title": 7})  # 404 comes before 400
                    expected = "PATH" if "%2F" in value else INTEGERS[name].upper()
                    assert code(response) == (404, f"{expected}_NOT_FOUND"), (route.name, value[:20])


async def test_ids_in_bodies_and_queries_do_not_reveal_objects_of_other_users(ann: Person, bob: Person) -> None:
    """tests/trust/authz.py proves it for ids in paths."""
    theirs, own = await ann.conversation(), await bob.conversation()
    message = await ann.say(theirs, "Hello?")
    for method, path, body in (
        ("POST", "/chat/retry", {"conversation_id": theirs}),
        ("POST", f"/conversations/{own}/active", {"message_id": message}),
        ("POST", f"/conversations/{own}/messages", {"content": "x", "parent_id": message}),
        ("GET", f"/conversations?before={theirs}", None),
        ("GET", f"/conversations/{own}/messages?before={message}", None),
    ):
        changed = body and {name: value if name == "content" else 10**6 for name, value in body.items()}
        response = await bob.request(method, path, json=body)
        missing = await bob.request(method, re.sub(r"before=.*", f"before={10**6}", path), json=changed)
        assert response.status_code == missing.status_code == 404, path
        assert response.json() | {"request_id": ""} == missing.json() | {"request_id": ""}
        assert sorted(response.headers) == sorted(missing.headers)


# ---- bodies


async def test_every_route_refuses_malformed_json(ann: Person, running: Running) -> None:
    """tests/web/test_validation.py has every kind of wrong value for every field."""
    objects = await create_objects(ann)
    async with keep_alive(ann) as client:
        for route in BODIES:
            headers = JSON | bearer(running, route)
            for content in MALFORMED if route.path in ("/auth/login", "/conversations") else MALFORMED[:3]:
                response = await client.request(route.method, objects.path(route), content=content, headers=headers)
                large = route.access is PUBLIC and len(content) > PUBLIC_BODY_BYTES
                assert code(response) == ((413, "BODY_TOO_LARGE") if large else INVALID), (route.name, content[:40])
                assert len(response.content) < 1000


async def test_no_value_of_any_field_causes_an_internal_error(ann: Person) -> None:
    objects = await create_objects(ann)
    async with keep_alive(ann) as client:
        for route in BODIES:
            if route.access is CLI:  # its files are the owner's own
                continue
            for content in hostile_bodies(route):
                response = await client.request(route.method, objects.path(route), content=content, headers=JSON)
                if response.status_code == 200:
                    assert b"\\ud800" not in response.content and b"NaN" not in response.content
                else:
                    code(response)
                    may_fail = route.path.startswith(("/providers", "/admin/provider"))
                    assert response.status_code < 500 or may_fail, (route.name, content[:200])
    for path in ("/conversations", "/auth/sessions", "/admin/users", "/usage", "/providers"):
        good(await ann.get(path))
    await ann.messages(objects["conversation_id"])


async def test_unknown_fields_are_refused_only_among_parameters(ann: Person) -> None:
    conversation_id = await ann.conversation("Hello?", unknown=1)
    good(await ann.patch(f"/conversations/{conversation_id}", json={"pinned": True, "unknown": 1}))
    for path, body in (
        (f"/conversations/{conversation_id}/stream", {"messages": []}),
        ("/chat/retry", {"conversation_id": conversation_id, "api_base": "http://evil.example"}),
        ("/conversations", {"settings": {"n": 2}}),
    ):
        assert code(await ann.post(path, json=body)) == INVALID


async def test_parameters_reach_the_model_server_unchanged(ann: Person, upstream: Upstream) -> None:
    conversation_id = await ann.conversation("Hello?")
    common = {"conversation_id": conversation_id, "provider_id": "lmstudio", "model": "llama-3.2-3b-instruct"}
    low: dict[str, Any] = {"temperature": 0, "top_p": 0, "top_k": 0, "min_p": 0, "max_tokens": 1, "stop": "x"}
    low |= {
        "seed": -(2**31),
        "presence_penalty": -2,
        "frequency_penalty": -2,
        "repeat_penalty": 0,
        "response_format": {},
    }
    high: dict[str, Any] = {"temperature": 2, "top_p": 1, "top_k": 1000, "min_p": 1, "max_tokens": 2**20}
    high |= {"stop": ["a"] * 16, "seed": 2**32, "presence_penalty": 2, "frequency_penalty": 0.7, "repeat_penalty": 2}
    high["response_format"] = {"type": "json_object"}
    for given in (low, high, dict.fromkeys(low)):
        good(await ann.post("/chat/retry", json=common | given))
        await ann.answer(conversation_id)
        sent = upstream.chats[-1]
        assert {name: sent.get(name) for name in given} == given
    assert not set(low) & set(upstream.chats[-1]), "null is not sent"


async def test_body_must_be_declared_as_json(ann: Person) -> None:
    for content_type in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "",
        "json",
    ):
        headers = {"Content-Type": content_type} if content_type else {}
        response = await ann.post("/conversations", content=b"{}", headers=headers)
        assert code(response) == (415, "UNSUPPORTED_MEDIA_TYPE"), content_type
    for content_type in ("Application/JSON", "application/json; charset=utf-8", "application/json ;x"):
        good(await ann.post("/conversations", content=b"{}", headers={"Content-Type": content_type}))
    good(await ann.post("/conversations", headers={"Content-Type": "text/plain"}))


async def test_large_bodies_are_refused_with_and_without_a_length(ann: Person, running: Running) -> None:
    async def chunks(size: int) -> AsyncIterator[bytes]:
        for _ in range(size // 65536 + 1):
            yield b" " * 65536

    too_large = (413, "BODY_TOO_LARGE")
    for path, limit in (("/chat/retry", BODY_BYTES), ("/auth/login", PUBLIC_BODY_BYTES)):
        assert code(await ann.post(path, content=b" " * (limit + 1), headers=JSON)) == too_large
        assert code(await ann.post(path, content=chunks(limit), headers=JSON)) == too_large
        assert code(await ann.post(path, content=b" " * (limit - 100), headers=JSON)) == INVALID
    for length in (BODY_BYTES + 1, 10**15, 10**30):
        head = f"POST /auth/login HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
        status, _, _ = await running.raw(head.encode())
        assert status in (400, 413), "the response does not wait for the body"


async def test_any_text_is_returned_unchanged(ann: Person) -> None:
    conversation_id = await ann.conversation()
    texts = [
        "\U0001f525\u200d",
        "a\r\nb\rc\n",
        "\u2028\u2029\x85",
        "\x01\x1b",
        "\ufeffx",
        "</script>",
        "\\u0041",
        "  x  ",
    ]
    texts += ["ö", "o\u0308", "\ud7ff\ue000\uffff\U0010ffff", "ä" * 200_000]
    for text in texts:
        await ann.say(conversation_id, text)
    assert [message["content"] for message in await ann.messages(conversation_id)] == texts
    path = f"/conversations/{conversation_id}"
    good(await ann.patch(path, json={"title": "字" * 200}))
    for title in ("", "  ", None):
        assert code(await ann.patch(path, json={"title": title})) == INVALID
    assert good(await ann.get(path))["title"] == "字" * 200


async def test_conversation_without_a_title_of_its_own_is_untitled(ann: Person) -> None:
    bodies = (b"", b"{}", b'{"title": null}', b'{"title": ""}', b'{"title": " \\n"}')
    for number, body in enumerate(bodies):
        conversation = good(await ann.post("/conversations", content=body, headers=JSON))
        assert conversation["title"] == "New conversation", body
        await ann.say(conversation["id"], f"Question {number}")
        assert good(await ann.get(f"/conversations/{conversation['id']}"))["title"] == f"Question {number}"
    good(await ann.post("/conversations"))
    for title in ("x" * 201, "\0", 7):
        assert code(await ann.post("/conversations", json={"title": title})) == INVALID


async def test_query_parameters_are_validated(ann: Person) -> None:
    conversation_id = await ann.conversation("Hello?")
    for path in ("/conversations", f"/conversations/{conversation_id}/messages"):
        for name, values in {"limit": "0 1001 x 1.5 null ٣ %00", "before": f"0 -1 x null {2**63}"}.items():
            for value in ["", "9" * 5000, *values.split()]:
                response = await ann.get(f"{path}?{name}={value}")
                assert code(response) == INVALID and response.json()["message"].startswith(name), (path, name, value)
    for query in ("pinned=2", "deleted=yes", "pinned=", "q=%00", "q=" + "x" * 1001):
        assert code(await ann.get(f"/conversations?{query}")) == INVALID
    good(await ann.get("/conversations?q=%ff%fe&limit=5&unknown=1"))
    for after in ("x", "-1", "1.5", "9" * 30, "²"):
        assert code(await ann.get("/generations/x/stream", params={"after": after})) == INVALID
        assert code(await ann.get("/generations/x/stream", headers=[(b"last-event-id", after.encode())])) == INVALID
    assert code(await ann.get(f"/conversations/{conversation_id}/export?format=pdf")) == INVALID


# ---- conversations, messages


async def test_deleted_conversation_can_be_restored_until_it_is_purged(ann: Person) -> None:
    kept, purged = await ann.conversation("Keep me"), await ann.conversation("Purge me")
    missing = (404, "CONVERSATION_NOT_FOUND")
    for path in (f"/conversations/{kept}", f"/conversations/{purged}"):
        good(await ann.delete(path))
        for method, below in (("GET", ""), ("PATCH", ""), ("DELETE", ""), ("GET", "/messages"), ("POST", "/stream")):
            assert code(await ann.request(method, path + below)) == missing
    deleted = good(await ann.get("/conversations", params={"deleted": "true"}))
    assert [entry["id"] for entry in deleted] == [purged, kept] and deleted[0]["deleted_at"]
    good(await ann.delete(f"/conversations/{purged}", params={"purge": "true"}))
    assert code(await ann.post(f"/conversations/{purged}/restore")) == missing
    assert good(await ann.post(f"/conversations/{kept}/restore"))["id"] == kept
    assert [message["content"] for message in await ann.messages(kept)] == ["Keep me"]
    assert code(await ann.post(f"/conversations/{kept}/restore")) == missing


async def test_conversation_fields_are_stored_and_changed_one_by_one(ann: Person) -> None:
    fields: dict[str, Any] = {"title": "Mine", "system_prompt": "Be brief.", "pinned": True, "model": "m"}
    fields |= {"provider_id": "lmstudio", "settings": {"temperature": 0.5, "stop": ["x"]}}
    conversation = good(await ann.post("/conversations", json=fields))
    assert {name: conversation[name] for name in fields} == fields
    path = f"/conversations/{conversation['id']}"
    changes: list[dict[str, Any]] = [{"system_prompt": ""}, {"settings": {}, "model": None}, {}]
    for change in changes:
        assert good(await ann.patch(path, json=change)) == {"message": "Conversation updated"}
    changed = good(await ann.get(path))
    expected = fields | {"system_prompt": "", "settings": {}, "model": None, "updated_at": conversation["updated_at"]}
    assert {name: changed[name] for name in expected} == expected


async def test_image_must_have_the_declared_type_and_is_returned_unchanged(ann: Person) -> None:
    conversation_id = await ann.conversation()
    await ann.say(conversation_id, "", images=[IMAGE])
    [message] = await ann.messages(conversation_id)
    response = await ann.get(f"/images/{message['images'][0]['id']}")
    assert response.content == base64.b64decode(PNG) and response.headers["content-type"] == "image/png"
    assert "default-src 'none'" in response.headers["content-security-policy"]
    svg = base64.b64encode(b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>").decode()
    for image in (
        {"media_type": "image/png", "data": svg},
        {"media_type": "image/svg+xml", "data": svg},
        {"media_type": "text/html", "data": svg},
        {"media_type": "image/jpeg", "data": PNG},
    ):
        body = {"content": "x", "images": [image]}
        assert code(await ann.post(f"/conversations/{conversation_id}/messages", json=body)) == INVALID, image
    assert len(await ann.messages(conversation_id)) == 1


# ---- the page's files


async def test_files_are_compressed_and_not_sent_again_until_they_change(running: Running) -> None:
    client = running.anybody()
    for path, media_type in (
        ("/", "text/html; charset=utf-8"),
        ("/static/app.js", "text/javascript; charset=utf-8"),
        ("/static/app.css", "text/css; charset=utf-8"),
        ("/static/favicon.svg", "image/svg+xml"),
        ("/static/app.webmanifest", "application/manifest+json"),
    ):
        plain = await client.get(path, headers={"Accept-Encoding": "identity"})
        assert plain.status_code == 200 and plain.headers["content-type"] == media_type
        assert "content-encoding" not in plain.headers and int(plain.headers["content-length"]) == len(plain.content)
        packed = await client.get(path, headers={"Accept-Encoding": "br, gzip"})
        assert packed.headers["content-encoding"] == "gzip" and packed.content == plain.content
        assert packed.headers["vary"] == "Accept-Encoding" and packed.headers["cache-control"] == "no-cache"
        again = await client.get(path, headers={"If-None-Match": plain.headers["etag"]})
        assert again.status_code == 304 and again.content == b"" and again.headers["etag"] == plain.headers["etag"]
        assert (await client.get(path, headers={"If-None-Match": '"other"'})).status_code == 200


async def test_no_path_leads_out_of_the_static_folder(running: Running) -> None:
    names = "server.py ..%2fserver.py %2e%2e%2fserver.py ..%5cserver.py %2e%2e app.js%00 APP.JS app.js%2f %2fetc%2fpasswd .."
    for name in [*names.split(), ""]:
        assert (await get_raw(running, f"/static/{name}"))[0] == 404, name


async def test_page_loads_only_files_of_its_own_and_has_no_inline_code(running: Running) -> None:
    client = running.anybody()
    page = (await client.get("/")).text
    files = set(re.findall(r"""(?:src|href)="([^"#]+)""", page))
    assert files and all(file.startswith("/static/") for file in files)
    for file in files:
        assert (await client.get(file)).status_code == 200, file
    assert "<script>" not in page and "style=" not in page and not re.search(r"\son\w+=", page)


# ---- imports, exports, quotas


@pytest.mark.skipif(os.name != "posix", reason="needs a FIFO")
async def test_hanging_imports_do_not_block_other_requests(
    running: Running, ann: Person, bob: Person, tmp_path: Path
) -> None:
    fifo = tmp_path / "chats.json"
    os.mkfifo(fifo)
    writers: list[int] = []

    def is_read() -> bool:
        with contextlib.suppress(OSError):  # ENXIO while nothing has it open for reading
            writers.append(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        return bool(writers)

    async def begin(name: str) -> None:
        headers = {"Authorization": f"Bearer {running.state.secret}"}
        body = {"paths": [str(fifo)], "username": name}
        await running.anybody().post("/control/import", json=body, headers=headers, timeout=None)

    names = (ann.name, bob.name) * 10 * (os.cpu_count() or 1)
    imports = [asyncio.create_task(begin(name)) for name in names]
    try:
        await until(is_read)
        for _ in range(3):
            await running.login("bob")
        conversation_id = await bob.conversation("Hello")
        assert (await bob.get("/export")).content.startswith(b"PK")
        assert b"Hello" in (await bob.get(f"/conversations/{conversation_id}/export")).content
    finally:
        for task in imports:
            task.cancel()
        await asyncio.gather(*imports, return_exceptions=True)
        for writer in writers:
            os.close(writer)


async def test_failed_export_closes_the_connection_and_is_logged_once(
    running: Running, ann: Person, caplog: pytest.LogCaptureFixture
) -> None:
    conversation_id = await ann.conversation("Hello")
    for number in range(3):
        await ann.say(conversation_id, f"{number}" * 150_000)

    def damage(conn: Any) -> None:
        conn.execute("UPDATE messages SET stats = '{' WHERE id = (SELECT max(id) FROM messages)")

    await running.state.database.write(damage)
    for path in ("/export", f"/conversations/{conversation_id}/export?format=json"):
        caplog.clear()
        with pytest.raises(httpx.RemoteProtocolError):
            await ann.get(path)
        [line] = [record for record in caplog.records if record.name == "fireside.handlers"]
        assert line.getMessage() == "A download ended early: The database is damaged. Run: fireside doctor"
        assert not any(record.exc_info for record in caplog.records)


async def test_quota_limits_what_a_user_stores_but_never_cuts_an_answer(tmp_path: Path, upstream: Upstream) -> None:
    async with Running(tmp_path, lmstudio_url=upstream.url, user_max_bytes="100000") as running:
        ann = await running.first()
        bob = await running.join(ann, "bob")
        conversation_id = await ann.conversation("x" * 60_000)
        refused = (413, "QUOTA_EXCEEDED")
        picture = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(50_000)).decode()
        path = f"/conversations/{conversation_id}/messages"
        image = {"media_type": "image/png", "data": picture}
        assert code(await ann.post(path, json={"content": "", "images": [image]})) == refused
        assert code(await ann.post(path, json={"content": "ä" * 30_000})) == refused
        await ann.say(conversation_id, "x" * 39_990)
        upstream.enqueue(answer("An answer is never cut. " * 20))
        await ann.answer(conversation_id)
        assert (await ann.messages(conversation_id))[-1]["content"] == "An answer is never cut. " * 20
        exported = (await ann.get("/export")).content
        assert code(await bob.post("/import", content=exported, headers={"Content-Type": "application/zip"})) == refused
        assert good(await bob.get("/conversations")) == []
        assert code(await ann.post("/conversations", json={"message": {"content": "More"}})) == refused
        await bob.conversation("Bob has room of his own")
        assert code(await ann.post(path, json={"content": "More"})) == refused
        good(await ann.delete(f"/conversations/{conversation_id}"))
        other = await ann.conversation()
        prompt = {"system_prompt": "Be brief. " * 10_000}
        for refusal in (
            await ann.post("/conversations", json=prompt),
            await ann.patch(f"/conversations/{other}", json=prompt),
        ):
            assert code(refusal) == refused
        full = await ann.post(f"/conversations/{other}/messages", json={"content": "More"})
        assert code(full) == refused, "the bin counts"
        assert "Delete some for good" in full.json()["message"]
        good(await ann.delete(f"/conversations/{conversation_id}?purge=true"))
        await ann.say(other, "More")


QUESTION = {"id": 1, "parent_id": None, "role": "user", "content": "Q"}


def conversation(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Return a conversation as Fireside exports it."""
    moment = "2026-01-01T00:00:00.000000"
    dates = {"created_at": moment, "updated_at": moment}
    shown = [QUESTION | {"created_at": moment}, *(message | {"created_at": moment} for message in messages)]
    return {"fireside": 1, "active_message_id": len(shown), "messages": shown} | dates | fields


async def test_preview_of_an_import_has_its_report_and_progress(running: Running, ann: Person) -> None:
    file = [conversation(title=f"Chat {number}", source=f"{number}") for number in (1, 2)]
    report: dict[str, Any] = {"conversations": 2, "messages": 2, "prompts": 0, "presets": 0, "unchanged": 0}
    report |= {"skipped": [], "losses": [], "folders": []}
    assert good(await ann.post("/import?dry_run=true", json=file)) == report
    assert good(await ann.get("/conversations")) == []
    for expected in (report, report | {"conversations": 0, "messages": 0, "unchanged": 2}):
        sent = await ann.post("/import?progress=true", json=file)
        assert sent.headers["content-type"] == "application/x-ndjson"
        assert json.loads(sent.text.splitlines()[-1]) == {"done": 1.0, "report": expected}
    assert os.listdir(running.state.config.data_dir / "uploads") == []
    unreadable = await ann.post("/import?progress=true", json=[{"title": "No messages"}])
    [skipped] = json.loads(unreadable.text.splitlines()[-1])["report"]["skipped"]
    assert skipped["file"] == "upload.json: No messages"


async def test_upload_in_which_nothing_can_be_read_is_refused_with_the_reasons(ann: Person) -> None:
    wrong = [conversation(title=f"Chat {number}", active_message_id=7) for number in range(5)]
    huge = conversation({"id": 2, "parent_id": 1, "role": "assistant", "content": "A", "stats": {"x": "y" * 70_000}})
    for content, message in (
        (b"{", r"The file (is not valid JSON|ends in the middle)\."),
        (json.dumps(wrong[:1]).encode(), r"Chat 0: .+\."),
        (json.dumps([huge | {"title": "T"}]).encode(), r"T: is not as Fireside writes it.*"),
        (
            json.dumps(wrong).encode(),
            r"Nothing in the file can be imported\. Chat 0: .+; Chat 1: .+; Chat 2: .+; and 2 more\.",
        ),
    ):
        refusal = await ann.post("/import", content=content, headers=JSON)
        assert code(refusal) == (400, "IMPORT_UNREADABLE")
        assert re.fullmatch(message, refusal.json()["message"]), refusal.json()["message"]
    assert good(await ann.post("/import", json=[]))["conversations"] == 0
    for counts in ({"conversations": 1, "unchanged": 0}, {"conversations": 0, "unchanged": 1}):
        report = good(await ann.post("/import", json=[conversation(title="Whole"), wrong[0]]))
        assert {name: report[name] for name in counts} == counts and len(report["skipped"]) == 1
    prompt = {"command": "/mail", "title": "Mail", "content": "Write to {{name}}."}
    assert code(await ann.post("/import", json=[prompt | {"content": ""}])) == (400, "IMPORT_UNREADABLE")
    for counts in ({"prompts": 1, "unchanged": 0}, {"prompts": 0, "unchanged": 1}):
        report = good(await ann.post("/import", json=[prompt, prompt | {"content": ""}]))
        assert {name: report[name] for name in counts} == counts and len(report["skipped"]) == 1
    assert [one["content"] for one in good(await ann.get("/prompts"))["prompts"]] == [prompt["content"]]


async def test_long_reads_of_one_user_do_not_delay_another(running: Running, ann: Person, bob: Person) -> None:
    conversation_id = await bob.conversation("Hello")

    def fill(conn: Connection) -> int:
        conn.execute(
            "WITH RECURSIVE numbers (n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM numbers WHERE n < 10000)"
            " INSERT INTO messages (id, conversation_id, parent_id, role, content, status, model, created_at)"
            " SELECT n, ?, n - 1, iif(n % 2, 'user', 'assistant'), 'wörd', 'complete', 'm', '2026-01-01T00:00:00.000000'"
            " FROM numbers",
            (conversation_id,),
        )
        return conn.execute("UPDATE conversations SET active_message_id = 10000").rowcount

    await running.state.database.write(fill)
    for path in ("/usage", f"/conversations/{conversation_id}/context"):
        reads = [asyncio.create_task(bob.get(path)) for _ in range(8)]
        await until(lambda: running.state.requests.held == 8)
        good(await ann.get("/conversations?limit=1"))
        assert running.state.requests.held >= 4, path
        for response in await asyncio.gather(*reads):
            good(response)
