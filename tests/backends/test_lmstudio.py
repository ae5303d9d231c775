"""LM Studio's own API for models, and its files and server on this computer."""

import json
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
from fireside.backends import lmstudio
from fireside.backends.engine import Engine
from fireside.backends.openai import Model, ModelDownload
from fireside.config import Config, load
from fireside.errors import ProviderFailed
from fireside.providers import ChatRequest, Providers

from ..live import Running, code, good
from ..upstream import MODEL, Upstream, status

QWEN = "qwen2.5-vl-7b-instruct"
needs_shell = pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for lms is a shell script")


def made(config: Config) -> Providers:
    return Providers(config, Engine(config))


@pytest.fixture
async def providers(upstream: Upstream, tmp_path: Path) -> AsyncIterator[Providers]:
    providers = made(load({"data_dir": str(tmp_path)}, {"FIRESIDE_LMSTUDIO_URL": upstream.url}))
    yield providers
    await providers.aclose()


# ---- models


async def test_models_have_states_and_do_not_include_embedding_models(providers: Providers, upstream: Upstream) -> None:
    assert await providers.get("lmstudio").models() == [
        Model(MODEL, "Llama 3.2 3B Instruct", "loaded", 4096, 131_072, False, True, "Q4_K_M", 2_019_377_696, []),
        Model(QWEN, "Qwen2.5 VL 7B Instruct", "not-loaded", None, 131_072, True, True, "Q4_K_M", 6_000_000_000, []),
    ]
    assert [request.path for request in upstream.requests] == ["/api/v1/models"]


async def test_models_of_lm_studio_before_0_4_have_names_only(providers: Providers, upstream: Upstream) -> None:
    upstream.without = ("/api/v1",)
    assert await providers.get("lmstudio").models() == [Model(MODEL, MODEL), Model(QWEN, QWEN)]
    upstream.without = ("/api/v1", "/v1/models")  # 200 for an unknown path is not an empty list
    with pytest.raises(ProviderFailed, match="Unexpected endpoint") as caught:
        await providers.get("lmstudio").models()
    assert caught.value.code == "PROVIDER_ERROR"


async def test_model_is_loaded_once_and_unloaded(providers: Providers, upstream: Upstream) -> None:
    server = providers.get("lmstudio")
    await server.load(QWEN, context_length=8192, flash_attention=False, offload_kv_cache_to_gpu=None)
    assert upstream.requests[1].json == {"model": QWEN, "context_length": 8192, "flash_attention": False}
    loaded = server.known(QWEN)
    assert loaded is not None and (loaded.state, loaded.context_length) == ("loaded", 8192)
    await server.unload(QWEN)
    unloaded = server.known(QWEN)
    assert unloaded is not None and unloaded.state == "not-loaded"
    upstream.requests.clear()
    await server.unload(QWEN)
    await server.load(MODEL)
    await server.load(MODEL, context_length=4096, flash_attention=True)
    assert {request.path for request in upstream.requests} == {"/api/v1/models"}, "it is loaded with these options"
    await server.load(MODEL, context_length=16384)
    assert upstream.models[0].instances == {MODEL: 16384}
    upstream.models[0].instances = {MODEL: 4096, f"{MODEL}:2": 8192, "mine": 512}
    await server.unload("mine")
    assert upstream.models[0].instances == {MODEL: 4096, f"{MODEL}:2": 8192}
    await server.unload(MODEL)
    assert upstream.models[0].instances == {}


async def test_failed_load_has_a_reason_and_the_models_are_listed_again(
    providers: Providers, upstream: Upstream
) -> None:
    with pytest.raises(ProviderFailed, match="Invalid model identifier") as caught:
        await providers.get("lmstudio").load("unknown")
    assert caught.value.code == "MODEL_NOT_FOUND"
    error = {"error": {"message": f'Failed to load model "{QWEN}". Error: Model loading aborted', "type": "x"}}
    upstream.enqueue(status(500, error), path="/api/v1/models/load")
    with pytest.raises(ProviderFailed) as caught:
        await providers.get("lmstudio").load(QWEN)
    assert caught.value.code == "MODEL_LOAD_FAILED"
    requests = upstream.count("/api/v1/models")
    await providers.get("lmstudio").models(max_age=60)
    assert upstream.count("/api/v1/models") == requests + 1


async def test_parallel_of_the_loaded_model_is_the_concurrency(providers: Providers, upstream: Upstream) -> None:
    upstream.models[0].parallel, upstream.models[0].variants = 2, (f"{MODEL}@q4_k_m", f"{MODEL}@q8_0")
    assert providers.get("lmstudio").concurrency() == 4
    [model, _] = await providers.get("lmstudio").models()
    assert (model.parallel, model.variants) == (2, [f"{MODEL}@q4_k_m", f"{MODEL}@q8_0"])
    assert providers.get("lmstudio").concurrency() == 2
    upstream.models[0].parallel = 2**52
    await providers.get("lmstudio").models()
    assert providers.get("lmstudio").concurrency() == 1000


async def test_ttl_of_the_settings_is_sent_with_each_question(upstream: Upstream, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(f'[[providers]]\nid = "lmstudio"\nurl = "{upstream.url}"\nttl = 300\n')
    providers = made(load({"data_dir": str(tmp_path)}, {}))
    async with aclosing(providers.get("lmstudio").chat(ChatRequest(MODEL, []))) as reads:
        assert [read async for read in reads]
    assert upstream.chats[0]["ttl"] == 300
    await providers.aclose()


async def test_download_is_started_and_followed(providers: Providers, upstream: Upstream) -> None:
    assert await providers.get("lmstudio").downloads() == []
    assert await providers.get("lmstudio").download(MODEL) == ModelDownload(MODEL, "already_downloaded")
    link = "https://huggingface.co/lmstudio-community/gpt-oss-20b-GGUF"
    begun = ModelDownload(link, "downloading", 500_000_000, 2_000_000_000, 7834)
    assert await providers.get("lmstudio").download(link, "Q8_0") == begun
    assert upstream.requests[-1].json == {"model": link, "quantization": "Q8_0"}
    done = {"job_id": "job_493c7c9ded", "status": "completed", "downloaded_bytes": 2_000_000_000}
    path = "/api/v1/models/download/status/job_493c7c9ded"
    upstream.enqueue(status(200, done), path=path)
    assert await providers.get("lmstudio").downloads() == [ModelDownload(link, "completed", 2_000_000_000)]
    upstream.enqueue(status(404, {"error": {"type": "job_not_found", "message": "No such job."}}), path=path)
    assert await providers.get("lmstudio").downloads() == []  # LM Studio was restarted
    assert upstream.count(path) == 2
    assert await providers.get("lmstudio").downloads() == []
    assert upstream.count(path) == 2


async def test_download_is_known_after_a_restart(upstream: Upstream, tmp_path: Path) -> None:
    done = status(200, {"job_id": "job_493c7c9ded", "status": "completed"})
    body = {"model": "qwen/qwen3-4b"}
    for damaged in (False, True):
        async with Running(tmp_path, lmstudio_url=upstream.url) as running:
            ann = await (running.login("ann") if damaged else running.first())
            good(await ann.post("/providers/lmstudio/models/download", json=body))
        if damaged:
            (tmp_path / "downloads.json").write_text('{"lmstudio": [7]}', "utf-8")
        upstream.enqueue(done, path="/api/v1/models/download/status/job_493c7c9ded")
        async with Running(tmp_path, lmstudio_url=upstream.url) as running:
            ann = await running.login("ann")
            found = good(await ann.get("/providers/lmstudio/downloads"))["downloads"]
            assert [one["model"] for one in found] == ([] if damaged else ["qwen/qwen3-4b"])


async def test_id_of_a_download_cannot_change_the_path(providers: Providers, upstream: Upstream) -> None:
    upstream.enqueue(status(200, {"job_id": "../unload?x=1", "status": "paused"}), path="/api/v1/models/download")
    await providers.get("lmstudio").download("evil")
    with pytest.raises(ProviderFailed):
        await providers.get("lmstudio").downloads()
    assert upstream.requests[-1].path == "/api/v1/models/download/status/..%2Funload%3Fx%3D1"


# ---- on this computer


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in which LM Studio keeps its files."""
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    (tmp_path / ".lmstudio" / ".internal").mkdir(parents=True)
    return tmp_path / ".lmstudio"


def set_port(home: Path, port: object, **more: object) -> None:
    (home / ".internal" / "http-server-config.json").write_text(json.dumps({"port": port, **more}))


def install_lms(home: Path, script: str) -> None:
    lms = home / "bin" / "lms"
    lms.parent.mkdir()
    lms.write_text(f"#!/bin/sh\n{script}\n")
    lms.chmod(0o700)


def test_server_is_reached_where_it_listens(home: Path) -> None:
    for port in (None, "1235", True, 0, 65536, -1, [1]):
        set_port(home, port)
        assert lmstudio.server_url() == "http://127.0.0.1:1234"
    interfaces: dict[object, str] = {"192.168.1.20": "192.168.1.20", "fd00::5": "[fd00::5]"}
    for elsewhere in ("0.0.0.0", "::", None, 7, "example.org/x", "fe80::1%eth0"):
        interfaces[elsewhere] = "127.0.0.1"
    for interface, host in interfaces.items():
        set_port(home, 41343, networkInterface=interface)
        assert lmstudio.server_url() == f"http://{host}:41343"


async def test_changed_port_is_used_without_a_restart_unless_the_settings_have_a_url(
    home: Path, providers: Providers, tmp_path: Path
) -> None:
    found = made(load({"data_dir": str(tmp_path)}, {}))
    for _ in range(2):
        with Upstream() as upstream:
            set_port(home, upstream.port)
            assert await found.get("lmstudio").models()
            assert upstream.requests
    await found.aclose()
    assert await providers.get("lmstudio").models(), "of the settings"


@needs_shell
async def test_administrator_can_start_lm_studio(home: Path, tmp_path: Path) -> None:
    set_port(home, 9)
    install_lms(home, f'echo "$@" > {tmp_path}/arguments')
    async with Running(tmp_path / "data") as running:
        ann = await running.first()
        entry = next(entry for entry in good(await ann.get("/providers")) if entry["provider_id"] == "lmstudio")
        assert (entry["online"], entry["can_start"]) == (False, True)
        assert good(await ann.post("/providers/lmstudio/start")) == {"message": "Server started"}
        assert (tmp_path / "arguments").read_text() == "server start\n"
        bob = await running.join(ann, "bob")
        assert code(await bob.post("/providers/lmstudio/start")) == (403, "FORBIDDEN")


@needs_shell
async def test_failed_start_has_a_reason(home: Path) -> None:
    with pytest.raises(ProviderFailed, match="was not found"):
        await lmstudio.start_server()
    install_lms(home, "echo no display; exit 3")
    with pytest.raises(ProviderFailed, match="did not start: no display"):
        await lmstudio.start_server()
