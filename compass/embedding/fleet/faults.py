"""What follows from a request of a fleet that failed: where its texts go, and what becomes of the endpoint."""

from __future__ import annotations

from collections.abc import Callable

from compass.embedding.endpoint.base import TooManyError
from compass.embedding.fleet.backlog import Backlog, Piece
from compass.embedding.fleet.health import FleetHealth
from compass.embedding.fleet.member import Member
from compass.embedding.isolate import MODEL_FAILED, Blame, blame, refuses_everything
from compass.errors import (
    EmbeddingError,
    EndpointAnswerError,
    EndpointForbiddenError,
    EndpointRefusedError,
    EndpointUnavailableError,
)

SUSPICIONS = 2  # faults of a batch, at whatever endpoints, that may be its own: then it is halved
OVERLOADED = 429
MAYBE_ITS_OWN = frozenset({MODEL_FAILED, 500})  # the model failed: at this input, or at any


class Faults:
    """Decides about failed requests; every text of one is put back, or refused for itself."""

    def __init__(self, health: FleetHealth, backlog: Backlog, clock: Callable[[], float]) -> None:
        """Judge the members by `health`, put texts back into `backlog`; `clock` gives seconds that only grow."""
        self._health, self._backlog, self._clock = health, backlog, clock

    async def handle(
        self, member: Member, piece: Piece, error: TooManyError | EmbeddingError, sent_at: float
    ) -> None:
        """Find a way on for the texts of a request that was sent to `member` at `sent_at`, and failed."""
        match error:
            case TooManyError():
                self._too_many(member, piece, error)
            case EndpointRefusedError():
                if piece.count > 1 and not member.says_its_limit and not member.batch.is_proven(piece.count):
                    self._shrink(member, piece)  # a server may say "too many" in words of its own
                else:
                    await self._isolate(member, piece, error.detail)
            case EndpointForbiddenError():
                self._health.exclude(member, error)
                self._backlog.put_back(piece, member.client)
            case EndpointAnswerError():
                await self._bad_answer(member, piece, error)
            case EndpointUnavailableError():
                await self._unavailable(member, piece, error, sent_at)
            case _:
                piece.job.fail(error)

    def _too_many(self, member: Member, piece: Piece, error: TooManyError) -> None:
        if piece.count == 1:
            piece.refuse(str(error))
        elif error.limit is None:  # bytes: of this request alone
            self._backlog.put_back_halved(piece)
        else:
            self._shrink(member, piece, error.limit)

    def _shrink(self, member: Member, piece: Piece, limit: int | None = None) -> None:
        """Send fewer texts at once from now on, these among them."""
        if member.batch.refused(piece.count, limit or piece.count // 2):
            member.window.other_batches()
        self._backlog.put_back(piece)

    async def _bad_answer(self, member: Member, piece: Piece, error: EndpointAnswerError) -> None:
        if "dims" in error.detail and isinstance(await self._health.control_error(member), EndpointAnswerError):
            self._health.exclude(member, error)  # another model: nothing of it fits this space
            self._backlog.put_back(piece, member.client)
        else:
            await self._suspect(member, piece, error)

    async def _suspect(self, member: Member, piece: Piece, error: EmbeddingError) -> None:
        """A fault that may be the endpoint's or a text's: try again, then look for the text."""
        self._health.record_failure(member)
        piece.suspicions += 1
        if piece.suspicions < SUSPICIONS:
            self._backlog.put_back(piece, member.client)
        else:
            await self._isolate(member, piece, error.detail)

    async def _isolate(self, member: Member, piece: Piece, reason: str) -> None:
        """One of these texts is refused for itself; a last one is, unless a harmless one is refused as well."""
        if piece.count > 1:
            self._backlog.put_back_halved(piece)
            return
        control_error = await self._health.control_error(member)
        match blame(control_error):
            case Blame.TEXT:
                piece.refuse(reason)
                return
            case Blame.ENDPOINT if control_error is not None:
                fault = EndpointForbiddenError(refuses_everything(reason), control_error.fields)
                self._health.exclude(member, fault)
            case _:
                self._health.record_failure(member)
        self._backlog.put_back(piece, member.client)

    async def _unavailable(
        self, member: Member, piece: Piece, error: EndpointUnavailableError, sent_at: float
    ) -> None:
        status, after_s = error.fields.get("status"), error.fields.get("retry_after")
        unproven = piece.count > 1 and not member.batch.is_proven(piece.count)
        if status in MAYBE_ITS_OWN:
            if unproven:
                self._shrink(member, piece)
            else:
                await self._suspect(member, piece, error)
            return
        if status == OVERLOADED:
            member.window.refused(sent_at, self._clock())
            self._health.overloaded(member, after_s)
        elif after_s:
            self._health.pause(member, after_s)
        elif error.fields.get("unreachable"):
            self._health.mark_down(member)
        else:
            if status is None:  # it was silent, or broke off
                member.window.refused(sent_at, self._clock())
                if unproven:
                    member.batch.refused(piece.count, piece.count // 2)
            self._health.record_failure(member)
        self._backlog.put_back(piece, None if status == OVERLOADED else member.client)
