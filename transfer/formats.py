"""Conversations as LM Studio, ChatGPT and Open WebUI keep them, read into Fireside's own form.

`parse` takes one decoded JSON value of any of them. Every field may be of any type or missing: what is not understood
is left out, and what cannot go in is Unreadable with a reason. No identity comes from a path: ChatGPT and Open WebUI
have ids; LM Studio has the time a chat was made and its first question, and its messages are known by what they say.
"""

import hashlib
import html
import itertools
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import msgspec

from ..db import timestamp
from ..queries.conversations import title_from
from ..queries.types import ANSWER_CHARACTERS, QUESTION_CHARACTERS, TITLE_CHARACTERS, image_type
from .transcript import VERSION, Conversation, Image, Message, Unreadable, clean, read

FindImage = Callable[[str], Image | None]  # by the name or the id under which a message mentions it


def decode(data: bytes) -> Any:
    """A JSON value. Lone surrogates and bytes that are not UTF-8 do not make it unreadable. Raises Unreadable."""
    try:
        return msgspec.json.decode(data)
    except (ValueError, RecursionError):  # of msgspec's errors and UnicodeDecodeError the base
        pass
    try:
        return json.loads(
            data.decode("utf-8", "replace"), strict=False, parse_float=_finite, parse_constant=lambda _: None
        )
    except RecursionError:
        raise Unreadable("is nested too deeply") from None
    except ValueError as error:
        raise Unreadable(f"is not valid JSON, or a zip of it: {error}"[:200]) from None


def _finite(text: str) -> float | None:
    """No number that JSON cannot write again."""
    number = float(text)
    return number if math.isfinite(number) else None


def unpack(value: Any) -> Iterator[Any]:
    """The conversations of a decoded file, undecided what each of them is."""
    if isinstance(value, list):
        yield from value
    elif isinstance(value, dict) and isinstance(value.get("chats"), list):  # what Open WebUI's import takes
        yield from value["chats"]
    else:
        yield value


def name_of(value: Any) -> str:
    """What to call a conversation that cannot be read; "" where nothing is to be found."""
    row = _object(value)
    return _line(row.get("title")) or _line(row.get("name")) or _line(_object(row.get("chat")).get("title"))


def parse(value: Any, find: FindImage) -> Conversation:
    """Raises Unreadable."""
    row = _object(value)
    if "fireside" in row:
        conversation = read(row)
        if not conversation.title.strip():
            conversation.title = title_from(_question(conversation.messages))
        return conversation
    if isinstance(row.get("mapping"), dict):
        return _chatgpt(row, find)
    if isinstance(row.get("chat"), dict) or isinstance(row.get("history"), dict) or isinstance(row.get("models"), list):
        return _openwebui(row)
    if isinstance(row.get("messages"), list) and ("createdAt" in row or "perChatPredictionConfig" in row):
        return _lmstudio(row, find)
    raise Unreadable("is no conversation of LM Studio, ChatGPT, Open WebUI or Fireside")


# ---------------------------------------------------------------------------------------------------- LM Studio

_LMSTUDIO_FINISH = {
    "eosFound": "stop",
    "stopStringFound": "stop",
    "maxPredictedTokensReached": "length",
    "contextLengthReached": "length",
    "toolCalls": "tool_calls",
}


def _lmstudio(row: dict[str, Any], find: FindImage) -> Conversation:
    """One *.conversation.json. A message holds `versions`; the next one follows the version that is selected."""
    made = row.get("createdAt")
    created_at = _time(made)
    if created_at is None:
        raise Unreadable("has no createdAt")
    levels, active = _lmstudio_levels(row, find)
    _set_lmstudio_times(levels, created_at, {role: _time(row.get(f"{role}LastMessagedAt")) for role in _ROLES})
    messages = [message for level in levels for message in level]
    config = _object(row.get("perChatPredictionConfig"))
    fields = {_text(_object(f).get("key")): _object(f).get("value") for f in _array(config.get("fields"))}
    return _finish(
        source=f"lmstudio:{created_at}:{_hash(_question(messages))}",
        title=_line(row.get("name")),
        created_at=created_at,
        pinned=row.get("pinned") is True,
        system_prompt=_text(fields.get("llm.prediction.systemPrompt")) or _text(row.get("systemPrompt")),
        provider_id="lmstudio",
        model=_text(_object(row.get("lastUsedModel")).get("identifier")) or None,
        messages=messages,
        active=active,
    )


_ROLES: tuple[Literal["user", "assistant"], ...] = ("user", "assistant")


def _lmstudio_levels(row: dict[str, Any], find: FindImage) -> tuple[list[list[Message]], int | None]:
    """The kept versions of each message, and the id of the last selected one. An unknown `created_at` is ""."""
    levels: list[list[Message]] = []
    parent: int | None = None
    said: Counter[str | None] = Counter()
    ids = itertools.count(1)
    for entry in map(_object, _array(row.get("messages"))):
        selected = entry.get("currentlySelected")
        level: list[Message] = []
        chosen: int | None = None
        for number, version in enumerate(map(_object, _array(entry.get("versions")))):
            message = _lmstudio_message(version, find)
            if message is None:
                continue
            message.id, message.parent_id = next(ids), parent
            said[message.source] += 1
            message.source = f"{message.source}.{said[message.source]}"  # the second "continue" is another one
            level.append(message)
            if number == selected or chosen is None:
                chosen = message.id
        if level:
            levels.append(level)
            parent = chosen
    return levels, parent


def _lmstudio_message(version: dict[str, Any], find: FindImage) -> Message | None:
    role = version.get("role")
    if role not in _ROLES:
        return None
    steps = [step for step in map(_object, _array(version.get("steps"))) if step.get("type") == "contentBlock"]
    texts: dict[bool, list[str]] = {True: [], False: []}  # thought, said
    files: list[str] = []
    for block in (version, *steps):
        parts = [_object(part) for part in _array(block.get("content"))]
        thinking = _object(block.get("style")).get("type") == "thinking"
        # structural text is the model's own <think> and </think>
        said = [_text(p.get("text")) for p in parts if p.get("type") == "text" and p.get("isStructural") is not True]
        texts[thinking].append("".join(said))
        files += [_text(p.get("fileIdentifier")) for p in parts if p.get("type") == "file"]
    content, reasoning = ("\n\n".join(text for text in texts[thought] if text.strip()) for thought in (False, True))
    images = [image for image in map(find, filter(None, files)) if image]
    if not (content or reasoning or images):
        return None
    moments = [re.match(r"([0-9]{13})-", _text(step.get("stepIdentifier"))) for step in steps]
    message = Message(
        id=1,
        parent_id=None,
        role=role,
        content=content,
        reasoning=reasoning if role == "assistant" else "",
        images=images,
        created_at=next((_time(int(moment[1])) or "" for moment in moments if moment), ""),
        source=_hash(role, reasoning, content, *files),
    )
    if role == "assistant":
        _add_lmstudio_facts(message, version, [_object(step.get("genInfo")) for step in steps])
    return message


def _add_lmstudio_facts(message: Message, version: dict[str, Any], made: list[dict[str, Any]]) -> None:
    """Model and stats. Each block of an answer has its own stats; the last one's prompt holds all that went before."""
    made = [info for info in made if info]
    names = [_text(info.get("identifier")) for info in made] + [
        _text(_object(version.get("senderInfo")).get("senderName"))
    ]
    message.provider_id, message.model = "lmstudio", next(filter(None, names), None)
    if not made:
        return
    facts = _object(made[-1].get("stats"))
    message.token_usage = _usage(
        facts.get("promptTokensCount"), facts.get("predictedTokensCount"), facts.get("totalTokensCount")
    )
    loaded = _array(_object(made[-1].get("loadModelConfig")).get("fields"))
    lengths = [_object(f).get("value") for f in loaded if _object(f).get("key") == "llm.load.contextLength"]
    message.stats = _known(
        ttft_ms=_milliseconds(facts.get("timeToFirstTokenSec")),
        total_ms=_milliseconds(facts.get("totalTimeSec")),
        tokens_per_second=_rate(facts.get("tokensPerSecond")),
        finish_reason=_LMSTUDIO_FINISH.get(_text(facts.get("stopReason"))),
        context_length=_count(lengths[0]) if lengths else None,
    )
    if facts.get("stopReason") == "userStopped":
        message.status = "canceled"


def _set_lmstudio_times(levels: list[list[Message]], created_at: str, last: Mapping[str, str | None]) -> None:
    """Only answers carry a time, in their steps' identifiers. A question came just before its answer.

    `last` is when the last question and the last answer came, by role.
    """
    following = ""
    for level in reversed(levels):
        for message in level:
            message.created_at = message.created_at or (_later(following, -1) if following else "")
        following = min((message.created_at for message in level if message.created_at), default=following)
    newest = {level[0].role: level for level in levels}
    before = created_at
    for level in levels:
        known = last[level[0].role] if level is newest[level[0].role] else None
        for message in level:
            message.created_at = message.created_at or max(_later(before, 1), known or "")
        before = max(message.created_at for message in level)


# ---------------------------------------------------------------------------------------------------- ChatGPT

_CITATION = re.compile("\ue200([a-z_]*)\ue202?([^\ue200\ue201]*)\ue201")
_LEFTOVERS = re.compile("[\ue200-\uf8ff]")


def _chatgpt(row: dict[str, Any], find: FindImage) -> Conversation:
    """One element of conversations.json. `mapping` is a tree; what nobody sees of it is passed over."""
    nodes = {_text(key): _object(node) for key, node in row["mapping"].items()}
    messages: list[Message] = []
    above: dict[str | None, int | None] = {None: None}  # the nearest kept message at or above a node
    thoughts: dict[str | None, str] = {None: ""}  # those that wait for the answer below them
    for key, parent in _tree({key: (node.get("parent"), node.get("children")) for key, node in nodes.items()}):
        node = _object(nodes[key].get("message"))
        above[key] = above[parent]
        thought = _chatgpt_thoughts(node)
        thoughts[key] = "\n\n".join(filter(None, (thoughts[parent], thought)))
        message = None if thought is not None else _chatgpt_message(node, find)
        if message is None:
            continue
        message.id, message.parent_id, message.source = len(messages) + 1, above[parent], key
        if message.role == "assistant":
            message.reasoning = thoughts[key]
        messages.append(message)
        above[key], thoughts[key] = message.id, ""
    return _finish(
        source=_identity("chatgpt", row.get("conversation_id"), row.get("id"), *nodes),
        title=_line(row.get("title")),
        created_at=_time(row.get("create_time")),
        messages=messages,
        active=above.get(_text(row.get("current_node"))),
    )


def _chatgpt_thoughts(node: dict[str, Any]) -> str | None:
    content = _object(node.get("content"))
    if content.get("content_type") != "thoughts":
        return None
    texts = [(_text(t.get("summary")), _text(t.get("content"))) for t in map(_object, _array(content.get("thoughts")))]
    return "\n\n".join(filter(None, itertools.chain.from_iterable(texts)))


def _chatgpt_message(node: dict[str, Any], find: FindImage) -> Message | None:
    content, metadata = _object(node.get("content")), _object(node.get("metadata"))
    role = _object(node.get("author")).get("role")
    if content.get("content_type") not in ("text", "multimodal_text") or role not in ("user", "assistant", "tool"):
        return None
    if metadata.get("is_visually_hidden_from_conversation") or (
        role == "assistant" and node.get("recipient", "all") != "all"
    ):
        return None
    parts = _array(content.get("parts"))
    pointers = [_text(_object(part).get("asset_pointer")) for part in parts]
    images = [image for image in map(find, filter(None, pointers)) if image]
    texts = [_text(part) or _text(_object(part).get("text")) for part in parts] if role != "tool" else []
    text = "\n".join(filter(None, texts))
    if role == "assistant":
        text = _LEFTOVERS.sub("", _CITATION.sub(_cited, text))
    if not (text.strip() or images):
        return None
    return Message(
        id=1,
        parent_id=None,
        role="user" if role == "user" else "assistant",  # a tool's images are what the assistant drew
        content=text,
        images=images,
        created_at=_time(node.get("create_time")) or "",
        status="interrupted" if role == "assistant" and node.get("status") == "in_progress" else "complete",
        model=_text(metadata.get("model_slug")) or None if role != "user" else None,
    )


def _cited(found: re.Match[str]) -> str:
    """What a reader saw of a marker: an entity's name, a link; of a citation's number nothing."""
    kind, fields = found[1], found[2].split("\ue202")
    if kind == "url" and len(fields) > 1:
        return f"[{fields[0]}]({fields[1]})"
    if kind == "entity":
        try:
            named = _array(decode(fields[0].encode()))
        except Unreadable:
            return fields[0]
        return _text(named[1]) if len(named) > 1 else ""
    return ""


# ---------------------------------------------------------------------------------------------------- Open WebUI


def _openwebui(row: dict[str, Any]) -> Conversation:
    """A row of an export with its `chat`, or a bare chat."""
    chat = _object(row.get("chat")) or row
    nodes, current = _openwebui_nodes(chat)
    prompts = [_object(chat.get("params")).get("system"), chat.get("system")]
    messages: list[Message] = []
    above: dict[str | None, int | None] = {None: None}
    for key, parent in _tree({key: (node.get("parentId"), node.get("childrenIds")) for key, node in nodes.items()}):
        above[key] = above[parent]
        if nodes[key].get("role") == "system":
            prompts.append(nodes[key].get("content"))
        message = _openwebui_message(nodes[key])
        if message:
            message.id, message.parent_id, message.source = len(messages) + 1, above[parent], key
            messages.append(message)
            above[key] = message.id
    return _finish(
        source=_identity("openwebui", row.get("id"), chat.get("id"), *nodes),
        title=_line(row.get("title")) or _line(chat.get("title")),
        created_at=_time(row.get("created_at")) or _time(chat.get("timestamp")),
        pinned=row.get("pinned") is True,
        system_prompt=next(filter(None, map(_text, prompts)), ""),
        messages=messages,
        active=above.get(current),
    )


def _openwebui_nodes(chat: dict[str, Any]) -> tuple[dict[str, dict[str, Any]], str]:
    """The tree, or the plain list that older versions have, and the key of the current message."""
    history = _object(chat.get("history"))
    nodes = {_text(key): _object(node) for key, node in _object(history.get("messages")).items()}
    if nodes:
        return nodes, _text(history.get("currentId"))
    last: str | None = None
    for number, node in enumerate(map(_object, _array(chat.get("messages")))):
        key = _text(node.get("id")) or f"no. {number + 1}"
        nodes[key] = node | {"parentId": last, "childrenIds": []}
        last = key
    return nodes, last or ""


def _openwebui_message(node: dict[str, Any]) -> Message | None:
    role = node.get("role")
    if role not in _ROLES:
        return None
    raw = node.get("content")
    parts = [_object(part) for part in _array(raw)]
    text = _text(raw) or "\n".join(filter(None, (_text(part.get("text")) for part in parts)))
    urls = [_object(part.get("image_url")).get("url") for part in parts]
    urls += [_object(file).get("url") for file in _array(node.get("files"))]
    images = [image for image in map(_data_url, urls) if image]
    content, reasoning, seconds = _without_details(text) if role == "assistant" else (text, "", 0)
    failure = node.get("error")
    if not (content.strip() or reasoning or images or failure):
        return None
    message = Message(
        id=1, parent_id=None, role=role, content=content, images=images, created_at=_time(node.get("timestamp")) or ""
    )
    if role == "user":
        return message
    message.reasoning = reasoning
    message.model = _text(node.get("model")) or _text(node.get("modelName")) or None
    if failure:
        said = _text(failure) or _text(_object(failure).get("content")) or "The model server failed."
        message.status, message.error = "error", {"code": "PROVIDER_ERROR", "message": said}
    elif node.get("done") is False:
        message.status = "interrupted"
    facts = _object(node.get("usage")) or _object(node.get("info"))
    message.token_usage = _usage(
        *(next((facts[name] for name in names if name in facts), None) for names in _OPENWEBUI_COUNTS)
    )
    message.stats = _known(
        reasoning_ms=seconds * 1000 or None,
        total_ms=_milliseconds(facts.get("total_duration"), 1e-9),
        tokens_per_second=_rate(facts.get("response_token/s")),
    )
    return message


_OPENWEBUI_COUNTS = (
    ("prompt_tokens", "input_tokens", "prompt_eval_count"),
    ("completion_tokens", "output_tokens", "eval_count"),
    ("total_tokens",),
)
_DETAILS = re.compile('<details type="(reasoning|tool_calls)"')
_SUMMARY = re.compile(r"\s*<summary>[^<]*</summary>")


def _without_details(text: str) -> tuple[str, str, int]:
    """An answer as (content, reasoning, seconds of reasoning), without its tool calls. An open block stays."""
    kept: list[str] = []
    thoughts: list[str] = []
    seconds = at = 0
    while opening := _DETAILS.search(text, at):
        inside = text.find(">", opening.end()) + 1
        end = text.find("</details>", inside)
        if not inside or end < 0:
            break
        kept.append(text[at : opening.start()].rstrip())
        at = end + len("</details>")
        if opening[1] == "reasoning":
            lines = html.unescape(_SUMMARY.sub("", text[inside:end], 1)).strip().splitlines()
            thoughts.append("\n".join(line.removeprefix(">").removeprefix(" ") for line in lines))
            duration = re.search(r'duration="([0-9]{1,7})"', text[opening.end() : inside])
            seconds += int(duration[1]) if duration else 0
    if not at:
        return text, "", 0
    kept.append(text[at:].lstrip())
    return "\n\n".join(filter(None, kept)), "\n\n".join(filter(None, thoughts)), seconds


def _data_url(url: Any) -> Image | None:
    head, _, encoded = _text(url).partition(";base64,")
    if not head.startswith("data:image/"):
        return None
    try:
        data = msgspec.convert(encoded, bytes)
    except msgspec.ValidationError:
        return None
    kind = image_type(data[:12])
    return Image(kind, data) if kind else None


# ---------------------------------------------------------------------------------------------------- in common


def _finish(
    *,
    source: str,
    title: str,
    created_at: str | None,
    messages: list[Message],
    active: int | None,
    pinned: bool = False,
    system_prompt: str = "",
    provider_id: str | None = None,
    model: str | None = None,
) -> Conversation:
    """A conversation from another program. A message without a time has its parent's, so that the order holds."""
    if not messages:
        raise Unreadable("has no messages")
    limits = {"user": QUESTION_CHARACTERS, "assistant": ANSWER_CHARACTERS}
    texts = [(text, limits[message.role]) for message in messages for text in (message.content, message.reasoning)]
    for text, most in [(system_prompt, QUESTION_CHARACTERS), *texts]:
        if len(text) > most:
            raise Unreadable(f"has a text of {len(text):,} characters; at most {most:,} go in")
    times = [message.created_at for message in messages if message.created_at]
    created_at = created_at or min(times, default=timestamp(datetime.now(UTC)))
    moments: dict[int | None, str] = {None: created_at}
    for message in messages:
        message.created_at = moments[message.id] = message.created_at or moments[message.parent_id]
    return Conversation(
        fireside=VERSION,
        title=title or title_from(_question(messages)),
        named=bool(title),
        created_at=created_at,
        updated_at=max(moments.values()),
        pinned=pinned,
        system_prompt=system_prompt,
        provider_id=provider_id,
        model=model,
        source=source,
        active_message_id=active or messages[-1].id,
        messages=messages,
    )


def _question(messages: list[Message]) -> str:
    return next((message.content for message in messages if message.role == "user"), "")


def _tree(nodes: Mapping[str, tuple[Any, Any]]) -> Iterator[tuple[str, str | None]]:
    """Each key with its parent's, parents first, siblings in their parent's order, from {key: (parent, children)}.

    What names a parent that is not there is a root; a ring is cut open where it is met.
    """
    children = defaultdict[str | None, list[str]](list)
    for key, (parent, _) in nodes.items():
        children[parent if isinstance(parent, str) and parent in nodes else None].append(key)
    for key, (_, order) in nodes.items():
        if len(children.get(key, ())) > 1:
            places = {child: place for place, child in enumerate(_array(order)) if isinstance(child, str)}
            children[key].sort(key=lambda child: places.get(child, len(places)))
    seen: set[str] = set()
    for start in (*children[None], *nodes):
        stack: list[tuple[str, str | None]] = [(start, None)]
        while stack:
            key, above = stack.pop()
            if key not in seen:
                seen.add(key)
                yield key, above
                stack.extend((child, key) for child in reversed(children.get(key, ())))


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _array(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: Any) -> str:
    return clean(value) if isinstance(value, str) else ""


def _line(value: Any) -> str:
    return " ".join(_text(value)[: TITLE_CHARACTERS * 4].split())[:TITLE_CHARACTERS]


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 2**63:
        return None
    return float(value) if math.isfinite(value) else None


def _count(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number is not None and number <= 2**53 else None


def _rate(value: Any) -> float | None:
    number = _number(value)
    return None if number is None else round(number, 2)


def _milliseconds(value: Any, unit: float = 1.0) -> int | None:
    """From a number of seconds, or of `unit` seconds."""
    number = _number(value)
    return None if number is None else _count(round(number * unit * 1000))


def _time(value: Any) -> str | None:
    """From seconds, milli-, micro- or nanoseconds since 1970."""
    number = _number(value)
    if not number:
        return None
    if isinstance(value, float) and value < 1e11:
        return timestamp(datetime.fromtimestamp(value, UTC))
    whole = int(value)
    while whole > 10**17:
        whole //= 1000
    unit = next(unit for unit, limit in ((10**6, 10**11), (10**3, 10**14), (1, 10**18)) if whole < limit)
    return timestamp(datetime.fromtimestamp(0, UTC) + timedelta(microseconds=whole * unit))


def _later(moment: str, milliseconds: int) -> str:
    return timestamp(datetime.fromisoformat(moment + "+00:00") + timedelta(milliseconds=milliseconds))


def _usage(prompt: Any, completion: Any, total: Any) -> dict[str, int] | None:
    spent, made, both = _count(prompt), _count(completion), _count(total)
    if spent is None or made is None:
        return None
    return {"prompt_tokens": spent, "completion_tokens": made, "total_tokens": spent + made if both is None else both}


def _known(**facts: Any) -> dict[str, Any] | None:
    return {name: fact for name, fact in facts.items() if fact is not None} or None


def _hash(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:24]


def _identity(program: str, *candidates: Any) -> str:
    """The first id there is. Without any the conversation has no messages either."""
    found = next(filter(None, map(_text, candidates)), "")
    return f"{program}:{found if len(found) <= 200 else _hash(found)}"
