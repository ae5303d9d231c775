"""All the proofs, and their sizes: that of CI, which keeps within a minute or so, and that of a release."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import Figures, attacks, authz, fuzz, model, mutants, races, secrets, soak, starvation, storage, timing

ROOT = Path(__file__).parents[2]
ALL = 10**6  # more than there are


@dataclass(frozen=True)
class Proof:
    name: str
    claim: str
    unit: str
    run: Callable[[int], Figures]
    ci: int  # 0: not in CI
    release: int


def kills(size: int) -> Figures:
    """tests/system/test_kill.py, which CI runs by itself."""
    environ = os.environ | {"TRIALS": str(size)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/system/test_kill.py"]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    wrong = [] if done.returncode == 0 else [done.stdout[-3000:]]
    return Figures(size + size // 2, wrong, f"{size} times kill -9, {size // 2} times SIGTERM, in mid-answer")


PROOFS = (
    Proof("authz", "Nobody does what is not theirs to do", "cells", authz.prove, 700, ALL),
    Proof("attacks", "Pages of others do and read nothing, in a real Chromium", "attacks", attacks.prove, 12, ALL),
    Proof("races", "Of fifty at once one wins", "races", races.prove, 1, 5),
    Proof("timing", "A login takes as long for a name that is not there", "logins", timing.prove, 16, 250),
    Proof("secrets", "What is secret or private is found nowhere else", "looks", secrets.prove, 1, 1),
    Proof("fuzz", "Odd requests get a clear error, and nothing else (hypothesis)", "requests", fuzz.prove, 250, 10_500),
    Proof(
        "schemathesis",
        "Odd requests get a clear error, and nothing else (schemathesis)",
        "requests",
        fuzz.by_schemathesis,
        0,
        11_500,
    ),
    Proof("model", "The API does what a dictionary would", "steps", model.prove, 125, 2_500),
    Proof("kills", "What was acknowledged survives a kill", "trials", kills, 0, 200),
    Proof("full", "A full disk costs nothing that was acknowledged", "places", storage.full, 12, ALL),
    Proof("damaged", "A damaged file is refused or told, and restored", "files", storage.damaged, 8, 50),
    Proof("migration", "A migration is done or not, wherever it is killed", "kills", storage.migration, 8, ALL),
    Proof("soak", "Nothing grows, whatever happens (`make soak`: ten minutes)", "requests", soak.prove, 3, 60),
    Proof("starvation", "One person cannot stop the others", "requests of a second user", starvation.prove, 12, 180),
    Proof("mutants", "A guard that is taken away is missed", "mutants", mutants.prove, 0, ALL),
)
