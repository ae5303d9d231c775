import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fireside
import pytest
from fireside import db
from fireside.db import Connection
from fireside.queries import accounts, attachments, conversations, generations, messages, quota
from fireside.queries.generations import Answer, AnswerRequest, Job, Recording

ANN, BOB = 1, 2


def fresh() -> Connection:
    """Return a database in memory with two users, Ann (an administrator) and Bob."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.row_factory = sqlite3.Row
    connection.executescript((Path(fireside.__file__).parent / "schema.sql").read_text("utf-8"))
    connection.execute("PRAGMA foreign_keys = ON")
    accounts.add_first_user(connection, "ann", "hash of ann")
    accounts.add_invite(connection, b"code", "user", ANN, "9999")
    accounts.redeem_invite(connection, b"code", "bob", "hash of bob")
    return connection


@pytest.fixture(scope="module")
def connection() -> Iterator[Connection]:
    connection = fresh()
    yield connection
    connection.close()


@pytest.fixture
def conn(connection: Connection) -> Iterator[Connection]:
    """A transaction that is rolled back after the test."""
    connection.execute("BEGIN")
    yield connection
    connection.execute("ROLLBACK")


def conversation(conn: Connection, user_id: int = ANN, **fields: Any) -> int:
    return conversations.add_conversation(conn, user_id, fields).id


def say(conn: Connection, conversation_id: int, content: str, *args: Any, **more: Any) -> int:
    return messages.add_message(conn, ANN, conversation_id, content, *args, **more)


def asked(conn: Connection, question: str = "q", **fields: Any) -> int:
    """Return a conversation with a question."""
    conversation_id = conversation(conn, **fields)
    say(conn, conversation_id, question)
    return conversation_id


def purge(conn: Connection, user_id: int, conversation_id: int) -> None:
    """Do what `remove_hidden` does, in one transaction."""
    for hidden_id in conversations.hide_conversation(conn, user_id, conversation_id):
        ids = conversations.list_message_ids(conn, hidden_id)
        while ids:
            ids = conversations.remove_messages(conn, ids)
        conversations.remove_emptied(conn, hidden_id)
    while attachments.remove_some_released(conn):
        pass


def answer(
    conn: Connection, conversation_id: int, provider: str | None = "lmstudio", model: str | None = "m", **more: Any
) -> Answer:
    request = AnswerRequest(provider, model, **more)
    return generations.begin_answer(conn, ANN, conversation_id, request, provider or "lmstudio", model or "m")


def begin(conn: Connection, conversation_id: int, **more: Any) -> tuple[Answer, Job]:
    begun = answer(conn, conversation_id, **more)
    assert begun.job is not None
    return begun, begun.job


def questions(job: Job) -> list[str]:
    assert job.prompt is not None
    return [turn.content for turn in job.prompt.turns]


def finish(conn: Connection, begun: Answer, content: str = "answer", status: str = "complete", **more: Any) -> None:
    log = json.dumps([len(content), {"event": "done", "data": {}}])
    recording = Recording(begun.message_id, status, content, "", log)
    generations.finish_generation(conn, begun.generation_id, recording, **more)


def answered(conn: Connection) -> tuple[int, int]:
    """Return a conversation with a question and an answer, and the answer."""
    conversation_id = asked(conn, "question")
    begun, _ = begin(conn, conversation_id)
    finish(conn, begun)
    return conversation_id, begun.message_id


def path(conn: Connection, conversation_id: int, **more: Any) -> list[str]:
    return [message.content for message in messages.list_messages(conn, ANN, conversation_id, **more)]


def used(conn: Connection, user_id: int = ANN) -> int:
    """Return stored_bytes, after checking that counting again changes nothing."""
    sql = "SELECT stored_bytes FROM users WHERE id = ?"
    before = db.scalar(conn, sql, (user_id,))
    quota.recount(conn)
    assert before == db.scalar(conn, sql, (user_id,))
    return int(before)
