"""Input validation: unusual requests to every operation of /openapi.json get a documented answer, in time.

`prove` generates them with hypothesis from the schemas: valid and invalid values, and bodies that are not JSON. `by_schemathesis` lets
schemathesis generate them.
"""

import importlib
import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

from ..browser import Fireside
from ..live import good
from ..witness import DECLARED
from . import Figures, fireside_process

MAX_SECONDS = 5.0
ODD_TEXTS = (
    "", " ", "\0", "0", "-1", "null", "true", "%", "_", "*", "'", '"', "--", "../..", "\u202e", "\ufdfd", "\U0001f600", "e" * 5000, "1e999", "NaN",
)  # fmt: skip
ODD_NUMBERS = (0, -1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 10**30)
ODD_BODIES = (
    b"", b"{", b"[]", b"nul", b'{"a": 1e999}', b'{"title": "\\ud800"}', b'{"title": "\xff"}', b"[" * 100_000, b'{"a":' * 50_000,
    b"1" * 100_000, b'{"title": "a", "title": "b"}', b"\xef\xbb\xbf{}", b"x" * 5_000_000,
)  # fmt: skip
TYPES = ("application/json",) * 8 + ("text/plain", "application/zip", "", "application/json; charset=utf-16", "é")
odd = st.sampled_from(ODD_TEXTS) | st.text(max_size=20)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(ODD_NUMBERS) | st.floats() | odd,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(odd, inner, max_size=4),
    max_leaves=8,
)
raw = st.binary(max_size=100) | st.sampled_from(ODD_BODIES)


def of_schema(schema: dict[str, Any], schemas: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Return values that this schema allows, except that they ignore its patterns."""
    if "$ref" in schema:
        return st.deferred(lambda: of_schema(schemas[schema["$ref"].rpartition("/")[2]], schemas))
    if "anyOf" in schema:
        return st.one_of(*(of_schema(one, schemas) for one in schema["anyOf"]))
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    low, high = schema.get("minimum"), schema.get("maximum")
    match schema.get("type"):
        case "string":
            return st.text(min_size=schema.get("minLength", 0), max_size=min(schema.get("maxLength", 30), 30))
        case "integer":
            return st.integers(low, high)
        case "number":
            return st.floats(low, high)
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
        case "array":
            return st.lists(of_schema(schema.get("items", {}), schemas), max_size=min(schema.get("maxItems", 3), 3))
        case "object":
            fields = {name: of_schema(one, schemas) for name, one in schema.get("properties", {}).items()}
            required = {name: fields.pop(name) for name in schema.get("required", ())}
            return st.fixed_dictionaries(required, optional=fields)
    return anything


def requests(description: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Return requests to any operation, as dictionaries."""
    schemas = description["components"]["schemas"]
    operations = [
        _of_operation(method, path, operation, schemas)
        for path, methods in description["paths"].items()
        for method, operation in methods.items()
    ]
    return st.one_of(*operations)


def _of_operation(
    method: str, path: str, operation: dict[str, Any], schemas: dict[str, Any]
) -> st.SearchStrategy[dict[str, Any]]:
    known: dict[str, st.SearchStrategy[Any]] = {"integer": st.integers(1, 12)}
    arguments, query = {}, {}
    for one in operation["parameters"]:
        if one["in"] == "path":
            usual = known.get(one["schema"].get("type"), st.just("lmstudio"))
            arguments[one["name"]] = usual | st.sampled_from(ODD_NUMBERS) | odd
        elif one["in"] == "query":
            query[one["name"]] = of_schema(one["schema"], schemas) | odd
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    valid = of_schema(content, schemas)
    body = st.one_of(valid, valid, anything).map(lambda value: json.dumps(value).encode()) | raw
    return st.fixed_dictionaries(
        {
            "method": st.just(method.upper()),
            "path": st.just(path),
            "arguments": st.fixed_dictionaries(arguments),
            "query": st.fixed_dictionaries({}, optional=query) | st.dictionaries(odd, odd, max_size=2),
            "type": st.sampled_from(TYPES),
            "token": st.sampled_from(("right",) * 9 + ("wrong",)),
            "content": body if method != "get" else st.just(b""),
        }
    )


class Target:
    """A service, and its administrator, who signs in again when a request has ended her session."""

    def __init__(self, fireside: Fireside, figures: Figures) -> None:
        self.fireside, self.figures = fireside, figures
        self.http = fireside.first()
        # Another source address to sign in from, because the throttle delays the one that guesses tokens.
        self.sign_in_http = httpx.Client(
            base_url=fireside.url, transport=httpx.HTTPTransport(local_address="127.0.2.1")
        )
        self.statuses: Counter[int] = Counter()
        self.slowest = 0.0
        secret = json.loads((fireside.data_dir / "service.json").read_text("utf-8"))["secret"]
        # A program for /v1. The requests revoke the tokens with small ids.
        tokens = [good(self.http.post("/tokens", json={"name": "x"}))["token"] for _ in range(20)]
        self.program = httpx.Client(
            base_url=fireside.url, headers={"Authorization": f"Bearer {tokens[-1]}"}, timeout=30
        )
        self.owner = {"Authorization": f"Bearer {secret}"}
        self.description = good(self.http.get("/openapi.json"))
        for _ in range(6):
            conversation_id = good(self.http.post("/conversations", json={}))["id"]
            good(self.http.post(f"/conversations/{conversation_id}/messages", json={"content": "Hello?"}))

    def send_generated(self, request: dict[str, Any]) -> None:
        path = re.sub(r"{(\w+)}", lambda name: _quoted(request["arguments"][name[1]]), request["path"])
        query = {_encodable(key): _encodable(value) for key, value in request["query"].items()}
        headers = {"Content-Type": request["type"].encode()} if request["type"] else {}
        if request["token"] == "wrong":
            headers["X-CSRF-Token"] = "é".encode()
        self.send(
            self._client(path), request["method"], path, params=query, headers=headers, content=request["content"]
        )

    def _client(self, path: str) -> httpx.Client:
        return self.program if urlsplit(path).path.startswith("/v1/") else self.http

    def send_case(self, case: Any) -> None:
        """Send a request of schemathesis, and let it compare the answer with the description."""
        made = case.as_transport_kwargs(base_url=self.fireside.url)
        headers = {name: value for name, value in made.get("headers", {}).items() if name.lower() == "content-type"}
        content = {name: made[name] for name in ("json", "data", "params") if made.get(name) is not None}
        if isinstance(content.get("data"), bytes | str):
            content["content"] = content.pop("data")
        answer = self.send(self._client(made["url"]), made["method"], made["url"], headers=headers, **content)
        if answer is not None and not case.operation.is_valid_response(answer):
            problem = f"{answer.status_code} is not as described: {answer.text[:300]}"
            self.figures.wrong.append(f"{case.operation.label}: {problem}")

    def send(self, client: httpx.Client, method: str, url: str, **more: Any) -> httpx.Response | None:
        try:
            request = client.build_request(method, url, **more)
        except httpx.InvalidURL:  # longer than httpx sends
            return None
        started = time.monotonic()
        what = f"{request.method} {request.url.raw_path[:200]!r} {request.content[:200]!r}"
        try:
            answer = client.send(request)
        except httpx.HTTPError as error:
            self.figures.expect(False, f"{what}: {error!r}")
            return None
        taken = time.monotonic() - started
        self.slowest = max(self.slowest, taken)
        self.statuses[answer.status_code] += 1
        declared = answer.status_code < 500 or answer.status_code in DECLARED
        self.figures.expect(
            declared and taken < MAX_SECONDS and _is_well_formed(answer),
            f"{what}: {answer.status_code} in {taken:.1f} s: {answer.text[:300]}",
        )
        if answer.status_code == 401 and self.http.get("/auth/me").status_code == 401:
            self._sign_in()
        return answer

    def _sign_in(self) -> None:
        token = good(self.http.post("/control/link", headers=self.owner, json={"username": "ann"}))["token"]
        answer = self.sign_in_http.post("/auth/link", json={"token": token})
        self.http.headers["X-CSRF-Token"] = good(answer)["csrf_token"]
        self.http.cookies = answer.cookies

    def finish(self) -> None:
        """Check that the service still works and has logged no exception."""
        self.sign_in_http.close()
        self.program.close()
        good(self.http.get("/health"))
        for entry in self.fireside.log():
            if "trace" in entry:
                self.figures.expect(False, f"logged {entry['event']}: {entry['trace'][-300:]}")
        counts = ", ".join(f"{count} x {status}" for status, count in sorted(self.statuses.items()))
        peak = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self.fireside.process.pid}/status").read_text())
        self.figures.more = f"{counts}; slowest {self.slowest * 1000:.0f} ms; at most {int(peak[0]) / 1000:.0f} MB"


def _quoted(value: Any) -> str:
    return quote(str(value).encode("utf-8", "replace"), safe="") or "%20"


def _encodable(value: Any) -> str:
    return str(value).encode("utf-8", "replace").decode()


def _is_well_formed(answer: httpx.Response) -> bool:
    if answer.status_code < 400:
        return "content-security-policy" in answer.headers
    body = answer.json()
    if "error" in body:  # of /v1
        return sorted(body["error"]) == ["code", "message", "param", "type"]
    return sorted(body) == ["code", "message", "request_id"] and body["request_id"] == answer.headers["x-request-id"]


@contextmanager
def _target(figures: Figures) -> Iterator[Target]:
    with fireside_process() as (fireside, _):
        target = Target(fireside, figures)
        yield target
        target.finish()


def plan(examples: int, **options: Any) -> settings:
    """Return settings of hypothesis with which each run is the same."""
    checks: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck)}
    return settings(
        max_examples=examples, database=None, derandomize=True, **checks | {"phases": [Phase.generate]} | options
    )


def prove(size: int) -> Figures:
    figures = Figures()
    with _target(figures) as target:
        plan(size)(given(requests(target.description))(target.send_generated))()
    return figures


def by_schemathesis(size: int) -> Figures:
    """schemathesis is in the extra `dev`, which `make test` does not install."""
    schemathesis = importlib.import_module("schemathesis")
    figures = Figures()
    with _target(figures) as target:
        schema = schemathesis.openapi.from_dict(target.description)
        operations = [found.ok() for found in schema.get_all_operations()]
        limited = plan(max(1, size // len(operations) // 2))
        for operation in operations:
            for mode in schemathesis.GenerationMode:
                with suppress(Unsatisfiable):  # an operation without parameters has no invalid requests
                    limited(given(operation.as_strategy(mode))(target.send_case))()  # type: ignore[no-untyped-call]
    return figures
