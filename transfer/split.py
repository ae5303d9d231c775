"""Cut a large JSON file into the elements of its array, or JSON Lines into lines, without decoding it.

Not ijson, although its C backend (3.6) is three times as fast: the first error ends the file, so that a NaN, an invalid byte, an unpaired
`\\udc00` or a broken conversation loses all conversations after it, not one. 100,000 nested `[` take all memory, and an image is held whole.
"""

import codecs
import itertools
import re
from collections.abc import Callable, Iterator

from .transcript import Unreadable

ELEMENT_BYTES = 64 * 1024 * 1024  # without the images that `lift` takes out
IMAGE_CHARACTERS = 16 * 1024  # of base64, from which on `lift` takes an image out

# "data" in a text has a backslash before its quote, so it does not match.
_IMAGE = re.compile(rb'"data"\s{0,9}:\s{0,9}"(?=[A-Za-z0-9+/]{%d})' % IMAGE_CHARACTERS)
_BASE64 = re.compile(rb"[A-Za-z0-9+/=]*")


def lift(chunks: Iterator[bytes], name_image: Callable[[int, int], str]) -> Iterator[bytes]:
    """Replace the large images in Fireside's own form by names, so that a conversation with many of them fits into memory.

    `name_image` gets the start and the end of an image's base64 in the file and returns its name.
    """
    held = b""
    position = 0  # of `held` in the file
    start: int | None = None  # of the image that is being passed over
    for chunk in chunks:
        held += chunk
        while True:
            if start is None:
                found = _IMAGE.search(held)
                kept = found.start() if found else max(0, len(held) - IMAGE_CHARACTERS - 32)
                if kept:
                    yield held[:kept]
                passed = found.end() if found else kept
                held, position = held[passed:], position + passed
                if not found:
                    break
                start = position
            else:
                passed = _end(_BASE64, held)
                held, position = held[passed:], position + passed
                if not held:
                    break
                whole = held.startswith(b'"')  # otherwise it is not an image
                yield b'"data":"","file":"%s' % name_image(start, position).encode() if whole else b'"data":"'
                start = None
    yield held if start is None else b'"data":"'


# Possessive quantifiers (*+): without them a chunk without a match takes several times as long.
_REST = rb'[^"\\]*+(?:\\.[^"\\]*+)*+'  # of a string, up to its closing quote
_IN_STRING = re.compile(_REST, re.DOTALL)
_TO_STRING = re.compile(
    rb'[^"]*+(?:"%s"[^"]*+)*+' % _REST, re.DOTALL
)  # past whole strings, to one that has no end here
_TO_BRACKET = re.compile(rb'[^"\[\]{}]*+(?:"%s"[^"\[\]{}]*+)*+([\[\]{}])' % _REST, re.DOTALL)
_TO_COMMA = re.compile(rb'[^"\[\]{},]*+(?:"%s"[^"\[\]{},]*+)*+([\[\]{},])' % _REST, re.DOTALL)


def split(chunks: Iterator[bytes]) -> Iterator[bytes | None]:
    """Yield each element of a JSON array, or each line of JSON Lines, undecoded; None for one above ELEMENT_BYTES.

    Any other file is one element.
    Raises Unreadable when the end of the array is missing, or more follows it.
    """
    first = b""
    for chunk in chunks:
        first += chunk
        if len(first) > len(codecs.BOM_UTF8):
            break
    first = first.removeprefix(codecs.BOM_UTF8).lstrip()
    is_array = first.startswith(b"[")
    pieces = _cut(itertools.chain((first[1:],), chunks)) if is_array else _lines(itertools.chain((first,), chunks))
    kept: list[bytes] = []
    size = count = 0
    for piece, last in pieces:
        size += len(piece)
        if size <= ELEMENT_BYTES:
            kept.append(piece)
        else:
            kept.clear()
        if last:
            element = b"".join(kept) if size <= ELEMENT_BYTES else None
            if element is None or element.strip():
                yield element
                count += 1
            kept, size = [], 0
    if not (count or is_array):
        yield b""


def _lines(chunks: Iterator[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Yield the pieces of each line, and whether a piece is the last of its line. A file that is not JSON Lines is one line."""
    kept: list[bytes] = []
    size = 0
    for chunk in chunks:
        kept.append(chunk)
        size += len(chunk)
        if b"\n" in chunk or size > ELEMENT_BYTES:
            break
    beginning = b"".join(kept)
    line, _, rest = beginning.partition(b"\n")
    # JSON that is indented does not end its first object in its first line and begin another in the second.
    is_lines = line.rstrip().endswith(b"}") and rest.lstrip()[:1] in (b"", b"{")
    for chunk in itertools.chain((beginning,), chunks):
        *ended, rest = chunk.split(b"\n") if is_lines else [chunk]
        for piece in ended:
            yield piece, True
        yield rest, False
    yield b"", True


def _cut(chunks: Iterator[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Yield the pieces of each element of an array that has begun, and whether a piece is the last of its element."""
    depth = 1
    in_string = in_escape = False  # at the beginning of a chunk
    for chunk in chunks:
        start = at = 0
        if in_string:
            at = _end(_IN_STRING, chunk, int(in_escape))
            in_string, in_escape = at == len(chunk) or chunk[at : at + 1] == b"\\", at < len(chunk)
            if in_string:
                yield chunk, False
                continue
            at += 1
        while found := (_TO_COMMA if depth == 1 else _TO_BRACKET).match(chunk, at):
            at, sign = found.end(), found[1]
            depth += (sign in b"[{") - (sign in b"]}")
            if depth == 0 or (depth == 1 and sign == b","):
                yield chunk[start : at - 1], True
                start = at
            if depth == 0:
                if chunk[at:].strip() or any(rest.strip() for rest in chunks):
                    raise Unreadable("has more after the end of its array")
                return
        yield chunk[start:], False
        opening = _end(_TO_STRING, chunk, at)
        in_string = opening < len(chunk)
        in_escape = in_string and _end(_IN_STRING, chunk, opening + 1) < len(chunk)
    raise Unreadable("ends in the middle")


def _end(pattern: re.Pattern[bytes], chunk: bytes, start: int = 0) -> int:
    """Return the end of the match of a pattern that also matches nothing."""
    found = pattern.match(chunk, start)
    return found.end() if found else start
