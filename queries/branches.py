"""Branches: a copy of the path up to a message, as a conversation of its own."""

import itertools
import re
import uuid

from msgspec import Struct

from ..db import Connection, Database, now, one_part, scalar
from ..errors import Conflict, GenerationActive, QuotaExceeded
from . import attachments, search
from .conversations import BRANCH_SOURCE, Conversation, get_conversation, insert_conversation, owned, remove_hidden
from .messages import get_message_row, list_path
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
    columns = {name: original[name] for name in COPIED_COLUMNS} | {"named": 1, "hidden": 1, "source": source}
    copy_id = insert_conversation(conn, user_id, _title(conn, user_id, original["title"]), columns)
    add_stored_bytes(conn, user_id, len(original["system_prompt"].encode()), max_bytes)
    return _Copy(user_id, copy_id, list_path(conn, message_id))


def _title(conn: Connection, user_id: int, original: str) -> str:
    """Return "Title (branch)", or the first of "Title (branch 2)", "Title (branch 3)" and so on that is free."""
    base = re.sub(r" \(branch(?: \d+)?\)\Z", "", original)
    sql = "SELECT 1 FROM conversations WHERE user_id = ? AND deleted_at IS NULL AND title_key = ?"
    for number in itertools.count(1):
        ending = f" (branch {number})" if number > 1 else " (branch)"
        title = base[: TITLE_CHARACTERS - len(ending)] + ending
        if not scalar(conn, sql, (user_id, title_key(title))):
            break
    return title


_INSERT = """
INSERT INTO messages (conversation_id, parent_id, created_at, role, content, reasoning, status, provider_id, model, token_usage,
    stats, error, edited, copied, tools, citations)
SELECT ?, ?, created_at, role, content, reasoning, CASE status WHEN 'generating' THEN 'interrupted' ELSE status END, provider_id,
    model, token_usage, stats, error, edited, 1, tools, citations
FROM messages WHERE id = ? RETURNING id, content, reasoning, tools
"""  # an answer is generated if it is continued while the path is copied: the copy has its first part


def _copy_messages(conn: Connection, copy: _Copy, max_bytes: int) -> _Copy:
    """Copy messages for PART_SECONDS. Return the copy as it is then. A message that has been removed since is left out."""
    done, size, leaf = 0, 0, copy.leaf
    for message_id in one_part(copy.ids):
        rows = conn.execute(_INSERT, (copy.conversation_id, leaf, message_id)).fetchall()
        for row in rows:
            leaf = row["id"]
            size += sum(len((row[name] or "").encode()) for name in ("content", "reasoning", "tools"))
            attachments.copy_links(conn, message_id, leaf)
            attachments.copy_sent_pages(conn, message_id, leaf)
            search.index_message(conn, copy.user_id, leaf, row["content"])
        done += 1
    add_stored_bytes(conn, copy.user_id, size, max_bytes)
    return _Copy(copy.user_id, copy.conversation_id, copy.ids[done:], leaf)


def _show(conn: Connection, copy: _Copy) -> Conversation:
    sql = "UPDATE conversations SET hidden = 0, active_message_id = ?, updated_at = ? WHERE id = ?"
    conn.execute(sql, (copy.leaf, now(), copy.conversation_id))
    return get_conversation(conn, copy.user_id, copy.conversation_id)
