"""The one table of operations: what each takes and answers, how it is carried out, and whether it may be repeated.

From it come the HTTP routes with their OpenAPI document and their page, the operations of a Python handle and the
methods of its client, and what the stubs of the router and of a collection must never send twice.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from compass.api import handlers, schemas
from compass.api.arguments import Arguments
from compass.gateway.gateway import Gateway

Port = Literal["router", "collection", "index"]
Path = Literal["collection", "space", "chunk_id"]
SPACE: tuple[Path, ...] = ("collection", "space")
COLLECTION: tuple[Path, ...] = ("collection",)
CHUNK: tuple[Path, ...] = ("collection", "chunk_id")


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation.

    Attributes:
        name: As a Python handle calls it.
        sentence: What it does.
        perform: Does it.
        status: Of a good answer over HTTP.
        answer: The type of a good answer; None for one without a body.
        others: The types of other good answers, by their status.
        path: What a path names.
        query: The parameters of a URL.
        body: What is sent.
        body_optional: Whether nothing at all may be sent.
        example: A body.
        named: Whether the history names the caller.
        port: Which part of the service carries it out.
        method: That part's method.
        repeatable: Whether the method may be called again when its answer was lost: it would do the same once more.
    """

    name: str
    sentence: str
    perform: Callable[[Gateway, Arguments], Awaitable[msgspec.Struct | list[Any] | None]]
    status: int = 200
    answer: type[object] | None = None
    others: Mapping[int, type[msgspec.Struct]] = field(default_factory=dict)
    path: tuple[Path, ...] = ()
    query: type[schemas.Request] | None = None
    body: type[schemas.Request] | None = None
    body_optional: bool = False
    example: str = ""
    named: bool = False
    port: Port = field(kw_only=True)
    method: str = field(kw_only=True)
    repeatable: bool = True


_CHUNKS = '{"chunks": [{"client_id": "a", "file_id": "guide.md", "chunk_index": 0, "text": "Swap the default."}]}'

_TABLE = (
    Operation(
        "create_collection",
        "Create a collection; without vector_spaces it has one, with the built-in embedder.",
        handlers.create_collection,
        201,
        schemas.CollectionInfo,
        body=schemas.NewCollection,
        example='{"name": "docs"}',
        named=True,
        port="router",
        method="create_collection",
        repeatable=False,  # done, it refuses to be done again: the caller would be told of a conflict with himself
    ),
    Operation(
        "list_collections",
        "All collections.",
        handlers.list_collections,
        200,
        list[schemas.CollectionInfo],
        port="collection",
        method="stats",
    ),
    Operation(
        "collection_info",
        "A collection with its vector spaces.",
        handlers.collection_info,
        200,
        schemas.CollectionInfo,
        path=COLLECTION,
        port="collection",
        method="stats",
    ),
    Operation(
        "delete_collection",
        "Delete a collection; every byte of it is gone from disk.",
        handlers.delete_collection,
        204,
        path=COLLECTION,
        port="router",
        method="delete_collection",
        repeatable=False,  # as create_collection
    ),
    Operation(
        "ingest",
        "Write chunks. Durable when it answers; waits up to wait_s until the default space can find them.",
        handlers.ingest,
        200,
        schemas.IngestAnswer,
        path=COLLECTION,
        body=schemas.IngestRequest,
        example=_CHUNKS,
        port="collection",
        method="ingest",  # with the name of its attempt: sent again, it is answered with its receipt
    ),
    Operation(
        "chunks",
        "The chunks by id, a page at a time.",
        handlers.chunks,
        200,
        schemas.ChunkPage,
        path=COLLECTION,
        query=schemas.PageQuery,
        port="collection",
        method="page",
    ),
    Operation(
        "chunk", "One chunk.", handlers.chunk, 200, schemas.Chunk, path=CHUNK, port="collection", method="chunk"
    ),
    Operation(
        "delete_chunk",
        "Delete one chunk.",
        handlers.delete_chunk,
        200,
        schemas.DeleteAnswer,
        path=CHUNK,
        port="collection",
        method="delete",  # as ingest
    ),
    Operation(
        "delete",
        "Delete chunks by ids or by filters, not both; an empty body is refused.",
        handlers.delete,
        200,
        schemas.DeleteAnswer,
        path=COLLECTION,
        body=schemas.DeleteRequest,
        example='{"filters": {"file_id": "guide.md"}}',
        port="collection",
        method="delete",  # as ingest
    ),
    Operation(
        "search",
        "Search one vector space, the default unless it is named.",
        handlers.search,
        200,
        schemas.SearchResponse,
        path=COLLECTION,
        body=schemas.SearchRequest,
        example='{"query": "how do I swap a model?", "top_k": 3}',
        port="index",
        method="search",
    ),
    Operation(
        "add_space",
        "Add a vector space; it is building until it is rebuilt or fed.",
        handlers.add_space,
        201,
        schemas.SpaceAdded,
        path=COLLECTION,
        body=schemas.NewSpace,
        example='{"name": "qwen3", "dims": 4096, "model": "Qwen/Qwen3-Embedding-8B"}',
        named=True,
        port="router",
        method="add_space",
        repeatable=False,  # as create_collection
    ),
    Operation(
        "list_spaces",
        "The vector spaces of a collection.",
        handlers.list_spaces,
        200,
        list[schemas.SpaceInfo],
        path=COLLECTION,
        port="index",
        method="stats",
    ),
    Operation(
        "set_space",
        "Move a space's endpoint, or change its query prompt or beam width.",
        handlers.set_space,
        200,
        schemas.SpaceInfo,
        path=SPACE,
        body=schemas.SpacePatch,
        example='{"embed_endpoint": "http://127.0.0.1:8080"}',
        named=True,
        port="router",
        method="set_space",
    ),
    Operation(
        "drop_space",
        "Drop a vector space that is not the default; its bytes are gone from disk.",
        handlers.drop_space,
        204,
        path=SPACE,
        query=schemas.DropQuery,
        named=True,
        port="router",
        method="drop_space",
        repeatable=False,  # as create_collection
    ),
    Operation(
        "rebuild",
        "Embed every chunk into a space, in the background; resumes what an earlier run left. dry_run: estimate it.",
        handlers.rebuild,
        202,
        schemas.RebuildStarted,
        {200: schemas.RebuildEstimate},
        path=SPACE,
        body=schemas.RebuildRequest,
        body_optional=True,
        example='{"embed_endpoint": "http://127.0.0.1:8080"}',
        named=True,
        port="router",
        method="start_rebuild",
        repeatable=False,  # as create_collection
    ),
    Operation(
        "cancel_rebuild",
        "Cancel a running rebuild; what it embedded is kept.",
        handlers.cancel_rebuild,
        202,
        schemas.RebuildCancelled,
        path=SPACE,
        query=schemas.CancelQuery,
        named=True,
        port="router",
        method="cancel_rebuild",
    ),
    Operation(
        "rebuild_status",
        "How far a space is.",
        handlers.rebuild_status,
        200,
        schemas.RebuildStatus,
        path=SPACE,
        port="index",
        method="rebuild_status",
    ),
    Operation(
        "quarantine",
        "The chunks that the endpoint refuses for themselves, with its reasons.",
        handlers.quarantine,
        200,
        schemas.Quarantine,
        path=SPACE,
        query=schemas.PageQuery,
        port="index",
        method="quarantine",
    ),
    Operation(
        "swap",
        "Swap the default: new queries use this space once it answers.",
        handlers.swap,
        200,
        schemas.Swapped,
        path=COLLECTION,
        body=schemas.SwapRequest,
        example='{"name": "qwen3"}',
        named=True,
        port="router",
        method="swap",
    ),
    Operation(
        "history",
        "What was done to the vector spaces: when, by whom, why, and how long it took.",
        handlers.history,
        200,
        schemas.History,
        path=COLLECTION,
        port="collection",
        method="history",
    ),
)
OPERATIONS: Mapping[str, Operation] = {operation.name: operation for operation in _TABLE}


def _never_repeated(port: Port) -> frozenset[str]:
    return frozenset(one.method for one in _TABLE if one.port == port and not one.repeatable)


NEVER_REPEATED_BY_ROUTER = _never_repeated("router")
# `change` is how the router commits: a compare-and-set, whose second answer would be a conflict with itself.
NEVER_REPEATED_BY_COLLECTION = _never_repeated("collection") | {"change"}
