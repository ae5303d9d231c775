"""Fireside as something that the computer starts: launchd on macOS, a systemd user unit on Linux, Task Scheduler on Windows."""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

NAME = "fireside"
REPLACE_SECONDS = 10.0  # launchctl refuses an agent while the one that it replaces is still stopping

_UNIT = """\
[Unit]
Description=Fireside, conversations with local models

[Service]
ExecStart={command}
Restart=on-failure
KillMode=mixed
TimeoutStopSec=10

[Install]
WantedBy=default.target
"""

_AGENT = """\
<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
  <key>Label</key><string>{name}</string>
  <key>ProgramArguments</key><array>{arguments}</array>
  <key>RunAtLoad</key><true/>
  <key>KeepAlive</key><dict><key>SuccessfulExit</key><false/></dict>
</dict>
</plist>
"""

# Without all this Task Scheduler starts it at anybody's logon, which only an administrator may ask for, never on battery, with low
# priority, and ends it when the computer is unplugged, or after three days.
_TASK = """\
<?xml version="1.0" encoding="UTF-16"?>
<Task version="1.2" xmlns="http://schemas.microsoft.com/windows/2004/02/mit/task">
  <Triggers>
    <LogonTrigger><UserId>{user}</UserId></LogonTrigger>
  </Triggers>
  <Principals>
    <Principal id="Author">
      <UserId>{user}</UserId>
      <LogonType>InteractiveToken</LogonType>
      <RunLevel>LeastPrivilege</RunLevel>
    </Principal>
  </Principals>
  <Settings>
    <MultipleInstancesPolicy>IgnoreNew</MultipleInstancesPolicy>
    <DisallowStartIfOnBatteries>false</DisallowStartIfOnBatteries>
    <StopIfGoingOnBatteries>false</StopIfGoingOnBatteries>
    <ExecutionTimeLimit>PT0S</ExecutionTimeLimit>
    <Priority>5</Priority>
    <RestartOnFailure><Interval>PT1M</Interval><Count>5</Count></RestartOnFailure>
  </Settings>
  <Actions Context="Author">
    <Exec><Command>{command}</Command><Arguments>{arguments}</Arguments></Exec>
  </Actions>
</Task>
"""


@dataclass(frozen=True)
class Plan:
    """The file and the commands that install and remove the service on one platform."""

    file: Path
    content: str
    start: tuple[tuple[str, ...], ...]  # after the file is written
    stop: tuple[tuple[str, ...], ...]  # before the file is deleted or replaced
    encoding: str = "utf-8"

    def install(self) -> None:
        """Install and start the service, in place of an earlier one. Raises OSError when a command is missing or fails."""
        deadline = 0.0
        if self.file.exists():
            deadline = time.monotonic() + REPLACE_SECONDS
            for command in self.stop:
                with contextlib.suppress(OSError):
                    _run(command)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(self.content, self.encoding)
        for command in self.start:
            _run_until(deadline, command)

    def remove(self) -> None:
        """Stop the service and delete its file, also after an error. Raises OSError when the last command fails."""
        try:
            for command in self.stop[:-1]:
                with contextlib.suppress(OSError):
                    _run(command)
            _run(self.stop[-1])
        finally:
            self.file.unlink(missing_ok=True)

    def describe(self, remove: bool) -> str:
        start, stop = (
            ["run " + subprocess.list2cmdline(command) for command in part] for part in (self.start, self.stop)
        )
        if remove:
            return "\n".join([*stop, f"remove {self.file}"])
        replace = stop if self.file.exists() else []
        return "\n".join([*replace, f"write {self.file}", self.content, *start])


def plan(platform: str, python: Path, home: Path, data_dir: Path, user: str) -> Plan:
    """`platform` as sys.platform names it. The service runs as the user who installs it, when that user logs in.
    `user`: on Windows the windows_user(), elsewhere not looked at."""
    arguments = (str(python), "-m", "fireside", "serve", "--no-open", "--data-dir", str(data_dir))
    if platform == "darwin":
        file = home / "Library" / "LaunchAgents" / f"{NAME}.plist"
        items = "".join(f"<string>{escape(argument)}</string>" for argument in arguments)
        domain = f"gui/{os.getuid() if hasattr(os, 'getuid') else 0}"
        return Plan(
            file,
            _AGENT.format(name=NAME, arguments=items),
            (("launchctl", "bootstrap", domain, str(file)),),
            (("launchctl", "bootout", f"{domain}/{NAME}"),),
        )
    if platform == "win32":
        file = data_dir / "task.xml"
        task = f"{NAME}-{user}"  # tasks of all users lie in one place
        content = _TASK.format(
            user=escape(user),
            command=escape(str(python.with_name("pythonw.exe"))),
            arguments=escape(subprocess.list2cmdline(arguments[1:])),
        )
        return Plan(
            file,
            content,
            (
                ("schtasks", "/Create", "/F", "/TN", task, "/XML", str(file)),
                ("schtasks", "/Run", "/TN", task),
            ),
            (("schtasks", "/End", "/TN", task), ("schtasks", "/Delete", "/F", "/TN", task)),
            "utf-16",  # with its mark: schtasks takes no UTF-8
        )
    file = home / ".config" / "systemd" / "user" / f"{NAME}.service"
    quoted = " ".join(
        '"' + argument.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") + '"' for argument in arguments
    )
    return Plan(
        file,
        _UNIT.format(command=quoted),
        (("systemctl", "--user", "daemon-reload"), ("systemctl", "--user", "enable", "--now", f"{NAME}.service")),
        (("systemctl", "--user", "disable", "--now", f"{NAME}.service"),),
    )


def windows_user() -> str:
    """The security identifier of who asks. A name can mean two accounts, and is printed in an encoding of the console's own."""
    found = re.search(r"S-1-[\d-]+", _run(("whoami", "/user", "/fo", "csv", "/nh")))
    if found is None:
        raise OSError("whoami does not say who you are")
    return found[0]


def _run_until(deadline: float, command: tuple[str, ...]) -> None:
    """Run a command, again and again until `deadline` (time.monotonic) if it fails. Raises OSError."""
    while True:
        try:
            _run(command)
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.2)


def _run(command: tuple[str, ...]) -> str:
    """What it printed; letters beyond ASCII may be lost. Raises OSError."""
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, errors="replace").stdout
    except FileNotFoundError:
        raise OSError(f"{command[0]} is not there, so Fireside cannot be started with the computer this way") from None
    except subprocess.CalledProcessError as error:
        raise OSError(f"{subprocess.list2cmdline(command)}: {(error.stderr or error.stdout).strip()}") from None


_SYNCED = (
    "dropbox",
    "onedrive",
    "google drive",
    "googledrive",
    "icloud",
    "mobile documents",
    "nextcloud",
    "syncthing",
    "pcloud",
)
_NETWORK = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "afpfs", "9p", "fuse.sshfs", "webdav")


def warnings(data_dir: Path) -> Iterator[str]:
    """Places where a database does not keep: folders that others read or another program copies about, disks of other computers."""
    if os.name == "posix" and data_dir.exists() and data_dir.stat().st_mode & 0o077:
        yield f"{data_dir} can be read by others: chmod 700 {data_dir}"
    if any(name in part.lower() for part in data_dir.parts for name in _SYNCED):
        yield f"{data_dir} looks like a synced folder: a sync program can damage the database. Choose another --data-dir."
    if _is_remote(data_dir.resolve()):
        yield f"{data_dir} is on a network drive: SQLite is not safe there. Choose another --data-dir."


if sys.platform == "win32":

    def _is_remote(folder: Path) -> bool:
        import ctypes

        remote = 4  # DRIVE_REMOTE
        return folder.drive.startswith("\\\\") or ctypes.windll.kernel32.GetDriveTypeW(folder.anchor) == remote
else:

    def _is_remote(folder: Path) -> bool:
        try:
            if sys.platform == "darwin":
                said = subprocess.run(["/sbin/mount"], capture_output=True, text=True, timeout=5).stdout
            else:
                said = Path("/proc/mounts").read_text("utf-8", "surrogateescape")
        except (OSError, subprocess.TimeoutExpired):
            return False
        return is_mounted_from_afar(sys.platform, said, folder)


def is_mounted_from_afar(platform: str, mounts: str, folder: Path) -> bool:
    """Whether a folder is on a disk of another computer. `mounts`: what /proc/mounts says or, on macOS (`darwin`), `mount`."""
    line = re.compile(r"^.+? on (/.*) \((\w+)" if platform == "darwin" else r"^\S+ (\S+) (\S+) ", re.MULTILINE)
    kinds = {Path(_unescaped(place)): kind for place, kind in line.findall(mounts)}
    return next((kinds[place] for place in (folder, *folder.parents) if place in kinds), "") in _NETWORK


def _unescaped(place: str) -> str:
    """/proc/mounts writes a space, a tab, a line's end and a backslash in octal."""
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), place)
