"""The prompt: the same first bytes in each turn, and fewer messages only when the context requires it."""

import base64
import itertools
import json
import time
from typing import Any

import pytest
from fireside.chat import prompt
from fireside.queries import turns
from fireside.queries.turns import Prompt, Turn
from fireside.queries.types import Image
from hypothesis import given
from hypothesis import strategies as st

from ..live import Person, Running
from ..upstream import CHAT, Upstream, answer
from ..witness import MODEL

PIXEL = Image("image/png", b"\x89PNG\r\n\x1a\n....")


def question(content: str, *images: Image) -> Turn:
    return Turn("user", content, list(images), 0, None, 0, None)


def reply(content: str, total_tokens: int | None = None, omitted: int = 0, context: int | None = 4096) -> Turn:
    return Turn("assistant", content, [], 0, total_tokens, omitted, context)


def roles(messages: list[dict[str, Any]]) -> list[str]:
    return [message["role"] for message in messages]


words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40)


# ---- messages


@given(st.lists(st.tuples(words, words), min_size=1, max_size=8), st.just("") | words)
def test_each_prompt_begins_with_the_one_before(exchanges: list[tuple[str, str]], system: str) -> None:
    turns: list[Turn] = []
    before = [{"role": "system", "content": system}] if system else []
    for asked, answered in exchanges:
        turns.append(question(asked))
        sent = prompt.messages(Prompt(system, turns), 0)
        assert sent == [*before, {"role": "user", "content": asked}]
        turns.append(reply(answered))
        before = [*sent, {"role": "assistant", "content": answered}]


@given(st.lists(st.one_of(words.map(question), st.just(reply("")), words.map(reply)), max_size=12), words)
def test_roles_alternate_on_any_path(middle: list[Turn], last: str) -> None:
    system, *sent = roles(prompt.messages(Prompt("system", [question("first"), *middle, question(last)]), 0))
    assert system == "system" and sent[0] == sent[-1] == "user"
    assert all(role != following for role, following in itertools.pairwise(sent))


def test_empty_answer_is_left_out_and_its_questions_are_joined() -> None:
    turns = [question("one"), reply(""), question("two")]
    assert prompt.messages(Prompt("", turns), 0) == [{"role": "user", "content": "one\n\ntwo"}]


@pytest.mark.parametrize(
    ("turns", "parts"),
    [
        ([question("What is this?", PIXEL)], ["What is this?", None]),
        ([question("", PIXEL)], [None]),
        ([question("one", PIXEL), question("two")], ["one", None, "two"]),
        ([question("one"), question("two", PIXEL)], ["one", "two", None]),
    ],
)
def test_images_are_data_urls_after_their_text(turns: list[Turn], parts: list[str | None]) -> None:
    [sent] = prompt.messages(Prompt("", turns), 0)
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgouLi4u"}}
    assert sent["content"] == [{"type": "text", "text": part} if part else image for part in parts]


def test_many_questions_are_joined_in_linear_time() -> None:
    """Joining 4,000 of them one by one took two minutes, and blocked all other requests."""
    turns = [question("q" * 20_000) for _ in range(4000)]
    started = time.process_time()
    [sent] = prompt.messages(Prompt("", turns), 0)
    assert time.process_time() - started < 5 and len(sent["content"]) == 4000 * 20_002 - 2


# ---- omitted messages


def exchanges(count: int, size: int = 350, answer_tokens: int | None = None, text: str = "q") -> list[Turn]:
    """`count` exchanges and a question, with about size / 3.5 + 8 tokens per message."""
    turns = [turn for _ in range(count) for turn in (question("q" * size), reply("a" * size))]
    if answer_tokens:
        turns[-1].total_tokens = answer_tokens
    return [*turns, question(text * size)]


@pytest.mark.parametrize(
    ("turns", "context", "fits"),
    [
        pytest.param(exchanges(500), None, True, id="context unknown"),
        pytest.param(exchanges(10), 8192, True, id="fits"),
        pytest.param(exchanges(10), 4096, True, id="estimated to fit"),
        pytest.param(exchanges(10, answer_tokens=6000), 4096, False, id="counted by the server not to fit"),
        pytest.param(exchanges(20), 4096, False, id="estimated not to fit"),
        pytest.param(exchanges(20, answer_tokens=1500), 4096, True, id="counted by the server to fit"),
        pytest.param(exchanges(1, 2000), 4096, True, id="English"),
        pytest.param(exchanges(1, 2000, text="字"), 4096, False, id="Japanese has more tokens"),
    ],
)
def test_messages_are_omitted_only_when_they_do_not_fit(turns: list[Turn], context: int | None, fits: bool) -> None:
    assert (prompt.omit(Prompt("", turns), context, 1100) == 0) == fits


def test_omissions_are_stable_for_several_turns_and_leave_room_for_an_answer() -> None:
    turns, steps = exchanges(40), []
    for _ in range(60):
        steps.append(prompt.omit(Prompt("", turns), 4096, 1000))
        assert (len(turns) - steps[-1]) * 108 <= 4096 - 1000
        turns = [*turns, reply("a" * 350, omitted=steps[-1]), question("q" * 350)]
    assert steps == sorted(steps) and steps[0] > 0
    assert 1 < len(set(steps)) <= len(steps) / 4


def test_fewer_messages_are_omitted_when_the_context_has_grown() -> None:
    turns = exchanges(40)
    omitted = prompt.omit(Prompt("", turns), 4096, 1000)
    turns = [*turns, reply("a" * 350, omitted=omitted), question("q" * 350)]
    assert prompt.omit(Prompt("", turns), 4096, 1000) >= omitted > 0
    assert prompt.omit(Prompt("", turns), 32_768, 1000) == 0
    assert 0 < prompt.omit(Prompt("", turns), 5000, 1000) < omitted


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=30), st.integers(256, 20_000), st.integers(1, 20_000))
def test_prompt_begins_and_ends_with_a_question(sizes: list[int], context: int, max_tokens: int) -> None:
    turns = [turn for size in sizes[:-1] for turn in (question("q" * size), reply("a" * size))]
    whole = Prompt("s" * 1000, [*turns, question("q" * sizes[-1])])
    omitted = prompt.omit(whole, context, max_tokens)
    assert 0 <= omitted <= len(turns) and whole.turns[omitted].role == "user"
    while (more := prompt.omit_more(whole, omitted)) is not None:
        assert omitted < more <= len(turns) and whole.turns[more].role == "user"
        omitted = more
    assert omitted == len(turns)


def test_each_further_step_omits_about_half() -> None:
    whole, omitted, steps = Prompt("", exchanges(50)), 0, 0
    while (more := prompt.omit_more(whole, omitted)) is not None:
        omitted, steps = more, steps + 1
    assert steps <= 10


# ---- requests


async def test_requests_of_a_conversation_begin_with_the_same_bytes(ann: Person, upstream: Upstream) -> None:
    conversation_id = await ann.conversation(
        'Héllo \U0001f525 \u2028 \\, "what" is\n\n1 < 2?', system_prompt="Be brief."
    )
    for words in ("It is <true>.", "", "Yes é"):
        upstream.enqueue(answer(*words) if words else b"")
        await ann.answer(conversation_id, **MODEL)
        await ann.say(conversation_id, "And then?")
    await ann.answer(conversation_id)
    sent = [request.body for request in upstream.requests if request.path == CHAT]
    assert len(sent) == 4
    for before, after in itertools.pairwise(sent):
        start = before.index(b'"messages"')
        # The next turn may have joined another question to the last one, so compare up to the end of its text.
        last = json.dumps(json.loads(before)["messages"][-1]["content"], ensure_ascii=False).encode()[:-1]
        shared = before[start : before.index(last, start) + len(last)]
        assert after[after.index(b'"messages"') :].startswith(shared)
    contents = [message["content"] for message in json.loads(sent[-1])["messages"]]
    assert contents[0] == "Be brief." and contents[2:] == [
        "It is <true>.",
        "And then?\n\nAnd then?",
        "Yes é",
        "And then?",
    ]


def images(message: dict[str, Any]) -> list[bytes]:
    parts = message["content"] if isinstance(message["content"], list) else []
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    return [base64.b64decode(url.removeprefix("data:image/png;base64,")) for url in urls]


@pytest.mark.parametrize(("count", "size"), [(16, 10_000), (1000, 20)])
async def test_oldest_images_are_omitted_in_large_steps(
    ann: Person, running: Running, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, count: int, size: int
) -> None:
    monkeypatch.setattr(turns, "SENT_IMAGES", count)
    monkeypatch.setattr(turns, "SENT_IMAGE_BYTES", size * 16)
    conversation_id = await ann.conversation()
    stored: list[bytes] = []
    first: set[bytes] = set()
    for turn in range(13):
        new = [PIXEL.data[:8] + bytes([turn, number]).ljust(size - 8, b".") for number in range(1 + turn % 3)]
        added = [{"media_type": "image/png", "data": base64.b64encode(image).decode()} for image in new]
        await ann.say(conversation_id, f"Turn {turn}", images=added)
        events = await ann.answer(conversation_id, model="qwen2.5-vl-7b-instruct", provider_id="lmstudio")
        sent = [image for message in upstream.chats[-1]["messages"] for image in images(message)]
        stored += new
        assert sent == stored[-len(sent) :] and sent[-len(new) :] == new and len(sent) <= 16
        assert events[-1].data["stats"]["omitted_images"] == len(stored) - len(sent)
        first.add(sent[0])
    assert len(sent) > 8 - 3 and 2 <= len(first) <= 4
    await ann.post("/chat/retry", json={"conversation_id": conversation_id})
    await upstream.received(14)
    assert upstream.chats[-1]["messages"] == upstream.chats[-2]["messages"]
