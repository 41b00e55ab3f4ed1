"""How a Python handle calls an operation: plain values in and out."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from compass.api import requests
from compass.api.arguments import Arguments
from compass.api.bodies import from_plain
from compass.api.operations import OPERATIONS, Operation
from compass.domain.flaws import Flaw, invalid
from compass.errors import InvalidRequestError
from compass.gateway.gateway import Gateway

HANDLE = "python"  # who asks, as the history names a Python handle


async def call(gateway: Gateway, name: str, arguments: Mapping[str, object]) -> object:
    """What an operation answers, as dicts, lists and plain values.

    Args:
        gateway: The gateway.
        name: Of the operation.
        arguments: What its path and its query name, and `body`.

    Raises:
        InvalidRequestError: there is no such operation, or its arguments do not fit.
        CompassError: what the operation raises.
    """
    operation = OPERATIONS.get(name)
    if operation is None:
        raise InvalidRequestError(f"there is no operation {name!r}; there are {', '.join(OPERATIONS)}")
    return msgspec.to_builtins(await operation.perform(gateway, bind(operation, arguments)))


def bind(operation: Operation, arguments: Mapping[str, object]) -> Arguments:
    """The arguments of an operation as structs.

    Raises:
        InvalidRequestError: one is missing, unknown or does not fit.
        NotFoundError: `chunk_id` is no id of a chunk.
    """
    rest = dict(arguments)
    names = {name: rest.pop(name) for name in operation.path if name in rest}
    body = from_plain(operation.body, rest.pop("body", {})) if operation.body else None
    parameters = {} if operation.query is None else {n: rest.pop(n) for n in _names(operation.query) if n in rest}
    flaws = [Flaw(name, "is not an argument of this operation") for name in rest]
    flaws += [Flaw(name, "is missing") for name in operation.path if name not in names]
    flaws += [
        Flaw(name, f"Expected `str`, got `{type(value).__name__}`")
        for name, value in names.items()
        if name != "chunk_id" and not isinstance(value, str)
    ]
    if flaws:
        raise invalid(flaws)
    collection = str(names.get("collection", ""))
    return Arguments(
        collection=collection,
        space=str(names.get("space", "")),
        chunk_id=requests.chunk_id(collection, str(names["chunk_id"])) if "chunk_id" in names else 0,
        query=None if operation.query is None else from_plain(operation.query, parameters),
        body=body,
        who=HANDLE if operation.named else None,
    )


def _names(query: type[msgspec.Struct]) -> tuple[str, ...]:
    return query.__struct_fields__
