"""LM Studio: a *.conversation.json for each chat.

A chat has no id: it is known by the time it was created and its first question, and a message by its texts and files.
"""

import itertools
import re
from collections import defaultdict, deque
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from ...backends.loose import array_at, at, count_at, decode, object_at, objects_at, text_at
from ...db import timestamp
from ..transcript import Conversation, Message, Unreadable
from . import common
from .common import File, FindFile

_FINISH_REASONS = {
    "eosFound": "stop",
    "stopStringFound": "stop",
    "maxPredictedTokensReached": "length",
    "contextLengthReached": "length",
    "toolCalls": "tool_calls",
}


def matches(row: dict[str, Any]) -> bool:
    return isinstance(row.get("messages"), list) and ("createdAt" in row or "perChatPredictionConfig" in row)


def parse(row: dict[str, Any], find_file: FindFile) -> Conversation:
    """A message has `versions`. The next message follows the version that is selected."""
    created_at = common.time_at(row, "createdAt")
    if created_at is None:
        raise Unreadable("has no createdAt")
    turns = [_read_turn(entry, find_file) for entry in objects_at(row, "messages")]
    messages, active = common.read_turns(([message for message, _ in versions], shown) for versions, shown in turns)
    typed = (text for versions, _ in turns for message, text in versions if message and message.role == "user")
    question = next(typed, "")
    for kind, is_lost in (("draft", text_at(row, "clientInput").strip()), ("note", array_at(row, "notes"))):
        if is_lost:
            common.note_loss(kind)
    _set_times(messages, created_at, {role: common.time_at(row, f"{role}LastMessagedAt") for role in common.ROLES})
    prompt = _setting(row, "perChatPredictionConfig", "llm.prediction.systemPrompt")
    return common.finish(
        source=f"lmstudio:{created_at}:{common.digest(question)}",
        title=common.line_at(row, "name"),
        created_at=created_at,
        pinned=row.get("pinned") is True,
        system_prompt=text_at(prompt) or text_at(row, "systemPrompt"),
        provider_id="lmstudio",
        model=text_at(row, "lastUsedModel", "identifier") or None,
        messages=messages,
        active=active,
    )


def _setting(value: dict[str, Any], config: str, key: str) -> Any:
    return next((field.get("value") for field in objects_at(value, config, "fields") if field.get("key") == key), None)


def _read_turn(entry: dict[str, Any], find_file: FindFile) -> tuple[list[tuple[Message | None, str]], Any]:
    """Return what `_read_message` returns for each version, and the place of the selected one."""
    versions = objects_at(entry, "versions") or [entry]
    return [_read_message(version, find_file) for version in versions], entry.get("currentlySelected")


def _read_message(version: dict[str, Any], find_file: FindFile) -> tuple[Message | None, str]:
    """Return a message and its text without tool calls and the names of files."""
    role = version.get("role")
    if role not in common.ROLES:
        return None, ""
    steps = [step for step in objects_at(version, "steps") if step.get("type") == "contentBlock"]
    calls = _read_calls([version, *objects_at(version, "steps")])
    words: list[str] = []  # of the answer
    contents: list[str] = []  # these, and tool calls
    thoughts: list[str] = []
    files: list[dict[str, Any]] = []
    for block in (version, *steps):
        text = text_at(block, "content") if block is version else ""  # of older versions
        for part in objects_at(block, "content"):
            match part.get("type"):
                case "text":  # structural text is the model's own <think> and </think>
                    text += "" if part.get("isStructural") is True else text_at(part, "text")
                case "file":
                    files.append(part)
                case "toolCallRequest" | "toolCallResult":
                    contents.append(calls.pop(id(part), ""))
                case _:
                    common.note_loss("unknown part")
                    text = common.joined(text, text_at(part, "text"))
        if at(block, "style", "type") == "thinking":
            thoughts.append(text)
        else:
            words.append(text)
            contents.append(text)
    typed, content, reasoning = ("\n\n".join(filter(str.strip, texts)) for texts in (words, contents, thoughts))
    names = [text_at(file, "fileIdentifier") for file in files]
    starts = [re.match(r"([0-9]{13})-", text_at(step, "stepIdentifier")) for step in steps]
    message = common.new_message(
        role,
        next((common.time_at(int(start[1])) for start in starts if start), None),
        content,
        [_file(file, find_file) for file in files],
        reasoning=reasoning,
        **_read_facts(version, [info for step in steps if (info := object_at(step, "genInfo"))]),
    )
    if message:
        message.source = common.digest(role, reasoning, typed, *names)
    return message, typed


_NUMBERED = re.compile(r"\A[0-9]+ - ")  # LM Studio puts a number before the name of a file
_NO_ID = ""  # of results of older versions, which follow their calls in order


def _read_calls(steps: list[dict[str, Any]]) -> dict[int, str]:
    """Return each tool call with its result as a block, by the identity of the part that requests it, or of a result alone."""
    parts = [part for step in steps for part in objects_at(step, "content")]
    results = {id(part): part for part in parts if part.get("type") == "toolCallResult"}
    results_of = defaultdict[str | int, deque[dict[str, Any]]](deque)
    for result in results.values():
        for key in _call_ids(result) or (_NO_ID,):
            results_of[key].append(result)
    failures = {key: at(step, "statusState", "status", "error") for step in steps for key in _call_ids(step)}
    blocks: dict[int, str] = {}
    for call in (part for part in parts if part.get("type") == "toolCallRequest"):
        outcome: Any = next((failures[key] for key in _call_ids(call) if failures.get(key)), None)
        for key in (*_call_ids(call), _NO_ID):
            while results_of[key] and id(results_of[key][0]) not in results:
                results_of[key].popleft()  # found by another id
            if results_of[key]:
                outcome = _result(results.pop(id(results_of[key][0])))
                break
        blocks[id(call)] = common.tool_block(text_at(call, "name"), call.get("parameters"), outcome)
    return blocks | {key: common.tool_block("result", None, _result(result)) for key, result in results.items()}


def _call_ids(part: dict[str, Any]) -> list[str | int]:
    ids = (part.get(name) for name in ("callId", "toolCallRequestId", "toolCallId"))
    return [one for one in ids if isinstance(one, (str, int)) and one != _NO_ID]


def _result(part: dict[str, Any]) -> Any:
    """Return the content of a result, which may be texts of MCP as JSON in a string."""
    content = part.get("content")
    try:
        parts = decode(content.encode()) if isinstance(content, str) else content
    except ValueError:
        return content
    texts = [text_at(one, "text") for one in parts] if isinstance(parts, list) else []
    return common.joined(*texts, by="\n") if all(texts) and texts else content


def _file(part: dict[str, Any], find_file: FindFile) -> File:
    name = text_at(part, "fileIdentifier")
    found = find_file(name) if name else None
    if found:
        found.name = _NUMBERED.sub("", name)
    return File("image" if (text_at(part, "fileType") or "image") == "image" else "document", name, found)


def _read_facts(version: dict[str, Any], made: list[dict[str, Any]]) -> dict[str, Any]:
    """Return model and stats. Each block of an answer has its own stats; the prompt of the last contains all blocks before it."""
    names = [*(text_at(info, "identifier") for info in made), text_at(version, "senderInfo", "senderName")]
    facts = {"provider_id": "lmstudio", "model": next(filter(None, names), None)}
    if not made:
        return facts
    last = made[-1]
    counts = (at(last, "stats", f"{name}TokensCount") for name in ("prompt", "predicted", "total"))
    stop_reason = text_at(last, "stats", "stopReason")
    stats = common.known(
        ttft_ms=common.milliseconds_at(last, "stats", "timeToFirstTokenSec"),
        total_ms=common.milliseconds_at(last, "stats", "totalTimeSec"),
        tokens_per_second=common.rate_at(last, "stats", "tokensPerSecond"),
        finish_reason=_FINISH_REASONS.get(stop_reason),
        context_length=count_at(_setting(last, "loadModelConfig", "llm.load.contextLength")),
    )
    status = "canceled" if stop_reason == "userStopped" else "complete"
    return facts | {"token_usage": common.token_usage(*counts), "stats": stats, "status": status}


def _set_times(messages: list[Message], created_at: str, last: Mapping[str, str | None]) -> None:
    """Set the times that are not known. Only answers carry one, in the ids of their steps; a question came just before its answer.

    `last`: the time of the last question and of the last answer, by role.
    """
    levels = [list(versions) for _, versions in itertools.groupby(messages, key=lambda message: message.parent_id)]
    following = ""
    for level in reversed(levels):
        for message in level:
            message.created_at = message.created_at or (_shifted(following, -1) if following else "")
        following = min((message.created_at for message in level if message.created_at), default=following)
    newest = {level[0].role: level for level in levels}
    before = created_at
    for level in levels:
        role = level[0].role
        latest = last[role] if level is newest[role] else None
        for message in level:
            message.created_at = message.created_at or max(_shifted(before, 1), latest or "")
        before = max(message.created_at for message in level)


def _shifted(time: str, milliseconds: int) -> str:
    return timestamp(datetime.fromisoformat(time + "+00:00") + timedelta(milliseconds=milliseconds))
