"""The routing table: an immutable picture of who answers what, that every gateway holds under a lease."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from compass.domain.collection import CollectionState
from compass.domain.space import Space
from compass.errors import NotFoundError, SpaceNotActiveError


@dataclass(frozen=True, slots=True)
class CollectionRoute:
    """One collection as queries see it: its default, its epoch, its spaces by name.

    Attributes:
        next_default: While a swap is under way, the space that acknowledgements wait for beside the default.
    """

    uuid: str
    name: str
    epoch: int
    default: str
    spaces: Mapping[str, Space]
    config: Mapping[str, Any] = field(default_factory=dict)
    created_at: float = 0.0
    next_default: str | None = None

    @staticmethod
    def of(state: CollectionState) -> CollectionRoute:
        """The route that a committed state prescribes."""
        default = state.by_id(state.default).name if state.default else ""
        spaces = {s.name: s for s in state.spaces.values()}
        return CollectionRoute(
            state.uuid, state.name, state.epoch, default, spaces, dict(state.config), state.created_at
        )

    def space(self, name: str | None) -> Space:
        """The space of this name, or the default for None.

        Raises:
            NotFoundError: there is none of this name.
        """
        space_name = self.default if name is None else name
        if space_name not in self.spaces:
            names = ", ".join(repr(n) for n in self.spaces) or "none"
            raise NotFoundError(
                f"collection {self.name!r} has no vector space {space_name!r}; it has {names}", {"space": space_name}
            )
        return self.spaces[space_name]

    def space_by_id(self, space_id: str) -> Space:
        """The space of this id.

        Raises:
            NotFoundError: there is none any more.
        """
        for space in self.spaces.values():
            if space.id == space_id:
                return space
        raise NotFoundError(f"vector space {space_id!r} is not there any more", {"space_id": space_id})

    def active_space(self, name: str | None) -> Space:
        """The space of this name, if it may answer.

        Raises:
            SpaceNotActiveError: it is building or failed.
        """
        space = self.space(name)
        if space.status != "active":
            raise SpaceNotActiveError(
                f"vector space {space.name!r} of {self.name!r} is {space.status}, not active",
                {"space": space.name, "space_status": space.status},
            )
        return space


@dataclass(frozen=True, slots=True)
class RoutingTable:
    """All collections of a service. (incarnation, version) only grows; the greater one is the newer one."""

    incarnation: int = 0
    version: int = 0
    collections: Mapping[str, CollectionRoute] = field(default_factory=dict)

    @property
    def stamp(self) -> tuple[int, int]:
        """What orders two tables."""
        return (self.incarnation, self.version)

    def route(self, collection: str) -> CollectionRoute:
        """The route of a collection.

        Raises:
            NotFoundError: there is none of this name.
        """
        if collection not in self.collections:
            raise NotFoundError(f"there is no collection {collection!r}", {"collection": collection})
        return self.collections[collection]

    def with_route(self, route: CollectionRoute) -> RoutingTable:
        """The next version, with this collection's route put in or replaced."""
        routes = {**self.collections, route.name: route}
        return replace(self, version=self.version + 1, collections=routes)

    def with_state(self, state: CollectionState) -> RoutingTable:
        """The next version, with the route that a committed state prescribes."""
        return self.with_route(CollectionRoute.of(state))

    def without(self, collection: str) -> RoutingTable:
        """The next version, without this collection."""
        routes = {k: v for k, v in self.collections.items() if k != collection}
        return replace(self, version=self.version + 1, collections=routes)
