"""Starting at login: the files and commands for three platforms. At most one of them can run here."""

import codecs
import dataclasses
import json
import os
import plistlib
import re
import sys
from pathlib import Path, PureWindowsPath
from typing import Any, cast
from xml.etree import ElementTree

import pytest
from fireside import config
from fireside.cli import autostart, client, commands

from ..processes import run

posix = pytest.mark.skipif(os.name != "posix", reason="a script for /bin/sh")


def write_script(file: Path, script: str) -> None:
    file.write_text(f"#!/bin/sh\n{script}\n", "utf-8")
    file.chmod(0o755)


HOME = Path("/home/me")
DATA = Path("/home/me/My chats & more")


def test_systemd_unit_quotes_its_command_and_restarts_it() -> None:
    plan = autostart.plan("linux", Path("/opt/py 3/bin/python"), HOME, Path('/data/100%/"x"'), "")
    assert plan.file == HOME / ".config/systemd/user/fireside.service"
    [command] = re.findall(r"^ExecStart=(.*)$", plan.content, re.M)
    data = r'"/data/100%%/\"x\""'  # systemd replaces specifiers such as %h
    assert command == f'"/opt/py 3/bin/python" "-m" "fireside" "serve" "--no-open" "--data-dir" {data}'
    assert "Restart=on-failure" in plan.content and "WantedBy=default.target" in plan.content
    assert plan.start[-1] == ("systemctl", "--user", "enable", "--now", "fireside.service")
    assert plan.stop == (("systemctl", "--user", "disable", "--now", "fireside.service"),)


def test_launch_agent_is_a_property_list_with_every_argument() -> None:
    plan = autostart.plan("darwin", Path("/usr/bin/python3"), HOME, DATA, "")
    assert plan.file == HOME / "Library/LaunchAgents/fireside.plist"
    agent = plistlib.loads(plan.content.encode())
    assert agent["ProgramArguments"][1:] == ["-m", "fireside", "serve", "--no-open", "--data-dir", str(DATA)]
    assert agent["RunAtLoad"] is True and agent["Label"] == "fireside"
    assert agent["KeepAlive"] == {"SuccessfulExit": False}
    assert plan.start[0][:2] == ("launchctl", "bootstrap") and plan.stop[0][:2] == ("launchctl", "bootout")


def test_windows_task_starts_at_the_logon_of_its_user_and_has_no_time_limit(tmp_path: Path) -> None:
    python = cast(Any, PureWindowsPath(r"C:\Program Files\Py & more\python.exe"))
    data = PureWindowsPath(r"C:\Users\Jürgen\chats & <more>")
    plan = autostart.plan("win32", python, HOME, cast(Any, data), "S-1-5-21-1-2-3-1001")
    assert str(plan.file) == str(data / "task.xml")
    task = "fireside-S-1-5-21-1-2-3-1001"
    assert plan.start == (
        ("schtasks", "/Create", "/F", "/TN", task, "/XML", str(plan.file)),
        ("schtasks", "/Run", "/TN", task),
    )
    assert plan.stop == (("schtasks", "/End", "/TN", task), ("schtasks", "/Delete", "/F", "/TN", task))

    written = dataclasses.replace(plan, file=tmp_path / "task.xml", start=())
    written.install()
    content = written.file.read_bytes()
    assert content.startswith(codecs.BOM_UTF16) and 'encoding="UTF-16"' in content.decode("utf-16")
    root = ElementTree.fromstring(content)
    found = {element.tag.rpartition("}")[2]: element.text for element in root.iter()}
    assert {element.tag.rpartition("}")[0] for element in root.iter()} == {
        "{http://schemas.microsoft.com/windows/2004/02/mit/task"
    }
    users = [element.text for element in root.iter() if element.tag.endswith("}UserId")]
    assert users == ["S-1-5-21-1-2-3-1001"] * 2, "the trigger and the principal"
    assert found["Command"] == r"C:\Program Files\Py & more\pythonw.exe"
    assert found["Arguments"] == f'-m fireside serve --no-open --data-dir "{data}"'
    wanted = {
        "LogonType": "InteractiveToken",
        "RunLevel": "LeastPrivilege",
        "MultipleInstancesPolicy": "IgnoreNew",
        "DisallowStartIfOnBatteries": "false",
        "StopIfGoingOnBatteries": "false",
        "ExecutionTimeLimit": "PT0S",
    }
    assert {name: found[name] for name in wanted} == wanted


@posix
def test_windows_user_is_read_from_output_in_any_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_script(tmp_path / "whoami", r"""printf '"pc\\j\201rgen","S-1-5-21-1-2-3-1001"\r\n'""")  # ü in code page 850
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert autostart.windows_user() == "S-1-5-21-1-2-3-1001"
    write_script(tmp_path / "whoami", "echo unknown")
    with pytest.raises(OSError, match="whoami"):
        autostart.windows_user()


SYSTEMCTL = """
case "$*" in
*enable*) eval "$(sed -n 's/^ExecStart=//p' "$HOME/.config/systemd/user/fireside.service") >/dev/null 2>&1 &"
    echo $! > "$HOME/pid" ;;
*disable*) kill "$(cat "$HOME/pid")" ;;
esac
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a script replaces systemctl")
def test_installing_starts_the_service_and_prints_the_setup_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    write_script(tmp_path / "bin" / "systemctl", SYSTEMCTL)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setenv("HOME", str(tmp_path))
    data = tmp_path / "my chats"
    try:
        done = run("service", "install", "--data-dir", str(data), port="0")
        assert (done.returncode, done.stderr) == (0, "")
        url = json.loads((data / "service.json").read_text("utf-8"))["url"]
        link = f"{url}/#setup={(data / 'bootstrap-token').read_text('utf-8')}"
        assert done.stdout.splitlines()[1:] == [f"Fireside is at {url}", f"Create the first account at {link}"]
    finally:
        done = run("service", "remove", "--data-dir", str(data))
    assert done.returncode == 0 and not (tmp_path / ".config/systemd/user/fireside.service").exists()


def test_installing_fails_if_the_service_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "SERVICE_START_SECONDS", 0.0)
    with pytest.raises(client.CommandFailed, match=r"did not answer within 0 s\. See .*fireside\.log"):
        commands._wait_for_service(config.load({"data_dir": str(tmp_path)}, {}))


def test_second_installation_replaces_the_first_and_waits_for_its_end(tmp_path: Path) -> None:
    """launchctl refuses the new agent until the old one has stopped; here the second start fails once."""
    file, log = tmp_path / "units" / "fireside.plist", tmp_path / "log"
    append = "import sys, pathlib; log = pathlib.Path(sys.argv[1]); log.open('a').write(sys.argv[2])"
    fail_once = f"{append}; sys.exit(log.read_text() == 'start stop start ')"
    start = (sys.executable, "-c", fail_once, str(log), "start ")
    stop = (sys.executable, "-c", append, str(log), "stop ")
    autostart.Plan(file, "first", (start,), (stop,)).install()
    assert file.read_text() == "first" and log.read_text() == "start "
    second = autostart.Plan(file, "second", (start,), (stop,))
    assert second.describe(remove=False).splitlines()[1:3] == [f"write {file}", "second"]
    second.install()
    assert file.read_text() == "second" and log.read_text() == "start stop start start "
    second.remove()
    assert not file.exists() and log.read_text().endswith("start stop ")


def test_missing_or_failing_command_is_an_error_that_names_it(tmp_path: Path) -> None:
    missing = autostart.Plan(tmp_path / "x", "", (("no-such-command-here",),), ())
    with pytest.raises(OSError, match="no-such-command-here was not found"):
        missing.install()
    failing = autostart.Plan(tmp_path / "y", "", ((sys.executable, "-c", "raise SystemExit('no bus')"),), ())
    with pytest.raises(OSError, match="failed: no bus"):
        failing.install()
