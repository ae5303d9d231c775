"""Build and check a release: `make release`, or python -m tests.release. It fills dist/ and uploads nothing.

Everything is built twice, from two exports of the last commit, and both must have the same bytes. The wheel and the source
distribution then run in empty environments, and `tests.rehearsal` installs, upgrades and removes them as a user does.
"""

import gzip
import hashlib
import io
import re
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

import fireside

from . import rehearsal
from .rehearsal import ROOT, run

DIST = ROOT / "dist"
UV = Path(sys.executable).with_name("uv")


def check_tree() -> None:
    """Exit unless everything is committed and the changelog has a dated section for this version."""
    if run("git", "status", "--porcelain"):
        raise SystemExit("There are changes that are not committed. A release is built from the last commit.")
    heading = rf"^## {re.escape(fireside.__version__)} \(\d{{4}}-\d\d-\d\d\)$"
    if not re.search(heading, (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE):
        raise SystemExit(f"CHANGELOG.md has no section '## {fireside.__version__} (YYYY-MM-DD)'.")


def build(folder: Path) -> dict[str, bytes]:
    """Build the last commit in this folder. Return the files by their names."""
    rehearsal.export("HEAD", folder)
    time = run("git", "log", "-1", "--format=%ct").strip()
    run(sys.executable, "-m", "build", "--no-isolation", folder, SOURCE_DATE_EPOCH=time)
    built = {file.name: file.read_bytes() for file in (folder / "dist").iterdir()}
    return {name: _normalized(data, int(time)) if name.endswith(".gz") else data for name, data in built.items()}


def _normalized(sdist: bytes, time: int) -> bytes:
    """Return a source distribution with sorted members, one time and no owner: setuptools keeps those of the files on disk."""
    plain = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(sdist)) as old,
        tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for member in sorted(old.getmembers(), key=lambda member: member.name):
            member.mtime, member.uid, member.gid, member.uname, member.gname = time, 0, 0, "", ""
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            member.pax_headers = {}
            new.addfile(member, old.extractfile(member) if member.isfile() else None)
    return gzip.compress(plain.getvalue(), mtime=time)


def try_empty(package: Path, folder: Path) -> None:
    """Install a distribution with the locked dependencies in an empty environment and run it."""
    run(UV, "venv", "--quiet", folder)
    pip = (UV, "pip", "install", "--quiet", "--python", folder)
    run(*pip, "--require-hashes", "--no-deps", "-r", ROOT / "requirements" / "base.txt")
    run(*pip, "--no-deps", package)
    program = rehearsal.program(folder, "fireside")
    if run(program, "--version") != f"fireside {fireside.__version__}\n":
        raise SystemExit(f"{package.name} is not version {fireside.__version__}.")
    with rehearsal.serving(program, folder / "data") as client:
        client.get("/").raise_for_status()
        client.get("/static/app.js").raise_for_status()


def main() -> None:
    check_tree()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        built, again = build(folder / "first"), build(folder / "a second time")
        for name in built:
            if built[name] != again.get(name):
                raise SystemExit(f"{name} had other bytes when it was built again.")
        shutil.rmtree(DIST, ignore_errors=True)
        DIST.mkdir()
        for name, data in built.items():
            (DIST / name).write_bytes(data)
        print("built twice with the same bytes:", *sorted(built))
        for name in sorted(built):
            try_empty(DIST / name, folder / f"environment of {name}")
            print("installed in an empty environment and started:", name)
        run("make", "sbom")
        run(UV, "publish", "--dry-run", "--token", "none", *(DIST / name for name in built))
        print("dry run of the upload: accepted")
        files = sorted(file for file in DIST.iterdir() if file.is_file())
        sums = "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files)
        (DIST / "SHA256SUMS").write_text(sums, "utf-8")
        [wheel] = DIST.glob("*.whl")
        rehearsal.rehearse(wheel, folder / "rehearsal")
        rehearsal.rehearse_landings(folder / "landings")
    print(f"\ndist/SHA256SUMS:\n{sums}")


if __name__ == "__main__":
    main()
