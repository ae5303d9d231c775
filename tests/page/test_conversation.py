"""The open conversation: what is asked and changed in it, and requests that overlap."""

import re
from concurrent.futures import ThreadPoolExecutor

import httpx
from playwright.sync_api import expect

from ..browser import Visit
from ..live import good
from ..upstream import DONE, Upstream, answer, chunk, finish
from .steps import (
    DOT,
    QWEN,
    Held,
    answered,
    ask,
    attach,
    box,
    edit_question,
    imported,
    messages,
    new,
    next_frame,
    open_chat,
    press,
    recorded,
    refocus,
    stream,
    wait,
)

DETAILS = r"/conversations/\d+$"
PATH = r"/messages\?"


def test_version_of_an_earlier_answer_keeps_what_followed(visit: Visit, lmstudio: Upstream) -> None:
    imported(visit.client, [("Rivers", ["What is a river?", "Water.", "And a lake?", "Still water."])])
    page = visit.open()
    open_chat(page, "Rivers")
    lmstudio.enqueue(answer("Water that flows."))
    page.locator(".message", has_text="Water.").first.get_by_role("button", name="Another answer").click()
    expect(answered(page)).to_contain_text("Water that flows.")
    expect(page.locator(".message")).to_have_count(2)
    press(page, "Previous version")
    expect(page.locator(".message.assistant.last")).to_contain_text("Still water.")


def test_responses_from_before_the_end_of_an_answer_do_not_block_the_next(visit: Visit, lmstudio: Upstream) -> None:
    page = visit.open()
    (gate,) = stream(lmstudio, "One ", "two")
    ask(page, "Count")
    text = page.locator(".message.assistant .markdown")
    expect(text).to_contain_text("One")
    with recorded(page, "/generations/") as streams:
        held = Held(page, DETAILS, 2, response=True)
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        held.wait(1)
        gate.open()
        held.wait(2)
        held.release(0)
        expect(page.get_by_role("button", name="Send")).to_be_visible()
        held.release(1)
        expect(answered(page).locator(".markdown")).to_have_text("One two")
        lmstudio.enqueue(answer("Three"))
        ask(page, "Go on")
        expect(answered(page).locator(".markdown")).to_have_text("Three")
    assert streams == []


def test_response_of_an_earlier_read_does_not_replace_a_later_one(visit: Visit) -> None:
    chat = new(visit.client, title="Before")
    page = visit.open(f"/#/c/{chat}")
    title, row = page.locator(".top .title"), page.locator(".list li")
    expect(title).to_have_text("Before")
    expect(row).to_have_text("Before")
    held = [
        Held(page, pattern, response=True) for pattern in (rf"/conversations/{chat}$", r"/conversations\?limit=60$")
    ]
    refocus(page)
    for one in held:
        one.wait()
    good(visit.client.patch(f"/conversations/{chat}", json={"title": "After"}))
    refocus(page)
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
    for one in held:
        one.release()
    assert [text for text in page.evaluate("seen") if "Before" in text] == []


def test_answer_is_not_hidden_by_a_read_from_before_it_began(visit: Visit, lmstudio: Upstream) -> None:
    page = visit.open(f"/#/c/{new(visit.client)}")
    streams = Held(page, r"/stream$")
    (gate,) = stream(lmstudio, "One ", "two")
    ask(page, "Count")
    streams.wait()
    reads = Held(page, PATH, response=True)
    refocus(page)
    reads.wait()
    streams.release()
    text = page.locator(".message.assistant .markdown")
    expect(text).to_have_text("One")
    reads.release()
    assert text.count() == 1
    gate.open()
    expect(answered(page).locator(".markdown")).to_have_text("One two")


def test_answer_that_begins_while_the_conversation_is_read_is_shown(visit: Visit, lmstudio: Upstream) -> None:
    """The messages are read before it begins, the conversation after."""
    chat = new(visit.client)
    good(visit.client.post(f"/conversations/{chat}/messages", json={"content": "Count"}))
    page = visit.open()
    expect(page.locator(".welcome")).to_be_visible()
    path, details = Held(page, PATH, response=True), Held(page, DETAILS)
    page.goto(f"/#/c/{chat}")
    path.wait()
    details.wait()
    (gate,) = stream(lmstudio, "One ", "two")
    good(visit.client.post("/chat/retry", json={"conversation_id": chat}))
    details.release()
    path.release()
    expect(page.locator(".message.assistant .markdown")).to_have_text("One")
    gate.open()
    expect(answered(page).locator(".markdown")).to_have_text("One two")


def test_another_version_can_be_read_while_an_answer_is_written(visit: Visit, lmstudio: Upstream) -> None:
    page = visit.open(f"/#/c/{new(visit.client, 'Hello')}")
    first, second = stream(lmstudio, "One ", "two ", "three")
    edit_question(page, "Count")
    text, question = page.locator(".message.assistant .markdown"), page.locator(".message.user")
    expect(text).to_have_text("One")
    press(page, "Previous version")
    expect(question).to_contain_text("Hello")
    expect(page.locator(".message")).to_have_count(2)
    press(page, "Next version")
    expect(text).to_have_text("One")
    first.open()
    expect(text).to_have_text("One two")
    press(page, "Previous version")
    expect(question).to_contain_text("Hello")
    page.reload()
    expect(question).to_contain_text("Hello")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    expect(page.locator(".message")).to_have_count(2)
    press(page, "Next version")
    expect(text).to_have_text("One two")
    second.open()
    expect(answered(page).locator(".markdown")).to_have_text("One two three")


def test_another_conversation_can_be_opened_while_a_question_is_sent(visit: Visit, lmstudio: Upstream) -> None:
    first, second = new(visit.client, title="First"), new(visit.client, title="Second")
    page = visit.open(f"/#/c/{second}")
    heading = page.get_by_role("heading", level=1)
    box(page).fill("A draft in the second")
    page.goto(f"/#/c/{first}")
    expect(heading).to_have_text("First")
    held = Held(page, r"/messages$")
    lmstudio.enqueue(answer("Here it is"))
    ask(page, "Sent in the first")
    held.wait()
    page.goto(f"/#/c/{second}")
    expect(heading).to_have_text("Second")
    held.release()
    wait(page, lambda: [one["status"] for one in messages(visit.client, first)] == ["complete"] * 2)
    assert [one["content"] for one in messages(visit.client, first)] == ["Sent in the first", "Here it is"]
    expect(box(page)).to_have_value("A draft in the second")
    page.reload()
    expect(box(page)).to_have_value("A draft in the second")
    page.goto(f"/#/c/{first}")
    expect(page.locator(".message.assistant")).to_contain_text("Here it is")
    expect(box(page)).to_have_value("")


def test_edited_question_with_an_image_stays_in_its_conversation(visit: Visit, lmstudio: Upstream) -> None:
    """Another conversation may be opened before the request ends."""
    first, second = new(visit.client, title="First", **QWEN), new(visit.client, title="Second", **QWEN)
    page = visit.open(f"/#/c/{first}")
    heading = page.get_by_role("heading", level=1)
    expect(heading).to_have_text("First")
    attach(page, DOT)
    lmstudio.enqueue(answer("A dot"))
    ask(page, "What is this?")
    expect(answered(page)).to_contain_text("A dot")
    held = Held(page, r"/messages$")
    lmstudio.enqueue(answer("Still a dot"))
    edit_question(page, "And now?")
    held.wait()
    page.goto(f"/#/c/{second}")
    expect(heading).to_have_text("Second")
    held.release()
    wait(page, lambda: [one["content"] for one in messages(visit.client, first)] == ["And now?", "Still a dot"])
    assert [bool(one["images"]) for one in messages(visit.client, first)] == [True, False]
    assert messages(visit.client, second) == []


def test_search_result_that_cannot_be_opened_is_called_missing_only_if_it_is(visit: Visit) -> None:
    chat = new(visit.client, "Hello")
    page = visit.open(f"/#/c/{chat}")
    answered(page)
    toast = page.locator(".toast")
    page.route(re.compile(r"/active$"), lambda route: route.abort())
    with page.expect_event("requestfailed", lambda request: request.url.endswith("/active")):
        page.goto(f"/#/c/{chat}/m/999999")
    next_frame(page)
    assert toast.count() == 0
    page.unroute_all()
    page.goto(f"/#/c/{chat}/m/999998")
    expect(toast).to_contain_text("This message no longer exists.")


def test_conversation_of_more_messages_than_one_request_returns(visit: Visit, lmstudio: Upstream) -> None:
    imported(visit.client, [("Long", ["The very first", *(f"Text {number}" for number in range(1, 1010))])])
    page = visit.open()
    with recorded(page, "&before=") as older:
        page.get_by_role("searchbox", name="Search chats").fill("very first")
        page.locator(".results a", has_text="very first").click()
        expect(page.locator(".message").first).to_contain_text("The very first")
    assert len(older) == 5, "each request doubles what is loaded"
    lmstudio.enqueue(answer("It goes on"))
    ask(page, "And then?")
    expect(answered(page)).to_contain_text("It goes on")
    expect(page.locator(".message")).to_have_count(1012)


def test_edits_are_saved_in_the_conversation_that_is_left(visit: Visit) -> None:
    first, second = new(visit.client, title="First"), new(visit.client, title="Second")
    page = visit.open(f"/#/c/{first}")
    heading = page.get_by_role("heading", level=1)
    press(page, "Chat settings")
    page.get_by_label("Instructions for the model").fill("Only for the first")
    page.get_by_label("Temperature").fill("0.5")
    page.keyboard.press("Alt+ArrowUp")
    expect(heading).to_have_text("Second")
    press(page, "Second")
    page.get_by_role("textbox", name="Title").fill("Second, renamed")
    page.keyboard.press("Alt+ArrowDown")
    expect(heading).to_have_text("First")
    expect(page.locator(".sidebar li", has_text="Second, renamed")).to_be_visible()

    def details(chat: int) -> tuple[object, ...]:
        found = good(visit.client.get(f"/conversations/{chat}"))
        return found["title"], found["system_prompt"], found["settings"]["temperature"]

    wait(page, lambda: details(first) == ("First", "Only for the first", 0.5))
    assert details(second) == ("Second, renamed", "", 0)


def test_conversation_that_is_still_being_read_can_be_asked(visit: Visit, lmstudio: Upstream) -> None:
    """The question goes below the last message. Reading takes no focus."""
    chat = new(visit.client, "First")
    page = visit.open()
    held = Held(page, rf"/conversations/{chat}/messages\?")
    page.goto(f"/#/c/{chat}")
    expect(box(page)).to_be_focused()
    held.wait()
    settings = page.get_by_role("button", name="Chat settings")
    expect(settings).to_be_disabled()
    lmstudio.enqueue(answer("Below"))
    ask(page, "Second")
    expect(answered(page)).to_contain_text("Below")
    search = page.get_by_role("searchbox", name="Search chats")
    search.focus()
    held.release()
    expect(settings).to_be_enabled()
    expect(search).to_be_focused()
    assert [one["role"] for one in messages(visit.client, chat)] == ["user", "assistant"] * 2


def test_edited_question_that_is_not_sent_stays_in_its_box(visit: Visit) -> None:
    page = visit.open(f"/#/c/{new(visit.client, 'Hello')}")
    answered(page)
    visit.context.set_offline(True)
    edit_question(page, "Hello again")
    expect(page.locator(".toast")).to_contain_text("Your text is still here")
    editor = page.get_by_role("textbox", name="Edited question")
    expect(editor).to_have_value("Hello again")
    visit.context.set_offline(False)
    expect(page.locator(".banner")).to_be_hidden()
    editor.press("Control+Enter")
    expect(page.locator(".message.user")).to_contain_text("Hello again")
    expect(page.locator(".message.user")).to_contain_text("2/2")


def test_refused_first_message_creates_no_conversation(visit: Visit) -> None:
    page = visit.open()
    refusal = {"code": "VALIDATION_ERROR", "message": "message.content is refused by this test", "request_id": "1"}
    page.route(re.compile(r"/conversations$"), lambda route: route.fulfill(status=400, json=refusal))
    ask(page, "Hello?")
    expect(page.locator(".toast")).to_contain_text("Content is refused by this test")
    expect(box(page)).to_have_value("Hello?")
    assert good(visit.client.get("/conversations")) == []


def test_chat_of_another_program_is_seen_live_with_its_name_and_its_tools(visit: Visit, lmstudio: Upstream) -> None:
    token = good(visit.client.post("/tokens", json={"name": "Zed"}))["token"]
    call = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Oslo"}'}}
    history: list[dict[str, object]] = [{"role": "user", "content": "Weather?"}]

    def send() -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"}
        body = {"messages": history, "stream": True}
        url = f"{visit.url}/v1/chat/completions"
        return httpx.post(url, json=body, headers=headers, trust_env=False, timeout=60)

    lmstudio.enqueue(chunk({"tool_calls": [{"index": 0, **call}]}), finish("tool_calls"), DONE)
    assert send().status_code == 200
    page = visit.open()
    row = page.locator(".list li", has_text="Weather?")
    expect(row).to_have_attribute("data-token", "Zed")
    open_chat(page, "Weather?")
    expect(page.locator("h1 .title")).to_have_attribute("data-token", "Zed")
    tool = page.locator(".message details.tool", has_text="Calls a tool: get_weather")
    expect(tool.locator("pre")).to_be_hidden()
    tool.locator("summary").click()
    expect(tool.locator("pre")).to_contain_text('"city": "Oslo"')
    (gate,) = stream(lmstudio, "It will ", "rain.")
    history += [{"role": "assistant", "content": None, "tool_calls": [call]}]
    history += [{"role": "tool", "tool_call_id": "1", "content": "rain, 4 °C"}]

    with ThreadPoolExecutor() as pool:
        asking = pool.submit(send)
        wait(page, lambda: good(visit.client.get("/conversations"))[0]["generation_id"])
        refocus(page)  # once: a refresh replaces the one that is under way
        expect(page.locator(".message.assistant.last .markdown")).to_contain_text("It will")
        gate.open()
        assert asking.result().status_code == 200
    last = answered(page)
    expect(last.locator(".markdown")).to_have_text("It will rain.")
    expect(last.locator("details.tool summary")).to_have_text("Result of a tool")
