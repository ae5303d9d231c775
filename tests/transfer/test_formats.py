import contextlib
import copy
import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from fireside.backends.loose import clean, decode
from fireside.transfer import formats
from fireside.transfer.database import MAGIC, Reader, open_untrusted
from fireside.transfer.formats.common import FindFile
from fireside.transfer.split import split
from fireside.transfer.transcript import Attachment, Conversation, SavedPrompt, Unreadable
from hypothesis import given, settings
from hypothesis import strategies as st

from ..exports import (
    STATS,
    answered,
    asked,
    block,
    chatgpt,
    data_url,
    lmstudio,
    node,
    openwebui,
    picture,
    png,
    said,
    thoughts,
    turn,
)
from ..talks import JAN_THREAD, PROGRAMS, Program
from .reading import KEEL, folded, paragraphs


def nothing(mention: str) -> Attachment | None:
    return None


def anything(mention: str) -> Attachment | None:
    return Attachment(file=f"somewhere/{mention}")


def parse(value: Any) -> Conversation:
    return convert(value, nothing)


def convert(value: Any, find_file: FindFile) -> Conversation:
    read = formats.parse(value, find_file)
    assert isinstance(read, Conversation)
    return read


def tree(conversation: Conversation) -> list[tuple[int, int | None, str, str]]:
    return [(m.id, m.parent_id, m.role, m.content) for m in conversation.messages]


# ---- LM Studio


def test_lmstudio_versions_become_siblings_below_the_selected_one() -> None:
    chat = lmstudio(
        turn(asked("First draft"), asked("What is a river?"), selected=1),
        turn(answered(block("Water.")), answered(block("Moving water.")), answered(block("A stream.")), selected=1),
        turn(asked("And a lake?")),
    )
    read = parse(chat)
    assert tree(read) == [
        (1, None, "user", "First draft"),
        (2, None, "user", "What is a river?"),
        (3, 2, "assistant", "Water."),
        (4, 2, "assistant", "Moving water."),
        (5, 2, "assistant", "A stream."),
        (6, 4, "user", "And a lake?"),
    ]
    assert read.active_message_id == 6
    assert (read.title, read.named, read.system_prompt) == ("Rivers", True, "Be brief.")
    assert (read.provider_id, read.model) == ("lmstudio", "qwen3-4b")
    odd: tuple[Any, ...] = (-1, 7, None, "1", 1.5, [1])
    for selected in odd:
        chat = lmstudio(turn(asked("a"), asked("b"), selected=selected), turn(answered(block("c"))))
        assert parse(chat).messages[2].parent_id == 1, "the first version, without a valid selection"


def tools(**fields: Any) -> dict[str, Any]:
    """An LM Studio chat with tool calls, files, a folded result of MCP, a draft and a part of an unknown kind."""

    def step(*parts: dict[str, Any]) -> dict[str, Any]:
        return {"type": "contentBlock", "content": list(parts)}

    def call(name: str, **fields: Any) -> dict[str, Any]:
        return {"type": "toolCallRequest", "name": name, "parameters": {"q": "keel"}} | fields

    def result(content: str, **fields: Any) -> dict[str, Any]:
        return {"type": "toolCallResult", "content": content} | fields

    question = asked("?", "lost.png")
    question["content"].append({"type": "file", "fileIdentifier": "plan.pdf", "fileType": "pdf", "sizeBytes": 9})
    answer = answered(
        block("Hm.", thinking=True),
        block("Let me look.", promptTokensCount=1, predictedTokensCount=2),
        step(call("search", callId=1), call("browse", callId=2), call("fail", callId=3)),
        {"type": "toolStatus", "callId": 1, "statusState": {"status": {"type": "toolCallSucceeded"}}},
        {"type": "toolStatus", "callId": 3, "statusState": {"status": {"type": "toolCallFailed", "error": "No."}}},
        step(result("Page", callId=2), result(json.dumps([{"type": "text", "text": "Found"}]), callId=1)),
        {"type": "debugInfoBlock", "debugInfo": "secret"},
        block("It is 42.", **STATS),
    )
    only_tools = turn(answered(step(call("search")), step(result("42"))))
    last = turn({"role": "user", "content": [{"type": "text", "text": "!"}, {"type": "hologram"}]})
    return lmstudio(turn(question), turn(answer), only_tools, last, clientInput="half a quest") | fields


def test_lmstudio_tool_calls_and_files_stay_as_text() -> None:
    read = parse(tools())
    question, answer, only_tools, last = read.messages
    assert question.content == "?\n\n[image missing: lost.png]\n\n**plan.pdf** (not imported)"
    assert answer.reasoning == "Hm."
    assert answer.content == paragraphs(
        "Let me look.",
        folded("search", KEEL, "Found"),
        folded("browse", KEEL, "Page"),
        folded("fail", KEEL, "No."),
        "It is 42.",
    )
    assert answer.token_usage == {"prompt_tokens": 30, "completion_tokens": 120, "total_tokens": 150}
    speed = {"ttft_ms": 250, "total_ms": 3500, "tokens_per_second": 41.26}
    assert answer.stats == speed | {"finish_reason": "stop", "context_length": 4096}
    assert only_tools.content == folded("search", KEEL, "42")
    assert (last.content, last.parent_id) == ("!", only_tools.id)
    assert read.losses == {"document": 1, "image": 1, "tool call": 4, "unknown part": 1, "draft": 1}


def test_lmstudio_messages_are_known_although_an_earlier_import_left_out_files_and_tools() -> None:
    """The sources are those of the plain texts."""
    read = parse(tools())
    plain = tools(messages=[turn(asked("?", "lost.png", "plan.pdf"))])
    plain["messages"].append(turn(answered(block("Hm.", thinking=True), block("Let me look."), block("It is 42."))))
    known = parse(plain)
    assert read.source == known.source
    assert [message.source for message in read.messages[:2]] == [message.source for message in known.messages]


def test_lmstudio_messages_without_versions_and_stopped_answers_are_read() -> None:
    chat = lmstudio({"role": "user", "content": "Old"}, {"role": "assistant", "content": "style"})
    assert tree(parse(chat)) == [(1, None, "user", "Old"), (2, 1, "assistant", "style")]
    chat = lmstudio(turn(asked("?")), turn(answered(block("It", **STATS | {"stopReason": "userStopped"}))))
    assert parse(chat).messages[1].status == "canceled"


def test_lmstudio_times_come_from_the_ids_of_steps_or_keep_the_order() -> None:
    chat = lmstudio(
        turn(asked("one")),
        turn(answered(block("1", at=1_720_000_010_000)), answered(block("1!", at=1_720_000_050_000))),
        turn(asked("two")),
        turn(answered(block("2", at=1_720_000_060_000))),
        turn(asked("three")),
        userLastMessagedAt=1_720_000_070_000,
    )
    times = " ".join(message.created_at[14:23] for message in parse(chat).messages)
    assert times == "46:49.999 46:50.000 47:30.000 47:39.999 47:40.000 47:50.000"
    read = parse(lmstudio(turn(asked("one")), turn(answered(block("1"))), turn(asked("two"))))
    moments = [message.created_at for message in read.messages]
    assert moments == sorted(set(moments)) and moments[0] > read.created_at


def test_lmstudio_source_is_the_time_of_creation_and_the_first_question() -> None:
    chat = lmstudio(turn(asked("one")), turn(answered(block("1"))))
    longer = lmstudio(turn(asked("one")), turn(answered(block("1"))), turn(asked("two")), name="renamed")
    assert parse(chat).source == parse(longer).source
    assert parse(chat | {"createdAt": 1_720_000_000_124}).source != parse(chat).source
    other = lmstudio(turn(asked("uno")), turn(answered(block("1"))))
    assert parse(other).source != parse(chat).source


def test_lmstudio_messages_are_known_by_their_texts() -> None:
    chat = lmstudio(turn(asked("go on")), turn(answered(block("1"))), turn(asked("go on")), turn(answered(block("2"))))
    sources = [message.source for message in parse(chat).messages]
    assert len(set(sources)) == 4
    chat["messages"] += [turn(asked("go on"))]
    assert [message.source for message in parse(chat).messages][:4] == sources
    with_images = lmstudio(turn(asked("look", "a.png")))
    assert parse(with_images).messages[0].source == convert(with_images, anything).messages[0].source


def test_lmstudio_without_a_time_or_messages_is_unreadable() -> None:
    with pytest.raises(Unreadable, match="createdAt"):
        parse(lmstudio(turn(asked("?")), made=0))
    with pytest.raises(Unreadable, match="no messages"):
        parse(lmstudio())


# ---- ChatGPT


def bridges() -> dict[str, Any]:
    """A question with two answers, one of them through tools and thoughts; and a question that was edited."""
    hidden: dict[str, Any] = {"metadata": {"is_visually_hidden_from_conversation": True}}
    return chatgpt(
        node("root", None),
        node("sys", "root", "system", "", **hidden),
        node("ctx", "sys", "user", kind="user_editable_context"),
        node("q1", "ctx", "user", "What holds it up?", at=1_700_000_001.0),
        node("a1", "q1", "assistant", "Cables \ue200cite\ue202turn0search1\ue201.", at=1_700_000_002.0),
        thoughts("t1", "q1", ("Statics", "Arches carry."), ("", "And piers.")),
        node("recap", "t1", "assistant", kind="reasoning_recap"),
        node("call", "recap", "assistant", "search()", kind="code", recipient="browser"),
        node("tool", "call", "tool", "results"),
        node("a2", "tool", "assistant", "Piers.", at=1_700_000_004.0, metadata={"model_slug": "o3"}),
        node("a2 more", "a2", "assistant", "And more piers.", at=1_700_000_005.0),
        node("q2", "a1", "user", "Who built it?"),
        node("q2b", "a1", "user", "Who paid for it?", at=1_700_000_006.0),
        node("a3", "q2b", "assistant", 'The \ue200entity\ue202["place","City"]\ue201.\ue204', at=1_700_000_007.0),
        current="a3",
    )


def test_chatgpt_keeps_all_branches_and_leaves_out_hidden_nodes() -> None:
    read = parse(bridges())
    by_source = {message.source: message for message in read.messages}
    parents = {m.source: next((p.source for p in read.messages if p.id == m.parent_id), None) for m in read.messages}
    assert parents == {"q1": None, "a1": "q1", "a2": "q1", "a2 more": "a2", "q2": "a1", "q2b": "a1", "a3": "q2b"}
    assert by_source["a1"].content == "Cables ."
    assert by_source["a3"].content == "The City."
    assert by_source["a2"].reasoning == "Statics\n\nArches carry.\n\nAnd piers."
    assert by_source["a1"].reasoning == by_source["a2 more"].reasoning == ""
    assert (by_source["a1"].model, by_source["a2"].model, by_source["q1"].model) == ("gpt-4o", "o3", None)
    assert read.active_message_id == by_source["a3"].id
    assert (read.source, read.title, read.provider_id) == ("chatgpt:c0ffee", "Bridges", None)
    assert read.created_at == "2023-11-14T22:13:20.500000"
    assert read.updated_at == by_source["a3"].created_at == "2023-11-14T22:13:27.000000"
    assert by_source["q2"].created_at == by_source["a1"].created_at, "without a time, that of the parent"
    for current, shown in (("tool", "a2"), ("nowhere", "a3"), (None, "a3")):  # hidden, missing: the newest
        assert parse(bridges() | {"current_node": current}).active_message_id == by_source[shown].id


def workshop() -> dict[str, Any]:
    """A ChatGPT conversation with everything beside plain text."""

    def call(key: str, parent: str, tool: str, text: str, **fields: Any) -> dict[str, Any]:
        made = node(key, parent, "assistant", kind="code", recipient=tool, **fields)
        made["message"]["content"] = {"content_type": "code", "language": "unknown", "text": text}
        return made

    def result(key: str, parent: str, tool: str, content: dict[str, Any], **fields: Any) -> dict[str, Any]:
        made = node(key, parent, "tool", **fields)
        made["message"] |= {"author": {"role": "tool", "name": tool}, "content": content}
        return made

    attachments = [
        {"id": "file-1", "name": "boat.png", "mime_type": "image/png"},
        {"id": "file-2", "name": "plan.pdf", "mime_type": "application/pdf"},
    ]
    plot = {"aggregate_result": {"messages": [{"message_type": "image", "image_url": "file-service://file-plot"}]}}
    canvas = {"name": "Keel", "type": "code/python", "content": "print(1)"}
    updates = {"updates": [{"pattern": ".*", "multiple": False, "replacement": "print(2)"}]}
    spoken = {"content_type": "audio_transcription", "text": "Aloud", "direction": "in"}
    audio = {"content_type": "audio_asset_pointer", "asset_pointer": "sediment://file_a"}
    files = {"attachments": attachments}
    return chatgpt(
        node("q1", None, "user", picture("file-service://file-1"), kind="multimodal_text", metadata=files),
        call("c1", "q1", "python", "print(7)", at=1_700_000_002.0),
        result("r1", "c1", "python", {"content_type": "execution_output", "text": "7"}, metadata=plot),
        node("a1", "r1", "assistant", "Seven \ue200cite\ue202turn0\ue201.", at=1_700_000_003.0),
        node("q2", "a1", "user", spoken, audio, kind="multimodal_text"),
        call("c2", "q2", "canmore.create_textdoc", json.dumps(canvas)),
        result("r2", "c2", "canmore.create_textdoc", {"content_type": "text", "parts": ["Created"]}),
        call("c3", "r2", "canmore.update_textdoc", json.dumps(updates)),
        node("a2", "c3", "assistant", "Done."),
        node("q3", "a2", "user", "Search"),
        call("c5", "q3", "dalle.text2im", "{}"),
        node("drawn", "c5", "tool", picture("file-service://file-9"), "prompt", kind="multimodal_text"),
        call("c4", "drawn", "browser", 'search("x")'),
        result("r4", "c4", "browser", {"content_type": "tether_quote", "url": "https://e.org", "text": "Quoted"}),
        node("q4", "r4", "user", {"content_type": "hologram"}, "And this?", kind="multimodal_text"),
        node("a4", "q4", "assistant", "Odd", kind="sonnet"),
        current="a4",
        default_model_slug="gpt-4o",
        is_starred=True,
        is_archived=True,
        gizmo_id="g-boats",
    )


def test_chatgpt_tools_canvas_and_files_stay_as_text() -> None:
    read = parse(workshop())
    searched = paragraphs(folded("browser", 'search("x")'), folded("browser", "https://e.org\nQuoted"))
    assert [(m.source, m.role, m.content) for m in read.messages] == [
        ("q1", "user", "**plan.pdf** (not imported)\n\n[image missing: boat.png]"),
        ("a1", "assistant", "```python\nprint(7)\n```\n\n```\n7\n```\n\n[image missing: file-plot]\n\nSeven ."),
        ("q2", "user", "Aloud"),
        ("a2", "assistant", "**Keel**\n\n```python\nprint(1)\n```\n\n**Canvas**\n\n```\nprint(2)\n```\n\nDone."),
        ("q3", "user", "Search"),
        ("r4", "assistant", paragraphs(folded("dalle.text2im", "{}"), "[image missing: file-9]", searched)),
        ("q4", "user", "And this?"),
        ("a4", "assistant", "Odd"),
    ]
    assert [m.parent_id for m in read.messages] == [None, *(m.id for m in read.messages[:-1])]
    assert (read.pinned, read.model, read.active_message_id) == (True, "gpt-4o", read.messages[-1].id)
    assert read.losses == {
        **{"document": 1, "image": 3, "code": 1, "citation": 1, "audio": 1, "canvas": 2, "tool call": 3},
        **{"unknown part": 2, "archived": 1, "custom GPT: g-boats": 1},
    }
    found = [file.file for message in convert(workshop(), anything).messages for file in message.attachments]
    images = [f"somewhere/file-service://file-{key}" for key in ("1", "plot", "9")]
    assert found == ["somewhere/file-2", *images]


def test_chatgpt_answers_after_a_step_with_two_versions_stay_versions() -> None:
    chat = chatgpt(
        node("q", None, "user", "?"),
        node("call", "q", "assistant", "x", recipient="browser"),
        node("a", "call", "assistant", "One"),
        node("b", "call", "assistant", "Two"),
        current="b",
    )
    read = parse(chat)
    assert [(m.source, m.parent_id) for m in read.messages] == [("q", None), ("call", 1), ("a", 2), ("b", 2)]
    assert read.active_message_id == 4


def test_chatgpt_circles_and_missing_parents_lose_no_message() -> None:
    chat = chatgpt(
        node("a", "c", "user", "a"),
        node("b", "a", "assistant", "b"),
        node("c", "b", "user", "c"),
        node("self", "self", "user", "self"),
        node("orphan", "gone", "user", "orphan"),
        node("child", "orphan", "assistant", "child"),
        current="c",
    )
    read = parse(chat)
    assert tree(read) == [
        (1, None, "user", "orphan"),
        (2, 1, "assistant", "child"),
        (3, None, "user", "a"),
        (4, 3, "assistant", "b"),
        (5, 4, "user", "c"),
        (6, None, "user", "self"),
    ]


def test_chatgpt_deep_tree_is_read_without_recursion() -> None:
    nodes = [node(str(n), str(n - 1) if n else None, "user" if n % 2 else "assistant", str(n)) for n in range(5000)]
    read = parse(chatgpt(*nodes, current="4999"))
    assert [m.parent_id for m in read.messages] == [None, *range(1, 5000)]


def test_chatgpt_marker_without_an_end_and_private_use_characters_of_questions_stay() -> None:
    marked = "one \ue200cite two \ue200url\ue202T\ue202https://e.org\ue201"
    nodes = node("q", None, "user", "my prompt \ue0b0 \uf015"), node("a", "q", "assistant", marked)
    contents = [message.content for message in parse(chatgpt(*nodes, current="a")).messages]
    assert contents == ["my prompt \ue0b0 \uf015", "one cite two [T](https://e.org)"]


# ---- Open WebUI


def boats() -> dict[str, Any]:
    reasoning = (
        '<details type="reasoning" done="true" duration="3">\n<summary>Thought for 3 seconds</summary>\n'
        "&gt; Is it &lt;wood&gt;?\n&gt; \n&gt; Yes.\n</details>\n"
    )
    usage = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13, "response_token/s": 20.004}
    return openwebui(
        said("u1", None, "user", "Why does it float?", files=[{"type": "image", "url": data_url(png())}]),
        said("a1", "u1", "assistant", reasoning + "It is light.", model="llama3.2", usage=usage, done=True),
        said("a2", "u1", "assistant", "Because.", at=1_710_000_009, model="qwen3", done=False),
        said("a3", "u1", "assistant", "", at=1_710_000_010, model="gone", error={"content": "no such model"}),
        said("u2", "a1", "user", "Thanks", at=1_710_000_100),
        current="u2",
    )


def test_openwebui_tree_has_reasoning_usage_and_images() -> None:
    read = parse(boats())
    assert [(m.source, m.parent_id, m.status) for m in read.messages] == [
        ("u1", None, "complete"),
        ("a1", 1, "complete"),
        ("u2", 2, "complete"),
        ("a2", 1, "interrupted"),
        ("a3", 1, "error"),
    ]
    question, answer, *_, failed = read.messages
    assert [file.data for file in question.attachments] == [png()]
    assert (answer.content, answer.reasoning, answer.model) == ("It is light.", "Is it <wood>?\n\nYes.", "llama3.2")
    assert answer.token_usage == {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
    assert answer.stats == {"reasoning_ms": 3000, "tokens_per_second": 20.0}
    assert failed.error == {"code": "PROVIDER_ERROR", "message": "no such model"}
    assert (read.source, read.title, read.pinned, read.system_prompt) == ("openwebui:b0a7", "Boats", True, "Be kind.")
    assert (read.created_at, read.active_message_id) == ("2024-03-09T16:00:00.000000", 3)


def harbor() -> dict[str, Any]:
    """An Open WebUI chat with everything beside plain text, and answers of two models side by side."""
    tools = (
        'Let me see.\n<details type="tool_calls" done="true" id="1" name="search" arguments="{&quot;q&quot;: &quot;keel&quot;}"'
        ' result="&quot;Found&quot;" files="">\n<summary>Tool Executed</summary>\n</details>\n'
        '<details type="code_interpreter" done="true" duration="7" output="{&quot;stdout&quot;: &quot;7&quot;}">\n'
        "<summary>Analyzed</summary>\n```python\nprint(7)\n```\n</details>\nSo."
    )
    steps = [
        {"content": "Hm.", "phase": "think", "status": "finished", "role": "assistant"},
        {"content": "", "phase": "web_search", "extra": {"q": "keel"}, "role": "assistant"},
        {"content": "From the list.", "phase": "answer", "role": "assistant"},
    ]
    files = [
        {"type": "image", "url": "/api/v1/files/7/content", "name": "boat.png"},
        {"type": "file", "name": "plan.txt", "file": {"filename": "plan.txt", "data": {"content": "A keel."}}},
        {"type": "collection", "id": "c1", "name": "Library"},
    ]
    merged = {"status": True, "content": "Both."}
    return openwebui(
        said("u1", None, "user", "Look", files=files),
        said("a1", "u1", "assistant", tools, model="one", sources=[{"source": {"name": "plan.txt"}}]),
        said("a2", "u1", "assistant", "", model="two", content_list=steps, merged=merged),
        said("x", "a2", "tool", "?"),
        current="a2",
        meta={"tags": ["sea"]},
        folder_id="f1",
        archived=True,
    )


def test_openwebui_tools_files_and_lists_stay_as_text() -> None:
    read = parse(harbor())
    question, first, second = read.messages
    assert question.content == "Look\n\n[image missing: boat.png]\n\n**Library** (not imported)"
    assert [(file.name, file.data) for file in question.attachments] == [("plan.txt", b"A keel.")]
    code, stdout = "```python\nprint(7)\n```", '```json\n{\n  "stdout": "7"\n}\n```'
    assert first.content == paragraphs("Let me see.", folded("search", KEEL, "Found"), code, stdout, "So.")
    assert second.content == paragraphs(folded("web_search", KEEL), "From the list.", "Both.")
    assert (second.reasoning, first.parent_id, second.parent_id) == ("Hm.", question.id, question.id)
    assert ([first.model, second.model], read.active_message_id) == (["one", "two"], second.id)
    assert read.losses == {
        **{"document": 1, "image": 1, "tool call": 2, "code": 1, "citation": 1, "unknown part": 1},
        **{"archived": 1, "tag: sea": 1},
    }
    assert read.folder == "Open WebUI folder f1"
    found = convert(harbor(), anything).messages[0]
    assert [file.file for file in found.attachments] == ["somewhere/boat.png", "", "somewhere/c1_Library"]


def test_openwebui_is_read_as_row_array_import_file_and_chat() -> None:
    row = boats()
    bare = row["chat"] | {"id": "b0a7"}
    expected = tree(parse(row))
    for file in ([row], row, {"chats": [row]}, {"success": True, "data": [row]}, bare, [bare]):  # "data": of Qwen Chat
        (value,) = formats.unpack(file)
        read = parse(value)
        assert tree(read) == expected
        assert read.source == "openwebui:b0a7"


def test_openwebui_prompts_of_newer_and_older_versions_keep_their_variables() -> None:
    text = '{{CLIPBOARD}} on {{CURRENT_DATE}}: {{topic | textarea:placeholder="x"}}'
    older = {"command": "/note", "user_id": "u", "title": "A\nnote", "content": text, "timestamp": 1700000000}
    newer = {"id": "7", "command": "note", "name": "A note", "content": text, "data": {}, "meta": {}, "tags": ["a"]}
    bare = {"command": "/note", "title": "", "content": text}
    for row, name in ((older, "A note"), (newer, "A note"), (bare, "note"), (older | {"title": "x" * 150}, "x" * 100)):
        assert formats.parse(row, nothing) == SavedPrompt(name=name, content=text)
    for change in ({"content": " "}, {"command": "/", "title": ""}, {"content": "x" * 20_001}):
        with pytest.raises(Unreadable, match="is a prompt"):
            formats.parse(older | change, nothing)


def test_openwebui_chat_of_older_versions_is_a_list() -> None:
    rows = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "id": "same"}]
    chat = {"title": "Old", "models": ["x"], "messages": [*rows, {"role": "user", "content": "c", "id": "same"}]}
    for value in ({"id": "1", "chat": chat}, chat | {"id": "1"}):
        assert tree(parse(value)) == [(1, None, "user", "a"), (2, 1, "assistant", "b"), (3, 2, "user", "c")]


def test_openwebui_details_without_an_end_stay_text_and_take_linear_time() -> None:
    opening = '<details type="reasoning"'
    for text in (opening, f"{opening}>never", '<details type="tool_calls" a="b">x</detail>', opening * 8000):
        assert parse(openwebui(said("a", None, "assistant", text), current="a")).messages[0].content == text


# ---- what may be wrong with any of them


def test_title_is_the_first_question_when_there_is_none_and_is_cut() -> None:
    question = "What is a delta, and how does it come about where a river meets the sea?"
    read = parse(lmstudio(turn(asked(question)), name=None))
    assert (read.title, read.named) == ("What is a delta, and how does it come about where a river…", False)
    assert parse(exported() | {"title": " \n "}).title == "Why does it float?"
    assert parse(exported() | {"title": " ", "messages": [], "active_message_id": None}).title == "New conversation"
    assert len(parse(lmstudio(turn(asked("?")), name="x" * 5000)).title) == 200


def test_long_question_is_refused() -> None:
    assert len(parse(lmstudio(turn(asked("?" * 200_000)))).messages[0].content) == 200_000
    with pytest.raises(Unreadable, match="200,001 characters"):
        parse(lmstudio(turn(asked("?" * 200_001))))
    assert len(parse(lmstudio(turn(asked("?")), turn(answered(block("!" * 300_000))))).messages[1].content) == 300_000


def test_what_the_database_cannot_hold_is_replaced() -> None:
    chat = lmstudio(turn(asked("a\0b \ud83d c \ud83d\ude00")), name="\udc00")
    read = parse(decode(json.dumps(chat).encode()))
    assert (read.messages[0].content, read.title) == ("a\ufffdb \ufffd c \U0001f600", "\ufffd")
    assert clean("\ud83d\ude00") == "\U0001f600"
    assert decode(b'{"a": "\xff\n"}') == {"a": "\ufffd\n"}, "bytes that are not UTF-8"
    assert decode(b"[NaN, 1e999, -Infinity]") == [None, None, None]


def test_what_is_not_json_or_not_a_conversation_is_refused_without_the_words_of_a_library() -> None:
    for data in (b"", b"{", b"\xff\xfe{\x00}\x00", b"[" * 100_000, b"nul", b"1" * 10_000):
        with pytest.raises(ValueError, match=r"\Ais (not valid JSON|nested too deeply)\Z"):
            decode(data)
    others: tuple[Any, ...] = (None, 1, "text", [], {}, {"messages": []}, [{"mapping": {}}], {"title": "user.json"})
    for value in others:
        with pytest.raises(Unreadable, match=r"is not a conversation of Fireside, ChatGPT, .* or OpenAI's API"):
            parse(value)


ODD = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)  # as what formats.decode reads
    | st.text()
    | st.sampled_from(
        ["a1", "q1", "user", "assistant", 10**400, -1, 1e308, "\ud800", "\0", [], {}, [[]], [{}], {"a": []}]
    )
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in items for place in places(item, (*path, key)))]


def exported() -> dict[str, Any]:
    read = parse(boats())
    read.settings = {"temperature": 0.5, "stop": ["x"]}
    return dict(decode(msgspec.json.encode(read)))


def rows_of(program: Program) -> Iterator[dict[str, Any]]:
    """Return the conversations of a program's file as they reach its `parse`."""
    data = program.write(program.talk)
    if data.startswith(MAGIC):
        with contextlib.closing(open_untrusted(data)) as conn:
            yield from formats.read_database(Reader(conn))
        return
    rows = [row for element in split(iter([data])) for row in formats.unpack(decode(element or b""))]
    format = formats.of_message(rows[0])
    yield from format.join(rows, lambda name: JAN_THREAD) if format else rows


SAMPLES = {f"{program.name} {number}": row for program in PROGRAMS for number, row in enumerate(rows_of(program))} | {
    "chatgpt": bridges(),
    "openwebui": boats(),
    "lmstudio tools": tools(),
    "chatgpt tools": workshop(),
    "openwebui tools": harbor(),
    "fireside": exported(),
}


@settings(max_examples=200)
@given(st.data())
def test_any_change_of_fields_is_read_or_refused(data: st.DataObject) -> None:
    value = copy.deepcopy(SAMPLES[data.draw(st.sampled_from(sorted(SAMPLES)))])
    for _ in range(data.draw(st.integers(1, 4))):
        *path, last = data.draw(st.sampled_from(places(value)[1:]))
        holder: Any = value
        for key in path:
            holder = holder[key]
        if isinstance(holder, dict) and data.draw(st.booleans()):
            del holder[last]
            if not value:
                break
        else:
            holder[last] = copy.deepcopy(data.draw(ODD))  # what is drawn may be changed in the next round
    try:
        read = convert(value, anything)
    except Unreadable as error:
        assert str(error)
        return
    known: set[int | None] = {None}
    for message in read.messages:
        assert message.parent_id in known
        assert message.id not in known
        known.add(message.id)
        clean(message.content).encode()
    assert read.active_message_id in known
    assert 0 < len(read.title) <= 200 or "fireside" in value
    read.losses = {}  # of the program's file, not of the conversation
    again = parse(decode(msgspec.json.encode(read)))
    assert again == read


class Words:
    """Makes words that a file contains, and counts those that are in no text of its conversation."""

    def __init__(self, data: st.DataObject) -> None:
        self.words: list[str] = []
        self._data = data

    def word(self) -> str:
        self.words.append(f"word{len(self.words)}x")
        return self.words[-1]

    def pick(self, *choices: Any) -> Any:
        """Return one of these, which is called when it is a function."""
        choice = self._data.draw(st.sampled_from(choices))
        return choice() if callable(choice) else choice

    def some(self, *choices: Any) -> list[Any]:
        return [self.pick(*choices) for _ in range(self._data.draw(st.integers(0, 4)))]

    def text(self) -> dict[str, str]:
        return {"type": "text", "text": self.word()}

    def missing(self, read: Conversation) -> list[str]:
        texts = " ".join(text for message in read.messages for text in (message.content, message.reasoning))
        files = [file for message in read.messages for file in message.attachments]
        texts += " ".join(f"{file.name} {file.data.decode()}" for file in files)
        return [word for word in self.words if word not in texts]


def chatgpt_of(words: Words) -> dict[str, Any]:
    nodes: list[dict[str, Any]] = []
    for key in "abcdef":
        role = words.pick("user", "assistant", "tool")
        made = node(key, words.pick(None, *(other["id"] for other in nodes)), role)
        kind = words.pick("text", "multimodal_text", "code", "execution_output", "tether_quote", "thoughts", "sonnet")
        content: dict[str, Any] = {"content_type": kind}
        texts: tuple[Any, ...] = (words.word, lambda: {"content_type": "audio_transcription", "text": words.word()})
        others: tuple[Any, ...] = (lambda: picture(f"sediment://{words.word()}"), {"content_type": "hologram"})
        if kind == "thoughts" and role == "assistant":
            content["thoughts"] = [{"summary": words.word(), "content": words.word()}]
        elif kind in ("text", "multimodal_text"):
            content["parts"] = words.some(*(texts if role == "tool" else (*texts, *others)))
        else:
            content["text"] = words.word()
        made["message"]["content"] = content
        made["message"]["author"]["name"] = words.pick("python", "browser") if role == "tool" else None
        made["message"]["recipient"] = words.pick("all", "python", "browser", "canmore.create_textdoc")
        nodes.append(made)
    return chatgpt(*nodes, current="f")


def lmstudio_of(words: Words) -> dict[str, Any]:
    def file() -> dict[str, Any]:
        return {"type": "file", "fileIdentifier": words.word(), "fileType": words.pick("image", "pdf", "text")}

    def call() -> dict[str, Any]:
        fields = {"name": words.word(), "parameters": {"q": words.word()}, "callId": words.pick(1, 2)}
        return {"type": "toolCallRequest"} | fields

    def result() -> dict[str, Any]:
        key: dict[str, Any] = words.pick({}, {"callId": 1}, {"toolCallId": 2})
        return {"type": "toolCallResult", "content": words.word()} | key

    parts = (words.text, file, call, result, lambda: {"type": "hologram", "text": words.word()})

    def step() -> dict[str, Any]:
        return {
            "type": "contentBlock",
            "content": words.some(*parts),
            **words.pick({}, {"style": {"type": "thinking"}}),
        }

    def version() -> Any:
        return words.pick(lambda: answered(*words.some(step)), lambda: asked("") | {"content": words.some(*parts)})

    return lmstudio(*(turn(*words.some(version)) for _ in range(3)))


def openwebui_of(words: Words) -> dict[str, Any]:
    thought = '<details type="reasoning" done="true">\n<summary>x</summary>\n> {}\n</details>\n{}'
    call = '<details type="tool_calls" name="{}" arguments="{}" result="{}"></details>'
    code = '<details type="code_interpreter" output="{}"><summary>x</summary>{}</details>'

    def answer() -> Any:
        form: str = words.pick("{}", "", thought, call, code)
        return form.format(*(words.word() for _ in range(form.count("{}"))))

    def picture() -> dict[str, Any]:
        return {"type": "image_url", "image_url": {"url": f"/{words.word()}"}}

    def file() -> Any:
        kind = words.pick("image", "file", "collection")
        return {"type": kind, "name": words.word(), "file": {"data": {"content": words.pick("", words.word)}}}

    def step() -> Any:
        return {"phase": words.pick("think", "answer", "web_search"), "content": words.word()}

    messages: list[dict[str, Any]] = []
    for key in "abcd":
        role = words.pick("user", "assistant")
        parent = words.pick(None, *(other["id"] for other in messages))
        content = words.some(words.text, picture) if role == "user" else answer()
        steps = words.some(step) if role == "assistant" else []
        messages.append(said(key, parent, role, content, files=words.some(file), content_list=steps))
    return openwebui(*messages, current="d")


@settings(max_examples=100)
@given(st.data(), st.sampled_from([chatgpt_of, lmstudio_of, openwebui_of]))
def test_every_word_of_a_file_is_imported_or_counted_as_lost(data: st.DataObject, make: Any) -> None:
    words = Words(data)
    value = make(words)
    try:
        read = parse(value)
    except Unreadable as error:
        assert str(error) == "has no messages"  # and so it is reported
        return
    assert len(words.missing(read)) <= sum(read.losses.values()), words.missing(read)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"fireside": 3}, "newer Fireside"),
        ({"created_at": "2024-02-30T00:00:00.000000"}, "a field is missing or wrong"),
        ({"settings": {"temperature": 3}}, "temperature is missing or wrong"),
        ({"settings": {"unknown": 3}}, "a field is missing or wrong"),
        ({"settings": {"seed": None}}, "a setting is empty"),
        ({"active_message_id": 99}, "its active message is missing"),
        ({"messages": [{"id": 1, "parent_id": 2}]}, r"messages\[0\] is missing or wrong"),
        ({"title": None}, "title is missing or wrong"),
        ({"system_prompt": "\ud800"}, "not Unicode"),
        ({"settings": {"response_format": {"a": 10**400}}}, "a field is missing or wrong"),
    ],
)
def test_fireside_form_with_a_wrong_field_is_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        parse(exported() | change)


@pytest.mark.parametrize(
    ("kind", "change", "reason"),
    [
        ("prompt", {"name": " "}, "name"),
        ("prompt", {"name": "x" * 101}, "name"),
        ("preset", {"name": []}, "name"),
        ("prompt", {"content": "x" * 20_001}, "content"),
        ("prompt", {"content": "\n"}, "content"),
        ("prompt", {"content": None}, "content"),
        ("prompt", {"saved": "skill"}, "saved"),
        ("prompt", {"saved": {}}, "saved"),
        ("prompt", {"fireside": "1"}, "fireside"),
        ("preset", {"settings": {"seed": "x"}}, "settings.seed"),
        ("preset", {"settings": {"tools": []}}, "settings"),
        ("preset", {"settings": 1}, "settings"),
        ("preset", {"system_prompt": "x" * 100_001}, "system_prompt"),
        ("preset", {"model": ""}, "model"),
    ],
)
def test_saved_prompts_and_presets_with_a_wrong_field_are_refused(
    kind: str, change: dict[str, Any], reason: str
) -> None:
    good = {"fireside": 1, "saved": kind, "name": "a\0b"} | ({"content": "x"} if kind == "prompt" else {})
    read = formats.parse(good, nothing)
    assert not isinstance(read, Conversation) and read.name == "a\ufffdb"
    with pytest.raises(Unreadable, match=f"^is not as Fireside writes it: {reason} is missing or wrong$"):
        formats.parse(good | change, nothing)
    for change, reason in (({"fireside": 3}, "newer Fireside"), ({"name": "\ud800"}, "not Unicode")):
        with pytest.raises(Unreadable, match=reason):
            formats.parse(good | change, nothing)


@pytest.mark.parametrize(
    "change",
    [
        {"parent_id": 5},
        {"id": 2},
        {"role": "system"},
        {"status": "generating"},
        {"created_at": "yesterday"},
        {"token_usage": {"prompt_tokens": 1}},
        {"stats": {"total_ms": "1"}},
        {"stats": {"omitted_messages": -5}},
        {"stats": {"more": "x" * 70_000}},
        {"error": {"code": "X"}},
        {"attachments": [{"id": 1, "name": "a.pdf"}]},
        {"attachments": [{"id": 0, "file": "x.pdf"}]},
        {"citations": [{"start": 0, "end": 5, "status": "perhaps"}]},
        {"citations": [{"start": -1, "end": 5, "status": "found"}]},
        {"sent_pages": [{"attachment_id": 1, "pages": [[1]]}]},
        {"sent_pages": [{"attachment_id": 1, "pages": [[1, 2]] * 200_000}]},
        {"content": "x" * 2_000_001},
    ],
)
def test_fireside_form_with_a_wrong_message_is_refused(change: dict[str, Any]) -> None:
    value = exported()
    value["messages"][0] |= change
    with pytest.raises(Unreadable):
        parse(value)


DONE = {"event": "done", "data": {"status": "ok"}}


@pytest.mark.parametrize(
    ("log", "fits"),
    [
        ([-19, 5, 7, DONE], True),
        ([-19, 12], False),
        ([-19, 11, DONE], False),
        ([12, DONE], False),
        ([-19, 0, 12, DONE], False),
        ([-19, 12, {"event": "x\ndata: y", "data": {}}, DONE], False),
        ([-19, 12, {"event": "done"}], False),
    ],
)
def test_a_log_that_does_not_fit_is_dropped_and_the_answer_stays(log: list[Any], fits: bool) -> None:
    value = exported()
    value["messages"][1]["generation"] = {"id": "g", "provider_id": "p", "model": "m", "params": {}, "log": log}
    answer = parse(value).messages[1]
    assert (len(answer.reasoning), len(answer.content)) == (19, 12)
    assert (answer.generation is not None) == fits
