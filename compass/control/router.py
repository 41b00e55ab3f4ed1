"""The authority for the routing table: all that changes who answers what goes through here.

Each change is *check, prepare, then one transition of the publication protocol* (fence, commit, publish),
whose commit carries its own precondition. What a transition means is in `domain/routing/publication.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

from compass.control.fingerprints import builder
from compass.control.indexes import Indexes
from compass.control.ports import Cluster
from compass.control.publisher import Publisher
from compass.control.rebuilds import Rebuilds
from compass.control.reconciler import Reconciler
from compass.control.registry import Registry
from compass.control.run_records import RunRecords
from compass.control.swap import Swaps
from compass.control.timings import DEFAULT_TIMINGS, RouterTimings, WallClock
from compass.control.transitions import new_space
from compass.domain.collection import AddSpace, CollectionSpec, CollectionState, DropSpace, SetSpace, check_drop_guard
from compass.domain.history import By, Note
from compass.domain.rebuild.order import RebuildOrder, RebuildStarted
from compass.domain.rebuild.report import EstimateReport
from compass.domain.routing.publication import Ack, Directive
from compass.domain.routing.swap import SwapOrder, Swapped
from compass.domain.routing.table import CollectionRoute
from compass.domain.space import BuiltBy, SpaceChanges, SpaceConfig
from compass.errors import CollectionExistsError, DefaultSpaceError
from compass.storage.root import Root

NOBODY = By()


class RouterService:
    """Holds the routing table, changes it, publishes it."""

    def __init__(
        self,
        root: Root,
        cluster: Cluster,
        publisher: Publisher,
        drop_guard_s: float = 0.0,
        *,
        timings: RouterTimings = DEFAULT_TIMINGS,
        now: WallClock = time.time,
    ) -> None:
        """Begin with what the root holds; calls wait until every collection that opens is in the table.

        A space that was the default within the last `drop_guard_s` seconds is dropped only on confirmation.
        """
        self._root, self._cluster, self._publisher = root, cluster, publisher
        self._drop_guard_s, self._timings, self._now = drop_guard_s, timings, now
        self._number = publisher.table.incarnation
        self._indexes = indexes = Indexes(cluster, publisher, timings.configure_s)
        self._records = records = RunRecords(root, now)
        self._registry = registry = Registry(cluster, publisher, indexes, timings)
        self._swaps = Swaps(cluster, registry, records, now)
        self._rebuilds = rebuilds = Rebuilds(
            cluster, registry, indexes=indexes, records=records, spawn=self._spawn, timings=timings, now=now
        )
        self._reconciler = Reconciler(
            root,
            cluster,
            publisher,
            registry,
            indexes=indexes,
            rebuilds=rebuilds,
            records=records,
            every_s=timings.reconcile_s,
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._opening = self._spawn(self._open())

    async def opened(self) -> None:
        """Wait until every collection that opens is in the table, however long that takes."""
        await asyncio.wait([self._opening])

    async def close(self) -> None:
        """Stop what goes on in the background."""
        for task in (tasks := list(self._tasks)):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- gateways

    async def poll(self, gateway: str, ack: Ack) -> Directive:
        """A gateway's long poll: its acknowledgement and its lease in, the next directive out."""
        await self._registry.until_open()
        return await self._publisher.poll(gateway, ack)

    async def leave(self, gateway: str) -> None:
        """A gateway has ended in good order: no change has to wait for its lease."""
        self._publisher.leave(gateway)

    # ---- collections

    async def create_collection(self, spec: CollectionSpec, by: By = NOBODY) -> None:
        """Create a collection whose spaces are active at once."""
        note = Note("create", None, self._now(), by, {"default": spec.default})
        async with self._registry.changing(spec.name) as change:
            if change.exists:
                raise CollectionExistsError(f"there is a collection {spec.name!r} already", {"collection": spec.name})
            created_at = self._now()
            spaces = [
                new_space(name, config, "active", created_at, follows=True) for name, config in spec.spaces.items()
            ]
            default = next(s.id for s in spaces if s.name == spec.default)

            async def make() -> CollectionState:
                state = await asyncio.to_thread(self._root.create, spec.name, spaces, default, spec.config, note)
                await self._reconciler.start(CollectionRoute.of(state))
                return state

            try:
                await change.create(spec.spaces, make)
            except BaseException:
                self._reconciler.look_for(spec.name)  # it may be there nevertheless
                raise

    async def delete_collection(self, collection: str) -> None:
        """Delete a collection; queries in flight finish, then every byte of it is gone."""
        async with self._registry.changing(collection) as change:
            route = change.route
            for space in route.spaces.values():
                await self._rebuilds.end(space)
            await change.remove()
            try:
                await self._indexes.retire(*route.spaces.values())
                await self._cluster.stop_collection(route.uuid)
                await asyncio.to_thread(self._root.delete, collection)
            except BaseException:
                self._reconciler.look_for(collection)  # not deleted: it comes back; tombstoned: its bytes are swept
                raise

    # ---- spaces

    async def add_space(self, collection: str, name: str, config: SpaceConfig, by: By = NOBODY) -> None:
        """Add a building space."""
        note = Note("add", name, self._now(), by, {"model": config.model, "dims": config.dims})
        async with self._registry.changing(collection) as change:
            space = new_space(name, config, "building", self._now(), follows=False)
            await change.transition(AddSpace(space), {name}, note)

    async def set_space(self, collection: str, space: str, changes: SpaceChanges, by: By = NOBODY) -> None:
        """Change fields of a space's config; a new endpoint must serve the model that built the space.

        Raises:
            FingerprintMismatchError: it says, or its vectors of stored texts show, that it is another one.
            EndpointUnavailableError: it does not answer.
        """
        note = Note("change", space, self._now(), by, {"changed": changes.names()})
        async with self._registry.changing(collection) as change:
            target = change.space(space)
            accept, built_by, old = changes.accept_new_fingerprint, None, target.config
            endpoint = changes.embed_endpoint or old.embed_endpoint
            if endpoint is not None and (accept or endpoint != old.embed_endpoint):
                built_by = await builder(
                    self._cluster, change.route, target, (endpoint,), old.api_key_env, accept=accept, must_answer=True
                )
            config = replace(old, **changes.of_config(old))
            await change.record(SetSpace(target.id, config=config, built_by=built_by), note)

    async def identified(self, collection: str, space_id: str, built_by: BuiltBy) -> None:
        """Record what has built a space of which nobody knew it."""
        async with self._registry.changing(collection) as change:
            if change.space_by_id(space_id).built_by is None:
                await change.record(SetSpace(space_id, built_by=built_by))

    async def drop_space(self, collection: str, space: str, confirm: str | None = None, by: By = NOBODY) -> None:
        """Drop a space that is not the default; queries in flight finish, then its bytes are gone.

        Raises:
            DefaultSpaceError: it is the default.
            ConfirmationNeededError: it was the default a short while ago, and `confirm` is not its name.
        """
        note = Note("drop", space, self._now(), by)
        async with self._registry.changing(collection) as change:
            target, uuid = change.space(space), change.route.uuid
            if change.route.default == space:
                raise DefaultSpaceError(
                    f"vector space {space!r} is the default of {collection!r}; swap the default first",
                    {"space": space},
                )
            if confirm != space:
                check_drop_guard(await change.state(), target, self._now(), self._drop_guard_s)
            await self._rebuilds.end(target)
            await change.transition(DropSpace(target.id), {space}, note)
        await self._indexes.retire(target)  # the way back must not wait for the queries on it
        async with self._registry.changing(collection) as change:
            if change.exists and change.route.uuid == uuid:  # else all of it is gone
                await self._cluster.collection(uuid).sweep()

    async def activate(self, collection: str, space_id: str) -> None:
        """Make a building space active if it has reached the frontier of now.

        Raises:
            SpaceLagsError: it lacks chunks; the caller catches up and asks again.
        """
        async with self._registry.changing(collection) as change:
            space = change.space_by_id(space_id)
            if space.status == "active":
                return
            await change.reach_frontier(space, self._timings.catch_up_s)
            active = SetSpace(space_id, status="active", follows=True, error=False)
            await change.transition(active, {space.name}, await self._records.note("activate", change.route, space))

    async def fail(self, collection: str, space_id: str, error: str) -> None:
        """Record that a rebuild failed, of a space that was never active."""
        async with self._registry.changing(collection) as change:
            space = change.space_by_id(space_id)
            failed = SetSpace(space_id)  # an active one stays so; the history tells of it
            if space.status == "building":
                failed = SetSpace(space_id, status="failed", error=error)
            await change.record(failed, await self._records.note("fail", change.route, space, error=error))

    async def swap(self, collection: str, order: SwapOrder, by: By = NOBODY) -> Swapped:
        """Make a space the default, see `Swaps.swap`."""
        return await self._swaps.swap(collection, order, by)

    # ---- rebuilds

    async def start_rebuild(
        self, collection: str, space: str, order: RebuildOrder, by: By = NOBODY
    ) -> RebuildStarted:
        """Start a rebuild, or go on with an interrupted one."""
        return await self._rebuilds.start(collection, space, order, by)

    async def estimate_rebuild(self, collection: str, space: str, order: RebuildOrder) -> EstimateReport:
        """What a rebuild would take and cost, and what of it would fail; changes nothing."""
        return await self._rebuilds.estimate(collection, space, order)

    async def cancel_rebuild(self, collection: str, space: str, by: By = NOBODY) -> None:
        """Cancel a running rebuild; what it embedded is kept."""
        await self._rebuilds.cancel(collection, space, by)

    # ---- in the background

    async def _open(self) -> None:
        await self._reconciler.open()
        self._spawn(self._reconciler.reconcile())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
