"""Who may do what: every route x actor x CSRF token x origin, each cell with an answer that follows from what ROUTES declares.

What is to be refused is asked first, and must leave the database as it is, bit by bit. Then comes what is to be done, each time
with a session and objects of its own. Another's object must be answered exactly as one that does not exist.
"""

import asyncio
import hashlib
import itertools
import random
import re
import tempfile
import uuid
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import httpx
from fireside import queries
from fireside.db import ago
from fireside.queries.generations import AnswerRequest
from fireside.server import ROUTES
from fireside.web.endpoint import ADMIN, OWNER, PUBLIC, Endpoint

from ..live import NO_TLS, PASSWORD, Running, good, until
from ..upstream import Gate, Upstream, pause
from ..upstream import text as says
from . import Figures, fireside

NOBODY = ("anonymous", "seen too long ago", "signed in too long ago", "revoked", "disabled")
SOMEBODY = ("user on own", "user on another's", "user on none", "admin on a user's")
ACTORS = (*NOBODY, *SOMEBODY, "owner of the machine")
TOKENS = ("right", "missing", "wrong", "another session's", "in a cookie only")
ORIGINS: dict[str, dict[str, str]] = {
    "none": {},
    "same origin": {"Origin": "{own}", "Sec-Fetch-Site": "same-origin"},
    "another port": {"Origin": "http://127.0.0.1:1", "Sec-Fetch-Site": "same-site"},
    "another site": {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
    "null": {"Origin": "null", "Sec-Fetch-Site": "cross-site"},
    "another port, by Origin alone": {"Origin": "http://127.0.0.1:1"},
    "another port, by Sec-Fetch-Site alone": {"Sec-Fetch-Site": "same-site"},
}
OURS = ("none", "same origin")
MODEL = "llama-3.2-3b-instruct"

# What a request to a route holds, and what comes when it is let through to an object of one's own, where that is not 200.
BODIES: dict[str, Any] = {
    "POST /auth/password": {"current_password": PASSWORD, "new_password": PASSWORD},
    "POST /conversations/{conversation_id}/messages": {"content": "Hello?"},
    "POST /conversations/{conversation_id}/active": {"message_id": "{message_id}"},
    "POST /conversations/{conversation_id}/stream": {"provider_id": "lmstudio", "model": MODEL},
    "POST /chat/retry": {"conversation_id": "{conversation_id}", "provider_id": "lmstudio", "model": MODEL},
    "POST /render": {"text": "*hello*"},
    "POST /providers/{provider_id}/models/load": {"model": MODEL},
    "POST /providers/{provider_id}/models/unload": {"model": MODEL},
    "POST /import": [],
    "POST /control/password": {"password": PASSWORD, "username": "carl"},
    "POST /control/backup": {"file": "{folder}/backup.db"},
    "POST /control/import": {"paths": []},
}
OUTCOMES: dict[str, set[tuple[int, str]]] = {
    "POST /auth/login": {(400, "VALIDATION_ERROR")},
    "POST /auth/register": {(400, "VALIDATION_ERROR")},
    "POST /auth/link": {(400, "VALIDATION_ERROR")},
    "POST /admin/bootstrap": {(400, "VALIDATION_ERROR")},
    "POST /providers/{provider_id}/start": {(200, ""), (400, "VALIDATION_ERROR"), (502, "PROVIDER_UNREACHABLE")},
}


class Cell(NamedTuple):
    route: Endpoint
    actor: str
    token: str
    origin: str

    def __str__(self) -> str:
        return f"{self.route.name}, {self.actor}, token {self.token}, origin {self.origin}"


@dataclass
class Key:
    """What an actor shows."""

    cookies: dict[str, str] = field(default_factory=dict)
    token: str = ""
    bearer: str = ""


def changes(route: Endpoint) -> bool:
    return not route.name.startswith("GET ")


def refusal(cell: Cell) -> tuple[int, str] | None:
    """What the guards must answer, from what the route declares; None when the request gets to its handler."""
    route = cell.route
    access, csrf = route.access, route.csrf
    if cell.origin not in OURS:
        return 403, "ORIGIN_NOT_ALLOWED"
    if access is PUBLIC:
        return None
    if access is OWNER:
        return None if cell.actor == "owner of the machine" else (401, "AUTH_REQUIRED")
    if cell.actor not in SOMEBODY:
        return 401, "AUTH_REQUIRED"
    good_tokens = {"required": TOKENS[:1], "lenient": (*TOKENS[:2], TOKENS[4]), "none": TOKENS}[csrf]
    if changes(route) and cell.token not in good_tokens:
        return 403, "CSRF_INVALID"
    if access is ADMIN and cell.actor != "admin on a user's":
        return 403, "FORBIDDEN"
    return None


def thing(route: Endpoint) -> str:
    """The kind of object that a route is about, '' when it is about none."""
    found = re.search(r"{(\w+)_id}", f"{route.path} {BODIES.get(route.name, '')}")
    return found[1] if found else ""


def expected(cell: Cell) -> set[tuple[int, str]]:
    if refused := refusal(cell):
        return {refused}
    kind, access = thing(cell.route), cell.route.access
    if kind and cell.actor == "user on none":
        return {(404, f"{kind.upper()}_NOT_FOUND")}
    private = kind in ("conversation", "session", "image", "generation")
    if access is not PUBLIC and private and cell.actor in ("user on another's", "admin on a user's"):
        return {(404, f"{kind.upper()}_NOT_FOUND")}
    return OUTCOMES.get(cell.route.name, {(200, "")})


def is_refusal(cell: Cell) -> bool:
    return all(status >= 400 for status, _ in expected(cell))


class World:
    """Ann administers, Bob asks, Carl is the one whose objects are asked for. Dora is disabled, Eve's sessions have ended."""

    def __init__(self, running: Running, upstream: Upstream, folder: str) -> None:
        self.running, self.upstream, self.folder = running, upstream, folder
        self.http = httpx.AsyncClient(base_url=running.url, trust_env=False, verify=NO_TLS, timeout=30)
        self.keys: dict[str, Key] = {}
        self.objects: dict[str, dict[str, Any]] = {}

    async def build(self) -> None:
        ann = await self.running.first()
        for name in ("bob", "carl", "dora", "eve"):
            await self.running.join(ann, name)
        self.users = {user["username"]: user["id"] for user in good(await ann.get("/admin/users"))["users"]}
        self.other_token = (await self.sign_in("bob")).token
        self.keys = {"anonymous": Key(), "owner of the machine": Key(bearer=self.running.state.secret)}
        for actor in ("user on own", "user on another's", "user on none"):
            self.keys[actor] = await self.sign_in("bob")
        self.keys["admin on a user's"] = await self.sign_in("ann")
        await self._end_sessions()
        self.objects = {"own": await self.make("bob"), "another's": await self.make("carl")}
        self.objects["none"] = dict.fromkeys(self.objects["own"], 2**62) | {
            "generation_id": str(uuid.uuid4()),
            "provider_id": "nowhere",
        }

    async def _end_sessions(self) -> None:
        columns = {"seen too long ago": "last_seen", "signed in too long ago": "created_at"}
        for actor, column in columns.items():
            self.keys[actor] = await self.sign_in("eve")
            sql = f"UPDATE sessions SET {column} = ? WHERE id = (SELECT max(id) FROM sessions)"
            await self._sql(sql, ago(days=4000))
        self.keys["revoked"] = await self.sign_in("eve")
        await self._sql("DELETE FROM sessions WHERE id = (SELECT max(id) FROM sessions)")
        self.keys["disabled"] = await self.sign_in("dora")  # her session stays: her status alone must do
        await self._sql("UPDATE users SET status = 'disabled' WHERE username = 'dora'")

    async def _sql(self, sql: str, *values: Any) -> None:
        await self.running.state.database.write(lambda conn: conn.execute(sql, values).rowcount)

    async def sign_in(self, name: str) -> Key:
        link = await self.running.state.auth.login_link(name)
        answer = await self.http.post("/auth/link", json={"token": link})
        self.http.cookies.clear()
        return Key(dict(answer.cookies), good(answer)["csrf_token"])

    async def make(self, name: str, route: str = "") -> dict[str, Any]:
        """One of each kind of object, of this person's. A running answer too, where the route would end or read one."""
        database = self.running.state.database
        made = {"user_id": self.users["carl"], "provider_id": "lmstudio", "folder": self.folder, "name": "app.js"}
        conversation_id = made["conversation_id"] = (
            await database.write(queries.conversations.add_conversation, self.users[name], {})
        ).id
        made["message_id"] = await database.write(
            queries.messages.add_message, self.users[name], conversation_id, "Why?"
        )
        picture = queries.messages.Image("image/png", b"\x89PNG\r\n\x1a\n0000")
        album = await database.write(queries.conversations.add_conversation, self.users[name], {})
        await database.write(queries.messages.add_message, self.users[name], album.id, "This?", None, None, [picture])
        made["image_id"] = await database.read(lambda conn: conn.execute("SELECT max(id) FROM images").fetchone()[0])
        if not route or "/generations/" in route or "/cancel/" in route:
            running = "/generations/" not in route
            made["generation_id"] = await self._begin(self.users[name], conversation_id, running)
        if not route or "/sessions/" in route:
            await self.sign_in(name)
            made["session_id"] = await database.read(
                lambda conn: conn.execute("SELECT max(id) FROM sessions").fetchone()[0]
            )
        if not route or "/invites/" in route:
            maker = await database.read(queries.accounts.get_user, self.users["ann"])
            made["invite_id"] = (await self.running.state.auth.invite(maker, "user", 24))["id"]
        if route.endswith("/restore"):
            await database.write(queries.conversations.delete_conversation, self.users[name], conversation_id)
        return made

    async def _begin(self, user_id: int, conversation_id: int, running: bool) -> str:
        """An answer that is being written and goes on, or one that has ended."""
        gate, hub = Gate(), self.running.state.hub
        if running:
            self.upstream.enqueue(says("one "), pause(gate))
        begun = await hub.answer(user_id, conversation_id, AnswerRequest("lmstudio", MODEL, retry=True))
        if running:
            await gate.reached()
        else:
            await until(lambda: begun.generation_id not in hub.generations)
        return begun.generation_id

    def request(self, cell: Cell, key: Key, objects: dict[str, Any]) -> httpx.Request:
        path = re.sub(r"{(\w+)}", lambda name: str(objects[name[1]]), cell.route.path)
        headers = {name: value.format(own=self.running.url) for name, value in ORIGINS[cell.origin].items()}
        cookies = dict(key.cookies)
        if cell.token == "in a cookie only":
            cookies["csrf_token"] = key.token
        elif cell.token != "missing":
            headers["X-CSRF-Token"] = {"right": key.token, "wrong": "0" * 64}.get(cell.token, self.other_token)
        if key.bearer:
            headers["Authorization"] = f"Bearer {key.bearer}"
        if cookies:
            headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in cookies.items())
        method = cell.route.name.split()[0]
        body = BODIES.get(cell.route.name, {})
        if isinstance(body, dict):
            body = {name: _filled(value, objects) for name, value in body.items()}
        return self.http.build_request(method, path, headers=headers, json=body if changes(cell.route) else None)

    async def fingerprint(self) -> str:
        """Of all that the database holds, but for when sessions were last seen and what is being written."""

        def dump(conn: Any) -> str:
            digest = hashlib.sha256()
            for table in ("users", "invites", "login_links", "conversations", "messages", "images", "generations"):
                for row in conn.execute(f"SELECT * FROM {table} ORDER BY 1"):
                    digest.update(repr(tuple(row)).encode())
            for row in conn.execute("SELECT id, user_id, token_hash FROM sessions ORDER BY id"):
                digest.update(repr(tuple(row)).encode())
            return digest.hexdigest()

        return await self.running.state.database.read(dump)


def _filled(value: Any, objects: dict[str, Any]) -> Any:
    if not isinstance(value, str) or "{" not in value:
        return value
    return objects[value[1:-1]] if value[1:-1] in objects else value.format(**objects)


def cells(size: int) -> list[Cell]:
    """All of them, or as many as asked for: whole rows of actors, and no route left out."""
    rows = list(itertools.product(ROUTES, TOKENS, ORIGINS))
    wanted = max(len(ROUTES), size // len(ACTORS))
    if wanted < len(rows):
        chance = random.Random(7)
        ours = [[row for row in rows if row[0] is route and row[1] == "right" and row[2] in OURS] for route in ROUTES]
        certain = [chance.choice(row) for row in ours]
        certain += [row for row in rows if row[0].csrf == "lenient" and row[2] == "none" and row not in certain]
        others = [row for row in rows if row not in certain]
        rows = certain + chance.sample(others, wanted - len(certain))
    return [Cell(route, actor, token, origin) for route, token, origin in rows for actor in ACTORS]


async def _prove(size: int) -> Figures:
    figures = Figures()
    with tempfile.TemporaryDirectory() as folder:
        async with fireside() as (running, upstream):
            world = World(running, upstream, folder)
            async with world.http:
                await world.build()
                asked = cells(size)
                done = [cell for cell in asked if not is_refusal(cell)]
                await _refused(world, [cell for cell in asked if is_refusal(cell)], figures)
                for cell in done:
                    await _done(world, cell, figures)
    figures.more = f"{len(ROUTES)} routes, {len(asked) - len(done):,} refusals that left every row as it was"
    return figures


async def _refused(world: World, asked: list[Cell], figures: Figures) -> None:
    of = {"user on own": "own", "user on none": "none"}
    answers: dict[tuple[str, str, str], dict[str, bytes]] = {}
    before = await world.fingerprint()
    for route, row in itertools.groupby(asked, lambda cell: cell.route):
        for cell in row:
            objects = world.objects[of.get(cell.actor, "another's")]
            answer = await world.http.send(world.request(cell, world.keys[cell.actor], objects))
            _compare(cell, answer, figures)
            told = answers.setdefault((route.name, cell.token, cell.origin), {})
            told[cell.actor] = _without_id(answer)
        after = await world.fingerprint()
        figures.expect(after == before, f"{route.name}: what was refused has changed the database")
        before = after
    for where, told in answers.items():
        if "user on none" in told and "user on another's" in told:
            same = told["user on none"] == told["user on another's"]
            figures.expect(same, f"{where}: another's object is answered differently from none")
    running = world.running.state.hub.generations
    for whose in ("own", "another's"):
        figures.expect(world.objects[whose]["generation_id"] in running, f"{whose} answer was stopped")


async def _done(world: World, cell: Cell, figures: Figures) -> None:
    name = {"admin on a user's": "ann", "owner of the machine": ""}.get(cell.actor, "bob")
    key = world.keys[cell.actor]
    if cell.actor in SOMEBODY:
        key = await world.sign_in(name)
    objects = await world.make("carl" if cell.actor != "user on own" else "bob", cell.route.name)
    answer = await world.http.send(world.request(cell, key, world.objects["another's"] | objects))
    _compare(cell, answer, figures)


def _compare(cell: Cell, answer: httpx.Response, figures: Figures) -> None:
    problem = answer.headers["content-type"] == "application/json" and answer.status_code >= 400
    came = (answer.status_code, answer.json()["code"] if problem else "")
    figures.expect(came in expected(cell), f"{cell}: expected {expected(cell)}, came {came}")


def _without_id(answer: httpx.Response) -> bytes:
    headers = sorted((name, value) for name, value in answer.headers.items() if name not in ("x-request-id", "date"))
    return repr((answer.status_code, headers)).encode() + re.sub(rb'"request_id": "\w+"', b"", answer.content)


def prove(size: int) -> Figures:
    return asyncio.run(_prove(size))
