"""Confidentiality: secrets and private data do not leak into logs, output, answers, the process list or files.

A service is used with a canary in every secret and in everything that a user writes. Then all these places are searched.
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
PASSWORD, WRONG_PASSWORD, NEW_PASSWORD = (f"canary of a {kind}password" for kind in ("", "wrong ", "new "))
QUESTION, ANSWER, TITLE, PROMPT, IMPORT = WRITTEN = tuple(
    f"canary of {kind}" for kind in ("a question", "an answer", "a title", "a system prompt", "an import")
)
QUERY, PATH, HEADER, BODY, NAME = SENT = tuple(
    f"canary-of-a-{kind}" for kind in ("query", "path", "header", "body", "name")
)
MODEL = {"provider_id": "lmstudio", "model": "m"}
JSON = {"Content-Type": "application/json"}
SIGN_IN_PATHS = ("/auth/login", "/auth/register", "/auth/link", "/auth/reset", "/admin/bootstrap")


class Session:
    """Uses the service, and records every answer and every secret that the service issues."""

    def __init__(self, fireside: Fireside, upstream: Upstream, folder: Path) -> None:
        self.fireside, self.upstream, self.folder = fireside, upstream, folder
        self.answers: list[tuple[str, bytes]] = []  # "user METHOD path", and the answer
        self.issued: dict[str, str] = {}  # secret: "csrf", "cookie", or the one request whose answer contains it
        self.commands: list[str] = []

    def client(self, name: str) -> httpx.Client:
        client = self.fireside.client()

        def record(response: httpx.Response) -> None:
            headers = "\n".join(f"{key}: {value}" for key, value in response.headers.items())
            request = f"{name} {response.request.method} {response.request.url.path}"
            self.answers.append((request, headers.encode() + b"\n\n" + response.read()))

        client.event_hooks = {"response": [record]}
        return client

    def sign_in(self, client: httpx.Client, path: str, body: dict[str, str]) -> None:
        answer = client.post(path, json=body)
        client.headers["X-CSRF-Token"] = good(answer)["csrf_token"]
        self.issued[answer.json()["csrf_token"]] = "csrf"
        for cookie in answer.cookies.values():
            self.issued |= {cookie: "cookie", cookie.rpartition(".")[0]: "cookie"}

    def command(self, *arguments: str, stdin: str = "") -> str:
        command = (*arguments, "--data-dir", str(self.fireside.data_dir))
        self.commands.append(" ".join(command))
        process = start(*command, environ=self.fireside.environ, stdin=subprocess.PIPE)
        out, err = process.communicate(stdin, timeout=60)
        assert process.returncode == 0, err
        return str(out)

    def use(self) -> None:
        ann, bob, anonymous = self.client("ann"), self.client("bob"), self.client("anonymous")
        self.sign_in(ann, "/admin/bootstrap", {"username": "ann", "password": PASSWORD, "token": BOOTSTRAP})
        invite = good(ann.post("/admin/invites"))["invite_code"]
        self.issued[invite] = "ann POST /admin/invites"
        self.sign_in(bob, "/auth/register", {"username": "bob", "password": PASSWORD, "invite_code": invite})
        reset = good(ann.post("/admin/users/2/reset-link"))["token"]
        self.issued[reset] = "ann POST /admin/users/2/reset-link"
        self.sign_in(bob, "/auth/reset", {"token": reset, "password": PASSWORD})
        for username in ("ann", NAME):
            anonymous.post("/auth/login", json={"username": username, "password": WRONG_PASSWORD})
        self._write(ann)
        self._use_token(ann)
        self._let_model_server_fail(ann)
        for client in (bob, anonymous):
            for path in ("", "/1", "/1/messages"):
                client.get(f"/conversations{path}")
            client.get(f"/search?q={QUERY}")
            client.get("/admin/users")
            client.get(f"/{PATH}/x?token={QUERY}", headers={"X-Anything": HEADER, "Authorization": f"Bearer {HEADER}"})
            client.post("/conversations", content=f'{{"title": ["{BODY}"', headers=JSON)
            client.post("/auth/login", json={"username": [BODY], "password": 7})
            client.get("/conversations", headers={"Host": f"{HEADER}.example"})
            client.get("/conversations", headers={"Origin": f"http://{HEADER}.example"})
        good(ann.post("/auth/password", json={"current_password": PASSWORD, "new_password": NEW_PASSWORD}))
        token = self.command("login-link").strip().rpartition("=")[2]
        self.issued[token] = ""
        self.sign_in(self.client("ann"), "/auth/link", {"token": token})
        self.command("reset-password", "--user", "bob", stdin=f"{NEW_PASSWORD}\n")
        self.command("backup", str(self.folder / "backup.db"))
        self.command("export", str(self.folder / "export.zip"))
        self.command("doctor")
        ann.get("/providers")
        good(ann.post("/auth/logout"))

    def _use_token(self, ann: httpx.Client) -> None:
        """Ask as another program does, with a right and with a mistyped token."""
        token = good(ann.post("/tokens", json={"name": "Zed"}))["token"]
        self.issued |= {token: "ann POST /tokens", token[3:-8]: "ann POST /tokens"}
        program = self.client("ann's program")
        body = MODEL | {"messages": [{"role": "user", "content": f"{QUESTION} 0"}]}
        for text in (token, f"{token[:-1]}x", f"Basic {token}"):
            headers = {"Authorization": f"Bearer {text}"}
            self.upstream.enqueue(says(ANSWER), finish())
            for path in ("/v1/models", "/conversations", f"/v1/models/{QUERY}"):
                program.get(path, headers=headers)
            program.post("/v1/chat/completions", json=body | {"model": "lmstudio/m"}, headers=headers)
        self.upstream.forget()

    def _write(self, ann: httpx.Client) -> None:
        for number in range(2):
            conversation_id = good(ann.post("/conversations", json={"title": TITLE, "system_prompt": PROMPT}))["id"]
            good(ann.post(f"/conversations/{conversation_id}/messages", json={"content": f"{QUESTION} {number}"}))
            self.upstream.enqueue(says(ANSWER), finish())
            ann.post(f"/conversations/{conversation_id}/stream", json=MODEL)
        good(ann.delete("/conversations/2?purge=true"))
        ann.get("/conversations", params={"q": QUERY})
        ann.get("/export")
        ann.post("/import", json=[{"title": IMPORT}])
        ann.post("/import", content=f"{{ {IMPORT}", headers=JSON)

    def _let_model_server_fail(self, ann: httpx.Client) -> None:
        """Let the model server repeat what it was sent, in each kind of error."""

        def repeat(request: Request) -> bytes:
            return error(f"You sent {request.headers['authorization']} and {request.body.decode()}")

        text = f"You sent Bearer {KEY} and {QUESTION}"
        for script in (
            (status(401, {"error": {"message": text}}),),
            (status(500, text, "text/plain"),),
            (status(400, {"error": text}),),
            (repeat,),
            (says("canary of an answer"), wire(text.encode())),
        ):
            self.upstream.enqueue(*script)
            ann.post("/chat/retry", json=MODEL | {"conversation_id": 1})
            ann.post("/conversations/1/stream", json=MODEL)
        self.upstream.enqueue(status(500, text, "text/plain"), path="/api/v1/models/load")
        ann.post("/providers/lmstudio/models/load", json={"model": "m"})
        assert self.upstream.count(CHAT) >= 7


def prove(size: int) -> Figures:
    """`size` is ignored."""
    figures = Figures()
    with tempfile.TemporaryDirectory() as name, Upstream(token=KEY) as upstream:
        folder = Path(name)
        settings = {"lmstudio_url": upstream.url, "lmstudio_api_key": KEY, "bootstrap_token": BOOTSTRAP}
        with Fireside(folder / "data", NO_ENGINE, 0, True, **settings) as fireside:
            (folder / "data" / "config.toml").chmod(0o600)
            session = Session(fireside, upstream, folder)
            session.use()
            secret = json.loads((folder / "data" / "service.json").read_text("utf-8"))["secret"]
            processes = _command_lines(fireside.process.pid)
            modes = list(_modes(folder))
            assert fireside.process.stdout is not None
            fireside.process.terminate()
            fireside.process.wait(30)
            printed = "".join(fireside.printed) + fireside.process.stdout.read()
        places = {"the output": printed.encode(), "a command line": f"{processes}{session.commands}".encode()}
        _search(figures, session, secret, folder, places)
        modes += _modes(folder)
        for file, mode in modes:
            right = 0o700 if file.is_dir() else 0o600
            figures.expect(mode == right, f"{file.name}: mode {mode:o}")
        figures.more = f"{len(session.answers)} answers, {len(modes)} file modes"
    return figures


def _command_lines(pid: int) -> str:
    """Return the command lines of the process and its children, which every user of the computer can read."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            parent = int((file.parent / "stat").read_text().rpartition(")")[2].split()[1])
            if pid in (int(file.parent.name), parent):
                found.append(file.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace"))
        except OSError:
            continue
    return "\n".join(found)


def _modes(folder: Path) -> Iterator[tuple[Path, int]]:
    for file in folder.rglob("*"):
        yield file, stat.S_IMODE(file.stat().st_mode)


def _search(figures: Figures, session: Session, secret: str, folder: Path, places: dict[str, bytes]) -> None:
    secrets = [KEY, BOOTSTRAP, secret, PASSWORD, WRONG_PASSWORD, NEW_PASSWORD, *session.issued]
    places["the log"] = b"".join(file.read_bytes() for file in (folder / "data").glob("*.log*"))
    assert places["the log"].count(b"\n") > 50, "nothing was logged"
    files = {file.name: file.read_bytes() for file in (folder / "data").rglob("*") if file.is_file()}
    files["backup.db"] = (folder / "backup.db").read_bytes()
    session_key = files.pop("session-key").decode()

    def check(place: str, text: bytes, canary: str) -> None:
        figures.expect(canary.encode() not in text, f"{canary!r} is in {place}")

    for place, text in places.items():
        for canary in (*secrets, *WRITTEN, *SENT, session_key):
            check(place, text, canary)
    for request, answer in session.answers:
        private = () if request.startswith("ann") else WRITTEN
        for canary in (*secrets, session_key, *private):
            check(f"the answer to {request}", b"" if _is_meant(request, session.issued.get(canary)) else answer, canary)
    for name, data in files.items():
        for canary in secrets:
            check(name, data, canary)
    check("the file after its purge", files["fireside.db"], f"{QUESTION} 1")


def _is_meant(request: str, kind: str | None) -> bool:
    """Whether the answer may contain this secret: a cookie or CSRF token after signing in, an invite for its creator."""
    if kind in ("cookie", "csrf"):
        return request.endswith((*SIGN_IN_PATHS, *(("/auth/me",) if kind == "csrf" else ())))
    return kind is not None and kind == request
