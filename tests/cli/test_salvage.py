"""Salvage keeps everything that can be read, invents nothing, and gives no conversation to another user."""

import base64
import contextlib
import json
import random
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fireside import db, queries
from fireside.cli import salvage
from fireside.cli.salvage import LOST_TEXT, Salvaged
from fireside.db import DatabaseUnusable
from fireside.queries import search
from fireside.queries.generations import AnswerRequest, Recording, SentRequest

from ..exports import png
from ..trials import spread

PAGE = 4096
LONG = "A long text takes several pages. " * 200
NOT_COPIED = {"sessions", "invites", "login_links"}


@pytest.fixture(autouse=True)
def _probe_fewer_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(salvage, "MAX_UNREADABLE_ROWS", 2_000)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with two users and six conversations each: long and short messages, versions, images, generations."""
    path = tmp_path_factory.mktemp("sound") / "fireside.db"
    db.prepare(path)
    with contextlib.closing(sqlite3.connect(path)) as conn:
        conn.row_factory = sqlite3.Row
        for name in ("ann", "bob"):
            user = queries.accounts._add_user(conn, name, f"$argon2id${name}", "admin" if name == "ann" else "user")
            for number in range(6):
                conversation_id = queries.conversations.add_conversation(
                    conn, user.id, {"title": f"{name} {number}"}
                ).id
                for turn in range(3):
                    text = f"{name} asks {number}.{turn}. {LONG if number % 4 == 3 else ''}"
                    images = (
                        [queries.types.Image("image/png", png(turn) + random.Random(turn).randbytes(9000))]
                        if turn == 2
                        else []
                    )
                    queries.messages.add_message(conn, user.id, conversation_id, text, images=images)
                    for _ in range(1 + turn % 2):
                        _answer(conn, user.id, conversation_id, f"{name} is told {number}.{turn}.")
                folder = queries.folders.add_folder(conn, user.id, f"folder {number % 2}")
                queries.conversations.set_conversation(conn, user.id, conversation_id, {"folder_id": folder})
        for user in queries.accounts.list_users(conn):
            prompt = {"name": "Question", "content": f"{user.username} asks {{{{what}}}}"}
            queries.prompts.add_saved(conn, user.id, queries.prompts.Prompt, prompt)
            preset = {"name": "Long", "system_prompt": LONG, "settings": {"seed": 1}}
            preset_id = queries.prompts.add_saved(conn, user.id, queries.prompts.Preset, preset).id
            queries.prompts.set_defaults(conn, user.id, {"preset_id": preset_id})
        conn.commit()
    return path


def _answer(conn: sqlite3.Connection, user_id: int, conversation_id: int, text: str) -> None:
    begun = queries.generations.begin_answer(conn, user_id, conversation_id, AnswerRequest(retry=True), "lmstudio", "m")
    log = json.dumps([len(text), {"event": "done", "data": {"message_id": begun.message_id}}])
    sent = SentRequest("hash", {"model": "m"}, begun.message_id - 1, 0, "Be brief.")
    queries.generations.finish_generation(
        conn, begun.generation_id, Recording(begun.message_id, "complete", text, "", log), sent=sent
    )


@contextlib.contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        yield connection


def rows(path: Path, table: str) -> list[dict[str, Any]]:
    with opened(path) as connection:
        return [dict(row) for row in connection.execute(f"SELECT * FROM {table} ORDER BY rowid")]


def salvaged(data: bytes, folder: Path) -> tuple[Salvaged, Path]:
    source, target = folder / "damaged.db", folder / "new.db"
    source.write_bytes(data)
    target.unlink(missing_ok=True)
    result = salvage.salvage(source, target)
    assert source.read_bytes() == data
    assert db.check_file(target) == db.VERSION
    return result, target


def check_is_true(target: Path, sound: Path) -> None:
    """Check that each text is the original or LOST_TEXT, and that no conversation has another user's id."""
    with opened(sound) as connection:
        texts = {row["id"]: row["content"] for row in connection.execute("SELECT id, content FROM messages")}
        owners = {row["id"]: row["user_id"] for row in connection.execute("SELECT id, user_id FROM conversations")}
    with opened(target) as connection:
        for row in connection.execute("SELECT id, content FROM messages"):
            assert row["content"] in (texts[row["id"]], LOST_TEXT)
        users = {row["id"]: row["username"] for row in connection.execute("SELECT id, username FROM users")}
        recovered = connection.execute("SELECT id, password_hash, status FROM users WHERE username LIKE 'user-%'")
        for row in recovered.fetchall():
            assert row["password_hash"] == "" and (row["status"] == "disabled" or row["id"] == min(users))
        for row in connection.execute("SELECT id, user_id FROM conversations"):
            assert row["user_id"] == owners[row["id"]] or users[row["user_id"]] == "user-recovered"
        assert connection.execute("SELECT 1 FROM users WHERE role = 'admin' AND status = 'active'").fetchone()


def test_everything_in_a_sound_database_is_copied(sound: Path, tmp_path: Path) -> None:
    result, target = salvaged(sound.read_bytes(), tmp_path)
    assert result == Salvaged(2, 12, len(rows(sound, "messages")), 0)
    with opened(sound) as connection:
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE sql LIKE '%STRICT'")]
    for table in [table for table in tables if table not in NOT_COPIED] + ["sqlite_sequence"]:
        assert rows(target, table) == rows(sound, table), table
    with opened(target) as connection:
        assert [hit.title for hit in search.find(connection, 2, "bob asks 4.1", 9)] == ["bob 4"]
    assert target.stat().st_mode & 0o077 == 0


def test_lost_page_costs_only_its_own_rows(sound: Path, tmp_path: Path) -> None:
    data = sound.read_bytes()
    with opened(sound) as connection:
        tables = {row["pageno"]: (row["name"], row["pagetype"]) for row in connection.execute("SELECT * FROM dbstat")}
    everything = len(rows(sound, "messages"))
    refused = 0
    for page in (1 + number for number in spread(len(data) // PAGE, 30)):
        spoiled = bytearray(data)
        spoiled[(page - 1) * PAGE : page * PAGE] = bytes(PAGE)
        name, kind = tables.get(page, ("none", ""))
        try:
            result, target = salvaged(bytes(spoiled), tmp_path)
        except DatabaseUnusable:
            assert name == "sqlite_schema" or (name, kind) == ("messages", "internal"), (page, name, kind)
            refused += 1
            continue
        check_is_true(target, sound)
        if name in ("users", "conversations", "attachments", "attachment_data", "generations") or kind == "overflow":
            whole = (result.conversations, result.messages) == (12, everything)
            assert whole and result.damaged, (page, name, kind)
        elif name == "messages":
            assert everything - 60 < result.messages < everything and result.damaged
        elif name != "sqlite_schema":  # an index, or nothing
            assert result == Salvaged(2, 12, everything, result.damaged), (page, name)
    assert refused <= 5


@pytest.mark.parametrize("seed", range(30))
def test_wrong_bytes_leave_a_valid_database_with_an_administrator(sound: Path, tmp_path: Path, seed: int) -> None:
    chance, data = random.Random(seed), bytearray(sound.read_bytes())
    for _ in range(chance.choice((1, 3, 30))):
        at = chance.randrange(PAGE, len(data) - 64)
        data[at : at + chance.choice((1, 1, 64))] = chance.randbytes(1)
    with contextlib.suppress(DatabaseUnusable):
        _, target = salvaged(bytes(data), tmp_path)
        with opened(target) as connection:
            assert connection.execute("SELECT 1 FROM users WHERE role = 'admin' AND status = 'active'").fetchone()
            for table in salvage.TABLES:
                for row in map(dict, connection.execute(f"SELECT * FROM {table}")):
                    for name in row.keys() & salvage.JSON_COLUMNS:
                        json.loads(row[name] or "{}")


DAMAGES: dict[str, Callable[[sqlite3.Connection], object]] = {
    "unknown role": lambda conn: conn.execute("UPDATE users SET role = 'king' WHERE username = 'bob'"),
    "unknown status": lambda conn: conn.execute("UPDATE messages SET status = 'x' WHERE id = 3"),
    "parent with a higher id": lambda conn: conn.execute("UPDATE messages SET parent_id = 9 WHERE id = 2"),
    "parent in another conversation": lambda conn: conn.execute(
        "UPDATE messages SET parent_id = 2 WHERE conversation_id = 5"
    ),
    "missing owner": lambda conn: conn.execute("UPDATE conversations SET user_id = 77 WHERE id = 3"),
    "missing owner of a prompt": lambda conn: conn.execute("UPDATE prompts SET user_id = 77 WHERE id = 2"),
    "missing conversation": lambda conn: conn.execute("DELETE FROM conversations WHERE id = 3"),
    "invalid time": lambda conn: conn.execute("UPDATE messages SET created_at = 'noon' WHERE id = 3"),
    "invalid JSON": lambda conn: conn.execute("UPDATE generations SET log = '[1,' WHERE rowid = 3"),
    "invalid UTF-8": lambda conn: conn.execute("UPDATE messages SET reasoning = CAST(x'41ff' AS TEXT) WHERE id = 3"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_invalid_value_is_replaced_and_counted(sound: Path, tmp_path: Path, damage: str) -> None:
    broken = tmp_path / "broken.db"
    broken.write_bytes(sound.read_bytes())
    with opened(broken) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        DAMAGES[damage](connection)
        connection.commit()
    result, target = salvaged(broken.read_bytes(), tmp_path)
    assert result.messages == len(rows(sound, "messages")) and result.conversations == 12
    if "parent" not in damage and "owner" not in damage:
        assert result.damaged == 1
    db.prepare(target)
    with opened(target) as connection:
        wrong = "p.id >= m.id OR p.conversation_id != m.conversation_id"
        parents = f"SELECT 1 FROM messages m JOIN messages p ON p.id = m.parent_id WHERE {wrong}"
        assert not connection.execute(parents).fetchone()


def test_file_without_one_of_its_parts_has_the_others(sound: Path, tmp_path: Path) -> None:
    source = tmp_path / "damaged.db"
    source.write_bytes(sound.read_bytes())
    with opened(source) as conn:
        attachment_id, data = conn.execute("SELECT attachment_id, data FROM attachment_data").fetchone()
        conn.execute("UPDATE attachment_data SET data = ? WHERE attachment_id = ?", (data[:3000], attachment_id))
        queries.attachments.add_part(conn, attachment_id, 2, data[6000:])
        conn.commit()
    result, target = salvaged(source.read_bytes(), tmp_path)
    assert result.damaged == 1
    with opened(target) as conn:
        parts = [queries.attachments.get_part(conn, attachment_id, part) for part in range(3)]
        assert parts == [data[:3000], data[6000:], b""]
        size = "SELECT size_bytes FROM attachments WHERE id = ?"
        assert conn.execute(size, (attachment_id,)).fetchone()[0] == len(data) - 3000


def test_messages_below_a_newer_version_and_in_the_bin_keep_their_places(tmp_path: Path) -> None:
    path, bin = tmp_path / "fireside.db", queries.bin
    db.prepare(path)
    with opened(path) as conn:
        for name in ("ann", "bob"):
            queries.accounts._add_user(conn, name, "x", "admin")
        ids = []
        for _ in range(2):
            conversation_id = queries.conversations.add_conversation(conn, 1, {}).id
            question = queries.messages.add_message(conn, 1, conversation_id, "Question")
            _answer(conn, 1, conversation_id, "First")
            queries.messages.add_message(conn, 1, conversation_id, "Next")
            queries.messages.set_active(conn, 1, conversation_id, question)
            again = AnswerRequest(retry=True, message_id=question)
            begun = queries.generations.begin_answer(conn, 1, conversation_id, again, "lmstudio", "m")
            recording = Recording(begun.message_id, "complete", "Second", "", "[]")
            queries.generations.finish_generation(conn, begun.generation_id, recording)
            deleted = bin.delete_message(conn, 1, conversation_id, question + 1)
            ids.append((conversation_id, deleted.deleted_id))
        conn.execute("UPDATE conversations SET user_id = 0 WHERE id = ?", (ids[1][0],))  # its owner is lost
        conn.commit()
    _, target = salvaged(path.read_bytes(), tmp_path)
    assert rows(target, "messages") == rows(path, "messages")
    assert rows(target, "former_parents") == rows(path, "former_parents")
    homes = {row["id"]: row["deleted_from"] for row in rows(target, "conversations")}
    assert (homes[ids[0][1]], homes[ids[1][1]]) == (ids[0][0], None), "not from a conversation of another user"


def test_conversation_without_owner_goes_to_a_new_disabled_user(sound: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.db"
    broken.write_bytes(sound.read_bytes())
    with opened(broken) as connection:  # only the messages of bob are left, and ann has the name of the new user
        connection.execute("DELETE FROM users WHERE username = 'bob'")
        for table in ("conversations", "prompts", "presets"):
            connection.execute(f"DELETE FROM {table} WHERE user_id = 2")
        connection.execute("UPDATE users SET username = 'user-recovered'")
        connection.commit()
    _, target = salvaged(broken.read_bytes(), tmp_path)
    [ann, recovered] = rows(target, "users")
    assert ann["username"] == "user-recovered" and recovered["username"].startswith("user-recovered-")
    assert (recovered["password_hash"], recovered["status"], recovered["role"]) == ("", "disabled", "user")
    assert {row["user_id"] for row in rows(target, "conversations") if row["id"] > 6} == {recovered["id"]}


def test_conversation_without_owner_goes_to_the_only_user_that_ever_existed(tmp_path: Path) -> None:
    path = tmp_path / "alone.db"
    db.prepare(path)
    with opened(path) as connection:
        user = queries.accounts._add_user(connection, "ann", "x", "admin")
        conversation_id = queries.conversations.add_conversation(connection, user.id, {}).id
        queries.messages.add_message(connection, user.id, conversation_id, "What is a river?")
        connection.execute("DELETE FROM conversations")
        connection.commit()
    _, target = salvaged(path.read_bytes(), tmp_path)
    [conversation] = rows(target, "conversations")
    assert (conversation["user_id"], conversation["title"]) == (user.id, "What is a river?")


@pytest.mark.parametrize("version", [1, 5])
def test_older_schema_is_salvaged_to_the_newest(tmp_path: Path, version: int) -> None:
    """Its images too, which stood in a table of their own and in the queue."""
    old = tmp_path / "old.db"
    with contextlib.closing(sqlite3.connect(old)) as connection:
        connection.row_factory = sqlite3.Row
        connection.executescript((Path(__file__).parents[1] / "schemas" / f"{version}.sql").read_text("utf-8"))
        connection.execute(f"PRAGMA application_id = {db.APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {version}")
        at = "2026-01-01T00:00:00.000000"
        connection.execute(
            f"INSERT INTO users (username, password_hash, role, created_at) VALUES ('ann', 'x', 'admin', '{at}')"
        )
        conversation = "INSERT INTO conversations (user_id, title, title_key, created_at, updated_at)"
        connection.execute(f"{conversation} VALUES (1, 't', 't', '{at}', '{at}')")
        message = "INSERT INTO messages (conversation_id, created_at, role, content, status)"
        connection.execute(f"{message} VALUES (1, '{at}', 'user', 'Why?', 'complete')")
        image = "INSERT INTO images (message_id, position, media_type, data)"
        connection.execute(f"{image} VALUES (1, 0, 'image/png', ?)", (png(2),))
        if version == 5:
            queued = "INSERT INTO queued_messages (conversation_id, content, images, created_at)"
            images = [{"media_type": "image/png", "data": base64.b64encode(data).decode()} for data in (png(3), png(2))]
            connection.execute(f"{queued} VALUES (1, 'And then?', ?, '{at}')", (json.dumps(images),))
        connection.commit()
    result, target = salvaged(old.read_bytes(), tmp_path)
    assert (result.users, result.conversations, result.messages, result.damaged) == (1, 1, 1, 0)
    assert rows(target, "users")[0]["defaults"] == "{}"
    with opened(target) as connection:
        read = "SELECT position, data FROM {} JOIN attachment_data USING (attachment_id) ORDER BY position"
        shown, waiting = (
            [*map(tuple, connection.execute(read.format(f"{table}_attachments")))] for table in ("message", "queued")
        )
    assert shown == [(0, png(2))]
    assert waiting == ([(0, png(3)), (1, png(2))] if version == 5 else [])


@pytest.mark.parametrize("content", [b"", b"some notes", b"SQLite format 3\0" + bytes(200)])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DatabaseUnusable):
        salvaged(content, tmp_path)
    assert not (tmp_path / "new.db").exists()


def test_existing_target_is_not_replaced(sound: Path, tmp_path: Path) -> None:
    target = tmp_path / "mine"
    target.write_text("mine", "utf-8")
    with pytest.raises(FileExistsError):
        salvage.salvage(sound, target)
    assert target.read_text("utf-8") == "mine"
