"""A chunk: a piece of text with its place in a file and its metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Scalar = bool | int | float | str
MetaValue = Scalar | list[str]
FloatVector = npt.NDArray[np.float32]
FloatMatrix = npt.NDArray[np.float32]
IntVector = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ChunkInput:
    """A chunk as it is written. `(file_id, chunk_index)` is its natural key: writing it again is an update.

    `vectors` are the caller's own, by space *id*: float32, shape (dims,), already checked and normalised.
    """

    file_id: str
    chunk_index: int
    text: str
    metadata: Mapping[str, MetaValue] = field(default_factory=dict)
    doc_type: str = "chunk"
    page: int | None = None
    parent_id: int | None = None
    parent_ref: str | None = None
    group_id: str | None = None
    vectors: Mapping[str, FloatVector] = field(default_factory=dict)


class Chunk(NamedTuple):
    """A chunk as it is stored. A tuple, since every hit travels between processes: it pickles three times faster.

    Attributes:
        id: Stable across updates, given by Compass.
        vid: The version of what gets embedded; a metadata-only update keeps it.
        seq: The commit that wrote this version of the row.
    """

    id: int
    vid: int
    seq: int
    file_id: str
    chunk_index: int
    text: str
    metadata: dict[str, MetaValue]
    doc_type: str
    page: int | None
    parent_id: int | None
    parent_ref: str | None
    group_id: str | None


def has_text(text: str) -> bool:
    """Whether a text is embedded at all: an empty one has no vector and counts as done."""
    return bool(text.strip())
