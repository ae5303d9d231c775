"""Types and limits that the database, the API and imports share."""

import sqlite3
import unicodedata
from typing import Annotated, Any, Literal, TypeVar, get_args

import msgspec
from msgspec import UNSET, Meta, UnsetType

QUESTION_CHARACTERS = 200_000
ANSWER_CHARACTERS = 2_000_000  # of an imported answer; config.answer_max_bytes limits generated ones
TITLE_CHARACTERS = 200
QUEUED_MESSAGES = 20  # of a conversation
NAME_CHARACTERS = 100  # of a saved prompt, a preset or a folder
PROMPT_CHARACTERS = 20_000
SYSTEM_PROMPT_CHARACTERS = 100_000
JSON_PARAMETER_BYTES = 64 * 1024  # each list of conversations contains it

Role = Literal["user", "admin"]
Id = Annotated[int, Meta(ge=1, le=2**63 - 1)]
ImageType = Literal["image/png", "image/jpeg", "image/webp"]
IMAGE_TYPES = get_args(ImageType)


class Image(msgspec.Struct):
    media_type: str
    data: bytes


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class Parameters(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Generation parameters with OpenAI's names. The provider decides on what is None."""

    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=1000)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=1048576)] | None = None
    stop: (
        Annotated[str, Meta(max_length=500)]
        | Annotated[list[Annotated[str, Meta(max_length=500)]], Meta(max_length=16)]
        | None
    ) = None
    seed: Annotated[int, Meta(ge=-(2**31), le=2**32)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    repeat_penalty: Annotated[float, Meta(ge=0, le=2)] | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: Effort | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        """Raise ValueError, which msgspec reports as a ValidationError."""
        for name in ("response_format", "chat_template_kwargs"):
            if (value := getattr(self, name)) and len(msgspec.json.encode(value)) > JSON_PARAMETER_BYTES:
                raise ValueError(f"{name} must have at most {JSON_PARAMETER_BYTES >> 10} KiB of JSON")

    def given(self) -> dict[str, Any]:
        """Return the parameters that are not None, without the fields of a subclass."""
        fields = msgspec.structs.asdict(self)
        return {name: fields[name] for name in Parameters.__struct_fields__ if fields[name] is not None}


class TokenUsage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AnswerError(msgspec.Struct):
    code: str
    message: str


class SentDocument(msgspec.Struct):
    """A document of the conversation, and its pages that an answer could see."""

    attachment_id: int
    name: str
    unit: str
    pages: int
    sent: str  # such as "1, 17-22"; "": none


class AnswerStats(msgspec.Struct):
    """Milliseconds and counts of an answer; those that are known."""

    ttft_ms: int | UnsetType = UNSET  # to the first token
    total_ms: int | UnsetType = UNSET
    queued_ms: int | UnsetType = UNSET
    reasoning_ms: int | UnsetType = UNSET
    generation_ms: int | UnsetType = UNSET  # from the first token to the last
    tokens_per_second: float | UnsetType = UNSET
    finish_reason: str | UnsetType = UNSET
    context_length: int | UnsetType = UNSET
    omitted_messages: int | UnsetType = UNSET
    sent_messages: int | UnsetType = UNSET
    omitted_images: int | UnsetType = UNSET
    documents: list[SentDocument] | UnsetType = UNSET  # of the conversation
    requested_model: str | UnsetType = UNSET  # if another one answered
    engine: str | UnsetType = UNSET  # version of the server's engine


AttachmentStatus = Literal["reading", "ready", "no_text", "encrypted", "failed"]
Unit = Literal["page", "slide", "section"]


class Attachment(msgspec.Struct):
    """A file of a user. What is not known of it, such as the pages of an image, is null."""

    id: int
    name: str
    media_type: str
    size_bytes: int
    status: AttachmentStatus
    problem: str | None  # why it cannot be used, or a remark about its text
    unit: Unit | None  # what its pages are
    pages: int | None
    pages_read: int
    characters: int
    tokens_estimate: int

    @property
    def is_image(self) -> bool:
        return self.media_type in IMAGE_TYPES


class QueuedMessage(msgspec.Struct):
    """A message that waits until the answer before it is complete."""

    id: int
    content: str
    created_at: str
    images: int  # their number
    image_ids: list[int]
    documents: list[Attachment]


class Citation(msgspec.Struct):
    """A quotation in an answer: its place there, with its marks, in code points, and the first place of it in a document."""

    start: int
    end: int
    status: Literal["found", "other_document", "not_found"]  # other_document: not in the one that the answer names
    attachment_id: int | UnsetType = UNSET
    name: str | UnsetType = UNSET
    page: int | UnsetType = UNSET  # from 1


def title_key(title: str) -> str:
    """Return the form of a title, or of a part of one, in which titles are compared."""
    return unicodedata.normalize("NFC", title).casefold()


def folder_name(text: str) -> str:
    """Return the name of a folder on one line, of at most NAME_CHARACTERS."""
    return " ".join(text.split())[:NAME_CHARACTERS].strip()


class ToolCall(msgspec.Struct):
    """A call of a tool, which the model asks the program for. `arguments` is JSON as the model wrote it."""

    name: str
    arguments: str
    id: str = ""


class ToolResult(msgspec.Struct):
    """What the program sent back for the call with this id."""

    content: str
    id: str = ""


class Tools(msgspec.Struct):
    """The column `tools`: the results that the program sent before a message, and the calls in it."""

    results: list[ToolResult] = []
    calls: list[ToolCall] = []


S = TypeVar("S", bound=msgspec.Struct)


def from_row(kind: type[S], row: sqlite3.Row, **values: Any) -> S:
    """Return a struct whose fields have the values of the columns with their names, except those given as `values`."""
    return kind(**{name: row[name] for name in kind.__struct_fields__ if name not in values}, **values)


def stored(kind: type[msgspec.Struct]) -> Meta:
    """Describe a field of type Raw, the JSON text of a column, as a value of this type."""
    return Meta(extra_json_schema={"$ref": f"#/components/schemas/{kind.__name__}"})


def image_type(head: bytes) -> ImageType | None:
    """Return the type of an image by its first 12 bytes."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if head.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    return "image/webp" if head[:4] == b"RIFF" and head[8:12] == b"WEBP" else None
