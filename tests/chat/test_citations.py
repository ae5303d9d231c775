"""Citations: an answer's quotations are looked up when it ends, in the documents of its path, and kept with it."""

import asyncio
from typing import Any

import pytest
from fireside import queries
from fireside.chat import generation
from fireside.db import Connection
from fireside.safety.sandbox import Sandbox

from ..live import PATIENCE, Person, Running, code, good, until
from ..upstream import Upstream, answer, hang
from ..upstream import text as says
from ..witness import MODEL

PAGES = [
    "Page one says nothing at all.",
    "The quick brown fox jumps over the lazy dog and runs",
    "into the wood, where nobody goes.",
]
TRUE = "“jumps over the lazy dog and runs into the wood”"
FALSE = "“jumps over the lazy cat and runs into the wood”"
ANSWER = f"🦊 It says {TRUE} and not {FALSE}."


async def conversation(
    running: Running, person: Person, pages: list[str] = PAGES, name: str = "fox.pdf"
) -> tuple[int, int]:
    """Return a conversation with a question that has a document, and the document's id."""
    user_id = good(await person.get("/auth/me"))["user"]["id"]
    conversation_id = await person.conversation("What does the fox do?")
    (question,) = await person.messages(conversation_id)

    def attach(conn: Connection) -> int:
        attachments = queries.attachments
        attachment_id = attachments.add(conn, user_id, f"{name} {conversation_id}".encode(), "application/pdf", name)
        attachments.set_opened(conn, attachment_id, "application/pdf", "page", len(pages), None)
        done = 0
        while done < len(pages):
            done += attachments.add_pages(conn, attachment_id, done + 1, pages[done:])
        attachments.set_read(conn, attachment_id, "ready", None)
        attachments.link(conn, question["id"], 0, attachment_id, name)
        return attachment_id

    return conversation_id, await running.state.database.write(attach)


def cited(message: dict[str, Any]) -> list[tuple[str, str, int | None]]:
    """Return text, status and page of each citation."""
    return [
        (message["content"][one["start"] : one["end"]], one["status"], one.get("page")) for one in message["citations"]
    ]


BOTH = [(TRUE, "found", 2), (FALSE, "not_found", None)]


async def test_citations_come_with_the_answer_and_stay_with_its_text(
    running: Running, ann: Person, upstream: Upstream
) -> None:
    upstream.enqueue(answer(ANSWER))
    conversation_id, document_id = await conversation(running, ann)
    done = (await ann.answer(conversation_id, **MODEL))[-1].data
    question, message = await ann.messages(conversation_id)
    assert cited(message) == BOTH and message["citations"] == done["citations"] and question["citations"] is None
    assert message["citations"][0]["attachment_id"] == document_id and message["citations"][0]["name"] == "fox.pdf"
    assert message["content"] == ANSWER
    assert (await ann.answer(conversation_id))[-1].data == done  # replayed

    copy = good(await ann.post(f"/conversations/{conversation_id}/branch", json={"message_id": message["id"]}))
    assert (await ann.messages(copy["id"]))[1]["citations"] == message["citations"]

    upstream.enqueue(answer(ANSWER, " Or “into the wood, where nobody goes”"))  # the server repeats what it continues
    good(await ann.post("/chat/continue", json={"conversation_id": conversation_id}))
    await until(lambda: not running.state.hub.generations)
    message = (await ann.messages(conversation_id))[1]
    assert cited(message) == [*BOTH, ("“into the wood, where nobody goes”", "found", 3)]

    edited = {"content": f"{FALSE} and {TRUE}"}
    good(await ann.post(f"/conversations/{conversation_id}/messages/{message['id']}/edit", json=edited))
    assert cited((await ann.messages(conversation_id))[1]) == BOTH[::-1]
    path = f"/conversations/{conversation_id}/messages/{question['id']}/edit"
    bob = await running.join(ann, "bob")
    assert code(await bob.post(path, json=edited)) == (404, "CONVERSATION_NOT_FOUND")


async def test_partial_answer_is_compared_too(
    running: Running, ann: Person, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "STOPPED_CHECK_SECONDS", PATIENCE)
    upstream.enqueue(says(ANSWER), hang())
    conversation_id, _ = await conversation(running, ann)
    async with ann.streaming(conversation_id, **MODEL) as events:
        async for event in events:
            if event.event == "delta":
                good(await ann.post(f"/chat/cancel/{event.data['generation_id']}"))
        assert event.data["status"] == "canceled" and len(event.data["citations"]) == 2
    assert cited((await ann.messages(conversation_id))[1]) == BOTH


async def test_answers_without_documents_or_quotations_start_no_process(
    running: Running, ann: Person, upstream: Upstream
) -> None:
    upstream.enqueue(answer(ANSWER))
    plain = await ann.conversation("Why?")
    assert "citations" not in (await ann.answer(plain, **MODEL))[-1].data
    upstream.enqueue(answer("It runs."))
    with_document, _ = await conversation(running, ann)
    assert (await ann.answer(with_document, **MODEL))[-1].data.get("citations") in (None, [])
    assert not running.state.hub.checker._sandbox._workers


async def test_deletion_does_not_wait_for_the_check(
    running: Running, ann: Person, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "STOPPED_CHECK_SECONDS", 10 * PATIENCE)
    monkeypatch.setattr(Sandbox, "iterate", _never)
    upstream.enqueue(says(ANSWER), hang())
    conversation_id, _ = await conversation(running, ann)
    async with ann.streaming(conversation_id, **MODEL) as events:
        while (await anext(events)).event != "delta":
            pass
        async with asyncio.timeout(PATIENCE):
            good(await ann.delete(f"/conversations/{conversation_id}", params={"purge": True}))


async def test_stop_during_the_check_ends_it_and_keeps_the_answer(
    running: Running, ann: Person, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sandbox, "iterate", _never)
    upstream.enqueue(answer(ANSWER))
    conversation_id, _ = await conversation(running, ann)
    async with ann.streaming(conversation_id, **MODEL) as events:
        async with asyncio.timeout(PATIENCE):
            generation_id = (await anext(events)).data["generation_id"]
            await until(lambda: running.state.hub.generations[generation_id].log.content == ANSWER)
            await until(lambda: running.state.hub.checker._queue.held == 1)
            assert code(await ann.post(f"/chat/cancel/{generation_id}")) == (404, "GENERATION_NOT_FOUND")
            last = [event async for event in events][-1]
    assert last.data["status"] == "ok" and "citations" not in last.data
    message = (await ann.messages(conversation_id))[1]
    assert (message["status"], message["content"], message["citations"]) == ("complete", ANSWER, None)


async def test_check_that_takes_too_long_is_left_out(
    running: Running, ann: Person, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sandbox, "iterate", _never)
    monkeypatch.setattr(generation, "CHECK_SECONDS", 0.01)
    upstream.enqueue(answer(ANSWER))
    conversation_id, _ = await conversation(running, ann)
    assert "citations" not in (await ann.answer(conversation_id, **MODEL))[-1].data
    assert (await ann.messages(conversation_id))[1]["citations"] is None


async def _never(*_: object, **__: object) -> Any:
    await asyncio.Event().wait()
    yield b""


async def test_quotation_is_found_where_two_batches_of_pages_meet(
    running: Running, ann: Person, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fireside.documents.checker.BATCH_CHARACTERS", 60)
    pages = [f"Page {number} has these words and no others. It ends" for number in range(1, 9)]
    upstream.enqueue(
        answer("".join(f"“these words and no others. It ends Page {number} has”\n\n" for number in range(2, 10)))
    )
    conversation_id, _ = await conversation(running, ann, pages)
    await ann.answer(conversation_id, **MODEL)
    message = (await ann.messages(conversation_id))[1]
    assert [(one["status"], one.get("page")) for one in message["citations"]] == [
        *(("found", number) for number in range(1, 8)),
        ("not_found", None),
    ]
