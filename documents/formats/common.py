"""What the formats share: their result, their errors and the layout of blocks."""

import unicodedata
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ..types import Remark, Unit

MAX_DEPTH = 500  # of nested elements or groups; real documents have fewer than 50
MAX_UNPACKED_BYTES = 400 * 1024 * 1024  # of the parts of one file
NEW_SECTION = "\f"  # as a part: the next part begins a section

_CONTROLS = {
    code: None for code in (*range(32), *range(0x7F, 0xA0), 0xAD, 0xFEFF, 0xFFFE, 0xFFFF) if chr(code) not in "\t\n"
}
_LIGATURES = (*range(0xFB00, 0xFB07), *range(0xFB13, 0xFB18), *range(0xFB1D, 0xFDFE), *range(0xFE70, 0xFEFD))
_RADICALS = (*range(0x2E80, 0x2FD6),)  # some PDFs have them in place of the usual ideographs
_PLAIN = {code: unicodedata.normalize("NFKC", chr(code)) for code in (*_LIGATURES, *_RADICALS)}
_CLEAN = {**_CONTROLS, **_PLAIN}


class Unreadable(Exception):
    """The document cannot be read, or not to its end. The message is for the person."""


class Encrypted(Exception):
    """The document needs a password, or another one. The message is for the person."""


class Contents(NamedTuple):
    """A document that was opened. Each part is a page or slide; with the unit section, a piece of text of any length."""

    media_type: str
    unit: Unit
    pages: int | None
    parts: Iterator[str | Remark]
    remark: str = ""


class Block(NamedTuple):
    """A paragraph, or a line of a list or table, which has no blank line before the next."""

    text: str
    tight: bool = False


def clean(text: str) -> str:
    """Return the text with \\n between lines, without control characters, and with plain letters in place of ligatures and the like."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").translate(_CLEAN)
    try:
        text.encode()
    except UnicodeEncodeError:  # halves of surrogate pairs
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def ranges(numbers: list[int]) -> str:
    """Return ascending numbers like `1, 3-5`."""
    found: list[list[int]] = []
    for number in numbers:
        if found and found[-1][1] == number - 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    shown = [str(first) if first == last else f"{first}-{last}" for first, last in found[:50]]
    return ", ".join([*shown, "..."] if len(found) > 50 else shown)


def layout(blocks: Iterable[Block]) -> Iterator[str]:
    """Yield the text of each block with the space before it."""
    was_tight = False
    for block in blocks:
        yield ("\n" if was_tight and block.tight else "\n\n") + block.text
        was_tight = block.tight


def heading(text: str, level: int) -> Block:
    return Block("#" * min(max(level, 1), 6) + " " + " ".join(text.split()))


class Builder:
    """Collects blocks, and puts those within a table into its rows. A table may stand in a cell of another."""

    def __init__(self) -> None:
        self._blocks: list[Block] = []
        self._tables: list[list[list[Block]]] = []  # the cells of the open row of each open table

    def take(self) -> list[Block]:
        """Return the blocks since the last call."""
        found, self._blocks = self._blocks, []
        return found

    def add(self, block: Block) -> None:
        for cells in reversed(self._tables):
            if cells:
                cells[-1].append(block)
                return
        self._blocks.append(block)

    def start_table(self) -> None:
        if len(self._tables) >= MAX_DEPTH:
            raise Unreadable(f"Tables are nested more than {MAX_DEPTH} levels deep.")
        self._tables.append([])

    def start_cell(self) -> None:
        if self._tables:
            self._tables[-1].append([])

    def end_row(self) -> None:
        """End a row: a line with its cells. A row with one filled cell is a page's layout, not data, so its blocks stay as they are."""
        if not self._tables:
            return
        cells, self._tables[-1] = self._tables[-1], []
        if sum(map(bool, cells)) <= 1:
            for block in (block for cell in cells for block in cell):
                self.add(block)
        else:
            texts = (" ".join(" ".join(block.text for block in cell).split()) for cell in cells)
            self.add(Block(" | ".join(texts), tight=True))

    def end_table(self) -> None:
        self.end_row()
        if self._tables:
            self._tables.pop()

    def end(self) -> None:
        while self._tables:
            self.end_table()
