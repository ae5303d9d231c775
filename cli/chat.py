"""The commands that chat and read conversations: ask, chat, list, search and show."""

import base64
import codecs
import contextlib
import datetime
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .. import config
from ..errors import ConfigError
from .client import CommandFailed
from .printer import BOLD, DIM, RESET, Printer, note, printable
from .session import Event, Result, Session, open_session
from .upload import upload

IMAGE_TYPES = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"RIFF": "image/webp"}
MATCH_MARKS = {"\ue000": BOLD, "\ue001": RESET}  # around each match in a snippet of a search
STOPPED = 130  # exit code after Ctrl-C, as shells have it
HELP = """\
/model [NAME]   show the models, or choose one
/system TEXT    set the instructions of this chat
/retry          answer the last question again
/file PATH      send a file with the next question; without PATH, show which
/new            begin a new chat
/open ID        continue another chat; fireside list shows the ids
/help           show this list
/quit           end, as Ctrl-D does
A line that ends with \\ continues on the next. Ctrl-C stops an answer."""


# ---- ask


def ask(options: dict[str, Any]) -> int:
    """Ask one question and print the answer as it is generated."""
    _stop_on_sigterm()
    question = _question(options)
    images = [_image(Path(name)) for name in options["image"]]
    if options["conversation"] and options["system"]:
        raise ConfigError("--system: works only for a new conversation")
    with open_session(config.load(options), options["user"]) as session:
        choice = choose_model(session, options["model"])
        message: dict[str, Any] = {"content": question, "images": images}
        if options["file"]:
            message["attachment_ids"] = [upload(session, Path(name))["id"] for name in options["file"]]
        if options["conversation"]:
            conversation_id = _conversation_id(session, options["conversation"])
            session.post(f"/conversations/{conversation_id}/messages", message)
        else:
            conversation_id = new_conversation(session, message, options["system"], temporary=options["no_save"])
        try:
            result = print_answer(session, session.answer(conversation_id, choice), quiet=options["json"])
            if options["json"]:
                answer = session.get(f"/conversations/{conversation_id}/messages", limit=1)[-1]
                names = {name: answer[name] for name in ("provider_id", "model")}
                print(json.dumps(asdict(result) | names, ensure_ascii=False))
            else:
                _note_documents(result)
        finally:
            if options["no_save"]:
                session.delete(f"/conversations/{conversation_id}", purge="true")
    return _report(result)


def _question(options: dict[str, Any]) -> str:
    """Return the words of the command, then standard input."""
    parts = [" ".join(options["question"])]
    if not sys.stdin.isatty():
        parts.append(_decoded(sys.stdin.buffer.read(), "standard input").strip("\n"))
    question = "\n\n".join(part for part in parts if part.strip())
    if not (question or options["file"]):
        raise ConfigError('no question. Write it after the command: fireside ask "What is a monad?"')
    return question


def _decoded(data: bytes, name: str) -> str:
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    with contextlib.suppress(UnicodeDecodeError):
        text = data.decode(encoding)
        if "\0" not in text:
            return text.replace("\r\n", "\n")
    raise CommandFailed(f"{name}: is not a text in UTF-8 or UTF-16.")


def _image(path: Path) -> dict[str, str]:
    data = path.read_bytes()
    kinds = [kind for magic, kind in IMAGE_TYPES.items() if data.startswith(magic)]
    if not kinds:
        raise CommandFailed(f"{path}: is not a PNG, JPEG or WebP image.")
    return {"media_type": kinds[0], "data": base64.b64encode(data).decode()}


def _conversation_id(session: Session, name: str) -> int:
    """Return the id that `name` gives, or that of the most recently used conversation for "last"."""
    if name == "last":
        newest = session.get("/conversations", limit=1)
        if not newest:
            raise CommandFailed("There is no conversation yet.")
        return int(newest[0]["id"])
    if not re.fullmatch(r"[0-9]{1,18}", name):
        raise ConfigError(
            f"{printable(name)[:50]} is not the id of a conversation. fireside list shows the ids; last is the newest."
        )
    return int(name)


def new_conversation(session: Session, message: dict[str, Any], system: str | None, temporary: bool = False) -> int:
    """Create a conversation with its first question. Return its id."""
    fields: dict[str, Any] = {"message": message}
    if system:
        fields["system_prompt"] = system
    if temporary:
        fields["temporary"] = True
    created: int = session.post("/conversations", fields)["id"]
    return created


def list_models(session: Session) -> list[tuple[str, str]]:
    """Return (provider, model) of every model that a server lists."""
    return [(one["provider_id"], model["id"]) for one in session.get("/providers") for model in one["models"]]


def choose_model(session: Session, name: str | None) -> dict[str, str]:
    """Return the provider and model for a name such as "qwen3-8b" or "lmstudio/qwen3-8b", as fields of a request."""
    if name is None:
        return {}
    models = list_models(session)
    found = [one for one in models if name in (one[1], "/".join(one))]
    if len(found) == 1:
        return {"provider_id": found[0][0], "model": found[0][1]}
    names = ["/".join(one) for one in found or models]
    problem = f"{name} is on several servers. Name one" if found else f"There is no model {name}. There are"
    raise CommandFailed(printable(f"{problem}: {', '.join(names)}." if names else f"There is no model {name}."))


# ---- an answer


def print_answer(session: Session, events: Iterator[Event], quiet: bool = False) -> Result:
    """Print an answer as it is generated. Ctrl-C stops it. Return it, or what had arrived."""
    result, printer = Result(), Printer()
    try:
        for event in events:
            result.add(event)
            if event.name == "progress" and not quiet:
                printer.show_progress(_progress(event.data))
            elif not quiet:
                printer.show(result.content, result.reasoning)
    except (KeyboardInterrupt, BrokenPipeError) as interruption:
        if result.generation_id and result.status == "generating":
            session.cancel(result.generation_id)
        result.status = "canceled"
        if isinstance(interruption, BrokenPipeError):  # such as `fireside ask ... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes the rest at its end
    if not quiet:
        printer.end()
    return result


def _progress(progress: dict[str, Any]) -> str:
    match progress["phase"]:
        case "queued":
            return f"In the queue, place {progress['place']} ..."
        case "loading":
            return "Loading the model ..."
        case "prompt" if progress.get("total"):
            return f"Reading the prompt: {progress['done'] * 100 // progress['total']} % ..."
        case "prompt":
            return "Reading the prompt ..."
    return ""


def _note_documents(result: Result) -> None:
    """Say on standard error which pages of long documents were sent, and where the documents have the quotations."""
    if not (result.citations or result.stats.get("documents")):
        return
    import msgspec

    from ..queries.types import Citation
    from ..transfer import transcript

    for text in transcript.describe_sent(result.stats):
        note(f"Sent: {text}")
    citations = msgspec.convert(result.citations, list[Citation])
    for text in transcript.describe_citations(result.content, citations, result.stats):
        note(text)


def _report(result: Result) -> int:
    """Say on standard error why an answer is not complete. Return the exit code."""
    if result.status == "ok":
        return 0
    reasons = {"canceled": "Stopped.", "interrupted": "Fireside stopped before the answer was complete."}
    message = result.error["message"] if result.error else reasons[result.status]
    print(f"fireside: {printable(message)}", file=sys.stderr)
    return STOPPED if result.status == "canceled" else 1


def _stop_on_sigterm() -> None:
    """Let SIGTERM stop the answer as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


# ---- chat


def chat(options: dict[str, Any]) -> int:
    """Ask questions in turn until the input ends."""
    _stop_on_sigterm()
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (gives `input` its line editing and history; Windows has its own)
    with open_session(config.load(options), options["user"]) as session:
        talk = _Chat(session, choose_model(session, options["model"]), options["system"])
        if options["conversation"]:
            talk.open(options["conversation"])
        elif sys.stdin.isatty():
            print("Ask a question. /help shows the commands, Ctrl-D ends.")
        while (line := _read_lines()) is not None:
            try:
                if not talk.handle(line):
                    break
            except (CommandFailed, ConfigError) as error:
                print(f"fireside: {error}", file=sys.stderr)
            except KeyboardInterrupt:
                print()
    return 0


def _read_lines() -> str | None:
    """Return the next question or command, or None at the end of the input. Ctrl-C discards what was typed."""
    lines: list[str] = []
    prompt = "> "
    while True:
        try:
            line = input(prompt if sys.stdin.isatty() else "")
        except EOFError:
            if sys.stdin.isatty():
                print()
            return "\n".join(lines) if lines else None
        except KeyboardInterrupt:
            print()
            lines, prompt = [], "> "
            continue
        if not line.endswith("\\"):
            return "\n".join([*lines, line])
        lines.append(line[:-1])
        prompt = "  "


@dataclass
class _Chat:
    """The state of `fireside chat`: the conversation, if it has begun, and what the next answer is asked for."""

    session: Session
    choice: dict[str, str]
    system: str | None
    conversation_id: int | None = None
    files: list[dict[str, Any]] = field(default_factory=list)  # attachments of the next question

    def handle(self, line: str) -> bool:
        """Do what a line asks for. Return False for /quit."""
        if not line.strip():
            return True
        if not line.startswith("/"):
            self._ask(line.strip())
            return True
        name, _, argument = line[1:].partition(" ")
        commands: dict[str, Callable[[str], object]] = {
            "model": self._choose_model,
            "system": self._set_system,
            "retry": self._retry,
            "file": self._add_file,
            "new": self._begin,
            "open": self.open,
            "help": lambda _: print(HELP),
        }
        if name in ("quit", "exit"):
            return False
        if name not in commands:
            raise CommandFailed(f"There is no command /{printable(name)}. /help shows the commands.")
        commands[name](argument.strip())
        return True

    def _ask(self, question: str) -> None:
        message: dict[str, Any] = {"content": question}
        if self.files:
            message["attachment_ids"] = [file["id"] for file in self.files]
        if self.conversation_id is None:
            self.conversation_id = new_conversation(self.session, message, self.system)
        else:
            self.session.post(f"/conversations/{self.conversation_id}/messages", message)
        self.files = []
        self._print(self.session.answer(self.conversation_id, self.choice))

    def _print(self, events: Iterator[Event]) -> None:
        result = print_answer(self.session, events)
        _note_documents(result)
        _report(result)

    def _add_file(self, path: str) -> None:
        if path:
            try:
                self.files.append(upload(self.session, _dropped(path)))
            except OSError as error:
                raise CommandFailed(printable(f"{error.filename}: {error.strerror}")) from error
        for file in self.files:
            pages = f"{file['pages']} {file['unit']}{'' if file['pages'] == 1 else 's'}" if file["unit"] else ""
            print(printable(f"{file['name']}, {pages or str(file['size_bytes']) + ' bytes'}"))
        if not self.files:
            print("No file is waiting for the next question.")

    def _retry(self, _: str) -> None:
        if self.conversation_id is None:
            raise CommandFailed("There is no question yet.")
        self._print(self.session.retry(self.conversation_id, self.choice))

    def _choose_model(self, name: str) -> None:
        if name:
            self.choice = choose_model(self.session, name)
        chosen = self.choice.get("provider_id"), self.choice.get("model")
        for model in list_models(self.session):
            print(printable(f"{'*' if model == chosen else ' '} {'/'.join(model)}"))

    def _set_system(self, text: str) -> None:
        self.system = text
        if self.conversation_id is not None:
            self.session.patch(f"/conversations/{self.conversation_id}", {"system_prompt": text})

    def _begin(self, _: str) -> None:
        self.conversation_id, self.files = None, []

    def open(self, name: str) -> None:
        """Continue a conversation: print its title and its last answer, and put its questions into the history."""
        conversation_id = _conversation_id(self.session, name)
        title = self.session.get(f"/conversations/{conversation_id}")["title"]
        messages = self.session.get(f"/conversations/{conversation_id}/messages")
        self.conversation_id = conversation_id
        print(printable(f"{conversation_id}  {title or 'Untitled'}"))
        for message in messages[-2:]:
            print()
            Printer().show_all(("> " if message["role"] == "user" else "") + message["content"])
        with contextlib.suppress(ImportError):
            import readline

            for message in messages:
                if message["role"] == "user":
                    readline.add_history(message["content"])


def _dropped(text: str) -> Path:
    """Return the path that was typed, or that a terminal wrote for a dropped file: in quotes, or with backslashes before spaces."""
    quoted = text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
    candidates = (text, quoted, re.sub(r"\\(.)", r"\1", quoted))
    return next((path for path in map(_expanded, candidates) if path.exists()), _expanded(text))


def _expanded(text: str) -> Path:
    with contextlib.suppress(RuntimeError):  # there is no such user
        return Path(text).expanduser()
    return Path(text)


# ---- list, search, show


def list_conversations(options: dict[str, Any]) -> int:
    """Print the most recently used conversations."""
    with open_session(config.load(options), options["user"]) as session:
        for one in session.get("/conversations", limit=_limit(options)):
            print(printable(f"{one['id']:>6}  {_local_time(one['updated_at'])}  {one['title'] or 'Untitled'}"))
    return 0


def search(options: dict[str, Any]) -> int:
    """Print the matches of a search, by conversation."""
    styled = sys.stdout.isatty()
    marks = {ord(mark): style if styled else "" for mark, style in MATCH_MARKS.items()}
    last = None
    with open_session(config.load(options), options["user"]) as session:
        results = session.get("/search", q=" ".join(options["words"]), limit=_limit(options))["results"]
    for one in sorted(results, key=lambda one: _first_place(results, one["conversation_id"])):
        if one["conversation_id"] != last:
            last = one["conversation_id"]
            print(printable(f"{last:>6}  {one['title'] or 'Untitled'}"))
        if one["message_id"] is not None:
            snippet = printable(" ".join(one["snippet"].split())).translate(marks)
            place = printable(f"{one['name']}, {one['unit']} {one['page']}") if "attachment_id" in one else one["role"]
            print(f"        {DIM if styled else ''}{place}:{RESET if styled else ''} {snippet}")
    if not results:
        print("Nothing was found.", file=sys.stderr)
    return 0 if results else 1


def _first_place(results: list[dict[str, Any]], conversation_id: int) -> int:
    return next(place for place, one in enumerate(results) if one["conversation_id"] == conversation_id)


def show(options: dict[str, Any]) -> int:
    """Print a conversation as Markdown."""
    with open_session(config.load(options), options["user"]) as session:
        conversation_id = _conversation_id(session, options["conversation"])
        text = session.read(f"/conversations/{conversation_id}/export", format="markdown")
    if sys.stdout.isatty():
        Printer().show_all(text)
    else:
        print(text)
    return 0


def _limit(options: dict[str, Any]) -> int:
    limit = options["limit"]
    if not re.fullmatch(r"[0-9]{1,3}", limit) or not 1 <= int(limit) <= 200:
        raise ConfigError("--limit: must be a whole number from 1 to 200")
    return int(limit)


def _local_time(time: str) -> str:
    """Return a time of the API, which is in UTC, as the local time without seconds."""
    return datetime.datetime.fromisoformat(f"{time}+00:00").astimezone().strftime("%Y-%m-%d %H:%M")
