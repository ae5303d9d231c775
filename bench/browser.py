"""The time of an update of a streaming answer in Chromium: from the arrival of text, through rendering, to the end of the layout."""

import contextlib
import datetime
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from tests.browser import NO_ENGINE, Fireside, Visit, launch
from tests.live import good
from tests.upstream import Upstream

STEP = 40  # characters of an update

SECTION = """## How the tide is reckoned

The tide at a place follows the moon with a *lag* that is nearly constant, and **varies in height** with the sun.
A reckoning by hand takes the `establishment of the port` and adds what [the tables](https://example.org) say.

- springs come a day or two after full and new moon
- neaps lie half way between, and are small

```python
def high_water(moon_transit: float, establishment: float) -> float:
    return (moon_transit + establishment) % 24  # hours
```

| port | establishment |
|------|--------------:|
| Brest | 3.8 |
| Dover | 11.2 |

"""

PREPARE = """async () => {
    const { Markdown } = await import("/static/markdown.js");
    window.answer = new Markdown();
    const column = document.querySelector(".column");
    column.replaceChildren(answer.node);
    window.scroller = document.querySelector(".scroller");
    window.grow = (text) => new Promise((resolve) => {
        const observer = new MutationObserver(() => {
            observer.disconnect();
            resolve();
        });
        observer.observe(answer.node, { childList: true, subtree: true });
        answer.append(text);
    });
    window.update = async (text) => {
        await new Promise((resolve) => setTimeout(resolve, 300)); // longer than the page waits between two updates
        const start = performance.now();
        await grow(text);
        scroller.scrollTop = scroller.scrollHeight; // lays out
        return performance.now() - start;
    };
}"""


def _conversation(number: int) -> dict[str, object]:
    """Return the export of a conversation that was used so many times ten hours ago: 2,000 of them fill 27 months."""
    time = (datetime.datetime.now(datetime.UTC) - number * datetime.timedelta(hours=10)).strftime(
        "%Y-%m-%dT%H:%M:%S.%f"
    )
    question = {"id": 1, "parent_id": None, "role": "user", "content": "Hello", "created_at": time}
    head = {"fireside": 1, "title": f"Chat {number}", "named": True, "created_at": time, "updated_at": time}
    return head | {"active_message_id": 1, "messages": [question]}


@contextlib.contextmanager
def opened(conversations: int = 0) -> Iterator[Page]:
    """The page of a user who has so many conversations."""
    with sync_playwright() as playwright, Upstream() as upstream, tempfile.TemporaryDirectory() as folder:
        browser = launch(playwright)
        with Fireside(Path(folder), NO_ENGINE, fresh=True, lmstudio_url=upstream.url) as fireside:
            client = fireside.first()
            if conversations:
                good(client.post("/import", json=[_conversation(number) for number in range(conversations)]))
            page = Visit(browser, fireside.url, client).open()
            page.locator(".welcome").wait_for()
            yield page
        browser.close()


def update(page: Page, length: int, times: int) -> float:
    """Return the median seconds of so many updates of an answer with `length` characters."""
    page.evaluate(PREPARE)
    text = SECTION * (length // len(SECTION) + times)
    page.evaluate("(text) => grow(text)", text[:length])
    pieces = [text[at : at + STEP] for at in range(length, length + STEP * times, STEP)]
    milliseconds = [float(page.evaluate("(piece) => update(piece)", piece)) for piece in pieces]
    return statistics.median(milliseconds) / 1000


COPY = """(text) => {
    const area = document.body.appendChild(document.createElement("textarea"));
    area.value = text;
    area.select();
    document.execCommand("copy");
    area.remove();
}"""
FETCHED = """() => [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")]
    .map(({ transferSize }) => transferSize)"""
NEXT_FRAME = "new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)))"


def delete_paste(page: Page, lines: int) -> float:
    """Paste so many lines into the composer. Return the seconds that deleting them takes, to the end of the layout."""
    box = page.locator(".composer textarea")
    page.evaluate(COPY, "A line\n" * lines)
    box.focus()
    page.keyboard.press("Control+v")
    page.keyboard.press("Control+a")
    page.evaluate(NEXT_FRAME)
    assert box.evaluate("(node) => node.value.length") == 7 * lines
    began = time.monotonic()
    page.keyboard.press("Delete")
    page.evaluate(NEXT_FRAME)
    seconds = time.monotonic() - began
    assert box.input_value() == ""
    return seconds


ROWS = "document.querySelectorAll('.list li').length"
ACTIONS = {  # on the list of conversations, each with what is true once it was done
    "open a chat": ("link(5).click()", "link(5).parentElement.classList.contains('current')"),
    "open another chat": ("link(6).click()", "link(6).parentElement.classList.contains('current')"),
    "select": ("link(7).dispatchEvent(ctrl)", "document.querySelector('.selection')"),
    "select to": ("link(7 + many - 1).dispatchEvent(shift)", "selected() === many"),
    "select one more": ("link(2).click()", "selected() === many + 1"),
    "select one less": ("link(2).click()", "selected() === many"),
    "delete the selected": ("press('Delete the selected chats')", "rows() === count - many"),
    "undo": ("document.querySelector('.toast button').click()", "rows() === count"),
    "filter by a search": ("search('Chat 1')", "document.querySelector('.results a')"),
    "end the search": ("search('')", "!document.querySelector('.list').hidden"),
}
HELPERS = """
const link = (index) => document.querySelectorAll('.list li a')[index];
const rows = () => document.querySelectorAll('.list li').length;
const selected = () => document.querySelectorAll('[aria-checked=true]').length;
const press = (label) => document.querySelector(`[aria-label="${label}"]`).click();
const click = { bubbles: true, cancelable: true };
const ctrl = new MouseEvent('click', { ...click, ctrlKey: true }), shift = new MouseEvent('click', { ...click, shiftKey: true });
const search = (text) => {
    const box = document.querySelector('.search input');
    box.value = text;
    box.dispatchEvent(new Event('input'));
};
"""
SEARCH_DELAY_MS = 120  # the page waits so long for another letter


def list_actions(page: Page, count: int) -> dict[str, float]:
    """Return the milliseconds that each action takes in a list of so many loaded conversations, to the end of the layout."""
    page.wait_for_function(
        "(count) => { const list = document.querySelector('.list'); list.scrollTop = list.scrollHeight; return "
        + ROWS + " === count; }",
        arg=count,
    )  # fmt: skip
    page.evaluate("document.querySelector('.list').scrollTop = 0")
    times = {}
    for name, (act, done) in ACTIONS.items():
        page.wait_for_load_state("networkidle")
        script = f"""async ([count, many]) => {{
            {HELPERS}
            const begun = performance.now();
            {act};
            while (!({done})) {{
                if (performance.now() > begun + 20_000) throw new Error({name!r});
                await new Promise((resolve) => setTimeout(resolve));
            }}
            document.body.offsetHeight; // lays out
            return performance.now() - begun;
        }}"""
        times[name] = float(page.evaluate(script, [count, count // 4])) - SEARCH_DELAY_MS * ("search" in act)
    return times
