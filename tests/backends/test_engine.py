"""The engine's child process, with a real llama.cpp and a small model.

Processes are read from /proc, so those tests run on Linux only.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fireside.backends import gguf, llama_server
from fireside.backends.engine import Endpoint, Engine
from fireside.config import Config
from fireside.errors import ProviderFailed

pytest.importorskip("xllamacpp")
MODEL = "smollm2-135m-instruct"
SECONDS = 20.0  # that a test waits before it fails

PROC = Path("/proc/self/stat").exists()
with_proc = pytest.mark.skipif(not PROC, reason="needs /proc")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without LM Studio, and an environment with a secret that the child must not get."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("FIRESIDE_LMSTUDIO_API_KEY", "not-for-the-child")
    return tmp_path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture
async def engine(folder: Path) -> AsyncIterator[Engine]:
    async with opened(folder) as engine:
        yield engine


@contextlib.asynccontextmanager
async def opened(folder: Path, **settings: Any) -> AsyncIterator[Engine]:
    """An engine that must leave no process and no task."""
    engine = Engine(Config(models_dir=folder, engine_threads=1, **{"engine_context": 512, **settings}))
    try:
        yield engine
    finally:
        await engine.aclose()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert children() == []


def add(folder: Path, name: str) -> None:
    """Add another model: a copy of the small one."""
    [source] = [model.path for model in gguf.Library(None).scan()[0] if model.id == MODEL]
    try:
        os.link(source, folder / name)
    except OSError:
        shutil.copy(source, folder / name)


async def until(condition: Callable[[], Any]) -> Any:
    """Wait for a true result and return it."""
    async with asyncio.timeout(SECONDS):
        while not (found := condition()):  # noqa: ASYNC110 (the state of a process sets no event)
            await asyncio.sleep(0.005)
    return found


def read_proc(pid: int, name: str) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/{name}").read_text()
    return ""


def children(of: int = os.getpid()) -> list[int]:
    """Return the descendants of a process, parents first."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    below = [pid for pid, parent in parents.items() if parent == of]
    return below + [pid for child in below for pid in children(child)]


def server_of(pids: list[int]) -> int | None:
    """Return the process that runs llama.cpp, once there is one."""
    return next((pid for pid in pids if read_proc(pid, "cmdline").endswith("\0serve\0")), None)


def gone(pids: list[int]) -> bool:
    """Return whether no process runs. An orphan stays a zombie until process 1 reaps it."""
    stats = [read_proc(pid, "stat").rpartition(")")[2].split() for pid in pids]
    return all(not stat or stat[0] == "Z" for stat in stats)


async def frozen_server() -> int:
    """Stop the server before the model is loaded, as if loading took minutes."""
    pid: int = await until(lambda: server_of(children()))
    os.kill(pid, signal.SIGSTOP)
    return pid


async def ask(endpoint: Endpoint, path: str = "/v1/models", key: str | None = None, **body: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key or endpoint.api_key}"}
    async with httpx.AsyncClient(trust_env=False, verify=False, timeout=SECONDS) as client:
        return await client.request("POST" if body else "GET", endpoint.url + path, headers=headers, json=body or None)


async def answer(endpoint: Endpoint) -> str:
    question = [{"role": "user", "content": "What is the capital of Japan?"}]
    response = await ask(endpoint, "/v1/chat/completions", messages=question, temperature=0, max_tokens=8)
    return str(response.json()["choices"][0]["message"]["content"])


# ---- what it does


async def test_model_is_started_on_demand_with_a_secret_key_and_unloaded_when_it_is_unused(engine: Engine) -> None:
    assert (engine.state(MODEL), engine.context_length) == ("not-loaded", None)
    await engine.unload()
    async with engine.use(MODEL) as first, engine.use(MODEL) as same:
        assert same == first, "requests for one model share a child"
        assert (engine.state(MODEL), engine.context_length, first.model_id) == ("loaded", 512, MODEL)
        assert first.url.startswith("http://127.0.0.1:")
        assert "Tokyo" in await answer(first)
        assert [slot["n_ctx"] for slot in (await ask(first, "/slots")).json()] == [512]
        for path in ("/v1/models", "/slots", "/props"):
            assert (await ask(first, path, key="guessed")).status_code == 401
        assert (await ask(first, "/v1/chat/completions", key="guessed", messages=[])).status_code == 401
        with pytest.raises(ProviderFailed) as refused:
            await engine.unload()
        assert refused.value.code == "PROVIDER_BUSY"
        assert (await ask(first)).status_code == 200
        pids = children()
        assert len(pids) == 2 or not PROC
        for pid in pids:
            visible = read_proc(pid, "cmdline") + read_proc(pid, "environ")
            assert visible and first.api_key not in visible and "not-for-the-child" not in visible
    assert first.api_key not in repr(first)
    await engine.unload()
    assert (engine.state(MODEL), children()) == ("not-loaded", [])
    async with engine.use(MODEL) as second:
        assert second.api_key != first.api_key


async def test_another_model_waits_until_the_first_is_unused(engine: Engine, folder: Path) -> None:
    add(folder, "other.gguf")
    served = []

    async def use(model_id: str) -> None:
        async with engine.use(model_id) as endpoint:
            served.append((await ask(endpoint)).json()["data"][0]["id"])

    async with asyncio.TaskGroup() as group, engine.use(MODEL) as endpoint:
        group.create_task(use("other"))
        await until(lambda: "other" in engine._requested)
        group.create_task(use(MODEL))
        assert "Tokyo" in await answer(endpoint)
        assert (engine.state(MODEL), engine.state("other"), served) == ("loaded", "not-loaded", [])
    assert served == ["other", MODEL]
    assert len(children()) == 2 or not PROC


async def test_child_is_stopped_after_the_idle_time(folder: Path) -> None:
    idle = 0.5
    async with opened(folder, engine_idle_seconds=idle) as engine:
        async with engine.use(MODEL) as endpoint:
            started = time.monotonic()
            await answer(endpoint)
            await until(lambda: time.monotonic() - started > idle)
            assert engine.state(MODEL) == "loaded"
        async with engine.use(MODEL) as again:
            assert again == endpoint
        await until(lambda: engine.state(MODEL) == "not-loaded")
        await until(lambda: children() == [])


async def test_context_length_is_at_most_the_models_own(engine: Engine) -> None:
    await engine.load(MODEL, 1024)
    assert (engine.state(MODEL), engine.context_length) == ("loaded", 1024)
    await engine.load(MODEL, 1_000_000)
    assert engine.context_length == 8192
    async with engine.use(MODEL) as endpoint:
        assert [slot["n_ctx"] for slot in (await ask(endpoint, "/slots")).json()] == [8192]


# ---- errors


async def test_missing_or_unusable_model_is_not_found_for_a_reason(engine: Engine, folder: Path) -> None:
    mlx = folder / "mlx-community" / "Llama-3.2-1B-4bit"
    mlx.mkdir(parents=True)
    (mlx / "config.json").write_text("{}")
    (mlx / "model.safetensors").write_bytes(b"")
    (folder / "Noise-Q4_K_M.gguf").write_bytes(b"noise")
    for name, reason in (
        ("no-such-model", "The embedded engine does not have this model."),
        ("mlx-community/llama-3.2-1b-4bit", gguf.MLX),
        ("llama-3.2-1b-4bit", gguf.MLX),
        ("noise", gguf.NOT_GGUF),
        ("noise-q4_k_m", gguf.NOT_GGUF),
    ):
        with pytest.raises(ProviderFailed) as failed:
            await engine.load(name)
        assert (failed.value.code, failed.value.message) == ("MODEL_NOT_FOUND", reason)
    reasons = {"Llama-3.2-1B-4bit": gguf.MLX, "Noise-Q4_K_M.gguf": gguf.NOT_GGUF}
    assert {skip.path.name: skip.reason for skip in await engine.skipped()} == reasons


async def test_failed_load_has_a_reason_and_can_be_repeated(engine: Engine, folder: Path) -> None:
    key, value = b"general.architecture", b"llama"
    pair = struct.pack("<Q", len(key)) + key + struct.pack("<IQ", 8, len(value)) + value
    tensor = struct.pack("<Q", 1) + b"t" + struct.pack("<IQIQ", 1, 8, 0, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + pair + tensor
    (folder / "broken.gguf").write_bytes(head + bytes(-len(head) % 32) + os.urandom(32))
    for _ in range(2):
        with pytest.raises(ProviderFailed) as failed:
            await engine.load("broken")
        assert failed.value.code == "MODEL_LOAD_FAILED"
        # llama.cpp writes its log in a thread, and on a busy machine may exit before it has.
        reasons = (
            "key not found in model: llama.context_length",
            "RuntimeError: Failed to init server, please check the input params",
        )
        assert failed.value.message in [f"broken could not be loaded: {reason}." for reason in reasons]
        assert engine.state("broken") == "not-loaded"
    (folder / "broken.gguf").unlink()
    add(folder, "broken.gguf")
    async with engine.use("broken") as endpoint:
        assert "Tokyo" in await answer(endpoint)


@with_proc
async def test_killed_server_is_started_again(engine: Engine) -> None:
    await engine.load(MODEL)
    os.kill(server_of(children()) or 0, signal.SIGKILL)
    await until(lambda: engine.state(MODEL) == "not-loaded")
    async with engine.use(MODEL) as endpoint:
        assert "Tokyo" in await answer(endpoint)


@with_proc
async def test_server_that_was_killed_a_moment_ago_gets_no_request(engine: Engine) -> None:
    """The keeper, which would report the death of the server, is frozen."""
    async with engine.use(MODEL) as endpoint:
        reader, writer = await asyncio.open_connection(*endpoint.url.removeprefix("http://").split(":"))
    keeper, server = children()
    os.kill(keeper, signal.SIGSTOP)
    os.kill(server, signal.SIGKILL)
    assert await reader.read() == b""
    writer.close()
    async with engine.use(MODEL) as endpoint:
        assert "Tokyo" in await answer(endpoint)


@with_proc
async def test_server_that_is_killed_while_loading_is_a_failed_load(engine: Engine) -> None:
    load = asyncio.create_task(engine.load(MODEL))
    os.kill(await frozen_server(), signal.SIGKILL)
    with pytest.raises(ProviderFailed) as failed:
        await load
    assert failed.value.code == "MODEL_LOAD_FAILED"
    assert "memory ran out" in failed.value.message


@with_proc
async def test_cancelled_load_leaves_no_process(engine: Engine) -> None:
    load = asyncio.create_task(engine.load(MODEL))
    await frozen_server()
    assert engine.state(MODEL) == "loading"
    load.cancel()
    with pytest.raises(asyncio.CancelledError):
        await load
    assert engine.state(MODEL) == "not-loaded"
    assert children() == []


async def test_load_can_be_cancelled_at_any_moment(engine: Engine) -> None:
    await engine.models()
    for turns in range(20):
        load = asyncio.create_task(engine.load(MODEL))
        for _ in range(turns):
            await asyncio.sleep(0)
        load.cancel()
        with pytest.raises(asyncio.CancelledError):
            await load
        assert children() == []


@with_proc
async def test_cancelled_load_continues_for_another_request(engine: Engine) -> None:
    first = asyncio.create_task(engine.load(MODEL))
    pid = await frozen_server()
    second = asyncio.create_task(engine.load(MODEL))
    await until(lambda: len(engine._requested) == 2)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    os.kill(pid, signal.SIGCONT)
    await second
    assert server_of(children()) == pid


@with_proc
async def test_closing_stops_a_load_and_refuses_others(engine: Engine) -> None:
    loads = [asyncio.create_task(engine.load(MODEL)) for _ in range(2)]
    await frozen_server()
    await engine.aclose()
    assert children() == []
    for load in (*loads, asyncio.create_task(engine.load(MODEL))):
        with pytest.raises(ProviderFailed) as failed:
            await load
        assert failed.value.code == "PROVIDER_UNREACHABLE"


# ---- the end of the parent

PARENT = """
import asyncio, sys
from pathlib import Path
import httpx
from fireside.config import Config
from fireside.backends.engine import Engine

async def main():
    engine = Engine(Config(engine_threads=1, engine_context=2048))
    async with engine.use("smollm2-135m-instruct") as endpoint, httpx.AsyncClient(verify=False) as client:
        body = {"messages": [{"role": "user", "content": "Tell a long story."}], "stream": True, "ignore_eos": True}
        headers = {"Authorization": "Bearer " + endpoint.api_key}
        async with client.stream("POST", endpoint.url + "/v1/chat/completions", json=body, headers=headers) as answer:
            async for piece in answer.aiter_raw():
                sys.stdout.buffer.write(piece)
                sys.stdout.buffer.flush()

asyncio.run(main())
"""


@with_proc
@pytest.mark.parametrize("moment", ["loading", "answering"])
async def test_no_process_is_left_of_a_parent_that_is_killed(moment: str) -> None:
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", PARENT, stdout=subprocess.PIPE)
    try:
        if moment == "loading":
            pid = await until(lambda: server_of(children(parent.pid)))
            await until(lambda: ".gguf" in read_proc(pid, "maps"))
            os.kill(pid, signal.SIGSTOP)  # while it loads, it notices nothing
        else:
            assert parent.stdout
            async with asyncio.timeout(SECONDS):
                await parent.stdout.readline()
        left = children(parent.pid)
        assert len(left) == 2
    finally:
        parent.kill()
        await parent.wait()
    await until(lambda: gone(left))


@with_proc
async def test_server_ignores_signals_to_the_process_group_and_exits_when_its_keeper_is_killed(engine: Engine) -> None:
    async with engine.use(MODEL) as endpoint:
        keeper, server = children()
        for pid in (keeper, server):
            assert os.getsid(pid) != os.getsid(0)
            os.kill(pid, signal.SIGINT)
            os.kill(pid, signal.SIGTERM)
        assert "Tokyo" in await answer(endpoint)
    os.kill(keeper, signal.SIGKILL)
    await until(lambda: gone([keeper, server]))
    await until(lambda: engine.state(MODEL) == "not-loaded")


async def test_child_exits_when_its_standard_input_closes() -> None:
    process = await asyncio.create_subprocess_exec(*llama_server.command("keep"), stdin=-1, stdout=-1, stderr=-1)
    [model] = [model for model in gguf.Library(None).scan()[0] if model.id == MODEL]
    request = {"path": str(model.path), "model_id": MODEL, "context_length": 512, "threads": 1, "api_key": "k" * 16}
    assert process.stdin and process.stdout
    process.stdin.write(json.dumps(request).encode() + b"\n")
    async with asyncio.timeout(SECONDS):
        url = json.loads(await process.stdout.readline())["url"]
        process.stdin.close()
        await process.wait()
    with pytest.raises(httpx.ConnectError):
        await ask(Endpoint(url, "k" * 16, MODEL))
