"""One model server, several people: so many answers at a time, the users in turn, and everybody knows their place."""

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


class Asked:
    """A stream that is read in the background, and what has come of it so far."""

    def __init__(self, person: Person, conversation_id: int) -> None:
        self.person = person
        self.events: list[Event] = []
        self.reading = asyncio.create_task(self._read(conversation_id))

    async def _read(self, conversation_id: int) -> None:
        async with self.person.streaming(conversation_id, **MODEL) as events:
            async for event in events:
                self.events.append(event)

    @property
    def id(self) -> str:
        return str(self.events[0].data["generation_id"])

    @property
    def places(self) -> list[int]:
        return [event.data["place"] for event in self.events if event.data.get("phase") == "queued"]

    @property
    def phases(self) -> list[str]:
        return [event.data["phase"] for event in self.events if event.event == "progress"]


async def ask(running: Running, person: Person, question: str) -> Asked:
    """Asks, and returns when the generation runs or is in the queue."""
    asked = Asked(person, await person.conversation(question))
    await until(lambda: asked.phases, f"news of {question}")
    return asked


async def test_no_more_are_asked_at_a_time_than_the_settings_say(tmp_path: Path, upstream: Upstream) -> None:
    async with Running(tmp_path, lmstudio_url=upstream.url, lmstudio_concurrency="2") as running:
        ann = await running.first()
        gates = [Gate() for _ in range(5)]
        for gate in gates:
            upstream.enqueue(says("one"), pause(gate), finish("stop"), DONE)
        asked = [await ask(running, ann, f"Question {number}?") for number in range(5)]
        await upstream.received(2)
        assert [one.places for one in asked] == [[], [], [1], [2], [3]]
        for number, gate in enumerate(gates):
            assert len(upstream.chats) == min(2 + number, 5)
            await gate.reached()
            gate.open()
            await asked[number].reading
            await upstream.received(min(3 + number, 5))
        assert [one.places for one in asked] == [[], [], [1], [2, 1], [3, 2, 1]]
        questions = [chat["messages"][-1]["content"] for chat in upstream.chats]
        assert questions == [f"Question {number}?" for number in range(5)]
        assert all(one.events[-1].data["status"] == "ok" for one in asked)
        stats = [one.events[-1].data["stats"] for one in asked]
        assert ["queued_ms" in one for one in stats] == [False, False, True, True, True]
        assert all("place" not in one for one in stats)
        assert asked[4].phases == ["queued", "queued", "queued", "prompt", "generating"]


async def test_lm_studio_is_asked_four_at_a_time_unless_told_otherwise(
    running: Running, ann: Person, upstream: Upstream
) -> None:
    upstream.default = [says("one"), hang()]
    asked = [await ask(running, ann, "Why?") for _ in range(6)]
    await upstream.received(4)
    assert [one.places for one in asked] == [[], [], [], [], [1], [2]]
    for one in asked:
        good(await ann.post(f"/chat/cancel/{one.id}"))
        await one.reading
    assert len(upstream.chats) <= 6
    await until(lambda: upstream.open_connections == 0)


async def test_users_take_turns(tmp_path: Path, upstream: Upstream) -> None:
    async with Running(tmp_path, lmstudio_url=upstream.url, lmstudio_concurrency="1") as running:
        ann = await running.first()
        bob, eve = await running.join(ann, "bob"), await running.join(ann, "eve")
        gate = Gate()
        upstream.enqueue(says("one"), pause(gate), finish("stop"), DONE)
        asked = [await ask(running, ann, "ann 0")]
        for person, question in (
            (ann, "ann 1"),
            (ann, "ann 2"),
            (bob, "bob 1"),
            (ann, "ann 3"),
            (eve, "eve 1"),
            (bob, "bob 2"),
        ):
            asked.append(await ask(running, person, question))
        assert [one.places for one in asked] == [[], [1], [2, 3, 4], [2], [4, 5, 6], [3], [5]]
        gate.open()
        await asyncio.gather(*(one.reading for one in asked))
        order = [chat["messages"][-1]["content"] for chat in upstream.chats]
        assert order == ["ann 0", "ann 1", "bob 1", "eve 1", "ann 2", "bob 2", "ann 3"]
        assert all(one.events[-1].data["status"] == "ok" for one in asked)


async def test_who_waits_can_be_cancelled_and_the_others_move_up(tmp_path: Path, upstream: Upstream) -> None:
    async with Running(tmp_path, lmstudio_url=upstream.url, lmstudio_concurrency="1") as running:
        ann = await running.first()
        gate = Gate()
        upstream.enqueue(says("one"), pause(gate), finish("stop"), DONE)
        first, second, third = [await ask(running, ann, f"Question {number}?") for number in range(3)]
        good(await ann.post(f"/chat/cancel/{second.id}"))
        await second.reading
        assert second.events[-1].data["status"] == "canceled" and text(second.events) == ""
        await until(lambda: third.places == [2, 1])
        gate.open()
        await asyncio.gather(first.reading, third.reading)
        assert [chat["messages"][-1]["content"] for chat in upstream.chats] == ["Question 0?", "Question 2?"]


async def test_a_deleted_conversation_leaves_the_queue(tmp_path: Path, upstream: Upstream) -> None:
    async with Running(tmp_path, lmstudio_url=upstream.url, lmstudio_concurrency="1") as running:
        ann = await running.first()
        upstream.enqueue(says("one"), hang())
        first = await ask(running, ann, "Why?")
        conversation_id = await ann.conversation("Why not?")
        second = Asked(ann, conversation_id)
        await until(lambda: second.places)
        good(await ann.delete(f"/conversations/{conversation_id}?purge=true"))
        await second.reading
        assert second.events[-1].data["status"] == "canceled" and len(upstream.chats) == 1
        good(await ann.post(f"/chat/cancel/{first.id}"))
        await first.reading


async def test_a_stop_interrupts_those_who_wait_too(tmp_path: Path, upstream: Upstream) -> None:
    async with Running(tmp_path, lmstudio_url=upstream.url, lmstudio_concurrency="1") as running:
        ann = await running.first()
        upstream.enqueue(says("one"), hang())
        asked = [await ask(running, ann, f"Question {number}?") for number in range(4)]
        running.server.should_exit = True
        await asyncio.gather(*(one.reading for one in asked))
        assert [one.events[-1].data["status"] for one in asked] == ["interrupted"] * 4
        assert len(upstream.chats) == 1


# ---- the queue by itself


async def test_a_user_at_their_limit_lets_others_pass() -> None:
    slots, order, gates = (
        Slots(2, per_user=1),
        [],
        {name: asyncio.Event() for name in ("ann 1", "ann 2", "bob 1", "eve 1")},
    )

    async def use(name: str) -> None:
        async with slots.slot(ord(name[0])):
            order.append(name)
            await gates[name].wait()

    tasks = [asyncio.create_task(use(name)) for name in gates]
    await settle()
    assert order == ["ann 1", "bob 1"]
    for name, after in (("bob 1", "eve 1"), ("eve 1", None), ("ann 1", "ann 2"), ("ann 2", None)):
        gates[name].set()
        await settle()
        assert order[-1] == after or after is None
    assert order == ["ann 1", "bob 1", "eve 1", "ann 2"]
    await asyncio.gather(*tasks)


def deaf(place: int) -> None:
    """Somebody who does not care about their place."""


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.parametrize("hold", range(4))
async def test_a_cancel_that_meets_its_turn_loses_no_slot(hold: int) -> None:
    """The slot is handed over and the waiter cancelled within a few steps of the event loop, in every order."""
    for cancel_first in (True, False):
        slots, gate = Slots(1), asyncio.Event()

        async def use(slots: Slots = slots, gate: asyncio.Event = gate) -> None:
            async with slots.slot(1, deaf):
                await gate.wait()

        holder = asyncio.create_task(use())
        await settle()
        waiter, last = asyncio.create_task(use()), asyncio.create_task(use())
        await settle()
        steps: list[Callable[[], object]] = [waiter.cancel, gate.set] if cancel_first else [gate.set, waiter.cancel]
        steps[0]()
        for _ in range(hold):
            await asyncio.sleep(0)
        steps[1]()
        async with asyncio.timeout(5):
            await asyncio.gather(holder, waiter, last, return_exceptions=True)
            await use()


async def test_nobody_starves_and_no_slot_is_lost() -> None:
    """A thousand answers of five users, one of them with most, who come, wait, leave and are cancelled at random."""
    dice = random.Random(7)
    slots, capacity, running = Slots(3), 3, 0
    served: Counter[int] = Counter()
    there: Counter[int] = Counter()  # waiting or running

    async def one(user_id: int) -> None:
        nonlocal running
        there[user_id] += 1
        mine, before = there[user_id], Counter(served)
        try:
            async with slots.slot(user_id, deaf):
                overtook = {other: served[other] - before[other] for other in range(5) if other != user_id}
                assert max(overtook.values()) <= mine + capacity, (overtook, mine)
                served[user_id] += 1
                running += 1
                assert running <= capacity
                try:
                    for _ in range(dice.randrange(4)):
                        await asyncio.sleep(0)
                finally:
                    running -= 1
        finally:
            there[user_id] -= 1

    tasks = []
    for _ in range(1000):
        tasks.append(asyncio.create_task(one(dice.choice((0, 0, 0, 0, 1, 1, 2, 3, 4)))))
        if dice.random() < 0.3:
            dice.choice(tasks).cancel()
        if dice.random() < 0.5:
            await asyncio.sleep(0)
    async with asyncio.timeout(20):
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(result) for result in results} == {type(None), asyncio.CancelledError}, results
    async with asyncio.timeout(5):  # else a slot was lost
        async with slots.slot(1, deaf), slots.slot(2, deaf), slots.slot(3, deaf):
            pass
