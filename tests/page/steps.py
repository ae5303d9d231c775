"""What a person does before the page, again and again, and what is there before they come."""

import base64
import itertools
import time
from collections.abc import Callable, Iterable, Mapping

import httpx
from playwright.sync_api import Locator, Page, expect

from ..live import PATIENCE, good

minutes = itertools.count()
names = (f"person{number}" for number in itertools.count())
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)
CLEAR_GIF = "R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
STORY = "Tell me a long story about a lighthouse keeper and a storm."


def ask(page: Page, question: str) -> None:
    page.get_by_role("textbox", name="Message").fill(question)
    page.keyboard.press("Enter")


def wait(page: Page, seen: Callable[[], object]) -> None:
    """Until what the page asks for has been seen here."""
    end = time.monotonic() + PATIENCE
    while not seen():
        assert time.monotonic() < end
        page.evaluate("new Promise(requestAnimationFrame)")


def answered(page: Page) -> Locator:
    """The last answer, once it is complete. It is counted, as to wait for anything else that is not there yet makes Playwright
    describe the whole page at each look.
    """
    last = page.locator(".message.assistant.last")
    expect(last.locator(".figures", has_text="to first token")).to_have_count(1)
    return last


def new(client: httpx.Client, question: str = "", **fields: object) -> int:
    """A conversation that is answered briefly and always alike."""
    settings = {"temperature": 0, "max_tokens": 40, "seed": 1}
    conversation_id: int = good(client.post("/conversations", json={"settings": settings} | fields))["id"]
    if question:
        good(client.post(f"/conversations/{conversation_id}/messages", json={"content": question}))
        with client.stream("POST", f"/conversations/{conversation_id}/stream", json={}) as events:
            assert "event: done" in events.read().decode()
    return conversation_id


def imported(
    client: httpx.Client,
    conversations: list[tuple[str, list[str]]],
    answers: Iterable[Mapping[str, object]] = (),
) -> None:
    """Conversations as (title, texts of question, answer, question ...), the last one the newest. `answers` has further
    fields for the answers of each.
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


def message(client: httpx.Client, conversation_id: int, index: int = -1) -> dict[str, object]:
    found: dict[str, object] = good(client.get(f"/conversations/{conversation_id}/messages"))[index]
    return found
