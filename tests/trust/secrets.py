"""Words that must not be found where they do not belong: in the log, in what is printed, in answers, in the process list, in files.

A Fireside is led through its life with a canary in every secret and in everything that a person writes; then it is searched.
"""

import json
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx

from ..browser import NO_ENGINE, Fireside
from ..live import good
from ..processes import start
from ..upstream import CHAT, Request, Upstream, error, finish, status, wire
from ..upstream import text as says
from . import Figures

KEY = "sk-canary-of-the-model-server-0123456789"
BOOTSTRAP = "canary-of-the-bootstrap-token"
PASSWORDS = ("canary of a password", "canary of a wrong password", "canary of a new password")
WRITTEN = (
    "canary of a question",
    "canary of an answer",
    "canary of a title",
    "canary of a system prompt",
    "canary of an import",
)
SENT = ("canary-of-a-query", "canary-of-a-path", "canary-of-a-header", "canary-of-a-body", "canary-of-a-name")


class Life:
    """What happens, and what was answered to whom."""

    def __init__(self, fireside: Fireside, upstream: Upstream, folder: Path) -> None:
        self.fireside, self.upstream, self.folder = fireside, upstream, folder
        self.answers: list[tuple[str, bytes]] = []
        self.issued: dict[str, str] = {}  # secret: the answer that may hold it, or '' for none
        self.commands: list[str] = []

    def client(self, name: str) -> httpx.Client:
        client = self.fireside.client()

        def remember(response: httpx.Response) -> None:
            headers = "\n".join(f"{key}: {value}" for key, value in response.headers.items())
            asked = f"{name} {response.request.method} {response.request.url.path}"
            self.answers.append((asked, headers.encode() + b"\n\n" + response.read()))

        client.event_hooks = {"response": [remember]}
        return client

    def sign_in(self, client: httpx.Client, path: str, body: dict[str, str]) -> None:
        answer = client.post(path, json=body)
        client.headers["X-CSRF-Token"] = good(answer)["csrf_token"]
        self.issued[answer.json()["csrf_token"]] = "csrf"
        for cookie in answer.cookies.values():
            self.issued[cookie] = "cookie"
            self.issued[cookie.rpartition(".")[0]] = "cookie"

    def command(self, *arguments: str, stdin: str = "") -> str:
        command = (*arguments, "--data-dir", str(self.fireside.data_dir))
        self.commands.append(" ".join(command))
        process = start(*command, environ=self.fireside.environ, stdin=subprocess.PIPE)
        out, problem = process.communicate(stdin, timeout=60)
        assert process.returncode == 0, problem
        return str(out)

    def live(self) -> None:
        ann, bob, nobody = self.client("ann"), self.client("bob"), self.client("nobody")
        self.sign_in(ann, "/admin/bootstrap", {"username": "ann", "password": PASSWORDS[0], "token": BOOTSTRAP})
        invite = good(ann.post("/admin/invites"))["invite_code"]
        self.issued[invite] = "ann POST /admin/invites"
        self.sign_in(bob, "/auth/register", {"username": "bob", "password": PASSWORDS[0], "invite_code": invite})
        nobody.post("/auth/login", json={"username": "ann", "password": PASSWORDS[1]})
        nobody.post("/auth/login", json={"username": SENT[4], "password": PASSWORDS[1]})
        self._write(ann)
        self._fail(ann)
        for person in (bob, nobody):
            for path in (
                "/conversations",
                "/conversations/1",
                "/conversations/1/messages",
                f"/search?q={SENT[0]}",
                "/admin/users",
            ):
                person.get(path)
            person.get(
                f"/{SENT[1]}/x?token={SENT[0]}", headers={"X-Anything": SENT[2], "Authorization": f"Bearer {SENT[2]}"}
            )
            person.post(
                "/conversations", content=f'{{"title": ["{SENT[3]}"', headers={"Content-Type": "application/json"}
            )
            person.post("/auth/login", json={"username": [SENT[3]], "password": 7})
            person.get("/conversations", headers={"Host": f"{SENT[2]}.example"})
            person.get("/conversations", headers={"Origin": f"http://{SENT[2]}.example"})
        good(ann.post("/auth/password", json={"current_password": PASSWORDS[0], "new_password": PASSWORDS[2]}))
        link = self.command("login-link").strip()
        self.issued[link.rpartition("=")[2]] = ""
        self.sign_in(self.client("ann"), "/auth/link", {"token": link.rpartition("=")[2]})
        self.command("reset-password", "--user", "bob", stdin=f"{PASSWORDS[2]}\n")
        self.command("backup", str(self.folder / "backup.db"))
        self.command("export", str(self.folder / "export.zip"))
        self.command("doctor")
        ann.get("/providers")
        good(ann.post("/auth/logout"))

    def _write(self, ann: httpx.Client) -> None:
        fields = {"title": WRITTEN[2], "system_prompt": WRITTEN[3]}
        for number in range(2):
            conversation_id = good(ann.post("/conversations", json=fields))["id"]
            good(ann.post(f"/conversations/{conversation_id}/messages", json={"content": f"{WRITTEN[0]} {number}"}))
            self.upstream.enqueue(says(WRITTEN[1]), finish())
            ann.post(f"/conversations/{conversation_id}/stream", json={"provider_id": "lmstudio", "model": "m"})
        good(ann.delete("/conversations/2?purge=true"))
        ann.get("/conversations", params={"q": SENT[0]})
        ann.get("/export")
        ann.post("/import", json=[{"title": WRITTEN[4]}])
        ann.post("/import", content=f"{{ {WRITTEN[4]}", headers={"Content-Type": "application/json"})

    def _fail(self, ann: httpx.Client) -> None:
        """The model server gives away what it was sent, in every way that it can fail."""

        def tell(request: Request) -> str:
            return f"You sent {request.headers['authorization']} and {request.body.decode()}"

        def tell_in_stream(request: Request) -> bytes:
            return error(tell(request))

        told = f"You sent Bearer {KEY} and {WRITTEN[0]}"
        for script in (
            (status(401, {"error": {"message": told}}),),
            (status(500, told, "text/plain"),),
            (status(400, {"error": told}),),
            (tell_in_stream,),
            (says("canary of an answer"), wire(told.encode())),
        ):
            self.upstream.enqueue(*script)
            ann.post("/chat/retry", json={"conversation_id": 1, "provider_id": "lmstudio", "model": "m"})
            ann.post("/conversations/1/stream", json={"provider_id": "lmstudio", "model": "m"})
        self.upstream.enqueue(status(500, told, "text/plain"), path="/api/v1/models/load")
        ann.post("/providers/lmstudio/models/load", json={"model": "m"})
        assert self.upstream.count(CHAT) >= 7


def prove(size: int) -> Figures:
    """The size does not matter: there is one life."""
    figures = Figures()
    with tempfile.TemporaryDirectory() as name, Upstream(token=KEY) as upstream:
        folder = Path(name)
        settings = {"lmstudio_url": upstream.url, "lmstudio_api_key": KEY, "bootstrap_token": BOOTSTRAP}
        with Fireside(folder / "data", NO_ENGINE, 0, True, **settings) as fireside:
            (folder / "data" / "config.toml").chmod(0o600)
            life = Life(fireside, upstream, folder)
            life.live()
            secret = _secret_of_the_service(folder)
            shown = _process_list(fireside.process.pid)
            modes = list(_modes(folder))
            assert fireside.process.stdout is not None
            fireside.process.terminate()
            fireside.process.wait(30)
            printed = "".join(fireside.printed) + fireside.process.stdout.read()
        _search(figures, life, secret, folder, printed, shown)
        modes += _modes(folder)
        for file, mode in modes:
            right = 0o700 if file.is_dir() else 0o600
            figures.expect(mode == right, f"{file.name}: mode {mode:o}")
        figures.more = f"{len(life.answers)} answers, {len(modes)} file modes"
    return figures


def _secret_of_the_service(folder: Path) -> str:
    return str(json.loads((folder / "data" / "service.json").read_text("utf-8"))["secret"])


def _process_list(pid: int) -> str:
    """The command lines of the process and its children, as anybody on the computer sees them."""
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            parent = int((line.parent / "stat").read_text().rpartition(")")[2].split()[1])
            if pid in (int(line.parent.name), parent):
                found.append(line.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace"))
        except OSError:
            continue
    return "\n".join(found)


def _modes(folder: Path) -> Iterator[tuple[Path, int]]:
    for file in folder.rglob("*"):
        yield file, stat.S_IMODE(file.stat().st_mode)


def _search(figures: Figures, life: Life, secret: str, folder: Path, printed: str, shown: str) -> None:
    secrets = [KEY, BOOTSTRAP, secret, *PASSWORDS, *life.issued]
    log = b"".join(file.read_bytes() for file in (folder / "data").glob("*.log*"))
    assert log.count(b"\n") > 50, "nothing was logged"
    kept = {file.name: file.read_bytes() for file in (folder / "data").rglob("*") if file.is_file()}
    kept["backup.db"] = (folder / "backup.db").read_bytes()
    key = kept.pop("session-key").decode()
    lines = {"the log": log, "what was printed": printed.encode(), "a command line": f"{shown}{life.commands}".encode()}
    for where, text in lines.items():
        for canary in (*secrets, *WRITTEN, *SENT, key):
            figures.expect(canary.encode() not in text, f"{canary!r} is in {where}")
    for asked, answer in life.answers:
        for canary in (*secrets, key):
            figures.expect(
                canary.encode() not in answer or _may_hold(asked, life.issued.get(canary)),
                f"{canary!r} is in the answer to {asked}",
            )
        if not asked.startswith("ann"):
            for canary in WRITTEN:
                figures.expect(canary.encode() not in answer, f"{canary!r} is in the answer to {asked}")
    for name, data in kept.items():
        for canary in secrets:
            figures.expect(canary.encode() not in data, f"{canary!r} is in {name}")
    purged = f"{WRITTEN[0]} 1".encode()
    figures.expect(purged not in kept["fireside.db"], "a question that was deleted for good is still in the file")


SIGNING_IN = ("/auth/login", "/auth/register", "/auth/link", "/admin/bootstrap")


def _may_hold(asked: str, kind: str | None) -> bool:
    """A session's cookie and its token are told to whoever signs in, the token also to who asks for it; an invite to who made it."""
    if kind in ("cookie", "csrf"):
        return asked.endswith((*SIGNING_IN, *(("/auth/me",) if kind == "csrf" else ())))
    return kind is not None and kind == asked
