"""What a caller is told of a collection and its spaces: what the table records, and what their owners know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compass.domain.collection import CollectionStats
from compass.domain.rebuild.progress import ALMOST
from compass.domain.rebuild.status import RebuildStatus
from compass.domain.routing.table import CollectionRoute
from compass.domain.space import Space, SpaceStats


@dataclass(frozen=True, slots=True)
class SpaceInfo:
    """A space as it is now."""

    space: Space
    stats: SpaceStats


@dataclass(frozen=True, slots=True)
class CollectionInfo:
    """A collection as it is now, with its spaces in the order of their creation."""

    route: CollectionRoute
    stats: CollectionStats
    spaces: Sequence[SpaceInfo]


@dataclass(frozen=True, slots=True)
class SpaceRebuild:
    """How far a space is. Its record and its index are asked one after the other, so the record decides."""

    space: Space
    status: RebuildStatus

    @property
    def progress(self) -> float:
        """0..1; 1.0 exactly when the space is active."""
        return 1.0 if self.space.status == "active" else min(self.status.progress, ALMOST)

    @property
    def percent(self) -> float:
        """The progress, 0..100."""
        return round(100 * self.progress, 2)


@dataclass(frozen=True, slots=True)
class SpaceSample:
    """A space at one instant, for metrics. `rebuild`: None where its index is silent."""

    collection: str
    space: Space
    is_default: bool
    rebuild: SpaceRebuild | None
