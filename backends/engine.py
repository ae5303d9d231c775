"""The embedded engine: llama.cpp's own HTTP server, from the PyPI package xllamacpp, in a child process.

There is at most one child. It is started when a model is requested, shared by all requests for that model, replaced when
it is unused and another model is requested, and stopped after an idle time. It listens on a free loopback port and
requires an API key that is generated for each start.

The child runs llama_server.py. It exits when its standard input closes, which the operating system ensures however
Fireside ends.
"""

import asyncio
import contextlib
import json
import logging
import os
import re
import secrets
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from urllib.parse import urlsplit

from ..config import Config, Provider
from ..errors import Invalid, ProviderFailed
from . import gguf, llama_server
from .answer import Part
from .gguf import ModelFile, Skipped
from .openai import Model, OpenAI, Take, for_llama_cpp, stream_answer

STOP_SECONDS = 3.0  # between asking a child to exit and killing it
STDERR_BYTES = 16 * 1024  # that are kept of a child's standard error
REASON_CHARACTERS = 200

log = logging.getLogger(__name__)


class Embedded(OpenAI):
    """The embedded engine as a model server."""

    reports_loading = True

    def __init__(self, provider: Provider, engine: "Engine") -> None:
        super().__init__(provider)
        self._engine = engine

    @property
    def continues_answers(self) -> bool:
        return True

    async def models(self) -> list[Model]:
        return [self._model(file) for file in await self._engine.models()]

    def _model(self, file: ModelFile) -> Model:
        state = self._engine.state(file.id)
        return Model(
            id=file.id,
            label=file.label,
            state=state,
            context_length=self._engine.context_length if state == "loaded" else None,
            max_context_length=file.header.context_length,
            vision=False,
            quantization=file.header.quantization,
            size_bytes=file.size_bytes,
            reasoning_efforts=file.header.reasoning_efforts,
        )

    @property
    def chat_url(self) -> None:
        return None

    async def load(self, model: str, options: dict[str, Any]) -> None:
        if unknown := options.keys() - {"context_length"}:
            raise Invalid(f"{min(unknown)}: the embedded engine does not take this option.")
        await self._engine.load(model, options.get("context_length"))

    async def unload(self, model: str) -> None:
        if self._engine.state(model) != "not-loaded":
            await self._engine.unload()

    async def embed(self, body: dict[str, Any]) -> bytes:
        raise Invalid(f"{self.provider.name} makes no embeddings.")

    async def chat(
        self, body: dict[str, Any], for_program: bool = False, take: Take | None = None
    ) -> AsyncGenerator[list[Part], None]:
        async with self._engine.use(body["model"]) as endpoint:
            server = replace(self.provider, url=endpoint.url, api_key=endpoint.api_key)
            body = body | {"model": endpoint.model_id}
            body = body if for_program else for_llama_cpp(body)
            async with contextlib.aclosing(stream_answer(server, body, for_program, take)) as answer:
                async for parts in answer:
                    yield parts


@dataclass(frozen=True)
class Endpoint:
    url: str  # http://127.0.0.1:port
    api_key: str = field(repr=False)
    model_id: str


class Engine:
    """The model files on this computer, and the child process that runs one of them.

    Raises ProviderFailed with MODEL_NOT_FOUND, MODEL_LOAD_FAILED, PROVIDER_BUSY or PROVIDER_UNREACHABLE.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._library = gguf.Library(config.models_dir)
        self._scan: asyncio.Future[tuple[list[ModelFile], list[Skipped]]] | None = None
        self._child: _Child | None = None
        self._lock = asyncio.Lock()  # held while a child is started or replaced; fair
        self._requested: list[str] = []  # ids of models that requests wait for
        self._closed = False

    async def models(self) -> list[ModelFile]:
        return (await self._scan_files())[0]

    async def skipped(self) -> list[Skipped]:
        return (await self._scan_files())[1]

    def state(self, model_id: str) -> Literal["loaded", "loading", "not-loaded"]:
        child = self._child
        if child is None or not child.alive or model_id not in child.model.names:
            return "not-loaded"
        return "loaded" if child.endpoint else "loading"

    @property
    def context_length(self) -> int | None:
        """The context length of the loaded model, in tokens."""
        child = self._child
        return child.context_length if child and child.alive and child.endpoint else None

    @contextlib.asynccontextmanager
    async def use(self, model_id: str) -> AsyncIterator[Endpoint]:
        """Load the model and keep it loaded until the block ends. Wait while another model is in use."""
        child, endpoint = await self._acquire(model_id, None)
        try:
            yield endpoint
        finally:
            self._release(child)

    async def load(self, model_id: str, context_length: int | None = None) -> None:
        """Load the model with this context length, or with as much of it as the model supports."""
        child, _ = await self._acquire(model_id, context_length)
        self._release(child)

    async def unload(self) -> None:
        """Stop the child. Raises PROVIDER_BUSY while it is in use or requested."""
        child = self._child
        if child is None or not child.alive:
            return
        if child.users or child.model.id in self._requested:
            raise ProviderFailed("PROVIDER_BUSY", "The model is in use. Stop its answers, then unload it.")
        await child.stop()

    async def aclose(self) -> None:
        """Stop the child, even if it is in use, and start no other."""
        self._closed = True
        if self._child:
            await self._child.stop()

    async def _scan_files(self) -> tuple[list[ModelFile], list[Skipped]]:
        # One scan at a time: scans of a network drive that hangs must not occupy every thread of the pool.
        if self._scan is None or self._scan.done():
            self._scan = asyncio.get_running_loop().run_in_executor(None, self._library.scan)
        return await asyncio.shield(self._scan)

    async def _find(self, model_id: str) -> ModelFile:
        if self._child and self._child.alive and model_id in self._child.model.names:
            return self._child.model
        models, skipped = await self._scan_files()
        exact = [model for model in models if model.id == model_id]
        for model in exact or [model for model in models if model_id in model.names]:
            return model
        reasons = (skip.reason for skip in skipped if skip.has_name(model_id))
        raise ProviderFailed("MODEL_NOT_FOUND", next(reasons, "The embedded engine does not have this model."))

    async def _acquire(self, model_id: str, context_length: int | None) -> tuple["_Child", Endpoint]:
        """Return the child that runs the model, with one more user. Each call needs a `_release`."""
        model = await self._find(model_id)
        self._requested.append(model.id)
        try:
            async with self._lock:
                child = await self._child_for(model, context_length)
                endpoint = await child.wait_loaded()
                child.acquire()
                return child, endpoint
        finally:
            self._requested.remove(model.id)
            if self._child:
                self._stop_unused(self._child)
                if self._child.stopping:
                    await self._child.stop()

    def _release(self, child: "_Child") -> None:
        child.release()
        self._stop_unused(child)

    async def _child_for(self, model: ModelFile, context_length: int | None) -> "_Child":
        length = min(context_length or self._config.engine_context, model.header.context_length or sys.maxsize)
        child = self._child
        fits = child and child.model == model and (context_length is None or child.context_length == length)
        if child and fits and await child.responds():
            return child
        if child:
            if child.alive:
                await child.unused.wait()
            await child.stop()
        if self._closed:
            raise ProviderFailed("PROVIDER_UNREACHABLE", "The embedded engine is shutting down.")
        self._child = _Child(model, length, self._config.engine_threads)
        return self._child

    def _stop_unused(self, child: "_Child") -> None:
        """Stop a loaded child after the idle time, and at once one that loads a model that is no longer requested."""
        if child.users or not child.alive:
            return
        if child.endpoint:
            child.stop_after(self._config.engine_idle_seconds)
        elif child.model.id not in self._requested:
            child.request_stop()


class _Child:
    """One child process, from its start until it and its server have exited."""

    def __init__(self, model: ModelFile, context_length: int, threads: int) -> None:
        self.model = model
        self.context_length = context_length
        self.users = 0
        self.unused = asyncio.Event()
        self.unused.set()
        self.endpoint: Endpoint | None = None  # once the model is loaded
        self.stopping = False
        self._threads = threads
        self._loaded_or_exited = asyncio.Event()
        self._stderr = b""
        self._process: asyncio.subprocess.Process | None = None
        self._idle_timer: asyncio.TimerHandle | None = None
        self._task = asyncio.create_task(self._run())

    @property
    def alive(self) -> bool:
        return not self.stopping and not self._task.done()

    def acquire(self) -> None:
        self.users += 1
        self.unused.clear()
        self._cancel_idle_timer()

    def release(self) -> None:
        self.users -= 1
        if self.users == 0:
            self.unused.set()

    async def responds(self) -> bool:
        """Return whether its server accepts requests: the keeper reports the death of the server a moment late."""
        if self.endpoint:
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(self.endpoint.url).port)
                    with contextlib.closing(writer):
                        writer.write(b"GET /health HTTP/1.0\r\n\r\n")
                        if not await reader.read(1):
                            return False
            except ConnectionError:
                return False
            except OSError:
                pass  # the machine is busy; the request itself will show it
        return self.alive

    async def wait_loaded(self) -> Endpoint:
        await self._loaded_or_exited.wait()
        if self.endpoint and self.alive:
            return self.endpoint
        if self.stopping:
            raise ProviderFailed("PROVIDER_UNREACHABLE", "The embedded engine was stopped while it loaded the model.")
        stderr = self._stderr.decode("utf-8", "replace").replace(str(self.model.path), self.model.path.name)
        raise ProviderFailed("MODEL_LOAD_FAILED", f"{self.model.label} could not be loaded: {_reason(stderr)}.")

    def stop_after(self, seconds: float) -> None:
        if self._idle_timer is None:
            self._idle_timer = asyncio.get_running_loop().call_later(seconds, self.request_stop)

    def request_stop(self) -> None:
        """Ask the child to exit, without waiting."""
        if not self.stopping:
            self.stopping = True
            self._cancel_idle_timer()
            if self._process:
                self._close_stdin(self._process)

    async def stop(self) -> None:
        self.request_stop()
        await asyncio.wait({self._task}, timeout=2 * STOP_SECONDS)

    def _close_stdin(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin
        process.stdin.close()
        asyncio.get_running_loop().call_later(STOP_SECONDS, _kill, process)

    def _cancel_idle_timer(self) -> None:
        if self._idle_timer:
            self._idle_timer.cancel()
            self._idle_timer = None

    async def _run(self) -> None:
        try:
            process = self._process = await _start_process()
            try:
                if self.stopping:
                    self._close_stdin(process)
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._load(process))
                    group.create_task(self._read_stderr(process))
                await process.wait()
            finally:
                if process.returncode is None:  # the event loop is closing
                    self._close_stdin(process)
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(process.wait(), 2 * STOP_SECONDS)
        except OSError as error:
            self._stderr = f"its process cannot be started: {error.strerror}".encode()
        finally:
            self._cancel_idle_timer()
            self._loaded_or_exited.set()
        if self.endpoint and not self.stopping:
            log.warning("llama.cpp exited: %s", _reason(self._stderr.decode("utf-8", "replace")))

    async def _load(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin and process.stdout
        api_key = secrets.token_urlsafe(32)
        request = {
            "path": str(self.model.path),
            "model_id": self.model.id,
            "context_length": self.context_length,
            "threads": self._threads,
            "api_key": api_key,
        }
        if not self.stopping:
            process.stdin.write(json.dumps(request).encode() + b"\n")
        try:
            url = json.loads(await process.stdout.readline())["url"]
        except ValueError:  # it has exited
            process.stdin.close()
            return
        self.endpoint = Endpoint(url, api_key, self.model.id)
        self._loaded_or_exited.set()

    async def _read_stderr(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr
        while data := await process.stderr.read(4096):
            self._stderr = (self._stderr + data)[-STDERR_BYTES:]


async def _start_process() -> asyncio.subprocess.Process:
    """Start the child where Ctrl-C in the terminal does not reach it, without Fireside's secrets in its environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FIRESIDE_")}
    environment["GGML_NO_BACKTRACE"] = "1"  # otherwise llama.cpp starts a debugger when it aborts
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        *llama_server.command("keep"),
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        env=environment,
        start_new_session=True,  # ignored on Windows, where the next line does the same
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
    )


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()


def _reason(stderr: str) -> str:
    """Return the most informative line of a failed child's stderr. llama.cpp's errors look like `0.00.004.986 E what: why`."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\d.]+ E ", line)]
    reasons = [line for line in errors if "error loading model:" in line and "llama_model_loader: failed" not in line]
    line = next(iter(reasons + errors + lines[-1:]), "it exited without an error message")
    return re.sub(r"^[\d.]+ E +(\w+ +)?\w+: *(error loading model[\w ]*: )*", "", line)[:REASON_CHARACTERS].rstrip(".")
