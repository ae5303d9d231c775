"""What stands before every route: the outermost ASGI layer.

A request reaches the application only with exactly one Host that is ours, which is what stops DNS rebinding, and, when a browser
says where it comes from, from our own origin: other web servers on the same computer are "same-site", so the cookie's SameSite
means nothing against them. Every answer, whatever made it, leaves with the security headers and a request id.
"""

import asyncio
import ipaddress
import json
import logging
import secrets
import socket
import time
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..config import Config
from ..errors import FiresideError, HostNotAllowed, OriginNotAllowed, Stopping
from ..safety.throttle import LOOPBACK_NETWORK, network

log = logging.getLogger("fireside.access")

LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})

NO_CONTENT_POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; sandbox"
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; font-src 'self'; "
    "manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
SECURITY_HEADERS = {
    b"content-security-policy": NO_CONTENT_POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"permissions-policy": b"camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    b"cache-control": b"no-store",
    b"x-dns-prefetch-control": b"off",  # a link in an answer may hold data in its host name
}


def error_answer(error: FiresideError, request_id: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body: the one shape that every error has."""
    body = {"code": error.code, "message": error.message, "request_id": request_id}
    return error.status, {"content-type": "application/json", **error.headers}, json.dumps(body).encode()


class Guard:
    def __init__(self, app: ASGIApp, config: Config) -> None:
        self.app = app
        self.log = RequestLog()
        self.origins = frozenset(config.allowed_origins)
        public = urlsplit(config.public_url)
        self.own_origins = frozenset({f"{public.scheme}://{public.netloc}"} if config.public_url else ())
        self.any_address = not is_loopback(config.host)
        here = f"{socket.gethostname().split('.')[0]}.local" if self.any_address else None
        names = (*config.allowed_hosts, public.hostname, config.host, here)
        self.hosts = LOOPBACK | {_as_host(name) for name in names if name}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return  # a websocket: nothing here speaks it, and uvicorn answers 403 by itself
        request_id = secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        started, status = time.perf_counter(), 0
        origin: bytes | None = None

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                given = {name for name, _ in message["headers"]}
                extra = [(name, value) for name, value in SECURITY_HEADERS.items() if name not in given]
                message["headers"] = [
                    *message["headers"],
                    *extra,
                    (b"x-request-id", request_id.encode()),
                    *_cors(origin),
                ]
            await send(message)

        try:
            headers: list[tuple[bytes, bytes]] = scope["headers"]
            self._check_host(headers)
            origin = self._check_origin(scope, headers)
            scope["state"]["foreign"] = origin is not None
            if origin is not None and scope["method"] == "OPTIONS":
                await _send(send_guarded, 204, {}, b"")
            else:
                await self.app(scope, receive, send_guarded)
        except FiresideError as error:
            scope["state"]["code"] = error.code
            await _send(send_guarded, *error_answer(error, request_id))
        except asyncio.CancelledError:  # by uvicorn, which stops and has waited for long enough
            if status:
                raise
            await _send(send_guarded, *error_answer(Stopping(), request_id))
        except Exception:
            log.exception("request %s failed", request_id)
            if not status:
                await _send(send_guarded, *error_answer(FiresideError(), request_id))
        finally:
            self.log.add(scope, request_id, status, started)

    def _check_host(self, headers: list[tuple[bytes, bytes]]) -> None:
        hosts = [value for name, value in headers if name == b"host"]
        if len(hosts) != 1:
            raise HostNotAllowed("A request must have exactly one Host header.")
        name, _, port = hosts[0].decode("latin-1").lower().rpartition(":")
        if not name or not (port.isascii() and port.isdigit()) or (name.startswith("[") and not name.endswith("]")):
            name = hosts[0].decode("latin-1").lower()
        if name not in self.hosts and not (self.any_address and _is_address(name)):
            raise HostNotAllowed

    def _check_origin(self, scope: Scope, headers: list[tuple[bytes, bytes]]) -> bytes | None:
        """The foreign origin that may read the answer, if one asks. Raises OriginNotAllowed."""
        values: dict[bytes, list[str]] = {}
        for name, value in headers:
            if name in (b"origin", b"host", b"sec-fetch-site", b"sec-fetch-mode", b"sec-fetch-dest"):
                values.setdefault(name, []).append(value.decode("latin-1"))
        if any(len(given) > 1 for given in values.values()):
            raise OriginNotAllowed("A request must not have a header twice that says where it comes from.")
        origin, site = (values.get(name, [None])[0] for name in (b"origin", b"sec-fetch-site"))
        if origin in self.origins:
            return origin.encode() if origin else None
        own = origin is None or origin in self.own_origins or origin == f"{scope['scheme']}://{values[b'host'][0]}"
        # A top-level navigation (a link, the address bar) changes nothing and shows nothing to the page that it left.
        into = (values.get(b"sec-fetch-mode"), values.get(b"sec-fetch-dest", ["document"]))
        navigation = scope["method"] in ("GET", "HEAD") and into == (["navigate"], ["document"])
        if not own or (
            site not in (None, "same-origin")
            and not (site == "none" and scope["method"] in ("GET", "HEAD"))
            and not navigation
        ):
            raise OriginNotAllowed
        return None


def is_loopback(host: str) -> bool:
    return host == "localhost" or network(host.strip("[]")) == LOOPBACK_NETWORK


def _as_host(name: str) -> str:
    """As a Host header has it: in small letters, an IPv6 address in brackets."""
    return f"[{name.strip('[]')}]".lower() if ":" in name else name.lower()


def _is_address(name: str) -> bool:
    """Rebinding needs a name: whoever can be reached by a bare address may be."""
    try:
        ipaddress.ip_address(name[1:-1] if name.startswith("[") else name)
    except ValueError:
        return False
    return True


def _cors(origin: bytes | None) -> list[tuple[bytes, bytes]]:
    if origin is None:
        return []
    return [
        (b"access-control-allow-origin", origin),
        (b"access-control-allow-credentials", b"true"),
        (b"access-control-allow-methods", b"GET, POST, PATCH, DELETE"),
        (b"access-control-allow-headers", b"content-type, x-csrf-token, x-bootstrap-token, last-event-id"),
        (b"access-control-expose-headers", b"x-request-id, retry-after"),
        (b"vary", b"origin"),
    ]


async def _send(send: Send, status: int, headers: dict[str, str], body: bytes) -> None:
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    raw.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


class RequestLog:
    """One line per request of a user. Requests without a user are counted by address and error code, so that strangers cannot
    rotate the log: in each interval the first of a kind is logged, and of the others only their number."""

    INTERVAL_SECONDS, KINDS = 60.0, 20

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], int] = {}
        self._interval_ends = 0.0

    def add(self, scope: Scope, request_id: str, status: int, started: float) -> None:
        """Log the route's template, never the path, the query, a header or a body; of a refusal also the code and the address."""
        state, address = scope["state"], (scope.get("client") or ("-",))[0]
        user, code = state.get("user_id"), state.get("code", "")
        if user is None and self._has_line(address, code):
            return
        line = {
            "request": request_id,
            "method": scope["method"],
            "route": getattr(scope.get("route"), "path", "-"),
            "user": user,
            "status": status,
            "ms": round((time.perf_counter() - started) * 1000, 1),
        }
        log.info("request", extra=line | ({"code": code, "address": address} if code else {}))

    def _has_line(self, address: str, code: str) -> bool:
        """Count a request without a user. Return whether its kind has a line in this interval already."""
        now = time.monotonic()
        if now >= self._interval_ends:
            for (place, told), count in self._counts.items():
                if count > 1:
                    log.info("more requests", extra={"address": place, "code": told, "count": count - 1})
            self._counts, self._interval_ends = {}, now + self.INTERVAL_SECONDS
        kind = (network(address), code)
        if kind not in self._counts and len(self._counts) >= self.KINDS:
            kind = ("any", "any")
        self._counts[kind] = self._counts.get(kind, 0) + 1
        return self._counts[kind] > 1
