"""Conversations of other programs and of Fireside's own exports, read into Fireside's own form: a module for each program.

A reader gets decoded JSON and keeps what it understands. What the database cannot hold is Unreadable with a reason. An imported conversation and its
messages are known again by their `source`, which comes from what a program wrote and never from a file's path.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ...backends.loose import at, object_at
from ..transcript import Conversation, Unreadable
from . import chatgpt, fireside, lmstudio, openwebui
from .common import FindImage, line_at


class Format(NamedTuple):
    program: str
    matches: Callable[[dict[str, Any]], bool]
    parse: Callable[[dict[str, Any], FindImage], Conversation]  # raises Unreadable


FORMATS = (  # the first that matches is taken
    Format("Fireside", fireside.matches, fireside.parse),
    Format("ChatGPT", chatgpt.matches, chatgpt.parse),
    Format("Open WebUI", openwebui.matches, openwebui.parse),
    Format("LM Studio", lmstudio.matches, lmstudio.parse),
)


def unpack(value: Any) -> Iterator[Any]:
    """Yield the conversations of a decoded file, of any program."""
    chats = at(value, "chats")  # what Open WebUI's own import takes
    yield from value if isinstance(value, list) else chats if isinstance(chats, list) else [value]


def title_of(value: Any) -> str:
    """Return the title of a conversation that cannot be read, or ""."""
    return line_at(value, "title") or line_at(value, "name") or line_at(value, "chat", "title")


def parse(value: Any, find_image: FindImage) -> Conversation:
    """Raises Unreadable."""
    row = object_at(value)
    for format in FORMATS:
        if format.matches(row):
            return format.parse(row, find_image)
    raise Unreadable(f"is not a conversation of {', '.join(format.program for format in FORMATS)}")
