"""Orders to rebuild a space: started, cancelled, and their processes ended when nothing is left to do."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable, Coroutine
from dataclasses import fields, replace
from typing import Any

from compass.control.fingerprints import builder, mismatches
from compass.control.indexes import Indexes
from compass.control.ports import Cluster
from compass.control.registry import Registry
from compass.control.run_records import RunRecords
from compass.control.timings import RouterTimings, WallClock
from compass.control.transitions import CollectionChange, new_space
from compass.domain.collection import RestartSpace, SetSpace
from compass.domain.history import By, Note
from compass.domain.rebuild.order import RebuildOrder, RebuildStarted
from compass.domain.rebuild.report import EstimateReport, Failure
from compass.domain.routing.table import CollectionRoute
from compass.domain.space import BuiltBy, Space, Status
from compass.errors import (
    CompassError,
    DefaultSpaceError,
    FingerprintMismatchError,
    InsufficientMemoryError,
    InvalidRequestError,
    NotFoundError,
    RebuildRunningError,
)

log = logging.getLogger(__name__)


class Rebuilds:
    """Starts and ends the rebuilds of spaces."""

    def __init__(
        self,
        cluster: Cluster,
        registry: Registry,
        *,
        indexes: Indexes,
        records: RunRecords,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        timings: RouterTimings,
        now: WallClock,
    ) -> None:
        """Wire it; `spawn` runs what goes on in the background."""
        self._cluster, self._registry, self._indexes, self._records = cluster, registry, indexes, records
        self._spawn, self._timings, self._now = spawn, timings, now
        self._estimating: set[str] = set()  # space ids
        self._stopping: set[str] = set()  # space ids whose rebuild's process somebody waits to end

    async def start(self, collection: str, space: str, order: RebuildOrder, by: By) -> RebuildStarted:
        """Start a rebuild, or go on with an interrupted one.

        Raises:
            InsufficientMemoryError: the space would not fit the memory of its index's node; nothing has changed.
        """
        began_at = self._now()
        async with self._registry.changing(collection) as change:
            target = change.space(space)
            endpoints = _endpoints(target, order)
            if await self._refuse_running(target):
                await self._cluster.stop_rebuild(target.id)
            if order.restart:
                target = await self._restart(change, target, Note("restart", space, began_at, by))
            else:
                await self._records.refuse_mixed_models(change.route, target)
                await self._cluster.index(change.route.uuid, target).ensure_memory(False)
            accept, key = order.accept_new_fingerprint, order.api_key_env
            built_by = await builder(
                self._cluster, change.route, target, endpoints, key, accept=accept, must_answer=False
            )
            accepted = replace(order, endpoints=endpoints, job_id=f"rebuild-{secrets.token_hex(6)}")
            note = Note("rebuild", space, began_at, by, {"job_id": accepted.job_id})
            state = await change.record(_following(target, accepted, built_by), note)
            target = state.by_id(target.id)
            await self._cluster.rebuild(collection, state.uuid, target).start(accepted)
            self.stop_when_done(collection, target)
            return RebuildStarted(target.status, accepted.job_id)

    async def estimate(self, collection: str, space: str, order: RebuildOrder) -> EstimateReport:
        """What the rebuild would take and cost, and what of it would fail; changes nothing.

        It refuses what the order itself would be refused for, but tells of an endpoint that is another model.
        """
        async with self._registry.changing(collection) as change:
            route, target = change.route, change.space(space)
            endpoints = _endpoints(target, order)
            await self._refuse_running(target)
            if order.restart:
                _refuse_default(route, target)
        if target.id in self._estimating:
            raise RebuildRunningError(
                f"vector space {space!r} is being estimated already, and a second time would disturb the first; "
                "ask again in half a minute",
                {"space": space},
            )
        self._estimating.add(target.id)
        try:
            known = await self._known_failures(route, target, order, endpoints)
            return await self._cluster.estimate(route.uuid, target, replace(order, endpoints=endpoints), known)
        finally:
            self._estimating.discard(target.id)

    async def _known_failures(
        self, route: CollectionRoute, target: Space, order: RebuildOrder, endpoints: tuple[str, ...]
    ) -> list[Failure]:
        """What the order would be refused for, other models and memory, as failures of the report."""
        accept, key, fresh = order.accept_new_fingerprint, order.api_key_env, order.restart
        others = await mismatches(self._cluster, route, target, endpoints, key, accept=accept, fresh=fresh)
        errors: list[CompassError] = list(others)
        try:
            if not fresh:
                await self._records.refuse_mixed_models(route, target)
            await self._cluster.index(route.uuid, target).ensure_memory(fresh)
        except (FingerprintMismatchError, InsufficientMemoryError) as error:
            errors.append(error)
        return [_failure(error) for error in errors]

    async def _refuse_running(self, target: Space) -> bool:
        """Whether there is a process of an ended rebuild.

        Raises:
            RebuildRunningError: there is one that runs.
        """
        rebuild = await self._cluster.find_rebuild(target.id)
        if rebuild is not None and await rebuild.running():
            raise RebuildRunningError(
                f"a rebuild of vector space {target.name!r} is running; see its status, or cancel it first",
                {"space": target.name},
            )
        return rebuild is not None

    async def cancel(self, collection: str, space: str, by: By) -> None:
        """Cancel a running rebuild; what it embedded is kept."""
        note = Note("cancel", space, self._now(), by)
        async with self._registry.changing(collection) as change:
            target = change.space(space)
            running = await self._cluster.find_rebuild(target.id)
            if running is None or not await running.running():
                raise NotFoundError(f"no rebuild of vector space {space!r} is running", {"space": space})
            await self.end(target)
            await self._records.close(change.route, target)
            await change.record(SetSpace(target.id), note)

    async def _restart(self, change: CollectionChange, target: Space, note: Note) -> Space:
        """An empty space of the same name in place of this one."""
        _refuse_default(change.route, target)
        uuid = change.route.uuid
        await self._cluster.index(uuid, target).ensure_memory(True)
        empty = new_space(target.name, target.config, "building", self._now(), follows=False)
        await change.transition(RestartSpace(target.id, empty), {target.name}, note)
        await self._indexes.retire(target)
        await self._cluster.collection(uuid).sweep()
        return empty

    async def end(self, space: Space) -> None:
        """End the run of a space and its process; nothing to do without one."""
        running = await self._cluster.find_rebuild(space.id)
        if running is None:
            return
        try:
            async with asyncio.timeout(self._timings.cancel_s):
                await running.cancel()
        except (TimeoutError, CompassError) as error:
            log.warning("the rebuild of %s did not answer, ending its process: %s", space.name, error)
        await self._cluster.stop_rebuild(space.id)

    def stop_when_done(self, collection: str, space: Space) -> None:
        """End the process of a rebuild once its run has ended: what it leaves behind is in the store."""

        async def stop() -> None:
            while await self._cluster.find_rebuild(space.id) is not None:
                await asyncio.sleep(self._timings.stop_check_s)
                with contextlib.suppress(CompassError):
                    async with self._registry.changing(collection):  # the next run may be about to begin
                        run = await self._cluster.find_rebuild(space.id)
                        if run is not None and not await run.running():
                            await self._cluster.stop_rebuild(space.id)
            self._stopping.discard(space.id)

        if space.id not in self._stopping:
            self._stopping.add(space.id)
            self._spawn(stop())


def _following(target: Space, order: RebuildOrder, built_by: BuiltBy | None) -> SetSpace:
    """The space follows from now on, by the run's first endpoint unless it has its own."""
    config = target.config
    if config.embed_endpoint is None:
        key = order.api_key_env or config.api_key_env
        config = replace(config, embed_endpoint=order.endpoints[0], api_key_env=key)
    status: Status | None = "building" if target.status == "failed" else None
    return SetSpace(target.id, status, follows=True, error=False, config=config, built_by=built_by)


def _endpoints(space: Space, order: RebuildOrder) -> tuple[str, ...]:
    own = space.config.embed_endpoint
    endpoints = order.endpoints or ((own,) if own else ())
    if not endpoints:
        raise InvalidRequestError(
            f"vector space {space.name!r} has no embed_endpoint of its own: name one in the request",
            {"errors": [{"field": "embed_endpoint", "detail": "is needed"}]},
        )
    return endpoints


def _refuse_default(route: CollectionRoute, space: Space) -> None:
    if route.default == space.name:
        raise DefaultSpaceError(
            f"vector space {space.name!r} is the default of {route.name!r} and answers queries: "
            "restarting would empty it; add another space and swap",
            {"space": space.name},
        )


def _failure(error: CompassError) -> Failure:
    """An error that the order would be refused by, as a failure of the report."""
    named = {f.name for f in fields(Failure)}
    details = {name: value for name, value in error.fields.items() if name in named}
    return Failure(error.type, error.detail, True, **details)
