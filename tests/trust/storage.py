"""What is kept when the disk is full at any write, when the file is damaged anywhere, and when a migration is killed anywhere.

A full disk is made with RLIMIT_FSIZE: a write beyond it fails as on a disk that has no room. The limit holds for a whole process, so
this one runs itself as another: `python -m tests.trust.storage full FOLDER COUNT`.
"""

import asyncio
import contextlib
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import msgspec
from fireside import db, queries
from fireside.cli import salvage
from fireside.db import Database, DatabaseUnusable
from fireside.errors import StorageUnavailable
from fireside.queries.generations import AnswerRequest, Recording

from ..live import Running, good
from . import Figures, fireside

FRAME = 4096 + 24  # bytes by which SQLite's log grows: a page and its head
ROOT = Path(__file__).parents[2]


def _elsewhere(what: str, count: int) -> Figures:
    """Figures of this module, run as a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.trust.storage", what, folder, str(count)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        return Figures(1, [done.stderr])
    return msgspec.json.decode(done.stdout, type=Figures)


def rows(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """All that a database holds, but for its indexes. Raises when SQLite finds fault with it."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        tables = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND sql LIKE '%STRICT%'")
        return {
            name: connection.execute(f"SELECT * FROM {name} ORDER BY 1").fetchall() for (name,) in tables.fetchall()
        }


# ---- a full disk


def full(size: int) -> Figures:
    return _elsewhere("full", size)


class Work:
    """What people do, a transaction a step, and what of it was acknowledged."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.kept: dict[int, list[str]] = {}  # conversation: its questions
        self.answers: dict[int, str] = {}  # message: its text
        self.refused = 0

    async def step(self, number: int) -> None:
        write, text = self.database.write, f"Question {number} " + "word " * (number * 37 % 300)
        if number % 4 == 0 or not self.kept:
            made = await write(queries.conversations.add_conversation, 1, {"title": f"Conversation {number}"})
            self.kept[made.id] = []
        conversation_id = list(self.kept)[-1]
        if number % 4 == 1:
            await write(queries.messages.add_message, 1, conversation_id, text)
            self.kept[conversation_id].append(text)
        elif number % 4 == 2 and self.kept[conversation_id]:
            await self._answer(conversation_id, number)
        elif number % 16 == 3 and len(self.kept) > 1:
            first = next(iter(self.kept))
            await write(queries.conversations.hide_conversation, 1, first)
            del self.kept[first]
            await queries.conversations.remove_hidden(self.database, [first])

    async def _answer(self, conversation_id: int, number: int) -> None:
        begun = await self.database.write(
            queries.generations.begin_answer,
            1,
            conversation_id,
            AnswerRequest(retry=True),
            "lmstudio",
            "a model",
        )
        text = f"Answer {number} " + "and so on " * (number * 53 % 300)
        recording = Recording(begun.message_id, "complete", text, "", f"[{len(text)}]")
        try:
            await self.database.write(queries.generations.finish_generation, begun.generation_id, recording)
            self.answers[begun.message_id] = text
        except StorageUnavailable:  # the hub would go on trying; here the start recovers it
            self.refused += 1
            with _room(resource.RLIM_INFINITY):
                await self.database.write(queries.generations.finish_generation, begun.generation_id, recording)
            self.answers[begun.message_id] = text

    async def check(self) -> None:
        """What was acknowledged can be read, now, and nothing else is there."""
        listed = await self.database.read(queries.conversations.list_conversations, 1)
        assert {conversation.id for conversation in listed} == set(self.kept)
        for conversation_id, questions in self.kept.items():
            found = await self.database.read(_messages, conversation_id)
            assert [row["content"] for row in found if row["role"] == "user"] == questions
            for row in found:
                assert row["role"] == "user" or row["content"] == self.answers[row["id"]]


def _messages(conn: sqlite3.Connection, conversation_id: int) -> list[sqlite3.Row]:
    return conn.execute("SELECT * FROM messages WHERE conversation_id = ? ORDER BY id", (conversation_id,)).fetchall()


@contextlib.contextmanager
def _room(size: int) -> Iterator[None]:
    """No file grows beyond this size."""
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most if size < 0 else size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))


STEPS = 48


async def _full(folder: Path, count: int) -> Figures:
    figures = Figures()
    original = folder / "original.db"
    database = await db.open_database(original)
    await database.write(queries.accounts.add_first_user, "ann", "")
    await database.close()
    needed, _ = await _at_limit(original, folder, resource.RLIM_INFINITY, figures)
    limits = list(range(0, needed + FRAME, FRAME))
    chosen = limits if count >= len(limits) else sorted(random.Random(5).sample(limits, count))
    refused = 0
    for limit in chosen:
        _, no = await _at_limit(original, folder, limit, figures)
        refused += no
    figures.more = (
        f"of {len(limits)} places where the disk can be full; {refused:,} writes were refused, 0 acknowledged ones lost"
    )
    return figures


async def _at_limit(original: Path, folder: Path, limit: int, figures: Figures) -> tuple[int, int]:
    """All the work with so much room. Returns how large the largest file has become, and how many writes were refused."""
    path = folder / "full.db"
    _fresh(original, path)
    database = await db.open_database(path)
    work = Work(database)
    try:
        for number in range(STEPS):
            try:
                with _room(limit):
                    await work.step(number)
            except StorageUnavailable:
                work.refused += 1
            with _room(limit):
                await work.check()
        await work.step(0)  # there is room again
        await work.check()
        largest = max(file.stat().st_size for file in _parts(path))
    except Exception as error:
        figures.expect(False, f"with room for {limit} bytes: {error!r}")
        return 0, work.refused
    finally:
        await database.close()
    rows(path)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        kept = set(connection.execute("SELECT role, content FROM messages"))
    said = {("user", text) for texts in work.kept.values() for text in texts}
    figures.expect(said <= kept, f"with room for {limit} bytes: acknowledged messages are lost")
    return largest, work.refused


# ---- a damaged file


def damaged(size: int) -> Figures:
    return asyncio.run(_damaged(size))


def _zero_page(data: bytearray, at: int, chance: random.Random) -> None:
    start = at // 4096 * 4096
    data[start : start + 4096] = bytes(4096)


def _flip(data: bytearray, at: int, chance: random.Random) -> None:
    data[at] ^= 1 << chance.randrange(8)


def _scramble(data: bytearray, at: int, chance: random.Random) -> None:
    data[at : at + 64] = chance.randbytes(len(data[at : at + 64]))


def _cut(data: bytearray, at: int, chance: random.Random) -> None:
    del data[at:]


DAMAGES: tuple[Callable[[bytearray, int, random.Random], None], ...] = (_flip, _scramble, _zero_page, _cut)


async def _damaged(count: int) -> Figures:
    figures, chance = Figures(), random.Random(11)
    outcomes = {"refused at the start": 0, "answered 503": 0, "unnoticed, all answered": 0}
    salvaged: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        original = await _filled(folder)
        right = rows(original)
        data = original.read_bytes()
        for number in range(count):
            spoiled = bytearray(data)
            at = chance.randrange(100) if number % 10 == 0 else chance.randrange(len(data))
            how = DAMAGES[number % len(DAMAGES)]
            how(spoiled, at, chance)
            place = folder / f"case{number}"
            shutil.copytree(original.parent, place)
            (place / "fireside.db").write_bytes(spoiled)
            outcome, wrong = await _serve_damaged(place, bytes(spoiled))
            if outcome:
                outcomes[outcome] += 1
            if outcome == "refused at the start":
                salvaged.append(_salvaged(place / "fireside.db") / len(right["messages"]))
            if not wrong:
                wrong = _restored(place, right)
            figures.expect(not wrong, f"{how.__name__} at {at}: {wrong}")
            shutil.rmtree(place)
    figures.more = (
        ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items()) + "; every one restored from its backup;"
        f" `salvage` got {sum(salvaged) / max(len(salvaged), 1):.0%} of the messages out of those that were refused"
    )
    return figures


async def _filled(folder: Path) -> Path:
    """A database with a bit of everything, and its backup."""
    async with fireside() as (running, _):
        ann = await running.first()
        await running.join(ann, "bob")
        for number in range(30):
            conversation_id = await ann.conversation(f"Question {number} " + "word " * 200, title=f"Title {number}")
            await ann.answer(conversation_id, provider_id="lmstudio", model="llama-3.2-3b-instruct")
        source = running.config.database
        await asyncio.to_thread(db.copy, source, folder / "data" / "fireside.db")
    db.back_up_daily(folder / "data" / "fireside.db", 7)
    return folder / "data" / "fireside.db"


READS = ("/health", "/conversations", "/conversations?q=title", "/search?q=word", "/usage", "/export")


async def _serve_damaged(place: Path, spoiled: bytes) -> tuple[str, str]:
    """What became of it, and what was wrong with that."""
    try:
        db.prepare(place / "fireside.db")
    except DatabaseUnusable as error:
        if (place / "fireside.db").read_bytes() != spoiled:
            return "", "the file that it refused was changed"
        said = str(error)
        return "refused at the start", "" if str(place / "backups") in said else f"does not name the backup: {said}"
    statuses = set()
    async with Running(place) as running:
        try:
            key = await running.state.auth.login_link("ann")
        except StorageUnavailable:
            return "answered 503", ""
        person = running.anybody()
        answer = await person.post("/auth/link", json={"token": key})
        statuses.add(answer.status_code)
        if answer.status_code == 200:
            person.headers["X-CSRF-Token"] = good(answer)["csrf_token"]
            for path in (*READS, *(f"/conversations/{number}/messages?render=true" for number in range(1, 31))):
                try:
                    statuses.add((await person.get(path)).status_code)
                except (
                    httpx.RemoteProtocolError
                ):  # an export that had begun is cut off: it cannot be taken for a whole one
                    statuses.add(503)
            statuses.add((await person.post("/conversations/1/messages", json={"content": "Hello?"})).status_code)
    wrong = "" if statuses <= {200, 404, 503} else f"answered {statuses}"
    return ("answered 503" if 503 in statuses else "unnoticed, all answered"), wrong


def _salvaged(damaged: Path) -> int:
    """How many messages."""
    try:
        return salvage.salvage(damaged, damaged.with_name("salvaged.db")).messages
    except DatabaseUnusable:
        return 0


def _restored(place: Path, right: dict[str, list[tuple[Any, ...]]]) -> str:
    [backup] = (place / "backups").glob("daily-*.db")
    db.restore(backup, place / "fireside.db")
    return "" if rows(place / "fireside.db") == right else "what was restored is not what was backed up"


# ---- a killed migration

SCRIPTS = (
    """BEGIN IMMEDIATE;
    CREATE TABLE drawers (id INTEGER PRIMARY KEY, name TEXT NOT NULL) STRICT;
    INSERT INTO drawers (name) SELECT title FROM conversations ORDER BY id;
    ALTER TABLE conversations ADD COLUMN drawer_id INTEGER REFERENCES drawers (id);
    UPDATE conversations SET drawer_id = (SELECT id FROM drawers WHERE name = title);
    CREATE INDEX conversations_in_drawer ON conversations (drawer_id);
    PRAGMA user_version = {0};
    COMMIT;""",
    """BEGIN IMMEDIATE;
    CREATE TABLE names (id INTEGER PRIMARY KEY, name TEXT NOT NULL, length INTEGER NOT NULL) STRICT;
    INSERT INTO names SELECT id, name, length(name) FROM drawers;
    UPDATE users SET last_login = NULL;
    DELETE FROM sessions;
    PRAGMA user_version = {1};
    COMMIT;""",
)
MIGRATIONS = (*db.MIGRATIONS, *(script.format(db.VERSION + 1, db.VERSION + 2) for script in SCRIPTS))


def migration(size: int) -> Figures:
    return _elsewhere("migration", size)


async def _migration(folder: Path, count: int) -> Figures:
    figures, path = Figures(), folder / "fireside.db"
    original = await _filled(folder)
    before = rows(original)
    statements = _statements(original, folder)
    chosen = range(statements) if count >= statements else sorted(random.Random(1).sample(range(statements), count))
    found = {"old": 0, "between": 0, "new": 0}
    for place in chosen:
        _fresh(original, path)
        _run_and_die(path, place)
        version, wrong = _state(path, before)
        found[version] += 1
        db.prepare(path, MIGRATIONS)
        end, late = _state(path, before)
        figures.expect(not wrong and not late and end == "new", f"killed at statement {place}: {wrong or late or end}")
    figures.more = f"of {statements} statements; afterwards the file was {found['old']} x the old, {found['between']} x the next, {found['new']} x the newest schema, never between two"
    return figures


def _parts(path: Path) -> list[Path]:
    return list(path.parent.glob(f"{path.name}*"))


def _fresh(original: Path, path: Path) -> None:
    for old in _parts(path):
        old.unlink()
    shutil.rmtree(path.parent / "backups", ignore_errors=True)
    shutil.copy(original, path)


def _statements(original: Path, folder: Path) -> int:
    path = folder / "fireside.db"
    _fresh(original, path)
    seen: list[str] = []
    with _traced(seen.append):
        db.prepare(path, MIGRATIONS)
    return len(seen)


@contextlib.contextmanager
def _traced(told: Callable[[str], object]) -> Iterator[None]:
    """`told` hears of each statement before it is done, on every connection that is made."""
    connect = sqlite3.connect

    def watched(*args: Any, **kw: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*args, **kw)
        connection.set_trace_callback(told)
        return connection

    with mock.patch.object(sqlite3, "connect", watched):
        yield


def _run_and_die(path: Path, place: int) -> None:
    """Migrate in a child that is killed before statement number `place`."""
    child = os.fork()
    if child == 0:
        left = place

        def count(_: str) -> None:
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

        with _traced(count):
            db.prepare(path, MIGRATIONS)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "it was not killed"


def _state(path: Path, before: dict[str, list[tuple[Any, ...]]]) -> tuple[str, str]:
    now = rows(path)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        version = connection.execute("PRAGMA user_version").fetchone()[0] - db.VERSION
    expected = set(before) | {"drawers"} if version else set(before)
    expected |= {"names"} if version == 2 else set()
    wrong = "" if set(now) == expected else f"version {version} with tables {sorted(now)}"
    for table in ("messages", "conversations", "invites", "generations"):
        width = len(before[table][0])
        if [row[:width] for row in now[table]] != before[table]:
            wrong = f"{table} has other rows"
    if version and len(now["drawers"]) != len(before["conversations"]):
        wrong = "drawers is not whole"
    if version == 2 and (now["sessions"] or len(now["names"]) != len(now["drawers"])):
        wrong = "names is not whole"
    backups = list((path.parent / "backups").glob(f"before-schema-{db.VERSION + 1}-*.db"))
    if version and not backups:
        wrong = "there is no copy of what was before"
    if any(rows(backup) != before for backup in backups):
        wrong = "the copy is not what was before"
    return ("old", "between", "new")[version], wrong


if __name__ == "__main__":
    what, folder, count = sys.argv[1:]
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    proof = {"full": _full, "migration": _migration}[what]
    sys.stdout.write(msgspec.json.encode(asyncio.run(proof(Path(folder), int(count)))).decode())
