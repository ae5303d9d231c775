"""Access control: every route x role x CSRF token x origin. What ROUTES declares determines the expected answer of each cell.

Cells that must be refused run first and must not change the database. The others follow, each with its own session and objects.
An object of another user must be answered exactly like one that does not exist.
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
from unittest.mock import patch

import httpx
from fireside import queries, server
from fireside.db import ago
from fireside.queries.generations import AnswerRequest
from fireside.safety.throttle import Throttle
from fireside.server import ROUTES
from fireside.web.endpoint import ADMIN, CLI, PUBLIC, TOKEN, USER_OR_TOKEN, Endpoint

from ..live import NO_TLS, PASSWORD, Running, good, until
from ..upstream import Gate, Upstream, pause
from ..upstream import text as says
from . import Figures, fireside

SIGNED_OUT = ("anonymous", "idle session", "old session", "revoked session", "disabled user")
OWN, OTHERS, MISSING, BY_ADMIN = "user, own object", "user, another's", "user, missing object", "admin, another's"
SIGNED_IN = (OWN, OTHERS, MISSING, BY_ADMIN)
MACHINE = "owner of the machine"
BY_TOKEN, FOREIGN_TOKEN, TOKEN_MISSING = "token, own object", "token, another's", "token, missing object"
SIBLING_TOKEN = "token, object of another token"
WITH_TOKEN = (BY_TOKEN, FOREIGN_TOKEN, TOKEN_MISSING, SIBLING_TOKEN)
BAD_TOKENS = ("revoked token", "expired token", "token of a disabled user", "mistyped token", "token with a session")
ROLES = (*SIGNED_OUT, *SIGNED_IN, MACHINE, *WITH_TOKEN, *BAD_TOKENS)
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
ALLOWED_ORIGINS = ("none", "same origin")
MODEL = "llama-3.2-3b-instruct"
ENOUGH_WRONG = 3  # then the proof ends, so that the mutants do not wait for the rest
# Kinds of objects that belong to one user.
PRIVATE = (
    "conversation", "folder", "session", "image", "attachment", "message", "generation", "prompt", "preset", "token",
)  # fmt: skip

# The body of a request to a route, and the expected answers to an authorized request if it is not 200.
BODIES: dict[str, Any] = {
    "POST /auth/password": {"current_password": PASSWORD, "new_password": PASSWORD},
    "POST /bulk": {"ids": ["{conversation_id}"], "action": "move"},
    "POST /conversations/{conversation_id}/presence": {"tab": "one", "open": True},
    "POST /folders": {"name": "A folder"},
    "PATCH /folders/{folder_id}": {"name": "Another name"},
    "POST /conversations/{conversation_id}/messages": {"content": "Hello?"},
    "POST /conversations/{conversation_id}/messages/{message_id}/edit": {"content": "Mine."},
    "POST /conversations/{conversation_id}/branch": {"message_id": "{message_id}"},
    "POST /conversations/{conversation_id}/active": {"message_id": "{message_id}"},
    "POST /conversations/{conversation_id}/stream": {"provider_id": "lmstudio", "model": MODEL},
    "POST /chat/retry": {"conversation_id": "{conversation_id}", "provider_id": "lmstudio", "model": MODEL},
    "PATCH /conversations/{conversation_id}/queue/{queued_id}": {"content": "Changed"},
    "POST /conversations/{conversation_id}/queue/{queued_id}/send": {"provider_id": "lmstudio", "model": MODEL},
    "POST /chat/continue": {"conversation_id": "{conversation_id}", "provider_id": "lmstudio", "model": MODEL},
    "POST /render": {"text": "*hello*"},
    "POST /attachments": [],
    "POST /attachments/{attachment_id}/password": {"password": "x"},
    "POST /prompts": {"name": "Greeting", "content": "Hello"},
    "POST /presets": {"name": "Brief"},
    "POST /providers/{provider_id}/models/load": {"model": MODEL},
    "POST /providers/{provider_id}/models/unload": {"model": MODEL},
    "POST /providers/{provider_id}/models/download": {"model": MODEL},
    "POST /admin/providers": {"url": "http://127.0.0.1:9"},
    "POST /admin/provider-test": {"url": "http://127.0.0.1:9"},
    "PATCH /admin/providers/{provider_id}": {"name": "Mine"},
    "POST /import": [],
    "POST /tokens": {"name": "Zed"},
    "POST /v1/chat/completions": {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]},
    "POST /v1/embeddings": {"model": MODEL, "input": "x"},
    "POST /control/tokens/create": {"name": "Zed", "username": "carl"},
    "POST /control/tokens/list": {"username": "carl"},
    "POST /control/tokens/revoke": {"token_id": "{token_id}", "username": "carl"},
    "POST /control/password": {"password": PASSWORD, "username": "eve"},
    "POST /control/backup": {"file": "{folder}/backup.db"},
    "POST /control/import": {"paths": []},
}
FIXED = {(409, "PROVIDER_FIXED")}  # the environment of the trial names LM Studio's address
INVALID = {(400, "VALIDATION_ERROR")}
OUTCOMES: dict[str, set[tuple[int, str]]] = {
    "POST /auth/login": INVALID,
    "POST /attachments/{attachment_id}/password": INVALID,  # of an image
    "PATCH /folders/{folder_id}": {(200, ""), (409, "NAME_EXISTS")},  # the name of an earlier cell
    "POST /auth/register": INVALID,
    "POST /auth/link": INVALID,
    "POST /auth/reset": INVALID,
    "POST /auth/name": INVALID,
    "POST /auth/delete": INVALID,
    "POST /admin/bootstrap": INVALID,
    "POST /conversations/{conversation_id}/messages/{message_id}/edit": INVALID,  # the message is a question
    "POST /chat/continue": INVALID | {(409, "GENERATION_ACTIVE")},  # the conversation ends with a question
    "POST /admin/providers": {(502, "PROVIDER_UNREACHABLE")},
    "PATCH /admin/providers/{provider_id}": FIXED,
    "DELETE /admin/providers/{provider_id}": FIXED,
    "POST /providers/{provider_id}/start": {(200, ""), *INVALID, (502, "PROVIDER_UNREACHABLE")},
}


class Cell(NamedTuple):
    route: Endpoint
    role: str
    token: str
    origin: str

    def __str__(self) -> str:
        return f"{self.route.name}, {self.role}, token {self.token}, origin {self.origin}"

    @property
    def owner(self) -> str:
        """Whose object the request names."""
        owners = {OWN: "own", BY_TOKEN: "own", MISSING: "missing", TOKEN_MISSING: "missing", SIBLING_TOKEN: "sibling"}
        return owners.get(self.role, "another's")


@dataclass
class Credentials:
    cookies: dict[str, str] = field(default_factory=dict)
    token: str = ""
    bearer: str = ""


def refusal(cell: Cell) -> tuple[int, str] | None:
    """Return the refusal that follows from the route's declaration, or None when the request reaches its handler."""
    access, csrf = cell.route.access, cell.route.csrf
    if cell.origin not in ALLOWED_ORIGINS:
        return 403, "ORIGIN_NOT_ALLOWED"
    if access is PUBLIC:
        return None
    if access is CLI:
        return None if cell.role == MACHINE else (401, "AUTH_REQUIRED")
    if access is TOKEN or (access is USER_OR_TOKEN and cell.role in (*WITH_TOKEN, *BAD_TOKENS, MACHINE)):
        return None if cell.role in WITH_TOKEN else (401, "INVALID_TOKEN")
    if cell.role not in SIGNED_IN:
        return 401, "AUTH_REQUIRED"
    allowed_tokens = {"required": TOKENS[:1], "lenient": (*TOKENS[:2], TOKENS[4]), "none": TOKENS}[csrf]
    if cell.route.method != "GET" and cell.token not in allowed_tokens:
        return 403, "CSRF_INVALID"
    if access is ADMIN and cell.role != BY_ADMIN:
        return 403, "FORBIDDEN"
    return None


def object_kind(route: Endpoint) -> str:
    """Return the kind of object that a request to the route names, or an empty string."""
    found = re.search(r"{(\w+)_id}", f"{route.path} {BODIES.get(route.name, '')}")
    return found[1] if found else ""


def expected(cell: Cell) -> set[tuple[int, str]]:
    if refused := refusal(cell):
        return {refused}
    kind, access = object_kind(cell.route), cell.route.access
    hidden = access is not PUBLIC and kind in PRIVATE and cell.role in (OTHERS, BY_ADMIN, FOREIGN_TOKEN, SIBLING_TOKEN)
    if kind and (cell.role in (MISSING, TOKEN_MISSING) or hidden):
        return {(404, f"{kind.upper()}_NOT_FOUND")}
    return OUTCOMES.get(cell.route.name, {(200, "")})


def is_refused(cell: Cell) -> bool:
    return all(status >= 400 for status, _ in expected(cell))


class World:
    """Ann is an administrator, Bob sends the requests, Carl owns the other objects, Dora is disabled, and Eve's sessions have ended."""

    def __init__(self, running: Running, upstream: Upstream, folder: str) -> None:
        self.running, self.upstream, self.folder = running, upstream, folder
        self.database = running.state.database
        self.http = httpx.AsyncClient(base_url=running.url, trust_env=False, verify=NO_TLS, timeout=30)
        self.credentials: dict[str, Credentials] = {}
        self.objects: dict[str, dict[str, Any]] = {}
        self.open: set[str] = set()  # ids of the generations that keep running

    async def build(self) -> None:
        ann = await self.running.first()
        for name in ("bob", "carl", "dora", "eve"):
            await self.running.join(ann, name)
        self.users = {user["username"]: user["id"] for user in good(await ann.get("/admin/users"))["users"]}
        self.other_token = (await self.sign_in("bob")).token
        self.credentials = {role: await self.sign_in("bob") for role in (OWN, OTHERS, MISSING)}
        self.credentials |= {"anonymous": Credentials(), MACHINE: Credentials(bearer=self.running.state.secret)}
        self.credentials[BY_ADMIN] = await self.sign_in("ann")
        newest = "WHERE id = (SELECT max(id) FROM sessions)"
        for role, name, sql in (
            ("idle session", "eve", f"UPDATE sessions SET last_seen = '{ago(days=4000)}' {newest}"),
            ("old session", "eve", f"UPDATE sessions SET created_at = '{ago(days=4000)}' {newest}"),
            ("revoked session", "eve", f"DELETE FROM sessions {newest}"),
            (
                "disabled user",
                "dora",
                "UPDATE users SET status = 'disabled' WHERE username = 'dora'",
            ),  # keeps the session
        ):
            self.credentials[role] = await self.sign_in(name)
            await self._write(sql)
        await self._make_tokens()
        self.objects = {"own": await self.make("bob"), "another's": await self.make("carl")}
        self.objects["sibling"] = await self.make("bob", token_id=self.tokens["sibling"])
        missing = {"generation_id": str(uuid.uuid4()), "provider_id": "nowhere", "model_id": "lmstudio/nothing"}
        self.objects["missing"] = dict.fromkeys(self.objects["own"], 2**62) | missing

    async def _make_tokens(self) -> None:
        """Give Bob and Carl a token, Bob another one, and each role of BAD_TOKENS one that is refused."""
        self.tokens: dict[str, int] = {}

        async def create(key: str, name: str) -> str:
            user = await self.database.read(queries.accounts.get_user, self.users[name])
            token, text = await self.running.state.auth.create_token(user, key, True, None)
            self.tokens[key] = token.id
            return text

        good_token = Credentials(bearer=await create("bob", "bob"))
        self.credentials |= dict.fromkeys(WITH_TOKEN, good_token)
        for key, name in (("carl", "carl"), ("sibling", "bob")):
            await create(key, name)
        bad = {
            role: Credentials(bearer=await create(role, "dora" if "disabled" in role else "bob")) for role in BAD_TOKENS
        }
        last = bad["mistyped token"].bearer[-1]
        bad["mistyped token"].bearer = f"{bad['mistyped token'].bearer[:-1]}{'1' if last == '0' else '0'}"
        bad["token with a session"].cookies = self.credentials["revoked session"].cookies
        await self._write(f"DELETE FROM tokens WHERE id = {self.tokens['revoked token']}")
        await self._write(f"UPDATE tokens SET expires_at = '{ago(days=1)}' WHERE id = {self.tokens['expired token']}")
        self.credentials |= bad

    async def _write(self, sql: str) -> None:
        await self.database.write(lambda conn: conn.execute(sql).rowcount)

    async def _newest(self, table: str) -> int:
        return await self.database.read(lambda conn: conn.execute(f"SELECT max(id) FROM {table}").fetchone()[0])

    async def sign_in(self, name: str) -> Credentials:
        link = await self.running.state.auth.login_link(name)
        answer = await self.http.post("/auth/link", json={"token": link})
        self.http.cookies.clear()
        return Credentials(dict(answer.cookies), good(answer)["csrf_token"])

    async def make(self, name: str, route: str = "", token_id: int = 0) -> dict[str, Any]:
        """Make objects of this user, one of each kind or those that the route needs. Return their ids by path parameter.

        The conversation is that of a token, by default of the user's first."""
        write, user_id = self.database.write, self.users[name]
        made = {"user_id": self.users["carl"], "provider_id": "lmstudio", "folder": self.folder, "name": "app.js"}
        conversation, album = [await write(queries.conversations.add_conversation, user_id, {}) for _ in range(2)]
        made["conversation_id"] = conversation.id
        made["model_id"] = f"lmstudio/{MODEL}"
        token_id = token_id or self.tokens[name]
        await self._write(f"UPDATE conversations SET token_id = {token_id} WHERE id = {conversation.id}")
        if not route or "/tokens/" in route:
            owner = await self.database.read(queries.accounts.get_user, user_id)
            made["token_id"] = (await self.running.state.auth.create_token(owner, "Spare", True, None))[0].id
        if not route or "/folders/" in route:
            made["folder_id"] = await write(queries.folders.add_folder, user_id, f"folder {conversation.id}")
        made["message_id"] = await write(queries.messages.add_message, user_id, conversation.id, "Why?")
        image = queries.types.Image("image/png", b"\x89PNG\r\n\x1a\n%04d" % album.id)
        await write(queries.messages.add_message, user_id, album.id, "This?", None, None, [image])
        made["image_id"] = made["attachment_id"] = await self._newest("attachments")
        if not route or "/generations/" in route or "/cancel/" in route:
            made["generation_id"] = await self._begin(user_id, conversation.id, "/generations/" not in route)
        if not route or "/queue/" in route:
            queued_id, _ = await write(queries.queued.add_queued, user_id, conversation.id, "And then?")
            made["queued_id"] = queued_id
        saved = {"name": str(uuid.uuid4())}
        if not route or "/prompts/" in route:
            made["prompt_id"] = (
                await write(queries.prompts.add_saved, user_id, queries.prompts.Prompt, saved | {"content": "Hello"})
            ).id
        if not route or "/presets/" in route:
            made["preset_id"] = (await write(queries.prompts.add_saved, user_id, queries.prompts.Preset, saved)).id
        if not route or "/sessions/" in route:
            await self.sign_in(name)
            made["session_id"] = await self._newest("sessions")
        if not route or "/invites/" in route:
            ann = await self.database.read(queries.accounts.get_user, self.users["ann"])
            made["invite_id"] = (await self.running.state.auth.invite(ann, "user", 24))["id"]
        if route.startswith("DELETE /admin/users/"):  # the others need Carl
            code = uuid.uuid4().bytes
            await write(queries.accounts.add_invite, code, "user", self.users["ann"], "9999")
            guest = await write(queries.accounts.redeem_invite, code, f"guest-{code.hex()}", "")
            made["user_id"] = guest.id
        if route.endswith("/restore"):
            await write(queries.conversations.delete_conversation, user_id, conversation.id)
        return made

    async def _begin(self, user_id: int, conversation_id: int, running: bool) -> str:
        """Return the id of a generation that keeps running, or of one that has ended."""
        gate, hub = Gate(), self.running.state.hub
        if running:
            await until(lambda: hub.generations.keys() <= self.open)  # else another answer could take this script
            self.upstream.enqueue(says("one "), pause(gate))
        begun = await hub.answer(user_id, conversation_id, AnswerRequest("lmstudio", MODEL, retry=True))
        if running:
            await gate.reached()
            self.open.add(begun.generation_id)
        else:
            await until(lambda: begun.generation_id not in hub.generations)
        return begun.generation_id

    async def send(self, cell: Cell, credentials: Credentials, objects: dict[str, Any]) -> httpx.Response:
        path = re.sub(r"{(\w+)}", lambda name: str(objects[name[1]]), cell.route.path)
        headers = {name: value.format(own=self.running.url) for name, value in ORIGINS[cell.origin].items()}
        self.running.state.auth.throttle = Throttle()  # which would refuse the sixth wrong token
        cookies = dict(credentials.cookies)
        if cell.token == "in a cookie only":
            cookies["csrf_token"] = credentials.token
        elif cell.token != "missing":
            headers["X-CSRF-Token"] = {"right": credentials.token, "wrong": "0" * 64}.get(cell.token, self.other_token)
        if credentials.bearer:
            headers["Authorization"] = f"Bearer {credentials.bearer}"
        if cookies:
            headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in cookies.items())
        body = BODIES.get(cell.route.name, {})
        if isinstance(body, dict):
            body = {name: _filled(value, objects) for name, value in body.items()}
        content = {} if cell.route.method == "GET" else {"json": body}
        async with asyncio.timeout(30):  # also of a stream that should have been refused
            answer = await self.http.request(cell.route.method, path, headers=headers, **content)
        self.http.cookies.clear()  # else the next request has the cookie of a new session too
        return answer

    async def fingerprint(self) -> str:
        """Return a hash of all rows, without when sessions and tokens were used and without unfinished answers."""
        tables = (
            "users invites login_links conversations folders messages message_attachments prompts presets generations"
        )
        queries = [f"SELECT * FROM {table} ORDER BY 1" for table in tables.split()]
        queries += ["SELECT id, user_id, sha256 FROM attachments ORDER BY id"]  # they may be being read
        queries += [f"SELECT id, user_id, token_hash FROM {table} ORDER BY id" for table in ("sessions", "tokens")]

        def dump(conn: Any) -> str:
            rows = (repr(tuple(row)).encode() for query in queries for row in conn.execute(query))
            return hashlib.sha256(b"".join(rows)).hexdigest()

        return await self.database.read(dump)


def _filled(value: Any, objects: dict[str, Any]) -> Any:
    if isinstance(value, list):
        return [_filled(one, objects) for one in value]
    if not isinstance(value, str) or "{" not in value:
        return value
    return objects[value[1:-1]] if value[1:-1] in objects else value.format(**objects)


def cells(size: int) -> list[Cell]:
    """Return all cells, or about `size`, with every route and all roles of each chosen combination."""
    rows = list(itertools.product(ROUTES, TOKENS, ORIGINS))
    count = max(len(ROUTES), size // len(ROLES))
    if count < len(rows):
        chance = random.Random(7)
        chosen = [(route, "right", chance.choice(ALLOWED_ORIGINS)) for route in ROUTES]
        chosen += [row for row in rows if row[0].csrf == "lenient" and row[2] == "none" and row not in chosen]
        rows = chosen + chance.sample([row for row in rows if row not in chosen], max(0, count - len(chosen)))
    return [Cell(route, role, token, origin) for route, token, origin in rows for role in ROLES]


async def _prove(size: int) -> Figures:
    figures, every = Figures(), cells(size)
    refused = [cell for cell in every if is_refused(cell)]
    with tempfile.TemporaryDirectory() as folder, patch.object(server, "HOUSEKEEPING_DELAY_SECONDS", 3600):
        # Housekeeping deletes the sessions that have ended, which would look like a change by a refused request.
        patient = {
            "first_token_seconds": "7200",
            "between_tokens_seconds": "7200",
            "total_seconds": "7200",
        }  # of the open answers
        async with fireside(**patient) as (running, upstream):
            world = World(running, upstream, folder)
            async with world.http:
                await world.build()
                await _check_refused(world, refused, figures)
                for cell in every:
                    if not is_refused(cell) and len(figures.wrong) < ENOUGH_WRONG:
                        await _check_allowed(world, cell, figures)
    figures.more = f"{len(ROUTES)} routes, {len(refused):,} refusals that changed no row"
    return figures


async def _check_refused(world: World, refused: list[Cell], figures: Figures) -> None:
    answers: dict[tuple[str, str, str], dict[str, bytes]] = {}
    before = await world.fingerprint()
    for route, row in itertools.groupby(refused, lambda cell: cell.route):
        for cell in row:
            if len(figures.wrong) >= ENOUGH_WRONG:
                return
            answer = await world.send(cell, world.credentials[cell.role], world.objects[cell.owner])
            _compare(cell, answer, figures)
            answers.setdefault((route.name, cell.token, cell.origin), {})[cell.role] = _without_request_id(answer)
        after = await world.fingerprint()
        figures.expect(after == before, f"{route.name}: a refused request changed the database")
        before = after
    for where, by_role in answers.items():
        for missing, others in ((MISSING, OTHERS), (TOKEN_MISSING, FOREIGN_TOKEN), (TOKEN_MISSING, SIBLING_TOKEN)):
            if missing in by_role and others in by_role:
                same = by_role[missing] == by_role[others]
                figures.expect(same, f"{where}: the answer tells another's object from a missing one")
    for owner in ("own", "another's", "sibling"):
        running = world.objects[owner]["generation_id"] in world.running.state.hub.generations
        figures.expect(running, f"{owner} generation was stopped")


async def _check_allowed(world: World, cell: Cell, figures: Figures) -> None:
    credentials = world.credentials[cell.role]
    if cell.role in SIGNED_IN:
        credentials = await world.sign_in("ann" if cell.role == BY_ADMIN else "bob")
    objects = await world.make("bob" if cell.role in (OWN, BY_TOKEN) else "carl", cell.route.name)
    _compare(cell, await world.send(cell, credentials, world.objects["another's"] | objects), figures)


def _compare(cell: Cell, answer: httpx.Response, figures: Figures) -> None:
    is_error = answer.headers["content-type"] == "application/json" and answer.status_code >= 400
    error = answer.json() if is_error else {}
    actual = (answer.status_code, _code(error))
    figures.expect(actual in expected(cell), f"{cell}: expected {expected(cell)}, got {actual}")


def _code(error: dict[str, Any]) -> str:
    """Return Fireside's code of an error; /v1 has OpenAI's."""
    code = error.get("code") or error.get("error", {}).get("code", "").upper()
    return "INVALID_TOKEN" if code == "INVALID_API_KEY" else code


def _without_request_id(answer: httpx.Response) -> bytes:
    headers = sorted((name, value) for name, value in answer.headers.items() if name not in ("x-request-id", "date"))
    return repr((answer.status_code, headers)).encode() + re.sub(rb'"request_id": "\w+"', b"", answer.content)


def prove(size: int) -> Figures:
    return asyncio.run(_prove(size))
