"""The queries: whose a thing is, how messages grow as a tree, which answer is begun, and indexes that hold what is there."""

import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fireside
import pytest
from fireside import db, queries
from fireside.errors import (
    AlreadyAnswered,
    BootstrapDisabled,
    FiresideError,
    GenerationActive,
    Invalid,
    InvalidCredentials,
    InvalidInvite,
    LastAdmin,
    NotFound,
    NoUserMessage,
    UsernameExists,
)
from fireside.queries import search
from fireside.queries.generations import Answer, AnswerRequest, Job, Recording
from fireside.queries.messages import Image
from fireside.transfer import archive
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

Connection = sqlite3.Connection

ANN, BOB = 1, 2


def fresh() -> Connection:
    """A database in memory with two users, Ann (an administrator) and Bob."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.row_factory = sqlite3.Row
    connection.executescript((Path(fireside.__file__).parent / "schema.sql").read_text("utf-8"))
    connection.execute("PRAGMA foreign_keys = ON")
    queries.accounts.add_first_user(connection, "ann", "hash of ann")
    queries.accounts.add_invite(connection, b"code", "user", ANN, "9999")
    queries.accounts.redeem_invite(connection, b"code", "bob", "hash of bob")
    return connection


@pytest.fixture(scope="module")
def connection() -> Iterator[Connection]:
    connection = fresh()
    yield connection
    connection.close()


@pytest.fixture
def conn(connection: Connection) -> Iterator[Connection]:
    """A transaction, undone after the test."""
    connection.execute("BEGIN")
    yield connection
    connection.execute("ROLLBACK")


def conversation(conn: Connection, user_id: int = ANN, **fields: Any) -> int:
    return queries.conversations.add_conversation(conn, user_id, fields).id


def purge(conn: Connection, user_id: int, conversation_id: int) -> None:
    """What `remove_hidden` does, in one transaction."""
    queries.conversations.hide_conversation(conn, user_id, conversation_id)
    remove(conn, conversation_id)


def remove(conn: Connection, conversation_id: int) -> None:
    ids = queries.conversations.list_message_ids(conn, conversation_id)
    while ids:
        ids = queries.conversations.remove_messages(conn, ids)
    queries.conversations.remove_emptied(conn, conversation_id)


def answer(
    conn: Connection, conversation_id: int, provider: str | None = "lmstudio", model: str | None = "m", **more: Any
) -> Answer:
    request = AnswerRequest(provider, model, **more)
    return queries.generations.begin_answer(conn, ANN, conversation_id, request, provider or "lmstudio", model or "m")


def begin(conn: Connection, conversation_id: int, *asked: str | None, **more: Any) -> Answer:
    begun = answer(conn, conversation_id, *asked, **more)
    assert begun.job is not None
    return begun


def job(begun: Answer) -> Job:
    assert begun.job is not None
    return begun.job


def prompt_of(begun: Answer) -> list[str]:
    """The texts of the prompt."""
    prompt = job(begun).prompt
    assert prompt is not None
    return [turn.content for turn in prompt.turns]


def finish(conn: Connection, begun: Answer, content: str = "answer", status: str = "complete", **more: Any) -> None:
    log = json.dumps([len(content), {"event": "done", "data": {}}])
    queries.generations.finish_generation(
        conn, begun.generation_id, Recording(begun.message_id, status, content, "", log), **more
    )


def answered(conn: Connection, question: str = "question", answer: str = "answer") -> tuple[int, int, int]:
    """A conversation with a question and its answer: the three ids."""
    conversation_id = conversation(conn)
    question_id = queries.messages.add_message(conn, ANN, conversation_id, question)
    begun = begin(conn, conversation_id)
    finish(conn, begun, answer)
    return conversation_id, question_id, begun.message_id


def path(conn: Connection, conversation_id: int, **more: Any) -> list[str]:
    return [message.content for message in queries.messages.list_messages(conn, ANN, conversation_id, **more)]


# ---- accounts


def test_the_first_account_is_an_administrator_s_and_the_only_one_made_so(conn: Connection) -> None:
    assert queries.accounts.get_user(conn, ANN).role == "admin"
    with pytest.raises(BootstrapDisabled):
        queries.accounts.add_first_user(conn, "eve", "")


def test_a_user_name_is_somebody_s(conn: Connection) -> None:
    queries.accounts.add_invite(conn, b"other", "user", ANN, "9999")
    with pytest.raises(UsernameExists):
        queries.accounts.redeem_invite(conn, b"other", "bob", "")


def test_without_a_name_the_first_active_administrator_is_meant(conn: Connection) -> None:
    assert queries.accounts.get_user_named(conn, None).username == "ann"
    queries.accounts.set_user(conn, BOB, "admin", None)
    queries.accounts.set_user(conn, ANN, None, "disabled")
    assert queries.accounts.get_user_named(conn, None).username == "bob"
    assert queries.accounts.get_user_named(conn, "ann").status == "disabled"
    with pytest.raises(NotFound):
        queries.accounts.get_user_named(conn, "eve")


@pytest.mark.parametrize(("role", "status"), [("user", None), (None, "disabled"), ("user", "disabled")])
def test_the_last_administrator_stays_one(conn: Connection, role: str | None, status: str | None) -> None:
    conn.execute("SAVEPOINT before")
    with pytest.raises(LastAdmin):
        queries.accounts.set_user(conn, ANN, role, status)
    conn.execute("ROLLBACK TO before")
    queries.accounts.set_user(conn, BOB, "admin", None)
    assert queries.accounts.set_user(conn, ANN, role, status).id == ANN


def test_a_changed_role_ends_the_sessions_and_the_same_role_does_not(conn: Connection) -> None:
    queries.accounts.add_session(conn, BOB, b"1", "", "hash of bob")
    queries.accounts.set_user(conn, BOB, "user", "active")
    assert queries.accounts.count_sessions(conn, BOB) == 1
    queries.accounts.set_user(conn, BOB, "admin", None)
    assert queries.accounts.count_sessions(conn, BOB) == 0


def test_what_an_administrator_has_handed_out_ends_with_the_role(conn: Connection) -> None:
    queries.accounts.set_user(conn, BOB, "admin", None)
    for code, maker in ((b"of bob", BOB), (b"of ann", ANN)):
        queries.accounts.add_invite(conn, code, "user", maker, "9999")
        queries.accounts.add_login_link(conn, maker, code, "9999")
    queries.accounts.set_user(conn, BOB, "user", None)
    with pytest.raises(InvalidInvite):
        queries.accounts.redeem_invite(conn, b"of bob", "eve", "")
    assert queries.accounts.redeem_login_link(conn, b"of bob") is None
    assert queries.accounts.redeem_invite(conn, b"of ann", "eve", "").username == "eve"
    assert queries.accounts.redeem_login_link(conn, b"of ann") is not None
    assert [invite["status"] for invite in queries.accounts.list_invites(conn)] == ["used", "revoked", "used"]


def test_a_user_keeps_the_newest_sessions(conn: Connection) -> None:
    for number in range(queries.accounts.MAX_SESSIONS + 5):
        queries.accounts.add_session(conn, ANN, bytes([number]), f"browser {number}", "hash of ann")
    clients = [session["client"] for session in queries.accounts.list_sessions(conn, ANN)]
    assert clients == [f"browser {number}" for number in range(queries.accounts.MAX_SESSIONS + 4, 4, -1)]


def test_a_new_session_replaces_the_one_that_the_browser_had(conn: Connection) -> None:
    queries.accounts.add_session(conn, ANN, b"old", "", "hash of ann")
    queries.accounts.add_session(conn, ANN, b"new", "", "hash of ann", replaces=b"old")
    assert queries.accounts.get_session(conn, b"old", "", "") is None
    assert queries.accounts.get_session(conn, b"new", "", "") is not None


def test_a_session_lives_until_it_is_too_old_or_its_user_disabled(conn: Connection) -> None:
    queries.accounts.add_session(conn, BOB, b"1", "", "hash of bob")
    assert queries.accounts.get_session(conn, b"1", db.ago(days=1), db.ago(days=1)) is not None
    assert queries.accounts.get_session(conn, b"1", "9999", "") is None
    assert queries.accounts.get_session(conn, b"1", "", "9999") is None
    conn.execute("UPDATE users SET status = 'disabled' WHERE id = ?", (BOB,))
    assert queries.accounts.get_session(conn, b"1", "", "") is None
    with pytest.raises(InvalidCredentials):
        queries.accounts.add_session(conn, BOB, b"2", "", "hash of bob")


def test_a_new_password_ends_all_sessions_but_one_and_all_links(conn: Connection) -> None:
    kept = [queries.accounts.add_session(conn, BOB, bytes([number]), "", "hash of bob") for number in range(3)][1]
    others = queries.accounts.add_session(conn, ANN, b"ann", "", "hash of ann")
    queries.accounts.add_login_link(conn, BOB, b"link", "9999")
    queries.accounts.set_password(conn, BOB, "new", kept)
    assert [session["id"] for session in queries.accounts.list_sessions(conn, BOB)] == [kept]
    assert [session["id"] for session in queries.accounts.list_sessions(conn, ANN)] == [others]
    assert queries.accounts.redeem_login_link(conn, b"link") is None


def test_what_was_let_in_by_another_password_gets_no_session_and_sets_none(conn: Connection) -> None:
    queries.accounts.set_password(conn, BOB, "new", verified="hash of bob")
    with pytest.raises(InvalidCredentials):
        queries.accounts.set_password(conn, BOB, "newer", verified="hash of bob")
    with pytest.raises(InvalidCredentials):
        queries.accounts.add_session(conn, BOB, b"1", "", "hash of bob")
    assert not queries.accounts.set_password_hash(conn, BOB, "hash of bob", "anew")
    queries.accounts.add_session(conn, BOB, b"1", "", "new")


def test_a_login_link_works_once_and_in_time(conn: Connection) -> None:
    queries.accounts.add_login_link(conn, BOB, b"1", "9999")
    queries.accounts.add_login_link(conn, BOB, b"2", db.ago(seconds=1))
    found = queries.accounts.redeem_login_link(conn, b"1")
    assert found is not None and (found[0].username, found[1]) == ("bob", "hash of bob")
    assert queries.accounts.redeem_login_link(conn, b"1") is None
    assert queries.accounts.redeem_login_link(conn, b"2") is None
    queries.accounts.set_user(conn, BOB, None, "disabled")
    queries.accounts.add_login_link(conn, BOB, b"3", "9999")
    assert queries.accounts.redeem_login_link(conn, b"3") is None


def test_invites_are_open_used_revoked_or_expired(conn: Connection) -> None:
    for code, expires_at in ((b"open", "9999"), (b"revoked", "9999"), (b"expired", db.ago(seconds=1))):
        queries.accounts.add_invite(conn, code, "admin", ANN, expires_at)
    queries.accounts.revoke_invite(conn, 3)
    told = [(invite["status"], invite["role"], invite["used_by"]) for invite in queries.accounts.list_invites(conn)]
    assert told == [
        ("expired", "admin", None),
        ("revoked", "admin", None),
        ("open", "admin", None),
        ("used", "user", "bob"),
    ]
    for code in (b"code", b"revoked", b"expired", b"unknown"):
        with pytest.raises(InvalidInvite):
            queries.accounts.check_invite(conn, code)
        with pytest.raises(InvalidInvite):
            queries.accounts.redeem_invite(conn, code, "eve", "")
    assert queries.accounts.redeem_invite(conn, b"open", "eve", "").role == "admin"
    with pytest.raises(NotFound):
        queries.accounts.revoke_invite(conn, 99)


# ---- whose it is

AS_BOB: dict[str, Callable[[Connection, dict[str, Any]], Any]] = {
    "get_conversation": lambda conn, at: queries.conversations.get_conversation(conn, BOB, at["conversation"]),
    "set_conversation": lambda conn, at: queries.conversations.set_conversation(
        conn, BOB, at["conversation"], {"title": "mine"}
    ),
    "delete_conversation": lambda conn, at: queries.conversations.delete_conversation(conn, BOB, at["conversation"]),
    "restore_conversation": lambda conn, at: queries.conversations.restore_conversation(conn, BOB, at["binned"]),
    "hide_conversation": lambda conn, at: queries.conversations.hide_conversation(conn, BOB, at["conversation"]),
    "hide_conversation in the bin": lambda conn, at: queries.conversations.hide_conversation(conn, BOB, at["binned"]),
    "list_conversations before": lambda conn, at: queries.conversations.list_conversations(
        conn, BOB, before=at["conversation"]
    ),
    "list_messages": lambda conn, at: queries.messages.list_messages(conn, BOB, at["conversation"]),
    "list_messages before": lambda conn, at: queries.messages.list_messages(conn, BOB, at["own"], before=at["message"]),
    "add_message": lambda conn, at: queries.messages.add_message(conn, BOB, at["conversation"], "hello"),
    "add_message below": lambda conn, at: queries.messages.add_message(conn, BOB, at["own"], "hello", at["message"]),
    "set_active": lambda conn, at: queries.messages.set_active(conn, BOB, at["conversation"], at["message"]),
    "set_active to another's": lambda conn, at: queries.messages.set_active(conn, BOB, at["own"], at["message"]),
    "get_image": lambda conn, at: queries.messages.get_image(conn, BOB, at["image"]),
    "get_recording": lambda conn, at: queries.generations.get_recording(conn, BOB, at["generation"]),
    "begin_answer": lambda conn, at: queries.generations.begin_answer(
        conn, BOB, at["conversation"], AnswerRequest(retry=True), "lmstudio", "m"
    ),
    "delete_session": lambda conn, at: queries.accounts.delete_session(conn, BOB, at["session"]),
    "owned": lambda conn, at: queries.conversations.owned(conn, BOB, at["conversation"]),
}


@pytest.mark.parametrize("what", ["another's", "hidden"])
@pytest.mark.parametrize("name", AS_BOB)
def test_another_s_and_what_is_hidden_are_as_missing_as_what_never_was(conn: Connection, name: str, what: str) -> None:
    conversation_id, question_id, _ = answered(conn)
    binned = conversation(conn)
    queries.conversations.delete_conversation(conn, ANN, binned)
    queries.messages.add_message(conn, ANN, conversation_id, "look", images=[Image("image/png", b"...")])
    objects: dict[str, Any] = {
        "conversation": conversation_id,
        "binned": binned,
        "message": question_id,
        "own": conversation(conn, BOB),
        "image": conn.execute("SELECT id FROM images").fetchone()[0],
        "generation": conn.execute("SELECT id FROM generations").fetchone()[0],
        "session": queries.accounts.add_session(conn, ANN, b"1", "", "hash of ann"),
    }
    if what == "hidden":
        conn.execute("UPDATE conversations SET user_id = ?, hidden = 1 WHERE id <> ?", (BOB, objects["own"]))
    nothing = {**dict.fromkeys(objects, 10**6), "generation": "none", "own": objects["own"]}
    before = conn.total_changes
    with pytest.raises(FiresideError) as another:
        AS_BOB[name](conn, objects)
    assert conn.total_changes == before
    with pytest.raises(FiresideError) as none:
        AS_BOB[name](conn, nothing)
    assert (another.value.status, another.value.code) == (none.value.status, none.value.code)
    assert another.value.status == 404 and str(another.value) == str(none.value)


def test_lists_have_one_s_own_only(conn: Connection) -> None:
    answered(conn)
    assert queries.conversations.list_conversations(conn, BOB) == [] and queries.generations.list_usage(conn, BOB) == []
    assert queries.conversations.list_conversations(conn, BOB, q="question") == []
    assert len(queries.conversations.list_conversations(conn, ANN, q="question")) == 1


# ---- conversations


def titles(conn: Connection, **more: Any) -> list[str]:
    return [found.title for found in queries.conversations.list_conversations(conn, ANN, **more)]


def test_a_title_follows_the_first_message_until_somebody_names_it(conn: Connection) -> None:
    conversation_id = conversation(conn)
    assert titles(conn) == [queries.conversations.UNTITLED]
    first = queries.messages.add_message(conn, ANN, conversation_id, "  Why is\nthe sky blue?  ")
    assert titles(conn) == ["Why is the sky blue?"]
    queries.messages.add_message(conn, ANN, conversation_id, "second")
    assert titles(conn) == ["Why is the sky blue?"]
    queries.messages.add_message(conn, ANN, conversation_id, "Why is grass green?", None)
    assert titles(conn) == ["Why is grass green?"]
    queries.conversations.set_conversation(conn, ANN, conversation_id, {"title": "Colours"})
    queries.messages.add_message(conn, ANN, conversation_id, "Why is snow white?", None)
    assert titles(conn) == ["Colours"] and first


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("word " * 100, "word word word word word word word word word word word word…"),
        ("x" * 100, "x" * 59 + "…"),
        ("\n \t", queries.conversations.UNTITLED),
        ("Hello, " + "y" * 100, "Hello, " + "y" * 52 + "…"),
        ("日本" * 50, "日本" * 29 + "日…"),
        ("What is in it?\n\nmy notes.md:\n```md\nmilk\n```", "What is in it?"),
        ("my notes.md:\n```md\nmilk\n```", "my notes.md"),
        ("Why does this fail?\n\n```python\nprint(1/0)\n```", "Why does this fail?"),
        ("```\nprint(1/0)", "print(1/0)"),
    ],
)
def test_a_title_is_the_beginning_of_a_text(text: str, title: str) -> None:
    assert queries.conversations.title_from(text) == title and len(title) <= 60


def test_the_newest_activity_comes_first(conn: Connection) -> None:
    ids = [conversation(conn, title=str(number)) for number in range(3)]
    queries.messages.add_message(conn, ANN, ids[1], "hello")
    queries.conversations.set_conversation(conn, ANN, ids[0], {"title": "renamed", "pinned": True})
    assert titles(conn) == ["1", "2", "renamed"], "renaming is no activity"
    assert titles(conn, pinned=True) == ["renamed"]


ODD_TITLES = ["100%", "a_b", "a*b", "[x]", "what?", "Straße", "ÄRGER", "İstanbul", "日本語", "tab\there", "Öl"]


@pytest.mark.parametrize(
    ("q", "found"),
    [
        ("%", ["100%"]),
        ("_", ["a_b"]),
        ("0%", ["100%"]),
        ("100%", ["100%"]),
        ("a*b", ["a*b"]),
        ("a_b", ["a_b"]),
        ("[x]", ["[x]"]),
        ("[a-z]", []),
        ("at?", ["what?"]),
        ("***", []),
        ("STRASSE", ["Straße"]),
        ("straß", ["Straße"]),
        ("ärg", ["ÄRGER"]),
        ("A\u0308RG", ["ÄRGER"]),
        ("öl", ["Öl"]),
        ("本", ["日本語"]),
        ("日本語", ["日本語"]),
        ("b\th", ["tab\there"]),
        ("xyz", []),
        ("' OR 1", []),
    ],
)
@pytest.mark.parametrize("limit", [-1, 50])
def test_the_filter_is_literal_and_blind_to_case(conn: Connection, q: str, found: list[str], limit: int) -> None:
    for title in ODD_TITLES:
        conversation(conn, title=title)
    assert titles(conn, q=q, limit=limit) == found


@pytest.mark.parametrize("more", [{}, {"q": "1"}, {"q": "e 1"}, {"pinned": True}, {"deleted": True}])
def test_pages_make_up_the_list(conn: Connection, more: dict[str, Any]) -> None:
    for number in range(30):
        made = conversation(conn, title=f"title {number} the 1st", pinned=number % 3 == 0)
        if number % 4 == 0:
            queries.conversations.delete_conversation(conn, ANN, made)
    conn.execute("UPDATE conversations SET updated_at = 'same' WHERE id % 5 = 0")
    whole = queries.conversations.list_conversations(conn, ANN, **more)
    assert len(whole) >= 7
    paged: list[queries.conversations.Conversation] = []
    while page := queries.conversations.list_conversations(
        conn, ANN, limit=4, before=paged[-1].id if paged else None, **more
    ):
        assert len(page) <= 4
        paged += page
    assert paged == whole


def test_a_filter_finds_what_is_old_among_thousands(conn: Connection) -> None:
    for number in range(4100):
        conversation(conn, title=f"{'rare' if number % 2000 == 50 else 'common'} {number}")
    assert titles(conn, q="rare", limit=50) == ["rare 4050", "rare 2050", "rare 50"]
    assert titles(conn, q="rare", limit=1) == ["rare 4050"]
    assert titles(conn, q="common", limit=2) == ["common 4099", "common 4098"]


def test_the_bin_gives_back_and_forgets_after_its_days(conn: Connection) -> None:
    kept, old, gone = (conversation(conn, title=title) for title in ("kept", "old", "gone"))
    for made in (kept, old, gone):
        queries.conversations.delete_conversation(conn, ANN, made)
    assert titles(conn) == [] and set(titles(conn, deleted=True)) == {"kept", "old", "gone"}
    assert queries.conversations.list_conversations(conn, ANN, deleted=True)[0].deleted_at
    conn.execute(
        "UPDATE conversations SET deleted_at = ? WHERE id = ?",
        (db.ago(days=queries.conversations.BIN_DAYS, hours=1), gone),
    )
    conn.execute(
        "UPDATE conversations SET deleted_at = ? WHERE id = ?", (db.ago(days=queries.conversations.BIN_DAYS - 1), old)
    )
    queries.conversations.hide_expired(conn)
    assert titles(conn, deleted=True) == ["kept", "old"]
    assert queries.conversations.list_hidden(conn) == [gone]
    assert queries.conversations.restore_conversation(conn, ANN, kept).title == "kept"
    assert titles(conn) == ["kept"]
    with pytest.raises(NotFound):
        queries.conversations.restore_conversation(conn, ANN, kept)


def test_fields_change_alone(conn: Connection) -> None:
    made = conversation(conn, title="t", settings={"temperature": 0.5}, system_prompt="s")
    queries.conversations.set_conversation(conn, ANN, made, {"model": "m"})
    found = queries.conversations.get_conversation(conn, ANN, made)
    assert (found.title, found.system_prompt, found.model, found.provider_id) == ("t", "s", "m", None)
    assert json.loads(bytes(found.settings)) == {"temperature": 0.5}
    queries.conversations.set_conversation(conn, ANN, made, {"model": None, "settings": {}})
    assert queries.conversations.get_conversation(conn, ANN, made).model is None


# ---- messages


def test_messages_grow_as_a_tree_and_nothing_is_overwritten(conn: Connection) -> None:
    made = conversation(conn)
    one = queries.messages.add_message(conn, ANN, made, "one")
    two = queries.messages.add_message(conn, ANN, made, "two")
    edited = queries.messages.add_message(conn, ANN, made, "two, edited", one)
    assert path(conn, made) == ["one", "two, edited"]
    other = queries.messages.add_message(conn, ANN, made, "another beginning", None)
    assert path(conn, made) == ["another beginning"]
    assert queries.messages.set_active(conn, ANN, made, one) == edited, "on to its newest leaf"
    assert path(conn, made) == ["one", "two, edited"]
    assert queries.messages.set_active(conn, ANN, made, two) == two
    first, second = queries.messages.list_messages(conn, ANN, made)
    assert first.versions == {"ids": [one, other], "index": 0}
    assert second.versions == {"ids": [two, edited], "index": 0}
    assert (first.parent_id, second.parent_id) == (None, one)


def test_messages_page_from_the_end(conn: Connection) -> None:
    made = conversation(conn)
    ids = [queries.messages.add_message(conn, ANN, made, str(number)) for number in range(10)]
    assert path(conn, made, limit=3) == ["7", "8", "9"]
    assert path(conn, made, limit=3, before=ids[7]) == ["4", "5", "6"]
    assert path(conn, made, limit=30, before=ids[1]) == ["0"]
    assert path(conn, made, before=ids[0]) == []


def test_a_long_path_is_read_whole(conn: Connection) -> None:
    made = conversation(conn)
    for number in range(3000):
        queries.messages.add_message(conn, ANN, made, str(number))
    assert path(conn, made) == [str(number) for number in range(3000)]


def test_the_same_client_id_adds_nothing(conn: Connection) -> None:
    made, other = conversation(conn), conversation(conn)
    first = queries.messages.add_message(conn, ANN, made, "hello", client_id="a")
    assert queries.messages.add_message(conn, ANN, made, "hello again", client_id="a") == first
    assert path(conn, made) == ["hello"]
    assert queries.messages.add_message(conn, ANN, other, "hello", client_id="a") != first


def test_images_belong_to_their_message_in_order(conn: Connection) -> None:
    made = conversation(conn)
    images = [Image("image/png", b"one"), Image("image/jpeg", b"two")]
    message_id = queries.messages.add_message(conn, ANN, made, "look", images=images)
    [message] = queries.messages.list_messages(conn, ANN, made)
    assert isinstance(message.images, list) and message.id == message_id
    assert [queries.messages.get_image(conn, ANN, image["id"]) for image in message.images] == images
    queries.conversations.delete_conversation(conn, ANN, made)
    with pytest.raises(NotFound):
        queries.messages.get_image(conn, ANN, message.images[0]["id"])


def test_images_that_are_not_sent_are_not_read(conn: Connection) -> None:
    conversation_id = conversation(conn)
    big = Image("image/png", b"x" * (queries.generations.SENT_IMAGE_BYTES // 2 + 1))
    for _ in range(3):
        question_id = queries.messages.add_message(conn, ANN, conversation_id, "look", images=[big])
    statements: list[str] = []
    conn.set_trace_callback(statements.append)
    turns = queries.generations.get_prompt(conn, question_id).turns
    conn.set_trace_callback(None)
    assert [len(turn.images) for turn in turns] == [0, 0, 1]
    assert [turn.omitted_images for turn in turns] == [1, 1, 0]
    assert sum(" data FROM images" in statement for statement in statements) == 1


def test_message_with_too_many_images_keeps_its_last_ones(conn: Connection) -> None:
    """An import may have such a message."""
    conversation_id = conversation(conn)
    images = [Image("image/png", b"%d" % number) for number in range(50)]
    question_id = queries.messages.add_message(conn, ANN, conversation_id, "look", images=images)
    [turn] = queries.generations.get_prompt(conn, question_id).turns
    assert (
        turn.images == images[-queries.generations.SENT_IMAGES :]
        and turn.omitted_images == 50 - queries.generations.SENT_IMAGES
    )


# ---- answers


def test_a_question_that_has_no_answer_gets_one(conn: Connection) -> None:
    made = conversation(conn)
    queries.messages.add_message(conn, ANN, made, "q")
    begun = begin(conn, made, params={"seed": 1})
    assert prompt_of(begun) == ["q"] and job(begun).params == {"seed": 1}
    assert queries.conversations.get_conversation(conn, ANN, made).generation_id == begun.generation_id
    running = queries.messages.list_messages(conn, ANN, made)[-1]
    assert (running.id, running.status, running.content) == (begun.message_id, "generating", "")


def test_an_answer_that_is_running_is_found_and_another_is_refused(conn: Connection) -> None:
    made = conversation(conn)
    queries.messages.add_message(conn, ANN, made, "q")
    begun = begin(conn, made)
    for provider, model in (("lmstudio", "m"), (None, None), ("lmstudio", None), (None, "m")):
        assert answer(conn, made, provider, model) == Answer(begun.generation_id, begun.message_id)
    for more in ({"model": "other"}, {"provider": "other"}, {"retry": True}):
        with pytest.raises(GenerationActive):
            begin(conn, made, **more)
    queries.messages.add_message(conn, ANN, made, "and another thing")
    with pytest.raises(GenerationActive):
        begin(conn, made)


def test_an_answer_that_is_complete_is_found_and_another_model_s_is_refused(conn: Connection) -> None:
    made, _, message_id = answered(conn)
    found = answer(conn, made, None, None)
    assert found.job is None and found.message_id == message_id
    for more in ({"model": "other"}, {"provider": "other"}):
        with pytest.raises(AlreadyAnswered):
            begin(conn, made, **more)
    assert begin(conn, made, model="other", retry=True).message_id != message_id


def test_what_was_requested_counts_not_what_answered(conn: Connection) -> None:
    made = conversation(conn)
    queries.messages.add_message(conn, ANN, made, "q")
    finish(conn, begin(conn, made), model="m-q4-instruct")
    assert queries.messages.list_messages(conn, ANN, made)[-1].model == "m-q4-instruct"
    assert answer(conn, made, model="m").job is None
    with pytest.raises(AlreadyAnswered):
        begin(conn, made, model="m-q4-instruct")


@pytest.mark.parametrize("status", ["error", "canceled", "interrupted"])
def test_a_try_that_failed_is_tried_again(conn: Connection, status: str) -> None:
    made = conversation(conn)
    queries.messages.add_message(conn, ANN, made, "q")
    failed = begin(conn, made)
    finish(conn, failed, "half", status)
    again = begin(conn, made)
    assert prompt_of(again) == ["q"]
    assert queries.messages.list_messages(conn, ANN, made)[-1].versions == {
        "ids": [failed.message_id, again.message_id],
        "index": 1,
    }


@pytest.mark.parametrize("said", ["nothing", "an answer alone"])
def test_without_a_question_there_is_nothing_to_answer(conn: Connection, said: str) -> None:
    made = conversation(conn)
    if said != "nothing":
        fields = dict.fromkeys(
            ("provider_id", "model", "token_usage", "stats", "error", "client_id", "source", "parent_id")
        )
        fields |= {"role": "assistant", "content": "hi", "reasoning": "", "status": "complete", "created_at": db.now()}
        archive.set_imported(conn, made, db.now(), archive.add_message(conn, ANN, made, fields))
    for retry in (False, True):
        with pytest.raises(NoUserMessage):
            begin(conn, made, retry=retry)


def test_a_new_answer_needs_a_provider_and_a_model(conn: Connection) -> None:
    made = conversation(conn)
    queries.messages.add_message(conn, ANN, made, "q")
    for chosen in ((None, None), ("lmstudio", None), (None, "m")):
        with pytest.raises(Invalid):
            queries.generations.begin_answer(conn, ANN, made, AnswerRequest(), *chosen)
    finish(conn, begin(conn, made))
    assert queries.generations.begin_answer(conn, ANN, made, AnswerRequest(), None, None).job is None


def test_the_settings_of_a_conversation_hold_unless_others_are_given(conn: Connection) -> None:
    made = conversation(conn, settings={"temperature": 0.1, "seed": 1})
    queries.messages.add_message(conn, ANN, made, "q")
    assert job(begin(conn, made, params={"seed": 2})).params == {"temperature": 0.1, "seed": 2}


def test_the_end_comes_once(conn: Connection) -> None:
    made = conversation(conn)
    queries.messages.add_message(conn, ANN, made, "q")
    begun = begin(conn, made)
    finish(conn, begun, "first", token_usage={"total_tokens": 3}, stats={"ttft_ms": 5})
    finish(conn, begun, "second", "canceled")
    message = queries.messages.list_messages(conn, ANN, made)[-1]
    assert (message.content, message.status) == ("first", "complete")
    assert json.loads(bytes(message.token_usage)) == {"total_tokens": 3}  # type: ignore[arg-type]
    assert queries.generations.get_recording(conn, ANN, begun.generation_id).content == "first"
    assert queries.conversations.get_conversation(conn, ANN, made).generation_id is None


def test_a_long_conversation_is_purged(conn: Connection) -> None:
    """SQLite's own cascades go a thousand deep."""
    made, parent = conversation(conn), None
    for _ in range(3000):
        row = "INSERT INTO messages (conversation_id, parent_id, role, content, status, created_at) VALUES (?, ?, 'user', 'x', 'complete', '')"
        parent = db.insert(conn, row, (made, parent))
        search.index_message(conn, ANN, parent, "x")
    purge(conn, ANN, made)
    assert conn.execute("SELECT count(*) FROM messages WHERE conversation_id = ?", (made,)).fetchone()[0] == 0


def test_an_end_that_comes_after_a_purge_does_nothing(conn: Connection) -> None:
    made = conversation(conn)
    queries.messages.add_message(conn, ANN, made, "q")
    begun = begin(conn, made)
    purge(conn, ANN, made)
    finish(conn, begun)
    assert conn.execute("SELECT count(*) FROM messages").fetchone()[0] == 0


def test_usage_is_summed_by_day_and_model(conn: Connection) -> None:
    for number in range(3):
        made = conversation(conn)
        queries.messages.add_message(conn, ANN, made, "q")
        counts = {"prompt_tokens": 10, "completion_tokens": 21, "total_tokens": 31}
        times = {"ttft_ms": 1000, "total_ms": 3000, "tokens_per_second": 10.0}
        if number < 2:  # answers of older versions have no generation_ms
            times["generation_ms"] = 2000
        finish(conn, begin(conn, made, model=f"m{number % 2}"), token_usage=counts, stats=times)
    made = conversation(conn)
    queries.messages.add_message(conn, ANN, made, "q")
    finish(conn, begin(conn, made, model="m0"), "half", "canceled", stats={"ttft_ms": 1000, "total_ms": 301_000})
    today = {"day": db.now()[:10], "seconds": 3.0, "tokens_per_second": 10.0}
    assert queries.generations.list_usage(conn, ANN) == [
        today | {"model": "m0", "answers": 3, "prompt_tokens": 20, "completion_tokens": 42, "seconds": 307.0},
        today | {"model": "m1", "answers": 1, "prompt_tokens": 10, "completion_tokens": 21},
    ]


# ---- indexes

WHAT_IS_HELD = {
    "message_words": "SELECT m.id, 'u' || c.user_id, words(m.content) FROM messages m"
    " JOIN conversations c ON c.id = m.conversation_id WHERE m.status <> 'generating' AND m.content <> ''",
    "title_words": "SELECT id, 'u' || user_id, words(title) FROM conversations",
}
words = st.text("abc äÉ日本語 x\n'\"", min_size=1, max_size=20).filter(str.strip)


def terms(conn: Connection, index: str) -> set[tuple[Any, ...]]:
    """All that an index holds: which word, of which row, where."""
    conn.execute(f"CREATE VIRTUAL TABLE temp.vocabulary USING fts5vocab (main, {index}, instance)")
    found = {tuple(row) for row in conn.execute("SELECT * FROM temp.vocabulary")}
    conn.execute("DROP TABLE temp.vocabulary")
    return found


def rebuilt(conn: Connection, index: str) -> set[tuple[Any, ...]]:
    """What it would hold if it were made anew from the rows that are there."""
    made = conn.execute("SELECT sql FROM sqlite_schema WHERE name = ?", (index,)).fetchone()[0]
    conn.execute(made.replace(index, "rebuilt", 1))
    conn.create_function("words", 1, search.words)
    columns = conn.execute("SELECT name FROM pragma_table_info('rebuilt')").fetchall()
    names = ", ".join(name for (name,) in columns)
    conn.execute(f"INSERT INTO rebuilt (rowid, {names}) {WHAT_IS_HELD[index]}")
    found = terms(conn, "rebuilt")
    conn.execute("DROP TABLE rebuilt")
    return found


class Indexes(RuleBasedStateMachine):
    """Whatever is done, in whatever order, the indexes hold what new ones would, and nothing when all is gone."""

    conversations = Bundle("conversations")
    running = Bundle("running")

    def __init__(self) -> None:
        super().__init__()
        self.conn = fresh()

    def teardown(self) -> None:
        for row in self.conn.execute("SELECT user_id, id FROM conversations").fetchall():
            purge(self.conn, *row)
        for index in WHAT_IS_HELD:
            assert terms(self.conn, index) == set(), index
        self.conn.close()

    def done(self, function: Callable[..., Any], *args: Any, **kw: Any) -> Any:
        """As one transaction; None when it is refused."""
        self.conn.execute("BEGIN")
        try:
            result = function(self.conn, *args, **kw)
        except FiresideError:
            self.conn.execute("ROLLBACK")
            return None
        self.conn.execute("COMMIT")
        return result

    @rule(target=conversations, title=st.none() | words, user=st.sampled_from([ANN, BOB]))
    def create(self, title: str | None, user: int) -> tuple[int, int]:
        return user, self.done(queries.conversations.add_conversation, user, {"title": title}).id

    @rule(at=conversations, title=words)
    def change(self, at: tuple[int, int], title: str) -> None:
        self.done(queries.conversations.set_conversation, *at, {"title": title, "system_prompt": title[1:]})

    @rule(at=conversations, text=words, first=st.booleans())
    def say(self, at: tuple[int, int], text: str, first: bool) -> None:
        self.done(queries.messages.add_message, *at, text, *([None] if first else []))

    @rule(target=running, at=conversations, retry=st.booleans())
    def begin(self, at: tuple[int, int], retry: bool) -> Answer | None:
        begun: Answer | None = self.done(
            queries.generations.begin_answer, *at, AnswerRequest(retry=retry), "lmstudio", "m"
        )
        return begun

    @rule(begun=consumes(running), text=st.just("") | words, status=st.sampled_from(["complete", "canceled"]))
    def end(self, begun: Answer | None, text: str, status: str) -> None:
        if begun is not None:
            self.done(finish, begun, text, status)

    @rule(at=conversations)
    def delete_or_restore(self, at: tuple[int, int]) -> None:
        if self.done(queries.conversations.restore_conversation, *at) is None:
            self.done(queries.conversations.delete_conversation, *at)

    @rule(at=consumes(conversations))
    def purge(self, at: tuple[int, int]) -> None:
        self.done(purge, *at)

    @invariant()
    def indexes_hold_what_is_there(self) -> None:
        for index in WHAT_IS_HELD:
            self.conn.execute(f"INSERT INTO {index} ({index}) VALUES ('integrity-check')")
            assert terms(self.conn, index) == rebuilt(self.conn, index), index

    @invariant()
    def stored_bytes_are_those_of_the_messages(self) -> None:
        taken = (
            "SELECT coalesce(sum(length(CAST(c.system_prompt AS BLOB)) + (SELECT coalesce(sum(length(CAST(content AS BLOB))), 0)"
            " FROM messages WHERE conversation_id = c.id)), 0) FROM conversations c WHERE c.user_id = users.id"
        )
        for row in self.conn.execute(f"SELECT stored_bytes, ({taken}) FROM users").fetchall():
            assert row[0] == row[1]


TestIndexes = Indexes.TestCase
TestIndexes.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)
