"""A whole chat completion of OpenAI's API, put together from the chunks of a stream."""

from typing import Any

from ..backends.loose import decode

LISTS_BY_INDEX = ("tool_calls",)
WHOLE = ("role", "id", "type", "name", "index")  # are sent once, or the same each time; other strings grow


class Completion:
    def __init__(self) -> None:
        self._fields: dict[str, Any] = {}  # of the chunks, except for choices; the newest ones
        self._message: dict[str, Any] = {}
        self._choice: dict[str, Any] = {}

    def add(self, data: bytes) -> None:
        chunk = decode(data)
        if not isinstance(chunk, dict):
            return
        choices = chunk.pop("choices", None)
        for name, value in chunk.items():
            if value is not None or name not in self._fields:
                self._fields[name] = value
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        delta = choice.pop("delta", None)
        _merge(self._message, delta if isinstance(delta, dict) else {})
        logprobs = choice.pop("logprobs", None)
        if isinstance(logprobs, dict):
            _merge(self._choice.setdefault("logprobs", {}), logprobs)
        self._choice |= {name: value for name, value in choice.items() if value is not None}

    def result(self) -> dict[str, Any]:
        """Return the completion."""
        message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None} | self._message
        if message["content"] is None and not (message.get("tool_calls") or message["refusal"]):
            message["content"] = ""
        for call in message.get("tool_calls", ()):
            call.pop("index", None)
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"} | self._choice
        return {"id": "", "created": 0, "model": ""} | self._fields | {"object": "chat.completion", "choices": [choice]}


def _merge(whole: dict[str, Any], piece: dict[str, Any]) -> None:
    for name, value in piece.items():
        known = whole.get(name)
        if name in LISTS_BY_INDEX and isinstance(value, list):
            _merge_by_index(whole.setdefault(name, []), value)
        elif isinstance(known, str) and isinstance(value, str):
            whole[name] = (known or value) if name in WHOLE else known + value
        elif isinstance(known, dict) and isinstance(value, dict):
            _merge(known, value)
        elif isinstance(known, list) and isinstance(value, list):
            known += value
        elif value is not None or name not in whole:
            whole[name] = value


def _merge_by_index(whole: list[dict[str, Any]], pieces: list[Any]) -> None:
    for piece in pieces:
        if not isinstance(piece, dict):
            continue
        index = piece.get("index", 0)
        known = next((one for one in whole if one.get("index", 0) == index), None)
        if known is None:
            whole.append(piece)
        else:
            _merge(known, piece)
