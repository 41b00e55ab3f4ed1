"""A collection's service obeys the newest router alone, and says of a change what the log says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from compass.domain.chunk import ChunkInput
from compass.domain.collection import CollectionStats, SwapDefault
from compass.domain.space import Space, SpaceConfig
from compass.errors import EpochMismatchError, TakenOverError, UnavailableError
from compass.storage.objects import LocalObjects
from compass.storage.root import Root
from compass.storage.service import CollectionService

SWAP = SwapDefault("old-1", 1, "new-1")


class BrokenObjects(LocalObjects):
    """A store whose creates can fail before or after they happened, and whose reads then fail as well."""

    fails: str | None = None

    def create(self, key: str, data: Any) -> bool:
        if self.fails == "before":
            raise OSError("the answer is lost")
        done = super().create(key, data)
        if self.fails == "after":
            raise OSError("the answer is lost")
        return done

    def read(self, key: str) -> Any:
        if self.fails and "/log/" in key:
            raise OSError("the store does not answer")
        return super().read(key)


class World:
    def __init__(self, folder: Path) -> None:
        self.objects = BrokenObjects(folder / "data")
        self.root = Root(self.objects, folder / "cache")
        spaces = [Space(f"{n}-1", n, SpaceConfig(4, "m"), "active", 0.0) for n in ("old", "new")]
        self.uuid = self.root.create("docs", spaces, "old-1", {}).uuid
        self.store = self.root.open(self.uuid, grace_s=0.0)
        self.service = CollectionService(self.store, 0.02, 1)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    yield made
    made.objects.fails = None
    await made.service.close()


async def test_writes_and_reads(world: World) -> None:
    """What was written is counted, read by id and by page, and deleted."""
    written = await world.service.ingest([ChunkInput("f", i, f"text {i}") for i in range(3)])
    assert await world.service.stats() == CollectionStats(3, written.seq)
    assert [c.text for c in await world.service.page(written.ids[0], 10)] == ["text 1", "text 2"]
    assert (await world.service.delete([written.ids[1]], None)).deleted == 1
    assert await world.service.chunk(written.ids[1]) is None
    chunk = await world.service.chunk(written.ids[2])
    assert chunk is not None
    assert chunk.text == "text 2"


async def test_an_older_routers_change_is_refused(world: World) -> None:
    """Once a newer router has read the state, its predecessor changes nothing and is told who took over."""
    assert (await world.service.state(3)).epoch == 1
    for order in (world.service.change(SWAP, 2), world.service.state(1)):
        with pytest.raises(TakenOverError) as refused:
            await order
        assert refused.value.fields == {"incarnation": 3}
    assert world.store.state.epoch == 1
    assert (await world.service.change(SWAP, 3)).epoch == 2


async def test_a_precondition_that_fails_changes_nothing(world: World) -> None:
    """The commit itself checks the swap: the second of two that saw the same epoch is refused."""
    await world.service.change(SWAP, 1)
    with pytest.raises(EpochMismatchError):
        await world.service.change(SWAP, 1)
    assert (await world.service.state(1)).epoch == 2


@pytest.mark.parametrize(("fails", "epoch"), [("after", 2), ("before", 1)])
async def test_after_a_lost_answer_the_state_is_the_logs(world: World, fails: str, epoch: int) -> None:
    """`state` tells whether a change that may have been committed was, and from then on that is final."""
    world.objects.fails = fails
    with pytest.raises(UnavailableError):
        await world.service.change(SWAP, 1)
    with pytest.raises(UnavailableError):
        await world.service.state(1)
    world.objects.fails = None
    assert (await world.service.state(1)).epoch == epoch
    await world.service.ingest([ChunkInput("f", 0, "text")])
    assert (await world.service.state(1)).epoch == epoch
    await world.service.close()
    again = world.root.open(world.uuid)
    assert again.state.epoch == epoch
    again.close()


async def test_housekeeping_outlives_an_error(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault in the background, foreseen or not, is logged and the next look takes place."""
    looks: list[Exception] = [UnavailableError("busy"), ZeroDivisionError("a bug")]
    compacted = asyncio.Event()
    loop = asyncio.get_running_loop()

    def due() -> bool:
        if looks:
            raise looks.pop()
        return True

    monkeypatch.setattr(world.store, "due", due)
    monkeypatch.setattr(world.store, "compact", lambda: loop.call_soon_threadsafe(compacted.set))
    await asyncio.wait_for(compacted.wait(), 60)
