"""Queries of conversations: their list, their fields, the bin, and their removal.

`owned` checks the owner: another user's conversation raises NotFound, as one that does not exist.
"""

import json
import re
import sqlite3
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from msgspec import UNSET, Raw, Struct, UnsetType

from ..db import Connection, Database, ago, fetch, insert_row, now, one_part, scalar, scalars
from ..errors import AuthRequired, NotFound
from . import attachments, folders, search
from .quota import add_stored_bytes
from .types import Parameters, QueuedMessage, from_row, stored, title_key

UNTITLED = "New conversation"
BIN_DAYS = 30
BRANCH_SOURCE = "branch:"  # before the client_id in the `source` of a copy
BRANCH_HOURS = 1.0  # after which a copy that is not finished was ended by a crash


class Home(Struct):
    """The conversation of a deleted message."""

    id: int
    title: str


class Conversation(Struct):
    id: int
    title: str
    created_at: str
    updated_at: str
    system_prompt: str
    pinned: bool
    provider_id: str | None
    model: str | None
    settings: Annotated[Raw, stored(Parameters)]
    generation_id: str | None  # of the answer that is being generated
    folder_id: int | None
    temporary: bool
    deleted_at: str | UnsetType = UNSET
    deleted_from: Home | UnsetType = UNSET  # of a message in the bin
    queue: list[QueuedMessage] | UnsetType = UNSET
    token_name: str | UnsetType = UNSET  # of the token of the program that began it


_SELECT = (
    "SELECT c.id, c.title, c.created_at, c.updated_at, c.system_prompt, c.pinned, c.provider_id, c.model, c.settings, c.deleted_at, c.token_name,"
    " c.deleted_from, (SELECT h.title FROM conversations h WHERE h.id = c.deleted_from AND h.hidden = 0) AS home_title,"
    " c.folder_id, c.temporary,"
    " (SELECT g.id FROM messages m JOIN generations g ON g.message_id = m.id"
    " WHERE m.conversation_id = c.id AND m.status = 'generating') AS generation_id"
    " FROM json_each(?) j CROSS JOIN conversations c ON c.id = j.value ORDER BY j.key"
)


def get_conversations(conn: Connection, ids: list[int]) -> list[Conversation]:
    """Return the conversations with these ids in this order, without those that no longer exist. The caller has checked the owner."""
    return [
        from_row(
            Conversation,
            row,
            deleted_from=Home(row["deleted_from"], row["home_title"]) if row["home_title"] is not None else UNSET,
            pinned=bool(row["pinned"]),
            temporary=bool(row["temporary"]),
            settings=Raw(row["settings"].encode()),
            deleted_at=row["deleted_at"] or UNSET,
            token_name=row["token_name"] or UNSET,
            queue=UNSET,
        )
        for row in conn.execute(_SELECT, (json.dumps(ids),))
    ]


def get_conversation(conn: Connection, user_id: int, conversation_id: int) -> Conversation:
    owned(conn, user_id, conversation_id)
    return get_conversations(conn, [conversation_id])[0]


def owned(conn: Connection, user_id: int, conversation_id: int, deleted: bool = False) -> sqlite3.Row:
    """Return the row of the user's conversation. The only function that decides whose a conversation is. Raises NotFound.

    `deleted`: whether it is expected in the bin. Hidden conversations are not found.
    """
    sql = "SELECT * FROM conversations WHERE id = ? AND user_id = ? AND (deleted_at IS NOT NULL) = ? AND hidden = 0"
    return fetch(conn, sql, (conversation_id, user_id, deleted), NotFound("conversation"))


def list_conversations(conn: Connection, user_id: int, /, *args: Any, **filters: Any) -> list[Conversation]:
    """Return the conversations that `find_conversations` finds."""
    return get_conversations(conn, find_conversations(conn, user_id, *args, **filters))


def find_conversations(
    conn: Connection,
    user_id: int,
    q: str = "",
    limit: int = -1,
    before: int | None = None,
    pinned: bool = False,
    deleted: bool = False,
    folder: int | None = None,
    by_name: bool = False,
) -> list[int]:
    """Return the ids of the user's conversations without the temporary ones, newest activity first (in the bin: newest deletion first).

    `q` is a part of the title, `limit` -1 means all, `before` is the last id of the previous page, `folder` 0 means those in no folder.
    The filter scans the index conversations_by_activity or, `by_name`, conversations_by_name: 13 ms of CPU time for 100,000 conversations.
    """
    column = "deleted_at" if deleted else "title_key" if by_name else "updated_at"
    is_after, order = (">", "ASC") if column == "title_key" else ("<", "DESC")
    where = "c.user_id = :user AND c.hidden = 0 AND c.temporary = 0 AND instr(c.title_key, :key) AND c.deleted_at IS "
    where += ("NOT NULL" if deleted else "NULL") + (" AND c.pinned" if pinned else "")
    values: dict[str, Any] = {"user": user_id, "key": title_key(q), "limit": limit}
    if folder is not None:
        if folder:
            folders.check_folder(conn, user_id, folder)
        where += " AND c.folder_id IS :folder"
        values["folder"] = folder or None
    if before is not None:
        where += f" AND (c.{column}, c.id) {is_after} (:at, :before)"
        values |= {"at": owned(conn, user_id, before, deleted)[column], "before": before}
    found = f"SELECT c.id FROM conversations c WHERE {where} ORDER BY c.{column} {order}, c.id {order} LIMIT :limit"
    return scalars(conn, found, values)


def title_from(text: str) -> str:
    """Return a title of at most 60 characters: the beginning of a message, or of its code if there is no other text."""
    words, fence, code = text[:400].partition("```")
    if fence:  # the page writes the name of an attached file above its code
        words = re.sub(r"\n\n[^\n]+\.\w+:\s*\Z", "", words).strip().removesuffix(":")
    line = " ".join((words.strip() or code).split())
    if len(line) <= 60:
        return line or UNTITLED
    cut = line[:60].rsplit(" ", 1)[0] if " " in line[20:60] else line[:59]
    return cut.rstrip(" ,.;:") + "…"


def add_conversation(conn: Connection, user_id: int, fields: dict[str, Any], max_bytes: int = 0) -> Conversation:
    """Add a conversation. `fields`: title, system_prompt, pinned, provider_id, model, settings (a dict), folder_id, temporary, all optional.

    The user's defaults apply to fields that are missing. Raises QuotaExceeded and NotFound as `set_conversation`.
    """
    conversation_id = insert_conversation(conn, user_id, UNTITLED)
    set_conversation(conn, user_id, conversation_id, get_defaults(conn, user_id) | fields, max_bytes)
    return get_conversation(conn, user_id, conversation_id)


def insert_conversation(conn: Connection, user_id: int, title: str, columns: Mapping[str, Any] = {}) -> int:
    """Insert a conversation with these columns, and its title into the search index. Return its id."""
    moment = now()
    row = {
        "user_id": user_id,
        "title": title,
        "title_key": title_key(title),
        "created_at": moment,
        "updated_at": moment,
    }
    conversation_id = insert_row(conn, "conversations", {**row, **columns})
    search.index_title(conn, user_id, conversation_id, title)
    return conversation_id


def set_conversation(
    conn: Connection, user_id: int, conversation_id: int, fields: dict[str, Any], max_bytes: int = 0
) -> None:
    """Change `fields` (see add_conversation). A title that is set here no longer follows the first message.

    Raises QuotaExceeded when a longer system prompt takes the user above `max_bytes` (0: no limit), NotFound for the folder.
    """
    row = owned(conn, user_id, conversation_id)
    if fields.get("folder_id"):
        folders.check_folder(conn, user_id, fields["folder_id"])
    names = ("system_prompt", "pinned", "provider_id", "model", "folder_id", "temporary")
    columns: dict[str, Any] = {name: fields[name] for name in names if name in fields}
    if "settings" in fields:
        columns["settings"] = json.dumps(fields["settings"])
    if fields.get("title"):
        set_title(conn, row, fields["title"])
        columns["named"] = 1
    if "system_prompt" in fields:
        size = len(fields["system_prompt"].encode()) - len(row["system_prompt"].encode())
        add_stored_bytes(conn, user_id, size, max_bytes)
    if fields.get("temporary") is False:  # its deleted messages in the bin are kept too
        conn.execute("UPDATE conversations SET temporary = 0 WHERE deleted_from = ?", (conversation_id,))
    for name, value in columns.items():
        conn.execute(f"UPDATE conversations SET {name} = ? WHERE id = ?", (value, conversation_id))


def set_title(conn: Connection, conversation: sqlite3.Row, title: str) -> None:
    if title == conversation["title"]:
        return
    search.unindex_title(conn, conversation)
    conn.execute(
        "UPDATE conversations SET title = ?, title_key = ? WHERE id = ?", (title, title_key(title), conversation["id"])
    )
    search.index_title(conn, conversation["user_id"], conversation["id"], title)


def get_defaults(conn: Connection, user_id: int) -> dict[str, Any]:
    """Return system_prompt and settings (a dict) of new conversations without a preset, if they were set."""
    # There is no such user when the account was deleted while the request ran.
    row = fetch(conn, "SELECT defaults FROM users WHERE id = ?", (user_id,), AuthRequired())
    defaults: dict[str, Any] = json.loads(row["defaults"])
    return defaults


def delete_conversation(conn: Connection, user_id: int, conversation_id: int) -> None:
    """Move a conversation to the bin."""
    owned(conn, user_id, conversation_id)
    conn.execute("UPDATE conversations SET deleted_at = ? WHERE id = ?", (now(), conversation_id))


def restore_conversation(conn: Connection, user_id: int, conversation_id: int) -> Conversation:
    owned(conn, user_id, conversation_id, deleted=True)
    conn.execute("UPDATE conversations SET deleted_at = NULL WHERE id = ?", (conversation_id,))
    return get_conversation(conn, user_id, conversation_id)


def change_many(conn: Connection, user_id: int, ids: list[int], action: str, folder_id: int | None = None) -> list[int]:
    """Delete, restore or move (to a folder, or to none) conversations. Return the ids of those that were changed.

    Ids that are not found are left out, because another tab may have deleted some. Raises NotFound when none is left.
    """
    if action == "move" and folder_id is not None:
        folders.check_folder(conn, user_id, folder_id)
    in_bin = "NOT NULL" if action == "restore" else "NULL"
    chosen = _find_owned(conn, user_id, ids, f"deleted_from IS NULL AND deleted_at IS {in_bin}")
    change = {"delete": "deleted_at = :now", "restore": "deleted_at = NULL", "move": "folder_id = :folder, pinned = 0"}
    conn.execute(
        f"UPDATE conversations SET {change[action]} WHERE id IN (SELECT value FROM json_each(:ids))",
        {"now": now(), "folder": folder_id, "ids": json.dumps(chosen)},
    )
    return chosen


def owned_ids(conn: Connection, user_id: int, ids: list[int]) -> list[int]:
    """Return those of the ids that are conversations in the user's list. Raises NotFound when none is."""
    return _find_owned(conn, user_id, ids, "deleted_at IS NULL AND temporary = 0")


def _find_owned(conn: Connection, user_id: int, ids: list[int], condition: str) -> list[int]:
    found = scalars(
        conn,
        "SELECT id FROM conversations WHERE id IN (SELECT value FROM json_each(?)) AND user_id = ? AND hidden = 0"
        f" AND {condition} ORDER BY id",
        (json.dumps(ids), user_id),
    )
    if not found:
        raise NotFound("conversation")
    return found


# ---- permanent removal: a conversation is hidden in one transaction, then removed in many short ones

# Without its source it can be imported again at once.
_HIDE = "UPDATE conversations SET hidden = 1, source = NULL, active_message_id = NULL WHERE"


def hide_conversation(conn: Connection, user_id: int, conversation_id: int) -> list[int]:
    """Hide a conversation, in the bin or not, and the messages in the bin that were deleted from it. Return what to remove."""
    try:
        owned(conn, user_id, conversation_id)
    except NotFound:
        owned(conn, user_id, conversation_id, deleted=True)
    return scalars(conn, f"{_HIDE} (id = ?1 OR deleted_from = ?1) RETURNING id", (conversation_id,))


def hide_all(conn: Connection, conversation_ids: list[int]) -> None:
    """Hide the conversations of a closed account."""
    conn.executemany(f"{_HIDE} id = ?", [(conversation_id,) for conversation_id in conversation_ids])


def list_all(conn: Connection, user_id: int) -> list[int]:
    """Return the ids of all of a user's conversations, hidden ones and those in the bin included."""
    return scalars(conn, "SELECT id FROM conversations WHERE user_id = ?", (user_id,))


def hide_expired(conn: Connection) -> None:
    """Hide the conversations that have been in the bin for BIN_DAYS."""
    conn.execute(f"{_HIDE} deleted_at <= ? AND hidden = 0", (ago(days=BIN_DAYS),))


def is_temporary(conn: Connection, user_id: int, conversation_id: int) -> bool:
    return bool(owned(conn, user_id, conversation_id)["temporary"])


def hide_temporary(conn: Connection, before: str, but: Iterable[int] = (), only: int | None = None) -> list[int]:
    """Hide the temporary conversations, or `only` one with its deleted messages, that were last used before this time. Return their ids.

    `but`: ids of those that are open. One with a running answer stays.
    """
    return scalars(
        conn,
        f"{_HIDE} temporary = 1 AND hidden = 0 AND updated_at <= :before AND (:only IS NULL OR id = :only OR deleted_from = :only)"
        " AND id NOT IN (SELECT value FROM json_each(:but)) AND NOT EXISTS"
        " (SELECT 1 FROM messages m WHERE m.conversation_id = conversations.id AND m.status = 'generating') RETURNING id",
        {"before": before, "only": only, "but": json.dumps(list(but))},
    )


def list_hidden(conn: Connection, user_id: int | None = None) -> list[int]:
    """Return the ids of the hidden conversations of one user, or of all users, without the branches that are being copied."""
    return scalars(
        conn,
        "SELECT id FROM conversations WHERE hidden = 1 AND user_id = coalesce(?, user_id)"
        " AND (source IS NULL OR source NOT LIKE ? || '%' OR created_at < ?)",
        (user_id, BRANCH_SOURCE, ago(hours=BRANCH_HOURS)),
    )


async def remove_hidden(database: Database, conversation_ids: Iterable[int]) -> None:
    """Remove hidden conversations in transactions of about PART_SECONDS each."""
    for conversation_id in conversation_ids:
        ids = await database.read(list_message_ids, conversation_id)
        while ids:
            ids = await database.write_part(remove_messages, ids)
        await database.write_part(remove_emptied, conversation_id)
    await attachments.remove_released(database)


def list_message_ids(conn: Connection, conversation_id: int) -> list[int]:
    """Return the ids of a conversation's messages, children before their parents."""
    return list(list_parents(conn, conversation_id))[::-1]


def list_parents(conn: Connection, conversation_id: int) -> dict[int, int | None]:
    """Return the parent_id of each message by its id, oldest first, but parents before their children.

    The version of an answer that took the place of a deleted one may be newer than the messages below it (see bin.py).
    """
    rows = conn.execute("SELECT id, parent_id FROM messages WHERE conversation_id = ? ORDER BY id", (conversation_id,))
    parents: dict[int, int | None] = {row["id"]: row["parent_id"] for row in rows}
    ordered: dict[int, int | None] = {}
    for message_id in parents:
        path, at = [], message_id
        while at in parents and at not in ordered:
            path.append(at)
            at = parents[at] or 0
        ordered |= {one: parents[one] for one in reversed(path)}
    return ordered


def remove_messages(conn: Connection, ids: list[int]) -> list[int]:
    """Remove messages of one user for PART_SECONDS. Return the ids that remain. `ids` has children before their parents.

    A message that is an active leaf or that has children is not removed.
    """
    done, size, user_id = 0, 0, None
    for message_id in one_part(ids):
        done += 1
        row = conn.execute(
            "SELECT m.id, m.content, m.reasoning, m.status, m.tools, c.user_id, c.deleted_from"
            " FROM messages m JOIN conversations c ON c.id = m.conversation_id WHERE m.id = ?1"
            " AND NOT EXISTS (SELECT 1 FROM messages WHERE parent_id = ?1)"
            " AND NOT EXISTS (SELECT 1 FROM conversations WHERE active_message_id = ?1)",
            (message_id,),
        ).fetchone()
        if row is not None:
            user_id = row["user_id"]
            size += sum(len((row[name] or "").encode()) for name in ("content", "reasoning", "tools"))
            search.unindex_message(conn, user_id, row)
            if row["deleted_from"] is not None:
                _unlink(conn, message_id)
            files = attachments.linked_ids(conn, message_id)
            conn.execute("DELETE FROM messages WHERE id = ?", (message_id,))
            size += attachments.release(conn, files)
    if user_id is not None:
        add_stored_bytes(conn, user_id, -size)
    return ids[done:]


def _unlink(conn: Connection, message_id: int) -> None:
    """Let what followed a deleted message follow its parent: this message cannot be restored any more."""
    parent = scalar(
        conn,
        "SELECT coalesce(f.parent_id, m.parent_id) FROM messages m LEFT JOIN former_parents f ON f.message_id = m.id"
        " WHERE m.id = ?",
        (message_id,),
    )
    if parent is not None:
        conn.execute("UPDATE former_parents SET parent_id = ? WHERE parent_id = ?", (parent, message_id))
        drop_links(conn, parent)


def drop_links(conn: Connection, parent_id: int) -> None:
    """Forget the true parent of the messages that are in the same conversation as this parent."""
    conn.execute(
        "DELETE FROM former_parents WHERE parent_id = ?1 AND (SELECT conversation_id FROM messages WHERE id = message_id)"
        " = (SELECT conversation_id FROM messages WHERE id = ?1)",
        (parent_id,),
    )


def remove_emptied(conn: Connection, conversation_id: int) -> None:
    """Remove a hidden conversation that has no messages."""
    sql = "SELECT * FROM conversations WHERE id = ?1 AND hidden = 1 AND NOT EXISTS (SELECT 1 FROM messages WHERE conversation_id = ?1)"
    row = conn.execute(sql, (conversation_id,)).fetchone()
    if row is not None:
        search.unindex_title(conn, row)
        sql = "SELECT id, content FROM queued_messages WHERE conversation_id = ?"
        queued = conn.execute(sql, (conversation_id,)).fetchall()
        files = [one for message in queued for one in attachments.linked_ids(conn, message["id"], "queued_attachments")]
        conn.execute("DELETE FROM conversations WHERE id = ?", (conversation_id,))
        texts = [row["system_prompt"], *(message["content"] for message in queued)]
        size = sum(len(text.encode()) for text in texts) + attachments.release(conn, files)
        add_stored_bytes(conn, row["user_id"], -size)


def optimize(conn: Connection) -> None:
    """Let SQLite renew its statistics if needed."""
    conn.execute("PRAGMA analysis_limit = 400")
    conn.execute("PRAGMA optimize")
