"""Handlers of import and export."""

import asyncio
import contextlib
import logging
import shutil
import sqlite3
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from ... import db
from ...errors import FiresideError, ImportUnreadable, StorageUnavailable, UnsupportedMediaType
from ...queries import conversations
from ...safety.logs import audit
from ...transfer.importer import Report
from .. import schemas
from ..endpoint import Request

Zip = Annotated[Response, "application/zip"]
IMPORT_BYTES = 1024**3
UPLOADS = "uploads"  # the folder in the data directory that holds uploads while they are imported
log = logging.getLogger("fireside.handlers")


async def import_upload(request: Request, query: schemas.ImportQuery) -> Annotated[Any, Report, "application/x-ndjson"]:
    suffix = schemas.IMPORT_TYPES.get(request.content_type)
    if suffix is None:
        raise UnsupportedMediaType(f"An import must be {', '.join(schemas.IMPORT_TYPES)}.")
    importer, name = request.app_state.importer, f"upload{suffix}"
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(importer.uploading[request.user_id])
        file = await stack.enter_async_context(saved_body(request, name, IMPORT_BYTES))
        audit("import preview" if query.dry_run else "import", request.identity.user, request.address)
        if query.progress:
            steps = importer.import_steps(request.user_id, [file], dry_run=query.dry_run)
            return ImportProgress(steps, stack.pop_all())
        report = await importer.import_files(request.user_id, [file], dry_run=query.dry_run)
    if report.skipped and not report.has_any():
        reasons = [_reason(one.file.removeprefix(name).lstrip(":, "), one.reason) for one in report.skipped]
        raise ImportUnreadable(reasons)
    return report


@contextlib.asynccontextmanager
async def saved_body(request: Request, name: str, limit: int) -> AsyncIterator[Path]:
    """Write the body to a file as it arrives: a slow client must not keep it in memory. The file is removed at the end.

    Raises BodyTooLarge, and StorageUnavailable for an OSError, also of the block.
    """
    try:
        with tempfile.TemporaryDirectory(dir=request.app_state.config.data_dir / UPLOADS) as folder:
            file = Path(folder) / name
            with file.open("wb") as upload:
                async for chunk in request.chunks(limit):
                    await asyncio.to_thread(upload.write, chunk)
            yield file
    except OSError as error:
        raise StorageUnavailable(f"The upload could not be saved: {error.strerror}.") from error


def _reason(part: str, reason: str) -> str:
    """Return a reason why a part of an upload, or all of it, was skipped. The client has not sent the file's name."""
    return f"{part}: {reason}" if part else f"The file {reason}"


def make_upload_folder(data_dir: Path) -> None:
    """Create the folder for uploads, and delete those that a killed server has left."""
    shutil.rmtree(data_dir / UPLOADS, ignore_errors=True)
    (data_dir / UPLOADS).mkdir(mode=0o700, exist_ok=True)


class Download(StreamingResponse):
    """A file that is produced while it is sent. On an error the connection is closed before the end of the file."""

    body_iterator: AsyncGenerator[bytes, None]

    async def stream_response(self, send: Send) -> None:
        try:
            async with contextlib.aclosing(self.body_iterator):
                await super().stream_response(send)
        except (FiresideError, OSError, sqlite3.Error) as error:
            log.error("A download ended early: %s", error)


class ImportProgress(Download):
    """The steps of an import as lines of JSON. The uploaded file is removed at the end."""

    def __init__(self, steps: AsyncGenerator[bytes, None], upload: contextlib.AsyncExitStack) -> None:
        super().__init__(steps, media_type="application/x-ndjson")
        self._upload = upload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._upload:
            await super().__call__(scope, receive, send)


async def export_all(request: Request, query: schemas.ExportAllQuery) -> Zip:
    if not query.ids:
        audit("export of all conversations", request.identity.user, request.address)
        return zip_response(request.app_state.exporter.export_zip(request.user_id))
    ids = await request.read(conversations.owned_ids, [int(one) for one in query.ids.split(",")])
    audit("export of conversations", request.identity.user, request.address, count=len(ids))
    return zip_response(request.app_state.exporter.export_zip(request.user_id, ids))


def zip_response(chunks: AsyncGenerator[bytes, None]) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="fireside-{db.now()[:10]}.zip"'}
    return Download(chunks, media_type="application/zip", headers=headers)


async def export_one(
    request: Request, conversation_id: int, query: schemas.ExportQuery
) -> Annotated[Response, "text/markdown", "application/json"]:
    name, chunks = await request.app_state.exporter.export_conversation(request.user_id, conversation_id, query.format)
    audit("export of one conversation", request.identity.user, request.address)
    kind = "text/markdown; charset=utf-8" if query.format == "markdown" else "application/json"
    headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(name)}", "Content-Type": kind}
    return Download(chunks, headers=headers)
