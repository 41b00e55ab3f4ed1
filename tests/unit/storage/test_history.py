"""The history of a collection: as durable as the changes that it tells of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from compass.domain.chunk import ChunkInput
from compass.domain.collection import AddSpace, DropSpace, SwapDefault
from compass.domain.history import By, Note
from compass.errors import ConflictError
from compass.storage.root import Root

Build = Callable[..., ChunkInput]


def told(disk: Any, node: str = "cold") -> list[tuple[int, str, str | None, int]]:
    """The history as a node sees it that knows nothing but the root: (seq, kind, space, epoch)."""
    view = disk.view(node)
    view.refresh()
    events = view.history()
    view.close()
    return [(e.seq, e.kind, e.space, e.epoch) for e in events]


def test_an_event_is_in_the_commit_of_its_change(disk: Any) -> None:
    """It has the commit's seq and the epoch after it; a change that is refused leaves none."""
    store = disk.store()
    store.change(SwapDefault("one-id", 1, "two-id", 5.0), Note("swap", "two", 1.0, By("anna", "better")))
    with pytest.raises(ConflictError):
        store.change(SwapDefault("one-id", 1, "two-id", 5.0), Note("swap", "two", 1.0))
    store.change(DropSpace("one-id"), Note("drop", "one", 1.0))
    assert told(disk) == [(3, "swap", "two", 2), (4, "drop", "one", 2)]
    event = store.view.history()[0]
    assert (event.who, event.reason, event.took_s) == ("anna", "better", pytest.approx(event.at - 1.0, abs=0.01))


def test_the_history_outlives_the_log(disk: Any, chunk: Build) -> None:
    """Checkpoints carry it on when the log before them is pruned, again and again."""
    store = disk.store()
    store.change(AddSpace(disk.space("three-id", "three", "building")), Note("add", "three", 1.0))
    added = store.seq
    store.ingest([chunk(0)])
    store.compact()
    store.change(SwapDefault("one-id", 1, "two-id", 5.0), Note("swap", "two", 1.0))
    swapped = store.seq
    store.ingest([chunk(1)])
    store.compact()
    store.compact()
    assert not {added, swapped} & {int(key.rsplit("/", 1)[1]) for key in disk.files("log")}
    assert told(disk) == told(disk, "node-a") == [(added, "add", "three", 1), (swapped, "swap", "two", 2)]


def test_a_collection_begins_with_its_creation(disk: Any) -> None:
    """The first commit holds the first event; a collection of an older version has none."""
    root = Root(disk.objects, disk.folder / "node-b")
    uuid = root.create("more", [disk.space("s-id", "s")], "s-id", note=Note("create", None, 0.0)).uuid
    view = root.view(uuid)
    view.refresh()
    assert [(e.seq, e.kind) for e in view.history()] == [(1, "create")]
    view.close()
    assert told(disk) == []


def test_the_state_remembers_who_was_the_default(disk: Any) -> None:
    """When each space ceased to be it, until it is the default again or gone; also after a cold start."""
    store = disk.store()
    before = store.state
    assert before.previous_default is None
    store.change(SwapDefault("one-id", 1, "two-id", 5.0))
    previous = store.state.previous_default
    assert previous is not None
    assert (previous.id, dict(store.state.defaults_until)) == ("one-id", {"one-id": 5.0})
    store.change(SwapDefault("two-id", 2, "one-id", 6.0))
    assert dict(store.state.defaults_until) == {"two-id": 6.0}
    view = disk.view("cold")
    view.refresh()
    assert view.state() == store.state
    view.close()
    store.change(DropSpace("two-id"))
    assert store.state.previous_default is None
