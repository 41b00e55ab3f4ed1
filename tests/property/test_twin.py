"""Whoever swapped and rolled back has, in both spaces, what a twin has that never did.

The same writes go to two collections. One swaps its default to and fro meanwhile, has its endpoints fail and its
indexes restarted; the other does nothing of the sort. In the end both answer alike.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from world import DIMS, NEW, OLD, World, hurried

from compass.api import responses
from compass.domain.chunk import ChunkInput, IntVector
from compass.domain.filters import parse_filter
from compass.domain.routing.swap import SwapOrder
from compass.domain.search.query import Query
from compass.domain.space import SpaceConfig
from compass.embedding.builtin import HashingModel
from compass.errors import NotFoundError, SpaceLagsError
from compass.index.service import SpaceIndex

WORDS = ["ash", "beech", "cedar", "elm", "fir", "holly", "larch", "maple", "oak", "pine", "rowan", "yew"]
QUERIES = [*WORDS, "ash oak", "pine fir larch", "yew maple"]
KINDS = ("leaf", "needle")
SPACES: dict[str, SpaceConfig] = {"old": OLD, "new": NEW}
LEVEL_S = 60.0


@dataclass(frozen=True)
class Write:
    """A chunk under one of a few keys: new, or an update of its text, its metadata or its vectors."""

    key: int
    text: str
    kind: str
    sent: tuple[str, ...] = ()  # spaces that the caller gives a vector of its own for


@dataclass(frozen=True)
class Delete:
    """By key, or every chunk of a kind."""

    key: int | None
    kind: str = ""


@dataclass(frozen=True)
class Happening:
    """What only one of the twins goes through: what happens, to which space."""

    what: str
    space: str = ""


Step = list[Write] | Delete | Happening

texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(" ".join)
sent = st.sampled_from([(), (), (), ("old",), ("new",), ("old", "new")])
writes = st.lists(st.builds(Write, st.integers(0, 15), texts, st.sampled_from(KINDS), sent), min_size=1, max_size=4)
deletes = st.builds(Delete, st.integers(0, 15)) | st.builds(Delete, st.none(), st.sampled_from(KINDS))
spaces = st.sampled_from(sorted(SPACES))
happenings = st.builds(Happening, st.sampled_from(["swap", "force", "down", "up", "restart"]), spaces)
steps = st.lists(st.one_of(writes, writes, deletes, happenings, st.just(Happening("rollback"))), max_size=25)


@dataclass
class Twin:
    """One of the two: a service of its own with a collection of two spaces."""

    world: World
    ids: dict[int, int] = field(default_factory=dict)  # of the keys written

    async def write(self, batch: list[Write]) -> None:
        chunks = [ChunkInput("f", w.key, w.text, {"kind": w.kind}, vectors=self._vectors(w)) for w in batch]
        receipt = await self._collection().ingest(chunks)
        self.ids.update(zip((w.key for w in batch), receipt.ids, strict=True))

    async def delete(self, step: Delete) -> None:
        if step.key is None:
            await self._collection().delete([], parse_filter({"kind": step.kind}))
        elif step.key in self.ids:
            await self._collection().delete([self.ids[step.key]], None)

    async def happen(self, step: Happening) -> None:
        router, cluster = self.world.router, self.world.cluster
        if step.what in ("swap", "force"):
            with suppress(SpaceLagsError):
                await router.swap("docs", SwapOrder(step.space, force=step.what == "force", wait_s=0.1))
        elif step.what == "rollback":
            with suppress(SpaceLagsError, NotFoundError):
                await router.swap("docs", SwapOrder(None, rollback=True, wait_s=0.1))
        elif step.what == "restart":
            space = self.world.space(step.space)
            await cluster.stop_index(space.id)
            cluster.index(self.world.route().uuid, space)
        else:
            cluster.models[SPACES[step.space].model].down = step.what == "down"

    async def settle(self, level_s: float) -> None:
        """All endpoints are there again, both spaces are level, and the default is the first one again."""
        for model in self.world.cluster.models.values():
            model.down = False
        seq = (await self._collection().stats()).seq
        for space in self.world.route().spaces.values():
            lag = await self.world.cluster.index(self.world.route().uuid, space).follow(seq, level_s)
            assert lag == 0, f"{space.name} lacks {lag} chunks"
        await self.world.router.swap("docs", SwapOrder("old"))

    async def answers(self) -> dict[str, Any]:
        """What every query finds in the default and in each space, by whatever way there is to ask."""
        found = {}
        for name in (None, *SPACES):
            async with self.world.tables[1].route("docs", name) as routed:
                index = self.world.cluster.indexes[routed.space.id]
                model = HashingModel(routed.space.config.model, DIMS)
                for text, vector in zip(QUERIES, model.embed(QUERIES), strict=True):
                    for label, query in _ways(vector).items():
                        hits = (await index.search([query]))[0]
                        found[f"{name} {text} {label}"] = hits
        return found

    def _vectors(self, write: Write) -> dict[str, Any]:
        said = f"{write.text} {write.key}"  # not what the space's model says of it
        by_name = {name: HashingModel("callers", DIMS).embed([f"{said} {name}"])[0] for name in write.sent}
        return {self.world.space(name).id: vector for name, vector in by_name.items()}

    def _collection(self) -> Any:
        return self.world.cluster.collection(self.world.route().uuid)


def _ways(vector: Any) -> dict[str, Query]:
    leaves = parse_filter({"kind": "leaf"})
    return {
        "all": Query(vector, top_k=100, include_vectors=True),
        "best": Query(vector, top_k=3),
        "exact": Query(vector, top_k=100, exact=True),
        "filtered": Query(vector, top_k=100, where=leaves),
    }


def _agree(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Both found the same: chunks with their texts and metadata, scores, vectors."""
    assert one.keys() == other.keys()
    for asked, hits in one.items():
        twins = other[asked]
        scores = [[hit.score for hit in found] for found in (hits, twins)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-5), asked
        if asked.endswith("best"):  # chunks that lie alike far may change places at the end
            continue
        seen = [{h.chunk.id: h for h in found} for found in (hits, twins)]
        shown = [{i: responses.chunk(h.chunk) for i, h in found.items()} for found in seen]
        assert shown[0] == shown[1], asked
        for chunk_id, hit in seen[0].items():
            if hit.vector is not None:
                np.testing.assert_allclose(hit.vector, seen[1][chunk_id].vector, atol=1e-6, err_msg=asked)


async def play(story: list[Step], level_s: float = LEVEL_S, plant: Callable[[World], None] = lambda w: None) -> int:
    """Let both live through the story, and compare them, or AssertionError; how often the one has swapped."""
    with tempfile.TemporaryDirectory() as folder:
        async with hurried(Path(folder) / "one") as one, hurried(Path(folder) / "two") as two:
            swapping, staying = Twin(one), Twin(two)
            for twin in (swapping, staying):
                await twin.world.create(new=NEW)
            plant(one)
            for step in story:
                if isinstance(step, Happening):
                    await swapping.happen(step)
                    continue
                for twin in (swapping, staying):
                    await (twin.delete(step) if isinstance(step, Delete) else twin.write(step))
                assert swapping.ids == staying.ids
            for twin in (swapping, staying):
                await twin.settle(level_s)
            assert two.route().epoch == 1
            _agree(await swapping.answers(), await staying.answers())
            return int(one.route().epoch) - 1


@settings(max_examples=25)
@given(steps)
def test_a_twin_that_never_swapped_answers_alike(story: list[Step]) -> None:
    """After any writes among any swaps, rollbacks, outages and restarts both spaces answer as if there were none."""
    asyncio.run(play(story))


@pytest.mark.long
@settings(max_examples=250)
@given(steps)
def test_a_twin_that_never_swapped_answers_alike_at_length(story: list[Step]) -> None:
    """The same, with many more stories."""
    asyncio.run(play(story))


def test_a_long_story_of_many_writes() -> None:
    """A few hundred writes between swaps to and fro leave the twins alike."""
    rng, story = random.Random(0), list[Step]()
    for _ in range(60):
        story.append([_random_write(rng) for _ in range(4)])
        others: list[Step] = [Delete(rng.randrange(60)), Happening("swap", "new"), Happening("rollback")]
        story.append(rng.choice(others))
    assert asyncio.run(play(story)) > 10


def _random_write(rng: random.Random) -> Write:
    return Write(rng.randrange(60), " ".join(rng.choices(WORDS, k=3)), rng.choice(KINDS))


# ---- the comparison finds what goes wrong

STORY: list[Step] = [
    [Write(0, "ash oak", "leaf"), Write(1, "pine", "needle")],
    Happening("swap", "new"),
    [Write(0, "beech", "leaf"), Write(2, "fir larch", "needle")],
    [Write(1, "pine", "leaf")],
    Happening("rollback"),
    [Write(3, "maple", "leaf")],
    Delete(2),
]


def only_the_default_follows(world: World) -> None:
    """A space that is not the default embeds nothing."""

    def owned(index: SpaceIndex, missing: Callable[[], IntVector]) -> IntVector:
        is_default = world.route().default == index.follower.space.name
        return missing() if is_default else np.empty(0, np.int64)

    for index in world.cluster.indexes.values():
        index.backfill.owned = partial(owned, index, index.backfill.owned)  # type: ignore[method-assign]


def one_embedder_for_both(world: World) -> None:
    """After a swap every space is embedded by the model of the default."""

    class Shared(dict[str, Any]):
        def __getitem__(self, model: str) -> Any:
            return super().__getitem__(SPACES[world.route().default].model)

    world.cluster.models = Shared(world.cluster.models)


def updates_keep_their_vector(world: World) -> None:
    """A text that has changed keeps the vector of the first one."""
    for index in world.cluster.indexes.values():
        first: dict[int, str] = {}
        view, texts_to_embed = index._view, index._view.texts_to_embed

        def stale(vids: Any, config: Any, of: Any = texts_to_embed, v: Any = view, seen: Any = first) -> Any:
            keys = {vid: chunk.chunk_index for vid, chunk in v.by_vids(vids).items()}
            return {vid: seen.setdefault(keys[vid], text) for vid, text in of(vids, config).items()}

        view.texts_to_embed = stale  # type: ignore[method-assign]


@pytest.mark.parametrize("fault", [None, only_the_default_follows, one_embedder_for_both, updates_keep_their_vector])
def test_each_planted_fault_is_found(fault: Callable[[World], None] | None) -> None:
    """One short story is enough to tell a service with a fault from its twin, and none is found where none is."""
    if fault is None:
        asyncio.run(play(STORY))
        return
    with pytest.raises(AssertionError):
        asyncio.run(play(STORY, 0.5, fault))
