"""Starting with the computer: the files and commands of three platforms, of which one at most is here to run them."""

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

posix = pytest.mark.skipif(os.name != "posix", reason="a command of /bin/sh")


def command(file: Path, script: str) -> None:
    file.write_text(f"#!/bin/sh\n{script}\n", "utf-8")
    file.chmod(0o755)


HOME = Path("/home/me")
DATA = Path("/home/me/My chats & more")


def test_a_systemd_unit_runs_the_service_and_restarts_it() -> None:
    plan = autostart.plan("linux", Path("/opt/py 3/bin/python"), HOME, DATA, "")
    assert plan.file == HOME / ".config/systemd/user/fireside.service"
    [command] = re.findall(r"^ExecStart=(.*)$", plan.content, re.M)
    assert command == f'"/opt/py 3/bin/python" "-m" "fireside" "serve" "--no-open" "--data-dir" "{DATA}"'
    assert "Restart=on-failure" in plan.content and "WantedBy=default.target" in plan.content
    assert plan.start[-1] == ("systemctl", "--user", "enable", "--now", "fireside.service")
    assert plan.stop == (("systemctl", "--user", "disable", "--now", "fireside.service"),)


def test_a_percent_sign_is_no_specifier_of_systemd() -> None:
    plan = autostart.plan("linux", Path("/usr/bin/python"), HOME, Path('/data/100%/"x"'), "")
    assert '"/data/100%%/\\"x\\""' in plan.content


def test_a_launch_agent_is_a_property_list_with_every_argument() -> None:
    plan = autostart.plan("darwin", Path("/usr/bin/python3"), HOME, DATA, "")
    assert plan.file == HOME / "Library/LaunchAgents/fireside.plist"
    agent = plistlib.loads(plan.content.encode())
    assert agent["ProgramArguments"][1:] == ["-m", "fireside", "serve", "--no-open", "--data-dir", str(DATA)]
    assert agent["RunAtLoad"] is True and agent["Label"] == "fireside"
    assert plan.start[0][:2] == ("launchctl", "bootstrap") and plan.stop[0][:2] == ("launchctl", "bootout")


def test_the_task_scheduler_starts_it_at_the_logon_of_this_user_and_lets_it_run(tmp_path: Path) -> None:
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
    assert users == ["S-1-5-21-1-2-3-1001"] * 2, "whose logon, and as whom"
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
def test_who_a_windows_user_is_comes_from_whoami_in_whatever_encoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command(tmp_path / "whoami", r"""printf '"pc\\j\201rgen","S-1-5-21-1-2-3-1001"\r\n'""")  # ü in code page 850
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert autostart.windows_user() == "S-1-5-21-1-2-3-1001"
    command(tmp_path / "whoami", "echo nobody")
    with pytest.raises(OSError, match="whoami"):
        autostart.windows_user()


SYSTEMCTL = """
case "$*" in
*enable*) eval "$(sed -n 's/^ExecStart=//p' "$HOME/.config/systemd/user/fireside.service") >/dev/null 2>&1 &"
    echo $! > "$HOME/pid" ;;
*disable*) kill "$(cat "$HOME/pid")" ;;
esac
"""


@pytest.mark.skipif(sys.platform != "linux", reason="stands in for systemd, and runs the command of its unit")
def test_installing_ends_with_a_way_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    command(tmp_path / "bin" / "systemctl", SYSTEMCTL)
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


def test_a_service_that_does_not_come_up_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "START_SECONDS", 0.0)
    with pytest.raises(client.Failed, match=r"does not answer after 0 s\. .*fireside\.log may say why"):
        commands._wait_for_service(config.load({"data_dir": str(tmp_path)}, {}))


def test_installing_writes_and_runs_and_removing_takes_away(tmp_path: Path) -> None:
    file, log = tmp_path / "units" / "fireside.service", tmp_path / "log"
    note = "import sys, pathlib; p = pathlib.Path(sys.argv[1]); p.write_text((p.read_text() if p.exists() else '') + sys.argv[2])"
    start, stop = ((sys.executable, "-c", note, str(log), word) for word in ("start ", "stop"))
    plan = autostart.Plan(file, "content", (start,), (stop,))
    plan.install()
    assert file.read_text() == "content" and log.read_text() == "start "
    plan.remove()
    assert not file.exists() and log.read_text() == "start stop"


def test_a_second_installation_replaces_the_first(tmp_path: Path) -> None:
    """The end of the old one takes a moment, in which launchctl refuses the new one."""
    file, log = tmp_path / "fireside.plist", tmp_path / "log"
    note = "import sys, pathlib; p = pathlib.Path(sys.argv[1]); p.open('a').write(sys.argv[2])"
    refuse = f"{note}; sys.exit(p.read_text() == 'start bootout start ')"
    start, stop = (sys.executable, "-c", refuse, str(log), "start "), (sys.executable, "-c", note, str(log), "bootout ")
    autostart.Plan(file, "first", (start,), (stop,)).install()
    second = autostart.Plan(file, "second", (start,), (stop,))
    [bootout, write, *_] = second.describe(remove=False).splitlines()
    assert "bootout" in bootout and write == f"write {file}"
    second.install()
    assert file.read_text() == "second" and log.read_text() == "start bootout start start "


def test_a_command_that_is_missing_or_fails_says_so(tmp_path: Path) -> None:
    missing = autostart.Plan(tmp_path / "x", "", (("no-such-command-here",),), ())
    with pytest.raises(OSError, match="no-such-command-here is not there"):
        missing.install()
    failing = autostart.Plan(tmp_path / "x", "", ((sys.executable, "-c", "raise SystemExit('no bus')"),), ())
    with pytest.raises(OSError, match="no bus"):
        failing.install()


@pytest.mark.parametrize("folder", ["Dropbox/fireside", "Library/Mobile Documents/x", "OneDrive - Work/y", "Nextcloud"])
def test_a_synced_folder_is_warned_of(folder: str) -> None:
    assert any("synced" in warning for warning in autostart.warnings(Path("/home/me") / folder))


MOUNTS = {
    "linux": """\
/dev/sda1 / ext4 rw,relatime 0 0
//nas/chats /mnt/my\\040chats cifs rw,vers=3.1.1 0 0
tmpfs /mnt/my\\040chats/fast tmpfs rw 0 0
nas:/home /home/me nfs4 rw 0 0
""",
    "darwin": """\
/dev/disk3s1s1 on / (apfs, sealed, local, read-only, journaled)
map auto_home on /System/Volumes/Data/home (autofs, automounted, nobrowse)
//me@nas._smb._tcp.local/on%20the%20go on /mnt/my chats (smbfs, nodev, nosuid, mounted by me)
/dev/disk4s1 on /mnt/my chats/fast (apfs, local)
nas:/home on /home/me (nfs)
""",
}


@pytest.mark.parametrize("platform", MOUNTS)
def test_a_disk_of_another_computer_is_known_by_what_is_mounted(platform: str) -> None:
    def afar(folder: str) -> bool:
        return autostart.is_mounted_from_afar(platform, MOUNTS[platform], Path(folder))

    assert afar("/mnt/my chats") and afar("/mnt/my chats/fireside") and afar("/home/me/.local/share/fireside")
    assert not afar("/mnt/my chats/fast/fireside") and not afar("/mnt/my") and not afar("/home/meme")


def test_an_ordinary_folder_is_not_warned_of(tmp_path: Path) -> None:
    assert list(autostart.warnings(tmp_path)) == []
