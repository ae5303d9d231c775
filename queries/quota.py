"""The bytes that a user has stored, and their limit."""

from ..db import Connection
from ..errors import AuthRequired, QuotaExceeded


def add_stored_bytes(conn: Connection, user_id: int, size: int, limit: int = 0) -> None:
    """Add to the user's stored_bytes. Raises QuotaExceeded when they grow above a limit (0: no limit)."""
    rows = conn.execute(
        "UPDATE users SET stored_bytes = stored_bytes + ? WHERE id = ? RETURNING stored_bytes", (size, user_id)
    ).fetchall()
    if not rows:  # the account was deleted while the request ran
        raise AuthRequired
    [row] = rows
    if 0 < limit < row["stored_bytes"] and size > 0:
        raise QuotaExceeded(row["stored_bytes"], limit)


def check_quota(conn: Connection, user_id: int, size: int, limit: int) -> None:
    """Raise QuotaExceeded when so many more bytes would take the user's stored_bytes above a limit (0: no limit)."""
    [row] = conn.execute("SELECT stored_bytes FROM users WHERE id = ?", (user_id,)).fetchall()
    if 0 < limit < row["stored_bytes"] + size and size > 0:
        raise QuotaExceeded(row["stored_bytes"] + size, limit)
