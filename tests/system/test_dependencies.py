"""The lock files in requirements/ agree with pyproject.toml, and the audit fails when it must."""

import importlib.metadata
import json
import re
import subprocess
import tomllib
from pathlib import Path

import fireside
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from .. import audit

ROOT = Path(fireside.__file__).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
RANGES = {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
EXTRAS = {"base": [], "run": ["embedded"], "test": ["embedded", "test"], "dev": ["embedded", "test", "dev"]}


def locked(name: str) -> dict[str, str]:
    """Return the packages of a lock file that this system needs, with their versions."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text("utf-8")
    pinned = [Requirement(line) for line in re.findall(r"^(\w.*) \\$", text, re.MULTILINE)]
    return {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in pinned if is_needed(pin)}


def is_needed(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


def needs(package: str) -> dict[str, Requirement]:
    """Return what an installed package depends on, without its extras."""
    requirements = map(Requirement, importlib.metadata.requires(package) or [])
    return {canonicalize_name(requirement.name): requirement for requirement in requirements if is_needed(requirement)}


@pytest.mark.parametrize("name", EXTRAS)
def test_a_lock_file_satisfies_pyproject(name: str) -> None:
    versions = locked(name)
    for extra in ["", *EXTRAS[name]]:
        for requirement in map(Requirement, RANGES[extra]):
            version = versions.get(canonicalize_name(requirement.name), "0")
            assert version in requirement.specifier, f"{name}.txt has not {requirement}. Run: make lock"


def test_a_lock_file_has_what_its_packages_need() -> None:
    """pip installs them with --no-deps."""
    versions = locked("test")
    for package in versions:
        for name, requirement in needs(package).items():
            assert versions.get(name, "0") in requirement.specifier, f"{package} needs {requirement}"


def test_the_lock_files_agree_and_hold_a_hash_of_each_package_and_no_address() -> None:
    assert locked("base").items() <= locked("run").items() <= locked("test").items() <= locked("dev").items()
    for file in (ROOT / "requirements").glob("*.txt"):
        text = file.read_text("utf-8")
        for package in re.split(r"^(?=\w)", text, flags=re.MULTILINE)[1:]:
            assert re.search(r"\s--hash=sha256:[0-9a-f]{64}\b", package), package
        assert "://" not in text and "index" not in text


CHECKED = {"name": "httpx", "version": "0.28.1", "vulns": []}
VULNERABLE = {"name": "h11", "version": "0.14.0", "vulns": [{"id": "CVE-2025-43859", "fix_versions": ["0.16.0"]}]}
SKIPPED = {"name": "anyio", "skip_reason": "anyio was not found"}


def test_the_audit_fails_for_a_vulnerable_or_unchecked_package() -> None:
    assert audit.problems({"dependencies": [CHECKED]}) == []
    assert audit.problems({"dependencies": [CHECKED, VULNERABLE, SKIPPED]}) == [
        "not checked: anyio was not found",
        "h11 0.14.0: CVE-2025-43859, fixed in 0.16.0",
    ]
    assert audit.problems({"dependencies": []}) == ["pip-audit checked no package."]


@pytest.mark.long
def test_the_sbom_lists_the_packages_of_the_base_install_with_their_versions() -> None:
    subprocess.run(["make", "sbom"], cwd=ROOT, check=True, timeout=120)
    sbom = json.loads((ROOT / "dist" / "fireside.cdx.json").read_text("utf-8"))
    found = {canonicalize_name(component["name"]): component["version"] for component in sbom["components"]}
    names = {"fireside"}
    while not names.issuperset(below := {name for package in names for name in needs(package)}):
        names |= below
    assert found == {name: locked("run")[name] for name in names - {"fireside"}}
    assert len(found) <= 30, "the base install stays small"
