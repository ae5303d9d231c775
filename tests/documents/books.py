"""Eleven long documents and 150 questions about them, with the pages that answer each.

A file of `questions/` has the title of a document, sentences that fit any page, a line "---", and a heading and a text for each page.
`{a}` in a sentence becomes the heading of its page and `{b}` that of another, so that the words of a heading stand on many pages.
Page 2 is the table of contents and the last two pages are the index, which contain the words of most questions.

The questions of close.tsv were written before the longer half of the pages' texts, and share more words with them. Those of free.tsv were
written afterwards, about other pages, from the facts and not from the words of the text. Those of held-out.tsv are about Python's reference, which
other people wrote. They were written without a look at it; an expression finds the pages that answer one. No question was changed since it was
first tried, and choice.py was never changed for those of held-out.tsv.
"""

import pydoc_data.topics
import random
import re
from pathlib import Path
from typing import NamedTuple

from fireside.documents import extract
from fireside.documents.types import Page

FOLDER = Path(__file__).parent / "questions"
SENTENCES = 6  # of a page that answer nothing
INDEX_PAGES = 2
PYTHON_TOPICS = """
assert assignment async atom-identifiers binary bitwise booleans break calls comparisons compound continue debugger del dict formatstrings
global identifiers import integers lambda lists naming nonlocal objects operator-summary power raise return slicings specialnames
string-methods strings subscriptions truth types typesmapping typesseq unary yield
"""


class Book(NamedTuple):
    name: str
    pages: list[str]


class Question(NamedTuple):
    kind: str  # the name of its file
    book: str
    pages: set[int]  # numbers from 1; each of these pages answers the question
    text: str


def load() -> tuple[dict[str, Book], list[Question]]:
    """Return the documents by name, and the questions. They are always the same."""
    books: dict[str, Book] = {}
    places: dict[tuple[str, str], set[int]] = {}
    for file in sorted(FOLDER.glob("*.txt")):
        headings, pages = _pages(file.read_text("utf-8"), random.Random(file.stem))
        books[file.stem] = Book(file.stem, pages)
        places |= {(file.stem, heading): {number} for number, heading in enumerate(headings, 3)}
    books["python"] = _python_reference()
    questions = []
    for file in sorted(FOLDER.glob("*.tsv")):
        for line in file.read_text("utf-8").splitlines():
            book, place, text = line.split("\t")
            answering = places.get((book, place)) or _matching(place, books[book].pages)
            assert answering, f"no page answers: {text}"
            questions.append(Question(file.stem, book, answering, text))
    return books, questions


def _python_reference() -> Book:
    """Return topics of Python's reference that do not repeat each other, in the sections in which an uploaded file would be read."""
    text = "\n\n".join(pydoc_data.topics.topics[name] for name in PYTHON_TOPICS.split())
    items = extract.read(text.encode(), "reference.txt")
    return Book("python", [item.text for item in items if isinstance(item, Page)])


def _matching(expression: str, pages: list[str]) -> set[int]:
    pattern = re.compile(expression.replace(" ", r"\s+"))
    return {number for number, page in enumerate(pages, 1) if pattern.search(page)}


def _pages(text: str, rng: random.Random) -> tuple[list[str], list[str]]:
    top, bottom = text.split("\n---\n")
    title, *sentences = top.splitlines()
    sections = [tuple(line.split("|")) for line in bottom.splitlines()]
    headings = [heading for heading, _ in sections]
    vocabulary = sorted({word for _, body in sections for word in re.findall(r"\w{5,}", body)})
    pages = [title, "\n".join(f"{heading} {number}" for number, heading in enumerate(headings, 3))]
    for heading, body in sections:
        others = [one for one in headings if one != heading]
        filler = [sentence.format(a=heading, b=rng.choice(others)) for sentence in rng.choices(sentences, k=SENTENCES)]
        middle = rng.randrange(SENTENCES)
        pages.append("\n".join((title, heading, *filler[:middle], body, *filler[middle:])))
    for number in range(INDEX_PAGES):
        part = vocabulary[number::INDEX_PAGES]
        pages.append("\n".join(f"{word} {rng.randrange(3, len(pages))}" for word in part))
    return headings, pages
