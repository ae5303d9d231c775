"""What `fireside --lan` prints. The tests listen on loopback only, so they call the function that prints, and use its invite."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from fireside.cli import serve

from ..cli.test_commands import serving
from ..live import PASSWORD, Running, good


async def test_lan_prints_the_address_and_an_invite_for_one_person(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with Running(tmp_path) as running:
        settings = dataclasses.replace(running.config, lan=True, host="0.0.0.0")

        async def printed() -> str:
            capsys.readouterr()
            await serve.print_network_address(settings, running.url, running.state)
            return capsys.readouterr().out

        assert "invite" not in await printed(), "there is no account yet"
        await running.first()
        output = await printed()
        port = running.url.rpartition(":")[2]
        assert re.search(rf"open http://[\w.-]+:{port}\n", output)
        assert "Only people with an account" in output and "not encrypted" in output and "allow" in output
        found = re.search(r"/#invite=([\w-]+)$", output.strip())
        assert found is not None
        assert found[0] in await printed(), "the open invite is printed again"
        body = {"invite_code": found[1], "username": "bob", "password": PASSWORD}
        assert good(await running.anybody().post("/auth/register", json=body))["user"]["role"] == "user"
        assert (await running.anybody().post("/auth/register", json=body)).status_code == 400
        output = await printed()
        assert "#invite=" in output and found[1] not in output


def test_invite_leads_to_the_public_url_behind_a_proxy(tmp_path: Path) -> None:
    with serving(tmp_path) as service, service.first():
        pass
    public = "https://chat.example.org"
    # The system resolves 127.1 to loopback. To Fireside it is a host name, which may be that of any computer.
    arguments = ("--lan", "--host", "127.1", "--port", "0")
    with serving(tmp_path, *arguments, public_url=public, until="#invite=") as service:
        url = json.loads((tmp_path / "service.json").read_text("utf-8"))["url"]
    assert service.output[0] == f"Fireside is at {public}"
    assert f"Other devices on this network can open {url}" in service.output
    assert f": {public}/#invite=" in service.output[-1]
