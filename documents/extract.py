"""The text of a document, read in a sealed sandbox child. The service imports this module without the formats, which take memory.

sandbox = Sandbox(extract.MEMORY_BYTES, extract.PRELOAD, sealed=True)
sandbox.iterate(extract.extract, data, name, media_type, password, seconds=extract.ITEM_SECONDS)
"""

import time
from collections.abc import Iterator

import msgspec

from .types import Item, Opened, Page, Problem, Remark

PRELOAD = ("fireside.documents.extract", "fireside.documents.formats")
MEMORY_BYTES = 768 * 1024 * 1024
ITEM_SECONDS = 30.0  # until the next page or section
MAX_SECONDS = 300.0  # of processor time for a document
MAX_PAGES = 10_000
MAX_CHARACTERS = 20_000_000
MAX_PAGE_CHARACTERS = 100_000  # indexing them holds up other writes for up to 50 ms
SHORTEST_SECTION, LONGEST_SECTION = 1500, 3600


def extract(data: bytes, name: str, media_type: str, password: str | None) -> Iterator[bytes]:
    """Yield the encoded items of types.py. `name` only tells Markdown, CSV, JSON and HTML from other text; `media_type` is not used."""
    return map(msgspec.msgpack.encode, read(data, name, password))


def read(data: bytes, name: str, password: str | None = None) -> Iterator[Item]:
    """Yield Opened, each Page, and Remarks or a Problem. An error after the first text is a Remark, since that text is of use."""
    from .formats import open_document  # loaded in the child only
    from .formats.common import Encrypted, Unreadable

    has_text = False
    try:
        contents = open_document(data, name, password)
        pages = contents.pages and min(contents.pages, MAX_PAGES)
        yield Opened(contents.media_type, contents.unit, pages, contents.remark)
        parts = _sections(contents.parts) if contents.unit == "section" else contents.parts
        for item in _within_bounds(parts, contents.unit):
            has_text = has_text or (isinstance(item, Page) and bool(item.text.strip()))
            yield item
        if not has_text:
            yield Problem("no_text", NO_TEXT)
    except Encrypted as error:
        yield Problem("encrypted", str(error))
    except Unreadable as error:
        yield Remark(f"Only the text up to here was read. {error}") if has_text else Problem("failed", str(error))
    except MemoryError:
        message = "Reading it needs more memory than is allowed. Split it, and attach its parts."
        yield Remark(f"Only the text up to here was read. {message}") if has_text else Problem("failed", message)


NO_TEXT = "The document has no text: it may consist of pictures, such as a scan. Run a text recognition (OCR) program on it first."


def _within_bounds(parts: Iterator[str | Remark], unit: str) -> Iterator[Item]:
    from .formats.common import ranges

    long: list[int] = []
    yield from _pages_within_bounds(parts, unit, long)
    if long:
        yield Remark(
            f"Only the first {MAX_PAGE_CHARACTERS:,} characters of a {unit} were read. Longer: {ranges(long)}."
        )


def _pages_within_bounds(parts: Iterator[str | Remark], unit: str, long: list[int]) -> Iterator[Item]:
    """Append the numbers of the pages that were cut to `long`."""
    from .formats.common import clean

    pages = characters = 0
    start = time.process_time()
    for part in parts:
        if isinstance(part, Remark):
            yield part
            continue
        text = clean(part)
        if unit == "section" and not (text := text.strip("\n")).strip():
            continue
        if pages == MAX_PAGES:
            yield Remark(f"Only the first {MAX_PAGES:,} {unit}s were read.")
            return
        if len(text) > MAX_PAGE_CHARACTERS:
            long.append(pages + 1)
            text = text[:MAX_PAGE_CHARACTERS]
        rest = MAX_CHARACTERS - characters
        yield Page(text[:rest])
        pages += 1
        characters += len(text)
        if len(text) > rest:
            yield Remark(f"Only the first {MAX_CHARACTERS // 10**6} million characters were read.")
            return
        if time.process_time() - start > MAX_SECONDS:
            yield Remark(f"Only the text up to here was read, because reading took over {MAX_SECONDS:.0f} s.")
            return


def _sections(parts: Iterator[str | Remark]) -> Iterator[str | Remark]:
    """Divide text into sections, after paragraphs where possible. The text before an error is a section too."""
    from .formats.common import NEW_SECTION

    waiting: list[str] = []
    size = 0
    try:
        for part in parts:
            if isinstance(part, Remark):
                yield part
                continue
            if part != NEW_SECTION:
                waiting.append(part)
                size += len(part)
            if size > LONGEST_SECTION or part == NEW_SECTION:
                text = "".join(waiting)
                start = 0
                while len(text) - start > LONGEST_SECTION:
                    end = _end(text, start)
                    yield text[start:end]
                    start = end
                waiting, size = [text[start:]], len(text) - start
                if part == NEW_SECTION:
                    yield text[start:]
                    waiting, size = [], 0
    except Exception:
        yield "".join(waiting)
        raise
    yield "".join(waiting)


def _end(text: str, start: int) -> int:
    """Return where the section that begins at `start` ends: before a heading, else after a paragraph, a line or a word."""
    first, last = start + SHORTEST_SECTION, start + LONGEST_SECTION
    for separator, shown in (("\n\n#", 2), ("\n\n", 2), ("\n", 1), (" ", 1)):
        place = text.rfind(separator, first, last)
        if place >= 0:
            return place + shown
    return last
