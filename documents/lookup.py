"""The words of texts, and many quotations looked up in a document at once.

Spaces, punctuation, case, ligatures and hyphens do not count; numbers keep their signs and separators.
"""

import re
import unicodedata
from bisect import bisect_right
from collections import Counter, defaultdict, deque
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import pairwise

import msgspec

from ..queries.search import safe_to_normalize
from .types import Form, Place, Quotation

REACH_PER_WORD = 16  # characters on each side of a page break that are searched for the words of the longest quotation
EDGE_LINES = 3  # at the top and at the bottom of a page, where headers and footers are
HALF_WORD = 60  # letters of one side of a divided word
WORD_UNITS = 2


def _ranges(*categories: str) -> str:
    """Return the characters of these categories, from U+0080 on, as ranges of a set in a regular expression."""
    codes = [code for code in range(0x80, 0x1F000) if unicodedata.category(chr(code)) in categories]
    ranges: list[list[int]] = []
    for code in codes:
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges)


# Scripts without spaces: Han, Kana, Thai, Lao, Burmese, Khmer. Each character is a word here.
SPACELESS = (
    "\u3005\u3007\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff\u0e01-\u0e3a\u0e40-\u0eff\u1000-\u109f\u1780-\u17d3"
)
_MARKS = _ranges("Mn", "Mc", "Me")  # vowel signs of Indian scripts, for example, which \w does not match
_CURRENCY = _ranges("Sc")
LETTER = r"[^\W\d_]"
_WORD = rf"[^\W_{SPACELESS}]+(?:[{_MARKS}]+[^\W_{SPACELESS}]*)*"


def _tokens(word: str, others: str) -> re.Pattern[str]:
    """Return an expression for words, numbers, and the signs that change a number. `others`: alternatives of other scripts."""
    return re.compile(
        rf"{word}(?:(?:'|(?<=\d)[.,:/^\u2044](?=\d)){word})*"
        r"|(?<![^\W\d_])-(?=\d)|(?<=\d)-(?=\s\d)|(?<=\d\s)-(?=\s\d)"  # a sign, or between the numbers of a range
        r"|%|[+$](?=\s?\d)|(?<=\w)[+$]|[<>=](?=\s?[-.]?\d)" + others
    )


_ASCII_TOKENS = _tokens(r"[a-z0-9]+", "")
_TOKENS = _tokens(
    _WORD, rf"|[{SPACELESS}]|[{_CURRENCY}\u2030]|[\u2264\u2265\u2260\u2248\u00b1\u00d7\u00f7](?=\s?[-.]?\d)"
)
_HALF_WORD = re.compile(rf"[\w{_MARKS}]+")
IS_SPACELESS = re.compile(f"[{SPACELESS}]")
_INVISIBLE = re.compile("[\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]+")
_DASHES = re.compile("[\u2010-\u2015\u2212]")
_PUNCTUATION = re.compile("[\u00ab\u00b7\u00bb\u201a-\u201f\u2022\u2039\u203a]")  # blank, so that most pages are ASCII
_APOSTROPHES = re.compile("[\u2018\u2019\u02bc\u00b4\u2032]")
_SUPERSCRIPT_AFTER_DIGIT = re.compile("(?<=[0-9])(?=[\u00b2\u00b3\u00b9\u2070-\u2079])")
_FRACTION_AFTER_DIGIT = re.compile("(?<=[0-9])(?=[\u00bc-\u00be\u2150-\u215e])")
_SPACE_AFTER_LIGATURE = re.compile(rf"(?<=[\ufb00-\ufb06])[ \t](?={LETTER})")
_HYPHEN = "[\u00ad\x02\ufffe]"  # characters that PDF libraries put where a line ends within a word
DIVISION = re.compile(rf"(?<={LETTER})(?:-\s+|{_HYPHEN}\s*)(?={LETTER})")
_DIVIDED_END = re.compile(rf"(?<={LETTER})(?:-|{_HYPHEN})\s*\Z")
_LINK_TARGET = re.compile(r"(?<=\])\([^()\s]{1,500}\)")
_NUMBER = re.compile(r"\d+")
_PAGE_NUMBER = re.compile(r"(?:page|seite|p\.)?\W*(?:#|[ivxl]{1,6})\W*(?:(?:of|von|/)\W*#)?\W*")


def normalize(text: str) -> str:
    """Return a text in small letters, with one form of each character that has several."""
    if not text.isascii():
        text = _SUPERSCRIPT_AFTER_DIGIT.sub("^", text)  # 10\u00b2 is not 102
        text = _FRACTION_AFTER_DIGIT.sub(" ", text)
        text = _SPACE_AFTER_LIGATURE.sub("\u00ad", text)
        text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", safe_to_normalize(text)))
        text = _PUNCTUATION.sub(" ", _APOSTROPHES.sub("'", _DASHES.sub("-", text)))
    return _LINK_TARGET.sub("", text).lower()


def words(normalized: str, whole: Container[str] = ()) -> list[str]:
    """Return the words and significant signs of a text. A word that a line end divides is one word if it is in `whole`, else two."""

    def join(division: re.Match[str]) -> str:
        before = normalized[max(0, division.start() - HALF_WORD) : division.start()]
        left = _HALF_WORD.match(before[::-1])
        right = _HALF_WORD.match(normalized, division.end(), division.end() + HALF_WORD)
        return "" if left and right and left[0][::-1] + right[0] in whole else " "

    undivided = DIVISION.sub(join, normalized)
    return (_ASCII_TOKENS if undivided.isascii() else _TOKENS).findall(undivided)


class Everything:
    """A set of all words."""

    def __contains__(self, word: object) -> bool:
        return True


def count_units(words: Iterable[str]) -> int:
    """Return the length of a text: one for each character of a script without spaces, and WORD_UNITS for any other word."""
    return sum(1 if IS_SPACELESS.match(word) else WORD_UNITS for word in words if word[0].isalnum())


class _Link(msgspec.Struct, eq=False):
    """A part of forms, after the same parts before it. It is shared by all forms that begin with these parts."""

    state: int  # that the words of the part lead to
    words: int
    gap: int  # words that may stand before it
    number: int  # from 1
    targets: list[tuple[int, int]]  # quotations and forms that are found when this part is
    is_followed: bool = False
    ends: list[int] = []  # where it was reached lately, in words
    pages: list[int] = []  # of the first part, each time


class _Searcher:
    """Looks up quotations in one document. A trie of all parts of their forms is read with each word of the document.

    State 0 of the trie is its root. `shorter` has the state of the longest proper suffix of each state's words that is in the trie too,
    and `hits` that state itself, or the next one on the way through `shorter`, at which a part ends.
    """

    def __init__(self, quotations: list[Quotation]) -> None:
        self.places: dict[tuple[int, int], Place] = {}  # by quotation and form
        self.vocabulary: set[str] = set()
        forms = [form for quotation in quotations for form in quotation.forms]
        longest_part = max(len(part) for form in forms for part in form.parts)
        self._memory = longest_part + max(gap for form in forms for gap in form.gaps)  # words
        self._quotations = quotations
        self._next: list[dict[str, int]] = [{}]
        self._links: dict[tuple[int, int, int], _Link] = {}
        self._at: defaultdict[int, dict[int, list[_Link]]] = defaultdict(dict)  # links by state and by parent
        for number, quotation in enumerate(quotations):
            for form_number, form in enumerate(quotation.forms):
                self._add(form, (number, form_number))
        self._shorter, self._hits = [0] * len(self._next), [0] * len(self._next)
        waiting = deque(self._next[0].values())
        while waiting:
            state = waiting.popleft()
            self._hits[state] = state if state in self._at else self._hits[self._shorter[state]]
            for word, child in self._next[state].items():
                self._shorter[child] = self._step(self._shorter[state], word)
                waiting.append(child)

    def _add(self, form: Form, target: tuple[int, int]) -> None:
        link: _Link | None = None
        for part, gap in zip(form.parts, form.gaps, strict=True):
            self.vocabulary.update(part)
            state = 0
            for word in part:
                if word not in self._next[state]:
                    self._next[state][word] = len(self._next)
                    self._next.append({})
                state = self._next[state][word]
            parent = link.number if link else 0
            key = (parent, state, gap if link else 0)
            if key not in self._links:
                self._links[key] = _Link(state, len(part), gap, len(self._links) + 1, [])
                self._at[state].setdefault(parent, []).append(self._links[key])
            if link:
                link.is_followed = True
            link = self._links[key]
        assert link is not None
        link.targets.append(target)

    def _step(self, state: int, word: str) -> int:
        while state and word not in self._next[state]:
            state = self._shorter[state]
        return self._next[state].get(word, 0)

    def missing(self) -> bool:
        return len({number for number, _ in self.places}) < len(self._quotations)

    def found(self) -> list[Place]:
        """Return the place of each quotation that was found, by the first form that was."""
        first: dict[int, Place] = {}
        for number, form in sorted(self.places):
            first.setdefault(number, self.places[number, form])
        return list(first.values())

    def read(self, pages: list[str], first_page: int = 0) -> None:
        """Look for the quotations in these normalized pages."""
        hits, step, next_states = self._hits, self._step, self._next
        starts: list[int] = []  # of the pages, in words
        recent: dict[int, _Link] = {}  # by number, the newest last: those of the last words that others follow
        position = state = 0
        for words in _words_of(pages, self.vocabulary):
            starts.append(position)
            for word in words:
                position += 1
                state = next_states[state].get(word) or (step(state, word) if state else 0)
                hit = hits[state]
                while hit:
                    self._reach(hit, position, starts, first_page, recent)
                    hit = hits[self._shorter[hit]]

    def _reach(self, state: int, position: int, starts: list[int], first_page: int, recent: dict[int, _Link]) -> None:
        """Note that the words of a state end at this position."""
        at = self._at[state]
        reached: list[tuple[_Link, int]] = []
        for link in at.get(0, ()):
            reached.append((link, first_page + bisect_right(starts, position - link.words) - 1))
        if recent:
            while recent and next(iter(recent.values())).ends[-1] < position - self._memory:
                del recent[next(iter(recent))]
            for number in list(recent) if len(recent) < len(at) else list(at):
                if before := recent.get(number):
                    for link in at.get(number, ()):
                        start = position - link.words
                        last = bisect_right(before.ends, start) - 1
                        if last >= 0 and before.ends[last] >= start - link.gap:
                            reached.append((link, before.pages[last]))
        for link, page in reached:
            for target in link.targets:
                self.places.setdefault(target, Place(*target, page))
            link.targets = []
            if link.is_followed:
                if link.number not in recent or len(link.ends) > 2 * self._memory:
                    keep = bisect_right(link.ends, position - self._memory) if link.number in recent else len(link.ends)
                    del link.ends[:keep], link.pages[:keep]
                link.ends.append(position)
                link.pages.append(page)
                recent.pop(link.number, None)
                recent[link.number] = link


def look_up(quotations: list[Quotation], pages: Sequence[str]) -> list[Place]:
    """Return the first place of each quotation that is in a document with these pages."""
    if not quotations:
        return []
    normalized = [normalize(page) for page in pages]
    searcher = _Searcher(quotations)
    searcher.read(normalized)
    if searcher.missing():  # a quotation may cross pages with headers and footers between
        bare = _without_edges(normalized)
        reach = REACH_PER_WORD * max(sum(map(len, form.parts)) for one in quotations for form in one.forms)
        for number, (page, following) in enumerate(pairwise(bare)):
            if page is not normalized[number] or following is not normalized[number + 1]:
                start = max(page.rfind(" ", 0, max(len(page) - reach, 0)), 0)
                end = following.find(" ", reach)
                searcher.read([page[start:], following[: end if end > 0 else None]], number)
    return searcher.found()


def _words_of(pages: list[str], whole: Container[str]) -> Iterator[list[str]]:
    """Yield the words of each page. A word that the end of a page divides goes to the next page."""
    rest = ""
    for page in pages:
        page, rest = (rest + page).rstrip(), ""
        if end := _DIVIDED_END.search(page[-HALF_WORD:]):
            cut = max(len(page) - HALF_WORD, 0) + end.start()
            half = _HALF_WORD.match(page[max(cut - HALF_WORD, 0) : cut][::-1])
            cut -= len(half[0]) if half else 0
            page, rest = page[:cut], page[cut:] + "\n"
        yield words(page, whole)
    yield words(rest)


def _without_edges(pages: list[str]) -> list[str]:
    """Return the pages without the lines at their edges that are page numbers or stand on several pages."""
    edges = []
    for page in pages:
        lines = [line for line in page.split("\n") if line.strip()]
        outer = (*lines[:EDGE_LINES], *lines[-EDGE_LINES:])
        edges.append({_NUMBER.sub("#", line.strip()) for line in outer})
    counts = Counter(line for lines in edges for line in lines)
    bare = []
    for page, edge in zip(pages, edges, strict=True):
        removable = {line for line in edge if counts[line] > 1 or _PAGE_NUMBER.fullmatch(line)}
        if removable:
            kept = [line for line in page.split("\n") if _NUMBER.sub("#", line.strip()) not in removable]
            page = "\n".join(kept)
        bare.append(page)
    return bare
