"""The types of responses, and of the data of events. Handlers also return types of queries/, transfer/ and web/renderer.py."""

from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from ..backends.openai import Model, ModelDownload
from ..config import Source
from ..queries.accounts import User
from ..queries.folders import Folder
from ..queries.prompts import Preset, Prompt
from ..queries.search import FoundPage, Hit
from ..queries.tokens import Token
from ..queries.types import AnswerStats, Citation, Role, TokenUsage, ToolCall
from ..queries.usage import SpeedChange, UsageEntry
from ..transfer.importer import Report


class Error(Struct):
    code: str
    message: str
    request_id: str


class OpenAIErrorDetails(Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(Struct):
    error: OpenAIErrorDetails


class Confirmation(Struct):
    message: str


class Person(Struct):
    id: int
    username: str
    display_name: str
    role: Role


class SignedIn(Struct):
    user: Person
    csrf_token: str


class SessionEntry(Struct):
    id: int
    client: str
    created_at: str
    last_seen: str
    current: bool


class Sessions(Struct):
    sessions: list[SessionEntry]


class Users(Struct):
    users: list[User]


class ResetLink(Struct):
    token: str
    expires_at: str


class NewInvite(Struct):
    id: int
    invite_code: str
    role: Role
    expires_at: str


class InviteEntry(Struct):
    id: int
    role: Role
    status: Literal["open", "used", "revoked", "expired"]
    created_at: str
    expires_at: str
    used_by: str | None
    used_at: str | None


class Invites(Struct):
    invites: list[InviteEntry]


class NewToken(Token):
    token: str


class Tokens(Struct):
    tokens: list[Token]


class Prompts(Struct):
    prompts: list[Prompt]


class Presets(Struct):
    presets: list[Preset]


class ServerStorage(Struct):
    database_bytes: int
    image_bytes: int  # part of the database
    document_bytes: int  # likewise, with their text
    backup_bytes: int
    backups: int
    free_bytes: int  # on the disk of the database


class Storage(Struct):
    used_bytes: int  # by the user, as counted towards the limit
    image_bytes: int  # part of used_bytes
    document_bytes: int  # part of used_bytes, with their text
    conversations: int
    images: int
    documents: int
    limit_bytes: int | None
    daily_backups: int  # that are kept
    server: ServerStorage | None  # for administrators


class DocumentPage(Struct):
    number: int
    text: str


class DocumentPages(Struct):
    pages: list[DocumentPage]


class FoundPages(Struct):
    pages: list[FoundPage]


class SearchResults(Struct):
    results: list[Hit]
    more: bool


class Folders(Struct):
    folders: list[Folder]


class ChangedIds(Struct):
    ids: list[int]


class FolderDeleted(Confirmation):
    conversation_ids: list[int]


class NewMessageIds(Struct):
    message_id: int
    conversation_id: int


class AddedMessageIds(Struct):
    message_id: int | None  # None while it waits in the queue
    conversation_id: int
    queued_id: int | UnsetType = UNSET


class NewAnswerIds(NewMessageIds):
    generation_id: str


class MessageDeleted(Confirmation):
    deleted_id: int
    active_message_id: int | None


class VersionSelected(Confirmation):
    active_message_id: int


class ProviderHealth(Struct):
    online: bool
    error: str | None


class Capabilities(Struct):
    streaming: bool
    vision: bool
    tools: bool
    json_mode: bool
    max_context_tokens: int | None


class ProviderEntry(ProviderHealth):
    provider_id: str
    name: str
    kind: str
    health: ProviderHealth
    models_known: bool
    can_start: bool
    capabilities: Capabilities
    models: list[Model]


class Models(Struct):
    models: list[Model]


class Downloads(Struct):
    downloads: list[ModelDownload]


class ModelServer(Struct):
    provider_id: str
    name: str
    kind: str
    url: str  # of the settings
    address: str
    has_key: bool
    concurrency: int
    models: list[str]  # of the settings
    enabled: bool
    source: Source
    online: bool
    error: str | None
    models_known: bool
    models_found: int
    answering: int
    waiting: int


class ModelServers(Struct):
    providers: list[ModelServer]


class UsageByDay(Struct):
    usage: list[UsageEntry]
    changes: list[SpeedChange]


class OpenAIModel(Struct):
    id: str
    object: str = "model"
    created: int = 0  # model servers do not say
    owned_by: str = ""


class OpenAIModels(Struct):
    data: list[OpenAIModel]
    object: str = "list"


class LoginToken(Struct):
    token: str


class PasswordOwner(Struct):
    username: str


class Health(Struct):
    status: Literal["healthy"]


class Version(Struct):
    version: str


# ---------------------------------------------------------------------------------------------------- the data of events


class EventData(Struct):
    generation_id: str


class PingData(EventData):
    ts: str
    message_id: int | UnsetType = UNSET  # in the first event, like the next
    conversation_id: int | UnsetType = UNSET


class ProgressData(EventData):
    phase: Literal["queued", "loading", "prompt", "generating"]
    place: int | UnsetType = UNSET
    done: int | UnsetType = UNSET
    total: int | UnsetType = UNSET


class DeltaData(EventData):
    delta: str


class ToolsData(EventData):
    calls: list[ToolCall]


class UsageData(EventData):
    usage: TokenUsage


class ErrorData(EventData):
    code: str
    message: str


class DoneData(EventData):
    status: Literal["ok", "canceled", "interrupted", "error"]
    message_id: int
    stats: AnswerStats | UnsetType = UNSET  # not of imported answers
    citations: list[Citation] | UnsetType = UNSET  # if it was compared with documents


class ImportStep(Struct):
    done: float  # the fraction that is done
    report: Report  # so far


class ImportFailed(Struct):
    error: str


EVENTS: dict[str, type[EventData]] = {
    "ping": PingData,
    "progress": ProgressData,
    "reasoning": DeltaData,
    "delta": DeltaData,
    "tools": ToolsData,
    "usage": UsageData,
    "error": ErrorData,
    "reset": EventData,
    "done": DoneData,
}
