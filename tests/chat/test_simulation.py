"""The simulation of the hub (tests/trust/simulation.py): it repeats, it holds, and it notices known faults."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
from fireside import queries
from fireside.chat import events, hub
from fireside.chat.events import EventLog
from fireside.chat.generation import Begun, Generation
from fireside.chat.hub import Hub

from ..trust import ROOT
from ..trust.simulation import simulate

SEEDS = 12
SEEDS_TO_NOTICE = 20


def test_seeds_hold() -> None:
    results = [simulate(seed) for seed in range(SEEDS)]
    assert [result.wrong for result in results if result.wrong] == []
    assert len({result.schedule for result in results}) == SEEDS


def test_seed_has_the_same_schedule_in_another_process() -> None:
    """Neither the seeds before it nor the hashes of strings make a difference."""
    command = [sys.executable, "-m", "tests.trust.simulation", "61", "16"]
    environ = os.environ | {"PYTHONHASHSEED": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=True)
    result = simulate(16)
    assert done.stdout.splitlines()[1] == f"16: {result.steps:,} steps, schedule {result.schedule}"


async def _end_before_the_commit(self: Generation, outcome: Any) -> None:
    self.status = outcome if isinstance(outcome, str) else "error"
    self.log.end(self._done())
    self._start(await self._database.write(self.save))


def _start_twice(self: Hub, begun: Begun | None, start: Callable[..., None] = Hub._start) -> None:
    start(self, begun)
    start(self, begun)


def _follow_from_before(self: EventLog, position: int, *more: Any, follow: Any = EventLog.follow) -> Any:
    return follow(self, max(0, position - 1), *more)


def _renumbered(*arguments: Any, frames: Any = events._recorded_frames) -> Iterator[str]:
    for number, frame in enumerate(frames(*arguments), 1):
        yield frame if frame.startswith("event") else f"id: {number}\n{frame.partition(chr(10))[2]}"


async def _say_saved(self: Hub) -> None:
    for generation in self.generations.values():
        generation.log.saved = len(generation.log)


def _never_interrupt(conn: Any) -> int:
    return 0


async def _forget_unsaved(self: Hub, conversation_id: int | None = None) -> None:
    for generation in [*self.generations.values()]:
        if generation.save_error:
            self.generations.pop(generation.id)


@pytest.mark.parametrize(
    ("place", "name", "fault", "first_seed"),
    [
        pytest.param(Generation, "_conclude", _end_before_the_commit, 0, id="`done` before the commit"),
        pytest.param(Hub, "_start", _start_twice, 0, id="two requests for an answer"),
        pytest.param(queries.generations, "running_answer", lambda *_: None, 0, id="no check for a running answer"),
        pytest.param(EventLog, "follow", _follow_from_before, 0, id="an event again after a resume"),
        pytest.param(events, "_recorded_frames", _renumbered, 0, id="other numbers in a replay"),
        pytest.param(Hub, "_save_parts", _say_saved, 0, id="no saves while answers run"),
        pytest.param(hub, "_interrupt_unfinished", _never_interrupt, 0, id="unfinished answers after a crash"),
        pytest.param(Hub, "_save_ended", _forget_unsaved, 0, id="no second save after an error of the disk"),
        pytest.param(hub, "BEGIN_LOOKS", 1, 40, id="a reader that is earlier than the generation"),
    ],
)
def test_fault_is_noticed(place: Any, name: str, fault: Any, first_seed: int) -> None:
    with mock.patch.object(place, name, fault):
        assert any(simulate(seed).wrong for seed in range(first_seed, first_seed + SEEDS_TO_NOTICE))
