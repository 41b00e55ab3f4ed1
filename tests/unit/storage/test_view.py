"""The view: cheap reads of one commit."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from compass.domain.chunk import ChunkInput, FloatVector
from compass.domain.filters import Equals, Filter
from compass.errors import NotFoundError, UnavailableError
from compass.storage.log.writer import CollectionStore
from compass.storage.view import tables
from compass.storage.view.view import View

Build = Callable[..., ChunkInput]


def test_the_writer_sees_its_own_writes(disk: Any, chunk: Build) -> None:
    """What was acknowledged is in the writer's view, and refreshing it beside the writer's lock waits for nobody."""
    store = disk.store()
    seq = store.ingest([chunk(0)]).seq
    assert store.view.refresh(seq, timeout_s=0.0) == store.view.refresh(timeout_s=0.0) == seq
    assert store.view.count() == 1


def test_a_reader_of_another_node_applies_the_log(disk: Any, chunk: Build) -> None:
    """Where nobody holds the view, whoever refreshes it applies the log, from a base or from the beginning."""
    store = disk.store("node-a")
    seq = store.ingest([chunk(0)]).seq
    reader = disk.view("node-b")
    assert reader.refresh(seq) == seq
    store.checkpoint()
    seq = store.ingest([chunk(1)]).seq
    late = disk.view("node-c")
    assert late.refresh(seq) == reader.refresh(seq) == seq
    assert late.page(0, 9) == reader.page(0, 9) == store.view.page(0, 9)
    assert late.state() == store.state


def test_two_readers_of_a_node_share_a_view(disk: Any, chunk: Build) -> None:
    """What one reader of a node applied the other sees without applying it."""
    store = disk.store("node-a")
    seq = store.ingest([chunk(0)]).seq
    first, second = disk.view("node-b"), disk.view("node-b")
    first.refresh(seq)
    assert second.seq() == seq


def test_a_read_only_view_leaves_the_root_as_it_is(
    disk: Any, chunk: Build, vector: Callable[..., FloatVector]
) -> None:
    """It waits for callers' vectors that a dead writer has not put yet, and goes on once another one has."""
    store = disk.store("node-a")
    before = store.ingest([chunk(0)]).seq

    def die(operation: str, key: str) -> None:
        if operation == "create" and "/vec/" in key:
            raise OSError("killed")

    disk.objects.before = die
    with pytest.raises(UnavailableError):
        store.ingest([chunk(1, vectors={"one-id": vector()})])
    disk.objects.before = lambda operation, key: None
    files, seq = disk.files(), before + 1
    reader = View(disk.objects, disk.uuid, disk.folder / "node-b", read_only=True)
    assert reader.refresh() == before
    with pytest.raises(UnavailableError):
        reader.refresh(seq, timeout_s=0.02)
    assert disk.files() == files
    assert disk.view("node-c").refresh(seq) == seq
    assert reader.refresh(seq) == seq
    assert len(disk.files()) == len(files) + 1


def test_a_read_only_view_misses_no_vector_that_a_merge_left_out(
    disk: Any, chunk: Build, vector: Callable[..., FloatVector]
) -> None:
    """Callers' vectors may lie in whatever file a merge has put them, and those of dead chunks in none."""
    store = disk.store("node-a")
    old = store.ingest([chunk(i, vectors={"one-id": vector(i + 1)}) for i in range(3)])
    store.ingest([chunk(3, vectors={"one-id": vector(9)})])
    store.compact()
    (key,) = store._vectors(store.state.by_id("one-id")).files()
    assert "/given-" in key
    reader = View(disk.objects, disk.uuid, disk.folder / "node-b", read_only=True)
    assert reader.refresh(store.seq) == store.seq
    assert reader.get(old.ids[0]) is not None


def test_a_reader_waits_for_the_view_to_be_built(disk: Any, chunk: Build) -> None:
    """A reader that comes before the view is there waits for whoever builds it."""
    seq = disk.store("node-a").ingest([chunk(0)]).seq
    reader, building, go = disk.view("node-b"), threading.Event(), threading.Event()

    def slow(operation: str, key: str) -> None:
        if operation == "read" and "/log/" in key and not building.is_set():
            building.set()
            go.wait(60)

    objects = disk.other_objects()
    objects.before = slow
    builder = View(objects, disk.uuid, disk.folder / "node-b")
    thread = threading.Thread(target=builder.refresh)
    thread.start()
    assert building.wait(60)
    assert reader.seq() == 0
    with pytest.raises(UnavailableError):
        reader.count()
    with pytest.raises(UnavailableError):
        reader.refresh(timeout_s=0.02)
    go.set()
    assert reader.refresh(seq) == seq
    thread.join()


def test_a_commit_that_does_not_come(disk: Any) -> None:
    """Waiting for a commit that is not made ends with an error at the deadline."""
    store = disk.store()
    with pytest.raises(UnavailableError):
        store.view.refresh(store.seq + 1, timeout_s=0.02)


def test_no_such_collection(disk: Any) -> None:
    """A collection that is not there is said to be so."""
    with pytest.raises(NotFoundError):
        View(disk.objects, "0" * 32, disk.folder / "node-a").refresh()
    with pytest.raises(NotFoundError):
        CollectionStore(disk.objects, "0" * 32, disk.folder / "node-a")


def test_a_rebuilt_view_is_noticed_by_open_readers(disk: Any, chunk: Build) -> None:
    """A reader with open connections sees the view that replaced the one it knew, in the file or under its name."""
    store = disk.store("node-a")
    store.ingest([chunk(0)])
    reader = store.view
    assert reader.count() == 1
    store.close()
    with tables.connect(reader.path) as db:
        db.execute("update tip set nonce='of another history'")
    store = disk.store("node-a")
    seq = store.ingest([chunk(1)]).seq
    assert (reader.seq(), reader.count()) == (seq, 2)
    store.close()
    reader.path.write_bytes(b"garbage" * 1000)
    for suffix in ("-wal", "-shm"):
        reader.path.with_name(reader.path.name + suffix).unlink(missing_ok=True)
    store = disk.store("node-a")
    assert (reader.refresh(store.seq), reader.count()) == (store.seq, 2)


def test_pages_are_by_id(disk: Any, chunk: Build) -> None:
    """Pages go by id, after the last one seen."""
    store = disk.store()
    ids = sorted(store.ingest([chunk(i) for i in range(5)]).ids)
    assert [c.id for c in store.view.page(0, 2)] == ids[:2]
    assert [c.id for c in store.view.page(ids[1], 9)] == ids[2:]


def test_only_live_chunks_are_found_by_vid(disk: Any, chunk: Build) -> None:
    """A vid that died or never was is left out."""
    store = disk.store()
    store.ingest([chunk(0, "a"), chunk(1, "b")])
    old = store.view.live_vids()
    store.ingest([chunk(0, "c")])
    assert [c.text for c in store.view.by_vids([*old, 999]).values()] == ["b"]
    assert store.view.texts(old) == {int(old[1]): "b"}


def test_empty_texts_are_live_and_not_embeddable(disk: Any, chunk: Build) -> None:
    """A blank text counts among the live ones and not among those to embed, from a warm and from a cold view."""
    store = disk.store("node-a")
    store.ingest([chunk(0, "a"), chunk(1, " \n"), chunk(2, "")])
    store.checkpoint()
    cold = disk.view("node-b")
    cold.refresh()
    for view in (store.view, cold):
        assert len(view.live_vids()) == 3
        assert [view.by_vids([v])[v].text for v in view.embeddable_vids().tolist()] == ["a"]


def test_live_vids_are_carried_forward(disk: Any, chunk: Build) -> None:
    """The kept set of live vids equals a fresh one after every kind of write."""
    store = disk.store()
    for write in (
        lambda: store.ingest([chunk(i) for i in range(6)]),
        lambda: store.ingest([chunk(0, "new"), chunk(1, metadata={"x": 1})]),
        lambda: store.delete([], Filter((Equals("chunk_index", 3),))),
        lambda: store.ingest([chunk(4, "new"), chunk(4, "newer")]),
        store.compact,
    ):
        write()
        fresh = disk.view("node-a")
        assert store.view.live_vids().tolist() == fresh.live_vids().tolist() == sorted(fresh.live_vids())
        assert not store.view.live_vids().flags.writeable


def test_changes_name_births_and_deaths(disk: Any, chunk: Build) -> None:
    """Changes hold what is live and was not, and what no longer is; a metadata-only update is neither."""
    store = disk.store()
    store.ingest([chunk(0, "a"), chunk(1, "b"), chunk(2, "c")])
    a, b, c = store.view.live_vids().tolist()
    since = store.seq
    store.ingest([chunk(0, "a2"), chunk(1, "b", metadata={"x": 1})])
    store.ingest([chunk(0, "a3"), chunk(3, "d")])
    store.delete([], Filter((Equals("chunk_index", 2),)))
    changes = store.view.changes(since)
    assert changes.seq == store.seq
    assert changes.died.tolist() == [a, c]
    assert [store.view.by_vids([v])[v].text for v in changes.born.tolist()] == ["a3", "d"]
    assert b in store.view.live_vids()
    nothing = store.view.changes(store.seq)
    assert (len(nothing.born), len(nothing.died)) == (0, 0)


def test_changes_of_long_ago_are_not_known(disk: Any, chunk: Build) -> None:
    """What a view cannot tell one by one it does not tell at all: before its base, after its end, once trimmed."""
    store = disk.store("node-a")
    store.ingest([chunk(0, "a")])
    store.checkpoint()
    seq = store.ingest([chunk(0, "b")]).seq
    cold = disk.view("node-b")
    cold.refresh()
    assert cold.changes(1) is None
    assert cold.changes(seq + 1) is None
    assert len(cold.changes(seq - 1).born) == 1
    assert store.view.changes(seq - 1).died.tolist() == cold.changes(seq - 1).died.tolist() != []
    store.compact()
    assert store.view.changes(1) is None


def test_reads_go_on_beside_writes(disk: Any, chunk: Build) -> None:
    """Readers in many threads never fail and never see half a commit."""
    store, stop = disk.store(), threading.Event()
    wrong: list[set[str] | Exception] = []
    store.ingest([chunk(i, "0") for i in range(20)])

    def read() -> None:
        while not stop.is_set():
            try:
                texts = {c.text for c in store.view.page(0, 100)}
                if len(texts) != 1 or len(store.view.live_vids()) != 20:
                    wrong.append(texts)
            except Exception as error:  # noqa: BLE001  # the main thread reports it
                wrong.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for i in range(1, 40):
        store.ingest([chunk(k, str(i)) for k in range(20)])
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
