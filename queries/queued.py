"""Queries of queued messages: questions that wait until the answer before them is complete. See conversations.py for the parameters."""

import sqlite3
from collections.abc import Callable, Collection
from typing import TypeVar

import msgspec
from msgspec import UNSET

from ..db import Connection, insert, now
from ..errors import GenerationActive, Invalid, NotFound
from . import conversations, generations, messages
from .conversations import Conversation, add_stored_bytes, owned
from .generations import Answer, AnswerRequest
from .messages import Image
from .types import QUEUED_MESSAGES, QueuedMessage

Server = TypeVar("Server")

QUEUED_BYTES = 32 * 1024 * 1024  # of a conversation


def get_conversation(conn: Connection, user_id: int, conversation_id: int) -> Conversation:
    """Return a conversation with its queue if there is one."""
    conversation = conversations.get_conversation(conn, user_id, conversation_id)
    rows = conn.execute(
        "SELECT id, content, created_at, json_array_length(images) AS images FROM queued_messages WHERE conversation_id = ? ORDER BY id",
        (conversation_id,),
    )
    conversation.queue = [QueuedMessage(**row) for row in rows] or UNSET
    return conversation


def add_queued(
    conn: Connection,
    user_id: int,
    conversation_id: int,
    content: str,
    client_id: str | None = None,
    images: Collection[Image] = (),
    max_bytes: int = 0,
) -> tuple[int | None, int | None]:
    """Add a message to the queue. Return its id there, or that of the message if one with this `client_id` was sent already.

    Raises QuotaExceeded above `max_bytes` (0: no limit).
    """
    owned(conn, user_id, conversation_id)
    of_client = "WHERE conversation_id = ? AND client_id = ?"  # no row for NULL
    for place, table in enumerate(("messages", "queued_messages")):
        if known := conn.execute(f"SELECT id FROM {table} {of_client}", (conversation_id, client_id)).fetchone():
            return (None, known["id"]) if place == 0 else (known["id"], None)
    totals = "SELECT count(*), coalesce(sum(stored_bytes), 0) FROM queued_messages WHERE conversation_id = ?"
    count, used = conn.execute(totals, (conversation_id,)).fetchone()
    if count >= QUEUED_MESSAGES or used + _size(content, images) > QUEUED_BYTES:
        limits = f"{QUEUED_MESSAGES} messages with {QUEUED_BYTES >> 20} MiB"
        raise Invalid(f"queue: at most {limits} of a conversation can wait. Wait for an answer, or remove one.")
    return insert_queued(conn, user_id, conversation_id, content, client_id, images, max_bytes, now()), None


def insert_queued(
    conn: Connection,
    user_id: int,
    conversation_id: int,
    content: str,
    client_id: str | None,
    images: Collection[Image],
    max_bytes: int,
    created_at: str,
) -> int:
    """Add a message to the queue of a conversation of this user, without its limits. Return its id. Raises QuotaExceeded."""
    size = _size(content, images)
    add_stored_bytes(conn, user_id, size, max_bytes)
    return insert(
        conn,
        "INSERT INTO queued_messages (conversation_id, content, images, stored_bytes, client_id, created_at) VALUES (?, ?, ?, ?, ?, ?)",
        (conversation_id, content, msgspec.json.encode([*images]).decode(), size, client_id, created_at),
    )


def _size(content: str, images: Collection[Image]) -> int:
    return len(content.encode()) + sum(len(image.data) for image in images)


def change_queued(
    conn: Connection, user_id: int, conversation_id: int, queued_id: int, content: str, max_bytes: int = 0
) -> None:
    """Raises NotFound, also when the message was sent, and QuotaExceeded."""
    row = _queued(conn, user_id, conversation_id, queued_id)
    if not content and row["images"] == "[]":
        raise Invalid("content must not be empty.")
    size = len(content.encode()) - len(row["content"].encode())
    add_stored_bytes(conn, user_id, size, max_bytes)
    sql = "UPDATE queued_messages SET content = ?, stored_bytes = stored_bytes + ? WHERE id = ?"
    conn.execute(sql, (content, size, queued_id))


def remove_queued(conn: Connection, user_id: int, conversation_id: int, queued_id: int) -> None:
    """Raises NotFound, also when the message was sent."""
    row = _queued(conn, user_id, conversation_id, queued_id)
    conn.execute("DELETE FROM queued_messages WHERE id = ?", (queued_id,))
    add_stored_bytes(conn, user_id, -row["stored_bytes"])


def send_queued(
    conn: Connection,
    user_id: int,
    conversation_id: int,
    queued_id: int,
    request: AnswerRequest,
    provider_id: str | None,
    model: str | None,
) -> Answer:
    """Add a queued message at the end of the active path and begin its answer. Raises NotFound, GenerationActive and Invalid."""
    row = _queued(conn, user_id, conversation_id, queued_id)
    if generations.running_answer(conn, conversation_id):
        raise GenerationActive
    _send(conn, user_id, row, owned(conn, user_id, conversation_id)["active_message_id"])
    return generations.begin_answer(conn, user_id, conversation_id, request, provider_id, model)


def begin_next(
    conn: Connection,
    find_server: Callable[[str | None], Server | None],
    user_id: int,
    conversation_id: int,
    answer_id: int | None = None,
) -> tuple[Answer, Server] | None:
    """Send the oldest queued message and begin its answer, with the conversation's model, if its turn has come.

    It follows the answer that has just ended, by default the active leaf. It waits if the conversation was deleted, ends with a
    question or an incomplete answer, or has no model.
    """
    try:
        conversation = owned(conn, user_id, conversation_id)
    except NotFound:
        return None
    first = "SELECT * FROM queued_messages WHERE conversation_id = ? ORDER BY id LIMIT 1"
    row = conn.execute(first, (conversation_id,)).fetchone()
    leaf_id = conversation["active_message_id"]
    leaf = conn.execute("SELECT role, status FROM messages WHERE id = ?", (leaf_id,)).fetchone()
    if row is None or (leaf is not None and (*leaf,) != ("assistant", "complete")):
        return None
    provider_id, model = conversation["provider_id"], conversation["model"]
    server = find_server(provider_id)
    if not model or server is None or generations.running_answer(conn, conversation_id):
        return None
    _send(conn, user_id, row, leaf_id if answer_id is None else answer_id)
    return generations.begin_answer(conn, user_id, conversation_id, AnswerRequest(), provider_id, model), server


def _queued(conn: Connection, user_id: int, conversation_id: int, queued_id: int) -> sqlite3.Row:
    owned(conn, user_id, conversation_id)
    row: sqlite3.Row | None = conn.execute(
        "SELECT * FROM queued_messages WHERE id = ? AND conversation_id = ?", (queued_id, conversation_id)
    ).fetchone()
    if row is None:
        raise NotFound("message")
    return row


def _send(conn: Connection, user_id: int, row: sqlite3.Row, parent_id: int | None) -> None:
    remove_queued(conn, user_id, row["conversation_id"], row["id"])
    images = msgspec.json.decode(row["images"], type=list[Image])
    messages.add_message(conn, user_id, row["conversation_id"], row["content"], parent_id, row["client_id"], images)
