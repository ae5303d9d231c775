"""What a sandbox child sends while it reads files for an import: the steps that store their contents.

A conversation is a Begin, its messages, and an End; or a Skip in place of the End, when the rest cannot be read. Before the first message
of all conversations that has a file comes the File. A Save is a saved prompt or a preset.
"""

import msgspec

from ..queries.types import Id
from .transcript import Conversation, Message, Saved


class Skipped(msgspec.Struct):
    file: str
    reason: str


class Begin(msgspec.Struct, tag=True):
    conversation: Conversation  # without its messages
    question: str | None  # the first message, by which a conversation that began in Fireside is known


class File(msgspec.Struct, tag=True):
    sha256: bytes
    name: str
    media_type: str  # as the file claims
    data: bytes


class Attached(msgspec.Struct):
    """An attachment of a message: a file that was sent before."""

    id: Id | None  # by which citations and sent_pages of the conversation refer to it
    sha256: bytes
    name: str


class Add(msgspec.Struct, tag=True):
    message: Message  # without its attachments
    attachments: list[Attached]
    key: str  # as archive.list_message_keys makes it
    parent_key: str | None


class End(msgspec.Struct, tag=True):
    active_key: str | None
    queue: list[list[Attached]]  # the attachments of each message in the queue


class Skip(msgspec.Struct, tag=True):
    skipped: Skipped


class Save(msgspec.Struct, tag=True):
    saved: Saved


Step = Begin | File | Add | End | Skip | Save


class Piece(msgspec.Struct):
    done: float  # the fraction of the file that was read
    steps: list[Step]
