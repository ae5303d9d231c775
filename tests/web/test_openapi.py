"""GET /openapi.json describes what real requests to all routes return, with all fields."""

import asyncio
import base64
import json
import re
from pathlib import Path
from typing import Any

import httpx
from fireside.server import ROUTES

from ..documents import making
from ..live import BOOTSTRAP_TOKEN, PASSWORD, Person, Running, good
from ..upstream import DONE, Gate, Upstream, chunk, close, finish, pause, reasoning, usage
from ..upstream import text as says

MODEL = {"provider_id": "lmstudio", "model": "qwen2.5-vl-7b-instruct"}  # it sees images
MOMENT = "2026-01-01T00:00:00.000000"
QUESTION = {"id": 1, "parent_id": None, "role": "user", "content": "Q", "created_at": MOMENT}
ANSWER = {"id": 2, "parent_id": 1, "role": "assistant", "content": "A", "created_at": MOMENT}
IMPORT = {"fireside": 1, "title": "Imported", "created_at": MOMENT, "updated_at": MOMENT, "active_message_id": 2}
IMPORT |= {"messages": [QUESTION, ANSWER]}
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(50)).decode()


class Checker:
    """Validates all responses to the clients that it watches. A field that is not described is an error."""

    def __init__(self, document: dict[str, Any]) -> None:
        from jsonschema import Draft202012Validator  # in the environment for development, this import takes seconds

        self.validator = Draft202012Validator
        self.paths, self.components = document["paths"], document["components"]
        for schema in self.components["schemas"].values():
            self.validator.check_schema(schema)
            if "properties" in schema and "oneOf" not in schema:
                schema.setdefault("additionalProperties", False)
        self.validators: dict[int, Any] = {}  # by the id of the schema, which stays in the document
        self.succeeded: set[str] = set()
        self.events: set[str] = set()

    def watch(self, person: Person) -> Person:
        person.event_hooks = {"response": [self.check]}
        return person

    async def check(self, response: httpx.Response) -> None:
        await response.aread()
        method, path = response.request.method, response.request.url.path
        [route] = [one for one in ROUTES if one.method == method and one.path_regex.match(path)]
        described, status = self.paths[route.path][method.lower()]["responses"], str(response.status_code)
        content = described[status if status in described else f"{status[0]}XX"].get("content")
        if content is None:
            assert response.content == b"", (route.name, status)
        else:
            kind = response.headers["content-type"].partition(";")[0]
            schema = content[kind if kind in content else "*/*"].get("schema")
            if kind == "text/event-stream" and schema:
                self.check_events(response.text, schema)
            elif kind == "application/x-ndjson":
                for line in response.text.splitlines():
                    self.validate(json.loads(line), schema)
            elif schema is not None:
                self.validate(response.json(), schema)
        if response.is_success:
            self.succeeded.add(route.name)

    def check_events(self, body: str, schema: dict[str, Any]) -> None:
        for block in body.removesuffix("\n\n").split("\n\n"):
            event = dict(line.split(": ", 1) for line in block.split("\n"))
            self.validate(event, schema)
            kinds = [kind["properties"] for kind in self.components["schemas"]["Event"]["oneOf"]]
            [data] = [kind["data"] for kind in kinds if kind["event"]["const"] == event["event"]]
            self.validate(json.loads(event["data"]), data["contentSchema"])
            self.events.add(event["event"])

    def validate(self, value: Any, schema: dict[str, Any]) -> None:
        validator = self.validators.get(id(schema))
        if validator is None:
            validator = self.validators[id(schema)] = self.validator(schema | {"components": self.components})
        validator.validate(value)


async def test_responses_of_all_routes_are_as_described(running: Running, upstream: Upstream, tmp_path: Path) -> None:
    checker = Checker(good(await running.anybody().get("/openapi.json")))
    ann, bob, owner = (checker.watch(running.anybody()) for _ in range(3))
    owner.headers["Authorization"] = f"Bearer {running.state.secret}"

    async def sign_in(person: Person, path: str, **body: str) -> None:
        person.headers["X-CSRF-Token"] = good(await person.post(path, json=body))["csrf_token"]

    # Accounts
    await sign_in(ann, "/admin/bootstrap", username="ann", password=PASSWORD, token=BOOTSTRAP_TOKEN)
    invite = good(await ann.post("/admin/invites", json={}))
    await sign_in(bob, "/auth/register", username="bob", password=PASSWORD, invite_code=invite["invite_code"])
    invite = good(await owner.post("/control/invite"))
    await ann.post(f"/admin/invites/{invite['id']}/revoke")
    for path in ("/auth/me", "/admin/users", "/admin/invites", "/auth/sessions"):
        good(await ann.get(path))
    await ann.patch("/admin/users/2", json={"role": "admin"})
    assert (await bob.get("/auth/me")).status_code == 401
    await sign_in(bob, "/auth/login", username="bob", password=PASSWORD)
    session = good(await bob.get("/auth/sessions"))["sessions"][0]["id"]
    await bob.delete(f"/auth/sessions/{session}")
    good(await owner.post("/control/password", json={"username": "bob", "password": PASSWORD * 2}))
    token = good(await owner.post("/control/link", json={"username": "bob"}))["token"]
    await sign_in(bob, "/auth/link", token=token)
    await bob.post("/auth/password", json={"current_password": PASSWORD * 2, "new_password": PASSWORD})
    await bob.post("/auth/name", json={"username": "Robert", "current_password": PASSWORD})
    reset = good(await ann.post("/admin/users/2/reset-link"))["token"]
    await sign_in(bob, "/auth/reset", token=reset, password=PASSWORD)
    await bob.post("/auth/logout")
    await sign_in(bob, "/auth/login", username="robert", password=PASSWORD)
    await bob.post("/auth/delete", json={"current_password": PASSWORD})
    invite = good(await ann.post("/admin/invites", json={}))
    await sign_in(bob, "/auth/register", username="carl", password=PASSWORD, invite_code=invite["invite_code"])
    await ann.delete("/admin/users/3")

    # Tokens
    text = good(await ann.post("/tokens", json={"name": "Zed"}))["token"]
    program = checker.watch(running.anybody())
    program.headers["Authorization"] = f"Bearer {text}"
    for path in ("/v1/models", f"/v1/models/{MODEL['model']}", "/v1/models/nothing"):
        await program.get(path)
    await program.post("/v1/embeddings", json={"model": MODEL["model"], "input": "x"})
    spare = good(await owner.post("/control/tokens/create", json={"name": "Spare", "expires_in_days": 1}))["id"]
    good(await owner.post("/control/tokens/list", json={}))
    good(await owner.post("/control/tokens/revoke", json={"token_id": spare}))
    spare = good(await ann.post("/tokens", json={"name": "Spare"}))["id"]
    await ann.get("/tokens")
    await ann.delete(f"/tokens/{spare}")

    # Conversations and answers
    await ann.get("/defaults")
    await ann.patch("/defaults", json={"system_prompt": "Be brief.", "settings": {"temperature": 0.5}})
    prompt = good(await ann.post("/prompts", json={"name": "Greeting", "content": "Hello {{name}}"}))["id"]
    await ann.patch(f"/prompts/{prompt}", json={"content": "Good evening, {{name}}"})
    preset = good(await ann.post("/presets", json={"name": "Brief", "settings": {"temperature": 0.5}, **MODEL}))["id"]
    await ann.patch(f"/presets/{preset}", json={"system_prompt": "Be brief."})
    await ann.patch("/defaults", json={"preset_id": preset})
    for path in ("/prompts", "/presets", "/defaults"):
        await ann.get(path)
    image = {"media_type": "image/png", "data": PNG}
    message = {"content": "Look", "images": [image]}
    chat = f"/conversations/{await ann.conversation(title='Mine', message=message)}"
    [stored] = (await ann.messages(1))[0]["images"]
    await ann.get(f"/images/{stored['id']}")
    locked = making.pdf("Ships sail.", password="x")
    document = good(
        await ann.post("/attachments?name=a.pdf", content=locked, headers={"Content-Type": "application/pdf"})
    )
    file = f"/attachments/{document['id']}"
    for request in (ann.get(file), ann.post(f"{file}/password", json={"password": "x"})):
        found = good(await request)
        while found["status"] == "reading":
            await asyncio.sleep(0.05)
            found = good(await ann.get(file))
    for path in (f"{file}/content", f"{file}/pages?first=1", f"{file}/search?q=ships"):
        await ann.get(path)
    question = await ann.say(1, "Why?", attachment_ids=[document["id"]])
    upstream.enqueue(reasoning("hm"), says("Because."), finish(), usage(3, 2), DONE)
    await ann.post(f"{chat}/stream", json=MODEL)
    await ann.get(f"{chat}/messages?render=true")
    upstream.enqueue(says("Be"), close())
    generation = good(await ann.post("/chat/retry", json={"conversation_id": 1, **MODEL}))["generation_id"]
    stream = await ann.get(f"/generations/{generation}/stream")
    last = re.findall(r"^id: (\d+)$", stream.text, re.MULTILINE)[-1]
    assert (await ann.get(f"/generations/{generation}/stream", headers={"Last-Event-ID": last})).status_code == 204
    await ann.get(f"/generations/{generation}/stream?after={int(last) + 1}")
    upstream.enqueue(says("Because"), pause(Gate()))
    generation = good(await ann.post("/chat/retry", json={"conversation_id": 1, **MODEL}))["generation_id"]
    waiting = [good(await ann.post(f"{chat}/messages", json=message | {"queue": True}))["queued_id"] for _ in range(2)]
    for path in ("/conversations", "/conversations?limit=5", f"{chat}", f"{chat}/messages"):
        await ann.get(path)
    await ann.patch(f"{chat}/queue/{waiting[0]}", json={"content": "And this?"})
    await ann.delete(f"{chat}/queue/{waiting[0]}")
    good(await ann.post(f"/chat/cancel/{generation}"))
    continued = good(await ann.post("/chat/continue", json={"conversation_id": 1, **MODEL}))["generation_id"]
    await ann.post(f"/chat/cancel/{continued}")
    sent = good(await ann.post(f"{chat}/queue/{waiting[1]}/send", json=MODEL))["generation_id"]
    await ann.get(f"/generations/{sent}/stream")
    await ann.post(f"{chat}/active", json={"message_id": question})
    reply = (await ann.messages(1))[-1]["id"]
    await ann.get(f"{chat}/messages/{reply}?render=true")
    edited = good(await ann.post(f"{chat}/messages/{reply}/edit", json={"content": "Mine."}))["message_id"]
    await ann.post(f"{chat}/branch", json={"message_id": edited})
    deleted = good(await ann.delete(f"{chat}/messages/{edited}"))["deleted_id"]
    await ann.get("/conversations?deleted=true")
    await ann.post(f"/conversations/{deleted}/restore")
    await ann.patch(chat, json={"pinned": True, "settings": {"stop": ["x"]}})
    await ann.post("/render", json={"text": "*a*\n\n| b |"})
    for path in (
        "/search?q=because",
        "/search?q=mine",
        f"{chat}/messages",
        f"/messages/{question}/request",
        f"{chat}/context",
        "/context",
        f"{chat}/export",
        f"{chat}/export?format=json",
    ):
        await ann.get(path)

    # Your data
    for content, status in (([IMPORT], 200), ([IMPORT, {}], 200), ([{}], 400)):
        assert (await ann.post("/import?dry_run=true", json=content)).status_code == status
        assert (await ann.post("/import", json=content)).status_code == status
        assert (await ann.post("/import?progress=true", json=content)).status_code == 200
    imported = good(await ann.get("/conversations?q=imported"))[0]["id"]
    await ann.messages(imported)
    await ann.post(f"/conversations/{imported}/stream")
    await owner.post("/control/import", json={"paths": [str(tmp_path / "nothing.json")]})
    await owner.post("/control/export", json={})
    await owner.post("/control/session", json={})
    await owner.post("/control/backup", json={"file": str(tmp_path / "backup.db")})
    for path in ("/usage", "/export", "/storage"):
        await ann.get(path)
    folder = good(await ann.post("/folders", json={"name": "Work"}))["id"]
    await ann.patch(f"/folders/{folder}", json={"name": "Home"})
    await ann.post("/bulk", json={"ids": [1], "action": "move", "folder_id": folder})
    await ann.get("/folders")
    await ann.delete(f"/folders/{folder}")
    await ann.post(f"{chat}/presence", json={"tab": "one", "open": True})
    await ann.delete(f"/prompts/{prompt}")
    await ann.delete(f"/presets/{preset}")
    await ann.delete(chat)
    await ann.get("/conversations?deleted=true")
    await ann.post(f"{chat}/restore")
    await ann.delete(f"{chat}?purge=true")

    # Other programs
    asked = {"model": MODEL["model"], "messages": [{"role": "user", "content": "Hi"}]}
    for streamed in (True, False):
        call = {"index": 0, "id": "1", "function": {"name": "look", "arguments": "{}"}}
        upstream.enqueue(chunk({"tool_calls": [call]}), finish("tool_calls"), DONE)
        made = await program.post("/v1/chat/completions", json=asked | {"stream": streamed})
        await program.get(f"/generations/{made.headers['x-fireside-generation-id']}/stream")
    recorded = made.headers["x-fireside-conversation-id"]
    await ann.get(f"/conversations/{recorded}")
    await ann.get(f"/conversations/{recorded}/messages")
    await program.post("/v1/chat/completions", json={})

    # Model servers and the service
    for path in (
        "/providers",
        "/providers/lmstudio/models",
        "/providers/lmstudio/health",
        "/providers/lmstudio/downloads",
    ):
        await ann.get(path)
    for action in ("models/load", "models/unload", "models/download", "start"):
        await ann.post(f"/providers/lmstudio/{action}", json={"model": MODEL["model"]})
    with Upstream() as box:
        for path in ("-test", "s", "s"):
            await ann.post(f"/admin/provider{path}", json={"url": box.url, "name": "Box"})
        await ann.get("/admin/providers")
        await ann.patch("/admin/providers/box", json={"enabled": False})
        await ann.get("/admin/providers")
        await ann.delete("/admin/providers/box")
    for path in ("/openapi.json", "/health", "/version", "/", "/static/app.js"):
        response = await ann.get(path)
        await ann.get(path, headers={"If-None-Match": response.headers.get("etag", "")})

    cannot_start = {"POST /providers/{provider_id}/start"}  # there is no LM Studio
    assert {route.name for route in ROUTES} - checker.succeeded <= cannot_start
    assert checker.events == {"ping", "progress", "reasoning", "delta", "tools", "usage", "error", "reset", "done"}
