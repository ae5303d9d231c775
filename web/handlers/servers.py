"""Handlers of model servers."""

from typing import Any

import msgspec

from ...backends.detect import Finding, examine, origin, parse_address
from ...backends.openai import ModelDownload
from ...config import Provider
from ...errors import Invalid, ProviderFailed
from ...providers import ModelServer
from ...safety.logs import audit
from .. import responses, schemas
from ..endpoint import Request, while_connected


async def list_providers(request: Request) -> list[responses.ProviderEntry]:
    catalog = await request.app_state.providers.catalog(details=request.is_admin)
    return [responses.ProviderEntry(**entry, health=_health(entry)) for entry in catalog]


async def list_models(request: Request, provider_id: str) -> responses.Models:
    return responses.Models(await request.app_state.providers.get(provider_id).models())


async def provider_health(request: Request, provider_id: str) -> responses.ProviderHealth:
    return _health(await request.app_state.providers.get(provider_id).entry(details=request.is_admin))


def _health(entry: dict[str, Any]) -> responses.ProviderHealth:
    return responses.ProviderHealth(entry["online"], entry["error"])


async def start_provider(request: Request, provider_id: str) -> responses.Confirmation:
    await request.app_state.providers.get(provider_id).start()
    return responses.Confirmation("Server started")


async def load_model(request: Request, provider_id: str, body: schemas.ModelLoad) -> responses.Confirmation:
    await request.app_state.providers.get(provider_id).load(**msgspec.structs.asdict(body))
    return responses.Confirmation("Model loaded")


async def download_model(request: Request, provider_id: str, body: schemas.DownloadRequest) -> ModelDownload:
    audit("model download", request.identity.user, request.address)
    download = await request.app_state.providers.get(provider_id).download(body.model, body.quantization)
    await request.app_state.providers.save_downloads()
    return download


async def list_downloads(request: Request, provider_id: str) -> responses.Downloads:
    return responses.Downloads(await request.app_state.providers.get(provider_id).downloads())


async def unload_model(request: Request, provider_id: str, body: schemas.ModelChoice) -> responses.Confirmation:
    await request.app_state.providers.get(provider_id).unload(body.model)
    return responses.Confirmation("Model unloaded")


async def list_servers(request: Request) -> responses.ModelServers:
    return responses.ModelServers([_server(*each) for each in await request.app_state.providers.status()])


async def test_server(request: Request, body: schemas.ServerAddress) -> Finding:
    """A saved key is sent only where it was saved for, so that a session cannot be used to read it."""
    url, key = parse_address(body.url), body.api_key or ""
    if body.api_key is msgspec.UNSET and body.provider_id is not None:
        settings = request.app_state.providers.configured(body.provider_id).settings
        key = settings.api_key if origin(settings.url) == origin(url) else ""
    return await while_connected(request.receive, examine(url, key))


async def add_server(request: Request, body: schemas.NewServer) -> responses.ModelServer:
    found = await examine(parse_address(body.url), body.api_key)
    if found.problem and not body.untested:
        raise ProviderFailed(found.problem, found.message)
    kind = body.kind or found.kind
    server = await request.app_state.providers.add(
        Provider(
            id="",
            kind=kind,
            name=(body.name or found.name).strip(),
            url=found.url,
            api_key=body.api_key,
            concurrency=body.concurrency,
            models=tuple(body.models) if kind == "openai" else (),
        )
    )
    audit("model server added", request.identity.user, request.address, about=server.id)
    return _server(server, await server.entry())


async def change_server(request: Request, provider_id: str, body: schemas.ServerChange) -> responses.ModelServer:
    providers = request.app_state.providers
    server = providers.configured(provider_id)
    address, settings = server.backend.provider.url, server.settings
    fields = msgspec.to_builtins(body)
    untested = fields.pop("untested")
    if "name" in fields:
        fields["name"] = fields["name"].strip()
    if "models" in fields:
        fields["models"] = tuple(fields["models"])
    if "url" in fields:
        fields["url"] = _changed_address(settings, body)
    if settings.kind == "embedded" and fields.keys() - {"name", "enabled"}:
        raise Invalid("The embedded engine has no address, no key and no queue to set.")
    if settings.kind != "openai" and fields.get("models"):  # config.load would refuse the file at the next start
        raise Invalid(f"models can only be chosen for an OpenAI-compatible server. {settings.name} lists its own.")
    if not untested and fields.get("enabled", settings.enabled) and fields.keys() & {"url", "api_key"}:
        url = fields.get("url", address)  # empty: LM Studio is looked for
        found = await examine(url, fields.get("api_key", settings.api_key)) if url else None
        if found and found.problem:
            raise ProviderFailed(found.problem, found.message)
    server = await providers.change(provider_id, **fields)
    audit("model server changed", request.identity.user, request.address, about=server.id)
    return _server(server, await server.entry() if server.settings.enabled else None)


def _changed_address(settings: Provider, body: schemas.ServerChange) -> str:
    """Raises Invalid for a new address that a saved key would be sent to unseen."""
    if not body.url and settings.id == "lmstudio":
        return ""
    url = parse_address(str(body.url))
    if settings.api_key and body.api_key is msgspec.UNSET and origin(url) != origin(settings.url):
        raise Invalid("api_key must be entered again, because the address is another one.")
    return url


async def remove_server(request: Request, provider_id: str) -> responses.Confirmation:
    await request.app_state.providers.remove(provider_id)
    audit("model server removed", request.identity.user, request.address, about=provider_id)
    return responses.Confirmation("Model server removed")


def _server(server: ModelServer, entry: dict[str, Any] | None) -> responses.ModelServer:
    """`entry` is None for a server that is not enabled."""
    settings = server.settings
    return responses.ModelServer(
        provider_id=settings.id,
        name=settings.name,
        kind=settings.kind,
        url=settings.url,
        address=server.backend.provider.url,
        has_key=bool(settings.api_key),
        concurrency=server.concurrency(),
        models=list(settings.models),
        enabled=settings.enabled,
        source=settings.source,
        online=bool(entry and entry["online"]),
        error=entry["error"] if entry else None,
        models_known=bool(entry and entry["models_known"]),
        models_found=len(entry["models"]) if entry else 0,
        answering=server.slots.held,
        waiting=server.slots.waiting(),
    )
