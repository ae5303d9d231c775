"""Settings, read once at the start: command-line flags over environment over config.toml over defaults.

Every setting is a field of `Config`. Its key in config.toml is the field's name; its environment variable is FIRESIDE_ and the name
in capitals. A test compares docs/configuration.md with the fields.
"""

import importlib.util
import ipaddress
import json
import os
import re
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import platformdirs

from .errors import ConfigError

LMSTUDIO_CONCURRENCY = 4  # LM Studio's "Max Concurrent Predictions"; further requests would wait in its own queue
MAX_CONCURRENCY = 1000
KINDS = ("lmstudio", "openai", "embedded")
Source = Literal["built-in", "page", "config.toml", "environment"]
SERVERS_FILE = "model-servers.json"  # in the data directory: the model servers from the page, with their keys


@dataclass(frozen=True)
class Provider:
    """A model server.

    `url` has no path for lmstudio; empty means LM Studio on this computer, on the port that it listens on. For openai it is the
    part before /chat/completions."""

    id: str
    kind: str  # one of KINDS
    name: str
    url: str = ""
    api_key: str = field(default="", repr=False)
    concurrency: int = 4  # generations at a time; more wait in Fireside's queue
    ttl: int = 0  # seconds after which LM Studio unloads a model that an answer has loaded; 0: as it is set there
    models: tuple[str, ...] = ()  # names of the models to offer; empty: those that the server lists
    enabled: bool = True
    source: Source = "built-in"  # only servers that are built in or from the page can be changed there


BUILT_IN = {
    "lmstudio": Provider("lmstudio", "lmstudio", "LM Studio", concurrency=LMSTUDIO_CONCURRENCY),
    "embedded": Provider("embedded", "embedded", "Embedded engine", concurrency=1),
}


# ---- Parsers: each takes a value from any source and returns it converted, or raises ValueError with what it must be.


def _number(low: float, high: float, kind: type = float) -> Callable[[Any], Any]:
    def parse(value: Any) -> Any:
        try:
            number = kind(value) if isinstance(value, str) else value
        except ValueError:
            number = None
        right_type = isinstance(number, int) or (kind is float and isinstance(number, float))
        if isinstance(number, bool) or not right_type or not low <= number <= high:
            raise ValueError(f"{'a whole number' if kind is int else 'a number'} from {low} to {high}")
        return number

    return parse


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("a string that is not empty")
    return value.strip()


def _path(value: Any) -> Path:
    return Path(_text(value)).expanduser()


def _flag(value: Any) -> bool:
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    flag = words.get(value.lower()) if isinstance(value, str) else value
    if not isinstance(flag, bool):
        raise ValueError("true or false")
    return flag


def _texts(value: Any) -> tuple[str, ...]:
    items = [item.strip() for item in value.split(",")] if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) and item for item in items):
        raise ValueError("a list of strings (separated by commas in the environment)")
    return tuple(items)


def _token(value: Any) -> str:
    if not isinstance(value, str) or not 16 <= len(value) <= 200 or not value.isascii() or not value.isprintable():
        raise ValueError("16 to 200 printable ASCII characters")
    return value


def _key(value: Any) -> str:
    if not isinstance(value, str) or not value or not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError("printable ASCII characters without spaces")
    return value


_HOST = r"(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])"


def parse_url(value: Any) -> str:
    """Return the URL as browsers send it: lower case, punycode, without the scheme's default port."""
    import httpx  # takes longer to import than the rest of `fireside ask`, and most settings have no URL

    invalid = ValueError("a URL such as http://127.0.0.1:1234")
    text = value.strip() if isinstance(value, str) else ""
    try:
        url = httpx.URL(text)
        host = url.netloc.decode().lower()  # with the port; IPv6 in brackets
        normal = httpx.URL(f"{url.scheme}://{host}{url.raw_path.decode()}")  # httpx keeps the :443 of HTTPS://
    except (httpx.InvalidURL, ValueError):
        raise invalid from None
    port = 80 if url.port is None else url.port
    valid = url.scheme in ("http", "https") and re.fullmatch(rf"{_HOST}(?::\d+)?", host) and 0 < port < 65536
    if not valid or url.userinfo or set("?#") & set(text):
        raise invalid
    return str(normal).rstrip("/")


def _origins(value: Any) -> tuple[str, ...]:
    origins = tuple(parse_url(item) for item in _texts(value))
    if any(urlsplit(origin).path for origin in origins):
        raise ValueError("origins such as https://chat.example.org, without a path")
    return origins


def _hosts(value: Any) -> tuple[str, ...]:
    hosts = tuple(host.lower() for host in _texts(value))
    if any(not re.fullmatch(_HOST, host) for host in hosts):
        raise ValueError("host names without a scheme and without a port")
    return hosts


def _networks(value: Any) -> tuple[str, ...]:
    """Return the networks as uvicorn compares them, those of IPv4 also IPv4-mapped, as a listener on IPv6 sees them."""
    items = _texts(value)
    try:
        networks = [ipaddress.ip_network(item.strip("[]"), strict=False) for item in items]
    except ValueError:
        raise ValueError("addresses such as 172.18.0.2 or ::1, or networks such as 172.18.0.0/16") from None
    mapped = [f"::ffff:{each.network_address}/{96 + each.prefixlen}" for each in networks if each.version == 4]
    return (*map(str, networks), *mapped)


def _setting(parse: Callable[[Any], Any], default: Any) -> Any:
    return field(default=default, metadata={"parse": parse})


@dataclass(frozen=True)
class Config:
    """All settings. docs/configuration.md describes them."""

    data_dir: Path = _setting(_path, Path())
    host: str = _setting(_text, "127.0.0.1")
    port: int = _setting(_number(0, 65535, int), 8000)
    lan: bool = _setting(_flag, False)
    open: bool = _setting(_flag, True)
    public_url: str = _setting(parse_url, "")
    allowed_hosts: tuple[str, ...] = _setting(_hosts, ())
    allowed_origins: tuple[str, ...] = _setting(_origins, ())
    trusted_proxies: tuple[str, ...] = _setting(_networks, ())
    tls_certificate: Path | None = _setting(_path, None)
    tls_key: Path | None = _setting(_path, None)
    bootstrap_token: str = field(default="", repr=False, metadata={"parse": _token})
    models_dir: Path | None = _setting(_path, None)
    engine_threads: int = _setting(_number(0, 1024, int), 0)
    engine_context: int = _setting(_number(256, 16 * 1024 * 1024, int), 8192)
    engine_idle_seconds: float = _setting(_number(0.05, 604800), 900.0)
    ping_seconds: float = _setting(_number(0.05, 300), 15.0)
    first_token_seconds: float = _setting(_number(0.05, 86400), 600.0)
    between_tokens_seconds: float = _setting(_number(0.05, 86400), 120.0)
    total_seconds: float = _setting(_number(0.05, 604800), 3600.0)
    answer_max_bytes: int = _setting(_number(1024, 64 * 1024 * 1024, int), 2 * 1024 * 1024)
    session_idle_days: float = _setting(_number(0.001, 365), 30.0)
    session_days: float = _setting(_number(0.001, 3650), 90.0)
    backups: int = _setting(_number(0, 365, int), 7)
    user_max_bytes: int = _setting(_number(0, 2**53, int), 0)
    providers: tuple[Provider, ...] = ()

    @property
    def scheme(self) -> str:
        return "https" if self.tls_certificate else "http"

    @property
    def database(self) -> Path:
        return self.data_dir / "fireside.db"

    @property
    def servers_file(self) -> Path:
        return self.data_dir / SERVERS_FILE

    @property
    def bootstrap_file(self) -> Path:
        """The file with the generated bootstrap token. It exists until there is an account."""
        return self.data_dir / "bootstrap-token"

    @property
    def setup_page(self) -> Path:
        """The page that redirects a browser to the setup link. It exists until there is an account."""
        return self.data_dir / "setup.html"


def default_data_dir() -> Path:
    return Path(platformdirs.user_data_dir("fireside", appauthor=False))


def load(flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] = os.environ) -> Config:
    """Return the settings. `flags` are those of the command line, by field name. Raises ConfigError."""
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    variables = {name: value for name, value in environ.items() if name.startswith("FIRESIDE_") and value != ""}
    data_dir = _checked("--data-dir", _path, given.pop("data_dir", None))
    data_dir = data_dir or _checked("FIRESIDE_DATA_DIR", _path, variables.get("FIRESIDE_DATA_DIR"))
    data_dir = (data_dir or default_data_dir()).absolute()
    file = data_dir / "config.toml"
    table = _read_toml(file)

    values: dict[str, Any] = {"data_dir": data_dir}
    for setting in fields(Config):
        if setting.name == "data_dir" or not setting.metadata:
            continue
        sources = (
            (f"--{setting.name.replace('_', '-')}", given.get(setting.name)),
            (f"FIRESIDE_{setting.name.upper()}", variables.get(f"FIRESIDE_{setting.name.upper()}")),
            (f"{file}: {setting.name}", table.pop(setting.name, None)),
        )
        checked = [_checked(source, setting.metadata["parse"], value) for source, value in sources]
        values[setting.name] = next((value for value in checked if value is not None), setting.default)
    if (values["tls_certificate"] is None) != (values["tls_key"] is None):
        raise ConfigError("tls_certificate and tls_key: set both or neither")
    values["providers"] = _providers(
        table.pop("providers", []), variables, file, _read_servers(data_dir / SERVERS_FILE)
    )
    if table:
        raise ConfigError(f"{file}: {min(table)}: unknown setting")
    if unknown := variables.keys() - _VARIABLES:
        raise ConfigError(f"{min(unknown)}: unknown setting")
    return Config(**values)


_LMSTUDIO_VARIABLES = {f"FIRESIDE_LMSTUDIO_{key.upper()}": key for key in ("url", "api_key", "concurrency")}
_VARIABLES = _LMSTUDIO_VARIABLES.keys() | {f"FIRESIDE_{each.name.upper()}" for each in fields(Config) if each.metadata}


def _checked(source: str, parse: Callable[[Any], Any], value: Any) -> Any:
    if value is None:
        return None
    try:
        return parse(value)
    except ValueError as error:
        shown = "the given value" if parse in (_token, _key) else repr(value)
        raise ConfigError(f"{source}: must be {error}, not {shown}") from None


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:  # TOMLDecodeError, UnicodeDecodeError, or a number with too many digits for int()
        line = re.search(r"line \d+", str(error))
        raise ConfigError(f"{file} is not valid TOML{f', see {line[0]}' if line else ''}") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None


def _read_servers(file: Path) -> list[Any]:
    """Return the model servers that administrators have added on the page, as `providers.Providers` wrote them."""
    try:
        servers = json.loads(file.read_text("utf-8"))["servers"]
        if isinstance(servers, list) and all(isinstance(entry, dict) for entry in servers):
            return servers
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise ConfigError(f"{file} is damaged. Delete it, and add the model servers again on the page.")


def _providers(
    entries: Any, variables: Mapping[str, str], file: Path, added: list[dict[str, Any]]
) -> tuple[Provider, ...]:
    """Return LM Studio, the embedded engine if it is installed, and the servers of config.toml and of the page.

    An entry with the id lmstudio or embedded changes that one; environment variables override it for LM Studio, and config.toml
    overrides the page. An entry for an engine that is not installed is left out with a warning, so that uninstalling the engine
    does not break the start.
    """
    tables: dict[str, dict[str, Any]] = {
        one.id: {"kind": one.kind, "name": one.name, "concurrency": one.concurrency} for one in BUILT_IN.values()
    }
    sources: dict[str, Source] = {}
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f"{file}: providers: must be tables that begin with [[providers]]")
    for number, entry in enumerate(entries, 1):
        identity = entry.get("id")
        if not isinstance(identity, str) or not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", identity):
            raise ConfigError(f"{file}: providers[{number}].id: must be 1 to 64 lower-case letters, digits, - and _")
        tables[identity] = tables.get(identity, {}) | entry
        sources[identity] = "config.toml"
    for variable, key in _LMSTUDIO_VARIABLES.items():
        if variable in variables:
            tables["lmstudio"][key] = _checked(variable, _PROVIDER_KEYS[key], variables[variable])
            sources["lmstudio"] = "environment"
    for entry in added:
        identity = entry.get("id")
        if isinstance(identity, str) and identity not in sources:
            tables[identity] = tables.get(identity, {}) | entry
            sources[identity] = "page"
    providers = {
        identity: replace(
            _provider(identity, table, file.with_name(SERVERS_FILE) if sources.get(identity) == "page" else file),
            source=sources.get(identity, "built-in"),
        )
        for identity, table in tables.items()
    }
    if providers["embedded"].kind == "embedded" and importlib.util.find_spec("xllamacpp") is None:
        del providers["embedded"]
        if any(entry["id"] == "embedded" for entry in entries):
            advice = "ignored, because fireside[embedded] is not installed"
            print(f"Warning: {file}: provider embedded: {advice}", file=sys.stderr)
    return tuple(providers.values())


_PROVIDER_KEYS: dict[str, Callable[[Any], Any]] = {
    "id": _text, "kind": _text, "name": _text, "url": parse_url, "api_key": _key, "concurrency": _number(1, MAX_CONCURRENCY, int),
    "ttl": _number(1, 31_536_000, int), "models": _texts, "enabled": _flag,
}  # fmt: skip


def _provider(identity: str, table: dict[str, Any], file: Path) -> Provider:
    where = f"{file}: provider {identity}"
    for key in table:
        if key not in _PROVIDER_KEYS:
            raise ConfigError(f"{where}: {key}: unknown setting")
    values = {key: _checked(f"{where}: {key}", parse, table.get(key)) for key, parse in _PROVIDER_KEYS.items()}
    values = {key: value for key, value in values.items() if value is not None} | {"id": identity}
    values.setdefault("kind", "openai")
    values.setdefault("name", identity)
    if values["kind"] not in KINDS:
        raise ConfigError(f"{where}: kind: must be one of {', '.join(KINDS)}")
    if values["kind"] == "openai" and "url" not in values:
        raise ConfigError(f"{where}: url: is required")
    for key, kind in (("models", "openai"), ("ttl", "lmstudio")):
        if key in values and values["kind"] != kind:
            raise ConfigError(f"{where}: {key}: only for the kind {kind}")
    if values["kind"] == "embedded" and identity != "embedded":
        raise ConfigError(f"{where}: kind: only the provider with the id embedded may be embedded")
    if values["kind"] == "embedded" and values["concurrency"] != 1:
        raise ConfigError(
            f"{where}: concurrency: must be 1, because the embedded engine generates one answer at a time"
        )
    return Provider(**values)
