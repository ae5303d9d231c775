"""`fireside doctor`: look for problems and say what to do."""

import asyncio
import contextlib
import os
import shutil
import sqlite3
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

from .. import __version__, db
from ..backends.gguf import Skipped
from ..config import Config
from ..db import DatabaseUnusable
from ..providers import Providers
from ..safety.logs import AUDIT_FILE
from . import autostart
from .client import find_service

SPACE = 200_000_000  # free bytes, below which doctor says so
Version: TypeAlias = tuple[int, ...]
# Program, security hole, versions with the fix, effect. From the records at cve.org; the WAL-reset bug from sqlite.org/releaselog/3_51_3.html.
KNOWN_HOLES: tuple[tuple[str, str, tuple[Version, ...], str], ...] = (
    (
        "Python",
        "CVE-2024-0450",
        ((3, 11, 8), (3, 12, 2)),
        "a small zip file can unpack to a huge one. Fireside's limits on imports hold.",
    ),
    (
        "Python",
        "CVE-2024-7592",
        ((3, 11, 10), (3, 12, 6)),
        "a crafted cookie takes seconds to parse. Fireside does not use that parser.",
    ),
    (
        "Python",
        "CVE-2026-115557",
        ((3, 11, 18), (3, 12, 16), (3, 13, 18), (3, 14, 10), (3, 15, 2)),
        "certificates signed with stolen keys are trusted. Update Python if a model server has an https address.",
    ),
    (
        "SQLite",
        "WAL-reset bug",
        ((3, 44, 6), (3, 50, 7), (3, 51, 3)),
        "two programs that write one database can damage it. Open Fireside's database with no other program.",
    ),
    (
        "SQLite",
        "CVE-2026-11822 and CVE-2026-119373",
        ((3, 54, 0),),
        "a crafted database file can run code. Restore and salvage only files that you trust.",
    ),
)
OK, NOTE, BAD = "ok", "note", "BAD"  # what doctor says of what it found


def _examine(settings: Config) -> Iterator[tuple[str, str]]:
    running = find_service(settings)
    yield OK, f"Fireside {__version__}, " + (f"running at {running.url}" if running else "not running")
    yield OK, f"data directory {settings.data_dir}"
    yield OK, f"sign-ins, invites, exports and changes of accounts are logged in {settings.data_dir / AUDIT_FILE}"
    for warning in autostart.warnings(settings.data_dir):
        yield BAD, warning
    yield from _examine_modes(settings.data_dir)
    yield from _examine_version("Python", sys.version_info[:3])
    yield from _examine_version("SQLite", sqlite3.sqlite_version_info)
    if settings.database.exists():
        try:
            version = db.examine(settings.database)
        except (sqlite3.Error, DatabaseUnusable) as error:
            yield BAD, db.explain(settings.database, error)
        else:
            size = settings.database.stat().st_size
            yield OK, f"database {size:,} bytes, schema {version} of {db.VERSION}, integrity check passed"
    else:
        yield NOTE, "no database yet: it is made at the first start"
    yield _examine_backup(settings.data_dir)
    yield _examine_space(settings.data_dir)
    entries, skipped = asyncio.run(_ask_providers(settings))
    for entry in entries:
        found = f"{entry['name']}: models that can answer: {len(entry['models'])}"
        yield (OK, found) if entry["online"] else (NOTE, entry["error"])
    for skip in skipped:
        yield NOTE, f"{skip.path} is not offered: {skip.reason}"


def _examine_version(program: str, version: Version) -> Iterator[tuple[str, str]]:
    name = f"{program} {_dotted(version)}"
    holes = [
        (hole, fix) for hole in KNOWN_HOLES if hole[0] == program and version < (fix := _first_fix(version, hole[2]))
    ]
    if not holes:
        yield OK, f"{name} has no known security hole that concerns Fireside"
    for (_, hole, _, effect), fix in holes:
        yield NOTE, f"{name}: {hole}, fixed in {_dotted(fix)} or by your Linux distribution: {effect}"


def _first_fix(version: Version, fixes: tuple[Version, ...]) -> Version:
    """Return the fix for the version's own branch, such as 3.11, or else the newest."""
    return next((fix for fix in fixes if fix[:2] == version[:2]), max(fixes))


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))


def _examine_backup(data_dir: Path) -> tuple[str, str]:
    backup = db.newest_backup(data_dir)
    if backup is None:
        return NOTE, "no backup yet: one is made each day"
    try:
        db.examine(backup)
    except (sqlite3.Error, DatabaseUnusable) as error:
        return (
            BAD,
            f"newest backup {backup} cannot be restored: {db.describe(error)}. Make another: fireside backup FILE",
        )
    return OK, f"newest backup {backup}, integrity check passed"


def _examine_space(data_dir: Path) -> tuple[str, str]:
    place = next(folder for folder in (data_dir, *data_dir.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    said = f"{free:,} bytes free on the disk"
    return (OK, said) if free >= SPACE else (BAD, f"{said}: make room before it is full")


def _examine_modes(data_dir: Path) -> Iterator[tuple[str, str]]:
    if os.name != "posix" or not data_dir.exists():
        return
    # service.warnings has looked at the directory itself. While Fireside runs, files and folders come and go.
    for folder, below, names in os.walk(data_dir):
        for file in (Path(folder, name) for name in (*below, *names)):
            with contextlib.suppress(FileNotFoundError):
                mode = file.lstat().st_mode
                if mode & 0o077 and not stat.S_ISLNK(mode):
                    yield BAD, f"{file} can be read by others: chmod {'700' if stat.S_ISDIR(mode) else '600'} {file}"


async def _ask_providers(settings: Config) -> tuple[list[dict[str, Any]], list[Skipped]]:
    """What they answer, and what the embedded engine finds and cannot offer."""
    from ..backends.engine import Engine

    engine = Engine(settings)
    providers = Providers(settings, engine)
    embedded = any(provider.kind == "embedded" for provider in settings.providers)
    try:
        return await providers.catalog(details=True), await engine.skipped() if embedded else []
    finally:
        await providers.aclose()
