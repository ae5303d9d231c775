"""The API against a plain dictionary: whatever is done to conversations and messages, in any order, both must say the same."""

import tempfile
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule, run_state_machine_as_test

from ..browser import NO_ENGINE, Fireside
from ..live import good, parse_event
from ..upstream import Upstream
from . import Figures

STEPS = 25  # of one story
ANSWER = "Hello from upstream."
MODEL = {"provider_id": "lmstudio", "model": "llama-3.2-3b-instruct"}

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
    touched: int = 0  # when, in steps
    messages: dict[int, Message] = field(default_factory=dict)
    client_ids: dict[str, int] = field(default_factory=dict)

    def path(self) -> list[int]:
        found, at = [], self.active
        while at is not None:
            found.append(at)
            at = self.messages[at].parent
        return found[::-1]

    def question(self) -> int | None:
        return next((id for id in reversed(self.path()) if self.messages[id].role == "user"), None)

    def newest_below(self, message: int) -> int:
        while children := [id for id, other in self.messages.items() if other.parent == message]:
            message = max(children)
        return message


class Story(RuleBasedStateMachine):
    """Bob does things; Carl must see and touch nothing of it."""

    bob: httpx.Client
    carl: httpx.Client
    steps = 0

    conversations = Bundle("conversations")

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[int, Conversation] = {}
        self.clock = 0

    def touch(self, id: int) -> Conversation:
        self.clock += 1
        self.model[id].touched = self.clock
        return self.model[id]

    def missing(self, id: int) -> bool:
        return id not in self.model or self.model[id].deleted

    def asked(self, id: int, answer: httpx.Response, *, there: bool | None = None) -> Any:
        """The answer's JSON; None, and it must have been a 404, when the conversation is not there."""
        type(self).steps += 1
        if not (there if there is not None else not self.missing(id)):
            assert answer.status_code == 404 and answer.json()["code"] == "CONVERSATION_NOT_FOUND", answer.text
            return None
        return good(answer)

    @rule(target=conversations, title=st.none() | words)
    def create(self, title: str | None) -> Any:
        type(self).steps += 1
        made = good(self.bob.post("/conversations", json={"title": title} if title else {}))
        self.model[made["id"]] = Conversation(title or "New conversation", named=bool(title))
        self.touch(made["id"])
        return multiple(made["id"])

    @rule(id=conversations, title=words)
    def rename(self, id: int, title: str) -> None:
        if self.asked(id, self.bob.patch(f"/conversations/{id}", json={"title": title})):
            self.model[id].title, self.model[id].named = title, True

    @rule(id=conversations, prompt=st.text(letters, max_size=20), pinned=st.booleans())
    def change(self, id: int, prompt: str, pinned: bool) -> None:
        if self.asked(id, self.bob.patch(f"/conversations/{id}", json={"system_prompt": prompt, "pinned": pinned})):
            self.model[id].system_prompt, self.model[id].pinned = prompt, pinned

    @rule(id=conversations)
    def delete(self, id: int) -> None:
        if self.asked(id, self.bob.delete(f"/conversations/{id}")):
            self.model[id].deleted = True

    @rule(id=conversations)
    def restore(self, id: int) -> None:
        there = id in self.model and self.model[id].deleted
        if self.asked(id, self.bob.post(f"/conversations/{id}/restore"), there=there):
            self.model[id].deleted = False

    @rule(id=conversations)
    def purge(self, id: int) -> None:
        if self.asked(id, self.bob.delete(f"/conversations/{id}?purge=true"), there=id in self.model):
            del self.model[id]

    @rule(id=conversations, content=words, place=st.integers(0, 6), client_id=st.none() | st.sampled_from("ab"))
    def say(self, id: int, content: str, place: int, client_id: str | None) -> None:
        """At the end of the path; as a first message; or below any message, which makes a branch."""
        known = self.model.get(id, Conversation())
        body: dict[str, Any] = {"content": content, "client_id": client_id}
        parent = known.active
        if place == 1:
            parent = body["parent_id"] = None
        elif place > 1 and known.messages:
            parent = body["parent_id"] = sorted(known.messages)[place % len(known.messages)]
        told = self.asked(id, self.bob.post(f"/conversations/{id}/messages", json=body))
        if not told:
            return
        if client_id in known.client_ids:
            assert told["message_id"] == known.client_ids[client_id]
            return
        self.touch(id)
        message_id = known.active = told["message_id"]
        known.messages[message_id] = Message(parent, "user", content)
        if client_id:
            known.client_ids[client_id] = message_id
        if parent is None and not known.named:
            known.title = " ".join(content.split())

    @rule(id=conversations)
    def answer(self, id: int) -> None:
        answer = self.bob.post(f"/conversations/{id}/stream", json=MODEL)
        known = self.model.get(id, Conversation())
        if not self.missing(id) and known.question() is None:
            type(self).steps += 1
            assert answer.status_code == 400 and answer.json()["code"] == "NO_USER_MESSAGE"
            return
        if self.missing(id):
            self.asked(id, answer)
            return
        type(self).steps += 1
        assert answer.status_code == 200, answer.text
        self._answered(id, answer, known.active if known.active != known.question() else None)

    @rule(id=conversations)
    def retry(self, id: int) -> None:
        answer = self.bob.post("/chat/retry", json={"conversation_id": id, **MODEL})
        if not self.missing(id) and self.model[id].question() is None:
            type(self).steps += 1
            assert answer.status_code == 400 and answer.json()["code"] == "NO_USER_MESSAGE"
        elif begun := self.asked(id, answer):
            self._answered(id, self.bob.get(f"/generations/{begun['generation_id']}/stream"), None)

    def _answered(self, id: int, answer: httpx.Response, replayed: int | None) -> None:
        events = [parse_event(block) for block in answer.content.split(b"\n\n") if block]
        assert "".join(event.data["delta"] for event in events if event.event == "delta") == ANSWER
        assert events[-1].event == "done" and events[-1].data["status"] == "ok"
        message_id = events[-1].data["message_id"]
        if replayed is not None:
            assert message_id == replayed
            return
        known = self.touch(id)
        known.messages[message_id] = Message(known.question(), "assistant", ANSWER)
        known.active = message_id

    @rule(id=conversations, which=st.integers(0, 20))
    def select(self, id: int, which: int) -> None:
        known = self.model.get(id, Conversation())
        message = sorted(known.messages)[which % len(known.messages)] if known.messages else 1
        answer = self.bob.post(f"/conversations/{id}/active", json={"message_id": message})
        if not self.missing(id) and not known.messages:
            type(self).steps += 1
            assert answer.status_code == 404 and answer.json()["code"] == "MESSAGE_NOT_FOUND"
        elif told := self.asked(id, answer):
            known.active = known.newest_below(message)
            assert told["active_message_id"] == known.active

    @rule(id=conversations, limit=st.integers(1, 4))
    def page(self, id: int, limit: int) -> None:
        found = self.asked(id, self.bob.get(f"/conversations/{id}/messages", params={"limit": limit}))
        if found is not None:
            assert [message["id"] for message in found] == self.model[id].path()[-limit:]

    @rule(q=st.text(letters, min_size=1, max_size=4))
    def filter(self, q: str) -> None:
        type(self).steps += 1
        found = good(self.bob.get("/conversations", params={"q": q}))
        there = [(one.touched, id) for id, one in self.model.items() if not one.deleted and _key(q) in _key(one.title)]
        assert [one["id"] for one in found] == [id for _, id in sorted(there, reverse=True)]

    @rule(
        id=conversations,
        verb=st.sampled_from(("GET", "PATCH", "DELETE", "POST messages", "POST stream", "GET messages")),
    )
    def meddle(self, id: int, verb: str) -> None:
        """Carl tries."""
        type(self).steps += 1
        method, _, end = verb.partition(" ")
        body = {"content": "Hello?"} if end == "messages" else {}
        answer = self.carl.request(
            method, f"/conversations/{id}{end and '/'}{end}", json=None if method == "GET" else body
        )
        assert answer.status_code == 404 and answer.json()["code"] == "CONVERSATION_NOT_FOUND", answer.text

    @rule(id=conversations)
    def look(self, id: int) -> None:
        found = self.asked(id, self.bob.get(f"/conversations/{id}/messages"))
        if found is None:
            return
        known = self.model[id]
        assert [message["id"] for message in found] == known.path()
        for message in found:
            one = known.messages[message["id"]]
            assert (message["parent_id"], message["role"], message["content"]) == (one.parent, one.role, one.content)
            siblings = sorted(id for id, other in known.messages.items() if other.parent == one.parent)
            assert message["versions"] == {"ids": siblings, "index": siblings.index(message["id"])}

    @invariant()
    def both_list_the_same(self) -> None:
        for deleted in (False, True):
            found = good(self.bob.get("/conversations", params={"deleted": "true"} if deleted else {}))
            listed = {
                one["id"]: (one["title"], one["system_prompt"], one["pinned"], one["generation_id"]) for one in found
            }
            assert listed == {
                id: (one.title, one.system_prompt, one.pinned, None)
                for id, one in self.model.items()
                if one.deleted == deleted
            }
            if not deleted:
                order = sorted(listed, key=lambda id: self.model[id].touched, reverse=True)
                assert [one["id"] for one in found] == order
        assert good(self.carl.get("/conversations")) == []

    def teardown(self) -> None:
        for id in self.model:
            good(self.bob.delete(f"/conversations/{id}?purge=true"))


def _key(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def prove(size: int) -> Figures:
    plan = settings(
        max_examples=max(1, size // STEPS),
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    figures = Figures(more=f"{plan.max_examples} stories of {STEPS} steps")
    with (
        tempfile.TemporaryDirectory() as folder,
        Upstream() as upstream,
        Fireside(Path(folder) / "data", NO_ENGINE, lmstudio_url=upstream.url) as fireside,
    ):
        ann = fireside.first()
        Story.bob, Story.carl, Story.steps = fireside.join(ann, "bob"), fireside.join(ann, "carl"), 0
        try:
            run_state_machine_as_test(Story, settings=plan)
        except Exception as error:
            figures.wrong.append("\n".join((repr(error), *getattr(error, "__notes__", ()))))
    figures.cases = Story.steps
    return figures
