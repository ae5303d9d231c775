"""What the readers of other programs' conversations share."""

import hashlib
import html
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple

import msgspec

from ...backends.loose import array_at, at, count_at, number_at, text_at
from ...db import timestamp
from ...queries.conversations import title_from
from ...queries.types import ANSWER_CHARACTERS, QUESTION_CHARACTERS, TITLE_CHARACTERS, image_type
from ..transcript import VERSION, Attachment, Conversation, Message, Unreadable, Usage

FindFile = Callable[[str], Attachment | None]  # by the name or the id with which a message refers to it
Row = dict[str, Any]  # decoded JSON that a program wrote: a conversation or a message
ROLES: tuple[Literal["user", "assistant"], ...] = ("user", "assistant")
FAILED = "The model server failed."

_NOT_TEXT = re.compile(r"\.(pdf|docx?|odt|rtf|pptx?|odp|xlsx?|ods|epub|pages|key)\Z", re.IGNORECASE)

losses: Counter[str] = Counter()  # of the conversation being read; a process reads one at a time


def note_loss(kind: str, name: str = "") -> None:
    """Count something that cannot be kept as it was. What is readable of it stays as text. `kind`: a key of transcript.LOSSES."""
    name = " ".join(name.split())[:100]
    losses[f"{kind}: {name}" if name else kind] += 1


class File(NamedTuple):
    """What a message names, with the file if the export has it."""

    kind: Literal["image", "document"]
    name: str
    found: Attachment | None


def new_message(
    role: Any,
    time: str | None,
    text: str,
    files: Iterable[File] = (),
    *,
    reasoning: str = "",
    failure: str = "",
    **of_answer: Any,
) -> Message | None:
    """Return a message without its place in the conversation, or None when there is nothing in it.

    Any role but "user" is an answer. A question has no reasoning, no failure (why an answer has the status "error") and no `of_answer`.
    The text names the files that are not in the export.
    """
    attachments: list[Attachment] = []
    texts = [text]
    for file in files:
        if file.found:
            file.found.name = file.found.name or file.name
            attachments.append(file.found)
        else:
            texts.append(not_imported(file.kind, file.name))
    text = joined(*texts)
    if not (text.strip() or reasoning or attachments or failure):
        return None
    message = Message(
        id=0,
        parent_id=None,
        role="user" if role == "user" else "assistant",
        content=text,
        attachments=attachments,
        created_at=time or "",
    )
    if role != "user":
        message.reasoning = reasoning
        for name, value in of_answer.items():
            setattr(message, name, value)
        if failure:
            message.status, message.error = "error", {"code": "PROVIDER_ERROR", "message": failure}
    return message


def finish(
    *,
    source: str,
    messages: list[Message],
    active: int | None = None,
    title: str = "",
    created_at: str | None = None,
    **fields: Any,
) -> Conversation:
    """Check and complete a conversation. A message without a time gets its parent's, so that the order holds. Raises Unreadable.

    By default the last message is shown, the title is the beginning of the first question, and the time is the oldest message's.
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


# ---- the order of messages: a tree of nodes with ids, or messages that follow each other


def read_tree(
    nodes: Mapping[str, Row],
    read: Callable[[Row], Message | None],
    *,
    parent: str,
    children: str = "",
    shown: str = "",
    is_step: Callable[[Row], object] = lambda node: False,
) -> tuple[list[Message], int | None]:
    """Read nodes by their keys, parents first, and merge steps into their answers. A node for which `read` returns None is left out.

    `parent` and `children` name the fields with the keys of these. `shown`: the key of the last message that the program shows.
    Return the messages, and the id of the nearest at or above `shown`: without one, of the newest.
    """
    messages: list[Message] = []
    steps: set[int] = set()
    nearest: dict[str | None, int | None] = {None: None}
    for key, above in _walk(nodes, parent, children):
        nearest[key] = nearest[above]
        if message := read(nodes[key]):
            message.id, message.parent_id, message.source = len(messages) + 1, nearest[above], key
            messages.append(message)
            nearest[key] = message.id
            if is_step(nodes[key]):
                steps.add(message.id)
    messages, merged = _merge_steps(messages, steps)
    newest = max(messages, key=lambda message: (message.created_at, message.id), default=None)
    active = nearest.get(shown) or (newest and newest.id)
    return messages, merged.get(active, active) if active else None


def keyed(nodes: Iterable[Row], field: str) -> dict[str, Row]:
    """Return nodes by their ids: by the number of one that has none or that of an earlier node."""
    found: dict[str, Row] = {}
    for number, node in enumerate(nodes, 1):
        key = text_at(node, field)
        found[key if key and key not in found else f"no. {number}"] = node
    return found


def linked(nodes: Iterable[Row], field: str, parent: str = "") -> dict[str, Row]:
    """Return nodes as `keyed` does, each with its "parent": what it names in this field, or else the node before it."""
    found = keyed(nodes, field)
    before = zip(found.items(), (None, *found), strict=False)
    return {key: node | {"parent": text_at(node, parent) or last} for (key, node), last in before}


def read_turns(turns: Iterable[tuple[Iterable[Message | None], Any]]) -> tuple[list[Message], int | None]:
    """Number messages without ids: the versions of each, and the place of the shown one, which the next message follows.

    A message is known by its `source`, or its texts, and which of several with these it is. Return the messages, and the id of the last shown.
    """
    messages: list[Message] = []
    parent: int | None = None
    repeats: Counter[str] = Counter()
    for versions, selected in turns:
        shown = parent
        for place, message in enumerate(versions):
            if message:
                name = message.source or digest(message.role, message.reasoning, message.content)
                repeats[name] += 1
                message.id, message.parent_id, message.source = len(messages) + 1, parent, f"{name}.{repeats[name]}"
                messages.append(message)
                if shown == parent or place == selected:
                    shown = message.id
        parent = shown
    return messages, parent


def read_list(
    nodes: Iterable[Row], read: Callable[[Row], Message | None], is_step: Callable[[Row], object]
) -> tuple[list[Message], list[str]]:
    """Read nodes without ids that follow each other. Return the messages, and their sources before steps were merged."""
    pairs = [(message, node) for node in nodes if (message := read(node))]
    messages, _ = read_turns(([message], 0) for message, _ in pairs)
    sources = [message.source or "" for message in messages]
    return _merge_steps(messages, {message.id for message, node in pairs if is_step(node)})[0], sources


def _merge_steps(messages: list[Message], steps: set[int]) -> tuple[list[Message], dict[int, int]]:
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
        is_answer = message.role == parent.role == "assistant"
        if step in steps and children[step] == 1 and is_answer and size < ANSWER_CHARACTERS:
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


# ---- fields of any type


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


def file_of(data: Any) -> Attachment | None:
    """Return the bytes in a column of a database as a file, or None without any."""
    return Attachment(data=data) if isinstance(data, bytes) and data else None


def text_file(name: str, content: str) -> Attachment | None:
    """Return the text of a document as a file, or None without a text. `name` is that of the document, which may not have been a text."""
    if not content:
        return None
    if _NOT_TEXT.search(name):
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
