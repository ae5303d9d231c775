"""What axe-core finds on a screen of the page, and what is cut off at its side."""

from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Page

from ..browser import DESKTOP

# Of an open dialog, only the dialog: what lies behind it is inert, and was checked before it opened.
AXE = """async (options) => {
    const open = [...document.querySelectorAll("dialog[open]")].at(-1) ?? document;
    const { violations } = await axe.run(open, { resultTypes: ["violations"], preload: false, ...options });
    return violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html.slice(0, 120))}`);
}"""
CUT_OFF = """() => [...document.querySelectorAll("body, [role=tabpanel], [role=tabpanel] *")].filter((node) => node.clientWidth
    && node.scrollWidth > node.clientWidth + 1 && getComputedStyle(node).overflowX !== "visible").map((node) => node.outerHTML)"""


def violations(page: Page, **options: object) -> list[str]:
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE_SCRIPT)
    found: list[str] = page.evaluate(AXE, options)
    return found


class Screens(dict[str, list[str]]):
    """What is wrong with each screen of a page."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.is_wide = page.viewport_size == DESKTOP

    def check(self, screen: str) -> None:
        """Check the contrast, the slowest rule, in a wide window only: a phone has the same colours."""
        page = self.page
        found = violations(page, rules={"color-contrast": {"enabled": self.is_wide}})
        if self.is_wide:
            page.emulate_media(color_scheme="dark")
            found += violations(page, runOnly=["color-contrast"])
            page.emulate_media(color_scheme="light")
        if problems := found + page.evaluate(CUT_OFF):
            self[screen] = problems
