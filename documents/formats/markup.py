"""HTML, as blocks of text."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser

from . import plain
from .common import MAX_DEPTH, Block, Builder, Contents, Unreadable, heading, layout

CHUNK = 64 * 1024  # characters
_CHARSET = re.compile(rb"""<meta[^>]{0,200}charset\s*=\s*["']?\s*([\w-]{1,40})""", re.IGNORECASE)
_XML_CHARSET = re.compile(rb"""<\?xml[^>]{0,200}encoding\s*=\s*["']([\w-]{1,40})""")
# The codecs that are loaded before the child is sealed; browsers read all of Latin-1 as Windows-1252
CHARSETS = {"iso-8859-1": "cp1252", "latin1": "cp1252", "us-ascii": "cp1252", "ascii": "cp1252"} | {
    name: name
    for name in (
        "windows-1250", "windows-1251", "windows-1252", "windows-1253", "windows-1254", "windows-1255", "windows-1256",
        "iso-8859-2", "iso-8859-5", "iso-8859-7", "iso-8859-9", "iso-8859-15", "koi8-r", "koi8-u",
        "shift_jis", "euc-jp", "euc-kr", "gb2312", "gbk", "gb18030", "big5",
    )
}  # fmt: skip
_SKIPPED = frozenset({"script", "style", "template", "svg", "iframe", "object", "select", "datalist", "head"})
_SPACES = re.compile(r"[ \t\r\n\f]+")
_SPACES_BESIDE = re.compile(" {2,}")
_HEADINGS = frozenset({"h1", "h2", "h3", "h4", "h5", "h6"})
_VOID = frozenset(
    {"br", "hr", "img", "input", "meta", "link", "wbr", "col", "area", "base", "embed", "source", "track"}
)
_INLINE = frozenset({
    "a", "abbr", "acronym", "audio", "b", "bdi", "bdo", "big", "button", "cite", "code", "data", "del", "dfn", "em", "font", "i", "ins",
    "kbd", "label", "mark", "math", "meter", "output", "progress", "q", "rb", "rp", "rt", "ruby", "s", "samp", "small", "span",
    "strike", "strong", "sub", "sup", "time", "tt", "u", "var", "video", "mi", "mn", "mo", "mrow", "msup", "msub", "mfrac", "msqrt",
    "mtext",
})  # fmt: skip


def read(data: bytes) -> Contents:
    text, remark = decode(data)
    return Contents("text/html", "section", None, layout(blocks(text, title=True)), remark)


def decode(data: bytes) -> tuple[str, str]:
    """Return the text and a remark about its encoding: that of its mark, else what the page declares, else detected."""
    head = data[:4096]
    declared = _CHARSET.search(head) or _XML_CHARSET.search(head)
    charset = CHARSETS.get(declared[1].decode().lower()) if declared else None
    if charset:
        try:
            data.decode()
        except UnicodeDecodeError:
            return data.decode(charset, "replace"), f"Read as {declared[1].decode() if declared else charset} text."
    return plain.decode(data)


def blocks(text: str, title: bool = False) -> Iterator[Block]:
    """Yield the blocks of a page, with its title first, unless a heading that repeats it follows."""
    parser = _Parser(title)
    start, size = 0, CHUNK
    while start < len(text):
        parser.feed(text[start : start + size])
        start += size
        size = size * 2 if len(parser.rawdata) >= size else CHUNK  # a long tag is scanned anew each time
        yield from parser.take()
    is_open = (
        len(parser.rawdata) > CHUNK
    )  # a comment or tag that does not end, which `close` reads again from each of its characters
    if not is_open:
        parser.close()
    parser.finish()
    yield from parser.take()
    if is_open:
        raise Unreadable("A comment or tag of the page does not end.")


class _Parser(HTMLParser):
    def __init__(self, title: bool) -> None:
        super().__init__(convert_charrefs=True)
        self._builder = Builder()
        self._text: list[str] = []
        self._skipped: list[str] = []  # open elements whose text is left out, the outermost first
        self._title: str | None = "" if title else None
        self._in_title = False
        self._in_reference = False  # to a footnote
        self._level = 0  # of the open heading
        self._lists: list[int | None] = []  # the next number of each open list, or None for bullets
        self._mark = ""  # of the list item that began
        self._preformatted = 0

    def take(self) -> list[Block]:
        return self._builder.take()

    def finish(self) -> None:
        self._end_block()
        self._builder.end()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "body":
            self._skipped.clear()
        hidden = tag in _SKIPPED or (tag not in _VOID and any(name == "hidden" for name, _ in attrs))
        role = (
            " ".join(value or "" for name, value in attrs if name in ("class", "role", "epub:type"))
            if tag == "a"
            else ""
        )
        if tag == "title":
            self._in_title = self._title == "" and "svg" not in self._skipped
        elif "backlink" in role or "footnote-back" in role:
            self._skipped.append("a")
        elif "noteref" in role or "footnote-ref" in role:
            self._in_reference = not self._skipped
            self._text.append("[" if self._in_reference else "")
        elif hidden or (self._skipped and tag in self._skipped):
            if len(self._skipped) >= MAX_DEPTH:
                raise Unreadable(f"The page is nested more than {MAX_DEPTH} levels deep.")
            self._skipped.append(tag)
        elif self._skipped or tag in _INLINE:
            return
        elif tag == "br":
            self._text.append("\n")
        elif tag != "img":
            self._end_block()
            self._start_block(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag in _SKIPPED:  # XHTML may close a script at once
            self.handle_endtag(tag)

    def _start_block(self, tag: str) -> None:
        if tag == "table":
            self._builder.start_table()
        elif tag in ("td", "th"):
            self._builder.start_cell()
        elif tag == "tr":
            self._builder.end_row()
        elif tag in ("ul", "ol"):
            if len(self._lists) < MAX_DEPTH:
                self._lists.append(1 if tag == "ol" else None)
        elif tag == "li":
            number = self._lists[-1] if self._lists else None
            self._mark = "- " if number is None else f"{number}. "
            if number is not None:
                self._lists[-1] = number + 1
        elif tag in _HEADINGS:
            self._level = int(tag[1])
        elif tag == "pre":
            self._preformatted += 1

    def handle_endtag(self, tag: str) -> None:
        if tag == "title" and self._in_title:
            self._title, self._text = " ".join("".join(self._text).split()), []
            self._in_title = False
        elif tag == "a" and self._in_reference:
            self._text.append("]")
            self._in_reference = False
        elif self._skipped:
            if tag in self._skipped:
                del self._skipped[len(self._skipped) - 1 - self._skipped[::-1].index(tag) :]
        elif tag not in _INLINE and tag not in _VOID:
            self._end_block()
            self._finish_block(tag)

    def _finish_block(self, tag: str) -> None:
        if tag in ("ul", "ol") and self._lists:
            self._lists.pop()
        elif tag == "pre":
            self._preformatted = max(0, self._preformatted - 1)
        elif tag == "tr":
            self._builder.end_row()
        elif tag == "table":
            self._builder.end_table()

    def handle_data(self, data: str) -> None:
        if self._in_title or not self._skipped:
            self._text.append(data if self._preformatted else _SPACES.sub(" ", data))

    def _end_block(self) -> None:
        text, self._text = "".join(self._text), []
        if self._preformatted:
            text = text.strip("\n")
        else:
            text = "\n".join(line.strip() for line in _SPACES_BESIDE.sub(" ", text).split("\n")).strip()
        if not text.strip():
            return
        if self._title:
            if self._title != " ".join(text.split()):
                self._builder.add(heading(self._title, 1))
            self._title = None
        mark, level = self._mark, self._level
        self._mark, self._level = "", 0
        if level:
            self._builder.add(heading(text, level))
        elif self._lists:
            self._builder.add(Block("  " * min(len(self._lists) - 1, 8) + mark + text, tight=True))
        else:
            self._builder.add(Block(text))
