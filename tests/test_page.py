"""The page as a person meets it: a real Chromium, the real service, and the real small model, or a scripted LM Studio
where a test must know what is answered, and when.
"""

import base64
import contextlib
import itertools
import json
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import httpx
import pytest
from fireside import render
from playwright.sync_api import APIResponse, Browser, Locator, Page, Playwright, Route, expect, sync_playwright

from . import upstream as script
from .browser import DESKTOP, NO_ENGINE, PHONE, Fireside, Watched, axe, launch
from .live import PASSWORD, PATIENCE, good
from .payloads import PAYLOADS
from .upstream import DONE, Gate, Upstream, answer, finish, pause, reasoning, text, usage

expect.set_options(timeout=30_000)
minutes = itertools.count()
names = (f"person{number}" for number in itertools.count())
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)
CLEAR_GIF = "R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
STORY = "Tell me a long story about a lighthouse keeper and a storm."


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as playwright:
        yield playwright


@pytest.fixture(scope="module")
def browser(playwright: Playwright) -> Iterator[Browser]:
    browser = launch(playwright)
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fireside]:
    """A Fireside with the small model that it carries, and no LM Studio."""
    with Fireside(tmp_path_factory.mktemp("house"), lmstudio_url="http://127.0.0.1:9") as house:
        yield house


@pytest.fixture(scope="module")
def ann(house: Fireside) -> httpx.Client:
    return house.first()


@pytest.fixture(scope="module")
def lmstudio() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory, lmstudio: Upstream) -> Iterator[Fireside]:
    """A Fireside whose LM Studio is the scripted one."""
    folder = tmp_path_factory.mktemp("studio")
    with Fireside(folder, NO_ENGINE, lmstudio_url=lmstudio.url, lmstudio_concurrency="16") as studio:
        yield studio


@pytest.fixture(scope="module")
def bea(studio: Fireside) -> httpx.Client:
    return studio.first("bea")


@pytest.fixture
def visitor(browser: Browser) -> Iterator[Callable[..., Watched]]:
    """`visitor(fireside, client)`: a browser of its own for whom the client has signed in. Nothing in it may go wrong."""
    visits: list[Watched] = []

    def visit(fireside: Fireside, client: httpx.Client | None = None, **options: object) -> Watched:
        visits.append(Watched(browser, fireside.url, client, **options))
        return visits[-1]

    yield visit
    for visit_ in visits:
        visit_.close()


@pytest.fixture
def at_home(house: Fireside, ann: httpx.Client, visitor: Callable[..., Watched]) -> tuple[Watched, httpx.Client]:
    """A new user of the house, and their browser."""
    client = house.join(ann, next(names))
    return visitor(house, client), client


@pytest.fixture
def at_studio(
    studio: Fireside, bea: httpx.Client, visitor: Callable[..., Watched], lmstudio: Upstream
) -> tuple[Watched, httpx.Client]:
    lmstudio.forget()
    client = studio.join(bea, next(names))
    return visitor(studio, client), client


def ask(page: Page, question: str) -> None:
    page.get_by_role("textbox", name="Message").fill(question)
    page.keyboard.press("Enter")


def wait(page: Page, seen: Callable[[], object]) -> None:
    """Until what the page asks for has been seen here."""
    end = time.monotonic() + PATIENCE
    while not seen():
        assert time.monotonic() < end
        page.evaluate("new Promise(requestAnimationFrame)")


def answered(page: Page) -> Locator:
    """The last answer, once it is complete."""
    last = page.locator(".message.assistant.last")
    expect(last.locator(".figures")).to_contain_text("to first token")
    return last


def new(client: httpx.Client, question: str = "", **fields: object) -> int:
    """A conversation that is answered briefly and always alike."""
    settings = {"temperature": 0, "max_tokens": 40, "seed": 1}
    conversation_id: int = good(client.post("/conversations", json={"settings": settings} | fields))["id"]
    if question:
        good(client.post(f"/conversations/{conversation_id}/messages", json={"content": question}))
        with client.stream("POST", f"/conversations/{conversation_id}/stream", json={}) as events:
            assert "event: done" in events.read().decode()
    return conversation_id


def imported(
    client: httpx.Client,
    conversations: list[tuple[str, list[str]]],
    answers: Iterable[Mapping[str, object]] = (),
) -> None:
    """Conversations as (title, texts of question, answer, question ...), the last one the newest. `answers` has further
    fields for the answers of each.
    """
    files = []
    for number, (title, texts) in zip(minutes, conversations, strict=False):
        time = f"2026-01-{1 + number // 1440:02}T{number // 60 % 24:02}:{number % 60:02}:00.000000"
        further = iter(answers)
        messages = [
            {"id": at + 1, "parent_id": at or None, "role": ("user", "assistant")[at % 2], "content": content}
            | {"created_at": time}
            | dict(next(further, {}) if at % 2 else {})
            for at, content in enumerate(texts)
        ]
        conversation = {"fireside": 1, "title": title, "named": True, "created_at": time, "updated_at": time}
        files.append(conversation | {"active_message_id": len(texts), "messages": messages})
    assert good(client.post("/import", json=files))["skipped"] == []


def message(client: httpx.Client, conversation_id: int, index: int = -1) -> dict[str, object]:
    found: dict[str, object] = good(client.get(f"/conversations/{conversation_id}/messages"))[index]
    return found


# ---- with the small model


def test_first_run_goes_from_the_printed_link_to_an_answer(
    tmp_path: Path, visitor: Callable[..., Watched], house: Fireside
) -> None:
    with Fireside(tmp_path, lmstudio_url="http://127.0.0.1:9") as fireside:
        page = visitor(fireside).open(fireside.setup_link())
        expect(page.get_by_role("heading", name="Welcome to Fireside")).to_be_visible()
        assert page.url == fireside.url + "/", "the secret stays in the address"
        page.get_by_label("Name").fill("ann")
        page.get_by_label("Password, 12 characters or more").fill("too short")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="Welcome to Fireside")).to_be_visible()
        page.get_by_label("Password, 12 characters or more").fill(PASSWORD)
        page.keyboard.press("Enter")

        expect(page.get_by_role("button", name="Model: SmolLM2")).to_be_visible()
        ask(page, "What is the capital of Japan?")
        expect(page.locator(".message.user")).to_contain_text("What is the capital of Japan?")
        last = answered(page)
        expect(last.locator(".markdown")).to_contain_text(re.compile(r"\w"))
        expect(last.locator(".figures")).to_contain_text("s to first token")
        expect(page.get_by_role("meter", name="Context used")).to_be_visible()
        expect(page.locator(".sidebar li.current")).to_have_text("What is the capital of Japan?")
        assert re.search(r"/#/c/\d+$", page.url)


def test_a_stopped_answer_is_kept_and_can_be_asked_for_again(at_home: tuple[Watched, httpx.Client]) -> None:
    visit, client = at_home
    chat = new(client, settings={"temperature": 0, "seed": 1})
    page = visit.open(f"/#/c/{chat}")
    ask(page, STORY)
    shown = page.locator(".message.assistant .markdown")
    expect(shown).to_contain_text(re.compile(r"\w+ \w+ \w+"))
    page.keyboard.press("Escape")
    expect(page.get_by_text("Stopped.", exact=True)).to_be_visible()
    kept = message(client, chat)
    assert kept["status"] == "canceled"
    assert kept["content"]

    good(client.patch(f"/conversations/{chat}", json={"settings": {"max_tokens": 8}}))
    page.get_by_role("button", name="Try again").click()
    expect(answered(page).locator(".switch")).to_contain_text("2/2")
    page.get_by_role("button", name="Previous version").click()
    expect(page.get_by_text("Stopped.", exact=True)).to_be_visible()
    expect(page.locator(".switch")).to_contain_text("1/2")
    assert message(client, chat)["id"] == kept["id"]


def test_an_edited_question_branches_and_the_first_one_stays(at_home: tuple[Watched, httpx.Client]) -> None:
    visit, client = at_home
    chat = new(client, "Say yes.", settings={"temperature": 0, "max_tokens": 4})
    page = visit.open(f"/#/c/{chat}")
    expect(page.get_by_text("Say yes.").last).to_be_visible()
    page.locator(".message.user").hover()
    page.get_by_role("button", name="Edit question").click()
    page.get_by_role("textbox", name="Edited question").fill("Say no.")
    page.get_by_role("button", name="Send", exact=True).first.click()
    answered(page)
    question = page.locator(".message.user")
    expect(question).to_contain_text("Say no.")
    expect(question.locator(".switch")).to_contain_text("2/2")
    question.get_by_role("button", name="Previous version").click()
    expect(question).to_contain_text("Say yes.")
    expect(page.locator(".message.assistant")).to_have_count(1)


def test_a_reload_takes_up_the_answer_where_it_is(at_home: tuple[Watched, httpx.Client]) -> None:
    visit, client = at_home
    chat = new(client, settings={"temperature": 0, "seed": 1, "max_tokens": 120})
    page = visit.open(f"/#/c/{chat}")
    ask(page, STORY)
    expect(page.locator(".message.assistant .markdown")).to_contain_text(re.compile(r"\w+ \w+ \w+"))
    page.reload()
    assert good(client.get(f"/conversations/{chat}"))["generation_id"] is not None, "it was over before the reload"
    shown = answered(page).locator(".markdown").inner_text()
    page.reload()
    assert answered(page).locator(".markdown").inner_text() == shown
    assert words(shown) == words(str(message(client, chat)["content"]))


def words(markdown: str) -> list[str]:
    return re.findall(r"[A-Za-z]+", markdown)


def test_a_second_tab_follows_the_same_answer_and_what_is_done_in_the_first(
    at_home: tuple[Watched, httpx.Client],
) -> None:
    visit, client = at_home
    chat = new(client, settings={"temperature": 0, "seed": 1, "max_tokens": 150})
    first, second = visit.open(f"/#/c/{chat}"), visit.open(f"/#/c/{chat}")
    expect(second.locator(".top .title")).to_have_text("New conversation")
    ask(first, STORY)
    expect(second.locator(".message.assistant.generating .markdown")).to_contain_text(re.compile(r"\w"))
    assert answered(second).locator(".markdown").inner_text() == answered(first).locator(".markdown").inner_text()

    first.bring_to_front()  # a click waits for a frame, and Chromium draws few of a page that is behind
    first.locator(".sidebar li.current").get_by_role("button").click()
    first.get_by_role("menuitem", name="Rename").click()
    first.get_by_role("textbox", name="Title").fill("The lighthouse")
    first.keyboard.press("Enter")
    expect(second.locator(".sidebar li.current")).to_have_text("The lighthouse")
    expect(second.get_by_role("heading", level=1)).to_have_text("The lighthouse")
    first.locator(".sidebar li.current").get_by_role("button").click()
    first.get_by_role("menuitem", name="Pin").click()
    expect(
        second.get_by_role("region", name="Pinned").or_(second.locator("section:has(h2:text('Pinned'))"))
    ).to_be_visible()


# ---- with a scripted LM Studio


def test_while_no_server_is_found_the_page_says_what_to_do_and_goes_on_by_itself(
    tmp_path: Path, visitor: Callable[..., Watched]
) -> None:
    with Upstream() as reserved:
        port = reserved.port
    with Fireside(tmp_path, NO_ENGINE, lmstudio_url=f"http://127.0.0.1:{port}") as fireside:
        page = visitor(fireside, fireside.first()).open()
        expect(page.get_by_role("heading", name="No model server yet")).to_be_visible()
        expect(page.get_by_text("lms server start")).to_be_visible()
        with Upstream(port=port):
            expect(page.get_by_role("button", name="Model: Llama 3.2 3B Instruct")).to_be_visible()
            expect(page.get_by_role("heading", name="No model server yet")).to_be_hidden()


def test_lm_studio_on_this_computer_is_started_by_a_click(
    tmp_path: Path, visitor: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    """LM Studio's command is a stand-in here: it says no at first, then waits for the server that the test starts."""
    monkeypatch.setenv("HOME", str(tmp_path))
    command, answers = tmp_path / ".lmstudio" / "bin" / "lms", tmp_path / "answers"
    command.parent.mkdir(parents=True)
    os.mkfifo(answers)
    command.write_text(
        f'#!/bin/sh\nread -r answer < {answers}; echo "$answer: $*"; test "$answer" = Started\n', "utf-8"
    )
    command.chmod(0o700)
    with Upstream() as reserved:
        port = reserved.port
    with Fireside(tmp_path / "data", NO_ENGINE, lmstudio_url=f"http://127.0.0.1:{port}") as fireside:
        admin = fireside.first()
        page = visitor(fireside, admin).open()
        page.get_by_role("button", name="Start it for me").click()
        expect(page.get_by_role("button", name="Starting LM Studio…")).to_be_disabled()
        answers.write_text("The app is not installed\n", "utf-8")
        expect(page.locator(".toast")).to_contain_text("did not start: The app is not installed: server start")
        page.get_by_role("button", name="Start it for me").click()
        with Upstream(port=port):
            answers.write_text("Started\n", "utf-8")
            expect(page.get_by_role("button", name="Model: Llama 3.2 3B Instruct")).to_be_visible()
        another = visitor(fireside, fireside.join(admin, "guest")).open()
        expect(another.get_by_role("heading", name="No model server yet")).to_be_visible()
        expect(another.get_by_role("button", name="Start it for me")).to_have_count(0)


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
    expect(page.locator(".phase")).to_contain_text(re.compile("Reading the conversation|Asking the model"))
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
    lmstudio.enqueue(answer("Better now"))
    page.get_by_role("button", name="Try again").evaluate("(button) => { button.click(); button.click(); }")
    expect(answered(page)).to_contain_text("Better now")
    expect(page.locator(".switch")).to_have_text("2/2")
    expect(page.locator(".toast")).to_have_count(0)


def test_search_finds_texts_and_jumps_to_the_message(at_studio: tuple[Watched, httpx.Client]) -> None:
    visit, client = at_studio
    long = ["Which word do you like?", "The word is zephyr, a gentle wind.", *["And another line.\n\n" * 3] * 150]
    imported(client, [("Words", long), ("Something else", ["Hello"])])
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
    expect(page.get_by_role("searchbox", name="Search conversations")).to_have_value("")
    expect(page.locator(".list")).to_be_visible()


def test_a_deleted_conversation_comes_back_by_undo_and_from_the_bin(at_studio: tuple[Watched, httpx.Client]) -> None:
    visit, client = at_studio
    chat = new(client, "Dear diary")
    page = visit.open(f"/#/c/{chat}")
    row = page.locator(".sidebar li", has_text="Dear diary")
    row.get_by_role("button").click()
    page.get_by_role("menuitem", name="Delete").click()
    expect(row).to_have_count(0)
    expect(page.get_by_role("heading", level=1)).to_have_text("New chat")
    page.get_by_role("button", name="Undo").click()
    expect(row).to_be_visible()
    expect(page.locator(".message.user")).to_contain_text("Dear diary")

    row.get_by_role("button").click()
    page.get_by_role("menuitem", name="Delete").click()
    expect(row).to_have_count(0)
    page.locator(".account").click()
    page.get_by_role("menuitem", name="Bin").click()
    page.get_by_role("button", name="Restore Dear diary").click()
    page.keyboard.press("Escape")
    expect(row).to_be_visible()


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
    page.get_by_role("searchbox", name="Search conversations").fill("very first")
    page.locator(".results a", has_text="very first").click()
    expect(page.locator(".message.found, .message").first).to_contain_text("The very first")
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


def test_old_conversations_in_the_list_follow_what_is_done_to_them(at_studio: tuple[Watched, httpx.Client]) -> None:
    visit, client = at_studio
    imported(client, [(f"Old {number}", ["Hello"]) for number in range(100)])
    page = visit.open()
    rows = page.locator(".list li")
    expect(rows).to_have_count(60)
    page.locator(".list").evaluate("(node) => { node.scrollTop = node.scrollHeight; }")
    expect(rows).to_have_count(100)
    for title, act in (("Old 5", "Delete"), ("Old 7", "Rename")):
        rows.filter(has_text=re.compile(f"^{title}$")).get_by_role("button").click()
        page.get_by_role("menuitem", name=act).click()
        expect(rows).to_have_count(99)
    page.get_by_role("textbox", name="Title").fill("Renamed")
    page.keyboard.press("Enter")
    expect(rows.filter(has_text="Renamed")).to_have_count(1)
    expect(rows).to_have_count(99)
    page.get_by_role("button", name="Undo").click()
    expect(rows).to_have_count(100)
    rows.filter(has_text="Renamed").get_by_role("link").click()
    rows.filter(has_text="Renamed").get_by_role("button").click()
    page.get_by_role("menuitem", name="Rename").click()
    page.get_by_role("textbox", name="Title").fill("Once more")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Once more")


def test_a_row_that_moves_up_keeps_its_focus_and_the_title_that_is_being_written(
    at_studio: tuple[Watched, httpx.Client],
) -> None:
    visit, client = at_studio
    older = new(client, title="Older")
    new(client, title="Newer")
    page = visit.open()
    rows = page.locator(".list li")
    expect(rows).to_have_text(["Newer", "Older"])
    rows.last.get_by_role("button").click()
    page.get_by_role("menuitem", name="Rename").click()
    title = page.get_by_role("textbox", name="Title")
    title.fill("Half a ti")
    good(client.post(f"/conversations/{older}/messages", json={"content": "Hello"}))
    page.evaluate("() => window.dispatchEvent(new Event('focus'))")
    expect(rows.last).to_have_text("Newer")
    expect(rows.first.locator(title)).to_be_focused()
    page.keyboard.type("tle")
    page.keyboard.press("Enter")
    expect(rows).to_have_text(["Half a title", "Newer"])


def test_drafts_survive_a_reload_and_another_conversation(at_studio: tuple[Watched, httpx.Client]) -> None:
    visit, client = at_studio
    chat = new(client, "Hello")
    page = visit.open(f"/#/c/{chat}")
    box = page.get_by_role("textbox", name="Message")
    box.fill("half a thou")
    page.get_by_role("link", name="New chat").click()
    expect(box).to_have_value("")
    box.fill("something new")
    page.reload()
    expect(box).to_have_value("something new")
    page.go_back()
    expect(box).to_have_value("half a thou")
    page.locator(".account").click()
    page.get_by_role("menuitem", name="Sign out").click()
    expect(page.get_by_role("button", name="Sign in")).to_be_visible()
    assert page.evaluate("Object.keys(localStorage).filter((key) => key.includes('draft'))") == []


def test_the_scroll_is_never_stolen_and_the_end_is_followed(
    at_studio: tuple[Watched, httpx.Client], lmstudio: Upstream
) -> None:
    visit, _ = at_studio
    gate, end = Gate(), Gate()
    line = "A line of the long answer.\n\n"
    lmstudio.enqueue(
        text(*[line] * 60), pause(gate), text(*[line] * 60), pause(end), text("The end."), finish(), usage(9, 9), DONE
    )
    page = visit.open()
    ask(page, "Much, please")
    scroller = page.locator(".scroller")
    expect(page.locator(".message.assistant p")).to_have_count(60)
    rest = "(node) => node.scrollHeight - node.clientHeight - node.scrollTop"
    assert scroller.evaluate(rest) < 2
    scroller.hover()
    page.mouse.wheel(0, -500)
    expect(page.get_by_role("button", name="To the end")).to_be_visible()
    before = scroller.evaluate("(node) => node.scrollTop")
    gate.open()
    expect(page.locator(".message.assistant p")).to_have_count(120)
    assert scroller.evaluate("(node) => node.scrollTop") == before
    page.get_by_role("button", name="To the end").click()
    end.open()
    answered(page)
    expect(page.get_by_text("The end.")).to_be_in_viewport()
    assert scroller.evaluate(rest) < 2


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


def test_ten_tabs_of_one_browser_all_work(at_studio: tuple[Watched, httpx.Client], lmstudio: Upstream) -> None:
    visit, _ = at_studio
    gates = [Gate() for _ in range(10)]
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
    for omitted in (2, 70):
        page.get_by_role("link", name=f"Without {omitted}").click()
        line = page.locator(".divider")
        expect(line).to_contain_text("Not sent above here")
        assert (
            line.evaluate("(node) => node.nextElementSibling.querySelector('.text').textContent") == f"Text {omitted}"
        )
    with page.expect_response(re.compile(r"/messages\?render")):
        page.evaluate("() => window.dispatchEvent(new Event('focus'))")
    page.locator(".scroller").evaluate("(node) => { node.scrollTop = 0; }")
    expect(page.locator(".message")).to_have_count(100)
    assert line.evaluate("(node) => node.nextElementSibling.querySelector('.text').textContent") == "Text 70"
    counts = [url for url in asked if re.search(r"/messages(\?before=\d+)?$", url)]
    assert len(counts) == 1, "what lies above a message was counted again"


def test_models_are_loaded_and_chosen(
    at_studio: tuple[Watched, httpx.Client],
    studio: Fireside,
    bea: httpx.Client,
    lmstudio: Upstream,
    visitor: Callable[..., Watched],
) -> None:
    visit, _ = at_studio
    page = visit.open()
    page.get_by_role("button", name="Model: Llama 3.2 3B Instruct").click()
    expect(page.get_by_role("heading", name="Nothing")).to_contain_text("offline")
    expect(page.locator(".model-pick")).to_have_count(2)
    expect(page.locator(".load")).to_have_count(0)
    page.get_by_role("searchbox", name="Find a model").fill("qwen")
    expect(page.locator(".model-pick")).to_have_count(1)
    expect(page.locator(".model-pick")).to_contain_text("Not loaded · 131,072 context · Q4_K_M · 6.0 GB · sees images")
    page.keyboard.press("Enter")
    lmstudio.enqueue(answer("Hello", model="qwen2.5-vl-7b-instruct"))
    ask(page, "Hi")
    expect(answered(page)).to_contain_text("qwen2.5-vl-7b-instruct")
    assert lmstudio.chats[-1]["model"] == "qwen2.5-vl-7b-instruct"
    page.get_by_role("link", name="New chat").click()
    expect(page.get_by_role("button", name="Model: Qwen2.5 VL 7B Instruct")).to_be_visible()

    page = visitor(studio, studio.join(bea, next(names), "admin")).open()
    page.get_by_role("button", name="Model: Llama 3.2 3B Instruct").click()
    page.get_by_role("button", name="Load Qwen2.5 VL 7B Instruct").click()
    expect(page.get_by_role("button", name="Unload Qwen2.5 VL 7B Instruct")).to_be_visible()
    page.get_by_role("button", name="Unload Qwen2.5 VL 7B Instruct").click()
    expect(page.get_by_role("button", name="Load Qwen2.5 VL 7B Instruct")).to_be_visible()

    # A server that is too slow to say what it has keeps what it had, and the page says what is the matter.
    gate = Gate()
    listing = script.status(200, {"models": [model.native_v1() for model in lmstudio.models]})
    lmstudio.enqueue(pause(gate), listing, path="/api/v1/models")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Model: Llama 3.2 3B Instruct").click()
    section = page.get_by_role("region", name="LM Studio")
    expect(section).to_contain_text("LM Studio has not answered within 1.5 s.")
    expect(section.locator(".model-pick")).to_have_count(2)
    expect(section.locator(".load")).to_have_count(0)
    expect(section).not_to_contain_text("Loaded")
    expect(page.locator(".pill .dot.offline")).to_have_count(1)
    expect(page.locator(".welcome")).to_contain_text("LM Studio does not answer now.")
    gate.open()
    expect(section.locator(".load")).to_have_count(2)
    expect(page.locator(".welcome")).to_contain_text("Llama 3.2 3B Instruct is ready.")


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
    expect(page.get_by_role("button", name="Attach images")).to_be_hidden()
    page.get_by_role("button", name="Model: Llama 3.2 3B Instruct").click()
    expect(page.locator(".model-pick", has_text="Qwen")).not_to_contain_text("sees images")
    page.locator(".model-pick", has_text="Qwen").click()
    expect(page.get_by_role("button", name="Attach images")).to_be_visible()
    page.get_by_label("Attach images").last.set_input_files([picture] * 9)
    expect(page.locator(".toast")).to_have_text("At most 8 images fit in one message.")
    expect(page.locator(".chip")).to_have_text(["dot.png"] * 8)
    for _ in range(7):
        page.get_by_role("button", name="Remove dot.png").first.click()
    # What no message may have is sent as JPEG, in which nothing is transparent.
    white = page.evaluate(
        """async (gif) => {
            const { encode } = await import("/static/images.js");
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
    page.get_by_label("Attach images").last.set_input_files(picture)
    page.wait_for_function("() => window.release")
    ask(page, "And this one?")
    expect(page.get_by_role("textbox", name="Message")).to_have_js_property("readOnly", True)
    page.evaluate("() => window.release()")
    expect(page.locator(".message.user")).to_have_count(2)
    answered(page)
    expect(shown).to_have_count(2)


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


def test_conversations_come_in_and_go_out_through_the_settings(
    at_studio: tuple[Watched, httpx.Client], tmp_path: Path
) -> None:
    visit, client = at_studio
    new(client, "To be exported")
    page = visit.open()
    page.locator(".account").click()
    page.get_by_role("menuitem", name="Settings").click()
    page.get_by_role("tab", name="Your data").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export everything").click()
    download.value.save_as(tmp_path / "all.zip")
    good(client.delete(f"/conversations/{good(client.get('/conversations'))[0]['id']}?purge=true"))
    page.get_by_label("File to import").set_input_files(tmp_path / "all.zip")
    expect(page.get_by_text("1 conversations and 2 messages were added")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator(".list li", has_text="To be exported")).to_be_visible()


def test_a_session_is_ended_from_another_and_the_password_changed(
    studio: Fireside, bea: httpx.Client, visitor: Callable[..., Watched], tmp_path: Path
) -> None:
    picture = tmp_path / "dot.png"
    picture.write_bytes(PNG)
    client = studio.join(bea, name := next(names))
    page = visitor(studio, client).open()
    other = visitor(studio).open("/#login=%zz")  # a link that was damaged on its way
    expect(other.get_by_role("alert")).not_to_be_empty()
    other.get_by_label("Name").fill(name)
    other.get_by_label("Password", exact=True).fill("not the password")
    other.keyboard.press("Enter")
    expect(other.get_by_role("alert")).not_to_be_empty()
    other.get_by_label("Password", exact=True).fill(PASSWORD)
    other.keyboard.press("Enter")
    expect(other.get_by_role("heading", name=name)).to_be_visible()
    other.get_by_role("button", name="Model: Llama 3.2 3B Instruct").click()
    other.locator(".model-pick", has_text="Qwen").click()
    other.get_by_label("Attach images").last.set_input_files(picture)
    expect(other.locator(".chip")).to_contain_text("dot.png")

    page.locator(".account").click()
    page.get_by_role("menuitem", name="Settings").click()
    page.get_by_role("tab", name="Account").click()
    expect(page.locator(".rows li")).to_have_count(2)
    page.get_by_role("button", name="End", exact=True).click()
    expect(page.locator(".rows li")).to_have_count(1)
    other.get_by_role("textbox", name="Message").fill("Never lost")
    other.keyboard.press("Enter")
    expect(other.get_by_role("button", name="Sign in")).to_be_visible()
    page.get_by_label("Current password").fill(PASSWORD)
    page.get_by_label("New password, 12 characters or more").fill("another long phrase")
    page.get_by_role("button", name="Change password").click()
    expect(page.get_by_text("Changed. All other sessions have ended.")).to_be_visible()
    other.get_by_label("Name").fill(name)
    other.get_by_label("Password", exact=True).fill("another long phrase")
    other.keyboard.press("Enter")
    expect(other.get_by_role("textbox", name="Message")).to_have_value("Never lost")
    expect(other.locator(".chip")).to_contain_text("dot.png")


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


def test_a_link_invites_somebody_into_the_household(
    studio: Fireside, bea: httpx.Client, visitor: Callable[..., Watched]
) -> None:
    page = visitor(studio, bea).open()
    page.locator(".account").click()
    page.get_by_role("menuitem", name="Settings").click()
    page.get_by_role("tab", name="Household").click()
    page.get_by_role("button", name="Make an invite").click()
    link = page.locator(".command code").inner_text()
    guest = visitor(studio).open(link)
    expect(guest.get_by_role("heading", name="You are invited")).to_be_visible()
    name = next(names)
    guest.get_by_label("Name").fill(name)
    guest.get_by_label("Password, 12 characters or more").fill(PASSWORD)
    guest.get_by_role("button", name="Create account").click()
    expect(guest.get_by_role("heading", name=name)).to_be_visible()
    guest.locator(".account").click()
    guest.get_by_role("menuitem", name="Settings").click()
    expect(guest.get_by_role("tab", name="Household")).to_have_count(0)

    page.get_by_role("tab", name="General").click()
    page.get_by_role("tab", name="Household").click()
    page.get_by_role("button", name=f"Disable {name}").click()
    guest.keyboard.press("Escape")
    guest.get_by_role("textbox", name="Message").fill("Am I still in?")
    guest.keyboard.press("Enter")
    expect(guest.get_by_role("button", name="Sign in")).to_be_visible()


def test_the_theme_stays_as_chosen(at_studio: tuple[Watched, httpx.Client]) -> None:
    visit, _ = at_studio
    page = visit.open()
    page.locator(".account").click()
    page.get_by_role("menuitem", name="Settings").click()
    page.get_by_label("Dark").check()
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "dark"
    page.reload()
    expect(page.locator(".welcome")).to_be_visible()
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "dark"


def test_thousands_of_conversations_are_loaded_as_one_scrolls(
    tmp_path: Path, visitor: Callable[..., Watched], lmstudio: Upstream
) -> None:
    fireside = Fireside(tmp_path, NO_ENGINE, lmstudio_url=lmstudio.url)
    with fireside:
        client = fireside.first()
    row = "INSERT INTO conversations (user_id, title, title_key, created_at, updated_at) VALUES (1, ?, ?, ?, ?)"
    time = "2026-01-01T00:00:00.{:06}"
    with contextlib.closing(sqlite3.connect(tmp_path / "fireside.db")) as database, database:
        titles = (
            (f"Conversation {number}", f"conversation {number}", time.format(0), time.format(number))
            for number in range(3000)
        )
        database.executemany(row, titles)
    with fireside:
        page = visitor(fireside, client).open()
        rows = page.locator(".list li")
        expect(rows.first).to_have_text("Conversation 2999")
        assert rows.count() < 300
        while (before := rows.count()) < 3000:
            page.locator(".list").evaluate("(node) => { node.scrollTop = node.scrollHeight; }")
            page.wait_for_function("(before) => document.querySelectorAll('.list li').length > before", arg=before)
        expect(rows).to_have_count(3000)
        expect(rows.last).to_have_text("Conversation 0")


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
    assert len(files) <= 16
    assert sum(files.values()) < 60_000, files  # compressed, as they are sent


def test_the_page_knows_the_tags_and_attributes_that_the_server_renders(
    at_studio: tuple[Watched, httpx.Client],
) -> None:
    visit, _ = at_studio
    page = visit.open()
    held = page.evaluate(
        """async () => {
            const { TAGS } = await import("/static/markdown.js");
            return JSON.stringify([...TAGS].map(([tag, attributes]) => [tag, [...attributes]]));
        }"""
    )
    assert {tag: frozenset(attributes) for tag, attributes in json.loads(held)} == dict(render.TAGS)


# ---- for everybody


def blemishes(page: Page) -> list[str]:
    """What axe finds on the screen that is shown."""
    page.evaluate(axe())
    violations = page.evaluate("async () => (await axe.run()).violations")
    return [f"{rule['id']}: {[node['html'][:120] for node in rule['nodes']]}" for rule in violations]


@pytest.fixture(params=[DESKTOP, PHONE], ids=["desktop", "phone"])
def viewport(request: pytest.FixtureRequest) -> dict[str, int]:
    size: dict[str, int] = request.param
    return size


@pytest.fixture(params=["light", "dark"])
def theme(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_axe_finds_nothing_on_the_way_in(
    tmp_path: Path, theme: str, viewport: dict[str, int], visitor: Callable[..., Watched]
) -> None:
    with Fireside(tmp_path, NO_ENGINE, lmstudio_url="http://127.0.0.1:9") as fireside:
        page = visitor(fireside, viewport=viewport, color_scheme=theme).open(fireside.setup_link())
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
        page.get_by_text("Where it looks").click()
        found["where it looks"] = blemishes(page)
        page.keyboard.press("?")
        expect(page.get_by_role("dialog", name="Keyboard shortcuts")).to_be_visible()
        found["shortcuts"] = blemishes(page)
        assert {screen: rules for screen, rules in found.items() if rules} == {}


def test_axe_finds_nothing(
    theme: str,
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
    chat = new(client, "What can you show?")
    lmstudio.enqueue(script.status(500, {"error": {"message": "broken"}}))
    failed = new(client, "Fail, please")
    watched = visitor(studio, client, viewport=viewport, color_scheme=theme)
    page = watched.open(f"/#/c/{chat}")
    found: dict[str, list[str]] = {}

    def look(screen: str) -> None:
        found[screen] = blemishes(page)

    expect(page.get_by_role("button", name="Continue")).to_be_visible()
    page.locator("details.reasoning summary").click()
    look("chat")
    page.get_by_role("button", name="Conversation settings").click()
    expect(page.locator(".panel")).to_be_visible()
    look("panel")
    page.keyboard.press("Escape")
    page.goto(f"/#/c/{failed}")
    expect(page.locator(".failed")).to_be_visible()
    look("failed")
    page.goto("/#/")
    expect(page.locator(".welcome")).to_be_visible()
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
    for tab in ("General", "Account", "Your data", "Bin", "Usage", "Household"):
        page.get_by_role("tab", name=tab).click()
        expect(page.get_by_role("tabpanel", name=tab).locator(".section > *").first).to_be_visible()
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


# ---- hostile texts

TRAP = """
    window.executed = [];
    for (const name of ["alert", "confirm", "prompt"]) window[name] = () => executed.push(name);
    document.addEventListener("securitypolicyviolation", (event) => executed.push(event.violatedDirective + event.blockedURI));
"""
# Elements and attributes of the page's own, and the only addresses that an attribute may lead to.
WALK = r"""async () => {
    const { TAGS } = await import("/static/markdown.js");
    const own = new Set(`html head meta title link script body noscript div nav main aside section article header footer h1 h2 h3 p
        span strong small ul ol li dl dt dd a button input textarea select option label form fieldset legend details summary
        dialog time kbd mark code img progress svg path rect line text table thead tbody tr th td`.split(/\s+/));
    const found = [...executed];
    for (const node of document.querySelectorAll("*")) {
        const rendered = node.closest(".markdown") && !node.closest(".code-head, .part > .code, .table") || node.closest("pre, table");
        if (!own.has(node.localName) && !TAGS.has(node.localName)) found.push(node.outerHTML.slice(0, 200));
        if (rendered && node.id) found.push("an id of its own: " + node.id);
        for (const { name, value } of node.attributes) {
            if (/^on|^srcdoc$|^xlink|^ping$|^(form)?action$/.test(name)) found.push(name + "=" + value);
            if (name === "style" && node.closest(".message, .list, .results, .models, .rows")) found.push("style=" + value);
            if (name === "src" && !/^\/(static|images)\//.test(value)) found.push("src=" + value);
            if (name === "href" && !/^(#\/|\/(static|images|export)|https?:\/\/[^@]*$|mailto:)/.test(value)) found.push("href=" + value);
        }
    }
    return found;
}"""


@pytest.fixture
def trapped(
    tmp_path: Path, visitor: Callable[..., Watched], lmstudio: Upstream
) -> Iterator[tuple[Page, httpx.Client, Path]]:
    """A page in which nothing may be executed, refused by the policy or asked of another host, whatever it is shown."""
    with Fireside(tmp_path, NO_ENGINE, lmstudio_url=lmstudio.url) as fireside:
        client = fireside.first()
        visit = visitor(fireside, client)
        visit.context.add_init_script(TRAP)
        page = visit.open()
        expect(page.locator(".welcome")).to_be_visible()
        yield page, client, tmp_path / "fireside.db"
        assert page.evaluate(WALK) == []


def test_hostile_questions_answers_errors_and_titles_are_shown_as_text(
    trapped: tuple[Page, httpx.Client, Path],
) -> None:
    page, client, _ = trapped
    titles = [payload.replace("\n", " ")[:200] for payload in PAYLOADS]
    grouped = [" ".join(titles[at : at + 8])[:200] for at in range(0, len(titles), 8)]
    both = [text for payload in PAYLOADS for text in (payload, payload)]
    failed: list[dict[str, object]] = [
        {"status": "error", "error": {"code": "PROVIDER_ERROR", "message": payload}} for payload in PAYLOADS
    ]
    imported(client, [("Everything", both), *((title, ["x"]) for title in grouped)], failed)
    page.keyboard.press("Control+k")
    page.keyboard.type("everything")
    page.locator(".results a").first.click()
    messages = page.locator(".message")
    expect(messages.nth(59)).to_be_attached()
    while (before := messages.count()) < len(both):
        page.locator(".scroller").evaluate("(node) => { node.scrollTop = 0; }")
        expect(messages.nth(before)).to_be_attached()
    expect(page.locator(".failed")).to_have_count(len(PAYLOADS))
    assert page.evaluate(WALK) == []
    page.keyboard.press("Control+k")
    page.keyboard.press("Control+a")
    page.keyboard.type("alert")
    expect(page.locator(".results mark").first).to_be_visible()
    assert page.evaluate(WALK) == []
    page.keyboard.press("Escape")
    row = page.locator(".list li").nth(5)
    row.locator("a").click()
    expect(page.locator(".top .title")).to_have_text(re.compile("alert"))
    row.get_by_role("button").click()
    page.get_by_role("menuitem", name="Delete").click()
    expect(page.locator(".toast")).to_contain_text("Deleted")


def test_hostile_answers_are_text_while_they_stream(
    trapped: tuple[Page, httpx.Client, Path], lmstudio: Upstream
) -> None:
    page, _, _ = trapped
    whole = "\n\n".join(PAYLOADS)
    gates = [Gate() for _ in range(12)]
    size = len(whole) // len(gates) + 1
    steps: list[script.Step] = [script.split(7)]
    for at, gate in enumerate(gates):
        steps += [text(*whole[at * size : (at + 1) * size]), reasoning(PAYLOADS[at]), pause(gate)]
    lmstudio.enqueue(*steps, finish(), usage(9, 9), DONE)
    ask(page, "Go on")
    for gate in gates:
        gate.wait()
        assert page.evaluate(WALK) == []
        gate.open()
    answered(page)
    # And what the renderer makes of them cut anywhere: that a stream stops there for a moment is a matter of luck.
    cuts = [payload[:length] for payload in PAYLOADS for length in range(1, len(payload) + 1, 5)]
    trees = [[block["node"] for block in render.blocks(cut)] for cut in cuts]
    page.evaluate(
        """async (answers) => {
            const { build } = await import("/static/markdown.js");
            document.querySelector(".markdown").append(...answers.flat().map(build));
        }""",
        trees,
    )


def test_hostile_names_of_models_and_users_and_errors_are_text(
    trapped: tuple[Page, httpx.Client, Path], lmstudio: Upstream
) -> None:
    page, _, database = trapped
    usual = lmstudio.models
    lmstudio.models = [script.LocalModel(f"{at} {payload}", payload) for at, payload in enumerate(PAYLOADS)]
    try:
        page.reload()
        page.get_by_role("button", name=re.compile("^Model:")).click()
        expect(page.locator(".model-pick")).to_have_count(len(PAYLOADS))
        assert page.evaluate(WALK) == []
        page.locator(".model-pick").first.click()
        for number, at in enumerate(range(0, len(PAYLOADS), 32), 1):
            lmstudio.enqueue(text("So"), script.error(f"No. {number}: {' '.join(PAYLOADS[at : at + 4])}"))
            ask(page, "Go on")
            expect(page.locator(".last .failed")).to_contain_text(f"No. {number}")
        assert page.evaluate(WALK) == []
        lmstudio.enqueue(answer("Hello", model=PAYLOADS[0]))
        ask(page, "And now")
        expect(answered(page)).to_contain_text(PAYLOADS[0])
    finally:
        lmstudio.models = usual
    # A name like this is refused; a database that came from elsewhere may still hold one.
    user = "INSERT INTO users (username, password_hash, role, created_at) VALUES (?, '', 'user', '2026-01-01T00:00:00.000000')"
    with contextlib.closing(sqlite3.connect(database, timeout=30)) as connection, connection:
        connection.executemany(user, [(payload,) for payload in sorted(set(PAYLOADS))])
    page.locator(".account").click()
    page.get_by_role("menuitem", name="Settings").click()
    page.get_by_role("tab", name="Household").click()
    expect(page.locator(".rows").first.locator("li")).to_have_count(len(set(PAYLOADS)) + 1)
