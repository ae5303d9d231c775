"""Folders, choosing several conversations, the order of the list, and temporary chats."""

import io
import json
import zipfile

from playwright.sync_api import Locator, Page, Request, expect

from ..browser import Visit
from ..live import good
from ..upstream import Upstream
from .steps import ask, imported, new, open_row_menu, press, stream, wait


def option(page: Page, name: str) -> None:
    press(page, "Options of the list")
    page.get_by_role("menuitem", name=name, exact=True).click()


def name_it(page: Page, name: str) -> None:
    page.get_by_role("textbox", name="Name").fill(name)
    page.keyboard.press("Enter")


def test_folder_is_filled_by_menu_and_by_dragging_and_deleted_with_an_undo(visit: Visit, lmstudio: Upstream) -> None:
    for title in ("One", "Two", "Three"):
        new(visit.client, title=title)
    page = visit.open()
    option(page, "New folder")
    name_it(page, "Work")
    work = page.get_by_role("region", name="Work")
    rows = work.locator("li a")
    expect(work).to_contain_text("No chats in it")
    row = page.locator(".list li", has_text="One")
    open_row_menu(row, "Move to a folder")
    page.get_by_role("menuitem", name="Work").click()
    expect(rows).to_have_text(["One"])
    page.locator(".list li a", has_text="Two").drag_to(work.get_by_role("heading"))
    expect(rows).to_have_text(["Two", "One"])
    rows.first.drag_to(page.get_by_role("region", name="Today").get_by_role("heading"))
    expect(rows).to_have_text(["One"])
    press(page, "More about the folder Work")
    page.get_by_role("menuitem", name="New chat in it").click()
    expect(page.locator(".temporary-line")).to_contain_text("New chat in “Work”")
    ask(page, "Four")
    expect(rows).to_have_text(["Four", "One"])
    fold = work.locator(".fold")
    fold.click()
    expect(fold).to_have_attribute("aria-expanded", "false")
    expect(rows).to_have_count(0)
    page.reload()
    expect(fold).to_have_attribute("aria-expanded", "false")
    press(page, "More about the folder Work")
    page.get_by_role("menuitem", name="Rename").click()
    name_it(page, "Job")
    job = page.get_by_role("region", name="Job")
    expect(job).to_contain_text("2")
    press(page, "More about the folder Job")
    page.get_by_role("menuitem", name="Delete the folder").click()
    expect(job).to_have_count(0)
    expect(page.get_by_role("region", name="Today").locator("li a")).to_have_text(["Four", "Three", "Two", "One"])
    press(page, "Undo")
    expect(job.locator("li a")).to_have_text(["Four", "One"])


def test_many_are_selected_and_moved_exported_and_deleted_with_one_undo(visit: Visit) -> None:
    imported(visit.client, [(f"Chat {number:03}", ["Hello"]) for number in range(130)])
    good(visit.client.post("/folders", json={"name": "Old"}))
    page = visit.open()
    option(page, "Sort by name")
    loose = page.get_by_role("region", name="By name").locator("li a")
    expect(loose.first).to_have_text("Chat 000")
    page.reload()
    for count in (60, 120, 130):
        expect(loose).to_have_count(count)
        page.locator(".list").evaluate("(node) => { node.scrollTop = node.scrollHeight; }")
    expect(loose.last).to_have_text("Chat 129")

    def row(number: int) -> Locator:
        return page.get_by_role("checkbox", name=f"Chat {number:03}", exact=True)

    loose.nth(2).click(modifiers=["Control"])
    row(5).click(modifiers=["Shift"])
    row(7).focus()
    page.keyboard.press("Space")
    page.keyboard.press("Shift+ArrowDown")
    bar = page.get_by_role("group", name="Selected chats")
    expect(bar).to_contain_text("6 selected")
    row(4).click()
    expect(row(4)).not_to_be_checked()
    with page.expect_download() as download:
        press(page, "Export the selected chats")
    with zipfile.ZipFile(io.BytesIO(download.value.path().read_bytes())) as archive:
        read = [json.loads(archive.read(name)) for name in archive.namelist() if name.endswith(".json")]
    assert [one["title"] for one in read] == [f"Chat {number:03}" for number in (2, 3, 5, 7, 8)]
    expect(bar).to_have_count(0)
    option(page, "Select chats")
    expect(row(0)).to_be_focused()
    page.keyboard.press("Control+a")
    expect(bar).to_contain_text("130 selected")
    press(page, "Delete the selected chats")
    expect(loose).to_have_count(0)
    assert good(visit.client.get("/conversations")) == []
    press(page, "Undo")
    expect(loose).to_have_count(130)
    loose.nth(0).click(modifiers=["Control"])
    row(9).click(modifiers=["Shift"])
    press(page, "Move the selected chats")
    page.get_by_role("menuitem", name="Old", exact=True).click()
    expect(page.get_by_role("region", name="Old").locator("li a")).to_have_count(10)
    expect(loose).to_have_count(120)
    option(page, "Select chats")
    expect(row(0)).to_be_focused()
    page.keyboard.press("Escape")
    expect(bar).to_have_count(0)


def test_temporary_chat_is_marked_left_and_kept(visit: Visit, lmstudio: Upstream) -> None:
    ordinary = new(visit.client, title="Ordinary")
    page = visit.open()
    told: list[object] = []

    def listen(request: Request) -> None:
        if "/presence" in request.url:
            told.append(json.loads(request.post_data or "")["open"])

    page.on("request", listen)
    switch = page.get_by_role("switch", name="Temporary chat")
    expect(switch).not_to_be_checked()
    switch.click()
    expect(switch).to_be_checked()
    stream(lmstudio, "A secret")
    ask(page, "Hush")
    line = page.locator(".temporary-line")
    expect(line).to_contain_text("Temporary chat. Not in the list, and deleted when you leave it.")
    expect(page.locator("main.temporary")).to_be_visible()
    rows = page.locator(".list li a")
    expect(page.locator(".message.assistant .markdown")).to_have_text("A secret")
    expect(rows).to_have_text(["Ordinary"])
    address = page.url
    wait(page, lambda: told == [True])
    second = visit.open(address.removeprefix(visit.url))
    expect(second.locator(".message.assistant .markdown")).to_have_text("A secret")
    second.goto(f"/#/c/{ordinary}")
    expect(second.get_by_role("heading", level=1)).to_have_text("Ordinary")
    expect(second.locator(".temporary-line")).to_be_hidden()
    press(page, "Keep this chat")
    expect(rows).to_have_text(["Hush", "Ordinary"])
    expect(line).to_be_hidden()
    wait(page, lambda: told == [True, False])
