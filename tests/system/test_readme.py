"""The commands in README.md work as written."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..live import parse_event as event
from ..live import text

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A service with the small model, as `make run` starts it. Returns the variables that the commands use."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FIRESIDE_")}
    environ |= {"FIRESIDE_LMSTUDIO_URL": "http://127.0.0.1:9", "FIRESIDE_ENGINE_THREADS": "1"}
    command = [sys.executable, "-m", "fireside", "--port", "0", "--no-open", "--data-dir", str(tmp_path / "data")]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout is not None
        base = service.stdout.readline().removeprefix("Fireside is at ").strip()
        token = service.stdout.readline().partition("#setup=")[2].strip()
        yield {"BASE": base, "TOKEN": token}
        service.terminate()
        assert service.wait(30) == 0


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
