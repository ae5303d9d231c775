"""Which pages of documents are sent with a question when not all of them fit: those that the question names, and those that match it best.

Pages are ranked by BM25 with counts of these documents only, because FTS5 counts the pages of all documents of all users. A word of the
question also matches words that begin alike or that it is composed of, so that "payments" finds "payment" without a stemmer.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from ..queries import search

SATURATION, LENGTH_WEIGHT = 1.2, 0.75  # k1 and b of BM25, with their usual values
STEM_WEIGHT, PART_WEIGHT = 0.6, 0.5  # of a match that is not the whole word
MIN_STEM, CUT = 3, 2  # characters: at least as many of a word are compared, and its ending is not
MIN_PART, MIN_COMPOUND = 4, 6  # characters
EARLIER_WEIGHT = 0.5  # of the words of the question before
FEW_WORDS = 3  # a question with fewer words of its own also means those of the question before
NEIGHBOUR_WEIGHT = 0.15  # of a page's score that counts for the page before and after it
MAX_HEAD = 2000  # characters of the beginning of a question, and as many of its end, that are looked at
MAX_WORDS, MAX_WORD = 64, 40  # of a question, and the characters of one
MAX_NAMED = 1000  # pages that a question can name

# Words that say nothing about the subject, in the languages in which they are most of a question.
_COMMON = """
a about after all also am an and any are as at be because been before being but by can could did do does for from further get
give got had has have he her here him his how i if in into is isn it its just know let like ll many may me mean more most much my need no
not now of off on one only or other our out over please re s say says shall she should so some such t tell than that the their them then
there these they this those through to too under until up us ve very was way we were what when where which while who whom whose why will
with would you your
aber alle als also am an auch auf aus bei beim bin bis bitte da damit dann darf das dass dein dem den der des die dies diese dieser doch du
durch durfen ein eine einem einen einer eines er es fur gab gibt hat hatte habe haben ich ihm ihr im in ist ja jetzt kann kein keine konnen man
mein meine mich mir mit muss mussen nach nicht noch nun nur ob oder sein sich sie sind so soll sollen sollte uber um und uns unser vom
von vor war waren warum was welche welchen welcher welches wenn wer werden wie wieder will wir wird wo worden wurde zu zum zur
au aux avec ce ces cette comment dans de des du elle en es est et il ils je la le les leur mais ne nous on ou par pas pour pourquoi qu que
quel quelle qui sa se ses son sont sur un une vous y
al como con cual cuando del donde el ella en es esta este hay la las lo los me mi muy no o para pero por porque que quien se si sin su sus un
una y
"""
# What a question about the whole document asks for, and what it calls the document.
WHOLE = re.compile(
    r"\b(?:summar\w+|sum up|overview|tl;?dr|outline|gist|takeaways?|(?:main|key) (?:points?|ideas?|findings?|messages?)"
    r"|zusammenfass\w*|fass\w* .*\bzusammen|uberblick|kernaussagen?|hauptpunkte|worum geht|resum\w+|riassu\w+"
    r"|what (?:is|are) (?:it|this|these|that|they|the \w+) (?:all )?about)\b|总结|總結|概括|摘要|概要|要約|まとめ|요약"
)
_DOCUMENT_WORDS = """
article attached attachment book chapter content contents doc document documents file files manual page pages paper pdf presentation report
slide slides text whole entire short briefly sentences words bullet dokument datei bericht text inhalt seite seiten buch kurz satzen
stichpunkten fichier rapport documento
"""
COMMON = frozenset(_COMMON.split() + _DOCUMENT_WORDS.split())
_NUMBERS = r"(\d{1,6}(?:\s*(?:[-–—,&+]|to|and|through|bis|und|a|et|y)\s*(?:p\.\s*)?\d{1,6})*)"  # noqa: RUF001
NAMED = re.compile(
    r"\b(?:pages?|pp?\.|pg\.?|seiten?|s\.|slides?|folien?|sections?|abschnitte?n?|paginas?|diapositives?)\s*(?:no\.|nr\.|number|#)?\s*"
    + _NUMBERS
    + r"|第\s*(\d{1,6})\s*[页頁张張枚ページ]"
)
_RANGE = re.compile(r"(\d+)(?:\s*(?:[-–—]|to|through|bis|a)\s*(?:p\.\s*)?(\d+))?")  # noqa: RUF001
_ACCENTS = re.compile("[\u0300-\u036f]+")
_WORD = re.compile(r"\w+")


class Page(NamedTuple):
    """A page of one of the documents that a question can be about."""

    document: int  # its place in the list
    number: int  # from 1


class Candidates(NamedTuple):
    """A document, and the texts of those of its pages that can be chosen."""

    name: str
    pages: int
    texts: dict[int, str]  # by number


def order(question: str, earlier: str, documents: Sequence[Candidates]) -> list[Page]:
    """Return the pages to send with a question, the most important first. `earlier` is the question before.

    First come pages that the question names, then the best page and the first page of each document, then the others that match. For a
    question about the whole, and when nothing matches, all pages follow, in an order whose beginning, however long, is spread over the
    documents.
    """
    pages = [Page(place, number) for place, document in enumerate(documents) for number in document.texts]
    texts = [_words(text) for document in documents for text in document.texts.values()]
    scores = _with_neighbours(pages, _scores(asked_words(question, earlier), texts))
    matching = sorted((page for page in pages if scores[page] > 0), key=lambda page: (-scores[page], page))
    best: dict[int, Page] = {}
    for page in matching:
        best.setdefault(page.document, page)
    certain = [*named(question, documents), *best.values(), *(Page(place, 1) for place in range(len(documents)))]
    return [page for page in dict.fromkeys([*certain, *(matching or spread(documents))]) if page in scores]


def asked_words(question: str, earlier: str) -> dict[str, float]:
    """Return the words by which pages are ranked, with their weights: none for a question about the whole document."""
    if _is_about_whole(question):
        return {}
    words = dict.fromkeys(_subject(question), 1.0)
    return words if len(words) >= FEW_WORDS else dict.fromkeys(_subject(earlier), EARLIER_WEIGHT) | words


def stem(word: str) -> str:
    """Return the beginning that words alike have in common."""
    return word[: max(MIN_STEM, len(word) - CUT)]


def fill(wanted: Iterable[Page], tokens: dict[Page, float], budget: float) -> set[Page]:
    """Return the first of these pages that fit into so many tokens. A page that does not fit is passed over."""
    chosen = set()
    for page in wanted:
        if tokens[page] <= budget:
            chosen.add(page)
            budget -= tokens[page]
    return chosen


def ranges(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Return page numbers as ranges of first and last page."""
    found: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if found and found[-1][1] == number - 1:
            found[-1] = found[-1][0], number
        else:
            found.append((number, number))
    return found


def written(found: Iterable[Sequence[int]]) -> str:
    """Return ranges as a person writes them: "1, 17-22"."""
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in found)


def named(question: str, documents: Sequence[Candidates]) -> list[Page]:
    """Return the pages that a question names, of the documents that it names, if any."""
    folded = _fold(_ends(question))
    numbers = [
        number
        for match in NAMED.finditer(folded)
        for first, last in _RANGE.findall(match[1] or match[2])
        for number in range(int(first), min(int(last or first), int(first) + MAX_NAMED) + 1)
    ]
    if not numbers:
        return []
    meant = [
        place
        for place, document in enumerate(documents)
        if (name := _fold(document.name.rpartition(".")[0] or document.name)) and name in folded
    ]
    found = (
        Page(place, number)
        for number in dict.fromkeys(numbers)
        for place in meant or range(len(documents))
        if 1 <= number <= documents[place].pages
    )
    return list(found)[:MAX_NAMED]


def _scores(words: dict[str, float], pages: list[Counter[str]]) -> list[float]:
    """Return the score of each page. `words`: those of the question, with their weights."""
    lengths = [page.total() for page in pages]
    average = sum(lengths) / len(pages) if any(lengths) else 1.0
    norms = [SATURATION * (1 - LENGTH_WEIGHT + LENGTH_WEIGHT * length / average) for length in lengths]
    vocabulary = frozenset[str]().union(*pages)
    scores = [0.0] * len(pages)
    for word, weight in words.items():
        for alike, kind_weight in _alike(word, vocabulary):
            counts = [sum(map(page.__getitem__, alike & page.keys())) for page in pages]
            found = len(pages) - counts.count(0)
            rarity = weight * kind_weight * math.log(1 + (len(pages) - found + 0.5) / (found + 0.5))
            for place, count in enumerate(counts):
                if count:
                    scores[place] += rarity * count * (SATURATION + 1) / (count + norms[place])
    return scores


def _alike(word: str, vocabulary: frozenset[str]) -> Iterator[tuple[set[str], float]]:
    """Return the words of the documents that are a word of the question, begin as it does, or are a part of it, with their weights."""
    if word in vocabulary:
        yield {word}, 1.0
    start = stem(word)
    if len(word) > MIN_STEM and (alike := {one for one in vocabulary if one.startswith(start)}):
        yield alike, STEM_WEIGHT
    ends = range(MIN_PART, len(word) + 1) if len(word) >= MIN_COMPOUND else ()
    parts = {word[start:end] for end in ends for start in range(end - MIN_PART + 1)} - {word}
    if alike := parts & vocabulary:
        yield alike, PART_WEIGHT


def _with_neighbours(pages: list[Page], scores: list[float]) -> dict[Page, float]:
    """Return scores that contain a part of those of the pages before and after: a passage may begin or go on there."""
    own = dict(zip(pages, scores, strict=True))
    return {
        page: score + NEIGHBOUR_WEIGHT * max(own.get(Page(page.document, page.number + step), 0.0) for step in (-1, 1))
        for page, score in own.items()
    }


def spread(documents: Sequence[Candidates]) -> Iterator[Page]:
    """Return all pages: those in the middle of each document, then of its halves, of its quarters... Some come twice."""
    parts = 1
    while parts < 2 * max((document.pages for document in documents), default=0):
        for part in range(parts):
            for place, document in enumerate(documents):
                if document.pages:
                    yield Page(place, 1 + document.pages * (2 * part + 1) // (2 * parts))
        parts *= 2


def _is_about_whole(question: str) -> bool:
    plain = _fold(_ends(question))
    found = WHOLE.search(plain)
    return found is not None and (found[0] > "\u3000" or not _subject(WHOLE.sub(" ", plain)))


def _subject(text: str) -> list[str]:
    """Return the distinct words of a text that can tell its subject."""
    words = (word[:MAX_WORD] for word in _words(_ends(text)) if word not in COMMON)
    return list(words)[:MAX_WORDS]


def _ends(question: str) -> str:
    return question if len(question) <= 2 * MAX_HEAD else f"{question[:MAX_HEAD]} {question[-MAX_HEAD:]}"


def _words(text: str) -> Counter[str]:
    """Count the words of a text without case and accents; Chinese, Japanese and Korean in pairs of characters, as search.words() has them."""
    text = search.words(text)
    return Counter(_WORD.findall((text if text.isascii() else _ACCENTS.sub("", text)).casefold()))


def _fold(text: str) -> str:
    bare = _ACCENTS.sub("", unicodedata.normalize("NFKD", search.safe_to_normalize(text)))
    return unicodedata.normalize("NFC", bare).casefold()
