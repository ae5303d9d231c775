"""Queries of personal access tokens."""

import sqlite3

from msgspec import Struct

from ..db import Connection, insert, now, scalar, scalars
from ..errors import Invalid, NotFound
from .accounts import User, get_user
from .types import from_row

MAX_TOKENS = 100  # of a user


class Token(Struct):
    id: int
    name: str
    record: bool  # whether what passes is kept as conversations
    created_at: str
    expires_at: str | None
    last_used: str | None
    requests: int


_VALID = "(t.expires_at IS NULL OR t.expires_at > ?)"


def _token(row: sqlite3.Row) -> Token:
    return from_row(Token, row, record=bool(row["record"]))


def add_token(
    conn: Connection, user_id: int, name: str, token_hash: bytes, record: bool, expires_at: str | None
) -> Token:
    """Raises Invalid when the user has MAX_TOKENS."""
    if scalar(conn, "SELECT count(*) FROM tokens WHERE user_id = ?", (user_id,)) >= MAX_TOKENS:
        raise Invalid(f"A user has at most {MAX_TOKENS} tokens. Revoke one that is no longer used.")
    sql = "INSERT INTO tokens (user_id, name, token_hash, record, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?)"
    token_id = insert(conn, sql, (user_id, name, token_hash, record, now(), expires_at))
    return _token(conn.execute("SELECT * FROM tokens WHERE id = ?", (token_id,)).fetchone())


def list_tokens(conn: Connection, user_id: int) -> list[Token]:
    """Return the user's tokens, newest first, also those that have expired."""
    rows = conn.execute("SELECT * FROM tokens WHERE user_id = ? ORDER BY id DESC", (user_id,))
    return [_token(row) for row in rows]


def get_token(conn: Connection, token_hash: bytes) -> tuple[Token, User] | None:
    """Return a token with its user, or None when it was revoked, has expired, or the user is disabled."""
    sql = f"SELECT * FROM tokens t WHERE token_hash = ? AND {_VALID}"
    row = conn.execute(sql, (token_hash, now())).fetchone()
    if row is None:
        return None
    user = get_user(conn, row["user_id"])
    return (_token(row), user) if user.status == "active" else None


def list_valid_ids(conn: Connection, user_id: int) -> set[int]:
    """Return the ids of the tokens with which the user's programs can send requests now."""
    sql = f"SELECT t.id FROM tokens t JOIN users u ON u.id = t.user_id WHERE u.id = ? AND {_VALID} AND u.status = 'active'"
    return set(scalars(conn, sql, (user_id, now())))


def set_token_used(conn: Connection, token_id: int) -> None:
    conn.execute("UPDATE tokens SET last_used = ? WHERE id = ?", (now(), token_id))


def count_request(conn: Connection, token_id: int) -> None:
    conn.execute("UPDATE tokens SET last_used = ?, requests = requests + 1 WHERE id = ?", (now(), token_id))


def delete_token(conn: Connection, user_id: int, token_id: int) -> None:
    """Revoke a token. Raises NotFound."""
    if not conn.execute("DELETE FROM tokens WHERE id = ? AND user_id = ?", (token_id, user_id)).rowcount:
        raise NotFound("token")


def delete_tokens(conn: Connection, user_id: int) -> None:
    """Revoke all tokens of a user."""
    conn.execute("DELETE FROM tokens WHERE user_id = ?", (user_id,))
