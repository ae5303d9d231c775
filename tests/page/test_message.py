"""Messages: what an answer shows while it is written and afterwards."""

import base64
import itertools
import random
import re
import struct
import zlib

from playwright.sync_api import expect

from .. import upstream as script
from ..browser import Visit
from ..live import good
from ..upstream import DONE, Gate, Upstream, answer, finish, pause, reasoning, text, usage
from .steps import PNG, QWEN, answered, ask, edit_question, imported, new, open_chat, press, recorded, stream


def test_phases_and_reasoning_are_shown_and_the_answer_is_announced_once(visit: Visit, lmstudio: Upstream) -> None:
    first, second = Gate(), Gate()
    thoughts = reasoning("I should ", "greet.")
    lmstudio.enqueue(pause(first), thoughts, pause(second), text("Hello **you**"), finish(), usage(10, 5), DONE)
    page = visit.open()
    page.evaluate(
        """() => {
            window.said = [];
            new MutationObserver(() => said.push(document.getElementById("announcer").textContent))
                .observe(document.getElementById("announcer"), { childList: true });
        }"""
    )
    ask(page, "Hi")
    phase, details = page.locator(".phase"), page.locator("details.reasoning")
    expect(phase).to_contain_text(re.compile("Reading the chat|Waiting for the model"))
    expect(page.get_by_role("progressbar", name="Progress")).to_be_visible()
    first.open()
    expect(details.locator("summary")).to_have_text("Thinking")
    expect(phase).to_be_hidden()
    expect(details.locator(".thoughts")).to_be_hidden()
    details.locator("summary").click()
    expect(details.locator(".thoughts")).to_have_text("I should greet.")
    second.open()
    expect(answered(page).locator("strong")).to_have_text("you")
    expect(details.locator("summary")).to_contain_text(re.compile(r"Thought for (a moment|.* s)"))
    page.wait_for_function("() => said.length")
    assert page.evaluate("said") == ["Answer finished. Hello you"]


def test_request_of_an_answer_is_shown_and_copied(visit: Visit, lmstudio: Upstream) -> None:
    page = visit.open()
    page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    menus = page.get_by_role("button", name="More about this answer")
    for number, (question, reply) in enumerate((("What is tea?", "A drink."), ("And coffee?", "Another.")), 1):
        lmstudio.enqueue(answer(reply))
        ask(page, question)
        expect(menus).to_have_count(number)
        expect(answered(page)).to_contain_text(reply)
    menus.last.click()
    page.get_by_role("menuitem", name="What was sent").click()
    dialog = page.get_by_role("dialog", name="What was sent")
    expect(dialog).to_contain_text("3 messages for")
    dialog.get_by_text("Changes since the answer before").click()
    expect(dialog.get_by_role("listitem")).to_have_text("Messages: the first 1 as before, then 2 new; 0 no longer sent")
    dialog.get_by_role("button", name="Copy JSON").click()
    page.wait_for_function("window.copied")
    sent = [one.body.decode() for one in lmstudio.requests if one.path.endswith("/chat/completions")][-1]
    assert page.evaluate("copied") == sent
    dialog.get_by_role("button", name="Copy as curl").click()
    page.wait_for_function("copied.startsWith('curl')")
    assert f"'END'\n{sent}\nEND\n" in page.evaluate("copied")


def test_failure_is_explained_and_can_be_retried_once(visit: Visit, lmstudio: Upstream) -> None:
    lmstudio.enqueue(script.status(500, {"error": {"message": "The tensor is upside down."}}))
    page = visit.open()
    ask(page, "Hi")
    expect(page.locator(".failed")).to_contain_text("tensor is upside down")
    expect(page.get_by_role("button", name="Copy answer")).to_have_count(0)
    expect(page.get_by_role("button", name="Another answer")).to_have_count(0)
    lmstudio.enqueue(answer("Better now"))
    page.get_by_role("button", name="Try again").evaluate("(button) => { button.click(); button.click(); }")
    expect(answered(page)).to_contain_text("Better now")
    expect(page.locator(".switch")).to_have_text("2/2")
    expect(page.locator(".toast")).to_have_count(0)


def test_divider_stands_below_the_messages_that_were_not_sent(visit: Visit) -> None:
    """Older answers have no `sent_messages`: the divider is shown when all messages are loaded."""
    for title, omitted, sent in ("Few", 2, 3), ("Many", 70, 29), ("Old", 70, None):
        stats = {"omitted_messages": omitted} | ({"sent_messages": sent} if sent else {})
        texts = [f"Text {number}" for number in range(omitted + (sent or 29) + 1)]
        imported(visit.client, [(title, texts)], itertools.repeat({"stats": stats}))
    page = visit.open()
    divider, below = page.locator(".divider"), page.locator(".divider + .message .text")
    with recorded(page, r"/messages\?") as reads:
        open_chat(page, "Few")
        expect(below).to_have_text("Text 2")
        open_chat(page, "Many")
        expect(below).to_have_text("Text 70")
        expect(divider).to_contain_text("Messages above were not sent")
        open_chat(page, "Old")
        expect(page.locator(".message")).to_have_count(60)
        expect(divider).to_have_count(0)
        page.locator(".scroller").evaluate("(node) => { node.scrollTop = 0; }")
        expect(page.locator(".message")).to_have_count(100)
        expect(below).to_have_text("Text 70")
    assert all("limit=" in url for url in reads)


def test_imported_answer_shows_its_images_and_figures(visit: Visit) -> None:
    image = {"media_type": "image/png", "data": base64.b64encode(PNG).decode()}
    stats = {"reasoning_ms": 40, "ttft_ms": 2.6, "total_ms": 119_700, "omitted_images": 12}
    imported(visit.client, [("Boats", ["A boat", "Here"])], [{"images": [image], "reasoning": "Hm.", "stats": stats}])
    page = visit.open()
    open_chat(page, "Boats")
    shown = page.locator(".message.assistant")
    expect(shown.get_by_role("img", name="Attached image")).to_have_js_property("naturalWidth", 1)
    expect(shown.locator(".pictures + .markdown")).to_have_text("Here")
    expect(shown.locator("summary")).to_have_text("Thought for a moment")
    press(page, "Figures")
    figures = shown.locator(".figures")
    expect(figures.locator("li").last).to_contain_text("3 ms to first token")
    expect(figures.get_by_text("2 min 0 s in all")).to_be_visible()


def test_image_is_fetched_once_while_an_answer_streams_and_kept_unchanged_by_an_edit(
    visit: Visit, lmstudio: Upstream
) -> None:
    """The browser may not store it, and it is larger than what the page would send of a file."""
    chat = new(visit.client, **QWEN)
    data = base64.b64encode(noise(500)).decode()
    question = {"content": "What is this?", "images": [{"media_type": "image/png", "data": data}]}
    good(visit.client.post(f"/conversations/{chat}/messages", json=question))
    page = visit.open()
    with recorded(page, "/images/") as fetched:
        page.goto(f"/#/c/{chat}")
        expect(page.get_by_role("img", name="Attached image")).to_have_js_property("naturalWidth", 500)
        gates = stream(lmstudio, *["A dot. "] * 3)
        press(page, "Answer")
        for number, gate in enumerate(gates, 1):
            expect(page.locator(".message.assistant .markdown")).to_have_text(" ".join(["A dot."] * number))
            gate.open()
        answered(page)
    assert len(fetched) == 1
    edit_question(page, "And what is this?")
    expect(page.locator(".message.user")).to_contain_text("2/2")
    answered(page)
    sent = [part for part in lmstudio.chats[-1]["messages"][-1]["content"] if part["type"] == "image_url"]
    assert [part["image_url"]["url"] for part in sent] == [f"data:image/png;base64,{data}"]


def noise(size: int) -> bytes:
    """A PNG that compresses badly."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + random.Random(row).randbytes(3 * size) for row in range(size))
    head = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows, 0)) + chunk(b"IEND", b"")


def test_link_of_an_answer_has_an_address_only_when_it_is_pressed(visit: Visit, lmstudio: Upstream) -> None:
    visit.context.route("http://notes.example/*", lambda route: route.fulfill(body="Notes"))
    lmstudio.enqueue(answer("[One](http://notes.example/1) and [two](http://notes.example/2)"))
    page = visit.open()
    ask(page, "Where are my notes?")
    answered(page)
    one, two = (page.get_by_role("link", name=name, exact=True) for name in ("One", "two"))
    one.hover()
    two.focus()
    expect(page.locator(".markdown a[href]")).to_have_count(0)
    expect(one).to_have_attribute("title", "http://notes.example/1")
    with visit.context.expect_page() as opened:
        page.keyboard.press("Enter")
    expect(opened.value).to_have_url("http://notes.example/2")
    with visit.context.expect_page() as opened:
        one.click()
    expect(opened.value).to_have_url("http://notes.example/1")


def test_question_shows_its_code_as_blocks_and_the_rest_as_it_was_typed(visit: Visit) -> None:
    typed = "Why <b>does</b> *this* fail?\n```python\nprint('a' + 1)\n```\nAnd ~~~ this?\n```\nnot closed"
    long = "\n".join(f"Line {number}" for number in range(60))
    imported(visit.client, [("Code", [typed, "Because.", long, "Yes."])])
    page = visit.open()
    open_chat(page, "Code")
    question, folded = page.locator(".message.user .text").first, page.locator(".message.user .text").last
    expect(question.locator("pre")).to_have_text("print('a' + 1)\n")
    expect(question.locator(".code-head")).to_have_text("python")
    expect(question).to_contain_text("Why <b>does</b> *this* fail?")
    expect(question).to_contain_text("And ~~~ this?\n```\nnot closed", use_inner_text=True)
    height = "(node) => node.offsetHeight"
    before = folded.evaluate(height)
    press(page, "Show all")
    assert folded.evaluate(height) > 3 * before


def test_another_model_answers_from_the_menu_of_the_answer(visit: Visit, lmstudio: Upstream) -> None:
    chat = new(visit.client, "Hello")
    page = visit.open(f"/#/c/{chat}")
    shown = answered(page).locator(".model")
    expect(shown).to_have_text(script.MODEL)
    lmstudio.enqueue(answer("From Qwen", model=QWEN["model"]))
    press(page, "More about this answer")
    page.get_by_role("menuitem", name="Retry with another model…").click()
    page.locator(".model-pick", has_text="Qwen2.5 VL").click()
    expect(answered(page)).to_contain_text("From Qwen")
    expect(shown).to_have_text(QWEN["model"])
    press(page, "Previous version")
    expect(shown).to_have_text(script.MODEL)
    assert lmstudio.chats[-1]["model"] == QWEN["model"]


def test_elapsed_time_and_speed_are_shown_while_an_answer_is_written(visit: Visit, lmstudio: Upstream) -> None:
    gate = Gate()
    lmstudio.enqueue(text(*["word "] * 200), pause(gate), finish(), DONE)
    page = visit.open()
    ask(page, "Count")
    expect(page.locator(".speed")).to_have_text(re.compile(r"^[\d.]+ s · about \d+ tok/s$"))
    gate.open()
    answered(page)
    expect(page.locator(".speed")).to_be_hidden()


def test_references_find_their_definitions_and_folds_stay_open_while_an_answer_streams(
    visit: Visit, lmstudio: Upstream
) -> None:
    visit.context.route("http://notes.example/*", lambda route: route.fulfill(body="Notes"))
    first, second, third = Gate(), Gate(), Gate()
    steps = (
        "<details>\n<summary>More</summary>\n\nInside H<sub>2</sub>O\n",
        "\nand on\n\n</details>\n\n[^1]: The *note*.\n",
    )
    beginning = text("See [the notes][n] and this[^1], not that[^2].\n\n```mermaid\ngraph TD\n```\n\n", steps[0])
    end = text("\n[n]: http://notes.example/1\n\n> [!NOTE]\n> Press <kbd>x</kbd><br>twice\n")
    lmstudio.enqueue(
        beginning, pause(first), text(steps[1]), pause(second), end, pause(third), finish(), usage(9, 9), DONE
    )
    page = visit.open()
    ask(page, "Explain")
    markdown = page.locator(".assistant .markdown")
    expect(markdown.locator("p").first).to_have_text(
        "See [the notes][n] and this[^1], not that[^2].", use_inner_text=True
    )
    expect(markdown.locator(".code-head")).to_have_text("Mermaid diagram, as text")
    fold = markdown.locator("details")
    fold.locator("summary").click()
    first.open()
    expect(fold).to_contain_text("and on")
    assert fold.evaluate("(node) => node.open && node.firstChild === document.activeElement")
    expect(markdown.locator("p").first).to_have_text("See [the notes][n] and this1, not that[^2].", use_inner_text=True)
    second.open()
    expect(markdown.locator("p").first).to_have_text("See the notes and this1, not that[^2].", use_inner_text=True)
    expect(markdown.locator(".alert.note br")).to_have_count(1)
    third.open()
    answered(page)
    page.get_by_role("link", name="Note 1", exact=True).click()
    expect(page.get_by_role("link", name="Back to the reference of note 1")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("link", name="Note 1", exact=True)).to_be_focused()
    with visit.context.expect_page() as opened:
        page.get_by_role("link", name="the notes").click()
    expect(opened.value).to_have_url("http://notes.example/1")
