"""The `messages` of OpenAI's API: an object with them, or an array or JSON Lines of such objects or of the messages themselves."""

from collections.abc import Iterator
from typing import Any

from ...backends.loose import at, object_at, objects_at, text_at
from ..transcript import Attachment, Conversation, Message
from . import common
from .common import FindFile, joined

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_TIMES = ("created_at", "create_time", "createdAt", "timestamp", "created")


def is_message(row: dict[str, Any]) -> bool:
    return row.get("role") in _ROLES and ("content" in row or "tool_calls" in row)


def join(rows: list[dict[str, Any]], beside: Any) -> Iterator[dict[str, Any]]:
    yield {"messages": rows}


def matches(row: dict[str, Any]) -> bool:
    return any(map(is_message, objects_at(row, "messages")))


def parse(row: dict[str, Any], find_file: FindFile) -> Conversation:
    prompts = [text_at(row, "system"), text_at(row, "system_prompt")]
    messages: list[Message] = []
    steps: list[Message] = []
    for node in objects_at(row, "messages"):
        if node.get("role") in ("system", "developer"):
            prompts.append(_read_content(node, find_file)[0])
        elif message := _read_message(node, find_file):
            messages.append(message)
            if node.get("tool_calls") or node.get("role") in ("tool", "function"):
                steps.append(message)
    messages = common.chain(messages)
    whole = common.digest(*(message.source or "" for message in messages))
    messages, _ = common.merge_steps(messages, {message.id for message in steps})
    return common.finish(
        source=common.identity("openai", row.get("id"), row.get("session_id"), whole),
        title=common.line_at(row, "title") or common.line_at(row, "name"),
        created_at=_time(row),
        system_prompt=joined(*prompts),
        model=text_at(row, "model") or None,
        messages=messages,
        active=None,
    )


def _time(value: dict[str, Any]) -> str | None:
    return next(filter(None, (common.time_at(value, name) for name in _TIMES)), None)


def _read_message(node: dict[str, Any], find_file: FindFile) -> Message | None:
    text, thoughts, images, documents = _read_content(node, find_file)
    role = node.get("role")
    if role in ("tool", "function"):
        text = common.tool_block(text_at(node, "name") or "result", None, text)
    elif role != "user":
        for call in (*objects_at(node, "tool_calls"), object_at(node, "function_call")):
            function = object_at(call, "function") or call
            if function:
                text = joined(text, common.tool_block(text_at(function, "name"), function.get("arguments"), None))
    if role not in _ROLES:
        common.note_loss("unknown part")
    text, attachments = common.with_files("document", text, documents)
    text, found = common.with_files("image", text, images)
    attachments += found
    if not (text.strip() or thoughts or attachments):
        return None
    is_question = role == "user"
    return Message(
        id=0,
        parent_id=None,
        role="user" if is_question else "assistant",
        content=text,
        reasoning="" if is_question else thoughts,
        attachments=attachments,
        created_at=_time(node) or "",
        model=None if is_question else text_at(node, "model") or None,
    )


def _read_content(node: dict[str, Any], find_file: FindFile) -> tuple[str, str, common.Files, common.Files]:
    """Return content, reasoning, images and documents."""
    texts = [text_at(node, "content")]
    thoughts = [text_at(node, "reasoning_content") or text_at(node, "reasoning") or text_at(node, "thinking")]
    images: common.Files = []
    documents: common.Files = []
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
                images.append(("", common.image_from_url(url) or find_file(url)))
            case "image":
                images.append(("", _source(part)))
            case "input_audio":
                texts.append(common.not_imported("audio"))
            case "file" | "input_file" | "document":
                fields = object_at(part, "file") or part
                name = text_at(fields, "filename") or text_at(fields, "title")
                encoded = text_at(fields, "file_data")
                data = encoded.partition(";base64,")[2] if encoded.startswith("data:") else encoded
                if document := common.file_from_base64(data) or _source(part):
                    documents.append((name, document))
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
    return text, joined(*thoughts), images, documents


def _source(part: dict[str, Any]) -> Attachment | None:
    """Return the file in a part as Anthropic's API has it. split.lift may have taken its data out."""
    file, data = text_at(part, "source", "file"), text_at(part, "source", "data")
    return Attachment(file=file) if file and not data else common.file_from_base64(data)
