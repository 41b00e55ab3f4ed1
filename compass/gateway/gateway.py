"""The gateway: every use case of the HTTP interface, without HTTP and without actors.

It routes by its table, checks what callers send before anything is written, and asks the router, the
collections and the space indexes behind their ports.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from compass import __version__
from compass.api import operations, responses, schemas
from compass.api.requests import (
    collection_spec,
    deletion,
    rebuild_spec,
    searched_space,
    space_changes,
    space_config,
    swap_spec,
)
from compass.api.schemas.estimates import RebuildEstimate
from compass.api.vectors import (
    chunks_to_store,
    guard_bare_vector,
    has_bare_vectors,
    id_map,
    invalid,
    query_vector,
)
from compass.domain.chunk import FloatVector, has_text
from compass.domain.filters import Filter, parse_filter
from compass.domain.history import By
from compass.domain.names import check_name
from compass.domain.routing.table import CollectionRoute
from compass.domain.search.query import Query
from compass.domain.space import Space
from compass.errors import CompassError, NotFoundError, SpaceNotActiveError, UnavailableError
from compass.gateway import ports
from compass.gateway.query_embedding import QueryEmbedding
from compass.gateway.visibility import Followers
from compass.http.metrics import SpaceSample

if TYPE_CHECKING:
    from compass.domain.embedding.contract import Embedder
    from compass.gateway.routing import RouteTable

log = logging.getLogger(__name__)

MAX_PAGE = 1000
READY_S = 2.0  # how long a default space may take to say that it is there


class Gateway:
    """Answers requests. One event loop; holds nothing but its routing table and what it has acknowledged."""

    def __init__(
        self,
        table: RouteTable,
        router: ports.Router,
        collections: Callable[[str], ports.Collection],
        indexes: Callable[[Space], ports.SpaceIndex],
        embedders: Callable[[Space], Embedder],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wire the ports.

        Args:
            table: Who answers what, under a lease.
            router: Changes it.
            collections: The writer of a collection, by uuid.
            indexes: The index of a space; asked for each query, so it must be cheap.
            embedders: Opens the embedder of a space's queries, for spaces that have an endpoint.
            clock: Seconds that only grow.
        """
        self._table, self._router, self._clock = table, router, clock
        self._collections, self._indexes = collections, indexes
        self._embedding = QueryEmbedding(embedders)
        self._followers = Followers(table, indexes, clock)
        self._acknowledged: dict[str, int] = {}  # by uuid: no answer from here may be older

    # ---- the service

    async def call(self, operation: str, arguments: dict[str, Any]) -> Any:
        """An operation by its name, with plain values in and out; see `operations.call`."""
        return await operations.call(self, operation, arguments)

    def health(self) -> schemas.Health:
        """The process lives."""
        return schemas.Health("ok", len(self._table.table.collections), __version__)

    async def ready(self) -> schemas.Ready:
        """Whether requests would be answered: a valid table, and every default space is there.

        Raises:
            UnavailableError: not now.
        """
        table = await self._table.current()
        defaults = [route.space(None) for route in table.collections.values()]
        try:
            async with asyncio.timeout(READY_S):
                await asyncio.gather(*(self._indexes(space).follow(0, 0.0) for space in defaults))
        except (TimeoutError, CompassError) as error:
            raise UnavailableError(f"a default space does not answer: {error or 'timeout'}") from error
        return schemas.Ready("ready")

    async def samples(self) -> list[SpaceSample]:
        """How every space does now; those whose index is silent, by name alone."""
        table = self._table.table
        asked = [(route, space) for route in table.collections.values() for space in route.spaces.values()]
        return list(await asyncio.gather(*(self._sample(route, space) for route, space in asked)))

    async def _sample(self, route: CollectionRoute, space: Space) -> SpaceSample:
        status = None
        try:
            async with asyncio.timeout(READY_S):
                status = responses.rebuild_status(space, await self._indexes(space).rebuild_status())
        except (TimeoutError, CompassError) as error:
            log.warning("no metrics of vector space %s: %s", space.name, error or "timeout")
        plain = None if status is None else msgspec.to_builtins(status)
        return SpaceSample(route.name, space.name, route.default == space.name, space.status == "active", plain)

    # ---- collections

    async def create_collection(self, body: schemas.NewCollection, who: str | None = None) -> schemas.CollectionInfo:
        """Create a collection; its spaces are active at once.

        Raises:
            InvalidRequestError, CollectionExistsError.
        """
        await self._router.create_collection(collection_spec(body), By(who))
        return await self.collection_info(body.name)

    async def list_collections(self) -> list[schemas.CollectionInfo]:
        """All collections, by name."""
        table = await self._table.current()
        found = await asyncio.gather(*(self._if_there(name) for name in sorted(table.collections)))
        return [info for info in found if info is not None]

    async def collection_info(self, collection: str) -> schemas.CollectionInfo:
        """A collection with its spaces.

        Raises:
            NotFoundError.
        """
        async with self._table.route(collection, None) as routed:
            route = routed.route
            stats, spaces = await asyncio.gather(
                self._collections(route.uuid).stats(), self._space_infos(route.spaces.values())
            )
        return responses.collection_info(route, stats, spaces)

    async def delete_collection(self, collection: str) -> None:
        """Delete it; when this returns its bytes are gone."""
        await self._router.delete_collection(collection)

    # ---- chunks

    async def ingest(self, collection: str, body: schemas.IngestRequest) -> schemas.IngestAnswer:
        """Write chunks: durable, then findable in the default space, or `wait_s` is over.

        Raises:
            InvalidRequestError: it names each bad chunk; nothing is written.
            BareVectorError, EpochMismatchError: a vector without a space after the default has changed.
        """
        started = self._clock()
        async with self._table.route(collection, None) as routed:
            route = routed.route
            if body.expected_epoch is not None or has_bare_vectors(body.chunks):
                how = "send it in embeddings: {space: [...]}, or send expected_epoch"
                guard_bare_vector(route, body.expected_epoch, how)
            chunks = chunks_to_store(body.chunks, route)
            receipt = await self._collections(route.uuid).ingest(chunks)
        self._acknowledge(route, receipt.seq)
        texts = sum(has_text(chunk.text) for chunk in chunks)
        pending = await self._followers.until_findable(route, receipt.seq, texts, body.wait_s)
        return schemas.IngestAnswer(
            indexed=len(chunks),
            id_map=id_map(body.chunks, receipt.ids),
            took_ms=round(1e3 * (self._clock() - started), 3),
            seq=receipt.seq,
            pending=pending,
        )

    async def chunks(self, collection: str, after: int = -1, limit: int = 100) -> schemas.ChunkPage:
        """A page of the chunks, by id.

        Raises:
            InvalidRequestError: `limit` is out of 1..1000.
        """
        _check_limit(limit)
        async with self._table.route(collection, None) as routed:
            chunks = await self._collections(routed.route.uuid).page(after, limit)
        more = len(chunks) == limit
        return schemas.ChunkPage([responses.chunk_shown(chunk) for chunk in chunks], chunks[-1].id if more else None)

    async def chunk(self, collection: str, chunk_id: int) -> schemas.Chunk:
        """One chunk.

        Raises:
            NotFoundError.
        """
        async with self._table.route(collection, None) as routed:
            chunk = await self._collections(routed.route.uuid).chunk(chunk_id)
        if chunk is None:
            raise _no_chunk(collection, chunk_id)
        return responses.chunk_shown(chunk)

    async def delete_chunk(self, collection: str, chunk_id: int) -> schemas.DeleteAnswer:
        """Delete one chunk.

        Raises:
            NotFoundError.
        """
        answer = await self._delete(collection, [chunk_id], None)
        if not answer.deleted:
            raise _no_chunk(collection, chunk_id)
        return answer

    async def delete(self, collection: str, body: schemas.DeleteRequest) -> schemas.DeleteAnswer:
        """Delete chunks by ids or by filters; an empty request never means all.

        Raises:
            InvalidRequestError: both, or neither.
        """
        return await self._delete(collection, *deletion(body))

    # ---- search

    async def search(self, collection: str, body: schemas.SearchRequest) -> schemas.SearchResponse:
        """Answer a search from one space, one epoch.

        Raises:
            InvalidRequestError: neither query nor vector, both vectors, a vector that does not fit, ...
            NotFoundError: no such collection or space.
            SpaceNotActiveError: the space is building; the fields say how far it is.
            BareVectorError: a vector without a space after the default has changed.
            EpochMismatchError: the epoch is another one than `expected_epoch`.
            NotImplementedYetError: something of a later version.
            UnavailableError: not within `timeout_s`.
        """
        started, name = self._clock(), searched_space(body)
        where = parse_filter(body.filters or {})
        try:
            async with asyncio.timeout(body.timeout_s), self._table.route(collection, name) as routed:
                route, space = routed.route, routed.space
                query = await self._query(body, where, route, space)
                hits = (await self._indexes(space).search([query]))[0]
        except TimeoutError:
            raise UnavailableError(f"no answer within {body.timeout_s:g} s", {"retry_after": 1}) from None
        except SpaceNotActiveError as error:
            raise await self._with_progress(error, collection, name) from None
        return schemas.SearchResponse(
            results=[responses.result(hit, space) for hit in hits],
            total=len(hits),
            took_us=round(1e6 * (self._clock() - started)),
            mode="semantic",
            vector_space=space.name,
            epoch=route.epoch,
        )

    # ---- spaces

    async def add_space(self, collection: str, body: schemas.NewSpace, who: str | None = None) -> schemas.SpaceAdded:
        """Add a space, which is building until it is rebuilt or fed.

        Raises:
            SpaceExistsError, InvalidRequestError.
        """
        check_name("vector space", body.name)
        config = space_config(body)
        await self._router.add_space(collection, body.name, config, By(who, body.reason))
        return schemas.SpaceAdded(name=body.name, dims=config.dims, model=config.model, status="building")

    async def list_spaces(self, collection: str) -> list[schemas.SpaceInfo]:
        """The spaces of a collection, in the order of their creation."""
        return await self._space_infos((await self._route(collection)).spaces.values())

    async def set_space(
        self, collection: str, space: str, body: schemas.SpacePatch, who: str | None = None
    ) -> schemas.SpaceInfo:
        """Change what can change while a space answers.

        Raises:
            FingerprintMismatchError: the new endpoint's model is not the one that built the space.
        """
        await self._router.set_space(collection, space, space_changes(body), By(who, body.reason))
        return await self._space_info((await self._route(collection)).space(space))

    async def drop_space(
        self,
        collection: str,
        space: str,
        confirm: str | None = None,
        reason: str | None = None,
        who: str | None = None,
    ) -> None:
        """Drop a space; when this returns its bytes are gone.

        Raises:
            DefaultSpaceError.
            ConfirmationNeededError: it was the default a short while ago; `confirm` must be its name.
        """
        await self._router.drop_space(collection, space, confirm, By(who, reason))

    async def swap(self, collection: str, body: schemas.SwapRequest, who: str | None = None) -> schemas.Swapped:
        """Make a space the default.

        Raises:
            SpaceNotActiveError, SpaceLagsError, SpaceQuarantinedError, EpochMismatchError, RebuildRunningError.
        """
        swapped = await self._router.swap(collection, swap_spec(body), By(who, body.reason))
        return schemas.Swapped(swapped.previous, swapped.current, swapped.epoch)

    async def history(self, collection: str) -> schemas.History:
        """What was done to the spaces of a collection, oldest first."""
        route = await self._route(collection)
        return responses.history(await self._collections(route.uuid).history())

    # ---- rebuilds

    async def rebuild(
        self, collection: str, space: str, body: schemas.RebuildRequest, who: str | None = None
    ) -> schemas.RebuildStarted | RebuildEstimate:
        """Start a rebuild, or resume what an earlier one left; with `dry_run`, estimate it and change nothing.

        Raises:
            InvalidRequestError: there is no endpoint anywhere.
            RebuildRunningError, DefaultSpaceError.
        """
        spec = rebuild_spec(body, (await self._route(collection)).space(space))
        if body.dry_run:
            return responses.estimate(await self._router.estimate_rebuild(collection, space, spec))
        started = await self._router.start_rebuild(collection, space, spec, By(who, body.reason))
        return schemas.RebuildStarted(started.status, started.job_id)

    async def cancel_rebuild(
        self, collection: str, space: str, reason: str | None = None, who: str | None = None
    ) -> schemas.RebuildCancelled:
        """Cancel a running rebuild.

        Raises:
            NotFoundError: none is running.
        """
        await self._router.cancel_rebuild(collection, space, By(who, reason))
        return schemas.RebuildCancelled()

    async def rebuild_status(self, collection: str, space: str) -> schemas.RebuildStatus:
        """How far a space is: progress is 1.0 exactly when its status is active."""
        found = (await self._route(collection)).space(space)
        return responses.rebuild_status(found, await self._indexes(found).rebuild_status())

    async def quarantine(self, collection: str, space: str, after: int = -1, limit: int = 100) -> schemas.Quarantine:
        """A page of the chunks that a space's endpoint refuses for themselves, by chunk id.

        Raises:
            InvalidRequestError: `limit` is out of 1..1000.
        """
        _check_limit(limit)
        found = await self._indexes((await self._route(collection)).space(space)).quarantine(after, limit)
        chunks = [
            schemas.QuarantinedChunk(id=c.id, file_id=c.file_id, chunk_index=c.chunk_index, reason=c.reason)
            for c in found
        ]
        return schemas.Quarantine(chunks, chunks[-1].id if len(chunks) == limit else None)

    # ---- what the above are made of

    async def _route(self, collection: str) -> CollectionRoute:
        """The route as the table has it, for what no swap need hold up."""
        return (await self._table.current()).route(collection)

    async def _if_there(self, collection: str) -> schemas.CollectionInfo | None:
        try:
            return await self.collection_info(collection)
        except NotFoundError:  # deleted while the list was made
            return None

    async def _space_infos(self, spaces: Iterable[Space]) -> list[schemas.SpaceInfo]:
        return list(await asyncio.gather(*(self._space_info(space) for space in spaces)))

    async def _space_info(self, space: Space) -> schemas.SpaceInfo:
        return responses.space_info(space, await self._indexes(space).stats())

    def _acknowledge(self, route: CollectionRoute, seq: int) -> None:
        self._acknowledged[route.uuid] = max(seq, self._acknowledged.get(route.uuid, 0))

    async def _delete(self, collection: str, ids: Sequence[int], where: Filter | None) -> schemas.DeleteAnswer:
        async with self._table.route(collection, None) as routed:
            route = routed.route
            receipt = await self._collections(route.uuid).delete(ids, where)
        self._acknowledge(route, receipt.seq)
        if receipt.deleted:  # gone from every space before the call returns, whichever gateway is asked next
            await self._followers.lacking(route.spaces.values(), receipt.seq, 0, 0.0)
        return schemas.DeleteAnswer(receipt.deleted, receipt.seq)

    async def _vector(self, body: schemas.SearchRequest, route: CollectionRoute, space: Space) -> FloatVector:
        """The vector to search with: the caller's, or the text embedded by the space's own model."""
        vector, bare = query_vector(body, space)
        if bare or body.expected_epoch is not None:
            how = "name it in vector_space, or send expected_epoch"
            guard_bare_vector(route, body.expected_epoch, how)
        if vector is not None:
            return vector
        if not has_text(body.query):
            raise invalid([{"field": "query", "detail": "neither a query nor a vector is given"}])
        if space.config.embed_endpoint is None:
            detail = f"vector space {space.name!r} has no embedder: send a vector, or give it an embed_endpoint"
            raise invalid([{"field": "query", "detail": detail}])
        return await self._embedding.vector(space, body.query, body.timeout_s)

    async def _query(self, body: schemas.SearchRequest, where: Filter, route: CollectionRoute, space: Space) -> Query:
        min_seq = await self._min_seq(body.min_seq, route)
        vector = await self._vector(body, route, space)
        return Query(
            vector=vector,
            top_k=body.top_k,
            where=where,
            exact=body.exact,
            ef_search=body.ef_search,
            include_vectors=body.include_vectors,
            min_seq=min_seq,
        )

    async def _min_seq(self, wanted: int | None, route: CollectionRoute) -> int:
        """The commit that an answer must not be older than; an index would wait in vain for one to come."""
        known = self._acknowledged.get(route.uuid, 0)
        if wanted is None or wanted <= known:
            return known
        last = (await self._collections(route.uuid).stats()).seq
        if wanted > last:
            detail = f"{wanted} is no commit of {route.name!r}; its last one is {last}"
            raise invalid([{"field": "min_seq", "detail": detail}])
        return wanted

    async def _with_progress(
        self, error: SpaceNotActiveError, collection: str, name: str | None
    ) -> SpaceNotActiveError:
        """The same error with how far the space is, where its index says so."""
        try:
            status = await self.rebuild_status(collection, name or "")
        except CompassError:
            return error
        return SpaceNotActiveError(
            f"{error.detail}; its progress is {status.percent:g} %", {**error.fields, "progress": status.progress}
        )


def _no_chunk(collection: str, chunk_id: int) -> NotFoundError:
    return NotFoundError(f"collection {collection!r} has no chunk {chunk_id}", {"id": chunk_id})


def _check_limit(limit: int) -> None:
    if not 1 <= limit <= MAX_PAGE:
        raise invalid([{"field": "limit", "detail": f"{limit} is out of 1..{MAX_PAGE}"}])
