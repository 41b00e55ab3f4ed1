"""Parts: immutable Parquet files of rows, and masks of those that have died since."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from compass.domain.chunk import IntVector
from compass.errors import StorageError
from compass.storage.log.frames import seal, unseal
from compass.storage.objects import MissingObjectError, Objects

__all__ = ["MissingObjectError", "PartRef", "Snapshot", "read_mask", "read_part", "write_mask", "write_part"]


@dataclass(frozen=True, slots=True)
class PartRef:
    """A part and the mask that goes with it; `rows` are those still live."""

    key: str
    mask: str | None
    rows: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All chunks of a collection as of one commit. Its files outlive it by the grace period."""

    uuid: str
    seq: int
    parts: tuple[PartRef, ...]

    @property
    def rows(self) -> int:
        """Live chunks."""
        return sum(part.rows for part in self.parts)


def read_part(objects: Objects, ref: PartRef, columns: Sequence[str] | None = None) -> pa.Table:
    """The part's live rows in the order of rid, with the columns asked for (all of `rows.SCHEMA` by default).

    Raises:
        MissingObjectError: compaction has replaced it and its grace period is over: take a new snapshot.
        StorageError: it is damaged.
    """
    found = objects.read(ref.key)
    if found is None:
        raise MissingObjectError(f"{ref.key} is gone", {"key": ref.key})
    wanted = None if columns is None else list(dict.fromkeys([*columns, "rid"]))
    try:
        table = pq.read_table(pa.BufferReader(found), columns=wanted, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"{ref.key} is damaged: {error}", {"key": ref.key}) from error
    if ref.mask is not None:
        dead = read_mask(objects, ref.mask)
        table = table.filter(pa.array(~np.isin(table["rid"].to_numpy(), dead)))
    return table if columns is None else table.select(list(columns))


def write_part(objects: Objects, key: str, table: pa.Table) -> None:
    """Write rows as a part. Durable when it returns."""
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd", compression_level=1, write_page_checksum=True)
    objects.write(key, out.getbuffer())


def read_mask(objects: Objects, key: str) -> IntVector:
    """The rids that have died in a part, sorted.

    Raises:
        MissingObjectError, StorageError: as `read_part`.
    """
    found = objects.read(key)
    if found is None:
        raise MissingObjectError(f"{key} is gone", {"key": key})
    return np.frombuffer(unseal(found, key), "<i8").astype(np.int64)


def write_mask(objects: Objects, key: str, dead: IntVector) -> None:
    """Write a mask of these rids. Durable when it returns."""
    objects.write(key, seal(np.sort(dead).astype("<i8").tobytes()))
