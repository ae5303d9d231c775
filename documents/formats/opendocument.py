"""OpenDocument texts and presentations (ODT, ODP)."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from .archive import Archive, Event
from .common import Block, Builder, Contents, Unreadable, heading, layout

TEXT = "application/vnd.oasis.opendocument.text"
PRESENTATION = "application/vnd.oasis.opendocument.presentation"
MAX_REPEATED = 100  # empty cells or spaces in place of one element
_SKIPPED = frozenset(
    {
        "annotation",
        "tracked-changes",
        "ruby-text",
        "forms",
        "event-listeners",
        "title",
        "desc",
        "binary-data",
        "page-number",
        "page-count",
    }
)
_SKIPPED_PRESENTATION = _SKIPPED | {"date-time", "footer-decl", "header-decl", "date-time-decl"}


@dataclass
class _Paragraph:
    level: int = 0  # of a heading
    is_code: bool = False
    texts: list[str] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)


def read(archive: Archive, media_type: str) -> Contents:
    if media_type == PRESENTATION:
        return Contents(media_type, "slide", None, _slides(archive))
    return Contents(media_type, "section", None, layout(_text(archive)))


def check(archive: Archive) -> None:
    """Raise Unreadable for a document with a password."""
    if "META-INF/manifest.xml" in archive.names and b"encryption-data" in archive.read("META-INF/manifest.xml"):
        raise Unreadable("The document is encrypted. Open it in its program and save it without a password.")


def _text(archive: Archive) -> Iterator[Block]:
    styles = "styles.xml" in archive.names
    lists = _Lists()
    if styles:
        for event in archive.events("styles.xml"):
            if event.kind == "start":
                lists.define(event.name, event.attributes)
        yield from _edge(archive, "header")
    yield from _blocks(archive.events("content.xml"), lists)
    if styles:
        yield from _edge(archive, "footer")


def _edge(archive: Archive, name: str) -> Iterator[Block]:
    """Yield the headers or footers of all page styles, each text once."""
    seen: set[str] = set()
    for block in _blocks(_within(archive.events("styles.xml"), name), _Lists()):
        if block.text not in seen:
            seen.add(block.text)
            yield block


def _slides(archive: Archive) -> Iterator[str]:
    slide: list[Event] = []
    notes: list[Event] = []
    inside = in_notes = False
    for event in archive.events("content.xml"):
        if event.kind != "text" and event.name == "page":
            inside = event.kind == "start"
            if not inside:
                text, more = _join(slide), _join(notes)
                yield f"{text}\n\nNotes: {more}".strip() if more else text
                slide, notes = [], []
        elif event.kind != "text" and event.name == "notes":
            in_notes = event.kind == "start"
        elif inside:
            (notes if in_notes else slide).append(event)


def _join(events: list[Event]) -> str:
    return "".join(layout(_blocks(iter(events), _Lists(), _SKIPPED_PRESENTATION))).strip()


def _within(events: Iterator[Event], name: str) -> Iterator[Event]:
    depth = 0
    for event in events:
        if event.kind != "text" and event.name == name:
            depth += 1 if event.kind == "start" else -1
        elif depth:
            yield event


class _Lists:
    """The open lists, and which list styles count."""

    def __init__(self) -> None:
        self._numbered: set[tuple[str, str]] = set()  # style, level
        self._style = ""
        self._open: list[tuple[str, int]] = []  # style of each open list, and the number of its last item
        self._mark = ""  # of the item that began

    def define(self, name: str, values: dict[str, str]) -> None:
        if name == "list-style":
            self._style = values.get("name", "")
        elif name == "list-level-style-number" and values.get("num-format", "1"):
            self._numbered.add((self._style, values.get("level", "")))

    def start(self, style: str) -> None:
        self._open.append((style or (self._open[-1][0] if self._open else ""), 0))

    def start_item(self) -> None:
        if self._open:
            style, number = self._open[-1]
            self._open[-1] = (style, number + 1)
            self._mark = f"{number + 1}. " if (style, str(len(self._open))) in self._numbered else "- "

    def end(self) -> None:
        if self._open:
            self._open.pop()

    def block(self, text: str) -> Block | None:
        """Return the text as a paragraph of the open item, or None outside of lists."""
        if not self._open:
            return None
        mark, self._mark = self._mark, ""
        return Block("  " * min(len(self._open) - 1, 8) + mark + text, tight=True)


def _blocks(events: Iterator[Event], lists: _Lists, skip: frozenset[str] = _SKIPPED) -> Iterator[Block]:
    builder = Builder()
    open_paragraphs: list[_Paragraph] = []
    note: list[str] | None = None  # the texts of the open note
    citation: list[str] = []  # the mark of the open note
    in_citation = False
    skipped = 0
    for kind, name, values in events:
        if kind == "text":
            if skipped:
                continue
            if in_citation:
                citation.append(name)
            elif open_paragraphs:
                open_paragraphs[-1].texts.append(" ".join(name.split("\n")))
        elif kind == "start":
            if skipped or name in skip:
                skipped += 1
            elif name in ("p", "h"):
                style = values.get("style-name", "")
                level = _count(values.get("outline-level"), 1) if name == "h" else int(style == "Title")
                open_paragraphs.append(_Paragraph(level, style.startswith("Preformatted")))
            elif name == "list":
                lists.start(values.get("style-name", ""))
            elif name == "list-item":
                lists.start_item()
            elif name == "table":
                builder.start_table()
            elif name in ("table-cell", "covered-table-cell"):
                for _ in range(_count(values.get("number-columns-repeated"), 1)):
                    builder.start_cell()
            elif name == "note-citation":
                citation, in_citation = [], True
            elif name == "note-body":
                note = []
            elif open_paragraphs and name in ("s", "tab", "line-break"):
                mark = {"s": " " * _count(values.get("c"), 1), "tab": "\t", "line-break": "\n"}[name]
                open_paragraphs[-1].texts.append(mark)
            else:
                lists.define(name, values)
        elif skipped:
            skipped -= 1
        elif name in ("p", "h") and open_paragraphs:
            paragraph = open_paragraphs.pop()
            if note is not None:
                note.append("".join(paragraph.texts))
            else:
                for block in _finish(paragraph, lists):
                    builder.add(block)
        elif name == "note-body" and note is not None:
            mark = f"[{''.join(citation).strip()}]"
            if open_paragraphs:
                open_paragraphs[-1].texts.append(mark)
                open_paragraphs[-1].notes.append((mark, " ".join(" ".join(note).split())))
            note = None
        elif name == "note-citation":
            in_citation = False
        elif name == "list":
            lists.end()
        elif name == "table-row":
            builder.end_row()
        elif name == "table":
            builder.end_table()
        yield from builder.take()
    builder.end()
    yield from builder.take()


def _finish(paragraph: _Paragraph, lists: _Lists) -> Iterator[Block]:
    text = "".join(paragraph.texts).strip()
    if text and paragraph.level:
        yield heading(text, paragraph.level)
    elif text:
        yield lists.block(text) or Block(text, tight=paragraph.is_code)
    for mark, note in paragraph.notes:
        yield Block(f"{mark} {note}", tight=True)


def _count(text: str | None, default: int) -> int:
    return min(int(text), MAX_REPEATED) if text and text.isascii() and text.isdigit() and len(text) < 10 else default
