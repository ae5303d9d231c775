"""Requests that nobody would write, to every operation of /openapi.json: each must be answered, and honestly.

`prove` makes them with hypothesis from the schemas: half right, half wrong, and what is no JSON at all. `by_schemathesis` has
another program make them, from the same description.
"""

import importlib
import json
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

from ..browser import NO_ENGINE, Fireside
from ..live import good
from ..upstream import Upstream
from . import Figures

DECLARED = (502, 503)  # a model server failed; the disk did not take it
SECONDS = 5.0  # that an answer may take
ODD_TEXTS = (
    "",
    " ",
    "\0",
    "0",
    "-1",
    "null",
    "true",
    "%",
    "_",
    "*",
    "'",
    '"',
    "--",
    "../..",
    "\u202e",
    "﷽",
    "😀",
    "e" * 5000,
    "1e999",
    "NaN",
)
ODD_NUMBERS = (0, -1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 10**30)
odd = st.sampled_from(ODD_TEXTS) | st.text(max_size=20)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(ODD_NUMBERS) | st.floats() | odd,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(odd, inner, max_size=4),
    max_leaves=8,
)
raw = st.one_of(
    st.binary(max_size=100),
    st.sampled_from(
        (
            b"",
            b"{",
            b"[]",
            b"nul",
            b'{"a": 1e999}',
            b'{"title": "\\ud800"}',
            b'{"title": "\xff"}',
            b"[" * 100_000,
            b'{"a":' * 50_000,
            b"1" * 100_000,
            b'{"title": "a", "title": "b"}',
            b"\xef\xbb\xbf{}",
            b"x" * 5_000_000,
        )
    ),
)


def of_schema(schema: dict[str, Any], parts: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that this schema allows, nearly: its patterns are not followed."""
    if "$ref" in schema:
        return st.deferred(lambda: of_schema(parts[schema["$ref"].rpartition("/")[2]], parts))
    if "anyOf" in schema:
        return st.one_of(*(of_schema(one, parts) for one in schema["anyOf"]))
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
            return st.lists(of_schema(schema.get("items", {}), parts), max_size=min(schema.get("maxItems", 3), 3))
        case "object":
            fields = {name: of_schema(one, parts) for name, one in schema.get("properties", {}).items()}
            required = {name: fields.pop(name) for name in schema.get("required", ())}
            return st.fixed_dictionaries(required, optional=fields)
    return anything


def requests(description: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """One of all operations: method, path, query, headers and content."""
    parts = description["components"]["schemas"]
    return st.one_of(
        *(
            _of_operation(method, path, operation, parts)
            for path, methods in description["paths"].items()
            for method, operation in methods.items()
        )
    )


def _of_operation(
    method: str, path: str, operation: dict[str, Any], parts: dict[str, Any]
) -> st.SearchStrategy[dict[str, Any]]:
    inside = {one["name"]: one["schema"] for one in operation["parameters"] if one["in"] == "path"}
    query = {
        one["name"]: of_schema(one["schema"], parts) | odd for one in operation["parameters"] if one["in"] == "query"
    }
    small = st.integers(1, 12)
    known = {name: small if schema.get("type") == "integer" else st.just("lmstudio") for name, schema in inside.items()}
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    body = st.one_of(of_schema(content, parts), of_schema(content, parts), anything).map(_encoded) | raw
    kinds = ("application/json",) * 8 + ("text/plain", "application/zip", "", "application/json; charset=utf-16", "é")
    return st.fixed_dictionaries(
        {
            "method": st.just(method.upper()),
            "path": st.just(path),
            "inside": st.fixed_dictionaries(
                {name: known[name] | st.sampled_from(ODD_NUMBERS) | odd for name in inside}
            ),
            "query": st.fixed_dictionaries({}, optional=query) | st.dictionaries(odd, odd, max_size=2),
            "type": st.sampled_from(kinds),
            "token": st.sampled_from(("right",) * 9 + ("wrong",)),
            "content": body if method != "get" else st.just(b""),
        }
    )


def _encoded(value: Any) -> bytes:
    return json.dumps(value).encode()


class Prey:
    """The Fireside that is asked, as its administrator, who signs in again whenever a request has signed her out."""

    def __init__(self, fireside: Fireside, figures: Figures) -> None:
        self.fireside, self.figures = fireside, figures
        self.http = fireside.first()
        # Another address to come in from: the one that is used is slowed down, for all the tokens that were guessed from there.
        self.door = httpx.Client(base_url=fireside.url, transport=httpx.HTTPTransport(local_address="127.0.2.1"))
        self.statuses: Counter[int] = Counter()
        self.slowest = 0.0
        secret = json.loads((fireside.data_dir / "service.json").read_text("utf-8"))["secret"]
        self.owner = {"Authorization": f"Bearer {secret}"}
        self.description = good(self.http.get("/openapi.json"))
        for _ in range(6):
            conversation_id = good(self.http.post("/conversations", json={}))["id"]
            good(self.http.post(f"/conversations/{conversation_id}/messages", json={"content": "Hello?"}))

    def ask(self, request: dict[str, Any]) -> None:
        path = re.sub(r"{(\w+)}", lambda name: _quoted(request["inside"][name[1]]), request["path"])
        query = {_printable(key): _printable(value) for key, value in request["query"].items()}
        headers = {"Content-Type": request["type"].encode()} if request["type"] else {}
        if request["token"] == "wrong":
            headers["X-CSRF-Token"] = "é".encode()
        built = self.http.build_request(
            request["method"], path, params=query, headers=headers, content=request["content"]
        )
        self.send(built)

    def ask_case(self, case: Any) -> None:
        """A request that schemathesis has made, and what it thinks of the answer."""
        made = case.as_transport_kwargs(base_url=self.fireside.url)
        kind = {name: value for name, value in made.get("headers", {}).items() if name.lower() == "content-type"}
        content = {name: made[name] for name in ("json", "data", "params") if made.get(name) is not None}
        if isinstance(content.get("data"), bytes | str):
            content["content"] = content.pop("data")
        answer = self.send(self.http.build_request(made["method"], made["url"], headers=kind, **content))
        if answer is not None and not case.operation.is_valid_response(answer):
            self.figures.wrong.append(
                f"{case.operation.label}: {answer.status_code} is not as described: {answer.text[:300]}"
            )

    def send(self, request: httpx.Request) -> httpx.Response | None:
        started = time.monotonic()
        what = f"{request.method} {request.url.raw_path[:200]!r} {request.content[:200]!r}"
        try:
            answer = self.http.send(request)
        except httpx.HTTPError as error:
            self.figures.expect(False, f"{what}: {error!r}")
            return None
        taken = time.monotonic() - started
        self.slowest = max(self.slowest, taken)
        self.statuses[answer.status_code] += 1
        self.figures.expect(
            (answer.status_code < 500 or answer.status_code in DECLARED) and taken < SECONDS and _well_formed(answer),
            f"{what}: {answer.status_code} in {taken:.1f} s: {answer.text[:300]}",
        )
        if answer.status_code == 401:
            self._sign_in()
        return answer

    def _sign_in(self) -> None:
        """If that is what it takes: many a 401 is meant otherwise."""
        if self.http.get("/auth/me").status_code == 401:
            token = good(self.http.post("/control/link", headers=self.owner, json={"username": "ann"}))["token"]
            answer = self.door.post("/auth/link", json={"token": token})
            self.http.headers["X-CSRF-Token"] = good(answer)["csrf_token"]
            self.http.cookies = answer.cookies

    def finish(self) -> None:
        """The service goes on, and has logged no fault of its own."""
        self.door.close()
        good(self.http.get("/health"))
        for line in (self.fireside.data_dir / "fireside.log").read_text("utf-8").splitlines():
            if "trace" in (entry := json.loads(line)):
                self.figures.expect(False, f"logged {entry['event']}: {entry['trace'][-300:]}")
        counts = ", ".join(f"{count} x {status}" for status, count in sorted(self.statuses.items()))
        memory = _memory(self.fireside.process.pid)
        self.figures.more = f"{counts}; slowest {self.slowest * 1000:.0f} ms; {memory:.0f} MB at most"


def _quoted(value: Any) -> str:
    return quote(str(value).encode("utf-8", "replace"), safe="") or "%20"


def _printable(value: Any) -> str:
    return str(value).encode("utf-8", "replace").decode()


def _well_formed(answer: httpx.Response) -> bool:
    if answer.status_code < 400:
        return "content-security-policy" in answer.headers
    body = answer.json()
    return sorted(body) == ["code", "message", "request_id"] and body["request_id"] == answer.headers["x-request-id"]


def _memory(pid: int) -> float:
    """The most that the process ever had, in MB; 0 where nobody tells."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0.0
    return int(found[1]) / 1000 if found else 0.0


@contextmanager
def _prey(figures: Figures) -> Iterator[Prey]:
    with (
        tempfile.TemporaryDirectory() as name,
        Upstream() as upstream,
        Fireside(Path(name) / "data", NO_ENGINE, lmstudio_url=upstream.url) as fireside,
    ):
        prey = Prey(fireside, figures)
        yield prey
        prey.finish()


def prove(size: int) -> Figures:
    figures = Figures()
    with _prey(figures) as prey:

        @settings(
            max_examples=size,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate,),
        )
        @given(requests(prey.description))
        def ask(request: dict[str, Any]) -> None:
            prey.ask(request)

        ask()
    return figures


def by_schemathesis(size: int) -> Figures:
    """schemathesis comes with the extra `trust`, which CI does without."""
    schemathesis = importlib.import_module("schemathesis")
    figures = Figures()
    with _prey(figures) as prey:
        schema = schemathesis.openapi.from_dict(prey.description)
        operations = [found.ok() for found in schema.get_all_operations()]
        plan = settings(
            max_examples=max(1, size // len(operations) // 2),
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate,),
        )
        for operation in operations:
            for mode in schemathesis.GenerationMode:

                @plan
                @given(operation.as_strategy(mode))
                def ask(case: Any) -> None:
                    prey.ask_case(case)

                with suppress(Unsatisfiable):  # nothing can be wrong with an operation that takes nothing
                    ask()
    return figures
