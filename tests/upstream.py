"""A scripted LM Studio on a loopback port, for every test that needs a model server.

    with Upstream() as upstream:
        upstream.enqueue(text("Hel", "lo"), finish("stop"), usage(5, 2), DONE)
        ...                                   # send requests to upstream.url
        assert upstream.chats[0]["model"] == "llama-3.2-3b-instruct"

It runs an event loop in a thread, so waiting has a form for sync tests (`upstream.wait_closed()`) and one for async tests
(`await upstream.closed()`).

Each chat request plays the next script of the queue, or `upstream.default`. A script is a list of steps. Bytes are a part
of the body: `text`, `reasoning`, `usage`, `finish`, `error` and `DONE` are the bytes of events. A function gets the
`Request` and returns such bytes. The headers are sent before the first bytes (`headers` changes them), and the end of the
script ends the response properly; `close`, `reset` and `hang` do not.
"""

import asyncio
import contextlib
import json
import socket
import struct
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

CHAT = "/v1/chat/completions"
MODEL = "llama-3.2-3b-instruct"
SECONDS = 10.0  # that a test waits before it fails

DONE = b"data: [DONE]\n\n"
UNAUTHENTICATED = (
    "An LM Studio API token is required to make requests to this server, but none was provided using the Authorization "
    "header using the 'Bearer' scheme (i.e., 'Authorization: Bearer $LM_API_TOKEN'). "
    "Learn more at: https://lmstudio.ai/docs/developer/core/authentication."
)


def event(data: Any, name: str = "") -> bytes:
    """Return one server-sent event. Data that is not a string becomes JSON."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return (f"event: {name}\n" if name else "").encode() + f"data: {text}\n\n".encode()


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, model: str = MODEL, **more: Any) -> bytes:
    """Return one chunk as LM Studio writes it. Without a delta, `choices` is empty."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    head = {"id": "chatcmpl-q8zp3v", "object": "chat.completion.chunk", "created": 1747835957, "model": model}
    return event(head | {"system_fingerprint": model, "choices": [] if delta is None else [choice]} | more)


def text(*deltas: str, model: str = MODEL) -> bytes:
    return b"".join(chunk({"role": "assistant", "content": delta}, model=model) for delta in deltas)


def reasoning(*deltas: str, key: str = "reasoning_content", model: str = MODEL) -> bytes:
    return b"".join(chunk({"role": "assistant", key: delta}, model=model) for delta in deltas)


def usage(prompt: int, completion: int, model: str = MODEL) -> bytes:
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return chunk(usage=counts, model=model)


def finish(reason: str = "stop", model: str = MODEL) -> bytes:
    return chunk({}, reason, model)


def error(message: str, **more: Any) -> bytes:
    """Return an error event as LM Studio writes it since 0.3.18."""
    return event({"error": {"message": message, **more}})


def answer(*deltas: str, model: str = MODEL) -> bytes:
    """Return a whole answer as LM Studio streams it."""
    return text(*deltas, model=model) + finish("stop", model) + usage(12, len(deltas), model) + DONE


# ---- steps other than bytes


@dataclass(frozen=True)
class Command:
    name: str  # headers, response, wire, split, pause, hang, close, reset
    status: int = 200
    fields: tuple[tuple[str, str], ...] = ()
    data: bytes = b""
    chunked: bool = True
    size: int = 0
    gate: "Gate | None" = None


def _fields(content_type: str | None, more: dict[str, str]) -> tuple[tuple[str, str], ...]:
    usual = [("Content-Type", content_type)] if content_type is not None else []
    return (*usual, *((name.replace("_", "-"), value) for name, value in more.items()))


def headers(
    status: int = 200, content_type: str | None = "text/event-stream", framing: str = "chunked", **more: str
) -> Command:
    """Send other headers than the usual ones, for example `headers(content_encoding="gzip")`.

    With `framing="close"` the body ends with the connection.
    """
    return Command("headers", status, _fields(content_type, more), chunked=framing == "chunked")


def status(code: int, body: Any = b"", content_type: str = "application/json", **more: str) -> Command:
    """Send a whole response instead of a stream. A `body` that is neither a string nor bytes becomes JSON."""
    if not isinstance(body, str | bytes):
        body = json.dumps(body)
    return Command("response", code, _fields(content_type, more), body.encode() if isinstance(body, str) else body)


def wire(data: bytes) -> Command:
    """Send bytes outside any framing: a broken status line, a truncated chunk."""
    return Command("wire", data=data)


def split(size: int = 1) -> Command:
    """Send the rest of the body `size` bytes at a time, each in its own chunk and write."""
    return Command("split", size=size)


def pause(gate: "Gate") -> Command:
    return Command("pause", gate=gate)


def hang() -> Command:
    """Send nothing more and keep the connection open until the client closes it or the test ends."""
    return Command("hang")


def close() -> Command:
    """Close the connection (FIN), also in the middle of a body."""
    return Command("close")


def reset() -> Command:
    """Reset the connection (RST)."""
    return Command("reset")


class Gate:
    """A step at which the server waits until the test opens the gate."""

    def __init__(self) -> None:
        self._reached = threading.Event()
        self._lock = threading.Lock()
        self._is_open = False
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    def open(self) -> None:
        with self._lock:
            self._is_open = True
            for loop, opened in self._waiting:
                with contextlib.suppress(RuntimeError):  # the server has stopped
                    loop.call_soon_threadsafe(opened.set)

    def wait(self, seconds: float = SECONDS) -> None:
        """Wait until the server has reached the gate."""
        assert self._reached.wait(seconds), "the server did not reach the gate"

    async def reached(self, seconds: float = SECONDS) -> None:
        await asyncio.to_thread(self.wait, seconds)

    async def passed(self) -> None:
        opened = asyncio.Event()
        with self._lock:
            if not self._is_open:
                self._waiting.append((asyncio.get_running_loop(), opened))
            else:
                opened.set()
        self._reached.set()
        await opened.wait()


class Pace(Gate):
    """A gate that opens by itself, so that what precedes and follows it is not read together."""

    def __init__(self, seconds: float = 0.001) -> None:
        super().__init__()
        self.seconds = seconds

    async def passed(self) -> None:
        await asyncio.sleep(self.seconds)


Step = bytes | Command | Callable[["Request"], bytes]


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class LocalModel:
    """A model on the scripted LM Studio's disk. `instances`: the context length of each loaded instance, by its id."""

    key: str = MODEL
    display_name: str = "Llama 3.2 3B Instruct"
    type: str = "llm"  # llm, vlm (sees images) or embedding
    arch: str = "llama"
    quantization: str = "Q4_K_M"
    size_bytes: int = 2_019_377_696
    max_context_length: int = 131_072
    instances: dict[str, int] = field(default_factory=dict)
    reasoning: tuple[str, ...] = ()  # options
    parallel: int | None = None
    variants: tuple[str, ...] = ()

    def native_v1(self) -> dict[str, Any]:
        """Return the model's entry in /api/v1/models."""
        is_embedding = self.type == "embedding"
        return {
            "type": "embedding" if is_embedding else "llm",
            "publisher": "lmstudio-community",
            "key": self.key,
            "display_name": self.display_name,
            "architecture": self.arch,
            "quantization": {"name": self.quantization, "bits_per_weight": 4},
            "size_bytes": self.size_bytes,
            "params_string": "3B",
            "loaded_instances": [
                {
                    "id": identity,
                    "config": {"context_length": length, "flash_attention": True, "parallel": self.parallel},
                }
                for identity, length in self.instances.items()
            ],
            "variants": list(self.variants),
            "max_context_length": self.max_context_length,
            "format": "gguf",
            **({} if is_embedding else {"capabilities": self._capabilities()}),
        }

    def _capabilities(self) -> dict[str, Any]:
        reasoning = {"reasoning": {"allowed_options": list(self.reasoning), "default": "on"}} if self.reasoning else {}
        return {"vision": self.type == "vlm", "trained_for_tool_use": True, **reasoning}


class Upstream:
    """`token`: the API token that is required, if any. `without`: prefixes of paths that this LM Studio does not know."""

    def __init__(self, *, token: str = "", without: tuple[str, ...] = (), port: int = 0) -> None:
        self.token = token
        self.without = without
        self.models = [
            LocalModel(instances={MODEL: 4096}),
            LocalModel(
                "qwen2.5-vl-7b-instruct", "Qwen2.5 VL 7B Instruct", "vlm", "qwen2_5_vl", "Q4_K_M", 6_000_000_000
            ),
            LocalModel(
                "text-embedding-nomic-embed-text-v1.5", "Nomic Embed", "embedding", "nomic-bert", "Q8_0", 146_146_432
            ),
        ]
        self.default: list[Step] = [
            lambda request: answer("Hello", " from", " upstream", ".", model=request.json["model"])
        ]
        self.job: dict[str, Any] = {}  # the download that was started last
        self.requests: list[Request] = []
        self.abandoned: list[Request] = []  # whose client closed the connection before the end of the response
        self.connections = 0  # accepted so far
        self.open_connections = 0
        self.errors: list[BaseException] = []  # of scripts; leaving the `with` block raises the first
        self._scripts: dict[str, deque[tuple[Step, ...]]] = defaultdict(deque)
        self._changed = threading.Condition()
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="upstream")

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(SECONDS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(SECONDS)
        if self.errors and problem is None:
            raise self.errors[0]

    # ---- for tests

    @property
    def native_id(self) -> int:
        """The operating system's id of the server's thread, to change its priority."""
        assert self._thread.native_id is not None
        return self._thread.native_id

    def enqueue(self, *steps: Step, path: str = CHAT) -> None:
        """Add a script for a request to `path`."""
        with self._changed:
            self._scripts[path].append(steps)

    def enqueue_paused(self, *texts: str) -> list[Gate]:
        """Add a script for a chat that waits for a gate before each text but the first. Return the gates."""
        gates = [Gate() for _ in texts[1:]]
        later = [step for gate, part in zip(gates, texts[1:], strict=True) for step in (pause(gate), text(part))]
        self.enqueue(text(texts[0]), *later, finish(), usage(9, 9), DONE)
        return gates

    def forget(self) -> None:
        """Remove the scripts that no request has played."""
        with self._changed:
            self._scripts.clear()

    @property
    def chats(self) -> list[Any]:
        """The bodies of the chat requests."""
        return [request.json for request in self.requests if request.path == CHAT]

    def count(self, path: str) -> int:
        return sum(request.path == path for request in list(self.requests))

    def wait_requests(self, number: int = 1, seconds: float = SECONDS, path: str = CHAT) -> None:
        self._wait(lambda: self.count(path) >= number, seconds, f"{number} requests to {path}")

    async def received(self, number: int = 1, seconds: float = SECONDS, path: str = CHAT) -> None:
        await asyncio.to_thread(self.wait_requests, number, seconds, path)

    def wait_closed(self, seconds: float = SECONDS) -> None:
        """Wait until no client is connected."""
        self._wait(lambda: self.open_connections == 0, seconds, "every connection to be closed")

    async def closed(self, seconds: float = SECONDS) -> None:
        await asyncio.to_thread(self.wait_closed, seconds)

    def _wait(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, seconds), f"waited {seconds} s for {what}"

    # ---- the server

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._connected, sock=self._listener))
        self._loop.call_soon(self._started.set)
        self._loop.run_forever()
        server.close()
        for _ in range(3):  # a connection that was just accepted gets its task a turn later, and another turn closes it
            while tasks := asyncio.all_tasks(self._loop):
                for task in tasks:
                    task.cancel()
                self._loop.run_until_complete(asyncio.wait(tasks))
            self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.run_until_complete(server.wait_closed())
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with self._changed:
            self.connections += 1
            self.open_connections += 1
            self._changed.notify_all()
        try:
            while await self._exchange(reader, writer):
                pass
        except (OSError, EOFError):
            pass  # the client has closed the connection
        except asyncio.CancelledError:  # the test has ended
            writer.transport.abort()
        except Exception as problem:
            self.errors.append(problem)
        finally:
            writer.close()
            with self._changed:
                self.open_connections -= 1
                self._changed.notify_all()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request. Return whether the connection can be used again."""
        request = await _read_request(reader)
        with self._changed:
            self.requests.append(request)
            scripts = self._scripts[request.path]
            steps = scripts.popleft() if scripts else None
            self._changed.notify_all()
        if steps is None:
            steps = self._usual(request)
        playing = asyncio.ensure_future(_play(steps, request, writer))
        leaving = asyncio.ensure_future(_left(reader))
        try:
            await asyncio.wait((playing, leaving), return_when=asyncio.FIRST_COMPLETED)
            if playing.done() and not isinstance(playing.exception(), OSError):
                return playing.result()
            self.abandoned.append(request)
            return False
        finally:
            for task in (playing, leaving):
                task.cancel()
            await asyncio.gather(playing, leaving, return_exceptions=True)

    def _usual(self, request: Request) -> tuple[Step, ...]:
        if any(request.path.startswith(path) for path in self.without):
            return (_unexpected(request),)
        given = request.headers.get("authorization", "")
        if self.token and given != f"Bearer {self.token}":
            message = f"Malformed LM Studio API token provided: {given.removeprefix('Bearer ')[:10]}**************"
            return (_error(401, message if given else UNAUTHENTICATED, "invalid_api_key"),)
        return tuple(self.default) if request.path == CHAT else (self._answer(request),)

    def _answer(self, request: Request) -> Command:
        match request.method, request.path:
            case "GET", "/api/v1/models":
                return status(200, {"models": [model.native_v1() for model in self.models]})
            case "GET", "/v1/models":
                return status(200, {"object": "list", "data": [{"id": model.key} for model in self.models]})
            case "POST", "/v1/embeddings" if "input" not in request.json:
                return _error(400, "'input' is required", "invalid_request_error")
            case "POST", "/v1/embeddings":
                given = request.json["input"]
                inputs = given if isinstance(given, list) else [given]
                data = [{"object": "embedding", "index": n, "embedding": [0.5, -0.25]} for n in range(len(inputs))]
                used = {"prompt_tokens": 2, "total_tokens": 2}
                return status(200, {"object": "list", "data": data, "model": request.json["model"], "usage": used})
            case "POST", "/api/v1/models/load":
                return self._load(**request.json)
            case "POST", "/api/v1/models/unload":
                return self._unload(**request.json)
            case "POST", "/api/v1/models/download":
                return self._download(**request.json)
            case "GET", path if self.job and path == f"/api/v1/models/download/status/{self.job['job_id']}":
                return status(200, self.job)
        return _unexpected(request)

    def _load(self, model: str, context_length: int = 4096, **options: bool) -> Command:
        found = next((known for known in self.models if model in (known.key, *known.variants)), None)
        if found is None:
            return _error(404, f'Invalid model identifier "{model}".', "model_not_found")
        instance = model if not found.instances else f"{model}:{len(found.instances) + 1}"
        found.instances[instance] = context_length
        return status(200, {"type": "llm", "instance_id": instance, "load_time_seconds": 1.5, "status": "loaded"})

    def _download(self, model: str, quantization: str = "") -> Command:
        if any(known.key == model for known in self.models):
            return status(200, {"status": "already_downloaded"})
        self.job = {"job_id": "job_493c7c9ded", "status": "downloading", "total_size_bytes": 2_000_000_000}
        self.job |= {"downloaded_bytes": 500_000_000, "bytes_per_second": 7834.7}
        return status(200, self.job)

    def _unload(self, instance_id: str) -> Command:
        for model in self.models:
            if model.instances.pop(instance_id, None) is not None:
                return status(200, {"instance_id": instance_id})
        return _error(404, f'No model instance found with identifier "{instance_id}".', "model_not_found")


def _error(code: int, message: str, kind: str) -> Command:
    return status(code, {"error": {"type": "invalid_request", "code": kind, "message": message}})


def _unexpected(request: Request) -> Command:
    return status(200, {"error": f"Unexpected endpoint or method. ({request.method} {request.path})"})


async def _left(reader: asyncio.StreamReader) -> None:
    """Return when the client has closed the connection. Reading would take the beginning of its next request."""
    while not (reader.at_eof() or reader.exception()):  # noqa: ASYNC110
        await asyncio.sleep(0.005)


async def _read_request(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.rstrip().split("\r\n")
    method, path, _version = first.split(" ")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Request(method, path, fields, await reader.readexactly(int(fields.get("content-length", 0))))


async def _play(steps: tuple[Step, ...], request: Request, writer: asyncio.StreamWriter) -> bool:
    """Send the response. Return whether the connection can be used again."""
    sent: Command | None = None  # the headers
    size = 0
    for step in steps:
        if not isinstance(step, Command):
            if sent is None:
                sent = headers()
                writer.write(_head(sent))
            await _send_body(step if isinstance(step, bytes) else step(request), size, sent.chunked, writer)
        elif step.name == "headers":
            sent = step
            writer.write(_head(step))
        elif step.name == "response":
            length = ("Content-Length", str(len(step.data)))
            writer.write(_head(step, length) + step.data)
            await writer.drain()
            return True
        elif step.name == "wire":
            writer.write(step.data)
        elif step.name == "split":
            size = step.size
        elif step.gate:
            await step.gate.passed()
        else:
            return await _end(step.name, writer)
        await writer.drain()
    if sent is None or not sent.chunked:
        return False
    writer.write(b"0\r\n\r\n")
    await writer.drain()
    return True


def _head(step: Command, framing: tuple[str, str] | None = None) -> bytes:
    framing = framing or (("Transfer-Encoding", "chunked") if step.chunked else ("Connection", "close"))
    fields = "".join(f"{name}: {value}\r\n" for name, value in (*step.fields, framing))
    return f"HTTP/1.1 {step.status} Scripted\r\n{fields}\r\n".encode()


async def _send_body(data: bytes, size: int, chunked: bool, writer: asyncio.StreamWriter) -> None:
    for start in range(0, len(data), size or len(data) or 1):
        piece = data[start : start + size] if size else data
        writer.write(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
        await writer.drain()
        if size:
            await asyncio.sleep(0)


async def _end(how: str, writer: asyncio.StreamWriter) -> bool:
    if how == "hang":
        await asyncio.Event().wait()
    if how == "reset":
        await _arrival(writer)
        linger = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()
    return False


async def _arrival(writer: asyncio.StreamWriter) -> None:
    """Wait until the client has received everything: a reset may overtake data."""
    if sys.platform == "linux":
        import fcntl
        import termios

        sock = writer.get_extra_info("socket").fileno()
        await eventually(lambda: fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)) == bytes(4))


def refused_url() -> str:
    """Return an address at which no server listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


async def eventually(condition: Callable[[], bool], seconds: float = SECONDS) -> None:
    """Return once the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"
        await asyncio.sleep(0.002)
