"""No user enumeration: the time of a login does not reveal whether the user name exists."""

import asyncio
import random
import statistics
import time

import httpx
from fireside.safety.throttle import Throttle

from . import Figures, fireside

# The AUC is the probability that a login with a known name takes longer than one with an unknown name. It must be 0.5 within this
# many standard deviations, of 1 / sqrt(6 n) for n pairs.
MAX_DEVIATIONS = 4


async def _measure(size: int) -> tuple[list[float], list[float]]:
    """Return the seconds of logins with a known name and with unknown names, in random order."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    chance = random.Random(3)
    async with fireside() as (running, _):
        await running.first()
        async with httpx.AsyncClient(base_url=running.url, trust_env=False, timeout=60) as http:
            for number in range(-2, size):  # the first two are for warming up
                for known in chance.sample((True, False), 2):
                    running.state.auth.throttle = Throttle()
                    body = {"username": "ann" if known else f"nobody{number}", "password": "wrong, and long enough"}
                    started = time.perf_counter()
                    answer = await http.post("/auth/login", json=body)
                    taken = time.perf_counter() - started
                    assert answer.status_code == 401
                    if number >= 0:
                        seconds[known].append(taken)
    return seconds[True], seconds[False]


def prove(size: int) -> Figures:
    known, unknown = asyncio.run(_measure(size))
    auc = sum((one > other) + (one == other) / 2 for one in known for other in unknown) / len(known) / len(unknown)
    medians = [f"{statistics.median(seconds) * 1000:.1f} ms" for seconds in (known, unknown)]
    figures = Figures(
        len(known) + len(unknown), more=f"AUC {auc:.3f}; medians {medians[0]} known, {medians[1]} unknown"
    )
    if abs(auc - 0.5) > MAX_DEVIATIONS / (6 * size) ** 0.5:
        figures.wrong.append(f"a known name takes longer with probability {auc:.3f}, not 0.5")
    return figures
