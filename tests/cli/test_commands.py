"""The command line: what it prints, where the service listens, how it stops."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import fireside
import httpx
import pytest
from fireside import config
from fireside.__main__ import COMMANDS
from fireside.cli import address, browser

from .. import talks
from ..live import BOOTSTRAP_TOKEN, PASSWORD, PATIENCE, parse_event
from ..processes import environment, run, start
from ..upstream import Gate, Upstream, pause
from ..upstream import text as says

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX signals and modes")


class Service:
    """`fireside` while it serves. `output` has its lines up to the one that contains `until`."""

    def __init__(
        self, data_dir: Path, *arguments: str, until: str = "Fireside is at", fresh: bool = False, **settings: str
    ) -> None:
        command = ("--data-dir", str(data_dir), *arguments)
        self.process = start(*command, environ=environment(**settings), fresh=fresh)
        self.guard = threading.Timer(PATIENCE * 2, self.process.kill)  # end reads that would wait for ever
        self.guard.start()
        assert self.process.stdout is not None
        self.output: list[str] = []
        while not any(until in line for line in self.output):
            line = self.process.stdout.readline()
            assert line, f"it ended: {self.output} {self.process.communicate()[1]}"
            self.output.append(line.rstrip("\n"))
        [self.url] = [line.rpartition(" ")[2] for line in self.output if line.startswith("Fireside is at")]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @contextlib.contextmanager
    def _sign_in(self, path: str, body: dict[str, str]) -> Iterator[httpx.Client]:
        with httpx.Client(base_url=self.url, trust_env=False, timeout=PATIENCE) as client:
            answer = client.post(path, json={"username": "ann", "password": PASSWORD, **body}).raise_for_status()
            client.headers["X-CSRF-Token"] = answer.json()["csrf_token"]
            yield client

    def first(self) -> contextlib.AbstractContextManager[httpx.Client]:
        """Create the first user and sign in."""
        return self._sign_in("/admin/bootstrap", {"token": BOOTSTRAP_TOKEN})

    def first_again(self) -> contextlib.AbstractContextManager[httpx.Client]:
        """Sign in as the first user."""
        return self._sign_in("/auth/login", {})

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str, str, float]:
        """Send a signal. Return the exit code, the rest of stdout and stderr, and the seconds until the end."""
        started = time.monotonic()
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, out, err, time.monotonic() - started


@contextlib.contextmanager
def serving(data_dir: Path, *arguments: str, **more: Any) -> Iterator[Service]:
    settings = {"bootstrap_token": BOOTSTRAP_TOKEN, "lmstudio_url": "http://127.0.0.1:9"} | more
    service = Service(data_dir, *(arguments or ("--port", "0")), **settings)
    try:
        yield service
    finally:
        service.process.kill()
        service.process.communicate()
        service.guard.cancel()


@contextlib.contextmanager
def taken() -> Iterator[int]:
    """A port on which another program listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


# ---- the command line


def test_every_command_has_help() -> None:
    process = start("--help", environ=environment(), fresh=True)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0 and err == ""
    assert len(out.splitlines()) <= 48, "it fits a screen"
    for command, text, *_ in COMMANDS:
        assert f"\n    {command} " in out
        done = run(command, "--help")
        assert done.returncode == 0 and text[1:25] in done.stdout


def test_help_prints_topics_and_commands() -> None:
    done = run("help", "configuration")
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("# Configuration\n")
    assert run("help", "ask").stdout == run("ask", "--help").stdout
    assert run("help").stdout == run("--help").stdout
    unknown = run("help", "cooking")
    assert unknown.returncode == 2 and "no help about cooking" in unknown.stderr and "self-hosting" in unknown.stderr


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash")
def test_completion_script_completes_commands_and_options(tmp_path: Path) -> None:
    script = run("completion", "bash")
    assert script.returncode == 0 and script.stderr == ""
    (tmp_path / "completion").write_text(script.stdout, "utf-8")
    press_tab = """
        source ./completion
        complete -p fireside | grep -oP '(?<=-F )\\S+' > function
        for typed in re 'ask --mo'; do
            COMP_WORDS=(fireside $typed) COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
            $(cat function)
            echo "${COMPREPLY[@]}"
        done
    """
    done = subprocess.run(["bash", "-c", press_tab], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout.splitlines() == ["restore reset-password", "--model"], done.stderr
    for shell in ("zsh", "fish", "powershell"):
        assert "reset-password" in run("completion", shell).stdout


def test_wrong_setting_or_argument_is_one_line_that_names_it(tmp_path: Path) -> None:
    wrong: tuple[tuple[list[str], dict[str, str], str], ...] = (
        (["--port", "65536"], {}, "--port"),
        (["serve", "--port", "-1"], {}, "--port"),
        ([], {"port": "x"}, "FIRESIDE_PORT"),
        (["--host", "no.such.host.invalid"], {}, "--host"),
        (["--host", "192.0.2.1"], {}, "--host"),
        (["--port"], {}, "--port: expected one argument. See fireside --help."),
        (["--prot=1"], {}, "unknown argument --prot=1. See fireside --help."),
        (["--prot", "1"], {}, "unknown command '1', or an unknown option before it. See fireside --help."),
        (["doctor", "--frobnicate"], {}, "unknown argument --frobnicate. See fireside --help."),
        (["backup"], {}, "FILE. See fireside backup --help."),
    )
    with taken() as port:
        cannot_listen = f"cannot listen on --host 127.0.0.1 --port {port}: "
        for arguments, settings, named in (
            *wrong,
            (["--port", str(port)], {}, cannot_listen),
            ([], {"port": str(port)}, cannot_listen),
        ):
            done = run(*arguments, data_dir=str(tmp_path), **settings)
            assert done.returncode == 2 and done.stdout == ""
            [line] = done.stderr.splitlines()
            assert line.startswith("fireside: ") and named in line


# ---- what it prints


def test_service_listens_on_loopback_and_prints_its_address_and_the_setup_link(tmp_path: Path) -> None:
    with serving(tmp_path / "data", bootstrap_token="", until="#setup=", fresh=True) as service:
        assert re.fullmatch(r"Fireside is at http://127\.0\.0\.1:\d+", service.output[0])
        link = service.output[1].rpartition(" ")[2]
        token = (tmp_path / "data" / "bootstrap-token").read_text("utf-8")
        assert link == f"{service.url}/#setup={token}"
        host = socket.gethostbyname(socket.gethostname())
        if not host.startswith("127."):
            with pytest.raises(OSError), socket.create_connection((host, service.port), timeout=5):
                pass
        body = {"username": "ann", "password": PASSWORD, "token": token}
        assert httpx.post(f"{service.url}/admin/bootstrap", json=body, trust_env=False).status_code == 200
        if os.name == "posix":
            assert service.stop()[:3] == (0, "", "")
    if os.name == "posix":
        with serving(tmp_path / "data", bootstrap_token="") as service:
            assert "#setup" not in service.stop()[1], "there is a user now"


@posix
def test_log_has_a_line_per_request_without_its_content_and_no_output_a_secret(tmp_path: Path) -> None:
    data = ("--data-dir", str(tmp_path / "data"))
    with serving(tmp_path / "data", until="FIRESIDE_BOOTSTRAP_TOKEN or config.toml") as service:
        refused = run("login-link", *data)
        assert refused.returncode == 1 and "#" not in refused.stdout
        with service.first() as ann:
            made = ann.post("/conversations", json={"title": "canary-title"}).json()
            ann.post(f"/conversations/{made['id']}/messages", json={"content": "canary-text"})
            ann.get("/search?q=canary-query", headers={"User-Agent": "canary-agent"})
            ann.get("/canary-path")
            cookie, csrf_token = next(iter(ann.cookies.jar)).value, ann.headers["X-CSRF-Token"]
        _, out, err, _ = service.stop()
    log = (tmp_path / "data" / "fireside.log").read_text("utf-8")
    requests = [line for line in map(json.loads, log.splitlines()) if line["event"] == "request"]
    assert [(line["method"], line["route"], line["status"], line["user"]) for line in requests[-5:]] == [
        ("POST", "/admin/bootstrap", 200, 1),
        ("POST", "/conversations", 200, 1),
        ("POST", "/conversations/{conversation_id}/messages", 200, 1),
        ("GET", "/search", 200, 1),
        ("GET", "-", 404, None),
    ]
    printed = "".join([*service.output, out, err, refused.stdout, refused.stderr])
    for secret in ("canary", cookie, csrf_token, PASSWORD, BOOTSTRAP_TOKEN):
        assert secret is not None and secret not in log + printed


@posix
def test_every_file_in_the_data_directory_is_private_and_documented(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with taken() as port:
        (tmp_path / "data").mkdir(mode=0o700)
        (data / "config.toml").write_text(f"port = {port}", "utf-8")
        (data / "config.toml").chmod(0o600)
        with serving(data, "--no-open", bootstrap_token="") as service:
            files = sorted(data.rglob("*"))
            names = {file.name for file in files}
            created = {"fireside.db", "session-key", "bootstrap-token", "lock", "service.json", "port"}
            assert created | {"fireside.log", "audit.log"} <= names
            modes = {file.name: oct(file.stat().st_mode & 0o777) for file in files if file.is_file()}
            assert set(modes.values()) == {"0o600"}, modes
            documented = (Path(fireside.__file__).parent / "docs" / "configuration.md").read_text("utf-8")
            shown = {f"{file.name}/" if file.is_dir() else file.name for file in files}
            assert all(f"`{name}`" in documented for name in shown), shown
            service.stop()
        assert {file.name for file in data.iterdir()} == names - {"service.json", "fireside.db-wal", "fireside.db-shm"}


# ---- where it listens


def test_taken_port_is_replaced_by_the_next_free_one_which_is_remembered(tmp_path: Path) -> None:
    def login_link(*arguments: str) -> str:
        done = run(*arguments, "login-link", "--data-dir", str(tmp_path))
        assert done.returncode == 0, done.stderr
        return done.stdout.partition("#login=")[0]

    with taken() as port:
        (tmp_path / "config.toml").write_text(f"port = {port}", "utf-8")
        with serving(tmp_path, "--no-open", port="") as service, service.first():
            found = service.port
            assert port < found <= port + 20
        assert login_link() == f"{service.url}/", "the address of the next start"
        with contextlib.ExitStack() as stack:
            if found != port + 1:
                with contextlib.suppress(OSError):
                    stack.enter_context(socket.create_server(("127.0.0.1", port + 1)))
            with serving(tmp_path, "--no-open") as service:
                assert service.port == found, "bookmarks and cookies stay valid"
    assert login_link("--port", "0") == "/", "the port of the next start is unknown"
    (tmp_path / "config.toml").write_text("port = 8123\nhost = '[::1]'", "utf-8")
    assert login_link() == "http://[::1]:8123/"


def test_port_that_cannot_be_remembered_is_used(tmp_path: Path) -> None:
    (tmp_path / "port" / "x").mkdir(parents=True)
    settings = config.load({"data_dir": str(tmp_path)}, {})
    for port in (settings.port, settings.port + 1):
        address.remember_port(settings, port)
    assert address.ports_to_try(settings, {})[:2] == [settings.port, settings.port + 1]


# ---- a second start


def test_second_start_prints_the_address_and_setup_link_of_the_running_service(tmp_path: Path) -> None:
    data = ("--data-dir", str(tmp_path))
    with serving(tmp_path, bootstrap_token="", until="#setup=") as service:
        link = service.output[1].rpartition(" ")[2]
        second = run(*data, "--port", "0")
        running = f"Fireside is already running at {service.url}\n"
        assert (second.returncode, second.stdout) == (0, f"{running}Create the first account at {link}\n")
        assert json.loads((tmp_path / "service.json").read_text("utf-8"))["pid"] == service.process.pid
        done = run("login-link", *data)
        assert (done.returncode, done.stdout) == (0, f"{link}\n")
        assert done.stderr == "There is no account yet. This link creates the first one.\n"
        service.process.kill()
        service.process.wait()
        done = run("--port", str(service.port), "login-link", *data)
        assert (done.returncode, done.stdout) == (0, f"{link}\n")
        assert done.stderr.endswith("\nStart Fireside, then open this link:\n")
    with serving(tmp_path) as service, service.first():
        second = run(*data)
        running = f"Fireside is already running at {service.url}\n"
        assert (second.returncode, second.stdout, second.stderr) == (0, running, "")
        assert run("login-link", *data, "--user", "bob").stderr == "fireside: There is no such user.\n"


def test_second_start_names_the_process_that_does_not_answer(tmp_path: Path) -> None:
    hold = "import sys, pathlib; from fireside import db\nwith db.lock(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", hold, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        done = run("--data-dir", str(tmp_path), "--port", "0")
        holder.communicate("")
    assert done.returncode == 1 and done.stdout == ""
    assert str(tmp_path) in done.stderr and f"process {holder.pid}" in done.stderr


@posix
def test_browser_opens_a_private_file_that_redirects_to_the_setup_link(tmp_path: Path) -> None:
    """All users of the computer can read the browser's command line, so it must not contain the token."""
    data, script, opened = tmp_path / "my data", tmp_path / "browser", tmp_path / "opened"
    script.write_text(f'#!/bin/sh\necho "$*" > "{opened}"\n', "utf-8")
    script.chmod(0o755)
    with serving(data, bootstrap_token="", until="#setup=") as service:
        ours, terminal = os.openpty()
        try:
            environ = environment() | {"BROWSER": str(script)}
            second = start("--data-dir", str(data), environ=environ, stdout=terminal)
            second.communicate(timeout=PATIENCE)
        finally:
            os.close(ours)
            os.close(terminal)
        link = service.output[1].rpartition(" ")[2]
        token = link.partition("=")[2]
        argument = opened.read_text("utf-8").strip()
        assert token not in argument
        file = Path(url2pathname(urlsplit(argument).path))
        assert file == data / "setup.html" and file.stat().st_mode & 0o777 == 0o600
        page = file.read_text("utf-8")
        assert f'content="0;url={link}"' in page and "<script" not in page
        body = {"username": "ann", "password": PASSWORD, "token": token}
        assert httpx.post(f"{service.url}/admin/bootstrap", json=body, trust_env=False).status_code == 200
        assert not file.exists()


@pytest.mark.parametrize("obstacle", ["snap", "unwritable"])
def test_browser_that_cannot_read_the_file_opens_the_bare_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, obstacle: str
) -> None:
    if obstacle == "snap":
        monkeypatch.setattr(browser, "_default_browser_is_snap", lambda: True)
    settings = config.load({"data_dir": str(tmp_path if obstacle == "snap" else tmp_path / "missing")}, {})
    url = "http://127.0.0.1:8000"
    assert browser.page_address(settings, url, f"{url}/#setup=x") == url


def test_audit_log_has_user_and_address_of_every_event(tmp_path: Path) -> None:
    data = ("--data-dir", str(tmp_path))
    with serving(tmp_path) as service, service.first() as ann:
        for _ in range(4):
            ann.post("/auth/login", json={"username": "ann", "password": "canary of a password"})
            ann.post("/auth/login", json={"username": "canary-name", "password": "canary of a password"})
        invites = [ann.post("/admin/invites").json() for _ in range(2)]
        ann.post(f"/admin/invites/{invites[0]['id']}/revoke")
        bob = {"username": "bob", "password": PASSWORD, "invite_code": invites[1]["invite_code"]}
        httpx.post(f"{service.url}/auth/register", json=bob, trust_env=False).raise_for_status()
        ann.patch("/admin/users/2", json={"role": "admin"})
        ann.post("/import", json=[])
        ann.get("/export")
        made = ann.post("/conversations", json={"title": "canary-title"}).json()["id"]
        ann.get(f"/conversations/{made}/export")
        ann.delete(f"/conversations/{made}?purge=true")
        ann.post("/auth/password", json={"current_password": PASSWORD, "new_password": "another long phrase"})
        link = run("login-link", *data).stdout.strip()
        ann.post("/auth/link", json={"token": link.rpartition("=")[2]})
        run("export", str(tmp_path / "out.zip"), *data)
        report = run("doctor", *data).stdout
    assert run("login-link", *data, "--user", "bob").returncode == 0, "also while the service is stopped"
    text = (tmp_path / "audit.log").read_text("utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    assert [(line["event"], line["account"], line["address"]) for line in lines] == [
        ("signed in", "ann", "127.0.0.1"),
        ("sign-in refused", "ann", "127.0.0.1"),
        ("invite made", "ann", "127.0.0.1"),
        ("invite made", "ann", "127.0.0.1"),
        ("invite revoked", "ann", "127.0.0.1"),
        ("signed in", "bob", "127.0.0.1"),
        ("user changed", "ann", "127.0.0.1"),
        ("import", "ann", "127.0.0.1"),
        ("export of all conversations", "ann", "127.0.0.1"),
        ("export of one conversation", "ann", "127.0.0.1"),
        ("conversations purged", "ann", "127.0.0.1"),
        ("password changed", "ann", "127.0.0.1"),
        ("login link made", "ann", "terminal"),
        ("signed in", "ann", "127.0.0.1"),
        ("export of all conversations", "ann", "terminal"),
        ("login link made", "bob", "terminal"),
    ]
    assert [line["by"] for line in lines if line["event"] == "signed in"] == ["bootstrap token", "invite", "login link"]
    assert "canary" not in text and link.rpartition("=")[2] not in text and PASSWORD not in text
    assert str(tmp_path / "audit.log") in report


# ---- how it stops


@posix
def test_signal_stops_the_service_and_sends_done_to_readers(tmp_path: Path, upstream: Upstream) -> None:
    data = tmp_path / "data"
    for sign_in, number in ((Service.first, signal.SIGTERM), (Service.first_again, signal.SIGINT)):
        upstream.enqueue(says("half an "), pause(Gate()))
        with serving(data, lmstudio_url=upstream.url) as service, sign_in(service) as ann:
            conversation_id = ann.post("/conversations", json={}).json()["id"]
            ann.post(f"/conversations/{conversation_id}/messages", json={"content": "Hello?"})
            body = {"provider_id": "lmstudio", "model": "llama-3.2-3b-instruct"}
            with ann.stream("POST", f"/conversations/{conversation_id}/stream", json=body) as response:
                read, chunks = b"", response.iter_raw()
                while b"half an " not in read:
                    read += next(chunks)
                with ThreadPoolExecutor() as pool:
                    stopping = pool.submit(service.stop, number)
                    read += b"".join(chunks)
        code, _, err, seconds = stopping.result()
        assert (code, err) == (0, "") and seconds < 5
        last = parse_event(read.split(b"\n\n")[-2])
        assert last.event == "done" and last.data["status"] == "interrupted"
        assert not (data / "service.json").exists() and not (data / "fireside.db-wal").exists()
    with serving(data) as service, service.first_again() as ann:
        for conversation_id in (1, 2):
            message = ann.get(f"/conversations/{conversation_id}/messages").json()[-1]
            assert (message["content"], message["status"]) == ("half an ", "interrupted")


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def cpu_seconds(pid: str) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(sys.platform != "linux", reason="looks at another process in /proc")
def test_open_connections_and_a_long_text_in_the_sandbox_do_not_delay_the_stop(tmp_path: Path) -> None:
    """An unfinished upload gets 503."""
    with serving(tmp_path) as service, service.first() as ann, contextlib.ExitStack() as stack:
        conversation_id = ann.post("/conversations", json={}).raise_for_status().json()["id"]
        cookies = "; ".join(f"{cookie.name}={cookie.value}" for cookie in ann.cookies.jar)
        head = (
            f"POST /conversations/{conversation_id}/messages HTTP/1.1\r\nHost: localhost\r\nCookie: {cookies}\r\n"
            f"X-CSRF-Token: {ann.headers['X-CSRF-Token']}\r\nContent-Type: application/json\r\nContent-Length: 100\r\n"
            "Expect: 100-continue\r\n\r\n"
        )
        rendering = stack.enter_context(ThreadPoolExecutor()).submit(
            ann.post, "/render", json={"text": "- a\n" * 500_000}
        )
        while not rendering.done() and not any(cpu_seconds(pid) > 0.1 for pid in children(service.process.pid)):
            time.sleep(0.01)
        found = children(service.process.pid)
        silent, upload = (stack.enter_context(socket.create_connection(("127.0.0.1", service.port))) for _ in range(2))
        silent.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
        upload.sendall(head.encode())
        assert upload.recv(65536).startswith(b"HTTP/1.1 100 ")
        upload.sendall(b'{"content": ')
        code, _, err, seconds = service.stop()
        refused = b"".join(iter(lambda: upload.recv(65536), b""))
        assert rendering.result(PATIENCE).status_code in (200, 503)  # shown as plain text, or refused
    assert (code, err) == (0, "") and seconds < 5
    assert refused.startswith(b"HTTP/1.1 503 ") and b"Fireside is stopping" in refused
    assert found and not any(Path(f"/proc/{pid}").exists() for pid in found)
    assert "Traceback" not in (tmp_path / "fireside.log").read_text("utf-8")
    assert not (tmp_path / "service.json").exists() and not (tmp_path / "fireside.db-wal").exists()


BLOCKED_THREAD_WITHOUT_CONSOLE = """
import asyncio, sys, threading
sys.stdout = sys.stderr = None  # as under pythonw
from fireside import __main__
from fireside.cli import serve
print_address = serve._print_address
def block_and_print(*args):
    asyncio.get_running_loop().run_in_executor(None, threading.Event().wait)
    print_address(*args)
serve._print_address = block_and_print
__main__.main(["--data-dir", sys.argv[1], "--port", "0"])
"""


@posix
def test_blocked_thread_and_missing_console_do_not_keep_the_service_from_stopping(tmp_path: Path) -> None:
    command = [sys.executable, "-c", BLOCKED_THREAD_WITHOUT_CONSOLE, str(tmp_path)]
    with subprocess.Popen(command, env=environment(), stdin=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + PATIENCE
            while not (tmp_path / "service.json").exists():
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.01)
            process.terminate()
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()


FULL_DISK = """
import contextlib, pathlib, subprocess, sys
from fireside import db
place = pathlib.Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], check=True)
with db.lock(place / "used"):
    db.prepare(place / "used" / "fireside.db")
    db.back_up_daily(place / "used" / "fireside.db", 7)
    db.prepare(place / "used" / "fireside.db")  # delete the files that the reader of the backup has left
with contextlib.suppress(OSError), (place / "filler").open("wb", 0) as file:
    while True:
        file.write(bytes(4096))
for name in ("used", "new"):
    command = [sys.executable, "-m", "fireside", "--data-dir", place / name, "--port", "0"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    print(done.returncode, done.stdout + done.stderr, end="")
"""


def test_start_on_a_full_disk_asks_for_space_and_not_for_a_backup(tmp_path: Path) -> None:
    unshared = ["unshare", "--user", "--map-root-user", "--mount"]
    try:
        subprocess.run([*unshared, "mount", "-t", "tmpfs", "tmpfs", tmp_path], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting is not allowed here")
    command = [*unshared, sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=PATIENCE * 2)
    assert done.stdout.splitlines() == [
        f"1 fireside: {tmp_path}/used/fireside.db: the disk is full. Make room and start again.",
        f"1 fireside: {tmp_path}/new: No space left on device",
    ], done.stderr


FAILURES = {
    "the database is damaged": ("fireside.db", b"no database " * 1000, "fireside.db: cannot be used"),
    "the database is another program's": ("fireside.db", None, "database of another program"),
    "a file is in the way": ("bootstrap-token/x", b"", "bootstrap-token"),
    "the log is not a file": ("fireside.log/x", b"", "fireside.log: "),
    "the service file cannot be written": ("service.json/x", b"", "service.json: "),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_failed_start_ends_with_the_reason(tmp_path: Path, failure: str) -> None:
    name, content, reason = FAILURES[failure]
    (tmp_path / name).parent.mkdir(exist_ok=True)
    if content is None:
        with contextlib.closing(sqlite3.connect(tmp_path / name)) as other:
            other.execute("CREATE TABLE cookies (x)")
    else:
        (tmp_path / name).write_bytes(content)
    run("--version")  # start the process that forks the others
    started = time.monotonic()
    done = run("--data-dir", str(tmp_path), "--port", "0")
    assert time.monotonic() - started < 5
    assert done.returncode == 1 and done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("fireside: ") and reason in lines[0], done.stderr
    assert not (tmp_path / "service.json").is_file() and not (tmp_path / "fireside.db-wal").exists()


# ---- commands


@pytest.mark.parametrize("running", (True, False), ids=("running", "stopped"))
def test_import_of_a_folder_with_the_files_of_all_programs_adds_everything(tmp_path: Path, running: bool) -> None:
    mine = tmp_path / "mine"
    talks.write_all(mine)
    unreadable = {"grok.json": '[{"conversation": {}, "responses": []}]', "a\u2028b.json": "{}", "c\u0085d.json": "{}"}
    title = "a\x1b]0;owned\x07\x9b2J\u202eb"
    unreadable["chats.json"] = json.dumps([{"mapping": {}, "title": title}])
    tools = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look", "arguments": "{}"}}]}
    lossy = [{"role": "user", "content": "Lossy"}, tools]
    prompt = {"command": "/mail", "title": "Mail", "content": "Write to {{name}}."}
    readable = {"lossy.json": json.dumps(lossy), "prompts-export-1.json": json.dumps([prompt])}
    for name, text in (unreadable | readable).items():
        (mine / name).write_text(text, "utf-8")
    with serving(tmp_path / "data") as service, service.first():
        if not running:
            service.stop()
        command = ("import", str(mine), "--data-dir", str(tmp_path / "data"))
        preview, first, second = run(*command, "--dry-run"), run(*command), run(*command)
    again = ("LibreChat tree", "LibreChat nested", "OpenAI lines", "OpenAI requests")  # another shape of a conversation
    added = [program for program in talks.PROGRAMS if program.name not in again]
    messages = sum(len(program.talk) for program in added) + len(lossy)
    assert first.stdout.startswith(f"Added conversations: {len(added) + 1}, messages: {messages}, prompts: 1."), (
        first.stdout
    )
    assert first.stdout.endswith('Tool calls, kept as text: 1, in "Lossy" (1)\n')
    assert preview.stdout == first.stdout.replace("Added", "Would add")
    skipped = first.stderr.splitlines()  # it would also split at U+2028 and U+0085
    assert len(skipped) == len(unreadable), first.stderr
    assert "skipped grok.json: looks like a Grok export; Fireside cannot read it yet" in skipped
    assert all(
        any(line.startswith(f"skipped {name}: ") for line in skipped) for name in ("a\ufffdb.json", "c\ufffdd.json")
    )
    assert "skipped chats.json: a\ufffd]0;owned\ufffd\ufffd2J\ufffdb: has no messages" in first.stderr
    assert f"Already there: {len(talks.PROGRAMS) + 2}." in second.stdout


def test_backup_or_export_that_cannot_be_written_is_an_error_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "a folder").mkdir()
    (tmp_path / "notes.txt").write_text("mine", "utf-8")
    data = tmp_path / "data"
    missing = tmp_path / "nowhere"
    not_a_backup = "exists and is not a backup. Choose another file."
    not_an_export = "exists and is not an export. Choose another file."
    refusals = {
        ("backup", tmp_path / "a folder"): f"{tmp_path / 'a folder'}: Is a directory",
        ("backup", missing / "x.db"): f"The folder {missing} does not exist. Create it, or choose another file.",
        ("backup", tmp_path / "notes.txt"): f"{tmp_path / 'notes.txt'}: {not_a_backup}",
        ("backup", data / "fireside.db"): f"{data / 'fireside.db'}: {not_a_backup}",
        ("export", missing / "x.zip"): f"The folder {missing} does not exist. Create it, or choose another file.",
        ("export", tmp_path / "notes.txt"): f"{tmp_path / 'notes.txt'} {not_an_export}",
        ("export", data / "fireside.db"): f"{data / 'fireside.db'} {not_an_export}",
    }
    for command in ("backup", "export"):
        if os.name == "posix":
            (tmp_path / f"{command}.partial").symlink_to(tmp_path / "notes.txt")
    with serving(data) as service, service.first():
        for running in (True, False):
            for (command, file), reason in refusals.items():
                done = run(command, str(file), "--data-dir", str(data))
                assert (done.returncode, done.stdout, done.stderr) == (1, "", f"fireside: {reason}\n")
            for command in ("backup", "export"):  # the second replaces the first
                assert run(command, str(tmp_path / command), "--data-dir", str(data)).returncode == 0
            if running:
                service.stop()
        assert (tmp_path / "notes.txt").read_text("utf-8") == "mine", "a planted link is not followed"


def test_damaged_database_is_salvaged_and_restored(tmp_path: Path) -> None:
    data, new = tmp_path / "data", str(tmp_path / "new.db")
    database, here = data / "fireside.db", ("--data-dir", str(data))

    def ask(ann: httpx.Client, content: str) -> None:
        conversation_id = ann.post("/conversations", json={}).raise_for_status().json()["id"]
        ann.post(f"/conversations/{conversation_id}/messages", json={"content": content}).raise_for_status()

    with serving(data) as service, service.first() as ann:
        ask(ann, "On the page that is lost. " * 500)
        refused = run("salvage", new, *here)
        assert (refused.returncode, refused.stderr) == (1, "fireside: Fireside is running. Stop it first.\n")
        service.stop()
    with serving(data) as service, service.first_again() as ann:
        ask(ann, "Only in the WAL, because the service was killed.")
        service.process.kill()
        service.process.wait()
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        pages = "SELECT min(pageno) FROM dbstat WHERE name = 'messages' AND pagetype = 'overflow'"
        [page] = connection.execute(pages).fetchone()
    with database.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(bytes(4096))

    refused = run(*here, "--port", "0")  # like every start it moves the WAL into the database
    before = database.read_bytes()
    assert refused.returncode == 1 and "fireside salvage NEW" in refused.stderr
    assert "fireside salvage NEW" in run("doctor", *here).stdout
    done = run("salvage", new, *here)
    assert (done.returncode, done.stderr) == (0, "")
    result = "Users: 1, conversations: 2, messages: 2, damaged places: 1.\n"
    assert done.stdout.startswith(f"Wrote {new}. {result}")
    assert database.read_bytes() == before
    again = run("salvage", new, *here)
    assert (again.returncode, again.stderr) == (1, f"fireside: {new} exists. Choose another file.\n")
    assert run("restore", new, *here).returncode == 0
    [kept] = [file for file in (data / "backups").iterdir() if file.suffix == ".db"]
    assert result in run("salvage", f"{new}2", str(kept), *here).stdout
    with serving(data) as service, service.first_again() as ann:
        titles = [conversation["title"] for conversation in ann.get("/conversations").raise_for_status().json()]
    assert titles[0] == "Only in the WAL, because the service was killed." and titles[1].startswith("On the page")
