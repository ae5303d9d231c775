"""What one person sends to stop the others: a generator for every route and every class of input, used by starvation.py.

An attack is a coroutine function. Called with an Attacker it prepares its data, which is not timed, and returns a coroutine that
attacks until it is cancelled, or until it has nothing left to do.
"""

import asyncio
import base64
import contextlib
import itertools
import json
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any

from fireside.server import ROUTES
from fireside.web import markdown

from .. import lexing
from ..upstream import CHAT, DONE, Step, Upstream, chunk, error, event, finish, headers, reasoning, split, status, wire
from ..upstream import text as says

MODEL = {"provider_id": "lmstudio", "model": "llama-3.2-3b-instruct"}
RETRY_SECONDS = 0.02  # after a connection that was refused
REOPEN_SECONDS = 1.0  # after a connection that was to be held, and was closed
PREPARING_SECONDS = 120.0  # for one request
SIZES = (
    15_000,
    60_000,
)  # characters of a header: as many as fit into a head of 16 KiB, and as many as some servers take

Attacking = Coroutine[Any, Any, None]


@dataclass
class Attacker:
    """An ordinary user of the service, and everything that person controls, a model server among it."""

    port: int
    credentials: dict[str, str]  # the headers of a session
    upstream: Upstream
    scale: float  # of the data that an attack prepares: 1 in a release, less in CI
    conversation_id: int = 0
    opened: int = 0  # connections that `hold` has opened
    least_seconds: float = 0.0  # that an attack takes to show, set by itself
    statuses: Counter[str] = field(default_factory=Counter)  # of the answers to the attack
    others: dict[str, str] = field(default_factory=dict)  # path parameters with an object of the attacker's own

    # ---- requests

    def request(self, method: str, path: str, body: Any = b"", **fields: str) -> bytes:
        """The bytes of a request by the signed-in attacker. It closes its connection; a `body` that is not bytes is sent as JSON."""
        return self.stranger(method, path, body, **self.credentials | fields)

    def stranger(self, method: str, path: str, body: Any = b"", **fields: str) -> bytes:
        """The same by somebody who is not signed in."""
        content: bytes = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"Host": f"127.0.0.1:{self.port}", "Connection": "close"}
        if content:
            sent |= {"Content-Type": "application/json"}
        if content or method != "GET":
            sent |= {"Content-Length": str(len(content))}
        sent |= {name.replace("_", "-"): value for name, value in fields.items()}
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in sent.items()), "", ""]
        return "\r\n".join(lines).encode("latin-1") + content

    async def ask(self, method: str, path: str, body: Any = b"", **fields: str) -> Any:
        """The JSON of an answer, while an attack is prepared."""
        async with asyncio.timeout(PREPARING_SECONDS):
            answer = await self.exchange(self.request(method, path, body, **fields))
        head, _, content = answer.partition(b"\r\n\r\n")
        assert head.split(b" ", 2)[1] == b"200", answer[:500]
        return json.loads(_unchunked(content) if b"transfer-encoding: chunked" in head.lower() else content)

    async def exchange(self, *parts: bytes) -> bytes:
        """Everything that is answered until the connection is closed."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            for part in parts:
                writer.write(part)
                await writer.drain()
            answer = await reader.read()
            self.statuses[answer[9:12].decode("latin-1")] += 1
            return answer
        finally:
            writer.transport.abort()

    # ---- ways to attack

    async def repeat(self, requests: Iterable[bytes], connections: int = 4) -> None:
        """These requests over and over, so many at a time."""
        waiting = itertools.cycle(list(requests))

        async def work() -> None:
            while True:
                try:
                    await self.exchange(next(waiting))
                except OSError:
                    await asyncio.sleep(RETRY_SECONDS)

        await asyncio.gather(*(work() for _ in range(connections)))

    async def once(self, requests: Iterable[bytes]) -> None:
        """All of these at the same time, each of them once."""
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
        """So many connections that have sent this, and then `more` again and again. One that is closed is opened again."""

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
                    if not more and reads:
                        continue
                    if writer.transport.is_closing():
                        return
            finally:
                writer.transport.abort()

        async def keep() -> None:
            while True:
                with contextlib.suppress(OSError):
                    await one()
                await asyncio.sleep(REOPEN_SECONDS)

        await asyncio.gather(*(keep() for _ in range(connections)))

    # ---- data of the attacker's own

    async def new_conversation(self, *questions: str, **fields: Any) -> int:
        conversation_id: int = (await self.ask("POST", "/conversations", fields))["id"]
        for question in questions:
            await self.ask("POST", f"/conversations/{conversation_id}/messages", {"content": question})
        return conversation_id

    async def bring(self, *conversations: dict[str, Any]) -> None:
        """Import these."""
        await self.ask("POST", "/import", json.dumps(conversations).encode())

    async def find(self, title: str) -> int:
        found = await self.ask("GET", f"/conversations?q={title}")
        conversation_id: int = found[0]["id"]
        return conversation_id

    def many(self, number: int, least: int = 1) -> int:
        return max(least, round(number * self.scale))

    async def generate(self, script: Iterable[Step], streams: int = 4) -> Attacking:
        """Answers by a model server that follows this script, so many at a time, again and again."""
        steps = tuple(script)
        conversations = [await self.new_conversation("Hello?") for _ in range(streams)]

        async def one(conversation_id: int) -> None:
            follow = self.request("POST", f"/conversations/{conversation_id}/stream", MODEL)
            again = self.request("POST", "/chat/retry", MODEL | {"conversation_id": conversation_id})
            while True:
                self.upstream.enqueue(*steps)
                with contextlib.suppress(OSError):
                    await self.exchange(follow)
                self.upstream.enqueue(*steps)
                with contextlib.suppress(OSError):
                    await self.exchange(again)

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
ATTACKS: dict[tuple[str, str], Attack] = {}  # by class of input and name
KNOWN: list[tuple[str, str]] = []  # those that stopped the service once


def attack(kind: str, name: str, known: bool = False) -> Callable[[Attack], Attack]:
    def register(function: Attack) -> Attack:
        assert (kind, name) not in ATTACKS
        ATTACKS[kind, name] = function
        if known:
            KNOWN.append((kind, name))
        return function

    return register


MOMENTS = itertools.count()  # a conversation that began when another did is taken for that one


def made(count: int, title: str = "made", question: str = "q", **fields: Any) -> dict[str, Any]:
    """A new conversation of so many messages in a row, in the form that Fireside exports."""
    number = next(MOMENTS)
    moment = f"2024-01-01T00:00:{number // 10**6:02d}.{number % 10**6:06d}"
    messages = [
        {
            "id": number + 1,
            "parent_id": number or None,
            "role": "assistant" if number % 2 else "user",
            "created_at": moment,
            "content": question,
        }
        for number in range(count)
    ]
    whole = {"fireside": 1, "title": title, "named": True, "created_at": moment, "updated_at": moment}
    return whole | {"messages": messages} | fields


# ---------------------------------------------------------------------------------------------------- headers


def values(size: int) -> dict[str, str]:
    """Values of headers of this many characters."""
    return {
        "backslashes": "\\" * size,
        "quotes": '"' * size,
        "semicolons": "a=b; " * (size // 5),
        "commas": "a, " * (size // 3),
        "slashes": "/" * size,
        "digits": "9" * size,
        "percent signs": "%41" * (size // 3),
        "spaces": "x" + " " * size + "x",
        "colons": ":" * size,
    }


VALUES = [value for size in SIZES for value in values(size).values()]
NAMES = (
    "Accept-Encoding", "Authorization", "Content-Type", "Cookie", "If-None-Match", "Last-Event-ID", "Origin", "Range", "Referer",
    "Sec-Fetch-Site", "User-Agent", "X-CSRF-Token", "X-Forwarded-For", "X-Bootstrap-Token",
)  # fmt: skip


@attack("headers", "a quoted cookie of backslashes", known=True)
async def _(a: Attacker) -> Attacking:
    cookies = [f'fireside_{a.port}="' + "\\" * size + '"' for size in SIZES]
    return a.repeat([a.stranger("GET", "/auth/me", Cookie=cookie) for cookie in cookies])


@attack("headers", "a session cookie of odd characters")
async def _(a: Attacker) -> Attacking:
    cookies = [f'fireside_{a.port}="{value}"' for value in VALUES]
    cookies += [f"fireside_{a.port}=" + "\\054" * (size // 4) for size in SIZES]
    return a.repeat([a.stranger("GET", "/auth/me", Cookie=cookie) for cookie in cookies])


@attack("headers", "thousands of header lines")
async def _(a: Attacker) -> Attacking:
    few = a.stranger("GET", "/health")[:-2]
    lines = (b"a: b\r\n", b"Cookie: a=b\r\n", b"Sec-Fetch-Mode: cors\r\n")
    return a.repeat([few + line * (size // len(line)) + b"\r\n" for line in lines for size in SIZES])


@attack("headers", "a long path and a long query")
async def _(a: Attacker) -> Attacking:
    paths = []
    for size in SIZES:
        starts = ("/a", "//", "/%41", "/..", "/static/", "/conversations/9", "/images/0", "/generations/a")
        paths += [start + start.rpartition("/")[2] * (size // len(start)) for start in starts]
        parts = ("a", "&", "a&", "q=a&", "q=%e9", "+")
        queries = [part * (size // len(part)) for part in parts] + ["q=" + part * (size // len(part)) for part in parts]
        paths += [f"/{place}?{query}" for query in queries for place in ("conversations", "search")]
    return a.repeat([a.request("GET", path) for path in paths])


def _header(name: str) -> Attack:
    async def run(a: Attacker) -> Attacking:
        paths = ("/health", "/", "/auth/me", "/conversations")
        return a.repeat([a.request("GET", path, **{name: value}) for value in VALUES for path in paths])

    return run


for name in NAMES:
    attack("headers", name)(_header(name))


# ---------------------------------------------------------------------------------------------------- every route

BODIES: dict[str, Any] = {  # what a route takes, where {} is not enough to get past the check of the body
    "/auth/login": {"username": "mallory", "password": "not the right one"},
    "/auth/register": {"invite_code": "x", "username": "x", "password": "a long enough phrase"},
    "/auth/link": {"token": "x"},
    "/auth/password": {"current_password": "not the right one", "new_password": "another long phrase"},
    "/admin/bootstrap": {"username": "x", "password": "a long enough phrase", "token": "x"},
    "/conversations/{conversation_id}/messages": {"content": "x"},
    "/conversations/{conversation_id}/active": {"message_id": 1},
    "/chat/retry": {"conversation_id": 1},
    "/render": {"text": "*x*"},
    "/import": made(1),
}
HARMLESS = {"DELETE /conversations/{conversation_id}": "999999999", "DELETE /auth/sessions/{session_id}": "999999999"}


def _path(a: Attacker, route: Any) -> str:
    path: str = route.path
    for name in (
        "conversation_id",
        "session_id",
        "user_id",
        "invite_id",
        "image_id",
        "generation_id",
        "provider_id",
        "name",
    ):
        own = HARMLESS.get(route.name) or a.others.get(name, "1")
        path = path.replace(f"{{{name}}}", own)
    return path


def _fields(route: Any) -> dict[str, str]:
    return {"X-CSRF-Token": "x"} if route.path == "/auth/logout" else {}  # the attacker stays signed in


def _flood(route: Any) -> Attack:
    async def run(a: Attacker) -> Attacking:
        body = b"" if route.method == "GET" else BODIES.get(route.path, {})
        if route.path == "/chat/retry":
            body = {"conversation_id": a.conversation_id}
        return a.repeat([a.request(route.method, _path(a, route), body, **_fields(route))], connections=16)

    return run


def odd_bodies(size: int) -> list[bytes]:
    """JSON that is hard to read, of up to so many bytes."""
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


def _body(route: Any) -> Attack:
    async def run(a: Attacker) -> Attacking:
        size = min(route._limit, 4 * 1024 * 1024)
        bodies = odd_bodies(a.many(size, 65_536) if size > 65_536 else size)
        return a.repeat([a.request(route.method, _path(a, route), body, **_fields(route)) for body in bodies], 2)

    return run


def _unfinished(route: Any) -> Attack:
    async def run(a: Attacker) -> Attacking:
        fields = _fields(route) | {"Content_Length": "1000", "Content_Type": "application/json"}
        sent = a.request(route.method, _path(a, route), **fields)
        return a.hold(sent, a.many(200, 40), more=b" ", every=0.5)

    return run


for route in ROUTES:
    attack("requests", route.name)(_flood(route))
    if route.method != "GET":
        attack("bodies", route.name)(_body(route))
        attack("slow bodies", route.name)(_unfinished(route))


@attack("bodies", "32 MB at once")
async def _(a: Attacker) -> Attacking:
    path = f"/conversations/{a.conversation_id}/messages"
    size = a.many(32, 4) * 1_000_000
    return a.repeat([a.request("POST", path, body) for body in odd_bodies(size)], 2)


@attack("slow bodies", "32 MB in small pieces")
async def _(a: Attacker) -> Attacking:
    sent = a.request("POST", f"/conversations/{a.conversation_id}/messages", Content_Length="33000000")
    return a.hold(sent, 20, more=b" " * 2000, every=0.005)


@attack("bodies", "settings of 4 MB")
async def _(a: Attacker) -> Attacking:
    large = {"response_format": {f"a{number}": [1] * 10 for number in range(a.many(100_000, 10_000))}}
    path = f"/conversations/{a.conversation_id}"
    change = [a.request("PATCH", path, {"settings": large}), a.request("PATCH", "/defaults", {"settings": large})]
    return a.repeat([*change, a.request("GET", "/conversations"), a.request("POST", "/conversations", {})], 4)


# ---------------------------------------------------------------------------------------------------- connections

CHUNKED = {"Transfer_Encoding": "chunked", "Content_Type": "application/json"}


def _states(a: Attacker) -> dict[str, tuple[bytes, bytes]]:
    """Connections that never end, each as what is sent first and what is sent every half second after that."""
    alive = {"Connection": "keep-alive"}
    health = a.stranger("GET", "/health", **alive)
    import_head = b"POST /import HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return {
        "nothing is sent": (b"", b""),
        "half a request line": (b"GET /hea", b""),
        "a head that never ends": (b"GET /health HTTP/1.1\r\nHost: localhost\r\n", b"a: b\r\n"),
        "a byte between requests": (health + b"\r\n", b""),
        "bytes between requests": (health + b"\r\n", b"\r\n"),
        "an unread body after a 404": (
            a.stranger("POST", "/nowhere", **alive, Content_Length="9") + b"x", b"",
        ),
        "an unread body after a 401": (
            a.stranger("POST", "/conversations", **alive, Content_Length="9") + b"x", b"",
        ),
        "an unread body after a 413": (
            a.stranger("POST", "/auth/login", **alive, Content_Length="99999999") + b"x", b"",
        ),
        "an unread body that goes on": (
            a.stranger("POST", "/nowhere", **alive, Content_Length="99999") + b"x", b"x",
        ),
        "a GET with a body": (a.stranger("GET", "/health", **alive, Content_Length="9999") + b"x", b"x"),
        "chunks that never end": (a.stranger("POST", "/auth/login", **alive, **CHUNKED), b"1\r\n \r\n"),
        "a trailer that never ends": (
            a.stranger("POST", "/auth/login", **alive, **CHUNKED) + b"0\r\n", b"a: b\r\n",
        ),
        "a trailer that never ends, after a 404": (
            a.stranger("POST", "/nowhere", **alive, **CHUNKED) + b"0\r\n", b"a: b\r\n",
        ),
        "a chunk extension that never ends": (
            a.stranger("POST", "/auth/login", **alive, **CHUNKED) + b"1;a=", b"a" * 100,
        ),
        "100-continue": (
            a.stranger("POST", "/auth/login", **alive, Content_Length="9", Expect="100-continue"), b"",
        ),
        "an upgrade": (
            a.stranger("GET", "/health", Connection="Upgrade", Upgrade="websocket"), b"\0" * 100,
        ),
        "an import without a session": (import_head + b"Content-Length: 999999\r\n\r\n", b" "),
    }  # fmt: skip


STATES = tuple(_states(Attacker(0, {}, None, 1)))  # type: ignore[arg-type]  # only for their names
OPEN_STATES = (
    "a byte between requests", "an unread body after a 404", "an unread body after a 401", "an unread body after a 413",
    "a GET with a body", "a trailer that never ends",
)  # fmt: skip


def _half_open(state: str) -> Attack:
    async def run(a: Attacker) -> Attacking:
        sent, more = _states(a)[state]
        return a.hold(sent, a.many(300, 60), more, every=0.5)

    return run


for state in STATES:
    attack("connections", state)(_half_open(state))


async def hold_in_every_state(a: Attacker, connections: int) -> Attacking:
    """So many anonymous connections that never end, spread over all states and a few addresses."""
    states = list(_states(a).values())
    share = -(-connections // len(states))

    async def run() -> None:
        await asyncio.gather(
            *(
                a.hold(sent, share, more, every=0.5, address=f"127.0.0.{2 + number % 4}")
                for number, (sent, more) in enumerate(states)
            )
        )

    return run()


@attack("connections", "opened and closed at once")
async def _(a: Attacker) -> Attacking:
    return a.repeat([b"", b"\r\n", b"GET", b"x" * 70_000, b"\x16\x03\x01" * 100], connections=50)


@attack("connections", "thousands of requests in one")
async def _(a: Attacker) -> Attacking:
    one = a.stranger("GET", "/health", Connection="keep-alive")
    return a.hold(one * 2000, 8, one * 2000, every=0.05)


@attack("connections", "thousands of requests, answers unread")
async def _(a: Attacker) -> Attacking:
    one = a.stranger("GET", "/static/app.js", Connection="keep-alive")
    return a.hold(one * 2000, 8, one * 2000, every=0.05, reads=False)


# ---------------------------------------------------------------------------------------------------- Markdown


def _times(text: str, size: int) -> str:
    return text * (size // len(text))


def markdowns(size: int) -> dict[str, str]:
    """Markdown of this many characters that is hard to read."""
    columns = 1000
    table = "|" * columns + "\n" + "|-" * columns + "|\n"
    return {
        "nested quotes": _times(">", size),
        "nested quotes, line after line": _times("> " * 100 + "a\n", size),
        "lines of quotes": _times(">a\n", size),
        "open brackets": _times("[", size),
        "open images": _times("![", size),
        "open links": _times("[a](", size),
        "links in links": _times("[", size // 3) + _times("](a)", size // 2),
        "emphasis": _times("*a ", size),
        "emphasis of both kinds": _times("*a_", size),
        "emphasis that closes": _times("a**b", size),
        "strikethrough": _times("~~a ", size),
        "backticks of every length": _backticks(size),
        "dollars": _times("$", size),
        "dollars with text": _times("$a ", size),
        "double dollars": _times("$$a ", size),
        "open formulas": _times("\\(", size),
        "open display formulas": _times("\\[a\n", size),
        "wide tables": table + _times("|\n", size - len(table)),
        "many tables": _times("|a|b|\n|-|-|\n|1\n\n", size),
        "wide rows": "|a|\n|-|\n" + _times("|a", size),
        "pipes": _times("a|b\n", size),
        "deep lists": "".join("  " * depth + "- a\n" for depth in range(round(size**0.5))),
        "lists on one line": _times("- ", size),
        "numbers on one line": _times("1. ", size),
        "many items": _times("- a\n", size),
        "items between blank lines": _times("- a\n\n", size),
        "task lists": _times("- [x] a\n", size),
        "headings": _times("# a\n", size),
        "underlined headings": _times("a\n=\n", size),
        "hashes": _times("#", size),
        "rules": _times("***\n", size),
        "entities": _times("&amp;", size),
        "open entities": _times("&", size),
        "long entities": _times("&#0", size),
        "addresses": _times("http://a.b ", size),
        "open addresses": _times("http://", size),
        "one long address": "http://" + _times("a.", size),
        "addresses with brackets": _times("http://a)", size),
        "angle brackets": _times("<", size),
        "open autolinks": _times("<http://a", size),
        "mail addresses": _times("<a@b.c>", size),
        "comments": _times("<!--", size),
        "backslashes": _times("\\", size),
        "blank lines": _times("\n", size),
        "carriage returns": _times("\r", size),
        "tabs": _times("\t", size),
        "indented code": _times("    a\n\n", size),
        "one long line": _times("a", size),
        "words": _times("a ", size),
        "hard breaks": _times("a  \n", size),
        "open fences": _times("```\n~~~\n", size),
        "many code blocks": _times("```c\nint a = 1;\n```\n", size),
        "a fence of fences": "````\n" + _times("```\n", size),
        "surrogates and emoji": _times("\U0001f600\u202e", size),
        "colons": _times(":", size),
        "references": _times("[a]: b\n", size),
        "references that are used": _times("[a]: b\n", size // 2) + _times("[a]", size // 2),
    }


def _backticks(size: int) -> str:
    pieces, length, number = [], 0, 1
    while length < size:
        pieces.append("`" * number + " ")
        length += number + 1
        number += 1
    return "".join(pieces)


MARKDOWN = 2_000_000


def _markdown(name: str) -> Attack:
    async def run(a: Attacker) -> Attacking:
        text = markdowns(a.many(MARKDOWN, 100_000))[name]
        return a.repeat([a.request("POST", "/render", {"text": text})], connections=3)

    return run


for name in markdowns(100):
    attack("Markdown", name, known=name in ("nested quotes", "open brackets", "emphasis"))(_markdown(name))


@attack("Markdown", "messages that are shown")
async def _(a: Attacker) -> Attacking:
    texts = list(markdowns(a.many(200_000, 20_000)).values())
    conversation_id = await a.new_conversation(*(text[:200_000] for text in texts if text.strip() and "\0" not in text))
    return a.repeat([a.request("GET", f"/conversations/{conversation_id}/messages?render=true")], connections=3)


# ---------------------------------------------------------------------------------------------------- code and formulas

SLOW = lexing.fenced("c", "x" + " " * 19_800 + "!")


@attack("code", "C: a name and spaces", known=True)
async def _(a: Attacker) -> Attacking:
    return a.repeat([a.request("POST", "/render", {"text": SLOW})], connections=2)


# A block is given up after 2 s, a text after three such blocks: what happens then shows later.
GIVEN_UP_SECONDS = 12.0


@attack("code", "slow blocks and many short ones")
async def _(a: Attacker) -> Attacking:
    a.least_seconds = GIVEN_UP_SECONDS
    texts = [SLOW * 3 + short * count for count in (10_000, 30_000) for short in ("a\n\n", "***\n", "- a\n\n***\n")]
    return a.repeat([a.request("POST", "/render", {"text": text}) for text in texts], connections=3)


@attack("code", "as many slow blocks as there is room for")
async def _(a: Attacker) -> Attacking:
    a.least_seconds = GIVEN_UP_SECONDS
    return a.repeat([a.request("POST", "/render", {"text": SLOW * a.many(90, 20)})], connections=6)


@attack("code", "slow messages and many short ones")
async def _(a: Attacker) -> Attacking:
    a.least_seconds = GIVEN_UP_SECONDS
    if "slow" not in a.others:
        whole = made(a.many(50_000, 5_000), title="slowlist")
        for number, message in enumerate(whole["messages"]):
            message["content"] = SLOW + str(number) if number < 4 else f"message {number}"
        await a.bring(whole)
        a.others["slow"] = str(await a.find("slowlist"))
    return a.repeat([a.request("GET", f"/conversations/{a.others['slow']}/messages?render=true")], connections=3)


@attack("code", "C: a message that is shown", known=True)
async def _(a: Attacker) -> Attacking:
    conversation_id = await a.new_conversation("Look:\n\n" + SLOW)
    return a.repeat([a.request("GET", f"/conversations/{conversation_id}/messages?render=true")], connections=2)


def _code(language: str) -> Attack:
    async def run(a: Attacker) -> Attacking:
        inputs = lexing.inputs(language)
        texts = [lexing.fenced(language, code) for code in inputs[:: max(1, round(0.1 / a.scale))]]
        many = "\n".join(texts[:90])  # 1.8 MB
        return a.repeat([a.request("POST", "/render", {"text": text}) for text in (many, *texts)], connections=3)

    return run


for language in sorted(markdown.LANGUAGES):
    attack("code", language)(_code(language))


def formulas(size: int = markdown.MAX_FORMULA_CHARACTERS) -> list[str]:
    """TeX that is hard to read."""
    bits = (
        "{", "}", "x^", "x_", "\\sqrt{", "\\frac{", "\\frac", "\\left(", "\\left(\\right)", "\\text{", "\\begin{matrix}", "&", "\\\\",
        "\\hat", "\\hat{", "x'", "'", "\\binom", "\\overline{", "\\color{red}{", "\\operatorname{", "\\int_", "\\sum^", "\\", "[", "x",
        "1", "\\begin{array}{", "\\begin{cases}1&", "\\mathbb{", "\\unicode{x3C}", "\\,", "~", "\\operatorname{\\,", "\\boxed{", "1.1.",
    )  # fmt: skip
    return [_times(bit, size) for bit in bits] + [
        _times(bit, size // 2) + "x" + "}" * (size // 2 // len(bit)) for bit in bits if bit.endswith("{")
    ]


@attack("formulas", "each by itself")
async def _(a: Attacker) -> Attacking:
    texts = [f"$$\n{formula}\n$$" for formula in formulas()]
    return a.repeat([a.request("POST", "/render", {"text": text}) for text in texts], connections=3)


@attack("formulas", "thousands in one text")
async def _(a: Attacker) -> Attacking:
    size = a.many(MARKDOWN, 100_000)
    texts = [_times(f"$$\n{formula}{number}\n$$\n\n", size) for number, formula in enumerate(formulas())]
    texts += ["".join(f"${formula[:100]}{number}$ " for number in range(size // 100)) for formula in formulas()]
    return a.repeat([a.request("POST", "/render", {"text": text}) for text in texts], connections=3)


# ---------------------------------------------------------------------------------------------------- searches


async def _searched(a: Attacker) -> None:
    """Long messages of the same few words, once."""
    if "searched" not in a.others:
        a.others["searched"] = "yes"
        for place, question in enumerate(("a " * 26_000, "ab cd ef " * 5_000, "\u4e00\u4e8c " * 17_000, "a" * 52_000)):
            count = a.many(200, 20) // (1 if place == 0 else 4)
            await a.bring(made(count, question=question, title=f"searched{place}"))


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


def _search(query: str) -> Attack:
    async def run(a: Attacker) -> Attacking:
        await _searched(a)
        encoded = "".join(f"%{byte:02x}" for byte in query[:1000].encode())
        limits = [a.request("GET", f"/search?limit={limit}&q={encoded}") for limit in (1, 50, 200)]
        return a.repeat(limits, connections=3)

    return run


for name, query in SEARCHES.items():
    attack("searches", name, known=name in ("a long phrase", "the same letter 16 times"))(_search(query))


@attack("searches", "titles")
async def _(a: Attacker) -> Attacking:
    await a.bring(*(made(0, title="a%_" * 60) for _ in range(a.many(20_000, 2000))))
    queries = ("a", "%25", "_" * 500, "a%25" * 300, "\u0130" * 300, "%c3%9f" * 300)
    return a.repeat(
        [a.request("GET", f"/conversations?q={query.encode('latin-1', 'replace').decode()}") for query in queries]
    )


# ---------------------------------------------------------------------------------------------------- imports


IMPORT_SECONDS = 8.0  # of attack: what a file does shows when it has been read


def repeated(data: bytes, copies: int) -> bytes:
    """A zip whose members are all the same compressed bytes, each with its own entry."""
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


def _imports(a: Attacker, files: Iterable[bytes], connections: int = 6) -> Attacking:
    a.least_seconds = IMPORT_SECONDS * a.scale
    requests = [
        a.request("POST", "/import", file, Content_Type="application/zip" if file[:2] == b"PK" else "application/json")
        for file in files
    ]
    return a.repeat(requests, connections)


@attack("imports", "a zip that unpacks to gigabytes", known=True)
async def _(a: Attacker) -> Attacking:
    member = b"[" + b" " * 60_000_000 + b"]"
    return _imports(a, [repeated(member, a.many(500, 50))])


@attack("imports", "zips of odd JSON")
async def _(a: Attacker) -> Attacking:
    size = a.many(60_000_000, 6_000_000)
    fillings = (
        b"[" * size,
        b'{"a":' * (size // 5),
        b'"' + b"\\" * (size - 2) + b'"',
        b"9" * size,
        b"{}," * (size // 3),
    )
    return _imports(a, [repeated(filling, 8) for filling in fillings])


@attack("imports", "odd JSON")
async def _(a: Attacker) -> Attacking:
    return _imports(a, odd_bodies(a.many(50_000_000, 2_000_000)))


@attack("imports", "a zip of thousands of files")
async def _(a: Attacker) -> Attacking:
    return _imports(a, [repeated(b"{}", a.many(60_000, 6_000)), repeated(b"x" * 1000, a.many(60_000, 6_000))])


@attack("imports", "one conversation of 50,000 messages", known=True)
async def _(a: Attacker) -> Attacking:
    a.least_seconds = IMPORT_SECONDS * a.scale
    files = [json.dumps(made(a.many(50_000, 5_000))).encode() for _ in range(4)]
    return a.once([a.request("POST", "/import", file) for file in files])


@attack("imports", "thousands of conversations")
async def _(a: Attacker) -> Attacking:
    files = [json.dumps([made(2) for _ in range(a.many(20_000, 2_000))]).encode() for place in range(3)]
    return _imports(a, files, 3)


@attack("imports", "long messages")
async def _(a: Attacker) -> Attacking:
    texts = ("a " * 99_999, "a" * 199_999, "\u4e00" * 199_999, "".join(f"w{number} " for number in range(30_000)))
    files = [json.dumps(made(a.many(100, 10), question=text)).encode() for place, text in enumerate(texts)]
    return _imports(a, files, 3)


@attack("imports", "many versions of one message")
async def _(a: Attacker) -> Attacking:
    whole = made(a.many(50_000, 5_000))
    for message in whole["messages"]:
        message |= {"parent_id": None, "role": "user"}
    return _imports(a, [json.dumps(whole).encode()], 2)


@attack("imports", "other programs' exports")
async def _(a: Attacker) -> Attacking:
    count = a.many(100_000, 10_000)
    tree = {
        str(n): {"id": str(n), "parent": str(n - 1), "children": [str(n + 1)], "message": None} for n in range(count)
    }
    lmstudio = {"createdAt": 1, "messages": [{"versions": [{}] * 100, "currentlySelected": 0}] * (count // 100)}
    webui = {"chat": {"history": {"messages": {str(n): {"parentId": str(n - 1)} for n in range(count)}}}}
    values = ({"mapping": tree, "current_node": "5"}, lmstudio, webui)
    return _imports(a, [json.dumps(value).encode() for value in values], 3)


@attack("imports", "purging 50,000 messages", known=True)
async def _(a: Attacker) -> Attacking:
    title = f"purged{a.others.setdefault('purged', '0')}"
    await a.bring(made(a.many(50_000, 5_000), title=title))
    conversation_id = await a.find(title)
    return a.once([a.request("DELETE", f"/conversations/{conversation_id}?purge=true")])


# ---------------------------------------------------------------------------------------------------- what is large


async def _large_list(a: Attacker) -> None:
    if "listed" not in a.others:
        a.others["listed"] = "yes"
        await a.bring(*(made(0, title="t" * 150) for _ in range(a.many(100_000, 5_000))))


@attack("large answers", "100,000 conversations")
async def _(a: Attacker) -> Attacking:
    await _large_list(a)
    return a.repeat([a.request("GET", "/conversations")])


@attack("large answers", "100,000 conversations, answers unread")
async def _(a: Attacker) -> Attacking:
    await _large_list(a)
    return a.hold(a.request("GET", "/conversations"), 20, reads=False)


@attack("large answers", "exports")
async def _(a: Attacker) -> Attacking:
    await _large_list(a)
    return a.repeat([a.request("GET", "/export")], connections=8)


@attack("large answers", "exports that are not read")
async def _(a: Attacker) -> Attacking:
    await _large_list(a)
    return a.hold(a.request("GET", "/export"), 30, reads=False)


def _long_conversation(end: str) -> Attack:
    async def run(a: Attacker) -> Attacking:
        if "long" not in a.others:
            await a.bring(made(a.many(50_000, 5_000), title="longlist", question="*a* `b`"))
            a.others["long"] = str(await a.find("longlist"))
        return a.repeat([a.request("GET", f"/conversations/{a.others['long']}/{end}")])

    return run


for end in ("messages", "messages?render=true", "export?format=json", "export"):
    attack("large answers", f"50,000 messages: {end}")(_long_conversation(end))


@attack("large answers", "thousands of versions")
async def _(a: Attacker) -> Attacking:
    conversation_id = await a.new_conversation("Hello?")
    retry = a.request("POST", "/chat/retry", MODEL | {"conversation_id": conversation_id})
    listing = a.request("GET", f"/conversations/{conversation_id}/messages")
    return a.repeat([retry, retry, retry, listing], connections=8)


# ---------------------------------------------------------------------------------------------------- pictures

PNG = b"\x89PNG\r\n\x1a\n"


async def _pictures(a: Attacker) -> str:
    """The path of a conversation with 928 MB of pictures, or a part of it."""
    if "pictured" not in a.others:
        conversation_id = await a.new_conversation()
        picture = {"media_type": "image/png", "data": base64.b64encode(PNG + bytes(2_900_000)).decode()}
        body = json.dumps({"content": "x", "images": [picture] * 8}).encode()
        for _ in range(a.many(40, 4)):
            await a.ask("POST", f"/conversations/{conversation_id}/messages", body)
        a.others["pictured"] = str(conversation_id)
        messages = await a.ask("GET", f"/conversations/{conversation_id}/messages")
        a.others["image_id"] = str(messages[-1]["images"][0]["id"])
    return f"/conversations/{a.others['pictured']}"


@attack("pictures", "sent in messages")
async def _(a: Attacker) -> Attacking:
    picture = {"media_type": "image/png", "data": base64.b64encode(PNG + bytes(2_900_000)).decode()}
    body = json.dumps({"content": "x", "images": [picture] * 8}).encode()
    conversation_id = await a.new_conversation()
    return a.repeat([a.request("POST", f"/conversations/{conversation_id}/messages", body)], connections=3)


@attack("pictures", "sent to the model", known=True)
async def _(a: Attacker) -> Attacking:
    path = await _pictures(a)
    model = {"provider_id": "lmstudio", "model": "qwen2.5-vl-7b-instruct"}
    retry = a.request("POST", "/chat/retry", model | {"conversation_id": int(a.others["pictured"])})
    return a.repeat([a.request("POST", f"{path}/stream", model), retry], connections=2)


@attack("pictures", "exported as JSON", known=True)
async def _(a: Attacker) -> Attacking:
    path = await _pictures(a)
    return a.repeat([a.request("GET", f"{path}/export?format=json")], connections=2)


@attack("pictures", "exports that are not read")
async def _(a: Attacker) -> Attacking:
    path = await _pictures(a)
    return a.hold(a.request("GET", f"{path}/export?format=json"), 4, reads=False)


@attack("pictures", "downloads that are not read")
async def _(a: Attacker) -> Attacking:
    await _pictures(a)
    return a.hold(a.request("GET", f"/images/{a.others['image_id']}"), 60, reads=False)


# ---------------------------------------------------------------------------------------------------- signing in


@attack("signing in", "1,000 logins from 1,000 addresses", known=True)
async def _(a: Attacker) -> Attacking:
    def login(number: int) -> bytes:
        address = f"10.{number // 250}.{number % 250}.7"
        body = {"username": f"user{number % 50}", "password": "not the right one"}
        return a.stranger("POST", "/auth/login", body, X_Forwarded_For=address)

    return a.repeat([login(number) for number in range(1000)], connections=a.many(1000, 200))


@attack("signing in", "as the second user, from 1,000 addresses")
async def _(a: Attacker) -> Attacking:
    def login(number: int) -> bytes:
        body = {"username": "carol", "password": "not the right one"}
        return a.stranger("POST", "/auth/login", body, X_Forwarded_For=f"10.9.{number // 250}.{number % 250}")

    return a.repeat([login(number) for number in range(1000)], connections=a.many(1000, 200))


@attack("signing in", "from many addresses of one network")
async def _(a: Attacker) -> Attacking:
    def login(number: int) -> bytes:
        body = {"username": "mallory", "password": "x" * 1000}
        return a.stranger("POST", "/auth/login", body, X_Forwarded_For=f"2001:db8::{number:x}")

    return a.repeat([login(number) for number in range(1000)], connections=a.many(300, 60))


@attack("signing in", "registrations and set-ups")
async def _(a: Attacker) -> Attacking:
    def guess(number: int) -> bytes:
        path = ("/auth/register", "/admin/bootstrap", "/auth/link")[number % 3]
        return a.stranger("POST", path, BODIES[path], X_Forwarded_For=f"10.8.{number // 250}.{number % 250}")

    return a.repeat([guess(number) for number in range(1000)], connections=a.many(300, 60))


@attack("signing in", "changes of one's own password")
async def _(a: Attacker) -> Attacking:
    return a.repeat([a.request("POST", "/auth/password", BODIES["/auth/password"])], connections=a.many(100, 20))


# ---------------------------------------------------------------------------------------------------- a model server

BLOCK = 2000  # events that are written at once


def _blocks(a: Attacker, data: bytes, total: int = 100_000_000) -> list[Step]:
    """The same events over and over, so many bytes in all in a release."""
    return [data] * max(1, a.many(total) // len(data))


MODEL_SERVERS: dict[str, Callable[[Attacker], list[Step]]] = {
    "reasoning and content by turns, a character each": lambda a: _blocks(a, (reasoning("a") + says("b")) * BLOCK),
    "a character at a time": lambda a: _blocks(a, says("a") * BLOCK),
    "a character in a packet": lambda a: [split(1), *_blocks(a, says("a") * BLOCK)],
    "comments": lambda a: _blocks(a, b": x\n\n" * BLOCK * 10),
    "colons": lambda a: _blocks(a, b":\n" * BLOCK * 10),
    "blank lines": lambda a: _blocks(a, b"\n" * BLOCK * 10),
    "empty events": lambda a: _blocks(a, b"data:\n\n" * BLOCK * 10),
    "events without choices": lambda a: _blocks(a, b"data: {}\n\n" * BLOCK * 10),
    "events that are not JSON": lambda a: _blocks(a, b"data: x\n\n" * BLOCK * 10),
    "empty deltas": lambda a: _blocks(a, chunk({}) * BLOCK),
    "event names": lambda a: _blocks(a, b"event: x\n" * BLOCK * 10),
    "data lines of one event": lambda a: _blocks(a, b"data: x\n" * BLOCK * 10),
    "changes of the model": lambda a: _blocks(a, b"".join(says("a", model=f"m{number}") for number in range(BLOCK))),
    "usage again and again": lambda a: _blocks(
        a, b"".join(event({"choices": [], "usage": {"prompt_tokens": n, "completion_tokens": n}}) for n in range(BLOCK))
    ),
    "progress again and again": lambda a: _blocks(
        a, b"".join(event({"prompt_progress": {"processed": n, "total": BLOCK}}) for n in range(BLOCK))
    ),
    "a trailer that never ends": lambda a: [says("a"), wire(b"0\r\n"), *[wire(b"a: b\r\n" * 20_000)] * 2000],
    "a head that never ends": lambda a: [wire(b"HTTP/1.1 200 OK\r\n"), *[wire(b"a: b\r\n" * 20_000)] * 2000],
    "a status line that never ends": lambda a: [wire(b"HTTP/1.1 200 "), *[wire(b"a" * 100_000)] * 2000],
    "a chunk extension that never ends": lambda a: [headers(), wire(b"1;"), *[wire(b"a" * 100_000)] * 2000],
    "chunks of one byte": lambda a: [headers(), *[wire(b"1\r\nx\r\n" * 20_000)] * 2000],
    "a line that never ends": lambda a: [b"data: ", *[b"a" * 100_000] * 3000],
    "one delta of 1 MB": lambda a: _blocks(a, says("a " * 500_000)),
    "deltas of many lines": lambda a: _blocks(a, says("\n" * 100_000)),
    "deltas of escapes": lambda a: _blocks(
        a, b'data: {"choices":[{"delta":{"content":"' + b"\\ud800" * 100_000 + b'"}}]}\n\n'
    ),
    "deep JSON": lambda a: _blocks(a, b"data: " + b"[" * 500_000 + b"\n\n" + b"data: " + b'{"a":' * 100_000 + b"\n\n"),
    "numbers of a million digits": lambda a: _blocks(
        a, b'data: {"usage":{"prompt_tokens":' + b"9" * 1_000_000 + b"}}\n\n"
    ),
    "a compressed stream": lambda a: [
        headers(content_encoding="gzip"),
        *_blocks(a, _gzip(says("a") * BLOCK * 20), 30_000_000),
    ],
    "zeros, compressed": lambda a: [headers(content_encoding="gzip"), _gzip(bytes(300_000_000))],
    "a length of gigabytes": lambda a: [
        wire(b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n"),
        *[wire(b"a" * 100_000)] * 3000,
    ],
}


def _gzip(data: bytes) -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    return packer.compress(data) + packer.flush()


def _model_server(script: Callable[[Attacker], list[Step]]) -> Attack:
    async def run(a: Attacker) -> Attacking:
        return await a.generate([*script(a), finish("stop"), DONE])

    return run


for name, script in MODEL_SERVERS.items():
    first = ("reasoning and content", "a trailer", "comments", "empty events", "changes of")
    attack("model server", name, known=name.startswith(first))(_model_server(script))


def errors(size: int = 1_000_000) -> list[str]:
    words = (
        "model ", "context ", "context_length ", "n_ctx: ", "not supported ", "not support", "not a", " ", "a", "1", "the first ",
        "tokens (", "requested ", "model length of ", "api ", "no model ", "model\n", "invalid model identifier", "context length of ",
        "<", "\u202e", "queue ", "too many ", "\\", "failed to ", "sk-", "no models are currently ",
    )  # fmt: skip
    return [_times(word, size) for word in words]


def _failing(as_status: bool) -> Attack:
    async def run(a: Attacker) -> Attacking:
        conversations = [await a.new_conversation("Hello?") for _ in range(4)]
        scripts: list[Step] = [
            status(400, {"error": {"message": text}}) if as_status else error(text) for text in errors()
        ]
        for step in scripts * 20:
            a.upstream.enqueue(step)
        return a.repeat([a.request("POST", f"/conversations/{number}/stream", MODEL) for number in conversations])

    return run


attack("model server", "an error of 1 MB in the stream", known=True)(_failing(False))
attack("model server", "an error of 1 MB in place of it")(_failing(True))


@attack("model server", "answers that are hard to show")
async def _(a: Attacker) -> Attacking:
    texts = list(markdowns(a.many(1_000_000, 100_000)).values())
    conversations = [await a.new_conversation("Hello?") for _ in range(4)]
    for text in texts * 3:
        a.upstream.enqueue(says(text), finish("stop"), DONE)
    paths = [f"/conversations/{number}" for number in conversations]
    streams = [a.request("POST", f"{path}/stream", MODEL) for path in paths]
    shown = [a.request("GET", f"{path}/messages?render=true") for path in paths]
    again = [a.request("POST", "/chat/retry", MODEL | {"conversation_id": number}) for number in conversations]
    return a.repeat([request for four in zip(streams, shown, again, shown, strict=True) for request in four], 3)


@attack("model server", "hundreds of readers of one answer")
async def _(a: Attacker) -> Attacking:
    conversation_id = await a.new_conversation("Hello?")
    a.upstream.enqueue(*_blocks(a, says("a") * 50, 2_000_000), *[split(1)] * 2, *_blocks(a, says("a") * 50, 20_000_000))
    retry = a.request("POST", "/chat/retry", MODEL | {"conversation_id": conversation_id})
    stream = a.request("POST", f"/conversations/{conversation_id}/stream", MODEL)

    async def run() -> None:
        await asyncio.gather(a.repeat([stream], a.many(500, 100)), a.repeat([retry], 1))

    return run()


@attack("model server", "readers that do not read")
async def _(a: Attacker) -> Attacking:
    conversation_id = await a.new_conversation("Hello?")
    a.upstream.enqueue(*_blocks(a, says("a" * 100) * 50, 20_000_000))
    return a.hold(a.request("POST", f"/conversations/{conversation_id}/stream", MODEL), a.many(200, 60), reads=False)


def _catalogue(body: Callable[[Attacker], bytes]) -> Attack:
    async def run(a: Attacker) -> Attacking:
        for path in ("/api/v1/models", "/v1/models"):
            for _ in range(100):
                a.upstream.enqueue(status(200, body(a)), path=path)
        paths = ("/providers", "/providers/lmstudio/models", "/providers/lmstudio/health")
        return a.repeat([a.request("GET", path) for path in paths])

    return run


LISTS: dict[str, Callable[[Attacker], bytes]] = {
    "a list of 100,000 models": lambda a: json.dumps(
        {"models": [{"key": f"m{n}", "type": "llm", "loaded_instances": []} for n in range(a.many(100_000, 20_000))]}
    ).encode(),
    "a list of 50 MB": lambda a: b'{"models":[' + b" " * a.many(50_000_000, 10_000_000) + b"]}",
    "a list of brackets": lambda a: b"[" * 5_000_000,
    "a model with a name of 5 MB": lambda a: json.dumps(
        {"models": [{"key": "a" * 5_000_000, "display_name": "b" * 5_000_000, "type": "llm", "loaded_instances": []}]}
    ).encode(),
}
for name, body in LISTS.items():
    attack("model server", name)(_catalogue(body))

assert CHAT  # the default path of a script
