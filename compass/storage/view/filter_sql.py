"""Filters as SQL over the view's postings, with exactly the meaning of `domain.filters.Filter.matches`."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

import numpy as np

from compass.domain.chunk import IntVector
from compass.domain.filters import Equals, Filter
from compass.storage.snapshot.rows import indexed, posting_fields
from compass.storage.view.tables import integers

_COLUMNS = ("id", "file_id")  # unique or nearly so: an index of the rows serves them, they have no postings
_GLANCE = 10_000


def matching(db: sqlite3.Connection, where: Filter) -> IntVector:
    """The vids of the live rows that pass, sorted."""
    if not where:
        return np.sort(integers(db, "select vid from rows"))
    conditions = list(where.conditions)
    if len(conditions) > 1:
        conditions.sort(key=lambda condition: _glance(db, condition))
    driver, values = _select(conditions[0])
    sql = [f"select vid from ({driver}) as found where true"]
    for condition in conditions[1:]:
        probe, more = _probe(condition)
        sql.append(probe)
        values += more
    return np.sort(integers(db, " and ".join(sql), values))


def _glance(db: sqlite3.Connection, condition: Equals) -> int:
    """How many rows a condition finds, looking at no more than a few thousand."""
    sql, values = _select(condition)
    (count,) = db.execute(f"select count(*) from ({sql} limit {_GLANCE})", values).fetchone()
    return int(count)


def _select(condition: Equals) -> tuple[str, list[Any]]:
    value = indexed(condition.value)
    if condition.field in _COLUMNS:
        return f"select vid from rows where {condition.field}=?", [value]
    fields = posting_fields(condition.field)
    return f"select vid from postings where field in ({_marks(fields)}) and value=?", [*fields, value]


def _probe(condition: Equals) -> tuple[str, list[Any]]:
    value = indexed(condition.value)
    if condition.field in _COLUMNS:
        return f"exists(select 1 from rows where vid=found.vid and {condition.field}=?)", [value]
    fields = posting_fields(condition.field)
    sql = f"exists(select 1 from postings where field in ({_marks(fields)}) and value=? and vid=found.vid)"
    return sql, [*fields, value]


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))
