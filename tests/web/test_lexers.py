"""Syntax highlighting of code that is made to be slow, in every language."""

import time
from typing import Any

import msgspec
import pytest
from fireside.safety.sandbox import Sandbox
from fireside.web import markdown, renderer
from fireside.web.renderer import Renderer
from pygments.lexers import get_lexer_by_name  # type: ignore[import-untyped]

from .. import lexing

BLOCK_SECONDS = 0.5  # less than in the product, since the slowest inputs take as long as they may
MAX_SECONDS = 15.0  # for a text, on a busy computer where a new child starts
GROUPS = 7  # of languages, so that they are tested side by side


def _text(node: Any) -> str:
    return node if isinstance(node, str) else "".join(map(_text, node[2:]))


def _shown(code: str) -> str:
    return code.replace("\r", "\n").replace("\0", "\ufffd")


@pytest.mark.long
@pytest.mark.parametrize("group", range(GROUPS))
async def test_code_that_is_slow_to_highlight_is_shown_whole_and_in_time(
    group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renderer, "BLOCK_SECONDS", BLOCK_SECONDS)
    lexers = {type(get_lexer_by_name(language)): language for language in sorted(markdown.LANGUAGES)}
    sandbox, late = Sandbox(), []
    try:
        for language in sorted(lexers.values())[group::GROUPS]:
            for code in lexing.inputs(language):
                started = time.monotonic()
                [nodes] = await Renderer(sandbox).finished(1, [lexing.fenced(language, code)])
                if time.monotonic() - started > MAX_SECONDS:
                    late.append(f"{language} {code[:40]!r}...{code[-10:]!r}")
                text = "".join(_text(msgspec.json.decode(node)) for node in nodes)
                assert _shown(code) in text, f"{language}: a part of {code[:40]!r} is missing"
    finally:
        await sandbox.aclose()
    assert late == []
