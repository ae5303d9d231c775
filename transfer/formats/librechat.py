"""LibreChat: a JSON file for each conversation, with nested messages (`messagesTree`, or `messages` with `children`) or flat ones."""

import re
from collections.abc import Iterator
from typing import Any

from ...backends.loose import object_at, objects_at, text_at
from ..transcript import Conversation, Message
from . import common
from .common import FindFile, joined

_THINKING = re.compile(r"\s*:::thinking\n(.*?)\n:::\s*", re.DOTALL)


def matches(row: dict[str, Any]) -> bool:
    return "conversationId" in row and any(isinstance(row.get(name), list) for name in ("messages", "messagesTree"))


def parse(row: dict[str, Any], find_file: FindFile) -> Conversation:
    nodes = dict(common.keyed(_flatten(row), "messageId"))
    messages, _ = common.read_tree(
        nodes, "parentMessageId", "", lambda key, parent: _read_message(nodes[key], find_file)
    )
    return common.finish(
        source=common.identity("librechat", row.get("conversationId"), *nodes),
        title=common.line_at(row, "title"),
        created_at=None,
        system_prompt=text_at(row, "options", "promptPrefix") or text_at(row, "options", "system"),
        model=text_at(row, "options", "model") or None,
        messages=messages,
        active=common.newest(messages),
    )


def _flatten(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the messages, parents first."""
    stack = [(node, "") for name in ("messages", "messagesTree") for node in reversed(objects_at(row, name))]
    while stack:
        node, parent = stack.pop()
        yield node | {"parentMessageId": parent or node.get("parentMessageId")}
        stack.extend((child, text_at(node, "messageId")) for child in reversed(objects_at(node, "children")))


def _read_message(node: dict[str, Any], find_file: FindFile) -> Message | None:
    texts: list[str] = []
    thoughts: list[str] = []
    images: common.Files = []
    failure = text_at(node, "text") or "The model server failed." if node.get("error") is True else ""
    for part in objects_at(node, "content"):
        match part.get("type"):
            case "text":
                texts.append(text_at(part, "text") or text_at(part, "text", "value"))
            case "think":
                thoughts.append(text_at(part, "think") or text_at(part, "think", "value"))
            case "tool_call":
                call = object_at(part, "tool_call")
                texts.append(common.tool_block(text_at(call, "name"), call.get("args"), call.get("output")))
            case "error":
                failure = text_at(part, "error") or text_at(part, "text") or "The model server failed."
            case "image_url":
                images.append(
                    ("", common.image_from_url(text_at(part, "image_url", "url") or text_at(part, "image_url")))
                )
            case "image_file":
                name = text_at(part, "image_file", "filename") or text_at(part, "image_file", "filepath")
                images.append((name, find_file(name)))
            case _:
                common.note_loss("unknown part")
                texts.append(text_at(part, "text"))
    text = joined(*texts) or ("" if failure else text_at(node, "text"))
    if old := _THINKING.match(text):
        text = text[old.end() :]
        thoughts.append(old[1].strip())
    files = objects_at(node, "files")
    pictures = [text_at(one, "filename") for one in files if text_at(one, "type").startswith("image/")]
    names = [text_at(one, "filename") for one in files if not text_at(one, "type").startswith("image/")]
    text, found = common.with_files("image", text, [*images, *((name, find_file(name)) for name in pictures)])
    text, documents = common.with_files("document", text, [(name, find_file(name)) for name in names])
    found += documents
    is_question = node.get("isCreatedByUser") is True
    if not (text.strip() or thoughts or found or failure):
        return None
    message = Message(
        id=0,
        parent_id=None,
        role="user" if is_question else "assistant",
        content=text or ("" if not is_question else failure),
        attachments=found,
        created_at=common.time_at(node, "createdAt") or "",
    )
    if not is_question:
        message.reasoning = joined(*thoughts)
        message.model = text_at(node, "model") or None
        message.token_usage = common.token_usage(node.get("promptTokens"), node.get("tokenCount"), None)
        message.stats = common.known(finish_reason=text_at(node, "finish_reason") or None)
        if failure:
            message.status, message.error = "error", {"code": "PROVIDER_ERROR", "message": failure}
        elif node.get("unfinished") is True:
            message.status = "interrupted"
    return message
