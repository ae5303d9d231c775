"""The bench runs, and the README quotes docs/performance.md correctly."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
PERFORMANCE = (ROOT / "docs" / "performance.md").read_text("utf-8")


def table(markdown: str) -> dict[str, list[str]]:
    """Return the rows of all tables by their first cell."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines() if line[:1] == "|"]
    return {name: cells for name, *cells in rows if name.strip("- ")}


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="needs Linux and a C compiler")
def test_bench_measures_rows_and_finds_everything_delivered(tmp_path: Path) -> None:
    output = tmp_path / "performance.md"
    command = [sys.executable, "-m", "bench", "--tiny", "--output", str(output)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    measured = table(output.read_text("utf-8"))
    for name, (ours, _, _, target, held) in measured.items():
        assert ours, name
        assert bool(target) == bool(held), name


def quoted() -> dict[str, list[str]]:
    """The rows of the README."""
    return table(README.partition("<!-- figures: docs/performance.md -->")[2].partition("<!-- end of figures -->")[0])


def test_readme_quotes_three_rows_of_the_bench() -> None:
    measured = table(PERFORMANCE)
    assert len(quoted()) == 3
    for name, cells in quoted().items():
        assert cells == measured[name], name
