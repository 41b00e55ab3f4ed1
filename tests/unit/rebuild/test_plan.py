"""A plan holds exactly the live chunks that have a text and no vector, in small pieces."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rebuild_world import World

from compass.domain.chunk import has_text
from compass.rebuild.plan import MOST_ROWS, PartRows, plan, read_plan
from compass.storage.snapshot.parts import PartRef, read_part

NONE = np.empty(0, np.int64)
VIDS = st.sets(st.integers(0, 60))


def rows_of(vids: list[int], blank: set[int]) -> PartRows:
    return PartRows(
        PartRef("p", None, len(vids)), np.array(vids, np.int64), np.array([v in blank for v in vids], bool)
    )


@given(VIDS, VIDS, VIDS, VIDS, st.integers(0, 60))
def test_plans_what_is_live_has_text_and_no_vector(
    live: set[int], blank: set[int], have: set[int], skip: set[int], cut: int
) -> None:
    """The rows of all descriptors are the missing ones, each once, and the counts add up to what is live."""
    halves = [sorted(v for v in live if v < cut), sorted((v for v in live if v >= cut), reverse=True)]
    parts = [rows_of(half, blank) for half in halves]
    found = plan(parts, np.array(sorted(have), np.int64), np.array(sorted(skip), np.int64))
    by_rows = {id(p.part): p.vids for p in parts}
    planned = [v for d in found.descriptors for v in by_rows[id(d.part)][d.rows].tolist()]
    assert sorted(planned) == sorted(live - blank - have - skip)
    assert all(d.count > 0 and d.rows.dtype == np.int32 for d in found.descriptors)
    assert found.missing + found.had + found.blank + found.skipped == found.live == len(live)
    assert found.had == len((live - blank) & have)
    assert found.newest == max(live, default=-1)


async def test_reads_a_snapshot_as_the_stage_will(world: World) -> None:
    """Offsets count the rows that the mask leaves, so that a stage finds the very chunks that were planned."""
    texts = ["one", "", "  \n\x1c", "\u3000", "zwölf", "日本語", "seven"]
    world.ingest(texts)
    world.store.checkpoint()
    world.store.delete([world.store.view.page(0, 10)[0].id], None)
    snapshot = world.store.checkpoint()
    found = read_plan(world.objects, snapshot, NONE, NONE)
    planned = [
        text
        for d in found.descriptors
        for text in read_part(world.objects, d.part, ["text"])["text"].take(d.rows).to_pylist()
    ]
    assert sorted(planned) == sorted(t for t in texts[1:] if has_text(t))
    assert (found.live, found.blank) == (6, 3)


@pytest.mark.parametrize(
    ("missing", "largest", "pieces"),
    [(511, 511, 1), (1_025, 512, 3), (32_000, 1_000, 32), (100_000, MOST_ROWS, 49)],
)
def test_pieces_suit_the_size_of_the_rebuild(missing: int, largest: int, pieces: int) -> None:
    """A small rebuild is cut finer, so that its progress moves; no descriptor is of more than 2,048 rows or 10 kB."""
    found = plan([rows_of(list(range(missing)), set())], NONE, NONE)
    assert max(d.count for d in found.descriptors) == largest
    assert len(found.descriptors) == pieces
    assert sum(d.count for d in found.descriptors) == missing
    assert len(pickle.dumps(found.descriptors[0])) < 10_000
