"""What a request may say: a type for each body and for each query. Their constraints are all the validation that fields get."""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from ..auth import INVITE_HOURS
from ..queries.types import ANSWER_CHARACTERS, QUESTION_CHARACTERS, TITLE_CHARACTERS, Id, ImageType, Parameters

IMAGES, IMAGE_BYTES = 8, 8 * 1024 * 1024

Text = Annotated[str, Meta(pattern=r"\A[^\0]*\Z")]
Title = Annotated[str, Meta(min_length=1, max_length=TITLE_CHARACTERS, pattern=r"\A(?!\s*\Z)[^\0]*\Z")]
Name = Annotated[str, Meta(min_length=1, max_length=300, pattern=r"\A[^\0]*\Z")]
Role = Literal["user", "admin"]
Secret = Annotated[str, Meta(max_length=1000)]  # a password or a token, and a user name before it is looked at


class Credentials(Struct):
    username: Secret
    password: Secret


class Registration(Struct):
    invite_code: Secret
    username: Secret
    password: Secret


class Bootstrap(Struct):
    username: Secret
    password: Secret
    token: Secret = ""


class PasswordChange(Struct):
    current_password: Secret
    new_password: Secret


class Link(Struct):
    token: Secret


class InviteRequest(Struct):
    expires_in_hours: Annotated[int, Meta(ge=INVITE_HOURS[0], le=INVITE_HOURS[1])] = 24
    role: Role = "user"


class UserChange(Struct):
    role: Role | None = None
    status: Literal["active", "disabled"] | None = None


class AnswerRequest(Parameters):
    provider_id: Name | None = None
    model: Name | None = None


class RetryRequest(AnswerRequest, kw_only=True):
    conversation_id: Id
    message_id: Id | None = None  # an answer, or its question, of any branch


class Defaults(Struct):
    system_prompt: Annotated[Text, Meta(max_length=100_000)] | UnsetType = UNSET
    settings: Parameters | UnsetType = UNSET

    def given(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in self.__struct_fields__}
        return {
            name: value.given() if isinstance(value, Parameters) else value
            for name, value in values.items()
            if value is not UNSET
        }


class ConversationFields(Defaults):
    title: Title | None | UnsetType = UNSET
    pinned: bool | UnsetType = UNSET
    provider_id: Name | None | UnsetType = UNSET
    model: Name | None | UnsetType = UNSET


class NewImage(Struct):
    media_type: ImageType
    data: Annotated[bytes, Meta(min_length=12, max_length=IMAGE_BYTES)]  # base64 in the JSON


class NewMessage(Struct):
    content: Annotated[Text, Meta(max_length=QUESTION_CHARACTERS)]
    parent_id: Id | None | UnsetType = UNSET
    client_id: Annotated[str, Meta(min_length=1, max_length=100, pattern=r"\A[\x21-\x7e]+\Z")] | None = None
    images: Annotated[list[NewImage], Meta(max_length=IMAGES)] = []


class NewConversation(ConversationFields):
    message: NewMessage | UnsetType = UNSET  # the first question, stored together with the conversation

    def given(self) -> dict[str, Any]:
        return {name: value for name, value in super().given().items() if name != "message"}


class Selection(Struct):
    message_id: Id


class Markdown(Struct):
    text: Annotated[str, Meta(max_length=ANSWER_CHARACTERS)]


class ModelChoice(Struct):
    model: Name


class ModelLoad(Struct):
    model: Name
    context_length: Annotated[int, Meta(ge=256, le=16 * 1024 * 1024)] | None = None


class Person(Struct):
    username: str | None = None


class NewPassword(Struct):
    password: str
    username: str | None = None


class BackupTarget(Struct):
    file: str


class Sources(Struct):
    paths: list[str]
    username: str | None = None


class Nothing(Struct):
    """For requests whose body or query, if there is one, says nothing."""


# ---------------------------------------------------------------------------------------------------- queries

Phrase = Annotated[Text, Meta(max_length=1000)]
Limit = Annotated[int, Meta(ge=1, le=1000)]


class ConversationQuery(Struct):
    q: Phrase = ""
    limit: Limit | UnsetType = UNSET
    before: Id | UnsetType = UNSET
    pinned: bool = False
    deleted: bool = False


class DeleteQuery(Struct):
    purge: bool = False


class SearchQuery(Struct):
    q: Phrase = ""
    limit: Annotated[int, Meta(ge=1, le=200)] = 50


class MessageQuery(Struct):
    limit: Limit | UnsetType = UNSET
    before: Id | UnsetType = UNSET
    render: bool = False


class ResumeQuery(Struct):
    after: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0


class ExportQuery(Struct):
    format: Literal["markdown", "json"] = "markdown"
