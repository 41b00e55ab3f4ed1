"""The store's filters mean exactly what the domain's do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compass.domain.chunk import ChunkInput
from compass.domain.filters import BUILTIN_FIELDS, Equals, Filter
from compass.domain.space import Space, SpaceConfig
from compass.storage.log.writer import CollectionStore
from compass.storage.objects import LocalObjects
from compass.storage.root import Root

KEYS = ["a", "b", "page", "metadata.a", "metadata.page", "metadata.metadata.a", "", "metadata.", 'q"uo.te', "$x[0]"]
SCALARS = st.one_of(
    st.sampled_from(
        [0, 1, 2, 3, True, False, 0.0, -0.0, 1.0, 2.5, 3.0, "", "0", "1", "3", "true", "x", "ü", "a\0b"]
        + [2**53, 2**53 + 1, float(2**53), 2**63 - 1, 2**63, 2**64, float(2**63), 10**400, 1e300, float("inf")]
    ),
    st.integers(-3, 3),
    st.text(max_size=2).filter(lambda s: s.isprintable()),
)
VALUES = st.one_of(SCALARS, st.lists(st.sampled_from(["x", "y", "3", ""]), max_size=3))
CHUNKS = st.builds(
    ChunkInput,
    file_id=st.sampled_from(["f", "3", "1"]),
    chunk_index=st.integers(0, 20),
    text=st.just("t"),
    metadata=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4),
    doc_type=st.sampled_from(["chunk", "segment", "1"]),
    page=st.none() | st.integers(0, 3),
    parent_id=st.none() | st.integers(0, 3),
    group_id=st.none() | st.sampled_from(["x", "3"]),
)
FIELDS = st.sampled_from([*KEYS, *BUILTIN_FIELDS, *(f"metadata.{k}" for k in KEYS), "metadata.id", "nothing"])
FILTERS = st.lists(st.builds(Equals, FIELDS, SCALARS), max_size=3).map(lambda c: Filter(tuple(c)))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> CollectionStore:
    folder: Path = tmp_path_factory.mktemp("filters")
    root = Root(LocalObjects(folder), folder / "cache")
    space = Space("s", "s", SpaceConfig(dims=2, model="m"), "active", 0.0)
    return root.open(root.create("c", [space], "s").uuid)


@settings(max_examples=120)
@given(
    chunks=st.lists(CHUNKS, max_size=12), wheres=st.lists(FILTERS, min_size=8, max_size=25), pick=st.integers(0, 99)
)
def test_the_view_finds_what_the_filter_matches(
    store: CollectionStore, chunks: list[ChunkInput], wheres: list[Filter], pick: int
) -> None:
    """For any chunks, updates and conditions, the view's answer is the set for which `Filter.matches` holds."""
    store.delete([chunk.id for chunk in store.view.page(0, 1000)], None)
    store.ingest(chunks)
    stored = store.view.page(0, 1000)
    for chunk in stored[:5]:  # conditions that something is likely to pass
        for key, value in chunk.metadata.items():
            wheres += [Filter((Equals(name, v),)) for name in (key, f"metadata.{key}") for v in scalars(value)]
        wheres.append(Filter((Equals("id", float(chunk.id)), Equals("file_id", chunk.file_id))))
    for where in wheres:
        assert store.view.matching(where).tolist() == sorted(c.vid for c in stored if where.matches(c)), where
    gone = wheres[pick % len(wheres)]
    if gone:
        assert store.delete([], gone).deleted == sum(map(gone.matches, stored))
        assert not len(store.view.matching(gone))


def scalars(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
