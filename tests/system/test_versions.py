"""A conversation is a tree of messages: versions, branches, and repeated requests."""

import asyncio
import base64
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
    assert text(await person.resume(made["generation_id"])) == "".join(words)
    return made


async def select(person: Person, conversation_id: int, message_id: int) -> dict[str, Any]:
    path = f"/conversations/{conversation_id}/active"
    selected: dict[str, Any] = good(await person.post(path, json={"message_id": message_id}))
    return selected


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
        assert await ann.contents(conversation_id) == ["Why?", "other"] and sent(upstream) == ["Why?"]
    await select(ann, conversation_id, first["id"])
    assert await ann.contents(conversation_id) == ["Why?", "first", "And then?", "later"]
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
    assert await ann.contents(conversation_id) == ["Hello", "Hi.", "Why is the sky red?"]
    await ask(ann, upstream, conversation_id, "Dust.")
    assert sent(upstream) == ["Hello", "Hi.", "Why is the sky red?"]
    assert (await ann.messages(conversation_id))[2]["versions"]["ids"] == [first, second]
    selected = await select(ann, conversation_id, first)
    *_, question, reply = await ann.messages(conversation_id)
    assert (question["content"], reply["content"]) == ("Why is the sky blue?", "Rayleigh.")
    assert selected == {"message": "Version selected", "active_message_id": reply["id"]}
    await ann.say(conversation_id, "Good morning", parent_id=None)
    await ask(ann, upstream, conversation_id, "Good morning to you.")
    assert await ann.contents(conversation_id) == ["Good morning", "Good morning to you."]
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
    assert await ann.contents(mine) == ["Mine"]


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


async def test_conflicting_request_is_refused(ann: Person, upstream: Upstream) -> None:
    conversation_id = await ann.conversation("First?")
    stream = f"/conversations/{conversation_id}/stream"
    [gate] = upstream.enqueue_paused("one", "")
    async with ann.streaming(conversation_id, **MODEL) as events:
        await anext(events)
        second = await ann.say(conversation_id, "Second?")
        assert code(await ann.post(stream, json=MODEL)) == (409, "GENERATION_ACTIVE")
        gate.open()
        assert text([event async for event in events]) == "one"
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
    assert len(set(ids)) == 1 and await ann.contents(conversation_id) == ["Why?"]
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


# ---- single messages


async def test_next_question_is_answered_on_an_edited_answer_and_export_and_import_keep_it(
    ann: Person, bob: Person, upstream: Upstream
) -> None:
    conversation_id = await ann.conversation("Why?")
    await ask(ann, upstream, conversation_id, "Because.")
    first = (await ann.messages(conversation_id))[1]["id"]
    edit = {"content": "Because of dust.", "client_id": "edit-1"}
    made = [good(await ann.post(f"/conversations/{conversation_id}/messages/{first}/edit", json=edit)) for _ in "12"]
    assert made[0] == made[1] == {"message_id": made[0]["message_id"], "conversation_id": conversation_id}
    reply = (await ann.messages(conversation_id))[1]
    assert (reply["content"], reply["edited"], reply["model"]) == ("Because of dust.", True, MODEL["model"])
    assert reply["versions"]["edited"] == [False, True] and len(reply["versions"]["models"]) == 2
    await ann.say(conversation_id, "Which?")
    await ask(ann, upstream, conversation_id, "Desert dust.")
    assert sent(upstream) == ["Why?", "Because of dust.", "Which?"]
    exported = await ann.get(f"/conversations/{conversation_id}/export?format=json")
    assert "edited" in (await ann.get(f"/conversations/{conversation_id}/export")).text
    assert good(await bob.post("/import", json=[exported.json()]))["conversations"] == 1
    [theirs] = good(await bob.get("/conversations"))
    assert [message["edited"] for message in await bob.messages(theirs["id"])] == [False, True, False, False]
    shown = good(await ann.get(f"/conversations/{conversation_id}/messages/{first}?render=true"))
    assert (shown["content"], shown["blocks"]) == ("Because.", [["p", {}, "Because."]])


async def test_deleted_exchange_is_not_sent_found_or_imported_again_until_it_is_restored(
    ann: Person, upstream: Upstream
) -> None:
    conversation_id = await ann.conversation("One?")
    await ask(ann, upstream, conversation_id, "First.")
    image = {"media_type": "image/png", "data": base64.b64encode(b"\x89PNG\r\n\x1a\n0000").decode()}
    second = await ann.say(conversation_id, "Two?", images=[image])
    for words, question in (("Second.", "Three?"), ("Third.", "")):
        upstream.enqueue(answer(words))
        await ann.answer(conversation_id, **ANOTHER)
        if question:
            await ann.say(conversation_id, question)
    before = await ann.messages(conversation_id)
    exported = (await ann.get(f"/conversations/{conversation_id}/export?format=json")).json()
    path = f"/conversations/{conversation_id}/messages/{second}"
    deleted, again = [good(await ann.delete(path)) for _ in "12"]
    assert deleted == again and deleted["message"] == "Message deleted"
    assert await ann.contents(conversation_id) == ["One?", "First.", "Three?", "Third."]
    assert good(await ann.get("/search?q=second"))["results"] == []
    assert (await ann.get(f"/images/{before[2]['images'][0]['id']}")).status_code == 404
    assert good(await ann.post("/import", json=[exported]))["unchanged"] == 1
    await retry(ann, upstream, conversation_id, "Third again.")
    assert sent(upstream) == ["One?", "First.", "Three?"]
    home = {"id": conversation_id, "title": "One?"}
    [entry] = good(await ann.get("/conversations?deleted=true"))
    assert (entry["id"], entry["deleted_from"], entry["title"]) == (deleted["deleted_id"], home, "Two?")
    assert good(await ann.post(f"/conversations/{entry['id']}/restore"))["id"] == conversation_id
    after = await ann.messages(conversation_id)
    assert after[:5] == before[:5] and after[5]["versions"]["ids"][0] == before[5]["id"]
    assert good(await ann.get("/conversations?deleted=true")) == []


async def test_message_that_an_answer_in_progress_depends_on_is_not_deleted(ann: Person, upstream: Upstream) -> None:
    conversation_id = await ann.conversation("One?")
    gate = Gate()
    upstream.enqueue(says("First."), pause(gate), finish(), DONE)
    async with ann.streaming(conversation_id, **MODEL) as events:
        await anext(events)
        for message in await ann.messages(conversation_id):
            response = await ann.delete(f"/conversations/{conversation_id}/messages/{message['id']}")
            assert code(response) == (409, "GENERATION_ACTIVE")
        gate.open()
        assert text([event async for event in events]) == "First."
    reply = (await ann.messages(conversation_id))[-1]["id"]
    good(await ann.delete(f"/conversations/{conversation_id}/messages/{reply}"))
    await ask(ann, upstream, conversation_id, "Once more.")
    assert await ann.contents(conversation_id) == ["One?", "Once more."] and sent(upstream) == ["One?"]


async def test_branch_is_answered_on_its_own_and_purged_with_its_chat(ann: Person, upstream: Upstream) -> None:
    conversation_id = await ann.conversation("One?")
    await ask(ann, upstream, conversation_id, "First.")
    reply = (await ann.messages(conversation_id))[1]
    body = {"message_id": reply["id"], "client_id": "b"}
    branches = [good(await ann.post(f"/conversations/{conversation_id}/branch", json=body)) for _ in "12"]
    assert branches[0] == branches[1] and branches[0]["title"] == "One? (branch)"
    branch_id = branches[0]["id"]
    await ann.say(branch_id, "Two?")
    await ask(ann, upstream, branch_id, "Second.")
    assert sent(upstream) == ["One?", "First.", "Two?"]
    assert await ann.contents(conversation_id) == ["One?", "First."]
    question = (await ann.messages(branch_id))[2]["id"]
    good(await ann.delete(f"/conversations/{branch_id}/messages/{question}"))
    good(await ann.delete(f"/conversations/{branch_id}?purge=true"))
    assert good(await ann.get("/conversations?deleted=true")) == []
    assert [one["id"] for one in good(await ann.get("/conversations"))] == [conversation_id]
