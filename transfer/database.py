"""Opens an SQLite database of another program to read it. The file is untrusted."""

import sqlite3
from pathlib import Path
from typing import Any

MAGIC = b"SQLite format 3\0"
_JOURNAL = slice(18, 20)  # of the file's header: 1 and 1, or 2 and 2 in WAL mode


def open_untrusted(database: Path | bytes) -> sqlite3.Connection:
    """Open a file or its bytes. Raises OSError and sqlite3.Error."""
    if isinstance(database, bytes):
        conn = sqlite3.connect(":memory:")
        conn.deserialize(database[: _JOURNAL.start] + b"\1\1" + database[_JOURNAL.stop :])  # memory has no WAL
    else:
        with database.open("rb") as file:
            is_wal = file.read(_JOURNAL.stop)[_JOURNAL] == b"\2\2"
        # Without its WAL the file is complete, and SQLite would leave a new one beside it.
        immutable = "&immutable=1" if is_wal and not Path(f"{database}-wal").exists() else ""
        conn = sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro{immutable}", uri=True)
    conn.row_factory = sqlite3.Row
    conn.text_factory = lambda data: data.decode("utf-8", "replace")
    for pragma in ("trusted_schema = 0", "cell_size_check = 1", "query_only = 1"):
        conn.execute(f"PRAGMA {pragma}")
    return conn


class Reader:
    """Reads rows with all their columns, because each version of a program adds some."""

    def __init__(self, conn: sqlite3.Connection) -> None:
        """Raises sqlite3.Error."""
        self._conn = conn
        self.tables = {name for (name,) in conn.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}

    def rows(self, table: str, where: str = "1", *values: Any) -> list[dict[str, Any]]:
        """Return rows of a table, or of a table JOIN another; none when there is no such table. Raises sqlite3.Error."""
        names = [name.partition(" ")[0] for name in table.split(" JOIN ")]
        if not self.tables.issuperset(names):
            return []
        return [dict(row) for row in self._conn.execute(f"SELECT * FROM {table} WHERE {where}", values)]

    def row(self, table: str, where: str, *values: Any) -> dict[str, Any]:
        """Return the first of these rows, or {}."""
        return next(iter(self.rows(table, f"{where} LIMIT 1", *values)), {})

    def groups(self, group: str, table: str) -> dict[Any, list[Any]]:
        """Return the ids of the rows of each group, oldest first. A row is then found by its id, which has an index."""
        found: dict[Any, list[Any]] = {}
        for key, row_id in self._conn.execute(
            f"SELECT coalesce({group}, id), id FROM {table} ORDER BY datetime_utc, id"
        ):
            found.setdefault(key, []).append(row_id)
        return found
