"""Child processes for work on untrusted text and files.

Markdown, syntax highlighting, formulas and imports can take time or memory without bound, and a C function such as a regular expression
match holds the GIL while it runs. So this work runs in a child process, which is killed when it exceeds its limits. The children
start on demand and end when they have been idle for a while. Callers limit how many run at once, with a fair queue (queue.py).

`worker.py` is the program in the child. Requests and replies are frames: four bytes of length, big-endian, then msgpack.
"""

import asyncio
import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

import msgspec

from . import limits

log = logging.getLogger("fireside.sandbox")

BUFFER_BYTES = 256 * 1024
MAX_ITEM_BYTES = 256 * 1024 * 1024
MEMORY_BYTES = 512 * 1024 * 1024
START_SECONDS = 30.0
IDLE_SECONDS = 60.0
SPARE_SECONDS = 0.1


class WorkFailed(Exception):
    """The function raised an exception, or the child ended. The message names the exception's type and quotes no content."""


class WorkTooLong(WorkFailed):
    """The function produced no item within the time limit."""


class WorkTooLarge(WorkFailed):
    """The function needed more memory than the child may have."""


class Sandbox:
    """Child processes, each with at most `memory` bytes and with the modules `preload` imported.

    With `spare`, a child is started in advance when a job takes longer than SPARE_SECONDS and no other child is idle, so that the next
    job need not wait for the start of Python. A job whose child was killed ends when the next one has started, so that it cannot take
    the idle child of others. After its imports, a `sealed` child can open no file, no socket and no process, as far as
    limits.py can enforce it; so `preload` must name all modules that its work uses.
    """

    def __init__(
        self, memory: int = MEMORY_BYTES, preload: tuple[str, ...] = (), spare: bool = False, sealed: bool = False
    ) -> None:
        self._spare = spare
        self._memory = memory
        self._sealed = sealed
        # -P: import nothing from the current folder
        self._command = (sys.executable, "-P", "-m", f"{__package__}.worker", str(memory), str(int(sealed)), *preload)
        self._idle: dict[_Worker, asyncio.TimerHandle] = {}  # the newest last; the timer ends the worker
        self._workers: set[_Worker] = set()
        self._preparing: asyncio.Task[None] | None = None

    async def iterate(
        self, function: Callable[..., Iterator[bytes]], *args: Any, seconds: float
    ) -> AsyncGenerator[bytes, None]:
        """Run a module-level generator function in a child and yield its items. Close the generator to stop the work.

        `args` must be values that msgpack can encode. `seconds` limits the time until the next item, and the child's processor time
        in case this process dies. Raises WorkTooLong, WorkTooLarge, WorkFailed. The child is then killed.
        """
        worker = await self._take()
        preparation = asyncio.get_running_loop().call_later(SPARE_SECONDS, self._prepare_if_none_is_idle)
        try:
            worker.is_ready = False
            await worker.send((function.__module__, function.__qualname__, args, seconds))
            del args  # they may be a large file
            while (item := await worker.receive(seconds)) is not None:
                yield item
            worker.is_ready = True
        finally:
            preparation.cancel()
            await self._give_back(worker)

    async def aclose(self) -> None:
        """Kill every child."""
        self._spare = False
        if self._preparing is not None:
            self._preparing.cancel()
            await asyncio.gather(self._preparing, return_exceptions=True)
        for timer in self._idle.values():
            timer.cancel()
        self._idle.clear()
        await asyncio.gather(*(worker.end() for worker in self._workers))
        self._workers.clear()

    async def _take(self) -> "_Worker":
        self._workers = {worker for worker in self._workers if not worker.has_ended}
        if not self._idle and self._preparing is not None:
            await asyncio.wait({self._preparing})
        while self._idle:
            worker, timer = self._idle.popitem()
            timer.cancel()
            if not worker.has_ended:
                return worker
        return await self._start()

    async def _start(self) -> "_Worker":
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FIRESIDE_")}
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                limit=BUFFER_BYTES,
            )
        except OSError as error:
            raise WorkFailed(f"a child process cannot be started: {error.strerror}") from error
        worker = _Worker(process, self._memory, self._sealed)
        self._workers.add(worker)
        try:
            await worker.receive(START_SECONDS)
        except BaseException:
            await worker.end()
            raise
        return worker

    def _prepare_if_none_is_idle(self) -> None:
        if self._spare and not self._idle:
            self._prepare()

    def _prepare(self) -> asyncio.Task[None]:
        """Return the task that starts a child in advance. One starts at a time."""
        if self._preparing is None:
            self._preparing = asyncio.create_task(self._start_spare())
        return self._preparing

    async def _start_spare(self) -> None:
        try:
            await self._give_back(await self._start())
        except WorkFailed as error:
            log.warning("a child process could not be started in advance: %s", error)
        finally:
            self._preparing = None

    async def _give_back(self, worker: "_Worker") -> None:
        if worker.is_ready:
            self._idle[worker] = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._retire, worker)
            return
        await worker.end()
        if self._spare:
            await asyncio.wait({self._prepare()})

    def _retire(self, worker: "_Worker") -> None:
        del self._idle[worker]
        worker.kill()


class _Worker:
    """One child process. `is_ready`: it waits for a request."""

    def __init__(self, process: asyncio.subprocess.Process, memory: int, sealed: bool) -> None:
        assert process.stdin and process.stdout
        self.is_ready = True
        self._process = process
        self._requests, self._replies = process.stdin, process.stdout
        self._reading = asyncio.Lock()  # `end` may be called while `receive` waits
        self._release = limits.attach(process.pid, memory, sealed)

    @property
    def has_ended(self) -> bool:
        return self._process.returncode is not None

    async def send(self, request: tuple[Any, ...]) -> None:
        frame = msgspec.msgpack.encode(request)
        self._requests.write(len(frame).to_bytes(4, "big"))
        with contextlib.suppress(ConnectionError):  # when the child has ended, `receive` raises WorkFailed
            for start in range(0, len(frame), BUFFER_BYTES):  # asyncio copies what the pipe does not take at once
                self._requests.write(frame[start : start + BUFFER_BYTES])
                await self._requests.drain()

    async def receive(self, seconds: float) -> bytes | None:
        """Return the next item, or None after the last. Raises WorkTooLong, WorkTooLarge, WorkFailed."""
        try:
            async with self._reading, asyncio.timeout(seconds):
                length = int.from_bytes(await self._replies.readexactly(4), "big")
                if length > MAX_ITEM_BYTES:
                    raise WorkTooLarge("an item is too large")
                kind, value = _decode_reply(await self._replies.readexactly(length))
        except TimeoutError:
            raise WorkTooLong(f"no result within {seconds:g} s") from None
        except asyncio.IncompleteReadError:
            raise WorkFailed("the child process ended") from None
        if kind == "failed":
            raise WorkTooLarge("out of memory") if value == b"MemoryError" else WorkFailed(value.decode())
        return value if kind == "item" else None

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._release()

    async def end(self) -> None:
        """Kill the process and wait for its end. Its output is read to the end, since asyncio does not close a pipe that it has paused."""
        self.kill()
        async with self._reading:
            while await self._replies.read(BUFFER_BYTES):
                pass
        await self._process.wait()


_decode_reply = msgspec.msgpack.Decoder(tuple[str, bytes]).decode
