import gc
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import argon2
import pytest
from fireside import auth

from .live import Person, Running
from .upstream import Upstream

CHEAP = argon2.PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """At least four: some of what is tested is to wait."""
    return max(4, os.cpu_count() or 1)


def pytest_collection_finish() -> None:
    """What two thousand tests are made of stays to the end: the collector need not walk it again and again."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _cheap_passwords(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Argon2id in 64 KiB in place of 46 MiB, which were half of what the tests took. Not for those that are `costly`."""
    if "costly" not in request.keywords:
        monkeypatch.setattr(auth, "_HASHER", CHEAP)
        monkeypatch.setattr(auth, "_DUMMY", CHEAP.hash("nobody's password"))


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.late = 0.0
        real = time.monotonic
        monkeypatch.setattr(time, "monotonic", lambda: real() + self.late)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    """A scripted LM Studio."""
    with Upstream() as upstream:
        yield upstream


@pytest.fixture
async def running(tmp_path: Path, upstream: Upstream) -> AsyncIterator[Running]:
    """A Fireside whose LM Studio is the scripted one."""
    async with Running(tmp_path / "data", lmstudio_url=upstream.url) as running:
        yield running


@pytest.fixture
async def ann(running: Running) -> Person:
    """Its first user, an administrator."""
    return await running.first()


@pytest.fixture
async def bob(running: Running, ann: Person) -> Person:
    """Its second user, no administrator."""
    return await running.join(ann, "bob")
