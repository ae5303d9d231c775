"""Kill Fireside at random moments: acknowledged data survives, and unfinished answers end as interrupted.

A trial starts the service, checks what the last trial left, uses it and kills it. trials.py sets the number of trials.
"""

import asyncio
import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ..live import NO_TLS, PATIENCE, Event, Person, good, parse, text, until
from ..processes import Killable
from ..trials import TRIALS
from ..upstream import DONE, Pace, Upstream, finish, pause, usage
from ..upstream import text as says
from ..witness import MODEL, STATUS, whole

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")

LANES = 4  # services at a time, since a trial mostly waits
USERS = 2  # of each service
LOST_SECONDS = 1.0  # at most, of an answer when the server is killed
STOP_SECONDS = 5.0  # at most, from SIGTERM to the end of the process
WORDS = 700  # of an answer, one every few milliseconds


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    """A model server with long answers."""
    with Upstream() as upstream:
        words = [step for number in range(WORDS) for step in (says(f"{number} "), pause(Pace(0.002)))]
        upstream.default = [*words, finish("stop"), usage(7, WORDS), DONE]
        yield upstream


class Stopped(Exception):
    """The service is stopping."""


class Use:
    """Random requests of one user until the service is gone, and what it has acknowledged."""

    def __init__(self, person: Person, dice: random.Random) -> None:
        self.person = person
        self.dice = dice
        self.messages: dict[int, dict[int, str]] = {}  # by conversation, by message
        self.events: dict[str, list[tuple[float, Event]]] = {}  # by generation, with their times
        self.canceled: set[str] = set()
        # By conversation, generation and question: the words that a program has read, with their times.
        self.relayed: dict[tuple[int, str, str], list[tuple[float, str]]] = {}
        self.steps = 0  # responses and events
        self.cut = False  # a stream broke off
        self.stopping = False

    async def until_it_ends(self, one_long_answer: bool) -> None:
        actions = (self._append, self._stream, self._stream, self._cancel, self._retry, self._continue, self._relay)
        with contextlib.suppress(Stopped, httpx.TransportError):
            while True:
                action = self._stream if one_long_answer else self.dice.choice(actions)
                await action(await self._conversation())

    async def _post(self, path: str, **body: Any) -> Any:
        response = await self.person.post(path, json=body)
        if response.status_code == 503 or (self.stopping and response.status_code == 404):  # the stop canceled it
            raise Stopped
        self.steps += 1
        return good(response)

    async def _conversation(self) -> int:
        conversation_id: int = (await self._post("/conversations"))["id"]
        self.messages[conversation_id] = {}
        await self._append(conversation_id)
        return conversation_id

    async def _append(self, conversation_id: int) -> None:
        content = f"Tell me about {self.dice.getrandbits(64)}. {'Much, please. ' * self.dice.randrange(200)}"
        message_id = (await self._post(f"/conversations/{conversation_id}/messages", content=content))["message_id"]
        self.messages[conversation_id][message_id] = content

    async def _stream(self, conversation_id: int, count: int = WORDS * 2) -> str:
        """Read up to `count` events. Return the id of the generation."""
        return await self._read(count, method="POST", url=f"/conversations/{conversation_id}/stream", json=MODEL)

    async def _read(self, count: int, **request: Any) -> str:
        async with self.person.stream(**request) as response:
            if response.status_code == 503:
                raise Stopped
            self.cut = True
            async for event in parse(response):
                seen = self.events.setdefault(event.data["generation_id"], [])
                seen.append((time.monotonic(), event))
                self.steps += 1
                if len(seen) >= count:
                    break
            self.cut = False
        return str(event.data["generation_id"])

    async def _cancel(self, conversation_id: int) -> str:
        generation_id = await self._stream(conversation_id, self.dice.choice((1, 2, 5, 50)))
        await self._post(f"/chat/cancel/{generation_id}")
        self.canceled.add(generation_id)
        return generation_id

    async def _retry(self, conversation_id: int) -> None:
        await self._cancel(conversation_id)
        generation_id = (await self._post("/chat/retry", conversation_id=conversation_id, **MODEL))["generation_id"]
        self.events[generation_id] = []
        await self._read(self.dice.choice((1, 50, WORDS)), method="GET", url=f"/generations/{generation_id}/stream")

    async def _continue(self, conversation_id: int) -> None:
        canceled = await self._cancel(conversation_id)
        if text([event for _, event in self.events[canceled]]):
            generation_id = (await self._post("/chat/continue", conversation_id=conversation_id, **MODEL))[
                "generation_id"
            ]
            self.events[generation_id] = []
            await self._read(
                self.dice.choice((1, 5, 50, WORDS)), method="GET", url=f"/generations/{generation_id}/stream"
            )

    async def _relay(self, _: int) -> None:
        """Ask as another program does, and read up to a number of words."""
        token = (await self._post("/tokens", name="Program"))["token"]
        question = f"Tell a program about {self.dice.getrandbits(64)}."
        body = {"messages": [{"role": "user", "content": question}], "stream": True}
        headers = {"Authorization": f"Bearer {token}"}
        count = self.dice.choice((1, 50, WORDS))
        async with (
            httpx.AsyncClient(
                base_url=self.person.base_url, trust_env=False, verify=NO_TLS, timeout=PATIENCE
            ) as program,
            program.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response,
        ):
            if response.status_code != 200:
                raise Stopped
            place = (int(response.headers["x-fireside-conversation-id"]), response.headers["x-fireside-generation-id"])
            words = self.relayed.setdefault((*place, question), [])
            async for line in response.aiter_lines():
                if '"content": "' in line:
                    words.append((time.monotonic(), json.loads(line[6:])["choices"][0]["delta"]["content"]))
                    self.steps += 1
                if len(words) >= count:
                    break

    async def _check_relayed(self, ended_at: float) -> None:
        """Check that what a program asked is there, and of what it read all but the last second."""
        for (conversation_id, generation_id, question), words in self.relayed.items():
            asked, answer = await self.person.messages(conversation_id)
            assert asked["content"] == question and answer["status"] in ("complete", "canceled", "interrupted")
            assert answer["content"].startswith(
                "".join(word for moment, word in words if moment < ended_at - LOST_SECONDS)
            )
            replayed = await self.person.resume(generation_id)
            assert text(replayed) == answer["content"] and replayed[-1].event == "done"

    async def check(self, ended_at: float) -> None:
        """Check that all that was acknowledged is there, except the last second of unfinished answers."""
        await self._check_relayed(ended_at)
        shown: dict[int, dict[str, Any]] = {}
        for conversation_id, messages in self.messages.items():
            shown |= {message["id"]: message for message in await self.person.messages(conversation_id)}
            assert {message_id: shown.get(message_id, {}).get("content") for message_id in messages} == messages
            assert good(await self.person.get(f"/conversations/{conversation_id}"))["generation_id"] is None
        for generation_id, timed in self.events.items():
            seen = [event for _, event in timed if event.id]
            replayed = await self.person.resume(generation_id)
            kinds, ids = [event.event for event in replayed], [event.id or 0 for event in replayed]
            assert kinds.count("done") == 1 and kinds[-1] == "done" and ids == sorted(set(ids))
            if seen and seen[-1].event == "done":
                assert seen == replayed
            else:
                await self._check_resumed(generation_id, seen, replayed)
            old = [event for moment, event in timed if moment < ended_at - LOST_SECONDS and event.id]
            assert replayed[: len(old)] == old, "more than the last second was lost"
            if generation_id in self.canceled:
                assert replayed[-1].data["status"] == "canceled" and text(replayed).startswith(text(seen))
            message = shown.get(replayed[-1].data["message_id"])  # None when another version is shown
            expected = text(replayed), STATUS[replayed[-1].data["status"]]
            if message is not None and message["generation_id"] != generation_id:  # it was continued
                assert message["content"].startswith(text(replayed))
            elif message is not None:
                assert (message["content"], message["status"]) == expected

    async def _check_resumed(self, generation_id: str, seen: list[Event], replayed: list[Event]) -> None:
        """A reader that resumes has each event once: it continues after a saved event, and is reset after another."""
        saved = {event.id: event for event in replayed}
        assert all(saved.get(event.id, event) == event for event in seen), "an event has changed"
        for count in {len(seen), min(len(seen), len(replayed)), min(len(seen), 1)}:
            rest = await self.person.resume(generation_id, seen[count - 1].id or 0 if count else 0)
            if rest and rest[0].event == "reset":
                assert rest[1:] == replayed and seen[count - 1] not in replayed
            else:
                assert seen[:count] + rest == replayed


async def live(lane: Killable, trial: int, dice: random.Random, number: signal.Signals) -> float:
    """Use the service, end it, start it again and check it. Return the seconds until it had ended."""
    one_long_answer = trial % 10 == 0
    uses = [Use(lane.ann, dice) for _ in range(USERS)]
    using = [asyncio.create_task(use.until_it_ends(one_long_answer)) for use in uses]
    steps = dice.choice((5, 50, 500)) * dice.random()
    await until(lambda: sum(use.steps for use in uses) >= steps)
    await asyncio.sleep(dice.uniform(1.2, 1.8) if one_long_answer else 0.01 * dice.random())  # a random moment
    assert not any(task.done() for task in using), using
    ended_at = time.monotonic()
    for use in uses:
        use.stopping = True
    await lane.end(number)
    seconds = time.monotonic() - ended_at
    await asyncio.gather(*using)
    assert number == signal.SIGKILL or not any(use.cut for use in uses)
    await lane.start()
    for use in uses:
        await use.check(ended_at)
    for conversation_id in list(uses[0].messages)[-1:]:  # the conversation can be continued
        await uses[0]._append(conversation_id)
        await uses[0]._cancel(conversation_id)
    return seconds


@pytest.mark.parametrize(
    ("number", "trials"), [(signal.SIGKILL, TRIALS), (signal.SIGTERM, max(TRIALS // 2, 1))], ids=["kill", "stop"]
)
async def test_acknowledged_data_survives(
    tmp_path: Path, upstream: Upstream, number: signal.Signals, trials: int
) -> None:
    """After SIGTERM the service also ends in time, and each of its streams has its last event."""

    async def run(place: int) -> list[float]:
        async with Killable(tmp_path / str(place), lmstudio_url=upstream.url) as lane:
            dice = random.Random(place)
            seconds = [await live(lane, trial, dice, number) for trial in range(len(range(place, trials, LANES)))]
        whole(lane.database)
        return seconds

    async with asyncio.TaskGroup() as group:
        lanes = [group.create_task(run(place)) for place in range(LANES)]
    endings = [seconds for lane in lanes for seconds in lane.result()]
    assert len(endings) == trials and (number == signal.SIGKILL or max(endings) < STOP_SECONDS)
