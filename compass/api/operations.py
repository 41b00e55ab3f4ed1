"""The gateway's operations by name, with plain values in and out: how a Python handle calls them."""

from __future__ import annotations

from typing import Any

import msgspec

from compass.api import schemas
from compass.api.bodies import from_plain
from compass.errors import InvalidRequestError

# By name: what the operation's `body` is, None for those without.
OPERATIONS: dict[str, type[schemas.Request] | None] = {
    "create_collection": schemas.NewCollection,
    "list_collections": None,
    "collection_info": None,
    "delete_collection": None,
    "ingest": schemas.IngestRequest,
    "chunks": None,
    "chunk": None,
    "delete_chunk": None,
    "delete": schemas.DeleteRequest,
    "search": schemas.SearchRequest,
    "add_space": schemas.NewSpace,
    "list_spaces": None,
    "set_space": schemas.SpacePatch,
    "drop_space": None,
    "rebuild": schemas.RebuildRequest,
    "rebuild_status": None,
    "quarantine": None,
    "cancel_rebuild": None,
    "swap": schemas.SwapRequest,
    "history": None,
}


NAMED = frozenset({"create_collection", "add_space", "set_space", "drop_space", "rebuild", "cancel_rebuild", "swap"})
HANDLE = "python"  # who asks, as the history names a Python handle


async def call(gateway: Any, operation: str, arguments: dict[str, Any]) -> Any:
    """What an operation answers, as dicts, lists and plain values.

    Args:
        gateway: The gateway.
        operation: One of `OPERATIONS`.
        arguments: By the names of the gateway's method; `body` as the HTTP interface has it.

    Raises:
        InvalidRequestError: there is no such operation, or its arguments do not fit.
        CompassError: what the operation raises.
    """
    if operation not in OPERATIONS:
        raise InvalidRequestError(f"there is no operation {operation!r}; there are {', '.join(OPERATIONS)}")
    kind, given = OPERATIONS[operation], dict(arguments)
    if operation in NAMED:
        given["who"] = HANDLE
    if kind is not None:
        given["body"] = from_plain(kind, given.get("body", {}))
    try:
        answering = getattr(gateway, operation)(**given)
    except TypeError as error:  # the call itself, not what it awaits
        raise InvalidRequestError(f"{operation}: {error}") from None
    return msgspec.to_builtins(await answering)
