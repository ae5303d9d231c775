"""The commands besides serve. Each goes through the service while it runs, and takes the data directory itself when it does not."""

import contextlib
import getpass
import json
import sqlite3
import sys
import time
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

import httpx

from .. import config, db, queries
from ..auth import Auth
from ..backends import lmstudio
from ..config import Config
from ..db import Database, DatabaseUnusable
from ..errors import FiresideError, NotFound
from ..safety.logs import TERMINAL, audit
from ..transfer.exporter import Exporter
from ..transfer.importer import Importer
from . import autostart
from . import salvage as salvaging
from .client import (
    Failed,
    Service,
    _require_database,
    _with_database,
    address,
    find_service,
    ports,
    say_setup,
    setup_link,
)
from .doctor import BAD, _examine

START_SECONDS = 30.0  # that an installed service may take to answer, the first time


# ---------------------------------------------------------------------------------------------------- accounts


def login_link(options: dict[str, Any]) -> int:
    """Print a link that signs a browser in, once, within ten minutes."""
    settings = config.load(options)
    running = find_service(settings)
    port = ports(settings, options)[0]
    stopped = settings.public_url or (address(settings, settings.host.strip("[]"), port) if port else "")
    url = running.url if running else stopped
    try:
        if running:
            token = running.post("link", {"username": options["user"]})["token"]
        else:
            token = _with_database(settings, lambda database: Auth(settings, database).login_link(options["user"]))
        link, soon = f"{url}/#login={token}", " within ten minutes"
    except (Failed, NotFound):
        link, soon = setup_link(settings, url) or "", ""
        if not link:
            raise
        print("There is no account yet: this link creates the first one.", file=sys.stderr)
    if not running:
        then = "open this link:" if url else "open the address that it prints, with this added:"
        print(f"Start Fireside{soon}, then {then}", file=sys.stderr)
    print(link)
    return 0


def reset_password(options: dict[str, Any]) -> int:
    """Set a new password; all sessions of the user end."""
    settings = config.load(options)
    if sys.stdin.isatty():
        try:
            password, again = getpass.getpass("New password: "), getpass.getpass("Once more: ")
        except EOFError:
            raise Failed("No password was given. Nothing was changed.") from None
        if again != password:
            raise Failed("The two are not the same. Nothing was changed.")
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    running = find_service(settings)
    if running:
        name = running.post("password", {"username": options["user"], "password": password})["username"]
    else:
        name = _with_database(
            settings, lambda database: Auth(settings, database).reset_password(options["user"], password)
        ).username
    print(f"{name} has a new password. All sessions of {name} have ended.")
    return 0


# ---------------------------------------------------------------------------------------------------- the file


def backup(options: dict[str, Any]) -> int:
    """Write a consistent copy of the database, also while it is in use."""
    settings, target = config.load(options), Path(options["file"]).absolute()
    if not target.parent.is_dir():  # a disk that is not plugged in
        raise Failed(f"{target.parent}: there is no such folder. Make it first, or name another file.")
    running = find_service(settings)
    if running:
        running.post("backup", {"file": str(target)})
    else:
        _require_database(settings)
        with db.lock(settings.data_dir):
            try:
                db.copy(settings.database, target)
            except db.DatabaseDamaged as error:
                raise Failed(db.explain(settings.database, error)) from None
    print(f"{target}: {target.stat().st_size:,} bytes, checked")
    return 0


def restore(options: dict[str, Any]) -> int:
    """Put a backup in the database's place. What was there is kept beside the other backups."""
    settings, file = config.load(options), Path(options["file"]).absolute()
    if find_service(settings):
        raise Failed("Fireside is running. Stop it first, then restore.")
    with db.lock(settings.data_dir):
        kept = db.restore(file, settings.database)
    print(f"Restored from {file}." + (f" What was there before is {kept}." if kept else ""))
    return 0


def salvage(options: dict[str, Any]) -> int:
    """Write what can still be read of a damaged database to a new one."""
    settings, target = config.load(options), Path(options["new"]).absolute()
    source = Path(options["damaged"]).absolute() if options["damaged"] else settings.database
    if find_service(settings):
        raise Failed("Fireside is running. Stop it first, then salvage.")
    if not source.exists():
        raise Failed(f"{source}: there is no such file.")
    if target.exists():
        raise Failed(f"{target}: is there already. Name another file.")
    with db.lock(settings.data_dir):
        saved = salvaging.salvage(source, target)
    print(
        f"{target}: users: {saved.users:,}, conversations: {saved.conversations:,}, messages: {saved.messages:,};"
        f" places where something was lost: {saved.damaged:,}"
    )
    print(f"To go on with it: fireside restore {target}. Sessions and invites are not in it.")
    return 0


def doctor(options: dict[str, Any]) -> int:
    """Look at everything that can be wrong, and say what to do. Exit code 1 when something is."""
    settings = config.load(options)
    marks = set()
    for mark, line in _examine(settings):
        marks.add(mark)
        print(_printable(f"{mark:4} {line}"))
    return 1 if BAD in marks else 0


# ---------------------------------------------------------------------------------------------------- conversations


def import_(options: dict[str, Any]) -> int:
    """Add conversations from LM Studio, ChatGPT, Open WebUI or Fireside; running it again adds only what is new."""
    settings = config.load(options)
    paths = [Path(path).absolute() for path in options["paths"]] or lmstudio.conversation_folders()
    if not paths:
        raise Failed("LM Studio's conversations were not found. Name the files or folders to import.")
    running = find_service(settings)
    report: dict[str, Any] = {}
    if running:
        body = {"paths": [str(path) for path in paths], "username": options["user"]}
        for line in running.lines("import", body):
            report = _show_step(json.loads(line))
    else:

        async def work(database: Database) -> None:
            nonlocal report
            user = await database.read(queries.accounts.get_user_named, options["user"])
            audit("import", user, TERMINAL)
            async with contextlib.aclosing(Importer(database, settings.user_max_bytes)) as importer:
                async for line in importer.import_steps(user.id, paths):
                    report = _show_step(json.loads(line))

        _with_database(settings, work)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    print(
        f"Added: {report['conversations']} conversations, {report['messages']} messages."
        f" Here already: {report['unchanged']} conversations."
    )
    for skipped in report["skipped"]:
        print(_printable(f"skipped {skipped['file']}: {skipped['reason']}"), file=sys.stderr)
    return 1 if report["skipped"] and not report["conversations"] + report["messages"] + report["unchanged"] else 0


def _printable(text: str) -> str:
    """Text of an untrusted file without the characters that control a terminal."""
    return "".join("\ufffd" if unicodedata.category(each) in ("Cc", "Cf", "Zl", "Zp") else each for each in text)


def _show_step(step: dict[str, Any]) -> dict[str, Any]:
    """Draw the bar of an import as far as it is, and return the report so far."""
    if "error" in step:
        raise Failed(step["error"])
    report: dict[str, Any] = step["report"]
    if sys.stderr.isatty():
        bar = "█" * round(step["done"] * 30)
        print(f"\r{bar:░<30} {report['conversations'] + report['unchanged']}", end="", file=sys.stderr, flush=True)
    return report


def export(options: dict[str, Any]) -> int:
    """Write all conversations of a user as one zip of Markdown and JSON."""
    settings, target = config.load(options), Path(options["file"]).absolute()
    if target.exists() and not zipfile.is_zipfile(target):
        raise Failed(f"{target}: is there already, and is no earlier export. Name another file.")
    running = find_service(settings)
    partial = target.with_name(target.name + ".partial")
    try:
        partial.unlink(missing_ok=True)
        with db.create_private(partial) as out:
            if running:
                with running.stream("export", {"username": options["user"]}) as response:
                    for chunk in response.iter_bytes():
                        out.write(chunk)
            else:

                async def work(database: Database) -> None:
                    user = await database.read(queries.accounts.get_user_named, options["user"])
                    audit("export of all conversations", user, TERMINAL)
                    async for chunk in Exporter(database).export_zip(user.id):
                        out.write(chunk)

                _with_database(settings, work)
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    print(f"{target}: {target.stat().st_size:,} bytes")
    return 0


def manage_service(options: dict[str, Any]) -> int:
    """Start Fireside with the computer, or stop doing so."""
    settings = config.load(options)
    user = autostart.windows_user() if sys.platform == "win32" else ""
    plan = autostart.plan(sys.platform, Path(sys.executable), Path.home(), settings.data_dir, user)
    if options["dry_run"]:
        print(plan.describe(remove=options["action"] == "remove"))
    elif options["action"] == "install":
        plan.install()
        print("Fireside now starts when you log in. fireside service remove ends that.", flush=True)
        running = _wait_for_service(settings)
        print(f"Fireside is at {running.url}")
        say_setup(settings, running.url)
    else:
        plan.remove()
        print("Fireside does not start by itself any more. Your conversations are untouched.")
    return 0


def _wait_for_service(settings: Config) -> Service:
    end = time.monotonic() + START_SECONDS
    while (running := find_service(settings)) is None:
        if time.monotonic() > end:
            log = settings.data_dir / "fireside.log"
            raise Failed(f"It was started, and does not answer after {START_SECONDS:.0f} s. {log} may say why.")
        time.sleep(0.1)
    return running


ERRORS = (Failed, FiresideError, DatabaseUnusable, OSError, sqlite3.Error, httpx.HTTPError)
