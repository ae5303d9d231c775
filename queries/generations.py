"""Queries of answers: how one begins, what is sent to the model, how it is saved."""

import json
import sqlite3
import uuid
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

from msgspec import Struct

from ..db import Connection, insert, now
from ..errors import AlreadyAnswered, GenerationActive, NotFound, NoUserMessage
from . import search
from .conversations import add_stored_bytes, owned
from .messages import PATH, Image, get_message_row

SENT_IMAGES = 32  # of a prompt: more fill the context of a local model, at several hundred tokens each
SENT_IMAGE_BYTES = (
    32 * 1024 * 1024
)  # more than one request can add, so that the images of a new message are always sent


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
    question_id: int
    history: Prompt | None  # the path to the question; None while the answer waits for its turn


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


def begin_answer(
    conn: Connection,
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
    conversation = owned(conn, user_id, conversation_id)
    leaf, question = _question(conn, conversation, wanted.message_id)
    running = conn.execute(
        "SELECT m.id, m.parent_id, m.status, g.id AS generation_id, g.provider_id, g.model FROM messages m"
        " JOIN generations g ON g.message_id = m.id WHERE m.conversation_id = ? AND m.status = 'generating'",
        (conversation_id,),
    ).fetchone()
    if running:
        if wanted.retry or running["parent_id"] != question["id"] or _another(running, wanted):
            raise GenerationActive
        return Found(running["generation_id"], running["id"])
    if not wanted.retry and leaf["role"] == "assistant" and leaf["status"] == "complete":
        recorded = _recorded(conn, leaf)
        if _another(recorded, wanted):
            raise AlreadyAnswered
        return Found(recorded["id"], leaf["id"])
    chosen = _choose(conversation, wanted, providers, fallback)
    if chosen is None:
        return None
    params = json.loads(conversation["settings"]) | wanted.params
    generation_id, message_id = _add_answer(conn, conversation, question["id"], *chosen, params)
    return Begun(generation_id, message_id, *chosen, params, question["id"], get_prompt(conn, question["id"]))


def _question(conn: Connection, conversation: sqlite3.Row, message_id: int | None) -> tuple[sqlite3.Row, sqlite3.Row]:
    """This message, or the active leaf, and the question that it is or that it answers."""
    row_at = "SELECT * FROM messages WHERE id = ?"
    if message_id is None:
        message = conn.execute(row_at, (conversation["active_message_id"],)).fetchone()
    else:
        message = get_message_row(conn, conversation["id"], message_id)
    row = message
    while row is not None and row["role"] != "user":
        row = conn.execute(row_at, (row["parent_id"],)).fetchone()
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
    conn: Connection, conversation: sqlite3.Row, question_id: int, provider_id: str, model: str, params: dict[str, Any]
) -> tuple[str, int]:
    moment = now()
    message_id = insert(
        conn,
        "INSERT INTO messages (conversation_id, parent_id, role, content, status, provider_id, model, created_at)"
        " VALUES (?, ?, 'assistant', '', 'generating', ?, ?, ?)",
        (conversation["id"], question_id, provider_id, model, moment),
    )
    generation_id = str(uuid.uuid4())
    conn.execute(
        "INSERT INTO generations (id, message_id, provider_id, model, params) VALUES (?, ?, ?, ?, ?)",
        (generation_id, message_id, provider_id, model, json.dumps(params)),
    )
    conn.execute(
        "UPDATE conversations SET active_message_id = ?, updated_at = ?, provider_id = ?, model = ? WHERE id = ?",
        (message_id, moment, provider_id, model, conversation["id"]),
    )
    return generation_id, message_id


def _recorded(conn: Connection, message: sqlite3.Row) -> sqlite3.Row:
    """The generation of a complete answer. An imported answer gets one here, so that it can be replayed like any other."""
    select = "SELECT * FROM generations WHERE message_id = ?"
    row: sqlite3.Row | None = conn.execute(select, (message["id"],)).fetchone()
    if row is None:
        lengths = [length for length in (-len(message["reasoning"]), len(message["content"])) if length]
        done = {"event": "done", "data": {"status": "ok", "message_id": message["id"]}}
        conn.execute(
            "INSERT INTO generations (id, message_id, provider_id, model, log) VALUES (?, ?, ?, ?, ?)",
            (
                str(uuid.uuid4()),
                message["id"],
                message["provider_id"] or "",
                message["model"] or "",
                json.dumps([*lengths, done]),
            ),
        )
        row = conn.execute(select, (message["id"],)).fetchone()
    assert row is not None
    return row


def get_prompt(conn: Connection, question_id: int) -> Prompt:
    """Return the path from the first message to this question, with the newest images of its user messages.

    Servers accept no images in answers, so those of imported answers are not read. Raises NotFound.
    """
    conversation = conn.execute(
        "SELECT c.system_prompt FROM messages m JOIN conversations c ON c.id = m.conversation_id WHERE m.id = ?",
        (question_id,),
    ).fetchone()
    if conversation is None:  # purged meanwhile
        raise NotFound("conversation")
    rows = conn.execute(
        PATH + "SELECT m.id, m.role, m.content, json_extract(m.token_usage, '$.total_tokens') AS total_tokens,"
        " coalesce(json_extract(m.stats, '$.omitted_messages'), 0) AS omitted,"
        " json_extract(m.stats, '$.context_length') AS context_length,"
        " m.role = 'user' AND EXISTS (SELECT 1 FROM images i WHERE i.message_id = m.id) AS illustrated"
        " FROM path JOIN messages m ON m.id = path.id ORDER BY path.depth DESC",
        {"leaf": question_id, "limit": -1},
    ).fetchall()
    sizes = "SELECT id, length(data) FROM images WHERE message_id = ? ORDER BY position"
    stored = {row["id"]: conn.execute(sizes, (row["id"],)).fetchall() for row in rows if row["illustrated"]}
    sent = _choose_images(stored.values())
    select = "SELECT media_type, data FROM images WHERE id = ?"
    images = {
        message_id: [Image(*conn.execute(select, (image_id,)).fetchone()) for image_id, _ in found if image_id in sent]
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


def _choose_images(messages: Iterable[Sequence[tuple[int, int]]]) -> set[int]:
    """Return the ids of the images to send. `messages`: (id, bytes) of the images of each message of a path, oldest first.

    Above a limit the oldest images are left out until half of it is free, so that the next prompts begin with the same bytes, which
    the model server has cached. A message that is above a limit by itself keeps its last images.
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


def add_parts(conn: Connection, parts: Iterable[SavedPart]) -> None:
    """Save them. One that begins where another did has that one's text too: it takes its place."""
    conn.executemany(
        "INSERT OR REPLACE INTO generation_parts (generation_id, first_event, content, reasoning, log)"
        " SELECT ?1, ?2, ?3, ?4, ?5 WHERE EXISTS (SELECT 1 FROM generations WHERE id = ?1)",  # a purge may have come first
        parts,
    )


def list_unfinished(conn: Connection) -> list[tuple[str, Recording]]:
    """The generations that a stopped server left behind, with what was saved of them."""
    found = []
    for generation_id, message_id in conn.execute(
        "SELECT g.id, m.id FROM messages m JOIN generations g ON g.message_id = m.id WHERE m.status = 'generating'"
    ).fetchall():
        parts = conn.execute(
            "SELECT content, reasoning, log FROM generation_parts WHERE generation_id = ? ORDER BY first_event",
            (generation_id,),
        ).fetchall()
        log = [event for part in parts for event in json.loads(part["log"])]
        content, reasoning = ("".join(part[key] for part in parts) for key in ("content", "reasoning"))
        found.append((generation_id, Recording(message_id, "generating", content, reasoning, json.dumps(log))))
    return found


def finish_generation(
    conn: Connection,
    generation_id: str,
    recording: Recording,
    *,
    model: str | None = None,
    token_usage: dict[str, int] | None = None,
    stats: dict[str, Any] | None = None,
    error: dict[str, str] | None = None,
) -> None:
    """The end of a generation, all of it at once. Does nothing if its message is gone or has ended already."""
    row = conn.execute(
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
    conn.execute("UPDATE generations SET log = ? WHERE id = ?", (recording.log, generation_id))
    conn.execute("DELETE FROM generation_parts WHERE generation_id = ?", (generation_id,))
    conn.execute("UPDATE conversations SET updated_at = max(updated_at, ?) WHERE id = ?", (now(), row[0][0]))
    owner = conn.execute("SELECT user_id FROM conversations WHERE id = ?", (row[0][0],)).fetchone()[0]
    search.index_message(conn, owner, recording.message_id, recording.content)
    add_stored_bytes(conn, owner, len(recording.content.encode()) + len(recording.reasoning.encode()))


def get_recording(conn: Connection, user_id: int, generation_id: str) -> Recording:
    row = conn.execute(
        "SELECT m.conversation_id, m.id, m.status, m.content, m.reasoning, g.log"
        " FROM generations g JOIN messages m ON m.id = g.message_id WHERE g.id = ?",
        (generation_id,),
    ).fetchone()
    try:
        owned(conn, user_id, row[0] if row else 0)
    except NotFound:
        raise NotFound("generation") from None
    return Recording(*row[1:])


def list_usage(conn: Connection, user_id: int) -> list[dict[str, Any]]:
    """Return answers by day (UTC) and model, newest first. The speed is that of the answers that have one, as each of them shows it."""
    rows = conn.execute(
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
