"""Collections: created, listed, shown, deleted."""

from __future__ import annotations

import asyncio

from compass.domain.collection import CollectionSpec
from compass.domain.history import By
from compass.domain.info import CollectionInfo
from compass.errors import NotFoundError
from compass.gateway.context import Context
from compass.gateway.spaces import Spaces


class Collections:
    """The use cases of whole collections."""

    def __init__(self, context: Context, spaces: Spaces) -> None:
        """Ask `spaces` for the spaces of a collection."""
        self._context, self._spaces = context, spaces

    async def create(self, spec: CollectionSpec, by: By) -> CollectionInfo:
        """Create a collection; its spaces are active at once.

        Raises:
            CollectionExistsError: there is one of this name.
        """
        await self._context.router.create_collection(spec, by)
        return await self.info(spec.name)

    async def all(self) -> list[CollectionInfo]:
        """All collections, by name."""
        table = await self._context.table.current()
        infos = await asyncio.gather(*(self._info_or_none(name) for name in sorted(table.collections)))
        return [info for info in infos if info is not None]

    async def info(self, collection: str) -> CollectionInfo:
        """A collection with its spaces.

        Raises:
            NotFoundError: there is no such collection.
        """
        async with self._context.table.route(collection, None) as routed:
            route = routed.route
            stats, spaces = await asyncio.gather(
                self._context.collection(route.uuid).stats(), self._spaces.infos(route.spaces.values())
            )
        return CollectionInfo(route, stats, spaces)

    async def delete(self, collection: str) -> None:
        """Delete it; when this returns its bytes are gone.

        Raises:
            NotFoundError: there is no such collection.
        """
        await self._context.router.delete_collection(collection)

    async def _info_or_none(self, collection: str) -> CollectionInfo | None:
        try:
            return await self.info(collection)
        except NotFoundError:  # deleted while the list was made
            return None
