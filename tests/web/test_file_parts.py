"""Documents in chat requests of other programs: `file` parts as OpenAI's API has them."""

import base64
import json
from typing import Any

import pytest

from ..documents.making import pdf
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


@pytest.mark.parametrize(
    ("file", "kind", "words"),
    [
        ({"type": "file", "file": {"file_id": "file-1"}}, "validation_error", "file_id is not supported"),
        ({"type": "file", "file": {"filename": "a.pdf"}}, "validation_error", "must have file_data"),
        ({"type": "file", "file": {"file_data": "%%"}}, "validation_error", "is not base64"),
        ({"type": "file", "file": []}, "validation_error", "must have file_data"),
        (part(b"\x7fELF\x02" + bytes(99), "a.exe"), "validation_error", "a.exe: "),
        (part(REPORT[:200]), "validation_error", "report.pdf: "),
        (part(pdf("secret", password="x")), "validation_error", "report.pdf: The PDF is encrypted."),
        (part(pdf("")), "validation_error", "has no text"),
        (part(b"keel " * 10_000, "long.txt"), "context_length_exceeded", "long.txt about 1"),
    ],
)
async def test_file_that_cannot_be_sent_is_an_error_in_the_shape_of_openai(
    running: Running, ann: Person, upstream: Upstream, file: dict[str, Any], kind: str, words: str
) -> None:
    upstream.models[0].instances = {MODEL: 4096}
    zed = program(running, await create(ann))
    response = await zed.post("/v1/chat/completions", json=asked(file))
    assert refused(response) == (400, kind) and words in response.json()["error"]["message"]
    assert good(await ann.get("/conversations")) == []
    assert not any(one.path.endswith("/chat/completions") for one in upstream.requests)
