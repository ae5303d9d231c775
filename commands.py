"""The commands besides serve. Each goes through the service while it runs, and takes the data directory itself when it does not."""

import asyncio
import contextlib
import getpass
import json
import os
import shutil
import sqlite3
import ssl
import stat
import sys
import time
import unicodedata
import zipfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import httpx

from . import __version__, accounts, config, db, lmstudio, service
from . import salvage as salvaging
from .auth import Auth
from .config import Config
from .db import Database, DatabaseUnusable
from .errors import FiresideError, NotFound
from .exporter import Exporter
from .gguf import Skipped
from .importer import Importer
from .logs import AUDIT_FILE, TERMINAL, audit, open_audit_log
from .providers import Providers

T = TypeVar("T")

SERVICE_FILE = "service.json"
PORT_FILE = "port"
EVERYWHERE = ("0.0.0.0", "::")  # what listens there listens on all addresses
PORTS_TRIED = 20  # from the one that is configured on, when that is taken
START_SECONDS = 30.0  # that an installed service may take to answer, the first time
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
NO_CHECK_TIME = ssl.VerifyFlags(0x200000)  # OpenSSL's X509_V_FLAG_NO_CHECK_TIME
OK, NOTE, BAD = "ok", "note", "BAD"  # what doctor says of what it found


class Failed(Exception):
    """The message is for the terminal; exit code 1."""


class Service:
    """The Fireside that runs on this data directory, spoken to over HTTP. `certificate`: the one that it must present, in PEM."""

    def __init__(self, url: str, secret: str, certificate: str) -> None:
        self.url = url
        self.http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {secret}"},
            verify=_trusting(certificate),
            trust_env=False,
            timeout=httpx.Timeout(10, read=None),
        )

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return dict(_good(self.http.post(f"/control/{path}", json=body)).json())

    @contextlib.contextmanager
    def stream(self, path: str, body: dict[str, Any]) -> Iterator[httpx.Response]:
        with self.http.stream("POST", f"/control/{path}", json=body) as response:
            if response.status_code != 200:
                response.read()
            yield _good(response)

    def lines(self, path: str, body: dict[str, Any]) -> Iterator[bytes]:
        """Of JSON. httpx's own lines end at U+2028 too, which may stand in a title."""
        rest = b""
        with self.stream(path, body) as response:
            for chunk in response.iter_bytes():
                *whole, rest = (rest + chunk).split(b"\n")
                yield from whole


def _trusting(certificate: str) -> ssl.SSLContext:
    """Trust this certificate and no other, whichever name it is for and whoever has signed it, also when it has expired."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if certificate:
        context.check_hostname = False
        context.load_verify_locations(cadata=certificate)
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | NO_CHECK_TIME
    return context


def _good(response: httpx.Response) -> httpx.Response:
    if response.status_code != 200:
        raise Failed(str(response.json().get("message", response.text)))
    return response


def find_service(settings: Config) -> Service | None:
    """Return the running service, or None. It must be the process that holds the lock: if another has left the service file,
    any program may listen at its address now, and must not learn the secret."""
    try:
        told = json.loads((settings.data_dir / SERVICE_FILE).read_text("utf-8"))
        if db.lock_holder(settings.data_dir) != told["pid"]:
            return None
        found = Service(told["url"], told["secret"], told.get("certificate", ""))
        if found.http.get("/health", timeout=5).status_code in (200, 503):
            return found
    except (OSError, ValueError, KeyError, TypeError, httpx.HTTPError):
        pass
    return None


@contextlib.contextmanager
def announced(settings: Config, url: str, secret: Callable[[], str]) -> Iterator[Callable[[], None]]:
    """Yield a function that writes the file by which the commands find the service. Delete the file at the end."""
    file = settings.data_dir / SERVICE_FILE

    def write() -> None:
        with db.create_private(file) as out:
            contents = {"url": url, "secret": secret(), "pid": os.getpid(), "certificate": certificate}
            out.write(json.dumps(contents).encode())

    certificate = _first_certificate(settings.tls_certificate) if settings.tls_certificate else ""
    try:
        yield write
    finally:
        file.unlink(missing_ok=True)


def _first_certificate(file: Path) -> str:
    """The server's own certificate, which the authorities that signed it follow, if any."""
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    return begin + file.read_text("utf-8").partition(begin)[2].partition(end)[0] + end


def ports(settings: Config, options: dict[str, Any]) -> list[int]:
    """Where to listen: the first that is free. More than one only if none was asked for by flag or variable. 0: any."""
    if options.get("port") or os.environ.get("FIRESIDE_PORT") or settings.port == 0:
        return [settings.port]
    usual = range(settings.port, min(settings.port + PORTS_TRIED, 65536))
    with contextlib.suppress(OSError, ValueError):
        port = int((settings.data_dir / PORT_FILE).read_text("utf-8"))
        if port in usual:
            return [port, *usual]
    return [*usual]


def remember(settings: Config, port: int) -> None:
    """A port that was free instead of the usual one is tried first the next time: bookmarks and cookies know it."""
    file = settings.data_dir / PORT_FILE
    with contextlib.suppress(OSError):
        if settings.port and port != settings.port:
            file.write_text(str(port), "utf-8")
        else:
            file.unlink(missing_ok=True)


def address(settings: Config, host: str, port: int) -> str:
    """The URL by which this computer itself reaches a service that listens there."""
    if host in EVERYWHERE:
        host = "127.0.0.1"
    return f"{settings.scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def setup_link(settings: Config, url: str) -> str | None:
    """Where the first account is created, while there is none. A token from the settings is in no file, and never told."""
    with contextlib.suppress(OSError):
        return f"{url}/#setup={settings.bootstrap_file.read_text('utf-8')}"
    return None


def say_setup(settings: Config, url: str) -> str | None:
    """Print and return the set-up link, if there is one."""
    link = setup_link(settings, url)
    if link:
        print(f"Create the first account at {link}", flush=True)
    return link


def _require_database(settings: Config) -> None:
    if not settings.database.exists():
        raise Failed(
            f"{settings.database}: there is no such database. Start Fireside once, or name another --data-dir."
        )


def _with_database(settings: Config, work: Callable[[Database], Awaitable[T]]) -> T:
    _require_database(settings)

    async def run() -> T:
        database = await db.open_database(settings.database)
        try:
            return await work(database)
        finally:
            await database.close()

    with db.lock(settings.data_dir):
        open_audit_log(settings.data_dir)
        return asyncio.run(run())


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
            except db.Unsound as error:
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


def _examine(settings: Config) -> Iterator[tuple[str, str]]:
    running = find_service(settings)
    yield OK, f"Fireside {__version__}, " + (f"running at {running.url}" if running else "not running")
    yield OK, f"data directory {settings.data_dir}"
    yield OK, f"sign-ins, invites, exports and changes of accounts are logged in {settings.data_dir / AUDIT_FILE}"
    for warning in service.warnings(settings.data_dir):
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
        return BAD, f"newest backup {backup} cannot be restored: {error}. Make another: fireside backup FILE"
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
    from .engine import Engine

    engine = Engine(settings)
    providers = Providers(settings, engine)
    embedded = any(provider.kind == "embedded" for provider in settings.providers)
    try:
        return await providers.catalog(details=True), await engine.skipped() if embedded else []
    finally:
        await providers.aclose()


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
            user = await database.read(accounts.get_user_named, options["user"])
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
                    user = await database.read(accounts.get_user_named, options["user"])
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
    user = service.windows_user() if sys.platform == "win32" else ""
    plan = service.plan(sys.platform, Path(sys.executable), Path.home(), settings.data_dir, user)
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
