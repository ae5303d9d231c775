"""Claude: conversations.json of the data export, or a chat as its web page loads it. A message names its parent; in older exports, none does."""

import re
from collections import defaultdict, deque
from typing import Any

from ...backends.loose import object_at, objects_at, text_at
from ..transcript import Conversation, Message
from . import common
from .common import File, FindFile, joined

_LANGUAGES = {  # of artifacts, by type
    "text/html": "html",
    "text/markdown": "markdown",
    "image/svg+xml": "svg",
    "application/vnd.ant.mermaid": "mermaid",
    "application/vnd.ant.react": "jsx",
}
_IMAGE_NAME = re.compile(r"\.(png|jpe?g|gif|webp|heic|bmp|svg)\Z", re.IGNORECASE)
_ATTRIBUTE = re.compile(r'([a-z]+)="([^"]*)"')
_END = "</antArtifact>"


def matches(row: dict[str, Any]) -> bool:
    return isinstance(row.get("chat_messages"), list)


def parse(row: dict[str, Any], find_file: FindFile) -> Conversation:
    nodes = common.linked(objects_at(row, "chat_messages"), "uuid", "parent_message_uuid")
    model = text_at(row, "model") or None
    messages, active = common.read_tree(
        nodes,
        lambda node: _read_message(node, model, find_file),
        parent="parent",
        shown=text_at(row, "current_leaf_message_uuid"),
    )
    return common.finish(
        source=common.identity("claude", row.get("uuid"), *nodes),
        title=common.line_at(row, "name"),
        created_at=common.time_at(row, "created_at"),
        pinned=row.get("is_starred") is True,
        model=model,
        messages=messages,
        active=active,
    )


def _read_message(node: dict[str, Any], model: str | None, find_file: FindFile) -> Message | None:
    if node.get("sender") not in ("human", "user", "assistant"):
        return None
    text, reasoning = _read_blocks(objects_at(node, "content"))
    files: list[File] = []
    for one in objects_at(node, "attachments"):
        name = text_at(one, "file_name")
        content = common.text_file(name or "pasted.txt", text_at(one, "extracted_content"))
        files.append(File("document", name, content))
    names = [text_at(one, "file_name") for one in (*objects_at(node, "files"), *objects_at(node, "files_v2"))]
    for name in dict.fromkeys(filter(None, names)):
        files.append(File("image" if _IMAGE_NAME.search(name) else "document", name, find_file(name)))
    return common.new_message(
        "assistant" if node["sender"] == "assistant" else "user",
        common.time_at(node, "created_at"),
        text or _with_artifacts(text_at(node, "text")),
        files,
        reasoning=reasoning,
        model=model,
    )


def _read_blocks(blocks: list[dict[str, Any]]) -> tuple[str, str]:
    """Return content and reasoning. A tool call is followed by its result, which may lack the call's id."""
    texts: list[str] = []
    thoughts: list[str] = []
    results = defaultdict[str, deque[dict[str, Any]]](deque)  # that no call has taken yet, by the call's id
    for block in blocks:
        if block.get("type") == "tool_result":
            results[text_at(block, "tool_use_id")].append(block)
    for block in blocks:
        match block.get("type"):
            case "text":
                texts.append(_with_artifacts(text_at(block, "text")))
            case "thinking":
                thoughts.append(text_at(block, "thinking"))
            case "tool_use":
                own = results[text_at(block, "id")]
                result = own.popleft() if own else None
                name, fields = text_at(block, "name"), object_at(block, "input")
                if name == "artifacts" and text_at(fields, "content"):
                    texts.append(_artifact(fields, text_at(fields, "content")))
                else:
                    texts.append(common.tool_block(name, block.get("input"), _result(result)))
            case "tool_result":
                own = results[text_at(block, "tool_use_id")]
                if own and own[0] is block:
                    texts.append(common.tool_block(text_at(block, "name"), None, _result(own.popleft())))
            case "token_budget" | "flag":
                pass
            case _:
                common.note_loss("unknown part")
                texts.append(text_at(block, "text"))
    return joined(*texts), joined(*thoughts)


def _result(block: dict[str, Any] | None) -> Any:
    texts = [text_at(part, "text") for part in objects_at(block, "content")]
    return joined(*texts, by="\n") or (block or {}).get("content")


def _artifact(fields: dict[str, Any], content: str) -> str:
    common.note_loss("artifact")
    title = common.line_at(fields, "title")
    language = text_at(fields, "language") or _LANGUAGES.get(text_at(fields, "type"), "")
    return joined(title and f"**{title}**", common.fenced(content.strip("\n"), language))


def _with_artifacts(text: str) -> str:
    """Replace <antArtifact>, which older answers contain, by a code block. One without an end stays."""
    *ended, rest = text.split(_END)
    kept: list[str] = []
    for piece in ended:
        before, opening, inside = piece.partition("<antArtifact ")
        attributes, closing, content = inside.partition(">")
        if opening and closing:
            kept += [before.rstrip(), _artifact(dict(_ATTRIBUTE.findall(attributes)), content)]
        else:
            kept.append(piece + _END)
    return joined(*kept, rest.lstrip() if kept else rest)
