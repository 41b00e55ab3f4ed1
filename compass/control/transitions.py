"""One change of a collection's state: the transition of the publication protocol, and whom it is told to.

A change is committed under its own precondition while a fence holds the queries that it concerns, and published
before the call returns. What a transition means is in `domain/publication.py`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any
from weakref import WeakValueDictionary

from compass.control.ports import Cluster
from compass.control.publisher import Publisher
from compass.domain.collection import Change, CollectionState
from compass.domain.history import Note
from compass.domain.routing.publication import Scope
from compass.domain.routing.table import CollectionRoute, RoutingTable
from compass.domain.space import Lag, Space, SpaceConfig
from compass.errors import NotFoundError, SpaceLagsError, TakenOverError, UnavailableError

log = logging.getLogger(__name__)

TELL_S = 5.0  # how long an index may take to hear of its space's record, which it also reads by itself
ASK_AGAIN_S = 1.0  # how often a log that does not answer is asked what became of a change
OPEN_WAIT_S = 10.0  # how long a call waits for the router to have opened

Update = Callable[[RoutingTable], RoutingTable]


class Changes:
    """Commits changes of collections, one at a time for each, and publishes them. `opened`: the table is whole."""

    def __init__(self, cluster: Cluster, publisher: Publisher) -> None:
        self._cluster, self._publisher = cluster, publisher
        self._number = publisher.table.incarnation
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self.opened = asyncio.Event()

    def route(self, collection: str) -> CollectionRoute:
        """The route of a collection; NotFoundError without one."""
        return self._publisher.table.route(collection)

    async def lock(self, collection: str) -> asyncio.Lock:
        """One change of a collection at a time; other collections never notice."""
        await self.until_open()
        return self._locks.setdefault(collection, asyncio.Lock())

    async def until_open(self) -> None:
        """Return once the table is whole; UnavailableError while that takes long."""
        try:
            async with asyncio.timeout(OPEN_WAIT_S):
                await self.opened.wait()
        except TimeoutError:
            raise UnavailableError("the service is still opening its collections", {"retry_after": 1}) from None

    async def transition(
        self,
        route: CollectionRoute,
        change: Change,
        names: set[str],
        note: Note | None = None,
        *,
        default: bool = False,
    ) -> CollectionState:
        """One change of the state, fenced for queries to these names, published before it returns."""
        committed: list[CollectionState] = []
        before = asyncio.ensure_future(self.state(route))  # asked while the fence goes up
        before.add_done_callback(lambda asked: asked.cancelled() or asked.exception())  # a commit may never come

        async def commit() -> Update:
            committed.append(await self._settled(route, change, note, await before))
            return put(committed[0])

        await self._publisher.transition(scope(route.name, names, default), commit)
        spaces = committed[0].spaces.values()
        await self.tell(route.uuid, [space for space in spaces if space != route.spaces.get(space.name)])
        return committed[0]

    async def retire(self, *spaces: Space) -> None:
        """End the indexes of spaces that are gone from the table, when the queries in flight on them are through."""
        await self._publisher.drained(frozenset(space.id for space in spaces))
        for space in spaces:
            await self._cluster.stop_index(space.id)

    async def record(self, route: CollectionRoute, change: Change, note: Note | None = None) -> CollectionState:
        """A change that no query can notice: committed and published without holding anything."""
        return await self.transition(route, change, set(), note)

    async def state(self, route: CollectionRoute) -> CollectionState:
        """The collection's state as its log has it."""
        return await self._cluster.collection(route.uuid).state(self._number)

    async def show_next(self, collection: str, name: str | None) -> None:
        """Publish which space is about to become the default, or that none is any more."""

        def shown(table: RoutingTable) -> RoutingTable:
            route = table.collections.get(collection)
            return table if route is None else table.with_route(replace(route, next_default=name))

        async def commit() -> Update:
            return shown

        await self._publisher.transition(scope(collection, set(), False), commit)

    async def reach_frontier(self, route: CollectionRoute, space: Space, wait_s: float) -> Lag:
        """Wait until a space has what the log holds now; what it does without.

        Raises:
            SpaceLagsError: it has not within `wait_s`.
        """
        frontier = (await self._cluster.collection(route.uuid).stats()).seq
        behind = await self._cluster.index(route.uuid, space).lag_at(frontier, wait_s)
        if lag := behind.lag:
            raise SpaceLagsError(
                f"vector space {space.name!r} of {route.name!r} still lacks {lag} chunks after {wait_s:g} s; "
                "see its status, and its endpoint",
                {"space": space.name, "lag": lag},
            )
        return behind

    async def tell(self, uuid: str, spaces: Iterable[Space]) -> None:
        """Let each index know its space's record. One that is silent reads it in the log, when it can."""

        async def tell(space: Space) -> None:
            try:
                async with asyncio.timeout(TELL_S):
                    await self._cluster.index(uuid, space).configure(space)
            except Exception as error:  # noqa: BLE001 - what is committed is not undone by a silent index
                log.warning("the index of vector space %s does not answer: %s", space.name, error or "timeout")

        await asyncio.gather(*(tell(space) for space in spaces))

    async def _settled(
        self, route: CollectionRoute, change: Change, note: Note | None, before: CollectionState
    ) -> CollectionState:
        """Commit a change of the state `before`; when the answer is lost, what the log says decides.

        Nobody but the holder of the collection's lock changes its state, so a state that differs is this
        change's. Until the log can be asked it is not known what is true, and the fence stays up.
        """
        try:
            return await self._cluster.collection(route.uuid).change(change, self._number, note)
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
                await asyncio.sleep(ASK_AGAIN_S)
        raise TakenOverError("another router has taken over; it finds out what became of the change")


def new_space(name: str, config: SpaceConfig, status: Any, follows: bool) -> Space:
    """A space under an id that was never used."""
    return Space(f"{name}-{secrets.token_hex(4)}", name, config, status, time.time(), follows)


def by_id(route: CollectionRoute, space_id: str) -> Space:
    """The space of this id; NotFoundError without one."""
    for space in route.spaces.values():
        if space.id == space_id:
            return space
    raise NotFoundError(f"vector space {space_id!r} is not there any more", {"space_id": space_id})


def scope(collection: str, names: set[str], default: bool) -> Scope:
    """The queries that a change concerns: by name of the space, and those that name none."""
    return Scope(collection, frozenset(names), default)


def put(state: CollectionState) -> Update:
    """Put the routes of a state into the table."""
    return lambda table: table.with_route(CollectionRoute.of(state))
