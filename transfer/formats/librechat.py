"""LibreChat: a JSON file for each conversation, with nested messages (`messagesTree`, or `messages` with `children`) or flat ones."""

import re
from collections.abc import Iterator
from typing import Any

from ...backends.loose import object_at, objects_at, text_at
from ..transcript import Conversation, Message
from . import common
from .common import File, FindFile, joined

_THINKING = re.compile(r"\s*:::thinking\n(.*?)\n:::\s*", re.DOTALL)


def matches(row: dict[str, Any]) -> bool:
    return "conversationId" in row and any(isinstance(row.get(name), list) for name in ("messages", "messagesTree"))


def parse(row: dict[str, Any], find_file: FindFile) -> Conversation:
    nodes = common.keyed(_flatten(row), "messageId")
    messages, active = common.read_tree(nodes, lambda node: _read_message(node, find_file), parent="parentMessageId")
    return common.finish(
        source=common.identity("librechat", row.get("conversationId"), *nodes),
        title=common.line_at(row, "title"),
        system_prompt=text_at(row, "options", "promptPrefix") or text_at(row, "options", "system"),
        model=text_at(row, "options", "model") or None,
        messages=messages,
        active=active,
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
    files: list[File] = []
    failure = text_at(node, "text") or common.FAILED if node.get("error") is True else ""
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
                failure = text_at(part, "error") or text_at(part, "text") or common.FAILED
            case "image_url":
                url = text_at(part, "image_url", "url") or text_at(part, "image_url")
                files.append(File("image", "", common.image_from_url(url)))
            case "image_file":
                name = text_at(part, "image_file", "filename") or text_at(part, "image_file", "filepath")
                files.append(File("image", name, find_file(name)))
            case _:
                common.note_loss("unknown part")
                texts.append(text_at(part, "text"))
    text = joined(*texts) or ("" if failure else text_at(node, "text"))
    if old := _THINKING.match(text):
        text = text[old.end() :]
        thoughts.append(old[1].strip())
    for one in objects_at(node, "files"):
        name = text_at(one, "filename")
        files.append(File("image" if text_at(one, "type").startswith("image/") else "document", name, find_file(name)))
    is_question = node.get("isCreatedByUser") is True
    return common.new_message(
        "user" if is_question else "assistant",
        common.time_at(node, "createdAt"),
        text or (failure if is_question else ""),
        files,
        reasoning=joined(*thoughts),
        failure=failure,
        status="interrupted" if node.get("unfinished") is True else "complete",
        model=text_at(node, "model") or None,
        token_usage=common.token_usage(node.get("promptTokens"), node.get("tokenCount"), None),
        stats=common.known(finish_reason=text_at(node, "finish_reason") or None),
    )
