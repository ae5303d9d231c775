"""Text files of any kind, and the detection of their encoding."""

import codecs
import re
from pathlib import PurePath

from .common import Contents, Unreadable

PIECE = 64 * 1024  # characters
SAMPLE_BYTES = 64 * 1024
MAX_WRONG = 0.01  # the share of non-ASCII bytes that may be invalid in a UTF-8 file
MAX_CONTROLS = 0.02  # the share of control characters in a text

MEDIA_TYPES = {
    "csv": "text/csv",
    "tsv": "text/tab-separated-values",
    "tab": "text/tab-separated-values",
    "json": "application/json",
    "jsonl": "application/json",
    "md": "text/markdown",
    "markdown": "text/markdown",
}
_MARKS = (
    (codecs.BOM_UTF8, "utf-8", "UTF-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32-be", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16-le", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16-be", "UTF-16"),
)
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")  # without tab, line ends, form feed and escape
_WINDOWS_ONLY = re.compile(rb"[\x80-\x9f]")  # control characters in Latin-1
_UNDEFINED = re.compile(rb"[\x81\x8d\x8f\x90\x9d]")  # in Windows-1252
_NOT_ASCII = re.compile(rb"[\x80-\xff]")


def read(data: bytes, name: str) -> Contents:
    text, remark = decode(data)
    media_type = MEDIA_TYPES.get(PurePath(name).suffix[1:].lower(), "text/plain")
    pieces = (text[start : start + PIECE] for start in range(0, len(text), PIECE))
    return Contents(media_type, "section", None, pieces, remark)


def decode(data: bytes) -> tuple[str, str]:
    """Return the text and a remark about its encoding, which is empty for valid UTF-8. Raises Unreadable for what is not text."""
    for mark, codec, name in _MARKS:
        if data.startswith(mark):
            text, wrong = data[len(mark) :].decode(codec, "replace"), ""
            if "\ufffd" in text and text.count("\ufffd") > len(text) * MAX_WRONG:
                raise Unreadable(NOT_TEXT)
            wrong = " Invalid bytes were replaced." if "\ufffd" in text else ""
            return text, (f"Read as {name} text.{wrong}" if wrong or name != "UTF-8" else "")
    if (wide := _wide(data)) is not None:
        return wide, "Read as UTF-16 text."
    if len(_CONTROL.findall(data[:SAMPLE_BYTES])) > len(data[:SAMPLE_BYTES]) * MAX_CONTROLS:
        raise Unreadable(NOT_TEXT)
    try:
        return data.decode(), ""
    except UnicodeDecodeError:
        pass
    text = data.decode("utf-8", "replace")
    if text.count("\ufffd") <= len(_NOT_ASCII.findall(data)) * MAX_WRONG or _is_cut(data):
        return text, "Read as UTF-8 text. Invalid bytes were replaced."
    if not _WINDOWS_ONLY.search(data):
        return data.decode("latin-1"), "Read as Latin-1 text."
    if len(_UNDEFINED.findall(data)) > len(_NOT_ASCII.findall(data)) * MAX_WRONG:
        raise Unreadable(NOT_TEXT)
    return data.decode("cp1252", "replace"), "Read as Windows-1252 text."


NOT_TEXT = "The file is neither text nor a document that can be read. Save it as PDF or as text first."


def _is_cut(data: bytes) -> bool:
    """Return whether only the last character is invalid, because the file ends within it."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        decoder.decode(data)
    except UnicodeDecodeError:
        return False
    return True


def _wide(data: bytes) -> str | None:
    """Return the text of UTF-16 without a mark, known by the zero bytes of Latin letters, or None."""
    sample = data[: SAMPLE_BYTES & ~1]
    if len(sample) < 4 or len(data) % 2:
        return None
    even, odd = sample[::2].count(0), sample[1::2].count(0)
    for zeros, others, codec in ((odd, even, "utf-16-le"), (even, odd, "utf-16-be")):
        if zeros > len(sample) * 0.2 and others < len(sample) * 0.01:
            try:
                return data.decode(codec)
            except UnicodeDecodeError:
                return None
    return None
