"""The events of an answer: kept in memory while it is written, stored as a recording, replayed byte for byte.

Event n of a log has the id n, from 1 on. In memory a log is the bytes of its events, which all readers share. On disk it is
the answer's two texts and a list that cuts them: a number n is a `delta` of n characters of the content, -n a `reasoning`
of n characters of the reasoning, an object any other event (docs/decisions/0003-event-log.md).
"""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable, Iterator
from json.encoder import encode_basestring_ascii
from typing import Any

from ..db import now
from ..errors import TooManyReaders
from ..queries.generations import Recording, SavedPart

MAX_READERS = 64  # each token is written to all of them
BATCH_EVENTS = 512  # that a reader gets at a time
MIN_EVENT_BYTES = 16  # that an event counts: one of a single character takes 200 bytes of memory
CRASH_GAP = 1 << 32  # between the last saved id and that of `done` after a crash, so that it is new to every reader

Entry = int | dict[str, Any]
Write = Callable[[bytes], bool]  # writes at once, or returns False if that is not possible now


class Reader:
    """A task that reads what another task writes. It waits for news, or until a ping is due."""

    def __init__(self, ping_seconds: float, write: Callable[[Any], bool] | None, position: int = 0) -> None:
        self.position = position
        self._loop = asyncio.get_running_loop()
        self._write = write
        self._ping_seconds = ping_seconds
        self._news_at = self._loop.time()
        self._waiting: asyncio.Future[bool] | None = None
        # Set again only when it fires: there is news once a token.
        self._timer = self._loop.call_later(ping_seconds, self._check_silence)

    def wait(self) -> asyncio.Future[bool]:
        """Return a future whose result is False when a ping is due."""
        self._waiting = self._loop.create_future()
        return self._waiting

    def write(self, data: Any) -> bool:
        """Write news without waking the task, which costs as much as writing. Return False if the task has to write it."""
        if self._write is None or self._waiting is None or self._waiting.done() or not self._write(data):
            return False
        self._news_at = self._loop.time()
        return True

    def wake(self) -> None:
        self._news_at = self._loop.time()
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(True)

    def _check_silence(self) -> None:
        silence = self._loop.time() - self._news_at
        if silence >= self._ping_seconds:
            silence = 0.0
            if self._waiting is not None and not self._waiting.done():
                self._waiting.set_result(False)
        self._timer = self._loop.call_later(self._ping_seconds - silence, self._check_silence)

    def close(self) -> None:
        self._timer.cancel()
        self._waiting = None


class EventLog:
    """The events of a running answer. `publish` hands them to the readers; `add` publishes by itself."""

    def __init__(self, generation_id: str) -> None:
        self.generation_id = generation_id
        self.ended = False
        self.saved = 0  # events in the database
        self._size = 0
        self._frames: list[bytes] = []
        self._entries: list[Entry] = []
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._delta_head = _text_head("delta", generation_id)
        self._reasoning_head = _text_head("reasoning", generation_id)
        self._readers: list[Reader] = []  # in order, so that a simulation repeats

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size(self) -> int:
        """Bytes that count towards answer_max_bytes."""
        return max(self._size, MIN_EVENT_BYTES * len(self._frames))

    @property
    def content(self) -> str:
        return "".join(self._content)

    @property
    def reasoning(self) -> str:
        return "".join(self._reasoning)

    def add(self, event: str, data: dict[str, Any]) -> None:
        self._entries.append({"event": event, "data": data})
        frame = _frame(len(self._entries), event, self.generation_id, data).encode()
        self._frames.append(frame)
        self._size += len(frame)
        self.publish()

    def append_content(self, text: str) -> None:
        self._content.append(text)
        self._append(self._delta_head, text, len(text))

    def append_reasoning(self, text: str) -> None:
        self._reasoning.append(text)
        self._append(self._reasoning_head, text, -len(text))

    def _append(self, head: str, text: str, entry: int) -> None:
        self._entries.append(entry)
        self._size += len(text) if text.isascii() else len(text.encode())
        self._frames.append(_text_frame(len(self._entries), head, text).encode())

    def publish(self) -> None:
        """Hand all events since the last call to the readers in one piece."""
        end, piece, piece_start = len(self._frames), b"", -1
        for reader in self._readers:
            if self.ended or end - reader.position > BATCH_EVENTS:
                reader.wake()
            elif reader.position < end:
                if reader.position != piece_start:  # most readers are at the same position
                    piece_start = reader.position
                    piece = b"".join(self._frames[piece_start:])
                if reader.write(piece):
                    reader.position = end
                else:
                    reader.wake()

    def end(self, done: dict[str, Any]) -> None:
        """Add the last event."""
        self.ended = True
        self.add("done", done)

    def ends_at(self, position: int) -> bool:
        return self.ended and position == len(self)

    def check_readers(self) -> None:
        """Raise TooManyReaders if no other reader may follow this answer."""
        if len(self._readers) >= MAX_READERS:
            raise TooManyReaders

    def unsaved_part(self) -> SavedPart:
        """Return the events that the database does not have yet."""
        entries = self._entries[self.saved :]
        lengths = [entry for entry in entries if isinstance(entry, int)]
        deltas = sum(length > 0 for length in lengths)
        content = "".join(self._content[len(self._content) - deltas :])
        reasoning = "".join(self._reasoning[len(self._reasoning) - (len(lengths) - deltas) :])
        return SavedPart(self.generation_id, self.saved + 1, content, reasoning, json.dumps(entries))

    def recording(self, message_id: int, status: str, done: dict[str, Any]) -> Recording:
        """Return the whole answer as it is stored. `done` is its last event, whether it is in the log yet or not."""
        entries = self._entries if self.ended else [*self._entries, {"event": "done", "data": done}]
        return Recording(message_id, status, self.content, self.reasoning, json.dumps(entries))

    async def follow(self, position: int, ping_seconds: float, write: Write | None = None) -> AsyncIterator[bytes]:
        """Yield the events after `position` as they are published, and a `ping` after each silence of `ping_seconds`.

        A position that the log has not reached yields `reset` and then all events. While nothing is left to yield, new events
        go to `write` if it takes them.
        """
        reader = Reader(ping_seconds, write, position)
        self._readers.append(reader)
        try:
            if position > len(self._frames):
                reader.position = 0
                yield _frame(None, "reset", self.generation_id, {}).encode()
            while True:
                if batch := self._frames[reader.position : reader.position + BATCH_EVENTS]:
                    reader.position += len(batch)
                    yield b"".join(batch)
                elif self.ended:
                    return
                elif not await reader.wait():
                    yield _frame(None, "ping", self.generation_id, {"ts": now()}).encode()
        finally:
            reader.close()
            self._readers.remove(reader)


async def replay(generation_id: str, recording: Recording, position: int) -> AsyncIterator[bytes]:
    """Yield the events of a stored answer after `position`, up to BATCH_EVENTS at a time.

    A position that is not the id of an event yields `reset` and then all events.
    """
    frames = _recorded_frames(generation_id, recording, position)
    while batch := "".join(itertools.islice(frames, BATCH_EVENTS)):
        yield batch.encode()


def _recorded_frames(generation_id: str, recording: Recording, position: int) -> Iterator[str]:
    entries: list[Entry] = json.loads(recording.log)
    ids = [_id(entry, number) for number, entry in enumerate(entries, 1)]
    if position and position not in ids:
        position = 0
        yield _frame(None, "reset", generation_id, {})
    delta_head, reasoning_head = _text_head("delta", generation_id), _text_head("reasoning", generation_id)
    content_end = reasoning_end = 0
    for event_id, entry in zip(ids, entries, strict=True):
        if isinstance(entry, dict):
            frame = _frame(event_id, entry["event"], generation_id, entry["data"])
        elif entry > 0:
            start, content_end = content_end, content_end + entry
            frame = _text_frame(event_id, delta_head, recording.content[start:content_end])
        else:
            start, reasoning_end = reasoning_end, reasoning_end - entry
            frame = _text_frame(event_id, reasoning_head, recording.reasoning[start:reasoning_end])
        if event_id > position:
            yield frame


def _id(entry: Entry, number: int) -> int:
    event_id: int = entry.get("id", number) if isinstance(entry, dict) else number
    return event_id


def last_id(recording: Recording) -> int:
    """Return the id of the last event of a stored answer, which is its `done`."""
    entries: list[Entry] = json.loads(recording.log)
    return _id(entries[-1], len(entries)) if entries else 0


def interrupted(recording: Recording) -> Recording:
    """Return the recording of an answer that was running when the server was killed, with a `done` event."""
    entries: list[Entry] = json.loads(recording.log)
    done = {"status": "interrupted", "message_id": recording.message_id, "stats": {}}
    entries.append({"id": len(entries) + 1 + CRASH_GAP, "event": "done", "data": done})
    return Recording(recording.message_id, "interrupted", recording.content, recording.reasoning, json.dumps(entries))


def _frame(event_id: int | None, event: str, generation_id: str, data: dict[str, Any]) -> str:
    """Return one server-sent event. Its JSON is ASCII, because some readers also end lines at U+2028."""
    head = "" if event_id is None else f"id: {event_id}\n"
    return f"{head}event: {event}\ndata: {json.dumps({'generation_id': generation_id, **data})}\n\n"


def _text_head(event: str, generation_id: str) -> str:
    return f'\nevent: {event}\ndata: {{"generation_id": "{generation_id}", "delta": '


def _text_frame(event_id: int, head: str, text: str) -> str:
    """Return the same as `_frame` in less time, since there is one for each token."""
    return f"id: {event_id}{head}{encode_basestring_ascii(text)}}}\n\n"
