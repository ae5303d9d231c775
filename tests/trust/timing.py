"""Whether the time that a login takes tells which names exist."""

import asyncio
import random
import statistics
import time

import httpx
from fireside.safety.throttle import Throttle

from . import Figures, fireside

# The chance that a login with a known name takes longer than one with an unknown name: 0.5 says nothing about the name.
# A chance found in n pairs strays by 1 / sqrt(6 n) for one standard deviation; four of them are allowed.
DEVIATIONS = 4


async def _prove(size: int) -> Figures:
    figures, times = Figures(), {"known": list[float](), "unknown": list[float]()}
    chance = random.Random(3)
    async with fireside() as (running, _):
        await running.first()
        async with httpx.AsyncClient(base_url=running.url, trust_env=False, timeout=60) as http:
            for number in range(-2, size):  # the first two warm up
                names = [("known", "ann"), ("unknown", f"nobody{number}")]
                chance.shuffle(names)
                for kind, name in names:
                    running.state.auth.throttle = Throttle()
                    started = time.perf_counter()
                    answer = await http.post(
                        "/auth/login", json={"username": name, "password": "wrong, and long enough"}
                    )
                    taken = time.perf_counter() - started
                    assert answer.status_code == 401
                    if number >= 0:
                        times[kind].append(taken)
    known, unknown = times["known"], times["unknown"]
    longer = sum((one > other) + (one == other) / 2 for one in known for other in unknown) / len(known) / len(unknown)
    figures.cases = len(known) + len(unknown)
    if abs(longer - 0.5) > DEVIATIONS / (6 * size) ** 0.5:
        figures.wrong.append(f"a known name takes longer with probability {longer:.3f}, not 0.5")
    medians = [statistics.median(kind) * 1000 for kind in (known, unknown)]
    figures.more = f"AUC {longer:.3f}; medians {medians[0]:.1f} ms known, {medians[1]:.1f} ms unknown"
    return figures


def prove(size: int) -> Figures:
    return asyncio.run(_prove(size))
