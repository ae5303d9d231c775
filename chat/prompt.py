"""The messages of a chat request: a path of the conversation, without its oldest messages when the context is too small.

A path always gives the same bytes, so that the model server can reuse its cache of the last turn. For the same reason messages
are omitted in large steps, and the next turns omit as many while the rest fits.
"""

import base64
import re
from collections.abc import Iterator
from itertools import accumulate, groupby
from typing import Any

from msgspec import Struct

from ..queries.generations import Prompt, Turn

LATIN_CHARACTERS_PER_TOKEN = 3.5  # other characters count as one token each
LATIN = re.compile("[\0-\u024f]+")
TURN_TOKENS = 8  # that a chat template adds to a message
IMAGE_TOKENS = 800
FILL_RATIO = 0.7  # of the room that is used after omitting, so that the next few turns fit too


def messages(prompt: Prompt, omitted: int) -> list[dict[str, Any]]:
    """Return the messages of a chat request, without the first `omitted` of the path and without empty answers.

    Consecutive messages of one role become one, because many chat templates require alternating roles.
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


class Rates(Struct):
    """The estimated tokens of what a person adds, in proportion to what a server counted for earlier answers."""

    latin: float  # of a character up to U+024F
    other: float  # of any other character
    image: float
    message: float  # that the chat template adds


class Forecast(Struct):
    """What would be sent if a question were asked now. All numbers of tokens are estimates."""

    context_length: int | None  # of the model, if it is loaded
    answer_tokens: int | None  # of the context, that are kept free for the answer
    system_tokens: int
    used_tokens: int  # of the system prompt and the messages, unless more are left out
    omitted_messages: int  # that the last answer left out
    omitted_with_question: int  # that would be left out
    rates: Rates


def forecast(prompt: Prompt, context_length: int | None, max_tokens: int | None, question_tokens: float) -> Forecast:
    """Estimate what would be sent with one more question of this size."""
    asked = Prompt(prompt.system_prompt, [*prompt.turns, Turn("user", "", [], 0, None, 0, None)])
    scale, system, rest = _tokens(asked)
    omitted = _omitted_before(prompt, context_length)
    with_question = [tokens + question_tokens for tokens in rest[:-1]] + rest[-1:]
    return Forecast(
        context_length=context_length,
        answer_tokens=_answer_tokens(context_length, max_tokens) if context_length else None,
        system_tokens=round(system),
        used_tokens=round(system + rest[omitted]),
        omitted_messages=omitted,
        omitted_with_question=_omit(asked, context_length, max_tokens, system, with_question),
        rates=Rates(scale / LATIN_CHARACTERS_PER_TOKEN, scale, scale * IMAGE_TOKENS, scale * TURN_TOKENS),
    )


def omit(prompt: Prompt, context_length: int | None, max_tokens: int | None) -> int:
    """Return how many of the oldest messages to omit so that the others and an answer fit.

    Start with the number that the last answer omitted, unless the context has grown since then.
    """
    _, system, rest = _tokens(prompt)
    return _omit(prompt, context_length, max_tokens, system, rest)


def _omit(prompt: Prompt, context_length: int | None, max_tokens: int | None, system: float, rest: list[float]) -> int:
    omitted = min(_omitted_before(prompt, context_length), len(prompt.turns) - 1)
    if context_length is None:
        return omitted
    room = context_length - _answer_tokens(context_length, max_tokens)
    if system + rest[omitted] <= room:
        return omitted
    for start in _starts(prompt, omitted):
        omitted = start
        if system + rest[start] <= room * FILL_RATIO:
            break
    return omitted


def _omitted_before(prompt: Prompt, context_length: int | None) -> int:
    """Return the number that the last answer omitted, or 0 if the context has grown since then."""
    last = next((turn for turn in reversed(prompt.turns) if turn.role == "assistant"), None)
    if last is None or (context_length is not None and context_length > (last.context_length or 0)):
        return 0
    return min(last.omitted_messages, len(prompt.turns))


def _answer_tokens(context_length: int, max_tokens: int | None) -> int:
    return min(max_tokens or context_length // 4, context_length // 2)


def omit_more(prompt: Prompt, omitted: int) -> int | None:
    """Return the next number when the server refused the prompt: about half of the rest is sent. None when only the question is left."""
    _, _, rest = _tokens(prompt)
    starts = _starts(prompt, omitted)
    return next((start for start in starts if rest[start] <= rest[omitted] / 2), starts[-1] if starts else None)


def _starts(prompt: Prompt, omitted: int) -> list[int]:
    """Return the other numbers that may be omitted: those before a question."""
    return [place for place, turn in enumerate(prompt.turns) if place > omitted and turn.role == "user"]


def _tokens(prompt: Prompt) -> tuple[float, float, list[float]]:
    """Return the tokens of the system prompt, and for each turn those of it and all later ones.

    They are estimated from the characters, and multiplied by a factor, the first value, to match the newest count of a server.
    """
    system = _estimate(prompt.system_prompt)
    costs = [_estimate(turn.content) + IMAGE_TOKENS * len(turn.images) for turn in prompt.turns]
    rest = list(accumulate(reversed(costs), initial=0.0))[::-1]
    for place, turn in reversed(list(enumerate(prompt.turns))):
        if turn.total_tokens:
            counted = system + rest[min(turn.omitted_messages, place)] - rest[place + 1]
            scale = min(4.0, max(0.25, turn.total_tokens / max(counted, 1.0)))
            return scale, system * scale, [tokens * scale for tokens in rest]
    return 1.0, system, rest


def _estimate(text: str) -> float:
    others = 0 if text.isascii() else len(LATIN.sub("", text))
    return (len(text) - others) / LATIN_CHARACTERS_PER_TOKEN + others + (TURN_TOKENS if text else 0)
