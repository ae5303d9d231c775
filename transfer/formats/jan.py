"""Jan: a folder for each thread, with messages.jsonl and, for its title and model, thread.json."""

from collections.abc import Callable, Iterator
from typing import Any

from ...backends.loose import object_at, objects_at, text_at
from ..transcript import Conversation, Message
from . import common
from .common import FindFile, joined


def is_message(row: dict[str, Any]) -> bool:
    return row.get("object") == "thread.message" or ("thread_id" in row and "role" in row)


def join(rows: list[dict[str, Any]], beside: Callable[[str], Any]) -> Iterator[dict[str, Any]]:
    """Yield the messages of each thread with the thread."""
    thread = beside("thread.json")
    for key in dict.fromkeys(text_at(row, "thread_id") for row in rows):
        is_own = not text_at(thread, "id") or text_at(thread, "id") == key
        messages = [row for row in rows if text_at(row, "thread_id") == key]
        yield {"object": "thread", "id": key, "thread": thread if is_own else None, "messages": messages}


def matches(row: dict[str, Any]) -> bool:
    return row.get("object") == "thread" or ("assistants" in row and "metadata" in row)


def parse(row: dict[str, Any], find_file: FindFile) -> Conversation:
    thread = object_at(row, "thread") or row
    assistant = next(iter(objects_at(thread, "assistants")), {})
    model = text_at(assistant, "model", "id") or text_at(thread, "model", "id")
    model = model if model != "*" else ""
    nodes = common.keyed(objects_at(row, "messages"), "id")
    read = (_read_message(node, key, model or None, find_file) for key, node in nodes)
    messages = common.chain(message for message in read if message)
    return common.finish(
        source=common.identity("jan", row.get("id"), *(message.source for message in messages)),
        title=common.line_at(thread, "title"),
        created_at=common.time_at(thread, "created") or common.time_at(thread, "created_at"),
        pinned=thread.get("isFavorite") is True or object_at(thread, "metadata").get("is_favorite") is True,
        system_prompt=text_at(assistant, "instructions"),
        model=model or None,
        messages=messages,
        active=None,
    )


def _read_message(node: dict[str, Any], key: str, model: str | None, find_file: FindFile) -> Message | None:
    texts: list[str] = [text_at(node, "content")]
    thoughts: list[str] = []
    images: common.Files = []
    for part in objects_at(node, "content"):
        match part.get("type"):
            case "text":
                texts.append(text_at(part, "text", "value") or text_at(part, "text"))
            case "reasoning":
                thoughts.append(text_at(part, "text", "value") or text_at(part, "text"))
            case "image_url" | "image":
                url = text_at(part, "image_url", "url")
                images.append(("", common.image_from_url(url) or find_file(url)))
            case "tool_call":
                texts.append(common.tool_block(text_at(part, "tool_name"), part.get("input"), part.get("output")))
            case _:
                common.note_loss("unknown part")
                texts.append(text_at(part, "text", "value"))
    for call in objects_at(node, "metadata", "tool_calls"):
        tool = object_at(call, "tool")
        texts.append(
            common.tool_block(
                text_at(tool, "function", "name"), object_at(tool, "function").get("arguments"), call.get("response")
            )
        )
    text = joined(*texts)
    is_question = node.get("role") == "user"
    if not (is_question or thoughts):
        text, thought = common.split_thinking(text)
        thoughts.append(thought)
    text, found = common.with_files("image", text, images)
    names = [text_at(one, "name") or text_at(one, "file_id") for one in objects_at(node, "attachments")]
    text, documents = common.with_files("document", text, [(name, find_file(name)) for name in names])
    found += documents
    if not (text.strip() or any(thoughts) or found):
        return None
    message = Message(
        id=0,
        parent_id=None,
        role="user" if is_question else "assistant",
        content=text,
        attachments=found,
        created_at=common.time_at(node, "created_at") or "",
        source=key,
    )
    if not is_question:
        message.reasoning = joined(*thoughts)
        message.model = text_at(node, "metadata", "modelId") or text_at(node, "metadata", "model") or model
        message.stats = common.known(tokens_per_second=common.rate_at(node, "metadata", "tokenSpeed", "tokenSpeed"))
        if node.get("status") == "error":
            reason = text_at(node, "metadata", "error") or text_at(node, "error_code") or "The model server failed."
            message.status, message.error = "error", {"code": "PROVIDER_ERROR", "message": reason}
        elif node.get("status") == "stopped":
            message.status = "canceled"
        elif node.get("status") == "pending":
            message.status = "interrupted"
    return message
