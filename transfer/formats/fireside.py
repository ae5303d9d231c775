"""Fireside's own form, as an export writes it. The file may have been changed since, or made by anybody."""

import re
from datetime import datetime
from typing import Annotated, Any, NoReturn, TypeVar

import msgspec
from msgspec import Meta

from ...backends.loose import clean, objects_at
from ...queries.conversations import title_from
from ...queries.types import (
    ANSWER_CHARACTERS,
    QUESTION_CHARACTERS,
    QUEUED_MESSAGES,
    TITLE_CHARACTERS,
    Id,
    Parameters,
    folder_name,
)
from ..transcript import VERSION, Conversation, Count, Generation, Message, Queued, Saved, Unreadable
from .common import FindFile, first_question

AnyStruct = TypeVar("AnyStruct", bound=msgspec.Struct)

DETAILS_BYTES = 64 * 1024  # of token_usage, of stats and of error, which do not count towards user_max_bytes
EVENT_BYTES = (
    1_000_000  # of the events in the log of an answer, besides its text; a ping every few seconds is 100 bytes
)


def matches(row: dict[str, Any]) -> bool:
    return "fireside" in row


def parse(row: dict[str, Any], find_file: FindFile) -> Conversation | Saved:
    """Files have their names in the export, so `find_file` is not used."""
    if isinstance(row["fireside"], int) and row["fireside"] > VERSION:
        raise Unreadable("was written by a newer Fireside; install that first")
    try:
        msgspec.msgpack.encode(row)  # raises for a half of a surrogate pair or a too large number anywhere
        if "saved" in row:
            saved: Saved = msgspec.convert(row, Saved)
            return _clean(saved)
        _convert_images(row)
        conversation = msgspec.convert(row, Conversation)
        _resolve_files(conversation)
        _check(conversation)
    except UnicodeEncodeError:
        raise Unreadable("has a text that is not Unicode") from None
    except (ValueError, RecursionError, OverflowError) as error:
        field = re.search(r"`\$\.([^`]*)`\Z", str(error))
        _refuse(f"{field[1]} is missing or wrong" if field else "a field is missing or wrong")
    messages: list[Queued | Message] = [*conversation.queue, *conversation.messages]
    for struct in (conversation, *messages, *(file for message in messages for file in message.attachments)):
        _clean(struct)
    conversation.title, conversation.losses = conversation.title[:TITLE_CHARACTERS], {}
    conversation.folder = folder_name(conversation.folder)
    if not conversation.title.strip():
        conversation.title = title_from(first_question(conversation.messages))
    return conversation


def _convert_images(row: dict[str, Any]) -> None:
    """Convert the images of version 1, which each message has itself."""
    for message in (*objects_at(row, "messages"), *objects_at(row, "queue")):
        if "images" in message:
            message["attachments"] = message.pop("images")


def _resolve_files(conversation: Conversation) -> None:
    """Add to each attachment of a message the file that it refers to."""
    files = {file.id: file for file in conversation.files}
    messages: list[Queued | Message] = [*conversation.queue, *conversation.messages]
    for message in messages:
        for attachment in message.attachments:
            if not (attachment.file or attachment.data):
                file = files.get(attachment.id)
                if file is None or not (file.file or file.data):
                    raise Unreadable(f"its file {clean(attachment.name[:100]) or 'without a name'} is missing")
                attachment.file, attachment.data, attachment.media_type = file.file, file.data, file.media_type
    conversation.files = []


def _clean(struct: AnyStruct) -> AnyStruct:
    """Clean the texts of a struct, and return it."""
    for name in struct.__struct_fields__:
        if isinstance(text := getattr(struct, name), str):
            setattr(struct, name, clean(text))
    return struct


def _refuse(reason: str) -> NoReturn:
    raise Unreadable(f"is not as Fireside writes it: {reason}"[:200])


# ---- what must hold in the fields that the types leave open, because the program relies on it


class _Stats(msgspec.Struct):
    ttft_ms: float | None = None
    total_ms: float | None = None
    context_length: Count | None = None
    omitted_messages: Count | None = None
    sent_messages: Count | None = None


def _check(conversation: Conversation) -> None:
    """Raises Unreadable and ValueError."""
    for time in (conversation.created_at, conversation.updated_at, conversation.deleted_at):
        datetime.fromisoformat(time or conversation.created_at)
    msgspec.convert(conversation.settings, Parameters)
    if None in conversation.settings.values():
        _refuse("a setting is empty")
    known: set[int | None] = {None}
    for message in conversation.messages:
        if message.id in known or message.parent_id not in known:
            _refuse("its messages do not form a tree")
        known.add(message.id)
        _check_message(message)
    if len(conversation.queue) > QUEUED_MESSAGES:
        _refuse(f"its queue has more than {QUEUED_MESSAGES} messages")
    for waiting in conversation.queue:
        time, text = waiting.created_at, waiting.content
        if len(text) > QUESTION_CHARACTERS:
            _refuse(f"a message in its queue has more than {QUESTION_CHARACTERS:,} characters")
        _check_message(Message(id=1, parent_id=None, role="user", created_at=time, content=text))
    if conversation.active_message_id not in known:
        _refuse("its active message is missing")
    if conversation.active_message_id is None and conversation.messages:
        conversation.active_message_id = conversation.messages[-1].id


def _check_message(message: Message) -> None:
    datetime.fromisoformat(message.created_at)
    msgspec.convert(message.stats or {}, _Stats)
    details = (message.token_usage, message.stats, message.error)
    if any(len(msgspec.json.encode(detail)) > DETAILS_BYTES for detail in details):
        _refuse(f"token_usage, stats and error must have at most {DETAILS_BYTES >> 10} KiB each")
    if any(not 0 <= one.start <= one.end <= len(message.content) for one in message.citations or ()):
        _refuse("a citation is not in the answer")
    if any(len(msgspec.json.encode(detail)) > EVENT_BYTES for detail in (message.citations, message.sent_pages)):
        _refuse(f"citations and sent_pages must have at most {EVENT_BYTES >> 10} KiB each")
    if message.role == "user" and len(message.content) > ANSWER_CHARACTERS:  # a program may ask so long a question
        _refuse(f"a question has more than {ANSWER_CHARACTERS:,} characters")
    if message.generation and not _replays(message, message.generation):
        message.generation = None  # the answer stays, and is replayed like one from another program


class _Event(msgspec.Struct):
    event: Annotated[str, Meta(pattern=r"\A[a-z]+\Z")]
    data: dict[str, Any]
    id: Id = 1


def _replays(message: Message, generation: Generation) -> bool:
    """Return whether the log divides both texts completely, and ends."""
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
