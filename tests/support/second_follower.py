"""A second follower of a space in a process of its own: it has no embedder, and nothing that it could write with."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from compass.domain.search.query import Hit, Query
from compass.index.follower import Follower
from compass.index.pace import Pace
from compass.index.poller import Poller
from compass.storage.objects import LocalObjects
from compass.storage.spaces.vectors import SpaceVectors
from compass.storage.view.view import View

ANSWER_S = 60.0  # a deadline for what takes a moment


@dataclass(frozen=True, slots=True)
class Known:
    """What a follower says of itself when it is level with a commit, and what it answers.

    Attributes:
        lag: How many live chunks it still lacks.
        saved_rows: How many rows came from a saved graph.
        vids: What it holds.
        refused: The quarantined vids, and why.
        hits: Of each query.
    """

    lag: int
    saved_rows: int
    vids: list[int]
    refused: dict[int, str]
    hits: list[list[Hit]]


class ReadOnlyVectors:
    """No more of a space's vectors than a follower needs: this class cannot write."""

    def __init__(self, vectors: SpaceVectors) -> None:
        self.files, self.read, self.quarantined = vectors.files, vectors.read, vectors.quarantined
        self.read_run, self.load_index = vectors.read_run, vectors.load_index


class ReadOnlyObjects(LocalObjects):
    """A root whose files whoever holds it can only read."""

    def create(self, key: str, data: Any) -> bool:
        raise AssertionError(f"a follower creates {key}")

    def write(self, key: str, data: Any) -> None:
        raise AssertionError(f"a follower writes {key}")

    def delete(self, keys: Any) -> None:
        raise AssertionError("a follower deletes")

    def delete_prefix(self, prefix: str) -> None:
        raise AssertionError(f"a follower deletes {prefix}")


class SecondFollower:
    """The end of the test's process."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def known(self, seq: int, queries: Sequence[Query]) -> Known:
        """What it knows once it is level with this commit."""
        self._connection.send((seq, list(queries)))
        return await asyncio.to_thread(self._receive)

    def _receive(self) -> Known:
        assert self._connection.poll(ANSWER_S), "the second follower does not answer"
        answer = self._connection.recv()
        assert isinstance(answer, Known), answer
        return answer


@contextlib.contextmanager
def second_follower(root: Path, cache: Path, uuid: str, space_id: str, dims: int) -> Iterator[SecondFollower]:
    """Run a follower of the space in a process of its own, as long as the block lasts."""
    spawning = multiprocessing.get_context("spawn")
    ours, theirs = spawning.Pipe()
    process = spawning.Process(target=_run, args=(theirs, root, cache, uuid, space_id, dims), daemon=True)
    process.start()
    theirs.close()
    try:
        yield SecondFollower(ours)
    finally:
        with contextlib.suppress(BrokenPipeError):
            ours.send(None)
        process.join(ANSWER_S)
        if process.is_alive():
            process.kill()
            process.join()


def _run(connection: Connection, root: Path, cache: Path, uuid: str, space_id: str, dims: int) -> None:
    asyncio.run(_answer(connection, root, cache, uuid, space_id, dims))


async def _answer(connection: Connection, root: Path, cache: Path, uuid: str, space_id: str, dims: int) -> None:
    objects = ReadOnlyObjects(root)
    view = View(objects, uuid, cache, read_only=True)
    view.refresh()
    vectors = ReadOnlyVectors(SpaceVectors(objects, uuid, space_id, dims))
    follower = Follower(view.state().by_id(space_id), view, vectors)
    poller = Poller("the second follower", follower.step, follower.due, Pace(poll_s=0.02, retry_s=0.05))
    while (question := await asyncio.to_thread(connection.recv)) is not None:
        seq, queries = question
        lag = await follower.follow(seq, ANSWER_S / 2)
        hits = await follower.search(queries)
        connection.send(Known(lag, follower.saved_rows, follower.vids().tolist(), dict(follower.refused), hits))
    await poller.close()
    await follower.close()
