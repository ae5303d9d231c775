"""Queries of messages and their versions."""

import json
import sqlite3
from collections.abc import Collection, Sequence
from typing import Annotated, Any, Literal, TypedDict, cast

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from ..db import Connection, fetch, insert_row, now, scalar, scalars
from ..errors import GenerationActive, Invalid, NotFound
from . import attachments, search
from .conversations import (
    Conversation,
    add_conversation,
    get_conversation,
    owned,
    set_title,
    title_from,
)
from .documents import Document, list_documents
from .quota import add_stored_bytes
from .types import (
    AnswerError,
    AnswerStats,
    Attachment,
    Citation,
    Image,
    ImageType,
    TokenUsage,
    Tools,
    from_row,
    stored,
)


class Versions(TypedDict):
    """A message and its siblings: the position of the message, and of each the id, the model, and whether it was edited."""

    ids: list[int]
    index: int
    models: list[str | None]
    edited: list[bool]


class ImageReference(TypedDict):
    id: int
    media_type: ImageType


class Message(Struct):
    """A message of the active path. All have the same keys, except that the contract shows `token_usage` in answers only."""

    id: int
    role: Literal["user", "assistant"]
    content: str
    created_at: str
    parent_id: int | None
    status: Literal["complete", "generating", "canceled", "interrupted", "error"]
    versions: Versions
    provider_id: str | None
    model: str | None
    generation_id: str | None
    reasoning: str
    stats: Annotated[Raw, stored(AnswerStats)] | None
    error: Annotated[Raw, stored(AnswerError)] | None
    images: list[ImageReference]
    documents: list[Attachment]
    edited: bool
    token_usage: Annotated[Raw, stored(TokenUsage)] | None | UnsetType = UNSET
    citations: list[Citation] | None = None  # of an answer that was compared with documents
    tools: Annotated[Raw, stored(Tools)] | UnsetType = UNSET  # of a program that uses /v1
    blocks: list[Any] | UnsetType = UNSET  # the rendered content, for a request that asks for it


def begin_conversation(
    conn: Connection,
    user_id: int,
    fields: dict[str, Any],
    content: str,
    client_id: str | None,
    images: Collection[Image],
    max_bytes: int = 0,
    attachment_ids: Sequence[int] = (),
) -> Conversation:
    """Add a conversation with its first message, or return the recent one whose first message has this `client_id`.

    Raises as `add_message`.
    """
    known = (
        "SELECT m.conversation_id FROM (SELECT id FROM conversations WHERE user_id = ? AND deleted_at IS NULL AND hidden = 0"
        " ORDER BY updated_at DESC LIMIT 20) c JOIN messages m ON m.conversation_id = c.id AND m.client_id = ?"
    )
    conversation_id = scalar(conn, known, (user_id, client_id))
    if conversation_id is None:
        conversation_id = add_conversation(conn, user_id, fields, max_bytes).id
        add_message(conn, user_id, conversation_id, content, UNSET, client_id, images, max_bytes, attachment_ids)
    return get_conversation(conn, user_id, conversation_id)


# The path from message :leaf to the first message, at most :limit messages. Subqueries and not a join: for a join SQLite may read
# all messages to build a Bloom filter. The path ends with a NULL, the parent of the first message.
PATH = """
WITH RECURSIVE path (id, depth) AS (
    SELECT :leaf, 0 WHERE :leaf IS NOT NULL
    UNION ALL
    SELECT (SELECT m.parent_id FROM messages m WHERE m.id = path.id), path.depth + 1 FROM path WHERE path.id IS NOT NULL
    LIMIT :limit
)
"""
_ATTACHMENT = ", ".join(f"'{name}', {name}" for name in Attachment.__struct_fields__)
_SELECT = f"""
SELECT m.id, m.role, m.content, m.created_at, m.parent_id, m.status, m.token_usage, m.provider_id, m.model, g.id AS generation_id,
    m.reasoning, m.stats, m.error, m.edited, m.tools, m.citations,
    (SELECT json_group_array(json_array(id, model, edited)) FROM (
        SELECT s.id, s.model, s.edited FROM messages s
        WHERE s.conversation_id = m.conversation_id AND s.parent_id IS m.parent_id ORDER BY s.id
    )) AS siblings,
    (SELECT json_group_array(json_object({_ATTACHMENT})) FROM (
        SELECT {attachments.COLUMNS.format(name="l.name")} FROM message_attachments l JOIN attachments a ON a.id = l.attachment_id
        WHERE l.message_id = m.id ORDER BY l.position
    )) AS attachments
FROM path JOIN messages m ON m.id = path.id LEFT JOIN generations g ON g.message_id = m.id
ORDER BY path.depth DESC
"""


_decode_citations = msgspec.json.Decoder(list[Citation]).decode


def _message(row: sqlite3.Row) -> Message:
    ids, models, edited = (list(column) for column in zip(*json.loads(row["siblings"]), strict=True))
    files = [Attachment(**one) for one in json.loads(row["attachments"])]
    usage, stats, error = (Raw(row[name].encode()) if row[name] else None for name in ("token_usage", "stats", "error"))
    return from_row(
        Message,
        row,
        versions={"ids": ids, "index": ids.index(row["id"]), "models": models, "edited": [*map(bool, edited)]},
        stats=stats,
        error=error,
        images=[ImageReference(id=one.id, media_type=cast(ImageType, one.media_type)) for one in files if one.is_image],
        documents=[one for one in files if not one.is_image],
        edited=bool(row["edited"]),
        token_usage=usage if row["role"] == "assistant" else UNSET,
        citations=_decode_citations(row["citations"]) if row["citations"] else None,
        tools=Raw(row["tools"].encode()) if row["tools"] else UNSET,
        blocks=UNSET,
    )


def list_messages(
    conn: Connection, user_id: int, conversation_id: int, limit: int = -1, before: int | None = None
) -> list[Message]:
    """Return the last `limit` messages of the active path, oldest first; with `before`, of the path above that message."""
    leaf = owned(conn, user_id, conversation_id)["active_message_id"]
    if before is not None:
        leaf = get_message_row(conn, conversation_id, before)["parent_id"]
    return [_message(row) for row in conn.execute(PATH + _SELECT, {"leaf": leaf, "limit": limit})]


def get_message(conn: Connection, user_id: int, conversation_id: int, message_id: int) -> Message:
    """Return a message of any branch. Raises NotFound."""
    owned(conn, user_id, conversation_id)
    get_message_row(conn, conversation_id, message_id)
    return _message(conn.execute(PATH + _SELECT, {"leaf": message_id, "limit": 1}).fetchone())


def get_message_row(conn: Connection, conversation_id: int, message_id: int) -> sqlite3.Row:
    sql = "SELECT * FROM messages WHERE id = ? AND conversation_id = ?"
    return fetch(conn, sql, (message_id, conversation_id), NotFound("message"))


def list_path(conn: Connection, leaf_id: int) -> list[int]:
    """Return the ids of the messages of the path to this one, oldest first."""
    sql = PATH + "SELECT id FROM path WHERE id IS NOT NULL ORDER BY depth DESC"
    return scalars(conn, sql, {"leaf": leaf_id, "limit": -1})


def list_documents_above(conn: Connection, user_id: int, conversation_id: int, message_id: int) -> list[Document]:
    """Return the documents of the path that leads to a message. Raises NotFound."""
    owned(conn, user_id, conversation_id)
    get_message_row(conn, conversation_id, message_id)
    return [document for _, document in list_documents(conn, list_path(conn, message_id))]


def add_message(
    conn: Connection,
    user_id: int,
    conversation_id: int,
    content: str,
    parent_id: int | None | UnsetType = UNSET,
    client_id: str | None = None,
    images: Collection[Image] = (),
    max_bytes: int = 0,
    attachment_ids: Sequence[int] = (),
) -> int:
    """Add a question, which becomes the active leaf, and return its id. A known `client_id` returns the id of that message.

    `parent_id`: UNSET for the active leaf, None for a first message. Raises QuotaExceeded above `max_bytes` (0: no limit),
    and as `attachments.attach`.
    """
    conversation = owned(conn, user_id, conversation_id)
    if known := find_message(conn, conversation_id, client_id):
        return known
    if parent_id is UNSET:
        parent_id = conversation["active_message_id"]
    elif parent_id is not None:
        get_message_row(conn, conversation_id, parent_id)
    columns = {"parent_id": parent_id, "role": "user", "content": content, "client_id": client_id}
    message_id = insert_message(conn, user_id, conversation_id, columns, max_bytes)
    attachments.attach(conn, user_id, message_id, images, attachment_ids, max_bytes)
    if parent_id is None and not conversation["named"]:
        set_title(conn, conversation, title_from(content))
    return message_id


def find_message(conn: Connection, conversation_id: int, client_id: str | None, table: str = "messages") -> int | None:
    """Return the id of the message with this `client_id`, None for none."""
    sql = f"SELECT id FROM {table} WHERE conversation_id = ? AND client_id = ?"
    message_id: int | None = scalar(conn, sql, (conversation_id, client_id))
    return message_id


def insert_message(
    conn: Connection, user_id: int, conversation_id: int, columns: dict[str, Any], max_bytes: int = 0
) -> int:
    """Insert a complete message, which becomes the active leaf, and return its id. Raises QuotaExceeded."""
    moment = now()
    row = {"conversation_id": conversation_id, "status": "complete", "created_at": moment}
    message_id = insert_row(conn, "messages", row | columns)
    add_stored_bytes(conn, user_id, len(columns["content"].encode()), max_bytes)
    sql = "UPDATE conversations SET active_message_id = ?, updated_at = ? WHERE id = ?"
    conn.execute(sql, (message_id, moment, conversation_id))
    search.index_message(conn, user_id, message_id, columns["content"])
    return message_id


def edit_answer(
    conn: Connection,
    user_id: int,
    conversation_id: int,
    message_id: int,
    content: str,
    client_id: str | None = None,
    max_bytes: int = 0,
    citations: list[Citation] | None = None,
) -> int:
    """Add an edited text of an answer as another version, which becomes the active leaf, and return its id.

    It keeps the model and the attachments, but not the reasoning and the figures, which belong to the text that was generated.
    A known `client_id` returns the id of that message. Raises GenerationActive, Invalid for a question, and QuotaExceeded.
    """
    owned(conn, user_id, conversation_id)
    if known := find_message(conn, conversation_id, client_id):
        return known
    answer = get_message_row(conn, conversation_id, message_id)
    if answer["role"] != "assistant":
        raise Invalid("Only an answer can be edited here. To edit a question, add a message with the same parent_id.")
    refuse_while_generating(conn, conversation_id)
    columns = {name: answer[name] for name in ("parent_id", "role", "provider_id", "model")}
    columns |= {"content": content, "client_id": client_id, "edited": 1, "citations": encode_citations(citations)}
    version_id = insert_message(conn, user_id, conversation_id, columns, max_bytes)
    attachments.copy_links(conn, message_id, version_id)
    return version_id


def encode_citations(citations: list[Citation] | None) -> str | None:
    return None if citations is None else msgspec.json.encode(citations).decode()


def refuse_while_generating(conn: Connection, conversation_id: int) -> None:
    """Raise GenerationActive when an answer is generated in the conversation."""
    sql = "SELECT 1 FROM messages WHERE conversation_id = ? AND status = 'generating'"
    if scalar(conn, sql, (conversation_id,)):
        raise GenerationActive


def set_active(conn: Connection, user_id: int, conversation_id: int, message_id: int) -> int:
    """Activate the path through this message to the newest message below it. Return the id of that leaf."""
    owned(conn, user_id, conversation_id)
    get_message_row(conn, conversation_id, message_id)
    leaf = newest_leaf(conn, conversation_id, message_id)
    conn.execute("UPDATE conversations SET active_message_id = ? WHERE id = ?", (leaf, conversation_id))
    return leaf  # type: ignore[return-value]


def newest_leaf(conn: Connection, conversation_id: int, message_id: int | None) -> int | None:
    """Return the end of the path from this message, or from the newest first message, through the newest message each time."""
    leaf = message_id
    newest_child = "SELECT max(id) FROM messages WHERE conversation_id = ? AND parent_id IS ?"
    while child := scalar(conn, newest_child, (conversation_id, leaf)):
        leaf = child
    return leaf
