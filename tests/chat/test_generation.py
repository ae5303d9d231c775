"""What an answer says of itself: what the model is doing, how fast it was, what did not fit, why it ended."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from fireside.chat import generation

from ..live import PATIENCE, Event, Person, Running, code, good, text, until
from ..upstream import (
    DONE,
    Gate,
    LocalModel,
    Step,
    Upstream,
    answer,
    chunk,
    error,
    finish,
    hang,
    pause,
    reasoning,
    refused_url,
    status,
    usage,
)
from ..upstream import text as says
from ..witness import MODEL

NAME = MODEL["model"]


def phases(events: list[Event]) -> list[str]:
    return [event.data["phase"] for event in events if event.event == "progress"]


def codes(events: list[Event]) -> list[str]:
    return [event.data["code"] for event in events if event.event == "error"]


async def ask(person: Person, question: str = "Why?", **fields: Any) -> list[Event]:
    async with asyncio.timeout(PATIENCE):
        return await person.answer(await person.conversation(question), **MODEL, **fields)


# ---- phases


async def test_a_loaded_model_reads_the_prompt_and_writes(ann: Person, upstream: Upstream) -> None:
    upstream.enqueue(answer("Because."))
    events = await ask(ann)
    assert [event.event for event in events] == ["ping", "progress", "progress", "delta", "usage", "done"]
    assert phases(events) == ["prompt", "generating"]


async def test_a_model_that_is_not_loaded_is_said_to_load_until_it_is(
    ann: Person, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "LOADING_POLL_SECONDS", 0.02)
    model = upstream.models[0]
    model.instances.clear()
    gate = Gate()
    upstream.enqueue(pause(gate), answer("Because."))
    conversation_id = await ann.conversation("Why?")
    seen: list[Event] = []
    async with ann.streaming(conversation_id, **MODEL) as events:
        async for event in events:
            seen.append(event)
            if phases(seen) == ["loading"]:
                model.instances[NAME] = 8192
            if phases(seen) == ["loading", "prompt"]:
                gate.open()
    assert phases(seen) == ["loading", "prompt", "generating"]
    assert seen[-1].data["stats"]["context_length"] == 8192


async def test_an_answer_that_loads_its_model_and_is_quick_says_with_what_context(
    ann: Person, upstream: Upstream
) -> None:
    upstream.models[0].instances.clear()
    gate = Gate()
    upstream.enqueue(pause(gate), answer("Because."))
    asking = asyncio.create_task(ask(ann))
    await gate.reached()
    upstream.models[0].instances[NAME] = 8192
    gate.open()
    events = await asking
    assert phases(events) == ["loading", "generating"]
    assert events[-1].data["stats"]["context_length"] == 8192


async def test_nobody_is_polled_before_a_second_has_passed_nor_after_the_first_token(
    ann: Person, upstream: Upstream
) -> None:
    upstream.enqueue(answer("Because."))
    await ask(ann)
    looks = upstream.count("/api/v1/models")
    for _ in range(5):
        upstream.enqueue(answer("Because."))
        await ask(ann)
    assert upstream.count("/api/v1/models") == looks


async def test_a_server_that_does_not_tell_is_not_said_to_load(tmp_path: Path) -> None:
    with Upstream(without=("/api/v1", "/api/v0")) as upstream:
        async with Running(tmp_path, lmstudio_url=upstream.url) as running:
            ann = await running.first()
            upstream.enqueue(answer("Because."))
            assert phases(await ask(ann)) == ["prompt", "generating"]


async def test_progress_of_the_prompt_is_passed_on_once_each(ann: Person, upstream: Upstream) -> None:
    steps = [chunk({}, prompt_progress={"total": 900, "processed": done}) for done in (300, 300, 600, 900)]
    upstream.enqueue(*steps, answer("Because."))
    events = await ask(ann)
    told = [event.data for event in events if event.event == "progress"]
    assert [(one["phase"], one.get("done"), one.get("total")) for one in told] == [
        ("prompt", None, None),
        ("prompt", 300, 900),
        ("prompt", 600, 900),
        ("prompt", 900, 900),
        ("generating", None, None),
    ]


async def test_a_slow_prompt_can_be_cancelled_from_its_first_event(ann: Person, upstream: Upstream) -> None:
    upstream.enqueue(hang())
    conversation_id = await ann.conversation("Why?")
    async with ann.streaming(conversation_id, **MODEL) as events:
        ping = await anext(events)
        assert ping.event == "ping" and {"generation_id", "message_id", "ts"} <= set(ping.data)
        good(await ann.post(f"/chat/cancel/{ping.data['generation_id']}"))
        await upstream.closed()


async def test_silence_is_filled_with_pings_that_no_log_holds(tmp_path: Path, upstream: Upstream) -> None:
    async with Running(tmp_path, lmstudio_url=upstream.url, ping_seconds="0.05") as running:
        ann = await running.first()
        gate = Gate()
        upstream.enqueue(pause(gate), answer("Because."))
        conversation_id = await ann.conversation("Why?")
        seen: list[Event] = []
        async with ann.streaming(conversation_id, **MODEL) as events:
            async for event in events:
                seen.append(event)
                if [one.id for one in seen].count(None) == 3:
                    gate.open()
        pings = [event for event in seen if event.id is None]
        assert len(pings) >= 3 and all(ping.event == "ping" and ping.data["ts"] for ping in pings)
        assert await ann.answer(conversation_id) == [event for event in seen if event.id is not None]


# ---- stats


async def test_times_and_speed_are_measured_here(ann: Person, upstream: Upstream) -> None:
    first, second = Gate(), Gate()
    upstream.enqueue(pause(first), says("one "), pause(second), says("two"), finish("stop"), usage(40, 11), DONE)
    conversation_id = await ann.conversation("Why?")
    moments = {"asked": time.monotonic()}
    async with ann.streaming(conversation_id, **MODEL) as events:
        async for event in events:
            moments.setdefault(text([event]) or event.event, time.monotonic())
            if event.event == "progress" and event.data["phase"] == "prompt":
                await first.reached()
                await asyncio.sleep(0.1)  # what is measured
                first.open()
            if text([event]) == "one ":
                await asyncio.sleep(0.2)
                second.open()
    stats = event.data["stats"]
    waited, took = moments["one "] - moments["asked"], moments["two"] - moments["one "]
    assert 100 <= stats["ttft_ms"] <= waited * 1000
    assert stats["ttft_ms"] + 200 <= stats["total_ms"] <= (moments["done"] - moments["asked"]) * 1000
    assert 10 / (took + 0.1) <= stats["tokens_per_second"] <= 10 / 0.2
    assert stats["finish_reason"] == "stop" and stats["context_length"] == 4096 and stats["omitted_messages"] == 0
    message = (await ann.messages(conversation_id))[-1]
    assert message["stats"] == stats and message["token_usage"]["total_tokens"] == 51


async def test_an_answer_without_a_word_has_no_speed(ann: Person, upstream: Upstream) -> None:
    upstream.enqueue(finish("stop"), usage(40, 11), DONE)
    stats = (await ask(ann))[-1].data["stats"]
    assert "ttft_ms" not in stats and "tokens_per_second" not in stats and stats["total_ms"] >= 0


async def test_thinking_is_timed_and_counts_as_the_first_token(ann: Person, upstream: Upstream) -> None:
    gate = Gate()
    upstream.enqueue(
        reasoning("hm"), pause(gate), reasoning(" so"), says("Because."), finish("stop"), usage(9, 5), DONE
    )
    conversation_id = await ann.conversation("Why?")
    async with ann.streaming(conversation_id, **MODEL) as events:
        async for event in events:
            if event.event == "reasoning" and event.data["delta"] == "hm":
                await asyncio.sleep(0.05)  # what is measured
                gate.open()
    stats = event.data["stats"]
    assert 50 <= stats["reasoning_ms"] <= stats["total_ms"] - stats["ttft_ms"] + 1


async def test_the_reason_to_finish_is_shown(ann: Person, upstream: Upstream) -> None:
    upstream.enqueue(says("Because it"), finish("length"), usage(9, 5), DONE)
    events = await ask(ann)
    assert events[-1].data["status"] == "ok" and events[-1].data["stats"]["finish_reason"] == "length"


# ---- context


async def told(person: Person, upstream: Upstream, conversation_id: int, question: str, count: int = 0) -> list[Event]:
    """One more turn, in which the server counts so many tokens of all."""
    await person.say(conversation_id, question)
    upstream.enqueue(says("Well, well."), finish("stop"), usage(count - 5, 5) if count else b"", DONE)
    return await person.answer(conversation_id, **MODEL)


def asked(upstream: Upstream) -> list[str]:
    return [message["content"] for message in upstream.chats[-1]["messages"] if message["role"] == "user"]


async def test_what_does_not_fit_into_a_known_context_is_left_out_and_told(ann: Person, upstream: Upstream) -> None:
    upstream.models[0].instances[NAME] = 1000
    conversation_id = await ann.conversation(system_prompt="Be short.")
    omitted = []
    for number in range(12):
        events = await told(ann, upstream, conversation_id, f"{number}: " + "word " * 100)
        omitted.append(events[-1].data["stats"]["omitted_messages"])
        assert upstream.chats[-1]["messages"][0] == {"role": "system", "content": "Be short."}
        assert len(upstream.chats[-1]["messages"]) == 1 + 2 * number + 1 - omitted[-1]
        assert asked(upstream)[-1].startswith(f"{number}: ")
    assert omitted[0] == 0 and omitted[-1] > 0 and omitted == sorted(omitted)
    assert len(set(omitted)) <= 6, "the oldest go in large steps, so that the cache keeps its worth"
    assert [message["stats"]["omitted_messages"] for message in (await ann.messages(conversation_id))[1::2]] == omitted


async def test_a_server_that_says_it_is_too_much_is_asked_again_with_less(ann: Person, upstream: Upstream) -> None:
    conversation_id = await ann.conversation()
    for number in range(6):
        await told(ann, upstream, conversation_id, f"Question {number}?")
    refusal = status(400, {"error": "The number of tokens to keep is greater than the context length (n_ctx: 40)."})
    await ann.say(conversation_id, "Question 6?")
    upstream.enqueue(refusal)
    upstream.enqueue(refusal)
    upstream.enqueue(answer("Well."))
    events = await ann.answer(conversation_id, **MODEL)
    requests = [len(chat["messages"]) for chat in upstream.chats[-3:]]
    assert events[-1].data["status"] == "ok" and codes(events) == [] and text(events) == "Well."
    assert requests[0] == 13 > requests[1] > requests[2] >= 1
    assert events[-1].data["stats"]["omitted_messages"] == 13 - requests[2]
    await told(ann, upstream, conversation_id, "Question 7?")
    assert len(upstream.chats[-1]["messages"]) == requests[2] + 2  # what was too much is not tried again


OVERFLOWS: list[tuple[Step, ...]] = [
    (
        status(
            400,
            {
                "error": "Trying to keep the first 5000 tokens when context the overflows. However, the model is loaded with"
                " context length of only 4096 tokens, which is not enough."
            },
        ),
    ),
    (
        error(
            "The number of tokens to keep from the initial prompt is greater than the context length (n_keep: 5000>= n_ctx: 4096)."
        ),
    ),
    (error("Reached context length of 4096 tokens with model (arch: gpt-oss)"),),
    (
        status(
            400,
            {
                "error": {
                    "code": 400,
                    "type": "exceed_context_size_error",
                    "message": "the request exceeds the available context size",
                    "n_prompt_tokens": 5000,
                    "n_ctx": 4096,
                }
            },
        ),
    ),
    (
        status(
            400,
            {
                "object": "error",
                "message": "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens.",
                "code": 400,
            },
        ),
    ),
]


@pytest.mark.parametrize("steps", OVERFLOWS, ids=["older LM Studio", "LM Studio", "gpt-oss", "llama.cpp", "vLLM"])
async def test_a_question_too_long_for_any_context_says_so_and_what_helps(
    ann: Person, upstream: Upstream, steps: tuple[Step, ...]
) -> None:
    upstream.enqueue(*steps)
    events = await ask(ann)
    (failure,) = [event.data for event in events if event.event == "error"]
    assert (
        failure["code"] == "CONTEXT_OVERFLOW"
        and "4096" in failure["message"]
        and "larger context" in failure["message"]
    )
    assert len(upstream.chats) == 1


async def test_an_overflow_after_the_first_word_is_not_tried_again(ann: Person, upstream: Upstream) -> None:
    conversation_id = await ann.conversation()
    await told(ann, upstream, conversation_id, "First?")
    await ann.say(conversation_id, "Second?")
    upstream.enqueue(says("Well"), *OVERFLOWS[2])
    events = await ann.answer(conversation_id, **MODEL)
    assert (codes(events), text(events), len(upstream.chats)) == (["CONTEXT_OVERFLOW"], "Well", 2)


async def test_the_model_is_looked_up_before_its_first_answer(
    running: Running, ann: Person, upstream: Upstream
) -> None:
    """Nobody has asked for the models: the context length is known all the same."""
    upstream.models[0].instances[NAME] = 512
    upstream.enqueue(answer("Because."))
    assert (await ask(ann))[-1].data["stats"]["context_length"] == 512


async def test_a_slow_list_of_models_delays_nothing_for_long(ann: Person, upstream: Upstream) -> None:
    upstream.enqueue(hang(), path="/api/v1/models")
    upstream.enqueue(answer("Because."))
    begun = time.monotonic()
    assert text(await ask(ann)) == "Because."
    assert time.monotonic() - begun < generation.LOOK_SECONDS + 5


async def test_images_are_refused_for_a_model_that_cannot_see(
    running: Running, ann: Person, upstream: Upstream
) -> None:
    upstream.models.append(LocalModel("blind", "Blind"))
    conversation_id = await ann.conversation("What is this?")
    sql = "INSERT INTO images (message_id, position, media_type, data) SELECT max(id), 0, 'image/png', x'89' FROM messages"
    await running.state.database.write(lambda conn: conn.execute(sql))
    events = await ann.answer(conversation_id, provider_id="lmstudio", model="blind")
    assert codes(events) == ["VISION_UNSUPPORTED"] and not upstream.chats


async def test_images_are_sent_where_the_server_does_not_say_who_sees(tmp_path: Path, upstream: Upstream) -> None:
    provider = f'[[providers]]\nid = "box"\nkind = "openai"\nurl = "{upstream.url}/v1"\n'
    (tmp_path / "config.toml").write_text(provider, "utf-8")
    async with Running(tmp_path, lmstudio_url=upstream.url) as running:
        ann = await running.first()
        conversation_id = await ann.conversation("What is this?")
        sql = "INSERT INTO images (message_id, position, media_type, data) SELECT max(id), 0, 'image/png', x'89' FROM messages"
        await running.state.database.write(lambda conn: conn.execute(sql))
        upstream.enqueue(answer("A dot."))
        assert text(await ann.answer(conversation_id, provider_id="box", model=NAME)) == "A dot."
        kinds = {part["type"] for part in upstream.chats[-1]["messages"][-1]["content"]}
        assert kinds == {"text", "image_url"}


async def test_the_health_of_a_server_waits_for_no_other(tmp_path: Path, upstream: Upstream) -> None:
    with Upstream() as slow:
        provider = f'[[providers]]\nid = "box"\nkind = "openai"\nurl = "{slow.url}/v1"\n'
        (tmp_path / "config.toml").write_text(provider, "utf-8")
        async with Running(tmp_path, lmstudio_url=upstream.url) as running:
            ann = await running.first()
            asked = len(slow.requests)
            assert good(await ann.get("/providers/lmstudio/health")) == {"online": True, "error": None}
            assert len(slow.requests) == asked
            assert code(await ann.get("/providers/nobody/health")) == (404, "PROVIDER_NOT_FOUND")


# ---- deadlines


@pytest.mark.parametrize(
    ("setting", "steps", "hint"),
    [
        ("first_token_seconds", (chunk({"role": "assistant"}), hang()), "did not begin to answer within 0.3 s"),
        ("between_tokens_seconds", (says("one"), hang()), "was silent for 0.3 s"),
        ("total_seconds", (says("one"), hang()), "not complete after 0.3 s"),
    ],
)
async def test_a_deadline_ends_the_answer_and_keeps_its_text(
    tmp_path: Path, upstream: Upstream, setting: str, steps: tuple[Step, ...], hint: str
) -> None:
    async with Running(tmp_path, lmstudio_url=upstream.url, **{setting: "0.3"}) as running:
        ann = await running.first()
        upstream.enqueue(*steps)
        events = await ask(ann)
        await upstream.closed()
        (failure,) = [event.data for event in events if event.event == "error"]
        assert failure["code"] == "PROVIDER_TIMEOUT" and hint in failure["message"]
        assert text(events) == ("one" if len(steps) and steps[0] == says("one") else "")
        assert events[-1].data["stats"]["total_ms"] >= 300


async def test_waiting_in_the_queue_uses_up_no_deadline(tmp_path: Path, upstream: Upstream) -> None:
    settings = {"first_token_seconds": "0.3", "between_tokens_seconds": "5", "lmstudio_concurrency": "1"}
    async with Running(tmp_path, lmstudio_url=upstream.url, **settings) as running:
        ann = await running.first()
        gate = Gate()
        upstream.enqueue(says("one"), pause(gate), finish("stop"), DONE)
        upstream.enqueue(answer("two"))
        first = asyncio.create_task(ask(ann))
        await gate.reached()
        second = asyncio.create_task(ask(ann))
        await until(lambda: len(running.state.hub.generations) == 2)
        await asyncio.sleep(0.5)  # longer than the deadline
        gate.open()
        assert text(await first) == "one" and text(await second) == "two"


async def test_only_administrators_see_the_address_of_a_model_server(tmp_path: Path) -> None:
    address = refused_url()
    async with Running(tmp_path / "data", lmstudio_url=address) as running:
        ann = await running.first()
        bob = await running.join(ann, "bob")
        conversation_id = await bob.conversation("Hi")
        events = await bob.answer(conversation_id, provider_id="lmstudio", model="m")
        answers = [await bob.get(f"/providers{path}") for path in ("", "/lmstudio/health", "/lmstudio/models")]
        seen = [str(events), *(answer.text for answer in answers), str(await bob.messages(conversation_id))]
        for shown in seen:
            assert "LM Studio cannot be reached. Is its server running?" in shown
            assert address.removeprefix("http://") not in shown
        for path in ("", "/lmstudio/health"):
            assert f"({address}: the connection was refused)" in (await ann.get(f"/providers{path}")).text
