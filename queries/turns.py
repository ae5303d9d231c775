"""Queries of what is sent to a model: the turns of a path, with their images and documents."""

import json
import sqlite3
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import Struct

from ..db import Connection, fetch
from ..errors import NotFound
from . import documents
from .attachments import IS_IMAGE, get_data
from .conversations import owned
from .documents import Document, Excerpt, SentPages
from .messages import PATH
from .prompts import get_effective_defaults
from .types import Image, from_row

SENT_IMAGES = 32  # of a prompt: more fill the context of a local model, at several hundred tokens each
SENT_IMAGE_BYTES = 32 * 1024 * 1024  # more than one request can add, so that a new message's images are always sent


class Turn(Struct):
    """A message of a prompt."""

    role: str
    content: str
    images: list[Image]  # those that are sent
    omitted_images: int  # older ones, beyond SENT_IMAGES or SENT_IMAGE_BYTES
    total_tokens: int | None  # of an answer with its prompt
    omitted_messages: int  # of the prompt of an answer
    context_length: int | None  # in tokens, of the model that answered
    message_id: int = 0
    document_ids: list[int] = []  # those that no earlier turn has
    excerpts: list[Excerpt] = []  # what stands in it of the documents of the path


class Prompt(Struct):
    system_prompt: str
    turns: list[Turn]
    documents: dict[int, Document] = {}  # of the path, by id

    @property
    def excerpts(self) -> list[Excerpt]:
        return [excerpt for turn in self.turns for excerpt in turn.excerpts]


def get_prompt(conn: Connection, leaf_id: int, image_data: bool = True, pages: list[SentPages] | None = None) -> Prompt:
    """Return the path from the first message to this message, with the newest images of its user messages. Raises NotFound.

    Servers accept no images in answers, so those of imported answers are not read. Without `image_data` the images are empty. The texts
    of excerpts are not read here. `pages`: those of each question, instead of those that were chosen last.
    """
    sql = "SELECT c.system_prompt FROM messages m JOIN conversations c ON c.id = m.conversation_id WHERE m.id = ?"
    conversation = fetch(conn, sql, (leaf_id,), NotFound("conversation"))
    rows = conn.execute(
        PATH
        + "SELECT m.id AS message_id, m.role, m.content, json_extract(m.token_usage, '$.total_tokens') AS total_tokens,"
        " coalesce(json_extract(m.stats, '$.omitted_messages'), 0) AS omitted_messages,"
        " json_extract(m.stats, '$.context_length') AS context_length,"
        " m.role = 'user' AND EXISTS (SELECT 1 FROM message_attachments WHERE message_id = m.id) AS has_attachments"
        " FROM path JOIN messages m ON m.id = path.id ORDER BY path.depth DESC",
        {"leaf": leaf_id, "limit": -1},
    ).fetchall()
    with_files = [row["message_id"] for row in rows if row["has_attachments"]]
    images, omitted_images = _read_images(conn, with_files, image_data)
    known = documents.list_documents(conn, with_files) if with_files else []
    if known and pages is None:
        pages = documents.list_sent_pages(conn, [row["message_id"] for row in rows if row["role"] == "user"])
    excerpts = _excerpts([document.id for _, document in known], pages or ())
    return Prompt(
        conversation["system_prompt"],
        [
            from_row(
                Turn,
                row,
                images=images.get(row["message_id"], []),
                omitted_images=omitted_images.get(row["message_id"], 0),
                document_ids=[document.id for message_id, document in known if message_id == row["message_id"]],
                excerpts=excerpts.get(row["message_id"], []),
            )
            for row in rows
        ],
        {document.id: document for _, document in known},
    )


def _read_images(
    conn: Connection, message_ids: list[int], image_data: bool
) -> tuple[dict[int, list[Image]], dict[int, int]]:
    """Return the images of each message that are sent, and how many are not."""
    select = (
        "SELECT l.rowid AS link_id, a.id, a.media_type, a.size_bytes FROM message_attachments l"
        f" JOIN attachments a ON a.id = l.attachment_id WHERE l.message_id = ? AND a.{IS_IMAGE} ORDER BY l.position"
    )
    stored = {message_id: conn.execute(select, (message_id,)).fetchall() for message_id in message_ids}
    sent = _choose_images(stored.values())
    images, omitted = {}, {}
    for message_id, rows in stored.items():
        chosen = [row for row in rows if row["link_id"] in sent]
        images[message_id] = [
            Image(row["media_type"], get_data(conn, row["id"]) if image_data else b"") for row in chosen
        ]
        omitted[message_id] = len(rows) - len(chosen)
    return images, omitted


def _excerpts(document_ids: Sequence[int], pages: Iterable[SentPages]) -> dict[int, list[Excerpt]]:
    """Return the excerpts of each question, in the order of the documents."""
    places = {document_id: place for place, document_id in enumerate(document_ids)}
    known = [
        one for one in pages if one.attachment_id in places
    ]  # the message that had a document may have been deleted
    excerpts: dict[int, list[Excerpt]] = {}
    for one in sorted(known, key=lambda one: places[one.attachment_id]):
        excerpts.setdefault(one.message_id, []).append(Excerpt(one.attachment_id, one.ranges))
    return excerpts


def _choose_images(messages: Iterable[Sequence[sqlite3.Row]]) -> set[int]:
    """Return the link_id of the images to send. `messages`: those of each message of a path, oldest first.

    Above a limit the oldest images are left out until half of it is free, so that the next prompts begin with the same bytes, which
    the model server has cached. A message that is above a limit by itself keeps its last images.
    """
    sent: deque[sqlite3.Row] = deque()
    used = 0
    for images in messages:
        sent.extend(images)
        used += sum(image["size_bytes"] for image in images)
        full = len(sent) > SENT_IMAGES or used > SENT_IMAGE_BYTES
        while full and len(sent) > len(images) and (len(sent) > SENT_IMAGES / 2 or used > SENT_IMAGE_BYTES / 2):
            used -= sent.popleft()["size_bytes"]
        while len(sent) > SENT_IMAGES or used > SENT_IMAGE_BYTES:
            used -= sent.popleft()["size_bytes"]
    return {image["link_id"] for image in sent}


def get_next_prompt(conn: Connection, user_id: int, conversation_id: int | None) -> tuple[Prompt, dict[str, Any]]:
    """Return the prompt of the next question without that question and without the data of images, and the parameters.

    None: of a new conversation. Raises NotFound.
    """
    if conversation_id is None:
        defaults = get_effective_defaults(conn, user_id)
        return Prompt(defaults.system_prompt, []), json.loads(bytes(defaults.settings))
    conversation = owned(conn, user_id, conversation_id)
    leaf = conversation["active_message_id"]
    prompt = get_prompt(conn, leaf, image_data=False) if leaf else Prompt(conversation["system_prompt"], [])
    documents.add_texts(conn, prompt.excerpts)
    return prompt, json.loads(conversation["settings"])
