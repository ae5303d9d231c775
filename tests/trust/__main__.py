"""`python -m tests.trust [NAME ...]`: run the proofs in the size of a release. Without names, write docs/trust.md."""

import argparse
import datetime
import os
import sqlite3
import subprocess
import sys
import time
from importlib.metadata import version

from . import ROOT, Figures
from .proofs import PROOFS, Proof

HEAD = """\
# Trust

What was tested, how many times, and how often it failed. `make trust` writes this page in about an hour, on Linux. `make long` and CI run
the same proofs in a smaller size. [security.md](security.md) says what Fireside protects and what it does not.

| claim | tested | in CI | failed | |
|---|---|---|---|---|
"""
PACKAGES = ("starlette", "uvicorn", "httptools", "aiosqlite", "argon2-cffi")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.trust", description="Run the proofs of docs/trust.md.")
    parser.add_argument("names", nargs="*", choices=[*(proof.name for proof in PROOFS), []], help="only these")
    parser.add_argument("--ci", action="store_true", help="in the size of CI")
    options = parser.parse_args()
    began, lines, failed = time.monotonic(), [], False
    for proof in PROOFS:
        size = proof.ci if options.ci else proof.release
        if not size or (options.names and proof.name not in options.names):
            continue
        started = time.monotonic()
        figures = proof.run(size)
        lines.append(_row(proof, figures))
        failed = failed or bool(figures.wrong)
        print(f"{lines[-1]} {time.monotonic() - started:.0f} s", flush=True)
        for problem in figures.wrong[:10]:
            print(f"    {problem}", flush=True)
    if not options.names and not options.ci:
        (ROOT / "docs/trust.md").write_text(_page(lines, time.monotonic() - began), "utf-8")
    return int(failed)


def _row(proof: Proof, figures: Figures) -> str:
    ci = f"{proof.ci:,}" if proof.ci else "separately" if proof.name == "kills" else "no"
    return f"| {proof.claim} | {figures.cases:,} {proof.unit} | {ci} | {len(figures.wrong)} | {figures.more} |"


def _page(lines: list[str], seconds: float) -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    wal_reset = "fixed" if sqlite3.sqlite_version_info >= (3, 51, 3) else "present, but needs two writers"
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return (
        HEAD
        + "\n".join(lines)
        + f"\n\n`make trust`, {datetime.date.today()}, commit {commit}, {seconds / 60:.0f} minutes on {os.cpu_count()} cores. Python "
        f"{sys.version.split()[0]}, SQLite {sqlite3.sqlite_version} (WAL-reset bug: {wal_reset}), {packages}.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
