"""The actor `collection:<uuid>`."""

from __future__ import annotations

from typing import Any

from compass.cluster import wiring
from compass.cluster.forwarding import forwards_to
from compass.settings import Settings
from compass.storage.service import CollectionService


@forwards_to(CollectionService)
class CollectionProcess:
    """The process of a collection's only writer."""

    def __init__(self, settings: dict[str, Any], uuid: str) -> None:
        """Take the collection over."""
        values = Settings(**settings)
        self.service = wiring.open_collection(values, wiring.open_root(values), uuid)
