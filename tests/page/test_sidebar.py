"""The list of conversations and its search."""

import re

import pytest
from playwright.sync_api import expect

from ..browser import Visit
from ..live import good
from ..upstream import Upstream
from .steps import ask, imported, new, next_frame, open_row_menu, press, rectangles, refocus, stream


def test_search_finds_texts_and_opens_the_message(visit: Visit) -> None:
    long = ["Which word do you like?", "The word is zephyr, a gentle wind.", *["And another line.\n\n" * 3] * 150]
    imported(visit.client, [("Words", long), ("Something else", ["Hello"])])
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
    expect(page.get_by_role("searchbox", name="Search chats")).to_have_value("")
    expect(page.locator(".list")).to_be_visible()


def test_deleted_conversation_is_restored_by_the_undo_above_the_composer(visit: Visit) -> None:
    page = visit.open(f"/#/c/{new(visit.client, 'Dear diary')}")
    row = page.locator(".sidebar li", has_text="Dear diary")
    open_row_menu(row, "Delete")
    expect(row).to_have_count(0)
    expect(page.get_by_role("heading", level=1)).to_have_text("New chat")
    expect(page.get_by_role("button", name="Undo")).to_be_visible()
    toast, composer = rectangles(page, ".toast", ".composer")
    assert toast["bottom"] <= composer["top"]
    assert abs(toast["left"] + toast["right"] - composer["left"] - composer["right"]) <= 2
    press(page, "Undo")
    expect(row).to_be_visible()
    expect(page.locator(".message.user")).to_contain_text("Dear diary")


def test_click_on_a_button_that_is_drawn_again_while_pressed_counts(visit: Visit) -> None:
    page = visit.open(f"/#/c/{new(visit.client, title='Here')}")
    expect(page.get_by_role("heading", level=1)).to_have_text("Here")
    page.locator(".pill").hover()
    page.mouse.down()
    with page.expect_response("**/messages?*"):
        refocus(page)
    next_frame(page)
    page.mouse.up()
    expect(page.get_by_role("dialog", name="Models")).to_be_visible()


def test_old_conversations_are_loaded_by_scrolling_and_follow_changes(visit: Visit) -> None:
    imported(visit.client, [(f"Old {number}", ["Hello"]) for number in range(130)])
    page = visit.open()
    rows = page.locator(".list li")
    for count in (60, 120, 130):
        expect(rows).to_have_count(count)
        page.locator(".list").evaluate("(node) => { node.scrollTop = node.scrollHeight; }")
    expect(rows.last).to_have_text("Old 0")
    for title, item in (("Old 5", "Delete"), ("Old 7", "Rename")):
        open_row_menu(rows.filter(has_text=re.compile(f"^{title}$")), item)
        expect(rows).to_have_count(129)
    page.get_by_role("textbox", name="Title").fill("Renamed")
    page.keyboard.press("Enter")
    renamed = rows.filter(has_text="Renamed")
    expect(renamed).to_have_count(1)
    expect(rows).to_have_count(129)
    press(page, "Undo")
    expect(rows).to_have_count(130)
    renamed.get_by_role("link").click()
    open_row_menu(renamed, "Rename")
    page.get_by_role("textbox", name="Title").fill("Once more")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Once more")


def test_row_that_moves_keeps_the_focus_and_the_title_being_edited(visit: Visit) -> None:
    older = new(visit.client, title="Older")
    new(visit.client, title="Newer")
    page = visit.open()
    rows = page.locator(".list li")
    expect(rows).to_have_text(["Newer", "Older"])
    open_row_menu(rows.last, "Rename")
    title = page.get_by_role("textbox", name="Title")
    title.fill("Half a ti")
    good(visit.client.post(f"/conversations/{older}/messages", json={"content": "Hello"}))
    refocus(page)
    expect(rows.last).to_have_text("Newer")
    expect(rows.first.locator(title)).to_be_focused()
    page.keyboard.type("tle")
    page.keyboard.press("Enter")
    expect(rows).to_have_text(["Half a title", "Newer"])


@pytest.mark.long
def test_answer_that_ends_in_another_conversation_or_after_the_page_was_closed_is_marked_until_it_is_opened(
    visit: Visit, lmstudio: Upstream
) -> None:
    here = new(visit.client, title="Here")
    page = visit.open()
    (gate,) = stream(lmstudio, "One ", "two")
    ask(page, "Count")
    expect(page.locator(".message.assistant .markdown")).to_contain_text("One")
    page.goto(f"/#/c/{here}")
    row = page.locator(".list li", has_text="Count")
    expect(row).to_have_class("running")
    gate.open()
    expect(row).to_have_class("unread", timeout=15_000)  # all are read again after 30 s
    expect(row.get_by_role("link")).to_have_attribute("aria-description", "New answer")
    page.reload()
    expect(row).to_have_class("unread")
    row.get_by_role("link").click()
    expect(row).to_have_class("current")
    page.reload()
    expect(row).to_have_class("current")

    other = visit.open()
    (gate,) = stream(lmstudio, "One ", "two")
    ask(other, "Once more")
    expect(other.locator(".list li", has_text="Once more")).to_have_class("current running")
    page.goto("about:blank")
    other.close()
    gate.open()
    lmstudio.wait_closed()
    page.goto("/")
    expect(page.locator(".list li", has_text="Once more")).to_have_class("unread")


def test_list_is_hidden_and_resized_and_this_is_remembered(visit: Visit) -> None:
    page = visit.open()
    sidebar, line = page.locator(".sidebar"), page.get_by_role("separator", name="Width of the list")
    line.focus()
    for key, width in (("ArrowRight", 300), ("End", 480), ("Home", 200)):
        page.keyboard.press(key)
        expect(sidebar).to_have_css("width", f"{width}px")
    line.hover()
    page.mouse.down()
    page.mouse.move(400, 300)
    page.mouse.up()
    expect(sidebar).to_have_css("width", "400px")
    press(page, "Hide the list")
    expect(sidebar).to_be_hidden()
    expect(line).to_be_hidden()
    page.reload()
    expect(page.locator(".welcome")).to_be_visible()
    expect(sidebar).to_be_hidden()
    page.keyboard.press("Control+k")
    page.keyboard.type("found")
    expect(page.get_by_role("searchbox", name="Search chats")).to_have_value("found")
    press(page, "Hide the list")
    press(page, "Chats")
    expect(sidebar).to_be_focused()
    expect(sidebar).to_have_css("width", "400px")

    page.set_viewport_size({"width": 700, "height": 800})
    page.emulate_media(reduced_motion="no-preference")  # it has the focus while it moves in
    expect(sidebar).not_to_be_visible()
    page.keyboard.press("Control+k")
    page.keyboard.type(" again")
    expect(page.get_by_role("searchbox", name="Search chats")).to_have_value("found again")
    for _ in range(2):  # the first clears the search, the second hides the list
        page.keyboard.press("Escape")
    expect(sidebar).not_to_be_visible()
    press(page, "Chats")
    expect(sidebar).to_be_focused()


def test_search_shows_each_conversation_once_with_its_matches_and_goes_on_beyond_the_first_results(
    visit: Visit,
) -> None:
    imported(visit.client, [("Winds", [f"zephyr {number}" for number in range(6)]), ("One", ["A zephyr", "Yes"])])
    page = visit.open()
    page.get_by_role("searchbox", name="Search chats").fill("zephyr")
    rows = page.locator(".results li")
    expect(rows).to_have_count(2)
    winds = rows.filter(has_text="Winds")
    expect(winds.locator("strong")).to_have_count(1)
    expect(winds.locator("a:visible")).to_have_count(3)
    press(page, "3 more")
    expect(winds.locator("a:visible")).to_have_count(6)
    expect(winds.locator("a").nth(3)).to_be_focused()

    imported(visit.client, [(f"Breeze {number:02}", [f"sirocco {number}", "Yes"]) for number in range(70)])
    page.get_by_role("searchbox", name="Search chats").fill("sirocco")
    expect(rows).to_have_count(50)
    expect(page.get_by_text("The first 50 matches")).to_be_visible()
    press(page, "More results")
    expect(rows).to_have_count(70)
    expect(rows.nth(50).locator("a")).to_be_focused()
    expect(page.get_by_text("70 matches")).to_be_visible()


def test_whole_conversation_is_printed_without_the_shell(visit: Visit) -> None:
    imported(visit.client, [("Long", [f"Text {number}" for number in range(150)])])
    page = visit.open()
    page.evaluate("window.print = () => { window.printed = document.querySelectorAll('.message').length; }")
    open_row_menu(page.locator(".list li", has_text="Long"), "Print")
    page.wait_for_function("() => window.printed")
    assert page.evaluate("printed") == 150
    page.evaluate("window.printed = 0")
    page.keyboard.press("Control+p")
    page.wait_for_function("() => window.printed === 150")
    page.emulate_media(media="print")
    for part in (".sidebar", ".composer", ".pill", ".message footer button"):
        expect(page.locator(part).first).to_be_hidden()
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    assert page.evaluate("document.body.scrollHeight > 150 * 40")
