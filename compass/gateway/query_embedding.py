"""The vector of a query's text, by the space's own model: remembered, given up in time, and not asked for in vain."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import cachetools
import pybreaker

from compass.domain.chunk import FloatVector
from compass.domain.embedding.contract import Embedder
from compass.domain.embedding.fingerprint import Fingerprint
from compass.domain.space import BuiltBy, Space
from compass.errors import EndpointUnavailableError

CACHE_BYTES = 64 << 20
ENTRY_BYTES = 500  # of an entry beside its vector and its text
FAILURES = 3  # in a row, after which nobody waits for the endpoint
OPEN_S = 5.0  # before it is asked again


@dataclass(slots=True)
class _Endpoint:
    """A space's endpoint, as long as neither its config nor its builder changes."""

    fingerprint: Fingerprint
    space: Space
    embedder: Embedder
    breaker: pybreaker.CircuitBreaker


class QueryEmbedding:
    """Embeds queries. One event loop.

    The cache is keyed by (space id, fingerprint, text): a vector of another model, prompt or option is never found.
    """

    def __init__(
        self,
        open_embedder: Callable[[Space], Embedder],
        *,
        cache_bytes: int = CACHE_BYTES,
        failures: int = FAILURES,
        open_s: float = OPEN_S,
    ) -> None:
        """Begin with an empty cache.

        Args:
            open_embedder: Opens the embedder of a space when it is asked for first.
            cache_bytes: Of vectors to keep.
            failures: In a row, after which nobody waits for an endpoint.
            open_s: How long nobody does: the time for which its circuit breaker stays open.
        """
        self._open, self._failures, self._open_s = open_embedder, failures, open_s
        self._endpoints: dict[str, _Endpoint] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._cache: cachetools.LRUCache[tuple[str, Fingerprint, str], FloatVector] = cachetools.LRUCache(
            cache_bytes, getsizeof=lambda vector: vector.nbytes + ENTRY_BYTES
        )

    async def vector(self, space: Space, query: str, timeout_s: float) -> FloatVector:
        """The vector of a query in a space: float32, shape (dims,), as the space's metric wants it.

        Raises:
            EndpointUnavailableError: the endpoint is down, or has not answered within `timeout_s`; or it has
                been so lately, and is not asked before `retry_after`.
            FingerprintMismatchError: it is another model than the one that built the space.
            EmbeddingError: it refuses this text, or lies.
        """
        endpoint = self._of(space)
        key = (space.id, endpoint.fingerprint, query)
        vector = self._cache.get(key)
        if vector is None:
            vector = await self._embed(endpoint, query, timeout_s)
            if vector.nbytes + len(query) + ENTRY_BYTES <= self._cache.maxsize:
                self._cache[key] = vector
        return vector

    async def _embed(self, endpoint: _Endpoint, query: str, timeout_s: float) -> FloatVector:
        name = endpoint.space.name
        try:
            with endpoint.breaker.calling():
                return await _first(endpoint.embedder, endpoint.space.config.query_text(query), timeout_s)
        except pybreaker.CircuitBreakerError:
            raise EndpointUnavailableError(
                f"the endpoint of vector space {name!r} has failed {self._failures} times in a row; it is asked "
                f"again within {self._open_s:g} s. A query_vector needs no endpoint",
                {"space": name, "retry_after": self._open_s},
            ) from None
        except EndpointUnavailableError as error:
            raise EndpointUnavailableError(error.detail, {"retry_after": 1, **error.fields}) from None

    def _of(self, space: Space) -> _Endpoint:
        known = self._endpoints.get(space.id)
        if known is not None:
            if known.space is space:
                return known
            if (known.space.config, known.space.built_by) == (space.config, space.built_by):
                known.space = space
                return known
            self._close(known.embedder)
        fingerprint = Fingerprint.of(space.config, space.built_by or BuiltBy())
        endpoint = self._endpoints[space.id] = _Endpoint(fingerprint, space, self._open(space), self._breaker())
        return endpoint

    def _breaker(self) -> pybreaker.CircuitBreaker:
        return pybreaker.CircuitBreaker(
            self._failures,
            reset_timeout=self._open_s,
            exclude=[_is_not_its_fault],
            throw_new_error_on_trip=False,
        )

    def _close(self, embedder: Embedder) -> None:
        task = asyncio.get_running_loop().create_task(embedder.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


async def _first(embedder: Embedder, text: str, timeout_s: float) -> FloatVector:
    try:
        async with asyncio.timeout(timeout_s):
            row: FloatVector = (await embedder.embed([text]))[0]
            return row
    except TimeoutError:
        raise EndpointUnavailableError(f"the endpoint did not answer within {timeout_s:.3g} s") from None


def _is_not_its_fault(error: object) -> bool:
    return not isinstance(error, EndpointUnavailableError)
