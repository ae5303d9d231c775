"""What extract.py yields while it reads a document: Opened, its pages in order, and perhaps a Remark or a Problem at the end.

And what quotations.py and its child process exchange.
"""

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

Unit = Literal["page", "slide", "section"]


class Opened(msgspec.Struct, tag=True):
    """The first item of a document that can be read."""

    media_type: str  # detected from the bytes, not as claimed
    unit: Unit
    pages: int | None  # in all, if known before they are read
    remark: str  # for the person, such as the detected text encoding; or empty


class Page(msgspec.Struct, tag=True):
    """The text of the next page, slide or section. It may be empty."""

    text: str


class Remark(msgspec.Struct, tag=True):
    """A further remark, found while reading: what was left out, for example. The document counts as read."""

    text: str


class Problem(msgspec.Struct, tag=True):
    """The last item of a document that cannot be read to its end. Pages that came before it are valid."""

    status: Literal["encrypted", "no_text", "failed"]
    message: str  # for the person: what is wrong, then what to do


Item = Opened | Page | Remark | Problem


# ---- quotations


class Document(msgspec.Struct):
    id: int
    name: str
    pages: list[str]


class Form(msgspec.Struct):
    """A way to read a quotation: its parts, in words, and before each how many words may stand after the part before it."""

    parts: list[list[str]]
    gaps: list[int]


class Quotation(msgspec.Struct):
    start: int
    end: int
    forms: list[Form]  # the first of those that are found counts
    contexts: list[int]  # indexes of the texts that may name its document


class Quotations(msgspec.Struct):
    """The quotations of an answer, and the texts around them, in words."""

    quotations: list[Quotation]
    contexts: list[list[str]]


class Place(msgspec.Struct):
    """The first place of a quotation in a document."""

    quotation: int  # its index
    form: int  # the index of the form that was found
    page: int  # from 0


class Citation(msgspec.Struct):
    """The same as queries.types.Citation, which takes the child process long to import."""

    start: int
    end: int
    status: Literal["found", "other_document", "not_found"]  # other_document: not in the one that the answer names
    attachment_id: int | UnsetType = UNSET
    name: str | UnsetType = UNSET
    page: int | UnsetType = UNSET  # from 1
