"""The OpenAPI 3.1 description of the routes, from the types that they use. docs/api.md explains the API."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from starlette.routing import BaseRoute

from .. import __version__
from .endpoint import INTEGERS, Access, Endpoint
from .schemas import Empty

_ID = {"type": "integer", "minimum": 1, "maximum": 2**63 - 1}
_MEDIA_TYPES = {  # of the responses that are not JSON
    "POST /conversations/{conversation_id}/stream": "text/event-stream",
    "GET /generations/{generation_id}/stream": "text/event-stream",
    "GET /images/{image_id}": "image/*",
    "GET /export": "application/zip",
    "GET /conversations/{conversation_id}/export": "*/*",
    "POST /control/import": "application/x-ndjson",
    "POST /control/export": "application/zip",
    "GET /": "text/html",
    "GET /static/{name}": "*/*",
}
_SECURITY: dict[str, dict[str, Any]] = {
    "session": {"type": "apiKey", "in": "cookie", "name": "fireside_8000", "description": "fireside_ and the port"},
    "csrf": {"type": "apiKey", "in": "header", "name": "X-CSRF-Token"},
    "owner": {"type": "http", "scheme": "bearer"},
}
_ERROR = {
    "type": "object",
    "properties": {name: {"type": "string"} for name in ("code", "message", "request_id")},
    "required": ["code", "message", "request_id"],
}


def document(routes: Iterable[BaseRoute]) -> dict[str, Any]:
    """Return the description as JSON values."""
    table = [route for route in routes if isinstance(route, Endpoint)]
    bodies = {route.name: route.body for route in table if route.method != "GET" and route.body not in (None, Empty)}
    schemas, components = msgspec.json.schema_components(bodies.values(), ref_template="#/components/schemas/{name}")
    bodies = dict(zip(bodies, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in table:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, bodies.get(route.name))
    return {
        "openapi": "3.1.0",
        "info": {"title": "Fireside", "version": __version__},
        "paths": paths,
        "components": {"schemas": {"Error": _ERROR, **components}, "securitySchemes": _SECURITY},
    }


def _operation(route: Endpoint, body: dict[str, Any] | None) -> dict[str, Any]:
    error = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
    operation: dict[str, Any] = {
        "parameters": list(_parameters(route)),
        "security": _security(route),
        "responses": {
            "200": {"description": "Success", "content": {_MEDIA_TYPES.get(route.name, "application/json"): {}}},
            "4XX": {"description": "The request is refused", **error},
            "502": {"description": "A model server failed", **error},
            "503": {"description": "The database cannot be used", **error},
        },
    }
    if body is not None:
        operation["requestBody"] = {"content": {"application/json": {"schema": body}}}
    elif route.body is None:
        operation["requestBody"] = {"content": {"application/json": {}, "application/zip": {}}}
    return operation


def _parameters(route: Endpoint) -> Iterator[dict[str, Any]]:
    for name in re.findall(r"{(\w+)}", route.path):
        yield {"name": name, "in": "path", "required": True, "schema": _ID if name in INTEGERS else {"type": "string"}}
    _, components = msgspec.json.schema_components([route.query])
    for name, schema in components[route.query.__name__]["properties"].items():
        yield {"name": name, "in": "query", "schema": schema}


def _security(route: Endpoint) -> list[dict[str, list[str]]]:
    if route.access is Access.PUBLIC:
        return []
    if route.access is Access.OWNER:
        return [{"owner": []}]
    return [{"session": [], "csrf": []} if route.csrf == "required" else {"session": []}]
