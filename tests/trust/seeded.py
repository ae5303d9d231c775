"""An event loop, and database threads, whose order and time a seed decides. For tests/trust/simulation.py.

simloop and similar libraries need Python 3.12 or run no threads, and simulate a network that is not needed here.
"""

import asyncio
import contextlib
import gc
import hashlib
import itertools
import os
import random
import sqlite3
import time
import uuid
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextvars import Context
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

from fireside import db

T = TypeVar("T")

MAX_STEPS = 50_000
STEP_SECONDS = 1e-6
DELAYS = (0.0, 0.0, 0.0003, 0.002, 0.02)  # seconds that a thread needs to begin, and the event loop to hear of the end


class Crash(BaseException):
    """The process was killed."""


class Stuck(BaseException):
    """Nothing will ever happen again, or the same thing for ever."""


@contextlib.contextmanager
def repeatable(seed: int) -> Iterator[None]:
    """Remove what differs between two runs: ids, and when the garbage collector ends generators, which the loop then closes."""
    ids = random.Random(seed)
    gc.collect()
    gc.disable()
    try:
        with mock.patch.object(uuid, "uuid4", lambda: uuid.UUID(int=ids.getrandbits(128), version=4)):
            yield
    finally:
        gc.enable()


class _Future(asyncio.Future[Any]):
    """A future whose place in a set does not depend on its address."""

    def __init__(self, *, loop: "SeededLoop") -> None:
        super().__init__(loop=loop)
        self._number = next(loop.numbers)

    def __hash__(self) -> int:
        return self._number


class _Task(asyncio.Task[Any]):
    def __init__(self, work: Coroutine[Any, Any, Any], *, loop: "SeededLoop", **options: Any) -> None:
        self._number = next(loop.numbers)
        super().__init__(work, loop=loop, **options)

    def __hash__(self) -> int:
        return self._number


class SeededLoop(asyncio.BaseEventLoop):
    """Run one callback at a time: the oldest, or with `shuffled` any that is ready. While one is, hardly any time passes.

    At the step `crash_at`, which may be between any two awaits, the loop raises Crash. `schedule` is a hash of what ran when.
    """

    def __init__(self, rng: random.Random, shuffled: bool) -> None:
        super().__init__()
        self.steps = 0
        self.schedule = hashlib.sha256()
        self.numbers = itertools.count()  # of futures
        self.crash_at: int | None = None
        self._rng = rng
        self._shuffled = shuffled
        self._now = 0.0
        self._selector = self
        self.set_task_factory(lambda _, work, **options: _Task(work, loop=self, **options))

    def create_future(self) -> asyncio.Future[Any]:
        return _Future(loop=self)

    def time(self) -> float:
        return self._now

    def run_until_complete(self, work: Any) -> Any:
        with mock.patch.object(time, "monotonic", self.time):
            return super().run_until_complete(work)

    def tasks(self) -> list[asyncio.Task[Any]]:
        """Return the unfinished tasks, oldest first."""
        return sorted(asyncio.all_tasks(self), key=hash)

    def select(self, timeout: float | None) -> tuple[()]:
        """Take the place of the selector: there are no sockets."""
        if timeout is None or self.steps > MAX_STEPS:
            raise Stuck(f"after {self.steps} steps, at {self._now:.1f} s")
        self._now += timeout
        return ()

    def _process_events(self, events: object) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def _run_once(self) -> None:
        if self.steps == self.crash_at:
            raise Crash
        self.steps += 1
        self._now += STEP_SECONDS
        ready: deque[Any] = self._ready  # type: ignore[attr-defined]
        others = deque(ready)
        if others:
            place = self._rng.randrange(len(others)) if self._shuffled else 0
            chosen = others[place]
            del others[place]
            self.schedule.update(f"{self._now:.6f} {_name(chosen)}\n".encode())
            ready.clear()
            ready.append(chosen)
        super()._run_once()  # type: ignore[misc]
        ready.extendleft(reversed(others))


def _name(handle: Any) -> str:
    """Return the number of a task, or the name of another callback."""
    owner = getattr(handle._callback, "__self__", None)
    return str(hash(owner)) if isinstance(owner, _Task) else getattr(handle._callback, "__qualname__", "")


class Disk:
    """The database file, as it would be found after a crash."""

    def __init__(self, path: Path, rng: random.Random) -> None:
        self.path = path
        self.synced = 0  # bytes of the WAL that a power cut cannot take
        self.fails: Callable[[], bool] = lambda: False  # whether the next transaction meets an error
        self._rng = rng

    @property
    def wal(self) -> Path:
        return self.path.with_name(self.path.name + "-wal")

    def wal_size(self) -> int:
        return os.path.getsize(self.wal) if self.wal.exists() else 0

    def connect(self, writer: bool) -> "_Connection":
        connection = sqlite3.connect(self.path, isolation_level=None, cached_statements=256, factory=_Connection)
        db._configure(connection, writer)
        connection.disk = self if writer else None
        return connection

    def statements_until_error(self) -> int:
        return self._rng.randrange(1, 14) if self.fails() else 0


class _Connection(sqlite3.Connection):
    """A connection whose transactions meet errors of the disk, at any statement or at COMMIT."""

    disk: Disk | None = None
    _left = 0  # statements until the error; 0: none
    _full = True

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        disk = self.disk
        if disk is None:
            return super().execute(sql, *values)
        if sql.startswith("BEGIN"):
            self._left = disk.statements_until_error()
        elif sql.startswith("PRAGMA synchronous"):
            self._full = sql.endswith("FULL")
        elif self._left and sql != "ROLLBACK":
            self._left -= 1
            if not self._left or sql == "COMMIT":
                self._left = 0
                error = sqlite3.OperationalError("disk I/O error")
                error.sqlite_errorname = "SQLITE_IOERR_WRITE"
                raise error
        cursor = super().execute(sql, *values)
        if sql == "COMMIT" and self._full:
            disk.synced = disk.wal_size()
        return cursor


class Thread:
    """A connection with a thread, in the form of aiosqlite.Connection. The seed decides when its functions run."""

    def __init__(self, connection: _Connection, loop: SeededLoop, rng: random.Random) -> None:
        self._conn = connection
        self._loop = loop
        self._rng = rng
        self._waiting: deque[tuple[asyncio.Future[Any], Callable[[], Any]]] = deque()
        self._results: deque[tuple[asyncio.Future[Any], Any, Exception | None]] = deque()
        self._busy = False

    async def _execute(self, function: Callable[..., T], *values: Any) -> T:
        future = self._loop.create_future()
        self._waiting.append((future, lambda: function(*values)))
        self._run_next()
        result: T = await future
        return result

    def _run_next(self) -> None:
        if self._waiting and not self._busy:
            self._busy = True
            self._later(self._run)

    def _later(self, function: Callable[..., None], *values: Any) -> None:
        self._loop.call_later(self._rng.choice(DELAYS), function, *values, context=Context())

    def _run(self) -> None:
        future, function = self._waiting.popleft()
        try:
            result, error = function(), None
        except Exception as raised:
            result, error = None, raised
        self._busy = False
        self._results.append((future, result, error))
        self._later(self._deliver)
        self._run_next()

    def _deliver(self) -> None:
        """The results arrive in the order of the transactions, as those of call_soon_threadsafe do."""
        future, result, error = self._results.popleft()
        if not future.done():
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

    async def close(self) -> None:
        await self._execute(lambda: None)
        self._conn.close()
