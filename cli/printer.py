"""Prints answers: on a terminal with light styles, progress and without control characters; elsewhere only the text."""

import re
import shutil
import sys
import unicodedata
from typing import TextIO

CONTROL = {code: "\ufffd" for code in (*range(0x20), 0x7F, *range(0x80, 0xA0)) if chr(code) not in "\n\t"}
RESET, BOLD, DIM, CYAN = "\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[36m"
CLEAR_LINE = "\r\x1b[2K"
PIECES = re.compile(r"\n|`+|\*\*|[^\n`*]+|\*")
UNFINISHED = re.compile(r"[`*#]+\Z")  # the next piece of the answer may belong to it


def printable(line: str) -> str:
    """Replace the characters of an untrusted line that control a terminal or the direction of writing."""
    return "".join("\ufffd" if unicodedata.category(each) in ("Cc", "Cf", "Zl", "Zp") else each for each in line)


def without_controls(text: str) -> str:
    """Replace the control characters of untrusted text, but for line breaks and tabs. Joined emoji and scripts stay whole."""
    return text.translate(CONTROL)


def show_status(text: str, stream: TextIO | None = None) -> None:
    """Show a line of progress, on standard error by default, if it is a terminal, in place of the one before; "" removes it."""
    stream = stream or sys.stderr
    if stream.isatty():
        width = shutil.get_terminal_size().columns - 1
        stream.write(f"{CLEAR_LINE}{DIM}{printable(text)[:width]}{RESET}" if text else CLEAR_LINE)
        stream.flush()


def note(text: str) -> None:
    """Print a line about an answer on standard error, so that it is not in a pipe with the answer."""
    styled = sys.stderr.isatty()
    print(f"{DIM if styled else ''}{printable(text)}{RESET if styled else ''}", file=sys.stderr)


class Markdown:
    """Adds styles to Markdown that arrives in pieces: headings and strong text are bold, code is colored. Every character is kept."""

    def __init__(self) -> None:
        self._unfinished = ""
        self._line_start = True
        self._open: set[str] = set()  # of "fence", "code", "strong" and "heading"
        self._style = ""

    def feed(self, text: str) -> str:
        text = self._unfinished + text
        found = UNFINISHED.search(text)
        self._unfinished = found[0] if found else ""
        return self._styled(text[: len(text) - len(self._unfinished)])

    def end(self) -> str:
        """Return what `feed` has kept back, and end the last style."""
        rest = self._styled(self._unfinished)
        return rest + RESET if self._style else rest

    def _styled(self, text: str) -> str:
        styled = ""
        for piece in PIECES.findall(text):
            if piece == "\n":
                self._open &= {"fence"}
            kind = self._kind(piece)
            closes = kind in self._open
            if kind and not closes:
                self._open.add(kind)
            style = CYAN if self._open & {"fence", "code"} else BOLD if self._open else ""
            if style != self._style:
                styled += (RESET if self._style else "") + style
                self._style = style
            styled += piece
            if closes:
                self._open.discard(kind)
            self._line_start = piece == "\n" or (self._line_start and piece.isspace())
        return styled

    def _kind(self, piece: str) -> str:
        """Return what this piece begins or ends, or an empty string."""
        if piece.startswith("```") and self._line_start:
            return "fence"
        if "fence" in self._open:
            return ""
        if piece.startswith("`"):
            return "code"
        if "code" in self._open:
            return ""
        if piece == "**":
            return "strong"
        return "heading" if self._line_start and re.match(r"#{1,6} ", piece) else ""


class Printer:
    """Prints one answer as it grows."""

    def __init__(self) -> None:
        self._styled = sys.stdout.isatty()
        self._markdown = Markdown()
        self._status = ""
        self._content = self._reasoning = 0  # printed characters
        self._last = "\n"  # printed character

    def show(self, content: str, reasoning: str) -> None:
        """Print what is new in the two texts of an answer. The reasoning is printed on a terminal only."""
        if self._styled and len(reasoning) > self._reasoning:
            self._write(DIM + without_controls(reasoning[self._reasoning :]) + RESET)
            self._reasoning = len(reasoning)
        if len(content) > self._content:
            if self._reasoning and not self._content:
                self._write("\n\n")
            new = content[self._content :]
            self._content = len(content)
            self._write(self._markdown.feed(without_controls(new)) if self._styled else new)

    def show_all(self, text: str) -> None:
        """Print a text that is complete."""
        self.show(text, "")
        self.end()

    def show_progress(self, text: str) -> None:
        """Show a line of progress on a terminal, until something else is printed."""
        if text != self._status:
            show_status(text, sys.stdout)
            self._status = text

    def end(self) -> None:
        """End the last line."""
        self._write(self._markdown.end())
        if self._last != "\n":
            self._write("\n")

    def _write(self, text: str) -> None:
        self.show_progress("")
        self._last = re.sub(r"\x1b\[\d+m", "", text)[-1:] or self._last  # first: Ctrl-C may come at any time
        sys.stdout.write(text)
        sys.stdout.flush()
