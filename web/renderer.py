"""Formatting of messages for the page: markdown.py in a child process, with limits and a cache.

A block that takes too much time or memory is shown as plain text, and says so; the blocks around it are formatted as usual.
"""

import asyncio
import contextlib
import logging
from collections import OrderedDict

import msgspec
from msgspec import Raw

from ..safety.queue import Slots
from ..safety.sandbox import Sandbox, WorkFailed
from . import markdown

log = logging.getLogger("fireside.renderer")

BLOCK_SECONDS = 5.0  # 500 lines of code take 0.1 s on an idle computer
REQUEST_SECONDS = 30.0  # the rest is plain text
FAILURES = 3  # of one request; the rest is plain text
CACHE_BYTES = 8 * 1024 * 1024
PROCESSES = 2
PRELOAD = ("fireside.web.markdown", "markdown_it", "pygments.lexers", "pygments.lexers.python", "pygments.styles")


class Block(msgspec.Struct):
    """See markdown.Block. `node` is JSON."""

    end: int
    closed: bool
    node: Raw


class Renderer:
    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._queue = Slots(PROCESSES, per_user=1)
        self._cache: OrderedDict[str, list[Raw]] = OrderedDict()  # by text, in the order of use
        self._cached = 0  # bytes

    async def blocks(self, user_id: int, text: str) -> list[Block]:
        """Return the blocks of a text that may still grow."""
        job = _Job([text])
        await self._run(user_id, job)
        return [Block(*end, node) for end, node in zip(job.outlines[0], job.nodes[0], strict=True)]

    async def nodes(self, user_id: int, texts: list[str]) -> list[list[Raw]]:
        """Return the nodes of each of the texts, which are finished."""
        found = {text: self._cache[text] for text in texts if text in self._cache}
        job = _Job([text for text in dict.fromkeys(texts) if text not in found])
        await self._run(user_id, job)
        found |= zip(job.texts, job.nodes, strict=True)
        for text in found.keys() - job.failed:
            self._keep(text, found[text])
        return [found[text] for text in texts]

    async def _run(self, user_id: int, job: "_Job") -> None:
        async with self._queue.slot(user_id):
            await job.run(self._sandbox)

    def _keep(self, text: str, nodes: list[Raw]) -> None:
        self._cached += 0 if text in self._cache else _size(text, nodes)
        self._cache[text] = nodes
        self._cache.move_to_end(text)
        while self._cached > CACHE_BYTES:
            self._cached -= _size(*self._cache.popitem(last=False))


def _size(text: str, nodes: list[Raw]) -> int:
    return len(text) + sum(len(memoryview(node)) for node in nodes)


class _Job:
    """Some texts on their way through the sandbox. When a block fails, the work goes on with the next block."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts
        self.outlines: list[list[tuple[int, bool]]] = []  # `end` and `closed` of the blocks of each text
        self.nodes: list[list[Raw]] = [[] for _ in texts]
        self.failed: set[str] = set()  # texts with a plain block

    async def run(self, sandbox: Sandbox) -> None:
        deadline, failures = asyncio.get_running_loop().time() + REQUEST_SECONDS, 0
        while (current := self._unfinished()) < len(self.texts):
            if failures == FAILURES:
                self._give_up_rest(current)
                await asyncio.sleep(0)  # let others run: there may be many texts
                continue
            try:
                async with asyncio.timeout_at(deadline):
                    await self._format(sandbox, current)
            except (WorkFailed, TimeoutError) as error:
                log.warning("a text is shown without formatting: %s", str(error) or "the request took too long")
                failures = failures + 1 if isinstance(error, WorkFailed) else FAILURES
                self._give_up_block(self._unfinished())

    def _unfinished(self) -> int:
        """Return the index of the first text of which a block is missing. Texts are finished in their order."""
        last = len(self.outlines) - 1
        return last if last >= 0 and len(self.nodes[last]) < len(self.outlines[last]) else last + 1

    async def _format(self, sandbox: Sandbox, current: int) -> None:
        finished = len(self.nodes[current])
        work = sandbox.iterate(markdown.stream, self.texts[current:], finished, seconds=BLOCK_SECONDS)
        async with contextlib.aclosing(work) as items:
            async for item in items:
                index, outline, node = _decode(item)
                if outline is None:
                    self.nodes[current + index].append(Raw(node))
                elif current + index == len(self.outlines):
                    self.outlines.append(outline)

    def _give_up_block(self, current: int) -> None:
        """Make the block that failed plain, or the whole text when its blocks are not known."""
        if current == len(self.texts):
            return  # the last block arrived before the failure
        if current == len(self.outlines):
            self._give_up_rest(current)
            return
        done, outline = len(self.nodes[current]), self.outlines[current]
        self._add_plain(current, outline[done - 1][0] if done else 0, outline[done][0])

    def _give_up_rest(self, current: int) -> None:
        """Make one plain block of what is left of the text."""
        done, text = len(self.nodes[current]), self.texts[current]
        known = self.outlines.pop(current)[:done] if current < len(self.outlines) else []
        end = len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2
        start = known[-1][0] if known else 0
        self.outlines.insert(current, [*known, (end, False)])
        self._add_plain(current, start, end)

    def _add_plain(self, current: int, start: int, end: int) -> None:
        """Add the text between two positions, in UTF-16 code units, as a node."""
        text = self.texts[current]
        units = text.encode("utf-16-le", "surrogatepass")
        plain = units[2 * start : 2 * end].decode("utf-16-le", "replace")
        self.nodes[current].append(Raw(msgspec.json.encode(markdown.unformatted(plain))))
        self.failed.add(text)


_decode = msgspec.msgpack.Decoder(tuple[int, list[tuple[int, bool]] | None, bytes]).decode
