"""Start Fireside when the user logs in: launchd on macOS, a systemd user unit on Linux, Task Scheduler on Windows."""

import contextlib
import os
import plistlib
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from xml.sax.saxutils import escape

NAME = "fireside"
Commands: TypeAlias = tuple[tuple[str, ...], ...]
REPLACE_SECONDS = 10.0  # launchctl refuses to start an agent while its predecessor is still stopping

_UNIT = """\
[Unit]
Description=Fireside, chat with local models

[Service]
ExecStart={command}
Restart=on-failure
KillMode=mixed
TimeoutStopSec=10

[Install]
WantedBy=default.target
"""

# The defaults of Task Scheduler are wrong for a service: start at the logon of any user, which needs an administrator; do not
# start on battery; stop when unplugged and after three days; low priority.
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
    start: Commands  # after the file is written
    stop: Commands  # before the file is deleted or replaced
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
            _run(command, deadline)

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
        """Return what `remove` or `install` would do, a line for each step."""
        start, stop = (["run " + subprocess.list2cmdline(each) for each in part] for part in (self.start, self.stop))
        if remove:
            return "\n".join([*stop, f"delete {self.file}"])
        replace = stop if self.file.exists() else []
        return "\n".join([*replace, f"write {self.file}", self.content, *start])


def plan(platform: str, python: Path, home: Path, data_dir: Path, user: str) -> Plan:
    """Return the plan for a platform, named as in sys.platform. `user` is windows_user(), and unused elsewhere."""
    arguments = (str(python), "-m", "fireside", "serve", "--no-open", "--data-dir", str(data_dir))
    start: Commands
    if platform == "darwin":
        file = home / "Library" / "LaunchAgents" / f"{NAME}.plist"
        keep_alive = {"SuccessfulExit": False}
        agent = {"Label": NAME, "ProgramArguments": arguments, "RunAtLoad": True, "KeepAlive": keep_alive}
        domain = f"gui/{os.getuid() if hasattr(os, 'getuid') else 0}"
        start = (("launchctl", "bootstrap", domain, str(file)),)
        return Plan(file, plistlib.dumps(agent).decode(), start, (("launchctl", "bootout", f"{domain}/{NAME}"),))
    if platform == "win32":
        file = data_dir / "task.xml"
        task = f"{NAME}-{user}"  # task names are shared by all users
        content = _TASK.format(
            user=escape(user),
            command=escape(str(python.with_name("pythonw.exe"))),
            arguments=escape(subprocess.list2cmdline(arguments[1:])),
        )
        start = ("schtasks", "/Create", "/F", "/TN", task, "/XML", str(file)), ("schtasks", "/Run", "/TN", task)
        stop = ("schtasks", "/End", "/TN", task), ("schtasks", "/Delete", "/F", "/TN", task)
        return Plan(file, content, start, stop, "utf-16")  # with a byte order mark; schtasks does not read UTF-8
    file = home / ".config" / "systemd" / "user" / f"{NAME}.service"
    quoted = (each.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") for each in arguments)
    content = _UNIT.format(command=" ".join(f'"{each}"' for each in quoted))
    systemctl = ("systemctl", "--user")
    start = (*systemctl, "daemon-reload"), (*systemctl, "enable", "--now", f"{NAME}.service")
    return Plan(file, content, start, ((*systemctl, "disable", "--now", f"{NAME}.service"),))


def windows_user() -> str:
    """Return the security identifier (SID) of the user: unlike the name it is unique and ASCII. Raises OSError."""
    found = re.search(r"S-1-[\d-]+", _run(("whoami", "/user", "/fo", "csv", "/nh")))
    if found is None:
        raise OSError("whoami /user printed no security identifier")
    return found[0]


def _run(command: tuple[str, ...], deadline: float = 0.0) -> str:
    """Run a command and return its output. Repeat a failed one until `deadline` (time.monotonic). Raises OSError."""
    while True:
        try:
            return subprocess.run(command, check=True, capture_output=True, text=True, errors="replace").stdout
        except FileNotFoundError:
            raise OSError(f"{command[0]} was not found, and without it Fireside cannot start at login") from None
        except subprocess.CalledProcessError as error:
            if time.monotonic() > deadline:
                output = (error.stderr or error.stdout).strip()
                raise OSError(f"{subprocess.list2cmdline(command)} failed: {output}") from None
        time.sleep(0.2)
