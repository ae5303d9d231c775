"""The table of proofs with their sizes in CI, about a minute together, and in a release."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

from . import (
    ROOT,
    Figures,
    attacks,
    authz,
    choice,
    documents,
    fuzz,
    model,
    mutants,
    quotations,
    races,
    secrets,
    simulation,
    soak,
    starvation,
    storage,
    timing,
)

ALL = 10**6


@dataclass(frozen=True)
class Proof:
    name: str
    claim: str
    unit: str
    run: Callable[[int], Figures]
    ci: int  # 0: not in CI
    release: int


def kills(size: int) -> Figures:
    """Run tests/system/test_kill.py, which CI runs separately."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/system/test_kill.py"]
    environ = os.environ | {"TRIALS": str(size)}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    wrong = [] if done.returncode == 0 else [done.stdout[-3000:]]
    return Figures(size + size // 2, wrong, f"{size} x kill -9, {size // 2} x SIGTERM, during an answer")


FUZZ = "Input validation: unusual requests get a documented error, never a 500"
PROOFS = (
    Proof("authz", "Access control: every route x role x CSRF token x origin", "cells", authz.prove, 1_600, ALL),
    Proof("attacks", "Same-origin protection: attacks by other pages in Chromium", "attacks", attacks.prove, 12, ALL),
    Proof("races", "Atomicity: of 50 simultaneous requests, one succeeds", "races", races.prove, 1, 5),
    Proof("timing", "No user enumeration: a login takes as long for unknown names", "logins", timing.prove, 16, 250),
    Proof("secrets", "Confidentiality: secrets and private data do not leak", "searches", secrets.prove, 1, 1),
    Proof("fuzz", f"{FUZZ} (hypothesis)", "requests", fuzz.prove, 250, 10_500),
    Proof("schemathesis", f"{FUZZ} (schemathesis)", "requests", fuzz.by_schemathesis, 0, 11_500),
    Proof("model", "Correctness: the API behaves like a simple model of it", "steps", model.prove, 125, 2_500),
    Proof(
        "quotations", "Truthfulness: no altered quotation counts as found", "quotations", quotations.prove, 500, 5_000
    ),
    Proof(
        "simulation", "Concurrency: the hub keeps its promises in any order", "schedules", simulation.prove, 200, 10_000
    ),
    Proof("kills", "Durability: acknowledged data survives a killed process", "trials", kills, 0, 200),
    Proof("full", "Durability: a full disk loses no acknowledged data", "places", storage.full, 12, ALL),
    Proof("damaged", "Recovery: a damaged database is restored from its backup", "files", storage.damaged, 8, 50),
    Proof("migration", "Atomicity: a killed migration is complete or undone", "kills", storage.migration, 8, ALL),
    Proof("choice", "Documents: the chosen pages have the one that answers", "questions", choice.prove, 150, 150),
    Proof("soak", "Stability: no leaks under load and faults (`make soak`: 10 min)", "requests", soak.prove, 3, 60),
    Proof("starvation", "Availability: one user cannot block others", "responses", starvation.prove, 12, 180),
    Proof(
        "documents",
        "Availability: hostile documents stop neither reading nor streams",
        "checks",
        documents.prove,
        24,
        ALL,
    ),
    Proof("mutants", "Test coverage: tests fail when a check is removed", "mutants", mutants.prove, 0, ALL),
)
