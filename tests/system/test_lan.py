"""What --lan says. The tests listen on loopback only, so here the words are asked for, and the invite in them is used."""

import dataclasses
import json
import re
import sys
from pathlib import Path

import pytest
from fireside import __main__ as command

from ..cli.test_commands import serving
from ..live import PASSWORD, Running, good


async def test_lan_says_where_it_is_what_it_means_and_lets_one_person_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with Running(tmp_path) as running:
        await running.first()
        capsys.readouterr()
        settings = dataclasses.replace(running.config, lan=True, host="0.0.0.0")
        await command._say_lan(settings, running.url, running.state)
        said = capsys.readouterr().out
        port = running.url.rpartition(":")[2]
        assert re.search(rf"On this network it is at http://[\w.-]+:{port}\n", said)
        assert "only who has an account gets further" in said and "not encrypted" in said and "allow" in said
        found = re.search(r"/#invite=([\w-]+)$", said.strip())
        assert found is not None
        await command._say_lan(settings, running.url, running.state)
        assert found[0] in capsys.readouterr().out, "the invite is still open, so it is printed again"
        body = {"invite_code": found[1], "username": "bob", "password": PASSWORD}
        assert good(await running.anybody().post("/auth/register", json=body))["user"]["role"] == "user"
        assert (await running.anybody().post("/auth/register", json=body)).status_code == 400
        await command._say_lan(settings, running.url, running.state)
        assert "#invite=" in (again := capsys.readouterr().out) and found[1] not in again


def test_behind_a_proxy_it_says_where_it_listens_and_invites_to_the_proxy(tmp_path: Path) -> None:
    with serving(tmp_path) as service, service.first():
        pass
    public = "https://chat.example.org"
    # 127.1 is loopback to the system, and to Fireside a name, which may be any computer's.
    arguments = ("--lan", "--host", "127.1", "--port", "0")
    with serving(tmp_path, *arguments, public_url=public, until="#invite=") as service:
        listens = json.loads((tmp_path / "service.json").read_text("utf-8"))["url"]
    assert service.said[0] == f"Fireside is at {public}"
    assert f"On this network it is at {listens}" in service.said
    if sys.platform == "linux":
        assert any(line.endswith(f"sudo ufw allow {listens.rpartition(':')[2]}/tcp") for line in service.said)
    assert service.said[-1].startswith(f"Invite one person (works once, for a day at most): {public}/#invite=")


async def test_before_the_first_account_there_is_nobody_to_invite_anybody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with Running(tmp_path) as running:
        await command._say_lan(dataclasses.replace(running.config, lan=True), running.url, running.state)
        assert "invite" not in capsys.readouterr().out
