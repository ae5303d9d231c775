"""The lists of models that model servers give, in their three forms."""

from collections.abc import Callable
from pathlib import PureWindowsPath
from typing import Any

import msgspec

NAME_CHARACTERS = 300  # of a model's id, as in bodies.Name; a model with a longer one cannot be asked for


class Model(msgspec.Struct, frozen=True):
    id: str
    label: str
    state: str | None = None  # loaded, loading, not-loaded; None: the server does not say
    context_length: int | None = None  # tokens, of the loaded instance
    max_context_length: int | None = None
    vision: bool | None = None  # None, of both: the server does not say
    tools: bool | None = None
    quantization: str | None = None
    size_bytes: int | None = None


def _at(value: Any, *path: str) -> Any:
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= NAME_CHARACTERS else None


def _truth(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _size(value: Any) -> int | None:
    return value if type(value) is int and 0 < value < 2**53 else None


def _native_v1(entry: Any) -> Model | None:
    identity = _text(_at(entry, "key"))
    if identity is None or _at(entry, "type") == "embedding":
        return None
    instances = _at(entry, "loaded_instances")
    instance = instances[0] if isinstance(instances, list) and instances else None
    return Model(
        id=identity,
        label=_text(_at(entry, "display_name")) or identity,
        state="loaded" if instance else "not-loaded",
        context_length=_size(_at(instance, "config", "context_length")),
        max_context_length=_size(_at(entry, "max_context_length")),
        vision=_truth(_at(entry, "capabilities", "vision")),
        tools=_truth(_at(entry, "capabilities", "trained_for_tool_use")),
        quantization=_text(_at(entry, "quantization", "name")),
        size_bytes=_size(_at(entry, "size_bytes")),
    )


def _native_v0(entry: Any) -> Model | None:
    identity, state = _text(_at(entry, "id")), _at(entry, "state")
    if identity is None or _at(entry, "type") == "embeddings":
        return None
    told = _at(entry, "capabilities")
    capabilities = told if isinstance(told, list) else []
    return Model(
        id=identity,
        label=identity,
        state=state if state in ("loaded", "loading", "not-loaded") else None,
        context_length=_size(_at(entry, "loaded_context_length")),
        max_context_length=_size(_at(entry, "max_context_length")),
        vision=_at(entry, "type") == "vlm" or "vision" in capabilities,
        tools="tool_use" in capabilities if isinstance(told, list) else None,
        quantization=_text(_at(entry, "quantization")),
    )


def _openai(entry: Any) -> Model | None:
    """llama.cpp tells the context length in `meta`, vLLM as max_model_len; LM Studio and Ollama do not tell."""
    identity = _text(_at(entry, "id"))
    if identity is None or "embed" in identity.lower():
        return None
    length = _size(_at(entry, "meta", "n_ctx")) or _size(_at(entry, "max_model_len"))
    return Model(
        id=identity,
        label=PureWindowsPath(identity).stem if identity.lower().endswith(".gguf") else identity,
        context_length=length,
        max_context_length=_size(_at(entry, "meta", "n_ctx_train")) or length,
        size_bytes=_size(_at(entry, "meta", "size")),
    )


_LISTINGS: dict[str, list[tuple[str, str, Callable[[Any], Model | None]]]] = {
    "lmstudio": [
        ("/api/v1/models", "models", _native_v1),  # since 0.4.0
        ("/api/v0/models", "data", _native_v0),  # since 0.3.6
        ("/v1/models", "data", _openai),
    ],
    "openai": [("/models", "data", _openai)],
}
