"""Open WebUI: an array of rows, each with its `chat`; or one row, or a chat alone. Its saved prompts are another export, an array too."""

import html
import re
from collections.abc import Iterator
from typing import Any

from ...backends.loose import array_at, object_at, objects_at, text_at
from ...queries.types import NAME_CHARACTERS, PROMPT_CHARACTERS, folder_name
from ..transcript import Attachment, Conversation, Message, SavedPrompt, Unreadable
from . import common
from .common import File, FindFile


def matches(row: dict[str, Any]) -> bool:
    objects = isinstance(row.get("chat"), dict) or isinstance(row.get("history"), dict)
    return objects or isinstance(row.get("models"), list) or _is_prompt(row)


def _is_prompt(row: dict[str, Any]) -> bool:
    return isinstance(row.get("command"), str) and isinstance(row.get("content"), str)


def parse(row: dict[str, Any], find_file: FindFile) -> Conversation | SavedPrompt:
    if _is_prompt(row):
        return _parse_prompt(row)
    chat = object_at(row, "chat") or row
    _note_organization(row, chat)
    folder_id = text_at(row, "folder_id")  # an export of chats has no names of folders
    nodes, current = _nodes(chat)
    messages, active = common.read_tree(
        nodes, lambda node: _read_message(node, find_file), parent="parentId", children="childrenIds", shown=current
    )
    prompts = [text_at(chat, "params", "system"), text_at(chat, "system")]
    prompts += [text_at(node, "content") for node in nodes.values() if node.get("role") == "system"]
    return common.finish(
        source=common.identity("openwebui", row.get("id"), chat.get("id"), *nodes),
        title=common.line_at(row, "title") or common.line_at(chat, "title"),
        created_at=common.time_at(row, "created_at") or common.time_at(chat, "timestamp"),
        pinned=row.get("pinned") is True,
        folder=folder_name(text_at(row, "folder", "name") or (folder_id and f"Open WebUI folder {folder_id[:8]}")),
        system_prompt=next(filter(None, prompts), ""),
        messages=messages,
        active=active,
    )


def _parse_prompt(row: dict[str, Any]) -> SavedPrompt:
    """Read a saved prompt. Its name was `title` until 2025, and `command` began with a slash. Variables stay as they are."""
    name = common.line_at(row, "name") or common.line_at(row, "title") or common.line_at(row, "command").lstrip("/")
    content = text_at(row, "content")
    if not (name.strip() and content.strip()):
        raise Unreadable("is a prompt without a name or a text")
    if len(content) > PROMPT_CHARACTERS:
        raise Unreadable(f"is a prompt of {len(content):,} characters; at most {PROMPT_CHARACTERS:,} are allowed")
    return SavedPrompt(name=name[:NAME_CHARACTERS], content=content)


def _nodes(chat: dict[str, Any]) -> tuple[dict[str, dict[str, Any]], str]:
    """Return the tree, or the list of older versions as a tree, and the key of the current message."""
    tree = object_at(chat, "history", "messages")
    if tree:
        return {text_at(key): object_at(node) for key, node in tree.items()}, text_at(chat, "history", "currentId")
    nodes = common.linked(objects_at(chat, "messages"), "id")
    nodes = {key: node | {"parentId": node["parent"], "childrenIds": []} for key, node in nodes.items()}
    return nodes, next(reversed(nodes), "")


def _note_organization(row: dict[str, Any], chat: dict[str, Any]) -> None:
    """Count what the database has no place for: the tags, and that a chat is archived."""
    if row.get("archived") is True:
        common.note_loss("archived")
    tags = [*array_at(row, "meta", "tags"), *array_at(chat, "tags")]
    for tag in dict.fromkeys(text_at(tag) or text_at(tag, "name") for tag in tags):
        common.note_loss("tag", tag)


def _read_message(node: dict[str, Any], find_file: FindFile) -> Message | None:
    role = node.get("role")
    if role not in common.ROLES:
        if role != "system":
            common.note_loss("unknown part")
        return None
    parts = objects_at(node, "content")
    text = text_at(node, "content") or common.joined(*(text_at(part, "text") for part in parts), by="\n")
    content, reasoning, seconds = _without_details(text) if role == "assistant" else (text, "", 0)
    if role == "assistant":
        content, reasoning = _with_list(node, content, reasoning)
        content = common.joined(content, text_at(node, "merged", "content"))
        for _ in objects_at(node, "sources"):
            common.note_loss("citation")
    failure = node.get("error")
    facts = object_at(node, "usage") or object_at(node, "info")
    counts = (next((facts[name] for name in names if name in facts), None) for names in _COUNTS)
    return common.new_message(
        role,
        common.time_at(node, "timestamp"),
        content,
        _read_files(node, parts, find_file),
        reasoning=reasoning,
        failure=text_at(failure) or text_at(failure, "content") or common.FAILED if failure else "",
        status="interrupted" if node.get("done") is False else "complete",
        model=text_at(node, "model") or text_at(node, "modelName") or None,
        token_usage=common.token_usage(*counts),
        stats=common.known(
            reasoning_ms=seconds * 1000 or None,
            total_ms=common.milliseconds_at(facts, "total_duration", seconds=1e-9),
            tokens_per_second=common.rate_at(facts, "response_token/s"),
        ),
    )


_COUNTS = (  # the names that OpenAI's API, Anthropic's and Ollama's have for each
    ("prompt_tokens", "input_tokens", "prompt_eval_count"),
    ("completion_tokens", "output_tokens", "eval_count"),
    ("total_tokens",),
)


def _with_list(node: dict[str, Any], content: str, reasoning: str) -> tuple[str, str]:
    """Return content and reasoning of an answer of Qwen Chat, which may be in `content_list`, a step in each element."""
    texts: list[str] = []
    thoughts: list[str] = []
    for step in objects_at(node, "content_list"):
        phase, text = text_at(step, "phase"), text_at(step, "content")
        if phase in ("think", "thinking_summary"):
            thoughts.append(text)
        elif phase in ("", "answer"):
            texts.append(text)
        elif text or step.get("extra"):
            texts.append(common.tool_block(phase, step.get("extra"), text))
    listed, thought = common.joined(*texts), common.joined(*thoughts)
    return (
        listed if content.strip() in listed else common.joined(content, listed),
        thought if reasoning.strip() in thought else common.joined(reasoning, thought),
    )


def _read_files(node: dict[str, Any], parts: list[dict[str, Any]], find_file: FindFile) -> Iterator[File]:
    """Yield the files. A document has its text in the message, if not its file in the zip."""
    urls = [url for part in parts if (url := text_at(part, "image_url", "url"))]
    for file in [*({"type": "image", "url": url} for url in urls), *objects_at(node, "files")]:
        url, inner = text_at(file, "url"), object_at(file, "file")
        names = (text_at(file, "name"), text_at(inner, "filename"), text_at(inner, "meta", "name"))
        name = next(filter(None, names), "")
        image = common.image_from_url(url)
        if image or file.get("type") == "image" or text_at(file, "content_type").startswith("image/"):
            name = name or ("" if url.startswith("data:") else url)
            found = image or _find(file, name, find_file) or (find_file(name) if name else None)
            yield File("image", name, found)
        else:
            name, content = name or text_at(file, "id"), text_at(inner, "data", "content") or text_at(file, "content")
            yield File("document", name, _find(file, name, find_file) or common.text_file(name, content))


def _find(file: dict[str, Any], name: str, find_file: FindFile) -> Attachment | None:
    """Find a file among the uploads of Open WebUI, each of which is stored as its id, "_" and its name."""
    key = text_at(file, "file", "id") or text_at(file, "id")
    return find_file(f"{key}_{name}") if key and name else None


_DETAILS = re.compile('<details type="(reasoning|tool_calls|code_interpreter)"')
_ATTRIBUTE = re.compile('([a-z]+)="([^"]*)"')
_SUMMARY = re.compile(r"\s*<summary>[^<]*</summary>")


def _without_details(text: str) -> tuple[str, str, int]:
    """Split an answer into content, reasoning and seconds of reasoning. A block without an end stays."""
    kept: list[str] = []
    thoughts: list[str] = []
    seconds = done = 0
    while opening := _DETAILS.search(text, done):
        inside = text.find(">", opening.end()) + 1
        end = text.find("</details>", inside)
        if not inside or end < 0:
            break
        kept.append(text[done : opening.start()].rstrip())
        done = end + len("</details>")
        body = _SUMMARY.sub("", text[inside:end], 1)
        attributes = {name: html.unescape(value) for name, value in _ATTRIBUTE.findall(text[opening.end() : inside])}
        if opening[1] == "tool_calls":
            name, arguments, result = (attributes.get(name, "") for name in ("name", "arguments", "result"))
            kept.append(common.tool_block(name, arguments, result))
        elif opening[1] == "code_interpreter":
            common.note_loss("code")
            output = attributes.get("output")
            kept.append(common.joined(body.strip(), common.fenced(*common.readable(output)) if output else ""))
        else:
            lines = html.unescape(body).strip().splitlines()
            thoughts.append("\n".join(line.removeprefix(">").removeprefix(" ") for line in lines))
            duration = re.fullmatch("[0-9]{1,7}", attributes.get("duration", ""))
            seconds += int(duration[0]) if duration else 0
    if not done:
        return text, "", 0
    return common.joined(*kept, text[done:].lstrip()), common.joined(*thoughts), seconds
