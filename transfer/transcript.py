"""A whole conversation outside of the database: the form that an export writes and every import becomes, and Markdown.

The JSON form is the database's rows, field by field, but for whose they are: an import gives back what was exported.
"""

import re
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from ..queries.types import QUESTION_CHARACTERS, TITLE_CHARACTERS, Id, ImageType, Parameters, image_type

VERSION = 1
DETAILS_BYTES = 64 * 1024  # they do not count towards user_max_bytes
EVENT_BYTES = (
    1_000_000  # of the events in the log of an answer, besides its text: a ping every few seconds is 100 bytes
)

Time = Annotated[str, Meta(pattern=r"\A[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}\Z")]
Count = Annotated[int, Meta(ge=0, le=2**53)]


class Unreadable(Exception):
    """Why a file or a conversation cannot go in, for the person who chose it."""


class Image(msgspec.Struct, omit_defaults=True):
    """Its bytes (base64 in JSON), or the name of the file that has them within the same folder or zip."""

    media_type: ImageType
    data: bytes = b""
    file: str = ""


class Generation(msgspec.Struct):
    """How an answer was made: see schema.sql."""

    id: str
    provider_id: str
    model: str
    params: dict[str, Any]
    log: list[int | dict[str, Any]]


class Message(msgspec.Struct, kw_only=True, omit_defaults=True):
    """`id` and `parent_id` hold within the conversation; parents stand before children, older versions before newer."""

    id: Id
    parent_id: Id | None
    role: Literal["user", "assistant"]
    created_at: Time
    status: Literal["complete", "canceled", "interrupted", "error"] = "complete"
    model: str | None = None
    provider_id: str | None = None
    content: str
    reasoning: str = ""
    images: list[Image] = []
    token_usage: dict[str, Count] | None = None
    stats: dict[str, Any] | None = None
    error: dict[str, str] | None = None
    generation: Generation | None = None
    client_id: str | None = None
    source: str | None = None


class Conversation(msgspec.Struct, kw_only=True, omit_defaults=True):
    fireside: Annotated[int, Meta(ge=1)]  # the version of this form
    title: str
    named: bool = False
    created_at: Time
    updated_at: Time
    deleted_at: Time | None = None
    pinned: bool = False
    system_prompt: str = ""
    provider_id: str | None = None
    model: str | None = None
    settings: dict[str, Any] = {}
    source: str | None = None
    active_message_id: Id | None = None
    messages: list[Message]


# ---- what must hold in the fields that the types above leave open, because the program relies on it


class _Usage(msgspec.Struct, forbid_unknown_fields=True):
    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count


class _Stats(msgspec.Struct):
    ttft_ms: float | None = None
    total_ms: float | None = None
    context_length: Count | None = None
    omitted_messages: Count | None = None


class _Failure(msgspec.Struct, forbid_unknown_fields=True):
    code: str
    message: str


JSON_END = b"\n]}\n"  # after `json_head` and the messages, each on a line


def json_head(conversation: Conversation) -> bytes:
    """The JSON form up to the first message. `messages` is the last field of the type."""
    return msgspec.json.encode(msgspec.structs.replace(conversation, messages=[])).removesuffix(b"[]}") + b"[\n"


def read(value: dict[str, Any]) -> Conversation:
    """The JSON form, decoded. It may have come from anywhere. Raises Unreadable."""
    if isinstance(value.get("fireside"), int) and value["fireside"] > VERSION:
        raise Unreadable("was written by a newer Fireside; install that first")
    try:
        msgspec.json.encode(value)  # finds halves of surrogate pairs wherever they hide
        conversation = msgspec.convert(value, Conversation)
        _check(conversation)
    except UnicodeEncodeError:
        raise Unreadable("has a text that is not Unicode") from None
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"is not as Fireside writes it: {error}"[:200]) from None
    conversation.title = conversation.title[:TITLE_CHARACTERS]
    for struct in (conversation, *conversation.messages):
        for field in struct.__struct_fields__:
            if isinstance(text := getattr(struct, field), str):
                setattr(struct, field, clean(text))
    return conversation


def _check(conversation: Conversation) -> None:
    """Raises ValueError."""
    for time in (conversation.created_at, conversation.updated_at, conversation.deleted_at):
        datetime.fromisoformat(time or conversation.created_at)
    msgspec.convert(conversation.settings, Parameters)
    if None in conversation.settings.values():
        raise ValueError("a setting is empty")
    known: set[int | None] = {None}
    for message in conversation.messages:
        if message.id in known or message.parent_id not in known:
            raise ValueError("its messages do not form a tree")
        known.add(message.id)
        _check_message(message)
    if conversation.active_message_id not in known:
        raise ValueError("its active message is missing")
    if conversation.active_message_id is None and conversation.messages:
        conversation.active_message_id = conversation.messages[-1].id


def _check_message(message: Message) -> None:
    datetime.fromisoformat(message.created_at)
    for value, kind in ((message.token_usage, _Usage), (message.stats, _Stats), (message.error, _Failure)):
        if value is not None:
            msgspec.convert(value, kind)
            if len(msgspec.json.encode(value)) > DETAILS_BYTES:
                raise ValueError(f"token_usage, stats and error must have at most {DETAILS_BYTES >> 10} KiB each")
    if message.role == "user" and len(message.content) > QUESTION_CHARACTERS:
        raise ValueError(f"a question has more than {QUESTION_CHARACTERS:,} characters")
    if any(not image.file and image_type(image.data) != image.media_type for image in message.images):
        raise ValueError("the data of an image does not fit its media_type")
    if message.generation and not _replays(message, message.generation):
        message.generation = None  # the answer stays, and is replayed as any that was made elsewhere


class _Event(msgspec.Struct):
    event: Annotated[str, Meta(pattern=r"\A[a-z]+\Z")]
    data: dict[str, Any]
    id: Id = 1


def _replays(message: Message, generation: Generation) -> bool:
    """Whether the log cuts both texts up exactly, and ends."""
    lengths = [entry for entry in generation.log if isinstance(entry, int)]
    try:
        events = msgspec.convert([entry for entry in generation.log if isinstance(entry, dict)], list[_Event])
    except msgspec.ValidationError:
        return False
    return (
        len(msgspec.json.encode(events)) <= EVENT_BYTES
        and 0 not in lengths
        and sum(n for n in lengths if n > 0) == len(message.content)
        and -sum(n for n in lengths if n < 0) == len(message.reasoning)
        and bool(events)
        and events[-1].event == "done"
    )


def clean(text: str) -> str:
    """The text as the database takes it: no NUL, no half of a surrogate pair."""
    if "\0" in text:
        text = text.replace("\0", "\ufffd")
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


# ---------------------------------------------------------------------------------------------------- for people


def file_name(conversation: Conversation, suffix: str) -> str:
    """Day and title, as every file system takes them, at most 200 bytes of UTF-8."""
    title = re.sub(
        r'[\x00-\x1f\x7f-\x9f<>:"/\\|?*\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]+', " ", conversation.title
    )
    words = " ".join(title.split()).encode()[:150].decode("utf-8", "ignore")
    return f"{conversation.created_at[:10]} {words}".rstrip(" .") + suffix


def markdown_head(conversation: Conversation) -> str:
    prompt = "".join(f"> {line}\n" for line in conversation.system_prompt.splitlines())
    times = f"{_minute(conversation.created_at)} to {_minute(conversation.updated_at)} UTC\n"
    return f"# {conversation.title}\n\n{times}" + (f"\n{prompt}" if prompt else "")


def markdown(message: Message, version: int, versions: int, images: str = "") -> Iterator[str]:
    """A message as Markdown. `images` is what precedes an image's file name in a link."""
    who = "You" if message.role == "user" else message.model or "Answer"
    which = f" (version {version} of {versions})" if versions > 1 else ""
    yield f"\n## {who}, {_minute(message.created_at)}{which}\n"
    if message.reasoning:
        yield f"\n<details><summary>Reasoning</summary>\n\n{message.reasoning}\n\n</details>\n"
    for image in message.images:
        yield f"\n![image]({images}{image.file})\n" if image.file else "\n*(image)*\n"
    if message.content:
        yield f"\n{message.content}\n"
    if message.status != "complete":
        yield f"\n*({message.status}{': ' + message.error['message'] if message.error else ''})*\n"


def _minute(moment: str) -> str:
    return moment[:16].replace("T", " ")
