"""What an import and an export ask of the database, a function each: whole rows, and what tells them apart.

As in queries.py, the first parameter is the connection of a transaction that is already open. Whose a conversation is has been
asked (`queries.owned`, or a `user_id` here) before any function that takes only its id.
"""

import contextlib
import json
import sqlite3
import uuid
from collections.abc import Collection, Iterator
from typing import Any

from msgspec import Struct

from . import search
from .db import Tx, insert
from .errors import NotFound
from .queries import title_key

# ---------------------------------------------------------------------------------------------------- in


@contextlib.contextmanager
def savepoint(tx: Tx) -> Iterator[None]:
    """A part of a transaction that is done whole or, when it raises, not at all, while the rest goes on."""
    tx.execute("SAVEPOINT part")
    try:
        yield
    except BaseException:
        if tx.in_transaction:  # a full disk has ended all of it
            tx.execute("ROLLBACK TO part")
            tx.execute("RELEASE part")
        raise
    tx.execute("RELEASE part")


@contextlib.contextmanager
def importing(tx: Tx, user_id: int) -> Iterator[None]:
    """Around `add_...` and their savepoints: what they added is indexed at the end, since FTS5 writes out what it has
    gathered at every savepoint, which takes longer than all the rest."""
    newest = [
        tx.execute(f"SELECT coalesce(max(id), 0) FROM {table}").fetchone()[0] for table in ("conversations", "messages")
    ]
    yield
    for row in tx.execute("SELECT id, title FROM conversations WHERE id > ?", newest[:1]).fetchall():
        search.index_title(tx, user_id, row["id"], row["title"], title_key(row["title"]))
    for row in tx.execute("SELECT id, content FROM messages WHERE id > ?", newest[1:]).fetchall():
        search.index_message(tx, user_id, row["id"], row["content"])


class Origin(Struct):
    """What tells an imported conversation from others: where it came from is asked for, the rest is this."""

    id: int
    created_at: str
    deleted_at: str | None
    question: str | None  # the oldest first message


_ORIGIN = (
    "SELECT c.id, c.created_at, c.deleted_at,"
    " (SELECT content FROM messages WHERE conversation_id = c.id AND parent_id IS NULL ORDER BY id LIMIT 1)"
    " FROM conversations c WHERE c.user_id = ?"
)


def get_imported(tx: Tx, user_id: int, source: str) -> Origin | None:
    """The conversation from this source, in the bin or not."""
    row = tx.execute(f"{_ORIGIN} AND c.source = ?", (user_id, source)).fetchone()
    return Origin(*row) if row else None


def list_made_at(tx: Tx, user_id: int, times: Collection[str]) -> list[Origin]:
    """The conversations that come from nowhere else and were made at one of these times, in the bin or not."""
    here = f"{_ORIGIN} AND c.source IS NULL AND c.created_at IN (SELECT value FROM json_each(?)) ORDER BY c.id"
    return [Origin(*row) for row in tx.execute(here, (user_id, json.dumps(list(times))))]


def add_conversation(tx: Tx, user_id: int, fields: dict[str, Any]) -> int:
    """`fields`: every column but id, user_id, title_key and active_message_id."""
    return insert(
        tx,
        "INSERT INTO conversations (user_id, title, title_key, named, system_prompt, provider_id, model, settings,"
        " pinned, source, created_at, updated_at, deleted_at) VALUES (:user_id, :title, :title_key, :named,"
        " :system_prompt, :provider_id, :model, :settings, :pinned, :source, :created_at, :updated_at, :deleted_at)",
        fields | {"user_id": user_id, "title_key": title_key(fields["title"])},
    )


def add_message(tx: Tx, conversation_id: int, fields: dict[str, Any]) -> int:
    """`fields`: every column but id and conversation_id."""
    return insert(
        tx,
        "INSERT INTO messages (conversation_id, parent_id, role, content, reasoning, status, provider_id, model,"
        " token_usage, stats, error, client_id, source, created_at) VALUES (:conversation_id, :parent_id, :role, :content,"
        " :reasoning, :status, :provider_id, :model, :token_usage, :stats, :error, :client_id, :source, :created_at)",
        fields | {"conversation_id": conversation_id},
    )


def add_generation(tx: Tx, generation_id: str, message_id: int, fields: dict[str, Any]) -> None:
    """`fields`: provider_id, model, params, log. Where the id is somebody's already, it gets another one."""
    taken = tx.execute("SELECT 1 FROM generations WHERE id = ?", (generation_id,)).fetchone()
    tx.execute(
        "INSERT INTO generations (id, message_id, provider_id, model, params, log)"
        " VALUES (:id, :message_id, :provider_id, :model, :params, :log)",
        fields | {"id": str(uuid.uuid4()) if taken else generation_id, "message_id": message_id},
    )


def list_message_origins(tx: Tx, conversation_id: int) -> list[tuple[int, str | None, str, str]]:
    """What tells messages apart, oldest first: (id, source, created_at, role)."""
    rows = tx.execute(
        "SELECT id, source, created_at, role FROM messages WHERE conversation_id = ? ORDER BY id", (conversation_id,)
    )
    return [tuple(row) for row in rows]


def set_imported(tx: Tx, conversation_id: int, updated_at: str, active_message_id: int | None) -> None:
    """After an import into it. The active leaf stays where None is given, and while an answer is being written."""
    tx.execute(
        "UPDATE conversations SET updated_at = max(updated_at, ?1), active_message_id = CASE WHEN ?2 IS NULL OR EXISTS"
        " (SELECT 1 FROM messages WHERE conversation_id = ?3 AND status = 'generating') THEN active_message_id ELSE ?2 END"
        " WHERE id = ?3",
        (updated_at, active_message_id, conversation_id),
    )


# ---------------------------------------------------------------------------------------------------- out


def list_conversation_ids(tx: Tx, user_id: int) -> list[tuple[int, bool]]:
    """All of them, oldest first, and whether they are in the bin."""
    rows = tx.execute("SELECT id, deleted_at IS NOT NULL FROM conversations WHERE user_id = ? ORDER BY id", (user_id,))
    return [(row[0], bool(row[1])) for row in rows]


def list_whole_messages(tx: Tx, conversation_id: int) -> list[sqlite3.Row]:
    """Every message, oldest first. One that is being written is `interrupted`, with what was saved of it so far."""
    parts = (
        "coalesce((SELECT group_concat({0}, '') FROM (SELECT p.{0} FROM generation_parts p JOIN generations g"
        " ON g.id = p.generation_id WHERE g.message_id = m.id ORDER BY p.first_event)), '')"
    )
    texts = ", ".join(
        f"CASE status WHEN 'generating' THEN {parts.format(column)} ELSE {column} END AS {column}"
        for column in ("content", "reasoning")
    )
    return tx.execute(
        "SELECT id, parent_id, role, created_at, provider_id, model, token_usage, stats, error, client_id, source,"
        f" CASE status WHEN 'generating' THEN 'interrupted' ELSE status END AS status, {texts}"
        " FROM messages m WHERE conversation_id = ? ORDER BY id",
        (conversation_id,),
    ).fetchall()


def list_images(tx: Tx, conversation_id: int) -> list[sqlite3.Row]:
    """The images of a conversation in order, without their bytes: id, message_id, position, media_type."""
    return tx.execute(
        "SELECT i.id, i.message_id, i.position, i.media_type FROM messages m JOIN images i ON i.message_id = m.id"
        " WHERE m.conversation_id = ? ORDER BY i.message_id, i.position",
        (conversation_id,),
    ).fetchall()


def get_image_data(tx: Tx, image_id: int) -> bytes:
    row = tx.execute("SELECT data FROM images WHERE id = ?", (image_id,)).fetchone()
    if row is None:
        raise NotFound("image")
    data: bytes = row[0]
    return data


def list_generations(tx: Tx, conversation_id: int) -> list[sqlite3.Row]:
    """How each answer that has ended was made: every column."""
    return tx.execute(
        "SELECT g.* FROM messages m JOIN generations g ON g.message_id = m.id"
        " WHERE m.conversation_id = ? AND m.status <> 'generating'",
        (conversation_id,),
    ).fetchall()
