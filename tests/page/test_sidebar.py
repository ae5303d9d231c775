"""The list of conversations, its search, and the bin."""

import contextlib
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path

import httpx
from playwright.sync_api import expect

from ..browser import NO_ENGINE, Fireside, Watched
from ..live import good
from ..upstream import Upstream
from .steps import imported, new


def test_search_finds_texts_and_jumps_to_the_message(at_studio: tuple[Watched, httpx.Client]) -> None:
    visit, client = at_studio
    long = ["Which word do you like?", "The word is zephyr, a gentle wind.", *["And another line.\n\n" * 3] * 150]
    imported(client, [("Words", long), ("Something else", ["Hello"])])
    page = visit.open()
    expect(page.locator(".list li")).to_have_count(2)
    page.keyboard.press("Control+k")
    page.keyboard.type("zeph")
    result = page.locator(".results a")
    expect(result).to_have_count(1)
    expect(result.locator("mark")).to_have_text("zeph")
    page.keyboard.press("Enter")
    found = page.locator(".message.assistant", has_text="zephyr")
    expect(found).to_be_in_viewport()
    expect(found).to_be_focused()
    page.keyboard.press("Control+k")
    page.keyboard.press("Escape")
    expect(page.get_by_role("searchbox", name="Search conversations")).to_have_value("")
    expect(page.locator(".list")).to_be_visible()


def test_a_deleted_conversation_comes_back_by_undo_and_from_the_bin(at_studio: tuple[Watched, httpx.Client]) -> None:
    visit, client = at_studio
    chat = new(client, "Dear diary")
    page = visit.open(f"/#/c/{chat}")
    row = page.locator(".sidebar li", has_text="Dear diary")
    row.get_by_role("button").click()
    page.get_by_role("menuitem", name="Delete").click()
    expect(row).to_have_count(0)
    expect(page.get_by_role("heading", level=1)).to_have_text("New chat")
    page.get_by_role("button", name="Undo").click()
    expect(row).to_be_visible()
    expect(page.locator(".message.user")).to_contain_text("Dear diary")

    row.get_by_role("button").click()
    page.get_by_role("menuitem", name="Delete").click()
    expect(row).to_have_count(0)
    page.locator(".account").click()
    page.get_by_role("menuitem", name="Bin").click()
    page.get_by_role("button", name="Restore Dear diary").click()
    page.keyboard.press("Escape")
    expect(row).to_be_visible()


def test_a_click_counts_though_what_is_clicked_is_drawn_anew_under_it(at_studio: tuple[Watched, httpx.Client]) -> None:
    visit, client = at_studio
    page = visit.open(f"/#/c/{new(client, title='Here')}")
    expect(page.get_by_role("heading", level=1)).to_have_text("Here")
    for button, opened in ((".account", "[role=menu]"), (".pill", "dialog")):
        page.locator(button).hover()
        page.mouse.down()
        with page.expect_response("**/conversations?pinned=true*"), page.expect_response("**/messages?*"):
            page.evaluate("() => window.dispatchEvent(new Event('focus'))")
        page.evaluate("new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)))")
        page.mouse.up()
        expect(page.locator(opened)).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.locator(opened)).to_have_count(0)


def test_old_conversations_in_the_list_follow_what_is_done_to_them(at_studio: tuple[Watched, httpx.Client]) -> None:
    visit, client = at_studio
    imported(client, [(f"Old {number}", ["Hello"]) for number in range(100)])
    page = visit.open()
    rows = page.locator(".list li")
    expect(rows).to_have_count(60)
    page.locator(".list").evaluate("(node) => { node.scrollTop = node.scrollHeight; }")
    expect(rows).to_have_count(100)
    for title, act in (("Old 5", "Delete"), ("Old 7", "Rename")):
        rows.filter(has_text=re.compile(f"^{title}$")).get_by_role("button").click()
        page.get_by_role("menuitem", name=act).click()
        expect(rows).to_have_count(99)
    page.get_by_role("textbox", name="Title").fill("Renamed")
    page.keyboard.press("Enter")
    expect(rows.filter(has_text="Renamed")).to_have_count(1)
    expect(rows).to_have_count(99)
    page.get_by_role("button", name="Undo").click()
    expect(rows).to_have_count(100)
    rows.filter(has_text="Renamed").get_by_role("link").click()
    rows.filter(has_text="Renamed").get_by_role("button").click()
    page.get_by_role("menuitem", name="Rename").click()
    page.get_by_role("textbox", name="Title").fill("Once more")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Once more")


def test_a_row_that_moves_up_keeps_its_focus_and_the_title_that_is_being_written(
    at_studio: tuple[Watched, httpx.Client],
) -> None:
    visit, client = at_studio
    older = new(client, title="Older")
    new(client, title="Newer")
    page = visit.open()
    rows = page.locator(".list li")
    expect(rows).to_have_text(["Newer", "Older"])
    rows.last.get_by_role("button").click()
    page.get_by_role("menuitem", name="Rename").click()
    title = page.get_by_role("textbox", name="Title")
    title.fill("Half a ti")
    good(client.post(f"/conversations/{older}/messages", json={"content": "Hello"}))
    page.evaluate("() => window.dispatchEvent(new Event('focus'))")
    expect(rows.last).to_have_text("Newer")
    expect(rows.first.locator(title)).to_be_focused()
    page.keyboard.type("tle")
    page.keyboard.press("Enter")
    expect(rows).to_have_text(["Half a title", "Newer"])


def test_thousands_of_conversations_are_loaded_as_one_scrolls(
    tmp_path: Path, visitor: Callable[..., Watched], lmstudio: Upstream
) -> None:
    fireside = Fireside(tmp_path, NO_ENGINE, lmstudio_url=lmstudio.url)
    with fireside:
        client = fireside.first()
    row = "INSERT INTO conversations (user_id, title, title_key, created_at, updated_at) VALUES (1, ?, ?, ?, ?)"
    time = "2026-01-01T00:00:00.{:06}"
    with contextlib.closing(sqlite3.connect(tmp_path / "fireside.db")) as database, database:
        titles = (
            (f"Conversation {number}", f"conversation {number}", time.format(0), time.format(number))
            for number in range(2000)
        )
        database.executemany(row, titles)
    with fireside:
        page = visitor(fireside, client).open()
        rows = page.locator(".list li")
        expect(rows.first).to_have_text("Conversation 1999")
        assert rows.count() < 300
        while (before := rows.count()) < 2000:
            page.locator(".list").evaluate("(node) => { node.scrollTop = node.scrollHeight; }")
            page.wait_for_function("(before) => document.querySelectorAll('.list li').length > before", arg=before)
        expect(rows).to_have_count(2000)
        expect(rows.last).to_have_text("Conversation 0")
