"""The OpenAPI 3.1 document, made of the routes and the structs that they decode and encode."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import msgspec

from compass import __version__
from compass.http.routes import JSON, ROUTES, Route

_REF = "#/components/schemas/{name}"
_PROBLEM = {
    "title": "Problem",
    "description": "What went wrong (RFC 9457), with fields that a program needs.",
    "type": "object",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "index": {"type": "integer"},
                    "field": {"type": "string"},
                    "detail": {"type": "string"},
                },
                "required": ["field", "detail"],
            },
        },
    },
    "required": ["type", "title", "status", "detail"],
}


@cache
def openapi_document() -> dict[str, Any]:
    """The document as plain JSON values; the same object each time."""
    types = list(
        dict.fromkeys(
            t for route in ROUTES for t in (route.answer, *route.others.values(), route.body, route.query) if t
        )
    )
    described, components = msgspec.json.schema_components(types, ref_template=_REF)
    schemas = dict(zip(types, described, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas, components)
    used = {name: schema for name, schema in components.items() if not _is_query(name)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Compass", "version": __version__, "description": "Swap embedding models under load."},
        "paths": paths,
        "components": {
            "schemas": {**used, "Problem": _PROBLEM},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _operation(route: Route, schemas: dict[Any, Any], components: dict[str, Any]) -> dict[str, Any]:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", route.path)
    ]
    if route.query is not None:
        known = components[route.query.__name__]["properties"]
        parameters += [{"name": n, "in": "query", "required": False, "schema": sch} for n, sch in known.items()]
    answer: dict[str, Any] = {"description": route.summary}
    if route.answer is not None:
        answer["content"] = {route.media_type: {"schema": schemas[route.answer]}}
    problem = {"application/problem+json": {"schema": {"$ref": _REF.format(name="Problem")}}}
    operation: dict[str, Any] = {
        "operationId": _operation_id(route),
        "summary": route.summary,
        "parameters": parameters,
        "responses": {str(route.status): answer, "default": {"description": "A problem.", "content": problem}},
    }
    for status, kind in route.others.items():
        content = {JSON: {"schema": schemas[kind]}}
        operation["responses"][str(status)] = {
            "description": (kind.__doc__ or "").partition("\n")[0],
            "content": content,
        }
    if route.body is not None:
        content = {"application/json": {"schema": schemas[route.body]}}
        operation["requestBody"] = {"required": not route.body_optional, "content": content}
    return operation


def _operation_id(route: Route) -> str:
    words = re.sub(r"[{}/_-]+", " ", route.path).split()
    return "_".join([route.method.lower(), *words])


def _is_query(name: str) -> bool:
    return any(route.query is not None and route.query.__name__ == name for route in ROUTES)
