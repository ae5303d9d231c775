"""Personal access tokens, and what they open besides chats: the models and the embeddings of /v1.

tests/trust/authz.py has every route with tokens of other users, with a session beside the token, and from other origins."""

import asyncio
import json

import httpx
import pytest
from fireside import auth, queries
from fireside.db import ago

from ..conftest import Clock
from ..live import PASSWORD, PATIENCE, Person, Running, code, good
from ..upstream import MODEL, Gate, LocalModel, Upstream, headers, pause, status


async def create(person: Person, name: str = "Zed", **fields: object) -> str:
    token: str = good(await person.post("/tokens", json={"name": name, **fields}))["token"]
    return token


def program(running: Running, token: str) -> Person:
    """Return a client without a session that sends a token."""
    client = running.anybody()
    client.headers["Authorization"] = f"Bearer {token}"
    return client


def refused(response: httpx.Response) -> tuple[int, str]:
    """Return status and code, after checking the shape of OpenAI's errors."""
    assert list(response.json()) == ["error"]
    error = response.json()["error"]
    assert sorted(error) == ["code", "message", "param", "type"] and error["message"] and error["type"]
    return response.status_code, error["code"]


INVALID = (401, "invalid_api_key")


# ---- tokens


async def test_token_is_shown_once_listed_and_revoked(running: Running, ann: Person) -> None:
    made = good(await ann.post("/tokens", json={"name": " Zed ", "record": False, "expires_in_days": 30}))
    text = made.pop("token")
    assert len(text) == 75 and text.startswith("fs_")
    assert (made["name"], made["record"], made["requests"], made["last_used"]) == ("Zed", False, 0, None)
    assert made["expires_at"][:10] > made["created_at"][:10]
    assert good(await ann.get("/tokens")) == {"tokens": [made]}
    zed = program(running, text)
    good(await zed.get("/v1/models"))
    good(await zed.post("/v1/embeddings", json={"model": MODEL, "input": "x"}))
    [used] = good(await ann.get("/tokens"))["tokens"]
    assert used["requests"] == 1 and used["last_used"] > made["created_at"]
    assert good(await ann.delete(f"/tokens/{made['id']}")) == {"message": "Token revoked"}
    assert refused(await zed.get("/v1/models")) == INVALID
    assert code(await ann.delete(f"/tokens/{made['id']}")) == (404, "TOKEN_NOT_FOUND")


async def test_error_tells_a_typing_error_from_a_revoked_token(running: Running, ann: Person) -> None:
    text = await create(ann)
    good(await ann.delete("/tokens/1"))
    for given, words in (
        (text, "was revoked"),
        (auth.new_token(), "was revoked"),
        (text[:-1] + ("0" if text[-1] != "0" else "1"), "typing error"),
        (text[:40], "typing error"),
        ("é" * 75, "typing error"),
    ):
        running.state.auth.throttle = type(running.state.auth.throttle)()
        response = await running.anybody().get("/v1/models", headers={b"Authorization": f"Bearer {given}".encode()})
        assert refused(response) == INVALID and words in response.json()["error"]["message"], given
    valid = await create(ann)
    for header in ("", "Bearer", f"Basic {valid}", valid):
        response = await running.anybody().get("/v1/models", headers={"Authorization": header} if header else {})
        assert refused(response) == INVALID
    twice = [("Authorization", f"Bearer {valid}")] * 2
    assert refused(await running.anybody().get("/v1/models", headers=twice)) == INVALID


def test_checksum_notices_every_single_typing_error() -> None:
    token = auth.new_token()
    assert auth.is_well_formed(token)
    for place in range(3, len(token)):
        for letter in "0f":
            wrong = token[:place] + letter + token[place + 1 :]
            assert wrong == token or not auth.is_well_formed(wrong)
        assert not auth.is_well_formed(token[:place] + token[place + 1 :])


async def test_failed_tokens_are_throttled_and_valid_ones_are_not(running: Running, ann: Person, clock: Clock) -> None:
    text, wrong = await create(ann), auth.new_token()
    statuses = [(await program(running, wrong).get("/v1/models")).status_code for _ in range(8)]
    assert statuses == [401] * 6 + [429] * 2
    last = await program(running, wrong).get("/v1/models")
    assert refused(last) == (429, "rate_limit_exceeded") and int(last.headers["retry-after"]) <= 2
    good(await program(running, text).get("/v1/models"))
    clock.late = 60
    assert refused(await program(running, wrong).get("/v1/models")) == INVALID


async def test_expiry_disabling_a_reset_password_and_deletion_end_tokens(
    running: Running, ann: Person, bob: Person
) -> None:
    text = await create(bob)
    programs = program(running, text)
    good(await programs.get("/v1/models"))
    for status_ in ("disabled", "active"):
        good(await ann.patch("/admin/users/2", json={"status": status_}))
        assert (await programs.get("/v1/models")).status_code == (401 if status_ == "disabled" else 200)
        valid = [await running.state.database.read(queries.tokens.list_valid_ids, user_id) for user_id in (1, 2)]
        assert valid == [set(), set() if status_ == "disabled" else {1}]
    bob = await running.login("bob")
    good(await bob.post("/auth/password", json={"current_password": PASSWORD, "new_password": PASSWORD * 2}))
    good(await programs.get("/v1/models"))
    owner = {"Authorization": f"Bearer {running.state.secret}"}
    body = {"username": "bob", "password": PASSWORD}
    good(await running.anybody().post("/control/password", json=body, headers=owner))
    assert refused(await programs.get("/v1/models")) == INVALID
    expiring = program(running, await create(ann, expires_in_days=1))
    good(await expiring.get("/v1/models"))
    sql = f"UPDATE tokens SET expires_at = '{ago(seconds=1)}'"
    await running.state.database.write(lambda conn: conn.execute(sql).rowcount)
    assert refused(await expiring.get("/v1/models")) == INVALID
    assert await running.state.database.read(queries.tokens.list_valid_ids, 1) == set()
    late = program(running, await create(await running.login("bob")))
    good(await late.get("/v1/models"))
    good(await ann.delete("/admin/users/2"))
    assert refused(await late.get("/v1/models")) == INVALID
    await create(ann, "Another")
    assert await running.state.database.read(queries.tokens.list_valid_ids, 1) == {4}
    assert await running.state.database.read(queries.tokens.list_valid_ids, 2) == set()


async def test_number_of_tokens_is_limited(running: Running, ann: Person, bob: Person) -> None:
    for number in range(100):
        await running.state.database.write(queries.tokens.add_token, 1, "x", b"%d" % number, True, None)
    assert code(await ann.post("/tokens", json={"name": "One more"})) == (400, "VALIDATION_ERROR")
    await create(bob)


# ---- models and embeddings


@pytest.fixture
async def zed(running: Running, ann: Person) -> Person:
    return program(running, await create(ann))


async def test_models_of_all_servers_are_listed_with_their_server(zed: Person, upstream: Upstream) -> None:
    upstream.models.append(LocalModel("qwen/qwen3-8b"))
    listed = good(await zed.get("/v1/models"))
    assert listed["object"] == "list"
    ids = [model["id"] for model in listed["data"]]
    assert ids[:2] == [f"lmstudio/{MODEL}", "lmstudio/qwen2.5-vl-7b-instruct"]
    for name in (f"lmstudio/{MODEL}", f"lmstudio%2F{MODEL}", MODEL):
        found = good(await zed.get(f"/v1/models/{name}"))
        assert found == {"id": f"lmstudio/{MODEL}", "object": "model", "created": 0, "owned_by": "lmstudio"}
    for name in ("lmstudio/qwen/qwen3-8b", "qwen/qwen3-8b", "lmstudio/qwen/qwen3-8b/"):
        assert good(await zed.get(f"/v1/models/{name}"))["id"] == "lmstudio/qwen/qwen3-8b"
    for name in ("nothing", "lmstudio/nothing", "nowhere/x", f"nowhere/{MODEL}"):
        response = await zed.get(f"/v1/models/{name}")
        assert refused(response) == (404, "model_not_found")
        assert response.json()["error"]["param"] == "model"
    assert refused(await zed.get("/v1/nothing")) == (404, "path_not_found")
    assert refused(await zed.delete("/v1/models")) == (405, "method_not_allowed")


async def test_variant_of_a_model_is_found_by_its_name_alone(zed: Person, upstream: Upstream) -> None:
    upstream.models[0].variants = (MODEL, f"{MODEL}@q8_0")
    for name in (MODEL, f"{MODEL}@q8_0"):
        good(await zed.post("/v1/embeddings", json={"model": name, "input": "x"}))
        assert upstream.requests[-1].json["model"] == name


async def test_embeddings_pass_unchanged(zed: Person, upstream: Upstream) -> None:
    content = '{"input": ["\\u00e9 é", "b"], "model": "lmstudio/embed", "dimensions":  7, "x": {"y": 1.50}}'
    response = await zed.post("/v1/embeddings", content=content, headers={"Content-Type": "application/json"})
    assert [one["embedding"] for one in good(response)["data"]] == [[0.5, -0.25]] * 2
    sent = next(request for request in upstream.requests if request.path == "/v1/embeddings")
    assert sent.json == json.loads(content) | {"model": "embed"}
    assert b'["\\u00e9 \xc3\xa9", "b"]' in sent.body and b'{"y": 1.50}' in sent.body


async def test_failed_embeddings_have_fitting_errors(zed: Person, upstream: Upstream) -> None:
    def answers(*steps: object) -> None:
        upstream.enqueue(*steps, path="/v1/embeddings")  # type: ignore[arg-type]

    body = {"model": MODEL, "input": "x"}
    answers(status(400, {"error": {"message": "input is too long"}}))
    response = await zed.post("/v1/embeddings", json=body)
    assert refused(response) == (400, "provider_error") and "too long" in response.json()["error"]["message"]
    answers(status(500, "oops", "text/plain"))
    assert refused(await zed.post("/v1/embeddings", json=body)) == (502, "provider_error")
    answers(status(200, {"error": "Unexpected endpoint or method."}))
    assert refused(await zed.post("/v1/embeddings", json=body)) == (502, "provider_error")
    for content, expected in (
        (b"[]", (400, "validation_error")),
        (b"{", (400, "validation_error")),
        (b'{"input": "\\ud800"}', (400, "validation_error")),
        (b'{"model": "embed", "input": "\xff"}', (400, "validation_error")),
        (b'{"model": 7}', (400, "validation_error")),
        (b'{"model": "nothing"}', (404, "model_not_found")),
    ):
        response = await zed.post("/v1/embeddings", content=content, headers={"Content-Type": "application/json"})
        assert refused(response) == expected, content
    assert refused(await zed.post("/v1/embeddings", content=b"{}")) == (415, "unsupported_media_type")


async def test_embeddings_are_canceled_when_the_client_leaves(
    running: Running, zed: Person, upstream: Upstream
) -> None:
    upstream.enqueue(headers(content_type="application/json"), pause(Gate()), path="/v1/embeddings")
    asking = asyncio.create_task(zed.post("/v1/embeddings", json={"model": MODEL, "input": "x"}))
    await upstream.received(path="/v1/embeddings")
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    async with asyncio.timeout(PATIENCE):
        await upstream.closed(seconds=5)
