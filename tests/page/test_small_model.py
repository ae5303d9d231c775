"""Answers of the real small model."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect

from ..browser import Fireside, Visit
from ..live import PASSWORD, good
from .steps import answered, ask, messages, new, open_row_menu, press

STORY = "Tell me a long story about a lighthouse keeper and a storm."


@pytest.fixture(scope="module")
def fireside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fireside]:
    with Fireside(tmp_path_factory.mktemp("small"), lmstudio_url="http://127.0.0.1:9") as fireside:
        yield fireside


@pytest.fixture(scope="module")
def client(fireside: Fireside) -> httpx.Client:
    return fireside.first()


def test_first_run_leads_from_the_printed_link_to_an_answer(tmp_path: Path, visitor: Callable[..., Visit]) -> None:
    with Fireside(tmp_path, lmstudio_url="http://127.0.0.1:9") as fireside:
        visit = visitor(fireside)
        visit.check_requests()
        page = visit.open(fireside.setup_link())
        heading, password = page.get_by_role("heading", name="Welcome to Fireside"), page.get_by_label("Password, 12")
        expect(heading).to_be_visible()
        assert page.url == fireside.url + "/", "the secret stays in the address"
        page.get_by_label("Name").fill("ann")
        password.fill("too short")
        page.keyboard.press("Enter")
        expect(heading).to_be_visible()
        password.fill(PASSWORD)
        page.keyboard.press("Enter")
        expect(page.get_by_role("button", name="Model: SmolLM2")).to_be_visible()
        ask(page, "What is the capital of Japan?")
        expect(page.locator(".message.user")).to_contain_text("What is the capital of Japan?")
        expect(answered(page).locator(".markdown")).to_contain_text(re.compile(r"\w"))
        expect(page.locator(".sidebar li.current")).to_have_text("What is the capital of Japan?")
        expect(page).to_have_url(re.compile(r"/#/c/\d+$"))


def test_answer_is_resumed_after_a_reload_stopped_and_retried(
    fireside: Fireside, client: httpx.Client, visitor: Callable[..., Visit]
) -> None:
    chat = new(client, settings={"temperature": 0, "seed": 1})
    page = visitor(fireside, client).open(f"/#/c/{chat}")
    ask(page, STORY)
    text, stopped = page.locator(".message.assistant .markdown"), page.locator(".halted p", has_text="Stopped.")
    expect(text).to_contain_text(re.compile(r"\w+ \w+ \w+"))
    page.reload()
    expect(text).to_contain_text(re.compile(r"\w+ \w+ \w+"))
    page.keyboard.press("Escape")
    expect(stopped).to_be_visible()
    kept = messages(client, chat)[-1]
    assert kept["status"] == "canceled"
    words = [re.findall("[A-Za-z]+", one) for one in (text.inner_text(), str(kept["content"]))]
    assert words[0] == words[1] != []

    good(client.patch(f"/conversations/{chat}", json={"settings": {"max_tokens": 8}}))
    press(page, "Try again")
    expect(answered(page).locator(".switch")).to_contain_text("2/2")
    press(page, "Previous version")
    expect(stopped).to_be_visible()
    expect(page.locator(".switch")).to_contain_text("1/2")
    assert messages(client, chat)[-1]["id"] == kept["id"]


def test_second_tab_follows_the_answer_and_changes_of_the_first(
    fireside: Fireside, client: httpx.Client, visitor: Callable[..., Visit]
) -> None:
    visit = visitor(fireside, client)
    chat = new(client, settings={"temperature": 0, "seed": 1, "max_tokens": 150})
    first, second = visit.open(f"/#/c/{chat}"), visit.open(f"/#/c/{chat}")
    expect(second.locator(".top .title")).to_have_text("New conversation")
    ask(first, STORY)
    expect(second.locator(".message.assistant.generating .markdown")).to_contain_text(re.compile(r"\w"))
    assert answered(second).locator(".markdown").inner_text() == answered(first).locator(".markdown").inner_text()

    first.bring_to_front()  # Chromium draws few frames of a page in the background, and a click waits for one
    row = first.locator(".sidebar li.current")
    open_row_menu(row, "Rename")
    first.get_by_role("textbox", name="Title").fill("The lighthouse")
    first.keyboard.press("Enter")
    expect(second.locator(".sidebar li.current")).to_have_text("The lighthouse")
    expect(second.get_by_role("heading", level=1)).to_have_text("The lighthouse")
    open_row_menu(row, "Pin")
    expect(second.locator("section:has(h2:text('Pinned'))")).to_be_visible()
