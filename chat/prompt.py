"""What is sent to a model: the path of messages as it stands, and less of it when the context is too small.

The same path always gives the same bytes, turn after turn, so that the engine finds its work of the last time in its cache.
Omitting follows from that too: it goes in large steps, and stays where it was as long as the rest fits.
"""

import base64
from collections.abc import Iterator
from itertools import accumulate, groupby
from typing import Any

from ..queries.generations import Prompt, Turn

_TURN_TOKENS = 8  # what a chat template puts around a message
_IMAGE_TOKENS = 800
_FILL = 0.7  # of the room, after something had to be omitted: the next few turns then fit without omitting more


def messages(prompt: Prompt, omitted: int) -> list[dict[str, Any]]:
    """The messages of a chat request, without the first `omitted` of the path.

    Empty answers are left out. Messages of one role in a row become one, since many templates insist on turns.
    """
    system = [{"role": "system", "content": prompt.system_prompt}] if prompt.system_prompt else []
    turns = [turn for turn in prompt.turns[omitted:] if turn.content or turn.role == "user"]
    return system + [
        {"role": role, "content": _content([*run])} for role, run in groupby(turns, lambda turn: turn.role)
    ]


def _content(turns: list[Turn]) -> str | list[dict[str, Any]]:
    if not any(turn.images for turn in turns):
        return "\n\n".join(turn.content for turn in turns)
    return [part for turn in turns for part in _parts(turn)]


def _parts(turn: Turn) -> Iterator[dict[str, Any]]:
    if turn.content:
        yield {"type": "text", "text": turn.content}
    for image in turn.images:
        url = f"data:{image.media_type};base64,{base64.b64encode(image.data).decode()}"
        yield {"type": "image_url", "image_url": {"url": url}}


def omit(prompt: Prompt, context_length: int | None, max_tokens: int | None) -> int:
    """How many of the oldest messages to leave out so that the rest, and an answer, fit: those that the last answer did without,
    unless the context has grown since, and more if need be."""
    last = next((turn for turn in reversed(prompt.turns) if turn.role == "assistant"), None)
    omitted = min(last.omitted_messages, len(prompt.turns) - 1) if last else 0
    if context_length is None:
        return omitted
    if last and context_length > (last.context_length or 0):
        omitted = 0
    room = context_length - min(max_tokens or context_length // 4, context_length // 2)
    system, rest = _tokens(prompt)
    if system + rest[omitted] <= room:
        return omitted
    for start in _starts(prompt, omitted):
        omitted = start
        if system + rest[start] <= room * _FILL:
            break
    return omitted


def omit_more(prompt: Prompt, omitted: int) -> int | None:
    """The next step after a server said that it was still too much: about half of the rest. None: nothing is left to omit."""
    _, rest = _tokens(prompt)
    starts = _starts(prompt, omitted)
    return next((start for start in starts if rest[start] <= rest[omitted] / 2), starts[-1] if starts else None)


def _starts(prompt: Prompt, omitted: int) -> list[int]:
    """Where else the sent part may begin: at a question, the last one at the latest."""
    return [place for place, turn in enumerate(prompt.turns) if place > omitted and turn.role == "user"]


def _tokens(prompt: Prompt) -> tuple[float, list[float]]:
    """Of the system prompt, and of all turns from each one on: estimated from the characters, corrected by the newest count
    of a server."""
    system = _estimate(prompt.system_prompt)
    costs = [_estimate(turn.content) + _IMAGE_TOKENS * len(turn.images) for turn in prompt.turns]
    rest = list(accumulate(reversed(costs), initial=0.0))[::-1]
    for place, turn in reversed(list(enumerate(prompt.turns))):
        if turn.total_tokens:
            counted = system + rest[min(turn.omitted_messages, place)] - rest[place + 1]
            scale = min(4.0, max(0.25, turn.total_tokens / max(counted, 1.0)))
            return system * scale, [tokens * scale for tokens in rest]
    return system, rest


def _estimate(text: str) -> float:
    """About four characters of English a token, and one of most other scripts."""
    foreign = 0 if text.isascii() else sum(map("\u024f".__lt__, text))
    return (len(text) - foreign) / 3.5 + foreign + (_TURN_TOKENS if text else 0)
