"""db.sqlite, the database of Ollama's desktop app."""

from collections.abc import Iterator
from typing import Any

from ...backends.loose import objects_at, text_at
from ..database import Reader
from ..transcript import Conversation, Message
from . import common
from .common import File, FindFile, joined

TABLES = {"chats", "messages", "tool_calls", "attachments"}


def read(database: Reader) -> Iterator[dict[str, Any]]:
    """Yield each chat with its messages, their tool calls and attachments."""
    for chat in database.rows("chats", "1 ORDER BY created_at, id"):
        messages = database.rows("messages", "chat_id = ? ORDER BY id", chat.get("id"))
        for message in messages:
            for table in ("tool_calls", "attachments"):
                message[table] = database.rows(table, "message_id = ? ORDER BY id", message.get("id"))
        yield {"ollama": chat, "messages": messages}


def matches(row: dict[str, Any]) -> bool:
    return isinstance(row.get("ollama"), dict) and isinstance(row.get("messages"), list)


def parse(row: dict[str, Any], find_file: FindFile) -> Conversation:
    """Images are in the database, so `find_file` is not used."""
    nodes = objects_at(row, "messages")
    messages, sources = common.read_list(
        nodes, _read_message, is_step=lambda node: node.get("role") == "tool" or node.get("tool_calls")
    )
    return common.finish(
        source=common.identity("ollama", row["ollama"].get("id"), *sources),
        title=common.line_at(row, "ollama", "title"),
        created_at=common.time_at(row, "ollama", "created_at"),
        system_prompt=joined(*(text_at(node, "content") for node in nodes if node.get("role") == "system")),
        messages=messages,
    )


def _read_message(node: dict[str, Any]) -> Message | None:
    role, text = node.get("role"), text_at(node, "content")
    if role == "system":
        return None
    if role == "tool":
        text = common.tool_block("result", None, text or node.get("tool_result"))
    for call in objects_at(node, "tool_calls"):
        name, arguments = text_at(call, "function_name"), call.get("function_arguments")
        text = joined(text, common.tool_block(name, arguments, call.get("function_result")))
    return common.new_message(
        role,
        common.time_at(node, "created_at"),
        text,
        [
            File("document", text_at(file, "filename"), common.file_of(file.get("data")))
            for file in objects_at(node, "attachments")
        ],
        reasoning=text_at(node, "thinking"),
        model=text_at(node, "model_name") or None,
    )
