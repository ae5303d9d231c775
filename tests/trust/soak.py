"""Stability: mixed load and faults against one service. Its memory and descriptors must not grow, and acknowledged messages must be kept.

python -m tests.trust.soak [SECONDS]
"""

import asyncio
import contextlib
import random
import resource
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from ..browser import Fireside
from ..live import PASSWORD, Person, parse
from ..upstream import DONE, Pace, Step, Upstream, finish, hang, pause, reset, status, usage
from ..upstream import text as says
from ..witness import DECLARED, MODEL
from . import Figures, fireside_process

USERS = 4
CLIENTS = 12
IDLE_CHILDREN_DESCRIPTORS = 6  # of two sandbox children that wait for work
ROUNDS = 4  # of load, each followed by a rest
MAX_GROWTH_MB = 8.0  # of memory at rest in the second half; caches fill
MAX_WAL_MB = 70.0  # journal_size_limit and the largest transaction
UNLIMITED = 10**9
WORD_SECONDS = 0.004  # that the model needs for a word


class Refused(Exception):
    """A request got a status other than 200."""


def accepted(answer: httpx.Response) -> httpx.Response:
    if answer.status_code != 200:
        raise Refused
    return answer


@dataclass
class Load:
    """Clients that repeat random actions, and the messages that the service acknowledged."""

    fireside: Fireside
    upstream: Upstream
    dice: random.Random
    acknowledged: dict[tuple[int, int], dict[int, str]] = field(default_factory=dict)  # by user and conversation
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    stopping: bool = False

    async def client(self, number: int, users: list[httpx.Client]) -> None:
        user = number % USERS
        headers = {"X-CSRF-Token": users[user].headers["X-CSRF-Token"]}
        actions = (self.ask, self.ask, self.leave, self.cancel, self.read, self.purge, self.send_invalid, self.export)
        async with Person(
            base_url=self.fireside.url, cookies=users[user].cookies, headers=headers, timeout=60
        ) as person:
            person.event_hooks = {"response": [self._count]}
            while not self.stopping:
                action = self.dice.choice(actions)
                try:
                    await action(person, user)
                except (Refused, httpx.RemoteProtocolError):  # `_count` judges the status; a full disk cuts exports off
                    pass
                except Exception as error:
                    self.wrong.append(f"{action.__name__}: {error!r}")

    async def _count(self, response: httpx.Response) -> None:
        self.statuses[response.status_code] += 1
        if response.status_code >= 500 and response.status_code not in DECLARED:
            self.wrong.append(f"{response.request.method} {response.request.url.path}: {response.status_code}")

    def _conversations(self, user: int) -> list[int]:
        return [conversation for owner, conversation in self.acknowledged if owner == user]

    async def _question(self, person: Person, user: int) -> int:
        own = self._conversations(user)
        if len(own) < 5 or self.dice.random() < 0.2:
            conversation_id: int = accepted(await person.post("/conversations", json={})).json()["id"]
            self.acknowledged[user, conversation_id] = {}
        else:
            conversation_id = self.dice.choice(own)
        content = f"Question {self.dice.random()} " + "word " * self.dice.randrange(300)
        answer = accepted(await person.post(f"/conversations/{conversation_id}/messages", json={"content": content}))
        if (user, conversation_id) in self.acknowledged:  # else another client has purged it
            self.acknowledged[user, conversation_id][answer.json()["message_id"]] = content
        return conversation_id

    async def ask(self, person: Person, user: int) -> None:
        await self._stream(person, await self._question(person, user), UNLIMITED)

    async def leave(self, person: Person, user: int) -> None:
        await self._stream(person, await self._question(person, user), self.dice.randrange(1, 12))

    async def cancel(self, person: Person, user: int) -> None:
        await self._stream(person, await self._question(person, user), UNLIMITED, cancel=True)

    async def _stream(self, person: Person, conversation_id: int, events: int, cancel: bool = False) -> None:
        self._script_answer()
        async with person.stream("POST", f"/conversations/{conversation_id}/stream", json=MODEL) as response:
            async for event in parse(accepted(response)):
                events -= 1
                if cancel and event.event == "delta":
                    await person.post(f"/chat/cancel/{event.data['generation_id']}")
                    cancel = False
                if events < 0:
                    return

    def _script_answer(self) -> None:
        """Let the model server answer, or fail in one of three cases."""
        words: list[Step] = [
            step for n in range(self.dice.randrange(5, 40)) for step in (says(f"{n} "), pause(Pace(WORD_SECONDS)))
        ]
        failures: tuple[tuple[Step, ...], ...] = (
            (*words[:8], reset()),
            (status(500, "no"),),
            (*words[:4], hang()),
            (status(400, {"error": "context overflow"}),),
        )
        number = self.dice.randrange(3 * len(failures))
        ended = (*words, finish("stop"), usage(9, 9), DONE)
        self.upstream.enqueue(*(failures[number] if number < len(failures) else ended))

    async def read(self, person: Person, user: int) -> None:
        paths = "/conversations /search?q=word /providers /usage / /static/app.js /openapi.json"
        for path in paths.split():
            accepted(await person.get(path))
        for owner, conversation_id in list(self.acknowledged)[:3]:
            answer = await person.get(f"/conversations/{conversation_id}/messages?render=true")
            if owner != user and answer.status_code != 404:
                self.wrong.append(f"the conversation of another user: {answer.status_code}")

    async def purge(self, person: Person, user: int) -> None:
        """Keep the database small, so that only the process could grow."""
        own = self._conversations(user)
        if len(own) > 12:
            answer = await person.delete(f"/conversations/{own[0]}?purge=true")
            if answer.status_code in (200, 404):
                self.acknowledged.pop((user, own[0]), None)

    async def export(self, person: Person, user: int) -> None:
        accepted(await person.get("/export"))

    async def send_invalid(self, person: Person, user: int) -> None:
        await person.post("/conversations", content=b"{", headers={"Content-Type": "application/json"})
        await person.get("/conversations", headers={"Origin": "https://evil.example"})
        await person.get(f"/conversations/{2**62}")
        if self.dice.random() < 0.2:
            await person.post("/auth/login", json={"username": "ann", "password": PASSWORD + "!"})
        for begin in (b"", b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000, b"POST /import HTTP/1.1\r\nHost: localhost\r\n"):
            _, writer = await asyncio.open_connection("127.0.0.1", self.fireside.port)
            writer.write(begin)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def fill_the_disk(self, seconds: float) -> None:
        """Refuse writes for up to half a second every few seconds, at least twice in a round of `seconds`."""
        pid, limit = self.fireside.process.pid, resource.RLIMIT_FSIZE
        _, most = resource.prlimit(pid, limit)
        while not self.stopping:
            await asyncio.sleep(min(self.dice.uniform(2, 6), seconds / 4))
            resource.prlimit(pid, limit, (1, most))
            await asyncio.sleep(min(0.5, seconds / 8))
            resource.prlimit(pid, limit, (most, most))

    def lost(self, users: list[httpx.Client]) -> list[str]:
        """Return what is wrong with the acknowledged messages."""
        problems = []
        for (user, conversation_id), questions in self.acknowledged.items():
            answer = users[user].get(f"/conversations/{conversation_id}/export?format=json")
            if answer.status_code != 200:
                problems.append(f"conversation {conversation_id}: {answer.text}")
                continue
            contents = {message["content"] for message in answer.json()["messages"]}  # of all versions
            missing = [id for id, content in questions.items() if content not in contents]
            problems += [f"conversation {conversation_id}: messages {missing} are lost"] if missing else []
        return problems


@dataclass
class Sample:
    memory_mb: float
    descriptors: int
    wal_mb: float


def sample(fireside: Fireside) -> Sample:
    process = Path(f"/proc/{fireside.process.pid}")
    memory = int((process / "statm").read_text().split()[1]) * resource.getpagesize()
    wal = (fireside.data_dir / "fireside.db-wal").stat().st_size
    return Sample(memory / 1e6, len(list((process / "fd").iterdir())), wal / 1e6)


async def _round(load: Load, seconds: float, users: list[httpx.Client], before: Sample, busy: list[Sample]) -> Sample:
    """Run all clients, adding samples to `busy`. Return a sample at rest: one login alone takes 46 MiB while it lasts."""
    load.stopping = False
    tasks = [asyncio.create_task(load.client(number, users)) for number in range(CLIENTS)]
    tasks.append(asyncio.create_task(load.fill_the_disk(seconds)))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        await asyncio.sleep(min(1.0, seconds / 10))
        busy.append(sample(load.fireside))
    load.stopping = True
    await asyncio.gather(*tasks)
    for _ in range(1000):  # the service closes its connections a little later
        rest = sample(load.fireside)
        if rest.descriptors <= before.descriptors + IDLE_CHILDREN_DESCRIPTORS:
            return rest
        await asyncio.sleep(0.02)
    load.wrong.append(f"{rest.descriptors - before.descriptors} descriptors are left open")
    return rest


async def _soak(seconds: int, fireside: Fireside, upstream: Upstream) -> Figures:
    ann = fireside.first()
    users = [ann, *(fireside.join(ann, f"user{number}") for number in range(USERS - 1))]
    for user in users:
        user.get("/conversations")
    load, before, busy = Load(fireside, upstream, random.Random(1)), sample(fireside), list[Sample]()
    rests = [await _round(load, seconds / ROUNDS, users, before, busy) for _ in range(ROUNDS)]
    figures = Figures(sum(load.statuses.values()), [*load.wrong, *load.lost(users)])
    growth = rests[-1].memory_mb - rests[ROUNDS // 2 - 1].memory_mb
    if growth > MAX_GROWTH_MB:
        figures.wrong.append(f"the memory at rest grew by {growth:.1f} MB in the second half")
    wal = max(one.wal_mb for one in busy)
    if wal > MAX_WAL_MB:
        figures.wrong.append(f"the WAL grew to {wal:.1f} MB")
    counts = ", ".join(f"{count:,} x {code}" for code, count in sorted(load.statuses.items()))
    figures.more = (
        f"{counts}; memory at rest {rests[-1].memory_mb:.0f} MB, {growth:+.1f} in the second half, at most "
        f"{max(one.memory_mb for one in busy):.0f}; descriptors {before.descriptors} before, at most "
        f"{max(one.descriptors for one in busy)}, {rests[-1].descriptors} after; WAL at most {wal:.1f} MB; "
        f"{sum(map(len, load.acknowledged.values())):,} messages found again"
    )
    return figures


def prove(size: int) -> Figures:
    """`size`: seconds."""
    with fireside_process(between_tokens_seconds="2") as (fireside, upstream):
        return asyncio.run(_soak(size, fireside, upstream))


if __name__ == "__main__":
    figures = prove(int(sys.argv[1]) if len(sys.argv) > 1 else 600)
    print(f"{figures.cases:,} requests: {figures.more}")
    print("\n".join(figures.wrong[:20]) or "Nothing was wrong.")
    sys.exit(bool(figures.wrong))
