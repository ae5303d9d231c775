"""`python -m tests.trust [NAME ...]`: the proofs in the size of a release, or those that are named; all of them make docs/trust.md."""

import argparse
import datetime
import os
import sqlite3
import subprocess
import sys
import time
from importlib.metadata import version

from . import Figures
from .proofs import PROOFS, ROOT, Proof

HEAD = """\
# Trust

What was tried against Fireside, how often, and how often it held. `make trust` makes this page again, in about a quarter of an hour, on
Linux. `make long` runs the same proofs in a smaller size, as CI does. [security.md](security.md) says what is promised, and what is not.

| promise | tried | in CI | wrong | |
|---|---|---|---|---|
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.trust", description="Try what Fireside promises.")
    parser.add_argument("names", nargs="*", choices=[*(proof.name for proof in PROOFS), []], help="only these")
    parser.add_argument("--ci", action="store_true", help="in the size of CI")
    options = parser.parse_args()
    began, lines, wrong = time.monotonic(), [], 0
    for proof in PROOFS:
        if options.names and proof.name not in options.names:
            continue
        size = proof.ci if options.ci else proof.release
        if not size:
            continue
        started = time.monotonic()
        figures = proof.run(size)
        lines.append(line(proof, figures))
        wrong += len(figures.wrong)
        print(f"{lines[-1]} {time.monotonic() - started:.0f} s", flush=True)
        for problem in figures.wrong[:10]:
            print(f"    {problem}", flush=True)
    if not options.names and not options.ci:
        (ROOT / "docs/trust.md").write_text(page(lines, time.monotonic() - began), "utf-8")
    return 1 if wrong else 0


def line(proof: Proof, figures: Figures) -> str:
    small = f"{proof.ci:,}" if proof.ci else "by itself" if proof.name == "kills" else "no"
    return f"| {proof.claim} | {figures.cases:,} {proof.unit} | {small} | {len(figures.wrong)} | {figures.more} |"


def page(lines: list[str], seconds: float) -> str:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    fixed = "fixed" if sqlite3.sqlite_version_info >= (3, 51, 3) else "there, out of reach of a single writer"
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("starlette", "uvicorn", "httptools", "aiosqlite", "argon2-cffi")
    )
    return (
        HEAD
        + "\n".join(lines)
        + f"\n\n`make trust`, {datetime.date.today()}, commit {commit}, {seconds / 60:.0f} minutes on {os.cpu_count()} cores. Python "
        f"{sys.version.split()[0]}, SQLite {sqlite3.sqlite_version} (WAL-reset bug: {fixed}), {packages}.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
