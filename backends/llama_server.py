"""The program in the engine's child process: llama.cpp's own HTTP server, from the PyPI package xllamacpp.

It is two processes, so that nothing is left however Fireside ends. While xllamacpp loads a model, for minutes if that
is large, it holds the GIL, and no thread beside it could notice anything. So the keeper stands between: it waits for
its standard input to close, and kills the server then.

    keep    what engine.py starts: starts `serve`, hands it the request, kills it at the end of input
    serve   loads the model and answers

The request is one line of JSON on standard input, so that neither the command line nor the environment shows the key:
{"path", "model_id", "context_length", "threads", "api_key"}; threads 0 means as many as there are physical cores. The
answer is one line of JSON on standard output, once the model is loaded: {"url"}. What goes wrong is on standard error.
Nothing is imported here that takes time or memory: there is one more interpreter for each child.
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

PROMPT_CACHE = 1024  # MiB of earlier conversations' KV caches; llama.cpp's default is eight times that
PING_SECONDS = 5  # between the comments that llama.cpp sends while it works on a long prompt

_CRASHES = {
    -signal.SIGILL: "this processor lacks instructions that llama.cpp needs (AVX2)",
    0xC000001D: "this processor lacks instructions that llama.cpp needs (AVX2)",  # the same on Windows
    -9: "it was killed, most likely because the memory ran out",  # SIGKILL, which Windows has no name for
}


def command(part: str) -> list[str]:
    # -P: nothing is imported from the folder that Fireside happens to be started in.
    return [sys.executable, "-P", "-m", "fireside.backends.llama_server", part]


def keep() -> NoReturn:
    request = _request()
    server = subprocess.Popen(command("serve"), stdin=subprocess.PIPE)
    _at_end_of_input(server.kill)
    with contextlib.suppress(OSError):  # it has ended already
        assert server.stdin
        server.stdin.write(request)
        server.stdin.flush()
    code = server.wait()
    if code in _CRASHES:
        with contextlib.suppress(OSError):  # nobody listens any more
            print(_CRASHES[code], file=sys.stderr, flush=True)
    os._exit(code != 0)


def serve() -> NoReturn:
    answer = os.dup(1)
    os.dup2(2, 1)  # whatever llama.cpp prints is no answer
    request = json.loads(_request())
    # For the case that the keeper itself is killed. Works as soon as the model is loaded.
    _at_end_of_input(lambda: os._exit(0))
    llama: Any = importlib.import_module("xllamacpp")
    server = llama.Server(_parameters(llama, request))
    os.write(answer, json.dumps({"url": server.listening_address}).encode() + b"\n")
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
    p.n_parallel = 1  # a second one would halve the context
    p.cache_ram_mib = PROMPT_CACHE
    p.sse_ping_interval = PING_SECONDS
    if request["threads"]:
        p.cpuparams.n_threads = p.cpuparams_batch.n_threads = request["threads"]
    # Unset, the threads are as many as there are physical cores (the fast ones, where they differ), and as many layers
    # go to the GPU as fit. Fitting costs a second look at the model, so it is left out where there is none.
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


def _at_end_of_input(then: Callable[[], object]) -> None:
    def wait() -> None:
        while os.read(0, 4096):
            pass
        then()

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    # Fireside decides when its child ends, also where all of a group are told to.
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.SIG_IGN)
    keep() if sys.argv[1] == "keep" else serve()
