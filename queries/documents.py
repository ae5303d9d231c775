"""Queries of what is sent of documents: the documents of a path, the pages that were chosen, and their text.

attachments.py has what documents and images share.
"""

import json
from collections.abc import Iterable, Sequence

from msgspec import Struct

from ..db import Connection
from .attachments import IS_IMAGE

Ranges = list[tuple[int, int]]  # first and last page


class Document(Struct):
    """A document that questions of a path can be about."""

    id: int
    name: str  # by the first message of the path that has it
    unit: str
    pages: int  # that were read
    tokens: int  # estimated, of all its pages


class Excerpt(Struct):
    """The pages of a document that stand in a question. `texts` is filled by `add_texts`."""

    attachment_id: int
    ranges: Ranges
    texts: dict[int, str] = {}  # by page


class SentPages(Struct, array_like=True):
    """The pages of a document that were sent in a question."""

    message_id: int  # of the question
    attachment_id: int
    ranges: Ranges


def list_documents(conn: Connection, message_ids: Sequence[int]) -> list[tuple[int, Document]]:
    """Return the documents of these messages that have been read, each with the first message that has it, in order."""
    rows = conn.execute(
        "SELECT j.value AS message_id, a.id, l.name, coalesce(a.unit, 'page') AS unit,"
        " (SELECT coalesce(max(number), 0) FROM attachment_pages WHERE attachment_id = a.id) AS pages,"
        " (a.characters + 3 * ((a.text_bytes - a.characters) / 2)) / 4 AS tokens"
        " FROM json_each(?) j JOIN message_attachments l ON l.message_id = j.value JOIN attachments a ON a.id = l.attachment_id"
        f" WHERE NOT a.{IS_IMAGE} AND a.status IN ('ready', 'no_text') ORDER BY j.key, l.position",
        (json.dumps(message_ids),),
    )
    found: dict[int, tuple[int, Document]] = {}
    for row in rows:
        document = Document(row["id"], row["name"], row["unit"], row["pages"], row["tokens"])
        found.setdefault(row["id"], (row["message_id"], document))
    return list(found.values())


def list_sent_pages(conn: Connection, message_ids: Sequence[int]) -> list[SentPages]:
    """Return the pages that were chosen for these questions."""
    rows = conn.execute(
        "SELECT s.message_id, s.attachment_id, s.pages FROM json_each(?) j JOIN sent_pages s ON s.message_id = j.value",
        (json.dumps(message_ids),),
    )
    return [
        SentPages(row["message_id"], row["attachment_id"], [(first, last) for first, last in json.loads(row["pages"])])
        for row in rows
    ]


def save_sent_pages(conn: Connection, question_id: int, sent: Iterable[SentPages]) -> None:
    """Replace the pages that were chosen for a question by those of it among `sent`."""
    conn.execute("DELETE FROM sent_pages WHERE message_id = ?", (question_id,))
    conn.executemany(
        "INSERT INTO sent_pages (message_id, attachment_id, pages)"
        " SELECT ?1, ?2, ?3 WHERE EXISTS (SELECT 1 FROM attachments WHERE id = ?2)",  # it may have been removed
        [(question_id, one.attachment_id, json.dumps(one.ranges)) for one in sent if one.message_id == question_id],
    )


def add_texts(conn: Connection, excerpts: Iterable[Excerpt]) -> None:
    """Read the pages of excerpts."""
    for excerpt in excerpts:
        excerpt.texts = {}
        for first, last in excerpt.ranges:
            excerpt.texts |= get_pages(conn, excerpt.attachment_id, first, last)


def get_pages(conn: Connection, attachment_id: int, first: int = 1, last: int = 2**31) -> dict[int, str]:
    """Return the texts of a document's pages by their numbers."""
    sql = "SELECT number, text FROM attachment_pages WHERE attachment_id = ? AND number BETWEEN ? AND ? ORDER BY number"
    return {row["number"]: row["text"] for row in conn.execute(sql, (attachment_id, first, last))}


def rank_pages(
    conn: Connection, attachment_ids: Iterable[int], starts: Iterable[str], limit: int
) -> list[tuple[int, int]]:
    """Return (attachment id, number) of the pages with the most and rarest words that start so."""
    words = " OR ".join(f'"{start}"*' for start in starts)
    owners = " OR ".join(f"a{attachment_id}" for attachment_id in attachment_ids)
    if not words or not owners:
        return []
    rows = conn.execute(
        "SELECT p.attachment_id, p.number FROM page_words w CROSS JOIN attachment_pages p ON p.id = w.rowid"
        " WHERE w.page_words MATCH ? ORDER BY w.rank LIMIT ?",
        (f"owner : ({owners}) AND text : ({words})", limit),
    )
    return [(row["attachment_id"], row["number"]) for row in rows]
