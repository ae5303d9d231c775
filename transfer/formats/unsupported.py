"""Exports that Fireside recognises, to say which program wrote them, and cannot read."""

from collections.abc import Callable

from ...backends.loose import array_at, at
from .common import Row


def _is_deepseek(row: Row) -> bool:
    mapping = row.get("mapping")
    return isinstance(mapping, dict) and any(array_at(node, "message", "fragments") for node in mapping.values())


def _is_claude_code(row: Row) -> bool:
    is_summary = row.get("type") in ("summary", "file-history-snapshot") and ("leafUuid" in row or "snapshot" in row)
    return is_summary or ("sessionId" in row and "type" in row)


def _has(row: Row, **types: type) -> bool:
    """Return whether these fields have these types."""
    return all(isinstance(at(row, name), type) for name, type in types.items())


UNSUPPORTED: dict[str, Callable[[Row], bool]] = {
    "DeepSeek": _is_deepseek,
    "Grok": lambda row: _has(row, conversation=dict, responses=list),
    "Google AI Studio": lambda row: "chunkedPrompt" in row or ("runSettings" in row and "systemInstruction" in row),
    "Chatbot UI": lambda row: _has(row, history=list) and "folders" in row and "prompts" in row,
    "Codex": lambda row: row.get("type") == "session_meta" and _has(row, payload=dict),
    "Claude Code": _is_claude_code,
    "text-generation-webui": lambda row: _has(row, internal=list, visible=list),
    "KoboldCpp": lambda row: "gamestarted" in row and _has(row, actions=list),
    "Cherry Studio": lambda row: "localStorage" in row and _has(row, indexedDB=dict),
    "Chatbox": lambda row: "chat-sessions-list" in row or "chat-sessions" in row,
    "LobeChat": lambda row: "exportType" in row and _has(row, state=dict),
    "AnythingLLM": lambda row: {"prompt", "response"} <= row.keys() and ("workspace" in row or "sent_at" in row),
}
