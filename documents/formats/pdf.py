"""PDF, read by PDFium."""

import re
from collections.abc import Iterator

import pypdfium2
from pypdfium2 import raw

from ..types import Remark
from . import pdf_letters
from .common import Contents, Encrypted, Unreadable, ranges

MAX_FAILED_PAGES = 100  # in a row; the page tree is then damaged
_END_BYTES = 2048  # in which %%EOF must stand
_OBJECT = re.compile(rb"\b(\d{1,8}) \d{1,5} obj\b")
_PAGE = re.compile(rb"/Type\s*/Page\b")
_PAGE_BYTES = 4096  # of the description of a page
_LINE_END_HYPHEN = re.compile("\ufffe\n?(?=([A-Z0-9])?)")  # PDFium joins a divided word with U+FFFE


def read(data: bytes, password: str | None) -> Contents:
    document = _open(data, password)
    document_is_form = raw.FPDF_GetFormType(document) == raw.FORMTYPE_ACRO_FORM
    pages = len(document)
    if not pages:
        raise Unreadable("The PDF is damaged: no page was found. Download or save it again.")
    remark = "" if b"%%EOF" in data[-_END_BYTES:] else "The PDF is damaged or incomplete: parts of it may be missing."
    return Contents("application/pdf", "page", pages, _pages(document, pages, document_is_form), remark)


def _open(data: bytes, password: str | None) -> pypdfium2.PdfDocument:
    try:
        return pypdfium2.PdfDocument(data, password)
    except pypdfium2.PdfiumError as error:
        if error.err_code == raw.FPDF_ERR_PASSWORD:
            raise Encrypted(
                "This is not the password of the PDF." if password else "The PDF is encrypted. Enter its password."
            ) from None
        if error.err_code == raw.FPDF_ERR_SECURITY:
            raise Unreadable("The PDF is encrypted in a way that cannot be read. Save it without encryption.") from None
    try:
        return pypdfium2.PdfDocument(_with_page_tree(data))
    except pypdfium2.PdfiumError:
        raise Unreadable("The PDF is damaged. Download or save it again.") from None


def _with_page_tree(data: bytes) -> bytes:
    """Return a PDF that ends too early, without its page tree, with a new one that has the pages in the order of the file."""
    kids, highest = [], 0
    for found in _OBJECT.finditer(data):
        number = int(found[1])
        highest = max(highest, number)
        end = data.find(b"endobj", found.end(), found.end() + _PAGE_BYTES)
        if end > 0 and _PAGE.search(data, found.end(), end):
            kids.append(number)
    root, pages = highest + 1, highest + 2
    references = b" ".join(b"%d 0 R" % number for number in kids)
    return b"".join(
        (
            data,
            b"\nendstream\nendobj\n%d 0 obj\n<< /Type /Catalog /Pages %d 0 R >>\nendobj\n" % (root, pages),
            b"%d 0 obj\n<< /Type /Pages /Kids [%s] /Count %d >>\nendobj\n" % (pages, references, len(kids)),
            b"trailer\n<< /Root %d 0 R /Size %d >>\n%%%%EOF\n" % (root, pages + 1),
        )
    )


def _pages(document: pypdfium2.PdfDocument, count: int, is_form: bool) -> Iterator[str | Remark]:
    failed: list[int] = []
    textless: list[int] = []
    unknown: list[int] = []
    for number in range(1, count + 1):
        try:
            text, has_objects, is_unknown = _page(document, number - 1, is_form)
        except pypdfium2.PdfiumError:
            failed.append(number)
            if len(failed) >= MAX_FAILED_PAGES and failed[-MAX_FAILED_PAGES] == number - MAX_FAILED_PAGES + 1:
                raise Unreadable(
                    f"The PDF is damaged: it has no readable page from page {number - MAX_FAILED_PAGES + 1} on."
                ) from None
            yield ""
            continue
        if has_objects and not text.strip():
            textless.append(number)
        if is_unknown:
            unknown.append(number)
        yield text
    if failed:
        yield Remark(f"Damaged pages were left out: {ranges(failed)}.")
    if textless and len(textless) + len(failed) < count:
        yield Remark(f"Pages without text, which may be pictures: {ranges(textless)}.")
    if unknown:
        yield Remark(
            "Fonts of these pages do not say which letters they show, so their text may be wrong: "
            f"{ranges(unknown)}. If it is, run a text recognition (OCR) program on the document."
        )


def _page(document: pypdfium2.PdfDocument, index: int, is_form: bool) -> tuple[str, bool, bool]:
    """Return the text of a page, whether it shows anything, and whether its letters are unknown."""
    page = document[index]
    try:
        if is_form:  # makes what was filled in a part of the page
            raw.FPDFPage_Flatten(page, raw.FLAT_NORMALDISPLAY)
            page.close()
            page = document[index]
        textpage = page.get_textpage()
        try:
            text, is_unknown = pdf_letters.read(textpage), pdf_letters.is_unknown(textpage)
        finally:
            textpage.close()
        return _join_words(text.replace("\r\n", "\n")), raw.FPDFPage_CountObjects(page) > 0, is_unknown
    finally:
        page.close()


def _join_words(text: str) -> str:
    """Join the words that are divided at the end of a line. A capital or digit follows a hyphen that belongs to the word."""
    return _LINE_END_HYPHEN.sub(lambda match: "-" if match[1] else "", text)
