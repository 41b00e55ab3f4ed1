"""The table of routes: what is asked, what is answered, and which use case of the gateway does it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from compass.api import schemas as s
from compass.api.schemas.estimates import RebuildEstimate
from compass.errors import NotFoundError, NotImplementedYetError
from compass.gateway.gateway import Gateway
from compass.http.metrics import CONTENT_TYPE, Metrics

JSON = "application/json"
COLLECTION = "/collections/{collection}"
SPACES = COLLECTION + "/vector-spaces"
SPACE = SPACES + "/{space}"


@dataclass(frozen=True, slots=True)
class Call:
    """A request, decoded; `who` asks."""

    gateway: Gateway
    metrics: Metrics
    params: dict[str, str]
    query: Any
    body: Any
    who: str

    @property
    def collection(self) -> str:
        """The collection in the path."""
        return self.params["collection"]

    @property
    def space(self) -> str:
        """The vector space in the path."""
        return self.params["space"]

    @property
    def chunk_id(self) -> int:
        """The chunk in the path.

        Raises:
            NotFoundError: it is no id, so there is no such chunk.
        """
        said = self.params["id"]
        if not (said.isascii() and said.isdigit() and len(said) <= 19 and int(said) <= s.INT64_MAX):
            raise NotFoundError(f"collection {self.collection!r} has no chunk {said!r}", {"id": said})
        return int(said)


@dataclass(frozen=True, slots=True)
class Route:
    """One route. `answer` None: no body; one of another type than JSON is bytes. `curl`: the body of the example.

    `others`: the types of other answers that it may give, by their status.
    """

    method: str
    path: str
    handler: Callable[[Call], Awaitable[Any]]
    status: int
    summary: str
    answer: Any = None
    body: Any = None
    query: Any = None
    body_optional: bool = False
    curl: str = ""
    media_type: str = JSON
    others: Mapping[int, Any] = field(default_factory=dict)

    def status_of(self, answer: Any) -> int:
        """The status of what the handler has answered."""
        return next((status for status, kind in self.others.items() if type(answer) is kind), self.status)


async def _metrics(call: Call) -> bytes:
    return call.metrics.exposition(await call.gateway.samples())


async def _health(call: Call) -> s.Health:
    return call.gateway.health()


async def _later(call: Call) -> None:
    raise NotImplementedYetError("this version does not have facets and segments")


ROUTES = (
    Route(
        "POST",
        COLLECTION + "/search",
        lambda c: c.gateway.search(c.collection, c.body),
        200,
        "Search one vector space, the default unless it is named.",
        s.SearchResponse,
        s.SearchRequest,
        curl='{"query": "how do I swap a model?", "top_k": 3}',
    ),
    Route(
        "POST",
        COLLECTION + "/ingest",
        lambda c: c.gateway.ingest(c.collection, c.body),
        200,
        "Write chunks. Durable when it answers; waits up to wait_s until the default space can find them.",
        s.IngestAnswer,
        s.IngestRequest,
        curl='{"chunks": [{"client_id": "a", "file_id": "guide.md", "chunk_index": 0, "text": "Swap the default."}]}',
    ),
    Route(
        "GET",
        "/health",
        _health,
        200,
        "Whether the process lives; needs no key.",
        s.Health,
    ),
    Route(
        "GET",
        "/ready",
        lambda c: c.gateway.ready(),
        200,
        "Whether requests would be answered now (503 else); needs no key.",
        s.Ready,
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
    Route(
        "POST",
        "/collections",
        lambda c: c.gateway.create_collection(c.body, c.who),
        201,
        "Create a collection; without vector_spaces it has one, with the built-in embedder.",
        s.CollectionInfo,
        s.NewCollection,
        curl='{"name": "docs"}',
    ),
    Route(
        "GET",
        "/collections",
        lambda c: c.gateway.list_collections(),
        200,
        "All collections.",
        list[s.CollectionInfo],
    ),
    Route(
        "GET",
        COLLECTION,
        lambda c: c.gateway.collection_info(c.collection),
        200,
        "A collection with its vector spaces.",
        s.CollectionInfo,
    ),
    Route(
        "DELETE",
        COLLECTION,
        lambda c: c.gateway.delete_collection(c.collection),
        204,
        "Delete a collection; every byte of it is gone from disk.",
    ),
    Route(
        "GET",
        COLLECTION + "/chunks",
        lambda c: c.gateway.chunks(c.collection, c.query.after, c.query.limit),
        200,
        "The chunks by id, a page at a time.",
        s.ChunkPage,
        query=s.PageQuery,
    ),
    Route(
        "GET",
        COLLECTION + "/chunks/{id}",
        lambda c: c.gateway.chunk(c.collection, c.chunk_id),
        200,
        "One chunk.",
        s.Chunk,
    ),
    Route(
        "DELETE",
        COLLECTION + "/chunks/{id}",
        lambda c: c.gateway.delete_chunk(c.collection, c.chunk_id),
        200,
        "Delete one chunk.",
        s.DeleteAnswer,
    ),
    Route(
        "POST",
        COLLECTION + "/delete",
        lambda c: c.gateway.delete(c.collection, c.body),
        200,
        "Delete chunks by ids or by filters, not both; an empty body is refused.",
        s.DeleteAnswer,
        s.DeleteRequest,
        curl='{"filters": {"file_id": "guide.md"}}',
    ),
    Route(
        "GET",
        COLLECTION + "/facets",
        _later,
        200,
        "Counts of values; a later version has it (501).",
        s.NotYet,
    ),
    Route(
        "GET",
        COLLECTION + "/segments/at",
        _later,
        200,
        "Segments at a time; a later version has it (501).",
        s.NotYet,
    ),
    Route(
        "POST",
        SPACES,
        lambda c: c.gateway.add_space(c.collection, c.body, c.who),
        201,
        "Add a vector space; it is building until it is rebuilt or fed.",
        s.SpaceAdded,
        s.NewSpace,
        curl='{"name": "qwen3", "dims": 4096, "model": "Qwen/Qwen3-Embedding-8B"}',
    ),
    Route(
        "GET",
        SPACES,
        lambda c: c.gateway.list_spaces(c.collection),
        200,
        "The vector spaces of a collection.",
        list[s.SpaceInfo],
    ),
    Route(
        "PATCH",
        SPACE,
        lambda c: c.gateway.set_space(c.collection, c.space, c.body, c.who),
        200,
        "Move a space's endpoint, or change its query prompt or beam width.",
        s.SpaceInfo,
        s.SpacePatch,
        curl='{"embed_endpoint": "http://127.0.0.1:8080"}',
    ),
    Route(
        "DELETE",
        SPACE,
        lambda c: c.gateway.drop_space(c.collection, c.space, c.query.confirm, c.query.reason, c.who),
        204,
        "Drop a vector space that is not the default; its bytes are gone from disk.",
        query=s.DropQuery,
    ),
    Route(
        "POST",
        SPACE + "/rebuild",
        lambda c: c.gateway.rebuild(c.collection, c.space, c.body, c.who),
        202,
        "Embed every chunk into a space, in the background; resumes what an earlier run left. dry_run: estimate it.",
        s.RebuildStarted,
        s.RebuildRequest,
        body_optional=True,
        others={200: RebuildEstimate},
        curl='{"embed_endpoint": "http://127.0.0.1:8080"}',
    ),
    Route(
        "DELETE",
        SPACE + "/rebuild",
        lambda c: c.gateway.cancel_rebuild(c.collection, c.space, c.query.reason, c.who),
        202,
        "Cancel a running rebuild; what it embedded is kept.",
        s.RebuildCancelled,
        query=s.CancelQuery,
    ),
    Route(
        "GET",
        SPACE + "/status",
        lambda c: c.gateway.rebuild_status(c.collection, c.space),
        200,
        "How far a space is.",
        s.RebuildStatus,
    ),
    Route(
        "GET",
        SPACE + "/quarantine",
        lambda c: c.gateway.quarantine(c.collection, c.space, c.query.after, c.query.limit),
        200,
        "The chunks that the endpoint refuses for themselves, with its reasons.",
        s.Quarantine,
        query=s.PageQuery,
    ),
    Route(
        "PUT",
        COLLECTION + "/default-vector-space",
        lambda c: c.gateway.swap(c.collection, c.body, c.who),
        200,
        "Swap the default: new queries use this space once it answers.",
        s.Swapped,
        s.SwapRequest,
        curl='{"name": "qwen3"}',
    ),
    Route(
        "GET",
        COLLECTION + "/history",
        lambda c: c.gateway.history(c.collection),
        200,
        "What was done to the vector spaces: when, by whom, why, and how long it took.",
        s.History,
    ),
)
