"""The ASGI application: guards, routing, decoding, the gateway, encoding. It runs under Serve and alone."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from urllib.parse import parse_qsl

import msgspec
from starlette.routing import compile_path

from compass.api import requests, schemas
from compass.api.arguments import Arguments
from compass.api.bodies import decode, from_query
from compass.errors import CompassError, NotFoundError
from compass.gateway.gateway import Gateway
from compass.http import problems
from compass.http.docs_page import docs_page
from compass.http.messages import (
    JSON,
    App,
    ClientGoneError,
    Receive,
    Reply,
    Scope,
    Send,
    check_json,
    path_of,
    read_body,
)
from compass.http.metrics import OTHER, Metrics, NoMetrics
from compass.http.middleware import caller, limit_concurrency, require_api_key, require_host
from compass.http.openapi import openapi_document
from compass.http.routes import ROUTES, Route, Served
from compass.settings import Settings

log = logging.getLogger(__name__)

_ENCODER = msgspec.json.Encoder()
_ROUTE, _STATUS = "compass.route", "compass.status"  # in the scope: what was asked for, and how it was answered
_JSON_HEADERS = ((b"content-type", JSON),)


def build_app(gateway: Gateway, settings: Settings, metrics: Metrics | None = None) -> App:
    """The application: `await app(scope, receive, send)`; `metrics` counts its requests.

    Usable inside Serve's ingress and under a uvicorn socket of our own, with and without lifespan events.
    """
    counts = NoMetrics() if metrics is None else metrics
    app: App = _Dispatch(gateway, settings.max_body_bytes, counts).handle
    app = limit_concurrency(app, settings.max_in_flight)
    if settings.api_key is not None:
        app = require_api_key(app, settings.api_key.get_secret_value())
    else:
        log.warning("COMPASS_API_KEY is not set: whoever reaches this server may read, write and delete")
        app = require_host(app, settings)
    return _answering(app, counts)


def _answering(app: App, metrics: Metrics) -> App:
    """Every error becomes a problem document; other protocols than HTTP are turned away."""

    async def outermost(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await _live(receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1003})
        began = time.perf_counter()
        try:
            await app(scope, receive, send)
            metrics.answered(scope.get(_ROUTE, OTHER), scope.get(_STATUS, 200), time.perf_counter() - began)
            return None
        except CompassError as error:
            if error.status in (500, 502, 503):
                log.warning("%s %s: %s", scope["method"], scope["path"], error.detail)
            reply = problems.reply_to(error)
        except ClientGoneError:
            return None
        except Exception:  # the client gets no internals, the log gets them all
            log.exception("%s %s failed", scope["method"], scope["path"])
            reply = problems.internal()
        metrics.answered(scope.get(_ROUTE, OTHER), reply.status, time.perf_counter() - began)
        return await reply.send(send, head=scope["method"] == "HEAD")

    return outermost


async def _live(receive: Receive, send: Send) -> None:
    """Nothing of ours begins or ends with the application; the events want an answer all the same."""
    while True:
        event = (await receive())["type"]
        await send({"type": f"{event}.complete"})
        if event == "lifespan.shutdown":
            return


class _Dispatch:
    """Finds the route, decodes what came, calls the gateway, encodes what it answered."""

    def __init__(self, gateway: Gateway, max_body_bytes: int, metrics: Metrics) -> None:
        self._served, self._limit = Served(gateway, metrics), max_body_bytes
        by_path: dict[str, dict[str, Route]] = {}
        for route in ROUTES:
            by_path.setdefault(route.path, {})[route.method] = route
        self._patterns = [(compile_path(path)[0], methods) for path, methods in by_path.items()]
        self._pages = _pages()

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        method, path = scope["method"], path_of(scope)
        head = method == "HEAD"
        method = "GET" if head else method
        page = self._pages.get(path)
        if page is not None:
            reply = page if method == "GET" else problems.method_not_allowed(method, ["GET", "HEAD"])
        else:
            reply = await self._answer(method, path, scope, receive)
        scope[_STATUS] = reply.status
        await reply.send(send, head=head)

    async def _answer(self, method: str, path: str, scope: Scope, receive: Receive) -> Reply:
        methods, params = self._find(path)
        route = methods.get(method)
        if route is None:
            return problems.method_not_allowed(method, [*methods, *(["HEAD"] if "GET" in methods else [])])
        scope[_ROUTE] = f"{route.method} {route.path}"
        body = await self._body(route, scope, receive)
        answer = await route.handler(self._served, _arguments(route, params, scope, body))
        if route.answer is None:
            return Reply(route.status)
        if isinstance(answer, bytes):
            return Reply(route.status, answer, ((b"content-type", route.media_type.encode()),))
        return Reply(route.status_of(answer), _ENCODER.encode(answer), _JSON_HEADERS)

    def _find(self, path: str) -> tuple[Mapping[str, Route], dict[str, str]]:
        for pattern, methods in self._patterns:
            match = pattern.match(path)
            if match:
                return methods, match.groupdict()
        raise NotFoundError(f"there is no route {path!r}; see /docs")

    async def _body(self, route: Route, scope: Scope, receive: Receive) -> schemas.Request | None:
        if route.body is None:
            return None
        body = await read_body(scope, receive, self._limit)
        if route.body_optional and not body:
            return route.body()
        check_json(scope)
        return decode(route.body, body)


def _arguments(route: Route, params: Mapping[str, str], scope: Scope, body: schemas.Request | None) -> Arguments:
    query = None if route.query is None else from_query(route.query, _parameters(scope))
    collection = params.get("collection", "")
    chunk_id = requests.chunk_id(collection, params["id"]) if "id" in params else 0
    return Arguments(collection, params.get("space", ""), chunk_id, query, body, caller(scope))


def _parameters(scope: Scope) -> dict[str, str]:
    return dict(parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True))


def _pages() -> dict[str, Reply]:
    """What never changes, encoded once."""
    document = openapi_document()
    page, policy = docs_page(document)
    html = ((b"content-type", b"text/html; charset=utf-8"), (b"content-security-policy", policy.encode()))
    return {
        "/openapi.json": Reply(200, _ENCODER.encode(document), _JSON_HEADERS),
        "/docs": Reply(200, page.encode(), html),
    }
