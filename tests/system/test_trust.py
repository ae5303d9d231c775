"""The proofs of tests/trust, in the size of CI."""

import sys

import pytest
from fireside.server import ROUTES
from fireside.web import openapi

from ..trust import mutants
from ..trust.proofs import PROOFS, Proof

MARKS = {"timing": [pytest.mark.costly]}


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="uses loopback addresses, limits and /proc of Linux")
@pytest.mark.parametrize(
    "proof", [pytest.param(proof, id=proof.name, marks=MARKS.get(proof.name, [])) for proof in PROOFS if proof.ci]
)
def test_it_holds(proof: Proof) -> None:
    figures = proof.run(proof.ci)
    assert figures.cases and not figures.wrong, "\n".join(figures.wrong[:10])


def test_every_guard_to_mutate_exists_and_has_mutants() -> None:
    assert {mutant.guard for mutant in mutants.mutants()} == {*mutants.GUARDS}


def test_openapi_document_has_every_route_and_no_other() -> None:
    described = {
        f"{method.upper()} {path}" for path, methods in openapi.document(ROUTES)["paths"].items() for method in methods
    }
    assert described == {route.name for route in ROUTES}
