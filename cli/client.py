"""The command line's side of a running service: where it is, and requests to it."""

import asyncio
import contextlib
import json
import os
import ssl
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx

from .. import db
from ..config import Config
from ..db import Database
from ..safety.logs import open_audit_log

T = TypeVar("T")

SERVICE_FILE = "service.json"
PORT_FILE = "port"
EVERYWHERE = ("0.0.0.0", "::")  # what listens there listens on all addresses
PORTS_TRIED = 20  # from the one that is configured on, when that is taken
NO_CHECK_TIME = ssl.VerifyFlags(0x200000)  # OpenSSL's X509_V_FLAG_NO_CHECK_TIME


class Failed(Exception):
    """The message is for the terminal; exit code 1."""


class Service:
    """The Fireside that runs on this data directory, spoken to over HTTP. `certificate`: the one that it must present, in PEM."""

    def __init__(self, url: str, secret: str, certificate: str) -> None:
        self.url = url
        self.http = httpx.Client(
            base_url=url,
            # A connection that is kept alive would be the first to go when strangers hold all others.
            headers={"Authorization": f"Bearer {secret}", "Connection": "close"},
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
