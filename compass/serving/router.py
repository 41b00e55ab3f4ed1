"""The authority for the routing table: all that changes who answers what goes through here.

Each change is *check, prepare, then one transition of the publication protocol* (fence, commit, publish),
whose commit carries its own precondition. What a transition means is in `domain/publication.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from compass.domain.collection import (
    AddSpace,
    Change,
    CollectionState,
    DropSpace,
    RestartSpace,
    SetSpace,
    SwapDefault,
)
from compass.domain.publication import Ack, Directive, Scope
from compass.domain.routing import CollectionRoute, RoutingTable
from compass.domain.space import Space, SpaceConfig, Status
from compass.errors import (
    CollectionExistsError,
    CompassError,
    DefaultSpaceError,
    EpochMismatchError,
    InvalidRequestError,
    NotFoundError,
    RebuildRunningError,
    SpaceLagsError,
    TakenOverError,
    UnavailableError,
)
from compass.serving.ports import CollectionSpec, RebuildSpec
from compass.serving.publisher import Publisher
from compass.storage.root import Root

log = logging.getLogger(__name__)

CATCH_UP_S = 5.0  # how long a swap waits for its target to reach the frontier
CANCEL_S = 2.0
REAP_S = 2.0

Update = Callable[[RoutingTable], RoutingTable]


class CollectionPort(Protocol):
    """What the router asks of a collection's writer."""

    async def state(self, router: int) -> CollectionState:
        """The spaces, the default, the epoch, for a router of this incarnation."""

    async def change(self, change: Change, router: int) -> CollectionState:
        """Commit a change under its precondition, unless a newer router has asked."""

    async def info(self) -> dict[str, Any]:
        """{chunk_count, seq}."""

    async def sweep(self) -> None:
        """Delete the bytes of dropped spaces."""


class IndexPort(Protocol):
    """What the router asks of a space's index."""

    async def follow(self, seq: int, wait_s: float) -> int:
        """Wait for a commit; how many chunks are still lacking."""

    async def configure(self, space: Space) -> None:
        """Take the space as the log records it now."""


class RebuildPort(Protocol):
    """What the router asks of a rebuild."""

    async def start(self, job: dict[str, Any]) -> None:
        """Begin the job, or go on with it."""

    async def cancel(self) -> None:
        """End the run and keep its work."""

    async def running(self) -> bool:
        """Whether the run goes on."""


class Cluster(Protocol):
    """Where the other actors are: found by id, started if they are not there."""

    def collection(self, uuid: str) -> CollectionPort:
        """The writer of a collection."""

    def index(self, uuid: str, space: Space) -> IndexPort:
        """The index of a space."""

    def rebuild(self, collection: str, uuid: str, space: Space) -> RebuildPort:
        """The rebuild of a space."""

    async def find_rebuild(self, space_id: str) -> RebuildPort | None:
        """The rebuild actor of a space, if there is one."""

    async def stop_collection(self, uuid: str) -> None:
        """Close the writer and end its process."""

    async def stop_index(self, space_id: str) -> None:
        """Close an index and end its process."""

    async def stop_rebuild(self, space_id: str) -> None:
        """End the process of a rebuild."""


class RouterService:
    """Holds the routing table, changes it, publishes it."""

    def __init__(self, root: Root, cluster: Cluster, publisher: Publisher) -> None:
        """Begin with what the root holds; `opened` resolves when every collection is in the table."""
        self._root, self._cluster, self._publisher = root, cluster, publisher
        self._number = publisher.table.incarnation
        self._locks: dict[str, asyncio.Lock] = {}
        self._reapers: set[asyncio.Task[None]] = set()
        self._opened = asyncio.get_running_loop().create_task(self._open())

    # ---- gateways

    async def poll(self, gateway: str, ack: Ack) -> Directive:
        """A gateway's long poll: its acknowledgement and its lease in, the next directive out."""
        await self._opened
        return await self._publisher.poll(gateway, ack)

    async def state(self) -> dict[str, Any]:
        """What there is to say of the router itself."""
        await self._opened
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
        async with await self._lock(spec.name):
            if spec.name in self._publisher.table.collections:
                raise CollectionExistsError(f"there is a collection {spec.name!r} already", {"collection": spec.name})
            spaces = [_new_space(name, config, "active", True) for name, config in spec.spaces.items()]
            default = next(s.id for s in spaces if s.name == spec.default)

            async def commit() -> Update:
                state = await asyncio.to_thread(self._root.create, spec.name, spaces, default, spec.config)
                await self._start(state)
                return _put(state)

            await self._publisher.transition(_scope(spec.name, {s.name for s in spaces}, True), commit)

    async def delete_collection(self, collection: str) -> None:
        """Delete a collection; queries in flight finish, then every byte of it is gone."""
        async with await self._lock(collection):
            route = self._route(collection)
            for space in route.spaces.values():
                await self._end_rebuild(space)

            async def commit() -> Update:
                return lambda table: table.without(collection)

            removed = frozenset(s.id for s in route.spaces.values())
            await self._publisher.transition(_scope(collection, set(route.spaces), True), commit, removed)
            for space in route.spaces.values():
                await self._cluster.stop_index(space.id)
            await self._cluster.stop_collection(route.uuid)
            await asyncio.to_thread(self._root.delete, collection)

    # ---- spaces

    async def add_space(self, collection: str, name: str, config: SpaceConfig) -> None:
        """Add a building space."""
        async with await self._lock(collection):
            route = self._route(collection)
            space = _new_space(name, config, "building", False)
            await self._transition(route, AddSpace(space), {name})

    async def set_space(self, collection: str, space: str, changes: dict[str, Any]) -> None:
        """Change fields of a space's config."""
        async with await self._lock(collection):
            route = self._route(collection)
            target = route.space(space)
            config = dict(changes)
            if "ef_search" in config:
                config["hnsw"] = replace(target.config.hnsw, ef_search=config.pop("ef_search"))
            await self._record(route, SetSpace(target.id, config=config))

    async def drop_space(self, collection: str, space: str) -> None:
        """Drop a space that is not the default; queries in flight finish, then its bytes are gone."""
        async with await self._lock(collection):
            route = self._route(collection)
            target = route.space(space)
            if route.default == target.name:
                raise DefaultSpaceError(
                    f"vector space {space!r} is the default of {collection!r}; swap the default first",
                    {"space": space},
                )
            await self._end_rebuild(target)
            await self._transition(route, DropSpace(target.id), {space}, removed=frozenset({target.id}))
            await self._remove(route, target)

    async def activate(self, collection: str, space_id: str) -> None:
        """Make a building space active if it has reached the frontier of now.

        Raises:
            SpaceLagsError: it lacks chunks; the caller catches up and asks again.
        """
        async with await self._lock(collection):
            route = self._route(collection)
            space = _by_id(route, space_id)
            if space.status == "active":
                return
            await self._reach_frontier(route, space, CATCH_UP_S)
            await self._transition(
                route, SetSpace(space_id, status="active", follows=True, error=False), {space.name}
            )

    async def fail(self, collection: str, space_id: str, error: str) -> None:
        """Record that a rebuild failed, of a space that was never active."""
        async with await self._lock(collection):
            route = self._route(collection)
            if _by_id(route, space_id).status == "building":
                await self._record(route, SetSpace(space_id, status="failed", error=error))

    # ---- the swap

    async def swap(self, collection: str, space: str, force: bool, expected_epoch: int | None) -> dict[str, Any]:
        """Make a space the default: catch up, fence, commit, publish.

        From the first publication on, gateways acknowledge a write only when the target can find it too. So
        what is acknowledged before the frontier is read is below it, what comes later is in both spaces, and
        the new default lacks nothing that anybody was told is there.
        """
        async with await self._lock(collection):
            route = self._route(collection)
            if expected_epoch is not None and expected_epoch != route.epoch:
                raise EpochMismatchError(
                    f"epoch is {route.epoch}, expected {expected_epoch}",
                    {"epoch": route.epoch, "expected_epoch": expected_epoch},
                )
            target = route.active_space(space)
            if route.default == target.name:
                return {"previous": route.default, "current": target.name, "epoch": route.epoch}
            await self._publish(replace(route, next_default=target.name))
            try:
                if not force:
                    await self._reach_frontier(route, target, CATCH_UP_S)
                state = await self._transition(
                    route, SwapDefault(route.space(None).id, route.epoch, target.id), set(), default=True
                )
            except CompassError:  # nothing was committed
                await self._publish(route)
                raise
        return {"previous": route.default, "current": target.name, "epoch": state.epoch}

    async def _settled(self, route: CollectionRoute, change: Change) -> CollectionState:
        """Commit a change; when the answer is lost, what the log says decides.

        Nobody but the holder of the collection's lock changes its state, so a state that differs is this
        change's. Until the log can be asked it is not known what is true, and the fence stays up.
        """
        writer = self._cluster.collection(route.uuid)
        before = await writer.state(self._number)
        try:
            return await writer.change(change, self._number)
        except TakenOverError:
            raise
        except UnavailableError:
            after = await self._learnt(route)
            if after == before:
                raise
            return after

    async def _learnt(self, route: CollectionRoute) -> CollectionState:
        while True:
            try:
                return await self._cluster.collection(route.uuid).state(self._number)
            except UnavailableError as error:
                log.warning("collection %s: what became of a change is not known yet: %s", route.name, error)
                await asyncio.sleep(1)

    async def _reach_frontier(self, route: CollectionRoute, space: Space, wait_s: float) -> None:
        """Wait until a space has what the log holds now.

        Raises:
            SpaceLagsError: it has not within `wait_s`.
        """
        frontier = (await self._cluster.collection(route.uuid).info())["seq"]
        lag = await self._cluster.index(route.uuid, space).follow(frontier, wait_s)
        if lag:
            raise SpaceLagsError(
                f"vector space {space.name!r} of {route.name!r} still lacks {lag} chunks after {wait_s:g} s; "
                "see its status, and its endpoint",
                {"space": space.name, "lag": lag},
            )

    # ---- rebuilds

    async def start_rebuild(self, collection: str, space: str, spec: RebuildSpec) -> dict[str, Any]:
        """Start a rebuild, or go on with an interrupted one."""
        async with await self._lock(collection):
            route = self._route(collection)
            target = route.space(space)
            own = target.config.embed_endpoint
            endpoints = spec.endpoints or ((own,) if own else ())
            if not endpoints:
                raise InvalidRequestError(
                    f"vector space {space!r} has no embed_endpoint of its own: name one in the request",
                    {"errors": [{"field": "embed_endpoint", "detail": "is needed"}]},
                )
            running = await self._cluster.find_rebuild(target.id)
            if running is not None:
                if await running.running():
                    raise RebuildRunningError(
                        f"a rebuild of vector space {space!r} is running; see its status, or cancel it first",
                        {"space": space},
                    )
                await self._cluster.stop_rebuild(target.id)
            if spec.restart:
                target = await self._restart(route, target)
                route = self._route(collection)
            target = await self._accept(route, target, spec, endpoints)
            job = _job(target, spec, endpoints)
            await self._cluster.rebuild(collection, route.uuid, target).start(job)
            self._reap_when_done(target)
            return {"status": target.status, "job_id": job["job_id"]}

    async def cancel_rebuild(self, collection: str, space: str) -> None:
        """Cancel a running rebuild; what it embedded is kept."""
        async with await self._lock(collection):
            target = self._route(collection).space(space)
            running = await self._cluster.find_rebuild(target.id)
            if running is None or not await running.running():
                raise NotFoundError(f"no rebuild of vector space {space!r} is running", {"space": space})
            await self._end_rebuild(target)

    async def _accept(
        self, route: CollectionRoute, target: Space, spec: RebuildSpec, endpoints: tuple[str, ...]
    ) -> Space:
        """Record that the space follows from now on, by the run's first endpoint unless it has its own."""
        config: dict[str, Any] = {}
        if target.config.embed_endpoint is None:
            config["embed_endpoint"] = endpoints[0]
            if spec.api_key_env:
                config["api_key_env"] = spec.api_key_env
        status: Status | None = "building" if target.status == "failed" else None
        state = await self._record(
            route, SetSpace(target.id, status=status, follows=True, error=False, config=config)
        )
        return state.by_id(target.id)

    async def _restart(self, route: CollectionRoute, target: Space) -> Space:
        if route.default == target.name:
            raise DefaultSpaceError(
                f"vector space {target.name!r} is the default of {route.name!r} and answers queries: "
                "restarting would empty it; add another space and swap",
                {"space": target.name},
            )
        fresh = _new_space(target.name, target.config, "building", False)
        change = RestartSpace(target.id, fresh)
        await self._transition(route, change, {target.name}, removed=frozenset({target.id}))
        await self._remove(route, target)
        return fresh

    async def _end_rebuild(self, space: Space) -> None:
        running = await self._cluster.find_rebuild(space.id)
        if running is None:
            return
        try:
            async with asyncio.timeout(CANCEL_S):
                await running.cancel()
        except (TimeoutError, CompassError) as error:
            log.warning("the rebuild of %s did not answer, ending its process: %s", space.name, error)
        await self._cluster.stop_rebuild(space.id)

    def _reap_when_done(self, space: Space) -> None:
        """End the process of a rebuild once its run has ended: what it leaves behind is in the store."""

        async def reap() -> None:
            while (run := await self._cluster.find_rebuild(space.id)) is not None:
                await asyncio.sleep(REAP_S)
                with contextlib.suppress(UnavailableError):
                    if not await run.running():
                        await self._cluster.stop_rebuild(space.id)

        task = asyncio.get_running_loop().create_task(reap())
        self._reapers.add(task)
        task.add_done_callback(self._reapers.discard)

    # ---- what the above are made of

    async def _open(self) -> None:
        """Everything the root holds, as the log of each collection says."""
        await asyncio.to_thread(self._root.sweep)
        names = await asyncio.to_thread(self._root.collections)
        for name, uuid in sorted(names.items()):
            try:
                state = await self._cluster.collection(uuid).state(self._number)
                await self._start(state)
                self._publisher.replace(_put(state))
            except CompassError as error:
                log.error("collection %s does not open: %s", name, error.detail)

    async def _start(self, state: CollectionState) -> None:
        """Start the actors of a collection, its interrupted rebuilds too."""
        await self._cluster.collection(state.uuid).state(self._number)  # an actor starts when it is first asked
        await self._configure(state, frozenset())
        for space in state.spaces.values():
            record = await asyncio.to_thread(
                self._root.space_vectors(state.uuid, space.id, space.config.dims).read_run
            )
            if record and record.get("state") == "running":
                await self._cluster.rebuild(state.name, state.uuid, space).running()
                self._reap_when_done(space)

    async def _transition(
        self,
        route: CollectionRoute,
        change: Change,
        names: set[str],
        *,
        default: bool = False,
        removed: frozenset[str] = frozenset(),
    ) -> CollectionState:
        """One change of the state, fenced for queries to these names, published before it returns."""
        committed: list[CollectionState] = []

        async def commit() -> Update:
            committed.append(await self._settled(route, change))
            return _put(committed[0])

        await self._publisher.transition(_scope(route.name, names, default), commit, removed)
        await self._configure(committed[0], removed)
        return committed[0]

    async def _record(self, route: CollectionRoute, change: Change) -> CollectionState:
        """A change that no query can notice: committed and published without holding anything."""
        return await self._transition(route, change, set())

    async def _configure(self, state: CollectionState, removed: frozenset[str]) -> None:
        for space in state.spaces.values():
            if space.id not in removed:
                await self._cluster.index(state.uuid, space).configure(space)

    async def _publish(self, route: CollectionRoute) -> None:
        async def commit() -> Update:
            return lambda table: table.with_route(route)

        await self._publisher.transition(_scope(route.name, set(), False), commit)

    async def _remove(self, route: CollectionRoute, space: Space) -> None:
        await self._cluster.stop_index(space.id)
        await self._cluster.collection(route.uuid).sweep()

    def _route(self, collection: str) -> CollectionRoute:
        return self._publisher.table.route(collection)

    async def _lock(self, collection: str) -> asyncio.Lock:
        """One change of a collection at a time; other collections never notice."""
        await self._opened
        return self._locks.setdefault(collection, asyncio.Lock())


def _new_space(name: str, config: SpaceConfig, status: Any, follows: bool) -> Space:
    return Space(f"{name}-{secrets.token_hex(4)}", name, config, status, time.time(), follows)


def _by_id(route: CollectionRoute, space_id: str) -> Space:
    for space in route.spaces.values():
        if space.id == space_id:
            return space
    raise NotFoundError(f"vector space {space_id!r} is not there any more", {"space_id": space_id})


def _scope(collection: str, names: set[str], default: bool) -> Scope:
    return Scope(collection, frozenset(names), default)


def _put(state: CollectionState) -> Update:
    return lambda table: table.with_route(CollectionRoute.of(state))


def _job(space: Space, spec: RebuildSpec, endpoints: tuple[str, ...]) -> dict[str, Any]:
    return {
        "job_id": f"rebuild-{secrets.token_hex(6)}",
        "space_id": space.id,
        "endpoints": list(endpoints),
        "api_key_env": spec.api_key_env,
        "batch_size": spec.batch_size,
        "concurrency": spec.concurrency,
        "max_docs_per_s": spec.max_docs_per_s,
    }
