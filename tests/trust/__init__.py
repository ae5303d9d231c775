"""Proofs of what Fireside promises about security and durability.

Each module has a function that takes a size and returns Figures. tests/system/test_trust.py runs them in the size of CI, `make trust` in that
of a release, which it writes to docs/trust.md.
"""

import contextlib
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..browser import NO_ENGINE, Fireside
from ..live import Running
from ..upstream import Upstream

ROOT = Path(__file__).parents[2]


@dataclass
class Figures:
    """The result of a proof: the number of cases, what was wrong (what was expected, and what happened), and further figures."""

    cases: int = 0
    wrong: list[str] = field(default_factory=list)
    more: str = ""

    def expect(self, right: bool, problem: str) -> None:
        self.cases += 1
        if not right:
            self.wrong.append(problem)


@contextlib.asynccontextmanager
async def fireside(**settings: str) -> AsyncIterator[tuple[Running, Upstream]]:
    """Run a service in this event loop, with the scripted LM Studio."""
    with tempfile.TemporaryDirectory() as folder, Upstream() as upstream:
        async with Running(Path(folder) / "data", lmstudio_url=upstream.url, **settings) as running:
            yield running, upstream


@contextlib.contextmanager
def fireside_process(**settings: str) -> Iterator[tuple[Fireside, Upstream]]:
    """Run a service in a process of its own, with the scripted LM Studio."""
    with tempfile.TemporaryDirectory() as folder, Upstream() as upstream:
        settings["lmstudio_url"] = upstream.url
        with Fireside(Path(folder) / "data", NO_ENGINE, 0, False, **settings) as service:
            yield service, upstream
