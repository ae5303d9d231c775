"""Answers of the embedded engine through the whole service, with a real llama.cpp and a small model."""

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
LONG = MODEL | {"max_tokens": 200, "temperature": 0.0, "seed": 1}
SHORT = MODEL | {"max_tokens": 5}
OFFLINE = "http://127.0.0.1:9"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    folder = tmp_path_factory.mktemp("engine")
    async with Running(folder, engine_context="256", lmstudio_url=OFFLINE) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ann(running: Running) -> Person:
    return await running.first()


async def is_idle(running: Running) -> bool:
    server = running.state.providers.get("embedded").backend
    assert isinstance(server, Embedded)
    async with server._engine.use(SMALL) as endpoint, httpx.AsyncClient(trust_env=False) as client:
        headers = {"Authorization": f"Bearer {endpoint.api_key}"}
        slots: list[dict[str, Any]] = good(await client.get(f"{endpoint.url}/slots", headers=headers))
        return not any(slot["is_processing"] for slot in slots)


async def until_first_token(events: AsyncIterator[Event]) -> list[Event]:
    seen = []
    async for event in events:
        seen.append(event)
        if event.event == "delta":
            break
    return seen


async def check_works(person: Person, conversation_id: int) -> None:
    events = await person.answer(conversation_id, **SHORT)
    assert events[-1].data["status"] == "ok" and text(events)


async def test_answer_has_phases_usage_and_speed(ann: Person) -> None:
    conversation_id = await ann.conversation("What is the capital of France?")
    events = await ann.answer(conversation_id, **MODEL, max_tokens=24, temperature=0.0)
    well_formed(events)
    phases = [event.data["phase"] for event in events if event.event == "progress"]
    assert phases[0] == "loading" and phases[-1] == "generating" and "prompt" in phases
    stats, counts = events[-1].data["stats"], next(event.data["usage"] for event in events if event.event == "usage")
    assert counts["total_tokens"] == counts["prompt_tokens"] + counts["completion_tokens"] > 10
    assert stats["context_length"] == 256 and stats["tokens_per_second"] > 0
    assert 0 < stats["ttft_ms"] <= stats["total_ms"]
    assert (await ann.messages(conversation_id))[-1]["content"] == text(events)


async def test_answers_wait_for_one_slot_that_cancel_frees(running: Running, ann: Person) -> None:
    first, second = [await ann.conversation("Count to a thousand.") for _ in range(2)]
    async with ann.streaming(first, **LONG) as events:
        seen = await until_first_token(events)
        assert not await is_idle(running)
        async with ann.streaming(second, **LONG) as others:
            waiting = [await anext(others), await anext(others)]
            assert waiting[1].data["phase"] == "queued" and waiting[1].data["place"] == 1
            good(await ann.post(f"/chat/cancel/{seen[0].data['generation_id']}"))
            waiting += await until_first_token(others)
            good(await ann.post(f"/chat/cancel/{waiting[0].data['generation_id']}"))
            assert [event async for event in others][-1].data["stats"]["queued_ms"] > 0
    await until(lambda: is_idle(running))
    await check_works(ann, first)


@with_proc
async def test_killed_engine_is_an_error_and_the_next_answer_works(ann: Person) -> None:
    conversation_id = await ann.conversation("Count to a thousand.")
    async with ann.streaming(conversation_id, **LONG) as events:
        seen = await until_first_token(events)
        engine = server_of(children())
        assert engine is not None
        os.kill(engine, signal.SIGKILL)
        seen += [event async for event in events]
    well_formed(seen)
    assert [event.data["code"] for event in seen if event.event == "error"] == ["ANSWER_CUT_SHORT"]
    message = (await ann.messages(conversation_id))[-1]
    assert (message["content"], message["status"]) == (text(seen), "error") and text(seen)
    await check_works(ann, conversation_id)


async def test_continued_answer_is_what_the_model_would_have_written(ann: Person) -> None:
    conversation_id = await ann.conversation("Count to a thousand.")
    fixed = MODEL | {"temperature": 0.0, "seed": 1}
    first = await ann.answer(conversation_id, **fixed, max_tokens=8)
    assert first[-1].data["stats"]["finish_reason"] == "length"
    body = fixed | {"conversation_id": conversation_id, "max_tokens": 16}
    generation_id = good(await ann.post("/chat/continue", json=body))["generation_id"]
    continued = await ann.resume(generation_id)
    well_formed(continued)
    counts = next(event.data["usage"] for event in continued if event.event == "usage")
    assert counts["completion_tokens"] == 24
    retried = good(await ann.post("/chat/retry", json=body | {"max_tokens": 24}))["generation_id"]
    assert text(await ann.resume(retried)) == text(continued) != text(first)


async def test_question_longer_than_the_context_is_an_error(ann: Person) -> None:
    events = await ann.answer(await ann.conversation("Tell me about the sea and the sky. " * 100), **SHORT)
    (failure,) = [event.data for event in events if event.event == "error"]
    assert failure["code"] == "CONTEXT_OVERFLOW" and "256" in failure["message"]


@with_proc
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_engine_ends_with_the_service(tmp_path: Path, number: signal.Signals) -> None:
    async with Killable(tmp_path / "data", lmstudio_url=OFFLINE) as service:
        conversation_id = await service.ann.conversation("Count to a thousand.")
        async with service.ann.streaming(conversation_id, **LONG) as events:
            await until_first_token(events)
            engine = children(service.process.pid)
            assert server_of(engine) is not None
            await service.end(number)
        await until(lambda: gone(engine), "the engine to end")
