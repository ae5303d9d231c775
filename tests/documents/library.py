"""Documents for tests of the chat: stored as if they had been uploaded and read."""

from collections.abc import Sequence

from fireside.db import Connection
from fireside.queries import attachments

from ..live import Running


async def add(running: Running, message_id: int, name: str, pages: Sequence[str], user_id: int = 1) -> int:
    """Give a message a document of these pages. Return its id."""

    def store(conn: Connection) -> int:
        data = "\f".join(pages).encode()
        attachment_id = attachments.upload(conn, user_id, data, name, "text/plain").id
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
