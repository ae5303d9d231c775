"""Who may come in: the queries on users, sessions, login links and invites. Run them as conversations.py says."""

from typing import Any

from msgspec import Struct

from ..db import Connection, insert, now
from ..errors import BootstrapDisabled, InvalidCredentials, InvalidInvite, LastAdmin, NotFound, UsernameExists

SESSIONS_A_USER = 20


class User(Struct):
    id: int
    username: str
    role: str
    status: str
    created_at: str
    last_login: str | None


class Session(Struct):
    id: int
    user: User
    last_seen: str


# ---------------------------------------------------------------------------------------------------- users


def count_users(conn: Connection) -> int:
    count: int = conn.execute("SELECT count(*) FROM users").fetchone()[0]
    return count


def add_first_user(conn: Connection, username: str, password_hash: str) -> User:
    if count_users(conn):
        raise BootstrapDisabled
    return _add_user(conn, username, password_hash, "admin")


# Cyrillic and Greek small letters, and the Latin ones that they look like. Names are stored in small letters.
_LOOK_ALIKES = str.maketrans(
    "авсԁеԍнһіјкӏмпорԛѕтуѵԝхьαβγεηικνορστυχωıɑɡ",
    "abcdeghhijklmnopqstyvwxbabyenikvopotuxwiag",
)


def _add_user(conn: Connection, username: str, password_hash: str, role: str) -> User:
    """Raise UsernameExists for a name that is taken or looks like one that is."""
    looks = username.translate(_LOOK_ALIKES)
    if any(name.translate(_LOOK_ALIKES) == looks for (name,) in conn.execute("SELECT username FROM users")):
        raise UsernameExists
    user_id = insert(
        conn,
        "INSERT INTO users (username, password_hash, role, created_at) VALUES (?, ?, ?, ?)",
        (username, password_hash, role, now()),
    )
    return get_user(conn, user_id)


_USER = "id, username, role, status, created_at, last_login"


def get_user(conn: Connection, user_id: int) -> User:
    row = conn.execute(f"SELECT {_USER} FROM users WHERE id = ?", (user_id,)).fetchone()
    if row is None:
        raise NotFound("user")
    return User(*row)


def get_user_named(conn: Connection, username: str | None) -> User:
    """The user of that name; without one, the first active administrator."""
    row = conn.execute(
        f"SELECT {_USER} FROM users WHERE CASE WHEN ?1 IS NULL THEN role = 'admin' AND status = 'active' ELSE username = ?1 END"
        " ORDER BY id LIMIT 1",
        (username,),
    ).fetchone()
    if row is None:
        raise NotFound("user")
    return User(*row)


def get_password(conn: Connection, username: str) -> tuple[User, str] | None:
    row = conn.execute(f"SELECT {_USER}, password_hash FROM users WHERE username = ?", (username,)).fetchone()
    return (User(*row[:6]), row[6]) if row else None


def list_users(conn: Connection) -> list[User]:
    return [User(*row) for row in conn.execute(f"SELECT {_USER} FROM users ORDER BY id")]


def set_user(conn: Connection, user_id: int, role: str | None, status: str | None) -> User:
    """Change role or status. If that changed anything it ends the user's sessions, and what one who was an administrator has
    handed out: login links and open invites."""
    user = get_user(conn, user_id)
    changed = User(user.id, user.username, role or user.role, status or user.status, user.created_at, user.last_login)
    if changed == user:
        return user
    conn.execute("UPDATE users SET role = ?, status = ? WHERE id = ?", (changed.role, changed.status, user_id))
    admins = conn.execute("SELECT count(*) FROM users WHERE role = 'admin' AND status = 'active'").fetchone()[0]
    if not admins:
        raise LastAdmin  # rolls the transaction back
    conn.execute("DELETE FROM sessions WHERE user_id = ?", (user_id,))
    conn.execute("DELETE FROM login_links WHERE user_id = ?", (user_id,))
    conn.execute(
        "UPDATE invites SET revoked_at = ? WHERE created_by = ? AND used_at IS NULL AND revoked_at IS NULL",
        (now(), user_id),
    )
    return changed


def set_password(
    conn: Connection, user_id: int, password_hash: str, keep_session: int | None = None, verified: str | None = None
) -> None:
    """All sessions but one end, and all links. `verified`: the hash that the old password was checked against, where one was
    asked for; raises InvalidCredentials when another has taken its place."""
    if not conn.execute(
        "UPDATE users SET password_hash = ?1 WHERE id = ?2 AND password_hash = coalesce(?3, password_hash)",
        (password_hash, user_id, verified),
    ).rowcount:
        raise InvalidCredentials("The current password is wrong.")
    conn.execute("DELETE FROM sessions WHERE user_id = ? AND id IS NOT ?", (user_id, keep_session))
    conn.execute("DELETE FROM login_links WHERE user_id = ?", (user_id,))


def set_password_hash(conn: Connection, user_id: int, old_hash: str, new_hash: str) -> bool:
    """The same password hashed anew, with today's parameters; False, and nothing is done, if it was changed meanwhile."""
    sql = "UPDATE users SET password_hash = ? WHERE id = ? AND password_hash = ?"
    return conn.execute(sql, (new_hash, user_id, old_hash)).rowcount > 0


# ---------------------------------------------------------------------------------------------------- sessions


def add_session(
    conn: Connection, user_id: int, token_hash: bytes, client: str, verified: str, replaces: bytes | None = None
) -> int:
    """A new session; the one of the token that the browser held before ends. A user keeps the newest SESSIONS_A_USER.

    `verified` is the password's hash as it was when this user was let in. Raises InvalidCredentials when it is another by now,
    or the user disabled: what ends all sessions must end those that are being made."""
    sql = "SELECT 1 FROM users WHERE id = ? AND password_hash = ? AND status = 'active'"
    if conn.execute(sql, (user_id, verified)).fetchone() is None:
        raise InvalidCredentials
    conn.execute("DELETE FROM sessions WHERE token_hash = ?", (replaces,))
    session_id = insert(
        conn,
        "INSERT INTO sessions (user_id, token_hash, client, created_at, last_seen) VALUES (?, ?, ?, ?4, ?4)",
        (user_id, token_hash, client, now()),
    )
    conn.execute("UPDATE users SET last_login = ? WHERE id = ?", (now(), user_id))
    conn.execute(
        "DELETE FROM sessions WHERE user_id = ?1 AND id NOT IN"
        " (SELECT id FROM sessions WHERE user_id = ?1 ORDER BY last_seen DESC, id DESC LIMIT ?2)",
        (user_id, SESSIONS_A_USER),
    )
    return session_id


def get_session(conn: Connection, token_hash: bytes, seen_after: str, created_after: str) -> Session | None:
    """The live session of this token, with its user as of now; None when it ended, is too old, or the user is disabled."""
    row = conn.execute(
        "SELECT s.id, s.last_seen, u.id, u.username, u.role, u.status, u.created_at, u.last_login"
        " FROM sessions s JOIN users u ON u.id = s.user_id"
        " WHERE s.token_hash = ? AND s.last_seen > ? AND s.created_at > ? AND u.status = 'active'",
        (token_hash, seen_after, created_after),
    ).fetchone()
    return Session(row[0], User(*row[2:]), row[1]) if row else None


def set_session_seen(conn: Connection, session_id: int) -> None:
    conn.execute("UPDATE sessions SET last_seen = ? WHERE id = ?", (now(), session_id))


def list_sessions(conn: Connection, user_id: int) -> list[dict[str, Any]]:
    rows = conn.execute(
        "SELECT id, client, created_at, last_seen FROM sessions WHERE user_id = ? ORDER BY last_seen DESC, id DESC",
        (user_id,),
    )
    return [dict(row) for row in rows]


def count_sessions(conn: Connection, user_id: int) -> int:
    count: int = conn.execute("SELECT count(*) FROM sessions WHERE user_id = ?", (user_id,)).fetchone()[0]
    return count


def delete_session(conn: Connection, user_id: int, session_id: int) -> None:
    if not conn.execute("DELETE FROM sessions WHERE id = ? AND user_id = ?", (session_id, user_id)).rowcount:
        raise NotFound("session")


def delete_stale(conn: Connection, seen_before: str, created_before: str) -> None:
    """What time has ended: old sessions and login links."""
    conn.execute("DELETE FROM sessions WHERE last_seen <= ? OR created_at <= ?", (seen_before, created_before))
    conn.execute("DELETE FROM login_links WHERE expires_at <= ?", (now(),))


def add_login_link(conn: Connection, user_id: int, token_hash: bytes, expires_at: str) -> None:
    conn.execute(
        "INSERT INTO login_links (token_hash, user_id, expires_at) VALUES (?, ?, ?)", (token_hash, user_id, expires_at)
    )


def redeem_login_link(conn: Connection, token_hash: bytes) -> tuple[User, str] | None:
    """The user whose link this is, with the password's hash; the link is gone afterwards."""
    row = conn.execute(
        "DELETE FROM login_links WHERE token_hash = ? RETURNING user_id, expires_at", (token_hash,)
    ).fetchone()
    if row is None or row[1] <= now():
        return None
    sql = f"SELECT {_USER}, password_hash FROM users WHERE id = ? AND status = 'active'"
    found = conn.execute(sql, (row[0],)).fetchone()
    return (User(*found[:6]), found[6]) if found else None


# ---------------------------------------------------------------------------------------------------- invites


def add_invite(conn: Connection, code_hash: bytes, role: str, created_by: int, expires_at: str) -> int:
    return insert(
        conn,
        "INSERT INTO invites (code_hash, role, created_by, created_at, expires_at) VALUES (?, ?, ?, ?, ?)",
        (code_hash, role, created_by, now(), expires_at),
    )


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
    """Used and expired ones too: nothing is left to revoke there, and the answer is the same."""
    if not conn.execute(
        "UPDATE invites SET revoked_at = coalesce(revoked_at, ?) WHERE id = ?", (now(), invite_id)
    ).rowcount:
        raise NotFound("invite")


def redeem_invite(conn: Connection, code_hash: bytes, username: str, password_hash: str) -> User:
    """The new user. One redemption wins; a name that is taken leaves the invite as it was."""
    row = conn.execute(
        "UPDATE invites SET used_at = ?1 WHERE code_hash = ?2 AND used_at IS NULL AND revoked_at IS NULL AND expires_at > ?1"
        " RETURNING id, role",
        (now(), code_hash),
    ).fetchone()
    if row is None:
        raise InvalidInvite
    user = _add_user(conn, username, password_hash, row[1])
    conn.execute("UPDATE invites SET used_by = ? WHERE id = ?", (user.id, row[0]))
    return user


def check_invite(conn: Connection, code_hash: bytes) -> None:
    """Raises InvalidInvite. Asked before a password is hashed; `redeem_invite` has the last word."""
    row = conn.execute(
        "SELECT 1 FROM invites WHERE code_hash = ? AND used_at IS NULL AND revoked_at IS NULL AND expires_at > ?",
        (code_hash, now()),
    ).fetchone()
    if row is None:
        raise InvalidInvite
