"""Other programs on the way to the same model server: `make bench PEERS=1` installs them into .venv/peers, 8 GB, and adds their rows.

They are asked through their OpenAI-compatible API, and save nothing. The load client checks their streams like ours.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from . import rig
from .rig import HERE, Fireside, Http, Load, Process
from .rows import Bench, Row

FOLDER = HERE.parent / ".venv" / "peers"
START_SECONDS = 600.0  # Open WebUI needs 15 s on an idle machine
CUT_SECONDS = 2.0  # at the beginning and the end of a load, which a steady state leaves out
PACKAGES = {
    "relay": ["aiohttp", "starlette", "uvicorn", "httptools"],
    "litellm": ["litellm[proxy]"],
    "open-webui": ["open-webui"],
}


def python(peer: str) -> Path:
    """Return the Python of a peer's environment, which is made first. Raises CalledProcessError."""
    folder = FOLDER / peer
    if not (folder / "bin" / "python").exists():
        uv = Path(sys.executable).with_name("uv")
        print(f"installing {peer}", flush=True)
        try:
            subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, folder], check=True)
            subprocess.run([uv, "pip", "install", "--quiet", "--python", folder, *PACKAGES[peer]], check=True)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    return folder / "bin" / "python"


class Peer(Process):
    """A program that prints no port: it is told one, and asked until it answers. `headers` are those of its chat requests."""

    path = "/v1/chat/completions"
    headers: dict[str, str]

    def __init__(self, *command: object, port: int, health: str, environ: dict[str, str]) -> None:
        self.headers = {}
        self.port, self.url = port, f"http://127.0.0.1:{port}"
        arguments, environment = [str(part) for part in command], os.environ | environ
        self.started = time.perf_counter()
        self.popen = subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not self._answers(health):
            if self.popen.poll() is not None or time.perf_counter() - self.started > START_SECONDS:
                raise RuntimeError(f"{command[0]} did not start")
            time.sleep(0.1)
        self.start_seconds = time.perf_counter() - self.started

    def _answers(self, path: str) -> bool:
        try:
            return Http(self.port).ask("GET", path).status == 200
        except (OSError, AssertionError):
            return False

    def stop(self) -> str:
        self.popen.terminate()
        try:
            self.popen.wait(rig.STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        return ""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def litellm(bench: Bench) -> Peer:
    """Return LiteLLM's proxy, without a database."""
    config = bench.folder / "litellm.yaml"
    server = {"model": "openai/*", "api_base": f"{bench.upstream.url}/v1", "api_key": "none"}
    config.write_text(json.dumps({"model_list": [{"model_name": "*", "litellm_params": server}]}), "utf-8")
    port = free_port()
    command = (python("litellm").with_name("litellm"), "--config", config, "--host", "127.0.0.1", "--port", port)
    key = f"sk-{secrets.token_hex(16)}"  # without one it does not start
    environ = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_MASTER_KEY": key}
    peer = Peer(*command, port=port, health="/health/liveliness", environ=environ)
    peer.headers = {"Authorization": f"Bearer {key}"}
    return peer


def open_webui(bench: Bench) -> Peer:
    """Return Open WebUI, and sign its first user up. Its API passes a chat on and saves nothing."""
    port, data = free_port(), bench.folder / "open-webui"
    models = [rig.script(tokens, rate) for tokens, rate in ((5, 0), (bench.size.seconds * 50, 50))]
    environ = {
        "DATA_DIR": str(data),
        "WEBUI_SECRET_KEY": "bench",
        "ENABLE_OLLAMA_API": "False",
        "OPENAI_API_BASE_URL": f"{bench.upstream.url}/v1",
        "OPENAI_API_KEY": "none",
        "OPENAI_API_CONFIGS": json.dumps({"0": {"enable": True, "model_ids": models}}),
        "ENABLE_VERSION_UPDATE_CHECK": "False",
        "OFFLINE_MODE": "True",
        "HF_HUB_OFFLINE": "1",
        "RAG_EMBEDDING_ENGINE": "openai",
    }
    command = (python("open-webui").with_name("open-webui"), "serve", "--host", "127.0.0.1", "--port", port)
    peer = Peer(*command, port=port, health="/health", environ=environ)
    person = {"name": "ann", "email": "ann@example.org", "password": rig.PASSWORD}
    token = Http(port).post("/api/v1/auths/signup", person)["token"]
    peer.path, peer.headers = "/api/chat/completions", {"Authorization": f"Bearer {token}"}
    Http(port, peer.headers).get("/api/models")  # it knows a model only after it has listed them
    return peer


def peers(bench: Bench) -> Iterator[Row]:
    """Measure the rows that peers have, each beside Fireside in the same run."""
    yield from _steady(bench)
    for name, start in (("LiteLLM", litellm), ("Open WebUI", open_webui)):
        try:
            peer = start(bench)
        except (RuntimeError, OSError, AssertionError, subprocess.CalledProcessError) as error:
            yield Row(f"{name}: cannot be measured here", str(error)[:100])
            continue
        with peer, bench.fireside() as fireside:
            yield Row(f"{name}: start, s", "", f"{peer.start_seconds:.1f}")
            yield from _beside(bench, name, peer, fireside)
            yield Row(f"{name}: memory after these rows, MB", f"{fireside.memory():.0f}", f"{peer.memory():.0f}")


def _beside(bench: Bench, name: str, peer: Peer, fireside: Fireside) -> Iterator[Row]:
    few, tokens, count = bench.size.streams[0], bench.size.seconds * 50, bench.size.firsts

    def load_of_peer(streams: int, times: int, tokens: int, rate: float) -> Load:
        return rig.direct_load(peer.port, streams, tokens, rate, times, peer.path, peer.headers)

    try:
        bench.run(load_of_peer(1, 3, 5, 0))
        ours = rig.successive_load(fireside, count, 5)
        theirs = 1000 * bench.first_token(load_of_peer(1, count, 5, 0))
        mine = 1000 * bench.first_token(ours)
        yield Row(f"{name}: first token, p50, ms", f"{mine:.1f}", f"{theirs:.1f}", f"{mine / theirs:.2f}")

        before = peer.cpu()
        outcome = bench.run(load_of_peer(few, 1, tokens, 50))
        theirs = (peer.cpu() - before) / outcome.tokens * 1e6
        mine_outcome, spent = bench.stream_in(fireside, [fireside.conversation() for _ in range(few)], tokens, 50)
        mine = spent / mine_outcome.tokens * 1e6
    except AssertionError as error:
        yield Row(f"{name}: a stream was not complete", "", str(error)[:100])
        return
    what = f"{name}: {few} x 50 tokens/s"
    yield Row(f"{what}: CPU a token, us", f"{mine:.1f}", f"{theirs:.1f}", f"{mine / theirs:.2f}")
    shares = [f"{100 * one.on_time / one.paced:.1f} %" for one in (mine_outcome, outcome)]
    yield Row(f"{what}: tokens on time (100 ms)", shares[0], shares[1])


def _steady(bench: Bench) -> Iterator[Row]:
    """Compare the CPU a token with the lightest relay, without the beginning and the end of the load."""
    few, seconds = bench.size.streams[0], max(bench.size.seconds, 3 * CUT_SECONDS)
    tokens = int(seconds * 50)
    try:
        relay = Process(python("relay"), HERE / "relay_aiohttp.py", bench.upstream.url)
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        yield Row("the relay over aiohttp cannot be measured here", str(error)[:100])
        return

    def spent(process: Process, load: Load) -> float:
        work = threading.Thread(target=bench.run, args=(load,))
        work.start()
        time.sleep(CUT_SECONDS)
        before, began = process.cpu(), time.perf_counter()
        time.sleep(seconds - 2 * CUT_SECONDS)
        used, lasted = process.cpu() - before, time.perf_counter() - began
        work.join()
        return used / (few * 50 * lasted) * 1e6

    with relay, bench.fireside() as fireside:
        pair = bench.turns(
            lambda: spent(
                fireside, rig.fireside_load(fireside, [fireside.conversation() for _ in range(few)], tokens, 50)
            ),
            lambda: spent(relay, rig.direct_load(relay.port, few, tokens, 50)),
        )
        yield pair.row(f"{few} x 50 tokens/s, steady: CPU a token against a relay over aiohttp, us", "{:.1f}", 1)
