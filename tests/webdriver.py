"""Debian's Firefox over WebDriver BiDi, and WebKitGTK over WebDriver. Playwright drives only builds of its own of both.

Debian has no package of geckodriver, and WebKitGTK's driver has no BiDi.
"""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import DEVNULL
from typing import Any

import httpx
from websockets.sync.client import ClientConnection, connect

from .live import PATIENCE
from .processes import free_port

KEYS = {"Enter": "\ue007", "Escape": "\ue00c", "Control": "\ue009", "ArrowDown": "\ue015", "Delete": "\ue017"}
# The recommended preferences of WebDriver would turn speculative connections off.
PREFERENCES = {
    "remote.prefs.recommended": False,
    "dom.file.createInChild": True,  # for input.setFiles
    "network.trr.mode": 5,
    "datareporting.policy.dataSubmissionEnabled": False,
}
FOUND = """[...document.querySelectorAll(%s)].find((node) => node.checkVisibility({ visibilityProperty: true })
    && [node.ariaLabel, node.labels?.[0]?.innerText, node.innerText].some((text) => text?.includes(%s)))"""
# The middle of an element, unless another element covers it.
POINT = """((node) => {
    if (!node) return null;
    node.scrollIntoView({ block: "nearest" });
    const { x, y, width, height } = node.getBoundingClientRect();
    const at = [Math.round(x + width / 2), Math.round(y + height / 2)];
    return node.contains(document.elementFromPoint(...at)) ? at : null;
})(%s)"""
WATCH = """(() => {
    window.problems = [];
    addEventListener("error", ({ message }) => problems.push(message));
    addEventListener("unhandledrejection", ({ reason }) => problems.push(String(reason)));
    addEventListener("securitypolicyviolation", ({ violatedDirective, blockedURI }) => problems.push(`${violatedDirective} ${blockedURI}`));
})()"""


class Tab(ABC):
    """The only tab of a browser."""

    @abstractmethod
    def open(self, url: str) -> None: ...

    @abstractmethod
    def reload(self) -> None: ...

    @abstractmethod
    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression that JSON can express."""

    @abstractmethod
    def perform(self, source: dict[str, Any]) -> None:
        """Perform the actions of one input source (w3.org/TR/webdriver2, 15)."""

    @abstractmethod
    def attach(self, selector: str, *files: Path) -> None:
        """Choose files in a file input."""

    @abstractmethod
    def resize(self, width: int, height: int) -> None: ...

    @abstractmethod
    def screenshot(self) -> bytes: ...

    def watch(self) -> None:
        """Collect the exceptions of the page and what its CSP refuses, for `problems`."""
        self.evaluate(WATCH)

    @property
    def problems(self) -> list[str]:
        found: list[str] = self.evaluate("problems")
        return found

    def wait_for(self, expression: str) -> Any:
        """Wait until an expression is true. Return its value."""
        try:
            return until(lambda: self.evaluate(expression))
        except TimeoutError:
            shown = self.evaluate("document.body.innerText")
            raise AssertionError(f"{expression} did not become true. The page shows:\n{shown}") from None

    def expect(self, selector: str, text: str = "") -> None:
        """Wait until an element is shown whose name or text has this text."""
        self.wait_for(f"Boolean({found(selector, text)})")

    def expect_none(self, selector: str, text: str = "") -> None:
        self.wait_for(f"!{found(selector, text)}")

    def hover(self, selector: str, text: str = "") -> None:
        self._point(selector, text)

    def click(self, selector: str, text: str = "") -> None:
        self._point(selector, text, {"type": "pointerDown", "button": 0}, {"type": "pointerUp", "button": 0})

    def press(self, text: str) -> None:
        """Click a button."""
        self.click("button", text)

    def fill(self, selector: str, text: str, label: str = "") -> None:
        """Replace the text of a field."""
        self.click(selector, label)
        self.keys("Control", "a")
        self.keys("Delete")
        self.type(text)

    def type(self, text: str) -> None:
        keys = [{"type": kind, "value": key} for key in text for kind in ("keyDown", "keyUp")]
        self.perform({"type": "key", "id": "keyboard", "actions": keys})

    def keys(self, *names: str) -> None:
        """Press these keys together."""
        values = [KEYS.get(name, name) for name in names]
        down = [{"type": "keyDown", "value": value} for value in values]
        up = [{"type": "keyUp", "value": value} for value in reversed(values)]
        self.perform({"type": "key", "id": "keyboard", "actions": down + up})

    def _point(self, selector: str, text: str, *then: dict[str, Any]) -> None:
        """Move the pointer to the middle of an element, once it stands still."""
        expression, before = POINT % found(selector, text), None
        while before != (now := self.wait_for(expression)):
            before = now
            time.sleep(0.1)
        x, y = now
        move = {"type": "pointerMove", "x": x, "y": y}
        mouse = {"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}}
        self.perform(mouse | {"actions": [move, *then]})


def found(selector: str, text: str) -> str:
    """Return an expression for the first such element that is shown."""
    return FOUND % (json.dumps(selector), json.dumps(text))


class Firefox(Tab):
    def __init__(self, bidi: ClientConnection) -> None:
        self._bidi = bidi
        self._calls = 0
        self.call("session.new", capabilities={})
        self._tab = {"context": self.call("browsingContext.getTree")["contexts"][0]["context"]}

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
        self.call("browsingContext.navigate", **self._tab, url=url, wait="complete")

    def reload(self) -> None:
        self.call("browsingContext.reload", **self._tab, wait="complete")

    def evaluate(self, expression: str) -> Any:
        return json.loads(self._evaluate(f"JSON.stringify({expression})").get("value", "null"))

    def _evaluate(self, expression: str) -> Any:
        answer = self.call("script.evaluate", expression=expression, target=self._tab, awaitPromise=False)
        assert answer["type"] == "success", answer
        return answer["result"]

    def perform(self, source: dict[str, Any]) -> None:
        self.call("input.performActions", **self._tab, actions=[source])

    def attach(self, selector: str, *files: Path) -> None:
        element = self._evaluate(f"document.querySelector({json.dumps(selector)})")
        reference = {"sharedId": element["sharedId"]}
        self.call("input.setFiles", **self._tab, element=reference, files=[str(file) for file in files])

    def resize(self, width: int, height: int) -> None:
        self.call("browsingContext.setViewport", **self._tab, viewport={"width": width, "height": height})

    def screenshot(self) -> bytes:
        return base64.b64decode(self.call("browsingContext.captureScreenshot", **self._tab)["data"])


class WebKit(Tab):
    def __init__(self, driver: httpx.Client) -> None:
        self._driver = driver
        options = {"binary": minibrowser(), "args": ["--automation"]}
        capabilities = {"alwaysMatch": {"webkitgtk:browserOptions": options}}
        self._session = ""
        self._session = "/" + self.call("POST", "/session", capabilities=capabilities)["sessionId"]

    def call(self, method: str, path: str, **params: Any) -> Any:
        """Send a command of WebDriver (w3.org/TR/webdriver2) for this session. Return its result."""
        address = f"/session{self._session}{path}" if self._session else path
        response = self._driver.request(method, address, json=params if method == "POST" else None)
        assert response.status_code == 200, response.text
        return response.json()["value"]

    def open(self, url: str) -> None:
        self.call("POST", "/url", url=url)

    def reload(self) -> None:
        self.call("POST", "/refresh")

    def evaluate(self, expression: str) -> Any:
        return self.call("POST", "/execute/sync", script=f"return {expression}", args=[])

    def perform(self, source: dict[str, Any]) -> None:
        self.call("POST", "/actions", actions=[source])

    def attach(self, selector: str, *files: Path) -> None:
        [element] = self.call("POST", "/element", using="css selector", value=selector).values()
        self.call("POST", f"/element/{element}/value", text="\n".join(map(str, files)))

    def resize(self, width: int, height: int) -> None:
        self.call("POST", "/window/rect", width=width, height=height)
        self.wait_for(f"innerWidth === {width}")

    def screenshot(self) -> bytes:
        return base64.b64decode(self.call("GET", "/screenshot"))


def firefox_executable() -> str | None:
    return shutil.which("firefox-esr") or shutil.which("firefox")


def minibrowser() -> str | None:
    return next(map(str, Path("/usr/lib").glob("*/webkit2gtk-4.*/MiniBrowser")), None)


def missing_firefox() -> str:
    """Return why Firefox cannot be driven here, or an empty string."""
    return "" if firefox_executable() else "Firefox is not installed: run make firefox"


def missing_webkit() -> str:
    """Return why WebKit cannot be driven here, or an empty string."""
    installed = shutil.which("WebKitWebDriver") and shutil.which("Xvfb") and minibrowser()
    return "" if installed else "WebKitGTK, its driver or Xvfb is not installed: run make webkit"


@contextlib.contextmanager
def firefox(folder: Path, *prefix: str) -> Iterator[Firefox]:
    """Run a Firefox with its profile in `folder`, without a window, by a command that starts with `prefix`."""
    lines = (f"user_pref({json.dumps(name)}, {json.dumps(value)});\n" for name, value in PREFERENCES.items())
    (folder / "user.js").write_text("".join(lines), "utf-8")
    command = [*prefix, firefox_executable() or "", "--headless", "--no-remote", "--profile", str(folder)]
    command += ["--remote-debugging-port", "0", "about:blank"]
    with ended(subprocess.Popen(command, env=os.environ | {"HOME": str(folder)}, stdout=DEVNULL, stderr=DEVNULL)):
        address = folder / "WebDriverBiDiServer.json"
        until(address.exists)
        server = json.loads(address.read_text("utf-8"))
        with connect(f"ws://{server['ws_host']}:{server['ws_port']}/session", max_size=None) as bidi:
            yield Firefox(bidi)


@contextlib.contextmanager
def webkit(folder: Path) -> Iterator[WebKit]:
    """Run WebKitGTK's MiniBrowser with its home in `folder`, on a display of its own."""
    reader, writer = os.pipe()
    screen = ["Xvfb", "-displayfd", str(writer), "-screen", "0", "1600x1200x24", "-nolisten", "tcp"]
    with open(reader) as display, ended(subprocess.Popen(screen, pass_fds=[writer], stdout=DEVNULL, stderr=DEVNULL)):
        os.close(writer)
        environ = os.environ | {
            "HOME": str(folder),
            "DISPLAY": f":{display.readline().strip()}",
            "GDK_BACKEND": "x11",
            "WEBKIT_DISABLE_SANDBOX_THIS_IS_DANGEROUS": "1",  # it refuses to run as root, and needs user namespaces
        }
        port = free_port()
        command = ["WebKitWebDriver", "--host=127.0.0.1", f"--port={port}"]
        with (
            ended(subprocess.Popen(command, env=environ, stdout=DEVNULL, stderr=DEVNULL)),
            httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=PATIENCE) as driver,
        ):
            until(lambda: listens(driver))
            tab = WebKit(driver)
            try:
                yield tab
            finally:
                tab.call("DELETE", "")


def listens(driver: httpx.Client) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return driver.get("/status").is_success
    return False


@contextlib.contextmanager
def ended(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """End a process with the block."""
    with process:
        try:
            yield
        finally:
            process.terminate()


def until(condition: Callable[[], Any]) -> Any:
    """Wait until a condition holds. Return its value."""
    end = time.monotonic() + PATIENCE
    while not (value := condition()):
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.02)
    return value
