"""Attacks of one user on the availability of the service, for every route and every kind of input. starvation.py runs them.

An attack is a coroutine function. Called with an Attacker, it prepares its data, which is not timed, and returns a coroutine that
attacks until it is cancelled or has nothing left to send.
"""

import asyncio
import base64
import contextlib
import functools
import itertools
import json
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any

from fireside.queries.types import QUESTION_CHARACTERS
from fireside.server import ROUTES
from fireside.web import formulas, markdown

from .. import lexing
from ..upstream import DONE, Step, Upstream, chunk, error, event, finish, headers, reasoning, split, status, wire
from ..upstream import text as says
from ..witness import MODEL

RETRY_SECONDS = 0.02  # after a refused connection
REOPEN_SECONDS = 1.0  # after the service closed a connection that the attack holds
PREPARING_SECONDS = 120.0  # for one request
HEADER_SIZES = (15_000, 60_000)  # just below and far above the limit of 16 KiB

Attacking = Coroutine[Any, Any, None]


@dataclass
class Attacker:
    """An ordinary user of the service, who also controls the model server."""

    port: int
    credentials: dict[str, str]  # the headers of a session
    upstream: Upstream
    scale: float  # of the prepared data: 1 in a release, less in CI
    conversation_id: int = 0
    opened: int = 0  # connections opened by `hold`
    least_seconds: float = 0.0  # that the current attack needs until its effect shows
    statuses: Counter[str] = field(default_factory=Counter)  # of the answers to the attack
    ids: dict[str, str] = field(
        default_factory=dict
    )  # path parameters of the attacker's own objects, and prepared data

    # ---- requests

    def request(self, method: str, path: str, body: Any = b"", **fields: str) -> bytes:
        """Return a request of the signed-in attacker, after which the connection closes. Encode a `body` that is not bytes as JSON."""
        return self.anonymous(method, path, body, **self.credentials | fields)

    def anonymous(self, method: str, path: str, body: Any = b"", **fields: str) -> bytes:
        content: bytes = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"Host": f"127.0.0.1:{self.port}", "Connection": "close"}
        if content:
            sent |= {"Content-Type": "application/json"}
        if content or method != "GET":
            sent |= {"Content-Length": str(len(content))}
        sent |= {name.replace("_", "-"): value for name, value in fields.items()}
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in sent.items()), "", ""]
        return "\r\n".join(lines).encode("latin-1") + content

    def stream(self, conversation_id: object, model: dict[str, str] = MODEL) -> bytes:
        return self.request("POST", f"/conversations/{conversation_id}/stream", model)

    def retry(self, conversation_id: object, model: dict[str, str] = MODEL) -> bytes:
        return self.request("POST", "/chat/retry", model | {"conversation_id": int(str(conversation_id))})

    async def fetch(self, method: str, path: str, body: Any = b"") -> Any:
        """Return the JSON of a successful answer, while an attack is prepared."""
        async with asyncio.timeout(PREPARING_SECONDS):
            answer = await self.exchange(self.request(method, path, body))
        head, _, content = answer.partition(b"\r\n\r\n")
        assert head.split(b" ", 2)[1] == b"200", answer[:500]
        return json.loads(_unchunked(content) if b"transfer-encoding: chunked" in head.lower() else content)

    async def exchange(self, request: bytes) -> bytes:
        """Return everything that is received until the connection closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request)
            await writer.drain()
            answer = await reader.read()
            self.statuses[answer[9:12].decode("latin-1")] += 1
            return answer
        finally:
            writer.transport.abort()

    # ---- ways to attack

    def scaled(self, number: int, least: int = 1) -> int:
        return max(least, round(number * self.scale))

    def crowd(self, connections: int) -> int:
        """Scale a number of connections from 100 on, to a fifth at least."""
        return connections if connections < 100 else self.scaled(connections, connections // 5)

    async def repeat(self, requests: Iterable[bytes], connections: int = 4) -> None:
        """Send these requests over and over, on so many connections."""
        waiting = itertools.cycle(list(requests))

        async def work() -> None:
            while True:
                try:
                    await self.exchange(next(waiting))
                except OSError:
                    await asyncio.sleep(RETRY_SECONDS)

        await asyncio.gather(*(work() for _ in range(self.crowd(connections))))

    async def send_once(self, requests: Iterable[bytes]) -> None:
        """Send all of these at the same time, each once."""
        await asyncio.gather(*(self.exchange(request) for request in requests), return_exceptions=True)

    async def hold(
        self,
        sent: bytes,
        connections: int,
        more: bytes = b"",
        every: float = 1.0,
        reads: bool = True,
        address: str = "",
    ) -> None:
        """Hold connections that send this, then `more` again and again. Reopen those that the service closes."""

        async def one() -> None:
            local = (address, 0) if address else None
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port, local_addr=local)
            self.opened += 1
            try:
                writer.write(sent)
                while True:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(every):
                            if not reads:
                                await asyncio.Event().wait()
                            while await reader.read(65_536):
                                pass
                            return
                    writer.write(more)
                    if (more or not reads) and writer.transport.is_closing():
                        return
            finally:
                writer.transport.abort()

        async def keep() -> None:
            while True:
                with contextlib.suppress(OSError):
                    await one()
                await asyncio.sleep(REOPEN_SECONDS)

        await asyncio.gather(*(keep() for _ in range(self.crowd(connections))))

    # ---- the attacker's own data

    async def new_conversation(self, *questions: str) -> int:
        conversation_id: int = (await self.fetch("POST", "/conversations", {}))["id"]
        for question in questions:
            await self.fetch("POST", f"/conversations/{conversation_id}/messages", {"content": question})
        return conversation_id

    async def import_all(self, *conversations: dict[str, Any]) -> str:
        """Import these. Return the id of the last one."""
        await self.fetch("POST", "/import", json.dumps(conversations).encode())
        title = conversations[-1]["title"].replace("%", "%25")
        found = await self.fetch("GET", f"/conversations?limit=1&q={title}")
        return str(found[0]["id"])

    async def prepared(self, prepare: "Callable[[Attacker], Awaitable[str]]") -> str:
        """Prepare data that several attacks use, once."""
        key = prepare.__name__
        if key not in self.ids:
            self.ids[key] = await prepare(self)
        return self.ids[key]

    async def generate(self, steps: Iterable[Step], streams: int) -> Attacking:
        """Let a model server that follows this script answer again and again, in several conversations."""
        script = tuple(steps)
        conversations = [await self.new_conversation("Hello?") for _ in range(streams)]

        async def one(conversation_id: int) -> None:
            for request in itertools.cycle((self.stream(conversation_id), self.retry(conversation_id))):
                self.upstream.enqueue(*script)
                with contextlib.suppress(OSError):
                    await self.exchange(request)

        async def run() -> None:
            await asyncio.gather(*map(one, conversations))

        return run()


def _unchunked(content: bytes) -> bytes:
    pieces = []
    while content:
        size, _, content = content.partition(b"\r\n")
        pieces.append(content[: int(size, 16)])
        content = content[int(size, 16) + 2 :]
    return b"".join(pieces)


Attack = Callable[[Attacker], Awaitable[Attacking]]
ATTACKS: dict[tuple[str, str], Attack] = {}  # by kind of input and name
REGRESSIONS: list[tuple[str, str]] = []  # attacks that stopped an earlier version


def attack(kind: str, name: str, regression: bool = False) -> Callable[[Attack], Attack]:
    def register(function: Attack) -> Attack:
        assert (kind, name) not in ATTACKS
        ATTACKS[kind, name] = function
        if regression:
            REGRESSIONS.append((kind, name))
        return function

    return register


def repeated(
    kind: str,
    name: str,
    requests: Callable[..., list[bytes]],
    connections: int = 4,
    prepare: Callable[[Attacker], Awaitable[str]] | None = None,
    unread: bool = False,
    regression: bool = False,
    least_seconds: float = 0.0,
) -> None:
    """Register an attack that repeats requests, made by `requests(attacker)` or `requests(attacker, prepared)`.

    `unread`: send only the first one, and do not read the answer.
    """

    async def run(a: Attacker) -> Attacking:
        a.least_seconds = least_seconds
        made = requests(a, await a.prepared(prepare)) if prepare else requests(a)
        return a.hold(made[0], connections, reads=False) if unread else a.repeat(made, connections)

    attack(kind, name, regression)(run)


def held(
    kind: str,
    name: str,
    sent: Callable[[Attacker], tuple[bytes, bytes]],
    connections: int,
    every: float = 0.5,
    reads: bool = True,
) -> None:
    """Register an attack that holds connections. `sent`: what is sent first, and what again and again."""

    async def run(a: Attacker) -> Attacking:
        return a.hold(sent(a)[0], connections, sent(a)[1], every, reads)

    attack(kind, name)(run)


def fill(text: str, size: int) -> str:
    return text * (size // len(text))


MOMENTS = itertools.count()  # the import takes conversations with equal creation times for the same one


def exported(count: int, title: str = "made", question: str = "q") -> dict[str, Any]:
    """Return a new conversation of so many messages, in Fireside's export format."""
    number = next(MOMENTS)
    moment = f"2024-01-01T00:00:{number // 10**6:02d}.{number % 10**6:06d}"
    roles, same = ("user", "assistant"), {"created_at": moment, "content": question}
    messages = [{"id": n + 1, "parent_id": n or None, "role": roles[n % 2], **same} for n in range(count)]
    times = {"created_at": moment, "updated_at": moment}
    return {"fireside": 1, "title": title, "named": True, **times, "messages": messages}


# ---------------------------------------------------------------------------------------------------- headers

VALUES = [fill(part, size) for size in HEADER_SIZES for part in ("\\", '"', "a=b; ", "a, ", "/", "9", "%41", ":")]
VALUES += ["x" + " " * size + "x" for size in HEADER_SIZES]
NAMES = (
    "Accept-Encoding", "Authorization", "Content-Type", "Cookie", "If-None-Match", "Last-Event-ID", "Origin", "Range", "Referer",
    "Sec-Fetch-Site", "User-Agent", "X-CSRF-Token", "X-Forwarded-For", "X-Bootstrap-Token",
)  # fmt: skip


LINES = [
    fill(line, size) for line in ("a: b\r\n", "Cookie: a=b\r\n", "Sec-Fetch-Mode: cors\r\n") for size in HEADER_SIZES
]
STARTS = ("/a", "//", "/%41", "/..", "/static/", "/conversations/9", "/images/0", "/generations/a")
PARTS = ("a", "&", "a&", "q=a&", "q=%e9", "+")
BACKSLASHES = ['"' + "\\" * size + '"' for size in HEADER_SIZES]
ODD_COOKIES = [f'"{value}"' for value in VALUES] + ["\\054" * (size // 4) for size in HEADER_SIZES]


def _session_cookies(values: list[str], a: Attacker) -> list[bytes]:
    return [a.anonymous("GET", "/auth/me", Cookie=f"fireside_{a.port}={value}") for value in values]


def _header_lines(a: Attacker) -> list[bytes]:
    return [a.anonymous("GET", "/health")[:-2] + lines.encode() + b"\r\n" for lines in LINES]


def _long_targets(a: Attacker) -> list[bytes]:
    targets = [start + start.rpartition("/")[2] * (size // len(start)) for start in STARTS for size in HEADER_SIZES]
    queries = [start + fill(part, size) for start in ("", "q=") for part in PARTS for size in HEADER_SIZES]
    targets += [f"/{path}?{query}" for query in queries for path in ("conversations", "search")]
    return [a.request("GET", target) for target in targets]


def _header(name: str, a: Attacker) -> list[bytes]:
    paths = ("/health", "/", "/auth/me", "/conversations")
    return [a.request("GET", path, **{name: value}) for value in VALUES for path in paths]


repeated("headers", "backslashes in a cookie", functools.partial(_session_cookies, BACKSLASHES), regression=True)
repeated("headers", "odd session cookies", functools.partial(_session_cookies, ODD_COOKIES))
repeated("headers", "thousands of header lines", _header_lines)
repeated("headers", "long paths and queries", _long_targets)
for name in NAMES:
    repeated("headers", name, functools.partial(_header, name))


# ---------------------------------------------------------------------------------------------------- every route

BODIES: dict[str, Any] = {  # of the routes whose handler is not reached with {}
    "/auth/login": {"username": "mallory", "password": "not the right one"},
    "/auth/register": {"invite_code": "x", "username": "x", "password": "a long enough phrase"},
    "/auth/link": {"token": "x"},
    "/auth/password": {"current_password": "not the right one", "new_password": "another long phrase"},
    "/auth/name": {"username": "mallory", "current_password": "not the right one"},
    "/auth/delete": {"current_password": "not the right one"},
    "/auth/reset": {"token": "x", "password": "a long enough phrase"},
    "/admin/bootstrap": {"username": "x", "password": "a long enough phrase", "token": "x"},
    "/conversations/{conversation_id}/messages": {"content": "x"},
    "/conversations/{conversation_id}/active": {"message_id": 1},
    "/render": {"text": "*x*"},
    "/import": exported(1),
}
DESTRUCTIVE = (
    "DELETE /conversations/{conversation_id}",
    "DELETE /auth/sessions/{session_id}",
    "DELETE /admin/users/{user_id}",
)


def odd_bodies(size: int) -> list[bytes]:
    """Return JSON that is hard to parse, of up to so many bytes."""
    digits, half = b"9" * (size - 20), size // 2 - 20
    return [
        b"[" * size,
        b'{"a":' * (size // 5),
        b'{"content":"' + b"\\u0041" * (size // 6 - 4) + b'"}',
        b'{"text":"' + b"\\\\" * half + b'"}',
        b'{"title":' + digits + b"}",
        b'{"title":1e' + digits + b"}",
        b"{" + b'"a":1,' * (size // 6 - 4) + b'"a":1}',
        b'{"settings":{"response_format":' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}}",
        b'{"settings":{"response_format":{"a":[' + b"1," * half + b"1]}}}",
        b'{"settings":{"stop":[' + b'"a",' * (size // 4 - 20) + b'"a"]}}',
        b'{"title":"' + b"\xff" * (size - 20) + b'"}',
        b" " * size,
    ]


def _to_route(a: Attacker, route: Any, body: Any = b"", **fields: str) -> bytes:
    path: str = route.path
    for name in route.path.split("{")[1:]:
        key = name.partition("}")[0]
        path = path.replace(f"{{{key}}}", "999999999" if route.name in DESTRUCTIVE else a.ids.get(key, "1"))
    if route.path == "/auth/logout":
        fields["X-CSRF-Token"] = "x"  # keeps the attacker signed in
    return a.request(route.method, path, body, **fields)


def _flood(route: Any, a: Attacker) -> list[bytes]:
    retry = {"conversation_id": a.conversation_id}
    body = b"" if route.method == "GET" else retry if route.path == "/chat/retry" else BODIES.get(route.path, {})
    return [_to_route(a, route, body)]


def _odd_bodies(route: Any, a: Attacker) -> list[bytes]:
    size = min(route._limit, 4 * 1024 * 1024)
    return [_to_route(a, route, body) for body in odd_bodies(a.scaled(size, min(size, 65_536)))]


def _unfinished(route: Any, a: Attacker) -> tuple[bytes, bytes]:
    return _to_route(a, route, Content_Length="1000", Content_Type="application/json"), b" "


for route in ROUTES:
    repeated("requests", route.name, functools.partial(_flood, route), connections=16)
    if route.method != "GET":
        repeated("bodies", route.name, functools.partial(_odd_bodies, route), connections=2)
        held("slow bodies", route.name, functools.partial(_unfinished, route), connections=200)


def _message(a: Attacker, body: bytes = b"", **fields: str) -> bytes:
    return a.request("POST", f"/conversations/{a.conversation_id}/messages", body, **fields)


def _large_settings(a: Attacker) -> list[bytes]:
    settings = {"response_format": {f"a{number}": [1] * 10 for number in range(a.scaled(25_000, 10_000))}}
    paths = (f"/conversations/{a.conversation_id}", "/defaults")
    changes = [a.request("PATCH", path, {"settings": settings}) for path in paths]
    return [*changes, a.request("GET", "/conversations"), a.request("POST", "/conversations", {})]


DIFFERENT_WORDS = " ".join(map(str, range(200_000)))  # the search index gets an entry for each word
MARKS = "a" + "\u0327\u0301" * 100_000  # in the wrong order, so that normalization sorts them
LIGATURES = "\ufdfa" * 200_000  # each becomes 18 characters


def _large_messages(text: str, a: Attacker) -> list[bytes]:
    content = text[: a.scaled(QUESTION_CHARACTERS, 10_000)]
    paths = (f"/conversations/{a.conversation_id}/messages", f"/conversations/{a.conversation_id}/stream")
    return [a.request("POST", path, {"content": content, "parent_id": None}) for path in paths]


def _large_bodies(a: Attacker) -> list[bytes]:
    return [_message(a, body) for body in odd_bodies(a.scaled(32, 4) * 1_000_000)]


repeated("bodies", "32 MB at once", _large_bodies, connections=2)
repeated("bodies", "settings of 1 MB", _large_settings)
for name, content in (
    ("as many different words as fit", DIFFERENT_WORDS),
    ("combining marks", MARKS),
    ("ligatures", LIGATURES),
):
    repeated("bodies", f"messages of {name}", functools.partial(_large_messages, content), connections=20)
slow_upload = functools.partial(_message, Content_Length="33000000")
held("slow bodies", "32 MB in small pieces", lambda a: (slow_upload(a), b" " * 2000), connections=20, every=0.005)


# ---------------------------------------------------------------------------------------------------- connections


def connection_states(a: Attacker) -> dict[str, tuple[bytes, bytes]]:
    """Connections that never end: what is sent first, and what is sent every half second after that."""
    alive = {"Connection": "keep-alive"}
    chunked = alive | {"Transfer_Encoding": "chunked", "Content_Type": "application/json"}
    health, login = a.anonymous("GET", "/health", **alive), a.anonymous("POST", "/auth/login", **chunked)
    import_head = b"POST /import HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"

    def unread(path: str, length: int, method: str = "POST") -> bytes:
        return a.anonymous(method, path, **alive, Content_Length=str(length)) + b"x"

    return {
        "nothing is sent": (b"", b""),
        "half a request line": (b"GET /hea", b""),
        "an endless head": (b"GET /health HTTP/1.1\r\nHost: localhost\r\n", b"a: b\r\n"),
        "a byte between requests": (health + b"\r\n", b""),
        "bytes between requests": (health + b"\r\n", b"\r\n"),
        "an unread body after a 404": (unread("/nowhere", 9), b""),
        "an unread body after a 401": (unread("/conversations", 9), b""),
        "an unread body after a 413": (unread("/auth/login", 99_999_999), b""),
        "an unread body that goes on": (unread("/nowhere", 99_999), b"x"),
        "a GET with a body": (unread("/health", 9999, "GET"), b"x"),
        "endless chunks": (login, b"1\r\n \r\n"),
        "an endless trailer": (login + b"0\r\n", b"a: b\r\n"),
        "an endless trailer after a 404": (a.anonymous("POST", "/nowhere", **chunked) + b"0\r\n", b"a: b\r\n"),
        "an endless chunk extension": (login + b"1;a=", b"a" * 100),
        "100-continue": (a.anonymous("POST", "/auth/login", **alive, Content_Length="9", Expect="100-continue"), b""),
        "an upgrade": (a.anonymous("GET", "/health", Connection="Upgrade", Upgrade="websocket"), b"\0" * 100),
        "an import without a session": (import_head + b"Content-Length: 999999\r\n\r\n", b" "),
    }


def _state(name: str, a: Attacker) -> tuple[bytes, bytes]:
    return connection_states(a)[name]


for name in connection_states(Attacker(0, {}, None, 1)):  # type: ignore[arg-type]  # only the names are used
    held("connections", name, functools.partial(_state, name), connections=300)


async def hold_in_every_state(a: Attacker, connections: int) -> Attacking:
    """Hold anonymous connections, spread over all states and a few addresses."""
    states = list(connection_states(a).values())
    share = -(-connections // len(states))

    async def run() -> None:
        holding = (
            a.hold(sent, share, more, every=0.5, address=f"127.0.0.{2 + number % 4}")
            for number, (sent, more) in enumerate(states)
        )
        await asyncio.gather(*holding)

    return run()


def _pipeline(path: str, a: Attacker) -> tuple[bytes, bytes]:
    return (a.anonymous("GET", path, Connection="keep-alive") * 2000,) * 2


SHORT = [b"", b"\r\n", b"GET", b"x" * 70_000, b"\x16\x03\x01" * 100]
repeated("connections", "opened and closed at once", lambda a: SHORT, connections=50)
pipelined = functools.partial(held, "connections", connections=8, every=0.05)
pipelined("thousands of pipelined requests", functools.partial(_pipeline, "/health"))
pipelined("pipelined requests, answers unread", functools.partial(_pipeline, "/static/app.js"), reads=False)


# ---------------------------------------------------------------------------------------------------- Markdown

MARKDOWN_CHARACTERS = 2_000_000


MARKDOWN = (
    ">", "> " * 100 + "a\n", ">a\n", "[", "![", "[a](", "*a ", "*a_", "a**b", "~~a ", "$", "$a ", "$$a ", "\\(", "\\[a\n",
    "|a|b|\n|-|-|\n|1\n\n", "a|b\n", "- ", "1. ", "- a\n", "- a\n\n", "- [x] a\n", "# a\n", "a\n=\n", "#", "***\n", "&amp;", "&", "&#0",
    "http://a.b ", "http://", "http://a)", "<", "<http://a", "<a@b.c>", "<!--", "\\", "\n", "\r", "\t", "    a\n\n", "a", "a ", "a  \n",
    "```\n~~~\n", "```c\nint a = 1;\n```\n", "\U0001f600\u202e", ":", "[a]: b\n",
    "[^1]", "[^1]: ", "[^1]: a\n", "[a][b]", "[1]: http://a.b\n", "<details>\n", "<details>\n- ", "<details>\n</details>\n", "<sub>", "<br>",
    "a@", "www.a", "> [!NOTE]\n", "\\begin{align}\n\n", "\\[\n\n", "**\u300c",
)  # fmt: skip


def markdowns(size: int) -> dict[str, str]:
    """Return Markdown of this many characters that is hard to parse, by name."""
    columns = 1000
    table = "|" * columns + "\n" + "|-" * columns + "|\n"
    return {f"{part[:10]!r} repeated": fill(part, size) for part in MARKDOWN} | {
        "links in links": fill("[", size // 3) + fill("](a)", size // 2),
        "backticks of every length": " ".join("`" * length for length in range(1, round((2 * size) ** 0.5))),
        "wide tables": table + fill("|\n", size - len(table)),
        "wide rows": "|a|\n|-|\n" + fill("|a", size),
        "deep lists": "".join("  " * depth + "- a\n" for depth in range(round(size**0.5))),
        "one long address": "http://" + fill("a.", size),
        "a fence of fences": "````\n" + fill("```\n", size),
        "references that are used": fill("[a]: b\n", size // 2) + fill("[a]", size // 2),
    }


def _render(a: Attacker, texts: Iterable[str]) -> list[bytes]:
    return [a.request("POST", "/render", {"text": text}) for text in texts]


def _render_markdown(name: str, a: Attacker) -> list[bytes]:
    return _render(a, [markdowns(a.scaled(MARKDOWN_CHARACTERS, 100_000))[name]])


for name in markdowns(100):
    fixed = name in ("'>' repeated", "'[' repeated", "'*a ' repeated")
    repeated("Markdown", name, functools.partial(_render_markdown, name), connections=3, regression=fixed)


def _shown(a: Attacker, conversation_id: object) -> list[bytes]:
    return [a.request("GET", f"/conversations/{conversation_id}/messages?render=true")]


async def _markdown_messages(a: Attacker) -> str:
    texts = [text[:200_000] for text in markdowns(a.scaled(200_000, 20_000)).values() if text.strip()]
    return str(await a.new_conversation(*texts))


repeated("Markdown", "messages that are shown", _shown, connections=3, prepare=_markdown_messages)


# ---------------------------------------------------------------------------------------------------- code and formulas

SLOW = lexing.fenced("c", "x" + " " * 19_800 + "!")
SLOW_AND_SHORT = [SLOW * 3 + part * count for count in (10_000, 30_000) for part in ("a\n\n", "***\n", "- a\n\n***\n")]
SEVERAL_BLOCKS_SECONDS = 12.0  # a block times out after some seconds; what follows happens later


async def _slow_messages(a: Attacker) -> str:
    conversation = exported(a.scaled(50_000, 5_000), title="slowlist")
    for number, message in enumerate(conversation["messages"]):
        message["content"] = SLOW + str(number) if number < 4 else f"message {number}"
    return await a.import_all(conversation)


async def _slow_message(a: Attacker) -> str:
    return str(await a.new_conversation("Look:\n\n" + SLOW))


def _code(language: str, a: Attacker) -> list[bytes]:
    inputs = lexing.inputs(language)
    texts = [lexing.fenced(language, code) for code in inputs[:: max(1, round(0.1 / a.scale))]]
    return _render(a, ["\n".join(texts[:90]), *texts])  # the first has 1.8 MB


slow = functools.partial(repeated, "code", connections=3, least_seconds=SEVERAL_BLOCKS_SECONDS)
slow("slow blocks and many short ones", lambda a: _render(a, SLOW_AND_SHORT))
slow("as many slow blocks as fit", lambda a: _render(a, [SLOW * a.scaled(90, 20)]), connections=6)
slow("slow messages and many short ones", _shown, prepare=_slow_messages)
repeated("code", "C: a name and spaces", lambda a: _render(a, [SLOW]), connections=2, regression=True)
repeated("code", "C: a message that is shown", _shown, connections=2, prepare=_slow_message, regression=True)
for language in sorted(markdown.LANGUAGES):
    repeated("code", language, functools.partial(_code, language), connections=3)

TEX = (
    "{", "}", "x^", "x_", "\\sqrt{", "\\frac{", "\\frac", "\\left(", "\\left(\\right)", "\\text{", "\\begin{matrix}", "&", "\\\\",
    "\\hat", "\\hat{", "x'", "'", "\\binom", "\\overline{", "\\color{red}{", "\\operatorname{", "\\int_", "\\sum^", "\\", "[", "x",
    "1", "\\begin{array}{", "\\begin{cases}1&", "\\mathbb{", "\\unicode{x3C}", "\\,", "~", "\\operatorname{\\,", "\\boxed{", "1.1.",
)  # fmt: skip
HALF = formulas.MAX_FORMULA_CHARACTERS // 2
FORMULAS = [fill(part, 2 * HALF) for part in TEX]
FORMULAS += [fill(part, HALF) + "x" + "}" * (HALF // len(part)) for part in TEX if part.endswith("{")]


def _many_formulas(a: Attacker) -> list[bytes]:
    size = a.scaled(MARKDOWN_CHARACTERS, 100_000)
    texts = [fill(f"$$\n{formula}{number}\n$$\n\n", size) for number, formula in enumerate(FORMULAS)]
    texts += ["".join(f"${formula[:100]}{number}$ " for number in range(size // 100)) for formula in FORMULAS]
    return _render(a, texts)


repeated("formulas", "each alone", lambda a: _render(a, [f"$$\n{one}\n$$" for one in FORMULAS]), connections=3)
repeated("formulas", "thousands in one text", _many_formulas, connections=3)


# ---------------------------------------------------------------------------------------------------- searches

SEARCHES = {
    "a long phrase": '"' + "a " * 490 + 'a"',
    "the same letter 16 times": "a " * 16,
    "the same letter 500 times": "a " * 500,
    "one letter": "a",
    "letters": " ".join("abcdefghijklmnopqrstuvwxyz"),
    "phrases": '"a a" ' * 100,
    "quotes": '"' * 1000,
    "stars": "a* " * 300,
    "operators": "a AND b OR NOT c NEAR(" * 40,
    "Chinese": "\u4e00" * 1000,
    "Chinese words": "\u4e00\u4e8c " * 300,
    "a long word": "a" * 1000,
    "a phrase and words": '"ab cd ef ab cd ef" ab cd ef ' * 20,
}


async def _repetitive_messages(a: Attacker) -> str:
    texts = ("a " * 26_000, "ab cd ef " * 5_000, "\u4e00\u4e8c " * 17_000, "a" * 52_000)
    for number, text in enumerate(texts):
        await a.import_all(exported(a.scaled(200, 20) // (4 if number else 1), f"searched{number}", text))
    return "imported"


async def _odd_titles(a: Attacker) -> str:
    return await a.import_all(*(exported(0, title="a%_" * 60) for _ in range(a.scaled(20_000, 2000))))


def _search(query: str, a: Attacker, _: str) -> list[bytes]:
    encoded = "".join(f"%{byte:02x}" for byte in query[:1000].encode())
    return [a.request("GET", f"/search?limit={limit}&q={encoded}") for limit in (1, 50, 200)]


def _filter_titles(a: Attacker, _: str) -> list[bytes]:
    queries = ("a", "%25", "_" * 500, "a%25" * 300, "?" * 300, "%c3%9f" * 300)
    return [a.request("GET", f"/conversations?q={query}") for query in queries]


for name, query in SEARCHES.items():
    fixed = name in ("a long phrase", "the same letter 16 times")
    search = functools.partial(_search, query)
    repeated("searches", name, search, connections=3, prepare=_repetitive_messages, regression=fixed)
repeated("searches", "titles", _filter_titles, prepare=_odd_titles)


# ---------------------------------------------------------------------------------------------------- imports

IMPORT_SECONDS = 8.0  # until the effect of a file of full size shows


def identical_members(data: bytes, copies: int) -> bytes:
    """Return a zip whose members are all the same compressed bytes, each with its own directory entry."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed, crc = packer.compress(data) + packer.flush(), zlib.crc32(data)
    body, directory = bytearray(), bytearray()
    for number in range(copies):
        name = f"{number}/conversations.json".encode()
        sizes = crc.to_bytes(4, "little") + len(packed).to_bytes(4, "little") + len(data).to_bytes(4, "little")
        common = b"\x14\0\0\0\x08\0\0\0\0\0" + sizes + len(name).to_bytes(2, "little")
        directory += b"PK\x01\x02\x14\0" + common + bytes(12) + len(body).to_bytes(4, "little") + name
        body += b"PK\x03\x04" + common + b"\0\0" + name + packed
    end = b"PK\x05\x06\0\0\0\0" + copies.to_bytes(2, "little") * 2 + len(directory).to_bytes(4, "little")
    return bytes(body + directory + end + len(body).to_bytes(4, "little") + b"\0\0")


def imported(
    name: str,
    files: Callable[[Attacker], Iterable[Any]],
    connections: int = 6,
    regression: bool = False,
    once: bool = False,
) -> None:
    """Register an attack that imports these files, zip bytes or values for JSON, again and again or `once`."""

    async def run(a: Attacker) -> Attacking:
        a.least_seconds = IMPORT_SECONDS * a.scale
        requests = []
        for file in files(a):
            kind = "application/zip" if isinstance(file, bytes) and file[:2] == b"PK" else "application/json"
            requests.append(a.request("POST", "/import", file, Content_Type=kind))
        return a.send_once(requests) if once else a.repeat(requests, connections)

    attack("imports", name, regression)(run)


def _odd_zips(a: Attacker) -> list[bytes]:
    size = a.scaled(60_000_000, 6_000_000)
    members = (b"[" * size, b'{"a":' * (size // 5), b'"' + b"\\" * (size - 2) + b'"', b"9" * size, b"{}," * (size // 3))
    return [identical_members(member, 8) for member in members]


def _long_messages(a: Attacker) -> list[dict[str, Any]]:
    chinese = "".join(chr(0x4E00 + number * number % 20_000) for number in range(199_999))
    texts = ("a " * 99_999, "a" * 199_999, chinese, "".join(f"w{number} " for number in range(30_000)))
    different = " ".join(map(str, range(280_000)))
    answers = exported(a.scaled(40, 4))
    for message in answers["messages"]:
        if message["role"] == "assistant":
            message["content"] = different
    return [answers, *(exported(a.scaled(50, 10), question=text) for text in texts)]


def _many_versions(a: Attacker) -> list[dict[str, Any]]:
    conversation = exported(a.scaled(50_000, 5_000))
    for message in conversation["messages"]:
        message |= {"parent_id": None, "role": "user"}
    return [conversation]


def _other_programs(a: Attacker) -> list[dict[str, Any]]:
    count = a.scaled(25_000, 10_000)
    nodes = {
        str(n): {"id": str(n), "parent": str(n - 1), "children": [str(n + 1)], "message": None} for n in range(count)
    }
    lmstudio = {"createdAt": 1, "messages": [{"versions": [{}] * 100, "currentlySelected": 0}] * (count // 100)}
    webui = {"chat": {"history": {"messages": {str(n): {"parentId": str(n - 1)} for n in range(count)}}}}
    return [{"mapping": nodes, "current_node": "5"}, lmstudio, webui]


def _zips(member: bytes, copies: int, a: Attacker) -> list[bytes]:
    return [identical_members(member, a.scaled(copies, copies // 10))]


LONG, MANY = 50_000, 20_000
imported("a zip of gigabytes", lambda a: _zips(b" " * 60_000_000, 500, a), regression=True)
imported("a zip of small files", functools.partial(_zips, b"{}", 60_000))
imported("a zip of files that are not JSON", functools.partial(_zips, b"x" * 1000, 60_000))
imported("zips of odd JSON", _odd_zips)
imported("odd JSON", lambda a: odd_bodies(a.scaled(50_000_000, 2_000_000)))
imported("50,000 messages", lambda a: [exported(a.scaled(LONG, 5_000)) for _ in range(4)], regression=True, once=True)
imported("20,000 conversations", lambda a: [[exported(2) for _ in range(a.scaled(MANY, 2_000))] for _ in range(3)], 3)
imported("long messages", _long_messages, 3)
imported("many versions of one message", _many_versions, 2)
imported("exports of other programs", _other_programs, 3)


@attack("imports", "purging 50,000 messages", regression=True)
async def _(a: Attacker) -> Attacking:
    conversation_id = await a.import_all(exported(a.scaled(50_000, 5_000), title="purged"))
    return a.send_once([a.request("DELETE", f"/conversations/{conversation_id}?purge=true")])


# ---------------------------------------------------------------------------------------------------- large answers


async def _large_list(a: Attacker) -> str:
    return await a.import_all(*(exported(0, title="t" * 150) for _ in range(a.scaled(100_000, 5_000))))


async def _long_conversation(a: Attacker) -> str:
    return await a.import_all(exported(a.scaled(50_000, 5_000), title="longlist", question="*a* `b`"))


async def _question(a: Attacker) -> str:
    return str(await a.new_conversation("Hello?"))


def _retry_and_read(a: Attacker, id: str) -> list[bytes]:
    return [*[a.retry(id)] * 3, a.request("GET", f"/conversations/{id}/messages")]


def _get(path: str, a: Attacker, conversation_id: str) -> list[bytes]:
    return [a.request("GET", path.format(id=conversation_id))]


LISTS = {"100,000 conversations": ("/conversations", 4, 20), "exports": ("/export", 8, 30)}
for name, (path, readers, idle) in LISTS.items():
    get = functools.partial(_get, path)
    repeated("large answers", name, get, connections=readers, prepare=_large_list)
    repeated("large answers", f"{name}, unread", get, connections=idle, prepare=_large_list, unread=True)
for end in ("messages", "messages?render=true", "export?format=json", "export"):
    get = functools.partial(_get, f"/conversations/{{id}}/{end}")
    repeated("large answers", f"50,000 messages: {end}", get, prepare=_long_conversation)
repeated("large answers", "thousands of versions", _retry_and_read, connections=8, prepare=_question)


# ---------------------------------------------------------------------------------------------------- pictures

VISION = {"provider_id": "lmstudio", "model": "qwen2.5-vl-7b-instruct"}


@functools.cache
def _eight_pictures() -> bytes:
    data = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(2_900_000)).decode()
    return json.dumps({"content": "x", "images": [{"media_type": "image/png", "data": data}] * 8}).encode()


async def _pictures(a: Attacker) -> str:
    """Prepare a conversation with 928 MB of pictures, or a part of it."""
    conversation_id = await a.new_conversation()
    path = f"/conversations/{conversation_id}/messages"
    for _ in range(a.scaled(40, 4)):
        await a.fetch("POST", path, _eight_pictures())
    a.ids["image_id"] = str((await a.fetch("GET", path))[-1]["images"][0]["id"])
    return str(conversation_id)


export = functools.partial(_get, "/conversations/{id}/export?format=json")
pictures = functools.partial(repeated, "pictures", prepare=_pictures)
pictures("to the model", lambda a, id: [a.stream(id, VISION), a.retry(id, VISION)], 2, regression=True)
pictures("exported as JSON", export, 2, regression=True)
pictures("exported as JSON, unread", export, 4, unread=True)
pictures("downloaded, unread", lambda a, _: [a.request("GET", f"/images/{a.ids['image_id']}")], 60, unread=True)


@attack("pictures", "sent in messages")
async def _(a: Attacker) -> Attacking:
    path = f"/conversations/{await a.new_conversation()}/messages"
    return a.repeat([a.request("POST", path, _eight_pictures())], 3)


# ---------------------------------------------------------------------------------------------------- signing in


def _guesses(address: str, names: tuple[str, ...], a: Attacker) -> list[bytes]:
    """A thousand logins with these user names, each from another address."""
    requests = []
    for number, name in zip(range(1000), itertools.cycle(names), strict=False):
        source = address.format(number // 250, number % 250, number)
        body = {"username": name, "password": "not the right one"}
        requests.append(a.anonymous("POST", "/auth/login", body, X_Forwarded_For=source))
    return requests


def _other_guesses(a: Attacker) -> list[bytes]:
    paths = ("/auth/register", "/admin/bootstrap", "/auth/link")
    sources = [f"10.8.{number // 250}.{number % 250}" for number in range(1000)]
    return [a.anonymous("POST", path, BODIES[path], X_Forwarded_For=source) for source in sources for path in paths]


def _password_changes(a: Attacker) -> list[bytes]:
    return [a.request("POST", "/auth/password", BODIES["/auth/password"])]


FIFTY = tuple(f"user{number}" for number in range(50))
GUESSES: dict[str, tuple[int, Callable[[Attacker], list[bytes]]]] = {
    "1,000 logins from 1,000 addresses": (1000, functools.partial(_guesses, "10.{}.{}.7", FIFTY)),
    "as the second user, from 1,000 addresses": (1000, functools.partial(_guesses, "10.9.{}.{}", ("carol",))),
    "from many addresses of one network": (300, functools.partial(_guesses, "2001:db8::{2:x}", ("mallory",))),
    "registrations and set-ups": (300, _other_guesses),
    "changes of one's own password": (100, _password_changes),
}
for name, (connections, guesses) in GUESSES.items():
    repeated("signing in", name, guesses, connections, regression=name.startswith("1,000"))


# ---------------------------------------------------------------------------------------------------- a model server

STREAM_BYTES = 100_000_000
BLOCK_BYTES = 200_000  # written at once

EVENTS: dict[str, bytes] = {  # each is repeated up to STREAM_BYTES
    "reasoning and content by turns, a character each": reasoning("a") + says("b"),
    "a character at a time": says("a"),
    "comments": b": x\n\n",
    "colons": b":\n",
    "blank lines": b"\n",
    "empty events": b"data:\n\n",
    "events without choices": b"data: {}\n\n",
    "events that are not JSON": b"data: x\n\n",
    "empty deltas": chunk({}),
    "event names": b"event: x\n",
    "data lines of one event": b"data: x\n",
    "changes of the model": b"".join(says("a", model=f"m{number}") for number in range(2000)),
    "usage again and again": b"".join(
        event({"choices": [], "usage": {"prompt_tokens": n, "completion_tokens": n}}) for n in range(2000)
    ),
    "progress again and again": b"".join(
        event({"prompt_progress": {"processed": n, "total": 2000}}) for n in range(2000)
    ),
    "one delta of 1 MB": says("a " * 500_000),
    "300,000 different words": b"".join(says(" ".join(map(str, range(n, n + 1000)))) for n in range(0, 300_000, 1000)),
    "combining marks": says(MARKS[:50_000]),
    "ligatures": says(LIGATURES[:50_000]),
    "deltas of many lines": says("\n" * 100_000),
    "deltas of escapes": b'data: {"choices":[{"delta":{"content":"' + b"\\ud800" * 100_000 + b'"}}]}\n\n',
    "deep JSON": b"data: " + b"[" * 500_000 + b"\n\n" + b"data: " + b'{"a":' * 100_000 + b"\n\n",
    "numbers of a million digits": b'data: {"usage":{"prompt_tokens":' + b"9" * 1_000_000 + b"}}\n\n",
}
ENDLESS: dict[str, tuple[list[Step], Step]] = {  # the beginning, and what is repeated 3000 times
    "an endless trailer": ([says("a"), wire(b"0\r\n")], wire(b"a: b\r\n" * 20_000)),
    "an endless head": ([wire(b"HTTP/1.1 200 OK\r\n")], wire(b"a: b\r\n" * 20_000)),
    "an endless status line": ([wire(b"HTTP/1.1 200 ")], wire(b"a" * 100_000)),
    "an endless chunk extension": ([headers(), wire(b"1;")], wire(b"a" * 100_000)),
    "chunks of one byte": ([headers()], wire(b"1\r\nx\r\n" * 20_000)),
    "an endless line": ([b"data: "], b"a" * 100_000),
    "a length of gigabytes": ([wire(b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n")], wire(b"a" * 100_000)),
}
FIXED = ("reasoning and content", "an endless trailer", "comments", "empty events", "changes of")


def _blocks(a: Attacker, data: bytes, total: int = STREAM_BYTES) -> list[Step]:
    """Return the same events over and over, so many bytes in all in a release."""
    block = data * max(1, BLOCK_BYTES // len(data))
    return [block] * max(1, a.scaled(total) // len(block))


def _gzip(data: bytes) -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    return packer.compress(data) + packer.flush()


def _answers(script: Callable[[Attacker], list[Step]], streams: int = 4) -> Attack:
    async def run(a: Attacker) -> Attacking:
        return await a.generate([*script(a), finish("stop"), DONE], streams)

    return run


def _events(data: bytes, a: Attacker) -> list[Step]:
    return _blocks(a, data)


def _endless(name: str, a: Attacker) -> list[Step]:
    return [*ENDLESS[name][0], *[ENDLESS[name][1]] * 3000]


SCRIPTS: dict[str, Callable[[Attacker], list[Step]]] = {
    **{name: functools.partial(_events, data) for name, data in EVENTS.items()},
    **{name: functools.partial(_endless, name) for name in ENDLESS},
    "a character in a packet": lambda a: [split(1), *_blocks(a, says("a"))],
    "a compressed stream": lambda a: [
        headers(content_encoding="gzip"), *_blocks(a, _gzip(says("a") * 40_000), 30_000_000),
    ],
    "compressed zeros": lambda a: [headers(content_encoding="gzip"), _gzip(bytes(300_000_000))],
}  # fmt: skip
for name, script in SCRIPTS.items():
    attack("model server", name, regression=name.startswith(FIXED))(_answers(script))
attack("model server", "one answer alone")(_answers(SCRIPTS["events without choices"], streams=1))

ERRORS = (
        "model ", "context ", "context_length ", "n_ctx: ", "not supported ", "not support", "not a", " ", "a", "1", "the first ",
        "tokens (", "requested ", "model length of ", "api ", "no model ", "model\n", "invalid model identifier", "context length of ",
        "<", "\u202e", "queue ", "too many ", "\\", "failed to ", "sk-", "no models are currently ",
)  # fmt: skip


async def _conversations(a: Attacker) -> list[int]:
    return [await a.new_conversation("Hello?") for _ in range(4)]


def _failing(step: Callable[[str], Step]) -> Attack:
    async def run(a: Attacker) -> Attacking:
        conversations = await _conversations(a)
        for error_step in [step(fill(text, 1_000_000)) for text in ERRORS] * 20:
            a.upstream.enqueue(error_step)
        return a.repeat(map(a.stream, conversations))

    return run


attack("model server", "an error of 1 MB in the stream", regression=True)(_failing(error))
attack("model server", "an error of 1 MB in place of it")(
    _failing(lambda text: status(400, {"error": {"message": text}}))
)


@attack("model server", "answers that are hard to show")
async def _(a: Attacker) -> Attacking:
    conversations = await _conversations(a)
    for text in [*markdowns(a.scaled(1_000_000, 100_000)).values()] * 3:
        a.upstream.enqueue(says(text), finish("stop"), DONE)
    return a.repeat(
        request for id in conversations for request in (a.stream(id), *_shown(a, id), a.retry(id), *_shown(a, id))
    )


@attack("model server", "hundreds of readers of one answer")
async def _(a: Attacker) -> Attacking:
    conversation_id = await a.new_conversation("Hello?")
    a.upstream.enqueue(*_blocks(a, says("a"), 2_000_000), *[split(1)] * 2, *_blocks(a, says("a"), 20_000_000))

    async def run() -> None:
        await asyncio.gather(a.repeat([a.stream(conversation_id)], 500), a.repeat([a.retry(conversation_id)], 1))

    return run()


@attack("model server", "readers that do not read")
async def _(a: Attacker) -> Attacking:
    a.upstream.enqueue(*_blocks(a, says("a" * 100), 20_000_000))
    return a.hold(a.stream(await a.new_conversation("Hello?")), 200, reads=False)


def _catalogue(body: Callable[[Attacker], bytes]) -> Attack:
    async def run(a: Attacker) -> Attacking:
        for path in ("/api/v1/models", "/v1/models"):
            for _ in range(100):
                a.upstream.enqueue(status(200, body(a)), path=path)
        paths = ("/providers", "/providers/lmstudio/models", "/providers/lmstudio/health")
        return a.repeat([a.request("GET", path) for path in paths])

    return run


def _models(*models: dict[str, Any]) -> bytes:
    return json.dumps({"models": [{"type": "llm", "loaded_instances": []} | model for model in models]}).encode()


CATALOGUES: dict[str, Callable[[Attacker], bytes]] = {
    "a list of 100,000 models": lambda a: _models(*({"key": f"m{n}"} for n in range(a.scaled(100_000, 20_000)))),
    "a list of 50 MB": lambda a: b'{"models":[' + b" " * a.scaled(50_000_000, 10_000_000) + b"]}",
    "a list of brackets": lambda a: b"[" * 5_000_000,
    "a model with a name of 5 MB": lambda a: _models({"key": "a" * 5_000_000, "display_name": "b" * 5_000_000}),
}
for name, body in CATALOGUES.items():
    attack("model server", name)(_catalogue(body))
