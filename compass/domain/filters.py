"""Filters: which chunks a search or a delete means. In this version: equality, all conditions at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compass.domain.chunk import Chunk, MetaValue, Scalar
from compass.domain.flaws import Flaw
from compass.errors import InvalidRequestError

BUILTIN_FIELDS = ("file_id", "doc_type", "group_id", "parent_id", "page", "chunk_index", "id")


@dataclass(frozen=True, slots=True)
class Equals:
    """One condition: a field equals a value, or a list holds it."""

    field: str
    value: Scalar


@dataclass(frozen=True, slots=True)
class Filter:
    """All conditions hold; none is no filter."""

    conditions: tuple[Equals, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.conditions)

    def matches(self, chunk: Chunk) -> bool:
        """Whether the chunk passes; the meaning that every faster implementation must have."""
        return all(equals(_value(chunk, c.field), c.value) for c in self.conditions)


def parse_filter(filters: Mapping[str, Any]) -> Filter:
    """Read the `filters` object of a request.

    Raises:
        InvalidRequestError: null, a list, an operator that this version does not have, an unknown `$` key.
    """
    conditions, flaws = [], []
    for name, value in filters.items():
        if name.startswith("$"):
            flaws.append(Flaw(f"filters.{name}", "is not supported; this version filters by equality"))
        elif isinstance(value, bool | int | float | str):
            conditions.append(Equals(name, value))
        else:
            detail = f"{value!r} is not a bool, number or string to be equal to"
            flaws.append(Flaw(f"filters.{name}", detail))
    if flaws:
        sentence = "; ".join(f"{flaw.field}: {flaw.detail}" for flaw in flaws)
        raise InvalidRequestError(sentence, {"errors": [flaw.to_json() for flaw in flaws]})
    return Filter(tuple(conditions))


def equals(stored: MetaValue | None, wanted: Scalar) -> bool:
    """3 equals 3.0, true is not 1, "3" is not 3; any element of a list may match."""
    if isinstance(stored, list):
        return any(equals(element, wanted) for element in stored)
    if stored is None or isinstance(stored, bool) != isinstance(wanted, bool):
        return False
    if isinstance(stored, str) != isinstance(wanted, str):
        return False
    return stored == wanted


def _value(chunk: Chunk, field: str) -> MetaValue | None:
    """Built-in fields win over metadata of the same name; `metadata.page` reaches the other."""
    if field in BUILTIN_FIELDS:
        value: MetaValue | None = getattr(chunk, field)
        return value
    return chunk.metadata.get(field.removeprefix("metadata."), chunk.metadata.get(field))
