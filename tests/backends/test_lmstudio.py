import json
import sys
from pathlib import Path

import pytest
from fireside.backends import lmstudio
from fireside.backends.engine import Engine
from fireside.config import load
from fireside.errors import ProviderFailed
from fireside.providers import Providers

from ..live import Running, code, good
from ..upstream import Upstream


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where LM Studio keeps its files, for this test."""
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    (tmp_path / ".lmstudio" / ".internal").mkdir(parents=True)
    return tmp_path / ".lmstudio"


def set_port(home: Path, port: object) -> None:
    (home / ".internal" / "http-server-config.json").write_text(json.dumps({"port": port}))


def install_lms(home: Path, script: str) -> None:
    lms = home / "bin" / "lms"
    lms.parent.mkdir()
    lms.write_text(f"#!/bin/sh\n{script}\n")
    lms.chmod(0o700)


@pytest.mark.parametrize("port", [None, "1235", True, 0, 65536, -1, [1]])
def test_a_port_that_makes_no_sense_is_the_usual_one(home: Path, port: object) -> None:
    set_port(home, port)
    assert lmstudio.server_url() == "http://127.0.0.1:1234"


async def test_a_changed_port_is_followed_without_a_restart(home: Path, tmp_path: Path) -> None:
    config = load({"data_dir": str(tmp_path)}, {})
    providers = Providers(config, Engine(config))
    with Upstream() as first:
        set_port(home, int(first.url.rpartition(":")[2]))
        assert await providers.models("lmstudio")
    with Upstream() as second:
        set_port(home, int(second.url.rpartition(":")[2]))
        assert await providers.models("lmstudio")
        assert second.requests
    await providers.aclose()


async def test_a_url_that_was_set_is_asked_wherever_lm_studio_listens(home: Path, tmp_path: Path) -> None:
    with Upstream() as upstream:
        set_port(home, 9)
        config = load({"data_dir": str(tmp_path)}, {"FIRESIDE_LMSTUDIO_URL": upstream.url})
        providers = Providers(config, Engine(config))
        assert await providers.models("lmstudio")
        await providers.aclose()


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for lms is a shell script")
async def test_an_administrator_can_start_lm_studio_from_the_page(home: Path, tmp_path: Path) -> None:
    set_port(home, 9)
    install_lms(home, f'echo "$@" > {tmp_path}/said')
    async with Running(tmp_path / "data") as running:
        ann = await running.first()
        entry = next(entry for entry in good(await ann.get("/providers")) if entry["provider_id"] == "lmstudio")
        assert (entry["online"], entry["can_start"]) == (False, True)
        assert good(await ann.post("/providers/lmstudio/start")) == {"message": "Server started"}
        assert (tmp_path / "said").read_text() == "server start\n"
        bob = await running.join(ann, "bob")
        assert code(await bob.post("/providers/lmstudio/start")) == (403, "FORBIDDEN")


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for lms is a shell script")
async def test_why_lm_studio_did_not_start_is_said(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ProviderFailed, match="was not found"):
        await lmstudio.start_server()
    install_lms(home, "echo no display; exit 3")
    with pytest.raises(ProviderFailed, match="did not start: no display"):
        await lmstudio.start_server()
