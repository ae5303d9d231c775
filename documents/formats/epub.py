"""Books (EPUB): the chapters in their order, each HTML."""

import posixpath
from collections.abc import Iterator
from urllib.parse import unquote

from . import markup
from .archive import DAMAGED, Archive
from .common import NEW_SECTION, Contents, Unreadable, layout

MEDIA_TYPE = "application/epub+zip"
_CHAPTERS = ("application/xhtml+xml", "text/html", "application/x-dtbook+xml")
_FONTS = (".otf", ".ttf", ".woff", ".woff2")


def read(archive: Archive) -> Contents:
    return Contents(MEDIA_TYPE, "section", None, _chapters(archive, _spine(archive)))


def _spine(archive: Archive) -> list[str]:
    _check_protection(archive)
    package = ""
    for event in archive.events("META-INF/container.xml"):
        if event.kind == "start" and event.name == "rootfile" and not package:
            package = event.attributes.get("full-path", "")
    items: dict[str, str] = {}
    chapters: list[str] = []
    for event in archive.events(package):
        values = event.attributes
        if event.kind == "start" and event.name == "item" and values.get("media-type") in _CHAPTERS:
            path = posixpath.normpath(posixpath.join(posixpath.dirname(package), unquote(values.get("href", ""))))
            items[values.get("id", "")] = path
        elif event.kind == "start" and event.name == "itemref" and values.get("idref") in items:
            chapters.append(items[values["idref"]])
    chapters = [path for path in chapters if path in archive.names]
    if not chapters:
        raise Unreadable(DAMAGED)
    return chapters


def _check_protection(archive: Archive) -> None:
    """Raise Unreadable for a book whose chapters are encrypted. Many books encrypt their fonts alone."""
    if "META-INF/encryption.xml" not in archive.names:
        return
    encrypted = [
        event.attributes.get("URI", "").lower()
        for event in archive.events("META-INF/encryption.xml")
        if event.kind == "start" and event.name == "CipherReference"
    ]
    if not all(path.endswith(_FONTS) for path in encrypted):
        raise Unreadable("The book is protected (DRM), so its text cannot be read. Use a copy without protection.")


def _chapters(archive: Archive, chapters: list[str]) -> Iterator[str]:
    for path in chapters:
        yield NEW_SECTION
        text, _ = markup.decode(archive.read(path))
        yield from layout(markup.blocks(text))
