"""The stored record of a run: only the accepted attempt writes it, and only until it has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from compass.domain.rebuild.run_record import RunRecord
from compass.errors import ConflictError
from compass.storage.spaces.vectors import SpaceVectors


class StaleRunError(ConflictError):
    """Another attempt has been accepted meanwhile: this one may not append any more."""

    type, title = "stale-run", "Another rebuild run was accepted"


def check_accepted(vectors: SpaceVectors, attempt: str) -> None:
    """Check that the stored record says that this attempt runs; blocking.

    Raises:
        StaleRunError: it was cancelled, or another one was accepted.
    """
    record = vectors.read_run()
    if record is None or record.attempt != attempt or not record.running:
        raise StaleRunError(
            f"the rebuild attempt {attempt} was ended or replaced; it writes nothing more",
            {"attempt": attempt, "accepted": record.attempt if record else None},
        )


class RunStore:
    """Keeps the record of one space's run.

    Attributes:
        record: As it was last stored from here; None before the first `accept`.
    """

    def __init__(self, vectors: SpaceVectors) -> None:
        self.record: RunRecord | None = None
        self._vectors = vectors
        self._writing = asyncio.Lock()
        self._closed = False

    @property
    def accepted(self) -> RunRecord:
        """The record of the attempt that was accepted last."""
        assert self.record is not None
        return self.record

    def is_attempt(self, attempt: str) -> bool:
        """Whether this is the attempt that was accepted last."""
        return self.record is not None and self.record.attempt == attempt

    async def read(self) -> RunRecord | None:
        """The record as it is stored, by whomever; None without one."""
        return await asyncio.to_thread(self._vectors.read_run)

    async def accept(self, record: RunRecord) -> None:
        """Store the record of a new attempt, whatever was stored before."""
        async with self._writing:
            self.record = record
            await asyncio.to_thread(self._vectors.write_run, record)

    async def save(self, update: Callable[[RunRecord], RunRecord]) -> None:
        """Store what `update` makes of the running record.

        Raises:
            StaleRunError: the run has ended, or another attempt has been accepted meanwhile.
        """
        async with self._writing:
            if self._closed or self.record is None or not self.record.running:
                raise StaleRunError(f"the run of space {self._vectors.space_id} has ended")
            await asyncio.to_thread(check_accepted, self._vectors, self.record.attempt)
            self.record = update(self.record)
            await asyncio.to_thread(self._vectors.write_run, self.record)

    async def close(self) -> None:
        """Write nothing more: the record is that of whoever resumes."""
        async with self._writing:
            self._closed = True
