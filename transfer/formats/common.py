"""What the readers of other programs' conversations share."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from ...backends.loose import array_at, at, count_at, number_at, text_at
from ...db import timestamp
from ...queries.conversations import title_from
from ...queries.types import ANSWER_CHARACTERS, QUESTION_CHARACTERS, TITLE_CHARACTERS
from ..transcript import VERSION, Conversation, Image, Message, Unreadable, Usage

FindImage = Callable[[str], Image | None]  # by the name or the id with which a message refers to it
ROLES: tuple[Literal["user", "assistant"], ...] = ("user", "assistant")


def finish(
    *, source: str, title: str, created_at: str | None, messages: list[Message], active: int | None, **fields: Any
) -> Conversation:
    """Check and complete a conversation. A message without a time gets its parent's, so that the order holds.

    `title`: "" for the beginning of the first question. `created_at`: None for the oldest message's. `active`: None for the last message.
    Raises Unreadable.
    """
    if not messages:
        raise Unreadable("has no messages")
    limits = {"user": QUESTION_CHARACTERS, "assistant": ANSWER_CHARACTERS}
    texts = [(text, limits[message.role]) for message in messages for text in (message.content, message.reasoning)]
    for text, most in [(fields.get("system_prompt", ""), QUESTION_CHARACTERS), *texts]:
        if len(text) > most:
            raise Unreadable(f"has a text of {len(text):,} characters; at most {most:,} are allowed")
    times = [message.created_at for message in messages if message.created_at]
    created_at = created_at or min(times, default=timestamp(datetime.now(UTC)))
    time_of: dict[int | None, str] = {None: created_at}
    for message in messages:
        message.created_at = time_of[message.id] = message.created_at or time_of[message.parent_id]
    return Conversation(
        fireside=VERSION,
        title=title or title_from(first_question(messages)),
        named=bool(title),
        created_at=created_at,
        updated_at=max(time_of.values()),
        source=source,
        active_message_id=active or messages[-1].id,
        messages=messages,
        **fields,
    )


def first_question(messages: list[Message]) -> str:
    return next((message.content for message in messages if message.role == "user"), "")


def read_tree(
    nodes: Mapping[str, Any], parent_field: str, children_field: str, read: Callable[[str, str | None], Message | None]
) -> tuple[list[Message], dict[str | None, int | None]]:
    """Call `read` with the key of each node and that of its parent, parents first. A node for which it returns None is left out.

    Return the messages and, by the key of each node, the id of the nearest message at or above it.
    """
    messages: list[Message] = []
    nearest: dict[str | None, int | None] = {None: None}
    for key, parent in _walk(nodes, parent_field, children_field):
        nearest[key] = nearest[parent]
        if message := read(key, parent):
            message.id, message.parent_id, message.source = len(messages) + 1, nearest[parent], key
            messages.append(message)
            nearest[key] = message.id
    return messages, nearest


def _walk(nodes: Mapping[str, Any], parent_field: str, children_field: str) -> Iterator[tuple[str, str | None]]:
    """Yield each key with its parent's, parents first and siblings in their parent's order.

    A node whose parent is missing is a root. A circle is cut at the first of its nodes.
    """
    children = defaultdict[str | None, list[str]](list)
    for key, node in nodes.items():
        parent = at(node, parent_field)
        children[parent if isinstance(parent, str) and parent in nodes else None].append(key)
    for key, node in nodes.items():
        if len(children.get(key, ())) > 1:
            order = array_at(node, children_field)
            places = {child: place for place, child in enumerate(order) if isinstance(child, str)}
            children[key].sort(key=lambda child: places.get(child, len(places)))
    seen: set[str] = set()
    for start in (*children[None], *nodes):
        stack: list[tuple[str, str | None]] = [(start, None)]
        while stack:
            key, parent = stack.pop()
            if key not in seen:
                seen.add(key)
                yield key, parent
                stack.extend((child, key) for child in reversed(children.get(key, ())))


def line_at(value: Any, *path: str) -> str:
    """Return the text at this path as one line that fits a title."""
    return " ".join(text_at(value, *path)[: TITLE_CHARACTERS * 4].split())[:TITLE_CHARACTERS]


def time_at(value: Any, *path: str) -> str | None:
    """Return the time at this path, which may be in seconds, milli-, micro- or nanoseconds since 1970, or None."""
    found = at(value, *path)
    number = number_at(found)
    if not number:
        return None
    if isinstance(found, float) and number < 1e11:
        return timestamp(datetime.fromtimestamp(number, UTC))
    whole = int(found)
    while whole > 10**17:
        whole //= 1000
    unit = next(unit for unit, limit in ((10**6, 10**11), (10**3, 10**14), (1, 10**18)) if whole < limit)
    return timestamp(datetime.fromtimestamp(0, UTC) + timedelta(microseconds=whole * unit))


def milliseconds_at(value: Any, *path: str, seconds: float = 1.0) -> int | None:
    """Return the duration at this path, a number of units of so many seconds, in milliseconds, or None."""
    number = number_at(value, *path)
    return None if number is None else count_at(round(number * seconds * 1000))


def rate_at(value: Any, *path: str) -> float | None:
    number = number_at(value, *path)
    return None if number is None else round(number, 2)


def token_usage(prompt: Any, completion: Any, total: Any) -> Usage | None:
    prompt, completion, total = count_at(prompt), count_at(completion), count_at(total)
    if prompt is None or completion is None:
        return None
    total = prompt + completion if total is None else total
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}


def known(**facts: Any) -> dict[str, Any] | None:
    """Return the facts that are not None; None when there are none."""
    return {name: fact for name, fact in facts.items() if fact is not None} or None


def joined(*texts: str, by: str = "\n\n") -> str:
    return by.join(filter(None, texts))


def digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:24]


def identity(program: str, *candidates: Any) -> str:
    """Return the `source` made of the first candidate that is a text. A conversation with messages has one."""
    found = next(filter(None, map(text_at, candidates)), "")
    return f"{program}:{found if len(found) <= 200 else digest(found)}"
