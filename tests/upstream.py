"""A scripted LM Studio on a loopback port, for every test that needs a model server.

    with Upstream() as upstream:
        upstream.enqueue(text("Hel", "lo"), finish("stop"), usage(5, 2), DONE)
        ...                                   # ask it, at upstream.url
        assert upstream.chats[0]["model"] == "llama-3.2-3b-instruct"

It runs in a thread with a loop of its own, so async and sync tests use it alike: what waits has a blocking form
(`upstream.wait_closed()`) for the latter and a coroutine (`await upstream.closed()`) for the former.

Each chat request takes the next script from the queue, or `upstream.default` when there is none. A script is a list of
steps. Bytes are sent as a part of the body, and `text`, `reasoning`, `usage`, `finish`, `error` and `DONE` are just
that: the bytes of events, so they can be joined, cut and changed. A function gets the `Request` and returns such bytes.
The head is sent before the first of them (`headers` changes it), and the end of the script ends the answer properly;
`close`, `reset` and `hang` do not. Everything that a test may see of the server's state is behind one lock.
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
SECONDS = 10.0  # how long a test waits for what must happen, before it fails

DONE = b"data: [DONE]\n\n"
UNAUTHENTICATED = (
    "An LM Studio API token is required to make requests to this server, but none was provided using the Authorization "
    "header using the 'Bearer' scheme (i.e., 'Authorization: Bearer $LM_API_TOKEN'). "
    "Learn more at: https://lmstudio.ai/docs/developer/core/authentication."
)


def event(data: Any, name: str = "") -> bytes:
    """One server-sent event; anything but text is sent as JSON."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return (f"event: {name}\n" if name else "").encode() + f"data: {text}\n\n".encode()


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, model: str = MODEL, **more: Any) -> bytes:
    """One chunk as LM Studio writes it. Without a delta `choices` is empty."""
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
    """An error in the stream, as LM Studio has written it since 0.3.18."""
    return event({"error": {"message": message, **more}})


def answer(*deltas: str, model: str = MODEL) -> bytes:
    """A whole answer, as LM Studio streams it."""
    counts = usage(12, len(deltas), model)
    return text(*deltas, model=model) + finish("stop", model) + counts + DONE


def _hello(request: "Request") -> bytes:
    return answer("Hello", " from", " upstream", ".", model=request.json["model"])


# ---- steps other than bytes


@dataclass(frozen=True)
class _Head:
    status: int
    fields: tuple[tuple[str, str], ...]
    framing: str


@dataclass(frozen=True)
class _Whole:
    status: int
    body: bytes
    fields: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Wire:
    data: bytes


@dataclass(frozen=True)
class _Split:
    size: int


@dataclass(frozen=True)
class _Pause:
    gate: "Gate"


@dataclass(frozen=True)
class _End:
    how: str  # hang | close | reset


def headers(
    status: int = 200, content_type: str | None = "text/event-stream", framing: str = "chunked", **more: str
) -> _Head:
    """The head, when it is not the usual one. `framing` is chunked, or close (the end of the body is the end of the
    connection). Further fields: `headers(content_encoding="gzip")`.
    """
    fields = [("Content-Type", content_type)] if content_type is not None else []
    fields += [(name.replace("_", "-"), value) for name, value in more.items()]
    return _Head(status, tuple(fields), framing)


def status(code: int, body: Any = b"", content_type: str = "application/json", **more: str) -> _Whole:
    """A whole answer with its length, in place of a stream. A `body` that is neither text nor bytes is sent as JSON."""
    if not isinstance(body, str | bytes):
        body = json.dumps(body)
    data = body.encode() if isinstance(body, str) else body
    fields = [("Content-Type", content_type), *((name.replace("_", "-"), value) for name, value in more.items())]
    return _Whole(code, data, tuple(fields))


def raw(data: bytes) -> bytes:
    """Bytes of the body, as they are."""
    return data


def wire(data: bytes) -> _Wire:
    """Bytes for the socket, outside of any head or framing: a broken status line, a cut chunk."""
    return _Wire(data)


def split(size: int = 1) -> _Split:
    """From here on the body goes out `size` bytes at a time, each in a chunk and a write of its own."""
    return _Split(size)


def pause(gate: "Gate") -> _Pause:
    return _Pause(gate)


def hang() -> _End:
    """Nothing more, and the connection stays open, until the client or the test ends it."""
    return _End("hang")


def close() -> _End:
    """FIN, whatever the framing had promised."""
    return _End("close")


def reset() -> _End:
    """RST."""
    return _End("reset")


class Gate:
    """A place in a script where the server stands still until the test opens it."""

    def __init__(self) -> None:
        self._reached = threading.Event()
        self._lock = threading.Lock()
        self._is_open = False
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    def open(self) -> None:
        with self._lock:
            self._is_open = True
            for loop, opened in self._waiting:
                with contextlib.suppress(RuntimeError):  # the server is gone
                    loop.call_soon_threadsafe(opened.set)

    def wait(self, seconds: float = SECONDS) -> None:
        """Blocks until the server has come to the gate."""
        assert self._reached.wait(seconds), "the server never came to the gate"

    async def reached(self, seconds: float = SECONDS) -> None:
        await asyncio.to_thread(self.wait, seconds)

    async def _pass(self) -> None:
        opened = asyncio.Event()
        with self._lock:
            if not self._is_open:
                self._waiting.append((asyncio.get_running_loop(), opened))
            else:
                opened.set()
        self._reached.set()
        await opened.wait()


Step = bytes | _Head | _Whole | _Wire | _Split | _Pause | _End | Callable[["Request"], bytes]


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]  # names in small letters
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class LocalModel:
    """A model on the scripted LM Studio's disk. `instances` are the loaded ones: their id and context length."""

    key: str = MODEL
    display_name: str = "Llama 3.2 3B Instruct"
    type: str = "llm"  # llm | vlm | embeddings, as in /api/v0
    arch: str = "llama"
    quantization: str = "Q4_K_M"
    size_bytes: int = 2_019_377_696
    max_context_length: int = 131_072
    tools: bool = True
    instances: dict[str, int] = field(default_factory=dict)

    def native_v1(self) -> dict[str, Any]:
        embedding = self.type == "embeddings"
        shown: dict[str, Any] = {
            "type": "embedding" if embedding else "llm",
            "publisher": "lmstudio-community",
            "key": self.key,
            "display_name": self.display_name,
            "architecture": self.arch,
            "quantization": {"name": self.quantization, "bits_per_weight": 4},
            "size_bytes": self.size_bytes,
            "params_string": "3B",
            "loaded_instances": [
                {"id": identity, "config": {"context_length": length, "eval_batch_size": 512, "flash_attention": True}}
                for identity, length in self.instances.items()
            ],
            "max_context_length": self.max_context_length,
            "format": "gguf",
        }
        if not embedding:
            shown["capabilities"] = {"vision": self.type == "vlm", "trained_for_tool_use": self.tools}
        return shown

    def native_v0(self) -> dict[str, Any]:
        shown: dict[str, Any] = {
            "id": self.key,
            "object": "model",
            "type": self.type,
            "publisher": "lmstudio-community",
            "arch": self.arch,
            "compatibility_type": "gguf",
            "quantization": self.quantization,
            "state": "loaded" if self.instances else "not-loaded",
            "max_context_length": self.max_context_length,
        }
        if self.tools:
            shown["capabilities"] = ["tool_use"]
        if self.instances:
            shown["loaded_context_length"] = next(iter(self.instances.values()))
        return shown


def usual_models() -> list[LocalModel]:
    return [
        LocalModel(instances={MODEL: 4096}),
        LocalModel("qwen2.5-vl-7b-instruct", "Qwen2.5 VL 7B Instruct", "vlm", "qwen2_5_vl", "Q4_K_M", 6_000_000_000),
        LocalModel(
            "text-embedding-nomic-embed-text-v1.5", "Nomic Embed", "embeddings", "nomic-bert", "Q8_0", 146_146_432, 2048
        ),
    ]


class Upstream:
    """`token`: the one API token that is accepted; none is required when it is empty.
    `without`: beginnings of paths that this LM Studio does not know, such as "/api/v1" (an old version).
    """

    def __init__(self, *, token: str = "", without: tuple[str, ...] = (), port: int = 0) -> None:
        self.token = token
        self.without = without
        self.models = usual_models()
        self.default: list[Step] = [_hello]
        self.requests: list[Request] = []
        self.abandoned: list[Request] = []  # whose client left before the answer had ended
        self.connections = 0  # ever accepted
        self.open_connections = 0
        self.errors: list[BaseException] = []  # mistakes in a script; leaving the `with` raises them
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

    # ---- what a test says and asks

    @property
    def native_id(self) -> int:
        """The system's number for the server's thread, by which its priority is changed."""
        assert self._thread.native_id is not None
        return self._thread.native_id

    def enqueue(self, *steps: Step, path: str = CHAT) -> None:
        """The script for the next request to `path` that has none yet."""
        with self._changed:
            self._scripts[path].append(steps)

    def forget(self) -> None:
        """No script is left for the next request, whatever became of those that were to ask for one."""
        with self._changed:
            self._scripts.clear()

    @property
    def chats(self) -> list[Any]:
        """The bodies of the chat requests, in order."""
        return [request.json for request in self.requests if request.path == CHAT]

    def count(self, path: str) -> int:
        return sum(request.path == path for request in list(self.requests))

    def wait_requests(self, number: int = 1, seconds: float = SECONDS, path: str = CHAT) -> None:
        self._wait(lambda: self.count(path) >= number, seconds, f"{number} requests to {path}")

    async def received(self, number: int = 1, seconds: float = SECONDS, path: str = CHAT) -> None:
        await asyncio.to_thread(self.wait_requests, number, seconds, path)

    def wait_closed(self, seconds: float = SECONDS) -> None:
        """Until no client is connected any more."""
        self._wait(lambda: self.open_connections == 0, seconds, "every connection to be closed")

    async def closed(self, seconds: float = SECONDS) -> None:
        await asyncio.to_thread(self.wait_closed, seconds)

    def _wait(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, seconds), f"waited {seconds} s in vain for {what}"

    # ---- the server

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._connected, sock=self._listener))
        self._loop.call_soon(self._started.set)
        self._loop.run_forever()
        server.close()
        while tasks := asyncio.all_tasks(self._loop):
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.wait(tasks))
        self._loop.run_until_complete(server.wait_closed())
        self._loop.run_until_complete(asyncio.sleep(0))  # for the connections to be gone
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
            pass  # the client has gone
        except asyncio.CancelledError:  # the test is over
            writer.transport.abort()
        except Exception as problem:
            self.errors.append(problem)
        finally:
            writer.close()
            with self._changed:
                self.open_connections -= 1
                self._changed.notify_all()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer. False when the connection is over."""
        request = await _read_request(reader)
        with self._changed:
            self.requests.append(request)
            scripts = self._scripts[request.path]
            steps = scripts.popleft() if scripts else None
            self._changed.notify_all()
        if steps is None:
            steps = self._usual(request)
        playing = asyncio.ensure_future(_play(steps, request, writer))
        leaving = asyncio.ensure_future(reader.read(1))
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
        if refused := self._refused(request):
            return (refused,)
        return tuple(self.default) if request.path == CHAT else (self._answer(request),)

    def _refused(self, request: Request) -> _Whole | None:
        """LM Studio's own words to a request that it does not know or does not let in."""
        if any(request.path.startswith(path) for path in self.without):
            return _unexpected(request)
        given = request.headers.get("authorization", "")
        if not self.token or given == f"Bearer {self.token}":
            return None
        message = f"Malformed LM Studio API token provided: {given.removeprefix('Bearer ')[:10]}**************"
        body = {"type": "invalid_request", "code": "invalid_api_key", "message": message if given else UNAUTHENTICATED}
        return status(401, {"error": body})

    def _answer(self, request: Request) -> _Whole:
        match request.method, request.path:
            case "GET", "/api/v1/models":
                return status(200, {"models": [model.native_v1() for model in self.models]})
            case "GET", "/api/v0/models":
                return status(200, {"object": "list", "data": [model.native_v0() for model in self.models]})
            case "GET", "/v1/models":
                shown = [
                    {"id": model.key, "object": "model", "owned_by": "organization_owner"} for model in self.models
                ]
                return status(200, {"object": "list", "data": shown})
            case "POST", "/api/v1/models/load":
                return self._load(**request.json)
            case "POST", "/api/v1/models/unload":
                return self._unload(**request.json)
        return _unexpected(request)

    def _load(self, model: str, context_length: int = 4096, **_: Any) -> _Whole:
        found = next((known for known in self.models if known.key == model), None)
        if found is None:
            message = f'Invalid model identifier "{model}".'
            body = {"message": message, "type": "invalid_request", "param": "model", "code": "model_not_found"}
            return status(404, {"error": body})
        instance = model if not found.instances else f"{model}:{len(found.instances) + 1}"
        found.instances[instance] = context_length
        return status(200, {"type": "llm", "instance_id": instance, "load_time_seconds": 1.5, "status": "loaded"})

    def _unload(self, instance_id: str) -> _Whole:
        for model in self.models:
            if model.instances.pop(instance_id, None) is not None:
                return status(200, {"instance_id": instance_id})
        message = f'No model instance found with identifier "{instance_id}".'
        return status(404, {"error": {"message": message, "type": "invalid_request", "code": "model_not_found"}})


def _unexpected(request: Request) -> _Whole:
    return status(200, {"error": f"Unexpected endpoint or method. ({request.method} {request.path})"})


async def _read_request(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.rstrip().split("\r\n")
    method, path, _version = first.split(" ")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Request(method, path, fields, await reader.readexactly(int(fields.get("content-length", 0))))


async def _play(steps: tuple[Step, ...], request: Request, writer: asyncio.StreamWriter) -> bool:
    """Sends the script's answer. True when the connection can be used again."""
    head: _Head | None = None
    size = 0
    for step in steps:
        match step:
            case _Whole():
                writer.write(_head(step.status, (*step.fields, ("Content-Length", str(len(step.body))))) + step.body)
                await writer.drain()
                return True
            case _Wire():
                writer.write(step.data)
            case _Split():
                size = step.size
            case _Pause():
                await step.gate._pass()
            case _End():
                return await _end(step.how, writer)
            case _Head():
                head = step
                _send_head(head, writer)
            case _:
                if head is None:
                    head = headers()
                    _send_head(head, writer)
                await _send_body(step if isinstance(step, bytes) else step(request), size, head, writer)
        await writer.drain()
    if head is None or head.framing != "chunked":
        return False
    writer.write(b"0\r\n\r\n")
    await writer.drain()
    return True


def _head(code: int, fields: tuple[tuple[str, str], ...]) -> bytes:
    lines = (f"HTTP/1.1 {code} Scripted", *(f"{name}: {value}" for name, value in fields))
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n"


def _send_head(head: _Head, writer: asyncio.StreamWriter) -> None:
    framing = ("Transfer-Encoding", "chunked") if head.framing == "chunked" else ("Connection", "close")
    writer.write(_head(head.status, (*head.fields, framing)))


async def _send_body(data: bytes, size: int, head: _Head, writer: asyncio.StreamWriter) -> None:
    for start in range(0, len(data), size or len(data) or 1):
        piece = data[start : start + size] if size else data
        writer.write(b"%x\r\n%s\r\n" % (len(piece), piece) if head.framing == "chunked" else piece)
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
    """Of all that was written: what the other end has not got yet, a reset may overtake."""
    if sys.platform == "linux":
        import fcntl
        import termios

        sock = writer.get_extra_info("socket").fileno()
        await eventually(lambda: fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)) == bytes(4))


def refused_url() -> str:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


async def eventually(condition: Callable[[], bool], seconds: float = SECONDS) -> None:
    """For async tests: returns as soon as the condition holds, fails when it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.002)
