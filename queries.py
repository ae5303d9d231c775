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
import uuid
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

from msgspec import UNSET, Raw, Struct, UnsetType

from . import search
from .db import Database, Tx, ago, insert, now
from .errors import (
    AlreadyAnswered,
    GenerationActive,
    NotFound,
    NoUserMessage,
    QuotaExceeded,
)

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


class Turn(Struct):
    """A message as the prompt needs it."""

    role: str
    content: str
    images: list[Image]  # that are sent
    omitted_images: int  # older ones that are not, because of SENT_IMAGES or SENT_IMAGE_BYTES
    total_tokens: int | None  # of an answer: the prompt that led to it and itself
    omitted_messages: int
    context_length: int | None  # of an answer: that the model was loaded with, in tokens


class Prompt(Struct):
    system_prompt: str
    turns: list[Turn]


class Wanted(Struct, frozen=True):
    """What kind of answer is asked for. Without provider or model those of the conversation; `retry`: another version of it, or of
    the one that is, or answers, the message named."""

    provider_id: str | None = None
    model: str | None = None
    params: dict[str, Any] = {}  # beyond the conversation's settings
    retry: bool = False
    message_id: int | None = None


class Found(Struct):
    """An answer that is there: it is being written, or complete."""

    generation_id: str
    message_id: int


class Begun(Found):
    """A new one, which is to be written."""

    provider_id: str
    model: str
    params: dict[str, Any]
    history: Prompt  # what led to the question, and the question


class Recording(Struct):
    """An answer as it is kept: the two texts and the log that cuts them into events."""

    message_id: int
    status: str
    content: str
    reasoning: str
    log: str


class SavedPart(NamedTuple):
    """What a running answer has made since it was last saved."""

    generation_id: str
    first_event: int
    content: str
    reasoning: str
    log: str


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


def owned(tx: Tx, user_id: int, conversation_id: int, deleted: bool = False) -> sqlite3.Row:
    """The user's conversation, in the bin or not, as asked, unless it is hidden. The one place that decides whose a conversation is."""
    row: sqlite3.Row | None = tx.execute(
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


def add_conversation(tx: Tx, user_id: int, fields: dict[str, Any]) -> Conversation:
    """`fields`: title, system_prompt, pinned, provider_id, model, settings (a dict), each of them optional. What is not among
    them is as the user wants it of new conversations."""
    fields = get_defaults(tx, user_id) | fields
    title = fields.get("title")
    moment = now()
    conversation_id = insert(
        tx,
        "INSERT INTO conversations (user_id, title, title_key, created_at, updated_at) VALUES (?, ?, ?, ?4, ?4)",
        (user_id, title or UNTITLED, title_key(title or UNTITLED), moment),
    )
    search.index_title(tx, user_id, conversation_id, title or UNTITLED, title_key(title or UNTITLED))
    set_conversation(tx, user_id, conversation_id, fields)
    return get_conversation(tx, user_id, conversation_id)


def begin_conversation(
    tx: Tx,
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
    made = tx.execute(
        "SELECT m.conversation_id FROM (SELECT id FROM conversations WHERE user_id = ? AND deleted_at IS NULL AND hidden = 0"
        " ORDER BY updated_at DESC LIMIT 20) c JOIN messages m ON m.conversation_id = c.id AND m.client_id = ?",
        (user_id, client_id),
    ).fetchone()
    if made:
        return get_conversation(tx, user_id, made[0])
    conversation = add_conversation(tx, user_id, fields)
    add_message(tx, user_id, conversation.id, content, client_id=client_id, images=images, max_bytes=max_bytes)
    return get_conversation(tx, user_id, conversation.id)


def get_defaults(tx: Tx, user_id: int) -> dict[str, Any]:
    """What a user's new conversations begin with: system_prompt and settings (a dict), each of them only when it was ever set."""
    defaults: dict[str, Any] = json.loads(
        tx.execute("SELECT defaults FROM users WHERE id = ?", (user_id,)).fetchone()[0]
    )
    return defaults


def set_defaults(tx: Tx, user_id: int, fields: dict[str, Any]) -> dict[str, Any]:
    """`fields`: system_prompt, settings, each of them optional. Those that are there already stay as they are."""
    defaults = get_defaults(tx, user_id) | fields
    tx.execute("UPDATE users SET defaults = ? WHERE id = ?", (json.dumps(defaults), user_id))
    return defaults


def get_conversation(tx: Tx, user_id: int, conversation_id: int) -> Conversation:
    owned(tx, user_id, conversation_id)
    return _conversation(
        tx.execute(f"SELECT {_CONVERSATION} FROM conversations c WHERE c.id = ?", (conversation_id,)).fetchone()
    )


# Conversations in which a filter looks first: what matches often is found there, and what does not by the index.
_NEWEST = 4000


def list_conversations(tx: Tx, user_id: int, /, *args: Any, **filters: Any) -> list[Conversation]:
    """The conversations that `find_conversations` finds."""
    return get_conversations(tx, find_conversations(tx, user_id, *args, **filters))


def get_conversations(tx: Tx, ids: list[int]) -> list[Conversation]:
    """The conversations with these ids in this order. Ids that no longer exist are left out."""
    select = f"SELECT {_CONVERSATION} FROM json_each(?) j CROSS JOIN conversations c ON c.id = j.value ORDER BY j.key"
    return [_conversation(row) for row in tx.execute(select, (json.dumps(ids),))]


def find_conversations(
    tx: Tx,
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
        last = owned(tx, user_id, before, deleted)
        where += f" AND (c.{order}, c.id) < (:at, :before)"
        values |= {"at": last[order], "before": before}
    sorted_ = f"ORDER BY c.{order} DESC, c.id DESC LIMIT"
    found = f"SELECT c.id FROM conversations c WHERE {where} {sorted_} :limit"
    if 0 < len(values["key"]) < 3:
        found = f"SELECT c.id FROM conversations c WHERE {where} AND instr(c.title_key, :key) {sorted_} :limit"
    elif q:
        newest = f"SELECT c.id, c.title_key FROM conversations c WHERE {where} {sorted_} {_NEWEST}"
        near = f"SELECT id FROM ({newest}) WHERE instr(title_key, :key) LIMIT :limit"
        ids = [row[0] for row in tx.execute(near, values)] if limit >= 0 else []
        if len(ids) == limit:
            return ids
        values["glob"] = "*" + "".join(f"[{c}]" if c in "*?[" else c for c in values["key"]) + "*"
        indexed = "(SELECT rowid FROM title_letters WHERE title_key GLOB :glob) t CROSS JOIN conversations c ON c.id = t.rowid"
        found = f"SELECT c.id FROM {indexed} WHERE {where} {sorted_} :limit"
    return [row[0] for row in tx.execute(found, values)]


def set_conversation(tx: Tx, user_id: int, conversation_id: int, fields: dict[str, Any]) -> None:
    """Change what `fields` names (see add_conversation). A title given here is a person's: it follows the first message no more."""
    row = owned(tx, user_id, conversation_id)
    if fields.get("title") is not None:
        _set_title(tx, row, fields["title"])
        tx.execute("UPDATE conversations SET named = 1 WHERE id = ?", (conversation_id,))
    for column in ("system_prompt", "pinned", "provider_id", "model"):
        if column in fields:
            tx.execute(f"UPDATE conversations SET {column} = ? WHERE id = ?", (fields[column], conversation_id))
    if "settings" in fields:
        tx.execute(
            "UPDATE conversations SET settings = ? WHERE id = ?", (json.dumps(fields["settings"]), conversation_id)
        )


def _set_title(tx: Tx, row: sqlite3.Row, title: str) -> None:
    search.unindex_title(tx, row)
    tx.execute("UPDATE conversations SET title = ?, title_key = ? WHERE id = ?", (title, title_key(title), row["id"]))
    search.index_title(tx, row["user_id"], row["id"], title, title_key(title))


def delete_conversation(tx: Tx, user_id: int, conversation_id: int) -> None:
    """To the bin."""
    owned(tx, user_id, conversation_id)
    tx.execute("UPDATE conversations SET deleted_at = ? WHERE id = ?", (now(), conversation_id))


def restore_conversation(tx: Tx, user_id: int, conversation_id: int) -> Conversation:
    owned(tx, user_id, conversation_id, deleted=True)
    tx.execute("UPDATE conversations SET deleted_at = NULL WHERE id = ?", (conversation_id,))
    return get_conversation(tx, user_id, conversation_id)


# ---- removal for good: a conversation is hidden in one transaction, then removed in many short ones

_HIDE = "UPDATE conversations SET hidden = 1, source = NULL, active_message_id = NULL WHERE"  # its source may be imported again


def hide_conversation(tx: Tx, user_id: int, conversation_id: int) -> None:
    """Hide a conversation, in the bin or not, for `remove_hidden`."""
    try:
        owned(tx, user_id, conversation_id)
    except NotFound:
        owned(tx, user_id, conversation_id, deleted=True)
    tx.execute(f"{_HIDE} id = ?", (conversation_id,))


def hide_expired(tx: Tx) -> None:
    """Hide the conversations that have been in the bin for BIN_DAYS."""
    tx.execute(f"{_HIDE} deleted_at <= ? AND hidden = 0", (ago(days=BIN_DAYS),))


def list_hidden(tx: Tx, user_id: int | None = None) -> list[int]:
    """Return the ids of the user's hidden conversations, or of all users'."""
    rows = tx.execute("SELECT id FROM conversations WHERE hidden = 1 AND user_id = coalesce(?, user_id)", (user_id,))
    return [row[0] for row in rows]


async def remove_hidden(database: Database, conversation_ids: Iterable[int]) -> None:
    """Remove hidden conversations in transactions of about PART_SECONDS each."""
    for conversation_id in conversation_ids:
        ids = await database.read(_newest_first, conversation_id)
        while ids:
            ids = await database.write_part(remove_messages, ids)
        await database.write_part(_remove_conversation, conversation_id)


def _newest_first(tx: Tx, conversation_id: int) -> list[int]:
    rows = tx.execute("SELECT id FROM messages WHERE conversation_id = ? ORDER BY id DESC", (conversation_id,))
    return [row[0] for row in rows]


def remove_messages(tx: Tx, ids: list[int]) -> list[int]:
    """Remove messages of one user for PART_SECONDS, in this order: children before parents. Return the ids that remain to be done.

    A message that is an active leaf or that another one follows stays.
    """
    end, done, size, user_id = time.monotonic() + PART_SECONDS, 0, 0, None
    for message_id in ids:
        row = tx.execute(
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
            search.unindex_message(tx, user_id, row)
            tx.execute("DELETE FROM messages WHERE id = ?", (message_id,))
        done += 1
        if time.monotonic() > end:
            break
    if user_id is not None:
        count_stored(tx, user_id, -size)
    return ids[done:]


def _remove_conversation(tx: Tx, conversation_id: int) -> None:
    row = tx.execute("SELECT * FROM conversations WHERE id = ? AND hidden = 1", (conversation_id,)).fetchone()
    if row is not None:
        search.unindex_title(tx, row)
        tx.execute("DELETE FROM conversations WHERE id = ?", (conversation_id,))


def count_stored(tx: Tx, user_id: int, size: int, limit: int = 0) -> None:
    """Add to the bytes that the user's messages take. Raises QuotaExceeded when there is a limit and they are more."""
    row = tx.execute(
        "UPDATE users SET stored_bytes = stored_bytes + ? WHERE id = ? RETURNING stored_bytes", (size, user_id)
    ).fetchall()
    if limit and row[0][0] > limit:
        raise QuotaExceeded(row[0][0], limit)


# ---------------------------------------------------------------------------------------------------- messages

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
    tx: Tx, user_id: int, conversation_id: int, limit: int = -1, before: int | None = None
) -> list[Message]:
    """The active path, oldest first: its last `limit` messages, or the last before message `before`."""
    leaf = owned(tx, user_id, conversation_id)["active_message_id"]
    if before is not None:
        leaf = _message_of(tx, conversation_id, before)["parent_id"]
    return [_message(row) for row in tx.execute(_PATH + _MESSAGE, {"leaf": leaf, "limit": limit})]


def _message_of(tx: Tx, conversation_id: int, message_id: int) -> sqlite3.Row:
    row: sqlite3.Row | None = tx.execute(
        "SELECT * FROM messages WHERE id = ? AND conversation_id = ?", (message_id, conversation_id)
    ).fetchone()
    if row is None:
        raise NotFound("message")
    return row


def add_message(
    tx: Tx,
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
    conversation = owned(tx, user_id, conversation_id)
    if client_id is not None:
        known = tx.execute(
            "SELECT id FROM messages WHERE conversation_id = ? AND client_id = ?", (conversation_id, client_id)
        ).fetchone()
        if known:
            return int(known[0])
    if parent_id is UNSET:
        parent_id = conversation["active_message_id"]
    elif parent_id is not None:
        _message_of(tx, conversation_id, parent_id)
    moment = now()
    message_id = insert(
        tx,
        "INSERT INTO messages (conversation_id, parent_id, role, content, status, client_id, created_at)"
        " VALUES (?, ?, 'user', ?, 'complete', ?, ?)",
        (conversation_id, parent_id, content, client_id, moment),
    )
    for position, image in enumerate(images):
        add_image(tx, message_id, position, image)
    count_stored(tx, user_id, len(content.encode()) + sum(len(image.data) for image in images), max_bytes)
    tx.execute(
        "UPDATE conversations SET active_message_id = ?, updated_at = ? WHERE id = ?",
        (message_id, moment, conversation_id),
    )
    search.index_message(tx, user_id, message_id, content)
    if parent_id is None and not conversation["named"]:
        _set_title(tx, conversation, title_from(content))
    return message_id


def set_active(tx: Tx, user_id: int, conversation_id: int, message_id: int) -> int:
    """Make the path through this message the active one, on to the newest message below it. Returns the leaf's id."""
    owned(tx, user_id, conversation_id)
    _message_of(tx, conversation_id, message_id)
    leaf = message_id
    newest_child = "SELECT max(id) FROM messages WHERE conversation_id = ? AND parent_id = ?"
    while child := tx.execute(newest_child, (conversation_id, leaf)).fetchone()[0]:
        leaf = child
    tx.execute("UPDATE conversations SET active_message_id = ? WHERE id = ?", (leaf, conversation_id))
    return leaf


def add_image(tx: Tx, message_id: int, position: int, image: Image) -> None:
    tx.execute(
        "INSERT INTO images (message_id, position, media_type, data) VALUES (?, ?, ?, ?)",
        (message_id, position, image.media_type, image.data),
    )


def get_image(tx: Tx, user_id: int, image_id: int) -> Image:
    row = tx.execute(
        "SELECT m.conversation_id, i.media_type, i.data FROM images i JOIN messages m ON m.id = i.message_id WHERE i.id = ?",
        (image_id,),
    ).fetchone()
    try:
        owned(tx, user_id, row[0] if row else 0)
    except NotFound:
        raise NotFound("image") from None
    return Image(row[1], row[2])


# ---------------------------------------------------------------------------------------------------- generations


def begin_answer(
    tx: Tx,
    user_id: int,
    conversation_id: int,
    wanted: Wanted,
    providers: Collection[str],
    fallback: tuple[str, str] | None = None,
) -> Begun | Found | None:
    """Answer the last question of the active path, or the one wanted; unless it is a retry, find the answer that it has or that is
    being written.

    `fallback` is the provider and model for a conversation that has had none. None: it is needed, and was not given.
    """
    conversation = owned(tx, user_id, conversation_id)
    leaf, question = _question(tx, conversation, wanted.message_id)
    running = tx.execute(
        "SELECT m.id, m.parent_id, m.status, g.id AS generation_id, g.provider_id, g.model FROM messages m"
        " JOIN generations g ON g.message_id = m.id WHERE m.conversation_id = ? AND m.status = 'generating'",
        (conversation_id,),
    ).fetchone()
    if running:
        if wanted.retry or running["parent_id"] != question["id"] or _another(running, wanted):
            raise GenerationActive
        return Found(running["generation_id"], running["id"])
    if not wanted.retry and leaf["role"] == "assistant" and leaf["status"] == "complete":
        recorded = _recorded(tx, leaf)
        if _another(recorded, wanted):
            raise AlreadyAnswered
        return Found(recorded["id"], leaf["id"])
    chosen = _choose(conversation, wanted, providers, fallback)
    if chosen is None:
        return None
    params = json.loads(conversation["settings"]) | wanted.params
    generation_id, message_id = _add_answer(tx, conversation, question["id"], *chosen, params)
    return Begun(generation_id, message_id, *chosen, params, get_prompt(tx, question["id"]))


def _question(tx: Tx, conversation: sqlite3.Row, message_id: int | None) -> tuple[sqlite3.Row, sqlite3.Row]:
    """This message, or the active leaf, and the question that it is or that it answers."""
    row_at = "SELECT * FROM messages WHERE id = ?"
    if message_id is None:
        message = tx.execute(row_at, (conversation["active_message_id"],)).fetchone()
    else:
        message = _message_of(tx, conversation["id"], message_id)
    row = message
    while row is not None and row["role"] != "user":
        row = tx.execute(row_at, (row["parent_id"],)).fetchone()
    if row is None:
        raise NoUserMessage
    return message, row


def _another(generation: sqlite3.Row, wanted: Wanted) -> bool:
    """Whether somebody else is asked for than this generation was asked of."""
    asked = generation["provider_id"], generation["model"]
    return (wanted.provider_id or asked[0], wanted.model or asked[1]) != asked


def _choose(
    conversation: sqlite3.Row, wanted: Wanted, providers: Collection[str], fallback: tuple[str, str] | None
) -> tuple[str, str] | None:
    """Provider and model: as asked for, else as last in this conversation, else the fallback."""
    provider_id, model = wanted.provider_id, wanted.model
    if provider_id is None and (model is None or fallback is None) and conversation["provider_id"] in providers:
        provider_id = conversation["provider_id"]
    if model is None and provider_id == conversation["provider_id"]:
        model = conversation["model"]
    if fallback and (provider_id is None or model is None):
        provider_id, model = provider_id or fallback[0], model or fallback[1]
    return (provider_id, model) if provider_id and model else None


def _add_answer(
    tx: Tx, conversation: sqlite3.Row, question_id: int, provider_id: str, model: str, params: dict[str, Any]
) -> tuple[str, int]:
    moment = now()
    message_id = insert(
        tx,
        "INSERT INTO messages (conversation_id, parent_id, role, content, status, provider_id, model, created_at)"
        " VALUES (?, ?, 'assistant', '', 'generating', ?, ?, ?)",
        (conversation["id"], question_id, provider_id, model, moment),
    )
    generation_id = str(uuid.uuid4())
    tx.execute(
        "INSERT INTO generations (id, message_id, provider_id, model, params) VALUES (?, ?, ?, ?, ?)",
        (generation_id, message_id, provider_id, model, json.dumps(params)),
    )
    tx.execute(
        "UPDATE conversations SET active_message_id = ?, updated_at = ?, provider_id = ?, model = ? WHERE id = ?",
        (message_id, moment, provider_id, model, conversation["id"]),
    )
    return generation_id, message_id


def _recorded(tx: Tx, message: sqlite3.Row) -> sqlite3.Row:
    """The generation of a complete answer. An imported answer gets one here, so that it can be replayed like any other."""
    select = "SELECT * FROM generations WHERE message_id = ?"
    row: sqlite3.Row | None = tx.execute(select, (message["id"],)).fetchone()
    if row is None:
        lengths = [length for length in (-len(message["reasoning"]), len(message["content"])) if length]
        done = {"event": "done", "data": {"status": "ok", "message_id": message["id"]}}
        tx.execute(
            "INSERT INTO generations (id, message_id, provider_id, model, log) VALUES (?, ?, ?, ?, ?)",
            (
                str(uuid.uuid4()),
                message["id"],
                message["provider_id"] or "",
                message["model"] or "",
                json.dumps([*lengths, done]),
            ),
        )
        row = tx.execute(select, (message["id"],)).fetchone()
    assert row is not None
    return row


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


def get_prompt(tx: Tx, question_id: int) -> Prompt:
    """Return the path from the first message to this question, with the newest images of its user messages.

    Servers accept no images in answers, so those of imported answers are not read. Raises NotFound.
    """
    conversation = tx.execute(
        "SELECT c.system_prompt FROM messages m JOIN conversations c ON c.id = m.conversation_id WHERE m.id = ?",
        (question_id,),
    ).fetchone()
    if conversation is None:  # purged meanwhile
        raise NotFound("conversation")
    rows = tx.execute(
        _PATH + "SELECT m.id, m.role, m.content, json_extract(m.token_usage, '$.total_tokens') AS total_tokens,"
        " coalesce(json_extract(m.stats, '$.omitted_messages'), 0) AS omitted,"
        " json_extract(m.stats, '$.context_length') AS context_length,"
        " m.role = 'user' AND EXISTS (SELECT 1 FROM images i WHERE i.message_id = m.id) AS illustrated"
        " FROM path JOIN messages m ON m.id = path.id ORDER BY path.depth DESC",
        {"leaf": question_id, "limit": -1},
    ).fetchall()
    sizes = "SELECT id, length(data) FROM images WHERE message_id = ? ORDER BY position"
    stored = {row["id"]: tx.execute(sizes, (row["id"],)).fetchall() for row in rows if row["illustrated"]}
    sent = _newest_images(stored.values())
    select = "SELECT media_type, data FROM images WHERE id = ?"
    images = {
        message_id: [Image(*tx.execute(select, (image_id,)).fetchone()) for image_id, _ in found if image_id in sent]
        for message_id, found in stored.items()
    }
    return Prompt(
        conversation["system_prompt"],
        [
            Turn(
                role=row["role"],
                content=row["content"],
                images=images.get(row["id"], []),
                omitted_images=len(stored.get(row["id"], ())) - len(images.get(row["id"], ())),
                total_tokens=row["total_tokens"],
                omitted_messages=row["omitted"],
                context_length=row["context_length"],
            )
            for row in rows
        ],
    )


def add_parts(tx: Tx, parts: Iterable[SavedPart]) -> None:
    """Save them. One that begins where another did has that one's text too: it takes its place."""
    tx.executemany(
        "INSERT OR REPLACE INTO generation_parts (generation_id, first_event, content, reasoning, log)"
        " SELECT ?1, ?2, ?3, ?4, ?5 WHERE EXISTS (SELECT 1 FROM generations WHERE id = ?1)",  # a purge may have come first
        parts,
    )


def list_unfinished(tx: Tx) -> list[tuple[str, Recording]]:
    """The generations that a stopped server left behind, with what was saved of them."""
    found = []
    for generation_id, message_id in tx.execute(
        "SELECT g.id, m.id FROM messages m JOIN generations g ON g.message_id = m.id WHERE m.status = 'generating'"
    ).fetchall():
        parts = tx.execute(
            "SELECT content, reasoning, log FROM generation_parts WHERE generation_id = ? ORDER BY first_event",
            (generation_id,),
        ).fetchall()
        log = [event for part in parts for event in json.loads(part["log"])]
        content, reasoning = ("".join(part[key] for part in parts) for key in ("content", "reasoning"))
        found.append((generation_id, Recording(message_id, "generating", content, reasoning, json.dumps(log))))
    return found


def finish_generation(
    tx: Tx,
    generation_id: str,
    recording: Recording,
    *,
    model: str | None = None,
    token_usage: dict[str, int] | None = None,
    stats: dict[str, Any] | None = None,
    error: dict[str, str] | None = None,
) -> None:
    """The end of a generation, all of it at once. Does nothing if its message is gone or has ended already."""
    row = tx.execute(
        "UPDATE messages SET content = ?, reasoning = ?, status = ?, model = coalesce(?, model), token_usage = ?, stats = ?, error = ?"
        " WHERE id = ? AND status = 'generating' RETURNING conversation_id",
        (
            recording.content,
            recording.reasoning,
            recording.status,
            model,
            *(json.dumps(value) if value is not None else None for value in (token_usage, stats, error)),
            recording.message_id,
        ),
    ).fetchall()
    if not row:
        return
    tx.execute("UPDATE generations SET log = ? WHERE id = ?", (recording.log, generation_id))
    tx.execute("DELETE FROM generation_parts WHERE generation_id = ?", (generation_id,))
    tx.execute("UPDATE conversations SET updated_at = max(updated_at, ?) WHERE id = ?", (now(), row[0][0]))
    owner = tx.execute("SELECT user_id FROM conversations WHERE id = ?", (row[0][0],)).fetchone()[0]
    search.index_message(tx, owner, recording.message_id, recording.content)
    count_stored(tx, owner, len(recording.content.encode()) + len(recording.reasoning.encode()))


def get_recording(tx: Tx, user_id: int, generation_id: str) -> Recording:
    row = tx.execute(
        "SELECT m.conversation_id, m.id, m.status, m.content, m.reasoning, g.log"
        " FROM generations g JOIN messages m ON m.id = g.message_id WHERE g.id = ?",
        (generation_id,),
    ).fetchone()
    try:
        owned(tx, user_id, row[0] if row else 0)
    except NotFound:
        raise NotFound("generation") from None
    return Recording(*row[1:])


def list_usage(tx: Tx, user_id: int) -> list[dict[str, Any]]:
    """Return answers by day (UTC) and model, newest first. The speed is that of the answers that have one, as each of them shows it."""
    rows = tx.execute(
        """
        WITH answers AS (
            SELECT substr(m.created_at, 1, 10) AS day, m.model,
                json_extract(m.token_usage, '$.prompt_tokens') AS prompt_tokens,
                json_extract(m.token_usage, '$.completion_tokens') AS completion_tokens,
                json_extract(m.stats, '$.total_ms') AS total_ms,
                coalesce(
                    json_extract(m.stats, '$.generation_ms'), -- missing in answers of older versions and of other programs
                    (json_extract(m.token_usage, '$.completion_tokens') - 1) * 1000.0 / json_extract(m.stats, '$.tokens_per_second')
                ) AS generation_ms
            FROM conversations c JOIN messages m ON m.conversation_id = c.id
            WHERE c.user_id = ? AND c.hidden = 0 AND m.role = 'assistant' AND m.status <> 'generating'
        )
        SELECT day, model, count(*) AS answers,
            coalesce(sum(prompt_tokens), 0) AS prompt_tokens,
            coalesce(sum(completion_tokens), 0) AS completion_tokens,
            round(coalesce(sum(total_ms), 0) / 1000.0, 3) AS seconds,
            round(sum(completion_tokens - 1) FILTER (WHERE generation_ms > 0) * 1000.0
                / sum(generation_ms) FILTER (WHERE completion_tokens > 1), 2) AS tokens_per_second
        FROM answers GROUP BY day, model ORDER BY day DESC, model
        """,
        (user_id,),
    )
    return [dict(row) for row in rows]


def optimize(tx: Tx) -> None:
    """Let SQLite look whether its statistics want renewing. Cheap when they do not."""
    tx.execute("PRAGMA analysis_limit = 400")
    tx.execute("PRAGMA optimize")
