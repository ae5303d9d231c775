"""The exports of other programs, compared with the facts that they were written from."""

import contextlib
import json
import sqlite3
import zipfile
from pathlib import Path
from typing import Any

import pytest
from fireside.transfer import formats
from fireside.transfer.steps import Skipped
from fireside.transfer.transcript import Conversation, Message
from hypothesis import given, settings
from hypothesis import strategies as st

from .. import talks
from ..exports import data_url, png
from ..talks import LINEAR, PROGRAMS, START, Program, Said, Talk
from .reading import KEEL, folded, paragraphs, read_one, take, take_bytes, write

Facts = list[tuple[Any, ...]]


def facts(rows: list[tuple[Any, Any, str, str, Any]], keeps: tuple[str, ...]) -> Facts:
    """Return of each (key, parent, role, text, kept) the texts from the first message to it, with what a program keeps of it."""
    path: dict[Any, tuple[str, ...]] = {None: ()}
    found = []
    for key, parent, role, text, kept in rows:
        path[key] = (*path[parent], text)
        found.append((role, path[key], *(kept[name] if name in keeps else None for name in kept)))
    return sorted(found, key=repr)


def facts_of_talk(talk: Talk, keeps: tuple[str, ...]) -> Facts:
    return facts(
        [(*said[:4], {"at": talks.iso(said.at), "model": said.model, "reasoning": said.reasoning}) for said in talk],
        keeps,
    )


def facts_of_import(read: Conversation, keeps: tuple[str, ...]) -> Facts:
    def kept(message: Message) -> dict[str, str]:
        at = message.created_at.replace("000000", "000Z")
        return {"at": at, "model": message.model or "", "reasoning": message.reasoning}

    return facts([(m.id, m.parent_id, m.role, m.content, kept(m)) for m in read.messages], keeps)


def check(program: Program, talk: Talk, read: Conversation) -> None:
    assert facts_of_import(read, program.keeps) == facts_of_talk(talk, program.keeps)
    if "title" in program.keeps:
        assert (read.title, read.named) == ("Boats", True)
    assert read.losses == {}


@pytest.mark.parametrize("program", PROGRAMS, ids=[program.name for program in PROGRAMS])
def test_a_conversation_of_each_program_is_imported_whole(tmp_path: Path, program: Program) -> None:
    (read,), skipped = take_bytes(tmp_path, program.file, program.write(program.talk))
    assert skipped == []
    if program.name == "Jan":  # its title is in another file
        read.title, read.named = "Boats", True
    check(program, program.talk, read)
    shown = next(message for message in read.messages if message.id == read.active_message_id)
    last = "It sinks. 🪨" if program.talk in (LINEAR, talks.SWIPED) else "No, but it is mostly air."
    assert shown.content == last
    assert len({message.source for message in read.messages}) == len(read.messages)
    again, _ = take_bytes(tmp_path, f"again/{Path(program.file).name}", program.write(program.talk))
    assert [(one.source, [m.source for m in one.messages]) for one in again] == [
        (read.source, [m.source for m in read.messages])
    ]


def test_a_folder_with_the_files_of_all_programs_is_imported_whole(tmp_path: Path) -> None:
    talks.write_all(tmp_path)
    (tmp_path / "claude" / "users.json").write_bytes(b'[{"uuid": "me", "full_name": "Me"}]')
    read, skipped = take(tmp_path)
    assert skipped == []
    assert len(read) == len(PROGRAMS)
    programs = {(one.source or "").partition(":")[0] for one in read}
    assert len(programs) == len(formats.PROGRAMS) - 1, "all but Fireside"
    (thread,) = [one for one in read if one.source == "jan:j1"]
    assert (thread.title, thread.system_prompt, thread.model) == ("Boats", "Be kind.", None)


# ---- any conversation, in the shape of each program


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r<"), min_size=1).filter(str.strip)
PLAIN = st.text("abc xyz &'\"", min_size=1).map(lambda text: " ".join(text.split())).filter(bool)


@st.composite
def any_talk(draw: st.DrawFn, program: Program) -> Talk:
    text = PLAIN if program.name in ("Gemini", "ChatGPT", "Open WebUI") else WORDS
    talk: Talk = []
    answers: list[str | None] = [None]
    shown: str | None = None
    for number in range(draw(st.integers(1, 6))):
        parent = draw(st.sampled_from(answers)) if program.talk is talks.BRANCHED else shown
        at = START + 100 * number
        talk.append(Said(f"u{number}", parent, "user", draw(text), at))
        shown = f"a{number}.0"
        for version in range(1 if program.talk is LINEAR else draw(st.integers(1, 3))):
            key = f"a{number}.{version}"
            reasoning = draw(st.sampled_from(["", "Hm."])) if "reasoning" in program.keeps else ""
            talk.append(Said(key, f"u{number}", "assistant", draw(text), at + 5, "m", reasoning))
            answers.append(key)
    return talk


@settings(max_examples=100)
@given(st.data())
def test_any_conversation_in_the_shape_of_a_program_is_imported_whole(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    program = data.draw(st.sampled_from(PROGRAMS))
    talk = data.draw(any_talk(program))
    (read,), skipped = take_bytes(tmp_path_factory.getbasetemp(), Path(program.file).name, program.write(talk))
    assert skipped == []
    program = program._replace(keeps=tuple(name for name in program.keeps if name != "title"))
    check(program, talk, read)


# ---- what only some programs have


def text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def claude_chat(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    rows = [{"uuid": f"m{n}", "created_at": talks.iso(START + n)} | message for n, message in enumerate(messages)]
    return {"uuid": "c2", "name": "", "created_at": talks.iso(START), "chat_messages": rows} | fields


def test_claude_documents_artifacts_and_tools_are_kept_as_text(tmp_path: Path) -> None:
    artifact = {"command": "create", "id": "hull", "type": "text/html", "title": "Hull", "content": "<p>`hull`</p>\n"}
    update = {"command": "update", "id": "hull", "old_str": "p", "new_str": "b"}
    old = 'See <antArtifact identifier="x" type="application/vnd.ant.code" language="c" title="Main">\nint x;\n</antArtifact> there'
    document = {"file_name": "plan.md", "file_size": 9, "file_type": "md", "extracted_content": "```\nkeel\n```"}
    blocks = [
        {"type": "thinking", "thinking": "Hm."},
        text("Here."),
        {"type": "tool_use", "id": None, "name": "artifacts", "input": artifact},
        {"type": "tool_result", "tool_use_id": None, "name": "artifacts", "content": [text("OK")]},
        {"type": "tool_use", "id": "t", "name": "web <search>", "input": {"q": "keel"}},
        {"type": "tool_result", "tool_use_id": "t", "content": [text("Found")]},
        {"type": "tool_use", "name": "artifacts", "input": update},
        {"type": "token_budget", "remaining": 1},
        {"type": "hologram", "text": "?"},
    ]
    files = [{"file_name": "deck.png"}, {"file_name": "deck.pdf"}]
    chat = claude_chat(
        {"sender": "human", "content": [text("Look")], "attachments": [document]},
        {"sender": "assistant", "content": blocks},
        {"sender": "human", "text": old, "content": [], "files": files},
    )
    read = read_one(tmp_path, "claude.json", [chat])
    question, answer, last = read.messages
    assert question.content == "Look"
    assert [(file.name, file.data) for file in question.attachments] == [("plan.md", b"```\nkeel\n```")]
    assert answer.reasoning == "Hm."
    hull, search = "**Hull**\n\n```html\n<p>`hull`</p>\n```", folded("web &lt;search&gt;", KEEL, "Found")
    assert answer.content == paragraphs("Here.", hull, search, folded("artifacts", json.dumps(update, indent=2)), "?")
    main = "**Main**\n\n```c\nint x;\n```"
    assert last.content == paragraphs("See", main, "there", "[image missing: deck.png]", "**deck.pdf** (not imported)")
    assert read.losses == {"document": 1, "artifact": 2, "tool call": 2, "unknown part": 1, "image": 1}
    assert read.title == "Look"


def test_claude_export_without_parents_is_a_list(tmp_path: Path) -> None:
    chat = claude_chat({"sender": "human", "text": "a"}, {"sender": "assistant", "text": "b"}, is_starred=True)
    read = read_one(tmp_path, "claude.json", chat | {"model": "claude-x"})
    assert read.pinned
    assert [(m.parent_id, m.content, m.model) for m in read.messages] == [(None, "a", None), (1, "b", "claude-x")]


def test_text_of_a_document_of_claude_is_a_text_file_and_a_loss_when_it_was_no_text(tmp_path: Path) -> None:
    documents = [
        {"file_name": "long.pdf", "extracted_content": "é" * 300_000},
        {"file_name": "", "extracted_content": "pasted"},
        {"file_name": "empty.docx", "extracted_content": ""},
    ]
    read = read_one(tmp_path, "claude.json", claude_chat({"sender": "human", "text": "", "attachments": documents}))
    (question,) = read.messages
    assert question.content == "**empty.docx** (not imported)"
    assert [(file.name, file.data.decode()) for file in question.attachments] == [
        ("long.pdf.txt", "é" * 300_000),
        ("pasted.txt", "pasted"),
    ]
    assert read.losses == {"document": 1, "document text": 1}


def test_librechat_tools_errors_and_files(tmp_path: Path) -> None:
    call = {"name": "search", "args": '{"q": "keel"}', "output": "Found", "type": "tool_call"}
    parts = [{"type": "tool_call", "tool_call": call}, {"type": "text", "text": {"value": "It is."}}]
    counts = {"promptTokens": 10, "tokenCount": 5, "finish_reason": "stop"}
    files = [{"filename": "a.png", "type": "image/png"}]
    nodes = [
        {"messageId": "1", "isCreatedByUser": True, "text": "Look", "files": files},
        {"messageId": "2", "parentMessageId": "1", "model": "m", "content": parts} | counts,
        {"messageId": "3", "parentMessageId": "2", "isCreatedByUser": True, "text": "More"},
        {"messageId": "4", "parentMessageId": "3", "error": True, "text": "No such model."},
        {"messageId": "5", "parentMessageId": "3", "text": ":::thinking\nHm.\n:::\n\nWell", "unfinished": True},
    ]
    read = read_one(tmp_path, "l.json", {"conversationId": "l2", "title": "T", "messages": nodes})
    question, answer, _, failed, last = read.messages
    assert question.content == "Look\n\n[image missing: a.png]"
    assert answer.content == folded("search", KEEL, "Found") + "\n\nIt is."
    assert answer.token_usage == {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    assert answer.stats == {"finish_reason": "stop"}
    assert (failed.error, failed.content) == ({"code": "PROVIDER_ERROR", "message": "No such model."}, "")
    assert failed.status == "error"
    assert (last.status, last.reasoning, last.content) == ("interrupted", "Hm.", "Well")
    assert read.losses == {"image": 1, "tool call": 1}


def test_llamacpp_tools_files_and_speed(tmp_path: Path) -> None:
    call = json.dumps([{"id": "c", "type": "function", "function": {"name": "search", "arguments": '{"q": "keel"}'}}])
    extra = [
        {"type": "IMAGE", "name": "a.png", "base64Url": data_url(png())},
        {"type": "textFile", "name": "b.txt", "content": "keel"},
        {"type": "AUDIO", "name": "c.mp3", "base64Data": "AAAA", "mimeType": "audio/mpeg"},
    ]
    timings = {"prompt_n": 10, "cache_n": 5, "prompt_ms": 100.0, "predicted_n": 20, "predicted_ms": 400.0}
    ids = [{"id": number, "parent": number - 1 or -1, "children": [number + 1]} for number in range(1, 7)]
    rows: list[dict[str, Any]] = [
        {"type": "root", "role": "system", "content": ""},
        {"type": "system", "role": "system", "content": "Be kind."},
        {"type": "text", "role": "user", "content": "Look", "extra": extra},
        {"type": "text", "role": "assistant", "content": "", "toolCalls": call, "thinking": "Hm."},
        {"type": "text", "role": "tool", "content": "Found", "toolCallId": "c"},
        {"type": "text", "role": "assistant", "content": "It is.", "timings": timings, "model": "m"},
    ]
    messages = [one | row for one, row in zip(ids, rows, strict=True)]
    read = read_one(tmp_path, "p.json", [{"conv": {"id": "p2", "name": "T", "currNode": 6}, "messages": messages}])
    question, answer = read.messages
    assert question.content == "Look\n\n**c.mp3** (not imported)"
    assert [file.data for file in question.attachments] == [png(), b"keel"]
    assert answer.content == paragraphs(folded("search", KEEL), folded("result", "Found"), "It is.")
    assert (answer.reasoning, answer.model, read.active_message_id) == ("Hm.", "m", answer.id)
    assert answer.token_usage == {"prompt_tokens": 15, "completion_tokens": 20, "total_tokens": 35}
    assert answer.stats == {"ttft_ms": 100, "total_ms": 500, "tokens_per_second": 50.0}
    assert read.system_prompt == "Be kind."
    assert read.losses == {"audio": 1, "tool call": 2}


def test_jan_tools_images_and_states(tmp_path: Path) -> None:
    def row(number: int, role: str, *parts: dict[str, Any], **fields: Any) -> dict[str, Any]:
        head = {"id": f"j{number}", "object": "thread.message", "thread_id": "j9", "created_at": START + number}
        return head | {"role": role, "content": list(parts)} | fields

    thinking = {"type": "text", "text": {"value": "<think>Hm.</think>It is.", "annotations": []}}
    tool = {"type": "tool_call", "tool_name": "search", "input": {"q": "keel"}, "output": "Found"}
    picture = {"type": "image_url", "image_url": {"url": data_url(png())}}
    rows = [
        row(1, "user", picture, {"type": "image_url", "image_url": {"url": "file://gone.png"}}),
        row(2, "assistant", tool, thinking, status="stopped"),
        row(3, "assistant", {"type": "x"}, thinking, status="error", metadata={"error": "Out of memory"}),
        row(4, "assistant", status="error"),
    ]
    read = read_one(tmp_path, "messages.jsonl", talks.lines(rows))
    question, answer, failed, empty = read.messages
    assert (question.content, len(question.attachments)) == ("[image missing]", 1)
    assert answer.content == folded("search", KEEL, "Found") + "\n\n<think>Hm.</think>It is."
    assert (answer.status, failed.status, failed.reasoning, failed.content) == ("canceled", "error", "Hm.", "It is.")
    assert (empty.status, empty.error) == ("error", {"code": "PROVIDER_ERROR", "message": "The model server failed."})
    assert read.losses == {"image": 1, "tool call": 1, "unknown part": 1}


def test_gemini_prompts_become_conversations_by_their_times(tmp_path: Path) -> None:
    def record(title: str, at: int, *answers: str, **fields: Any) -> dict[str, Any]:
        row = {"header": "Gemini Apps", "title": title, "time": talks.iso(START + at), "products": ["Gemini Apps"]}
        return row | {"safeHtmlItem": [{"html": answer} for answer in answers]} | fields

    answer = (
        "<h2>Boats</h2>\n<p>They <strong>float</strong>, as <a href='https://e.org/'>he</a> said&nbsp;&amp; did:</p>\n"
        "<ol><li>Hull<ul><li><code>keel</code></li></ul></li><li>Sail</li></ol><p>And</p>"
        "<table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table>"
    )
    other = {"header": "Search", "title": "Searched for x", "time": talks.iso(START), "products": ["Search"]}
    records = [
        record("Prompted And now? Attached 1 file.", 4000, attachedFiles=["gone.pdf"]),
        record("Gave feedback: good", 3990),
        other,
        record("Asked Bard: Go on", 1500, "<p>Yes.</p>"),
        record("Prompted What floats?", 0, answer),
    ]
    read, skipped = take_bytes(tmp_path, "MyActivity.json", talks.encoded(records))
    assert skipped == []
    first, second = read
    assert [m.content for m in first.messages] == [
        "What floats?",
        "## Boats\n\nThey **float**, as [he](https://e.org/) said & did:\n\n"
        "1. Hull\n    - `keel`\n2. Sail\n\nAnd\n\n| a | b |\n|---|---|\n| 1 | 2 |",
        "Go on",
        "Yes.",
    ]
    assert [m.content for m in second.messages] == ["And now?\n\n**gone.pdf** (not imported)"]
    assert (second.losses, second.title) == ({"document": 1}, "And now? **gone.pdf** (not imported)")


def test_sillytavern_groups_and_dates_of_older_versions(tmp_path: Path) -> None:
    for date in ("July 3, 2024 9:46am", "2024-07-03@09h46m00s", "2024-07-03 @09h 46m 00s 000ms", 1_719_999_960_000):
        rows: list[dict[str, Any]] = [
            {"user_name": "unused", "character_name": "unused", "chat_metadata": {"integrity": "x"}},
            {"name": "Ada", "is_user": False, "mes": "Hello", "send_date": date, "extra": {}},
            {"name": "You", "is_user": True, "mes": "Hi", "extra": {"image": "user/images/gone.png"}},
            {"name": "Bob", "is_user": False, "mes": "Ho", "swipe_id": 1, "swipes": ["He", "old"]},
        ]
        read = read_one(tmp_path, "group.jsonl", talks.lines(rows))
        assert (read.title, read.created_at) == ("Ada, Bob", "2024-07-03T09:46:00.000000")
        texts = ["**Ada:** Hello", "Hi\n\n[image missing: gone.png]", "**Bob:** He", "**Bob:** Ho"]
        assert ([m.content for m in read.messages], read.active_message_id) == (texts, 4)


def test_openai_messages_with_parts_tools_and_images(tmp_path: Path) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "search", "arguments": '{"q": "keel"}'}}
    parts: list[dict[str, Any]] = [
        text("Look"),
        {"type": "image_url", "image_url": {"url": data_url(png())}},
        {"type": "image_url", "image_url": {"url": "https://e.org/a.png"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERg=="}},
        {"type": "file", "file": {"filename": "b.pdf", "file_id": "file-1"}},
    ]
    messages: list[dict[str, Any]] = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "Hm."},
        {"role": "tool", "tool_call_id": "c", "content": "Found"},
        {"role": "assistant", "content": "It is."},
    ]
    read = read_one(tmp_path, "chat.json", {"model": "m", "messages": messages})
    question, answer = read.messages
    lost = ("Look\n**Audio** (not imported)\n**b.pdf** (not imported)", "[image missing]")
    assert question.content == "\n\n".join(lost)
    assert [(file.name, file.data) for file in question.attachments] == [("", png()), ("a.pdf", b"%PDF")]
    assert answer.content == paragraphs(folded("search", KEEL), folded("result", "Found"), "It is.")
    assert (answer.reasoning, read.system_prompt, read.model) == ("Hm.", "Be kind.", "m")
    assert read.losses == {"image": 1, "audio": 1, "document": 1, "tool call": 2}


def test_three_messages_in_an_array_are_one_conversation(tmp_path: Path) -> None:
    rows = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    for name, data in (("x.json", talks.encoded(rows)), ("x.jsonl", talks.lines(rows))):
        assert [m.content for m in read_one(tmp_path, name, data).messages] == ["a", "b", "c"]


def test_llm_attachments_fragments_and_tools(tmp_path: Path) -> None:
    asked, answered = (said._replace(reasoning="") for said in LINEAR[:2])
    fragments = [{"id": 1, "content": "keel"}]
    attachments = [
        {"id": "p", "type": "image/png", "content": png(), "path": None, "url": None},
        {"id": "d", "type": "application/pdf", "content": None, "path": "/home/me/plan.pdf", "url": None},
    ]
    old = talks.llm_responses(
        [asked, answered, asked._replace(text=""), answered._replace(text="So.")],
        fragments=fragments,
        attachments=attachments,
        prompt_fragments=[{"response_id": "r0000", "fragment_id": 1, "order": 0}],
        prompt_attachments=[{"response_id": "r0000", "attachment_id": one, "order": 0} for one in ("p", "d")],
        tool_calls=[{"response_id": "r0000", "name": "search", "arguments": '{"q": "keel"}'}],
        tool_results=[{"response_id": "r0001", "name": "search", "output": "Found"}],
    )
    payloads: list[tuple[str, dict[str, Any]]] = [
        ("text", {"text_ref": [{"fragment": 1}, {"literal": "\n" + asked.text}]}),
        ("attachment", {"attachment": {"id": "p"}}),
        ("attachment", {"attachment": {"id": "d"}}),
    ]
    parts = [
        {"message_hash": "u1", "position": n, "type": kind, "text": None, "payload": json.dumps(payload)}
        for n, (kind, payload) in enumerate(payloads)
    ]
    call = {"name": "search", "arguments": {"q": "keel"}}
    result = {"name": "search", "output": "Found"}
    parts += [
        {"message_hash": "a1", "position": 0, "type": "text", "text": answered.text},
        {"message_hash": "a1", "position": 1, "type": "tool_call", "payload": json.dumps(call)},
        {"message_hash": "r1", "position": 0, "type": "tool_result", "payload": json.dumps(result)},
        {"message_hash": "a2", "position": 0, "type": "text", "text": "So."},
    ]
    talk = [asked, answered, Said("r1", "a1", "tool", "", START), Said("a2", "r1", "assistant", "", START + 9, "m")]
    new = talks.llm_threads(talk, parts=parts, fragments=fragments, attachments=attachments)
    for data in (old, new):
        read = read_one(tmp_path, "logs.db", data)
        question, answer = read.messages
        assert question.content == f"keel\n{asked.text}\n\n**plan.pdf** (not imported)"
        assert [file.data for file in question.attachments] == [png()]
        assert answer.content == paragraphs(answered.text, folded("search", KEEL), folded("search", "Found"), "So.")
        assert answer.token_usage == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        assert read.losses == {"document": 1, "tool call": 2}


def test_ollama_attachments_and_tools(tmp_path: Path) -> None:
    files = [("a.png", png()), ("b.txt", b"keel"), ("c.pdf", b"%PDF\xff")]
    data = talks.ollama(
        [*LINEAR[:2], Said("t", "a1", "tool", "Found", START), Said("a2", "t", "assistant", "So.", START + 9, "m")],
        attachments=[
            {"id": n, "message_id": 1, "filename": name, "data": data} for n, (name, data) in enumerate(files)
        ],
        tool_calls=[{"id": 1, "message_id": 2, "function_name": "search", "function_arguments": '{"q": "keel"}'}],
    )
    read = read_one(tmp_path, "db.sqlite", data)
    question, answer = read.messages
    assert question.content == LINEAR[0].text
    assert [(file.name, file.data) for file in question.attachments] == files
    assert answer.content == paragraphs(LINEAR[1].text, folded("search", KEEL), folded("result", "Found"), "So.")
    assert read.losses == {"tool call": 2}


# ---- what cannot be read

UNSUPPORTED: dict[str, Any] = {
    "Grok": {"conversations": [{"conversation": {"id": str(n), "title": "T"}, "responses": []} for n in range(85)]},
    "DeepSeek": [{"id": "1", "title": "T", "mapping": {"1": {"message": {"fragments": [{"type": "REQUEST"}]}}}}] * 85,
    "Google AI Studio": {"runSettings": {"model": "m"}, "systemInstruction": {}, "chunkedPrompt": {"chunks": []}},
    "Chatbot UI": {"version": 4, "history": [{"id": "1", "messages": []}], "folders": [], "prompts": []},
    "Codex": [{"timestamp": "t", "type": "session_meta", "payload": {"id": "1"}}, {"type": "response_item"}],
    "Claude Code": [{"type": "user", "sessionId": "s", "uuid": "u", "message": {"role": "user", "content": "x"}}] * 85,
    "text-generation-webui": {"internal": [["a", "b"]], "visible": [["a", "b"]]},
    "KoboldCpp": {"gamestarted": True, "prompt": "x", "actions": ["y"]},
    "Cherry Studio": {"time": 1, "version": 5, "localStorage": {}, "indexedDB": {"topics": []}},
    "Chatbox": {"chat-sessions-list": [{"id": "1"}]},
    "LobeChat": {"exportType": "all", "state": {"sessions": []}, "version": 7},
    "AnythingLLM": [{"workspace": "w", "prompt": "a", "response": "b", "sent_at": "t"}] * 85,
}


@pytest.mark.parametrize("program", UNSUPPORTED)
def test_an_export_that_is_not_supported_is_named_once(tmp_path: Path, program: str) -> None:
    value = UNSUPPORTED[program]
    data = talks.lines(value) if program in ("Codex", "Claude Code") else talks.encoded(value)
    read, skipped = take_bytes(tmp_path, "export.json", data)
    article = "an" if program == "AnythingLLM" else "a"
    reason = f"looks like {article} {program} export; Fireside cannot read it yet"
    assert (read, skipped) == ([], [Skipped("export.json", reason)])


def test_gemini_activity_as_html_is_named(tmp_path: Path) -> None:
    name = "Takeout/My Activity/Gemini Apps/MyActivity.html"
    reason = "is Gemini activity as HTML; choose JSON for My Activity in Google Takeout"
    assert take(write(tmp_path, {name: b"<html>"})) == ([], [Skipped(name, reason)])


def test_every_format_has_a_sample() -> None:
    unsupported = {format.program for format in formats.FORMATS if format.parse is None}
    assert unsupported == set(UNSUPPORTED)
    tested = " ".join(program.name for program in PROGRAMS)
    assert [name for name in formats.PROGRAMS if name.removesuffix("'s API") not in tested] == ["Fireside"]


def test_a_database_of_another_program_is_named(tmp_path: Path) -> None:
    for tables, reason in (
        (("chat", "auth"), "looks like an Open WebUI export; Fireside cannot read it yet"),
        (("workspace_chats",), "looks like an AnythingLLM export; Fireside cannot read it yet"),
        (("users",), "is a database of another program"),
    ):
        data = talks.database({table: [] for table in tables})
        assert take_bytes(tmp_path, "webui.db", data) == ([], [Skipped("webui.db", reason)])


@pytest.mark.parametrize("name", ["logs.db", "logs.zip"])
@pytest.mark.parametrize("journal", ["DELETE", "WAL"])
def test_a_database_is_read_in_every_journal_mode_and_nothing_is_written(
    tmp_path: Path, name: str, journal: str
) -> None:
    folder = tmp_path / "a folder #1"
    folder.mkdir()
    (folder / "logs.db").write_bytes(talks.llm_threads(talks.BRANCHED))
    with contextlib.closing(sqlite3.connect(folder / "logs.db")) as conn:
        conn.execute(f"PRAGMA journal_mode = {journal}")
        conn.execute("UPDATE threads SET name = 'Ships'")
        conn.commit()
    if name.endswith(".zip"):
        with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(folder / "logs.db", "llm/logs.db")
        (folder / "logs.db").unlink()
    before = (folder / name).read_bytes()
    (read,), skipped = take(folder / name)
    assert (read.title, len(read.messages), skipped) == ("Ships", len(talks.BRANCHED), [])
    assert [path.name for path in folder.iterdir()] == [name]
    assert (folder / name).read_bytes() == before
