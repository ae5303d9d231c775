"""LM Studio: a *.conversation.json for each chat.

A chat has no id: it is known by the time it was created and its first question, and a message by its texts and files.
"""

import itertools
import re
from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from ...backends.loose import at, count_at, object_at, objects_at, text_at
from ...db import timestamp
from ..transcript import Conversation, Message, Unreadable
from . import common
from .common import FindImage

_FINISH_REASONS = {
    "eosFound": "stop",
    "stopStringFound": "stop",
    "maxPredictedTokensReached": "length",
    "contextLengthReached": "length",
    "toolCalls": "tool_calls",
}


def matches(row: dict[str, Any]) -> bool:
    return isinstance(row.get("messages"), list) and ("createdAt" in row or "perChatPredictionConfig" in row)


def parse(row: dict[str, Any], find_image: FindImage) -> Conversation:
    """A message has `versions`. The next message follows the version that is selected."""
    created_at = common.time_at(row, "createdAt")
    if created_at is None:
        raise Unreadable("has no createdAt")
    levels, active = _read_levels(row, find_image)
    _set_times(levels, created_at, {role: common.time_at(row, f"{role}LastMessagedAt") for role in common.ROLES})
    messages = [message for level in levels for message in level]
    prompt = _setting(row, "perChatPredictionConfig", "llm.prediction.systemPrompt")
    return common.finish(
        source=f"lmstudio:{created_at}:{common.digest(common.first_question(messages))}",
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


def _read_levels(row: dict[str, Any], find_image: FindImage) -> tuple[list[list[Message]], int | None]:
    """Return the versions of each message, and the id of the last selected one. A `created_at` that is not common.known is ""."""
    levels: list[list[Message]] = []
    parent: int | None = None
    repeats: Counter[str | None] = Counter()
    ids = itertools.count(1)
    for entry in objects_at(row, "messages"):
        level: list[Message] = []
        selected: int | None = None
        for number, version in enumerate(objects_at(entry, "versions")):
            message = _read_message(version, find_image)
            if message is None:
                continue
            message.id, message.parent_id = next(ids), parent
            repeats[message.source] += 1
            message.source = f"{message.source}.{repeats[message.source]}"  # the same text again is another message
            level.append(message)
            if number == entry.get("currentlySelected") or selected is None:
                selected = message.id
        if level:
            levels.append(level)
            parent = selected
    return levels, parent


def _read_message(version: dict[str, Any], find_image: FindImage) -> Message | None:
    role = version.get("role")
    if role not in common.ROLES:
        return None
    steps = [step for step in objects_at(version, "steps") if step.get("type") == "contentBlock"]
    contents: list[str] = []
    thoughts: list[str] = []
    files: list[str] = []
    for block in (version, *steps):
        parts = objects_at(block, "content")
        # Structural text is the model's own <think> and </think>.
        words = [text_at(p, "text") for p in parts if p.get("type") == "text" and p.get("isStructural") is not True]
        (thoughts if at(block, "style", "type") == "thinking" else contents).append("".join(words))
        files += [text_at(p, "fileIdentifier") for p in parts if p.get("type") == "file"]
    content, reasoning = ("\n\n".join(filter(str.strip, texts)) for texts in (contents, thoughts))
    images = [image for image in map(find_image, filter(None, files)) if image]
    if not (content or reasoning or images):
        return None
    starts = [re.match(r"([0-9]{13})-", text_at(step, "stepIdentifier")) for step in steps]
    message = Message(
        id=0,
        parent_id=None,
        role=role,
        content=content,
        reasoning=reasoning if role == "assistant" else "",
        images=images,
        created_at=next((common.time_at(int(start[1])) or "" for start in starts if start), ""),
        source=common.digest(role, reasoning, content, *files),
    )
    if role == "assistant":
        _add_facts(message, version, [info for step in steps if (info := object_at(step, "genInfo"))])
    return message


def _add_facts(message: Message, version: dict[str, Any], made: list[dict[str, Any]]) -> None:
    """Add model and stats. Each block of an answer has its own stats; the prompt of the last contains all blocks before it."""
    names = [*(text_at(info, "identifier") for info in made), text_at(version, "senderInfo", "senderName")]
    message.provider_id, message.model = "lmstudio", next(filter(None, names), None)
    if not made:
        return
    last = made[-1]
    counts = (at(last, "stats", f"{name}TokensCount") for name in ("prompt", "predicted", "total"))
    message.token_usage = common.token_usage(*counts)
    stop_reason = text_at(last, "stats", "stopReason")
    message.stats = common.known(
        ttft_ms=common.milliseconds_at(last, "stats", "timeToFirstTokenSec"),
        total_ms=common.milliseconds_at(last, "stats", "totalTimeSec"),
        tokens_per_second=common.rate_at(last, "stats", "tokensPerSecond"),
        finish_reason=_FINISH_REASONS.get(stop_reason),
        context_length=count_at(_setting(last, "loadModelConfig", "llm.load.contextLength")),
    )
    if stop_reason == "userStopped":
        message.status = "canceled"


def _set_times(levels: list[list[Message]], created_at: str, last: Mapping[str, str | None]) -> None:
    """Set the times that are not common.known. Only answers carry one, in the ids of their steps; a question came just before its answer.

    `last`: the time of the last question and of the last answer, by role.
    """
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
