"""The documentation agrees with the code."""

import asyncio
import json
import re
import tomllib
from dataclasses import fields
from pathlib import Path

import fireside
import pytest
from fireside import config, errors
from fireside.config import Config, Provider
from fireside.server import ROUTES

from ..live import PASSWORD, PATIENCE, Person, Running, parse_event, text
from .test_imports import FILES, FLOORS

ROOT = Path(fireside.__file__).parent
CODE = re.compile(r"\b[A-Z]+(?:_[A-Z]+)+\b")


def read(name: str) -> str:
    return (ROOT / "docs" / name).read_text("utf-8")


def rows(markdown: str, heading: str) -> list[list[str]]:
    """Return the cells of the table whose first column has this heading."""
    lines = iter(markdown.splitlines())
    next(line for line in lines if line.startswith(f"| {heading} |"))
    next(lines)
    table = []
    for line in lines:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    return table


# ---- docs/api.md


def test_api_has_a_heading_for_each_route() -> None:
    headings = re.findall(r"^### ([A-Z]+ /\S*)$", read("api.md"), re.MULTILINE)
    assert len(headings) == len(set(headings))
    assert set(headings) == {route.name for route in ROUTES}


def test_api_lists_the_error_codes() -> None:
    sources = "".join(file.read_text("utf-8") for file in FILES)
    things = re.findall(r'NotFound\("(\w+)"\)', sources)
    providers = set(CODE.findall(errors.ProviderFailed.__doc__ or ""))
    assert set(re.findall(r'ProviderFailed\(\s*"(\w+)"', sources)) <= providers
    own = set(re.findall(r'^    code = "(\w+)"', (ROOT / "errors.py").read_text("utf-8"), re.MULTILINE))
    raised = own | providers | {f"{thing.upper()}_NOT_FOUND" for thing in things}
    api = read("api.md")
    [event_codes] = re.findall(r"^`error` codes: (.*?)\n\n", api, re.MULTILINE | re.DOTALL)
    table = " ".join(codes for _, codes in rows(api, "status"))
    assert set(re.findall(r"`([A-Z_]+)`", table + event_codes)) == raised


def test_examples_of_the_api_are_json() -> None:
    examples = re.findall(r"```json\n(.*?)```", read("api.md"), re.DOTALL)
    assert len(examples) >= 3
    for example in examples:
        json.loads(example.replace("{...}", "{}"))


async def test_quick_start_of_the_api_gets_an_answer(running: Running, ann: Person, tmp_path: Path) -> None:
    [commands] = re.findall(r"```sh\n(.*?)```", read("api.md"), re.DOTALL)
    commands = commands.replace("http://127.0.0.1:8000", running.url).replace("correct horse battery", PASSWORD)
    shell = await asyncio.create_subprocess_exec(
        "bash", "-euo", "pipefail", "-c", commands, cwd=tmp_path, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await asyncio.wait_for(shell.communicate(), PATIENCE)
    assert shell.returncode == 0
    stream, messages = output[: output.index(b"[{")], json.loads(output[output.index(b"[{") :])
    events = [parse_event(block) for block in stream.strip().split(b"\n\n")]
    assert events[-1].data["status"] == "ok"
    assert [message["content"] for message in messages] == ["Why is the sky blue?", text(events)]


# ---- docs/configuration.md


def test_settings_are_documented_with_variable_and_default() -> None:
    settings = [setting for setting in fields(Config) if setting.name != "providers"]
    table = rows(read("configuration.md"), "in `config.toml`")
    assert [row[1] for row in table] == [f"`FIRESIDE_{setting.name.upper()}`" for setting in settings]
    for row, setting in zip(table, settings, strict=True):
        key, _, default, meaning = row
        assert meaning, setting.name
        if setting.name == "data_dir":
            continue
        assert key == f"`{setting.name}`"
        if setting.default is None:
            assert default == "none"
        else:
            value = tomllib.loads(f"value = {default.strip('`')}")["value"]
            assert value == (list(setting.default) if isinstance(setting.default, tuple) else setting.default)


def test_documents_name_only_existing_variables() -> None:
    variables = {f"FIRESIDE_{setting.name.upper()}" for setting in fields(Config) if setting.name != "providers"}
    variables |= {"FIRESIDE_LMSTUDIO_URL", "FIRESIDE_LMSTUDIO_API_KEY", "FIRESIDE_LMSTUDIO_CONCURRENCY"}
    for file in (ROOT / "docs").glob("*.md"):
        assert set(re.findall(r"FIRESIDE_\w+", file.read_text("utf-8"))) <= variables, file.name
    assert variables <= set(re.findall(r"FIRESIDE_\w+", read("configuration.md")))


def test_keys_of_a_provider_are_documented() -> None:
    table = rows(read("configuration.md"), "key")
    assert {row[0] for row in table} == {f"`{key.name}`" for key in fields(Provider) if key.name != "source"}
    documented = {row[0].strip("`"): row[1] for row in table}
    assert documented["concurrency"] == f"`{Provider.concurrency}`"


def test_example_configuration_is_valid(tmp_path: Path) -> None:
    [example] = re.findall(r"```toml\n(.*?)```", read("configuration.md"), re.DOTALL)
    (tmp_path / "config.toml").write_text(example, "utf-8")
    loaded = config.load({"data_dir": str(tmp_path)}, {})
    assert loaded.host == "0.0.0.0" and loaded.session_idle_days == 7
    big = next(provider for provider in loaded.providers if provider.id == "big")
    assert (big.kind, big.concurrency) == ("openai", 16)
    assert next(provider for provider in loaded.providers if provider.id == "lmstudio").url == "http://127.0.0.1:41343"


# ---- docs/architecture.md


def test_architecture_is_short_and_shows_the_real_floors_and_files() -> None:
    assert len(read("architecture.md").splitlines()) <= 40
    shown = re.findall(r"^(\d)  (\w+)(?:\.py|/) ", read("architecture.md"), re.MULTILINE)
    assert set(shown) == {(str(floor), name) for floor, names in enumerate(FLOORS) for name in names}
    for name in re.findall(r"`([\w/]+\.(?:py|md|sql)|[\w]+/)`", read("architecture.md")):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize(
    "file", sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("docs/**/*.md")), ids=lambda file: file.name
)
def test_links_between_documents_are_valid(file: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[\w-]*)?\)", file.read_text("utf-8")):
        assert (file.parent / target).exists(), target
