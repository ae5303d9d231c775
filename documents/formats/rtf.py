"""Rich Text Format (RTF)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from .common import MAX_DEPTH, Block, Builder, Contents, Unreadable, heading, layout

MEDIA_TYPE = "application/rtf"
_TOKEN = re.compile(
    r"\\([a-zA-Z]{1,32})(-?\d{1,10})? ?"  # a control word and its number
    r"|\\'([0-9a-fA-F]{2})"  # a byte
    r"|\\([^a-zA-Z])"  # a control symbol
    r"|([{}])"
    r"|([^\\{}\r\n]{1,65536})"  # text
    r"|[\r\n]+|\\",
    re.DOTALL,
)
_CHARSETS = {
    77: "mac_roman", 128: "cp932", 129: "cp949", 134: "cp936", 136: "cp950", 161: "cp1253", 162: "cp1254", 163: "cp1258",
    177: "cp1255", 178: "cp1256", 186: "cp1257", 204: "cp1251", 222: "cp874", 238: "cp1250",
}  # fmt: skip
_CODE_PAGES = {10000: "mac_roman"} | {
    page: f"cp{page}"
    for page in (437, 850, 852, 866, 874, 932, 936, 949, 950, 1250, 1251, 1252, 1253, 1254, 1255, 1256, 1257, 1258)
}
CODECS = {*_CHARSETS.values(), *_CODE_PAGES.values()}
_SKIPPED = frozenset(
    [
        "colortbl",
        "stylesheet",
        "info",
        "pict",
        "object",
        "fldinst",
        "listtable",
        "listoverridetable",
        "revtbl",
        "rsidtbl",
        "generator",
        "themedata",
        "colorschememapping",
        "latentstyles",
        "datastore",
        "xmlnstbl",
        "filetbl",
        "annotation",
        "atnid",
        "atnauthor",
        "atrfstart",
        "atrfend",
        "bkmkstart",
        "bkmkend",
        "nonshppict",
        "mmathPr",
        "pgptbl",
        "pnseclvl",
    ]
)
_CHARACTERS = {
    "tab": "\t", "line": "\n", "emdash": "\u2014", "endash": "\u2013", "bullet": "\u2022", "lquote": "\u2018", "rquote": "\u2019",
    "ldblquote": "\u201c", "rdblquote": "\u201d", "emspace": " ", "enspace": " ", "qmspace": " ",
}  # fmt: skip
_SYMBOLS = {"~": "\u00a0", "_": "-", "\\": "\\", "{": "{", "}": "}"}
_PARAGRAPH_ENDS = frozenset({"par", "sect", "page", "\n", "\r"})
_BESIDE = frozenset(["header", "headerl", "headerr", "headerf", "footer", "footerl", "footerr", "footerf", "footnote"])


@dataclass
class _State:
    """What a group inherits from the one around it."""

    skipped: bool = False
    in_fonts: bool = False
    codec: str = "cp1252"
    fallback: int = 1  # characters after \\u that repeat it for older programs
    ends_block: bool = False  # the end of the group ends a paragraph


def read(data: bytes) -> Contents:
    return Contents(MEDIA_TYPE, "section", None, layout(_Reader(data.decode("latin-1")).blocks()))


class _Reader:
    def __init__(self, text: str) -> None:
        self._source = text
        self._state = _State()
        self._outer: list[_State] = []
        self._fonts: dict[int, str] = {}
        self._font = 0  # being defined
        self._page = "cp1252"
        self._bytes = bytearray()
        self._text: list[str] = []
        self._beside: list[
            tuple[str, list[str]]
        ] = []  # the open notes and headers: their word, and the text before them
        self._notes: list[str] = []  # of the paragraph
        self._note_count = 0
        self._left_out = 0  # characters that repeat a \\u
        self._builder = Builder()
        self._in_row = False
        self._in_cell = False
        self._starred = False  # after \\*: programs that do not know the group leave it out
        self._level = 0  # of a heading

    def blocks(self) -> Iterator[Block]:
        position = 0
        while found := _TOKEN.match(self._source, position):
            position = found.end()
            word, number, byte, symbol, brace, text = found.groups()
            if word == "bin":
                position += max(0, int(number or 0))
            elif word:
                self._word(word, None if number is None else int(number))
            elif byte:
                self._add_bytes(bytes.fromhex(byte))
            elif symbol:
                self._symbol(symbol)
            elif brace:
                self._brace(brace)
            elif text:
                self._add_bytes(text.encode("latin-1"))
            yield from self._builder.take()
        while self._beside:
            self._end_beside()
        self._end_paragraph()
        self._builder.end()
        yield from self._builder.take()
        if self._outer:
            raise Unreadable("The file is incomplete: its end is missing.")

    def _brace(self, brace: str) -> None:
        self._decode()
        self._left_out = 0
        if brace == "{":
            if len(self._outer) >= MAX_DEPTH:
                raise Unreadable(f"The file's groups are nested more than {MAX_DEPTH} levels deep.")
            self._outer.append(self._state)
            self._state = replace(self._state, ends_block=False)
        elif self._outer:
            if self._state.ends_block and self._beside:
                self._end_beside()
            self._state = self._outer.pop()

    def _word(self, word: str, number: int | None) -> None:
        state = self._state
        starred, self._starred = self._starred, False
        if starred and word in _BESIDE:
            state.skipped = bool(self._outer) and self._outer[-1].skipped
        if word == "u" and number is not None:
            self._decode()
            if not state.skipped and not state.in_fonts:
                self._text.append(chr(number % 65536))
            self._left_out = state.fallback
        elif word == "uc":
            state.fallback = min(max(number or 0, 0), 10)
        elif word == "f" and state.in_fonts:
            self._font = number or 0
        elif word == "fcharset" and state.in_fonts:
            self._fonts[self._font] = _CHARSETS.get(number or 0, self._page)
        elif word == "f":
            self._decode()
            state.codec = self._fonts.get(number or 0, self._page)
        elif word == "ansicpg":
            self._page = state.codec = _CODE_PAGES.get(number or 1252, "cp1252")
        elif word == "mac":
            self._page = state.codec = "mac_roman"
        elif word == "fonttbl":
            state.in_fonts = True
        elif word in _SKIPPED or (word == "v" and number != 0):
            self._decode()
            state.skipped = True
        elif word == "outlinelevel":
            self._level = (number or 0) + 1
        elif not state.skipped and not state.in_fonts:
            self._decode()
            self._show(word)

    def _show(self, word: str) -> None:
        if word in _CHARACTERS:
            self._text.append(_CHARACTERS[word])
        elif word in _PARAGRAPH_ENDS:
            self._end_paragraph()
        elif word in ("cell", "nestcell"):
            self._start_row()
            self._start_cell()
            self._end_paragraph()
            self._in_cell = False
        elif word in ("row", "nestrow"):
            self._end_row()
        elif word == "intbl":
            self._start_row()
        elif word == "trowd":
            self._end_row()
        elif word == "pard":
            self._level = 0
        elif word in _BESIDE:
            self._beside.append((word, self._text))
            self._text = []
            self._state.ends_block = True

    def _start_row(self) -> None:
        if not self._in_row:
            self._in_row = True
            self._builder.start_table()

    def _start_cell(self) -> None:
        if self._in_row and not self._in_cell:
            self._in_cell = True
            self._builder.start_cell()

    def _end_row(self) -> None:
        if self._in_row:
            self._end_paragraph()
            self._builder.end_table()
            self._in_row = self._in_cell = False

    def _end_beside(self) -> None:
        """End a footnote, which follows its paragraph, or a header or footer."""
        text = " ".join("".join(self._text).split())
        kind, self._text = self._beside.pop()
        if text and kind == "footnote":
            self._note_count += 1
            self._text.append(f"[{self._note_count}]")
            self._notes.append(f"[{self._note_count}] {text}")
        elif text:
            self._builder.add(Block(text))

    def _symbol(self, symbol: str) -> None:
        if symbol == "*":
            self._state.skipped = self._starred = True
        elif symbol in "\r\n" and not self._state.skipped:
            self._decode()
            self._end_paragraph()
        elif symbol in _SYMBOLS:
            if self._left_out:
                self._left_out -= 1
            elif not self._state.skipped and not self._state.in_fonts:
                self._decode()
                self._text.append(_SYMBOLS[symbol])

    def _add_bytes(self, data: bytes) -> None:
        left_out, self._left_out = self._left_out, max(0, self._left_out - len(data))
        if not self._state.skipped and not self._state.in_fonts:
            self._bytes += data[left_out:]

    def _decode(self) -> None:
        if self._bytes:
            self._text.append(self._bytes.decode(self._state.codec, "replace"))
            self._bytes.clear()

    def _end_paragraph(self) -> None:
        self._decode()
        if self._beside:
            self._text.append("\n")
            return
        text, self._text = "".join(self._text).strip(), []
        if text:
            self._start_cell()
            is_heading = self._level and not self._in_row
            self._builder.add(heading(text, self._level) if is_heading else Block(text))
        for note in self._notes:
            self._builder.add(Block(note, tight=True))
        self._notes = []
