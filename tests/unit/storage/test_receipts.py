"""A write that is sent again, because its answer was lost, changes nothing and is answered as the first time."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from faults import fail, once

from compass.domain.chunk import ChunkInput
from compass.domain.filters import Equals, Filter
from compass.domain.receipts import Deleted, Ingested
from compass.errors import InvalidRequestError, UnavailableError
from compass.storage.log import receipts
from compass.storage.log.writer import CollectionStore
from compass.storage.objects import LocalObjects
from compass.storage.root import Root
from compass.storage.service import CollectionService
from compass.storage.snapshot.bases import newest_base
from compass.storage.view import tables

Build = Callable[..., ChunkInput]

OLDER = Path(__file__).parents[2] / "data" / "v0.1.0"


class KilledError(BaseException):
    """The writer's process ends here."""


def killed() -> None:
    raise KilledError


def die_after_commit(disk: Any, write: Callable[[], object]) -> None:
    """The commit is durable, and its writer dies before it answers."""
    disk.objects.after = once("create", "/log/", killed)
    with pytest.raises(KilledError):
        write()


def texts(store: CollectionStore) -> list[str]:
    return [chunk.text for chunk in store.view.page(0, 99)]


def restart(disk: Any, store: CollectionStore) -> CollectionStore:
    """The same node's next process."""
    store.close()
    return disk.store()  # type: ignore[no-any-return]


def lose_the_cache(disk: Any, store: CollectionStore) -> CollectionStore:
    store.close()
    shutil.rmtree(store.view.path.parent)
    return disk.store()  # type: ignore[no-any-return]


def take_over(disk: Any, store: CollectionStore) -> CollectionStore:
    """Another node opens it; the one before is left as it is."""
    return disk.store("node-b")  # type: ignore[no-any-return]


def prune(disk: Any, store: CollectionStore) -> CollectionStore:
    """Another node opens it, when a base is all that is left of the commit."""
    seq = store.seq
    store.ingest([ChunkInput("other", 0, "x")])
    for _ in range(3):
        store.compact()
    assert disk.objects.read(f"{disk.uuid}/log/{seq:020d}") is None
    return disk.store("node-b")  # type: ignore[no-any-return]


@pytest.mark.parametrize("then", [restart, lose_the_cache, take_over, prune])
def test_a_newer_text_stays(disk: Any, chunk: Build, then: Callable[..., CollectionStore]) -> None:
    """What another has written since is not undone by the repetition, over whatever became of the first writer."""
    store = disk.store()
    die_after_commit(disk, lambda: store.ingest([chunk(0, "older"), chunk(1, "older")], "attempt-1"))
    store = restart(disk, store)
    first = Ingested(store.seq - 1, [c.id for c in store.view.page(0, 9)])
    assert store.ingest([chunk(0, "newer")], "attempt-2").ids == first.ids[:1]
    store = then(disk, store)
    seq = store.seq
    assert store.ingest([chunk(0, "older"), chunk(1, "older")], "attempt-1") == first
    assert texts(store)[:2] == ["newer", "older"]
    assert store.seq == seq, "nothing is committed"


@pytest.mark.parametrize("then", [restart, lose_the_cache, take_over, prune])
def test_a_deleted_chunk_stays_deleted(disk: Any, chunk: Build, then: Callable[..., CollectionStore]) -> None:
    """A chunk that was deleted since does not come back."""
    store = disk.store()
    die_after_commit(disk, lambda: store.ingest([chunk(0)], "attempt-1"))
    store = restart(disk, store)
    first = Ingested(store.seq - 1, [store.view.page(0, 1)[0].id])
    assert store.delete(first.ids, None).deleted == 1
    store = then(disk, store)
    assert store.ingest([chunk(0)], "attempt-1") == first
    assert "text 0" not in texts(store)


@pytest.mark.parametrize("then", [restart, lose_the_cache, take_over, prune])
def test_a_repeated_delete_takes_nothing_newer(disk: Any, chunk: Build, then: Callable[..., CollectionStore]) -> None:
    """A delete by a filter, sent again, leaves what was written since, and says what the first one deleted."""
    store = disk.store()
    store.ingest([chunk(0), chunk(1), chunk(2)])
    where = Filter((Equals("file_id", "f"),))
    die_after_commit(disk, lambda: store.delete([], where, "attempt-1"))
    store = restart(disk, store)
    first = Deleted(store.seq - 1, 3)
    store.ingest([chunk(1, "newer")])
    store = then(disk, store)
    assert store.delete([], where, "attempt-1") == first
    assert "newer" in texts(store)


def test_a_commit_in_doubt_is_found(disk: Any, chunk: Build) -> None:
    """A write whose fate was unknown is in the log after all: its repetition is answered from there."""
    store = disk.store()
    failing = [once("ensure_durable", "/log/", fail), once("create", "/log/", fail)]
    disk.objects.before, disk.objects.after = failing
    with pytest.raises(UnavailableError):
        store.ingest([chunk(0)], "attempt-1")
    receipt = store.ingest([chunk(0, "must not be written")], "attempt-1")
    assert receipt == Ingested(store.seq, [c.id for c in store.view.page(0, 9)])
    assert texts(store) == ["text 0"]


def test_without_an_attempt_a_repetition_is_a_write(disk: Any, chunk: Build) -> None:
    """Who names no attempt writes anew each time, as ever."""
    store = disk.store()
    store.ingest([chunk(0, "older")])
    store.ingest([chunk(0, "newer")])
    store.ingest([chunk(0, "older")])
    assert texts(store) == ["older"]
    store.compact()
    assert newest_base(disk.objects, disk.uuid).receipts == ()  # type: ignore[union-attr]


def test_attempts_that_share_a_commit(disk: Any, chunk: Build) -> None:
    """Each write of a group has its own receipt; of the same attempt twice the second writes nothing."""
    store = disk.store()
    store.ingest([chunk(9)])
    answers: dict[str, Ingested] = {}
    go, waiting = threading.Event(), threading.Event()

    def hold() -> None:
        waiting.set()
        go.wait(60)

    def write(name: str, index: int, attempt: str) -> None:
        answers[name] = store.ingest([chunk(index, name)], attempt)

    disk.objects.before = once("create", "/log/", hold)
    threads = [threading.Thread(target=write, args=("held", 8, "held"))]
    threads[0].start()
    assert waiting.wait(60)
    for name, index, attempt in (("one", 0, "a"), ("two", 1, "b"), ("again", 0, "a")):
        threads.append(threading.Thread(target=write, args=(name, index, attempt)))
        threads[-1].start()
        while len(store._waiting) < len(threads) - 1:
            threads[-1].join(0.001)
    go.set()
    for thread in threads:
        thread.join()
    assert answers["again"] == answers["one"]
    assert answers["one"].seq == answers["two"].seq == store.seq
    assert {"one", "two"} <= set(texts(store))
    newer = disk.store("node-b")
    assert newer.ingest([chunk(0, "x")], "a") == answers["one"]
    assert newer.ingest([chunk(0, "x")], "b") == answers["two"]


def test_a_batch_larger_than_a_group_is_one_commit(disk: Any, chunk: Build) -> None:
    """A batch is one commit, whatever its size, and so is its receipt."""
    store = disk.store(group_rows=3)
    batch = [chunk(i) for i in range(10)]
    receipt = store.ingest(batch, "attempt-1")
    store.delete(receipt.ids, None)
    assert store.ingest(batch, "attempt-1") == receipt
    assert store.view.count() == 0


def test_a_refused_attempt_can_be_made_again(disk: Any, chunk: Build) -> None:
    """What was refused has no receipt; nor has what changed nothing."""
    store = disk.store()
    with pytest.raises(InvalidRequestError):
        store.ingest([chunk(0, "\ud800")], "attempt-1")
    assert store.delete([], Filter((Equals("file_id", "f"),)), "attempt-1").deleted == 0
    assert store.ingest([], "attempt-1").ids == []
    assert len(store.ingest([chunk(0)], "attempt-1").ids) == 1


def test_receipts_are_bounded(disk: Any, chunk: Build) -> None:
    """The oldest are forgotten, the newest never, and a view built from a base keeps the same ones."""
    store = disk.store()
    attempts = [f"{index}".ljust(receipts.KEPT_BYTES // 4, ".") for index in range(8)]
    for index, attempt in enumerate(attempts):
        store.ingest([chunk(index)], attempt)
        if index == 4:
            store.compact()
            assert len(newest_base(disk.objects, disk.uuid).receipts) == 4  # type: ignore[union-attr]
    kept = tables.receipts(store._applier.db)
    assert [receipt.attempt for _, receipt in kept] == attempts[-4:]
    cold = disk.store("node-b")
    assert tables.receipts(cold._applier.db) == kept
    large = cold.ingest([chunk(0)], "large" * receipts.KEPT_BYTES)
    assert cold.ingest([chunk(0)], "large" * receipts.KEPT_BYTES) == large
    assert len(tables.receipts(cold._applier.db)) == 1


def test_the_bound_holds_a_burst() -> None:
    """Some ten thousand writes of one chunk, or a hundred of a thousand, are remembered."""
    attempt = "a" * 32
    assert receipts.KEPT_BYTES // receipts.Receipt(attempt, [1]).bytes > 10_000
    assert receipts.KEPT_BYTES // receipts.Receipt(attempt, list(range(1000))).bytes > 100


async def test_the_service_passes_it_on(disk: Any, chunk: Build) -> None:
    """The port's methods take the attempt."""
    service = CollectionService(disk.store(), 3600.0, 1)
    first = await service.ingest([chunk(0)], "attempt-1")
    gone = await service.delete(first.ids, None, "attempt-2")
    assert await service.ingest([chunk(0)], "attempt-1") == first
    assert await service.delete(first.ids, None, "attempt-2") == gone
    assert (await service.stats()).chunk_count == 0
    await service.close()


def test_a_folder_of_version_0_1_0_opens(tmp_path: Path, chunk: Build) -> None:
    """What has no receipts yet is opened as ever, and keeps them from then on."""
    shutil.copytree(OLDER, tmp_path / "data")
    root = Root(LocalObjects(tmp_path / "data"), tmp_path / "cache")
    store = root.open(root.collections()["docs"], grace_s=0.0)
    assert store.view.count() == 60
    assert tables.receipts(store._applier.db) == []
    receipt = store.ingest([chunk(0)], "attempt-1")
    store.delete(receipt.ids, None)
    store.compact()
    assert store.ingest([chunk(0)], "attempt-1") == receipt
    assert store.view.count() == 60
    store.close()


def test_who_does_not_know_the_fields_can_read_the_rest(disk: Any, chunk: Build) -> None:
    """A version without receipts opens the folder: the record and the base only have one field more."""
    store = disk.store()
    receipt = store.ingest([chunk(0)], "attempt-1")
    store.checkpoint()
    base = msgspec.json.decode(disk.objects.read(f"{disk.uuid}/base/{store.seq:020d}.json").to_pybytes())
    assert base.pop("receipts") == [[receipt.seq, {"attempt": "attempt-1", "ids": receipt.ids}]]
    assert base.keys() == {
        *("uuid", "seq", "nonce", "next", "state", "parts", "takeovers", "at", "history"),
    }
