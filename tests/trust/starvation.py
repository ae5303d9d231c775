"""Whether one person can stop the others: attacks of every class on the real service while a second user's requests are timed.

The service, the second user (bystander.py) and the attacker are three processes or threads of different priority: the attacker's has
the lowest, as it would run on another computer. What counts is the longest that the second user waited for any answer, less
the longest that the second user's own process was kept from running in that time, which a heartbeat measures. Beside other
programs, such as the tests that CI runs at the same time, the time that the service waited for a processor is left out too.

python -m tests.trust.starvation [--seconds N] [--scale N] [--busy] [CLASS or CLASS:NAME ...]
"""

import argparse
import asyncio
import contextlib
import json
import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from ..browser import NO_ENGINE, Fireside
from ..live import PASSWORD, good
from ..processes import run
from ..upstream import Upstream
from . import Figures, hostile
from .hostile import ATTACKS, KNOWN, Attack, Attacker

TARGET = 0.25  # seconds that the second user waits at most, on a computer that does nothing else
SIGN_IN_TARGET = 1.0  # to sign in: a password's hash alone takes a tenth of that
CI_LENIENCE = 4.0  # times the target, or times the wait without an attack: other tests run at the same time
NOISE = 4  # times the limit: a wait above that is nothing that another program on the computer has caused
PATIENCE = 20.0  # seconds that the service has to come to rest after an attack before it is replaced
PAUSE = 0.04  # seconds between two requests of a lane
SIGN_IN = "POST /auth/login"
SIGN_IN_PAUSE = 0.4
DESCRIPTORS = 1024  # of the service's process, as on many systems
HELD = 1000  # connections
RELEASE_SECONDS = 60  # from which on data has its full size
QUIET_SECONDS = 1.0  # of measuring without an attack
HOLD_SECONDS = 15.0  # of a thousand connections: longer than the service waits for a head
SAMPLE_SECONDS = 0.01
LEAST_SECONDS = 0.15  # that an attack goes on
ADDRESS = {"X-Forwarded-For": "192.168.7.7"}  # of the second user, behind a proxy that is trusted

NORMAL = """\
# A normal answer

Some *words* with `code`, a [link](https://example.org) and $x^2$:

- one
- two

| a | b |
|---|---|
| 1 | 2 |

```python
def f(x: int) -> int:
    return x + 1
```
"""


@dataclass(frozen=True)
class Limits:
    """Seconds that the second user may wait for an answer, and to sign in."""

    answer: float = TARGET
    sign_in: float = SIGN_IN_TARGET

    def times(self, factor: float) -> "Limits":
        return Limits(self.answer * factor, self.sign_in * factor)


class Wait(NamedTuple):
    """An answer to the second user."""

    lane: str
    start: float  # monotonic seconds, the same for all processes
    end: float
    delay: float  # the longest that the second user's process was kept from running in between
    status: int
    queued: float = 0.0  # seconds that the service was ready to run in between and had no processor, on a busy computer

    @property
    def seconds(self) -> float:
        return max(0.0, self.end - self.start - self.delay - self.queued)


@dataclass
class Outcome:
    """What the second user met during one attack."""

    attack: str
    waits: list[Wait]
    memory: int  # bytes of the service and its child processes, at most
    recovered: bool
    statuses: str  # what the attacker was answered, and how often
    problem: str = ""

    def worst(self, sign_in: bool = False) -> Wait:
        waits = [wait for wait in self.waits if (wait.lane == SIGN_IN) == sign_in]
        return max(waits, key=lambda wait: wait.seconds, default=Wait(SIGN_IN, 0, 0, 0, 200))

    @property
    def failed(self) -> list[Wait]:
        return [wait for wait in self.waits if wait.status != 200]

    @property
    def seconds(self) -> tuple[float, float]:
        """The longest waits for an answer and to sign in."""
        return self.worst().seconds, self.worst(sign_in=True).seconds

    def exceeds(self, limits: Limits) -> bool:
        slow = self.seconds[0] > limits.answer or self.seconds[1] > limits.sign_in
        return slow or bool(self.failed) or not self.recovered or bool(self.problem)

    def __str__(self) -> str:
        worst, sign_in = self.worst(), self.worst(sign_in=True)
        text = f"{worst.seconds * 1000:6.0f} ms for {worst.lane} during {self.attack}"
        text += (
            f"; own delay {_ms(worst.delay)}, without a processor {_ms(worst.queued)}, sign-in {_ms(sign_in.seconds)}"
        )
        text += f", {self.memory / 1e6:.0f} MB"
        text += f"; answered {self.statuses}" if self.statuses else ""
        if self.failed:
            text += f"; {len(self.failed)} failed: {sorted({(wait.lane, wait.status) for wait in self.failed})}"
        return (
            text + ("" if self.recovered else "; did not come to rest") + (f"; {self.problem}" if self.problem else "")
        )


class Service(Fireside):
    """A Fireside with few descriptors, its own interpreter, and a proxy that it trusts."""

    def __init__(self, data_dir: Path, upstream: Upstream) -> None:
        super().__init__(
            data_dir,
            NO_ENGINE,
            fresh=True,
            lmstudio_url=upstream.url,
            trusted_proxies="127.0.0.1",
            between_tokens_seconds="2",
        )

    def launch(self, *command: str) -> "subprocess.Popen[str]":
        process = super().launch(*command)
        resource.prlimit(
            process.pid, resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS)
        )  # before it has read its limit
        return process


class Sample(NamedTuple):
    """What the system says of the service at one moment."""

    time: float  # monotonic
    queued: float  # seconds that its main thread was ready to run and had no processor, since it started
    memory: int  # bytes of it and its child processes


class Watch(threading.Thread):
    """Samples of the service until it is closed."""

    def __init__(self, pid: int) -> None:
        super().__init__()
        self.pid = pid
        self.samples: list[Sample] = []
        self._closing = threading.Event()

    def run(self) -> None:
        while not self._closing.wait(SAMPLE_SECONDS):
            with contextlib.suppress(OSError, ValueError, IndexError):
                queued = int(Path(f"/proc/{self.pid}/task/{self.pid}/schedstat").read_text().split()[1]) / 1e9
                self.samples.append(Sample(time.monotonic(), queued, self._memory()))

    def _memory(self) -> int:
        total, waiting = 0, [self.pid]
        for pid in waiting:
            with contextlib.suppress(OSError, ValueError):
                total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
                for thread in Path(f"/proc/{pid}/task").iterdir():
                    waiting += map(int, (thread / "children").read_text().split())
        return total

    def close(self) -> None:
        self._closing.set()
        self.join()

    def queued(self, start: float, end: float) -> float:
        """Seconds that the service waited for a processor in between."""
        before = [sample.queued for sample in self.samples if sample.time <= start][-1:]
        within = [sample.queued for sample in self.samples if start < sample.time <= end + SAMPLE_SECONDS][-1:]
        return within[0] - before[0] if before and within else 0.0

    def memory(self, start: float) -> int:
        return max((sample.memory for sample in self.samples if sample.time >= start), default=0)


class Bystander:
    """The second user: bystander.py in a process of its own, with what it has measured so far."""

    def __init__(self, service: Service, admin: httpx.Client) -> None:
        person = service.join(admin, "bob")
        service.join(admin, "carol")  # signs in all the time: of one account the oldest sessions would end
        person.headers.update(ADDRESS)
        session = _session(person) | ADDRESS | {"Content-Type": "application/json"}
        conversation = _write(person, [NORMAL] * 6)
        lanes: list[dict[str, Any]] = [
            {"name": "GET /auth/me", "path": "/auth/me"},
            {"name": "GET /conversations", "path": "/conversations"},
            {"name": "GET messages", "path": f"/conversations/{conversation}/messages?render=true"},
            {
                "name": "POST messages",
                "method": "POST",
                "path": f"/conversations/{_write(person, [])}/messages",
                "body": json.dumps({"content": "Some words.", "parent_id": None}),
            },
            {
                "name": "POST /render",
                "method": "POST",
                "path": "/render",
                "body": json.dumps({"text": NORMAL + "{n}"}),  # a text that no cache has
            },
            {"name": "GET /search", "path": "/search?q=words"},
            {"name": "GET /health", "path": "/health"},
            {"name": "GET / on a new connection", "path": "/", "fresh": True},
            {
                "name": SIGN_IN,
                "method": "POST",
                "path": "/auth/login",
                "body": json.dumps({"username": "carol", "password": PASSWORD}),
                "headers": ADDRESS | {"Content-Type": "application/json"},
                "pause": SIGN_IN_PAUSE,
            },
        ]
        lanes = [{"method": "GET", "headers": session, "pause": PAUSE} | lane for lane in lanes]
        self.lanes = [lane["name"] for lane in lanes if lane["name"] != SIGN_IN]
        self.waits: list[Wait] = []
        self._changed = threading.Condition()
        plan = {"port": service.port, "lanes": lanes}
        command = [sys.executable, str(Path(__file__).with_name("bystander.py"))]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(plan))
        self.process.stdin.close()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.waits.append(Wait(*json.loads(line)))
                self._changed.notify_all()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def rests(self, since: float, fast: float) -> bool:
        """Wait until each lane has an answer that took less than `fast` to a request after `since`. Return False if it has none."""

        def calm() -> bool:
            newest = {wait.lane: wait for wait in self.waits[-100:]}
            return all(
                lane in newest and newest[lane].start > since and newest[lane].seconds < fast for lane in self.lanes
            )

        with self._changed:
            return self._changed.wait_for(calm, PATIENCE)

    def met(self, start: float, end: float) -> list[Wait]:
        with self._changed:
            return [
                wait._replace(start=max(start, wait.start))
                for wait in self.waits
                if wait.end > start and wait.start < end
            ]


def _session(person: httpx.Client) -> dict[str, str]:
    cookies = "; ".join(f"{cookie.name}={cookie.value}" for cookie in person.cookies.jar)
    return {"Cookie": cookies, "X-CSRF-Token": person.headers["X-CSRF-Token"]}


def _write(person: httpx.Client, questions: list[str]) -> int:
    conversation_id: int = good(person.post("/conversations", json={}))["id"]
    for question in questions:
        good(person.post(f"/conversations/{conversation_id}/messages", json={"content": question}))
    return conversation_id


@dataclass
class Arena:
    """A service, a second user and an attacker. `renew` replaces all three when an attack has stopped the service for good."""

    folder: Path
    upstream: Upstream
    scale: float
    busy: bool  # the computer runs other programs too
    limits: Limits = Limits()
    number: int = 0
    faults: int = 0  # that the service has logged
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def renew(self) -> None:
        self.close()
        self.number += 1
        self.faults = 0
        self.service = self.stack.enter_context(Service(self.folder / str(self.number), self.upstream))
        admin = self.service.first()
        mallory = self.service.join(admin, "mallory")
        self.bystander = Bystander(self.service, admin)
        self.stack.callback(self.bystander.close)
        self.watch = Watch(self.service.process.pid)
        self.watch.start()
        self.stack.callback(self.watch.close)
        conversation_id = _write(mallory, ["Hello?"])
        mallory.close()
        own = {"conversation_id": str(conversation_id), "name": "app.js", "provider_id": "lmstudio"}
        self.attacker = Attacker(
            self.service.port, _session(mallory), self.upstream, self.scale, conversation_id, others=own
        )
        assert self.bystander.rests(time.monotonic(), CI_LENIENCE * TARGET), (
            "the service does not rest before any attack"
        )

    def close(self) -> None:
        self.stack.close()

    def measure(
        self, name: str, attack: Attack, seconds: float, meanwhile: "Callable[[Arena], str]" = lambda arena: ""
    ) -> Outcome:
        """What the second user meets while this attack goes on, and until the service rests again."""
        attacking = _Attacking(self.attacker, attack, seconds)
        attacking.start()
        problem = meanwhile(self)
        attacking.join()
        ended = time.monotonic()
        rested = self.bystander.rests(ended, self.limits.answer) and self.service.process.poll() is None
        waits = self.bystander.met(attacking.began, time.monotonic())
        if self.busy:
            waits = [wait._replace(queued=self.watch.queued(wait.start, wait.end)) for wait in waits]
        memory = self.watch.memory(attacking.began)
        statuses = ", ".join(
            f"{count} x {status or 'nothing'}" for status, count in self.attacker.statuses.most_common()
        )
        if not rested:
            waits.append(Wait("no answer", ended, time.monotonic(), 0.0, 0))
            self.renew()
        self.upstream.forget()
        faults = self._faults()
        problem = problem or attacking.problem or (f"logged {faults[-1][-500:]}" if faults else "")
        return Outcome(name, waits, memory, rested, statuses, problem)

    def _faults(self) -> list[str]:
        """The traces of exceptions that the service has logged since this was last asked."""
        log = (self.service.data_dir / "fireside.log").read_text("utf-8")
        traces = [entry["trace"] for entry in map(json.loads, log.splitlines()) if "trace" in entry]
        known, self.faults = self.faults, len(traces)
        return traces[known:]


class _Attacking(threading.Thread):
    """An attack with an event loop of its own, in a thread of the lowest priority."""

    def __init__(self, attacker: Attacker, attack: Attack, seconds: float) -> None:
        super().__init__()
        self.attacker, self.attack, self.seconds = attacker, attack, seconds
        self.began = time.monotonic()
        self.problem = ""

    def run(self) -> None:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        asyncio.run(self._run())

    async def _run(self) -> None:
        self.attacker.least_seconds = 0.0
        try:
            attacking = await self.attack(self.attacker)
        except (OSError, AssertionError, ValueError, IndexError) as failure:
            self.problem = f"could not be prepared: {failure!r}"[:300]
            return
        self.began = time.monotonic()
        self.attacker.statuses.clear()
        with contextlib.suppress(TimeoutError, OSError):
            await asyncio.wait_for(attacking, max(self.seconds, self.attacker.least_seconds))


@contextmanager
def _arena(scale: float, busy: bool) -> Iterator[Arena]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (hard, hard)
    )  # the attacker holds a thousand connections in this process
    with tempfile.TemporaryDirectory() as name, Upstream() as upstream:
        os.setpriority(os.PRIO_PROCESS, upstream.native_id, 19)
        arena = Arena(Path(name), upstream, scale, busy)
        try:
            arena.renew()
            yield arena
        finally:
            arena.close()
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            upstream.errors.clear()  # an attack is broken off in the middle of a script


# ---------------------------------------------------------------------------------------------------- connections


def _back_up(arena: Arena) -> str:
    """Run `fireside backup` while the connections are held. Return what went wrong, or an empty string."""
    deadline = time.monotonic() + PATIENCE
    while arena.attacker.opened < HELD and time.monotonic() < deadline:
        time.sleep(0.01)
    target = arena.folder / f"backup-{arena.number}-{time.monotonic_ns()}.db"
    done = run("backup", str(target), data_dir=str(arena.service.data_dir))
    if done.returncode != 0:
        return f"fireside backup ended with {done.returncode}: {done.stderr[-300:]}"
    with contextlib.closing(sqlite3.connect(target)) as copy:
        users = copy.execute("SELECT count(*) FROM users").fetchone()[0]
    return "" if users == 4 else f"the backup has {users} users"


async def _hold(attacker: Attacker) -> hostile.Attacking:
    attacker.opened = 0
    return await hostile.hold_in_every_state(attacker, HELD)


# ---------------------------------------------------------------------------------------------------- the proof


def chosen(count: int) -> list[tuple[str, str]]:
    """So many attacks: first those that once stopped the service, then others, both spread evenly over all classes."""
    others = [attack for attack in ATTACKS if attack not in KNOWN]
    return _spread(KNOWN, count) + _spread(others, max(0, count - len(KNOWN)))


def _spread(attacks: list[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    return attacks if count >= len(attacks) else [attacks[n * len(attacks) // count] for n in range(count)]


def _try(arena: Arena, attacks: list[tuple[str, str]], share: float, lenient: bool) -> Iterator[tuple[Outcome, bool]]:
    """Each attack for so many seconds, with whether it made the second user wait for too long; first none at all."""

    async def nothing(attacker: Attacker) -> hostile.Attacking:
        return asyncio.sleep(QUIET_SECONDS)

    quiet = arena.measure("no attack", nothing, 2 * QUIET_SECONDS)
    yield quiet, False
    if lenient:
        answer, sign_in = quiet.seconds
        arena.limits = Limits(max(TARGET, answer), max(SIGN_IN_TARGET, sign_in)).times(CI_LENIENCE)
    for kind, name in attacks:
        yield _again(arena, f"{kind}: {name}", ATTACKS[kind, name], share)
    yield _again(arena, f"{HELD:,} connections held", _hold, 2.0 if lenient else HOLD_SECONDS, _back_up)


def _again(arena: Arena, *attack: Any) -> tuple[Outcome, bool]:
    """The better of two tries when the first is not far over the limits: the computer may have been busy otherwise."""
    first, limits = arena.measure(*attack), arena.limits
    if not first.exceeds(limits) or first.exceeds(limits.times(NOISE)):
        return first, first.exceeds(limits)
    second = arena.measure(*attack)
    return (first, True) if second.exceeds(limits) else (second, False)


def prove(size: int) -> Figures:
    """`size`: seconds of attack."""
    figures = Figures()
    whole = size >= RELEASE_SECONDS
    attacks = chosen(len(ATTACKS) if whole else max(10, round(size * 2.5)))
    with _arena(1.0 if whole else 0.05, busy=not whole) as arena:
        share = max(LEAST_SECONDS, size / len(attacks))
        (quiet, _), *judged = _try(arena, attacks, share, lenient=not whole)
    figures.cases = sum(len(outcome.waits) for outcome, _ in judged)
    figures.wrong = [str(outcome).strip() for outcome, wrong in judged if wrong]
    tried = [outcome for outcome, _ in judged]
    worst = max(tried, key=lambda outcome: outcome.seconds[0])
    sign_in = max(outcome.seconds[1] for outcome in tried)
    outcomes = [quiet, *tried]
    figures.more = (
        f"{len(tried)} attacks; the second user waited {_ms(worst.seconds[0])} at most ({worst.attack}), {_ms(quiet.seconds[0])} "
        f"without an attack, and {_ms(sign_in)} at most to sign in; memory {max(one.memory for one in tried) / 1e6:.0f} MB at most; the "
        f"second user's own process was delayed by {_ms(max(wait.delay for one in outcomes for wait in one.waits))} at most"
    )
    return figures


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.trust.starvation", description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="classes of input, or CLASS:NAME")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each attack")
    parser.add_argument("--scale", type=float, default=0.1, help="of the data that attacks prepare, 1 for all of it")
    parser.add_argument("--busy", action="store_true", help="leave out what the service waits for a processor")
    options = parser.parse_args()
    attacks = [
        (kind, name)
        for kind, name in ATTACKS
        if not options.names or kind in options.names or f"{kind}:{name}" in options.names
    ]
    over = 0
    with _arena(options.scale, options.busy) as arena:
        for outcome, wrong in _try(arena, attacks, options.seconds, lenient=False):
            over += wrong
            print("OVER" if wrong else "    ", outcome, flush=True)
    print(f"{over} of {len(attacks) + 1} over {_ms(TARGET)}")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
