"""The arguments of an operation, decoded: by HTTP from a request, by a Python handle from plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from compass.api import schemas
from compass.domain.history import By

T = TypeVar("T", bound=schemas.Request)


@dataclass(frozen=True, slots=True)
class Arguments:
    """What an operation is called with; what it does not take is left at its default.

    Attributes:
        who: The caller, as the history names him.
    """

    collection: str = ""
    space: str = ""
    chunk_id: int = 0
    query: schemas.Request | None = None
    body: schemas.Request | None = None
    who: str | None = None

    def body_as(self, kind: type[T]) -> T:
        """The body, which is of this type."""
        assert isinstance(self.body, kind)
        return self.body

    def query_as(self, kind: type[T]) -> T:
        """The parameters of the URL, which are of this type."""
        assert isinstance(self.query, kind)
        return self.query

    def by(self, reason: str | None = None) -> By:
        """Who asks for a change, and why."""
        return By(self.who, reason)
