"""What the program asks of its database about conversations, messages and answers, a function each.

The first parameter is the connection of a transaction that is already open: run these through Database.write or .read, alone or
several in one function. Whatever belongs to somebody is reached through `owned`, with the user's id: another user's object is
NotFound, just as one that does not exist. Ids are whole numbers below 2**63; texts hold no NUL and no lone surrogates.
"""

import json
import re
import sqlite3
import time
import unicodedata
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import UNSET, Raw, Struct, UnsetType

from ..db import Connection, Database, ago, insert, now
from ..errors import NotFound, QuotaExceeded
from . import search

UNTITLED = "New conversation"
BIN_DAYS = 30
SENT_IMAGES = 32  # of a prompt: more fill the context of a local model, at several hundred tokens each
SENT_IMAGE_BYTES = (
    32 * 1024 * 1024
)  # more than one request can add, so that the images of a new message are always sent
PART_SECONDS = 0.05  # of work in one transaction of a long import or removal, while other writes wait


class Conversation(Struct):
    id: int
    title: str
    created_at: str
    updated_at: str
    system_prompt: str
    pinned: bool
    provider_id: str | None
    model: str | None
    settings: Raw  # JSON object
    generation_id: str | None  # of the answer that is being written
    deleted_at: str | UnsetType = UNSET


# ---------------------------------------------------------------------------------------------------- conversations

_CONVERSATION = (
    "c.id, c.title, c.created_at, c.updated_at, c.system_prompt, c.pinned, c.provider_id, c.model, c.settings,"
    " (SELECT g.id FROM messages m JOIN generations g ON g.message_id = m.id"
    " WHERE m.conversation_id = c.id AND m.status = 'generating'), c.deleted_at"
)


def _conversation(row: Sequence[Any]) -> Conversation:
    return Conversation(
        id=row[0],
        title=row[1],
        created_at=row[2],
        updated_at=row[3],
        system_prompt=row[4],
        pinned=bool(row[5]),
        provider_id=row[6],
        model=row[7],
        settings=Raw(row[8].encode()),
        generation_id=row[9],
        deleted_at=row[10] or UNSET,
    )


def owned(conn: Connection, user_id: int, conversation_id: int, deleted: bool = False) -> sqlite3.Row:
    """The user's conversation, in the bin or not, as asked, unless it is hidden. The one place that decides whose a conversation is."""
    row: sqlite3.Row | None = conn.execute(
        "SELECT * FROM conversations WHERE id = ? AND user_id = ? AND (deleted_at IS NOT NULL) = ? AND hidden = 0",
        (conversation_id, user_id, deleted),
    ).fetchone()
    if row is None:
        raise NotFound("conversation")
    return row


def title_key(title: str) -> str:
    """A title as it is compared: `q` of the list goes through this too."""
    return unicodedata.normalize("NFC", title).casefold()


def title_from(text: str) -> str:
    """The first words of a message, at most 60 characters of them; of code that it brings only if it says nothing else."""
    words, fence, code = text[:400].partition("```")
    if fence:  # that of a file is headed by the file's name
        words = re.sub(r"\n\n[^\n]+\.\w+:\s*\Z", "", words).strip().removesuffix(":")
    line = " ".join((words.strip() or code).split())
    if len(line) <= 60:
        return line or UNTITLED
    cut = line[:60].rsplit(" ", 1)[0] if " " in line[20:60] else line[:59]
    return cut.rstrip(" ,.;:") + "…"


def add_conversation(conn: Connection, user_id: int, fields: dict[str, Any]) -> Conversation:
    """`fields`: title, system_prompt, pinned, provider_id, model, settings (a dict), each of them optional. What is not among
    them is as the user wants it of new conversations."""
    fields = get_defaults(conn, user_id) | fields
    title = fields.get("title")
    moment = now()
    conversation_id = insert(
        conn,
        "INSERT INTO conversations (user_id, title, title_key, created_at, updated_at) VALUES (?, ?, ?, ?4, ?4)",
        (user_id, title or UNTITLED, title_key(title or UNTITLED), moment),
    )
    search.index_title(conn, user_id, conversation_id, title or UNTITLED, title_key(title or UNTITLED))
    set_conversation(conn, user_id, conversation_id, fields)
    return get_conversation(conn, user_id, conversation_id)


def get_defaults(conn: Connection, user_id: int) -> dict[str, Any]:
    """What a user's new conversations begin with: system_prompt and settings (a dict), each of them only when it was ever set."""
    defaults: dict[str, Any] = json.loads(
        conn.execute("SELECT defaults FROM users WHERE id = ?", (user_id,)).fetchone()[0]
    )
    return defaults


def set_defaults(conn: Connection, user_id: int, fields: dict[str, Any]) -> dict[str, Any]:
    """`fields`: system_prompt, settings, each of them optional. Those that are there already stay as they are."""
    defaults = get_defaults(conn, user_id) | fields
    conn.execute("UPDATE users SET defaults = ? WHERE id = ?", (json.dumps(defaults), user_id))
    return defaults


def get_conversation(conn: Connection, user_id: int, conversation_id: int) -> Conversation:
    owned(conn, user_id, conversation_id)
    return _conversation(
        conn.execute(f"SELECT {_CONVERSATION} FROM conversations c WHERE c.id = ?", (conversation_id,)).fetchone()
    )


# Conversations in which a filter looks first: what matches often is found there, and what does not by the index.
_NEWEST = 4000


def list_conversations(conn: Connection, user_id: int, /, *args: Any, **filters: Any) -> list[Conversation]:
    """The conversations that `find_conversations` finds."""
    return get_conversations(conn, find_conversations(conn, user_id, *args, **filters))


def get_conversations(conn: Connection, ids: list[int]) -> list[Conversation]:
    """The conversations with these ids in this order. Ids that no longer exist are left out."""
    select = f"SELECT {_CONVERSATION} FROM json_each(?) j CROSS JOIN conversations c ON c.id = j.value ORDER BY j.key"
    return [_conversation(row) for row in conn.execute(select, (json.dumps(ids),))]


def find_conversations(
    conn: Connection,
    user_id: int,
    q: str = "",
    limit: int = -1,
    before: int | None = None,
    pinned: bool = False,
    deleted: bool = False,
) -> list[int]:
    """The ids of the user's conversations, newest activity first (deleted ones: newest deletion first).

    `q` is a part of the title, `limit` -1 means all, `before` is the last id of the previous page.
    """
    order = "deleted_at" if deleted else "updated_at"
    where = (
        "c.user_id = :user AND c.hidden = 0 AND c.deleted_at IS "
        + ("NOT NULL" if deleted else "NULL")
        + (" AND c.pinned" if pinned else "")
    )
    values: dict[str, Any] = {"user": user_id, "limit": limit, "key": title_key(q)}
    if before is not None:
        last = owned(conn, user_id, before, deleted)
        where += f" AND (c.{order}, c.id) < (:at, :before)"
        values |= {"at": last[order], "before": before}
    sorted_ = f"ORDER BY c.{order} DESC, c.id DESC LIMIT"
    found = f"SELECT c.id FROM conversations c WHERE {where} {sorted_} :limit"
    if 0 < len(values["key"]) < 3:
        found = f"SELECT c.id FROM conversations c WHERE {where} AND instr(c.title_key, :key) {sorted_} :limit"
    elif q:
        newest = f"SELECT c.id, c.title_key FROM conversations c WHERE {where} {sorted_} {_NEWEST}"
        near = f"SELECT id FROM ({newest}) WHERE instr(title_key, :key) LIMIT :limit"
        ids = [row[0] for row in conn.execute(near, values)] if limit >= 0 else []
        if len(ids) == limit:
            return ids
        values["glob"] = "*" + "".join(f"[{c}]" if c in "*?[" else c for c in values["key"]) + "*"
        indexed = "(SELECT rowid FROM title_letters WHERE title_key GLOB :glob) t CROSS JOIN conversations c ON c.id = t.rowid"
        found = f"SELECT c.id FROM {indexed} WHERE {where} {sorted_} :limit"
    return [row[0] for row in conn.execute(found, values)]


def set_conversation(conn: Connection, user_id: int, conversation_id: int, fields: dict[str, Any]) -> None:
    """Change what `fields` names (see add_conversation). A title given here is a person's: it follows the first message no more."""
    row = owned(conn, user_id, conversation_id)
    if fields.get("title") is not None:
        _set_title(conn, row, fields["title"])
        conn.execute("UPDATE conversations SET named = 1 WHERE id = ?", (conversation_id,))
    for column in ("system_prompt", "pinned", "provider_id", "model"):
        if column in fields:
            conn.execute(f"UPDATE conversations SET {column} = ? WHERE id = ?", (fields[column], conversation_id))
    if "settings" in fields:
        conn.execute(
            "UPDATE conversations SET settings = ? WHERE id = ?", (json.dumps(fields["settings"]), conversation_id)
        )


def _set_title(conn: Connection, row: sqlite3.Row, title: str) -> None:
    search.unindex_title(conn, row)
    conn.execute("UPDATE conversations SET title = ?, title_key = ? WHERE id = ?", (title, title_key(title), row["id"]))
    search.index_title(conn, row["user_id"], row["id"], title, title_key(title))


def delete_conversation(conn: Connection, user_id: int, conversation_id: int) -> None:
    """To the bin."""
    owned(conn, user_id, conversation_id)
    conn.execute("UPDATE conversations SET deleted_at = ? WHERE id = ?", (now(), conversation_id))


def restore_conversation(conn: Connection, user_id: int, conversation_id: int) -> Conversation:
    owned(conn, user_id, conversation_id, deleted=True)
    conn.execute("UPDATE conversations SET deleted_at = NULL WHERE id = ?", (conversation_id,))
    return get_conversation(conn, user_id, conversation_id)


# ---- removal for good: a conversation is hidden in one transaction, then removed in many short ones

_HIDE = "UPDATE conversations SET hidden = 1, source = NULL, active_message_id = NULL WHERE"  # its source may be imported again


def hide_conversation(conn: Connection, user_id: int, conversation_id: int) -> None:
    """Hide a conversation, in the bin or not, for `remove_hidden`."""
    try:
        owned(conn, user_id, conversation_id)
    except NotFound:
        owned(conn, user_id, conversation_id, deleted=True)
    conn.execute(f"{_HIDE} id = ?", (conversation_id,))


def hide_expired(conn: Connection) -> None:
    """Hide the conversations that have been in the bin for BIN_DAYS."""
    conn.execute(f"{_HIDE} deleted_at <= ? AND hidden = 0", (ago(days=BIN_DAYS),))


def list_hidden(conn: Connection, user_id: int | None = None) -> list[int]:
    """Return the ids of the user's hidden conversations, or of all users'."""
    rows = conn.execute("SELECT id FROM conversations WHERE hidden = 1 AND user_id = coalesce(?, user_id)", (user_id,))
    return [row[0] for row in rows]


async def remove_hidden(database: Database, conversation_ids: Iterable[int]) -> None:
    """Remove hidden conversations in transactions of about PART_SECONDS each."""
    for conversation_id in conversation_ids:
        ids = await database.read(_newest_first, conversation_id)
        while ids:
            ids = await database.write_part(remove_messages, ids)
        await database.write_part(_remove_conversation, conversation_id)


def _newest_first(conn: Connection, conversation_id: int) -> list[int]:
    rows = conn.execute("SELECT id FROM messages WHERE conversation_id = ? ORDER BY id DESC", (conversation_id,))
    return [row[0] for row in rows]


def remove_messages(conn: Connection, ids: list[int]) -> list[int]:
    """Remove messages of one user for PART_SECONDS, in this order: children before parents. Return the ids that remain to be done.

    A message that is an active leaf or that another one follows stays.
    """
    end, done, size, user_id = time.monotonic() + PART_SECONDS, 0, 0, None
    for message_id in ids:
        row = conn.execute(
            "SELECT m.id, m.content, m.reasoning, m.status, c.user_id,"
            " (SELECT coalesce(sum(length(data)), 0) FROM images WHERE message_id = m.id) AS image_bytes"
            " FROM messages m JOIN conversations c ON c.id = m.conversation_id WHERE m.id = ?1"
            " AND NOT EXISTS (SELECT 1 FROM messages WHERE parent_id = ?1)"
            " AND NOT EXISTS (SELECT 1 FROM conversations WHERE active_message_id = ?1)",
            (message_id,),
        ).fetchone()
        if row is not None:
            user_id = row["user_id"]
            size += len(row["content"].encode()) + len(row["reasoning"].encode()) + row["image_bytes"]
            search.unindex_message(conn, user_id, row)
            conn.execute("DELETE FROM messages WHERE id = ?", (message_id,))
        done += 1
        if time.monotonic() > end:
            break
    if user_id is not None:
        count_stored(conn, user_id, -size)
    return ids[done:]


def _remove_conversation(conn: Connection, conversation_id: int) -> None:
    row = conn.execute("SELECT * FROM conversations WHERE id = ? AND hidden = 1", (conversation_id,)).fetchone()
    if row is not None:
        search.unindex_title(conn, row)
        conn.execute("DELETE FROM conversations WHERE id = ?", (conversation_id,))


def count_stored(conn: Connection, user_id: int, size: int, limit: int = 0) -> None:
    """Add to the bytes that the user's messages take. Raises QuotaExceeded when there is a limit and they are more."""
    row = conn.execute(
        "UPDATE users SET stored_bytes = stored_bytes + ? WHERE id = ? RETURNING stored_bytes", (size, user_id)
    ).fetchall()
    if limit and row[0][0] > limit:
        raise QuotaExceeded(row[0][0], limit)


def _newest_images(messages: Iterable[Sequence[tuple[int, int]]]) -> set[int]:
    """Choose the images to send. `messages`: (id, bytes) of the images of each message of a path, oldest first.

    Above a limit the oldest are left out until half of it is free, so that the next messages find the same choice, and the model
    server its cache. The choice depends on the path alone. A message that is above a limit by itself keeps its last images.
    """
    sent: deque[tuple[int, int]] = deque()
    used = 0
    for images in messages:
        sent.extend(images)
        used += sum(size for _, size in images)
        full = len(sent) > SENT_IMAGES or used > SENT_IMAGE_BYTES
        while full and len(sent) > len(images) and (len(sent) > SENT_IMAGES / 2 or used > SENT_IMAGE_BYTES / 2):
            used -= sent.popleft()[1]
        while len(sent) > SENT_IMAGES or used > SENT_IMAGE_BYTES:
            used -= sent.popleft()[1]
    return {image_id for image_id, _ in sent}


def optimize(conn: Connection) -> None:
    """Let SQLite look whether its statistics want renewing. Cheap when they do not."""
    conn.execute("PRAGMA analysis_limit = 400")
    conn.execute("PRAGMA optimize")
