"""An answer that is continued."""

from playwright.sync_api import expect

from ..browser import Visit
from ..upstream import DONE, Gate, Upstream, finish, pause, text, usage
from .steps import answered, ask, messages, press

CODE = "Sure:\n\n```python\ndef add(a, b):\n    return a"


def test_continue_grows_the_answer_and_its_code_block(visit: Visit, lmstudio: Upstream) -> None:
    lmstudio.enqueue(text(CODE), finish("length"), usage(9, 9), DONE)
    page = visit.open()
    ask(page, "Write a function")
    answer = answered(page)
    expect(answer.locator(".halted")).to_contain_text("The token limit was reached.")
    gate = Gate()
    more = "```python\n + b\n\nprint(add(1, 2))\n# That is all of it.\n"
    lmstudio.enqueue(text(more), pause(gate), text("```\nDone."), finish(), usage(30, 9), DONE)
    press(page, "Continue")
    code = answer.locator("pre")
    expect(code).to_contain_text("print(add(1, 2))")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    gate.open()
    expect(answer.locator("p", has_text="Done.")).to_be_visible()
    expect(answer.locator(".halted")).to_have_count(0)
    expect(code).to_have_count(1)
    expect(code).to_contain_text("def add(a, b):\n    return a + b\n\nprint(add(1, 2))")
    expect(answered(page).locator(".figures")).to_contain_text("18 tokens")
    expect(page.locator(".message")).to_have_count(2)
    page.reload()
    expect(answered(page).locator("pre")).to_have_count(1)
    [_, stored] = messages(visit.client, int(page.url.rpartition("/")[2]))
    assert stored["content"] == f"{CODE} + b\n\nprint(add(1, 2))\n# That is all of it.\n```\nDone."
