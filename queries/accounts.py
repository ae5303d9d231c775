"""Queries of users, sessions, login links and invites.

A closed account has lost its name, its password and its sessions, and `remove_closed` removes its data. Only that function finds it.
"""

import sqlite3
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace

from ..db import Connection, Database, fetch, insert, now, scalar, scalars
from ..errors import (
    AuthRequired,
    BootstrapDisabled,
    InvalidCredentials,
    InvalidInvite,
    LastAdmin,
    NotFound,
    UserDisabled,
    UsernameExists,
)
from . import attachments, conversations
from .attachments import IS_IMAGE
from .types import Role, from_row

MAX_SESSIONS = 20  # of a user
HIDDEN_AT_ONCE = 100  # conversations of a closed account


class User(Struct):
    id: int
    username: str
    display_name: str
    role: Role
    status: Literal["active", "disabled"]
    created_at: str
    last_login: str | None
    stored_bytes: int


class Session(Struct):
    id: int
    user: User
    last_seen: str


def count_users(conn: Connection) -> int:
    return int(scalar(conn, "SELECT count(*) FROM users"))


def add_first_user(conn: Connection, username: str, password_hash: str, display_name: str = "") -> User:
    if count_users(conn):
        raise BootstrapDisabled
    return _add_user(conn, username, password_hash, "admin", display_name)


# Cyrillic and Greek small letters, and the Latin letters that they look like. User names are stored in small letters.
_LOOK_ALIKES = str.maketrans(
    "авсԁеԍнһіјкӏмпорԛѕтуѵԝхьαβγεηικνορστυχωıɑɡ",
    "abcdeghhijklmnopqstyvwxbabyenikvopotuxwiag",
)


def _check_name(conn: Connection, username: str, user_id: int | None = None) -> None:
    """Raise UsernameExists for a name that another user than this one has, or that looks like one."""
    others = scalars(conn, "SELECT username FROM users WHERE id IS NOT ?", (user_id,))
    if any(other.translate(_LOOK_ALIKES) == username.translate(_LOOK_ALIKES) for other in others):
        raise UsernameExists


def _add_user(conn: Connection, username: str, password_hash: str, role: str, display_name: str = "") -> User:
    """Add a user. Raises UsernameExists."""
    _check_name(conn, username)
    sql = "INSERT INTO users (username, display_name, password_hash, role, created_at) VALUES (?, ?, ?, ?, ?)"
    return get_user(conn, insert(conn, sql, (username, display_name, password_hash, role, now())))


def set_name(conn: Connection, user_id: int, username: str, display_name: str, verified: str) -> User:
    """Change the user's name. Raises UsernameExists, and InvalidCredentials as `set_password`."""
    _check_name(conn, username, user_id)
    _set_verified(conn, user_id, verified, "username = ?, display_name = ?", username, display_name)
    return get_user(conn, user_id)


def _set_verified(conn: Connection, user_id: int, verified: str | None, columns: str, *values: str) -> None:
    """Change columns of a user. `verified`: the hash that the current password was checked against, or None.

    Raises InvalidCredentials when it is no longer the stored one.
    """
    sql = f"UPDATE users SET {columns} WHERE id = ? AND password_hash = coalesce(?, password_hash)"
    if not conn.execute(sql, (*values, user_id, verified)).rowcount:
        raise InvalidCredentials("The current password is wrong.")


_USER = (
    "u.id, u.username, coalesce(nullif(u.display_name, ''), u.username) AS display_name, u.role, u.status, u.created_at,"
    " u.last_login, u.stored_bytes"
)


def _user(row: sqlite3.Row) -> User:
    return from_row(User, row)


def get_user(conn: Connection, user_id: int) -> User:
    sql = f"SELECT {_USER} FROM users u WHERE id = ? AND closed_at IS NULL"
    return _user(fetch(conn, sql, (user_id,), NotFound("user")))


def get_user_named(conn: Connection, username: str | None) -> User:
    """Return the user of that name; for None, the first active administrator. Raises NotFound."""
    condition = "role = 'admin' AND status = 'active' AND ? IS NULL" if username is None else "username = ?"
    sql = f"SELECT {_USER} FROM users u WHERE {condition} ORDER BY id LIMIT 1"
    return _user(fetch(conn, sql, (username,), NotFound("user")))


def get_password(conn: Connection, username: str) -> tuple[User, str] | None:
    """Return the user and the password's hash."""
    sql = f"SELECT {_USER}, password_hash FROM users u WHERE username = ? AND closed_at IS NULL"
    row = conn.execute(sql, (username,)).fetchone()
    return (_user(row), row["password_hash"]) if row else None


def get_password_hash(conn: Connection, user_id: int) -> str:
    """Return the hash of a signed-in user's password. Raises AuthRequired if the account has been closed."""
    sql = "SELECT password_hash FROM users WHERE id = ? AND closed_at IS NULL"
    return str(fetch(conn, sql, (user_id,), AuthRequired())["password_hash"])


def list_users(conn: Connection) -> list[User]:
    return [_user(row) for row in conn.execute(f"SELECT {_USER} FROM users u WHERE closed_at IS NULL ORDER BY id")]


def set_user(conn: Connection, user_id: int, role: str | None, status: str | None) -> User:
    """Change role or status. A change ends the user's sessions and login links, and revokes the open invites that the user made.

    Raises LastAdmin when no active administrator would remain.
    """
    user = get_user(conn, user_id)
    changed = replace(user, role=role or user.role, status=status or user.status)
    if changed == user:
        return user
    conn.execute("UPDATE users SET role = ?, status = ? WHERE id = ?", (changed.role, changed.status, user_id))
    _check_admin_remains(conn)
    conn.execute("DELETE FROM sessions WHERE user_id = ?", (user_id,))
    conn.execute("DELETE FROM login_links WHERE user_id = ?", (user_id,))
    sql = "UPDATE invites SET revoked_at = ? WHERE created_by = ? AND used_at IS NULL AND revoked_at IS NULL"
    conn.execute(sql, (now(), user_id))
    return changed


def _check_admin_remains(conn: Connection) -> None:
    """Raise LastAdmin, which rolls the transaction back, when there is no active administrator any more."""
    if not scalar(conn, "SELECT 1 FROM users WHERE role = 'admin' AND status = 'active'"):
        raise LastAdmin


def close_account(conn: Connection, user_id: int, verified: str | None = None) -> User:
    """Close an account, before `remove_closed`. Return the user it was.

    `verified` is as in `set_password`. Raises LastAdmin, NotFound, InvalidCredentials.
    """
    user = get_user(conn, user_id)
    emptied = (  # no name may contain '#', so this one cannot be registered
        "username = '#' || id, display_name = '', password_hash = '', role = 'user', status = 'disabled',"
        " last_login = NULL, defaults = '{}', closed_at = ?"
    )
    _set_verified(conn, user_id, verified, emptied, now())
    _check_admin_remains(conn)
    tables = (("sessions", "user_id"), ("tokens", "user_id"), ("login_links", "user_id"), ("invites", "created_by"))
    for table, owner in tables:
        conn.execute(f"DELETE FROM {table} WHERE {owner} = ?", (user_id,))
    return user


async def remove_closed(database: Database) -> None:
    """Remove the conversations of closed accounts in transactions of about PART_SECONDS each, then the accounts."""
    for user_id in await database.read(list_closed):
        ids = await database.read(conversations.list_all, user_id)
        for start in range(0, len(ids), HIDDEN_AT_ONCE):
            some = ids[start : start + HIDDEN_AT_ONCE]
            await database.write_part(conversations.hide_all, some)
            await conversations.remove_hidden(database, some)
        await database.write(attachments.release_all, user_id)
        await attachments.remove_released(database)
        await database.write(remove_emptied, user_id)


def list_closed(conn: Connection) -> list[int]:
    return scalars(conn, "SELECT id FROM users WHERE closed_at IS NOT NULL")


def remove_emptied(conn: Connection, user_id: int) -> None:
    """Remove a closed account that has no conversations and no files. A request that had begun before may have added one."""
    conn.execute(
        "DELETE FROM users WHERE id = ?1 AND closed_at IS NOT NULL"
        " AND NOT EXISTS (SELECT 1 FROM conversations WHERE user_id = ?1)"
        " AND NOT EXISTS (SELECT 1 FROM attachments WHERE user_id = ?1)",
        (user_id,),
    )


def set_password(
    conn: Connection, user_id: int, password_hash: str, keep_session: int | None = None, verified: str | None = None
) -> None:
    """Change the password. End all sessions but one, and all login links.

    `verified`: the hash that the old password was checked against. Raises InvalidCredentials when it is no longer the stored one.
    """
    _set_verified(conn, user_id, verified, "password_hash = ?", password_hash)
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
    if not scalar(conn, sql, (user_id, verified)):
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
    return int(scalar(conn, "SELECT count(*) FROM sessions WHERE user_id = ?", (user_id,)))


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
    sql = "DELETE FROM login_links WHERE token_hash = ? AND resets_password = 0 RETURNING user_id, expires_at"
    row = conn.execute(sql, (token_hash,)).fetchone()
    if row is None or row["expires_at"] <= now():
        return None
    sql = f"SELECT {_USER}, password_hash FROM users u WHERE id = ? AND status = 'active'"
    user = conn.execute(sql, (row["user_id"],)).fetchone()
    return (_user(user), user["password_hash"]) if user else None


def add_reset_link(conn: Connection, user_id: int, token_hash: bytes, expires_at: str) -> User:
    """Add a link that sets a new password, in place of an earlier one. Raises NotFound, UserDisabled."""
    user = get_user(conn, user_id)
    if user.status != "active":
        raise UserDisabled
    conn.execute("DELETE FROM login_links WHERE user_id = ? AND resets_password = 1", (user_id,))
    sql = "INSERT INTO login_links (token_hash, user_id, expires_at, resets_password) VALUES (?, ?, ?, 1)"
    conn.execute(sql, (token_hash, user_id, expires_at))
    return user


def get_reset_link(conn: Connection, token_hash: bytes) -> User | None:
    """Return the user of a link that sets a new password, or None when it has expired or the user is disabled."""
    row = conn.execute(
        f"SELECT {_USER} FROM login_links l JOIN users u ON u.id = l.user_id"
        " WHERE l.token_hash = ? AND l.resets_password = 1 AND l.expires_at > ? AND u.status = 'active'",
        (token_hash, now()),
    ).fetchone()
    return _user(row) if row else None


def redeem_reset_link(conn: Connection, token_hash: bytes, password_hash: str) -> User | None:
    """Set the password by a link, and end all sessions and links of the user. Return None as `get_reset_link`."""
    user = get_reset_link(conn, token_hash)
    if user is not None:
        set_password(conn, user.id, password_hash)
    return user


def add_invite(conn: Connection, code_hash: bytes, role: str, created_by: int, expires_at: str) -> int:
    sql = "INSERT INTO invites (code_hash, role, created_by, created_at, expires_at) VALUES (?, ?, ?, ?, ?)"
    return insert(conn, sql, (code_hash, role, created_by, now(), expires_at))


def list_invites(conn: Connection) -> list[dict[str, Any]]:
    rows = conn.execute(
        "SELECT i.id, i.role, CASE WHEN i.used_at IS NOT NULL THEN 'used' WHEN i.revoked_at IS NOT NULL THEN 'revoked'"
        " WHEN i.expires_at <= ? THEN 'expired' ELSE 'open' END AS status,"
        " i.created_at, i.expires_at, coalesce(nullif(u.display_name, ''), u.username) AS used_by, i.used_at"
        " FROM invites i LEFT JOIN users u ON u.id = i.used_by ORDER BY i.id DESC",
        (now(),),
    )
    return [dict(row) for row in rows]


def revoke_invite(conn: Connection, invite_id: int) -> None:
    """Revoke an invite. Revoking one that is used or expired has no effect. Raises NotFound."""
    sql = "UPDATE invites SET revoked_at = coalesce(revoked_at, ?) WHERE id = ?"
    if not conn.execute(sql, (now(), invite_id)).rowcount:
        raise NotFound("invite")


def redeem_invite(
    conn: Connection, code_hash: bytes, username: str, password_hash: str, display_name: str = ""
) -> User:
    """Add a user by an invite, which works once. Raises InvalidInvite, and UsernameExists, after which the invite still works."""
    open_invite = "code_hash = ?2 AND used_at IS NULL AND revoked_at IS NULL AND expires_at > ?1"
    sql = f"UPDATE invites SET used_at = ?1 WHERE {open_invite} RETURNING id, role"
    row = fetch(conn, sql, (now(), code_hash), InvalidInvite())
    user = _add_user(conn, username, password_hash, row["role"], display_name)
    conn.execute("UPDATE invites SET used_by = ? WHERE id = ?", (user.id, row["id"]))
    return user


def check_invite(conn: Connection, code_hash: bytes) -> None:
    """Raise InvalidInvite. A check before the slow hashing of a password; `redeem_invite` checks again."""
    open_invite = "code_hash = ? AND used_at IS NULL AND revoked_at IS NULL AND expires_at > ?"
    if not scalar(conn, f"SELECT 1 FROM invites WHERE {open_invite}", (code_hash, now())):
        raise InvalidInvite


def measure_data(conn: Connection, user_id: int) -> dict[str, int]:
    """Return the numbers of a user's conversations, images and documents, also of those in the bin, and their bytes."""
    row = conn.execute(
        "SELECT (SELECT count(*) FROM conversations WHERE user_id = ?1 AND hidden = 0) AS conversations,"
        f" count(*) FILTER (WHERE {IS_IMAGE}) AS images,"
        f" coalesce(sum(size_bytes) FILTER (WHERE {IS_IMAGE}), 0) AS image_bytes,"
        f" count(*) FILTER (WHERE NOT {IS_IMAGE}) AS documents,"
        f" coalesce(sum(size_bytes + text_bytes) FILTER (WHERE NOT {IS_IMAGE}), 0) AS document_bytes,"
        " (SELECT stored_bytes FROM users WHERE id = ?1) AS used_bytes"
        " FROM attachments WHERE user_id = ?1 AND sha256 IS NOT NULL",
        (user_id,),
    ).fetchone()
    return dict(row)


def count_attachment_bytes(conn: Connection) -> dict[str, int]:
    """Return the bytes of the images and of the documents of all users."""
    row = conn.execute(
        f"SELECT coalesce(sum(size_bytes) FILTER (WHERE {IS_IMAGE}), 0) AS image_bytes,"
        f" coalesce(sum(size_bytes + text_bytes) FILTER (WHERE NOT {IS_IMAGE}), 0) AS document_bytes FROM attachments"
    ).fetchone()
    return dict(row)
