"""The formats of documents. The type of a file is detected from its bytes. This package and all below it is loaded in the sandbox child only."""

import codecs
import re
from collections.abc import Callable
from pathlib import PurePath

from . import epub, markup, opendocument, pdf, plain, rtf, slides, word
from .archive import DAMAGED, Archive
from .common import Contents, Unreadable

for codec in (
    *markup.CHARSETS.values(),
    *rtf.CODECS,
    "utf-16-le",
    "utf-16-be",
    "utf-32-le",
    "utf-32-be",
    "utf-16",
    "cp437",
    "latin-1",
):
    codecs.lookup(codec)  # loads it, since a sealed child cannot

SAVE_AS = "Save it as PDF, DOCX or text, and attach that."
_PDF_HEAD_BYTES = 1024  # in which %PDF- must stand, as in other readers
_HTML = re.compile(
    rb"\s*(?:<\?xml[^>]*>\s*|<!--.{0,2000}?-->\s*)*<(?:!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL
)
_TAG = re.compile(rb"<(?:p|div|h[1-6]|table|ul|ol|span|br|title)\b[^<>]{0,1000}>", re.IGNORECASE)

# What is no document, by its first bytes
_OTHERS: dict[str, tuple[bytes, ...]] = {
    "a picture": (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"8BPS", b"\0\0\1\0"),
    "a program": (b"MZ", b"\x7fELF", b"\xfe\xed\xfa", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe"),
    "a sound": (b"ID3", b"fLaC", b"\xff\xfb"),
    "a sound or video": (b"OggS",),
    "a video": (b"\x1a\x45\xdf\xa3", b"FLV\1"),
    "a database": (b"SQLite format 3\0",),
    "a packed file": (b"\x1f\x8b", b"BZh", b"7z\xbc\xaf", b"Rar!", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"),
    "a font": (b"wOFF", b"OTTO", b"\0\1\0\0\0"),
    "a model": (b"GGUF",),
    "a PostScript file": (b"%!PS",),
    "a DjVu file": (b"AT&TFORM",),
}
_RIFF = {b"WEBP": "a picture", b"WAVE": "a sound", b"AVI ": "a video"}
_BRANDS = {b"heic": "a picture", b"heix": "a picture", b"mif1": "a picture", b"avif": "a picture", b"M4A ": "a sound"}
_SHEETS = "a spreadsheet. Save the sheet that matters as CSV, and attach that."
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"


def open_document(data: bytes, name: str, password: str | None) -> Contents:
    """Detect the type of a file and open it. Raises Unreadable, Encrypted."""
    if not data.strip(b"\0 \t\r\n"):
        raise Unreadable("The file is empty.")
    if b"%PDF-" in data[:_PDF_HEAD_BYTES]:
        return pdf.read(data, password)
    if data.startswith(b"{\\rtf"):
        return rtf.read(data)
    if data.startswith(_OLE):
        raise Unreadable(_old_office(data))
    if data.startswith(b"PK"):
        return _open_zip(data)
    if other := _other(data):
        raise Unreadable(f"This is {other}, not a document. {SAVE_AS}")
    if _is_html(data, name):
        return markup.read(data)
    return plain.read(data, name)


def _other(data: bytes) -> str | None:
    if data.startswith(b"RIFF"):
        return _RIFF.get(data[8:12])
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:12], "a video")
    found = next((what for what, magics in _OTHERS.items() if data.startswith(magics)), None)
    return found if found and not _is_text(data) else None


def _is_text(data: bytes) -> bool:
    """Return whether what begins like another type is text, such as "BMW ..." or "MZ 12"."""
    try:
        plain.decode(data[:4096])
    except Unreadable:
        return False
    return not data.startswith(b"%!PS")


def _is_html(data: bytes, name: str) -> bool:
    head = data[:8192].removeprefix(codecs.BOM_UTF8)
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        head = data[:8192].replace(b"\0", b"")[2:]
    is_named = PurePath(name).suffix.lower() in (".html", ".htm", ".xhtml")
    return bool(_HTML.match(head)) or (is_named and bool(_TAG.search(head)))


def _old_office(data: bytes) -> str:
    def has(stream: str) -> bool:
        return stream.encode("utf-16-le") in data

    if has("EncryptedPackage"):
        return "The document is encrypted. Open it in its program and save it without a password."
    if has("WordDocument"):
        return "This is an old Word document (.doc). Save it as DOCX or PDF, and attach that."
    if has("PowerPoint Document"):
        return "This is an old PowerPoint presentation (.ppt). Save it as PPTX or PDF, and attach that."
    if has("Workbook") or has("Book"):
        return f"This is {_SHEETS}"
    return f"This is an old Office file or an e-mail, which cannot be read. {SAVE_AS}"


def _open_zip(data: bytes) -> Contents:
    archive = Archive(data)
    names = archive.names
    if "mimetype" in names:
        media_type = b"".join(archive.chunks("mimetype"))[:100].decode("latin-1").strip().removesuffix("-template")
        if media_type == epub.MEDIA_TYPE:
            return epub.read(archive)
        if media_type in (opendocument.TEXT, opendocument.PRESENTATION) and "content.xml" in names:
            opendocument.check(archive)
            return opendocument.read(archive, media_type)
        if "spreadsheet" in media_type:
            raise Unreadable(f"This is {_SHEETS}")
    readers: tuple[tuple[str, Callable[[Archive], Contents]], ...] = (
        ("word/", word.read),
        ("ppt/", slides.read),
        ("META-INF/container.xml", epub.read),
    )
    for prefix, read in readers:
        if any(name.startswith(prefix) for name in names):
            return read(archive)
    if any(name.startswith("xl/") for name in names):
        raise Unreadable(f"This is {_SHEETS}")
    if "[Content_Types].xml" in names:
        raise Unreadable(f"This Office file is of a kind that cannot be read. {SAVE_AS}")
    raise Unreadable("This is a zip file, not a document. Unpack it, and attach the documents in it.")


__all__ = ["DAMAGED", "open_document"]
