"""A whole conversation outside the database: the form that an export writes and that every import becomes, and Markdown.

Saved prompts and presets too.

The JSON form has the fields of the database's rows, so an import restores what was exported.
"""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypedDict

import msgspec
from msgspec import Meta

from ..queries.types import (
    NAME_CHARACTERS,
    PROMPT_CHARACTERS,
    SYSTEM_PROMPT_CHARACTERS,
    Id,
    ImageType,
    Parameters,
    Tools,
)

VERSION = 1

Time = Annotated[str, Meta(pattern=r"\A[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}\Z")]
Count = Annotated[int, Meta(ge=0, le=2**53)]


class Unreadable(Exception):
    """Why a file or a conversation cannot be imported, for the person who chose it: what follows its name."""


LOSSES = {  # what the report of an import calls each kind. A kind may be followed by a name, as in "folder: Work"
    "image": "Images without a file",
    "document": "Attached documents; only their text in the export was kept",
    "audio": "Audio recordings",
    "tool call": "Tool calls, kept as text",
    "code": "Code-interpreter blocks, kept as text",
    "canvas": "Canvas texts, kept as code blocks",
    "artifact": "Artifacts, kept as code blocks",
    "citation": "Citations",
    "unknown part": "Parts of an unknown kind",
    "note": "Notes",
    "draft": "Drafts that were not sent",
    "archived": "Archived conversations, which are now in the list",
    "folder": "Conversations without their folder, because there are too many folders:",
    "tag": "Conversations with the tag",
    "custom GPT": "Conversations with the custom GPT",
}


class Image(msgspec.Struct, omit_defaults=True):
    """An image with its bytes (base64 in JSON), or with the name of its file in the same folder or zip."""

    media_type: ImageType
    data: bytes = b""
    file: str = ""


class Generation(msgspec.Struct):
    """How an answer was generated; see the table in schema.sql."""

    id: str
    provider_id: str
    model: str
    params: dict[str, Any]
    log: list[int | dict[str, Any]]


class Usage(TypedDict):
    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count


class Failure(TypedDict):
    code: str
    message: str


class Message(msgspec.Struct, kw_only=True, omit_defaults=True):
    """`id` and `parent_id` are valid within the conversation. Parents stand before children, older versions before newer."""

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
    token_usage: Usage | None = None
    stats: dict[str, Any] | None = None
    error: Failure | None = None
    generation: Generation | None = None
    client_id: str | None = None
    source: str | None = None
    edited: bool = False  # an answer whose text the user has changed
    copied: bool = False  # from another conversation, which counts its tokens
    tools: Tools | None = None  # of a program that uses /v1


class Queued(msgspec.Struct, omit_defaults=True):
    """A message that has not been sent. Its images have their bytes."""

    content: str
    created_at: Time
    images: list[Image] = []


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
    folder: str = ""  # its name
    token_name: str | None = None  # of the token of the program that began it
    active_message_id: Id | None = None
    queue: list[Queued] = []
    losses: dict[str, Count] = {}  # of an import, by kind (see LOSSES): how many things were not kept as they were
    messages: list[Message]


SavedName = Annotated[str, Meta(max_length=NAME_CHARACTERS, pattern=r"\S")]
ModelName = Annotated[str, Meta(min_length=1, max_length=300)]


class SavedPrompt(msgspec.Struct, kw_only=True, tag_field="saved", tag="prompt"):
    fireside: Annotated[int, Meta(ge=1)] = VERSION
    name: SavedName
    content: Annotated[str, Meta(max_length=PROMPT_CHARACTERS, pattern=r"\S")]


class SavedPreset(msgspec.Struct, kw_only=True, tag_field="saved", tag="preset"):
    """A preset. Whether new conversations begin with it is not exported: an import does not change what they begin with."""

    fireside: Annotated[int, Meta(ge=1)] = VERSION
    name: SavedName
    system_prompt: Annotated[str, Meta(max_length=SYSTEM_PROMPT_CHARACTERS)] = ""
    provider_id: ModelName | None = None
    model: ModelName | None = None
    settings: Parameters = msgspec.field(default_factory=Parameters)


Saved = SavedPrompt | SavedPreset

JSON_END = b"\n]}\n"  # after `json_head` and the messages, each on a line


def json_head(conversation: Conversation) -> bytes:
    """Return the JSON form up to the first message. `messages` is the last field of the type."""
    return msgspec.json.encode(msgspec.structs.replace(conversation, messages=[])).removesuffix(b"[]}") + b"[\n"


def file_name(conversation: Conversation, suffix: str) -> str:
    """Return the day and the title as every file system accepts them, in at most 200 bytes of UTF-8."""
    not_allowed = r'[\x00-\x1f\x7f-\x9f<>:"/\\|?*\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]+'
    title = " ".join(re.sub(not_allowed, " ", conversation.title).split())
    return f"{conversation.created_at[:10]} {title.encode()[:150].decode('utf-8', 'ignore')}".rstrip(" .") + suffix


def markdown_head(conversation: Conversation) -> str:
    prompt = "".join(f"> {line}\n" for line in conversation.system_prompt.splitlines())
    times = f"{_minute(conversation.created_at)} to {_minute(conversation.updated_at)} UTC\n"
    return f"# {conversation.title}\n\n{times}" + (f"\n{prompt}" if prompt else "")


def markdown(message: Message, version: int, versions: int, images: str = "") -> Iterator[str]:
    """Yield the parts of a message as Markdown. `images` precedes the file name of an image in a link."""
    who = "You" if message.role == "user" else message.model or "Answer"
    which = f" (version {version} of {versions})" if versions > 1 else ""
    yield f"\n## {who}, {_minute(message.created_at)}{which}{', edited' if message.edited else ''}\n"
    if message.reasoning:
        yield f"\n<details><summary>Reasoning</summary>\n\n{message.reasoning}\n\n</details>\n"
    for image in message.images:
        yield f"\n![image]({images}{image.file})\n" if image.file else "\n*(image)*\n"
    if message.content:
        yield f"\n{message.content}\n"
    if message.status != "complete":
        yield f"\n*({message.status}{': ' + message.error['message'] if message.error else ''})*\n"


def _minute(time: str) -> str:
    return time[:16].replace("T", " ")
