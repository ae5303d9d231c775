"""The queries: owners, accounts, conversations, the tree of messages, answers, and the indexes."""

import json
import time
from typing import Any

import pytest
from fireside import db
from fireside.db import Connection
from fireside.errors import (
    AlreadyAnswered,
    GenerationActive,
    Invalid,
    NotFound,
    NoUserMessage,
)
from fireside.queries import (
    accounts,
    attachments,
    bin,
    conversations,
    folders,
    generations,
    messages,
    prompts,
    turns,
    usage,
)
from fireside.queries.generations import Answer, AnswerRequest
from fireside.queries.types import Image
from fireside.queries.usage import SpeedChange, UsageEntry

from .conftest import (
    ANN,
    BOB,
    answer,
    answered,
    asked,
    begin,
    conversation,
    finish,
    path,
    purge,
    questions,
    say,
)

# ---- owners

HELLO = {"title": "Hello"}
OWNED: dict[str, tuple[Any, ...]] = {  # a query, and the arguments after the user; names of objects stand for their ids
    "get_conversation": (conversations.get_conversation, "conversation"),
    "set_conversation": (conversations.set_conversation, "conversation", HELLO),
    "delete_conversation": (conversations.delete_conversation, "conversation"),
    "restore_conversation": (conversations.restore_conversation, "in bin"),
    "hide_conversation": (conversations.hide_conversation, "conversation"),
    "hide_conversation in the bin": (conversations.hide_conversation, "in bin"),
    "list_conversations before": (conversations.list_conversations, "", -1, "conversation"),
    "list_conversations in a folder": (conversations.list_conversations, "", -1, None, False, False, "folder"),
    "change_many": (lambda conn, user, one: conversations.change_many(conn, user, [one], "move"), "conversation"),
    "change_many in the bin": (
        lambda conn, user, one: conversations.change_many(conn, user, [one], "restore"),
        "in bin",
    ),
    "owned_ids": (lambda conn, user, one: conversations.owned_ids(conn, user, [one]), "conversation"),
    "is_temporary": (conversations.is_temporary, "conversation"),
    "rename_folder": (folders.rename_folder, "folder", "Mine"),
    "delete_folder": (folders.delete_folder, "folder"),
    "set_conversation to a folder": (
        lambda conn, user, own, folder: conversations.set_conversation(conn, user, own, {"folder_id": folder}),
        *("own", "folder"),
    ),
    "change_many to a folder": (
        lambda conn, user, own, folder: conversations.change_many(conn, user, [own], "move", folder),
        *("own", "folder"),
    ),
    "list_messages": (messages.list_messages, "conversation"),
    "list_messages before": (messages.list_messages, "own", -1, "message"),
    "add_message": (messages.add_message, "conversation", "hello"),
    "add_message below": (messages.add_message, "own", "hello", "message"),
    "set_active": (messages.set_active, "conversation", "message"),
    "set_active to another's": (messages.set_active, "own", "message"),
    "get_message": (messages.get_message, "conversation", "message"),
    "edit_answer": (messages.edit_answer, "conversation", "message", "mine"),
    "delete_message": (bin.delete_message, "conversation", "message"),
    "restore": (bin.restore, "in bin"),
    "get_image": (attachments.get_image, "image"),
    "owned_attachment": (attachments.owned_attachment, "image"),
    "read_again": (attachments.read_again, "image"),
    "list_pages": (attachments.list_pages, "image", 1, 20),
    "get_recording": (generations.get_recording, "generation"),
    "begin_answer": (generations.begin_answer, "conversation", AnswerRequest(retry=True), "lmstudio", "m"),
    "delete_session": (accounts.delete_session, "session"),
    "owned": (conversations.owned, "conversation"),
    "change_saved": (prompts.change_saved, prompts.Prompt, "prompt", {"content": "hello"}),
    "delete_saved": (prompts.delete_saved, prompts.Prompt, "prompt"),
    "get_saved": (prompts.get_saved, prompts.Preset, "preset"),
    "get_first_preset": (prompts.get_first_preset, "preset"),
}


@pytest.mark.parametrize("kind", ["another user's", "hidden"])
def test_object_of_another_user_or_hidden_is_like_a_missing_one(conn: Connection, kind: str) -> None:
    conversation_id, message_id = answered(conn)
    in_bin = conversation(conn)
    conversations.delete_conversation(conn, ANN, in_bin)
    say(conn, conversation_id, "look", images=[Image("image/png", b"...")])
    objects: dict[str, Any] = {
        "conversation": conversation_id,
        "in bin": in_bin,
        "message": message_id,
        "own": conversation(conn, BOB),
        "image": conn.execute("SELECT id FROM attachments").fetchone()[0],
        "generation": conn.execute("SELECT id FROM generations").fetchone()[0],
        "session": accounts.add_session(conn, ANN, b"1", "", "hash of ann"),
        "prompt": prompts.add_saved(conn, ANN, prompts.Prompt, {"name": "Hers", "content": "hi"}).id,
        "preset": prompts.add_saved(conn, ANN, prompts.Preset, {"name": "Hers"}).id,
        "folder": folders.add_folder(conn, ANN, "Ann's"),
    }
    folders.add_folder(conn, BOB, "Bob's")
    prompts.add_saved(conn, BOB, prompts.Prompt, {"name": "His", "content": "hi"})
    prompts.add_saved(conn, BOB, prompts.Preset, {"name": "His"})
    accounts.add_session(conn, BOB, b"2", "", "hash of bob")
    if kind == "hidden":
        conn.execute("UPDATE conversations SET user_id = ?, hidden = 1 WHERE id <> ?", (BOB, objects["own"]))
    missing = {**dict.fromkeys(objects, 10**6), "generation": "none", "own": objects["own"]}
    before = conn.total_changes
    for name, (function, *arguments) in OWNED.items():
        errors = []
        for ids in (objects, missing):
            values = [ids.get(value, value) if isinstance(value, str) else value for value in arguments]
            with pytest.raises(NotFound) as caught:
                function(conn, BOB, *values)
            errors.append((caught.value.code, str(caught.value)))
        assert conn.total_changes == before and errors[0] == errors[1], name


def test_lists_contain_only_the_user_s_own(conn: Connection) -> None:
    answered(conn)
    assert conversations.list_conversations(conn, BOB) == [] and usage.list_usage(conn, BOB) == []
    assert conversations.list_conversations(conn, BOB, q="question") == []
    assert len(conversations.list_conversations(conn, ANN, q="question")) == 1


# ---- conversations


def titles(conn: Connection, **more: Any) -> list[str]:
    return [found.title for found in conversations.list_conversations(conn, ANN, **more)]


def test_title_follows_the_first_message_until_a_user_sets_it(conn: Connection) -> None:
    conversation_id = conversation(conn)
    assert titles(conn) == [conversations.UNTITLED]
    for content, parent, title in (
        ("  Why is\nthe sky blue?  ", (), "Why is the sky blue?"),
        ("second", (), "Why is the sky blue?"),
        ("Why is grass green?", (None,), "Why is grass green?"),
    ):
        say(conn, conversation_id, content, *parent)
        assert titles(conn) == [title]
    conversations.set_conversation(conn, ANN, conversation_id, {"title": "Colours"})
    say(conn, conversation_id, "Why is snow white?", None)
    assert titles(conn) == ["Colours"]


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("word " * 100, "word word word word word word word word word word word word…"),
        ("x" * 100, "x" * 59 + "…"),
        ("\n \t", conversations.UNTITLED),
        ("Hello, " + "y" * 100, "Hello, " + "y" * 52 + "…"),
        ("日本" * 50, "日本" * 29 + "日…"),
        ("What is in it?\n\nmy notes.md:\n```md\nmilk\n```", "What is in it?"),
        ("my notes.md:\n```md\nmilk\n```", "my notes.md"),
        ("Why does this fail?\n\n```python\nprint(1/0)\n```", "Why does this fail?"),
        ("```\nprint(1/0)", "print(1/0)"),
    ],
)
def test_title_is_the_beginning_of_a_text(text: str, title: str) -> None:
    assert conversations.title_from(text) == title and len(title) <= 60


def test_newest_activity_comes_first(conn: Connection) -> None:
    ids = [conversation(conn, title=str(number)) for number in range(3)]
    say(conn, ids[1], "hello")
    conversations.set_conversation(conn, ANN, ids[0], {"title": "renamed", "pinned": True})
    assert titles(conn) == ["1", "2", "renamed"], "renaming is not activity"
    assert titles(conn, pinned=True) == ["renamed"]


@pytest.mark.parametrize(
    ("q", "found"),
    [
        ("0%", ["100%"]),
        ("_", ["a_b"]),
        ("a*b", ["a*b"]),
        ("[a-z]", []),
        ("at?", ["what?"]),
        ("STRASSE", ["Straße"]),
        ("straß", ["Straße"]),
        ("ärg", ["ÄRGER"]),
        ("A\u0308RG", ["ÄRGER"]),
        ("本", ["日本語"]),
        ("b\th", ["tab\there"]),
        ("' OR 1", []),
    ],
)
def test_title_filter_is_literal_and_case_insensitive(conn: Connection, q: str, found: list[str]) -> None:
    for title in ("100%", "a_b", "a*b", "[x]", "what?", "Straße", "ÄRGER", "İstanbul", "日本語", "tab\there", "Öl"):
        conversation(conn, title=title)
    assert titles(conn, q=q) == found


@pytest.mark.parametrize(
    "more", [{}, {"q": "1"}, {"pinned": True}, {"deleted": True}, {"by_name": True}, {"folder": 0}]
)
def test_pages_make_up_the_list(conn: Connection, more: dict[str, Any]) -> None:
    for number in range(30):
        conversation_id = conversation(conn, title=f"title {number}", pinned=number % 3 == 0)
        if number % 4 == 0:
            conversations.delete_conversation(conn, ANN, conversation_id)
    conn.execute("UPDATE conversations SET updated_at = 'same' WHERE id % 5 = 0")
    whole = conversations.list_conversations(conn, ANN, **more)
    assert len(whole) >= 7
    paged: list[conversations.Conversation] = []
    while page := conversations.list_conversations(conn, ANN, limit=4, before=paged[-1].id if paged else None, **more):
        assert len(page) <= 4
        paged += page
    assert paged == whole


def test_conversation_stays_in_the_bin_for_its_days(conn: Connection) -> None:
    kept, old, gone = (conversation(conn, title=title) for title in ("kept", "old", "gone"))
    for conversation_id in (kept, old, gone):
        conversations.delete_conversation(conn, ANN, conversation_id)
    assert titles(conn) == [] and set(titles(conn, deleted=True)) == {"kept", "old", "gone"}
    assert conversations.list_conversations(conn, ANN, deleted=True)[0].deleted_at
    days = conversations.BIN_DAYS
    for conversation_id, deleted_at in ((gone, db.ago(days=days, hours=1)), (old, db.ago(days=days - 1))):
        conn.execute("UPDATE conversations SET deleted_at = ? WHERE id = ?", (deleted_at, conversation_id))
    conversations.hide_expired(conn)
    assert titles(conn, deleted=True) == ["kept", "old"]
    assert conversations.list_hidden(conn) == [gone]
    assert conversations.restore_conversation(conn, ANN, kept).title == "kept"
    assert titles(conn) == ["kept"]
    with pytest.raises(NotFound):
        conversations.restore_conversation(conn, ANN, kept)


# ---- messages


def test_messages_are_a_tree_and_nothing_is_overwritten(conn: Connection) -> None:
    conversation_id = conversation(conn)
    one = say(conn, conversation_id, "one")
    two = say(conn, conversation_id, "two")
    edited = say(conn, conversation_id, "two, edited", one)
    assert path(conn, conversation_id) == ["one", "two, edited"]
    other = say(conn, conversation_id, "another beginning", None)
    assert path(conn, conversation_id) == ["another beginning"]
    assert messages.set_active(conn, ANN, conversation_id, one) == edited, "the path continues to the newest leaf"
    assert path(conn, conversation_id) == ["one", "two, edited"]
    assert messages.set_active(conn, ANN, conversation_id, two) == two
    first, second = messages.list_messages(conn, ANN, conversation_id)
    assert (first.versions["ids"], first.versions["index"]) == ([one, other], 0)
    assert (second.versions["ids"], second.versions["index"]) == ([two, edited], 0)
    assert (first.parent_id, second.parent_id) == (None, one)


def test_long_path_is_read_whole_or_in_pages_and_purged(conn: Connection) -> None:
    """SQLite limits cascades to 1,000 levels."""
    conversation_id = conversation(conn)
    ids = [say(conn, conversation_id, str(number)) for number in range(1200)]
    assert path(conn, conversation_id) == [str(number) for number in range(1200)]
    assert path(conn, conversation_id, limit=3) == ["1197", "1198", "1199"]
    assert path(conn, conversation_id, limit=3, before=ids[7]) == ["4", "5", "6"]
    assert path(conn, conversation_id, limit=30, before=ids[1]) == ["0"]
    assert path(conn, conversation_id, before=ids[0]) == []
    purge(conn, ANN, conversation_id)
    assert conn.execute("SELECT count(*) FROM messages").fetchone()[0] == 0


def test_repeated_client_id_adds_nothing(conn: Connection) -> None:
    conversation_id = conversation(conn)
    first = say(conn, conversation_id, "hello", client_id="a")
    assert say(conn, conversation_id, "hello again", client_id="a") == first
    assert path(conn, conversation_id) == ["hello"]
    assert say(conn, conversation(conn), "hello", client_id="a") != first


def test_images_belong_to_their_message_in_order(conn: Connection) -> None:
    images = [Image("image/png", b"one"), Image("image/jpeg", b"two")]
    conversation_id = conversation(conn)
    message_id = say(conn, conversation_id, "look", images=images)
    [message] = messages.list_messages(conn, ANN, conversation_id)
    assert isinstance(message.images, list) and message.id == message_id
    assert [attachments.get_image(conn, ANN, image["id"]) for image in message.images] == images
    purge(conn, ANN, conversation_id)
    with pytest.raises(NotFound):
        attachments.get_image(conn, ANN, message.images[0]["id"])


def test_images_that_are_not_sent_are_not_read(conn: Connection) -> None:
    conversation_id = conversation(conn)
    big = Image("image/png", b"x" * (turns.SENT_IMAGE_BYTES // 2 + 1))
    for _ in range(3):  # the same image counts each time
        question_id = say(conn, conversation_id, "look", images=[big])
    statements: list[str] = []
    conn.set_trace_callback(statements.append)
    sent = turns.get_prompt(conn, question_id).turns
    conn.set_trace_callback(None)
    assert [(len(turn.images), turn.omitted_images) for turn in sent] == [(0, 1), (0, 1), (1, 0)]
    assert sum(" data FROM " in statement for statement in statements) == 1


def test_imported_message_with_too_many_images_keeps_its_last_ones(conn: Connection) -> None:
    images = [Image("image/png", b"%d" % number) for number in range(50)]
    question_id = say(conn, conversation(conn), "look", images=images)
    [turn] = turns.get_prompt(conn, question_id).turns
    assert turn.images == images[-turns.SENT_IMAGES :]
    assert turn.omitted_images == 50 - turns.SENT_IMAGES


# ---- answers

OTHERS = ({"model": "other"}, {"provider": "other"})


def test_question_without_an_answer_gets_one(conn: Connection) -> None:
    conversation_id = asked(conn, settings={"temperature": 0.1, "seed": 1})
    begun, job = begin(conn, conversation_id, params={"seed": 2})
    assert questions(job) == ["q"] and job.params == {"temperature": 0.1, "seed": 2}
    assert conversations.get_conversation(conn, ANN, conversation_id).generation_id == begun.generation_id
    running = messages.list_messages(conn, ANN, conversation_id)[-1]
    assert (running.id, running.status, running.content) == (begun.message_id, "generating", "")


def test_running_answer_is_found_and_another_is_refused(conn: Connection) -> None:
    conversation_id = asked(conn)
    begun, _ = begin(conn, conversation_id)
    for provider, model in (("lmstudio", "m"), (None, None), ("lmstudio", None), (None, "m")):
        found = answer(conn, conversation_id, provider, model)
        assert found == Answer(begun.generation_id, begun.message_id)
    for more in (*OTHERS, {"retry": True}):
        with pytest.raises(GenerationActive):
            begin(conn, conversation_id, **more)
    say(conn, conversation_id, "and another question")
    with pytest.raises(GenerationActive):
        begin(conn, conversation_id)


def test_complete_answer_is_found_and_another_model_is_refused(conn: Connection) -> None:
    conversation_id = asked(conn)
    message_id = begin(conn, conversation_id)[0].message_id
    finish(conn, answer(conn, conversation_id), model="m-q4-instruct")
    assert messages.list_messages(conn, ANN, conversation_id)[-1].model == "m-q4-instruct"
    for model in (None, "m"):  # what was requested decides, and not who answered
        found = answer(conn, conversation_id, None, model)
        assert found.job is None and found.message_id == message_id
    for more in (*OTHERS, {"model": "m-q4-instruct"}):
        with pytest.raises(AlreadyAnswered):
            begin(conn, conversation_id, **more)
    assert begin(conn, conversation_id, model="other", retry=True)[0].message_id != message_id


@pytest.mark.parametrize("status", ["error", "canceled", "interrupted"])
def test_failed_answer_is_followed_by_a_new_version(conn: Connection, status: str) -> None:
    conversation_id = asked(conn)
    failed, _ = begin(conn, conversation_id)
    finish(conn, failed, "half", status)
    again, job = begin(conn, conversation_id)
    assert questions(job) == ["q"]
    versions = messages.list_messages(conn, ANN, conversation_id)[-1].versions
    assert (versions["ids"], versions["index"]) == ([failed.message_id, again.message_id], 1)


def test_conversation_without_a_question_cannot_be_answered(conn: Connection) -> None:
    empty, imported = conversation(conn), conversation(conn)
    messages.insert_message(conn, ANN, imported, {"role": "assistant", "content": "hi"})
    for conversation_id in (empty, imported):
        for retry in (False, True):
            with pytest.raises(NoUserMessage):
                begin(conn, conversation_id, retry=retry)


def test_new_answer_needs_a_provider_and_a_model(conn: Connection) -> None:
    conversation_id = asked(conn)
    for chosen in ((None, None), ("lmstudio", None), (None, "m")):
        with pytest.raises(Invalid):
            generations.begin_answer(conn, ANN, conversation_id, AnswerRequest(), *chosen)
    finish(conn, begin(conn, conversation_id)[0])
    assert generations.begin_answer(conn, ANN, conversation_id, AnswerRequest(), None, None).job is None


def test_answer_is_finished_once_and_not_after_a_purge(conn: Connection) -> None:
    conversation_id = asked(conn)
    begun, _ = begin(conn, conversation_id)
    finish(conn, begun, "first", token_usage={"total_tokens": 3}, stats={"ttft_ms": 5})
    finish(conn, begun, "second", "canceled")
    message = messages.list_messages(conn, ANN, conversation_id)[-1]
    assert (message.content, message.status) == ("first", "complete")
    assert json.loads(bytes(message.token_usage)) == {"total_tokens": 3}  # type: ignore[arg-type]
    assert generations.get_recording(conn, ANN, begun.generation_id).content == "first"
    assert conversations.get_conversation(conn, ANN, conversation_id).generation_id is None
    running, _ = begin(conn, conversation_id, retry=True)
    purge(conn, ANN, conversation_id)
    finish(conn, running)
    assert conn.execute("SELECT count(*) FROM messages").fetchone()[0] == 0


def test_usage_is_summed_by_day_and_model(conn: Connection) -> None:
    for number in range(3):
        counts = {"prompt_tokens": 10, "completion_tokens": 21, "total_tokens": 31}
        times = {"ttft_ms": 1000, "total_ms": 3000, "tokens_per_second": 10.0}
        if number < 2:  # answers of older versions have no generation_ms
            times["generation_ms"] = 2000
        finish(conn, begin(conn, asked(conn), model=f"m{number % 2}")[0], token_usage=counts, stats=times)
    canceled, _ = begin(conn, asked(conn), model="m0")
    finish(conn, canceled, "half", "canceled", stats={"ttft_ms": 1000, "total_ms": 301_000})
    today = db.now()[:10]
    assert usage.list_usage(conn, ANN) == [
        UsageEntry(today, "m0", 3, 20, 42, 307.0, 10.0, 1000, None),
        UsageEntry(today, "m1", 1, 10, 21, 3.0, 10.0, 1000, None),
    ]


@pytest.mark.parametrize(
    ("speeds", "change"),
    [
        pytest.param([20.0] * 8 + [16.4] * 5, ("2026-01-09", -18), id="slower"),
        pytest.param([20, 21, 19, 20.5, 19.5, 26, 25, 27], ("2026-01-06", 30), id="faster"),
        pytest.param([20.0] * 6 + [16.0] * 6 + [20.0] * 6, ("2026-01-13", 25), id="the newest"),
        pytest.param([20.0] * 6 + [16.0] * 2, None, id="too few days"),
        pytest.param([20.0] * 10 + [16.0] + [20.0] * 10, None, id="one slow day"),
        pytest.param([10, 30, 12, 28, 15, 25, 11, 29, 13], None, id="noise"),
        pytest.param([20.0] * 6 + [19.0] * 6, None, id="a small difference"),
    ],
)
def test_lasting_changes_of_speed_are_found(speeds: list[float], change: tuple[str, int] | None) -> None:
    days = [f"2026-01-{number:02}" for number in range(1, len(speeds) + 1)]
    entries = [
        UsageEntry(day, "m", 1, 1, 2, 1.0, speed, None, "old" if change and day < change[0] else "new")
        for day, speed in zip(days, speeds, strict=True)
    ]
    found = usage.find_changes([*reversed(entries), UsageEntry("2026-01-01", None, 1, 0, 0, 0.0, None, None, None)])
    assert found == ([SpeedChange("m", change[0], change[1], "old", "new")] if change else [])


def test_changes_are_found_among_many_days_of_imported_figures() -> None:
    days = [f"{number // 336:04}-{number // 28 % 12 + 1:02}-{number % 28 + 1:02}" for number in range(3651)]
    speeds = [-5.0] + [20.0 if number // 3 % 2 else 10.0 for number in range(3650)]
    entries = [UsageEntry(day, "m", 1, 1, 2, 1.0, speed, None, None) for day, speed in zip(days, speeds, strict=True)]
    began = time.monotonic()
    [change] = usage.find_changes(entries[::-1])
    assert time.monotonic() - began < 5
    assert change.since > days[-10]
