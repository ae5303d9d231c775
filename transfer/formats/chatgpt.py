"""ChatGPT: conversations.json, an array of conversations. `mapping` is a tree; nodes that the program does not show are left out."""

import re
from typing import Any

from ...backends.loose import array_at, at, decode, object_at, objects_at, text_at
from ...queries.types import folder_name
from ..transcript import Conversation, Message
from . import common
from .common import ROLES, File, FindFile, finish, identity, joined, line_at, new_message, read_tree, time_at

_MARKER = re.compile("\ue200([a-z_]*)\ue202?([^\ue200\ue201]*)\ue201")  # a citation, link or entity: kind, then fields
_LEFTOVERS = re.compile("[\ue200-\uf8ff]")


def matches(row: dict[str, Any]) -> bool:
    return isinstance(row.get("mapping"), dict)


def parse(row: dict[str, Any], find_file: FindFile) -> Conversation:
    nodes = {text_at(key): object_at(node) for key, node in row["mapping"].items()}
    messages, active = read_tree(
        nodes,
        lambda node: _read_message(object_at(node, "message"), find_file),
        parent="parent",
        children="children",
        shown=text_at(row, "current_node"),
        is_step=lambda node: _is_step(at(node, "message")),
    )
    model = text_at(row, "default_model_slug")
    if row.get("is_archived") is True:
        common.note_loss("archived")
    maker = text_at(row, "gizmo_id") or text_at(row, "conversation_template_id")
    is_project = maker.startswith("g-p-")
    if maker and not is_project:
        common.note_loss("custom GPT", line_at(row, "gizmo_name") or maker)
    return finish(
        source=identity("chatgpt", row.get("conversation_id"), row.get("id"), *nodes),
        title=line_at(row, "title"),
        created_at=time_at(row, "create_time"),
        pinned=row.get("is_starred") is True,
        folder=folder_name((line_at(row, "gizmo_name") or f"ChatGPT project {maker[4:12]}") if is_project else ""),
        model=None if model == "auto" else model or None,
        messages=messages,
        active=active,
    )


def _is_step(node: Any) -> bool:
    """Return whether a node is a thought, a tool call or its result, which are parts of the answer below them."""
    is_thought = at(node, "content", "content_type") == "thoughts"
    return is_thought or at(node, "author", "role") == "tool" or _tool(node) != ""


def _tool(node: Any) -> str:
    """Return the name of the tool that an assistant calls, or "" for an answer to the user."""
    recipient = text_at(node, "recipient")
    return recipient if at(node, "author", "role") == "assistant" and recipient != "all" else ""


_HIDDEN = ("user_editable_context", "model_editable_context", "reasoning_recap")
_PLAIN = (
    "text",
    "multimodal_text",
    "code",
    "execution_output",
    "system_error",
    "tether_quote",
    "tether_browsing_display",
)
_AUDIO = ("audio_asset_pointer", "real_time_user_audio_video_asset_pointer")


def _read_message(node: Any, find_file: FindFile) -> Message | None:
    role, kind, metadata = at(node, "author", "role"), text_at(node, "content", "content_type"), at(node, "metadata")
    if role not in (*ROLES, "tool") or kind in _HIDDEN or at(metadata, "is_visually_hidden_from_conversation"):
        return None
    text, thoughts = _read_text(node), ""
    if kind == "thoughts":
        steps = objects_at(node, "content", "thoughts")
        thoughts = joined(*(text_at(step, name) for step in steps for name in ("summary", "content")))
    elif kind not in _PLAIN:
        common.note_loss("unknown part")
    if role == "tool":
        text = _read_result(node, text)
    elif tool := _tool(node):
        text = _read_call(tool, text)
    elif role == "assistant":
        text = common.fenced(text, _language(node)) if kind == "code" and text else text
        text = _LEFTOVERS.sub("", _MARKER.sub(_shown, text))
    for part in objects_at(node, "content", "parts"):
        if part.get("content_type") in _AUDIO:
            line = common.not_imported("audio")
            text = text or line  # beside a recording is what was said
    return new_message(
        role,
        time_at(node, "create_time"),
        text,
        _read_files(node, find_file),
        reasoning=thoughts,
        status="interrupted" if role == "assistant" and node.get("status") == "in_progress" else "complete",
        model=text_at(metadata, "model_slug") or None,
    )


def _read_text(node: Any) -> str:
    content = object_at(node, "content")
    names = ("title", "name", "url", "summary", "result", "text")
    own = (text_at(content, name) for name in names if name in content)
    return joined(*own, *(text_at(part) or text_at(part, "text") for part in array_at(content, "parts")), by="\n")


def _language(node: Any) -> str:
    language = text_at(node, "content", "language")
    return "" if language == "unknown" else language


def _read_call(tool: str, text: str) -> str:
    if not text.strip():
        return ""
    if tool == "python":
        common.note_loss("code")
        return common.fenced(text, "python")
    canvas = _read_canvas(text) if tool.startswith("canmore.") else ""
    return canvas or common.tool_block(tool, text, None)


def _read_canvas(text: str) -> str:
    """Return the text that a call writes into the canvas as a code block, or "" when it writes none."""
    try:
        call = decode(text.encode())
    except ValueError:
        return ""
    written = text_at(call, "content") or joined(*(text_at(one, "replacement") for one in objects_at(call, "updates")))
    if not written:
        return ""
    common.note_loss("canvas")
    kind = text_at(call, "type")
    language = "markdown" if kind == "document" else kind.removeprefix("code/")
    return joined(f"**{line_at(call, 'name') or 'Canvas'}**", common.fenced(written, language))


def _read_result(node: Any, text: str) -> str:
    name, kind = text_at(node, "author", "name"), at(node, "content", "content_type")
    draws = any(text_at(part, "asset_pointer") for part in array_at(node, "content", "parts"))
    if draws or name.startswith("canmore.") or not text.strip():
        return ""  # an image is shown itself; the canvas only says that it was changed
    if kind == "execution_output":
        return common.fenced(text)
    return common.tool_block(name or "result", None, text)


def _read_files(node: Any, find_file: FindFile) -> list[File]:
    attachments = {text_at(one, "id"): one for one in objects_at(node, "metadata", "attachments")}
    pointers: list[str] = []
    for part in objects_at(node, "content", "parts"):
        if part.get("content_type") in _AUDIO:
            continue
        if pointer := text_at(part, "asset_pointer"):
            pointers.append(pointer)
        elif part and not text_at(part, "text"):
            common.note_loss("unknown part")
    results = objects_at(node, "metadata", "aggregate_result", "messages")
    pointers += filter(None, (text_at(result, "image_url") for result in results))
    shown = {pointer.rpartition("://")[2] for pointer in pointers}
    files: list[File] = []
    for key, one in attachments.items():
        is_image = (text_at(one, "mime_type") or text_at(one, "mimeType")).startswith("image/")
        if key and key not in shown and is_image:
            pointers.append(key)
        elif key not in shown:
            files.append(File("document", text_at(one, "name"), find_file(key) if key else None))
    for pointer in pointers:
        key = pointer.rpartition("://")[2]
        files.append(File("image", text_at(attachments.get(key), "name") or key, find_file(pointer)))
    return files


def _shown(marker: re.Match[str]) -> str:
    """Return what ChatGPT shows for a marker: a link, an entity's name, or nothing."""
    kind, fields = marker[1], marker[2].split("\ue202")
    if kind == "url" and len(fields) > 1:
        return f"[{fields[0]}]({fields[1]})"
    if kind != "entity":
        common.note_loss("citation")
        return ""
    try:
        kind_and_name = array_at(decode(fields[0].encode()))
    except ValueError:
        return fields[0]
    return text_at(kind_and_name[1]) if len(kind_and_name) > 1 else ""
