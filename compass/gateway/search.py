"""A search: a plan of steps on one space at one epoch.

route      which space answers, under which epoch
freshness  the commit that the answer must not be older than
vector     the caller's, or the text embedded by the space's own model
retrieve   the nearest chunks that the filter lets through, from the space's index
"""

from __future__ import annotations

import asyncio

from compass.domain.chunk import FloatVector, has_text
from compass.domain.flaws import Flaw, invalid
from compass.domain.info import SpaceRebuild
from compass.domain.routing.bare_vectors import check_bare_vector, check_expected_epoch
from compass.domain.routing.lease import Routed
from compass.domain.routing.table import CollectionRoute
from compass.domain.search.query import Hit, Query
from compass.domain.search.request import SearchRequest, vector_in
from compass.domain.search.result import SearchResult
from compass.domain.space import Space
from compass.errors import CompassError, InvalidRequestError, SpaceNotActiveError, UnavailableError
from compass.gateway.context import Context
from compass.gateway.query_embedding import QueryEmbedding


class Search:
    """The use case of searching."""

    def __init__(self, context: Context, embedding: QueryEmbedding) -> None:
        """Embed texts by `embedding`."""
        self._context, self._embedding = context, embedding

    async def run(self, collection: str, request: SearchRequest) -> SearchResult:
        """Answer a search from one space, one epoch.

        Raises:
            InvalidRequestError: neither query nor vector, both vectors, a vector that does not fit, ...
            NotFoundError: no such collection or space.
            SpaceNotActiveError: the space is building; the fields say how far it is.
            BareVectorError: a vector without a space after the default has changed.
            EpochMismatchError: the epoch is another one than `expected_epoch`.
            UnavailableError: not within `timeout_s`.
        """
        started = self._context.clock()
        try:
            async with (
                asyncio.timeout(request.timeout_s),
                self._context.table.route(collection, request.space) as routed,
            ):
                hits = await self._answer(request, routed)
        except TimeoutError:
            raise UnavailableError(f"no answer within {request.timeout_s:g} s", {"retry_after": 1}) from None
        except SpaceNotActiveError as error:
            raise await self._with_progress(error, collection, request.space) from None
        return SearchResult(hits, routed.space, routed.route.epoch, self._context.clock() - started)

    async def _answer(self, request: SearchRequest, routed: Routed) -> list[Hit]:
        """The steps of the plan, once the search is routed."""
        min_seq = await self._freshness(request.min_seq, routed.route)
        vector = await self._vector(request, routed)
        query = Query(
            vector=vector,
            top_k=request.top_k,
            where=request.where,
            exact=request.exact,
            ef_search=request.ef_search,
            include_vectors=request.include_vectors,
            min_seq=min_seq,
        )
        return await self._retrieve(query, routed.space)

    async def _freshness(self, min_seq: int | None, route: CollectionRoute) -> int:
        """The commit that an answer must not be older than; an index would wait in vain for one to come."""
        acknowledged = self._context.acknowledged(route)
        if min_seq is None or min_seq <= acknowledged:
            return acknowledged
        last = (await self._context.collection(route.uuid).stats()).seq
        if min_seq > last:
            detail = f"{min_seq} is no commit of {route.name!r}; its last one is {last}"
            raise invalid([Flaw("min_seq", detail)])
        return min_seq

    async def _vector(self, request: SearchRequest, routed: Routed) -> FloatVector:
        """The vector to search with: the caller's goes before his text."""
        sent = request.query_vector
        vector = None if sent is None else vector_in(routed.space, sent)
        check_expected_epoch(routed.route, request.expected_epoch)
        if sent is not None and request.is_bare(sent):
            advice = "name it in vector_space, or send expected_epoch"
            check_bare_vector(routed.route, request.expected_epoch, advice)
        if vector is not None:
            return vector
        space = routed.space
        if not has_text(request.query):
            raise _no_query("neither a query nor a vector is given")
        if space.config.embed_endpoint is None:
            raise _no_query(
                f"vector space {space.name!r} has no embedder: send a vector, or give it an embed_endpoint"
            )
        return await self._embedding.vector(space, request.query, request.timeout_s)

    async def _retrieve(self, query: Query, space: Space) -> list[Hit]:
        return (await self._context.index(space).search([query]))[0]

    async def _with_progress(
        self, error: SpaceNotActiveError, collection: str, name: str | None
    ) -> SpaceNotActiveError:
        """The same error with how far the space is, where its index says so."""
        try:
            space = (await self._context.route(collection)).space(name)
            rebuild = SpaceRebuild(space, await self._context.index(space).rebuild_status())
        except CompassError:
            return error
        return SpaceNotActiveError(
            f"{error.detail}; its progress is {rebuild.percent:g} %", {**error.fields, "progress": rebuild.progress}
        )


def _no_query(detail: str) -> InvalidRequestError:
    return invalid([Flaw("query", detail)])
