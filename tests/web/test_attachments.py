"""Attachments over HTTP: upload, read in the background, send, download, remove."""

import asyncio
import base64
import os
import random
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fireside import queries
from fireside.documents import reader
from fireside.queries import attachments
from fireside.queries.attachments import clean_name

from ..documents import making
from ..live import PATIENCE, Person, Running, code, good, until
from ..processes import Killable
from ..upstream import Upstream
from ..witness import MODEL

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 20
WORDS = ("river", "boat", "harbor", "weather", "lantern", "Änderung", "東京")


def long_text(paragraphs: int, seed: int = 1) -> bytes:
    rng = random.Random(seed)
    return "\n\n".join(" ".join(rng.choices(WORDS, k=60)) + f" {number}." for number in range(paragraphs)).encode()


async def upload(person: Person, data: bytes, name: str = "notes.txt", kind: str = "text/plain") -> httpx.Response:
    return await person.post("/attachments", params={"name": name}, content=data, headers={"Content-Type": kind})


def head(running: Running, person: Person, length: int) -> bytes:
    """Return the head of an upload of so many bytes."""
    cookie = "; ".join(f"{name}={value}" for name, value in person.cookies.items())
    token, host = person.headers["X-CSRF-Token"], running.url.partition("//")[2]
    lines = (f"Host: {host}", f"Cookie: {cookie}", f"X-CSRF-Token: {token}", f"Content-Length: {length}")
    return "\r\n".join(("POST /attachments?name=a HTTP/1.1", *lines, "", "")).encode()


async def seen(person: Person, attachment_id: int, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Return a document once it meets a condition."""
    async with asyncio.timeout(PATIENCE):
        while True:
            found = await person.get(f"/attachments/{attachment_id}")
            if found.status_code == 200 and condition(found.json()):
                return dict(found.json())
            await asyncio.sleep(0.01)


async def read(person: Person, attachment_id: int) -> dict[str, Any]:
    """Return a document once it is read."""
    return await seen(person, attachment_id, lambda found: found["status"] != "reading")


async def stored(running: Running) -> list[int]:
    """Return the numbers of attachments, their pages, the words of those in the index, and the files that are being uploaded."""
    tables = "attachments", "attachment_data", "attachment_pages", "page_words WHERE page_words MATCH 'text : river'"
    counts = "SELECT " + ", ".join(f"(SELECT count(*) FROM {table})" for table in tables)
    return [*await running.state.database.read(lambda conn: conn.execute(counts).fetchone())]


async def used(person: Person) -> int:
    return int(good(await person.get("/storage"))["used_bytes"])


async def test_document_is_stored_once_read_sent_and_removed_with_the_last_message(
    running: Running, ann: Person, bob: Person
) -> None:
    data = long_text(40)
    first = await read(ann, good(await upload(ann, data, "C:\\docs\\a\x07b.txt"))["id"])
    pages = good(await ann.get(f"/attachments/{first['id']}/pages", params={"count": 100}))["pages"]
    assert [page["number"] for page in pages] == [*range(1, first["pages"] + 1)] and first["pages"] > 3
    assert "\n".join(page["text"] for page in pages).split() == data.decode().split()
    assert (first["name"], first["status"], first["unit"]) == ("ab.txt", "ready", "section")
    assert first["pages_read"] == first["pages"] and 0 < first["tokens_estimate"] < first["characters"]
    assert (await upload(ann, data, "other.txt")).json() == first | {"name": "other.txt"}
    text_bytes = sum(len(page["text"].encode()) for page in pages)
    assert await used(ann) == len(data) + text_bytes

    chats = [await ann.conversation() for _ in range(2)]
    for chat in chats:
        await ann.say(chat, "", attachment_ids=[first["id"], first["id"]])
    good(await upload(ann, data, "renamed.txt"))
    [message] = await ann.messages(chats[0])
    assert message["documents"] == [first | {"name": "other.txt"}] and message["images"] == []
    image = good(await upload(ann, PNG, "a.png", "text/html"))
    assert (image["media_type"], image["status"], image["pages"]) == ("image/png", "ready", None)
    await ann.say(chats[0], "Look", attachment_ids=[image["id"]], images=[])
    assert (await ann.messages(chats[0]))[1]["images"] == [{"id": image["id"], "media_type": "image/png"}]
    assert (await ann.get(f"/images/{image['id']}")).content == PNG
    assert await used(ann) == len(data) + text_bytes + len(PNG) + len(b"Look")

    branch = good(await ann.post(f"/conversations/{chats[0]}/branch", json={"message_id": message["id"]}))["id"]
    deleted = good(await ann.delete(f"/conversations/{chats[0]}/messages/{message['id']}"))["deleted_id"]
    good(await ann.post(f"/conversations/{deleted}/restore"))
    for chat in (*chats, branch):
        assert code(await bob.get(f"/attachments/{first['id']}")) == (404, "ATTACHMENT_NOT_FOUND")
        assert (await stored(running))[2:] == [first["pages"], first["pages"]]
        good(await ann.delete(f"/conversations/{chat}", params={"purge": True}))
    # "renamed.txt" was uploaded for a message that has not been sent.
    assert good(await ann.get(f"/attachments/{first['id']}"))["name"] == "renamed.txt"
    await running.state.database.write(
        lambda conn: conn.execute("UPDATE attachments SET uploaded_at = '2020'").rowcount
    )
    await running.state.database.write(attachments.release_expired)
    assert await used(ann) == 0 and code(await ann.get(f"/attachments/{first['id']}"))[0] == 404
    await attachments.remove_released(running.state.database)
    assert await stored(running) == [0, 0, 0, 0]


async def test_what_is_not_valid_is_refused_and_leaves_nothing(running: Running, ann: Person, bob: Person) -> None:
    hers = (await read(ann, good(await upload(ann, b"Ships sail."))["id"]))["id"]
    chat, his = await ann.conversation(), await bob.conversation()
    both = {"content": "x", "attachment_ids": [hers]}
    for refused in (
        await bob.get(f"/attachments/{hers}"),
        await bob.get(f"/attachments/{hers}/content"),
        await bob.get(f"/attachments/{hers}/pages"),
        await bob.post(f"/attachments/{hers}/password", json={"password": "x"}),
        await bob.post(f"/conversations/{his}/messages", json=both),
        await bob.post(f"/conversations/{his}/messages", json=both | {"queue": True}),
        await bob.post("/conversations", json={"message": both}),
        await ann.get("/attachments/999"),
    ):
        assert code(refused) == (404, "ATTACHMENT_NOT_FOUND")
    assert await bob.messages(his) == [] and len(good(await bob.get("/conversations"))) == 1
    assert code(await ann.post(f"/attachments/{hers}/password", json={"password": "x"})) == (400, "VALIDATION_ERROR")
    assert code(await upload(ann, b""))[0] == 400
    many = {"content": "x", "attachment_ids": [hers] * 21}
    assert code(await ann.post(f"/conversations/{chat}/messages", json=many))[0] == 400
    broken = good(await upload(ann, b"%PDF-1.7 nothing", "a.pdf", "application/pdf"))
    broken = await read(ann, broken["id"])
    assert broken["status"] == "failed" and broken["problem"]
    body = {"content": "x", "attachment_ids": [broken["id"]]}
    answer = await ann.post(f"/conversations/{chat}/messages", json=body)
    assert code(answer) == (409, "ATTACHMENT_NOT_READY") and "a.pdf" in answer.text
    assert await ann.messages(chat) == []
    status, _, answer_body = await running.raw(head(running, ann, attachments.MAX_BYTES + 1))
    assert (status, b"50,000,000 bytes" in answer_body) == (413, True)

    download = await ann.get(f"/attachments/{hers}/content")
    assert download.content == b"Ships sail." and download.headers["content-disposition"].startswith("attachment;")
    assert "sandbox" in download.headers["content-security-policy"]
    assert (download.headers["x-content-type-options"], download.headers["cache-control"]) == ("nosniff", "no-store")


async def test_client_that_leaves_during_an_upload_leaves_nothing(running: Running, ann: Person) -> None:
    host, _, port = running.url.partition("//")[2].rpartition(":")
    folder = running.config.data_dir / "uploads"
    with socket.create_connection((host, int(port))) as client:
        client.sendall(head(running, ann, 1_000_000) + b"x" * 100_000)
        await until(lambda: any(folder.iterdir()), "the upload began")
    await until(lambda: not any(folder.iterdir()), "the upload is removed")
    assert await stored(running) == [0, 0, 0, 0]


async def test_same_file_uploaded_by_two_tabs_at_once_is_one_attachment(running: Running, ann: Person) -> None:
    data = long_text(300)
    found = await asyncio.gather(*(upload(ann, data, f"{number}.txt") for number in range(4)))
    assert len({good(one)["id"] for one in found}) == 1
    document = await read(ann, good(found[0])["id"])
    pages = document["pages"]
    assert await stored(running) == [1, 1, pages, pages]


async def test_requests_that_wait_for_the_same_document_do_not_disturb_each_other(
    running: Running, ann: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fireside.web.handlers.attachments.WAIT_SECONDS", 0.0)
    document = good(await upload(ann, long_text(3_000)))["id"]
    waiting = asyncio.create_task(running.state.reader.wait(document, 10 * PATIENCE))
    await asyncio.sleep(0)
    await running.state.reader.wait(document, 0.0)
    async with asyncio.timeout(PATIENCE):
        await waiting
    assert good(await ann.get(f"/attachments/{document}"))["status"] == "ready"


async def test_file_that_is_removed_while_it_is_uploaded_again_is_stored_anew(
    running: Running, ann: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await read(ann, good(await upload(ann, long_text(30)))["id"])
    chat = await ann.conversation(message={"content": "", "attachment_ids": [first["id"]]})
    database = running.state.database
    look_up = database.read

    async def read_and_purge(function: Any, *args: Any, **kw: Any) -> Any:
        found = await look_up(function, *args, **kw)
        if function is attachments.find and found:
            good(await ann.delete(f"/conversations/{chat}", params={"purge": True}))
        return found

    monkeypatch.setattr(database, "read", read_and_purge)
    again = await read(ann, good(await upload(ann, long_text(30)))["id"])
    assert again["id"] > first["id"] and again["status"] == "ready"
    assert (await ann.get(f"/attachments/{again['id']}/content")).content == long_text(30)
    assert await stored(running) == [1, 1, again["pages"], again["pages"]]


async def test_download_is_read_in_pieces_and_ends_when_the_file_is_removed(running: Running, ann: Person) -> None:
    data = random.Random(1).randbytes(20_000_000)  # more than the buffers of both sockets
    document = good(await upload(ann, data))["id"]
    assert (await ann.get(f"/attachments/{document}/content")).content == data
    with pytest.raises(httpx.RemoteProtocolError):
        async with ann.stream("GET", f"/attachments/{document}/content") as response:
            assert response.headers["content-length"] == "20000000"
            remove = "DELETE FROM attachment_data"
            await running.state.database.write(lambda conn: conn.execute(remove).rowcount)
            await response.aread()


async def test_document_that_is_removed_while_it_is_read_is_dropped(
    running: Running, ann: Person, bob: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "SAVE_CHARACTERS", 3_000)
    monkeypatch.setattr("fireside.web.handlers.attachments.WAIT_SECONDS", 0.0)
    begun = good(await upload(ann, long_text(8_000)))
    his = good(await upload(bob, long_text(20, 2)))
    assert begun["status"] == "reading"
    assert code(
        await ann.post("/conversations", json={"message": {"content": "", "attachment_ids": [begun["id"]]}})
    ) == (409, "ATTACHMENT_NOT_READY")
    database = running.state.database
    await seen(ann, begun["id"], lambda found: found["pages_read"] > 0)

    def release(conn: Any) -> None:
        conn.execute("UPDATE attachments SET uploaded_at = NULL WHERE id = ?", (begun["id"],))
        size = attachments.release(conn, [begun["id"]])
        queries.quota.add_stored_bytes(conn, begun_by, -size)

    begun_by = await database.read(lambda conn: conn.execute("SELECT user_id FROM attachments").fetchone()[0])
    await database.write(release)
    await attachments.remove_released(database)
    await until(lambda: not running.state.reader._tasks, "the readers end")
    assert await used(ann) == 0
    assert (await read(bob, his["id"]))["status"] == "ready"
    pages = good(await bob.get(f"/attachments/{his['id']}"))["pages"]
    assert await stored(running) == [1, 1, pages, pages]


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
async def test_document_is_read_on_after_a_kill(tmp_path: Path) -> None:
    data = long_text(3_000)
    async with Killable(tmp_path / "data") as service:
        uploading = asyncio.create_task(upload(service.ann, data))
        half = await seen(service.ann, 1, lambda found: found["pages_read"] > 0)
        await service.end(signal.SIGKILL)
        await asyncio.gather(uploading, return_exceptions=True)
        await service.start()
        document = await read(service.ann, 1)
        assert document["status"] == "ready" and document["pages_read"] == document["pages"] > half["pages_read"]
        at = {"first": document["pages"] - 99, "count": 100}
        pages = good(await service.ann.get("/attachments/1/pages", params=at))["pages"]
        assert data.decode().endswith("\n".join(page["text"] for page in pages)[-100:])
        assert document["characters"] == pytest.approx(len(data.decode()), rel=0.01)


async def test_reading_that_exceeds_its_limits_fails_with_a_message_and_can_be_repeated(
    running: Running, ann: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("fireside.documents.extract.ITEM_SECONDS", 0.0)
        failed = await read(ann, good(await upload(ann, long_text(3)))["id"])
    assert (failed["status"], failed["problem"]) == ("failed", reader.TOO_LONG)
    again = good(await upload(ann, long_text(3)))
    again = await read(ann, again["id"])
    assert (again["id"], again["status"]) == (failed["id"], "ready") and again["problem"] != reader.TOO_LONG


async def test_encrypted_document_is_read_with_its_password(running: Running, ann: Person) -> None:
    document = await read(ann, good(await upload(ann, making.pdf("Ships sail.", password="x"), "a.pdf"))["id"])
    path = f"/attachments/{document['id']}"
    assert document["status"] == "encrypted" and document["problem"]
    body = {"content": "x", "attachment_ids": [document["id"]]}
    assert code(await ann.post("/conversations", json={"message": body})) == (409, "ATTACHMENT_NOT_READY")
    good(await ann.post(f"{path}/password", json={"password": "wrong"}))
    assert (await read(ann, document["id"]))["status"] == "encrypted"
    good(await ann.post(f"{path}/password", json={"password": "x"}))
    assert (await read(ann, document["id"]))["status"] == "ready"
    [page] = good(await ann.get(f"{path}/pages"))["pages"]
    assert "Ships sail." in page["text"] and running.state.reader._passwords == {}


async def test_password_entered_while_another_is_tried_is_tried_next(
    running: Running, ann: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = await read(ann, good(await upload(ann, making.pdf("Ships sail.", password="x"), "a.pdf"))["id"])
    path = f"/attachments/{document['id']}/password"
    documents, passwords = running.state.reader, ["x"]
    store = documents._store_pages

    async def store_and_enter(unread: Any) -> Any:
        result = await store(unread)
        for password in passwords[:]:
            passwords.clear()
            good(await ann.post(path, json={"password": password}))
        return result

    monkeypatch.setattr("fireside.web.handlers.attachments.WAIT_SECONDS", 0.0)
    monkeypatch.setattr(documents, "_store_pages", store_and_enter)
    good(await ann.post(path, json={"password": "wrong"}))
    assert (await read(ann, document["id"]))["status"] == "ready"
    assert documents._passwords == {}


async def test_text_of_documents_counts_towards_the_limit_of_the_user(tmp_path: Path) -> None:
    async with Running(tmp_path, user_max_bytes="30000") as running:
        ann = await running.first()
        assert code(await upload(ann, b"x" * 30_001)) == (413, "QUOTA_EXCEEDED")
        document = await read(ann, good(await upload(ann, b"word " * 4_000))["id"])
        assert (document["status"], document["problem"]) == ("failed", reader.NO_SPACE)
        assert 20_000 <= await used(ann) <= 30_000


async def test_queued_message_keeps_its_files_until_it_is_sent(
    running: Running, ann: Person, upstream: Upstream
) -> None:
    document, image = await read(ann, good(await upload(ann, b"Ships sail."))["id"]), base64.b64encode(PNG).decode()
    chat = await ann.conversation("Hello?")
    fields = {"queue": True, "images": [{"media_type": "image/png", "data": image}], "attachment_ids": [document["id"]]}
    await ann.say(chat, "And this?", **fields)
    await ann.say(chat, "Or this?", **fields)
    first, second = good(await ann.get(f"/conversations/{chat}"))["queue"]
    assert (first["images"], [one["name"] for one in first["documents"]]) == (1, ["notes.txt"])
    good(await ann.delete(f"/conversations/{chat}/queue/{second['id']}"))
    good(await ann.post(f"/conversations/{chat}/queue/{first['id']}/send", json={}))
    sent = (await ann.messages(chat))[1]
    assert (len(sent["images"]), [one["id"] for one in sent["documents"]]) == (1, [document["id"]])
    assert (await stored(running))[0] == 2
    await until(lambda: not running.state.hub.generations, "the answer ends")
    good(await ann.delete(f"/conversations/{chat}", params={"purge": True}))
    assert await stored(running) == [0, 0, 0, 0] and await used(ann) == 0


async def test_documents_of_a_temporary_chat_reach_the_model_also_when_queued(
    running: Running, ann: Person, upstream: Upstream
) -> None:
    ships, planes = [await read(ann, good(await upload(ann, data))["id"]) for data in (b"Ships sail.", b"Planes fly.")]
    [gate] = upstream.enqueue_paused("They sail", " far.")
    chat = await ann.conversation(temporary=True, message={"content": "Who?", "attachment_ids": [ships["id"]]})
    async with ann.streaming(chat, **MODEL) as events:
        await upstream.received()
        await ann.say(chat, "And here?", queue=True, attachment_ids=[planes["id"]])
        gate.open()
        assert "done" in [event.event async for event in events]
    await upstream.received(2)
    first, second = (request["messages"][-1]["content"] for request in upstream.chats)
    assert "Ships sail." in first and "Planes fly." in second and "Ships sail." not in second


async def test_account_takes_its_files_and_those_being_read_with_it(running: Running, ann: Person, bob: Person) -> None:
    documents = [good(await upload(bob, long_text(100, seed)))["id"] for seed in range(3)]
    await bob.conversation(message={"content": "", "attachment_ids": [(await read(bob, documents[0]))["id"]]})
    user_id = good(await bob.get("/auth/me"))["user"]["id"]
    good(await ann.delete(f"/admin/users/{user_id}"))
    await until(lambda: not running.state.reader._tasks, "the reader ends")
    assert await stored(running) == [0, 0, 0, 0]
    assert await running.state.database.read(queries.accounts.list_closed) == []


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        ("a/b\\..\\report.pdf", "report.pdf"),
        ("\0\u202efdp.exe\n", "fdp.exe"),
        ("..", "file"),
        ("", "file"),
        ("é" * 300 + ".pdf", "é" * 125 + ".pdf"),
        ("x." + "y" * 400, "x." + "y" * 253),
        ("\ud800a", "a"),
    ],
)
def test_name_is_cleaned(name: str, cleaned: str) -> None:
    assert clean_name(name) == cleaned
