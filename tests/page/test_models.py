"""Model servers and models: finding, starting, choosing, loading."""

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import expect

from .. import upstream as script
from ..browser import NO_ENGINE, PHONE, Fireside, Visit
from ..live import good
from ..upstream import DONE, Gate, Upstream, answer, finish, pause, text, usage
from .axe import Screens
from .steps import QWEN, answered, ask, box, open_settings, press, rectangles

LLAMA = "Model: Llama 3.2 3B Instruct"


def test_server_that_appears_beside_another_is_noticed(
    tmp_path: Path, visitor: Callable[..., Visit], lmstudio: Upstream
) -> None:
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
            expect(page.get_by_role("button", name=LLAMA)).to_be_visible()


def test_name_of_a_model_is_typed_for_a_server_that_lists_none(tmp_path: Path, visitor: Callable[..., Visit]) -> None:
    with Upstream() as box, contextlib.ExitStack() as stack:
        box.models = []
        settings = f'[[providers]]\nid = "box"\nname = "Box"\nurl = "{box.url}/v1"\n'
        fireside = stack.enter_context(Fireside(tmp_path, NO_ENGINE + settings, lmstudio_url=script.refused_url()))
        page = visitor(fireside, fireside.first()).open()
        expect(page.locator(".welcome")).to_contain_text("Box does not list its models.")
        press(page, "Model: No model")
        page.get_by_role("textbox", name="Name of the model").fill("mistral-small")
        press(page, "Use this model")
        expect(page.locator(".welcome")).to_contain_text("mistral-small is ready.")
        box.enqueue(answer("Hello", model="mistral-small"))
        ask(page, "Hi")
        expect(answered(page)).to_contain_text("Hello")
        assert box.chats[-1]["model"] == "mistral-small"
        page.reload()
        expect(page.get_by_role("button", name="Model: mistral-small")).to_be_visible()
        expect(page.locator(".pill .dot.offline")).to_have_count(0)


@pytest.mark.long
def test_first_run_connects_a_server_which_is_later_changed_and_removed(
    tmp_path: Path, visitor: Callable[..., Visit]
) -> None:
    key = "sk-lm-12345678:abcdefghijklmnopqrst"
    with Upstream(token=key) as studio, Upstream() as other, contextlib.ExitStack() as stack:
        fireside = stack.enter_context(Fireside(tmp_path, NO_ENGINE, lmstudio_url=script.refused_url()))
        admin = fireside.first()
        page = visitor(fireside, admin, viewport=PHONE).open()
        screens = Screens(page)
        expect(page.get_by_role("heading", name="Connect a model")).to_be_visible()
        logo, top = rectangles(page, ".welcome > .icon", "header.top")
        assert logo["top"] >= top["bottom"]
        screens.check("first run")
        ask(page, "Hello?")
        expect(page.locator(".toast")).to_contain_text("Not sent: there is no model yet.")
        expect(box(page)).to_have_value("Hello?")
        assert good(admin.get("/conversations")) == []

        address, finding = page.get_by_label("Address"), page.locator(".finding")
        refused = script.refused_url()
        address.fill(refused)
        expect(finding).to_contain_text("Nothing answers at")
        press(page, "Add this server")
        expect(page.get_by_role("button", name="Save anyway")).to_be_visible()
        address.fill(studio.url)
        expect(finding).to_contain_text("The server requires a key.")
        page.get_by_label("API key").fill(key)
        expect(finding).to_contain_text("LM Studio has 2 models: Llama 3.2 3B Instruct, Qwen2.5 VL 7B Instruct.")
        press(page, "Add this server")
        expect(page.get_by_role("button", name=LLAMA)).to_be_visible()
        page.locator(".toast").get_by_role("button", name="Dismiss").last.click()
        expect(page.locator(".programs")).to_have_count(0)
        box(page).press("Enter")
        expect(answered(page)).to_contain_text("Hello from upstream.")

        page.set_viewport_size({"width": 1280, "height": 820})
        good(admin.post("/admin/providers", json={"url": f"{other.url}/v1", "name": "Cellar"}))
        open_settings(page, "Model servers")
        row = page.locator(".servers li", has_text="has a key")
        expect(row).to_contain_text("LM Studio · Reachable · 2 models · 4 answers at a time")
        expect(page.locator(".servers li", has_text="from config.toml").get_by_role("button")).to_have_count(0)
        screens.check("model servers")
        row.get_by_role("button", name="Change").click()
        page.get_by_label("Name on this page").fill("Attic")
        press(page, "Save")
        row = page.locator(".servers li", has_text="Attic")
        row.get_by_role("button", name="Disable").click()
        expect(row).to_contain_text("disabled")
        row.get_by_role("button", name="Enable").click()
        expect(row).to_contain_text("Reachable")
        row.get_by_role("button", name="Remove").click()
        press(page, "Remove")
        expect(row).to_have_count(0)
        page.keyboard.press("Escape")
        expect(page.locator(".composer .hint")).to_have_text("")  # the other server has a model of this name
        other.models = other.models[1:]
        page.reload()
        expect(page.locator(".composer .hint")).to_have_text(
            "The model server of llama-3.2-3b-instruct was removed. Qwen2.5 VL 7B Instruct answers instead."
        )
        assert screens == {}
        ask(page, "And now?")
        expect(answered(page)).to_contain_text("qwen2.5-vl-7b-instruct")


@pytest.mark.skipif(os.name != "posix", reason="the stand-in for LM Studio's command reads a FIFO")
def test_page_without_a_model_starts_lm_studio_and_continues(
    tmp_path: Path, visitor: Callable[..., Visit], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stand-in for LM Studio's command fails first, then succeeds when the test has started a server."""
    monkeypatch.setenv("HOME", str(tmp_path))
    command, results = tmp_path / ".lmstudio" / "bin" / "lms", tmp_path / "results"
    command.parent.mkdir(parents=True)
    os.mkfifo(results)
    command.write_text(
        f'#!/bin/sh\nread -r result < {results}; echo "$result: $*"; test "$result" = Started\n', "utf-8"
    )
    command.chmod(0o700)
    with Upstream() as reserved:
        port = reserved.port
    with Fireside(tmp_path / "data", NO_ENGINE, lmstudio_url=f"http://127.0.0.1:{port}") as fireside:
        admin = fireside.first()
        page = visitor(fireside, admin).open()
        no_server = page.get_by_role("heading", name="Connect a model")
        expect(no_server).to_be_visible()
        expect(page.get_by_text("lms server start")).to_be_visible()
        press(page, "Start LM Studio's server")
        expect(page.get_by_role("button", name="Starting LM Studio…")).to_be_disabled()
        results.write_text("The app is not installed\n", "utf-8")
        expect(page.locator(".toast")).to_contain_text("did not start: The app is not installed: server start")
        press(page, "Start LM Studio's server")
        with Upstream(port=port):
            results.write_text("Started\n", "utf-8")
            expect(page.get_by_role("button", name=LLAMA)).to_be_visible()
            expect(no_server).to_be_hidden()
        member = visitor(fireside, fireside.join(admin, "member")).open()
        expect(member.get_by_role("heading", name="No model yet")).to_be_visible()
        expect(member.get_by_label("Address")).to_have_count(0)
        expect(member.get_by_role("button", name="Start LM Studio's server")).to_have_count(0)


def test_model_is_chosen_for_this_and_later_chats(visit: Visit, lmstudio: Upstream) -> None:
    page = visit.open()
    press(page, LLAMA)
    models = page.locator(".model-pick")
    expect(page.get_by_role("heading", name="Nothing")).to_contain_text("offline")
    expect(models).to_have_count(2)
    expect(page.locator(".load")).to_have_count(0)
    page.get_by_role("searchbox", name="Find a model").fill("qwen")
    expect(models).to_have_count(1)
    expect(models).to_contain_text("Not loaded · 131,072 tokens of context · Q4_K_M · 6.0 GB · sees images")
    page.keyboard.press("Enter")
    lmstudio.enqueue(answer("Hello", model=QWEN["model"]))
    ask(page, "Hi")
    expect(answered(page)).to_contain_text(QWEN["model"])
    assert lmstudio.chats[-1]["model"] == QWEN["model"]
    page.get_by_role("link", name="New chat").click()
    expect(page.get_by_role("button", name="Model: Qwen2.5 VL 7B Instruct")).to_be_visible()


@pytest.mark.long
def test_administrator_loads_models_and_sees_a_server_that_does_not_respond(
    lmstudio: Upstream, new_visit: Callable[..., Visit]
) -> None:
    page = new_visit("admin").open()
    press(page, LLAMA)
    press(page, "Load Qwen2.5 VL 7B Instruct")
    press(page, "Unload Qwen2.5 VL 7B Instruct")
    expect(page.get_by_role("button", name="Load Qwen2.5 VL 7B Instruct", exact=True)).to_be_visible()
    press(page, "Load Qwen2.5 VL 7B Instruct with options")
    page.get_by_label("Context length, in tokens").fill("16384")
    page.get_by_label("Flash attention").select_option("off")
    press(page, "Load")
    expect(page.locator(".model-pick", has_text="Qwen")).to_contain_text("Loaded · 16,384 tokens of context")
    sent = [request.json for request in lmstudio.requests if request.path == "/api/v1/models/load"]
    assert sent[-1] == {"model": QWEN["model"], "context_length": 16384, "flash_attention": False}
    press(page, "Unload Qwen2.5 VL 7B Instruct")
    press(page, "Load Qwen2.5 VL 7B Instruct with options")
    context = page.get_by_label("Context length, in tokens")
    expect(context).to_have_value("16384")  # as last time
    expect(context).to_have_accessible_description(
        re.compile(r"At most 131,072\. The model itself takes about 6\.0 GB")
    )
    page.keyboard.press("Escape")
    press(page, "Load Qwen2.5 VL 7B Instruct")
    press(page, "Unload Qwen2.5 VL 7B Instruct")
    expect(page.get_by_role("button", name="Load Qwen2.5 VL 7B Instruct", exact=True)).to_be_visible()
    sent = [request.json for request in lmstudio.requests if request.path == "/api/v1/models/load"]
    assert sent[-1] == sent[-2] == {"model": QWEN["model"], "context_length": 16384, "flash_attention": False}

    gate = Gate()
    models = [model.native_v1() for model in lmstudio.models]
    lmstudio.enqueue(pause(gate), script.status(200, {"models": models}), path="/api/v1/models")
    page.keyboard.press("Escape")
    press(page, LLAMA)
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


@pytest.mark.long
def test_administrator_downloads_a_model(tmp_path: Path, visitor: Callable[..., Visit]) -> None:
    with Upstream() as studio, contextlib.ExitStack() as stack:
        fireside = stack.enter_context(Fireside(tmp_path, NO_ENGINE, lmstudio_url=studio.url))
        page = visitor(fireside, fireside.first()).open()
        press(page, LLAMA)
        page.get_by_text("Download a model").click()
        page.get_by_label("Name in LM Studio's catalog").fill("qwen/qwen3-4b")
        press(page, "Download")
        progress = page.get_by_text("qwen/qwen3-4b: downloading, 500 MB of 2.0 GB")
        expect(progress).to_be_visible()
        page.reload()
        press(page, LLAMA)
        expect(progress).to_be_visible()
        studio.models.append(script.LocalModel("qwen/qwen3-4b", "Qwen3 4B"))
        studio.job["status"] = "completed"
        expect(page.locator(".toast")).to_contain_text("qwen/qwen3-4b is downloaded.")
        expect(page.locator(".model-pick", has_text="Qwen3 4B")).to_be_visible()


@pytest.mark.long
def test_reasoning_is_chosen_where_the_model_offers_it(tmp_path: Path, visitor: Callable[..., Visit]) -> None:
    with Upstream() as studio, contextlib.ExitStack() as stack:
        studio.models[0].reasoning = ("off", "on")
        studio.models[0].variants = ("llama-3.2-3b-instruct@q4_k_m", "llama-3.2-3b-instruct@q8_0")
        fireside = stack.enter_context(Fireside(tmp_path, NO_ENGINE, lmstudio_url=studio.url))
        page = visitor(fireside, fireside.first()).open()
        press(page, "Chat settings")
        effort = page.get_by_label("Reasoning")
        expect(effort.get_by_role("option")).to_have_text(["default", "Off", "On"])
        effort.select_option("Off")
        press(page, "Close")
        ask(page, "Hi")
        expect(answered(page)).to_contain_text("Hello from upstream.")
        assert studio.chats[-1]["reasoning_effort"] == "none"
        press(page, LLAMA)
        page.locator(".model-pick", has_text="Qwen").click()
        press(page, "Chat settings")
        expect(effort.get_by_role("option")).to_have_text(["default", "Off"])  # it can be taken back
        press(page, "Model: Qwen2.5 VL 7B Instruct")
        page.get_by_label("Variant of Llama 3.2 3B Instruct").select_option("Q8_0")
        page.locator(".model-pick", has_text="Llama").click()
        expect(effort.get_by_role("option")).to_have_text(["default", "Off", "On"])  # the open panel follows the model
        expect(page.get_by_role("button", name=f"{LLAMA}, Q8_0")).to_be_visible()
        page.get_by_role("button", name="Close").click()
        ask(page, "And now?")
        expect(page.locator(".message.assistant")).to_have_count(2)
        answered(page)
        assert studio.chats[-1]["model"] == "llama-3.2-3b-instruct@q8_0"


def test_model_that_an_answer_loads_is_shown_as_loaded(visit: Visit, lmstudio: Upstream) -> None:
    page = visit.open()
    press(page, LLAMA)
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
