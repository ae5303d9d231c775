"""The web page of llama.cpp's server: {"conv", "messages"} for a conversation, or an array of these. Messages form a tree."""

from typing import Any

from ...backends.loose import at, decode, number_at, objects_at, text_at
from ..transcript import Conversation, Message
from . import common
from .common import File, FindFile, joined


def matches(row: dict[str, Any]) -> bool:
    return isinstance(row.get("conv"), dict) and isinstance(row.get("messages"), list)


def parse(row: dict[str, Any], find_file: FindFile) -> Conversation:
    """Images are in the JSON itself, so `find_file` is not used."""
    rows = [
        node | {"id": _key(node.get("id")), "parent": _key(node.get("parent")), "children": _keys(node.get("children"))}
        for node in objects_at(row, "messages")
    ]
    nodes = common.keyed(rows, "id")
    messages, active = common.read_tree(
        nodes,
        _read_message,
        parent="parent",
        children="children",
        shown=_key(at(row, "conv", "currNode")),
        is_step=lambda node: node.get("role") == "tool" or _tool_calls(node),
    )
    return common.finish(
        source=common.identity("llamacpp", _key(at(row, "conv", "id")), *nodes),
        title=common.line_at(row, "conv", "name"),
        system_prompt=joined(*(text_at(node, "content") for node in nodes.values() if _is_prompt(node))),
        messages=messages,
        active=active,
    )


def _is_prompt(node: dict[str, Any]) -> bool:
    return node.get("role") == "system" or node.get("type") == "root"


def _key(value: Any) -> str:
    return str(value) if isinstance(value, int) and abs(value) < 2**63 else text_at(value)


def _keys(value: Any) -> list[str]:
    return [_key(key) for key in value] if isinstance(value, list) else []


def _read_message(node: dict[str, Any]) -> Message | None:
    if _is_prompt(node):
        return None
    role, text, reasoning = node.get("role"), text_at(node, "content"), ""
    if role == "tool":
        text = common.tool_block("result", None, text)
    elif role != "user":
        reasoning = text_at(node, "thinking") or text_at(node, "reasoningContent")
        if not reasoning:
            text, reasoning = common.split_thinking(text)
        for call in _tool_calls(node):
            block = common.tool_block(text_at(call, "function", "name"), at(call, "function", "arguments"), None)
            text = joined(text, block)
    files: list[File] = []
    for extra in objects_at(node, "extra"):
        kind, name = text_at(extra, "type").lower(), text_at(extra, "name")
        if kind.startswith("image"):
            files.append(File("image", name, common.image_from_url(text_at(extra, "base64Url"))))
        elif kind.startswith("audio"):
            text = joined(text, common.not_imported("audio", name))
        else:
            original = common.file_from_base64(text_at(extra, "base64Data"))  # of a PDF, beside its text
            files.append(File("document", name, original or common.text_file(name, text_at(extra, "content"))))
    return common.new_message(
        role,
        common.time_at(node, "timestamp"),
        text,
        files,
        reasoning=reasoning,
        model=text_at(node, "model") or None,
        **_read_timings(node.get("timings")),
    )


def _tool_calls(node: dict[str, Any]) -> list[dict[str, Any]]:
    try:
        return objects_at({"calls": decode(text_at(node, "toolCalls").encode())}, "calls")
    except ValueError:
        return []


def _read_timings(timings: Any) -> dict[str, Any]:
    prompt_ms, answer_ms, predicted = (
        number_at(timings, name) for name in ("prompt_ms", "predicted_ms", "predicted_n")
    )
    prompt = (number_at(timings, "prompt_n") or 0) + (number_at(timings, "cache_n") or 0)
    stats = None
    if prompt_ms and answer_ms and predicted is not None:
        stats = {
            "ttft_ms": round(prompt_ms),
            "total_ms": round(prompt_ms + answer_ms),
            "tokens_per_second": round(predicted / answer_ms * 1000, 2),
        }
    return {"token_usage": common.token_usage(prompt or None, predicted, None), "stats": stats}
