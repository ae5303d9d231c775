"""Branches: copies of a path as conversations of their own."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fireside import db
from fireside.db import Connection, Database, ago
from fireside.errors import Conflict, GenerationActive, NotFound, QuotaExceeded
from fireside.queries import accounts, attachments, branches, conversations, generations, messages, search, usage
from fireside.queries.generations import AnswerRequest
from fireside.queries.types import Image

from .conftest import ANN, BOB, asked, begin, conversation, finish, path, say


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = await db.open_database(tmp_path / "fireside.db")
    await database.write(accounts.add_first_user, "ann", "")
    yield database
    await database.close()


def talk(conn: Connection) -> tuple[int, int]:
    """Return a conversation with an answered question and another question, and the answer."""
    conversation_id = conversation(conn, title="Boats", system_prompt="Be brief.", settings={"seed": 1})
    say(conn, conversation_id, "What is this?", images=[Image("image/png", b"1234")])
    begun, _ = begin(conn, conversation_id, model="m1")
    usage = {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30}
    finish(conn, begun, "A boat", "canceled", token_usage=usage, stats={"total_ms": 5}, model="m1-real")
    say(conn, conversation_id, "And this?", client_id="c")
    return conversation_id, begun.message_id


def row(conn: Connection, table: str, row_id: int) -> dict[str, Any]:
    return dict(conn.execute(f"SELECT * FROM {table} WHERE id = ?", (row_id,)).fetchone())


async def test_branch_has_the_path_up_to_the_message_and_leaves_the_original(database: Database) -> None:
    conversation_id, answer_id = await database.write(talk)
    original = await database.read(row, "conversations", conversation_id)
    branch = await branches.branch(database, ANN, conversation_id, answer_id, "key")
    assert (branch.title, branch.system_prompt, bytes(branch.settings)) == (
        "Boats (branch)",
        "Be brief.",
        b'{"seed": 1}',
    )
    first, second = await database.read(messages.list_messages, ANN, branch.id)
    copied, answer = [await database.read(row, "messages", one) for one in (second.id, answer_id)]
    new = {"id": second.id, "conversation_id": branch.id, "parent_id": first.id, "copied": 1}
    assert copied == answer | new
    [image] = first.images
    assert (await database.read(attachments.get_image, ANN, image["id"])).data == b"1234"
    assert await database.read(row, "conversations", conversation_id) == original
    assert await database.read(lambda conn: path(conn, conversation_id)) == ["What is this?", "A boat", "And this?"]
    found = await database.read(search.find, ANN, "boat", 10)
    assert {hit.conversation_id for hit in found if hit.message_id} == {conversation_id, branch.id}
    [entry] = await database.read(usage.list_usage, ANN)
    assert (entry.answers, entry.completion_tokens) == (1, 20)
    again = await branches.branch(database, ANN, conversation_id, answer_id, "key")
    other = await branches.branch(database, ANN, branch.id, second.id)
    assert (again.id, other.title) == (branch.id, "Boats (branch 2)")


async def test_same_branch_twice_at_once_is_made_once(database: Database) -> None:
    conversation_id, answer_id = await database.write(talk)
    branch = (database, ANN, conversation_id, answer_id, "key")
    made = await asyncio.gather(branches.branch(*branch), branches.branch(*branch), return_exceptions=True)
    ids = {one.id for one in made if isinstance(one, conversations.Conversation)}
    assert len(ids) == 1 and all(isinstance(one, Conflict | conversations.Conversation) for one in made)


async def test_another_user_s_branch_with_the_same_client_id_is_another_one(database: Database) -> None:
    conversation_id, answer_id = await database.write(talk)
    mine = await branches.branch(database, ANN, conversation_id, answer_id, "key")
    bob = "INSERT INTO users (username, password_hash, role, created_at) VALUES ('bob', '', 'user', '')"
    await database.write(lambda conn: conn.execute(bob).rowcount)
    theirs = await database.write(lambda conn: conversations.add_conversation(conn, BOB, {}).id)
    question = await database.write(lambda conn: messages.add_message(conn, BOB, theirs, "q"))
    branch = await branches.branch(database, BOB, theirs, question, "key")
    assert branch.id != mine.id and branch.title == "q (branch)"


async def test_branch_at_an_unfinished_answer_or_a_missing_message_is_refused(database: Database) -> None:
    conversation_id = await database.write(lambda conn: asked(conn))
    begun, job = await database.write(lambda conn: begin(conn, conversation_id))
    with pytest.raises(GenerationActive):
        await branches.branch(database, ANN, conversation_id, begun.message_id)
    with pytest.raises(NotFound):
        await branches.branch(database, ANN, conversation_id, 99)
    branch = await branches.branch(database, ANN, conversation_id, job.leaf_id)
    assert await database.read(lambda conn: path(conn, branch.id)) == ["q"]


async def test_answer_that_is_continued_while_it_is_copied_is_interrupted_in_the_branch(database: Database) -> None:
    conversation_id = await database.write(lambda conn: asked(conn))
    begun, _ = await database.write(lambda conn: begin(conn, conversation_id))
    await database.write(lambda conn: finish(conn, begun, "One"))
    copying = await database.write(branches._begin, ANN, conversation_id, begun.message_id, "branch:key", 0)
    assert isinstance(copying, branches._Copy)
    await database.write(generations.begin_continuation, ANN, conversation_id, AnswerRequest(), "lmstudio", "m")
    branch = await database.write(lambda conn: branches._show(conn, branches._copy_messages(conn, copying, 0)))
    _, answer = await database.read(messages.list_messages, ANN, branch.id)
    assert (answer.status, answer.content) == ("interrupted", "One")
    again = AnswerRequest(retry=True)
    assert (await database.write(generations.begin_answer, ANN, branch.id, again, "lmstudio", "m")).job


async def test_branch_above_the_quota_leaves_nothing(database: Database) -> None:
    conversation_id, answer_id = await database.write(talk)
    [stored] = await database.read(lambda conn: conn.execute("SELECT stored_bytes FROM users").fetchone())
    with pytest.raises(QuotaExceeded):
        await branches.branch(database, ANN, conversation_id, answer_id, max_bytes=stored + 15)
    left = "SELECT count(*), (SELECT stored_bytes FROM users) FROM conversations"
    assert await database.read(lambda conn: tuple(conn.execute(left).fetchone())) == (1, stored)


async def test_leftover_of_a_crash_is_removed_but_not_a_branch_in_the_making(database: Database) -> None:
    conversation_id, answer_id = await database.write(talk)
    copy = await database.write(branches._begin, ANN, conversation_id, answer_id, "branch:key", 0)
    assert isinstance(copy, branches._Copy)
    assert await database.read(conversations.list_hidden) == []
    late = "UPDATE conversations SET created_at = ? WHERE hidden = 1"
    await database.write(lambda conn: conn.execute(late, (ago(hours=2),)).rowcount)
    assert await database.read(conversations.list_hidden) == [copy.conversation_id]


async def test_long_branch_does_not_block_other_writes(database: Database) -> None:
    def fill(conn: Connection) -> tuple[int, int]:
        conversation_id = conversation(conn, title="Long")
        return conversation_id, [
            say(conn, conversation_id, f"Message {number} " + "word " * 100) for number in range(2000)
        ][-1]

    conversation_id, last = await database.write(fill)
    began = time.monotonic()
    branching = asyncio.create_task(branches.branch(database, ANN, conversation_id, last))
    longest = 0.0
    while not branching.done():
        before = time.monotonic()
        await database.write_unsynced(conversations.get_defaults, ANN)
        longest = max(longest, time.monotonic() - before)
    branch = await branching
    print(f"{time.monotonic() - began:.2f} s, others waited at most {longest:.3f} s")
    shown = await database.read(messages.list_messages, ANN, branch.id, 3)
    assert [message.content.split()[1] for message in shown] == ["1997", "1998", "1999"]
    assert longest < 2
