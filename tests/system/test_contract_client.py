"""A front end that was written against api-contract.md alone, in a real Chromium, from another port than Fireside's."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect, sync_playwright

from ..browser import NO_ENGINE, Fireside, Visit, launch
from ..live import PASSWORD, PATIENCE
from ..pages import web_server
from ..upstream import DONE, Gate, Upstream, finish, pause, text, usage

CLIENT = Path(__file__).with_name("contract_client.html")
ANSWER = "I can help you with various tasks..."


@pytest.fixture(scope="module")
def origin() -> Iterator[str]:
    with web_server(CLIENT.read_bytes()) as server:
        yield server.url


@pytest.fixture(scope="module")
def lmstudio() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def fireside(tmp_path_factory: pytest.TempPathFactory, lmstudio: Upstream, origin: str) -> Iterator[Fireside]:
    folder = tmp_path_factory.mktemp("fireside")
    with Fireside(folder, NO_ENGINE, lmstudio_url=lmstudio.url, allowed_origins=origin) as fireside:
        yield fireside


@pytest.fixture(scope="module")
def admin(fireside: Fireside) -> httpx.Client:
    return fireside.first()


@pytest.fixture(scope="module")
def page(fireside: Fireside, admin: httpx.Client, origin: str) -> Iterator[Page]:
    """The front end, before somebody logs in."""
    fireside.join(admin, "myusername")
    expect.set_options(timeout=PATIENCE * 1000)
    with sync_playwright() as playwright, launch(playwright) as browser:
        visit = Visit(browser, origin)
        yield visit.open(f"/?api={fireside.url}")
        visit.close()


def log_in(page: Page) -> None:
    page.reload()
    page.get_by_label("Username").fill("myusername")
    page.get_by_label("Password").fill(PASSWORD)
    press(page, "Log in", "0 conversations")


def press(page: Page, button: str, status: str) -> None:
    page.get_by_role("button", name=button, exact=True).click()
    expect(page.get_by_role("status")).to_have_text(status)


def test_front_end_written_against_the_contract_works_from_another_port(page: Page, lmstudio: Upstream) -> None:
    status, conversations, messages = page.get_by_role("status"), page.locator("#list li"), page.locator("#messages li")
    log_in(page)
    expect(page.locator("#user")).to_have_text("myusername (user)")

    # List, rename and search.
    press(page, "New chat", "Created New conversation")
    page.get_by_label("Title").fill("Updated Conversation Title")
    press(page, "Rename", "Conversation renamed")
    press(page, "New chat", "Created New conversation")
    expect(conversations).to_have_text(["New conversation", "Updated Conversation Title"])
    page.get_by_label("Search").fill("updated conv")
    expect(conversations).to_have_text(["Updated Conversation Title"])
    conversations.click()
    expect(status).to_have_text("Opened Updated Conversation Title")
    page.get_by_label("Search").fill("")
    expect(conversations).to_have_count(2)

    # Two streamed turns. The text appears while it is generated.
    turns: list[str] = []
    for question in ("Hello, how can you help me?", "And today?"):
        gate = Gate()
        lmstudio.enqueue(text("I can help"), pause(gate), text(ANSWER[10:]), finish(), usage(100, 50), DONE)
        page.get_by_label("Message").fill(question)
        page.get_by_role("button", name="Send").click()
        expect(messages).to_have_text([*turns, f"user: {question}", "assistant: I can help"])
        gate.open()
        expect(status).to_have_text("done ok 150")
        turns += [f"user: {question}", f"assistant: {ANSWER} (150 tokens)"]
        expect(messages).to_have_text(turns)
    sent = lmstudio.chats[-1]
    assert (sent["temperature"], sent["max_tokens"]) == (0.7, 1000)
    assert [message["content"] for message in sent["messages"]] == ["Hello, how can you help me?", ANSWER, "And today?"]

    # Cancel, then retry.
    lmstudio.enqueue(text("An answer"), pause(Gate()))
    page.get_by_label("Message").fill("Tell me more")
    page.get_by_role("button", name="Send").click()
    expect(messages.last).to_have_text("assistant: An answer")
    page.get_by_role("button", name="Cancel").click()
    expect(messages).to_have_text([*turns, "user: Tell me more", "assistant: An answer"])
    expect(page.locator("#canceled")).to_have_text("Generation canceled")
    expect(status).to_have_text("done canceled")
    lmstudio.enqueue(text("More."), finish(), usage(1, 2), DONE)
    press(page, "Retry", "Retried: done ok 3")
    expect(messages).to_have_text([*turns, "user: Tell me more", "assistant: More. (3 tokens)"])

    press(page, "Delete", "Conversation deleted")
    expect(conversations).to_have_text(["New conversation"])
    conversations.click()
    expect(status).to_have_text("Opened New conversation")
    press(page, "Delete", "Conversation deleted")
    press(page, "Log out", "Logged out successfully; GET /auth/me: 401 AUTH_REQUIRED")


READ_TO_THE_END = """async (api) => {
    const get = async (path) => (await fetch(api + path, { credentials: "include" })).json();
    const [{ id }] = await get("/conversations");
    const [, { generation_id }] = await get(`/conversations/${id}/messages`);
    const source = new EventSource(`${api}/generations/${generation_id}/stream`, { withCredentials: true });
    const seen = [];
    for (const name of ["ping", "delta", "usage", "done"]) source.addEventListener(name, () => seen.push(name));
    for (let ends = 0; ends < 2 && source.readyState !== EventSource.CLOSED; ends++) {
        await new Promise((resolve) => { source.onerror = resolve; });
    }
    source.close();
    return seen;
}"""


def test_event_source_that_has_seen_the_last_event_stops_reconnecting(
    page: Page, fireside: Fireside, lmstudio: Upstream
) -> None:
    log_in(page)
    lmstudio.enqueue(text("Hello there"), finish(), usage(1, 2), DONE)
    press(page, "New chat", "Created New conversation")
    page.get_by_label("Message").fill("Hello?")
    press(page, "Send", "done ok 3")
    statuses: list[int] = []
    page.on("response", lambda response: statuses.append(response.status) if "/generations/" in response.url else None)
    assert page.evaluate(READ_TO_THE_END, fireside.url) == ["ping", "delta", "usage", "done"]
    assert statuses == [200, 204]
