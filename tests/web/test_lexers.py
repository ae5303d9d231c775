"""Syntax highlighting of code that is made to be slow: every language ends in time, and shows the whole text."""

import time
from typing import Any

import msgspec
import pytest
from fireside.safety.sandbox import Sandbox
from fireside.web import markdown, renderer
from fireside.web.renderer import Renderer
from pygments.lexers import get_lexer_by_name  # type: ignore[import-untyped]

from .. import lexing
from ..trials import TRIALS, WHOLE

LIMIT = 0.5  # seconds for a block, fewer than in the product: the slowest inputs take as long as they may
SECONDS = 15.0  # in all, on a busy computer where a new child process starts
GROUPS = 7  # of languages, so that they are tested side by side
LENGTHS = (lexing.CHARACTERS, 1_000, 2_000, 4_000, 8_000, 1_000, 2_000, 4_000)
PART = 3  # inputs of a language with `make test`; the first is the slowest that is known


def _lexers() -> dict[str, str]:
    """One language for each lexer."""
    return {
        type(get_lexer_by_name(language)).__name__: language for language in sorted(markdown.LANGUAGES, reverse=True)
    }


def _inputs(language: str) -> list[str]:
    whole = lexing.inputs(language, lengths=LENGTHS)
    return whole if TRIALS >= WHOLE else whole[:: len(whole) // PART | 1]


def _text(node: Any) -> str:
    return node if isinstance(node, str) else "".join(map(_text, node[2:]))


@pytest.mark.parametrize("group", range(GROUPS))
async def test_code_that_is_slow_to_highlight_is_shown_whole_and_in_time(
    group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renderer, "BLOCK_SECONDS", LIMIT)
    sandbox, late = Sandbox(), []
    formatting = Renderer(sandbox)
    try:
        for language in sorted(_lexers().values())[group::GROUPS]:
            for code in _inputs(language):
                started = time.monotonic()
                blocks = await formatting.blocks(1, lexing.fenced(language, code))
                seconds = time.monotonic() - started
                if seconds > SECONDS:
                    late.append(f"{language} {code[:40]!r}...{code[-10:]!r}: {seconds:.1f} s")
                shown = "".join(_text(msgspec.json.decode(block.node)) for block in blocks)
                assert lexing.shown(code) in lexing.shown(shown), f"{language}: a part of {code[:40]!r} is missing"
    finally:
        await sandbox.aclose()
    assert late == []
