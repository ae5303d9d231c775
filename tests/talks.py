"""A conversation as plain facts, and how each program writes it. Tests compare what was imported with the facts."""

import html
import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from . import exports

ROOT = "00000000-0000-4000-8000-000000000000"  # the parent that first messages name
START = 1_720_000_000


class Said(NamedTuple):
    key: str
    parent: str | None
    role: str
    text: str
    at: int  # seconds since 1970
    model: str = ""
    reasoning: str = ""


Talk = list[Said]

LINEAR = [
    Said("u1", None, "user", "Why does a boat float?", START, ""),
    Said("a1", "u1", "assistant", "It displaces water.\n\n```py\nprint(1)\n```", START + 5, "glide-2", "Archimedes."),
    Said("u2", "a1", "user", "And a stone?", START + 60, ""),
    Said("a2", "u2", "assistant", "It sinks. 🪨", START + 65, "glide-2"),
]
BRANCHED = [
    *LINEAR,
    Said("b1", "u1", "assistant", "Because it is light.", START + 10, "glide-1"),
    Said("u3", "b1", "user", "Is a ship light?", START + 90, ""),
    Said("a3", "u3", "assistant", "No, but it is mostly air.", START + 95, "glide-1"),
]
SWIPED = [*LINEAR, Said("b2", "u2", "assistant", "It goes down.", START + 65, "glide-2")]


def iso(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def lines(rows: Iterable[Any]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def encoded(value: Any, indent: int | None = None) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=indent).encode()


def children(talk: Talk, key: str | None) -> Talk:
    return [said for said in talk if said.parent == key]


# ---- one function for each shape


def claude(talk: Talk) -> bytes:
    def message(said: Said) -> dict[str, Any]:
        blocks: list[dict[str, Any]] = [{"type": "text", "text": said.text, "citations": []}]
        if said.reasoning:
            blocks.insert(0, {"type": "thinking", "thinking": said.reasoning, "summaries": [{"summary": "Thinking"}]})
        return {
            "uuid": said.key,
            "text": said.text,
            "content": blocks,
            "sender": "human" if said.role == "user" else "assistant",
            "created_at": iso(said.at),
            "updated_at": iso(said.at),
            "attachments": [],
            "files": [],
            "parent_message_uuid": said.parent or ROOT,
        }

    row = {"uuid": "c1", "name": "Boats", "created_at": iso(START), "account": {"uuid": "me"}}
    return encoded([row | {"updated_at": iso(START), "chat_messages": [message(said) for said in talk]}])


def _librechat(said: Said) -> dict[str, Any]:
    parts = [{"type": "think", "think": said.reasoning}, {"type": "text", "text": said.text}]
    return {
        "messageId": said.key,
        "parentMessageId": said.parent or "00000000-0000-0000-0000-000000000000",
        "conversationId": "l1",
        "isCreatedByUser": said.role == "user",
        "sender": "User" if said.role == "user" else "Software Engineer",
        "text": "" if said.reasoning else said.text,
        "content": parts if said.reasoning else None,
        "model": said.model or None,
        "createdAt": iso(said.at),
        "error": False,
        "unfinished": False,
    }


def _librechat_file(name: str, messages: list[Any], recursive: bool) -> bytes:
    head = {"conversationId": "l1", "endpoint": "openAI", "title": "Boats", "exportAt": "13:18:04 GMT-0400"}
    options = {"model": "glide-2", "promptPrefix": "Be kind."}
    return encoded(head | {"branches": True, "recursive": recursive, "options": options, name: messages})


def librechat_flat(talk: Talk) -> bytes:
    return _librechat_file("messages", [_librechat(said) for said in talk], False)


def librechat_tree(talk: Talk, name: str = "messagesTree") -> bytes:
    def nested(key: str | None) -> list[dict[str, Any]]:
        return [_librechat(said) | {"children": nested(said.key)} for said in children(talk, key)]

    return _librechat_file(name, nested(None), True)


def librechat_nested(talk: Talk) -> bytes:
    return librechat_tree(talk, "messages")


def llamacpp(talk: Talk) -> bytes:
    root = {"id": "root", "convId": "p1", "type": "root", "role": "system", "content": "", "parent": None}
    messages: list[dict[str, Any]] = [root | {"timestamp": START * 1000, "children": []}]
    for said in talk:
        messages.append(
            {
                "id": said.key,
                "convId": "p1",
                "type": "text",
                "timestamp": said.at * 1000,
                "role": said.role,
                "content": said.text,
                "parent": said.parent or "root",
                "thinking": said.reasoning,
                "children": [child.key for child in children(talk, said.key)],
            }
            | ({"model": said.model} if said.model else {})
        )
    conversation = {"id": "p1", "name": "Boats", "lastModified": START * 1000, "currNode": talk[-1].key}
    return encoded({"conv": conversation, "messages": messages}, indent=2)


def jan(talk: Talk) -> bytes:
    def message(said: Said) -> dict[str, Any]:
        parts: list[dict[str, Any]] = (
            [{"type": "reasoning", "text": {"value": said.reasoning, "annotations": []}}] if said.reasoning else []
        )
        parts.append({"type": "text", "text": {"value": said.text, "annotations": []}})
        row = {"id": said.key, "object": "thread.message", "thread_id": "j1", "role": said.role, "content": parts}
        times = {"created_at": said.at * 1000, "completed_at": said.at * 1000}
        return row | times | {"status": "ready", "metadata": {"modelId": said.model} if said.model else {}}

    return lines(map(message, talk))


JAN_THREAD = {
    "id": "j1",
    "object": "thread",
    "title": "Boats",
    "assistants": [{"id": "jan", "name": "Jan", "instructions": "Be kind.", "model": {"id": "*"}}],
    "created": START,
    "updated": START,
    "metadata": {},
}


def gemini(talk: Talk) -> bytes:
    def record(asked: Said, answer: Said) -> dict[str, Any]:
        row: dict[str, Any] = {"header": "Gemini Apps", "title": f"Prompted {asked.text}", "time": iso(asked.at)}
        text, _, code = html.escape(answer.text).partition("\n\n```py\n")
        block = f'<pre><code class="language-py">{code.removesuffix("```")}</code></pre>\n' if code else ""
        answered = f"<p>{text}</p>\n{block}"
        return row | {"products": ["Gemini Apps"], "safeHtmlItem": [{"html": answered}], "activityControls": ["Gemini"]}

    return encoded([record(*pair) for pair in zip(talk[::2], talk[1::2], strict=True)][::-1], indent=2)


def sillytavern(talk: Talk) -> bytes:
    rows: list[dict[str, Any]] = [
        {"user_name": "You", "character_name": "Boats", "create_date": "2024-07-03@09h46m40s", "chat_metadata": {}}
    ]
    parent: str | None = None
    while versions := children(talk, parent):
        said = versions[0]
        extras = [
            {"api": "llamacpp", "model": one.model, "reasoning": one.reasoning} if one.role == "assistant" else {}
            for one in versions
        ]
        row: dict[str, Any] = {
            "name": "You" if said.role == "user" else "Boats",
            "is_user": said.role == "user",
            "is_system": False,
        }
        row |= {"send_date": iso(said.at), "mes": said.text, "extra": extras[0]}
        if said.role == "assistant":
            row |= {"swipe_id": 0, "swipes": [one.text for one in versions]}
            facts = zip(versions, extras, strict=True)
            row["swipe_info"] = [{"send_date": iso(one.at), "extra": extra} for one, extra in facts]
        rows.append(row)
        parent = said.key
    return lines(rows)


def _openai(said: Said) -> dict[str, Any]:
    return {"role": said.role, "content": said.text} | ({"reasoning_content": said.reasoning} if said.reasoning else {})


def openai(talk: Talk) -> bytes:
    return encoded(list(map(_openai, talk)), indent=2)


def openai_lines(talk: Talk) -> bytes:
    return lines(map(_openai, talk))


def openai_requests(talk: Talk) -> bytes:
    system = {"role": "system", "content": "Be kind."}
    return lines([{"model": "glide-2", "messages": [system, *map(_openai, talk)]}])


def database(tables: Mapping[str, list[Any]]) -> bytes:
    with sqlite3.connect(":memory:") as conn:
        for table, rows in tables.items():
            columns = list(dict.fromkeys(name for row in rows for name in row)) or ["id", "message_id"]
            quoted = ", ".join(f'"{name}"' for name in columns)
            conn.execute(f"CREATE TABLE {table} ({quoted})")
            for row in rows:
                marks = ", ".join("?" * len(columns))
                conn.execute(f"INSERT INTO {table} VALUES ({marks})", [row.get(name) for name in columns])
        conn.commit()
        return conn.serialize()


def llm_responses(talk: Talk, **more: list[Any]) -> bytes:
    """The database of llm until version 0.31. A response has the question, and no time of its own."""
    rows = [
        {
            "id": f"r{number:04}",
            "model": answer.model,
            "prompt": asked.text,
            "system": "Be kind.",
            "response": answer.text,
            "reasoning": answer.reasoning,
            "conversation_id": "m1",
            "datetime_utc": iso(asked.at)[:-1] + "+00:00",
            "duration_ms": 5000,
            "input_tokens": 7,
            "output_tokens": 3,
        }
        for number, (asked, answer) in enumerate(zip(talk[::2], talk[1::2], strict=True))
    ]
    conversation = {"id": "m1", "name": "Boats", "model": "glide-2"}
    return database({"conversations": [conversation], "responses": rows, **more})


def llm_threads(talk: Talk, **more: list[Any]) -> bytes:
    """The database of llm since version 0.32: a tree of messages, and a turn for each answer."""
    messages = [{"hash": said.key, "parent_hash": said.parent, "role": said.role} for said in talk]
    parts = [
        {"id": number, "message_hash": said.key, "position": position, "type": kind, "text": text, "payload": None}
        for number, said in enumerate(talk)
        for position, (kind, text) in enumerate((("reasoning", said.reasoning), ("text", said.text)))
        if text
    ]
    turns = [
        {
            "id": f"t{number:04}",
            "thread_id": "m2",
            "parent_message_hash": said.parent,
            "tip_message_hash": said.key,
            "model": said.model,
            "datetime_utc": iso(said.at)[:-1] + "+00:00",
            "input_tokens": 7,
            "output_tokens": 3,
            "duration_ms": 5000,
        }
        for number, said in enumerate(talk)
        if said.role == "assistant"
    ]
    thread = {"id": "m2", "name": "Boats", "tip_message_hash": talk[-1].key}
    return database({"threads": [thread], "turns": turns, "messages": messages, "parts": parts, **more})


def ollama(talk: Talk, **more: list[Any]) -> bytes:
    rows = [
        {
            "id": number,
            "chat_id": "o1",
            "role": said.role,
            "content": said.text,
            "thinking": said.reasoning,
            "model_name": said.model or None,
            "created_at": iso(said.at)[:-5].replace("T", " ") + ".000000000+00:00",
        }
        for number, said in enumerate(talk, 1)
    ]
    chat = {"id": "o1", "title": "Boats", "created_at": iso(START)[:-5].replace("T", " "), "browser_state": None}
    return database({"chats": [chat], "messages": rows, "tool_calls": [], "attachments": [], **more})


def chatgpt(talk: Talk) -> bytes:
    nodes: list[dict[str, Any]] = []
    for said in talk:
        parent = said.parent
        if said.reasoning:
            nodes.append(exports.thoughts(f"thoughts of {said.key}", parent or "", ("", said.reasoning)))
            parent = nodes[-1]["id"]
        facts = {"model_slug": said.model} if said.model else {}
        nodes.append(exports.node(said.key, parent, said.role, said.text, at=said.at, metadata=facts))
    return encoded([exports.chatgpt(*nodes, current=talk[-1].key, title="Boats")])


def openwebui(talk: Talk) -> bytes:
    def message(said: Said) -> dict[str, Any]:
        block = f'<details type="reasoning" done="true">\n<summary>Thought</summary>\n> {said.reasoning}\n</details>\n'
        content = (block if said.reasoning else "") + said.text
        return exports.said(
            said.key, said.parent, said.role, content, said.at, **({"model": said.model} if said.model else {})
        )

    return encoded([exports.openwebui(*map(message, talk), current=talk[-1].key)])


def lmstudio(talk: Talk) -> bytes:
    def version(said: Said) -> dict[str, Any]:
        if said.role == "user":
            return exports.asked(said.text)
        thinking = [exports.block(said.reasoning, thinking=True)] if said.reasoning else []
        return exports.answered(*thinking, exports.block(said.text), sender=said.model)

    turns: list[dict[str, Any]] = []
    parent: str | None = None
    while versions := children(talk, parent):
        turns.append(exports.turn(*map(version, versions)))
        parent = versions[0].key
    return encoded(exports.lmstudio(*turns, name="Boats"))


# ---- all of them


class Program(NamedTuple):
    name: str
    file: str
    write: Callable[[Talk], bytes]
    talk: Talk  # what this program can hold: branches, versions of answers, or neither
    keeps: tuple[str, ...] = ("at", "model", "reasoning", "title")


PROGRAMS = (
    Program("ChatGPT", "chatgpt/conversations.json", chatgpt, BRANCHED),
    Program("Open WebUI", "openwebui/chats.json", openwebui, BRANCHED),
    Program("LM Studio", "conversations/17.conversation.json", lmstudio, SWIPED, ("model", "reasoning", "title")),
    Program("Claude", "claude/conversations.json", claude, BRANCHED, ("at", "reasoning", "title")),
    Program("LibreChat flat", "librechat/flat.json", librechat_flat, BRANCHED),
    Program("LibreChat tree", "librechat/tree.json", librechat_tree, BRANCHED),
    Program("LibreChat nested", "librechat/nested.json", librechat_nested, BRANCHED),
    Program("llama.cpp", "llamacpp.json", llamacpp, BRANCHED),
    Program("Jan", "threads/j1/messages.jsonl", jan, LINEAR),
    Program("Gemini", "Takeout/My Activity/Gemini Apps/MyActivity.json", gemini, LINEAR, ()),
    Program("SillyTavern", "chats/Boats/Boats - 2024.jsonl", sillytavern, SWIPED),
    Program("OpenAI array", "openai/array.json", openai, LINEAR, ("reasoning",)),
    Program("OpenAI lines", "openai/lines.jsonl", openai_lines, LINEAR, ("reasoning",)),
    Program("OpenAI requests", "openai/requests.jsonl", openai_requests, LINEAR, ("reasoning",)),
    Program("Ollama", "ollama/db.sqlite", ollama, LINEAR),
    Program("llm responses", "llm/old.db", llm_responses, LINEAR, ("model", "reasoning", "title")),
    Program("llm threads", "llm/logs.db", llm_threads, BRANCHED, ("model", "reasoning", "title")),
)


def write_all(folder: Path) -> None:
    for program in PROGRAMS:
        path = folder / program.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(program.write(program.talk))
    (folder / "threads/j1/thread.json").write_bytes(encoded(JAN_THREAD))
