"""logs.db, the SQLite database of the command-line tool `llm`: in `conversations` and `responses`, or since version 0.32 in `threads`, `turns`,
`messages` and `parts`.
"""

import sqlite3
from collections.abc import Iterator
from typing import Any, Literal

from ...backends.loose import at, decode, objects_at, text_at
from ...queries.types import image_type
from ..transcript import Conversation, Image, Message
from . import common
from .common import FindImage, joined

TABLES = ({"conversations", "responses"}, {"threads", "turns", "messages", "parts"})


def read(conn: sqlite3.Connection, tables: set[str]) -> Iterator[dict[str, Any]]:
    """Yield each conversation: {"llm": id, "name", "nodes": {key: {"parent", "role", "parts", "time", "model", ...}}}."""
    database = _Database(conn, tables)
    if TABLES[0] <= tables:
        yield from database.read_responses()
    if TABLES[1] <= tables:
        yield from database.read_threads()


class _Database:
    def __init__(self, conn: sqlite3.Connection, tables: set[str]) -> None:
        self._conn, self._tables = conn, tables

    def _rows(self, table: str, where: str = "1", *values: Any) -> list[dict[str, Any]]:
        """Return rows with all columns, because each version of `llm` adds some; none when it has no such table."""
        names = [name.partition(" ")[0] for name in table.split(" JOIN ")]
        if not self._tables.issuperset(names):
            return []
        return [dict(row) for row in self._conn.execute(f"SELECT * FROM {table} WHERE {where}", values)]

    # ---- conversations and responses

    def read_responses(self) -> Iterator[dict[str, Any]]:
        keys = "SELECT DISTINCT coalesce(conversation_id, id) AS key FROM responses ORDER BY datetime_utc, id"
        for (key,) in self._conn.execute(keys).fetchall():
            conversation = next(iter(self._rows("conversations", "id = ?", key)), {})
            rows = self._rows("responses", "coalesce(conversation_id, id) = ? ORDER BY datetime_utc, id", key)
            nodes: dict[str, dict[str, Any]] = {}
            parent: str | None = None
            for row in rows:
                for suffix, node in (("?", self._question(row)), ("!", self._answer(row))):
                    name = f"{text_at(row, 'id')}{suffix}"
                    nodes[name] = node | {"parent": parent}
                    parent = name
            prompts = list(dict.fromkeys(text_at(row, "system") for row in rows))
            yield {"llm": key, "name": conversation.get("name"), "nodes": nodes, "system": joined(*prompts)}

    def _question(self, row: dict[str, Any]) -> dict[str, Any]:
        prompt = "prompt_fragments JOIN fragments ON fragments.id = fragment_id"
        texts = [
            text_at(one, "content") for one in self._rows(prompt, 'response_id = ? ORDER BY "order"', row.get("id"))
        ]
        attachments = self._rows(
            "prompt_attachments JOIN attachments ON attachments.id = attachment_id",
            'response_id = ? ORDER BY "order"',
            row.get("id"),
        )
        parts = [{"type": "text", "text": joined(*texts, text_at(row, "prompt"), by="\n")}]
        results = [
            one | {"type": "tool_result"} for one in self._rows("tool_results", "response_id = ?", row.get("id"))
        ]
        role = "tool" if results and not text_at(row, "prompt") else "user"
        return {"role": role, "time": row.get("datetime_utc"), "parts": [*parts, *attachments, *results]}

    def _answer(self, row: dict[str, Any]) -> dict[str, Any]:
        calls = [one | {"type": "tool_call"} for one in self._rows("tool_calls", "response_id = ?", row.get("id"))]
        texts = [{"type": "reasoning", "text": row.get("reasoning")}, {"type": "text", "text": row.get("response")}]
        return row | {"role": "assistant", "time": row.get("datetime_utc"), "parts": [*texts, *calls]}

    # ---- threads, turns, messages and parts

    def read_threads(self) -> Iterator[dict[str, Any]]:
        keys = "SELECT DISTINCT coalesce(thread_id, id) AS key FROM turns ORDER BY datetime_utc, id"
        for (key,) in self._conn.execute(keys).fetchall():
            thread = next(iter(self._rows("threads", "id = ?", key)), {})
            nodes: dict[str, dict[str, Any]] = {}
            for turn in self._rows("turns", "coalesce(thread_id, id) = ? ORDER BY datetime_utc, id", key):
                self._add_turn(nodes, turn)
            tip = text_at(thread, "tip_message_hash") or None
            yield {"llm": key, "name": thread.get("name"), "nodes": nodes, "tip": tip}

    def _add_turn(self, nodes: dict[str, dict[str, Any]], turn: dict[str, Any]) -> None:
        """Add the messages that a turn ends with and those before it, up to one that is known."""
        tip = name = turn.get("tip_message_hash")
        while isinstance(name, str) and name not in nodes:
            row = next(iter(self._rows("messages", "hash = ?", name)), None)
            if row is None:
                return
            facts = turn if name == tip else {}
            parts = [self._part(part) for part in self._rows("parts", "message_hash = ? ORDER BY position", name)]
            parent = row.get("parent_hash")
            nodes[name] = facts | {
                "role": row.get("role"),
                "time": turn.get("datetime_utc"),
                "parts": parts,
                "parent": parent,
            }
            name = parent

    def _part(self, part: dict[str, Any]) -> dict[str, Any]:
        payload = _decode(part.get("payload"))
        fields = (payload if isinstance(payload, dict) else {}) | {"type": part.get("type")}
        text = text_at(part, "text") or text_at(fields, "text")
        for one in objects_at(fields, "text_ref"):
            fragment = (
                next(iter(self._rows("fragments", "id = ?", one["fragment"])), {})
                if _is_id(one.get("fragment"))
                else {}
            )
            text += text_at(one, "literal") or text_at(fragment, "content")
        reference = at(fields, "attachment", "id")
        if part.get("type") == "attachment" and _is_id(reference):
            return next(iter(self._rows("attachments", "id = ?", reference)), {"type": "attachment"})
        return fields | {"text": text}


def _is_id(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, int) and abs(value) < 2**63)


def _decode(text: Any) -> Any:
    try:
        return decode(text.encode()) if isinstance(text, str) else None
    except ValueError:
        return None


def matches(row: dict[str, Any]) -> bool:
    return isinstance(row.get("llm"), str) and isinstance(row.get("nodes"), dict)


def parse(row: dict[str, Any], find_image: FindImage) -> Conversation:
    """Images are in the database, so `find_image` is not used."""
    nodes = {text_at(key): node for key, node in row["nodes"].items()}
    prompts = [text_at(row, "system")]
    steps: set[str] = set()

    def read_node(key: str, parent: str | None) -> Message | None:
        message = _read_message(nodes[key], steps, key)
        if message and at(nodes[key], "role") == "system":
            prompts.append(message.content)
            return None
        return message

    messages, nearest = common.read_tree(nodes, "parent", "", read_node)
    messages, merged = common.merge_steps(messages, {message.id for message in messages if message.source in steps})
    active = nearest.get(text_at(row, "tip")) or common.newest(messages)
    return common.finish(
        source=common.identity("llm", row["llm"]),
        title=common.line_at(row, "name"),
        created_at=None,
        system_prompt=joined(*prompts),
        messages=messages,
        active=merged.get(active or 0, active),
    )


def _read_message(node: Any, steps: set[str], key: str) -> Message | None:
    role: Literal["user", "assistant"] = "user" if at(node, "role") == "user" else "assistant"
    texts: list[str] = []
    thoughts: list[str] = []
    images: list[tuple[str, Image | None]] = []
    for part in objects_at(node, "parts"):
        match text_at(part, "type"):
            case "text":
                texts.append(text_at(part, "text"))
            case "reasoning":
                thoughts.append(text_at(part, "text"))
            case "tool_call":
                steps.add(key)
                texts.append(common.tool_block(text_at(part, "name"), part.get("arguments"), None))
            case "tool_result":
                steps.add(key)
                texts.append(
                    common.tool_block(text_at(part, "name"), None, part.get("output") or part.get("exception"))
                )
            case kind if kind.startswith("image/"):
                images.append((_file_name(part), _image(part.get("content"))))
            case kind if kind == "attachment" or "/" in kind:
                texts.append(
                    common.not_imported("audio" if kind.startswith("audio/") else "document", _file_name(part))
                )
            case _:
                common.note_loss("unknown part")
                texts.append(text_at(part, "text"))
    text, found = common.with_images(joined(*texts), images)
    if not (text.strip() or any(thoughts) or found):
        return None
    message = Message(
        id=0, parent_id=None, role=role, content=text, images=found, created_at=common.time_at(node, "time") or ""
    )
    if role == "assistant":
        message.reasoning = joined(*thoughts)
        message.model = text_at(node, "resolved_model") or text_at(node, "model") or None
        message.token_usage = common.token_usage(at(node, "input_tokens"), at(node, "output_tokens"), None)
        message.stats = common.known(total_ms=common.milliseconds_at(node, "duration_ms", seconds=1e-3))
    return message


def _file_name(part: dict[str, Any]) -> str:
    return (text_at(part, "path") or text_at(part, "url")).replace("\\", "/").rpartition("/")[2]


def _image(data: Any) -> Image | None:
    kind = image_type(data[:12]) if isinstance(data, bytes) else None
    return Image(kind, data) if kind else None
