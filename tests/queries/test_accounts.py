"""Queries that change one account leave the others as they are."""

import pytest
from fireside.db import Connection
from fireside.errors import InvalidCredentials
from fireside.queries import accounts, conversations

from .conftest import ANN, BOB


def names(conn: Connection) -> list[str]:
    return [row["username"] for row in conn.execute("SELECT username FROM users ORDER BY id")]


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


def test_reset_link_replaces_the_earlier_one_of_the_user_alone(conn: Connection) -> None:
    accounts.add_login_link(conn, BOB, b"login", "9999")
    for user_id, token_hash in ((ANN, b"ann"), (BOB, b"bob"), (BOB, b"newer")):
        accounts.add_reset_link(conn, user_id, token_hash, "9999")
    assert accounts.get_reset_link(conn, b"ann") and accounts.get_reset_link(conn, b"newer")
    assert accounts.get_reset_link(conn, b"bob") is None
    assert accounts.redeem_login_link(conn, b"login")


def test_only_closed_accounts_without_conversations_are_removed(conn: Connection) -> None:
    accounts.add_invite(conn, b"carl", "user", ANN, "9999")
    carl = accounts.redeem_invite(conn, b"carl", "carl", "hash").id
    conversations.add_conversation(conn, BOB, {})
    for user_id in (BOB, carl):
        accounts.close_account(conn, user_id)
    accounts.remove_emptied(conn, ANN)
    accounts.remove_emptied(conn, BOB)
    assert names(conn) == ["ann", "#2", f"#{carl}"]
    accounts.remove_emptied(conn, carl)
    assert names(conn) == ["ann", "#2"]
