"""What a checkpoint writes, and what a collection may delete."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from faults import not_durable

from compass.domain.chunk import ChunkInput
from compass.domain.filters import Equals, Filter
from compass.errors import StorageError, UnavailableError
from compass.storage.snapshot.bases import Part
from compass.storage.snapshot.checkpoints import PART_ROWS, plan_parts
from compass.storage.snapshot.parts import PartRef, read_part

Build = Callable[..., ChunkInput]


def parts(*rows: int) -> list[Part]:
    """Full parts of these sizes, one after the other."""
    ends = np.cumsum(rows).tolist()
    return [Part(f"p{i}", end - n + 1, end, n, n) for i, (n, end) in enumerate(zip(rows, ends, strict=True))]


def dead(*rids: int) -> Any:
    return np.array(sorted(rids), np.int64)


def test_small_parts_are_written_with_what_follows() -> None:
    """The newest parts that are no larger than what follows them become one with it."""
    plan = plan_parts(parts(1000, 100, 10), dead(), 1111, 1120, 10)
    assert [p.key for p in plan.kept] == ["p0", "p1"]
    assert plan.ranges == [(1101, 1120)]


def test_large_parts_stay() -> None:
    """A part of full size is not written again, whatever follows it."""
    plan = plan_parts(parts(PART_ROWS), dead(), PART_ROWS + 1, 4 * PART_ROWS, 3 * PART_ROWS)
    assert [p.key for p in plan.kept] == ["p0"]


def test_parts_mostly_dead_are_written_anew() -> None:
    """A part with less than half of its rows alive is written anew, one with none is left out."""
    plan = plan_parts(parts(10, 10, 10), dead(*range(1, 7), *range(11, 21), 21), 31, 40, 1)
    assert plan.ranges == [(1, 10), (31, 40)]
    assert [(p.key, p.live) for p in plan.kept] == [("p2", 9)]


def test_nothing_fresh_writes_nothing() -> None:
    """Where only rows died, no part is written but a mask."""
    plan = plan_parts(parts(10), dead(3), 11, 11, 0)
    assert plan.ranges == []
    assert [(p.key, p.live) for p in plan.kept] == [("p0", 9)]


def test_a_snapshot_holds_the_live_rows(disk: Any, chunk: Build) -> None:
    """The parts of a snapshot together are the live chunks of its commit, through masks and merges."""
    store = disk.store()
    for i in range(12):
        store.ingest([chunk(k) for k in range(i * 10, i * 10 + 10)])
        store.ingest([chunk(i * 3, f"new {i}")])
        store.delete([], Filter((Equals("chunk_index", i * 7),)))
        snapshot = store.checkpoint()
        rows = [row for ref in snapshot.parts for row in read_part(disk.objects, ref).to_pylist()]
        assert snapshot.seq == store.seq
        assert snapshot.rows == sum(ref.rows for ref in snapshot.parts) == len(rows)
        assert sorted(row["vid"] for row in rows) == store.view.live_vids().tolist()
    assert any(ref.mask for ref in snapshot.parts)
    assert disk.cold() == store.view.page(0, 1000)


def test_columns_of_a_part(disk: Any, chunk: Build) -> None:
    """Only the columns asked for come, masked all the same."""
    store = disk.store()
    store.ingest([chunk(i) for i in range(10)])
    store.checkpoint()
    store.delete([], Filter((Equals("chunk_index", 4),)))
    (ref,) = store.checkpoint().parts
    table = read_part(disk.objects, ref, ["vid", "text"])
    assert table.column_names == ["vid", "text"]
    assert table["text"].to_pylist() == [f"text {i}" for i in range(10) if i != 4]


def test_a_damaged_part_is_noticed(disk: Any, chunk: Build) -> None:
    """A flipped bit in the data of a part is an error, not another text."""
    store = disk.store()
    store.ingest([chunk(i) for i in range(10)])
    (ref,) = store.checkpoint().parts
    path = disk.objects.local_path(ref.key)
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(StorageError):
        read_part(disk.objects, PartRef(ref.key, None, 10))


def test_an_unchanged_collection_has_one_base(disk: Any, chunk: Build) -> None:
    """A second checkpoint of the same content writes nothing."""
    store = disk.store()
    store.ingest([chunk(0)])
    first, files = store.checkpoint(), disk.files()
    assert store.checkpoint() == first
    assert disk.files() == files


def test_a_checkpoint_costs_what_changed(disk: Any, chunk: Build) -> None:
    """After a small change to a large collection, a checkpoint writes a small part and keeps the large one."""
    store = disk.store()
    store.ingest([chunk(i) for i in range(1000)])
    (large,) = store.checkpoint().parts
    store.ingest([chunk(5, "new")])
    after = store.checkpoint().parts
    assert after[0].key == large.key
    assert [ref.rows for ref in after] == [999, 1]


def test_a_takeover_continues_the_checkpoints(disk: Any, chunk: Build) -> None:
    """The next writer's checkpoints go on from the last one's base."""
    store = disk.store("node-a")
    store.ingest([chunk(i) for i in range(100)])
    (large,) = store.checkpoint().parts
    store.ingest([chunk(0, "new")])
    newer = disk.store("node-b")
    newer.delete([], Filter((Equals("chunk_index", 1),)))
    after = newer.checkpoint()
    assert after.parts[0].key == large.key
    assert after.rows == 99
    assert disk.cold() == newer.view.page(0, 1000)


def test_nothing_is_deleted_for_a_base_that_may_not_last(disk: Any, chunk: Build) -> None:
    """A base that is seen and not durable takes nobody's place: not for its writer, and not for the next one."""
    store = disk.store("node-a")
    store.ingest([chunk(0)])
    store.compact()
    store.ingest([chunk(1)])
    before = disk.files()
    disk.objects.after = not_durable("create", "/base/")
    with pytest.raises(UnavailableError):
        store.compact()
    newer = disk.store("node-b")
    with pytest.raises(UnavailableError):
        newer.compact()
    assert before.keys() <= disk.files().keys()
    disk.objects.after = lambda *_: None
    newer.compact()
    assert not before.keys() <= disk.files().keys()
    assert disk.cold() == newer.view.page(0, 9)


def test_a_base_of_an_earlier_try_is_used(disk: Any, chunk: Build) -> None:
    """A checkpoint that failed after its base was seen is finished by the next one at the same commit."""
    store = disk.store()
    store.ingest([chunk(0)])
    disk.objects.after = not_durable("create", "/base/")
    with pytest.raises(UnavailableError):
        store.checkpoint()
    disk.objects.after = lambda *_: None
    snapshot = store.checkpoint()
    assert sum(read_part(disk.objects, ref).num_rows for ref in snapshot.parts) == 1
    assert len(disk.files("base")) == 1
