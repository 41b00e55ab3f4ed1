"""An index follows its collection's log: it embeds what is live and lacking, and drops what is held and dead."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from records import run_record
from waiting import until

from compass.domain.chunk import ChunkInput, FloatMatrix
from compass.domain.collection import SetSpace
from compass.domain.embedding.contract import ServerInfo
from compass.domain.rebuild.run_record import RunState
from compass.domain.search.query import Query
from compass.domain.space import BuiltBy, Lag, Space, SpaceConfig
from compass.embedding.builtin import HashingModel
from compass.errors import CompassError, EndpointRefusedError, EndpointUnavailableError, StorageError
from compass.index.service import SpaceIndex
from compass.storage.objects import LocalObjects
from compass.storage.root import Root

DIMS = 16


class Model:
    """The built-in model, which counts what it is sent, refuses poison, and fails or waits when told to."""

    def __init__(self) -> None:
        self._model = HashingModel("m", DIMS)
        self.sent: Counter[str] = Counter()
        self.error: CompassError | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.slow_gate = asyncio.Event()
        self.closed = 0

    async def embed(self, texts: Sequence[str]) -> FloatMatrix:
        self.sent.update(texts)
        await self.gate.wait()
        if "slow" in texts:
            await self.slow_gate.wait()
        if self.error is not None:
            raise self.error
        if any("poison" in text for text in texts):
            raise EndpointRefusedError("too long")
        return self._model.embed(texts)

    async def describe(self) -> list[ServerInfo]:
        return [ServerInfo(model_id="m")]

    async def close(self) -> None:
        self.closed += 1


class World:
    """One collection with a default `d-1` and the space `s-1` that is followed, of the given status."""

    def __init__(self, folder: Path) -> None:
        self.root = Root(LocalObjects(folder / "data"), folder / "cache")
        self.model = Model()
        self.opened: list[Space] = []
        self.completed = 0
        self.indexes: list[SpaceIndex] = []

    def begin(self, status: Any = "active", endpoint: str | None = "http://m", follows: bool = True) -> SpaceIndex:
        """Create the collection and open the index."""
        spaces = [
            Space("d-1", "d", SpaceConfig(4, "m"), "active", 0.0),
            Space("s-1", "s", SpaceConfig(DIMS, "m", endpoint), status, 0.0, follows, None, BuiltBy("m")),
        ]
        self.uuid = self.root.create("docs", spaces, "d-1", {}).uuid
        self.store = self.root.open(self.uuid, grace_s=0.0)
        self.vectors = self.root.space_vectors(self.uuid, "s-1", DIMS)
        return self.open()

    def open(self) -> SpaceIndex:
        """Another process's index of the same space."""
        view = self.root.view(self.uuid)
        view.refresh()
        vectors = self.root.space_vectors(self.uuid, "s-1", DIMS)
        index = SpaceIndex(
            view.state().by_id("s-1"), view, vectors, self._open_embedder, self._complete, self._identify
        )
        self.indexes.append(index)
        return index

    def ingest(self, *texts: str, file_id: str = "f") -> int:
        """Write texts as the chunks 0, 1, … of a file; the commit."""
        return self.store.ingest([ChunkInput(file_id, i, text) for i, text in enumerate(texts)]).seq

    def feed(self, text: str, vector: Any = None) -> int:
        """Write a text with the caller's own vector; the commit."""
        vector = HashingModel("m", DIMS).embed([text])[0] if vector is None else vector
        return self.store.ingest([ChunkInput(text, 0, text, vectors={"s-1": vector})]).seq

    def run(self, state: RunState = "running", owns_below: int = 2**63 - 1) -> None:
        self.vectors.write_run(run_record(state=state, owns_below=owns_below))

    async def found(self, index: SpaceIndex, text: str, **options: Any) -> list[str]:
        """The texts that a query finds, best first."""
        vector = HashingModel("m", DIMS).embed([text])[0]
        (hits,) = await index.search([Query(vector, **{"top_k": 5, **options})])
        return [hit.chunk.text for hit in hits]

    async def close(self) -> None:
        self.model.gate.set()
        for index in self.indexes:
            await index.close()
        self.store.close()

    def _open_embedder(self, space: Space) -> Model:
        self.opened.append(space)
        return self.model

    async def _complete(self) -> None:
        self.completed += 1
        await asyncio.to_thread(self.store.change, SetSpace("s-1", status="active", follows=True))

    async def _identify(self, built_by: BuiltBy) -> None:
        await asyncio.to_thread(self.store.change, SetSpace("s-1", built_by=built_by))


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr("compass.index.service.POLL_S", 0.02)
    monkeypatch.setattr("compass.index.service.RETRY_S", 0.05)
    made = World(tmp_path)
    yield made
    await made.close()


# ---- following


async def test_what_was_written_is_found(world: World) -> None:
    """After `follow` answers 0 a query finds the chunks; nothing is sent twice, nothing empty is sent."""
    index = world.begin()
    assert await index.follow(world.ingest("one", "two", "", " "), 5) == 0
    assert (await world.found(index, "two"))[0] == "two"
    assert world.model.sent == {"one": 1, "two": 1}
    info = await index.stats()
    assert (info.vectors, info.lag, info.quarantined, info.error) == (2, 0, 0, None)
    assert info.bytes_on_disk > 0


async def test_an_update_replaces(world: World) -> None:
    """A changed text is embedded and the old one is never found again; changed metadata embeds nothing."""
    index = world.begin()
    await index.follow(world.ingest("before"), 5)
    assert await index.follow(world.ingest("after"), 5) == 0
    assert await world.found(index, "before") == ["after"]
    seq = world.store.ingest([ChunkInput("f", 0, "after", {"k": 1})]).seq
    assert await index.follow(seq, 5) == 0
    assert world.model.sent == {"before": 1, "after": 1}


async def test_a_delete_is_masked_at_once(world: World) -> None:
    """When `follow` returns for a delete no query finds the chunk, and it counts no more."""
    index = world.begin()
    await index.follow(world.ingest("one", "two"), 5)
    seq = world.store.delete([world.store.view.page(0, 1)[0].id], None).seq
    assert await index.follow(seq, 0) == 0
    assert await world.found(index, "one") == ["two"]
    assert (await index.stats()).vectors == 1


async def test_a_lag_is_told_and_heals_by_itself(world: World) -> None:
    """While the endpoint is down the lag and the reason are told; when it is back nobody has to ask."""
    index = world.begin()
    await index.follow(world.ingest("one"), 5)
    world.model.error = EndpointUnavailableError("http://m is down")
    assert await index.follow(world.ingest("two", "three", file_id="g"), 0.1) == 2
    await until(lambda: index._error)
    info = await index.stats()
    assert (info.lag, info.error) == (2, "http://m is down")
    assert (await index.rebuild_status()).error == "http://m is down"
    assert await world.found(index, "two") == ["one"]
    world.model.error = None
    await until(lambda: not len(index._missing))
    assert (await world.found(index, "two"))[0] == "two"
    await until(lambda: index._error is None)


async def test_follow_waits_for_its_own_commit_only(world: World) -> None:
    """What is written later does not hold up who waits for an earlier commit."""
    index = world.begin()
    world.model.gate.clear()
    first = asyncio.create_task(index.follow(world.ingest("one"), 5))
    await until(lambda: world.model.sent["one"])
    assert await index.follow(world.ingest("slow", file_id="g"), 0) == 2
    world.model.gate.set()
    assert await asyncio.wait_for(first, 2) == 0
    assert await index.follow(world.store.seq, 0) == 1
    world.model.slow_gate.set()
    assert await index.follow(world.store.seq, 5) == 0


async def test_a_delete_ends_the_wait_for_the_chunk(world: World) -> None:
    """Who waits for a chunk that is deleted meanwhile is told that nothing lacks."""
    index = world.begin()
    world.model.error = EndpointUnavailableError("down")
    waiting = asyncio.create_task(index.follow(world.ingest("one"), 5))
    await until(lambda: len(index._missing))
    await index.follow(world.store.delete([world.store.view.page(0, 1)[0].id], None).seq, 0)
    assert await asyncio.wait_for(waiting, 2) == 0


async def test_min_seq_is_honoured(world: World) -> None:
    """A query that names a commit sees it, though nobody told the index and it has not looked."""
    index = world.begin()
    await index.follow(world.ingest("one", "two"), 5)
    index._task.cancel()
    seq = world.store.delete([world.store.view.page(0, 1)[0].id], None).seq
    fed = world.feed("three")
    assert "one" not in await world.found(index, "one", min_seq=seq)
    assert "three" in await world.found(index, "three", min_seq=fed)


async def test_a_poison_text_is_quarantined_alone(world: World) -> None:
    """A text that the endpoint refuses for itself holds nothing up; it is told, and stays so after a restart."""
    index = world.begin()
    lacks = await index.lag_at(world.ingest("one", "poison", "two"), 5)
    assert lacks == Lag(lag=0, quarantined=1, accepted=0), "what is refused during the wait counts"
    assert sorted(await world.found(index, "one")) == ["one", "two"]
    assert [q.reason for q in (await index.rebuild_status()).quarantined] == ["too long"]
    assert (await index.stats()).quarantined == 1
    sent = world.model.sent["poison"]
    await index.close()
    again = world.open()
    assert await again.follow(world.store.seq, 5) == 0
    assert (await again.stats()).quarantined == 1
    assert world.model.sent["poison"] == sent
    assert await again.follow(world.ingest("one", "cured", "two"), 5) == 0
    assert (await again.stats()).quarantined == 0


async def test_the_endpoint_may_move(world: World) -> None:
    """`configure` takes a new endpoint for what is embedded from then on, and closes the old embedder."""
    index = world.begin()
    await index.follow(world.ingest("one"), 5)
    moved = world.store.state.by_id("s-1").with_config(embed_endpoint="http://moved").config
    state = world.store.change(SetSpace("s-1", config=moved))
    await index.configure(state.by_id("s-1"))
    assert await index.follow(world.ingest("two", file_id="g"), 5) == 0
    assert [space.config.embed_endpoint for space in world.opened] == ["http://m", "http://moved"]
    assert world.model.closed == 1


async def test_the_log_tells_what_the_router_could_not(world: World) -> None:
    """A space's record that no `configure` brought is learnt from the log."""
    index = world.begin(status="building")
    state = world.store.change(SetSpace("s-1", status="active"))
    await until(lambda: index._space == state.by_id("s-1"))
    assert await index.follow(world.ingest("one"), 5) == 0


# ---- whose work is whose


async def test_a_building_space_follows_nothing_unasked(world: World) -> None:
    """A space that was never active and has no run embeds nothing, and tells its lag."""
    index = world.begin(status="building")
    assert await index.follow(world.ingest("one"), 0.2) == 1
    assert not world.model.sent


async def test_the_bulk_is_the_runs(world: World) -> None:
    """While a run goes on the follower leaves the vids below its bound alone and embeds those beyond."""
    index = world.begin(status="building")
    world.ingest("bulk", "more bulk")
    world.run()
    await index.run_changed()
    world.ingest("beyond", file_id="g")
    assert await index.follow(world.store.seq, 0.2) == 3
    assert not world.model.sent
    beyond = int(world.store.view.embeddable_vids()[-1])
    world.run(owns_below=beyond)
    await index.run_changed()
    await until(lambda: world.model.sent["beyond"])
    assert await index.follow(world.store.seq, 0.2) == 2
    world.run(owns_below=0)
    await index.run_changed()
    assert await index.follow(world.store.seq, 5) == 0
    assert world.model.sent == {"bulk": 1, "more bulk": 1, "beyond": 1}


async def test_a_file_of_a_run_is_findable_when_absorb_returns(world: World) -> None:
    """What a run wrote is taken over with no text sent, dead rows of it are not, and waiters are told."""
    index = world.begin(status="building")
    world.ingest("one", "two", "three")
    await index.follow(world.store.seq, 0)
    vids = world.store.view.embeddable_vids()
    world.store.delete([world.store.view.page(0, 1)[0].id], None)
    await index.follow(world.store.seq, 0)
    waiting = asyncio.create_task(index.follow(world.store.seq, 5))
    key = world.vectors.append(vids, HashingModel("m", DIMS).embed(["one", "two", "three"]), run="a")
    await index.load_files([key])
    assert sorted(await world.found(index, "one")) == ["three", "two"]
    assert await waiting == 0
    assert not world.model.sent


async def test_a_large_file_goes_straight_into_the_graph(world: World) -> None:
    """A bulk file is built in, found, and its rows are the view's live chunks."""
    index = world.begin(status="building")
    texts = [f"text number {i}" for i in range(600)]
    world.ingest(*texts)
    vids = world.store.view.embeddable_vids()
    await index.load_files([world.vectors.append(vids, HashingModel("m", DIMS).embed(texts), run="a")])
    assert (await index.stats()).vectors == 600
    assert "text number 77" in await world.found(index, "text number 77")


async def test_a_file_that_compaction_took_away_is_no_loss(world: World) -> None:
    """Rows of a file that was merged before the index took it are found in the merged file."""
    index = world.begin(status="building")
    world.ingest("one", "two")
    await index.follow(world.store.seq, 0)
    model = HashingModel("m", DIMS)
    keys = [
        world.vectors.append([vid], model.embed([text]), run="a")
        for vid, text in world.store.view.texts(world.store.view.embeddable_vids()).items()
    ]
    world.store.compact()
    assert not set(keys) & set(world.vectors.files())
    await index.load_files(keys)
    assert sorted(await world.found(index, "one")) == ["one", "two"]
    assert (await index.stats()).lag == 0


async def test_what_an_ended_run_left_is_not_embedded_again(world: World) -> None:
    """Files that landed and were never handed over are taken when the run ends, however that was told."""
    index = world.begin()
    world.run()
    await index.run_changed()
    world.ingest("one", "two")
    await index.follow(world.store.seq, 0)
    world.vectors.append(world.store.view.embeddable_vids()[:1], HashingModel("m", DIMS).embed(["one"]), run="a")
    world.run("cancelled")  # by a process that was killed then: nobody calls `run_changed`
    await until(lambda: not len(index._missing))
    assert world.model.sent == {"two": 1}
    assert sorted(await world.found(index, "one")) == ["one", "two"]


async def test_a_recount_never_looks_complete_meanwhile(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the index counts anew what it lacks, who asks is not told that nothing lacks."""
    index = world.begin(status="building")
    world.ingest("one")
    assert await index.follow(world.store.seq, 0) == 1
    counting, go_on, count = asyncio.Event(), asyncio.Event(), index._lacking

    async def slow(vids: Any) -> Any:
        counting.set()
        await go_on.wait()
        return await count(vids)

    monkeypatch.setattr(index, "_lacking", slow)
    world.run()
    telling = asyncio.create_task(index.run_changed())
    await counting.wait()
    assert await index.follow(world.store.seq, 0) == 1
    go_on.set()
    await telling
    assert await index.follow(world.store.seq, 0) == 1


# ---- callers' vectors


async def test_a_fed_space_says_once_that_it_is_complete(world: World) -> None:
    """A building space without an endpoint calls `completed` when every live chunk has a vector, and not again."""
    index = world.begin(status="building", endpoint=None, follows=False)
    world.ingest("one", "")
    world.feed("two")
    await index.follow(world.store.seq, 0.1)
    assert world.completed == 0
    world.store.ingest([ChunkInput("f", 0, "one", vectors={"s-1": HashingModel("m", DIMS).embed(["one"])[0]})])
    await until(lambda: world.completed)
    await asyncio.sleep(0.2)
    assert world.completed == 1
    assert (await world.found(index, "one"))[0] == "one"


async def test_an_empty_space_is_not_complete(world: World) -> None:
    """Without a chunk nobody has fed it."""
    world.begin(status="building", endpoint=None, follows=False)
    await asyncio.sleep(0.2)
    assert world.completed == 0


async def test_a_callers_vector_wins_and_is_not_computed(world: World) -> None:
    """A chunk that came with its vector is found by it and its text is never sent."""
    index = world.begin()
    vector = np.zeros(DIMS, np.float32)
    vector[3] = 1.0
    assert await index.follow(world.feed("one", vector), 5) == 0
    (hits,) = await index.search([Query(vector, top_k=1, include_vectors=True)])
    np.testing.assert_array_equal(hits[0].vector, vector)
    assert not world.model.sent


# ---- restarts


async def test_a_restart_finds_everything(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The saved graph and the files hold all; what was written, changed and deleted meanwhile is right."""
    index = world.begin()
    await index.follow(world.ingest("one", "two", "three"), 5)
    await index.close()
    assert world.vectors.load_index(lambda path: path) is not None
    world.store.delete([world.store.view.page(0, 1)[0].id], None)
    world.ingest("four", file_id="g")
    world.feed("five")
    again = world.open()
    assert await again.follow(world.store.seq, 5) == 0
    assert sorted(await world.found(again, "two")) == ["five", "four", "three", "two"]
    assert world.model.sent == {"one": 1, "two": 1, "three": 1, "four": 1}


async def test_the_graph_of_a_space_that_is_gone_is_not_saved(world: World) -> None:
    """A drop does not wait for gigabytes that nobody will read."""
    index = world.begin()
    await index.follow(world.ingest("one", "two"), 5)
    await index.close(False)
    assert world.vectors.load_index(lambda path: path) is None


async def test_without_its_snapshot_the_files_are_enough(world: World) -> None:
    """The graph is derived: when it is gone it is built from the files, and nothing is embedded again."""
    index = world.begin()
    await index.follow(world.ingest("one", "two"), 5)
    await index.close()
    world.root.objects.delete_prefix(f"{world.uuid}/spaces/s-1/index")
    again = world.open()
    assert await again.follow(world.store.seq, 5) == 0
    assert sorted(await world.found(again, "one")) == ["one", "two"]
    assert sum(world.model.sent.values()) == 2


async def test_a_view_that_was_thrown_away_takes_nothing_with_it(world: World) -> None:
    """When the view begins anew, what the index dropped for its sake comes back from the files."""
    index = world.begin()
    await index.follow(world.ingest("one", "two"), 5)
    index._task.cancel()
    real = index._view

    class Young:
        """The view while the log is being applied again: it knows nothing yet."""

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def refresh(self, seq: int = 0) -> int:
            return 1

        def seq(self) -> int:
            return 1

        def changes(self, since: int) -> None:
            return None

        def live_vids(self) -> Any:
            return np.empty(0, np.int64)

        embeddable_vids = live_vids

        def texts(self, vids: Any) -> dict[int, str]:
            return {}

    index._view = Young()  # type: ignore[assignment]
    await index._catch_up(0)
    assert (await index.stats()).vectors == 0
    index._view = real
    await index._catch_up(world.store.seq)
    assert (await index.stats()).vectors == 2
    assert (await index.stats()).lag == 0


async def test_a_space_that_does_not_open_says_why_and_tries_again(world: World) -> None:
    """A damaged file is the answer to every question; once it is mended the index opens by itself."""
    index = world.begin()
    await index.follow(world.ingest("one"), 5)
    await index.close()
    world.root.objects.delete_prefix(f"{world.uuid}/spaces/s-1/index")
    (key,) = world.vectors.files()
    sound = world.root.objects.read(key).to_pybytes()
    world.root.objects.write(key, b"nonsense")
    again = world.open()
    for ask in (again.stats, lambda: again.follow(0, 0), lambda: world.found(again, "one")):
        with pytest.raises(StorageError):
            await ask()
    world.root.objects.write(key, sound)
    await until(lambda: again._is_open())
    assert await world.found(again, "one") == ["one"]


async def test_an_unforeseen_error_does_not_end_the_following(world: World) -> None:
    """A bug in the embedder is told as the space's error; the loop goes on and heals when it is gone."""
    index = world.begin()
    world.model.error = ZeroDivisionError("oops")  # type: ignore[assignment]
    assert await index.follow(world.ingest("one"), 0.2) == 1
    assert "ZeroDivisionError" in (await index.stats()).error
    world.model.error = None
    assert await index.follow(world.store.seq, 5) == 0


async def test_housekeeping_holds_up_no_write(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the graph is tidied, which may take minutes, what is written is embedded as ever."""
    index = world.begin()
    tidying = asyncio.Event()

    async def tidy() -> None:
        tidying.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(index, "_tidy", tidy)
    await tidying.wait()
    assert await index.follow(world.ingest("one"), 5) == 0
