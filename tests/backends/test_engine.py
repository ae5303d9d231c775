"""The engine's child, with a real llama.cpp and a small model: started, shared, replaced, ended, never left behind.

What is said of processes is looked up in /proc, so those tests run on Linux only.
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
from collections.abc import AsyncIterator, Callable, Iterator
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
SECONDS = 20.0  # how long a test waits for what must happen, before it fails

PROC = Path("/proc/self/stat").exists()
with_proc = pytest.mark.skipif(not PROC, reason="needs /proc")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without LM Studio, and in the environment a secret that is none of the child's business."""
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
    """An engine that must leave neither a process nor a task behind."""
    engine = Engine(Config(models_dir=folder, engine_threads=1, **{"engine_context": 512, **settings}))
    try:
        yield engine
    finally:
        await engine.aclose()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert children() == []


def add(folder: Path, name: str) -> None:
    """Another model: the same weights in a file of their own."""
    [source] = [model.path for model in gguf.Library(None).scan()[0] if model.id == MODEL]
    try:
        os.link(source, folder / name)
    except OSError:
        shutil.copy(source, folder / name)


async def until(look: Callable[[], Any]) -> Any:
    async with asyncio.timeout(SECONDS):
        while not (seen := look()):  # noqa: ASYNC110 (nobody sets an event for what is seen in /proc)
            await asyncio.sleep(0.005)
    return seen


def children(of: int = os.getpid()) -> list[int]:
    """The processes below this one, ended ones that nobody has waited for among them. Children before grandchildren."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    below = [pid for pid, parent in parents.items() if parent == of]
    return below + [pid for child in below for pid in children(child)]


def server_of(pids: list[int]) -> int | None:
    """The process that runs llama.cpp, once there is one."""
    return next((pid for pid in pids if command(pid).endswith("\0serve\0")), None)


def command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def environment(pid: int) -> str:
    return Path(f"/proc/{pid}/environ").read_text()


def reads_model(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return ".gguf" in Path(f"/proc/{pid}/maps").read_text()
    return False


def gone(pids: list[int]) -> bool:
    """Whether none of them runs. Those that have lost their parent may wait for process 1 to take notice of their end."""
    return all(state(pid) in "Z" for pid in pids)


def state(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


async def frozen_server() -> int:
    """Stops the server before it can have loaded the model: a stand-in for a model that takes minutes."""
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


async def test_model_is_started_on_demand_and_answers(engine: Engine) -> None:
    assert (engine.state(MODEL), engine.context_length) == ("not-loaded", None)
    async with engine.use(MODEL) as endpoint:
        assert (engine.state(MODEL), engine.context_length) == ("loaded", 512)
        assert (endpoint.model_id, endpoint.context_length) == (MODEL, 512)
        assert endpoint.url.startswith("http://127.0.0.1:")
        assert "Tokyo" in await answer(endpoint)
        assert [slot["n_ctx"] for slot in (await ask(endpoint, "/slots")).json()] == [512]
    await engine.aclose()
    assert engine.state(MODEL) == "not-loaded"


async def test_nobody_without_the_key_of_this_start_is_answered(engine: Engine) -> None:
    async with engine.use(MODEL) as first:
        for path in ("/v1/models", "/slots", "/props"):
            assert (await ask(first, path, key="guessed")).status_code == 401
        assert (await ask(first, "/v1/chat/completions", key="guessed", messages=[])).status_code == 401
    assert first.api_key not in repr(first)
    await engine.unload()
    async with engine.use(MODEL) as second:
        assert second.api_key != first.api_key


@with_proc
async def test_secrets_are_neither_on_the_command_line_nor_in_the_environment(engine: Engine) -> None:
    async with engine.use(MODEL) as endpoint:
        pids = children()
        assert len(pids) == 2
        for pid in pids:
            shown = command(pid) + environment(pid)
            assert endpoint.api_key not in shown
            assert "not-for-the-child" not in shown


async def test_users_of_one_model_share_its_child(engine: Engine) -> None:
    async def use() -> Endpoint:
        async with engine.use(MODEL) as endpoint:
            assert "Tokyo" in await answer(endpoint)
        return endpoint

    first, second, third = await asyncio.gather(use(), use(), use())
    assert first == second == third


async def test_another_model_waits_its_turn_and_then_replaces_the_first(engine: Engine, folder: Path) -> None:
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


async def test_child_ends_when_nobody_has_used_it_for_a_while(folder: Path) -> None:
    idle = 0.5
    async with opened(folder, engine_idle_seconds=idle) as engine:
        async with engine.use(MODEL) as endpoint:
            started = time.monotonic()
            await answer(endpoint)
            await until(lambda: time.monotonic() - started > idle)  # who is used may be used for longer
            assert engine.state(MODEL) == "loaded"
        async with engine.use(MODEL) as again:
            assert again == endpoint
        await until(lambda: engine.state(MODEL) == "not-loaded")
        await until(lambda: children() == [])


async def test_load_makes_room_for_as_much_as_the_model_can_have(engine: Engine) -> None:
    await engine.load(MODEL, 1024)
    assert (engine.state(MODEL), engine.context_length) == ("loaded", 1024)
    async with engine.use(MODEL) as endpoint:
        assert endpoint.context_length == 1024
    await engine.load(MODEL, 1_000_000)
    assert engine.context_length == 8192
    async with engine.use(MODEL) as endpoint:
        assert [slot["n_ctx"] for slot in (await ask(endpoint, "/slots")).json()] == [8192]


async def test_unload_ends_the_child_but_not_under_somebodys_hands(engine: Engine) -> None:
    await engine.unload()
    async with engine.use(MODEL) as endpoint:
        with pytest.raises(ProviderFailed) as refused:
            await engine.unload()
        assert refused.value.code == "PROVIDER_BUSY"
        assert (await ask(endpoint)).status_code == 200
    await engine.unload()
    assert engine.state(MODEL) == "not-loaded"
    assert children() == []


async def test_skipped_files_are_told_with_their_reasons(engine: Engine, folder: Path) -> None:
    (folder / "noise.gguf").write_bytes(b"noise")
    assert [(skip.path.name, skip.reason) for skip in await engine.skipped()] == [("noise.gguf", gguf.NOT_GGUF)]
    assert MODEL in [model.id for model in await engine.models()]


# ---- what goes wrong


async def test_unknown_model_is_not_found(engine: Engine) -> None:
    with pytest.raises(ProviderFailed) as failed:
        await engine.load("no-such-model")
    assert failed.value.code == "MODEL_NOT_FOUND"


async def test_model_that_cannot_be_offered_is_not_found_for_its_reason(engine: Engine, folder: Path) -> None:
    mlx = folder / "mlx-community" / "Llama-3.2-1B-4bit"
    mlx.mkdir(parents=True)
    (mlx / "config.json").write_text("{}")
    (mlx / "model.safetensors").write_bytes(b"")
    (folder / "Noise-Q4_K_M.gguf").write_bytes(b"noise")
    for name, reason in (
        ("mlx-community/llama-3.2-1b-4bit", gguf.MLX),
        ("llama-3.2-1b-4bit", gguf.MLX),
        ("noise", gguf.NOT_GGUF),
        ("noise-q4_k_m", gguf.NOT_GGUF),
    ):
        with pytest.raises(ProviderFailed) as failed:
            await engine.load(name)
        assert (failed.value.code, failed.value.message) == ("MODEL_NOT_FOUND", reason)


async def test_model_that_cannot_be_loaded_is_one_clear_error_and_the_next_try_starts_anew(
    engine: Engine, folder: Path
) -> None:
    key, value = b"general.architecture", b"llama"
    pair = struct.pack("<Q", len(key)) + key + struct.pack("<IQ", 8, len(value)) + value
    tensor = struct.pack("<Q", 1) + b"t" + struct.pack("<IQIQ", 1, 8, 0, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + pair + tensor
    (folder / "broken.gguf").write_bytes(head + bytes(-len(head) % 32) + os.urandom(32))
    for _ in range(2):
        with pytest.raises(ProviderFailed) as failed:
            await engine.load("broken")
        assert failed.value.code == "MODEL_LOAD_FAILED"
        # llama.cpp writes its log from a thread of its own, and on a busy machine may end before it has.
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
async def test_child_that_was_killed_is_noticed_and_started_anew(engine: Engine) -> None:
    await engine.load(MODEL)
    os.kill(server_of(children()) or 0, signal.SIGKILL)
    await until(lambda: engine.state(MODEL) == "not-loaded")
    async with engine.use(MODEL) as endpoint:
        assert "Tokyo" in await answer(endpoint)


@with_proc
async def test_server_that_was_killed_just_now_is_not_asked(engine: Engine) -> None:
    """An answer is broken off by its death, and the next question comes before its keeper tells of it."""
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
async def test_server_that_is_killed_while_it_loads_is_a_failed_load(engine: Engine) -> None:
    load = asyncio.create_task(engine.load(MODEL))
    os.kill(await frozen_server(), signal.SIGKILL)
    with pytest.raises(ProviderFailed) as failed:
        await load
    assert failed.value.code == "MODEL_LOAD_FAILED"
    assert "memory ran out" in failed.value.message


@with_proc
async def test_cancelled_load_leaves_nothing(engine: Engine) -> None:
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
async def test_cancelled_load_goes_on_for_another_who_wants_the_model(engine: Engine) -> None:
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
async def test_closing_ends_a_load_and_refuses_all_others(engine: Engine) -> None:
    loads = [asyncio.create_task(engine.load(MODEL)) for _ in range(2)]
    await frozen_server()
    await engine.aclose()
    assert children() == []
    for load in (*loads, asyncio.create_task(engine.load(MODEL))):
        with pytest.raises(ProviderFailed) as failed:
            await load
        assert failed.value.code == "PROVIDER_UNREACHABLE"


# ---- how it ends

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


@pytest.fixture
def parent() -> Iterator[subprocess.Popen[bytes]]:
    """Another program that has an engine, and lets it tell a story without an end."""
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


@with_proc
async def test_nothing_is_left_of_a_parent_that_is_killed_in_the_middle_of_a_load(
    parent: subprocess.Popen[bytes],
) -> None:
    pid = await until(lambda: server_of(children(parent.pid)))
    await until(lambda: reads_model(pid))
    os.kill(pid, signal.SIGSTOP)  # it cannot notice anything, as while it loads
    left = children(parent.pid)
    assert len(left) == 2
    parent.kill()
    await until(lambda: gone(left))


@with_proc
async def test_nothing_is_left_of_a_parent_that_is_killed_in_the_middle_of_an_answer(
    parent: subprocess.Popen[bytes],
) -> None:
    assert parent.stdout
    async with asyncio.timeout(SECONDS):
        await asyncio.to_thread(parent.stdout.readline)
    left = children(parent.pid)
    assert len(left) == 2
    parent.kill()
    await until(lambda: gone(left))


@with_proc
async def test_server_ends_when_its_keeper_is_killed(engine: Engine) -> None:
    await engine.load(MODEL)
    keeper, server = children()
    os.kill(keeper, signal.SIGKILL)
    await until(lambda: gone([keeper, server]))
    await until(lambda: engine.state(MODEL) == "not-loaded")


@with_proc
async def test_interrupt_in_the_terminal_is_the_parents_to_handle(engine: Engine) -> None:
    async with engine.use(MODEL) as endpoint:
        for pid in children():
            assert os.getsid(pid) != os.getsid(0)
            os.kill(pid, signal.SIGINT)
            os.kill(pid, signal.SIGTERM)
        assert "Tokyo" in await answer(endpoint)


async def test_child_alone_ends_when_its_input_closes() -> None:
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
        await ask(Endpoint(url, "k" * 16, MODEL, 512))
