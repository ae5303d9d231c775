"""Open WebUI: an array of rows, each with its `chat`; or one row, or a chat alone."""

import html
import re
from typing import Any

from ...backends.loose import object_at, objects_at, text_at
from ..transcript import Conversation, Message
from . import common
from .common import FindImage


def matches(row: dict[str, Any]) -> bool:
    objects = isinstance(row.get("chat"), dict) or isinstance(row.get("history"), dict)
    return objects or isinstance(row.get("models"), list)


def parse(row: dict[str, Any], find_image: FindImage) -> Conversation:
    """Images are in the JSON itself, so `find_image` is not used."""
    chat = object_at(row, "chat") or row
    nodes, current = _nodes(chat)
    prompts = [text_at(chat, "params", "system"), text_at(chat, "system")]

    def read(key: str, parent: str | None) -> Message | None:
        if nodes[key].get("role") == "system":
            prompts.append(text_at(nodes[key], "content"))
        return _read_message(nodes[key])

    messages, nearest = common.read_tree(nodes, "parentId", "childrenIds", read)
    return common.finish(
        source=common.identity("openwebui", row.get("id"), chat.get("id"), *nodes),
        title=common.line_at(row, "title") or common.line_at(chat, "title"),
        created_at=common.time_at(row, "created_at") or common.time_at(chat, "timestamp"),
        pinned=row.get("pinned") is True,
        system_prompt=next(filter(None, prompts), ""),
        messages=messages,
        active=nearest.get(current),
    )


def _nodes(chat: dict[str, Any]) -> tuple[dict[str, dict[str, Any]], str]:
    """Return the tree, or the list of older versions as a tree, and the key of the current message."""
    tree = object_at(chat, "history", "messages")
    if tree:
        return {text_at(key): object_at(node) for key, node in tree.items()}, text_at(chat, "history", "currentId")
    nodes: dict[str, dict[str, Any]] = {}
    last: str | None = None
    for number, node in enumerate(objects_at(chat, "messages"), 1):
        key = text_at(node, "id") or f"no. {number}"
        nodes[key] = node | {"parentId": last, "childrenIds": []}
        last = key
    return nodes, last or ""


def _read_message(node: dict[str, Any]) -> Message | None:
    role = node.get("role")
    if role not in common.ROLES:
        return None
    parts = objects_at(node, "content")
    text = text_at(node, "content") or common.joined(*(text_at(part, "text") for part in parts), by="\n")
    urls = [text_at(part, "image_url", "url") for part in parts] + [
        text_at(file, "url") for file in objects_at(node, "files")
    ]
    images = [image for image in map(common.image_from_url, urls) if image]
    content, reasoning, seconds = _without_details(text) if role == "assistant" else (text, "", 0)
    failure = node.get("error")
    if not (content.strip() or reasoning or images or failure):
        return None
    message = Message(
        id=0,
        parent_id=None,
        role=role,
        content=content,
        images=images,
        created_at=common.time_at(node, "timestamp") or "",
    )
    if role == "user":
        return message
    message.reasoning = reasoning
    message.model = text_at(node, "model") or text_at(node, "modelName") or None
    if failure:
        reason = text_at(failure) or text_at(failure, "content") or "The model server failed."
        message.status, message.error = "error", {"code": "PROVIDER_ERROR", "message": reason}
    elif node.get("done") is False:
        message.status = "interrupted"
    facts = object_at(node, "usage") or object_at(node, "info")
    counts = (next((facts[name] for name in names if name in facts), None) for names in _COUNTS)
    message.token_usage = common.token_usage(*counts)
    message.stats = common.known(
        reasoning_ms=seconds * 1000 or None,
        total_ms=common.milliseconds_at(facts, "total_duration", seconds=1e-9),
        tokens_per_second=common.rate_at(facts, "response_token/s"),
    )
    return message


_COUNTS = (  # the names that OpenAI's API, Anthropic's and Ollama's have for each
    ("prompt_tokens", "input_tokens", "prompt_eval_count"),
    ("completion_tokens", "output_tokens", "eval_count"),
    ("total_tokens",),
)
_DETAILS = re.compile('<details type="(reasoning|tool_calls)"')
_SUMMARY = re.compile(r"\s*<summary>[^<]*</summary>")


def _without_details(text: str) -> tuple[str, str, int]:
    """Split an answer into content, reasoning and seconds of reasoning. Tool calls are left out; a block without an end stays."""
    kept: list[str] = []
    thoughts: list[str] = []
    seconds = done = 0
    while opening := _DETAILS.search(text, done):
        inside = text.find(">", opening.end()) + 1
        end = text.find("</details>", inside)
        if not inside or end < 0:
            break
        kept.append(text[done : opening.start()].rstrip())
        done = end + len("</details>")
        if opening[1] == "reasoning":
            lines = html.unescape(_SUMMARY.sub("", text[inside:end], 1)).strip().splitlines()
            thoughts.append("\n".join(line.removeprefix(">").removeprefix(" ") for line in lines))
            duration = re.search(r'duration="([0-9]{1,7})"', text[opening.end() : inside])
            seconds += int(duration[1]) if duration else 0
    if not done:
        return text, "", 0
    return common.joined(*kept, text[done:].lstrip()), common.joined(*thoughts), seconds
