"""The SQLite file: connections, transactions, migrations, backups and restores.

One connection writes, and it alone checkpoints: SQLite before 3.51.3 can corrupt a WAL that two connections checkpoint. The others
only read. A transaction is a function of a sqlite3.Connection that runs from BEGIN to COMMIT on the connection's thread, so that a
cancelled request cannot leave it half done (docs/decisions/0002-transactions.md). The functions are in queries/ and transfer/archive.py.
"""

import asyncio
import base64
import contextlib
import datetime
import errno
import hashlib
import json
import logging
import os
import shutil
import sqlite3
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO, Concatenate, Final, ParamSpec, TypeAlias, TypeVar
from urllib.parse import quote

import aiosqlite

from .errors import QueryTimeout, Stopping, StorageUnavailable

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

P = ParamSpec("P")
T = TypeVar("T")
Connection = sqlite3.Connection
Function: TypeAlias = Callable[Concatenate[Connection, P], T]

log = logging.getLogger("fireside.db")

READERS = 3
SLOW_READ_LOAD = 1_000  # a reader with a read_within counts as having this many reads, so that others avoid it
BUSY_TIMEOUT_MS = 5_000
DEADLINE_CHECK_STEPS = 10_000  # SQLite instructions between two checks of a deadline: 0.1 s of a full-text search
LOCK_RETRY_SECONDS = 0.5  # lock_holder holds the lock for a moment, which must not keep a server from starting
PART_SECONDS = 0.05  # of work in one transaction of long work, while other writes wait
BACKGROUND_PRIORITY = 10  # nice value; 0 is normal, 19 the lowest priority
MIN_FREE_BYTES = 1_000_000  # with less free space SQLite may report an I/O error instead of a full disk
STARTUP_CHECK_MAX_BYTES = 16 * 1024 * 1024  # a larger file is checked while it is served: reading 1 GB takes seconds
REPLACED_PREFIX = "before-restore-"  # of the names of the databases that a restore has replaced

APPLICATION_ID: Final = 0x46697265  # "Fire" in the file's header tells it from the databases of other programs
VERSION: Final = 6  # of the schema


def _read_sql(*names: str) -> str:
    return resources.files("fireside").joinpath(*names).read_text("utf-8")


# The scripts that upgrade schema 1 to 2, 2 to 3, and so on to that of schema.sql. tests/schemas has the older schemas.
MIGRATIONS = tuple(_read_sql("migrations", f"{version}.sql") for version in range(2, VERSION + 1))

PROBLEMS: dict[str, str] = {
    "SQLITE_FULL": "the disk is full; free some space",
    "SQLITE_IOERR": "the disk cannot be read or written",
    "SQLITE_READONLY": "the file is read-only",
    "SQLITE_CANTOPEN": "the file cannot be opened",
    "SQLITE_BUSY": "another program has locked the file; close that program",
    "SQLITE_LOCKED": "another program has locked the file; close that program",
    "SQLITE_CORRUPT": "the file is damaged",
    "SQLITE_NOTADB": "the file is not an SQLite database",
}


class DatabaseUnusable(Exception):
    """The database cannot be opened. The message names the file, the reason, and what to do."""


class DatabaseDamaged(sqlite3.DatabaseError):
    """A check found damage. The message describes it without naming the file."""


def now() -> str:
    """Return the time as the database and the API write it: UTC, microseconds, no offset."""
    return timestamp(datetime.datetime.now(datetime.UTC))


def timestamp(moment: datetime.datetime) -> str:
    return moment.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")


def ago(**span: float) -> str:
    """Return the time before now by, for example, days=30."""
    return timestamp(datetime.datetime.now(datetime.UTC) - datetime.timedelta(**span))


def create_private(path: Path) -> BinaryIO:
    """Create a file that only its owner can read, and open it for writing. Raises FileExistsError, also for a symbolic link."""
    return os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb")


def write_private(path: Path, text: str) -> None:
    """Write or replace a file that only its owner can read. A crash leaves the old or the new file, not a part of it."""
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    with create_private(partial) as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


Values: TypeAlias = Sequence[Any] | Mapping[str, Any]


def insert(conn: Connection, sql: str, values: Values) -> int:
    """Run an INSERT and return the id of the new row."""
    row_id = conn.execute(sql, values).lastrowid
    assert row_id is not None
    return row_id


def insert_row(conn: Connection, table: str, columns: Mapping[str, Any]) -> int:
    """Insert a row with these columns, by their names, and return its id."""
    values = ", ".join(f":{name}" for name in columns)
    return insert(conn, f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({values})", columns)


def fetch(conn: Connection, sql: str, values: Values, missing: Exception) -> sqlite3.Row:
    """Return the first row. Raises `missing` when there is none."""
    row: sqlite3.Row | None = conn.execute(sql, values).fetchone()
    if row is None:
        raise missing
    return row


def scalar(conn: Connection, sql: str, values: Values = ()) -> Any:
    """Return the first column of the first row, or None when there is no row."""
    row = conn.execute(sql, values).fetchone()
    return row[0] if row else None


def scalars(conn: Connection, sql: str, values: Values = ()) -> list[Any]:
    """Return the first column of every row."""
    return [row[0] for row in conn.execute(sql, values)]


# ---------------------------------------------------------------------------------------------------- transactions


def one_part(items: Iterable[T]) -> Iterator[T]:
    """Yield items for PART_SECONDS, but at least one: the work of one transaction of `Database.write_part`."""
    end = time.monotonic() + PART_SECONDS
    for item in items:
        yield item
        if time.monotonic() > end:
            return


class Database:
    """An open database. Each method that takes a function runs `function(connection, *args)` as one transaction."""

    def __init__(
        self, path: Path, writer: aiosqlite.Connection, readers: list[aiosqlite.Connection], loop_reader: Connection
    ) -> None:
        self.path = path
        self.damaged = False  # set when SQLite reports damage; from then on every write is refused
        self._writer = writer
        self._readers = readers
        self._loop_reader = loop_reader  # used on the event loop's thread
        self._load: Counter[aiosqlite.Connection] = Counter()  # transactions that wait or run on each connection
        self._turns = weakref.WeakValueDictionary[Hashable, asyncio.Lock]()  # of users who have transactions to write
        self._closing = False

    async def write(self, function: Function[P, T], *args: P.args, **kw: P.kwargs) -> T:
        """Commit a transaction: when this returns, all of it is on disk. Raises StorageUnavailable, and nothing is changed.

        Cancelling the caller does not stop the transaction.
        """
        return await self._run(self._writer, lambda conn: _transaction(conn, "BEGIN IMMEDIATE", function, *args, **kw))

    async def write_unsynced(self, function: Function[P, T], *args: P.args, **kw: P.kwargs) -> T:
        """Commit without fsync. Until the next `write` a power cut may lose the transaction; a crash does not."""

        def unsynced(conn: Connection) -> T:
            conn.execute("PRAGMA synchronous = NORMAL")
            try:
                return _transaction(conn, "BEGIN IMMEDIATE", function, *args, **kw)
            finally:
                conn.execute("PRAGMA synchronous = FULL")

        return await self._run(self._writer, unsynced)

    async def write_for(self, user: Hashable, function: Function[P, T], *args: P.args, **kw: P.kwargs) -> T:
        """`write`, but at most one transaction of a user is in the writer's queue, so that the writes of others wait for one only.

        Cancelling the caller before the user's turn cancels the transaction.
        """
        async with self._turns.setdefault(user, asyncio.Lock()):
            return await self.write(function, *args, **kw)

    async def write_part(self, function: Function[P, T], *args: P.args, **kw: P.kwargs) -> T:
        """`write` one part of long work of any user. At most one part is in the writer's queue."""
        return await self.write_for(None, function, *args, **kw)

    async def read(self, function: Function[P, T], *args: P.args, **kw: P.kwargs) -> T:
        """Read from one snapshot. Statements that write fail."""
        return await self._run(self._least_busy(), lambda conn: _transaction(conn, "BEGIN", function, *args, **kw))

    async def read_within(self, seconds: float, function: Function[P, T], *args: P.args, **kw: P.kwargs) -> T:
        """`read` with a time limit. Raises QueryTimeout. Cancelling the caller stops the query.

        The caller runs at most READERS - 1 of these at a time, so that a reader is always free for `read`.
        """
        canceled = threading.Event()

        def limited(conn: Connection) -> T:
            deadline = time.monotonic() + seconds
            conn.set_progress_handler(lambda: canceled.is_set() or time.monotonic() > deadline, DEADLINE_CHECK_STEPS)
            try:
                return function(conn, *args, **kw)
            except sqlite3.OperationalError as error:
                if _code(error) == "SQLITE_INTERRUPT":
                    raise QueryTimeout from None
                raise
            finally:
                conn.set_progress_handler(None, 0)

        async def read() -> T:
            # The reader is chosen in the step that adds the load: a read of the same turn of the event loop takes another one.
            return await self._run(
                self._least_busy(), lambda conn: _transaction(conn, "BEGIN", limited), SLOW_READ_LOAD
            )

        reading = asyncio.create_task(read())
        try:
            return await asyncio.shield(reading)
        finally:
            canceled.set()
            # The caller's next read must not wait behind this one.
            await asyncio.gather(reading, return_exceptions=True)

    def read_here(self, function: Function[P, T], *args: P.args, **kw: P.kwargs) -> T:
        """`read` on the event loop's thread. For a few rows by their keys: a fifth of the time that changing threads takes."""
        if self._closing:
            raise Stopping
        try:
            return _transaction(self._loop_reader, "BEGIN", function, *args, **kw)
        except (sqlite3.DatabaseError, json.JSONDecodeError) as error:
            raise self._storage_error(error) from None

    def _least_busy(self) -> aiosqlite.Connection:
        return min(self._readers, key=self._load.__getitem__)

    async def _run(self, connection: aiosqlite.Connection, function: Callable[[Connection], T], load: int = 1) -> T:
        """Run a function on a connection's thread."""
        if self._closing:
            raise Stopping
        if self.damaged and connection is self._writer:
            raise StorageUnavailable("The database is damaged, so nothing more is written. Run: fireside doctor")
        # aiosqlite has no public method for this; pyproject.toml therefore pins its version.
        execute: Callable[..., Awaitable[T]] = connection._execute
        self._load[connection] += load
        try:
            return await execute(function, connection._conn)
        except (sqlite3.DatabaseError, json.JSONDecodeError) as error:
            raise self._storage_error(error) from None
        finally:
            self._load[connection] -= load

    def _storage_error(self, error: sqlite3.DatabaseError | json.JSONDecodeError) -> Exception:
        """Return the StorageUnavailable to raise for an error, or the error itself when the file and the disk are not its cause."""
        if isinstance(error, json.JSONDecodeError):
            log.error("The database is damaged: a column that holds JSON has other text in it")
            return StorageUnavailable("The database is damaged. Run: fireside doctor")
        code = _code(error)
        if code not in PROBLEMS:
            return error
        log.error("%s: %s", code, error)
        if is_damage(error):
            self.damaged = True
            return StorageUnavailable("The database is damaged. Run: fireside doctor")
        return StorageUnavailable(
            f"The database cannot be used: {PROBLEMS[code]}. Changes that were not confirmed are not saved."
        )

    async def close(self) -> None:
        """Finish the transactions that have been queued, then close. Later calls raise Stopping."""
        self._closing = True
        self._loop_reader.close()
        # The writer last: the last connection to close checkpoints.
        for connection in (*self._readers, self._writer):
            try:
                await connection.close()
            except sqlite3.Error as error:
                log.error("closing the database: %s", error)


def _transaction(connection: Connection, begin: str, function: Function[P, T], *args: P.args, **kw: P.kwargs) -> T:
    try:
        connection.execute(begin)
        result = function(connection, *args, **kw)
        connection.execute("COMMIT")
        return result
    except BaseException as error:
        if connection.in_transaction:  # SQLite rolls back by itself when the disk is full
            connection.execute("ROLLBACK")
        # Python's message quotes the text, which must not reach a log.
        if connection.text_factory is not str or not str(error).startswith("Could not decode to UTF-8"):
            raise
    log.error("The database is damaged: it has text that is not UTF-8. The damaged characters are shown as U+FFFD")
    connection.text_factory = lambda data: data.decode("utf-8", "replace")
    return _transaction(connection, begin, function, *args, **kw)


def is_damage(error: Exception) -> bool:
    """Return whether an error means that the file is damaged."""
    return isinstance(error, DatabaseDamaged) or _code(error) in ("SQLITE_CORRUPT", "SQLITE_NOTADB")


def _code(error: Exception) -> str:
    """Return SQLite's primary result code, such as SQLITE_IOERR for SQLITE_IOERR_WRITE."""
    return "_".join(str(getattr(error, "sqlite_errorname", "")).split("_")[:2])


@contextlib.contextmanager
def lock(data_dir: Path) -> Iterator[None]:
    """Lock the data directory for this process. Create it, private to its owner, if needed.

    Raises DatabaseUnusable when another process holds the lock for longer than LOCK_RETRY_SECONDS.
    """
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


def _lock_file(descriptor: int) -> bool:
    """Lock the open file without waiting. Return whether that succeeded."""
    try:
        if sys.platform == "win32":
            os.lseek(descriptor, 1 << 20, os.SEEK_SET)  # after the process id, since others cannot read a locked range
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
    finally:
        os.lseek(descriptor, 0, os.SEEK_SET)


# ---------------------------------------------------------------------------------------------------- opening


async def open_database(path: Path) -> Database:
    """Open the file; create or migrate it if needed. The caller holds the lock. Raises DatabaseUnusable."""
    await asyncio.to_thread(prepare, path)
    opened: list[aiosqlite.Connection] = []
    try:
        for number in range(1 + READERS):
            opened.append(await aiosqlite.Connection(partial(_connect, path, writer=number == 0), iter_chunk_size=64))
        return Database(path, opened[0], opened[1:], _connect(path, writer=False))
    except BaseException:
        for connection in reversed(opened):
            await connection.close()
        raise


def prepare(path: Path, migrations: tuple[str, ...] = MIGRATIONS) -> None:
    """Create, check and migrate the file. It is copied to backups/ before a migration. Raises DatabaseUnusable."""
    newest = 1 + len(migrations)
    if _pending_restore(path).exists():
        _finish_restore(path)
    with contextlib.suppress(FileExistsError):
        create_private(path).close()  # SQLite gives the -wal and -shm files the same mode
    try:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            version = _version(connection, path, newest)
            if version and path.stat().st_size <= STARTUP_CHECK_MAX_BYTES:
                check(connection)
            _configure(connection, writer=True)
            connection.create_function("sha256", 1, lambda data: hashlib.sha256(data).digest(), deterministic=True)
            connection.create_function("base64_decode", 1, base64.b64decode, deterministic=True)
            if version == 0:
                # The daily backups of an empty database would replace those of the lost one.
                if backup := newest_backup(path.parent):
                    raise DatabaseUnusable(
                        f"{path}: is empty, but there are backups. Run: fireside restore {backup} "
                        "(or move the folder backups away to start with an empty database)"
                    )
                create(connection)
            elif version < newest:
                copy(path, path.parent / "backups" / f"before-schema-{version + 1}-{now()[:19].replace(':', '')}.db")
                for number, script in enumerate(migrations[version - 1 :], version + 1):
                    _upgrade(connection, script, number)
    except sqlite3.DatabaseError as error:
        raise DatabaseUnusable(advice(path, error)) from error


def create(connection: Connection) -> None:
    """Create the newest schema in an empty file."""
    _upgrade(connection, f"PRAGMA application_id = {APPLICATION_ID};\n{_read_sql('schema.sql')}", VERSION)


def _upgrade(connection: Connection, script: str, version: int) -> None:
    """Run a script and set the schema version, in one transaction."""
    connection.executescript(f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version = {version};\nCOMMIT;")


def _connect(path: Path, writer: bool) -> Connection:
    connection = sqlite3.connect(path, isolation_level=None, cached_statements=256)
    _configure(connection, writer)
    return connection


def _configure(connection: Connection, writer: bool) -> None:
    connection.row_factory = sqlite3.Row
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")  # find a damaged page when it is read, before its content is used
    connection.execute("PRAGMA temp_store = MEMORY")
    if not writer:
        connection.execute("PRAGMA query_only = ON")
        return
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise DatabaseUnusable("the file system of the data directory does not support SQLite's write-ahead log")
    connection.execute("PRAGMA synchronous = FULL")  # NORMAL may lose an acknowledged message in a power cut
    connection.execute("PRAGMA fullfsync = ON")  # on macOS fsync alone does not reach the disk
    connection.execute("PRAGMA secure_delete = ON")
    connection.execute("PRAGMA journal_size_limit = 67108864")


def _open_to_read(path: Path) -> Connection:
    # as_uri() would make the server of a Windows share a host name, which SQLite refuses.
    posix = path.absolute().as_posix()
    address = f"file://{'' if posix.startswith('/') else '/'}{quote(posix, safe='/:')}?mode=ro"
    return sqlite3.connect(address, uri=True, isolation_level=None)


def open_damaged(path: Path) -> Connection:
    """Open a damaged file to read what is readable. Raises DatabaseUnusable, sqlite3.Error."""
    connection = _open_to_read(path)
    connection.execute("PRAGMA writable_schema = ON")  # SQLite then also opens a file whose end is missing
    _configure(connection, writer=False)
    _version(connection, path)
    return connection


def _version(connection: Connection, path: Path, newest: int = VERSION) -> int:
    """Return the file's schema version, 0 when it is empty. Raises DatabaseUnusable for a file that Fireside must not open."""
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    empty = version == 0 and not connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if not empty and connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise DatabaseUnusable(f"{path}: is the SQLite database of another program")
    if version > newest:
        raise DatabaseUnusable(
            f"{path}: was written by a newer Fireside (schema {version}; this one knows {newest}). "
            "Install the newer one again, or restore a backup."
        )
    return version


def check(connection: Connection, pragma: str = "quick_check") -> None:
    """Run an integrity check of SQLite, and check the foreign keys. Raises DatabaseDamaged."""
    if connection.execute(f"PRAGMA {pragma}(1)").fetchone()[0] != "ok":
        raise DatabaseDamaged("SQLite's integrity check found damage")
    orphan = connection.execute("PRAGMA foreign_key_check").fetchone()
    if orphan is not None:
        raise DatabaseDamaged(f"a row of the table {orphan[0]} refers to a row that is missing")


def check_file(path: Path) -> int:
    """Return the schema version of a file that may be in use, after SQLite's full integrity check.

    Raises sqlite3.Error (DatabaseDamaged when the check finds damage), or DatabaseUnusable for a file that Fireside must not open.
    """
    with contextlib.closing(_open_to_read(path)) as connection:
        check(connection, "integrity_check")
        return _version(connection, path)


def problem(error: sqlite3.Error | DatabaseUnusable) -> str:
    """Return what went wrong as a clause for people."""
    if isinstance(error, DatabaseDamaged | DatabaseUnusable):
        return str(error)
    return PROBLEMS.get(_code(error), f"SQLite failed with {_code(error) or 'an unknown error'}")


def advice(path: Path, error: sqlite3.Error | DatabaseUnusable) -> str:
    """Return one line about the database of a data directory: what is wrong, and what to do."""
    if isinstance(error, DatabaseUnusable):
        return str(error)
    code = _code(error)
    disk_may_be_full = code in ("SQLITE_IOERR", "SQLITE_CANTOPEN")
    if code == "SQLITE_FULL" or (disk_may_be_full and shutil.disk_usage(path.parent).free < MIN_FREE_BYTES):
        return f"{path}: the disk is full. Make room and start again."
    backup = newest_backup(path.parent)
    restore = f"The newest backup is {backup}: fireside restore {backup}." if backup else "There is no backup."
    damaged = isinstance(error, DatabaseDamaged) or code == "SQLITE_CORRUPT"
    salvage = " To save what can still be read: fireside salvage NEW." if damaged else ""
    return f"{path}: cannot be used: {problem(error)}. The file was left as it is.{salvage} {restore}"


# ---------------------------------------------------------------------------------------------------- backups


async def in_background(function: Callable[P, T], *args: P.args, **kw: P.kwargs) -> T:
    """Run a function in a thread of its own, which has a lower priority on Linux. For checks and copies of the whole file."""
    pool = ThreadPoolExecutor(1, initializer=_lower_priority)
    try:
        return await asyncio.get_running_loop().run_in_executor(pool, partial(function, *args, **kw))
    finally:
        pool.shutdown(wait=False)


def _lower_priority() -> None:
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):  # only root may raise a priority, and a container may forbid the call
            os.setpriority(os.PRIO_PROCESS, thread, max(BACKGROUND_PRIORITY, os.getpriority(os.PRIO_PROCESS, thread)))


def copy(source: Path, target: Path) -> None:
    """Write a consistent, checked copy of a database that may be in use, private to its owner. Replaces `target` atomically.

    Raises sqlite3.Error (DatabaseDamaged when `source` is), or OSError (FileExistsError when `target` is not an earlier copy);
    `target` is then unchanged.
    """
    if target.exists() and (target.samefile(source) or not _is_fireside_database(target)):
        raise FileExistsError(errno.EEXIST, "exists and is not a backup. Choose another file.", str(target))
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial_copy = target.with_name(target.name + ".partial")
    partial_copy.unlink(missing_ok=True)
    create_private(partial_copy).close()
    try:
        with (
            contextlib.closing(_open_to_read(source)) as reader,
            contextlib.closing(sqlite3.connect(partial_copy)) as writer,
        ):
            reader.backup(writer)
            writer.execute("PRAGMA journal_mode = DELETE")  # one file, without -wal and -shm
            check(writer)
        with partial_copy.open("r+b") as file:
            os.fsync(file.fileno())
        partial_copy.replace(target)
    except BaseException:
        partial_copy.unlink(missing_ok=True)
        raise


def _is_fireside_database(path: Path) -> bool:
    """Read the header of the file format (sqlite.org/fileformat.html, 1.3)."""
    with path.open("rb") as file:
        header = file.read(72)
    return header.startswith(b"SQLite format 3\0") and header[68:] == APPLICATION_ID.to_bytes(4, "big")


def measure(path: Path) -> dict[str, int]:
    """Return the sizes of the database and of all backups, the number of backups, and the free space on the disk."""
    files = [path, path.with_name(path.name + "-wal")]
    backups = [file for file in (path.parent / "backups").glob("*.db") if file.is_file()]
    return {
        "database_bytes": sum(file.stat().st_size for file in files if file.exists()),
        "backup_bytes": sum(file.stat().st_size for file in backups),
        "backups": len(backups),
        "free_bytes": shutil.disk_usage(path.parent).free,
    }


def back_up_daily(path: Path, keep: int) -> None:
    """Copy the database to `backups/` once a day, and keep the newest `keep` daily copies."""
    if keep == 0:
        return
    folder = path.parent / "backups"
    for leftover in folder.glob("daily-*.partial*"):  # of a process that was killed
        leftover.unlink()
    today = folder / f"daily-{now()[:10]}.db"
    if not today.exists():
        copy(path, today)
    for old in sorted(folder.glob("daily-*.db"))[:-keep]:
        old.unlink()


def newest_backup(data_dir: Path) -> Path | None:
    """Return the newest backup, or None. A database that a restore replaced may be damaged, so it is not a backup."""
    files = [file for file in (data_dir / "backups").glob("*.db") if file.is_file()]
    backups = [file for file in files if not file.name.startswith(REPLACED_PREFIX)]
    return max(backups, key=lambda file: file.stat().st_mtime, default=None)


def restore(source: Path, path: Path) -> Path | None:
    """Replace the database with a checked copy of `source`. Return where the old database is kept, or None if there was none.

    The caller holds the lock. Raises DatabaseUnusable when `source` cannot be restored; nothing is changed then.
    """
    try:
        version = check_file(source)
    except sqlite3.Error as error:
        raise DatabaseUnusable(f"{source}: cannot be restored: {problem(error)}") from None
    if version == 0:
        raise DatabaseUnusable(f"{source}: cannot be restored: it is empty")
    copy(source, _pending_restore(path))
    return _finish_restore(path)


def _pending_restore(path: Path) -> Path:
    """Return where a restore puts the whole new database first. While that file exists the restore is not finished."""
    return path.with_name(path.name + ".restored")


def _finish_restore(path: Path) -> Path | None:
    """Move the old database to backups/ and the new one into its place. Called again after a crash, it continues."""
    restored, has_old = _pending_restore(path), path.exists()
    # From the new file's time, so that a continued restore finds the name again.
    moment = timestamp(datetime.datetime.fromtimestamp(restored.stat().st_mtime, datetime.UTC))
    kept = path.parent / "backups" / f"{REPLACED_PREFIX}{moment.replace(':', '')}.db"
    # Also the -wal of a database that was deleted: SQLite would apply it to the new one.
    for suffix in ("-wal", "-shm", ""):
        part = path.with_name(path.name + suffix)
        if part.exists():
            kept.parent.mkdir(mode=0o700, exist_ok=True)
            part.replace(kept.with_name(kept.name + suffix))
    restored.replace(path)
    return kept if has_old else None
