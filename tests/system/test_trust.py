"""The proofs of tests/trust: in the size of CI with `make long`, in a third of it with `make test`. `make trust` runs them in that of
a release."""

import sys

import pytest
from fireside.server import ROUTES
from fireside.web import openapi

from ..trials import TRIALS, WHOLE
from ..trust import mutants
from ..trust.proofs import PROOFS, Proof


@pytest.mark.skipif(sys.platform != "linux", reason="uses addresses, limits and /proc as Linux has them")
@pytest.mark.parametrize(
    "proof",
    [
        pytest.param(proof, id=proof.name, marks=[pytest.mark.costly] if proof.name == "timing" else [])
        for proof in PROOFS
        if proof.ci
    ],
)
def test_it_holds(proof: Proof) -> None:
    less = TRIALS < WHOLE and proof.name not in ("authz", "timing", "soak")  # which tell nothing in less
    figures = proof.run(max(1, proof.ci // 3) if less else proof.ci)
    assert figures.cases and not figures.wrong, "\n".join(figures.wrong[:10])


def test_every_guard_to_mutate_exists_and_has_mutants() -> None:
    assert {mutant.guard for mutant in mutants.mutants()} == {*mutants.GUARDS}


def test_the_description_has_every_route_and_no_other() -> None:
    described = {(path, method) for path, methods in openapi.document(ROUTES)["paths"].items() for method in methods}
    assert described == {(route.path, route.name.split()[0].lower()) for route in ROUTES}
