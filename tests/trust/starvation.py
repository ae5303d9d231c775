"""Availability: the response times of a second user while an attacker tries everything in hostile.py.

The service, the second user (bystander.py) and the attacker run in three processes or threads, the attacker's with the lowest priority,
because it would run on another computer. A response time excludes the longest delay of the second user's own process, which a heartbeat
measures. In CI, beside other tests, it also excludes the time that the service waited for a processor.

python -m tests.trust.starvation [--seconds N] [--scale N] [KIND or KIND:NAME ...]
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
from ..live import PASSWORD, good, session
from ..processes import run
from ..upstream import Upstream
from . import Figures, hostile
from .hostile import ATTACKS, REGRESSIONS, Attack, Attacker

CI_FACTOR = 4.0  # of the limits, because other tests run at the same time
RETRY_FACTOR = (
    4.0  # of the limits: below that, a response time may be due to other programs, and the attack is tried again
)
RECOVERY_SECONDS = 20.0  # until the service must respond as usual after an attack
REQUEST_PAUSE_SECONDS = 0.04
SIGN_IN = "POST /auth/login"
SIGN_IN_PAUSE_SECONDS = 0.4
DESCRIPTORS = 1024  # of the service, as on many systems
HELD_CONNECTIONS = 1000
HELD_SECONDS = 15.0  # longer than the service waits for a request head
RELEASE_SECONDS = 60  # from this size on, the data has its full size
IDLE_SECONDS = 1.0  # of measurement without an attack
SAMPLE_SECONDS = 0.01
MIN_ATTACK_SECONDS = 0.15
SOURCE = {"X-Forwarded-For": "192.168.7.7"}  # of the second user, from a trusted proxy

ORDINARY_MARKDOWN = """\
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


class Limits(NamedTuple):
    """Seconds that a response to the second user may take, and a sign-in, whose password hash takes a tenth of that."""

    response: float = 0.25
    sign_in: float = 1.0

    def times(self, factor: float) -> "Limits":
        return Limits(self.response * factor, self.sign_in * factor)


class Response(NamedTuple):
    """A response to the second user. Times are monotonic, the same for all processes."""

    lane: str
    start: float
    end: float
    delay: float  # the longest time that the second user's process was kept from running in between
    status: int
    queued: float = 0.0  # seconds that the service was ready to run in between and had no processor

    @property
    def seconds(self) -> float:
        return max(0.0, self.end - self.start - self.delay - self.queued)


@dataclass
class Outcome:
    """What the second user experienced during an attack."""

    attack: str
    responses: list[Response]
    memory: int  # highest bytes of the service and its child processes
    statuses: str  # of the answers to the attacker
    problem: str = ""

    def slowest(self, sign_in: bool = False) -> Response:
        responses = [response for response in self.responses if (response.lane == SIGN_IN) == sign_in]
        return max(responses, key=lambda response: response.seconds, default=Response(SIGN_IN, 0, 0, 0, 200))

    @property
    def seconds(self) -> Limits:
        return Limits(self.slowest().seconds, self.slowest(sign_in=True).seconds)

    def exceeds(self, limits: Limits) -> bool:
        slow = self.seconds.response > limits.response or self.seconds.sign_in > limits.sign_in
        return slow or bool(self.problem) or any(response.status != 200 for response in self.responses)

    def __str__(self) -> str:
        slowest, failed = self.slowest(), {(one.lane, one.status) for one in self.responses if one.status != 200}
        parts = (
            f"{slowest.seconds * 1000:6.0f} ms for {slowest.lane} during {self.attack}",
            f"own delay {_ms(slowest.delay)}, without a processor {_ms(slowest.queued)}, sign-in {_ms(self.seconds.sign_in)}",
            f"{self.memory / 1e6:.0f} MB",
            self.statuses and f"the attacker got {self.statuses}",
            failed and f"failed: {sorted(failed)}",
            self.problem,
        )
        return "; ".join(str(part) for part in parts if part)


class Service(Fireside):
    """A service with few descriptors, a freshly started interpreter, and a trusted proxy."""

    def __init__(self, data_dir: Path, upstream: Upstream) -> None:
        settings = {"lmstudio_url": upstream.url, "trusted_proxies": "127.0.0.1", "between_tokens_seconds": "2"}
        super().__init__(data_dir, NO_ENGINE, 0, True, **settings)

    def launch(self, *command: str) -> "subprocess.Popen[str]":
        process = super().launch(*command)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))  # before it reads its limit
        return process


class Sample(NamedTuple):
    time: float  # monotonic
    queued: float  # seconds since the start that the main thread was ready to run and had no processor
    memory: int  # bytes of the service and its child processes


class Sampler(threading.Thread):
    """Samples of the service until `close`."""

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
        total, pids = 0, [self.pid]
        for pid in pids:
            with contextlib.suppress(OSError, ValueError):
                total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
                for thread in Path(f"/proc/{pid}/task").iterdir():
                    pids += map(int, (thread / "children").read_text().split())
        return total

    def close(self) -> None:
        self._closing.set()
        self.join()

    def queued(self, start: float, end: float) -> float:
        before = [sample.queued for sample in self.samples if sample.time <= start][-1:]
        within = [sample.queued for sample in self.samples if start < sample.time <= end + SAMPLE_SECONDS][-1:]
        return within[0] - before[0] if before and within else 0.0

    def memory(self, start: float) -> int:
        return max((sample.memory for sample in self.samples if sample.time >= start), default=0)


class Bystander:
    """The second user: bystander.py in a process of its own, and the responses so far."""

    def __init__(self, service: Service, admin: httpx.Client) -> None:
        person = service.join(admin, "bob")
        service.join(admin, "carol")  # signs in again and again, which would end the oldest sessions of bob
        person.headers.update(SOURCE)
        json_type = SOURCE | {"Content-Type": "application/json"}
        signed_in = session(person) | json_type
        conversation, other = _write(person, [ORDINARY_MARKDOWN] * 6), _write(person, [])
        message = {"content": "Some words.", "parent_id": None}
        uncached = {"text": ORDINARY_MARKDOWN + "{n}"}
        credentials = {"username": "carol", "password": PASSWORD}
        requests: tuple[tuple[str, str, dict[str, Any] | None, dict[str, Any]], ...] = (
            ("GET /auth/me", "/auth/me", None, {}),
            ("GET /conversations", "/conversations", None, {}),
            ("GET messages", f"/conversations/{conversation}/messages?render=true", None, {}),
            ("POST messages", f"/conversations/{other}/messages", message, {}),
            ("POST /render", "/render", uncached, {}),
            ("GET /search", "/search?q=words", None, {}),
            ("GET /health", "/health", None, {}),
            ("GET / on a new connection", "/", None, {"fresh": True}),
            (SIGN_IN, "/auth/login", credentials, {"headers": json_type, "pause": SIGN_IN_PAUSE_SECONDS}),
        )
        lanes: list[dict[str, Any]] = []
        for name, path, body, options in requests:
            lane = {"name": name, "method": name.split()[0], "path": path, "headers": signed_in}
            lanes.append(lane | {"pause": REQUEST_PAUSE_SECONDS, "body": body and json.dumps(body)} | options)
        self.lanes = [lane["name"] for lane in lanes if lane["name"] != SIGN_IN]
        self.responses: list[Response] = []
        self._changed = threading.Condition()
        command = [sys.executable, str(Path(__file__).with_name("bystander.py"))]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"port": service.port, "lanes": lanes}))
        self.process.stdin.close()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for line in output:
                with self._changed:
                    self.responses.append(Response(*json.loads(line)))
                    self._changed.notify_all()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()

    def wait_until_fast(self, since: float, seconds: float) -> bool:
        """Wait until each lane has a response within `seconds` to a request after `since`. Return False after RECOVERY_SECONDS."""

        def is_fast() -> bool:
            newest = {one.lane: one for one in self.responses[-100:] if one.start > since and one.seconds < seconds}
            return newest.keys() >= set(self.lanes)

        with self._changed:
            return self._changed.wait_for(is_fast, RECOVERY_SECONDS)

    def between(self, start: float, end: float) -> list[Response]:
        with self._changed:
            found = [one for one in self.responses if one.end > start and one.start < end]
            return [one._replace(start=max(start, one.start)) for one in found]


def _write(person: httpx.Client, questions: list[str]) -> int:
    conversation_id: int = good(person.post("/conversations", json={}))["id"]
    for question in questions:
        good(person.post(f"/conversations/{conversation_id}/messages", json={"content": question}))
    return conversation_id


@dataclass
class Arena:
    """A service, a second user and an attacker. `renew` replaces all three after an attack from which the service does not recover."""

    folder: Path
    upstream: Upstream
    scale: float
    busy: bool  # the computer runs other programs too
    limits: Limits = Limits()
    number: int = 0
    exceptions: int = 0  # logged by the service so far
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def renew(self) -> None:
        self.stack.close()
        self.number += 1
        self.exceptions = 0
        self.service = self.stack.enter_context(Service(self.folder / str(self.number), self.upstream))
        admin = self.service.first()
        mallory = self.service.join(admin, "mallory")
        self.bystander = self.stack.enter_context(contextlib.closing(Bystander(self.service, admin)))
        self.sampler = self.stack.enter_context(contextlib.closing(Sampler(self.service.process.pid)))
        self.sampler.start()
        own = _write(mallory, ["Hello?"])
        ids = {"conversation_id": str(own), "name": "app.js", "provider_id": "lmstudio"}
        self.attacker = Attacker(self.service.port, session(mallory), self.upstream, self.scale, own, ids=ids)
        mallory.close()
        assert self.bystander.wait_until_fast(time.monotonic(), CI_FACTOR * Limits().response), "slow before any attack"

    def measure(
        self, name: str, attack: Attack, seconds: float, during: "Callable[[Arena], str]" = lambda arena: ""
    ) -> Outcome:
        """Measure the second user's response times during an attack and until the service has recovered.

        `during` is called while the attack runs, and returns what went wrong.
        """
        attacking = _Attacking(self.attacker, attack, seconds)
        attacking.start()
        problem = during(self)
        attacking.join()
        ended = time.monotonic()
        recovered = self.bystander.wait_until_fast(ended, self.limits.response) and self.service.process.poll() is None
        responses = self.bystander.between(attacking.began, time.monotonic())
        if self.busy:
            responses = [one._replace(queued=self.sampler.queued(one.start, one.end)) for one in responses]
        statuses = [f"{count} x {status or 'nothing'}" for status, count in self.attacker.statuses.most_common()]
        outcome = Outcome(name, responses, self.sampler.memory(attacking.began), ", ".join(statuses))
        exceptions = self._new_exceptions()
        outcome.problem = problem or attacking.problem or (f"logged {exceptions[-1][-500:]}" if exceptions else "")
        if not recovered:
            outcome.problem += f"not recovered after {RECOVERY_SECONDS:.0f} s"
            self.renew()
        self.upstream.forget()
        return outcome

    def _new_exceptions(self) -> list[str]:
        traces = [entry["trace"] for entry in self.service.log() if "trace" in entry]
        known, self.exceptions = self.exceptions, len(traces)
        return traces[known:]


class _Attacking(threading.Thread):
    """An attack with its own event loop, in a thread of the lowest priority."""

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
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # for the connections that the attacker holds
    with tempfile.TemporaryDirectory() as name, Upstream() as upstream:
        os.setpriority(os.PRIO_PROCESS, upstream.native_id, 19)
        arena = Arena(Path(name), upstream, scale, busy)
        try:
            arena.renew()
            yield arena
        finally:
            arena.stack.close()
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            upstream.errors.clear()  # an attack ends in the middle of a script


async def _nothing(attacker: Attacker) -> hostile.Attacking:
    return asyncio.sleep(IDLE_SECONDS)


async def _hold_connections(attacker: Attacker) -> hostile.Attacking:
    attacker.opened = 0
    return await hostile.hold_in_every_state(attacker, HELD_CONNECTIONS)


def _back_up(arena: Arena) -> str:
    """Run `fireside backup` while the connections are held. Return what went wrong, or an empty string."""
    deadline = time.monotonic() + RECOVERY_SECONDS
    while arena.attacker.opened < HELD_CONNECTIONS and time.monotonic() < deadline:
        time.sleep(0.01)
    target = arena.folder / f"backup-{arena.number}-{time.monotonic_ns()}.db"
    done = run("backup", str(target), data_dir=str(arena.service.data_dir))
    if done.returncode != 0:
        return f"fireside backup ended with {done.returncode}: {done.stderr[-300:]}"
    with contextlib.closing(sqlite3.connect(target)) as copy:
        users = copy.execute("SELECT count(*) FROM users").fetchone()[0]
    return "" if users == 4 else f"the backup has {users} users"


# ---------------------------------------------------------------------------------------------------- the proof


def _choose(count: int) -> list[tuple[str, str]]:
    """Return so many attacks: first the regressions, then others, both spread evenly over all kinds."""
    others = [attack for attack in ATTACKS if attack not in REGRESSIONS]
    return _spread(REGRESSIONS, count) + _spread(others, max(0, count - len(REGRESSIONS)))


def _spread(attacks: list[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    return attacks if count >= len(attacks) else [attacks[n * len(attacks) // count] for n in range(count)]


def _measure_all(
    arena: Arena, attacks: list[tuple[str, str]], seconds: float, ci: bool
) -> Iterator[tuple[Outcome, bool]]:
    """Yield the outcome without an attack, then that of each attack, with whether it exceeds the limits."""
    idle = arena.measure("no attack", _nothing, 2 * IDLE_SECONDS)
    yield idle, False
    if ci:
        limits = Limits()
        slower = max(1.0, idle.seconds.response / limits.response, idle.seconds.sign_in / limits.sign_in)
        arena.limits = limits.times(slower * CI_FACTOR)
    for kind, name in attacks:
        yield _measure_again(arena, f"{kind}: {name}", ATTACKS[kind, name], seconds)
    held = f"{HELD_CONNECTIONS:,} connections held"
    yield _measure_again(arena, held, _hold_connections, 2.0 if ci else HELD_SECONDS, _back_up)


def _measure_again(arena: Arena, *attack: Any) -> tuple[Outcome, bool]:
    """Measure a second time when the first is not far above the limits. Return the better outcome."""
    first, limits = arena.measure(*attack), arena.limits
    if not first.exceeds(limits) or first.exceeds(limits.times(RETRY_FACTOR)):
        return first, first.exceeds(limits)
    second = arena.measure(*attack)
    return (first, True) if second.exceeds(limits) else (second, False)


def prove(size: int) -> Figures:
    """`size`: seconds of attack."""
    release = size >= RELEASE_SECONDS
    attacks = _choose(len(ATTACKS) if release else max(10, round(size * 2.5)))
    with _arena(1.0 if release else 0.05, busy=not release) as arena:
        seconds = max(MIN_ATTACK_SECONDS, size / len(attacks))
        (idle, _), *judged = _measure_all(arena, attacks, seconds, ci=not release)
    outcomes = [outcome for outcome, _ in judged]
    worst = max(outcomes, key=lambda outcome: outcome.seconds.response)
    delay = max(response.delay for outcome in (idle, *outcomes) for response in outcome.responses)
    return Figures(
        sum(len(outcome.responses) for outcome in outcomes),
        [str(outcome).strip() for outcome, wrong in judged if wrong],
        f"{len(outcomes)} attacks; slowest response {_ms(worst.seconds.response)} ({worst.attack}), {_ms(idle.seconds.response)} "
        f"without an attack; slowest sign-in {_ms(max(outcome.seconds.sign_in for outcome in outcomes))}; memory at most "
        f"{max(outcome.memory for outcome in outcomes) / 1e6:.0f} MB; the second user's own process was delayed by at most {_ms(delay)}",
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.trust.starvation", description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="attacks to run: KIND or KIND:NAME (default: all)")
    parser.add_argument("--seconds", type=float, default=1.0, help="duration of each attack (default: 1)")
    parser.add_argument(
        "--scale", type=float, default=0.1, help="size of the attacks' data, 1 in a release (default: 0.1)"
    )
    options = parser.parse_args()
    names = options.names
    attacks = [(kind, name) for kind, name in ATTACKS if not names or kind in names or f"{kind}:{name}" in names]
    slow = 0
    with _arena(options.scale, busy=False) as arena:
        for outcome, wrong in _measure_all(arena, attacks, options.seconds, ci=False):
            slow += wrong
            print("SLOW" if wrong else "    ", outcome, flush=True)
    print(f"{slow} of {len(attacks) + 1} attacks exceeded the limits")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
