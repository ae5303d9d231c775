"""The SQL of imports and exports, one function each: whole rows, and what identifies them.

As in queries/, the first parameter is the connection of a transaction that is already open. Functions that take only a
conversation's id expect that the caller has checked its owner (`queries.owned`).
"""

import sqlite3
import uuid
from typing import Any

from ..db import Connection, insert
from ..queries import search
from ..queries.conversations import title_key
from .transcript import Unreadable

# ---------------------------------------------------------------------------------------------------- in


def list_made_here(conn: Connection, user_id: int) -> dict[str, list[int]]:
    """Return the ids of the conversations that were not imported from another program, in the bin or not, by their created_at."""
    found: dict[str, list[int]] = {}
    mine = "SELECT created_at, id FROM conversations WHERE user_id = ? AND source IS NULL AND hidden = 0"
    for created_at, conversation_id in conn.execute(mine, (user_id,)):
        found.setdefault(created_at, []).append(conversation_id)
    return found


def get_imported(conn: Connection, user_id: int, source: str) -> sqlite3.Row | None:
    """Return id and deleted_at of the conversation from this source, in the bin or not."""
    row: sqlite3.Row | None = conn.execute(
        "SELECT id, deleted_at FROM conversations WHERE user_id = ? AND source = ?", (user_id, source)
    ).fetchone()
    return row


def get_beginning(conn: Connection, conversation_id: int) -> sqlite3.Row | None:
    """Return id, deleted_at and question, the content of the oldest first message, unless the conversation is hidden or gone."""
    row: sqlite3.Row | None = conn.execute(
        "SELECT c.id, c.deleted_at,"
        " (SELECT content FROM messages WHERE conversation_id = c.id AND parent_id IS NULL ORDER BY id LIMIT 1) AS question"
        " FROM conversations c WHERE c.id = ? AND c.hidden = 0",
        (conversation_id,),
    ).fetchone()
    return row


def add_conversation(conn: Connection, user_id: int, fields: dict[str, Any]) -> int:
    """Add a hidden conversation; `show_imported` ends it. `fields`: every other column but id, title_key, source and active_message_id."""
    conversation_id = insert(
        conn,
        "INSERT INTO conversations (user_id, title, title_key, named, system_prompt, provider_id, model, settings,"
        " pinned, created_at, updated_at, deleted_at, hidden) VALUES (:user_id, :title, :title_key, :named,"
        " :system_prompt, :provider_id, :model, :settings, :pinned, :created_at, :updated_at, :deleted_at, 1)",
        fields | {"user_id": user_id, "title_key": title_key(fields["title"])},
    )
    search.index_title(conn, user_id, conversation_id, fields["title"])
    return conversation_id


def add_message(conn: Connection, user_id: int, conversation_id: int, fields: dict[str, Any]) -> int:
    """`fields`: every column but id and conversation_id. Raises Unreadable when client_id or source is that of another message."""
    row = conn.execute(
        "INSERT INTO messages (conversation_id, parent_id, role, content, reasoning, status, provider_id, model,"
        " token_usage, stats, error, client_id, source, created_at) VALUES (:conversation_id, :parent_id, :role, :content,"
        " :reasoning, :status, :provider_id, :model, :token_usage, :stats, :error, :client_id, :source, :created_at)"
        " ON CONFLICT DO NOTHING RETURNING id",
        fields | {"conversation_id": conversation_id},
    ).fetchall()
    if not row:
        raise Unreadable("has messages that do not fit together")
    search.index_message(conn, user_id, row[0][0], fields["content"])
    return int(row[0][0])


def add_generation(conn: Connection, generation_id: str, message_id: int, fields: dict[str, Any]) -> None:
    """`fields`: provider_id, model, params, log. Where the id is somebody's already, it gets another one."""
    taken = conn.execute("SELECT 1 FROM generations WHERE id = ?", (generation_id,)).fetchone()
    conn.execute(
        "INSERT INTO generations (id, message_id, provider_id, model, params, log)"
        " VALUES (:id, :message_id, :provider_id, :model, :params, :log)",
        fields | {"id": str(uuid.uuid4()) if taken else generation_id, "message_id": message_id},
    )


def list_message_origins(conn: Connection, conversation_id: int) -> list[tuple[int, tuple[str | None, str, str]]]:
    """Return the id of each message, oldest first, and what tells it from others: (source, created_at, role)."""
    rows = conn.execute(
        "SELECT id, source, created_at, role FROM messages WHERE conversation_id = ? ORDER BY id", (conversation_id,)
    )
    return [(row["id"], (row["source"], row["created_at"], row["role"])) for row in rows]


def count_messages(conn: Connection, conversation_id: int) -> int:
    count: int = conn.execute("SELECT count(*) FROM messages WHERE conversation_id = ?", (conversation_id,)).fetchone()[
        0
    ]
    return count


def show_imported(conn: Connection, conversation_id: int, source: str | None, active_message_id: int | None) -> None:
    """Show a conversation whose messages are all there."""
    conn.execute(
        "UPDATE conversations SET hidden = 0, source = ?, active_message_id = ? WHERE id = ?",
        (source, active_message_id, conversation_id),
    )


def set_imported(conn: Connection, conversation_id: int, updated_at: str, active_message_id: int | None) -> None:
    """After an import into it. The active leaf stays where None is given, and while an answer is being written."""
    conn.execute(
        "UPDATE conversations SET updated_at = max(updated_at, ?1), active_message_id = CASE WHEN ?2 IS NULL OR EXISTS"
        " (SELECT 1 FROM messages WHERE conversation_id = ?3 AND status = 'generating') THEN active_message_id ELSE ?2 END"
        " WHERE id = ?3",
        (updated_at, active_message_id, conversation_id),
    )


# ---------------------------------------------------------------------------------------------------- out


def list_conversation_ids(conn: Connection, user_id: int) -> list[tuple[int, bool]]:
    """All of them, oldest first, and whether they are in the bin."""
    mine = "SELECT id, deleted_at IS NOT NULL FROM conversations WHERE user_id = ? AND hidden = 0 ORDER BY id"
    rows = conn.execute(mine, (user_id,))
    return [(row[0], bool(row[1])) for row in rows]


def list_tree(conn: Connection, conversation_id: int) -> list[tuple[int, int | None]]:
    """Return (id, parent_id) of every message, oldest first."""
    rows = conn.execute("SELECT id, parent_id FROM messages WHERE conversation_id = ? ORDER BY id", (conversation_id,))
    return [tuple(row) for row in rows]


_PARTS = (
    "coalesce((SELECT group_concat({0}, '') FROM (SELECT p.{0} FROM generation_parts p JOIN generations g"
    " ON g.id = p.generation_id WHERE g.message_id = m.id ORDER BY p.first_event)), '')"
)
_TEXTS = ", ".join(
    f"CASE status WHEN 'generating' THEN {_PARTS.format(column)} ELSE {column} END AS {column}"
    for column in ("content", "reasoning")
)
_WHOLE_MESSAGE = (
    "SELECT id, parent_id, role, created_at, provider_id, model, token_usage, stats, error, client_id, source,"
    f" CASE status WHEN 'generating' THEN 'interrupted' ELSE status END AS status, {_TEXTS} FROM messages m WHERE id = ?"
)


def get_whole_message(conn: Connection, message_id: int) -> sqlite3.Row | None:
    """Return a message, or None when it is gone. One that is being written is `interrupted`, with the text that was saved so far."""
    row: sqlite3.Row | None = conn.execute(_WHOLE_MESSAGE, (message_id,)).fetchone()
    return row


def list_images(conn: Connection, conversation_id: int) -> list[sqlite3.Row]:
    """Return the images of a conversation in order, without their bytes: id, message_id, position, media_type."""
    return conn.execute(
        "SELECT i.id, i.message_id, i.position, i.media_type FROM messages m JOIN images i ON i.message_id = m.id"
        " WHERE m.conversation_id = ? ORDER BY i.message_id, i.position",
        (conversation_id,),
    ).fetchall()


def get_image_data(conn: Connection, image_id: int) -> bytes:
    """Return the bytes of an image, none when it is gone."""
    row = conn.execute("SELECT data FROM images WHERE id = ?", (image_id,)).fetchone()
    return row[0] if row else b""


def get_generation(conn: Connection, message_id: int) -> sqlite3.Row | None:
    """Return how an answer that has ended was made: every column."""
    row: sqlite3.Row | None = conn.execute(
        "SELECT g.* FROM messages m JOIN generations g ON g.message_id = m.id WHERE m.id = ? AND m.status <> 'generating'",
        (message_id,),
    ).fetchone()
    return row
