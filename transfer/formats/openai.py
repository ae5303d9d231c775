"""The `messages` of OpenAI's API: an object with them, or an array or JSON Lines of such objects or of the messages themselves."""

from collections.abc import Iterator
from typing import Any

from ...backends.loose import at, object_at, objects_at, text_at
from ..transcript import Attachment, Conversation, Message
from . import common
from .common import File, FindFile, joined

_PROMPTS = ("system", "developer")
_ROLES = (*_PROMPTS, "user", "assistant", "tool", "function")
_TIMES = ("created_at", "create_time", "createdAt", "timestamp", "created")


def is_message(row: dict[str, Any]) -> bool:
    return row.get("role") in _ROLES and ("content" in row or "tool_calls" in row)


def join(rows: list[dict[str, Any]], beside: Any) -> Iterator[dict[str, Any]]:
    yield {"messages": rows}


def matches(row: dict[str, Any]) -> bool:
    return any(map(is_message, objects_at(row, "messages")))


def parse(row: dict[str, Any], find_file: FindFile) -> Conversation:
    nodes = objects_at(row, "messages")
    prompts = [_read_content(node, find_file)[0] for node in nodes if node.get("role") in _PROMPTS]
    messages, sources = common.read_list(
        nodes,
        lambda node: _read_message(node, find_file),
        is_step=lambda node: node.get("tool_calls") or node.get("role") in ("tool", "function"),
    )
    return common.finish(
        source=common.identity("openai", row.get("id"), row.get("session_id"), common.digest(*sources)),
        title=common.line_at(row, "title") or common.line_at(row, "name"),
        created_at=_time(row),
        system_prompt=joined(text_at(row, "system"), text_at(row, "system_prompt"), *prompts),
        model=text_at(row, "model") or None,
        messages=messages,
    )


def _time(value: dict[str, Any]) -> str | None:
    return next(filter(None, (common.time_at(value, name) for name in _TIMES)), None)


def _read_message(node: dict[str, Any], find_file: FindFile) -> Message | None:
    role = node.get("role")
    if role in _PROMPTS:
        return None
    text, thoughts, files = _read_content(node, find_file)
    if role in ("tool", "function"):
        text = common.tool_block(text_at(node, "name") or "result", None, text)
    elif role != "user":
        for call in (*objects_at(node, "tool_calls"), object_at(node, "function_call")):
            function = object_at(call, "function") or call
            if function:
                text = joined(text, common.tool_block(text_at(function, "name"), function.get("arguments"), None))
    if role not in _ROLES:
        common.note_loss("unknown part")
    return common.new_message(role, _time(node), text, files, reasoning=thoughts, model=text_at(node, "model") or None)


def _read_content(node: dict[str, Any], find_file: FindFile) -> tuple[str, str, list[File]]:
    """Return content, reasoning and files."""
    texts = [text_at(node, "content")]
    thoughts = [text_at(node, "reasoning_content") or text_at(node, "reasoning") or text_at(node, "thinking")]
    files: list[File] = []
    for part in objects_at(node, "content"):
        match part.get("type"):
            case "text" | "input_text" | "output_text":
                texts.append(text_at(part, "text"))
            case "refusal":
                texts.append(text_at(part, "refusal"))
            case "thinking" | "reasoning":
                thoughts.append(text_at(part, "thinking") or text_at(part, "text"))
            case "image_url" | "input_image":
                url = text_at(part, "image_url", "url") or text_at(part, "image_url")
                files.append(File("image", "", common.image_from_url(url) or find_file(url)))
            case "image":
                files.append(File("image", "", _source(part)))
            case "input_audio":
                texts.append(common.not_imported("audio"))
            case "file" | "input_file" | "document":
                fields = object_at(part, "file") or part
                name = text_at(fields, "filename") or text_at(fields, "title")
                encoded = text_at(fields, "file_data")
                data = encoded.partition(";base64,")[2] if encoded.startswith("data:") else encoded
                if document := common.file_from_base64(data) or _source(part):
                    files.append(File("document", name, document))
                else:
                    texts.append(common.not_imported("document", name))
            case "tool_use":
                texts.append(common.tool_block(text_at(part, "name"), part.get("input"), None))
            case "tool_result":
                inner = joined(*(text_at(one, "text") for one in objects_at(part, "content")), by="\n")
                texts.append(common.tool_block("result", None, inner or at(part, "content")))
            case _:
                common.note_loss("unknown part")
                texts.append(text_at(part, "text"))
    text = joined(*texts, by="\n")
    if node.get("role") == "assistant" and not any(thoughts):
        text, thought = common.split_thinking(text)
        thoughts.append(thought)
    return text, joined(*thoughts), files


def _source(part: dict[str, Any]) -> Attachment | None:
    """Return the file in a part as Anthropic's API has it. split.lift may have taken its data out."""
    file, data = text_at(part, "source", "file"), text_at(part, "source", "data")
    return Attachment(file=file) if file and not data else common.file_from_base64(data)
