"""Run the `fireside` command in processes of its own, quickly."""

import asyncio
import atexit
import contextlib
import functools
import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import connection
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT
from typing import IO, Any, Self

import httpx

from .live import BOOTSTRAP_TOKEN, NO_TLS, PASSWORD, PATIENCE, Person, good


def environment(**settings: str) -> dict[str, str]:
    """Return the environment of the tests with these settings of Fireside and no others."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FIRESIDE_")}
    return inherited | {f"FIRESIDE_{name.upper()}": value for name, value in settings.items()}


def run(*arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    """Run the command to its end."""
    process = start(*arguments, environ=environment(**settings))
    try:
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def start(
    *arguments: str,
    environ: Mapping[str, str],
    stdin: int = DEVNULL,
    stdout: int = PIPE,
    stderr: int = PIPE,
    fresh: bool = False,
) -> "subprocess.Popen[str]":
    """Start `fireside` with these arguments, this environment and umask 0.

    It is forked from the nursery. With `fresh`, and without fork(), it is `python -m fireside`."""
    if hasattr(os, "fork") and not fresh:
        return Forked(arguments, environ, stdin, stdout, stderr)
    return subprocess.Popen(
        [sys.executable, "-m", "fireside", *arguments],
        env=environ,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        encoding="utf-8",
        umask=0 if os.name == "posix" else -1,
    )


class Forked(subprocess.Popen[str]):
    """A process forked by the nursery. It is not our child, so wait() reads its exit code from a socket."""

    def __init__(
        self, arguments: tuple[str, ...], environ: Mapping[str, str], stdin: int, stdout: int, stderr: int
    ) -> None:
        self._channel, line = socket.socketpair()
        self.args, self.returncode = arguments, None
        with line, open(os.devnull) as nothing:
            self.stdin, source = _piped(nothing.fileno() if stdin == DEVNULL else stdin, "w")
            self.stdout, out = _piped(stdout, "r")
            self.stderr, err = _piped(out if stderr == STDOUT else stderr, "r")
            socket.send_fds(_nursery(), [b"+"], [source, out, err, line.fileno()])
            order = {"arguments": arguments, "environ": dict(environ), "folder": os.getcwd()}
            self._channel.settimeout(PATIENCE)
            self._channel.sendall(json.dumps(order).encode())
            self._channel.shutdown(socket.SHUT_WR)
            self.pid = _number(
                self._channel.recv(4)
            )  # macOS loses descriptors that are closed before they have arrived
            self._channel.setblocking(False)
        for pipe, theirs in ((self.stdin, source), (self.stdout, out), (self.stderr, err)):
            if pipe is not None:
                os.close(theirs)

    def __del__(self) -> None:
        self._channel.close()

    def poll(self) -> int | None:
        with contextlib.suppress(BlockingIOError):  # peek, so that several threads can read it
            self.returncode = _number(self._channel.recv(4, socket.MSG_PEEK))
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if not connection.wait([self._channel], timeout):
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        code = self.poll()
        assert code is not None
        return code

    def communicate(self, input: str | None = None, timeout: float | None = None) -> tuple[Any, Any]:
        readers = ThreadPoolExecutor()
        reading = [
            readers.submit(stream.read) if stream and not stream.closed else None
            for stream in (self.stdout, self.stderr)
        ]
        readers.shutdown(wait=False)
        if self.stdin:
            with contextlib.suppress(BrokenPipeError), self.stdin:
                self.stdin.write(input or "")
        self.wait(timeout)
        out, err = (read and read.result(PATIENCE) for read in reading)
        for stream in (self.stdout, self.stderr):
            if stream:
                stream.close()
        return out, err


def _piped(wanted: int, mode: str) -> tuple[IO[str] | None, int]:
    """Return our end of the pipe, if one is wanted, and the descriptor for the child."""
    if wanted != PIPE:
        return None, wanted
    reading, writing = os.pipe()
    ours, theirs = (reading, writing) if mode == "r" else (writing, reading)
    return open(ours, mode, encoding="utf-8"), theirs


def _number(data: bytes) -> int:
    assert len(data) == 4, "the nursery has ended"
    return int.from_bytes(data, "little", signed=True)


@functools.cache
def _nursery() -> socket.socket:
    """Start the nursery, and return the socket to it. It ends when the socket is closed, also when this process is killed."""
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-m", "tests.nursery"]
        subprocess.run(command, cwd=Path(__file__).parent.parent, stdin=theirs.fileno(), stdout=DEVNULL, check=True)
    atexit.register(ours.close)
    return ours


class Killable:
    """A service that is started and killed again and again, on one data directory and port, and its first user."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.environ = environment(**{"bootstrap_token": BOOTSTRAP_TOKEN, "engine_threads": "1"} | settings)
        self.port = free_port()
        self.ann = self.client()

    @property
    def database(self) -> Path:
        return self.folder / "fireside.db"

    @property
    def output(self) -> str:
        return (self.folder / "output").read_text()

    def client(self) -> Person:
        no_pool = httpx.Limits(max_keepalive_connections=0)
        return Person(
            base_url=f"http://127.0.0.1:{self.port}", trust_env=False, verify=NO_TLS, timeout=PATIENCE, limits=no_pool
        )

    async def __aenter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        await self.start()
        body = {"username": "ann", "password": PASSWORD, "token": BOOTSTRAP_TOKEN}
        self.ann.headers["X-CSRF-Token"] = good(await self.ann.post("/admin/bootstrap", json=body))["csrf_token"]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.ann.aclose()
        await self.end(signal.SIGKILL)

    async def start(self) -> None:
        """Start the service and wait until it answers."""
        arguments = ("serve", "--no-open", "--port", str(self.port), "--data-dir", str(self.folder))
        with (self.folder / "output").open("a") as output:
            both = output.fileno()
            self.process = start(*arguments, environ=self.environ, stdout=both, stderr=both)
        async with asyncio.timeout(PATIENCE):
            while not await self._answers():
                assert self.process.poll() is None, self.output
                await asyncio.sleep(0.005)

    async def _answers(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return (await self.ann.get("/health")).status_code == 200
        return False

    async def end(self, number: signal.Signals) -> None:
        """Send a signal and wait until the process has ended."""
        self.process.send_signal(number)
        await asyncio.to_thread(self.process.wait, PATIENCE)


def free_port() -> int:
    """Return a free port below the range of outgoing connections, so that it stays free between two starts."""
    while True:
        port = random.randint(12_000, 30_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
