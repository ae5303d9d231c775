"""`python -m bench.page`: what an update of a streaming answer costs the page, at its beginning and far on.

An update is measured in a real Chromium from the arrival of text to the end of the layout: the request that renders the
open rest, the nodes, and the scroll that follows. Exits with 1 when it grows with the answer.
"""

import statistics
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from tests.browser import NO_ENGINE, Fireside, Watched, launch
from tests.upstream import Upstream

LENGTHS = (1_000, 100_000)  # characters
UPDATES = 60
TARGET = 1.5

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
    window.rendered = () => new Promise((resolve) => {
        const observer = new MutationObserver(() => {
            observer.disconnect();
            resolve();
        });
        observer.observe(answer.node, { childList: true, subtree: true });
    });
    window.grow = async (text) => {
        const done = rendered();
        answer.append(text);
        await done;
    };
    window.update = async (text) => {
        await new Promise((resolve) => setTimeout(resolve, 300)); // past the page's own pause between two updates
        const start = performance.now();
        await grow(text);
        scroller.scrollTop = scroller.scrollHeight; // lays out
        return performance.now() - start;
    };
}"""


def measure(page: Page, length: int) -> list[float]:
    """Milliseconds of each update, around a length of the answer."""
    page.evaluate(PREPARE)
    text = SECTION * (length // len(SECTION) + UPDATES)
    page.evaluate("(text) => grow(text)", text[:length])
    pieces = [text[at : at + 40] for at in range(length, length + 40 * UPDATES, 40)]
    times: list[float] = page.evaluate(
        "async (pieces) => { const times = []; for (const piece of pieces) times.push(await update(piece)); return times; }",
        pieces,
    )
    return times


def main() -> int:
    with sync_playwright() as playwright, Upstream() as upstream, tempfile.TemporaryDirectory() as folder:
        browser = launch(playwright)
        with Fireside(Path(folder), NO_ENGINE, lmstudio_url=upstream.url) as fireside:
            page = Watched(browser, fireside.url, fireside.first()).open()
            page.locator(".welcome").wait_for()
            measure(page, LENGTHS[0])  # warms up
            found = {length: statistics.median(measure(page, length)) for length in LENGTHS}
        browser.close()
    first, last = found.values()
    for length, milliseconds in found.items():
        print(f"{length:>7} characters: {milliseconds:.1f} ms an update (median of {UPDATES})")
    print(f"ratio {last / first:.2f}, target below {TARGET}")
    return 0 if last / first < TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
