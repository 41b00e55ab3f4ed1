"""What a writer gets back."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ingested:
    """An acknowledged write: durable. `ids` in the order of the chunks given."""

    seq: int
    ids: list[int]


@dataclass(frozen=True, slots=True)
class Deleted:
    """An acknowledged delete: durable, and visible in every space."""

    seq: int
    deleted: int
