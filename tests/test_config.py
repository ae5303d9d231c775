"""Settings: sources, valid values, and the error line for a wrong value."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from fireside import config
from fireside.config import Config, Provider
from fireside.errors import ConfigError
from fireside.server import Server
from starlette.applications import Starlette
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware


def load(folder: Path, toml: str = "", flags: Mapping[str, Any] = {}, **environ: str) -> Config:
    if toml:
        (folder / "config.toml").write_text(toml, "utf-8")
    return config.load({"data_dir": str(folder), **flags}, environ)


def refused(
    folder: Path, toml: str = "", flags: Mapping[str, Any] = {}, environ: Mapping[str, str] = {}, **more: str
) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, toml, flags, **environ, **more)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1000
    return message


def provider(loaded: Config, identity: str) -> Provider:
    return next(provider for provider in loaded.providers if provider.id == identity)


def test_every_setting_has_a_default(tmp_path: Path) -> None:
    loaded = load(tmp_path)
    assert (loaded.host, loaded.port, loaded.ping_seconds) == ("127.0.0.1", 8000, 15.0)
    assert loaded.database == tmp_path / "fireside.db"
    assert provider(loaded, "lmstudio") == Provider("lmstudio", "lmstudio", "LM Studio")
    assert config.load({}, {}).data_dir == config.default_data_dir()
    assert config.default_data_dir().is_absolute() and config.default_data_dir().name == "fireside"


def test_flags_override_environment_overrides_file_overrides_defaults(tmp_path: Path) -> None:
    toml = "port = 1001\nhost = '10.0.0.1'\nping_seconds = 3"
    loaded = load(tmp_path, toml, {"port": "3003"}, FIRESIDE_PORT="2002", FIRESIDE_HOST="10.0.0.2")
    assert (loaded.port, loaded.host, loaded.ping_seconds, loaded.backups) == (3003, "10.0.0.2", 3, 7)
    absent = load(tmp_path, toml, {"port": None, "open": False}, FIRESIDE_PORT="")
    assert (absent.port, absent.open) == (1001, False)


def test_data_directory_is_where_the_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "config.toml").write_text("port = 1001", "utf-8")
    for flag, variable in (("here", "/nowhere"), (None, "here")):
        loaded = config.load({"data_dir": flag}, {"FIRESIDE_DATA_DIR": variable})
        assert loaded.data_dir == tmp_path / "here" and loaded.port == 1001


# Setting, invalid value in config.toml, an invalid value in the environment ("" if the environment cannot express it).
WRONG: list[tuple[str, Any, str]] = [
    ("port", 65536, "65536"),
    ("port", -1, "-1"),
    ("port", True, "true"),
    ("port", 8000.5, "x"),
    ("host", "  ", "  "),
    ("host", 1, ""),
    ("open", 1, "maybe"),
    ("public_url", "chat.example.org", "chat.example.org"),
    ("public_url", "ftp://example.org", "ftp://example.org"),
    ("public_url", "https://me:secret@example.org", "https://me:secret@example.org"),
    ("public_url", "https://example.org?x=1", "https://example.org?x=1"),
    ("public_url", "http://[::1", "http://[::1"),
    ("public_url", "http://example.org:99999", "http://example.org:0"),
    ("public_url", "http://exam\\nple.org", "http://exam\nple.org"),
    ("public_url", "https://example.org/\\u007f", "https://exam ple.org"),
    ("public_url", "https://*.example.org", "https://*.example.org"),
    ("allowed_hosts", ["http://example.org"], "http://example.org"),
    ("allowed_hosts", ["example.org:8000"], "example.org:8000"),
    ("allowed_hosts", ["*"], "*"),
    ("allowed_hosts", [1], "a,,b"),
    ("allowed_hosts", {"a": 1}, "a b"),
    ("allowed_origins", ["https://example.org/path"], "https://example.org/path"),
    ("allowed_origins", ["*"], "null"),
    ("trusted_proxies", ["nginx"], "nginx"),
    ("trusted_proxies", ["*"], "127.0.0.1:80"),
    ("trusted_proxies", ["172.18.0.0/33"], "172.18.0.0/33"),
    ("bootstrap_token", "short", "é" * 20),
    ("bootstrap_token", "x" * 201, "x" * 201),
    ("ping_seconds", 0, "0"),
    ("ping_seconds", float("nan"), "nan"),
    ("total_seconds", float("inf"), "1e999"),
    ("total_seconds", 10**400, "1" + "0" * 400),
    ("engine_threads", 10**400, "1" + "0" * 400),
    ("backups", 1.0, "1.0"),
]


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return str(value).lower() if isinstance(value, bool | int | float) else f'"{value}"'


@pytest.mark.parametrize(("name", "value", "text"), WRONG, ids=lambda value: str(value)[:30])
def test_invalid_value_is_an_error_that_names_its_source(tmp_path: Path, name: str, value: Any, text: str) -> None:
    message = refused(tmp_path, f"{name} = {toml(value)}")
    assert message.startswith(f"{tmp_path / 'config.toml'}: {name}: must be ")
    (tmp_path / "config.toml").unlink()
    if text:
        variable = f"FIRESIDE_{name.upper()}"
        assert refused(tmp_path, environ={variable: text}).startswith(f"{variable}: must be ")
        assert refused(tmp_path, flags={name: text}).startswith(f"--{name.replace('_', '-')}: must be ")


def test_invalid_value_is_an_error_even_if_it_is_overridden(tmp_path: Path) -> None:
    assert "port" in refused(tmp_path, "port = 'x'", {"port": "8000"})


def test_variables_hold_booleans_as_words_lists_separated_by_commas_and_paths_with_a_tilde(tmp_path: Path) -> None:
    for text, value in (("1", True), ("TRUE", True), ("yes", True), ("on", True), ("0", False), ("No", False)):
        assert load(tmp_path, FIRESIDE_OPEN=text).open is value
    assert load(tmp_path, FIRESIDE_ALLOWED_HOSTS="Chat.Example.org, [::2]").allowed_hosts == (
        "chat.example.org",
        "[::2]",
    )
    assert load(tmp_path, FIRESIDE_MODELS_DIR="~/models").models_dir == Path.home() / "models"


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("HTTPS://Chat.Example.org:443/", "https://chat.example.org"),
        ("http://Chat.Example.org:80", "http://chat.example.org"),
        ("http://chat.example.org:443", "http://chat.example.org:443"),
        ("https://Käse.example:8443", "https://xn--kse-qla.example:8443"),
        ("http://[FD00::7]:80", "http://[fd00::7]"),
    ],
)
def test_origin_is_stored_as_browsers_send_it(tmp_path: Path, written: str, sent: str) -> None:
    loaded = load(tmp_path, FIRESIDE_PUBLIC_URL=written, FIRESIDE_ALLOWED_ORIGINS=f"https://a.example,{written}")
    assert (loaded.public_url, loaded.allowed_origins) == (sent, ("https://a.example", sent))


@pytest.mark.parametrize(
    ("written", "trusted", "other"),
    [
        ("127.0.0.1", "127.0.0.1", "127.0.0.2"),
        ("127.0.0.1", "::ffff:127.0.0.1", "::ffff:127.0.0.2"),
        ("172.18.0.0/16", "::ffff:172.18.7.7", "::ffff:172.19.0.1"),
        ("::1", "0:0::1", "::2"),
        ("[::1]", "::1", "::2"),
        ("172.18.0.1/16", "172.18.7.7", "172.19.0.1"),
        ("FD00::/8", "fd12::7", "fe00::7"),
    ],
)
def test_uvicorn_trusts_exactly_the_trusted_proxies(tmp_path: Path, written: str, trusted: str, other: str) -> None:
    loaded = load(tmp_path, FIRESIDE_TRUSTED_PROXIES=f"10.0.0.1, {written}")
    settings = Server(Starlette(), loaded).config
    settings.load()
    outermost = settings.loaded_app
    assert isinstance(outermost, ProxyHeadersMiddleware)
    hosts = outermost.trusted_hosts
    assert "10.0.0.1" in hosts and trusted in hosts and other not in hosts


def test_unknown_name_is_an_error(tmp_path: Path) -> None:
    assert refused(tmp_path, FIRESIDE_LMSTUDIO_URI="x") == "FIRESIDE_LMSTUDIO_URI: unknown setting"
    assert refused(tmp_path, "prot = 8000").endswith("config.toml: prot: unknown setting")
    assert refused(tmp_path, "data_dir = 'x'").endswith("data_dir: unknown setting")


def test_file_that_is_not_readable_toml_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    places = {b"host = 'x'\nport = x\n": ", see line 2", b"\xff\xfe": "", b"port = ": "", b"port = 1" + b"0" * 5000: ""}
    for content, place in places.items():
        file.write_bytes(content)
        assert refused(tmp_path) == f"{file} is not valid TOML{place}"
    file.unlink()
    file.mkdir()
    assert "config.toml: cannot be read" in refused(tmp_path)


# ---- providers


def test_environment_overrides_the_entry_of_lmstudio(tmp_path: Path) -> None:
    toml = "[[providers]]\nid = 'lmstudio'\nurl = 'http://127.0.0.1:1'\nname = 'Mine'\nconcurrency = 2"
    assert provider(load(tmp_path, toml), "lmstudio").url == "http://127.0.0.1:1"
    variables = {"URL": "http://127.0.0.1:2/", "API_KEY": "key", "CONCURRENCY": "9"}
    environ = {f"FIRESIDE_LMSTUDIO_{name}": value for name, value in variables.items()}
    changed = config.load({"data_dir": str(tmp_path)}, environ)
    assert provider(changed, "lmstudio") == Provider(
        "lmstudio", "lmstudio", "Mine", "http://127.0.0.1:2", "key", 9, source="environment"
    )
    for name in ("FIRESIDE_LMSTUDIO_URL", "FIRESIDE_LMSTUDIO_CONCURRENCY"):
        assert refused(tmp_path, environ={name: "x"}).startswith(f"{name}: must be ")


def test_file_adds_servers(tmp_path: Path) -> None:
    loaded = load(tmp_path, "[[providers]]\nid = 'big'\nurl = 'http://10.0.0.1:8080/v1'\napi_key = 'k'")
    assert provider(loaded, "big") == Provider(
        "big", "openai", "big", "http://10.0.0.1:8080/v1", "k", 4, source="config.toml"
    )
    assert loaded.providers[0].id == "lmstudio"
    named = load(tmp_path, "[[providers]]\nid = 'big'\nurl = 'http://10.0.0.1'\nmodels = ['a', 'b/c']")
    assert provider(named, "big").models == ("a", "b/c")


def test_servers_of_the_page_are_read_unless_config_toml_has_the_same_id(tmp_path: Path) -> None:
    added = [
        {"id": "attic", "kind": "openai", "name": "Attic", "url": "http://10.0.0.2", "api_key": "k", "enabled": False},
        {"id": "big", "kind": "openai", "name": "Big", "url": "http://10.0.0.3"},
        {"id": "lmstudio", "kind": "lmstudio", "name": "Mine", "url": "http://10.0.0.4"},
    ]
    (tmp_path / "model-servers.json").write_text(json.dumps({"servers": added}), "utf-8")
    loaded = load(tmp_path, "[[providers]]\nid = 'big'\nurl = 'http://10.0.0.1'\nenabled = false")
    attic = Provider("attic", "openai", "Attic", "http://10.0.0.2", "k", enabled=False, source="page")
    assert provider(loaded, "attic") == attic
    assert (provider(loaded, "big").url, provider(loaded, "big").enabled) == ("http://10.0.0.1", False)
    assert (provider(loaded, "lmstudio").url, provider(loaded, "lmstudio").concurrency) == ("http://10.0.0.4", 4)
    for damaged in ("", "{", "[]", '{"servers": 7}', '{"servers": [7]}'):
        (tmp_path / "model-servers.json").write_text(damaged, "utf-8")
        assert "model-servers.json is damaged. Delete it" in refused(tmp_path)
    (tmp_path / "model-servers.json").write_text('{"servers": [{"id": "x", "url": "7"}]}', "utf-8")
    assert "model-servers.json: provider x: url: must be" in refused(tmp_path)


def test_engine_that_is_not_installed_is_left_out_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    assert [entry.id for entry in load(tmp_path).providers] == ["lmstudio"]
    assert capsys.readouterr().err == ""
    entry = "[[providers]]\nid = 'embedded'\nname = 'Mine'"
    assert [entry.id for entry in load(tmp_path, entry).providers] == ["lmstudio"]
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("Warning: ") and "provider embedded" in line and "fireside[embedded]" in line
    assert "concurrency" in refused(tmp_path, f"{entry}\nconcurrency = 0")


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ("name = 'x'", "providers[1].id"),
        ("id = 'Big'\nurl = 'http://x'", "providers[1].id"),
        ("id = 'a/b'\nurl = 'http://x'", "providers[1].id"),
        ("id = 'x'", "provider x: url"),
        ("id = 'x'\nurl = 'x'", "provider x: url"),
        ("id = 'x'\nurl = 'http://x'\nkind = 'ollama'", "provider x: kind"),
        ("id = 'x'\nkind = 'embedded'", "provider x: kind"),
        ("id = 'x'\nurl = 'http://x'\nconcurrency = 0", "provider x: concurrency"),
        ("id = 'embedded'\nconcurrency = 2", "provider embedded: concurrency"),
        ("id = 'x'\nurl = 'http://x'\nmodel = 'y'", "provider x: model"),
        ("id = 'x'\nurl = 'http://x'\nmodels = [1]", "provider x: models"),
        ("id = 'lmstudio'\nmodels = ['y']", "provider lmstudio: models"),
        ("id = 'lmstudio'\nttl = 0", "provider lmstudio: ttl"),
        ("id = 'x'\nurl = 'http://x'\nttl = 60", "provider x: ttl"),
    ],
)
def test_invalid_provider_is_an_error_that_names_it(tmp_path: Path, entry: str, named: str) -> None:
    assert f"config.toml: {named}: " in refused(tmp_path, f"[[providers]]\n{entry}")


def test_providers_are_tables(tmp_path: Path) -> None:
    for value in ("1", "['lmstudio']", "{id = 'x'}"):
        assert "config.toml: providers: " in refused(tmp_path, f"providers = {value}")


# ---- secrets


def test_secrets_are_not_in_errors_or_tracebacks(tmp_path: Path) -> None:
    assert "s3cret" not in refused(tmp_path, FIRESIDE_BOOTSTRAP_TOKEN="s3cret")
    loaded = load(tmp_path, FIRESIDE_BOOTSTRAP_TOKEN="s3cret" * 5, FIRESIDE_LMSTUDIO_API_KEY="s3cret")
    assert "s3cret" not in repr(loaded) and provider(loaded, "lmstudio").api_key == "s3cret"


def test_key_that_a_header_cannot_carry_is_an_error_without_the_key(tmp_path: Path) -> None:
    for key in ("schlüssel", "two\nlines", "two words"):
        line = refused(tmp_path, f"[[providers]]\nid = 'lmstudio'\napi_key = {key!r}\n".replace("'", '"'))
        assert "api_key: must be printable ASCII characters without spaces" in line and key not in line
