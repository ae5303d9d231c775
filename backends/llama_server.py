"""The program in the engine's child process: llama.cpp's own HTTP server, from the PyPI package xllamacpp.

    keep    what engine.py starts: starts `serve`, passes the request on, kills it when standard input closes
    serve   loads the model and answers

Two processes, because xllamacpp holds the GIL while it loads a model, for minutes if the model is large: no thread of
`serve` could notice that standard input has closed.

The request is one line of JSON on standard input, so that neither the command line nor the environment shows the key:
{"path", "model_id", "context_length", "threads", "api_key"}; 0 threads: as many as physical cores. Once the model is
loaded, standard output has one line of JSON: {"url"}. Errors go to standard error.
"""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

PROMPT_CACHE_MIB = 1024  # KV caches of earlier conversations; llama.cpp's default is 8 times as much
PING_SECONDS = 5  # between the comments that llama.cpp sends while it processes a long prompt

_CRASHES = {
    -signal.SIGILL: "this processor lacks instructions that llama.cpp needs (AVX2)",
    0xC000001D: "this processor lacks instructions that llama.cpp needs (AVX2)",  # the same on Windows
    -9: "it was killed, most likely because the memory ran out",  # SIGKILL, which signal lacks on Windows
}


def command(part: str) -> list[str]:
    # -P: import nothing from the current folder.
    return [sys.executable, "-P", "-m", "fireside.backends.llama_server", part]


def keep() -> NoReturn:
    request = _request()
    server = subprocess.Popen(command("serve"), stdin=subprocess.PIPE)
    _when_input_closes(server.kill)
    with contextlib.suppress(OSError):  # it has exited
        assert server.stdin
        server.stdin.write(request)
        server.stdin.flush()
    code = server.wait()
    if code in _CRASHES:
        with contextlib.suppress(OSError):  # Fireside has exited
            print(_CRASHES[code], file=sys.stderr, flush=True)
    os._exit(code != 0)


def serve() -> NoReturn:
    output = os.dup(1)
    os.dup2(2, 1)  # llama.cpp prints to standard output
    request = json.loads(_request())
    # In case the keeper is killed. Works once the model is loaded.
    _when_input_closes(lambda: os._exit(0))
    llama: Any = importlib.import_module("xllamacpp")
    server = llama.Server(_parameters(llama, request))
    os.write(output, json.dumps({"url": server.listening_address}).encode() + b"\n")
    while True:
        threading.Event().wait()


def _parameters(llama: Any, request: dict[str, Any]) -> Any:
    p = llama.CommonParams()
    p.model.path = request["path"]
    p.model_alias = {request["model_id"]}
    p.hostnames = ["127.0.0.1"]
    p.port = 0
    p.api_keys = [request["api_key"]]
    p.n_ctx = request["context_length"]
    p.n_parallel = 1  # two would halve the context of each
    p.cache_ram_mib = PROMPT_CACHE_MIB
    p.sse_ping_interval = PING_SECONDS
    if request["threads"]:
        p.cpuparams.n_threads = p.cpuparams_batch.n_threads = request["threads"]
    # By default llama.cpp uses a thread for each fast physical core, and puts as many layers on the GPU as fit. Fitting reads
    # the model twice, so it is skipped without a GPU.
    kinds = llama.ggml_backend_dev_type
    gpus = (kinds.GGML_BACKEND_DEVICE_TYPE_GPU, kinds.GGML_BACKEND_DEVICE_TYPE_IGPU)
    p.fit_params = any(device["type"] in gpus for device in llama.get_device_info())
    p.endpoint_slots = True
    p.endpoint_metrics = p.ui = p.warmup = False
    p.offline = True
    p.verbosity = 1  # errors only
    return p


def _request() -> bytes:
    with open(0, "rb", buffering=0, closefd=False) as stdin:
        return stdin.readline()


def _when_input_closes(then: Callable[[], object]) -> None:
    def wait() -> None:
        while os.read(0, 4096):
            pass
        then()

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    # Only Fireside stops its child, also when the whole process group gets a signal.
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.SIG_IGN)
    keep() if sys.argv[1] == "keep" else serve()
