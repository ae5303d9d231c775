"""The commands in README.md work as written."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..browser import Fireside
from ..live import PATIENCE, text
from ..live import parse_event as event

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A service with the small model, as `make run` starts it. Returns the variables that the commands use."""
    with Fireside(tmp_path / "data", fresh=True, lmstudio_url="http://127.0.0.1:9") as service:
        yield {"BASE": service.url, "TOKEN": service.setup_link().rpartition("=")[2]}
        service.process.terminate()
        assert service.process.wait(PATIENCE) == 0


def test_curl_commands_get_an_answer_from_the_real_model(served: dict[str, str], tmp_path: Path) -> None:
    section = README.partition("## Over HTTP")[2]
    found = re.search(r"```sh\n(.*?)```", section, re.S)
    assert found is not None
    commands = found[1].replace("BASE=http://127.0.0.1:8000", f"BASE={served['BASE']}")
    assert commands != found[1]
    shell = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "TOKEN": served["TOKEN"]},
        capture_output=True,
        timeout=120,
        check=True,
    )
    created, _, rest = shell.stdout.partition(b"}{")
    assert b'"title":"Geography"' in created, shell.stdout
    stream = rest[rest.index(b"id: ") :]
    events = [event(block) for block in stream.strip().split(b"\n\n")]
    assert "Tokyo" in text(events)
    assert [events[0].event, events[-1].event, events[-1].data["status"]] == ["ping", "done", "ok"]
    listed = subprocess.run(
        ["curl", "-s", "-b", "cookies", f"{served['BASE']}/conversations/1/messages"],
        cwd=tmp_path,
        capture_output=True,
        timeout=30,
        check=True,
    )
    assert "Tokyo" in json.loads(listed.stdout)[-1]["content"]
