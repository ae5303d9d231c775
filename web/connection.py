"""HTTP connections: uvicorn's protocol with a deadline in every state, limits on the number of connections, and TLS.

uvicorn has only a keep-alive timer, which any received byte cancels.
"""

import asyncio
import ipaddress
import math
import os
import secrets
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from functools import partial
from heapq import nsmallest
from operator import attrgetter
from typing import Any, cast

from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from ..config import Config
from ..errors import ConfigError, FiresideError, HeadersTooLarge, Invalid, RequestTimeout
from ..safety.queue import Slots
from ..safety.throttle import LOOPBACK_NETWORK, network
from .middleware import SECURITY_HEADERS, error_response

HEAD_BYTES = 16 * 1024  # as in Node.js, so that the cookies of other development servers on this host still fit
HEAD_SECONDS = 10.0
BODY_SECONDS = 10.0
BODY_BYTES_PER_SECOND = 10_000  # the slowest upload that is accepted
KEEP_ALIVE_SECONDS = 5.0
STALL_SECONDS = 60.0
NEVER = math.inf

CONNECTIONS_PER_ADDRESS = 64  # from the network; a browser opens six
MAX_CONNECTIONS = 2048
DESCRIPTORS = 4096  # below OPEN_MAX of macOS, 10,240
RESERVED_DESCRIPTORS = (
    128  # for the database, backups, model servers, and connections accepted before others are closed
)
# Of a full group at once. Looking for one connection to close takes a third of the time of accepting one.
REPLACED_FRACTION = 1 / 32
PIPELINED_REQUESTS = 16  # per connection; browsers send none
PARSER_BYTES = 4 * 1024  # given to the parser at once, so that many small requests in one read are noticed early
WRITE_BYTES = 64 * 1024  # of a streamed body at once
BEGINNING_USERS, BEGINNING_STRANGERS = 8, 4  # requests that may begin at the same time, with a session and without
ACCEPTS_PER_TURN = 4  # of the event loop, so that many new connections do not delay the requests of others


class Limits:
    """The limits on the number of connections, and the TLS context. Raises ConfigError for an unusable certificate.

    Half of the connections are for this computer and half for the network.
    """

    def __init__(self, config: Config) -> None:
        self.tls = _tls_context(config)
        self.users, self.strangers = Slots(BEGINNING_USERS), Slots(BEGINNING_STRANGERS)
        self.per_side = connections_per_side()
        self._proxies = [ipaddress.ip_network(proxy) for proxy in config.trusted_proxies]

    def are_strangers_waiting(self) -> bool:
        """Whether so many requests without a session wait that no new connection should be accepted."""
        return self.strangers.waiting() > self.per_side // 4

    def full_group(self, address: str, connections: Collection["Connection"]) -> list["Connection"]:
        """Return the connections of a full group: one must close before this address can open another. Empty if there is room."""
        place = network(address)
        trusted = place == LOOPBACK_NETWORK or any(ipaddress.ip_address(address) in proxy for proxy in self._proxies)
        per_address = self.per_side if trusted else CONNECTIONS_PER_ADDRESS
        if len(connections) < min(per_address, self.per_side):
            return []
        side = [other for other in connections if (other.network == LOOPBACK_NETWORK) == (place == LOOPBACK_NETWORK)]
        same = [other for other in side if other.network == place]
        if len(same) >= per_address:
            return same
        return side if len(side) >= self.per_side else []


class Listener(socket.socket):
    """A listening socket. While `is_busy` returns True, new connections wait in its backlog; not on Windows, which does not call `accept`."""

    is_busy: Callable[[], bool] = staticmethod(lambda: False)

    def accept(self) -> tuple[socket.socket, Any]:
        if self.is_busy():
            raise BlockingIOError
        return super().accept()


class Connection(HttpToolsProtocol):
    """A connection with one deadline, which the server checks several times a second.

        state                              deadline
        waiting for a request or its head  HEAD_SECONDS after the connection or the head began
        waiting for its turn               HEAD_SECONDS
        receiving a body                   at most BODY_SECONDS from now; n bytes move it by n / BODY_BYTES_PER_SECOND
        responding                         none: the application has its own timeouts
        client reads the response slowly   STALL_SECONDS after it last read something
        response complete                  KEEP_ALIVE_SECONDS, unless another request begins

    At the limit, a new connection replaces a few that have a deadline: of the session with the most of these, those that are nearest to
    theirs. Connections without a session count as one session.
    """

    def __init__(self, limits: Limits, **settings: Any) -> None:
        super().__init__(**settings)
        self.deadline = NEVER
        self.network = ""  # the limits count by it
        self._limits = limits
        self._socket: asyncio.Transport  # without TLS
        self._unsent = 0  # bytes that the client had not read at the last check
        self._unparsed = 0  # bytes since the last complete head or part of a body
        self._session: str | None = None  # of the last request
        self._is_dropped = False  # by this side
        self._early = b""  # received after the TLS handshake, before start_tls returned

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._socket = self.transport = transport
        address = str((transport.get_extra_info("peername") or ("127.0.0.1",))[0])
        self.network = network(address)
        self._set_deadline(HEAD_SECONDS)
        if not self._make_room(address):
            transport.abort()
            return
        self.connections.add(self)
        if self._limits.tls is None:
            super().connection_made(transport)
        else:
            self._handshake = self.loop.create_task(self._start_tls(self._limits.tls))

    async def _start_tls(self, context: ssl.SSLContext) -> None:
        """Start TLS here instead of in uvicorn, so that the limits and the deadline also hold during the handshake."""
        try:
            encrypted = await self.loop.start_tls(self._socket, self, context, server_side=True)
        except OSError:
            encrypted = None
        if encrypted is None or self.parser is None:
            self.abort()
            return
        super().connection_made(encrypted)
        self.data_received(self._early)

    def abort(self) -> None:
        self._is_dropped = True
        self.connections.discard(self)
        self._socket.abort()

    def _make_room(self, address: str) -> bool:
        """Close connections if the limit is reached. Return False if all are responding."""
        full = self._limits.full_group(address, cast("set[Connection]", self.connections))
        replaceable = [other for other in full if other.deadline < NEVER]
        if replaceable:
            [(session, _)] = Counter(other._session for other in replaceable).most_common(1)
            candidates = [other for other in replaceable if other._session == session]
            for other in nsmallest(max(1, int(len(full) * REPLACED_FRACTION)), candidates, key=attrgetter("deadline")):
                other.abort()
        return not full or bool(replaceable)

    def _set_deadline(self, seconds: float) -> None:
        self.deadline = self.loop.time() + seconds

    def _set_deadline_by_state(self) -> None:
        if not self._is_responding():
            self._set_deadline(KEEP_ALIVE_SECONDS)
        elif self.cycle.more_body and not self.pipeline:  # else it is the body of a request that waits for a response
            self._set_deadline(BODY_SECONDS)
        else:
            self.deadline = NEVER

    def _is_responding(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if not self._is_responding():  # else it is a pipelined request
            self._set_deadline(HEAD_SECONDS)

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self.scope["state"] |= {"write_body": partial(write_body, self.cycle), "take_turn": self._take_turn}
        self._unparsed = 0
        self._set_deadline_by_state()

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self._unparsed = 0
        if self._is_responding() and not self.pipeline:
            self.deadline = min(self.deadline + len(body) / BODY_BYTES_PER_SECOND, self.loop.time() + BODY_SECONDS)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._unparsed = 0
        if self._is_responding():
            self._set_deadline_by_state()

    def on_response_complete(self) -> None:
        self.cycle.scope["state"].pop("write_body", None)  # else the request would refer to itself
        super().on_response_complete()
        self._unsent = 0  # if the client still has to read, the next check sets STALL_SECONDS
        if not self._is_responding():  # else a pipelined request begins
            self._set_deadline_by_state()

    async def _take_turn(self, session: str | None, address: str) -> None:
        """Wait until this request may begin. Only a few begin at the same time, so that many do not delay all others.

        The turns rotate among sessions, and among the networks of requests without one. Raises ClientDisconnect if this side
        closed the connection while the request waited.
        """
        self._session = session
        self._set_deadline(HEAD_SECONDS)
        slots, client = (self._limits.users, session) if session else (self._limits.strangers, network(address))
        async with slots.slot(client):
            await asyncio.sleep(0)
        if self._is_dropped:
            raise ClientDisconnect
        self._set_deadline_by_state()

    def timeout_keep_alive_handler(self) -> None:
        """Do nothing: the deadline replaces uvicorn's timer."""

    def check_deadline(self, now: float) -> None:
        """Update the deadline by what the client has read, and close the connection if it has passed."""
        unsent = self._socket.get_write_buffer_size() + self.transport.get_write_buffer_size()
        if unsent and (unsent < self._unsent or not self._unsent or self.deadline == NEVER):
            self.deadline = now + STALL_SECONDS
        elif self._unsent and not unsent:
            self._set_deadline_by_state()
        elif not unsent and self.flow is not None and self.flow.read_paused:
            self.deadline = max(self.deadline, now + BODY_SECONDS)  # the application is slower than the sender
        self._unsent = unsent
        if now <= self.deadline:
            return
        if self._is_responding() and not unsent and not self.transport.is_closing():
            self._refuse(RequestTimeout())
        else:
            self._socket.abort()

    def data_received(self, data: bytes) -> None:
        if self.flow is None:  # start_tls has not returned yet
            self._early += data
            return
        rest = memoryview(data)
        while rest and not self.transport.is_closing():
            count = min(PARSER_BYTES, HEAD_BYTES - self._unparsed)
            self._unparsed += len(rest[:count])
            super().data_received(rest[:count])  # type: ignore[arg-type]
            rest = rest[count:]
            if self._unparsed >= HEAD_BYTES and not self.transport.is_closing():
                self._refuse(HeadersTooLarge())
            if len(self.pipeline) > PIPELINED_REQUESTS:
                self._socket.abort()

    def send_400_response(self, msg: str) -> None:
        self._refuse(Invalid("The request is not valid HTTP."))

    def _refuse(self, error: FiresideError) -> None:
        """Send an error outside of the application, with the headers of all responses, and close the connection."""
        self._is_dropped = True
        if self.pipeline or (self._is_responding() and self.cycle.response_started):
            self._socket.abort()
            return
        request_id = secrets.token_hex(8)
        response = error_response(error, request_id)
        own = {b"x-request-id": request_id.encode(), b"connection": b"close"}
        headers = dict(response.raw_headers) | SECURITY_HEADERS | own
        lines = [name + b": " + value for name, value in headers.items()]
        self.transport.write(STATUS_LINE[response.status_code] + b"\r\n".join([*lines, b"", response.body]))
        self.transport.close()


def write_body(cycle: RequestResponseCycle, body: bytes) -> bool:
    """Write a part of a streamed body at once, past the layers of ASGI, which cost as much as the write.

    Return False if the response has not started, has no such body, or the client has not read what was written before.
    """
    if not cycle.chunked_encoding or cycle.disconnected or cycle.flow.write_paused or len(body) > WRITE_BYTES:
        return False
    cycle.transport.write(b"%x\r\n%b\r\n" % (len(body), body))
    return True


def check_deadlines(connections: Iterable[Any]) -> None:
    now = asyncio.get_running_loop().time()
    for connection in list(connections):
        connection.check_deadline(now)


def connections_per_side() -> int:
    """Return the number of connections for each side: this computer, and the network."""
    return min(MAX_CONNECTIONS, _raise_descriptor_limit() - RESERVED_DESCRIPTORS) // 2


def _raise_descriptor_limit() -> int:
    """Return the number of files and sockets that this process may open. Raise the soft limit, often 256 or 1,024, first."""
    if os.name != "posix":
        return DESCRIPTORS  # Windows has no such limit
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):
        return soft
    return wanted


def _tls_context(config: Config) -> ssl.SSLContext | None:
    """Return None without a certificate. Raises ConfigError."""
    certificate, key = config.tls_certificate, config.tls_key
    if certificate is None or key is None:
        return None
    for name, file in (("tls_certificate", certificate), ("tls_key", key)):
        try:
            file.read_bytes()
        except OSError as error:
            raise ConfigError(f"{name}: {file}: cannot be read: {error.strerror}") from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key, password="")  # else OpenSSL asks for one at the terminal
    except ssl.SSLError:
        raise ConfigError(
            f"tls_certificate, tls_key: {certificate} and {key} must be a certificate and its private key in PEM,"
            " without a password"
        ) from None
    return context
