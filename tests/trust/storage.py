"""Durability: a disk that is full at any write, a file that is damaged anywhere, and a migration that is killed at any statement.

RLIMIT_FSIZE simulates a full disk: a write beyond the limit fails. The limit holds for a whole process, so those proofs run in a process
of their own: `python -m tests.trust.storage full FOLDER COUNT`.
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
from collections import Counter
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
from . import ROOT, Figures, fireside

Rows = dict[str, list[tuple[Any, ...]]]  # by table

PAGE_BYTES = 4096
FRAME_BYTES = PAGE_BYTES + 24  # of the WAL, for a page


def _in_own_process(proof: str, count: int) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.trust.storage", proof, folder, str(count)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return msgspec.json.decode(done.stdout, type=Figures) if done.returncode == 0 else Figures(1, [done.stderr])


def full(size: int) -> Figures:
    return _in_own_process("full", size)


def damaged(size: int) -> Figures:
    return asyncio.run(_damaged(size))


def migration(size: int) -> Figures:
    return _in_own_process("migration", size)


def read_rows(path: Path) -> Rows:
    """Return the rows of every table except the search indexes. Raises when SQLite finds an error in the file."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        tables = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND sql LIKE '%STRICT%'")
        return {
            name: connection.execute(f"SELECT * FROM {name} ORDER BY 1").fetchall() for (name,) in tables.fetchall()
        }


def _files(path: Path) -> list[Path]:
    """Return the database file with its WAL and index, as far as they exist."""
    return list(path.parent.glob(f"{path.name}*"))


def _copy_fresh(original: Path, path: Path) -> None:
    for old in _files(path):
        old.unlink()
    shutil.rmtree(path.parent / "backups", ignore_errors=True)
    shutil.copy(original, path)


# ---- a full disk

STEPS = 48


class Workload:
    """Transactions like those of the service, and what of them was acknowledged."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.questions: dict[int, list[str]] = {}  # by conversation
        self.answers: dict[int, str] = {}  # by message
        self.refused = 0

    async def step(self, number: int) -> None:
        write, text = self.database.write, f"Question {number} " + "word " * (number * 37 % 300)
        if number % 4 == 0 or not self.questions:
            made = await write(queries.conversations.add_conversation, 1, {"title": f"Conversation {number}"})
            self.questions[made.id] = []
        conversation_id = list(self.questions)[-1]
        if number % 4 == 1:
            await write(queries.messages.add_message, 1, conversation_id, text)
            self.questions[conversation_id].append(text)
        elif number % 4 == 2 and self.questions[conversation_id]:
            await self._answer(conversation_id, number)
        elif number % 16 == 3 and len(self.questions) > 1:
            first = next(iter(self.questions))
            await write(queries.conversations.hide_conversation, 1, first)
            del self.questions[first]
            await queries.conversations.remove_hidden(self.database, [first])

    async def _answer(self, conversation_id: int, number: int) -> None:
        write, request = self.database.write, AnswerRequest(retry=True)
        begun = await write(queries.generations.begin_answer, 1, conversation_id, request, "lmstudio", "a model")
        text = f"Answer {number} " + "and so on " * (number * 53 % 300)
        recording = Recording(begun.message_id, "complete", text, "", f"[{len(text)}]")
        try:
            await write(queries.generations.finish_generation, begun.generation_id, recording)
        except StorageUnavailable:  # the service repeats it until it succeeds
            self.refused += 1
            with _file_size_limit(resource.RLIM_INFINITY):
                await write(queries.generations.finish_generation, begun.generation_id, recording)
        self.answers[begun.message_id] = text

    async def check(self) -> None:
        """Exactly what was acknowledged can be read now."""
        listed = await self.database.read(queries.conversations.list_conversations, 1)
        assert {conversation.id for conversation in listed} == set(self.questions)
        for conversation_id, questions in self.questions.items():
            found = await self.database.read(_messages, conversation_id)
            assert [row["content"] for row in found if row["role"] == "user"] == questions
            assert all(row["role"] == "user" or row["content"] == self.answers[row["id"]] for row in found)


def _messages(conn: sqlite3.Connection, conversation_id: int) -> list[sqlite3.Row]:
    return conn.execute("SELECT * FROM messages WHERE conversation_id = ? ORDER BY id", (conversation_id,)).fetchall()


@contextlib.contextmanager
def _file_size_limit(size: int) -> Iterator[None]:
    before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if size < 0 else size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, hard))


async def _full(folder: Path, count: int) -> Figures:
    figures, original = Figures(), folder / "original.db"
    database = await db.open_database(original)
    await database.write(queries.accounts.add_first_user, "ann", "")
    await database.close()
    needed, _ = await _work_within(original, folder, resource.RLIM_INFINITY, figures)
    limits = list(range(0, needed + FRAME_BYTES, FRAME_BYTES))
    chosen = limits if count >= len(limits) else sorted(random.Random(5).sample(limits, count))
    refused = sum([(await _work_within(original, folder, limit, figures))[1] for limit in chosen])
    figures.more = f"{len(limits)} possible file sizes at which the disk is full; {refused:,} writes refused"
    return figures


async def _work_within(original: Path, folder: Path, limit: int, figures: Figures) -> tuple[int, int]:
    """Run the workload with a limit on file sizes. Return the size of the largest file and the number of refused writes."""
    path = folder / "full.db"
    _copy_fresh(original, path)
    database = await db.open_database(path)
    work = Workload(database)
    try:
        for number in range(STEPS):
            with _file_size_limit(limit):
                try:
                    await work.step(number)
                except StorageUnavailable:
                    work.refused += 1
                await work.check()
        await work.step(0)  # without the limit
        await work.check()
        largest = max(file.stat().st_size for file in _files(path))
    except Exception as error:
        figures.expect(False, f"at {limit} bytes: {error!r}")
        return 0, work.refused
    finally:
        await database.close()
    read_rows(path)  # checks the file
    kept = {content for (content,) in _query(path, "SELECT content FROM messages")}
    acknowledged = {text for texts in work.questions.values() for text in texts}
    figures.expect(acknowledged <= kept, f"at {limit} bytes: acknowledged messages are lost")
    return largest, work.refused


def _query(path: Path, sql: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


# ---- a damaged file


DAMAGES = ("flipped bit", "random bytes", "zeroed page", "truncation")


def _damage(kind: str, data: bytearray, at: int, chance: random.Random) -> None:
    match kind:
        case "flipped bit":
            data[at] ^= 1 << chance.randrange(8)
        case "random bytes":
            data[at : at + 64] = chance.randbytes(len(data[at : at + 64]))
        case "zeroed page":
            start = at // PAGE_BYTES * PAGE_BYTES
            data[start : start + PAGE_BYTES] = bytes(PAGE_BYTES)
        case "truncation":
            del data[at:]


REFUSED, UNAVAILABLE, UNNOTICED = "refused at the start", "answered 503", "not noticed"


async def _damaged(count: int) -> Figures:
    figures, chance, salvaged = Figures(), random.Random(11), list[float]()
    outcomes = Counter({REFUSED: 0, UNAVAILABLE: 0, UNNOTICED: 0})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        original = await _filled(folder)
        before, data = read_rows(original), original.read_bytes()
        for number in range(count):
            damaged = bytearray(data)
            at = chance.randrange(100 if number % 10 == 0 else len(data))  # each tenth in the file's header
            kind = DAMAGES[number % len(DAMAGES)]
            _damage(kind, damaged, at, chance)
            case = folder / f"case{number}"
            shutil.copytree(original.parent, case)
            (case / "fireside.db").write_bytes(damaged)
            outcome, wrong = await _serve_damaged(case, bytes(damaged))
            outcomes[outcome] += 1
            if outcome == REFUSED:
                salvaged.append(_salvaged(case / "fireside.db") / len(before["messages"]))
            wrong = wrong or _restored(case, before)
            figures.expect(not wrong, f"{kind} at {at}: {wrong}")
            shutil.rmtree(case)
    share = sum(salvaged) / max(len(salvaged), 1)
    figures.more = ", ".join(f"{number} {outcome}" for outcome, number in outcomes.items())
    figures.more += (
        f"; each restored from its backup; `salvage` recovered {share:.0%} of the messages of the refused files"
    )
    return figures


async def _filled(folder: Path) -> Path:
    """Return a database with some of everything, and its backup beside it."""
    path = folder / "data" / "fireside.db"
    async with fireside() as (running, _):
        ann = await running.first()
        await running.join(ann, "bob")
        for number in range(30):
            conversation_id = await ann.conversation(f"Question {number} " + "word " * 200, title=f"Title {number}")
            await ann.answer(conversation_id, provider_id="lmstudio", model="llama-3.2-3b-instruct")
        await asyncio.to_thread(db.copy, running.config.database, path)
    db.back_up_daily(path, 7)
    return path


READS = ("/health", "/conversations", "/conversations?q=title", "/search?q=word", "/usage", "/export")


async def _serve_damaged(case: Path, damaged: bytes) -> tuple[str, str]:
    """Start the service and use it. Return the outcome, and what was wrong with it."""
    try:
        db.prepare(case / "fireside.db")
    except DatabaseUnusable as error:
        changed = (case / "fireside.db").read_bytes() != damaged
        named = str(case / "backups") in str(error)
        return REFUSED, "the refused file was changed" if changed else "" if named else f"names no backup: {error}"
    statuses = set()
    async with Running(case) as running:
        try:
            token = await running.state.auth.login_link("ann")
        except StorageUnavailable:
            return UNAVAILABLE, ""
        person = running.anybody()
        answer = await person.post("/auth/link", json={"token": token})
        statuses.add(answer.status_code)
        if answer.status_code == 200:
            person.headers["X-CSRF-Token"] = good(answer)["csrf_token"]
            for path in (*READS, *(f"/conversations/{number}/messages?render=true" for number in range(1, 31))):
                try:
                    statuses.add((await person.get(path)).status_code)
                except (
                    httpx.RemoteProtocolError
                ):  # a begun export is cut off, so that it cannot pass for a complete one
                    statuses.add(503)
            statuses.add((await person.post("/conversations/1/messages", json={"content": "Hello?"})).status_code)
    wrong = "" if statuses <= {200, 404, 503} else f"answered {statuses}"
    return UNAVAILABLE if 503 in statuses else UNNOTICED, wrong


def _salvaged(damaged: Path) -> int:
    """Return the number of salvaged messages."""
    try:
        return salvage.salvage(damaged, damaged.with_name("salvaged.db")).messages
    except DatabaseUnusable:
        return 0


def _restored(case: Path, before: Rows) -> str:
    [backup] = (case / "backups").glob("daily-*.db")
    db.restore(backup, case / "fireside.db")
    return "" if read_rows(case / "fireside.db") == before else "the restored rows differ"


# ---- a killed migration

SCRIPTS = (
    """
    CREATE TABLE labels (id INTEGER PRIMARY KEY, name TEXT NOT NULL) STRICT;
    INSERT INTO labels (name) SELECT title FROM conversations ORDER BY id;
    ALTER TABLE conversations ADD COLUMN label_id INTEGER REFERENCES labels (id);
    UPDATE conversations SET label_id = (SELECT id FROM labels WHERE name = title);
    CREATE INDEX conversations_with_label ON conversations (label_id);
    """,
    """
    CREATE TABLE names (id INTEGER PRIMARY KEY, name TEXT NOT NULL, length INTEGER NOT NULL) STRICT;
    INSERT INTO names SELECT id, name, length(name) FROM labels;
    UPDATE users SET last_login = NULL;
    DELETE FROM sessions;
    """,
)
MIGRATIONS = (*db.MIGRATIONS, *SCRIPTS)


async def _migration(folder: Path, count: int) -> Figures:
    figures, path = Figures(), folder / "fireside.db"
    original = await _filled(folder)
    before = read_rows(original)
    _copy_fresh(original, path)
    statements: list[str] = []
    with _traced(statements.append):
        db.prepare(path, MIGRATIONS)
    places = range(len(statements))
    versions = [0, 0, 0]
    for place in places if count >= len(places) else sorted(random.Random(1).sample(places, count)):
        _copy_fresh(original, path)
        _migrate_and_die(path, place)
        version, wrong = _check_migrated(path, before)
        versions[version] += 1
        db.prepare(path, MIGRATIONS)
        end, late = _check_migrated(path, before)
        figures.expect(not wrong and not late and end == 2, f"killed at statement {place}: {wrong or late or end}")
    figures.more = f"{len(statements)} statements; schema after the kill: {versions[0]} x old, {versions[1]} x next, {versions[2]} x newest"
    return figures


@contextlib.contextmanager
def _traced(on_statement: Callable[[str], object]) -> Iterator[None]:
    """Call `on_statement` before each statement of each new connection."""
    connect = sqlite3.connect

    def connect_traced(*args: Any, **kw: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*args, **kw)
        connection.set_trace_callback(on_statement)
        return connection

    with mock.patch.object(sqlite3, "connect", connect_traced):
        yield


def _migrate_and_die(path: Path, place: int) -> None:
    """Migrate in a child process that is killed before statement number `place`."""
    child = os.fork()
    if child == 0:
        left = iter(range(place))

        def count(_: str) -> None:
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)

        with _traced(count):
            db.prepare(path, MIGRATIONS)
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "it was not killed"


def _check_migrated(path: Path, before: Rows) -> tuple[int, str]:
    """Return how many of SCRIPTS have run, and what is wrong."""
    now = read_rows(path)
    version: int = _query(path, "PRAGMA user_version")[0][0] - db.VERSION
    backups = list((path.parent / "backups").glob(f"before-schema-{db.VERSION + 1}-*.db"))
    tables = ("messages", "conversations", "invites", "generations")
    old = {name: [row[: len(before[name][0])] for row in now[name]] for name in tables}  # without new columns
    checks = {
        "tables": set(now) == set(before) | set(("labels", "names")[:version]),
        "rows": all(rows == before[name] for name, rows in old.items()),
        "labels": not version or len(now["labels"]) == len(before["conversations"]),
        "names": version < 2 or (not now["sessions"] and len(now["names"]) == len(now["labels"])),
        "backup": bool(backups or not version) and all(read_rows(backup) == before for backup in backups),
    }
    return version, ", ".join(name for name, right in checks.items() if not right)


if __name__ == "__main__":
    name, folder, count = sys.argv[1:]
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    proof = {"full": _full, "migration": _migration}[name]
    sys.stdout.write(msgspec.json.encode(asyncio.run(proof(Path(folder), int(count)))).decode())
