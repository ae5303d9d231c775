"""`fireside doctor`: check the installation, the database and the model servers, and say what to do about each problem."""

import asyncio
import contextlib
import os
import shutil
import sqlite3
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .. import __version__, config, db
from ..backends.engine import Engine
from ..backends.gguf import Skipped
from ..config import Config
from ..db import DatabaseUnusable
from ..providers import Providers
from ..safety.logs import AUDIT_FILE
from .client import find_service
from .printer import printable

LOW_SPACE_BYTES = 200_000_000
OK, NOTE, BAD = "ok", "note", "BAD"
# Program, vulnerability, first fixed version of each branch, effect. Sources: cve.org, sqlite.org/releaselog/3_51_3.html.
VULNERABILITIES = (
    ("Python", "CVE-2024-0450", "3.11.8 3.12.2", "a small zip file can unpack to a huge one. Fireside limits imports."),
    ("Python", "CVE-2024-7592", "3.11.10 3.12.6", "parsing a crafted cookie takes seconds. Fireside does not use that parser."),
    ("Python", "CVE-2026-115557", "3.11.18 3.12.16 3.13.18 3.14.10 3.15.2",
     "certificates signed with stolen keys are trusted. Update Python if a model server has an https address."),
    ("SQLite", "the WAL-reset bug", "3.44.6 3.50.7 3.51.3",
     "two programs that write one database can damage it. Open Fireside's database with no other program."),
    ("SQLite", "CVE-2026-11822 and CVE-2026-119373", "3.54.0",
     "a crafted database file can run code. Restore and salvage only files that you trust."),
)  # fmt: skip


def doctor(options: dict[str, Any]) -> int:
    """Print the result of every check. Returns 1 if one of them is BAD."""
    marks = set()
    for mark, line in _checks(config.load(options)):
        marks.add(mark)
        print(printable(f"{mark:4} {line}"))
    return 1 if BAD in marks else 0


def readable_by_others(paths: Iterable[Path]) -> Iterator[str]:
    """Yield a line for each file or folder that other users of the computer can read. Windows has no such permission bits."""
    for path in paths if os.name == "posix" else ():
        with contextlib.suppress(FileNotFoundError):  # the running service deletes files
            mode = path.lstat().st_mode
            if mode & 0o077 and not stat.S_ISLNK(mode):
                yield f"{path} can be read by other users. Run: chmod {'700' if stat.S_ISDIR(mode) else '600'} {path}"


def _checks(settings: Config) -> Iterator[tuple[str, str]]:
    folder = settings.data_dir
    running = find_service(settings)
    yield OK, f"Fireside {__version__}, " + (f"running at {running.url}" if running else "not running")
    yield OK, f"data directory {folder}"
    yield OK, f"sign-ins, invites, exports and changes of accounts are logged in {folder / AUDIT_FILE}"
    everything = (Path(parent, name) for parent, folders, files in os.walk(folder) for name in (*folders, *files))
    for line in readable_by_others([folder.resolve(), *everything]):
        yield BAD, line
    yield from _check_version("Python", sys.version_info[:3])
    yield from _check_version("SQLite", sqlite3.sqlite_version_info)
    if settings.database.exists():
        try:
            version = db.check_file(settings.database)
        except (sqlite3.Error, DatabaseUnusable) as error:
            yield BAD, db.advice(settings.database, error)
        else:
            size = settings.database.stat().st_size
            yield OK, f"database of {size:,} bytes, schema version {version}, integrity check passed"
    else:
        yield NOTE, "no database yet; Fireside creates it at the first start"
    yield _check_backup(folder)
    free = shutil.disk_usage(next(each for each in (folder, *folder.parents) if each.exists())).free
    if free >= LOW_SPACE_BYTES:
        yield OK, f"{free / 1e9:,.1f} GB free on the disk"
    else:
        yield BAD, f"only {free / 1e6:,.0f} MB free on the disk. Free some space."
    entries, skipped = asyncio.run(_query_providers(settings))
    for entry in entries:
        found = f"{entry['name']}: chat models: {len(entry['models']) if entry['models_known'] else 'not listed'}"
        yield (OK, found) if entry["online"] else (NOTE, entry["error"])
    for skip in skipped:
        yield NOTE, f"{skip.path} cannot be used: {skip.reason}"


def _check_version(program: str, version: tuple[int, ...]) -> Iterator[tuple[str, str]]:
    name, found = f"{program} {'.'.join(map(str, version))}", False
    for vulnerable, vulnerability, fixed_versions, effect in VULNERABILITIES:
        fixes = [tuple(map(int, each.split("."))) for each in fixed_versions.split()]
        fix = next((each for each in fixes if each[:2] == version[:2]), max(fixes))
        if vulnerable == program and version < fix:
            found = True
            fixed = f"Fixed in {'.'.join(map(str, fix))}, or by an update of your Linux distribution."
            yield NOTE, f"{name} may have {vulnerability}: {effect} {fixed}"
    if not found:
        yield OK, f"{name} has no known vulnerability that concerns Fireside"


def _check_backup(data_dir: Path) -> tuple[str, str]:
    backup = db.newest_backup(data_dir)
    if backup is None:
        return NOTE, "no backup yet; Fireside makes one each day"
    try:
        db.check_file(backup)
    except (sqlite3.Error, DatabaseUnusable) as error:
        return (
            BAD,
            f"newest backup {backup} cannot be restored: {db.problem(error)}. Make another: fireside backup FILE",
        )
    return OK, f"newest backup {backup}, integrity check passed"


async def _query_providers(settings: Config) -> tuple[list[dict[str, Any]], list[Skipped]]:
    """Return the catalog of all model servers, and the model files that the embedded engine cannot offer."""
    engine = Engine(settings)
    providers = Providers(settings, engine)
    embedded = any(provider.kind == "embedded" for provider in settings.providers)
    try:
        return await providers.catalog(details=True), await engine.skipped() if embedded else []
    finally:
        await providers.aclose()
