"""The OpenAPI 3.1 description of the routes, from the types that they and their handlers use. docs/api.md explains the API."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from starlette.routing import BaseRoute

from .. import __version__
from ..queries.types import AnswerError, AnswerStats, TokenUsage, Tools
from .endpoint import INTEGERS, Access, Endpoint
from .responses import EVENTS, Error, ImportFailed, ImportStep, OpenAIError
from .schemas import IMPORT_TYPES, ChatRequest, EmbeddingRequest, Empty

Schema = dict[str, Any]

_REF = "#/components/schemas/{name}"
_ID = {"type": "integer", "minimum": 1, "maximum": 2**63 - 1}
_STREAMED = {"text/event-stream": "Event", "application/x-ndjson": "ImportLine"}
_OTHERS = (ImportStep, ImportFailed, Error, OpenAIError)
_STORED = (TokenUsage, AnswerStats, AnswerError, Tools)  # what queries.types.stored refers to
_SECURITY: Schema = {
    "session": {"type": "apiKey", "in": "cookie", "name": "fireside_8000", "description": "fireside_ and the port"},
    "csrf": {"type": "apiKey", "in": "header", "name": "X-CSRF-Token"},
    "cli": {"type": "http", "scheme": "bearer"},
    "token": {"type": "http", "scheme": "bearer", "bearerFormat": "fs_ and 72 hexadecimal digits"},
}
_STATUSES = {
    "4XX": "The request is refused",
    "500": "Fireside has a fault, which is in its log",
    "502": "A model server failed",
    "503": "The database cannot be used",
}
# Bodies that handlers read by themselves. Unknown fields of those in JSON reach the model server.
_RAW_BODIES: dict[str, Any] = {
    "POST /import": {kind: {} for kind in IMPORT_TYPES},
    "POST /attachments": {"*/*": {}},
    "POST /v1/chat/completions": ChatRequest,
    "POST /v1/embeddings": EmbeddingRequest,
}
_NOT_MODIFIED = {"304": {"description": "The browser has the newest version"}}
_WITHOUT_CONTENT = {
    "GET /generations/{generation_id}/stream": {"204": {"description": "The reader has the last event"}},
    "GET /": _NOT_MODIFIED,
    "GET /static/{name}": _NOT_MODIFIED,
}


def document(routes: Iterable[BaseRoute]) -> Schema:
    """Return the description as JSON values."""
    table = [route for route in routes if isinstance(route, Endpoint)]
    received, components = _describe(body for route in table if (body := _json_body(route)))
    sent, others = _describe(
        [*(kind for route in table for kind in _results(route)), *EVENTS.values(), *_STORED, *_OTHERS]
    )
    for name in others.keys() - components.keys():
        _require_all(others[name])
    schemas = {
        "Event": _event({name: sent[kind] for name, kind in EVENTS.items()}),
        "ImportLine": {"anyOf": [sent[ImportStep], sent[ImportFailed]]},
    }
    paths: dict[str, Schema] = {}
    for route in table:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, received | sent)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Fireside", "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas | others | components, "securitySchemes": _SECURITY},
    }


def _json_body(route: Endpoint) -> Any:
    """Return the type of the JSON that a route takes, or None."""
    body = _RAW_BODIES[route.name] if route.body is None and route.name in _RAW_BODIES else route.body
    return None if route.method == "GET" or body is Empty or isinstance(body, dict) else body


def _results(route: Endpoint) -> tuple[Any, ...]:
    """Return the type of the JSON that a handler returns, or the media types of other content, from its annotation."""
    result = route.handler.__annotations__["return"]
    metadata: tuple[Any, ...] = getattr(result, "__metadata__", (result,))  # of Annotated
    return metadata


def _describe(kinds: Iterable[Any]) -> tuple[dict[Any, Schema], dict[str, Schema]]:
    """Return the schema of each type, and the components that the schemas refer to."""
    types = [kind for kind in kinds if not isinstance(kind, str)]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    return dict(zip(types, schemas, strict=True)), components


def _require_all(component: Schema) -> None:
    """Require the fields with a default, too: a response has them. Fields that it may leave out are UNSET, without a default."""
    fields = component["properties"]
    component["required"] = [name for name in fields if "default" in fields[name] or name in component["required"]]
    for field in fields.values():
        field.pop("default", None)


def _event(data: dict[str, Schema]) -> Schema:
    """Describe a server-sent event. `data`: the schema of the JSON in the field `data`, by event."""
    return {
        "type": "object",
        "properties": {
            "id": {"type": "string"},
            "event": {"type": "string"},
            "data": {"type": "string", "contentMediaType": "application/json"},
        },
        "required": ["event", "data"],
        "oneOf": [
            {"properties": {"event": {"const": name}, "data": {"contentSchema": schema}}}
            for name, schema in data.items()
        ],
    }


def _operation(route: Endpoint, schemas: dict[Any, Schema]) -> Schema:
    content = dict(_content(kind, schemas) for kind in _results(route))
    if "text/event-stream" in content and route.path.startswith("/v1/"):
        content["text/event-stream"] = {}  # OpenAI's chunks
    operation: Schema = {
        "parameters": list(_parameters(route)),
        "security": _security(route),
        "responses": {
            "200": {"description": "Success", "content": content},
            **_WITHOUT_CONTENT.get(route.name, {}),
            **_errors(route),
        },
    }
    if body := _json_body(route):
        operation["requestBody"] = {"content": {"application/json": {"schema": schemas[body]}}}
    elif route.body is None:
        operation["requestBody"] = {"content": _RAW_BODIES[route.name]}
    return operation


def _errors(route: Endpoint) -> Schema:
    name = "OpenAIError" if route.path.startswith("/v1/") else "Error"
    content = {"application/json": {"schema": {"$ref": _REF.format(name=name)}}}
    statuses = _STATUSES | ({"504": "A model server did not answer in time"} if name == "OpenAIError" else {})
    return {status: {"description": text, "content": content} for status, text in statuses.items()}


def _content(kind: Any, schemas: dict[Any, Schema]) -> tuple[str, Schema]:
    """Return a media type and its description. That of a stream describes one event or line."""
    if kind in _STREAMED:
        return kind, {"schema": {"$ref": _REF.format(name=_STREAMED[kind])}}
    return (kind, {}) if isinstance(kind, str) else ("application/json", {"schema": schemas[kind]})


def _parameters(route: Endpoint) -> Iterator[dict[str, Any]]:
    for name in re.findall(r"{(\w+)}", route.path):
        yield {"name": name, "in": "path", "required": True, "schema": _ID if name in INTEGERS else {"type": "string"}}
    _, components = msgspec.json.schema_components([route.query])
    for name, schema in components[route.query.__name__]["properties"].items():
        yield {"name": name, "in": "query", "schema": schema}


def _security(route: Endpoint) -> list[dict[str, list[str]]]:
    if route.access is Access.PUBLIC:
        return []
    if route.access is Access.CLI:
        return [{"cli": []}]
    if route.access is Access.TOKEN:
        return [{"token": []}]
    session: dict[str, list[str]] = {"session": [], "csrf": []} if route.csrf == "required" else {"session": []}
    return [session, {"token": []}] if route.access is Access.USER_OR_TOKEN else [session]
