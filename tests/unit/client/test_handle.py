"""The Python client asks the operations of the HTTP interface by the same names."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import pytest

from compass.api.operations import OPERATIONS
from compass.client.handle import Operations

METHODS = [name for name, _ in inspect.getmembers(Operations, inspect.isfunction) if not name.startswith("_")]
VALUES: Mapping[str, Any] = {"chunks": [{"text": "t"}], "after": -1, "limit": 5, "chunk_id": 1, "dims": 4}


class RecordingOperations(Operations):
    """Answers each call with what it was."""

    def _call(self, operation: str, **arguments: Any) -> tuple[str, dict[str, Any]]:
        return operation, arguments


def parameters(method: str) -> dict[str, inspect.Parameter]:
    own = inspect.signature(getattr(Operations, method)).parameters
    return {name: parameter for name, parameter in own.items() if name != "self"}


def called(method: str) -> tuple[str, dict[str, Any]]:
    """What a method calls when it is given each of its named parameters."""
    named = [n for n, p in parameters(method).items() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    values = {name: VALUES.get(name, name) for name in named}
    operation, arguments = getattr(RecordingOperations(), method)(**values)
    return operation, arguments


def test_an_estimate_is_a_dry_run_of_a_rebuild() -> None:
    """With the fields of the order."""
    fields = {"embed_endpoint": "http://a", "budget": 5.0}
    operation, arguments = RecordingOperations().estimate_rebuild("docs", "new", **fields)
    assert operation == "rebuild"
    assert arguments == {
        "collection": "docs",
        "space": "new",
        "body": {**fields, "dry_run": True},
    }


def test_each_operation_has_a_method() -> None:
    """And no method calls what is no operation."""
    assert {called(method)[0] for method in METHODS} == set(OPERATIONS)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_takes_what_its_operation_takes(method: str) -> None:
    """What the path names, every parameter of the URL, and every field of the body, by its own name or another."""
    name, arguments = called(method)
    operation = OPERATIONS[name]
    query = () if operation.query is None else operation.query.__struct_fields__
    assert set(arguments) - {"body"} == {*operation.path, *query}
    assert ("body" in arguments) == (operation.body is not None)
    if operation.body is not None:
        takes_more = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters(method).values())
        fields = set(operation.body.__struct_fields__)
        assert set(arguments["body"]) <= fields
        assert takes_more or set(arguments["body"]) == fields
