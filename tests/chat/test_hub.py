"""How an answer begins, who reads it, and which model writes it."""

from pathlib import Path
from typing import Any

from ..live import Person, Running, code, good, text
from ..upstream import DONE, LocalModel, Upstream, finish, refused_url, usage
from ..upstream import text as says
from ..witness import MODEL

SERVER = '[[providers]]\nid = "{}"\nkind = "openai"\nurl = "{}"\n'


async def test_answer_is_streamed_saved_and_replayed(ann: Person, upstream: Upstream) -> None:
    conversation_id = await ann.conversation("What is the capital of Japan?")
    upstream.enqueue(says("The capital", " is"), says(" Tokyo."), finish("stop"), usage(12, 3), DONE)
    live = await ann.answer(conversation_id, **MODEL)
    assert [event.id for event in live] == list(range(1, len(live) + 1))
    assert text(live) == "The capital is Tokyo." and live[-1].data["status"] == "ok"
    question, reply = await ann.messages(conversation_id)
    assert reply["content"] == "The capital is Tokyo." and reply["parent_id"] == question["id"]
    assert reply["token_usage"] == {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}
    for request in ({}, MODEL, MODEL | {"temperature": 1.5}):
        assert await ann.answer(conversation_id, **request) == live
    assert len(upstream.chats) == 1


async def test_new_conversations_have_the_defaults_of_their_user(ann: Person, bob: Person, upstream: Upstream) -> None:
    empty: dict[str, Any] = {"system_prompt": "", "settings": {}, "preset_id": None, "provider_id": None, "model": None}
    assert good(await ann.get("/defaults")) == empty
    before = await ann.conversation("Hello?")
    defaults = {"system_prompt": "Be brief.", "settings": {"temperature": 0.2, "max_tokens": 9}}
    good(await ann.patch("/defaults", json=defaults | {"settings": {"top_k": 5}}))
    assert good(await ann.patch("/defaults", json={"settings": defaults["settings"]})) == empty | defaults
    assert good(await ann.get("/defaults")) == empty | defaults
    await ann.answer(await ann.conversation("Hello?"), **MODEL)
    await ann.answer(await ann.conversation("Hello?", system_prompt="", settings={"temperature": 1}), **MODEL)
    await ann.answer(before, **MODEL)
    system = {"role": "system", "content": "Be brief."}
    sent = [(chat["messages"][0] == system, chat.get("temperature"), chat.get("max_tokens")) for chat in upstream.chats]
    assert sent == [(True, 0.2, 9), (False, 1, None), (False, None, None)]
    assert good(await bob.get("/defaults")) == empty


async def test_model_is_the_requested_then_the_conversations_then_an_offered_one(
    tmp_path: Path, upstream: Upstream
) -> None:
    with Upstream() as other:
        other.models = [LocalModel("patient", "Patient")]
        (tmp_path / "config.toml").write_text(SERVER.format("box", f"{other.url}/v1"), "utf-8")
        async with Running(tmp_path, lmstudio_url=upstream.url) as running:
            ann = await running.first()

            async def answered_by(conversation_id: int, **request: str) -> tuple[str, str]:
                await ann.answer(conversation_id, **request)
                message = (await ann.messages(conversation_id))[-1]
                await ann.say(conversation_id, "And then?")
                return message["provider_id"], message["model"]

            loaded, named = ("lmstudio", MODEL["model"]), ("lmstudio", "qwen2.5-vl-7b-instruct")
            conversation_id = await ann.conversation("Why?")
            assert await answered_by(conversation_id) == loaded
            assert await answered_by(conversation_id, model=named[1]) == named
            assert await answered_by(conversation_id) == named
            assert await answered_by(conversation_id, provider_id="box") == ("box", "patient")
            assert await answered_by(conversation_id) == ("box", "patient")
            assert await answered_by(await ann.conversation("Why?", provider_id="box")) == ("box", "patient")
            assert await answered_by(await ann.conversation("Why?", model="patient")) == ("box", "patient")
            assert await answered_by(conversation_id, model=loaded[1]) == loaded  # the conversation's server lacks it
            other.models.append(LocalModel(MODEL["model"]))
            good(await ann.get("/providers"))  # asks for the models again
            assert await answered_by(await ann.conversation("Why?", provider_id="box"), model=loaded[1]) == (
                "box", loaded[1],
            )  # fmt: skip

            gone = {"provider_id": "gone"}
            assert await answered_by(await ann.conversation("Why?", **gone, model="patient")) == ("box", "patient")
            assert await answered_by(await ann.conversation("Why?", **gone, model="gone")) == loaded
            assert await answered_by(await ann.conversation("Why?", **gone)) == loaded
            assert code(await ann.post(f"/conversations/{conversation_id}/stream", json=gone)) == (
                404, "PROVIDER_NOT_FOUND",
            )  # fmt: skip


async def test_without_a_model_server_an_answer_is_replayed_but_none_begins(tmp_path: Path, upstream: Upstream) -> None:
    offline = SERVER.format("embedded", refused_url())
    (tmp_path / "config.toml").write_text(offline + SERVER.format("box", f"{upstream.url}/v1"), "utf-8")
    async with Running(tmp_path, lmstudio_url=refused_url()) as running:
        ann = await running.first()
        conversation_id = await ann.conversation("Hello?")
        events = await ann.answer(conversation_id)
        assert events[-1].data["status"] == "ok"
    (tmp_path / "config.toml").write_text(offline, "utf-8")
    retry = {"conversation_id": conversation_id}
    async with Running(tmp_path, lmstudio_url=refused_url()) as running:
        ann = await running.login("ann")
        assert await ann.answer(conversation_id) == events
        assert code(await ann.post("/chat/retry", json=retry)) == (400, "VALIDATION_ERROR")
    async with Running(tmp_path, lmstudio_url=upstream.url) as running:
        ann = await running.login("ann")
        good(await ann.post("/chat/retry", json=retry))
        assert (await ann.messages(conversation_id))[-1]["provider_id"] == "lmstudio"
