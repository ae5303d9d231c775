"""The second user of tests/trust/starvation.py: `python bystander.py`, a process of its own that needs nothing but the standard library.

Standard input is a JSON plan: {"port", "lanes": [{"name", "method", "path", "headers", "body", "pause", "fresh"}]}. Each lane is a
thread with a connection of its own that repeats its request; `{n}` in a body becomes another number each time, and `fresh` opens a new
connection each time. For each answer a line of JSON is printed: lane, start and end (monotonic), the longest delay of this
process in between, and the status, 0 for a connection that failed.
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
ANSWER_SECONDS = 120.0  # after which an answer is given up
PRINTING = threading.Lock()
NUMBERS = itertools.count()


class Heartbeat(threading.Thread):
    """Measures how late this process is woken up: what the computer, and not the service, is to blame for."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.delays: deque[tuple[float, float]] = deque(maxlen=100_000)  # when a beat came, and how late

    def run(self) -> None:
        while True:
            due = time.monotonic() + BEAT_SECONDS
            time.sleep(BEAT_SECONDS)
            now = time.monotonic()
            if now - due > BEAT_SECONDS:
                self.delays.append((now, now - due))

    def longest(self, start: float, end: float) -> float:
        late = 0.0
        for came, delay in reversed(self.delays.copy()):
            if came < start:
                break
            if came - delay < end:
                late = max(late, delay)
        return late


class Lane(threading.Thread):
    def __init__(self, port: int, lane: dict[str, Any], heartbeat: Heartbeat, wait: float) -> None:
        super().__init__(daemon=True)
        self.port, self.lane, self.heartbeat, self.wait = port, lane, heartbeat, wait
        self.connection: http.client.HTTPConnection | None = None

    def run(self) -> None:
        time.sleep(self.wait)
        while True:
            start = time.monotonic()
            status = self.ask()
            end = time.monotonic()
            time.sleep(2 * BEAT_SECONDS)  # so that a delay at the end has been noticed
            line = json.dumps([self.lane["name"], start, end, self.heartbeat.longest(start, end), status])
            with PRINTING:
                print(line, flush=True)
            time.sleep(self.lane["pause"])

    def ask(self) -> int:
        """The status. A kept connection that the service has closed in the meantime is replaced once."""
        if self.lane.get("fresh"):
            self.connection = None
        kept = self.connection is not None
        try:
            return self.send()
        except (OSError, http.client.HTTPException):
            self.connection = None
            if not kept:
                return 0
        try:
            return self.send()
        except (OSError, http.client.HTTPException):
            self.connection = None
            return 0

    def send(self) -> int:
        if self.connection is None:
            self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_SECONDS)
        lane = self.lane
        body = lane["body"].replace("{n}", str(next(NUMBERS))) if "body" in lane else None
        self.connection.request(lane["method"], lane["path"], body, lane["headers"])
        answer = self.connection.getresponse()
        answer.read()
        return answer.status


def main() -> None:
    plan = json.load(sys.stdin)
    sys.setswitchinterval(0.0005)
    heartbeat = Heartbeat()
    heartbeat.start()
    lanes = plan["lanes"]
    threads = [
        Lane(plan["port"], lane, heartbeat, place * lane["pause"] / len(lanes)) for place, lane in enumerate(lanes)
    ]  # one after the other, so that some request is always on its way
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
