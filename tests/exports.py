"""What other programs write, made from the facts of their formats: LM Studio, ChatGPT and Open WebUI."""

import base64
import json
import zlib
from typing import Any


def png(shade: int = 0) -> bytes:
    """A whole PNG of one pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = (1).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    pixel = zlib.compress(bytes([0, shade]))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixel) + chunk(b"IEND", b"")


# ---- LM Studio: one *.conversation.json a chat


def asked(text: str, *files: str) -> dict[str, Any]:
    """A version of a question."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
    parts += [{"type": "file", "fileIdentifier": file, "fileType": "image", "sizeBytes": 70} for file in files]
    return {"type": "singleStep", "role": "user", "content": parts, "preprocessed": {"content": "not what was typed"}}


def block(text: str, thinking: bool = False, at: int | None = None, **stats: Any) -> dict[str, Any]:
    """A step of an answer."""
    step: dict[str, Any] = {"type": "contentBlock", "content": [{"type": "text", "text": text, "tokensCount": 3}]}
    if at is not None:
        step["stepIdentifier"] = f"{at}-0.8125"
    if thinking:
        step["style"] = {"type": "thinking", "title": "Thought for 2 seconds", "ended": True}
        structure = [{"type": "text", "text": tag, "isStructural": True} for tag in ("<think>", "</think>")]
        step["content"] = [structure[0], *step["content"], structure[1]]
    if stats:
        loaded = {"fields": [{"key": "llm.load.contextLength", "value": 4096}]}
        step["genInfo"] = {"identifier": "qwen3-4b", "loadModelConfig": loaded, "stats": stats}
    return step


def answered(*steps: dict[str, Any], sender: str = "qwen3-4b") -> dict[str, Any]:
    """A version of an answer."""
    return {"type": "multiStep", "role": "assistant", "senderInfo": {"senderName": sender}, "steps": list(steps)}


def turn(*versions: dict[str, Any], selected: int = 0) -> dict[str, Any]:
    return {"versions": list(versions), "currentlySelected": selected}


def lmstudio(*turns: dict[str, Any], made: int = 1_720_000_000_123, **fields: Any) -> dict[str, Any]:
    prompt = {"fields": [{"key": "llm.prediction.systemPrompt", "value": "Be brief."}]}
    return {
        "name": "Rivers",
        "pinned": False,
        "createdAt": made,
        "tokenCount": 100,
        "systemPrompt": "",
        "messages": list(turns),
        "perChatPredictionConfig": prompt,
        "lastUsedModel": {"identifier": "qwen3-4b"},
    } | fields


STATS: dict[str, Any] = {
    "stopReason": "eosFound",
    "tokensPerSecond": 41.256,
    "timeToFirstTokenSec": 0.25,
    "totalTimeSec": 3.5,
    "promptTokensCount": 30,
    "predictedTokensCount": 120,
    "totalTokensCount": 150,
}


# ---- ChatGPT: conversations.json, a tree of nodes a chat


def node(
    key: str,
    parent: str | None,
    role: str = "",
    *parts: Any,
    kind: str = "text",
    at: float | None = None,
    **fields: Any,
) -> dict[str, Any]:
    message: dict[str, Any] | None = None
    if role:
        metadata = {"model_slug": "gpt-4o"} if role == "assistant" else {}
        message = {
            "id": key,
            "author": {"role": role, "name": None, "metadata": {}},
            "create_time": at,
            "content": {"content_type": kind, "parts": list(parts)},
            "status": "finished_successfully",
            "metadata": metadata | fields.pop("metadata", {}),
            "recipient": "all",
        } | fields
    return {"id": key, "message": message, "parent": parent, "children": []}


def thoughts(key: str, parent: str, *pairs: tuple[str, str]) -> dict[str, Any]:
    made = node(key, parent, "assistant", kind="thoughts")
    made["message"]["content"] = {
        "content_type": "thoughts",
        "thoughts": [{"summary": summary, "content": content, "finished": True} for summary, content in pairs],
    }
    return made


def picture(pointer: str) -> dict[str, Any]:
    return {"content_type": "image_asset_pointer", "asset_pointer": pointer, "size_bytes": 70}


def chatgpt(*nodes: dict[str, Any], current: str, id: str = "c0ffee", **fields: Any) -> dict[str, Any]:
    mapping = {made["id"]: made for made in nodes}
    for made in nodes:
        if made["parent"] in mapping:
            mapping[made["parent"]]["children"].append(made["id"])
    return {
        "title": "Bridges",
        "create_time": 1_700_000_000.5,
        "update_time": 1_700_000_900.25,
        "mapping": mapping,
        "current_node": current,
        "conversation_id": id,
        "default_model_slug": "auto",
    } | fields


# ---- Open WebUI: an array of rows


def said(
    key: str, parent: str | None, role: str, content: Any, at: int = 1_710_000_000, **fields: Any
) -> dict[str, Any]:
    return {
        "id": key,
        "parentId": parent,
        "childrenIds": [],
        "role": role,
        "content": content,
        "timestamp": at,
    } | fields


def openwebui(*messages: dict[str, Any], current: str, id: str = "b0a7", **fields: Any) -> dict[str, Any]:
    tree = {message["id"]: message for message in messages}
    for message in messages:
        if message["parentId"] in tree:
            tree[message["parentId"]]["childrenIds"].append(message["id"])
    chat = {
        "id": "",
        "title": "Boats",
        "models": ["llama3.2"],
        "params": {"system": "Be kind."},
        "timestamp": 1_710_000_000_000,
    }
    chat["history"] = {"messages": tree, "currentId": current}
    return {
        "id": id,
        "user_id": "u",
        "title": "Boats",
        "chat": chat,
        "created_at": 1_710_000_000,
        "updated_at": 1_710_000_500,
        "archived": False,
        "pinned": True,
    } | fields


def data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def dumps(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
