"""What may be done to a collection by whoever has it to itself: the transitions of the publication protocol.

A change is committed under its own precondition while a fence holds the queries that it concerns, and published
before the call returns. What a transition means is in `domain/routing/publication.py`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace

from compass.control.indexes import Indexes
from compass.control.ports import Cluster
from compass.control.publisher import Publisher
from compass.domain.collection import Change, CollectionState
from compass.domain.history import Note
from compass.domain.routing.publication import Scope, Update
from compass.domain.routing.table import CollectionRoute, RoutingTable
from compass.domain.space import Lag, Space, SpaceConfig, Status
from compass.errors import SpaceLagsError, TakenOverError, UnavailableError

log = logging.getLogger(__name__)


class CollectionChange:
    """One collection in the hands of one caller, see `Registry.changing`: nobody else changes it meanwhile."""

    def __init__(self, name: str, cluster: Cluster, publisher: Publisher, indexes: Indexes, settle_s: float) -> None:
        """`settle_s`: how often a log that does not answer is asked what became of a change."""
        self._name, self._settle_s = name, settle_s
        self._cluster, self._publisher, self._indexes = cluster, publisher, indexes
        self._router_epoch = publisher.table.incarnation

    @property
    def exists(self) -> bool:
        """Whether the table has the collection."""
        return self._name in self._publisher.table.collections

    @property
    def route(self) -> CollectionRoute:
        """The route of now.

        Raises:
            NotFoundError: there is no such collection.
        """
        return self._publisher.table.route(self._name)

    def space(self, name: str) -> Space:
        """The space of this name.

        Raises:
            NotFoundError: there is no such collection or space.
        """
        return self.route.space(name)

    def space_by_id(self, space_id: str) -> Space:
        """The space of this id.

        Raises:
            NotFoundError: there is no such collection or space.
        """
        return self.route.space_by_id(space_id)

    async def state(self) -> CollectionState:
        """The collection's state as its log has it."""
        return await self._cluster.collection(self.route.uuid).state(self._router_epoch)

    async def create(self, space_names: Iterable[str], make: Callable[[], Awaitable[CollectionState]]) -> None:
        """Publish a collection of these spaces that `make` makes durable; queries to it wait meanwhile."""

        async def commit() -> Update:
            state = await make()
            return lambda table: table.with_state(state)

        await self._publisher.transition(Scope(self._name, frozenset(space_names), default=True), commit)

    async def remove(self) -> None:
        """Take the collection out of the table; what is left of it is the caller's to delete."""

        async def commit() -> Update:
            return lambda table: table.without(self._name)

        await self._publisher.transition(Scope(self._name, frozenset(self.route.spaces), default=True), commit)

    async def transition(
        self, change: Change, names: Iterable[str], note: Note | None = None, *, default: bool = False
    ) -> CollectionState:
        """Commit one change, published before this returns.

        Args:
            change: It carries its own precondition.
            names: Queries to the spaces of these names wait meanwhile.
            note: What the history says of it.
            default: Queries that name no space wait too.
        """
        before = self.route
        committed: asyncio.Future[CollectionState] = asyncio.get_running_loop().create_future()
        state = asyncio.ensure_future(self.state())  # asked for while the fence goes up
        state.add_done_callback(lambda task: task.cancelled() or task.exception())  # a commit may never come

        async def commit() -> Update:
            after = await self._commit(before.uuid, change, note, await state)
            committed.set_result(after)
            return lambda table: table.with_state(after)

        await self._publisher.transition(Scope(self._name, frozenset(names), default), commit)
        after = committed.result()
        changed = [space for space in after.spaces.values() if space != before.spaces.get(space.name)]
        await self._indexes.configure(before.uuid, changed)
        return after

    async def record(self, change: Change, note: Note | None = None) -> CollectionState:
        """Commit a change that no query can notice: published without holding anything."""
        return await self.transition(change, (), note)

    async def announce_next_default(self, name: str | None) -> None:
        """Publish which space is about to become the default, or that none is any more."""

        def announced(table: RoutingTable) -> RoutingTable:
            route = table.collections.get(self._name)
            return table if route is None else table.with_route(replace(route, next_default=name))

        async def commit() -> Update:
            return announced

        await self._publisher.transition(Scope(self._name), commit)

    async def reach_frontier(self, space: Space, wait_s: float) -> Lag:
        """Wait until a space has what the log holds now; what it does without.

        Raises:
            SpaceLagsError: it has not within `wait_s`.
        """
        route = self.route
        frontier = (await self._cluster.collection(route.uuid).stats()).seq
        behind = await self._cluster.index(route.uuid, space).lag_at(frontier, wait_s)
        if lag := behind.lag:
            raise SpaceLagsError(
                f"vector space {space.name!r} of {route.name!r} still lacks {lag} chunks after {wait_s:g} s; "
                "see its status, and its endpoint",
                {"space": space.name, "lag": lag},
            )
        return behind

    async def _commit(self, uuid: str, change: Change, note: Note | None, before: CollectionState) -> CollectionState:
        """Commit a change of the state `before`; when the answer is lost, what the log says decides.

        Nobody else changes the state meanwhile, so a state that differs is this change's. Until the log can be
        asked it is not known what is true, and the fence stays up.
        """
        try:
            return await self._cluster.collection(uuid).change(change, self._router_epoch, note)
        except TakenOverError:
            raise
        except UnavailableError:
            after = await self._settled(uuid)
            if after == before:
                raise
            return after

    async def _settled(self, uuid: str) -> CollectionState:
        """The state once the log can be asked."""
        while not self._publisher.superseded:
            try:
                return await self._cluster.collection(uuid).state(self._router_epoch)
            except UnavailableError as error:
                log.warning("collection %s: what became of a change is not known yet: %s", self._name, error)
                await asyncio.sleep(self._settle_s)
        raise TakenOverError("another router has taken over; it finds out what became of the change")


def new_space(name: str, config: SpaceConfig, status: Status, created_at: float, *, follows: bool) -> Space:
    """A space under an id that was never used."""
    return Space(f"{name}-{secrets.token_hex(4)}", name, config, status, created_at, follows)
