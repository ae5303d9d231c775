"""The text of a PDF page, put right where that takes the places of the letters.

TeX sets accents apart from their letters, so that PDFium returns "fu\\u00a8r" or puts the accent on a line of its own. And where letters are
spaced out, PDFium takes the spaces between them for those between words.
"""

import ctypes
import re
import unicodedata
from functools import cache
from typing import NamedTuple

import pypdfium2
from pypdfium2 import raw

MAX_CHARACTERS, MAX_ACCENTS = 100_000, 1000  # of a page, for which places are looked up
REACH = 200  # characters before and after an accent, among which its letter is looked for
NARROW, WIDE = 0.16, 0.3  # of the height of a line: less is a space between letters; more is surely one between words
SAMPLE = 20  # one of so many characters is looked at, to tell whether a page has letters without a meaning
MAX_UNKNOWN = 0.4  # of them
_COMBINING = {
    "\u00a8": "\u0308", "\u00b4": "\u0301", "`": "\u0300", "\u02c6": "\u0302", "\u02dc": "\u0303", "\u00b8": "\u0327", "\u02c7": "\u030c",
    "\u02d8": "\u0306", "\u02d9": "\u0307", "\u02da": "\u030a", "\u00af": "\u0304", "\u02dd": "\u030b", "\u02db": "\u0328",
}  # fmt: skip
_ACCENT = re.compile(f"[{''.join(_COMBINING)}]")
_DOTLESS = {"\u0131": "i", "\u0237": "j"}
_SPACED_OUT = re.compile(r"(?<!\S)[^\W\d_](?: [^\W\d_]){3}(?!\S)")


def read(textpage: pypdfium2.PdfTextPage) -> str:
    """Return the text of a page."""
    text: str = textpage.get_text_range()
    if len(text) <= MAX_CHARACTERS and (_ACCENT.search(text) or _SPACED_OUT.search(text)):
        letters = _Letters(textpage, text)
        if letters.are_known():
            letters.set_accents()
            letters.join_spaced_out()
            text = "".join(letters.text)
    return text


def is_unknown(textpage: pypdfium2.PdfTextPage) -> bool:
    """Return whether the fonts of many letters do not say what they are. PDFium then guesses from their codes."""
    count = raw.FPDFText_CountChars(textpage)
    unknown = sum(raw.FPDFText_HasUnicodeMapError(textpage, index) == 1 for index in range(0, count, SAMPLE))
    return bool(unknown > MAX_UNKNOWN * count / SAMPLE)


class _Box(NamedTuple):
    left: float
    right: float
    height: float
    baseline: float


class _Letters:
    def __init__(self, textpage: pypdfium2.PdfTextPage, text: str) -> None:
        self.text = [*text]  # an item may become empty
        self._textpage = textpage
        count = raw.FPDFText_CountChars(textpage)
        indexes = range(count)  # of PDFium, which counts characters that are not in the text
        self._indexes = [one for one in indexes if raw.FPDFText_GetTextIndexFromCharIndex(textpage, one) >= 0]
        self._box = cache(self._get_box)

    def are_known(self) -> bool:
        """Return whether the places of all letters are known. In planes beyond the first, a character has two indexes."""
        return len(self.text) == len(self._indexes)

    def set_accents(self) -> None:
        accents = [index for index, char in enumerate(self.text) if char in _COMBINING]
        for accent in accents[:MAX_ACCENTS]:
            if (letter := self._find_letter(accent)) is not None:
                self._set_accent(accent, letter)

    def _find_letter(self, accent: int) -> int | None:
        """Return the place of the letter above or below which an accent stands."""
        mark, box = _COMBINING[self.text[accent]], self._box(accent)
        center = (box.left + box.right) / 2
        for distance in range(1, REACH + 1):
            for index in (accent + distance, accent - distance):
                if 0 <= index < len(self.text) and self.text[index].isalpha() and _composed(self.text[index], mark):
                    other = self._box(index)
                    if other.left < center < other.right and abs(other.baseline - box.baseline) < other.height / 4:
                        return index
        return None

    def _set_accent(self, accent: int, letter: int) -> None:
        """Put an accent onto its letter, and remove the spaces and ends of lines that PDFium put around it."""
        text = self.text
        text[letter] = _composed(text[letter], _COMBINING[text[accent]])
        text[accent] = ""
        before, after = accent - 1, accent + 1
        while before >= 0 and self._is_generated(before):
            before -= 1
        while after < len(text) and self._is_generated(after):
            after += 1
        if before >= 0 and after < len(text) and self._are_together(before, after):
            text[before + 1 : after] = [""] * (after - before - 1)
        elif before < accent - 1 and "\n" in text[accent:after]:
            text[before + 1 : accent] = [""] * (accent - before - 1)
        elif before < accent - 1:
            text[accent:after] = [""] * (after - accent)

    def _are_together(self, before: int, after: int) -> bool:
        left, right = self._box(before), self._box(after)
        is_same_line = abs(left.baseline - right.baseline) < left.height / 4
        return is_same_line and abs(right.left - left.right) < NARROW * left.height

    def join_spaced_out(self) -> None:
        """Remove the narrow spaces of lines that have a word in single letters, or wide spaces apart from them."""
        start = 0
        for line in "".join(char or "\0" for char in self.text).split("\n"):
            widths = self._space_widths(start, start + len(line))
            narrow = [index for index, width in widths.items() if width < NARROW]
            others = [width for width in widths.values() if width >= NARROW]
            has_word = any(start + match.start() + 1 in narrow for match in _SPACED_OUT.finditer(line))
            if has_word or (others and min(others) > WIDE):
                for index in narrow:
                    self.text[index] = ""
            start += len(line) + 1

    def _space_widths(self, start: int, end: int) -> dict[int, float]:
        """Return the widths of the spaces that PDFium put into a part of the text, divided by the height of the line."""
        widths = {}
        kept = [index for index in range(start, end) if self.text[index]]
        for before, space, after in zip(kept, kept[1:], kept[2:], strict=False):
            if self.text[space] == " " and self._is_generated(space):
                left, right = self._box(before), self._box(after)
                widths[space] = (right.left - left.right) / (left.height or 1)
        return widths

    def _is_generated(self, index: int) -> bool:
        return bool(raw.FPDFText_IsGenerated(self._textpage, self._indexes[index]) == 1)

    def _get_box(self, index: int) -> _Box:
        rectangle, x, y = raw.FS_RECTF(), ctypes.c_double(), ctypes.c_double()
        raw.FPDFText_GetLooseCharBox(self._textpage, self._indexes[index], rectangle)
        raw.FPDFText_GetCharOrigin(self._textpage, self._indexes[index], x, y)
        return _Box(rectangle.left, rectangle.right, abs(rectangle.top - rectangle.bottom), y.value)


def _composed(letter: str, mark: str) -> str:
    """Return a letter with a combining mark as one character, or an empty string if there is none."""
    composed = unicodedata.normalize("NFC", _DOTLESS.get(letter, letter) + mark)
    return composed if len(composed) == 1 else ""
