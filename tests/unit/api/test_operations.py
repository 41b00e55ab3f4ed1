"""The table of operations: what derives from it fits the service behind it."""

from __future__ import annotations

import inspect

import pytest

from compass.api.bodies import decode
from compass.api.operations import (
    NEVER_REPEATED_BY_COLLECTION,
    NEVER_REPEATED_BY_ROUTER,
    OPERATIONS,
    Operation,
)
from compass.gateway import ports
from compass.http.routes import ROUTES

PORTS: dict[str, type[object]] = {
    "router": ports.Router,
    "collection": ports.Collection,
    "index": ports.SpaceIndex,
}
HTTP_ONLY = {
    "/health",
    "/ready",
    "/metrics",
    "/collections/{collection}/facets",
    "/collections/{collection}/segments/at",
}
ALL = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=lambda operation: operation.name)


@ALL
def test_each_operation_has_one_route(operation: Operation) -> None:
    """With its sentence, its types and its status."""
    (route,) = [r for r in ROUTES if r.summary == operation.sentence]
    assert (route.status, route.answer, route.others) == (operation.status, operation.answer, operation.others)
    assert (route.body, route.query, route.curl) == (operation.body, operation.query, operation.example)
    names = {"{collection}": "collection", "{space}": "space", "{id}": "chunk_id"}
    assert tuple(names[part] for part in route.path.split("/") if part in names) == operation.path


def test_few_routes_are_of_http_alone() -> None:
    """Everything else can be asked by a Python handle too."""
    sentences = {operation.sentence for operation in OPERATIONS.values()}
    assert {route.path for route in ROUTES if route.summary not in sentences} == HTTP_ONLY


@ALL
def test_each_operation_names_the_method_that_carries_it_out(operation: Operation) -> None:
    """Of a port of the gateway."""
    assert inspect.isfunction(getattr(PORTS[operation.port], operation.method))


def test_a_method_is_repeatable_or_not() -> None:
    """Whichever operation calls it."""
    flags: dict[tuple[str, str], set[bool]] = {}
    for one in OPERATIONS.values():
        flags.setdefault((one.port, one.method), set()).add(one.repeatable)
    assert all(len(values) == 1 for values in flags.values())


def test_what_must_not_be_sent_twice() -> None:
    """A second creation would conflict with the first; a second commit with itself."""
    assert {
        "create_collection",
        "delete_collection",
        "add_space",
        "drop_space",
        "start_rebuild",
    } == NEVER_REPEATED_BY_ROUTER
    assert {"change"} == NEVER_REPEATED_BY_COLLECTION


@ALL
def test_the_example_fits(operation: Operation) -> None:
    """It is a body that the operation takes; there is one where there is a body."""
    assert bool(operation.example) == (operation.body is not None)
    if operation.body is not None:
        decode(operation.body, operation.example.encode())


@ALL
def test_who_asks_for_a_change_is_named(operation: Operation) -> None:
    """In each change of a space's state that the history records."""
    port = PORTS[operation.port]
    assert operation.named == ("by" in inspect.signature(getattr(port, operation.method)).parameters)
