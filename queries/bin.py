"""Single messages in the bin: delete one, restore it.

A deleted message moves to a conversation of its own in the bin, whose `deleted_from` is the conversation it came from. So it is
searched, listed, exported and removed like any conversation in the bin. A question takes its answers with it. The messages below
move up: after an answer below another version of it, if there is one, else below the nearest message above that is left.
`former_parents` keeps the true parents of all that move, so that restoring in any order puts everything back.
"""

import sqlite3

from msgspec import Struct

from ..db import Connection, now, scalar, scalars
from ..errors import Conflict
from . import search
from .conversations import (
    Conversation,
    drop_links,
    get_conversation,
    insert_conversation,
    owned,
    restore_conversation,
    title_from,
)
from .messages import PATH, get_message_row, newest_leaf, refuse_while_generating


class Deleted(Struct):
    """`deleted_id` is the conversation in the bin, `active_message_id` the new active leaf."""

    deleted_id: int
    active_message_id: int | None


def delete_message(conn: Connection, user_id: int, conversation_id: int, message_id: int) -> Deleted:
    """Move a message to the bin, a question with its answers. Deleting it again changes nothing. Raises GenerationActive."""
    conversation = owned(conn, user_id, conversation_id)
    entry = (
        "SELECT c.id FROM messages m JOIN conversations c ON c.id = m.conversation_id"
        " WHERE m.id = ? AND c.deleted_from = ? AND c.hidden = 0"
    )
    if entry_id := scalar(conn, entry, (message_id, conversation_id)):
        return Deleted(entry_id, conversation["active_message_id"])
    message = get_message_row(conn, conversation_id, message_id)
    refuse_while_generating(conn, conversation_id)
    removed = [message_id]
    if message["role"] == "user":
        answers = "SELECT id FROM messages WHERE parent_id = ? AND role = 'assistant' ORDER BY id"
        removed += scalars(conn, answers, (message_id,))
    active = conversation["active_message_id"]
    entry_id = _add_entry(conn, conversation, message, active if active in removed else removed[-1])
    link = "INSERT OR IGNORE INTO former_parents (message_id, parent_id) "
    if message["parent_id"] is not None:
        conn.execute(link + "VALUES (?, ?)", (message_id, message["parent_id"]))
    for removed_id in removed:
        conn.execute("UPDATE messages SET conversation_id = ? WHERE id = ?", (entry_id, removed_id))
    conn.execute("UPDATE messages SET parent_id = NULL WHERE id = ?", (message_id,))
    _copy_sent_system_prompts(conn, conversation_id, entry_id)
    above = place(conn, conversation_id, message_id)
    for removed_id in removed:
        below = (conversation_id, removed_id)
        conn.execute(link + "SELECT id, parent_id FROM messages WHERE conversation_id = ? AND parent_id = ?", below)
        conn.execute("UPDATE messages SET parent_id = ? WHERE conversation_id = ? AND parent_id = ?", (above, *below))
    if active in removed:
        active = newest_leaf(conn, conversation_id, above)
        conn.execute("UPDATE conversations SET active_message_id = ? WHERE id = ?", (active, conversation_id))
    return Deleted(entry_id, active)


def _add_entry(conn: Connection, conversation: sqlite3.Row, message: sqlite3.Row, leaf: int) -> int:
    """Add the conversation in the bin that holds a deleted message. Return its id."""
    title = title_from(message["content"]) if message["content"].strip() else conversation["title"]
    columns = {
        "named": 1,
        "provider_id": message["provider_id"] or conversation["provider_id"],
        "model": message["model"] or conversation["model"],
        "settings": conversation["settings"],
        "temporary": conversation["temporary"],
        "active_message_id": leaf,
        "deleted_from": conversation["id"],
        "deleted_at": now(),
    }
    return insert_conversation(conn, conversation["user_id"], title, columns)


def _copy_sent_system_prompts(conn: Connection, conversation_id: int, entry_id: int) -> None:
    """Copy those of the answers in the bin, whose requests could not be rebuilt without them if their conversation is removed."""
    conn.execute(
        "INSERT INTO sent_system_prompts (conversation_id, text_hash, text)"
        " SELECT ?1, text_hash, text FROM sent_system_prompts WHERE conversation_id = ?2 AND lower(hex(text_hash)) IN"
        " (SELECT json_extract(g.request, '$.system_prompt_hash') FROM messages m JOIN generations g ON g.message_id = m.id"
        " WHERE m.conversation_id = ?1)",
        (entry_id, conversation_id),
    )


def place(conn: Connection, conversation_id: int, message_id: int | None) -> int | None:
    """Return the message of the conversation below which the children of this one belong: itself, unless it is in the bin."""
    select = (
        "SELECT m.id, m.conversation_id, m.role, coalesce(f.parent_id, m.parent_id) AS parent_id FROM messages m"
        " LEFT JOIN former_parents f ON f.message_id = m.id WHERE m.id = ?"
    )
    message = conn.execute(select, (message_id,)).fetchone()
    while message is not None and message["conversation_id"] != conversation_id:
        parent = conn.execute(select, (message["parent_id"],)).fetchone()
        if message["role"] == "assistant" and (parent is None or parent["conversation_id"] == conversation_id):
            version = _other_version(conn, conversation_id, message)
            if version is not None:
                return version
        message = parent
    return message["id"] if message is not None else None


def _other_version(conn: Connection, conversation_id: int, answer: sqlite3.Row) -> int | None:
    """Return the version before a deleted answer, else the one after it. Messages that moved up to its parent are no versions of it."""
    version: int | None = scalar(
        conn,
        "SELECT id FROM messages m WHERE conversation_id = ?1 AND parent_id IS ?2 AND role = 'assistant'"
        " AND NOT EXISTS (SELECT 1 FROM former_parents f WHERE f.message_id = m.id) ORDER BY id > ?3, abs(id - ?3) LIMIT 1",
        (conversation_id, answer["parent_id"], answer["id"]),
    )
    return version


def restore(conn: Connection, user_id: int, conversation_id: int) -> Conversation:
    """Restore a conversation from the bin. A deleted message returns to its conversation, which is returned.

    If that conversation was removed, the message becomes a conversation of its own. Raises Conflict when it is in the bin.
    """
    entry = owned(conn, user_id, conversation_id, deleted=True)
    home_id = entry["deleted_from"]
    home = conn.execute("SELECT * FROM conversations WHERE id = ? AND hidden = 0", (home_id,)).fetchone()
    if home is None:
        conn.execute("UPDATE conversations SET deleted_from = NULL WHERE id = ?", (conversation_id,))
        return restore_conversation(conn, user_id, conversation_id)
    if home["deleted_at"]:
        raise Conflict("The chat that this message belongs to is in the bin too. Restore that chat first.")
    # The first is the root; a question is followed by its answers.
    sql = "SELECT id FROM messages WHERE conversation_id = ? ORDER BY parent_id IS NOT NULL, id"
    ids = scalars(conn, sql, (conversation_id,))
    root_id = ids[0]
    former_place = place(conn, home_id, root_id)
    # The client may have repeated its request after the deletion, or an import may have added the message again.
    known = "CASE WHEN EXISTS (SELECT 1 FROM messages k WHERE k.conversation_id = ?1 AND k.{0} = m.{0}) THEN NULL ELSE {0} END"
    conn.execute(
        f"UPDATE messages AS m SET conversation_id = ?1, client_id = {known.format('client_id')},"
        f" source = {known.format('source')} WHERE conversation_id = ?2",
        (home_id, conversation_id),
    )
    links = "SELECT f.* FROM former_parents f JOIN messages m ON m.id = f.message_id WHERE "
    here = "m.conversation_id = ?1 AND "
    moved = [row for one in ids for row in conn.execute(f"{links}{here}m.id = ?2", (home_id, one))]
    moved += [row for one in ids for row in conn.execute(f"{links}{here}f.parent_id = ?2", (home_id, one))]
    moved += conn.execute(f"{links}{here}m.parent_id IS ?2", (home_id, former_place)).fetchall()
    for row in moved:
        above = place(conn, home_id, row["parent_id"])
        conn.execute("UPDATE messages SET parent_id = ? WHERE id = ?", (above, row["message_id"]))
        drop_links(conn, row["parent_id"])
    _show_restored(conn, home, entry, root_id)
    search.unindex_title(conn, entry)
    conn.execute("DELETE FROM conversations WHERE id = ?", (conversation_id,))
    return get_conversation(conn, user_id, home_id)


def _show_restored(conn: Connection, home: sqlite3.Row, entry: sqlite3.Row, root_id: int) -> None:
    """Activate the path through a restored message, unless the conversation has been continued on another one."""
    sql = PATH + "SELECT 1 FROM path WHERE id = :root"
    leaf = {"leaf": home["active_message_id"], "limit": -1, "root": root_id}
    is_continued = home["active_message_id"] is not None and home["updated_at"] > entry["deleted_at"]
    if not is_continued and not scalar(conn, sql, leaf):
        active = newest_leaf(conn, home["id"], entry["active_message_id"] or root_id)
        conn.execute("UPDATE conversations SET active_message_id = ? WHERE id = ?", (active, home["id"]))
