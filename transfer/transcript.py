"""A whole conversation outside the database: the form that an export writes and that every import becomes, and Markdown.

Saved prompts and presets too.

The JSON form has the fields of the database's rows, so an import restores what was exported.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, TypedDict
from urllib.parse import quote

import msgspec
from msgspec import Meta

from ..backends.loose import objects_at
from ..queries.types import (
    NAME_CHARACTERS,
    PROMPT_CHARACTERS,
    SYSTEM_PROMPT_CHARACTERS,
    Citation,
    Id,
    Parameters,
    Tools,
)

VERSION = 2
QUOTED_CHARACTERS = 100  # of a quotation, where it is listed
ATTACHMENTS = "attachments"  # the folder of the files in an export

Time = Annotated[str, Meta(pattern=r"\A[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}\Z")]
Count = Annotated[int, Meta(ge=0, le=2**53)]


class Unreadable(Exception):
    """Why a file or a conversation cannot be imported, for the person who chose it: what follows its name."""


LOSSES = {  # what the report of an import calls each kind. A kind may be followed by a name, as in "folder: Work"
    "image": "Images without a file",
    "document": "Attached documents that are not in the export",
    "document text": "Attached documents, of which only the text is in the export",
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


class Attachment(msgspec.Struct, kw_only=True, omit_defaults=True):
    """An image or a document with its bytes (base64 in JSON), or with the name of its file in the same folder or zip.

    In Fireside's own form, a conversation has each file once, and its messages refer to that by `id`.
    """

    id: Id | None = None
    name: str = ""
    media_type: str = ""
    file: str = ""
    data: bytes = b""


class SentPages(msgspec.Struct):
    """The pages of a document that were chosen for a question: the first and the last of each range."""

    attachment_id: Id
    pages: list[tuple[Count, Count]]


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
    attachments: list[Attachment] = []
    sent_pages: list[SentPages] = []  # of a question
    citations: list[Citation] | None = None  # of an answer
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
    """A message that has not been sent."""

    content: str
    created_at: Time
    attachments: list[Attachment] = []


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
    files: list[Attachment] = []  # of all messages
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

JSON_END = b"\n]}\n"  # after `json_head`, the files, and the messages, each on a line


def json_head(conversation: Conversation) -> bytes:
    """Return the JSON form up to the files and the messages. `messages` is the last field of the type."""
    head = msgspec.structs.replace(conversation, files=[], messages=[])
    return msgspec.json.encode(head).removesuffix(b'"messages":[]}')


def file_name(conversation: Conversation, suffix: str) -> str:
    """Return the day and the title as every file system accepts them, in at most 200 bytes of UTF-8."""
    not_allowed = r'[\x00-\x1f\x7f-\x9f<>:"/\\|?*\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]+'
    title = " ".join(re.sub(not_allowed, " ", conversation.title).split())
    return f"{conversation.created_at[:10]} {title.encode()[:150].decode('utf-8', 'ignore')}".rstrip(" .") + suffix


def markdown_head(conversation: Conversation) -> str:
    prompt = "".join(f"> {line}\n" for line in conversation.system_prompt.splitlines())
    times = f"{_minute(conversation.created_at)} to {_minute(conversation.updated_at)} UTC\n"
    return f"# {conversation.title}\n\n{times}" + (f"\n{prompt}" if prompt else "")


def attachment_file(attachment: Attachment) -> str:
    """Return the name of a file in an export: its id, because names repeat, and its name as every file system accepts it."""
    name = PurePosixPath(attachment.name.replace("\\", "/"))
    suffix = (
        name.suffix if re.fullmatch(r"\.[A-Za-z0-9]{1,10}", name.suffix) else _SUFFIXES.get(attachment.media_type, "")
    )
    plain = re.sub(r"[^\w-]+", "-", name.name.removesuffix(suffix)).strip("-").encode()[:100].decode("utf-8", "ignore")
    return f"{ATTACHMENTS}/{attachment.id}{'-' if plain else ''}{plain}{suffix}"


_SUFFIXES = {"image/png": ".png", "image/jpeg": ".jpg", "image/webp": ".webp"}  # of images, which may have no name


def markdown(message: Message, version: int, versions: int, files: dict[Id | None, Attachment]) -> Iterator[str]:
    """Yield the parts of a message as Markdown. `files`: the attachments by id, with their files if there are any to link to."""
    who = "You" if message.role == "user" else message.model or "Answer"
    which = f" (version {version} of {versions})" if versions > 1 else ""
    yield f"\n## {who}, {_minute(message.created_at)}{which}{', edited' if message.edited else ''}\n"
    if message.reasoning:
        yield f"\n<details><summary>Reasoning</summary>\n\n{message.reasoning}\n\n</details>\n"
    for attachment in message.attachments:
        yield f"\n{_link(attachment.name, files.get(attachment.id, attachment))}\n"
    if message.content:
        yield f"\n{message.content}\n"
    sent = [f"Sent: {text}" for text in describe_sent(message.stats)]
    quoted = [
        f"Quotation {text}" for text in describe_citations(message.content, message.citations or (), message.stats)
    ]
    if sent or quoted:
        yield "".join(["\n", *(f"- {line}\n" for line in sent + quoted)])
    if message.status != "complete":
        yield f"\n*({message.status}{': ' + message.error['message'] if message.error else ''})*\n"


def describe_sent(stats: dict[str, Any] | None) -> list[str]:
    """Return which pages of each document were sent, for documents that were not sent whole."""
    lines = []
    for one in objects_at(stats, "documents"):
        sent, pages, name, unit = (one.get(field) for field in ("sent", "pages", "name", "unit"))
        count = sum(
            int(last or first) - int(first) + 1
            for first, last in re.findall(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", str(sent))
        )
        if isinstance(pages, int) and count < pages:
            lines.append(
                f"{count} of {pages} {unit}s of {name}: {sent}" if count else f"none of {pages} {unit}s of {name}"
            )
    return lines


def describe_citations(content: str, citations: Iterable[Citation], stats: dict[str, Any] | None) -> list[str]:
    """Return each quotation of an answer, shortened, and where the documents have it. The stats have the documents' units."""
    units = {one.get("attachment_id"): one.get("unit") for one in objects_at(stats, "documents")}
    lines = []
    for citation in citations:
        quoted = " ".join(content[citation.start : citation.end].split())
        quoted = quoted if len(quoted) <= QUOTED_CHARACTERS else f"{quoted[: QUOTED_CHARACTERS - 1]}…"
        where = f"{citation.name}, {units.get(citation.attachment_id, 'page')} {citation.page}"
        other = ", another document than the answer names" if citation.status == "other_document" else ""
        lines.append(f"{quoted}: {where if citation.page else 'not found in the documents'}{other}")
    return lines


def _link(name: str, file: Attachment) -> str:
    """Return a link to the file of an attachment. In an export, conversations and attachments are in neighboring folders."""
    is_image = file.media_type.startswith("image/")
    text = re.sub(r"([\\`*_\[\]<>])", r"\\\1", name or ("image" if is_image else "file"))
    return f"{'!' if is_image else ''}[{text}](../{quote(file.file)})" if file.file else f"*({text})*"


def _minute(time: str) -> str:
    return time[:16].replace("T", " ")
