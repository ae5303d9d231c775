import asyncio
import contextlib
import itertools
import json
import sqlite3
import time
import tracemalloc
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fireside import queries
from fireside.db import Database, open_database
from fireside.errors import NotFound, QuotaExceeded, StorageUnavailable
from fireside.queries import search
from fireside.queries.generations import AnswerRequest, Recording
from fireside.transfer import archive
from fireside.transfer.exporter import Exporter
from fireside.transfer.importer import Importer, Report
from fireside.transfer.source import Skipped
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ..exports import STATS, answered, asked, block, chatgpt, dumps, lmstudio, node, openwebui, png, said, turn

USERS = itertools.count(1)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = await open_database(tmp_path / "fireside.db")
    yield database
    await database.close()


@pytest.fixture
async def other(tmp_path: Path) -> AsyncIterator[Database]:
    database = await open_database(tmp_path / "other.db")
    yield database
    await database.close()


@pytest.fixture
async def importer(database: Database) -> AsyncIterator[Importer]:
    async with contextlib.aclosing(Importer(database)) as importer:
        yield importer


@pytest.fixture
async def others(other: Database) -> AsyncIterator[Importer]:
    """Imports into the other database."""
    async with contextlib.aclosing(Importer(other)) as importer:
        yield importer


@pytest.fixture
def exporter(database: Database) -> Exporter:
    return Exporter(database)


@pytest.fixture
async def ann(database: Database) -> int:
    return await somebody(database)


async def somebody(database: Database) -> int:
    user = await database.write(queries.accounts._add_user, f"user{next(USERS)}", "hash", "user")
    return user.id


def write(path: Path, value: Any) -> Path:
    path.write_bytes(dumps(value))
    return path


def rivers(*more: dict[str, Any], made: int = 1_720_000_000_123) -> dict[str, Any]:
    return lmstudio(turn(asked("What is a river?")), turn(answered(block("Water.", **STATS))), *more, made=made)


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


async def bring(importer: Importer, user_id: int, path: Path) -> tuple[int, int, int]:
    report = await importer.import_files(user_id, [path])
    assert report.skipped == []
    return report.conversations, report.messages, report.unchanged


def dump(conn: sqlite3.Connection, user_id: int) -> list[dict[str, Any]]:
    """Everything of a user's conversations, each id replaced by the place of what it names."""
    everything = []
    for row in conn.execute("SELECT * FROM conversations WHERE user_id = ? ORDER BY id", (user_id,)).fetchall():
        conversation = dict(row)
        del conversation["user_id"]
        messages = [
            dict(m) for m in conn.execute("SELECT * FROM messages WHERE conversation_id = ? ORDER BY id", (row["id"],))
        ]
        places: dict[int | None, int | None] = {message["id"]: place for place, message in enumerate(messages)} | {
            None: None
        }
        conversation["active_message_id"] = places[conversation["active_message_id"]]
        for message in messages:
            images = "SELECT position, media_type, data FROM images WHERE message_id = ? ORDER BY position"
            message["images"] = [tuple(image) for image in conn.execute(images, (message["id"],))]
            made = conn.execute("SELECT * FROM generations WHERE message_id = ?", (message["id"],)).fetchone()
            message["generation"] = made and dict(made) | {
                "message_id": None,
                "log": plain(made["log"], places, row["id"]),
            }
            message["parent_id"] = places[message["parent_id"]]
            del message["id"], message["conversation_id"]
        del conversation["id"]
        everything.append(conversation | {"messages": messages})
    return everything


def plain(log: str, places: dict[int | None, int | None], conversation_id: int) -> Any:
    events = json.loads(log)
    for event in events:
        if isinstance(event, dict) and "message_id" in event["data"]:
            event["data"]["message_id"] = places[event["data"]["message_id"]]
        if isinstance(event, dict) and "conversation_id" in event["data"]:
            assert event["data"]["conversation_id"] == conversation_id
            event["data"]["conversation_id"] = None
    return events


async def exported(exporter: Exporter, user_id: int, path: Path) -> Path:
    chunks = [chunk async for chunk in exporter.export_zip(user_id)]
    return keep(path, b"".join(chunks))


async def exported_one(exporter: Exporter, user_id: int, conversation_id: int, format: Any) -> tuple[str, bytes]:
    name, chunks = await exporter.export_conversation(user_id, conversation_id, format)
    return name, b"".join([chunk async for chunk in chunks])


def keep(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# ---- what an import adds


async def test_imported_conversations_are_listed_read_and_found(
    importer: Importer, database: Database, ann: int, tmp_path: Path
) -> None:
    folder = tmp_path / "conversations"
    folder.mkdir()
    write(folder / "1.conversation.json", rivers(turn(asked("And a lake?"))))
    (folder / "2.conversation.json").write_bytes(b'{"name": "half')
    report = await importer.import_files(ann, [folder])
    assert (report.conversations, report.messages, report.unchanged) == (1, 3, 0)
    assert [skipped.file for skipped in report.skipped] == ["2.conversation.json"]
    (conversation,) = await database.read(queries.conversations.list_conversations, ann)
    assert (conversation.title, conversation.system_prompt, conversation.model) == ("Rivers", "Be brief.", "qwen3-4b")
    messages = await database.read(queries.messages.list_messages, ann, conversation.id)
    assert [message.content for message in messages] == ["What is a river?", "Water.", "And a lake?"]
    assert messages[1].model == "qwen3-4b"
    usage = messages[1].token_usage
    assert isinstance(usage, msgspec.Raw)
    assert msgspec.json.decode(usage) == {"prompt_tokens": 30, "completion_tokens": 120, "total_tokens": 150}
    assert [hit.title for hit in await database.read(search.find, ann, "riv", 10)] == ["Rivers", "Rivers"]
    assert [day["answers"] for day in await database.read(queries.generations.list_usage, ann)] == [1]
    assert [c.id for c in await database.read(queries.conversations.list_conversations, ann, "rivers")] == [
        conversation.id
    ]


async def test_an_imported_answer_is_replayed_like_any_other(
    importer: Importer, database: Database, ann: int, tmp_path: Path
) -> None:
    await bring(importer, ann, write(tmp_path / "x.json", rivers()))
    (conversation,) = await database.read(queries.conversations.list_conversations, ann)
    found = await database.write(
        queries.generations.begin_answer, ann, conversation.id, AnswerRequest(), "lmstudio", "m"
    )
    assert found.job is None
    assert (await database.read(queries.generations.get_recording, ann, found.generation_id)).content == "Water."


async def test_importing_again_adds_nothing(importer: Importer, database: Database, ann: int, tmp_path: Path) -> None:
    paths = [
        write(tmp_path / "a.json", rivers()),
        write(tmp_path / "conversations.json", bridges(3)),
        write(tmp_path / "c.json", [openwebui(said("u", None, "user", "hi"), current="u")]),
    ]
    first = await importer.import_files(ann, paths)
    assert (first.conversations, first.messages, first.unchanged) == (5, 12, 0)
    before = await database.read(dump, ann)
    assert await importer.import_files(ann, paths) == Report(unchanged=5)
    assert await database.read(dump, ann) == before


async def test_each_user_has_their_own(importer: Importer, database: Database, ann: int, tmp_path: Path) -> None:
    path = write(tmp_path / "x.json", bridges(2))
    bob = await somebody(database)
    assert await bring(importer, ann, path) == await bring(importer, bob, path) == (2, 6, 0)
    assert await database.read(dump, ann) == await database.read(dump, bob)


async def test_a_chat_that_has_grown_gains_its_new_messages(
    importer: Importer, database: Database, ann: int, tmp_path: Path
) -> None:
    path = tmp_path / "x.json"
    await bring(importer, ann, write(path, rivers()))
    grown = rivers(turn(asked("And a lake?")), turn(answered(block("Water at rest."))), made=1_720_000_000_123)
    grown["messages"][1]["versions"].append(answered(block("Moving water.")))
    grown["assistantLastMessagedAt"] = 1_720_000_900_000
    assert await bring(importer, ann, write(path, grown)) == (0, 3, 0)
    (conversation,) = await database.read(queries.conversations.list_conversations, ann)
    messages = await database.read(queries.messages.list_messages, ann, conversation.id)
    assert [m.content for m in messages] == ["What is a river?", "Water.", "And a lake?", "Water at rest."]
    assert len(messages[1].versions["ids"]) == 2
    assert conversation.updated_at == messages[-1].created_at == "2024-07-03T10:01:40.000000"
    assert await bring(importer, ann, write(path, grown)) == (0, 0, 1)


async def test_what_was_written_here_stays_in_view(
    importer: Importer, database: Database, ann: int, tmp_path: Path
) -> None:
    path = tmp_path / "x.json"
    await bring(importer, ann, write(path, rivers()))
    (conversation,) = await database.read(queries.conversations.list_conversations, ann)
    await database.write(
        queries.conversations.set_conversation, ann, conversation.id, {"title": "Mine", "pinned": True}
    )
    await database.write(queries.messages.add_message, ann, conversation.id, "Asked in Fireside")
    assert await bring(importer, ann, write(path, rivers(turn(asked("Asked in LM Studio"))))) == (0, 1, 0)
    messages = await database.read(queries.messages.list_messages, ann, conversation.id)
    assert [m.content for m in messages] == ["What is a river?", "Water.", "Asked in Fireside"]
    assert len(messages[2].versions["ids"]) == 2
    (conversation,) = await database.read(queries.conversations.list_conversations, ann)
    assert (conversation.title, conversation.pinned) == ("Mine", True)
    assert conversation.updated_at == messages[-1].created_at  # not when the older message came


async def test_the_bin_is_left_alone_and_what_was_purged_may_come_again(
    importer: Importer, database: Database, ann: int, tmp_path: Path
) -> None:
    path = write(tmp_path / "x.json", rivers())
    await bring(importer, ann, path)
    (conversation,) = await database.read(queries.conversations.list_conversations, ann)
    await database.write(queries.conversations.delete_conversation, ann, conversation.id)
    before = await database.read(dump, ann)
    assert await bring(importer, ann, write(path, rivers(turn(asked("More"))))) == (0, 0, 1)
    assert await database.read(dump, ann) == before
    await database.write(queries.conversations.hide_conversation, ann, conversation.id)
    await queries.conversations.remove_hidden(database, [conversation.id])
    assert await bring(importer, ann, path) == (1, 3, 0)


async def test_two_imports_at_once_add_everything_once(
    importer: Importer, database: Database, ann: int, tmp_path: Path
) -> None:
    path = write(tmp_path / "x.json", bridges(250))
    reports = await asyncio.gather(*(importer.import_files(ann, [path]) for _ in range(2)))
    assert sum(report.conversations for report in reports) == sum(report.unchanged for report in reports) == 250
    assert len(await database.read(dump, ann)) == 250


async def test_progress_goes_up_to_the_end(importer: Importer, ann: int, tmp_path: Path) -> None:
    heard: list[float] = []
    paths = [write(tmp_path / "a.json", bridges(250)), tmp_path / "missing.json", write(tmp_path / "b.json", rivers())]
    async for done, report in importer.iterate(ann, paths):  # noqa: B007
        heard.append(done)
    assert heard == sorted(heard)
    assert heard[-1] == 1
    assert [skipped.file for skipped in report.skipped] == ["missing.json"]
    assert report.conversations == 251


# ---- what goes wrong


async def test_a_conversation_goes_in_whole_or_not_at_all(
    importer: Importer, exporter: Exporter, database: Database, ann: int, tmp_path: Path
) -> None:
    await bring(importer, ann, write(tmp_path / "x.json", bridges(3)))
    (third, second, first) = await database.read(queries.conversations.list_conversations, ann)
    texts = [await exported_one(exporter, ann, c.id, "json") for c in (first, second, third)]
    values = [json.loads(text) for _, text in texts]
    values[1]["messages"][1]["client_id"] = values[1]["messages"][2]["client_id"] = "twice"
    bob = await somebody(database)
    report = await importer.import_files(bob, [write(tmp_path / "y.json", values)])
    assert (report.conversations, report.messages) == (2, 6)
    assert report.skipped == [Skipped("Bridge 1", "has messages that do not fit together")]
    assert [row["title"] for row in await database.read(dump, bob)] == ["Bridge 0", "Bridge 2"]
    assert await database.read(search.find, bob, "number 1", 10) == []


async def test_the_same_conversation_twice_in_a_file_goes_in_once(
    importer: Importer, exporter: Exporter, database: Database, ann: int, tmp_path: Path
) -> None:
    for title in ("One", "Two"):
        conversation = await database.write(queries.conversations.add_conversation, ann, {"title": title})
        await database.write(queries.messages.add_message, ann, conversation.id, "Hello")
    (two, one) = await database.read(queries.conversations.list_conversations, ann)
    texts = [await exported_one(exporter, ann, c.id, "json") for c in (one, two, one)]
    values = [json.loads(text) for _, text in texts]
    values[1]["created_at"] = values[0]["created_at"]  # clocks may be coarse
    values[1]["messages"][0]["content"] = "Goodbye"
    for value in (values[0], values[2]):
        value["messages"].append(value["messages"][0] | {"id": 10**6, "content": "Asked in the same moment"})
    bob = await somebody(database)
    assert await bring(importer, bob, write(tmp_path / "x.json", values)) == (2, 3, 1)
    assert await bring(importer, bob, tmp_path / "x.json") == (0, 0, 3)


async def test_a_missing_image_keeps_its_conversation_out(
    importer: Importer, exporter: Exporter, database: Database, ann: int, tmp_path: Path
) -> None:
    conversation = await database.write(queries.conversations.add_conversation, ann, {"title": "Cat"})
    await database.write(
        queries.messages.add_message, ann, conversation.id, "Look", images=[queries.messages.Image("image/png", png())]
    )
    path = await exported(exporter, ann, tmp_path / "x.zip")
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "y.zip", "w") as archive:
        for name, data in files.items():
            if not name.startswith("images/"):
                archive.writestr(name, data)
    bob = await somebody(database)
    report = await importer.import_files(bob, [tmp_path / "y.zip"])
    assert (report.conversations, len(report.skipped)) == (0, 1)
    assert "image" in report.skipped[0].reason
    assert await database.read(dump, bob) == []


def limit_pages(conn: sqlite3.Connection, more: int | None) -> None:
    pages = conn.execute("PRAGMA page_count").fetchone()[0]
    conn.execute(f"PRAGMA max_page_count = {pages + more if more else 1_000_000}")


async def test_a_full_disk_keeps_whole_conversations_and_the_next_import_goes_on(
    importer: Importer, database: Database, ann: int, tmp_path: Path
) -> None:
    path = write(tmp_path / "x.json", bridges(700))
    await database.write(limit_pages, 60)
    with pytest.raises(StorageUnavailable, match=r"the disk is full.* What was imported before stays\.$"):
        await importer.import_files(ann, [path])
    await database.write(limit_pages, None)
    there = await database.read(dump, ann)
    assert 0 < len(there) < 700
    assert {len(conversation["messages"]) for conversation in there} == {3}
    assert await bring(importer, ann, path) == (700 - len(there), (700 - len(there)) * 3, len(there))


async def test_an_import_that_is_cancelled_leaves_whole_conversations(
    importer: Importer, database: Database, ann: int, tmp_path: Path
) -> None:
    path = write(tmp_path / "x.json", bridges(1000))
    started = asyncio.Event()

    async def run() -> None:
        async for _ in importer.iterate(ann, [path]):
            started.set()

    task = asyncio.create_task(run())
    await started.wait()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    there = await database.read(dump, ann)
    assert 0 < len(there) < 1000
    assert {len(conversation["messages"]) for conversation in there} == {3}


# ---- what an export gives back

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
SOME = TEXT.filter(bool)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "title": TEXT.filter(str.strip),
        "system_prompt": TEXT,
        "pinned": st.booleans(),
        "model": TEXT,
        "settings": st.fixed_dictionaries(
            {}, optional={"temperature": st.floats(0, 2), "stop": TEXT, "seed": st.integers(0, 99)}
        ),
    },
)
ANSWER = st.fixed_dictionaries(
    {
        "model": TEXT,
        "params": st.dictionaries(TEXT, TEXT, max_size=2),
        "content": st.lists(SOME, max_size=3),
        "reasoning": st.lists(SOME, max_size=2),
        "status": st.sampled_from(["complete", "complete", "canceled", "interrupted", "error"]),
        "answered_by": st.none() | TEXT,
        "usage": st.none()
        | st.fixed_dictionaries({f"{name}_tokens": st.integers(0, 9999) for name in ("prompt", "completion", "total")}),
        "stats": st.none()
        | st.fixed_dictionaries(
            {},
            optional={"ttft_ms": st.integers(0, 9999), "tokens_per_second": st.floats(0, 1e4), "finish_reason": TEXT},
        ),
        "error": TEXT,
    }
)
QUESTION = st.fixed_dictionaries(
    {"content": TEXT, "client_id": st.none() | st.uuids().map(str), "images": st.sampled_from([0, 0, 0, 1, 2])}
)
PICK = st.integers(0, 99)
STEPS = st.lists(
    st.tuples(st.just("new"), PICK, FIELDS)
    | st.tuples(st.just("ask"), PICK, QUESTION)
    | st.tuples(st.just("answer"), PICK, ANSWER)
    | st.tuples(st.just("branch"), PICK, QUESTION)
    | st.tuples(st.just("show"), PICK, st.none())
    | st.tuples(st.just("change"), PICK, FIELDS)
    | st.tuples(st.just("bin"), PICK, st.none()),
    max_size=16,
)


def live(conn: sqlite3.Connection, user_id: int, steps: list[tuple[str, int, Any]]) -> None:
    """What people do, done by the functions that the service does it with."""
    for action, pick, how in steps:
        ids = [conversation.id for conversation in queries.conversations.list_conversations(conn, user_id)]
        if action == "new" or not ids:
            queries.conversations.add_conversation(conn, user_id, how if action == "new" else {})
            continue
        conversation_id = ids[pick % len(ids)]
        rows = conn.execute("SELECT id FROM messages WHERE conversation_id = ?", (conversation_id,)).fetchall()
        messages = [row[0] for row in rows]
        if action == "ask":
            ask(conn, user_id, conversation_id, how)
        elif action == "branch":
            ask(conn, user_id, conversation_id, how, parent_id=[None, *messages][pick % (len(messages) + 1)])
        elif action == "answer" and messages:
            answer(conn, user_id, conversation_id, how)
        elif action == "show" and messages:
            queries.messages.set_active(conn, user_id, conversation_id, messages[pick % len(messages)])
        elif action == "change":
            queries.conversations.set_conversation(conn, user_id, conversation_id, how)
        elif action == "bin":
            queries.conversations.delete_conversation(conn, user_id, conversation_id)


def ask(conn: sqlite3.Connection, user_id: int, conversation_id: int, how: dict[str, Any], **where: Any) -> None:
    images = [queries.messages.Image("image/png", png(shade)) for shade in range(how["images"])]
    queries.messages.add_message(
        conn, user_id, conversation_id, how["content"], client_id=how["client_id"], images=images, **where
    )


def answer(conn: sqlite3.Connection, user_id: int, conversation_id: int, how: dict[str, Any]) -> None:
    request = AnswerRequest(params=how["params"], retry=True)
    begun = queries.generations.begin_answer(conn, user_id, conversation_id, request, "lmstudio", how["model"] or "m")
    ping = {"message_id": begun.message_id, "conversation_id": conversation_id, "ts": "2024-01-15T10:30:00.123456"}
    done = {"status": "ok", "message_id": begun.message_id, "stats": {}}
    texts = [*(-len(text) for text in how["reasoning"]), *map(len, how["content"])]
    log = [{"event": "ping", "data": ping}, *texts, {"id": 2**33, "event": "done", "data": done}]
    queries.generations.finish_generation(
        conn,
        begun.generation_id,
        Recording(begun.message_id, how["status"], "".join(how["content"]), "".join(how["reasoning"]), json.dumps(log)),
        model=how["answered_by"],
        token_usage=how["usage"],
        stats=how["stats"],
        error={"code": "PROVIDER_ERROR", "message": how["error"]} if how["status"] == "error" else None,
    )


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS, later=STEPS)
async def test_export_and_import_give_back_the_same_database(
    importer: Importer,
    exporter: Exporter,
    others: Importer,
    database: Database,
    other: Database,
    tmp_path: Path,
    steps: list[Any],
    later: list[Any],
) -> None:
    owner, heir = await somebody(database), await somebody(other)
    await database.write(live, owner, [("new", 0, {}), *steps])
    before = await database.read(dump, owner)
    path = await exported(exporter, owner, tmp_path / "export.zip")
    assert await bring(others, heir, path) == (len(before), sum(len(row["messages"]) for row in before), 0)
    assert await other.read(dump, heir) == before
    assert await bring(others, heir, path) == await bring(importer, owner, path) == (0, 0, len(before))
    assert await other.read(dump, heir) == await database.read(dump, owner) == before

    await database.write(live, owner, later)  # life goes on, and the copy follows
    path = await exported(exporter, owner, tmp_path / "export.zip")
    await bring(others, heir, path)
    for copy, original in zip(await other.read(dump, heir), await database.read(dump, owner), strict=True):
        grown = copy["messages"] if copy["deleted_at"] is None else original["messages"]
        assert grown == original["messages"]
    assert await bring(others, heir, path) == (0, 0, len(await database.read(dump, owner)))


async def test_what_was_imported_is_exported_and_known_again(
    importer: Importer,
    exporter: Exporter,
    others: Importer,
    database: Database,
    other: Database,
    ann: int,
    tmp_path: Path,
) -> None:
    paths = [write(tmp_path / "a.json", bridges(2)), write(tmp_path / "b.json", rivers())]
    await importer.import_files(ann, paths)
    path, heir = await exported(exporter, ann, tmp_path / "x.zip"), await somebody(other)
    assert await bring(others, heir, path) == (3, 8, 0)
    assert await other.read(dump, heir) == await database.read(dump, ann)
    assert await others.import_files(heir, paths) == Report(unchanged=3)


async def test_numbers_that_json_cannot_write_again_stay_outside(
    importer: Importer, database: Database, ann: int, tmp_path: Path
) -> None:
    at = "2024-01-15T10:30:00.123456"

    def odd(settings: str, stats: str) -> Path:
        question = f'{{"id": 1, "parent_id": null, "role": "user", "created_at": "{at}", "content": "{len(stats)}"}}'
        said = f'{{"id": 2, "parent_id": 1, "role": "assistant", "created_at": "{at}", "content": "Yes.", "stats": {stats}}}'
        text = f'{{"fireside": 1, "title": "t", "created_at": "{at}", "updated_at": "{at}", "settings": {settings},'
        path = tmp_path / f"{len(stats)}.json"
        path.write_text(f'{text} "messages": [{question}, {said}]}}', "utf-8")
        return path

    infinite = odd('{"response_format": {"a": NaN}}', '{"ttft_ms": 1e999, "tokens_per_second": -Infinity}')
    report = await importer.import_files(ann, [infinite, odd("{}", '{"omitted_messages": -5}')])
    assert (report.conversations, len(report.skipped)) == (1, 1)
    [row] = await database.read(queries.conversations.list_conversations, ann)
    assert msgspec.json.decode(row.settings) == {"response_format": {"a": None}}
    _, answer = await database.read(queries.messages.list_messages, ann, row.id)
    assert isinstance(answer.stats, msgspec.Raw)
    assert msgspec.json.decode(answer.stats) == {"ttft_ms": None, "tokens_per_second": None}
    assert await database.read(queries.generations.list_usage, ann) is not None


async def test_an_import_whose_reader_leaves_ends(
    importer: Importer, database: Database, ann: int, tmp_path: Path
) -> None:
    paths = [write(tmp_path / f"{number}.json", rivers(made=1_720_000_000_000 + number)) for number in range(300)]
    others = asyncio.all_tasks()
    steps = importer.import_steps(ann, paths)
    first = msgspec.json.decode(await anext(steps))
    await steps.aclose()
    assert asyncio.all_tasks() == others
    stored = len(await database.read(queries.conversations.list_conversations, ann))
    assert first["report"]["conversations"] <= stored < 300


async def test_an_export_may_go_to_another_user_of_the_same_database(
    importer: Importer, exporter: Exporter, database: Database, ann: int, tmp_path: Path
) -> None:
    conversation = await database.write(queries.conversations.add_conversation, ann, {})
    await database.write(queries.messages.add_message, ann, conversation.id, "Why?")
    begun = await database.write(
        queries.generations.begin_answer, ann, conversation.id, AnswerRequest(), "lmstudio", "m"
    )
    done = json.dumps([8, {"event": "done", "data": {"status": "ok", "message_id": begun.message_id}}])
    recording = Recording(begun.message_id, "complete", "Because.", "", done)
    await database.write(queries.generations.finish_generation, begun.generation_id, recording)
    bob = await somebody(database)
    assert await bring(importer, bob, await exported(exporter, ann, tmp_path / "x.zip")) == (1, 2, 0)
    mine, hers = await database.read(dump, bob), await database.read(dump, ann)
    assert mine[0]["messages"][1]["generation"].pop("id") != hers[0]["messages"][1]["generation"].pop("id")
    assert mine == hers


async def test_a_running_answer_is_exported_with_what_was_saved_of_it(
    exporter: Exporter, others: Importer, database: Database, other: Database, ann: int, tmp_path: Path
) -> None:
    conversation = await database.write(queries.conversations.add_conversation, ann, {})
    await database.write(queries.messages.add_message, ann, conversation.id, "Why?")
    begun = await database.write(
        queries.generations.begin_answer, ann, conversation.id, AnswerRequest(), "lmstudio", "m"
    )
    parts = [
        queries.generations.SavedPart(begun.generation_id, 1, "Be", "Hm", "[-2, 2]"),
        queries.generations.SavedPart(begun.generation_id, 3, "cause", "", "[5]"),
    ]
    await database.write(queries.generations.add_parts, parts)
    heir = await somebody(other)
    await bring(others, heir, await exported(exporter, ann, tmp_path / "x.zip"))
    (copied,) = await other.read(dump, heir)
    answer = copied["messages"][1]
    assert (answer["status"], answer["content"], answer["reasoning"]) == ("interrupted", "Because", "Hm")
    _, text = await exported_one(exporter, ann, conversation.id, "markdown")
    assert "Because\n\n*(interrupted)*" in text.decode()


@pytest.mark.parametrize("year", ["0001", "9999"])
async def test_a_time_that_no_zip_knows_is_exported(
    importer: Importer, exporter: Exporter, database: Database, ann: int, tmp_path: Path, year: str
) -> None:
    await database.write(queries.conversations.add_conversation, ann, {})
    await database.write(
        lambda conn: conn.execute(f"UPDATE conversations SET updated_at = '{year}-01-01T00:00:00.000000'")
    )
    bob = await somebody(database)
    assert await bring(importer, bob, await exported(exporter, ann, tmp_path / "x.zip")) == (1, 0, 0)
    assert await database.read(dump, bob) == await database.read(dump, ann)


async def test_the_zip_can_be_read_without_fireside(
    importer: Importer, exporter: Exporter, database: Database, ann: int, tmp_path: Path
) -> None:
    for title in ("A/B: <c>?", "a\u202ereversed", "CON.", "日" * 150, "same", "same", "..", "a\nb"):
        conversation = await database.write(queries.conversations.add_conversation, ann, {"title": title})
        image = queries.messages.Image("image/jpeg", b"\xff\xd8\xff\xe0 jpeg")
        await database.write(queries.messages.add_message, ann, conversation.id, "Look:\n\n# here", images=[image])
    await database.write(queries.conversations.delete_conversation, ann, conversation.id)
    path = await exported(exporter, ann, tmp_path / "x.zip")
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert names[0] == "README.txt"
        for name in names[1:]:
            folder, file = name.split("/")
            assert folder == "images" or file.startswith("20")
            assert not set(file) & set('<>:"\\|?*\u202e\n') and not file.endswith((" ", "."))
            assert len(file.encode()) < 250
        assert len({name.casefold() for name in names}) == len(names) == 1 + 3 * 8
        assert sum(name.startswith("bin/") for name in names) == 2
        text = archive.read(next(name for name in names if "same" in name and name.endswith(".md"))).decode()
        link = text.split("![image](")[1].split(")")[0]
        assert archive.read(link.removeprefix("../")) == b"\xff\xd8\xff\xe0 jpeg"
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(path) as archive:
        archive.extractall(unpacked)
    bob = await somebody(database)
    assert await bring(importer, bob, unpacked) == (8, 8, 0)
    copy, original = await database.read(dump, bob), await database.read(dump, ann)
    assert sorted(copy, key=lambda row: str(row["created_at"])) == original  # a folder has no order of its own


async def test_one_conversation_as_markdown_shows_the_active_path(
    importer: Importer, exporter: Exporter, database: Database, ann: int, tmp_path: Path
) -> None:
    answers = turn(answered(block("Hm.", thinking=True), block("Water.")), answered(block("A stream.")))
    await bring(importer, ann, write(tmp_path / "x.json", lmstudio(turn(asked("What is it?", "lost.png")), answers)))
    (conversation,) = await database.read(queries.conversations.list_conversations, ann)
    name, text = await exported_one(exporter, ann, conversation.id, "markdown")
    assert name == "2024-07-03 Rivers.md"
    lines = [line for line in text.decode().splitlines() if line]
    assert lines == [
        "# Rivers",
        "2024-07-03 09:46 to 2024-07-03 09:46 UTC",
        "> Be brief.",
        "## You, 2024-07-03 09:46",
        "What is it?",
        "## qwen3-4b, 2024-07-03 09:46 (version 1 of 2)",
        "<details><summary>Reasoning</summary>",
        "Hm.",
        "</details>",
        "Water.",
    ]


async def test_one_conversation_as_json_has_its_images_in_it(
    exporter: Exporter, others: Importer, database: Database, other: Database, ann: int, tmp_path: Path
) -> None:
    conversation = await database.write(queries.conversations.add_conversation, ann, {"title": "Cat"})
    await database.write(
        queries.messages.add_message, ann, conversation.id, "Look", images=[queries.messages.Image("image/png", png())]
    )
    name, text = await exported_one(exporter, ann, conversation.id, "json")
    path = tmp_path / name
    path.write_bytes(text)
    heir = await somebody(other)
    assert await bring(others, heir, path) == (1, 1, 0)
    assert await other.read(dump, heir) == await database.read(dump, ann)


async def test_one_conversation_as_json_is_imported_however_many_images_it_has(
    exporter: Exporter, others: Importer, database: Database, other: Database, ann: int, tmp_path: Path
) -> None:
    conversation = await database.write(queries.conversations.add_conversation, ann, {"title": "Cats"})
    for number in range(8):
        image = queries.messages.Image("image/png", png(number) + bytes(1_000_000 + number))
        await database.write(queries.messages.add_message, ann, conversation.id, "Look", images=[image])
    path = tmp_path / "x.json"
    path.write_bytes((await exported_one(exporter, ann, conversation.id, "json"))[1])
    heir = await somebody(other)
    assert await peak(lambda: bring(others, heir, path)) < 8_000_000 < path.stat().st_size
    assert await other.read(dump, heir) == await database.read(dump, ann)


async def test_what_is_not_ones_own_is_not_exported(
    exporter: Exporter, database: Database, ann: int, tmp_path: Path
) -> None:
    conversation = await database.write(queries.conversations.add_conversation, ann, {"title": "Secret"})
    bob = await somebody(database)
    with pytest.raises(NotFound):
        await exported_one(exporter, bob, conversation.id, "json")
    await database.write(queries.conversations.delete_conversation, ann, conversation.id)
    with pytest.raises(NotFound):
        await exported_one(exporter, ann, conversation.id, "json")
    with zipfile.ZipFile(await exported(exporter, bob, tmp_path / "x.zip")) as archive:
        assert archive.namelist() == ["README.txt"]


async def test_export_and_import_hold_one_conversation_at_a_time(
    importer: Importer, exporter: Exporter, database: Database, ann: int, tmp_path: Path
) -> None:
    picture = queries.messages.Image("image/png", png() + bytes(1_000_000))
    for _ in range(30):
        conversation = await database.write(queries.conversations.add_conversation, ann, {})
        await database.write(queries.messages.add_message, ann, conversation.id, "Look", images=[picture])
    path = tmp_path / "x.zip"
    bob = await somebody(database)

    async def export() -> None:
        with path.open("wb") as file:
            async for chunk in exporter.export_zip(ann):
                file.write(chunk)

    assert await peak(export) < 8_000_000
    assert path.stat().st_size > 30_000_000
    assert await peak(lambda: bring(importer, bob, path)) < 8_000_000


async def peak(work: Callable[[], Any]) -> int:
    """The most bytes that Python held during this, above what it held before."""
    tracemalloc.start()
    try:
        await work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


async def test_leaving_an_export_early_harms_nothing(exporter: Exporter, database: Database, ann: int) -> None:
    await database.write(queries.conversations.add_conversation, ann, {"title": "Cat"})
    stream = exporter.export_zip(ann)
    first = await anext(stream)
    await stream.aclose()
    assert first.startswith(b"PK")


# ---- long work and other people


def long_conversation(count: int, **fields: Any) -> dict[str, Any]:
    """Fireside's own form, a question and an answer in turn."""
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


async def test_a_long_import_and_its_removal_hold_up_nobody_and_show_nothing_in_part(
    importer: Importer, database: Database, ann: int, tmp_path: Path
) -> None:
    count, bob = 10_000, await somebody(database)
    his = await database.write(queries.conversations.add_conversation, bob, {})
    path = write(tmp_path / "x.json", long_conversation(count))

    def seen(conn: sqlite3.Connection) -> list[Any]:
        """How much of the conversation each place shows that lists conversations."""
        listed = queries.conversations.list_conversations(conn, ann) + queries.conversations.list_conversations(
            conn, ann, "long"
        )
        days = sum(day["answers"] for day in queries.generations.list_usage(conn, ann))
        return [
            len(listed),
            len(archive.list_conversations(conn, ann)),
            len(search.find(conn, ann, "rivers", 9)),
            days,
        ]

    async def wait_beside(work: Awaitable[Any]) -> tuple[float, list[list[Any]]]:
        """The longest wait of another user's writes, as a part of the whole time, and what was seen."""
        waits, shown, started = [], [], time.perf_counter()
        task = asyncio.ensure_future(work)
        while not task.done():
            start = time.perf_counter()
            await database.write(queries.messages.add_message, bob, his.id, "Hello")
            waits.append(time.perf_counter() - start)
            shown.append(await database.read(seen))
        await task
        return max(waits) / (time.perf_counter() - started), shown

    nothing, whole = [0, 0, 0, 0], [2, 1, 9, count // 2]
    worst, shown = await wait_beside(importer.import_files(ann, [path]))
    assert await database.read(seen) == whole
    assert nothing in shown and all(each in (nothing, whole) for each in shown)
    assert worst < 2  # it was nine seconds

    (conversation,) = await database.read(queries.conversations.list_conversations, ann)
    await database.write(queries.conversations.hide_conversation, ann, conversation.id)
    worst, shown = await wait_beside(queries.conversations.remove_hidden(database, [conversation.id]))
    assert all(each == nothing for each in shown)
    assert await database.read(dump, ann) == []
    assert worst < 2  # it was nine seconds


async def test_a_conversation_that_grows_moves_its_view_at_the_end(
    importer: Importer, database: Database, ann: int, tmp_path: Path
) -> None:
    path = write(tmp_path / "x.json", long_conversation(10))
    await bring(importer, ann, path)
    (conversation,) = await database.read(queries.conversations.list_conversations, ann)
    task = asyncio.create_task(bring(importer, ann, write(path, long_conversation(3000))))
    lengths = set()
    while not task.done():
        lengths.add(len(await database.read(queries.messages.list_messages, ann, conversation.id)))
    assert await task == (0, 2990, 0)
    assert lengths <= {10, 3000}
    assert len(await database.read(queries.messages.list_messages, ann, conversation.id)) == 3000


async def test_growth_that_cannot_be_read_to_its_end_leaves_nothing(
    importer: Importer, database: Database, ann: int, tmp_path: Path
) -> None:
    path = tmp_path / "x.json"
    await bring(importer, ann, write(path, long_conversation(10)))
    before, bytes_before = await database.read(dump, ann), await database.read(stored, ann)
    grown = long_conversation(2000)
    grown["messages"][-1]["images"] = [{"media_type": "image/png", "file": "lost.png"}]
    report = await importer.import_files(ann, [write(path, grown)])
    assert (report.messages, [skipped.file for skipped in report.skipped]) == (0, ["Long"])
    assert await database.read(dump, ann) == before
    assert await database.read(stored, ann) == bytes_before == sum(map(stored_size, before))
    assert len(await database.read(search.find, ann, "rivers", 99)) == 10


async def test_a_child_that_dies_leaves_nothing_of_its_conversation(
    importer: Importer, database: Database, ann: int, tmp_path: Path
) -> None:
    path = tmp_path / "x.json"
    await bring(importer, ann, write(path, long_conversation(10)))
    before = await database.read(dump, ann)

    for source in ("test:1", "test:2"):  # one that has grown, and a new one
        async for _, report in importer.iterate(ann, [write(path, long_conversation(6000, source=source))]):  # noqa: B007
            for worker in importer._sandbox._workers:
                worker.kill()
        lost = Skipped("x.json", "cannot be read to its end; the rest was left out")
        assert report == Report(skipped=[lost])
        assert await database.read(dump, ann) == before


def stored(conn: sqlite3.Connection, user_id: int) -> int:
    return int(conn.execute("SELECT stored_bytes FROM users WHERE id = ?", (user_id,)).fetchone()[0])


def stored_size(conversation: dict[str, Any]) -> int:
    texts = [message[name] for message in conversation["messages"] for name in ("content", "reasoning")]
    images = [image[2] for message in conversation["messages"] for image in message["images"]]
    return (
        len(conversation["system_prompt"].encode()) + sum(len(text.encode()) for text in texts) + sum(map(len, images))
    )


async def test_an_import_ends_where_the_user_has_no_more_room(database: Database, ann: int, tmp_path: Path) -> None:
    path = write(tmp_path / "x.json", [long_conversation(1000, source=f"test:{number}") for number in range(20)])
    size = 1000 * 150
    async with contextlib.aclosing(Importer(database, 10 * size)) as importer:
        with pytest.raises(QuotaExceeded, match="1,500,000"):
            await importer.import_files(ann, [path])
    there = await database.read(dump, ann)
    assert 0 < len(there) <= 10 and {len(conversation["messages"]) for conversation in there} == {1000}
    assert await database.read(stored, ann) == sum(map(stored_size, there))


async def test_one_conversation_is_exported_an_image_at_a_time(
    exporter: Exporter, database: Database, ann: int
) -> None:
    conversation = await database.write(queries.conversations.add_conversation, ann, {"title": "Cats"})
    for _ in range(10):
        images = [queries.messages.Image("image/png", png() + bytes(1_000_000)) for _ in range(3)]
        await database.write(queries.messages.add_message, ann, conversation.id, "Look", images=images)
    sizes = []

    async def export() -> None:
        for format in ("json", "markdown"):
            _, chunks = await exporter.export_conversation(ann, conversation.id, format)
            sizes.append(sum([len(chunk) async for chunk in chunks]))

    assert await peak(export) < 12_000_000
    assert sizes[0] > 40_000_000


async def test_a_title_that_is_blank_becomes_the_first_question(
    importer: Importer, database: Database, ann: int, tmp_path: Path
) -> None:
    rows = [long_conversation(count, title=" \n ", source=f"test:{count}") for count in (1, 0)]
    await bring(importer, ann, write(tmp_path / "x.json", rows))
    titles = [conversation.title for conversation in await database.read(queries.conversations.list_conversations, ann)]
    assert sorted(titles) == ["Message 1 of a long conversation about rivers. Message 1 of…", "New conversation"]
