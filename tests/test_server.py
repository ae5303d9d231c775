"""The table of routes against whatever can be sent to it: what is wrong is said with 4xx, in one shape, and nothing is a fault of ours."""

import asyncio
import base64
import contextlib
import json
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fireside.server import ROUTES
from fireside.web.endpoint import ADMIN, BODY_BYTES, OWNER, PUBLIC, PUBLIC_BODY_BYTES, USER, Endpoint
from msgspec import inspect

from .live import NO_TLS, PATIENCE, Person, Running, code, good, until
from .upstream import Upstream, answer
from .web.test_middleware import raw

JSON = {"Content-Type": "application/json"}
INVALID = (400, "VALIDATION_ERROR")
PIXEL = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(50)).decode()

# A value of each kind that JSON has.
KINDS = {
    "null": b"null",
    "bool": b"true",
    "int": b"7",
    "float": b"1.5",
    "str": b'"x"',
    "array": b"[]",
    "object": b"{}",
}

NOT_TEXT = {"no UTF-8": b'"\xff"', "surrogates in UTF-8": b'"\xed\xa0\x80"', "half a surrogate": b'"\\ud800"'}

# Values that are of the right kind for some field, and that no field should choke on.
HOSTILE: dict[str, list[bytes]] = {
    "str": [
        b'"\\udc00\\ud800"',
        b'"a\\u0000b"',
        b'"' + b"x" * 300_000 + b'"',
        '"\u202e\u2028\ufeff\U0010ffff"'.encode(),
        b'"\\u0001\\u001b[31m"',
        b'""',
        b'" "',
    ],
    "int": [
        b"-1",
        b"0",
        b"-0",
        b"9223372036854775807",
        b"9223372036854775808",
        b"18446744073709551616",
        b"1" + b"0" * 5000,
    ],
    "float": [b"-0.0", b"1e999", b"-1e999", b"1e-999", b"0." + b"1" * 5000],
    "array": [b"[" * 200 + b"]" * 200, b"[null]", b"[" + b"{}," * 5000 + b"{}]"],
    "object": [b'{"": null}', b'{"x":' * 200 + b"1" + b"}" * 200, b'{"__proto__": {"x": 1}}'],
}

MALFORMED = [
    b"{",
    b"{]",
    b"}",
    b"[]",
    b"null",
    b"true",
    b'"x"',
    b"7",
    b"NaN",
    b"Infinity",
    b'{"x": NaN}',
    b'{"x": -Infinity}',
    b'{"x": 01}',
    b"{'x': 1}",
    b'{"x": 1,}',
    b'{"x" 1}',
    b"{}{}",
    b"{} x",
    b"// x\n{}",
    b"\xef\xbb\xbf{}",
    b"\xff\xfe{\x00}\x00",
    b'{"x": "\\x"}',
    b'{"x": "\n"}',
    b"\0",
    b" ",
    b"[" * 100_000,
    b'{"x":' * 100_000,
    b'{"x":' + b"[" * 20_000 + b"]" * 20_000 + b"}",
]


BODIES = [route for route in ROUTES if route.method != "GET" and route.body is not None]


def kinds(kind: inspect.Type) -> set[str]:
    """The kinds of JSON value that a field's type takes."""
    match kind:
        case inspect.UnionType(types):
            return set().union(*map(kinds, types))
        case inspect.NoneType():
            return {"null"}
        case inspect.BoolType():
            return {"bool"}
        case inspect.IntType():
            return {"int"}
        case inspect.FloatType():
            return {"int", "float"}
        case inspect.StrType() | inspect.BytesType():
            return {"str"}
        case inspect.LiteralType(values):
            return {"str" for value in values if isinstance(value, str)}
        case inspect.ListType():
            return {"array"}
        case inspect.DictType() | inspect.StructType():
            return {"object"}
    raise AssertionError(f"what does {kind} take?")


def fields(route: Endpoint) -> tuple[inspect.Field, ...]:
    described = inspect.type_info(route.body)
    assert isinstance(described, inspect.StructType)
    return described.fields


def least(route: Endpoint, **more: Any) -> dict[str, Any]:
    """A body of what is required and no more."""
    samples = {"str": "x" * 12, "int": 1, "array": [], "object": {}}
    needed = [field for field in fields(route) if field.required]
    return {field.encode_name: samples[next(iter(kinds(field.type)))] for field in needed} | more


@contextlib.asynccontextmanager
async def busy(person: Person) -> AsyncIterator[httpx.AsyncClient]:
    """The same person on a connection that stays open, for hundreds of requests in a row."""
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
    """Status and error code of a path that no client tidies up."""
    head = f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    status, _, body = await raw(running, head.encode("latin-1"))
    return status, json.loads(body)["code"] if body.startswith(b'{"code"') else ""


class Objects(dict[str, Any]):
    """One of everything that a path can name."""

    def path(self, route: Endpoint) -> str:
        return re.sub(r"\{(\w+)\}", lambda name: str(self[name[1]]), route.path)


async def made(running: Running, person: Person) -> Objects:
    conversation_id = await person.conversation("Hello?")
    await person.say(conversation_id, "Look", images=[{"media_type": "image/png", "data": PIXEL}])
    events = await person.answer(conversation_id, provider_id="lmstudio", model="llama-3.2-3b-instruct")
    *_, question, _ = await person.messages(conversation_id)
    return Objects(
        conversation_id=conversation_id,
        message_id=question["id"],
        image_id=question["images"][0]["id"],
        generation_id=events[0].data["generation_id"],
        session_id=good(await person.get("/auth/sessions"))["sessions"][0]["id"],
        user_id=good(await person.get("/auth/me"))["user"]["id"],
        invite_id=1,
        provider_id="lmstudio",
        name="app.js",
    )


def credentials(running: Running, route: Endpoint) -> dict[str, str]:
    return {"Authorization": f"Bearer {running.state.secret}"} if route.access is OWNER else {}


# ---- the table


def test_every_route_says_who_may_call_it() -> None:
    for route in ROUTES:
        assert route.access in (PUBLIC, USER, ADMIN, OWNER), route.path
    public = {route.name for route in ROUTES if route.access is PUBLIC}
    assert public >= {"GET /health", "GET /version", "GET /", "POST /auth/login"}
    assert not any(
        name.split()[1].startswith(("/conversations", "/chat", "/admin/users", "/search")) for name in public
    )


async def test_a_path_without_a_route_is_not_found(running: Running) -> None:
    paths = [
        "/nowhere",
        "/conversations/",
        "/Conversations",
        "//conversations",
        "/auth",
        "/%00",
        "/%ff",
        "/" + "x" * 9000,
    ]
    for path in [*paths, "/./version", "/version/", "/%2e/version", "/static", "/static/", "/docs", "/favicon.ico"]:
        assert await get_raw(running, path) == (404, "PATH_NOT_FOUND"), path


async def test_a_route_takes_its_methods_only(ann: Person, running: Running) -> None:
    objects = await made(running, ann)
    paths: dict[str, set[str]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, set()).update(route.methods or ())
    async with busy(ann) as client:
        for template, methods in paths.items():
            path = objects.path(next(route for route in ROUTES if route.path == template))
            for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"} - methods:
                answer = await client.request(method, path)
                assert code(answer) == (405, "METHOD_NOT_ALLOWED"), (method, path)
                assert set(answer.headers["allow"].split(", ")) <= methods
    for path in ("/health", "/version", "/", "/static/app.js", "/auth/me"):
        answer = await ann.head(path)
        assert answer.status_code == 200 and answer.content == b"" and int(answer.headers["content-length"]) > 0


async def test_a_path_names_its_object_by_a_number(ann: Person, running: Running) -> None:
    objects = await made(running, ann)
    wrong = ["0", "-1", "+1", "1.0", "1e3", "0x1", " 1", "%201", "1%00", "abc", "null", "٣", "１", "²", "9" * 5000]  # noqa: RUF001
    wrong += [str(2**63), str(2**64), "9999999999999999999", "1%2F2", "%F0%9F%94%A5", "%ff"]
    async with busy(ann) as client:
        for route in ROUTES:
            names = re.findall(r"\{(\w+)_id\}", route.path)
            for name in {*names} - {"generation", "provider"}:
                for value in wrong:
                    path = Objects(objects | {f"{name}_id": value}).path(route)
                    body = least(route) if route in BODIES else None
                    answer = await client.request(route.method, path, json=body)
                    expected = "PATH" if "%2F" in value else name.upper()
                    assert code(answer) == (404, f"{expected}_NOT_FOUND"), (route.name, value[:20])


async def test_another_s_object_is_as_missing_as_none_byte_for_byte(ann: Person, bob: Person, running: Running) -> None:
    objects = await made(running, ann)
    none = Objects(dict.fromkeys(objects, 10**6) | {"generation_id": "00000000-0000-4000-8000-000000000000"})
    bob_s = await bob.conversation("Mine")
    looked = 0

    async def same(method: str, theirs: tuple[str, Any], missing: tuple[str, Any]) -> None:
        nonlocal looked
        answers = []
        for path, body in (theirs, missing):
            answer = await bob.request(method, path, json=body)
            answers.append((answer.status_code, {**answer.json(), "request_id": ""}, sorted(answer.headers)))
        assert answers[0] == answers[1], theirs
        assert answers[0][0] == 404, theirs
        looked += 1

    for route in ROUTES:
        if route.access is USER and re.search(r"\{(?!provider)\w+_id\}", route.path):
            body = least(route) if route in BODIES else None
            await same(route.method, (objects.path(route), body), (none.path(route), body))
    theirs = objects["conversation_id"]
    await same("POST", ("/chat/retry", {"conversation_id": theirs}), ("/chat/retry", {"conversation_id": 10**6}))
    for path, name in (
        (f"/conversations/{bob_s}/active", "message_id"),
        (f"/conversations/{bob_s}/messages", "parent_id"),
    ):
        bodies = [{"content": "x", name: value} for value in (objects["message_id"], 10**6)]
        await same("POST", (path, bodies[0]), (path, bodies[1]))
    for path in ("/conversations", f"/conversations/{bob_s}/messages"):
        name = "conversation_id" if path == "/conversations" else "message_id"
        await same("GET", (f"{path}?before={objects[name]}", None), (f"{path}?before={10**6}", None))
    await same("DELETE", (f"/conversations/{theirs}?purge=true", None), (f"/conversations/{10**6}?purge=true", None))
    assert looked >= 18
    assert len(await ann.messages(theirs)) == 3 and [c["id"] for c in good(await bob.get("/conversations"))] == [bob_s]


# ---- bodies


async def test_what_is_not_json_is_said_so_by_every_route(ann: Person, running: Running) -> None:
    objects = await made(running, ann)
    async with busy(ann) as client:
        for route in BODIES:
            headers = JSON | credentials(running, route)
            for content in MALFORMED:
                answer = await client.request(route.method, objects.path(route), content=content, headers=headers)
                large = route.access is PUBLIC and len(content) > PUBLIC_BODY_BYTES
                assert code(answer) == ((413, "BODY_TOO_LARGE") if large else INVALID), (route.name, content[:40])
                assert len(answer.content) < 1000
    assert good(await ann.get("/health")) == {"status": "healthy"}


@pytest.mark.parametrize("route", BODIES, ids=lambda route: route.name)
def test_a_body_s_fields_have_types_that_the_next_test_knows(route: Endpoint) -> None:
    for field in fields(route):
        assert kinds(field.type), field.name


async def test_a_field_of_the_wrong_kind_is_named(ann: Person, running: Running) -> None:
    objects = await made(running, ann)
    asked = 0
    async with busy(ann) as client:
        for route in BODIES:
            headers = JSON | credentials(running, route)
            for field in fields(route):
                name = field.encode_name
                wrong = {kind: value for kind, value in KINDS.items() if kind not in kinds(field.type)}
                for kind, value in (wrong | NOT_TEXT).items():
                    content = replaced(least(route), name, value)
                    answer = await client.request(route.method, objects.path(route), content=content, headers=headers)
                    assert code(answer) == INVALID, (route.name, name, kind)
                    assert kind in NOT_TEXT or answer.json()["message"].startswith(f"{name} must "), answer.text
                    asked += 1
            for field in fields(route):
                if field.required:
                    body = {other: value for other, value in least(route).items() if other != field.encode_name}
                    answer = await client.request(route.method, objects.path(route), json=body, headers=headers)
                    assert code(answer) == INVALID and answer.json()["message"] == f"{field.encode_name} is missing."
    assert asked > 150


def replaced(body: dict[str, Any], name: str, value: bytes) -> bytes:
    """The JSON of a body with one field's value as these bytes."""
    others = [
        json.dumps(other).encode() + b": " + json.dumps(given).encode()
        for other, given in body.items()
        if other != name
    ]
    return b"{" + b", ".join([*others, json.dumps(name).encode() + b": " + value]) + b"}"


async def test_no_value_of_any_field_is_a_fault_of_ours(ann: Person, running: Running, upstream: Upstream) -> None:
    objects = await made(running, ann)
    async with busy(ann) as client:
        for route in BODIES:
            if route.access is OWNER:  # that person may do with their files what they like
                continue
            for field in fields(route):
                for value in [value for kind in kinds(field.type) for value in HOSTILE.get(kind, ())]:
                    content = replaced(least(route), field.encode_name, value)
                    answer = await client.request(route.method, objects.path(route), content=content, headers=JSON)
                    where = (route.name, field.name, value[:30], answer.text[:200])
                    if answer.status_code == 200:
                        assert b"\\ud800" not in answer.content and b"NaN" not in answer.content
                    else:
                        assert answer.status_code < 500 or route.path.startswith("/providers"), where
                        code(answer)
    for path in ("/conversations", "/auth/sessions", "/admin/users", "/usage", "/providers"):
        json.loads((await ann.get(path)).content.decode())
    await ann.messages(objects["conversation_id"])


async def test_fields_that_are_not_known_count_only_among_parameters(ann: Person) -> None:
    conversation_id = await ann.conversation("Hello?", unknown=1)
    good(await ann.patch(f"/conversations/{conversation_id}", json={"pinned": True, "unknown": 1}))
    assert await ann.say(conversation_id, "x", unknown=1)
    unknown: list[tuple[str, dict[str, Any]]] = [
        (f"/conversations/{conversation_id}/stream", {"n": 2}),
        (f"/conversations/{conversation_id}/stream", {"messages": []}),
        ("/chat/retry", {"conversation_id": conversation_id, "api_base": "http://evil.example"}),
        ("/conversations", {"settings": {"n": 2}}),
    ]
    for path, body in unknown:
        answer = await ann.post(path, json=body)
        assert code(answer) == INVALID and "is not a known field" in answer.json()["message"]


PARAMETERS: list[tuple[str, list[Any], list[Any]]] = [
    ("temperature", [0, 2, 0.7], [-0.1, 2.1]),
    ("top_p", [0, 1], [-0.1, 1.1]),
    ("top_k", [0, 1000], [-1, 1001]),
    ("min_p", [0, 1], [1.1]),
    ("max_tokens", [1, 1048576], [0, 1048577]),
    ("stop", ["x", ["a", "b"], ["a"] * 16], [["a"] * 17, "x" * 501, [1]]),
    ("seed", [-(2**31), 2**32], [2**33]),
    ("presence_penalty", [-2, 2], [-2.1, 2.1]),
    ("frequency_penalty", [-2, 2], [-2.1, 2.1]),
    ("repeat_penalty", [0, 2], [-0.1, 2.1]),
    ("response_format", [{"type": "json_object"}], ["json"]),
]


async def test_parameters_are_checked_and_forwarded_as_they_are(ann: Person, upstream: Upstream) -> None:
    conversation_id = await ann.conversation("Hello?")
    common = {"conversation_id": conversation_id, "provider_id": "lmstudio", "model": "llama-3.2-3b-instruct"}
    for name, _, refused in PARAMETERS:
        for value in refused:
            answer = await ann.post("/chat/retry", json=common | {name: value})
            assert code(answer) == INVALID and answer.json()["message"].startswith(name), (name, value)
    assert upstream.chats == []
    for place in range(3):
        given = {name: taken[min(place, len(taken) - 1)] for name, taken, _ in PARAMETERS}
        good(await ann.post("/chat/retry", json=common | given))
        await ann.answer(conversation_id)
        asked = upstream.chats[-1]
        assert {name: asked.get(name) for name in given} == given
    good(await ann.post("/chat/retry", json=common | {name: None for name, _, _ in PARAMETERS}))
    await ann.answer(conversation_id)
    assert not {name for name, _, _ in PARAMETERS} & set(upstream.chats[-1])


async def test_a_body_says_that_it_is_json(ann: Person) -> None:
    for content_type in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "",
        "json",
        "text/json",
    ):
        headers = {"Content-Type": content_type} if content_type else {}
        answer = await ann.post("/conversations", content=b"{}", headers=headers)
        assert code(answer) == (415, "UNSUPPORTED_MEDIA_TYPE"), content_type
    for content_type in (
        "application/json",
        "Application/JSON",
        "application/json; charset=utf-8",
        "application/json ;x",
    ):
        good(await ann.post("/conversations", content=b"{}", headers={"Content-Type": content_type}))
    good(await ann.post("/conversations"))
    good(await ann.post("/conversations", headers={"Content-Type": "text/plain"}))


async def chunks(size: int) -> AsyncIterator[bytes]:
    for _ in range(size // 65536 + 1):
        yield b" " * 65536


async def test_a_body_that_is_too_large_is_refused_however_it_comes(ann: Person, running: Running) -> None:
    too_large = (413, "BODY_TOO_LARGE")
    for path, limit in (("/render", BODY_BYTES), ("/chat/retry", BODY_BYTES), ("/auth/login", PUBLIC_BODY_BYTES)):
        assert code(await ann.post(path, content=b" " * (limit + 1), headers=JSON)) == too_large
        assert code(await ann.post(path, content=chunks(limit), headers=JSON)) == too_large
        assert code(await ann.post(path, content=b" " * (limit - 100), headers=JSON)) == INVALID
    host, _, port = running.url.removeprefix("http://").rpartition(":")
    for length in (BODY_BYTES + 1, 10**15, 10**30):
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST /auth/login HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\nContent-Type: application/json\r\n\r\n"
        writer.write(head.encode())
        async with asyncio.timeout(5):
            first = await reader.readline()
        assert b" 413 " in first or b" 400 " in first, "it is not waited for"
        writer.close()
        await writer.wait_closed()


async def test_texts_have_their_lengths(ann: Person) -> None:
    conversation_id = await ann.conversation()
    path = f"/conversations/{conversation_id}"
    message_id = await ann.say(conversation_id, "ä" * 200_000)
    assert code(await ann.post(f"{path}/messages", json={"content": "x" * 200_001})) == INVALID
    assert code(await ann.post(f"{path}/messages", json={"content": ""})) == INVALID
    assert [message["id"] for message in await ann.messages(conversation_id)] == [message_id]
    good(await ann.patch(path, json={"title": "字" * 200}))
    for title in ("x" * 201, "", "  ", None, "\0"):
        assert code(await ann.patch(path, json={"title": title})) == INVALID
    assert good(await ann.get(path))["title"] == "字" * 200
    assert good(await ann.post("/conversations", json={"title": None}))["title"]


async def test_any_text_comes_back_as_it_was(ann: Person) -> None:
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
        "ö",
        "o\u0308",
        "\ud7ff\ue000\uffff\U0010ffff",
    ]
    for text in texts:
        await ann.say(conversation_id, text)
    assert [message["content"] for message in await ann.messages(conversation_id)] == texts


# ---- queries


async def test_what_a_query_says_is_checked(ann: Person) -> None:
    conversation_id = await ann.conversation("Hello?")
    for path in ("/conversations", f"/conversations/{conversation_id}/messages"):
        for name, values in {
            "limit": ["0", "1001", "-1", "x", "1.5", "", "null", "9" * 5000, "٣", "%00"],
            "before": ["0", "-1", "x", "null", str(2**63), "9" * 5000, ""],
        }.items():
            for value in values:
                answer = await ann.get(f"{path}?{name}={value}")
                assert code(answer) == INVALID and answer.json()["message"].startswith(name), (path, name, value)
    for name in ("pinned", "deleted"):
        for value in ("2", "yes", ""):
            assert code(await ann.get("/conversations", params={name: value})) == INVALID
    for value in ("\0", "x" * 1001):
        assert code(await ann.get("/conversations", params={"q": value})) == INVALID
    good(await ann.get("/conversations?q=%ff%fe&limit=5&unknown=1"))
    for after in ("x", "-1", "1.5", "9" * 30, "²"):
        assert code(await ann.get("/generations/x/stream", params={"after": after})) == INVALID
        assert code(await ann.get("/generations/x/stream", headers=[(b"last-event-id", after.encode())])) == INVALID
    assert code(await ann.get(f"/conversations/{conversation_id}/export?format=pdf")) == INVALID


async def test_lists_come_in_pages(ann: Person) -> None:
    for number in range(7):
        await ann.conversation(title=f"number {number}", pinned=number < 3)
    whole = good(await ann.get("/conversations"))
    assert [entry["title"] for entry in whole] == [f"number {number}" for number in range(6, -1, -1)]
    first = good(await ann.get("/conversations", params={"limit": 4}))
    second = good(await ann.get("/conversations", params={"limit": 4, "before": first[-1]["id"]}))
    assert first + second == whole and len(first) == 4
    assert len(good(await ann.get("/conversations", params={"pinned": "true"}))) == 3
    conversation_id = whole[0]["id"]
    ids = [await ann.say(conversation_id, str(number)) for number in range(5)]
    path = f"/conversations/{conversation_id}/messages"
    page = good(await ann.get(path, params={"limit": 2, "before": ids[4]}))
    assert [message["id"] for message in page] == ids[2:4]


# ---- conversations, messages


async def test_the_bin_gives_back_what_is_not_purged(ann: Person) -> None:
    kept, purged = await ann.conversation("Keep me"), await ann.conversation("Purge me")
    for conversation_id in (kept, purged):
        good(await ann.delete(f"/conversations/{conversation_id}"))
        for method, path in (
            ("GET", f"/conversations/{conversation_id}"),
            ("PATCH", f"/conversations/{conversation_id}"),
            ("DELETE", f"/conversations/{conversation_id}"),
            ("GET", f"/conversations/{conversation_id}/messages"),
            ("POST", f"/conversations/{conversation_id}/stream"),
        ):
            assert code(await ann.request(method, path)) == (404, "CONVERSATION_NOT_FOUND")
    binned = good(await ann.get("/conversations", params={"deleted": "true"}))
    assert [entry["id"] for entry in binned] == [purged, kept] and binned[0]["deleted_at"]
    good(await ann.delete(f"/conversations/{purged}", params={"purge": "true"}))
    assert code(await ann.post(f"/conversations/{purged}/restore")) == (404, "CONVERSATION_NOT_FOUND")
    assert good(await ann.post(f"/conversations/{kept}/restore"))["id"] == kept
    assert [message["content"] for message in await ann.messages(kept)] == ["Keep me"]
    assert code(await ann.post(f"/conversations/{kept}/restore")) == (404, "CONVERSATION_NOT_FOUND")


async def test_a_conversation_keeps_what_it_was_told(ann: Person) -> None:
    fields = {
        "title": "Mine",
        "system_prompt": "Be brief.",
        "pinned": True,
        "provider_id": "lmstudio",
        "model": "m",
        "settings": {"temperature": 0.5, "stop": ["x"]},
    }
    conversation = good(await ann.post("/conversations", json=fields))
    assert {name: conversation[name] for name in fields} == fields
    path = f"/conversations/{conversation['id']}"
    assert good(await ann.patch(path, json={"system_prompt": ""})) == {"message": "Conversation updated"}
    assert good(await ann.patch(path, json={"settings": {}, "model": None})) == {"message": "Conversation updated"}
    assert good(await ann.patch(path, json={})) == {"message": "Conversation updated"}
    changed = good(await ann.get(path))
    assert (changed["system_prompt"], changed["settings"], changed["model"]) == ("", {}, None)
    assert changed["title"] == "Mine" and changed["updated_at"] == conversation["updated_at"]


async def test_the_same_message_twice_is_one(ann: Person) -> None:
    conversation_id = await ann.conversation()
    ids = await asyncio.gather(*(ann.say(conversation_id, "hello", client_id="a-1") for _ in range(10)))
    assert len(set(ids)) == 1 == len(await ann.messages(conversation_id))
    for wrong in ("", "x" * 101, "a b", "é", 1):
        body = {"content": "hello", "client_id": wrong}
        assert code(await ann.post(f"/conversations/{conversation_id}/messages", json=body)) == INVALID


async def test_an_edit_is_another_version_and_both_can_be_had(ann: Person) -> None:
    conversation_id = await ann.conversation()
    first = await ann.say(conversation_id, "first")
    second = await ann.say(conversation_id, "second")
    edited = await ann.say(conversation_id, "first, edited", parent_id=None)
    assert [message["versions"] for message in await ann.messages(conversation_id)] == [
        {"ids": [first, edited], "index": 1}
    ]
    chosen = await ann.post(f"/conversations/{conversation_id}/active", json={"message_id": first})
    assert good(chosen) == {"message": "Version selected", "active_message_id": second}
    assert [message["id"] for message in await ann.messages(conversation_id)] == [first, second]
    for wrong in (10**6, 2**63 - 1):
        body: dict[str, Any] = {"message_id": wrong}
        assert code(await ann.post(f"/conversations/{conversation_id}/active", json=body)) == (404, "MESSAGE_NOT_FOUND")
        body = {"content": "x", "parent_id": wrong}
        assert code(await ann.post(f"/conversations/{conversation_id}/messages", json=body)) == (
            404,
            "MESSAGE_NOT_FOUND",
        )


async def test_an_image_is_what_it_says_and_comes_back(ann: Person) -> None:
    conversation_id = await ann.conversation()
    path = f"/conversations/{conversation_id}/messages"
    await ann.say(conversation_id, "", images=[{"media_type": "image/png", "data": PIXEL}])
    [message] = await ann.messages(conversation_id)
    answer = await ann.get(f"/images/{message['images'][0]['id']}")
    assert answer.content == base64.b64decode(PIXEL) and answer.headers["content-type"] == "image/png"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    svg = base64.b64encode(b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>").decode()
    for image in (
        {"media_type": "image/png", "data": svg},
        {"media_type": "image/svg+xml", "data": svg},
        {"media_type": "text/html", "data": svg},
        {"media_type": "image/jpeg", "data": PIXEL},
        {"media_type": "image/png", "data": "no base64!"},
        {"media_type": "image/png", "data": ""},
        {"media_type": "image/png"},
        {},
    ):
        assert code(await ann.post(path, json={"content": "x", "images": [image]})) == INVALID, image
    too_many = [{"media_type": "image/png", "data": PIXEL}] * 9
    assert code(await ann.post(path, json={"content": "x", "images": too_many})) == INVALID
    assert len(await ann.messages(conversation_id)) == 1


# ---- the page's files


async def test_files_are_sent_once_and_then_only_when_they_changed(running: Running) -> None:
    client = running.anybody()
    for path, kind in (
        ("/", "text/html; charset=utf-8"),
        ("/static/app.js", "text/javascript; charset=utf-8"),
        ("/static/app.css", "text/css; charset=utf-8"),
        ("/static/favicon.svg", "image/svg+xml"),
        ("/static/app.webmanifest", "application/manifest+json"),
    ):
        whole = await client.get(path, headers={"Accept-Encoding": "identity"})
        assert whole.status_code == 200 and whole.headers["content-type"] == kind
        assert "content-encoding" not in whole.headers and int(whole.headers["content-length"]) == len(whole.content)
        packed = await client.get(path, headers={"Accept-Encoding": "br, gzip"})
        assert packed.headers["content-encoding"] == "gzip" and packed.content == whole.content
        assert packed.headers["vary"] == "Accept-Encoding"
        again = await client.get(path, headers={"If-None-Match": whole.headers["etag"]})
        assert again.status_code == 304 and again.content == b"" and again.headers["etag"] == whole.headers["etag"]
        other = await client.get(path, headers={"If-None-Match": '"other"'})
        assert other.status_code == 200


async def test_nothing_leads_out_of_the_page_s_folder(running: Running) -> None:
    for name in (
        "server.py",
        "..%2fserver.py",
        "%2e%2e%2fserver.py",
        "..%5cserver.py",
        "%2e%2e",
        "app.js%00",
        "app.js.map",
        "APP.JS",
        "app.js%2f",
        "%2fetc%2fpasswd",
        "..",
        "",
    ):
        assert (await get_raw(running, f"/static/{name}"))[0] == 404, name


async def test_the_page_asks_nothing_of_anybody_else(running: Running) -> None:
    client = running.anybody()
    page = (await client.get("/")).text
    files = set(re.findall(r"""(?:src|href)="([^"#]+)""", page))
    assert files and all(file.startswith("/static/") for file in files)
    for file in files:
        assert (await client.get(file)).status_code == 200, file
    assert "<script>" not in page and "style=" not in page and not re.search(r"\son\w+=", page)


# ---- imports and exports


@pytest.mark.skipif(os.name != "posix", reason="a file that nobody writes to is a FIFO")
async def test_imports_that_hang_keep_nobody_from_signing_in(
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


async def test_an_export_that_fails_ends_the_connection_and_is_logged_once(
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


async def test_a_user_may_store_so_many_bytes_and_no_more(tmp_path: Path, upstream: Upstream) -> None:
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


async def test_a_response_format_is_bounded(ann: Person) -> None:
    conversation_id = await ann.conversation()
    for size, status in ((60_000, 200), (70_000, 400)):
        settings = {"response_format": {"schema": "x" * size}}
        answer = await ann.patch(f"/conversations/{conversation_id}", json={"settings": settings})
        assert answer.status_code == status, answer.text
    assert "response_format must have at most 64 KiB" in answer.json()["message"]


async def test_an_imported_message_with_huge_details_is_skipped(ann: Person) -> None:
    moment = "2026-01-01T00:00:00.000000"
    question = {"id": 1, "parent_id": None, "role": "user", "content": "Q", "created_at": moment}
    answer = {"id": 2, "parent_id": 1, "role": "assistant", "content": "A", "created_at": moment}
    conversation = {"fireside": 1, "title": "T", "created_at": moment, "updated_at": moment, "active_message_id": 2}
    conversation["messages"] = [question, answer | {"stats": {"x": "y" * 70_000}}]
    report = good(await ann.post("/import", json=[conversation]))
    assert report["conversations"] == 0 and "64 KiB" in report["skipped"][0]["reason"]
