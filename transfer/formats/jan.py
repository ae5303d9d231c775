"""Jan: a folder for each thread, with messages.jsonl and, for its title and model, thread.json."""

from collections.abc import Callable, Iterator
from typing import Any

from ...backends.loose import object_at, objects_at, text_at
from ..transcript import Conversation, Message
from . import common
from .common import File, FindFile, joined


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
    nodes = common.linked(objects_at(row, "messages"), "id")
    messages, active = common.read_tree(
        nodes, lambda node: _read_message(node, model, find_file), parent="parent", shown=next(reversed(nodes), "")
    )
    return common.finish(
        source=common.identity("jan", row.get("id"), *(message.source for message in messages)),
        title=common.line_at(thread, "title"),
        created_at=common.time_at(thread, "created") or common.time_at(thread, "created_at"),
        pinned=thread.get("isFavorite") is True or object_at(thread, "metadata").get("is_favorite") is True,
        system_prompt=text_at(assistant, "instructions"),
        model=model or None,
        messages=messages,
        active=active,
    )


_STATUSES = {"stopped": "canceled", "pending": "interrupted"}


def _read_message(node: dict[str, Any], model: str, find_file: FindFile) -> Message | None:
    texts: list[str] = [text_at(node, "content")]
    thoughts: list[str] = []
    files: list[File] = []
    for part in objects_at(node, "content"):
        match part.get("type"):
            case "text":
                texts.append(text_at(part, "text", "value") or text_at(part, "text"))
            case "reasoning":
                thoughts.append(text_at(part, "text", "value") or text_at(part, "text"))
            case "image_url" | "image":
                url = text_at(part, "image_url", "url")
                files.append(File("image", "", common.image_from_url(url) or find_file(url)))
            case "tool_call":
                texts.append(common.tool_block(text_at(part, "tool_name"), part.get("input"), part.get("output")))
            case _:
                common.note_loss("unknown part")
                texts.append(text_at(part, "text", "value"))
    metadata = object_at(node, "metadata")
    for call in objects_at(metadata, "tool_calls"):
        function = object_at(call, "tool", "function")
        texts.append(common.tool_block(text_at(function, "name"), function.get("arguments"), call.get("response")))
    text = joined(*texts)
    if node.get("role") != "user" and not thoughts:
        text, thought = common.split_thinking(text)
        thoughts.append(thought)
    for one in objects_at(node, "attachments"):
        name = text_at(one, "name") or text_at(one, "file_id")
        files.append(File("document", name, find_file(name)))
    status, failure = text_at(node, "status"), ""
    if status == "error":
        failure = text_at(metadata, "error") or text_at(node, "error_code") or common.FAILED
    return common.new_message(
        node.get("role"),
        common.time_at(node, "created_at"),
        text,
        files,
        reasoning=joined(*thoughts),
        failure=failure,
        status=_STATUSES.get(status, "complete"),
        model=text_at(metadata, "modelId") or text_at(metadata, "model") or model or None,
        stats=common.known(tokens_per_second=common.rate_at(metadata, "tokenSpeed", "tokenSpeed")),
    )
