"""Opening what the root holds, and looking after what is open."""

from __future__ import annotations

import asyncio
import logging

from compass.control.ports import Cluster
from compass.control.publisher import Publisher
from compass.control.rebuilds import RebuildOrders
from compass.control.transitions import Changes, put
from compass.domain.routing.table import CollectionRoute
from compass.domain.space import Space
from compass.storage.root import Root

log = logging.getLogger(__name__)

RECONCILE_S = 10.0  # how often the parts of the service are looked after
OPEN_AT_ONCE = 8


class Opening:
    """Opens every collection of the root, and starts again what has ended.

    Attributes:
        unopened: Names that are, or may be, in the root and not in the table.
    """

    def __init__(
        self, root: Root, cluster: Cluster, publisher: Publisher, changes: Changes, rebuilds: RebuildOrders
    ) -> None:
        self._root, self._cluster, self._publisher = root, cluster, publisher
        self._changes, self._rebuilds = changes, rebuilds
        self._number = publisher.table.incarnation
        self.unopened: set[str] = set()

    async def open(self) -> None:
        """Everything the root holds, as the log of each collection says; what does not open is tried again."""
        names = await self._listed()
        while names is None:
            await asyncio.sleep(RECONCILE_S)
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
        except Exception:  # a router that gave up would leave every collection closed, and say nothing more
            log.exception("the root cannot be read; it is tried again")
            return None

    async def _open_collection(self, name: str, uuid: str) -> None:
        try:
            state = await self._cluster.collection(uuid).state(self._number)
        except Exception as error:  # noqa: BLE001 - whatever keeps one closed must not keep the others
            log.error("collection %s does not open, it is tried again: %s", name, error)
            self.unopened.add(name)
            return
        await self.start(CollectionRoute.of(state))
        self._publisher.replace(put(state))
        self.unopened.discard(name)

    async def start(self, route: CollectionRoute) -> None:
        """See that the actors of a collection are there; what does not start now is looked after later."""
        try:
            await self._cluster.collection(route.uuid).state(self._number)
        except Exception as error:  # noqa: BLE001 - the other parts may do without it
            log.error("the writer of collection %s does not start: %s", route.name, error)
        await self._changes.tell(route.uuid, route.spaces.values())
        for space in route.spaces.values():
            try:
                await self._resume(route, space)
            except Exception as error:  # noqa: BLE001 - the space answers without it
                log.error("the rebuild of vector space %s is not resumed: %s", space.name, error)

    async def _resume(self, route: CollectionRoute, space: Space) -> None:
        """See that the rebuild is there which the store says is running."""
        record = await asyncio.to_thread(self._rebuilds.vectors(route, space).read_run)
        if record is not None and record.running:
            await self._cluster.rebuild(route.name, route.uuid, space).running()
        if await self._cluster.find_rebuild(space.id) is not None:
            self._rebuilds.stop_when_done(route.name, space)

    async def reconcile(self) -> None:
        """Start again what did not open, and parts whose process has ended for good."""
        await self._changes.opened.wait()
        while not self._publisher.superseded:
            await asyncio.sleep(RECONCILE_S)
            await self._open_the_rest()
            for name in list(self._publisher.table.collections):
                async with await self._changes.lock(name):
                    if route := self._publisher.table.collections.get(name):
                        await self.start(route)

    async def _open_the_rest(self) -> None:
        if not self.unopened or (names := await self._listed()) is None:
            return
        self.unopened &= names.keys()
        for name in list(self.unopened):
            async with await self._changes.lock(name):
                if name in self._publisher.table.collections:
                    self.unopened.discard(name)
                else:
                    await self._open_collection(name, names[name])
