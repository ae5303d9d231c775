"""Quotations in an answer, looked up in the attached documents.

The service calls `parse`, `search` and `judge` in a sandbox child, whose modules quoted.py and lookup.py are imported there only
(checker.py); `find` does all of it. The time grows linearly with the texts.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from .types import Citation, Document, Place, Quotations

# Any mark that opens a quotation, also ">" before a block quote.
_ANY_MARK = re.compile(
    '``|["\u201c\u201d\u201e\u00ab\u00bb\u2039\u203a\u300c\u300e\u2018\u201a]|^[^\\w\n]{0,40}>', re.MULTILINE
)


def may_quote(answer: str) -> bool:
    """Return whether an answer contains any mark of a quotation. Fast, so that most answers need no sandbox."""
    return _ANY_MARK.search(answer) is not None


def find(answer: str, documents: Sequence[Document]) -> list[Citation]:
    """Return a citation for each quotation in the answer that is long enough."""
    from .lookup import look_up
    from .quoted import parse_answer

    quotations = parse_answer(answer)
    places = [
        (index, place) for index, one in enumerate(documents) for place in look_up(quotations.quotations, one.pages)
    ]
    return _judge(quotations, [(one.id, one.name) for one in documents], places)


def parse(answer: str) -> Iterator[bytes]:
    """Yield the Quotations of an answer as msgpack, or nothing if there are none."""
    from .quoted import parse_answer

    quotations = parse_answer(answer)
    if quotations.quotations:
        yield msgspec.msgpack.encode(quotations)


def search(quotations: bytes, pages: list[str]) -> Iterator[bytes]:
    """Yield the list of places in a document, or in some pages of one that follow each other, as msgpack."""
    from .lookup import look_up

    decoded = msgspec.msgpack.decode(quotations, type=Quotations)
    yield msgspec.msgpack.encode(look_up(decoded.quotations, pages))


def judge(quotations: bytes, documents: list[tuple[int, str]], places: bytes) -> Iterator[bytes]:
    """Yield the list of citations as msgpack. `documents`: id and name of each. `places`: pairs of a document's index and a Place."""
    decoded = msgspec.msgpack.decode(places, type=list[tuple[int, Place]])
    yield msgspec.msgpack.encode(_judge(msgspec.msgpack.decode(quotations, type=Quotations), documents, decoded))


def _judge(
    quotations: Quotations, documents: Sequence[tuple[int, str]], places: Iterable[tuple[int, Place]]
) -> list[Citation]:
    from .quoted import find_names

    found: defaultdict[int, dict[int, Place]] = defaultdict(dict)  # by quotation and document
    for document, place in places:
        found[place.quotation].setdefault(document, place)
    named = find_names(quotations.contexts, [name for _, name in documents])
    citations = []
    for number, quotation in enumerate(quotations.quotations):
        names = {document for context in quotation.contexts for document in named[context]}
        in_documents = found[number]
        if not in_documents:
            citations.append(Citation(quotation.start, quotation.end, "not_found"))
            continue
        document = min(in_documents, key=lambda document: (document not in names, document))
        is_right = document in names or not names
        page = in_documents[document].page + 1
        where = (*documents[document], page)
        citations.append(Citation(quotation.start, quotation.end, "found" if is_right else "other_document", *where))
    return citations
