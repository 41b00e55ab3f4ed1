"""Texts that wait for an endpoint, the oldest first."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence, Set
from dataclasses import dataclass, field

from compass.domain.chunk import FloatMatrix
from compass.embedding.endpoint.base import Endpoint


@dataclass(slots=True, eq=False)
class Job:
    """One call of `embed_each`: rows come in any order.

    Attributes:
        left: Texts without an outcome.
        done: Set when there are none.
        landed: Positions of the texts that have their row.
        refused: Why a text is refused for itself, by position.
        requests: Those under way.
    """

    texts: Sequence[str]
    rows: FloatMatrix
    left: int
    done: asyncio.Future[None]
    landed: set[int] = field(default_factory=set)
    refused: dict[int, str] = field(default_factory=dict)
    requests: set[asyncio.Task[None]] = field(default_factory=set)

    def fail(self, error: BaseException) -> None:
        """End the call with an error."""
        if not self.done.done():
            self.done.set_exception(error)


@dataclass(slots=True, eq=False)
class Piece:
    """Texts start..stop of a job.

    Attributes:
        faults: Faults so far that pass by themselves, or stay with one of the texts.
        tried: The endpoints that it failed at.
    """

    job: Job
    start: int
    stop: int
    faults: int = 0
    tried: frozenset[Endpoint] = frozenset()

    @property
    def count(self) -> int:
        """How many texts."""
        return self.stop - self.start

    @property
    def texts(self) -> Sequence[str]:
        """The texts."""
        return self.job.texts[self.start : self.stop]

    def land(self, rows: FloatMatrix) -> None:
        """Its texts have their rows."""
        self.job.rows[self.start : self.stop] = rows
        self.job.landed.update(range(self.start, self.stop))
        self._settle()

    def refuse(self, reason: str) -> None:
        """Its text, the only one, is refused for itself."""
        self.job.refused[self.start] = reason
        self._settle()

    def _settle(self) -> None:
        self.job.left -= self.count
        if not self.job.left and not self.job.done.done():
            self.job.done.set_result(None)


class Backlog:
    """The queue of a fleet."""

    def __init__(self) -> None:
        self.jobs: set[Job] = set()
        self._pieces: deque[Piece] = deque()

    def __bool__(self) -> bool:
        return bool(self._pieces)

    def add(self, job: Job, stretches: Sequence[tuple[int, int]]) -> None:
        """Take a job, of whose texts these stretches are to be sent."""
        self.jobs.add(job)
        self._pieces.extend(Piece(job, start, stop) for start, stop in stretches)

    def remove(self, job: Job) -> None:
        """Forget a job: its texts leave the queue, its requests end."""
        self.jobs.discard(job)
        self._pieces = deque(piece for piece in self._pieces if piece.job is not job)
        for task in list(job.requests):
            task.cancel()

    def take(self, endpoint: Endpoint, size: int, others: Set[Endpoint]) -> Piece | None:
        """The next piece of up to `size` texts for an endpoint; what failed there waits for one of the others."""
        for place, piece in enumerate(self._pieces):
            if endpoint in piece.tried and others - piece.tried:
                continue
            del self._pieces[place]
            if piece.count > size:
                rest = Piece(piece.job, piece.start + size, piece.stop, piece.faults, piece.tried)
                self._pieces.insert(place, rest)
                piece.stop = piece.start + size
            return piece
        return None

    def put_back(self, piece: Piece, failed_at: Endpoint | None = None) -> None:
        """To the front of the queue: what is oldest goes first."""
        if failed_at is not None:
            piece.tried |= {failed_at}
        if piece.job in self.jobs:
            self._pieces.appendleft(piece)

    def put_back_halved(self, piece: Piece) -> None:
        """As two pieces, of which nothing is known."""
        middle = (piece.start + piece.stop) // 2
        self.put_back(Piece(piece.job, middle, piece.stop))
        self.put_back(Piece(piece.job, piece.start, middle))

    def fail_all(self, error: BaseException) -> None:
        """End every call with an error."""
        for job in list(self.jobs):
            job.fail(error)
