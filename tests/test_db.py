"""The database file: whole transactions whatever happens to those who asked for them, and no file made worse."""

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
from fireside.db import Database, DatabaseUnusable
from fireside.errors import Stopping, StorageUnavailable

posix = pytest.mark.skipif(
    os.name != "posix", reason="Windows has neither these modes nor these limits nor this signal"
)

Connection = sqlite3.Connection


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
    """The pairs that are there. Fails when only half of one is."""
    sides: dict[int, int] = dict(conn.execute("SELECT pair, count(*) FROM halves GROUP BY pair").fetchall())
    assert set(sides.values()) <= {2}, "half a transaction was committed"
    return set(sides)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Connection]:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=10)) as connection:
        yield connection


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def overwrite(path: Path, offset: int, length: int) -> None:
    """From another process: this one would drop SQLite's locks with the file that it closes."""
    code = f"f = open({str(path)!r}, 'r+b'); f.seek({offset}); f.write(b'\\xff' * {length})"
    subprocess.run([sys.executable, "-c", code], check=True)


def assert_sound(path: Path) -> None:
    with opened(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


# ---- transactions


async def test_a_cancelled_writer_leaves_a_whole_transaction_or_none(database: Database) -> None:
    chance = random.Random(1)
    acknowledged: set[int] = set()

    async def write(pair: int) -> None:
        acknowledged.add(await database.write(add_pair, pair))

    for batch in range(40):
        tasks = [asyncio.create_task(write(batch * 10 + place)) for place in range(10)]
        for task in tasks:
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
            if chance.random() < 0.8:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert 0 < len(acknowledged) < 400
    await database.write(lambda conn: None)  # comes after all that were left to themselves
    assert await database.read(pairs) >= acknowledged
    # No transaction is left open: another connection gets the write lock at once, and ours after it.
    with opened(database.path) as other:
        other.execute("PRAGMA busy_timeout = 0")
        other.execute("BEGIN IMMEDIATE")
        add_pair(other, 1_000_000)
        other.execute("COMMIT")
    await database.write(add_pair, 1_000_001)
    assert {1_000_000, 1_000_001} <= await database.read(pairs)


async def test_a_writer_cancelled_in_mid_transaction_is_finished_for(database: Database) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(conn: Connection) -> None:
        conn.execute("INSERT INTO halves VALUES (1, 'left')")
        begun.set()
        assert go_on.wait(10)
        conn.execute("INSERT INTO halves VALUES (1, 'right')")

    task = asyncio.create_task(database.write(slow))
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        go_on.set()
        await task
    await database.write(add_pair, 2)
    assert await database.read(pairs) == {1, 2}


async def test_a_cancelled_reader_leaves_no_snapshot_open(database: Database) -> None:
    for number in range(30):
        tasks = [asyncio.create_task(database.read(pairs)) for _ in range(10)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await database.write(add_pair, number)
    # An open snapshot would keep the write-ahead log from being emptied.
    with opened(database.path) as other:
        await database.read(pairs)
        busy, _, _ = other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    assert busy == 0


async def test_an_error_in_a_transaction_undoes_all_of_it(database: Database) -> None:
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


async def test_writers_come_one_after_the_other(database: Database) -> None:
    await database.write(lambda conn: conn.execute("CREATE TABLE counter AS SELECT 0 AS n"))

    def count(conn: Connection) -> None:
        n = conn.execute("SELECT n FROM counter").fetchone()[0]
        conn.execute("UPDATE counter SET n = ?", (n + 1,))

    await asyncio.gather(*(database.write(count) for _ in range(100)))
    assert await database.read(lambda conn: conn.execute("SELECT n FROM counter").fetchone()[0]) == 100


async def test_readers_cannot_write(database: Database) -> None:
    with pytest.raises(StorageUnavailable):
        await database.read(add_pair, 1)
    assert await database.read(pairs) == set()


async def test_a_read_sees_one_moment(database: Database) -> None:
    await database.write(add_pair, 1)
    looked, written = threading.Event(), threading.Event()

    def look_twice(conn: Connection) -> tuple[set[int], set[int]]:
        first = pairs(conn)
        looked.set()
        assert written.wait(10)
        return first, pairs(conn)

    reading = asyncio.create_task(database.read(look_twice))
    await asyncio.to_thread(looked.wait, 10)
    await database.write(add_pair, 2)  # and no reader holds a writer up
    assert await database.read(pairs) == {1, 2}  # nor another reader
    written.set()
    assert await reading == ({1}, {1})


async def test_what_was_written_is_read_next(database: Database) -> None:
    for number in range(50):
        await database.write(add_pair, number)
        assert number in await database.read(pairs)


async def test_nothing_is_lost_and_nothing_hangs_when_it_closes(tmp_path: Path) -> None:
    opened_database = await db.open_database(tmp_path / "fireside.db")
    await opened_database.write(lambda conn: conn.execute("CREATE TABLE halves (pair INTEGER, side TEXT)"))
    writes = [asyncio.create_task(opened_database.write(add_pair, number)) for number in range(20)]
    await asyncio.gather(*writes)
    await opened_database.close()
    assert names(tmp_path) == ["fireside.db"], "the last to close empties the log"
    with opened(tmp_path / "fireside.db") as connection:
        assert pairs(connection) == set(range(20))


async def test_who_comes_after_its_end_is_told_so(tmp_path: Path) -> None:
    database = await db.open_database(tmp_path / "fireside.db")
    asked = asyncio.create_task(database.read(lambda conn: conn.execute("SELECT 7").fetchone()[0]))
    await asyncio.sleep(0)
    closing = asyncio.create_task(database.close())
    await asyncio.sleep(0)
    for ask in (database.write, database.read, database.write_unsynced):
        with pytest.raises(Stopping):
            await ask(pairs)
    await closing
    assert await asked == 7
    with pytest.raises(Stopping):
        await database.write(pairs)
    with pytest.raises(Stopping):
        database.read_here(pairs)


# ---- the file


async def test_a_fresh_database_is_private_and_whole(tmp_path: Path) -> None:
    mask = os.umask(0o000)
    try:
        with db.lock(tmp_path / "data" / "fireside"):
            database = await db.open_database(tmp_path / "data" / "fireside" / "fireside.db")
            await database.write(lambda conn: conn.execute("CREATE TABLE t (x)"))
            db.copy(database.path, database.path.parent / "backups" / "copy.db")
            modes = {
                file.name: file.stat().st_mode & 0o777
                for file in (database.path.parent, *database.path.parent.rglob("*"))
            }
            version = await database.read(lambda conn: conn.execute("PRAGMA user_version").fetchone()[0])
            await database.close()
        if os.name == "posix":
            assert modes.pop("fireside") == modes.pop("backups") == 0o700
            assert len(modes) == 5 and set(modes.values()) == {0o600}, modes
        assert version == db.VERSION
    finally:
        os.umask(mask)
    assert_sound(tmp_path / "data" / "fireside" / "fireside.db")


async def test_the_connections_are_set_for_safety(database: Database) -> None:
    def pragmas(conn: Connection) -> dict[str, Any]:
        names = ("journal_mode", "synchronous", "foreign_keys", "secure_delete", "query_only", "trusted_schema")
        return {name: conn.execute(f"PRAGMA {name}").fetchone()[0] for name in names}

    writer, reader = await database.write(pragmas), await database.read(pragmas)
    assert writer == {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "secure_delete": 1,
        "query_only": 0,
        "trusted_schema": 0,
    }
    assert reader["query_only"] == 1 and reader["trusted_schema"] == 0


def test_every_table_is_strict_and_finds_its_children_by_an_index(tmp_path: Path) -> None:
    """Without an index on a foreign key, each row that its parent loses makes SQLite read the whole table."""
    db.prepare(tmp_path / "fireside.db")
    with opened(tmp_path / "fireside.db") as connection:
        tables = connection.execute(
            "SELECT name, strict FROM pragma_table_list WHERE schema = 'main' AND type = 'table' AND name NOT LIKE 'sqlite%'"
        ).fetchall()
        assert len(tables) >= 8 and all(strict for _, strict in tables), tables
        keys = 'SELECT "from" FROM pragma_foreign_key_list(?) WHERE "table" <> \'users\''  # nobody deletes users
        firsts = "SELECT i.name FROM pragma_index_list(?) l, pragma_index_info(l.name) i WHERE i.seqno = 0"
        for table, _ in tables:
            indexed = {name for (name,) in connection.execute(firsts, (table,))}
            assert {name for (name,) in connection.execute(keys, (table,))} <= indexed, table


@pytest.mark.parametrize("content", [b"", b"x" * 5000], ids=["empty", "large"])
def test_a_file_from_a_newer_fireside_is_refused_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "fireside.db"
    with opened(path) as connection:
        connection.execute("CREATE TABLE future (x)")
        connection.execute("INSERT INTO future VALUES (?)", (content,))
        connection.execute(f"PRAGMA application_id = {db.APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {db.VERSION + 1}")
    before = path.read_bytes()
    with pytest.raises(DatabaseUnusable, match=f"newer Fireside.*schema {db.VERSION + 1}"):
        db.prepare(path)
    assert path.read_bytes() == before and names(tmp_path) == ["fireside.db"]


@pytest.mark.parametrize("version", [0, 1, 7])
def test_somebody_else_s_database_is_refused_and_left_as_it_is(tmp_path: Path, version: int) -> None:
    path = tmp_path / "fireside.db"
    with opened(path) as connection:
        connection.execute("CREATE TABLE cookies (host TEXT)")
        connection.execute(f"PRAGMA user_version = {version}")
    before = path.read_bytes()
    with pytest.raises(DatabaseUnusable, match="database of another program"):
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
def test_a_damaged_file_is_refused_and_left_as_it_is(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "fireside.db"
    broken = DAMAGES[damage](filled(path))
    path.write_bytes(broken)
    with pytest.raises(DatabaseUnusable) as caught:
        db.prepare(path)
    assert path.read_bytes() == broken
    assert str(path) in str(caught.value) and "was left as it is." in str(caught.value)
    assert str(caught.value).endswith("There is no backup.")
    assert ("fireside salvage NEW" in str(caught.value)) == (damage not in ("not a database", "header"))
    assert "\n" not in str(caught.value)


def test_a_damaged_file_s_newest_backup_is_named(tmp_path: Path) -> None:
    path = tmp_path / "fireside.db"
    filled(path)
    for age, name in enumerate(("newest", "older")):
        db.copy(path, tmp_path / "backups" / f"{name}.db")
        os.utime(tmp_path / "backups" / f"{name}.db", (1e9 - age, 1e9 - age))
    path.write_bytes(b"x" * 5000)
    with pytest.raises(DatabaseUnusable, match=r"newest backup is .*newest\.db: fireside restore"):
        db.prepare(path)


def test_what_a_kill_left_half_written_in_a_restored_file_is_taken_back(tmp_path: Path) -> None:
    """It has a rollback journal until its first start, which only who may write can make use of."""
    path, killed = tmp_path / "fireside.db", tmp_path / "killed" / "fireside.db"
    db.prepare(tmp_path / "first.db")
    db.copy(tmp_path / "first.db", path)
    killed.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA cache_size = 1")
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO login_links VALUES (randomblob(400), 1, ?)", [("",)] * 300)
        for file in (path, path.with_name("fireside.db-journal")):
            (killed.parent / file.name).write_bytes(file.read_bytes())
    db.prepare(killed)
    with opened(killed) as connection:
        assert connection.execute("SELECT count(*) FROM login_links").fetchone()[0] == 0


def test_a_row_that_lost_its_parent_is_damage_too(tmp_path: Path) -> None:
    db.prepare(tmp_path / "fireside.db")
    with opened(tmp_path / "fireside.db") as connection:
        connection.execute("INSERT INTO login_links VALUES (x'00', 77, '')")
    with pytest.raises(DatabaseUnusable, match="login_links"):
        db.prepare(tmp_path / "fireside.db")


async def test_damage_that_shows_while_it_runs_stops_all_writing(tmp_path: Path) -> None:
    path = tmp_path / "fireside.db"
    whole = filled(path)
    database = await db.open_database(path)
    try:
        with opened(path) as other:
            root = other.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'filler'").fetchone()[0]
        overwrite(path, (root - 1) * 4096, 4096)
        with pytest.raises(StorageUnavailable, match="damaged"):
            await database.read(lambda conn: conn.execute("SELECT sum(length(x)) FROM filler NOT INDEXED").fetchone())
        assert database.damaged
        with pytest.raises(StorageUnavailable, match="damaged"):
            await database.write(lambda conn: conn.execute("INSERT INTO filler VALUES ('x')"))
    finally:
        await database.close()
    assert len(path.read_bytes()) == len(whole)


@pytest.mark.parametrize("kind", ["file", "unwritable"])
def test_a_place_where_nothing_can_be_kept_is_named(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "data"
    if kind == "file":
        place.write_text("", "utf-8")
    else:
        place = Path("/proc/fireside" if sys.platform == "linux" else "/dev/null/fireside")
        if os.name != "posix":
            pytest.skip("no such place")
    with pytest.raises(DatabaseUnusable, match="cannot be used as data directory"), db.lock(place):
        pass


# ---- migrations


def shape(connection: sqlite3.Connection) -> set[str]:
    """Every CREATE of the schema, without comments, spaces, and quotes."""
    texts = [row[0] for row in connection.execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL")]
    return {re.sub(r'--[^\n]*|\s+|"', "", text) for text in texts}


def contents(connection: sqlite3.Connection, table: str) -> list[dict[str, object]]:
    rows = connection.execute(f"SELECT * FROM {table}")
    return [dict(zip([column[0] for column in rows.description], row, strict=True)) for row in rows]


@pytest.mark.parametrize("version", range(1, db.VERSION))
def test_what_was_upgraded_is_as_if_it_were_new_and_has_all_its_rows(tmp_path: Path, version: int) -> None:
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
    header = f"PRAGMA application_id = {db.APPLICATION_ID}; PRAGMA user_version = {version}"
    with opened(old) as connection:
        connection.executescript(f"{schema}; {rows} {header}")
        before = {table: contents(connection, table) for table in ("users", "conversations", "messages")}
    db.prepare(old)
    db.prepare(new)
    with opened(old) as upgraded, opened(new) as fresh:
        assert shape(upgraded) == shape(fresh)
        assert upgraded.execute("PRAGMA user_version").fetchone()[0] == db.VERSION
        db.check(upgraded)
        for table, kept in before.items():
            after = contents(upgraded, table)
            for row, was in zip(after, kept, strict=True):
                assert row | was | {name: row[name] for name in row if name == "stored_bytes"} == row
        assert upgraded.execute("SELECT stored_bytes FROM users").fetchall() == [(1007 + 19,)]
        insert = (
            "INSERT INTO conversations (user_id, title, title_key, created_at, updated_at) VALUES (7, '', '', '', '')"
        )
        assert upgraded.execute(insert).lastrowid == 10, "the id of one that was deleted is given again"


def test_an_older_file_is_copied_before_it_is_migrated(tmp_path: Path) -> None:
    path = tmp_path / "fireside.db"
    db.prepare(path)
    scripts = tuple(
        f"BEGIN IMMEDIATE; CREATE TABLE new_{version} (x); PRAGMA user_version = {version}; COMMIT;"
        for version in (db.VERSION + 1, db.VERSION + 2)
    )
    old = db.VERSION
    db.prepare(path, (*db.MIGRATIONS, *scripts))
    [backup] = (tmp_path / "backups").iterdir()
    for file, version, tables in ((path, old + 2, 2), (backup, old, 0)):
        with opened(file) as connection:
            assert connection.execute("PRAGMA user_version").fetchone()[0] == version
            count = "SELECT count(*) FROM sqlite_schema WHERE name LIKE 'new\\_%' ESCAPE '\\'"
            assert connection.execute(count).fetchone()[0] == tables


def test_a_migration_that_fails_leaves_the_version_before_it(tmp_path: Path) -> None:
    path = tmp_path / "fireside.db"
    db.prepare(path)
    old = db.VERSION
    script = f"BEGIN IMMEDIATE; CREATE TABLE new (x); DROP TABLE nowhere; PRAGMA user_version = {old + 1}; COMMIT;"
    with pytest.raises(DatabaseUnusable):
        db.prepare(path, (*db.MIGRATIONS, script))
    with opened(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] == old
        assert connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'new'").fetchone()[0] == 0


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
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(data_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_a_data_directory_belongs_to_one_process_even_when_that_is_killed(tmp_path: Path) -> None:
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


def test_a_probe_of_the_lock_does_not_stop_a_server_from_starting(tmp_path: Path) -> None:
    with db.lock(tmp_path):
        pass
    probe = os.open(tmp_path / "lock", os.O_RDWR)
    db._lock_file(probe)  # what lock_holder does, for longer
    threading.Timer(0.1, os.close, [probe]).start()
    with db.lock(tmp_path):
        assert db.lock_holder(tmp_path) == os.getpid()


# ---- copies


async def test_a_copy_is_whole_while_it_is_written_to(database: Database, tmp_path: Path) -> None:
    stop = False

    async def write() -> int:
        number = 0
        while not stop:
            await database.write(add_pair, number)
            number += 1
        return number

    writing = asyncio.create_task(write())
    seen: list[int] = []
    for number in range(10):
        target = tmp_path / "backups" / f"{number}.db"
        await asyncio.to_thread(db.copy, database.path, target)
        with opened(target) as connection:
            seen.append(len(pairs(connection)))
            assert pairs(connection) == set(range(seen[-1]))
        assert_sound(target)
    stop = True
    assert await writing >= seen[-1]
    assert seen == sorted(seen) and seen[-1] > seen[0]
    assert len(list((tmp_path / "backups").iterdir())) == 10, "something was left beside the copies"


async def test_a_copy_has_what_is_still_in_the_log(database: Database, tmp_path: Path) -> None:
    for number in range(20):
        await database.write(add_pair, number)
    target = tmp_path / "copy.db"
    for _ in range(2):  # an older copy is replaced
        await asyncio.to_thread(db.copy, database.path, target)
        with opened(target) as connection:
            assert pairs(connection) == set(range(20))


def test_a_copy_of_a_damaged_file_is_not_made(tmp_path: Path) -> None:
    path, target = tmp_path / "fireside.db", tmp_path / "backups" / "copy.db"
    whole = filled(path)
    db.copy(path, target)
    yesterday = target.read_bytes()
    path.write_bytes(DAMAGES["a page in the middle"](whole))
    with pytest.raises((DatabaseUnusable, sqlite3.DatabaseError)):
        db.copy(path, target)
    assert target.read_bytes() == yesterday and len(list(target.parent.iterdir())) == 1


@pytest.mark.parametrize("content", [b"", b"notes of somebody", b"SQLite format 3\0" + bytes(200)])
def test_a_copy_replaces_no_other_file(tmp_path: Path, content: bytes) -> None:
    path, target = tmp_path / "fireside.db", tmp_path / "notes"
    db.prepare(path)
    target.write_bytes(content)
    for file in (target, path):
        before = file.read_bytes()
        with pytest.raises(FileExistsError):
            db.copy(path, file)
        assert file.read_bytes() == before


# ---- a full disk, a killed process

FULL_DISK = """
import asyncio, pathlib, resource, signal, sys
from fireside import db
from fireside.errors import StorageUnavailable

async def main():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    path = pathlib.Path(sys.argv[1])
    database = await db.open_database(path)
    await database.write(lambda conn: conn.execute("CREATE TABLE halves (pair INTEGER, side TEXT)"))
    ceiling = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    kept = []
    def add(conn, pair):
        conn.execute("INSERT INTO halves VALUES (?, ?)", (pair, "left" + "x" * 3000))
        conn.execute("INSERT INTO halves VALUES (?, ?)", (pair, "right" + "x" * 3000))
    wal = path.with_name(path.name + "-wal")
    for pair in range(60):
        if pair % 3:
            # room for so many more bytes, in the log and in the file, as on a disk that fills up
            room = max(wal.stat().st_size, path.stat().st_size) if pair % 2 else wal.stat().st_size + pair * 100
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, ceiling))
        try:
            await database.write(add, pair)
            kept.append(pair)
        except StorageUnavailable as error:
            assert error.message.startswith("The database cannot be used: the disk "), error.message
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (ceiling, ceiling))
        found = await database.read(lambda conn: conn.execute(
            "SELECT pair FROM halves GROUP BY pair HAVING count(*) = 2 ORDER BY pair").fetchall())
        assert [row[0] for row in found] == kept, (pair, kept)
    count = await database.read(lambda conn: conn.execute("SELECT count(*) FROM halves").fetchone()[0])
    assert count == 2 * len(kept)
    await database.close()
    print(len(kept), 60 - len(kept))

asyncio.run(main())
"""


@posix
def test_a_full_disk_changes_nothing_and_is_forgiven(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "fireside.db")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    kept, refused = map(int, done.stdout.split())
    assert kept >= 20 and refused >= 10, "the limit was not felt, or never lifted"
    assert_sound(tmp_path / "fireside.db")


KILLED = """
import asyncio, pathlib, sys
from fireside import db

def add(conn, pair):
    conn.execute("INSERT INTO halves VALUES (?, 'left')", (pair,))
    conn.execute("INSERT INTO halves VALUES (?, 'right')", (pair,))
    return pair

async def main():
    database = await db.open_database(pathlib.Path(sys.argv[1]))
    await database.write(lambda conn: conn.execute("CREATE TABLE IF NOT EXISTS halves (pair INTEGER, side TEXT)"))
    async def write(start):
        for pair in range(start, 10**9, 4):
            print(await database.write(add, pair), flush=True)
    await asyncio.gather(*(write(int(sys.argv[2]) + start) for start in range(4)))

asyncio.run(main())
"""


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    path, acknowledged = tmp_path / "fireside.db", set()
    for attempt in range(3):
        command = [sys.executable, "-c", KILLED, str(path), str(attempt * 10**6)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                acknowledged.add(int(line))
                if len(acknowledged) % 50 == 0:
                    process.kill()
                    break
            acknowledged |= {int(line) for line in process.stdout if line.endswith("\n")}
        db.prepare(path)
        with opened(path) as connection:
            assert acknowledged <= pairs(connection)
    assert_sound(path)


async def test_no_new_database_takes_the_place_of_one_that_has_backups(tmp_path: Path) -> None:
    path = tmp_path / "fireside.db"
    await (await db.open_database(path)).close()
    db.back_up_daily(path, 7)
    path.unlink()
    with pytest.raises(db.DatabaseUnusable, match="there are backups"):
        await db.open_database(path)
    db.restore(next((tmp_path / "backups").glob("*.db")), path)
    await (await db.open_database(path)).close()
