"""Ids, vids and callers' vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from compass.domain.chunk import Chunk, ChunkInput, FloatVector
from compass.domain.collection import AddSpace
from compass.domain.filters import Equals, Filter
from compass.domain.space import Space, SpaceConfig
from compass.errors import InvalidRequestError, NotFoundError
from compass.storage.log.edit import vectors_to_write
from compass.storage.log.writer import CollectionStore

Build = Callable[..., ChunkInput]
Vector = Callable[..., FloatVector]


def only(store: CollectionStore) -> Chunk:
    (chunk,) = store.view.page(0, 10)
    return chunk


def stored(store: CollectionStore, space_id: str, vid: int) -> list[FloatVector]:
    space = store.state.spaces[space_id]
    return list(store._vectors(space).get([vid])[1])


def test_every_field_round_trips(disk: Any, chunk: Build) -> None:
    """A chunk comes back as it was written, from a warm view and from a cold one, from the log and from parts."""
    written = chunk(
        7,
        "täxt\n\0",
        metadata={"a": True, "b": 3, "c": 2.5, "d": "ü", "e": ["x", "y"], "big": 2**70, "": ""},
        doc_type="segment",
        page=3,
        parent_id=12,
        parent_ref="p",
        group_id="g",
    )
    store = disk.store()
    receipt = store.ingest([written])
    for seen in (only(store), disk.cold("cold-1")[0], (store.checkpoint(), disk.cold("cold-2")[0])[1]):
        assert (seen.id, seen.seq) == (receipt.ids[0], receipt.seq)
        for field in ("file_id", "chunk_index", "text", "doc_type", "page", "parent_id", "parent_ref", "group_id"):
            assert getattr(seen, field) == getattr(written, field)
        assert seen.metadata == written.metadata


def test_optional_fields_can_be_taken_away(disk: Any, chunk: Build) -> None:
    """An update without page, parent or group leaves none behind, nor any trace that a filter finds."""
    store = disk.store()
    store.ingest([chunk(page=3, parent_id=1, parent_ref="p", group_id="g", metadata={"a": 1})])
    store.ingest([chunk()])
    seen = only(store)
    assert (seen.page, seen.parent_id, seen.parent_ref, seen.group_id, seen.metadata) == (None,) * 4 + ({},)
    for field, value in (("page", 3), ("parent_id", 1), ("group_id", "g"), ("a", 1)):
        assert not len(store.view.matching(Filter((Equals(field, value),))))


def test_the_id_is_the_keys(disk: Any, chunk: Build) -> None:
    """A natural key keeps its id through updates of text and metadata."""
    store = disk.store()
    (first,) = store.ingest([chunk(text="a")]).ids
    assert store.ingest([chunk(text="b")]).ids == [first]
    assert store.ingest([chunk(text="b", metadata={"x": 1})]).ids == [first]


def test_a_deleted_key_gets_a_new_id(disk: Any, chunk: Build) -> None:
    """A key that was deleted and is ingested again is another chunk."""
    store = disk.store()
    (first,) = store.ingest([chunk()]).ids
    assert store.delete([first], None).deleted == 1
    assert store.ingest([chunk()]).ids != [first]
    assert store.view.get(first) is None


def test_only_a_new_text_gets_a_new_vid(disk: Any, chunk: Build) -> None:
    """A metadata-only update keeps the vid, so nothing is embedded again; a new text gets a greater one."""
    store = disk.store()
    store.ingest([chunk(text="a")])
    before = only(store).vid
    store.ingest([chunk(text="a", metadata={"x": 1})])
    assert only(store).vid == before
    assert only(store).metadata == {"x": 1}
    store.ingest([chunk(text="b")])
    assert only(store).vid > before


def test_the_last_of_a_key_counts(disk: Any, chunk: Build) -> None:
    """The same key twice in a batch is one chunk, the last; both get its id."""
    store = disk.store()
    receipt = store.ingest([chunk(0, "a"), chunk(1, "b"), chunk(0, "c")])
    assert receipt.ids[0] == receipt.ids[2] != receipt.ids[1]
    assert store.view.get(receipt.ids[0]).text == "c"
    assert store.view.count() == 2


def test_a_vector_for_a_space_that_has_none_is_added(disk: Any, chunk: Build, vector: Vector) -> None:
    """The same text again with a vector for a further space adds it under the same vid."""
    store = disk.store()
    store.ingest([chunk(vectors={"one-id": vector(1)})])
    vid = only(store).vid
    store.ingest([chunk(vectors={"two-id": vector(2)})])
    assert only(store).vid == vid
    assert np.array_equal(stored(store, "one-id", vid), [vector(1)])
    assert np.array_equal(stored(store, "two-id", vid), [vector(2)])


def test_the_same_vector_again_changes_nothing(disk: Any, chunk: Build, vector: Vector) -> None:
    """A retried ingest keeps the vid and writes no vector twice."""
    store = disk.store()
    store.ingest([chunk(vectors={"one-id": vector(1)})])
    vid, files = only(store).vid, disk.files("spaces")
    store.ingest([chunk(vectors={"one-id": vector(1)})])
    assert only(store).vid == vid
    assert disk.files("spaces") == files


def test_a_different_vector_gets_a_new_vid_and_carries_the_others(disk: Any, chunk: Build, vector: Vector) -> None:
    """A vector that differs gets a new vid, and the other spaces keep theirs of the unchanged text under it."""
    store = disk.store()
    store.ingest([chunk(vectors={"one-id": vector(1), "two-id": vector(2)})])
    before = only(store).vid
    store.ingest([chunk(vectors={"one-id": vector(3)})])
    vid = only(store).vid
    assert vid > before
    assert np.array_equal(stored(store, "one-id", vid), [vector(3)])
    assert np.array_equal(stored(store, "two-id", vid), [vector(2)])


def test_the_same_text_without_a_vector_keeps_its_vectors(disk: Any, chunk: Build, vector: Vector) -> None:
    """An update that sends no vector keeps those that are there."""
    store = disk.store()
    store.ingest([chunk(vectors={"one-id": vector(1)})])
    store.ingest([chunk(metadata={"x": 1})])
    assert np.array_equal(stored(store, "one-id", only(store).vid), [vector(1)])


def test_a_new_text_leaves_the_old_vectors_behind(disk: Any, chunk: Build, vector: Vector) -> None:
    """A new text starts with the vectors that came with it and no others."""
    store = disk.store()
    store.ingest([chunk(text="a", vectors={"one-id": vector(1), "two-id": vector(2)})])
    store.ingest([chunk(text="b", vectors={"one-id": vector(3)})])
    vid = only(store).vid
    assert np.array_equal(stored(store, "one-id", vid), [vector(3)])
    assert stored(store, "two-id", vid) == []


def test_callers_vectors_win_over_computed_ones(disk: Any, chunk: Build, vector: Vector) -> None:
    """Where a follower has written the same vid meanwhile, the caller's vector is the one that is read."""
    store = disk.store()
    store.ingest([chunk(vectors={"one-id": vector(1)})])
    vid = only(store).vid
    disk.root.space_vectors(disk.uuid, "one-id", 4).append([vid], vector(9)[None])
    assert np.array_equal(stored(store, "one-id", vid), [vector(1)])
    store.compact()
    assert np.array_equal(stored(store, "one-id", vid), [vector(1)])


@pytest.mark.parametrize(
    "bad", [np.zeros(4), np.full(4, np.nan), np.ones(3)], ids=["zero vector", "NaN", "wrong dims"]
)
def test_a_vector_that_does_not_fit_writes_nothing(disk: Any, chunk: Build, bad: FloatVector) -> None:
    """One unfit vector refuses the whole batch, before anything is committed."""
    store = disk.store()
    seq = store.seq
    with pytest.raises(InvalidRequestError):
        store.ingest([chunk(0), chunk(1, vectors={"one-id": bad.astype(np.float32)})])
    assert (store.seq, store.view.count()) == (seq, 0)


def test_a_vector_for_a_space_that_is_gone(disk: Any, chunk: Build, vector: Vector) -> None:
    """A vector for a space that is not there refuses the batch."""
    with pytest.raises(NotFoundError):
        disk.store().ingest([chunk(vectors={"three-id": vector()})])


def test_what_cannot_be_stored_is_refused(disk: Any, chunk: Build) -> None:
    """A number beyond 64 bits or half a surrogate pair in a field refuses its batch and leaves no trace."""
    store = disk.store()
    for bad in (chunk(text="\ud800"), chunk(page=2**63), chunk(metadata={"k": "\ud800"}), chunk(2**64)):
        with pytest.raises(InvalidRequestError):
            store.ingest([chunk(5), bad])
    assert store.view.count() == 0
    store.ingest([chunk(5)])
    assert store.view.count() == len(disk.cold()) == 1


def test_delete_by_filter_and_ids(disk: Any, chunk: Build) -> None:
    """A delete takes those that pass the filter and those named, and counts what was there."""
    store = disk.store()
    ids = store.ingest([chunk(i, metadata={"odd": bool(i % 2)}) for i in range(6)]).ids
    assert store.delete([], Filter((Equals("odd", True),))).deleted == 3
    assert store.delete([ids[0], ids[1], 12345], None).deleted == 1
    assert [c.id for c in store.view.page(0, 10)] == [ids[2], ids[4]]


def test_an_empty_filter_deletes_nothing(disk: Any, chunk: Build) -> None:
    """A filter without conditions never means all chunks."""
    store = disk.store()
    store.ingest([chunk()])
    with pytest.raises(InvalidRequestError):
        store.delete([], Filter())
    assert store.view.count() == 1


def test_a_write_without_effect_is_no_commit(disk: Any) -> None:
    """An empty ingest and a delete of nothing answer the present commit."""
    store = disk.store()
    seq = store.seq
    assert store.ingest([]).seq == store.delete([1], None).seq == store.seq == seq


def test_the_vector_rule_alone() -> None:
    """Nothing given writes nothing; a further one is added; an equal one is not; a different one takes all along."""
    a, b, c = (np.array([x], np.float32) for x in (1, 2, 3))
    assert vectors_to_write({}, {"s": a}) == (False, {})
    assert vectors_to_write({"t": b}, {"s": a}) == (False, {"t": b})
    assert vectors_to_write({"s": a.copy()}, {"s": a}) == (False, {})
    assert vectors_to_write({"s": c}, {"s": a, "t": b}) == (True, {"s": c, "t": b})
    assert vectors_to_write({"t": b}, {"s": a}, {"t"}) == (True, {"s": a, "t": b}), "its follower may embed it now"


def templated(disk: Any, store: Any) -> None:
    """Add a space that embeds titles too, beside one without an endpoint and one with."""
    config = SpaceConfig(4, "m", "http://endpoint", template="{title}: {text}")
    store.change(AddSpace(Space("titled-id", "titled", config, "active", 0.0)))
    store.change(AddSpace(Space("plain-id", "plain", SpaceConfig(4, "m", "http://endpoint"), "active", 0.0)))


def test_metadata_that_a_template_reads_makes_a_new_version(disk: Any, chunk: Any, vector: Any) -> None:
    """The vid changes, as what is embedded does; the vectors of all other spaces are carried over."""
    store = disk.store()
    templated(disk, store)
    given, computed, titled = vector(1), vector(2), vector(3)
    store.ingest([chunk(0, metadata={"title": "One"}, vectors={"one-id": given})])
    (before,) = store.view.page(0, 10)
    vectors = {name: disk.root.space_vectors(disk.uuid, name, 4) for name in ("one-id", "plain-id", "titled-id")}
    vectors["plain-id"].append([before.vid], computed[None])
    vectors["titled-id"].append([before.vid], titled[None])
    store.ingest([chunk(0, metadata={"title": "Two"})])
    (after,) = store.view.page(0, 10)
    assert after.id == before.id
    assert after.vid != before.vid
    found, rows = vectors["one-id"].get([after.vid])
    np.testing.assert_array_equal(rows, given[None])
    found, rows = vectors["plain-id"].get([after.vid])
    np.testing.assert_array_equal(rows, computed[None])
    found, rows = vectors["titled-id"].get([after.vid])
    assert len(found) == 0, "it is to be embedded anew"


def test_other_metadata_keeps_the_version(disk: Any, chunk: Any) -> None:
    """What no template reads changes no vid; nor does a template where the text has changed anyway do harm."""
    store = disk.store()
    templated(disk, store)
    store.ingest([chunk(0, metadata={"title": "One", "n": 1})])
    (before,) = store.view.page(0, 10)
    store.ingest([chunk(0, metadata={"title": "One", "n": 2})])
    (after,) = store.view.page(0, 10)
    assert (after.vid, after.metadata["n"]) == (before.vid, 2)
    assert store.view.texts_to_embed([after.vid], store.state.by_name("titled").config) == {after.vid: "One: text 0"}
    assert store.view.texts_to_embed([after.vid], store.state.by_name("plain").config) == {after.vid: "text 0"}


def test_a_callers_vector_wins_over_what_is_carried(disk: Any, chunk: Any, vector: Any) -> None:
    """With new metadata and a new vector in one call the new vector counts."""
    store = disk.store()
    templated(disk, store)
    store.ingest([chunk(0, metadata={"title": "One"}, vectors={"one-id": vector(1)})])
    store.ingest([chunk(0, metadata={"title": "Two"}, vectors={"one-id": vector(2)})])
    (after,) = store.view.page(0, 10)
    _, rows = disk.root.space_vectors(disk.uuid, "one-id", 4).get([after.vid])
    np.testing.assert_array_equal(rows, vector(2)[None])
