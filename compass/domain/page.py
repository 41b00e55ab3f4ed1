"""A page of a listing that goes by id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar


class Identified(Protocol):
    """Something with an id that a listing goes by."""

    @property
    def id(self) -> int:
        """Unique in the listing, ascending."""


T = TypeVar("T", bound=Identified)


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Part of a listing. `next`: the id after which the next page begins; None on the last."""

    items: Sequence[T]
    next: int | None

    @staticmethod
    def of(items: Sequence[T], limit: int) -> Page[T]:
        """The page of at most `limit` items; a full one may have another after it."""
        return Page(items, items[-1].id if len(items) == limit else None)
