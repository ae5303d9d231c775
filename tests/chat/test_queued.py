"""Messages that wait until the answer before them is complete."""

import asyncio
import base64
import signal
from pathlib import Path
from typing import Any

from ..live import Person, Running, code, good, text, until
from ..page.steps import PNG, QWEN
from ..processes import Killable
from ..upstream import DONE, Gate, Upstream, answer, finish, pause, status
from ..upstream import text as says
from ..witness import MODEL

IMAGE = {"media_type": "image/png", "data": base64.b64encode(PNG).decode()}


async def begin(ann: Person, upstream: Upstream, model: dict[str, str] = MODEL) -> tuple[int, Gate]:
    """Create a conversation with an answer that waits for a gate. Return its id and the gate."""
    conversation_id = await ann.conversation("One?", **model)
    gate = Gate()
    upstream.enqueue(says("1"), pause(gate), finish("stop"), DONE)
    async with ann.streaming(conversation_id, **model) as events:
        async for event in events:
            if event.event == "delta":
                return conversation_id, gate
    raise AssertionError


async def queue(ann: Person, conversation_id: int, content: str, **fields: Any) -> int:
    body = {"content": content, "queue": True, **fields}
    found = good(await ann.post(f"/conversations/{conversation_id}/messages", json=body))
    assert found["message_id"] is None and found["conversation_id"] == conversation_id
    queued_id: int = found["queued_id"]
    return queued_id


async def waiting(ann: Person, conversation_id: int) -> list[str]:
    conversation = good(await ann.get(f"/conversations/{conversation_id}"))
    return [message["content"] for message in conversation.get("queue", ())]


async def ended(ann: Person, running: Running, conversation_id: int, count: int) -> list[str]:
    """Wait until the conversation has so many messages and no answer is written."""

    async def is_over() -> bool:
        return len(await ann.messages(conversation_id)) >= count and not running.state.hub.generations

    await until(is_over)
    return await ann.contents(conversation_id)


async def stored_bytes(running: Running) -> int:
    sql = "SELECT sum(stored_bytes) FROM users"
    total: int = (await running.state.database.read(lambda conn: conn.execute(sql).fetchone()))[0]
    return total


async def test_queued_messages_are_answered_in_turn_without_a_reader(
    ann: Person, upstream: Upstream, running: Running
) -> None:
    conversation_id, gate = await begin(ann, upstream, QWEN)
    first = await queue(ann, conversation_id, "Two?", client_id="a", images=[IMAGE])
    second = await queue(ann, conversation_id, "3?")
    third = await queue(ann, conversation_id, "Four?")
    assert await queue(ann, conversation_id, "Two?", client_id="a") == first  # a repeated request adds nothing
    path = f"/conversations/{conversation_id}/queue"
    good(await ann.patch(f"{path}/{second}", json={"content": "Three?"}))
    good(await ann.delete(f"{path}/{third}"))
    assert code(await ann.delete(f"{path}/{third}")) == (404, "MESSAGE_NOT_FOUND")
    assert await waiting(ann, conversation_id) == ["Two?", "Three?"]
    assert good(await ann.get(f"/conversations/{conversation_id}"))["queue"][0]["images"] == 1
    assert await ann.contents(conversation_id) == ["One?", "1"]  # not part of the conversation yet
    assert good(await ann.get("/search", params={"q": "Three"}))["results"] == []
    assert await stored_bytes(running) == len("One?Two?Three?") + len(PNG)
    upstream.enqueue(answer("2"))
    upstream.enqueue(answer("3"))
    gate.open()
    assert await ended(ann, running, conversation_id, 6) == ["One?", "1", "Two?", "2", "Three?", "3"]
    messages = await ann.messages(conversation_id)
    assert [message["parent_id"] for message in messages[1:]] == [message["id"] for message in messages[:-1]]
    assert len(messages[2]["images"]) == 1 and await waiting(ann, conversation_id) == []
    prompts = [len(chat["messages"]) for chat in upstream.chats]
    assert prompts == [1, 3, 5]
    sent = {"content": "Two?", "queue": True, "client_id": "a"}
    found = good(await ann.post(f"/conversations/{conversation_id}/messages", json=sent))
    assert found == {"message_id": messages[2]["id"], "conversation_id": conversation_id}
    assert await stored_bytes(running) == len("One?1Two?2Three?3") + len(PNG)
    assert [hit["message_id"] for hit in good(await ann.get("/search", params={"q": "Three"}))["results"]] == [
        messages[4]["id"]
    ]


async def test_reader_of_done_finds_the_next_answer(ann: Person, upstream: Upstream) -> None:
    conversation_id, gate = await begin(ann, upstream)
    await queue(ann, conversation_id, "Two?")
    held = Gate()
    upstream.enqueue(pause(held), answer("2"))
    async with ann.streaming(conversation_id, **MODEL) as events:
        gate.open()
        assert [event async for event in events][-1].event == "done"
    following = good(await ann.get(f"/conversations/{conversation_id}"))["generation_id"]
    assert following is not None
    held.open()
    assert text(await ann.resume(following)) == "2"


async def test_queue_waits_after_a_stop_or_an_error_until_a_message_is_sent(
    ann: Person, upstream: Upstream, running: Running
) -> None:
    conversation_id, _ = await begin(ann, upstream)
    first = await queue(ann, conversation_id, "Two?")
    second = await queue(ann, conversation_id, "Three?")
    path = f"/conversations/{conversation_id}/queue"
    assert code(await ann.post(f"{path}/{second}/send", json={})) == (409, "GENERATION_ACTIVE")
    generation_id = good(await ann.get(f"/conversations/{conversation_id}"))["generation_id"]
    good(await ann.post(f"/chat/cancel/{generation_id}"))
    await until(lambda: not running.state.hub.generations)
    await queue(ann, conversation_id, "Four?")
    assert await waiting(ann, conversation_id) == ["Two?", "Three?", "Four?"]
    upstream.enqueue(status(500, {"error": "out of order"}))
    good(await ann.post(f"{path}/{second}/send", json={}))  # not the first one
    await ended(ann, running, conversation_id, 4)
    assert await waiting(ann, conversation_id) == ["Two?", "Four?"]
    for reply in ("3", "2", "4"):
        upstream.enqueue(answer(reply))
    good(await ann.post("/chat/retry", json={"conversation_id": conversation_id}))  # the rest follows by itself
    assert await ended(ann, running, conversation_id, 8) == ["One?", "1", "Three?", "3", "Two?", "2", "Four?", "4"]
    assert code(await ann.post(f"{path}/{first}/send", json={})) == (404, "MESSAGE_NOT_FOUND")


async def test_message_is_sent_at_once_when_no_answer_is_written(
    ann: Person, upstream: Upstream, running: Running
) -> None:
    conversation_id = await ann.conversation("One?")
    await ann.answer(conversation_id, **MODEL)
    upstream.enqueue(answer("2"))
    await queue(ann, conversation_id, "Two?")
    assert (await ended(ann, running, conversation_id, 4))[2:] == ["Two?", "2"]
    await ann.say(conversation_id, "Three?")
    await queue(ann, conversation_id, "Four?")  # after the question that waits for its answer
    assert await waiting(ann, conversation_id) == ["Four?"] and not running.state.hub.generations


async def test_queue_of_another_user_does_not_exist_and_its_limits_hold(
    ann: Person, bob: Person, upstream: Upstream, running: Running
) -> None:
    conversation_id, _ = await begin(ann, upstream)
    queued_id = await queue(ann, conversation_id, "Two?")
    path = f"/conversations/{conversation_id}"
    for refused in (
        await bob.post(f"{path}/messages", json={"content": "x", "queue": True}),
        await bob.patch(f"{path}/queue/{queued_id}", json={"content": "x"}),
        await bob.delete(f"{path}/queue/{queued_id}"),
        await bob.post(f"{path}/queue/{queued_id}/send", json={}),
    ):
        assert code(refused) == (404, "CONVERSATION_NOT_FOUND")
    theirs = await bob.conversation("Mine")
    for refused in (
        await bob.delete(f"/conversations/{theirs}/queue/{queued_id}"),
        await bob.post(f"/conversations/{theirs}/queue/{queued_id}/send", json=MODEL),
    ):
        assert code(refused) == (404, "MESSAGE_NOT_FOUND")
    for body in ({"content": ""}, {"content": "x", "parent_id": None}):
        assert code(await ann.post(f"{path}/messages", json=body | {"queue": True})) == (400, "VALIDATION_ERROR")
    assert code(await ann.patch(f"{path}/queue/{queued_id}", json={"content": ""})) == (400, "VALIDATION_ERROR")
    for _ in range(19):
        await queue(ann, conversation_id, "More")
    refused = await ann.post(f"{path}/messages", json={"content": "x", "queue": True})
    assert code(refused) == (400, "VALIDATION_ERROR")
    await queue(ann, await ann.conversation("Another?"), "x")  # each conversation has its own limit
    before = await stored_bytes(running)
    good(await ann.delete(path))
    assert upstream.count("/v1/chat/completions") == 1  # deleting the conversation sent none of them
    good(await ann.delete(f"{path}?purge=true"))
    await until(lambda: not running.state.hub.generations)
    assert before - await stored_bytes(running) >= len("One?Two?") + 19 * len("More")


async def test_images_of_a_queued_message_are_changed_with_it(
    ann: Person, bob: Person, upstream: Upstream, running: Running
) -> None:
    """Those that no message has any more are removed."""
    conversation_id, _ = await begin(ann, upstream)
    others = [{**IMAGE, "data": base64.b64encode(PNG + byte).decode()} for byte in (b"1", b"2")]
    queued_id = await queue(ann, conversation_id, "", images=[IMAGE, *others])
    path, size = f"/conversations/{conversation_id}/queue/{queued_id}", await stored_bytes(running)

    async def image_ids() -> list[int]:
        [message] = good(await ann.get(f"/conversations/{conversation_id}"))["queue"]
        assert message["images"] == len(message["image_ids"])
        found: list[int] = message["image_ids"]
        return found

    first, second, third = await image_ids()
    good(await ann.patch(path, json={"content": "Two?"}))
    assert await image_ids() == [first, second, third]
    good(await ann.patch(path, json={"content": "Two?", "attachment_ids": [third, first]}))
    assert await image_ids() == [third, first]
    assert (await ann.get(f"/images/{second}")).status_code == 404
    assert await stored_bytes(running) == size + len("Two?") - len(PNG + b"1")
    theirs = await bob.conversation("Mine")
    good(await bob.post(f"/conversations/{theirs}/messages", json={"content": "This?", "images": [IMAGE]}))
    wrong = [third, (await bob.messages(theirs))[-1]["images"][0]["id"]]
    assert code(await ann.patch(path, json={"content": "", "attachment_ids": wrong})) == (404, "ATTACHMENT_NOT_FOUND")
    assert code(await ann.patch(path, json={"content": "", "attachment_ids": []})) == (400, "VALIDATION_ERROR")
    assert await image_ids() == [third, first]


async def test_user_without_a_session_gets_no_more_answers(ann: Person, upstream: Upstream, running: Running) -> None:
    conversation_id, _ = await begin(ann, upstream)
    await queue(ann, conversation_id, "Two?")
    good(await ann.post("/auth/logout"))
    await until(lambda: not running.state.hub.generations)
    again = await running.login("ann")
    assert await waiting(again, conversation_id) == ["Two?"]


async def test_queue_survives_kill_and_waits(tmp_path: Path, upstream: Upstream) -> None:
    async with Killable(tmp_path / "data", lmstudio_url=upstream.url) as service:
        conversation_id, _ = await begin(service.ann, upstream)
        await queue(service.ann, conversation_id, "Two?")
        await service.end(signal.SIGKILL)
        await service.start()
        assert await waiting(service.ann, conversation_id) == ["Two?"]
        [_, interrupted] = await service.ann.messages(conversation_id)
        assert interrupted["status"] == "interrupted"
        [queued] = good(await service.ann.get(f"/conversations/{conversation_id}"))["queue"]
        upstream.enqueue(answer("2"))
        path = f"/conversations/{conversation_id}/queue/{queued['id']}/send"
        begun = good(await service.ann.post(path, json={}))
        assert text(await service.ann.resume(begun["generation_id"])) == "2"


async def test_queue_is_exported_and_imported(ann: Person, bob: Person, upstream: Upstream, running: Running) -> None:
    conversation_id, _ = await begin(ann, upstream)
    await queue(ann, conversation_id, "Two?", images=[IMAGE])
    await queue(ann, conversation_id, "Three?")
    exported = good(await ann.get(f"/conversations/{conversation_id}/export?format=json"))
    assert good(await bob.post("/import", json=exported))["skipped"] == []
    assert good(await bob.post("/import", json=exported))["unchanged"] == 1  # and adds nothing
    [copy] = good(await bob.get("/conversations"))
    waiting = good(await bob.get(f"/conversations/{copy['id']}"))["queue"]
    assert [(message["content"], message["images"]) for message in waiting] == [("Two?", 1), ("Three?", 0)]
    again = good(await bob.get(f"/conversations/{copy['id']}/export?format=json"))
    for file in (
        *exported["files"],
        *again["files"],
        *exported["queue"][0]["attachments"],
        *again["queue"][0]["attachments"],
    ):
        del file["id"]
    assert (again["queue"], again["files"]) == (exported["queue"], exported["files"])
    assert not [one for one in running.state.hub.generations.values() if one.job.conversation_id == copy["id"]]
    for wrong in ([{"content": "x"}], [exported["queue"][0]] * 21, [exported["queue"][1] | {"content": "x" * 200_001}]):
        refused = await bob.post("/import", json=exported | {"queue": wrong, "source": "other"})
        assert code(refused) == (400, "IMPORT_UNREADABLE")


async def test_second_save_that_is_canceled_starts_the_next_answer(
    ann: Person, upstream: Upstream, running: Running
) -> None:
    conversation_id, gate = await begin(ann, upstream)
    await queue(ann, conversation_id, "Two?")
    write, hub = running.state.database.write, running.state.hub
    trigger = "BEFORE UPDATE ON messages WHEN NEW.status = 'complete' BEGIN SELECT RAISE(ABORT, 'broken'); END"
    await write(lambda conn: conn.execute(f"CREATE TRIGGER broken {trigger}"))
    gate.open()
    await until(lambda: any(one.save_error for one in hub.generations.values()))
    await write(lambda conn: conn.execute("DROP TRIGGER broken"))
    saving = asyncio.create_task(hub._save_ended(conversation_id))
    for _ in range(3):
        await asyncio.sleep(0)
    saving.cancel()
    assert len(await ended(ann, running, conversation_id, 4)) == 4
    assert [message["status"] for message in await ann.messages(conversation_id)][1::2] == ["complete"] * 2
