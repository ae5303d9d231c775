"""An answer that is continued, and questions that wait for the answer before them."""

import pytest
from playwright.sync_api import expect

from ..browser import Visit
from ..upstream import DONE, Gate, Upstream, answer, finish, pause, text, usage
from .steps import answered, ask, attach, box, messages, press, stream

CODE = "Sure:\n\n```python\ndef add(a, b):\n    return a"


def test_continue_grows_the_answer_and_its_code_block_which_is_copied_over_plain_http(
    visit: Visit, lmstudio: Upstream
) -> None:
    lmstudio.enqueue(text(CODE), finish("length"), usage(9, 9), DONE)
    page = visit.open()
    ask(page, "Write a function")
    reply = answered(page)
    expect(reply.locator(".halted")).to_contain_text("The token limit was reached.")
    gate = Gate()
    more = "```python\n + b\n\nprint(add(1, 2))\n# That is all of it.\n"
    lmstudio.enqueue(text(more), pause(gate), text("```\nDone."), finish(), usage(30, 9), DONE)
    press(page, "Continue")
    code = reply.locator("pre")
    expect(code).to_contain_text("print(add(1, 2))")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    gate.open()
    expect(reply.locator("p", has_text="Done.")).to_be_visible()
    expect(reply.locator(".halted")).to_have_count(0)
    expect(code).to_have_count(1)
    expect(code).to_contain_text("def add(a, b):\n    return a + b\n\nprint(add(1, 2))")
    expect(answered(page).locator(".figures")).to_contain_text("18 tokens")
    expect(page.locator(".message")).to_have_count(2)
    page.reload()
    expect(answered(page).locator("pre .nb").first).to_have_text("print")
    expect(code).to_have_count(1)
    page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    press(page, "Copy code")
    box(page).click()
    page.keyboard.press("Control+v")
    expect(box(page)).to_have_value("def add(a, b):\n    return a + b\n\nprint(add(1, 2))\n# That is all of it.")
    [_, stored] = messages(visit.client, int(page.url.rpartition("/")[2]))
    assert stored["content"] == f"{CODE} + b\n\nprint(add(1, 2))\n# That is all of it.\n```\nDone."


@pytest.mark.long
def test_questions_wait_in_the_queue_of_all_tabs_and_are_answered_in_turn(visit: Visit, lmstudio: Upstream) -> None:
    (first,) = stream(lmstudio, "One, ", "done.")
    page = visit.open()
    ask(page, "Count to one")
    expect(page.locator(".message.assistant .markdown")).to_contain_text("One")
    queue = page.locator(".queue li")
    ask(page, "Count to two")
    expect(queue).to_have_count(1)
    expect(box(page)).to_have_value("")
    ask(page, "Never mind")
    attach(page, ("numbers.txt", b"1 2 3"), ("tree.txt", b"oak"))
    expect(page.locator(".composer .chip")).to_have_count(2)
    ask(page, "Count to tree")
    expect(queue).to_have_count(3)
    expect(queue.nth(2).locator(".document")).to_contain_text(["numbers.txt", "tree.txt"])
    expect(queue.first).to_contain_text("Next")
    other = visit.open(page.url)
    others = other.locator(".queue li")
    expect(others).to_have_count(3)

    others.nth(1).get_by_role("button", name="Remove queued message").click()
    expect(others).to_have_count(2)
    expect(others.nth(1).get_by_role("button", name="Remove queued message")).to_be_focused()
    press(other, "Undo")
    expect(queue.nth(2)).to_contain_text("Never mind")
    queue.nth(2).get_by_role("button", name="Remove queued message").click()
    expect(box(page)).to_be_focused()
    expect(others).to_have_count(2)
    queue.nth(1).get_by_role("button", name="Edit queued message").click()
    expect(page.get_by_role("textbox", name="Edited message")).to_have_value("Count to tree")
    press(page, "Remove tree.txt")
    page.get_by_role("textbox", name="Edited message").fill("Count to three")
    page.keyboard.press("Control+Enter")
    expect(others.nth(1)).to_contain_text("Count to three")
    expect(others.nth(1).locator(".document")).to_contain_text(["numbers.txt"])

    (second,) = stream(lmstudio, "Two, ", "done.")
    first.open()
    for tab in (page, other):  # neither has asked for this answer
        expect(tab.locator(".message.assistant.last .markdown")).to_contain_text("Two")
        expect(tab.locator(".queue li")).to_have_count(1)
    press(page, "Stop")
    expect(page.locator(".queue")).to_contain_text("The queue has stopped")
    lmstudio.enqueue(answer("Three"))
    others.get_by_role("button", name="Send now").click()
    expect(answered(page).locator(".markdown")).to_have_text("Three")
    expect(page.locator(".queue")).to_have_count(0)
    expect(page.locator(".message.user .text")).to_have_text(["Count to one", "Count to two", "Count to three"])
    expect(page.locator(".message.user .document")).to_contain_text("numbers.txt")
    second.open()
