"""What a search answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compass.domain.search.query import Hit
from compass.domain.space import Space


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Hits, the nearest first; all of them come from this space at this epoch."""

    hits: Sequence[Hit]
    space: Space
    epoch: int
    took_s: float
