import sqlite3
from collections.abc import Iterator
from pathlib import Path

import fireside
import pytest
from fireside.db import Connection
from fireside.queries import accounts

ANN, BOB = 1, 2


def fresh() -> Connection:
    """Return a database in memory with two users, Ann (an administrator) and Bob."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.row_factory = sqlite3.Row
    connection.executescript((Path(fireside.__file__).parent / "schema.sql").read_text("utf-8"))
    connection.execute("PRAGMA foreign_keys = ON")
    accounts.add_first_user(connection, "ann", "hash of ann")
    accounts.add_invite(connection, b"code", "user", ANN, "9999")
    accounts.redeem_invite(connection, b"code", "bob", "hash of bob")
    return connection


@pytest.fixture(scope="module")
def connection() -> Iterator[Connection]:
    connection = fresh()
    yield connection
    connection.close()


@pytest.fixture
def conn(connection: Connection) -> Iterator[Connection]:
    """A transaction that is rolled back after the test."""
    connection.execute("BEGIN")
    yield connection
    connection.execute("ROLLBACK")
