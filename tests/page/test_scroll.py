"""The scroll position: it follows the end while that is visible, and stays where the reader scrolled to."""

import re

import pytest
from playwright.sync_api import Locator, Page, expect

from ..browser import DESKTOP, Visit
from ..upstream import DONE, Gate, Upstream, finish, pause, text, usage
from .steps import Held, answered, ask, box, imported, next_frame, open_chat, stream

BELOW = "(node) => node.scrollHeight - node.clientHeight - node.scrollTop"
COVERED = """() => {
    const place = (name) => document.querySelector(name).getBoundingClientRect();
    const button = place(".to-end");
    return [".scroller", ".box textarea", ".meter", ".send"].filter((name) => {
        const { left, right, top, bottom } = place(name);
        return left < button.right && right > button.left && top < button.bottom && bottom > button.top;
    });
}"""
# The page's own scrolling to the end may still send its event after this: only one that ends far above is the reader's.
SCROLLED_UP = """(node) => {
    const limit = node.scrollTop - 400;
    window.scrolledUp = new Promise((resolve) => {
        node.addEventListener("scrollend", () => node.scrollTop < limit && resolve());
    });
}"""
MIXED = """## Part {}

Some prose about **this** and `that`, which goes on for quite a while, so that it takes more than one line of the column.

1. One
2. Two
   - nested
3. Three

```python
class Thing:
    name: str = "thing"
```

| a | b | c |
|---|:-:|--:|
| 1 | 2 | 3 |

- [x] done

> quoted

$$\\sum_1^n i = \\frac{n^2}{2}$$

"""
WATCH = """() => {
    const node = document.querySelector(".scroller");
    const { port1, port2 } = new MessageChannel();
    let changed = false;
    window.distances = [];
    // A message that is sent in a frame arrives when it was drawn. A change after the message belongs to the next frame.
    new MutationObserver(() => { changed = true; })
        .observe(node, { subtree: true, childList: true, characterData: true, attributes: true });
    const watch = () => requestAnimationFrame(() => {
        changed = false;
        port2.postMessage(0);
    });
    port1.onmessage = () => {
        if (!changed) distances.push(Math.round(node.scrollHeight - node.clientHeight - node.scrollTop));
        watch();
    };
    watch();
}"""
# The layout may shrink while it is measured, and grow again before it is drawn: then the browser moves up, not the reader.
SHRINK = """async () => {
    const answer = document.querySelector(".message.assistant .markdown");
    const drawn = () => new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
    for (const space of [300, 0, 600]) {
        answer.style.paddingBottom = `${space}px`;
        if (document.querySelector(".scroller").scrollTop && space) await drawn();
    }
    await drawn();
    const below = document.querySelector(".scroller");
    const distance = below.scrollHeight - below.clientHeight - below.scrollTop;
    answer.style.paddingBottom = "";
    return distance;
}"""


def test_end_is_followed_until_the_reader_scrolls_up(visit: Visit, lmstudio: Upstream) -> None:
    lines = "A line of the long answer.\n\n" * 60
    more, end = stream(lmstudio, lines, lines, "The end.")
    page = visit.open()
    ask(page, "Much, please")
    scroller, to_end = page.locator(".scroller"), page.get_by_role("button", name="To the end")
    paragraphs = page.locator(".message.assistant p")
    expect(paragraphs).to_have_count(60)
    expect_at_end(scroller)
    scroller.hover()
    scroller.evaluate(SCROLLED_UP)
    page.mouse.wheel(0, -500)
    page.evaluate("scrolledUp")
    expect(to_end).to_be_visible()
    box(page).fill("A long question. " * 60)
    for width in (360, 390, 1280):
        page.set_viewport_size({"width": width, "height": DESKTOP["height"]})
        assert page.evaluate(COVERED) == [], width
    box(page).fill("")
    next_frame(page)  # until then, the browser still moves the position to keep the lines in view after the resizing
    before = scroller.evaluate("(node) => node.scrollTop")
    more.open()
    expect(paragraphs).to_have_count(120)
    assert scroller.evaluate("(node) => node.scrollTop") == before
    to_end.click()
    expect_at_end(scroller)
    scroller.evaluate(SCROLLED_UP)
    scroller.press("PageUp")
    page.evaluate("scrolledUp")
    expect(to_end).to_be_visible()
    to_end.click()
    expect_at_end(scroller)
    assert page.evaluate(SHRINK) < 2
    end.open()
    answered(page)
    expect(page.get_by_text("The end.")).to_be_in_viewport()
    expect_at_end(scroller)


def expect_at_end(scroller: Locator) -> None:
    scroller.page.wait_for_function(f"(node) => ({BELOW})(node) < 2", arg=scroller.element_handle())


def test_end_is_visible_in_every_frame_of_a_mixed_answer(visit: Visit, lmstudio: Upstream) -> None:
    whole = "".join(MIXED.replace("{}", str(number)) for number in range(20))
    pieces = [text(*re.findall(".{1,7}", whole[at : at + 70], re.DOTALL)) for at in range(0, len(whole), 70)]
    gates = [Gate() for _ in pieces]
    steps = [step for piece, gate in zip(pieces, gates, strict=True) for step in (piece, pause(gate))]
    lmstudio.enqueue(*steps, text("The end."), finish(), usage(9, 9), DONE)
    page = visit.open()
    ask(page, "Much, please")
    expect(page.locator(".markdown h2")).to_have_count(1)
    page.evaluate(WATCH)
    for gate in gates:
        gate.wait()
        page.evaluate("new Promise(requestAnimationFrame)")
        gate.open()
    answered(page)
    expect(page.locator(".markdown math")).to_have_count(20)
    expect(page.get_by_text("The end.", exact=True)).to_be_in_viewport()
    distances: list[int] = page.evaluate("distances")
    assert len(distances) > len(gates)
    assert [distance for distance in distances if distance > 2] == []


@pytest.mark.long
def test_long_chat_opens_at_its_end_and_is_read_up_to_its_first_message(visit: Visit) -> None:
    body = "".join(MIXED.replace("{}", str(number)) for number in range(4))
    texts = [f"Message {number} {body if number % 10 == 1 else 'word ' * (number % 90)}" for number in range(180)]
    imported(visit.client, [("Long", texts)])
    page = visit.open()
    open_chat(page, "Long")
    messages = page.locator(".message")
    expect(messages).to_have_count(60)
    expect(messages.last).to_be_in_viewport()
    expect_at_end(page.locator(".scroller"))
    held = Held(page, r"/messages\?.*before=", 2)
    page.locator(".scroller").hover()
    for index, first in enumerate((120, 60)):
        scroll_to_top(page)
        held.wait(index + 1)
        before = top(page, f"Message {first}")
        held.release(index)
        expect(messages).to_have_count(180 - first + 60)
        assert abs(top(page, f"Message {first}") - before) < 3
    scroll_to_top(page)
    expect(messages.first).to_be_in_viewport()
    expect(messages.first).to_contain_text("Message 0")

    # A reader who scrolls up faster than messages arrive sees the top again as soon as some have.
    page.reload()
    expect(messages).to_have_count(60)
    expect(messages.last).to_be_in_viewport()
    page.evaluate(
        """() => {
            const node = document.querySelector(".scroller");
            const up = () => { node.scrollTop = 0; };
            new MutationObserver(up).observe(document.querySelector(".column"), { childList: true });
            node.addEventListener("scroll", up); // also after the page's last scroll to the end
            up();
        }"""
    )
    expect(messages).to_have_count(180)


def scroll_to_top(page: Page) -> None:
    while page.locator(".scroller").evaluate("(node) => node.scrollTop") > 0:
        page.mouse.wheel(0, -3000)
        page.evaluate("new Promise(requestAnimationFrame)")


def top(page: Page, message: str) -> float:
    """The vertical position of a message after the layout."""
    found: float = page.locator(".message .text", has_text=re.compile(f"^{message} ")).evaluate(
        """async (node) => {
            for (let frame = 0; frame < 3; frame += 1) await new Promise(requestAnimationFrame);
            return node.getBoundingClientRect().top;
        }"""
    )
    return found
