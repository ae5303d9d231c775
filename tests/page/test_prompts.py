"""Saved prompts, presets, and what a new chat offers."""

import pytest
from playwright.sync_api import Page, Route, expect

from ..browser import Visit
from ..live import good
from ..upstream import Upstream
from .axe import violations
from .steps import answered, ask, box, new, open_settings, press


def check(page: Page) -> None:
    assert violations(page) == []


def prompts(visit: Visit) -> dict[str, str]:
    return {one["name"]: one["content"] for one in good(visit.client.get("/prompts"))["prompts"]}


@pytest.mark.long
def test_prompt_is_written_inserted_with_variables_and_saved_from_a_question(visit: Visit, lmstudio: Upstream) -> None:
    page = visit.open()
    options = page.get_by_role("option")
    box(page).type("/")
    expect(options).to_have_text(["Write a prompt"])
    page.keyboard.press("Enter")
    expect(box(page)).to_have_value("")
    page.get_by_role("textbox", name="Name", exact=True).fill("Translate")
    page.get_by_label("Text", exact=True).fill("Into {{language}}: {{text}} ({{language}})")
    check(page)
    page.keyboard.press("Escape")
    press(page.get_by_role("dialog", name="Discard what you typed?"), "Cancel")
    press(page, "Save")
    expect(page.get_by_role("dialog")).to_have_count(0)
    box(page).type("/")
    page.get_by_role("option", name="Edit prompts").click()
    expect(page.get_by_role("tab", name="Prompts")).to_have_attribute("aria-selected", "true")
    expect(box(page)).to_have_value("")
    press(page, "New prompt")
    page.get_by_role("textbox", name="Name", exact=True).fill("TRANSLATE")
    page.get_by_label("Text", exact=True).fill("Hello")
    press(page, "Save")
    expect(page.get_by_role("alert")).to_have_text("You have a prompt with this name. Choose another name.")
    page.get_by_role("textbox", name="Name", exact=True).fill("Greeting")
    press(page, "Save")
    press(page, "Delete Greeting")
    press(page, "Delete")
    expect(page.locator(".rows li")).to_have_count(1)
    page.keyboard.press("Escape")
    assert prompts(visit) == {"Translate": "Into {{language}}: {{text}} ({{language}})"}

    while page.locator(".toast").count():  # axe takes it for the background of what it covers
        page.locator(".toast button").last.click()
    box(page).type("and/or /")
    expect(options).to_have_text(
        ["TranslateInto {{language}}: {{text}} ({{language}})", "Save this text as a prompt", "Edit prompts"]
    )
    check(page)
    page.keyboard.press("Escape")
    expect(options).to_have_count(0)
    page.keyboard.type("t")  # the menu stays closed for this slash
    page.keyboard.press("Control+a")
    page.keyboard.type("Please: /nothing")
    expect(options).to_have_count(0)
    page.keyboard.press("Control+a")
    page.keyboard.type("Please: /tra")
    expect(options).to_have_count(1)
    page.keyboard.press("Enter")
    expect(page.get_by_label("language")).to_be_focused()
    page.keyboard.type("Greek")
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")  # without a value the variable stays
    expect(box(page)).to_have_value("Please: Into Greek: {{text}} (Greek)")
    expect(box(page)).to_be_focused()
    page.keyboard.press("Enter")
    answered(page)
    assert lmstudio.chats[-1]["messages"][-1]["content"] == "Please: Into Greek: {{text}} (Greek)"

    press(page, "More about this question")
    page.get_by_role("menuitem", name="Save as prompt").click()
    page.get_by_role("textbox", name="Name", exact=True).fill("Asked")
    press(page, "Save")
    expect(page.locator(".toast")).to_contain_text("“Asked” saved.")
    assert prompts(visit)["Asked"] == "Please: Into Greek: {{text}} (Greek)"
    press(page, "Saved prompts (/)")
    expect(options.first).to_contain_text("Translate")  # used last
    options.nth(1).click()
    page.get_by_label("text", exact=True).fill("γεια")
    press(page, "Insert")
    expect(box(page)).to_have_value("Please: Into Greek: γεια (Greek)")


@pytest.mark.long
def test_new_chat_begins_with_a_preset_which_later_changes_do_not_reach(visit: Visit, lmstudio: Upstream) -> None:
    new(visit.client, title="A recent chat")
    good(visit.client.post("/prompts", json={"name": "Starter", "content": "Why is the sky blue?"}))
    page = visit.open()
    chosen = page.get_by_role("group", name="Preset").locator("[aria-pressed=true]")
    expect(page.get_by_role("region", name="Recent chats").get_by_role("link")).to_have_text("A recent chat")
    press(page, "Chat settings")
    page.get_by_label("Instructions for the model").fill("Be brief.")
    page.get_by_label("Temperature").fill("0.5")
    press(page, "Save as preset")
    form = page.get_by_role("dialog", name="New preset")
    form.get_by_role("textbox", name="Name", exact=True).fill("Brief")
    form.get_by_label("Model", exact=True).select_option(label="Qwen2.5 VL 7B Instruct")
    check(page)
    press(page, "Save")
    expect(form).to_have_count(0)
    press(page, "Close")
    preset = good(visit.client.get("/presets"))["presets"][0]
    assert (preset["system_prompt"], preset["settings"]) == ("Be brief.", {"temperature": 0.5})

    page.reload()
    expect(chosen).to_have_text("No preset")
    check(page)
    press(page, "Brief")
    expect(chosen).to_have_text("Brief")
    expect(page.get_by_role("button", name="Model: Qwen2.5 VL 7B Instruct")).to_be_visible()
    page.get_by_role("button", name="Starter").click()
    expect(box(page)).to_have_value("Why is the sky blue?")
    page.keyboard.press("Enter")
    answered(page)
    request = lmstudio.chats[-1]
    assert (request["model"], request["temperature"]) == ("qwen2.5-vl-7b-instruct", 0.5)
    assert request["messages"][0]["content"] == "Be brief."

    good(visit.client.post("/presets", json={"name": "Gone", "model": "gone-model", "provider_id": "lmstudio"}))
    open_settings(page, "Presets")
    expect(page.locator(".rows li", has_text="Gone")).to_contain_text("gone-model is not available")
    press(page, "Edit Brief")
    page.get_by_role("dialog", name="Edit preset").get_by_label("Instructions for the model").fill("Rhyme.")
    press(page, "Save")
    page.get_by_label("New chats begin with").select_option(label="Gone")
    expect(page.locator(".badge")).to_have_text("new chats")
    page.keyboard.press("Escape")
    ask(page, "And at night?")
    expect(page.locator(".message.user")).to_have_count(2)
    answered(page)
    assert lmstudio.chats[-1]["messages"][0]["content"] == "Be brief."
    held: list[Route] = []
    page.route("**/presets", lambda route: held.append(route))
    page.goto("/")
    expect(page.get_by_role("region", name="Messages")).to_contain_text("is ready")
    held.pop(0).continue_()
    expect(chosen).to_have_text("Gone")
    expect(page.locator(".hint")).to_have_text(
        "gone-model is not available here. Llama 3.2 3B Instruct answers instead.", use_inner_text=True
    )
    ask(page, "Who answers?")
    answered(page)
    assert lmstudio.chats[-1]["messages"][0]["role"] == "user"


@pytest.mark.long
def test_preset_is_applied_to_a_chat_and_undone(visit: Visit, lmstudio: Upstream) -> None:
    own = {"system_prompt": "Be kind.", "settings": {"temperature": 0.2, "seed": 7}}
    chat, other = new(visit.client, "With settings", **own), new(visit.client, "Other")
    model = {"provider_id": "lmstudio", "model": "qwen2.5-vl-7b-instruct"}
    brief = {"system_prompt": "Be brief.", "settings": {"temperature": 0.9}}
    good(visit.client.post("/presets", json={"name": "Brief"} | brief | model))
    good(visit.client.post("/presets", json={"name": "Gone", "provider_id": "lmstudio", "model": "gone"} | own))

    def details() -> dict[str, object]:
        chosen = good(visit.client.get(f"/conversations/{chat}"))
        return {name: chosen[name] for name in ("system_prompt", "settings", "provider_id", "model")}

    before = details()
    page = visit.open(f"/#/c/{chat}")
    press(page, "Chat settings")
    instructions, temperature = page.get_by_label("Instructions for the model"), page.get_by_label("Temperature")
    instructions.fill("Be very kind.")
    before["system_prompt"] = "Be very kind."
    press(page, "Apply a preset")
    menu = page.get_by_role("menuitem")
    note = "Changes: instructions, model (Qwen2.5 VL 7B Instruct), temperature, seed."
    expect(menu).to_have_text([f"Brief{note}", "GoneChanges: instructions. gone is not available, so the model stays."])
    assert details() == before
    check(page)
    page.keyboard.press("Enter")
    toast = page.locator(".toast")
    toast.hover()  # it stays
    expect(toast.locator("span").first).to_have_text(f"“Brief” was applied. {note}")
    expect(instructions).to_have_value("Be brief.")
    expect(temperature).to_have_value("0.9")
    expect(page.get_by_label("Seed")).to_have_value("")
    expect(page.get_by_role("button", name="Apply a preset")).to_be_focused()
    expect(page.get_by_role("button", name="Model: Qwen2.5 VL 7B Instruct")).to_be_visible()
    assert details() == brief | model
    press(page, "Undo")
    expect(temperature).to_have_value("0.2")
    expect(instructions).to_have_value("Be very kind.")
    assert details() == before

    press(page, "Apply a preset")
    page.keyboard.press("Enter")
    toast.hover()
    page.evaluate(f"location.hash = '#/c/{other}'")
    expect(page.locator(".panel")).to_have_count(0)
    expect(page.locator(".message.user")).to_contain_text("Other")
    with page.expect_response(f"**/conversations/{chat}") as response:  # of the chat that was left
        press(page, "Undo")
    assert response.value.request.method == "PATCH" and details() == before
    page.evaluate(f"location.hash = '#/c/{chat}'")
    expect(page.locator(".message.user")).to_contain_text("With settings")
    press(page, "Chat settings")
    expect(temperature).to_have_value("0.2")

    press(page, "Apply a preset")
    page.keyboard.press("Enter")
    expect(temperature).to_have_value("0.9")
    press(page, "Apply a preset")
    expect(menu.first).to_have_text("BriefThis chat has these settings already.")
    page.keyboard.press("Escape")
    ask(page, "Who answers?")
    expect(page.locator(".message.user")).to_have_count(2)
    answered(page)
    request = lmstudio.chats[-1]
    assert (request["model"], request["temperature"], "seed" in request) == (model["model"], 0.9, False)
    assert request["messages"][0]["content"] == "Be brief."


def test_text_size_and_send_key_are_kept_and_sections_are_switched_by_keyboard(visit: Visit) -> None:
    page = visit.open()
    page.locator(".account").click()
    page.get_by_role("menuitem", name="Settings").click()
    tab = page.get_by_role("tab", selected=True)
    expect(tab).to_have_text("General")
    tab.focus()
    for key, section in (
        ("ArrowDown", "Prompts"),
        ("End", "Usage"),
        ("ArrowDown", "General"),
        ("ArrowUp", "Usage"),
        ("Home", "General"),
    ):
        page.keyboard.press(key)
        expect(tab).to_have_text(section)
        expect(tab).to_be_focused()
        expect(page.get_by_role("tabpanel", name=section)).to_be_visible()
    page.get_by_label("Largest").check()
    page.get_by_label("Ctrl Enter").check()
    page.get_by_role("tab", name="Your data").click()
    expect(page.locator(".sizes dt")).to_have_text(["Your data"])
    page.reload()
    expect(page.locator("html")).to_have_css("font-size", "20px")
    box(page).fill("one")
    page.keyboard.press("Enter")
    page.keyboard.type("two")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".message.user .text")).to_have_text("one\ntwo", use_inner_text=True)
