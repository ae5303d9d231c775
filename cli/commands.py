"""The commands for accounts, the database, conversations in files, and the start at login."""

import getpass
import json
import sqlite3
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

from .. import config, db
from ..backends import lmstudio
from ..config import Config
from . import autostart
from .address import next_url, print_setup_link, setup_link
from .client import (
    CommandFailed,
    Service,
    chunks,
    find_service,
    lines,
    open_service,
    require_database,
)
from .printer import printable
from .salvage import salvage

SERVICE_START_SECONDS = 30.0  # the first start after an installation may be slow


# ---- accounts


def login_link(options: dict[str, Any]) -> int:
    """Print a link that signs a browser in once, within ten minutes."""
    settings = config.load(options)
    with open_service(settings) as service:
        url = settings.public_url or next_url(settings, options) if service.temporary else service.url
        deadline = " within ten minutes"
        try:
            link = f"{url}/#login={service.post('/control/link', {'username': options['user']})['token']}"
        except CommandFailed:
            link, deadline = setup_link(settings, url) or "", ""
            if not link:
                raise
            print("There is no account yet. This link creates the first one.", file=sys.stderr)
    if service.temporary:
        then = "open this link:" if url else "open the address that it prints, followed by:"
        print(f"Start Fireside{deadline}, then {then}", file=sys.stderr)
    print(link)
    return 0


def reset_password(options: dict[str, Any]) -> int:
    """Set a new password, end all sessions of the user and revoke all tokens."""
    settings = config.load(options)
    if sys.stdin.isatty():
        try:
            password, again = getpass.getpass("New password: "), getpass.getpass("Repeat it: ")
        except EOFError:
            raise CommandFailed("No password was entered. Nothing was changed.") from None
        if again != password:
            raise CommandFailed("The passwords differ. Nothing was changed.")
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    with open_service(settings) as service:
        name = service.post("/control/password", {"username": options["user"], "password": password})["username"]
    print(f"The password of {name} was changed. All sessions of {name} have ended, and all tokens are revoked.")
    return 0


# ---- the database


def backup(options: dict[str, Any]) -> int:
    """Write a consistent copy of the database, also while it is in use."""
    settings, target = config.load(options), _target(options["file"])
    if running := find_service(settings):
        running.post("/control/backup", {"file": str(target)})
    else:  # without changing the database: a service would upgrade it
        require_database(settings)
        with db.lock(settings.data_dir):
            try:
                db.copy(settings.database, target)
            except sqlite3.Error as error:
                raise CommandFailed(db.advice(settings.database, error)) from None
    print(f"Wrote {target} ({target.stat().st_size:,} bytes) and checked it.")
    return 0


def restore(options: dict[str, Any]) -> int:
    """Restore the database from a backup, and keep the previous one beside the backups."""
    settings, file = config.load(options), Path(options["file"]).absolute()
    _require_stopped(settings)
    with db.lock(settings.data_dir):
        previous = db.restore(file, settings.database)
    print(f"Restored {file}." + (f" The previous database is {previous}." if previous else ""))
    return 0


def salvage_database(options: dict[str, Any]) -> int:
    """Copy what is readable in a damaged database to a new file."""
    settings, target = config.load(options), _target(options["new"])
    source = Path(options["damaged"]).absolute() if options["damaged"] else settings.database
    _require_stopped(settings)
    if not source.exists():
        raise CommandFailed(f"{source} does not exist.")
    if target.exists():
        raise CommandFailed(f"{target} exists. Choose another file.")
    with db.lock(settings.data_dir):
        result = salvage(source, target)
    print(
        f"Wrote {target}. Users: {result.users:,}, conversations: {result.conversations:,}, messages: {result.messages:,},"
        f" damaged places: {result.damaged:,}."
    )
    print(f"To use it, run: fireside restore {target}. Sessions and invites are not in it.")
    return 0


def _target(file: str) -> Path:
    """Return the absolute path of a file to write. Raises CommandFailed when its folder does not exist: it may be the mount point
    of a disk that is not plugged in."""
    target = Path(file).absolute()
    if not target.parent.is_dir():
        raise CommandFailed(f"The folder {target.parent} does not exist. Create it, or choose another file.")
    return target


def _require_stopped(settings: Config) -> None:
    if find_service(settings):
        raise CommandFailed("Fireside is running. Stop it first.")


# ---- conversations


def import_conversations(options: dict[str, Any]) -> int:
    """Import conversations from LM Studio or from exports of other programs. A repeated import adds only what is new."""
    settings = config.load(options)
    paths = [Path(path).absolute() for path in options["paths"]] or lmstudio.conversation_folders()
    if not paths:
        raise CommandFailed("Found no conversations of LM Studio. Name the files or folders to import.")
    dry_run: bool = options["dry_run"]
    report: dict[str, Any] = {}
    body = {"paths": [str(path) for path in paths], "username": options["user"], "dry_run": dry_run}
    with open_service(settings) as service:
        for line in lines(service.open("POST", "/control/import", body)):
            report = _show_progress(json.loads(line))
    if sys.stderr.isatty():
        print(file=sys.stderr)
    counts = {name: report[name] for name in ("conversations", "messages", "prompts", "presets")}
    shown = ", ".join(
        f"{name}: {count}" for name, count in counts.items() if count or name in ("conversations", "messages")
    )
    print(f"{'Would add' if dry_run else 'Added'} {shown}. Already there: {report['unchanged']}.")
    if report["folders"]:
        names = ", ".join(report["folders"])
        print(printable(f"Folders that {'would be' if dry_run else 'were'} created: {names}."))
    for loss in report["losses"]:
        titles = [f'"{one["title"]}" ({one["count"]})' for one in loss["conversations"][:5]]
        more = ", ..." if len(loss["conversations"]) > len(titles) else ""
        print(printable(f"{loss['text']}: {loss['count']}, in {', '.join(titles)}{more}"))
    for skipped in report["skipped"]:
        print(printable(f"skipped {skipped['file']}: {skipped['reason']}"), file=sys.stderr)
    return 1 if report["skipped"] and not any(counts.values()) and not report["unchanged"] else 0


def _show_progress(step: dict[str, Any]) -> dict[str, Any]:
    """Draw the progress bar of an import on a terminal, and return the report so far."""
    if "error" in step:
        raise CommandFailed(step["error"])
    report: dict[str, Any] = step["report"]
    if sys.stderr.isatty():
        bar = "█" * round(step["done"] * 30)
        print(f"\r{bar:░<30} {report['conversations'] + report['unchanged']}", end="", file=sys.stderr, flush=True)
    return report


def export(options: dict[str, Any]) -> int:
    """Write a user's conversations, as Markdown and JSON, and saved prompts and presets to a zip file."""
    settings, target = config.load(options), _target(options["file"])
    if target.exists() and not zipfile.is_zipfile(target):
        raise CommandFailed(f"{target} exists and is not an export. Choose another file.")
    partial = target.with_name(target.name + ".partial")
    try:
        partial.unlink(missing_ok=True)
        with db.create_private(partial) as out, open_service(settings) as service:
            for chunk in chunks(service.open("POST", "/control/export", {"username": options["user"]})):
                out.write(chunk)
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    print(f"Wrote {target} ({target.stat().st_size:,} bytes).")
    return 0


# ---- start at login


def manage_service(options: dict[str, Any]) -> int:
    """Start Fireside when the user logs in, or stop doing so."""
    settings = config.load(options)
    user = autostart.windows_user() if sys.platform == "win32" else ""
    plan = autostart.plan(sys.platform, Path(sys.executable), Path.home(), settings.data_dir, user)
    if options["dry_run"]:
        print(plan.describe(remove=options["action"] == "remove"))
    elif options["action"] == "install":
        plan.install()
        print("Fireside now starts when you log in. To stop that, run: fireside service remove", flush=True)
        running = _wait_for_service(settings)
        print(f"Fireside is at {running.url}")
        print_setup_link(settings, running.url)
    else:
        plan.remove()
        print("Fireside no longer starts when you log in. Your conversations are kept.")
    return 0


def _wait_for_service(settings: Config) -> Service:
    deadline = time.monotonic() + SERVICE_START_SECONDS
    while (running := find_service(settings)) is None:
        if time.monotonic() > deadline:
            log = settings.data_dir / "fireside.log"
            raise CommandFailed(f"The service did not answer within {SERVICE_START_SECONDS:.0f} s. See {log}.")
        time.sleep(0.1)
    return running
