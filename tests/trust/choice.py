"""The page that answers a question is among those that are sent when a tenth of a document fits."""

from collections import Counter

from fireside.chat.prompt import estimate
from fireside.documents import choice
from fireside.documents.choice import Candidates, Page

from ..documents import books
from . import Figures

SHARE = 0.1  # of a document's tokens
LEAST = {
    "close": 0.95,
    "free": 0.8,
    "held-out": 0.6,
}  # of the questions: what was reached, so that it does not become less


def prove(size: int) -> Figures:
    documents, questions = books.load()
    asked, missed = Counter[str](), Counter[str]()
    problems, sent = [], 0.0
    for question in questions[:size]:
        texts = dict(enumerate(documents[question.book].pages, 1))
        tokens = {Page(0, number): estimate(text) for number, text in texts.items()}
        wanted = choice.order(question.text, "", [Candidates(question.book, len(texts), texts)])
        chosen = choice.fill(wanted, tokens, SHARE * sum(tokens.values()))
        asked[question.kind] += 1
        sent += len(chosen) / len(texts)
        if not chosen & {Page(0, number) for number in question.pages}:
            missed[question.kind] += 1
            problems.append(f"{question.book} {question.pages}: {question.text}")
    found = ", ".join(f"{asked[kind] - missed[kind]} of {asked[kind]} {kind} ones" for kind in asked)
    more = f"Found: {found}, with {sent / asked.total():.0%} of the pages"
    enough = all(asked[kind] - missed[kind] >= LEAST[kind] * asked[kind] for kind in asked)
    return Figures(asked.total(), [] if enough else problems, more)
