"""Branches: a copy of the path up to a message, as a conversation of its own."""

import re
import time
import uuid

from msgspec import Struct

from ..db import Connection, Database, insert, now
from ..errors import Conflict, GenerationActive, QuotaExceeded
from . import attachments, search
from .conversations import (
    BRANCH_SOURCE,
    PART_SECONDS,
    Conversation,
    get_conversation,
    owned,
    remove_hidden,
)
from .messages import PATH, get_message_row
from .quota import add_stored_bytes
from .types import TITLE_CHARACTERS, title_key

COPIED_COLUMNS = ("system_prompt", "provider_id", "model", "settings", "folder_id", "temporary")  # of the conversation


class _Copy(Struct):
    user_id: int
    conversation_id: int  # of the copy
    ids: list[int]  # of the messages that are not copied yet, oldest first
    leaf: int | None = None  # of the copy


async def branch(
    database: Database,
    user_id: int,
    conversation_id: int,
    message_id: int,
    client_id: str | None = None,
    max_bytes: int = 0,
) -> Conversation:
    """Copy the path up to a message to a new conversation, in transactions of about PART_SECONDS. The copy is hidden until it is whole.

    A known `client_id` returns the conversation that it made. Raises GenerationActive when the message is being generated,
    Conflict while the same copy is being made, and QuotaExceeded.
    """
    source = BRANCH_SOURCE + (client_id or str(uuid.uuid4()))
    begun = await database.write(_begin, user_id, conversation_id, message_id, source, max_bytes)
    if isinstance(begun, Conversation):
        return begun
    try:
        while begun.ids:
            begun = await database.write_part(_copy_messages, begun, max_bytes)
    except QuotaExceeded:
        await remove_hidden(database, [begun.conversation_id])
        raise
    return await database.write(_show, begun)


def _begin(
    conn: Connection, user_id: int, conversation_id: int, message_id: int, source: str, max_bytes: int
) -> _Copy | Conversation:
    known = conn.execute(
        "SELECT id, hidden FROM conversations WHERE user_id = ? AND source = ?", (user_id, source)
    ).fetchone()
    if known and known["hidden"]:
        raise Conflict("This branch is being made. Try again in a moment.")
    if known:
        return get_conversation(conn, user_id, known["id"])
    original = owned(conn, user_id, conversation_id)
    if get_message_row(conn, conversation_id, message_id)["status"] == "generating":
        raise GenerationActive
    title = _title(conn, user_id, original["title"])
    columns = ", ".join(COPIED_COLUMNS)
    copy_id = insert(
        conn,
        f"INSERT INTO conversations (user_id, title, title_key, named, created_at, updated_at, hidden, source, {columns})"
        f" SELECT user_id, ?1, ?2, 1, ?3, ?3, 1, ?4, {columns} FROM conversations WHERE id = ?5",
        (title, title_key(title), now(), source, conversation_id),
    )
    search.index_title(conn, user_id, copy_id, title)
    add_stored_bytes(conn, user_id, len(original["system_prompt"].encode()), max_bytes)
    path = PATH + "SELECT id FROM path WHERE id IS NOT NULL ORDER BY depth DESC"
    return _Copy(
        user_id, copy_id, [row["id"] for row in conn.execute(path, {"leaf": message_id, "limit": -1}).fetchall()]
    )


def _title(conn: Connection, user_id: int, original: str) -> str:
    """Return "Title (branch)", or the first of "Title (branch 2)", "Title (branch 3)" and so on that is free."""
    base = re.sub(r" \(branch(?: \d+)?\)\Z", "", original)
    sql = "SELECT 1 FROM conversations WHERE user_id = ? AND deleted_at IS NULL AND title_key = ?"
    number = 1
    while True:
        ending = f" (branch {number})" if number > 1 else " (branch)"
        title = base[: TITLE_CHARACTERS - len(ending)] + ending
        if not conn.execute(sql, (user_id, title_key(title))).fetchone():
            return title
        number += 1


_INSERT = """
INSERT INTO messages (conversation_id, parent_id, created_at, role, content, reasoning, status, provider_id, model, token_usage,
    stats, error, edited, copied, tools, citations)
SELECT ?, ?, created_at, role, content, reasoning, CASE status WHEN 'generating' THEN 'interrupted' ELSE status END, provider_id,
    model, token_usage, stats, error, edited, 1, tools, citations
FROM messages WHERE id = ? RETURNING id, content, reasoning, tools
"""  # an answer is generated if it is continued while the path is copied: the copy has its first part


def _copy_messages(conn: Connection, copy: _Copy, max_bytes: int) -> _Copy:
    """Copy messages for PART_SECONDS. Return the copy as it is then. A message that has been removed since is left out."""
    end, done, size, leaf = time.monotonic() + PART_SECONDS, 0, 0, copy.leaf
    for message_id in copy.ids:
        rows = conn.execute(_INSERT, (copy.conversation_id, leaf, message_id)).fetchall()
        for row in rows:
            leaf = row["id"]
            size += sum(len((row[name] or "").encode()) for name in ("content", "reasoning", "tools"))
            attachments.copy_links(conn, message_id, leaf)
            attachments.copy_sent_pages(conn, message_id, leaf)
            search.index_message(conn, copy.user_id, leaf, row["content"])
        done += 1
        if time.monotonic() > end:
            break
    add_stored_bytes(conn, copy.user_id, size, max_bytes)
    return _Copy(copy.user_id, copy.conversation_id, copy.ids[done:], leaf)


def _show(conn: Connection, copy: _Copy) -> Conversation:
    sql = "UPDATE conversations SET hidden = 0, active_message_id = ?, updated_at = ? WHERE id = ?"
    conn.execute(sql, (copy.leaf, now(), copy.conversation_id))
    return get_conversation(conn, copy.user_id, copy.conversation_id)
