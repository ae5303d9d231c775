"""A conversation is a tree of messages: versions, branches, and repeated requests."""

import asyncio
from typing import Any

import pytest

from ..live import Event, Person, Running, code, good, text
from ..upstream import DONE, Gate, Step, Upstream, answer, close, finish, hang, pause
from ..upstream import text as says
from ..witness import MODEL

ANOTHER = MODEL | {"model": "qwen2.5-vl-7b-instruct"}


async def ask(person: Person, upstream: Upstream, conversation_id: int, *words: str) -> list[Event]:
    upstream.enqueue(answer(*words))
    return await person.answer(conversation_id, **MODEL)


async def retry(person: Person, upstream: Upstream, conversation_id: int, *words: str, **fields: Any) -> dict[str, Any]:
    """Return what POST /chat/retry returned, once that answer is complete."""
    upstream.enqueue(answer(*words))
    body = {"conversation_id": conversation_id, **MODEL, **fields}
    made: dict[str, Any] = good(await person.post("/chat/retry", json=body))
    async with person.resuming(made["generation_id"]) as events:
        assert text([event async for event in events]) == "".join(words)
    return made


async def select(person: Person, conversation_id: int, message_id: int) -> dict[str, Any]:
    path = f"/conversations/{conversation_id}/active"
    selected: dict[str, Any] = good(await person.post(path, json={"message_id": message_id}))
    return selected


async def contents(person: Person, conversation_id: int) -> list[str]:
    return [message["content"] for message in await person.messages(conversation_id)]


def sent(upstream: Upstream) -> list[str]:
    """The contents of the messages of the last request."""
    return [message["content"] for message in upstream.chats[-1]["messages"]]


# ---- branches


async def test_retry_adds_a_version_that_can_be_left_again(ann: Person, upstream: Upstream) -> None:
    conversation_id = await ann.conversation("Why?")
    await ask(ann, upstream, conversation_id, "first")
    second = await retry(ann, upstream, conversation_id, "second")
    third = await retry(ann, upstream, conversation_id, "third")
    assert sent(upstream) == ["Why?"]
    question, reply = await ann.messages(conversation_id)
    assert (reply["content"], reply["id"], reply["parent_id"]) == ("third", third["message_id"], question["id"])
    first, *others = reply["versions"]["ids"]
    assert reply["versions"]["index"] == 2 and others == [second["message_id"], third["message_id"]]
    await select(ann, conversation_id, first)
    await ann.say(conversation_id, "And then?")
    await ask(ann, upstream, conversation_id, "Then.")
    assert sent(upstream) == ["Why?", "first", "And then?"]


async def test_earlier_answer_can_be_retried(ann: Person, bob: Person, upstream: Upstream) -> None:
    conversation_id = await ann.conversation("Why?")
    await ask(ann, upstream, conversation_id, "first")
    question, first = await ann.messages(conversation_id)
    await ann.say(conversation_id, "And then?")
    await ask(ann, upstream, conversation_id, "later")
    for message in (first, question):
        await retry(ann, upstream, conversation_id, "other", message_id=message["id"])
        assert await contents(ann, conversation_id) == ["Why?", "other"] and sent(upstream) == ["Why?"]
    await select(ann, conversation_id, first["id"])
    assert await contents(ann, conversation_id) == ["Why?", "first", "And then?", "later"]
    foreign = (await bob.messages(await bob.conversation("His")))[0]["id"]
    for message_id in (foreign, 10**15):
        body = {"conversation_id": conversation_id, "message_id": message_id}
        assert code(await ann.post("/chat/retry", json=body | MODEL)) == (404, "MESSAGE_NOT_FOUND")


async def test_edited_question_is_a_branch_with_its_own_answer(ann: Person, upstream: Upstream) -> None:
    conversation_id = await ann.conversation("Hello")
    await ask(ann, upstream, conversation_id, "Hi.")
    parent = (await ann.messages(conversation_id))[1]["id"]
    first = await ann.say(conversation_id, "Why is the sky blue?")
    await ask(ann, upstream, conversation_id, "Rayleigh.")
    second = await ann.say(conversation_id, "Why is the sky red?", parent_id=parent)
    assert await contents(ann, conversation_id) == ["Hello", "Hi.", "Why is the sky red?"]
    await ask(ann, upstream, conversation_id, "Dust.")
    assert sent(upstream) == ["Hello", "Hi.", "Why is the sky red?"]
    assert (await ann.messages(conversation_id))[2]["versions"] == {"ids": [first, second], "index": 1}
    selected = await select(ann, conversation_id, first)
    *_, question, reply = await ann.messages(conversation_id)
    assert (question["content"], reply["content"]) == ("Why is the sky blue?", "Rayleigh.")
    assert selected == {"message": "Version selected", "active_message_id": reply["id"]}
    await ann.say(conversation_id, "Good morning", parent_id=None)
    await ask(ann, upstream, conversation_id, "Good morning to you.")
    assert await contents(ann, conversation_id) == ["Good morning", "Good morning to you."]
    assert sent(upstream) == ["Good morning"]


async def test_messages_of_other_conversations_are_not_found(ann: Person, bob: Person) -> None:
    mine, other, theirs = await ann.conversation("Mine"), await ann.conversation("Other"), await bob.conversation("His")
    for conversation_id, person in ((other, ann), (theirs, bob)):
        message = (await person.messages(conversation_id))[0]["id"]
        for field, path in (("message_id", "active"), ("parent_id", "messages")):
            refused = await ann.post(f"/conversations/{mine}/{path}", json={field: message, "content": "x"})
            assert code(refused) == (404, "MESSAGE_NOT_FOUND")
    message = (await ann.messages(mine))[0]["id"]
    refused = await bob.post(f"/conversations/{mine}/active", json={"message_id": message})
    assert code(refused) == (404, "CONVERSATION_NOT_FOUND")
    assert await contents(ann, mine) == ["Mine"]


@pytest.mark.parametrize(("status", "end"), [("error", close()), ("canceled", hang())])
async def test_streaming_again_retries_what_did_not_complete(
    ann: Person, upstream: Upstream, status: str, end: Step
) -> None:
    conversation_id = await ann.conversation("Why?")
    upstream.enqueue(says("half"), end)
    async with ann.streaming(conversation_id, **MODEL) as events:
        async for event in events:
            if event.event == "delta" and status == "canceled":
                good(await ann.post(f"/chat/cancel/{event.data['generation_id']}"))
    assert (await ann.messages(conversation_id))[-1]["status"] == status
    assert text(await ask(ann, upstream, conversation_id, "whole")) == "whole"
    reply = (await ann.messages(conversation_id))[-1]
    assert (reply["content"], reply["versions"]["index"]) == ("whole", 1) and sent(upstream) == ["Why?"]
    await select(ann, conversation_id, reply["versions"]["ids"][0])
    assert (await ann.messages(conversation_id))[-1]["content"] == "half"


# ---- repeated requests


async def test_simultaneous_submits_are_one_request(ann: Person, upstream: Upstream) -> None:
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


async def test_stream_follows_a_running_retry_from_its_beginning(ann: Person, upstream: Upstream) -> None:
    conversation_id = await ann.conversation("Why?")
    await ask(ann, upstream, conversation_id, "first")
    gate = Gate()
    upstream.enqueue(says("one "), pause(gate), says("two"), finish("stop"), DONE)
    made = good(await ann.post("/chat/retry", json={"conversation_id": conversation_id, **MODEL}))
    await gate.reached()
    assert (await ann.messages(conversation_id))[-1]["status"] == "generating"
    reader = asyncio.create_task(ann.answer(conversation_id))
    gate.open()
    events = await reader
    assert made.items() <= events[0].data.items() and text(events) == "one two" and len(upstream.chats) == 2


async def test_conflicting_request_is_refused(ann: Person, upstream: Upstream) -> None:
    conversation_id = await ann.conversation("First?")
    gate = Gate()
    upstream.enqueue(says("one"), pause(gate), finish("stop"), DONE)
    reader = asyncio.create_task(ann.answer(conversation_id, **MODEL))
    await gate.reached()
    stream = f"/conversations/{conversation_id}/stream"
    assert code(await ann.post(stream, json=ANOTHER)) == (409, "GENERATION_ACTIVE")
    assert code(await ann.post("/chat/retry", json={"conversation_id": conversation_id})) == (409, "GENERATION_ACTIVE")
    second = await ann.say(conversation_id, "Second?")
    assert code(await ann.post(stream, json=MODEL)) == (409, "GENERATION_ACTIVE")
    gate.open()
    await reader
    await ask(ann, upstream, conversation_id, "two")
    assert sent(upstream) == ["First?", "one", "Second?"]
    assert (await ann.messages(conversation_id))[-1]["parent_id"] == second
    assert code(await ann.post(stream, json=ANOTHER)) == (409, "ALREADY_ANSWERED")
    assert code(await ann.post(stream, json={"provider_id": "unknown"})) == (404, "PROVIDER_NOT_FOUND")


async def test_requested_model_finds_an_answer_of_another(ann: Person, upstream: Upstream) -> None:
    """LM Studio may answer with another model than the requested one."""
    conversation_id = await ann.conversation("Why?")
    upstream.enqueue(answer("Because.", model="whatever-was-loaded"))
    live = await ann.answer(conversation_id, **MODEL)
    assert (await ann.messages(conversation_id))[-1]["model"] == "whatever-was-loaded"
    assert live[-1].data["stats"]["requested_model"] == MODEL["model"]
    assert await ann.answer(conversation_id, **MODEL) == live


async def test_repeated_message_is_added_once(ann: Person) -> None:
    conversation_id, other_id = await ann.conversation(), await ann.conversation()
    ids = await asyncio.gather(*(ann.say(conversation_id, "Why?", client_id="a-1") for _ in range(20)))
    assert len(set(ids)) == 1 and await contents(ann, conversation_id) == ["Why?"]
    assert await ann.say(conversation_id, "Why?", client_id="a-2") not in ids
    assert await ann.say(other_id, "Why?", client_id="a-1") not in ids


async def test_request_without_a_question_is_refused(
    ann: Person, bob: Person, running: Running, upstream: Upstream
) -> None:
    for conversation_id, refusal in (
        (await ann.conversation(), (400, "NO_USER_MESSAGE")),
        (await bob.conversation("His"), (404, "CONVERSATION_NOT_FOUND")),
        (10**15, (404, "CONVERSATION_NOT_FOUND")),
    ):
        for request in ({}, MODEL):
            retried = await ann.post("/chat/retry", json={"conversation_id": conversation_id} | request)
            streamed = await ann.post(f"/conversations/{conversation_id}/stream", json=request)
            assert code(retried) == code(streamed) == refusal
    assert not upstream.chats and not running.state.hub.generations


async def test_parameters_reach_the_model_and_unknown_ones_are_refused(ann: Person, upstream: Upstream) -> None:
    conversation_id = await ann.conversation("Why?", settings={"temperature": 0.1, "top_k": 7})
    given = {"temperature": 0.5, "max_tokens": 99, "stop": ["X"], "seed": 7, "top_p": 0.9, "min_p": 0.05}
    await ann.answer(conversation_id, **MODEL, **given)
    chat = upstream.chats[-1]
    assert {name: chat[name] for name in (*given, "top_k")} == given | {"top_k": 7}
    assert "presence_penalty" not in chat
    wrong: list[dict[str, Any]] = [{"logit_bias": {}}, {"temperature": 3}, {"max_tokens": 0}, {"messages": []}]
    for body in wrong:
        streamed = await ann.post(f"/conversations/{conversation_id}/stream", json=body)
        retried = await ann.post("/chat/retry", json=body | {"conversation_id": conversation_id})
        assert code(streamed) == code(retried) == (400, "VALIDATION_ERROR")
