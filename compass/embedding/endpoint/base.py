"""What every embedding endpoint is, whichever way it is reached: checked rows, named faults, an account of both."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from compass.domain.chunk import FloatMatrix
from compass.domain.embedding.contract import (
    CONTROL_TEXT,
    ErrorBody,
    Kind,
    ServerInfo,
    Verdict,
    classify_answer,
    smaller_batch,
)
from compass.domain.embedding.endpoint_stats import EndpointStats
from compass.domain.embedding.endpoint_url import EndpointUrl
from compass.domain.rebuild.budget import Meter, guessed_tokens, most_tokens
from compass.domain.space import SpaceConfig, prepare_vectors, why_unfit
from compass.errors import (
    CompassError,
    EndpointAnswerError,
    EndpointForbiddenError,
    EndpointRefusedError,
    EndpointUnavailableError,
)

INFO_TIMEOUT_S = 5.0
CONTROL_CHARS = 1_000  # of a control; a longer text may be refused for its length by another server of the model
TURNS_TO_SEND = 3  # of the event loop, from a request's start until aiohttp has written it


class TooManyError(Exception):
    """More than the endpoint takes in one request: inputs, or bytes where `limit` is None."""

    def __init__(self, detail: str, limit: int | None) -> None:
        super().__init__(detail)
        self.limit = limit


@dataclass(slots=True)
class PendingRequest:
    """One request for rows, on its way.

    Attributes:
        info: What is known of the server.
        on_received: Called when the server is through with the rows and they have yet to be read.
        cost_tokens: What it has to be paid for: without an answer, all that it may have cost.
        tokens: As the server counted them; 0 if it does not.
    """

    texts: Sequence[str]
    timeout_s: float
    info: ServerInfo
    on_received: Callable[[], None] | None
    cost_tokens: int = 0
    tokens: int = 0


@dataclass(slots=True, eq=False)
class Endpoint:
    """One server. `info` is None until it has said, in some way, what it is.

    Attributes:
        url: Where it is.
        meter: Asked before each request that embeds; None: nobody counts what it costs.
        control: A harmless text: one that it has embedded, if there is a short one.
        docs: Texts answered, since the first was asked for.
        tokens: Of those, as the server counted them.
    """

    url: EndpointUrl
    config: SpaceConfig
    kind: Kind
    info: ServerInfo | None = field(default=None, kw_only=True)
    meter: Meter | None = field(default=None, kw_only=True)
    control: str = field(default=CONTROL_TEXT, init=False)
    in_flight: int = field(default=0, init=False)
    docs: int = field(default=0, init=False)
    tokens: int = field(default=0, init=False)
    errors: int = field(default=0, init=False)
    last_error: str | None = field(default=None, init=False)
    _asked_at: float | None = field(default=None, init=False)

    @property
    def shown(self) -> str:
        """The URL without its secrets."""
        return self.url.shown

    async def embed(
        self, texts: Sequence[str], timeout_s: float, on_received: Callable[[], None] | None = None
    ) -> FloatMatrix:
        """The rows of texts that are one request: float32, shape (n, dims), checked, normalised for cosine.

        `on_received` is called when the server is through with its rows and they have yet to be read.

        Raises:
            TooManyError: it wants fewer inputs, or bytes.
            EndpointRefusedError: it will not take one of these inputs.
            EndpointUnavailableError: it is down, overloaded (`retry_after` in the fields where it says when to
                come back), or its model failed (`status` 424).
            EndpointAnswerError: it answered 200 with what are no vectors of this space.
            EndpointForbiddenError: no request of this form will ever succeed.
            BudgetSpentError: nothing was sent: it might cost more than is left.
        """
        info = self.info or await self.describe(timeout_s)
        reserved = 0 if self.meter is None else await self.meter.reserve(most_tokens(texts))
        pending = PendingRequest(texts, timeout_s, info, on_received, reserved)
        try:
            with self._counted(len(texts)):
                rows = await self._exchange(pending)
                self.tokens += pending.tokens
                self._remember(texts)
                return rows
        finally:
            if self.meter is not None:
                self.meter.settle(reserved, pending.cost_tokens)

    def _remember(self, texts: Sequence[str]) -> None:
        """Keep the shortest of the first texts that it has embedded."""
        if self.control == CONTROL_TEXT and (shortest := min(texts, key=len, default="")):
            self.control = shortest if len(shortest) <= CONTROL_CHARS else CONTROL_TEXT

    async def _exchange(self, pending: PendingRequest) -> FloatMatrix:
        """Send the texts, read the rows; notes in `pending` what that has cost."""
        raise NotImplementedError

    async def _received(self, pending: PendingRequest, tokens: int) -> None:
        """Take note of a good answer, before its rows are read. `tokens`: 0 if the server does not count."""
        pending.tokens = tokens
        pending.cost_tokens = tokens or math.ceil(guessed_tokens(sum(map(len, pending.texts))))
        if pending.on_received is not None:
            pending.on_received()
            for _ in range(TURNS_TO_SEND):  # what it has set off is sent before these rows take their time
                await asyncio.sleep(0)

    async def describe(self, timeout_s: float = INFO_TIMEOUT_S) -> ServerInfo:
        """Ask what it is; `info` holds the answer from then on.

        Raises:
            EndpointUnavailableError: it is not up.
        """
        raise NotImplementedError

    def stats(self) -> EndpointStats:
        """How it does, since it was made."""
        elapsed_s = time.monotonic() - self._asked_at if self._asked_at else 0.0
        return EndpointStats(
            url=self.shown,
            in_flight=self.in_flight,
            docs_per_s=round(self.docs / elapsed_s, 1) if elapsed_s else 0.0,
            docs=self.docs,
            tokens=self.tokens,
            errors=self.errors,
            last_error=self.last_error,
        )

    @contextmanager
    def _counted(self, count: int) -> Iterator[None]:
        """Keep count of a request for `count` texts, and of how it ends."""
        self._asked_at = self._asked_at or time.monotonic()
        self.in_flight += 1
        try:
            yield
            self.docs += count
        except CompassError as error:
            self.errors, self.last_error = self.errors + 1, error.detail
            raise
        finally:
            self.in_flight -= 1

    def _error_of(
        self, status: int, body: ErrorBody, count: int, after_s: float | None = None, advice: str | None = None
    ) -> Exception:
        """The error that an answer other than 200, to a request for `count` texts, stands for."""
        detail = f"{self.shown} answered {status}{': ' + body.reason if body.reason else ''}"
        fields: dict[str, Any] = {"endpoint": self.shown, "status": status}
        match classify_answer(status, body):
            case Verdict.TOO_MANY:
                return TooManyError(detail, smaller_batch(count, body))
            case Verdict.TOO_LARGE:
                return TooManyError(detail, None)
            case Verdict.REFUSED:
                return EndpointRefusedError(detail, fields)
            case Verdict.BACKEND | Verdict.BUSY:
                if after_s is not None:
                    fields["retry_after"] = after_s
                return EndpointUnavailableError(detail, fields)
        return EndpointForbiddenError(f"{detail} ({advice})" if advice else detail, fields)

    def _checked_rows(self, rows: FloatMatrix | None, count: int, reason: str | None = None) -> FloatMatrix:
        """Rows that are vectors of the space, as it wants them; or None, and the reason why there are none.

        Raises:
            EndpointAnswerError: they are not.
        """
        if rows is not None:
            reason = why_unfit(rows, self.config.dims)
            if reason is None and len(rows) != count:
                reason = f"expected {count} rows, got {len(rows)}"
            if reason is None:
                return prepare_vectors(rows, self.config.metric)
        detail = f"{self.shown} answered 200, but not with vectors of this space: {reason}"
        raise EndpointAnswerError(detail, {"endpoint": self.shown, "reason": reason})
