"""SillyTavern: JSON Lines, a header and then the messages. The versions of an answer are its `swipes`; the next message follows the shown one."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from ...backends.loose import array_at, object_at, objects_at, text_at
from ...db import timestamp
from ...queries.types import TITLE_CHARACTERS
from ..transcript import Conversation, Message
from . import common
from .common import File, FindFile

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
    turns = [
        ([_read_version(line, version, len(names) > 1, find_file) for version in _versions(line)], line.get("swipe_id"))
        for line in lines
    ]
    messages, active = common.read_turns(turns)
    character = common.line_at(row, "header", "character_name")
    title = character if character != "unused" else " ".join(", ".join(filter(None, names)).split())
    begun = text_at(row, "header", "create_date") + (messages[0].content if messages else "")
    return common.finish(
        source=f"sillytavern:{common.digest(title, begun)}",
        title=title[:TITLE_CHARACTERS],
        created_at=_time(object_at(row, "header"), "create_date"),
        messages=messages,
        active=active,
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
    files = list(_find_images(pictures, find_file))
    for one in filter(None, (object_at(extra, "file"), *objects_at(extra, "files"))):
        name = text_at(one, "name")
        files.append(File("document", name, common.text_file(name, text_at(one, "text"))))
    return common.new_message(
        "user" if is_question else "assistant",
        _time(version, "send_date"),
        text,
        files,
        reasoning=reasoning,
        model=text_at(extra, "model") or None,
        stats=common.known(reasoning_ms=common.milliseconds_at(extra, "reasoning_duration", seconds=1e-3)),
    )


def _find_images(names: list[str], find_file: FindFile) -> Iterator[File]:
    for name in dict.fromkeys(filter(None, names)):
        shown = "" if name.startswith("data:") else name.rpartition("/")[2]
        yield File("image", shown, common.image_from_url(name) if name.startswith("data:") else find_file(name))


def _time(value: dict[str, Any], field: str) -> str | None:
    if found := common.time_at(value, field):
        return found
    for form in _DATES:
        try:
            return timestamp(datetime.strptime(text_at(value, field)[:40], form).replace(tzinfo=UTC))
        except ValueError:
            continue
    return None
