"""A process that has imported everything and then does nothing but fork: python -m tests.nursery, by processes.start.

Its standard input is a socket. Over it comes a byte for each start, and with it four descriptors: the three standard streams, and a
socket of this start's own. From that the order is read, as JSON to its end; into it go the process id, and at the end the exit code.
"""

import gc
import json
import os
import signal
import socket
import sys

import fireside.__main__
import fireside.cli.commands
import fireside.server
import uvicorn.lifespan.on  # noqa: F401 (uvicorn imports it when it starts)


def nurse() -> int:
    """Returns 0 when nobody holds the other end of the socket any more; and in each child, what the command returned."""
    if os.fork():
        return 0  # it is ready, and nobody's child: some tests count theirs
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: it is for the children
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers: they vanish when they end
    gc.freeze()
    orders = socket.socket(fileno=0)
    while descriptors := socket.recv_fds(orders, 1, 4)[1]:
        if os.fork() == 0:
            orders.detach()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            *streams, line = descriptors
            return _child(streams, socket.socket(fileno=line))
        for descriptor in descriptors:
            os.close(descriptor)
    return 0


def _child(streams: list[int], line: socket.socket) -> int:
    """Returns only in the process that runs the command. It has the other for its parent, who waits for it and tells its end."""
    with line:
        with line.makefile() as file:
            order = json.load(file)
        if pid := os.fork():
            _keep(pid, streams, line)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115 (as Python does at its start)
    sys.stderr = open(2, "w", 1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.chdir(order["folder"])
    os.umask(0)
    os.environ.clear()
    os.environ.update(order["environ"])
    return fireside.__main__.main(order["arguments"])


def _keep(pid: int, streams: list[int], line: socket.socket) -> None:
    try:
        for descriptor in (0, 1, 2, *streams):  # whoever reads to the end would wait for us
            os.close(descriptor)
        line.sendall(pid.to_bytes(4, "little"))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        line.sendall(code.to_bytes(4, "little", signed=True))
    finally:
        os._exit(0)


if __name__ == "__main__":
    sys.exit(nurse())
