"""Check locked packages for known vulnerabilities with pip-audit: `make audit`, or python -m tests.audit FILE..."""

import json
import subprocess
import sys
from typing import Any


def problems(report: dict[str, Any]) -> list[str]:
    """Return a line for each vulnerability in pip-audit's JSON, and for each package that it did not check.

    pip-audit itself says "No known vulnerabilities found" when it skipped every package."""
    packages = report["dependencies"]
    if not packages:
        return ["pip-audit checked no package."]
    lines = [f"not checked: {package['skip_reason']}" for package in packages if "skip_reason" in package]
    for package in packages:
        for found in package.get("vulns", []):
            fixed = ", ".join(found["fix_versions"]) or "no version yet"
            lines.append(f"{package['name']} {package['version']}: {found['id']}, fixed in {fixed}")
    return lines


def main(files: list[str]) -> None:
    options = ["--strict", "--disable-pip", "--require-hashes", "--format", "json", "--progress-spinner", "off"]
    command = [sys.executable, "-m", "pip_audit", *options, *(f"--requirement={file}" for file in files)]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        report = json.loads(done.stdout)
    except ValueError:  # --strict ends without a report at the first package that cannot be checked
        report = {"dependencies": [{"skip_reason": done.stderr.strip() or f"pip-audit ended with {done.returncode}"}]}
    found = problems(report)
    if found:
        advice = "Packages that were not checked may be vulnerable: repeat this where pip-audit reaches its service."
        raise SystemExit("\n".join(["The audit failed.", *found, advice]))
    print(f"{len(report['dependencies'])} packages checked: no known vulnerabilities.")


if __name__ == "__main__":
    main(sys.argv[1:])
