"""The actor `index:<space-id>`."""

from __future__ import annotations

from typing import Any

from compass.cluster import wiring
from compass.cluster.directory import RayCluster
from compass.cluster.forwarding import forwards_to
from compass.index.service import SpaceIndex
from compass.settings import Settings


@forwards_to(SpaceIndex)
class IndexProcess:
    """The process that holds the vectors of a space."""

    def __init__(self, settings: dict[str, Any], uuid: str, space_id: str) -> None:
        """Open the space and begin to follow its collection."""
        values = Settings(**settings)
        router = RayCluster({}, settings).router
        self.service = wiring.open_index(values, wiring.open_root(values), uuid, space_id, router)
