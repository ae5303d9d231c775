"""Documents: attached, sent, read in the viewer, quoted and found again."""

import re

from playwright.sync_api import Page, expect

from ..browser import Visit
from ..documents.making import docx, paragraph, pdf
from ..upstream import DONE, Upstream, finish, usage
from ..upstream import text as says
from .axe import violations
from .steps import Held, answered, attach, box, press

FILLER = "The survey lists harvests, prices and the weather of each month, and no more."
TRUE = "The committee closed the northern bridge for repairs in the spring"
ALSO = "Every boat on the river needs a lantern after sunset"
INVENTED = "The bridge was opened again by the queen in a golden coach"


def report(page: int = 47, pages: int = 60) -> bytes:
    """Return a PDF with the true quotation on one page, and about 450 tokens on each."""
    true = {page: f"{TRUE}."}
    return pdf(*("\n".join([f"Chapter {at}", *[FILLER] * 22, true.get(at, "")]) for at in range(1, pages + 1)))


def labels(page: Page) -> list[str]:
    """Return the labels of the quotations in the last answer."""
    badges = page.locator(".message.assistant.last .quotation-badge")
    return [badge.get_attribute("data-label") or "" for badge in badges.all()]


def test_documents_are_attached_sent_in_part_quoted_and_read(visit: Visit, lmstudio: Upstream) -> None:
    page = visit.open()
    chips, question, viewer = page.locator(".composer .chip"), page.locator(".message.user"), page.get_by_role("dialog")
    original = report()
    attach(
        page,
        ("report.pdf", original),
        ("rules.docx", docx("".join(map(paragraph, [FILLER, f"{ALSO}."])))),
        ("notes.txt", b"Milk"),
    )
    expect(chips).to_contain_text(["report.pdf60 pages", "rules.docx", "notes.txt4 characters, 4 bytes"])
    expect(page.locator(".advice-box")).to_contain_text("The pages that match your question best are sent")
    box(page).fill("Why was the northern bridge closed?")
    page.reload()
    expect(chips).to_contain_text(["report.pdf60 pages", "rules.docx", "notes.txt4 characters, 4 bytes"])
    press(page, "Remove notes.txt")
    lmstudio.enqueue(
        says(f"It says: “{TRUE.replace('northern', '**northern**')}.”\n\n> {ALSO.replace(' needs', chr(10) + '> needs')}\n\nAnd then “{INVENTED}”."),
        finish(), usage(3000, 40), DONE,
    )  # fmt: skip
    press(page, "Send")
    last = answered(page)
    expect(chips).to_have_count(0)
    expect(question.locator(".document")).to_contain_text(["report.pdf60 pages", "rules.docx"])
    expect(last.locator(".sent")).to_contain_text(re.compile(r"\d+ of 60 pages of report.pdf were sent: 1, .*47"))
    expect(last.locator(".quotation-badge")).to_have_count(3)
    assert labels(page) == ["report.pdf, p. 47", "rules.docx", "not found"]
    copied = last.locator(".markdown").evaluate(
        "(node) => { getSelection().selectAllChildren(node); return getSelection().toString(); }"
    )
    assert copied.split("\n\n") == [f"It says: “{TRUE}.”", ALSO, f"And then “{INVENTED}”."]

    page.set_viewport_size({"width": 390, "height": 844})
    badges = last.locator(".quotation-badge")
    badges.nth(2).click()
    expect(page.locator(".quotation-note")).to_contain_text("was not found in the documents of this chat")
    page.keyboard.press("Escape")
    badges.first.focus()
    page.keyboard.press("Enter")
    expect(viewer).to_have_accessible_name("report.pdf")
    expect(viewer.locator("mark")).to_have_text(TRUE)
    expect(viewer.locator("mark")).to_be_in_viewport()
    expect(viewer.get_by_label("Page to go to")).to_have_value("47")
    assert violations(page) == []
    page.set_viewport_size({"width": 1280, "height": 820})
    expect(viewer.locator(".sent-pages")).to_contain_text("of 60 pages were sent with this answer:1")
    with page.expect_download() as download:
        viewer.get_by_role("button", name="Original").click()
    assert download.value.path().read_bytes() == original
    page.keyboard.press("Control+f")
    page.keyboard.type("chapter")
    status = viewer.get_by_role("status").first
    expect(status).to_have_text("Page 47: 47 of 60 pages")
    page.keyboard.press("Enter")
    expect(status).to_have_text("Page 48: 48 of 60 pages")
    for _ in range(2):
        page.keyboard.press("Shift+Enter")
    expect(status).to_have_text("Page 46: 46 of 60 pages")
    expect(viewer.locator("mark.current")).to_be_in_viewport()
    page.keyboard.press("Escape")
    expect(viewer.get_by_role("searchbox")).to_have_value("")
    viewer.get_by_label("Page to go to").fill("20")
    page.keyboard.press("Enter")
    expect(viewer.get_by_role("heading", name="Page 20")).to_be_focused()
    expect(viewer.get_by_text("Chapter 20", exact=False)).to_be_in_viewport()
    page.keyboard.press("Escape")
    expect(viewer).to_have_count(0)
    expect(badges.first).to_be_focused()

    page.keyboard.press("Control+k")
    page.keyboard.type("lantern sunset")
    hit = page.locator(".results a", has_text="rules.docx")
    expect(hit).to_contain_text("needs a lantern after sunset")
    hit.click()
    expect(viewer).to_have_accessible_name("rules.docx")
    expect(viewer.locator("mark")).to_have_text(["lantern", "sunset"])


def test_files_that_cannot_be_sent_say_why_and_others_are_waited_for(visit: Visit, lmstudio: Upstream) -> None:
    page = visit.open()
    chips, toast, waiting = page.locator(".composer .chip"), page.locator(".toast"), page.locator(".waiting")
    page.route(re.compile(r"/attachments\?name=lost"), lambda route: route.abort(), times=1)
    attach(
        page,
        ("lost.txt", b"An honest text"),
        ("broken.pdf", b"%PDF-1.7\nbroken"),
        ("locked.pdf", pdf("A secret", password="open sesame")),
    )
    lost, broken, encrypted = chips.nth(0), chips.nth(1), chips.last
    expect(lost).to_contain_text("The connection was lost.")
    expect(broken.locator(".problem")).not_to_be_empty()
    box(page).fill("What is this?")
    press(page, "Send")
    expect(toast).to_contain_text("broken.pdf cannot be sent.")
    press(page, "Remove broken.pdf")
    press(page, "Send")
    expect(toast.last).to_contain_text("locked.pdf cannot be sent. It needs its password.")
    password = encrypted.get_by_label("Password of locked.pdf")
    password.fill("open barley")
    page.keyboard.press("Enter")
    expect(encrypted).to_contain_text("This password does not open it.")
    expect(password).to_be_focused()
    password.fill("open sesame")
    page.keyboard.press("Enter")
    expect(encrypted).to_contain_text("1 page")
    press(page, "Send")
    expect(waiting).to_contain_text("Sent as soon as lost.txt is read.")
    press(page, "Do not send yet")
    expect(waiting).to_have_count(0)
    press(page, "Try again")
    expect(lost).to_contain_text("14 characters")

    held = Held(page, r"/attachments\?name=late.txt")
    attach(page, ("late.txt", b"Late"), ("never.txt", b"Never"))
    held.wait()
    press(page, "Remove never.txt")
    press(page, "Send")
    expect(waiting).to_contain_text("Sent as soon as late.txt is read.")
    held.release()
    answered(page)
    assert [name for name in ("lost.txt", "locked.pdf", "late.txt", "never.txt") if name in str(lmstudio.chats[-1])] == [
        "lost.txt", "locked.pdf", "late.txt"
    ]  # fmt: skip
