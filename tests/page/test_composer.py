"""The composer: drafts and attached files."""

import base64
import re
import time
from collections.abc import Callable

from playwright.sync_api import FilePayload, Route, expect

from ..browser import Visit
from ..upstream import DONE, Upstream, answer, finish, status, usage
from ..upstream import text as says
from ..witness import MODEL as WITNESS
from .steps import (
    DOT,
    PNG,
    QWEN,
    Held,
    answered,
    ask,
    attach,
    box,
    choose_model,
    edit_question,
    expect_toast,
    messages,
    new,
    press,
    refocus,
)

CLEAR_GIF = "R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"


def test_drafts_survive_a_reload_and_another_conversation_until_sign_out(visit: Visit) -> None:
    page = visit.open(f"/#/c/{new(visit.client, 'Hello')}")
    chip, new_chat = page.locator(".chip"), page.get_by_role("link", name="New chat")
    box(page).fill("half a thou")
    attach(page, ("a.txt", b"A"))
    expect(chip).to_contain_text("a.txt")
    new_chat.click()
    expect(box(page)).to_have_value("")
    expect(chip).to_have_count(0)
    page.go_back()
    expect(box(page)).to_have_value("half a thou")
    expect(chip).to_contain_text("a.txt")
    new_chat.click()
    expect(box(page)).to_have_value("")
    box(page).fill("something new")
    page.reload()
    expect(box(page)).to_have_value("something new")
    page.go_back()
    expect(box(page)).to_have_value("half a thou")
    page.evaluate("() => localStorage.setItem('fireside.draft.99999.new', 'of another user')")
    page.locator(".account").click()
    held = Held(page, r"/auth/logout$", response=True)
    page.get_by_role("menuitem", name="Sign out").click()
    held.wait()
    refocus(page)  # other requests find first that the session has ended
    expect(page.get_by_role("button", name="Sign in")).to_be_visible()
    held.routes[0].fulfill(response=held.responses[held.routes[0]])
    page.wait_for_function(
        "() => Object.keys(localStorage).filter((key) => key.includes('draft')).join() === 'fireside.draft.99999.new'"
    )


def test_image_is_not_sent_to_a_model_that_cannot_see_and_sent_to_one_that_may(
    visit: Visit, lmstudio: Upstream
) -> None:
    """An OpenAI-compatible server does not say whether a model sees images."""

    def without_vision(route: Route) -> None:
        providers = route.fetch().json()
        for model in (model for provider in providers for model in provider["models"] if model["vision"]):
            model["vision"] = None
        route.fulfill(json=providers)

    visit.context.route("**/providers", without_vision)
    page = visit.open()
    advice = page.locator(".advice-box")
    choose_model(page, "Llama")
    attach(page, DOT)
    expect(advice).to_contain_text("Llama 3.2 3B Instruct cannot see images. No other model here can.")
    press(page, "Send")
    expect_toast(page, "Llama 3.2 3B Instruct cannot see images. Choose another model, or remove them.")
    press(page, "Model: Llama 3.2 3B Instruct")
    expect(page.locator(".model-pick", has_text="Qwen")).not_to_contain_text("sees images")
    page.locator(".model-pick", has_text="Qwen").click()
    expect(advice).to_have_count(0)
    attach(page, DOT)
    expect_toast(page, "dot.png is already attached.")
    attach(page, *[DOT] * 20)
    expect_toast(page, "A message can have at most 20 files.")
    expect(page.get_by_role("img", name="dot.png")).to_have_count(1)
    ask(page, "What is this?")
    answered(page)
    image = page.get_by_role("img", name="Attached image")
    expect(image).to_have_js_property("naturalWidth", 1)
    edit_question(page, "And what is this?")
    expect(page.locator(".message.user")).to_contain_text("2/2")
    answered(page)
    expect(image).to_have_js_property("naturalWidth", 1)
    assert sorted(part["type"] for part in lmstudio.chats[-1]["messages"][-1]["content"]) == ["image_url", "text"]
    visit.context.unroute_all(behavior="wait")  # after an answer the page reads the models once more


def test_images_are_attached_before_a_model_is_known_and_others_than_png_become_jpeg_on_white(visit: Visit) -> None:
    visit.context.route("**/providers", lambda route: route.fulfill(json=[]))
    page = visit.open()
    attach(page, DOT, ("clear.gif", base64.b64decode(CLEAR_GIF)))
    for name in ("dot.png", "clear.gif"):
        expect(page.get_by_role("img", name=name)).to_have_js_property("naturalWidth", 1)
    pixel = page.get_by_role("img", name="clear.gif").evaluate(
        """async (image) => {
            const context = new OffscreenCanvas(1, 1).getContext("2d");
            context.drawImage(image, 0, 0);
            const { headers } = await fetch(image.src);
            return [headers.get("Content-Type"), ...context.getImageData(0, 0, 1, 1).data];
        }"""
    )
    assert pixel == ["image/jpeg", 255, 255, 255, 255]
    picture = page.get_by_role("link", name="dot.png")
    picture.click()
    expect(page.locator(".viewer img")).to_be_visible()
    attach(page, ("note.txt", b"milk"))  # the files are drawn again, and the focus still returns
    expect(page.locator(".chip", has_text="note.txt")).to_contain_text("4 characters")
    page.keyboard.press("Escape")
    expect(picture).to_be_focused()


def test_image_alone_waits_until_it_is_uploaded_and_makes_a_repeated_text_another_message(
    visit: Visit, lmstudio: Upstream
) -> None:
    chat = new(visit.client, **QWEN)
    page = visit.open()
    expect(page.locator(".pill")).to_contain_text("Llama")  # which cannot see images
    upload = Held(page, r"/attachments\?name=dot.png$")
    held = Held(page, rf"/conversations/{chat}/messages\?")
    page.goto(f"/#/c/{chat}")
    held.wait()
    expect(page.get_by_role("button", name="Send")).to_be_disabled()
    attach(page, DOT)
    upload.wait()
    box(page).press("Enter")
    expect(page.locator(".waiting")).to_contain_text("Sent as soon as dot.png is read.")
    expect(box(page)).to_have_js_property("readOnly", True)
    upload.release()
    held.release()
    answered(page)
    expect(page.locator(".message.user img")).to_be_visible()
    assert [part["type"] for part in lmstudio.chats[-1]["messages"][-1]["content"]] == ["image_url"]

    lost = Held(page, r"/messages$", response=True)
    ask(page, "What is this?")
    lost.wait()
    lost.routes[0].abort()
    expect_toast(page, "Not sent")
    attach(page, DOT)
    expect(page.locator(".composer").get_by_role("img", name="dot.png")).to_be_visible()
    lmstudio.enqueue(answer("A dot"))
    box(page).press("Enter")
    expect(answered(page)).to_contain_text("A dot")
    assert messages(visit.client, chat)[-2]["images"]


def test_texts_in_older_questions_are_cards_that_an_edit_keeps_or_removes(visit: Visit, lmstudio: Upstream) -> None:
    """Text files were parts of a message before they became documents."""
    note = "notes.md:\n````md\n# Été\n```\ncode\n```\n````"
    blocks = f"{note}\n\npeople.CSV:\n```csv\nnaïve;1\n```"
    content = f"What is this?\n\n{blocks}"
    page = visit.open(f"/#/c/{new(visit.client, content)}")
    question = page.locator(".message.user")
    expect(question.locator(".text")).to_have_text("What is this?")
    expect(question.locator("summary")).to_contain_text(["notes.md4 lines, 18 characters", "people.CSV1 line"])
    expect(question.locator("pre").first).to_be_hidden()
    question.locator("summary").first.click()
    expect(question.locator("pre").first).to_have_text("# Été\n```\ncode\n```", use_inner_text=True)

    press(page, "Edit question")
    editor, edited = page.get_by_role("textbox", name="Edited question"), page.locator(".editor .chip")
    expect(editor).to_have_value("What is this?")
    expect(edited.locator("summary")).to_contain_text(["notes.md4 lines", "people.CSV1 line"])
    press(page, "Remove people.CSV")
    editor.fill("And this?")
    editor.press("Control+Enter")
    expect(question.locator(".text")).to_have_text("And this?")
    expect(question.locator("summary")).to_contain_text(["notes.md4 lines"])
    answered(page)
    assert lmstudio.chats[-1]["messages"][-1]["content"] == f"And this?\n\n{note}"

    typed = f"{blocks}\n\nfoo:\n```\nbar\n```"  # ends with a code block that a person typed, which is no file
    press(page, "Edit question")
    press(page, "Remove notes.md")
    editor.fill(typed)
    editor.press("Control+Enter")
    expect(question.locator(".text pre")).to_have_text(["# Été\n```\ncode\n```\n", "naïve;1\n", "bar\n"])
    expect(question.locator("summary")).to_have_count(0)
    answered(page)
    ask(page, "x" * 200_001)
    expect_toast(page, "The message has 200,001 characters. At most 200,000 can be sent.")


def test_files_are_dropped_and_pasted_and_a_long_text_is_deleted_at_once(visit: Visit) -> None:
    """With dir="auto" on the box, Chromium needs a minute to delete it."""
    page = visit.open(f"/#/c/{new(visit.client, **QWEN)}")
    chips, scroller = page.locator(".chip"), page.locator(".scroller")
    expect(page.get_by_role("button", name="Model: Qwen2.5 VL 7B Instruct")).to_be_visible()
    transfer = """([png, isOfficeText]) => {
        const transfer = new DataTransfer();
        const bytes = Uint8Array.from(atob(png), (letter) => letter.charCodeAt(0));
        transfer.items.add(new File([bytes], "dot.png", { type: "image/png" }));
        if (isOfficeText) for (const type of ["text/plain", "text/html"]) transfer.setData(type, "a table");
        else transfer.items.add(new File(["1,2"], "table.csv", { type: "text/csv" }));
        return transfer;
    }"""
    png = base64.b64encode(PNG).decode()
    files, office_text = (page.evaluate_handle(transfer, [png, is_office]) for is_office in (False, True))
    event = "{ bubbles: true, cancelable: true, dataTransfer: given, clipboardData: given }"
    drag = f"(node, given) => [node.dispatchEvent(new DragEvent('dragover', {event})), document.querySelectorAll('.dropping').length]"
    assert scroller.evaluate(drag, files) == [False, 1]
    assert scroller.evaluate(f"(node, given) => node.dispatchEvent(new DragEvent('drop', {event}))", files) is False
    expect(chips).to_contain_text(["", "table.csv"])
    expect(page.locator(".composer.dropping")).to_have_count(0)
    paste = f"(node, given) => node.dispatchEvent(new ClipboardEvent('paste', {event}))"
    assert box(page).evaluate(paste, office_text) is True
    assert box(page).evaluate(paste, files) is False
    expect(chips).to_have_count(2)  # the same files again

    page.evaluate(
        """(text) => {
            const area = document.body.appendChild(document.createElement("textarea"));
            area.value = text;
            area.select();
            document.execCommand("copy");
            area.remove();
        }""",
        "A line\n" * 20_000,
    )
    box(page).focus()
    page.keyboard.press("Control+v")
    page.keyboard.press("Control+a")
    began = time.monotonic()
    page.keyboard.press("Delete")
    expect(box(page)).to_have_value("")
    assert time.monotonic() - began < 5


def test_images_are_a_grid_that_opens_large(visit: Visit, lmstudio: Upstream) -> None:
    page = visit.open()
    choose_model(page, "Llama")
    attach(page, *[(f"{name}.png", PNG + name.encode()) for name in ("one", "two", "three")])
    expect(page.get_by_role("img", name="two.png")).to_be_visible()
    expect(page.locator(".advice-box")).to_contain_text("Qwen2.5 VL 7B Instruct can.")
    press(page, "Use Qwen2.5 VL 7B Instruct")
    expect(page.locator(".advice-box")).to_have_count(0)
    expect(box(page)).to_be_focused()
    ask(page, "Which is the largest?")
    answered(page)
    assert [part["type"] for part in lmstudio.chats[-1]["messages"][-1]["content"]] == ["text", *["image_url"] * 3]

    grid, viewer = page.locator(".message.user .pictures.grid .picture"), page.get_by_role("dialog")
    expect(grid).to_have_count(3)
    grid.nth(1).focus()
    page.keyboard.press("Enter")
    expect(viewer).to_have_accessible_name("Image 2 of 3")
    shown = viewer.get_by_role("img")
    expect(shown).to_have_js_property("naturalWidth", 1)
    page.keyboard.press("ArrowRight")
    expect(viewer).to_have_accessible_name("Image 3 of 3")
    expect(viewer.get_by_role("button", name="Next image")).to_be_disabled()
    page.keyboard.press("ArrowRight")
    expect(viewer).to_have_accessible_name("Image 3 of 3")
    viewer.get_by_role("button", name="Previous image").click()
    expect(viewer).to_have_accessible_name("Image 2 of 3")
    page.keyboard.press("Home")
    expect(viewer.get_by_role("link", name="Open in a tab")).to_have_attribute("href", re.compile(r"^/images/\d+$"))
    page.keyboard.press("Escape")
    expect(viewer).to_have_count(0)
    expect(grid.nth(0)).to_be_focused()

    press(page, "Edit question")
    page.locator(".editor").get_by_role("button", name="Remove image").nth(1).click()
    page.get_by_label("Files for the question").set_input_files(
        FilePayload(name="four.png", mimeType="image/png", buffer=PNG + b"four")
    )
    expect(page.get_by_role("img", name="four.png")).to_be_visible()
    page.get_by_role("textbox", name="Edited question").press("Control+Enter")
    expect(page.locator(".message.user")).to_contain_text("2/2")
    answered(page)
    assert len(lmstudio.chats[-1]["messages"][-1]["content"]) == 4


def test_overflow_is_said_before_sending_with_what_can_be_done(
    new_visit: Callable[..., Visit], lmstudio: Upstream
) -> None:
    [llama, *_] = lmstudio.models
    before = dict(llama.instances)
    visit = new_visit("admin")
    chat = new(visit.client, settings={}, **WITNESS)
    page = visit.open(f"/#/c/{chat}")
    advice, meter = page.locator(".advice-box"), page.get_by_role("meter")
    lmstudio.enqueue(says("Hello."), finish(), usage(2000, 10), DONE)
    ask(page, "word " * 1000)
    answered(page)
    expect(meter).to_have_count(0)
    box(page).fill("word " * 10_000)
    expect(advice).to_contain_text(
        "This message is too long for the context: about 20,000 tokens. The context of Llama 3.2 3B Instruct holds 4,096"
    )
    expect(meter).to_have_attribute("aria-valuenow", "4096")
    box(page).fill("word " * 1000)
    expect(advice).to_contain_text(
        "The chat no longer fits the context of 4,096 tokens: the 2 oldest messages would be left out."
    )
    meter.focus()
    expect(page.locator(".tip")).to_contain_text("of 4,096 tokens")
    expect(page.locator(".tip")).to_contain_text("2,010 of the chat")
    lmstudio.enqueue(says("Hello again."), finish(), usage(1440, 10), DONE)
    press(page, "Send without them")
    expect(page.locator(".message.assistant.last")).to_contain_text("Hello again.")
    answered(page)
    assert len(lmstudio.chats[-1]["messages"]) == 1
    expect(page.locator(".divider")).to_contain_text("Messages above were not sent")
    expect(advice).to_have_count(0)

    box(page).fill("word " * 10_000)
    press(page, "Load with a larger context…")
    length = page.get_by_label("Context length, in tokens")
    expect(length).to_have_value("32768")
    page.get_by_role("dialog").get_by_role("button", name="Load", exact=True).click()
    expect(advice).to_have_count(0)
    assert list(llama.instances.values()) == [32_768]
    refusal = {"error": {"message": "The number of tokens to keep is greater than the context length (n_ctx: 4096)."}}
    lmstudio.enqueue(status(400, refusal))
    lmstudio.enqueue(status(400, refusal))
    lmstudio.enqueue(status(400, refusal))
    press(page, "Send")
    failed = page.locator(".failed")
    expect(failed.get_by_role("button", name="Load with a larger context…")).to_be_visible()
    assert failed.inner_text().count("larger context") == 2  # the sentence and the button
    llama.instances = before
