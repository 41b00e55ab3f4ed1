"""A follower moves with the log and with what is stored, and does nothing else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from followed import LEVEL_S, FollowedSpace, embedded, texts_of
from waiting import until

from compass.domain.chunk import IntVector
from compass.domain.search.query import Query
from compass.errors import UnavailableError
from compass.storage.view.view import Changes, View


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[FollowedSpace]:
    made = FollowedSpace(tmp_path)
    made.create()
    yield made
    await made.close()


class YoungView(View):
    """A view that can be, for a while, one to which the log is being applied again: it knows nothing yet."""

    young = False

    def refresh(self, min_seq: int = 0, timeout_s: float = 10.0) -> int:
        return 1 if self.young else super().refresh(min_seq, timeout_s)

    def seq(self) -> int:
        return 1 if self.young else super().seq()

    def changes(self, since_seq: int) -> Changes | None:
        return None if self.young else super().changes(since_seq)

    def live_vids(self) -> IntVector:
        return np.empty(0, np.int64) if self.young else super().live_vids()

    def embeddable_vids(self) -> IntVector:
        return np.empty(0, np.int64) if self.young else super().embeddable_vids()

    def texts(self, vids: IntVector | Sequence[int]) -> dict[int, str]:
        return {} if self.young else super().texts(vids)


async def test_min_seq_is_honoured(world: FollowedSpace) -> None:
    """A query that names a commit sees it, though nobody told the follower and it has not looked."""
    world.feed("one")
    world.feed("two")
    follower = world.follower()
    await follower.ready()
    seq = world.delete_first()
    fed = world.feed("three")
    assert follower.seq < seq
    assert "one" not in await texts_of(follower, "one", min_seq=seq)
    assert "three" in await texts_of(follower, "three", min_seq=fed)


async def test_a_commit_that_never_comes_is_not_waited_for_for_ever(
    world: FollowedSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A query that names a commit which the view does not reach in time is refused, not answered from before it."""
    world.feed("one")
    view = world.view()
    follower = world.follower(view)
    await follower.ready()
    refresh = view.refresh
    monkeypatch.setattr(view, "refresh", lambda seq=0: refresh(seq, timeout_s=0.0))
    with pytest.raises(UnavailableError):
        await follower.search([Query(embedded("one")[0], min_seq=world.store.seq + 1)])
    assert await texts_of(follower, "one") == ["one"]


async def test_what_is_missing_is_known_and_left_alone(world: FollowedSpace) -> None:
    """A follower names the live chunks without a vector; whatever it is asked, they stay without one."""
    world.ingest("one", "", "two")
    world.feed("fed")
    follower = world.follower()
    assert await follower.follow(world.store.seq, 0) == 2
    await follower.step()
    assert sorted(world.store.view.texts(follower.missing).values()) == ["one", "two"]
    assert await texts_of(follower, "one") == ["fed"]
    assert not world.model.calls
    assert len(world.vectors.files()) == 1


async def test_what_others_store_ends_the_wait(world: FollowedSpace) -> None:
    """Vectors and refusals that somebody else has stored are taken in by a step, and whoever waits is told."""
    world.ingest("one", "poison", "two")
    one, poison, two = world.store.view.embeddable_vids().tolist()
    follower = world.follower()
    waiting = asyncio.create_task(follower.follow(world.store.seq, LEVEL_S))
    await until(follower.due.is_set, LEVEL_S)
    world.vectors.append([one, two], embedded("one", "two"))
    world.vectors.quarantine({poison: "too long"})
    await follower.step()
    assert await waiting == 0
    assert dict(follower.refused) == {poison: "too long"}
    assert sorted(await texts_of(follower, "one")) == ["one", "two"]


async def test_a_lifted_quarantine_is_missing_again(world: FollowedSpace) -> None:
    """When a rebuild forgets who was refused, a follower learns it from the run's record."""
    world.ingest("poison")
    world.vectors.quarantine({int(world.store.view.embeddable_vids()[0]): "too long"})
    follower = world.follower()
    await follower.ready()
    assert len(follower.refused) == 1
    world.vectors.lift_quarantine()
    world.write_run()
    await follower.step()
    assert (len(follower.refused), len(follower.missing)) == (0, 1)


async def test_a_view_that_was_thrown_away_takes_nothing_with_it(world: FollowedSpace) -> None:
    """When the view begins anew, what the follower dropped for its sake comes back from what is stored."""
    world.ingest("one", "two")
    world.vectors.append(world.store.view.embeddable_vids(), embedded("one", "two"))
    view = YoungView(world.root.objects, world.uuid, world.root.cache)
    view.refresh()
    follower = world.follower(view)
    search = await follower.ready()
    assert len(search) == 2
    view.young = True
    await follower.refresh()
    assert len(search) == 0
    view.young = False
    await follower.catch_up(world.store.seq)
    assert len(search) == 2
    assert len(follower.missing) == 0


async def test_a_recount_never_looks_complete_meanwhile(
    world: FollowedSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the follower counts anew what it lacks, who asks is not told that nothing lacks."""
    world.ingest("one")
    view = world.view()
    follower = world.follower(view)
    assert await follower.follow(world.store.seq, 0) == 1
    counting, go_on, embeddable_vids = threading.Event(), threading.Event(), view.embeddable_vids

    def slow() -> IntVector:
        counting.set()
        go_on.wait()
        return embeddable_vids()

    monkeypatch.setattr(view, "embeddable_vids", slow)
    world.write_run()
    refreshing = asyncio.create_task(follower.refresh_run())
    try:
        await until(counting.is_set, LEVEL_S)
        assert await follower.follow(world.store.seq, 0) == 1
    finally:
        go_on.set()
    await refreshing
    assert await follower.follow(world.store.seq, 0) == 1


async def test_a_run_that_ends_hands_over_no_sooner_than_its_files(
    world: FollowedSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run counts as ended when what it has stored is taken in: in between nobody may embed it once more."""
    world.ingest("one", "two")
    world.write_run()
    view = world.view()
    follower = world.follower(view)
    await follower.ready()
    world.vectors.append(view.embeddable_vids()[:1], embedded("one"), run="a")
    seen: list[tuple[bool, int]] = []
    embeddable_vids = view.embeddable_vids

    def watched() -> IntVector:
        seen.append((follower.is_rebuilding, len(follower.missing)))
        return embeddable_vids()

    monkeypatch.setattr(view, "embeddable_vids", watched)
    world.write_run("done")
    await follower.refresh_run()
    assert seen == [(True, 1)]
    assert (follower.is_rebuilding, len(follower.missing)) == (False, 1)
