"""What follows from a request of a fleet that failed: where its texts go, and what becomes of the endpoint."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from compass.domain.chunk import FloatMatrix
from compass.domain.embedding.blame import OVERLOADED, Fault, fault_of
from compass.embedding.endpoint.base import TooManyError
from compass.embedding.fleet.backlog import Backlog, Job, Piece
from compass.embedding.fleet.health import FleetHealth, is_another_model, without_too_many
from compass.embedding.fleet.member import Member
from compass.embedding.isolate import Isolation
from compass.errors import EmbeddingError, EndpointForbiddenError, EndpointRefusedError

PASSED_OVER = 3  # faults of a batch, at whatever endpoints, that pass: then one of its texts may be to blame


@dataclass(frozen=True, slots=True)
class _JobLanding:
    """Puts what an isolation finds into a job."""

    job: Job

    def land(self, start: int, rows: FloatMatrix) -> None:
        Piece(self.job, start, start + len(rows)).land(rows)

    def refuse(self, at: int, reason: str) -> None:
        Piece(self.job, at, at + 1).refuse(reason)


class Faults:
    """Decides about failed requests; every text of one is put back, has its row, or is refused for itself."""

    def __init__(
        self,
        health: FleetHealth,
        backlog: Backlog,
        ask: Callable[[Member, Sequence[str]], Awaitable[FloatMatrix]],
        clock: Callable[[], float],
    ) -> None:
        """Wire it.

        Args:
            health: Of the members.
            backlog: Takes the texts that are to be sent again.
            ask: Sends one request to a member, within the limits of the whole.
            clock: Gives seconds that only grow.
        """
        self._health, self._backlog, self._ask, self._clock = health, backlog, ask, clock

    async def handle(
        self, member: Member, piece: Piece, error: TooManyError | EmbeddingError, sent_at: float
    ) -> None:
        """Find a way on for the texts of a request that was sent to `member` at `sent_at`, and failed."""
        if isinstance(error, TooManyError):
            if piece.count > 1:
                self._too_many(member, piece, error)
                return
            error = without_too_many(error)
        match fault_of(error):
            case Fault.ENDPOINT:
                self._health.exclude(member, error)
                self._backlog.put_back(piece, member.client)
            case Fault.BUSY:
                self._busy(member, piece, error, sent_at)
            case Fault.PASSING:
                await self._passing(member, piece, error, sent_at)
            case Fault.REFUSED:
                await self._refused(member, piece, error, sent_at)
            case Fault.FAILED:
                await self._failed(member, piece, error, sent_at)

    def _too_many(self, member: Member, piece: Piece, error: TooManyError) -> None:
        if error.limit is None:  # bytes: of this request alone
            self._backlog.put_back_halved(piece)
            return
        self._shrink(member, piece.count, error.limit)
        self._backlog.put_back(piece)

    def _shrink(self, member: Member, count: int, limit: int) -> None:
        """Send fewer texts than `count` at once from now on."""
        if member.batch.refused(count, limit):
            member.window.other_batches()

    async def _refused(self, member: Member, piece: Piece, error: EmbeddingError, sent_at: float) -> None:
        """A request that is turned away, and not refused as an input, may pass at another endpoint."""
        if not isinstance(error, EndpointRefusedError) and self._health.others(member, piece.tried):
            control_error = await self._health.control_error(member)
            if control_error is not None:
                self._blamed(member, control_error, sent_at)
            self._backlog.put_back(piece, member.client)
        else:
            await self._isolate(member, piece, error, sent_at)

    async def _failed(self, member: Member, piece: Piece, error: EmbeddingError, sent_at: float) -> None:
        """A fault that may be the endpoint's or a text's: try elsewhere, then look for the text."""
        if self._health.others(member, piece.tried) and not is_another_model(error):
            self._health.record_failure(member)
            self._backlog.put_back(piece, member.client)
        else:
            await self._isolate(member, piece, error, sent_at)

    async def _passing(self, member: Member, piece: Piece, error: EmbeddingError, sent_at: float) -> None:
        """It broke off, or is away: try again with patience, and look for a text when it stays with the batch."""
        if error.fields.get("status") is None:
            member.window.refused(sent_at, self._clock())
            if piece.count > 1 and not member.batch.is_proven(piece.count):
                member.batch.refused(piece.count, piece.count // 2)
        piece.faults += 1
        if piece.faults >= PASSED_OVER and not self._health.others(member, piece.tried):
            await self._isolate(member, piece, error, sent_at)
        else:
            self._health.record_failure(member)
            self._backlog.put_back(piece, member.client)

    def _busy(self, member: Member, piece: Piece, error: EmbeddingError, sent_at: float) -> None:
        self._spare(member, error, sent_at)
        overloaded = error.fields.get("status") == OVERLOADED
        self._backlog.put_back(piece, None if overloaded else member.client)

    def _spare(self, member: Member, error: EmbeddingError, sent_at: float) -> None:
        """Give it less, or nothing for a while."""
        after_s = error.fields.get("retry_after")
        if error.fields.get("status") == OVERLOADED:
            member.window.refused(sent_at, self._clock())
            self._health.overloaded(member, after_s)
        elif after_s:
            self._health.pause(member, after_s)
        else:
            self._health.mark_down(member)

    async def _isolate(self, member: Member, piece: Piece, error: EmbeddingError, sent_at: float) -> None:
        """Find which of these texts is to blame, if it is not the endpoint."""

        async def ask(texts: Sequence[str]) -> FloatMatrix:
            try:
                return await self._ask(member, texts)
            except TooManyError as refusal:
                raise without_too_many(refusal) from None

        def too_many(count: int, error: EmbeddingError) -> None:
            """A server may say "too many" in words of its own, or break down under them."""
            if not member.says_its_limit and not member.batch.is_proven(count):
                self._shrink(member, count, count // 2)

        isolation = Isolation(piece.job.texts, ask, _JobLanding(piece.job), member.client.control, too_many)
        try:
            await isolation.settle(piece.start, piece.stop, error)
        except EmbeddingError as fault:
            self._blamed(member, fault, sent_at)
            for start, stop in reversed(isolation.left):
                self._backlog.put_back(Piece(piece.job, start, stop, tried=piece.tried), member.client)

    def _blamed(self, member: Member, error: EmbeddingError, sent_at: float) -> None:
        """The endpoint is to blame: it is excluded, or put aside until a harmless text passes."""
        if isinstance(error, EndpointForbiddenError) or is_another_model(error):
            self._health.exclude(member, error)
        elif fault_of(error) is Fault.BUSY:
            self._spare(member, error, sent_at)
        else:
            self._health.mark_down(member)
