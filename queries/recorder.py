"""Queries of what other programs send to /v1: find the conversation that a request continues, and record it there.

A program sends the whole history each time. Each turn of it has a hash of itself and all turns before it. `recorded_messages` has the
hashes of the messages that were recorded, so the longest part of a history that is known is found by its hash.
"""

import hashlib
import re
import sqlite3
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from ..db import Connection, now
from . import attachments
from .conversations import insert_conversation, set_conversation, title_from
from .generations import Answer, Job, add_answer
from .messages import add_message, insert_message
from .quota import add_stored_bytes
from .tokens import Token
from .turns import Prompt
from .types import ANSWER_CHARACTERS, Image, ToolCall, ToolResult, Tools, image_type

THOUGHT = re.compile(r"\s*<think>.*?</think>", re.DOTALL)
TOOL_CHARACTERS = 200_000  # that are kept of a result or of the arguments of a call


class RecordedTurn(Struct):
    """A message of a user or an assistant in a history."""

    role: str
    content: str
    tools: Tools
    images: list[str] = []  # data URLs
    files: list[str] = []  # SHA-256, in hexadecimal


class RecordedFile(Struct):
    """A document in a request."""

    name: str
    data: bytes


class History(Struct):
    """The messages of a request. `results` are those of tools after the last turn."""

    instructions: str
    turns: list[RecordedTurn]
    results: list[ToolResult]


def hash_turn(previous: bytes, turn: RecordedTurn) -> bytes:
    """Return the hash of a turn after those with the hash `previous`.

    It stays the same when a program strips white space, drops what a model thought, or gives calls other ids.
    """
    content = turn.content.replace("\0", "\ufffd")
    content = (THOUGHT.sub("", content, count=1) if turn.role == "assistant" else content).strip()
    calls = [(call.name, _normal(call.arguments)) for call in turn.tools.calls]
    results = [result.content.strip() for result in turn.tools.results]
    images = [hashlib.sha256(url.encode()).digest() for url in turn.images]
    files = [turn.files] if turn.files else []  # else the hash stays as it was before there were files
    fields = msgspec.msgpack.encode((turn.role, content, images, calls, results, *files))
    return hashlib.sha256(previous + fields).digest()


def _normal(arguments: str) -> bytes:
    try:
        return msgspec.json.encode(msgspec.json.decode(arguments), order="sorted")
    except (ValueError, RecursionError):
        return arguments.strip().encode()


def begin_recorded(
    conn: Connection,
    user_id: int,
    token: Token,
    history: History,
    provider_id: str,
    model: str,
    params: dict[str, Any],
    decode: Callable[[list[str]], list[Image]],
    files: Mapping[str, RecordedFile],
    max_bytes: int = 0,
) -> Answer:
    """Record a request where it belongs, and begin its answer. `decode` returns the images of data URLs,
    and `files` has the documents by their hashes.

    A history that continues a conversation of the token is appended to it, an edited one becomes a branch of it, and any other
    one a conversation. Raises QuotaExceeded above `max_bytes` (0: no limit).
    """
    hashes: list[bytes] = []
    for turn in history.turns:
        hashes.append(hash_turn(hashes[-1] if hashes else b"", turn))
    known, row = _longest_known(conn, user_id, token, history, hashes)
    if row is None:
        conversation_id, leaf_id = _add_conversation(conn, user_id, token, history, max_bytes), None
    else:
        conversation_id, leaf_id = row["conversation_id"], row["message_id"]
        if row["system_prompt"] != history.instructions:
            set_conversation(conn, user_id, conversation_id, {"system_prompt": history.instructions}, max_bytes)
    for turn, turn_hash in zip(history.turns[known:], hashes[known:], strict=True):
        if turn.role == "user":
            images = decode(turn.images)
            leaf_id = add_message(
                conn, user_id, conversation_id, _cut(turn.content), leaf_id, images=images, max_bytes=max_bytes
            )
            for position, key in enumerate(turn.files, len(images)):
                file = files[key]
                kind = image_type(file.data[:12]) or attachments.OTHER
                attachment_id = attachments.add(conn, user_id, file.data, kind, file.name, max_bytes)
                attachments.link(conn, leaf_id, position, attachment_id, file.name)
        else:
            columns = {"parent_id": leaf_id, "role": "assistant", "content": _cut(turn.content)}
            leaf_id = insert_message(conn, user_id, conversation_id, columns, max_bytes)
        _set_tools(conn, user_id, leaf_id, turn.tools)
        _set_hash(conn, leaf_id, token.id, turn_hash)
    assert leaf_id is not None
    nothing = Prompt("", [])  # the request itself is sent
    job = Job(user_id, conversation_id, provider_id, model, params, leaf_id, nothing, now(), token_id=token.id)
    answer = add_answer(conn, job)
    _set_tools(conn, user_id, answer.message_id, Tools(results=history.results))
    return answer


def _longest_known(
    conn: Connection, user_id: int, token: Token, history: History, hashes: list[bytes]
) -> tuple[int, sqlite3.Row | None]:
    """Return how many turns a conversation of the token has, and its message that is the last of them.

    As long as there is no answer among them, the instructions must be the same: programs ask the same about different texts, and
    different things about the same text. A conversation in which an answer is being generated cannot take another one.
    """
    for known in range(len(hashes), 0, -1):
        has_answer = any(turn.role == "assistant" for turn in history.turns[:known])
        row: sqlite3.Row | None = conn.execute(
            "SELECT r.message_id, m.conversation_id, c.system_prompt FROM recorded_messages r"
            " JOIN messages m ON m.id = r.message_id JOIN conversations c ON c.id = m.conversation_id"
            " WHERE r.token_id = ?1 AND r.hash = ?2 AND c.token_id = ?1 AND c.user_id = ?3 AND c.deleted_at IS NULL"
            " AND c.hidden = 0 AND (?4 OR c.system_prompt = ?5)"
            " AND NOT EXISTS (SELECT 1 FROM messages WHERE conversation_id = c.id AND status = 'generating')"
            " ORDER BY r.message_id DESC LIMIT 1",
            (token.id, hashes[known - 1], user_id, has_answer, history.instructions),
        ).fetchone()
        if row is not None:
            return known, row
    return 0, None


def _add_conversation(conn: Connection, user_id: int, token: Token, history: History, max_bytes: int) -> int:
    """Add a conversation named after its first question."""
    question = next((turn.content for turn in history.turns if turn.role == "user"), history.turns[0].content)
    columns = {"system_prompt": history.instructions, "token_id": token.id, "token_name": token.name}
    conversation_id = insert_conversation(conn, user_id, title_from(question), columns)
    add_stored_bytes(conn, user_id, len(history.instructions.encode()), max_bytes)
    return conversation_id


def _cut(text: str, characters: int = ANSWER_CHARACTERS - 100) -> str:
    if len(text) <= characters:
        return text
    return f"{text[:characters]}\n\n({len(text) - characters:,} more characters were sent and are not kept.)"


def _set_tools(conn: Connection, user_id: int, message_id: int, tools: Tools, earlier: int = 0) -> None:
    """`earlier`: bytes that the column had."""
    if tools.results or tools.calls:
        results = [ToolResult(_cut(one.content, TOOL_CHARACTERS), one.id) for one in tools.results]
        calls = [ToolCall(one.name, _cut(one.arguments, TOOL_CHARACTERS), one.id) for one in tools.calls]
        text = msgspec.json.encode(Tools(results, calls)).decode()
        conn.execute("UPDATE messages SET tools = ? WHERE id = ?", (text, message_id))
        add_stored_bytes(conn, user_id, len(text.encode()) - earlier)


def _set_hash(conn: Connection, message_id: int, token_id: int, turn_hash: bytes) -> None:
    sql = "INSERT INTO recorded_messages (message_id, token_id, hash) VALUES (?, ?, ?)"
    conn.execute(sql, (message_id, token_id, turn_hash))


def record_answer(conn: Connection, message_id: int, calls: list[ToolCall] | None = None) -> None:
    """Store the calls of an answer that has ended, and its hash, if what it answers was recorded. Keep the results before it."""
    row = conn.execute(
        "SELECT r.token_id, r.hash, m.content, m.tools, c.user_id FROM messages m"
        " JOIN recorded_messages r ON r.message_id = m.parent_id JOIN conversations c ON c.id = m.conversation_id"
        " WHERE m.id = ? AND m.status <> 'generating'",
        (message_id,),
    ).fetchone()
    if row is None:
        return
    tools = msgspec.json.decode(row["tools"] or b"{}", type=Tools)
    turn = RecordedTurn("assistant", row["content"], Tools(tools.results, calls or tools.calls))
    _set_tools(conn, row["user_id"], message_id, turn.tools, len((row["tools"] or "").encode()))
    conn.execute("DELETE FROM recorded_messages WHERE message_id = ?", (message_id,))
    _set_hash(conn, message_id, row["token_id"], hash_turn(row["hash"], turn))
