"""Users, sessions, links and invites. A change of one account leaves the others as they are."""

import pytest
from fireside import db
from fireside.db import Connection
from fireside.errors import (
    BootstrapDisabled,
    InvalidCredentials,
    InvalidInvite,
    LastAdmin,
    NotFound,
    UsernameExists,
)
from fireside.queries import accounts, conversations

from .conftest import ANN, BOB


def names(conn: Connection) -> list[str]:
    return [row["username"] for row in conn.execute("SELECT username FROM users ORDER BY id")]


def sign_in(conn: Connection, user_id: int, token_hash: bytes, replaces: bytes | None = None) -> int:
    hashes = {ANN: "hash of ann", BOB: "hash of bob"}
    return accounts.add_session(conn, user_id, token_hash, f"browser {token_hash[0]}", hashes[user_id], replaces)


def test_first_account_and_last_administrator(conn: Connection) -> None:
    with pytest.raises(BootstrapDisabled):
        accounts.add_first_user(conn, "eve", "")
    for role, status in (("user", None), (None, "disabled"), ("user", "disabled")):
        conn.execute("SAVEPOINT before")
        with pytest.raises(LastAdmin):
            accounts.set_user(conn, ANN, role, status)
        conn.execute("ROLLBACK TO before")
    assert accounts.get_user_named(conn, None).username == "ann", "the first active administrator"
    accounts.set_user(conn, BOB, "admin", None)
    accounts.set_user(conn, ANN, None, "disabled")
    assert accounts.get_user_named(conn, None).username == "bob"
    assert accounts.get_user_named(conn, "ann").status == "disabled"
    with pytest.raises(NotFound):
        accounts.get_user_named(conn, "eve")


def test_name_and_deletion_need_the_stored_hash_of_the_user(conn: Connection) -> None:
    conn.execute("UPDATE users SET password_hash = 'the same hash'")
    with pytest.raises(InvalidCredentials):
        accounts.set_name(conn, BOB, "robert", "Robert", "an older hash")
    with pytest.raises(InvalidCredentials):
        accounts.close_account(conn, BOB, "an older hash")
    accounts.set_name(conn, BOB, "robert", "Robert", "the same hash")
    assert names(conn) == ["ann", "robert"]
    assert accounts.close_account(conn, BOB, "the same hash").display_name == "Robert"
    assert names(conn) == ["ann", "#2"]


def test_only_closed_accounts_without_conversations_are_removed(conn: Connection) -> None:
    accounts.add_invite(conn, b"carl", "user", ANN, "9999")
    carl = accounts.redeem_invite(conn, b"carl", "carl", "hash").id
    conversations.add_conversation(conn, BOB, {})
    for user_id in (BOB, carl):
        accounts.close_account(conn, user_id)
    for user_id in (ANN, BOB):
        accounts.remove_emptied(conn, user_id)
    assert names(conn) == ["ann", "#2", f"#{carl}"]
    accounts.remove_emptied(conn, carl)
    assert names(conn) == ["ann", "#2"]


def test_changed_role_ends_sessions_login_links_and_invites(conn: Connection) -> None:
    accounts.set_user(conn, BOB, "admin", None)
    sign_in(conn, BOB, b"1")
    for code, maker in ((b"of bob", BOB), (b"of ann", ANN)):
        accounts.add_invite(conn, code, "user", maker, "9999")
        accounts.add_login_link(conn, maker, code, "9999")
    for code in (b"used", b"revoked"):
        accounts.add_invite(conn, code, "user", BOB, "9999")
    accounts.redeem_invite(conn, b"used", "fay", "")
    conn.execute("UPDATE invites SET revoked_at = '2026' WHERE code_hash = ?", (b"revoked",))
    accounts.set_user(conn, BOB, "admin", "active")
    assert accounts.count_sessions(conn, BOB) == 1
    accounts.set_user(conn, BOB, "user", None)
    assert accounts.count_sessions(conn, BOB) == 0
    with pytest.raises(InvalidInvite):
        accounts.redeem_invite(conn, b"of bob", "eve", "")
    assert accounts.redeem_login_link(conn, b"of bob") is None
    assert accounts.redeem_invite(conn, b"of ann", "eve", "").username == "eve"
    assert accounts.redeem_login_link(conn, b"of ann") is not None
    invites = [(invite["status"], invite["used_by"]) for invite in accounts.list_invites(conn)]
    assert invites == [("revoked", None), ("used", "fay"), ("used", "eve"), ("revoked", None), ("used", "bob")]
    read = "SELECT revoked_at FROM invites WHERE code_hash IN (?, ?) ORDER BY id"
    assert [row["revoked_at"] for row in conn.execute(read, (b"used", b"revoked"))] == [None, "2026"]


def test_session_ends_when_it_is_replaced_too_old_one_of_many_or_its_user_disabled(conn: Connection) -> None:
    sign_in(conn, BOB, b"0")
    sign_in(conn, BOB, b"1", replaces=b"0")
    found = [
        accounts.get_session(conn, b"0", "", ""),
        accounts.get_session(conn, b"1", "9999", ""),
        accounts.get_session(conn, b"1", "", "9999"),
        accounts.get_session(conn, b"1", db.ago(days=1), db.ago(days=1)),
    ]
    assert [one and one.user.id for one in found] == [None, None, None, BOB]
    assert accounts.get_user(conn, BOB).last_login and accounts.get_user(conn, ANN).last_login is None
    conn.execute("UPDATE users SET status = 'disabled', password_hash = 'hash of ann' WHERE id = ?", (BOB,))
    assert accounts.get_session(conn, b"1", "", "") is None
    with pytest.raises(InvalidCredentials):
        accounts.add_session(conn, BOB, b"2", "", "hash of ann")
    for number in range(accounts.MAX_SESSIONS + 5):
        sign_in(conn, ANN, bytes([number]))
    clients = [session["client"] for session in accounts.list_sessions(conn, ANN)]
    assert clients == [f"browser {number}" for number in range(accounts.MAX_SESSIONS + 4, 4, -1)]


def test_new_password_ends_all_sessions_but_one_and_makes_older_checks_worthless(conn: Connection) -> None:
    kept = [sign_in(conn, BOB, bytes([number])) for number in range(3)][1]
    others = sign_in(conn, ANN, b"ann")
    for user_id, link in ((BOB, b"link"), (ANN, b"link of ann")):
        accounts.add_login_link(conn, user_id, link, "9999")
    accounts.set_password(conn, BOB, "new", kept, "hash of bob")
    assert [session["id"] for session in accounts.list_sessions(conn, BOB)] == [kept]
    assert [session["id"] for session in accounts.list_sessions(conn, ANN)] == [others]
    assert accounts.redeem_login_link(conn, b"link") is None
    assert accounts.redeem_login_link(conn, b"link of ann") is not None
    with pytest.raises(InvalidCredentials):
        accounts.set_password(conn, BOB, "newer", verified="hash of bob")
    with pytest.raises(InvalidCredentials):
        sign_in(conn, BOB, b"1")
    assert not accounts.set_password_hash(conn, BOB, "hash of bob", "again")
    accounts.add_session(conn, BOB, b"3", "", "new")


def test_login_link_works_once_before_it_expires(conn: Connection) -> None:
    accounts.add_login_link(conn, BOB, b"1", "9999")
    accounts.add_login_link(conn, BOB, b"2", db.ago(seconds=1))
    found = accounts.redeem_login_link(conn, b"1")
    assert found is not None and (found[0].username, found[1]) == ("bob", "hash of bob")
    for used_or_expired in (b"1", b"2"):
        assert accounts.redeem_login_link(conn, used_or_expired) is None
    accounts.set_user(conn, BOB, None, "disabled")
    accounts.add_login_link(conn, BOB, b"3", "9999")
    assert accounts.redeem_login_link(conn, b"3") is None


def test_reset_link_replaces_the_earlier_one_of_the_user_alone(conn: Connection) -> None:
    accounts.add_login_link(conn, BOB, b"login", "9999")
    for user_id, token_hash in ((ANN, b"ann"), (BOB, b"bob"), (BOB, b"newer")):
        accounts.add_reset_link(conn, user_id, token_hash, "9999")
    assert accounts.get_reset_link(conn, b"ann") and accounts.get_reset_link(conn, b"newer")
    assert accounts.get_reset_link(conn, b"bob") is None
    assert accounts.redeem_login_link(conn, b"login")
    conn.execute("UPDATE users SET status = 'disabled' WHERE id = ?", (BOB,))
    assert accounts.get_reset_link(conn, b"newer") is None


def test_only_an_open_invite_adds_a_user(conn: Connection) -> None:
    for code, expires_at in ((b"open", "9999"), (b"revoked", "9999"), (b"expired", db.ago(seconds=1))):
        accounts.add_invite(conn, code, "admin", ANN, expires_at)
    accounts.revoke_invite(conn, 3)
    listed = [(invite["status"], invite["role"], invite["used_by"]) for invite in accounts.list_invites(conn)]
    assert listed == [
        ("expired", "admin", None), ("revoked", "admin", None), ("open", "admin", None), ("used", "user", "bob"),
    ]  # fmt: skip
    for code in (b"code", b"revoked", b"expired", b"unknown"):
        with pytest.raises(InvalidInvite):
            accounts.check_invite(conn, code)
        with pytest.raises(InvalidInvite):
            accounts.redeem_invite(conn, code, "eve", "")
    with pytest.raises(UsernameExists):
        accounts.redeem_invite(conn, b"open", "bob", "")
    with pytest.raises(NotFound):
        accounts.revoke_invite(conn, 99)
