"""What an answer reports: its phases, its statistics, what was left out, and why it failed."""

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
MODELS = "/api/v1/models"
BOX = '[[providers]]\nid = "box"\nkind = "openai"\nurl = "{}/v1"\n'


def phases(events: list[Event]) -> list[str]:
    return [event.data["phase"] for event in events if event.event == "progress"]


def errors(events: list[Event]) -> list[dict[str, Any]]:
    return [event.data for event in events if event.event == "error"]


async def ask(person: Person, question: str = "Why?", **fields: Any) -> list[Event]:
    async with asyncio.timeout(PATIENCE):
        return await person.answer(await person.conversation(question), **MODEL, **fields)


# ---- phases


async def test_loaded_model_is_not_polled(ann: Person, upstream: Upstream) -> None:
    upstream.enqueue(answer("Because."))
    events = await ask(ann)
    assert [event.event for event in events] == ["ping", "progress", "progress", "delta", "usage", "done"]
    assert phases(events) == ["prompt", "generating"]
    looks = upstream.count(MODELS)
    for _ in range(5):
        upstream.enqueue(answer("Because."))
        await ask(ann)
    assert upstream.count(MODELS) == looks


async def test_loading_is_reported_until_the_model_is_loaded(
    ann: Person, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "LOADING_POLL_SECONDS", 0.02)
    model, gate = upstream.models[0], Gate()
    model.instances.clear()
    upstream.enqueue(pause(gate), answer("Because."))
    seen: list[Event] = []
    async with ann.streaming(await ann.conversation("Why?"), **MODEL) as events:
        async for event in events:
            seen.append(event)
            if phases(seen) == ["loading"]:
                model.instances[NAME] = 8192
            if phases(seen) == ["loading", "prompt"]:
                gate.open()
    assert phases(seen) == ["loading", "prompt", "generating"]
    assert seen[-1].data["stats"]["context_length"] == 8192


async def test_quick_answer_that_loads_its_model_has_its_context_length(ann: Person, upstream: Upstream) -> None:
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


async def test_each_progress_of_the_prompt_is_reported_once(ann: Person, upstream: Upstream) -> None:
    gates = {done: Gate() for done in (300, 600, 900)}
    steps: list[Any] = []
    for done, gate in gates.items():
        steps += [chunk({}, prompt_progress={"total": 900, "processed": done})] * 2 + [pause(gate)]
    upstream.enqueue(*steps, answer("Because."))
    progress = []
    async with ann.streaming(await ann.conversation("Why?"), **MODEL) as events:
        async for event in events:
            if event.event == "progress":
                progress.append(event.data)
                if reported := event.data.get("done"):
                    gates[reported].open()
    assert [data.get("done") for data in progress] == [None, 300, 600, 900, None]
    assert {data["total"] for data in progress if data.get("done")} == {900}


async def test_pings_fill_silence_and_are_not_replayed(tmp_path: Path, upstream: Upstream) -> None:
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
        assert {event.event for event in seen if event.id is None} == {"ping"}
        assert await ann.answer(conversation_id) == [event for event in seen if event.id is not None]


# ---- statistics


async def test_times_and_speed_are_measured(ann: Person, upstream: Upstream) -> None:
    first, second = Gate(), Gate()
    upstream.enqueue(pause(first), says("one "), pause(second), says("two"), finish("stop"), usage(40, 11), DONE)
    conversation_id = await ann.conversation("Why?")
    times = {"asked": time.monotonic()}
    async with ann.streaming(conversation_id, **MODEL) as events:
        async for event in events:
            times.setdefault(text([event]) or event.event, time.monotonic())
            if event.event == "progress" and event.data["phase"] == "prompt":
                await first.reached()
                await asyncio.sleep(0.1)  # the time that is measured
                first.open()
            if text([event]) == "one ":
                await asyncio.sleep(0.2)
                second.open()
    stats = event.data["stats"]
    assert 100 <= stats["ttft_ms"] <= (times["one "] - times["asked"]) * 1000
    assert stats["ttft_ms"] + 200 <= stats["total_ms"] <= (times["done"] - times["asked"]) * 1000
    assert 10 / (times["two"] - times["one "] + 0.1) <= stats["tokens_per_second"] <= 10 / 0.2
    assert stats["finish_reason"] == "stop" and stats["context_length"] == 4096 and stats["omitted_messages"] == 0
    message = (await ann.messages(conversation_id))[-1]
    assert message["stats"] == stats and message["token_usage"]["total_tokens"] == 51


async def test_answer_without_text_has_no_speed(ann: Person, upstream: Upstream) -> None:
    upstream.enqueue(finish("stop"), usage(40, 11), DONE)
    stats = (await ask(ann))[-1].data["stats"]
    assert "ttft_ms" not in stats and "tokens_per_second" not in stats and stats["total_ms"] >= 0


async def test_reasoning_is_timed_and_is_the_first_token(ann: Person, upstream: Upstream) -> None:
    gate = Gate()
    upstream.enqueue(reasoning("hm"), pause(gate), reasoning(" so"), says("Because"), finish("length"), DONE)
    async with ann.streaming(await ann.conversation("Why?"), **MODEL) as events:
        async for event in events:
            if event.event == "reasoning" and event.data["delta"] == "hm":
                await asyncio.sleep(0.05)  # the time that is measured
                gate.open()
    stats = event.data["stats"]
    assert 50 <= stats["reasoning_ms"] <= stats["total_ms"] - stats["ttft_ms"] + 1
    assert stats["finish_reason"] == "length"


# ---- context


async def turn(person: Person, upstream: Upstream, conversation_id: int, question: str) -> list[Event]:
    await person.say(conversation_id, question)
    upstream.enqueue(says("Well, well."), finish("stop"), DONE)
    return await person.answer(conversation_id, **MODEL)


async def test_oldest_messages_are_omitted_in_large_steps(ann: Person, upstream: Upstream) -> None:
    upstream.models[0].instances[NAME] = 1000
    conversation_id = await ann.conversation(system_prompt="Be short.")
    omitted = []
    for number in range(12):
        events = await turn(ann, upstream, conversation_id, f"{number}: " + "word " * 100)
        omitted.append(events[-1].data["stats"]["omitted_messages"])
        system, *messages = upstream.chats[-1]["messages"]
        assert system == {"role": "system", "content": "Be short."}
        assert len(messages) == 2 * number + 1 - omitted[-1] and messages[-1]["content"].startswith(f"{number}: ")
    assert omitted[0] == 0 and omitted[-1] > 0 and omitted == sorted(omitted)
    assert len(set(omitted)) <= 6, "the prompt begins with the same bytes in several turns"
    stats = [message["stats"] for message in (await ann.messages(conversation_id))[1::2]]
    assert [one["omitted_messages"] for one in stats] == omitted
    assert [one["sent_messages"] + one["omitted_messages"] for one in stats] == list(range(1, 24, 2))


async def test_forecast_is_what_the_next_question_needs_and_omits(ann: Person, bob: Person, upstream: Upstream) -> None:
    upstream.models[0].instances[NAME] = 1000
    await ann.get("/providers")
    question = "word " * 100
    new = good(await ann.get("/context", params=MODEL))
    assert new["context_length"] == 1000 and new["answer_tokens"] == 250
    assert new["used_tokens"] == new["omitted_messages"] == new["omitted_with_question"] == 0
    assert new["rates"] == {"latin": pytest.approx(1 / 3.5), "other": 1, "image": 800, "message": 8}

    conversation_id = await ann.conversation(system_prompt="Be short.", settings={"max_tokens": 200})
    context = f"/conversations/{conversation_id}/context"
    omitted: list[int] = []
    for number in range(10):
        rates = good(await ann.get(context, params=MODEL))["rates"]
        size = round(len(question) * rates["latin"] + rates["message"])
        forecast = good(await ann.get(context, params={**MODEL, "question_tokens": size}))
        await ann.say(conversation_id, question)
        upstream.enqueue(says("Well, well."), finish("stop"), usage(number * 100 + 90, 10), DONE)
        stats = (await ann.answer(conversation_id, **MODEL))[-1].data["stats"]
        assert forecast["omitted_with_question"] == stats["omitted_messages"]
        assert forecast["omitted_messages"] == (omitted[-1] if omitted else 0)
        omitted.append(stats["omitted_messages"])
        if not omitted[-1]:  # the server's own count
            after = good(await ann.get(context, params=MODEL))
            assert after["used_tokens"] == number * 100 + 100 and after["answer_tokens"] == 200
    assert omitted[1] == 0 < omitted[-1]

    for person, path in ((bob, context), (ann, "/conversations/99/context")):
        assert code(await person.get(path)) == (404, "CONVERSATION_NOT_FOUND")
    assert code(await ann.get(f"{context}?question_tokens=-1")) == (400, "VALIDATION_ERROR")
    unknown = good(await ann.get(context, params={"provider_id": "lmstudio", "model": "none"}))
    assert unknown["context_length"] is unknown["answer_tokens"] is None


OVERFLOW = "The number of tokens to keep is greater than the context length (n_ctx: 4096)."


async def test_refused_prompt_is_shortened_until_it_fits(ann: Person, upstream: Upstream) -> None:
    conversation_id = await ann.conversation()
    for number in range(6):
        await turn(ann, upstream, conversation_id, f"Question {number}?")
    await ann.say(conversation_id, "Question 6?")
    for step in (status(400, {"error": OVERFLOW}), status(400, {"error": OVERFLOW}), answer("Well.")):
        upstream.enqueue(step)
    events = await ann.answer(conversation_id, **MODEL)
    lengths = [len(chat["messages"]) for chat in upstream.chats[-3:]]
    assert text(events) == "Well." and not errors(events)
    assert lengths[0] == 13 > lengths[1] > lengths[2] >= 1
    assert events[-1].data["stats"]["omitted_messages"] == 13 - lengths[2]
    await turn(ann, upstream, conversation_id, "Question 7?")
    assert len(upstream.chats[-1]["messages"]) == lengths[2] + 2, "the next turn omits as many"


@pytest.mark.parametrize(
    ("steps", "said"),
    [((status(400, {"error": OVERFLOW}),), ""), ((error(OVERFLOW),), ""), ((says("Well"), error(OVERFLOW)), "Well")],
    ids=["refused", "in the stream", "after the first token"],
)
async def test_overflow_that_omitting_cannot_help_is_an_error(
    ann: Person, upstream: Upstream, steps: tuple[Step, ...], said: str
) -> None:
    conversation_id = await ann.conversation()
    if said:
        await turn(ann, upstream, conversation_id, "First?")
    await ann.say(conversation_id, "Second?")
    requests = len(upstream.chats)
    upstream.enqueue(*steps)
    events = await ann.answer(conversation_id, **MODEL)
    (failure,) = errors(events)
    assert failure["code"] == "CONTEXT_OVERFLOW" and "4096" in failure["message"] and text(events) == said
    assert len(upstream.chats) == requests + 1


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([finish(), usage(932, 0), DONE], "sent an empty answer with the reason “stop”. The prompt took 932 of the 4,096 "
         "tokens of the context. Try again, choose another model, or continue in a new conversation."),
        ([finish(), usage(4000, 0), DONE], "sent an empty answer with the reason “stop”. The prompt took 4,000 of the 4,096 "
         "tokens of the context. Load the model with a larger context length, or continue in a new conversation."),
        ([DONE], "sent an empty answer and no reason. Try again, choose another model, or continue in a new conversation."),
    ],
)  # fmt: skip
async def test_empty_answer_is_explained_with_what_is_known(
    ann: Person, upstream: Upstream, steps: list[Step], message: str
) -> None:
    upstream.enqueue(*steps)
    [failure] = errors(await ask(ann))
    assert (failure["code"], failure["message"]) == ("EMPTY_ANSWER", f"LM Studio {message}")


async def test_model_that_no_server_lists_is_asked_of_the_one_without_a_list(
    tmp_path: Path, upstream: Upstream
) -> None:
    with Upstream() as box:
        box.models = []
        (tmp_path / "config.toml").write_text(BOX.format(box.url), "utf-8")
        async with Running(tmp_path, lmstudio_url=upstream.url) as running:
            ann = await running.first()
            events = await ann.answer(await ann.conversation("Why?"), model="mystery")
    assert text(events) == "Hello from upstream." and box.chats[0]["model"] == "mystery"


async def test_slow_list_of_models_delays_an_answer_briefly(ann: Person, upstream: Upstream) -> None:
    upstream.enqueue(hang(), path=MODELS)
    upstream.enqueue(answer("Because."))
    started = time.monotonic()
    assert text(await ask(ann)) == "Because."
    assert time.monotonic() - started < generation.LOOK_SECONDS + 5


# ---- images


async def question_with_image(person: Person) -> int:
    conversation_id = await person.conversation()
    image = {"media_type": "image/png", "data": "iVBORw0KGgoAAAAN"}
    await person.say(conversation_id, "What is this?", images=[image])
    return conversation_id


async def test_images_are_refused_for_a_model_without_vision(ann: Person, upstream: Upstream) -> None:
    upstream.models.append(LocalModel("blind", "Blind"))
    events = await ann.answer(await question_with_image(ann), provider_id="lmstudio", model="blind")
    [failure] = errors(events)
    assert failure["code"] == "VISION_UNSUPPORTED" and not upstream.chats
    assert failure["message"] == "blind cannot see images. Choose one that can: Qwen2.5 VL 7B Instruct."
    upstream.models = [model for model in upstream.models if model.type != "vlm"]
    await ann.get("/providers")
    [failure] = errors(await ann.answer(await question_with_image(ann), provider_id="lmstudio", model="blind"))
    assert failure["message"] == "blind cannot see images. No model of the model servers can."


async def test_server_that_reports_neither_vision_nor_loading_gets_images(tmp_path: Path, upstream: Upstream) -> None:
    (tmp_path / "config.toml").write_text(BOX.format(upstream.url), "utf-8")
    async with Running(tmp_path, lmstudio_url=upstream.url) as running:
        ann = await running.first()
        upstream.enqueue(answer("A dot."))
        events = await ann.answer(await question_with_image(ann), provider_id="box", model=NAME)
        assert text(events) == "A dot." and phases(events) == ["prompt", "generating"]
        assert {part["type"] for part in upstream.chats[-1]["messages"][-1]["content"]} == {"text", "image_url"}


# ---- deadlines and unreachable servers


@pytest.mark.parametrize(
    ("setting", "first", "message"),
    [
        ("first_token_seconds", chunk({"role": "assistant"}), "did not begin to answer within 0.3 s"),
        ("between_tokens_seconds", says("one"), "was silent for 0.3 s"),
        ("total_seconds", says("one"), "not complete after 0.3 s"),
    ],
)
async def test_deadline_ends_an_answer_and_keeps_its_text(
    tmp_path: Path, upstream: Upstream, setting: str, first: Step, message: str
) -> None:
    async with Running(tmp_path, lmstudio_url=upstream.url, **{setting: "0.3"}) as running:
        upstream.enqueue(first, hang())
        events = await ask(await running.first())
        await upstream.closed()
        (failure,) = errors(events)
        assert failure["code"] == "PROVIDER_TIMEOUT" and message in failure["message"]
        assert text(events) == ("one" if first == says("one") else "")
        assert events[-1].data["stats"]["total_ms"] >= 300


async def test_deadlines_do_not_count_time_in_the_queue(tmp_path: Path, upstream: Upstream) -> None:
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


async def test_deadlines_do_not_count_time_while_the_computer_is_suspended(
    tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "SUSPENDED_SECONDS", 0.5)
    async with Running(tmp_path, lmstudio_url=upstream.url, first_token_seconds="2") as running:
        ann = await running.first()
        gate = Gate()
        upstream.enqueue(pause(gate), answer("one"))
        asking = asyncio.create_task(ask(ann))
        await gate.reached()
        time.sleep(3)  # noqa: ASYNC251 (blocks the event loop, as a suspended computer does)
        await asyncio.sleep(0.1)
        gate.open()
        assert text(await asking) == "one"


async def test_health_asks_only_the_server_in_question(tmp_path: Path, upstream: Upstream) -> None:
    with Upstream() as other:
        (tmp_path / "config.toml").write_text(BOX.format(other.url), "utf-8")
        async with Running(tmp_path, lmstudio_url=upstream.url) as running:
            ann = await running.first()
            requests = len(other.requests)
            assert good(await ann.get("/providers/lmstudio/health")) == {"online": True, "error": None}
            assert len(other.requests) == requests
            assert code(await ann.get("/providers/unknown/health")) == (404, "PROVIDER_NOT_FOUND")


async def test_only_administrators_see_the_address_of_a_model_server(tmp_path: Path) -> None:
    address = refused_url()
    async with Running(tmp_path / "data", lmstudio_url=address) as running:
        ann = await running.first()
        bob = await running.join(ann, "bob")
        conversation_id = await bob.conversation("Hi")
        events = await bob.answer(conversation_id, provider_id="lmstudio", model="m")
        responses = [await bob.get(f"/providers{path}") for path in ("", "/lmstudio/health", "/lmstudio/models")]
        for shown in (str(events), *(one.text for one in responses), str(await bob.messages(conversation_id))):
            assert "LM Studio cannot be reached. Is its server running?" in shown
            assert address.removeprefix("http://") not in shown
        for path in ("", "/lmstudio/health"):
            assert f"({address}: the connection was refused)" in (await ann.get(f"/providers{path}")).text
