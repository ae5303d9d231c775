"""db.sqlite, the database of Ollama's desktop app."""

from collections.abc import Iterator
from typing import Any

from ...backends.loose import objects_at, text_at
from ..database import Reader
from ..transcript import Attachment, Conversation, Message
from . import common
from .common import FindFile, joined

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
    prompts: list[str] = []
    messages: list[Message] = []
    steps: list[Message] = []
    for node in objects_at(row, "messages"):
        if node.get("role") == "system":
            prompts.append(text_at(node, "content"))
        elif message := _read_message(node):
            messages.append(message)
            if node.get("role") == "tool" or node.get("tool_calls"):
                steps.append(message)
    messages = common.chain(messages)
    first = messages[0].source if messages else ""
    messages, _ = common.merge_steps(messages, {message.id for message in steps})
    return common.finish(
        source=common.identity("ollama", row["ollama"].get("id"), first),
        title=common.line_at(row, "ollama", "title"),
        created_at=common.time_at(row, "ollama", "created_at"),
        system_prompt=joined(*prompts),
        messages=messages,
        active=None,
    )


def _read_message(node: dict[str, Any]) -> Message | None:
    is_question, text = node.get("role") == "user", text_at(node, "content")
    if node.get("role") == "tool":
        text = common.tool_block("result", None, text or node.get("tool_result"))
    for call in objects_at(node, "tool_calls"):
        block = common.tool_block(
            text_at(call, "function_name"), call.get("function_arguments"), call.get("function_result")
        )
        text = joined(text, block)
    files: common.Files = []
    for file in objects_at(node, "attachments"):
        data = file.get("data")
        files.append((text_at(file, "filename"), Attachment(data=data) if isinstance(data, bytes) and data else None))
    text, found = common.with_files("document", text, files)
    if not (text.strip() or text_at(node, "thinking") or found):
        return None
    return Message(
        id=0,
        parent_id=None,
        role="user" if is_question else "assistant",
        content=text,
        reasoning="" if is_question else text_at(node, "thinking"),
        attachments=found,
        created_at=common.time_at(node, "created_at") or "",
        model=None if is_question else text_at(node, "model_name") or None,
    )
