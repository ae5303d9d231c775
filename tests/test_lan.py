"""What --lan says. The tests listen on loopback only, so here the words are asked for, and the invite in them is used."""

import dataclasses
import re
from pathlib import Path

import pytest
from fireside import __main__ as command

from .live import PASSWORD, Running, good


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
        body = {"invite_code": found[1], "username": "bob", "password": PASSWORD}
        assert good(await running.anybody().post("/auth/register", json=body))["user"]["role"] == "user"
        assert (await running.anybody().post("/auth/register", json=body)).status_code == 400


async def test_before_the_first_account_there_is_nobody_to_invite_anybody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with Running(tmp_path) as running:
        await command._say_lan(dataclasses.replace(running.config, lan=True), running.url, running.state)
        assert "invite" not in capsys.readouterr().out
