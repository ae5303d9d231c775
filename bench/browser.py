"""The time of an update of a streaming answer in Chromium: from the arrival of text, through rendering, to the end of the layout."""

import contextlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from tests.browser import NO_ENGINE, Fireside, Visit, launch
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


@contextlib.contextmanager
def opened() -> Iterator[Page]:
    with sync_playwright() as playwright, Upstream() as upstream, tempfile.TemporaryDirectory() as folder:
        browser = launch(playwright)
        with Fireside(Path(folder), NO_ENGINE, fresh=True, lmstudio_url=upstream.url) as fireside:
            page = Visit(browser, fireside.url, fireside.first()).open()
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
