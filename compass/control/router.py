"""The authority for the routing table: all that changes who answers what goes through here.

Each change is *check, prepare, then one transition of the publication protocol* (fence, commit, publish),
whose commit carries its own precondition. What a transition means is in `domain/publication.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

from compass.control.fingerprints import builder
from compass.control.ports import Cluster
from compass.control.publisher import Publisher
from compass.control.rebuilds import RebuildOrders
from compass.control.reconciler import Opening
from compass.control.transitions import Changes, Update, by_id, new_space, put, scope
from compass.domain.collection import AddSpace, CollectionSpec, DropSpace, SetSpace, SwapDefault
from compass.domain.history import By, Kind, Note
from compass.domain.rebuild.order import RebuildOrder, RebuildStarted
from compass.domain.rebuild.report import EstimateReport
from compass.domain.routing.publication import Ack, Directive
from compass.domain.routing.swap import SwapOrder, Swapped
from compass.domain.routing.table import CollectionRoute
from compass.domain.space import BuiltBy, Space, SpaceChanges, SpaceConfig
from compass.errors import (
    CollectionExistsError,
    ConfirmationNeededError,
    DefaultSpaceError,
    EpochMismatchError,
    NotFoundError,
    RebuildRunningError,
    SpaceQuarantinedError,
)
from compass.storage.root import Root

CATCH_UP_S = 5.0  # how long an activation waits for its space to reach the frontier
NOBODY = By()


class RouterService:
    """Holds the routing table, changes it, publishes it."""

    def __init__(self, root: Root, cluster: Cluster, publisher: Publisher, drop_guard_s: float = 0.0) -> None:
        """Begin with what the root holds; calls wait until every collection that opens is in the table.

        A space that was the default within the last `drop_guard_s` seconds is dropped only on confirmation.
        """
        self._drop_guard_s = drop_guard_s
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

    async def leave(self, gateway: str) -> None:
        """A gateway has ended in good order: no change has to wait for its lease."""
        self._publisher.leave(gateway)

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

    async def create_collection(self, spec: CollectionSpec, by: By = NOBODY) -> None:
        """Create a collection whose spaces are active at once."""
        note = Note("create", None, time.time(), by, {"default": spec.default})
        async with await self._changes.lock(spec.name):
            if spec.name in self._publisher.table.collections:
                raise CollectionExistsError(f"there is a collection {spec.name!r} already", {"collection": spec.name})
            spaces = [new_space(name, config, "active", True) for name, config in spec.spaces.items()]
            default = next(s.id for s in spaces if s.name == spec.default)

            async def commit() -> Update:
                state = await asyncio.to_thread(self._root.create, spec.name, spaces, default, spec.config, note)
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

            await self._publisher.transition(scope(collection, set(route.spaces), True), commit)
            try:
                await self._changes.retire(*route.spaces.values())
                await self._cluster.stop_collection(route.uuid)
                await asyncio.to_thread(self._root.delete, collection)
            except BaseException:
                self._opening.unopened.add(collection)  # not deleted: it comes back; tombstoned: its bytes are swept
                raise

    # ---- spaces

    async def add_space(self, collection: str, name: str, config: SpaceConfig, by: By = NOBODY) -> None:
        """Add a building space."""
        note = Note("add", name, time.time(), by, {"model": config.model, "dims": config.dims})
        async with await self._changes.lock(collection):
            route = self._changes.route(collection)
            space = new_space(name, config, "building", False)
            await self._changes.transition(route, AddSpace(space), {name}, note)

    async def set_space(self, collection: str, space: str, changes: SpaceChanges, by: By = NOBODY) -> None:
        """Change fields of a space's config; a new endpoint must serve the model that built the space.

        Raises:
            FingerprintMismatchError: it says, or its vectors of stored texts show, that it is another one.
            EndpointUnavailableError: it does not answer.
        """
        note = Note("change", space, time.time(), by, {"changed": changes.names()})
        async with await self._changes.lock(collection):
            route = self._changes.route(collection)
            target = route.space(space)
            accept, built_by, old = changes.accept_new_fingerprint, None, target.config
            endpoint = changes.embed_endpoint or old.embed_endpoint
            if endpoint is not None and (accept or endpoint != old.embed_endpoint):
                key = old.api_key_env
                check = builder(self._cluster, route, target, (endpoint,), key, accept=accept, must_answer=True)
                built_by = await check
            config = changes.of_config(old)
            await self._changes.record(route, SetSpace(target.id, config=config, built_by=built_by), note)

    async def identified(self, collection: str, space_id: str, built_by: BuiltBy) -> None:
        """Record what has built a space of which nobody knew it."""
        async with await self._changes.lock(collection):
            route = self._changes.route(collection)
            if by_id(route, space_id).built_by is None:
                await self._changes.record(route, SetSpace(space_id, built_by=built_by), None)

    async def drop_space(self, collection: str, space: str, confirm: str | None = None, by: By = NOBODY) -> None:
        """Drop a space that is not the default; queries in flight finish, then its bytes are gone.

        Raises:
            DefaultSpaceError: it is the default.
            ConfirmationNeededError: it was the default a short while ago, and `confirm` is not its name.
        """
        note = Note("drop", space, time.time(), by)
        async with await self._changes.lock(collection):
            route = self._changes.route(collection)
            target = route.space(space)
            if route.default == target.name:
                raise DefaultSpaceError(
                    f"vector space {space!r} is the default of {collection!r}; swap the default first",
                    {"space": space},
                )
            if confirm != space:
                await self._guard_drop(route, target)
            await self._rebuilds.end(target)
            await self._changes.transition(route, DropSpace(target.id), {space}, note)
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
            change = SetSpace(space_id, status="active", follows=True, error=False)
            note = await self._note_of_run("activate", route, space)
            await self._changes.transition(route, change, {space.name}, note)

    async def fail(self, collection: str, space_id: str, error: str) -> None:
        """Record that a rebuild failed, of a space that was never active."""
        async with await self._changes.lock(collection):
            route = self._changes.route(collection)
            space = by_id(route, space_id)
            change = SetSpace(space_id)  # an active one stays so; the history tells of it
            if space.status == "building":
                change = SetSpace(space_id, status="failed", error=error)
            await self._changes.record(route, change, await self._note_of_run("fail", route, space, error=error))

    # ---- the swap

    async def swap(self, collection: str, order: SwapOrder, by: By = NOBODY) -> Swapped:
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
        began_at = time.time()
        async with await self._changes.lock(collection):
            route = self._changes.route(collection)
            if order.expected_epoch is not None and order.expected_epoch != route.epoch:
                raise EpochMismatchError(
                    f"epoch is {route.epoch}, expected {order.expected_epoch}",
                    {"epoch": route.epoch, "expected_epoch": order.expected_epoch},
                )
            target = route.active_space(await self._named(route, order))
            answer = Swapped(route.default, target.name, route.epoch)
            if route.default == target.name:
                return answer
            note = Note("rollback" if order.rollback else "swap", target.name, began_at, by, _details(route, order))
            change = SwapDefault(route.space(None).id, route.epoch, target.id, time.time())
            checks = (
                self._refuse_unsound(route, target),
                self._ensure_same_model(route, target),
                self._reach_frontier(route, target, order),
            )
            checking = [asyncio.create_task(check) for check in checks]
            try:
                for check in checking:  # in this order: what no force overrides is said first
                    await check
                state = await self._changes.transition(route, change, set(), note, default=True)
            except BaseException:
                for check in checking:
                    check.cancel()
                await asyncio.gather(*checking, return_exceptions=True)
                await self._changes.show_next(collection, None)
                raise
        return replace(answer, epoch=state.epoch)

    async def _named(self, route: CollectionRoute, order: SwapOrder) -> str:
        """The space that the swap is to; a rollback without a name is to the previous default."""
        if order.space is not None:
            return order.space
        previous = (await self._changes.state(route)).previous_default
        if previous is None:
            raise NotFoundError(
                f"collection {route.name!r} has no previous default to roll back to: there was no swap, or the "
                "space was dropped; name a space",
                {"collection": route.name},
            )
        return previous.name

    async def _refuse_unsound(self, route: CollectionRoute, target: Space) -> None:
        """Refuse a target whose contents are in question; no force overrides that."""
        run = await self._cluster.find_rebuild(target.id)
        if run is not None and await run.writing():
            raise RebuildRunningError(
                f"vector space {target.name!r} is being rebuilt; wait for the end, or cancel it",
                {"space": target.name},
            )
        await self._rebuilds.refuse_mixed_models(route, target)

    async def _ensure_same_model(self, route: CollectionRoute, target: Space) -> None:
        """Refuse a target whose endpoint is another model now; no force overrides that."""
        if (endpoint := target.config.embed_endpoint) is not None:
            await self._cluster.index(route.uuid, target).ensure_same_model((endpoint,), target.config.api_key_env)

    async def _reach_frontier(self, route: CollectionRoute, target: Space, order: SwapOrder) -> None:
        """Let writes wait for the target too, and the target for the writes before; `force` does without those.

        Raises:
            SpaceLagsError: it does not have them within the time.
            SpaceQuarantinedError: it has given up chunks that nobody else has given up.
        """
        await self._changes.show_next(route.name, target.name)
        if order.force:
            return
        behind = await self._changes.reach_frontier(route, target, order.wait_s)
        if behind.quarantined > behind.accepted:
            raise SpaceQuarantinedError(
                f"{behind.quarantined} chunks of vector space {target.name!r} are quarantined, {behind.accepted} of "
                "them accepted: rebuild it again to retry them, with max_failed to accept them, or swap with force",
                {"space": target.name, "quarantined": behind.quarantined, "accepted": behind.accepted},
            )

    async def _guard_drop(self, route: CollectionRoute, target: Space) -> None:
        until = (await self._changes.state(route)).defaults_until.get(target.id)
        if until is not None and time.time() - until < self._drop_guard_s:
            raise ConfirmationNeededError(
                f"vector space {target.name!r} was the default {time.time() - until:.0f} s ago, and dropping it ends "
                f"the way back: confirm with ?confirm={target.name}",
                {"space": target.name, "drop_guard_s": self._drop_guard_s},
            )

    async def _note_of_run(self, kind: Kind, route: CollectionRoute, space: Space, **details: Any) -> Note:
        """A note of how a rebuild ended; it took as long as the run."""
        run = await asyncio.to_thread(self._rebuilds.vectors(route, space).read_run)
        began_at = run.started_at if run else time.time()
        return Note(kind, space.name, began_at, details={**details, "job_id": run.order.job_id if run else None})

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

    # ---- what the above are made of

    async def _open(self) -> None:
        await self._opening.open()
        self._changes.opened.set()
        self._spawn(self._opening.reconcile())

    async def _remove(self, route: CollectionRoute, space: Space) -> None:
        """Wait for the queries that are on a dropped space and end it; the way back must not wait for that."""
        await self._changes.retire(space)
        async with await self._changes.lock(route.name):
            if route.uuid in {r.uuid for r in self._publisher.table.collections.values()}:  # else all of it is gone
                await self._cluster.collection(route.uuid).sweep()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _details(route: CollectionRoute, order: SwapOrder) -> dict[str, Any]:
    details: dict[str, Any] = {"previous": route.default}
    return {**details, "forced": True} if order.force else details
