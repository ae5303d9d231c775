"""Word documents (DOCX)."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from .archive import Archive, Event
from .common import Block, Builder, Contents, heading, layout

MEDIA_TYPE = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
_SKIPPED = frozenset(
    {
        "rPr",
        "tabs",
        "moveFrom",
        "Fallback",
        "rt",
        "sdtPr",
        "tblPr",
        "trPr",
        "tcPr",
        "sectPr",
        "pPrChange",
        "numberingChange",
    }
)
_HEADING = re.compile(r"heading ([1-9])", re.IGNORECASE)
_PLACE = re.compile(r"%([1-9])")
MAX_NUMBER = 3999  # in Roman numerals
MAX_LEVELS = 9  # of a list
MAX_PARENTS = 20  # of a style; a forged file can have a cycle


@dataclass
class _Style:
    name: str = ""
    parent: str = ""
    level: int | None = None  # of a heading, from 1
    number: str | None = None  # id of a list
    indent: int | None = None  # level of a list, from 0


@dataclass
class _Level:
    format: str = "decimal"
    text: str = ""
    start: int = 1


@dataclass
class _Numbering:
    """An abstract list: its levels, and the numbers that were reached. Lists that refer to it continue each other."""

    levels: list[_Level] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)


@dataclass
class _List:
    numbering: _Numbering
    restarts: dict[int, int] = field(default_factory=dict)  # at its first paragraph: level, number


@dataclass
class _Paragraph:
    texts: list[str] = field(default_factory=list)
    style: _Style = field(default_factory=_Style)
    notes: list[tuple[str, str]] = field(default_factory=list)  # mark, text


def read(archive: Archive) -> Contents:
    return Contents(MEDIA_TYPE, "section", None, layout(_Reader(archive).blocks()))


class _Reader:
    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        main = [path for kind, path in archive.relations("").values() if kind == "officeDocument"]
        self._main = next((path for path in main if path in archive.names), "word/document.xml")
        self._parts: dict[str, list[str]] = {}  # paths by type
        for kind, path in archive.relations(self._main).values():
            if path in archive.names:
                self._parts.setdefault(kind, []).append(path)
        self._styles: dict[str, _Style] = {}
        self._lists: dict[str, _List] = {}  # by numId
        self._notes: dict[tuple[str, str], str] = {}
        self._note_count = 0

    def blocks(self) -> Iterator[Block]:
        for kind, load in (("styles", self._load_styles), ("numbering", self._load_lists)):
            for path in self._parts.get(kind, [])[:1]:
                load(self._archive.events(path))
        for kind, tag in (("footnotes", "footnote"), ("endnotes", "endnote")):
            for path in self._parts.get(kind, [])[:1]:
                self._load_notes(tag, path)
        for path in self._parts.get("header", []):
            yield from self._flow(self._archive.events(path))
        yield from self._flow(self._archive.events(self._main))
        for path in self._parts.get("footer", []):
            yield from self._flow(self._archive.events(path))

    # ---- styles, lists and notes

    def _load_styles(self, events: Iterator[Event]) -> None:
        style = _Style()
        for kind, name, values in events:
            if kind != "start":
                continue
            if name == "style":
                style = self._styles[values.get("styleId", "")] = _Style()
            elif name == "name":
                style.name = values.get("val", "")
                if found := _HEADING.fullmatch(style.name):
                    style.level = int(found[1])
                elif style.name.lower() == "title":
                    style.level = 1
            elif name == "basedOn":
                style.parent = values.get("val", "")
            else:
                _set(style, name, values)

    def _load_lists(self, events: Iterator[Event]) -> None:
        numberings: dict[str, _Numbering] = {}
        current = _Numbering()
        number, level = "", 0
        for kind, name, values in events:
            if kind != "start":
                continue
            value = values.get("val", "")
            levels = current.levels
            if name == "abstractNum":
                current = numberings[values.get("abstractNumId", "")] = _Numbering()
            elif name == "lvl" and len(levels) < MAX_LEVELS:
                levels.append(_Level())
            elif name == "num":
                number, current = values.get("numId", ""), _Numbering()  # ignores the levels that it overrides
            elif name == "abstractNumId":
                self._lists[number] = _List(numberings.get(value, _Numbering()))
            elif name == "lvlOverride":
                level = _integer(values.get("ilvl", ""), 0)
            elif name == "startOverride" and number in self._lists:
                self._lists[number].restarts[level] = _integer(value, 1)
            elif levels and name == "numFmt":
                levels[-1].format = value
            elif levels and name == "lvlText":
                levels[-1].text = value
            elif levels and name == "start":
                levels[-1].start = _integer(value, 1)

    def _load_notes(self, tag: str, path: str) -> None:
        identifier, inside = "", False

        def note_events() -> Iterator[Event]:
            nonlocal identifier, inside
            for event in events:
                if event.name == tag and event.kind == "start":
                    identifier, inside = event.attributes.get("id", ""), "type" not in event.attributes
                elif event.name == tag and event.kind == "end":
                    return
                elif inside:
                    yield event

        events = self._archive.events(path)
        while True:
            identifier = ""
            texts = [block.text for block in self._flow(note_events())]
            if not identifier:
                return
            self._notes[tag, identifier] = " ".join(" ".join(texts).split())

    # ---- text

    def _flow(self, events: Iterator[Event]) -> Iterator[Block]:
        builder = Builder()
        open_paragraphs: list[_Paragraph] = []
        skipped = 0  # depth within an element that is left out
        is_text = False
        for kind, name, values in events:
            if kind == "text":
                if is_text and open_paragraphs:
                    open_paragraphs[-1].texts.append(name)
            elif kind == "start":
                if skipped or name in _SKIPPED:
                    skipped += 1
                elif name == "p":
                    open_paragraphs.append(_Paragraph())
                elif name == "t":
                    is_text = True
                elif name == "tbl":
                    builder.start_table()
                elif name == "tc":
                    builder.start_cell()
                elif open_paragraphs:
                    self._mark(open_paragraphs[-1], name, values)
            elif skipped:
                skipped -= 1
            elif name == "t":
                is_text = False
            elif name == "p" and open_paragraphs:
                for block in self._finish(open_paragraphs.pop()):
                    builder.add(block)
            elif name == "tr":
                builder.end_row()
            elif name == "tbl":
                builder.end_table()
            yield from builder.take()
        builder.end()
        yield from builder.take()

    def _mark(self, paragraph: _Paragraph, name: str, values: dict[str, str]) -> None:
        if name in _CHARACTERS:
            paragraph.texts.append(_CHARACTERS[name])
        elif name == "pStyle":
            self._inherit(paragraph.style, values.get("val", ""))
        elif name in ("footnoteReference", "endnoteReference"):
            text = self._notes.get((name.removesuffix("Reference"), values.get("id", "")))
            if text:
                self._note_count += 1
                paragraph.texts.append(f"[{self._note_count}]")
                paragraph.notes.append((f"[{self._note_count}]", text))
        else:
            _set(paragraph.style, name, values)

    def _inherit(self, found: _Style, identifier: str) -> None:
        """Set what the paragraph itself does not set from its style and the styles that this one is based on."""
        for _ in range(MAX_PARENTS):
            style = self._styles.get(identifier)
            if style is None:
                return
            found.level = style.level if found.level is None else found.level
            found.number = style.number if found.number is None else found.number
            found.indent = style.indent if found.indent is None else found.indent
            identifier = style.parent

    def _finish(self, paragraph: _Paragraph) -> Iterator[Block]:
        text = "".join(paragraph.texts).strip()
        style = paragraph.style
        indent = min(style.indent or 0, 8)
        mark = self._number(style.number, indent) if style.number and text else ""
        if text and style.level is not None:
            yield heading(f"{mark} {text}", style.level)
        elif text and mark:
            yield Block(f"{'  ' * indent}{mark} {text}", tight=True)
        elif text:
            yield Block(text)
        for mark, note in paragraph.notes:
            yield Block(f"{mark} {note}", tight=True)

    def _number(self, number: str, indent: int) -> str:
        """Count this paragraph of a list and return its number or bullet."""
        found = self._lists.get(number)
        if found is None or indent >= len(found.numbering.levels):
            return ""
        levels, counts = found.numbering.levels, found.numbering.counts
        del counts[indent + 1 :]
        while len(counts) <= indent:
            counts.append(levels[len(counts)].start - (len(counts) == indent))
        if indent in found.restarts:
            counts[indent] = found.restarts[indent] - 1
            found.restarts.clear()
        counts[indent] += 1
        level = levels[indent]
        if level.format == "bullet":
            return "-"
        if level.format == "none":
            return ""

        def value(match: re.Match[str]) -> str:
            place = int(match[1]) - 1
            return _NUMERALS.get(levels[place].format, str)(counts[place]) if place < len(counts) else ""

        return _PLACE.sub(value, level.text)


_CHARACTERS = {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}


def _set(style: _Style, name: str, values: dict[str, str]) -> None:
    """Set what a property of a paragraph says about lists and headings."""
    value = values.get("val", "")
    if name == "numId":
        style.number = value if value != "0" else ""
    elif name == "ilvl":
        style.indent = _integer(value, 0)
    elif name == "outlineLvl" and (level := _integer(value, 9)) < 9:
        style.level = level + 1


def _integer(text: str, default: int) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else default


def _letters(number: int) -> str:
    return chr(ord("a") + (number - 1) % 26) * min((number - 1) // 26 + 1, 20)


def _roman(number: int) -> str:
    if not 0 < number <= MAX_NUMBER:
        return str(number)
    text = ""
    for value, numeral in zip(
        (1000, 900, 500, 400, 100, 90, 50, 40, 10, 9, 5, 4, 1),
        ["m", "cm", "d", "cd", "c", "xc", "l", "xl", "x", "ix", "v", "iv", "i"],
        strict=True,
    ):
        text += numeral * (number // value)
        number %= value
    return text


_NUMERALS: dict[str, Callable[[int], str]] = {
    "lowerLetter": _letters,
    "upperLetter": lambda number: _letters(number).upper(),
    "lowerRoman": _roman,
    "upperRoman": lambda number: _roman(number).upper(),
}
