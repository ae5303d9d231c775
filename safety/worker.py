"""The program in a sandbox child. It runs one request after the other and ends when its standard input closes.

A request is (module, function, args, seconds). The replies are ("item", bytes) for each item, then ("end", b"") or
("failed", name of the exception's type). After "failed" the service kills the child.
"""

import importlib
import os
import queue
import signal
import sys
import threading
from typing import Any, BinaryIO

import msgspec

from . import limits


def main(memory: int, sealed: bool, preload: list[str]) -> None:
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a library that prints must not write into the replies
    limits.limit_memory(memory)
    for module in preload:
        importlib.import_module(module)
    if sealed:
        limits.lower_priority()
        limits.forbid_files()
    requests: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(requests,), daemon=True).start()
    if sealed:
        limits.forbid_processes()  # and on Linux further threads
    _reply(replies, "end")
    while True:
        try:
            _run(replies, *requests.get())
        except Exception as error:
            _reply(replies, "failed", type(error).__name__.encode())


def _read(requests: "queue.SimpleQueue[tuple[Any, ...]]") -> None:
    """Read requests in a thread, which ends the process in the middle of its work when the service has ended."""
    try:
        with os.fdopen(0, "rb") as pipe:
            while head := pipe.read(4):
                requests.put(msgspec.msgpack.decode(pipe.read(int.from_bytes(head, "big"))))
    finally:  # also after a DecodeError: a service that was killed while it sent a request has sent only a part of it
        os._exit(0)


def _run(replies: BinaryIO, module: str, function: str, args: list[Any], seconds: float) -> None:
    limits.limit_processor_time(seconds)
    for item in getattr(importlib.import_module(module), function)(*args):
        limits.limit_processor_time(seconds)
        _reply(replies, "item", item)
    _reply(replies, "end")


def _reply(replies: BinaryIO, kind: str, value: bytes = b"") -> None:
    frame = msgspec.msgpack.encode((kind, value))
    replies.write(len(frame).to_bytes(4, "big") + frame)
    replies.flush()


if __name__ == "__main__":
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # sent to a whole terminal or group: the service decides when its children end
        signal.signal(number, signal.SIG_IGN)
    main(int(sys.argv[1]), sys.argv[2] == "1", sys.argv[3:])
