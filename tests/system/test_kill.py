"""Fireside is killed at any moment: nothing that it had acknowledged is lost, and what was being written ends honestly.

A trial is a life of the service: started, checked, used, killed. trials.py says how many.
"""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from ..live import Event, Person, good, parse, text, until
from ..processes import Killable
from ..trials import TRIALS
from ..upstream import DONE, Gate, Upstream, finish, pause, usage
from ..upstream import text as says
from ..witness import MODEL, STATUS, whole

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")

TERMS = max(TRIALS // 2, 1)
LANES = 4  # at a time, each with a Fireside of its own: most of a trial is waiting
USERS = 2  # at a time, of one Fireside
LOST_SECONDS = 1.0  # of an answer, at most, when the server is killed
STOP_SECONDS = 5.0  # until a server that is told to stop is gone
WORDS = 700  # of an answer, one every few milliseconds


class Pace(Gate):
    """A gate that opens by itself, after the time that a model needs for a word."""

    async def _pass(self) -> None:
        await asyncio.sleep(0.002)


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    """A model that writes at length."""
    with Upstream() as upstream:
        words = [step for number in range(WORDS) for step in (says(f"{number} "), pause(Pace()))]
        upstream.default = [*words, finish("stop"), usage(7, WORDS), DONE]
        yield upstream


class Stopped(Exception):
    """The server has ended, or says that it is about to."""


class Ledger:
    """What one life of Fireside has acknowledged."""

    def __init__(self) -> None:
        self.said: dict[int, dict[int, str]] = {}  # by conversation, by message
        self.seen: dict[str, list[tuple[float, Event]]] = {}  # by generation: events, and when they came
        self.canceled: set[str] = set()
        self.steps = 0  # answers and events that have come
        self.cut = False  # a stream broke off without its last event

    def events(self, generation_id: str) -> list[Event]:
        return [event for _, event in self.seen[generation_id]]


class Use:
    """Somebody who appends, streams, cancels and retries until the server is gone."""

    def __init__(self, person: Person, dice: random.Random) -> None:
        self.person = person
        self.dice = dice
        self.ledger = Ledger()
        self.stopping = False

    async def until_it_ends(self, patiently: bool) -> None:
        """`patiently`: reading one answer all the time, which then is a long one."""
        actions = (self._append, self._stream, self._stream, self._cancel, self._retry)
        with contextlib.suppress(Stopped, httpx.TransportError):
            while True:
                action = self._stream if patiently else self.dice.choice(actions)
                await action(await self._conversation())

    async def _post(self, path: str, **body: Any) -> Any:
        answer = await self.person.post(path, json=body)
        if answer.status_code == 503 or (self.stopping and answer.status_code == 404):  # cancelled by the stop itself
            raise Stopped
        self.ledger.steps += 1
        return good(answer)

    async def _conversation(self) -> int:
        conversation_id: int = (await self._post("/conversations"))["id"]
        self.ledger.said[conversation_id] = {}
        await self._append(conversation_id)
        return conversation_id

    async def _append(self, conversation_id: int) -> None:
        content = f"Tell me about {self.dice.getrandbits(64)}. {'Much, please. ' * self.dice.randrange(200)}"
        message_id = (await self._post(f"/conversations/{conversation_id}/messages", content=content))["message_id"]
        self.ledger.said[conversation_id][message_id] = content

    async def _stream(self, conversation_id: int, count: int = WORDS * 2) -> str:
        """Reads so many events, or all of them. Returns the generation's id."""
        path = f"/conversations/{conversation_id}/stream"
        return await self._read(count, method="POST", url=path, json=MODEL)

    async def _read(self, count: int, **request: Any) -> str:
        async with self.person.stream(**request) as response:
            if response.status_code == 503:
                raise Stopped
            self.ledger.cut = True
            async for event in parse(response):
                seen = self.ledger.seen.setdefault(event.data["generation_id"], [])
                seen.append((time.monotonic(), event))
                self.ledger.steps += 1
                if len(seen) >= count:
                    break
            self.ledger.cut = False
        return str(event.data["generation_id"])

    async def _cancel(self, conversation_id: int) -> None:
        generation_id = await self._stream(conversation_id, self.dice.choice((1, 2, 5, 50)))
        await self._post(f"/chat/cancel/{generation_id}")
        self.ledger.canceled.add(generation_id)

    async def _retry(self, conversation_id: int) -> None:
        await self._cancel(conversation_id)
        generation_id = (await self._post("/chat/retry", conversation_id=conversation_id, **MODEL))["generation_id"]
        self.ledger.seen[generation_id] = []
        await self._read(self.dice.choice((1, 50, WORDS)), method="GET", url=f"/generations/{generation_id}/stream")


async def nothing_lost(person: Person, ledger: Ledger, ended_at: float) -> None:
    """Of what the last life had acknowledged until it ended."""
    shown: dict[int, dict[str, Any]] = {}
    for conversation_id, said in ledger.said.items():
        shown |= {message["id"]: message for message in await person.messages(conversation_id)}
        assert {message_id: shown.get(message_id, {}).get("content") for message_id in said} == said
        assert good(await person.get(f"/conversations/{conversation_id}"))["generation_id"] is None
    for generation_id in ledger.seen:
        seen = ledger.events(generation_id)
        replayed = await _resumed(person, generation_id, 0)
        _has_one_end(replayed)
        if seen and seen[-1].event == "done":
            assert [event for event in seen if event.id] == replayed, "what had ended is not what it was"
        else:
            await _goes_on(person, generation_id, seen, replayed)
        old = [event for moment, event in ledger.seen[generation_id] if moment < ended_at - LOST_SECONDS and event.id]
        assert replayed[: len(old)] == old, "more was lost than the last second"
        if generation_id in ledger.canceled:
            assert replayed[-1].data["status"] == "canceled" and text(replayed).startswith(text(seen))
        message = shown.get(replayed[-1].data["message_id"])  # None: another version is shown
        assert message is None or _is_kept(message, replayed)


async def _resumed(person: Person, generation_id: str, position: int) -> list[Event]:
    async with person.resuming(generation_id, position) as events:
        return [event async for event in events]


def _has_one_end(events: list[Event]) -> None:
    assert [event.event for event in events].count("done") == 1 and events[-1].event == "done"
    ids = [event.id or 0 for event in events]
    assert ids == sorted(set(ids))


async def _goes_on(person: Person, generation_id: str, seen: list[Event], replayed: list[Event]) -> None:
    """A reader who comes back has every event once: either what it saw was saved, or it begins anew."""
    seen = [event for event in seen if event.id]
    kept = {event.id: event for event in replayed}
    assert all(kept.get(event.id, event) == event for event in seen), "an event is not what it was"
    for count in {
        len(seen),
        min(len(seen), len(replayed)),
        min(len(seen), 1),
    }:  # the last, the first not saved, the first
        rest = await _resumed(person, generation_id, seen[count - 1].id or 0 if count else 0)
        if rest and rest[0].event == "reset":
            assert rest[1:] == replayed and seen[count - 1] not in replayed
        else:
            assert seen[:count] + rest == replayed


def _is_kept(message: dict[str, Any], replayed: list[Event]) -> bool:
    return (message["content"], message["status"]) == (text(replayed), STATUS[replayed[-1].data["status"]])


class Life(NamedTuple):
    messages: int  # acknowledged
    streams: int
    ending: float  # seconds until it was gone
    restart: float  # seconds until the next one answered


async def _lives(lane: Killable, lives: int, dice: random.Random, number: signal.Signals) -> list[Life]:
    lived = []
    for life in range(lives):
        patiently = life % 10 == 0
        uses = [Use(lane.ann, dice) for _ in range(USERS)]
        using = [asyncio.create_task(use.until_it_ends(patiently)) for use in uses]
        await _until_used(uses, dice.choice((5, 50, 500)) * dice.random())
        await asyncio.sleep(dice.uniform(1.2, 1.8) if patiently else 0.01 * dice.random())  # the moment is the test
        assert not any(task.done() for task in using), using
        ended_at = time.monotonic()
        for use in uses:
            use.stopping = True
        await lane.end(number)
        gone_at = time.monotonic()
        await asyncio.gather(*using)
        assert number == signal.SIGKILL or not any(use.ledger.cut for use in uses)
        begun_at = time.monotonic()
        await lane.start()
        messages = sum(len(said) for use in uses for said in use.ledger.said.values())
        streams = sum(len(use.ledger.seen) for use in uses)
        lived.append(Life(messages, streams, gone_at - ended_at, time.monotonic() - begun_at))
        for use in uses:
            await nothing_lost(lane.ann, use.ledger, ended_at)
        for conversation_id in list(uses[0].ledger.said)[
            -1:
        ]:  # what comes next works, in the conversation that was hit
            await uses[0]._append(conversation_id)
            await uses[0]._cancel(conversation_id)
    return lived


async def _until_used(uses: list[Use], steps: float) -> None:
    await until(lambda: sum(use.ledger.steps for use in uses) >= steps)


async def _in_lanes(folder: Path, upstream: Upstream, lives: int, number: signal.Signals) -> list[Life]:
    async def live(place: int) -> list[Life]:
        share = lives // LANES + (place < lives % LANES)
        async with Killable(folder / str(place), lmstudio_url=upstream.url) as lane:
            lived = await _lives(lane, share, random.Random(place), number)
        whole(lane.database)
        return lived

    async with asyncio.TaskGroup() as group:
        lanes = [group.create_task(live(place)) for place in range(LANES)]
    lived = [life for lane in lanes for life in lane.result()]
    print(
        f"\n{number.name}: {len(lived)} lives, {sum(life.messages for life in lived)} messages acknowledged and "
        f"{sum(life.streams for life in lived)} streams begun, none lost; gone after {_p95(life.ending for life in lived):.0f} ms, "
        f"there again after {_p95(life.restart for life in lived):.0f} ms (95 of 100)"
    )
    return lived


def _p95(seconds: Iterable[float]) -> float:
    """In milliseconds."""
    ordered = sorted(seconds)
    return ordered[int(len(ordered) * 0.95)] * 1000


async def test_nothing_is_lost_when_it_is_killed(tmp_path: Path, upstream: Upstream) -> None:
    assert len(await _in_lanes(tmp_path, upstream, TRIALS, signal.SIGKILL)) == TRIALS


async def test_it_stops_in_time_and_with_every_word(tmp_path: Path, upstream: Upstream) -> None:
    lived = await _in_lanes(tmp_path, upstream, TERMS, signal.SIGTERM)
    assert len(lived) == TERMS and max(life.ending for life in lived) < STOP_SECONDS
