"""Single messages: edit an answer, compare versions, delete, restore, branch."""

import re

import pytest
from playwright.sync_api import Page, expect

from ..browser import Visit
from ..live import good
from ..upstream import Upstream, answer
from .axe import Screens
from .steps import QWEN, Held, answered, ask, box, imported, messages, open_settings, press

TALK = ["One?", "First.", "Two?", "Second.", "Three?", "Third."]


def open_talk(visit: Visit) -> tuple[Page, int]:
    imported(visit.client, [("Talk", TALK)], [{"model": "a-model"}] * 3)
    chat: int = good(visit.client.get("/conversations"))[0]["id"]
    page = visit.open(f"/#/c/{chat}")
    expect(page.locator(".message")).to_have_count(6)
    return page, chat


def choose(page: Page, menu: str, item: str, index: int = 0) -> None:
    """Open the menu of a message, and choose an item, by keyboard."""
    page.get_by_role("button", name=menu).nth(index).focus()
    page.keyboard.press("Enter")
    for _ in range(8):
        if page.locator(":focus").inner_text().startswith(item):
            break
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")


def texts(page: Page) -> list[str]:
    return page.locator(".message :is(.text, .markdown)").all_inner_texts()


@pytest.mark.long
def test_answer_is_edited_in_place_and_the_next_question_is_answered_on_it(visit: Visit, lmstudio: Upstream) -> None:
    page, chat = open_talk(visit)
    choose(page, "More about this answer", "Edit answer", 1)
    editor = page.get_by_role("textbox", name="Edited answer")
    expect(editor).to_have_value("Second.")
    expect(page.locator(".editor small")).to_have_text("Saved as another version. What follows stays with this one.")
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="More about this answer").nth(1)).to_be_focused()
    choose(page, "More about this answer", "Edit answer", 1)
    editor.fill("The **second**.")
    # Else the page finds the server again, and shows the saved version.
    page.route("**/health", lambda route: route.abort())
    held = Held(page, r"/edit$", response=True)
    page.keyboard.press("Control+Enter")
    held.wait()
    held.routes[0].abort()  # the answer to the request is lost
    expect(page.locator(".toast")).to_contain_text("cannot be reached")
    expect(editor).to_have_value("The **second**.")
    press(page, "Save")
    expect(page.locator(".last .edited")).to_have_text("edited")
    assert texts(page) == ["One?", "First.", "Two?", "The second."]
    press(page, "Version 2 of 2")
    expect(page.get_by_role("menuitemradio")).to_have_text(["1 · a-model", "2 · a-model, edited"])
    page.keyboard.press("Escape")
    lmstudio.enqueue(answer("Third, again."))
    ask(page, "And then?")
    answered(page)
    assert [message["content"] for message in lmstudio.chats[-1]["messages"]] == [
        *TALK[:3],
        "The **second**.",
        "And then?",
    ]
    assert messages(visit.client, chat)[3]["versions"]["edited"] == [False, True]  # type: ignore[index]


@pytest.mark.long
def test_versions_of_two_models_are_compared_side_by_side_and_on_a_phone_in_turn(
    visit: Visit, lmstudio: Upstream
) -> None:
    page, chat = open_talk(visit)
    for words in ("From Qwen", "Once more"):
        lmstudio.enqueue(answer(words, model=QWEN["model"]))
        body = {"conversation_id": chat, "message_id": messages(visit.client, chat)[1]["id"], **QWEN}
        generation = good(visit.client.post("/chat/retry", json=body))["generation_id"]
        assert "event: done" in visit.client.get(f"/generations/{generation}/stream").text
    page.reload()
    screens = Screens(page)
    expect(page.get_by_role("button", name="Previous version")).to_have_attribute(
        "title", f"Previous version: 2 · {QWEN['model']}"
    )
    press(page, "Version 3 of 3")
    page.get_by_role("menuitem", name="Compare versions…").click()
    first, second = (page.get_by_role("region", name=f"{place} version") for place in ("First", "Second"))
    expect(first.locator(".markdown")).to_have_text("From Qwen")
    expect(second.locator(".markdown")).to_have_text("Once more")
    expect(second.get_by_role("button", name="Shown")).to_be_disabled()
    first.get_by_role("combobox").select_option("1 · a-model")
    expect(first.locator(".markdown")).to_have_text("First.")
    screens.check("side by side")
    page.set_viewport_size({"width": 390, "height": 844})
    expect(first).to_be_hidden()
    tab = page.get_by_role("button", name="1 · a-model")
    tab.click()
    expect(second).to_be_hidden()
    expect(tab).to_have_attribute("aria-pressed", "true")
    screens.check("in turn")
    press(page, "Use this version")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.locator(".message")).to_have_count(6)
    assert texts(page) == TALK
    assert screens == {}


@pytest.mark.long
def test_message_is_deleted_and_restored_and_a_branch_is_opened(visit: Visit, lmstudio: Upstream) -> None:
    page, chat = open_talk(visit)
    other = visit.open(f"/#/c/{chat}")
    expect(other.locator(".message")).to_have_count(6)
    choose(page, "More about this question", "Delete question and answer", 1)
    expect(page.locator(".toast")).to_contain_text("Question deleted")
    for shown in (page, other):
        expect(shown.locator(".message")).to_have_count(4)
        assert texts(shown) == ["One?", "First.", "Three?", "Third."]
    press(page, "Undo")
    expect(page.locator(".message")).to_have_count(6)
    assert texts(page) == TALK
    choose(page, "More about this answer", "Delete answer", 0)
    expect(page.locator(".message")).to_have_count(5)
    lmstudio.enqueue(answer("Fourth."))
    ask(page, "Four?")
    answered(page)
    open_settings(page, "Bin")
    expect(page.get_by_role("tabpanel", name="Bin").locator("li")).to_have_text(
        re.compile("First.From “Talk”, deleted")
    )
    press(page, "Restore First.")
    expect(page.get_by_text("The bin is empty.")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.locator(".message")).to_have_count(8)
    assert texts(page) == [*TALK, "Four?", "Fourth."]
    for count in (6, 4, 2):
        choose(page, "More about this question", "Delete question and answer")
        expect(page.locator(".message")).to_have_count(count)
    choose(page, "More about this answer", "Branch to a new chat")
    expect(page.get_by_role("heading", level=1)).to_have_text("Talk (branch)")
    assert texts(page) == ["Four?", "Fourth."]
    expect(page.locator(".list li.current")).to_have_text("Talk (branch)")
    expect(box(page)).to_be_focused()
    good(visit.client.delete(f"/conversations/{chat}"))
    open_settings(page, "Bin")
    press(page, "Empty the bin")
    expect(page.get_by_role("dialog", name="Empty the bin?")).to_contain_text("All 4 entries in it")
    press(page, "Empty it")
    expect(page.get_by_text("The bin is empty.")).to_be_visible()
    assert good(visit.client.get("/conversations?deleted=true")) == []
