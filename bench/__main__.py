"""`python -m bench [--only ROWS ...] [--output FILE]`: measure, print, and write the table."""

import argparse
import datetime
import os
import subprocess
import sys
import time
from pathlib import Path

from . import peers, rows
from .rig import HERE
from .rows import Row

FILE = HERE.parent / "docs" / "performance.md"

# The rows that the README quotes, and the comments around them.
QUOTED = ("one stream at full speed", "100 x 50 tokens/s: CPU", "first token")
MARKS = "<!-- figures: docs/performance.md -->\n", "<!-- end of figures -->\n"

HEAD = """\
# Performance

Fireside is measured over HTTP with all its work: sessions, parsing and saving. The reference (the "bare" stack) is a proxy of Starlette and
httpx on the same uvicorn, which forwards the raw bytes of the model server and stores nothing. Both are measured alternately in at least
{rounds} rounds; a ratio is the median of the rounds' ratios of Fireside to the reference, with their range. Every run checks that each token
arrived once and in order, followed by the usage and the end of the stream, and that the database has the same text. The model server is
simulated; a token is a chunk of about 270 bytes. "Added to the model server's" means the delay that Fireside or the reference adds to the model
server's own. "100 x 50 tokens/s" are 100 streams at the same time with 50 tokens per second each. "Held" means that the target is met.

| | Fireside | reference | ratio | target | |
|---|---|---|---|---|---|
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Compare Fireside with a bare proxy.")
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes, to test the bench")
    parser.add_argument("--only", nargs="*", default=[], choices=[row.__name__ for row in rows.ROWS])
    parser.add_argument(
        "--peers", action="store_true", help="install other programs into .venv/peers and measure them too"
    )
    parser.add_argument("--output", type=Path, help="file to write (default after a full run: docs/performance.md)")
    options = parser.parse_args()
    size = rows.TINY if options.tiny else rows.FULL
    output = options.output or (None if options.tiny or options.only else FILE)
    began, found = time.monotonic(), []
    measurements = [row for row in rows.ROWS if not options.only or row.__name__ in options.only]
    if options.peers:
        measurements.append(peers.peers)
    for row in rows.measure(size, measurements):
        found.append(row)
        print(line(row), flush=True)
    if output:
        output.write_text(page(found, size.rounds, time.monotonic() - began), "utf-8")
    if output == FILE:
        readme = HERE.parent / "README.md"
        readme.write_text(quoted(readme.read_text("utf-8"), found), "utf-8")
    return 0


def quoted(readme: str, found: list[Row]) -> str:
    """Return the README with the figures of this run."""
    before, _, rest = readme.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    table = "| | Fireside | bare stack | ratio | target | |\n|---|---|---|---|---|---|\n"
    for row in found:
        if row.what.startswith(QUOTED):
            table += line(row) + "\n"
    return f"{before}{MARKS[0]}{table}{MARKS[1]}{after}"


def line(row: Row) -> str:
    held = {True: "held", False: "**missed**", None: ""}[row.held]
    return f"| {row.what} | {row.ours} | {row.reference} | {row.ratio} | {row.target} | {held} |"


def page(found: list[Row], rounds: int, seconds: float) -> str:
    table = "\n".join(map(line, found))
    command = "make bench" if len(sys.argv) == 1 else f"python -m bench {' '.join(sys.argv[1:])}"
    revision = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(revision, cwd=HERE, capture_output=True, text=True).stdout.strip()
    busy = os.getloadavg()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{HEAD.format(rounds=rounds)}{table}\n\n"
        f"`{command}`, {datetime.date.today()}, commit {commit}, {seconds / 60:.0f} minutes, {os.cpu_count()} shared cores, {memory:.0f} GB. "
        f"{rows.versions()}.\n"
        f"Load average of the last 5 and 15 minutes: {busy[1]:.1f} and {busy[2]:.1f}. The bench itself causes about 1.5.\n"
        "Compare ratios; absolute times vary with the machine's load.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
