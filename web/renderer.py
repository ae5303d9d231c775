"""Formatting of messages for the page: markdown.py in a child process, with limits and a cache.

A block that takes too much time or memory becomes plain text. The blocks around it are formatted as usual.
"""

import asyncio
import contextlib
import logging
from collections import OrderedDict
from dataclasses import dataclass, field

import msgspec
from msgspec import Raw

from ..safety.queue import Slots
from ..safety.sandbox import Sandbox, WorkFailed
from . import markdown

log = logging.getLogger("fireside.renderer")

BLOCK_SECONDS = 5.0  # 500 lines of code take 0.1 s on an idle computer
REQUEST_SECONDS = 30.0  # after that, the rest is plain text
MAX_FAILURES = 3  # of one request; after them, the rest is plain text
CACHE_BYTES = 8 * 1024 * 1024
PROCESSES = 2
PRELOAD = ("fireside.web.markdown", "markdown_it", "pygments.lexers", "pygments.lexers.python")


class GrowingText(msgspec.Struct):
    """The nodes of a text that may still grow. More text does not change `blocks`, which end after `closed` UTF-16 code units."""

    closed: int
    blocks: list[Raw]
    tail: list[Raw]


class Renderer:
    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._queue = Slots(PROCESSES, per_user=1)
        self._cache: OrderedDict[str, list[Raw]] = OrderedDict()  # nodes by text, the last used at the end
        self._cached_bytes = 0

    async def growing(self, user_id: int, text: str) -> GrowingText:
        async with self._queue.slot(user_id):
            formatted = await _Request(self._sandbox).format(text)
        closed, nodes = formatted.closed, formatted.nodes
        source = text[: formatted.ends[closed - 1]] if closed else ""
        return GrowingText(len(source.encode("utf-16-le", "surrogatepass")) // 2, nodes[:closed], nodes[closed:])

    async def finished(self, user_id: int, texts: list[str]) -> list[list[Raw]]:
        """Return the nodes of each of the texts."""
        nodes = {text: self._cache[text] for text in texts if text in self._cache}
        async with self._queue.slot(user_id):
            request = _Request(self._sandbox)
            for text in dict.fromkeys(texts):
                if text not in nodes:
                    formatted = await request.format(text)
                    nodes[text] = formatted.nodes
                    if formatted.has_failed:
                        continue
                self._keep(text, nodes[text])
        return [nodes[text] for text in texts]

    def _keep(self, text: str, nodes: list[Raw]) -> None:
        self._cached_bytes += 0 if text in self._cache else _size(text, nodes)
        self._cache[text] = nodes
        self._cache.move_to_end(text)
        while self._cached_bytes > CACHE_BYTES:
            self._cached_bytes -= _size(*self._cache.popitem(last=False))


def _size(text: str, nodes: list[Raw]) -> int:
    return len(text) + sum(len(memoryview(node)) for node in nodes)


@dataclass
class _Formatted:
    """A text and its blocks that are formatted so far."""

    text: str
    ends: list[int] = field(default_factory=list)  # of the blocks; see markdown.Outline
    closed: int = 0
    nodes: list[Raw] = field(default_factory=list)
    has_failed: bool = False

    @property
    def is_complete(self) -> bool:
        return 0 < len(self.ends) == len(self.nodes)

    def add_plain(self, whole_rest: bool) -> None:
        """Add the next block as a plain node, or the whole rest, also when the blocks are not known."""
        done = len(self.nodes)
        if whole_rest or done == len(self.ends):
            self.ends[done:] = [len(self.text)]
            self.closed = min(self.closed, done)
        start = self.ends[done - 1] if done else 0
        self.nodes.append(Raw(msgspec.json.encode(markdown.unformatted(self.text[start : self.ends[done]]))))
        self.has_failed = True


class _Request:
    """The formatting of some texts within common limits."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._deadline = asyncio.get_running_loop().time() + REQUEST_SECONDS
        self._failures = 0

    async def format(self, text: str) -> _Formatted:
        formatted = _Formatted(text)
        while not formatted.is_complete:
            if self._failures >= MAX_FAILURES:
                await asyncio.sleep(0)  # let other tasks run: there may be many texts
                formatted.add_plain(whole_rest=True)
                break
            try:
                async with asyncio.timeout_at(self._deadline):
                    await self._format_in_child(formatted)
                break
            except WorkFailed as error:
                self._failures += 1
                log.warning("a block is shown without formatting: %s", error)
                if not formatted.is_complete:
                    formatted.add_plain(whole_rest=False)
            except TimeoutError:
                self._failures = MAX_FAILURES
                log.warning("a text is shown without formatting: the request took too long")
        return formatted

    async def _format_in_child(self, formatted: _Formatted) -> None:
        work = self._sandbox.iterate(markdown.render, formatted.text, len(formatted.nodes), seconds=BLOCK_SECONDS)
        async with contextlib.aclosing(work) as items:
            formatted.ends, formatted.closed = _decode_outline(await anext(items))
            async for node in items:
                formatted.nodes.append(Raw(node))


_decode_outline = msgspec.msgpack.Decoder(tuple[list[int], int]).decode
