"""Claude: conversations.json of the data export, or a chat as its web page loads it. A message names its parent; in older exports, none does."""

import re
from collections import defaultdict, deque
from typing import Any, Literal

from ...backends.loose import object_at, objects_at, text_at
from ..transcript import Conversation, Message
from . import common
from .common import FindFile, joined

_SENDERS: dict[str, Literal["user", "assistant"]] = {"human": "user", "user": "user", "assistant": "assistant"}
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
    nodes: dict[str, dict[str, Any]] = {}
    last: str | None = None
    for key, node in common.keyed(objects_at(row, "chat_messages"), "uuid"):
        nodes[key] = node | {"parent": text_at(node, "parent_message_uuid") or last}
        last = key
    model = text_at(row, "model") or None
    messages, nearest = common.read_tree(
        nodes, "parent", "", lambda key, parent: _read_message(nodes[key], model, find_file)
    )
    return common.finish(
        source=common.identity("claude", row.get("uuid"), *nodes),
        title=common.line_at(row, "name"),
        created_at=common.time_at(row, "created_at"),
        pinned=row.get("is_starred") is True,
        model=model,
        messages=messages,
        active=nearest.get(text_at(row, "current_leaf_message_uuid")) or common.newest(messages),
    )


def _read_message(node: dict[str, Any], model: str | None, find_file: FindFile) -> Message | None:
    role = _SENDERS.get(text_at(node, "sender"))
    if role is None:
        return None
    text, reasoning = _read_blocks(objects_at(node, "content"))
    text = text or _with_artifacts(text_at(node, "text"))
    texts = [
        (name := text_at(one, "file_name"), common.text_file(name or "pasted.txt", text_at(one, "extracted_content")))
        for one in objects_at(node, "attachments")
    ]
    names = [text_at(one, "file_name") for one in (*objects_at(node, "files"), *objects_at(node, "files_v2"))]
    files = {name: find_file(name) for name in names if name}
    documents = [(name, file) for name, file in files.items() if not _IMAGE_NAME.search(name)]
    text, attachments = common.with_files("document", text, [*texts, *documents])
    text, images = common.with_files("image", text, [(name, files[name]) for name in files if _IMAGE_NAME.search(name)])
    attachments += images
    if not (text.strip() or reasoning or attachments):
        return None
    return Message(
        id=0,
        parent_id=None,
        role=role,
        content=text,
        reasoning=reasoning if role == "assistant" else "",
        attachments=attachments,
        created_at=common.time_at(node, "created_at") or "",
        model=model if role == "assistant" else None,
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
