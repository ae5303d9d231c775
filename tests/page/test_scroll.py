"""Where one is in a long chat: at its end while that is in sight, else where one went."""

import re

import httpx
from playwright.sync_api import Page, Route, expect

from ..browser import DESKTOP, Watched
from ..upstream import DONE, Gate, Upstream, finish, pause, text, usage
from .steps import answered, ask, imported

REST = "(node) => node.scrollHeight - node.clientHeight - node.scrollTop"
COVERED = """() => {
    const place = (name) => document.querySelector(name).getBoundingClientRect();
    const button = place(".to-end");
    return [".scroller", ".box textarea", ".meter", ".send"].filter((name) => {
        const { left, right, top, bottom } = place(name);
        return left < button.right && right > button.left && top < button.bottom && bottom > button.top;
    });
}"""
SETTLE = "(node) => { window.settled = new Promise((end) => node.addEventListener('scrollend', end, { once: true })); }"
MIXED = """## Part {}

Some prose about **this** and `that`, which goes on for quite a while, so that it takes more than one line of the column.

1. One
2. Two
   - nested
   - more nested
3. Three

```python
def f(x):
    return [y for y in range(x)]


class Thing:
    name: str = "thing"
```

| a | b | c |
|---|:-:|--:|
| 1 | 2 | 3 |
| 4 | 5 | 6 |

- [ ] a task
- [x] done

> quoted

$$\\sum_1^n i = \\frac{n^2}{2}$$

"""
WATCH = """() => {
    const node = document.querySelector(".scroller");
    const { port1, port2 } = new MessageChannel();
    let changed = false;
    window.rests = [];
    // A frame has been drawn when the message comes that was sent before it; what has changed since is in the next one.
    new MutationObserver(() => { changed = true; })
        .observe(node, { subtree: true, childList: true, characterData: true, attributes: true });
    const look = () => requestAnimationFrame(() => {
        changed = false;
        port2.postMessage(0);
    });
    port1.onmessage = () => {
        if (!changed) rests.push(Math.round(node.scrollHeight - node.clientHeight - node.scrollTop));
        look();
    };
    look();
}"""


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
    assert scroller.evaluate(REST) < 2
    scroller.hover()
    scroller.evaluate(SETTLE)
    page.mouse.wheel(0, -500)
    page.evaluate("settled.then(() => null)")
    expect(page.get_by_role("button", name="To the end")).to_be_visible()
    page.get_by_role("textbox", name="Message").fill("A long question. " * 60)
    for width in (360, 390, 1280):
        page.set_viewport_size({"width": width, "height": DESKTOP["height"]})
        assert page.evaluate(COVERED) == [], width
    page.get_by_role("textbox", name="Message").fill("")
    before = scroller.evaluate("(node) => node.scrollTop")
    gate.open()
    expect(page.locator(".message.assistant p")).to_have_count(120)
    assert scroller.evaluate("(node) => node.scrollTop") == before
    page.get_by_role("button", name="To the end").click()
    assert scroller.evaluate(REST) < 2
    scroller.evaluate(SETTLE)
    scroller.press("PageUp")
    page.evaluate("settled.then(() => null)")
    expect(page.get_by_role("button", name="To the end")).to_be_visible()
    page.get_by_role("button", name="To the end").click()
    # What is measured while it shrinks, and grows before it is drawn, makes the browser go up: that is no reader.
    page.evaluate(
        """async () => {
            const answer = document.querySelector(".message.assistant .markdown");
            const drawn = () => new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
            for (const space of [300, 0, 600]) {
                answer.style.paddingBottom = `${space}px`;
                if (document.querySelector(".scroller").scrollTop && space) await drawn();
            }
            await drawn();
        }"""
    )
    assert scroller.evaluate(REST) < 2
    page.evaluate("document.querySelector('.message.assistant .markdown').style.paddingBottom = ''")
    end.open()
    answered(page)
    expect(page.get_by_text("The end.")).to_be_in_viewport()
    assert scroller.evaluate(REST) < 2


def test_the_end_is_in_sight_on_every_frame_of_a_mixed_answer(
    at_studio: tuple[Watched, httpx.Client], lmstudio: Upstream
) -> None:
    visit, _ = at_studio
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
    rests: list[int] = page.evaluate("rests")
    assert len(rests) > len(gates)
    assert [rest for rest in rests if rest > 2] == []


def top(page: Page, message: str) -> float:
    """Where a message is, once what came has been laid out."""
    found: float = page.locator(".message .text", has_text=re.compile(f"^{message} ")).evaluate(
        """async (node) => {
            for (let frame = 0; frame < 3; frame += 1) await new Promise(requestAnimationFrame);
            return node.getBoundingClientRect().top;
        }"""
    )
    return found


def test_a_long_chat_opens_at_its_end_and_is_read_up_to_its_first_message(
    at_studio: tuple[Watched, httpx.Client],
) -> None:
    visit, client = at_studio
    body = "".join(MIXED.replace("{}", str(number)) for number in range(4))
    texts = [f"Message {number} {body if number % 10 == 1 else 'word ' * (number % 90)}" for number in range(180)]
    imported(client, [("Long", texts)])
    page = visit.open()
    page.get_by_role("link", name="Long", exact=True).click()
    messages = page.locator(".message")
    expect(messages).to_have_count(60)
    expect(messages.last).to_be_in_viewport()
    assert page.locator(".scroller").evaluate(REST) < 2
    held: list[Route] = []
    page.route(re.compile(r"/messages\?.*before="), lambda route: held.append(route))
    page.locator(".scroller").hover()
    for first in (120, 60):
        while not held:
            page.mouse.wheel(0, -3000)
            page.evaluate("new Promise(requestAnimationFrame)")
        # Whoever looks at the oldest that is there goes on looking at it.
        while page.locator(".scroller").evaluate("(node) => node.scrollTop") > 0:
            page.mouse.wheel(0, -3000)
            page.evaluate("new Promise(requestAnimationFrame)")
        before = top(page, f"Message {first}")
        held.pop().continue_()
        expect(messages).to_have_count(180 - first + 60)
        assert abs(top(page, f"Message {first}") - before) < 3
    page.unroute_all()
    while page.locator(".scroller").evaluate("(node) => node.scrollTop") > 0:
        page.mouse.wheel(0, -3000)
        page.evaluate("new Promise(requestAnimationFrame)")
    expect(messages.first).to_be_in_viewport()
    expect(messages.first).to_contain_text("Message 0")

    # Somebody scrolls up faster than the messages come: each time that some have come, the top is in sight again at once.
    page.reload()
    expect(messages).to_have_count(60)
    expect(messages.last).to_be_in_viewport()
    page.evaluate(
        """() => {
            const node = document.querySelector(".scroller");
            const up = () => { node.scrollTop = 0; };
            new MutationObserver(up).observe(document.querySelector(".column"), { childList: true });
            node.addEventListener("scroll", up); // also when the page went to its end a last time
            up();
        }"""
    )
    expect(messages).to_have_count(180)
