"""Queries of answers: begin one, save it, read it again."""

import contextlib
import hashlib
import json
import sqlite3
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

from msgspec import Struct, convert, to_builtins

from ..db import Connection, insert, now, scalar
from ..errors import AlreadyAnswered, GenerationActive, Invalid, NotFound, NoUserMessage
from . import documents, search
from .conversations import owned
from .documents import SentPages
from .messages import encode_citations, get_message_row
from .quota import add_stored_bytes
from .turns import Prompt, get_prompt
from .types import Citation

PARTS_PER_STATEMENT = 100  # SQLite takes 32,766 values


class AnswerRequest(Struct, frozen=True):
    """What a client may choose about an answer."""

    provider_id: str | None = None
    model: str | None = None
    params: dict[str, Any] = {}  # replace the conversation's settings of the same names
    retry: bool = False  # begin a new version although there is an answer
    message_id: int | None = None  # the question or one of its answers; None: the active leaf


class Earlier(Struct):
    """The part of an answer that exists before it is continued."""

    content: str
    reasoning: str
    token_usage: dict[str, int] | None
    stats: dict[str, Any]


class Job(Struct):
    """What is needed to write a new answer, or the rest of one."""

    user_id: int
    conversation_id: int
    provider_id: str
    model: str
    params: dict[str, Any]
    leaf_id: int  # the last message of the prompt: the question, or the answer that is continued
    prompt: Prompt | None  # None while the answer is queued
    begun_at: str
    earlier: Earlier | None = None  # of an answer that is continued
    token_id: int | None = None  # of the program that asked; None: the page


class Answer(Struct):
    """An answer that already exists, or a new one with its job."""

    generation_id: str
    message_id: int
    job: Job | None = None


class SentRequest(Struct):
    """What is stored of a request's body: all but its messages, and how those are built again. The hash proves the result."""

    sha256: str
    body: dict[str, Any]  # with null in place of the messages
    leaf_id: int  # of the path that was sent
    omitted: int  # oldest messages of the path
    system_prompt: str
    leaf_characters: int | None = None  # of an answer that was continued: its length then
    asks_to_continue: bool = False  # the last message was continuation.INSTRUCTION
    pages: list[SentPages] = []  # of the documents of the path; a later answer to the same question may choose others


class FoundRequest(Struct):
    """A stored request and its path; None: it was not stored, or the path's last message is gone."""

    provider_id: str | None
    sent: SentRequest | None = None
    path: Prompt | None = None
    was_passed_on: bool = False  # of a program whose conversation this is


class Recording(Struct):
    """The two texts of an answer, and the log that cuts them into events."""

    message_id: int
    status: str
    content: str
    reasoning: str
    log: str


class SavedPart(NamedTuple):
    """The events of a running answer since its last save, with their texts."""

    generation_id: str
    first_event: int
    content: str
    reasoning: str
    log: str


def begin_answer(
    conn: Connection,
    user_id: int,
    conversation_id: int,
    request: AnswerRequest,
    provider_id: str | None,
    model: str | None,
) -> Answer:
    """Return the answer to the question if it is running or complete. Else, or for a retry, begin one with this provider and model.

    Raises NoUserMessage, GenerationActive, AlreadyAnswered when the request names another model than the answer's, and Invalid
    when a new answer has no provider or model.
    """
    conversation = owned(conn, user_id, conversation_id)
    leaf, question = _question(conn, conversation, request.message_id)
    if running := running_answer(conn, conversation_id):
        if request.retry or running["parent_id"] != question["id"] or not _matches(running, request):
            raise GenerationActive
        return Answer(running["id"], running["message_id"])
    if not request.retry and leaf["role"] == "assistant" and leaf["status"] == "complete":
        generation = _generation_of(conn, leaf)
        if not _matches(generation, request):
            raise AlreadyAnswered
        return Answer(generation["id"], leaf["id"])
    return add_answer(conn, _job(conn, conversation, request, provider_id, model, question["id"]))


def begin_continuation(
    conn: Connection,
    user_id: int,
    conversation_id: int,
    request: AnswerRequest,
    provider_id: str | None,
    model: str | None,
) -> Answer:
    """Let an answer, by default the active leaf, go on with this provider and model. Return its continuation if that is running.

    Raises NotFound, GenerationActive and Invalid.
    """
    conversation = owned(conn, user_id, conversation_id)
    message_id = request.message_id or conversation["active_message_id"] or 0
    message = get_message_row(conn, conversation_id, message_id)
    if running := running_answer(conn, conversation_id):
        if running["message_id"] != message_id or not message["content"]:
            raise GenerationActive
        return Answer(running["id"], message_id)
    if message["role"] != "assistant" or not message["content"]:
        raise Invalid("message_id: only an answer with text can be continued.")
    if scalar(conn, "SELECT 1 FROM messages WHERE parent_id = ?", (message_id,)):
        raise Invalid("message_id: only the last message of a branch can be continued.")
    job = _job(conn, conversation, request, provider_id, model, message_id)
    usage, stats = (json.loads(message[name] or "null") for name in ("token_usage", "stats"))
    job.earlier = Earlier(message["content"], message["reasoning"], usage, stats or {})
    conn.execute(
        "INSERT INTO continued_generations (id, message_id, log) SELECT id, message_id, log FROM generations WHERE message_id = ?",
        (message_id,),
    )
    conn.execute("DELETE FROM generations WHERE message_id = ?", (message_id,))
    # The model stays that of the first part until the continuation has text.
    conn.execute(
        "UPDATE messages SET status = 'generating', error = NULL, citations = NULL WHERE id = ?", (message_id,)
    )
    answer = _add_generation(conn, job, message_id)
    # The next save replaces this part. After a crash before it, the text is not lost.
    log = [first_event(answer), *_lengths(message)]
    add_parts(conn, [SavedPart(answer.generation_id, 1, message["content"], message["reasoning"], json.dumps(log))])
    return answer


def _job(
    conn: Connection,
    conversation: sqlite3.Row,
    request: AnswerRequest,
    provider_id: str | None,
    model: str | None,
    leaf_id: int,
) -> Job:
    """Return the job of an answer that follows this message or continues it. Raises Invalid without a provider or a model."""
    if not provider_id or not model:
        raise Invalid("model: choose one. No model server that can be reached offers any.")
    params = json.loads(conversation["settings"]) | request.params
    prompt = get_prompt(conn, leaf_id)
    return Job(conversation["user_id"], conversation["id"], provider_id, model, params, leaf_id, prompt, now())


def first_event(answer: Answer) -> dict[str, Any]:
    """Return the first event of a new answer."""
    assert answer.job is not None
    ids = {"message_id": answer.message_id, "conversation_id": answer.job.conversation_id}
    return {"event": "ping", "data": ids | {"ts": answer.job.begun_at}}


def running_answer(conn: Connection, conversation_id: int) -> sqlite3.Row | None:
    """Return the generation that is running in a conversation, with its message_id and parent_id."""
    row: sqlite3.Row | None = conn.execute(
        "SELECT m.id AS message_id, m.parent_id, g.* FROM messages m JOIN generations g ON g.message_id = m.id"
        " WHERE m.conversation_id = ? AND m.status = 'generating'",
        (conversation_id,),
    ).fetchone()
    return row


def _question(conn: Connection, conversation: sqlite3.Row, message_id: int | None) -> tuple[sqlite3.Row, sqlite3.Row]:
    """Return this message, by default the active leaf, and the nearest question on the way up from it."""
    select = "SELECT * FROM messages WHERE id = ?"
    if message_id is None:
        message = conn.execute(select, (conversation["active_message_id"],)).fetchone()
    else:
        message = get_message_row(conn, conversation["id"], message_id)
    question = message
    while question is not None and question["role"] != "user":
        question = conn.execute(select, (question["parent_id"],)).fetchone()
    if question is None:
        raise NoUserMessage
    return message, question


def _matches(generation: sqlite3.Row, request: AnswerRequest) -> bool:
    """Return whether the provider and model that the request names, if any, are those of the generation."""
    return request.provider_id in (None, generation["provider_id"]) and request.model in (None, generation["model"])


def add_answer(conn: Connection, job: Job) -> Answer:
    sql = (
        "INSERT INTO messages (conversation_id, parent_id, role, content, status, provider_id, model, created_at)"
        " VALUES (?, ?, 'assistant', '', 'generating', ?, ?, ?)"
    )
    message_id = insert(conn, sql, (job.conversation_id, job.leaf_id, job.provider_id, job.model, job.begun_at))
    return _add_generation(conn, job, message_id)


def _add_generation(conn: Connection, job: Job, message_id: int) -> Answer:
    generation_id = str(uuid.uuid4())
    conn.execute(
        "INSERT INTO generations (id, message_id, provider_id, model, params) VALUES (?, ?, ?, ?, ?)",
        (generation_id, message_id, job.provider_id, job.model, json.dumps(job.params)),
    )
    conn.execute(
        "UPDATE conversations SET active_message_id = ?, updated_at = ?, provider_id = ?, model = ? WHERE id = ?",
        (message_id, job.begun_at, job.provider_id, job.model, job.conversation_id),
    )
    return Answer(generation_id, message_id, job)


def _generation_of(conn: Connection, message: sqlite3.Row) -> sqlite3.Row:
    """Return the generation of a complete answer. An imported answer gets one first, so that it can be replayed."""
    select = "SELECT id, provider_id, model FROM generations WHERE message_id = ?"
    row: sqlite3.Row | None = conn.execute(select, (message["id"],)).fetchone()
    if row is None:
        log = [*_lengths(message), {"event": "done", "data": {"status": "ok", "message_id": message["id"]}}]
        conn.execute(
            "INSERT INTO generations (id, message_id, provider_id, model, log) VALUES (?, ?, ?, ?, ?)",
            (str(uuid.uuid4()), message["id"], message["provider_id"] or "", message["model"] or "", json.dumps(log)),
        )
        row = conn.execute(select, (message["id"],)).fetchone()
    assert row is not None
    return row


def _lengths(message: sqlite3.Row) -> list[int]:
    """Return the texts of a message as entries of an event log."""
    return [length for length in (-len(message["reasoning"]), len(message["content"])) if length]


def add_parts(conn: Connection, parts: Sequence[SavedPart]) -> None:
    """Save parts of running answers. A part replaces an earlier one with the same first event: it repeats that one's events.

    Many rows go into one statement, because after each statement this thread has to wait for the GIL.
    """
    for start in range(0, len(parts), PARTS_PER_STATEMENT):
        some = parts[start : start + PARTS_PER_STATEMENT]
        conn.execute(
            "INSERT OR REPLACE INTO generation_parts (generation_id, first_event, content, reasoning, log)"
            f" SELECT * FROM (VALUES {', '.join(['(?, ?, ?, ?, ?)'] * len(some))})"
            " WHERE EXISTS (SELECT 1 FROM generations WHERE id = column1)",  # the conversation may have been purged
            [value for part in some for value in part],
        )


def list_unfinished(conn: Connection) -> list[tuple[str, Recording]]:
    """Return the ids of the generations that a stopped server did not finish, with what it saved of them."""
    unfinished = []
    for generation_id, message_id in conn.execute(
        "SELECT g.id, m.id FROM messages m JOIN generations g ON g.message_id = m.id WHERE m.status = 'generating'"
    ).fetchall():
        parts = conn.execute(
            "SELECT content, reasoning, log FROM generation_parts WHERE generation_id = ? ORDER BY first_event",
            (generation_id,),
        ).fetchall()
        log = [entry for part in parts for entry in json.loads(part["log"])]
        content, reasoning = ("".join(part[name] for part in parts) for name in ("content", "reasoning"))
        unfinished.append((generation_id, Recording(message_id, "generating", content, reasoning, json.dumps(log))))
    return unfinished


def finish_generation(
    conn: Connection,
    generation_id: str,
    recording: Recording,
    *,
    provider_id: str | None = None,
    model: str | None = None,
    token_usage: dict[str, int] | None = None,
    stats: dict[str, Any] | None = None,
    error: dict[str, str] | None = None,
    sent: SentRequest | None = None,
    citations: list[Citation] | None = None,
) -> None:
    """Save the whole answer with its end. Does nothing when its message has been deleted or has ended before.

    `provider_id` and `model`: who answered; None: as the message has it.
    """
    select = "SELECT * FROM messages WHERE id = ? AND status = 'generating'"
    row = conn.execute(select, (recording.message_id,)).fetchone()
    if row is None:
        return
    conn.execute(
        "UPDATE messages SET content = ?, reasoning = ?, status = ?, provider_id = coalesce(?, provider_id),"
        " model = coalesce(?, model), token_usage = ?, stats = coalesce(?, stats), error = ?, citations = ? WHERE id = ?",
        (
            recording.content,
            recording.reasoning,
            recording.status,
            provider_id,
            model,
            *(json.dumps(value) if value is not None else None for value in (token_usage, stats, error)),
            encode_citations(citations),
            recording.message_id,
        ),
    )
    request = _stored_request(conn, row["conversation_id"], sent) if sent else None
    if sent and row["parent_id"]:
        documents.save_sent_pages(conn, row["parent_id"], sent.pages)
    conn.execute("UPDATE generations SET log = ?, request = ? WHERE id = ?", (recording.log, request, generation_id))
    conn.execute("DELETE FROM generation_parts WHERE generation_id = ?", (generation_id,))
    (user_id,) = conn.execute(
        "UPDATE conversations SET updated_at = max(updated_at, ?) WHERE id = ? RETURNING user_id",
        (now(), row["conversation_id"]),
    ).fetchone()
    search.unindex_message(conn, user_id, row)
    search.index_message(conn, user_id, recording.message_id, recording.content)
    earlier = len(row["content"].encode()) + len(row["reasoning"].encode())  # of a continued answer
    add_stored_bytes(conn, user_id, len(recording.content.encode()) + len(recording.reasoning.encode()) - earlier)


def _stored_request(conn: Connection, conversation_id: int, sent: SentRequest) -> str:
    """Return a request as it is stored in `generations`: its system prompt, often the same one, is in a table of its own."""
    stored = to_builtins(sent)
    text = stored.pop("system_prompt")
    digest = hashlib.sha256(text.encode()).digest()
    sql = "INSERT OR IGNORE INTO sent_system_prompts (conversation_id, text_hash, text) VALUES (?, ?, ?)"
    conn.execute(sql, (conversation_id, digest, text))
    return json.dumps(stored | {"system_prompt_hash": digest.hex()})


def get_sent_request(conn: Connection, user_id: int, message_id: int) -> FoundRequest:
    """Return what is stored of the request for an answer, and the path that was sent, as it is now. Raises NotFound."""
    row = conn.execute(
        "SELECT m.conversation_id, coalesce(nullif(g.provider_id, ''), m.provider_id) AS provider_id, g.request"
        " FROM messages m LEFT JOIN generations g ON g.message_id = m.id"
        " WHERE m.id = ?",
        (message_id,),
    ).fetchone()
    conversation = _conversation_of(conn, user_id, row, "message")
    if row["request"] is None:
        return FoundRequest(row["provider_id"], was_passed_on=conversation["token_id"] is not None)
    stored = json.loads(row["request"])
    sql = "SELECT text FROM sent_system_prompts WHERE conversation_id = ? AND text_hash = ?"
    text = scalar(conn, sql, (row["conversation_id"], bytes.fromhex(stored.pop("system_prompt_hash"))))
    text = text or ""  # salvage may have lost it: then the hash of the request is another one
    sent = convert(stored | {"system_prompt": text}, SentRequest)
    found = FoundRequest(row["provider_id"], sent)
    with contextlib.suppress(NotFound):
        found.path = get_prompt(conn, sent.leaf_id, pages=sent.pages)
        documents.add_texts(conn, found.path.excerpts)
    return found


def _conversation_of(conn: Connection, user_id: int, row: sqlite3.Row | None, thing: str) -> sqlite3.Row:
    """Return the user's conversation that has this row. Raises NotFound for the thing that the row is."""
    try:
        return owned(conn, user_id, row["conversation_id"] if row else 0)
    except NotFound:
        raise NotFound(thing) from None


def get_recording(conn: Connection, user_id: int, generation_id: str, token_id: int | None = None) -> Recording:
    """Return what is stored of a generation; for a token, only in conversations that it began. Raises NotFound.

    The texts of an answer that was continued are longer than the log of its first part.
    """
    row = conn.execute(
        "SELECT m.conversation_id, m.id, m.status, m.content, m.reasoning, g.log FROM ("
        " SELECT message_id, log FROM generations WHERE id = ?1"
        " UNION ALL SELECT message_id, log FROM continued_generations WHERE id = ?1"
        ") g JOIN messages m ON m.id = g.message_id",
        (generation_id,),
    ).fetchone()
    conversation = _conversation_of(conn, user_id, row, "generation")
    if token_id is not None and conversation["token_id"] != token_id:
        raise NotFound("generation")
    return Recording(row["id"], row["status"], row["content"], row["reasoning"], row["log"])
