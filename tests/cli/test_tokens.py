"""`fireside token`, with the running service and without one."""

import re
from pathlib import Path

import httpx

from ..processes import run
from .test_commands import serving


def token(data_dir: Path, *arguments: str, fails: str = "") -> list[str]:
    done = run("token", *arguments, "--data-dir", str(data_dir))
    assert (done.returncode, done.stderr.strip() if fails else "") == ((1, f"fireside: {fails}") if fails else (0, ""))
    return done.stdout.splitlines()


def test_token_is_created_listed_and_revoked(tmp_path: Path) -> None:
    with serving(tmp_path) as service, service.first():
        text, address = token(tmp_path, "create", "Zed", "--no-record", "--days", "30")
        assert re.fullmatch(r"fs_[0-9a-f]{72}", text)
        assert address.endswith(f" {service.url}/v1")
        headers = {"Authorization": f"Bearer {text}"}
        assert httpx.get(f"{service.url}/v1/models", headers=headers, trust_env=False).status_code == 200
    assert token(tmp_path, "create", "Zed")[1].endswith(" http://127.0.0.1:8000/v1"), "where it will listen"
    second, first = token(tmp_path, "list", "--user", "ann")
    used = r"last used \d{4}-\d\d-\d\d \d\d:\d\d"
    assert re.fullmatch(rf"   1  Zed: 0 requests, {used}, expires \d{{4}}-\d\d-\d\d, not recorded", first)
    assert second == "   2  Zed: 0 requests, not used yet"
    token(tmp_path, "revoke", "Zed", fails="Several tokens are named Zed. Use a number from: fireside token list")
    assert token(tmp_path, "revoke", "1") == ["Revoked Zed."]
    assert token(tmp_path, "revoke", "Zed") == ["Revoked Zed."]
    token(tmp_path, "revoke", "1", fails="There is no token 1. Use a number from: fireside token list")
    token(tmp_path, "create", fails="Name the token: fireside token create NAME")
    token(tmp_path, "create", "x", "--days", "0", fails="A name has at most 100 characters; --days is from 1 to 3,650.")
    token(tmp_path, "list", "--user", "nobody", fails="There is no such user.")
    assert token(tmp_path, "list") == []
