"""The sandbox: limits of time and memory, reuse of children, and that no child outlives its use."""

import asyncio
import contextlib
import importlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from fireside.safety import landlock, sandbox
from fireside.safety.sandbox import Sandbox, WorkFailed, WorkTooLarge, WorkTooLong
from fireside.web import renderer

from ..live import PATIENCE, Running, good, until

SLOW_CODE = "```c\nx" + " " * 19_900 + "!\n```\n"  # one step of its lexer's regular expression takes half a minute
PLAIN = {"class": "unformatted"}

# A module that the children can import.
WORK = """
import os, re, time

def count(to):
    for number in range(to):
        yield str(number).encode()

def process_id():
    yield str(os.getpid()).encode()

def sleep():
    yield str(os.getpid()).encode()
    time.sleep(600)

def hold_gil():
    yield str(os.getpid()).encode()
    re.match("(a+)+b", "a" * 64)

def grow():
    yield b"x" * (1 << 40)

def fail():
    raise KeyError("a secret text")
    yield b""

def reach(folder):
    import socket
    path = folder + "/file"
    for name, action in {
        "open": lambda: open(path),
        "create": lambda: open(folder + "/new", "w"),
        "list": lambda: os.listdir(folder),
        "connect": lambda: socket.create_connection(("127.0.0.1", 1)),
        "listen": lambda: socket.create_server(("127.0.0.1", 0)),
        "delete": lambda: os.remove(path),
        "truncate": lambda: os.truncate(path, 0),
        "signal": lambda: os.kill(os.getppid(), 0),
        "execute": lambda: os.execv("/bin/sh", ["sh", "-c", "exit"]),
    }.items():
        try:
            action()
        except OSError as error:
            yield f"{name} {type(error).__name__}".encode()
        else:
            yield name.encode()

def die():
    os._exit(1)
    yield b""
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "work_of_the_tests.py").write_text(WORK)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    yield importlib.import_module("work_of_the_tests")
    del sys.modules["work_of_the_tests"]


@pytest.fixture
async def pool() -> AsyncIterator[Sandbox]:
    made = Sandbox()
    yield made
    await made.aclose()


async def run(pool: Sandbox, function: Any, *args: Any) -> list[bytes]:
    return [item async for item in pool.iterate(function, *args, seconds=30)]


def is_running(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


async def ended(pid: bytes | int) -> None:
    await until(lambda: not is_running(int(pid)), "the child's end")


async def test_items_arrive_in_order_and_an_idle_child_is_used_again(pool: Sandbox, work: Any) -> None:
    assert await run(pool, work.count, 5_000) == [str(number).encode() for number in range(5_000)]
    assert await run(pool, work.process_id) == await run(pool, work.process_id)


async def test_child_that_exceeds_its_time_is_killed(pool: Sandbox, work: Any) -> None:
    items = pool.iterate(work.sleep, seconds=0.5)
    pid = await anext(items)
    with pytest.raises(WorkTooLong):
        await anext(items)
    await ended(pid)


async def test_child_ends_when_the_service_dies_while_it_sends_a_request() -> None:
    command = (sys.executable, "-P", "-m", "fireside.safety.worker", str(sandbox.MEMORY_BYTES), "0")
    pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
    child = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=nowhere, stderr=nowhere)
    try:
        assert child.stdin
        child.stdin.write((100).to_bytes(4, "big") + b"a part of a request")
        child.stdin.close()
        async with asyncio.timeout(PATIENCE):
            assert await child.wait() == 0
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the child ends without a reply")
async def test_memory_is_limited(pool: Sandbox, work: Any) -> None:
    with pytest.raises(WorkTooLarge):
        await run(pool, work.grow)
    assert await run(pool, work.count, 1) == [b"0"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
async def test_sealed_child_reaches_no_file_socket_or_process(work: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    pool = Sandbox(preload=("work_of_the_tests", "socket", "encodings.idna"), sealed=True)
    tried = [item.decode() for item in await run(pool, work.reach, str(tmp_path))]
    await pool.aclose()
    refused = {name.partition(" ")[0]: name for name in tried}
    assert all(refused[name] == f"{name} OSError" for name in ("open", "create", "list", "connect", "listen")), tried
    if landlock.version() >= 6:
        assert all(" PermissionError" in refused[name] for name in ("delete", "truncate", "signal", "execute")), tried
    assert (tmp_path / "file").read_text() == "content"


async def test_failure_quotes_no_content(pool: Sandbox, work: Any) -> None:
    with pytest.raises(WorkFailed, match=r"^KeyError$"):
        await run(pool, work.fail)
    with pytest.raises(WorkFailed, match="ended"):
        await run(pool, work.die)
    assert await run(pool, work.count, 1) == [b"0"]


async def test_reader_that_leaves_ends_the_work(pool: Sandbox, work: Any) -> None:
    async with contextlib.aclosing(pool.iterate(work.sleep, seconds=30)) as items:
        pid = await anext(items)
    await ended(pid)


async def test_close_ends_a_busy_child(work: Any) -> None:
    pool = Sandbox()
    items = pool.iterate(work.sleep, seconds=30)
    pid = await anext(items)
    waiting = asyncio.ensure_future(anext(items))
    await asyncio.sleep(0)
    await pool.aclose()
    assert not is_running(int(pid))
    with pytest.raises(WorkFailed):
        await waiting


async def test_idle_children_end(pool: Sandbox, work: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "IDLE_SECONDS", 0.05)
    [pid] = await run(pool, work.process_id)
    await ended(pid)
    assert await run(pool, work.count, 1) == [b"0"]


async def test_spare_child_takes_the_next_job(work: Any) -> None:
    pool = Sandbox(spare=True)
    async with contextlib.aclosing(pool.iterate(work.sleep, seconds=30)) as items:
        await anext(items)
        await until(lambda: pool._idle, "a spare child")
        [spare] = pool._idle
        assert await run(pool, work.process_id) == [str(spare._process.pid).encode()]
    assert len(pool._idle) == 2, "the child that was killed is replaced before its job ends"
    await pool.aclose()


@pytest.mark.parametrize(
    "function",
    [
        "sleep",
        pytest.param(
            "hold_gil",
            marks=[pytest.mark.long, pytest.mark.skipif(not hasattr(signal, "SIGXCPU"), reason="POSIX")],
        ),
    ],
)
async def test_busy_child_ends_when_its_service_is_killed(work: Any, function: str) -> None:
    program = (
        "import asyncio, work_of_the_tests\nfrom fireside.safety.sandbox import Sandbox\n"
        "async def main():\n"
        "    pool = Sandbox()\n"
        f"    items = pool.iterate(work_of_the_tests.{function}, seconds=1)\n"
        "    print(int(await anext(items)), flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    assert process.stdout
    pid = int(await process.stdout.readline())
    assert is_running(pid)
    process.kill()
    await process.wait()
    await ended(pid)


# ---- the renderer's use of it


@pytest.mark.long
async def test_block_that_takes_too_long_is_plain_and_the_rest_is_formatted(tmp_path: Path) -> None:
    async with Running(tmp_path) as running:
        ann = await running.first()
        text = f"*before \U0001f600*\n\n{SLOW_CODE}\n*after*\n\n"
        rendered = good(await ann.post("/render", json={"text": text}))
        [before, code], [after] = rendered["blocks"], rendered["tail"]
        assert before == ["p", {}, ["em", {}, "before \U0001f600"]] and after == ["p", {}, ["em", {}, "after"]]
        assert code == ["pre", PLAIN, ["code", {}, f"{SLOW_CODE}\n"]]
        assert rendered["closed"] == len(text.removesuffix("*after*\n\n").encode("utf-16-le")) // 2


@pytest.mark.long
async def test_slow_text_of_one_user_does_not_delay_another(tmp_path: Path) -> None:
    async with Running(tmp_path) as running:
        ann = await running.first()
        ben = await running.join(ann, "ben")
        slow = asyncio.create_task(ann.post("/render", json={"text": SLOW_CODE}))
        answers = 0
        while not slow.done():
            good(await ben.post("/render", json={"text": "*quick*"}))
            answers += 1
        assert good(await slow)["tail"][0][1] == PLAIN
        assert answers > 2


@pytest.mark.long
async def test_text_with_many_slow_blocks_arrives_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renderer, "BLOCK_SECONDS", 1.0)
    async with Running(tmp_path) as running:
        ann = await running.first()
        text = f"{SLOW_CODE}\n" * 5 + "*one*\n\n" * 300
        rendered = good(await ann.post("/render", json={"text": text}))
        nodes = rendered["blocks"] + rendered["tail"]
        assert "".join(node[2][2] for node in nodes) == text
        assert [node[1] for node in nodes] == [PLAIN] * 4


async def test_only_the_slow_message_among_others_is_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renderer, "BLOCK_SECONDS", 1.0)
    async with Running(tmp_path) as running:
        ann = await running.first()
        conversation_id = await ann.conversation()
        for text in ("*one*", SLOW_CODE, "*two*"):
            await ann.say(conversation_id, text)
        messages = good(await ann.get(f"/conversations/{conversation_id}/messages", params={"render": "true"}))
        em: list[Any] = [["p", {}, ["em", {}, word]] for word in ("one", "two")]
        plain = ["pre", PLAIN, ["code", {}, SLOW_CODE]]
        assert [message["blocks"] for message in messages] == [[em[0]], [plain], [em[1]]]
