"""Collections by name: created, deleted, made again."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from typing import Any

import pytest
from faults import not_durable

from compass.domain.chunk import ChunkInput
from compass.errors import CollectionExistsError, NotFoundError, TakenOverError, UnavailableError
from compass.storage.log import router_epoch
from compass.storage.root import Root, hold

Build = Callable[..., ChunkInput]


def everything(disk: Any, uuid: str) -> list[str]:
    return list(disk.objects.objects.list(uuid))


def test_a_created_collection_is_there(disk: Any) -> None:
    """A new collection has its spaces and its default, at epoch 1, and is found by name."""
    assert disk.root.collections() == {"docs": disk.uuid}
    state = disk.store().state
    assert (state.name, state.default, state.epoch) == ("docs", "one-id", 1)
    assert [s.name for s in state.spaces.values()] == ["one", "two"]


def test_a_name_is_taken_once(disk: Any) -> None:
    """A second collection of a name is refused and leaves nothing behind."""
    before = disk.objects.objects.list("")
    with pytest.raises(CollectionExistsError):
        disk.root.create("docs", disk.spaces, "one-id")
    assert disk.objects.objects.list("") == before


def test_a_default_that_is_not_among_the_spaces(disk: Any) -> None:
    """A collection cannot begin with a default that it does not have."""
    with pytest.raises(NotFoundError):
        disk.root.create("other", disk.spaces, "three-id")
    assert "other" not in disk.root.collections()


def test_a_deleted_collection_leaves_no_byte(disk: Any, chunk: Build) -> None:
    """After a delete neither name nor bytes nor view are there."""
    store = disk.store()
    store.ingest([chunk(0)])
    store.close()
    disk.root.delete("docs")
    assert disk.root.collections() == {}
    assert everything(disk, disk.uuid) == []
    assert not store.view.path.exists()
    with pytest.raises(NotFoundError):
        disk.root.delete("docs")


def test_a_collection_made_again_is_another(disk: Any, chunk: Build) -> None:
    """The same name made again is a new uuid that knows nothing of the old one, even beside a warm view."""
    store = disk.store()
    store.ingest([chunk(0)])
    disk.root.delete("docs")
    again = disk.root.create("docs", disk.spaces, "two-id")
    assert again.uuid != disk.uuid
    new = disk.root.open(again.uuid)
    assert (new.view.count(), new.state.default) == (0, "two-id")
    new.close()


def test_a_late_writer_after_a_delete_is_swept(disk: Any, chunk: Build) -> None:
    """What the writer of a deleted collection writes once more is swept, and touches no collection made since."""
    store = disk.store()
    store.ingest([chunk(0)])
    disk.root.delete("docs")
    again = disk.root.create("docs", disk.spaces, "one-id").uuid
    store.ingest([chunk(1)])
    assert everything(disk, disk.uuid)
    kept = everything(disk, again)
    disk.root.sweep()
    assert everything(disk, disk.uuid) == []
    assert everything(disk, again) == kept


@pytest.mark.parametrize(("operation", "part"), [("delete", "names/"), ("delete_prefix", "")])
def test_an_interrupted_delete_is_finished(disk: Any, operation: str, part: str) -> None:
    """A delete that a crash cut short after its tombstone is over for readers, and finished by the sweep."""

    def crash(called: str, key: str) -> None:
        if called == operation and part in key:
            raise KeyboardInterrupt

    disk.objects.before = crash
    with pytest.raises(KeyboardInterrupt):
        disk.root.delete("docs")
    disk.objects.before = lambda *_: None
    assert disk.root.collections() == {}
    assert everything(disk, disk.uuid)
    Root(disk.objects, disk.folder / "node-a").sweep()
    assert everything(disk, disk.uuid) == []
    assert disk.objects.objects.list("names") == []


def test_an_interrupted_create_is_no_collection(disk: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A create that a crash cut short before the name is reported as an unknown folder, and not deleted."""

    def crash(operation: str, key: str) -> None:
        if operation == "create" and key.startswith("names/"):
            raise KeyboardInterrupt

    disk.objects.before = crash
    with pytest.raises(KeyboardInterrupt):
        disk.root.create("other", disk.spaces, "one-id")
    disk.objects.before = lambda *_: None
    with caplog.at_level(logging.WARNING):
        disk.root.sweep()
    (orphan,) = set(disk.objects.folders("")) - {"names", disk.uuid}
    assert orphan in caplog.text
    assert everything(disk, orphan)
    assert disk.uuid not in caplog.text


def test_a_sweep_leaves_live_collections_alone(disk: Any, chunk: Build) -> None:
    """A sweep without deletes changes nothing."""
    disk.store().ingest([chunk(0)])
    before = disk.files()
    disk.root.sweep()
    assert disk.files() == before


def test_the_second_holder_is_told_who_is_first(tmp_path: Any) -> None:
    """A local root is held by one process; the next is told its pid and host, until it is let go."""
    from compass.storage.objects import LocalObjects

    first, second = (Root(LocalObjects(tmp_path), tmp_path / "cache") for _ in range(2))
    held = first.lock()
    with pytest.raises(TakenOverError, match=str(os.getpid())) as caught:
        second.lock()
    assert set(caught.value.fields) == {"host", "pid"}
    held.close()
    second.lock().close()


def test_names_are_small_json(disk: Any) -> None:
    """A name's object says the uuid and nothing else."""
    assert json.loads(disk.objects.read("names/docs.json").to_pybytes()) == {"uuid": disk.uuid}


def test_a_predecessor_of_the_same_service_keeps_nobody_out(disk: Any) -> None:
    """A router may start beside one that outlives its node; it gets the lock when that one ends, others do not."""
    first, second = Root(disk.objects.objects, disk.folder / "a"), Root(disk.objects.objects, disk.folder / "b")
    predecessor = first.lock("service-1")
    successor = second.lock("service-1")
    assert not successor.held
    with pytest.raises(TakenOverError, match=str(os.getpid())):
        second.lock("service-2")
    assert not hold(successor, "service-1")
    predecessor.close()
    assert hold(successor, "service-1")
    assert hold(successor, "service-1"), "it stays so"
    with pytest.raises(TakenOverError):
        first.lock("service-2")
    successor.close()
    first.lock("service-2").close()


def test_a_name_that_may_not_last_is_no_collection_yet(disk: Any) -> None:
    """Neither its creation nor its being there is answered, nor is it opened, until its name is durable."""
    disk.objects.after = not_durable("create", "names/other")
    for _ in range(2):
        with pytest.raises(UnavailableError):
            disk.root.create("other", disk.spaces, "one-id")
    uuid = disk.root.collections()["other"]
    with pytest.raises(UnavailableError):
        disk.root.open(uuid)
    disk.objects.after = lambda *_: None
    with pytest.raises(CollectionExistsError):
        disk.root.create("other", disk.spaces, "one-id")
    disk.root.open(uuid).close()


def test_nothing_is_erased_before_its_tombstone_lasts(disk: Any, chunk: Build) -> None:
    """A power cut that took the tombstone back would leave a name without its collection."""
    store = disk.store()
    store.ingest([chunk(0)])
    store.close()
    before = everything(disk, disk.uuid)
    disk.objects.after = not_durable("write", "tombstones/")
    for attempt in (lambda: disk.root.delete("docs"), lambda: disk.root.delete("docs"), disk.root.sweep):
        with pytest.raises(UnavailableError):
            attempt()
        assert everything(disk, disk.uuid) == before
        assert disk.objects.list("names") == ["names/docs.json"]
    disk.objects.after = lambda *_: None
    disk.root.sweep()
    assert everything(disk, disk.uuid) == disk.objects.list("names") == []


def test_a_claim_that_fails_is_said(disk: Any) -> None:
    """A router whose number may not last has none; the next claim takes a greater one."""
    disk.objects.after = not_durable("create", "router/")
    with pytest.raises(UnavailableError):
        router_epoch.claim(disk.objects)
    disk.objects.after = lambda *_: None
    assert router_epoch.claim(disk.objects) == 2
