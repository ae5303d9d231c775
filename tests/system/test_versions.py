"""A conversation is a tree: nothing is overwritten, nothing is paid for twice, and the model sees the active path."""

import asyncio
import itertools
from typing import Any

import pytest

from ..live import Event, Person, Running, code, good, text
from ..upstream import CHAT, DONE, Gate, Upstream, answer, close, finish, hang, pause
from ..upstream import text as says
from ..witness import MODEL

ANOTHER = MODEL | {"model": "qwen2.5-vl-7b-instruct"}


async def answered(person: Person, upstream: Upstream, conversation_id: int, *words: str) -> list[Event]:
    upstream.enqueue(answer(*words))
    return await person.answer(conversation_id, **MODEL)


async def retried(
    person: Person, upstream: Upstream, conversation_id: int, *words: str, **fields: Any
) -> dict[str, Any]:
    """Another version, complete. Returns what POST /chat/retry said."""
    upstream.enqueue(answer(*words))
    made: dict[str, Any] = good(
        await person.post("/chat/retry", json={"conversation_id": conversation_id, **MODEL, **fields})
    )
    async with person.resuming(made["generation_id"]) as events:
        assert text([event async for event in events]) == "".join(words)
    return made


async def path(person: Person, conversation_id: int) -> list[str]:
    return [message["content"] for message in await person.messages(conversation_id)]


def sent(upstream: Upstream, number: int = -1) -> list[str]:
    """The contents of the messages of a request."""
    return [message["content"] for message in upstream.chats[number]["messages"]]


# ---- branches


async def test_a_retry_is_a_sibling_and_the_old_version_stays(ann: Person, upstream: Upstream) -> None:
    conversation_id = await ann.conversation("Why?")
    await answered(ann, upstream, conversation_id, "first")
    second = await retried(ann, upstream, conversation_id, "second")
    third = await retried(ann, upstream, conversation_id, "third")
    question, reply = await ann.messages(conversation_id)
    assert (reply["content"], reply["id"], reply["parent_id"]) == ("third", third["message_id"], question["id"])
    assert reply["versions"]["index"] == 2 and reply["versions"]["ids"][1:] == [
        second["message_id"],
        third["message_id"],
    ]
    assert sorted(second) == ["conversation_id", "generation_id", "message_id"]
    assert sent(upstream) == ["Why?"]  # a version is not told of the others


async def test_an_earlier_answer_gets_another_version_too(ann: Person, bob: Person, upstream: Upstream) -> None:
    conversation_id = await ann.conversation("Why?")
    await answered(ann, upstream, conversation_id, "first")
    question, first = await ann.messages(conversation_id)
    await ann.say(conversation_id, "And then?")
    await answered(ann, upstream, conversation_id, "later")
    for of in (first, question):
        await retried(ann, upstream, conversation_id, "other", message_id=of["id"])
        assert await path(ann, conversation_id) == ["Why?", "other"] and sent(upstream) == ["Why?"]
    good(await ann.post(f"/conversations/{conversation_id}/active", json={"message_id": first["id"]}))
    assert await path(ann, conversation_id) == ["Why?", "first", "And then?", "later"]
    theirs = await bob.conversation("His")
    for message_id in ((await bob.messages(theirs))[0]["id"], 10**15):
        body = {"conversation_id": conversation_id, "message_id": message_id}
        assert code(await ann.post("/chat/retry", json=body | MODEL)) == (404, "MESSAGE_NOT_FOUND")


async def test_an_edited_question_is_a_branch_with_an_answer_of_its_own(ann: Person, upstream: Upstream) -> None:
    conversation_id = await ann.conversation("Hello")
    await answered(ann, upstream, conversation_id, "Hi.")
    first = await ann.say(conversation_id, "Why is the sky blue?")
    await answered(ann, upstream, conversation_id, "Rayleigh.")
    parent = (await ann.messages(conversation_id))[1]["id"]
    second = await ann.say(conversation_id, "Why is the sky red?", parent_id=parent)
    await answered(ann, upstream, conversation_id, "Dust.")
    assert await path(ann, conversation_id) == ["Hello", "Hi.", "Why is the sky red?", "Dust."]
    assert sent(upstream) == ["Hello", "Hi.", "Why is the sky red?"]
    assert (await ann.messages(conversation_id))[2]["versions"] == {"ids": [first, second], "index": 1}
    chosen = good(await ann.post(f"/conversations/{conversation_id}/active", json={"message_id": first}))
    messages = await ann.messages(conversation_id)
    assert [message["content"] for message in messages[2:]] == ["Why is the sky blue?", "Rayleigh."]
    assert chosen == {"message": "Version selected", "active_message_id": messages[-1]["id"]}


async def test_a_first_message_can_be_edited_too(ann: Person, upstream: Upstream) -> None:
    conversation_id = await ann.conversation("Hello")
    await answered(ann, upstream, conversation_id, "Hi.")
    await ann.say(conversation_id, "Good morning", parent_id=None)
    await answered(ann, upstream, conversation_id, "Good morning to you.")
    assert await path(ann, conversation_id) == ["Good morning", "Good morning to you."]
    assert sent(upstream) == ["Good morning"]


async def test_a_stale_tab_makes_a_branch_and_overwrites_nothing(ann: Person, upstream: Upstream) -> None:
    conversation_id = await ann.conversation("Hello")
    await answered(ann, upstream, conversation_id, "Hi.")
    seen = (await ann.messages(conversation_id))[-1]["id"]
    here = await ann.say(conversation_id, "From this tab", parent_id=seen)
    await answered(ann, upstream, conversation_id, "One.")
    there = await ann.say(conversation_id, "From the other", parent_id=seen)
    assert await path(ann, conversation_id) == ["Hello", "Hi.", "From the other"]
    assert (await ann.messages(conversation_id))[-1]["versions"] == {"ids": [here, there], "index": 1}


async def test_the_model_sees_the_active_path_only(ann: Person, upstream: Upstream) -> None:
    conversation_id = await ann.conversation("Hello")
    await answered(ann, upstream, conversation_id, "first")
    await retried(ann, upstream, conversation_id, "second")
    first = (await ann.messages(conversation_id))[-1]["versions"]["ids"][0]
    good(await ann.post(f"/conversations/{conversation_id}/active", json={"message_id": first}))
    await ann.say(conversation_id, "And then?")
    await answered(ann, upstream, conversation_id, "Then.")
    assert sent(upstream) == ["Hello", "first", "And then?"]


async def test_versions_of_others_and_of_other_conversations_cannot_be_chosen(
    ann: Person, bob: Person, upstream: Upstream
) -> None:
    mine, other, theirs = await ann.conversation("Mine"), await ann.conversation("Other"), await bob.conversation("His")
    for conversation_id, person in ((other, ann), (theirs, bob)):
        message = (await person.messages(conversation_id))[0]["id"]
        for field, url in (("message_id", "active"), ("parent_id", "messages")):
            refused = await ann.post(f"/conversations/{mine}/{url}", json={field: message, "content": "x"})
            assert code(refused) == (404, "MESSAGE_NOT_FOUND")
    message = (await ann.messages(mine))[0]["id"]
    refused = await bob.post(f"/conversations/{mine}/active", json={"message_id": message})
    assert code(refused) == (404, "CONVERSATION_NOT_FOUND")
    assert await path(ann, mine) == ["Mine"]


@pytest.mark.parametrize(
    ("status", "steps"), [("error", (says("half"), close())), ("canceled", (says("half"), hang()))]
)
async def test_what_failed_or_was_stopped_gets_another_version_by_streaming_again(
    ann: Person, upstream: Upstream, status: str, steps: tuple[Any, ...]
) -> None:
    conversation_id = await ann.conversation("Why?")
    upstream.enqueue(*steps)
    async with ann.streaming(conversation_id, **MODEL) as events:
        async for event in events:
            if event.event == "delta" and status == "canceled":
                good(await ann.post(f"/chat/cancel/{event.data['generation_id']}"))
    assert (await ann.messages(conversation_id))[-1]["status"] == status
    assert text(await answered(ann, upstream, conversation_id, "whole")) == "whole"
    reply = (await ann.messages(conversation_id))[-1]
    assert (reply["content"], len(reply["versions"]["ids"])) == ("whole", 2)
    assert sent(upstream) == ["Why?"]


# ---- the prompt


async def test_the_messages_of_a_request_begin_with_those_of_the_one_before(ann: Person, upstream: Upstream) -> None:
    conversation_id = await ann.conversation(system_prompt="Be short.")
    for number in range(6):
        await ann.say(conversation_id, f'Question {number}: 東京 😀 \u2028 \\ "?')
        await answered(ann, upstream, conversation_id, f" Answer {number}\n", "…")
    for earlier, later in itertools.pairwise(upstream.chats):
        assert later["messages"][: len(earlier["messages"])] == earlier["messages"]
        assert len(later["messages"]) == len(earlier["messages"]) + 2
    bodies = [request.body for request in upstream.requests if request.path == CHAT]
    for earlier, later in itertools.pairwise(bodies):
        start = earlier.index(b'"messages"')
        assert later[start:].startswith(earlier[start : earlier.rindex(b"}]")])  # byte for byte


# ---- idempotence


async def test_twenty_submits_at_once_are_one_request(ann: Person, upstream: Upstream) -> None:
    conversation_id = await ann.conversation("Why?")
    gate = Gate()
    upstream.enqueue(says("one "), pause(gate), says("two"), finish("stop"), DONE)
    submits = [asyncio.create_task(ann.answer(conversation_id, **MODEL)) for _ in range(20)]
    await gate.reached()
    gate.open()
    streams = await asyncio.gather(*submits)
    assert len(upstream.chats) == 1 and text(streams[0]) == "one two"
    assert all(events == streams[0] for events in streams)
    assert len(await ann.messages(conversation_id)) == 2


async def test_a_stream_attaches_to_a_retry_from_its_beginning(ann: Person, upstream: Upstream) -> None:
    conversation_id = await ann.conversation("Why?")
    await answered(ann, upstream, conversation_id, "first")
    gate = Gate()
    upstream.enqueue(says("one "), pause(gate), says("two"), finish("stop"), DONE)
    made = good(await ann.post("/chat/retry", json={"conversation_id": conversation_id, **MODEL}))
    await gate.reached()
    assert (await ann.messages(conversation_id))[-1]["status"] == "generating"
    reader = asyncio.create_task(ann.answer(conversation_id))
    gate.open()
    events = await reader
    assert (
        events[0].data["generation_id"] == made["generation_id"] and events[0].data["message_id"] == made["message_id"]
    )
    assert text(events) == "one two" and len(upstream.chats) == 2


async def test_an_answered_question_is_replayed_and_other_parameters_do_not_matter(
    ann: Person, upstream: Upstream
) -> None:
    conversation_id = await ann.conversation("Why?")
    live = await answered(ann, upstream, conversation_id, "Because.")
    assert await ann.answer(conversation_id, **MODEL, temperature=1.5) == live
    assert await ann.answer(conversation_id) == live
    assert len(upstream.chats) == 1


async def test_another_model_than_the_one_at_work_is_a_conflict(ann: Person, upstream: Upstream) -> None:
    conversation_id = await ann.conversation("Why?")
    gate = Gate()
    upstream.enqueue(says("one"), pause(gate), finish("stop"), DONE)
    reader = asyncio.create_task(ann.answer(conversation_id, **MODEL))
    await gate.reached()
    stream = f"/conversations/{conversation_id}/stream"
    assert code(await ann.post(stream, json=ANOTHER)) == (409, "GENERATION_ACTIVE")
    assert code(await ann.post("/chat/retry", json={"conversation_id": conversation_id})) == (409, "GENERATION_ACTIVE")
    gate.open()
    await reader
    assert code(await ann.post(stream, json=ANOTHER)) == (409, "ALREADY_ANSWERED")
    assert code(await ann.post(stream, json={"provider_id": "nobody"})) == (404, "PROVIDER_NOT_FOUND")
    assert text(await ann.answer(conversation_id)) == "one"


async def test_what_was_asked_for_counts_not_what_answered(ann: Person, upstream: Upstream) -> None:
    """LM Studio may answer with another model than it was asked for."""
    conversation_id = await ann.conversation("Why?")
    upstream.enqueue(answer("Because.", model="whatever-was-loaded"))
    live = await ann.answer(conversation_id, **MODEL)
    assert (await ann.messages(conversation_id))[-1]["model"] == "whatever-was-loaded"
    assert live[-1].data["stats"]["requested_model"] == MODEL["model"]
    assert await ann.answer(conversation_id, **MODEL) == live


async def test_a_repeated_append_adds_nothing(ann: Person, upstream: Upstream) -> None:
    conversation_id = await ann.conversation()
    ids = await asyncio.gather(*(ann.say(conversation_id, "Why?", client_id="a-1") for _ in range(20)))
    assert len(set(ids)) == 1 and await path(ann, conversation_id) == ["Why?"]
    assert await ann.say(conversation_id, "Why?", client_id="a-2") not in ids
    other = await ann.conversation()
    assert await ann.say(other, "Why?", client_id="a-1") not in ids


async def test_a_message_may_be_added_while_an_answer_is_written(ann: Person, upstream: Upstream) -> None:
    conversation_id = await ann.conversation("First?")
    gate = Gate()
    upstream.enqueue(says("one"), pause(gate), finish("stop"), DONE)
    reader = asyncio.create_task(ann.answer(conversation_id, **MODEL))
    await gate.reached()
    await ann.say(conversation_id, "Second?")
    assert code(await ann.post(f"/conversations/{conversation_id}/stream", json=MODEL)) == (409, "GENERATION_ACTIVE")
    gate.open()
    await reader
    await answered(ann, upstream, conversation_id, "two")
    assert await path(ann, conversation_id) == ["First?", "one", "Second?", "two"]
    assert sent(upstream) == ["First?", "one", "Second?"]


async def test_questions_in_a_row_are_sent_as_one(ann: Person, upstream: Upstream) -> None:
    conversation_id = await ann.conversation("First.")
    await ann.say(conversation_id, "Second?")
    await answered(ann, upstream, conversation_id, "Both.")
    assert sent(upstream) == ["First.\n\nSecond?"]


async def test_there_must_be_something_to_answer(
    ann: Person, bob: Person, running: Running, upstream: Upstream
) -> None:
    empty, theirs = await ann.conversation(), await bob.conversation("His")
    for body, refusal in (
        ({"conversation_id": empty}, (400, "NO_USER_MESSAGE")),
        ({"conversation_id": theirs}, (404, "CONVERSATION_NOT_FOUND")),
        ({"conversation_id": 10**15}, (404, "CONVERSATION_NOT_FOUND")),
    ):
        assert code(await ann.post("/chat/retry", json=body | MODEL)) == refusal
        assert code(await ann.post(f"/conversations/{body['conversation_id']}/stream", json=MODEL)) == refusal
    assert not upstream.chats and not running.state.hub.generations


async def test_the_model_is_the_last_one_then_one_that_is_loaded(ann: Person, upstream: Upstream) -> None:
    conversation_id = await ann.conversation("Why?")
    upstream.enqueue(answer("one"))
    await ann.answer(conversation_id)
    assert upstream.chats[-1]["model"] == MODEL["model"]
    await retried(ann, upstream, conversation_id, "two", **ANOTHER)
    await ann.say(conversation_id, "And then?")
    upstream.enqueue(answer("three"))
    await ann.answer(conversation_id)
    assert upstream.chats[-1]["model"] == ANOTHER["model"]


async def test_parameters_reach_the_model_and_unknown_ones_nobody(ann: Person, upstream: Upstream) -> None:
    conversation_id = await ann.conversation("Why?", settings={"temperature": 0.1, "top_k": 7})
    upstream.enqueue(answer("one"))
    given = {"temperature": 0.5, "max_tokens": 99, "stop": ["X"], "seed": 7, "top_p": 0.9, "min_p": 0.05}
    await ann.answer(conversation_id, **MODEL, **given)
    chat = upstream.chats[-1]
    assert {name: chat[name] for name in (*given, "top_k")} == given | {"top_k": 7}
    assert "presence_penalty" not in chat
    wrong: list[dict[str, Any]] = [
        {"logit_bias": {}},
        {"n": 2},
        {"temperature": 3},
        {"max_tokens": 0},
        {"messages": []},
    ]
    for body in wrong:
        for url, extra in (
            (f"/conversations/{conversation_id}/stream", {}),
            ("/chat/retry", {"conversation_id": conversation_id}),
        ):
            assert code(await ann.post(url, json=body | extra)) == (400, "VALIDATION_ERROR")
