"""The writing end of a collection: the only one, and it stops when another has taken over."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from compass.domain.chunk import ChunkInput, IntVector
from compass.domain.collection import Change, CollectionState
from compass.domain.filters import Filter
from compass.domain.history import Note
from compass.domain.receipts import Deleted, Ingested
from compass.domain.space import Space
from compass.errors import CompassError, TakenOverError, UnavailableError
from compass.storage.locks import FileLock, this_process
from compass.storage.log.edit import Edit
from compass.storage.log.log import Record, new_nonce
from compass.storage.objects import Objects, answering
from compass.storage.snapshot import checkpoints
from compass.storage.snapshot.bases import newest_base, newest_base_seq
from compass.storage.snapshot.parts import Snapshot
from compass.storage.spaces.vectors import SpaceVectors, space_folder
from compass.storage.view.applier import Applier
from compass.storage.view.view import View, lock_path, view_path

_log = logging.getLogger(__name__)

T = TypeVar("T")

_DUE_BYTES = 64 << 20
_DUE_FILES = 64


@dataclass(eq=False)
class _Job(Generic[T]):
    """A write that waits for its commit."""

    step: Callable[[Edit], T]
    weight: int = 1
    seq: int = 0
    done: bool = False
    answer: T | None = None
    error: BaseException | None = None


_Answer = tuple[T, int | None]  # and the commit, where it is an earlier one


class CollectionStore:
    """The only writer of a collection; thread-safe. Writes that wait together share one log object.

    Opening commits a takeover record, which makes the next create of an older writer collide.

    Args:
        cache: This node's cache; the view is in `<cache>/<uuid>`.
        grace_s: How long replaced files outlive their replacement, for readers that have listed them.
        lock_wait_s: How long to wait for a reader of this node to let go of the view.
        group_rows: How many chunks of waiting writes share one commit, at most; a larger write has its own.

    Raises:
        TakenOverError: a process of this node writes the collection already.
        NotFoundError: there is no such collection.
    """

    def __init__(
        self,
        objects: Objects,
        uuid: str,
        cache: Path,
        *,
        grace_s: float = 600.0,
        lock_wait_s: float = 10.0,
        group_rows: int = 20_000,
    ) -> None:
        self.objects, self.uuid, self.grace_s = objects, uuid, grace_s
        self._group_rows = group_rows
        self._lock = FileLock(lock_path(cache, uuid))
        self._applier = Applier(objects, uuid, view_path(cache, uuid))
        self._log = self._applier.log
        self._spaces: dict[str, SpaceVectors] = {}
        self._files_before: dict[str, int] = {}
        self._waiting: deque[_Job[Any]] = deque()
        self._committing = threading.Lock()
        self._compacting = threading.Lock()
        self._doubtful: set[str] = set()
        self._stopped: CompassError | None = None
        with answering(f"opening {uuid}"):
            self._hold_view(lock_wait_s)
        self._collected_seq = 0
        self._sweep_at: float | None = time.monotonic() + grace_s
        self._bytes_before = 0
        try:
            with answering(f"opening {uuid}"):
                self._take_over()
                self._base = newest_base(objects, uuid)
                self._sweep()
                self._report_unknown()
        except BaseException:
            self._applier.close()
            self._lock.release()
            raise
        self.view = View(objects, uuid, cache)

    @property
    def seq(self) -> int:
        """The last commit."""
        return self._tip.seq

    def ingest(self, chunks: Sequence[ChunkInput], attempt: str | None = None) -> Ingested:
        """Write chunks, as a whole or not at all; durable, and in the view, when it returns.

        `attempt` names this very call: whoever sends it again, because the answer was lost, gets the receipt of
        the first time and changes nothing, whatever has been written since. See `receipts` for how long.

        Raises:
            InvalidRequestError, NotFoundError: a vector does not fit, its space is not there.
            TakenOverError: another process writes this collection now.
            UnavailableError: the commit's fate is unknown. The same with the same attempt is harmless; without
                one it undoes what others have written to these chunks since.
        """

        def step(edit: Edit) -> _Answer[list[int]]:
            repeated = edit.receipt(attempt)
            return (repeated[1].ids, repeated[0]) if repeated else (edit.ingest(chunks, attempt), None)

        return Ingested(*_receipt_of(self._submit(_Job(step, len(chunks)))))

    def delete(self, ids: Sequence[int], where: Filter | None, attempt: str | None = None) -> Deleted:
        """Delete by ids and by a filter; durable when it returns. `attempt` and errors as `ingest`."""

        def step(edit: Edit) -> _Answer[int]:
            repeated = edit.receipt(attempt)
            return (repeated[1].deleted, repeated[0]) if repeated else (edit.delete(ids, where, attempt), None)

        return Deleted(*_receipt_of(self._submit(_Job(step, len(ids)))))

    def change(self, change: Change, note: Note | None = None) -> CollectionState:
        """Change spaces or the default if the precondition holds in the commit itself; the new state.

        The note becomes an event of the collection's history, in the same commit.

        The bytes of a dropped space are gone when this returns.

        Raises:
            ConflictError, NotFoundError: the precondition does not hold.
            TakenOverError, UnavailableError: as `ingest`.
        """
        before = set(self.state.tombstones)
        state = self._submit(_Job(lambda edit: edit.change(change, note))).answer
        assert state is not None, "a change answers a state"
        if set(state.tombstones) - before:
            self._sweep_at = time.monotonic() + self.grace_s
            with answering(f"{self.uuid}: a space is dropped, but deleting its bytes"):
                self._sweep()
        return state

    def checkpoint(self) -> Snapshot:
        """Write what the parts lack and publish a new base; commits go on meanwhile."""
        with self._compacting, answering(f"a checkpoint of {self.uuid}"):
            return self._checkpoint()

    def compact(self) -> None:
        """Checkpoint, merge small files, delete what the grace period has released, sweep dropped spaces."""
        with self._compacting, answering(f"compacting {self.uuid}"):
            self._checkpoint()
            for space in self.state.spaces.values():
                vectors = self._vectors(space)
                vectors.compact(self._live_now)
                self._files_before[space.id] = vectors.file_count()
            self._collect()
            self._sweep()
            if self._sweep_at is not None and time.monotonic() >= self._sweep_at:
                self._sweep_at = None

    def sweep(self) -> None:
        """Delete what dropped spaces left, and nothing more: whoever drops one waits for it."""
        with answering(f"{self.uuid}: deleting the bytes of dropped spaces"):
            self._sweep()

    def due(self) -> bool:
        """Whether `compact` is worth its while."""
        base_seq, base_at = (self._base.seq, self._base.at) if self._base else (0, 0.0)
        if (
            self.seq - base_seq >= checkpoints.DUE_COMMITS
            or self._log.created_bytes - self._bytes_before >= _DUE_BYTES
        ):
            return True
        if self._sweep_at is not None and time.monotonic() >= self._sweep_at:
            return True
        if self._collected_seq < base_seq and time.time() >= base_at + self.grace_s:
            return True
        spaces = self.state.spaces.values()
        return any(self._vectors(s).file_count() - self._files_before.get(s.id, 0) >= _DUE_FILES for s in spaces)

    def close(self) -> None:
        """Stop writing and let go of the view."""
        with self._compacting, self._committing:
            self._stop(UnavailableError(f"collection {self.uuid} is closed"))
            self.view.close()

    # -- opening

    def _hold_view(self, wait_s: float) -> None:
        if not self._lock.acquire(wait_s):
            holder = self._lock.holder()
            raise TakenOverError(
                f"process {holder.get('pid')} on {holder.get('host')} writes collection {self.uuid}", holder
            )
        self._lock.sign()

    def _take_over(self) -> None:
        """Commit a takeover record at the end of the log.

        An opener that was stopped for long may find its place pruned, and win a create that means nothing:
        then there is a base beyond it, and it begins again.
        """
        while True:
            tip = self._applier.catch_up()
            record = Record(prev=tip.nonce, nonce=new_nonce(), next=tip.next, takeover=this_process())
            if not self._log.create(tip.seq + 1, record):
                continue
            self._tip = self._applier.apply(tip, record, last=True)
            if newest_base_seq(self.objects, self.uuid) < self._tip.seq:
                break
        self.state = checkpoints.state_of(self._tip)

    # -- committing

    def _submit(self, job: _Job[T]) -> _Job[T]:
        self._waiting.append(job)
        with self._committing:
            while not job.done:  # those before it may fill a commit of their own
                self._commit(self._take_waiting())
        if job.error is not None:
            raise job.error
        return job

    def _take_waiting(self) -> list[_Job[Any]]:
        jobs: list[_Job[Any]] = []
        weight = 0
        while self._waiting and (not jobs or weight + self._waiting[0].weight <= self._group_rows):
            jobs.append(self._waiting.popleft())
            weight += jobs[-1].weight
        return jobs

    def _commit(self, jobs: list[_Job[Any]]) -> None:
        try:
            if self._stopped is not None:
                raise self._stopped
            with answering(f"a commit to {self.uuid}, which may yet appear,"):
                self._write(jobs)
        except BaseException as error:  # noqa: BLE001  # every writer that waits must learn of it
            _fail(jobs, error)
        for job in jobs:
            job.done = True

    def _write(self, jobs: list[_Job[Any]]) -> None:
        """Commit what these jobs amount to; begin again where a commit of ours turned up late."""
        if self._doubtful:
            self._settle()
        while True:
            edit = Edit(self._applier.db, self._tip, self.state, self._vectors)
            with _draft(self._applier.db):
                ok = [job for job in jobs if _run(job, edit)]
                if edit.empty:
                    self._answer(ok)
                    return
                record = edit.record()
                self._doubtful.add(record.nonce)
                if self._log.create(edit.seq, record):
                    self._applier.put_vectors(self._tip, record)
                    tip = self._applier.move(self._tip, record)
                    self._applier.db.execute("commit")
                    self._tip, self.state = tip, edit.state  # not before: what is not in the view is settled anew
                    self._doubtful.clear()
                    self._answer(ok)
                    return
            self._settle()

    def _answer(self, jobs: list[_Job[Any]]) -> None:
        for job in jobs:
            job.seq = self._tip.seq

    def _settle(self) -> None:
        """Apply what a commit of ours, whose fate was unknown, has left in the log.

        Not before it is durable: whatever is answered from then on rests on it, also where it needs no commit.

        Raises:
            TakenOverError: the log holds a commit that is not ours, and this writer is done for good.
            OSError: it may not last.
        """
        while (record := self._log.read(self._tip.seq + 1)) is not None:
            if record.nonce not in self._doubtful:
                self._stop(self._taken_over(record))
                raise self._stopped  # type: ignore[misc]  # just set
            self._log.ensure_durable(self._tip.seq + 1)
            self._tip = self._applier.apply(self._tip, record, last=True)
            self.state = checkpoints.state_of(self._tip)

    def _taken_over(self, record: Record) -> TakenOverError:
        by = record.takeover or {}
        return TakenOverError(
            f"process {by.get('pid')} on {by.get('host')} has taken over collection {self.uuid}; this writer "
            "has stopped for good",
            by,
        )

    def _stop(self, error: CompassError) -> None:
        self._stopped = self._stopped or error
        self._applier.close()
        self._lock.release()

    # -- compacting

    def _prove(self) -> None:
        """Win a create: whoever takes over later sees all that was published before.

        Without that, a writer that slept through a takeover could delete what its successor still refers to.
        """
        self._submit(_Job(lambda edit: edit.touch()))

    def _live_now(self) -> IntVector:
        self._prove()
        return self.view.live_vids()

    def _checkpoint(self) -> Snapshot:
        if self._stopped is not None:
            raise self._stopped
        written = self._log.created_bytes
        self._base, seq = checkpoints.checkpoint(self.objects, self.uuid, self._applier.path, self._base)
        self._bytes_before = written
        return replace(self._base.snapshot(), seq=seq)

    def _collect(self) -> None:
        doomed = checkpoints.doomed(self.objects, self.uuid, self.grace_s)
        if doomed.keys:
            self._prove()
            self.objects.delete(doomed.keys)
        self._collected_seq = doomed.log_seq
        with self._committing:
            if self._stopped is None:
                self._tip = self._applier.trim(self._tip, doomed.oldest_base_seq)

    def _sweep(self) -> None:
        """Delete what dropped spaces left; again and again, as a late task may have written once more."""
        for space_id in self.state.tombstones:
            self.objects.delete_prefix(space_folder(self.uuid, space_id))
            self._spaces.pop(space_id, None)

    def _report_unknown(self) -> None:
        known = {*self.state.spaces, *self.state.tombstones}
        for space_id in self.objects.folders(f"{self.uuid}/spaces"):
            if space_id not in known:
                _log.warning(
                    "collection %s has a folder of an unknown space %s; it is left alone", self.uuid, space_id
                )

    def _vectors(self, space: Space) -> SpaceVectors:
        if space.id not in self._spaces:
            self._spaces[space.id] = SpaceVectors(self.objects, self.uuid, space.id, space.config.dims)
        return self._spaces[space.id]


def _receipt_of(job: _Job[_Answer[T]]) -> tuple[int, T]:
    """The commit that did a write, this one or that of an earlier attempt, and what it is answered."""
    assert job.answer is not None, "a job without an error has an answer"
    answer, seq = job.answer
    return job.seq if seq is None else seq, answer


def _fail(jobs: list[_Job[Any]], error: BaseException) -> None:
    for job in jobs:
        job.error = job.error or error


def _run(job: _Job[Any], edit: Edit) -> bool:
    """Do one job of a group; a precondition that fails fails this job alone."""
    job.error = None
    try:
        job.answer = job.step(edit)
    except CompassError as error:
        job.error = error
    return job.error is None


@contextlib.contextmanager
def _draft(db: sqlite3.Connection) -> Iterator[None]:
    """An open transaction that is rolled back unless the block commits it."""
    db.execute("begin immediate")
    try:
        yield
    finally:
        if db.in_transaction:
            db.execute("rollback")
