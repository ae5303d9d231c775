"""The second user of starvation.py, in a process of its own that needs only the standard library: `python bystander.py`.

Standard input is JSON: {"port", "lanes": [{"name", "method", "path", "headers", "body", "pause", "fresh"}]}. Each lane is a thread that
repeats its request on its own connection, or on a new one each time if it is `fresh`; `{n}` in a body is replaced by a new number each time.
For each response it prints a JSON array: lane, start and end (monotonic), the longest delay of this process in between, and the
status, 0 for a failed connection.
"""

import http.client
import itertools
import json
import sys
import threading
import time
from collections import deque
from typing import Any

BEAT_SECONDS = 0.002
TIMEOUT_SECONDS = 120.0
PRINTING = threading.Lock()
NUMBERS = itertools.count()


class Heartbeat(threading.Thread):
    """Measures how late this process wakes up, which is due to the computer and not to the service."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.delays: deque[tuple[float, float]] = deque(maxlen=100_000)  # end and length

    def run(self) -> None:
        while True:
            due = time.monotonic() + BEAT_SECONDS
            time.sleep(BEAT_SECONDS)
            now = time.monotonic()
            if now - due > BEAT_SECONDS:
                self.delays.append((now, now - due))

    def longest(self, start: float, end: float) -> float:
        recent = itertools.takewhile(lambda delay: delay[0] >= start, reversed(self.delays.copy()))
        return max((length for ended, length in recent if ended - length < end), default=0.0)


class Lane(threading.Thread):
    def __init__(self, port: int, lane: dict[str, Any], heartbeat: Heartbeat, delay: float) -> None:
        super().__init__(daemon=True)
        self.port, self.lane, self.heartbeat, self.delay = port, lane, heartbeat, delay
        self.connection: http.client.HTTPConnection | None = None

    def run(self) -> None:
        time.sleep(self.delay)
        while True:
            start = time.monotonic()
            status = self.send()
            end = time.monotonic()
            time.sleep(2 * BEAT_SECONDS)  # so that the heartbeat has recorded a delay at the end
            line = json.dumps([self.lane["name"], start, end, self.heartbeat.longest(start, end), status])
            with PRINTING:
                print(line, flush=True)
            time.sleep(self.lane["pause"])

    def send(self) -> int:
        """Return the status. Connect again, once, if the service has closed the idle connection."""
        if self.lane.get("fresh"):
            self.connection = None
        for _ in range(1 if self.connection is None else 2):
            try:
                return self.exchange()
            except (OSError, http.client.HTTPException):
                self.connection = None
        return 0

    def exchange(self) -> int:
        if self.connection is None:
            self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_SECONDS)
        lane = self.lane
        body = lane["body"] and lane["body"].replace("{n}", str(next(NUMBERS)))
        self.connection.request(lane["method"], lane["path"], body, lane["headers"])
        response = self.connection.getresponse()
        response.read()
        return response.status


def main() -> None:
    plan = json.load(sys.stdin)
    sys.setswitchinterval(0.0005)
    heartbeat = Heartbeat()
    heartbeat.start()
    lanes = plan["lanes"]
    # The lanes start one after the other, so that there is always a pending request.
    threads = [Lane(plan["port"], lane, heartbeat, n * lane["pause"] / len(lanes)) for n, lane in enumerate(lanes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
