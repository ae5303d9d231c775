"""Hostile documents: each is text or a clear problem within its bounds, and the streams of the service are not delayed.

Two users upload the files of tests/documents/hostile.py while 20 answers stream, so that two children read them, as many as the service has.
The process that makes and uploads the files has a low priority, since the attacker's computer would be another one.

python -m tests.trust documents
"""

import asyncio
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from fireside.documents import extract

from ..browser import Fireside
from ..documents import hostile
from ..live import good, until
from ..upstream import DONE, Gate, Step, finish, pause, text, usage
from ..witness import MODEL
from . import Figures, fireside_process

STREAMS = 20
TOKENS = 400  # of an answer
TOKEN_SECONDS = 0.05
FEWEST = 500  # tokens to measure without files
NICE = 5
POLL_SECONDS = 0.2
NO_POOL = httpx.Limits(max_keepalive_connections=0)  # the service closes idle connections
MAX_SECONDS = 3 * (extract.MAX_SECONDS + extract.ITEM_SECONDS)  # those are of processor time, which others use too
MAX_GROWTH_MB = 80.0  # of the service, which may hold files of 50 MB
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
    users = [_session(person), _session(service.join(person, "ben"))]
    streams = Streams(service, *users[0])
    tasks = [asyncio.create_task(streams.run()) for _ in range(STREAMS)]
    await until(lambda: len(streams.delays) >= FEWEST or any(task.done() for task in tasks), "the streams")
    for task in tasks:
        if task.done():
            task.result()
    before, memory = streams.take(), _memory(service)
    command = (sys.executable, "-m", "tests.trust.documents", str(size), service.url, json.dumps(users))
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
    log = "".join(file.read_text("utf-8") for file in service.data_dir.glob("fireside.log*"))
    crashes = [line for line in log.splitlines() if "cannot be read" in line and not LIMITS.search(line)]
    figures.expect(not crashes, f"a format raised an unexpected error: {crashes}")
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


def _session(client: httpx.Client) -> tuple[dict[str, str], dict[str, str]]:
    cookies = {cookie.name: cookie.value or "" for cookie in client.cookies.jar}
    return cookies, {"X-CSRF-Token": client.headers["X-CSRF-Token"]}


def _memory(service: Fireside) -> float:
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


# ---- in the other process


async def _upload_all(size: int, url: str, users: list[tuple[dict[str, str], dict[str, str]]]) -> None:
    files = iter(hostile.files()[:size])
    await asyncio.gather(*(_upload_files(url, *user, files) for user in users))


async def _upload_files(
    url: str, cookies: dict[str, str], headers: dict[str, str], files: Iterator[hostile.HostileFile]
) -> None:
    async with httpx.AsyncClient(
        base_url=url, cookies=cookies, headers=headers, trust_env=False, timeout=MAX_SECONDS, limits=NO_POOL
    ) as client:
        for file in files:
            data = await asyncio.to_thread(file.make)
            print(json.dumps([file.name, await _problem(client, data, file.name)]), flush=True)


async def _problem(client: httpx.AsyncClient, data: bytes, name: str) -> str:
    """Upload a file, wait until it is read, and return what is wrong with the outcome, or an empty string."""
    began = time.monotonic()
    response = await client.post("/attachments", params={"name": name}, content=data)
    if 400 <= response.status_code < 500:
        return "" if response.json()["message"].endswith(".") else f"unclear: {response.text}"
    attachment = good(response)
    while attachment["status"] == "reading":
        if time.monotonic() - began > MAX_SECONDS:
            return "is still being read"
        await asyncio.sleep(POLL_SECONDS)
        attachment = good(await client.get(f"/attachments/{attachment['id']}"))
    if attachment["pages_read"] > extract.MAX_PAGES or attachment["characters"] > extract.MAX_CHARACTERS:
        return f"{attachment['pages_read']} pages, {attachment['characters']} characters"
    if attachment["status"] != "ready":
        return "" if (attachment["problem"] or "").endswith(".") else f"unclear: {attachment}"
    is_image = attachment["media_type"].startswith("image/")
    return "" if attachment["characters"] or is_image else "neither text nor a problem"


LIMITS = re.compile(f"out of memory|the child process ended|no result within {extract.ITEM_SECONDS:g} s")

if __name__ == "__main__":
    os.nice(NICE)
    asyncio.run(_upload_all(int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])))
