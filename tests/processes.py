"""Fireside in processes of its own, which may be killed: the real command, started often and cheaply.

A Nursery is a process that has imported everything and then does nothing but fork; each child runs the command.
"""

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from .live import BOOTSTRAP_TOKEN, NO_TLS, PASSWORD, PATIENCE, Person, good

NURSERY = """
import json, os, signal, sys
import fireside.__main__, fireside.commands, fireside.server
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children: they vanish when they end
for line in sys.stdin:
    order = json.loads(line)
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ.update(order["environ"])
        sys.exit(fireside.__main__.main(order["arguments"]))
    print(pid, flush=True)
"""


class Nursery:
    def __enter__(self) -> Self:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen([sys.executable, "-c", NURSERY], stdin=pipe, stdout=pipe, text=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait(PATIENCE)
        self._process.stdout.close()

    def start(self, *arguments: str, output: Path, **environ: str) -> int:
        """A child that runs `fireside` with these arguments. Returns its process id."""
        assert self._process.stdin and self._process.stdout
        order = {"arguments": arguments, "environ": environ, "output": str(output)}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


class Killable:
    """A Fireside on one data directory and one port, again and again, with one user who stays signed in all the time."""

    def __init__(self, nursery: Nursery, folder: Path, **settings: str) -> None:
        self.nursery = nursery
        self.folder = folder
        self.environ = {"FIRESIDE_BOOTSTRAP_TOKEN": BOOTSTRAP_TOKEN, "FIRESIDE_ENGINE_THREADS": "1"}
        self.environ |= {f"FIRESIDE_{name.upper()}": value for name, value in settings.items()}
        self.port = free_port()
        self.pid: int | None = None
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
        if self.pid is not None:
            await self.end(signal.SIGKILL)

    async def start(self) -> None:
        """Returns when it answers."""
        arguments = ("serve", "--no-open", "--port", str(self.port), "--data-dir", str(self.folder))
        self.pid = self.nursery.start(*arguments, output=self.folder / "output", **self.environ)
        async with asyncio.timeout(PATIENCE):
            while not await self._answers():
                assert self.alive, self.output
                await asyncio.sleep(0.005)

    async def _answers(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return (await self.ann.get("/health")).status_code == 200
        return False

    @property
    def alive(self) -> bool:
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, 0)
                return True
        return False

    def tell(self, number: signal.Signals) -> None:
        assert self.pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    async def end(self, number: signal.Signals) -> None:
        """Returns when nothing of it is left."""
        self.tell(number)
        async with asyncio.timeout(PATIENCE):
            while self.alive:  # noqa: ASYNC110 (of the end of somebody else's child nobody is told)
                await asyncio.sleep(0.002)
        self.pid = None


def free_port() -> int:
    """A port that no outgoing connection of anybody is given, so that it stays free while nobody listens on it."""
    while True:
        port = random.randint(12_000, 30_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
