"""Errors of model servers, each as a ProviderFailed with a code and a message for the user.

Servers report the same error in different words and shapes, so the code is found by searching those words.
"""

import re
import ssl
from urllib.parse import urlsplit

import httpx

from ..config import Provider
from ..errors import ProviderFailed
from .loose import at, count_at, decode_small

MESSAGE_CHARACTERS = 300  # of a server's own words in a message
SEARCHED_CHARACTERS = 2000  # of an error message
REFUSALS = (400, 404, 413, 415, 422)  # statuses for a request that the server will never accept

# The order matters: a server that cannot load a model may mention the context length too.
_PATTERNS = [
    (code, re.compile(pattern, re.IGNORECASE | re.DOTALL))
    for code, pattern in (
        ("MODEL_LOAD_FAILED", "failed to load|error loading|loading aborted|has crashed|is unloaded|channel error"),
        ("CONTEXT_OVERFLOW", r"context[ _]?(length|size|window|overflow)|context the overflow|n_ctx|maximum model len"),
        ("PROVIDER_AUTH", r"invalid_api_key|\bapi (token|key)\b"),
        ("MODEL_NOT_LOADED", "no models? (is |are )?(currently )?loaded"),
        ("VISION_UNSUPPORTED", r"not support\w* (image|vision)|image input is not supported|not a multimodal|mmproj"),
        # (?>...) keeps the first "model": trying each of them would take quadratic time.
        (
            "MODEL_NOT_FOUND",
            r"model_not_found|(invalid|unknown|no such) model\b|\A(?>.*?\bmodel\b).*\bnot (found|exist)",
        ),
        ("PROVIDER_BUSY", "unavailable_error|loading model|overloaded|queue (is )?full|too many requests|server busy"),
    )
]
_STATUS_CODES: dict[int | None, str] = {
    **dict.fromkeys((401, 403), "PROVIDER_AUTH"),
    **dict.fromkeys((429, 503), "PROVIDER_BUSY"),
    **dict.fromkeys((408, 504), "PROVIDER_TIMEOUT"),
}
_CONTEXT_TOKENS = re.compile(
    r"(?:n_ctx: |context (?:length (?:of|is)(?: only)? |size \(|window of )|model length of )(\d{1,9})"
)
_PROMPT_TOKENS = re.compile(
    r"(?:n_keep: |the first |request \(|requested |[Tt]okens \(|\(length |resulted in )(\d{1,9})"
)


def reported_error(provider: Provider, body: bytes, status: int | None = None) -> ProviderFailed:
    """Map a server's error to a ProviderFailed. `body` is a response's, or an event's data when `status` is None."""
    payload = decode_small(body)
    if payload is None:
        payload = body[: 4 * SEARCHED_CHARACTERS].decode("utf-8", "replace")
    outer = payload if isinstance(payload, dict) else {"error": payload}
    inner = outer.get("error") or outer
    inner = inner if isinstance(inner, dict) else {"message": inner}
    candidates = (inner.get("message"), outer.get("message"), outer.get("detail"))
    text = next((text for text in candidates if text and isinstance(text, str)), "")[:SEARCHED_CHARACTERS]
    labels = [label[:MESSAGE_CHARACTERS] for label in (inner.get("type"), inner.get("code")) if isinstance(label, str)]
    searched = " ".join([text, *labels])
    code = next((code for code, pattern in _PATTERNS if pattern.search(searched)), None)
    code = code or _STATUS_CODES.get(status, "PROVIDER_ERROR")
    if code == "CONTEXT_OVERFLOW":
        context_tokens = count_at(inner, "n_ctx") or _number(_CONTEXT_TOKENS, text)
        prompt_tokens = count_at(inner, "n_prompt_tokens") or _number(_PROMPT_TOKENS, text)
        room = f", which has room for {context_tokens} tokens" if context_tokens else ""
        needed = f" It takes {prompt_tokens}." if prompt_tokens else ""
        message = f"The conversation does not fit into the model's context{room}.{needed} "
        advice = "Load the model with a larger context length, or continue in a new conversation."
        return ProviderFailed(code, message + advice)
    address = urlsplit(provider.url).netloc
    if text.lstrip().startswith("<"):
        message = f"{provider.name} answered with a web page and HTTP status {status}."
    elif words := display_text(text.replace(address, "[address]") if address else text, provider.api_key):
        message = f"{provider.name} said: {words}"
    else:
        message = f"{provider.name} reported an error" + (f" with HTTP status {status}." if status else ".")
    advice = _advice(provider, code, status, text)
    stop = "." if advice and not message.endswith((".", "!", "?", "…")) else ""
    refused_with = status if status in REFUSALS else None
    return ProviderFailed(code, message + stop + advice, refused_with=refused_with)


def _advice(provider: Provider, code: str, status: int | None, text: str) -> str:
    if code == "PROVIDER_AUTH" and provider.source in ("built-in", "page"):
        return " An administrator can enter its key in the settings, under Model servers."
    if code == "PROVIDER_AUTH":
        variable = "FIRESIDE_LMSTUDIO_API_KEY or " if provider.id == "lmstudio" else ""
        return f" Fireside takes the key from {variable}api_key of the provider {provider.id} in config.toml."
    wrong_url = text.lstrip().startswith("<") or "Unexpected endpoint" in text
    if code == "PROVIDER_ERROR" and (wrong_url or status in (301, 302, 303, 307, 308, 404, 405)):
        return f" {_check_address(provider)}"
    return ""


def _check_address(provider: Provider) -> str:
    if provider.source in ("built-in", "page"):
        return "Check its address in the settings, under Model servers."
    return f"Check the url of the provider {provider.id}."


def unexpected_response(provider: Provider, status: int, body: bytes, expected: str) -> ProviderFailed:
    """Map a response that is not `expected` to a ProviderFailed. LM Studio reports errors with status 200 too."""
    payload = decode_small(body)
    if status != 200 or at(payload, "error") or at(payload, "object") == "error" or body.lstrip().startswith(b"<"):
        return reported_error(provider, body, status)
    message = f"{provider.name} did not answer with {expected}. {_check_address(provider)}"
    return ProviderFailed("PROVIDER_ERROR", message)


def connection_error(provider: Provider, error: httpx.TransportError) -> ProviderFailed:
    """Map a failed connection to a ProviderFailed. `detail` has the address, which only administrators see."""
    reason = display_text(str(error))
    code, message = "PROVIDER_UNREACHABLE", f"{provider.name} cannot be reached. Is its server running?"
    if isinstance(error.__cause__, ssl.SSLCertVerificationError):
        message = f"{provider.name} cannot be reached: its certificate is not valid."
    elif isinstance(error, httpx.ConnectTimeout):
        message = f"{provider.name} did not answer in time. Is its server running?"
    elif not isinstance(error, httpx.ConnectError):
        code, message = "PROVIDER_ERROR", f"{provider.name} broke off the connection: {reason}."
    return ProviderFailed(code, message, f"{provider.url}: {reason}")


def display_text(text: str, secret: str = "") -> str:
    """Return a server's words as one short line, without the secret or its first 8 or more characters."""
    text = text[: 4 * MESSAGE_CHARACTERS + len(secret)]
    for length in range(len(secret), max(0, min(len(secret), 8) - 1), -1):
        text = text.replace(secret[:length], "[key]")
    text = text[: 4 * MESSAGE_CHARACTERS]
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return text if len(text) <= MESSAGE_CHARACTERS else f"{text[: MESSAGE_CHARACTERS - 1]}…"


def _number(pattern: re.Pattern[str], text: str) -> int | None:
    found = pattern.search(text)
    return int(found[1]) if found else None
