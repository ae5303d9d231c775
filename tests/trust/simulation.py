"""The hub under seeded schedules: two users, their tabs and programs, a scripted model server, a disk with errors, and crashes.

The real hub, generations, queues, queries and SQLite file run in one process. tests/trust/seeded.py decides by the seed what runs when.
A failure repeats: `python -m tests.trust.simulation SEED`. What must hold:

- Nothing acknowledged is lost or doubled: messages, queued messages, and answers whose `done` was sent.
- A reader gets every event once and in order, the same as every other reader, also after a crash.
- An answer has at most one request to the model server, a conversation one at a time, a server as many as it can take.
- What `done` announces is on the disk when it is sent.
- After a crash no answer is unfinished: it is interrupted, with all text that is older than a second.
"""

import asyncio
import contextlib
import json
import logging
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import traceback
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from fireside import db, queries
from fireside.backends.answer import Chunks, Content, Finish, Part, Reasoning, Sent, Usage
from fireside.backends.engine import Engine
from fireside.backends.openai import Model, OpenAI, Take
from fireside.chat.events import replay
from fireside.chat.hub import Hub
from fireside.chat.relay import COMMENT
from fireside.config import Config, Provider
from fireside.db import Connection, Database
from fireside.documents.checker import QuotationChecker
from fireside.errors import FiresideError, ProviderFailed
from fireside.providers import ModelServer, Providers
from fireside.queries.generations import AnswerRequest
from fireside.queries.tokens import Token
from fireside.safety.sandbox import Sandbox

from . import ROOT, Figures
from .seeded import Crash, Disk, SeededLoop, Stuck, Thread, repeatable

USERS = (1, 2)
SERVER, MODEL = "sim", "model"
CONCURRENCY = 2
SAVED_WITHIN = 1.0  # seconds, in which text of a running answer is saved
PAUSES = (0.0, 0.0, 0.001, 0.05, 0.3, 1.2)

Text = Content | Reasoning


class Result(NamedTuple):
    steps: int
    schedule: str  # a hash of what ran when
    wrong: list[str]


@dataclass
class Script:
    """What the model server sends for one answer."""

    texts: list[Text] = field(default_factory=list)  # that were sent so far, with the times
    times: list[float] = field(default_factory=list)
    requests: int = 0
    complete: bool = False


@dataclass
class Seen:
    """What readers have got of one answer."""

    user_id: int
    frames: dict[int, bytes] = field(default_factory=dict)  # by id
    done: dict[str, Any] | None = None
    position: int = 0  # of a reader that left


class World:
    def __init__(self, seed: int, folder: Path) -> None:
        self.rng = random.Random(seed)
        self.folder = folder
        self.wrong: list[str] = []
        self.scripts: dict[str, Script] = {}  # by generation
        self.seen: dict[str, Seen] = {}  # by generation
        self.messages: dict[int, tuple[int, str]] = {}  # acknowledged: conversation and content, by id
        self.queued: list[str] = []  # acknowledged contents
        self.once: list[str] = []  # contents of messages that were sent, perhaps repeatedly
        self.running: dict[str, int] = {}  # conversations of requests to the model server that are open, by generation
        self.faulty = False  # the disk had errors in this life
        self.lives = 0
        self.path = folder / "life-0" / "fireside.db"
        self.path.parent.mkdir()
        (self.path).write_bytes(_new_database())
        with contextlib.closing(sqlite3.connect(self.path)) as conn:
            conn.row_factory = sqlite3.Row
            rows = conn.execute("SELECT id, user_id FROM conversations ORDER BY id").fetchall()
        self.conversations = {user: [row["id"] for row in rows if row["user_id"] == user] for user in USERS}
        self.number = 0

    def fail(self, problem: str) -> None:
        self.wrong.append(problem)

    def expect(self, right: bool, problem: str) -> None:
        if not right:
            self.fail(problem)

    def text(self) -> str:
        self.number += 1
        return f"text {self.number} ö\u2028 "

    async def pause(self) -> None:
        await asyncio.sleep(self.rng.choice(PAUSES))


class Scripted(OpenAI):
    """A model server that writes what the seed says."""

    def __init__(self, provider: Provider, world: World) -> None:
        super().__init__(provider)
        self._world = world
        self.hub: Hub

    async def models(self) -> list[Model] | None:
        await self._world.pause()
        return [Model(MODEL, MODEL, state="loaded", context_length=8192)]

    async def chat(
        self, body: dict[str, Any], for_program: bool = False, take: Take | None = None
    ) -> AsyncGenerator[list[Part], None]:
        world, rng = self._world, self._world.rng
        task = asyncio.current_task()
        assert task is not None
        generation_id = task.get_name().removeprefix("generation ")
        conversation_id = self.hub.generations[generation_id].job.conversation_id
        script = world.scripts.setdefault(generation_id, Script())
        script.requests += 1
        world.expect(script.requests == 1, "an answer was requested twice")
        is_free = conversation_id == 0 or conversation_id not in world.running.values()  # 0: is not recorded
        world.expect(is_free, "a conversation has two requests at a time")
        world.running[generation_id] = conversation_id
        world.expect(len(world.running) <= CONCURRENCY, "the model server has more requests than it takes")
        ending = rng.random()
        try:
            if not for_program:
                yield [Sent(body, "0" * 64)]
            for _ in range(rng.randrange(12)):
                await world.pause()
                kind = Reasoning if rng.random() < 0.2 else Content
                part = kind(world.text())
                script.texts.append(part)
                script.times.append(asyncio.get_running_loop().time())
                parts: list[Part] = [Chunks([msgspec.json.encode(part.text)]), part] if for_program else [part]
                if take and rng.random() < 0.5:
                    take(parts)
                else:
                    yield parts
            if ending < 0.1:
                await asyncio.sleep(1e9)
            if ending < 0.25:
                raise ProviderFailed("PROVIDER_ERROR", "The model server failed.")
            script.complete = True
            yield [Usage(3, 5, 8), Finish("stop")]
        finally:
            del world.running[generation_id]


class Life:
    """A process, from its start to its end."""

    def __init__(self, world: World, loop: SeededLoop) -> None:
        self.world, self.loop, self.rng = world, loop, world.rng
        self.disk = Disk(world.path, world.rng)
        self.disk.synced = self.disk.wal_size()
        threads = [Thread(self.disk.connect(writer), loop, world.rng) for writer in (True, False, False)]
        self.connections = [thread._conn for thread in threads] + [self.disk.connect(False)]
        self.database = Database(world.path, threads[0], threads[1:], self.connections[-1])  # type: ignore[arg-type]
        provider = Provider(SERVER, "openai", "Simulated", concurrency=CONCURRENCY)
        config = Config(data_dir=world.path.parent, providers=(provider,))
        self.providers = Providers(config, Engine(config))
        self.server: ModelServer = self.providers.get(SERVER)
        checker = QuotationChecker(self.database, Sandbox())  # no conversation has documents
        self.hub = Hub(config, self.database, self.providers, checker)
        scripted = Scripted(provider, world)
        scripted.hub = self.hub
        self.server.backend = scripted
        world.running = {}
        world.faulty = False

    async def run(self, last: bool) -> None:
        world = self.world
        await self.hub.start()
        self._check_nothing_unfinished()
        readers = [self._read_again(user.user_id, generation_id) for generation_id, user in world.seen.items()]
        tabs = [self._tab(user) for user in USERS for _ in range(2)]
        programs = [self._program(user) for user in USERS]
        await asyncio.gather(*readers, *tabs, *programs, self._break_disk())
        if last or self.rng.random() < 0.5:
            await self._finish_running()
        await self.hub.aclose()
        await self.providers.aclose()
        self._check_nothing_unfinished()
        await self.database.close()

    async def _finish_running(self) -> None:
        """Read all answers to their end. Those of a model server that hangs end by their deadline."""
        while running := [*self.hub.generations.values()]:
            await asyncio.gather(*(self._read_again(one.job.user_id, one.id) for one in running if one.is_recorded))
            await asyncio.wait([one.task for one in running])
            await asyncio.sleep(3)  # what could not be saved is saved again

    async def _break_disk(self) -> None:
        if self.rng.random() < 0.35:
            await asyncio.sleep(self.rng.random() * 3)
            self.world.faulty, likely = True, self.rng.choice((0.2, 0.7, 1.0))
            self.disk.fails = lambda: self.rng.random() < likely
            await asyncio.sleep(self.rng.random() * 4)
            self.disk.fails = lambda: False

    # ---- what users do

    async def _tab(self, user_id: int) -> None:
        """Do a few things, one after another. The connection may be lost at each."""
        actions = (self._say, self._say, self._ask, self._ask, self._ask, self._retry, self._queue, self._cancel,
                   self._continue, self._delete, self._open, self._open)  # fmt: skip
        for _ in range(self.rng.randrange(2, 7)):
            await self.world.pause()
            conversation_id = self.rng.choice(self.world.conversations[user_id])
            await self._unless_lost(self.rng.choice(actions)(user_id, conversation_id))

    async def _unless_lost(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something as a request does: errors are responses. Perhaps the client disconnects meanwhile."""
        task = asyncio.create_task(work)
        if self.rng.random() < 0.2:
            await asyncio.wait([task], timeout=self.rng.choice((0, 0.0004, 0.01, 0.5)))
            task.cancel()
        with contextlib.suppress(FiresideError, asyncio.CancelledError):
            await task

    async def _say(self, user_id: int, conversation_id: int) -> None:
        content = self.world.text()
        self.world.once.append(content)
        client_id = content if self.rng.random() < 0.5 else None
        for _ in range(2 if client_id else 1):  # a request may be repeated
            message_id = await self.database.write(
                queries.messages.add_message, user_id, conversation_id, content, client_id=client_id
            )
            known = self.world.messages.setdefault(message_id, (conversation_id, content))
            self.world.expect(known == (conversation_id, content), "two messages have one id")

    async def _ask(self, user_id: int, conversation_id: int, retry: bool = False) -> None:
        answer = await self.hub.answer(user_id, conversation_id, AnswerRequest(SERVER, MODEL, retry=retry))
        await self._read(user_id, answer.generation_id)

    async def _retry(self, user_id: int, conversation_id: int) -> None:
        await self._ask(user_id, conversation_id, retry=True)

    async def _continue(self, user_id: int, conversation_id: int) -> None:
        begin = queries.generations.begin_continuation
        answer = await self.hub.answer(user_id, conversation_id, AnswerRequest(SERVER, MODEL), begin)
        await self._read(user_id, answer.generation_id)

    async def _queue(self, user_id: int, conversation_id: int) -> None:
        content = self.world.text()
        self.world.once.append(content)
        await self.database.write(queries.queued.add_queued, user_id, conversation_id, content, content)
        self.world.queued.append(content)
        await self.hub.begin_next(user_id, conversation_id)

    async def _cancel(self, user_id: int, conversation_id: int) -> None:
        for generation in [*self.hub.generations.values()]:
            if generation.job.user_id == user_id and generation.job.conversation_id == conversation_id:
                await self.hub.cancel(user_id, generation.id)
                self.world.expect(generation.id not in self.world.running, "canceled, but the request is open")
                self.world.expect(self._stored_status(generation.message_id) == "canceled", "canceled, but not saved")

    async def _delete(self, user_id: int, conversation_id: int) -> None:
        await self.database.write(queries.conversations.delete_conversation, user_id, conversation_id)
        await self.hub.cancel_all(user_id, conversation_id)
        self.world.expect(conversation_id not in self.world.running.values(), "deleted, but the request is open")
        await self.database.write(queries.bin.restore, user_id, conversation_id)

    async def _open(self, user_id: int, conversation_id: int) -> None:
        """List the messages, and follow the answer that is running. It is listed as far as any reader was before."""
        before = {  # without what a crash may have taken
            key: self._text_of(seen)
            for key, seen in self.world.seen.items()
            if not self.world.lives or key in self.hub.generations
        }
        for message in await self.hub.messages(user_id, conversation_id, 100, None):
            if isinstance(message.generation_id, str):
                text = before.get(message.generation_id, "")
                self.world.expect(message.content.startswith(text), f"{message.content!r} is listed, not {text!r}")
                if message.status == "generating":
                    await self._read(user_id, message.generation_id)

    async def _program(self, user_id: int) -> None:
        """Ask through /v1, with a history that continues."""
        history: list[dict[str, str]] = []
        token = Token(user_id, "program", self.rng.random() < 0.8, "", None, None, 0)
        for _ in range(self.rng.randrange(3)):
            await self.world.pause()
            history.append({"role": "user", "content": self.world.text()})
            await self._unless_lost(self._ask_as_program(user_id, token, history))

    async def _ask_as_program(self, user_id: int, token: Token, history: list[dict[str, str]]) -> None:
        fields = {"messages": msgspec.Raw(msgspec.json.encode(history))}
        relay = await self.hub.relay(user_id, token, self.server, MODEL, fields, True)
        got: list[str] = []
        try:
            async for items in relay.chunks.read(15):
                got += [json.loads(item) for item in items if not item.startswith(COMMENT)]
                if self.rng.random() < 0.05:
                    return  # the program leaves
                await self.world.pause()
        finally:
            await self.hub.abandon(relay)
            self.world.expect(relay.id not in self.world.running, "the program left, but the request is open")
        script = self.world.scripts.get(relay.id, Script())
        self.world.expect(got == [part.text for part in script.texts], "a program did not get every chunk")
        history.append({"role": "assistant", "content": _joined(script.texts, Content)})

    # ---- readers

    async def _read_again(self, user_id: int, generation_id: str) -> None:
        with contextlib.suppress(FiresideError):  # a power cut has taken it, or the disk cannot be read
            await self._read(user_id, generation_id)

    async def _read(self, user_id: int, generation_id: str) -> None:
        """Read an answer to its end, perhaps slowly, and perhaps with interruptions."""
        seen = self.world.seen.setdefault(generation_id, Seen(user_id))
        position = self.rng.choice((0, seen.position))
        leaves = self.rng.choice((0.0, 0.0, 0.1, 0.4))

        def check(data: bytes) -> None:
            nonlocal position
            for frame in data.split(b"\n\n")[:-1]:
                position = self._check_frame(seen, frame, position)
            seen.position = position

        def write(data: bytes) -> bool:
            if self.rng.random() < 0.5:
                return False
            check(data)
            return True

        while True:
            events = await self.hub.follow(user_id, generation_id, position, write=write)
            if events is None:
                self.world.expect(seen.done is not None and position == max(seen.frames), "204 before `done`")
                return
            async with contextlib.aclosing(events):  # type: ignore[type-var]
                async for data in events:
                    check(data)
                    if self.rng.random() < leaves:
                        break
                    if self.rng.random() < 0.3:
                        await self.world.pause()
                else:
                    what = f"the stream of {generation_id} ended after event {position} without `done`"
                    self.world.expect(seen.done is not None, what)
                    return
            await self.world.pause()

    def _check_frame(self, seen: Seen, frame: bytes, position: int) -> int:
        """Check an event against those that any reader has got. Return its id, which is the reader's position."""
        fields = dict(line.split(b": ", 1) for line in frame.split(b"\n"))
        event, data = fields[b"event"].decode(), json.loads(fields[b"data"])
        if b"id" not in fields:
            self.world.expect(event in ("ping", "reset"), f"`{event}` has no id")
            if event == "ping":
                return position
            self.world.expect(self.world.lives > 0, "`reset` without a crash")
            seen.frames = {}
            return 0
        number = int(fields[b"id"])
        known = seen.frames.setdefault(number, frame)
        self.world.expect(known == frame, f"two readers got different events of one id: {known!r}, {frame!r}")
        follows = number == position + 1 or (event == "done" and self.world.lives > 0 and number > position)
        self.world.expect(follows, f"the event after {position} is {number}, `{event}`")
        self.world.expect(not (seen.done and number > max(seen.frames)), "an event after `done`")
        if event == "done":
            seen.done = data
            if number > position + 1:  # after a crash: the events between were not saved
                seen.frames = {key: frame for key, frame in seen.frames.items() if key <= position or key == number}
            if data["status"] != "error":
                row = self._stored(data["message_id"])
                status = "complete" if data["status"] == "ok" else data["status"]
                is_old = row is not None and row["generation_id"] != data["generation_id"]  # continued since
                right = row is None or is_old or (row["status"], row["content"]) == (status, self._text_of(seen))
                complete = set(seen.frames) >= set(range(1, position + 1))
                self.world.expect(right or not complete, f"`done` says {status}; stored is {dict(row or {})}")
        return number

    @staticmethod
    def _text_of(seen: Seen) -> str:
        texts = []
        for _, frame in sorted(seen.frames.items()):
            lines = frame.split(b"\n")
            if lines[1] == b"event: delta":
                texts.append(json.loads(lines[2].removeprefix(b"data: "))["delta"])
        return "".join(texts)

    # ---- the disk

    def _stored(self, message_id: int) -> sqlite3.Row | None:
        sql = "SELECT m.*, g.id AS generation_id FROM messages m LEFT JOIN generations g ON g.message_id = m.id WHERE m.id = ?"
        with contextlib.closing(sqlite3.connect(self.world.path)) as conn:
            conn.row_factory = sqlite3.Row
            row: sqlite3.Row | None = conn.execute(sql, (message_id,)).fetchone()
            return row

    def _stored_status(self, message_id: int) -> str | None:
        row = self._stored(message_id)
        return row["status"] if row else None

    def _check_nothing_unfinished(self) -> None:
        with contextlib.closing(sqlite3.connect(self.world.path)) as conn:
            count = conn.execute("SELECT count(*) FROM messages WHERE status = 'generating'").fetchone()[0]
        unsaved = sum(one.save_error is not None for one in self.hub.generations.values())
        self.world.expect(count <= unsaved, f"{count} answers are unfinished")

    def end_by_crash(self) -> None:
        """Leave the file as a killed process does, or as a power cut does, for the next life."""
        world, rng = self.world, self.rng
        power_cut = rng.random() < 0.3
        target = world.folder / f"life-{world.lives + 1}" / "fireside.db"
        target.parent.mkdir()
        shutil.copy(world.path, target)
        if self.disk.wal.exists():
            data = self.disk.wal.read_bytes()
            target.with_name("fireside.db-wal").write_bytes(data[: self.disk.synced] if power_cut else data)
        old, world.path = world.path, target
        if not world.faulty and not power_cut:
            self._check_saved_text()
        for connection in self.connections:
            connection.close()
        self.discard_tasks()
        shutil.rmtree(old.parent)

    def discard_tasks(self) -> None:
        """End the tasks that are left. What they do does not count."""
        self.loop.crash_at, self.loop.steps = None, 0
        wrong = [*self.world.wrong]
        while tasks := self.loop.tasks():
            for task in tasks:
                task.cancel()
            done, _ = self.loop.run_until_complete(asyncio.wait(tasks, timeout=60))
            for task in done:
                task.cancelled() or task.exception()  # else it is logged
        self.world.wrong = wrong

    def _check_saved_text(self) -> None:
        now = self.loop.time()
        with contextlib.closing(sqlite3.connect(self.world.path)) as conn:
            for generation_id in self.world.running:
                generation = self.hub.generations[generation_id]
                if not generation.is_recorded:
                    continue
                script = self.world.scripts[generation_id]
                old = [part for part, at in zip(script.texts, script.times, strict=True) if at < now - SAVED_WITHIN]
                sql = "SELECT content FROM generation_parts WHERE generation_id = ? ORDER BY first_event"
                stored = "".join(row[0] for row in conn.execute(sql, (generation_id,)))
                if generation.job.earlier:  # the beginning of a continuation is held back, to find what it repeats
                    old = [Content(generation.job.earlier.content)]
                begun = _joined(old, Content)
                self.world.expect(not old or stored.startswith(begun), f"saved {stored!r}, not {begun!r}")


def _joined(parts: list[Text], kind: type[Content] | type[Reasoning]) -> str:
    return "".join(part.text for part in parts if isinstance(part, kind))


def _check_end(world: World) -> None:
    """Check what the last life has left against all that was acknowledged."""
    with contextlib.closing(sqlite3.connect(world.path)) as conn:
        conn.row_factory = sqlite3.Row
        db.check(conn)
        conn.execute("UPDATE conversations SET deleted_at = NULL")  # a request to restore one may have been lost
        stored = {row["id"]: row for row in conn.execute("SELECT * FROM messages")}
        for message_id, (conversation_id, content) in world.messages.items():
            row = stored.get(message_id)
            found = (row["conversation_id"], row["content"]) if row else None
            world.expect(found == (conversation_id, content), f"the message {content!r} is lost: {found}")
        contents = [row["content"] for row in stored.values() if row["role"] == "user"]
        contents += [row["content"] for row in conn.execute("SELECT content FROM queued_messages")]
        for content in world.queued:
            world.expect(contents.count(content) == 1, f"{content!r} is there {contents.count(content)} times")
        twice = [content for content in world.once if contents.count(content) > 1]
        world.expect(not twice, f"{twice} are there twice")
        for generation_id, seen in world.seen.items():
            _check_recording(world, conn, generation_id, seen)


def _check_recording(world: World, conn: Connection, generation_id: str, seen: Seen) -> None:
    try:
        recording = queries.generations.get_recording(conn, seen.user_id, generation_id)
    except FiresideError:  # a power cut may take an answer that has not ended
        # With `error`, the disk may have had an error too.
        world.expect(seen.done is None or seen.done["status"] == "error", "an answer whose `done` was sent is lost")
        return
    script = world.scripts.get(generation_id)
    if seen.done is None or script is None:
        return

    async def replayed() -> bytes:
        return b"".join([data async for data in replay(generation_id, recording, 0)])

    frames = b"".join(frame + b"\n\n" for _, frame in sorted(seen.frames.items()))
    if 1 in seen.frames and seen.done["status"] != "error":
        world.expect(asyncio.run(replayed()) == frames, "the stored answer is another than the readers'")
    if seen.done["status"] == "ok":
        world.expect(script.complete, "an answer is complete that the model server has not ended")
        world.expect(_joined(script.texts, Content).strip() in recording.content, "a complete answer lacks text")


@cache
def _new_database() -> bytes:
    """Return a database with two users, their sessions, tokens and conversations."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "fireside.db"
        db.prepare(path)
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as conn:
            conn.row_factory = sqlite3.Row
            queries.accounts.add_first_user(conn, "ann", "hash")
            queries.accounts.add_invite(conn, b"code", "user", 1, "9999")
            queries.accounts.redeem_invite(conn, b"code", "bob", "hash")
            for user in USERS:
                queries.accounts.add_session(conn, user, bytes([user]), "tab", "hash")
                queries.tokens.add_token(conn, user, "program", bytes([user]), True, None)
                for _ in range(2):
                    made = queries.conversations.add_conversation(conn, user, {"provider_id": SERVER, "model": MODEL})
                    queries.messages.add_message(conn, user, made.id, f"first of {made.id}")
            conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return path.read_bytes()


def simulate(seed: int) -> Result:
    """Run one schedule. Another run of the same seed has the same result, in any process."""
    logging.disable(logging.CRITICAL)
    fast = "/dev/shm" if os.path.isdir("/dev/shm") else None
    try:
        with repeatable(seed), tempfile.TemporaryDirectory(dir=fast) as name:
            return _simulate(World(seed, Path(name)), f"seed {seed}")
    finally:
        logging.disable(logging.NOTSET)


def _simulate(world: World, name: str) -> Result:
    crashes = world.rng.choice((0, 1, 1, 2))
    steps, schedules = 0, []
    ended = False
    while not ended and not world.wrong:
        loop = SeededLoop(world.rng, shuffled=world.rng.random() < 0.5)
        last = world.lives >= crashes
        loop.crash_at = None if last else world.rng.randrange(20, 1500)
        ended, more = _live(world, loop, last)
        steps += more
        schedules.append(loop.schedule.hexdigest())
        world.lives += not ended
    if not world.wrong:
        _check_end(world)
    return Result(steps, " ".join(schedules), [f"{name}: {problem}" for problem in world.wrong])


def _live(world: World, loop: SeededLoop, last: bool) -> tuple[bool, int]:
    """Run one life. Return whether it ended in order, and its steps."""
    asyncio.set_event_loop(loop)
    life = Life(world, loop)
    try:
        loop.run_until_complete(life.run(last))
        steps = loop.steps
        life.discard_tasks()
        return True, steps
    except (Crash, Stuck, Exception) as end:
        steps = loop.steps
        if not isinstance(end, Crash):
            world.fail("".join(traceback.format_exception(end, limit=-3)))
        life.end_by_crash()
        return False, steps
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def prove(size: int) -> Figures:
    """Run the seeds from 0 on, in a process for each core."""
    cores = os.cpu_count() or 1
    command = [sys.executable, "-m", "tests.trust.simulation", "--every", str(cores), str(size)]
    running = [
        subprocess.Popen([*command, str(first)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for first in range(cores)
    ]
    ended = [(process, *process.communicate()) for process in running]
    results = [result for _, out, _ in ended for result in msgspec.json.decode(out or "[]", type=list[Result])]
    wrong = [problem for result in results for problem in result.wrong]
    wrong += [err for process, _, err in ended if process.returncode]
    steps = sum(result.steps for result in results)
    more = f"{steps:,} steps between awaits, with crashes, power cuts, disk errors and lost connections; a seed repeats"
    return Figures(len(results), wrong, more)


def main(arguments: list[str]) -> None:
    """Run the seeds that are named and print what went wrong, or for `prove` every so many from one to another, as JSON."""
    if arguments[:1] == ["--every"]:
        step, size, first = map(int, arguments[1:])
        sys.stdout.write(msgspec.json.encode([simulate(seed) for seed in range(first, size, step)]).decode())
        return
    for argument in arguments:
        result = simulate(int(argument))
        print(f"{argument}: {result.steps:,} steps, schedule {result.schedule}", *result.wrong, sep="\n    ")


if __name__ == "__main__":
    main(sys.argv[1:])
