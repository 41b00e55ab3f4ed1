"""A vector as a caller sends it: its numbers, or why they cannot be read."""

from __future__ import annotations

from dataclasses import dataclass

from compass.domain.chunk import FloatVector
from compass.domain.space import Space, prepare_vectors, why_unfit


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A vector whose numbers cannot be read. It is carried along, so that one error names it beside other flaws."""

    reason: str


SentVector = FloatVector | Unreadable


def why_unfit_row(row: FloatVector, space: Space) -> str | None:
    """Why a vector must not be stored or searched in a space, or None. shape (n,)."""
    reason = why_unfit(row[None, :], space.config.dims)
    return None if reason is None else reason.removeprefix("row 0 ")


def prepare_row(row: FloatVector, space: Space) -> FloatVector:
    """A vector that fits as the space stores it: float32, of length 1 for cosine. shape (dims,) in and out."""
    prepared: FloatVector = prepare_vectors(row[None, :], space.config.metric)[0]
    return prepared
