"""Starting with the computer: the files and commands of three platforms, of which one at most is here to run them."""

import plistlib
import re
import sys
from pathlib import Path, PureWindowsPath
from typing import Any, cast

import pytest
from fireside import service

HOME = Path("/home/me")
DATA = Path("/home/me/My chats & more")


def test_a_systemd_unit_runs_the_service_and_restarts_it() -> None:
    plan = service.plan("linux", Path("/opt/py 3/bin/python"), HOME, DATA)
    assert plan.file == HOME / ".config/systemd/user/fireside.service"
    [command] = re.findall(r"^ExecStart=(.*)$", plan.content, re.M)
    assert command == f'"/opt/py 3/bin/python" "-m" "fireside" "serve" "--no-open" "--data-dir" "{DATA}"'
    assert "Restart=on-failure" in plan.content and "WantedBy=default.target" in plan.content
    assert plan.start[-1] == ("systemctl", "--user", "enable", "--now", "fireside.service")
    assert plan.stop == (("systemctl", "--user", "disable", "--now", "fireside.service"),)


def test_a_percent_sign_is_no_specifier_of_systemd() -> None:
    plan = service.plan("linux", Path("/usr/bin/python"), HOME, Path('/data/100%/"x"'))
    assert '"/data/100%%/\\"x\\""' in plan.content


def test_a_launch_agent_is_a_property_list_with_every_argument() -> None:
    plan = service.plan("darwin", Path("/usr/bin/python3"), HOME, DATA)
    assert plan.file == HOME / "Library/LaunchAgents/fireside.plist"
    agent = plistlib.loads(plan.content.encode())
    assert agent["ProgramArguments"][1:] == ["-m", "fireside", "serve", "--no-open", "--data-dir", str(DATA)]
    assert agent["RunAtLoad"] is True and agent["Label"] == "fireside"
    assert plan.start[0][:2] == ("launchctl", "bootstrap") and plan.stop[0][:2] == ("launchctl", "bootout")


def test_the_task_scheduler_starts_it_at_logon_without_a_console() -> None:
    python = cast(Any, PureWindowsPath(r"C:\Program Files\Py\python.exe"))
    plan = service.plan("win32", python, HOME, cast(Any, PureWindowsPath(r"C:\Users\me\chats")))
    assert plan.file is None
    create = plan.start[0]
    assert create[:4] == ("schtasks", "/Create", "/F", "/TN") and "ONLOGON" in create and "LIMITED" in create
    assert create[-1].startswith(r'"C:\Program Files\Py\pythonw.exe" -m fireside serve')
    assert plan.stop[-1] == ("schtasks", "/Delete", "/F", "/TN", "fireside")


def test_installing_writes_and_runs_and_removing_takes_away(tmp_path: Path) -> None:
    file, log = tmp_path / "units" / "fireside.service", tmp_path / "log"
    note = "import sys, pathlib; p = pathlib.Path(sys.argv[1]); p.write_text((p.read_text() if p.exists() else '') + sys.argv[2])"
    start, stop = ((sys.executable, "-c", note, str(log), word) for word in ("start ", "stop"))
    plan = service.Plan(file, "content", (start,), (stop,))
    plan.install()
    assert file.read_text() == "content" and log.read_text() == "start "
    plan.remove()
    assert not file.exists() and log.read_text() == "start stop"


def test_a_command_that_is_missing_or_fails_says_so(tmp_path: Path) -> None:
    missing = service.Plan(None, "", (("no-such-command-here",),), ())
    with pytest.raises(OSError, match="no-such-command-here is not there"):
        missing.install()
    failing = service.Plan(None, "", ((sys.executable, "-c", "raise SystemExit('no bus')"),), ())
    with pytest.raises(OSError, match="no bus"):
        failing.install()


@pytest.mark.parametrize("folder", ["Dropbox/fireside", "Library/Mobile Documents/x", "OneDrive - Work/y", "Nextcloud"])
def test_a_synced_folder_is_warned_of(folder: str) -> None:
    assert any("synced" in warning for warning in service.warnings(Path("/home/me") / folder))


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
        return service.is_mounted_from_afar(platform, MOUNTS[platform], Path(folder))

    assert afar("/mnt/my chats") and afar("/mnt/my chats/fireside") and afar("/home/me/.local/share/fireside")
    assert not afar("/mnt/my chats/fast/fireside") and not afar("/mnt/my") and not afar("/home/meme")


def test_an_ordinary_folder_is_not_warned_of(tmp_path: Path) -> None:
    assert list(service.warnings(tmp_path)) == []
