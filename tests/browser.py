"""For tests of the page: Fireside in a process of its own, as a user starts it, and visits to it in a real Chromium."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Self

import httpx
from playwright.sync_api import Browser, ConsoleMessage, Page, Playwright, Request

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
    """`fireside` with its own data directory. `fresh` is as in processes.start; `settings` are as in live.Running."""

    def __init__(self, data_dir: Path, config: str = "", port: int = 0, fresh: bool = False, **settings: str) -> None:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if config:
            (data_dir / "config.toml").write_text(config, "utf-8")
        self.data_dir, self.port, self.fresh = data_dir, port, fresh
        self.environ = environment(**{"engine_threads": "1"} | settings) | {"NO_PROXY": "*"}
        self.printed: list[str] = []
        self._clients: list[httpx.Client] = []

    def start(self) -> Self:
        self.printed.clear()
        self.process = self.launch("--no-open", "--port", str(self.port), "--data-dir", str(self.data_dir))
        self.url = self._read(r"Fireside is at (http://\S+)")
        self.port = int(self.url.rsplit(":", 1)[1])
        return self

    def launch(self, *command: str) -> "subprocess.Popen[str]":
        return start(*command, environ=self.environ, stderr=subprocess.STDOUT, fresh=self.fresh)

    def setup_link(self) -> str:
        return self._read(r"Create the first account at (http://\S+)")

    def _read(self, pattern: str) -> str:
        """Return the group of the first printed line that matches, after waiting for it."""
        assert self.process.stdout is not None
        lines = iter(self.printed.copy())
        while (found := re.search(pattern, line := next(lines, "") or self.process.stdout.readline())) is None:
            assert line, f"it ended, having printed {self.printed}"
            self.printed.append(line)
        self.printed.append(line)
        return found[1]

    def log(self) -> list[dict[str, Any]]:
        """Return the entries of the log. The service may be writing another one."""
        text = (self.data_dir / "fireside.log").read_text("utf-8")
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=PATIENCE)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.close()
        self.kill()

    def client(self) -> httpx.Client:
        client = httpx.Client(base_url=self.url, trust_env=False, verify=NO_TLS, timeout=PATIENCE)
        self._clients.append(client)
        return client

    def first(self, name: str = "ann") -> httpx.Client:
        token = self.setup_link().rsplit("=", 1)[1]
        return self._sign_up("/admin/bootstrap", {"token": token, "username": name, "password": PASSWORD})

    def join(self, admin: httpx.Client, name: str, role: str = "user") -> httpx.Client:
        code = good(admin.post("/admin/invites", json={"role": role}))["invite_code"]
        return self._sign_up("/auth/register", {"invite_code": code, "username": name, "password": PASSWORD})

    def _sign_up(self, path: str, body: dict[str, str]) -> httpx.Client:
        client = self.client()
        client.headers["X-CSRF-Token"] = good(client.post(path, json=body))["csrf_token"]
        return client


class Visit:
    """A browser context, signed in as `client`. `close` fails after an exception in a page or a request that the CSP refused."""

    client: httpx.Client

    def __init__(self, browser: Browser, url: str, client: httpx.Client | None = None, **options: Any) -> None:
        self.url = url
        self.problems: list[str] = []
        self.context = browser.new_context(base_url=url, **{"viewport": DESKTOP, "reduced_motion": "reduce"} | options)
        self.context.set_default_timeout(PATIENCE * 1000)
        self.context.on("console", self._check_message)
        self.context.on("weberror", lambda error: self.problems.append(f"exception: {error.error}"))
        if client is not None:
            self.sign_in(client)

    def sign_in(self, client: httpx.Client) -> None:
        self.client = client
        cookies = [{"name": cookie.name, "value": cookie.value or "", "url": self.url} for cookie in client.cookies.jar]
        self.context.add_cookies(cookies)  # type: ignore[arg-type]

    def _check_message(self, message: ConsoleMessage) -> None:
        # Chromium reports each error status too, which many tests cause on purpose.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.problems.append(f"{message.type}: {message.text}")

    def check_requests(self) -> None:
        """Fail also after a request to another host that the CSP allows. It slows a test by a fifth."""
        self.context.on("request", self._check_request)

    def _check_request(self, request: Request) -> None:
        if not request.url.startswith((self.url + "/", "data:")):
            self.problems.append(f"outside request: {request.url}")

    def open(self, address: str = "/") -> Page:
        page = self.context.new_page()
        page.goto(address)
        return page

    def close(self) -> None:
        self.context.close()
        self.check()

    def check(self) -> None:
        problems, self.problems = self.problems, []
        assert not problems, problems


class SharedVisit(Visit):
    """A visit that tests make one after another, each as another user. Opening the page again in its process takes half the time."""

    _page: Page | None = None  # while it shows nothing

    def open(self, address: str = "/") -> Page:
        page, self._page = self._page, None
        if page is None:
            return super().open(address)
        page.goto(address)
        return page

    def forget(self) -> None:
        """Remove all that a test may leave: other pages, routes, emulations, cookies and what the browser stores."""
        page, *others = self.context.pages or [self.context.new_page()]
        for other in others:
            other.close()
        page.unroute_all(behavior="ignoreErrors")
        self.context.unroute_all(behavior="ignoreErrors")
        self.context.set_offline(False)
        page.set_viewport_size(DESKTOP)  # type: ignore[arg-type]
        page.emulate_media(media="null", color_scheme="null", reduced_motion="reduce")
        page.route("**/blank", lambda route: route.fulfill(body="", content_type="text/html"), times=1)
        page.goto("/blank")  # of the same origin, and so in the same process
        page.evaluate("() => { localStorage.clear(); sessionStorage.clear(); }")
        self.context.clear_cookies()
        self._page = page
