"""A conversation, answered by a scripted LM Studio: what streams, what is lost and comes back, and who is not disturbed."""

import base64
import itertools
import random
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import httpx
from playwright.sync_api import APIResponse, Page, Route, expect

from .. import upstream as script
from ..browser import NO_ENGINE, Fireside, Watched
from ..live import good
from ..upstream import DONE, Gate, Upstream, answer, finish, pause, reasoning, text, usage
from .steps import CLEAR_GIF, PNG, answered, ask, imported, new, wait


def test_reasoning_is_folded_and_timed_and_the_answer_announced_once(
    at_studio: tuple[Watched, httpx.Client], lmstudio: Upstream
) -> None:
    visit, _ = at_studio
    gate = Gate()
    lmstudio.enqueue(reasoning("I should ", "greet."), pause(gate), text("Hello **you**"), finish(), usage(10, 5), DONE)
    page = visit.open()
    page.evaluate(
        """() => {
            window.said = [];
            new MutationObserver(() => said.push(document.getElementById("announcer").textContent))
                .observe(document.getElementById("announcer"), { childList: true });
        }"""
    )
    ask(page, "Hi")
    thoughts = page.locator("details.reasoning")
    expect(thoughts.locator("summary")).to_have_text("Thinking")
    expect(thoughts.locator(".thoughts")).to_be_hidden()
    thoughts.locator("summary").click()
    expect(thoughts.locator(".thoughts")).to_have_text("I should greet.")
    gate.open()
    expect(answered(page).locator("strong")).to_have_text("you")
    expect(thoughts.locator("summary")).to_contain_text(re.compile(r"Thought for (a moment|.* s)"))
    assert page.evaluate("said") == ["Answer finished. Hello you"]


def test_the_phases_before_the_first_token_are_told(
    at_studio: tuple[Watched, httpx.Client], lmstudio: Upstream
) -> None:
    visit, _ = at_studio
    gate = Gate()
    lmstudio.enqueue(pause(gate), *[answer("Done")])
    page = visit.open()
    ask(page, "Hi")
    expect(page.locator(".phase")).to_contain_text(re.compile("Reading the conversation|Waiting for the model"))
    expect(page.get_by_role("progressbar", name="Progress")).to_be_visible()
    gate.open()
    expect(answered(page)).to_contain_text("Done")
    expect(page.locator(".phase")).to_be_hidden()


def test_a_failure_says_why_and_can_be_tried_again(at_studio: tuple[Watched, httpx.Client], lmstudio: Upstream) -> None:
    visit, _ = at_studio
    lmstudio.enqueue(script.status(500, {"error": {"message": "The tensor is upside down."}}))
    page = visit.open()
    ask(page, "Hi")
    expect(page.locator(".failed")).to_contain_text("tensor is upside down")
    expect(page.get_by_role("button", name="Copy answer")).to_have_count(0)
    lmstudio.enqueue(answer("Better now"))
    page.get_by_role("button", name="Try again").evaluate("(button) => { button.click(); button.click(); }")
    expect(answered(page)).to_contain_text("Better now")
    expect(page.locator(".switch")).to_have_text("2/2")
    expect(page.locator(".toast")).to_have_count(0)


def test_an_earlier_answer_is_asked_for_again_and_nothing_is_lost(
    at_studio: tuple[Watched, httpx.Client], lmstudio: Upstream
) -> None:
    visit, client = at_studio
    imported(client, [("Rivers", ["What is a river?", "Water.", "And a lake?", "Still water."])])
    page = visit.open()
    page.get_by_role("link", name="Rivers", exact=True).click()
    lmstudio.enqueue(answer("Water that flows."))
    page.locator(".message", has_text="Water.").first.get_by_role("button", name="Another answer").click()
    expect(answered(page)).to_contain_text("Water that flows.")
    expect(page.locator(".message")).to_have_count(2)
    page.get_by_role("button", name="Previous version").click()
    expect(page.locator(".message.assistant.last")).to_contain_text("Still water.")


def test_a_lost_connection_shows_and_mends_itself_and_nothing_is_twice(
    tmp_path: Path, visitor: Callable[..., Watched], lmstudio: Upstream
) -> None:
    with Fireside(tmp_path, NO_ENGINE, lmstudio_url=lmstudio.url) as fireside:
        client = fireside.first()
        visit = visitor(fireside, client)
        page = visit.open()
        gate, after = Gate(), Gate()
        parts = (
            text("One, two, "),
            pause(gate),
            text("three, "),
            pause(after),
            text("four."),
            finish(),
            usage(9, 4),
            DONE,
        )
        lmstudio.enqueue(*parts)
        ask(page, "Count")
        expect(page.locator(".message.assistant .markdown")).to_contain_text("two")
        visit.context.set_offline(True)
        page.get_by_role("textbox", name="Message").fill("A draft that must not be lost")
        banner = page.locator(".banner")
        gate.open()
        page.get_by_role("searchbox", name="Search conversations").fill("asked in vain")
        expect(banner).to_be_visible()
        visit.context.set_offline(False)
        expect(banner).to_be_hidden()
        after.open()
        expect(answered(page).locator(".markdown")).to_have_text("One, two, three, four.")
        expect(page.get_by_role("textbox", name="Message")).to_have_value("A draft that must not be lost")

        fireside.kill()
        page.get_by_role("textbox", name="Message").press("Enter")
        expect(banner).to_be_visible()
        expect(page.get_by_role("textbox", name="Message")).to_have_value("A draft that must not be lost")
        fireside.start()
        expect(banner).to_be_hidden()
        lmstudio.enqueue(answer("Here again"))
        page.get_by_role("textbox", name="Message").press("Enter")
        expect(answered(page)).to_contain_text("Here again")
        texts = [found["content"] for found in good(client.get("/conversations/1/messages"))]
        assert texts == ["Count", "One, two, three, four.", "A draft that must not be lost", "Here again"]


def test_what_is_written_while_a_stop_waits_for_the_connection_is_not_sent_and_says_so(
    at_studio: tuple[Watched, httpx.Client], lmstudio: Upstream
) -> None:
    visit, _ = at_studio
    gate = Gate()
    lmstudio.enqueue(text("One, "), pause(gate), text("two."), finish(), usage(9, 4), DONE)
    page = visit.open()
    ask(page, "Count")
    expect(page.locator(".message.assistant .markdown")).to_contain_text("One")
    toast, box = page.locator(".toast"), page.get_by_role("textbox", name="Message")
    box.fill("And then?")
    box.press("Enter")
    expect(toast).to_contain_text("Wait for the answer, or stop it first.")
    toast.get_by_role("button").click()
    visit.context.set_offline(True)
    page.get_by_role("button", name="Stop").click()
    expect(toast).to_contain_text("The answer will be stopped as soon as Fireside can be reached.")
    toast.get_by_role("button").click()
    for key in ("Enter", "Control+Enter"):
        box.press(key)
        expect(toast).to_have_text("Not sent: Fireside cannot be reached. Your text is still here.")
        toast.get_by_role("button").click()
    visit.context.set_offline(False)
    expect(page.get_by_text("Stopped.", exact=True)).to_be_visible()
    expect(box).to_have_value("And then?")
    lmstudio.enqueue(answer("Three"))
    box.press("Enter")
    expect(answered(page)).to_contain_text("Three")
    gate.open()


def test_what_was_known_before_the_answer_ended_does_not_hold_the_page_up(
    at_studio: tuple[Watched, httpx.Client], lmstudio: Upstream
) -> None:
    """A look at the conversation that began while it was answered comes back when the answer is over, before the next."""
    visit, _ = at_studio
    page, gate = visit.open(), Gate()
    held: list[tuple[Route, APIResponse]] = []
    read_again: list[str] = []

    def hold_two(route: Route) -> None:
        route.continue_() if len(held) == 2 else held.append((route, route.fetch()))

    def come_back(number: int) -> None:
        route, response = held[number]
        with page.expect_event("requestfinished", lambda request: request == route.request):
            route.fulfill(response=response)
        page.evaluate("new Promise(requestAnimationFrame)")

    lmstudio.enqueue(text("One "), pause(gate), text("two"), finish(), usage(9, 2), DONE)
    ask(page, "Count")
    expect(page.locator(".message.assistant .markdown")).to_contain_text("One")
    page.on("request", lambda request: read_again.append(request.url) if "/generations/" in request.url else None)
    page.route(re.compile(r"/conversations/\d+$"), hold_two)
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    wait(page, lambda: len(held) == 1)
    gate.open()
    wait(page, lambda: len(held) == 2)
    come_back(0)
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    come_back(1)
    expect(answered(page).locator(".markdown")).to_have_text("One two")
    lmstudio.enqueue(answer("Three"))
    ask(page, "Go on")
    expect(answered(page).locator(".markdown")).to_have_text("Three")
    assert read_again == []


def test_a_look_that_began_earlier_and_ends_later_changes_nothing(at_studio: tuple[Watched, httpx.Client]) -> None:
    visit, client = at_studio
    chat = new(client, title="Before")
    page = visit.open(f"/#/c/{chat}")
    title, row = page.locator(".top .title"), page.locator(".list li")
    expect(title).to_have_text("Before")
    expect(row).to_have_text("Before")
    held: dict[str, tuple[Route, APIResponse]] = {}

    def hold_the_first(route: Route) -> None:
        path = route.request.url.removeprefix(visit.url)
        route.continue_() if path in held else held.update({path: (route, route.fetch())})

    page.route(re.compile(rf"/conversations(/{chat}|\?limit=60)$"), hold_the_first)
    look = "() => window.dispatchEvent(new Event('focus'))"
    page.evaluate(look)
    wait(page, lambda: len(held) == 2)
    good(client.patch(f"/conversations/{chat}", json={"title": "After"}))
    page.evaluate(look)
    expect(title).to_have_text("After")
    expect(row).to_have_text("After")
    page.evaluate(
        """() => {
            window.seen = [];
            for (const part of document.querySelectorAll(".top, .list")) {
                new MutationObserver(() => seen.push(part.textContent)).observe(part, { childList: true, subtree: true });
            }
        }"""
    )
    for route, response in held.values():
        with page.expect_event("requestfinished", lambda request, route=route: request == route.request):
            route.fulfill(response=response)
    page.evaluate("new Promise(requestAnimationFrame)")
    assert [text for text in page.evaluate("seen") if "Before" in text] == []


def test_an_answer_is_not_hidden_by_a_look_from_before_it_began(
    at_studio: tuple[Watched, httpx.Client], lmstudio: Upstream
) -> None:
    visit, client = at_studio
    page, gate = visit.open(f"/#/c/{new(client)}"), Gate()
    streams: list[Route] = []
    looks: list[tuple[Route, APIResponse]] = []
    page.route(re.compile(r"/stream$"), lambda route: streams.append(route))
    lmstudio.enqueue(text("One "), pause(gate), text("two"), finish(), usage(9, 2), DONE)
    ask(page, "Count")
    wait(page, lambda: streams)
    page.route(re.compile(r"/messages\?"), lambda route: looks.append((route, route.fetch())))
    page.evaluate("() => window.dispatchEvent(new Event('focus'))")
    wait(page, lambda: looks)
    streams[0].continue_()
    shown = page.locator(".message.assistant .markdown")
    expect(shown).to_have_text("One")
    page.unroute(re.compile(r"/messages\?"))
    for route, response in looks:
        with page.expect_event("requestfinished", lambda request, route=route: request == route.request):
            route.fulfill(response=response)
    page.evaluate("new Promise(requestAnimationFrame)")
    assert shown.count() == 1
    gate.open()
    expect(answered(page).locator(".markdown")).to_have_text("One two")


def test_an_edited_question_that_is_not_sent_stays_where_it_was_written(
    at_studio: tuple[Watched, httpx.Client],
) -> None:
    visit, client = at_studio
    page = visit.open(f"/#/c/{new(client, 'Hello')}")
    page.get_by_role("button", name="Edit question").click()
    editor = page.get_by_role("textbox", name="Edited question")
    editor.fill("Hello again")
    visit.context.set_offline(True)
    page.get_by_role("button", name="Send").first.click()
    expect(page.locator(".toast")).to_contain_text("Your text is still here")
    expect(editor).to_have_value("Hello again")
    visit.context.set_offline(False)
    expect(page.locator(".banner")).to_be_hidden()
    page.get_by_role("button", name="Send").first.click()
    expect(page.locator(".message.user")).to_contain_text("Hello again")
    expect(page.locator(".message.user")).to_contain_text("2/2")


def test_an_answer_that_begins_while_the_conversation_is_read_is_shown(
    at_studio: tuple[Watched, httpx.Client], lmstudio: Upstream
) -> None:
    """The messages are read before it begins, the conversation after."""
    visit, client = at_studio
    chat = new(client)
    good(client.post(f"/conversations/{chat}/messages", json={"content": "Count"}))
    page, gate = visit.open(), Gate()
    expect(page.locator(".welcome")).to_be_visible()
    waiting: list[Route] = []
    begun: list[Route] = []

    def messages(route: Route) -> None:
        if begun:
            return route.continue_()
        begun.append(route)
        early = route.fetch()
        lmstudio.enqueue(text("One "), pause(gate), text("two"), finish(), usage(9, 2), DONE)
        good(client.post("/chat/retry", json={"conversation_id": chat}))
        for one in waiting:
            one.continue_()
        route.fulfill(response=early)

    page.route(
        re.compile(rf"/conversations/{chat}$"), lambda route: route.continue_() if begun else waiting.append(route)
    )
    page.route(re.compile(r"/messages\?"), messages)
    page.goto(f"/#/c/{chat}")
    expect(page.locator(".message.assistant .markdown")).to_have_text("One")
    gate.open()
    expect(answered(page).locator(".markdown")).to_have_text("One two")


def test_another_version_may_be_looked_at_while_an_answer_is_written(
    at_studio: tuple[Watched, httpx.Client], lmstudio: Upstream
) -> None:
    visit, client = at_studio
    page = visit.open(f"/#/c/{new(client, 'Hello')}")
    gate, after = Gate(), Gate()
    lmstudio.enqueue(text("One "), pause(gate), text("two "), pause(after), text("three"), finish(), usage(9, 3), DONE)
    page.get_by_role("button", name="Edit question").click()
    page.get_by_role("textbox", name="Edited question").fill("Count")
    page.get_by_role("button", name="Send").first.click()
    written = page.locator(".message.assistant .markdown")
    expect(written).to_have_text("One")
    page.get_by_role("button", name="Previous version").click()
    expect(page.locator(".message.user")).to_contain_text("Hello")
    expect(page.locator(".message")).to_have_count(2)
    page.get_by_role("button", name="Next version").click()
    expect(written).to_have_text("One")
    gate.open()
    expect(written).to_have_text("One two")
    page.get_by_role("button", name="Previous version").click()
    expect(page.locator(".message.user")).to_contain_text("Hello")
    page.reload()
    expect(page.locator(".message.user")).to_contain_text("Hello")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    expect(page.locator(".message")).to_have_count(2)
    page.get_by_role("button", name="Next version").click()
    expect(written).to_have_text("One two")
    after.open()
    expect(answered(page).locator(".markdown")).to_have_text("One two three")


def test_another_conversation_may_be_opened_while_a_question_is_on_its_way(
    at_studio: tuple[Watched, httpx.Client], lmstudio: Upstream
) -> None:
    visit, client = at_studio
    first, second = new(client, title="First"), new(client, title="Second")
    page = visit.open(f"/#/c/{second}")
    page.get_by_role("textbox", name="Message").fill("A draft in the second")
    page.goto(f"/#/c/{first}")
    expect(page.get_by_role("heading", level=1)).to_have_text("First")
    held: list[Route] = []
    page.route(re.compile(r"/messages$"), lambda route: held.append(route))
    lmstudio.enqueue(answer("Here it is"))
    ask(page, "Sent in the first")
    wait(page, lambda: held)
    page.goto(f"/#/c/{second}")
    expect(page.get_by_role("heading", level=1)).to_have_text("Second")
    held[0].continue_()
    while len(found := good(client.get(f"/conversations/{first}/messages"))) < 2 or found[-1]["status"] == "generating":
        page.evaluate("new Promise(requestAnimationFrame)")
    assert [one["content"] for one in found] == ["Sent in the first", "Here it is"]
    expect(page.get_by_role("textbox", name="Message")).to_have_value("A draft in the second")
    page.reload()
    expect(page.get_by_role("textbox", name="Message")).to_have_value("A draft in the second")
    page.goto(f"/#/c/{first}")
    expect(page.locator(".message.assistant")).to_contain_text("Here it is")
    expect(page.get_by_role("textbox", name="Message")).to_have_value("")


def test_a_question_before_the_conversation_is_read_goes_below_its_last_message(
    at_studio: tuple[Watched, httpx.Client], lmstudio: Upstream
) -> None:
    visit, client = at_studio
    chat = new(client, "First")
    held: list[Route] = []
    page = visit.open()
    expect(page.locator(".welcome")).to_be_visible()
    page.route(re.compile(r"/messages\?"), lambda route: route.continue_() if held else held.append(route))
    page.goto(f"/#/c/{chat}")
    wait(page, lambda: held)
    lmstudio.enqueue(answer("Below"))
    ask(page, "Second")
    expect(answered(page)).to_contain_text("Below")
    held[0].continue_()
    assert [one["role"] for one in good(client.get(f"/conversations/{chat}/messages"))] == ["user", "assistant"] * 2


def test_a_conversation_of_more_messages_than_a_request_gives_goes_on(
    at_studio: tuple[Watched, httpx.Client], lmstudio: Upstream
) -> None:
    visit, client = at_studio
    imported(client, [("Long", ["The very first", *(f"Text {number}" for number in range(1, 1010))])])
    page = visit.open()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.get_by_role("searchbox", name="Search conversations").fill("very first")
    page.locator(".results a", has_text="very first").click()
    expect(page.locator(".message.found, .message").first).to_contain_text("The very first")
    assert sum("&before=" in url for url in asked) == 5, "each time as much as is there already"
    lmstudio.enqueue(answer("It goes on"))
    ask(page, "And then?")
    expect(answered(page)).to_contain_text("It goes on")
    expect(page.locator(".message")).to_have_count(1012)


def test_what_is_being_changed_is_saved_where_it_was_written(at_studio: tuple[Watched, httpx.Client]) -> None:
    visit, client = at_studio
    first, second = new(client, title="First"), new(client, title="Second")
    page = visit.open(f"/#/c/{first}")
    page.get_by_role("button", name="Conversation settings").click()
    page.get_by_label("Instructions for the model").fill("Only for the first")
    page.get_by_label("Temperature").fill("0.5")
    page.keyboard.press("Alt+ArrowUp")
    expect(page.get_by_role("heading", level=1)).to_have_text("Second")
    page.get_by_role("button", name="Second", exact=True).click()
    page.get_by_role("textbox", name="Title").fill("Second, renamed")
    page.keyboard.press("Alt+ArrowDown")
    expect(page.get_by_role("heading", level=1)).to_have_text("First")
    expect(page.locator(".sidebar li", has_text="Second, renamed")).to_be_visible()
    one, other = (good(client.get(f"/conversations/{chat}")) for chat in (first, second))
    assert (one["title"], one["system_prompt"], one["settings"]["temperature"]) == ("First", "Only for the first", 0.5)
    assert (other["title"], other["system_prompt"]) == ("Second, renamed", "")


def test_who_writes_elsewhere_while_a_conversation_is_read_is_not_disturbed(
    at_studio: tuple[Watched, httpx.Client],
) -> None:
    visit, client = at_studio
    chat = new(client, title="Slow to come")
    page = visit.open()
    held: list[Route] = []
    page.route(re.compile(rf"/conversations/{chat}/messages"), lambda route: held.append(route))
    page.goto(f"/#/c/{chat}")
    expect(page.get_by_role("textbox", name="Message")).to_be_focused()
    wait(page, lambda: held)
    settings = page.get_by_role("button", name="Conversation settings")
    expect(settings).to_be_disabled()
    search = page.get_by_role("searchbox", name="Search conversations")
    search.fill("Slow")
    held[0].continue_()
    expect(page.get_by_role("heading", level=1)).to_have_text("Slow to come")
    expect(settings).to_be_enabled()
    expect(search).to_be_focused()


def test_drafts_survive_a_reload_and_another_conversation(at_studio: tuple[Watched, httpx.Client]) -> None:
    visit, client = at_studio
    chat = new(client, "Hello")
    page = visit.open(f"/#/c/{chat}")
    box = page.get_by_role("textbox", name="Message")
    box.fill("half a thou")
    page.get_by_label("Files to attach").set_input_files({"name": "a.txt", "mimeType": "text/plain", "buffer": b"A"})
    chip = page.locator(".chip")
    expect(chip).to_have_text("a.txt")
    page.get_by_role("link", name="New chat").click()
    expect(box).to_have_value("")
    expect(chip).to_have_count(0)
    page.go_back()
    expect(box).to_have_value("half a thou")
    expect(chip).to_have_text("a.txt")
    page.get_by_role("link", name="New chat").click()
    expect(box).to_have_value("")
    box.fill("something new")
    page.reload()
    expect(box).to_have_value("something new")
    page.go_back()
    expect(box).to_have_value("half a thou")
    page.evaluate("() => localStorage.setItem('fireside.draft.99999.new', 'of another user')")
    page.locator(".account").click()
    page.get_by_role("menuitem", name="Sign out").click()
    expect(page.get_by_role("button", name="Sign in")).to_be_visible()
    assert page.evaluate("Object.keys(localStorage).filter((key) => key.includes('draft'))") == [
        "fireside.draft.99999.new"
    ]


def test_a_hidden_tab_leaves_its_connection_and_catches_up(
    at_studio: tuple[Watched, httpx.Client], lmstudio: Upstream
) -> None:
    visit, _ = at_studio
    first, second = Gate(), Gate()
    parts = (text("One, "), pause(first), text("two, "), pause(second), text("three."), finish(), usage(9, 3), DONE)
    lmstudio.enqueue(*parts)
    page = visit.open()
    ask(page, "Count")
    shown = page.locator(".message.assistant .markdown")
    expect(shown).to_contain_text("One")
    hide = """(hidden) => {
        Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
        document.dispatchEvent(new Event("visibilitychange"));
    }"""
    with page.expect_event("requestfailed", lambda request: "/stream" in request.url):
        page.evaluate(hide, True)
    first.open()
    with page.expect_request(re.compile(r"/generations/[^/]+/stream\?after=\d+")):
        page.evaluate(hide, False)
    expect(shown).to_contain_text("two")
    second.open()
    expect(answered(page).locator(".markdown")).to_have_text("One, two, three.")


def test_more_tabs_than_a_browser_has_connections_all_work(
    at_studio: tuple[Watched, httpx.Client], lmstudio: Upstream
) -> None:
    """It has six for a host."""
    visit, _ = at_studio
    gates = [Gate() for _ in range(8)]
    hide = "Object.defineProperty(document, 'hidden', { get: () => window.put_away }); window.put_away = false;"
    visit.context.add_init_script(hide)
    pages: list[Page] = []
    for gate in gates:
        for page in pages[-1:]:
            page.evaluate("() => { put_away = true; document.dispatchEvent(new Event('visibilitychange')); }")
        lmstudio.enqueue(text("Wait"), pause(gate), text(" is over"), finish(), usage(9, 3), DONE)
        pages.append(visit.open())
        ask(pages[-1], "Hi")
        expect(pages[-1].locator(".message.assistant .markdown")).to_contain_text("Wait")
        gate.open() if gate is gates[0] else None
    for gate in gates[1:]:
        gate.open()
    for page in pages:
        page.evaluate("() => { put_away = false; document.dispatchEvent(new Event('visibilitychange')); }")
        expect(answered(page).locator(".markdown")).to_have_text("Wait is over")


def test_what_was_not_sent_any_more_is_marked_by_a_line(at_studio: tuple[Watched, httpx.Client]) -> None:
    visit, client = at_studio
    for omitted, texts in (2, 6), (70, 100):
        stats = {"stats": {"omitted_messages": omitted}}
        imported(client, [(f"Without {omitted}", [f"Text {at}" for at in range(texts)])], itertools.repeat(stats))
    page = visit.open()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    held: list[Route] = []
    page.route(re.compile(r"/messages\?before=\d+$"), lambda route: held.append(route))

    def look_again() -> None:
        with page.expect_response(re.compile(r"/messages\?render")):
            page.evaluate("() => window.dispatchEvent(new Event('focus'))")

    below_the_line = page.locator(".divider + .message .text")
    for omitted in (2, 70):
        page.get_by_role("link", name=f"Without {omitted}").click()
        if omitted == 70:  # more than is loaded, so that they are counted
            wait(page, lambda: held)
            look_again()
            held[0].continue_()
        expect(page.locator(".divider")).to_contain_text("Messages above were not sent")
        expect(below_the_line).to_have_text(f"Text {omitted}")
    look_again()
    page.locator(".scroller").evaluate("(node) => { node.scrollTop = 0; }")
    expect(page.locator(".message")).to_have_count(100)
    expect(below_the_line).to_have_text("Text 70")
    counts = [url for url in asked if re.search(r"/messages(\?before=\d+)?$", url)]
    assert len(counts) == 1, "what lies above a message was counted again"


def test_answer_tells_how_many_images_were_not_sent(at_studio: tuple[Watched, httpx.Client]) -> None:
    visit, client = at_studio
    imported(client, [("Many images", ["Look", "I see."])], [{"stats": {"omitted_images": 12}}])
    page = visit.open()
    page.get_by_role("link", name="Many images").click()
    expect(page.locator(".message.assistant .figures")).to_contain_text("12 older images not sent")


def test_an_image_is_sent_shown_and_kept_when_its_question_is_edited(
    at_studio: tuple[Watched, httpx.Client], lmstudio: Upstream, tmp_path: Path
) -> None:
    """Also where nobody knows whether the model sees: an OpenAI-compatible server does not say it."""
    visit, _ = at_studio
    picture = tmp_path / "dot.png"
    picture.write_bytes(PNG)

    def unsaid(route: Route) -> None:
        told = route.fetch().json()
        for model in (model for provider in told for model in provider["models"] if model["vision"]):
            model["vision"] = None
        route.fulfill(json=told)

    visit.context.route("**/providers", unsaid)
    page = visit.open()
    page.evaluate("() => localStorage.clear()")
    expect(page.get_by_role("button", name="Model: Llama 3.2 3B Instruct")).to_be_visible()
    page.get_by_label("Files to attach").set_input_files(picture)
    expect(page.locator(".toast")).to_have_text("This model cannot see images.")
    page.get_by_role("button", name="Dismiss").click()
    page.get_by_role("button", name="Model: Llama 3.2 3B Instruct").click()
    expect(page.locator(".model-pick", has_text="Qwen")).not_to_contain_text("sees images")
    page.locator(".model-pick", has_text="Qwen").click()
    page.get_by_label("Files to attach").set_input_files([picture] * 9)
    expect(page.locator(".toast")).to_have_text("A message can have at most 8 images.")
    expect(page.locator(".chip")).to_have_text(["dot.png"] * 8)
    for _ in range(7):
        page.get_by_role("button", name="Remove dot.png").first.click()
    # What no message may have is sent as JPEG, in which nothing is transparent.
    white = page.evaluate(
        """async (gif) => {
            const { encode } = await import("/static/files.js");
            const blob = (base64) => new Blob([Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0))]);
            const { media_type, data } = await encode(blob(gif));
            const bitmap = await createImageBitmap(blob(data));
            const context = new OffscreenCanvas(1, 1).getContext("2d");
            context.drawImage(bitmap, 0, 0);
            return [media_type, ...context.getImageData(0, 0, 1, 1).data];
        }""",
        CLEAR_GIF,
    )
    assert white == ["image/jpeg", 255, 255, 255, 255]
    ask(page, "What is this?")
    answered(page)
    shown = page.get_by_role("img", name="Attached image")
    expect(shown).to_have_js_property("naturalWidth", 1)
    page.locator(".message.user").hover()
    page.get_by_role("button", name="Edit question").click()
    page.get_by_role("textbox", name="Edited question").fill("And what is this?")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".message.user")).to_contain_text("2/2")
    answered(page)
    expect(shown).to_have_js_property("naturalWidth", 1)
    sent = [part["type"] for part in lmstudio.chats[-1]["messages"][-1]["content"]]
    assert sorted(sent) == ["image_url", "text"]
    visit.context.unroute_all(behavior="wait")  # the list of models is read once more after an answer

    # One that is still being read is waited for.
    page.evaluate(
        """() => {
            const read = FileReader.prototype.readAsDataURL;
            FileReader.prototype.readAsDataURL = function (blob) { window.release = () => read.call(this, blob); };
        }"""
    )
    page.get_by_label("Files to attach").set_input_files(picture)
    page.wait_for_function("() => window.release")
    ask(page, "And this one?")
    expect(page.get_by_role("textbox", name="Message")).to_have_js_property("readOnly", True)
    page.evaluate("() => window.release()")
    expect(page.locator(".message.user")).to_have_count(2)
    answered(page)
    expect(shown).to_have_count(2)


def test_a_picture_is_fetched_once_while_an_answer_streams(
    at_studio: tuple[Watched, httpx.Client], lmstudio: Upstream
) -> None:
    """The browser may not store it: what drew it again would fetch it again."""
    visit, client = at_studio
    chat = new(client, model="qwen2.5-vl-7b-instruct", provider_id="lmstudio")
    image = {"media_type": "image/png", "data": base64.b64encode(PNG).decode()}
    good(client.post(f"/conversations/{chat}/messages", json={"content": "What is this?", "images": [image]}))
    fetched: list[str] = []
    visit.context.on("request", lambda request: fetched.append(request.url) if "/images/" in request.url else None)
    page = visit.open(f"/#/c/{chat}")
    expect(page.get_by_role("img", name="Attached image")).to_have_js_property("naturalWidth", 1)
    gates = [Gate() for _ in range(3)]
    steps = [step for gate in gates for step in (text("A dot. "), pause(gate))]
    lmstudio.enqueue(*steps, finish(), usage(9, 9), DONE)
    page.get_by_role("button", name="Answer", exact=True).click()
    for number, gate in enumerate(gates, 1):
        expect(page.locator(".message.assistant .markdown")).to_have_text(" ".join(["A dot."] * number))
        gate.open()
    answered(page)
    assert len(fetched) == 1


def test_a_link_of_an_answer_opens_in_a_new_tab_and_has_no_address_before(
    at_studio: tuple[Watched, httpx.Client], lmstudio: Upstream
) -> None:
    visit, _ = at_studio
    visit.context.route("http://notes.example/*", lambda route: route.fulfill(body="Notes"))
    lmstudio.enqueue(answer("[One](http://notes.example/1) and [two](http://notes.example/2)"))
    page = visit.open()
    ask(page, "Where are my notes?")
    answered(page)
    one, two = (page.get_by_role("link", name=name, exact=True) for name in ("One", "two"))
    one.hover()
    two.focus()
    expect(page.locator(".markdown a[href]")).to_have_count(0)
    expect(one).to_have_attribute("title", "http://notes.example/1")
    with visit.context.expect_page() as opened:
        page.keyboard.press("Enter")
    expect(opened.value).to_have_url("http://notes.example/2")
    with visit.context.expect_page() as opened:
        one.click()
    expect(opened.value).to_have_url("http://notes.example/1")


def test_texts_are_attached_as_blocks_headed_by_their_names(
    at_studio: tuple[Watched, httpx.Client], lmstudio: Upstream, tmp_path: Path
) -> None:
    visit, _ = at_studio
    page = visit.open()
    files, toast, chips = page.get_by_label("Files to attach"), page.locator(".toast"), page.locator(".chip")
    (tmp_path / "notes.md").write_bytes("# Été\r\n```\ncode\n```\r\n".encode())
    (tmp_path / "people.CSV").write_bytes("naïve;1\n".encode("utf-16"))
    (tmp_path / "LICENSE").write_text("Free", "utf-8")
    (tmp_path / "paper.pdf").write_bytes(b"%PDF-1.7\n\xe2\xe3\xcf\xd3")
    (tmp_path / "long.txt").write_text("x" * 199_995, "utf-8")
    (tmp_path / "huge.log").write_text("x" * 900_000, "utf-8")
    for name, why in {
        "paper.pdf": "paper.pdf is neither a text file nor an image.",
        "long.txt": "long.txt is too long: a message can have at most 200,000 characters.",
        "huge.log": "huge.log is too long: a message can have at most 200,000 characters.",
    }.items():
        files.set_input_files(tmp_path / name)
        expect(toast).to_have_text(why)
        page.get_by_role("button", name="Dismiss").click()
    expect(chips).to_have_count(0)
    expect(page.get_by_role("button", name="Send")).to_be_disabled()
    files.set_input_files([tmp_path / name for name in ("notes.md", "people.CSV", "LICENSE")])
    expect(chips).to_have_text(["notes.md", "people.CSV", "LICENSE"])
    page.get_by_role("button", name="Remove LICENSE").click()
    expect(page.get_by_role("textbox", name="Message")).to_have_value("")
    ask(page, "What is this?")
    answered(page)
    blocks = "notes.md:\n````md\n# Été\n```\ncode\n```\n````\n\npeople.CSV:\n```csv\nnaïve;1\n```"
    assert lmstudio.chats[-1]["messages"][-1]["content"] == f"What is this?\n\n{blocks}"
    expect(chips).to_have_count(0)
    # In the question they are folded, and what one copies or edits is what was sent.
    question = page.locator(".message.user")
    expect(question.locator(".text")).to_have_text("What is this?")
    expect(question.locator("summary")).to_have_text(
        ["notes.md4 lines, 18 characters", "people.CSV1 line, 7 characters"]
    )
    expect(question.locator("pre").first).to_be_hidden()
    question.locator("summary").first.click()
    expect(question.locator("pre").first).to_have_text("# Été\n```\ncode\n```", use_inner_text=True)
    page.get_by_role("button", name="Edit question").click()
    editor = page.get_by_role("textbox", name="Edited question")
    expect(editor).to_have_value(f"What is this?\n\n{blocks}")
    typed = f"{blocks}\n\nfoo:\n```\nbar\n```"
    editor.fill(typed)  # a block that a person wrote, and what stands above it, stay as they are
    page.keyboard.press("Control+Enter")
    expect(question.locator(".text")).to_have_text(typed, use_inner_text=True)
    expect(question.locator("summary")).to_have_count(0)
    answered(page)
    page.locator(".sidebar .new").click()
    expect(page.locator(".welcome")).to_be_visible()
    expect(chips).to_have_count(0)  # what was sent from a new chat is not in the next one

    # Alone they are a message too.
    files.set_input_files(tmp_path / "LICENSE")
    page.get_by_role("button", name="Send").click()
    expect(question.locator("summary")).to_have_text("LICENSE1 line, 4 characters")
    expect(question.locator(".text")).to_have_count(0)
    answered(page)
    assert lmstudio.chats[-1]["messages"][-1]["content"] == "LICENSE:\n```text\nFree\n```"
    page.get_by_role("textbox", name="Message").fill("x" * 200_001)
    page.keyboard.press("Enter")
    expect(toast).to_have_text("The message has 200,001 characters. At most 200,000 can be sent.")


def test_an_image_alone_is_a_message(
    at_studio: tuple[Watched, httpx.Client], lmstudio: Upstream, tmp_path: Path
) -> None:
    visit, client = at_studio
    (tmp_path / "dot.png").write_bytes(PNG)
    chat = new(client, model="qwen2.5-vl-7b-instruct", provider_id="lmstudio")
    page = visit.open()
    expect(page.locator(".pill")).to_contain_text("Llama")  # the usual model sees nothing
    held: list[Route] = []
    page.route(re.compile(rf"/conversations/{chat}/messages"), lambda route: held.append(route))
    page.goto(f"/#/c/{chat}")
    wait(page, lambda: held)
    expect(page.get_by_role("button", name="Send")).to_be_disabled()
    page.get_by_label("Files to attach").set_input_files(tmp_path / "dot.png")
    expect(page.locator(".chip")).to_contain_text("dot.png")
    held[0].continue_()
    page.unroute_all()
    page.get_by_role("button", name="Send").click()
    answered(page)
    expect(page.locator(".message.user img")).to_be_visible()
    assert [part["type"] for part in lmstudio.chats[-1]["messages"][-1]["content"]] == ["image_url"]


def test_files_are_dropped_and_pasted(at_studio: tuple[Watched, httpx.Client]) -> None:
    visit, client = at_studio
    page = visit.open(f"/#/c/{new(client, model='qwen2.5-vl-7b-instruct', provider_id='lmstudio')}")
    chips, box = page.locator(".chip"), page.get_by_role("textbox", name="Message")
    expect(page.get_by_role("button", name="Model: Qwen2.5 VL 7B Instruct")).to_be_visible()
    carry = """([png, rich]) => {
        const carried = new DataTransfer();
        const bytes = Uint8Array.from(atob(png), (letter) => letter.charCodeAt(0));
        carried.items.add(new File([bytes], "dot.png", { type: "image/png" }));
        if (rich) for (const type of ["text/plain", "text/html"]) carried.setData(type, "a table");
        else carried.items.add(new File(["1,2"], "table.csv", { type: "text/csv" }));
        return carried;
    }"""
    png = base64.b64encode(PNG).decode()
    files, rich = (page.evaluate_handle(carry, [png, rich]) for rich in (False, True))
    drop = "(node, [type, dataTransfer]) => node.dispatchEvent("
    drop += "new DragEvent(type, { dataTransfer, bubbles: true, cancelable: true }))"
    scroller = page.locator(".scroller")
    over = f"(node, given) => [({drop})(node, given), document.querySelectorAll('.composer.dropping').length]"
    assert scroller.evaluate(over, ["dragover", files]) == [False, 1], "else the browser leaves the page for the file"
    assert scroller.evaluate(drop, ["drop", files]) is False
    expect(chips).to_have_text(["dot.png", "table.csv"])
    expect(page.locator(".composer.dropping")).to_have_count(0)
    paste = "(node, clipboardData) => node.dispatchEvent("
    paste += "new ClipboardEvent('paste', { clipboardData, bubbles: true, cancelable: true }))"
    assert box.evaluate(paste, rich) is True, "an office program's text, which comes with a picture of it"
    assert box.evaluate(paste, files) is False
    expect(chips).to_have_text(["dot.png", "table.csv"] * 2)


def test_the_image_of_an_edited_question_is_sent_as_it_was(
    at_studio: tuple[Watched, httpx.Client], lmstudio: Upstream
) -> None:
    """Also one that is larger than what the page would send of a file: made smaller anew it would lose something."""
    visit, client = at_studio
    sent = base64.b64encode(noise(500)).decode()
    chat = new(client, model="qwen2.5-vl-7b-instruct", provider_id="lmstudio")
    image = {"media_type": "image/png", "data": sent}
    good(client.post(f"/conversations/{chat}/messages", json={"content": "What is this?", "images": [image]}))
    page = visit.open(f"/#/c/{chat}")
    page.get_by_role("button", name="Answer", exact=True).click()
    answered(page)
    page.get_by_role("button", name="Edit question").click()
    page.get_by_role("textbox", name="Edited question").fill("And what is this?")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".message.user")).to_contain_text("2/2")
    answered(page)
    parts = [part for part in lmstudio.chats[-1]["messages"][-1]["content"] if part["type"] == "image_url"]
    assert [part["image_url"]["url"] for part in parts] == [f"data:image/png;base64,{sent}"]


def noise(size: int) -> bytes:
    """A PNG that cannot be packed well."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + random.Random(row).randbytes(3 * size) for row in range(size))
    head = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows, 0)) + chunk(b"IEND", b"")


def test_an_answer_from_elsewhere_shows_its_pictures_and_how_quick_it_was(
    at_studio: tuple[Watched, httpx.Client],
) -> None:
    visit, client = at_studio
    drawn = {"media_type": "image/png", "data": base64.b64encode(PNG).decode()}
    stats = {"reasoning_ms": 40, "ttft_ms": 2.6, "total_ms": 119_700}
    further = {"images": [drawn], "reasoning": "Hm.", "stats": stats}
    imported(client, [("Boats", ["Draw a boat", "Here it is"])], [further])
    page = visit.open()
    page.get_by_role("link", name="Boats").click()
    shown = page.locator(".message.assistant")
    expect(shown.get_by_role("img", name="Attached image")).to_have_js_property("naturalWidth", 1)
    expect(shown.locator(".picture + .markdown")).to_have_text("Here it is")
    expect(shown.locator("summary")).to_have_text("Thought for a moment")
    expect(shown.locator(".figures")).to_have_text("3 ms to first token")
    expect(shown.get_by_title("2 min 0 s in all")).to_be_visible()


def test_a_message_sent_again_with_another_image_is_another_message(
    at_studio: tuple[Watched, httpx.Client], lmstudio: Upstream, tmp_path: Path
) -> None:
    visit, client = at_studio
    chat = new(client, model="qwen2.5-vl-7b-instruct", provider_id="lmstudio")
    picture = tmp_path / "dot.png"
    picture.write_bytes(PNG)
    page = visit.open(f"/#/c/{chat}")
    lost: list[int] = []

    def lose_the_first_answer(route: Route) -> None:
        if lost:
            return route.continue_()
        lost.append(route.fetch().status)
        route.abort()

    page.route(re.compile(r"/messages$"), lose_the_first_answer)
    ask(page, "What is this?")
    expect(page.locator(".toast")).to_contain_text("Not sent")
    page.get_by_label("Files to attach").set_input_files(picture)
    expect(page.locator(".chip")).to_have_count(1)
    lmstudio.enqueue(answer("A dot."))
    page.get_by_role("textbox", name="Message").press("Enter")
    answered(page)
    assert [len(message.get("images", [])) for message in good(client.get(f"/conversations/{chat}/messages"))][-2:] == [
        1,
        0,
    ]


def test_a_refused_first_message_leaves_no_conversation(at_studio: tuple[Watched, httpx.Client]) -> None:
    visit, client = at_studio
    before = len(good(client.get("/conversations")))
    page = visit.open()
    refusal = {"code": "VALIDATION_ERROR", "message": "message.content: is refused by this test", "request_id": "1"}
    page.route(
        re.compile(r"/(conversations|messages)$"),
        lambda route: (
            route.fulfill(status=400, json=refusal)
            if "message" in (route.request.post_data or "") or route.request.url.endswith("/messages")
            else route.continue_()
        ),
    )
    ask(page, "Hello?")
    expect(page.locator(".toast")).to_contain_text("is refused by this test")
    expect(page.get_by_role("textbox", name="Message")).to_have_value("Hello?")
    assert len(good(client.get("/conversations"))) == before


def test_an_image_can_be_attached_before_a_model_is_known(
    at_studio: tuple[Watched, httpx.Client], tmp_path: Path
) -> None:
    visit, _ = at_studio
    picture = tmp_path / "dot.png"
    picture.write_bytes(PNG)
    visit.context.route("**/providers", lambda route: route.fulfill(json=[]))
    page = visit.open()
    page.get_by_label("Files to attach").set_input_files(picture)
    expect(page.locator(".chip")).to_have_text(["dot.png"])
