"""The settings dialog, the side panel, sign-in and invites."""

import datetime
import json
import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect

from ..browser import Fireside, Visit
from ..live import PASSWORD, good
from ..upstream import Upstream, answer
from .steps import DOT, answered, ask, attach, box, new, open_row_menu, open_settings, press


def show_section(page: Page, section: str) -> None:
    page.get_by_role("tab", name=section).click()


@pytest.mark.long
def test_conversations_are_exported_and_imported(visit: Visit, tmp_path: Path) -> None:
    chat = new(visit.client, "To be exported")
    prompt = good(visit.client.post("/prompts", json={"name": "Greeting", "content": "Hello {{name}}"}))["id"]
    page = visit.open()
    open_settings(page, "Your data")
    with page.expect_download() as download:
        press(page, "Export everything")
    download.value.save_as(tmp_path / "all.zip")
    good(visit.client.delete(f"/conversations/{chat}?purge=true"))
    good(visit.client.delete(f"/prompts/{prompt}"))
    page.reload()
    open_settings(page, "Your data")
    files, result = page.get_by_label("Files to import"), page.get_by_role("tabpanel").get_by_role("status")
    with page.expect_file_chooser() as chooser:
        press(page, "Preview an import")
    chooser.value.set_files(tmp_path / "all.zip")
    expect(result).to_contain_text("1 chat, 2 messages, and 1 prompt would be added.")
    expect(page.locator(".list li", has_text="To be exported")).not_to_be_attached()
    press(page, "Import these files")
    expect(result).to_have_text("1 chat, 2 messages, and 1 prompt were added.")
    assert [one["name"] for one in good(visit.client.get("/prompts"))["prompts"]] == ["Greeting"]
    expect(page.locator(".list li", has_text="To be exported")).to_be_attached()

    (tmp_path / "shopping.json").write_text("milk", "utf-8")
    files.set_input_files(tmp_path / "shopping.json")
    expect(result.locator(".error")).to_have_text("Nothing was imported.")
    expect(result.locator("li")).to_contain_text("shopping.json: is not valid JSON")
    (tmp_path / "empty.json").write_text("[]", "utf-8")
    files.set_input_files(tmp_path / "empty.json")
    expect(result.locator(".error")).to_have_text("Nothing was imported: there are no chats in it.")

    time = "2026-01-01T00:00:00.000000"
    for name in ("one", "two"):
        messages = [{"id": 1, "parent_id": None, "role": "user", "content": name, "created_at": time}]
        exported = {"fireside": 1, "title": name, "created_at": time, "updated_at": time, "active_message_id": 1}
        (tmp_path / f"{name}.json").write_text(json.dumps(exported | {"messages": messages}), "utf-8")
    files.set_input_files([tmp_path / name for name in ("one.json", "shopping.json", "two.json", "all.zip")])
    expect(result).to_contain_text("2 chats and 2 messages were added; 2 already existed.")
    expect(result.locator("li")).to_contain_text("shopping.json: is not valid JSON")
    tools = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look", "arguments": "{}"}}]}
    for name in ("lossy", "lossier"):
        (tmp_path / f"{name}.json").write_text(json.dumps([{"role": "user", "content": name}, tools]), "utf-8")
    files.set_input_files([tmp_path / "lossy.json", tmp_path / "lossier.json"])
    expect(result).to_contain_text("Not kept as it was:")
    result.get_by_text("Tool calls, kept as text: 2").click()
    expect(result.locator("li")).to_have_text(["lossy: 1", "lossier: 1"])
    page.keyboard.press("Escape")
    for title in ("one", "two", "To be exported"):
        expect(page.locator(".list li", has_text=title)).to_be_visible()


@pytest.mark.long
def test_session_is_ended_from_another_and_the_password_changed(
    studio: Fireside, visitor: Callable[..., Visit], new_visit: Callable[..., Visit]
) -> None:
    """What the other session has not sent stays in its box."""
    name = "changer"
    page = new_visit(name=name).open()
    other = visitor(studio).open("/#login=%zz")  # a damaged link
    problem = other.get_by_role("alert")

    def sign_in(password: str) -> None:
        other.get_by_label("Name").fill(name)
        other.get_by_label("Password", exact=True).fill(password)
        other.keyboard.press("Enter")

    expect(problem).not_to_be_empty()
    sign_in("not the password")
    expect(problem).not_to_be_empty()
    sign_in(PASSWORD)
    expect(other.get_by_role("heading", name=name)).to_be_visible()
    press(other, "Model: Llama 3.2 3B Instruct")
    other.locator(".model-pick", has_text="Qwen").click()
    attach(other, DOT)
    expect(other.get_by_role("img", name="dot.png")).to_be_visible()

    open_settings(page, "Account")
    rows = page.locator(".rows").last.locator("li")
    expect(rows).to_have_count(2)
    press(page, "End")
    expect(rows).to_have_count(1)
    ask(other, "Never lost")
    expect(other.get_by_role("button", name="Sign in")).to_be_visible()
    good(studio.client().post("/auth/login", json={"username": name, "password": PASSWORD}))
    show_section(page, "General")
    show_section(page, "Account")
    expect(rows).to_have_count(2)
    press(page, "Change password")
    dialog = page.get_by_role("dialog", name="Change password")
    current, chosen = page.get_by_label("Current password"), page.get_by_label("New password, 12 characters or more")
    current.fill(PASSWORD)
    chosen.fill("123456789012")
    press(dialog, "Change password")
    expect(page.get_by_text("New password is too easy to guess")).to_be_visible()
    chosen.fill("another long phrase")
    press(dialog, "Change password")
    expect(page.get_by_text("Password changed. All other sessions have ended.")).to_be_visible()
    expect(rows).to_have_count(1)
    sign_in("another long phrase")
    expect(box(other)).to_have_value("Never lost")
    expect(other.get_by_role("img", name="dot.png")).to_be_visible()


@pytest.mark.long
def test_invite_link_adds_a_user_whom_an_administrator_can_disable(
    studio: Fireside, admin: httpx.Client, visitor: Callable[..., Visit]
) -> None:
    name = "guest"
    for invite in good(admin.get("/admin/invites"))["invites"]:  # of other tests
        admin.post(f"/admin/invites/{invite['id']}/revoke")
    page = visitor(studio, admin).open()
    open_settings(page, "Users and invites")
    press(page, "Make an invite")
    shown, revoke = page.locator(".command code"), page.get_by_role("button", name="Revoke")
    expect(page.locator(".advice")).to_contain_text("For other devices, start Fireside with fireside serve --lan")
    expect(revoke).to_have_count(1)
    link = shown.inner_text()
    press(page, "Make an invite")
    expect(revoke).to_have_count(2)
    expect(shown).not_to_have_text(link)
    revoke.first.click()  # the newest, whose link is shown
    expect(revoke).to_have_count(1)
    expect(revoke).to_be_focused()
    expect(shown).to_have_count(0)
    guest = visitor(studio).open(link)
    expect(guest.get_by_role("heading", name="You are invited")).to_be_visible()
    guest.get_by_label("Name").fill(name)
    guest.get_by_label("Password, 12 characters or more").fill(PASSWORD)
    press(guest, "Create account")
    expect(guest.get_by_role("heading", name=name)).to_be_visible()
    open_settings(guest)
    expect(guest.get_by_role("tab", name="Users and invites")).to_have_count(0)

    show_section(page, "General")
    show_section(page, "Users and invites")
    press(page, f"Change {name}")
    page.get_by_role("menuitem", name="Disable").click()
    expect(page.get_by_role("listitem").filter(has_text=name)).to_contain_text("disabled")
    expect(page.get_by_role("button", name=f"Change {name}")).to_be_focused()
    guest.keyboard.press("Escape")
    ask(guest, "Am I still in?")
    expect(guest.get_by_role("button", name="Sign in")).to_be_visible()


def test_number_out_of_range_is_explained_and_not_saved(visit: Visit) -> None:
    chat = new(visit.client, title="Numbers", settings={"temperature": 0.5})
    page = visit.open(f"/#/c/{chat}")

    def settings() -> object:
        return good(visit.client.get(f"/conversations/{chat}"))["settings"]

    press(page, "Chat settings")
    warm, seed = page.get_by_label("Temperature"), page.get_by_label("Seed")
    warm.press("Control+a")
    with page.expect_response(re.compile(rf"/conversations/{chat}$")):
        page.keyboard.type("15")  # the 1 alone is valid
        expect(warm).to_have_attribute("aria-invalid", "true")
    expect(warm).to_have_accessible_description(re.compile(r"playful\. Not saved\. Enter a number from 0 to 2\.$"))
    assert settings() == {"temperature": 0.5}
    warm.fill("1.5")
    expect(warm).to_have_attribute("aria-invalid", "false")
    expect(page.get_by_role("status").filter(has_text="Saved")).to_be_visible()
    assert settings() == {"temperature": 1.5}
    seed.fill("1.5")
    expect(seed).to_have_accessible_description(re.compile(r"Not saved\. Enter a whole number from -2,147,483,648 to"))
    warm.fill("-1")
    press(page, "Close")
    press(page, "Chat settings")
    expect(warm).to_have_value("1.5")
    expect(seed).to_have_value("")
    assert settings() == {"temperature": 1.5}


@pytest.mark.long
def test_bin_restores_deletes_and_is_emptied_after_a_question(visit: Visit) -> None:
    chats = [new(visit.client, title=title) for title in ("First", "Second", "Third", "Fourth", "Kept")]
    for chat in chats[:2]:
        good(visit.client.delete(f"/conversations/{chat}"))
    page = visit.open()
    toasts, rows = page.locator(".toast"), page.locator(".rows li")
    for count, title in enumerate(("Third", "Fourth"), 1):
        open_row_menu(page.locator(".list li", has_text=title), "Delete")
        expect(toasts).to_have_count(count)
    page.locator(".account").click()
    page.get_by_role("menuitem", name="Bin").click()
    expect(rows).to_have_count(4)
    press(page, "Restore First")
    expect(rows).to_have_count(3)
    expect(page.locator(".section button:focus")).to_have_count(1)
    press(page, "Delete Second for good")
    press(page, "Delete")
    expect(rows).to_have_count(2)
    press(page, "Empty the bin")
    expect(page.get_by_role("dialog", name="Empty the bin?")).to_contain_text("All 2 chats in it")
    press(page, "Cancel")
    good(visit.client.post(f"/conversations/{chats[3]}/restore"))  # on another device
    press(page, "Empty the bin")
    press(page, "Empty it")
    expect(page.get_by_text("The bin is empty.")).to_be_visible()
    expect(toasts).to_have_count(0)
    assert good(visit.client.get("/conversations?deleted=true")) == []
    assert {one["title"] for one in good(visit.client.get("/conversations"))} == {"First", "Fourth", "Kept"}


def test_theme_and_defaults_of_new_chats_are_kept(visit: Visit, lmstudio: Upstream) -> None:
    page = visit.open()
    open_settings(page)
    page.get_by_label("Dark").check()
    show_section(page, "Presets")
    page.get_by_label("Instructions for the model").fill("Answer in rhyme.")
    page.get_by_label("Temperature").fill("0.5")
    expect(page.get_by_role("tabpanel").get_by_role("status")).to_have_text("Saved")
    page.reload()
    expect(page.locator(".welcome")).to_be_visible()
    expect(page.locator("html")).to_have_css("color-scheme", "dark")
    press(page, "Chat settings")
    expect(page.get_by_label("Instructions for the model")).to_have_value("Answer in rhyme.")
    page.get_by_label("Maximum answer length").fill("50")
    lmstudio.enqueue(answer("Sublime"))
    ask(page, "Hi")
    answered(page)
    request = lmstudio.chats[-1]
    assert request["messages"][0] == {"role": "system", "content": "Answer in rhyme."}
    assert (request["temperature"], request["max_tokens"]) == (0.5, 50)


def test_sign_in_explains_forgotten_passwords_and_says_once_how_long_to_wait(
    studio: Fireside, visitor: Callable[..., Visit]
) -> None:
    page = visitor(studio).open()
    page.get_by_text("Forgot your password?").click()
    expect(page.get_by_text('fireside reset-password --user "NAME"')).to_be_visible()
    refusal = {"code": "RATE_LIMITED", "message": "Too many attempts. Try again in 4 s.", "request_id": "1"}
    page.route("**/auth/login", lambda route: route.fulfill(status=429, headers={"Retry-After": "4"}, json=refusal))
    page.get_by_label("Name").fill("ann")
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("Too many attempts. Try again in 4 s.")


def test_token_is_created_with_lines_for_programs_and_revoked(visit: Visit, lmstudio: Upstream) -> None:
    page = visit.open()
    open_settings(page, "Other programs")
    panel = page.get_by_role("tabpanel")
    panel.get_by_label("Name of the program").fill("Zed")
    panel.get_by_label("The token expires").select_option("in 30 days")
    panel.get_by_label("Save its requests as chats").uncheck()
    press(page, "Create token")
    token = panel.locator("[data-token] code").inner_text()
    curl = panel.locator("pre").inner_text()
    assert f"Bearer {token}" in curl and '"model": "lmstudio/llama-3.2-3b-instruct"' in curl
    headers = {"Authorization": f"Bearer {token}"}
    assert httpx.get(f"{visit.url}/v1/models", headers=headers, trust_env=False).status_code == 200
    for program in ("Python (openai)", "JavaScript (openai)", "llm", "Continue", "Zed"):
        panel.get_by_label("Example for").select_option(program)
        lines = panel.locator("pre").inner_text()
        assert f"{visit.url}/v1" in lines and "lmstudio/llama-3.2-3b-instruct" in lines
        assert (token in lines) == (program != "Zed")  # Zed keeps keys elsewhere
    row = panel.locator(".rows li", has_text="Zed")
    expect(row.locator(".badge")).to_have_text("not saved")
    expect(row).to_contain_text("0 requests, expires")
    row.get_by_role("button", name="Revoke Zed").click()
    press(page, "Revoke")
    expect(panel.locator(".rows li")).to_have_count(0)
    expect(panel.locator("[data-token]")).to_have_count(0)
    assert httpx.get(f"{visit.url}/v1/models", headers=headers, trust_env=False).status_code == 401


def test_usage_shows_the_speed_of_each_model_and_a_lasting_change(visit: Visit) -> None:
    def conversation(days: int) -> dict[str, object]:
        time = (datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%S.%f")
        stats = {
            "tokens_per_second": 30.0 if days > 10 else 24.0,
            "ttft_ms": 300,
            "engine": "b2" if days <= 10 else "b1",
        }
        usage = {"prompt_tokens": 1, "completion_tokens": 100, "total_tokens": 101}
        question = {"id": 1, "parent_id": None, "role": "user", "content": "?", "created_at": time}
        answer = {"id": 2, "parent_id": 1, "role": "assistant", "content": "!", "created_at": time, "model": "qwen"}
        messages = [question, answer | {"stats": stats, "token_usage": usage}]
        return {
            "fireside": 1,
            "title": "",
            "created_at": time,
            "updated_at": time,
            "active_message_id": 2,
            "messages": messages,
        }

    good(visit.client.post("/import", json=[conversation(days) for days in range(6, 15)]))
    page = visit.open()
    open_settings(page, "Usage")
    expect(page.get_by_text("qwen is 20 % slower since")).to_contain_text("Its engine is b2; before, it was b1.")
    expect(page.get_by_role("img", name="Speed in tokens per second").locator("circle")).to_have_count(9)
    expect(page.get_by_role("img", name="Time to the first token").locator("circle title").first).to_contain_text(
        "0.3 s"
    )
