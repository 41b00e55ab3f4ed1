"""What the parts of the service ask of each other; in production each port is an actor."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from compass.domain.chunk import Chunk, ChunkInput
from compass.domain.collection import CollectionSpec, CollectionStats
from compass.domain.filters import Filter
from compass.domain.history import By, Event
from compass.domain.rebuild.order import RebuildOrder, RebuildStarted
from compass.domain.rebuild.report import EstimateReport
from compass.domain.rebuild.status import QuarantinedChunk, RebuildStatus
from compass.domain.receipts import Deleted, Ingested
from compass.domain.routing.lease import Routed
from compass.domain.routing.swap import SwapOrder, Swapped
from compass.domain.routing.table import RoutingTable
from compass.domain.search.query import Hit, Query
from compass.domain.space import SpaceChanges, SpaceConfig, SpaceStats


class Table(Protocol):
    """The gateway's own routing table."""

    @property
    def table(self) -> RoutingTable:
        """The newest table that has arrived, whether or not its lease still runs."""

    async def current(self) -> RoutingTable:
        """The table, under a lease; for what no change of it need hold up."""

    def route(self, collection: str, space: str | None) -> AbstractAsyncContextManager[Routed]:
        """Where a query goes, to a space by name or to the default for None; in flight until the block ends."""


class Router(Protocol):
    """The authority for the routing table: everything that changes who answers what."""

    async def create_collection(self, spec: CollectionSpec, by: By) -> None:
        """Create a collection; its spaces are active at once."""

    async def delete_collection(self, collection: str) -> None:
        """Delete it; when this returns its bytes are gone."""

    async def add_space(self, collection: str, name: str, config: SpaceConfig, by: By) -> None:
        """Add a building space."""

    async def set_space(self, collection: str, space: str, changes: SpaceChanges, by: By) -> None:
        """Change fields of a space's config."""

    async def drop_space(self, collection: str, space: str, confirm: str | None, by: By) -> None:
        """Drop a space; when this returns its bytes are gone. `confirm`: its name, where that is wanted."""

    async def swap(self, collection: str, order: SwapOrder, by: By) -> Swapped:
        """Make a space the default."""

    async def start_rebuild(self, collection: str, space: str, order: RebuildOrder, by: By) -> RebuildStarted:
        """Start or resume a rebuild."""

    async def estimate_rebuild(self, collection: str, space: str, order: RebuildOrder) -> EstimateReport:
        """What this rebuild would take and cost, and what of it would fail; changes nothing."""

    async def cancel_rebuild(self, collection: str, space: str, by: By) -> None:
        """Cancel a running rebuild and keep its work."""


class Collection(Protocol):
    """The only writer of one collection."""

    async def ingest(self, chunks: Sequence[ChunkInput], attempt: str | None = None) -> Ingested:
        """Write chunks; durable when it returns. Sent again with the same `attempt` it changes nothing."""

    async def delete(self, ids: Sequence[int], where: Filter | None, attempt: str | None = None) -> Deleted:
        """Delete by ids or by a filter, not both. Sent again with the same `attempt` it changes nothing."""

    async def chunk(self, chunk_id: int) -> Chunk | None:
        """One chunk, or None."""

    async def page(self, after: int, limit: int) -> list[Chunk]:
        """Up to `limit` chunks whose id is greater than `after`, by id."""

    async def stats(self) -> CollectionStats:
        """Its live chunks, and its last commit."""

    async def history(self) -> list[Event]:
        """What was done to the collection, oldest first."""


class SpaceIndex(Protocol):
    """The vectors of one space: searches them, and follows the log."""

    async def search(self, queries: Sequence[Query]) -> list[list[Hit]]:
        """Answer several queries that waited together."""

    async def follow(self, seq: int, wait_s: float) -> int:
        """Wait until the space can find what was written up to `seq`; how many chunks it still lacks."""

    async def stats(self) -> SpaceStats:
        """What it holds, and what it lacks."""

    async def quarantine(self, after: int, limit: int) -> list[QuarantinedChunk]:
        """A page of the refused chunks, by id."""

    async def rebuild_status(self) -> RebuildStatus:
        """How far its rebuild is."""
