"""How much of a known text was read: the measure of all comparisons.

A word is a run of letters and digits, without regard to capitals and to forms of a character (NFKC, casefold); a word that is divided at
the end of a line counts as one. `in_order` is the length of the longest common subsequence of the words of both texts. The share of the
words in order is that length divided by the number of words of the known text.
"""

import re
import unicodedata

_DIVIDED = re.compile(r"(?<=\w)[-\u00ad\u2010]\s*\n\s*(?=\w)")
_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    return _WORD.findall(_DIVIDED.sub("", unicodedata.normalize("NFKC", text)).casefold())


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
