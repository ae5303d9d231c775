"""Small documents, written by hand with the standard library, and the way to read them in a sealed child."""

import hashlib
import io
import zipfile
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager

import msgspec
from fireside.documents import extract
from fireside.documents.types import Item, Opened, Page, Problem, Remark
from fireside.safety.sandbox import Sandbox

_decode = msgspec.msgpack.Decoder(Item).decode


class Result(msgspec.Struct):
    opened: Opened | None = None
    pages: list[str] = []
    remarks: list[str] = []
    problem: Problem | None = None

    @property
    def text(self) -> str:
        return "\n".join(self.pages)


class Reader:
    """A sealed child that reads documents."""

    def __init__(self) -> None:
        self.sandbox = Sandbox(extract.MEMORY_BYTES, extract.PRELOAD, sealed=True)

    async def read(self, data: bytes, name: str = "file", password: str | None = None) -> Result:
        result = Result()
        async for encoded in self.sandbox.iterate(
            extract.extract, data, name, "application/octet-stream", password, seconds=extract.ITEM_SECONDS
        ):
            item = _decode(encoded)
            assert result.problem is None, "a problem is the last item"
            if isinstance(item, Opened):
                assert result.opened is None and not result.pages
                result.opened = item
            elif isinstance(item, Page):
                result.pages.append(item.text)
            elif isinstance(item, Remark):
                result.remarks.append(item.text)
            else:
                result.problem = item
        return result


@asynccontextmanager
async def reading() -> AsyncIterator[Reader]:
    reader = Reader()
    try:
        yield reader
    finally:
        await reader.sandbox.aclose()


def archive(members: Mapping[str, str | bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in members.items():
            packed.writestr(name, content)
    return file.getvalue()


WORD_NAMESPACE = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
RELATIONS = '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">{}</Relationships>'


def relations(*targets: tuple[str, str]) -> str:
    """Return the XML of relations rId1, rId2, ...: (type, target)."""
    return RELATIONS.format(
        "".join(
            f'<Relationship Id="rId{number}" Type="{OFFICE}/{kind}" Target="{target}"/>'
            for number, (kind, target) in enumerate(targets, 1)
        )
    )


def docx(body: str, **parts: str) -> bytes:
    """Return a Word document. Other parts are given by their type: header, footer, footnotes, numbering, styles."""

    def part(root: str, content: str) -> str:
        return f'<w:{root} xmlns:w="{WORD_NAMESPACE}">{content}</w:{root}>'

    roots = {"header": "hdr", "footer": "ftr"}
    return archive(
        {
            "[Content_Types].xml": "<Types/>",
            "_rels/.rels": relations(("officeDocument", "word/document.xml")),
            "word/_rels/document.xml.rels": relations(*((kind, f"{kind}.xml") for kind in parts)),
            "word/document.xml": part("document", f"<w:body>{body}</w:body>"),
        }
        | {f"word/{kind}.xml": part(roots.get(kind, kind), content) for kind, content in parts.items()}
    )


def paragraph(text: str, properties: str = "") -> str:
    return f"<w:p><w:pPr>{properties}</w:pPr><w:r><w:t>{text}</w:t></w:r></w:p>"


def pptx(*slides: str) -> bytes:
    """Return a presentation with a paragraph on each slide."""
    drawing = "http://schemas.openxmlformats.org/drawingml/2006/main"
    ids = "".join(f'<p:sldId r:id="rId{number}"/>' for number in range(1, len(slides) + 1))
    members: dict[str, str | bytes] = {
        "_rels/.rels": relations(("officeDocument", "ppt/presentation.xml")),
        "ppt/presentation.xml": f'<p:presentation xmlns:p="p" xmlns:r="{OFFICE}"><p:sldIdLst>{ids}</p:sldIdLst></p:presentation>',
        "ppt/_rels/presentation.xml.rels": relations(*(("slide", f"slides/s{n}.xml") for n in range(len(slides)))),
    }
    for number, text in enumerate(slides):
        members[f"ppt/slides/s{number}.xml"] = (
            f'<p:sld xmlns:p="p" xmlns:a="{drawing}"><p:sp><a:p><a:r><a:t>{text}</a:t></a:r></a:p></p:sp></p:sld>'
        )
    return archive(members)


def odt(body: str, root: str = "text") -> bytes:
    names = "".join(f' xmlns:{name}="{name}"' for name in ("office", "text", "table", "draw"))
    content = f"<office:document-content{names}><office:body><office:{root}>{body}</office:{root}></office:body></office:document-content>"
    return archive({"mimetype": "application/vnd.oasis.opendocument." + root, "content.xml": content})


def epub(*chapters: str, **more: str) -> bytes:
    items = "".join(
        f'<item id="c{n}" href="c{n}.xhtml" media-type="application/xhtml+xml"/>' for n in range(len(chapters))
    )
    spine = "".join(f'<itemref idref="c{n}"/>' for n in range(len(chapters)))
    return archive(
        {
            "mimetype": "application/epub+zip",
            "META-INF/container.xml": '<container><rootfiles><rootfile full-path="OPS/book.opf"/></rootfiles></container>',
            "OPS/book.opf": f"<package><manifest>{items}</manifest><spine>{spine}</spine></package>",
        }
        | {f"OPS/c{n}.xhtml": chapter for n, chapter in enumerate(chapters)}
        | more
    )


# ---- PDF

_PADDING = bytes.fromhex("28BF4E5E4E758A4164004E56FFFA01082E2E00B6D0683E802F0CA9FE6453697A")


def pdf(*pages: str, password: str = "", kids: str = "") -> bytes:
    """Return a PDF with lines of text on each page, encrypted with RC4 if there is a password. `kids` replaces the list of pages."""
    identifier = b"0123456789abcdef"
    key = _owner = b""
    if password:
        padded = (password.encode("latin-1") + _PADDING)[:32]
        _owner = _rc4(hashlib.md5(padded).digest()[:5], padded)
        key = hashlib.md5(padded + _owner + (-4 & 0xFFFFFFFF).to_bytes(4, "little") + identifier).digest()[:5]
    numbers = [4 + 2 * n for n in range(len(pages))]
    listed = kids or numbered(numbers)
    objects: dict[int, bytes] = {
        1: b"<< /Type /Catalog /Pages 2 0 R >>",
        2: f"<< /Type /Pages /Kids [{listed}] /Count {len(pages)} >>".encode(),
        3: b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    }
    for number, text in zip(numbers, pages, strict=True):
        objects[number] = (
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {number + 1} 0 R /Resources << /Font << /F1 3 0 R >> >> >>".encode()
        )
        lines = " ".join(f"({line}) Tj 0 -14 Td" for line in text.split("\n"))
        content = f"BT /F1 12 Tf 72 720 Td {lines} ET".encode("latin-1") if text else b"0 0 9 9 re f"
        if key:
            salt = (number + 1).to_bytes(3, "little") + b"\0\0"
            content = _rc4(hashlib.md5(key + salt).digest()[:10], content)
        objects[number + 1] = b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content)
    trailer = b""
    if key:
        number = max(objects) + 1
        user = _rc4(key, _PADDING)
        objects[number] = b"<< /Filter /Standard /V 1 /R 2 /P -4 /O <%s> /U <%s> >>" % (
            _owner.hex().encode(),
            user.hex().encode(),
        )
        trailer = b" /Encrypt %d 0 R /ID [<%s> <%s>]" % (number, identifier.hex().encode(), identifier.hex().encode())
    return pdf_file(objects, trailer)


def pdf_file(objects: dict[int, bytes], trailer: bytes = b"") -> bytes:
    return b"".join(_file(objects, trailer))


def numbered(numbers: Iterable[int]) -> str:
    """Return references to these objects."""
    return " ".join(f"{number} 0 R" for number in numbers)


def _file(objects: dict[int, bytes], trailer: bytes) -> Iterator[bytes]:
    at, places = 9, {}
    yield b"%PDF-1.4\n"
    for number, content in objects.items():
        places[number] = at
        written = b"%d 0 obj\n%s\nendobj\n" % (number, content)
        at += len(written)
        yield written
    size = max(objects) + 1
    yield b"xref\n0 %d\n0000000000 65535 f \n" % size
    for number in range(1, size):
        yield b"%010d 00000 n \n" % places[number]
    yield b"trailer\n<< /Size %d /Root 1 0 R%s >>\nstartxref\n%d\n%%%%EOF\n" % (size, trailer, at)


def _rc4(key: bytes, data: bytes) -> bytes:
    state, j = list(range(256)), 0
    for i in range(256):
        j = (j + state[i] + key[i % len(key)]) % 256
        state[i], state[j] = state[j], state[i]
    i = j = 0
    output = bytearray()
    for byte in data:
        i = (i + 1) % 256
        j = (j + state[i]) % 256
        state[i], state[j] = state[j], state[i]
        output.append(byte ^ state[(state[i] + state[j]) % 256])
    return bytes(output)
