"""The events of an answer: what its readers are sent while it is written, and exactly that again ever after.

Event n of a log has the id n, from 1 on. In memory a log is the bytes of its events, which all readers share. On disk it is
the answer's two texts and a list that cuts them: a number n is a `delta` of n characters of the content, -n a `reasoning`
of n characters of the reasoning, an object any other event whole (docs/decisions/0003-event-log.md).
"""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Iterator
from json.encoder import encode_basestring_ascii
from typing import Any, NamedTuple

from ..db import now
from ..queries.generations import Recording, SavedPart

BACKLOG = 512  # events that a reader is handed at a time
EVENT_BYTES = (
    16  # that an event costs at least: a server may send one character per event, whose frame takes 200 bytes of memory
)
CRASH_GAP = 1 << 32  # added to the id of what follows a crash: no reader can have seen it before

Entry = int | dict[str, Any]


class Mark(NamedTuple):
    """A place in a log: how many events come before it, and how many pieces of each text."""

    events: int
    content: int
    reasoning: int


class EventLog:
    """The events of a running answer. Texts reach the readers with the next `publish`, other events at once."""

    def __init__(self, generation_id: str) -> None:
        self.generation_id = generation_id
        self._size = 0  # bytes of texts, and of all other events
        self.ended = False
        self.saved = Mark(0, 0, 0)  # what the database has
        self._frames: list[bytes] = []
        self._entries: list[Entry] = []
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._heads = _text_head("delta", generation_id), _text_head("reasoning", generation_id)
        self._spoke_at = 0.0  # loop time
        self._readers: set[asyncio.Future[bool]] = set()  # those who have all there is

    @property
    def size(self) -> int:
        """Bytes that count towards answer_max_bytes."""
        return max(self._size, EVENT_BYTES * len(self._frames))

    @property
    def content(self) -> str:
        return "".join(self._content)

    @property
    def reasoning(self) -> str:
        return "".join(self._reasoning)

    @property
    def mark(self) -> Mark:
        return Mark(len(self._entries), len(self._content), len(self._reasoning))

    def add(self, event: str, data: dict[str, Any]) -> None:
        self._entries.append({"event": event, "data": data})
        frame = _frame(len(self._entries), event, self.generation_id, data).encode()
        self._frames.append(frame)
        self._size += len(frame)
        self.publish()

    def say(self, text: str) -> None:
        self._content.append(text)
        self._text(self._heads[0], text, len(text))

    def think(self, text: str) -> None:
        self._reasoning.append(text)
        self._text(self._heads[1], text, -len(text))

    def _text(self, head: str, text: str, entry: int) -> None:
        self._entries.append(entry)
        self._size += len(text) if text.isascii() else len(text.encode())
        self._frames.append(_text_frame(len(self._entries), head, text).encode())

    def publish(self) -> None:
        """Wake the readers. What has come together is handed over together."""
        self._spoke_at = asyncio.get_running_loop().time()
        for reader in self._readers:
            if not reader.done():
                reader.set_result(True)
        self._readers.clear()

    def end(self, done: dict[str, Any]) -> None:
        """The last event."""
        self.ended = True
        self.add("done", done)

    def part(self) -> SavedPart:
        """What the database does not have yet."""
        events, content, reasoning = self.saved
        texts = "".join(self._content[content:]), "".join(self._reasoning[reasoning:])
        return SavedPart(self.generation_id, events + 1, *texts, json.dumps(self._entries[events:]))

    def recording(self, message_id: int, status: str, done: dict[str, Any]) -> Recording:
        """All of it as it is kept, with the last event, be that told already or not."""
        entries = self._entries if self.ended else [*self._entries, {"event": "done", "data": done}]
        return Recording(message_id, status, self.content, self.reasoning, json.dumps(entries))

    async def follow(self, position: int, ping_seconds: float) -> AsyncIterator[bytes]:
        """The events after `position` as they come, joined where several wait; a `ping` after every silence."""
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[bool] = loop.create_future()  # False: for a ping
        timer: asyncio.TimerHandle

        def look() -> None:
            nonlocal timer
            silent = loop.time() - self._spoke_at
            if silent >= ping_seconds:
                silent = 0.0
                if not waiting.done():
                    waiting.set_result(False)
            timer = loop.call_later(ping_seconds - silent, look)

        timer = loop.call_later(ping_seconds, look)  # one, and set anew only when it fires: a reader waits once a token
        try:
            if position > len(self._frames):
                position = 0
                yield _frame(None, "reset", self.generation_id, {}).encode()
            while True:
                if position < len(self._frames):
                    events = self._frames[position : position + BACKLOG]
                    position += len(events)
                    yield b"".join(events)
                elif self.ended:
                    return
                else:
                    waiting = loop.create_future()
                    self._readers.add(waiting)
                    if not await waiting:
                        yield _frame(None, "ping", self.generation_id, {"ts": now()}).encode()
        finally:
            timer.cancel()
            self._readers.discard(waiting)


def replay(generation_id: str, recording: Recording, position: int) -> Iterator[bytes]:
    """The events after `position` of an answer that has ended, BACKLOG of them at a time; all of them after a `reset` when that id
    was never saved."""
    frames = _replayed(generation_id, recording, position)
    while batch := "".join(itertools.islice(frames, BACKLOG)):
        yield batch.encode()


def _replayed(generation_id: str, recording: Recording, position: int) -> Iterator[str]:
    entries: list[Entry] = json.loads(recording.log)
    ids = [entry.get("id", n) if isinstance(entry, dict) else n for n, entry in enumerate(entries, 1)]
    if position and position not in ids:
        position = 0
        yield _frame(None, "reset", generation_id, {})
    delta, reasoning = _text_head("delta", generation_id), _text_head("reasoning", generation_id)
    said = thought = 0
    for event_id, entry in zip(ids, entries, strict=True):
        if isinstance(entry, dict):
            frame = _frame(event_id, entry["event"], generation_id, entry["data"])
        elif entry > 0:
            frame = _text_frame(event_id, delta, recording.content[said : said + entry])
            said += entry
        else:
            frame = _text_frame(event_id, reasoning, recording.reasoning[thought : thought - entry])
            thought -= entry
        if event_id > position:
            yield frame


def interrupted(recording: Recording) -> Recording:
    """What was saved of an answer that a killed server was writing, with an end."""
    entries: list[Entry] = json.loads(recording.log)
    done = {"status": "interrupted", "message_id": recording.message_id, "stats": {}}
    entries.append({"id": len(entries) + 1 + CRASH_GAP, "event": "done", "data": done})
    return Recording(recording.message_id, "interrupted", recording.content, recording.reasoning, json.dumps(entries))


def _frame(event_id: int | None, event: str, generation_id: str, data: dict[str, Any]) -> str:
    """One server-sent event. JSON in ASCII: some readers end lines at U+2028 too."""
    head = "" if event_id is None else f"id: {event_id}\n"
    return f"{head}event: {event}\ndata: {json.dumps({'generation_id': generation_id, **data})}\n\n"


def _text_head(event: str, generation_id: str) -> str:
    return f'\nevent: {event}\ndata: {{"generation_id": "{generation_id}", "delta": '


def _text_frame(event_id: int, head: str, text: str) -> str:
    """The same without json.dumps, for there is one a token."""
    return f"id: {event_id}{head}{encode_basestring_ascii(text)}}}\n\n"
