"""Queries of folders, which hold conversations on one level. See conversations.py for the first parameter."""

import sqlite3
from typing import Any

from msgspec import Struct

from ..db import Connection, insert
from ..errors import Invalid, NameExists, NotFound
from .types import title_key

MAX_FOLDERS = 500  # of a user: the page shows all of them


class Folder(Struct):
    id: int
    name: str
    conversations: int  # without those in the bin


def owned_folder(conn: Connection, user_id: int, folder_id: int) -> sqlite3.Row:
    """Return the row of the user's folder. Raises NotFound."""
    sql = "SELECT * FROM folders WHERE id = ? AND user_id = ?"
    row: sqlite3.Row | None = conn.execute(sql, (folder_id, user_id)).fetchone()
    if row is None:
        raise NotFound("folder")
    return row


def list_folders(conn: Connection, user_id: int) -> list[Folder]:
    """Return the user's folders by name, ignoring case."""
    rows = conn.execute(
        "SELECT f.id, f.name, (SELECT count(*) FROM conversations c WHERE c.folder_id = f.id AND c.deleted_at IS NULL"
        " AND c.hidden = 0 AND c.temporary = 0) AS conversations FROM folders f WHERE f.user_id = ?",
        (user_id,),
    )
    return sorted((Folder(**row) for row in rows), key=lambda folder: title_key(folder.name))


def get_folder(conn: Connection, user_id: int, folder_id: int) -> Folder:
    owned_folder(conn, user_id, folder_id)
    return next(folder for folder in list_folders(conn, user_id) if folder.id == folder_id)


def find_folder(conn: Connection, user_id: int, name: str) -> int | None:
    """Return the id of the folder with this name, or None."""
    row: Any = conn.execute("SELECT id FROM folders WHERE user_id = ? AND name = ?", (user_id, name)).fetchone()
    return row["id"] if row else None


def add_folder(conn: Connection, user_id: int, name: str) -> int:
    """Return the id of the folder with this name, which is added if there is none. Raises Invalid above MAX_FOLDERS."""
    folder_id = find_folder(conn, user_id, name)
    if folder_id is not None:
        return folder_id
    (count,) = conn.execute("SELECT count(*) FROM folders WHERE user_id = ?", (user_id,)).fetchone()
    if count >= MAX_FOLDERS:
        raise Invalid(f"There are {MAX_FOLDERS} folders already. Delete one first.")
    return insert(conn, "INSERT INTO folders (user_id, name) VALUES (?, ?)", (user_id, name))


def create_folder(conn: Connection, user_id: int, name: str) -> Folder:
    return get_folder(conn, user_id, add_folder(conn, user_id, name))


def rename_folder(conn: Connection, user_id: int, folder_id: int, name: str) -> Folder:
    """Raises NameExists when another folder has this name."""
    owned_folder(conn, user_id, folder_id)
    if find_folder(conn, user_id, name) not in (None, folder_id):
        raise NameExists("folder")
    conn.execute("UPDATE folders SET name = ? WHERE id = ?", (name, folder_id))
    return get_folder(conn, user_id, folder_id)


def delete_folder(conn: Connection, user_id: int, folder_id: int) -> list[int]:
    """Delete a folder. Return the ids of its conversations, which stay, also of those in the bin."""
    owned_folder(conn, user_id, folder_id)
    rows = conn.execute("SELECT id FROM conversations WHERE folder_id = ? AND hidden = 0", (folder_id,)).fetchall()
    conn.execute("DELETE FROM folders WHERE id = ?", (folder_id,))
    return [row["id"] for row in rows]
