"""`python -m tests.conformance URL --user NAME --password PASSWORD`: check a server's event streams against docs/api.md.

It needs the server, an account on it, a model that answers, and httpx; nothing of Fireside. It asks a few questions in conversations of its
own, which it deletes. It prints a line for each rule, and exits with 1 if one of them is broken.
"""

import argparse
import asyncio
import contextlib
import json
import re
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

QUESTION = "Count from 1 to 40, each number on its own line. Write nothing else."
READERS = 5
SECONDS = 120.0  # for a model that has to be loaded first
STATUS = {"ok": "complete", "canceled": "canceled", "interrupted": "interrupted", "error": "error"}
POLL_SECONDS = 0.1
UNSEEN = 10**6  # the id of an event that no short answer has


class Broken(Exception):
    """What a server did instead of what the rule says."""


def expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Broken(otherwise)


@dataclass(frozen=True)
class Event:
    id: int | None
    name: str
    data: dict[str, Any]


class Events:
    """The events of a stream as they arrive."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[Event]:
        buffer = b""
        async for chunk in self._response.aiter_raw():
            buffer += chunk
            *blocks, buffer = re.split(rb"(?:\r\n|\n|\r){2}", buffer)
            for block in blocks:
                yield _event(block)
        expect(not buffer.strip(), "The stream ended in the middle of an event.")


def _event(block: bytes) -> Event:
    fields: dict[str, str] = {}
    for line in re.split("\r\n|\n|\r", block.decode()):
        name, _, value = line.partition(":")
        fields[name] = value.removeprefix(" ")
    try:
        data = json.loads(fields["data"])
        number = int(fields["id"]) if "id" in fields else None
        event = Event(number, fields["event"], data)
        uuid.UUID(data["generation_id"])
    except (KeyError, ValueError, TypeError):
        raise Broken(f"This is no event with a name and a JSON object with generation_id: {block[:200]!r}") from None
    return event


def without_pings(events: list[Event]) -> list[Event]:
    """Return the events that are stored: a ping after a silence has no id and is not repeated."""
    return [event for event in events if event.id is not None]


def text(events: list[Event], name: str = "delta") -> str:
    return "".join(event.data["delta"] for event in events if event.name == name)


class Server:
    """A signed-in client, with the streaming requests of docs/api.md."""

    def __init__(self, http: httpx.AsyncClient, choice: dict[str, str]) -> None:
        self.http = http
        self._choice = choice
        self._conversations: list[int] = []

    async def sign_in(self, username: str, password: str) -> None:
        signed_in = await self.call("POST", "auth/login", {"username": username, "password": password})
        self.http.headers["X-CSRF-Token"] = signed_in["csrf_token"]

    async def call(self, method: str, path: str, body: Any = None, status: int = 200) -> Any:
        response = await self.http.request(method, path, json=body)
        expect(response.status_code == status, f"{method} /{path} gave {response.status_code}, not {status}.")
        return response.json()

    async def ask(self) -> int:
        """Return a new conversation with a question."""
        conversation_id: int = (await self.call("POST", "conversations", {"title": "conformance"}))["id"]
        self._conversations.append(conversation_id)
        await self.call("POST", f"conversations/{conversation_id}/messages", {"content": QUESTION})
        return conversation_id

    @contextlib.asynccontextmanager
    async def stream(self, conversation_id: int) -> AsyncIterator[AsyncIterator[Event]]:
        """Start or follow the answer of a conversation."""
        path = f"conversations/{conversation_id}/stream"
        async with self.http.stream("POST", path, json=self._choice) as response:
            yield aiter(_streamed(response))

    @contextlib.asynccontextmanager
    async def resume(self, generation_id: str, after: int, how: str) -> AsyncIterator[AsyncIterator[Event]]:
        """Follow the events after one, which `how` names: "header" or "query"."""
        headers = {"Last-Event-ID": str(after)} if how == "header" else {}
        query = {"after": after} if how == "query" else {}
        path = f"generations/{generation_id}/stream"
        async with self.http.stream("GET", path, headers=headers, params=query) as response:
            yield aiter(_streamed(response))

    async def answer(self, conversation_id: int) -> list[Event]:
        async with self.stream(conversation_id) as events:
            return without_pings([event async for event in events])

    async def rest(self, generation_id: str, after: int, how: str) -> list[Event]:
        async with self.resume(generation_id, after, how) as events:
            return [event async for event in events if event.id is not None or event.name != "ping"]

    async def message(self, conversation_id: int) -> dict[str, Any]:
        """Return the only answer of a conversation."""
        messages = await self.call("GET", f"conversations/{conversation_id}/messages")
        expect(len(messages) == 2, f"The conversation has {len(messages)} messages, not a question and an answer.")
        answer: dict[str, Any] = messages[1]
        expect(len(answer["versions"]["ids"]) == 1, "The question was answered more than once.")
        return answer

    async def clean_up(self) -> None:
        for conversation_id in self._conversations:
            await self.http.delete(f"conversations/{conversation_id}", params={"purge": "true"})


def _streamed(response: httpx.Response) -> Events:
    expect(response.status_code == 200, f"The stream's status is {response.status_code}.")
    kind = response.headers.get("content-type", "").partition(";")[0]
    expect(kind == "text/event-stream", f"The stream's content type is {kind}.")
    return Events(response)


async def until_text(events: AsyncIterator[Event], count: int = 2) -> list[Event]:
    """Return the events up to this many deltas. The answer must still be running then."""
    read: list[Event] = []
    async for event in events:
        read.append(event)
        expect(event.name != "done", "The answer ended before this could be checked: use a slower model.")
        if sum(one.name == "delta" for one in read) == count:
            break
    return read


# ---- the rules, each with a conversation of its own


async def start(server: Server) -> None:
    """POST .../stream answers the question: a ping that names the answer first, done last, ids in order, one generation_id."""
    conversation_id = await server.ask()
    async with server.stream(conversation_id) as stream:
        events = [event async for event in stream]
    first, last = events[0], events[-1]
    message = await server.message(conversation_id)
    expect(first.name == "ping", f"The first event is {first.name}.")
    for name, value in (("message_id", message["id"]), ("conversation_id", conversation_id)):
        expect(first.data.get(name) == value, f"{name} is {first.data.get(name)} in the first event, not {value}.")
    expect("ts" in first.data, "The first event has no ts.")
    expect([one.name for one in events].count("done") == 1 and last.name == "done", "done is not the one last event.")
    expect(last.data.get("status") == "ok", f"The answer ended with {last.data.get('status')}.")
    expect(last.data.get("message_id") == message["id"], "done does not name the message.")
    expect(len({event.data["generation_id"] for event in events}) == 1, "The events name several generations.")
    expect(all(event.id is not None for event in events if event.name != "ping"), "An event has no id.")
    ids = [event.id for event in events if event.id is not None]
    expect(first.id is not None and ids == sorted(set(ids)), f"The ids do not grow: {ids[:20]}.")


async def saved(server: Server) -> None:
    """When done arrives, the message has the text of all deltas, and its status."""
    conversation_id = await server.ask()
    async with server.stream(conversation_id) as stream:
        events = []
        async for event in stream:
            events.append(event)
            if event.name == "done":
                message = await server.message(conversation_id)
    expect(text(events) == message["content"], "The text of the deltas is not that of the message.")
    expect(text(events, "reasoning") == message.get("reasoning", ""), "The reasoning is not that of the message.")
    expect(message["status"] == STATUS[events[-1].data["status"]], f"The message's status is {message['status']}.")


async def attach(server: Server) -> None:
    """Repeating POST .../stream while the answer runs sends its events from the beginning, then the new ones."""
    conversation_id = await server.ask()
    async with server.stream(conversation_id) as stream:
        events = await until_text(stream)
        async with server.stream(conversation_id) as other:
            attached = await until_text(other)
            events += [event async for event in stream]
            attached += [event async for event in other]
    expect(without_pings(attached) == without_pings(events), "The second stream has other events than the first.")
    await server.message(conversation_id)


async def replay(server: Server) -> None:
    """POST .../stream after the end sends the same events again."""
    conversation_id = await server.ask()
    events = await server.answer(conversation_id)
    for _ in range(2):
        expect(await server.answer(conversation_id) == events, "The recorded events are not those that were streamed.")
    await server.message(conversation_id)


async def _check_resume(server: Server, how: str) -> None:
    conversation_id = await server.ask()
    events = await server.answer(conversation_id)
    generation_id = events[0].data["generation_id"]
    expect(await server.rest(generation_id, 0, how) == events, "After 0 come other events than all.")
    for number, event in enumerate(events[:-1], 1):
        assert event.id is not None
        rest = await server.rest(generation_id, event.id, how)
        expect(rest == events[number:], f"After event {event.id} come {[one.id for one in rest][:10]}.")


async def header(server: Server) -> None:
    """GET .../stream with Last-Event-ID sends the events after that one, for each of them."""
    await _check_resume(server, "header")


async def query(server: Server) -> None:
    """GET .../stream?after=N sends the events after event N, for each of them."""
    await _check_resume(server, "query")


async def live(server: Server) -> None:
    """GET .../stream resumes a running answer after each event, and follows it to its end."""
    conversation_id = await server.ask()
    async with server.stream(conversation_id) as stream:
        events = await until_text(stream)
        generation_id = events[0].data["generation_id"]
        positions = [event.id for event in events if event.id is not None]
        resumed = asyncio.gather(*(server.rest(generation_id, position, "header") for position in positions))
        events += [event async for event in stream]
        stored = without_pings(events)
        for position, rest in zip(positions, await resumed, strict=True):
            after = [event for event in stored if event.id is not None and event.id > position]
            expect(rest == after, f"After event {position} came {[one.id for one in rest][:10]}.")


async def readers(server: Server) -> None:
    """Several readers of an answer get the same events."""
    conversation_id = await server.ask()
    async with server.stream(conversation_id) as stream:
        events = await until_text(stream, 1)
        generation_id = events[0].data["generation_id"]
        many = asyncio.gather(
            *(server.answer(conversation_id) for _ in range(READERS)),
            *(server.rest(generation_id, 0, "query") for _ in range(READERS)),
        )
        events += [event async for event in stream]
        for other in await many:
            expect(other == without_pings(events), "A reader got other events than the first one.")


async def leaving(server: Server) -> None:
    """A reader that leaves changes nothing, also if it was the only one."""
    conversation_id = await server.ask()
    async with server.stream(conversation_id) as stream:
        events = await until_text(stream)
    while (await server.message(conversation_id))["status"] == "generating":  # noqa: ASYNC110
        await asyncio.sleep(POLL_SECONDS)
    whole = await server.answer(conversation_id)
    read = without_pings(events)
    expect(whole[: len(read)] == read, "The events are others than those before.")
    expect(whole[-1].data.get("status") == "ok", f"The answer ended with {whole[-1].data.get('status')}.")
    await server.message(conversation_id)


async def reset(server: Server) -> None:
    """After an id that the answer does not have, reset comes, without an id, and then all events."""
    conversation_id = await server.ask()
    events = await server.answer(conversation_id)
    first, *rest = await server.rest(events[0].data["generation_id"], UNSEEN, "header")
    expect((first.name, first.id) == ("reset", None), f"The first event is {first.name} with the id {first.id}.")
    expect(rest == events, "After reset come other events than all.")


async def end(server: Server) -> None:
    """GET .../stream after done is 204, without a body."""
    conversation_id = await server.ask()
    *_, done = await server.answer(conversation_id)
    path = f"generations/{done.data['generation_id']}/stream"
    for arguments in ({"headers": {"Last-Event-ID": str(done.id)}}, {"params": {"after": done.id}}):
        response = await server.http.get(path, **arguments)
        expect(response.status_code == 204, f"The status is {response.status_code}.")
        expect(not response.content, "There is a body.")


async def cancel(server: Server) -> None:
    """POST /chat/cancel/ID ends the answer with done and the status canceled. Its text so far is kept; the second time is 404."""
    conversation_id = await server.ask()
    async with server.stream(conversation_id) as stream:
        events = await until_text(stream)
        path = f"chat/cancel/{events[0].data['generation_id']}"
        await server.call("POST", path)
        message = await server.message(conversation_id)
        events += [event async for event in stream]
    expect(events[-1].name == "done", f"The last event is {events[-1].name}.")
    expect(events[-1].data.get("status") == "canceled", f"done has the status {events[-1].data.get('status')}.")
    expect(message["status"] == "canceled", f"After the request, the message's status is {message['status']}.")
    expect(message["content"] == text(events) != "", "The message does not have the text of the deltas.")
    await server.call("POST", path, status=404)


async def other_model(server: Server) -> None:
    """POST .../stream that names another model is 409 while the answer runs and after it, and changes nothing."""
    conversation_id = await server.ask()
    path, body = f"conversations/{conversation_id}/stream", {"model": "another-model"}
    async with server.stream(conversation_id) as stream:
        events = await until_text(stream)
        active = await server.call("POST", path, body, 409)
        events += [event async for event in stream]
    answered = await server.call("POST", path, body, 409)
    codes = (active.get("code"), answered.get("code"))
    expect(codes == ("GENERATION_ACTIVE", "ALREADY_ANSWERED"), f"The codes are {codes[0]} and {codes[1]}.")
    expect(events[-1].data.get("status") == "ok", f"The answer ended with {events[-1].data.get('status')}.")
    await server.message(conversation_id)


async def unknown(server: Server) -> None:
    """GET .../stream and cancel of a generation that does not exist are 404."""
    await server.call("GET", f"generations/{uuid.uuid4()}/stream", status=404)
    await server.call("POST", f"chat/cancel/{uuid.uuid4()}", status=404)


Rule = Callable[[Server], Awaitable[None]]
RULES: tuple[Rule, ...] = (
    start, saved, attach, replay, header, query, live, readers, leaving, reset, end, cancel, other_model, unknown,
)  # fmt: skip


async def check(
    url: str, user: str, password: str, choice: dict[str, str], rules: Sequence[Rule] = RULES
) -> dict[str, str]:
    """Return what is wrong by the name of each rule: "" if it holds."""
    limits = httpx.Limits(max_connections=None)
    base_url = url.rstrip("/") + "/"
    async with httpx.AsyncClient(base_url=base_url, timeout=SECONDS, limits=limits, trust_env=False) as http:
        server = Server(http, choice)
        await server.sign_in(user, password)
        try:
            return {rule.__name__: await _problem(rule, server) for rule in rules}
        finally:
            await server.clean_up()


async def _problem(rule: Rule, server: Server) -> str:
    try:
        await rule(server)
    except Broken as broken:
        return str(broken)
    except (httpx.HTTPError, ValueError, LookupError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description="Check a server's event streams.")
    parser.add_argument("url", help="such as http://127.0.0.1:8000")
    parser.add_argument("--user", required=True, help="name of an account on the server")
    parser.add_argument("--password", required=True)
    parser.add_argument("--provider", help="provider_id of the model server (default: the server chooses)")
    parser.add_argument(
        "--model", help="a model that is neither too fast nor loaded on demand (default: the server chooses)"
    )
    options = parser.parse_args(arguments)
    given = {"provider_id": options.provider, "model": options.model}
    choice = {name: value for name, value in given.items() if value}
    try:
        problems = asyncio.run(check(options.url, options.user, options.password, choice))
    except (Broken, httpx.HTTPError) as error:
        print(f"The sign-in failed: {error}", file=sys.stderr)
        return 1
    for rule in RULES:
        problem = problems[rule.__name__]
        print(
            f"{'FAIL' if problem else 'ok  '}  {rule.__name__:12} {rule.__doc__}"
            + (f"\n      {problem}" if problem else "")
        )
    broken = sum(map(bool, problems.values()))
    print(f"{len(RULES) - broken} of {len(RULES)} rules hold.")
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
