"""Documents in chat requests of other programs: `file` parts as OpenAI's API has them."""

import base64
import io
import json
import zipfile
from typing import Any

import pytest

from ..documents.making import pdf
from ..exports import chatgpt, node
from ..live import Person, Running, code, good
from ..upstream import DONE, MODEL, Upstream, finish
from ..upstream import text as says
from .test_attachments import read
from .test_tokens import create, program, refused

NAME = f"lmstudio/{MODEL}"
REPORT = pdf("The keel is laid at dawn.", "The mast is stepped at noon.")


def part(data: bytes, name: str = "report.pdf", head: str = "data:application/pdf;base64,") -> dict[str, Any]:
    return {"type": "file", "file": {"filename": name, "file_data": head + base64.b64encode(data).decode()}}


def asked(*parts: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"model": NAME, "messages": [{"role": "user", "content": list(parts)}]} | fields


def words(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def sent(upstream: Upstream) -> list[dict[str, Any]]:
    """Return the messages of the newest chat request to the model server."""
    body = next(one.body for one in reversed(upstream.requests) if one.path.endswith("/chat/completions"))
    messages: list[dict[str, Any]] = json.loads(body)["messages"]
    return messages


async def test_file_parts_reach_the_server_as_text_and_are_recorded_once(
    running: Running, ann: Person, bob: Person, upstream: Upstream
) -> None:
    zed = program(running, await create(ann))
    upstream.default = [says("At dawn.") + finish() + DONE]
    note = part("Bring “tea”.".encode(), "../note.txt", head="")
    request = asked(words("When is the keel laid?"), part(REPORT), note, temperature=0.5)
    answer = good(await zed.post("/v1/chat/completions", json=request))
    assert answer["choices"][0]["message"]["content"] == "At dawn."
    question, report, text = (one["text"] for one in sent(upstream)[0]["content"])
    assert question == "When is the keel laid?"
    assert '<document name="report.pdf" pages="1-2 of 2">' in report and "[page 2]\nThe mast is stepped" in report
    assert 'name="note.txt"' in text and "Bring “tea”." in text

    more = [*request["messages"], answer["choices"][0]["message"], {"role": "user", "content": "And the mast?"}]
    stream = await zed.post("/v1/chat/completions", json=request | {"messages": more, "stream": True})
    assert stream.status_code == 200 and stream.text.endswith("data: [DONE]\n\n")
    assert sent(upstream)[0]["content"][1]["text"] == report, "a repeated file has the same text"
    [conversation] = good(await ann.get("/conversations"))
    messages = await ann.messages(conversation["id"])
    assert [one["content"] for one in messages] == ["When is the keel laid?", "At dawn.", "And the mast?", "At dawn."]
    assert [one["name"] for one in messages[0]["documents"]] == ["report.pdf", "note.txt"]
    assert (await read(ann, messages[0]["documents"][0]["id"]))["pages"] == 2
    [hit] = good(await ann.get("/search", params={"q": "stepped"}))["results"]
    assert (hit["name"], hit["page"], hit["message_id"]) == ("report.pdf", 2, messages[0]["id"])
    pages = f"/attachments/{hit['attachment_id']}/search?q=keel"
    assert good(await ann.get(pages))["pages"] == [{"number": 1, "snippet": "The \ue000keel\ue001 is laid at dawn."}]
    assert code(await bob.get(pages)) == (404, "ATTACHMENT_NOT_FOUND")


async def test_files_of_a_token_that_does_not_record_are_not_stored(
    running: Running, ann: Person, upstream: Upstream
) -> None:
    zed = program(running, await create(ann, record=False))
    upstream.default = [says("At dawn.") + finish() + DONE]
    good(await zed.post("/v1/chat/completions", json=asked(part(REPORT), words("When?"))))
    assert "The keel is laid" in sent(upstream)[0]["content"][0]["text"]
    count = "SELECT count(*) FROM attachments"
    assert (await running.state.database.read(lambda conn: conn.execute(count).fetchone()))[0] == 0


REFUSED: tuple[tuple[dict[str, Any], str, str], ...] = (
    ({"type": "file", "file": {"file_id": "file-1"}}, "validation_error", "file_id is not supported"),
    ({"type": "file", "file": {"filename": "a.pdf"}}, "validation_error", "must have file_data"),
    ({"type": "file", "file": {"file_data": "%%"}}, "validation_error", "is not base64"),
    ({"type": "file", "file": []}, "validation_error", "must have file_data"),
    (part(b"\x7fELF\x02" + bytes(99), "a.exe"), "validation_error", "a.exe: "),
    (part(REPORT[:200]), "validation_error", "report.pdf: "),
    (part(pdf("secret", password="x")), "validation_error", "report.pdf: The PDF is encrypted."),
    (part(pdf("")), "validation_error", "has no text"),
    (part(b"keel " * 10_000, "long.txt"), "context_length_exceeded", "long.txt about 1"),
)


async def test_file_that_cannot_be_sent_is_an_error_in_the_shape_of_openai(
    running: Running, ann: Person, upstream: Upstream
) -> None:
    upstream.models[0].instances = {MODEL: 4096}
    zed = program(running, await create(ann))
    for file, kind, words in REFUSED:
        response = await zed.post("/v1/chat/completions", json=asked(file))
        assert refused(response) == (400, kind) and words in response.json()["error"]["message"], words
    assert good(await ann.get("/conversations")) == []
    assert not any(one.path.endswith("/chat/completions") for one in upstream.requests)


async def test_file_of_a_conversation_in_the_bin_can_be_sent_again(
    running: Running, ann: Person, upstream: Upstream
) -> None:
    zed = program(running, await create(ann))
    upstream.default = [says("At dawn.") + finish() + DONE]
    for _ in range(2):
        good(await zed.post("/v1/chat/completions", json=asked(part(REPORT))))
        [conversation] = good(await ann.get("/conversations"))
        [document] = (await ann.messages(conversation["id"]))[0]["documents"]
        await read(ann, document["id"])
        good(await ann.delete(f"/conversations/{conversation['id']}"))


async def test_text_of_all_file_parts_is_limited(
    running: Running, ann: Person, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fireside.chat.file_parts.MAX_CHARACTERS", 60)
    zed = program(running, await create(ann))
    note = part(b"The keel is laid at dawn, they say.", "note.txt")
    good(await zed.post("/v1/chat/completions", json=asked(note)))
    response = await zed.post("/v1/chat/completions", json=asked(note, note))
    assert refused(response) == (400, "context_length_exceeded")
    assert "more than 60 characters" in response.json()["error"]["message"]
    monkeypatch.setattr("fireside.chat.file_parts.MAX_COMMAS", 5)
    response = await zed.post("/v1/chat/completions", json=asked(note, words("a, b, c, d, e, f")))
    assert refused(response) == (400, "validation_error")
    assert response.json()["error"]["message"] == "messages has too many parts."


async def test_documents_of_an_import_are_read_and_found_and_survive_another_export(
    ann: Person, bob: Person, upstream: Upstream
) -> None:
    uploads = [{"id": "file-Report1", "name": "report.pdf"}, {"id": "file-Program1", "name": "boat.exe"}]
    question = node("q", None, "user", "When?", metadata={"attachments": uploads})
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("conversations.json", json.dumps([chatgpt(question, current="q")]))
        archive.writestr("file-Report1.dat", REPORT)
        archive.writestr("file-Program1.dat", b"\x7fELF\x02" + bytes(99))
    data = packed.getvalue()
    for person in (ann, bob):
        report = good(await person.post("/import", content=data, headers={"Content-Type": "application/zip"}))
        assert (report["conversations"], report["skipped"], report["losses"]) == (1, [], [])
        [conversation] = good(await person.get("/conversations"))
        asked, *answers = await person.messages(conversation["id"])
        ids = [one["id"] for one in asked["documents"]]
        read_now = [await read(person, one) for one in ids]
        assert [(one["name"], one["status"]) for one in read_now] == [("report.pdf", "ready"), ("boat.exe", "failed")]
        [hit] = good(await person.get("/search", params={"q": "stepped"}))["results"]
        assert (hit["attachment_id"], hit["page"]) == (ids[0], 2)
        if not answers:  # a document that cannot be read is no obstacle
            upstream.enqueue(says("At dawn."), finish(), DONE)
            assert (await person.answer(conversation["id"]))[-1].data["status"] == "ok"
            assert "The keel is laid at dawn." in sent(upstream)[-1]["content"]
        data = (await person.get("/export")).content
    [theirs, mine] = [(await one.messages(1 if one is ann else conversation["id"]))[-1] for one in (ann, bob)]
    assert mine["content"] == theirs["content"] == "At dawn."
    assert mine["stats"]["documents"][0] == theirs["stats"]["documents"][0] | {"attachment_id": ids[0]}
