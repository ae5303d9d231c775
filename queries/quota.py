"""The bytes that a user has stored, and their limit."""

from ..db import Connection, scalar
from ..errors import AuthRequired, QuotaExceeded


def add_stored_bytes(conn: Connection, user_id: int, size: int, limit: int = 0) -> None:
    """Add to the user's stored_bytes. Raises QuotaExceeded when they grow above a limit (0: no limit)."""
    sql = "UPDATE users SET stored_bytes = stored_bytes + ? WHERE id = ? RETURNING stored_bytes"
    stored = scalar(conn, sql, (size, user_id))
    if stored is None:  # the account was deleted while the request ran
        raise AuthRequired
    if 0 < limit < stored and size > 0:
        raise QuotaExceeded(stored, limit)


def check_quota(conn: Connection, user_id: int, size: int, limit: int) -> None:
    """Raise QuotaExceeded when so many more bytes would take the user's stored_bytes above a limit (0: no limit)."""
    stored = scalar(conn, "SELECT stored_bytes FROM users WHERE id = ?", (user_id,)) + size
    if 0 < limit < stored and size > 0:
        raise QuotaExceeded(stored, limit)


def recount(conn: Connection) -> None:
    """Set every user's stored_bytes to what is stored: the UTF-8 of messages and prompts, attachments, and the text of these."""
    conn.execute(
        """
        UPDATE users SET stored_bytes = (
            SELECT coalesce(sum(length(CAST(c.system_prompt AS BLOB)) + (
                SELECT coalesce(sum(length(CAST(m.content AS BLOB)) + length(CAST(m.reasoning AS BLOB))
                    + coalesce(length(CAST(m.tools AS BLOB)), 0)), 0)
                FROM messages m WHERE m.conversation_id = c.id)
                + (SELECT coalesce(sum(length(CAST(q.content AS BLOB))), 0) FROM queued_messages q WHERE q.conversation_id = c.id)), 0)
            FROM conversations c WHERE c.user_id = users.id
        ) + (SELECT coalesce(sum(length(CAST(content AS BLOB))), 0) FROM prompts WHERE user_id = users.id)
        + (SELECT coalesce(sum(length(CAST(system_prompt AS BLOB))), 0) FROM presets WHERE user_id = users.id)
        + (SELECT coalesce(sum(size_bytes + text_bytes), 0) FROM attachments WHERE user_id = users.id AND sha256 IS NOT NULL)
        """
    )
