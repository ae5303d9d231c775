"""What Fireside promises about who gets in and what is kept, tried out.

Each module is a proof: a function that takes a size and returns Figures. tests/system/test_trust.py runs them in the size of CI,
`make trust` in that of a release, and then writes docs/trust.md.
"""

import contextlib
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from ..live import Running
from ..upstream import Upstream


@dataclass
class Figures:
    """What a proof has counted. It holds when `wrong` is empty; each entry says what was expected and what came."""

    cases: int = 0
    wrong: list[str] = field(default_factory=list)
    more: str = ""  # further figures, in words

    def expect(self, right: bool, otherwise: str) -> None:
        self.cases += 1
        if not right:
            self.wrong.append(otherwise)


@contextlib.asynccontextmanager
async def fireside(**settings: str) -> AsyncIterator[tuple[Running, Upstream]]:
    """A Fireside of its own, whose LM Studio is the scripted one."""
    with tempfile.TemporaryDirectory() as folder, Upstream() as upstream:
        async with Running(Path(folder) / "data", lmstudio_url=upstream.url, **settings) as running:
            yield running, upstream
