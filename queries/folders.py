"""Queries of folders, which hold conversations on one level."""

from msgspec import Struct

from ..db import Connection, insert, scalar, scalars
from ..errors import Invalid, NameExists, NotFound
from .types import title_key

MAX_FOLDERS = 500  # of a user: the page shows all of them


class Folder(Struct):
    id: int
    name: str
    conversations: int  # without those in the bin


_SELECT = (
    "SELECT f.id, f.name, (SELECT count(*) FROM conversations c WHERE c.folder_id = f.id AND c.deleted_at IS NULL"
    " AND c.hidden = 0 AND c.temporary = 0) AS conversations FROM folders f WHERE "
)


def check_folder(conn: Connection, user_id: int, folder_id: int) -> None:
    """Raise NotFound unless this is a folder of the user."""
    if not scalar(conn, "SELECT 1 FROM folders WHERE id = ? AND user_id = ?", (folder_id, user_id)):
        raise NotFound("folder")


def list_folders(conn: Connection, user_id: int) -> list[Folder]:
    """Return the user's folders by name, ignoring case."""
    folders = [Folder(**row) for row in conn.execute(f"{_SELECT} f.user_id = ?", (user_id,))]
    return sorted(folders, key=lambda folder: title_key(folder.name))


def _get_folder(conn: Connection, folder_id: int) -> Folder:
    return Folder(**conn.execute(f"{_SELECT} f.id = ?", (folder_id,)).fetchone())


def find_folder(conn: Connection, user_id: int, name: str) -> int | None:
    """Return the id of the folder with this name, or None."""
    folder_id: int | None = scalar(conn, "SELECT id FROM folders WHERE user_id = ? AND name = ?", (user_id, name))
    return folder_id


def count_folders(conn: Connection, user_id: int) -> int:
    return int(scalar(conn, "SELECT count(*) FROM folders WHERE user_id = ?", (user_id,)))


def add_folder(conn: Connection, user_id: int, name: str) -> int:
    """Return the id of the folder with this name, which is added if there is none. Raises Invalid above MAX_FOLDERS."""
    folder_id = find_folder(conn, user_id, name)
    if folder_id is not None:
        return folder_id
    if count_folders(conn, user_id) >= MAX_FOLDERS:
        raise Invalid(f"There are {MAX_FOLDERS} folders already. Delete one first.")
    return insert(conn, "INSERT INTO folders (user_id, name) VALUES (?, ?)", (user_id, name))


def create_folder(conn: Connection, user_id: int, name: str) -> Folder:
    return _get_folder(conn, add_folder(conn, user_id, name))


def rename_folder(conn: Connection, user_id: int, folder_id: int, name: str) -> Folder:
    """Raises NameExists when another folder has this name."""
    check_folder(conn, user_id, folder_id)
    if find_folder(conn, user_id, name) not in (None, folder_id):
        raise NameExists("folder")
    conn.execute("UPDATE folders SET name = ? WHERE id = ?", (name, folder_id))
    return _get_folder(conn, folder_id)


def delete_folder(conn: Connection, user_id: int, folder_id: int) -> list[int]:
    """Delete a folder. Return the ids of its conversations, which stay, also of those in the bin."""
    check_folder(conn, user_id, folder_id)
    ids = scalars(conn, "SELECT id FROM conversations WHERE folder_id = ? AND hidden = 0", (folder_id,))
    conn.execute("DELETE FROM folders WHERE id = ?", (folder_id,))
    return ids
