"""A process forked by tests/nursery.py has the same surroundings as a fresh one."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ..live import PATIENCE
from ..processes import environment, start

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at other processes in /proc")


def describe(data_dir: Path, fresh: bool) -> dict[str, Any]:
    """Start a service, describe its process, and kill it."""
    process = start("--port", "0", "--data-dir", str(data_dir), environ=environment(), fresh=fresh)
    assert process.stdout is not None
    lines = [process.stdout.readline().rpartition(":")[0] for _ in range(2)]
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0)
    proc = Path(f"/proc/{process.pid}")
    found = {
        "descriptors": sorted(re.sub(r"\[\d+\]", "", os.readlink(link)) for link in (proc / "fd").iterdir()),
        "signals": re.findall(r"Sig(?:Ign|Cgt):.*", (proc / "status").read_text()),
        "folder": os.readlink(proc / "cwd"),
        "group": os.getpgid(process.pid),
    }
    process.kill()
    rest = process.communicate(timeout=PATIENCE)
    return found | {"lines": lines, "rest": rest, "code": process.returncode, "poll": process.poll()}


def test_forked_process_is_like_a_fresh_one(tmp_path: Path) -> None:
    forked = describe(tmp_path, fresh=False)
    assert forked == describe(tmp_path, fresh=True)
    assert forked["code"] == -signal.SIGKILL


def test_forked_process_has_the_given_environment_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for settings in ({"port": "x"}, {}):
        out, err = start("doctor", "--data-dir", "here", environ=environment(**settings)).communicate(timeout=PATIENCE)
        assert ("FIRESIDE_PORT" in err) == bool(settings)
    assert str(tmp_path / "here") in out
