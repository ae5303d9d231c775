"""Documents for tests of the chat: stored as if they had been uploaded and read."""

import hashlib
from collections.abc import Sequence

from fireside.db import Connection
from fireside.queries import attachments
from fireside.queries.types import Attachment

from ..live import Running


def upload(conn: Connection, user_id: int, data: bytes, name: str, media_type: str, max_bytes: int = 0) -> Attachment:
    """Store a file as POST /attachments does, in one transaction."""
    digest = hashlib.sha256(data).digest()
    if known := attachments.find(conn, user_id, digest):
        return attachments.finish_upload(conn, user_id, known, digest, name)
    attachment_id = attachments.begin_upload(conn, user_id, len(data), data[:12], name, media_type)
    for part, start in enumerate(range(0, len(data), attachments.PART_BYTES)):
        attachments.add_part(conn, attachment_id, part, data[start : start + attachments.PART_BYTES])
    return attachments.finish_upload(conn, user_id, attachment_id, digest, name, max_bytes)


async def add(running: Running, message_id: int, name: str, pages: Sequence[str], user_id: int = 1) -> int:
    """Give a message a document of these pages. Return its id."""

    def store(conn: Connection) -> int:
        data = "\f".join(pages).encode()
        attachment_id = upload(conn, user_id, data, name, "text/plain").id
        if attachments.is_unread(conn, attachment_id):
            attachments.set_opened(conn, attachment_id, "text/plain", "page", len(pages), None)
            done = 0
            while done < len(pages):
                done += attachments.add_pages(conn, attachment_id, done + 1, pages[done:])
            attachments.set_read(conn, attachment_id, "ready", None)
        linked = attachments.linked_ids(conn, message_id)
        if attachment_id not in linked:
            attachments.link(conn, message_id, len(linked), attachment_id, name)
        return attachment_id

    return await running.state.database.write(store)
