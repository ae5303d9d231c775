"""Gemini: MyActivity.json of Google Takeout, an array of records, newest first: a prompt and its answer as HTML.

There are no conversations in it. Prompts that follow within half an hour of each other become one.
"""

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from html.parser import HTMLParser
from typing import Any

from ...backends.loose import array_at, objects_at, text_at
from ..transcript import Conversation, Message
from . import common
from .common import File, FindFile

_PAUSE = timedelta(minutes=30)  # between conversations
_PROMPT = re.compile(
    r"(?:Prompted with:|Asked (?:Gemini|Bard):|Prompted|Asked|Said|Branched|Answered)\s+", re.IGNORECASE
)
_NO_PROMPT = re.compile(
    r"(?:Created|Used|Added|Gave|Selected|Shared|Deleted|Viewed|Visited|Edited|Pinned|Renamed|Exported)\s"
)
_ATTACHED = re.compile(r"\s*Attached \d+ files?\.?\s*\Z")


def is_record(row: dict[str, Any]) -> bool:
    labels = " ".join([text_at(row, "header"), *(text_at(product) for product in array_at(row, "products"))]).lower()
    return "time" in row and "title" in row and ("gemini" in labels or "bard" in labels)


def join(rows: list[dict[str, Any]], beside: Any) -> Iterator[dict[str, Any]]:
    """Yield the records of each conversation, oldest first."""
    records = [(common.time_at(row, "time") or "", row) for row in rows if is_record(row)]
    group: list[dict[str, Any]] = []
    before = ""
    for time, record in sorted(records, key=lambda pair: pair[0]):
        if group and (not before or datetime.fromisoformat(time) - datetime.fromisoformat(before) > _PAUSE):
            yield {"gemini": group}
            group = []
        group.append(record)
        before = time
    if group:
        yield {"gemini": group}


def matches(row: dict[str, Any]) -> bool:
    return isinstance(row.get("gemini"), list)


def parse(row: dict[str, Any], find_file: FindFile) -> Conversation:
    records = objects_at(row, "gemini")
    read = (message for record in records for message in _read_record(record, find_file))
    messages, _ = common.read_turns(([message], 0) for message in read)
    begun = common.digest(*(message.content for message in messages[:1]))
    return common.finish(
        source=f"gemini:{next((message.created_at for message in messages), '')}:{begun}",
        messages=messages,
    )


def _read_record(record: dict[str, Any], find_file: FindFile) -> Iterator[Message | None]:
    """Yield the question and its answer. Records of other activity, such as feedback, have none."""
    answer = common.joined(*(_markdown(text_at(item, "html")) for item in objects_at(record, "safeHtmlItem")))
    title = text_at(record, "title").strip()
    if _NO_PROMPT.match(title) and not answer:
        return
    text = _ATTACHED.sub("", _PROMPT.sub("", title, count=1) if _PROMPT.match(title) else title)
    names = [text_at(name) for name in (*array_at(record, "attachedFiles"), record.get("imageFile")) if text_at(name)]
    time = common.time_at(record, "time")
    yield common.new_message(
        "user", time, text, [File("document", name, find_file(name)) for name in dict.fromkeys(names)]
    )
    yield common.new_message("assistant", time, answer)


def _markdown(html: str) -> str:
    parser = _Markdown()
    parser.feed(html)
    parser.close()
    return re.sub(r"\n{3,}", "\n\n", "".join(parser.pieces)).strip()


_MARKS = {"strong": "**", "b": "**", "em": "*", "i": "*", "del": "~~"}
_BLOCKS = ("p", "div", "ul", "ol", "table", "blockquote", "h1", "h2", "h3", "h4", "h5", "h6")


class _Markdown(HTMLParser):
    """Writes the HTML of answers as Markdown: paragraphs, headings, lists, tables, code, links and emphasis."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []
        self._lists: list[int] = []  # the number of the last item, -1 in a list without numbers
        self._link = ""
        self._is_code = False  # in <pre>
        self._is_opening = False  # the line with the language has no end yet
        self._cells = 0  # in this row of a table
        self._rows = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        write = self.pieces.append
        if tag in _BLOCKS and not self._lists:
            write("\n\n")
        if tag in _MARKS:
            write(_MARKS[tag])
        elif tag == "br":
            write("\n")
        elif tag == "hr":
            write("\n\n---\n\n")
        elif tag in ("ul", "ol"):
            self._lists.append(0 if tag == "ol" else -1)
        elif tag == "li":
            number = self._lists.pop() if self._lists else -1
            self._lists.append(number if number < 0 else number + 1)
            write("\n" + "    " * (len(self._lists) - 1) + ("- " if number < 0 else f"{number + 1}. "))
        elif tag == "pre":
            self._is_code = self._is_opening = True
            write("\n\n```")
        elif tag == "code":
            write((dict(attrs).get("class") or "").removeprefix("language-") if self._is_code else "`")
        elif tag == "a":
            self._link = dict(attrs).get("href") or ""
            write("[" if self._link else "")
        elif tag == "blockquote":
            write("> ")
        elif tag == "table":
            self._rows = 0
        elif tag == "tr":
            self._cells = 0
            write("\n|")
        elif tag in ("td", "th"):
            self._cells += 1
            write(" ")
        elif tag[0] == "h" and tag in _BLOCKS:
            write("#" * int(tag[1]) + " ")

    def handle_endtag(self, tag: str) -> None:
        write = self.pieces.append
        if tag in _MARKS:
            write(_MARKS[tag])
        elif tag in ("ul", "ol"):
            self._lists = self._lists[:-1]
            write("" if self._lists else "\n\n")
        elif tag == "pre":
            self._is_code = False
            write("```\n\n" if self.pieces[-1].endswith("\n") else "\n```\n\n")
        elif tag == "code" and not self._is_code:
            write("`")
        elif tag == "a" and self._link:
            write(f"]({self._link})")
            self._link = ""
        elif tag in ("td", "th"):
            write(" |")
        elif tag == "tr":
            self._rows += 1
            write("\n|" + "---|" * self._cells if self._rows == 1 else "")
        elif tag in _BLOCKS and not self._lists:
            write("\n\n")

    def handle_data(self, data: str) -> None:
        if not (self._is_code or data.strip()) and (not self.pieces or self.pieces[-1].endswith("\n")):
            return  # between two blocks
        if self._is_opening:
            self.pieces.append("\n")
            self._is_opening = False
        self.pieces.append(data if self._is_code else re.sub(r"\s+", " ", data))
