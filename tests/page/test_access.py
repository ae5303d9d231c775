"""By keyboard, on a phone, over plain http, over a slow line, and what axe finds on each screen."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from fireside import config
from fireside.cli.browser import page_address
from playwright.sync_api import expect

from .. import upstream as script
from ..browser import DESKTOP, NO_ENGINE, PHONE, Fireside, Visit
from ..live import PASSWORD, good
from ..upstream import DONE, Upstream, answer, finish, reasoning, text, usage
from .axe import Screens
from .steps import DOT, answered, attach, box, imported, new, open_settings, press, refocus, stream

SMALL_PHONE = {"width": 360, "height": 740}
SECTIONS = (
    "General",
    "Prompts",
    "Presets",
    "Account",
    "Other programs",
    "Your data",
    "Bin",
    "Usage",
    "Model servers",
    "Users and invites",
)


def test_everything_is_reached_by_keyboard(visit: Visit, lmstudio: Upstream) -> None:
    older, newer = new(visit.client, "The older one"), new(visit.client, "The newer one")
    page = visit.open(f"/#/c/{newer}")
    answered(page)
    page.keyboard.press("Alt+ArrowDown")
    page.wait_for_url(f"**/#/c/{older}")
    page.keyboard.press("Alt+ArrowUp")
    page.wait_for_url(f"**/#/c/{newer}")
    expect(page.locator(".message.user")).to_contain_text("The newer one")
    answered(page)
    lmstudio.enqueue(answer("Another"))
    page.keyboard.press("Control+Shift+Enter")
    expect(page.locator(".switch")).to_contain_text("2/2")
    answered(page)
    page.keyboard.press("Control+Shift+C")
    page.keyboard.press("Control+Shift+O")
    expect(page.get_by_role("heading", level=1)).to_have_text("New chat")
    expect(box(page)).to_be_focused()

    (gate,) = stream(lmstudio, "Slowly ", "never")
    page.keyboard.type("first line")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("second line")
    page.keyboard.press("Enter")
    expect(page.locator(".message.user .text")).to_have_text("first line\nsecond line", use_inner_text=True)
    expect(page.locator(".message.assistant .markdown")).to_contain_text("Slowly")
    page.keyboard.press("Escape")
    expect(page.locator(".halted p", has_text="Stopped.")).to_be_visible()
    gate.open()

    page.keyboard.press("ArrowUp")
    editor = page.get_by_role("textbox", name="Edited question")
    expect(editor).to_be_focused()
    page.keyboard.press("Escape")
    expect(editor).to_have_count(0)
    expect(box(page)).to_be_focused()
    page.keyboard.press("Control+.")
    expect(page.get_by_role("dialog", name="Models")).to_be_visible()
    page.keyboard.type("qwen")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Model: Qwen2.5 VL 7B Instruct")).to_be_visible()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keyboard shortcuts")).to_be_visible()
    page.keyboard.press("Escape")

    reached = set()
    name = "document.activeElement.getAttribute('aria-label') || document.activeElement.textContent.trim()"
    outlined = "getComputedStyle(document.activeElement).outlineStyle !== 'none'"
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate(name))
        assert page.evaluate(f"{outlined} || document.activeElement.matches('body, .composer textarea')")
    assert {"New chatCtrl ⇧ O", "Search chats", "Copy answer", "Try again", "Message"} <= reached


def test_phone_chats_lists_and_sets(new_visit: Callable[..., Visit], lmstudio: Upstream) -> None:
    visit = new_visit(viewport=PHONE, has_touch=True, is_mobile=True)
    new(visit.client, "An older conversation")
    page = visit.open()
    sidebar = page.get_by_role("navigation", name="Chats")
    expect(sidebar).to_be_hidden()
    box(page).fill("From the sofa")
    page.get_by_role("button", name="Send").tap()
    answered(page)
    (gate,) = stream(lmstudio, "One, ", "two.")
    box(page).fill("Count")
    page.get_by_role("button", name="Send").tap()
    expect(page.locator(".message.assistant.last .markdown")).to_contain_text("One")
    page.get_by_role("button", name="Chats", exact=True).tap()
    expect(sidebar).to_be_visible()
    page.keyboard.down("Escape")
    expect(sidebar).to_be_hidden()
    page.keyboard.down("Escape")  # held: the key repeats, and does not stop the answer
    page.keyboard.up("Escape")
    gate.open()
    expect(answered(page).locator(".markdown")).to_have_text("One, two.")
    page.get_by_role("button", name="Chats", exact=True).tap()
    page.get_by_role("link", name="An older conversation").tap()
    expect(sidebar).to_be_hidden()
    expect(page.locator(".message.user")).to_contain_text(["An older conversation"])  # a list: there may still be two
    page.get_by_role("button", name="Chat settings").tap()
    page.get_by_label("Instructions for the model").fill("Be brief.")
    expect(page.get_by_role("status").filter(has_text="Saved")).to_be_visible()
    page.get_by_role("button", name="Close", exact=True).tap()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_first_visit_is_small(new_visit: Callable[..., Visit]) -> None:
    visit, sizes = new_visit(), dict[str, int]()
    visit.context.on("requestfinished", lambda one: sizes.update({one.url: one.sizes()["responseBodySize"]}))
    page = visit.open()
    expect(page.locator(".welcome")).to_be_visible()
    page.wait_for_load_state("networkidle")
    files = {url: size for url, size in sizes.items() if "/static/" in url or url == visit.url + "/"}
    assert len(files) <= 40
    assert sum(files.values()) < 120_000, files  # compressed
    manifest = visit.context.new_cdp_session(page).send("Page.getAppManifest")
    assert manifest["errors"] == [] and manifest["manifest"]["display"] == "kStandalone"


@pytest.fixture(params=[DESKTOP, SMALL_PHONE], ids=["desktop", "phone"])
def viewport(request: pytest.FixtureRequest) -> dict[str, int]:
    size: dict[str, int] = request.param
    return size


@pytest.mark.long
def test_screens_before_the_first_answer_are_accessible(
    tmp_path: Path, viewport: dict[str, int], visitor: Callable[..., Visit]
) -> None:
    with Fireside(tmp_path, NO_ENGINE, lmstudio_url="http://127.0.0.1:9") as fireside:
        settings = config.load({"data_dir": str(tmp_path)}, {})
        link = page_address(settings, fireside.url, fireside.setup_link())
        page = visitor(fireside, viewport=viewport).open(link)
        screens = Screens(page)
        name, password = page.get_by_label("Name"), page.get_by_label("Password, 12 characters or more")
        expect(page.get_by_role("heading", name="Welcome to Fireside")).to_be_visible()
        screens.check("setup")
        name.fill("ann")
        password.fill("password1234")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).not_to_be_empty()
        screens.check("setup, refused")
        code = good(fireside.first().post("/admin/invites", json={"role": "user"}))["invite_code"]
        page.goto(f"/#invite={code}")
        expect(page.get_by_role("heading", name="You are invited")).to_be_visible()
        screens.check("invite")
        name.fill("bob")
        password.fill(PASSWORD)
        page.keyboard.press("Enter")
        page.get_by_text("Where Fireside looks").click()
        screens.check("no model")
        page.keyboard.press("?")
        expect(page.get_by_role("dialog", name="Keyboard shortcuts")).to_be_visible()
        screens.check("shortcuts")
        assert screens == {}


@pytest.mark.long
def test_screens_are_accessible(viewport: dict[str, int], lmstudio: Upstream, new_visit: Callable[..., Visit]) -> None:
    visit = new_visit("admin", viewport=viewport)
    client = visit.client
    markdown = "# Title\n\nSome `code`, a [link](https://example.org) and $x^2$.\n\n| a | b |\n|--|--|\n| 1 | 2 |\n\n"
    markdown += "- [x] done\n- [ ] open\n\n> quoted\n\n```python\nclass A:  # comment\n    b = 'text' + 1\n```\n"
    markdown += "<kbd>Esc</kbd> <mark>marked</mark> H<sub>2</sub>O, see [here][1] and below[^1].\n\n<details open>\n<summary>More</summary>\n\n"
    markdown += "Less\n</details>\n\n[1]: https://example.org\n[^1]: A *note*.\n\n"
    markdown += "".join(f"> [!{kind}]\n> Mind this\n\n" for kind in ("NOTE", "TIP", "IMPORTANT", "WARNING", "CAUTION"))
    lmstudio.enqueue(reasoning("Let me see."), text(markdown), finish("length"), usage(3000, 500), DONE)
    somebody = f"Somebody-with-a-very-long-name-{viewport['width']}"
    new_visit(name=somebody)
    chat = new(client, "What can you show on the other side of the mountains?\n\nlist.txt:\n```txt\nmilk\n```")
    lmstudio.enqueue(script.status(500, {"error": {"message": "broken"}}))
    failed = new(client, "Fail, please")
    deleted = new(client, title="A conversation whose title is too long for a line of a phone, and goes on in the next")
    good(client.delete(f"/conversations/{deleted}"))
    counts = {"prompt_tokens": 128_800_000, "completion_tokens": 123_456, "total_tokens": 128_923_456}
    used = {"model": "mistral-small-3.2-24b-instruct-2506", "token_usage": counts, "stats": {"tokens_per_second": 108}}
    imported(client, [("Much", ["Read this", "I did"])], [used])
    page = visit.open(f"/#/c/{chat}")
    screens = Screens(page)
    expect(page.get_by_role("button", name="Continue")).to_be_visible()
    assert page.locator(".top .title").evaluate("(node) => node.offsetWidth") > 80
    for folded in page.locator("details summary").all():
        folded.click()
    screens.check("chat")
    press(page, "Chat settings")
    page.get_by_label("Temperature").fill("15")
    expect(page.get_by_role("alert").filter(has_text="Not saved")).to_be_visible()
    screens.check("panel")
    page.keyboard.press("Escape")
    good(client.post(f"/conversations/{failed}/messages", json={"content": "And then?", "queue": True}))
    page.goto(f"/#/c/{failed}")
    expect(page.locator(".failed")).to_be_visible()
    expect(page.locator(".queue")).to_be_visible()
    screens.check("failed")
    page.goto("/#/")
    expect(page.locator(".welcome")).to_be_visible()
    attach(page, ("note.txt", b"milk"), DOT)
    expect(page.locator(".advice-box")).to_be_visible()
    screens.check("new chat with files")
    page.get_by_role("link", name="dot.png", exact=True).click()
    expect(page.locator(".viewer img")).to_be_visible()
    screens.check("viewer")
    page.keyboard.press("Escape")
    expect(page.get_by_role("link", name="dot.png", exact=True)).to_be_focused()
    if viewport == SMALL_PHONE:
        press(page, "Chats")
        expect(page.locator(".sidebar")).to_be_in_viewport(ratio=0.99)
        screens.check("list")
    page.keyboard.press("Control+k")
    page.keyboard.type("show")
    expect(page.locator(".results a").first).to_be_visible()
    screens.check("search")
    page.keyboard.press("Escape")
    page.locator(".list li button").first.dispatch_event("click")
    expect(page.get_by_role("menu")).to_be_visible()
    screens.check("menu")
    page.keyboard.press("Escape")
    good(client.post("/folders", json={"name": "A folder whose name is too long for a line of the list"}))
    refocus(page)
    expect(page.locator(".folder")).to_be_visible()
    press(page, "Options of the list")
    page.get_by_role("menuitem", name="Select chats").click()
    page.get_by_role("checkbox").first.click()
    screens.check("selection")
    press(page, "Stop selecting")
    press(page, "Options of the list")
    page.get_by_role("menuitem", name="New folder").click()
    expect(page.get_by_role("dialog", name="New folder")).to_be_visible()
    screens.check("new folder")
    page.keyboard.press("Escape")
    open_settings(page)
    for section in SECTIONS:
        page.get_by_role("tab", name=section).click()
        expect(page.get_by_role("tabpanel", name=section).locator(".section > *").first).to_be_visible()
        if section == "Account":
            press(page, "Delete account")
            expect(page.get_by_role("dialog", name="Delete account")).to_be_visible()
            screens.check("delete account")
            page.keyboard.press("Escape")
            expect(page.get_by_role("button", name="Delete account")).to_be_focused()
        if section == "Your data":
            page.get_by_label("Files to import").set_input_files(__file__)
            expect(page.get_by_text("Nothing was imported.")).to_be_visible()
        if section == "Users and invites":
            press(page, "Make an invite")
            expect(page.locator(".command")).to_be_visible()
            user = page.get_by_role("button", name=f"Change {somebody}")
            user.click()
            screens.check("menu of a user")
            page.get_by_role("menuitem", name="Reset password").click()
            expect(page.get_by_role("dialog", name=f"Reset the password of {somebody}")).to_be_visible()
            screens.check("reset link")
            page.keyboard.press("Escape")
            expect(user).to_be_focused()
        screens.check(section)
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    page.get_by_role("button", name=re.compile("^Model:")).click()
    expect(page.locator(".model-pick").first).to_be_visible()
    screens.check("models")
    good(client.post("/auth/logout"))
    page.reload()
    page.get_by_text("Forgot your password?").click()
    screens.check("sign in")
    page.goto("/#reset=x")
    expect(page.get_by_role("heading", name="Choose a new password")).to_be_visible()
    screens.check("new password")
    assert screens == {}
