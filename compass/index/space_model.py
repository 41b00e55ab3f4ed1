"""The model behind a space's endpoints: it embeds what is missing, and has to stay the same one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

from compass.domain.chunk import FloatVector
from compass.domain.embedding.contract import Embedder
from compass.domain.embedding.fingerprint import ModelCheck, agreed_model
from compass.domain.space import BuiltBy, Space
from compass.embedding.examine import examine_endpoint


class SpaceModel:
    """Each call names the space as the log records it now, for its endpoint may have moved."""

    def __init__(
        self,
        open_embedder: Callable[[Space], Embedder],
        samples: Callable[[], list[tuple[str, FloatVector]]],
        identified: Callable[[BuiltBy], Coroutine[Any, Any, None]],
    ) -> None:
        """Open nothing yet.

        Args:
            open_embedder: Makes the embedder of a space's own documents.
            samples: A few stored texts, each with its vector; blocking.
            identified: Called with what the endpoint says of itself, where nobody has asked before.
        """
        self._open_embedder, self._samples, self._identified = open_embedder, samples, identified
        self._embedder: tuple[Space, Embedder] | None = None
        self._identifying: asyncio.Task[None] | None = None

    async def embedder(self, space: Space) -> Embedder:
        """The embedder of the space as it is now."""
        if self._embedder is None or self._embedder[0] != space:
            await self._close_embedder()
            self._embedder = space, self._open_embedder(space)
        return self._embedder[1]

    async def examine(
        self, space: Space, endpoints: Sequence[str], api_key_env: str | None = None
    ) -> list[ModelCheck]:
        """What these endpoints say of their model, and how they embed a few of the stored texts."""
        samples = await asyncio.to_thread(self._samples)
        own = space.config.embed_endpoint, space.config.api_key_env
        keys = [api_key_env or (own[1] if url == own[0] else None) for url in endpoints]
        unknown = replace(space, built_by=None)  # it is to say what it is, not to be refused for it
        spaces = [unknown.with_config(embed_endpoint=u, api_key_env=k) for u, k in zip(endpoints, keys, strict=True)]
        return await asyncio.gather(*(examine_endpoint(self._open_embedder, one, samples) for one in spaces))

    async def ensure_same_model(self, space: Space, endpoints: Sequence[str], api_key_env: str | None = None) -> None:
        """Check that none of these endpoints is another model than the one that built the space.

        Raises:
            FingerprintMismatchError: one is; one that does not answer passes.
        """
        answers = await self.examine(space, endpoints, api_key_env)
        agreed_model(space, answers, accept=False, advice="rebuild it with restart, or add a space for the new model")

    def identify_aside(self, space: Space) -> None:
        """Have it recorded who has built the space, before another model can take the place.

        Embedding goes on meanwhile: a swap that waits for this space keeps the router from recording anything.
        """
        if space.built_by is None and self._identifying is None:
            self._identifying = asyncio.get_running_loop().create_task(self._identify(space))

    def check(self) -> None:
        """Raise, once, what went wrong while the builder was identified."""
        if (identified := self._identifying) is not None and identified.done():
            self._identifying = None
            identified.result()

    async def close(self) -> None:
        """Ask the endpoint nothing more."""
        if self._identifying is not None:
            self._identifying.cancel()
            await asyncio.gather(self._identifying, return_exceptions=True)
        await self._close_embedder()

    async def _identify(self, space: Space) -> None:
        endpoint = space.config.embed_endpoint
        assert endpoint is not None
        answers = await self.examine(space, [endpoint], space.config.api_key_env)
        built_by = agreed_model(space, answers, accept=False, advice="add a space for the new model, and swap")
        if built_by is not None:
            await self._identified(built_by)

    async def _close_embedder(self) -> None:
        if self._embedder is not None:
            old, self._embedder = self._embedder[1], None
            await old.close()
