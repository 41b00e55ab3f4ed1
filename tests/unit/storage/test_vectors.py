"""The vectors of a space."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from records import run_record

from compass.errors import InvalidRequestError, StorageError
from compass.storage.snapshot.parts import MissingObjectError
from compass.storage.spaces.vectors import SpaceVectors


@pytest.fixture
def vectors(disk: Any) -> SpaceVectors:
    return SpaceVectors(disk.objects, disk.uuid, "one-id", 4)


def writing(data: bytes) -> Callable[[Path], None]:
    """What writes this into the file that it is given."""

    def write(path: Path) -> None:
        path.write_bytes(data)

    return write


def rows(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)


def test_a_file_is_sorted_and_names_its_run(vectors: SpaceVectors) -> None:
    """Rows come back by vid, with the run that wrote them; of a vid given twice the first row."""
    x = rows(4)
    key = vectors.append([3, 1, 2, 3], x, run="run-7")
    vids, stored = vectors.read(key)
    assert vids.tolist() == [1, 2, 3]
    assert np.array_equal(stored, x[[1, 2, 0]])
    assert vectors.run_of(key) == "run-7"


def test_get_answers_what_is_there(vectors: SpaceVectors) -> None:
    """The vectors of those that have one, from whatever file, sorted."""
    x = rows(4)
    vectors.append([5, 1], x[:2])
    vectors.append([3, 9], x[2:])
    found, stored = vectors.get([9, 2, 1, 9])
    assert found.tolist() == [1, 9]
    assert np.array_equal(stored, x[[1, 3]])
    assert vectors.have().tolist() == [1, 3, 5, 9]
    assert vectors.get([])[1].shape == (0, 4)


def test_an_empty_space(vectors: SpaceVectors) -> None:
    """A space without files has no vectors and no bytes."""
    assert vectors.files() == []
    assert len(vectors.have()) == len(vectors.get([1])[0]) == vectors.bytes_on_disk() == 0
    vectors.drop()
    vectors.compact(lambda: np.empty(0, np.int64))


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((1, 4)),
        np.full((1, 4), np.inf),
        np.full((1, 4), np.nan),
        np.ones((1, 3)),
        np.ones((2, 4)),
        np.ones(4),
    ],
)
def test_nonsense_is_never_stored(vectors: SpaceVectors, bad: Any) -> None:
    """Zeros, NaN, infinity, wrong dims and wrong counts are refused, and nothing is written."""
    with pytest.raises(InvalidRequestError):
        vectors.append([1], bad)
    assert vectors.files() == []


def test_a_file_that_is_gone_or_damaged(disk: Any, vectors: SpaceVectors) -> None:
    """A missing file says that it is missing, a damaged one or one of other dims that it is damaged."""
    key = vectors.append([1], rows(1))
    with pytest.raises(StorageError):
        SpaceVectors(disk.objects, disk.uuid, "one-id", 3).read(key)
    path = disk.objects.local_path(key)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(StorageError):
        SpaceVectors(disk.objects, disk.uuid, "one-id", 4).read(key)
    path.unlink()
    with pytest.raises(MissingObjectError):
        vectors.read(key)


def test_a_merge_keeps_the_live_and_leaves_out_the_dead(vectors: SpaceVectors) -> None:
    """After a merge the live vectors are there, bit by bit, in one file, and the dead ones are gone."""
    x = rows(20)
    for i in range(20):
        vectors.append([i], x[i : i + 1], run="r")
    vectors.compact(lambda: np.arange(0, 20, 2))
    (key,) = vectors.files()
    vids, stored = vectors.read(key)
    assert vids.tolist() == list(range(0, 20, 2))
    assert np.array_equal(stored, x[::2])
    assert vectors.run_of(key) == "r"


def test_a_merge_leaves_large_files_alone(vectors: SpaceVectors) -> None:
    """A large file is not written again for the sake of a few small ones, unless most of it is dead."""
    large = vectors.append(np.arange(5000), rows(5000))
    for i in range(3):
        vectors.append([6000 + i], rows(1, i))
    vectors.compact(lambda: np.concatenate([np.arange(5000), np.arange(6000, 6003)]))
    assert large in vectors.files()
    assert len(vectors.files()) == 2
    vectors.compact(lambda: np.concatenate([np.arange(2000), np.arange(6000, 6003)]))
    assert large not in vectors.files()
    assert len(vectors.have()) == 2003


def test_a_merge_of_dead_files_leaves_none(vectors: SpaceVectors) -> None:
    """A space whose chunks all died has no file left."""
    for i in range(3):
        vectors.append([i], rows(1))
    vectors.compact(lambda: np.empty(0, np.int64))
    assert vectors.files() == []


def test_quarantine(vectors: SpaceVectors) -> None:
    """Notes add up, and a merge keeps those of live vids in one object."""
    vectors.quarantine({1: "too long", 2: "empty"})
    vectors.quarantine({3: "odd"})
    vectors.quarantine({})
    assert vectors.quarantined() == {1: "too long", 2: "empty", 3: "odd"}
    vectors.compact(lambda: np.array([1, 3]))
    assert vectors.quarantined() == {1: "too long", 3: "odd"}


def test_the_run_record(vectors: SpaceVectors) -> None:
    """The record of a run is replaced as a whole."""
    assert vectors.read_run() is None
    vectors.write_run(run_record(state="running"))
    vectors.write_run(run_record(state="done", owns_below=1))
    assert vectors.read_run() == run_record(state="done", owns_below=1)


def test_an_index_snapshot_comes_back(vectors: SpaceVectors) -> None:
    """The newest snapshot is what is loaded, and it is the only one kept."""
    assert vectors.load_index(Path.read_bytes) is None
    vectors.save_index(writing(b"first"), {"seq": 1})
    vectors.save_index(writing(b"second"), {"seq": 2})
    assert vectors.load_index(Path.read_bytes) == (b"second", {"seq": 2})
    assert vectors.bytes_on_disk() < 200


@pytest.mark.parametrize("damage", ["flipped bit", "cut", "gone", "half a note"])
def test_a_damaged_index_snapshot_is_none(disk: Any, vectors: SpaceVectors, damage: str) -> None:
    """A snapshot that does not match its checksum is not loaded: the index is built anew."""
    vectors.save_index(writing(b"some graph"), {})
    folder = f"{disk.uuid}/spaces/one-id/index"
    data, note = (disk.objects.local_path(key) for key in disk.objects.list(folder))
    match damage:
        case "flipped bit":
            data.write_bytes(b"some grapi")
        case "cut":
            data.write_bytes(b"some gra")
        case "gone":
            data.unlink()
        case _:
            note.write_bytes(note.read_bytes()[:10])
    assert vectors.load_index(Path.read_bytes) is None
