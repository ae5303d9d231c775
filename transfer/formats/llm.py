"""logs.db, the SQLite database of the command-line tool `llm`: in `conversations` and `responses`, or since version 0.32 in `threads`, `turns`,
`messages` and `parts`.
"""

from collections.abc import Iterator
from typing import Any

from ...backends.loose import at, decode, object_at, objects_at, text_at
from ..database import Reader
from ..transcript import Conversation, Message
from . import common
from .common import File, FindFile, joined

TABLES = ({"conversations", "responses"}, {"threads", "turns", "messages", "parts"})


def read(database: Reader) -> Iterator[dict[str, Any]]:
    """Yield each conversation: {"llm": id, "name", "nodes": {key: {"parent", "role", "parts", "time", "model", ...}}}."""
    if TABLES[0] <= database.tables:
        yield from _read_responses(database)
    if TABLES[1] <= database.tables:
        yield from _read_threads(database)


# ---- conversations and responses


def _read_responses(database: Reader) -> Iterator[dict[str, Any]]:
    for key, ids in database.groups("conversation_id", "responses").items():
        conversation = database.row("conversations", "id = ?", key)
        rows = [database.row("responses", "id = ?", one) for one in ids]
        nodes = [
            node | {"key": f"{text_at(row, 'id')}{suffix}"}
            for row in rows
            for suffix, node in (("?", _question(database, row)), ("!", _answer(database, row)))
        ]
        prompts = list(dict.fromkeys(text_at(row, "system") for row in rows))
        linked = common.linked(nodes, "key")
        yield {"llm": key, "name": conversation.get("name"), "nodes": linked, "system": joined(*prompts)}


def _question(database: Reader, row: dict[str, Any]) -> dict[str, Any]:
    prompt = "prompt_fragments JOIN fragments ON fragments.id = fragment_id"
    files = "prompt_attachments JOIN attachments ON attachments.id = attachment_id"
    of_row = 'response_id = ? ORDER BY "order"'
    texts = [text_at(one, "content") for one in database.rows(prompt, of_row, row.get("id"))]
    attachments = database.rows(files, of_row, row.get("id"))
    parts = [{"type": "text", "text": joined(*texts, text_at(row, "prompt"), by="\n")}]
    results = [one | {"type": "tool_result"} for one in database.rows("tool_results", "response_id = ?", row.get("id"))]
    role = "tool" if results and not text_at(row, "prompt") else "user"
    return {"role": role, "time": row.get("datetime_utc"), "parts": [*parts, *attachments, *results]}


def _answer(database: Reader, row: dict[str, Any]) -> dict[str, Any]:
    calls = [one | {"type": "tool_call"} for one in database.rows("tool_calls", "response_id = ?", row.get("id"))]
    texts = [{"type": "reasoning", "text": row.get("reasoning")}, {"type": "text", "text": row.get("response")}]
    return row | {"role": "assistant", "time": row.get("datetime_utc"), "parts": [*texts, *calls]}


# ---- threads, turns, messages and parts


def _read_threads(database: Reader) -> Iterator[dict[str, Any]]:
    for key, ids in database.groups("thread_id", "turns").items():
        thread = database.row("threads", "id = ?", key)
        nodes: dict[str, dict[str, Any]] = {}
        for one in ids:
            _add_turn(database, nodes, database.row("turns", "id = ?", one))
        tip = text_at(thread, "tip_message_hash") or None
        yield {"llm": key, "name": thread.get("name"), "nodes": nodes, "tip": tip}


def _add_turn(database: Reader, nodes: dict[str, dict[str, Any]], turn: dict[str, Any]) -> None:
    """Add the messages that a turn ends with and those before it, up to one that is known."""
    tip = name = turn.get("tip_message_hash")
    while isinstance(name, str) and name not in nodes:
        row = database.row("messages", "hash = ?", name)
        if not row:
            return
        facts = turn if name == tip else {}
        parts = [_part(database, part) for part in database.rows("parts", "message_hash = ? ORDER BY position", name)]
        parent = row.get("parent_hash")
        nodes[name] = facts | {
            "role": row.get("role"),
            "time": turn.get("datetime_utc"),
            "parts": parts,
            "parent": parent,
        }
        name = parent


def _part(database: Reader, part: dict[str, Any]) -> dict[str, Any]:
    payload = _decode(part.get("payload"))
    fields = (payload if isinstance(payload, dict) else {}) | {"type": part.get("type")}
    text = text_at(part, "text") or text_at(fields, "text")
    for one in objects_at(fields, "text_ref"):
        fragment = database.row("fragments", "id = ?", one["fragment"]) if _is_id(one.get("fragment")) else {}
        text += text_at(one, "literal") or text_at(fragment, "content")
    reference = at(fields, "attachment", "id")
    if part.get("type") == "attachment" and _is_id(reference):
        return database.row("attachments", "id = ?", reference) or {"type": "attachment"}
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


def parse(row: dict[str, Any], find_file: FindFile) -> Conversation:
    """Images are in the database, so `find_file` is not used."""
    nodes = {text_at(key): object_at(node) for key, node in row["nodes"].items()}
    prompts = [text_at(row, "system")]

    def read(node: dict[str, Any]) -> Message | None:
        message = _read_message(node)
        if message and node.get("role") == "system":
            prompts.append(message.content)
            return None
        return message

    messages, active = common.read_tree(
        nodes, read, parent="parent", shown=text_at(row, "tip"), is_step=lambda node: _STEPS & _types(node)
    )
    return common.finish(
        source=common.identity("llm", row["llm"]),
        title=common.line_at(row, "name"),
        system_prompt=joined(*prompts),
        messages=messages,
        active=active,
    )


_STEPS = {"tool_call", "tool_result"}


def _types(node: dict[str, Any]) -> set[str]:
    return {text_at(part, "type") for part in objects_at(node, "parts")}


def _read_message(node: dict[str, Any]) -> Message | None:
    texts: list[str] = []
    thoughts: list[str] = []
    files: list[File] = []
    for part in objects_at(node, "parts"):
        match text_at(part, "type"):
            case "text":
                texts.append(text_at(part, "text"))
            case "reasoning":
                thoughts.append(text_at(part, "text"))
            case "tool_call":
                texts.append(common.tool_block(text_at(part, "name"), part.get("arguments"), None))
            case "tool_result":
                outcome = part.get("output") or part.get("exception")
                texts.append(common.tool_block(text_at(part, "name"), None, outcome))
            case kind if kind.startswith("audio/"):
                texts.append(common.not_imported("audio", _file_name(part)))
            case kind if kind == "attachment" or "/" in kind:
                data = common.file_of(part.get("content"))
                files.append(File("image" if kind.startswith("image/") else "document", _file_name(part), data))
            case _:
                common.note_loss("unknown part")
                texts.append(text_at(part, "text"))
    return common.new_message(
        node.get("role"),
        common.time_at(node, "time"),
        joined(*texts),
        files,
        reasoning=joined(*thoughts),
        model=text_at(node, "resolved_model") or text_at(node, "model") or None,
        token_usage=common.token_usage(node.get("input_tokens"), node.get("output_tokens"), None),
        stats=common.known(total_ms=common.milliseconds_at(node, "duration_ms", seconds=1e-3)),
    )


def _file_name(part: dict[str, Any]) -> str:
    return (text_at(part, "path") or text_at(part, "url")).replace("\\", "/").rpartition("/")[2]
