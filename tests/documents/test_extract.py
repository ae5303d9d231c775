"""Documents of each format, read in a sealed child: text in reading order, detected types and encodings, and clear problems."""

import io
import zipfile
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from fireside.documents import extract
from fireside.documents.types import Page, Problem, Remark

from . import making
from .making import Reader, archive, docx, epub, odt, paragraph, pdf, pptx

LONG = "\n\n".join(f"Paragraph {number} has some words in it. " * 5 for number in range(100))


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def reader() -> AsyncIterator[Reader]:
    async with making.reading() as made:
        yield made


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_text_is_divided_at_paragraphs_and_nothing_is_lost(reader: Reader) -> None:
    result = await reader.read(LONG.encode(), "notes.txt")
    assert result.opened and (result.opened.media_type, result.opened.unit) == ("text/plain", "section")
    assert result.text.split() == LONG.split() and len(result.pages) >= 5
    assert all(page.startswith("Paragraph") and len(page) <= 3600 for page in result.pages)
    [line] = (await reader.read(b"x" * 3000, "x.py")).pages
    assert line == "x" * 3000
    assert "".join((await reader.read(b"y" * 100_000, "y.json")).pages) == "y" * 100_000


@pytest.mark.parametrize(
    ("codec", "remark"),
    [
        ("utf-8", ""),
        ("utf-8-sig", ""),
        ("utf-16", "Read as UTF-16 text."),
        ("utf-16-le", "Read as UTF-16 text."),
        ("utf-16-be", "Read as UTF-16 text."),
        ("utf-32", "Read as UTF-32 text."),
        ("cp1252", "Read as Windows-1252 text."),
        ("latin-1", "Read as Latin-1 text."),
    ],
)
async def test_encoding_is_detected(reader: Reader, codec: str, remark: str) -> None:
    text = "Größe, naïveté; crème brûlée" + (" “€ 5”" if codec != "latin-1" else "")
    result = await reader.read(text.encode(codec), "a.txt")
    assert result.pages == [text]
    assert result.opened and result.opened.remark == remark


async def test_damaged_utf8_is_read_and_said(reader: Reader) -> None:
    data = ("Größe und Maß. " * 200).encode()
    for damaged in (data[:500] + b"\xff" + data[500:], data + "ß".encode()[:1]):
        result = await reader.read(damaged)
        assert result.text.count("Größe") == 200
        assert result.opened and "Invalid bytes were replaced." in result.opened.remark


async def test_kinds_of_text_are_told_apart_by_name(reader: Reader) -> None:
    kinds = {
        "a.md": "text/markdown",
        "b.CSV": "text/csv",
        "c.tsv": "text/tab-separated-values",
        "d.json": "application/json",
        "e.py": "text/plain",
    }
    for name, media_type in kinds.items():
        opened = (await reader.read(b"a,b\n1,2\n", name)).opened
        assert opened and opened.media_type == media_type


async def test_html_comment_that_does_not_end_takes_no_time(reader: Reader) -> None:
    result = await reader.read(b"<!DOCTYPE html><p>Before</p>" + b"<!--" * 250_000)
    assert result.pages == ["Before"]
    assert result.remarks == ["Only the text up to here was read. A comment or tag of the page does not end."]


async def test_pdf_pages_forms_and_hyphens(reader: Reader) -> None:
    result = await reader.read(pdf("The first page", "", "caf\\351 \\223quoted\\224"), "wrong.docx")
    assert result.opened and (result.opened.media_type, result.opened.unit, result.opened.pages) == (
        "application/pdf",
        "page",
        3,
    )
    assert [page.strip() for page in result.pages[:2]] == ["The first page", ""] and "café" in result.pages[2]
    assert result.remarks == ["Pages without text, which may be pictures: 2."]


async def test_pdf_accents_and_spaced_out_letters_become_words(reader: Reader) -> None:
    """As TeX writes them: accents that are printed over the letter, before it or after it, and letters that are spaced out."""
    written = {
        "f\u00fcr": "[(f\\250) 333 (ur)]",
        "na\u00efve caf\u00e9": "[(nai) 278 (\\250) 55 (ve cafe) 500 (\\264)]",
        "it`s": "[(it`s)]",
        "spaced out": "[(s) -150 (p) -150 (a) -150 (c) -150 (e) -150 (d) -900 (o) -150 (u) -150 (t)]",
        "a b c": "[(a) -400 (b) -400 (c)]",
    }
    result = await reader.read(pdf(*(f") Tj {operand} TJ (" for operand in written.values())))
    assert [page.strip() for page in result.pages] == [*written]


async def test_pdf_with_letters_that_its_fonts_do_not_name_is_marked(reader: Reader) -> None:
    font = (
        b"<< /Type /Font /Subtype /Type3 /FontBBox [0 0 9 9] /FontMatrix [1 0 0 1 0 0] /FirstChar 200 /LastChar 209"
        b" /Widths [1 1 1 1 1 1 1 1 1 1] /CharProcs << >> /Encoding << /Differences [200 /g1 /g2 /g3 /g4 /g5 /g6 /g7 /g8 /g9] >> >>"
    )
    known = pdf("\\310\\311\\312\\313" * 20)
    unknown = known.replace(b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>", font)
    assert not (await reader.read(known)).remarks
    (remark,) = (await reader.read(unknown)).remarks
    assert "do not say which letters they show, so their text may be wrong: 1." in remark


async def test_pdf_without_text_is_told_from_an_empty_file(reader: Reader) -> None:
    assert (await reader.read(pdf("", ""))).problem == Problem("no_text", extract.NO_TEXT)
    problem = (await reader.read(b"\n \n")).problem
    assert problem and (problem.status, problem.message) == ("failed", "The file is empty.")


async def test_encrypted_pdf_opens_with_its_password_only(reader: Reader) -> None:
    data = pdf("A secret page", password="correct horse")
    assert (await reader.read(data)).problem == Problem("encrypted", "The PDF is encrypted. Enter its password.")
    assert (await reader.read(data, password="wrong")).problem == Problem(
        "encrypted", "This is not the password of the PDF."
    )
    assert (await reader.read(data, password="correct horse")).pages == ["A secret page"]


async def test_truncated_pdf_is_read_as_far_as_possible(reader: Reader) -> None:
    data = pdf(*(f"Page number {n}" for n in range(5)))
    result = await reader.read(data[: data.index(b"xref")])
    assert len(result.pages) == 5 and result.opened and "damaged" in result.opened.remark
    problem = (await reader.read(data[:100])).problem
    assert problem and problem.status == "failed" and "damaged" in problem.message


async def test_word_keeps_headers_lists_tables_notes_and_order(reader: Reader) -> None:
    styles = (
        '<w:style w:styleId="H1"><w:name w:val="heading 1"/><w:pPr><w:numPr><w:numId w:val="1"/></w:numPr></w:pPr></w:style>'
        '<w:style w:styleId="H2"><w:name w:val="heading 2"/><w:basedOn w:val="H1"/><w:pPr><w:numPr><w:ilvl w:val="1"/></w:numPr></w:pPr></w:style>'
    )
    numbering = (
        '<w:abstractNum w:abstractNumId="0"><w:lvl><w:numFmt w:val="upperRoman"/><w:lvlText w:val="%1."/></w:lvl>'
        '<w:lvl><w:numFmt w:val="lowerLetter"/><w:lvlText w:val="%1.%2)"/></w:lvl></w:abstractNum>'
        '<w:abstractNum w:abstractNumId="1"><w:lvl><w:numFmt w:val="bullet"/></w:lvl></w:abstractNum>'
        '<w:num w:numId="1"><w:abstractNumId w:val="0"/></w:num><w:num w:numId="2"><w:abstractNumId w:val="1"/></w:num>'
    )
    footnotes = f'<w:footnote w:type="separator" w:id="0">{paragraph("no")}</w:footnote><w:footnote w:id="5">{paragraph("The note.")}</w:footnote>'
    item = '<w:numPr><w:numId w:val="2"/></w:numPr>'
    cells = "".join(f"<w:tc>{paragraph(text)}</w:tc>" for text in ("a", "b &amp; c", ""))
    box = f'<w:p><w:r><mc:AlternateContent xmlns:mc="mc"><mc:Choice><w:txbxContent>{paragraph("In a box.")}</w:txbxContent></mc:Choice><mc:Fallback>{paragraph("twice")}</mc:Fallback></mc:AlternateContent></w:r></w:p>'
    body = (
        paragraph("Part", '<w:pStyle w:val="H1"/>')
        + paragraph("Rules", '<w:pStyle w:val="H2"/>')
        + '<w:p><w:r><w:t xml:space="preserve">Some </w:t></w:r><w:r><w:t>text</w:t><w:footnoteReference w:id="5"/></w:r><w:del><w:r><w:delText>gone</w:delText></w:r></w:del><w:r><w:tab/><w:t>end</w:t></w:r></w:p>'
        + paragraph("one", item)
        + paragraph("two", item)
        + f"<w:tbl><w:tr>{cells}</w:tr></w:tbl>"
        + box
        + paragraph("More rules", '<w:pStyle w:val="H2"/>')
    )
    result = await reader.read(
        docx(
            body,
            styles=styles,
            numbering=numbering,
            footnotes=footnotes,
            header=paragraph("Top"),
            footer=paragraph("Bottom"),
        )
    )
    assert result.text.split("\n") == [
        "Top", "", "# I. Part", "", "## I.a) Rules", "", "Some text[1]\tend", "", "[1] The note.", "- one", "- two", "a | b & c | ", "",
        "In a box.", "", "## I.b) More rules", "", "Bottom",
    ]  # fmt: skip


async def test_opendocument_slides_and_text(reader: Reader) -> None:
    body = (
        '<text:h text:outline-level="2">Head</text:h><text:p>a<text:s text:c="2"/>b<text:note><text:note-citation>1</text:note-citation>'
        "<text:note-body><text:p>Noted.</text:p></text:note-body></text:note></text:p><text:tracked-changes><text:p>gone</text:p></text:tracked-changes>"
        "<text:list><text:list-item><text:p>x</text:p><text:p>more</text:p></text:list-item></text:list>"
        '<table:table><table:table-row><table:table-cell><text:p>1</text:p></table:table-cell><table:table-cell table:number-columns-repeated="2"/>'
        "<table:table-cell><text:p>2</text:p></table:table-cell></table:table-row></table:table>"
    )
    text = (await reader.read(odt(body))).text
    assert text.split() == ["##", "Head", "a", "b[1]", "[1]", "Noted.", "-", "x", "more", "1", "|", "|", "|", "2"]
    slides = odt(
        "<draw:page><text:p>One</text:p></draw:page><draw:page><text:p>Two</text:p></draw:page>", "presentation"
    )
    result = await reader.read(slides)
    assert result.opened and result.opened.unit == "slide" and result.pages == ["One", "Two"]
    assert (await reader.read(pptx("First", "Second"))).pages == ["First", "Second"]


async def test_book_and_page_keep_chapters_tables_and_references(reader: Reader) -> None:
    chapter = (
        "<html><head><title>t</title></head><body><h1>One</h1><p>Text<a epub:type='noteref'>1</a></p></body></html>"
    )
    assert (await reader.read(epub(chapter, "<p>Two</p>"))).pages == ["# One\n\nText[1]", "Two"]
    page = (
        "<!DOCTYPE html><meta charset='iso-8859-1'><title>News</title><style>x</style><nav hidden>menu</nav><h2>Head &amp; more</h2><p>a<br>b <b>c</b>d"
        "<script>no()</script><ul><li>x<ol><li>y<li>z</ol></ul><table><tr><td>1<td><table><tr><td>2<td>\xe9</table><tr><td>alone</table><pre>a\n  b</pre>"
    )
    result = await reader.read(page.encode("latin-1"))
    assert result.text == "# News\n\n## Head & more\n\na\nb cd\n\n- x\n  1. y\n  2. z\n1 | 2 | é\n\nalone\n\na\n  b"
    assert result.opened and result.opened.remark == "Read as iso-8859-1 text."
    protected = epub(chapter, **{"META-INF/encryption.xml": '<e><CipherReference URI="OPS/c0.xhtml"/></e>'})
    problem = (await reader.read(protected)).problem
    assert problem and "DRM" in problem.message


async def test_rtf_keeps_encodings_tables_and_notes(reader: Reader) -> None:
    source = (
        r"{\rtf1\ansi\ansicpg1252\uc1{\fonttbl{\f0\fcharset0 Arial;}{\f1\fcharset204 Arial Cyr;}}{\*\generator no;}{\info{\title no}}"
        r"\outlinelevel0 Head\par\pard Caf\'e9 \u8364?5 {\f1\'cf\'f0\'e8}\~x{\super 1{\footnote\pard A note.\par}} end\par"
        r"\trowd\cellx1\cellx2\intbl a\cell\cell b\cell\row\pard{\field{\*\fldinst HYPERLINK x}{\fldrslt link}} {\*\unknown no}{\pict 00ff}\bin3 }}}done\par}"
    )
    assert (
        await reader.read(source.encode())
    ).text == "# Head\n\nCafé €5 При\xa0x1[1] end\n\n[1] A note.\na |  | b\n\nlink done"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "a picture"),
        (b"RIFF\0\0\0\0WEBPVP8 \0", "a picture"),
        (b"\0\0\0\x20ftypisom\0\0", "a video"),
        (b"\x7fELF\2\1\1\0\0\0", "a program"),
        (b"\x1f\x8b\x08\0\0\0\0", "a packed file"),
        (archive({"xl/workbook.xml": "<x/>", "[Content_Types].xml": "<Types/>"}), "a spreadsheet. Save the sheet"),
        (archive({"readme.txt": "x"}), "a zip file"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + "WordDocument".encode("utf-16-le"), "an old Word document"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + "EncryptedPackage".encode("utf-16-le"), "is encrypted"),
        (bytes(range(256)) * 20, "neither text nor a document"),
    ],
)
async def test_other_files_are_named(reader: Reader, data: bytes, words: str) -> None:
    result = await reader.read(data, "report.pdf")
    assert result.opened is None and result.problem and result.problem.status == "failed"
    assert words in result.problem.message and result.problem.message.endswith(".")


async def test_entities_are_refused_and_text_before_an_error_is_kept(reader: Reader) -> None:
    laughs = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><document><body><p>&b;</p></body></document>'
    problem = (await reader.read(archive({"word/document.xml": laughs}))).problem
    assert problem and "document type definition" in problem.message
    whole = docx("".join(paragraph(f"Paragraph number {n} of this document.") for n in range(500)))
    content = zipfile.ZipFile(io.BytesIO(whole)).read("word/document.xml")
    result = await reader.read(archive({"word/document.xml": content[: len(content) // 2]}))
    assert "Paragraph number 240 of" in result.text and result.problem is None
    assert "Only the text up to here was read." in result.remarks[0]


async def test_bounds_are_said(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extract, "MAX_PAGES", 3)
    items = list(extract.read(pdf(*"abcdef"), ""))
    assert len(items) == 5 and items[-1] == Remark("Only the first 3 pages were read.")
    monkeypatch.setattr(extract, "MAX_CHARACTERS", 5000)
    items = list(extract.read(b"a b " * 5000, ""))
    assert sum(len(item.text) for item in items if isinstance(item, Page)) == 5000
    assert isinstance(items[-1], Remark) and "million characters" in items[-1].text


async def test_long_page_is_cut(reader: Reader) -> None:
    """A page is indexed in one transaction, while other writes wait."""
    result = await reader.read(pptx("One", "word " * 50_000, "Three"))
    assert [len(page) <= extract.MAX_PAGE_CHARACTERS for page in result.pages] == [True] * 3
    assert result.pages[1].startswith("word word") and "Three" in result.pages[2]
    assert result.remarks == ["Only the first 100,000 characters of a slide were read. Longer: 2."]
