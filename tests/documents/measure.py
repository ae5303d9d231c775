"""How much of a known text was read: the measure of all comparisons.

A word is a run of letters and digits, without regard to capitals, to forms of a character (NFKC, casefold), to combining marks and to
invisible characters, such as those for the direction of writing. A word that is divided at the end of a line counts as one. The words in
order are the longest common subsequence of the words of both texts; their share is its length divided by the number of words of the
known text.
"""

import re
import unicodedata

_DIVIDED = re.compile(r"(?<=\w)[-\u00ad\u2010]\s*\n\s*(?=\w)")
_WORD = re.compile(r"\w+")
_IGNORED = {code: None for code in range(0x20000) if unicodedata.category(chr(code)) in ("Mn", "Cf")}


def words(text: str) -> list[str]:
    text = unicodedata.normalize("NFKC", _DIVIDED.sub("", text))
    return _WORD.findall(text.translate(_IGNORED).casefold())


def in_order(known: list[str], found: list[str]) -> int:
    """Return the length of the longest common subsequence, by the bit-parallel algorithm of Hyyrö."""
    places: dict[str, int] = {}
    for place, word in enumerate(known):
        places[word] = places.get(word, 0) | 1 << place
    full = unmatched = (1 << len(known)) - 1
    for word in found:
        matches = unmatched & places.get(word, 0)
        unmatched = ((unmatched + matches) | (unmatched - matches)) & full
    return len(known) - unmatched.bit_count()


def share(known: str, found: str) -> float:
    expected = words(known)
    return in_order(expected, words(found)) / len(expected)
