"""Attachments: stored once, given to messages, released with the last of them, read page by page."""

import pytest
from fireside import db
from fireside.db import Connection, ago
from fireside.errors import AttachmentNotReady, Invalid, NotFound, QuotaExceeded
from fireside.queries import attachments, messages, quota, search
from fireside.queries.types import Image

from ..documents import library
from .conftest import ANN, BOB, conversation, path, say, used

PNG = b"\x89PNG\r\n\x1a\n0000"


def upload(conn: Connection, data: bytes = b"Ships sail.", name: str = "a.txt", user: int = ANN) -> int:
    return library.upload(conn, user, data, name, "text/plain").id


def read(conn: Connection, document_id: int, *texts: str) -> None:
    attachments.set_opened(conn, document_id, "text/plain", "section", len(texts), None)
    attachments.add_pages(conn, document_id, 1, texts)
    attachments.set_read(conn, document_id, "ready", None)


def ids(conn: Connection) -> list[int]:
    return [row["id"] for row in conn.execute("SELECT id FROM attachments ORDER BY id")]


def found(conn: Connection, word: str) -> list[int]:
    match = f"text : {search.words(word)}"
    return [row[0] for row in conn.execute("SELECT rowid FROM page_words WHERE page_words MATCH ?", (match,))]


def test_file_is_shared_by_the_messages_of_one_user_only(conn: Connection) -> None:
    assert upload(conn) == upload(conn, name="b.txt") != upload(conn, user=BOB)
    assert (used(conn), used(conn, BOB)) == (11, 11)
    claimed = library.upload(conn, ANN, b"no image", "a.png", "image/png")
    assert (claimed.media_type, claimed.status) == (attachments.OTHER, "reading")
    image = library.upload(conn, ANN, PNG, "a.txt", "text/plain")
    say(conn, conversation(conn), "look", images=[Image("image/png", PNG)])
    assert (image.media_type, image.status, len(ids(conn))) == ("image/png", "ready", 4)
    with pytest.raises(NotFound):
        attachments.get_image(conn, ANN, claimed.id)
    with pytest.raises(QuotaExceeded):
        library.upload(conn, ANN, b"x" * 100, "", "", 100)


def test_only_what_is_read_and_one_s_own_is_sent(conn: Connection) -> None:
    chat, mine, his = conversation(conn), upload(conn), upload(conn, user=BOB)
    unfinished = attachments.begin_upload(conn, ANN, len(PNG), PNG, "a.png", "image/png")
    for status in ("reading", "encrypted", "failed"):
        conn.execute("UPDATE attachments SET status = ? WHERE id = ?", (status, mine))
        with pytest.raises(AttachmentNotReady, match=r"^a\.txt "):
            attachments.attach(conn, ANN, 1, attachment_ids=[mine])
    for wrong in (his, unfinished, 99):
        with pytest.raises(NotFound):
            attachments.attach(conn, ANN, 1, attachment_ids=[wrong])
    with pytest.raises(Invalid, match="at most 20"):
        attachments.attach(conn, ANN, 1, attachment_ids=[mine] * 21)
    for number, status in enumerate(("ready", "no_text")):
        conn.execute("UPDATE attachments SET status = ? WHERE id = ?", (status, mine))
        messages.add_message(conn, ANN, chat, str(number), attachment_ids=[mine, mine])
    assert [len(one.documents) for one in messages.list_messages(conn, ANN, chat)] == [1, 1]
    assert path(conn, chat) == ["0", "1"]


def test_uploads_that_are_not_sent_are_bounded_and_removed_after_a_day(
    conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attachments, "WAITING_BYTES", 20)
    others = (  # that do not count: of another user, not finished, and of a message that is being added
        upload(conn, b"x" * 15, user=BOB),
        attachments.begin_upload(conn, ANN, 15, b"", "a.txt", attachments.OTHER),
        attachments.add(conn, ANN, b"z" * 15, attachments.OTHER),
    )
    first = upload(conn)
    conn.execute(f"DELETE FROM attachments WHERE id IN {others}")
    quota.recount(conn)
    with pytest.raises(Invalid, match="can wait to be sent"):
        upload(conn, b"x" * 10)
    conn.execute("DELETE FROM attachments WHERE id <> ?", (first,))  # what the transaction's end undoes
    quota.recount(conn)
    read(conn, first, "Ships sail.")
    attachments.release_expired(conn)
    assert attachments.release(conn, [first]) == 0, "it may be part of a message that is being written"
    assert used(conn) == 22
    conn.execute("UPDATE attachments SET uploaded_at = ?", (ago(hours=25),))
    attachments.release_expired(conn)
    assert used(conn) == 0 and attachments.find(conn, ANN, b"") is None
    assert attachments.release(conn, [first]) == 0, "it was released before"
    with pytest.raises(NotFound):
        attachments.owned_attachment(conn, ANN, first)
    with pytest.raises(NotFound):  # by a request that found it before
        attachments.finish_upload(conn, ANN, first, b"hash", "a.txt")
    again = upload(conn)
    assert again != first and attachments.remove_some_released(conn) == 0 and ids(conn) == [again]


def test_removal_of_many_pages_takes_several_transactions(conn: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    document = upload(conn)
    read(conn, document, *("Ships sail." for _ in range(50)))
    conn.execute("UPDATE attachments SET uploaded_at = '2020'")
    attachments.release_expired(conn)
    monkeypatch.setattr(db, "PART_SECONDS", 0.0)
    parts = 0
    while attachments.remove_some_released(conn):
        parts += 1
        assert parts < 1000
    monkeypatch.undo()
    assert parts >= 50 and ids(conn) == [] and not found(conn, "ships")


def test_pages_are_added_to_a_document_that_is_being_read_only(conn: Connection) -> None:
    document, other = upload(conn), upload(conn, b"Boats.", user=BOB)
    conn.execute("SAVEPOINT before")
    with pytest.raises(QuotaExceeded):
        attachments.add_pages(conn, document, 1, ["x" * 1000], 500)
    conn.execute("ROLLBACK TO before")
    read(conn, document, "Änna")
    known = attachments.owned_attachment(conn, ANN, document)
    assert (known.status, known.pages, known.pages_read, known.characters) == ("ready", 1, 1, 4)
    assert attachments.owned_attachment(conn, BOB, other).characters == 0
    conn.execute("UPDATE attachments SET sha256 = NULL WHERE id = ?", (other,))  # as `release` does
    another = upload(conn, b"This one is read now.")
    for gone in (document, other, 99):
        with pytest.raises(NotFound):
            attachments.add_pages(conn, gone, 2, ["x"])
    with pytest.raises(Invalid, match="needs no password"):
        attachments.read_again(conn, ANN, document)
    conn.execute("UPDATE attachments SET status = 'encrypted'")
    assert [attachments.read_again(conn, ANN, document).status for _ in range(2)] == ["reading", "reading"]
    assert attachments.owned_attachment(conn, ANN, another).status == "encrypted"
    conn.execute("UPDATE attachments SET status = 'failed', problem = 'Damaged.'")
    upload(conn)
    again = attachments.owned_attachment(conn, ANN, document)
    assert (again.status, again.problem) == ("reading", None)


def test_newest_upload_is_read_first(conn: Connection) -> None:
    imported = attachments.add(conn, ANN, b"imported", "text/plain")
    first, second = upload(conn, b"1"), upload(conn, b"2")
    order = []
    while unread := attachments.next_unread(conn, ANN):
        order.append(unread.id)
        attachments.set_read(conn, unread.id, "ready", None)
    assert order == [second, first, imported] and attachments.next_unread(conn, BOB) is None
