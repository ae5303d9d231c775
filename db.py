"""The database file: opened safely, migrated, read and written in whole transactions, copied.

One connection writes, and it alone checkpoints: SQLite before 3.51.3 can corrupt a WAL that two connections checkpoint.
A few others only read. A transaction is a function of a sqlite3.Connection that runs from BEGIN to COMMIT in one go on the
connection's thread, so that a cancelled request cannot leave it half done (docs/decisions/0002-transactions.md).
The functions themselves are in queries/ and transfer/archive.py.
"""

import asyncio
import contextlib
import datetime
import errno
import json
import logging
import os
import shutil
import sqlite3
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO, Concatenate, Final, ParamSpec, TypeAlias, TypeVar
from urllib.parse import quote

import aiosqlite

from .errors import QueryTimeout, Stopping, StorageUnavailable

P = ParamSpec("P")
T = TypeVar("T")
Connection = sqlite3.Connection
Function: TypeAlias = Callable[Concatenate[Connection, P], T]

log = logging.getLogger("fireside.db")

READERS = 3
BUSY_MS = 5_000
PROGRESS_STEPS = 10_000  # of SQLite between two looks at the deadline: 0.1 s of a full-text search
LOCK_RETRY_SECONDS = 0.5  # lock_holder holds the lock for a moment, which must not keep a server from starting
ROOM = 1_000_000  # free bytes, below which SQLite may not come to open a file: it says that the disk has an error
PUT_AWAY = "before-restore-"  # how the names of old databases begin
CHECK_AT_START_BYTES = 16 * 1024 * 1024  # a larger file is checked while it is served: reading 1 GB takes seconds

COUNT_STORED_BYTES = """
    UPDATE users SET stored_bytes = (
        SELECT coalesce(sum(length(CAST(m.content AS BLOB)) + length(CAST(m.reasoning AS BLOB))
            + (SELECT coalesce(sum(length(i.data)), 0) FROM images i WHERE i.message_id = m.id)), 0)
        FROM conversations c JOIN messages m ON m.conversation_id = c.id WHERE c.user_id = users.id
    )
"""

# One script a schema that somebody may have, in order: each takes a file of its version to the next, and carries its own
# BEGIN IMMEDIATE; ...; PRAGMA user_version = N; COMMIT. schema.sql is always the newest; tests/schemas has the older ones.
MIGRATIONS: tuple[str, ...] = (
    """
    BEGIN IMMEDIATE;
    ALTER TABLE users ADD COLUMN defaults TEXT NOT NULL DEFAULT '{}';
    PRAGMA user_version = 2;
    COMMIT;
    """,
    f"""
    BEGIN IMMEDIATE;
    ALTER TABLE users ADD COLUMN stored_bytes INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE conversations ADD COLUMN hidden INTEGER NOT NULL DEFAULT 0 CHECK (hidden IN (0, 1));
    DROP INDEX conversations_by_activity;
    CREATE INDEX conversations_by_activity ON conversations (user_id, updated_at, id, title_key, deleted_at, hidden)
        WHERE deleted_at IS NULL;
    CREATE INDEX conversations_hidden ON conversations (user_id) WHERE hidden = 1;
    {COUNT_STORED_BYTES};
    PRAGMA user_version = 3;
    COMMIT;
    """,
)
VERSION: Final = 1 + len(MIGRATIONS)
APPLICATION_ID: Final = 0x46697265  # in the file's header: "Fire", which tells it from the databases of other programs


class DatabaseUnusable(Exception):
    """The file cannot be served. The message says which file, why, and what to do."""


class Unsound(sqlite3.DatabaseError):
    """`check` or `examine` found damage; the message says what, and not in which file."""


def now() -> str:
    """The time as the database and the API write it: UTC, microseconds, no offset."""
    return timestamp(datetime.datetime.now(datetime.UTC))


def timestamp(moment: datetime.datetime) -> str:
    return moment.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")


def ago(**span: float) -> str:
    """The time before now by, for example, days=30."""
    return timestamp(datetime.datetime.now(datetime.UTC) - datetime.timedelta(**span))


def create_private(path: Path) -> BinaryIO:
    """Create a file that only its owner can read, and open it for writing. Raises FileExistsError, also for a symbolic link."""
    return os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb")


class Database:
    """An open database. `write` and `read` are the only ways in."""

    def __init__(
        self, path: Path, writer: aiosqlite.Connection, readers: list[aiosqlite.Connection], here: sqlite3.Connection
    ) -> None:
        self.path = path
        self.damaged = False  # set for good once SQLite reports corruption: nothing is written any more
        self._writer = writer
        self._waiting = dict.fromkeys(readers, 0)  # reads that each reader has to run
        self._slow: set[aiosqlite.Connection] = set()  # readers with a read_within
        self._here = here
        self._closing = False
        self._part = asyncio.Lock()

    async def write(self, function: Function[P, T], *args: P.args, **kw: P.kwargs) -> T:
        """Run `function(connection, *args)` as one transaction: all of it is on disk when this returns, or nothing is.

        A caller that is cancelled meanwhile does not stop it. Raises StorageUnavailable when the disk says no.
        """
        return await self._run(self._writer, _transaction, "BEGIN IMMEDIATE", function, *args, **kw)

    async def write_unsynced(self, function: Function[P, T], *args: P.args, **kw: P.kwargs) -> T:
        """`write`, for what nobody has been promised: a power cut may undo it until the next `write`, a crash does not."""
        return await self._run(self._writer, _unsynced, "BEGIN IMMEDIATE", function, *args, **kw)

    async def write_part(self, function: Function[P, T], *args: P.args, **kw: P.kwargs) -> T:
        """`write` for one part of long work. At most one part is in the writer's queue, so that other writes wait for one only."""
        async with self._part:
            return await self.write(function, *args, **kw)

    async def read(self, function: Function[P, T], *args: P.args, **kw: P.kwargs) -> T:
        """Run `function(connection, *args)` on one snapshot, with writing refused."""
        return await self._read(self._next_reader(), function, *args, **kw)

    async def read_within(self, seconds: float, function: Function[P, T], *args: P.args, **kw: P.kwargs) -> T:
        """`read` with a time limit. Raises QueryTimeout. Cancelling the caller ends the query too.

        The caller runs at most READERS - 1 of these at a time, so that a reader is always free for `read`.
        """
        reader, canceled = self._next_reader(), threading.Event()
        self._slow.add(reader)
        reading = asyncio.ensure_future(self._read(reader, _limited, seconds, canceled, function, args, kw))
        reading.add_done_callback(lambda _: self._slow.discard(reader))
        try:
            return await asyncio.shield(reading)
        finally:
            canceled.set()
            await asyncio.gather(reading, return_exceptions=True)  # else the next one would wait behind it

    def _next_reader(self) -> aiosqlite.Connection:
        """The reader with the fewest reads to run. One with a slow read comes last."""
        return min(self._waiting, key=lambda reader: (reader in self._slow, self._waiting[reader]))

    async def _read(self, reader: aiosqlite.Connection, function: Function[P, T], *args: P.args, **kw: P.kwargs) -> T:
        self._waiting[reader] += 1
        try:
            return await self._run(reader, _transaction, "BEGIN", function, *args, **kw)
        finally:
            self._waiting[reader] -= 1

    def read_here(self, function: Function[P, T], *args: P.args, **kw: P.kwargs) -> T:
        """`read` on the event loop's own thread, for a row or two by their keys: a fifth of what the way to another thread takes."""
        if self._closing:
            raise Stopping
        with self._failing():
            result: T = _transaction(self._here, "BEGIN", function, args, kw)
        return result

    async def _run(
        self,
        connection: aiosqlite.Connection,
        transaction: Callable[..., T],
        begin: str,
        function: Function[P, T],
        *args: P.args,
        **kw: P.kwargs,
    ) -> T:
        if self._closing:
            raise Stopping
        if self.damaged and connection is self._writer:
            raise StorageUnavailable("The database is damaged and is not written any more. Run: fireside doctor")
        with self._failing():
            result: T = await _on_thread(connection, transaction, begin, function, args, kw)
        return result

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """Says StorageUnavailable for what SQLite says."""
        try:
            yield
        except sqlite3.IntegrityError:
            raise
        except json.JSONDecodeError:
            log.error("The database is damaged: what should be JSON in it is not")
            raise StorageUnavailable("The database is damaged. Run: fireside doctor") from None
        except sqlite3.DatabaseError as error:
            if _name(error) in ("SQLITE_CORRUPT", "SQLITE_NOTADB"):
                self.damaged = True
            unavailable = _unavailable(error)
            if unavailable is None:
                raise
            log.error("%s: %s", _name(error), error)
            raise unavailable from error

    async def close(self) -> None:
        """After what has been asked for so far; who comes later is told Stopping.

        Readers first: the last connection to close checkpoints, and that must be the writer."""
        self._closing = True
        self._here.close()
        for connection in (*self._waiting, self._writer):
            try:
                await connection.close()
            except sqlite3.Error as error:
                log.error("closing the database: %s", error)


def insert(conn: Connection, sql: str, values: Sequence[Any] | Mapping[str, Any]) -> int:
    """The id of the new row."""
    row = conn.execute(sql, values).lastrowid
    assert row is not None
    return row


async def _on_thread(connection: aiosqlite.Connection, function: Callable[..., T], *args: object) -> T:
    """aiosqlite has no public way to run a function on its thread; this private one is why its version is pinned."""
    execute: Callable[..., Awaitable[T]] = connection._execute
    return await execute(function, connection._conn, *args)


def _transaction(
    connection: sqlite3.Connection, begin: str, function: Callable[..., T], args: tuple[Any, ...], kw: dict[str, Any]
) -> T:
    while True:
        connection.execute(begin)
        try:
            result = function(connection, *args, **kw)
            connection.execute("COMMIT")
            return result
        except BaseException as error:
            if connection.in_transaction:  # SQLite rolls back by itself when the disk is full
                connection.execute("ROLLBACK")
            if connection.text_factory is not str or not _is_illegible(error):
                raise
        log.error("The database is damaged: a text in it is not UTF-8, and is shown with marks in the places")
        connection.text_factory = _legible


def _limited(
    conn: Connection,
    seconds: float,
    canceled: threading.Event,
    function: Callable[..., T],
    args: tuple[Any, ...],
    kw: dict[str, Any],
) -> T:
    """Run `function(conn, *args)`. Raise QueryTimeout after `seconds`, or when `canceled` is set."""
    deadline = time.monotonic() + seconds
    conn.set_progress_handler(lambda: canceled.is_set() or time.monotonic() > deadline, PROGRESS_STEPS)
    try:
        return function(conn, *args, **kw)
    except sqlite3.OperationalError as error:
        if _name(error) == "SQLITE_INTERRUPT":
            raise QueryTimeout from None
        raise
    finally:
        conn.set_progress_handler(None, 0)


def _is_illegible(error: BaseException) -> bool:
    """Python's own complaint about a text that is not UTF-8. It quotes the text, so it must get no further."""
    return isinstance(error, sqlite3.OperationalError) and str(error).startswith("Could not decode to UTF-8")


def _legible(text: bytes) -> str:
    return text.decode("utf-8", "replace")


def _unsynced(connection: sqlite3.Connection, *transaction: Any) -> Any:
    connection.execute("PRAGMA synchronous = NORMAL")
    try:
        return _transaction(connection, *transaction)
    finally:
        connection.execute("PRAGMA synchronous = FULL")


def _name(error: Exception) -> str:
    """The primary result code, such as SQLITE_IOERR for SQLITE_IOERR_WRITE."""
    return "_".join(str(getattr(error, "sqlite_errorname", "")).split("_")[:2])


def _unavailable(error: sqlite3.Error) -> StorageUnavailable | None:
    reasons = {
        "SQLITE_FULL": "The disk is full. Nothing was changed; free some space and try again.",
        "SQLITE_IOERR": "The disk could not be written or read. Nothing was changed.",
        "SQLITE_READONLY": "The database is read-only. Nothing was changed.",
        "SQLITE_CANTOPEN": "The database cannot be opened. Nothing was changed.",
        "SQLITE_BUSY": "Another program holds the database. Nothing was changed; try again.",
        "SQLITE_LOCKED": "Another program holds the database. Nothing was changed; try again.",
        "SQLITE_CORRUPT": "The database is damaged. Run: fireside doctor",
        "SQLITE_NOTADB": "The database is damaged. Run: fireside doctor",
    }
    reason = reasons.get(_name(error))
    return StorageUnavailable(reason) if reason else None


@contextlib.contextmanager
def lock(data_dir: Path) -> Iterator[None]:
    """Lock the data directory for this process; create it, private to its owner, if needed.

    Raises DatabaseUnusable when another process holds the lock for longer than LOCK_RETRY_SECONDS."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise DatabaseUnusable(f"{data_dir}: cannot be used as data directory: {error.strerror}") from None
    deadline = time.monotonic() + LOCK_RETRY_SECONDS
    try:
        while not _lock_file(descriptor):
            if time.monotonic() > deadline:
                holder = os.read(descriptor, 20).decode(errors="replace").strip() or "unknown"
                raise DatabaseUnusable(f"{data_dir}: is in use by another Fireside, process {holder}")
            time.sleep(0.01)
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        os.close(descriptor)


def lock_holder(data_dir: Path) -> int | None:
    """Return the id of the process that holds `lock`, or None. Raises OSError when the lock file cannot be opened, and
    ValueError while the holder writes its id."""
    descriptor = os.open(data_dir / "lock", os.O_RDWR)
    try:
        return None if _lock_file(descriptor) else int(os.read(descriptor, 20))
    finally:
        os.close(descriptor)


if sys.platform == "win32":
    import msvcrt

    def _lock_now(descriptor: int) -> None:
        os.lseek(descriptor, 1 << 20, os.SEEK_SET)  # beyond the text: a locked range cannot be read by others
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock_now(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _lock_file(descriptor: int) -> bool:
    """Lock the open file without waiting. Returns whether that succeeded."""
    try:
        _lock_now(descriptor)
        return True
    except OSError:
        return False
    finally:
        os.lseek(descriptor, 0, os.SEEK_SET)


async def open_database(path: Path) -> Database:
    """Open the file, creating or migrating it. The caller holds the lock. Raises DatabaseUnusable."""
    await asyncio.to_thread(prepare, path)
    connections: list[aiosqlite.Connection] = []
    here = sqlite3.connect(path, isolation_level=None, cached_statements=256)
    try:
        _configure(here, False)
        for number in range(1 + READERS):
            connection = await aiosqlite.connect(path, isolation_level=None, cached_statements=256)
            connections.append(connection)
            await _on_thread(connection, _configure, number == 0)
    except BaseException:
        here.close()
        for connection in reversed(connections):
            await connection.close()
        raise
    return Database(path, connections[0], connections[1:], here)


def prepare(path: Path, migrations: tuple[str, ...] = MIGRATIONS) -> None:
    """Create, check and migrate the file, with a copy beside it before a migration. Raises DatabaseUnusable."""
    newest = 1 + len(migrations)
    if _restored(path).exists():
        _put_in_place(path)
    with contextlib.suppress(FileExistsError):
        create_private(path).close()  # -wal and -shm take their modes from it
    try:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            version = _version(connection, path, newest)
            if version and path.stat().st_size <= CHECK_AT_START_BYTES:
                check(connection)
            _configure(connection, writer=True)
            if version == 0:
                _refuse_to_forget(path)
                create(connection)
                return
            if version < newest:
                copy(path, path.parent / "backups" / f"before-schema-{version + 1}-{now()[:19].replace(':', '')}.db")
                for script in migrations[version - 1 :]:
                    connection.executescript(script)
    except sqlite3.DatabaseError as error:
        raise DatabaseUnusable(explain(path, error)) from error


def _refuse_to_forget(path: Path) -> None:
    """No new database where one has been: its backups would be rotated away behind an empty one."""
    backup = newest_backup(path.parent)
    if backup:
        raise DatabaseUnusable(
            f"{path}: is empty, yet there are backups of it. Run: fireside restore {backup} "
            "(or move the folder backups away, to begin anew)"
        )


def _version(connection: sqlite3.Connection, path: Path, newest: int = VERSION) -> int:
    """The file's schema version, 0 when it is empty. Changes nothing. Raises DatabaseUnusable when it is not ours to open."""
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    empty = version == 0 and not connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if not empty and connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise DatabaseUnusable(f"{path}: is an SQLite file, but not one of Fireside's")
    if version > newest:
        raise DatabaseUnusable(
            f"{path}: was written by a newer Fireside (schema {version}; this one knows {newest}). "
            "Install the newer one again, or restore a backup."
        )
    return version


def create(connection: sqlite3.Connection) -> None:
    """The newest schema, in an empty file."""
    schema = resources.files("fireside").joinpath("schema.sql").read_text("utf-8")
    pragmas = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {VERSION};"
    connection.executescript(f"BEGIN IMMEDIATE;\n{schema}\n{pragmas}\nCOMMIT;")


def check(connection: sqlite3.Connection) -> None:
    """SQLite's own quick check and the foreign keys. Raises Unsound."""
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise Unsound(found)
    orphan = connection.execute("PRAGMA foreign_key_check").fetchone()
    if orphan is not None:
        raise Unsound(f"a row of {orphan[0]} has lost what it belongs to")


def explain(path: Path, error: Exception) -> str:
    """What is wrong with the database of a data directory, in one line, and what to do."""
    if isinstance(error, DatabaseUnusable):
        return str(error)
    unsure = _name(error) in ("SQLITE_IOERR", "SQLITE_CANTOPEN")
    if _name(error) == "SQLITE_FULL" or (unsure and shutil.disk_usage(path.parent).free < ROOM):
        return f"{path}: the disk is full. Make room and start again."
    backup = newest_backup(path.parent)
    newest = f"The newest backup is {backup}: fireside restore FILE." if backup else "There is no backup."
    damaged = isinstance(error, Unsound) or _name(error) == "SQLITE_CORRUPT"
    saved = " What can still be read of it: fireside salvage NEW." if damaged else ""
    return f"{path}: cannot be used: {' '.join(str(error).split())}. The file was left as it is.{saved} {newest}"


def newest_backup(data_dir: Path) -> Path | None:
    """What a restore has put away there is no backup: it may be what had to be replaced."""
    files = [file for file in (data_dir / "backups").glob("*.db") if file.is_file()]
    backups = [file for file in files if not file.name.startswith(PUT_AWAY)]
    return max(backups, key=lambda file: file.stat().st_mtime, default=None)


def _configure(connection: sqlite3.Connection, writer: bool) -> None:
    connection.row_factory = sqlite3.Row
    connection.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")  # a damaged page is found when read, not when it has been used
    connection.execute("PRAGMA temp_store = MEMORY")
    if not writer:
        connection.execute("PRAGMA query_only = ON")
        return
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise sqlite3.OperationalError(f"the file system does not take SQLite's write-ahead log (it says {mode})")
    connection.execute("PRAGMA synchronous = FULL")  # NORMAL may lose an acknowledged message to a power cut
    connection.execute("PRAGMA fullfsync = ON")  # on macOS fsync alone does not reach the disk
    connection.execute("PRAGMA secure_delete = ON")
    connection.execute("PRAGMA journal_size_limit = 67108864")


def _open_to_read(path: Path) -> sqlite3.Connection:
    posix = path.absolute().as_posix()  # and not as_uri: SQLite takes a Windows share for the name of a host
    address = f"file://{'' if posix.startswith('/') else '/'}{quote(posix, safe='/:')}?mode=ro"
    return sqlite3.connect(address, uri=True, isolation_level=None)


def open_damaged(path: Path) -> sqlite3.Connection:
    """To read what can be read, also where the end is missing. Raises DatabaseUnusable, sqlite3.Error."""
    connection = _open_to_read(path)
    connection.execute("PRAGMA writable_schema = ON")  # else SQLite refuses a file that is shorter than it says
    _configure(connection, writer=False)
    _version(connection, path)
    return connection


def copy(source: Path, target: Path) -> None:
    """A consistent, checked copy of a database that may be in use, private to its owner. Replaces `target` at once or not at all.

    Raises sqlite3.Error (Unsound when `source` is) or OSError, and leaves nothing behind then: FileExistsError when `target`
    is there and is no earlier copy.
    """
    if target.exists() and (target.samefile(source) or not _is_ours(target)):
        raise FileExistsError(errno.EEXIST, "is there already, and is no backup", str(target))
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    partial.unlink(missing_ok=True)
    create_private(partial).close()
    try:
        with (
            contextlib.closing(_open_to_read(source)) as reader,
            contextlib.closing(sqlite3.connect(partial)) as writer,
        ):
            reader.backup(writer)
            writer.execute("PRAGMA journal_mode = DELETE")  # one file, nothing beside it
            check(writer)
        with partial.open("r+b") as file:
            os.fsync(file.fileno())
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _is_ours(path: Path) -> bool:
    """By the header of the file format (sqlite.org/fileformat.html, 1.3)."""
    with path.open("rb") as file:
        header = file.read(72)
    return header.startswith(b"SQLite format 3\0") and header[68:] == APPLICATION_ID.to_bytes(4, "big")


def back_up_daily(path: Path, keep: int) -> None:
    """A copy of today in `backups/` unless there is one, and of the earlier days the newest ones, `keep` in all."""
    if keep == 0:
        return
    folder = path.parent / "backups"
    for left in folder.glob("daily-*.partial*"):  # by a process that ended in the middle of it
        left.unlink()
    today = folder / f"daily-{now()[:10]}.db"
    if not today.exists():
        copy(path, today)
    for old in sorted(folder.glob("daily-*.db"))[:-keep]:
        old.unlink()


def examine(path: Path) -> int:
    """The schema version of a file that may be in use, after SQLite's full integrity check.

    Raises sqlite3.Error (Unsound when it is damaged), or DatabaseUnusable when it is not ours to open.
    """
    with contextlib.closing(_open_to_read(path)) as connection:
        for row in connection.execute("PRAGMA integrity_check(3)").fetchall():
            if row[0] != "ok":
                raise Unsound(row[0])
        check(connection)
        return _version(connection, path)


def restore(source: Path, path: Path) -> Path | None:
    """Put a checked copy of `source` in the place of the database. Returns where the old one is kept, if there was one.

    The caller holds the lock. Raises DatabaseUnusable and leaves everything as it was when `source` is no good.
    """
    try:
        version = examine(source)
    except sqlite3.Error as error:
        raise DatabaseUnusable(f"{source}: cannot be restored: {error}") from None
    if version == 0:
        raise DatabaseUnusable(f"{source}: cannot be restored: it is empty")
    copy(source, _restored(path))
    return _put_in_place(path)


def _restored(path: Path) -> Path:
    """Where a restore puts the new database, whole, before it moves the old one away. Where it is, the restore is to be finished."""
    return path.with_name(path.name + ".restored")


def _put_in_place(path: Path) -> Path | None:
    """Returns where the old database is kept, if there was one. Done again after a crash, it goes on where it was."""
    fresh, kept = _restored(path), None
    if path.exists():
        moment = timestamp(datetime.datetime.fromtimestamp(fresh.stat().st_mtime, datetime.UTC))
        kept = path.parent / "backups" / f"{PUT_AWAY}{moment[:19].replace(':', '')}.db"
        kept.parent.mkdir(mode=0o700, exist_ok=True)
        for ending in ("-wal", "-shm", ""):  # together they are the old database, whatever state it is in
            part = path.with_name(path.name + ending)
            if part.exists():
                part.replace(kept.with_name(kept.name + ending))
    fresh.replace(path)
    return kept
