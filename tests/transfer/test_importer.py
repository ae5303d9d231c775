import asyncio
import contextlib
import io
import itertools
import json
import random
import re
import sqlite3
import tracemalloc
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fireside import db, queries
from fireside.db import Database, open_database
from fireside.errors import NotFound, QuotaExceeded, StorageUnavailable
from fireside.queries import search
from fireside.queries.generations import Answer, AnswerRequest, Recording, SavedPart
from fireside.queries.types import Image, image_type
from fireside.transfer import archive
from fireside.transfer.exporter import Exporter
from fireside.transfer.importer import Importer, Report
from fireside.transfer.steps import Skipped
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ..documents import library
from ..exports import (
    STATS,
    answered,
    asked,
    block,
    chatgpt,
    data_url,
    dumps,
    lmstudio,
    node,
    openwebui,
    png,
    said,
    turn,
)
from ..trials import FULL, TRIALS

USERS = itertools.count(1)


class Service:
    """A database with its importer and exporter, and one user."""

    user: int

    def __init__(self, database: Database, folder: Path) -> None:
        self.database, self.folder = database, folder
        self.importer, self.exporter = Importer(database), Exporter(database)

    async def add_user(self) -> int:
        return (await self.database.write(queries.accounts._add_user, f"user{next(USERS)}", "hash", "user")).id

    async def ask(
        self, content: str = "Look", *images: bytes, conversation_id: int | None = None, **fields: Any
    ) -> int:
        """Add a message, to a new conversation when none is given, and return the conversation's id."""
        write, kinds = self.database.write, [Image(image_type(image) or "", image) for image in images]
        ids = fields.pop("attachment_ids", ())
        if conversation_id is None:
            conversation_id = (await write(queries.conversations.add_conversation, self.user, fields)).id
        await write(queries.messages.add_message, self.user, conversation_id, content, images=kinds, attachment_ids=ids)
        return conversation_id

    async def begin_answer(self, conversation_id: int) -> Answer:
        request = AnswerRequest()
        begin = queries.generations.begin_answer
        return await self.database.write(begin, self.user, conversation_id, request, "lmstudio", "m")

    async def bring(self, path: Path, user_id: int | None = None) -> tuple[int, int, int]:
        report = await self.importer.import_files(user_id or self.user, [path])
        assert report.skipped == []
        return report.conversations, report.messages, report.unchanged

    async def export_zip(self, user_id: int | None = None) -> Path:
        path = self.folder / "export.zip"
        with path.open("wb") as file:
            async for chunk in self.exporter.export_zip(user_id or self.user):
                file.write(chunk)
        return path

    async def export_one(self, conversation_id: int, format: Any, user_id: int | None = None) -> Path:
        name, chunks = await self.exporter.export_conversation(user_id or self.user, conversation_id, format)
        with (self.folder / name).open("wb") as file:
            async for chunk in chunks:
                file.write(chunk)
        return self.folder / name

    async def conversations(self, *filters: str) -> list[queries.conversations.Conversation]:
        return await self.database.read(queries.conversations.list_conversations, self.user, *filters)

    async def messages(self) -> list[queries.messages.Message]:
        """The active path of the only conversation."""
        (conversation,) = await self.conversations()
        return await self.database.read(queries.messages.list_messages, self.user, conversation.id)

    async def dump(self, user_id: int | None = None) -> list[dict[str, Any]]:
        return await self.database.read(dump, user_id or self.user)

    async def stored_bytes(self) -> int:
        select = "SELECT stored_bytes FROM users WHERE id = ?"
        return await self.database.read(lambda conn: int(conn.execute(select, (self.user,)).fetchone()[0]))


async def opened(folder: Path) -> AsyncIterator[Service]:
    await asyncio.to_thread(folder.mkdir)
    service = Service(await open_database(folder / "fireside.db"), folder)
    service.user = await service.add_user()
    yield service
    await service.importer.aclose()
    await service.database.close()


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Service]:
    async for service in opened(tmp_path / "here"):
        yield service


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[Service]:
    async for service in opened(tmp_path / "there"):
        yield service


def write(path: Path, value: Any) -> Path:
    path.write_bytes(dumps(value))
    return path


def rivers(*more: dict[str, Any]) -> dict[str, Any]:
    return lmstudio(turn(asked("What is a river?")), turn(answered(block("Water.", **STATS))), *more)


def bridges(count: int) -> list[dict[str, Any]]:
    return [
        chatgpt(
            node("q", None, "user", f"What is bridge {n}?", at=1_700_000_001.0 + n),
            node("a", "q", "assistant", f"It is number {n}."),
            node("b", "q", "assistant", "I do not know."),
            current="a",
            id=f"id-{n}",
            title=f"Bridge {n}",
        )
        for n in range(count)
    ]


def long_conversation(count: int, **fields: Any) -> dict[str, Any]:
    """Return a question and an answer in turn, in Fireside's own form."""
    at = "2024-01-15T10:30:00.{:06}".format
    messages = [
        {
            "id": number,
            "parent_id": number - 1 or None,
            "role": "user" if number % 2 else "assistant",
            "created_at": at(number),
            "content": f"Message {number} of a long conversation about rivers. " * 3,
        }
        for number in range(1, count + 1)
    ]
    head = {"fireside": 1, "title": "Long", "created_at": at(0), "updated_at": at(0), "source": "test:1"}
    return head | {"messages": messages} | fields


def dump(conn: sqlite3.Connection, user_id: int) -> list[dict[str, Any]]:
    """Return all rows of a user's conversations, with the position of a message or conversation in place of its id."""
    everything = []
    for row in conn.execute("SELECT * FROM conversations WHERE user_id = ? ORDER BY id", (user_id,)).fetchall():
        conversation = dict(row)
        select = "SELECT * FROM messages WHERE conversation_id = ? ORDER BY id"
        messages = [dict(message) for message in conn.execute(select, (row["id"],))]
        places = {None: None} | {message["id"]: place for place, message in enumerate(messages)}
        conversation["active_message_id"] = places[conversation["active_message_id"]]
        queued = conn.execute(
            "SELECT id, content, created_at FROM queued_messages WHERE conversation_id = ?", (row["id"],)
        )
        conversation["queue"] = [
            tuple(one)[1:] + tuple(files(conn, one["id"], "queued_attachments")) for one in queued.fetchall()
        ]
        for message in messages:
            message["attachments"] = files(conn, message["id"])
            sent = "SELECT sha256, s.pages FROM sent_pages s JOIN attachments a ON a.id = attachment_id WHERE message_id = ? ORDER BY 1"
            message["sent_pages"] = [tuple(one) for one in conn.execute(sent, (message["id"],))]
            message["stats"] = referred(conn, message["stats"])
            message["citations"] = referred(conn, message["citations"])
            made = conn.execute("SELECT * FROM generations WHERE message_id = ?", (message["id"],)).fetchone()
            log = made and events(referred(conn, made["log"]) or "", places, row)
            message["generation"] = made and dict(made) | {"message_id": None, "log": log}
            message["parent_id"] = places[message["parent_id"]]
            del message["id"], message["conversation_id"]
        del conversation["id"], conversation["user_id"]
        everything.append(conversation | {"messages": messages})
    return everything


def files(conn: sqlite3.Connection, message_id: int, table: str = "message_attachments") -> list[Any]:
    """Return the attachments of a message."""
    sql = (
        "SELECT l.position, l.name, a.media_type, d.data"
        f" FROM {table} l JOIN attachments a ON a.id = l.attachment_id JOIN attachment_data d ON d.attachment_id = a.id"
        " WHERE l.message_id = ? ORDER BY l.position"
    )
    return [tuple(row) for row in conn.execute(sql, (message_id,))]


def referred(conn: sqlite3.Connection, text: str | None) -> str | None:
    """Return JSON with the hash of an attachment in place of its id."""

    def sha256(found: re.Match[str]) -> str:
        (row,) = conn.execute("SELECT hex(sha256) FROM attachments WHERE id = ?", (int(found[1]),))
        return f'"attachment_id":"{row[0]}"'

    return text and re.sub(r'"attachment_id": ?([0-9]+)', sha256, text)


def events(log: str, places: dict[Any, Any], conversation: sqlite3.Row) -> Any:
    entries = json.loads(log)
    for data in (entry["data"] for entry in entries if isinstance(entry, dict)):
        if "message_id" in data:
            data["message_id"] = places[data["message_id"]]
        assert data.pop("conversation_id", conversation["id"]) == conversation["id"]
    return entries


def stored_size(conversation: dict[str, Any]) -> int:
    texts = [conversation["system_prompt"]]
    texts += [message[name] for message in conversation["messages"] for name in ("content", "reasoning")]
    data = {file[-1] for message in conversation["messages"] for file in message["attachments"]}
    return sum(len(text.encode()) for text in texts) + sum(map(len, data))


# ---- what an import adds


async def test_imported_conversations_are_listed_read_found_and_counted(here: Service) -> None:
    folder = here.folder / "conversations"
    folder.mkdir()
    write(folder / "1.conversation.json", rivers())
    (folder / "2.conversation.json").write_bytes(b'{"name": "half')
    report = await here.importer.import_files(here.user, [folder])
    half = Skipped("2.conversation.json", "is not valid JSON")
    assert report == Report(conversations=1, messages=2, skipped=[half])
    (conversation,) = await here.conversations("rivers")
    assert (conversation.title, conversation.system_prompt, conversation.model) == ("Rivers", "Be brief.", "qwen3-4b")
    question, answer = await here.messages()
    assert (question.content, answer.content, answer.model) == ("What is a river?", "Water.", "qwen3-4b")
    assert isinstance(answer.token_usage, msgspec.Raw)
    usage = {"prompt_tokens": 30, "completion_tokens": 120, "total_tokens": 150}
    assert msgspec.json.decode(answer.token_usage) == usage
    hits = await here.database.read(search.find, here.user, "riv", 10)
    assert [hit.title for hit in hits] == ["Rivers", "Rivers"]
    assert [day.answers for day in await here.database.read(queries.usage.list_usage, here.user)] == [1]
    replayed = await here.begin_answer(conversation.id)
    recording = await here.database.read(queries.generations.get_recording, here.user, replayed.generation_id)
    assert recording.content == "Water."


async def test_messages_below_a_newer_version_are_exported_after_it(here: Service, there: Service) -> None:
    conversation_id = await here.ask("Question")
    [question] = await here.messages()
    write, user, answers = here.database.write, here.user, []
    for text in ("First", "Second"):
        again = AnswerRequest(retry=True, message_id=question.id)
        answer = await write(queries.generations.begin_answer, user, conversation_id, again, "lmstudio", "m")
        recording = Recording(answer.message_id, "complete", text, "", "[]")
        await write(queries.generations.finish_generation, answer.generation_id, recording)
        await here.ask("Next", conversation_id=conversation_id)
        answers.append(answer.message_id)
    await write(queries.bin.delete_message, user, conversation_id, answers[0])
    path = await here.export_one(conversation_id, "json")
    assert await there.bring(path) == (1, 4, 0)
    (copy,) = await there.conversations()
    parents = await there.database.read(queries.conversations.list_parents, copy.id)
    assert [parent and list(parents).index(parent) for parent in parents.values()] == [None, 0, 1, 1]


async def test_importing_again_adds_nothing(here: Service) -> None:
    paths = [
        write(here.folder / "a.json", rivers()),
        write(here.folder / "b.json", bridges(3)),
        write(here.folder / "c.json", [openwebui(said("u", None, "user", "hi"), current="u")]),
    ]
    assert await here.importer.import_files(here.user, paths) == Report(conversations=5, messages=12)
    before = await here.dump()
    assert await here.importer.import_files(here.user, paths) == Report(unchanged=5)
    assert await here.dump() == before
    bob = await here.add_user()
    assert await here.importer.import_files(bob, paths) == Report(conversations=5, messages=12)
    assert await here.dump(bob) == before


async def test_a_chat_that_has_grown_gains_its_new_messages(here: Service) -> None:
    path = here.folder / "x.json"
    await here.bring(write(path, rivers()))
    grown = rivers(turn(asked("And a lake?")), turn(answered(block("Water at rest."))))
    grown["messages"][1]["versions"].append(answered(block("Moving water.")))
    grown["assistantLastMessagedAt"] = 1_720_000_900_000
    assert await here.bring(write(path, grown)) == (0, 3, 0)
    messages = await here.messages()
    assert [m.content for m in messages] == ["What is a river?", "Water.", "And a lake?", "Water at rest."]
    assert len(messages[1].versions["ids"]) == 2
    (conversation,) = await here.conversations()
    assert conversation.updated_at == messages[-1].created_at == "2024-07-03T10:01:40.000000"
    assert await here.bring(write(path, grown)) == (0, 0, 1)


async def test_what_was_written_in_fireside_stays_the_active_path(here: Service) -> None:
    path = here.folder / "x.json"
    await here.bring(write(path, rivers()))
    (conversation,) = await here.conversations()
    change = {"title": "Mine", "pinned": True}
    await here.database.write(queries.conversations.set_conversation, here.user, conversation.id, change)
    await here.ask("Asked in Fireside", conversation_id=conversation.id)
    assert await here.bring(write(path, rivers(turn(asked("Asked in LM Studio"))))) == (0, 1, 0)
    messages = await here.messages()
    assert [m.content for m in messages] == ["What is a river?", "Water.", "Asked in Fireside"]
    assert len(messages[2].versions["ids"]) == 2
    (conversation,) = await here.conversations()
    assert (conversation.title, conversation.pinned) == ("Mine", True)
    assert conversation.updated_at == messages[-1].created_at  # not the time of the older message


async def test_a_conversation_in_the_bin_is_unchanged_and_a_removed_one_is_imported_again(here: Service) -> None:
    path = write(here.folder / "x.json", rivers())
    await here.bring(path)
    (conversation,) = await here.conversations()
    await here.database.write(queries.conversations.delete_conversation, here.user, conversation.id)
    before = await here.dump()
    assert await here.bring(write(path, rivers(turn(asked("More"))))) == (0, 0, 1)
    assert await here.dump() == before
    await here.database.write(queries.conversations.hide_conversation, here.user, conversation.id)
    await queries.conversations.remove_hidden(here.database, [conversation.id])
    assert await here.bring(path) == (1, 3, 0)


async def test_two_imports_at_once_add_everything_once(here: Service) -> None:
    path = write(here.folder / "x.json", bridges(100))
    reports = await asyncio.gather(*(here.importer.import_files(here.user, [path]) for _ in range(2)))
    assert sum(report.conversations for report in reports) == sum(report.unchanged for report in reports) == 100
    assert len(await here.dump()) == 100


async def test_progress_rises_to_one(here: Service) -> None:
    paths = [write(here.folder / "a.json", bridges(100)), here.folder / "missing.json", here.folder / "b.json"]
    write(paths[2], rivers())
    steps = [(done, report) async for done, report in here.importer.iterate(here.user, paths)]
    fractions = [done for done, _ in steps]
    assert fractions == sorted(fractions) and fractions[-1] == 1
    assert steps[-1][1].conversations == 101
    assert [skipped.file for skipped in steps[-1][1].skipped] == ["missing.json"]


async def test_a_dry_run_reports_what_an_import_adds_and_adds_nothing(here: Service) -> None:
    known = write(here.folder / "known.json", [*bridges(2), openwebui(said("u", None, "user", "hi"), current="u")])
    await here.bring(known)
    grown = bridges(3)
    grown[1]["mapping"]["c"] = node("c", "b", "user", "Why not?")
    paths = [write(here.folder / "a.json", grown), write(here.folder / "b.json", [rivers(), rivers(), *bridges(4)])]
    before = await here.dump(), await here.stored_bytes()
    report = await here.importer.import_files(here.user, paths, dry_run=True)
    assert (await here.dump(), await here.stored_bytes()) == before
    assert report == Report(conversations=3, messages=9, unchanged=5)
    assert await here.importer.import_files(here.user, paths) == report
    assert await here.importer.import_files(here.user, paths, dry_run=True) == Report(unchanged=9)


async def test_import_and_dry_run_end_when_the_user_has_no_more_space(here: Service) -> None:
    chats = write(here.folder / "x.json", [long_conversation(200, source=f"test:{n}") for n in range(12)])
    rows = [{"fireside": 1, "saved": "prompt", "name": str(number), "content": "x" * 400} for number in range(3)]
    prompts = write(here.folder / "prompts.json", rows)
    for path, limit in ((prompts, 1000), (chats, 300_000)):
        async with contextlib.aclosing(Importer(here.database, limit)) as importer:
            for dry_run in (True, False):
                before = await here.stored_bytes()
                with pytest.raises(QuotaExceeded, match=f"{limit:,}"):
                    await importer.import_files(here.user, [path], dry_run=dry_run)
                kept = await here.dump()
                stored = sum(map(stored_size, kept)) + 400 * len(await saved(here))
                assert await here.stored_bytes() == stored <= (before if dry_run else limit)
    assert 0 < len(kept) <= 10 and {len(conversation["messages"]) for conversation in kept} == {200}


# ---- what goes wrong


async def test_a_conversation_is_imported_whole_or_not_at_all(here: Service) -> None:
    rows = [long_conversation(3, title=f"Bridge {n}", source=f"test:{n}") for n in range(4)]
    rows[0]["messages"][0]["images"] = [{"media_type": "image/png", "data": data_url(png()).partition(",")[2]}]
    rows[1]["messages"][1]["client_id"] = rows[1]["messages"][2]["client_id"] = "twice"
    rows[2]["messages"][2]["images"] = [{"media_type": "image/png", "file": "lost.png"}]  # as version 1 wrote it
    report = await here.importer.import_files(here.user, [write(here.folder / "x.json", rows)])
    assert (report.conversations, report.messages) == (2, 6)
    assert report.skipped == [
        Skipped("Bridge 1", "has messages that do not fit together"),
        Skipped("Bridge 2", "its file lost.png is missing or larger than 64 MB"),
    ]
    kept = await here.dump()
    assert [row["title"] for row in kept] == ["Bridge 0", "Bridge 3"]
    assert kept[0]["messages"][0]["attachments"] == [(0, "", "image/png", png())]
    assert len(await here.database.read(search.find, here.user, "rivers", 99)) == 6


async def test_the_same_conversation_twice_in_a_file_is_imported_once(here: Service) -> None:
    ids = [await here.ask("Hello", title=title) for title in ("One", "Two")]
    one, two = [json.loads((await here.export_one(id, "json")).read_bytes()) for id in ids]
    two["created_at"] = one["created_at"]  # clocks may be coarse
    two["messages"][0]["content"] = "Goodbye"
    one["messages"].append(one["messages"][0] | {"id": 10**6, "content": "Asked in the same moment"})
    bob, path = await here.add_user(), write(here.folder / "x.json", [one, two, one])
    assert await here.bring(path, bob) == (2, 3, 1)
    assert await here.bring(path, bob) == (0, 0, 3)


def limit_pages(conn: sqlite3.Connection, more: int | None) -> None:
    pages = conn.execute("PRAGMA page_count").fetchone()[0]
    conn.execute(f"PRAGMA max_page_count = {pages + more if more else 1_000_000}")


async def test_a_full_disk_keeps_whole_conversations_and_the_next_import_adds_the_rest(
    here: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "PART_SECONDS", 0.005)  # else a fast machine fills the disk in the first transaction
    path = write(here.folder / "x.json", bridges(500))
    await here.database.write(limit_pages, 60)
    with pytest.raises(StorageUnavailable, match=r"the disk is full.* What was imported before stays\.$"):
        await here.importer.import_files(here.user, [path])
    await here.database.write(limit_pages, None)
    kept = await here.dump()
    assert 0 < len(kept) < 500 and {len(conversation["messages"]) for conversation in kept} == {3}
    assert await here.bring(path) == (500 - len(kept), (500 - len(kept)) * 3, len(kept))


async def test_a_cancelled_import_keeps_whole_conversations(here: Service) -> None:
    path, started = write(here.folder / "x.json", bridges(1000)), asyncio.Event()

    async def run() -> None:
        async for _ in here.importer.iterate(here.user, [path]):
            started.set()

    task = asyncio.create_task(run())
    await started.wait()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    kept = await here.dump()
    assert 0 < len(kept) < 1000 and {len(conversation["messages"]) for conversation in kept} == {3}


async def test_an_import_whose_reader_leaves_ends(here: Service) -> None:
    paths = [
        write(here.folder / f"{number}.json", long_conversation(1, source=f"test:{number}")) for number in range(100)
    ]
    tasks = asyncio.all_tasks()
    steps = here.importer.import_steps(here.user, paths)
    first = msgspec.json.decode(await anext(steps))
    await steps.aclose()
    assert asyncio.all_tasks() == tasks
    assert first["report"]["conversations"] <= len(await here.conversations()) < 100


async def test_growth_that_cannot_be_read_to_its_end_adds_nothing(here: Service) -> None:
    path = write(here.folder / "x.json", long_conversation(10))
    await here.bring(path)
    before, bytes_before = await here.dump(), await here.stored_bytes()
    grown = long_conversation(1000)
    grown["messages"][-1]["images"] = [{"media_type": "image/png", "file": "lost.png"}]
    report = await here.importer.import_files(here.user, [write(path, grown)])
    assert (report.messages, [skipped.file for skipped in report.skipped]) == (0, ["Long"])
    assert await here.dump() == before
    assert await here.stored_bytes() == bytes_before == sum(map(stored_size, before))
    assert len(await here.database.read(search.find, here.user, "rivers", 99)) == 10


@pytest.mark.parametrize("source", ["test:1", "test:2"])
async def test_a_child_that_dies_leaves_nothing_of_its_conversation(here: Service, source: str) -> None:
    path = write(here.folder / "x.json", long_conversation(10))
    await here.bring(path)
    before = await here.dump()
    write(path, long_conversation(4000, source=source))  # one that has grown, or a new one
    reports = []
    async for _, report in here.importer.iterate(here.user, [path]):
        reports.append(report)
        for worker in here.importer._sandbox._workers:
            worker.kill()
    assert reports[-1] == Report(skipped=[Skipped("x.json", "cannot be read to its end; the rest was left out")])
    assert await here.dump() == before


# ---- what an export restores

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
TEXTS = st.lists(TEXT.filter(bool), max_size=3)
COUNT = st.integers(0, 9999)
PICK = st.integers(0, 99)


def some(**fields: Any) -> Any:
    return st.fixed_dictionaries({}, optional=fields)


FIELDS = some(
    title=TEXT.filter(str.strip),
    system_prompt=TEXT,
    pinned=st.booleans(),
    model=TEXT,
    settings=some(temperature=st.floats(0, 2), stop=TEXT, seed=COUNT),
)
DOCUMENTS = [("a.txt", b"Keel"), ('b "c".json', b'[{"mapping": {}}]'), ("", b"%PDF-1.7"), ("a.txt", b"Hull")]
QUESTION = some(
    client_id=st.uuids().map(str),
    images=st.lists(st.integers(0, 2).map(png), max_size=2),
    documents=st.lists(st.sampled_from(DOCUMENTS), max_size=3, unique=True),
)
ENDING = some(
    model=TEXT,
    token_usage=st.fixed_dictionaries(dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), COUNT)),
    stats=some(ttft_ms=COUNT, tokens_per_second=st.floats(0, 1e4), finish_reason=TEXT),
    error=st.fixed_dictionaries({"code": st.just("PROVIDER_ERROR"), "message": TEXT}),
)
STATUS = st.sampled_from(["complete", "canceled", "interrupted", "error"])
STEPS = st.lists(
    st.tuples(st.just("new"), PICK, FIELDS)
    | st.tuples(st.just("change"), PICK, FIELDS)
    | st.tuples(st.just("ask"), PICK, st.tuples(TEXT, st.none() | PICK, QUESTION))
    | st.tuples(st.just("answer"), PICK, st.tuples(STATUS, TEXTS, TEXTS, ENDING))
    | st.tuples(st.just("queue"), PICK, st.lists(st.sampled_from(DOCUMENTS), max_size=2, unique=True))
    | st.tuples(st.sampled_from(["show", "bin"]), PICK, st.none()),
    max_size=16,
)


def live(conn: sqlite3.Connection, user_id: int, steps: list[tuple[str, int, Any]]) -> None:
    """Do what people do, with the functions that the service uses."""
    for action, pick, how in steps:
        ids = [conversation.id for conversation in queries.conversations.list_conversations(conn, user_id)]
        if action == "new" or not ids:
            queries.conversations.add_conversation(conn, user_id, how if action == "new" else {})
            continue
        conversation_id = ids[pick % len(ids)]
        rows = conn.execute("SELECT id FROM messages WHERE conversation_id = ?", (conversation_id,)).fetchall()
        messages = [row["id"] for row in rows]
        if action == "ask":
            content, branch, fields = how
            images = [Image("image/png", data) for data in fields.get("images", ())]
            parent = {} if branch is None else {"parent_id": [None, *messages][branch % (len(messages) + 1)]}
            ids = [document(conn, user_id, *one) for one in fields.get("documents", ())]
            given = {"images": images, "attachment_ids": ids, "client_id": fields.get("client_id")}
            message_id = queries.messages.add_message(conn, user_id, conversation_id, content, **given, **parent)
            for number, attachment_id in enumerate(ids):
                archive.add_sent_pages(conn, message_id, attachment_id, [(1, 1), (3, number + 3)])
        elif action == "queue":
            ids = [document(conn, user_id, *one) for one in how]
            queries.queued.add_queued(conn, user_id, conversation_id, "Later", attachment_ids=ids)
        elif action == "answer" and messages:
            answer(conn, user_id, conversation_id, *how)
        elif action == "show" and messages:
            queries.messages.set_active(conn, user_id, conversation_id, messages[pick % len(messages)])
        elif action == "change":
            queries.conversations.set_conversation(conn, user_id, conversation_id, how)
        elif action == "bin":
            queries.conversations.delete_conversation(conn, user_id, conversation_id)


def document(conn: sqlite3.Connection, user_id: int, name: str, data: bytes) -> int:
    """Upload a document and read it."""
    attachment_id = library.upload(conn, user_id, data, name, "text/plain").id
    queries.attachments.set_opened(conn, attachment_id, "text/plain", "section", 1, None)
    if queries.attachments.is_unread(conn, attachment_id):
        queries.attachments.add_pages(conn, attachment_id, 1, [data.decode()])
        queries.attachments.set_read(conn, attachment_id, "ready", None)
    return attachment_id


def answer(
    conn: sqlite3.Connection, user_id: int, conversation_id: int, status: str, contents: Any, thoughts: Any, ending: Any
) -> None:
    request = AnswerRequest(params={"seed": 1}, retry=True)
    begun = queries.generations.begin_answer(conn, user_id, conversation_id, request, "lmstudio", "m")
    ids = {"message_id": begun.message_id, "conversation_id": conversation_id}
    found = conn.execute(
        "SELECT l.attachment_id FROM message_attachments l JOIN messages m ON m.id = message_id"
        " WHERE m.conversation_id = ? ORDER BY l.attachment_id",
        (conversation_id,),
    ).fetchall()
    quoted = {"start": 0, "end": len("".join(contents)), "status": "found", "attachment_id": 0, "name": "a", "page": 2}
    citations = [quoted | {"attachment_id": one[0]} for one in found]
    documents = [{"attachment_id": one[0], "pages": 3} for one in found]
    ending = ending | {"stats": (ending.get("stats") or {}) | {"documents": documents}}
    done = {"status": "ok", "message_id": begun.message_id, "stats": ending["stats"], "citations": citations}
    log = [
        {"event": "ping", "data": ids | {"ts": "2024-01-15T10:30:00.123456"}},
        *(-len(text) for text in thoughts),
        *map(len, contents),
        {"id": 2**33, "event": "done", "data": done},
    ]
    recording = Recording(begun.message_id, status, "".join(contents), "".join(thoughts), json.dumps(log))
    fields = {"model": None, "token_usage": None, "stats": None, "error": None} | ending
    queries.generations.finish_generation(conn, begun.generation_id, recording, **fields)
    encoded = msgspec.json.encode(citations).decode()
    conn.execute("UPDATE messages SET citations = ? WHERE id = ?", (encoded, begun.message_id))


@settings(max_examples=60 if TRIALS >= FULL else 15, suppress_health_check=list(HealthCheck))
@given(steps=STEPS, later=STEPS)
async def test_export_and_import_restore_the_same_database(
    here: Service, there: Service, steps: list[Any], later: list[Any]
) -> None:
    owner, heir = await here.add_user(), await there.add_user()
    await here.database.write(live, owner, [("new", 0, {}), *steps])
    before = await here.dump(owner)
    path = await here.export_zip(owner)
    assert await there.bring(path, heir) == (len(before), sum(len(row["messages"]) for row in before), 0)
    assert await there.dump(heir) == before
    assert await there.bring(path, heir) == await here.bring(path, owner) == (0, 0, len(before))
    assert await there.dump(heir) == await here.dump(owner) == before

    await here.database.write(live, owner, later)
    path = await here.export_zip(owner)
    await there.bring(path, heir)
    for copy, original in zip(await there.dump(heir), await here.dump(owner), strict=True):
        assert original["messages"] == (original if copy["deleted_at"] else copy)["messages"]
    assert await there.bring(path, heir) == (0, 0, len(await here.dump(owner)))


async def test_what_was_imported_is_exported_and_known_again(here: Service, there: Service) -> None:
    paths = [write(here.folder / "a.json", bridges(2)), write(here.folder / "b.json", rivers())]
    await here.importer.import_files(here.user, paths)
    assert await there.bring(await here.export_zip()) == (3, 8, 0)
    assert await there.dump() == await here.dump()
    assert await there.importer.import_files(there.user, paths) == Report(unchanged=3)


async def save(to: Service, prompts: dict[str, str], presets: dict[str, dict[str, Any]], user: int = 0) -> None:
    for name, content in prompts.items():
        await to.database.write(
            queries.prompts.add_saved, user or to.user, queries.prompts.Prompt, {"name": name, "content": content}
        )
    for name, fields in presets.items():
        await to.database.write(
            queries.prompts.add_saved, user or to.user, queries.prompts.Preset, {"name": name} | fields
        )


async def saved(by: Service) -> list[tuple[str, Any]]:
    prompts = await by.database.read(queries.prompts.list_saved, by.user, queries.prompts.Prompt)
    presets = await by.database.read(queries.prompts.list_saved, by.user, queries.prompts.Preset)
    texts: list[tuple[str, Any]] = [(one.name, one.content) for one in prompts]
    return texts + [
        (one.name, (one.system_prompt, one.provider_id, one.model, json.loads(bytes(one.settings)), one.is_default))
        for one in presets
    ]


async def test_saved_prompts_and_presets_are_exported_imported_and_known_again(here: Service, there: Service) -> None:
    tutor = {
        "system_prompt": "Ask «me».",
        "provider_id": "lmstudio",
        "model": "m",
        "settings": {"seed": 1, "stop": ["x"]},  # in another order than an export
    }
    await save(here, {"Greeting": "Hello {{name}} \U0001f44b", "Über": "two\nlines"}, {"Tutor": tutor, "Empty": {}})
    await save(here, {"Secret": "Of another user"}, {}, await here.add_user())
    chat = await here.ask("Hi")
    path = await here.export_zip()
    expected = await saved(here)
    assert await there.importer.import_files(there.user, [path], dry_run=True) == Report(1, 1, prompts=2, presets=2)
    assert (await saved(there), await there.stored_bytes()) == ([], 0)
    assert await there.importer.import_files(there.user, [path]) == Report(1, 1, prompts=2, presets=2)
    assert await saved(there) == expected
    assert await there.stored_bytes() == await here.stored_bytes()
    for dry_run in (True, False):
        assert await there.importer.import_files(there.user, [path], dry_run=dry_run) == Report(unchanged=5)

    greeting, _ = await there.database.read(queries.prompts.list_saved, there.user, queries.prompts.Prompt)
    change = {"name": "GREETING", "content": "Mine"}
    await there.database.write(queries.prompts.change_saved, there.user, queries.prompts.Prompt, greeting.id, change)
    for dry_run in (True, False):
        report = await there.importer.import_files(there.user, [path, path], dry_run=dry_run)
        assert report == Report(prompts=1, unchanged=9), dry_run
    assert (await saved(there))[:2] == [("GREETING", "Mine"), ("Greeting (2)", "Hello {{name}} \U0001f44b")]
    assert await there.importer.import_files(there.user, [path]) == Report(unchanged=5)

    chunks = [chunk async for chunk in here.exporter.export_zip(here.user, [chat])]
    with zipfile.ZipFile(io.BytesIO(b"".join(chunks))) as archive:
        assert "prompts.json" not in archive.namelist()


async def test_preset_that_new_chats_begin_with_is_not_one_after_an_import(here: Service, there: Service) -> None:
    """A file from another person cannot give instructions to the next chats."""
    await save(here, {}, {"Tutor": {"system_prompt": "Ask me."}})
    (preset,) = await here.database.read(queries.prompts.list_saved, here.user, queries.prompts.Preset)
    await here.database.write(queries.prompts.set_defaults, here.user, {"preset_id": preset.id})
    await there.importer.import_files(there.user, [await here.export_zip()])
    assert await saved(there) == [("Tutor", ("Ask me.", None, None, {}, False))]
    assert (await there.database.read(queries.prompts.get_effective_defaults, there.user)).system_prompt == ""


@pytest.mark.parametrize("table", ["prompts", "presets"])
async def test_import_stops_at_the_limit_of_prompts_and_presets(
    here: Service, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    monkeypatch.setitem(queries.prompts.MAX_SAVED, table, 3)
    kind = {"saved": table.removesuffix("s")} | ({"content": "x"} if table == "prompts" else {})
    rows = [{"fireside": 1, "name": f"No. {number}"} | kind for number in range(6)]
    path = write(here.folder / "prompts.json", rows)
    left_out = [Skipped(table, "at most 3 can be saved; the rest was left out")]
    for dry_run in (True, False):
        expected = msgspec.structs.replace(Report(skipped=left_out), **{table: 3})
        assert await here.importer.import_files(here.user, [path], dry_run=dry_run) == expected, dry_run
    assert [name for name, _ in await saved(here)] == ["No. 0", "No. 1", "No. 2"]
    assert await here.importer.import_files(here.user, [path]) == Report(unchanged=3, skipped=left_out)


async def test_an_export_can_be_imported_for_another_user_of_the_same_database(here: Service) -> None:
    begun = await here.begin_answer(await here.ask("Why?"))
    log = json.dumps([8, {"event": "done", "data": {"status": "ok", "message_id": begun.message_id}}])
    recording = Recording(begun.message_id, "complete", "Because.", "", log)
    await here.database.write(queries.generations.finish_generation, begun.generation_id, recording)
    bob = await here.add_user()
    assert await here.bring(await here.export_zip(), bob) == (1, 2, 0)
    (original,), (copy,) = await here.dump(), await here.dump(bob)
    assert original["messages"][1]["generation"].pop("id") != copy["messages"][1]["generation"].pop("id")
    assert copy == original


async def test_a_running_answer_is_exported_as_interrupted_with_the_text_saved_so_far(
    here: Service, there: Service
) -> None:
    conversation_id = await here.ask("Why?")
    begun = await here.begin_answer(conversation_id)
    parts = [
        SavedPart(begun.generation_id, 1, "Be", "Hm", "[-2, 2]"),
        SavedPart(begun.generation_id, 3, "cause", "", "[5]"),
    ]
    await here.database.write(queries.generations.add_parts, parts)
    await there.bring(await here.export_zip())
    (_, answer) = await there.messages()
    assert (answer.status, answer.content, answer.reasoning) == ("interrupted", "Because", "Hm")
    assert b"Because\n\n*(interrupted)*" in (await here.export_one(conversation_id, "markdown")).read_bytes()


async def test_the_zip_can_be_read_without_fireside(here: Service, there: Service) -> None:
    jpeg = b"\xff\xd8\xff\xe0 jpeg"
    for title in ("A/B: <c>?", "a\u202ereversed", "CON.", "日" * 150, "same", "same", "..", "a\nb"):
        last = await here.ask("Look:\n\n# here", jpeg, title=title)
    await here.database.write(queries.conversations.delete_conversation, here.user, last)
    years = "UPDATE conversations SET updated_at = iif(id % 2, '0001', '9999') || '-01-01T00:00:00.000000'"
    await here.database.write(lambda conn: conn.execute(years))  # years that a zip cannot have
    unpacked = here.folder / "unpacked"
    with zipfile.ZipFile(await here.export_zip()) as archive:
        assert archive.testzip() is None
        readme, *names = archive.namelist()
        assert readme == "README.txt"
        for name in names:
            folder, file = name.split("/")
            assert folder == "attachments" or file.startswith("20")
            assert not set(file) & set('<>:"\\|?*\u202e\n') and not file.endswith((" ", "."))
            assert len(file.encode()) < 250
        assert len({name.casefold() for name in names}) == len(names) == 1 + 2 * 8  # the image once
        assert sum(name.startswith("bin/") for name in names) == 2
        text = archive.read(next(name for name in names if "same" in name and name.endswith(".md"))).decode()
        link = text.split("![image](")[1].split(")")[0]
        assert archive.read(link.removeprefix("../")) == jpeg
        archive.extractall(unpacked)
    assert await there.bring(unpacked) == (8, 8, 0)
    copies = sorted(await there.dump(), key=lambda row: str(row["created_at"]))  # a folder has no order of its own
    assert copies == await here.dump()


async def test_one_conversation_as_markdown_shows_the_active_path(here: Service) -> None:
    answers = turn(answered(block("Hm.", thinking=True), block("Water.")), answered(block("A stream.")))
    await here.bring(write(here.folder / "x.json", lmstudio(turn(asked("What is it?", "lost.png")), answers)))
    (conversation,) = await here.conversations()
    path = await here.export_one(conversation.id, "markdown")
    assert path.name == "2024-07-03 Rivers.md"
    assert [line for line in path.read_text("utf-8").splitlines() if line] == [
        "# Rivers",
        "2024-07-03 09:46 to 2024-07-03 09:46 UTC",
        "> Be brief.",
        "## You, 2024-07-03 09:46",
        "What is it?",
        "[image missing: lost.png]",
        "## qwen3-4b, 2024-07-03 09:46 (version 1 of 2)",
        "<details><summary>Reasoning</summary>",
        "Hm.",
        "</details>",
        "Water.",
    ]


async def test_markdown_links_to_files_and_says_what_was_sent_and_quoted(here: Service) -> None:
    report = await here.database.write(document, here.user, "a [report] 1.txt", b"The keel is laid at dawn.")
    conversation_id = await here.ask("What is laid?", png(), attachment_ids=[report])
    begun = await here.begin_answer(conversation_id)
    content = 'It says “The keel is\nlaid at dawn” and "nobody saw it at all".'
    sent = [
        {"attachment_id": report, "name": "a.pdf", "unit": "page", "pages": 120, "sent": "1, 17-22"},
        {"attachment_id": report + 1, "name": "b.pdf", "unit": "slide", "pages": 2, "sent": "1-2"},
    ]
    found = {"start": 8, "end": 34, "status": "found", "attachment_id": report, "name": "a [report] 1.txt", "page": 1}
    citations = [found, {"start": content.index('"'), "end": len(content) - 1, "status": "not_found"}]
    recording = Recording(begun.message_id, "complete", content, "", "[]")
    write = here.database.write
    await write(queries.generations.finish_generation, begun.generation_id, recording, stats={"documents": sent})
    encoded = json.dumps(citations)
    await write(lambda conn: conn.execute("UPDATE messages SET citations = ? WHERE role = 'assistant'", (encoded,)))
    expected = [
        "- Sent: 7 of 120 pages of a.pdf: 1, 17-22",
        "- Quotation “The keel is laid at dawn”: a [report] 1.txt, page 1",
        '- Quotation "nobody saw it at all": not found in the documents',
    ]
    alone = (await here.export_one(conversation_id, "markdown")).read_text("utf-8").splitlines()
    assert [line for line in alone if line.startswith("- ")] == expected
    assert "*(image)*" in alone and r"*(a \[report\] 1.txt)*" in alone
    with zipfile.ZipFile(await here.export_zip()) as archive:
        text = archive.read(next(name for name in archive.namelist() if name.endswith(".md"))).decode()
        link = text.split(r"[a \[report\] 1.txt](../")[1].split(")")[0]
        assert archive.read(link) == b"The keel is laid at dawn."
    assert [line for line in text.splitlines() if line.startswith("- ")] == expected


async def test_only_the_owner_exports_a_conversation(here: Service) -> None:
    conversation_id, bob = await here.ask(), await here.add_user()
    with pytest.raises(NotFound):
        await here.export_one(conversation_id, "json", bob)
    with zipfile.ZipFile(await here.export_zip(bob)) as archive:
        assert archive.namelist() == ["README.txt"]
    await here.database.write(queries.conversations.delete_conversation, here.user, conversation_id)
    with pytest.raises(NotFound):
        await here.export_one(conversation_id, "json")


async def test_an_export_that_is_left_early_ends(here: Service) -> None:
    await here.ask()
    stream = here.exporter.export_zip(here.user)
    first = await anext(stream)
    await stream.aclose()
    assert first.startswith(b"PK")


# ---- memory, and other users during long work


async def peak(work: Callable[[], Awaitable[Any]]) -> int:
    """Return the most bytes that Python held during this, above what it held before."""
    tracemalloc.start()
    try:
        await work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


async def test_zips_are_written_and_read_a_conversation_at_a_time(here: Service, there: Service) -> None:
    for number in range(16):
        await here.ask("Look", png() + bytes(1_000_000 + number))
    assert await peak(here.export_zip) < 8_000_000
    path = here.folder / "export.zip"
    assert path.stat().st_size > 16_000_000
    assert await peak(lambda: there.bring(path)) < 8_000_000


async def test_one_conversation_is_written_and_read_a_file_at_a_time(here: Service, there: Service) -> None:
    text = random.Random(1).randbytes(1_000_000).hex().encode()
    book = await here.database.write(document, here.user, "book.txt", text)
    conversation_id = await here.ask("Cats", attachment_ids=[book])
    await here.ask("Again", conversation_id=conversation_id, attachment_ids=[book])
    for number in range(5):
        await here.ask("Look", *(png(number) + bytes(1_000_000 + n) for n in range(3)), conversation_id=conversation_id)
    assert await peak(lambda: here.export_one(conversation_id, "markdown")) < 12_000_000
    assert await peak(lambda: here.export_one(conversation_id, "json")) < 12_000_000
    (path,) = here.folder.glob("*.json")
    assert 22_500_000 < path.stat().st_size < 23_000_000  # base64, the book once
    assert await peak(lambda: there.bring(path)) < 12_000_000
    assert await there.dump() == await here.dump()


async def test_long_import_and_its_removal_delay_no_other_user_and_show_no_half_conversation(here: Service) -> None:
    bob = await here.add_user()
    his = (await here.database.write(queries.conversations.add_conversation, bob, {})).id
    path = write(here.folder / "x.json", long_conversation(5000))

    def seen(conn: sqlite3.Connection) -> list[Any]:
        """Return how much of the conversation each list shows."""
        find = queries.conversations.list_conversations
        days = queries.usage.list_usage(conn, here.user)
        exported = archive.list_conversations(conn, here.user)
        hits = search.find(conn, here.user, "rivers", 9)
        return [len(find(conn, here.user) + find(conn, here.user, "long")), len(exported), len(hits), len(days)]

    async def watch(work: Awaitable[Any]) -> list[list[Any]]:
        """Return what is seen after each of another user's writes during this work."""
        shown, task = [], asyncio.ensure_future(work)
        while not task.done():
            await here.database.write(queries.messages.add_message, bob, his, "Hello")
            shown.append(await here.database.read(seen))
        await task
        return shown

    nothing, whole = [0, 0, 0, 0], [2, 1, 9, 1]
    shown = await watch(here.importer.import_files(here.user, [path]))
    assert await here.database.read(seen) == whole
    assert nothing in shown and all(each in (nothing, whole) for each in shown)
    assert len(shown) >= 4  # it is 20 here: a transaction takes about 0.05 s

    (conversation,) = await here.conversations()
    await here.database.write(queries.conversations.hide_conversation, here.user, conversation.id)
    shown = await watch(queries.conversations.remove_hidden(here.database, [conversation.id]))
    assert all(each == nothing for each in shown)
    assert await here.dump() == []
    assert shown


async def test_a_conversation_that_grows_shows_its_new_path_at_the_end(here: Service) -> None:
    path = write(here.folder / "x.json", long_conversation(10))
    await here.bring(path)
    task = asyncio.create_task(here.bring(write(path, long_conversation(1500))))
    lengths = set()
    while not task.done():
        lengths.add(len(await here.messages()))
    assert await task == (0, 1490, 0)
    assert lengths <= {10, 1500}
    assert len(await here.messages()) == 1500


# ---- folders


async def folder_names(one: Service) -> dict[str, str]:
    """The name of the folder of each conversation in one, by title."""
    folders = await one.database.read(queries.folders.list_folders, one.user)
    names = {folder.id: folder.name for folder in folders}
    return {found.title: names[found.folder_id] for found in await one.conversations() if found.folder_id}


async def test_folders_come_with_an_import_and_are_kept_by_an_export(here: Service, there: Service) -> None:
    chats = here.folder / "conversations"
    (chats / "School" / "Deep").mkdir(parents=True)
    write(chats / "School" / "Deep" / "1.conversation.json", rivers())
    boats = openwebui(said("u", None, "user", "hi"), current="u", title="Boats", folder_id="0123456789")
    named = openwebui(
        said("u", None, "user", "ho"), current="u", id="b0a8", title="Ships", folder={"name": " At \n sea"}
    )
    project = bridges(1)[0] | {"gizmo_id": "g-p-7f00aa11bb22", "title": "Bridge"}
    custom = bridges(2)[1] | {"gizmo_id": "g-7f00aa11bb22"}
    paths = [chats, *(write(here.folder / f"{n}.json", [one]) for n, one in enumerate((boats, named, project, custom)))]
    expected = ["School/Deep", "Open WebUI folder 01234567", "At sea", "ChatGPT project 7f00aa11"]
    preview = await here.importer.import_files(here.user, paths, dry_run=True)
    assert preview.folders == expected and await folder_names(here) == {}
    report = await here.importer.import_files(here.user, paths)
    assert report.folders == expected
    assert [loss.kind for loss in report.losses] == ["custom GPT: g-7f00aa11bb22"]
    titles = ("Rivers", "Boats", "Ships", "Bridge")
    assert await folder_names(here) == dict(zip(titles, expected, strict=True))
    assert (await here.importer.import_files(here.user, paths)).folders == []
    moved = next(one for one in await here.conversations() if one.title == "Ships")
    await here.database.write(queries.conversations.set_conversation, here.user, moved.id, {"folder_id": None})
    await here.importer.import_files(here.user, paths)
    kept = await folder_names(here)
    assert set(kept) == {"Rivers", "Boats", "Bridge"}, "an import does not change what is there"
    exported = await here.export_zip()
    assert sorted((await there.importer.import_files(there.user, [exported])).folders) == sorted(kept.values())
    assert await folder_names(there) == kept


async def test_conversations_beyond_the_limit_of_folders_lose_theirs(
    here: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries.folders, "MAX_FOLDERS", 2)
    await here.database.write(queries.folders.add_folder, here.user, "mine")
    rows = [
        openwebui(said("u", None, "user", "hi"), current="u", id=name, title=name, folder={"name": name})
        for name in ("one", "two")
    ]
    for dry_run in (True, False):
        path = write(here.folder / "x.json", rows)
        report = await here.importer.import_files(here.user, [path], dry_run=dry_run)
        assert report.folders == ["one"] and [loss.kind for loss in report.losses] == ["folder: two"], dry_run
        assert report.conversations == 2
    assert await folder_names(here) == {"one": "one"}
