"""Model servers that administrators add, change and remove while Fireside runs."""

import asyncio
import json
import os
import ssl
from pathlib import Path
from typing import Any

import pytest
from fireside.backends.engine import Engine
from fireside.config import Config, Provider
from fireside.providers import Providers

from ..certificates import make_certificate, needs_openssl
from ..live import Person, Running, code, good, until
from ..live import text as said
from ..upstream import DONE, MODEL, Gate, Upstream, close, finish, pause, refused_url, status, text

KEY = "sk-lm-12345678:abcdefghijklmnopqrst"


async def listed(person: Person) -> dict[str, dict[str, Any]]:
    return {one["provider_id"]: one for one in good(await person.get("/admin/providers"))["providers"]}


async def add(person: Person, url: str, name: str = "Box", **fields: Any) -> dict[str, Any]:
    added: dict[str, Any] = good(await person.post("/admin/providers", json={"url": url, "name": name} | fields))
    return added


async def examined(person: Person, url: str, **fields: Any) -> dict[str, Any]:
    found: dict[str, Any] = good(await person.post("/admin/provider-test", json={"url": url} | fields))
    return found


async def test_added_server_answers_at_once_survives_a_restart_and_its_key_stays_hidden(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    with Upstream(token=KEY) as box, Upstream() as studio:
        async with Running(tmp_path, lmstudio_url=studio.url) as running:
            ann = await running.first()
            assert code(await ann.post("/admin/providers", json={"url": box.url})) == (502, "PROVIDER_AUTH")
            assert "the-kuche" not in await listed(ann)
            added = await add(ann, box.url.removeprefix("http://"), "The Küche", api_key=KEY)
            assert (added["provider_id"], added["kind"], added["url"]) == ("the-kuche", "lmstudio", box.url)
            assert (added["has_key"], added["source"], added["online"], added["models_found"]) == (
                True,
                "page",
                True,
                2,
            )
            chat = await ann.conversation("Hello?", provider_id="the-kuche")
            assert said(await ann.answer(chat)) == "Hello from upstream."
            file = tmp_path / "model-servers.json"
            if os.name == "posix":
                assert file.stat().st_mode & 0o777 == 0o600
            assert KEY in file.read_text("utf-8")
            again = await ann.post("/admin/providers", json={"url": box.url + "/v1/", "name": "Twice", "api_key": KEY})
            assert code(again) == (409, "PROVIDER_EXISTS")  # a repeated request adds nothing
        async with Running(tmp_path, lmstudio_url=studio.url) as running:
            ann = await running.login("ann")
            assert (await listed(ann))["the-kuche"] == added
            chat = await ann.conversation("Hello?", provider_id="the-kuche")
            assert said(await ann.answer(chat)) == "Hello from upstream."
            responses = [await ann.get("/admin/providers"), await ann.get("/providers")]
            assert not any(KEY in response.text for response in responses)
        assert "model server added" in caplog.text and KEY not in caplog.text


async def test_answers_and_their_queue_go_on_while_a_server_is_changed_and_removed(
    ann: Person, running: Running
) -> None:
    with Upstream() as old, Upstream() as new:
        await add(ann, old.url, concurrency=1)
        gate = Gate()
        old.enqueue(text("one "), pause(gate), text("two"), finish(), DONE)
        chats = [await ann.conversation(f"Number {number}?", provider_id="box", model=MODEL) for number in range(3)]

        async def ask(chat: int) -> str:
            return said(await ann.answer(chat))

        first = asyncio.create_task(ask(chats[0]))
        await gate.reached()
        second = asyncio.create_task(ask(chats[1]))
        await until(lambda: running.state.providers.get("box").slots.waiting() == 1)
        queue = (await listed(ann))["box"]
        assert (queue["answering"], queue["waiting"]) == (1, 1)
        assert good(await ann.patch("/admin/providers/box", json={"url": new.url, "name": "New"}))["name"] == "New"
        third = asyncio.create_task(ask(chats[2]))
        await until(lambda: running.state.providers.get("box").slots.waiting() == 2)
        server = running.state.providers.get("box")
        assert good(await ann.delete("/admin/providers/box")) == {"message": "Model server removed"}
        assert code(await ann.delete("/admin/providers/box")) == (404, "PROVIDER_NOT_FOUND")
        request = {"provider_id": "box", "model": MODEL}
        late = await ann.conversation("Late?")
        assert code(await ann.post(f"/conversations/{late}/stream", json=request)) == (404, "PROVIDER_NOT_FOUND")
        gate.open()
        assert await first == "one two"  # over the connection that was open
        assert [await second, await third] == ["Hello from upstream."] * 2
        assert (len(old.chats), len(new.chats), old.abandoned) == (1, 2, [])
        await until(lambda: server.slots.held == 0)


async def test_disabled_server_is_not_offered_and_keeps_its_key(ann: Person, running: Running) -> None:
    with Upstream(token=KEY) as box:
        await add(ann, box.url, api_key=KEY)
        disabled = good(await ann.patch("/admin/providers/box", json={"enabled": False}))
        assert (disabled["enabled"], disabled["online"], disabled["error"]) == (False, False, None)
        assert "box" not in {one["provider_id"] for one in good(await ann.get("/providers"))}
        assert code(await ann.get("/providers/box/models")) == (404, "PROVIDER_NOT_FOUND")
        enabled = good(await ann.patch("/admin/providers/box", json={"enabled": True}))
        assert (enabled["online"], enabled["has_key"], enabled["models_found"]) == (True, True, 2)


async def test_saved_key_is_sent_to_its_own_address_only(ann: Person) -> None:
    with Upstream(token=KEY) as box, Upstream() as elsewhere:
        await add(ann, box.url, api_key=KEY)
        assert (await examined(ann, box.url))["problem"] == "PROVIDER_AUTH"
        assert (await examined(ann, box.url, provider_id="box"))["problem"] is None
        assert (await examined(ann, box.url, provider_id="box", api_key=""))["problem"] == "PROVIDER_AUTH"
        assert (await examined(ann, elsewhere.url, provider_id="box"))["problem"] is None
        moved = {"url": elsewhere.url, "untested": True}
        assert code(await ann.patch("/admin/providers/box", json=moved)) == (400, "VALIDATION_ERROR")
        assert (await listed(ann))["box"]["url"] == box.url
        renamed = good(await ann.patch("/admin/providers/box", json={"url": f"{box.url}/", "name": "Same"}))
        assert (renamed["has_key"], renamed["online"]) == (True, True)
        assert code(await ann.patch("/admin/providers/box", json={"url": ""})) == (400, "VALIDATION_ERROR")
        assert not any("authorization" in request.headers for request in elsewhere.requests)
        good(await ann.patch("/admin/providers/box", json=moved | {"api_key": ""}))
        assert (await listed(ann))["box"]["has_key"] is False
        assert not any("authorization" in request.headers for request in elsewhere.requests)


async def test_servers_of_config_toml_and_the_environment_cannot_be_changed(tmp_path: Path, upstream: Upstream) -> None:
    entry = f'[[providers]]\nid = "box"\nname = "Box"\nurl = "{upstream.url}/v1"\napi_key = "{KEY}"\n'
    (tmp_path / "config.toml").write_text(entry, "utf-8")
    async with Running(tmp_path, lmstudio_url=refused_url()) as running:
        ann = await running.first()
        servers = await listed(ann)
        assert {name: servers[name]["source"] for name in ("box", "lmstudio")} == {
            "box": "config.toml", "lmstudio": "environment",
        }  # fmt: skip
        for name in ("box", "lmstudio"):
            change = {"url": upstream.url, "api_key": "", "untested": True}
            assert code(await ann.patch(f"/admin/providers/{name}", json=change)) == (409, "PROVIDER_FIXED")
            assert code(await ann.delete(f"/admin/providers/{name}")) == (409, "PROVIDER_FIXED")
        assert await listed(ann) == servers
        assert (tmp_path / "config.toml").read_text("utf-8") == entry
        assert not (tmp_path / "model-servers.json").exists()


async def test_built_in_lm_studio_gets_a_key_and_its_first_settings_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    with Upstream(token=KEY) as box:
        async with Running(tmp_path / "data") as running:
            ann = await running.first()
            before = (await listed(ann))["lmstudio"]
            assert before["source"] == "built-in"
            changed = {"url": box.url, "api_key": KEY}
            after = good(await ann.patch("/admin/providers/lmstudio", json=changed))
            assert (after["online"], after["source"], after["url"]) == (True, "page", box.url)
            found = good(
                await ann.patch("/admin/providers/lmstudio", json={"url": "", "api_key": "", "untested": True})
            )
            assert (found["url"], found["address"]) == ("", before["address"])
            good(await ann.delete("/admin/providers/lmstudio"))
            assert (await listed(ann))["lmstudio"] == before
            assert json.loads((tmp_path / "data" / "model-servers.json").read_text("utf-8")) == {"servers": []}


async def test_file_that_cannot_be_written_changes_nothing(ann: Person, running: Running, upstream: Upstream) -> None:
    (running.config.data_dir / "model-servers.json.partial").mkdir()
    with Upstream() as box:
        body = {"url": box.url, "name": "Box"}
        assert code(await ann.post("/admin/providers", json=body)) == (503, "STORAGE_UNAVAILABLE")
        assert "box" not in await listed(ann)
        (running.config.data_dir / "model-servers.json.partial").rmdir()
        both = await asyncio.gather(*(ann.post("/admin/providers", json=body) for _ in range(2)))
        assert sorted(response.status_code for response in both) == [200, 409]


async def test_nonsense_is_refused_by_name(ann: Person) -> None:
    urls = ["", "ftp://box", "http://u:p@box", "http://box:99999", "http://box?x=1", "b\0x"]
    wrong: dict[str, list[Any]] = {"url": urls, "name": ["  "], "api_key": ["two words", "Schlüssel"]}
    wrong |= {"concurrency": [0], "models": [[""]]}
    for field, value in [(field, value) for field, values in wrong.items() for value in values]:
        response = await ann.post("/admin/providers", json={"url": "box", "untested": True, field: value})
        assert code(response) == (400, "VALIDATION_ERROR")
        assert response.json()["message"].startswith(field)
        assert "Schlüssel" not in response.text and "two words" not in response.text


# ---- what answers at an address


async def test_kinds_of_servers_are_told_apart(ann: Person, running: Running, upstream: Upstream) -> None:
    def found(finding: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(finding[name] for name in ("kind", "url", "name", "models_known", "problem"))

    host = upstream.url.removeprefix("http://")
    assert found(await examined(ann, f" {host}/v1/ ")) == ("lmstudio", upstream.url, "LM Studio", True, None)
    upstream.enqueue(status(200, json.dumps({"models": []}, indent=2)), path="/api/v1/models")
    assert (await examined(ann, host))["kind"] == "lmstudio"
    no_path = status(404, "404 page not found", "text/plain")
    ollama = Upstream(without=("/",))
    with ollama as box:
        box.default = [status(405)]

        def script(**paths: Any) -> None:
            box.forget()
            for path, step in paths.items():
                box.enqueue(step, path="/" + path.replace("__", "/").removeprefix("root"))

        models = {"data": [{"id": "qwen3:4b", "owned_by": "library"}]}
        script(api__v1__models=no_path, v1__models=status(200, models), root=status(200, "Ollama is running"))
        assert found(await examined(ann, box.url)) == ("openai", box.url, "Ollama", True, None)

        models["data"][0]["owned_by"] = "llamacpp"
        script(api__v1__models=no_path, v1__models=status(200, models))
        finding = await examined(ann, f"{box.url}/v1/chat/completions")
        assert found(finding) == ("openai", f"{box.url}/v1", "llama.cpp", True, None)
        assert finding["models"] == ["qwen3:4b"]

        page = status(200, "<!doctype html>", "text/html")
        config = status(200, {"status": True, "name": "Open WebUI", "version": "0.6.5"})
        script(api__v1__models=status(401, {"detail": "Not authenticated"}), v1__models=page, api__config=config)
        finding = await examined(ann, box.url)
        assert finding["problem"] == "PROVIDER_ERROR"
        assert finding["message"].startswith("This is Open WebUI, not a model server.")

        script(api__v1__models=page, v1__models=page, api__config=page)
        assert "another program does" in (await examined(ann, box.url))["message"]

        for chats, problem in ((status(400, {"error": "no model"}), None), (no_path, "PROVIDER_ERROR")):
            script(
                api__v1__models=no_path, v1__models=no_path, v1__chat__completions=chats, root=page, api__config=page
            )
            finding = await examined(ann, box.url)
            assert (finding["models_known"], finding["problem"]) == (False, problem)

        script(api__v1__models=close())
        assert (await examined(ann, box.url))["message"].endswith("does not speak HTTP. Check the port.")
    finding = await examined(ann, running.url)
    assert finding["message"] == "This is Fireside, not a model server."


async def test_connection_problems_are_explained(ann: Person) -> None:
    refused = refused_url()
    assert (await examined(ann, refused))["message"].startswith(f"Nothing answers at {refused[7:]}. Start the model")
    assert (await examined(ann, "fireside.invalid"))[
        "message"
    ] == "There is no computer with the name fireside.invalid."


async def test_https_address_of_a_server_without_it_is_explained(ann: Person) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        address = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        assert "does not speak https" in (await examined(ann, address))["message"]


@needs_openssl
async def test_certificate_that_is_not_valid_is_named(ann: Person, tmp_path: Path) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*make_certificate(tmp_path / "tls"))
    async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context) as server:
        finding = await examined(ann, f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    assert finding["problem"] == "PROVIDER_UNREACHABLE"
    assert "is not valid: self-signed certificate. Fireside trusts" in finding["message"]


async def test_server_that_is_off_can_be_saved_unexamined(ann: Person) -> None:
    body = {"url": refused_url(), "name": "Attic"}
    assert code(await ann.post("/admin/providers", json=body)) == (502, "PROVIDER_UNREACHABLE")
    assert "attic" not in await listed(ann)
    saved = await add(ann, **body, untested=True, models=["one", "two"])
    assert (saved["online"], saved["models"], saved["kind"]) == (False, ["one", "two"], "openai")


async def test_models_of_lm_studio_are_not_saved_since_the_next_start_would_refuse_them(tmp_path: Path) -> None:
    async with Running(tmp_path) as running:
        ann = await running.first()
        box = {"url": refused_url(), "name": "Box", "kind": "lmstudio", "models": ["one"], "untested": True}
        assert good(await ann.post("/admin/providers", json=box))["models"] == []
        for name in ("lmstudio", "box"):
            refused = await ann.patch(f"/admin/providers/{name}", json={"models": ["one"]})
            assert code(refused) == (400, "VALIDATION_ERROR")
    async with Running(tmp_path) as running:
        ann = await running.login("ann")
        assert (await listed(ann))["box"]["models"] == []


async def test_added_server_does_not_take_the_id_of_an_engine_that_is_not_installed(
    tmp_path: Path, upstream: Upstream
) -> None:
    config = Config(data_dir=tmp_path, providers=())
    providers = Providers(config, Engine(config))
    added = await providers.add(Provider("", "openai", "Embedded", upstream.url))
    assert added.id == "embedded-2"
    await providers.remove(added.id)
    assert [server.id for server, _ in await providers.status()] == []
