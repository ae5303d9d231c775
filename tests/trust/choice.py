"""The page that answers a question is among those that are sent when a part of a document fits."""

from collections import Counter

from fireside.chat.prompt import estimate
from fireside.documents import choice
from fireside.documents.choice import Candidates, Page

from ..documents import books
from . import Figures

SHARES = {"a tenth": 0.1, "a fifth": 0.2, "three tenths": 0.3}  # of a document's tokens
LEAST = {
    "close": 0.95,
    "free": 0.8,
    "held-out": 0.6,
}  # of the questions with a tenth: what was reached, so that it does not become less


def prove(size: int) -> Figures:
    documents, questions = books.load()
    asked = Counter(question.kind for question in questions[:size])
    found = {share: Counter[str]() for share in SHARES}
    for question in questions[:size]:
        texts = dict(enumerate(documents[question.book].pages, 1))
        tokens = {Page(0, number): estimate(text) for number, text in texts.items()}
        wanted = choice.order(question.text, "", [Candidates(question.book, len(texts), texts)])
        for share, part in SHARES.items():
            chosen = choice.fill(wanted, tokens, part * sum(tokens.values()))
            found[share][question.kind] += bool(chosen & {Page(0, number) for number in question.pages})
    more = "; ".join(
        f"with {share} of the tokens: "
        + ", ".join(f"{count} of {asked[kind]} {kind}" for kind, count in counts.items())
        for share, counts in found.items()
    )
    wrong = [
        f"too few {kind} questions with a tenth" for kind in asked if found["a tenth"][kind] < LEAST[kind] * asked[kind]
    ]
    return Figures(asked.total(), wrong, more)
