"""One collection with a space that is followed, on a disk: its owner, further followers, and the model behind it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from records import run_record
from waiting import until

from compass.domain.chunk import ChunkInput, FloatMatrix, FloatVector
from compass.domain.collection import SetSpace
from compass.domain.embedding.contract import ServerInfo
from compass.domain.embedding.endpoint_stats import EndpointStats
from compass.domain.filters import Filter
from compass.domain.rebuild.run_record import EVERY_VID, RunState
from compass.domain.search.query import Hit, Query
from compass.domain.space import BuiltBy, Space, SpaceConfig, SpaceStats, Status
from compass.embedding.builtin import HashingModel
from compass.errors import EndpointRefusedError
from compass.index.follower import Follower
from compass.index.pace import Pace
from compass.index.service import SpaceIndex
from compass.storage.objects import LocalObjects
from compass.storage.root import Root
from compass.storage.view.view import View

DIMS = 16
HURRIED = Pace(poll_s=0.02, retry_s=0.05)
LEVEL_S = 30.0  # a deadline; nothing waits for it


def embedded(*texts: str) -> FloatMatrix:
    """What the space's model makes of texts."""
    return HashingModel("m", DIMS).embed(list(texts))


class Model:
    """The built-in model, which counts what it is sent, refuses poison, and fails or waits when told to."""

    def __init__(self) -> None:
        self._model = HashingModel("m", DIMS)
        self.sent: Counter[str] = Counter()
        self.calls = 0
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.slow_gate = asyncio.Event()
        self.closed = 0

    async def embed(self, texts: Sequence[str]) -> FloatMatrix:
        self.calls += 1
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

    def endpoints(self) -> list[EndpointStats]:
        return []

    async def close(self) -> None:
        self.closed += 1


class CountedView(View):
    """A view that counts how often it was brought up to date: every step of an index begins with that."""

    refreshed = 0

    def refresh(self, min_seq: int = 0, timeout_s: float = 10.0) -> int:
        self.refreshed += 1
        return super().refresh(min_seq, timeout_s)


class FollowedSpace:
    """A collection with the default `d-1` and the space `s-1` that is followed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = Root(LocalObjects(folder / "data"), folder / "cache")
        self.model = Model()
        self.opened: list[Space] = []
        self.completed = 0
        self._views: list[CountedView] = []
        self._open: list[SpaceIndex | Follower] = []

    def begin(self, status: Status = "active", endpoint: str | None = "http://m", follows: bool = True) -> SpaceIndex:
        """Create the collection with the space in this status, and open its index."""
        self.create(status, endpoint, follows)
        return self.open()

    def create(self, status: Status = "active", endpoint: str | None = "http://m", follows: bool = True) -> None:
        """Create the collection with the space in this status."""
        spaces = [
            Space("d-1", "d", SpaceConfig(4, "m"), "active", 0.0),
            Space("s-1", "s", SpaceConfig(DIMS, "m", endpoint), status, 0.0, follows, None, BuiltBy("m")),
        ]
        self.uuid = self.root.create("docs", spaces, "d-1", {}).uuid
        self.store = self.root.open(self.uuid, grace_s=0.0)
        self.vectors = self.root.space_vectors(self.uuid, "s-1", DIMS)

    def view(self) -> CountedView:
        """A reader of the node's view, as each process has one."""
        view = CountedView(self.root.objects, self.uuid, self.root.cache)
        view.refresh()
        self._views.append(view)
        return view

    async def steps(self, count: int = 5) -> None:
        """Wait until the index that was opened last has made so many more steps, which find nothing to do."""
        view = self._views[-1]
        enough = view.refreshed + count
        await until(lambda: view.refreshed >= enough, LEVEL_S)

    def open(self) -> SpaceIndex:
        """The index of the space, as a process of its owner opens it."""
        view, vectors = self.view(), self.root.space_vectors(self.uuid, "s-1", DIMS)
        index = SpaceIndex(
            view.state().by_id("s-1"),
            view,
            vectors,
            self._open_embedder,
            self._complete,
            self._identify,
            pace=HURRIED,
        )
        self._open.append(index)
        return index

    def follower(self, view: View | None = None) -> Follower:
        """A follower that nobody drives: it moves only when it is asked."""
        view = view or self.view()
        follower = Follower(view.state().by_id("s-1"), view, self.root.space_vectors(self.uuid, "s-1", DIMS))
        self._open.append(follower)
        return follower

    def ingest(self, *texts: str, file_id: str = "f") -> int:
        """Write texts as the chunks 0, 1, … of a file; the commit."""
        return self.store.ingest([ChunkInput(file_id, i, text) for i, text in enumerate(texts)]).seq

    def feed(self, text: str, vector: FloatVector | None = None) -> int:
        """Write a text with the caller's own vector; the commit."""
        vector = embedded(text)[0] if vector is None else vector
        return self.store.ingest([ChunkInput(text, 0, text, vectors={"s-1": vector})]).seq

    def delete_first(self) -> int:
        """Delete the chunk of the lowest id; the commit."""
        return self.store.delete([self.store.view.page(0, 1)[0].id], None).seq

    def write_run(self, state: RunState = "running", owns_below: int = EVERY_VID) -> None:
        """Let the record of the space's rebuild say this."""
        self.vectors.write_run(run_record(state=state, owns_below=owns_below))

    async def close(self) -> None:
        """Close all that was opened."""
        self.model.gate.set()
        for index in self._open:
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


async def hits_of(
    index: SpaceIndex | Follower, text: str, *, top_k: int = 5, min_seq: int = 0, where: Filter | None = None
) -> list[Hit]:
    """The hits of a text, best first."""
    query = Query(embedded(text)[0], top_k=top_k, min_seq=min_seq, where=where or Filter(), include_vectors=True)
    return (await index.search([query]))[0]


async def texts_of(index: SpaceIndex | Follower, text: str, *, top_k: int = 5, min_seq: int = 0) -> list[str]:
    """The texts that a query finds, best first."""
    return [hit.chunk.text for hit in await hits_of(index, text, top_k=top_k, min_seq=min_seq)]


async def until_stats(
    index: SpaceIndex, condition: Callable[[SpaceStats], object], wait_s: float = LEVEL_S
) -> SpaceStats:
    """What the index says of itself once it fulfils a condition, with a deadline."""
    return await _until(index.stats, condition, wait_s)


async def until_error(index: SpaceIndex, wait_s: float = LEVEL_S) -> str:
    """Why the index lags, as soon as it does."""
    error = (await until_stats(index, lambda stats: stats.error, wait_s)).error
    assert error is not None
    return error


async def _until(
    read: Callable[[], Awaitable[SpaceStats]], condition: Callable[[SpaceStats], object], wait_s: float
) -> SpaceStats:
    deadline = time.monotonic() + wait_s
    while not condition(stats := await read()):
        assert time.monotonic() < deadline, f"the condition did not come true: {stats}"
        await asyncio.sleep(0.01)
    return stats
