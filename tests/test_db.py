"""The database file: a transaction is committed whole or not at all, and a file that cannot be used is left unchanged."""

import asyncio
import contextlib
import os
import random
import re
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fireside import db
from fireside.db import Connection, Database, DatabaseDamaged, DatabaseUnusable
from fireside.errors import Stopping, StorageUnavailable
from fireside.queries import quota


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await db.open_database(tmp_path / "fireside.db")
    await opened.write(lambda conn: conn.execute("CREATE TABLE halves (pair INTEGER, side TEXT, UNIQUE (pair, side))"))
    yield opened
    await opened.close()


def add_pair(conn: Connection, pair: int) -> int:
    conn.execute("INSERT INTO halves VALUES (?, 'left')", (pair,))
    conn.execute("INSERT INTO halves VALUES (?, 'right')", (pair,))
    return pair


def pairs(conn: Connection) -> set[int]:
    """Return the pairs. Fails when half of a pair is missing."""
    sides: dict[int, int] = dict(conn.execute("SELECT pair, count(*) FROM halves GROUP BY pair").fetchall())
    assert set(sides.values()) <= {2}, "half a transaction was committed"
    return set(sides)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Connection]:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=10)) as connection:
        yield connection


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


# ---- transactions


async def test_transaction_of_a_canceled_caller_is_committed_whole_or_not_at_all(database: Database) -> None:
    chance = random.Random(1)
    acknowledged: set[int] = set()

    async def write(pair: int) -> None:
        acknowledged.add(await database.write(add_pair, pair))

    for batch in range(20):
        tasks = [asyncio.create_task(write(batch * 10 + number)) for number in range(10)]
        for task in tasks:
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
            if chance.random() < 0.8:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert 0 < len(acknowledged) < 200
    await database.write(lambda conn: None)  # runs after all transactions whose callers were canceled
    assert await database.read(pairs) >= acknowledged
    with opened(database.path) as other:  # gets the write lock at once: no transaction is left open
        other.execute("PRAGMA busy_timeout = 0")
        other.execute("BEGIN IMMEDIATE")
        add_pair(other, 1_000_000)
        other.execute("COMMIT")
    await database.write(add_pair, 1_000_001)
    assert {1_000_000, 1_000_001} <= await database.read(pairs)


async def test_cancelling_a_caller_does_not_stop_its_running_transaction(database: Database) -> None:
    begun, proceed = threading.Event(), threading.Event()

    def slow(conn: Connection) -> None:
        conn.execute("INSERT INTO halves VALUES (1, 'left')")
        begun.set()
        assert proceed.wait(10)
        conn.execute("INSERT INTO halves VALUES (1, 'right')")

    task = asyncio.create_task(database.write(slow))
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        proceed.set()
        await task
    await database.write(add_pair, 2)
    assert await database.read(pairs) == {1, 2}


async def test_write_waits_for_only_one_transaction_of_another_user(database: Database) -> None:
    begun, proceed, order = threading.Event(), threading.Event(), []

    def slow(conn: Connection, name: str) -> None:
        order.append(name)
        begun.set()
        assert proceed.wait(10)

    ann = [asyncio.create_task(database.write_for(1, slow, "ann")) for _ in range(3)]
    await asyncio.to_thread(begun.wait, 10)
    bob = asyncio.create_task(database.write_for(2, slow, "bob"))
    await asyncio.sleep(0)
    proceed.set()
    await asyncio.gather(*ann, bob)
    assert order == ["ann", "bob", "ann", "ann"]


async def test_canceled_reader_leaves_no_snapshot_open(database: Database) -> None:
    for number in range(30):
        tasks = [asyncio.create_task(database.read(pairs)) for _ in range(10)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await database.write(add_pair, number)
    with opened(database.path) as other:  # an open snapshot would prevent emptying the write-ahead log
        await database.read(pairs)
        busy, _, _ = other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    assert busy == 0


async def test_error_in_a_transaction_rolls_it_back(database: Database) -> None:
    def fails(conn: Connection) -> None:
        conn.execute("INSERT INTO halves VALUES (1, 'left')")
        raise KeyError("no")

    with pytest.raises(KeyError):
        await database.write(fails)
    with pytest.raises(sqlite3.IntegrityError):
        await database.write(lambda conn: (add_pair(conn, 1), conn.execute("INSERT INTO halves VALUES (1, 'left')")))
    assert await database.read(pairs) == set()
    await database.write(add_pair, 1)
    assert await database.read(pairs) == {1}


async def test_readers_cannot_write(database: Database) -> None:
    with pytest.raises(StorageUnavailable):
        await database.read(add_pair, 1)
    with pytest.raises(StorageUnavailable):
        database.read_here(add_pair, 1)
    assert await database.read(pairs) == set()


async def test_read_sees_one_snapshot_and_delays_no_other_transaction(database: Database) -> None:
    await database.write(add_pair, 1)
    looked, written = threading.Event(), threading.Event()

    def look_twice(conn: Connection) -> tuple[set[int], set[int]]:
        first = pairs(conn)
        looked.set()
        assert written.wait(10)
        return first, pairs(conn)

    reading = asyncio.create_task(database.read(look_twice))
    await asyncio.to_thread(looked.wait, 10)
    await database.write(add_pair, 2)
    assert await database.read(pairs) == {1, 2} == database.read_here(pairs)
    written.set()
    assert await reading == ({1}, {1})


async def test_long_reads_that_begin_together_run_side_by_side(database: Database) -> None:
    together = threading.Barrier(2, timeout=10)  # raises BrokenBarrierError when the second read waits for the first
    await asyncio.gather(*(database.read_within(30, lambda conn: together.wait()) for _ in range(2)))


async def test_close_finishes_queued_transactions_and_refuses_later_ones(tmp_path: Path) -> None:
    database = await db.open_database(tmp_path / "fireside.db")
    await database.write(lambda conn: conn.execute("CREATE TABLE halves (pair INTEGER, side TEXT)"))
    queued = [asyncio.create_task(database.write(add_pair, number)) for number in range(20)]
    await asyncio.sleep(0)
    closing = asyncio.create_task(database.close())
    await asyncio.sleep(0)
    for _ in range(2):
        for call in (database.write, database.read, database.write_unsynced):
            with pytest.raises(Stopping):
                await call(pairs)
        with pytest.raises(Stopping):
            database.read_here(pairs)
        await closing
    assert await asyncio.gather(*queued) == list(range(20))
    assert names(tmp_path) == ["fireside.db"], "the last connection to close empties the log"
    with opened(tmp_path / "fireside.db") as connection:
        assert pairs(connection) == set(range(20))


# ---- the file


async def test_files_are_private_to_their_owner(tmp_path: Path) -> None:
    mask = os.umask(0o000)
    try:
        with db.lock(tmp_path / "data" / "fireside"):
            database = await db.open_database(tmp_path / "data" / "fireside" / "fireside.db")
            await database.write(lambda conn: conn.execute("CREATE TABLE t (x)"))
            db.copy(database.path, database.path.parent / "backups" / "copy.db")
            files = [database.path.parent, *database.path.parent.rglob("*")]
            modes = {file.name: file.stat().st_mode & 0o777 for file in files}
            await database.close()
    finally:
        os.umask(mask)
    assert db.check_file(database.path) == db.VERSION
    if os.name == "posix":
        assert modes.pop("fireside") == modes.pop("backups") == 0o700
        assert len(modes) == 5 and set(modes.values()) == {0o600}, modes


async def test_connections_are_configured_for_safety(database: Database) -> None:
    both = {"journal_mode": "wal", "foreign_keys": 1, "trusted_schema": 0, "cell_size_check": 1}

    def pragmas(conn: Connection) -> dict[str, Any]:
        names = (*both, "synchronous", "secure_delete", "query_only")
        return {name: conn.execute(f"PRAGMA {name}").fetchone()[0] for name in names}

    assert await database.write(pragmas) == both | {"synchronous": 2, "secure_delete": 1, "query_only": 0}
    for reader in (await database.read(pragmas), database.read_here(pragmas)):
        assert reader == reader | both | {"query_only": 1}


def test_every_table_is_strict_and_has_an_index_on_each_foreign_key(tmp_path: Path) -> None:
    """Without the index, deleting a parent row reads the whole table of its children."""
    db.prepare(tmp_path / "fireside.db")
    with opened(tmp_path / "fireside.db") as connection:
        tables = connection.execute(
            "SELECT name, strict FROM pragma_table_list WHERE schema = 'main' AND type = 'table' AND name NOT LIKE 'sqlite%'"
        ).fetchall()
        assert len(tables) >= 8 and all(strict for _, strict in tables), tables
        keys = 'SELECT "from" FROM pragma_foreign_key_list(?) WHERE "table" <> \'users\''  # users are never deleted
        firsts = "SELECT i.name FROM pragma_index_list(?1) l, pragma_index_info(l.name) i WHERE i.seqno = 0"
        firsts += " UNION SELECT name FROM pragma_table_info(?1) WHERE pk = 1"
        for table, _ in tables:
            indexed = {name for (name,) in connection.execute(firsts, (table,))}
            assert {name for (name,) in connection.execute(keys, (table,))} <= indexed, table


@pytest.mark.parametrize(
    ("application_id", "version", "message"),
    [
        (db.APPLICATION_ID, db.VERSION + 1, f"newer Fireside.*schema {db.VERSION + 1}"),
        (0, 0, "database of another program"),
        (0, 1, "database of another program"),
        (0, db.VERSION + 1, "database of another program"),
    ],
)
def test_foreign_or_newer_file_is_refused_and_unchanged(
    tmp_path: Path, application_id: int, version: int, message: str
) -> None:
    path = tmp_path / "fireside.db"
    with opened(path) as connection:
        connection.execute("CREATE TABLE other (x)")
        connection.execute(f"PRAGMA application_id = {application_id}")
        connection.execute(f"PRAGMA user_version = {version}")
    before = path.read_bytes()
    with pytest.raises(DatabaseUnusable, match=message):
        db.prepare(path)
    assert path.read_bytes() == before and names(tmp_path) == ["fireside.db"]


def filled(path: Path) -> bytes:
    db.prepare(path)
    with opened(path) as connection:
        connection.execute("BEGIN")
        connection.execute("CREATE TABLE filler (x TEXT)")
        connection.executemany("INSERT INTO filler VALUES (?)", [(f"{number}" * 100,) for number in range(400)])
        connection.execute("CREATE INDEX filler_x ON filler (x)")
        connection.execute("COMMIT")
    return path.read_bytes()


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "not a database": lambda whole: b"These are not the bytes you are looking for. " * 1000,
    "header": lambda whole: b"\0" * 16 + whole[16:],
    "first page": lambda whole: whole[:100] + b"\xff" * 1000 + whole[1100:],
    "a page in the middle": lambda whole: whole[: len(whole) // 2] + b"\xff" * 4096 + whole[len(whole) // 2 + 4096 :],
    "the end is missing": lambda whole: whole[: len(whole) // 2],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_file_is_refused_and_unchanged(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "fireside.db"
    broken = DAMAGES[damage](filled(path))
    path.write_bytes(broken)
    with pytest.raises(DatabaseUnusable) as caught:
        db.prepare(path)
    message = str(caught.value)
    assert path.read_bytes() == broken
    assert message.startswith(f"{path}: ") and message.endswith("There is no backup.") and "\n" not in message
    assert ("fireside salvage NEW" in message) == (damage not in ("not a database", "header"))


def test_transaction_that_a_kill_left_in_a_rollback_journal_is_rolled_back(tmp_path: Path) -> None:
    """A restored file has a rollback journal until its first start, and only a writing connection can replay it."""
    path, killed = tmp_path / "fireside.db", tmp_path / "killed" / "fireside.db"
    db.prepare(tmp_path / "first.db")
    db.copy(tmp_path / "first.db", path)
    killed.parent.mkdir()
    with opened(path) as connection:
        connection.execute("PRAGMA cache_size = 1")
        connection.execute("BEGIN")
        connection.executemany(
            "INSERT INTO login_links (token_hash, user_id, expires_at) VALUES (randomblob(400), 1, ?)", [("",)] * 300
        )
        for file in (path, path.with_name("fireside.db-journal")):
            (killed.parent / file.name).write_bytes(file.read_bytes())
    db.prepare(killed)
    with opened(killed) as connection:
        assert db.scalar(connection, "SELECT count(*) FROM login_links") == 0


def test_orphaned_row_is_damage(tmp_path: Path) -> None:
    path, target = tmp_path / "fireside.db", tmp_path / "backups" / "copy.db"
    db.prepare(path)
    db.copy(path, target)
    earlier = target.read_bytes()
    with opened(path) as connection:
        connection.execute("INSERT INTO login_links (token_hash, user_id, expires_at) VALUES (x'00', 77, '')")
    with pytest.raises(DatabaseUnusable, match="login_links"):
        db.prepare(path)
    with pytest.raises(DatabaseDamaged, match="login_links"):
        db.copy(path, target)
    assert target.read_bytes() == earlier and names(target.parent) == ["copy.db"]


async def test_damage_found_while_running_stops_all_writing(tmp_path: Path) -> None:
    path = tmp_path / "fireside.db"
    whole = filled(path)
    database = await db.open_database(path)
    try:
        with opened(path) as other:
            root = other.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'filler'").fetchone()[0]
        # Another process, because closing the file in this one would drop SQLite's locks.
        code = f"f = open({str(path)!r}, 'r+b'); f.seek({(root - 1) * 4096}); f.write(b'\\xff' * 4096)"
        await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code], check=True)
        with pytest.raises(StorageUnavailable, match="damaged"):
            await database.read(lambda conn: conn.execute("SELECT sum(length(x)) FROM filler NOT INDEXED").fetchone())
        assert database.damaged
        with pytest.raises(StorageUnavailable, match="damaged"):
            await database.write(lambda conn: conn.execute("INSERT INTO filler VALUES ('x')"))
    finally:
        await database.close()
    assert len(path.read_bytes()) == len(whole)


async def test_no_new_database_is_created_beside_backups(tmp_path: Path) -> None:
    path = tmp_path / "fireside.db"
    await (await db.open_database(path)).close()
    db.back_up_daily(path, 7)
    path.unlink()
    with pytest.raises(DatabaseUnusable, match="there are backups"):
        await db.open_database(path)
    db.restore(next((tmp_path / "backups").glob("*.db")), path)
    await (await db.open_database(path)).close()


# ---- migrations


def shape(connection: Connection) -> set[str]:
    """Return every CREATE of the schema, without comments, spaces and quotes."""
    texts = [row[0] for row in connection.execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL")]
    return {re.sub(r'--[^\n]*|\s+|"', "", text) for text in texts}


def contents(connection: Connection, table: str) -> list[dict[str, object]]:
    rows = connection.execute(f"SELECT * FROM {table}")
    return [dict(zip([column[0] for column in rows.description], row, strict=True)) for row in rows]


@pytest.mark.parametrize("version", range(1, db.VERSION))
def test_upgraded_file_has_the_schema_of_a_new_one_and_all_its_rows(tmp_path: Path, version: int) -> None:
    old, new = tmp_path / "old.db", tmp_path / "elsewhere" / "new.db"
    new.parent.mkdir()
    schema = (Path(__file__).parent / "schemas" / f"{version}.sql").read_text("utf-8")
    rows = """
        INSERT INTO users (id, username, password_hash, role, created_at) VALUES (7, 'ann', '', 'admin', '2026');
        INSERT INTO conversations (id, user_id, title, title_key, system_prompt, created_at, updated_at)
            VALUES (3, 7, 'Tea', 'tea', 'Be kurz, für Anna.', '1', '2'), (9, 7, '', '', '', '', '');
        INSERT INTO messages (id, conversation_id, created_at, role, content, status) VALUES (4, 3, '1', 'user', 'Grüße', 'complete');
        INSERT INTO images (message_id, position, media_type, data) VALUES (4, 0, 'image/png', zeroblob(1000));
        UPDATE conversations SET active_message_id = 4 WHERE id = 3;
        DELETE FROM conversations WHERE id = 9;
    """
    if version == 5:  # the newest one with images in a table of their own
        rows += """
            INSERT INTO images (message_id, position, media_type, data) VALUES (4, 1, 'image/png', zeroblob(1000));
            DELETE FROM images WHERE id = 1;
            INSERT INTO images (message_id, position, media_type, data) VALUES (4, 0, 'image/png', zeroblob(1000)), (4, 2, 'image/jpeg', x'01');
            INSERT INTO queued_messages (id, conversation_id, content, images, stored_bytes, client_id, created_at)
                VALUES (5, 3, 'Und?', '[{"media_type": "image/webp", "data": "AgM="}, {"media_type": "image/jpeg", "data": "AQ=="}]', 7, 'c', '3');
            UPDATE users SET stored_bytes = 7 + 19 + 2001 + 7;
        """
    header = f"PRAGMA application_id = {db.APPLICATION_ID}; PRAGMA user_version = {version}"
    with opened(old) as connection:
        connection.executescript(f"{schema}; {rows} {header}")
        before = {table: contents(connection, table) for table in ("users", "conversations", "messages")}
    db.prepare(old)
    db.prepare(new)
    with opened(old) as upgraded, opened(new) as fresh:
        assert shape(upgraded) == shape(fresh)
        assert db.check_file(old) == db.VERSION
        if version < 4:  # schema 4 counts what is there
            before["users"][0]["stored_bytes"] = len("Grüße".encode()) + 1000 + len("Be kurz, für Anna.".encode())
        if version == 5:
            before["users"][0]["stored_bytes"] = 7 + 19 + 1001 + 2 + 4
            files = upgraded.execute(
                "SELECT id, user_id, media_type, size_bytes, status, data FROM attachments JOIN attachment_data ON attachment_id = id ORDER BY id"
            ).fetchall()
            assert files == [
                (2, 7, "image/png", 1000, "ready", bytes(1000)),
                (4, 7, "image/jpeg", 1, "ready", b"\1"),
                (5, 7, "image/webp", 2, "ready", b"\2\3"),
            ]
            links = "SELECT message_id, position, attachment_id FROM {} ORDER BY position"
            of_message, of_queued = (
                upgraded.execute(links.format(table)).fetchall()
                for table in ("message_attachments", "queued_attachments")
            )
            assert (of_message, of_queued) == ([(4, 0, 2), (4, 1, 2), (4, 2, 4)], [(5, 0, 5), (5, 1, 4)])
            assert contents(upgraded, "queued_messages")[0]["content"] == "Und?"
            quota.recount(upgraded)  # it is checked below
        for table, kept in before.items():
            after = contents(upgraded, table)
            assert [row | was for row, was in zip(after, kept, strict=True)] == after
        insert = (
            "INSERT INTO conversations (user_id, title, title_key, created_at, updated_at) VALUES (7, '', '', '', '')"
        )
        assert upgraded.execute(insert).lastrowid == 10, "the id of a deleted conversation is used again"


def test_older_file_is_copied_and_each_migration_is_run_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "fireside.db"
    db.prepare(path)
    scripts = ("CREATE TABLE new_1 (x);", "CREATE TABLE new_2 (x);", "CREATE TABLE new_3 (x); DROP TABLE nowhere;")
    with pytest.raises(DatabaseUnusable):
        db.prepare(path, (*db.MIGRATIONS, *scripts))
    [backup] = (tmp_path / "backups").iterdir()
    for file, version, tables in ((path, db.VERSION + 2, 2), (backup, db.VERSION, 0)):
        with opened(file) as connection:
            assert db.scalar(connection, "PRAGMA user_version") == version
            assert (
                db.scalar(connection, "SELECT count(*) FROM sqlite_schema WHERE name LIKE 'new@_%' ESCAPE '@'")
                == tables
            )


# ---- the lock

HOLD = """
import sys, pathlib
from fireside import db
try:
    with db.lock(pathlib.Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.read()
except db.DatabaseUnusable as error:
    print(error, flush=True)
"""


def hold(data_dir: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", HOLD, str(data_dir)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_lock_admits_one_process_and_ends_when_that_is_killed(tmp_path: Path) -> None:
    with hold(tmp_path) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        in_use = f"in use by another Fireside, process {holder.pid}$"
        with pytest.raises(DatabaseUnusable, match=in_use), db.lock(tmp_path):
            pass
        holder.kill()
    with db.lock(tmp_path), hold(tmp_path) as other:
        assert f"process {os.getpid()}" in other.communicate()[0]
    with db.lock(tmp_path):
        pass


def test_probe_of_the_lock_does_not_keep_a_server_from_starting(tmp_path: Path) -> None:
    with db.lock(tmp_path):
        pass
    probe = os.open(tmp_path / "lock", os.O_RDWR)
    db._lock_file(probe)  # as lock_holder does, but for longer
    threading.Timer(0.1, os.close, [probe]).start()
    with db.lock(tmp_path):
        assert db.lock_holder(tmp_path) == os.getpid()


@pytest.mark.parametrize("kind", ["file", "unwritable"])
def test_unusable_data_directory_is_named(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "data"
    if kind == "file":
        folder.write_text("", "utf-8")
    elif os.name == "posix":
        folder = Path("/proc/fireside" if sys.platform == "linux" else "/dev/null/fireside")
    else:
        pytest.skip("no such folder")
    with pytest.raises(DatabaseUnusable, match=f"{folder.name}: cannot be used as data directory"), db.lock(folder):
        pass


# ---- copies


async def test_copy_made_during_writes_is_whole_and_replaces_an_older_copy(database: Database, tmp_path: Path) -> None:
    stop = False

    async def write() -> int:
        number = 0
        while not stop:
            await database.write(add_pair, number)
            number += 1
        return number

    writing = asyncio.create_task(write())
    target = tmp_path / "backups" / "copy.db"
    seen: list[int] = []
    for _ in range(10):
        await asyncio.to_thread(db.copy, database.path, target)
        with opened(target) as connection:
            seen.append(len(pairs(connection)))
            assert pairs(connection) == set(range(seen[-1]))
        assert db.check_file(target) == db.VERSION
    stop = True
    assert await writing >= seen[-1]
    assert seen == sorted(seen) and seen[-1] > seen[0]
    assert names(target.parent) == ["copy.db"], "a temporary file was left"


@pytest.mark.parametrize("content", [b"", b"notes", b"SQLite format 3\0" + bytes(200)])
def test_copy_replaces_no_other_file(tmp_path: Path, content: bytes) -> None:
    path, target = tmp_path / "fireside.db", tmp_path / "notes"
    db.prepare(path)
    target.write_bytes(content)
    for file in (target, path):
        before = file.read_bytes()
        with pytest.raises(FileExistsError):
            db.copy(path, file)
        assert file.read_bytes() == before


async def test_background_work_needs_no_permission_to_change_its_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: int) -> None:
        raise PermissionError

    monkeypatch.setattr("os.setpriority", refuse, raising=False)
    assert await db.in_background(lambda: "done") == "done"
