"""Mixed load and faults against one Fireside for as long as is asked for: what it holds must not grow, what it took must be there.

python -m tests.trust.soak 600
"""

import asyncio
import contextlib
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from ..browser import NO_ENGINE, Fireside
from ..live import PASSWORD, Person, parse
from ..upstream import DONE, Gate, Step, Upstream, finish, hang, pause, reset, status, usage
from ..upstream import text as says
from . import Figures

PEOPLE = 4
CLIENTS = 12
MODEL = {"provider_id": "lmstudio", "model": "llama-3.2-3b-instruct"}
DECLARED = (502, 503)
IDLE_CHILDREN = 6  # descriptors of two sandbox children that wait for work
ROUNDS = 4  # of work, with a rest after each
GROWTH_MB = 8.0  # in the second half: caches fill, and the heap is never quite the same
WAL_MB = 70.0  # journal_size_limit, and what one transaction adds


class Pace(Gate):
    """A gate that opens by itself, after the time that a model needs for a word."""

    async def passed(self) -> None:
        await asyncio.sleep(0.004)


@dataclass
class Use:
    """What people do, and what they were promised."""

    fireside: Fireside
    upstream: Upstream
    dice: random.Random
    kept: dict[tuple[int, int], dict[int, str]] = field(default_factory=dict)  # (person, conversation): its questions
    done: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    stopping: bool = False

    async def client(self, number: int, people: list[httpx.Client]) -> None:
        whose = number % PEOPLE
        keys = {"X-CSRF-Token": people[whose].headers["X-CSRF-Token"]}
        async with Person(
            base_url=self.fireside.url, cookies=people[whose].cookies, headers=keys, timeout=60
        ) as person:
            person.event_hooks = {"response": [self._look]}
            deeds = (self.ask, self.ask, self.leave, self.cancel, self.read, self.tidy, self.annoy, self.export)
            while not self.stopping:
                deed = self.dice.choice(deeds)
                try:
                    await deed(person, whose)
                    self.done[deed.__name__] += 1
                except Refused:
                    self.done["refused"] += 1
                except httpx.RemoteProtocolError:
                    self.done["cut off"] += 1
                except Exception as error:
                    self.wrong.append(f"{deed.__name__}: {error!r}")

    async def _look(self, response: httpx.Response) -> None:
        self.statuses[response.status_code] += 1
        if response.status_code >= 500 and response.status_code not in DECLARED:
            self.wrong.append(f"{response.request.method} {response.request.url.path}: {response.status_code}")

    async def question(self, person: Person, whose: int) -> int:
        mine = [conversation for owner, conversation in self.kept if owner == whose]
        if len(mine) < 5 or self.dice.random() < 0.2:
            conversation_id: int = taken(await person.post("/conversations", json={}))["id"]
            self.kept[whose, conversation_id] = {}
        else:
            conversation_id = self.dice.choice(mine)
        content = f"Question {self.dice.random()} " + "word " * self.dice.randrange(300)
        answer = await person.post(f"/conversations/{conversation_id}/messages", json={"content": content})
        if answer.status_code == 200 and (whose, conversation_id) in self.kept:
            self.kept[whose, conversation_id][answer.json()["message_id"]] = content
        taken(answer)
        return conversation_id

    async def ask(self, person: Person, whose: int) -> None:
        await self._stream(person, await self.question(person, whose), most=10**9)

    async def leave(self, person: Person, whose: int) -> None:
        await self._stream(person, await self.question(person, whose), most=self.dice.randrange(1, 12))

    async def cancel(self, person: Person, whose: int) -> None:
        await self._stream(person, await self.question(person, whose), most=10**9, cancel=True)

    async def _stream(self, person: Person, conversation_id: int, most: int, cancel: bool = False) -> None:
        self._script()
        async with person.stream("POST", f"/conversations/{conversation_id}/stream", json=MODEL) as response:
            if response.status_code != 200:
                raise Refused
            async for event in parse(response):
                most -= 1
                if cancel and event.event == "delta":
                    await person.post(f"/chat/cancel/{event.data['generation_id']}")
                    cancel = False
                if most < 0:
                    return

    def _script(self) -> None:
        """Now and then the model server fails."""
        words: list[Step] = [step for n in range(self.dice.randrange(5, 40)) for step in (says(f"{n} "), pause(Pace()))]
        match self.dice.randrange(12):
            case 0:
                self.upstream.enqueue(*words[:8], reset())
            case 1:
                self.upstream.enqueue(status(500, "no"))
            case 2:
                self.upstream.enqueue(*words[:4], hang())
            case 3:
                self.upstream.enqueue(status(400, {"error": "context overflow"}))
            case _:
                self.upstream.enqueue(*words, finish("stop"), usage(9, 9), DONE)

    async def read(self, person: Person, whose: int) -> None:
        for path in (
            "/conversations",
            "/search?q=word",
            "/providers",
            "/usage",
            "/",
            "/static/app.js",
            "/openapi.json",
        ):
            taken(await person.get(path), json=False)
        for owner, conversation_id in list(self.kept)[:3]:
            answer = await person.get(f"/conversations/{conversation_id}/messages?render=true")
            if owner != whose and answer.status_code != 404:
                self.wrong.append(f"another's conversation: {answer.status_code}")

    async def tidy(self, person: Person, whose: int) -> None:
        """So that it is the program that would grow, not what it keeps."""
        mine = [conversation for owner, conversation in self.kept if owner == whose]
        if len(mine) > 12:
            answer = await person.delete(f"/conversations/{mine[0]}?purge=true")
            if answer.status_code in (200, 404):
                self.kept.pop((whose, mine[0]), None)
            taken(answer)

    async def export(self, person: Person, whose: int) -> None:
        taken(await person.get("/export"), json=False)

    async def annoy(self, person: Person, whose: int) -> None:
        """What no page would send."""
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
        """Every few seconds for up to half a second, at least twice in a round of so many seconds."""
        pid, limit = self.fireside.process.pid, resource.RLIMIT_FSIZE
        _, most = resource.prlimit(pid, limit)
        while not self.stopping:
            await asyncio.sleep(min(self.dice.uniform(2, 6), seconds / 4))
            resource.prlimit(pid, limit, (1, most))
            await asyncio.sleep(min(0.5, seconds / 8))
            resource.prlimit(pid, limit, (most, most))


class Refused(Exception):
    """With a status that may be: it is counted where the answer comes in."""


def taken(answer: httpx.Response, json: bool = True) -> Any:
    if answer.status_code != 200:
        raise Refused
    return answer.json() if json else None


@dataclass
class Sample:
    memory: float  # MB
    files: int
    wal: float  # MB


def sample(fireside: Fireside) -> Sample:
    process = Path(f"/proc/{fireside.process.pid}")
    pages = int((process / "statm").read_text().split()[1])
    wal = fireside.data_dir / "fireside.db-wal"
    return Sample(pages * resource.getpagesize() / 1e6, len(list((process / "fd").iterdir())), wal.stat().st_size / 1e6)


async def _soak(seconds: int, fireside: Fireside, upstream: Upstream) -> Figures:
    ann = fireside.first()
    people = [ann, *(fireside.join(ann, f"user{number}") for number in range(PEOPLE - 1))]
    for person in people:
        person.get("/conversations")
    before = sample(fireside)
    use = Use(fireside, upstream, random.Random(1))
    busy: list[Sample] = []
    quiet = [await _round(use, seconds / ROUNDS, people, before, busy) for _ in range(ROUNDS)]
    return _judge(use, before, busy, quiet, people)


async def _round(use: Use, seconds: float, people: list[httpx.Client], before: Sample, busy: list[Sample]) -> Sample:
    """Everybody at work for so long, with samples added to `busy`; then what is held when all have ended.

    Growth is judged by what is held at rest: one login alone has 46 MiB while it lasts.
    """
    use.stopping = False
    using = [asyncio.create_task(use.client(number, people)) for number in range(CLIENTS)]
    filling = asyncio.create_task(use.fill_the_disk(seconds))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        await asyncio.sleep(min(1.0, seconds / 10))
        busy.append(sample(use.fireside))
    use.stopping = True
    await asyncio.gather(*using, filling)
    for _ in range(1000):  # what is closed is closed in its own time
        rest = sample(use.fireside)
        if rest.files <= before.files + IDLE_CHILDREN:
            return rest
        await asyncio.sleep(0.02)
    use.wrong.append(f"{rest.files - before.files} descriptors are left open")
    return rest


def _judge(use: Use, before: Sample, busy: list[Sample], quiet: list[Sample], people: list[httpx.Client]) -> Figures:
    figures = Figures(sum(use.statuses.values()), use.wrong)
    grown = quiet[-1].memory - quiet[ROUNDS // 2 - 1].memory
    if grown > GROWTH_MB:
        figures.wrong.append(f"the memory at rest has grown by {grown:.1f} MB in the second half")
    wal = max(one.wal for one in busy)
    if wal > WAL_MB:
        figures.wrong.append(f"the log of the database has grown to {wal:.1f} MB")
    lost = [
        message_id
        for (whose, conversation_id), questions in use.kept.items()
        for message_id, content in questions.items()
        if content not in _contents(people[whose], conversation_id)
    ]
    if lost:
        figures.wrong.append(f"messages that were acknowledged are lost: {lost[:10]}")
    counts = ", ".join(f"{count:,} x {code}" for code, count in sorted(use.statuses.items()))
    kept = sum(map(len, use.kept.values()))
    figures.more = (
        f"{counts}; memory at rest {quiet[-1].memory:.0f} MB, {grown:+.1f} in the second half, {max(one.memory for one in busy):.0f} "
        f"at most; descriptors {before.files} before, {max(one.files for one in busy)} at most, {quiet[-1].files} after; "
        f"WAL {wal:.1f} MB at most; {kept:,} questions looked for"
    )
    return figures


def _contents(person: httpx.Client, conversation_id: int) -> set[str]:
    """Of all versions: the active path is only one of them."""
    exported = person.get(f"/conversations/{conversation_id}/export?format=json").json()
    return {message["content"] for message in exported["messages"]}


def prove(size: int) -> Figures:
    """`size`: seconds."""
    with (
        tempfile.TemporaryDirectory() as name,
        Upstream() as upstream,
        Fireside(Path(name) / "data", NO_ENGINE, lmstudio_url=upstream.url, between_tokens_seconds="2") as fireside,
    ):
        return asyncio.run(_soak(size, fireside, upstream))


if __name__ == "__main__":
    figures = prove(int(sys.argv[1]) if len(sys.argv) > 1 else 600)
    print(f"{figures.cases:,} requests: {figures.more}")
    print("\n".join(figures.wrong[:20]) or "Nothing was wrong.")
    sys.exit(bool(figures.wrong))
