"""Opens an SQLite database of another program to read it. The file is untrusted."""

import sqlite3
from pathlib import Path

MAGIC = b"SQLite format 3\0"


def open_untrusted(database: Path | bytes) -> sqlite3.Connection:
    """Open a file or its bytes. Raises sqlite3.Error."""
    if isinstance(database, bytes):
        conn = sqlite3.connect(":memory:")
        conn.deserialize(database)
    else:
        conn = sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)
    conn.row_factory = sqlite3.Row
    conn.text_factory = lambda data: data.decode("utf-8", "replace")
    for pragma in ("trusted_schema = 0", "cell_size_check = 1", "query_only = 1"):
        conn.execute(f"PRAGMA {pragma}")
    return conn
