"""Conversations of other programs and of Fireside's own exports, read into Fireside's own form: a module for each program.

A reader gets decoded JSON and keeps what it understands. What the database cannot hold is Unreadable with a reason. An imported conversation and its
messages are known again by their `source`, which comes from what a program wrote and never from a file's path.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ...backends.loose import at, object_at
from ..database import Reader
from ..transcript import Conversation, Saved, Unreadable
from . import (
    chatgpt,
    claude,
    common,
    fireside,
    gemini,
    jan,
    librechat,
    llamacpp,
    llm,
    lmstudio,
    ollama,
    openai,
    openwebui,
    sillytavern,
)
from .common import FindFile, Row, line_at
from .unsupported import UNSUPPORTED


class Unknown(Unreadable):
    """A row is not a conversation of any program."""


class Unsupported(Unreadable):
    """A file is an export of a program that Fireside cannot read."""


FindBeside = Callable[[str], Any]  # returns the decoded JSON file of this name in the same folder, or None


class Format(NamedTuple):
    program: str
    matches: Callable[[Row], bool]
    # Raises Unreadable. None: recognised, but not supported.
    parse: Callable[[Row, FindFile], Conversation | Saved] | None = None
    # For a program that writes a row for each message: whether this is one, and how all rows of a file become conversations.
    is_message: Callable[[Row], bool] = lambda row: False
    join: Callable[[list[Row], FindBeside], Iterator[Row]] = lambda rows, beside: iter(rows)


FORMATS = (  # the first that matches is taken
    Format("Fireside", fireside.matches, fireside.parse),
    *(Format(program, matches) for program, matches in UNSUPPORTED.items()),
    Format("ChatGPT", chatgpt.matches, chatgpt.parse),
    Format("Claude", claude.matches, claude.parse),
    Format("Gemini", gemini.matches, gemini.parse, gemini.is_record, gemini.join),
    Format("Open WebUI", openwebui.matches, openwebui.parse),
    Format("LM Studio", lmstudio.matches, lmstudio.parse),
    Format("LibreChat", librechat.matches, librechat.parse),
    Format("llama.cpp", llamacpp.matches, llamacpp.parse),
    Format("Jan", jan.matches, jan.parse, jan.is_message, jan.join),
    Format("SillyTavern", sillytavern.matches, sillytavern.parse, sillytavern.is_line, sillytavern.join),
    Format("Ollama", ollama.matches, ollama.parse),
    Format("llm", llm.matches, llm.parse),
    Format("OpenAI's API", openai.matches, openai.parse, openai.is_message, openai.join),
)
PROGRAMS = [format.program for format in FORMATS if format.parse]
DATABASES = {
    "Open WebUI": {"chat", "auth"},
    "AnythingLLM": {"workspace_chats"},
}  # recognised by their tables, but not supported


def unpack(value: Any) -> Iterator[Any]:
    """Yield the conversations of a decoded file, of any program. Some wrap them into an object."""
    wrapped = [at(value, name) for name in ("chats", "conversations", "data")]
    yield from next((rows for rows in (value, *wrapped) if isinstance(rows, list)), [value])


def title_of(value: Any) -> str:
    """Return the title of a conversation that cannot be read, or ""."""
    return line_at(value, "title") or line_at(value, "name") or line_at(value, "chat", "title")


def of_message(value: Any) -> Format | None:
    """Return the format of a file whose rows are messages, by one of them."""
    return next((format for format in FORMATS if format.is_message(object_at(value))), None)


def read_database(database: Reader) -> Iterator[Row]:
    """Yield the conversations of an SQLite database. Raises Unsupported, Unknown and sqlite3.Error."""
    for program, needed in DATABASES.items():
        if needed <= database.tables:
            _refuse(program)
    if database.tables >= ollama.TABLES:
        yield from ollama.read(database)
    elif any(needed <= database.tables for needed in llm.TABLES):
        yield from llm.read(database)
    else:
        raise Unknown("is a database of another program")


def parse(value: Any, find_file: FindFile) -> Conversation | Saved:
    """Raises Unreadable. Its subclasses Unknown and Unsupported concern the whole file."""
    common.losses.clear()
    row = object_at(value)
    for format in FORMATS:
        if format.matches(row):
            return format.parse(row, find_file) if format.parse else _refuse(format.program)
    raise Unknown(f"is not a conversation of {', '.join(PROGRAMS[:-1])} or {PROGRAMS[-1]}")


def _refuse(program: str) -> Any:
    raise Unsupported(f"looks like {'an' if program[0] in 'AO' else 'a'} {program} export; Fireside cannot read it yet")
