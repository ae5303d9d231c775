"""The request for an answer is built again, byte for byte, from what is stored."""

import base64
import hashlib
import random

from ..documents import library
from ..exports import png
from ..live import Person, Running, code, good
from ..trials import FULL, TRIALS
from ..upstream import DONE, Upstream, finish, status
from ..upstream import text as says
from ..witness import MODEL

CHAT = "/v1/chat/completions"
VISION = {"provider_id": "lmstudio", "model": "qwen2.5-vl-7b-instruct"}
STEPS = 1000 if TRIALS >= FULL else 50  # answers in all
STEPS_PER_CONVERSATION = 25
WORDS = ("Grüße", "東京", "😀", '"quoted"', "\u2028", "\\", "{}", "word " * 400)


async def receipt(person: Person, message_id: int) -> dict[str, object]:
    found: dict[str, object] = good(await person.get(f"/messages/{message_id}/request"))
    return found


async def test_requests_of_random_histories_are_built_again(ann: Person, running: Running, upstream: Upstream) -> None:
    """With long texts, images, documents, versions, edits, continuations, and changes of settings, instructions and contexts."""
    rng = random.Random(1)
    model = next(one for one in upstream.models if one.key == VISION["model"])
    model.instances = {VISION["model"]: 2048}
    omitted = partly = whole = 0
    for _ in range(max(1, STEPS // STEPS_PER_CONVERSATION)):
        conversation_id = await ann.conversation()
        sent: dict[int, bytes] = {}
        answered: list[int] = []
        for _ in range(STEPS_PER_CONVERSATION):
            if rng.random() < 0.2:
                prompt = rng.choice(("", "Be brief.", "Antworte auf Deutsch."))
                settings = rng.choice(
                    ({}, {"temperature": rng.random()}, {"stop": ["x"], "seed": 3, "max_tokens": 100})
                )
                good(
                    await ann.patch(
                        f"/conversations/{conversation_id}", json={"system_prompt": prompt, "settings": settings}
                    )
                )
            upstream.enqueue(says(rng.choice(WORDS), " and more"), finish("stop"), DONE)
            if rng.random() < 0.1:
                model.instances = {VISION["model"]: rng.choice((2048, 8192))}
                good(await ann.get("/providers"))
            action = rng.random()
            if answered and action < 0.2:
                again = {"conversation_id": conversation_id, "message_id": rng.choice(answered), **VISION}
                message_id = good(await ann.post("/chat/retry", json=again))["message_id"]
                await ann.answer(conversation_id)
            elif answered and action < 0.3:
                good(await ann.post("/chat/continue", json={"conversation_id": conversation_id, **VISION}))
                message_id = (await ann.answer(conversation_id))[0].data["message_id"]
            else:
                fields: dict[str, object] = {"parent_id": rng.choice(answered)} if answered and action < 0.4 else {}
                if rng.random() < 0.15:
                    data = [base64.b64encode(png(rng.randrange(255))).decode() for _ in range(rng.randint(1, 3))]
                    fields |= {"images": [{"media_type": "image/png", "data": one} for one in data]}
                said = rng.choices((*WORDS, "whales?", "page 3"), k=rng.randint(1, 4))
                question_id = await ann.say(conversation_id, " ".join(said), **fields)
                for _ in range(rng.choice((0, 0, 0, 1, 2))):
                    pages = [" ".join(rng.choices((*WORDS, "whales"), k=9)) for _ in range(rng.randint(0, 12))]
                    await library.add(running, question_id, rng.choice(WORDS), pages)
                message_id = (await ann.answer(conversation_id, **VISION))[0].data["message_id"]
            answered.append(message_id)
            sent[message_id] = [one for one in upstream.requests if one.path == CHAT][-1].body
        for message_id, body in sent.items():
            found = await receipt(ann, message_id)
            assert (found["body"], found["problem"]) == (body.decode(), None)
            assert found["sha256"] == hashlib.sha256(body).hexdigest()
            assert found["url"] == f"{upstream.url}{CHAT}"
        for message in await ann.messages(conversation_id):
            omitted += (message["stats"] or {}).get("omitted_messages", 0)
            for document in (message["stats"] or {}).get("documents", ()):
                is_whole = document["sent"] == f"1-{document['pages']}"
                whole, partly = whole + is_whole, partly + (not is_whole and bool(document["sent"]))
    assert omitted, "no history was too long for the context"
    assert whole and partly


async def test_request_of_the_last_attempt_is_kept(ann: Person, upstream: Upstream) -> None:
    conversation_id = await ann.conversation("one " * 50)
    upstream.enqueue(says("1"), finish("stop"), DONE)
    await ann.answer(conversation_id, **MODEL)
    await ann.say(conversation_id, "two")
    upstream.enqueue(status(400, {"error": {"message": "the request exceeds the available context size"}}), path=CHAT)
    upstream.enqueue(says("2"), finish("stop"), DONE)
    message_id = (await ann.answer(conversation_id, **MODEL))[0].data["message_id"]
    bodies = [one.body for one in upstream.requests if one.path == CHAT]
    assert (await receipt(ann, message_id))["body"] == bodies[-1].decode() != bodies[-2].decode()


async def test_receipt_says_why_there_is_none(ann: Person, running: Running, upstream: Upstream) -> None:
    conversation = {
        "title": "Old",
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
    }
    good(await ann.post("/import", json=[conversation["messages"]]))
    imported = good(await ann.get("/conversations"))[0]["id"]
    question, answer = await ann.messages(imported)
    for message in (question, answer):
        found = await receipt(ann, message["id"])
        assert found["body"] is found["sha256"] is None and "imported" in str(found["problem"])
    bob = await running.join(ann, "bob")
    for message_id in (answer["id"], 999):
        assert code(await bob.get(f"/messages/{message_id}/request")) == (404, "MESSAGE_NOT_FOUND")
    conversation_id = await bob.conversation("Hello?")
    upstream.enqueue(says("Hi."), finish("stop"), DONE)
    message_id = (await bob.answer(conversation_id, **MODEL))[0].data["message_id"]
    found = await receipt(bob, message_id)
    assert found["url"] is None and found["body"], "the address of a server is for administrators"
    lost = "DELETE FROM sent_system_prompts"  # by salvage
    await running.state.database.write(lambda conn: conn.execute(lost).rowcount)
    assert (await receipt(bob, message_id))["body"], "there were no instructions"
    await bob.patch(f"/conversations/{conversation_id}", json={"system_prompt": "Be brief."})
    upstream.enqueue(says("Hi."), finish("stop"), DONE)
    again = good(await bob.post("/chat/retry", json={"conversation_id": conversation_id, **MODEL}))
    await bob.answer(conversation_id)
    await running.state.database.write(lambda conn: conn.execute(lost).rowcount)
    found = await receipt(bob, again["message_id"])
    assert found["body"] is None and found["problem"]
