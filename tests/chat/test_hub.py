from pathlib import Path

from ..live import Person, Running, code, good, text, until
from ..upstream import DONE, Gate, LocalModel, Upstream, answer, finish, pause, refused_url, usage
from ..upstream import text as says

MODEL = {"provider_id": "lmstudio", "model": "llama-3.2-3b-instruct"}


async def test_an_answer_is_streamed_kept_and_replayed_with_the_same_events(ann: Person, upstream: Upstream) -> None:
    conversation_id = await ann.conversation("What is the capital of Japan?")
    upstream.enqueue(says("The capital", " is"), says(" Tokyo."), finish("stop"), usage(12, 3), DONE)
    live = await ann.answer(conversation_id, **MODEL)
    assert [event.event for event in live][:2] == ["ping", "progress"]
    assert [event.id for event in live] == list(range(1, len(live) + 1))
    assert text(live) == "The capital is Tokyo."
    assert live[-1].event == "done" and live[-1].data["status"] == "ok"
    question, reply = await ann.messages(conversation_id)
    assert reply["content"] == "The capital is Tokyo." and reply["parent_id"] == question["id"]
    assert reply["token_usage"] == {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}
    assert await ann.answer(conversation_id) == live
    assert len(upstream.chats) == 1


async def test_new_conversations_begin_with_the_defaults_of_their_user(
    ann: Person, bob: Person, upstream: Upstream
) -> None:
    assert good(await ann.get("/defaults")) == {"system_prompt": "", "settings": {}}
    before = await ann.conversation("Hello?")
    wanted = {"system_prompt": "Be brief.", "settings": {"temperature": 0.2, "max_tokens": 9}}
    good(await ann.patch("/defaults", json=wanted | {"settings": {"top_k": 5}}))
    assert good(await ann.patch("/defaults", json={"settings": wanted["settings"]})) == wanted
    assert good(await ann.get("/defaults")) == wanted
    upstream.enqueue(answer("Hi"), answer("Hi"), answer("Hi"))
    await ann.answer(await ann.conversation("Hello?"), **MODEL)
    await ann.answer(await ann.conversation("Hello?", system_prompt="", settings={"temperature": 1}), **MODEL)
    await ann.answer(before, **MODEL)
    asked = upstream.chats
    system = {"role": "system", "content": "Be brief."}
    assert [body["messages"][0] == system for body in asked] == [True, False, False]
    assert [body.get("temperature") for body in asked] == [0.2, 1, None]
    assert [body.get("max_tokens") for body in asked] == [9, None, None]
    assert good(await bob.get("/defaults")) == {"system_prompt": "", "settings": {}}


async def test_a_reader_who_leaves_does_not_stop_the_answer(ann: Person, upstream: Upstream, running: Running) -> None:
    conversation_id = await ann.conversation("Hello?")
    gate = Gate()
    upstream.enqueue(says("one "), pause(gate), says("two"), finish("stop"), DONE)
    async with ann.streaming(conversation_id, **MODEL) as events:
        async for event in events:
            if event.event == "delta":
                break
    gate.open()
    await until(lambda: not running.state.hub.generations)
    assert (await ann.messages(conversation_id))[-1]["content"] == "one two"


async def test_cancel_returns_when_the_upstream_is_closed_and_the_text_saved(ann: Person, upstream: Upstream) -> None:
    conversation_id = await ann.conversation("Hello?")
    upstream.enqueue(says("one "), pause(Gate()))
    async with ann.streaming(conversation_id, **MODEL) as events:
        seen = []
        async for event in events:
            seen.append(event)
            if event.event == "delta":
                answer = await ann.post(f"/chat/cancel/{event.data['generation_id']}")
                assert good(answer) == {"message": "Generation canceled"}
                await upstream.closed()
                message = (await ann.messages(conversation_id))[-1]
                assert (message["content"], message["status"]) == ("one ", "canceled")
    assert seen[-1].data["status"] == "canceled"
    again = await ann.post(f"/chat/cancel/{seen[0].data['generation_id']}")
    assert code(again) == (404, "GENERATION_NOT_FOUND")


async def test_retry_makes_another_version_and_keeps_the_first(ann: Person, upstream: Upstream) -> None:
    conversation_id = await ann.conversation("Hello?")
    upstream.enqueue(answer("first"))
    await ann.answer(conversation_id, **MODEL)
    upstream.enqueue(answer("second"))
    made = good(await ann.post("/chat/retry", json={"conversation_id": conversation_id, **MODEL}))
    async with ann.resuming(made["generation_id"]) as events:
        assert text([event async for event in events]) == "second"
    reply = (await ann.messages(conversation_id))[-1]
    assert reply["id"] == made["message_id"] and reply["versions"]["index"] == 1
    first = reply["versions"]["ids"][0]
    good(await ann.post(f"/conversations/{conversation_id}/active", json={"message_id": first}))
    assert (await ann.messages(conversation_id))[-1]["content"] == "first"


async def test_the_end_of_the_last_session_ends_the_answer(
    running: Running, ann: Person, bob: Person, upstream: Upstream
) -> None:
    conversation_id = await bob.conversation("Hello?")
    upstream.enqueue(says("one "), pause(Gate()))
    second = await running.login("bob")
    async with bob.streaming(conversation_id, **MODEL) as events:
        async for event in events:
            if event.event == "delta":
                await end_sessions(second, bob)
    await upstream.closed()
    status = [user["status"] for user in good(await ann.get("/admin/users"))["users"]]
    assert status == ["active", "active"]
    third = await running.login("bob")
    assert (await third.messages(conversation_id))[-1]["status"] == "canceled"


async def end_sessions(*people: Person) -> None:
    for person in people:
        sessions = good(await person.get("/auth/sessions"))["sessions"]
        own = next(session["id"] for session in sessions if session["current"])
        good(await person.delete(f"/auth/sessions/{own}"))


async def test_a_conversation_with_a_provider_is_answered_by_a_model_of_that_provider(ann: Person) -> None:
    conversation_id = await ann.conversation("Hello?", provider_id="embedded")
    done = (await ann.answer(conversation_id, max_tokens=3))[-1]
    assert done.data["status"] == "ok"
    answered = (await ann.messages(conversation_id))[-1]
    assert (answered["provider_id"], answered["model"]) == ("embedded", "smollm2-135m-instruct")


async def test_a_conversation_with_a_model_is_answered_by_a_server_that_has_it(ann: Person, upstream: Upstream) -> None:
    """Also where another server has one that is loaded."""
    upstream.models = [LocalModel("patient", "Patient")]
    await ann.answer(await ann.conversation("Hello?"), provider_id="embedded", max_tokens=1)
    conversation_id = await ann.conversation("Hello?", model="patient")
    upstream.enqueue(answer("Here"))
    assert (await ann.answer(conversation_id))[-1].data["status"] == "ok"
    assert (await ann.messages(conversation_id))[-1]["provider_id"] == "lmstudio"


async def test_without_a_model_server_an_answer_is_replayed_but_none_begins(tmp_path: Path, upstream: Upstream) -> None:
    server = '[[providers]]\nid = "{}"\nkind = "openai"\nurl = "{}"\n'
    offline = server.format("embedded", refused_url())
    (tmp_path / "config.toml").write_text(offline + server.format("box", f"{upstream.url}/v1"), "utf-8")
    async with Running(tmp_path, lmstudio_url=refused_url()) as running:
        ann = await running.first()
        conversation_id = await ann.conversation("Hello?")
        upstream.enqueue(answer("Hi"))
        events = await ann.answer(conversation_id)
        assert text(events) == "Hi"
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
