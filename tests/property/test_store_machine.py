"""The store as a state machine beside a plain dict."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from compass.domain.chunk import ChunkInput, FloatVector
from compass.domain.collection import AddSpace, DropSpace, SwapDefault
from compass.domain.filters import Equals, Filter
from compass.domain.receipts import Ingested
from compass.domain.space import Space, SpaceConfig
from compass.errors import DefaultSpaceError
from compass.storage.log.writer import CollectionStore
from compass.storage.objects import LocalObjects
from compass.storage.root import Root
from compass.storage.snapshot.parts import read_part

DIMS = 3
KEYS = st.tuples(st.sampled_from("fg"), st.integers(0, 4))
TEXTS = st.sampled_from(["a", "b", "", "ü"])
METADATA = st.dictionaries(st.sampled_from("kl"), st.sampled_from([1, True, "x", ["x", "y"]]), max_size=2)


def vector(seed: int) -> FloatVector:
    return np.random.default_rng(seed).normal(size=DIMS).astype(np.float32)


class StoreMachine(RuleBasedStateMachine):
    """Writes go to the store and to the dict; after every step both say the same."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="compass-machine-"))
        self.root = Root(LocalObjects(self.folder / "root"), self.folder / "node-0")
        self.spaces: list[Space] = []
        self.next_space = self.node = 0
        first = self.new_space()
        self.uuid = self.root.create("c", [first], first.id).uuid
        self.default, self.epoch = first.id, 1
        self.chunks: dict[tuple[str, int], dict[str, Any]] = {}
        self.ids_ever: set[int] = set()
        self.vids_ever: set[int] = set()
        self.store = self.open()
        self.attempts: list[tuple[list[ChunkInput], Ingested]] = []
        self.seen = self.store.seq, self.store.view.live_vids()

    def new_space(self) -> Space:
        self.next_space += 1
        space = Space(f"id-{self.next_space}", f"s{self.next_space}", SpaceConfig(DIMS, "m"), "active", 0.0)
        self.spaces.append(space)
        return space

    def open(self) -> CollectionStore:
        cache = self.folder / f"node-{self.node}"
        return CollectionStore(self.root.objects, self.uuid, cache, grace_s=0.0, lock_wait_s=0.0)

    # -- writes

    @rule(
        batch=st.lists(
            st.tuples(KEYS, TEXTS, METADATA, st.dictionaries(st.integers(0, 3), st.integers(0, 2))), max_size=5
        )
    )
    def ingest(self, batch: list[Any]) -> None:
        chunks = []
        for (file_id, index), text, metadata, given in batch:
            vectors = {self.spaces[s].id: vector(seed) for s, seed in given.items() if s < len(self.spaces)}
            chunks.append(ChunkInput(file_id, index, text, metadata, vectors=vectors))
        receipt = self.store.ingest(chunks, str(len(self.attempts)))
        self.attempts.append((chunks, receipt))
        ids = receipt.ids
        for chunk in {(c.file_id, c.chunk_index): c for c in chunks}.values():
            self.write(chunk, ids[max(i for i, c in enumerate(chunks) if key_of(c) == key_of(chunk))])
        assert [self.chunks[key_of(c)]["id"] for c in chunks] == ids

    @precondition(lambda self: self.attempts)
    @rule(pick=st.integers(0, 99))
    def repeat_an_earlier_ingest(self, pick: int) -> None:
        """Sent again under its attempt's name, however long ago: nothing changes, and the answer is the same."""
        attempt = pick % len(self.attempts)
        chunks, receipt = self.attempts[attempt]
        if chunks:
            assert self.store.ingest(chunks, str(attempt)) == receipt

    @precondition(lambda self: self.chunks)
    @rule(pick=st.integers(0, 99), metadata=METADATA)
    def update_metadata(self, pick: int, metadata: dict[str, Any]) -> None:
        key = sorted(self.chunks)[pick % len(self.chunks)]
        chunk = ChunkInput(*key, self.chunks[key]["text"], metadata)
        self.write(chunk, self.store.ingest([chunk]).ids[0])

    def write(self, chunk: ChunkInput, chunk_id: int) -> None:
        """The rules of identity, in the plainest words."""
        old = self.chunks.get(key_of(chunk))
        given = dict(chunk.vectors)
        if old is None:
            assert chunk_id not in self.ids_ever
            new_vid, vectors = True, given
        else:
            assert chunk_id == old["id"]
            if chunk.text != old["text"]:
                new_vid, vectors = True, given
            else:
                there = old["vectors"]
                new_vid = any(s in there and not np.array_equal(there[s], v) for s, v in given.items())
                vectors = {**there, **given}
        self.ids_ever.add(chunk_id)
        stored = self.store.view.get(chunk_id)
        assert stored is not None
        if new_vid:
            assert stored.vid > (old["vid"] if old else 0)
        else:
            assert old is not None
            assert stored.vid == old["vid"]
        self.chunks[key_of(chunk)] = {
            "id": chunk_id,
            "vid": stored.vid,
            "text": chunk.text,
            "metadata": dict(chunk.metadata),
            "vectors": vectors,
        }

    @rule(keys=st.sets(KEYS, max_size=3))
    def delete(self, keys: set[tuple[str, int]]) -> None:
        ids = [self.chunks[key]["id"] for key in keys if key in self.chunks]
        assert self.store.delete([*ids, 10**9], None).deleted == len(ids)
        for key in keys:
            self.chunks.pop(key, None)

    @rule(value=st.sampled_from([1, True, "x"]))
    def delete_by_filter(self, value: Any) -> None:
        where = Filter((Equals("k", value),))
        gone = [c for c in self.store.view.page(0, 1000) if where.matches(c)]
        assert self.store.delete([], where).deleted == len(gone)
        for chunk in gone:
            del self.chunks[chunk.file_id, chunk.chunk_index]

    # -- spaces

    @precondition(lambda self: len(self.spaces) < 4)
    @rule()
    def add_space(self) -> None:
        self.store.change(AddSpace(self.new_space()))

    @rule(pick=st.integers(0, 9))
    def drop_space(self, pick: int) -> None:
        space = self.spaces[pick % len(self.spaces)]
        try:
            self.store.change(DropSpace(space.id))
        except DefaultSpaceError:
            assert space.id == self.default
            return
        assert space.id != self.default
        assert self.root.objects.list(f"{self.uuid}/spaces/{space.id}") == []
        self.spaces.remove(space)
        for chunk in self.chunks.values():
            chunk["vectors"].pop(space.id, None)

    @rule(pick=st.integers(0, 9))
    def swap(self, pick: int) -> None:
        target = self.spaces[pick % len(self.spaces)].id
        self.epoch += target != self.default
        self.store.change(SwapDefault(self.default, self.store.state.epoch, target))
        self.default = target

    # -- what must change nothing

    @rule()
    def checkpoint(self) -> None:
        snapshot = self.store.checkpoint()
        vids = [v for ref in snapshot.parts for v in read_part(self.root.objects, ref)["vid"].to_pylist()]
        assert sorted(vids) == sorted(c["vid"] for c in self.chunks.values())

    @rule()
    def compact(self) -> None:
        self.store.compact()

    @rule(cold=st.booleans())
    def restart(self, cold: bool) -> None:
        self.store.close()
        if cold:
            shutil.rmtree(self.folder / f"node-{self.node}")
        self.store = self.open()

    @rule()
    def take_over(self) -> None:
        """Another node opens the collection; the old writer is left as it is."""
        self.node += 1
        self.store = self.open()

    @rule(pick=st.integers(0, 9), seed=st.integers(0, 2), late=st.booleans())
    def a_follower_writes(self, pick: int, seed: int, late: bool) -> None:
        """A follower appends what a space lacks; a late one also vids that are dead by now."""
        space = self.spaces[pick % len(self.spaces)].id
        lacking = [c for c in self.chunks.values() if space not in c["vectors"]]
        vids = [c["vid"] for c in lacking]
        if late:
            vids += sorted(self.vids_ever - {c["vid"] for c in self.chunks.values()})
        if vids:
            rows = np.tile(vector(seed), (len(vids), 1))
            self.root.space_vectors(self.uuid, space, DIMS).append(vids, rows)
        for chunk in lacking:
            chunk["vectors"][space] = vector(seed)

    # -- what must hold after every step

    @invariant()
    def the_same_chunks(self) -> None:
        if not hasattr(self, "store"):
            return
        view = self.store.view
        said = {(c.file_id, c.chunk_index): (c.id, c.vid, c.text, c.metadata) for c in view.page(0, 1000)}
        assert said == {k: (c["id"], c["vid"], c["text"], c["metadata"]) for k, c in self.chunks.items()}
        assert view.count() == len(self.chunks)
        vids = {c["vid"]: c["text"] for c in self.chunks.values()}
        assert view.live_vids().tolist() == sorted(vids)
        assert view.embeddable_vids().tolist() == sorted(v for v, text in vids.items() if text)
        self.vids_ever |= set(vids)

    @invariant()
    def the_same_vectors(self) -> None:
        if not hasattr(self, "store"):
            return
        for space in self.spaces:
            vectors = self.root.space_vectors(self.uuid, space.id, DIMS)
            want = {c["vid"]: c["vectors"][space.id] for c in self.chunks.values() if space.id in c["vectors"]}
            found, rows = vectors.get([c["vid"] for c in self.chunks.values()])
            assert found.tolist() == sorted(want)
            assert all(np.array_equal(want[vid], row) for vid, row in zip(found.tolist(), rows, strict=True))

    @invariant()
    def the_same_state(self) -> None:
        if not hasattr(self, "store"):
            return
        state = self.store.view.state()
        assert state == self.store.state
        assert (list(state.spaces), state.default, state.epoch) == (
            [s.id for s in self.spaces],
            self.default,
            self.epoch,
        )

    @invariant()
    def the_changes_add_up(self) -> None:
        if not hasattr(self, "store"):
            return
        since, before = self.seen
        changes, now = self.store.view.changes(since), self.store.view.live_vids()
        self.seen = self.store.seq, now
        if changes is not None:
            assert changes.seq == self.store.seq
            assert np.setdiff1d(now, before).tolist() == changes.born.tolist()
            assert np.setdiff1d(before, now).tolist() == changes.died.tolist()

    def teardown(self) -> None:
        if not hasattr(self, "store"):
            return
        warm = self.store.view.page(0, 1000)
        cold = Root(self.root.objects, self.folder / "cold").view(self.uuid)
        cold.refresh(self.store.seq)
        assert cold.page(0, 1000) == warm
        self.store.close()
        shutil.rmtree(self.folder)


def key_of(chunk: ChunkInput) -> tuple[str, int]:
    return chunk.file_id, chunk.chunk_index


def test_the_store_does_what_a_dict_does() -> None:
    """After any writes, swaps, compactions and crashes it holds what a plain model of its rules holds."""
    run_state_machine_as_test(StoreMachine, settings=settings(max_examples=25, stateful_step_count=30))


@pytest.mark.long
def test_the_store_does_what_a_dict_does_at_length() -> None:
    """The same, with many more and longer stories."""
    run_state_machine_as_test(StoreMachine, settings=settings(max_examples=600, stateful_step_count=50))
