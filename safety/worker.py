"""The program in a sandbox child. It runs one request after the other and ends when its standard input closes.

A request is (module, function, args, seconds). The replies are ("item", bytes) for each item, then ("end", b"") or
("failed", name of the exception's type).
"""

import importlib
import io
import os
import signal
import sys
from typing import Any

import msgspec

from . import limits


def main(memory: int, preload: list[str]) -> None:
    requests, replies = os.fdopen(0, "rb"), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a library prints is no reply
    limits.limit_memory(memory)
    for module in preload:
        importlib.import_module(module)
    _reply(replies, "end", b"")
    while head := requests.read(4):
        request = msgspec.msgpack.decode(requests.read(int.from_bytes(head, "big")))
        try:
            _run(replies, *request)
        except MemoryError:
            _reply(replies, "failed", b"MemoryError")
            return
        except Exception as error:
            _reply(replies, "failed", type(error).__name__.encode())
            return


def _run(replies: int, module: str, function: str, args: list[Any], seconds: float) -> None:
    limits.limit_processor_time(seconds)
    for item in getattr(importlib.import_module(module), function)(*args):
        limits.limit_processor_time(seconds)
        _reply(replies, "item", item)
    _reply(replies, "end", b"")


def _reply(replies: int, kind: str, value: bytes) -> None:
    frame = msgspec.msgpack.encode((kind, value))
    with io.FileIO(replies, "w", closefd=False) as out:
        view = memoryview(len(frame).to_bytes(4, "big") + frame)
        while view:
            view = view[out.write(view) :]


if __name__ == "__main__":
    for stop in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # sent to a whole terminal or group: the service decides when its children end
        signal.signal(stop, signal.SIG_IGN)
    main(int(sys.argv[1]), sys.argv[2:])
