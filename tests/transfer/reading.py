"""What the tests of importing share."""

import contextlib
from pathlib import Path
from typing import Any

from fireside.transfer.source import Source
from fireside.transfer.steps import Skipped
from fireside.transfer.transcript import Conversation

from .. import talks

KEEL = '{\n  "q": "keel"\n}'  # the arguments of a tool call, as an import shows them


def take(path: Path) -> tuple[list[Conversation], list[Skipped]]:
    with contextlib.closing(Source(path)) as opened:
        found = list(opened)
        assert opened.read <= opened.size
    skipped = [item for item in found if isinstance(item, Skipped)]
    return [item for item in found if isinstance(item, Conversation)], skipped


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def take_bytes(folder: Path, name: str, data: bytes) -> tuple[list[Conversation], list[Skipped]]:
    return take(write(folder, {name: data}) / name)


def read_one(folder: Path, name: str, value: Any) -> Conversation:
    (read,), skipped = take_bytes(folder, name, value if isinstance(value, bytes) else talks.encoded(value))
    assert skipped == []
    return read


def paragraphs(*texts: str) -> str:
    return "\n\n".join(texts)


def folded(name: str, *texts: str) -> str:
    """A tool call with its arguments and results, as an import shows it."""
    blocks = [f"```json\n{text}\n```" if text.startswith(("{", "[")) else f"```\n{text}\n```" for text in texts]
    return paragraphs(f"<details>\n<summary>Tool: {name}</summary>", *blocks, "</details>")
