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
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import replace
from typing import Any
from weakref import WeakValueDictionary

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
    FingerprintMismatchError,
    InvalidRequestError,
    NotFoundError,
    RebuildRunningError,
    SpaceLagsError,
    TakenOverError,
    UnavailableError,
)
from compass.serving.ports import CollectionSpec, RebuildSpec
from compass.serving.publisher import Publisher
from compass.serving.router_ports import Cluster
from compass.storage.root import Root
from compass.storage.vectors import SpaceVectors

log = logging.getLogger(__name__)

SAME_MODEL = 0.999  # the least cosine at which two endpoints count as one model
CATCH_UP_S = 5.0  # how long a swap waits for its target to reach the frontier
CANCEL_S = 2.0
REAP_S = 2.0
TEND_S = 10.0  # how often the parts of the service are looked after
TELL_S = 5.0  # how long an index may take to hear of its space's record, which it also reads by itself
OPEN_WAIT_S = 10.0  # how long a call waits for the router to have opened
OPEN_AT_ONCE = 8

Update = Callable[[RoutingTable], RoutingTable]


class RouterService:
    """Holds the routing table, changes it, publishes it."""

    def __init__(self, root: Root, cluster: Cluster, publisher: Publisher) -> None:
        """Begin with what the root holds; calls wait until every collection that opens is in the table."""
        self._root, self._cluster, self._publisher = root, cluster, publisher
        self._number = publisher.table.incarnation
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._unopened: set[str] = set()  # names that are, or may be, in the root and not in the table
        self._reaped: set[str] = set()  # space ids whose rebuild's process somebody waits to end
        self._tasks: set[asyncio.Task[None]] = set()
        self._opened = self._spawn(self._open())
        self._spawn(self._tend())

    async def close(self) -> None:
        """Stop what goes on in the background."""
        for task in (tasks := list(self._tasks)):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- gateways

    async def poll(self, gateway: str, ack: Ack) -> Directive:
        """A gateway's long poll: its acknowledgement and its lease in, the next directive out."""
        await self._until_open()
        return await self._publisher.poll(gateway, ack)

    async def state(self) -> dict[str, Any]:
        """What there is to say of the router itself."""
        await self._until_open()
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
                await self._start(CollectionRoute.of(state))
                return _put(state)

            try:
                await self._publisher.transition(_scope(spec.name, {s.name for s in spaces}, True), commit)
            except BaseException:
                self._unopened.add(spec.name)  # it may be there nevertheless
                raise

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
            try:
                for space in route.spaces.values():
                    await self._cluster.stop_index(space.id)
                await self._cluster.stop_collection(route.uuid)
                await asyncio.to_thread(self._root.delete, collection)
            except BaseException:
                self._unopened.add(collection)  # not deleted: it comes back; tombstoned: its bytes are swept
                raise

    # ---- spaces

    async def add_space(self, collection: str, name: str, config: SpaceConfig) -> None:
        """Add a building space."""
        async with await self._lock(collection):
            route = self._route(collection)
            space = _new_space(name, config, "building", False)
            await self._transition(route, AddSpace(space), {name})

    async def set_space(self, collection: str, space: str, changes: dict[str, Any]) -> None:
        """Change fields of a space's config; a new endpoint must serve the model that built the space.

        Raises:
            FingerprintMismatchError: its vectors of texts that are stored differ from the stored ones.
            EmbeddingError: it does not answer.
        """
        async with await self._lock(collection):
            route = self._route(collection)
            target = route.space(space)
            config = dict(changes)
            if config.get("embed_endpoint") not in (None, target.config.embed_endpoint):
                await self._check_model(route, target, config["embed_endpoint"])
            if "ef_search" in config:
                config["hnsw"] = replace(target.config.hnsw, ef_search=config.pop("ef_search"))
            await self._record(route, SetSpace(target.id, config=config))

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
            await self._show_next(collection, target.name)
            try:
                if not force:
                    await self._reach_frontier(route, target, CATCH_UP_S)
                state = await self._transition(
                    route, SwapDefault(route.space(None).id, route.epoch, target.id), set(), default=True
                )
            except BaseException:
                await self._show_next(collection, None)
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
        while not self._publisher.superseded:
            try:
                return await self._cluster.collection(route.uuid).state(self._number)
            except UnavailableError as error:
                log.warning("collection %s: what became of a change is not known yet: %s", route.name, error)
                await asyncio.sleep(1)
        raise TakenOverError("another router has taken over; it finds out what became of the change")

    async def _show_next(self, collection: str, name: str | None) -> None:
        """Publish which space is about to become the default, or that none is any more."""

        def shown(table: RoutingTable) -> RoutingTable:
            route = table.collections.get(collection)
            return table if route is None else table.with_route(replace(route, next_default=name))

        async def commit() -> Update:
            return shown

        await self._publisher.transition(_scope(collection, set(), False), commit)

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
            self._reap_when_done(collection, target)
            return {"status": target.status, "job_id": job["job_id"]}

    async def cancel_rebuild(self, collection: str, space: str) -> None:
        """Cancel a running rebuild; what it embedded is kept."""
        async with await self._lock(collection):
            target = self._route(collection).space(space)
            running = await self._cluster.find_rebuild(target.id)
            if running is None or not await running.running():
                raise NotFoundError(f"no rebuild of vector space {space!r} is running", {"space": space})
            await self._end_rebuild(target)
            await asyncio.to_thread(_close_record, self._vectors(self._route(collection), target))

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

    def _reap_when_done(self, collection: str, space: Space) -> None:
        """End the process of a rebuild once its run has ended: what it leaves behind is in the store."""

        async def reap() -> None:
            while await self._cluster.find_rebuild(space.id) is not None:
                await asyncio.sleep(REAP_S)
                with contextlib.suppress(CompassError):
                    async with await self._lock(collection):  # the next run may be about to begin
                        run = await self._cluster.find_rebuild(space.id)
                        if run is not None and not await run.running():
                            await self._cluster.stop_rebuild(space.id)
            self._reaped.discard(space.id)

        if space.id not in self._reaped:
            self._reaped.add(space.id)
            self._spawn(reap())

    # ---- opening, and looking after what is open

    async def _open(self) -> None:
        """Everything the root holds, as the log of each collection says; what does not open is tried again."""
        names = await self._listed()
        while names is None:
            await asyncio.sleep(TEND_S)
            names = await self._listed()
        turn = asyncio.Semaphore(OPEN_AT_ONCE)

        async def open_one(name: str, uuid: str) -> None:
            async with turn:
                await self._open_collection(name, uuid)

        await asyncio.gather(*(open_one(name, uuid) for name, uuid in names.items()))

    async def _listed(self) -> dict[str, str] | None:
        """The uuids of the root's collections by name, once interrupted deletes are finished; None: not now."""
        try:
            await asyncio.to_thread(self._root.sweep)
            return await asyncio.to_thread(self._root.collections)
        except Exception:
            log.exception("the root cannot be read; it is tried again")
            return None

    async def _open_collection(self, name: str, uuid: str) -> None:
        try:
            state = await self._cluster.collection(uuid).state(self._number)
        except Exception as error:  # noqa: BLE001 - whatever keeps one closed must not keep the others
            log.error("collection %s does not open, it is tried again: %s", name, error)
            self._unopened.add(name)
            return
        await self._start(CollectionRoute.of(state))
        self._publisher.replace(_put(state))
        self._unopened.discard(name)

    async def _start(self, route: CollectionRoute) -> None:
        """See that the actors of a collection are there; what does not start now is looked after later."""
        try:
            await self._cluster.collection(route.uuid).state(self._number)
        except Exception as error:  # noqa: BLE001 - the other parts may do without it
            log.error("the writer of collection %s does not start: %s", route.name, error)
        await self._tell(route.uuid, route.spaces.values())
        for space in route.spaces.values():
            try:
                await self._resume(route, space)
            except Exception as error:  # noqa: BLE001 - the space answers without it
                log.error("the rebuild of vector space %s is not resumed: %s", space.name, error)

    async def _resume(self, route: CollectionRoute, space: Space) -> None:
        """See that the rebuild is there which the store says is running."""
        record = await asyncio.to_thread(self._vectors(route, space).read_run)
        if record and record.get("state") == "running":
            await self._cluster.rebuild(route.name, route.uuid, space).running()
        if await self._cluster.find_rebuild(space.id) is not None:
            self._reap_when_done(route.name, space)

    async def _tend(self) -> None:
        """Start again what did not open, and parts whose process has ended for good."""
        await self._opened
        while not self._publisher.superseded:
            await asyncio.sleep(TEND_S)
            await self._open_the_rest()
            for name in list(self._publisher.table.collections):
                async with await self._lock(name):
                    if route := self._publisher.table.collections.get(name):
                        await self._start(route)

    async def _open_the_rest(self) -> None:
        if not self._unopened or (names := await self._listed()) is None:
            return
        self._unopened &= names.keys()
        for name in list(self._unopened):
            async with await self._lock(name):
                if name in self._publisher.table.collections:
                    self._unopened.discard(name)
                else:
                    await self._open_collection(name, names[name])

    async def _tell(self, uuid: str, spaces: Iterable[Space]) -> None:
        """Let each index know its space's record. One that is silent reads it in the log, when it can."""

        async def tell(space: Space) -> None:
            try:
                async with asyncio.timeout(TELL_S):
                    await self._cluster.index(uuid, space).configure(space)
            except Exception as error:  # noqa: BLE001 - what is committed is not undone by a silent index
                log.warning("the index of vector space %s does not answer: %s", space.name, error or "timeout")

        await asyncio.gather(*(tell(space) for space in spaces))

    async def _until_open(self) -> None:
        try:
            async with asyncio.timeout(OPEN_WAIT_S):
                await asyncio.shield(self._opened)
        except TimeoutError:
            raise UnavailableError("the service is still opening its collections", {"retry_after": 1}) from None

    # ---- what the above are made of

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
        await self._tell(route.uuid, committed[0].spaces.values())
        return committed[0]

    async def _record(self, route: CollectionRoute, change: Change) -> CollectionState:
        """A change that no query can notice: committed and published without holding anything."""
        return await self._transition(route, change, set())

    async def _remove(self, route: CollectionRoute, space: Space) -> None:
        await self._cluster.stop_index(space.id)
        await self._cluster.collection(route.uuid).sweep()

    def _route(self, collection: str) -> CollectionRoute:
        return self._publisher.table.route(collection)

    async def _lock(self, collection: str) -> asyncio.Lock:
        """One change of a collection at a time; other collections never notice."""
        await self._until_open()
        return self._locks.setdefault(collection, asyncio.Lock())

    def _vectors(self, route: CollectionRoute, space: Space) -> SpaceVectors:
        return self._root.space_vectors(route.uuid, space.id, space.config.dims)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


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


def _close_record(vectors: SpaceVectors) -> None:
    """Write down that a run was cancelled, where its process did not get to it."""
    record = vectors.read_run()
    if record and record.get("state") == "running":
        vectors.write_run({**record, "state": "cancelled", "ended_at": time.time()})


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
