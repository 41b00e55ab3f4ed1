"""The table of routes: each operation's method and path, and what only HTTP has."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from compass import __version__
from compass.api import schemas
from compass.api.arguments import Arguments
from compass.api.operations import OPERATIONS
from compass.errors import NotImplementedYetError
from compass.gateway.gateway import Gateway
from compass.http.metrics import CONTENT_TYPE, Metrics

JSON = "application/json"
COLLECTION = "/collections/{collection}"
CHUNK = COLLECTION + "/chunks/{id}"
SPACES = COLLECTION + "/vector-spaces"
SPACE = SPACES + "/{space}"

Answer = msgspec.Struct | list[Any] | bytes | None


@dataclass(frozen=True, slots=True)
class Served:
    """What answers: the gateway, and the counts of this process."""

    gateway: Gateway
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class Route:
    """One route. `answer` None: no body; one of another type than JSON is bytes. `curl`: the body of the example.

    `others`: the types of other answers that it may give, by their status.
    """

    method: str
    path: str
    handler: Callable[[Served, Arguments], Awaitable[Answer]]
    status: int
    summary: str
    answer: type[object] | None = None
    body: type[schemas.Request] | None = None
    query: type[schemas.Request] | None = None
    body_optional: bool = False
    curl: str = ""
    media_type: str = JSON
    others: Mapping[int, type[msgspec.Struct]] = field(default_factory=dict)

    def status_of(self, answer: Answer) -> int:
        """The status of what the handler has answered."""
        return next((status for status, kind in self.others.items() if type(answer) is kind), self.status)


def _route(method: str, path: str, name: str) -> Route:
    """The route of an operation."""
    operation = OPERATIONS[name]

    async def handler(served: Served, arguments: Arguments) -> Answer:
        return await operation.perform(served.gateway, arguments)

    return Route(
        method,
        path,
        handler,
        operation.status,
        operation.sentence,
        operation.answer,
        operation.body,
        operation.query,
        operation.body_optional,
        operation.example,
        others=operation.others,
    )


async def _health(served: Served, _: Arguments) -> schemas.Health:
    return schemas.Health("ok", served.gateway.collection_count(), __version__)


async def _ready(served: Served, _: Arguments) -> schemas.Ready:
    await served.gateway.ready()
    return schemas.Ready("ready")


async def _metrics(served: Served, _: Arguments) -> bytes:
    return served.metrics.exposition(await served.gateway.samples())


async def _later(served: Served, _: Arguments) -> None:
    raise NotImplementedYetError("this version does not have facets and segments")


ROUTES = (
    _route("POST", COLLECTION + "/search", "search"),
    _route("POST", COLLECTION + "/ingest", "ingest"),
    Route("GET", "/health", _health, 200, "Whether the process lives; needs no key.", schemas.Health),
    Route(
        "GET",
        "/ready",
        _ready,
        200,
        "Whether requests would be answered now (503 else); needs no key.",
        schemas.Ready,
    ),
    Route(
        "GET",
        "/metrics",
        _metrics,
        200,
        "Counters and gauges for Prometheus: requests, epochs, spaces, rebuilds and their endpoints.",
        str,
        media_type=CONTENT_TYPE,
    ),
    _route("POST", "/collections", "create_collection"),
    _route("GET", "/collections", "list_collections"),
    _route("GET", COLLECTION, "collection_info"),
    _route("DELETE", COLLECTION, "delete_collection"),
    _route("GET", COLLECTION + "/chunks", "chunks"),
    _route("GET", CHUNK, "chunk"),
    _route("DELETE", CHUNK, "delete_chunk"),
    _route("POST", COLLECTION + "/delete", "delete"),
    Route(
        "GET",
        COLLECTION + "/facets",
        _later,
        200,
        "Counts of values; a later version has it (501).",
        schemas.NotYet,
    ),
    Route(
        "GET",
        COLLECTION + "/segments/at",
        _later,
        200,
        "Segments at a time; a later version has it (501).",
        schemas.NotYet,
    ),
    _route("POST", SPACES, "add_space"),
    _route("GET", SPACES, "list_spaces"),
    _route("PATCH", SPACE, "set_space"),
    _route("DELETE", SPACE, "drop_space"),
    _route("POST", SPACE + "/rebuild", "rebuild"),
    _route("DELETE", SPACE + "/rebuild", "cancel_rebuild"),
    _route("GET", SPACE + "/status", "rebuild_status"),
    _route("GET", SPACE + "/quarantine", "quarantine"),
    _route("PUT", COLLECTION + "/default-vector-space", "swap"),
    _route("GET", COLLECTION + "/history", "history"),
)
