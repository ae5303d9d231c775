"""Saved prompts and presets over HTTP, what new conversations copy, and the storage that is used."""

from typing import Any

from ..live import Person, Running, code, good
from ..upstream import Upstream
from ..witness import MODEL

BRIEF: dict[str, Any] = {"name": "Brief", "system_prompt": "Be brief.", "settings": {"top_k": 2}} | MODEL


def copied(conversation: dict[str, Any]) -> dict[str, Any]:
    return {name: conversation[name] for name in ("system_prompt", "settings", "provider_id", "model")}


async def save(person: Person, path: str, **fields: Any) -> int:
    saved: int = good(await person.post(path, json=fields))["id"]
    return saved


async def test_new_conversation_copies_its_preset(ann: Person, bob: Person, upstream: Upstream) -> None:
    preset_id = await save(ann, "/presets", **BRIEF)
    other_id = await save(ann, "/presets", name="Poet", system_prompt="Rhyme.")
    good(await ann.patch("/defaults", json={"system_prompt": "Own"}))
    plain = good(await ann.post("/conversations"))
    chosen = good(await ann.post("/conversations", json={"preset_id": preset_id, "settings": {}}))
    good(await ann.patch("/defaults", json={"preset_id": preset_id}))
    usual = good(await ann.post("/conversations", json={"message": {"content": "Why?"}}))
    poet = good(await ann.post("/conversations", json={"preset_id": other_id}))
    good(await ann.patch(f"/presets/{preset_id}", json={"system_prompt": "Changed."}))
    good(await ann.delete(f"/presets/{other_id}"))
    found = [copied(good(await ann.get(f"/conversations/{one['id']}"))) for one in (plain, chosen, usual, poet)]
    nothing: dict[str, Any] = {"settings": {}, "provider_id": None, "model": None}
    brief = {name: value for name, value in BRIEF.items() if name != "name"}
    assert found == [
        {"system_prompt": "Own"} | nothing,
        brief | {"settings": {}},
        brief,
        {"system_prompt": "Rhyme."} | nothing,
    ]
    await ann.answer(usual["id"])
    assert upstream.chats[-1]["model"] == MODEL["model"] and upstream.chats[-1]["top_k"] == 2
    assert upstream.chats[-1]["messages"][0] == {"role": "system", "content": "Be brief."}
    for person, missing in ((bob, preset_id), (ann, other_id)):
        refused = await person.post("/conversations", json={"preset_id": missing})
        assert code(refused) == (404, "PRESET_NOT_FOUND")
    assert good(await bob.get("/defaults"))["preset_id"] is None


async def test_model_that_its_server_no_longer_has_is_left_out(ann: Person, running: Running) -> None:
    missing = await save(ann, "/presets", **BRIEF | {"model": "deleted-model"})
    removed = await save(ann, "/presets", **BRIEF | {"name": "Removed", "provider_id": "removed-server"})
    good(await ann.get("/providers"))
    found = [good(await ann.post("/conversations", json={"preset_id": one})) for one in (missing, removed)]
    assert [one["system_prompt"] for one in found] == ["Be brief."] * 2
    assert found[0]["model"] is None
    for one in found:
        good(await ann.post(f"/conversations/{one['id']}/messages", json={"content": "Why?"}))
        assert (await ann.answer(one["id"]))[-1].data["status"] == "ok"


async def test_saved_texts_are_limited(ann: Person) -> None:
    prompt_id = await save(ann, "/prompts", name=" Mail\nto ", content="Dear {{name}},")
    assert [one["name"] for one in good(await ann.get("/prompts"))["prompts"]] == ["Mail to"]
    wrong: list[dict[str, Any]] = [
        {"name": " \n"},
        {"name": "x" * 101},
        {"name": None},
        {"content": ""},
        {"content": " \t"},
        {"content": "x" * 20_001},
        {"content": "a\0b"},
    ]
    for fields in wrong:
        assert code(await ann.patch(f"/prompts/{prompt_id}", json=fields)) == (400, "VALIDATION_ERROR"), fields
        body = {"name": "Other", "content": "x"} | fields
        assert code(await ann.post("/prompts", json=body)) == (400, "VALIDATION_ERROR"), fields
    preset_id = await save(ann, "/presets", name="Brief")
    wrong = [{"settings": {"temperature": 9}}, {"settings": None}, {"system_prompt": "x" * 100_001}]
    for fields in wrong:
        assert code(await ann.patch(f"/presets/{preset_id}", json=fields)) == (400, "VALIDATION_ERROR"), fields
    assert code(await ann.post("/prompts", json={"name": "MAIL TO", "content": "x"})) == (409, "NAME_EXISTS")
    assert good(await ann.patch(f"/prompts/{prompt_id}", json={}))["content"] == "Dear {{name}},"


async def test_storage_shows_the_user_s_share_and_administrators_the_server_s(ann: Person, bob: Person) -> None:
    image = {"media_type": "image/png", "data": "iVBORw0KGgoAAAAN"}
    for person in (ann, bob):
        good(await person.post("/conversations", json={"message": {"content": "Grüße", "images": [image]}}))
    await save(bob, "/prompts", name="Mail", content="Dear")
    hers, his = good(await ann.get("/storage")), good(await bob.get("/storage"))
    own = {"image_bytes": 12, "limit_bytes": None, "conversations": 1, "images": 1, "daily_backups": 7} | {
        "document_bytes": 0,
        "documents": 0,
    }
    assert his == own | {"used_bytes": 7 + 12 + 4, "server": None}
    server = hers.pop("server")
    assert hers == own | {"used_bytes": 7 + 12}
    assert (
        (server["image_bytes"], server["document_bytes"]) == (24, 0)
        and server["database_bytes"] > 10_000
        and server["free_bytes"] > 0
    )
    assert server["backups"] == server["backup_bytes"] == 0
