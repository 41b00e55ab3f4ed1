"""Vector spaces: added, shown, changed, dropped, made the default; and what was done to them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from compass.domain.history import By, Event
from compass.domain.info import SpaceInfo
from compass.domain.routing.swap import SwapOrder, Swapped
from compass.domain.space import NewSpace, Space, SpaceChanges
from compass.gateway.context import Context


class Spaces:
    """The use cases of vector spaces."""

    def __init__(self, context: Context) -> None:
        """Have the router of `context` change them."""
        self._context = context

    async def add(self, collection: str, space: NewSpace, by: By) -> None:
        """Add a space, which is building until it is rebuilt or fed.

        Raises:
            SpaceExistsError: there is one of this name.
        """
        await self._context.router.add_space(collection, space.name, space.config, by)

    async def all(self, collection: str) -> list[SpaceInfo]:
        """The spaces of a collection, in the order of their creation.

        Raises:
            NotFoundError: there is no such collection.
        """
        return await self.infos((await self._context.route(collection)).spaces.values())

    async def change(self, collection: str, space: str, changes: SpaceChanges, by: By) -> SpaceInfo:
        """Change what can change while a space answers.

        Raises:
            FingerprintMismatchError: the new endpoint's model is not the one that built the space.
        """
        await self._context.router.set_space(collection, space, changes, by)
        return await self._info((await self._context.route(collection)).space(space))

    async def drop(self, collection: str, space: str, confirm: str | None, by: By) -> None:
        """Drop a space; when this returns its bytes are gone.

        Raises:
            DefaultSpaceError: it is the default.
            ConfirmationNeededError: it was the default a short while ago; `confirm` must be its name.
        """
        await self._context.router.drop_space(collection, space, confirm, by)

    async def swap(self, collection: str, order: SwapOrder, by: By) -> Swapped:
        """Make a space the default.

        Raises:
            SpaceNotActiveError, SpaceLagsError, SpaceQuarantinedError, EpochMismatchError, RebuildRunningError:
                its state forbids it.
        """
        return await self._context.router.swap(collection, order, by)

    async def history(self, collection: str) -> list[Event]:
        """What was done to the spaces of a collection, oldest first.

        Raises:
            NotFoundError: there is no such collection.
        """
        route = await self._context.route(collection)
        return await self._context.collection(route.uuid).history()

    async def infos(self, spaces: Iterable[Space]) -> list[SpaceInfo]:
        """These spaces as their indexes know them."""
        return [*await asyncio.gather(*(self._info(space) for space in spaces))]

    async def _info(self, space: Space) -> SpaceInfo:
        return SpaceInfo(space, await self._context.index(space).stats())
