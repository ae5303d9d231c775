"""Syntax highlighting of code that is made to be slow: every language answers in time, and shows the whole text."""

import time
from typing import Any

import pytest
from fireside import render
from pygments.lexers import get_lexer_by_name  # type: ignore[import-untyped]

from . import lexing
from .live import Person, good
from .trials import some

SECONDS = (
    15.0  # that an answer may take: the limit for a block is 2 s, and a new child process starts on a busy computer
)
FENCE = "~" * 20
GROUPS = 7  # of languages, so that they are tested side by side


def _lexers() -> dict[str, str]:
    """One language for each lexer."""
    return {type(get_lexer_by_name(language)).__name__: language for language in sorted(render.LANGUAGES, reverse=True)}


def _text(node: Any) -> str:
    return node if isinstance(node, str) else "".join(map(_text, node[2:]))


@pytest.mark.parametrize("group", range(GROUPS))
async def test_code_that_is_slow_to_highlight_is_shown_whole_and_in_time(ann: Person, group: int) -> None:
    late = []
    for language in sorted(_lexers().values())[group::GROUPS]:
        inputs = lexing.inputs(language)
        for number in some(len(inputs)):
            code = inputs[number]
            started = time.monotonic()
            shown = good(await ann.post("/render", json={"text": f"{FENCE}{language}\n{code}\n{FENCE}\n"}))
            seconds = time.monotonic() - started
            if seconds > SECONDS:
                late.append(f"{language} {code[:40]!r}...{code[-10:]!r}: {seconds:.1f} s")
            (block,) = shown["blocks"] + shown["tail"]
            assert lexing.shown(code) in _text(block), f"{language}: a part of {code[:40]!r} is missing"
    assert late == []
