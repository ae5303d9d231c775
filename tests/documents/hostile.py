# mypy: disable-error-code="misc"
"""Hostile files: bombs, cycles, deep nesting, truncated and damaged files, random bytes and files of other types."""

import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from .making import (
    OFFICE,
    WORD_NAMESPACE,
    archive,
    docx,
    epub,
    numbered,
    odt,
    paragraph,
    pdf,
    pdf_file,
    pptx,
    relations,
)

MEGABYTE = 1024 * 1024
DEEP = 100_000
SENTENCES = [f"Sentence number {number} has a few words." for number in range(200)]
HTML = "<!DOCTYPE html><title>Page</title>" + "".join(f"<h2>{s}</h2><p>{s}</p>" for s in SENTENCES)
RTF = "{\\rtf1\\ansi{\\fonttbl{\\f0 Arial;}}" + "".join(f"{{\\b {s}}}\\par\n" for s in SENTENCES) + "}"

# A sound file of each format, to damage
SOUND: Mapping[str, bytes] = {
    "pdf": pdf(*SENTENCES),
    "docx": docx("".join(map(paragraph, SENTENCES))),
    "odt": odt("".join(f"<text:p>{s}</text:p>" for s in SENTENCES)),
    "odp": odt("".join(f"<draw:page><text:p>{s}</text:p></draw:page>" for s in SENTENCES), "presentation"),
    "pptx": pptx(*SENTENCES[:50]),
    "epub": epub(HTML, HTML),
    "html": HTML.encode(),
    "rtf": RTF.encode(),
    "md": "\n\n".join(f"# {s}\n\n{s}" for s in SENTENCES).encode(),
    "csv": "\n".join(f'{number},"{s}"' for number, s in enumerate(SENTENCES)).encode(),
    "json": str(SENTENCES).replace("'", '"').encode(),
    "utf16.txt": "\n".join(SENTENCES).encode("utf-16"),
}


class HostileFile(NamedTuple):
    name: str
    make: Callable[[], bytes]


def files() -> list[HostileFile]:
    """Return all files, about 350, in an order in which every part has each kind."""
    found = [HostileFile(name, make) for kind in _KINDS for name, make in kind()]
    random.Random(19).shuffle(found)
    return found


Made = Iterator[tuple[str, Callable[[], bytes]]]


def _constant(data: bytes) -> Callable[[], bytes]:
    return lambda: data


def _truncated() -> Made:
    for name, data in SOUND.items():
        for tenth in range(1, 10):
            yield f"truncated at {tenth} tenths.{name}", _constant(data[: len(data) * tenth // 10])


def _damaged() -> Made:
    for name, data in SOUND.items():
        for seed in range(8):

            def make(data: bytes = data, seed: int = seed) -> bytes:
                chance, changed = random.Random(seed), bytearray(data)
                for _ in range(4**seed if seed < 6 else 20):
                    changed[chance.randrange(len(changed))] = chance.randrange(256)
                return bytes(changed)

            yield f"damaged {seed}.{name}", make


def _random() -> Made:
    heads = (
        b"",
        b"%PDF-1.7\n",
        b"PK\3\4",
        b"{\\rtf1 ",
        b"<!DOCTYPE html>",
        b"\xff\xfe",
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
    )
    for head in heads:
        for size in (10, 1000, 100_000, MEGABYTE):
            yield (
                f"random {size} after {head!r}",
                lambda head=head, size=size: head + random.Random(size).randbytes(size),
            )


def _other_types() -> Made:
    yield (
        "picture.pdf",
        _constant(b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", 2**31 - 1, 2**31 - 1, 8, 6, 0, 0, 0)),
    )
    yield "photo.docx", _constant(b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(1000))
    yield "video.txt", _constant(b"\0\0\0\x20ftypisom" + bytes(1000))
    yield "program.md", _constant(b"\x7fELF\2\1\1" + bytes(1000))
    yield "program.pdf", _constant(b"MZ\x90\0" + bytes(1000))
    yield "sheet.docx", _constant(archive({"[Content_Types].xml": "<Types/>", "xl/workbook.xml": "<workbook/>"}))
    yield (
        "sheet.ods",
        _constant(archive({"mimetype": "application/vnd.oasis.opendocument.spreadsheet", "content.xml": "<x/>"})),
    )
    yield "files.zip", _constant(archive({"../../etc/passwd": "x", "/root": "y"}))
    yield "zip in zip.docx", _constant(archive({"word/document.xml": archive({"word/document.xml": "x" * 1000})}))
    yield "packed.txt", _constant(b"\x1f\x8b\x08" + bytes(100))
    yield "old.doc", _constant(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(1000) + "WordDocument".encode("utf-16-le"))
    yield (
        "encrypted.docx",
        _constant(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(1000) + "EncryptedPackage".encode("utf-16-le")),
    )
    yield "empty", _constant(b" ")
    yield "zeros", _constant(bytes(MEGABYTE))


def _zip_bombs() -> Made:
    def zeros(name: str, **members: str) -> Callable[[], bytes]:
        def make() -> bytes:
            file = io.BytesIO()
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
                for other, content in members.items():
                    packed.writestr(other, content)
                with packed.open(name, "w", force_zip64=True) as member:
                    for _ in range(500):
                        member.write(b" " * MEGABYTE)
            return file.getvalue()

        return make

    def text(name: str, start: str, repeated: str, end: str, **members: str) -> Callable[[], bytes]:
        return lambda: archive({**members, name: start + repeated * (100 * MEGABYTE // len(repeated)) + end})

    word = f'<w:document xmlns:w="{WORD_NAMESPACE}"><w:body>'
    container = {"mimetype": "application/epub+zip", "META-INF/container.xml": '<c><rootfile full-path="b.opf"/></c>'}
    yield "bomb.docx", zeros("word/document.xml")
    yield "bomb.odt", zeros("content.xml", mimetype="application/vnd.oasis.opendocument.text")
    yield "bomb.pptx", zeros("ppt/presentation.xml")
    yield "bomb.epub", zeros("b.opf", **container)
    yield (
        "bomb of styles.docx",
        lambda: archive({**_members(docx(paragraph("x"), styles="")), "word/styles.xml": b"<a/>" * 30 * MEGABYTE}),
    )
    yield "endless paragraphs.docx", text("word/document.xml", word, paragraph("word " * 10), "</w:body></w:document>")
    yield (
        "endless paragraph.docx",
        text("word/document.xml", f"{word}<w:p><w:r><w:t>", "word ", "</w:t></w:r></w:p></w:body></w:document>"),
    )
    yield (
        "endless row.docx",
        text(
            "word/document.xml",
            f"{word}<w:tbl><w:tr>",
            f"<w:tc>{paragraph('x')}</w:tc>",
            "</w:tr></w:tbl></w:body></w:document>",
        ),
    )
    yield (
        "endless attribute.docx",
        text("word/document.xml", f'{word}<w:p w:val="', "x" * 1000, '"/></w:body></w:document>'),
    )
    yield "many members.docx", lambda: archive({f"word/{number}": "" for number in range(65_000)})
    yield "same member.docx", _same_member
    for name in ("docx", "odt", "epub"):
        yield (
            f"forged sizes.{name}",
            lambda data=SOUND[name]: _patched(data, b"PK\1\2", 24, struct.pack("<I", 2**32 - 2)),
        )
        yield f"encrypted.{name}", lambda data=SOUND[name]: _patched(data, b"PK\1\2", 8, b"\1\0")
        yield f"unknown compression.{name}", lambda data=SOUND[name]: _patched(data, b"PK\1\2", 10, b"\x63\0")
        yield f"wrong checksum.{name}", lambda data=SOUND[name]: _patched(data, b"PK\1\2", 16, b"\1\2\3\4")


def _members(data: bytes) -> dict[str, str | bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as packed:
        return {name: packed.read(name) for name in packed.namelist()}


def _same_member() -> bytes:
    """Return a zip whose directory names one member 60,000 times."""
    data = archive({"word/document.xml": "x" * 100_000})
    start = data.index(b"PK\1\2")
    entry = data[start : data.index(b"PK\5\6")]
    directory = entry * 60_000
    return (
        data[:start] + directory + struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 60_000, 60_000, len(directory), start, 0)
    )


def _patched(data: bytes, mark: bytes, offset: int, value: bytes) -> bytes:
    changed, place = bytearray(data), data.find(mark)
    while place >= 0:
        changed[place + offset : place + offset + len(value)] = value
        place = data.find(mark, place + 1)
    return bytes(changed)


def _entities() -> Made:
    laughs = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 12))
    kinds = {
        "laughs": f'<!DOCTYPE x [<!ENTITY l0 "ha">{laughs}]><x>&l11;</x>',
        "quadratic": f'<!DOCTYPE x [<!ENTITY a "{"a" * 100_000}">]><x>{"&a;" * 10_000}</x>',
        "external": '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><x>&a;</x>',
        "parameter": '<!DOCTYPE x [<!ENTITY % a SYSTEM "http://127.0.0.1:9/a.dtd"> %a;]><x/>',
    }
    for name, content in kinds.items():
        yield f"{name}.docx", _constant(archive({"word/document.xml": content}))
        yield f"{name} in relations.docx", _constant(archive({"word/document.xml": "<x/>", "_rels/.rels": content}))
        yield (
            f"{name}.odt",
            _constant(archive({"mimetype": "application/vnd.oasis.opendocument.text", "content.xml": content})),
        )
        yield f"{name}.pptx", _constant(archive({"ppt/presentation.xml": content}))
        yield f"{name}.epub", _constant(epub(content, **{"META-INF/container.xml": content}))
        yield f"{name} in a chapter.epub", _constant(epub(content))


def _nested() -> Made:
    def tags(tag: str, count: int = DEEP) -> str:
        return f"<{tag}>" * count + "x" + f"</{tag}>" * count

    for tag in ("div", "table", "table><tr><td", "ul><li", "b", "select", "pre", "template", "svg", "q"):
        yield f"nested {tag}.html", lambda tag=tag: f"<!DOCTYPE html>{tags(tag)}".encode()
    yield "nested.docx", lambda: docx(tags("w:tbl><w:tr><w:tc"))
    yield "nested paragraphs.docx", lambda: docx(tags("w:p"))
    yield "nested skipped.docx", lambda: docx(tags("w:rPr"))
    yield "nested.odt", lambda: odt(tags("text:list"))
    yield "nested.pptx", lambda: pptx(tags("a:p", 1000))
    yield "nested.epub", lambda: epub(tags("table"))
    yield "nested.rtf", lambda: b"{\\rtf1 " + b"{" * DEEP + b"x" + b"}" * DEEP + b"}"
    yield "unclosed.rtf", lambda: b"{\\rtf1 " + b"{\\*\\footnote x" * 400
    yield "nested.json", lambda: b"[" * MEGABYTE + b"]" * MEGABYTE
    yield "nested.md", lambda: b"> " * DEEP + b"x\n" + b"- " * DEEP
    yield (
        "style cycle.docx",
        lambda: docx(
            paragraph("x", '<w:pStyle w:val="A"/>') * 1000,
            styles='<w:style w:styleId="A"><w:basedOn w:val="B"/></w:style><w:style w:styleId="B"><w:basedOn w:val="A"/></w:style>',
        ),
    )
    yield (
        "relation cycle.pptx",
        lambda: archive(
            {
                **_members(pptx("x")),
                "ppt/slides/_rels/s0.xml.rels": relations(
                    ("notesSlide", "s0.xml"), ("diagramData", "../slides/s0.xml")
                ),
            }
        ),
    )
    yield (
        "same slide.pptx",
        lambda: archive(
            {
                **_members(pptx("x")),
                "ppt/presentation.xml": f'<p xmlns:r="{OFFICE}">' + '<sldId r:id="rId1"/>' * 30_000 + "</p>",
            }
        ),
    )
    yield "same chapter.epub", lambda: archive({**_members(epub("<p>x</p>")), "OPS/book.opf": _book_of(30_000)})
    yield (
        "repeated cells.odt",
        lambda: odt(
            "<table:table>"
            + '<table:table-row><table:table-cell table:number-columns-repeated="999999999"/></table:table-row>' * 1000
            + "</table:table>"
            '<text:p>x<text:s text:c="999999999"/>y</text:p><text:h text:outline-level="999999999999">z</text:h>'
        ),
    )
    yield (
        "huge numbers.docx",
        lambda: docx(
            paragraph("x", '<w:numPr><w:ilvl w:val="99999"/><w:numId w:val="1"/></w:numPr><w:outlineLvl w:val="-1"/>'),
            numbering='<w:abstractNum w:abstractNumId="0"><w:lvl><w:start w:val="999999999"/><w:numFmt w:val="upperRoman"/><w:lvlText w:val="%1%2%3"/></w:lvl></w:abstractNum><w:num w:numId="1"><w:abstractNumId w:val="0"/></w:num>',
        ),
    )


def _book_of(count: int) -> str:
    item = '<item id="c0" href="c0.xhtml" media-type="application/xhtml+xml"/>'
    spine = '<itemref idref="c0"/>' * count
    return f"<package><manifest>{item}</manifest><spine>{spine}</spine></package>"


def _markup() -> Made:
    start = b"<!DOCTYPE html>"
    repeated = {
        "less": b"<", "comment": b"<!--", "unclosed tag": b"<a ", "attributes": b" a=b", "entities": b"&amp", "numbers": b"&#99999999;",
        "cdata": b"<![CDATA[", "declaration": b"<!x ", "instruction": b"<?x ", "script": b"<script>", "quotes": b'<a b="', "ends": b"</p>", "slashes": b"</",
    }  # fmt: skip
    for name, piece in repeated.items():
        head = start + (b"<p" if name == "attributes" else b"")
        yield f"{name}.html", lambda head=head, piece=piece: head + piece * (2 * MEGABYTE // len(piece))
    yield "one tag.html", lambda: start + b'<img src="data:' + b"A" * (20 * MEGABYTE) + b'"><p>after</p>'
    rtf = {
        "words": b"\\abc", "bytes": b"\\'", "unicode": b"\\u-1 ", "bin": b"\\bin999999999 ", "fonts": b"{\\fonttbl{\\f1\\fcharset204 x;}}",
        "cells": b"\\trowd\\cell", "rows": b"\\row", "starred": b"{\\*\\x y}", "numbers": b"\\uc99999\\u99999999 ", "braces": b"}", "notes": b"{\\footnote x\\par}",
    }  # fmt: skip
    for name, piece in rtf.items():
        yield f"{name}.rtf", lambda piece=piece: b"{\\rtf1 " + piece * (2 * MEGABYTE // len(piece)) + b"}"


def _texts() -> Made:
    yield "one line.txt", lambda: b"word " * (6 * MEGABYTE)
    yield "no space.txt", lambda: b"x" * (30 * MEGABYTE)
    yield "lines.txt", lambda: b"\n" * (30 * MEGABYTE)
    yield "odd UTF-16.txt", lambda: "word ".encode("utf-16-le") * 1000 + b"x"
    yield "surrogates.txt", lambda: b"\xff\xfe" + b"\x00\xd8" * 10 + "word ".encode("utf-16-le") * 1000
    yield "controls.txt", lambda: bytes(range(1, 32)) * 1000
    yield "high bytes.txt", lambda: bytes(range(128, 256)) * 10_000
    yield "marks.txt", lambda: ("a" + "\u0301" * 100_000).encode() * 20
    yield "quotes.csv", lambda: b'"' * (10 * MEGABYTE)


def _pdfs() -> Made:
    page = "/Type /Page /Parent 2 0 R /MediaBox [0 0 612 792]"

    def one_page(
        content: bytes = b"", more: str = "", extra: dict[int, bytes] | None = None, stream: str = ""
    ) -> bytes:
        objects = {
            1: b"<< /Type /Catalog /Pages 2 0 R >>",
            2: b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
            3: f"<< {page} /Contents 4 0 R {more} >>".encode(),
            4: b"<< /Length %d %s >>\nstream\n%s\nendstream" % (len(content), stream.encode(), content),
        }
        return pdf_file(objects | (extra or {}))

    def flate(data: bytes, times: int = 1) -> bytes:
        for _ in range(times):
            data = zlib.compress(data, 9)
        return data

    font = "/Resources << /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >>"
    yield "12000 pages.pdf", lambda: pdf(*map(str, range(12_000)))
    yield "page tree cycle.pdf", lambda: pdf("x", kids="2 0 R 2 0 R 4 0 R")
    yield "page in its own tree.pdf", lambda: pdf("x", kids="4 0 R " * 5000)
    yield "missing pages.pdf", lambda: pdf("x", kids=numbered(range(100, 5000)))
    yield "count.pdf", lambda: pdf("x").replace(b"/Count 1", b"/Count 2147483647")
    yield "negative count.pdf", lambda: pdf("x").replace(b"/Count 1", b"/Count -5")
    yield (
        "deep page tree.pdf",
        lambda: pdf_file(
            {1: b"<< /Type /Catalog /Pages 2 0 R >>"}
            | {n: b"<< /Type /Pages /Kids [%d 0 R] /Count 1 /Parent %d 0 R >>" % (n + 1, n - 1) for n in range(2, 5000)}
            | {5000: f"<< {page} >>".encode()}
        ),
    )
    yield "huge page.pdf", lambda: pdf("x").replace(b"[0 0 612 792]", b"[-99999999999 -9e38 9e38 99999999999]")
    yield "huge length.pdf", lambda: pdf("x").replace(b"/Length ", b"/Length 99999999")
    yield "previous cycle.pdf", lambda: pdf("x").replace(b"/Root", b"/Prev 9 /XRefStm 9 /Root")
    yield "no root.pdf", lambda: pdf("x").replace(b"/Root 1 0 R", b"/Root 99 0 R")
    yield "root is a page.pdf", lambda: pdf("x").replace(b"/Root 1 0 R", b"/Root 4 0 R")
    yield "content bomb.pdf", lambda: one_page(flate(b" " * (500 * MEGABYTE)), stream="/Filter /FlateDecode")
    yield (
        "nested filters.pdf",
        lambda: one_page(flate(b" " * (100 * MEGABYTE), 3), stream=f"/Filter [{'/FlateDecode ' * 3}]"),
    )
    yield "many filters.pdf", lambda: one_page(b"x", stream=f"/Filter [{'/ASCIIHexDecode ' * 10_000}]")
    yield (
        "endless text.pdf",
        lambda: one_page(
            flate(b"BT /F1 9 Tf " + b"(word word word) Tj 1 0 Td " * 500_000), font, stream="/Filter /FlateDecode"
        ),
    )
    yield "one long string.pdf", lambda: one_page(b"BT /F1 9 Tf (" + b"word " * MEGABYTE + b") Tj ET", font)
    yield "deep states.pdf", lambda: one_page(b"q " * MEGABYTE + b"BT (x) Tj ET")
    yield "deep arrays.pdf", lambda: one_page(b"[" * MEGABYTE + b"] TJ")
    yield "deep dictionary.pdf", lambda: one_page(more="/A " + "<< /A " * DEEP + "1" + " >>" * DEEP)
    yield "deep array object.pdf", lambda: one_page(more="/A " + "[" * DEEP + "]" * DEEP)
    yield (
        "form cycle.pdf",
        lambda: one_page(
            b"/X Do",
            "/Resources << /XObject << /X 5 0 R >> >>",
            {
                5: b"<< /Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources << /XObject << /X 5 0 R >> >> /Length 11 >>\nstream\n/X Do /X Do\nendstream"
            },
        ),
    )
    yield (
        "doubling forms.pdf",
        lambda: one_page(
            b"/X Do",
            "/Resources << /XObject << /X 5 0 R >> >>",
            {
                n: b"<< /Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources << /XObject << /X %d 0 R >> >> /Length 23 >>\nstream\n/X Do /X Do /X Do /X Do\nendstream"
                % (n + 1)
                for n in range(5, 30)
            },
        ),
    )
    yield "reference cycle.pdf", lambda: one_page(b"x", more="/Rotate 5 0 R", extra={5: b"6 0 R", 6: b"5 0 R"})
    yield (
        "huge picture.pdf",
        lambda: one_page(
            b"/X Do",
            "/Resources << /XObject << /X 5 0 R >> >>",
            {
                5: b"<< /Type /XObject /Subtype /Image /Width 99999 /Height 99999 /BitsPerComponent 8 /ColorSpace /DeviceRGB /Length 1 >>\nstream\nx\nendstream"
            },
        ),
    )
    yield (
        "character map bomb.pdf",
        lambda: one_page(
            b"BT /F1 9 Tf <0041> Tj ET",
            "/Resources << /Font << /F1 << /Type /Font /Subtype /Type0 /BaseFont /X /Encoding /Identity-H /ToUnicode 5 0 R >> >> >>",
            {
                5: b"<< /Filter /FlateDecode /Length %d >>\nstream\n%s\nendstream"
                % _with_length(flate(b"1 beginbfrange <0000> <ffff> <0041> endbfrange\n" * 200_000))
            },
        ),
    )
    yield "unknown encryption.pdf", lambda: pdf("x", password="x").replace(b"/V 1 /R 2", b"/V 9 /R 9")
    yield "encryption without key.pdf", lambda: pdf("x", password="x").replace(b"/O <", b"/O (x) /Q <")
    yield "object numbers.pdf", lambda: b"%PDF-1.7\n" + b"99999999 0 obj\n<< /Type /Page >>\nendobj\n" * 50_000
    yield "only heads.pdf", lambda: b"%PDF-1.7\n" + b"1 0 obj " * (4 * MEGABYTE // 8)
    yield "only a head.pdf", lambda: b"%PDF-1.7\n%%EOF"


def _with_length(data: bytes) -> tuple[int, bytes]:
    return len(data), data


_KINDS = (_truncated, _damaged, _random, _other_types, _zip_bombs, _entities, _nested, _markup, _texts, _pdfs)
