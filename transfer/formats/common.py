"""What the readers of other programs' conversations share."""

import hashlib
import html
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import PurePosixPath
from typing import Any, Literal

import msgspec

from ...backends.loose import array_at, at, count_at, number_at, text_at
from ...db import timestamp
from ...queries.conversations import title_from
from ...queries.types import ANSWER_CHARACTERS, QUESTION_CHARACTERS, TITLE_CHARACTERS, image_type
from ..transcript import VERSION, Attachment, Conversation, Message, Unreadable, Usage

FindFile = Callable[[str], Attachment | None]  # by the name or the id with which a message refers to it
Files = list[tuple[str, Attachment | None]]  # what a message names, with the file if the export has it
ROLES: tuple[Literal["user", "assistant"], ...] = ("user", "assistant")

_NOT_TEXT = (
    ".pdf",
    ".docx",
    ".doc",
    ".odt",
    ".rtf",
    ".pptx",
    ".ppt",
    ".odp",
    ".xlsx",
    ".xls",
    ".ods",
    ".epub",
    ".pages",
    ".key",
)

losses: Counter[str] = Counter()  # of the conversation being read; a process reads one at a time


def note_loss(kind: str, name: str = "") -> None:
    """Count something that cannot be kept as it was. What is readable of it stays as text. `kind`: a key of transcript.LOSSES."""
    name = " ".join(name.split())[:100]
    losses[f"{kind}: {name}" if name else kind] += 1


def finish(
    *, source: str, title: str, created_at: str | None, messages: list[Message], active: int | None, **fields: Any
) -> Conversation:
    """Check and complete a conversation. A message without a time gets its parent's, so that the order holds.

    `title`: "" for the beginning of the first question. `created_at`: None for the oldest message's. `active`: None for the last message.
    Raises Unreadable.
    """
    if not messages:
        raise Unreadable("has no messages")
    limits = {"user": QUESTION_CHARACTERS, "assistant": ANSWER_CHARACTERS}
    texts = [(text, limits[message.role]) for message in messages for text in (message.content, message.reasoning)]
    for text, most in [(fields.get("system_prompt", ""), QUESTION_CHARACTERS), *texts]:
        if len(text) > most:
            raise Unreadable(f"has a text of {len(text):,} characters; at most {most:,} are allowed")
    times = [message.created_at for message in messages if message.created_at]
    created_at = created_at or min(times, default=timestamp(datetime.now(UTC)))
    time_of: dict[int | None, str] = {None: created_at}
    for message in messages:
        message.created_at = time_of[message.id] = message.created_at or time_of[message.parent_id]
    return Conversation(
        fireside=VERSION,
        title=title or title_from(first_question(messages)),
        named=bool(title),
        created_at=created_at,
        updated_at=max(time_of.values()),
        source=source,
        active_message_id=active or messages[-1].id,
        losses=dict(losses),
        messages=messages,
        **fields,
    )


def first_question(messages: list[Message]) -> str:
    return next((message.content for message in messages if message.role == "user"), "")


def read_tree(
    nodes: Mapping[str, Any], parent_field: str, children_field: str, read: Callable[[str, str | None], Message | None]
) -> tuple[list[Message], dict[str | None, int | None]]:
    """Call `read` with the key of each node and that of its parent, parents first. A node for which it returns None is left out.

    Return the messages and, by the key of each node, the id of the nearest message at or above it.
    """
    messages: list[Message] = []
    nearest: dict[str | None, int | None] = {None: None}
    for key, parent in _walk(nodes, parent_field, children_field):
        nearest[key] = nearest[parent]
        if message := read(key, parent):
            message.id, message.parent_id, message.source = len(messages) + 1, nearest[parent], key
            messages.append(message)
            nearest[key] = message.id
    return messages, nearest


def keyed(nodes: Iterable[dict[str, Any]], field: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each node with its id, or with its number when it has none or that of an earlier one."""
    seen: set[str] = set()
    for number, node in enumerate(nodes, 1):
        key = text_at(node, field)
        if not key or key in seen:
            key = f"no. {number}"
        seen.add(key)
        yield key, node


def newest(messages: list[Message]) -> int | None:
    """Return the id of the message with the latest time."""
    return max(messages, key=lambda message: (message.created_at, message.id)).id if messages else None


def chain(messages: Iterable[Message]) -> list[Message]:
    """Number messages that follow each other. One without a source is known by its texts."""
    chained = list(messages)
    repeats: Counter[str] = Counter()
    for number, message in enumerate(chained, 1):
        message.id, message.parent_id = number, number - 1 or None
        if message.source is None:
            message.source = source_of(message, repeats)
    return chained


def source_of(message: Message, repeats: Counter[str]) -> str:
    """Return the `source` of a message without an id. `repeats` counts equal messages of a conversation."""
    name = digest(message.role, message.reasoning, message.content)
    repeats[name] += 1
    return f"{name}.{repeats[name]}"


def merge_steps(messages: list[Message], steps: set[int]) -> tuple[list[Message], dict[int, int]]:
    """Merge an answer into the message before it when that is a step, such as a tool call, and has no other version.

    The result has the `source` of the last one merged, so that an answer that has grown since an earlier import is new.
    Return the messages that are left and, by the id of each that was merged, the id of that into which.
    """
    children = Counter(message.parent_id for message in messages)
    by_id: dict[int | None, Message] = {}
    merged: dict[int, int] = {}
    for message in messages:
        step, parent = message.parent_id, by_id.get(message.parent_id)
        by_id[message.id] = message
        if parent is None:
            continue
        message.parent_id = parent.id
        size = max(len(parent.content) + len(message.content), len(parent.reasoning) + len(message.reasoning))
        if (
            step in steps
            and children[step] == 1
            and message.role == parent.role == "assistant"
            and size < ANSWER_CHARACTERS
        ):
            by_id[message.id], merged[message.id] = parent, parent.id
            parent.source, parent.created_at = message.source, parent.created_at or message.created_at
            parent.content = joined(parent.content, message.content)
            parent.reasoning = joined(parent.reasoning, message.reasoning)
            parent.attachments = [*parent.attachments, *message.attachments]
            parent.model = message.model or parent.model
            parent.token_usage = message.token_usage or parent.token_usage
            parent.stats, parent.status, parent.error = message.stats or parent.stats, message.status, message.error
    return [message for message in messages if message.id not in merged], merged


def _walk(nodes: Mapping[str, Any], parent_field: str, children_field: str) -> Iterator[tuple[str, str | None]]:
    """Yield each key with its parent's, parents first and siblings in their parent's order.

    A node whose parent is missing is a root. A circle is cut at the first of its nodes.
    """
    children = defaultdict[str | None, list[str]](list)
    for key, node in nodes.items():
        parent = at(node, parent_field)
        children[parent if isinstance(parent, str) and parent in nodes else None].append(key)
    for key, node in nodes.items():
        if len(children.get(key, ())) > 1:
            order = array_at(node, children_field)
            places = {child: place for place, child in enumerate(order) if isinstance(child, str)}
            children[key].sort(key=lambda child: places.get(child, len(places)))
    seen: set[str] = set()
    for start in (*children[None], *nodes):
        stack: list[tuple[str, str | None]] = [(start, None)]
        while stack:
            key, parent = stack.pop()
            if key not in seen:
                seen.add(key)
                yield key, parent
                stack.extend((child, key) for child in reversed(children.get(key, ())))


def line_at(value: Any, *path: str) -> str:
    """Return the text at this path as one line that fits a title."""
    return " ".join(text_at(value, *path)[: TITLE_CHARACTERS * 4].split())[:TITLE_CHARACTERS]


def time_at(value: Any, *path: str) -> str | None:
    """Return the time at this path, in ISO 8601 or in seconds, milli-, micro- or nanoseconds since 1970, or None."""
    found = at(value, *path)
    if isinstance(found, str):
        return _iso_time(found)
    number = number_at(found)
    if not number:
        return None
    if isinstance(found, float) and number < 1e11:
        return timestamp(datetime.fromtimestamp(number, UTC))
    whole = int(found)
    while whole > 10**17:
        whole //= 1000
    unit = next(unit for unit, limit in ((10**6, 10**11), (10**3, 10**14), (1, 10**18)) if whole < limit)
    return timestamp(datetime.fromtimestamp(0, UTC) + timedelta(microseconds=whole * unit))


def _iso_time(text: str) -> str | None:
    try:
        moment = datetime.fromisoformat(text)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return timestamp(moment) if moment.year > 1970 else None
    except (ValueError, OverflowError):
        return None


def milliseconds_at(value: Any, *path: str, seconds: float = 1.0) -> int | None:
    """Return the duration at this path, a number of units of so many seconds, in milliseconds, or None."""
    number = number_at(value, *path)
    return None if number is None else count_at(round(number * seconds * 1000))


def rate_at(value: Any, *path: str) -> float | None:
    number = number_at(value, *path)
    return None if number is None else round(number, 2)


def token_usage(prompt: Any, completion: Any, total: Any) -> Usage | None:
    prompt, completion, total = count_at(prompt), count_at(completion), count_at(total)
    if prompt is None or completion is None:
        return None
    total = prompt + completion if total is None else total
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}


def known(**facts: Any) -> dict[str, Any] | None:
    """Return the facts that are not None; None when there are none."""
    return {name: fact for name, fact in facts.items() if fact is not None} or None


def joined(*texts: str, by: str = "\n\n") -> str:
    return by.join(filter(None, texts))


def image_from_url(url: str) -> Attachment | None:
    """Return the image in a data URL, or None."""
    file = file_from_base64(url.partition(";base64,")[2]) if url.startswith("data:image/") else None
    return file if file and image_type(file.data[:12]) else None


def file_from_base64(encoded: str) -> Attachment | None:
    try:
        data = msgspec.convert(encoded, bytes)
    except msgspec.ValidationError:
        return None
    return Attachment(data=data) if data else None


def text_file(name: str, content: str) -> Attachment | None:
    """Return the text of a document as a file, or None without a text. `name` is that of the document, which may not have been a text."""
    if not content:
        return None
    if PurePosixPath(name).suffix.lower() in _NOT_TEXT:
        note_loss("document text")
        name += ".txt"
    return Attachment(name=name, data=content.encode())


# ---- text that stands for what is neither a question nor an answer


def fenced(text: str, language: str = "") -> str:
    """Return a code block, whose fence is longer than any in the text."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`{3,}", text))])
    return f"{fence}{re.sub('[^A-Za-z0-9+#._-]', '', language)}\n{text}\n{fence}"


def tool_block(name: str, arguments: Any, result: Any) -> str:
    """Return a tool call, or its result, or both, as a folded block."""
    note_loss("tool call")
    parts = [fenced(*readable(value)) for value in (arguments, result) if value not in (None, "", {}, [])]
    return f"<details>\n<summary>Tool: {html.escape(' '.join(name.split())[:100])}</summary>\n\n{joined(*parts)}\n\n</details>"


def readable(value: Any) -> tuple[str, str]:
    """Return a text with its language. JSON is indented."""
    try:
        value = json.loads(value) if isinstance(value, str) else value
        if isinstance(value, (dict, list)):
            return text_at(json.dumps(value, ensure_ascii=False, indent=2)), "json"
    except (ValueError, RecursionError):
        pass
    return text_at(str(value)), ""


def not_imported(kind: Literal["image", "document", "audio"], name: str = "") -> str:
    """Return the text that stands for something without its data."""
    note_loss(kind)
    name = " ".join(name.split())[:200]
    if kind == "image":
        return f"[image missing: {name}]" if name else "[image missing]"
    return f"**{name or kind.capitalize()}** (not imported)"


def with_files(kind: Literal["image", "document"], text: str, files: Files) -> tuple[str, list[Attachment]]:
    """Return the files that the export has, and the text with the names of the others appended."""
    found: list[Attachment] = []
    texts = [text]
    for name, file in files:
        if file:
            file.name = file.name or name
            found.append(file)
        else:
            texts.append(not_imported(kind, name))
    return joined(*texts), found


_THINKING = re.compile(r"\s*<think(?:ing)?>(.*?)</think(?:ing)?>\s*", re.DOTALL)


def split_thinking(text: str) -> tuple[str, str]:
    """Split an answer that begins with <think> into content and reasoning."""
    found = _THINKING.match(text)
    return (text[found.end() :], found[1].strip()) if found else (text, "")


# ---- identities


def digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:24]


def identity(program: str, *candidates: Any) -> str:
    """Return the `source` made of the first candidate that is a text. A conversation with messages has one."""
    found = next(filter(None, map(text_at, candidates)), "")
    return f"{program}:{found if len(found) <= 200 else digest(found)}"
