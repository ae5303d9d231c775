"""Queries of messages, their versions and their images."""

import json
import sqlite3
from collections.abc import Collection
from typing import Any

from msgspec import UNSET, Raw, Struct, UnsetType

from ..db import Connection, insert, now
from ..errors import NotFound
from . import search
from .conversations import Conversation, _set_title, add_conversation, count_stored, get_conversation, owned, title_from


class Message(Struct):
    """A message of the active path. What only answers have is UNSET on questions, and left out of the JSON."""

    id: int
    role: str
    content: str
    created_at: str
    parent_id: int | None
    status: str
    versions: dict[str, Any]  # {"ids": [...], "index": 0}
    token_usage: Raw | UnsetType = UNSET
    provider_id: str | None | UnsetType = UNSET
    model: str | None | UnsetType = UNSET
    generation_id: str | None | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    stats: Raw | None | UnsetType = UNSET
    error: Raw | None | UnsetType = UNSET
    images: list[dict[str, Any]] | UnsetType = UNSET
    blocks: list[Any] | UnsetType = UNSET  # the content rendered, when a page asks for it


class Image(Struct):
    media_type: str
    data: bytes


def begin_conversation(
    conn: Connection,
    user_id: int,
    fields: dict[str, Any],
    content: str,
    client_id: str | None,
    images: Collection[Image],
    max_bytes: int = 0,
) -> Conversation:
    """Add a conversation with its first message. A repeated `client_id` returns the conversation that it made before, if that is recent.

    Raises QuotaExceeded as `add_message`.
    """
    made = conn.execute(
        "SELECT m.conversation_id FROM (SELECT id FROM conversations WHERE user_id = ? AND deleted_at IS NULL AND hidden = 0"
        " ORDER BY updated_at DESC LIMIT 20) c JOIN messages m ON m.conversation_id = c.id AND m.client_id = ?",
        (user_id, client_id),
    ).fetchone()
    if made:
        return get_conversation(conn, user_id, made[0])
    conversation = add_conversation(conn, user_id, fields)
    add_message(conn, user_id, conversation.id, content, client_id=client_id, images=images, max_bytes=max_bytes)
    return get_conversation(conn, user_id, conversation.id)


# Not a join: for that SQLite may read all messages first, to make a Bloom filter of them. The NULL above a first message joins none.
_PATH = """
WITH RECURSIVE path (id, depth) AS (
    SELECT :leaf, 0 WHERE :leaf IS NOT NULL
    UNION ALL
    SELECT (SELECT m.parent_id FROM messages m WHERE m.id = path.id), path.depth + 1 FROM path WHERE path.id IS NOT NULL
    LIMIT :limit
)
"""
_MESSAGE = """
SELECT m.id, m.role, m.content, m.created_at, m.parent_id, m.status, m.token_usage, m.provider_id, m.model, g.id AS generation_id,
    m.reasoning, m.stats, m.error,
    (SELECT json_group_array(id) FROM (
        SELECT s.id FROM messages s WHERE s.conversation_id = m.conversation_id AND s.parent_id IS m.parent_id ORDER BY s.id
    )) AS siblings,
    (SELECT json_group_array(json_object('id', i.id, 'media_type', i.media_type)) FROM (
        SELECT id, media_type FROM images WHERE message_id = m.id ORDER BY position
    ) i) AS images
FROM path JOIN messages m ON m.id = path.id LEFT JOIN generations g ON g.message_id = m.id
ORDER BY path.depth DESC
"""


def _message(row: sqlite3.Row) -> Message:
    siblings = json.loads(row["siblings"])
    message = Message(
        id=row["id"],
        role=row["role"],
        content=row["content"],
        created_at=row["created_at"],
        parent_id=row["parent_id"],
        status=row["status"],
        versions={"ids": siblings, "index": siblings.index(row["id"])},
    )
    if row["role"] == "assistant":
        message.token_usage = Raw(row["token_usage"].encode()) if row["token_usage"] else UNSET
        message.provider_id, message.model = row["provider_id"], row["model"]
        message.generation_id, message.reasoning = row["generation_id"], row["reasoning"]
        message.stats = Raw(row["stats"].encode()) if row["stats"] else None
        message.error = Raw(row["error"].encode()) if row["error"] else None
    if row["images"] != "[]":
        message.images = json.loads(row["images"])
    return message


def list_messages(
    conn: Connection, user_id: int, conversation_id: int, limit: int = -1, before: int | None = None
) -> list[Message]:
    """The active path, oldest first: its last `limit` messages, or the last before message `before`."""
    leaf = owned(conn, user_id, conversation_id)["active_message_id"]
    if before is not None:
        leaf = _message_of(conn, conversation_id, before)["parent_id"]
    return [_message(row) for row in conn.execute(_PATH + _MESSAGE, {"leaf": leaf, "limit": limit})]


def _message_of(conn: Connection, conversation_id: int, message_id: int) -> sqlite3.Row:
    row: sqlite3.Row | None = conn.execute(
        "SELECT * FROM messages WHERE id = ? AND conversation_id = ?", (message_id, conversation_id)
    ).fetchone()
    if row is None:
        raise NotFound("message")
    return row


def add_message(
    conn: Connection,
    user_id: int,
    conversation_id: int,
    content: str,
    parent_id: int | None | UnsetType = UNSET,
    client_id: str | None = None,
    images: Collection[Image] = (),
    max_bytes: int = 0,
) -> int:
    """A question below `parent_id` (UNSET: the active leaf; None: a first message), which becomes the active leaf. Returns its id.

    Raises QuotaExceeded when the user's messages would take more than `max_bytes` (0: no limit).
    """
    conversation = owned(conn, user_id, conversation_id)
    if client_id is not None:
        known = conn.execute(
            "SELECT id FROM messages WHERE conversation_id = ? AND client_id = ?", (conversation_id, client_id)
        ).fetchone()
        if known:
            return int(known[0])
    if parent_id is UNSET:
        parent_id = conversation["active_message_id"]
    elif parent_id is not None:
        _message_of(conn, conversation_id, parent_id)
    moment = now()
    message_id = insert(
        conn,
        "INSERT INTO messages (conversation_id, parent_id, role, content, status, client_id, created_at)"
        " VALUES (?, ?, 'user', ?, 'complete', ?, ?)",
        (conversation_id, parent_id, content, client_id, moment),
    )
    for position, image in enumerate(images):
        add_image(conn, message_id, position, image)
    count_stored(conn, user_id, len(content.encode()) + sum(len(image.data) for image in images), max_bytes)
    conn.execute(
        "UPDATE conversations SET active_message_id = ?, updated_at = ? WHERE id = ?",
        (message_id, moment, conversation_id),
    )
    search.index_message(conn, user_id, message_id, content)
    if parent_id is None and not conversation["named"]:
        _set_title(conn, conversation, title_from(content))
    return message_id


def set_active(conn: Connection, user_id: int, conversation_id: int, message_id: int) -> int:
    """Make the path through this message the active one, on to the newest message below it. Returns the leaf's id."""
    owned(conn, user_id, conversation_id)
    _message_of(conn, conversation_id, message_id)
    leaf = message_id
    newest_child = "SELECT max(id) FROM messages WHERE conversation_id = ? AND parent_id = ?"
    while child := conn.execute(newest_child, (conversation_id, leaf)).fetchone()[0]:
        leaf = child
    conn.execute("UPDATE conversations SET active_message_id = ? WHERE id = ?", (leaf, conversation_id))
    return leaf


def add_image(conn: Connection, message_id: int, position: int, image: Image) -> None:
    conn.execute(
        "INSERT INTO images (message_id, position, media_type, data) VALUES (?, ?, ?, ?)",
        (message_id, position, image.media_type, image.data),
    )


def get_image(conn: Connection, user_id: int, image_id: int) -> Image:
    row = conn.execute(
        "SELECT m.conversation_id, i.media_type, i.data FROM images i JOIN messages m ON m.id = i.message_id WHERE i.id = ?",
        (image_id,),
    ).fetchone()
    try:
        owned(conn, user_id, row[0] if row else 0)
    except NotFound:
        raise NotFound("image") from None
    return Image(row[1], row[2])
