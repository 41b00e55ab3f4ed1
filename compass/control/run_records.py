"""The records that rebuilds keep of themselves, as the router reads them."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from compass.control.timings import WallClock
from compass.domain.history import Kind, Note
from compass.domain.rebuild.run_record import RunRecord
from compass.domain.routing.table import CollectionRoute
from compass.domain.space import Space
from compass.errors import FingerprintMismatchError
from compass.storage.root import Root
from compass.storage.spaces.vectors import SpaceVectors


class RunRecords:
    """Finds the record of a space's last run in the store."""

    def __init__(self, root: Root, now: WallClock) -> None:
        self._root, self._now = root, now

    async def read(self, route: CollectionRoute, space: Space) -> RunRecord | None:
        """The record of the space's last run; None without one."""
        return await asyncio.to_thread(self._vectors(route, space).read_run)

    async def close(self, route: CollectionRoute, space: Space) -> None:
        """Write down that a run was cancelled, where its process did not get to it."""
        record = await self.read(route, space)
        if record is not None and record.running:
            cancelled = replace(record, state="cancelled", ended_at=self._now())
            await asyncio.to_thread(self._vectors(route, space).write_run, cancelled)

    async def refuse_mixed_models(self, route: CollectionRoute, space: Space) -> None:
        """Refuse a space whose run has found that its endpoints' model changed under way.

        Raises:
            FingerprintMismatchError: it has.
        """
        record = await self.read(route, space)
        if record is not None and record.mixed_models:
            raise FingerprintMismatchError(
                f"vector space {space.name!r} holds vectors of more than one model: {record.error}. "
                "Rebuild it with restart, which empties it first",
                {"space": space.name},
            )

    async def note(self, kind: Kind, route: CollectionRoute, space: Space, **details: str) -> Note:
        """A note of how the last run ended; it took as long as the run."""
        run = await self.read(route, space)
        began_at = run.started_at if run else self._now()
        return Note(kind, space.name, began_at, details={**details, "job_id": run.order.job_id if run else None})

    def _vectors(self, route: CollectionRoute, space: Space) -> SpaceVectors:
        return self._root.space_vectors(route.uuid, space.id, space.config.dims)
