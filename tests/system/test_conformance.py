"""The conformance suite holds for Fireside, and each of its rules fails for a server that breaks it."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from .. import conformance
from ..live import PASSWORD, Person, Running, until
from ..upstream import DONE, Upstream, finish, usage
from ..upstream import text as says

TOKENS = 8
TOKEN_SECONDS = 0.03  # the model's speed: several requests fit between two tokens
Events = list[tuple[int | None, str, dict[str, Any]]]


class SmallServer:
    """A server in memory that claims the rules, and breaks the one with the name `broken`."""

    def __init__(self, broken: str) -> None:
        self.broken = broken
        self.ids: Iterator[int] = iter(range(1, 10**6))
        self.messages: dict[int, list[dict[str, Any]]] = {}  # by conversation
        self.events: dict[str, Events] = {}  # by generation
        self.of: dict[int, str] = {}  # the generation of each conversation
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.readers: dict[str, int] = {}

    async def sign_in(self, request: Request) -> Response:
        return JSONResponse({"csrf_token": "x"})

    async def create(self, request: Request) -> Response:
        conversation_id = next(self.ids)
        self.messages[conversation_id] = []
        return JSONResponse({"id": conversation_id})

    async def delete(self, request: Request) -> Response:
        return JSONResponse({})

    async def add(self, request: Request) -> Response:
        self.messages[int(request.path_params["id"])].append({"content": "?"})
        return JSONResponse({})

    async def list_messages(self, request: Request) -> Response:
        return JSONResponse(self.messages[int(request.path_params["id"])])

    async def stream(self, request: Request) -> Response:
        conversation_id = int(request.path_params["id"])
        generation_id = self.of.get(conversation_id)
        is_running = generation_id is not None and not self.tasks[generation_id].done()
        if (await request.json()).get("model") and self.broken != "other_model":
            return JSONResponse({"code": "GENERATION_ACTIVE" if is_running else "ALREADY_ANSWERED"}, 409)
        again = (self.broken == "attach" and is_running) or (self.broken == "replay" and not is_running)
        if generation_id is None or again:
            generation_id = self.of[conversation_id] = str(uuid.uuid4())
            message = {"id": next(self.ids), "content": "", "reasoning": "", "status": "generating"}
            self.messages[conversation_id].append(message | {"versions": {"ids": [message["id"]]}})
            self.events[generation_id] = []
            self.tasks[generation_id] = asyncio.create_task(self._write(generation_id, conversation_id))
        return StreamingResponse(self._follow(generation_id, 0), media_type="text/event-stream")

    async def resume(self, request: Request) -> Response:
        generation_id = request.path_params["generation_id"]
        if generation_id not in self.events:
            return JSONResponse({}, 200 if self.broken == "unknown" else 404)
        header, query = request.headers.get("last-event-id", "0"), request.query_params.get("after", "0")
        position = int("0" if self.broken == "header" else header) or int("0" if self.broken == "query" else query)
        is_running = not self.tasks[generation_id].done()
        if self.broken == "live" and is_running:
            position += 1  # loses an event
        if not is_running and position == len(self.events[generation_id]) and self.broken != "end":
            return Response(status_code=204)
        return StreamingResponse(self._follow(generation_id, position), media_type="text/event-stream")

    async def cancel(self, request: Request) -> Response:
        task = self.tasks.get(request.path_params["generation_id"])
        if task is None or task.done():
            return JSONResponse({}, 404)
        if self.broken != "cancel":
            task.cancel()
            await asyncio.wait([task])
        return JSONResponse({})

    async def _write(self, generation_id: str, conversation_id: int) -> None:
        message, events = self.messages[conversation_id][-1], self.events[generation_id]

        def add(name: str, data: dict[str, Any]) -> None:
            events.append((len(events) + 1, name, data))

        status = "ok"
        add("ping", {"message_id": message["id"], "conversation_id": conversation_id, "ts": "now"})
        try:
            for number in range(TOKENS):
                await asyncio.sleep(TOKEN_SECONDS)
                if self.broken == "leaving" and not self.readers.get(generation_id):
                    raise asyncio.CancelledError
                add("delta", {"delta": f"{number}\n"})
                message["content"] += "" if self.broken == "saved" and number == 3 else f"{number}\n"
        except asyncio.CancelledError:
            status = "canceled"
        message["status"] = conformance.STATUS[status]
        add("done", {"status": status, "message_id": message["id"]})
        if self.broken == "start":
            add("usage", {"usage": {}})

    async def _follow(self, generation_id: str, position: int) -> AsyncIterator[bytes]:
        events = self.events[generation_id]
        self.readers[generation_id] = self.readers.get(generation_id, 0) + 1
        is_late = self.readers[generation_id] > 2
        try:
            if position > len(events) and self.tasks[generation_id].done() and self.broken != "reset":
                position = 0
                yield b"event: reset\ndata: " + json.dumps({"generation_id": generation_id}).encode() + b"\n\n"
            while True:
                for number, name, data in events[position:]:
                    position += 1
                    if self.broken == "readers" and is_late and number == 5:
                        continue
                    body = json.dumps({"generation_id": generation_id, **data})
                    yield f"id: {number}\nevent: {name}\ndata: {body}\n\n".encode()
                if self.tasks[generation_id].done():
                    return
                await asyncio.sleep(TOKEN_SECONDS / 10)
        finally:
            self.readers[generation_id] -= 1

    def routes(self) -> list[Route]:
        path = f"/{self.broken}"
        conversation = f"{path}/conversations/{{id}}"
        return [
            Route(f"{path}/auth/login", self.sign_in, methods=["POST"]),
            Route(f"{path}/conversations", self.create, methods=["POST"]),
            Route(conversation, self.delete, methods=["DELETE"]),
            Route(f"{conversation}/messages", self.add, methods=["POST"]),
            Route(f"{conversation}/messages", self.list_messages, methods=["GET"]),
            Route(f"{conversation}/stream", self.stream, methods=["POST"]),
            Route(f"{path}/generations/{{generation_id}}/stream", self.resume, methods=["GET"]),
            Route(f"{path}/chat/cancel/{{generation_id}}", self.cancel, methods=["POST"]),
        ]


@pytest.mark.long
async def test_each_rule_fails_for_a_server_that_breaks_it(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["nothing", *(rule.__name__ for rule in conformance.RULES)]
    app = Starlette(routes=[route for name in names for route in SmallServer(name).routes()])
    config = uvicorn.Config(app, port=0, log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]

    async def broken(name: str) -> list[str]:
        rules = [rule for rule in conformance.RULES if name in ("nothing", rule.__name__)]
        found = await conformance.check(f"http://127.0.0.1:{port}/{name}", "ann", PASSWORD, {}, rules)
        return [rule for rule, problem in found.items() if problem]

    command = [f"http://127.0.0.1:{port}/end/", "--user", "ann", "--password", PASSWORD]
    try:
        status, *results = await asyncio.gather(asyncio.to_thread(conformance.main, command), *map(broken, names))
        found = dict(zip(names, results, strict=True))
    finally:
        server.should_exit = True
        await task
    assert found.pop("nothing") == []
    assert found == {name: [name] for name in found}
    output = capsys.readouterr().out
    assert status == 1 and [line.split()[1] for line in output.splitlines() if line.startswith("FAIL")] == ["end"]


async def test_fireside_follows_every_rule(
    running: Running, ann: Person, upstream: Upstream, capsys: pytest.CaptureFixture[str]
) -> None:
    for rule in conformance.RULES:
        count = 5 * TOKENS if rule is conformance.other_model else TOKENS  # its second request must come before the end
        upstream.enqueue(*map(_token, range(count)), finish("stop"), usage(5, count), DONE)
    status = await asyncio.to_thread(conformance.main, [running.url, "--user", "ann", "--password", PASSWORD])
    output = capsys.readouterr().out
    assert status == 0 and output.count("ok ") == len(conformance.RULES), output
    assert (await ann.get("/conversations")).json() == []


def _token(number: int) -> Callable[[object], bytes]:
    def step(request: object) -> bytes:
        time.sleep(TOKEN_SECONDS)
        return says(f"{number}\n")

    return step
