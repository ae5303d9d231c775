"""What tests of the page do again and again, and what they prepare."""

import base64
import contextlib
import itertools
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from mimetypes import guess_type

import httpx
from playwright.sync_api import APIResponse, FilePayload, Locator, Page, Request, Route, expect

from ..live import PATIENCE, good
from ..upstream import Gate, Upstream

minutes = itertools.count()
QWEN = {"provider_id": "lmstudio", "model": "qwen2.5-vl-7b-instruct"}  # the model that sees images
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)

DOT = ("dot.png", PNG)


def box(page: Page) -> Locator:
    return page.get_by_role("textbox", name="Message")


def ask(page: Page, question: str) -> None:
    box(page).fill(question)
    page.keyboard.press("Enter")


def answered(page: Page) -> Locator:
    """Wait for the end of the last answer. Waiting by count is the cheapest for Playwright."""
    last = page.locator(".message.assistant.last")
    expect(last.locator(".figures", has_text="to first token")).to_have_count(1)
    return last


def edit_question(page: Page, content: str) -> None:
    page.get_by_role("button", name="Edit question").click()
    page.get_by_role("textbox", name="Edited question").fill(content)
    page.keyboard.press("Control+Enter")


def press(page: Page | Locator, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def pick(page: Page | Locator, menu: str, item: str) -> None:
    """Choose from the menu that a button opens."""
    press(page, menu)
    (page if isinstance(page, Page) else page.page).get_by_role("menuitem", name=item).click()


def choose_model(page: Page, name: str) -> None:
    page.get_by_role("button", name=re.compile("^Model:")).click()
    page.locator(".model-pick", has_text=name).click()


def expect_toast(page: Page, text: str) -> None:
    toast = page.locator(".toast", has_text=text)
    expect(toast).to_be_visible()
    press(toast, "Dismiss")


def open_settings(page: Page, section: str = "General") -> None:
    page.locator(".account").click()
    page.get_by_role("menuitem", name="Settings").click()
    page.get_by_role("tab", name=section).click()
    expect(page.get_by_role("tabpanel", name=section).locator(".section > *").first).to_be_visible()


def open_chat(page: Page, title: str) -> None:
    """Open a chat from the list."""
    page.get_by_role("navigation", name="Chats").get_by_role("link", name=title, exact=True).click()


def open_row_menu(row: Locator, item: str) -> None:
    row.get_by_role("button").click()
    row.page.get_by_role("menuitem", name=item, exact=True).click()


def attach(page: Page, *files: tuple[str, bytes]) -> None:
    payloads = [FilePayload(name=name, mimeType=guess_type(name)[0] or "", buffer=content) for name, content in files]
    page.get_by_label("Files to attach").set_input_files(payloads)


def refocus(page: Page) -> None:
    """Have the page read everything again."""
    page.evaluate("() => window.dispatchEvent(new Event('focus'))")


def rectangles(page: Page, *selectors: str) -> list[dict[str, float]]:
    """Return where elements are, all in the same moment: between two calls the layout may change."""
    find = "(selectors) => selectors.map((each) => document.querySelector(each).getBoundingClientRect().toJSON())"
    found: list[dict[str, float]] = page.evaluate(find, selectors)
    return found


def next_frame(page: Page) -> None:
    page.evaluate("new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)))")


def wait(page: Page, condition: Callable[[], object]) -> None:
    """Wait for a condition outside the page, while Playwright handles the page's events."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        page.evaluate("new Promise(requestAnimationFrame)")


@contextlib.contextmanager
def recorded(page: Page, pattern: str) -> Iterator[list[str]]:
    """Record the addresses that the page requests, of those that match."""
    addresses: list[str] = []

    def record(request: Request) -> None:
        if re.search(pattern, request.url):
            addresses.append(request.url)

    page.on("request", record)
    yield addresses
    page.remove_listener("request", record)


class Held:
    """Hold the first requests that match. With `response`, the server handles them at once, and their response is held."""

    def __init__(self, page: Page, pattern: str, count: int = 1, response: bool = False) -> None:
        self.page, self.count, self.response = page, count, response
        self.routes: list[Route] = []
        self.responses: dict[Route, APIResponse] = {}
        page.route(re.compile(pattern), self._hold)

    def _hold(self, route: Route) -> None:
        if len(self.routes) >= self.count:
            return route.continue_()
        self.routes.append(route)
        if self.response:
            self.responses[route] = route.fetch()

    def wait(self, count: int = 1) -> None:
        wait(self.page, lambda: len(self.responses if self.response else self.routes) >= count)

    def release(self, index: int = 0) -> None:
        route = self.routes[index]
        if not self.response:
            return route.continue_()
        with self.page.expect_event("requestfinished", lambda request: request == route.request):
            route.fulfill(response=self.responses[route])
        next_frame(self.page)


def stream(lmstudio: Upstream, *texts: str) -> list[Gate]:
    """Script an answer that waits for a gate before each text but the first."""
    return lmstudio.enqueue_paused(*texts)


def new(client: httpx.Client, question: str = "", **fields: object) -> int:
    """Create a conversation whose answers are short and always alike, with an answered question if one is given."""
    settings = {"temperature": 0, "max_tokens": 40, "seed": 1}
    conversation_id: int = good(client.post("/conversations", json={"settings": settings} | fields))["id"]
    if question:
        good(client.post(f"/conversations/{conversation_id}/messages", json={"content": question}))
        with client.stream("POST", f"/conversations/{conversation_id}/stream", json={}) as events:
            assert "event: done" in events.read().decode()
    return conversation_id


def imported(
    client: httpx.Client, conversations: list[tuple[str, list[str]]], answers: Iterable[Mapping[str, object]] = ()
) -> None:
    """Import conversations as (title, texts of question, answer, question ...), the last one the newest. `answers` has
    further fields for the answers of each.
    """
    files = []
    for number, (title, texts) in zip(minutes, conversations, strict=False):
        time = f"2026-01-{1 + number // 1440:02}T{number // 60 % 24:02}:{number % 60:02}:00.000000"
        further = iter(answers)
        messages = [
            {"id": at + 1, "parent_id": at or None, "role": ("user", "assistant")[at % 2], "content": content}
            | {"created_at": time}
            | dict(next(further, {}) if at % 2 else {})
            for at, content in enumerate(texts)
        ]
        conversation = {"fireside": 1, "title": title, "named": True, "created_at": time, "updated_at": time}
        files.append(conversation | {"active_message_id": len(texts), "messages": messages})
    assert good(client.post("/import", json=files))["skipped"] == []


def messages(client: httpx.Client, conversation_id: int) -> list[dict[str, object]]:
    found: list[dict[str, object]] = good(client.get(f"/conversations/{conversation_id}/messages"))
    return found
