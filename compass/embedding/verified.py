"""An embedder that answers only while its server is the model that built its space."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from compass.domain.chunk import FloatMatrix
from compass.domain.embedding.contract import Embedded, Embedder, ServerInfo
from compass.domain.embedding.endpoint_stats import EndpointStats
from compass.domain.embedding.fingerprint import check_model, model_of
from compass.domain.space import Space
from compass.embedding.isolate import embed_each
from compass.errors import EmbeddingError

CHECK_S = 30.0  # how old the server's last word about itself may be
CHECK_TIMEOUT_S = 2.0
ADVICE = "its vectors would not fit the stored ones; point the space at an endpoint of its model"

_T = TypeVar("_T")


class CheckedEmbedder:
    """Asks the server what it is beside the first texts, and again every half minute; costs no time of its own."""

    def __init__(
        self,
        embedder: Embedder,
        space: Space,
        clock: Callable[[], float] = time.monotonic,
        check_timeout_s: float = CHECK_TIMEOUT_S,
    ) -> None:
        """Check `embedder` against the fingerprint of `space`; `clock` gives seconds that only grow."""
        self._embedder, self._space, self._clock = embedder, space, clock
        self._check_timeout_s = check_timeout_s
        self._checked_at = float("-inf")

    async def embed(self, texts: Sequence[str]) -> FloatMatrix:
        """As the embedder's own.

        Raises:
            FingerprintMismatchError: the server says that it is another model.
        """
        return await self._checked(lambda: self._embedder.embed(texts))

    async def embed_each(self, texts: Sequence[str]) -> Embedded:
        """As `isolate.embed_each` of the embedder.

        Raises:
            FingerprintMismatchError: the server says that it is another model.
        """
        return await self._checked(lambda: embed_each(self._embedder, texts))

    async def describe(self) -> list[ServerInfo]:
        """As the embedder's own."""
        return await self._embedder.describe()

    def endpoints(self) -> list[EndpointStats]:
        """As the embedder's own."""
        return self._embedder.endpoints()

    async def close(self) -> None:
        """Close the embedder."""
        await self._embedder.close()

    async def _checked(self, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """What the work returns, beside a check where it is time for one."""
        if self._clock() - self._checked_at < CHECK_S or self._space.built_by is None:
            return await work()
        checking = asyncio.ensure_future(self._check())
        try:
            result = await work()
            await checking
        finally:
            checking.cancel()
        return result

    async def _check(self) -> None:
        """Compare; a server that does not say what it is now is asked again the next time."""
        try:
            async with asyncio.timeout(self._check_timeout_s):
                infos = await self._embedder.describe()
        except (EmbeddingError, TimeoutError):
            return
        for info in infos:
            check_model(self._space, model_of(info), "the endpoint", ADVICE)
        self._checked_at = self._clock()
