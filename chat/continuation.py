"""A continuation: the text that is added to an answer, and the statistics of the whole.

llama.cpp continues a request that ends with an assistant message, and newer versions repeat that message first. Other servers are
asked to go on: LM Studio continues too, but 0.4.16 reads the message twice (lmstudio-bug-tracker#2041).
"""

import re
from typing import Any

from ..queries.generations import Earlier

INSTRUCTION = (
    "Your last answer was cut off. Continue it exactly where it stops, even in the middle of a word, a line or a code block."
    " Write only what follows: no introduction, and nothing that you have already written."
)
HEAD_CHARACTERS = 300  # of a continuation that are compared with the end of the text before it
HEAD_LINES = 3
MIN_REPEATED_CHARACTERS = 12  # fewer may be alike by chance

_FENCE = re.compile(r"[ \t>]*(`{3,}|~{3,})[ \t]*([^`\n]*)")


class Joint:
    """Removes from the beginning of a continuation what repeats the text before it: the whole text, its end, or its code fence."""

    def __init__(self, before: str) -> None:
        self._before = before
        self._fence = open_fence(before)
        self._held = ""
        self._passed = False

    def add(self, text: str) -> str:
        """Return the text that can be appended now."""
        if self._passed:
            return text
        self._held += text
        if self._before.startswith(self._held):  # so far it repeats the whole text
            return ""
        if self._held.startswith(self._before):
            return self._pass(self._held[len(self._before) :])
        if len(self._held) < HEAD_CHARACTERS and self._held.count("\n") < HEAD_LINES:
            return ""
        return self._pass(self._without_repetition())

    def end(self) -> str:
        """Return the rest, when the continuation has ended."""
        return "" if self._passed or self._held == self._before else self._pass(self._without_repetition())

    def _pass(self, text: str) -> str:
        self._passed = True
        return text

    def _without_repetition(self) -> str:
        head = self._held
        if self._fence:
            lines = head[:HEAD_CHARACTERS].splitlines(keepends=True)[: HEAD_LINES + 1]
            for number, line in enumerate(lines):
                if self._opens_again(line, number):
                    head = head[sum(map(len, lines[: number + 1])) :]
                    break
                if open_fence(f"{self._fence}\n{line}") == "":  # closes the block
                    break
        most = min(len(head), len(self._before), HEAD_CHARACTERS)
        for length in range(most, MIN_REPEATED_CHARACTERS - 1, -1):
            if self._before.endswith(head[:length]):
                return head[length:]
        return head

    def _opens_again(self, line: str, number: int) -> bool:
        """Return whether this line opens the block again that is open. A fence with a language, or after a cut line, closes none."""
        match = _FENCE.match(line)
        if match is None or not match[1].startswith(self._fence):
            return False
        return bool(match[2].strip()) or (number == 0 and not self._before.endswith("\n"))


def open_fence(text: str) -> str:
    """Return the fence of the code block in which a Markdown text ends, or ""."""
    fence = ""
    for line in text.split("\n"):
        match = _FENCE.match(line)
        if match is None:
            continue
        if not fence:
            fence = match[1]
        elif match[1].startswith(fence) and not match[2].strip():
            fence = ""
    return fence


def whole_usage(earlier: Earlier, usage: dict[str, int] | None, wrote: bool) -> dict[str, int] | None:
    """Return the usage of the whole answer; None if that of the continuation is unknown. `wrote`: whether that has text.

    The prompt is the first one: that of the continuation contains the first part. If the usage of the first part is unknown, only the
    continuation counts.
    """
    before = earlier.token_usage
    if not wrote or usage is None or before is None:
        return usage if wrote else before
    prompt, completion = before["prompt_tokens"], before["completion_tokens"] + usage["completion_tokens"]
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def whole_stats(earlier: Earlier, stats: dict[str, Any], usage: dict[str, int] | None, wrote: bool) -> dict[str, Any]:
    """Return the statistics of the whole answer, whose usage is `usage`."""
    before = earlier.stats
    whole = before | stats
    for name in ("finish_reason", "requested_model"):
        if name not in stats:
            whole.pop(name, None)
    if "ttft_ms" in before:
        whole["ttft_ms"] = before["ttft_ms"]
    for name in ("total_ms", "queued_ms", "reasoning_ms"):
        if name in before and name in stats:
            whole[name] = before[name] + stats[name]
    if not wrote:
        return whole
    for name in ("generation_ms", "tokens_per_second"):
        whole.pop(name, None)
    parts = [stats.get("generation_ms"), *([before.get("generation_ms")] if earlier.token_usage else [])]
    if usage is not None and all(parts) and usage["completion_tokens"] > 1:
        whole["generation_ms"] = sum(parts)
        whole["tokens_per_second"] = round((usage["completion_tokens"] - 1) * 1000 / whole["generation_ms"], 2)
    return whole
