"""Folders, changes of many conversations at once, the order of the list, and temporary conversations."""

import asyncio
import io
import json
import time
import zipfile
from typing import Any

import pytest
from fireside.db import Connection, ago, now
from fireside.errors import Invalid, NameExists, NotFound
from fireside.queries import bin, conversations, folders, messages

from ..live import PATIENCE, Person, Running, code, good, until
from ..upstream import Gate, Upstream, answer, pause, text
from .conftest import ANN, BOB, asked, begin, conversation

NO_CONVERSATION = (404, "CONVERSATION_NOT_FOUND")


async def create_folder(person: Person, name: str) -> int:
    folder_id: int = good(await person.post("/folders", json={"name": name}))["id"]
    return folder_id


async def names(person: Person) -> list[tuple[str, int]]:
    listed = good(await person.get("/folders"))["folders"]
    return [(one["name"], one["conversations"]) for one in listed]


async def listed(person: Person, **params: Any) -> list[int]:
    return [one["id"] for one in good(await person.get("/conversations", params=params))]


async def bulk(person: Person, ids: list[int], action: str, **fields: Any) -> list[int]:
    changed = good(await person.post("/bulk", json={"ids": ids, "action": action, **fields}))
    return sorted(changed["ids"])


# ---- folders


async def test_folder_is_created_renamed_and_deleted_and_its_conversations_stay(ann: Person, bob: Person) -> None:
    work, home = await create_folder(ann, " Work  and\n more "), await create_folder(ann, "home")
    assert await create_folder(ann, "home") == home, "a repeated request adds nothing"
    assert await names(ann) == [("home", 0), ("Work and more", 0)] and await names(bob) == []
    inside, outside = await ann.conversation(folder_id=work), await ann.conversation()
    pinned = await ann.conversation(pinned=True)
    assert good(await ann.get(f"/conversations/{inside}"))["folder_id"] == work
    assert await listed(ann, folder=work) == [inside] and await listed(ann, folder=0) == [pinned, outside]
    assert await bulk(ann, [pinned, outside], "move", folder_id=home) == [outside, pinned]
    assert not good(await ann.get(f"/conversations/{pinned}"))["pinned"], "it is shown where it was moved to"
    good(await ann.patch(f"/conversations/{outside}", json={"folder_id": None}))
    assert await names(ann) == [("home", 1), ("Work and more", 1)]
    assert code(await ann.patch(f"/folders/{work}", json={"name": "home"})) == (409, "NAME_EXISTS")
    assert good(await ann.patch(f"/folders/{work}", json={"name": "Work"}))["name"] == "Work"
    assert good(await ann.patch(f"/folders/{work}", json={"name": "WORK"}))["name"] == "WORK"
    good(await ann.delete(f"/conversations/{inside}"))
    gone = good(await ann.delete(f"/folders/{work}"))
    assert gone == {"message": "Folder deleted", "conversation_ids": [inside]}
    assert good(await ann.post(f"/conversations/{inside}/restore"))["folder_id"] is None
    assert await names(ann) == [("home", 1)]


def test_names_of_folders_are_of_each_user(conn: Connection) -> None:
    work = folders.add_folder(conn, ANN, "Work")
    assert folders.add_folder(conn, BOB, "Work") != work
    other = folders.add_folder(conn, BOB, "Other")
    assert folders.rename_folder(conn, ANN, work, "Other").name == "Other"
    with pytest.raises(NameExists):
        folders.rename_folder(conn, BOB, other, "Work")
    inside = conversation(conn, folder_id=work)
    conn.execute("UPDATE conversations SET hidden = 1 WHERE id = ?", (inside,))
    elsewhere = conversation(conn, BOB, folder_id=other)
    assert folders.delete_folder(conn, ANN, work) == []
    assert conversations.get_conversation(conn, BOB, elsewhere).folder_id == other


def test_folders_have_a_limit(conn: Connection) -> None:
    for number in range(folders.MAX_FOLDERS):
        folders.add_folder(conn, ANN, str(number))
    with pytest.raises(Invalid):
        folders.add_folder(conn, ANN, "one more")
    assert folders.add_folder(conn, ANN, "7") and folders.add_folder(conn, BOB, "one")


# ---- many at once


async def test_many_are_deleted_restored_and_moved_in_one_request_that_is_undone(ann: Person, bob: Person) -> None:
    own = [await ann.conversation(title=f"No. {number}") for number in range(5)]
    others, work = await bob.conversation(), await create_folder(ann, "Work")
    ids = [*own[:3], own[0], others, 10**9]
    assert await bulk(ann, ids, "delete") == own[:3]
    assert code(await ann.post("/bulk", json={"ids": ids, "action": "delete"})) == NO_CONVERSATION
    assert code(await bob.post("/bulk", json={"ids": own, "action": "restore"})) == NO_CONVERSATION
    assert await listed(ann) == [own[4], own[3]] and await listed(bob) == [others]
    assert await bulk(ann, own, "restore") == own[:3]
    assert await bulk(ann, own, "move", folder_id=work) == own
    assert await bulk(ann, own[1:], "move") == own[1:]
    assert await listed(ann, folder=work) == own[:1]
    wrong: tuple[dict[str, Any], ...] = (
        {"ids": [0]},
        {"ids": [1] * 10_001},
        {"ids": ["1"]},
        {"ids": own, "action": "purge"},
    )
    for body in wrong:
        response = await ann.post("/bulk", json={"action": "delete"} | body)
        assert code(response) == (400, "VALIDATION_ERROR")


async def test_deleting_many_cancels_their_answers(running: Running, ann: Person, upstream: Upstream) -> None:
    gate = Gate()
    upstream.enqueue(text("one "), pause(gate))
    ids = [await ann.conversation("Count"), await ann.conversation("Idle")]
    async with ann.streaming(ids[0]) as events:
        await anext(event async for event in events if event.event == "delta")
        assert await bulk(ann, ids, "delete") == ids
    await until(lambda: not running.state.hub.generations)


async def test_chosen_conversations_are_exported_as_one_file(ann: Person, bob: Person) -> None:
    work = await create_folder(ann, "Work")
    one, _, three = [await ann.conversation(f"Question {number}", folder_id=work) for number in range(3)]
    others, deleted = await bob.conversation("Secret"), await ann.conversation("In the bin")
    good(await ann.delete(f"/conversations/{deleted}"))
    response = await ann.get("/export", params={"ids": f"{three},{one},{others},{deleted}"})
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        read = [json.loads(archive.read(name)) for name in archive.namelist() if name.endswith(".json")]
    assert [(each["title"], each["folder"]) for each in read] == [("Question 0", "Work"), ("Question 2", "Work")]
    for ids in (f"{others}", f"{deleted}", "999999"):
        assert code(await ann.get("/export", params={"ids": ids})) == NO_CONVERSATION
    for wrong in ("1,", "a", "1,,2", "-1", "1\n", "9" * 19):
        assert code(await ann.get("/export", params={"ids": wrong})) == (400, "VALIDATION_ERROR")


# ---- the order


async def test_list_is_sorted_by_name_in_pages(ann: Person) -> None:
    work = await create_folder(ann, "Work")
    titles = ["banana", "Apple", "apple", "cherry", "Äpfel", "date"]
    ids = {title: await ann.conversation(title=title, folder_id=work if title < "c" else None) for title in titles}
    first = await listed(ann, sort="name", limit=3)
    assert first == [ids[title] for title in ("Apple", "apple", "banana")]
    assert await listed(ann, sort="name", before=first[-1]) == [ids[title] for title in ("cherry", "date", "Äpfel")]
    assert await listed(ann, sort="name", folder=0) == [ids[title] for title in ("cherry", "date", "Äpfel")]
    assert code(await ann.get("/conversations", params={"sort": "size"})) == (400, "VALIDATION_ERROR")


def test_lists_are_read_from_their_indexes(conn: Connection) -> None:
    """100,000 conversations take at most 50 ms (bench): the filters need no rows of the table and the order no sorting."""
    plans: list[str] = []

    class Explaining:
        def execute(self, sql: str, values: Any = ()) -> Any:
            plans.extend(row["detail"] for row in conn.execute(f"EXPLAIN QUERY PLAN {sql}", values))
            return conn.execute(sql, values)

    for by_name in (False, True):
        for folder in (None, 0):
            conversations.find_conversations(Explaining(), ANN, "x", 9, folder=folder, by_name=by_name)  # type: ignore[arg-type]
    assert plans and all("USING COVERING INDEX conversations_by_" in plan for plan in plans), plans


# ---- temporary conversations


async def test_temporary_conversation_is_in_no_list_and_is_kept_on_demand(ann: Person, upstream: Upstream) -> None:
    upstream.enqueue(answer("A rare word: zephyr."))
    message = {"content": "Tell me of the zephyr"}
    made = good(await ann.post("/conversations", json={"temporary": True, "title": "Zephyrs", "message": message}))
    temporary = made["id"]
    assert made["temporary"]
    await ann.answer(temporary)
    assert len(await ann.messages(temporary)) == 2

    async def places() -> list[bool]:
        results = good(await ann.get("/search", params={"q": "zephyr"}))["results"]
        with zipfile.ZipFile(io.BytesIO((await ann.get("/export")).content)) as archive:
            exported = any("Zephyrs" in name for name in archive.namelist())
        shown = [
            temporary in await listed(ann, **params) for params in ({}, {"limit": 5}, {"q": "z"}, {"sort": "name"})
        ]
        one = await ann.get(f"/conversations/{temporary}/export")
        chosen = await ann.get("/export", params={"ids": str(temporary)})
        usage = good(await ann.get("/usage"))["usage"]
        return [bool(results), exported, *shown, one.status_code == 200, chosen.status_code == 200, bool(usage)]

    assert set(await places()) == {False}
    work = await create_folder(ann, "Work")
    good(await ann.patch(f"/conversations/{temporary}", json={"folder_id": work}))
    assert await names(ann) == [("Work", 0)]
    refused = await ann.patch(f"/conversations/{temporary}", json={"temporary": True})
    assert code(refused) == (400, "VALIDATION_ERROR")
    good(await ann.patch(f"/conversations/{temporary}", json={"temporary": False}))
    assert set(await places()) == {True} and await names(ann) == [("Work", 1)]


async def note(person: Person, conversation_id: int, tab: str, is_open: bool) -> None:
    good(await person.post(f"/conversations/{conversation_id}/presence", json={"tab": tab, "open": is_open}))


async def is_there(person: Person, conversation_id: int) -> bool:
    return (await person.get(f"/conversations/{conversation_id}")).status_code == 200


async def until_gone(person: Person, conversation_id: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while await is_there(person, conversation_id):
            pass


async def test_temporary_conversation_is_removed_when_its_last_tab_has_left(running: Running, ann: Person) -> None:
    temporary, kept, ordinary = [await ann.conversation("Hello", temporary=mark) for mark in (True, True, False)]
    running.state.temporary.grace = 0.02
    for one in (temporary, kept, ordinary):
        await note(ann, one, "first", True)
        await note(ann, one, "second", True)
        await note(ann, one, "first", False)
    good(await ann.patch(f"/conversations/{kept}", json={"temporary": False}))
    other = await ann.conversation("Left", temporary=True)
    await note(ann, other, "first", False)
    await until_gone(ann, other)
    assert await is_there(ann, temporary), "the second tab has it open"
    for one in (temporary, kept, ordinary):
        await note(ann, one, "second", False)
    await until_gone(ann, temporary)
    assert await is_there(ann, kept) and await is_there(ann, ordinary)
    assert (
        code(await ann.post(f"/conversations/{temporary}/presence", json={"tab": "a", "open": True})) == NO_CONVERSATION
    )
    await until(lambda: running.state.database.read_here(conversations.list_hidden) == [])
    stored = "SELECT count(*) FROM messages WHERE conversation_id = ?"
    assert running.state.database.read_here(lambda conn: conn.execute(stored, (temporary,)).fetchone()[0]) == 0


async def test_reloading_and_a_running_answer_keep_a_temporary_conversation(
    running: Running, ann: Person, upstream: Upstream
) -> None:
    gate = Gate()
    upstream.enqueue(text("one "), pause(gate), text("two"))
    temporary, other = [await ann.conversation("Count", temporary=True) for _ in range(2)]
    async with ann.streaming(temporary) as events:
        await anext(event async for event in events if event.event == "delta")
    await note(ann, other, "reloading", False)
    await note(ann, other, "reloading", True)
    running.state.temporary.grace = 0.02
    await note(ann, temporary, "one", False)
    third = await ann.conversation("Left later", temporary=True)
    await note(ann, third, "one", False)
    await until_gone(ann, third)
    assert await is_there(ann, temporary), "its answer is running"
    assert await is_there(ann, other), "it was opened again"
    gate.open()
    await until_gone(ann, temporary)
    assert await is_there(ann, other)


async def test_temporary_conversation_is_removed_after_a_silent_day(
    running: Running, ann: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent, opened, young = [await ann.conversation("Hello", temporary=True) for _ in range(3)]
    ordinary = await ann.conversation("Hello")

    def age(conn: Connection) -> None:
        conn.execute("UPDATE conversations SET updated_at = ? WHERE id <> ?", (ago(days=2), young))

    await note(ann, opened, "tab", True)
    await running.state.database.write(age)
    await running.state.temporary.clean_up()
    there = [await is_there(ann, one) for one in (silent, opened, young, ordinary)]
    assert there == [False, True, True, True]
    real = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + 90_000)
    await running.state.temporary.clean_up()
    assert [await is_there(ann, one) for one in (opened, young, ordinary)] == [False, True, True]


async def test_tab_that_opens_a_temporary_conversation_during_the_clean_up_keeps_it(
    running: Running, ann: Person
) -> None:
    opened = await ann.conversation("Hello", temporary=True)
    temporary = running.state.temporary
    temporary.grace = 0.02
    cleaning = asyncio.create_task(temporary.clean_up())
    await asyncio.sleep(0)  # now it waits for the database
    await temporary.note(ANN, opened, "first", True)
    await cleaning
    await note(ann, opened, "second", True)
    await note(ann, opened, "second", False)
    left = await ann.conversation("Left", temporary=True)
    await note(ann, left, "first", False)
    await until_gone(ann, left)
    assert await is_there(ann, opened)


async def test_restart_removes_temporary_conversations(running: Running, ann: Person) -> None:
    temporary, ordinary = await ann.conversation("Hello", temporary=True), await ann.conversation("Hello")
    await note(ann, temporary, "tab", True)
    cookies, headers = ann.cookies, ann.headers
    await running.stop()
    again = Running(running.config.data_dir)
    async with again:
        person = again.anybody()
        person.headers["X-CSRF-Token"] = headers["X-CSRF-Token"]
        old, fresh = (url.rsplit(":", 1)[1] for url in (running.url, again.url))
        for name, value in cookies.items():
            person.cookies.set(name.replace(old, fresh), value)
        assert not await is_there(person, temporary) and await is_there(person, ordinary)
        hidden = "SELECT count(*) FROM conversations WHERE temporary = 1"
        await again.state.importer.remove_leftovers()
        assert again.state.database.read_here(lambda conn: conn.execute(hidden).fetchone()[0]) == 0
    await running.start()


def test_temporary_conversation_with_a_running_answer_stays(conn: Connection) -> None:
    running, idle = asked(conn, temporary=True), conversation(conn, temporary=True)
    begun, _ = begin(conn, running)
    assert conversations.hide_temporary(conn, now()) == [idle]
    conn.execute("UPDATE messages SET status = 'complete' WHERE id = ?", (begun.message_id,))
    assert conversations.hide_temporary(conn, now(), [running]) == []
    assert conversations.hide_temporary(conn, ago(days=1)) == []
    other = conversation(conn, temporary=True)
    assert conversations.hide_temporary(conn, now(), only=running) == [running]
    assert conversations.hide_temporary(conn, now(), only=other) == [other]
    assert conversations.hide_temporary(conn, now()) == []
    ordinary = conversation(conn)
    assert conversations.hide_temporary(conn, now()) == [] and conversations.find_conversations(conn, ANN) == [ordinary]


def test_ids_that_are_not_in_the_list_are_left_out(conn: Connection) -> None:
    own, others, temporary, deleted, hidden = (
        conversation(conn),
        conversation(conn, BOB),
        conversation(conn, temporary=True),
        conversation(conn),
        conversation(conn),
    )
    conversations.delete_conversation(conn, ANN, deleted)
    conn.execute("UPDATE conversations SET hidden = 1 WHERE id = ?", (hidden,))
    question = messages.add_message(conn, ANN, own, "Why?")
    message = bin.delete_message(conn, ANN, own, question).deleted_id
    every = [own, others, temporary, deleted, hidden, message]
    assert conversations.owned_ids(conn, ANN, every) == [own]
    assert conversations.change_many(conn, ANN, every, "move") == [own, temporary]
    assert conversations.change_many(conn, ANN, every, "restore") == [deleted]
    for wrong in ([others], [hidden], [message]):
        with pytest.raises(NotFound):
            conversations.change_many(conn, ANN, wrong, "delete")
