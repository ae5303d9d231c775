"""The outermost ASGI layer: allowed hosts and origins, security headers, request ids and the access log.

A request needs exactly one Host header with an allowed name, which stops DNS rebinding. Requests of browsers must come from
the page's own origin: SameSite cookies do not help against other web servers on this computer, which are "same-site".
"""

import asyncio
import ipaddress
import json
import logging
import secrets
import socket
import time
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..config import Config
from ..errors import FiresideError, HostNotAllowed, OriginNotAllowed, RateLimited, Stopping
from ..safety.throttle import is_loopback, network

log = logging.getLogger("fireside.access")

PREFLIGHT_SECONDS = 7200  # that a browser keeps the answer to a preflight; Chromium keeps none for longer
LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})

NO_CONTENT_POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; sandbox"
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; font-src 'self'; "
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


def error_response(error: FiresideError, request_id: str, path: str = "") -> Response:
    """Return the response to an error. All have this JSON shape, except that those of /v1 have OpenAI's."""
    body: dict[str, Any] = {"code": error.code, "message": error.message, "request_id": request_id}
    status = error.status
    if path == "/v1" or path.startswith("/v1/"):
        status, body = openai_error(error)
    return Response(json.dumps(body), status, error.headers, media_type="application/json")


# OpenAI's names for what its clients tell apart. Its own packages repeat a request after 408, 409, 429 and 5xx.
_OPENAI_CODES = {
    "INVALID_TOKEN": (401, "invalid_request_error", "invalid_api_key"),
    "CONTEXT_OVERFLOW": (400, "invalid_request_error", "context_length_exceeded"),
    "MODEL_NOT_FOUND": (404, "invalid_request_error", "model_not_found"),
    "VISION_UNSUPPORTED": (400, "invalid_request_error", "image_not_supported"),
    "RATE_LIMITED": (429, "rate_limit_error", "rate_limit_exceeded"),
    "PROVIDER_BUSY": (503, "server_error", "provider_busy"),
    "PROVIDER_TIMEOUT": (504, "server_error", "provider_timeout"),
}


def openai_error(error: FiresideError) -> tuple[int, dict[str, Any]]:
    """Return the status and the body of an error in OpenAI's shape."""
    kind = "server_error" if error.status >= 500 else "invalid_request_error"
    status, kind, code = _OPENAI_CODES.get(error.code, (error.status, kind, error.code.lower()))
    refused = getattr(error, "refused_with", None)  # by the model server: repeating the request would not help
    if refused and code == "provider_error":
        status, kind = refused, "invalid_request_error"
    param = "model" if code == "model_not_found" else None
    return status, {"error": {"message": error.message, "type": kind, "param": param, "code": code}}


class SecurityMiddleware:
    def __init__(self, app: ASGIApp, config: Config) -> None:
        self.app = app
        self.log = AccessLog()
        self.allowed_origins = frozenset(config.allowed_origins)
        public = urlsplit(config.public_url)
        self.own_origins = frozenset({f"{public.scheme}://{public.netloc}"} if config.public_url else ())
        self.any_address = not is_loopback(config.host)
        mdns_name = f"{socket.gethostname().split('.')[0]}.local" if self.any_address else None
        names = (*config.allowed_hosts, public.hostname, config.host, mdns_name)
        self.hosts = LOOPBACK | {_as_host(name) for name in names if name}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return  # uvicorn answers 403 to a WebSocket
        request_id = secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        started, status = time.perf_counter(), 0
        origin: str | None = None

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                present = {name for name, _ in message["headers"]}
                missing = [(name, value) for name, value in SECURITY_HEADERS.items() if name not in present]
                own = [(b"x-request-id", request_id.encode()), *(_cors_headers(origin) if origin else ())]
                if status == RateLimited.status or (status >= 400 and "user_id" not in scope["state"]):
                    own.append((b"connection", b"close"))  # a flood of such requests waits in the backlog
                message["headers"] = [*message["headers"], *missing, *own]
            await send(message)

        async def respond(response: Response) -> None:
            await response(scope, receive, send_with_headers)

        try:
            headers = Headers(scope=scope)
            self._check_host(headers)
            origin = self._check_origin(scope, headers)
            scope["state"]["cross_origin"] = origin is not None
            if origin is not None and scope["method"] == "OPTIONS":
                await respond(Response(status_code=204, headers=_preflight_headers(headers)))
            else:
                await self.app(scope, receive, send_with_headers)
        except FiresideError as error:
            scope["state"]["code"] = error.code
            await respond(error_response(error, request_id, scope["path"]))
        except asyncio.CancelledError:  # uvicorn cancels requests that outlast timeout_graceful_shutdown
            if status:
                raise
            await respond(error_response(Stopping(), request_id, scope["path"]))
        except Exception:
            log.exception("request %s failed", request_id)
            if not status:
                await respond(error_response(FiresideError(), request_id, scope["path"]))
        finally:
            self.log.add(scope, request_id, status, started)

    def _check_host(self, headers: Headers) -> None:
        hosts = headers.getlist("host")
        if len(hosts) != 1:
            raise HostNotAllowed("A request must have exactly one Host header.")
        host = hosts[0].lower()
        name, _, port = host.rpartition(":")
        if not name or not (port.isascii() and port.isdigit()) or (name.startswith("[") and not name.endswith("]")):
            name = host
        if name not in self.hosts and not (self.any_address and _is_address(name)):
            raise HostNotAllowed

    def _check_origin(self, scope: Scope, headers: Headers) -> str | None:
        """Return the Origin header if it is in allowed_origins, else None. Raises OriginNotAllowed."""
        for name in ("origin", "sec-fetch-site", "sec-fetch-mode", "sec-fetch-dest"):
            if len(headers.getlist(name)) > 1:
                raise OriginNotAllowed(f"A request must not have more than one {name.title()} header.")
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if origin in self.allowed_origins:
            return origin
        own = origin is None or origin in self.own_origins or origin == f"{scope['scheme']}://{headers['host']}"
        reads = scope["method"] in ("GET", "HEAD")
        # A top-level navigation (a link, the address bar) changes nothing, and the page that it leaves sees no response.
        navigates = (
            headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest", "document") == "document"
        )
        if not own or not (site in (None, "same-origin") or (reads and (site == "none" or navigates))):
            raise OriginNotAllowed
        return None


def _as_host(name: str) -> str:
    """Return a name as the Host header has it: in lower case, an IPv6 address in brackets."""
    return f"[{name.strip('[]')}]".lower() if ":" in name else name.lower()


def _is_address(host: str) -> bool:
    """Whether a host is an IP address. DNS rebinding needs a name, so any address is safe."""
    try:
        ipaddress.ip_address(host[1:-1] if host.startswith("[") else host)
    except ValueError:
        return False
    return True


def _cors_headers(origin: str) -> list[tuple[bytes, bytes]]:
    return [
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-allow-credentials", b"true"),
        (b"access-control-expose-headers", b"x-request-id, retry-after, content-disposition"),
        (b"vary", b"origin"),
    ]


def _preflight_headers(request: Headers) -> dict[str, str]:
    """Allow all request headers that an allowed origin asks for. A browser accepts no "*" with cookies."""
    headers = {
        "Access-Control-Allow-Methods": "GET, POST, PATCH, DELETE",
        "Access-Control-Max-Age": str(PREFLIGHT_SECONDS),
        "Vary": "Access-Control-Request-Headers",
    }
    if names := request.get("access-control-request-headers"):
        headers["Access-Control-Allow-Headers"] = names
    return headers


class AccessLog:
    """A line for each request of a user, and a summary of requests without a user, so that strangers cannot rotate the log.

    Those are counted by address and error code. In each interval the first of a kind gets a line; the next interval begins
    with the numbers of the others.
    """

    INTERVAL_SECONDS, KINDS = 60.0, 20

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], int] = {}
        self._interval_ends = 0.0

    def add(self, scope: Scope, request_id: str, status: int, started: float) -> None:
        """Log the route's template, never the path, the query, a header or a body; for errors also the code and the address."""
        state, address = scope["state"], (scope.get("client") or ("-",))[0]
        user, code = state.get("user_id"), state.get("code", "")
        if user is None and self._count(address, code) > 1:
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

    def _count(self, address: str, code: str) -> int:
        """Return how many requests of this kind the interval has, with this one."""
        now = time.monotonic()
        if now >= self._interval_ends:
            for (place, error), count in self._counts.items():
                if count > 1:
                    log.info("more requests", extra={"address": place, "code": error, "count": count - 1})
            self._counts, self._interval_ends = {}, now + self.INTERVAL_SECONDS
        kind = (network(address), code)
        if kind not in self._counts and len(self._counts) >= self.KINDS:
            kind = ("any", "any")
        self._counts[kind] = self._counts.get(kind, 0) + 1
        return self._counts[kind]
