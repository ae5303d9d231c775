from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from .live import Person, Running
from .upstream import Upstream


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
