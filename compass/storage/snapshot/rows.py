"""A row: one version of a chunk as the log, the parts and the view hold it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from compass.domain.chunk import Chunk, ChunkInput, MetaValue, Scalar, has_text
from compass.domain.filters import BUILTIN_FIELDS

# rid, vid, id, file_id, chunk_index, text, doc_type, page, parent_id, parent_ref, group_id, metadata (JSON)
Row = tuple[int, int, int, str, int, str, str, int | None, int | None, str | None, str | None, str]

SCHEMA = pa.schema(
    [
        pa.field("rid", pa.int64(), nullable=False),
        pa.field("vid", pa.int64(), nullable=False),
        pa.field("id", pa.int64(), nullable=False),
        pa.field("file_id", pa.string(), nullable=False),
        pa.field("chunk_index", pa.int64(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("doc_type", pa.string(), nullable=False),
        pa.field("page", pa.int64()),
        pa.field("parent_id", pa.int64()),
        pa.field("parent_ref", pa.string()),
        pa.field("group_id", pa.string()),
        pa.field("metadata", pa.string(), nullable=False),
        pa.field("seq", pa.int64(), nullable=False),
    ]
)
COLUMNS = ", ".join(SCHEMA.names)

Indexed = int | float | str | bytes
_INT64 = range(-(2**63), 2**63)


def row_of(chunk: ChunkInput, rid: int, vid: int, chunk_id: int) -> Row:
    """The row that a written chunk becomes."""
    return (
        rid,
        vid,
        chunk_id,
        chunk.file_id,
        chunk.chunk_index,
        chunk.text,
        chunk.doc_type,
        chunk.page,
        chunk.parent_id,
        chunk.parent_ref,
        chunk.group_id,
        json.dumps(dict(chunk.metadata), ensure_ascii=False, separators=(",", ":")),
    )


def values_of(row: Row) -> tuple[dict[str, Any], dict[str, MetaValue]]:
    """A row's built-in fields by name, and its metadata."""
    return dict(zip(SCHEMA.names, row, strict=False)), json.loads(row[11])


def chunk_of(stored: tuple[Any, ...]) -> Chunk:
    """The chunk that `select COLUMNS` returned."""
    (_, vid, chunk_id, file_id, index, text, doc_type, page, parent_id, parent_ref, group_id, metadata, seq) = stored
    return Chunk(
        id=chunk_id,
        vid=vid,
        seq=seq,
        file_id=file_id,
        chunk_index=index,
        text=text,
        metadata=json.loads(metadata),
        doc_type=doc_type,
        page=page,
        parent_id=parent_id,
        parent_ref=parent_ref,
        group_id=group_id,
    )


def is_blank(row: Row) -> bool:
    """Whether the row's text is never embedded."""
    return not has_text(row[5])


def postings_of(row: Row) -> set[tuple[str, Indexed, int]]:
    """(field, value, vid) for everything that a filter may find this row by, except its id and file.

    Built-in fields stand under their name, metadata under `metadata.<key>`. A key that itself begins with
    `metadata.` also stands under `literal.<key>`, unless the shorter key hides it: the meaning of
    `domain.filters`.
    """
    vid, metadata = row[1], json.loads(row[11]) if row[11] != "{}" else {}
    found: set[tuple[str, Indexed, int]] = {("chunk_index", row[4], vid), ("doc_type", row[6], vid)}
    for field, builtin in (("page", row[7]), ("parent_id", row[8]), ("group_id", row[10])):
        if builtin is not None:
            found.add((field, builtin, vid))
    for key, stored in metadata.items():
        names = [f"metadata.{key}"]
        if key.startswith("metadata.") and key.removeprefix("metadata.") not in metadata:
            names.append(f"literal.{key}")
        for value in _values(stored):
            found.update((name, value, vid) for name in names)
    return found


def posting_fields(field: str) -> list[str]:
    """The fields under which a condition finds its postings; of one row at most one of them has any."""
    if field in BUILTIN_FIELDS:
        return [field]
    return [field, f"literal.{field}"] if field.startswith("metadata.") else [f"metadata.{field}"]


def indexed(value: Scalar) -> Indexed | None:
    """A value that SQLite compares as `domain.filters.equals` does; None equals nothing (NaN).

    3 and 3.0 are one value to both. A bool is a blob, as it equals no number. SQLite has no integer beyond
    64 bits: one that is also a float is that float, any other is a blob that only itself equals.
    """
    if isinstance(value, bool):
        return b"\1" if value else b"\0"
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, int) and value not in _INT64:
        as_float = _float(value)
        return as_float if as_float == value else str(value).encode()
    return value


def _values(stored: MetaValue) -> Iterable[Indexed]:
    for value in stored if isinstance(stored, list) else [stored]:
        if value is not None and (found := indexed(value)) is not None:
            yield found


def _float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.nan
