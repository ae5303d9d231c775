"""Queries of users, sessions, login links and invites. See conversations.py for the first parameter."""

import sqlite3
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace

from ..db import Connection, insert, now
from ..errors import BootstrapDisabled, InvalidCredentials, InvalidInvite, LastAdmin, NotFound, UsernameExists
from .types import Role

MAX_SESSIONS = 20  # of a user


class User(Struct):
    id: int
    username: str
    role: Role
    status: Literal["active", "disabled"]
    created_at: str
    last_login: str | None


class Session(Struct):
    id: int
    user: User
    last_seen: str


def count_users(conn: Connection) -> int:
    count: int = conn.execute("SELECT count(*) FROM users").fetchone()[0]
    return count


def add_first_user(conn: Connection, username: str, password_hash: str) -> User:
    if count_users(conn):
        raise BootstrapDisabled
    return _add_user(conn, username, password_hash, "admin")


# Cyrillic and Greek small letters, and the Latin letters that they look like. User names are stored in small letters.
_LOOK_ALIKES = str.maketrans(
    "авсԁеԍнһіјкӏмпорԛѕтуѵԝхьαβγεηικνορστυχωıɑɡ",
    "abcdeghhijklmnopqstyvwxbabyenikvopotuxwiag",
)


def _add_user(conn: Connection, username: str, password_hash: str, role: str) -> User:
    """Add a user. Raises UsernameExists for a name that is taken or looks like one that is."""
    rows = conn.execute("SELECT username FROM users")
    if any(row["username"].translate(_LOOK_ALIKES) == username.translate(_LOOK_ALIKES) for row in rows):
        raise UsernameExists
    sql = "INSERT INTO users (username, password_hash, role, created_at) VALUES (?, ?, ?, ?)"
    return get_user(conn, insert(conn, sql, (username, password_hash, role, now())))


_USER = "u.id, u.username, u.role, u.status, u.created_at, u.last_login"


def _user(row: sqlite3.Row) -> User:
    return User(**{name: row[name] for name in User.__struct_fields__})


def get_user(conn: Connection, user_id: int) -> User:
    row = conn.execute(f"SELECT {_USER} FROM users u WHERE id = ?", (user_id,)).fetchone()
    if row is None:
        raise NotFound("user")
    return _user(row)


def get_user_named(conn: Connection, username: str | None) -> User:
    """Return the user of that name; for None, the first active administrator. Raises NotFound."""
    condition = "role = 'admin' AND status = 'active' AND ? IS NULL" if username is None else "username = ?"
    sql = f"SELECT {_USER} FROM users u WHERE {condition} ORDER BY id LIMIT 1"
    row = conn.execute(sql, (username,)).fetchone()
    if row is None:
        raise NotFound("user")
    return _user(row)


def get_password(conn: Connection, username: str) -> tuple[User, str] | None:
    """Return the user and the password's hash."""
    row = conn.execute("SELECT * FROM users WHERE username = ?", (username,)).fetchone()
    return (_user(row), row["password_hash"]) if row else None


def list_users(conn: Connection) -> list[User]:
    return [_user(row) for row in conn.execute(f"SELECT {_USER} FROM users u ORDER BY id")]


def set_user(conn: Connection, user_id: int, role: str | None, status: str | None) -> User:
    """Change role or status. A change ends the user's sessions and login links, and revokes the open invites that the user made.

    Raises LastAdmin when no active administrator would remain.
    """
    user = get_user(conn, user_id)
    changed = replace(user, role=role or user.role, status=status or user.status)
    if changed == user:
        return user
    conn.execute("UPDATE users SET role = ?, status = ? WHERE id = ?", (changed.role, changed.status, user_id))
    admins = conn.execute("SELECT count(*) FROM users WHERE role = 'admin' AND status = 'active'").fetchone()[0]
    if not admins:
        raise LastAdmin  # rolls the transaction back
    conn.execute("DELETE FROM sessions WHERE user_id = ?", (user_id,))
    conn.execute("DELETE FROM login_links WHERE user_id = ?", (user_id,))
    sql = "UPDATE invites SET revoked_at = ? WHERE created_by = ? AND used_at IS NULL AND revoked_at IS NULL"
    conn.execute(sql, (now(), user_id))
    return changed


def set_password(
    conn: Connection, user_id: int, password_hash: str, keep_session: int | None = None, verified: str | None = None
) -> None:
    """Change the password. End all sessions but one, and all login links.

    `verified`: the hash that the old password was checked against. Raises InvalidCredentials when it is no longer the stored one.
    """
    sql = "UPDATE users SET password_hash = ? WHERE id = ? AND password_hash = coalesce(?, password_hash)"
    if not conn.execute(sql, (password_hash, user_id, verified)).rowcount:
        raise InvalidCredentials("The current password is wrong.")
    conn.execute("DELETE FROM sessions WHERE user_id = ? AND id IS NOT ?", (user_id, keep_session))
    conn.execute("DELETE FROM login_links WHERE user_id = ?", (user_id,))


def set_password_hash(conn: Connection, user_id: int, old_hash: str, new_hash: str) -> bool:
    """Store a new hash of the same password. Return False, and change nothing, if the password has been changed since."""
    sql = "UPDATE users SET password_hash = ? WHERE id = ? AND password_hash = ?"
    return conn.execute(sql, (new_hash, user_id, old_hash)).rowcount > 0


def add_session(
    conn: Connection, user_id: int, token_hash: bytes, client: str, verified: str, replaces: bytes | None = None
) -> int:
    """Add a session, and end the one of the token `replaces`. A user keeps the newest MAX_SESSIONS.

    `verified`: the hash that the password was checked against. Raises InvalidCredentials when it is no longer the stored one or the
    user is disabled: a change that ends all sessions must end those that are being added, too.
    """
    sql = "SELECT 1 FROM users WHERE id = ? AND password_hash = ? AND status = 'active'"
    if conn.execute(sql, (user_id, verified)).fetchone() is None:
        raise InvalidCredentials
    conn.execute("DELETE FROM sessions WHERE token_hash = ?", (replaces,))
    sql = "INSERT INTO sessions (user_id, token_hash, client, created_at, last_seen) VALUES (?, ?, ?, ?4, ?4)"
    session_id = insert(conn, sql, (user_id, token_hash, client, now()))
    conn.execute("UPDATE users SET last_login = ? WHERE id = ?", (now(), user_id))
    conn.execute(
        "DELETE FROM sessions WHERE user_id = ?1 AND id NOT IN"
        " (SELECT id FROM sessions WHERE user_id = ?1 ORDER BY last_seen DESC, id DESC LIMIT ?2)",
        (user_id, MAX_SESSIONS),
    )
    return session_id


def get_session(conn: Connection, token_hash: bytes, seen_after: str, created_after: str) -> Session | None:
    """Return the session of this token with its user, or None when it has ended, is too old, or the user is disabled."""
    row = conn.execute(
        f"SELECT s.id AS session_id, s.last_seen, {_USER} FROM sessions s JOIN users u ON u.id = s.user_id"
        " WHERE s.token_hash = ? AND s.last_seen > ? AND s.created_at > ? AND u.status = 'active'",
        (token_hash, seen_after, created_after),
    ).fetchone()
    return Session(row["session_id"], _user(row), row["last_seen"]) if row else None


def set_session_seen(conn: Connection, session_id: int) -> None:
    conn.execute("UPDATE sessions SET last_seen = ? WHERE id = ?", (now(), session_id))


def list_sessions(conn: Connection, user_id: int) -> list[dict[str, Any]]:
    sql = "SELECT id, client, created_at, last_seen FROM sessions WHERE user_id = ? ORDER BY last_seen DESC, id DESC"
    return [dict(row) for row in conn.execute(sql, (user_id,))]


def count_sessions(conn: Connection, user_id: int) -> int:
    count: int = conn.execute("SELECT count(*) FROM sessions WHERE user_id = ?", (user_id,)).fetchone()[0]
    return count


def delete_session(conn: Connection, user_id: int, session_id: int) -> None:
    if not conn.execute("DELETE FROM sessions WHERE id = ? AND user_id = ?", (session_id, user_id)).rowcount:
        raise NotFound("session")


def delete_stale(conn: Connection, seen_before: str, created_before: str) -> None:
    """Delete expired sessions and login links."""
    conn.execute("DELETE FROM sessions WHERE last_seen <= ? OR created_at <= ?", (seen_before, created_before))
    conn.execute("DELETE FROM login_links WHERE expires_at <= ?", (now(),))


def add_login_link(conn: Connection, user_id: int, token_hash: bytes, expires_at: str) -> None:
    sql = "INSERT INTO login_links (token_hash, user_id, expires_at) VALUES (?, ?, ?)"
    conn.execute(sql, (token_hash, user_id, expires_at))


def redeem_login_link(conn: Connection, token_hash: bytes) -> tuple[User, str] | None:
    """Delete a login link and return its user with the password's hash, or None when it has expired or the user is disabled."""
    sql = "DELETE FROM login_links WHERE token_hash = ? RETURNING user_id, expires_at"
    row = conn.execute(sql, (token_hash,)).fetchone()
    if row is None or row["expires_at"] <= now():
        return None
    user = conn.execute("SELECT * FROM users WHERE id = ? AND status = 'active'", (row["user_id"],)).fetchone()
    return (_user(user), user["password_hash"]) if user else None


def add_invite(conn: Connection, code_hash: bytes, role: str, created_by: int, expires_at: str) -> int:
    sql = "INSERT INTO invites (code_hash, role, created_by, created_at, expires_at) VALUES (?, ?, ?, ?, ?)"
    return insert(conn, sql, (code_hash, role, created_by, now(), expires_at))


def list_invites(conn: Connection) -> list[dict[str, Any]]:
    rows = conn.execute(
        "SELECT i.id, i.role, CASE WHEN i.used_at IS NOT NULL THEN 'used' WHEN i.revoked_at IS NOT NULL THEN 'revoked'"
        " WHEN i.expires_at <= ? THEN 'expired' ELSE 'open' END AS status,"
        " i.created_at, i.expires_at, u.username AS used_by, i.used_at"
        " FROM invites i LEFT JOIN users u ON u.id = i.used_by ORDER BY i.id DESC",
        (now(),),
    )
    return [dict(row) for row in rows]


def revoke_invite(conn: Connection, invite_id: int) -> None:
    """Revoke an invite. Revoking one that is used or expired has no effect. Raises NotFound."""
    sql = "UPDATE invites SET revoked_at = coalesce(revoked_at, ?) WHERE id = ?"
    if not conn.execute(sql, (now(), invite_id)).rowcount:
        raise NotFound("invite")


def redeem_invite(conn: Connection, code_hash: bytes, username: str, password_hash: str) -> User:
    """Add a user by an invite, which works once. Raises InvalidInvite, and UsernameExists, after which the invite still works."""
    open_invite = "code_hash = ?2 AND used_at IS NULL AND revoked_at IS NULL AND expires_at > ?1"
    sql = f"UPDATE invites SET used_at = ?1 WHERE {open_invite} RETURNING id, role"
    row = conn.execute(sql, (now(), code_hash)).fetchone()
    if row is None:
        raise InvalidInvite
    user = _add_user(conn, username, password_hash, row["role"])
    conn.execute("UPDATE invites SET used_by = ? WHERE id = ?", (user.id, row["id"]))
    return user


def check_invite(conn: Connection, code_hash: bytes) -> None:
    """Raise InvalidInvite. A check before the slow hashing of a password; `redeem_invite` checks again."""
    open_invite = "code_hash = ? AND used_at IS NULL AND revoked_at IS NULL AND expires_at > ?"
    if conn.execute(f"SELECT 1 FROM invites WHERE {open_invite}", (code_hash, now())).fetchone() is None:
        raise InvalidInvite
