"""Single messages: deleted, restored, edited."""

import random
from typing import Any

import pytest
from fireside.db import Connection, ago
from fireside.errors import Conflict, GenerationActive, Invalid, NotFound, QuotaExceeded
from fireside.queries import attachments, bin, conversations, messages, search, usage
from fireside.queries.generations import SentRequest
from fireside.queries.types import Image

from .conftest import ANN, BOB, answer, answered, asked, begin, conversation, finish, path, purge, questions, say, used

# A conversation as {name: (name of the parent, role)}, in the order of the ids.
Tree = dict[str, tuple[str | None, str]]
TALK: Tree = {
    "Q1": (None, "user"),
    "A1": ("Q1", "assistant"),
    "A1b": ("Q1", "assistant"),
    "Q2": ("A1", "user"),
    "A2": ("Q2", "assistant"),
    "A2b": ("Q2", "assistant"),
    "Q3": ("A2", "user"),
    "A3": ("Q3", "assistant"),
}


def build(conn: Connection, tree: Tree, active: str) -> tuple[int, dict[str, int]]:
    conversation_id = conversation(conn, title="Talk")
    ids: dict[str, int] = {}
    for name, (parent, role) in tree.items():
        ids[name] = say(conn, conversation_id, name, ids[parent] if parent else None)
        conn.execute("UPDATE messages SET role = ? WHERE id = ?", (role, ids[name]))
    conn.execute("UPDATE conversations SET active_message_id = ? WHERE id = ?", (ids[active], conversation_id))
    return conversation_id, ids


def shape(conn: Connection, conversation_id: int) -> dict[str, str | None]:
    """Return the text of each message with that of its parent."""
    rows = conn.execute(
        "SELECT m.content, p.content AS parent FROM messages m LEFT JOIN messages p ON p.id = m.parent_id WHERE m.conversation_id = ?",
        (conversation_id,),
    )
    return {row["content"]: row["parent"] for row in rows}


def links(conn: Connection) -> int:
    return int(conn.execute("SELECT count(*) FROM former_parents").fetchone()[0])


# This test comes first: if an UPDATE without its condition makes a message its own parent, the tests below do not end.
def test_question_restored_before_the_one_above_it_keeps_its_answer(conn: Connection) -> None:
    tree: Tree = {"Q1": (None, "user"), "Q2": ("Q1", "user"), "A2": ("Q2", "assistant")}
    conversation_id, ids = build(conn, tree, "A2")
    first = bin.delete_message(conn, ANN, conversation_id, ids["Q1"]).deleted_id
    assert path(conn, conversation_id) == ["Q2", "A2"]
    second = bin.delete_message(conn, ANN, conversation_id, ids["Q2"]).deleted_id
    assert path(conn, conversation_id) == []
    bin.restore(conn, ANN, second)
    assert path(conn, conversation_id) == ["Q2", "A2"]
    bin.restore(conn, ANN, first)
    assert path(conn, conversation_id) == ["Q1", "Q2", "A2"]


@pytest.mark.parametrize(
    ("name", "left", "deleted"),
    [
        ("A3", "Q1 A1 Q2 A2 Q3", ["A3"]),
        ("Q3", "Q1 A1 Q2 A2", ["Q3", "A3"]),
        ("A1", "Q1 A1b Q2 A2 Q3 A3", ["A1"]),  # the other version takes its place
        ("Q2", "Q1 A1 Q3 A3", ["Q2", "A2", "A2b"]),
        ("Q1", "Q2 A2 Q3 A3", ["Q1", "A1", "A1b"]),
    ],
)
def test_deleted_message_leaves_the_others_and_returns_to_its_place(
    conn: Connection, name: str, left: str, deleted: list[str]
) -> None:
    conversation_id, ids = build(conn, TALK, "A3")
    other = conversation(conn)
    for one in (say(conn, other, "Other"), ids[name]):
        conn.execute("UPDATE messages SET client_id = 'c', source = 's' WHERE id = ?", (one,))
    before = [*map(tuple, conn.execute("SELECT * FROM messages ORDER BY id"))]
    gone = bin.delete_message(conn, ANN, conversation_id, ids[name])
    assert path(conn, conversation_id) == left.split()
    assert [*shape(conn, gone.deleted_id)] == deleted
    [entry] = conversations.list_conversations(conn, ANN, deleted=True)
    assert (entry.id, entry.title, entry.deleted_from) == (
        gone.deleted_id,
        name,
        conversations.Home(conversation_id, "Talk"),
    )
    assert name not in [hit.snippet.strip("\ue000\ue001") for hit in search.find(conn, ANN, name, 10)]
    assert bin.delete_message(conn, ANN, conversation_id, ids[name]).deleted_id == gone.deleted_id
    with pytest.raises(NotFound):
        bin.delete_message(conn, ANN, other, ids[name])
    assert bin.restore(conn, ANN, gone.deleted_id).id == conversation_id
    assert [*map(tuple, conn.execute("SELECT * FROM messages ORDER BY id"))] == before
    assert path(conn, conversation_id) == ["Q1", "A1", "Q2", "A2", "Q3", "A3"]
    assert links(conn) == 0 and not conversations.list_conversations(conn, ANN, deleted=True)


def test_restoring_a_message_does_not_move_unrelated_messages(conn: Connection) -> None:
    conversation_id, ids = build(conn, TALK, "A3")
    for name in ("A1", "A1b"):
        bin.delete_message(conn, ANN, conversation_id, ids[name])
    begun, _ = begin(conn, conversation_id, message_id=ids["Q1"], retry=True)
    finish(conn, begun, "A1c")
    before = shape(conn, conversation_id)
    assert (before["Q2"], before["A1c"]) == ("Q1", "Q1")
    bin.restore(conn, ANN, bin.delete_message(conn, ANN, conversation_id, ids["A3"]).deleted_id)
    assert shape(conn, conversation_id) == before


def test_any_deletions_are_undone_in_any_order(conn: Connection) -> None:
    chance = random.Random(17)
    for _ in range(40):
        tree: Tree = {}
        for number in range(chance.randrange(2, 14)):
            names: list[str | None] = [None, *tree]
            parent = chance.choice(names) if chance.random() < 0.3 else names[-1]
            above = tree[parent][1] if parent else "assistant"
            usual = "user" if above == "assistant" else "assistant"
            tree[f"M{number}"] = (parent, usual if chance.random() < 0.9 else above)
        leaves = [name for name in tree if name not in {parent for parent, _ in tree.values()}]
        conversation_id, ids = build(conn, tree, chance.choice(leaves))
        original = shape(conn, conversation_id)
        entries: list[int] = []
        for _ in range(chance.randrange(1, 8)):
            live = [*shape(conn, conversation_id)]
            if live and chance.random() < 0.7:
                entries.append(bin.delete_message(conn, ANN, conversation_id, ids[chance.choice(live)]).deleted_id)
            elif entries:
                bin.restore(conn, ANN, entries.pop(chance.randrange(len(entries))))
            check_tree(conn, conversation_id)
        chance.shuffle(entries)
        for entry in entries:
            bin.restore(conn, ANN, entry)
            check_tree(conn, conversation_id)
        assert shape(conn, conversation_id) == original
        assert links(conn) == 0


def check_tree(conn: Connection, conversation_id: int) -> None:
    """All messages hang together, and one is active."""
    now = shape(conn, conversation_id)
    for name in now:
        seen, above = {name}, now[name]
        while above is not None:
            assert above in now and above not in seen
            seen.add(above)
            above = now[above]
    assert bool(path(conn, conversation_id)) == bool(now)


def test_removed_for_good_the_rest_is_still_restored_in_order(conn: Connection) -> None:
    conversation_id, ids = build(conn, TALK, "A3")
    third = bin.delete_message(conn, ANN, conversation_id, ids["Q3"])
    second = bin.delete_message(conn, ANN, conversation_id, ids["Q2"])
    purge(conn, ANN, second.deleted_id)
    bin.restore(conn, ANN, third.deleted_id)
    assert path(conn, conversation_id) == ["Q1", "A1", "Q3", "A3"] and links(conn) == 0
    again = bin.delete_message(conn, ANN, conversation_id, ids["A1"])
    conn.execute("UPDATE conversations SET deleted_at = ? WHERE id = ?", (ago(days=31), again.deleted_id))
    conversations.hide_expired(conn)
    [hidden] = conversations.list_hidden(conn)
    conversations.remove_messages(conn, conversations.list_message_ids(conn, hidden))
    conversations.remove_emptied(conn, hidden)
    assert path(conn, conversation_id) == ["Q1", "A1b", "Q3", "A3"] and links(conn) == 0


def test_chat_in_the_bin_is_restored_first_and_a_purged_one_takes_its_messages_along(conn: Connection) -> None:
    conversation_id, ids = build(conn, TALK, "A3")
    entry = bin.delete_message(conn, ANN, conversation_id, ids["Q3"]).deleted_id
    conversations.hide_conversation(conn, ANN, entry)
    with pytest.raises(NotFound):  # it is being removed
        bin.delete_message(conn, ANN, conversation_id, ids["Q3"])
    conn.execute("UPDATE conversations SET hidden = 0 WHERE id = ?", (entry,))
    conversations.delete_conversation(conn, ANN, conversation_id)
    with pytest.raises(Conflict):
        bin.restore(conn, ANN, entry)
    bin.restore(conn, ANN, conversation_id)
    bin.restore(conn, ANN, entry)
    assert path(conn, conversation_id)[-1] == "A3"
    bin.delete_message(conn, ANN, conversation_id, ids["Q3"])
    purge(conn, ANN, conversation_id)
    assert conn.execute("SELECT count(*) FROM messages").fetchone()[0] == 0
    assert used(conn) == 0


def test_message_becomes_a_chat_when_its_own_is_gone(conn: Connection) -> None:
    conversation_id, ids = build(conn, TALK, "A3")
    entry = bin.delete_message(conn, ANN, conversation_id, ids["Q2"]).deleted_id
    conn.execute("UPDATE conversations SET hidden = 1 WHERE id = ?", (conversation_id,))
    restored = bin.restore(conn, ANN, entry)
    assert (restored.id, path(conn, entry)) == (entry, ["Q2", "A2b"])
    say(conn, entry, "Why?")
    bin.delete_message(conn, ANN, entry, ids["A2b"])
    assert path(conn, entry) == ["Q2", "A2", "Why?"], "the other version does not take its place"


def test_restored_message_is_shown_unless_the_chat_went_on(conn: Connection) -> None:
    conversation_id, ids = build(conn, TALK, "A3")
    entry = bin.delete_message(conn, ANN, conversation_id, ids["A3"]).deleted_id
    begun, job = begin(conn, conversation_id, retry=True)
    assert questions(job)[-1] == "Q3"
    bin.restore(conn, ANN, entry)  # also while an answer is generated
    finish(conn, begun, "A3c")
    assert path(conn, conversation_id)[-1] == "A3c"
    assert messages.list_messages(conn, ANN, conversation_id)[-1].versions["ids"] == [ids["A3"], begun.message_id]


def test_deletion_is_refused_while_an_answer_is_generated(conn: Connection) -> None:
    conversation_id = asked(conn)
    begun, job = begin(conn, conversation_id)
    for message_id in (begun.message_id, job.leaf_id):
        with pytest.raises(GenerationActive):
            bin.delete_message(conn, ANN, conversation_id, message_id)
    with pytest.raises(GenerationActive):
        messages.edit_answer(conn, ANN, conversation_id, begun.message_id, "mine")


def test_repeated_request_after_a_deletion_does_not_prevent_its_undo(conn: Connection) -> None:
    conversation_id = conversation(conn)
    first = say(conn, conversation_id, "once", client_id="c")
    entry = bin.delete_message(conn, ANN, conversation_id, first).deleted_id
    second = say(conn, conversation_id, "once", client_id="c")
    bin.restore(conn, ANN, entry)
    rows = conn.execute("SELECT id, client_id FROM messages ORDER BY id").fetchall()
    assert [*map(tuple, rows)] == [(first, None), (second, "c")]


# ---- edited answers


def test_edited_answer_is_another_version_on_which_the_next_question_is_answered(conn: Connection) -> None:
    conversation_id, original = answered(conn)
    attachments.attach(conn, ANN, original, [Image("image/png", b"1234")])
    other = conversation(conn)
    say(conn, other, "elsewhere", client_id="c")
    begin(conn, asked(conn))  # an answer elsewhere prevents nothing
    edit = (conn, ANN, conversation_id, original, "mine", "c")
    edited = messages.edit_answer(*edit)
    assert messages.edit_answer(*edit) == edited
    assert path(conn, other) == ["elsewhere"]
    shown = messages.list_messages(conn, ANN, conversation_id)[-1]
    assert (shown.id, shown.content, shown.model, shown.edited, len(shown.images)) == (edited, "mine", "m", True, 1)
    versions = {"ids": [original, edited], "index": 1, "models": ["m", "m"], "edited": [False, True]}
    assert shown.versions == versions
    assert messages.get_message(conn, ANN, conversation_id, original).content == "answer"
    say(conn, conversation_id, "and?")
    assert questions(begin(conn, conversation_id)[1]) == ["question", "mine", "and?"]
    assert usage.list_usage(conn, ANN)[0].answers == 1
    assert [hit.message_id for hit in search.find(conn, ANN, "mine", 10)] == [edited]


def test_question_is_not_edited_as_an_answer_and_the_quota_holds(conn: Connection) -> None:
    conversation_id, original = answered(conn)
    [question] = [row["id"] for row in conn.execute("SELECT id FROM messages WHERE role = 'user'")]
    with pytest.raises(Invalid):
        messages.edit_answer(conn, ANN, conversation_id, question, "mine")
    with pytest.raises(QuotaExceeded):
        messages.edit_answer(conn, ANN, conversation_id, original, "m" * 1000, max_bytes=100)


@pytest.mark.parametrize(
    ("function", "more"),
    [(messages.get_message, ()), (messages.edit_answer, ("mine",)), (bin.delete_message, ())],
)
def test_message_of_another_conversation_is_not_found(conn: Connection, function: Any, more: tuple[str, ...]) -> None:
    _, other = answered(conn)
    own = asked(conn)
    foreign = conversation(conn, BOB)
    for user_id, conversation_id, message_id in ((ANN, own, other), (BOB, foreign, other), (ANN, own, 10**6)):
        with pytest.raises(NotFound) as caught:
            function(conn, user_id, conversation_id, message_id, *more)
        assert caught.value.code == "MESSAGE_NOT_FOUND"
    answer(conn, own)


def test_bin_has_only_the_instructions_that_its_answers_were_sent_with(conn: Connection) -> None:
    conversation_id = asked(conn)
    for number in range(3):
        begun, job = begin(conn, conversation_id)
        finish(conn, begun, sent=SentRequest("hash", {}, job.leaf_id, 0, f"Prompt {number}"))
        say(conn, conversation_id, "Next")
    [question, *_] = messages.list_messages(conn, ANN, conversation_id)
    gone = bin.delete_message(conn, ANN, conversation_id, question.id)
    texts = "SELECT text FROM sent_system_prompts WHERE conversation_id = ?"
    assert [row["text"] for row in conn.execute(texts, (gone.deleted_id,))] == ["Prompt 0"]
    assert len(conn.execute(texts, (conversation_id,)).fetchall()) == 3


def test_hidden_conversation_with_a_message_is_not_removed(conn: Connection) -> None:
    conversation_id = asked(conn)
    conversations.hide_conversation(conn, ANN, conversation_id)
    conversations.remove_emptied(conn, conversation_id)
    assert conversations.list_hidden(conn) == [conversation_id]
