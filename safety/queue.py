"""A fair semaphore that limits each user and reports queue positions."""

import asyncio
import contextlib
import itertools
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable

Report = Callable[[int], None]
Waiter = tuple[asyncio.Event, Report]  # the event is set when the waiter has its slot


class Slots:
    """A semaphore with `capacity` slots, of which one user holds at most `per_user`.

    Users take turns: a user who gets a slot goes to the end of the queue with what else they wait for.
    """

    def __init__(self, capacity: int, per_user: int | None = None) -> None:
        self._free = capacity
        self._per_user = per_user or capacity
        self._held: Counter[int] = Counter()  # slots by user
        self._queue: dict[int, deque[Waiter]] = {}  # by user, in the order of their turns

    @contextlib.asynccontextmanager
    async def slot(self, user_id: int, report: Report = lambda position: None) -> AsyncIterator[None]:
        """Wait for a slot and hold it until the block ends. While it waits, `report` gets each new position, from 1."""
        granted = asyncio.Event()
        waiter = (granted, report)
        self._queue.setdefault(user_id, deque()).append(waiter)
        self._grant()
        try:
            await granted.wait()
            yield
        finally:
            if granted.is_set():  # also when it was cancelled at the moment of its turn
                self._free += 1
                self._held[user_id] -= 1
            else:
                self._take(user_id, waiter)
            self._grant()

    def waiting(self, user_id: int) -> int:
        """Return how many of the user wait for a slot."""
        return len(self._queue.get(user_id, ()))

    def _grant(self) -> None:
        """Give a free slot to the first user in the queue who may hold another. Report the new positions."""
        able = (user_id for user_id in self._queue if self._held[user_id] < self._per_user)
        user_id = next(able, None) if self._free else None
        if user_id is not None:
            waiter = self._queue[user_id][0]
            self._take(user_id, waiter)
            if user_id in self._queue:  # behind all others
                self._queue[user_id] = self._queue.pop(user_id)
            self._free -= 1
            self._held[user_id] += 1
            waiter[0].set()
        rounds = itertools.zip_longest(*self._queue.values())
        for position, (_, report) in enumerate((waiter for turns in rounds for waiter in turns if waiter), 1):
            report(position)

    def _take(self, user_id: int, waiter: Waiter) -> None:
        self._queue[user_id].remove(waiter)
        if not self._queue[user_id]:
            del self._queue[user_id]
