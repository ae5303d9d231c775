"""By keyboard, on a phone, for a screen reader, over a slow line."""

import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from axe_playwright_python.base import AXE_SCRIPT
from fireside import config
from fireside.cli.browser import page_address
from playwright.sync_api import FilePayload, Page, expect

from .. import upstream as script
from ..browser import DESKTOP, NO_ENGINE, PHONE, Fireside, Watched
from ..live import PASSWORD, good
from ..upstream import DONE, Gate, Upstream, answer, finish, pause, reasoning, text, usage
from .steps import answered, ask, imported, names, new


def test_everything_is_reached_by_keyboard(at_studio: tuple[Watched, httpx.Client], lmstudio: Upstream) -> None:
    visit, client = at_studio
    older = new(client, "The older one")
    newer = new(client, "The newer one")
    page = visit.open(f"/#/c/{newer}")
    answered(page)
    page.keyboard.press("Alt+ArrowDown")
    page.wait_for_url(f"**/#/c/{older}")
    page.keyboard.press("Alt+ArrowUp")
    page.wait_for_url(f"**/#/c/{newer}")
    expect(page.locator(".message.user")).to_contain_text("The newer one")  # the older one is not shown any more
    answered(page)
    lmstudio.enqueue(answer("Another"))
    page.keyboard.press("Control+Shift+Enter")
    expect(page.locator(".switch")).to_contain_text("2/2")
    answered(page)
    page.keyboard.press("Control+Shift+C")
    page.keyboard.press("Control+Shift+O")
    expect(page.get_by_role("heading", level=1)).to_have_text("New chat")
    box = page.get_by_role("textbox", name="Message")
    expect(box).to_be_focused()

    gate = Gate()
    lmstudio.enqueue(text("Slowly "), pause(gate), text("never"), DONE)
    page.keyboard.type("first line")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("second line")
    page.keyboard.press("Enter")
    expect(page.locator(".message.user .text")).to_have_text("first line\nsecond line", use_inner_text=True)
    expect(page.locator(".message.assistant .markdown")).to_contain_text("Slowly")
    page.keyboard.press("Escape")
    expect(page.get_by_text("Stopped.", exact=True)).to_be_visible()
    gate.open()

    page.keyboard.press("ArrowUp")
    editor = page.get_by_role("textbox", name="Edited question")
    expect(editor).to_be_focused()
    page.keyboard.press("Escape")
    expect(editor).to_have_count(0)
    expect(box).to_be_focused()
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
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "document.activeElement.getAttribute('aria-label') || document.activeElement.textContent.trim()"
            )
        )
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none" or page.evaluate("document.activeElement.matches('body, .composer textarea')")
    assert {"New chatCtrl ⇧ O", "Search conversations", "Copy answer", "Another answer", "Message"} <= reached


def test_it_works_on_a_phone(studio: Fireside, bea: httpx.Client, visitor: Callable[..., Watched]) -> None:
    client = studio.join(bea, next(names))
    new(client, "An older conversation")
    page = visitor(studio, client, viewport=PHONE, has_touch=True, is_mobile=True).open()
    expect(page.get_by_role("navigation", name="Conversations")).to_be_hidden()
    page.get_by_role("textbox", name="Message").fill("From the sofa")
    page.get_by_role("button", name="Send").tap()
    answered(page)
    page.get_by_role("button", name="Conversations").tap()
    page.get_by_role("link", name="An older conversation").tap()
    expect(page.get_by_role("navigation", name="Conversations")).to_be_hidden()
    expect(page.locator(".message.user")).to_contain_text("An older conversation")
    page.get_by_role("button", name="Conversation settings").tap()
    page.get_by_label("Instructions for the model").fill("Be brief.")
    expect(page.get_by_role("status").filter(has_text="Saved")).to_be_visible()
    page.get_by_role("button", name="Close", exact=True).tap()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("width", [360, 390, 1280])
def test_nothing_is_cut_off_at_the_side(
    width: int, studio: Fireside, bea: httpx.Client, visitor: Callable[..., Watched]
) -> None:
    client = studio.join(bea, next(names), "admin")
    studio.join(bea, f"somebody-with-a-long-name-{next(names)}")
    deleted = new(client, title="A conversation whose title is too long for a line of a phone, and goes on in the next")
    good(client.delete(f"/conversations/{deleted}"))
    counts = {"prompt_tokens": 128_800_000, "completion_tokens": 123_456, "total_tokens": 128_923_456}
    used = {
        "model": "mistral-small-3.2-24b-instruct-2506",
        "token_usage": counts,
        "stats": {"tokens_per_second": 108.4},
    }
    imported(client, [("Much", ["Read this", "I did"])], [used])
    chat = new(client, "How is the weather on the other side of the mountains?")
    page = visitor(studio, client, viewport={"width": width, "height": 740}).open(f"/#/c/{chat}")
    answered(page)
    title = page.locator(".top .title").bounding_box()
    assert title is not None
    assert title["width"] > 80
    if width < 820:
        page.get_by_role("button", name="Conversations").click()
    page.locator(".account").click()
    page.get_by_role("menuitem", name="Settings").click()
    cut = "(node) => [node, ...node.querySelectorAll('*')].filter((one) => one.scrollWidth > one.clientWidth + 1"
    cut += " && one.clientWidth && getComputedStyle(one).overflowX !== 'visible').length"
    for tab in ("General", "New chats", "Account", "Your data", "Bin", "Usage", "Household"):
        page.get_by_role("tab", name=tab).click()
        section = page.get_by_role("tabpanel", name=tab)
        expect(section.locator(".section > *").first).to_be_visible()
        if tab == "Household":
            page.get_by_role("button", name="Make an invite").click()
            expect(page.locator(".command")).to_be_visible()
        assert (tab, section.evaluate(cut)) == (tab, 0)


def test_the_list_takes_the_keyboard_in_a_narrow_window_as_it_moves_in(
    studio: Fireside, bea: httpx.Client, visitor: Callable[..., Watched]
) -> None:
    watched = visitor(studio, bea, viewport={"width": 700, "height": 800}, reduced_motion="no-preference")
    page = watched.open(f"/#/c/{new(bea, title='Narrow')}")
    expect(page.get_by_role("textbox", name="Message")).to_be_focused()
    page.keyboard.press("Control+k")
    page.keyboard.type("narrow")
    expect(page.get_by_role("searchbox", name="Search conversations")).to_have_value("narrow")
    for _ in range(2):  # out of the search, out of the list
        page.keyboard.press("Escape")
    expect(page.locator(".sidebar")).not_to_be_visible()
    page.get_by_role("button", name="Conversations").click()
    expect(page.locator(".sidebar")).to_be_focused()


def test_code_is_copied_also_where_the_page_came_over_plain_http(
    at_studio: tuple[Watched, httpx.Client], lmstudio: Upstream
) -> None:
    visit, _ = at_studio
    # What a page lacks that came over plain http from another computer.
    visit.context.add_init_script("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    lmstudio.enqueue(answer("```python\n", "print('hello')\n", "```\n"))
    page = visit.open()
    ask(page, "Code, please")
    answered(page)
    expect(page.locator("pre .nb")).to_have_text("print")
    page.get_by_role("button", name="Copy code").click()
    box = page.get_by_role("textbox", name="Message")
    box.click()
    page.keyboard.press("Control+v")
    expect(box).to_have_value("print('hello')")


def test_the_first_visit_is_small_and_asks_nobody_else(at_studio: tuple[Watched, httpx.Client]) -> None:
    visit, _ = at_studio
    loaded: dict[str, int] = {}
    visit.context.on(
        "requestfinished", lambda request: loaded.update({request.url: request.sizes()["responseBodySize"]})
    )
    page = visit.open()
    expect(page.locator(".welcome")).to_be_visible()
    page.wait_for_load_state("networkidle")
    files = {url: size for url, size in loaded.items() if "/static/" in url or url == visit.url + "/"}
    assert len(files) <= 30
    assert sum(files.values()) < 60_000, files  # compressed, as they are sent


def blemishes(page: Page) -> list[str]:
    """What axe finds on the screen that is shown, in light, and in dark, where the contrast alone is another."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE_SCRIPT)
    violations = page.evaluate("async () => (await axe.run({ resultTypes: ['violations'] })).violations")
    page.emulate_media(color_scheme="dark")
    violations += page.evaluate(
        "async () => (await axe.run({ resultTypes: ['violations'], runOnly: ['color-contrast'] })).violations"
    )
    page.emulate_media(color_scheme="light")
    return [f"{rule['id']}: {[node['html'][:120] for node in rule['nodes']]}" for rule in violations]


@pytest.fixture(params=[DESKTOP, PHONE], ids=["desktop", "phone"])
def viewport(request: pytest.FixtureRequest) -> dict[str, int]:
    size: dict[str, int] = request.param
    return size


def test_axe_finds_nothing_on_the_way_in(
    tmp_path: Path, viewport: dict[str, int], visitor: Callable[..., Watched]
) -> None:
    with Fireside(tmp_path, NO_ENGINE, lmstudio_url="http://127.0.0.1:9") as fireside:
        settings = config.load({"data_dir": str(tmp_path)}, {})
        page = visitor(fireside, viewport=viewport).open(page_address(settings, fireside.url, fireside.setup_link()))
        found = {}
        expect(page.get_by_role("heading", name="Welcome to Fireside")).to_be_visible()
        found["setup"] = blemishes(page)
        page.get_by_label("Name").fill("ann")
        page.get_by_label("Password, 12 characters or more").fill("password1234")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text(re.compile("."))
        found["setup, refused"] = blemishes(page)
        client = fireside.first()
        code = good(client.post("/admin/invites", json={"role": "user"}))["invite_code"]
        page.goto(f"/#invite={code}")
        expect(page.get_by_role("heading", name="You are invited")).to_be_visible()
        found["invite"] = blemishes(page)
        page.get_by_label("Name").fill("bob")
        page.get_by_label("Password, 12 characters or more").fill(PASSWORD)
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="No model server yet")).to_be_visible()
        found["no model"] = blemishes(page)
        page.get_by_text("Where Fireside looks").click()
        found["where it looks"] = blemishes(page)
        page.keyboard.press("?")
        expect(page.get_by_role("dialog", name="Keyboard shortcuts")).to_be_visible()
        found["shortcuts"] = blemishes(page)
        assert {screen: rules for screen, rules in found.items() if rules} == {}


def test_axe_finds_nothing(
    viewport: dict[str, int],
    studio: Fireside,
    bea: httpx.Client,
    lmstudio: Upstream,
    visitor: Callable[..., Watched],
) -> None:
    lmstudio.enqueue(
        reasoning("Let me see."),
        text(
            "# Title\n\nSome `code`, a [link](https://example.org) and $x^2$.\n\n", "| a | b |\n|--|--|\n| 1 | 2 |\n\n"
        ),
        text("- [x] done\n- [ ] open\n\n> quoted\n\n```python\nclass A:  # comment\n    b = 'text' + 1\n```\n"),
        finish("length"),
        usage(3000, 500),
        DONE,
    )
    client = studio.join(bea, next(names), "admin")
    chat = new(client, "What can you show?\n\nlist.txt:\n```txt\nmilk\n```")
    lmstudio.enqueue(script.status(500, {"error": {"message": "broken"}}))
    failed = new(client, "Fail, please")
    good(client.delete(f"/conversations/{new(client, title='In the bin')}"))
    watched = visitor(studio, client, viewport=viewport)
    page = watched.open(f"/#/c/{chat}")
    found: dict[str, list[str]] = {}

    def look(screen: str) -> None:
        found[screen] = blemishes(page)

    expect(page.get_by_role("button", name="Continue")).to_be_visible()
    for folded in page.locator("details summary").all():
        folded.click()
    look("chat")
    page.get_by_role("button", name="Conversation settings").click()
    expect(page.locator(".panel")).to_be_visible()
    page.get_by_label("Temperature").fill("15")
    expect(page.get_by_role("alert").filter(has_text="Not saved")).to_be_visible()
    look("panel")
    page.keyboard.press("Escape")
    page.goto(f"/#/c/{failed}")
    expect(page.locator(".failed")).to_be_visible()
    look("failed")
    page.goto("/#/")
    expect(page.locator(".welcome")).to_be_visible()
    note = FilePayload(name="note.txt", mimeType="text/plain", buffer=b"milk")
    page.get_by_label("Files to attach").set_input_files(note)
    expect(page.locator(".chip")).to_be_visible()
    look("new chat")
    if viewport == PHONE:
        page.get_by_role("button", name="Conversations").click()
        expect(page.locator(".sidebar")).to_be_in_viewport(ratio=0.99)
        look("list")
    page.keyboard.press("Control+k")
    page.keyboard.type("show")
    expect(page.locator(".results a").first).to_be_visible()
    look("search")
    page.keyboard.press("Escape")
    page.locator(".list li button").first.dispatch_event("click")
    expect(page.get_by_role("menu")).to_be_visible()
    look("menu")
    page.keyboard.press("Escape")
    page.locator(".account").click()
    page.get_by_role("menuitem", name="Settings").click()
    for tab in ("General", "New chats", "Account", "Your data", "Bin", "Usage", "Household"):
        page.get_by_role("tab", name=tab).click()
        expect(page.get_by_role("tabpanel", name=tab).locator(".section > *").first).to_be_visible()
        if tab == "Your data":
            page.get_by_label("Files to import").set_input_files(note)
            expect(page.get_by_text("Nothing was imported.")).to_be_visible()
        if tab == "Household":
            page.get_by_role("button", name="Make an invite").click()
            expect(page.locator(".command")).to_be_visible()
        look(tab)
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    page.get_by_role("button", name=re.compile("^Model:")).click()
    expect(page.locator(".model-pick").first).to_be_visible()
    look("models")
    good(client.post("/auth/logout"))
    page.reload()
    expect(page.get_by_role("button", name="Sign in")).to_be_visible()
    look("sign in")
    assert {screen: rules for screen, rules in found.items() if rules} == {}
