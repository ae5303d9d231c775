"""SillyTavern: JSON Lines, a header and then the messages. The versions of an answer are its `swipes`; the next message follows the shown one."""

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from ...backends.loose import array_at, object_at, objects_at, text_at
from ...db import timestamp
from ...queries.types import TITLE_CHARACTERS
from ..transcript import Attachment, Conversation, Message
from . import common
from .common import FindFile

_DATES = (  # the forms of older versions, in the local time of their computer
    "%B %d, %Y %I:%M%p",
    "%Y-%m-%d@%Hh%Mm%Ss",
    "%Y-%m-%d@%Hh%Mm%Ss%fms",
    "%Y-%m-%d @%Hh %Mm %Ss %fms",
)


def is_line(row: dict[str, Any]) -> bool:
    return "chat_metadata" in row or ("mes" in row and "is_user" in row)


def join(rows: list[dict[str, Any]], beside: Any) -> Iterator[dict[str, Any]]:
    header = rows[0] if "mes" not in rows[0] else {}
    yield {"header": header, "lines": [row for row in rows if "mes" in row]}


def matches(row: dict[str, Any]) -> bool:
    return isinstance(row.get("header"), dict) and isinstance(row.get("lines"), list)


def parse(row: dict[str, Any], find_file: FindFile) -> Conversation:
    lines = objects_at(row, "lines")
    names = list(dict.fromkeys(text_at(line, "name") for line in lines if line.get("is_user") is not True))
    messages: list[Message] = []
    parent: int | None = None
    repeats: Counter[str] = Counter()
    for line in lines:
        selected, shown = line.get("swipe_id"), parent
        for number, version in enumerate(_versions(line)):
            if message := _read_version(line, version, len(names) > 1, find_file):
                message.id, message.parent_id = len(messages) + 1, parent
                message.source = common.source_of(message, repeats)
                messages.append(message)
                if shown == parent or number == selected:
                    shown = message.id
        parent = shown
    character = common.line_at(row, "header", "character_name")
    title = character if character != "unused" else " ".join(", ".join(filter(None, names)).split())
    begun = text_at(row, "header", "create_date") + (messages[0].content if messages else "")
    return common.finish(
        source=f"sillytavern:{common.digest(title, begun)}",
        title=title[:TITLE_CHARACTERS],
        created_at=_time(object_at(row, "header"), "create_date"),
        messages=messages,
        active=parent,
    )


def _versions(line: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the swipes, each as a line. What is shown is in the line itself, and is the newest text of its swipe."""
    swipes, facts, selected = array_at(line, "swipes"), objects_at(line, "swipe_info"), line.get("swipe_id")
    if line.get("is_user") is True or not isinstance(selected, int) or not 0 <= selected < len(swipes):
        return [line]
    versions = [facts[n] | {"mes": swipe} if n < len(facts) else {"mes": swipe} for n, swipe in enumerate(swipes)]
    versions[selected] = line
    return versions


def _read_version(line: dict[str, Any], version: dict[str, Any], named: bool, find_file: FindFile) -> Message | None:
    extra, is_question = object_at(version, "extra"), line.get("is_user") is True
    text, reasoning = text_at(version, "mes"), text_at(extra, "reasoning")
    if not (is_question or reasoning):
        text, reasoning = common.split_thinking(text)
    if named and not is_question and text:
        text = f"**{common.line_at(line, 'name')}:** {text}"  # a group: several characters answer
    pictures = [text_at(extra, "image"), *(text_at(url) for url in array_at(extra, "image_swipes"))]
    pictures += [text_at(one, "url") for one in objects_at(extra, "media")]
    text, attachments = common.with_files("image", text, list(_find(pictures, find_file)))
    files = [
        (text_at(one, "name"), text_at(one, "text"))
        for one in (object_at(extra, "file"), *objects_at(extra, "files"))
        if one
    ]
    text, documents = common.with_files(
        "document", text, [(name, common.text_file(name, content)) for name, content in files]
    )
    attachments += documents
    if not (text.strip() or reasoning or attachments):
        return None
    return Message(
        id=0,
        parent_id=None,
        role="user" if is_question else "assistant",
        content=text,
        reasoning="" if is_question else reasoning,
        attachments=attachments,
        created_at=_time(version, "send_date") or "",
        model=None if is_question else text_at(extra, "model") or None,
        stats=common.known(
            reasoning_ms=None if is_question else common.milliseconds_at(extra, "reasoning_duration", seconds=1e-3)
        ),
    )


def _find(names: list[str], find_file: FindFile) -> Iterator[tuple[str, Attachment | None]]:
    for name in dict.fromkeys(filter(None, names)):
        image = common.image_from_url(name)
        yield ("", image) if name.startswith("data:") else (name.rpartition("/")[2], find_file(name))


def _time(value: dict[str, Any], field: str) -> str | None:
    if found := common.time_at(value, field):
        return found
    for form in _DATES:
        try:
            return timestamp(datetime.strptime(text_at(value, field)[:40], form).replace(tzinfo=UTC))
        except ValueError:
            continue
    return None
