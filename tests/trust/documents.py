"""Hostile documents: each is text or a clear problem within its bounds, and the streams of a service beside it are not delayed.

A process reads the files of tests/documents/hostile.py in two sealed children, as many as the service has, while 20 answers of a real
service stream. It runs with low priority, since the attacker's computer would be another one; the children have theirs.

python -m tests.trust documents
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from fireside.documents import extract
from fireside.safety.sandbox import WorkFailed

from ..browser import Fireside
from ..documents import hostile
from ..documents.making import Reader, reading
from ..live import good, until
from ..upstream import DONE, Gate, Step, finish, pause, text, usage
from ..witness import MODEL
from . import Figures, fireside_process

STREAMS = 20
TOKENS = 400  # of an answer
TOKEN_SECONDS = 0.05
FEWEST = 500  # tokens to measure without files
READERS = 2
NICE = 5
MAX_SECONDS = extract.MAX_SECONDS + extract.ITEM_SECONDS
MAX_GROWTH_MB = 20.0  # of the service's memory
MAX_DELAY_SECONDS = (
    0.25  # p99 beyond that without files; 25 ms on an idle computer, see `python -m bench --only documents`
)


class Beat(Gate):
    async def passed(self) -> None:
        await asyncio.sleep(TOKEN_SECONDS)


def _token(_: object) -> bytes:
    return text(f"@{time.monotonic()}@")


SCRIPT: list[Step] = [
    *(step for _ in range(TOKENS) for step in (pause(Beat()), _token)),
    finish(),
    usage(5, TOKENS),
    DONE,
]


@dataclass
class Streams:
    """Answers one after the other. Each of their tokens says when it was sent."""

    service: Fireside
    cookies: dict[str, str]
    headers: dict[str, str]
    delays: list[float] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    async def run(self) -> None:
        async with httpx.AsyncClient(
            base_url=self.service.url, cookies=self.cookies, headers=self.headers, trust_env=False, timeout=60
        ) as client:
            while True:
                conversation = good(await client.post("/conversations", json={}))["id"]
                good(await client.post(f"/conversations/{conversation}/messages", json={"content": "Go on."}))
                async with client.stream("POST", f"/conversations/{conversation}/stream", json=MODEL) as response:
                    async for line in response.aiter_lines():
                        now = time.monotonic()
                        self.delays += [now - float(sent) for sent in line.split("@")[1::2]]
                        if line.startswith("event: error"):
                            self.broken.append(line)

    def take(self) -> float:
        """Return the 99th percentile of the delays since the last call."""
        delays, self.delays = sorted(self.delays), []
        return delays[len(delays) * 99 // 100]


def prove(size: int) -> Figures:
    with fireside_process() as (service, upstream):
        upstream.default = SCRIPT
        return asyncio.run(_measure(size, service))


async def _measure(size: int, service: Fireside) -> Figures:
    figures = Figures()
    person = service.first()
    headers = {"X-CSRF-Token": person.headers["X-CSRF-Token"]}
    cookies = {cookie.name: cookie.value or "" for cookie in person.cookies.jar}
    streams = Streams(service, cookies, headers)
    tasks = [asyncio.create_task(streams.run()) for _ in range(STREAMS)]
    await until(lambda: len(streams.delays) >= FEWEST or any(task.done() for task in tasks), "the streams")
    for task in tasks:
        if task.done():
            task.result()
    before, memory = streams.take(), _memory(service)
    command = (sys.executable, "-m", "tests.trust.documents", str(size))
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    output, _ = await process.communicate()
    during, growth = streams.take(), _memory(service) - memory
    for task in tasks:
        task.cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    results = [json.loads(line) for line in output.splitlines()]
    for name, problem in results:
        figures.expect(not problem, f"{name}: {problem}")
    figures.expect(
        process.returncode == 0 and len(results) == min(size, len(hostile.files())), "not all files were read"
    )
    figures.expect(
        not streams.broken and all(isinstance(end, asyncio.CancelledError) for end in ended),
        f"streams broke: {streams.broken} {ended}",
    )
    figures.expect(during - before <= MAX_DELAY_SECONDS, f"streams: p99 {during:.3f} s late, {before:.3f} s before")
    figures.expect(growth <= MAX_GROWTH_MB, f"the service grew by {growth:.0f} MB")
    figures.more = f"{STREAMS} streams: p99 {during * 1000:.0f} ms late, {before * 1000:.0f} ms without the files; the service grew by {growth:.1f} MB"
    return figures


def _memory(service: Fireside) -> float:
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


# ---- in the other process


async def _read_all(size: int) -> None:
    files = iter(hostile.files()[:size])
    async with reading() as reader:
        await asyncio.gather(*(_read_files(reader, files) for _ in range(READERS)))


async def _read_files(reader: Reader, files: Iterator[hostile.HostileFile]) -> None:
    for file in files:
        print(
            json.dumps([file.name, await _problem(reader, await asyncio.to_thread(file.make), file.name)]), flush=True
        )


async def _problem(reader: Reader, data: bytes, name: str) -> str:
    """Read a file and return what is wrong with the outcome, or an empty string."""
    began = time.monotonic()
    try:
        result = await reader.read(data, name)
    except WorkFailed as ended:  # killed at its limit of time or memory, which the service tells the person
        return "" if str(ended) in LIMITS else f"the work failed: {ended}"
    characters = sum(map(len, result.pages))
    if len(result.pages) > extract.MAX_PAGES or characters > extract.MAX_CHARACTERS:
        return f"{len(result.pages)} pages, {characters} characters"
    if not result.text.strip() and result.problem is None:
        return "neither text nor a problem"
    if result.problem and not result.problem.message.endswith("."):
        return f"unclear: {result.problem.message}"
    seconds = time.monotonic() - began
    return f"took {seconds:.0f} s" if seconds > MAX_SECONDS else ""


LIMITS = ("out of memory", "the child process ended", f"no result within {extract.ITEM_SECONDS:g} s")

if __name__ == "__main__":
    os.nice(NICE)
    asyncio.run(_read_all(int(sys.argv[1])))
