import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from ...live import Running
from ...upstream import Upstream
from ...witness import Witness


@pytest.fixture(scope="package")
def upstream() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def shared_witness(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> AsyncIterator[Witness]:
    async with watched(tmp_path_factory.mktemp("faults"), upstream) as witness:
        yield witness


@pytest.fixture
def witness(shared_witness: Witness) -> Witness:
    """One Fireside for all faults: each must leave it as it was. Its users are ann and bob."""
    shared_witness.errors.found.clear()  # the records of this process, so also those of another test's Fireside
    return shared_witness


@contextlib.asynccontextmanager
async def watched(data_dir: Path, upstream: Upstream, **settings: str) -> AsyncIterator[Witness]:
    """A Fireside of its own with the users ann and bob."""
    service = Running(data_dir, lmstudio_url=upstream.url, **settings)
    service.keep_alive = False
    async with service as running:
        ann = await running.first()
        bob = await running.join(ann, "bob")
        async with Witness(running, upstream, ann, bob) as witness:
            yield witness
            await witness.everything_is_there()
