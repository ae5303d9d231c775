"""Requests of the commands to the running service or, if none runs, to one in this process.

They use http.client because importing httpx takes longer than everything else that `fireside ask` does before its request.
"""

import contextlib
import json
import os
import socket
import ssl
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlencode, urlsplit

from .. import __version__, db
from ..config import Config
from ..errors import FiresideError

SERVICE_FILE = "service.json"
TIMEOUT_SECONDS = 10.0  # for connecting and sending
X509_V_FLAG_NO_CHECK_TIME = ssl.VerifyFlags(0x200000)  # of OpenSSL; the ssl module has no name for it


class CommandFailed(FiresideError):
    """A command cannot do what it was asked to. The message is for the terminal, and `status` that of the service."""


class ServiceLost(CommandFailed):
    status = 503
    message = "The running Fireside does not answer. Run: fireside doctor"


class Client:
    """Requests to a Fireside, each on a connection of its own: when connections run out, the server closes idle ones first.

    `certificate` is the PEM that it must present. All methods raise ServiceLost, and those that return what the service sent raise
    CommandFailed with its message when it refuses.
    """

    def __init__(self, url: str, certificate: str, headers: dict[str, str]) -> None:
        self.url = url
        self.certificate = certificate
        self._headers = {"Connection": "close", "User-Agent": f"fireside/{__version__}", **headers}

    def get(self, path: str, **query: Any) -> Any:
        return json.loads(self.read(path, **query))

    def read(self, path: str, **query: Any) -> str:
        return text(self.open("GET", path, query=query))

    def post(self, path: str, body: Any = None) -> Any:
        return json.loads(text(self.open("POST", path, body)))

    def patch(self, path: str, body: Any) -> None:
        text(self.open("PATCH", path, body))

    def delete(self, path: str, **query: Any) -> None:
        text(self.open("DELETE", path, query=query))

    def upload(self, path: str, size: int, content: Iterable[bytes], **query: Any) -> Any:
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        return json.loads(text(self.open("POST", path, content, query, headers)))

    def open(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | Iterable[bytes] | None = None,
        query: Mapping[str, Any] = {},
        headers: Mapping[str, str] = {},
        timeout: float | None = None,
    ) -> HTTPResponse:
        """Send a request, and return the response before its body has arrived. A dict is sent as JSON."""
        content = json.dumps(body).encode() if isinstance(body, dict) else body
        if isinstance(body, dict):
            headers = {"Content-Type": "application/json"}
        connection = self._connection()
        try:
            connection.connect()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before it was sent whole
                target = f"{path}?{urlencode(query)}" if query else path
                connection.request(method, target, content, {**self._headers, **headers})
            connection.sock.settimeout(timeout)
            return connection.getresponse()
        except (OSError, HTTPException) as error:
            connection.close()
            raise ServiceLost from error

    def _connection(self) -> HTTPConnection:
        address = urlsplit(self.url)
        if address.scheme == "http":
            return HTTPConnection(address.hostname or "", address.port, timeout=TIMEOUT_SECONDS)
        context = _trust_only(self.certificate)
        return HTTPSConnection(address.hostname or "", address.port, timeout=TIMEOUT_SECONDS, context=context)


def chunks(response: HTTPResponse) -> Iterator[bytes]:
    """Yield the body as it arrives."""
    with _reading(response):
        while data := response.read1(65536):
            yield data


def lines(response: HTTPResponse) -> Iterator[bytes]:
    """Yield the lines of the body as they arrive. Only \\n ends one: the text in them may contain other line ends."""
    with _reading(response):
        yield from response


def text(response: HTTPResponse) -> str:
    """Return the whole body."""
    with _reading(response):
        return response.read().decode()


@contextlib.contextmanager
def _reading(response: HTTPResponse) -> Iterator[None]:
    """Close the response at the end. Raises CommandFailed with the service's message if it refuses the request."""
    with response:
        try:
            if response.status != 200:
                refusal = CommandFailed(str(json.loads(response.read())["message"]))
                refusal.status = response.status
                raise refusal
            yield
        except (OSError, HTTPException) as error:
            raise ServiceLost from error


def _trust_only(certificate: str) -> ssl.SSLContext:
    """Trust this certificate and no other, and ignore its host name, issuer and dates."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=certificate)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | X509_V_FLAG_NO_CHECK_TIME
    return context


class Service(Client):
    """The service of a data directory, for its owner. `temporary`: it runs in this process, for as long as the command needs it."""

    def __init__(self, url: str, secret: str, certificate: str = "", temporary: bool = False) -> None:
        super().__init__(url, certificate, {"Authorization": f"Bearer {secret}"})
        self.temporary = temporary


def find_service(settings: Config) -> Service | None:
    """Return the running service, or None.

    The service file counts only if the process that wrote it holds the lock. After a crash, another program may listen at the
    address in a stale file, and must not receive the secret."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, ServiceLost):
        found = json.loads((settings.data_dir / SERVICE_FILE).read_text("utf-8"))
        if db.lock_holder(settings.data_dir) == found["pid"]:
            service = Service(found["url"], found["secret"], found["certificate"])
            with service.open("GET", "/health", timeout=5) as response:
                if response.status in (200, 503):
                    return service
    return None


@contextlib.contextmanager
def open_service(settings: Config) -> Iterator[Service]:
    """Yield the running service or, if none runs, one in this process. Raises CommandFailed and DatabaseUnusable."""
    if service := find_service(settings):
        yield service
        return
    require_database(settings)
    with _service_in_this_process(settings) as service:
        yield service


@contextlib.contextmanager
def _service_in_this_process(settings: Config) -> Iterator[Service]:
    """Run the service in a thread, on a free port that only this computer reaches."""
    import asyncio
    from concurrent.futures import Future

    from ..safety.logs import open_logs
    from ..server import Server, create_app

    settings = replace(settings, host="127.0.0.1", port=0, lan=False, public_url="", tls_certificate=None, tls_key=None)
    with db.lock(settings.data_dir), socket.create_server(("127.0.0.1", 0)) as listener:
        open_logs(settings.data_dir)
        app = create_app(settings)
        server = Server(app, settings)
        started: Future[None] = Future()
        server.on_started = lambda: started.set_result(None)

        def run() -> None:
            try:
                asyncio.run(server.serve(sockets=[listener]))
            except BaseException as error:
                if not started.done():
                    started.set_exception(app.state.failure or error)

        thread = threading.Thread(target=run, name="service")
        thread.start()
        try:
            started.result()
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            yield Service(url, app.state.fireside.secret, temporary=True)
        finally:
            server.should_exit = True
            thread.join()


def require_database(settings: Config) -> None:
    if not settings.database.exists():
        raise CommandFailed(f"{settings.database} does not exist. Start Fireside once, or choose another --data-dir.")


def write_service_file(settings: Config, url: str, secret: str) -> None:
    """Write how commands find and use this service."""
    certificate = ""
    if settings.tls_certificate:  # the first in the file is the server's own; those of its issuers follow
        begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
        certificate = begin + settings.tls_certificate.read_text("utf-8").partition(begin)[2].partition(end)[0] + end
    content = {"url": url, "secret": secret, "pid": os.getpid(), "certificate": certificate}
    with db.create_private(settings.data_dir / SERVICE_FILE) as file:
        file.write(json.dumps(content).encode())
