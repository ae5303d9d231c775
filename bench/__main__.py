"""`python -m bench [--quick] [--only ROWS ...] [--output FILE]`: measure, print, and write the table."""

import argparse
import datetime
import os
import sys
import time
from pathlib import Path

from . import rows
from .rig import HERE
from .rows import Row

FILE = HERE.parent / "docs" / "performance.md"

# The README quotes these between two marks.
QUOTED = ("one stream at full speed", "100 x 50 tokens/s: CPU", "first token")
MARKS = "<!-- figures: docs/performance.md -->\n", "<!-- end of figures -->\n"

HEAD = """\
# Performance

Fireside through the whole product, over HTTP: signed in, parsed, kept in the database. The reference is a bare Starlette and httpx
application with the same uvicorn that passes the raw bytes of the model server on and keeps nothing. Both run in the same run, in
turn, {rounds} rounds or more; a ratio is the median of the rounds' ratios, with their range. In every run it is checked that every token came, once
and in order, with usage and end, and that the database has the same text. A token is a chunk of some 270 bytes of a scripted
model server.

| | Fireside | reference | ratio | target | |
|---|---|---|---|---|---|
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure Fireside against the bare stack.")
    parser.add_argument("--quick", action="store_true", help="less of everything, in a minute or two")
    parser.add_argument("--tiny", action="store_true", help="next to nothing: only to see that it works")
    parser.add_argument("--only", nargs="*", default=[], choices=[row.__name__ for row in rows.ROWS])
    parser.add_argument("--output", type=Path, help="the file to write; docs/performance.md after a full run")
    options = parser.parse_args()
    size = rows.TINY if options.tiny else rows.QUICK if options.quick else rows.FULL
    output = options.output or (
        None if options.tiny or options.quick or options.only else HERE.parent / "docs/performance.md"
    )
    began, found = time.monotonic(), []
    for row in rows.measure(size, options.only):
        found.append(row)
        print(line(row), flush=True)
    if output:
        output.write_text(page(found, size.rounds, time.monotonic() - began), "utf-8")
    if output == FILE:
        readme = HERE.parent / "README.md"
        readme.write_text(quoted(readme.read_text("utf-8"), found), "utf-8")
    return 0


def quoted(readme: str, found: list[Row]) -> str:
    """The README with the figures of this run."""
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
    busy = os.getloadavg()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{HEAD.format(rounds=rounds)}{table}\n\n"
        f"`{command}`, {datetime.date.today()}, {seconds / 60:.0f} minutes, {os.cpu_count()} shared cores, {memory:.0f} GB. {rows.versions()}.\n"
        f"The load of the machine in the last five and fifteen minutes was {busy[1]:.1f} and {busy[2]:.1f}; by itself the bench makes some 1.5.\n"
        "Compare ratios; absolute times vary with the machine's load.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
