"""For the tests of the page: Fireside as its own process, as a user starts it, and a person before a real Chromium."""

import re
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Playwright

from .live import NO_TLS, PASSWORD, PATIENCE, good
from .processes import environment, start

DESKTOP = {"width": 1280, "height": 820}
PHONE = {"width": 390, "height": 844}
NO_ENGINE = '[[providers]]\nid = "embedded"\nkind = "openai"\nname = "Nothing"\nurl = "http://127.0.0.1:9/v1"\n'


def launch(playwright: Playwright, *arguments: str) -> Browser:
    usual = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    chromium = shutil.which("chromium-headless-shell") or shutil.which("chromium")
    return playwright.chromium.launch(executable_path=chromium, args=[*usual, *arguments])


class Fireside:
    """`fireside` in a directory of its own. `fresh` is as in processes.start; `settings` are environment variables, as in live.Running."""

    def __init__(self, data_dir: Path, config: str = "", port: int = 0, fresh: bool = False, **settings: str) -> None:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if config:
            (data_dir / "config.toml").write_text(config, "utf-8")
        self.data_dir, self.port, self.fresh = data_dir, port, fresh
        self.environ = environment(**{"engine_threads": "1"} | settings) | {"NO_PROXY": "*"}
        self.printed: list[str] = []
        self._people: list[httpx.Client] = []

    def start(self) -> Self:
        self.printed.clear()
        command = ("--no-open", "--port", str(self.port), "--data-dir", str(self.data_dir))
        self.process = self.launch(*command)
        assert self.process.stdout is not None
        self.url = self._read(r"Fireside is at (http://\S+)")
        self.port = int(self.url.rsplit(":", 1)[1])
        return self

    def launch(self, *command: str) -> "subprocess.Popen[str]":
        return start(*command, environ=self.environ, stderr=subprocess.STDOUT, fresh=self.fresh)

    def setup_link(self) -> str:
        return self._read(r"Create the first account at (http://\S+)")

    def _read(self, pattern: str) -> str:
        """What the first line that matches says, among those printed or still to come."""
        assert self.process.stdout is not None
        lines = iter(self.printed.copy())
        while (found := re.search(pattern, line := next(lines, "") or self.process.stdout.readline())) is None:
            assert line, f"it ended, having printed {self.printed}"
            self.printed.append(line)
        self.printed.append(line)
        return found[1]

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=PATIENCE)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        for person in self._people:
            person.close()
        self.kill()

    def client(self) -> httpx.Client:
        client = httpx.Client(base_url=self.url, trust_env=False, verify=NO_TLS, timeout=PATIENCE)
        self._people.append(client)
        return client

    def first(self, name: str = "ann") -> httpx.Client:
        token = self.setup_link().rsplit("=", 1)[1]
        return self._enter("/admin/bootstrap", {"token": token, "username": name, "password": PASSWORD})

    def join(self, admin: httpx.Client, name: str, role: str = "user") -> httpx.Client:
        code = good(admin.post("/admin/invites", json={"role": role}))["invite_code"]
        return self._enter("/auth/register", {"invite_code": code, "username": name, "password": PASSWORD})

    def _enter(self, path: str, body: dict[str, str]) -> httpx.Client:
        client = self.client()
        client.headers["X-CSRF-Token"] = good(client.post(path, json=body))["csrf_token"]
        return client


class Watched:
    """A browser context in which nothing may go wrong unseen: an exception, or a refusal by the policy, as it meets every
    request of a page to the outside. `look_at_requests` sees those that the policy would let through too.
    """

    def __init__(self, browser: Browser, url: str, person: httpx.Client | None = None, **options: Any) -> None:
        self.url = url
        self.problems: list[str] = []
        options = {"viewport": DESKTOP, "reduced_motion": "reduce"} | options
        self.context: BrowserContext = browser.new_context(base_url=url, **options)
        self.context.set_default_timeout(PATIENCE * 1000)
        self.context.on("console", self._said)
        self.context.on("weberror", lambda error: self.problems.append(f"exception: {error.error}"))
        if person is not None:
            cookies = [{"name": cookie.name, "value": cookie.value or "", "url": url} for cookie in person.cookies.jar]
            self.context.add_cookies(cookies)  # type: ignore[arg-type]

    def _said(self, message: ConsoleMessage) -> None:
        # A status that is an error is said too, and is often what a test is about.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.problems.append(f"{message.type}: {message.text}")

    def look_at_requests(self) -> None:
        """A fifth of what a test takes: two dozen at every start of a page."""
        self.context.on("request", self._asked)

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((self.url + "/", "data:")):
            self.problems.append(f"outside request: {request.url}")

    def open(self, address: str = "/") -> Page:
        page = self.context.new_page()
        page.goto(address)
        return page

    def close(self) -> None:
        self.context.close()
        assert not self.problems, self.problems
