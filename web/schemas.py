"""The types of request bodies and queries, with all constraints on their fields."""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, field

from ..auth import INVITE_HOURS, TOKEN_DAYS
from ..config import MAX_CONCURRENCY
from ..queries.attachments import MAX_ATTACHMENTS
from ..queries.types import (
    ANSWER_CHARACTERS,
    NAME_CHARACTERS,
    PROMPT_CHARACTERS,
    QUESTION_CHARACTERS,
    SYSTEM_PROMPT_CHARACTERS,
    TITLE_CHARACTERS,
    Id,
    ImageType,
    Parameters,
    Role,
)

IMAGES, IMAGE_BYTES = 8, 8 * 1024 * 1024

# In the syntax that Python shares with JSON Schema; (?!\n) because Python's $ also matches before a final line feed.
NO_NUL = r"^[^\0]*$"  # SQLite's functions end a text at NUL
NOT_BLANK = r"^(?!\s*$)[^\0]*$"
IDS = r"^([0-9]{1,18}(,[0-9]{1,18})*)?(?!\n)$"
VISIBLE_ASCII = r"^[\x21-\x7e]+(?!\n)$"
VISIBLE_ASCII_OR_EMPTY = r"^[\x21-\x7e]*(?!\n)$"
PATTERNS = {  # with the messages for values that do not match
    NO_NUL: "must not contain a NUL character",
    NOT_BLANK: "must not be blank or contain a NUL character",
    IDS: "must be ids with commas between them",
    VISIBLE_ASCII: "must be visible ASCII characters without spaces",
    VISIBLE_ASCII_OR_EMPTY: "must be visible ASCII characters without spaces",
}

Text = Annotated[str, Meta(pattern=NO_NUL)]
Title = Annotated[str, Meta(min_length=1, max_length=TITLE_CHARACTERS, pattern=NOT_BLANK)]
Name = Annotated[str, Meta(min_length=1, max_length=300, pattern=NO_NUL)]
SavedName = Annotated[str, Meta(min_length=1, max_length=NAME_CHARACTERS, pattern=NOT_BLANK)]
PromptText = Annotated[str, Meta(min_length=1, max_length=PROMPT_CHARACTERS, pattern=NOT_BLANK)]
ClientId = Annotated[str, Meta(min_length=1, max_length=100, pattern=VISIBLE_ASCII)]
ModelName = Annotated[str, Meta(max_length=300, pattern=NO_NUL)]
Secret = Annotated[str, Meta(max_length=1000)]  # a password or a token, and any user name before auth.py checks it


class Credentials(Struct):
    username: Secret
    password: Secret


class Registration(Credentials):
    invite_code: Secret


class Bootstrap(Credentials):
    token: Secret = ""


class PasswordChange(Struct):
    current_password: Secret
    new_password: Secret


class NameChange(Struct):
    username: Secret
    current_password: Secret


class AccountDeletion(Struct):
    current_password: Secret


class Link(Struct):
    token: Secret


class ResetByLink(Link):
    password: Secret


class InviteRequest(Struct):
    expires_in_hours: Annotated[int, Meta(ge=INVITE_HOURS[0], le=INVITE_HOURS[1])] = 24
    role: Role = "user"


class TokenRequest(Struct):
    name: Annotated[str, Meta(min_length=1, max_length=100, pattern=NOT_BLANK)]
    record: bool = True
    expires_in_days: Annotated[int, Meta(ge=TOKEN_DAYS[0], le=TOKEN_DAYS[1])] | None = None


class UserChange(Struct):
    role: Role | None = None
    status: Literal["active", "disabled"] | None = None


class AnswerRequest(Parameters):
    provider_id: Name | None = None
    model: Name | None = None


class RetryRequest(AnswerRequest, kw_only=True):
    conversation_id: Id
    message_id: Id | None = None  # an answer, or its question, of any branch


class ContinueRequest(AnswerRequest, kw_only=True):
    conversation_id: Id
    message_id: Id | None = None  # the last answer of any branch


class Defaults(Struct):
    """Fields that are not sent stay UNSET, and msgspec.to_builtins leaves them out."""

    system_prompt: Annotated[Text, Meta(max_length=SYSTEM_PROMPT_CHARACTERS)] | UnsetType = UNSET
    settings: Parameters | UnsetType = UNSET


class DefaultsChange(Defaults):
    preset_id: Id | None | UnsetType = UNSET


class PresetFields(Defaults):
    provider_id: Name | None | UnsetType = UNSET
    model: Name | None | UnsetType = UNSET


class NewPreset(PresetFields, kw_only=True):
    name: SavedName


class PresetChange(PresetFields):
    name: SavedName | UnsetType = UNSET


class NewPrompt(Struct):
    name: SavedName
    content: PromptText


class PromptChange(Struct):
    name: SavedName | UnsetType = UNSET
    content: PromptText | UnsetType = UNSET


class ConversationFields(PresetFields):
    pinned: bool | UnsetType = UNSET
    folder_id: Id | None | UnsetType = UNSET


class ConversationChange(ConversationFields):
    title: Title | UnsetType = UNSET
    temporary: bool | UnsetType = UNSET


class BulkChange(Struct):
    ids: Annotated[list[Id], Meta(max_length=10_000)]
    action: Literal["delete", "restore", "move"]
    folder_id: Id | None = None  # of a move; null: into no folder


class FolderName(Struct):
    name: SavedName


class Presence(Struct):
    tab: Annotated[str, Meta(min_length=1, max_length=64, pattern=VISIBLE_ASCII)]  # chosen by the client, random
    open: bool


class NewImage(Struct):
    media_type: ImageType
    data: Annotated[bytes, Meta(min_length=12, max_length=IMAGE_BYTES)]  # base64 in the JSON


class UploadQuery(Struct):
    name: Annotated[str, Meta(max_length=1000)] = ""


class PagesQuery(Struct):
    first: Annotated[int, Meta(ge=1, le=2**31)] = 1
    count: Annotated[int, Meta(ge=1, le=100)] = 20


class DocumentPassword(Struct):
    password: Annotated[str, Meta(min_length=1, max_length=200)]


class NewMessage(Struct):
    content: Annotated[Text, Meta(max_length=QUESTION_CHARACTERS)]
    parent_id: Id | None | UnsetType = UNSET
    client_id: ClientId | None = None
    images: Annotated[list[NewImage], Meta(max_length=IMAGES)] = []
    attachment_ids: Annotated[list[Id], Meta(max_length=MAX_ATTACHMENTS)] = []


class AddedMessage(NewMessage):
    queue: bool = False  # wait until the answer before it is complete


class QueuedContent(Struct):
    content: Annotated[Text, Meta(max_length=QUESTION_CHARACTERS)]
    attachment_ids: Annotated[list[Id], Meta(max_length=MAX_ATTACHMENTS)] | None = None  # None: unchanged


class NewConversation(ConversationFields):
    title: Annotated[Text, Meta(max_length=TITLE_CHARACTERS)] | None = None  # null and blank are the same as no title
    temporary: bool = False
    message: NewMessage | UnsetType = UNSET  # the first question, stored together with the conversation
    preset_id: Id | None = None  # None: the default preset, if there is one


class Selection(Struct):
    message_id: Id


class BranchRequest(Selection):
    client_id: ClientId | None = None


class EditedAnswer(Struct):
    content: Annotated[Text, Meta(min_length=1, max_length=ANSWER_CHARACTERS)]
    client_id: ClientId | None = None


class Markdown(Struct):
    text: Annotated[str, Meta(max_length=ANSWER_CHARACTERS)]


class ModelChoice(Struct):
    model: Name


class DownloadRequest(ModelChoice):
    quantization: Name | None = None


class ModelLoad(ModelChoice):
    context_length: Annotated[int, Meta(ge=256, le=16 * 1024 * 1024)] | None = None
    flash_attention: bool | None = None
    offload_kv_cache_to_gpu: bool | None = None


Url = Annotated[Text, Meta(min_length=1, max_length=2000)]
ApiKey = Annotated[str, Meta(max_length=1000, pattern=VISIBLE_ASCII_OR_EMPTY)]
Concurrency = Annotated[int, Meta(ge=1, le=MAX_CONCURRENCY)]
ModelNames = Annotated[list[Title], Meta(max_length=100)]
ServerName = Annotated[str, Meta(min_length=1, max_length=60, pattern=NOT_BLANK)]


class ServerAddress(Struct):
    """`provider_id`: the server whose saved key is used if `api_key` is not sent, at its own address only."""

    url: Url
    api_key: ApiKey | UnsetType = UNSET
    provider_id: Name | None = None


class NewServer(Struct):
    url: Url
    name: ServerName | None = None
    api_key: ApiKey = ""
    concurrency: Concurrency = 4
    models: ModelNames = []
    untested: bool = False  # save it although it cannot be used now
    kind: Literal["lmstudio", "openai"] | None = None


class ServerChange(Struct):
    """Fields that are not sent stay as they are. An empty `url` is for LM Studio, which is then looked for on this computer."""

    name: ServerName | UnsetType = UNSET
    url: Annotated[Text, Meta(max_length=2000)] | UnsetType = UNSET
    api_key: ApiKey | UnsetType = UNSET
    concurrency: Concurrency | UnsetType = UNSET
    models: ModelNames | UnsetType = UNSET
    enabled: bool | UnsetType = UNSET
    untested: bool = False


class OptionalUser(Struct):
    """The user whom the command line acts for; without a name, the first administrator."""

    username: str | None = None


class PasswordReset(OptionalUser, kw_only=True):
    password: str


class TokenOfUser(TokenRequest, kw_only=True):
    username: str | None = None  # as in OptionalUser


class TokenChoice(OptionalUser, kw_only=True):
    token_id: Id


class ImportSources(OptionalUser, kw_only=True):
    paths: list[str]
    dry_run: bool = False


class BackupTarget(Struct):
    file: str


class ModelRequest(Struct):
    """What Fireside needs to know of a request to /v1. Its other fields are for the model server."""

    model: ModelName = ""


class ChatOptions(ModelRequest):
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    n: Literal[1] | None = None


class ChatRequest(ChatOptions, kw_only=True):
    """A chat request. Fields that are not described here reach the model server too."""

    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)]


class EmbeddingRequest(ModelRequest, kw_only=True):
    input: Any


class Empty(Struct):
    """A body or a query without fields. Unknown ones are ignored."""


# ---------------------------------------------------------------------------------------------------- queries

Phrase = Annotated[Text, Meta(max_length=1000)]
Limit = Annotated[int, Meta(ge=1, le=1000)]


class ConversationQuery(Struct):
    q: Phrase = ""
    limit: Limit | UnsetType = UNSET
    before: Id | UnsetType = UNSET
    pinned: bool = False
    deleted: bool = False
    folder: Annotated[int, Meta(ge=0, le=2**63 - 1)] | UnsetType = UNSET  # 0: in no folder
    sort: Literal["activity", "name"] = "activity"


class DeleteQuery(Struct):
    purge: bool = False


class SearchQuery(Struct):
    q: Phrase = ""
    limit: Annotated[int, Meta(ge=1, le=200)] = 50
    offset: Annotated[int, Meta(ge=0, le=2000)] = 0


class PageSearchQuery(Struct):
    q: Phrase = ""


class RenderQuery(Struct):
    render: bool = False


class MessageQuery(RenderQuery):
    limit: Limit | UnsetType = UNSET
    before: Id | UnsetType = UNSET


EventId = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class ResumeQuery(Struct):
    after: EventId = 0


class ResumeHeader(Struct):
    after: EventId = field(name="Last-Event-ID")


IMPORT_TYPES = {  # of uploads, with the suffix of each
    "application/json": ".json",
    "application/x-ndjson": ".jsonl",
    "application/zip": ".zip",
    "application/vnd.sqlite3": ".db",
}


class ImportQuery(Struct):
    dry_run: bool = False
    progress: bool = False


class ContextQuery(Struct):
    provider_id: Name | None = None
    model: Name | None = None
    question_tokens: Annotated[int, Meta(ge=0, le=2**31)] = 0


class ExportAllQuery(Struct):
    ids: Annotated[str, Meta(max_length=15_000, pattern=IDS)] = ""  # with commas; "": all


class ExportQuery(Struct):
    format: Literal["markdown", "json"] = "markdown"
