"""A person before the page, answered by the real small model."""

import re
from collections.abc import Callable
from pathlib import Path

import httpx
from playwright.sync_api import expect

from ..browser import Fireside, Watched
from ..live import PASSWORD, good
from .steps import STORY, answered, ask, message, new


def test_first_run_goes_from_the_printed_link_to_an_answer(
    tmp_path: Path, visitor: Callable[..., Watched], house: Fireside
) -> None:
    with Fireside(tmp_path, lmstudio_url="http://127.0.0.1:9") as fireside:
        visit = visitor(fireside)
        visit.look_at_requests()
        page = visit.open(fireside.setup_link())
        expect(page.get_by_role("heading", name="Welcome to Fireside")).to_be_visible()
        assert page.url == fireside.url + "/", "the secret stays in the address"
        page.get_by_label("Name").fill("ann")
        page.get_by_label("Password, 12 characters or more").fill("too short")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="Welcome to Fireside")).to_be_visible()
        page.get_by_label("Password, 12 characters or more").fill(PASSWORD)
        page.keyboard.press("Enter")

        expect(page.get_by_role("button", name="Model: SmolLM2")).to_be_visible()
        ask(page, "What is the capital of Japan?")
        expect(page.locator(".message.user")).to_contain_text("What is the capital of Japan?")
        last = answered(page)
        expect(last.locator(".markdown")).to_contain_text(re.compile(r"\w"))
        expect(last.locator(".figures")).to_contain_text("s to first token")
        expect(page.get_by_role("meter", name="Context used")).to_be_visible()
        expect(page.locator(".sidebar li.current")).to_have_text("What is the capital of Japan?")
        assert re.search(r"/#/c/\d+$", page.url)


def test_a_stopped_answer_is_kept_and_can_be_asked_for_again(at_home: tuple[Watched, httpx.Client]) -> None:
    visit, client = at_home
    chat = new(client, settings={"temperature": 0, "seed": 1})
    page = visit.open(f"/#/c/{chat}")
    ask(page, STORY)
    shown = page.locator(".message.assistant .markdown")
    expect(shown).to_contain_text(re.compile(r"\w+ \w+ \w+"))
    page.keyboard.press("Escape")
    expect(page.get_by_text("Stopped.", exact=True)).to_be_visible()
    kept = message(client, chat)
    assert kept["status"] == "canceled"
    assert kept["content"]

    good(client.patch(f"/conversations/{chat}", json={"settings": {"max_tokens": 8}}))
    page.get_by_role("button", name="Try again").click()
    expect(answered(page).locator(".switch")).to_contain_text("2/2")
    page.get_by_role("button", name="Previous version").click()
    expect(page.get_by_text("Stopped.", exact=True)).to_be_visible()
    expect(page.locator(".switch")).to_contain_text("1/2")
    assert message(client, chat)["id"] == kept["id"]


def test_an_edited_question_branches_and_the_first_one_stays(at_home: tuple[Watched, httpx.Client]) -> None:
    visit, client = at_home
    chat = new(client, "Say yes.", settings={"temperature": 0, "max_tokens": 4})
    page = visit.open(f"/#/c/{chat}")
    expect(page.get_by_text("Say yes.").last).to_be_visible()
    page.locator(".message.user").hover()
    page.get_by_role("button", name="Edit question").click()
    page.get_by_role("textbox", name="Edited question").fill("Say no.")
    page.get_by_role("button", name="Send", exact=True).first.click()
    answered(page)
    question = page.locator(".message.user")
    expect(question).to_contain_text("Say no.")
    expect(question.locator(".switch")).to_contain_text("2/2")
    question.get_by_role("button", name="Previous version").click()
    expect(question).to_contain_text("Say yes.")
    expect(page.locator(".message.assistant")).to_have_count(1)


def test_a_reload_takes_up_the_answer_where_it_is(at_home: tuple[Watched, httpx.Client]) -> None:
    visit, client = at_home
    chat = new(client, settings={"temperature": 0, "seed": 1, "max_tokens": 90})
    page = visit.open(f"/#/c/{chat}")
    ask(page, STORY)
    expect(page.locator(".message.assistant .markdown")).to_contain_text(re.compile(r"\w+ \w+ \w+"))
    page.reload()
    assert good(client.get(f"/conversations/{chat}"))["generation_id"] is not None, "it was over before the reload"
    shown = answered(page).locator(".markdown").inner_text()
    page.reload()
    assert answered(page).locator(".markdown").inner_text() == shown
    assert words(shown) == words(str(message(client, chat)["content"]))


def words(markdown: str) -> list[str]:
    return re.findall(r"[A-Za-z]+", markdown)


def test_a_second_tab_follows_the_same_answer_and_what_is_done_in_the_first(
    at_home: tuple[Watched, httpx.Client],
) -> None:
    visit, client = at_home
    chat = new(client, settings={"temperature": 0, "seed": 1, "max_tokens": 40})
    first, second = visit.open(f"/#/c/{chat}"), visit.open(f"/#/c/{chat}")
    expect(second.locator(".top .title")).to_have_text("New conversation")
    ask(first, STORY)
    expect(second.locator(".message.assistant.generating .markdown")).to_contain_text(re.compile(r"\w"))
    assert answered(second).locator(".markdown").inner_text() == answered(first).locator(".markdown").inner_text()

    first.bring_to_front()  # a click waits for a frame, and Chromium draws few of a page that is behind
    first.locator(".sidebar li.current").get_by_role("button").click()
    first.get_by_role("menuitem", name="Rename").click()
    first.get_by_role("textbox", name="Title").fill("The lighthouse")
    first.keyboard.press("Enter")
    expect(second.locator(".sidebar li.current")).to_have_text("The lighthouse")
    expect(second.get_by_role("heading", level=1)).to_have_text("The lighthouse")
    first.locator(".sidebar li.current").get_by_role("button").click()
    first.get_by_role("menuitem", name="Pin").click()
    expect(
        second.get_by_role("region", name="Pinned").or_(second.locator("section:has(h2:text('Pinned'))"))
    ).to_be_visible()
