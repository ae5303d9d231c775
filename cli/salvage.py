"""Saves what can be read of a damaged database into a sound one.

SQLite keeps a table in pages. A damaged one costs the rows on it, or of a long row that goes on there its last columns. So rows are
read by their ids, and where one cannot be read whole, column by column; no index is asked. A value that makes no sense is as good
as lost. What a row needs to stay in its place is made up, and says so; never whose it is.
"""

import contextlib
import json
import re
import secrets
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import db, queries
from ..db import DatabaseUnusable
from ..queries import search

LOST = "(This text was on a damaged part of the database and could not be read any more.)"
TITLE = "Recovered"
STRETCH = 100  # ids that are asked for one by one after a damaged place, before the rest is read in one go again
MOST = 50_000  # ids that are tried in vain, before a table is taken to have no more

# Sessions, invites and login links are made anew.
TABLES = ("users", "conversations", "messages", "images", "generations", "generation_parts")
JSON = {"defaults", "settings", "token_usage", "stats", "error", "params", "log"}
WORDS = {
    ("users", "role"): {"user", "admin"},
    ("users", "status"): {"active", "disabled"},
    ("messages", "role"): {"user", "assistant"},
    ("messages", "status"): {"complete", "generating", "canceled", "interrupted", "error"},
}
KINDS: dict[str, type] = {"TEXT": str, "INTEGER": int, "BLOB": bytes}
ZEROS = "\0" * 64  # the last page of a long text that was overwritten with zeros is as long as it was
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}", re.ASCII)


@dataclass
class Saved:
    """How many there are in the new database, and in how many places something was lost: a row, a part of one, or several in a row."""

    users: int = 0
    conversations: int = 0
    messages: int = 0
    damaged: int = 0


def salvage(source: Path, target: Path) -> Saved:
    """Write a new database to `target`; `source` is not changed. The caller holds the lock of its data directory.

    Raises DatabaseUnusable when `source` cannot be asked at all, FileExistsError when `target` is there.
    """
    db.create_private(target).close()
    try:
        with contextlib.closing(db.open_damaged(source)) as old, contextlib.closing(sqlite3.connect(target)) as new:
            db.create(new)
            new.row_factory = sqlite3.Row
            saved = _Salvage(old, new).run()
            if not saved.messages:
                raise sqlite3.DatabaseError("there is no message in what is left")
            new.commit()
            db.check(new)
        return saved
    except BaseException as error:
        target.unlink()
        if isinstance(error, sqlite3.DatabaseError):
            raise DatabaseUnusable(f"{source}: nothing of it can be read: {error}") from None
        raise


class _Salvage:
    def __init__(self, old: sqlite3.Connection, new: sqlite3.Connection) -> None:
        self.old = old
        self.old.text_factory = self._text
        self.new = new
        self.saved = Saved()
        self.illegible = 0
        self.nobody: int | None = None

    def run(self) -> Saved:
        for table in TABLES:
            self._copy(table)
        self._give_owners()
        self._mend_trees()
        self._index()
        self.new.execute(db.RECOUNT_STORED_BYTES)
        counted = (self.new.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in TABLES[:3])
        self.saved.users, self.saved.conversations, self.saved.messages = counted
        return self.saved

    # ---- rows

    def _copy(self, table: str) -> None:
        declared = {row["name"]: row for row in self.new.execute(f"PRAGMA table_info({table})")}
        there = {row["name"] for row in self.old.execute(f"PRAGMA table_info({table})")}
        columns = [name for name in declared if name in there]
        if not columns:
            self.saved.damaged += 1
            return
        last = self._last(table)
        illegible = self.illegible
        for rowid, row in self._rows(table, columns, MOST if last is None else last):
            sound = {name: value for name, value in row.items() if _makes_sense(table, declared[name], value)}
            whole = len(sound) == len(columns) and illegible == self.illegible
            illegible = self.illegible
            needed = _made_up(table, rowid) | sound
            names, marks = ", ".join(needed), ", ".join("?" * len(needed))
            try:
                self.new.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", [*needed.values()])
            except sqlite3.IntegrityError:  # something else that it needs is lost, or it is there twice
                whole = False
            self.saved.damaged += not whole
        if last and self.new.execute("SELECT 1 FROM sqlite_sequence WHERE name = ?", (table,)).fetchone():
            self.new.execute("UPDATE sqlite_sequence SET seq = max(seq, ?) WHERE name = ?", (last, table))

    def _last(self, table: str) -> int | None:
        """The id of the last row that there is or was."""
        found = []
        for sql in (f"SELECT seq FROM sqlite_sequence WHERE name = '{table}'", f"SELECT max(rowid) FROM {table}"):
            with contextlib.suppress(sqlite3.DatabaseError):
                found += [row[0] for row in self.old.execute(sql) if isinstance(row[0], int)]
        return max(found, default=None)

    def _rows(self, table: str, columns: list[str], last: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """By their rowids. Of a damaged one, the columns that can be read."""
        at, vain, gap, names = 0, 0, False, ", ".join(columns)
        while at < last and vain < MOST:
            try:
                sql = f"SELECT rowid AS at, {names} FROM {table} WHERE rowid > ? ORDER BY rowid"
                for row in self.old.execute(sql, (at,)):
                    at, vain = row["at"], 0
                    yield at, {name: row[name] for name in columns}
                return
            except sqlite3.DatabaseError:
                for rowid in range(at + 1, min(at + STRETCH, last) + 1):
                    found = self._columns(table, columns, rowid)
                    self.saved.damaged += found is None and not gap
                    gap, vain = found is None, 0 if found else vain + 1
                    if found:
                        yield rowid, found
                at += STRETCH

    def _text(self, data: bytes) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError:
            self.illegible += 1
            return data.decode("utf-8", "replace")

    def _columns(self, table: str, columns: list[str], rowid: int) -> dict[str, Any] | None:
        """Those that can be read; none where there is no such row; None where nobody can tell."""
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

    # ---- what belongs to what

    def _give_owners(self) -> None:
        """A conversation whose owner is lost is the only user's that there ever was; or a new one's, who has to be let in first."""
        new = self.new
        orphans = "SELECT DISTINCT conversation_id FROM messages EXCEPT SELECT id FROM conversations"
        for (conversation_id,) in new.execute(orphans).fetchall():
            fields = _made_up("conversations", conversation_id) | {"user_id": 0}
            new.execute(
                f"INSERT INTO conversations (id, {', '.join(fields)}) VALUES (?{', ?' * len(fields)})",
                (conversation_id, *fields.values()),
            )
            self.saved.damaged += 1
        for (user_id,) in new.execute(
            "SELECT DISTINCT user_id FROM conversations EXCEPT SELECT id FROM users"
        ).fetchall():
            if user_id:
                self._add_user(user_id)
        for (conversation_id,) in new.execute("SELECT id FROM conversations WHERE user_id = 0").fetchall():
            owner = self._somebody()
            new.execute("UPDATE conversations SET user_id = ?, source = NULL WHERE id = ?", (owner, conversation_id))
        admin = "SELECT 1 FROM users WHERE role = 'admin' AND status = 'active'"
        if not new.execute(admin).fetchone():
            new.execute("UPDATE users SET role = 'admin', status = 'active' WHERE id = (SELECT min(id) FROM users)")

    def _add_user(self, user_id: int | None) -> int:
        fields = _made_up("users", user_id or 0)
        if self.new.execute("SELECT 1 FROM users WHERE username = ?", (fields["username"],)).fetchone():
            fields["username"] += f"-{secrets.token_hex(4)}"
        names = ", ".join(fields)
        sql = f"INSERT INTO users (id, {names}) VALUES (?{', ?' * len(fields)})"
        return db.insert(self.new, sql, (user_id, *fields.values()))

    def _somebody(self) -> int:
        if self.nobody is None:
            alone = [row[0] for row in self.new.execute("SELECT id FROM users")] == [self._last("users")] == [1]
            self.nobody = 1 if alone else self._add_user(None)
        return self.nobody

    def _mend_trees(self) -> None:
        """A message whose parent is lost follows the one before it."""
        new = self.new
        for table, key, owner in (
            ("images", "message_id", "messages"),
            ("generations", "message_id", "messages"),
            ("generation_parts", "generation_id", "generations"),
        ):
            lost = new.execute(f"DELETE FROM {table} WHERE {key} NOT IN (SELECT id FROM {owner})").rowcount
            self.saved.damaged += lost
        before = "SELECT {0} FROM messages p WHERE p.conversation_id = messages.conversation_id AND p.id < messages.id"
        new.execute(
            f"UPDATE messages SET parent_id = ({before.format('max(p.id)')}) WHERE parent_id IS NOT NULL"
            f" AND NOT EXISTS ({before.format(1)} AND p.id = messages.parent_id)"
        )
        own = "SELECT {0} FROM messages m WHERE m.conversation_id = conversations.id"
        new.execute(
            f"UPDATE conversations SET active_message_id = ({own.format('max(m.id)')})"
            f" WHERE NOT EXISTS ({own.format(1)} AND m.id = active_message_id)"
        )

    def _index(self) -> None:
        new = self.new
        for row in new.execute("SELECT id, user_id, title FROM conversations").fetchall():
            if row["title"] == TITLE:
                first = "SELECT content FROM messages WHERE conversation_id = ? ORDER BY id LIMIT 1"
                said = new.execute(first, (row["id"],)).fetchone()
                title = queries.conversations.title_from(said[0]) if said else TITLE
            else:
                title = row["title"]
            key = queries.conversations.title_key(title)
            new.execute("UPDATE conversations SET title = ?, title_key = ? WHERE id = ?", (title, key, row["id"]))
            search.index_title(new, row["user_id"], row["id"], title)
        final = (
            "SELECT m.id, m.content, c.user_id FROM messages m JOIN conversations c ON c.id = m.conversation_id"
            " WHERE m.status != 'generating' ORDER BY m.id"
        )
        reader = new.cursor()
        for row in reader.execute(final):
            search.index_message(new, row["user_id"], row["id"], row["content"])


def _makes_sense(table: str, column: sqlite3.Row, value: Any) -> bool:
    """Whether the column may hold that."""
    if value is None:
        return not column["notnull"]
    if not isinstance(value, KINDS[column["type"]]):
        return False
    if not isinstance(value, str):
        return True
    name = column["name"]
    if (table, name) in WORDS:
        return value in WORDS[table, name]
    if ZEROS in value:
        return False
    if name.endswith("_at") or name == "last_login":
        return TIME.fullmatch(value) is not None
    if name in JSON:
        try:
            json.loads(value)
        except ValueError:
            return False
    return True


def _made_up(table: str, rowid: int) -> dict[str, Any]:
    """What a row of it cannot be without, where it can be without the truth of that."""
    now = db.now()
    if table == "users":  # nobody gets in until `fireside reset-password` has given a password
        name = f"user-{rowid or 'recovered'}"
        return {"username": name, "password_hash": "", "role": "user", "status": "disabled", "created_at": now}
    if table == "conversations":
        return {"user_id": 0, "title": TITLE, "title_key": "", "created_at": now, "updated_at": now}
    if table == "messages":
        return {"created_at": now, "role": "user", "content": LOST, "status": "complete"}
    return {}
