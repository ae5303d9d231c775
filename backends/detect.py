"""What answers at an address that an administrator has typed: which kind of model server it is, and which models it has."""

import asyncio
import re
import socket
import ssl
from dataclasses import replace
from urllib.parse import urlsplit

import httpx
import msgspec

from ..config import Provider, parse_url
from ..errors import Invalid, ProviderFailed
from .http import fetch
from .lmstudio import LMStudio
from .loose import at, decode_small
from .openai import ERROR_BYTES, NO_PATH_STATUSES, OpenAI, base_url

EXAMINE_SECONDS = 8.0
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Finding(msgspec.Struct, frozen=True):
    """`problem` is an error code, and `message` says for people what is wrong."""

    url: str
    kind: str
    name: str  # to suggest
    models: list[str]
    models_known: bool  # false: the server does not list them
    problem: str | None = None
    message: str = ""


def parse_address(text: str) -> str:
    """Return the URL that a person means by `localhost:11434`, or by the address of one path of the API. Raises Invalid."""
    text = text.strip()
    text = text if "://" in text else f"http://{text}"
    try:
        return parse_url(re.sub(r"/(chat/completions|models)/*$", "", text))
    except ValueError as error:
        raise Invalid(f"url must be {error}.") from None


def origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


async def examine(url: str, api_key: str = "") -> Finding:
    """Ask the server at this URL what it is. What fails is in the result."""
    try:
        async with asyncio.timeout(EXAMINE_SECONDS):
            return await _examine(url, api_key)
    except TimeoutError:
        return _problem(url, "PROVIDER_TIMEOUT", f"The server did not answer within {EXAMINE_SECONDS:.0f} s.")
    except ProviderFailed as failure:
        return _problem(url, failure.code, _explain_connection(failure, url))


async def _examine(url: str, api_key: str) -> Finding:
    """Raises ProviderFailed if the server cannot be reached."""
    studio = Provider("", "lmstudio", "This server", origin(url), api_key, source="page")
    _, body = await fetch(studio, "GET", f"{studio.url}/api/v1/models", ERROR_BYTES)
    if b'"request_id"' in body and at(decode_small(body), "code"):
        return _problem(url, "PROVIDER_ERROR", "This is Fireside, not a model server.")
    if b"LM Studio" in body or b"Unexpected endpoint" in body or re.match(rb'\s*{\s*"models"', body):
        return await _list_models(LMStudio(studio), "LM Studio")
    findings = []
    for address in dict.fromkeys((url, studio.url)):  # a path of the address may be wrong
        finding = await _list_models(OpenAI(replace(studio, kind="openai", url=address)), "")
        if finding.problem is None:
            return finding
        findings.append(finding)
    _, body = await fetch(studio, "GET", f"{studio.url}/api/config", ERROR_BYTES)
    if b"Open WebUI" in body:
        advice = "Enter the address of the model server behind it, such as that of Ollama."
        return _problem(url, "PROVIDER_ERROR", f"This is Open WebUI, not a model server. {advice}")
    return findings[0]


async def _list_models(server: OpenAI, product: str) -> Finding:
    provider = server.provider
    try:
        models = await server.models()
    except ProviderFailed as failure:
        message = failure.message
        if failure.code == "PROVIDER_AUTH":
            message = "The server refuses this key." if provider.api_key else "The server requires a key."
        elif failure.code == "PROVIDER_ERROR":
            message = "No model server answers at this address, but another program does. Check the port and the path."
        return _problem(provider.url, failure.code, message, provider.kind, _name(product, provider.url))
    if models is None and not await _answers_chats(provider):
        message = "What answers at this address has no OpenAI-compatible API. Check the port and the path."
        return _problem(provider.url, "PROVIDER_ERROR", message)
    product = product or await _product(server)
    names = [model.label for model in models or []]
    return Finding(provider.url, provider.kind, _name(product, provider.url), names, models is not None)


async def _answers_chats(provider: Provider) -> bool:
    """Return whether the server has the path for chats. An empty request is refused by all that have it."""
    status, body = await fetch(provider, "POST", f"{base_url(provider)}/chat/completions", ERROR_BYTES, {})
    return status not in NO_PATH_STATUSES and not body.lstrip().startswith(b"<")


async def _product(server: OpenAI) -> str:
    if server.is_llama_cpp:
        return "llama.cpp"
    _, body = await fetch(server.provider, "GET", origin(server.provider.url), ERROR_BYTES)
    return "Ollama" if body.startswith(b"Ollama is running") else ""


def _name(product: str, url: str) -> str:
    parts = urlsplit(url)
    if not product:
        return parts.netloc
    return product if parts.hostname in LOOPBACK else f"{product} on {parts.hostname}"


def _problem(url: str, code: str, message: str, kind: str = "openai", name: str = "") -> Finding:
    return Finding(url, kind, name or urlsplit(url).netloc, [], False, code, message)


def _explain_connection(failure: ProviderFailed, url: str) -> str:
    """Say why there is no connection, from the exceptions that led to this failure."""
    error = failure.__cause__
    cause = error.__cause__ if error else None
    address = urlsplit(url).netloc
    if isinstance(cause, ssl.SSLCertVerificationError):
        advice = "Fireside trusts public authorities. In your own network, use the http address of the server."
        return f"The certificate of {address} is not valid: {cause.verify_message}. {advice}"
    if isinstance(cause, ssl.SSLError):
        return f"{address} does not speak https. Try http:// instead."
    if isinstance(cause, socket.gaierror):
        return f"There is no computer with the name {urlsplit(url).hostname}."
    if isinstance(error, httpx.ConnectTimeout):
        return f"{address} does not answer. Check the address, and whether the computer is on."
    if isinstance(error, httpx.ConnectError):
        return f"Nothing answers at {address}. Start the model server there, or check the port."
    return f"What answers at {address} does not speak HTTP. Check the port."
