import gc
import os
import time
import types
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import argon2
import pytest
from fireside import auth
from fireside.safety import throttle
from hypothesis import HealthCheck, settings

from .live import Person, Running
from .upstream import Upstream

# Tests must not fail because the computer is busy.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

CHEAP = argon2.PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Use at least four workers: many tests wait."""
    return max(4, os.cpu_count() or 1)


def pytest_collection_finish() -> None:
    """Exclude two thousand collected tests from garbage collection."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _cheap_passwords(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use Argon2id with 64 KiB instead of 46 MiB, except in tests marked `costly`. It would take half of the time."""
    if "costly" not in request.keywords:
        monkeypatch.setattr(auth, "_HASHER", CHEAP)
        monkeypatch.setattr(auth, "_DUMMY", CHEAP.hash("password"))


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.late = 0.0
        real = time.monotonic
        monkeypatch.setattr(time, "monotonic", lambda: real() + self.late)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def frozen_throttle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no time pass for the throttle, so that a busy computer does not give a guess its next try."""
    monkeypatch.setattr(throttle, "time", types.SimpleNamespace(monotonic=lambda: 1e6))


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    """A scripted LM Studio."""
    with Upstream() as upstream:
        yield upstream


@pytest.fixture
async def running(tmp_path: Path, upstream: Upstream) -> AsyncIterator[Running]:
    """A running Fireside with the scripted LM Studio."""
    async with Running(tmp_path / "data", lmstudio_url=upstream.url) as running:
        yield running


@pytest.fixture
async def ann(running: Running) -> Person:
    """The first user, an administrator."""
    return await running.first()


@pytest.fixture
async def bob(running: Running, ann: Person) -> Person:
    """The second user, not an administrator."""
    return await running.join(ann, "bob")
