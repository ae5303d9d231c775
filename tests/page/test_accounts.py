"""Names as typed, the deletion of accounts, links to reset a password, and the installed page."""

from collections.abc import Callable

import httpx
import pytest
from playwright.sync_api import expect

from ..browser import Fireside, Visit
from ..live import PASSWORD, good
from .steps import answered, ask, box, open_settings, press

SMALL_PHONE = {"width": 360, "height": 740}


@pytest.mark.long
def test_name_as_typed_is_changed_and_the_account_deleted(
    studio: Fireside, admin: httpx.Client, visitor: Callable[..., Visit]
) -> None:
    visit = visitor(studio)
    code = good(admin.post("/admin/invites", json={}))["invite_code"]
    page = visit.open(f"/#invite={code}")
    page.get_by_label("Name").fill("Änna Smith")
    page.get_by_label("Password, 12 characters or more").fill(PASSWORD)
    press(page, "Create account")
    expect(page.locator(".account")).to_contain_text("Änna Smith")
    ask(page, "Keep this?")
    answered(page)
    box(page).fill("A draft")
    other = visit.open()
    open_settings(page, "Account")
    press(page, "Change name")
    dialog = page.get_by_role("dialog", name="Change name")
    name, current = dialog.get_by_label("Name"), dialog.get_by_label("Current password")
    expect(name).to_have_value("Änna Smith")
    expect(name).to_be_focused()
    name.fill("Anna O\u2019Hara")
    current.fill("not the password")
    press(dialog, "Change name")
    expect(dialog.get_by_role("alert")).to_have_text("The current password is wrong.")
    current.fill(PASSWORD)
    page.keyboard.press("Enter")
    expect(dialog).to_have_count(0)
    expect(page.get_by_role("button", name="Change name")).to_be_focused()
    expect(page.get_by_role("listitem").filter(has_text="Change name")).to_contain_text("Anna O'Hara")
    for tab in (page, other):
        expect(tab.locator(".account")).to_contain_text("Anna O'Hara")
    expect(other.locator(".welcome h2")).to_contain_text("Anna O'Hara")

    press(page, "Delete account")
    dialog = page.get_by_role("dialog", name="Delete account")
    expect(dialog).to_contain_text("your account with 1 chat, those in the bin included")
    expect(dialog).to_contain_text("the daily ones for 7 days")
    with page.expect_download() as saved:
        press(dialog, "Save my chats first")
    assert saved.value.suggested_filename.endswith(".zip")
    dialog.get_by_label("Current password").fill("not the password")
    press(dialog, "Delete account")
    expect(dialog.get_by_role("alert")).to_have_text("The current password is wrong.")
    dialog.get_by_label("Current password").fill(PASSWORD)
    page.keyboard.press("Enter")
    for tab in (page, other):
        expect(tab.get_by_role("button", name="Sign in")).to_be_visible()
    assert not any("draft" in key for key in page.evaluate("Object.keys(localStorage)"))
    page.get_by_label("Name").fill("anna o'hara")
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    press(page, "Sign in")
    expect(page.get_by_role("alert")).to_have_text("The name or the password is wrong.")


@pytest.mark.long
def test_administrator_resets_a_password_and_deletes_a_user(
    studio: Fireside, admin: httpx.Client, visitor: Callable[..., Visit], new_visit: Callable[..., Visit]
) -> None:
    bob = studio.join(admin, "Bob Ross")
    page = new_visit("admin", viewport=SMALL_PHONE).open()
    page.get_by_role("button", name="Chats", exact=True).click()
    open_settings(page, "Users and invites")
    press(page, "Change Bob Ross")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Reset the password of Bob Ross")
    link = dialog.locator("code").first.inner_text()
    expect(dialog).to_contain_text("The link is shown only now.")
    page.keyboard.press("Escape")
    assert bob.get("/auth/me").status_code == 200
    guest = visitor(studio).open(link)
    guest.get_by_label("New password, 12 characters or more").fill("password1234")
    press(guest, "Set password")
    expect(guest.get_by_role("alert")).to_contain_text("too easy to guess")
    guest.get_by_label("New password, 12 characters or more").fill("another long phrase")
    guest.keyboard.press("Enter")
    expect(guest.locator(".account")).to_contain_text("Bob Ross")
    assert bob.get("/auth/me").status_code == 401
    stale = visitor(studio).open(link)
    stale.get_by_label("New password, 12 characters or more").fill("another long phrase")
    press(stale, "Set password")
    expect(stale.get_by_role("alert")).to_have_text("This link is no longer valid. Ask an administrator for a new one.")

    press(page, "Change Bob Ross")
    page.get_by_role("menuitem", name="Delete").click()
    sure = page.get_by_role("dialog", name="Delete Bob Ross?")
    expect(sure).to_contain_text("only Bob Ross can read them")
    sure.get_by_role("button", name="Delete user").click()
    expect(page.get_by_role("button", name="Change Bob Ross")).to_have_count(0)
    ask(guest, "Am I still in?")
    expect(guest.get_by_role("button", name="Sign in")).to_be_visible()
