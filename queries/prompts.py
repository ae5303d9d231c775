"""Queries of what a user saves for later: prompts, and presets of instructions, model and settings.

Names are unique for each user, ignoring case. A conversation copies a preset, so changing the preset later does not change the conversation.
"""

import json
import sqlite3
from typing import Annotated, Any, Literal, TypeVar

from msgspec import Raw, Struct

from ..db import Connection, fetch, insert_row, now, scalar, scalars
from ..errors import Invalid, NameExists, NotFound
from .conversations import get_defaults
from .quota import add_stored_bytes
from .types import NAME_CHARACTERS, Parameters, from_row, stored, title_key

Table = Literal["prompts", "presets"]
MAX_SAVED = {"prompts": 500, "presets": 100}  # of a user
COUNTED = {"prompts": "content", "presets": "system_prompt"}  # towards stored_bytes
_CONTENTS: dict[str, dict[str, Any]] = {  # the columns that a user fills, with their values where they are not given
    "prompts": {"content": ""},
    "presets": {"system_prompt": "", "provider_id": None, "model": None, "settings": "{}"},
}


class Prompt(Struct):
    id: int
    name: str
    content: str
    created_at: str
    updated_at: str


class Preset(Struct):
    id: int
    name: str
    system_prompt: str
    provider_id: str | None
    model: str | None
    settings: Annotated[Raw, stored(Parameters)]
    is_default: bool  # new conversations begin with it
    created_at: str
    updated_at: str


class Defaults(Struct):
    """What new conversations begin with: the default preset, or what the user has set without one."""

    system_prompt: str
    settings: Annotated[Raw, stored(Parameters)]
    preset_id: int | None
    provider_id: str | None  # of the preset
    model: str | None


Saved = TypeVar("Saved", bound=Prompt | Preset)
Kind = type[Prompt] | type[Preset]


def _table(kind: type[Struct]) -> Table:
    return "prompts" if kind is Prompt else "presets"


def _saved(kind: type[Saved], row: sqlite3.Row) -> Saved:
    if kind is Prompt:
        return from_row(kind, row)
    return from_row(kind, row, settings=Raw(row["settings"].encode()), is_default=bool(row["is_default"]))


def list_saved(conn: Connection, user_id: int, kind: type[Saved]) -> list[Saved]:
    """Return the user's prompts or presets, sorted by name."""
    rows = conn.execute(f"SELECT * FROM {_table(kind)} WHERE user_id = ? ORDER BY name_key", (user_id,))
    return [_saved(kind, row) for row in rows]


def get_saved(conn: Connection, user_id: int, kind: type[Saved], row_id: int) -> Saved:
    return _saved(kind, _owned(conn, _table(kind), user_id, row_id))


def add_saved(conn: Connection, user_id: int, kind: type[Saved], fields: dict[str, Any], max_bytes: int = 0) -> Saved:
    """Add a prompt (name and content) or a preset (name, and optionally system_prompt, provider_id, model and settings, a dict).

    If it exists as it is, because a request was repeated, return it. Raises NameExists, QuotaExceeded, and Invalid when there are too many.
    """
    return _saved(kind, _add(conn, _table(kind), user_id, fields, max_bytes))


def change_saved(
    conn: Connection, user_id: int, kind: type[Saved], row_id: int, fields: dict[str, Any], max_bytes: int = 0
) -> Saved:
    """Change `fields`. Raises NotFound, NameExists and QuotaExceeded."""
    table = _table(kind)
    row = _owned(conn, table, user_id, row_id)
    columns = _columns(fields) | {"updated_at": now()}
    if "name" in fields:
        other = _named(conn, table, user_id, fields["name"])
        if other is not None and other["id"] != row_id:
            raise NameExists(table.removesuffix("s"))
    counted = COUNTED[table]
    if counted in fields:
        add_stored_bytes(conn, user_id, len(fields[counted].encode()) - len(row[counted].encode()), max_bytes)
    changes = ", ".join(f"{name} = :{name}" for name in columns)
    conn.execute(f"UPDATE {table} SET {changes} WHERE id = :id", columns | {"id": row_id})
    return get_saved(conn, user_id, kind, row_id)


def delete_saved(conn: Connection, user_id: int, kind: Kind, row_id: int) -> None:
    table = _table(kind)
    row = _owned(conn, table, user_id, row_id)
    add_stored_bytes(conn, user_id, -len(row[COUNTED[table]].encode()))
    conn.execute(f"DELETE FROM {table} WHERE id = ?", (row_id,))


DryRun = dict[str, dict[str, Any]]  # rows that would be in a table, by their name_key


def save_imported(
    conn: Connection,
    user_id: int,
    table: Table,
    fields: dict[str, Any],
    max_bytes: int = 0,
    dry_run: DryRun | None = None,
) -> bool:
    """Add an imported prompt or preset, with a number after its name if another one has the name. Return whether it was new.

    `fields`: every column that a user fills. With `dry_run`, add it there, and change nothing in the database.
    Raises as `add_prompt` does, except QuotaExceeded in a dry run.
    """
    name = fields["name"]
    for number in range(2, 3 + MAX_SAVED[table]):
        key = _columns(fields)["name_key"]
        row = (dry_run or {}).get(key) or _named(conn, table, user_id, fields["name"])
        if row is None:
            break
        if _contains(row, fields):
            return False
        ending = f" ({number})"
        fields = fields | {"name": name[: NAME_CHARACTERS - len(ending)] + ending}
    if dry_run is None:
        _add(conn, table, user_id, fields, max_bytes)
    else:
        _check_count(conn, table, user_id, len(dry_run))
        dry_run[key] = _columns(fields)
    return True


def list_saved_ids(conn: Connection, user_id: int) -> list[tuple[Kind, int]]:
    """Return the kind and the id of each of the user's prompts and presets, for an export."""
    kinds: tuple[Kind, ...] = (Prompt, Preset)
    select = "SELECT id FROM {} WHERE user_id = ? ORDER BY name_key"
    return [(kind, row_id) for kind in kinds for row_id in scalars(conn, select.format(_table(kind)), (user_id,))]


def _owned(conn: Connection, table: Table, user_id: int, row_id: int) -> sqlite3.Row:
    """Return the user's row. Raises NotFound."""
    missing = NotFound("prompt") if table == "prompts" else NotFound("preset")
    return fetch(conn, f"SELECT * FROM {table} WHERE id = ? AND user_id = ?", (row_id, user_id), missing)


def _named(conn: Connection, table: Table, user_id: int, name: str) -> sqlite3.Row | None:
    sql = f"SELECT * FROM {table} WHERE user_id = ? AND name_key = ?"
    row: sqlite3.Row | None = conn.execute(sql, (user_id, _columns({"name": name})["name_key"])).fetchone()
    return row


def _columns(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields as the table stores them: a name is one line."""
    columns = dict(fields)
    if "name" in fields:
        columns["name"] = " ".join(fields["name"].split())
        columns["name_key"] = title_key(columns["name"])
    if "settings" in fields:
        columns["settings"] = json.dumps(fields["settings"])
    return columns


def _contains(row: sqlite3.Row | dict[str, Any], fields: dict[str, Any]) -> bool:
    """Whether the row has these values. Names are compared by their keys, settings without regard to the order of their fields."""
    stored = {name: json.loads(row[name]) if name == "settings" else row[name] for name in fields if name != "name"}
    return stored == {name: value for name, value in fields.items() if name != "name"}


def _check_count(conn: Connection, table: Table, user_id: int, more: int = 0) -> None:
    """Raise Invalid if the user has as many as allowed. `more` are not in the database."""
    count = scalar(conn, f"SELECT count(*) FROM {table} WHERE user_id = ?", (user_id,))
    if count + more >= MAX_SAVED[table]:
        raise Invalid(f"At most {MAX_SAVED[table]} {table} can be saved. Delete one first.")


def _add(conn: Connection, table: Table, user_id: int, fields: dict[str, Any], max_bytes: int) -> sqlite3.Row:
    existing = _named(conn, table, user_id, fields["name"])
    if existing is not None:
        if _contains(existing, fields) and existing["name"] == _columns(fields)["name"]:
            return existing
        raise NameExists(table.removesuffix("s"))
    _check_count(conn, table, user_id)
    columns = _CONTENTS[table] | _columns(fields)
    add_stored_bytes(conn, user_id, len(columns[COUNTED[table]].encode()), max_bytes)
    columns |= {"user_id": user_id, "created_at": now(), "updated_at": now()}
    return _owned(conn, table, user_id, insert_row(conn, table, columns))


# ---- what new conversations begin with


def get_effective_defaults(conn: Connection, user_id: int) -> Defaults:
    if preset := _default_preset(conn, user_id):
        return Defaults(preset.system_prompt, preset.settings, preset.id, preset.provider_id, preset.model)
    own = get_defaults(conn, user_id)
    return Defaults(own.get("system_prompt", ""), Raw(json.dumps(own.get("settings", {})).encode()), None, None, None)


def set_defaults(conn: Connection, user_id: int, fields: dict[str, Any]) -> Defaults:
    """Change system_prompt and settings of new conversations, or have them begin with a preset (preset_id; None: with none).

    Changing a field while there is a default preset keeps the other field's value, and new conversations no longer begin with the preset.
    Raises NotFound for the preset, and Invalid for a preset together with other fields.
    """
    own = dict(fields)
    preset_id = own.pop("preset_id", None)
    if preset_id is not None and own:
        raise Invalid("preset_id cannot be set together with system_prompt or settings.")
    if preset_id is not None:
        get_saved(conn, user_id, Preset, preset_id)
    elif own and (preset := _default_preset(conn, user_id)):
        own = {"system_prompt": preset.system_prompt, "settings": json.loads(bytes(preset.settings))} | own
    if fields:
        conn.execute("UPDATE presets SET is_default = 0 WHERE user_id = ? AND is_default = 1", (user_id,))
        conn.execute("UPDATE presets SET is_default = 1 WHERE id = ?", (preset_id,))
    own = get_defaults(conn, user_id) | own
    conn.execute("UPDATE users SET defaults = ? WHERE id = ?", (json.dumps(own), user_id))
    return get_effective_defaults(conn, user_id)


def get_first_preset(conn: Connection, user_id: int, preset_id: int | None) -> Preset | None:
    """Return the preset that a new conversation copies: the one that is named, else the default, else None. Raises NotFound."""
    return _default_preset(conn, user_id) if preset_id is None else get_saved(conn, user_id, Preset, preset_id)


def _default_preset(conn: Connection, user_id: int) -> Preset | None:
    row = conn.execute("SELECT * FROM presets WHERE user_id = ? AND is_default = 1", (user_id,)).fetchone()
    return None if row is None else _saved(Preset, row)
