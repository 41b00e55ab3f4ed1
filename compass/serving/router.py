"""The authority for the routing table: all that changes who answers what goes through here.

Each change is *check, prepare, then one transition of the publication protocol* (fence, commit, publish),
whose commit carries its own precondition. What a transition means is in `domain/publication.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

from compass.domain.collection import AddSpace, DropSpace, SetSpace, SwapDefault
from compass.domain.publication import Ack, Directive
from compass.domain.routing import CollectionRoute
from compass.domain.space import Space, SpaceConfig
from compass.errors import (
    CollectionExistsError,
    DefaultSpaceError,
    EpochMismatchError,
    FingerprintMismatchError,
)
from compass.serving.changes import Changes, Update, by_id, new_space, put, scope
from compass.serving.opening import Opening
from compass.serving.ports import CollectionSpec, RebuildSpec
from compass.serving.publisher import Publisher
from compass.serving.rebuild_orders import RebuildOrders
from compass.serving.router_ports import Cluster
from compass.storage.root import Root

SAME_MODEL = 0.999  # the least cosine at which two endpoints count as one model
CATCH_UP_S = 5.0  # how long a swap waits for its target to reach the frontier


class RouterService:
    """Holds the routing table, changes it, publishes it."""

    def __init__(self, root: Root, cluster: Cluster, publisher: Publisher) -> None:
        """Begin with what the root holds; calls wait until every collection that opens is in the table."""
        self._root, self._cluster, self._publisher = root, cluster, publisher
        self._number = publisher.table.incarnation
        self._changes = Changes(cluster, publisher)
        self._rebuilds = RebuildOrders(root, cluster, self._changes, self._spawn)
        self._opening = Opening(root, cluster, publisher, self._changes, self._rebuilds)
        self._tasks: set[asyncio.Task[None]] = set()
        self._opened = self._spawn(self._open())

    async def close(self) -> None:
        """Stop what goes on in the background."""
        for task in (tasks := list(self._tasks)):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- gateways

    async def poll(self, gateway: str, ack: Ack) -> Directive:
        """A gateway's long poll: its acknowledgement and its lease in, the next directive out."""
        await self._changes.until_open()
        return await self._publisher.poll(gateway, ack)

    async def state(self) -> dict[str, Any]:
        """What there is to say of the router itself."""
        await self._changes.until_open()
        table = self._publisher.table
        return {
            "incarnation": table.incarnation,
            "version": table.version,
            "gateways": sorted(self._publisher.gateways()),
            "collections": sorted(table.collections),
        }

    # ---- collections

    async def create_collection(self, spec: CollectionSpec) -> None:
        """Create a collection whose spaces are active at once."""
        async with await self._changes.lock(spec.name):
            if spec.name in self._publisher.table.collections:
                raise CollectionExistsError(f"there is a collection {spec.name!r} already", {"collection": spec.name})
            spaces = [new_space(name, config, "active", True) for name, config in spec.spaces.items()]
            default = next(s.id for s in spaces if s.name == spec.default)

            async def commit() -> Update:
                state = await asyncio.to_thread(self._root.create, spec.name, spaces, default, spec.config)
                await self._opening.start(CollectionRoute.of(state))
                return put(state)

            try:
                await self._publisher.transition(scope(spec.name, {s.name for s in spaces}, True), commit)
            except BaseException:
                self._opening.unopened.add(spec.name)  # it may be there nevertheless
                raise

    async def delete_collection(self, collection: str) -> None:
        """Delete a collection; queries in flight finish, then every byte of it is gone."""
        async with await self._changes.lock(collection):
            route = self._changes.route(collection)
            for space in route.spaces.values():
                await self._rebuilds.end(space)

            async def commit() -> Update:
                return lambda table: table.without(collection)

            removed = frozenset(s.id for s in route.spaces.values())
            await self._publisher.transition(scope(collection, set(route.spaces), True), commit, removed)
            try:
                for space in route.spaces.values():
                    await self._cluster.stop_index(space.id)
                await self._cluster.stop_collection(route.uuid)
                await asyncio.to_thread(self._root.delete, collection)
            except BaseException:
                self._opening.unopened.add(collection)  # not deleted: it comes back; tombstoned: its bytes are swept
                raise

    # ---- spaces

    async def add_space(self, collection: str, name: str, config: SpaceConfig) -> None:
        """Add a building space."""
        async with await self._changes.lock(collection):
            route = self._changes.route(collection)
            space = new_space(name, config, "building", False)
            await self._changes.transition(route, AddSpace(space), {name})

    async def set_space(self, collection: str, space: str, changes: dict[str, Any]) -> None:
        """Change fields of a space's config; a new endpoint must serve the model that built the space.

        Raises:
            FingerprintMismatchError: its vectors of texts that are stored differ from the stored ones.
            EmbeddingError: it does not answer.
        """
        async with await self._changes.lock(collection):
            route = self._changes.route(collection)
            target = route.space(space)
            config = dict(changes)
            if config.get("embed_endpoint") not in (None, target.config.embed_endpoint):
                await self._check_model(route, target, config["embed_endpoint"])
            if "ef_search" in config:
                config["hnsw"] = replace(target.config.hnsw, ef_search=config.pop("ef_search"))
            await self._changes.record(route, SetSpace(target.id, config=config))

    async def _check_model(self, route: CollectionRoute, space: Space, endpoint: str) -> None:
        closeness = await self._cluster.index(route.uuid, space).closeness(endpoint)
        if closeness < SAME_MODEL:
            raise FingerprintMismatchError(
                f"the endpoint is not the model that built vector space {space.name!r}: it embeds stored texts "
                f"otherwise (cosine {closeness:.4f}, wanted {SAME_MODEL}); add a space for it, and swap",
                {"space": space.name, "cosine": round(closeness, 4)},
            )

    async def drop_space(self, collection: str, space: str) -> None:
        """Drop a space that is not the default; queries in flight finish, then its bytes are gone."""
        async with await self._changes.lock(collection):
            route = self._changes.route(collection)
            target = route.space(space)
            if route.default == target.name:
                raise DefaultSpaceError(
                    f"vector space {space!r} is the default of {collection!r}; swap the default first",
                    {"space": space},
                )
            await self._rebuilds.end(target)
            await self._changes.transition(route, DropSpace(target.id), {space}, removed=frozenset({target.id}))
            await self._remove(route, target)

    async def activate(self, collection: str, space_id: str) -> None:
        """Make a building space active if it has reached the frontier of now.

        Raises:
            SpaceLagsError: it lacks chunks; the caller catches up and asks again.
        """
        async with await self._changes.lock(collection):
            route = self._changes.route(collection)
            space = by_id(route, space_id)
            if space.status == "active":
                return
            await self._changes.reach_frontier(route, space, CATCH_UP_S)
            await self._changes.transition(
                route, SetSpace(space_id, status="active", follows=True, error=False), {space.name}
            )

    async def fail(self, collection: str, space_id: str, error: str) -> None:
        """Record that a rebuild failed, of a space that was never active."""
        async with await self._changes.lock(collection):
            route = self._changes.route(collection)
            if by_id(route, space_id).status == "building":
                await self._changes.record(route, SetSpace(space_id, status="failed", error=error))

    # ---- the swap

    async def swap(self, collection: str, space: str, force: bool, expected_epoch: int | None) -> dict[str, Any]:
        """Make a space the default: catch up, fence, commit, publish.

        From the first publication on, gateways acknowledge a write only when the target can find it too. So
        what is acknowledged before the frontier is read is below it, what comes later is in both spaces, and
        the new default lacks nothing that anybody was told is there.
        """
        async with await self._changes.lock(collection):
            route = self._changes.route(collection)
            if expected_epoch is not None and expected_epoch != route.epoch:
                raise EpochMismatchError(
                    f"epoch is {route.epoch}, expected {expected_epoch}",
                    {"epoch": route.epoch, "expected_epoch": expected_epoch},
                )
            target = route.active_space(space)
            if route.default == target.name:
                return {"previous": route.default, "current": target.name, "epoch": route.epoch}
            await self._changes.show_next(collection, target.name)
            try:
                if not force:
                    await self._changes.reach_frontier(route, target, CATCH_UP_S)
                state = await self._changes.transition(
                    route, SwapDefault(route.space(None).id, route.epoch, target.id), set(), default=True
                )
            except BaseException:
                await self._changes.show_next(collection, None)
                raise
        return {"previous": route.default, "current": target.name, "epoch": state.epoch}

    # ---- rebuilds

    async def start_rebuild(self, collection: str, space: str, spec: RebuildSpec) -> dict[str, Any]:
        """Start a rebuild, or go on with an interrupted one."""
        return await self._rebuilds.start(collection, space, spec)

    async def cancel_rebuild(self, collection: str, space: str) -> None:
        """Cancel a running rebuild; what it embedded is kept."""
        await self._rebuilds.cancel(collection, space)

    # ---- what the above are made of

    async def _open(self) -> None:
        await self._opening.open()
        self._changes.opened.set()
        self._spawn(self._opening.tend())

    async def _remove(self, route: CollectionRoute, space: Space) -> None:
        await self._cluster.stop_index(space.id)
        await self._cluster.collection(route.uuid).sweep()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
