"""The API contract, example by example: every path, field, event and message.

`like` requires each field of an example, with a value of the same type. A response may have more fields.
"""

import datetime
import re
from typing import Any

import fireside
import pytest
from fireside.server import ROUTES
from fireside.web.endpoint import ADMIN, PUBLIC, USER

from ..live import BOOTSTRAP_TOKEN, PASSWORD, Person, Running, code, good
from ..upstream import DONE, Gate, Upstream, finish, pause, usage
from ..upstream import text as says

CONVERSATION = {
    "id": 123,
    "title": "My First Conversation",
    "created_at": "2024-01-15T10:30:00",
    "updated_at": "2024-01-15T10:30:00",
}
ANSWER = {"provider_id": "lmstudio", "model": "llama-3.2-3b-instruct", "temperature": 0.7, "max_tokens": 1000}
PERSON = {"id": 1, "username": "myusername", "role": "user"}

# What the contract requires of a request: an access rule and a CSRF token.
ENDPOINTS = {
    "POST /conversations": (USER, "required"),
    "GET /conversations": (USER, "none"),
    "GET /conversations/{conversation_id}": (USER, "none"),
    "PATCH /conversations/{conversation_id}": (USER, "required"),
    "DELETE /conversations/{conversation_id}": (USER, "required"),
    "GET /conversations/{conversation_id}/messages": (USER, "none"),
    "POST /conversations/{conversation_id}/messages": (USER, "required"),
    "POST /conversations/{conversation_id}/stream": (USER, "lenient"),
    "POST /chat/cancel/{generation_id}": (USER, "required"),
    "POST /chat/retry": (USER, "required"),
    "POST /auth/login": (PUBLIC, "none"),
    "POST /auth/logout": (USER, "required"),
    "GET /auth/me": (USER, "none"),
    "POST /admin/bootstrap": (PUBLIC, "none"),
    "GET /admin/users": (ADMIN, "none"),
    "POST /admin/invites": (ADMIN, "required"),
    "GET /providers": (USER, "none"),
    "GET /health": (PUBLIC, "none"),
    "GET /version": (PUBLIC, "none"),
}


def like(actual: Any, example: Any) -> None:
    if isinstance(example, dict):
        assert isinstance(actual, dict), actual
        for name, value in example.items():
            assert name in actual, f"{name} is missing"
            like(actual[name], value)
    elif isinstance(example, str) and re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]+", example):
        moment = datetime.datetime.fromisoformat(actual)
        assert moment.tzinfo is None and actual == moment.isoformat(timespec="microseconds")
        age = datetime.datetime.now(datetime.UTC).replace(tzinfo=None) - moment
        assert datetime.timedelta(0) <= age < datetime.timedelta(minutes=5), "it is not the time in UTC"
    else:
        assert type(actual) is type(example), (actual, example)


async def test_conversations_are_created_listed_renamed_and_deleted(ann: Person) -> None:
    first = good(await ann.post("/conversations", json={"title": "My First Conversation"}))
    like(first, CONVERSATION)
    assert first["title"] == "My First Conversation" and first["created_at"] == first["updated_at"]
    assert good(await ann.get(f"/conversations/{first['id']}")) == first
    second = good(await ann.post("/conversations", json={"title": "Another"}))
    assert good(await ann.get("/conversations")) == [second, first]
    assert good(await ann.get("/conversations", params={"q": "first conv"})) == [first]
    assert good(await ann.get("/conversations", params={"q": "third"})) == []
    path = f"/conversations/{first['id']}"
    renamed = await ann.patch(path, json={"title": "Updated Conversation Title"})
    assert good(renamed) == {"message": "Conversation renamed"}
    assert good(await ann.get(path))["title"] == "Updated Conversation Title"
    assert good(await ann.delete(path)) == {"message": "Conversation deleted"}
    for gone in (path, f"{path}/messages"):
        assert code(await ann.get(gone)) == (404, "CONVERSATION_NOT_FOUND")
    assert good(await ann.get("/conversations")) == [second]


async def test_messages_are_appended_and_listed(ann: Person, upstream: Upstream) -> None:
    conversation_id = await ann.conversation()
    body = {"content": "Hello, how can you help me?"}
    created = good(await ann.post(f"/conversations/{conversation_id}/messages", json=body))
    assert created == {"message_id": created["message_id"], "conversation_id": conversation_id}
    assert [message["id"] for message in await ann.messages(conversation_id)] == [created["message_id"]]
    upstream.enqueue(says("I can help you with various tasks..."), finish("stop"), usage(100, 50), DONE)
    await ann.answer(conversation_id, **ANSWER)
    question, answer = await ann.messages(conversation_id)
    like(question, {"id": 456, "role": "user", "content": "...", "created_at": "2024-01-15T10:30:00"})
    assert question["role"] == "user" and question["content"] == "Hello, how can you help me?"
    assert set(answer) - set(question) == {"token_usage"} and set(question) < set(answer)
    like(answer, {"id": 457, "role": "assistant", "content": "...", "created_at": "2024-01-15T10:30:05"})
    assert answer["role"] == "assistant" and answer["content"] == "I can help you with various tasks..."
    assert answer["token_usage"]["total_tokens"] == 150
    assert answer["created_at"] > question["created_at"]


async def test_stream_chat(ann: Person, upstream: Upstream) -> None:
    conversation_id = await ann.conversation("Hello?")
    gate = Gate()
    upstream.enqueue(says("Hello"), pause(gate), says(" there"), finish("stop"), usage(140, 10), DONE)
    events = []
    async with ann.streaming(conversation_id, **ANSWER) as stream:
        async for event in stream:
            events.append(event)
            if event.event == "delta":
                gate.open()
    named = [event for event in events if event.event in ("ping", "delta", "usage", "done", "error")]
    assert [event.event for event in named] == ["ping", "delta", "delta", "usage", "done"]
    generation_id = events[0].data["generation_id"]
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", generation_id)
    assert all(event.data["generation_id"] == generation_id for event in events)
    deltas = [event.data for event in named[1:3]]
    assert deltas == [{"generation_id": generation_id, "delta": delta} for delta in ("Hello", " there")]
    like(named[3].data, {"generation_id": "uuid", "usage": {"total_tokens": 150}})
    assert named[3].data["usage"]["total_tokens"] == 150
    like(named[4].data, {"generation_id": "uuid", "status": "ok"})
    assert named[4].data["status"] == "ok" and events[-1] == named[4]
    sent = upstream.chats[0]
    assert (sent["model"], sent["temperature"], sent["max_tokens"]) == ("llama-3.2-3b-instruct", 0.7, 1000)


async def test_error_event_is_followed_by_done(ann: Person, upstream: Upstream) -> None:
    conversation_id = await ann.conversation("Hello?")
    upstream.enqueue(says("Hel"), b'data: {"error": {"message": "The model has crashed"}}\n\n')
    *_, error, done = await ann.answer(conversation_id, **ANSWER)
    assert error.event == "error" and done.event == "done" and done.data["status"] == "error"
    like(error.data, {"generation_id": "uuid", "code": "...", "message": "..."})
    assert "The model has crashed" in error.data["message"]


async def test_cancel_generation(ann: Person, upstream: Upstream) -> None:
    conversation_id = await ann.conversation("Hello?")
    upstream.enqueue(says("Hel"), pause(Gate()))
    async with ann.streaming(conversation_id, **ANSWER) as events:
        ping = await anext(events)
        answer = await ann.post(f"/chat/cancel/{ping.data['generation_id']}")
        assert good(answer) == {"message": "Generation canceled"}
        assert [event async for event in events][-1].data["status"] == "canceled"


async def test_retry_chat(ann: Person, upstream: Upstream) -> None:
    conversation_id = await ann.conversation("Hello?")
    await ann.answer(conversation_id, **ANSWER)
    first = (await ann.messages(conversation_id))[-1]["id"]
    created = good(await ann.post("/chat/retry", json={"conversation_id": conversation_id, **ANSWER}))
    like(created, {"message_id": 458, "conversation_id": 123})
    assert created["conversation_id"] == conversation_id and created["message_id"] != first
    events = await ann.answer(conversation_id)
    assert created.items() <= events[0].data.items()
    question, answer = await ann.messages(conversation_id)
    assert answer["id"] == created["message_id"] and answer["parent_id"] == question["id"]
    assert upstream.chats[0] == upstream.chats[1]


async def test_user_logs_in_is_the_current_user_and_logs_out(running: Running, ann: Person) -> None:
    await running.join(ann, "myusername")
    browser = running.anybody()
    answer = await browser.post("/auth/login", json={"username": "myusername", "password": PASSWORD})
    body = good(answer)
    like(body, {"user": PERSON, "csrf_token": "abc123..."})
    assert body["user"]["username"] == "myusername" and body["user"]["role"] == "user"
    assert len(answer.headers.get_list("set-cookie")) == 1
    # The cookie and the token suffice for further requests.
    browser.headers["X-CSRF-Token"] = body["csrf_token"]
    like(good(await browser.post("/conversations", json={})), CONVERSATION)
    for person, name, role in ((browser, "myusername", "user"), (ann, "ann", "admin")):
        me = good(await person.get("/auth/me"))
        like(me, {"user": PERSON})
        assert (me["user"]["username"], me["user"]["role"]) == (name, role)
    assert good(await browser.post("/auth/logout")) == {"message": "Logged out successfully"}
    assert code(await browser.get("/auth/me")) == (401, "AUTH_REQUIRED")


@pytest.mark.parametrize("place", ["header", "body"])
async def test_bootstrap_admin(running: Running, place: str) -> None:
    request = {"username": "myusername", "password": PASSWORD} | ({"token": BOOTSTRAP_TOKEN} if place == "body" else {})
    headers = {"X-Bootstrap-Token": BOOTSTRAP_TOKEN} if place == "header" else {}
    response = await running.anybody().post("/admin/bootstrap", json=request, headers=headers)
    like(good(response), {"user": PERSON, "csrf_token": "abc123..."})
    assert good(response)["user"]["role"] == "admin" and len(response.headers.get_list("set-cookie")) == 1


async def test_administrator_invites_and_lists_users(ann: Person, running: Running) -> None:
    created = good(await ann.post("/admin/invites", json={"expires_in_hours": 24, "role": "user"}))
    like(created, {"id": 1, "invite_code": "", "expires_at": ""})
    body = {"invite_code": created["invite_code"], "username": "bob", "password": PASSWORD}
    like(good(await running.anybody().post("/auth/register", json=body)), {"user": PERSON, "csrf_token": "abc123..."})
    users = good(await ann.get("/admin/users"))["users"]
    assert [(user["username"], user["role"], user["status"]) for user in users] == [
        ("ann", "admin", "active"),
        ("bob", "user", "active"),
    ]
    for user in users:
        like(user, PERSON | {"status": "", "created_at": "2024-01-15T10:30:00", "last_login": "2024-01-15T10:30:00"})


async def test_list_providers(ann: Person) -> None:
    providers = good(await ann.get("/providers"))
    lmstudio = next(provider for provider in providers if provider["provider_id"] == "lmstudio")
    assert lmstudio["online"] is True and lmstudio["error"] is None
    assert lmstudio["health"] == good(await ann.get("/providers/lmstudio/health")) == {"online": True, "error": None}
    assert set(lmstudio["capabilities"]) == {"streaming", "vision", "tools", "json_mode", "max_context_tokens"}
    offered = {model["id"]: model for model in lmstudio["models"]}
    assert set(offered) == {"llama-3.2-3b-instruct", "qwen2.5-vl-7b-instruct"}
    loaded = offered["llama-3.2-3b-instruct"]
    assert (loaded["state"], loaded["context_length"], loaded["label"]) == ("loaded", 4096, "Llama 3.2 3B Instruct")


async def test_health_and_version(running: Running) -> None:
    anybody = running.anybody()
    assert good(await anybody.get("/health")) == {"status": "healthy"}
    assert good(await anybody.get("/version")) == {"version": fireside.__version__}


def test_routes_declare_what_the_contract_requires() -> None:
    """tests/trust/authz.py proves that each route does what it declares."""
    declared = {route.name: (route.access, route.csrf) for route in ROUTES}
    assert {name: declared[name] for name in ENDPOINTS} == ENDPOINTS
