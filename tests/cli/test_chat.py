"""The commands that chat and read conversations, with the running service and without one, in pipes and on a terminal."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fireside.cli.printer import Markdown
from hypothesis import given
from hypothesis import strategies as st

from ..browser import NO_ENGINE
from ..documents.making import pdf
from ..exports import png
from ..live import PATIENCE
from ..processes import environment, run, start
from ..upstream import DONE, Gate, Upstream, finish, pause, reasoning
from ..upstream import text as says
from .test_commands import Service, serving

MODEL = "llama-3.2-3b-instruct"
CTRL_D = "\x04"
terminal_only = pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals are of POSIX")


def ask(data_dir: Path, upstream: Upstream, *arguments: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    """Run a command to its end, with `stdin` piped in."""
    process = start(
        *arguments, "--data-dir", str(data_dir), environ=environment(lmstudio_url=upstream.url), stdin=subprocess.PIPE
    )
    out, err = process.communicate(stdin, timeout=PATIENCE)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def asked(upstream: Upstream) -> dict[str, Any]:
    """Return the body of the newest request for an answer."""
    requests = [one for one in upstream.requests if one.path.endswith("/chat/completions")]
    body: dict[str, Any] = json.loads(requests[-1].body)
    return body


class Terminal:
    """A command on a pseudo-terminal."""

    def __init__(self, data_dir: Path, upstream: Upstream, *arguments: str) -> None:
        self.screen, theirs = os.openpty()
        settings = environment(lmstudio_url=upstream.url) | {"TERM": "xterm"}
        self.process = start(
            *arguments, "--data-dir", str(data_dir), environ=settings, stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        self.output = ""
        self._seen = 0
        self._changed = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the process has ended
            while data := os.read(self.screen, 65536):
                with self._changed:
                    self.output += data.decode(errors="replace")
                    self._changed.notify_all()

    def type(self, text: str) -> None:
        os.write(self.screen, text.encode())

    def expect(self, text: str) -> None:
        """Wait until a text is printed after the last one that was expected."""
        with self._changed:
            found = self._changed.wait_for(lambda: text in self.output[self._seen :], PATIENCE)
            assert found, f"{text!r} is missing in {self.output[self._seen :]!r}"
            self._seen = self.output.index(text, self._seen) + len(text)

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def close(self) -> None:
        self.process.kill()
        os.close(self.screen)


@pytest.fixture
def service(tmp_path: Path, upstream: Upstream) -> Iterator[Service]:
    with serving(tmp_path, lmstudio_url=upstream.url) as service, service.first():
        yield service


def test_question_is_made_of_words_input_documents_and_images(
    tmp_path: Path, upstream: Upstream, service: Service
) -> None:
    (tmp_path / "plan.md").write_text("# Plan\n\ntwo", "utf-8")
    (tmp_path / "photo.png").write_bytes(png())
    upstream.enqueue(says("It is ", "**fine**.\x1b[2J"), finish("stop"), DONE)
    arguments = ("--file", str(tmp_path / "plan.md"), "--image", str(tmp_path / "photo.png"), "--system", "Be brief.")
    vision = "lmstudio/qwen2.5-vl-7b-instruct"
    done = ask(tmp_path, upstream, "ask", "review", "this", *arguments, "--model", vision, stdin="+ a line\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "It is **fine**.\x1b[2J\n", "")
    system, question = asked(upstream)["messages"]
    assert system == {"role": "system", "content": "Be brief."}
    words, image = question["content"]
    assert words["text"].endswith("\n\nreview this\n\n+ a line")
    assert '<document name="plan.md"' in words["text"] and "# Plan\n\ntwo" in words["text"]
    assert image["type"] == "image_url"


def test_asking_a_running_service_imports_no_library_of_the_service() -> None:
    """Importing httpx and Starlette would take longer than everything else until the request is sent."""
    code = "import fireside.__main__, fireside.cli.chat, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"httpx", "msgspec", "starlette", "uvicorn", "fireside.queries"} & set(done.stdout.split())


def test_conversation_is_continued_listed_found_and_shown_unless_it_is_not_saved(
    tmp_path: Path, upstream: Upstream, service: Service
) -> None:
    upstream.enqueue(says("Yes."), finish("stop"), DONE)
    assert ask(tmp_path, upstream, "ask", "--no-save", "Secret?").stdout == "Yes.\n"
    assert ask(tmp_path, upstream, "list").stdout == ""
    upstream.enqueue(says("Tea."), finish("stop"), DONE)
    assert ask(tmp_path, upstream, "ask", "What do I drink?").stdout == "Tea.\n"
    upstream.enqueue(reasoning("hm"), says("Green."), finish("stop"), DONE)
    answer = json.loads(ask(tmp_path, upstream, "ask", "Which?", "--conversation", "last", "--json").stdout)
    assert (answer["content"], answer["reasoning"], answer["status"]) == ("Green.", "hm", "ok")
    assert (answer["provider_id"], answer["model"]) == ("lmstudio", MODEL)
    assert [one["content"] for one in asked(upstream)["messages"]] == ["What do I drink?", "Tea.", "Which?"]
    [listed] = ask(tmp_path, upstream, "list").stdout.splitlines()
    assert listed.split()[0] == str(answer["conversation_id"])
    found = ask(tmp_path, upstream, "search", "green")
    assert "assistant: Green." in found.stdout and found.returncode == 0
    assert "Which?" in ask(tmp_path, upstream, "show", listed.split()[0]).stdout
    nothing = ask(tmp_path, upstream, "search", "secret")
    assert (nothing.returncode, nothing.stdout, nothing.stderr) == (1, "", "Nothing was found.\n")


def test_answer_is_stopped_by_ctrl_c_and_when_its_reader_closes_the_pipe(
    tmp_path: Path, upstream: Upstream, service: Service
) -> None:
    upstream.enqueue(says("half an "), pause(Gate()))
    process = start("ask", "Hello?", "--data-dir", str(tmp_path), environ=environment())
    assert process.stdout is not None and process.stdout.read(8) == "half an ", "it is printed while it is generated"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (130, "\n", "fireside: Stopped.\n")
    gate = Gate()
    upstream.enqueue(says("one\n"), pause(gate), says("two\n"), pause(Gate()))
    process = start("ask", "Hello?", "--data-dir", str(tmp_path), environ=environment())
    assert process.stdout is not None and process.stdout.read(4) == "one\n"
    process.stdout.close()
    gate.open()
    assert process.communicate(timeout=PATIENCE)[1] == "fireside: Stopped.\n"
    with service.first_again() as ann:
        answers = [ann.get(f"/conversations/{number}/messages").json()[-1] for number in (1, 2)]
    assert [answer["status"] for answer in answers] == ["canceled", "canceled"]
    assert answers[0]["content"] == "half an "


def test_command_reconnects_after_a_restart_of_the_service(tmp_path: Path, upstream: Upstream) -> None:
    upstream.enqueue(says("half an "), pause(Gate()))
    with serving(tmp_path, lmstudio_url=upstream.url) as service, service.first():
        process = start("ask", "Hello?", "--data-dir", str(tmp_path), environ=environment())
        assert process.stdout is not None and process.stdout.read(8) == "half an "
        service.stop()
        with serving(tmp_path, "--port", str(service.port)):
            out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (1, "\n")
    assert err == "fireside: Fireside stopped before the answer was complete.\n"


def test_commands_without_a_service_open_the_data_directory(tmp_path: Path, upstream: Upstream) -> None:
    missing = ask(tmp_path, upstream, "list")
    assert missing.returncode == 1 and "does not exist. Start Fireside once" in missing.stderr
    with serving(tmp_path) as service:
        without_account = ask(tmp_path, upstream, "ask", "Hello?")
        assert without_account.returncode == 1 and "account" in without_account.stderr
        with service.first():
            pass
        service.stop()
    upstream.enqueue(says("Hello."), finish("stop"), DONE)
    answered = ask(tmp_path, upstream, "ask", "Hello?")
    assert (answered.returncode, answered.stdout, answered.stderr) == (0, "Hello.\n", "")
    assert "Hello?" in ask(tmp_path, upstream, "list").stdout
    (tmp_path / "config.toml").write_text(NO_ENGINE)
    without_model = run("ask", "Hello?", "--data-dir", str(tmp_path), lmstudio_url="http://127.0.0.1:9")
    assert (without_model.returncode, without_model.stdout) == (1, "") and "model" in without_model.stderr


def test_wrong_argument_is_one_line_that_names_it(tmp_path: Path, upstream: Upstream, service: Service) -> None:
    for arguments, code, message in (
        (("ask",), 2, "no question"),
        (("ask", "x", "--model", "nope"), 1, f"There is no model nope. There are: lmstudio/{MODEL}"),
        (("ask", "x", "--conversation", "99"), 1, "no such conversation"),
        (("ask", "x", "--conversation", "first"), 2, "first is not the id of a conversation"),
        (("show", "9" * 5000), 2, "is not the id of a conversation"),
        (("ask", "x", "--conversation", "last"), 1, "There is no conversation yet."),
        (("ask", "x", "--file", "no-such-file"), 1, "no-such-file: No such file"),
        (("ask", "x", "--file", sys.executable), 1, f"{Path(sys.executable).name}: "),
        (("ask", "x", "--image", __file__), 1, "is not a PNG, JPEG or WebP image"),
        (("ask", "x", "--user", "zoe"), 1, "no such user"),
        (("list", "--limit", "0"), 2, "--limit"),
        (("list", "--limit", "9" * 5000), 2, "--limit"),
    ):
        done = ask(tmp_path, upstream, *arguments)
        assert done.returncode == code and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert ask(tmp_path, upstream, "list").stdout == "", "a conversation was created"


def test_documents_are_read_by_a_service_of_the_command_and_what_was_sent_is_said(
    tmp_path: Path, upstream: Upstream
) -> None:
    with serving(tmp_path) as service, service.first():
        service.stop()
    upstream.models[0].instances = {MODEL: 4096}
    book = tmp_path / "book.txt"
    book.write_text("\n\n".join(f"Chapter {n}. " + f"The harbor has {n} boats. " * 120 for n in range(40)), "utf-8")
    (tmp_path / "scan.pdf").write_bytes(pdf(""))
    (tmp_path / "locked.pdf").write_bytes(pdf("Secret", password="x"))
    content = "It says “The harbor has 7 boats.” and “the harbor has no boats at all”."
    upstream.default = [says(content) + finish("stop") + DONE]
    arguments = ("ask", "--file", str(book), "How many boats in chapter 7?")
    done = ask(tmp_path, upstream, *arguments)
    assert (done.returncode, done.stdout) == (0, f"{content}\n")
    assert '<document name="book.txt" sections="' in asked(upstream)["messages"][-1]["content"]
    sent, found, missing = done.stderr.splitlines()
    assert re.fullmatch(r"Sent: \d+ of \d+ sections of book\.txt: [0-9, -]+", sent)
    assert re.fullmatch(r"“The harbor has 7 boats\.”: book\.txt, section \d+", found)
    assert missing == "“the harbor has no boats at all”: not found in the documents"
    answer = json.loads(ask(tmp_path, upstream, *arguments, "--json").stdout)
    assert [one["status"] for one in answer["citations"]] == ["found", "not_found"]
    assert answer["stats"]["documents"][0]["name"] == "book.txt"
    for name, problem in (("scan.pdf", "The document has no text"), ("locked.pdf", "needs a password")):
        refused = ask(tmp_path, upstream, "ask", "--file", str(tmp_path / name))
        assert refused.returncode == 1 and refused.stderr.startswith(f"fireside: {name}: {problem}")
    hits = ask(tmp_path, upstream, "search", "harbor chapter").stdout
    assert re.search(r"book\.txt, section \d+: .*harbor", hits), hits


@terminal_only
def test_documents_in_a_chat_on_a_terminal(tmp_path: Path, upstream: Upstream, service: Service) -> None:
    (tmp_path / "my report.pdf").write_bytes(pdf("The keel is laid at dawn.", password="boat"))
    with contextlib.closing(Terminal(tmp_path, upstream, "chat")) as terminal:
        terminal.expect("> ")
        terminal.type(f"/file '{tmp_path}/nothing.pdf'\r")
        terminal.expect("No such file")
        terminal.type(f"/file '{tmp_path}/my report.pdf'\r")
        terminal.expect("Password of my report.pdf: ")
        terminal.type("boat\r")
        terminal.expect("my report.pdf, 1 page")
        upstream.enqueue(says("At dawn."), finish("stop"), DONE)
        terminal.type("When?\r")
        terminal.expect("At dawn.")
        assert "The keel is laid at dawn." in asked(upstream)["messages"][-1]["content"]
        terminal.type("/file\r")
        terminal.expect("No file is waiting")
        terminal.expect("> ")
        terminal.type(CTRL_D)
        assert terminal.process.wait(PATIENCE) == 0


@terminal_only
def test_chat_on_a_terminal(tmp_path: Path, upstream: Upstream, service: Service) -> None:
    with contextlib.closing(Terminal(tmp_path, upstream, "chat")) as terminal:
        terminal.expect("> ")
        upstream.enqueue(
            reasoning("let me think"), says("# Tea\n", "It is **good**.\x1b]0;x\x07"), finish("stop"), DONE
        )
        terminal.type("What is \\\rtea?\r")
        terminal.expect("\x1b[2mlet me think")
        terminal.expect("\x1b[1m# Tea")
        terminal.expect("\x1b[1m**good**\x1b[0m.\ufffd]0;x\ufffd")
        terminal.expect("> ")
        assert asked(upstream)["messages"][-1]["content"] == "What is \ntea?"
        upstream.enqueue(says("second "), pause(Gate()))
        terminal.type("/retry\r")
        terminal.expect("second ")
        terminal.interrupt()
        terminal.expect("Stopped.")
        terminal.expect("> ")
        terminal.type("/model qwen\r")
        terminal.expect("There is no model qwen")
        terminal.expect("> ")
        upstream.enqueue(says("third"), finish("stop"), DONE)
        terminal.type("/new\r/model lmstudio/qwen2.5-vl-7b-instruct\rAnother?\r")
        terminal.expect("third")
        assert asked(upstream)["model"] == "qwen2.5-vl-7b-instruct"
        terminal.type("/open 1\r")
        terminal.expect("second")
        terminal.expect("> ")
        terminal.type("\x1b[A")  # the arrow key shows the last question of the conversation
        terminal.expect("tea?")
        terminal.type("\x15" + CTRL_D)
        assert terminal.process.wait(PATIENCE) == 0
    with service.first_again() as ann:
        conversations = ann.get("/conversations").json()
        assert len(conversations) == 2
        assert len(ann.get("/auth/sessions").json()["sessions"]) == 2, "the terminal's session has not ended"


@given(st.lists(st.text("a#*` \n~", max_size=8), max_size=8))
def test_styles_keep_every_character(pieces: list[str]) -> None:
    markdown = Markdown()
    styled = "".join(map(markdown.feed, pieces)) + markdown.end()
    assert re.sub(r"\x1b\[\d+m", "", styled) == "".join(pieces)
