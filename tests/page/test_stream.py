"""The stream of an answer: lost connections, stopping, hidden tabs."""

import re
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import expect

from ..browser import NO_ENGINE, Fireside, Visit
from ..live import good
from ..upstream import Upstream, answer
from .steps import Held, answered, ask, box, expect_toast, messages, next_frame, open_settings, press, stream, wait

HIDE = """(hidden) => {
    Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
    document.dispatchEvent(new Event("visibilitychange"));
}"""


def test_lost_connection_is_shown_and_resumed_without_repetition(
    tmp_path: Path, visitor: Callable[..., Visit], lmstudio: Upstream
) -> None:
    with Fireside(tmp_path, NO_ENGINE, lmstudio_url=lmstudio.url) as fireside:
        visit = visitor(fireside, fireside.first())
        page = visit.open()
        banner = page.locator(".banner")
        lost, back = stream(lmstudio, "One, two, ", "three, ", "four.")
        ask(page, "Count")
        expect(page.locator(".message.assistant .markdown")).to_contain_text("two")
        visit.context.set_offline(True)
        box(page).fill("A draft")
        lost.open()
        page.get_by_role("searchbox", name="Search chats").fill("a request that fails")
        expect(banner).to_be_visible()
        visit.context.set_offline(False)
        expect(banner).to_be_hidden()
        back.open()
        expect(answered(page).locator(".markdown")).to_have_text("One, two, three, four.")
        expect(box(page)).to_have_value("A draft")

        fireside.kill()
        box(page).press("Enter")
        expect(banner).to_be_visible()
        expect(box(page)).to_have_value("A draft")
        fireside.start()
        expect(banner).to_be_hidden()
        lmstudio.enqueue(answer("Here again"))
        box(page).press("Enter")
        expect(answered(page)).to_contain_text("Here again")
        texts = [message["content"] for message in messages(visit.client, 1)]
        assert texts == ["Count", "One, two, three, four.", "A draft", "Here again"]


def test_stop_waits_for_the_connection_and_the_next_message_stays(visit: Visit, lmstudio: Upstream) -> None:
    (gate,) = stream(lmstudio, "One, ", "two.")
    page = visit.open()
    ask(page, "Count")
    expect(page.locator(".message.assistant .markdown")).to_contain_text("One")
    box(page).fill("And then?")
    visit.context.set_offline(True)
    press(page, "Stop")
    expect_toast(page, "The answer will be stopped as soon as Fireside can be reached.")
    for key in ("Enter", "Control+Enter"):
        box(page).press(key)
        expect_toast(page, "Not sent: Fireside cannot be reached. Your text is still here.")
    visit.context.set_offline(False)
    expect(page.locator(".halted p", has_text="Stopped.")).to_be_visible()
    expect(box(page)).to_have_value("And then?")
    lmstudio.enqueue(answer("Three"))
    box(page).press("Enter")
    expect(answered(page)).to_contain_text("Three")
    gate.open()


def test_hidden_tab_leaves_its_stream_and_resumes_it(visit: Visit, lmstudio: Upstream) -> None:
    """A browser has six connections for all tabs together."""
    first, second = stream(lmstudio, "One, ", "two, ", "three.")
    page = visit.open()
    ask(page, "Count")
    text = page.locator(".message.assistant .markdown")
    expect(text).to_contain_text("One")
    with page.expect_event("requestfailed", lambda request: "/stream" in request.url):
        page.evaluate(HIDE, True)
    first.open()
    with page.expect_request(re.compile(r"/generations/[^/]+/stream\?after=\d+")):
        page.evaluate(HIDE, False)
    expect(text).to_contain_text("two")
    second.open()
    expect(answered(page).locator(".markdown")).to_have_text("One, two, three.")


def test_answer_that_ends_in_a_hidden_tab_is_noticed(new_visit: Callable[..., Visit], lmstudio: Upstream) -> None:
    """In the title, in the icon, and by a notification, which a switch asks for."""
    visit = new_visit()
    (gate,) = stream(lmstudio, "One, ", "two.")
    visit.context.clock.install()
    visit.context.add_init_script(
        """window.notified = [];
        window.Notification = class {
            static permission = "default";
            static requestPermission = async () => { Notification.permission = "granted"; };
            constructor(title, { body }) { notified.push([title, body]); }
        };"""
    )
    page = visit.open()
    open_settings(page)
    page.get_by_label("Notify me while this tab is hidden").click()
    expect(page.get_by_label("Notify me while this tab is hidden")).to_be_checked()
    page.keyboard.press("Escape")
    ask(page, "Count")
    expect(page.locator(".message.assistant .markdown")).to_contain_text("One")
    page.evaluate(HIDE, True)
    gate.open()
    wait(page, lambda: good(visit.client.get("/conversations"))[0]["generation_id"] is None)
    page.clock.fast_forward(3000)
    expect(page).to_have_title("✓ Count")
    icon = page.locator("link[rel=icon]")
    expect(icon).to_have_attribute("href", "/static/answered.svg")
    assert page.evaluate("notified") == [["Answer finished", "Count"]]
    page.evaluate(HIDE, False)
    expect(page).to_have_title("Count")
    expect(icon).to_have_attribute("href", "/static/favicon.svg")


def test_hidden_tab_polls_one_answer_once_and_stops_when_the_conversation_is_gone(
    new_visit: Callable[..., Visit], lmstudio: Upstream
) -> None:
    visit = new_visit()
    (gate,) = stream(lmstudio, "One, ", "two.")
    visit.context.clock.install()
    page = visit.open()
    ask(page, "Count")
    text = page.locator(".message.assistant .markdown")
    expect(text).to_contain_text("One")
    chat = good(visit.client.get("/conversations"))[0]["id"]
    polls: list[str] = []
    page.on("request", lambda request: polls.append(request.url) if re.search(DETAILS, request.url) else None)

    page.evaluate(HIDE, True)
    slow = Held(page, DETAILS, response=True)
    page.clock.fast_forward(3000)
    slow.wait()
    with page.expect_event("requestfailed", lambda request: request == slow.routes[0].request):
        page.evaluate(HIDE, False)
        page.clock.fast_forward(100)

    page.evaluate(HIDE, True)
    good(visit.client.delete(f"/conversations/{chat}"))
    good(visit.client.delete(f"/conversations/{chat}?purge=true"))
    with page.expect_response(lambda found: found.status == 404 and re.search(DETAILS, found.url) is not None):
        page.clock.fast_forward(3000)
    page.evaluate("fetch('/health').then((found) => found.text())")  # the page has handled the 404 before this arrives
    polls.clear()
    page.clock.fast_forward(20_000)
    next_frame(page)
    assert polls == []
    gate.open()


DETAILS = r"/conversations/(\d+|null)$"
