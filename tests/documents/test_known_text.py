"""Documents of a known text, written by pandoc and Chromium, have at least 99 % of its words in order. measure.py defines the share.

`python -m tests.documents.test_known_text` does the same with LibreOffice, which takes long to install, and prints the shares.
"""

import asyncio
import random
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from playwright.async_api import async_playwright

from . import measure
from .making import reading

# Where the text of a footnote stands
NOTES = {
    "docx": "paragraph",
    "odt": "paragraph",
    "rtf": "paragraph",
    "epub": "chapter",
    "html": "text",
    "pptx": "text",
    "pdf": "",
}
LEAST = 0.99
# A chapter on each page, whose two columns Chromium balances
STYLE = """
body { font: 10pt serif; columns: 2; hyphens: auto; text-align: justify }
h1 { column-span: all; break-before: page }
td, th { font-size: 5pt; border: 1px solid }
"""


class Text:
    """A text with headings, paragraphs, nested lists, tables, quotations and notes, and its words in order.

    `notes`: where the format has the notes, after the paragraph, the chapter or the text; or empty for a text without notes.
    """

    def __init__(self, notes: str) -> None:
        self._chance = random.Random(7)
        self._where, self._notes = notes, list[str]()
        self.markdown, self.words = "", ""
        for chapter in range(12):
            self._add("# ", self._sentence(5))
            for _ in range(6):
                self._paragraph()
            self._add("## ", self._sentence(4))
            for kind in range(4):
                self._add("- " if kind else "\n- ", self._sentence(6), "\n")
                self._add("    - ", self._sentence(4), "\n")
            self._table(chapter % 4 + 2)
            self._add("> ", self._sentence(30))
            if notes == "chapter":
                self._end_notes()
        self._end_notes()

    def _end_notes(self) -> None:
        self.words += "".join(f"{note}\n" for note in self._notes)
        self._notes.clear()

    def _sentence(self, count: int) -> str:
        words = [
            "".join(self._chance.choices("aeioubdfgklmnprstäöéñç", k=self._chance.randint(3, 9))) for _ in range(count)
        ]
        return " ".join(words).capitalize()

    def _add(self, mark: str, text: str, end: str = "\n\n") -> None:
        self.markdown += f"{mark}{text}{end}"
        self.words += f"{text}\n"

    def _paragraph(self) -> None:
        text, note = ". ".join(self._sentence(15) for _ in range(5)), self._sentence(9)
        self.markdown += text + (f"^[{note}]" if self._where else "") + "\n\n"
        self.words += f"{text}\n"
        if self._where == "paragraph":
            self.words += f"{note}\n"
        elif self._where:
            self._notes.append(note)

    def _table(self, columns: int) -> None:
        rows = [[self._sentence(2) for _ in range(columns)] for _ in range(6)]
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        self.markdown += "\n" + "\n".join([lines[0], "|" + "---|" * columns, *lines[1:]]) + "\n\n"
        self.words += "\n".join(" ".join(row) for row in rows) + "\n"


async def run(*command: str, given: str = "") -> str:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL)
    output, _ = await process.communicate(given.encode())
    assert process.returncode == 0, command
    return output.decode()


async def convert(markdown: str, *options: str) -> str:
    return await run("pandoc", "-f", "markdown", *options, given=markdown)


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("pandoc"), reason="needs pandoc")
async def test_words_of_pandocs_documents_are_read_in_order(tmp_path: Path) -> None:
    shares = {}
    async with reading() as reader:
        for kind, notes in NOTES.items():
            if kind == "pdf":
                continue
            text = Text(notes)
            file = tmp_path / f"text.{kind}"
            await convert(text.markdown, "-s", "-o", str(file))
            result = await reader.read(file.read_bytes(), "text")
            assert result.problem is None
            shares[kind] = measure.share(text.words, result.text)
    assert min(shares.values()) >= LEAST, shares


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("pandoc"), reason="needs pandoc")
async def test_words_of_pdfs_in_two_columns_are_read_in_order(tmp_path: Path) -> None:
    text = Text(NOTES["pdf"])
    html = await convert(text.markdown, "-t", "html")
    async with async_playwright() as playwright:
        chromium = shutil.which("chromium-headless-shell") or shutil.which("chromium")
        browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = await browser.new_page()
        await page.set_content(f"<html lang=en><meta charset=utf-8><style>{STYLE}</style>{html}")
        data = await page.pdf(format="A4", margin={"top": "2cm", "bottom": "2cm", "left": "2cm", "right": "2cm"})
        await browser.close()
    async with reading() as reader:
        result = await reader.read(data)
    assert result.problem is None and len(result.pages) >= 5
    assert measure.share(text.words, result.text) >= LEAST


async def by_libreoffice() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with reading() as reader:
            for kind in ("docx", "odt", "rtf", "pdf", "epub"):
                text = Text("" if kind == "epub" else NOTES[kind])
                file = Path(folder) / "text.odt"
                await convert(text.markdown, "-s", "-o", str(file))
                await run("soffice", "--headless", "--convert-to", kind, "--outdir", f"{folder}/{kind}", str(file))
                result = await reader.read((Path(folder) / kind / f"text.{kind}").read_bytes())
                print(
                    f"{kind}: {100 * measure.share(text.words, result.text):.2f} % of {len(measure.words(text.words))} words"
                )


if __name__ == "__main__":
    sys.exit(asyncio.run(by_libreoffice()))
