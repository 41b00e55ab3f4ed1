"""What the parts of the service ask of each other; in production each port is an actor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from compass.domain.chunk import Chunk, ChunkInput
from compass.domain.collection import CollectionSpec
from compass.domain.filters import Filter
from compass.domain.history import By, Event
from compass.domain.rebuild.order import RebuildSpec
from compass.domain.receipts import Deleted, Ingested
from compass.domain.routing.swap import SwapSpec
from compass.domain.search.query import Hit, Query
from compass.domain.space import SpaceConfig


class Router(Protocol):
    """The authority for the routing table: everything that changes who answers what."""

    async def create_collection(self, spec: CollectionSpec, by: By) -> None:
        """Create a collection; its spaces are active at once."""

    async def delete_collection(self, collection: str) -> None:
        """Delete it; when this returns its bytes are gone."""

    async def add_space(self, collection: str, name: str, config: SpaceConfig, by: By) -> None:
        """Add a building space."""

    async def set_space(self, collection: str, space: str, changes: dict[str, Any], by: By) -> None:
        """Change fields of a space's config: embed_endpoint, query_prompt_name, ef_search."""

    async def drop_space(self, collection: str, space: str, confirm: str | None, by: By) -> None:
        """Drop a space; when this returns its bytes are gone. `confirm`: its name, where that is wanted."""

    async def swap(self, collection: str, spec: SwapSpec, by: By) -> dict[str, Any]:
        """Make a space the default: {previous, current, epoch}."""

    async def start_rebuild(self, collection: str, space: str, spec: RebuildSpec, by: By) -> dict[str, Any]:
        """Start or resume a rebuild: {status, job_id}."""

    async def estimate_rebuild(self, collection: str, space: str, spec: RebuildSpec) -> dict[str, Any]:
        """What this rebuild would take and cost, and what of it would fail; changes nothing."""

    async def cancel_rebuild(self, collection: str, space: str, by: By) -> None:
        """Cancel a running rebuild and keep its work."""


class Collection(Protocol):
    """The only writer of one collection."""

    async def ingest(self, chunks: Sequence[ChunkInput]) -> Ingested:
        """Write chunks; durable when it returns."""

    async def delete(self, ids: Sequence[int], where: Filter | None) -> Deleted:
        """Delete by ids or by a filter, not both."""

    async def chunk(self, chunk_id: int) -> Chunk | None:
        """One chunk, or None."""

    async def page(self, after: int, limit: int) -> list[Chunk]:
        """Up to `limit` chunks whose id is greater than `after`, by id."""

    async def info(self) -> dict[str, Any]:
        """{chunk_count, seq}."""

    async def history(self) -> list[Event]:
        """What was done to the collection, oldest first."""


class SpaceIndex(Protocol):
    """The vectors of one space: searches them, and follows the log."""

    async def search(self, queries: Sequence[Query]) -> list[list[Hit]]:
        """Answer several queries that waited together."""

    async def follow(self, seq: int, wait_s: float) -> int:
        """Wait until the space can find what was written up to `seq`; how many chunks it still lacks."""

    async def info(self) -> dict[str, Any]:
        """{vectors, lag, quarantined, accepted, bytes_on_disk, error?}."""

    async def quarantine(self, after: int, limit: int) -> list[dict[str, Any]]:
        """A page of the refused chunks by id: [{id, file_id, chunk_index, reason}]."""

    async def rebuild_status(self) -> dict[str, Any]:
        """RebuildStatus of the HTTP interface, the `status` of the space left out."""
