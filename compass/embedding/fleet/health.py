"""Which endpoints of a fleet may be given work: who rests, who is down, and who is excluded for good."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence, Set
from typing import Any

from compass.domain.embedding.aimd import BatchSize
from compass.domain.embedding.blame import endpoint_error
from compass.embedding.endpoint.base import Endpoint, TooManyError
from compass.embedding.fleet.member import Member
from compass.errors import EmbeddingError, EndpointAnswerError, EndpointForbiddenError, EndpointRefusedError

MAX_FAILURES = 3  # failures in a row after which an endpoint counts as down; a refused connection is enough by itself
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 15.0  # between two questions to an endpoint that is down
FIRST_REST_S, LONGEST_REST_S = 0.02, 5.0  # after 429 without a Retry-After
TOO_LARGE = 413
MAX_BAD_ANSWERS = 3  # no vectors for a harmless text, since it went down: it does not serve this space


def is_another_model(error: EmbeddingError) -> bool:
    """Whether these are vectors of other dims: nothing of it fits this space."""
    return isinstance(error, EndpointAnswerError) and "dims" in error.detail


def without_too_many(error: TooManyError) -> EndpointRefusedError:
    """Of one text that is too much by itself."""
    return EndpointRefusedError(str(error), {"status": TOO_LARGE})


class FleetHealth:
    """Moves the members of a fleet between their states.

    Attributes:
        good_at: When somebody gave a good answer, or work came after a time without any; on the clock.
    """

    def __init__(
        self,
        members: Sequence[Member],
        timeout_s: float,
        batch_size: int | None,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        has_room: Callable[[], None],
        lost: Callable[[EmbeddingError], None],
        clock: Callable[[], float],
    ) -> None:
        """Watch over `members`.

        Args:
            members: Of one fleet.
            timeout_s: Of a question to one of them.
            batch_size: Texts a request at most, whatever a member says of itself.
            spawn: Runs something in the background.
            has_room: Called when a member may be given work again.
            lost: Called when the last member was excluded.
            clock: Gives seconds that only grow.
        """
        self.good_at = 0.0
        self._members, self._timeout_s, self._wanted = members, timeout_s, batch_size
        self._spawn, self._has_room, self._lost, self._clock = spawn, has_room, lost, clock

    def probe_new(self) -> None:
        """Ask those that nobody has asked yet what they are; until then they are given nothing."""
        for member in self._members:
            if member.state == "new":
                self.mark_down(member, 0.0)

    def others(self, member: Member, tried: Set[Endpoint]) -> bool:
        """Whether another member is up that has not been tried."""
        return any(m.state == "up" and m.client not in tried for m in self._members if m is not member)

    async def control_error(self, member: Member) -> EmbeddingError | None:
        """The error that blames the endpoint, by its answer to a harmless text; None: it is not to blame."""
        try:
            await member.client.embed([member.client.control], self._timeout_s)
        except EmbeddingError as error:
            return endpoint_error(error)
        except TooManyError as error:
            return endpoint_error(without_too_many(error))
        member.failures = 0
        return None

    def record_failure(self, member: Member) -> None:
        """Count a failure; after some in a row it counts as down."""
        member.failures += 1
        if member.failures >= MAX_FAILURES and member.state in ("up", "paused"):
            self.mark_down(member)

    def overloaded(self, member: Member, after_s: float | None) -> None:
        """It answered 429, and perhaps when to come back: rest, the longer the more often it does."""
        member.overloads += 1
        if after_s is not None:
            self.pause(member, after_s)
        elif member.overloads > 1:  # once, and the smaller window is rest enough
            self.pause(member, min(FIRST_REST_S * 2 ** min(member.overloads, 16), LONGEST_REST_S))

    def pause(self, member: Member, pause_s: float) -> None:
        """Give it nothing for so long. The timer ends that, whatever the clock says: uvloop's may be early."""
        if member.state not in ("up", "paused"):
            return
        loop = asyncio.get_running_loop()
        member.state, until = "paused", loop.time() + pause_s
        if member.resuming is not None:
            until = max(until, member.resuming.when())
            member.resuming.cancel()
        member.resuming = loop.call_at(until, self._resume, member)

    def _resume(self, member: Member) -> None:
        member.resuming = None
        if member.state == "paused":
            member.state = "up"
            self._has_room()

    def mark_down(self, member: Member, pause_s: float = FIRST_PAUSE_S) -> None:
        """Give it nothing until it has given a good answer to a harmless text."""
        if member.state in ("down", "refused"):
            return
        member.state = "down" if pause_s else "new"
        self._spawn(self._probe(member, pause_s))

    def exclude(self, member: Member, error: EmbeddingError) -> None:
        """Never ask it again; without any other, the work fails with its error."""
        member.state, member.why = "refused", error
        if all(m.state == "refused" for m in self._members):
            self._lost(error)

    async def _probe(self, member: Member, pause_s: float) -> None:
        bad_answers = 0
        while member.state != "refused":
            await asyncio.sleep(pause_s * random.uniform(0.8, 1.2))
            try:
                if not member.client.docs:
                    await self._learn_batch_size(member)
                if pause_s:
                    await member.client.embed([member.client.control], self._timeout_s)
            except (EndpointForbiddenError, EndpointRefusedError) as error:
                self.exclude(member, endpoint_error(error))
            except (EmbeddingError, TooManyError) as error:
                member.state = "down"
                if isinstance(error, EndpointAnswerError) and (bad_answers := bad_answers + 1) >= MAX_BAD_ANSWERS:
                    self.exclude(member, endpoint_error(error))
                pause_s = min(max(2 * pause_s, FIRST_PAUSE_S), LONGEST_PAUSE_S)
            else:
                member.state, member.failures = "up", 0
                member.window.restart()
                if pause_s:
                    self.good_at = self._clock()
                self._has_room()
                return

    async def _learn_batch_size(self, member: Member) -> None:
        info = await member.client.describe(self._timeout_s)
        member.batch = BatchSize.of(self._wanted, info.max_batch)
