"""The SQL of imports and exports, a function each: whole rows, and what identifies them.

As in queries/, the first parameter is the connection of an open transaction. Functions that take only the id of a conversation or a
message expect that the caller has checked its owner (`queries.conversations.owned`).
"""

import hashlib
import json
import re
import sqlite3
import uuid
from typing import Any

from ..db import Connection, insert_row, now, scalar
from ..queries import attachments, conversations
from ..queries.bin import place
from ..queries.types import image_type
from .transcript import Conversation, Unreadable

INCONSISTENT = "has messages that do not fit together"


def _row(conn: Connection, select: str, *values: Any) -> sqlite3.Row | None:
    row: sqlite3.Row | None = conn.execute(select, values).fetchone()
    return row


# ---------------------------------------------------------------------------------------------------- import


def list_made_here(conn: Connection, user_id: int) -> dict[str, list[int]]:
    """Return the ids of the conversations without a source, also of those in the bin, by created_at."""
    found: dict[str, list[int]] = {}
    made_here = "SELECT created_at, id FROM conversations WHERE user_id = ? AND source IS NULL AND hidden = 0"
    for row in conn.execute(made_here, (user_id,)):
        found.setdefault(row["created_at"], []).append(row["id"])
    return found


def get_imported(conn: Connection, user_id: int, source: str) -> sqlite3.Row | None:
    """Return id and deleted_at of the conversation from this source, in the bin or not."""
    select = "SELECT id, deleted_at FROM conversations WHERE user_id = ? AND source = ?"
    return _row(conn, select, user_id, source)


def get_beginning(conn: Connection, conversation_id: int) -> sqlite3.Row | None:
    """Return id, deleted_at and question, the oldest first message, of a conversation that is not hidden."""
    return _row(
        conn,
        "SELECT c.id, c.deleted_at,"
        " (SELECT content FROM messages m WHERE (conversation_id = c.id OR conversation_id IN"
        " (SELECT id FROM conversations WHERE deleted_from = c.id)) AND parent_id IS NULL"
        " AND NOT EXISTS (SELECT 1 FROM former_parents WHERE message_id = m.id) ORDER BY id LIMIT 1) AS question"
        " FROM conversations c WHERE c.id = ? AND c.hidden = 0",
        conversation_id,
    )


def add_conversation(conn: Connection, user_id: int, conversation: Conversation) -> int:
    """Add a hidden conversation without its messages, which `show_imported` shows. Return its id."""
    names = ("named", "pinned", "system_prompt", "provider_id", "model", "token_name")
    times = ("created_at", "updated_at", "deleted_at")
    columns = {name: getattr(conversation, name) for name in (*names, *times)}
    columns |= {"settings": json.dumps(conversation.settings), "hidden": 1}
    return conversations.insert_conversation(conn, user_id, conversation.title, columns)


def add_message(conn: Connection, columns: dict[str, Any]) -> int:
    """Add a message with every column but its id, which is returned. The caller adds it to the search index.

    Raises Unreadable when another has its client_id or source.
    """
    try:
        return insert_row(conn, "messages", columns)
    except sqlite3.IntegrityError as error:
        raise Unreadable(INCONSISTENT) from error


_DOCUMENT_TYPE = re.compile(r"(application|text)/[a-z0-9.+-]{1,100}")


def add_file(conn: Connection, user_id: int, data: bytes, name: str, media_type: str, max_bytes: int = 0) -> None:
    """Store the file of a message that will follow. If none does, it is removed a day later. Raises QuotaExceeded above `max_bytes`."""
    if attachments.find(conn, user_id, hashlib.sha256(data).digest()) is None:
        claimed = media_type if _DOCUMENT_TYPE.fullmatch(media_type) else attachments.OTHER
        kind = image_type(data[:12]) or claimed
        attachment_id = attachments.add(conn, user_id, data, kind, name, max_bytes)
        conn.execute("UPDATE attachments SET uploaded_at = ? WHERE id = ?", (now(), attachment_id))


def add_sent_pages(conn: Connection, message_id: int, attachment_id: int, pages: list[tuple[int, int]]) -> None:
    sql = "INSERT INTO sent_pages (message_id, attachment_id, pages) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
    conn.execute(sql, (message_id, attachment_id, json.dumps(pages)))


def add_generation(conn: Connection, columns: dict[str, Any]) -> None:
    """Add a generation with every column. An id that another generation has is replaced."""
    if scalar(conn, "SELECT 1 FROM generations WHERE id = ?", (columns["id"],)):
        columns = columns | {"id": str(uuid.uuid4())}
    insert_row(conn, "generations", columns)


_WITH_DELETED = "(conversation_id = ?1 OR conversation_id IN (SELECT id FROM conversations WHERE deleted_from = ?1))"


def list_message_keys(conn: Connection, conversation_id: int) -> dict[str, int | None]:
    """Return the id of each message by its key: its source, or its time and role and which of several with these it is.

    For a message in the bin, return that of the message below which its children are now.
    """
    rows = conn.execute(
        "SELECT id, conversation_id, coalesce(nullif(source, ''), created_at || ' ' || role || ' ' ||"
        f" row_number() OVER (PARTITION BY created_at, role ORDER BY id)) AS key FROM messages WHERE {_WITH_DELETED}",
        (conversation_id,),
    ).fetchall()
    return {
        row["key"]: row["id"] if row["conversation_id"] == conversation_id else place(conn, conversation_id, row["id"])
        for row in rows
    }


def count_messages(conn: Connection, conversation_id: int) -> int:
    """Count the messages of a conversation, also those in the bin."""
    return int(scalar(conn, f"SELECT count(*) FROM messages WHERE {_WITH_DELETED}", (conversation_id,)))


def show_imported(
    conn: Connection, conversation_id: int, source: str | None, active_message_id: int | None, folder_id: int | None
) -> None:
    """Show a conversation whose messages are all stored."""
    conn.execute(
        "UPDATE conversations SET hidden = 0, source = ?, active_message_id = ?, folder_id = ? WHERE id = ?",
        (source, active_message_id, folder_id, conversation_id),
    )


def set_imported(conn: Connection, conversation_id: int, updated_at: str, active_message_id: int | None) -> None:
    """Update a conversation that gained messages. The active message stays when None is given or an answer is being generated."""
    conn.execute(
        "UPDATE conversations SET updated_at = max(updated_at, ?1), active_message_id = CASE WHEN ?2 IS NULL OR EXISTS"
        " (SELECT 1 FROM messages WHERE conversation_id = ?3 AND status = 'generating') THEN active_message_id ELSE ?2 END"
        " WHERE id = ?3",
        (updated_at, active_message_id, conversation_id),
    )


# ---------------------------------------------------------------------------------------------------- export


def list_conversations(conn: Connection, user_id: int, ids: list[int] | None = None) -> list[sqlite3.Row]:
    """Return id and deleted_at of each conversation that is not temporary, or of these, oldest first, also of those in the bin."""
    select = "SELECT id, deleted_at FROM conversations WHERE user_id = ? AND hidden = 0 AND temporary = 0"
    if ids is not None:
        return conn.execute(
            f"{select} AND id IN (SELECT value FROM json_each(?)) ORDER BY id", (user_id, json.dumps(ids))
        ).fetchall()
    return conn.execute(f"{select} ORDER BY id", (user_id,)).fetchall()


def get_folder_name(conn: Connection, folder_id: int | None) -> str:
    return scalar(conn, "SELECT name FROM folders WHERE id = ?", (folder_id,)) or ""


_PARTS = (
    "coalesce((SELECT group_concat({0}, '') FROM (SELECT p.{0} FROM generation_parts p JOIN generations g"
    " ON g.id = p.generation_id WHERE g.message_id = m.id ORDER BY p.first_event)), '')"
)
_TEXTS = ", ".join(
    f"CASE status WHEN 'generating' THEN {_PARTS.format(column)} ELSE {column} END AS {column}"
    for column in ("content", "reasoning")
)
_WHOLE_MESSAGE = (
    "SELECT id, parent_id, role, created_at, provider_id, model, token_usage, stats, error, client_id, source, edited, copied, tools, citations,"
    f" CASE status WHEN 'generating' THEN 'interrupted' ELSE status END AS status, {_TEXTS} FROM messages m WHERE id = ?"
)


def get_whole_message(conn: Connection, message_id: int) -> sqlite3.Row | None:
    """Return a message, or None when it was removed. One being generated is `interrupted` and has the text saved so far."""
    return _row(conn, _WHOLE_MESSAGE, message_id)


def list_attachments(conn: Connection, conversation_id: int, table: attachments.Table) -> list[sqlite3.Row]:
    """Return message_id, id, name, media_type and file_name of each attachment of a conversation, or of its queue, in order."""
    messages = "messages" if table == "message_attachments" else "queued_messages"
    return conn.execute(
        f"SELECT l.message_id, a.id, l.name, a.media_type, a.name AS file_name FROM {messages} m"
        f" JOIN {table} l ON l.message_id = m.id JOIN attachments a ON a.id = l.attachment_id"
        " WHERE m.conversation_id = ? ORDER BY l.message_id, l.position",
        (conversation_id,),
    ).fetchall()


def list_queued(conn: Connection, conversation_id: int) -> list[sqlite3.Row]:
    """Return id, content and created_at of the messages in the queue of a conversation."""
    sql = "SELECT id, content, created_at FROM queued_messages WHERE conversation_id = ? ORDER BY id"
    return conn.execute(sql, (conversation_id,)).fetchall()


def list_sent_pages(conn: Connection, message_id: int) -> list[sqlite3.Row]:
    """Return attachment_id and pages, which is JSON, of each document of which pages were chosen for a question."""
    sql = "SELECT attachment_id, pages FROM sent_pages WHERE message_id = ? ORDER BY attachment_id"
    return conn.execute(sql, (message_id,)).fetchall()


def get_generation(conn: Connection, message_id: int) -> sqlite3.Row | None:
    """Return the generation of an answer that has ended: every column."""
    return _row(
        conn,
        "SELECT g.* FROM messages m JOIN generations g ON g.message_id = m.id WHERE m.id = ? AND m.status <> 'generating'",
        message_id,
    )
