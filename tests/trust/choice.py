"""The page that answers a question is among those that are sent when a tenth of a document fits."""

from collections import Counter

from fireside.chat.prompt import estimate
from fireside.documents import choice
from fireside.documents.choice import Candidates, Page

from ..documents import books
from . import Figures

SHARE = 0.1  # of a document's tokens
NEEDED = 0.9  # of the questions


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
        if Page(0, question.page) not in chosen:
            missed[question.kind] += 1
            problems.append(f"{question.book} {question.page}: {question.text}")
    found = ", ".join(f"{asked[kind] - missed[kind]} of {asked[kind]} {kind} ones" for kind in asked)
    more = f"Found: {found}, with {sent / asked.total():.0%} of the pages"
    enough = asked.total() - missed.total() >= NEEDED * asked.total()
    return Figures(asked.total(), [] if enough else problems, more)
