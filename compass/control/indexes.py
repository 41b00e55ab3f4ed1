"""The indexes of a collection's spaces: told of what is committed, and ended when their spaces are gone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from compass.control.ports import Cluster
from compass.control.publisher import Publisher
from compass.domain.space import Space

log = logging.getLogger(__name__)


class Indexes:
    """Configures and retires indexes; it needs no lock of a collection."""

    def __init__(self, cluster: Cluster, publisher: Publisher, configure_s: float) -> None:
        """`configure_s` is how long an index may take to hear of its space's record."""
        self._cluster, self._publisher, self._configure_s = cluster, publisher, configure_s

    async def configure(self, uuid: str, spaces: Iterable[Space]) -> None:
        """Let each index know its space's record. One that is silent reads it in the log, when it can."""
        await asyncio.gather(*(self._configure(uuid, space) for space in spaces))

    async def _configure(self, uuid: str, space: Space) -> None:
        try:
            async with asyncio.timeout(self._configure_s):
                await self._cluster.index(uuid, space).configure(space)
        except Exception as error:  # noqa: BLE001 - what is committed is not undone by a silent index
            log.warning("the index of vector space %s does not answer: %s", space.name, error or "timeout")

    async def retire(self, *spaces: Space) -> None:
        """End the indexes of spaces that are gone from the table, when the queries in flight on them are through."""
        await self._publisher.drained(frozenset(space.id for space in spaces))
        for space in spaces:
            await self._cluster.stop_index(space.id)
