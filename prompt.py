"""What is sent to a model: the path of messages as it stands, and less of it when the context is too small.

The same path always gives the same bytes, turn after turn, so that the engine finds its work of the last time in its cache.
Omitting follows from that too: it goes in large steps, and stays where it was as long as the rest fits.
"""

import base64
from typing import Any

from .queries import Prompt, Turn

_TURN_TOKENS = 8  # what a chat template puts around a message
_IMAGE_TOKENS = 800
_FILL = 0.7  # of the room, after something had to be omitted: the next few turns then fit without omitting more


def messages(prompt: Prompt, omitted: int) -> list[dict[str, Any]]:
    """The messages of a chat request, without the first `omitted` of the path.

    Empty answers are left out. Messages of one role in a row become one, since many templates insist on turns.
    """
    sent: list[dict[str, Any]] = []
    if prompt.system_prompt:
        sent.append({"role": "system", "content": prompt.system_prompt})
    for turn in prompt.turns[omitted:]:
        if turn.role == "assistant" and not turn.content:
            continue
        if sent and sent[-1]["role"] == turn.role:
            sent[-1]["content"] = _joined(sent[-1]["content"], _content(turn))
        else:
            sent.append({"role": turn.role, "content": _content(turn)})
    return sent


def _content(turn: Turn) -> str | list[dict[str, Any]]:
    if not turn.images:
        return turn.content
    urls = [f"data:{image.media_type};base64,{base64.b64encode(image.data).decode()}" for image in turn.images]
    return [{"type": "text", "text": turn.content}, *({"type": "image_url", "image_url": {"url": url}} for url in urls)]


def _joined(first: str | list[dict[str, Any]], second: str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    if isinstance(first, str) and isinstance(second, str):
        return f"{first}\n\n{second}"
    parts = [
        [{"type": "text", "text": content}] if isinstance(content, str) else content for content in (first, second)
    ]
    return parts[0] + parts[1]


def omit(prompt: Prompt, context_length: int | None, max_tokens: int | None) -> int:
    """How many of the oldest messages to leave out so that the rest, and an answer, fit. 0 when the context is not known."""
    answers = [turn for turn in prompt.turns if turn.role == "assistant"]
    omitted = min(answers[-1].omitted_messages if answers else 0, len(prompt.turns) - 1)
    if context_length is None:
        return omitted
    room = context_length - min(max_tokens or context_length // 4, context_length // 2)
    costs = _costs(prompt)
    total = costs[0] + sum(costs[1 + omitted :])
    if total <= room:
        return omitted
    for start in _starts(prompt, omitted):
        omitted = start
        if costs[0] + sum(costs[1 + omitted :]) <= room * _FILL:
            break
    return omitted


def omit_more(prompt: Prompt, omitted: int) -> int | None:
    """The next step after a server said that it was still too much: about half of the rest. None: nothing is left to omit."""
    costs = _costs(prompt)
    rest = sum(costs[1 + omitted :])
    for start in _starts(prompt, omitted):
        if sum(costs[1 + start :]) <= rest / 2:
            return start
    starts = _starts(prompt, omitted)
    return starts[-1] if starts else None


def _starts(prompt: Prompt, omitted: int) -> list[int]:
    """Where else the sent part may begin: at a question, the last one at the latest."""
    return [place for place, turn in enumerate(prompt.turns) if place > omitted and turn.role == "user"]


def _costs(prompt: Prompt) -> list[float]:
    """Tokens of the system prompt, then of each turn: estimated from the characters, corrected by the newest count of a server."""
    costs = [
        _estimate(prompt.system_prompt),
        *(_estimate(turn.content) + _IMAGE_TOKENS * len(turn.images) for turn in prompt.turns),
    ]
    for place, turn in reversed(list(enumerate(prompt.turns))):
        if turn.total_tokens:
            counted = costs[0] + sum(costs[1 + turn.omitted_messages : place + 2])
            scale = min(4.0, max(0.25, turn.total_tokens / counted))
            return [cost * scale for cost in costs]
    return costs


def _estimate(text: str) -> float:
    """About four characters of English a token, and one of most other scripts."""
    foreign = 0 if text.isascii() else sum(character > "\u024f" for character in text)
    return (len(text) - foreign) / 3.5 + foreign + (_TURN_TOKENS if text else 0)
