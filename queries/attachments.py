"""Queries of attachments: the images and documents of messages, and the pages of documents.

A user's file is stored once, however many messages and queued messages have it. With the last of them it is released: nothing finds it
any more, and `remove_released` removes it in short transactions, because taking 10,000 pages out of the search index takes seconds.
"""

import hashlib
import json
import re
import sqlite3
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from msgspec import Struct

from ..db import Connection, Database, ago, fetch, insert, now, one_part, scalar, scalars
from ..errors import AttachmentNotReady, Invalid, NotFound
from . import search
from .quota import add_stored_bytes
from .types import IMAGE_TYPES, Attachment, AttachmentStatus, Image, Unit, image_type

MAX_ATTACHMENTS = 20  # of a message
MAX_BYTES = 50_000_000  # of an attachment
PART_BYTES = 768 * 1024  # of a row of attachment_data; a multiple of 3, so that the base64 of parts joins
WAITING_BYTES = MAX_ATTACHMENTS * MAX_BYTES  # of a user's uploads that no message has
WAITING_DAYS = 1
OTHER = "application/octet-stream"

Table = Literal["message_attachments", "queued_attachments"]

IS_IMAGE = f"media_type IN {IMAGE_TYPES}"


class Unread(Struct):
    """A document that has to be read, without its data."""

    id: int
    name: str
    media_type: str
    pages_read: int


# An ASCII character is taken for a quarter of a token, as in chat/prompt.py. Other characters have two or three bytes.
COLUMNS = (
    "a.id, {name} AS name, a.media_type, a.size_bytes, a.status, a.problem, a.unit, a.pages, a.characters,"
    " (SELECT coalesce(max(number), 0) FROM attachment_pages WHERE attachment_id = a.id) AS pages_read,"
    " (a.characters + 3 * ((a.text_bytes - a.characters) / 2)) / 4 AS tokens_estimate"
)

_SHOWN = (
    "EXISTS (SELECT 1 FROM {} l JOIN {} m ON m.id = l.message_id JOIN conversations c ON c.id = m.conversation_id"
    " WHERE l.attachment_id = a.id AND c.deleted_at IS NULL)"
)


def owned_attachment(conn: Connection, user_id: int, attachment_id: int) -> Attachment:
    """Return an attachment of the user. The only function that decides whose an attachment is.

    Raises NotFound, also when it was sent only in conversations that are in the bin.
    """
    sql = (
        f"SELECT {COLUMNS.format(name='a.name')} FROM attachments a WHERE id = ? AND user_id = ? AND sha256 IS NOT NULL"
        f" AND (uploaded_at IS NOT NULL OR {_SHOWN.format('message_attachments', 'messages')}"
        f" OR {_SHOWN.format('queued_attachments', 'queued_messages')})"
    )
    return Attachment(**fetch(conn, sql, (attachment_id, user_id), NotFound("attachment")))


def get_data(conn: Connection, attachment_id: int) -> bytes:
    """Return the bytes of an attachment; none when it was removed. The caller has checked the owner."""
    sql = "SELECT data FROM attachment_data WHERE attachment_id = ? ORDER BY part"
    return b"".join(scalars(conn, sql, (attachment_id,)))


def get_part(conn: Connection, attachment_id: int, part: int) -> bytes:
    """Return a part of the bytes of an attachment; none after the last."""
    sql = "SELECT data FROM attachment_data WHERE attachment_id = ? AND part = ?"
    return scalar(conn, sql, (attachment_id, part)) or b""


def get_image(conn: Connection, user_id: int, attachment_id: int) -> Image:
    """Return an image of the user. Raises NotFound, also for a document."""
    try:
        attachment = owned_attachment(conn, user_id, attachment_id)
    except NotFound:
        raise NotFound("image") from None
    if attachment.media_type not in IMAGE_TYPES:
        raise NotFound("image")
    return Image(attachment.media_type, get_data(conn, attachment_id))


def list_linked(conn: Connection, message_id: int, table: Table = "message_attachments") -> list[Attachment]:
    """Return the attachments of a message, in order."""
    rows = conn.execute(
        f"SELECT {COLUMNS.format(name='l.name')} FROM {table} l JOIN attachments a ON a.id = l.attachment_id"
        " WHERE l.message_id = ? ORDER BY l.position",
        (message_id,),
    )
    return [Attachment(**row) for row in rows]


# ---- add

NAME_BYTES = 255  # of UTF-8, as in most file systems
# Control characters, lone surrogates, line separators, and what changes the direction of the text after it.
UNPRINTABLE = re.compile(r"[\0-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def clean_name(name: str) -> str:
    """Return the name of a file without its folders and without characters that cannot be shown, of at most NAME_BYTES."""
    last = re.split(r"[/\\]", name)[-1]
    shown = unicodedata.normalize("NFC", UNPRINTABLE.sub("", last)).strip().strip(".") or "file"
    stem, dot, ending = shown.rpartition(".")
    ending = dot + ending if dot and len(ending) <= 20 else ""
    room = NAME_BYTES - len(ending.encode())
    return (stem if ending else shown).encode()[:room].decode(errors="ignore") + ending


def find(conn: Connection, user_id: int, digest: bytes) -> int | None:
    """Return the id of the user's file with this SHA-256."""
    sql = "SELECT id FROM attachments WHERE user_id = ? AND sha256 = ?"
    known: int | None = scalar(conn, sql, (user_id, digest))
    return known


def add(conn: Connection, user_id: int, data: bytes, media_type: str, name: str = "", max_bytes: int = 0) -> int:
    """Store a file of the user, unless it is stored already. Return its id. A new document has the status 'reading'.

    Raises QuotaExceeded above `max_bytes` (0: no limit).
    """
    digest = hashlib.sha256(data).digest()
    if known := find(conn, user_id, digest):
        return known
    add_stored_bytes(conn, user_id, len(data), max_bytes)
    attachment_id = _insert(conn, user_id, digest, name, media_type, len(data))
    for part, start in enumerate(range(0, len(data), PART_BYTES)):
        add_part(conn, attachment_id, part, data[start : start + PART_BYTES])
    return attachment_id


def _insert(conn: Connection, user_id: int, digest: bytes | None, name: str, media_type: str, size: int) -> int:
    status = "ready" if media_type in IMAGE_TYPES else "reading"
    return insert(
        conn,
        "INSERT INTO attachments (user_id, sha256, name, media_type, size_bytes, status, created_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (user_id, digest, name, media_type, size, status, now()),
    )


def add_part(conn: Connection, attachment_id: int, part: int, data: bytes) -> None:
    conn.execute(
        "INSERT INTO attachment_data (attachment_id, part, data) VALUES (?, ?, ?)", (attachment_id, part, data)
    )


def begin_upload(conn: Connection, user_id: int, size: int, head: bytes, name: str, media_type: str) -> int:
    """Add an attachment that nothing finds until `finish_upload`, and return its id. After a crash it is removed a day later.

    `media_type`: as claimed; images are detected by the first bytes, `head`.
    """
    claimed = OTHER if media_type in IMAGE_TYPES else media_type
    attachment_id = _insert(conn, user_id, None, name, image_type(head) or claimed, size)
    conn.execute("UPDATE attachments SET uploaded_at = ? WHERE id = ?", (now(), attachment_id))
    return attachment_id


def abandon_upload(conn: Connection, attachment_id: int) -> None:
    """Let an upload that was begun be removed."""
    conn.execute("UPDATE attachments SET uploaded_at = NULL WHERE id = ? AND sha256 IS NULL", (attachment_id,))


def finish_upload(
    conn: Connection, user_id: int, attachment_id: int, digest: bytes, name: str, max_bytes: int = 0
) -> Attachment:
    """Show an upload whose parts are stored, for a message that will be sent.

    The same file again takes the new name, and is read again if that failed. Raises Invalid above WAITING_BYTES, QuotaExceeded, and NotFound
    when the attachment was released since it was found.
    """
    if known := find(conn, user_id, digest):
        abandon_upload(conn, attachment_id)  # another request has stored the same file since
        attachment_id = known
    else:
        sql = "UPDATE attachments SET sha256 = ? WHERE id = ? AND uploaded_at IS NOT NULL RETURNING size_bytes"
        uploaded = fetch(conn, sql, (digest, attachment_id), NotFound("attachment"))
        add_stored_bytes(conn, user_id, uploaded["size_bytes"], max_bytes)
    conn.execute(
        "UPDATE attachments SET name = ?, uploaded_at = ?, problem = iif(status = 'failed', NULL, problem),"
        " status = iif(status = 'failed', 'reading', status) WHERE id = ?",
        (name, now(), attachment_id),
    )
    sql = f"SELECT coalesce(sum(size_bytes), 0) FROM attachments a WHERE user_id = ? AND uploaded_at IS NOT NULL AND sha256 IS NOT NULL AND {_FREE}"
    if scalar(conn, sql, (user_id,)) > WAITING_BYTES:
        raise Invalid(
            f"At most {WAITING_BYTES // 1_000_000:,} MB of files can wait to be sent."
            f" Send some of them; those that are not sent are removed after {WAITING_DAYS * 24} hours."
        )
    return owned_attachment(conn, user_id, attachment_id)


def attach(
    conn: Connection,
    user_id: int,
    message_id: int,
    images: Iterable[Image] = (),
    attachment_ids: Sequence[int] = (),
    max_bytes: int = 0,
    table: Table = "message_attachments",
) -> None:
    """Give a message images, then the attachments with these ids, in place of what it has. The caller has checked the message's owner.

    Raises Invalid above MAX_ATTACHMENTS, NotFound, AttachmentNotReady for a document that has no text (yet), and QuotaExceeded.
    """
    files = [(add(conn, user_id, image.data, image.media_type, max_bytes=max_bytes), "") for image in images]
    if len(attachment_ids) > MAX_ATTACHMENTS:
        raise Invalid(f"attachment_ids: a message can have at most {MAX_ATTACHMENTS} attachments.")
    for attachment_id in dict.fromkeys(attachment_ids):
        attachment = owned_attachment(conn, user_id, attachment_id)
        if attachment.status not in ("ready", "no_text"):
            raise AttachmentNotReady(attachment.name, attachment.status)
        files.append((attachment_id, attachment.name))
    conn.execute(f"DELETE FROM {table} WHERE message_id = ?", (message_id,))
    for position, (attachment_id, name) in enumerate(files):
        link(conn, message_id, position, attachment_id, name, table)


def link(
    conn: Connection,
    message_id: int,
    position: int,
    attachment_id: int,
    name: str = "",
    table: Table = "message_attachments",
) -> None:
    """Give a message an attachment of the same user."""
    sql = f"INSERT INTO {table} (message_id, position, attachment_id, name) VALUES (?, ?, ?, ?)"
    conn.execute(sql, (message_id, position, attachment_id, name))
    conn.execute("UPDATE attachments SET uploaded_at = NULL WHERE id = ? AND uploaded_at IS NOT NULL", (attachment_id,))


def copy_links(
    conn: Connection,
    message_id: int,
    to_message_id: int,
    source: Table = "message_attachments",
) -> None:
    """Give a message the attachments of another message, or of a queued one, of the same user."""
    conn.execute(
        "INSERT INTO message_attachments (message_id, position, attachment_id, name)"
        f" SELECT ?, position, attachment_id, name FROM {source} WHERE message_id = ?",
        (to_message_id, message_id),
    )


def copy_sent_pages(conn: Connection, message_id: int, to_message_id: int) -> None:
    """Let the copy of a question be sent with the same pages."""
    conn.execute(
        "INSERT INTO sent_pages (message_id, attachment_id, pages) SELECT ?, attachment_id, pages FROM sent_pages WHERE message_id = ?",
        (to_message_id, message_id),
    )


# ---- remove

_FREE = (  # no message has the attachment `a`
    "NOT EXISTS (SELECT 1 FROM message_attachments WHERE attachment_id = a.id)"
    " AND NOT EXISTS (SELECT 1 FROM queued_attachments WHERE attachment_id = a.id)"
)


def linked_ids(conn: Connection, message_id: int, table: Table = "message_attachments") -> list[int]:
    """Return the ids of a message's attachments, in order, for `release` once the message is deleted."""
    sql = f"SELECT attachment_id FROM {table} WHERE message_id = ? ORDER BY position"
    return scalars(conn, sql, (message_id,))


def release(conn: Connection, ids: Iterable[int]) -> int:
    """Release those of the attachments that no message has. Return their bytes, which the caller takes off stored_bytes.

    One that was uploaded again for a message that has not been sent stays for a day, as any upload.
    """
    sql = (
        "UPDATE attachments AS a SET sha256 = NULL, uploaded_at = NULL WHERE id IN (SELECT value FROM json_each(?)) AND sha256 IS NOT NULL"
        f" AND (uploaded_at IS NULL OR uploaded_at <= ?) AND {_FREE} RETURNING size_bytes + text_bytes"
    )
    return sum(scalars(conn, sql, (json.dumps(list(ids)), ago(days=WAITING_DAYS))))


def release_expired(conn: Connection) -> None:
    """Release the uploads that no message has had for a day, and those that a crash has interrupted."""
    sql = "UPDATE attachments SET uploaded_at = NULL WHERE sha256 IS NULL AND uploaded_at <= ?"
    conn.execute(sql, (ago(days=WAITING_DAYS),))
    sql = "SELECT id, user_id FROM attachments WHERE uploaded_at <= ?"
    for row in conn.execute(sql, (ago(days=WAITING_DAYS),)).fetchall():
        add_stored_bytes(conn, row["user_id"], -release(conn, [row["id"]]))


def release_all(conn: Connection, user_id: int) -> None:
    """Release the attachments of a closed account, which has no messages any more."""
    conn.execute("UPDATE attachments SET uploaded_at = NULL WHERE sha256 IS NULL AND user_id = ?", (user_id,))
    sql = f"UPDATE attachments AS a SET sha256 = NULL, uploaded_at = NULL WHERE user_id = ? AND sha256 IS NOT NULL AND {_FREE} RETURNING size_bytes + text_bytes"
    add_stored_bytes(conn, user_id, -sum(scalars(conn, sql, (user_id,))))


async def remove_released(database: Database) -> None:
    """Remove the attachments that were released, in transactions of about PART_SECONDS each."""
    while await database.read(_count_released) and await database.write_part(remove_some_released):
        pass


def _count_released(conn: Connection) -> int:
    return int(scalar(conn, "SELECT count(*) FROM attachments WHERE sha256 IS NULL AND uploaded_at IS NULL"))


def remove_some_released(conn: Connection) -> int:
    """Remove released attachments for PART_SECONDS. Return how many remain."""
    for _ in one_part(_remove_released(conn)):
        pass
    return _count_released(conn)


def _remove_released(conn: Connection) -> Iterator[None]:
    """Remove released attachments, a page or a part of the bytes with each step."""
    last_page = (
        "SELECT p.id, p.text, a.user_id, a.id AS attachment_id FROM attachment_pages p JOIN attachments a"
        " ON a.id = p.attachment_id WHERE a.id = ? ORDER BY p.number DESC LIMIT 1"
    )
    parts = "SELECT part FROM attachment_data WHERE attachment_id = ? ORDER BY part DESC"
    released = "SELECT id FROM attachments WHERE sha256 IS NULL AND uploaded_at IS NULL ORDER BY id"
    for attachment_id in scalars(conn, released):
        while page := conn.execute(last_page, (attachment_id,)).fetchone():
            search.unindex_page(conn, page)
            conn.execute("DELETE FROM attachment_pages WHERE id = ?", (page["id"],))
            yield
        for part in scalars(conn, parts, (attachment_id,)):
            conn.execute("DELETE FROM attachment_data WHERE attachment_id = ? AND part = ?", (attachment_id, part))
            yield
        conn.execute("DELETE FROM attachments WHERE id = ?", (attachment_id,))
        yield


# ---- read


def list_users_with_unread(conn: Connection) -> list[int]:
    """Return the ids of the users with documents that have to be read."""
    sql = "SELECT DISTINCT user_id FROM attachments WHERE status = 'reading' AND sha256 IS NOT NULL"
    return scalars(conn, sql)


def next_unread(conn: Connection, user_id: int) -> Unread | None:
    """Return the user's document that is to be read next: a person waits for the newest upload, but not for an import."""
    row = conn.execute(
        "SELECT id, name, media_type, (SELECT coalesce(max(number), 0) FROM attachment_pages WHERE attachment_id = a.id)"
        " AS pages_read FROM attachments a WHERE status = 'reading' AND user_id = ? AND sha256 IS NOT NULL"
        " ORDER BY uploaded_at DESC NULLS LAST, id LIMIT 1",
        (user_id,),
    ).fetchone()
    return Unread(**row) if row else None


def is_unread(conn: Connection, attachment_id: int) -> bool:
    """Return whether a document still has to be read: it may have been released since."""
    sql = "SELECT 1 FROM attachments WHERE id = ? AND status = 'reading' AND sha256 IS NOT NULL"
    return bool(scalar(conn, sql, (attachment_id,)))


def set_opened(
    conn: Connection, attachment_id: int, media_type: str, unit: Unit, pages: int | None, problem: str | None
) -> None:
    sql = "UPDATE attachments SET media_type = ?, unit = ?, pages = ?, problem = ? WHERE id = ? AND status = 'reading'"
    conn.execute(sql, (media_type, unit, pages, problem, attachment_id))


def add_pages(conn: Connection, attachment_id: int, first: int, texts: Sequence[str], max_bytes: int = 0) -> int:
    """Store pages from number `first` on for PART_SECONDS. Return how many. Raises NotFound when the document was removed, and
    QuotaExceeded above `max_bytes` (0: no limit)."""
    sql = "SELECT user_id FROM attachments WHERE id = ? AND status = 'reading' AND sha256 IS NOT NULL"
    user_id = fetch(conn, sql, (attachment_id,), NotFound("attachment"))["user_id"]
    done = size = 0
    sql = "INSERT INTO attachment_pages (attachment_id, number, text) VALUES (?, ?, ?)"
    for text in one_part(texts):
        page_id = insert(conn, sql, (attachment_id, first + done, text))
        search.index_page(conn, user_id, attachment_id, page_id, text)
        size += len(text.encode())
        done += 1
    add_stored_bytes(conn, user_id, size, max_bytes)
    sql = "UPDATE attachments SET text_bytes = text_bytes + ?, characters = characters + ? WHERE id = ?"
    conn.execute(sql, (size, sum(map(len, texts[:done])), attachment_id))
    return done


def set_read(conn: Connection, attachment_id: int, status: AttachmentStatus, problem: str | None) -> None:
    """End the reading of a document. `problem` replaces a remark, unless it is None."""
    conn.execute(
        "UPDATE attachments AS a SET status = ?, problem = coalesce(?, problem),"
        " pages = (SELECT coalesce(max(number), 0) FROM attachment_pages WHERE attachment_id = a.id) WHERE id = ? AND status = 'reading'",
        (status, problem, attachment_id),
    )


def read_again(conn: Connection, user_id: int, attachment_id: int) -> Attachment:
    """Let an encrypted document be read again, with its password. Raises NotFound, and Invalid for another one."""
    attachment = owned_attachment(conn, user_id, attachment_id)
    if attachment.status == "encrypted":
        conn.execute("UPDATE attachments SET status = 'reading', problem = NULL WHERE id = ?", (attachment_id,))
    elif attachment.status != "reading":
        raise Invalid("This file needs no password.")
    return owned_attachment(conn, user_id, attachment_id)


def read_pages(conn: Connection, attachment_id: int, first: int, characters: int) -> tuple[list[int], list[str]]:
    """Return the numbers and texts of pages from `first` on: two, and more while they have at most so many characters.

    The caller has checked the owner.
    """
    sql = "SELECT number, text FROM attachment_pages WHERE attachment_id = ? AND number >= ? ORDER BY number"
    numbers: list[int] = []
    texts: list[str] = []
    for row in conn.execute(sql, (attachment_id, first)):
        if len(texts) >= 2 and characters < len(row["text"]):
            break
        characters -= len(row["text"])
        numbers.append(row["number"])
        texts.append(row["text"])
    return numbers, texts


def list_pages(conn: Connection, user_id: int, attachment_id: int, first: int, count: int) -> list[sqlite3.Row]:
    """Return number and text of at most `count` pages of the user's document, from the number `first` on. Raises NotFound."""
    owned_attachment(conn, user_id, attachment_id)
    return conn.execute(
        "SELECT number, text FROM attachment_pages WHERE attachment_id = ? AND number >= ? ORDER BY number LIMIT ?",
        (attachment_id, first, count),
    ).fetchall()
