"""Copy what is readable in a damaged database to a new one.

SQLite stores a table in pages. A damaged page costs the rows on it; a damaged overflow page costs the last columns of one long row.
So each table is read by row id, without its indexes, and a row that cannot be read whole is read column by column. A value that its
column cannot hold counts as lost. Lost values that a row needs get a default; a lost owner is never guessed.
"""

import contextlib
import hashlib
import json
import re
import secrets
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from .. import db, queries
from ..db import DatabaseUnusable
from ..queries import search

LOST_TEXT = "(This text was on a damaged part of the database and could not be read.)"
RECOVERED_TITLE = "Recovered"
PROBED_ROWS = 100  # row ids read one by one after an error, before reading the rest of the table at once again
MAX_UNREADABLE_ROWS = 50_000  # row ids in succession; after so many the table is taken to have ended

TABLES = (
    "users",
    "conversations",
    "messages",
    "former_parents",
    "attachments",
    "attachment_data",
    "generations",
    "sent_system_prompts",
    "continued_generations",
    "generation_parts",
    "folders",
    "prompts",
    "presets",
    "queued_messages",
    "message_attachments",
    "queued_attachments",
    "sent_pages",
)  # no sessions, no invites, and no attachment_pages: the documents are read again
JSON_COLUMNS = {
    "defaults",
    "settings",
    "token_usage",
    "stats",
    "error",
    "params",
    "log",
    "request",
    "tools",
    "citations",
}
ALLOWED_VALUES = {
    ("users", "role"): {"user", "admin"},
    ("users", "status"): {"active", "disabled"},
    ("attachments", "status"): {"reading", "ready", "no_text", "encrypted", "failed"},
    ("messages", "role"): {"user", "assistant"},
    ("messages", "status"): {"complete", "generating", "canceled", "interrupted", "error"},
}
PYTHON_TYPES: dict[str, type] = {"TEXT": str, "INTEGER": int, "BLOB": bytes}
ZEROS = "\0" * 64  # an overflow page overwritten with zeros is read without an error
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}", re.ASCII)


@dataclass(frozen=True)
class Salvaged:
    """The numbers of rows in the new database. `damaged` counts lost rows, rows with a lost value, and gaps between rows."""

    users: int
    conversations: int
    messages: int
    damaged: int


def salvage(source: Path, target: Path) -> Salvaged:
    """Write a new database to `target`; `source` is not changed. The caller holds the lock of its data directory.

    Raises DatabaseUnusable when no message can be read, and FileExistsError when `target` exists.
    """
    db.create_private(target).close()
    try:
        with contextlib.closing(db.open_damaged(source)) as old, contextlib.closing(sqlite3.connect(target)) as new:
            db.create(new)
            new.row_factory = sqlite3.Row
            result = _Salvage(old, new).run()
            new.commit()
            db.check(new)
        if not result.messages:
            raise DatabaseUnusable(f"{source}: no message can be read.")
        return result
    except sqlite3.DatabaseError:
        target.unlink()
        raise DatabaseUnusable(f"{source}: nothing can be read. It may not be a database of Fireside.") from None
    except BaseException:
        target.unlink()
        raise


class _Salvage:
    def __init__(self, old: sqlite3.Connection, new: sqlite3.Connection) -> None:
        self.old = old
        self.old.text_factory = self._decode
        self.new = new
        self.damaged = 0
        self.invalid_texts = 0
        self.recovered_user_id: int | None = None

    def run(self) -> Salvaged:
        for table in TABLES:
            self._copy(table)
        self._restore_conversations()
        self._restore_owners()
        self._repair_references()
        self._copy_old_images()
        self._repair_attachments()
        self._index()
        queries.quota.recount(self.new)
        users, conversations, messages = (
            self.new.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in TABLES[:3]
        )
        return Salvaged(users, conversations, messages, self.damaged)

    # ---- rows

    def _copy(self, table: str) -> None:
        declared = {row["name"]: row for row in self.new.execute(f"PRAGMA table_info({table})")}
        existing = {row["name"] for row in self.old.execute(f"PRAGMA table_info({table})")}
        columns = [name for name in declared if name in existing]  # an older schema has fewer
        if not columns:
            version = self.old.execute("PRAGMA user_version").fetchone()[0]
            self.damaged += version == db.VERSION  # an older schema lacks some tables
            return
        last = self._last_id(table)
        invalid_texts = self.invalid_texts
        for rowid, row in self._rows(table, columns, MAX_UNREADABLE_ROWS if last is None else last):
            valid = {name: value for name, value in row.items() if _is_valid(table, declared[name], value)}
            complete = len(valid) == len(columns) and self.invalid_texts == invalid_texts
            invalid_texts = self.invalid_texts
            try:
                self._insert(table, _defaults(table, rowid) | valid)
            except sqlite3.IntegrityError:  # another required value is lost, or the row exists twice
                complete = False
            self.damaged += not complete
        if last and self.new.execute("SELECT 1 FROM sqlite_sequence WHERE name = ?", (table,)).fetchone():
            self.new.execute("UPDATE sqlite_sequence SET seq = max(seq, ?) WHERE name = ?", (last, table))

    def _insert(self, table: str, row: dict[str, Any]) -> int:
        sql = f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})"
        return db.insert(self.new, sql, [*row.values()])

    def _last_id(self, table: str) -> int | None:
        """Return the highest row id that was ever used, or None if it cannot be read."""
        found = []
        for sql in (f"SELECT seq FROM sqlite_sequence WHERE name = '{table}'", f"SELECT max(rowid) FROM {table}"):
            with contextlib.suppress(sqlite3.DatabaseError):
                found += [row[0] for row in self.old.execute(sql) if isinstance(row[0], int)]
        return max(found, default=None)

    def _rows(self, table: str, columns: list[str], last: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield row ids and rows up to the id `last`; of a damaged row, the columns that can be read."""
        at, unreadable, in_gap = 0, 0, False
        while at < last and unreadable < MAX_UNREADABLE_ROWS:
            try:
                sql = f"SELECT rowid AS at, {', '.join(columns)} FROM {table} WHERE rowid > ? ORDER BY rowid"
                for row in self.old.execute(sql, (at,)):
                    at, unreadable = row["at"], 0
                    yield at, {name: row[name] for name in columns}
                return
            except sqlite3.DatabaseError:
                for rowid in range(at + 1, min(at + PROBED_ROWS, last) + 1):
                    found = self._readable_columns(table, columns, rowid)
                    self.damaged += found is None and not in_gap
                    in_gap, unreadable = found is None, 0 if found else unreadable + 1
                    if found:
                        yield rowid, found
                at += PROBED_ROWS

    def _readable_columns(self, table: str, columns: list[str], rowid: int) -> dict[str, Any] | None:
        """Return the readable columns of a row, {} if there is no such row, or None if that cannot be read."""
        found: dict[str, Any] = {}
        for name in ("rowid", *columns):
            try:
                row = self.old.execute(f"SELECT {name} FROM {table} WHERE rowid = ?", (rowid,)).fetchone()
            except sqlite3.DatabaseError:
                if name == "rowid":
                    return None
                continue
            if row is None:
                return {}
            found[name] = row[0]
        return {name: found[name] for name in columns if name in found}

    def _decode(self, data: bytes) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError:
            self.invalid_texts += 1
            return data.decode("utf-8", "replace")

    # ---- references between rows

    def _restore_conversations(self) -> None:
        """Add a conversation for messages that have lost theirs."""
        lost = "SELECT DISTINCT conversation_id FROM messages EXCEPT SELECT id FROM conversations"
        for (conversation_id,) in self.new.execute(lost).fetchall():
            self._insert("conversations", _defaults("conversations", conversation_id) | {"id": conversation_id})
            self.damaged += 1

    def _restore_owners(self) -> None:
        """Add lost users. A conversation whose owner is unknown (user_id 0) goes to the only user that ever existed, or else to a
        new, disabled user. Make sure that there is an administrator."""
        owners = " UNION ".join(f"SELECT user_id FROM {table}" for table in ("conversations", "prompts", "presets"))
        lost = f"SELECT user_id FROM ({owners}) WHERE user_id != 0 EXCEPT SELECT id FROM users"
        for (user_id,) in self.new.execute(lost).fetchall():
            self._add_user(user_id)
        for (conversation_id,) in self.new.execute("SELECT id FROM conversations WHERE user_id = 0").fetchall():
            sql = "UPDATE conversations SET user_id = ?, source = NULL WHERE id = ?"
            self.new.execute(sql, (self._recovered_user(), conversation_id))
        if not self.new.execute("SELECT 1 FROM users WHERE role = 'admin' AND status = 'active'").fetchone():
            first = "SELECT min(id) FROM users WHERE closed_at IS NULL"
            self.new.execute(f"UPDATE users SET role = 'admin', status = 'active' WHERE id = ({first})")

    def _recovered_user(self) -> int:
        if self.recovered_user_id is None:
            ids = [row[0] for row in self.new.execute("SELECT id FROM users")]
            only_user = ids == [1] and self._last_id("users") == 1
            self.recovered_user_id = 1 if only_user else self._add_user(None)
        return self.recovered_user_id

    def _add_user(self, user_id: int | None) -> int:
        row = _defaults("users", user_id or 0) | {"id": user_id}
        if self.new.execute("SELECT 1 FROM users WHERE username = ?", (row["username"],)).fetchone():
            row["username"] += f"-{secrets.token_hex(4)}"
        return self._insert("users", row)

    def _repair_references(self) -> None:
        """Delete rows whose message is lost, and let a message whose parent is lost follow the message before it."""
        for table, key, parent in (
            ("former_parents", "message_id", "messages"),
            ("former_parents", "parent_id", "messages"),
            ("queued_messages", "conversation_id", "conversations"),
            ("message_attachments", "message_id", "messages"),
            ("queued_attachments", "message_id", "queued_messages"),
            ("sent_pages", "message_id", "messages"),
            ("generations", "message_id", "messages"),
            ("sent_system_prompts", "conversation_id", "conversations"),
            ("continued_generations", "message_id", "messages"),
            ("generation_parts", "generation_id", "generations"),
        ):
            orphans = self.new.execute(f"DELETE FROM {table} WHERE {key} NOT IN (SELECT id FROM {parent})")
            self.damaged += orphans.rowcount
        self.new.execute(
            "UPDATE conversations AS c SET deleted_from = NULL WHERE deleted_from IS NOT NULL AND NOT EXISTS"
            " (SELECT 1 FROM conversations h WHERE h.id = c.deleted_from AND h.user_id = c.user_id)"
        )
        self.new.execute(
            "DELETE FROM folders WHERE user_id NOT IN (SELECT id FROM users)"
        )  # it was empty, or its owner is lost
        self.new.execute(
            "UPDATE conversations SET folder_id = NULL WHERE folder_id IS NOT NULL AND NOT EXISTS"
            " (SELECT 1 FROM folders f WHERE f.id = folder_id AND f.user_id = conversations.user_id)"
        )
        earlier = (
            "SELECT max(p.id) FROM messages p WHERE p.conversation_id = messages.conversation_id AND p.id < messages.id"
        )
        follow_earlier = f"UPDATE messages SET parent_id = ({earlier}) WHERE "
        self.new.execute(
            f"{follow_earlier} parent_id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM messages p"
            " WHERE p.conversation_id = messages.conversation_id AND p.id = messages.parent_id)"
        )
        path = "WITH RECURSIVE path (id) AS (SELECT ?1 UNION SELECT m.parent_id FROM messages m JOIN path ON path.id = m.id)"
        for (message_id,) in self.new.execute("SELECT id FROM messages WHERE parent_id >= id ORDER BY id").fetchall():
            if not self.new.execute(
                f"{path} SELECT 1 FROM path WHERE id IS NULL", (message_id,)
            ).fetchone():  # a circle
                self.new.execute(f"{follow_earlier} id = ?", (message_id,))
        self.new.execute("UPDATE conversations SET token_id = NULL")  # tokens are not copied
        own = "SELECT {0} FROM messages m WHERE m.conversation_id = conversations.id"
        self.new.execute(
            f"UPDATE conversations SET active_message_id = ({own.format('max(m.id)')})"
            f" WHERE NOT EXISTS ({own.format(1)} AND m.id = active_message_id)"
        )

    def _copy_old_images(self) -> None:
        """Copy the images of a schema before 6, which had them in a table of their own, and in the column `images` of the queue."""
        new = self.new
        owner = "SELECT c.user_id FROM {0} m JOIN conversations c ON c.id = m.conversation_id WHERE m.id = ?"
        columns = {"images": ["message_id", "position", "media_type", "data"], "queued_messages": ["images"]}
        for table, names in columns.items():
            if not {row["name"] for row in self.old.execute(f"PRAGMA table_info({table})")}.issuperset(names):
                continue
            last = self._last_id(table)
            for rowid, row in self._rows(table, names, MAX_UNREADABLE_ROWS if last is None else last):
                links: queries.attachments.Table = "message_attachments"
                found: list[tuple[Any, Any, Any, Any]] = [
                    (row.get("message_id"), row.get("position"), row.get("media_type"), row.get("data"))
                ]
                if table == "queued_messages":
                    links, found = "queued_attachments", []
                    with contextlib.suppress(ValueError, TypeError):
                        images = msgspec.json.decode(row.get("images", "[]"), type=list[queries.types.Image])
                        found = [(rowid, place, image.media_type, image.data) for place, image in enumerate(images)]
                for message_id, position, media_type, data in found:
                    user = new.execute(
                        owner.format("messages" if table == "images" else table), (message_id,)
                    ).fetchone()
                    if (
                        user is None
                        or not isinstance(data, bytes)
                        or not isinstance(position, int)
                        or media_type not in queries.types.IMAGE_TYPES
                    ):
                        self.damaged += 1
                        continue
                    attachment_id = queries.attachments.add(new, user["user_id"], data, media_type)
                    queries.attachments.link(new, message_id, position, attachment_id, table=links)

    def _repair_attachments(self) -> None:
        """Give each attachment the owner of its messages, a copy if they have several. Remove those without data or message, and
        let the documents be read again."""
        new = self.new
        tables = (("message_attachments", "messages"), ("queued_attachments", "queued_messages"))
        owners = "SELECT l.attachment_id, l.rowid, c.user_id FROM {} l JOIN {} m ON m.id = l.message_id"
        owners += " JOIN conversations c ON c.id = m.conversation_id"
        linked = " UNION ".join(owners.format(*pair) for pair in tables)
        for row in new.execute("SELECT * FROM attachments ORDER BY id").fetchall():
            attachment_id, data = row["id"], queries.attachments.get_data(new, row["id"])
            found = new.execute(f"SELECT user_id FROM ({linked}) WHERE attachment_id = ?", (attachment_id,))
            users = [one["user_id"] for one in found]
            digest = hashlib.sha256(data).digest()
            self.damaged += row["sha256"] not in (None, digest)
            status = "ready" if row["media_type"] in queries.types.IMAGE_TYPES else "reading"
            values = (row["user_id"] if row["user_id"] in users else min(users, default=0), digest, len(data), status)
            kept = (data and users) and new.execute(
                "UPDATE OR IGNORE attachments SET user_id = ?, sha256 = ?, size_bytes = ?, status = ?, text_bytes = 0,"
                " characters = 0, pages = NULL, problem = NULL, uploaded_at = NULL WHERE id = ?",
                (*values, attachment_id),
            ).rowcount
            if not kept:
                self.damaged += row["sha256"] is not None and row["uploaded_at"] is None
                new.execute("DELETE FROM attachments WHERE id = ?", (attachment_id,))
                continue
            for user_id in set(users) - {values[0]}:
                copy_id = queries.attachments.add(new, user_id, data, row["media_type"], row["name"])
                for table, messages in tables:
                    new.execute(
                        f"UPDATE {table} SET attachment_id = ? WHERE rowid IN"
                        f" (SELECT rowid FROM ({owners.format(table, messages)}) WHERE attachment_id = ? AND user_id = ?)",
                        (copy_id, attachment_id, user_id),
                    )
        for table in ("message_attachments", "queued_attachments", "sent_pages", "attachment_data"):
            orphans = new.execute(f"DELETE FROM {table} WHERE attachment_id NOT IN (SELECT id FROM attachments)")
            self.damaged += orphans.rowcount
        places = new.execute(  # without the parts that were lost
            "SELECT row_number() OVER (PARTITION BY attachment_id ORDER BY part) - 1 AS place, attachment_id, part"
            " FROM attachment_data ORDER BY attachment_id, part"
        ).fetchall()
        renumber = "UPDATE attachment_data SET part = ? WHERE attachment_id = ? AND part = ?"
        new.executemany(renumber, [tuple(row) for row in places if row["place"] != row["part"]])

    def _index(self) -> None:
        """Fill the search indexes, and name recovered conversations after their first message."""
        new = self.new
        for row in new.execute("SELECT id, user_id, title FROM conversations").fetchall():
            title = row["title"]
            if title == RECOVERED_TITLE:
                first = "SELECT content FROM messages WHERE conversation_id = ? ORDER BY id LIMIT 1"
                message = new.execute(first, (row["id"],)).fetchone()
                title = queries.conversations.title_from(message[0]) if message else title
            key = queries.types.title_key(title)
            new.execute("UPDATE conversations SET title = ?, title_key = ? WHERE id = ?", (title, key, row["id"]))
            search.index_title(new, row["user_id"], row["id"], title)
        messages = (
            "SELECT m.id, m.content, c.user_id FROM messages m JOIN conversations c ON c.id = m.conversation_id"
            " ORDER BY m.id"
        )
        for row in new.cursor().execute(messages):
            search.index_message(new, row["user_id"], row["id"], row["content"])


def _is_valid(table: str, column: sqlite3.Row, value: Any) -> bool:
    """Return whether the column may hold the value."""
    name = column["name"]
    if value is None:
        return not column["notnull"]
    if not isinstance(value, PYTHON_TYPES[column["type"]]):
        return False
    if not isinstance(value, str):
        return True
    if (table, name) in ALLOWED_VALUES:
        return value in ALLOWED_VALUES[table, name]
    if name.endswith("_at") or name == "last_login":
        return TIME.fullmatch(value) is not None
    if name in JSON_COLUMNS:
        with contextlib.suppress(ValueError):
            json.loads(value)
            return True
        return False
    return ZEROS not in value


def _defaults(table: str, rowid: int) -> dict[str, Any]:
    """Return values for the columns that a row needs and whose true values may be lost."""
    now = db.now()
    if table == "users":  # cannot sign in until `fireside reset-password` sets a password
        name = f"user-{rowid or 'recovered'}"
        return {"username": name, "password_hash": "", "role": "user", "status": "disabled", "created_at": now}
    if table == "conversations":
        return {"user_id": 0, "title": RECOVERED_TITLE, "title_key": "", "created_at": now, "updated_at": now}
    if table in ("prompts", "presets"):
        name = f"{RECOVERED_TITLE} {rowid}"
        row = {"name": name, "name_key": queries.types.title_key(name), "created_at": now, "updated_at": now}
        return row | ({"content": LOST_TEXT} if table == "prompts" else {})
    if table == "folders":
        return {"user_id": 0, "name": f"{RECOVERED_TITLE} {rowid}"}
    if table == "messages":
        return {"created_at": now, "role": "user", "content": LOST_TEXT, "status": "complete"}
    if table == "queued_messages":
        return {"created_at": now, "content": LOST_TEXT}
    if table == "attachments":
        kind, size, status = queries.attachments.OTHER, 0, "reading"
        return {"user_id": 0, "media_type": kind, "size_bytes": size, "status": status, "created_at": now}
    return {}
