"""A process that has imported everything and forks a `fireside` for each start: `python -m tests.nursery`, run by processes.py.

Importing takes 0.6 s of processor time, most of a start. Standard input is a socket. For each start it receives a byte with four
descriptors: the three standard streams, and a socket for this start. From that socket the child reads its arguments, environment and
folder as JSON; the child's parent writes the process id to it, and later the exit code.
"""

import gc
import json
import os
import signal
import socket
import sys

import fireside.__main__
import fireside.cli.chat
import fireside.cli.commands
import fireside.cli.doctor
import fireside.cli.serve
import fireside.cli.tokens
import fireside.server
import uvicorn.lifespan.on  # noqa: F401 (uvicorn imports it when it starts)


def main() -> int:
    """Return 0 when the other end of the socket is closed, and in each child the exit code of the command."""
    if os.fork():
        return 0  # tells that it is ready; and the test process, which counts its children, does not get one more
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is for the children
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # reap the parents of the children automatically
    gc.freeze()
    requests = socket.socket(fileno=0)
    while descriptors := socket.recv_fds(requests, 1, 4)[1]:
        if os.fork() == 0:
            requests.detach()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            *streams, channel = descriptors
            return _run(streams, socket.socket(fileno=channel))
        for descriptor in descriptors:
            os.close(descriptor)
    return 0


def _run(streams: list[int], channel: socket.socket) -> int:
    """Fork the process of the command and run it there. The parent stays to wait for it."""
    with channel:
        with channel.makefile() as file:
            request = json.load(file)
        if pid := os.fork():
            _report(pid, streams, channel)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115 (as Python does at its start)
    sys.stderr = open(2, "w", 1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.chdir(request["folder"])
    os.umask(0)
    os.environ.clear()
    os.environ.update(request["environ"])
    return fireside.__main__.main(request["arguments"])


def _report(pid: int, streams: list[int], channel: socket.socket) -> None:
    """Send the process id and the exit code, then end."""
    try:
        for descriptor in (0, 1, 2, *streams):  # otherwise readers of the streams would wait for this process
            os.close(descriptor)
        channel.sendall(pid.to_bytes(4, "little"))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        channel.sendall(code.to_bytes(4, "little", signed=True))
    finally:
        os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
