"""An answer that is continued: its text, its events, its statistics, and what interrupts it."""

from typing import Any

import pytest
from fireside.chat.continuation import INSTRUCTION, Joint, open_fence

from ..live import Person, Running, code, good, text, until
from ..upstream import DONE, Gate, Upstream, answer, finish, pause, reasoning, status, usage
from ..upstream import text as says
from ..witness import MODEL, well_formed

CODE = "Sure:\n\n```python\ndef add(a, b):\n    return a"


def joined(before: str, *pieces: str) -> str:
    joint = Joint(before)
    return "".join([joint.add(piece) for piece in pieces] + [joint.end()])


@pytest.mark.parametrize(
    ("before", "continuation", "added"),
    [
        ("The capital", " of France is Paris.", " of France is Paris."),
        ("The capital", "The capital of France", " of France"),  # llama.cpp repeats the whole text
        ("The capital", "The", "The"),
        ("The capital", "The capital", ""),
        (CODE, "```python\n + b\n```\nDone.", " + b\n```\nDone."),
        (CODE, "Here is the rest:\n```python\n + b\n```", " + b\n```"),
        (CODE, "```\n + b\n```", " + b\n```"),
        (CODE, "def add(a, b):\n    return a + b\n```", " + b\n```"),
        (CODE, " + b\n```\n```js\nadd()\n```", " + b\n```\n```js\nadd()\n```"),
        (f"{CODE} + b\n", "```\nIt adds.", "```\nIt adds."),  # closes the block
        (f"{CODE} + b\n```\n", "```python\nadd(1, 2)\n```", "```python\nadd(1, 2)\n```"),
        ("````md\n```python\n", "```python\nx", "```python\nx"),  # a shorter fence inside of the block
        ("1, 0, 0, ", "0, 0, 0", "0, 0, 0"),  # alike by chance
        ("It is a long story that", "a long story that ends well.", " ends well."),
    ],
)
def test_continuation_is_joined_without_what_it_repeats(before: str, continuation: str, added: str) -> None:
    assert joined(before, continuation) == joined(before, *continuation) == added


def test_open_code_block_is_found() -> None:
    assert open_fence(CODE) == "```" and open_fence("- a\n  ~~~~\n  ~~~\n") == "~~~~"
    assert open_fence(f"{CODE}\n```\n") == "" and open_fence("`code` ``` x") == ""


async def halted(ann: Person, upstream: Upstream, *texts: str, reason: str = "length") -> int:
    """Create a conversation with an answer that has reached its limit."""
    conversation_id = await ann.conversation("Count.")
    upstream.enqueue(says(*texts), finish(reason), usage(12, 4), DONE)
    await ann.answer(conversation_id, **MODEL)
    return conversation_id


async def begin(ann: Person, conversation_id: int, **fields: Any) -> str:
    found = good(await ann.post("/chat/continue", json={"conversation_id": conversation_id, **fields}))
    generation_id: str = found["generation_id"]
    return generation_id


async def test_continued_answer_grows_in_place(ann: Person, upstream: Upstream) -> None:
    conversation_id = await halted(ann, upstream, "One, two")
    question, first = await ann.messages(conversation_id)
    recorded = await ann.resume(first["generation_id"])
    gate = Gate()
    upstream.enqueue(
        says(", three, four, five, six, "), pause(gate), says("seven."), finish("stop"), usage(40, 6), DONE
    )
    generation_id = await begin(ann, conversation_id, temperature=0.5)
    assert await begin(ann, conversation_id) == generation_id  # a repeated request finds the same one
    assert code(await ann.post("/chat/retry", json={"conversation_id": conversation_id})) == (409, "GENERATION_ACTIVE")
    gate.open()
    events = await ann.resume(generation_id)
    well_formed(events)
    whole = "One, two, three, four, five, six, seven."
    assert text(events) == whole and events[-1].data["status"] == "ok"
    assert upstream.chats[-1]["messages"] == [
        {"role": "user", "content": "Count."},
        {"role": "assistant", "content": "One, two"},
        {"role": "user", "content": INSTRUCTION},
    ]
    assert upstream.chats[-1]["temperature"] == 0.5
    [_, grown] = await ann.messages(conversation_id)
    assert (grown["id"], grown["content"], grown["status"]) == (first["id"], whole, "complete")
    assert grown["parent_id"] == question["id"] and grown["versions"]["ids"] == [first["id"]]
    assert grown["token_usage"] == {"prompt_tokens": 12, "completion_tokens": 10, "total_tokens": 22}
    assert grown["stats"]["finish_reason"] == "stop" and grown["stats"] == events[-1].data["stats"]
    assert grown["stats"]["ttft_ms"] == first["stats"]["ttft_ms"]
    assert grown["stats"]["total_ms"] > first["stats"]["total_ms"] and grown["stats"]["sent_messages"] == 1
    # Every event of both generations can be read again, from every position.
    for identity, log in ((first["generation_id"], recorded), (generation_id, events)):
        for position in range(len(log) - 1):
            assert await ann.resume(identity, position) == log[position:]
    assert (await ann.get(f"/generations/{first['generation_id']}/stream?after={len(recorded)}")).status_code == 204
    hits = good(await ann.get("/search", params={"q": "two seven"}))["results"]
    assert [hit["message_id"] for hit in hits] == [first["id"]]


async def test_stopped_continuation_keeps_all_text_and_can_go_on(
    ann: Person, upstream: Upstream, running: Running
) -> None:
    conversation_id = await halted(ann, upstream, "One, two")
    upstream.enqueue(says(", three, "), pause(Gate()))
    generation_id = await begin(ann, conversation_id)
    async with ann.resuming(generation_id) as events:
        async for event in events:
            if event.data.get("phase") == "generating":
                good(await ann.post(f"/chat/cancel/{generation_id}"))
    message = (await ann.messages(conversation_id))[-1]
    assert (message["content"], message["status"]) == ("One, two, three, ", "canceled")
    assert message["token_usage"] is None and "finish_reason" not in message["stats"]
    other = {"model": "qwen2.5-vl-7b-instruct"}
    upstream.enqueue(status(500, {"error": "out of order"}))
    await ann.resume(await begin(ann, conversation_id, **other))
    message = (await ann.messages(conversation_id))[-1]
    assert (message["content"], message["status"]) == ("One, two, three, ", "error")
    assert message["model"] == MODEL["model"], "the other model has written nothing"
    upstream.enqueue(finish("stop"), DONE)  # the model has nothing to add
    await ann.resume(await begin(ann, conversation_id))
    message = (await ann.messages(conversation_id))[-1]
    assert (message["content"], message["status"], message["error"]) == ("One, two, three, ", "complete", None)
    await until(lambda: not running.state.hub.generations)
    used = "SELECT stored_bytes FROM users"
    assert (await running.state.database.read(lambda conn: conn.execute(used).fetchone()))[0] == len(
        "Count.One, two, three, "
    )
    upstream.enqueue(answer("four.", model=other["model"]))
    await ann.resume(await begin(ann, conversation_id, **other))
    assert (await ann.messages(conversation_id))[-1]["model"] == other["model"]


async def test_only_the_last_answer_of_ones_own_conversation_is_continued(
    ann: Person, bob: Person, upstream: Upstream
) -> None:
    conversation_id = await halted(ann, upstream, "One")
    question, first = await ann.messages(conversation_id)
    body = {"conversation_id": conversation_id, "message_id": question["id"]}
    assert code(await ann.post("/chat/continue", json=body)) == (400, "VALIDATION_ERROR")
    assert code(await ann.post("/chat/continue", json=body | {"message_id": 999})) == (404, "MESSAGE_NOT_FOUND")
    body["message_id"] = first["id"]
    assert code(await bob.post("/chat/continue", json=body)) == (404, "CONVERSATION_NOT_FOUND")
    await ann.say(conversation_id, "And then?")
    assert code(await ann.post("/chat/continue", json=body)) == (400, "VALIDATION_ERROR")
    gate = Gate()
    upstream.enqueue(pause(gate), answer("Two"))
    async with ann.streaming(conversation_id, **MODEL) as events:
        await anext(events)
        assert code(await ann.post("/chat/continue", json=body)) == (409, "GENERATION_ACTIVE")
        gate.open()
        assert [event async for event in events][-1].data["status"] == "ok"


async def test_reasoning_of_a_continuation_follows_that_of_the_answer(ann: Person, upstream: Upstream) -> None:
    conversation_id = await ann.conversation("Count.")
    upstream.enqueue(reasoning("Hm."), says("One"), finish("length"), DONE)
    await ann.answer(conversation_id, **MODEL)
    upstream.enqueue(reasoning("Ah", "."), says(", two"), finish("stop"), DONE)
    events = await ann.resume(await begin(ann, conversation_id))
    assert (text(events, "reasoning"), text(events)) == ("Hm.\n\nAh.", "One, two")
    message = (await ann.messages(conversation_id))[-1]
    assert (message["reasoning"], message["content"]) == ("Hm.\n\nAh.", "One, two")
