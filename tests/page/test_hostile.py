"""Hostile texts in every place where the page shows text."""

import contextlib
import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from fireside.web import markdown
from playwright.sync_api import Page, expect

from .. import upstream as script
from ..browser import NO_ENGINE, Fireside, Visit
from ..payloads import PAYLOADS
from ..upstream import DONE, Gate, Upstream, answer, finish, pause, reasoning, text, usage
from .steps import answered, ask, imported


def test_page_drops_tags_and_attributes_that_are_not_allowed(visit: Visit) -> None:
    tree = [
        "em",
        {"class": "x", "onclick": "alert(1)"},
        ["script", {}, "a"],
        ["constructor", {}, "b"],
        ["a", {"href": "javascript:c"}],
    ]
    html = visit.open().evaluate(
        """async (tree) => {
            const { build } = await import("/static/markdown.js");
            return build(tree).outerHTML;
        }""",
        tree,
    )
    assert html == "<em>ab<a></a></em>"


TRAP = """
    window.executed = [];
    for (const name of ["alert", "confirm", "prompt"]) window[name] = () => executed.push(name);
    document.addEventListener("securitypolicyviolation", (event) => executed.push(event.violatedDirective + event.blockedURI));
"""


# Returns what was executed, and elements, attributes and addresses that neither the page nor a rendered message may have.
FIND_FOREIGN = r"""async () => {
    const { ALLOWED } = await import("/static/tags.js");
    const rendered = new Set([...Object.keys(ALLOWED.html), ...ALLOWED.mathml]);
    const own = new Set(`html head meta title link script body noscript div nav main aside section article header footer h1 h2 h3 p
        span strong small ul ol li dl dt dd a button input textarea select option label form fieldset legend details summary
        dialog time kbd mark code img progress svg path rect line text table thead tbody tr th td`.split(/\s+/));
    const found = [...executed];
    for (const node of document.querySelectorAll("*")) {
        const inMessage = node.closest(".markdown") && !node.closest(".code-head, .part > .code, .table") || node.closest("pre, table");
        if (!own.has(node.localName) && !rendered.has(node.localName)) found.push(node.outerHTML.slice(0, 200));
        if (inMessage && node.id) found.push("id=" + node.id);
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
def watched_page(
    tmp_path: Path, visitor: Callable[..., Visit], lmstudio: Upstream
) -> Iterator[tuple[Page, httpx.Client, Path]]:
    """A page. At the end nothing may have been executed, refused by the policy or requested from another host."""
    with Fireside(tmp_path, NO_ENGINE, lmstudio_url=lmstudio.url) as fireside:
        client = fireside.first()
        visit = visitor(fireside, client)
        visit.check_requests()
        visit.context.add_init_script(TRAP)
        page = visit.open()
        expect(page.locator(".welcome")).to_be_visible()
        yield page, client, tmp_path / "fireside.db"
        assert page.evaluate(FIND_FOREIGN) == []


def test_hostile_questions_answers_errors_and_titles_are_shown_as_text(
    watched_page: tuple[Page, httpx.Client, Path],
) -> None:
    page, client, _ = watched_page
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
        expect(messages).not_to_have_count(before)
    expect(page.locator(".failed")).to_have_count(len(PAYLOADS))
    assert page.evaluate(FIND_FOREIGN) == []
    page.keyboard.press("Control+k")
    page.keyboard.press("Control+a")
    page.keyboard.type("alert")
    expect(page.locator(".results mark").first).to_be_visible()
    assert page.evaluate(FIND_FOREIGN) == []
    page.keyboard.press("Escape")
    row = page.locator(".list li").nth(5)
    row.locator("a").click()
    expect(page.locator(".top .title")).to_have_text(re.compile("alert|canary"))
    row.get_by_role("button").click()
    page.get_by_role("menuitem", name="Delete").click()
    expect(page.locator(".toast")).to_contain_text("Deleted")


def test_hostile_answers_are_text_while_they_stream(
    watched_page: tuple[Page, httpx.Client, Path], lmstudio: Upstream
) -> None:
    page, _, _ = watched_page
    whole = "\n\n".join(PAYLOADS)
    gates = [Gate() for _ in range(12)]
    size = len(whole) // len(gates) + 1
    steps: list[script.Step] = []
    for at, gate in enumerate(gates):
        pieces = re.findall(".{1,3}", whole[at * size : (at + 1) * size], re.DOTALL)
        steps += [text(*pieces), reasoning(PAYLOADS[at]), pause(gate)]
    lmstudio.enqueue(*steps, finish(), usage(9, 9), DONE)
    ask(page, "Go on")
    for gate in gates:
        gate.wait()
        assert page.evaluate(FIND_FOREIGN) == []
        gate.open()
    answered(page)
    # The nodes of every payload cut anywhere, since it is a matter of luck where the stream pauses.
    cuts = [payload[:length] for payload in PAYLOADS for length in range(1, len(payload) + 1, 5)]
    trees = [[json.loads(node) for node in [*markdown.render(cut)][1:]] for cut in cuts]
    page.evaluate(
        """async (answers) => {
            const { build } = await import("/static/markdown.js");
            document.querySelector(".markdown").append(...answers.flat().map(build));
        }""",
        trees,
    )


@pytest.mark.long
def test_hostile_names_of_models_and_users_and_errors_are_text(
    watched_page: tuple[Page, httpx.Client, Path], lmstudio: Upstream
) -> None:
    page, _, database = watched_page
    usual = lmstudio.models
    lmstudio.models = [script.LocalModel(f"{at} {payload}", payload) for at, payload in enumerate(PAYLOADS)]
    try:
        page.reload()
        page.get_by_role("button", name=re.compile("^Model:")).click()
        expect(page.locator(".model-pick")).to_have_count(len(PAYLOADS))
        assert page.evaluate(FIND_FOREIGN) == []
        page.locator(".model-pick").first.click()
        for number, at in enumerate(range(0, len(PAYLOADS), 32), 1):
            lmstudio.enqueue(text("So"), script.error(f"No. {number}: {' '.join(PAYLOADS[at : at + 4])}"))
            ask(page, "Go on")
            expect(page.locator(".last .failed")).to_contain_text(f"No. {number}")
        assert page.evaluate(FIND_FOREIGN) == []
        lmstudio.enqueue(answer("Hello", model=PAYLOADS[0]))
        ask(page, "And now")
        expect(answered(page)).to_contain_text(PAYLOADS[0])
    finally:
        lmstudio.models = usual
    # Fireside refuses such names; a database from elsewhere may have them.
    user = "INSERT INTO users (username, password_hash, role, created_at) VALUES (?, '', 'user', '2026-01-01T00:00:00.000000')"
    with contextlib.closing(sqlite3.connect(database, timeout=30)) as connection, connection:
        connection.executemany(user, [(payload,) for payload in sorted(set(PAYLOADS))])
    page.locator(".account").click()
    page.get_by_role("menuitem", name="Settings").click()
    page.get_by_role("tab", name="Users and invites").click()
    expect(page.locator(".rows").first.locator("li")).to_have_count(len(set(PAYLOADS)) + 1)
