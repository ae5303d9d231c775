"""The web page of llama.cpp's server: {"conv", "messages"} for a conversation, or an array of these. Messages form a tree."""

from typing import Any, Literal

from ...backends.loose import at, decode, number_at, objects_at, text_at
from ..transcript import Attachment, Conversation, Message
from . import common
from .common import FindFile, joined


def matches(row: dict[str, Any]) -> bool:
    return isinstance(row.get("conv"), dict) and isinstance(row.get("messages"), list)


def parse(row: dict[str, Any], find_file: FindFile) -> Conversation:
    """Images are in the JSON itself, so `find_file` is not used."""
    ids = ("id", "parent")  # were numbers once
    nodes = dict(
        common.keyed(
            (node | {name: _key(node.get(name)) for name in ids} for node in objects_at(row, "messages")), "id"
        )
    )
    children = {key: {"parent": node["parent"], "children": _keys(node.get("children"))} for key, node in nodes.items()}
    prompts: list[str] = []
    steps: set[str] = set()

    def read(key: str, parent: str | None) -> Message | None:
        node = nodes[key]
        if node.get("role") == "system" or node.get("type") == "root":
            prompts.append(text_at(node, "content"))
            return None
        message, is_step = _read_message(node)
        if is_step:
            steps.add(key)
        return message

    messages, nearest = common.read_tree(children, "parent", "children", read)
    messages, merged = common.merge_steps(messages, {message.id for message in messages if message.source in steps})
    active = nearest.get(_key(at(row, "conv", "currNode"))) or common.newest(messages)
    return common.finish(
        source=common.identity("llamacpp", _key(at(row, "conv", "id")), *nodes),
        title=common.line_at(row, "conv", "name"),
        created_at=None,
        system_prompt=joined(*prompts),
        messages=messages,
        active=merged.get(active or 0, active),
    )


def _key(value: Any) -> str:
    return str(value) if isinstance(value, int) and abs(value) < 2**63 else text_at(value)


def _keys(value: Any) -> list[str]:
    return [_key(key) for key in value] if isinstance(value, list) else []


def _read_message(node: dict[str, Any]) -> tuple[Message | None, bool]:
    """Return the message, and whether it is a step before an answer."""
    role: Literal["user", "assistant"] = "user" if node.get("role") == "user" else "assistant"
    text, reasoning = text_at(node, "content"), text_at(node, "thinking") or text_at(node, "reasoningContent")
    is_step = node.get("role") == "tool"
    if is_step:
        text = common.tool_block("result", None, text)
    elif role == "assistant":
        if not reasoning:
            text, reasoning = common.split_thinking(text)
        for call in _tool_calls(text_at(node, "toolCalls")):
            is_step = True
            text = joined(
                text, common.tool_block(text_at(call, "function", "name"), at(call, "function", "arguments"), None)
            )
    text, attachments = _with_extras(text, objects_at(node, "extra"))
    if not (text.strip() or reasoning or attachments):
        return None, is_step
    message = Message(
        id=0,
        parent_id=None,
        role=role,
        content=text,
        attachments=attachments,
        created_at=common.time_at(node, "timestamp") or "",
    )
    if role == "assistant":
        message.reasoning, message.model = reasoning, text_at(node, "model") or None
        _add_timings(message, node.get("timings"))
    return message, is_step


def _tool_calls(encoded: str) -> list[dict[str, Any]]:
    try:
        return objects_at({"calls": decode(encoded.encode())}, "calls")
    except ValueError:
        return []


def _with_extras(text: str, extras: list[dict[str, Any]]) -> tuple[str, list[Attachment]]:
    images: common.Files = []
    documents: common.Files = []
    for extra in extras:
        kind, name = text_at(extra, "type").lower(), text_at(extra, "name")
        if kind.startswith("image"):
            images.append((name, common.image_from_url(text_at(extra, "base64Url"))))
        elif kind.startswith("audio"):
            text = joined(text, common.not_imported("audio", name))
        else:
            original = common.file_from_base64(text_at(extra, "base64Data"))  # of a PDF, beside its text
            documents.append((name, original or common.text_file(name, text_at(extra, "content"))))
    text, attachments = common.with_files("document", text, documents)
    text, found = common.with_files("image", text, images)
    return text, attachments + found


def _add_timings(message: Message, timings: Any) -> None:
    prompt_ms, answer_ms, predicted = (
        number_at(timings, name) for name in ("prompt_ms", "predicted_ms", "predicted_n")
    )
    prompt = (number_at(timings, "prompt_n") or 0) + (number_at(timings, "cache_n") or 0)
    message.token_usage = common.token_usage(prompt or None, predicted, None)
    if prompt_ms and answer_ms and predicted is not None:
        message.stats = {
            "ttft_ms": round(prompt_ms),
            "total_ms": round(prompt_ms + answer_ms),
            "tokens_per_second": round(predicted / answer_ms * 1000, 2),
        }
