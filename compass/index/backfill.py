"""What is missing gets its vectors: the duty of whoever owns a space, and of nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np

from compass.domain.chunk import FloatVector, IntVector
from compass.domain.embedding.contract import Embedder
from compass.domain.embedding.fingerprint import ModelCheck
from compass.domain.space import BuiltBy, Space
from compass.embedding.isolate import embed_each
from compass.index.follower import Follower
from compass.index.space_model import SpaceModel
from compass.storage.spaces.vectors import SpaceVectors
from compass.storage.view.view import View

SAMPLES = 8  # texts that tell whether another endpoint is the same model
NOTHING = np.empty(0, np.int64)


class Backfill:
    """Embeds what the follower misses, or quarantines what no endpoint takes: durable first, then findable."""

    def __init__(
        self,
        follower: Follower,
        view: View,
        vectors: SpaceVectors,
        open_embedder: Callable[[Space], Embedder],
        identified: Callable[[BuiltBy], Coroutine[Any, Any, None]],
        batch_rows: int,
    ) -> None:
        """Embed nothing yet.

        Args:
            follower: Knows what is missing, and is told what is there.
            view: The node's view of the collection.
            vectors: The space's durable vectors; nobody else appends live ones.
            open_embedder: Makes the embedder of the space's own documents.
            identified: Called with what the space's endpoint says of itself, where nobody has asked before.
            batch_rows: Texts of one durable vector file.
        """
        self._follower, self._view, self._vectors, self._batch_rows = follower, view, vectors, batch_rows
        self._model = SpaceModel(open_embedder, self._samples, identified)

    def owned(self) -> IntVector:
        """The missing vids that are to be embedded here.

        A rebuild in its bulk owns the vids below the bound of its snapshot; a space that was never active
        and has no run is nobody's: it does not follow before it is asked to.
        """
        space, run, missing = self._follower.space, self._follower.run, self._follower.missing
        if not space.follows or space.config.embed_endpoint is None:
            return NOTHING
        if run is not None and run.running:
            return missing[missing >= run.owns_below]
        return missing if space.status == "active" else NOTHING

    async def embed_batch(self) -> bool:
        """Embed the next texts that are ours to embed; False if there are none.

        Raises:
            InsufficientMemoryError: there is no room for their vectors; no text was sent.
            EndpointUnavailableError: the endpoint does not answer, or another error of it.
        """
        search = await self._follower.ready()
        batch = self.owned()[: self._batch_rows]
        if not len(batch):
            return False
        space = self._follower.space
        embedder = await self._model.embedder(space)
        search.reserve(len(batch))  # else the same texts would be embedded again and again
        texts = await asyncio.to_thread(self._view.texts_to_embed, batch, space.config)
        vids = list(texts)
        result = await embed_each(embedder, [texts[v] for v in vids])
        if len(result.rows):
            embedded = np.array([vids[i] for i in result.rows], np.int64)
            key = await asyncio.to_thread(self._vectors.append, embedded, result.vectors)
            await self._follower.add_file(key, embedded, result.vectors)
        if result.refused:
            reasons = {vids[i]: reason for i, reason in result.refused.items()}
            await asyncio.to_thread(self._vectors.quarantine, reasons)
            await self._follower.add_refused(reasons)
        await self._follower.forget(np.setdiff1d(batch, np.array(vids, np.int64)))  # they died meanwhile
        if len(result.rows):
            self._model.identify_aside(space)
        return True

    def check_identified(self) -> None:
        """Raise, once, what went wrong while the model was identified.

        Raises:
            FingerprintMismatchError: the endpoint is another model than the one that built the space.
        """
        self._model.check()

    async def examine(self, endpoints: Sequence[str], api_key_env: str | None = None) -> list[ModelCheck]:
        """What these endpoints say of their model, and how they embed a few of the stored texts."""
        return await self._model.examine(self._follower.space, endpoints, api_key_env)

    async def ensure_same_model(self, endpoints: Sequence[str], api_key_env: str | None = None) -> None:
        """Check that none of these endpoints is another model than the one that built the space.

        Raises:
            FingerprintMismatchError: one is; one that does not answer passes.
        """
        await self._model.ensure_same_model(self._follower.space, endpoints, api_key_env)

    async def close(self) -> None:
        """Ask the endpoint nothing more."""
        await self._model.close()

    def _samples(self) -> list[tuple[str, FloatVector]]:
        """A few texts from all over the space, each with its stored vector."""
        vids = self._follower.vids()
        some = vids[:: max(1, len(vids) // SAMPLES)][:SAMPLES]
        texts = self._view.texts_to_embed(some, self._follower.space.config)
        stored, rows = self._vectors.get(some.tolist())
        return [(texts[v], row) for v, row in zip(stored.tolist(), rows, strict=True) if v in texts]
