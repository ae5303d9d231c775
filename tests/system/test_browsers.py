"""The main flows of the page in Firefox and in WebKit. tests/page has every flow, in Chromium."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from ..browser import NO_ENGINE, Fireside
from ..live import PASSWORD, good
from ..page.steps import PNG, new, stream
from ..upstream import Upstream, answer
from ..webdriver import Tab, firefox, missing_firefox, missing_webkit, webkit

CODE = "A function:\n\n```python\ndef add(a, b):\n    return a + b\n```\n"
BOX = "textarea[aria-label=Message]"
ANSWER = ".message.assistant.last .markdown"

pytestmark = pytest.mark.long


@pytest.mark.parametrize(
    "browser",
    [
        pytest.param(firefox, marks=pytest.mark.skipif(bool(missing_firefox()), reason=missing_firefox())),
        pytest.param(webkit, marks=pytest.mark.skipif(bool(missing_webkit()), reason=missing_webkit())),
    ],
)
def test_main_flows_work(browser: Callable[[Path], AbstractContextManager[Tab]], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("Milk\nBread\n", "utf-8")
    (tmp_path / "dot.png").write_bytes(PNG)
    with (
        Upstream() as lmstudio,
        Fireside(tmp_path / "data", NO_ENGINE, lmstudio_url=lmstudio.url) as fireside,
        browser(tmp_path) as page,
    ):
        ann = fireside.first()
        page.resize(1280, 820)
        other_chat = new(ann, "An older chat")
        page.open(fireside.url)
        page.watch()
        page.fill("input", "ann", "Name")
        page.fill("input", PASSWORD, "Password")
        page.press("Sign in")
        page.expect(BOX)

        # Stream, stop, retry.
        gates = stream(lmstudio, "One, ", "**two**, ", "three.")
        page.fill(BOX, "Count to three")
        page.keys("Enter")
        page.expect(ANSWER, "One")
        gates[0].open()
        page.expect(f"{ANSWER} strong", "two")
        page.press("Stop")
        page.expect(".halted", "Stopped.")
        lmstudio.enqueue(answer("One, two, three."))
        page.press("Try again")
        page.expect(ANSWER, "three.")
        lmstudio.enqueue(answer(CODE))
        page.press("Another answer")
        page.expect(f"{ANSWER} pre", "return a + b")

        page.press("Copy answer")
        page.wait_for("document.querySelector('#announcer').innerText === 'Copied'")

        # Edit a question.
        page.press("Edit question")
        page.fill("textarea", "Count to two", "Edited question")
        lmstudio.enqueue(answer("One, two."))
        page.keys("Control", "Enter")
        page.expect(ANSWER, "One, two.")
        page.expect(".message.user", "Count to two")
        assert [chat["messages"][-1]["content"] for chat in lmstudio.chats[-2:]] == ["Count to three", "Count to two"]

        # Attach a file and an image, for a model that sees images.
        page.press("Model: Llama 3.2 3B Instruct")
        page.expect("dialog")
        page.keys("Escape")
        page.expect_none("dialog")
        page.press("Model: Llama 3.2 3B Instruct")
        page.click(".model-pick", "Qwen2.5 VL 7B Instruct")
        page.attach("input[aria-label='Files to attach']", tmp_path / "notes.txt", tmp_path / "dot.png")
        page.expect(".chip", "notes.txt")
        page.wait_for("document.querySelector('.composer img')?.naturalWidth === 1")
        page.fill(BOX, "What is missing?")
        lmstudio.enqueue(answer("Butter."))
        page.press("Send")
        page.expect(ANSWER, "Butter.")
        page.wait_for("document.querySelector('.message.user img')?.naturalWidth === 1")
        [text, image] = lmstudio.chats[-1]["messages"][-1]["content"]
        assert "Milk\nBread" in text["text"] and image["image_url"]["url"].startswith("data:image/png")

        # Rename the chat, search it, delete it and restore it. A row that moves keeps the focus.
        page.hover(".sidebar li.current")
        page.click(".sidebar li.current button")
        page.click("[role=menuitem]", "Rename")
        page.fill("input", "Shopping", "Title")
        page.keys("Enter")
        page.expect(".sidebar li.current", "Shopping")
        page.click("a", "New chat")
        page.expect(".welcome")
        page.fill("input[type=search]", "butter")
        page.click(".results a", "Shopping")
        page.expect(ANSWER, "Butter.")
        page.click("input[type=search]")
        page.keys("Escape")
        page.click(".sidebar li.current button")
        page.click("[role=menuitem]", "Delete")
        page.click(".toast button", "Undo")
        page.expect(".sidebar li", "Shopping")
        page.evaluate(f"document.querySelector('.sidebar a[href$=\"/c/{other_chat}\"]').focus()")
        good(ann.patch(f"/conversations/{other_chat}", json={"pinned": True}))
        page.evaluate("dispatchEvent(new Event('focus'))")
        page.expect(".sidebar h2", "Pinned")
        page.wait_for("document.activeElement.innerText === 'An older chat'")

        # Settings.
        page.click(".account")
        page.click("[role=menuitem]", "Settings")
        page.click("[role=tab]", "General")
        page.click("label", "Dark")
        page.wait_for("getComputedStyle(document.documentElement).colorScheme === 'dark'")
        for section in page.evaluate("[...document.querySelectorAll('[role=tab]')].map((tab) => tab.innerText)"):
            page.click("[role=tab]", section)
            page.wait_for(
                "document.querySelector('[role=tabpanel]').getAttribute('aria-labelledby') === document.activeElement.id"
            )
        page.keys("Escape")
        page.expect_none("dialog")
        assert page.problems == []

        # A narrow window; WebKitGTK's is at least 450 pixels wide. The page is loaded again, because WebKitGTK 2.50 may keep
        # old results of media queries after a resize, for example while a text box has text.
        page.resize(450, 844)
        page.reload()
        page.watch()
        page.press("Chats")
        page.click(".sidebar a", "Shopping")
        page.expect(ANSWER, "Butter.")
        page.wait_for("document.documentElement.scrollWidth === 450")
        page.press("Chats")
        assert page.problems == []
        page.click(".account")
        page.click("[role=menuitem]", "Sign out")
        page.expect("button", "Sign in")
        assert {chat["title"] for chat in good(ann.get("/conversations"))} == {"An older chat", "Shopping"}
