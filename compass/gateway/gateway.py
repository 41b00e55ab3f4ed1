"""The gateway: every use case, in the domain's values, without HTTP and without actors.

It routes by its table, checks what callers send before anything is written, and asks the router, the
collections and the space indexes behind their ports.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from compass.clock import Clock
from compass.domain.embedding.contract import Embedder
from compass.domain.info import SpaceRebuild, SpaceSample
from compass.domain.routing.table import CollectionRoute
from compass.domain.space import Space
from compass.errors import CompassError, UnavailableError
from compass.gateway import ports
from compass.gateway.chunks import Chunks
from compass.gateway.collections import Collections
from compass.gateway.context import Context
from compass.gateway.ingest import Ingest
from compass.gateway.query_embedding import QueryEmbedding
from compass.gateway.rebuilds import Rebuilds
from compass.gateway.search import Search
from compass.gateway.spaces import Spaces
from compass.gateway.visibility import GRACE_S, Followers

log = logging.getLogger(__name__)

READY_S = 2.0  # how long a space's index may take to say that it is there


class Gateway:
    """Answers requests. One event loop; holds nothing but its routing table and what it has acknowledged.

    Attributes:
        collections, spaces, chunks, ingest, search, rebuilds: The use cases, by capability.
    """

    def __init__(
        self,
        table: ports.Table,
        router: ports.Router,
        collections: Callable[[str], ports.Collection],
        indexes: Callable[[Space], ports.SpaceIndex],
        embedders: Callable[[Space], Embedder],
        clock: Clock = time.monotonic,
        *,
        grace_s: float = GRACE_S,
        ready_s: float = READY_S,
    ) -> None:
        """Wire the ports.

        Args:
            table: Who answers what, under a lease.
            router: Changes it.
            collections: The writer of a collection, by uuid.
            indexes: The index of a space; asked for each query, so it must be cheap.
            embedders: Opens the embedder of a space's queries, for spaces that have an endpoint.
            clock: Seconds that only grow.
            grace_s: How much longer than asked an index may take to answer after a durable write.
            ready_s: How long an index may take to say that it is there.
        """
        context = self._context = Context(table, router, collections, indexes, clock)
        followers = Followers(table, indexes, clock, grace_s)
        self._ready_s = ready_s
        self.spaces = Spaces(context)
        self.collections = Collections(context, self.spaces)
        self.chunks = Chunks(context)
        self.ingest = Ingest(context, followers)
        self.search = Search(context, QueryEmbedding(embedders))
        self.rebuilds = Rebuilds(context)

    def collection_count(self) -> int:
        """How many collections there are, by the newest table that has arrived."""
        return len(self._context.table.table.collections)

    async def ready(self) -> None:
        """Check that requests would be answered: a valid table, and every default space is there.

        Raises:
            UnavailableError: not now.
        """
        table = await self._context.table.current()
        defaults = [route.space(None) for route in table.collections.values()]
        try:
            async with asyncio.timeout(self._ready_s):
                await asyncio.gather(*(self._context.index(space).follow(0, 0.0) for space in defaults))
        except (TimeoutError, CompassError) as error:
            raise UnavailableError(f"a default space does not answer: {error or 'timeout'}") from error

    async def samples(self) -> list[SpaceSample]:
        """How every space does now; those whose index is silent, without what it would say."""
        routes = self._context.table.table.collections.values()
        spaces = [(route, space) for route in routes for space in route.spaces.values()]
        return [*await asyncio.gather(*(self._sample(route, space) for route, space in spaces))]

    async def _sample(self, route: CollectionRoute, space: Space) -> SpaceSample:
        rebuild: SpaceRebuild | None = None
        try:
            async with asyncio.timeout(self._ready_s):
                rebuild = await self.rebuilds.status_of(space)
        except (TimeoutError, CompassError) as error:
            log.warning("no metrics of vector space %s: %s", space.name, error or "timeout")
        return SpaceSample(route.name, space, route.default == space.name, rebuild)
