"""Queries of queued messages: questions that wait until the answer before them is complete."""

import sqlite3
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from msgspec import UNSET

from ..db import Connection, fetch, insert, now, scalar
from ..errors import GenerationActive, Invalid, NotFound
from . import attachments, conversations, generations, messages
from .conversations import Conversation, owned
from .generations import Answer, AnswerRequest
from .quota import add_stored_bytes
from .types import QUEUED_MESSAGES, Image, QueuedMessage

Server = TypeVar("Server")


def get_conversation(conn: Connection, user_id: int, conversation_id: int) -> Conversation:
    """Return a conversation with its queue if there is one."""
    conversation = conversations.get_conversation(conn, user_id, conversation_id)
    rows = conn.execute(
        "SELECT id, content, created_at FROM queued_messages WHERE conversation_id = ? ORDER BY id", (conversation_id,)
    ).fetchall()
    conversation.queue = [
        QueuedMessage(**row, images=len(images), image_ids=images, documents=[one for one in files if not one.is_image])
        for row in rows
        for files in [attachments.list_linked(conn, row["id"], "queued_attachments")]
        for images in [[one.id for one in files if one.is_image]]
    ] or UNSET
    return conversation


def add_queued(
    conn: Connection,
    user_id: int,
    conversation_id: int,
    content: str,
    client_id: str | None = None,
    images: Collection[Image] = (),
    max_bytes: int = 0,
    attachment_ids: Sequence[int] = (),
) -> tuple[int | None, int | None]:
    """Add a message to the queue. Return its id there, or that of the message if one with this `client_id` was sent already.

    Raises QuotaExceeded above `max_bytes` (0: no limit), and as `attachments.attach`.
    """
    owned(conn, user_id, conversation_id)
    if sent_id := messages.find_message(conn, conversation_id, client_id):
        return None, sent_id
    if queued_id := messages.find_message(conn, conversation_id, client_id, "queued_messages"):
        return queued_id, None
    sql = "SELECT count(*) FROM queued_messages WHERE conversation_id = ?"
    if scalar(conn, sql, (conversation_id,)) >= QUEUED_MESSAGES:
        limit = f"{QUEUED_MESSAGES} messages of a conversation can wait"
        raise Invalid(f"queue: at most {limit}. Wait for an answer, or remove one.")
    queued_id = insert_queued(conn, user_id, conversation_id, content, client_id, max_bytes, now())
    attachments.attach(conn, user_id, queued_id, images, attachment_ids, max_bytes, "queued_attachments")
    return queued_id, None


def insert_queued(
    conn: Connection,
    user_id: int,
    conversation_id: int,
    content: str,
    client_id: str | None,
    max_bytes: int,
    created_at: str,
) -> int:
    """Add a message to the queue of a conversation of this user, without its limits. Return its id. Raises QuotaExceeded."""
    add_stored_bytes(conn, user_id, len(content.encode()), max_bytes)
    return insert(
        conn,
        "INSERT INTO queued_messages (conversation_id, content, client_id, created_at) VALUES (?, ?, ?, ?)",
        (conversation_id, content, client_id, created_at),
    )


def change_queued(
    conn: Connection,
    user_id: int,
    conversation_id: int,
    queued_id: int,
    content: str,
    max_bytes: int = 0,
    attachment_ids: Sequence[int] | None = None,
) -> None:
    """Without `attachment_ids`, the message keeps its attachments.

    Raises NotFound, also when the message was sent, QuotaExceeded, and as `attachments.attach`.
    """
    row = _queued(conn, user_id, conversation_id, queued_id)
    before = attachments.linked_ids(conn, queued_id, "queued_attachments")
    if not content and not (before if attachment_ids is None else attachment_ids):
        raise Invalid("content must not be empty.")
    if attachment_ids is not None:
        attachments.attach(conn, user_id, queued_id, (), attachment_ids, max_bytes, "queued_attachments")
        add_stored_bytes(conn, user_id, -attachments.release(conn, before))
    size = len(content.encode()) - len(row["content"].encode())
    add_stored_bytes(conn, user_id, size, max_bytes)
    conn.execute("UPDATE queued_messages SET content = ? WHERE id = ?", (content, queued_id))


def remove_queued(conn: Connection, user_id: int, conversation_id: int, queued_id: int) -> None:
    """Raises NotFound, also when the message was sent."""
    _remove(conn, user_id, _queued(conn, user_id, conversation_id, queued_id))


def _remove(conn: Connection, user_id: int, row: sqlite3.Row) -> None:
    files = attachments.linked_ids(conn, row["id"], "queued_attachments")
    conn.execute("DELETE FROM queued_messages WHERE id = ?", (row["id"],))
    add_stored_bytes(conn, user_id, -len(row["content"].encode()) - attachments.release(conn, files))


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
    sql = "SELECT * FROM queued_messages WHERE id = ? AND conversation_id = ?"
    return fetch(conn, sql, (queued_id, conversation_id), NotFound("message"))


def _send(conn: Connection, user_id: int, row: sqlite3.Row, parent_id: int | None) -> None:
    message_id = messages.add_message(
        conn, user_id, row["conversation_id"], row["content"], parent_id, row["client_id"]
    )
    attachments.copy_links(conn, row["id"], message_id, "queued_attachments")
    _remove(conn, user_id, row)
