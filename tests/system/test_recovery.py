"""Backups, restores, doctor, and a service whose disk or database fails."""

import asyncio
import contextlib
import datetime
import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fireside import config, db, queries, server
from fireside.backends import gguf
from fireside.cli import client
from fireside.cli import doctor as cli_doctor
from fireside.db import DatabaseUnusable
from fireside.web.handlers import data as data_handlers

from ..browser import NO_ENGINE, Fireside
from ..live import PASSWORD, Person, Running, code, good, until
from ..pages import web_server
from ..processes import run
from ..upstream import Upstream

posix = pytest.mark.skipif(os.name != "posix", reason="modes and limits of POSIX")
linux = pytest.mark.skipif(sys.platform != "linux", reason="limits the files of another process")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a database and commit at the end."""
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.row_factory = sqlite3.Row
        yield connection


def users(path: Path) -> list[str]:
    with opened(path) as connection:
        return [row[0] for row in connection.execute("SELECT username FROM users ORDER BY id")]


def add(path: Path, *names: str) -> None:
    with opened(path) as connection:
        sql = "INSERT INTO users (username, password_hash, role, created_at) VALUES (?, '', 'user', '')"
        connection.executemany(sql, [(name,) for name in names])


def created(path: Path, *names: str) -> Path:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    db.prepare(path)
    add(path, *names)
    return path


def add_to_log(path: Path, *names: str) -> None:
    """Add users to the write-ahead log only, as when a service is killed before a checkpoint."""
    with opened(path) as connection:
        connection.execute(
            "SELECT count(*) FROM users"
        ).fetchone()  # while a connection is open, none checkpoints on closing
        add(path, *names)
        saved = {suffix: path.with_name(path.name + suffix).read_bytes() for suffix in ("", "-wal", "-shm")}
    for suffix, data in saved.items():
        path.with_name(path.name + suffix).write_bytes(data)


# ---- restore


def test_restore_keeps_the_old_database_with_its_log(tmp_path: Path) -> None:
    backup, path = created(tmp_path / "backup.db", "old"), created(tmp_path / "data" / "fireside.db", "new")
    add_to_log(path, "newest")
    kept = db.restore(backup, path)
    assert kept is not None
    assert users(path) == ["old"] and users(kept) == ["new", "newest"]
    assert not path.with_name(path.name + "-wal").exists()


def test_restored_database_does_not_get_the_log_of_a_deleted_one(tmp_path: Path) -> None:
    backup, path = created(tmp_path / "backup.db", "old"), created(tmp_path / "data" / "fireside.db", "new")
    add_to_log(path, "newest")
    path.unlink()
    assert db.restore(backup, path) is None
    db.prepare(path)
    assert users(path) == ["old"]
    assert [file.suffix for file in (path.parent / "backups").iterdir() if file.suffix == ".db"] == []


def fake_database(path: Path) -> None:
    with opened(path) as connection:
        connection.execute("CREATE TABLE users (username)")


def broken(path: Path) -> None:
    data = bytearray(created(path, "old").read_bytes())
    data[4096 * 3 : 4096 * 6] = os.urandom(4096 * 3)
    path.write_bytes(data)


@pytest.mark.parametrize(
    "spoil",
    [lambda path: path.write_bytes(b"no database at all"), Path.touch, fake_database, broken, lambda path: None],
    ids=["text", "empty", "another program's", "damaged", "missing"],
)
def test_unusable_backup_changes_nothing(tmp_path: Path, spoil: Callable[[Path], Any]) -> None:
    backup, path = tmp_path / "backup.db", created(tmp_path / "data" / "fireside.db", "new")
    spoil(backup)
    before = path.read_bytes()
    with pytest.raises(DatabaseUnusable):
        db.restore(backup, path)
    assert path.read_bytes() == before and [file.name for file in path.parent.iterdir()] == ["fireside.db"]


@pytest.mark.parametrize("moved", [0, 1, 2, 3])
def test_killed_restore_is_finished_at_the_next_start(tmp_path: Path, moved: int) -> None:
    """`moved`: how many of the three files of the old database had been moved."""
    backup, path = created(tmp_path / "backup.db", "old"), created(tmp_path / "fireside.db", "new")
    add_to_log(path, "newest")
    db.copy(backup, path.with_name("fireside.db.restored"))
    stamp = db.timestamp(
        datetime.datetime.fromtimestamp(path.with_name("fireside.db.restored").stat().st_mtime, datetime.UTC)
    )
    kept = tmp_path / "backups" / f"before-restore-{stamp.replace(':', '')}.db"
    kept.parent.mkdir()
    for ending in ("-wal", "-shm", "")[:moved]:
        path.with_name(path.name + ending).replace(kept.with_name(kept.name + ending))
    db.prepare(path)
    assert users(path) == ["old"] and users(kept) == ["new", "newest"]
    assert not path.with_name("fireside.db.restored").exists()


def test_two_restores_in_a_second_keep_both_replaced_databases(tmp_path: Path) -> None:
    path = created(tmp_path / "fireside.db", "first")
    for name in ("second", "third"):
        db.restore(created(tmp_path / f"{name}.db", name), path)
    assert users(path) == ["third"]
    assert sorted(user for kept in (tmp_path / "backups").glob("*.db") for user in users(kept)) == ["first", "second"]


# ---- backups


def test_newest_daily_backups_are_kept(tmp_path: Path) -> None:
    path = created(tmp_path / "fireside.db", "ann")
    folder = tmp_path / "backups"
    folder.mkdir()
    for day in range(1, 6):
        (folder / f"daily-2020-01-0{day}.db").write_bytes(b"")
    others = {"before-schema-2-2020.db", "daily-2020-01-04.db", "daily-2020-01-05.db"}
    (folder / "before-schema-2-2020.db").write_bytes(b"")
    for suffix in ("", "-journal"):
        (folder / f"daily-2020-01-05.db.partial{suffix}").write_bytes(b"of a process that was killed")
    db.back_up_daily(path, 3)
    today = f"daily-{db.now()[:10]}.db"
    assert {file.name for file in folder.iterdir()} == {*others, today}
    assert users(folder / today) == ["ann"]
    add(path, "bob")
    db.back_up_daily(path, 3)
    assert users(folder / today) == ["ann"], "there is one backup a day"
    db.back_up_daily(created(tmp_path / "other" / "fireside.db"), 0)
    assert not (tmp_path / "other" / "backups").exists()


def test_database_that_a_restore_replaced_is_not_a_backup(tmp_path: Path) -> None:
    path = created(tmp_path / "fireside.db", "ann")
    db.back_up_daily(path, 7)
    [backup] = (tmp_path / "backups").iterdir()
    db.copy(path, tmp_path / "backups" / "older.db")
    os.utime(tmp_path / "backups" / "older.db", (1e9, 1e9))
    path.write_bytes(b"nothing")
    kept = db.restore(backup, path)
    assert kept is not None and kept.parent == backup.parent
    os.utime(kept)
    assert db.newest_backup(tmp_path) == backup
    assert f"ok   newest backup {backup}, integrity" in doctor(tmp_path)[1]
    path.write_bytes(b"nothing")
    with pytest.raises(DatabaseUnusable, match=f"newest backup is {re.escape(str(backup))}: "):
        db.prepare(path)
    path.unlink()
    with pytest.raises(DatabaseUnusable, match=f"fireside restore {re.escape(str(backup))} "):
        db.prepare(path)


# ---- commands


def test_command_talks_only_to_the_process_that_holds_the_lock(tmp_path: Path) -> None:
    settings = config.load({"data_dir": str(tmp_path)}, {})
    with web_server() as other_program:

        def is_found(pid: int) -> bool:
            service = {"url": other_program.url, "secret": "stale", "pid": pid, "certificate": ""}
            (tmp_path / "service.json").write_text(json.dumps(service), "utf-8")
            return client.find_service(settings) is not None

        with db.lock(tmp_path):
            assert not is_found(os.getpid() + 1)
            assert is_found(os.getpid())
        assert not is_found(os.getpid())
    assert [path for path, _ in other_program.requests] == ["/health"]


def doctor(data_dir: Path) -> tuple[int, str]:
    done = run("doctor", "--data-dir", str(data_dir))
    return done.returncode, done.stdout + done.stderr


@posix
def test_doctor_finds_problems_and_says_what_to_do(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with db.lock(data):
        path = created(data / "fireside.db", "ann")
        db.back_up_daily(path, 7)
    status, said = doctor(data)
    python = ".".join(map(str, sys.version_info[:3]))
    assert status == 0 and f" Python {python}" in said and f" SQLite {sqlite3.sqlite_version}" in said, said
    [backup] = (data / "backups").iterdir()
    for folder in (data, data / "backups"):
        (folder / "gone.db").symlink_to(tmp_path / "nowhere")
    assert doctor(data)[0] == 0, doctor(data)[1]
    backup.write_bytes(b"nothing")
    backup.chmod(0o644)
    status, said = doctor(data)
    assert status == 1
    assert f"BAD  newest backup {backup} cannot be restored: the file is not an SQLite database. Make another: " in said
    assert f"BAD  {backup} can be read by other users. Run: chmod 600 {backup}" in said
    path.write_bytes(b"nothing")
    data.chmod(0o755)
    status, said = doctor(data)
    assert f"BAD  {data} can be read by other users. Run: chmod 700 {data}" in said
    assert (
        f"BAD  {path}: cannot be used: the file is not an SQLite database. The file was left as it is. The newest backup"
        in said
    )
    assert status == 1 and "Traceback" not in said


@posix
def test_doctor_examines_the_files_of_a_killed_service(tmp_path: Path, upstream: Upstream) -> None:
    with Fireside(tmp_path, NO_ENGINE, lmstudio_url=upstream.url) as fireside:
        (tmp_path / "config.toml").chmod(0o600)
        fireside.first()
        fireside.kill()
        status, said = doctor(tmp_path)
    assert status == 0 and "integrity check passed" in said, said


@pytest.mark.parametrize(
    ("program", "version", "holes"),
    [
        ("Python", (3, 11, 7), ["CVE-2024-0450", "CVE-2024-7592", "CVE-2026-115557"]),
        ("Python", (3, 12, 2), ["CVE-2024-7592", "CVE-2026-115557"]),
        ("Python", (3, 13, 0), ["CVE-2026-115557"]),
        ("Python", (3, 13, 18), []),
        ("Python", (3, 16, 0), []),
        ("SQLite", (3, 40, 1), ["the WAL-reset bug", "CVE-2026-11822 and CVE-2026-119373"]),
        ("SQLite", (3, 44, 6), ["CVE-2026-11822 and CVE-2026-119373"]),
        ("SQLite", (3, 50, 6), ["the WAL-reset bug", "CVE-2026-11822 and CVE-2026-119373"]),
        ("SQLite", (3, 51, 3), ["CVE-2026-11822 and CVE-2026-119373"]),
        ("SQLite", (3, 54, 0), []),
    ],
)
def test_doctor_knows_the_security_holes_of_a_version(program: str, version: tuple[int, ...], holes: list[str]) -> None:
    lines = list(cli_doctor._check_version(program, version))
    assert [
        line.partition(" may have ")[2].partition(": ")[0] for mark, line in lines if mark == cli_doctor.NOTE
    ] == holes
    assert len(lines) == max(1, len(holes)), "one line when there is none"


def test_doctor_says_why_a_model_is_not_offered(tmp_path: Path) -> None:
    model = tmp_path / "models" / "mlx-community" / "Llama-3.2-1B-4bit"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}", "utf-8")
    (model / "model.safetensors").write_bytes(b"")
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    (data / "config.toml").write_text(
        f"models_dir = '{tmp_path / 'models'}'\n[[providers]]\nid = 'embedded'\nkind = 'embedded'\n", "utf-8"
    )
    (data / "config.toml").chmod(0o600)
    status, said = doctor(data)
    assert status == 0 and f"note {model} cannot be used: {gguf.MLX}\n" in said


def test_commands_create_private_files(tmp_path: Path) -> None:
    script = "import os, sys; os.umask(0o022); from fireside.__main__ import main; main(sys.argv[1:]); print(oct(os.umask(0)))"
    command = [sys.executable, "-c", script, "doctor", "--data-dir", str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True).stdout.endswith("0o77\n")


# ---- a service whose disk or database fails


@linux
def test_full_disk_refuses_writes_and_still_reads(tmp_path: Path, upstream: Upstream) -> None:
    import resource

    with Fireside(tmp_path, NO_ENGINE, lmstudio_url=upstream.url) as fireside:
        ann = fireside.first()
        conversation_id = good(ann.post("/conversations", json={"title": "before"}))["id"]
        _, most = resource.prlimit(fireside.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(fireside.process.pid, resource.RLIMIT_FSIZE, (1, most))
        for answer in (
            ann.post("/conversations", json={}),
            ann.post(f"/conversations/{conversation_id}/messages", json={"content": "Hello?"}),
            ann.delete(f"/conversations/{conversation_id}"),
            ann.post("/import", json=[]),
            fireside.client().post("/auth/login", json={"username": "ann", "password": PASSWORD}),
        ):
            assert code(answer) == (503, "STORAGE_UNAVAILABLE")
        assert [one["title"] for one in good(ann.get("/conversations"))] == ["before"]
        assert good(ann.get(f"/conversations/{conversation_id}/messages")) == []
        resource.prlimit(fireside.process.pid, resource.RLIMIT_FSIZE, (most, most))
        good(ann.post(f"/conversations/{conversation_id}/messages", json={"content": "Hello?"}))


@linux
def test_output_that_is_not_read_does_not_stop_the_service(tmp_path: Path, upstream: Upstream) -> None:
    import fcntl
    import resource

    with Fireside(tmp_path, NO_ENGINE, lmstudio_url=upstream.url) as fireside:
        ann = fireside.first()
        assert fireside.process.stdout is not None
        fcntl.fcntl(fireside.process.stdout, fcntl.F_SETPIPE_SZ, 4096)
        _, most = resource.prlimit(fireside.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(fireside.process.pid, resource.RLIMIT_FSIZE, (1, most))
        for _ in range(300):  # each prints a line
            assert code(ann.post("/conversations", json={})) == (503, "STORAGE_UNAVAILABLE")
        resource.prlimit(fireside.process.pid, resource.RLIMIT_FSIZE, (most, most))
        good(ann.post("/conversations", json={}))
        assert "SQLITE" in fireside.process.stdout.readline()


async def test_writing_goes_on_when_a_full_disk_has_room_again(running: Running, ann: Person) -> None:
    conversation_id = await ann.conversation("before")
    database = running.state.database
    await database.write(lambda conn: conn.execute("PRAGMA max_page_count = 1").fetchone())  # the file cannot grow
    answer = await ann.post(f"/conversations/{conversation_id}/messages", json={"content": "long " * 20_000})
    assert code(answer) == (503, "STORAGE_UNAVAILABLE") and "full" in answer.json()["message"]
    await database.write(lambda conn: conn.execute("PRAGMA max_page_count = 1000000").fetchone())
    await ann.say(conversation_id, "long " * 20_000)
    assert [len(message["content"]) for message in await ann.messages(conversation_id)] == [6, 100_000]


async def test_database_locked_by_another_program_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(db, "BUSY_TIMEOUT_MS", 50)
    async with Running(tmp_path) as running:
        ann = await running.first()
        with contextlib.closing(sqlite3.connect(running.config.database, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            answer = await ann.post("/conversations", json={})
            assert code(answer) == (503, "STORAGE_UNAVAILABLE") and "another program" in answer.json()["message"]
            assert good(await ann.get("/conversations")) == []
            other.execute("ROLLBACK")
        good(await ann.post("/conversations", json={}))


async def test_damaged_database_is_read_and_not_written(running: Running, ann: Person) -> None:
    await running.state.database.write(
        lambda conn: conn.execute("UPDATE sessions SET last_seen = ?", (db.ago(days=1),)).rowcount
    )
    running.state.database.damaged = True
    assert good(await ann.get("/conversations")) == []
    assert code(await ann.post("/conversations", json={})) == (503, "STORAGE_UNAVAILABLE")
    assert code(await ann.get("/health")) == (503, "STORAGE_UNAVAILABLE")


async def test_text_that_is_not_utf8_is_shown_with_u_fffd_and_not_logged(
    running: Running, ann: Person, caplog: pytest.LogCaptureFixture
) -> None:
    conversation_id = await ann.conversation("private: ae")
    sql = "UPDATE messages SET content = CAST(x'707269766174653a20ff' AS TEXT)"
    await running.state.database.write(lambda conn: conn.execute(sql).rowcount)
    for _ in range(2):
        assert await ann.contents(conversation_id) == ["private: \ufffd"]
    assert "damaged" in caplog.text and "private" not in caplog.text


async def test_damage_of_a_large_file_is_found_while_it_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "STARTUP_CHECK_MAX_BYTES", 0)
    path = created(tmp_path / "fireside.db", "ann")
    with opened(path) as connection:
        row = "INSERT INTO invites (code_hash, role, created_by, created_at, expires_at) VALUES (randomblob(32), 'user', 1, '', '')"
        for _ in range(300):
            connection.execute(row)
        index = "SELECT rootpage FROM sqlite_schema WHERE name = 'sqlite_autoindex_invites_1'"
        page = connection.execute(index).fetchone()[0]
    data = bytearray(path.read_bytes())
    data[(page - 1) * 4096 + 100 : page * 4096] = bytes(4096 - 100)
    path.write_bytes(data)
    monkeypatch.setattr(server, "HOUSEKEEPING_DELAY_SECONDS", 0.0)
    async with Running(tmp_path) as running:
        await until(lambda: running.state.database.damaged)
        assert code(await running.anybody().get("/health")) == (503, "STORAGE_UNAVAILABLE")


def damage_schema(path: Path) -> None:
    """Damage what open connections have read already. For a new one, integrity_check raises an error instead of returning what it finds."""
    path.write_bytes(path.read_bytes().replace(b"CREATE TABLE folders", b"CREATE TABXE folders"))


async def test_backup_of_a_damaged_schema_names_the_database_and_not_the_backup(tmp_path: Path) -> None:
    async with Running(tmp_path) as running:
        damage_schema(running.config.database)
        secret = {"Authorization": f"Bearer {running.state.secret}"}
        body = {"file": str(tmp_path / "backup.db")}
        refused = await running.anybody().post("/control/backup", json=body, headers=secret)
        assert code(refused) == (503, "STORAGE_UNAVAILABLE")
        assert refused.json()["message"].startswith(f"{running.config.database}: cannot be used: the file is damaged.")


async def test_damage_that_only_a_new_connection_sees_is_found_while_it_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Running(tmp_path) as running:
        damage_schema(running.config.database)
        monkeypatch.setattr(server, "HOUSEKEEPING_DELAY_SECONDS", 0.0)
        housekeeping = asyncio.create_task(server._run_housekeeping(running.state))
        await until(lambda: running.state.database.damaged or housekeeping.done())
        assert running.state.database.damaged
        housekeeping.cancel()


async def test_failed_backup_does_not_stop_the_other_housekeeping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = created(tmp_path / "fireside.db", "ann")
    (tmp_path / "backups").write_bytes(b"in the way")
    with opened(path) as connection:
        old = queries.conversations.add_conversation(connection, 1, {})
        connection.execute("UPDATE conversations SET deleted_at = '2020-01-01T00:00:00.000000'")
    monkeypatch.setattr(server, "HOUSEKEEPING_DELAY_SECONDS", 0.0)
    async with Running(tmp_path) as running:
        sql = "SELECT count(*) = 0 FROM conversations WHERE id = ?"
        read = running.state.database.read
        await until(lambda: read(lambda conn: conn.execute(sql, (old.id,)).fetchone()[0]))


async def test_uploads_of_a_killed_server_are_removed_and_nothing_else(tmp_path: Path) -> None:
    left, mine = tmp_path / data_handlers.UPLOADS / "tmpabc", tmp_path / "import-2024"
    for folder in (left, mine):
        folder.mkdir(parents=True)
        (folder / "upload.zip").write_bytes(b"x")
    async with Running(tmp_path):
        assert not left.exists() and (mine / "upload.zip").exists()


async def test_conversation_that_a_kill_left_hidden_is_removed_at_the_next_start(tmp_path: Path) -> None:
    path = created(tmp_path / "fireside.db", "ann")
    with opened(path) as connection:
        for hide in (False, True):
            conversation = queries.conversations.add_conversation(connection, 1, {"title": f"hidden: {hide}"})
            for number in range(30):
                queries.messages.add_message(connection, 1, conversation.id, f"message {number}")
            if hide:
                queries.conversations.hide_conversation(connection, 1, conversation.id)

    def is_removed(conn: sqlite3.Connection) -> bool:
        counts = "SELECT title, (SELECT count(*) FROM messages WHERE conversation_id = c.id) FROM conversations c"
        return [tuple(row) for row in conn.execute(counts)] == [("hidden: False", 30)]

    async with Running(tmp_path) as running:
        await until(lambda: running.state.database.read(is_removed))
