"""An index follows its collection's log: it embeds what is live and lacking, and drops what is held and dead."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from followed import DIMS, LEVEL_S, FollowedSpace, embedded, texts_of, until_error, until_stats
from waiting import until

from compass.domain.chunk import ChunkInput
from compass.domain.collection import SetSpace
from compass.domain.search.query import Query
from compass.domain.space import Lag
from compass.errors import EndpointUnavailableError, StorageError
from compass.index.vector.search import SpaceSearch


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[FollowedSpace]:
    made = FollowedSpace(tmp_path)
    yield made
    await made.close()


# ---- following


async def test_what_was_written_is_found(world: FollowedSpace) -> None:
    """After `follow` answers 0 a query finds the chunks; nothing is sent twice, nothing empty is sent."""
    index = world.begin()
    assert await index.follow(world.ingest("one", "two", "", " "), LEVEL_S) == 0
    assert (await texts_of(index, "two"))[0] == "two"
    assert world.model.sent == {"one": 1, "two": 1}
    info = await index.stats()
    assert (info.vectors, info.lag, info.quarantined, info.error) == (2, 0, 0, None)
    assert info.bytes_on_disk > 0


async def test_an_update_replaces(world: FollowedSpace) -> None:
    """A changed text is embedded and the old one is never found again; changed metadata embeds nothing."""
    index = world.begin()
    await index.follow(world.ingest("before"), LEVEL_S)
    assert await index.follow(world.ingest("after"), LEVEL_S) == 0
    assert await texts_of(index, "before") == ["after"]
    seq = world.store.ingest([ChunkInput("f", 0, "after", {"k": 1})]).seq
    assert await index.follow(seq, LEVEL_S) == 0
    assert world.model.sent == {"before": 1, "after": 1}


async def test_a_delete_is_masked_at_once(world: FollowedSpace) -> None:
    """When `follow` returns for a delete no query finds the chunk, and it counts no more."""
    index = world.begin()
    await index.follow(world.ingest("one", "two"), LEVEL_S)
    seq = world.delete_first()
    assert await index.follow(seq, 0) == 0
    assert await texts_of(index, "one") == ["two"]
    assert (await index.stats()).vectors == 1


async def test_a_lag_is_told_and_heals_by_itself(world: FollowedSpace) -> None:
    """While the endpoint is down the lag and the reason are told; when it is back nobody has to ask."""
    index = world.begin()
    await index.follow(world.ingest("one"), LEVEL_S)
    world.model.error = EndpointUnavailableError("http://m is down")
    assert await index.follow(world.ingest("two", "three", file_id="g"), 0) == 2
    await until_error(index)
    info = await index.stats()
    assert (info.lag, info.error) == (2, "http://m is down")
    assert (await index.rebuild_status()).error == "http://m is down"
    assert await texts_of(index, "two") == ["one"]
    world.model.error = None
    await until_stats(index, lambda stats: not stats.lag)
    assert (await texts_of(index, "two"))[0] == "two"
    await until_stats(index, lambda stats: stats.error is None)


async def test_follow_waits_for_its_own_commit_only(world: FollowedSpace) -> None:
    """What is written later does not hold up who waits for an earlier commit."""
    index = world.begin()
    world.model.gate.clear()
    first = asyncio.create_task(index.follow(world.ingest("one"), LEVEL_S))
    await until(lambda: world.model.sent["one"], LEVEL_S)
    assert await index.follow(world.ingest("slow", file_id="g"), 0) == 2
    world.model.gate.set()
    assert await asyncio.wait_for(first, LEVEL_S) == 0
    assert await index.follow(world.store.seq, 0) == 1
    world.model.slow_gate.set()
    assert await index.follow(world.store.seq, LEVEL_S) == 0


async def test_a_delete_ends_the_wait_for_the_chunk(world: FollowedSpace) -> None:
    """Who waits for a chunk that is deleted meanwhile is told that nothing lacks."""
    index = world.begin()
    world.model.error = EndpointUnavailableError("down")
    waiting = asyncio.create_task(index.follow(world.ingest("one"), LEVEL_S))
    await until_stats(index, lambda stats: stats.lag)
    await index.follow(world.delete_first(), 0)
    assert await asyncio.wait_for(waiting, LEVEL_S) == 0


async def test_a_poison_text_is_quarantined_alone(world: FollowedSpace) -> None:
    """A text that the endpoint refuses for itself holds nothing up; it is told, and stays so after a restart."""
    index = world.begin()
    lacks = await index.lag_at(world.ingest("one", "poison", "two"), LEVEL_S)
    assert lacks == Lag(lag=0, quarantined=1, accepted=0), "what is refused during the wait counts"
    assert sorted(await texts_of(index, "one")) == ["one", "two"]
    assert [q.reason for q in (await index.rebuild_status()).quarantined] == ["too long"]
    assert (await index.stats()).quarantined == 1
    sent = world.model.sent["poison"]
    await index.close()
    again = world.open()
    assert await again.follow(world.store.seq, LEVEL_S) == 0
    assert (await again.stats()).quarantined == 1
    assert world.model.sent["poison"] == sent
    assert await again.follow(world.ingest("one", "cured", "two"), LEVEL_S) == 0
    assert (await again.stats()).quarantined == 0


async def test_the_endpoint_may_move(world: FollowedSpace) -> None:
    """`configure` takes a new endpoint for what is embedded from then on, and closes the old embedder."""
    index = world.begin()
    await index.follow(world.ingest("one"), LEVEL_S)
    moved = world.store.state.by_id("s-1").with_config(embed_endpoint="http://moved").config
    state = world.store.change(SetSpace("s-1", config=moved))
    await index.configure(state.by_id("s-1"))
    assert await index.follow(world.ingest("two", file_id="g"), LEVEL_S) == 0
    assert [space.config.embed_endpoint for space in world.opened] == ["http://m", "http://moved"]
    assert world.model.closed == 1


async def test_the_log_tells_what_the_router_could_not(world: FollowedSpace) -> None:
    """A space's record that no `configure` brought is learnt from the log."""
    index = world.begin(status="building")
    state = world.store.change(SetSpace("s-1", status="active"))
    await until(lambda: index.follower.space == state.by_id("s-1"), LEVEL_S)
    assert await index.follow(world.ingest("one"), LEVEL_S) == 0


# ---- whose work is whose


async def test_a_building_space_follows_nothing_unasked(world: FollowedSpace) -> None:
    """A space that was never active and has no run embeds nothing, and tells its lag."""
    index = world.begin(status="building")
    assert await index.follow(world.ingest("one"), 0) == 1
    await world.steps()
    assert await index.follow(world.store.seq, 0) == 1
    assert not world.model.sent


async def test_the_bulk_is_the_runs(world: FollowedSpace) -> None:
    """While a run goes on the follower leaves the vids below its bound alone and embeds those beyond."""
    index = world.begin(status="building")
    world.ingest("bulk", "more bulk")
    world.write_run()
    await index.run_changed()
    world.ingest("beyond", file_id="g")
    await world.steps()
    assert await index.follow(world.store.seq, 0) == 3
    assert not world.model.sent
    beyond = int(world.store.view.embeddable_vids()[-1])
    world.write_run(owns_below=beyond)
    await index.run_changed()
    await until_stats(index, lambda stats: stats.lag == 2)
    await world.steps()
    assert await index.follow(world.store.seq, 0) == 2
    world.write_run(owns_below=0)
    await index.run_changed()
    assert await index.follow(world.store.seq, LEVEL_S) == 0
    assert world.model.sent == {"bulk": 1, "more bulk": 1, "beyond": 1}


async def test_a_file_of_a_run_is_findable_when_absorb_returns(world: FollowedSpace) -> None:
    """What a run wrote is taken over with no text sent, dead rows of it are not, and waiters are told."""
    index = world.begin(status="building")
    world.ingest("one", "two", "three")
    await index.follow(world.store.seq, 0)
    vids = world.store.view.embeddable_vids()
    world.delete_first()
    await index.follow(world.store.seq, 0)
    waiting = asyncio.create_task(index.follow(world.store.seq, LEVEL_S))
    key = world.vectors.append(vids, embedded("one", "two", "three"), run="a")
    await index.load_files([key])
    assert sorted(await texts_of(index, "one")) == ["three", "two"]
    assert await waiting == 0
    assert not world.model.sent


async def test_a_large_file_goes_straight_into_the_graph(world: FollowedSpace) -> None:
    """A bulk file is built in, found, and its rows are the view's live chunks."""
    index = world.begin(status="building")
    texts = [f"text number {i}" for i in range(600)]
    world.ingest(*texts)
    vids = world.store.view.embeddable_vids()
    await index.load_files([world.vectors.append(vids, embedded(*texts), run="a")])
    assert (await index.stats()).vectors == 600
    assert "text number 77" in await texts_of(index, "text number 77")


async def test_a_file_that_compaction_took_away_is_no_loss(world: FollowedSpace) -> None:
    """Rows of a file that was merged before the index took it are found in the merged file."""
    index = world.begin(status="building")
    world.ingest("one", "two")
    await index.follow(world.store.seq, 0)
    keys = [
        world.vectors.append([vid], embedded(text), run="a")
        for vid, text in world.store.view.texts(world.store.view.embeddable_vids()).items()
    ]
    world.store.compact()
    assert not set(keys) & set(world.vectors.files())
    await index.load_files(keys)
    assert sorted(await texts_of(index, "one")) == ["one", "two"]
    assert (await index.stats()).lag == 0


async def test_what_an_ended_run_left_is_not_embedded_again(world: FollowedSpace) -> None:
    """Files that landed and were never handed over are taken when the run ends, however that was told."""
    index = world.begin()
    world.write_run()
    await index.run_changed()
    world.ingest("one", "two")
    await index.follow(world.store.seq, 0)
    world.vectors.append(world.store.view.embeddable_vids()[:1], embedded("one"), run="a")
    world.write_run("cancelled")  # by a process that was killed then: nobody calls `run_changed`
    await until_stats(index, lambda stats: not stats.lag)
    assert world.model.sent == {"two": 1}
    assert sorted(await texts_of(index, "one")) == ["one", "two"]


# ---- callers' vectors


async def test_a_fed_space_says_once_that_it_is_complete(world: FollowedSpace) -> None:
    """A building space without an endpoint calls `completed` when every live chunk has a vector, and not again."""
    index = world.begin(status="building", endpoint=None, follows=False)
    world.ingest("one", "")
    world.feed("two")
    await index.follow(world.store.seq, 0)
    await world.steps()
    assert world.completed == 0
    world.store.ingest([ChunkInput("f", 0, "one", vectors={"s-1": embedded("one")[0]})])
    await until(lambda: world.completed, LEVEL_S)
    await world.steps()
    assert world.completed == 1
    assert (await texts_of(index, "one"))[0] == "one"


async def test_an_empty_space_is_not_complete(world: FollowedSpace) -> None:
    """Without a chunk nobody has fed it."""
    world.begin(status="building", endpoint=None, follows=False)
    await world.steps()
    assert world.completed == 0


async def test_a_callers_vector_wins_and_is_not_computed(world: FollowedSpace) -> None:
    """A chunk that came with its vector is found by it and its text is never sent."""
    index = world.begin()
    vector = np.zeros(DIMS, np.float32)
    vector[3] = 1.0
    assert await index.follow(world.feed("one", vector), LEVEL_S) == 0
    (hits,) = await index.search([Query(vector, top_k=1, include_vectors=True)])
    np.testing.assert_array_equal(hits[0].vector, vector)
    assert not world.model.sent


# ---- restarts


async def test_a_restart_finds_everything(world: FollowedSpace, caplog: pytest.LogCaptureFixture) -> None:
    """The saved graph and the files hold all; what was written, changed and deleted meanwhile is right."""
    index = world.begin()
    await index.follow(world.ingest("one", "two", "three"), LEVEL_S)
    await index.close()
    assert world.vectors.load_index(lambda path: path) is not None
    world.delete_first()
    world.ingest("four", file_id="g")
    world.feed("five")
    again = world.open()
    assert await again.follow(world.store.seq, LEVEL_S) == 0
    assert sorted(await texts_of(again, "two")) == ["five", "four", "three", "two"]
    assert world.model.sent == {"one": 1, "two": 1, "three": 1, "four": 1}


async def test_the_graph_of_a_space_that_is_gone_is_not_saved(world: FollowedSpace) -> None:
    """A drop does not wait for gigabytes that nobody will read."""
    index = world.begin()
    await index.follow(world.ingest("one", "two"), LEVEL_S)
    await index.close(False)
    assert world.vectors.load_index(lambda path: path) is None


async def test_without_its_snapshot_the_files_are_enough(world: FollowedSpace) -> None:
    """The graph is derived: when it is gone it is built from the files, and nothing is embedded again."""
    index = world.begin()
    await index.follow(world.ingest("one", "two"), LEVEL_S)
    await index.close()
    world.root.objects.delete_prefix(f"{world.uuid}/spaces/s-1/index")
    again = world.open()
    assert await again.follow(world.store.seq, LEVEL_S) == 0
    assert sorted(await texts_of(again, "one")) == ["one", "two"]
    assert sum(world.model.sent.values()) == 2


async def test_a_space_that_does_not_open_says_why_and_tries_again(world: FollowedSpace) -> None:
    """A damaged file is the answer to every question; once it is mended the index opens by itself."""
    index = world.begin()
    await index.follow(world.ingest("one"), LEVEL_S)
    await index.close()
    world.root.objects.delete_prefix(f"{world.uuid}/spaces/s-1/index")
    (key,) = world.vectors.files()
    sound = world.root.objects.read(key)
    assert sound is not None
    world.root.objects.write(key, b"nonsense")
    again = world.open()
    for ask in (again.stats, lambda: again.follow(0, 0), lambda: texts_of(again, "one")):
        with pytest.raises(StorageError):
            await ask()
    world.root.objects.write(key, sound.to_pybytes())
    await until(lambda: again.follower.is_open, LEVEL_S)
    assert await texts_of(again, "one") == ["one"]


async def test_an_unforeseen_error_does_not_end_the_following(world: FollowedSpace) -> None:
    """A bug in the embedder is told as the space's error; the loop goes on and heals when it is gone."""
    index = world.begin()
    world.model.error = ZeroDivisionError("oops")
    assert await index.follow(world.ingest("one"), 0) == 1
    assert "ZeroDivisionError" in await until_error(index)
    assert (await index.stats()).lag == 1
    world.model.error = None
    assert await index.follow(world.store.seq, LEVEL_S) == 0


async def test_housekeeping_holds_up_no_write(world: FollowedSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the graph is tidied, which may take minutes, what is written is embedded as ever."""
    tidying, go_on = threading.Event(), threading.Event()

    def settle(search: SpaceSearch, max_rows: int) -> int:
        tidying.set()
        go_on.wait()
        return 0

    monkeypatch.setattr(SpaceSearch, "settle", settle)
    index = world.begin()
    try:
        await until(tidying.is_set, LEVEL_S)
        assert await index.follow(world.ingest("one"), LEVEL_S) == 0
    finally:
        go_on.set()
