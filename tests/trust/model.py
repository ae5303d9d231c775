"""Correctness: after any sequence of operations on conversations and messages, the API returns what a simple model of it does."""

import unicodedata
from dataclasses import dataclass, field
from typing import Any

import httpx
from hypothesis import Phase
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from ..live import code, good, parse_event
from ..witness import MODEL
from . import Figures, fireside_process
from .fuzz import plan

STEPS = 25  # of a sequence
ANSWER = "Hello from upstream."
NOT_FOUND, NO_MESSAGE = (404, "CONVERSATION_NOT_FOUND"), (404, "MESSAGE_NOT_FOUND")

letters = st.sampled_from("abcäÄßéeİ字家 0%_*?[]\"'-")
words = st.text(letters, min_size=1, max_size=40).filter(str.strip)


@dataclass
class Message:
    parent: int | None
    role: str
    content: str


@dataclass
class Conversation:
    title: str = "New conversation"
    named: bool = False
    deleted: bool = False
    system_prompt: str = ""
    pinned: bool = False
    active: int | None = None
    updated: int = 0  # number of the step
    messages: dict[int, Message] = field(default_factory=dict)
    client_ids: dict[str, int] = field(default_factory=dict)

    def path(self) -> list[int]:
        found, message = [], self.active
        while message is not None:
            found.append(message)
            message = self.messages[message].parent
        return found[::-1]

    def question(self) -> int | None:
        return next((id for id in reversed(self.path()) if self.messages[id].role == "user"), None)

    def children(self, parent: int | None) -> list[int]:
        return sorted(id for id, message in self.messages.items() if message.parent == parent)

    def newest_below(self, message: int) -> int:
        while children := self.children(message):
            message = children[-1]
        return message


class Sequence(RuleBasedStateMachine):
    """Operations of Bob. Carl must not see or change anything of his."""

    bob: httpx.Client
    carl: httpx.Client
    steps = 0

    conversations = Bundle("conversations")

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[int, Conversation] = {}
        self.clock = 0

    def update(self, id: int) -> Conversation:
        self.clock += 1
        self.model[id].updated = self.clock
        return self.model[id]

    def visible(self, id: int) -> Conversation | None:
        found = self.model.get(id)
        return None if found is None or found.deleted else found

    def send(
        self, method: str, path: str, body: Any = None, refusal: tuple[int, str] | None = None, **params: Any
    ) -> httpx.Response | None:
        """Send a request of Bob. Return the answer, or None if it must be this refusal and is."""
        type(self).steps += 1
        answer = self.bob.request(method, path, json=body, params=params)
        if refusal is None:
            assert answer.status_code == 200, answer.text
            return answer
        assert code(answer) == refusal, answer.text
        return None

    def refusal(self, id: int) -> tuple[int, str] | None:
        return None if self.visible(id) else NOT_FOUND

    def refusal_to_answer(self, id: int) -> tuple[int, str] | None:
        known = self.visible(id)
        return (400, "NO_USER_MESSAGE") if known and known.question() is None else self.refusal(id)

    @rule(target=conversations, title=st.none() | words)
    def create(self, title: str | None) -> int:
        made = self.send("POST", "/conversations", {"title": title} if title else {})
        assert made
        id: int = made.json()["id"]
        self.model[id] = Conversation(title or "New conversation", named=bool(title))
        self.update(id)
        return id

    @rule(id=conversations, title=words)
    def rename(self, id: int, title: str) -> None:
        if self.send("PATCH", f"/conversations/{id}", {"title": title}, self.refusal(id)):
            self.model[id].title, self.model[id].named = title, True

    @rule(id=conversations, prompt=st.text(letters, max_size=20), pinned=st.booleans())
    def change(self, id: int, prompt: str, pinned: bool) -> None:
        body = {"system_prompt": prompt, "pinned": pinned}
        if self.send("PATCH", f"/conversations/{id}", body, self.refusal(id)):
            self.model[id].system_prompt, self.model[id].pinned = prompt, pinned

    @rule(id=conversations)
    def delete(self, id: int) -> None:
        if self.send("DELETE", f"/conversations/{id}", None, self.refusal(id)):
            self.model[id].deleted = True

    @rule(id=conversations)
    def restore(self, id: int) -> None:
        deleted = id in self.model and self.model[id].deleted
        if self.send("POST", f"/conversations/{id}/restore", None, None if deleted else NOT_FOUND):
            self.model[id].deleted = False

    @rule(id=conversations)
    def purge(self, id: int) -> None:
        refusal = None if id in self.model else NOT_FOUND
        if self.send("DELETE", f"/conversations/{id}", None, refusal, purge="true"):
            del self.model[id]

    @rule(id=conversations, content=words, place=st.integers(0, 6), client_id=st.none() | st.sampled_from("ab"))
    def add_message(self, id: int, content: str, place: int, client_id: str | None) -> None:
        """At the end of the path, as a first message, or below any message, which makes a branch."""
        known = self.model.get(id, Conversation())
        body: dict[str, Any] = {"content": content, "client_id": client_id}
        parent = known.active
        if place == 1:
            parent = body["parent_id"] = None
        elif place > 1 and known.messages:
            parent = body["parent_id"] = sorted(known.messages)[place % len(known.messages)]
        answer = self.send("POST", f"/conversations/{id}/messages", body, self.refusal(id))
        if not answer:
            return
        message_id = answer.json()["message_id"]
        if client_id in known.client_ids:
            assert message_id == known.client_ids[client_id]
            return
        self.update(id)
        known.active = message_id
        known.messages[message_id] = Message(parent, "user", content)
        if client_id:
            known.client_ids[client_id] = message_id
        if parent is None and not known.named:
            known.title = " ".join(content.split())

    @rule(id=conversations)
    def answer(self, id: int) -> None:
        if answer := self.send("POST", f"/conversations/{id}/stream", MODEL, self.refusal_to_answer(id)):
            known = self.model[id]
            self._check_answer(id, answer, known.active if known.active != known.question() else None)

    @rule(id=conversations)
    def retry(self, id: int) -> None:
        if begun := self.send("POST", "/chat/retry", {"conversation_id": id, **MODEL}, self.refusal_to_answer(id)):
            self._check_answer(id, self.bob.get(f"/generations/{begun.json()['generation_id']}/stream"), None)

    def _check_answer(self, id: int, answer: httpx.Response, replayed: int | None) -> None:
        events = [parse_event(block) for block in answer.content.split(b"\n\n") if block]
        assert "".join(event.data["delta"] for event in events if event.event == "delta") == ANSWER
        assert events[-1].event == "done" and events[-1].data["status"] == "ok"
        message_id = events[-1].data["message_id"]
        if replayed is not None:
            assert message_id == replayed
            return
        known = self.update(id)
        known.messages[message_id] = Message(known.question(), "assistant", ANSWER)
        known.active = message_id

    @rule(id=conversations, which=st.integers(0, 20))
    def select(self, id: int, which: int) -> None:
        known = self.model.get(id, Conversation())
        message = sorted(known.messages)[which % len(known.messages)] if known.messages else 1
        refusal = self.refusal(id) or (None if known.messages else NO_MESSAGE)
        if answer := self.send("POST", f"/conversations/{id}/active", {"message_id": message}, refusal):
            known.active = known.newest_below(message)
            assert answer.json()["active_message_id"] == known.active

    @rule(id=conversations, limit=st.integers(1, 4))
    def page(self, id: int, limit: int) -> None:
        if found := self.send("GET", f"/conversations/{id}/messages", None, self.refusal(id), limit=limit):
            assert [message["id"] for message in found.json()] == self.model[id].path()[-limit:]

    @rule(q=st.text(letters, min_size=1, max_size=4))
    def filter(self, q: str) -> None:
        found = self.send("GET", "/conversations", q=q)
        assert found
        matching = [id for id, one in self.model.items() if not one.deleted and _key(q) in _key(one.title)]
        assert [one["id"] for one in found.json()] == self._newest_first(matching)

    def _newest_first(self, ids: Any) -> list[int]:
        return sorted(ids, key=lambda id: self.model[id].updated, reverse=True)

    @rule(
        id=conversations,
        request=st.sampled_from(("GET", "PATCH", "DELETE", "POST messages", "POST stream", "GET messages")),
    )
    def use_as_another_user(self, id: int, request: str) -> None:
        type(self).steps += 1
        method, _, end = request.partition(" ")
        body = None if method == "GET" else {"content": "Hello?"} if end == "messages" else {}
        answer = self.carl.request(method, f"/conversations/{id}/{end}".rstrip("/"), json=body)
        assert code(answer) == NOT_FOUND, answer.text

    @rule(id=conversations)
    def read(self, id: int) -> None:
        found = self.send("GET", f"/conversations/{id}/messages", None, self.refusal(id))
        if found is None:
            return
        known, messages = self.model[id], found.json()
        assert [message["id"] for message in messages] == known.path()
        for message in messages:
            one = known.messages[message["id"]]
            assert (message["parent_id"], message["role"], message["content"]) == (one.parent, one.role, one.content)
            siblings = known.children(one.parent)
            versions = message["versions"]
            assert (versions["ids"], versions["index"]) == (siblings, siblings.index(message["id"]))

    @invariant()
    def lists_agree(self) -> None:
        for deleted in (False, True):
            found = good(self.bob.get("/conversations", params={"deleted": "true"} if deleted else {}))
            listed = {
                one["id"]: (one["title"], one["system_prompt"], one["pinned"], one["generation_id"]) for one in found
            }
            known = {id: one for id, one in self.model.items() if one.deleted == deleted}
            assert listed == {id: (one.title, one.system_prompt, one.pinned, None) for id, one in known.items()}
            if not deleted:
                assert [one["id"] for one in found] == self._newest_first(listed)
        assert good(self.carl.get("/conversations")) == []

    def teardown(self) -> None:
        for id in self.model:
            good(self.bob.delete(f"/conversations/{id}?purge=true"))


def _key(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def prove(size: int) -> Figures:
    sequences = max(1, size // STEPS)
    figures = Figures(more=f"{sequences} sequences of {STEPS} steps")
    with fireside_process() as (fireside, _):
        ann = fireside.first()
        Sequence.bob, Sequence.carl, Sequence.steps = fireside.join(ann, "bob"), fireside.join(ann, "carl"), 0
        try:
            settings = plan(sequences, stateful_step_count=STEPS, phases=[Phase.generate, Phase.shrink])
            run_state_machine_as_test(Sequence, settings=settings)
        except Exception as error:
            figures.wrong.append("\n".join((repr(error), *getattr(error, "__notes__", ()))))
    figures.cases = Sequence.steps
    return figures
