"""LM Studio: its own API for models (https://lmstudio.ai/docs/developer/rest), and its installation on this computer.

Answers come from its OpenAI-compatible API, because its own takes no history. Its files are not documented and may
change, so a missing or unusable value counts as absent.
"""

import asyncio
import ipaddress
import subprocess
import sys
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from ..config import Provider
from ..errors import ProviderFailed
from .answer import Part
from .failures import unexpected_response
from .http import fetch
from .loose import array_at, at, boolean_at, count_at, decode, decode_small, object_at
from .openai import (
    DOWNLOAD_STATUSES,
    EFFORTS,
    ERROR_BYTES,
    Model,
    ModelDownload,
    OpenAI,
    Take,
    fetch_entries,
    is_name,
    name_at,
    parse_models,
)

DEFAULT_PORT = 1234
DOWNLOADS = 20  # whose progress can be asked for
VARIANTS = 50  # of a model in the list
START_SECONDS = 60.0  # the app itself may have to start first


class LMStudio(OpenAI):
    """LM Studio 0.4 or newer. Without a url in the settings it is looked for on this computer at each `models`."""

    reports_loading = True

    def __init__(self, provider: Provider) -> None:
        self._follows_port = not provider.url
        super().__init__(replace(provider, url=provider.url or server_url()))

    async def models(self) -> list[Model] | None:
        if self._follows_port:
            self.provider = replace(self.provider, url=await asyncio.to_thread(server_url))
        try:
            entries = await fetch_entries(self.provider, self._url, "models")
        except ProviderFailed as failure:
            if "Unexpected endpoint" not in failure.message:
                raise
            entries = None
        return await super().models() if entries is None else parse_models(entries, _model)  # None: before 0.4

    async def load(self, model: str, options: dict[str, Any]) -> None:
        instances = await self._instances(model)
        if any(config.items() >= options.items() for config in instances.values()):
            return  # LM Studio would load a second instance
        for instance in instances:
            await self._post("unload", {"instance_id": instance})
        await self._post("load", {"model": model, **options})

    async def unload(self, model: str) -> None:
        for instance in await self._instances(model):
            await self._post("unload", {"instance_id": instance})

    async def download(self, model: str, quantization: str | None) -> ModelDownload:
        """`model` is a name of LM Studio's catalog or a link to Hugging Face, for which a quantization can be chosen."""
        body = {"model": model} | ({"quantization": quantization} if quantization else {})
        status, response = await fetch(self.provider, "POST", f"{self._url}/download", ERROR_BYTES, body)
        job = name_at(decode_small(response), "job_id")
        if job is not None:
            self.jobs[job] = model
            while len(self.jobs) > DOWNLOADS:
                del self.jobs[next(iter(self.jobs))]
        return self._download(model, status, response)

    async def downloads(self) -> list[ModelDownload]:
        found = []
        for job, model in list(self.jobs.items()):
            url = f"{self._url}/download/status/{quote(job, safe='')}"
            status, response = await fetch(self.provider, "GET", url, ERROR_BYTES)
            if status == 404:  # LM Studio forgets its downloads when it is restarted
                self.jobs.pop(job, None)
            else:
                found.append(self._download(model, status, response))
        return found

    def _download(self, model: str, status: int, response: bytes) -> ModelDownload:
        job = decode_small(response)
        state = at(job, "status")
        if status != 200 or state not in DOWNLOAD_STATUSES:
            raise unexpected_response(self.provider, status, response, "the state of a download")
        sizes = (count_at(job, name) for name in ("downloaded_bytes", "total_size_bytes", "bytes_per_second"))
        return ModelDownload(model, state, *sizes)

    def chat(
        self, body: dict[str, Any], for_program: bool = False, take: Take | None = None
    ) -> AsyncGenerator[list[Part], None]:
        ttl = {"ttl": self.provider.ttl} if self.provider.ttl else {}  # counts for a model that this request loads
        return super().chat(ttl | body, for_program, take)

    async def can_start(self) -> bool:
        is_local = self._follows_port or urlsplit(self.provider.url).hostname in ("127.0.0.1", "localhost", "::1")
        return is_local and await asyncio.to_thread(command) is not None

    async def start(self) -> None:
        if not await self.can_start():
            await super().start()
        await start_server()

    @property
    def _url(self) -> str:
        return f"{self.provider.url.removesuffix('/v1')}/api/v1/models"

    async def _entries(self) -> list[Any]:
        return await fetch_entries(self.provider, self._url, "models") or []

    async def _instances(self, model: str) -> dict[str, dict[str, Any]]:
        """Return the options of a model's loaded instances, or of the instance with this id, by instance id."""
        return {
            identity: {name: value for name, value in object_at(instance, "config").items() if isinstance(value, int)}
            for entry in await self._entries()
            for instance in array_at(entry, "loaded_instances")
            if (identity := at(instance, "id")) and isinstance(identity, str) and model in (identity, at(entry, "key"))
        }

    async def _post(self, action: str, body: dict[str, Any]) -> None:
        status, response = await fetch(self.provider, "POST", f"{self._url}/{action}", ERROR_BYTES, body)
        if status != 200 or not at(decode_small(response), "instance_id"):
            raise unexpected_response(self.provider, status, response, f"the result of the {action}")


def _model(entry: Any) -> Model | None:
    identity = name_at(entry, "key")
    if identity is None or at(entry, "type") == "embedding":
        return None
    instance = next(iter(array_at(entry, "loaded_instances")), None)
    return Model(
        id=identity,
        label=name_at(entry, "display_name") or identity,
        state="loaded" if instance else "not-loaded",
        context_length=count_at(instance, "config", "context_length") or None,
        max_context_length=count_at(entry, "max_context_length") or None,
        vision=boolean_at(entry, "capabilities", "vision"),
        tools=boolean_at(entry, "capabilities", "trained_for_tool_use"),
        quantization=name_at(entry, "quantization", "name"),
        size_bytes=count_at(entry, "size_bytes") or None,
        reasoning_efforts=_reasoning_efforts(at(entry, "capabilities")),
        parallel=count_at(instance, "config", "parallel") or None,
        variants=[name for name in array_at(entry, "variants")[:VARIANTS] if is_name(name)] or None,
    )


def _reasoning_efforts(capabilities: Any) -> list[str] | None:
    """Its chat API calls `off` none, and `on` any other effort."""
    if not isinstance(capabilities, dict):
        return None
    options = [option for option in array_at(capabilities, "reasoning", "allowed_options") if isinstance(option, str)]
    efforts = [{"off": "none", "on": "medium"}.get(option, option) for option in options]
    return list(dict.fromkeys(effort for effort in efforts if effort in EFFORTS))


# ---- LM Studio on this computer


def homes() -> list[Path]:
    """Return the folders in which LM Studio may keep its files, the likeliest first. They need not exist.

    The pointer file and the order are those of its command-line tool (github.com/lmstudio-ai/lms).
    """
    try:
        home = Path.home()
    except RuntimeError:
        return []
    pointed = _absolute(_read(home / ".lmstudio-home-pointer").decode("utf-8", "replace").strip())
    return list(dict.fromkeys([*pointed, home / ".lmstudio", home / ".cache" / "lm-studio"]))


def model_folders() -> list[Path]:
    """Return the folders of models. `settings.json` names one if the user has moved it."""
    return [
        folder
        for home in homes()
        for folder in (*_absolute(_read_json(home / "settings.json", "downloadsFolder")), home / "models")
    ]


def conversation_folders() -> list[Path]:
    """Return the folders of conversations that exist."""
    folders = [home.resolve() / "conversations" for home in homes()]
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def server_url() -> str:
    """Return the address of its server, from the file that keeps port and network interface when the user changes them."""
    for home in homes():
        file = home / ".internal" / "http-server-config.json"
        port = _read_json(file, "port")
        if type(port) is int and 0 < port < 65536:
            return f"http://{_host(_read_json(file, 'networkInterface'))}:{port}"
    return f"http://127.0.0.1:{DEFAULT_PORT}"


def _host(interface: Any) -> str:
    """Return the address at which a server that listens on this one can be reached."""
    try:
        address = ipaddress.ip_address(interface if isinstance(interface, str) else "")
    except ValueError:
        return "127.0.0.1"
    if address.is_unspecified or "%" in str(address):
        return "127.0.0.1"
    return f"[{address}]" if address.version == 6 else str(address)


def command() -> Path | None:
    """Return the path of its command-line tool, or None."""
    name = "lms.exe" if sys.platform == "win32" else "lms"
    found = [home / "bin" / name for home in homes()]
    return next((path for path in found if path.is_file()), None)


async def start_server() -> None:
    """Run `lms server start`. Raises ProviderFailed."""
    lms = command()
    if lms is None:
        raise ProviderFailed("PROVIDER_UNREACHABLE", "LM Studio's command-line tool was not found on this computer.")
    try:
        process = await asyncio.create_subprocess_exec(
            lms, "server", "start", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    except OSError as error:
        raise ProviderFailed("PROVIDER_UNREACHABLE", f"{lms.name} could not be run: {error.strerror}") from None
    try:
        async with asyncio.timeout(START_SECONDS):
            output, _ = await process.communicate()
    except TimeoutError:
        raise ProviderFailed("PROVIDER_TIMEOUT", f"LM Studio did not start within {START_SECONDS:.0f} s.") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        reason = " ".join(output.decode("utf-8", "replace").split())[:300]
        raise ProviderFailed("PROVIDER_UNREACHABLE", f"LM Studio's server did not start: {reason}")


def _read_json(path: Path, key: str) -> Any:
    try:
        return at(decode(_read(path)), key)
    except ValueError:
        return None


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(1024 * 1024)
    except OSError:
        return b""


def _absolute(text: object) -> list[Path]:
    usable = isinstance(text, str) and "\0" not in text and "\ufffd" not in text and Path(text).is_absolute()
    return [Path(str(text))] if usable else []
