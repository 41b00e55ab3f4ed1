"""What the use cases of a gateway share: its table, the other parts of the service, and what it has acknowledged."""

from __future__ import annotations

from collections.abc import Callable

from compass.clock import Clock
from compass.domain.routing.table import CollectionRoute
from compass.domain.space import Space
from compass.gateway import ports


class Context:
    """The gateway's ports. One event loop."""

    def __init__(
        self,
        table: ports.Table,
        router: ports.Router,
        collections: Callable[[str], ports.Collection],
        indexes: Callable[[Space], ports.SpaceIndex],
        clock: Clock,
    ) -> None:
        """See `Gateway`."""
        self.table, self.router, self.clock = table, router, clock
        self.collection, self.index = collections, indexes
        self._acknowledged: dict[str, int] = {}  # by uuid of the collection

    async def route(self, collection: str) -> CollectionRoute:
        """The route as the table has it, for what no swap need hold up.

        Raises:
            NotFoundError: there is no such collection.
            UnavailableError: the table's lease has run out.
        """
        return (await self.table.current()).route(collection)

    def acknowledge(self, route: CollectionRoute, seq: int) -> None:
        """Note that a caller has been told of a commit: no answer from here may be older."""
        self._acknowledged[route.uuid] = max(seq, self.acknowledged(route))

    def acknowledged(self, route: CollectionRoute) -> int:
        """The last commit of a collection that a caller was told of; 0 without any."""
        return self._acknowledged.get(route.uuid, 0)
