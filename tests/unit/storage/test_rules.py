"""The rules of a collection on disk, 1 to 4: who writes, and what a commit is. Each test fails without its rule."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from faults import fail, once

from compass.domain.chunk import ChunkInput, FloatVector
from compass.domain.collection import DropSpace, SwapDefault
from compass.errors import CompassError, DefaultSpaceError, EpochMismatchError, TakenOverError, UnavailableError
from compass.storage.log.edit import Edit
from compass.storage.log.writer import CollectionStore, _Job

Build = Callable[..., ChunkInput]
Vector = Callable[..., FloatVector]


# -- 1: one writer, by takeover


def test_1_an_older_writer_stops_for_good(disk: Any, chunk: Build) -> None:
    """Opening a collection makes its older writer fail, for ever, naming who took over; nothing of it is merged."""
    older = disk.store("node-a")
    older.ingest([chunk(0)])
    newer = disk.store("node-b")
    for _ in range(2):
        with pytest.raises(TakenOverError) as caught:
            older.ingest([chunk(1)])
        assert caught.value.fields["pid"]
        assert caught.value.fields["host"]
    newer.ingest([chunk(2)])
    with pytest.raises(TakenOverError):
        older.delete([1], None)
    assert [c.chunk_index for c in disk.cold()] == [0, 2]


def test_1_pruning_does_not_free_an_older_writers_place(disk: Any, chunk: Build) -> None:
    """A writer that slept until the log was pruned still collides: the takeover record outlives pruning."""
    older = disk.store("node-a")
    older.ingest([chunk(0)])
    newer = disk.store("node-b")
    for i in range(1, 5):
        newer.ingest([chunk(i)])
        newer.compact()
    assert len(disk.files("log")) <= 4
    with pytest.raises(TakenOverError):
        older.ingest([chunk(9)])
    newer.ingest([chunk(5)])
    assert [c.chunk_index for c in disk.cold()] == [0, 1, 2, 3, 4, 5]


def test_1_an_opener_that_slept_through_pruning_begins_again(disk: Any, chunk: Build) -> None:
    """An opener stopped before its takeover, whose place is pruned meanwhile, does not commit into the past."""
    disk.store("node-a").ingest([chunk(0)])
    slow = disk.other_objects()

    def meanwhile() -> None:
        newer = disk.store("node-b")
        for i in range(1, 5):
            newer.ingest([chunk(i)])
            newer.compact()
        for key in disk.files("log"):  # as if the records of this place had been ordinary ones
            disk.objects.objects.delete([key])

    slow.before = once("create", "/log/", meanwhile)
    sleeper = disk.store("node-c", objects=slow)
    assert sleeper.ingest([chunk(5)]).seq > max(disk.root.view(disk.uuid).seq(), 5)
    assert [c.chunk_index for c in disk.cold()] == [0, 1, 2, 3, 4, 5]


def test_1_an_opener_does_not_trust_a_listing(disk: Any, chunk: Build) -> None:
    """An opener whose listings of the log are empty or old still finds its end and collides with nobody."""
    disk.store("node-a").ingest([chunk(0)])
    stale = disk.other_objects()
    real = stale.objects.list
    stale.list = lambda prefix: [] if "/log" in prefix else real(prefix)
    opener = disk.store("node-b", objects=stale)
    opener.ingest([chunk(1)])
    assert [c.chunk_index for c in disk.cold()] == [0, 1]


def test_1_one_writer_of_a_node(disk: Any) -> None:
    """While a process of this node writes a collection, another one is told which, and changes nothing."""
    writer = disk.store("node-a")
    seq = writer.seq
    with pytest.raises(TakenOverError, match=str(os.getpid())):
        disk.store("node-a")
    writer.ingest([])
    assert len(disk.files("log")) == seq


# -- 2: mine or not?


def test_2_a_lost_answer_is_an_acknowledgement(disk: Any, chunk: Build) -> None:
    """A commit that took effect and whose answer was lost is acknowledged, once, and the writer goes on."""
    store = disk.store()
    disk.objects.after = once("create", "/log/", fail)
    (first,) = store.ingest([chunk(0)]).ids
    assert store.ingest([chunk(0)]).ids == [first]
    assert len(disk.cold()) == 1


def test_2_a_commit_that_turns_up_late_is_applied(disk: Any, chunk: Build) -> None:
    """A commit that was given up and lands after all is part of the history that the next commit follows."""
    store = disk.store()
    delayed: list[tuple[str, Any]] = []
    real = disk.objects.create

    def delay(key: str, data: Any) -> bool:
        if "/log/" in key and not delayed:
            delayed.append((key, bytes(data)))
            raise TimeoutError("no answer")
        if len(delayed) == 1:
            disk.objects.objects.create(*delayed[0])
            delayed.append(delayed[0])
        return bool(real(key, data))

    disk.objects.create = delay
    with pytest.raises(UnavailableError):
        store.ingest([chunk(0, "late")])
    store.ingest([chunk(1)])
    assert [c.text for c in store.view.page(0, 9)] == [c.text for c in disk.cold()] == ["late", "text 1"]


def test_2_a_lost_answer_of_a_loser_is_no_acknowledgement(disk: Any, chunk: Build) -> None:
    """A writer whose create failed without an answer, where another has taken over, has not committed."""
    older = disk.store("node-a")
    disk.store("node-b", objects=disk.other_objects())
    disk.objects.before = once("create", "/log/", fail)
    with pytest.raises(TakenOverError):
        older.ingest([chunk(0)])
    assert disk.cold() == []


def test_2_a_commit_that_the_view_missed_is_applied_next(disk: Any, chunk: Build, vector: Vector) -> None:
    """A commit after which the writer stumbled is in the log, so it is in the view before the next one."""
    store = disk.store()
    disk.objects.before = once("create", "/vec/", fail)
    with pytest.raises(UnavailableError):
        store.ingest([chunk(0, vectors={"one-id": vector()})])
    assert store.view.count() == 0
    store.ingest([chunk(1)])
    assert store.view.count() == len(disk.cold()) == 2


def test_2_a_commit_that_the_view_could_not_keep_is_settled(
    disk: Any, chunk: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache's disk is full at SQLite's own commit: the record is in the log, so the next write builds on it."""

    class FullOnce(sqlite3.Connection):
        full = False

        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            if FullOnce.full and sql == "commit":
                FullOnce.full = False
                raise sqlite3.OperationalError("database or disk is full")
            return super().execute(sql, *parameters)

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, factory=FullOnce, **k))
    store = disk.store()
    store.ingest([chunk(0)])
    FullOnce.full = True
    with pytest.raises(UnavailableError):
        store.ingest([chunk(1)])
    store.ingest([chunk(1)])
    kept = [(c.id, c.chunk_index) for c in store.view.page(0, 10)]
    assert [(c.id, c.chunk_index) for c in disk.cold()] == kept
    assert [index for _, index in kept] == [0, 1]


# -- 3: one commit, one precondition


@pytest.mark.parametrize("swap_first", [True, False])
def test_3_swap_against_drop_in_one_commit(disk: Any, chunk: Build, swap_first: bool) -> None:
    """Of a swap to a space and its drop that share a commit the first holds, the other fails alone, others go on."""
    store = disk.store()
    changes = [SwapDefault("one-id", 1, "two-id"), DropSpace("two-id")]
    if not swap_first:
        changes.reverse()
    jobs = [
        lambda: store.ingest([chunk(0)]),
        lambda: store.change(changes[0]),
        lambda: store.change(changes[1]),
        lambda: store.ingest([chunk(1)]),
    ]
    seq = store.seq
    first, swapped_or_dropped, refused, last = together(disk, store, jobs)
    assert store.seq == seq + 2  # the commit that they waited for, and one for them all
    assert first.seq == last.seq == store.seq
    assert not isinstance(swapped_or_dropped, Exception)
    assert isinstance(refused, DefaultSpaceError if swap_first else CompassError)
    assert store.state.default == ("two-id" if swap_first else "one-id")
    assert ("two-id" in store.state.spaces) == swap_first
    assert len(disk.cold()) == 3


def test_3_of_two_swaps_one_wins(disk: Any) -> None:
    """Two swaps that saw the same epoch cannot both happen."""
    store = disk.store()
    swap = SwapDefault("one-id", 1, "two-id")
    answers = together(disk, store, [lambda: store.change(swap), lambda: store.change(swap)])
    assert [type(a) for a in answers][1] is EpochMismatchError
    assert store.state.epoch == store.view.state().epoch == 2


def ingesting(batch: list[ChunkInput]) -> Callable[[Edit], list[int]]:
    """The step of a job that writes these chunks."""
    return lambda edit: edit.ingest(batch)


def test_3_a_write_behind_a_full_commit_is_done(disk: Any, chunk: Build) -> None:
    """A write that finds others waiting, too many for one commit, commits them and then itself before it answers."""
    store = disk.store(group_rows=3)
    seq = store.seq
    for at in range(2):
        store._waiting.append(_Job(ingesting([chunk(3 * at + i) for i in range(3)]), weight=3))
    receipt = store.ingest([chunk(9)])
    assert (receipt.seq, len(receipt.ids)) == (seq + 3, 1)
    assert store.view.count() == 7


def together(disk: Any, store: CollectionStore, jobs: list[Callable[[], Any]]) -> list[Any]:
    """Run writes, in this order, so that they wait together; their answers or errors."""
    held, go = threading.Event(), threading.Event()
    answers: list[Any] = [None] * len(jobs)

    def hold() -> None:
        held.set()
        go.wait(60)

    def run(at: int) -> None:
        try:
            answers[at] = jobs[at]()
        except CompassError as error:
            answers[at] = error

    disk.objects.before = once("create", "/log/", hold)
    threads = [threading.Thread(target=lambda: store.ingest([ChunkInput("other", 0, "x")]))]
    threads[0].start()
    assert held.wait(60)
    for at in range(len(jobs)):
        threads.append(threading.Thread(target=run, args=(at,)))
        threads[-1].start()
        while len(store._waiting) <= at:
            time.sleep(0.001)
    go.set()
    for thread in threads:
        thread.join()
    return answers


# -- 4: a drop is a tombstone


def test_4_a_drop_deletes_its_bytes_and_no_others(disk: Any, chunk: Build, vector: Vector) -> None:
    """A dropped space's bytes are gone when the drop returns, and no other space's has changed."""
    store = disk.store()
    store.ingest([chunk(vectors={"one-id": vector(1), "two-id": vector(2)})])
    kept = disk.files("spaces/one-id")
    store.change(DropSpace("two-id"))
    assert disk.files("spaces/two-id") == {}
    assert disk.files("spaces/one-id") == kept != {}


@pytest.mark.parametrize("when", ["open", "sweep", "compact"])
def test_4_a_late_writer_after_a_drop(disk: Any, chunk: Build, vector: Vector, when: str) -> None:
    """What a late task writes into a dropped space is swept: at the next open, when asked, by the next compaction."""
    store = disk.store()
    store.ingest([chunk(vectors={"one-id": vector(1)})])
    late = disk.root.space_vectors(disk.uuid, "two-id", 4)
    store.change(DropSpace("two-id"))
    late.append([1], vector()[None])
    kept = disk.files("spaces/one-id")
    assert disk.files("spaces/two-id")
    if when == "open":
        store.close()
        disk.store()
    elif when == "sweep":
        rest = disk.files("").keys() - disk.files("spaces/two-id").keys()
        store.sweep()
        assert disk.files("").keys() == rest, "nothing is merged or written: whoever drops a space waits for this"
    else:
        assert store.due()
        store.compact()
    assert disk.files("spaces/two-id") == {}
    assert disk.files("spaces/one-id") == kept


def test_4_a_drop_that_a_crash_cut_short_is_finished(disk: Any, vector: Vector) -> None:
    """Where the commit happened and the deletion did not, the next open deletes."""
    store = disk.store()
    disk.root.space_vectors(disk.uuid, "two-id", 4).append([1], vector()[None])
    disk.objects.before = once("delete_prefix", "two-id", fail)
    with pytest.raises(UnavailableError, match="is dropped"):
        store.change(DropSpace("two-id"))
    assert disk.files("spaces/two-id")
    store.close()
    disk.store()
    assert disk.files("spaces/two-id") == {}


def test_4_a_commit_before_the_drop_writes_nothing_after_it(disk: Any, chunk: Build, vector: Vector) -> None:
    """A node that builds its view from a log with callers' vectors of a dropped space does not write them again."""
    store = disk.store()
    store.ingest([chunk(vectors={"two-id": vector(2)})])
    store.change(DropSpace("two-id"))
    disk.cold()
    assert disk.files("spaces/two-id") == {}


def test_4_an_unknown_folder_is_reported_and_left_alone(
    disk: Any, vector: Vector, caplog: pytest.LogCaptureFixture
) -> None:
    """A space's folder that no commit knows is logged at open and never deleted."""
    disk.root.space_vectors(disk.uuid, "nobody", 4).append([1], vector()[None])
    with caplog.at_level(logging.WARNING):
        store = disk.store()
        store.compact()
    assert "nobody" in caplog.text
    assert disk.files("spaces/nobody")
