"""Who is to blame when texts get no vectors: one of the texts, or the endpoint. The one rule, for whoever embeds.

A batch that was answered badly is halved until the text at fault stands alone. A half that passes shows that the
endpoint works. Two halves that both fail show nothing, nor does a text that fails alone: then the endpoint is asked
for a control, a harmless text that it has embedded before. Where the control fails too the endpoint is to blame, and
no text is. A text is to blame when it failed alone and the endpoint gave a good answer since; where the fault may
pass, it has failed alone twice.

The order counts: a text alone in its request is asked once more after the control, so that an endpoint that was away
for a moment costs no text. The last text of a batch has failed in company, before another one passed; it is asked
once more at once, so that an endpoint that fails every other time costs no text either.

One text at fault among n costs 2 log2(n) + 2 further requests at most. What may pass by itself, such as a closed
connection, is tried some times more each time.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from compass.domain.chunk import FloatMatrix, has_text
from compass.domain.embedding.blame import Fault, endpoint_error, fault_of, reason_of
from compass.domain.embedding.contract import CONTROL_TEXT, Embedded, Embedder
from compass.errors import EmbeddingError, EndpointRefusedError

EMPTY_TEXT = "the text is empty: it has no vector"
ATTEMPTS = 3  # of a request whose fault passes; one that was answered with silence has taken its time already
FIRST_PAUSE_S = 0.1  # between two of them; it doubles


def split_at_empty(texts: Sequence[str]) -> tuple[list[tuple[int, int]], dict[int, str]]:
    """The stretches (start, stop) of texts that are not empty, and why the empty ones are refused, by position.

    No endpoint is asked for an empty text.
    """
    stretches: list[tuple[int, int]] = []
    refused: dict[int, str] = {}
    start = 0
    for i, text in enumerate(texts):
        if not has_text(text):
            refused[i] = EMPTY_TEXT
            stretches.append((start, i))
            start = i + 1
    stretches.append((start, len(texts)))
    return [(a, b) for a, b in stretches if a < b], refused


@runtime_checkable
class IsolatingEmbedder(Embedder, Protocol):
    """An embedder that finds the texts at fault itself, request by request."""

    async def embed_each(self, texts: Sequence[str]) -> Embedded:
        """As `embed_each` of this module."""


async def embed_each(embedder: Embedder, texts: Sequence[str]) -> Embedded:
    """Embed all that can be embedded: a text that is to blame fails alone, the rest goes on.

    Embedders of endpoints find such texts themselves. Of any other one, a model in this process, only a refusal is
    looked into: whatever else goes wrong there is raised as it is.

    Raises:
        EndpointForbiddenError: the endpoint refuses everything.
        EndpointUnavailableError: it fails at everything, is down or overloaded.
        EndpointAnswerError: it answers everything with what are no vectors of the space.
    """
    if isinstance(embedder, IsolatingEmbedder):
        return await embedder.embed_each(texts)
    stretches, refused = split_at_empty(texts)
    outcome = Outcome(refused=refused)
    await Isolation(texts, embedder.embed, outcome, fault_of=_refusals_alone).embed(stretches)
    return outcome.embedded(None if outcome.parts else await embedder.embed([]))


def _refusals_alone(error: EmbeddingError) -> Fault:
    return fault_of(error) if isinstance(error, EndpointRefusedError) else Fault.ENDPOINT


@dataclass(slots=True)
class Outcome:
    """What became of the texts of a call, in whatever order it is found out.

    Attributes:
        parts: Rows by the position of their first text.
        refused: Why a text is to blame, by position.
    """

    parts: dict[int, FloatMatrix] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)

    def land(self, start: int, rows: FloatMatrix) -> None:
        """The texts from `start` on have these rows."""
        self.parts[start] = rows

    def refuse(self, at: int, reason: str) -> None:
        """This text is to blame."""
        self.refused[at] = reason

    def embedded(self, no_rows: FloatMatrix | None) -> Embedded:
        """All of it, in the order of the texts; `no_rows`, of shape (0, dims), where there may be none."""
        starts = sorted(self.parts)
        rows = [at for start in starts for at in range(start, start + len(self.parts[start]))]
        none = [] if no_rows is None else [no_rows]
        vectors = np.concatenate([*none, *(self.parts[start] for start in starts)])
        return Embedded(rows, vectors, dict(sorted(self.refused.items())))


class Landing(Protocol):
    """Where the outcome of texts is put."""

    def land(self, start: int, rows: FloatMatrix) -> None:
        """The texts from `start` on have these rows."""

    def refuse(self, at: int, reason: str) -> None:
        """This text is to blame."""


@dataclass(frozen=True, slots=True)
class _Failure:
    """A stretch that failed, and how many good answers there had been until then."""

    start: int
    stop: int
    error: EmbeddingError
    good_answers: int


class Isolation:
    """Finds which texts of a bad answer are to blame, at one endpoint.

    Attributes:
        left: The stretches (start, stop) whose outcome is not known yet, in order.
    """

    def __init__(
        self,
        texts: Sequence[str],
        send: Callable[[Sequence[str]], Awaitable[FloatMatrix]],
        landing: Landing,
        control: str = CONTROL_TEXT,
        too_many: Callable[[int, EmbeddingError], None] = lambda count, error: None,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        fault_of: Callable[[EmbeddingError], Fault] = fault_of,
    ) -> None:
        """Ask nothing yet.

        Args:
            texts: Of which stretches are to be settled.
            send: One request for these texts to the endpoint; raises an EmbeddingError.
            landing: Told what becomes of each text.
            control: A harmless text.
            too_many: Told when a batch of `count` texts failed with an error, and both its halves passed.
            pause: Waits so many seconds.
            fault_of: What an error says of the texts of its request.
        """
        self.left: list[tuple[int, int]] = []
        self._texts, self._send, self._landing = texts, send, landing
        self._reason = ""
        self._control, self._too_many, self._pause = control, too_many, pause
        self._fault_of = fault_of
        self._good_answers = 0  # to whatever text, since the first bad one

    async def embed(self, stretches: Sequence[tuple[int, int]]) -> None:
        """Settle stretches that it has not been asked for yet.

        Raises:
            EmbeddingError: as `settle`.
        """
        self.left.extend(stretches)
        for stretch in stretches:
            failure = await self._try(*stretch)
            if failure is not None:
                await self._settle(*stretch, failure.error)

    async def settle(self, start: int, stop: int, error: EmbeddingError) -> None:
        """Settle a stretch whose request was answered with `error`; what it finds is final, text by text.

        Raises:
            EmbeddingError: the endpoint is to blame, or has too much to do; `left` is what is not settled.
        """
        self.left.append((start, stop))
        if (
            stop - start > 1 and self._fault_of(error) is Fault.PASSING
        ):  # tried for a while: is the endpoint there at all?
            await self.ask_control()
        await self._settle(start, stop, error)

    async def ask_control(self) -> None:
        """Return once the endpoint has embedded a harmless text.

        Raises:
            EmbeddingError: it has not: the endpoint is to blame.
        """
        answer = await self._request([self._control])
        if not isinstance(answer, EmbeddingError):
            self._good_answers += 1
            return
        raise endpoint_error(answer) if self._fault_of(answer).may_be_a_texts else answer

    async def _settle(self, start: int, stop: int, error: EmbeddingError) -> None:
        if not self._fault_of(error).may_be_a_texts:
            raise error
        if stop - start == 1:  # a request of its own: once more is right after the control
            await self.ask_control()
            if await self._fails_once_more(start, error):
                self._refuse(start)
            return
        middle = (start + stop) // 2
        halves = [(start, middle), (middle, stop)]
        self._replace((start, stop), halves)
        failures = [failure for half in halves if (failure := await self._try(*half)) is not None]
        if not failures:
            self._too_many(stop - start, error)
        elif len(failures) == 2 and not self._good_answers:
            await self.ask_control()
        for failure in failures:
            if not self._fault_of(failure.error).may_be_a_texts:
                raise failure.error
            if failure.stop - failure.start > 1:
                await self._settle(failure.start, failure.stop, failure.error)
            else:
                await self._settle_last(failure)

    async def _settle_last(self, failure: _Failure) -> None:
        """A text that is left of a batch: it fails alone, perhaps once more, and a control has passed since."""
        if await self._fails_once_more(failure.start, failure.error):
            if self._good_answers == failure.good_answers:
                await self.ask_control()
            self._refuse(failure.start)

    async def _fails_once_more(self, at: int, error: EmbeddingError) -> bool:
        """Whether a text still fails, where its fault may pass; keeps the last reason.

        Raises:
            EmbeddingError: the endpoint has too much to do.
        """
        self._reason = reason_of(error)
        if not self._fault_of(error).may_pass:
            return True
        failure = await self._try(at, at + 1)
        if failure is None:
            return False
        if not self._fault_of(failure.error).may_be_a_texts:
            raise failure.error
        self._reason = reason_of(failure.error)
        return True

    def _refuse(self, at: int) -> None:
        self._landing.refuse(at, self._reason)
        self.left.remove((at, at + 1))

    async def _try(self, start: int, stop: int) -> _Failure | None:
        """Ask for a stretch: its rows land, or its failure is returned."""
        rows = await self._request(self._texts[start:stop])
        if isinstance(rows, EmbeddingError):
            return _Failure(start, stop, rows, self._good_answers)
        self._good_answers += 1
        self._landing.land(start, rows)
        self.left.remove((start, stop))
        return None

    async def _request(self, texts: Sequence[str]) -> FloatMatrix | EmbeddingError:
        """One request, tried again with patience while its fault is one that passes."""
        pause_s = FIRST_PAUSE_S
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await self._send(texts)
            except EmbeddingError as fault:
                error = fault
            if self._fault_of(error) is not Fault.PASSING or error.fields.get("timed_out") or attempt == ATTEMPTS:
                break
            await self._pause(pause_s * random.uniform(0.5, 1.5))
            pause_s *= 2
        return error

    def _replace(self, stretch: tuple[int, int], parts: Sequence[tuple[int, int]]) -> None:
        at = self.left.index(stretch)
        self.left[at : at + 1] = parts
