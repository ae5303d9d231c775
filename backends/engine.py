"""The embedded engine: llama.cpp's own HTTP server, from the PyPI package xllamacpp, in a child process.

There is one child at a time. It is started when a model is wanted, shared by all who want the same one, replaced when
nobody uses it and somebody wants another, and ended when nobody has used it for a while. It listens on a free loopback
port and answers only to a key that is made anew for each start.

llama_server.py is the program that runs in the child. It ends when its standard input closes, which the operating system sees
to however Fireside ends, so nothing of it outlives us.
"""

import asyncio
import contextlib
import importlib.util
import json
import logging
import os
import re
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from ..config import Config
from ..errors import ProviderFailed
from . import gguf, llama_server
from .gguf import ModelFile, Skipped

END_SECONDS = 3.0  # until a child that was asked to end is killed
REMEMBERED = 16 * 1024  # bytes of what a child wrote to its standard error
SAID = 200  # characters of it in a message

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Endpoint:
    url: str  # http://127.0.0.1:port, before /v1
    api_key: str = field(repr=False)
    model_id: str
    context_length: int


class Engine:
    """The models of this computer, and the child that runs one of them.

    Whatever goes wrong is ProviderFailed: MODEL_NOT_FOUND, MODEL_LOAD_FAILED, PROVIDER_BUSY, PROVIDER_UNREACHABLE.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._library = gguf.Library(config.models_dir)
        self._scan: asyncio.Future[tuple[list[ModelFile], list[Skipped]]] | None = None
        self._child: _Child | None = None
        self._turn = asyncio.Lock()  # who holds it decides about the child; it is given in the order of asking
        self._waiting: list[str] = []  # the ids of the models that are wanted and not yet had
        self._closed = False

    async def models(self) -> list[ModelFile]:
        return (await self._scanned())[0]

    async def skipped(self) -> list[Skipped]:
        return (await self._scanned())[1]

    def state(self, model_id: str) -> Literal["loaded", "loading", "not-loaded"]:
        child = self._child
        if child is None or not child.alive or model_id not in child.model.names:
            return "not-loaded"
        return "loaded" if child.endpoint else "loading"

    @property
    def context_length(self) -> int | None:
        """Tokens that the running child has room for."""
        child = self._child
        return child.context_length if child and child.alive and child.endpoint else None

    @contextlib.asynccontextmanager
    async def use(self, model_id: str) -> AsyncIterator[Endpoint]:
        """The model, loaded, and kept loaded until the block ends. Waits while others use another one."""
        child, endpoint = await self._acquire(model_id, None)
        try:
            yield endpoint
        finally:
            self._release(child)

    async def load(self, model_id: str, context_length: int | None = None) -> None:
        """Loads the model, with room for that many tokens or as many as it can have. It stays until it idles."""
        child, _ = await self._acquire(model_id, context_length)
        self._release(child)

    async def unload(self) -> None:
        """Ends the child if nobody uses it or waits for its model, else PROVIDER_BUSY."""
        child = self._child
        if child is None or not child.alive:
            return
        if child.users or child.model.id in self._waiting:
            raise ProviderFailed("PROVIDER_BUSY", "The model is in use. Stop its answers, then unload it.")
        await child.end()

    async def aclose(self) -> None:
        """Ends the child, whoever uses it. From then on there is none."""
        self._closed = True
        if self._child:
            await self._child.end()

    async def _scanned(self) -> tuple[list[ModelFile], list[Skipped]]:
        # One scan at a time: a network drive that hangs must not take every thread of the pool.
        if self._scan is None or self._scan.done():
            self._scan = asyncio.get_running_loop().run_in_executor(None, self._library.scan)
        return await asyncio.shield(self._scan)

    async def _find(self, model_id: str) -> ModelFile:
        if self._child and self._child.alive and model_id in self._child.model.names:
            return self._child.model
        models, skipped = await self._scanned()
        exact = (model for model in models if model.id == model_id)
        former = (model for model in models if model_id in model.names)
        model = next(exact, None) or next(former, None)
        if model is None:
            reasons = (skip.reason for skip in skipped if skip.is_called(model_id))
            raise ProviderFailed("MODEL_NOT_FOUND", next(reasons, "The embedded engine has no such model."))
        return model

    async def _acquire(self, model_id: str, context_length: int | None) -> tuple["_Child", Endpoint]:
        """The child that runs the model, with one more user, to be given back with `_release`."""
        model = await self._find(model_id)
        self._waiting.append(model.id)
        try:
            async with self._turn:
                child = await self._child_for(model, context_length)
                endpoint = await child.loaded()
                child.hold()
                return child, endpoint
        finally:
            self._waiting.remove(model.id)
            if self._child:
                self._settle(self._child)
                if self._child.ending:
                    await self._child.end()

    def _release(self, child: "_Child") -> None:
        child.release()
        self._settle(child)

    async def _child_for(self, model: ModelFile, context_length: int | None) -> "_Child":
        room = min(context_length or self._config.engine_context, model.max_context_length or sys.maxsize)
        child = self._child
        fits = child and child.model == model and (context_length is None or child.context_length == room)
        if child and fits and await child.answers():
            return child
        if child and child.alive:
            await child.unused()
        if child:
            await child.end()
        if self._closed:
            raise ProviderFailed("PROVIDER_UNREACHABLE", "The embedded engine is shutting down.")
        if importlib.util.find_spec("xllamacpp") is None:
            raise ProviderFailed("PROVIDER_UNREACHABLE", "The embedded engine is not installed (PyPI: xllamacpp).")
        self._child = _Child(model, room, self._config.engine_threads)
        return self._child

    def _settle(self, child: "_Child") -> None:
        """What becomes of a child that nobody uses: it ends after a while, or at once if it only loads for nobody."""
        if child.users or not child.alive:
            return
        if child.endpoint:
            child.end_after(self._config.engine_idle_seconds)
        elif child.model.id not in self._waiting:
            child.stop()


class _Child:
    """One child, from its start until nothing of it is left."""

    def __init__(self, model: ModelFile, context_length: int, threads: int) -> None:
        self.model = model
        self.context_length = context_length
        self.users = 0
        self.endpoint: Endpoint | None = None  # once the model is loaded
        self.ending = False  # because we want it
        self._api_key = secrets.token_urlsafe(32)
        self._threads = threads
        self._settled = asyncio.Event()  # loaded, or over
        self._unused = asyncio.Event()
        self._unused.set()
        self._said = b""
        self._process: asyncio.subprocess.Process | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self._life = asyncio.create_task(self._live())

    @property
    def alive(self) -> bool:
        return not self.ending and not self._life.done()

    def hold(self) -> None:
        self.users += 1
        self._unused.clear()
        self._forget_timers()

    def release(self) -> None:
        self.users -= 1
        if self.users == 0:
            self._unused.set()

    async def answers(self) -> bool:
        """Whether it lives, and its server with it: that a server was killed is told only a moment later."""
        if self.endpoint:
            try:
                async with asyncio.timeout(END_SECONDS):
                    reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(self.endpoint.url).port)
                    with contextlib.closing(writer):
                        writer.write(b"GET /health HTTP/1.0\r\n\r\n")
                        if not await reader.read(1):
                            return False
            except ConnectionError:
                return False
            except OSError:
                pass  # it is busy, or we are: the question will tell
        return self.alive

    async def unused(self) -> None:
        await self._unused.wait()

    async def loaded(self) -> Endpoint:
        await self._settled.wait()
        if self.endpoint and self.alive:
            return self.endpoint
        if self.ending:
            raise ProviderFailed("PROVIDER_UNREACHABLE", "The embedded engine was stopped while it loaded the model.")
        said = self._said.decode("utf-8", "replace").replace(str(self.model.path), self.model.path.name)
        raise ProviderFailed("MODEL_LOAD_FAILED", f"{self.model.label} could not be loaded: {_complaint(said)}.")

    def end_after(self, seconds: float) -> None:
        if not self._timers:
            self._timers.append(asyncio.get_running_loop().call_later(seconds, self.stop))

    def stop(self) -> None:
        """Begins the end, and does not wait for it."""
        if not self.ending:
            self.ending = True
            self._forget_timers()
            if self._process:
                self._close(self._process)

    async def end(self) -> None:
        self.stop()
        await asyncio.wait({self._life}, timeout=2 * END_SECONDS)

    def _close(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin
        process.stdin.close()
        self._timers.append(asyncio.get_running_loop().call_later(END_SECONDS, _kill, process))

    def _forget_timers(self) -> None:
        while self._timers:
            self._timers.pop().cancel()

    async def _live(self) -> None:
        try:
            await self._run()
        except OSError as error:
            self._said = f"its process cannot be started: {error.strerror}".encode()
        finally:
            self._forget_timers()
            self._settled.set()
        if self.endpoint and not self.ending:
            log.warning("llama.cpp ended by itself: %s", _complaint(self._said.decode("utf-8", "replace")))

    async def _run(self) -> None:
        process = self._process = await _start()
        try:
            if self.ending:
                self._close(process)
            else:
                self._ask(process)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._listen(process))
                group.create_task(self._drain(process))
            await process.wait()
        finally:
            if process.returncode is None:  # the event loop is being closed under us
                self._close(process)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), 2 * END_SECONDS)

    def _ask(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin
        request = {
            "path": str(self.model.path),
            "model_id": self.model.id,
            "context_length": self.context_length,
            "threads": self._threads,
            "api_key": self._api_key,
        }
        process.stdin.write(json.dumps(request).encode() + b"\n")

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin and process.stdout
        try:
            url = json.loads(await process.stdout.readline())["url"]
        except ValueError:  # it has ended, or speaks nonsense
            process.stdin.close()
            return
        self.endpoint = Endpoint(url, self._api_key, self.model.id, self.context_length)
        self._settled.set()

    async def _drain(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr
        while said := await process.stderr.read(4096):
            self._said = (self._said + said)[-REMEMBERED:]


async def _start() -> asyncio.subprocess.Process:
    """The child, out of reach of the terminal's Ctrl-C, and without Fireside's own secrets in its environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FIRESIDE_")}
    environment["GGML_NO_BACKTRACE"] = "1"  # else llama.cpp runs a debugger when it aborts
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        *llama_server.command("keep"),
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        env=environment,
        start_new_session=True,  # on Windows it means nothing, and the next line does it
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
    )


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()


def _complaint(said: str) -> str:
    """The line that says most of what a failed child wrote. llama.cpp's errors look like `0.00.004.986 E what: why`."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\d.]+ E ", line)]
    reasons = [line for line in errors if "error loading model:" in line and "llama_model_loader: failed" not in line]
    line = next(iter(reasons + errors + lines[-1:]), "it ended without a word")
    return re.sub(r"^[\d.]+ E +(\w+ +)?\w+: *(error loading model[\w ]*: )*", "", line)[:SAID].rstrip(".")
