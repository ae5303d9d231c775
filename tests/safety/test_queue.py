"""The queue of a model server: a limited number of answers at a time, users in turn, and positions that readers see."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from fireside.safety.queue import Slots

from ..live import Event, Person, Running, good, text, until
from ..upstream import DONE, Gate, Upstream, finish, hang, pause
from ..upstream import text as says
from ..witness import MODEL


class Reader:
    """The events of an answer, read in the background."""

    def __init__(self, person: Person, conversation_id: int) -> None:
        self.events: list[Event] = []
        self.reading = asyncio.create_task(self._read(person, conversation_id))

    async def _read(self, person: Person, conversation_id: int) -> None:
        async with person.streaming(conversation_id, **MODEL) as events:
            async for event in events:
                self.events.append(event)

    @property
    def path(self) -> str:
        return f"/chat/cancel/{self.events[0].data['generation_id']}"

    @property
    def places(self) -> list[int]:
        return [event.data["place"] for event in self.events if event.data.get("phase") == "queued"]

    @property
    def phases(self) -> list[str]:
        return [event.data["phase"] for event in self.events if event.event == "progress"]

    @property
    def status(self) -> str:
        return str(self.events[-1].data["status"])


async def ask(person: Person, question: str) -> Reader:
    """Return when the answer runs or is in the queue."""
    reader = Reader(person, await person.conversation(question))
    await until(lambda: reader.phases, question)
    return reader


def questions(upstream: Upstream) -> list[str]:
    return [chat["messages"][-1]["content"] for chat in upstream.chats]


async def test_configured_number_of_answers_runs_at_a_time(tmp_path: Path, upstream: Upstream) -> None:
    async with Running(tmp_path, lmstudio_url=upstream.url, lmstudio_concurrency="2") as running:
        ann = await running.first()
        gates = [Gate() for _ in range(5)]
        for gate in gates:
            upstream.enqueue(says("one"), pause(gate), finish("stop"), DONE)
        readers = [await ask(ann, f"Question {number}?") for number in range(5)]
        await upstream.received(2)
        assert [reader.places for reader in readers] == [[], [], [1], [2], [3]]
        for number, gate in enumerate(gates):
            assert len(upstream.chats) == min(2 + number, 5)
            await gate.reached()
            gate.open()
            await readers[number].reading
            await upstream.received(min(3 + number, 5))
        assert [reader.places for reader in readers] == [[], [], [1], [2, 1], [3, 2, 1]]
        assert questions(upstream) == [f"Question {number}?" for number in range(5)]
        assert {reader.status for reader in readers} == {"ok"}
        queued = ["queued_ms" in reader.events[-1].data["stats"] for reader in readers]
        assert queued == [False, False, True, True, True]
        assert readers[4].phases == ["queued", "queued", "queued", "prompt", "generating"]


async def test_four_answers_run_at_a_time_by_default(ann: Person, upstream: Upstream) -> None:
    upstream.default = [says("one"), hang()]
    readers = [await ask(ann, "Why?") for _ in range(6)]
    await upstream.received(4)
    assert [reader.places for reader in readers] == [[], [], [], [], [1], [2]]
    for reader in readers:
        good(await ann.post(reader.path))
        await reader.reading
    await until(lambda: upstream.open_connections == 0)


async def test_users_take_turns(tmp_path: Path, upstream: Upstream) -> None:
    async with Running(tmp_path, lmstudio_url=upstream.url, lmstudio_concurrency="1") as running:
        ann = await running.first()
        bob, eve = await running.join(ann, "bob"), await running.join(ann, "eve")
        gate = Gate()
        upstream.enqueue(says("one"), pause(gate), finish("stop"), DONE)
        order = (ann, ann, ann, bob, ann, eve, bob)
        readers = [await ask(person, f"{person.name} {number}") for number, person in enumerate(order)]
        assert [reader.places for reader in readers] == [[], [1], [2, 3, 4], [2], [4, 5, 6], [3], [5]]
        gate.open()
        await asyncio.gather(*(reader.reading for reader in readers))
        assert questions(upstream) == ["ann 0", "ann 1", "bob 3", "eve 5", "ann 2", "bob 6", "ann 4"]
        assert {reader.status for reader in readers} == {"ok"}


@pytest.mark.parametrize("how", ["cancel", "purge"])
async def test_queued_answer_can_be_canceled_and_the_others_move_up(
    tmp_path: Path, upstream: Upstream, how: str
) -> None:
    async with Running(tmp_path, lmstudio_url=upstream.url, lmstudio_concurrency="1") as running:
        ann = await running.first()
        gate = Gate()
        upstream.enqueue(says("one"), pause(gate), finish("stop"), DONE)
        first, second, third = [await ask(ann, f"Question {number}?") for number in range(3)]
        conversation_id = second.events[0].data["conversation_id"]
        purge = f"/conversations/{conversation_id}?purge=true"
        good(await (ann.post(second.path) if how == "cancel" else ann.delete(purge)))
        await second.reading
        assert second.status == "canceled" and text(second.events) == ""
        await until(lambda: third.places == [2, 1])
        gate.open()
        await asyncio.gather(first.reading, third.reading)
        assert questions(upstream) == ["Question 0?", "Question 2?"]


async def test_stop_of_the_server_interrupts_queued_answers(tmp_path: Path, upstream: Upstream) -> None:
    async with Running(tmp_path, lmstudio_url=upstream.url, lmstudio_concurrency="1") as running:
        ann = await running.first()
        upstream.enqueue(says("one"), hang())
        readers = [await ask(ann, f"Question {number}?") for number in range(4)]
        running.server.should_exit = True
        await asyncio.gather(*(reader.reading for reader in readers))
        assert {reader.status for reader in readers} == {"interrupted"} and len(upstream.chats) == 1


# ---- the semaphore alone


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_user_at_their_limit_is_passed_by_others() -> None:
    slots, order = Slots(2, per_user=1), []
    gates = {name: asyncio.Event() for name in ("ann 1", "ann 2", "bob 1", "eve 1")}

    async def use(name: str) -> None:
        async with slots.slot(name[:3]):
            order.append(name)
            await gates[name].wait()

    tasks = [asyncio.create_task(use(name)) for name in gates]
    await settle()
    assert order == ["ann 1", "bob 1"] and (slots.waiting(), slots.waiting("ann")) == (2, 1)
    for name, following in (("bob 1", "eve 1"), ("eve 1", "eve 1"), ("ann 1", "ann 2"), ("ann 2", "ann 2")):
        gates[name].set()
        await settle()
        assert order[-1] == following
    await asyncio.gather(*tasks)


async def test_capacity_changes_while_slots_are_held() -> None:
    slots, holding, gates = Slots(1), set(), [asyncio.Event() for _ in range(5)]

    async def use(number: int) -> None:
        async with slots.slot(1):
            holding.add(number)
            await gates[number].wait()
            holding.remove(number)

    tasks = [asyncio.create_task(use(number)) for number in range(5)]
    for capacity, ended, held in ((1, None, {0}), (3, None, {0, 1, 2}), (1, 0, {1, 2}), (1, 1, {2}), (1, 2, {3})):
        slots.resize(capacity)
        if ended is not None:
            gates[ended].set()
        await settle()
        assert holding == held
    for gate in gates:
        gate.set()
    await asyncio.gather(*tasks)


@pytest.mark.parametrize("steps", range(4))
@pytest.mark.parametrize("cancel_first", [True, False])
async def test_cancel_in_the_moment_of_a_grant_loses_no_slot(steps: int, cancel_first: bool) -> None:
    slots, gate = Slots(1), asyncio.Event()

    async def use() -> None:
        async with slots.slot(1):
            await gate.wait()

    holder = asyncio.create_task(use())
    await settle()
    waiter, last = asyncio.create_task(use()), asyncio.create_task(use())
    await settle()
    actions: list[Callable[[], object]] = [waiter.cancel, gate.set]
    first, second = actions if cancel_first else reversed(actions)
    first()
    for _ in range(steps):
        await asyncio.sleep(0)
    second()
    async with asyncio.timeout(5):
        await asyncio.gather(holder, waiter, last, return_exceptions=True)
        await use()


async def test_random_use_starves_no_user_and_loses_no_slot() -> None:
    """A thousand answers of five users, of whom one has most, wait, run and are canceled at random."""
    dice, capacity, running = random.Random(7), 3, 0
    slots = Slots(capacity)
    served: Counter[int] = Counter()
    present: Counter[int] = Counter()  # waiting or running

    async def use(user: int) -> None:
        nonlocal running
        present[user] += 1
        own, before = present[user], Counter(served)
        try:
            async with slots.slot(user):
                overtaken = max(served[other] - before[other] for other in range(5) if other != user)
                assert overtaken <= own + capacity
                served[user] += 1
                running += 1
                assert running <= capacity
                try:
                    for _ in range(dice.randrange(4)):
                        await asyncio.sleep(0)
                finally:
                    running -= 1
        finally:
            present[user] -= 1

    tasks = []
    for _ in range(1000):
        tasks.append(asyncio.create_task(use(dice.choice((0, 0, 0, 0, 1, 1, 2, 3, 4)))))
        if dice.random() < 0.3:
            dice.choice(tasks).cancel()
        if dice.random() < 0.5:
            await asyncio.sleep(0)
    async with asyncio.timeout(20):
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(result) for result in results} == {type(None), asyncio.CancelledError}, results
    async with asyncio.timeout(5), slots.slot(1), slots.slot(2), slots.slot(3):
        assert slots.waiting() == 0
