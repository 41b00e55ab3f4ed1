"""A second follower, in another process, answers as the owner does, and leaves everything as it is."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from followed import DIMS, LEVEL_S, FollowedSpace, embedded
from second_follower import Known, SecondFollower, second_follower

from compass.domain.chunk import ChunkInput
from compass.domain.filters import Equals, Filter
from compass.domain.search.query import Hit, Query
from compass.index.service import SpaceIndex

WORDS = ["ash", "beech", "cedar", "elm", "fir", "holly", "larch", "maple", "oak", "pine", "rowan", "yew"]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[FollowedSpace]:
    made = FollowedSpace(tmp_path)
    yield made
    await made.close()


def queries() -> list[Query]:
    """Each word ways for in several ways."""
    ways: list[Query] = []
    for vector in embedded(*WORDS):
        ways.append(Query(vector, top_k=100, include_vectors=True))
        ways.append(Query(vector, top_k=3))
        ways.append(Query(vector, top_k=100, exact=True))
        ways.append(Query(vector, top_k=100, where=Filter((Equals("kind", "tree"),))))
    return ways


def listing(folder: Path) -> dict[str, tuple[int, str]]:
    """Every file below a folder: when it was changed, and a hash of what is in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in files
    }


def assert_alike(ours: list[list[Hit]], theirs: list[list[Hit]]) -> None:
    """The same chunks with the same scores and vectors, in the same order."""
    assert len(ours) == len(theirs)
    for expected, seen in zip(ours, theirs, strict=True):
        assert [hit.chunk for hit in seen] == [hit.chunk for hit in expected]
        assert [hit.score for hit in seen] == pytest.approx([hit.score for hit in expected], abs=1e-6)
        for one, other in zip(expected, seen, strict=True):
            assert (one.vector is None) == (other.vector is None)
            if one.vector is not None and other.vector is not None:
                np.testing.assert_array_equal(one.vector, other.vector)


async def assert_level(world: FollowedSpace, owner: SpaceIndex, second: SecondFollower) -> Known:
    """Both know the same of the last commit; the second has sent no text and changed no file."""
    seq = world.store.seq
    assert await owner.follow(seq, LEVEL_S) == 0
    hits = await owner.search(queries())
    before, calls = listing(world.folder / "data"), world.model.calls
    known = await second.known(seq, queries())
    assert known.lag == 0
    assert_alike(hits, known.hits)
    assert known.vids == owner.follower.vids().tolist()
    assert known.refused == dict(owner.follower.refused)
    assert listing(world.folder / "data") == before
    assert world.model.calls == calls
    return known


async def play(world: FollowedSpace, owner: SpaceIndex, second: SecondFollower) -> None:
    """Write, update, delete, quarantine and merge, and compare after each."""
    trees = [ChunkInput("trees", i, word, {"kind": "tree"}) for i, word in enumerate(WORDS)]
    ids = world.store.ingest(trees).ids
    await assert_level(world, owner, second)
    world.store.ingest([ChunkInput("trees", i, f"{WORDS[i]} again", {"kind": "tree"}) for i in range(4)])
    world.store.ingest([ChunkInput("trees", 4, WORDS[4], {"kind": "shrub"})])
    world.feed("a caller's own", embedded("yew")[0])
    await assert_level(world, owner, second)
    world.store.delete(ids[6:8], None)
    world.ingest("poison", "oak and ash", file_id="more")
    assert len((await assert_level(world, owner, second)).refused) == 1
    world.store.compact()
    await assert_level(world, owner, second)
    world.ingest("cured", "oak and ash", file_id="more")
    world.store.delete([], Filter((Equals("kind", "shrub"),)))
    assert (await assert_level(world, owner, second)).refused == {}


@pytest.mark.parametrize("cache", ["the same node", "another node"])
async def test_a_second_follower_answers_alike_and_writes_nothing(world: FollowedSpace, cache: str) -> None:
    """Beside its owner, who embeds, it finds the same with the same scores after every kind of change."""
    owner = world.begin()
    folder = world.root.cache if cache == "the same node" else world.folder / "another-cache"
    with second_follower(world.folder / "data", folder, world.uuid, "s-1", DIMS) as second:
        await play(world, owner, second)


async def test_a_follower_that_comes_late_begins_with_the_saved_graph(world: FollowedSpace) -> None:
    """The graph that the owner has saved is enough to begin with, and what was written since is taken in."""
    owner = world.begin()
    await owner.follow(world.ingest(*WORDS), LEVEL_S)
    search = await owner.follower.ready()
    while search.settle(len(WORDS)):
        pass
    await owner.close()
    owner = world.open()
    world.ingest("beech and elm", "poison", file_id="more")
    with second_follower(world.folder / "data", world.folder / "another-cache", world.uuid, "s-1", DIMS) as second:
        assert (await assert_level(world, owner, second)).saved_rows == len(WORDS)
        await play(world, owner, second)
