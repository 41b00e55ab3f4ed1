"""The swap of a collection's default: check, catch up, commit."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from compass.control.ports import Cluster
from compass.control.registry import Registry
from compass.control.run_records import RunRecords
from compass.control.timings import WallClock
from compass.control.transitions import CollectionChange
from compass.domain.collection import SwapDefault
from compass.domain.history import By, Note
from compass.domain.routing.swap import SwapOrder, Swapped
from compass.domain.routing.table import CollectionRoute
from compass.domain.space import Space
from compass.errors import EpochMismatchError, NotFoundError, RebuildRunningError, SpaceQuarantinedError


class Swaps:
    """Makes spaces the default."""

    def __init__(self, cluster: Cluster, registry: Registry, records: RunRecords, now: WallClock) -> None:
        self._cluster, self._registry, self._records, self._now = cluster, registry, records, now

    async def swap(self, collection: str, order: SwapOrder, by: By) -> Swapped:
        """Make a space the default: catch up, fence, commit, publish.

        From the first publication on, gateways acknowledge a write only when the target can find it too. So
        what is acknowledged before the frontier is read is below it, what comes later is in both spaces, and
        the new default lacks nothing that anybody was told is there.

        Raises:
            SpaceNotActiveError, RebuildRunningError: the space cannot answer for everything yet.
            FingerprintMismatchError: its endpoint is another model now, or two models have built it.
            SpaceLagsError, SpaceQuarantinedError: it lacks chunks; `force` swaps nevertheless.
            EpochMismatchError: the default is another one than the caller expects.
        """
        began_at = self._now()
        async with self._registry.changing(collection) as change:
            route = change.route
            _check_epoch(route, order)
            target = route.active_space(await _target_name(change, order))
            unchanged = Swapped(route.default, target.name, route.epoch)
            if route.default == target.name:
                return unchanged
            swap = SwapDefault(route.space(None).id, route.epoch, target.id, self._now())
            try:
                await self._prepare(change, target, order)
                state = await change.transition(swap, (), _note(route, target, order, began_at, by), default=True)
            except BaseException:
                await change.announce_next_default(None)
                raise
        return replace(unchanged, epoch=state.epoch)

    async def _prepare(self, change: CollectionChange, target: Space, order: SwapOrder) -> None:
        """Check the target, and let it catch up: all at once, for a caller waits."""
        checks = (
            self._refuse_unsound(change.route, target),
            self._ensure_same_model(change.route, target),
            _reach_frontier(change, target, order),
        )
        tasks = [asyncio.create_task(check) for check in checks]
        try:
            for task in tasks:  # in this order: what no force overrides is said first
                await task
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    async def _refuse_unsound(self, route: CollectionRoute, target: Space) -> None:
        """Refuse a target whose contents are in question; no force overrides that."""
        run = await self._cluster.find_rebuild(target.id)
        if run is not None and await run.writing():
            raise RebuildRunningError(
                f"vector space {target.name!r} is being rebuilt; wait for the end, or cancel it",
                {"space": target.name},
            )
        await self._records.refuse_mixed_models(route, target)

    async def _ensure_same_model(self, route: CollectionRoute, target: Space) -> None:
        """Refuse a target whose endpoint is another model now; no force overrides that."""
        if (endpoint := target.config.embed_endpoint) is not None:
            await self._cluster.index(route.uuid, target).ensure_same_model((endpoint,), target.config.api_key_env)


async def _target_name(change: CollectionChange, order: SwapOrder) -> str:
    """The space that the swap is to; a rollback without a name is to the previous default."""
    if order.space is not None:
        return order.space
    previous = (await change.state()).previous_default
    if previous is None:
        collection = change.route.name
        raise NotFoundError(
            f"collection {collection!r} has no previous default to roll back to: there was no swap, or the "
            "space was dropped; name a space",
            {"collection": collection},
        )
    return previous.name


async def _reach_frontier(change: CollectionChange, target: Space, order: SwapOrder) -> None:
    """Let writes wait for the target too, and the target for the writes before; `force` does without those.

    Raises:
        SpaceLagsError: it does not have them within the time.
        SpaceQuarantinedError: it has given up chunks that nobody else has given up.
    """
    await change.announce_next_default(target.name)
    if order.force:
        return
    behind = await change.reach_frontier(target, order.wait_s)
    if behind.quarantined > behind.accepted:
        raise SpaceQuarantinedError(
            f"{behind.quarantined} chunks of vector space {target.name!r} are quarantined, {behind.accepted} of "
            "them accepted: rebuild it again to retry them, with max_failed to accept them, or swap with force",
            {"space": target.name, "quarantined": behind.quarantined, "accepted": behind.accepted},
        )


def _check_epoch(route: CollectionRoute, order: SwapOrder) -> None:
    if order.expected_epoch is not None and order.expected_epoch != route.epoch:
        raise EpochMismatchError(
            f"epoch is {route.epoch}, expected {order.expected_epoch}",
            {"epoch": route.epoch, "expected_epoch": order.expected_epoch},
        )


def _note(route: CollectionRoute, target: Space, order: SwapOrder, began_at: float, by: By) -> Note:
    details: dict[str, str | bool] = {"previous": route.default}
    if order.force:
        details["forced"] = True
    return Note("rollback" if order.rollback else "swap", target.name, began_at, by, details)
