"""Excerpts: the pages of documents that a question is sent with, and the old messages that are left out for them.

All documents of the path are sent whole if they fit into the context together with the conversation. Otherwise the pages are sent that match
the question best. Pages that stand in an earlier question which is still sent are not sent again. A question keeps its pages: later prompts
begin with the same bytes, and only a new answer to it chooses again.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice
from typing import Any

from msgspec import Struct

from .. import queries
from ..db import Connection, Database
from ..documents import choice
from ..documents.choice import Candidates, Page
from ..queries.documents import Excerpt, SentPages
from ..queries.turns import Prompt
from . import prompt as prompts

RANKED_PAGES = 200  # that are read and ranked. The index finds them among more, by the beginnings of words
UNKNOWN_ROOM_TOKENS = 24_576  # for documents when the context of the model is not known
PAGE_TOKENS = 6  # of a page's mark


class Plan(Struct):
    """How many of the oldest messages are omitted, and what the question has of the documents."""

    omitted: int
    excerpts: list[Excerpt]


class Excerpts:
    """Chooses for one answer."""

    def __init__(self, database: Database, prompt: Prompt) -> None:
        self._database = database
        self._prompt = prompt
        self._candidates: list[Candidates] = []

    async def choose(self, context_length: int | None, max_tokens: int | None) -> int:
        """Give the question its pages. Return how many of the oldest messages to omit."""
        prompt = self._prompt
        if not prompt.documents:
            return prompts.omit(prompt, context_length, max_tokens)
        room = context_length - prompts.answer_tokens(context_length, max_tokens) if context_length else None
        self._candidates = await self._database.read(_read, prompt, room or UNKNOWN_ROOM_TOKENS)
        omitted = prompts.omitted_before(prompt, context_length)
        return self._apply(await asyncio.to_thread(plan, prompt, self._candidates, room, omitted))

    async def choose_fewer(self, omitted: int) -> int | None:
        """Choose about half as much, because the server refused so much. Return None when only the question is left."""
        if not self._prompt.documents:
            return prompts.omit_more(self._prompt, omitted)
        smaller = await asyncio.to_thread(plan_half, self._prompt, self._candidates, omitted)
        return self._apply(smaller) if smaller else None

    def _apply(self, chosen: Plan) -> int:
        self._prompt.turns[_place(self._prompt)].excerpts = chosen.excerpts
        return chosen.omitted


def sent_pages(prompt: Prompt, omitted: int) -> list[SentPages]:
    """Return what a request has of documents, as it is stored with it."""
    return [
        SentPages(turn.message_id, excerpt.attachment_id, excerpt.ranges)
        for turn in prompt.turns[omitted:]
        for excerpt in turn.excerpts
    ]


def statistic(prompt: Prompt, omitted: int) -> list[dict[str, Any]]:
    """Return the pages of each document that a request has, for people."""
    sent = _by_document(_sent(prompt, omitted, len(prompt.turns)))
    return [
        {
            "attachment_id": document.id,
            "name": document.name,
            "unit": document.unit,
            "pages": document.pages,
            "sent": choice.written(choice.ranges(sent.get(here, ()))),
        }
        for here, document in enumerate(prompt.documents.values())
    ]


def plan(
    prompt: Prompt, candidates: list[Candidates], room: float | None, omitted: int, fill: float = prompts.FILL_RATIO
) -> Plan:
    """Choose for a prompt of at most `room` tokens; None: not known. Omit at least `omitted` messages.

    More are omitted only if not even chosen pages fit, and then so many that the rest takes at most `fill` of the room.
    """
    place = _place(prompt)
    omitted = min(omitted, place)
    kept = prompt.turns[place].excerpts if place < len(prompt.turns) - 1 else []  # the answer is continued
    prompt.turns[place].excerpts = []
    scale, system, rest = prompts.count_tokens(prompt)
    tokens = {
        Page(document, number): scale * (prompts.estimate(text) + PAGE_TOKENS)
        for document, candidate in enumerate(candidates)
        for number, text in candidate.texts.items()
    }
    if room is None:
        room = system + rest[omitted] + UNKNOWN_ROOM_TOKENS
    budget = min(prompts.pages_room(room), room - system - rest[place])
    choices = _choices(prompt, place, candidates, tokens, kept, budget)
    targets: list[set[Page]] = []

    def attempt(start: int, limit: float) -> Plan | None:
        sent = _sent(prompt, start, place)
        for number in range(3):  # what was chosen before, everything, chosen pages
            if number == len(targets):
                targets.append(next(choices))
            chosen = targets[number] - sent
            if (targets[number] or number == 2) and system + rest[start] + sum(
                tokens[page] for page in chosen
            ) <= limit:
                return Plan(start, _excerpts(prompt, place, candidates, chosen))
        return None

    found = attempt(omitted, room)
    later = prompts.starts(prompt, omitted)
    for start in later:
        found = found or attempt(start, room * fill)
    last = later[-1] if later else omitted
    return found or attempt(last, room) or Plan(last, _excerpts(prompt, place, candidates, set()))


def plan_half(prompt: Prompt, candidates: list[Candidates], omitted: int) -> Plan | None:
    """Choose about half of what the prompt has now; None if it cannot have less."""
    question = prompt.turns[_place(prompt)]
    before = question.excerpts
    _, system, rest = prompts.count_tokens(prompt)
    question.excerpts = []
    smaller = plan(prompt, candidates, (system + rest[omitted]) / 2, omitted, fill=1)
    question.excerpts = before
    return None if (smaller.omitted, smaller.excerpts) == (omitted, before) else smaller


def _choices(
    prompt: Prompt,
    place: int,
    candidates: list[Candidates],
    tokens: dict[Page, float],
    kept: list[Excerpt],
    budget: float,
) -> Iterator[set[Page]]:
    """Yield what the question can have: what it had, all pages, pages that match it. Ranking takes time, so it comes when it is needed."""
    ids = [*prompt.documents]
    yield {
        Page(ids.index(excerpt.attachment_id), number)
        for excerpt in kept
        for first, last in excerpt.ranges
        for number in range(first, last + 1)
    } & tokens.keys()
    yield {*tokens} if all(len(candidate.texts) == candidate.pages for candidate in candidates) else set()
    yield choice.fill(choice.order(*_questions(prompt), candidates), tokens, budget)


def _excerpts(prompt: Prompt, place: int, candidates: list[Candidates], chosen: set[Page]) -> list[Excerpt]:
    """Return these pages as excerpts. A document that comes with the question is named there, even without pages."""
    found = []
    by_document = _by_document(chosen)
    for here, (attachment_id, candidate) in enumerate(zip(prompt.documents, candidates, strict=True)):
        numbers = sorted(by_document.get(here, ()))
        if numbers or attachment_id in prompt.turns[place].document_ids:
            texts = {number: candidate.texts[number] for number in numbers}
            found.append(Excerpt(attachment_id, choice.ranges(numbers), texts))
    return found


def _sent(prompt: Prompt, start: int, end: int) -> set[Page]:
    """Return the pages that stand in these turns."""
    places = {attachment_id: place for place, attachment_id in enumerate(prompt.documents)}
    return {
        Page(places[excerpt.attachment_id], number)
        for turn in prompt.turns[start:end]
        for excerpt in turn.excerpts
        for number in excerpt.texts
    }


def _by_document(pages: set[Page]) -> dict[int, list[int]]:
    """Return the numbers of pages by the place of their document."""
    found: defaultdict[int, list[int]] = defaultdict(list)
    for place, number in pages:
        found[place].append(number)
    return found


def _place(prompt: Prompt) -> int:
    """Return the place of the question."""
    return max(place for place, turn in enumerate(prompt.turns) if turn.role == "user")


def _questions(prompt: Prompt) -> tuple[str, str]:
    """Return the question and the one before it, or ""."""
    asked = [turn.content for turn in prompt.turns if turn.role == "user"]
    return asked[-1], asked[-2] if len(asked) > 1 else ""


def _read(conn: Connection, prompt: Prompt, room: float) -> list[Candidates]:
    """Read the texts of excerpts, and return the pages that can be chosen."""
    read = queries.documents
    read.add_texts(conn, prompt.excerpts)
    documents = [*prompt.documents.values()]
    if sum(one.tokens for one in documents) <= room or sum(one.pages for one in documents) <= RANKED_PAGES:
        return [Candidates(one.name, one.pages, read.get_pages(conn, one.id)) for one in documents]
    found = [Candidates(one.name, one.pages, {}) for one in documents]
    for page in _few(conn, prompt, found):
        found[page.document].texts.update(read.get_pages(conn, documents[page.document].id, page.number, page.number))
    return [Candidates(one.name, one.pages, dict(sorted(one.texts.items()))) for one in found]


def _few(conn: Connection, prompt: Prompt, documents: list[Candidates]) -> list[Page]:
    """Return about RANKED_PAGES pages that a question can be about."""
    ids = [*prompt.documents]
    question, earlier = _questions(prompt)
    starts = dict.fromkeys(choice.stem(word) for word in choice.asked_words(question, earlier))
    matching = queries.documents.rank_pages(conn, ids, starts, RANKED_PAGES)
    pages = [Page(ids.index(attachment_id), number) for attachment_id, number in matching]
    certain = [Page(document, 1) for document, one in enumerate(documents) if one.pages]
    kept = _sent(prompt, _place(prompt), len(prompt.turns))
    spread = [] if pages else [*islice(choice.spread(documents), RANKED_PAGES)]
    return [*dict.fromkeys([*choice.named(question, documents), *certain, *kept, *pages, *spread])]
