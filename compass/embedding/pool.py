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
from compass.domain.embedding.contract import Kind, ServerInfo
from compass.domain.embedding.endpoint_stats import EndpointStats
from compass.domain.embedding.endpoint_url import EndpointUrl
from compass.domain.space import SpaceConfig
from compass.embedding.endpoint.base import Endpoint, TooManyError
from compass.embedding.endpoint.connections import Connections
from compass.embedding.endpoint.open import open_endpoint
from compass.embedding.endpoint.wire import check_key
from compass.errors import (
    EndpointAnswerError,
    EndpointRefusedError,
    EndpointUnavailableError,
    InvalidRequestError,
)

BACKEND_ATTEMPTS = 3  # how often 424 is taken for the moment's fault, before it is taken for the input's
REQUESTS_PER_ENDPOINT = 4
BACKEND_FAILED = 424

_T = TypeVar("_T")


@dataclass(slots=True)
class _Patience:
    """What one batch has met so far; as stamina's backoff hook it decides whether and when to try again."""

    total_s: float
    others: int  # endpoints that have not been tried yet
    started: float = field(default_factory=time.monotonic)
    backend_failures: int = 0
    last: Exception | None = None

    def left_s(self) -> float:
        """Seconds until the batch is given up; 0 when too few are left for a request that proves anything."""
        left = self.started + self.total_s - time.monotonic()
        return left if left > min(1.0, self.total_s / 10) else 0.0

    def __call__(self, error: Exception) -> bool | float:
        """True: after stamina's own backoff with jitter; a float: after so many seconds; False: no more."""
        if not isinstance(error, EndpointUnavailableError | EndpointAnswerError):
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
        self._learnt: int | None = None  # the largest batch that no endpoint has refused
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
        parts: list[FloatMatrix] = [np.empty((0, self._config.dims), np.float32)]
        if texts and all(e.info is None for e in self._endpoints):
            done = min(self.batch_size, len(texts))
            parts.append(await self._batch(texts[:done]))
        step = self.batch_size
        rest = [self._batch(texts[i : i + step]) for i in range(done, len(texts), step)]
        return np.concatenate(parts + await _all(rest))

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
                return await self._retry(texts)
        except TooManyError as refusal:
            if len(texts) == 1:
                raise EndpointRefusedError(str(refusal), {"status": 413}) from None
            step = min(self.batch_size, (len(texts) + 1) // 2)
        halves = [self._batch(texts[i : i + step]) for i in range(0, len(texts), step)]
        return np.concatenate(await _all(halves))

    async def _retry(self, texts: Sequence[str]) -> FloatMatrix:
        """Try until it succeeds, time is up, or no retry can help."""
        patience = _Patience(max(self._retry_s, self._timeout_s), len(self._endpoints) - 1)
        # No pause is longer than a quarter of the whole, so the last one cannot run far past the end.
        retries: dict[str, Any] = {"attempts": None, "timeout": self._retry_s, "wait_max": min(5, self._retry_s / 4)}
        if self._retry_s <= 0:
            retries = {"attempts": len(self._endpoints), "timeout": None}
        async for attempt in stamina.retry_context(on=patience, **retries):
            with attempt:
                timeout_s = min(self._timeout_s, patience.left_s())
                if timeout_s == 0 and patience.last is not None:
                    raise patience.last
                return await self._attempt(next(self._next), texts, patience, timeout_s)
        raise AssertionError("unreachable: stamina re-raises the last error")

    async def _attempt(
        self, endpoint: Endpoint, texts: Sequence[str], patience: _Patience, timeout_s: float
    ) -> FloatMatrix:
        if endpoint.info is None:
            self._learn((await endpoint.describe(timeout_s)).max_batch)
        if len(texts) > self.batch_size:
            raise TooManyError(f"{endpoint.shown} takes {self.batch_size} inputs", self.batch_size)
        try:
            return await endpoint.embed(texts, timeout_s)
        except TooManyError as refusal:
            self._learn(refusal.limit)
            raise
        except EndpointUnavailableError as error:
            patience.backend_failures += error.fields.get("status") == BACKEND_FAILED
            if patience.backend_failures >= (BACKEND_ATTEMPTS if self._retry_s > 0 else 1):
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
