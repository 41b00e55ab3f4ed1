"""Opening what the root holds, and looking after what is open."""

from __future__ import annotations

import asyncio
import logging

from compass.control.indexes import Indexes
from compass.control.ports import Cluster
from compass.control.publisher import Publisher
from compass.control.rebuilds import Rebuilds
from compass.control.registry import Registry
from compass.control.run_records import RunRecords
from compass.domain.routing.table import CollectionRoute
from compass.domain.space import Space
from compass.storage.root import Root

log = logging.getLogger(__name__)

OPEN_AT_ONCE = 8


class Reconciler:
    """Opens every collection of the root, and starts again what has ended."""

    def __init__(
        self,
        root: Root,
        cluster: Cluster,
        publisher: Publisher,
        registry: Registry,
        *,
        indexes: Indexes,
        rebuilds: Rebuilds,
        records: RunRecords,
        every_s: float,
    ) -> None:
        """Wire it; it looks after everything `every_s` seconds."""
        self._root, self._cluster, self._publisher, self._registry = root, cluster, publisher, registry
        self._indexes, self._rebuilds, self._records, self._every_s = indexes, rebuilds, records, every_s
        self._router_epoch = publisher.table.incarnation
        self._unopened: set[str] = set()  # names that are, or may be, in the root and not in the table

    async def open(self) -> None:
        """Open everything the root holds, as the log of each collection says; what does not open is tried again."""
        uuids = await self._listed()
        while uuids is None:
            await asyncio.sleep(self._every_s)
            uuids = await self._listed()
        turn = asyncio.Semaphore(OPEN_AT_ONCE)

        async def open_one(name: str, uuid: str) -> None:
            async with turn:
                await self._open_collection(name, uuid)

        await asyncio.gather(*(open_one(name, uuid) for name, uuid in uuids.items()))
        self._registry.mark_open()

    def look_for(self, name: str) -> None:
        """Look whether the root has a collection of this name, though the table has none; open it if so."""
        self._unopened.add(name)

    async def start(self, route: CollectionRoute) -> None:
        """See that the actors of a collection are there; what does not start now is looked after later."""
        try:
            await self._cluster.collection(route.uuid).state(self._router_epoch)
        except Exception as error:  # noqa: BLE001 - the other parts may do without it
            log.error("the writer of collection %s does not start: %s", route.name, error)
        await self._indexes.configure(route.uuid, route.spaces.values())
        for space in route.spaces.values():
            try:
                await self._resume(route, space)
            except Exception as error:  # noqa: BLE001 - the space answers without it
                log.error("the rebuild of vector space %s is not resumed: %s", space.name, error)

    async def reconcile(self) -> None:
        """Start again what did not open, and parts whose process has ended for good."""
        while not self._publisher.superseded:
            await asyncio.sleep(self._every_s)
            await self._open_the_rest()
            for name in list(self._publisher.table.collections):
                async with self._registry.changing(name) as change:
                    if change.exists:
                        await self.start(change.route)

    async def _listed(self) -> dict[str, str] | None:
        """The uuids of the root's collections by name, once interrupted deletes are finished; None: not now."""
        try:
            await asyncio.to_thread(self._root.sweep)
            return await asyncio.to_thread(self._root.collections)
        except Exception:  # a router that gave up would leave every collection closed, and say nothing more
            log.exception("the root cannot be read; it is tried again")
            return None

    async def _open_collection(self, name: str, uuid: str) -> None:
        try:
            state = await self._cluster.collection(uuid).state(self._router_epoch)
        except Exception as error:  # noqa: BLE001 - whatever keeps one closed must not keep the others
            log.error("collection %s does not open, it is tried again: %s", name, error)
            self._unopened.add(name)
            return
        await self.start(CollectionRoute.of(state))
        self._publisher.replace(lambda table: table.with_state(state))
        self._unopened.discard(name)

    async def _resume(self, route: CollectionRoute, space: Space) -> None:
        """See that the rebuild is there which the store says is running."""
        record = await self._records.read(route, space)
        if record is not None and record.running:
            await self._cluster.rebuild(route.name, route.uuid, space).running()
        if await self._cluster.find_rebuild(space.id) is not None:
            self._rebuilds.stop_when_done(route.name, space)

    async def _open_the_rest(self) -> None:
        if not self._unopened or (uuids := await self._listed()) is None:
            return
        self._unopened &= uuids.keys()
        for name in list(self._unopened):
            async with self._registry.changing(name) as change:
                if change.exists:
                    self._unopened.discard(name)
                else:
                    await self._open_collection(name, uuids[name])
