"""Models, the settings, the household, what comes in and goes out."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect

from .. import upstream as script
from ..browser import NO_ENGINE, Fireside, Watched
from ..live import PASSWORD, good
from ..upstream import DONE, Gate, Upstream, answer, finish, pause, text, usage
from .steps import PNG, answered, ask, names, new


def test_while_no_server_is_found_the_page_says_what_to_do_and_goes_on_by_itself(
    tmp_path: Path, visitor: Callable[..., Watched]
) -> None:
    with Upstream() as reserved:
        port = reserved.port
    with Fireside(tmp_path, NO_ENGINE, lmstudio_url=f"http://127.0.0.1:{port}") as fireside:
        page = visitor(fireside, fireside.first()).open()
        expect(page.get_by_role("heading", name="No model server yet")).to_be_visible()
        expect(page.get_by_text("lms server start")).to_be_visible()
        with Upstream(port=port):
            expect(page.get_by_role("button", name="Model: Llama 3.2 3B Instruct")).to_be_visible()
            expect(page.get_by_role("heading", name="No model server yet")).to_be_hidden()


def test_a_server_that_appears_beside_another_is_noticed(
    tmp_path: Path, visitor: Callable[..., Watched], lmstudio: Upstream
) -> None:
    """The one that is there has a model, so nothing is missing."""
    with Upstream() as reserved:
        port = reserved.port
    other = f'[[providers]]\nid = "box"\nkind = "openai"\nname = "Box"\nurl = "{lmstudio.url}/v1"\n'
    with Fireside(tmp_path, NO_ENGINE + other, lmstudio_url=f"http://127.0.0.1:{port}") as fireside:
        visit = visitor(fireside, fireside.first())
        visit.context.clock.install()
        page = visit.open()
        expect(page.get_by_role("button", name="Model: llama-3.2-3b-instruct")).to_be_visible()
        with Upstream(port=port):
            page.clock.fast_forward(16_000)
            expect(page.get_by_role("button", name="Model: Llama 3.2 3B Instruct")).to_be_visible()


def test_lm_studio_on_this_computer_is_started_by_a_click(
    tmp_path: Path, visitor: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    """LM Studio's command is a stand-in here: it says no at first, then waits for the server that the test starts."""
    monkeypatch.setenv("HOME", str(tmp_path))
    command, answers = tmp_path / ".lmstudio" / "bin" / "lms", tmp_path / "answers"
    command.parent.mkdir(parents=True)
    os.mkfifo(answers)
    command.write_text(
        f'#!/bin/sh\nread -r answer < {answers}; echo "$answer: $*"; test "$answer" = Started\n', "utf-8"
    )
    command.chmod(0o700)
    with Upstream() as reserved:
        port = reserved.port
    with Fireside(tmp_path / "data", NO_ENGINE, lmstudio_url=f"http://127.0.0.1:{port}") as fireside:
        admin = fireside.first()
        page = visitor(fireside, admin).open()
        page.get_by_role("button", name="Start LM Studio's server").click()
        expect(page.get_by_role("button", name="Starting LM Studio…")).to_be_disabled()
        answers.write_text("The app is not installed\n", "utf-8")
        expect(page.locator(".toast")).to_contain_text("did not start: The app is not installed: server start")
        page.get_by_role("button", name="Start LM Studio's server").click()
        with Upstream(port=port):
            answers.write_text("Started\n", "utf-8")
            expect(page.get_by_role("button", name="Model: Llama 3.2 3B Instruct")).to_be_visible()
        another = visitor(fireside, fireside.join(admin, "guest")).open()
        expect(another.get_by_role("heading", name="No model server yet")).to_be_visible()
        expect(another.get_by_role("button", name="Start LM Studio's server")).to_have_count(0)


def test_models_are_loaded_and_chosen(
    at_studio: tuple[Watched, httpx.Client],
    studio: Fireside,
    bea: httpx.Client,
    lmstudio: Upstream,
    visitor: Callable[..., Watched],
) -> None:
    visit, _ = at_studio
    page = visit.open()
    page.get_by_role("button", name="Model: Llama 3.2 3B Instruct").click()
    expect(page.get_by_role("heading", name="Nothing")).to_contain_text("offline")
    expect(page.locator(".model-pick")).to_have_count(2)
    expect(page.locator(".load")).to_have_count(0)
    page.get_by_role("searchbox", name="Find a model").fill("qwen")
    expect(page.locator(".model-pick")).to_have_count(1)
    expect(page.locator(".model-pick")).to_contain_text("Not loaded · 131,072 context · Q4_K_M · 6.0 GB · sees images")
    page.keyboard.press("Enter")
    lmstudio.enqueue(answer("Hello", model="qwen2.5-vl-7b-instruct"))
    ask(page, "Hi")
    expect(answered(page)).to_contain_text("qwen2.5-vl-7b-instruct")
    assert lmstudio.chats[-1]["model"] == "qwen2.5-vl-7b-instruct"
    page.get_by_role("link", name="New chat").click()
    expect(page.get_by_role("button", name="Model: Qwen2.5 VL 7B Instruct")).to_be_visible()

    page = visitor(studio, studio.join(bea, next(names), "admin")).open()
    page.get_by_role("button", name="Model: Llama 3.2 3B Instruct").click()
    page.get_by_role("button", name="Load Qwen2.5 VL 7B Instruct", exact=True).click()
    expect(page.get_by_role("button", name="Unload Qwen2.5 VL 7B Instruct")).to_be_visible()
    page.get_by_role("button", name="Unload Qwen2.5 VL 7B Instruct").click()
    expect(page.get_by_role("button", name="Load Qwen2.5 VL 7B Instruct", exact=True)).to_be_visible()

    # A server that is too slow to say what it has keeps what it had, and the page says what is the matter.
    gate = Gate()
    listing = script.status(200, {"models": [model.native_v1() for model in lmstudio.models]})
    lmstudio.enqueue(pause(gate), listing, path="/api/v1/models")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Model: Llama 3.2 3B Instruct").click()
    section = page.get_by_role("region", name="LM Studio")
    expect(section).to_contain_text("LM Studio has not answered within 1.5 s.")
    expect(section.locator(".model-pick")).to_have_count(2)
    expect(section.locator(".load")).to_have_count(0)
    expect(section).not_to_contain_text("Loaded")
    expect(page.locator(".pill .dot.offline")).to_have_count(1)
    expect(page.locator(".welcome")).to_contain_text("LM Studio does not respond.")
    gate.open()
    expect(section.locator(".load")).to_have_count(2)
    expect(page.locator(".welcome")).to_contain_text("Llama 3.2 3B Instruct is ready.")


def test_a_model_that_is_loaded_for_an_answer_is_shown_as_loaded_while_it_writes(
    at_studio: tuple[Watched, httpx.Client], lmstudio: Upstream
) -> None:
    visit, _ = at_studio
    page = visit.open()
    page.get_by_role("button", name="Model: Llama 3.2 3B Instruct").click()
    page.locator(".model-pick", has_text="Qwen").click()
    expect(page.locator(".pill .dot.not-loaded")).to_have_count(1)
    asked, loaded = Gate(), Gate()
    model = next(model for model in lmstudio.models if "qwen" in model.key)
    lmstudio.enqueue(pause(asked), text("Hello", model=model.key), pause(loaded), finish(), usage(9, 1), DONE)
    ask(page, "Hi")
    expect(page.locator(".phase")).to_contain_text("Loading the model")
    model.instances[model.key] = 4096
    asked.open()
    try:
        expect(page.locator(".message.assistant .markdown")).to_contain_text("Hello")
        expect(page.locator(".pill .dot.loaded")).to_have_count(1)
        expect(page.get_by_role("button", name="Stop")).to_be_visible()
    finally:
        model.instances.clear()
        loaded.open()


def test_conversations_come_in_and_go_out_through_the_settings(
    at_studio: tuple[Watched, httpx.Client], tmp_path: Path
) -> None:
    visit, client = at_studio
    new(client, "To be exported")
    page = visit.open()
    page.locator(".account").click()
    page.get_by_role("menuitem", name="Settings").click()
    page.get_by_role("tab", name="Your data").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export everything").click()
    download.value.save_as(tmp_path / "all.zip")
    good(client.delete(f"/conversations/{good(client.get('/conversations'))[0]['id']}?purge=true"))
    files = page.get_by_label("Files to import")
    files.set_input_files(tmp_path / "all.zip")
    expect(page.get_by_text("1 conversation and 2 messages were added.")).to_be_visible()
    expect(page.locator(".list li", has_text="To be exported")).to_be_attached()

    # What brought nothing is told as a failure, under the name that the person knows.
    told = page.get_by_role("tabpanel").get_by_role("status")
    (tmp_path / "shopping.json").write_text("milk", "utf-8")
    files.set_input_files(tmp_path / "shopping.json")
    expect(told.locator(".error")).to_have_text("Nothing was imported.")
    expect(told.locator("li")).to_contain_text("shopping.json: is not valid JSON")
    (tmp_path / "empty.json").write_text("[]", "utf-8")
    files.set_input_files(tmp_path / "empty.json")
    expect(told.locator(".error")).to_contain_text("Nothing was imported")
    expect(told).not_to_contain_text("added")

    # Several come in one after the other, and what became of them is told of all.
    for name in ("one", "two"):
        text_of = {"fireside": 1, "title": name, "created_at": "2026-01-01T00:00:00.000000"}
        messages = [{"id": 1, "parent_id": None, "role": "user", "content": name, "created_at": text_of["created_at"]}]
        whole = text_of | {"updated_at": text_of["created_at"], "active_message_id": 1, "messages": messages}
        (tmp_path / f"{name}.json").write_text(json.dumps(whole), "utf-8")
    files.set_input_files([tmp_path / f"{name}" for name in ("one.json", "shopping.json", "two.json", "all.zip")])
    expect(told).to_contain_text("2 conversations and 2 messages were added; 1 already existed.")
    expect(told.locator("li")).to_contain_text("shopping.json: is not valid JSON")
    page.keyboard.press("Escape")
    for title in ("one", "two", "To be exported"):
        expect(page.locator(".list li", has_text=title)).to_be_visible()


def test_a_session_is_ended_from_another_and_the_password_changed(
    studio: Fireside, bea: httpx.Client, visitor: Callable[..., Watched], tmp_path: Path
) -> None:
    picture = tmp_path / "dot.png"
    picture.write_bytes(PNG)
    client = studio.join(bea, name := next(names))
    page = visitor(studio, client).open()
    other = visitor(studio).open("/#login=%zz")  # a link that was damaged on its way
    expect(other.get_by_role("alert")).not_to_be_empty()
    other.get_by_label("Name").fill(name)
    other.get_by_label("Password", exact=True).fill("not the password")
    other.keyboard.press("Enter")
    expect(other.get_by_role("alert")).not_to_be_empty()
    other.get_by_label("Password", exact=True).fill(PASSWORD)
    other.keyboard.press("Enter")
    expect(other.get_by_role("heading", name=name)).to_be_visible()
    other.get_by_role("button", name="Model: Llama 3.2 3B Instruct").click()
    other.locator(".model-pick", has_text="Qwen").click()
    other.get_by_label("Files to attach").set_input_files(picture)
    expect(other.locator(".chip")).to_contain_text("dot.png")

    page.locator(".account").click()
    page.get_by_role("menuitem", name="Settings").click()
    page.get_by_role("tab", name="Account").click()
    expect(page.locator(".rows li")).to_have_count(2)
    page.get_by_role("button", name="End", exact=True).click()
    expect(page.locator(".rows li")).to_have_count(1)
    other.get_by_role("textbox", name="Message").fill("Never lost")
    other.keyboard.press("Enter")
    expect(other.get_by_role("button", name="Sign in")).to_be_visible()
    good(studio.client().post("/auth/login", json={"username": name, "password": PASSWORD}))
    page.get_by_role("tab", name="General").click()
    page.get_by_role("tab", name="Account").click()
    expect(page.locator(".rows li")).to_have_count(2)
    page.get_by_label("Current password").fill(PASSWORD)
    page.get_by_label("New password, 12 characters or more").fill("123456789012")
    page.get_by_role("button", name="Change password").click()
    expect(page.get_by_text("New password is too easy to guess")).to_be_visible()
    page.get_by_label("New password, 12 characters or more").fill("another long phrase")
    page.get_by_role("button", name="Change password").click()
    expect(page.get_by_text("Changed. All other sessions have ended.")).to_be_visible()
    expect(page.locator(".rows li")).to_have_count(1)
    other.get_by_label("Name").fill(name)
    other.get_by_label("Password", exact=True).fill("another long phrase")
    other.keyboard.press("Enter")
    expect(other.get_by_role("textbox", name="Message")).to_have_value("Never lost")
    expect(other.locator(".chip")).to_contain_text("dot.png")


def test_a_link_invites_somebody_into_the_household(
    studio: Fireside, bea: httpx.Client, visitor: Callable[..., Watched]
) -> None:
    for invite in good(bea.get("/admin/invites"))["invites"]:  # other tests made them
        bea.post(f"/admin/invites/{invite['id']}/revoke")
    page = visitor(studio, bea).open()
    page.locator(".account").click()
    page.get_by_role("menuitem", name="Settings").click()
    page.get_by_role("tab", name="Household").click()
    page.get_by_role("button", name="Make an invite").click()
    command = page.locator(".command code")
    link = command.inner_text()
    expect(page.locator(".advice")).to_contain_text("For other devices, start Fireside with fireside serve --lan")
    revoke = page.get_by_role("button", name="Revoke")
    expect(revoke).to_have_count(1)
    page.get_by_role("button", name="Make an invite").click()
    expect(revoke).to_have_count(2)
    expect(command).not_to_have_text(link)
    revoke.first.click()  # the newest, whose link is shown
    expect(revoke).to_have_count(1)
    expect(revoke).to_be_focused()
    expect(command).to_have_count(0)
    guest = visitor(studio).open(link)
    expect(guest.get_by_role("heading", name="You are invited")).to_be_visible()
    name = next(names)
    guest.get_by_label("Name").fill(name)
    guest.get_by_label("Password, 12 characters or more").fill(PASSWORD)
    guest.get_by_role("button", name="Create account").click()
    expect(guest.get_by_role("heading", name=name)).to_be_visible()
    guest.locator(".account").click()
    guest.get_by_role("menuitem", name="Settings").click()
    expect(guest.get_by_role("tab", name="Household")).to_have_count(0)

    page.get_by_role("tab", name="General").click()
    page.get_by_role("tab", name="Household").click()
    page.get_by_role("button", name=f"Disable {name}").click()
    guest.keyboard.press("Escape")
    guest.get_by_role("textbox", name="Message").fill("Am I still in?")
    guest.keyboard.press("Enter")
    expect(guest.get_by_role("button", name="Sign in")).to_be_visible()


def test_a_number_out_of_range_says_so_and_is_not_saved(at_studio: tuple[Watched, httpx.Client]) -> None:
    visit, client = at_studio
    chat = new(client, title="Numbers", settings={"temperature": 0.5})
    page = visit.open(f"/#/c/{chat}")

    def settings() -> object:
        return good(client.get(f"/conversations/{chat}"))["settings"]

    page.get_by_role("button", name="Conversation settings").click()
    warm, seed = page.get_by_label("Temperature"), page.get_by_label("Seed")
    warm.press("Control+a")
    with page.expect_response(re.compile(rf"/conversations/{chat}$")):
        page.keyboard.type("15")  # the 1 on the way to it would have been fine
        expect(warm).to_have_attribute("aria-invalid", "true")
    expect(warm).to_have_accessible_description(re.compile(r"playful\. Not saved\. Enter a number from 0 to 2\.$"))
    expect(page.get_by_role("alert").filter(has_text="Not saved")).to_have_count(1)
    assert settings() == {"temperature": 0.5}
    warm.fill("1.5")
    expect(warm).to_have_attribute("aria-invalid", "false")
    expect(page.get_by_role("status").filter(has_text="Saved")).to_be_visible()
    assert settings() == {"temperature": 1.5}
    seed.fill("1.5")
    expect(seed).to_have_accessible_description(re.compile(r"Not saved\. Enter a whole number from -2,147,483,648 to"))
    warm.fill("-1")
    page.get_by_role("button", name="Close", exact=True).click()
    page.get_by_role("button", name="Conversation settings").click()
    expect(warm).to_have_value("1.5")
    expect(seed).to_have_value("")
    assert settings() == {"temperature": 1.5}


def test_the_bin_is_emptied_after_a_question(at_studio: tuple[Watched, httpx.Client]) -> None:
    visit, client = at_studio
    chats = [new(client, title=title) for title in ("First", "Second", "Third", "Fourth", "Kept")]
    for chat in chats[:2]:
        good(client.delete(f"/conversations/{chat}"))
    page = visit.open()
    offers = page.locator(".toast")
    for count, title in enumerate(("Third", "Fourth"), 1):
        page.locator(".list li", has_text=title).get_by_role("button").click()
        page.get_by_role("menuitem", name="Delete").click()
        expect(offers).to_have_count(count)
    page.locator(".account").click()
    page.get_by_role("menuitem", name="Bin").click()
    rows = page.locator(".rows li")
    expect(rows).to_have_count(4)
    page.get_by_role("button", name="Restore First").click()
    expect(rows).to_have_count(3)
    expect(page.locator(".section button:focus")).to_have_count(1)
    page.get_by_role("button", name="Delete Second for good").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(rows).to_have_count(2)
    page.get_by_role("button", name="Empty the bin").click()
    expect(page.get_by_role("dialog", name="Empty the bin?")).to_contain_text("All 2 conversations in it")
    page.get_by_role("button", name="Cancel").click()
    expect(rows).to_have_count(2)
    good(client.post(f"/conversations/{chats[3]}/restore"))  # on another device
    page.get_by_role("button", name="Empty the bin").click()
    page.get_by_role("button", name="Empty it").click()
    expect(page.get_by_text("The bin is empty.")).to_be_visible()
    assert offers.count() == 0
    assert good(client.get("/conversations?deleted=true")) == []
    assert {one["title"] for one in good(client.get("/conversations"))} == {"First", "Fourth", "Kept"}


def test_the_theme_stays_as_chosen(at_studio: tuple[Watched, httpx.Client]) -> None:
    visit, _ = at_studio
    page = visit.open()
    page.locator(".account").click()
    page.get_by_role("menuitem", name="Settings").click()
    page.get_by_label("Dark").check()
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "dark"
    page.reload()
    expect(page.locator(".welcome")).to_be_visible()
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "dark"


def test_new_chats_begin_with_what_the_settings_say(
    at_studio: tuple[Watched, httpx.Client], lmstudio: Upstream
) -> None:
    visit, client = at_studio
    page = visit.open()
    page.locator(".account").click()
    page.get_by_role("menuitem", name="Settings").click()
    page.get_by_role("tab", name="New chats").click()
    page.get_by_label("Instructions for the model").fill("Answer in rhyme.")
    page.get_by_label("Temperature").fill("0.5")
    expect(page.get_by_role("dialog").get_by_role("status")).to_have_text("Saved")
    assert good(client.get("/defaults")) == {"system_prompt": "Answer in rhyme.", "settings": {"temperature": 0.5}}
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Conversation settings").click()
    expect(page.get_by_label("Instructions for the model")).to_have_value("Answer in rhyme.")
    page.get_by_label("Longest answer").fill("50")
    lmstudio.enqueue(answer("Sublime"))
    ask(page, "Hi")
    answered(page)
    asked = lmstudio.chats[-1]
    assert asked["messages"][0] == {"role": "system", "content": "Answer in rhyme."}
    assert (asked["temperature"], asked["max_tokens"]) == (0.5, 50)
