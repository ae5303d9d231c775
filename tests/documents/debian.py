"""`python -m tests.documents.debian [FILES]`: compare the PDFs of Debian packages with pdftotext. Linux with apt-get and poppler-utils.

pdftotext has two orders: its own reading order, and that of the file (`-raw`). Neither is always right, so each page is compared with the
one that agrees better, by measure.py. The share is that of all pages together. Pages on which pdftotext finds no word are left out.
So is texlive-lang-arabic, in which pdftotext returns many words backwards: docs/decisions/0001-dependencies.md has its share.
"""

import multiprocessing
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from fireside.documents import extract
from fireside.documents.types import Page

from . import measure

PACKAGES = (
    "c++-annotations-pdf", "debian-faq", "debian-policy", "developers-reference", "gnuplot-doc", "gri-pdf-doc",
    "installation-guide-amd64", "live-manual-pdf", "maint-guide", "maxima-doc", "ngspice-doc", "octave-doc", "pari-doc", "zsh-doc",
    "asymptote-doc", "ghostscript-doc", "texlive-humanities-doc", "texlive-lang-chinese", "texlive-lang-cyrillic",
    "texlive-lang-german", "texlive-lang-korean",
)  # fmt: skip
FILES = 300
MAX_BYTES = 4_000_000  # of a file; larger ones are mostly pictures
SECONDS = 120


class Compared(NamedTuple):
    file: Path
    pages: int
    words: int
    in_order: int


def compare(file: Path) -> Compared | None:
    """Return None where pdftotext takes too long or counts the pages differently."""
    try:
        known = [[measure.words(page) for page in _pdftotext(file, *options)] for options in ((), ("-raw",))]
    except subprocess.TimeoutExpired:
        return None
    pages = [measure.words(item.text) for item in extract.read(file.read_bytes(), "") if isinstance(item, Page)]
    if not len(pages) == len(known[0]) == len(known[1]):
        return None
    total = found = 0
    for page, *references in zip(pages, *known, strict=True):
        shares = [(measure.in_order(words, page), len(words)) for words in references if words]
        if shares:
            best = max(shares, key=lambda share: share[0] / share[1])
            found += best[0]
            total += best[1]
    return Compared(file, len(pages), total, found)


def _pdftotext(file: Path, *options: str) -> list[str]:
    command = ["pdftotext", "-enc", "UTF-8", *options, str(file), "-"]
    output = subprocess.run(command, capture_output=True, timeout=SECONDS).stdout
    return output.decode("utf-8", "replace").split("\f")[:-1]


def download(folder: Path) -> list[Path]:
    subprocess.run(["apt-get", "download", "-qq", *PACKAGES], cwd=folder, check=True, stderr=subprocess.DEVNULL)
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", str(package), str(folder)], check=True)
    for packed in folder.rglob("*.pdf.gz"):
        if not packed.is_symlink():
            subprocess.run(["gunzip", str(packed)], check=True)
    found = [file for file in folder.rglob("*.pdf") if file.is_file() and not file.is_symlink()]
    return sorted(file for file in found if file.stat().st_size <= MAX_BYTES)


def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as name, multiprocessing.Pool(2, maxtasksperchild=20) as pool:
        files = download(Path(name))
        random.Random(19).shuffle(files)
        results = list(filter(None, pool.imap_unordered(compare, files[:count])))
    total, found = sum(one.words for one in results), sum(one.in_order for one in results)
    print(
        f"{len(results)} PDFs, {sum(one.pages for one in results):,} pages, {total:,} words: {100 * found / total:.2f} % in order"
    )
    for one in sorted(results, key=lambda one: one.in_order - one.words)[:10]:
        print(f"    {one.words - one.in_order} of {one.words} missing: {one.file.name}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else FILES)
