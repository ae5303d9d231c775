"""Find the running service and send requests to it; open the database when no service runs."""

import asyncio
import contextlib
import json
import os
import ssl
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import httpx

from .. import db
from ..config import Config
from ..db import Database
from ..errors import FiresideError
from ..safety.logs import open_audit_log

T = TypeVar("T")

SERVICE_FILE = "service.json"
PORT_FILE = "port"
ANY_ADDRESS = ("0.0.0.0", "::")
PORTS_TO_TRY = 20
X509_V_FLAG_NO_CHECK_TIME = ssl.VerifyFlags(0x200000)  # of OpenSSL; the ssl module has no name for it


class CommandFailed(FiresideError):
    """A command cannot do what it was asked to. The message is for the terminal."""


class Service:
    """A client of the Fireside that runs on this data directory. `certificate` is the PEM that it must present."""

    def __init__(self, url: str, secret: str, certificate: str) -> None:
        self.url = url
        self.certificate = _trust_only(certificate)
        self.http = httpx.Client(
            base_url=url,
            # When connections run out, the server closes idle ones first, so none is kept alive.
            headers={"Authorization": f"Bearer {secret}", "Connection": "close"},
            verify=self.certificate,
            trust_env=False,
            timeout=httpx.Timeout(10, read=None),
        )

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return dict(checked(self.http.post(f"/control/{path}", json=body)).json())

    @contextlib.contextmanager
    def stream(self, path: str, body: dict[str, Any]) -> Iterator[httpx.Response]:
        with self.http.stream("POST", f"/control/{path}", json=body) as response:
            if response.status_code != 200:
                response.read()
            yield checked(response)

    def lines(self, path: str, body: dict[str, Any]) -> Iterator[bytes]:
        """Yield lines of JSON. httpx's iter_lines would also split at U+2028, which a title may contain."""
        rest = b""
        with self.stream(path, body) as response:
            for chunk in response.iter_bytes():
                *whole, rest = (rest + chunk).split(b"\n")
                yield from whole


def _trust_only(certificate: str) -> ssl.SSLContext:
    """Trust this certificate and no other, and ignore its host name, issuer and dates."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if certificate:
        context.check_hostname = False
        context.load_verify_locations(cadata=certificate)
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | X509_V_FLAG_NO_CHECK_TIME
    return context


def checked(response: httpx.Response) -> httpx.Response:
    """Return a response with status 200. Raises CommandFailed with the service's message for another."""
    if response.status_code != 200:
        raise CommandFailed(str(response.json().get("message", response.text)))
    return response


def find_service(settings: Config) -> Service | None:
    """Return the running service, or None.

    The service file counts only if the process that wrote it holds the lock. After a crash, another program may listen at the
    address in a stale file, and must not receive the secret."""
    try:
        found = json.loads((settings.data_dir / SERVICE_FILE).read_text("utf-8"))
        if db.lock_holder(settings.data_dir) != found["pid"]:
            return None
        service = Service(found["url"], found["secret"], found.get("certificate", ""))
        if service.http.get("/health", timeout=5).status_code in (200, 503):
            return service
    except (OSError, ValueError, KeyError, TypeError, httpx.HTTPError):
        pass
    return None


def write_service_file(settings: Config, url: str, secret: str) -> None:
    """Write the file by which `find_service` finds this process."""
    certificate = ""
    if settings.tls_certificate:  # the first in the file is the server's own; those of its issuers follow
        begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
        certificate = begin + settings.tls_certificate.read_text("utf-8").partition(begin)[2].partition(end)[0] + end
    content = {"url": url, "secret": secret, "pid": os.getpid(), "certificate": certificate}
    with db.create_private(settings.data_dir / SERVICE_FILE) as file:
        file.write(json.dumps(content).encode())


def ports_to_try(settings: Config, options: dict[str, Any]) -> list[int]:
    """Return the ports to listen on, in order of preference. A port from a flag or a variable is the only one."""
    if options.get("port") or os.environ.get("FIRESIDE_PORT") or settings.port == 0:
        return [settings.port]
    ports = range(settings.port, min(settings.port + PORTS_TO_TRY, 65536))
    with contextlib.suppress(OSError, ValueError):
        port = int((settings.data_dir / PORT_FILE).read_text("utf-8"))
        if port in ports:
            return [port, *ports]
    return [*ports]


def remember_port(settings: Config, port: int) -> None:
    """Save a port other than the configured one, so that the next start tries it first and bookmarks and cookies stay valid."""
    file = settings.data_dir / PORT_FILE
    with contextlib.suppress(OSError):
        if settings.port and port != settings.port:
            file.write_text(str(port), "utf-8")
        else:
            file.unlink(missing_ok=True)


def local_url(settings: Config, host: str, port: int) -> str:
    """Return the URL by which this computer reaches a service that listens on a host and port."""
    if host in ANY_ADDRESS:
        host = "127.0.0.1"
    return f"{settings.scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def setup_link(settings: Config, url: str) -> str | None:
    """Return the link that creates the first account, or None if there is an account or the token comes from the settings."""
    with contextlib.suppress(OSError):
        return f"{url}/#setup={settings.bootstrap_file.read_text('utf-8')}"
    return None


def print_setup_link(settings: Config, url: str) -> str | None:
    """Print and return the setup link, if there is one."""
    link = setup_link(settings, url)
    if link:
        print(f"Create the first account at {link}", flush=True)
    return link


def require_database(settings: Config) -> None:
    if not settings.database.exists():
        raise CommandFailed(f"{settings.database} does not exist. Start Fireside once, or choose another --data-dir.")


def with_database(settings: Config, work: Callable[[Database], Awaitable[T]]) -> T:
    """Lock the data directory, open the database and return the result of `work`. Raises DatabaseUnusable, CommandFailed."""
    require_database(settings)

    async def run() -> T:
        database = await db.open_database(settings.database)
        try:
            return await work(database)
        finally:
            await database.close()

    with db.lock(settings.data_dir):
        open_audit_log(settings.data_dir)
        return asyncio.run(run())
