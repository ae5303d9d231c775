"""Handlers of attachments: upload a file, read what is known of it and its text, download it."""

import asyncio
import contextlib
import hashlib
import itertools
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

from starlette.responses import Response, StreamingResponse

from ...db import Connection
from ...errors import Invalid, NotFound
from ...queries import attachments
from ...queries.search import FoundPage, find_pages
from ...queries.types import Attachment
from .. import responses, schemas
from ..endpoint import Request
from .conversations import SEARCH_SECONDS
from .data import saved_body

WAIT_SECONDS = 2.0  # of an upload, for the reading
MEDIA_TYPE = re.compile(r"[a-z0-9!#$&^_.+-]{1,60}/[a-z0-9!#$&^_.+-]{1,100}")


async def upload(request: Request, query: schemas.UploadQuery) -> Attachment:
    media_type = request.content_type if MEDIA_TYPE.fullmatch(request.content_type) else attachments.OTHER
    async with saved_body(request, "upload", attachments.MAX_BYTES) as file:
        if not file.stat().st_size:
            raise Invalid("The file is empty.")
        async with request.app_state.storing.slot(request.user_id):
            stored = await _store(request, file, attachments.clean_name(query.name), media_type)
    return await _read(request, stored)


async def _store(request: Request, file: Path, name: str, media_type: str) -> Attachment:
    """Store a file in transactions of one part each, so that other writes need not wait for all of it."""
    database, user_id, max_bytes = request.database, request.user_id, request.app_state.config.user_max_bytes
    with file.open("rb") as body:
        digest = (await asyncio.to_thread(hashlib.file_digest, body, "sha256")).digest()
        if known := await database.read(attachments.find, user_id, digest):
            with contextlib.suppress(NotFound):  # released since: it is stored again
                return await database.write(attachments.finish_upload, user_id, known, digest, name)
        size = body.tell()
        body.seek(0)
        part = body.read(attachments.PART_BYTES)
        attachment_id = await database.write(attachments.begin_upload, user_id, size, part[:12], name, media_type)
        try:
            number = 0
            while part:
                await database.write_part(attachments.add_part, attachment_id, number, part)
                part = await asyncio.to_thread(body.read, attachments.PART_BYTES)
                number += 1
            return await database.write(attachments.finish_upload, user_id, attachment_id, digest, name, max_bytes)
        except BaseException:
            await asyncio.shield(database.write(attachments.abandon_upload, attachment_id))
            raise


async def _read(request: Request, attachment: Attachment) -> Attachment:
    """Let a document be read, and wait for that for WAIT_SECONDS. Return the attachment as it is then."""
    if attachment.status != "reading":
        return attachment
    request.app_state.reader.begin(request.user_id)
    await request.app_state.reader.wait(attachment.id, WAIT_SECONDS)
    return await request.read(attachments.owned_attachment, attachment.id)


async def get_attachment(request: Request, attachment_id: int) -> Attachment:
    return await request.read(attachments.owned_attachment, attachment_id)


async def enter_password(request: Request, attachment_id: int, body: schemas.DocumentPassword) -> Attachment:
    await request.app_state.reader.read_encrypted(request.user_id, attachment_id, body.password)
    return await _read(request, await get_attachment(request, attachment_id))


async def get_content(request: Request, attachment_id: int) -> Annotated[Response, "*/*"]:
    """Return the file. The headers that every response has let it run nothing and load nothing where it is shown."""
    attachment = await get_attachment(request, attachment_id)

    async def parts() -> AsyncIterator[bytes]:
        for number in itertools.count():
            if not (part := await request.database.read(attachments.get_part, attachment_id, number)):
                return
            yield part

    headers = {
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(attachment.name or f'image-{attachment_id}')}",
        "Content-Type": attachment.media_type,
    }
    return StreamingResponse(parts(), headers=headers | {"Content-Length": str(attachment.size_bytes)})


async def search(request: Request, attachment_id: int, query: schemas.PageSearchQuery) -> responses.FoundPages:
    def find(conn: Connection, user_id: int) -> list[FoundPage]:
        attachments.owned_attachment(conn, user_id, attachment_id)
        return find_pages(conn, attachment_id, query.q)

    return responses.FoundPages(await request.read_long(SEARCH_SECONDS, find))


async def list_pages(request: Request, attachment_id: int, query: schemas.PagesQuery) -> responses.DocumentPages:
    pages = await request.read(attachments.list_pages, attachment_id, query.first, query.count)
    return responses.DocumentPages([responses.DocumentPage(**page) for page in pages])
