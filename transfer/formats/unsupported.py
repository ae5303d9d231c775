"""Exports that Fireside recognises, to say which program wrote them, and cannot read."""

from typing import Any

from ...backends.loose import at


def is_grok(row: dict[str, Any]) -> bool:
    return isinstance(row.get("conversation"), dict) and isinstance(row.get("responses"), list)


def is_ai_studio(row: dict[str, Any]) -> bool:
    return "chunkedPrompt" in row or ("runSettings" in row and "systemInstruction" in row)


def is_deepseek(row: dict[str, Any]) -> bool:
    mapping = row.get("mapping")
    return isinstance(mapping, dict) and any(
        isinstance(at(node, "message", "fragments"), list) for node in mapping.values()
    )


def is_chatbot_ui(row: dict[str, Any]) -> bool:
    return isinstance(row.get("history"), list) and "folders" in row and "prompts" in row


def is_codex(row: dict[str, Any]) -> bool:
    return row.get("type") == "session_meta" and isinstance(row.get("payload"), dict)


def is_claude_code(row: dict[str, Any]) -> bool:
    return ("sessionId" in row and "type" in row) or (
        row.get("type") in ("summary", "file-history-snapshot") and ("leafUuid" in row or "snapshot" in row)
    )


def is_text_generation_webui(row: dict[str, Any]) -> bool:
    return isinstance(row.get("internal"), list) and isinstance(row.get("visible"), list)


def is_koboldcpp(row: dict[str, Any]) -> bool:
    return "gamestarted" in row and isinstance(row.get("actions"), list)


def is_cherry_studio(row: dict[str, Any]) -> bool:
    return isinstance(row.get("indexedDB"), dict) and "localStorage" in row


def is_chatbox(row: dict[str, Any]) -> bool:
    return "chat-sessions-list" in row or "chat-sessions" in row


def is_lobechat(row: dict[str, Any]) -> bool:
    return "exportType" in row and isinstance(row.get("state"), dict)


def is_anythingllm(row: dict[str, Any]) -> bool:
    return "prompt" in row and "response" in row and ("workspace" in row or "sent_at" in row)
