"""Ten long documents and 120 questions about them, with the page that answers each.

A file of `questions/` has the title of a document, sentences that fit any page, a line "---", and a heading and a text for each page.
`{a}` in a sentence becomes the heading of its page and `{b}` that of another, so that the words of a heading stand on many pages.
Page 2 is the table of contents and the last two pages are the index, which contain the words of most questions.

The questions of close.tsv were written before the longer half of the pages' texts, and share more words with them. Those of free.tsv were
written afterwards, about other pages, from the facts and not from the words of the text. Neither was changed since they were first tried.
"""

import random
import re
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent / "questions"
SENTENCES = 6  # of a page that answer nothing
INDEX_PAGES = 2


class Book(NamedTuple):
    name: str
    pages: list[str]


class Question(NamedTuple):
    kind: str  # "close" or "free"
    book: str
    page: int  # that answers it, from 1
    text: str


def load() -> tuple[dict[str, Book], list[Question]]:
    """Return the documents by name, and the questions. They are always the same."""
    books: dict[str, Book] = {}
    places: dict[tuple[str, str], int] = {}
    for file in sorted(FOLDER.glob("*.txt")):
        headings, pages = _pages(file.read_text("utf-8"), random.Random(file.stem))
        books[file.stem] = Book(file.stem, pages)
        places |= {(file.stem, heading): number for number, heading in enumerate(headings, 3)}
    questions = []
    for file in sorted(FOLDER.glob("*.tsv")):
        for line in file.read_text("utf-8").splitlines():
            book, heading, text = line.split("\t")
            questions.append(Question(file.stem, book, places[book, heading], text))
    return books, questions


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
