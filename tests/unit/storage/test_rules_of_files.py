"""The rules of a collection on disk, 5 to 8: readers, and which files there are. Each test fails without its rule."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from faults import fail, once

from compass.domain.chunk import ChunkInput, FloatVector
from compass.domain.collection import AddSpace
from compass.errors import TakenOverError, UnavailableError
from compass.storage.snapshot.parts import MissingObjectError, read_part
from compass.storage.spaces.vectors import SpaceVectors

Build = Callable[..., ChunkInput]
Vector = Callable[..., FloatVector]


# -- 5: readers beside compaction


def test_5_a_listed_file_that_is_gone_is_listed_again(disk: Any, vector: Vector) -> None:
    """A reader that has listed files before a merge and reads them after it still sees every vector."""
    vectors = disk.root.space_vectors(disk.uuid, "one-id", 4)
    for vid in range(5):
        vectors.append([vid], vector(vid)[None])
    reader_objects = disk.other_objects()
    merge = lambda: vectors.compact(lambda: np.arange(5))  # noqa: E731
    reader_objects.before = once("read", "/vec/", merge)
    reader = SpaceVectors(reader_objects, disk.uuid, "one-id", 4)
    assert reader.have().tolist() == [0, 1, 2, 3, 4]
    assert len(vectors.files()) == 1


def test_5_a_listing_torn_by_a_merge_is_taken_again(disk: Any, vector: Vector) -> None:
    """A listing made while a merge replaced files may show neither; it is not believed."""
    vectors = disk.root.space_vectors(disk.uuid, "one-id", 4)
    vectors.append([1], vector()[None])
    torn = disk.other_objects()
    real, listings = torn.objects.list, []

    def tear(prefix: str) -> list[str]:
        listings.append(prefix)
        return [] if len(listings) == 1 else list(real(prefix))

    torn.list = tear
    assert SpaceVectors(torn, disk.uuid, "one-id", 4).have().tolist() == [1]


def test_5_the_live_set_is_taken_after_the_listing(disk: Any, vector: Vector) -> None:
    """A vector of a chunk born after the live set was asked for is not mistaken for a dead one."""
    vectors = disk.root.space_vectors(disk.uuid, "one-id", 4)
    vectors.append([1], vector()[None])
    vectors.append([2], vector()[None])

    def live() -> Any:
        vectors.append([3], vector()[None])
        return np.array([1, 2])

    vectors.compact(live)
    assert vectors.have().tolist() == [1, 2, 3]


def test_5_the_live_set_is_as_new_as_any_file(disk: Any, chunk: Build, vector: Vector) -> None:
    """A writer that has been taken over must not judge by its old live set which vectors are dead."""
    older = disk.store("node-a")
    older.ingest([chunk(0, vectors={"one-id": vector(0)}), chunk(1, vectors={"one-id": vector(1)})])
    newer = disk.store("node-b")
    newer.ingest([chunk(2, vectors={"one-id": vector(2)})])
    newer.ingest([chunk(3, vectors={"one-id": vector(3)})])
    with pytest.raises(TakenOverError):
        older.compact()
    assert len(disk.root.space_vectors(disk.uuid, "one-id", 4).have()) == 4


def test_5_parts_outlive_their_base_by_the_grace_period(disk: Any, chunk: Build) -> None:
    """A reader of an older snapshot can finish; without a grace period it learns that the snapshot is gone."""
    store = disk.store(grace_s=600.0)
    store.ingest([chunk(i) for i in range(10)])
    snapshot = store.checkpoint()
    store.ingest([chunk(i, "new") for i in range(10)])
    store.compact()
    assert sum(read_part(disk.objects, part).num_rows for part in snapshot.parts) == 10
    store.grace_s = 0.0
    store.compact()
    with pytest.raises(MissingObjectError):
        read_part(disk.objects, snapshot.parts[0])
    assert sum(read_part(disk.objects, part).num_rows for part in store.checkpoint().parts) == 10


def test_5_only_who_still_wins_creates_may_collect(disk: Any, chunk: Build) -> None:
    """A writer that was taken over deletes nothing, as its successor may have begun from what it would delete."""
    older = disk.store("node-a")
    older.ingest([chunk(i) for i in range(10)])
    older.checkpoint()
    older.ingest([chunk(i, "new") for i in range(10)])
    disk.store("node-b")
    before = disk.files()
    with pytest.raises(TakenOverError):
        older.compact()
    assert set(before) <= set(disk.files())


# -- 6: the view is disposable


@pytest.mark.parametrize("written_since", [0, 1, 5])
def test_6_an_old_backup_under_a_warm_view(disk: Any, chunk: Build, written_since: int) -> None:
    """A view that has seen commits which a restored log does not have is thrown away, however the log went on."""
    root, backup = disk.folder / "root", disk.folder / "backup"
    store = disk.store("node-a")
    store.ingest([chunk(0)])
    store.close()
    shutil.copytree(root, backup)
    store = disk.store("node-a")
    store.ingest([chunk(1), chunk(2)])
    store.close()
    shutil.rmtree(root)
    shutil.move(backup, root)
    if written_since:
        other = disk.store("node-b")
        for i in range(written_since):
            other.ingest([chunk(10 + i)])
        other.close()
    warm = disk.store("node-a")
    assert warm.view.page(0, 99) == disk.cold()
    assert len(disk.cold()) == 1 + written_since


def test_6_a_reader_notices_another_history(disk: Any, chunk: Build) -> None:
    """A view that was not told of a restored backup notices at the first commit that does not follow its last."""
    store = disk.store("node-a")
    store.ingest([chunk(0)])
    reader = disk.view("node-r")
    reader.refresh()
    backup = disk.files("log")
    store.ingest([chunk(1)])
    assert reader.refresh(store.seq) == store.seq
    store.close()
    for key in set(disk.files("log")) - set(backup):
        disk.objects.objects.delete([key])
    other = disk.store("node-b")
    other.ingest([chunk(2)])
    other.ingest([chunk(3)])
    assert reader.refresh(other.seq) == other.seq
    assert reader.page(0, 9) == disk.cold()
    assert reader.live_vids().tolist() == sorted(c.vid for c in disk.cold())


@pytest.mark.parametrize("damage", ["gone", "garbage", "empty"])
def test_6_a_lost_or_damaged_view_is_built_anew(disk: Any, chunk: Build, damage: str) -> None:
    """A view file that is gone or no database costs nothing but time."""
    store = disk.store()
    store.ingest([chunk(0)])
    store.close()
    path = store.view.path
    if damage == "gone":
        shutil.rmtree(path.parent)
    else:
        path.write_bytes(b"garbage" * 1000 if damage == "garbage" else b"")
    store = disk.store()
    assert store.view.page(0, 9) == disk.cold()
    assert store.view.count() == 1


# -- 7: a vector that the caller sent is data


def test_7_callers_vectors_survive_a_crash_after_the_commit(disk: Any, chunk: Build, vector: Vector) -> None:
    """Vectors whose commit is in the log are in their space, whatever came after the commit."""
    store = disk.store("node-a")
    disk.objects.before = once("create", "/vec/", fail)
    with pytest.raises(UnavailableError):
        store.ingest([chunk(vectors={"one-id": vector(7)})])
    store.close()
    assert disk.files("spaces") == {}
    store = disk.store("node-b")
    vids, vectors = disk.root.space_vectors(disk.uuid, "one-id", 4).get(store.view.live_vids())
    assert vids.tolist() == store.view.live_vids().tolist()
    assert np.array_equal(vectors, [vector(7)])


def test_7_no_view_shows_a_chunk_before_its_vectors(disk: Any, chunk: Build, vector: Vector) -> None:
    """Whoever applies the commit, writer or reader, has the vector file durable before."""
    store = disk.store("node-a")
    reader = disk.view("node-r")
    reader.refresh()
    seq, counts = store.seq, []

    def look() -> None:
        counts.append(store.view.count())
        reader.refresh()
        counts.append(len(disk.root.space_vectors(disk.uuid, "one-id", 4).have()) - reader.count())

    disk.objects.before = once("create", "/vec/", look)
    store.ingest([chunk(vectors={"one-id": vector()})])
    assert counts == [0, 0]
    assert (store.seq, reader.count(), store.view.count()) == (seq + 1, 1, 1)


# -- 8: small files are merged


def test_8_small_files_are_merged(disk: Any, chunk: Build, vector: Vector) -> None:
    """A hundred small ingests leave a handful of objects, and nothing is lost."""
    store = disk.store()
    for i in range(100):
        store.ingest([chunk(i, vectors={"one-id": vector(i)})])
    assert store.due()
    for _ in range(3):
        store.compact()
    assert not store.due()
    assert len(disk.files("spaces/one-id/vec")) == 1
    assert len(disk.files("parts")) <= 2
    assert len(disk.files("base")) == 1
    assert len(disk.files("log")) <= 10
    cold = disk.cold()
    assert len(cold) == 100
    _, vectors = disk.root.space_vectors(disk.uuid, "one-id", 4).get([c.vid for c in cold])
    assert np.array_equal(vectors, np.stack([vector(c.chunk_index) for c in sorted(cold, key=lambda c: c.vid)]))


def test_8_an_idle_collection_comes_to_rest(disk: Any, chunk: Build) -> None:
    """Compacting what is compact writes nothing."""
    store = disk.store()
    store.ingest([chunk(0)])
    for _ in range(3):
        store.compact()
    before = disk.files()
    store.compact()
    assert disk.files() == before
    assert not store.due()


def test_8_a_new_space_is_seen_by_an_opener(disk: Any) -> None:
    """What an opener knows of spaces comes from the log's end, not from a listing or a base."""
    store = disk.store("node-a")
    store.checkpoint()
    store.change(AddSpace(disk.space("three-id", "three", "building")))
    assert "three-id" in disk.store("node-b").state.spaces
