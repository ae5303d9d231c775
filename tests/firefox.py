"""A real Firefox without a window, driven over WebDriver BiDi, and a DNS server that records the names it asks for.

Playwright can drive only a Firefox of its own build, and Debian has no package of geckodriver.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import DEVNULL
from typing import Any

import httpx
from websockets.sync.client import ClientConnection, connect

from .live import PATIENCE

DNS_ADDRESS = "127.83.0.1"  # not shared, because resolv.conf cannot name another port than 53
NAME_DOES_NOT_EXIST = b"\x81\x83"
# The recommended preferences of WebDriver would turn speculative connections off.
PREFERENCES = {
    "remote.prefs.recommended": False,
    "network.trr.mode": 5,
    "datareporting.policy.dataSubmissionEnabled": False,
}


def missing() -> str:
    """Return why the tests with Firefox cannot run here, or an empty string."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a DNS server for one process needs Linux and root"
    if not executable():
        return "Firefox is not installed: run make firefox"
    if subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode:
        return "this container may not mount files (CAP_SYS_ADMIN)"
    return ""


def executable() -> str | None:
    return shutil.which("firefox-esr") or shutil.which("firefox")


@contextlib.contextmanager
def name_server() -> Iterator[set[str]]:
    """Run a name server for which no name exists. Yield the names it is asked for."""
    names: set[str] = set()

    def serve() -> None:
        while message := (query := listener.recvfrom(4096))[0]:
            labels, at = [], 12  # after the header (RFC 1035, 4.1)
            while size := message[at]:
                labels.append(message[at + 1 : at + 1 + size].decode())
                at += 1 + size
            names.add(".".join(labels).lower())
            question = message[12 : at + 5]
            listener.sendto(message[:2] + NAME_DOES_NOT_EXIST + b"\0\1" + bytes(6) + question, query[1])

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind((DNS_ADDRESS, 53))
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield names
        finally:
            listener.sendto(b"", (DNS_ADDRESS, 53))  # ends the thread
            thread.join()


@contextlib.contextmanager
def firefox(folder: Path) -> Iterator["Firefox"]:
    """Run a Firefox with its profile in `folder`, which resolves names at DNS_ADDRESS."""
    lines = (f"user_pref({json.dumps(name)}, {json.dumps(value)});\n" for name, value in PREFERENCES.items())
    (folder / "user.js").write_text("".join(lines), "utf-8")
    resolv_conf = folder / "resolv.conf"
    resolv_conf.write_text(f"nameserver {DNS_ADDRESS}\n", "utf-8")
    command = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/resolv.conf && exec "$@"', str(resolv_conf)]
    command += [executable() or "", "--headless", "--no-remote", "--profile", str(folder), "about:blank"]
    environ = os.environ | {"HOME": str(folder)}
    with subprocess.Popen(
        [*command, "--remote-debugging-port", "0"], env=environ, stdout=DEVNULL, stderr=DEVNULL
    ) as process:
        try:
            address = folder / "WebDriverBiDiServer.json"
            until(address.exists)
            server = json.loads(address.read_text("utf-8"))
            with connect(f"ws://{server['ws_host']}:{server['ws_port']}/session", max_size=None) as bidi:
                yield Firefox(bidi)
        finally:
            process.terminate()


class Firefox:
    """A browser with one tab."""

    def __init__(self, bidi: ClientConnection) -> None:
        self._bidi = bidi
        self._calls = 0
        self.call("session.new", capabilities={})
        self._tab = self.call("browsingContext.getTree")["contexts"][0]["context"]

    def call(self, method: str, **params: Any) -> Any:
        """Send a command of WebDriver BiDi (w3.org/TR/webdriver-bidi). Return its result."""
        self._calls += 1
        self._bidi.send(json.dumps({"id": self._calls, "method": method, "params": params}))
        while (message := json.loads(self._bidi.recv(PATIENCE))).get("id") != self._calls:
            pass  # an event
        assert message["type"] == "success", message
        return message["result"]

    def sign_in(self, url: str, person: httpx.Client) -> None:
        for cookie in person.cookies.jar:
            value = {"type": "string", "value": cookie.value or ""}
            self.call("storage.setCookie", cookie={"name": cookie.name, "value": value, "domain": httpx.URL(url).host})

    def open(self, url: str) -> None:
        self.call("browsingContext.navigate", context=self._tab, url=url, wait="complete")

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression: a string, number, boolean or null."""
        target = {"context": self._tab}
        answer = self.call("script.evaluate", expression=expression, target=target, awaitPromise=True)
        assert answer["type"] == "success", answer
        return answer["result"].get("value")

    def wait_for(self, expression: str) -> None:
        until(lambda: self.evaluate(expression))

    def hover(self, selector: str) -> None:
        self._point(selector)

    def click(self, selector: str) -> None:
        self._point(selector, {"type": "pointerDown", "button": 0}, {"type": "pointerUp", "button": 0})

    def _point(self, selector: str, *then: dict[str, Any]) -> None:
        """Move the pointer to the middle of an element."""
        box = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        sizes = (("x", "width"), ("y", "height"))
        x, y = (round(self.evaluate(f"{box}.{side} + {box}.{size} / 2")) for side, size in sizes)
        move = {"type": "pointerMove", "x": x, "y": y}
        pointer = {"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": [move, *then]}
        self.call("input.performActions", context=self._tab, actions=[pointer])


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
