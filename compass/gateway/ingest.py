"""Writes: chunks, and deletes of them. Each is acknowledged when it is durable and, as far as asked, visible."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from compass.domain.chunk import ChunkInput, has_text
from compass.domain.filters import Filter
from compass.domain.ingest import IncomingChunk, IngestOrder, IngestReceipt, chunks_to_store
from compass.domain.receipts import Deleted
from compass.domain.routing.bare_vectors import check_bare_vector, check_expected_epoch
from compass.errors import NotFoundError
from compass.gateway.context import Context
from compass.gateway.visibility import Followers


class Ingest:
    """The use cases that write chunks."""

    def __init__(self, context: Context, followers: Followers) -> None:
        """Ask `followers` what can be found."""
        self._context, self._followers = context, followers

    async def write(self, collection: str, order: IngestOrder) -> IngestReceipt:
        """Write chunks: durable, then findable in the default space, or `wait_s` is over.

        Raises:
            InvalidRequestError: it names each bad chunk; nothing is written.
            BareVectorError: a vector without a space after the default has changed.
            EpochMismatchError: the epoch is another one than `expected_epoch`.
        """
        started = self._context.clock()
        async with self._context.table.route(collection, None) as routed:
            route = routed.route
            check_expected_epoch(route, order.expected_epoch)
            if order.has_bare_vectors:
                advice = "send it in embeddings: {space: [...]}, or send expected_epoch"
                check_bare_vector(route, order.expected_epoch, advice)
            chunks = chunks_to_store(order.chunks, route)
            receipt = await self._context.collection(route.uuid).ingest(chunks, _attempt())
        self._context.acknowledge(route, receipt.seq)
        pending = await self._followers.until_findable(route, receipt.seq, _texts(chunks), order.wait_s)
        return IngestReceipt(
            indexed=len(chunks),
            ids=_ids_by_client_id(order.chunks, receipt.ids),
            seq=receipt.seq,
            pending=pending,
            took_s=self._context.clock() - started,
        )

    async def delete_one(self, collection: str, chunk_id: int) -> Deleted:
        """Delete one chunk.

        Raises:
            NotFoundError: there is no such chunk.
        """
        receipt = await self.delete(collection, [chunk_id], None)
        if not receipt.deleted:
            raise NotFoundError(f"collection {collection!r} has no chunk {chunk_id}", {"id": chunk_id})
        return receipt

    async def delete(self, collection: str, ids: Sequence[int], where: Filter | None) -> Deleted:
        """Delete chunks by ids, or by a filter."""
        async with self._context.table.route(collection, None) as routed:
            route = routed.route
            receipt = await self._context.collection(route.uuid).delete(ids, where, _attempt())
        self._context.acknowledge(route, receipt.seq)
        if receipt.deleted:  # gone from every space before the call returns, whichever gateway is asked next
            await self._followers.lacking(route.spaces.values(), receipt.seq, 0, 0.0)
        return receipt


def _attempt() -> str:
    """Names one write: when its answer is lost with the writer, and it is sent again, it finds its receipt."""
    return secrets.token_hex(8)


def _texts(chunks: Sequence[ChunkInput]) -> int:
    return sum(has_text(chunk.text) for chunk in chunks)


def _ids_by_client_id(chunks: Sequence[IncomingChunk], ids: Sequence[int]) -> dict[str, int]:
    pairs = zip(chunks, ids, strict=True)
    return {chunk.client_id: chunk_id for chunk, chunk_id in pairs if chunk.client_id is not None}
