"""ChatGPT: conversations.json, an array of conversations. `mapping` is a tree; nodes that the program does not show are left out."""

import re
from typing import Any

from ...backends.loose import array_at, at, decode, objects_at, text_at
from ..transcript import Conversation, Message
from .common import ROLES, FindImage, finish, identity, joined, line_at, read_tree, time_at

_MARKER = re.compile("\ue200([a-z_]*)\ue202?([^\ue200\ue201]*)\ue201")  # a citation, link or entity: kind, then fields
_LEFTOVERS = re.compile("[\ue200-\uf8ff]")


def matches(row: dict[str, Any]) -> bool:
    return isinstance(row.get("mapping"), dict)


def parse(row: dict[str, Any], find_image: FindImage) -> Conversation:
    nodes = {text_at(key): node for key, node in row["mapping"].items()}
    thoughts: dict[str | None, str] = {None: ""}  # by the key of a node: those above it that no answer has taken yet

    def read(key: str, parent: str | None) -> Message | None:
        node = at(nodes[key], "message")
        thought = _read_thoughts(node)
        thoughts[key] = joined(thoughts[parent], thought or "")
        message = _read_message(node, find_image) if thought is None else None
        if message:
            message.reasoning = thoughts[key] if message.role == "assistant" else ""
            thoughts[key] = ""
        return message

    messages, nearest = read_tree(nodes, "parent", "children", read)
    return finish(
        source=identity("chatgpt", row.get("conversation_id"), row.get("id"), *nodes),
        title=line_at(row, "title"),
        created_at=time_at(row, "create_time"),
        messages=messages,
        active=nearest.get(text_at(row, "current_node")),
    )


def _read_thoughts(node: Any) -> str | None:
    if at(node, "content", "content_type") != "thoughts":
        return None
    thoughts = objects_at(node, "content", "thoughts")
    return joined(*(text_at(thought, name) for thought in thoughts for name in ("summary", "content")))


def _read_message(node: Any, find_image: FindImage) -> Message | None:
    role, kind, metadata = at(node, "author", "role"), at(node, "content", "content_type"), at(node, "metadata")
    if kind not in ("text", "multimodal_text") or role not in (*ROLES, "tool"):
        return None
    to_a_tool = role == "assistant" and node.get("recipient", "all") != "all"
    if to_a_tool or at(metadata, "is_visually_hidden_from_conversation"):
        return None
    parts = array_at(node, "content", "parts")
    images = [image for image in map(find_image, filter(None, (text_at(p, "asset_pointer") for p in parts))) if image]
    text = "" if role == "tool" else joined(*(text_at(part) or text_at(part, "text") for part in parts), by="\n")
    if role == "assistant":
        text = _LEFTOVERS.sub("", _MARKER.sub(_shown, text))
    if not (text.strip() or images):
        return None
    return Message(
        id=0,
        parent_id=None,
        role="user" if role == "user" else "assistant",  # the images of a tool are those that the assistant drew
        content=text,
        images=images,
        created_at=time_at(node, "create_time") or "",
        status="interrupted" if role == "assistant" and node.get("status") == "in_progress" else "complete",
        model=text_at(metadata, "model_slug") or None if role != "user" else None,
    )


def _shown(marker: re.Match[str]) -> str:
    """Return what ChatGPT shows for a marker: a link, an entity's name, or nothing."""
    kind, fields = marker[1], marker[2].split("\ue202")
    if kind == "url" and len(fields) > 1:
        return f"[{fields[0]}]({fields[1]})"
    if kind != "entity":
        return ""
    try:
        kind_and_name = array_at(decode(fields[0].encode()))
    except ValueError:
        return fields[0]
    return text_at(kind_and_name[1]) if len(kind_and_name) > 1 else ""
