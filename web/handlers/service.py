"""Handlers of the service itself: health, usage, storage, and the page's files."""

import asyncio
import gzip
import hashlib
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import msgspec
from starlette.applications import Starlette
from starlette.responses import Response

from ... import __version__, db
from ...errors import NotFound, StorageUnavailable
from ...queries import accounts
from ...queries.usage import find_changes, list_usage
from .. import icons, openapi, responses
from ..endpoint import LONG_READ_SECONDS, Request
from ..middleware import PAGE_POLICY

# ---- the service


async def usage(request: Request) -> responses.UsageByDay:
    entries = await request.read_long(LONG_READ_SECONDS, list_usage)
    return responses.UsageByDay(entries, await asyncio.to_thread(find_changes, entries))


async def storage(request: Request) -> responses.Storage:
    config = request.app_state.config
    data = await request.read(accounts.measure_data)
    server = None
    if request.is_admin:
        files = await request.database.read(accounts.count_attachment_bytes)
        sizes = await asyncio.to_thread(db.measure, config.database)
        server = responses.ServerStorage(**files, **sizes)
    limit = config.user_max_bytes or None
    return responses.Storage(**data, limit_bytes=limit, daily_backups=config.backups, server=server)


async def health(request: Request) -> responses.Health:
    await request.database.read(accounts.count_users)
    if request.database.damaged:
        raise StorageUnavailable("The database is damaged. Run: fireside doctor")
    return responses.Health("healthy")


async def describe_api(request: Request) -> Annotated[Response, dict[str, Any]]:
    return Response(await asyncio.to_thread(_openapi, request.app), media_type="application/json")  # 0.1 s, once


@lru_cache(maxsize=1)
def _openapi(app: Starlette) -> bytes:
    return msgspec.json.encode(openapi.document(app.routes))


async def version(request: Request) -> responses.Version:
    return responses.Version(__version__)


# ---- the page's files


# Not from the mimetypes module: it reads the Windows registry, where .js can be text/plain, which browsers do not run.
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".webmanifest": "application/manifest+json",
}


@cache
def _load(name: str) -> tuple[bytes, bytes, dict[str, str]]:
    """Return a file of the page, the same gzipped, and its headers. Raises NotFound.

    They stay in memory. For the 22 files of a first visit this takes 5 ms of CPU; StaticFiles and GZipMiddleware, which open and
    compress each file each time, take 29 ms and delay the first paint by as much.
    """
    if name in icons.FILES:
        body = icons.draw(name)
    else:
        files = resources.files("fireside").joinpath("static").iterdir()
        found = next((file for file in files if file.name == name), None)
        if found is None or Path(name).suffix not in MEDIA_TYPES:
            raise NotFound("file")
        body = found.read_bytes()
    headers = {
        "Cache-Control": "no-cache",
        "Content-Security-Policy": PAGE_POLICY,
        "Content-Type": MEDIA_TYPES[Path(name).suffix],
        "ETag": f'"{hashlib.sha256(body).hexdigest()[:20]}"',
        "Vary": "Accept-Encoding",
    }
    return body, gzip.compress(body, mtime=0), headers


async def page(request: Request) -> Annotated[Response, "text/html"]:
    return await static(request, "index.html")


async def static(request: Request, name: str) -> Annotated[Response, "*/*"]:
    if name in icons.FILES:
        await asyncio.to_thread(icons.draw, name)
    body, gzipped, headers = _load(name)
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(gzipped, headers=headers | {"Content-Encoding": "gzip"})
    return Response(body, headers=headers)
