"""Random operations of two users, in transactions of their own: nothing is lost, counted or indexed wrongly, or left behind."""

import json
import random
import sqlite3
from collections.abc import Callable
from typing import Any

import pytest
from fireside.db import Connection
from fireside.errors import FiresideError
from fireside.queries import (
    attachments,
    bin,
    branches,
    conversations,
    folders,
    generations,
    messages,
    queued,
    quota,
    search,
)
from fireside.queries.generations import Answer, AnswerRequest, Recording, SentRequest
from fireside.queries.types import Image
from msgspec import UNSET

from ..documents import library
from ..trials import FULL, TRIALS
from .conftest import ANN, BOB, fresh

SEEDS = max(3, 120 * TRIALS // FULL)
STEPS = 250
TEXTS = ("boat", "東京 car", "Änna", "x" * 30)
INDEXED = {  # the rows of each index
    "message_words": "SELECT m.id, 'u' || c.user_id, words(m.content) FROM messages m"
    " JOIN conversations c ON c.id = m.conversation_id WHERE m.content <> ''",
    "title_words": "SELECT id, 'u' || user_id, words(title) FROM conversations",
    "page_words": "SELECT p.id, 'u' || a.user_id || ' a' || a.id, words(p.text) FROM attachment_pages p"
    " JOIN attachments a ON a.id = p.attachment_id",
}


def terms(conn: Connection, index: str) -> set[tuple[Any, ...]]:
    """Return the content of an index: each word with its row and position."""
    conn.execute(f"CREATE VIRTUAL TABLE temp.vocabulary USING fts5vocab (main, {index}, instance)")
    found = {tuple(row) for row in conn.execute("SELECT * FROM temp.vocabulary")}
    conn.execute("DROP TABLE temp.vocabulary")
    return found


def rebuilt(conn: Connection, index: str) -> set[tuple[Any, ...]]:
    """Return the content of a new index of the same rows."""
    sql = conn.execute("SELECT sql FROM sqlite_schema WHERE name = ?", (index,)).fetchone()[0]
    conn.execute(sql.replace(index, "rebuilt", 1))
    conn.create_function("words", 1, search.words)
    conn.execute(f"INSERT INTO rebuilt (rowid, owner, text) {INDEXED[index]}")
    found = terms(conn, "rebuilt")
    conn.execute("DROP TABLE rebuilt")
    return found


class Random:
    def __init__(self, seed: int) -> None:
        self.rng, self.conn, self.user = random.Random(seed), fresh(), ANN
        self.running: list[Answer] = []
        self.copies: list[branches._Copy] = []
        self.hidden: list[int] = []

    def one(self, sql: str) -> int:
        """Return the first column of a random row; an id that does not exist if there is no row."""
        rows = self.conn.execute(sql).fetchall()
        return int(self.rng.choice(rows)[0]) if rows else 10**6

    @property
    def shown(self) -> int:
        return self.one(
            f"SELECT id FROM conversations WHERE hidden = 0 AND deleted_at IS NULL AND user_id = {self.user}"
        )

    def text(self) -> str:
        return self.rng.choice((*TEXTS, "".join(self.rng.choices("abc äÉ日本語\n'\"", k=8)).strip() or "-"))

    def message(self, conversation_id: int) -> int:
        return self.one(f"SELECT id FROM messages WHERE conversation_id = {conversation_id}")

    def images(self) -> list[Image]:
        return [Image("image/png", self.rng.choice((b"12345", b"678")))] if self.rng.random() < 0.2 else []

    def files(self) -> list[int]:
        """Return the ids of some attachments, which may be being read or gone."""
        return [self.one("SELECT id FROM attachments")] if self.rng.random() < 0.3 else []

    def start(self, begun: tuple[Answer, Any] | None) -> None:
        if begun and begun[0].job:
            self.running.append(begun[0])

    # ---- operations

    def begin(self) -> None:
        if len(conversations.find_conversations(self.conn, self.user)) > 1:  # few, so that operations meet in one
            return
        temporary = {"temporary": self.rng.random() < 0.1}
        messages.begin_conversation(self.conn, self.user, temporary, "hello", None, self.images())

    def add(self) -> None:
        at = self.shown
        parent: Any = self.rng.choice((UNSET, None, self.message(at)))
        client_id = self.rng.choice((None, "a", "b"))
        messages.add_message(self.conn, self.user, at, self.text(), parent, client_id, self.images(), 0, self.files())

    def queue(self) -> None:
        at = self.shown
        queued.add_queued(self.conn, self.user, at, self.text(), None, self.images(), 0, self.files())
        self.start(queued.begin_next(self.conn, lambda _: "server", self.user, at))

    def answer(self) -> None:
        at = self.shown
        request = AnswerRequest(retry=self.rng.random() < 0.7, message_id=self.message(at))
        self.start((generations.begin_answer(self.conn, self.user, at, request, "lmstudio", "m"), None))

    def go_on(self) -> None:
        at = self.shown
        request = AnswerRequest(message_id=self.message(at))
        self.start((generations.begin_continuation(self.conn, self.user, at, request, "lmstudio", "m"), None))

    def finish(self) -> None:
        if not self.running:
            return
        begun = self.running.pop(self.rng.randrange(len(self.running)))
        assert begun.job
        before = begun.job.earlier.content if begun.job.earlier else ""
        text, status = before + self.rng.choice(("", " answer", " 東京")), self.rng.choice(("complete", "canceled"))
        log = json.dumps([len(text), {"event": "done", "data": {}}])
        sent = SentRequest("hash", {}, begun.job.leaf_id, 0, self.rng.choice(("Be brief.", "")))
        recording = Recording(begun.message_id, status, text, "", log)
        generations.finish_generation(self.conn, begun.generation_id, recording, sent=sent)
        if status == "complete":
            place = (begun.job.user_id, begun.job.conversation_id, begun.message_id)
            self.start(queued.begin_next(self.conn, lambda _: "server", *place))

    def edit(self) -> None:
        at = self.shown
        messages.edit_answer(self.conn, self.user, at, self.message(at), self.text())

    def delete_message(self) -> None:
        at = self.shown
        bin.delete_message(self.conn, self.user, at, self.message(at))

    def restore(self) -> None:
        deleted = f"SELECT id FROM conversations WHERE hidden = 0 AND deleted_at IS NOT NULL AND user_id = {self.user}"
        bin.restore(self.conn, self.user, self.one(deleted))

    def branch(self) -> None:
        if self.copies:
            return
        at = self.shown
        source = f"branch:{self.rng.random()}"
        begun = branches._begin(self.conn, self.user, at, self.message(at), source, 0)
        assert isinstance(begun, branches._Copy)
        self.copies.append(begun)

    def copy(self) -> None:
        if self.copies:
            branches._show(self.conn, branches._copy_messages(self.conn, self.copies.pop(), 0))

    def delete(self) -> None:
        conversations.delete_conversation(self.conn, self.user, self.shown)

    def hide(self) -> None:
        at = self.one(f"SELECT id FROM conversations WHERE hidden = 0 AND user_id = {self.user}")
        self.hidden += conversations.hide_conversation(self.conn, self.user, at)

    def leave(self) -> None:
        self.hidden += conversations.hide_temporary(self.conn, "9999", (), self.shown)

    def remove(self) -> None:
        if self.hidden:
            self.remove_one(self.hidden.pop())
        attachments.remove_some_released(self.conn)

    def remove_one(self, conversation_id: int) -> None:
        ids = conversations.list_message_ids(self.conn, conversation_id)
        while ids:
            ids = conversations.remove_messages(self.conn, ids)
        conversations.remove_emptied(self.conn, conversation_id)

    def upload(self) -> None:
        library.upload(self.conn, self.user, self.rng.choice((b"one", b"two", b"three")), "a.txt", "text/plain")

    def read(self) -> None:
        unread = attachments.next_unread(self.conn, self.user)
        if unread is not None:
            attachments.set_opened(self.conn, unread.id, "text/plain", "section", None, None)
            attachments.add_pages(self.conn, unread.id, unread.pages_read + 1, ["boat", "", "東京"])
            attachments.set_read(self.conn, unread.id, self.rng.choice(("ready", "ready", "failed")), None)

    def expire(self) -> None:
        self.conn.execute("UPDATE attachments SET uploaded_at = '2020' WHERE uploaded_at IS NOT NULL")
        attachments.release_expired(self.conn)

    def unqueue(self) -> None:
        queued_id = self.one("SELECT id FROM queued_messages")
        at = self.one(f"SELECT conversation_id FROM queued_messages WHERE id = {queued_id}")
        if self.rng.random() < 0.5:
            queued.change_queued(self.conn, self.user, at, queued_id, "changed", 0, self.files())
        else:
            queued.remove_queued(self.conn, self.user, at, queued_id)

    def change(self) -> None:
        folder = folders.add_folder(self.conn, self.user, self.rng.choice("ab"))
        fields = self.rng.choice(
            ({"system_prompt": "東"}, {"temporary": False}, {"folder_id": folder}, {"title": self.text()})
        )
        conversations.set_conversation(self.conn, self.user, self.shown, fields)

    OPERATIONS: tuple[Callable[["Random"], None], ...] = (
        *(begin, add, add, add, queue, answer, answer, answer, go_on, go_on, finish, finish, finish, finish, edit),
        *(delete_message, delete_message, restore, branch, copy, copy, delete, hide, leave, remove, remove, change),
        *(upload, upload, read, read, expire, unqueue),
    )

    # ---- what always holds

    def check(self) -> None:
        conn = self.conn
        counted = conn.execute("SELECT stored_bytes FROM users").fetchall()
        quota.recount(conn)
        assert counted == conn.execute("SELECT stored_bytes FROM users").fetchall()
        assert not conn.execute("PRAGMA foreign_key_check").fetchall()
        lost = "SELECT id FROM messages WHERE status = 'generating'"
        assert {row["id"] for row in conn.execute(lost)} <= {one.message_id for one in self.running}
        waiting = "SELECT id FROM attachments WHERE sha256 IS NOT NULL AND uploaded_at IS NULL"
        linked = " UNION ".join(
            f"SELECT attachment_id FROM {one}" for one in ("message_attachments", "queued_attachments")
        )
        assert not conn.execute(f"{waiting} EXCEPT SELECT * FROM ({linked})").fetchall(), (
            "a file that no message has stays"
        )
        assert not conn.execute(
            f"SELECT * FROM ({linked}) EXCEPT SELECT id FROM attachments WHERE sha256 IS NOT NULL"
        ).fetchall()
        elsewhere = "JOIN messages m ON m.id = {} WHERE m.conversation_id <> {}"
        for wrong in (
            "SELECT 1 FROM messages c " + elsewhere.format("c.parent_id", "c.conversation_id"),
            "SELECT 1 FROM conversations c " + elsewhere.format("c.active_message_id", "c.id"),
            "SELECT 1 FROM conversations c WHERE hidden = 0 AND active_message_id IS NULL"
            " AND EXISTS (SELECT 1 FROM messages WHERE conversation_id = c.id)",
        ):
            assert not conn.execute(wrong).fetchall(), wrong
        for row in conn.execute("SELECT id FROM conversations").fetchall():
            parents = conversations.list_parents(conn, row["id"])
            places = {message_id: place for place, message_id in enumerate(parents)}
            assert all(parent is None or places[parent] < places[one] for one, parent in parents.items())

    def check_indexes(self) -> None:
        for index in INDEXED:
            self.conn.execute(f"INSERT INTO {index} ({index}) VALUES ('integrity-check')")
            assert terms(self.conn, index) == rebuilt(self.conn, index), index

    def empty(self) -> None:
        """Remove everything, and check that nothing is left."""
        conn = self.conn
        for user_id in (ANN, BOB):
            ids = conversations.list_all(conn, user_id)
            conversations.hide_all(conn, ids)
            for conversation_id in ids:
                self.remove_one(conversation_id)
        self.expire()
        while attachments.remove_some_released(conn):
            pass
        tables = "conversations messages attachments attachment_data attachment_pages generations former_parents queued_messages sent_system_prompts"
        for table in tables.split():
            assert not conn.execute(f"SELECT 1 FROM {table}").fetchone(), table
        for index in INDEXED:
            assert terms(conn, index) == set(), index


@pytest.mark.parametrize("seed", range(SEEDS))
def test_random_operations_lose_nothing_and_leave_nothing(seed: int) -> None:
    state = Random(seed)
    for step in range(STEPS):
        operation, state.user = state.rng.choice(Random.OPERATIONS), state.rng.choice((ANN, ANN, BOB))
        state.conn.execute("BEGIN")
        try:
            operation(state)
            state.conn.execute("COMMIT")
        except (FiresideError, sqlite3.IntegrityError) as error:
            state.conn.execute("ROLLBACK")
            # The conversation of a copy may have been removed.
            assert isinstance(error, FiresideError) or operation is Random.copy
        state.check()
        if step % 10 == 0:
            state.check_indexes()
    state.empty()
    state.check()
    state.conn.close()
