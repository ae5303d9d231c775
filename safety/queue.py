"""A fair semaphore that limits each user and reports queue positions."""

import asyncio
import contextlib
import itertools
import sys
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Hashable

Report = Callable[[int], None]
Waiter = tuple[asyncio.Event, Report | None]  # the event is set when the waiter gets its slot


class Slots:
    """A semaphore with `capacity` slots. One user, known by any key, holds at most `per_user` of them.

    Users take turns: one who gets a slot goes to the end of the queue with all else that they wait for.
    """

    def __init__(self, capacity: int, per_user: int | None = None) -> None:
        self._capacity = self._free = capacity  # _free is negative while more slots are held than there are now
        self._per_user = per_user or sys.maxsize
        self._held: Counter[Hashable] = Counter()  # slots by user
        self._queue: dict[Hashable, deque[Waiter]] = {}  # by user, in the order of their turns
        self._reports = 0  # waiters that want to know their position

    @contextlib.asynccontextmanager
    async def slot(self, user: Hashable, report: Report | None = None) -> AsyncIterator[None]:
        """Wait for a slot and hold it until the block ends. While it waits, `report` gets each new position, from 1."""
        granted = asyncio.Event()
        waiter = (granted, report)
        self._queue.setdefault(user, deque()).append(waiter)
        self._reports += report is not None
        self._grant()
        try:
            await granted.wait()
            yield
        finally:
            if granted.is_set():  # also when it was canceled just then
                self._free += 1
                self._held[user] -= 1
                if not self._held[user]:
                    del self._held[user]
            else:
                self._remove(user, waiter)
            self._grant()

    def resize(self, capacity: int) -> None:
        """Change the number of slots. Those that are held stay held."""
        more = capacity - self._capacity
        self._capacity += more
        self._free += more
        for _ in range(more):
            self._grant()

    @property
    def held(self) -> int:
        """How many slots are held."""
        return self._capacity - self._free

    def waiting(self, user: Hashable | None = None) -> int:
        """Return how many wait for a slot, in all or for this user."""
        return sum(map(len, self._queue.values())) if user is None else len(self._queue.get(user, ()))

    def _grant(self) -> None:
        """Give a free slot to the first user in the queue who may hold another. Report the new positions."""
        able = (user for user in self._queue if self._held[user] < self._per_user)
        user = next(able, None) if self._free > 0 else None
        if user is not None:
            waiter = self._queue[user][0]
            self._remove(user, waiter)
            if user in self._queue:
                self._queue[user] = self._queue.pop(user)  # behind all others
            self._free -= 1
            self._held[user] += 1
            waiter[0].set()
        if not self._reports:
            return
        rounds = itertools.zip_longest(*self._queue.values())
        for position, (_, report) in enumerate((waiter for turns in rounds for waiter in turns if waiter), 1):
            if report is not None:
                report(position)

    def _remove(self, user: Hashable, waiter: Waiter) -> None:
        self._queue[user].remove(waiter)
        self._reports -= waiter[1] is not None
        if not self._queue[user]:
            del self._queue[user]
