"""Stored chunks, read one by one or a page at a time."""

from __future__ import annotations

from compass.domain.chunk import Chunk
from compass.domain.page import Page
from compass.errors import NotFoundError
from compass.gateway.context import Context


class Chunks:
    """The use cases that read chunks."""

    def __init__(self, context: Context) -> None:
        """Read them from the collections of `context`."""
        self._context = context

    async def page(self, collection: str, after: int, limit: int) -> Page[Chunk]:
        """At most `limit` chunks whose id is above `after`, by id.

        Raises:
            NotFoundError: there is no such collection.
        """
        async with self._context.table.route(collection, None) as routed:
            chunks = await self._context.collection(routed.route.uuid).page(after, limit)
        return Page.of(chunks, limit)

    async def one(self, collection: str, chunk_id: int) -> Chunk:
        """One chunk.

        Raises:
            NotFoundError: there is no such chunk.
        """
        async with self._context.table.route(collection, None) as routed:
            chunk = await self._context.collection(routed.route.uuid).chunk(chunk_id)
        if chunk is None:
            raise NotFoundError(f"collection {collection!r} has no chunk {chunk_id}", {"id": chunk_id})
        return chunk
