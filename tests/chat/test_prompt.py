"""What is sent to a model: the same beginning turn after turn, and less of it only when it must be."""

import base64
import itertools
import json
import time
from typing import Any

import pytest
from fireside import queries
from fireside.chat import prompt
from fireside.queries.generations import Prompt, Turn
from fireside.queries.messages import Image
from hypothesis import given
from hypothesis import strategies as st

from ..live import Person, Running
from ..upstream import Upstream, answer

PIXEL = Image("image/png", b"\x89PNG\r\n\x1a\n....")


def question(content: str, *images: Image) -> Turn:
    return Turn("user", content, list(images), 0, None, 0, None)


def reply(content: str, total_tokens: int | None = None, omitted: int = 0, context: int | None = 4096) -> Turn:
    return Turn("assistant", content, [], 0, total_tokens, omitted, context)


def roles(messages: list[dict[str, Any]]) -> list[str]:
    return [message["role"] for message in messages]


words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40)
exchanges = st.lists(st.tuples(words, words), min_size=1, max_size=8)


# ---- the messages


@given(exchanges, st.one_of(st.just(""), words), words)
def test_each_turn_begins_with_all_that_was_sent_before(said: list[tuple[str, str]], system: str, last: str) -> None:
    turns: list[Turn] = []
    before: list[dict[str, Any]] = []
    for asked, answered in said:
        turns.append(question(asked))
        sent = prompt.messages(Prompt(system, turns), 0)
        assert sent[: len(before)] == before
        assert sent[-1] == {"role": "user", "content": asked}
        turns.append(reply(answered))
        before = [*sent, {"role": "assistant", "content": answered}]
    assert prompt.messages(Prompt(system, [*turns, question(last)]), 0)[:-1] == before


@given(st.lists(st.one_of(words.map(question), st.just(reply("")), words.map(reply)), max_size=12), words)
def test_roles_take_turns_whatever_the_path_looks_like(middle: list[Turn], last: str) -> None:
    turns = [question("first"), *middle, question(last)]
    sent = roles(prompt.messages(Prompt("system", turns), 0))
    assert sent[0] == "system" and sent.count("system") == 1
    assert sent[1] == sent[-1] == "user"
    assert all(pair != ("user", "user") for pair in itertools.pairwise(sent))


def test_an_empty_system_prompt_is_not_sent() -> None:
    assert roles(prompt.messages(Prompt("", [question("hello")]), 0)) == ["user"]


def test_an_empty_answer_is_left_out_and_its_two_questions_become_one() -> None:
    turns = [question("one"), reply(""), question("two")]
    assert prompt.messages(Prompt("", turns), 0) == [{"role": "user", "content": "one\n\ntwo"}]


def test_images_go_as_data_urls_after_their_text() -> None:
    [sent] = prompt.messages(Prompt("", [question("what is this?", PIXEL)]), 0)
    assert sent["content"] == [
        {"type": "text", "text": "what is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgouLi4u"}},
    ]


def test_an_image_alone_has_no_empty_text_beside_it() -> None:
    [sent] = prompt.messages(Prompt("", [question("", PIXEL)]), 0)
    assert [part["type"] for part in sent["content"]] == ["image_url"]


@pytest.mark.parametrize("pictured", [0, 1])
def test_questions_are_joined_with_their_images(pictured: int) -> None:
    turns = [question("one", *[PIXEL] * (pictured == 0)), question("two", *[PIXEL] * (pictured == 1))]
    [sent] = prompt.messages(Prompt("", turns), 0)
    texts = [part.get("text") for part in sent["content"]]
    assert texts == (["one", None, "two"] if pictured == 0 else ["one", "two", None])


# ---- leaving out


def long(count: int, size: int = 350) -> list[Turn]:
    """`count` exchanges and a question, of about size / 3.5 + 8 tokens a message."""
    turns = [turn for _ in range(count) for turn in (question("q" * size), reply("a" * size))]
    return [*turns, question("q" * size)]


def test_nothing_is_left_out_when_the_context_is_not_known() -> None:
    assert prompt.omit(Prompt("", long(500)), None, None) == 0


def test_nothing_is_left_out_while_it_fits() -> None:
    assert prompt.omit(Prompt("", long(10)), 8192, None) == 0


def test_the_oldest_are_left_out_so_that_the_rest_and_an_answer_fit() -> None:
    turns = long(40)  # 81 messages of 108 tokens
    omitted = prompt.omit(Prompt("", turns), 4096, 1000)
    assert 0 < omitted < len(turns)
    assert (len(turns) - omitted) * 108 <= 4096 - 1000
    assert roles(prompt.messages(Prompt("", turns), omitted))[0] == "user"


def test_what_was_left_out_stays_out_and_no_more_for_the_next_turns() -> None:
    """The cache is lost once for many turns, not at each."""
    turns = long(40)
    omitted = prompt.omit(Prompt("", turns), 4096, 1000)
    steps = [omitted]
    for _ in range(60):
        turns = [*turns, reply("a" * 350, omitted=steps[-1]), question("q" * 350)]
        steps.append(prompt.omit(Prompt("", turns), 4096, 1000))
    assert steps == sorted(steps)
    changes = sum(one != other for one, other in itertools.pairwise(steps))
    assert 0 < changes <= len(steps) / 4
    assert all((len(turns) - 2 * (60 - place) - step) * 108 <= 3096 for place, step in enumerate(steps))


def test_what_was_left_out_comes_back_when_the_context_has_grown() -> None:
    turns = long(40)
    omitted = prompt.omit(Prompt("", turns), 4096, 1000)
    turns = [*turns, reply("a" * 350, omitted=omitted), question("q" * 350)]
    assert prompt.omit(Prompt("", turns), 4096, 1000) >= omitted > 0
    assert prompt.omit(Prompt("", turns), 32_768, 1000) == 0
    assert 0 < prompt.omit(Prompt("", turns), 5000, 1000) < omitted, "as many as fit now"


def test_a_long_run_of_questions_is_joined_at_once() -> None:
    """Joined one after the other, 4,000 of them took two minutes, in which nobody got an answer."""
    turns = [question("q" * 20_000) for _ in range(4000)]
    started = time.process_time()
    [sent] = prompt.messages(Prompt("", turns), 0)
    assert time.process_time() - started < 5 and len(sent["content"]) == 4000 * 20_002 - 2


def test_the_last_question_is_always_sent() -> None:
    for turns in ([question("q" * 100_000)], long(3, 100_000)):
        omitted = prompt.omit(Prompt("s" * 100_000, turns), 512, None)
        assert omitted == len(turns) - 1
        assert prompt.messages(Prompt("", turns), omitted)[-1]["content"] == turns[-1].content


def test_the_server_s_own_count_corrects_the_estimate() -> None:
    """The same texts that are estimated to fit are known not to, and the other way round."""
    turns = long(10)  # estimated at 21 * 108 = 2268 tokens
    assert prompt.omit(Prompt("", turns), 4096, 1000) == 0
    turns[-2].total_tokens = 6000
    assert prompt.omit(Prompt("", turns), 4096, 1000) > 0
    assert prompt.omit(Prompt("", long(20)), 4096, 1000) > 0
    cheap = long(20)
    cheap[-2].total_tokens = 1500
    assert prompt.omit(Prompt("", cheap), 4096, 1000) == 0


def test_other_scripts_cost_more_tokens_than_english() -> None:
    english, japanese = (Prompt("", [*long(5), reply("a"), question(text * 2000)]) for text in ("a", "字"))
    assert prompt.omit(english, 4096, 1000) == 0
    assert prompt.omit(japanese, 4096, 2048) > 0


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=30), st.integers(256, 20_000), st.integers(1, 20_000))
def test_whatever_is_left_out_a_question_comes_first_and_last(sizes: list[int], context: int, wanted: int) -> None:
    turns = [turn for size in sizes[:-1] for turn in (question("q" * size), reply("a" * size))]
    turns.append(question("q" * sizes[-1]))
    whole = Prompt("system", turns)
    omitted = prompt.omit(whole, context, wanted)
    assert 0 <= omitted < len(turns) and turns[omitted].role == "user"
    while (more := prompt.omit_more(whole, omitted)) is not None:
        assert omitted < more < len(turns) and turns[more].role == "user"
        omitted = more
    assert omitted == len(turns) - 1


def test_each_further_step_leaves_out_about_half() -> None:
    whole, omitted, steps = Prompt("", long(50)), 0, 0
    while (more := prompt.omit_more(whole, omitted)) is not None:
        omitted, steps = more, steps + 1
    assert steps <= 10


# ---- on the wire


async def test_a_model_server_is_sent_the_same_bytes_again_and_more(ann: Person, upstream: Upstream) -> None:
    conversation_id = await ann.conversation('Héllo \U0001f525, "what" is\n\n1 < 2?', system_prompt="Be brief.")
    for text in ("It is <true>.", "", "Yes é"):
        upstream.enqueue(answer(*text) if text else b"")
        await ann.answer(conversation_id, model="llama-3.2-3b-instruct", provider_id="lmstudio")
        await ann.say(conversation_id, "And then?")
    await ann.answer(conversation_id)
    sent = [request.body for request in upstream.requests if request.path == "/v1/chat/completions"]
    assert len(sent) == 4
    for before, after in itertools.pairwise(sent):
        messages = json.loads(before)["messages"]
        start = before.index(b'"messages"')
        # Up to the content of the last message: the question that the next turn may have joined to another.
        shared = before[
            start : before.index(json.dumps(messages[-1]["content"], ensure_ascii=False).encode()[:-1], start)
        ]
        assert after[after.index(b'"messages"') :].startswith(shared)
    last = json.loads(sent[-1])["messages"]
    assert [message["content"] for message in last][1:] == [
        'Héllo \U0001f525, "what" is\n\n1 < 2?',
        "It is <true>.",
        "And then?\n\nAnd then?",
        "Yes é",
        "And then?",
    ]
    assert last[0] == {"role": "system", "content": "Be brief."}


def pictures(message: dict[str, Any]) -> list[bytes]:
    """The images of a message that was sent."""
    parts = message["content"] if isinstance(message["content"], list) else []
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    return [base64.b64decode(url.removeprefix("data:image/png;base64,")) for url in urls]


@pytest.mark.parametrize(("count", "size"), [(32, 10_000), (1000, 20)])
async def test_older_images_are_left_out_in_large_steps(
    ann: Person, running: Running, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, count: int, size: int
) -> None:
    monkeypatch.setattr(queries.generations, "SENT_IMAGES", count)
    monkeypatch.setattr(queries.generations, "SENT_IMAGE_BYTES", size * 32)
    conversation_id = await ann.conversation()
    stored: list[bytes] = []
    first: list[bytes] = []
    for turn in range(25):
        new = [PIXEL.data[:8] + bytes([turn, number]).ljust(size - 8, b".") for number in range(1 + turn % 3)]
        images = [{"media_type": "image/png", "data": base64.b64encode(image).decode()} for image in new]
        await ann.say(conversation_id, f"Turn {turn}", images=images)
        events = await ann.answer(conversation_id, model="qwen2.5-vl-7b-instruct", provider_id="lmstudio")
        sent = [image for message in upstream.chats[-1]["messages"] for image in pictures(message)]
        stored += new
        assert sent == stored[-len(sent) :] and sent[-len(new) :] == new and len(sent) <= 32
        assert events[-1].data["stats"]["omitted_images"] == len(stored) - len(sent)
        first.append(sent[0])
    assert len(sent) > 16 - 3 and 2 <= len(set(first)) <= 4, (
        "the beginning changes seldom, so that the cache keeps its worth"
    )
    await ann.post("/chat/retry", json={"conversation_id": conversation_id})
    await upstream.received(26)
    assert upstream.chats[-1]["messages"] == upstream.chats[-2]["messages"]
