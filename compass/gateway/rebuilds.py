"""Rebuilds of vector spaces: estimated, started, watched, cancelled."""

from __future__ import annotations

from compass.domain.history import By
from compass.domain.info import SpaceRebuild
from compass.domain.page import Page
from compass.domain.rebuild.order import RebuildOrder, RebuildStarted, check_order
from compass.domain.rebuild.report import EstimateReport
from compass.domain.rebuild.status import QuarantinedChunk
from compass.domain.space import Space
from compass.gateway.context import Context


class Rebuilds:
    """The use cases of rebuilds."""

    def __init__(self, context: Context) -> None:
        """Have the router of `context` carry them out."""
        self._context = context

    async def start(self, collection: str, space: str, order: RebuildOrder, by: By) -> RebuildStarted:
        """Start a rebuild, or resume what an earlier one left.

        Raises:
            InvalidRequestError: there is no endpoint anywhere, ...
            RebuildRunningError: one runs already.
            DefaultSpaceError: the default cannot be restarted.
        """
        checked = check_order(order, await self._space(collection, space))
        return await self._context.router.start_rebuild(collection, space, checked, by)

    async def estimate(self, collection: str, space: str, order: RebuildOrder) -> EstimateReport:
        """What this rebuild would take and cost, and what of it would fail; changes nothing.

        Raises:
            InvalidRequestError: there is no endpoint anywhere, ...
        """
        checked = check_order(order, await self._space(collection, space))
        return await self._context.router.estimate_rebuild(collection, space, checked)

    async def cancel(self, collection: str, space: str, by: By) -> None:
        """Cancel a running rebuild.

        Raises:
            NotFoundError: none is running.
        """
        await self._context.router.cancel_rebuild(collection, space, by)

    async def status(self, collection: str, space: str) -> SpaceRebuild:
        """How far a space is.

        Raises:
            NotFoundError: there is no such space.
        """
        return await self.status_of(await self._space(collection, space))

    async def status_of(self, space: Space) -> SpaceRebuild:
        """How far a space is, by its index."""
        return SpaceRebuild(space, await self._context.index(space).rebuild_status())

    async def quarantine(self, collection: str, space: str, after: int, limit: int) -> Page[QuarantinedChunk]:
        """At most `limit` chunks that a space's endpoint refuses for themselves, with an id above `after`, by id.

        Raises:
            NotFoundError: there is no such space.
        """
        index = self._context.index(await self._space(collection, space))
        return Page.of(await index.quarantine(after, limit), limit)

    async def _space(self, collection: str, space: str) -> Space:
        return (await self._context.route(collection)).space(space)
