"""Who may do something now, when only so many may at a time: the others wait in a line that is fair and that they can see."""

import asyncio
import contextlib
import itertools
from collections import deque
from collections.abc import AsyncIterator, Callable

# set when it is their turn; told their number, whenever that changes
Place = tuple[asyncio.Event, Callable[[int], None]]


class Slots:
    """`capacity` at a time, the others first come first served, the users in turn."""

    def __init__(self, capacity: int) -> None:
        self._free = capacity
        self._line: dict[int, deque[Place]] = {}  # by user, in the order of their turns

    @contextlib.asynccontextmanager
    async def slot(self, user_id: int, tell: Callable[[int], None]) -> AsyncIterator[None]:
        """Waits for a slot, and has it until the block ends. `tell` is called with the place in the line, from 1 on, while it waits."""
        if self._free:
            self._free -= 1
        else:
            await self._wait(user_id, (asyncio.Event(), tell))
        try:
            yield
        finally:
            self._leave()

    async def _wait(self, user_id: int, place: Place) -> None:
        self._line.setdefault(user_id, deque()).append(place)
        self._announce()
        turn, _ = place
        try:
            await turn.wait()
        except asyncio.CancelledError:
            if turn.is_set():  # in the same moment
                self._leave()
            else:
                self._line[user_id].remove(place)
                self._line = {user_id: line for user_id, line in self._line.items() if line}
                self._announce()
            raise

    def _leave(self) -> None:
        """The slot goes to who is next. That user's next one comes after everybody else's first."""
        if not self._line:
            self._free += 1
            return
        user_id = next(iter(self._line))
        line = self._line.pop(user_id)
        turn, _ = line.popleft()
        turn.set()
        if line:
            self._line[user_id] = line
        self._announce()

    def _announce(self) -> None:
        """Round after round, one of each user."""
        rounds = itertools.zip_longest(*self._line.values())
        for number, (_, tell) in enumerate((place for turns in rounds for place in turns if place), 1):
            tell(number)
