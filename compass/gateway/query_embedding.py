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
class _Asked:
    """A space's endpoint, as long as neither its config nor its builder changes."""

    fingerprint: Fingerprint
    space: Space
    embedder: Embedder
    breaker: pybreaker.CircuitBreaker


class QueryEmbedding:
    """Embeds queries. One event loop.

    The cache is keyed by (space id, fingerprint, text): a vector of another model, prompt or option is never found.
    """

    def __init__(self, open_embedder: Callable[[Space], Embedder], cache_bytes: int = CACHE_BYTES) -> None:
        """Open embedders of spaces when they are asked for first, and keep so many bytes of vectors."""
        self._open = open_embedder
        self._asked: dict[str, _Asked] = {}
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
        asked = self._of(space)
        key = (space.id, asked.fingerprint, query)
        found = self._cache.get(key)
        if found is None:
            found = await self._embed(asked, query, timeout_s)
            if found.nbytes + len(query) + ENTRY_BYTES <= self._cache.maxsize:
                self._cache[key] = found
        return found

    async def _embed(self, asked: _Asked, query: str, timeout_s: float) -> FloatVector:
        name = asked.space.name
        try:
            with asked.breaker.calling():
                return await _first(asked.embedder, asked.space.config.query_text(query), timeout_s)
        except pybreaker.CircuitBreakerError:
            raise EndpointUnavailableError(
                f"the endpoint of vector space {name!r} has failed {FAILURES} times in a row; it is asked again "
                f"within {OPEN_S:g} s. A query_vector needs no endpoint",
                {"space": name, "retry_after": OPEN_S},
            ) from None
        except EndpointUnavailableError as error:
            raise EndpointUnavailableError(error.detail, {"retry_after": 1, **error.fields}) from None

    def _of(self, space: Space) -> _Asked:
        known = self._asked.get(space.id)
        if known is not None:
            if known.space is space:
                return known
            if (known.space.config, known.space.built_by) == (space.config, space.built_by):
                known.space = space
                return known
            self._close(known.embedder)
        fingerprint = Fingerprint.of(space.config, space.built_by or BuiltBy())
        made = self._asked[space.id] = _Asked(fingerprint, space, self._open(space), _breaker())
        return made

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


def _breaker() -> pybreaker.CircuitBreaker:
    def not_its_fault(error: object) -> bool:
        return not isinstance(error, EndpointUnavailableError)

    return pybreaker.CircuitBreaker(
        FAILURES, reset_timeout=OPEN_S, exclude=[not_its_fault], throw_new_error_on_trip=False
    )
