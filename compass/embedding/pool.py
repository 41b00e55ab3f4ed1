"""Embedding endpoints that a query or a follower asks: they wait for nobody for long.

Batches go round robin, a batch that failed is tried at the next endpoint. A rebuild, which waits for its
endpoints and gives each what it can take, has `compass.embedding.fleet`.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import stamina

from compass.domain.chunk import FloatMatrix, has_text
from compass.domain.embedding.aimd import FIRST_BATCH
from compass.domain.embedding.blame import FILTERED, MODEL_FAILED, Fault, fault_of, reason_of
from compass.domain.embedding.contract import Embedded, Kind, ServerInfo
from compass.domain.embedding.endpoint_stats import EndpointStats
from compass.domain.embedding.endpoint_url import EndpointUrl
from compass.domain.space import SpaceConfig
from compass.embedding.endpoint.base import Endpoint, TooManyError
from compass.embedding.endpoint.connections import Connections
from compass.embedding.endpoint.open import open_endpoint
from compass.embedding.endpoint.wire import check_key
from compass.embedding.isolate import Isolation, Outcome, split_at_empty
from compass.errors import (
    EmbeddingError,
    EndpointAnswerError,
    EndpointRefusedError,
    EndpointUnavailableError,
    InvalidRequestError,
)

BACKEND_ATTEMPTS = 3  # how often 424 is taken for the moment's fault, before it is taken for the input's
REQUESTS_PER_ENDPOINT = 4
TOO_LARGE = 413

_T = TypeVar("_T")


@dataclass(slots=True)
class _Patience:
    """What one batch has met so far; as stamina's backoff hook it decides whether and when to try again.

    Attributes:
        total_s: How long it may be tried.
        others: Endpoints that have not been tried yet.
        isolates: Whether texts at fault are looked for afterwards: then what may be a text's is not tried again,
            except elsewhere.
        only: The one endpoint that is asked; None: any.
        asked: The last one that was asked.
    """

    total_s: float
    others: int
    isolates: bool = False
    only: Endpoint | None = None
    asked: Endpoint | None = None
    started: float = field(default_factory=time.monotonic)
    backend_failures: int = 0
    last: Exception | None = None

    def left_s(self) -> float:
        """Seconds until the batch is given up; 0 when too few are left for a request that proves anything."""
        left = self.started + self.total_s - time.monotonic()
        return left if left > min(1.0, self.total_s / 10) else 0.0

    def _may_help(self, error: EmbeddingError) -> bool:
        """Whether the same request may succeed, here or elsewhere."""
        fault = fault_of(error)
        if self.only is not None:  # whoever isolates has patience of its own
            return fault is Fault.BUSY
        if self.isolates and fault in (Fault.FAILED, Fault.REFUSED):
            return self.others > 0 and not isinstance(error, EndpointRefusedError)
        return isinstance(error, EndpointUnavailableError | EndpointAnswerError)

    def __call__(self, error: Exception) -> bool | float:
        """True: after stamina's own backoff with jitter; a float: after so many seconds; False: no more."""
        if not isinstance(error, EmbeddingError) or not self._may_help(error):
            return False
        self.last, after_s = error, error.fields.get("retry_after")
        if self.others > 0:
            self.others -= 1
            return 0.001
        if after_s is None or after_s < 0.1:
            return self.left_s() > 0
        return after_s * random.uniform(1.0, 1.1) if after_s < self.left_s() else False


class PoolEmbedder:
    """The `Embedder` of one space over one or several endpoints that serve the same model.

    Batches go round robin; a batch that failed is tried at the next endpoint. May be used from several event
    loops, each has its own connections.

    Args:
        endpoints: Each by its URL; none is "builtin".
        config: dims and metric that the rows are checked against; the options that the space sends.
        timeout_s: Of one request, connecting included.
        retry_s: How long one batch is tried again; 0: one attempt per endpoint.
        batch_size: Texts a request at most; the server's limit counts if it is smaller.
        api_key: Sent as `Authorization: Bearer`.
        kind: Which of the space's prompt names is sent.
        connections: Theirs alone; closed with the embedder.

    Raises:
        InvalidRequestError: there is no endpoint, or the key cannot be a header.
    """

    def __init__(
        self,
        endpoints: Sequence[EndpointUrl],
        config: SpaceConfig,
        *,
        timeout_s: float,
        retry_s: float,
        batch_size: int | None = None,
        api_key: str | None = None,
        kind: Kind,
        connections: Connections | None = None,
    ) -> None:
        if not endpoints:
            raise InvalidRequestError("a PoolEmbedder wants at least one endpoint")
        key = check_key(api_key)
        self._connections = connections or Connections()
        self._endpoints = [open_endpoint(url, config, kind, key, self._connections) for url in endpoints]
        self._next = itertools.cycle(self._endpoints)
        self._config = config
        self._timeout_s, self._retry_s = timeout_s, retry_s
        self._wanted = batch_size
        self._kind = kind
        self._learnt: int | None = None  # the largest batch that no endpoint has refused
        self._proven = 0  # the largest batch that was answered
        self._slots: dict[asyncio.AbstractEventLoop, asyncio.Semaphore] = {}

    def __repr__(self) -> str:
        return f"PoolEmbedder({[e.shown for e in self._endpoints]})"

    @property
    def batch_size(self) -> int:
        """Texts in one request, as far as is known now."""
        known = [size for size in (self._wanted, self._learnt) if size is not None]
        return max(1, min(known, default=FIRST_BATCH))

    async def embed(self, texts: Sequence[str]) -> FloatMatrix:
        """One row per text, in order: float32, shape (n, dims), checked, and normalised for cosine.

        Requests go out several at a time. The first one goes alone as long as no server has said how many
        inputs it takes, so that the others have the right size.

        Raises:
            EndpointRefusedError: it refuses an input, or one is empty; see `isolate.embed_each`.
            EndpointUnavailableError, EndpointAnswerError: it was down, or lied, until `retry_s` was over.
            EndpointForbiddenError: no retry helps: a key, a redirect, no /embed there.
        """
        for i, text in enumerate(texts):
            if not has_text(text):
                raise EndpointRefusedError(f"text {i} is empty: it has no vector and is never sent", {"row": i})
        done = 0
        parts: list[FloatMatrix] = [self._no_rows()]
        if texts and all(e.info is None for e in self._endpoints):
            done = min(self.batch_size, len(texts))
            parts.append(await self._batch(texts[:done]))
        step = self.batch_size
        rest = [self._batch(texts[i : i + step]) for i in range(done, len(texts), step)]
        return np.concatenate(parts + await _all(rest))

    async def embed_each(self, texts: Sequence[str]) -> Embedded:
        """Embed all that can be embedded: a text that is to blame for a bad answer fails alone, the rest goes on.

        With several endpoints a batch that one has failed at, or turned away, is tried at the others first.

        Raises:
            EmbeddingError: as `isolate.embed_each`.
        """
        stretches, refused = split_at_empty(texts)
        outcome = Outcome(refused=refused)
        if stretches and all(e.info is None for e in self._endpoints):
            start, stop = stretches.pop(0)
            middle = min(start + self.batch_size, stop)
            await self._settle(texts, start, middle, outcome)
            stretches = [*([(middle, stop)] if middle < stop else []), *stretches]
        await _all(self._settlings(texts, stretches, outcome))
        return outcome.embedded(self._no_rows())

    def endpoints(self) -> list[EndpointStats]:
        """How each endpoint does, in their order."""
        return [endpoint.stats() for endpoint in self._endpoints]

    async def describe(self) -> list[ServerInfo]:
        """What each endpoint's `/info` says now, in their order.

        Raises:
            EndpointUnavailableError: one is not up.
        """
        return [await endpoint.describe(self._timeout_s) for endpoint in self._endpoints]

    async def close(self) -> None:
        """Close the connections of every event loop that still runs."""
        await self._connections.close()

    async def _batch(self, texts: Sequence[str]) -> FloatMatrix:
        """The rows of texts that are meant to be one request; in halves where a server wants fewer."""
        try:
            async with self._request_slots():
                patience = self._patience()
                try:
                    return await self._retry(texts, patience)
                except EmbeddingError as error:
                    fault = error
            return await self._rows_after_all(texts, fault, patience.asked)
        except TooManyError as refusal:
            if len(texts) == 1:
                raise EndpointRefusedError(str(refusal), {"status": TOO_LARGE}) from None
            step = min(self.batch_size, (len(texts) + 1) // 2)
        halves = [self._batch(texts[i : i + step]) for i in range(0, len(texts), step)]
        return np.concatenate(await _all(halves))

    async def _rows_after_all(
        self, texts: Sequence[str], error: EmbeddingError, endpoint: Endpoint | None
    ) -> FloatMatrix:
        """The rows of a request that went wrong, where the endpoint has them after all.

        Raises:
            EndpointRefusedError: the endpoint embeds other texts, so that one of these is to blame.
            EmbeddingError: what went wrong.
        """
        filtered = error.fields.get("status") in FILTERED
        failed_query = self._kind == "query" and fault_of(error) is Fault.FAILED
        if endpoint is None or isinstance(error, EndpointRefusedError) or not (filtered or failed_query):
            raise error
        if len(texts) > 1:
            await self._isolation(endpoint, [], Outcome()).ask_control()
            raise EndpointRefusedError(reason_of(error), error.fields)
        outcome = Outcome()
        await self._isolation(endpoint, texts, outcome).settle(0, 1, error)
        if outcome.refused:
            raise EndpointRefusedError(outcome.refused[0], error.fields)
        return outcome.parts[0]

    def _settlings(
        self, texts: Sequence[str], stretches: Sequence[tuple[int, int]], outcome: Outcome
    ) -> list[Coroutine[Any, Any, None]]:
        """The stretches, a batch each."""
        step = self.batch_size
        batches = [(i, min(i + step, stop)) for start, stop in stretches for i in range(start, stop, step)]
        return [self._settle(texts, start, stop, outcome) for start, stop in batches]

    async def _settle(self, texts: Sequence[str], start: int, stop: int, outcome: Outcome) -> None:
        """Find the outcome of texts that are meant to be one request."""
        patience = self._patience(isolates=True)
        try:
            async with self._request_slots():
                rows = await self._retry(texts[start:stop], patience)
        except TooManyError as refusal:
            if stop - start > 1:
                step = min(self.batch_size, (stop - start + 1) // 2)
                parts = [(i, min(i + step, stop)) for i in range(start, stop, step)]
                await _all([self._settle(texts, a, b, outcome) for a, b in parts])
                return
            error: EmbeddingError = EndpointRefusedError(str(refusal), {"status": TOO_LARGE})
        except EmbeddingError as fault:
            error = fault
        else:
            outcome.land(start, rows)
            return
        if patience.asked is None or not fault_of(error).may_be_a_texts:
            raise error
        await self._isolate(patience.asked, texts, (start, stop), outcome, error)

    async def _isolate(
        self,
        endpoint: Endpoint,
        texts: Sequence[str],
        stretch: tuple[int, int],
        outcome: Outcome,
        error: EmbeddingError,
    ) -> None:
        """Find the texts at fault at this endpoint; where it is to blame itself, at another one."""
        isolation = self._isolation(endpoint, texts, outcome)
        others = [other for other in self._endpoints if other is not endpoint]
        try:
            await isolation.settle(*stretch, error)
            return
        except EmbeddingError as fault:
            error = fault
        for other in others:
            left, isolation = isolation.left, self._isolation(other, texts, outcome)
            try:
                await isolation.embed(left)
                return
            except EmbeddingError as fault:
                error = fault
        raise error

    def _isolation(self, endpoint: Endpoint, texts: Sequence[str], outcome: Outcome) -> Isolation:
        async def send(some: Sequence[str]) -> FloatMatrix:
            patience = self._patience(isolates=True, only=endpoint)
            try:
                async with self._request_slots():
                    return await self._retry(some, patience)
            except TooManyError as refusal:
                raise EndpointRefusedError(str(refusal), {"status": TOO_LARGE}) from None

        def too_many(count: int, error: EmbeddingError) -> None:
            """A server may say "too many" in words of its own."""
            says_its_limit = endpoint.info is not None and endpoint.info.max_batch is not None
            if isinstance(error, EndpointRefusedError) and not says_its_limit and count > self._proven:
                self._learn(count // 2)

        return Isolation(texts, send, outcome, endpoint.control, too_many)

    def _no_rows(self) -> FloatMatrix:
        return np.empty((0, self._config.dims), np.float32)

    def _patience(self, *, isolates: bool = False, only: Endpoint | None = None) -> _Patience:
        others = 0 if only is not None else len(self._endpoints) - 1
        return _Patience(max(self._retry_s, self._timeout_s), others, isolates, only)

    async def _retry(self, texts: Sequence[str], patience: _Patience) -> FloatMatrix:
        """Try until it succeeds, time is up, or no retry can help."""
        # No pause is longer than a quarter of the whole, so the last one cannot run far past the end.
        retries: dict[str, Any] = {"attempts": None, "timeout": self._retry_s, "wait_max": min(5, self._retry_s / 4)}
        if self._retry_s <= 0:
            retries = {"attempts": patience.others + 1, "timeout": None}
        async for attempt in stamina.retry_context(on=patience, **retries):
            with attempt:
                timeout_s = min(self._timeout_s, patience.left_s())
                if timeout_s == 0 and patience.last is not None:
                    raise patience.last
                patience.asked = patience.only or next(self._next)
                return await self._attempt(patience.asked, texts, patience, timeout_s)
        raise AssertionError("unreachable: stamina re-raises the last error")

    async def _attempt(
        self, endpoint: Endpoint, texts: Sequence[str], patience: _Patience, timeout_s: float
    ) -> FloatMatrix:
        if endpoint.info is None:
            self._learn((await endpoint.describe(timeout_s)).max_batch)
        if len(texts) > self.batch_size:
            raise TooManyError(f"{endpoint.shown} takes {self.batch_size} inputs", self.batch_size)
        try:
            rows = await endpoint.embed(texts, timeout_s)
            self._proven = max(self._proven, len(texts))
            return rows
        except TooManyError as refusal:
            self._learn(refusal.limit)
            raise
        except EndpointUnavailableError as error:
            patience.backend_failures += error.fields.get("status") == MODEL_FAILED
            if not patience.isolates and patience.backend_failures >= (BACKEND_ATTEMPTS if self._retry_s > 0 else 1):
                raise EndpointRefusedError(error.detail, error.fields) from None
            raise

    def _learn(self, limit: int | None) -> None:
        known = [size for size in (limit, self._learnt) if size is not None]
        self._learnt = min(known, default=None)

    def _request_slots(self) -> asyncio.Semaphore:
        loop = asyncio.get_running_loop()
        if loop not in self._slots:
            self._slots = {old: slots for old, slots in self._slots.items() if not old.is_closed()}
            self._slots[loop] = asyncio.Semaphore(REQUESTS_PER_ENDPOINT * len(self._endpoints))
        return self._slots[loop]


async def _all(work: Sequence[Coroutine[Any, Any, _T]]) -> list[_T]:
    """The results of all, in order; the first error ends the others and is raised as itself."""
    if len(work) == 1:
        return [await work[0]]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
        return [task.result() for task in tasks]
    except ExceptionGroup as faults:
        first = faults.exceptions[0]
    raise first
