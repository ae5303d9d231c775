"""Processes with their CPU and memory, a fast HTTP client, and the load client."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

from tests.processes import environment

HERE = Path(__file__).parent
STOP_SECONDS = 60.0
IDLE_SECONDS = 3.0  # after which a connection is replaced; uvicorn closes it after five
PASSWORD, TOKEN = "four words of the bench", "the bootstrap token of the bench"


def compiled(folder: Path) -> dict[str, Path]:
    """Compile the two C programs. Raises FileNotFoundError without a compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or sys.platform != "linux":
        raise FileNotFoundError("the bench needs Linux and a C compiler")
    for name in ("upstream", "client"):
        subprocess.run([compiler, "-O2", "-o", folder / name, HERE / f"{name}.c"], check=True)
    return {name: folder / name for name in ("upstream", "client")}


class Process:
    """A server process. The first line that it prints ends with its port."""

    def __init__(self, *command: object, environ: dict[str, str] | None = None, load: bool = False) -> None:
        """`load`: run on the last core, like the load client."""
        cores = sorted(os.sched_getaffinity(0))
        self.started = time.perf_counter()
        arguments, environ = [str(part) for part in command], environment() | (environ or {})
        self.popen = subprocess.Popen(arguments, stdout=subprocess.PIPE, env=environ, cwd=HERE.parent)
        if load:
            os.sched_setaffinity(self.popen.pid, cores[-1:])
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline().decode().split()
        if not line:
            raise RuntimeError(f"{command}: did not start")
        self.port = int(line[-1].rpartition(":")[2])
        self.url = f"http://127.0.0.1:{self.port}"

    def cpu(self) -> float:
        """Return the CPU seconds of all threads, also of those that have ended (clock_getcpuclockid of Linux)."""
        return time.clock_gettime(~self.popen.pid << 3 | 2)

    def memory(self, which: str = "VmRSS") -> float:
        """Return the resident megabytes, or their peak, VmHWM."""
        status = Path(f"/proc/{self.popen.pid}/status").read_text()
        return int(status.split(f"{which}:")[1].split()[0]) / 1024

    def stop(self) -> str:
        """Stop the process. Return the rest of its output."""
        self.popen.terminate()
        rest, _ = self.popen.communicate(timeout=STOP_SECONDS)
        return rest.decode()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.popen.poll() is None:
            self.stop()


def upstream(programs: dict[str, Path]) -> Process:
    return Process(programs["upstream"], load=True)


def bare(model_server: str) -> Process:
    return Process(sys.executable, HERE / "bare.py", model_server)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float

    def json(self) -> Any:
        assert self.status == 200, (self.status, self.body[:500])
        return json.loads(self.body)


class Http:
    """A persistent connection with little overhead: one write and few reads a request."""

    def __init__(self, port: int, headers: dict[str, str] | None = None) -> None:
        self.port, self.headers = port, headers or {}
        self._connect()

    def _connect(self) -> None:
        self.used = time.monotonic()
        self.socket = socket.create_connection(("127.0.0.1", self.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def packed(self, method: str, path: str, body: bytes = b"", kind: str = "application/json") -> bytes:
        lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{self.port}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        if body:
            lines += [f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
        return "\r\n".join([*lines, "", ""]).encode() + body

    def ask(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> Answer:
        raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        request = self.packed(method, path, raw, kind)
        if time.monotonic() - self.used > IDLE_SECONDS:
            self._connect()
        start = time.perf_counter()
        self.socket.sendall(request)
        data = bytearray()
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += self._more()
        status, *lines = data[:end].decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        wanted = end + 4 + int(headers.get("content-length", "0"))
        chunked = headers.get("transfer-encoding") == "chunked"
        while len(data) < wanted or (chunked and not data.endswith(b"\r\n0\r\n\r\n")):
            data += self._more()
        self.used = time.monotonic()
        return Answer(int(status.split()[1]), headers, bytes(data[end + 4 :]), time.perf_counter() - start)

    def _more(self) -> bytes:
        data = self.socket.recv(1 << 18)
        assert data, "the connection was closed"
        return data

    def get(self, path: str) -> Any:
        return self.ask("GET", path).json()

    def post(self, path: str, body: Any) -> Any:
        return self.ask("POST", path, body).json()

    def seconds(self, path: str) -> float:
        answer = self.ask("GET", path)
        assert answer.status == 200, answer.body[:500]
        return answer.seconds


class Fireside(Process):
    """The service. After `sign_in`, `http` is a connection of its first user, and `owners` has that of each conversation."""

    http: Http

    def __init__(self, data_dir: Path, model_server: str, *command: object) -> None:
        environ = {
            "FIRESIDE_LMSTUDIO_URL": model_server,
            "FIRESIDE_LMSTUDIO_CONCURRENCY": "1000",
            "FIRESIDE_BOOTSTRAP_TOKEN": TOKEN,
            "FIRESIDE_BACKUPS": "0",
        }
        command = command or (sys.executable, "-m", "fireside")
        super().__init__(*command, "--data-dir", data_dir, "--port", "0", "--no-open", environ=environ)
        self.owners: dict[int, Http] = {}

    def sign_in(self) -> "Fireside":
        http = Http(self.port)
        person = {"username": "ann", "password": PASSWORD}
        answer = http.ask("POST", "/admin/bootstrap", person | {"token": TOKEN})
        if answer.status == 403:
            http = Http(self.port)  # the service closes the connection of a stranger after an error
            answer = http.ask("POST", "/auth/login", person)
        self.http = _with_session(http, answer)
        return self

    def users(self, count: int) -> list[Http]:
        """Return connections of new users."""
        users = []
        for number in range(count):
            person = {"username": f"ben{number}", "password": PASSWORD}
            invite = self.http.post("/admin/invites", {})["invite_code"]
            http = Http(self.port)
            users.append(_with_session(http, http.ask("POST", "/auth/register", person | {"invite_code": invite})))
        return users

    def conversation(self, question: str = "Count.", owner: Http | None = None) -> int:
        http = owner or self.http
        made: int = http.post("/conversations", {})["id"]
        http.post(f"/conversations/{made}/messages", {"content": question})
        self.owners[made] = http
        return made


def _with_session(http: Http, answer: Answer) -> Http:
    cookie = answer.headers["set-cookie"].partition(";")[0]
    http.headers = {"Cookie": cookie, "X-CSRF-Token": answer.json()["csrf_token"]}
    return http


@dataclass
class Load:
    """Work for the load client: connections, each with successive requests."""

    port: int
    lines: list[bytes] = field(default_factory=list)

    def connection(self) -> "Load":
        self.lines.append(b"connection\n")
        return self

    def request(self, kind: str, packed: bytes, tokens: int = 0, rate: float = 0) -> "Load":
        self.lines.append(f"request {kind} {tokens} {rate} {len(packed)}\n".encode() + packed)
        return self

    def run(self, programs: dict[str, Path]) -> "Outcome":
        """Run the load client. Raises AssertionError when anything was not delivered as it was sent."""
        client = subprocess.Popen([programs["client"], str(self.port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        os.sched_setaffinity(client.pid, sorted(os.sched_getaffinity(0))[-1:])
        output, _ = client.communicate(b"".join(self.lines))
        *requests, summary = [json.loads(line) for line in output.splitlines()]
        wrong = {request["why"] for request in requests if request["why"]}
        assert client.returncode == 0 and not wrong, wrong or client.returncode
        return Outcome(requests, **summary)


class Outcome(NamedTuple):
    requests: list[dict[str, Any]]
    began: float
    ended: float
    paced: int
    on_time: int
    late_p50: int
    late_p99: int

    @property
    def tokens(self) -> int:
        return sum(request["tokens"] for request in self.requests)

    @property
    def streams(self) -> list[dict[str, Any]]:
        return [request for request in self.requests if request["kind"] != "P"]


def script(tokens: int, rate: float = 0) -> str:
    """Return the model name that makes upstream.c send so many tokens."""
    return f"bench-{tokens}-{rate:g}"


def text(began: float, tokens: int) -> str:
    """Return the text that upstream.c sends for it."""
    return f"@{began:012.0f} " + "".join(f"{token:06d} " for token in range(1, tokens))


def direct_load(
    port: int,
    streams: int,
    tokens: int,
    rate: float = 0,
    times: int = 1,
    path: str = "/v1/chat/completions",
    headers: dict[str, str] | None = None,
) -> Load:
    """Parallel streams in the format of OpenAI, each so many `times`, of the bare proxy, the model server or a peer."""
    load = Load(port)
    packed = openai_request(Http(port, headers), "", [{"role": "user", "content": "Count."}], tokens, rate, path)
    for _ in range(streams):
        load.connection()
        for _ in range(times):
            load.request("O", packed, tokens, rate)
    return load


def openai_request(
    http: Http,
    prefix: str,
    messages: list[dict[str, str]],
    tokens: int,
    rate: float = 0,
    path: str = "/v1/chat/completions",
) -> bytes:
    """Return a request for a stream with usage. `prefix` is what precedes the name of the model."""
    body = {"model": f"{prefix}{script(tokens, rate)}", "messages": messages, "stream": True}
    body |= {"stream_options": {"include_usage": True}}
    return http.packed("POST", path, json.dumps(body).encode())


def stream_request(fireside: Fireside, conversation: int, tokens: int, rate: float = 0) -> bytes:
    body = {"provider_id": "lmstudio", "model": script(tokens, rate)}
    owner = fireside.owners[conversation]
    return owner.packed("POST", f"/conversations/{conversation}/stream", json.dumps(body).encode())


def fireside_load(fireside: Fireside, conversations: list[int], tokens: int, rate: float = 0) -> Load:
    load = Load(fireside.port)
    for conversation in conversations:
        load.connection().request("F", stream_request(fireside, conversation, tokens, rate), tokens, rate)
    return load


def successive_load(fireside: Fireside, times: int, tokens: int) -> Load:
    """Streams of one connection, each in a new conversation."""
    load = Load(fireside.port).connection()
    for _ in range(times):
        load.request("F", stream_request(fireside, fireside.conversation(), tokens), tokens)
    return load


def check_stored(fireside: Fireside, conversations: list[int], outcome: Outcome) -> None:
    """Check that the database has exactly the text that the readers got, and the usage."""
    for stream in outcome.streams:
        conversation = conversations[stream["connection"]]
        answer = fireside.owners[conversation].get(f"/conversations/{conversation}/messages")[-1]
        assert answer["status"] == "complete"
        assert answer["content"] == text(stream["began"], stream["tokens"])
        assert answer["token_usage"]["completion_tokens"] == stream["tokens"]
