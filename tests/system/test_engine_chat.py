"""Answers of the embedded engine, through the whole service: a real llama.cpp and a small model."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fireside.backends.engine import Embedded

from ..backends.test_engine import MODEL as SMALL
from ..backends.test_engine import children, gone, server_of, with_proc
from ..live import Event, Person, Running, good, text, until
from ..processes import Killable
from ..witness import well_formed

pytest.importorskip("xllamacpp")
pytestmark = pytest.mark.asyncio(loop_scope="module")

MODEL = {"provider_id": "embedded", "model": SMALL}
ENDLESS = {"max_tokens": 200, "temperature": 0.0, "seed": 1}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    settings = {"engine_context": "256", "lmstudio_url": "http://127.0.0.1:9"}
    async with Running(tmp_path_factory.mktemp("engine"), **settings) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ann(running: Running) -> Person:
    return await running.first()


async def slots(running: Running) -> list[dict[str, Any]]:
    """What the engine says of its slots."""
    server = running.state.providers._servers["embedded"]
    assert isinstance(server, Embedded)
    async with server._engine.use(SMALL) as endpoint, httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(f"{endpoint.url}/slots", headers={"Authorization": f"Bearer {endpoint.api_key}"})
        found: list[dict[str, Any]] = good(answer)
        return found


async def begun(events: AsyncIterator[Event]) -> list[Event]:
    """The events until the first token."""
    seen = []
    async for event in events:
        seen.append(event)
        if event.event == "delta":
            break
    return seen


async def test_an_answer_is_streamed_with_its_phases_its_usage_and_its_speed(ann: Person) -> None:
    conversation_id = await ann.conversation("What is the capital of France?")
    events = await ann.answer(conversation_id, **MODEL, max_tokens=24, temperature=0.0)
    well_formed(events)
    phases = [event.data["phase"] for event in events if event.event == "progress"]
    assert phases[0] == "loading" and phases[-1] == "generating" and "prompt" in phases
    stats, counts = events[-1].data["stats"], next(event.data["usage"] for event in events if event.event == "usage")
    assert counts["total_tokens"] == counts["prompt_tokens"] + counts["completion_tokens"] > 10
    assert (
        stats["context_length"] == 256 and stats["tokens_per_second"] > 0 and 0 < stats["ttft_ms"] <= stats["total_ms"]
    )
    assert (await ann.messages(conversation_id))[-1]["content"] == text(events)


async def test_cancel_frees_the_engines_slot_and_its_next_answer_comes(running: Running, ann: Person) -> None:
    conversation_id = await ann.conversation("Count to a thousand.")
    async with ann.streaming(conversation_id, **MODEL, **ENDLESS) as events:
        seen = await begun(events)
        assert any(slot["is_processing"] for slot in await slots(running))
        good(await ann.post(f"/chat/cancel/{seen[0].data['generation_id']}"))
        seen += [event async for event in events]
    assert seen[-1].data["status"] == "canceled"
    async with asyncio.timeout(10):
        while any(slot["is_processing"] for slot in await slots(running)):  # noqa: ASYNC110 (llama.cpp tells nobody)
            await asyncio.sleep(0.01)
    again = await ann.answer(conversation_id, **MODEL, max_tokens=5)
    assert again[-1].data["status"] == "ok" and text(again)


async def test_one_answer_at_a_time(ann: Person) -> None:
    first, second = [await ann.conversation("Count to a thousand.") for _ in range(2)]
    async with ann.streaming(first, **MODEL, **ENDLESS) as events:
        seen = await begun(events)
        async with ann.streaming(second, **MODEL, max_tokens=5) as others:
            waiting = [await anext(others), await anext(others)]
            assert waiting[1].data["phase"] == "queued" and waiting[1].data["place"] == 1
            good(await ann.post(f"/chat/cancel/{seen[0].data['generation_id']}"))
            waiting += [event async for event in others]
    assert waiting[-1].data["status"] == "ok" and waiting[-1].data["stats"]["queued_ms"] > 0


@with_proc
async def test_an_engine_that_is_killed_is_an_honest_end_and_the_next_answer_works(ann: Person) -> None:
    conversation_id = await ann.conversation("Count to a thousand.")
    async with ann.streaming(conversation_id, **MODEL, **ENDLESS) as events:
        seen = await begun(events)
        engine = server_of(children())
        assert engine is not None
        os.kill(engine, signal.SIGKILL)
        seen += [event async for event in events]
    well_formed(seen)
    assert [event.data["code"] for event in seen if event.event == "error"] == ["ANSWER_CUT_SHORT"]
    message = (await ann.messages(conversation_id))[-1]
    assert (message["content"], message["status"]) == (text(seen), "error") and text(seen)
    again = await ann.answer(conversation_id, **MODEL, max_tokens=5)
    assert again[-1].data["status"] == "ok" and text(again)


async def test_a_conversation_longer_than_the_context_goes_on_without_its_oldest_turns(ann: Person) -> None:
    conversation_id = await ann.conversation()
    for number in range(4):
        await ann.say(conversation_id, f"{number}: " + "Tell me about the sea and the sky. " * 7)
        events = await ann.answer(conversation_id, **MODEL, max_tokens=8, temperature=0.0)
        assert events[-1].data["status"] == "ok"
    assert events[-1].data["stats"]["omitted_messages"] > 0


async def test_a_question_longer_than_the_context_says_so(ann: Person) -> None:
    conversation_id = await ann.conversation("Tell me about the sea and the sky. " * 100)
    events = await ann.answer(conversation_id, **MODEL, max_tokens=8)
    (failure,) = [event.data for event in events if event.event == "error"]
    assert failure["code"] == "CONTEXT_OVERFLOW" and "256" in failure["message"]


@with_proc
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_the_engine_ends_with_the_service(tmp_path: Path, number: signal.Signals) -> None:
    async with Killable(tmp_path / "data", lmstudio_url="http://127.0.0.1:9") as service:
        conversation_id = await service.ann.conversation("Count to a thousand.")
        async with service.ann.streaming(conversation_id, **MODEL, **ENDLESS) as events:
            await begun(events)
            engine = children(service.process.pid)
            assert server_of(engine) is not None
            await service.end(number)
        await until(lambda: gone(engine), "the engine to end")
