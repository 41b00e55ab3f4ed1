"""Finding out what an endpoint is: what it says of its model, and how it embeds texts whose vectors are known."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from compass.domain.chunk import FloatVector
from compass.domain.embedding.contract import CONTROL_TEXT, Embedder
from compass.domain.embedding.endpoint_url import shown
from compass.domain.embedding.fingerprint import ModelCheck, model_of
from compass.domain.space import Space, cosine
from compass.errors import CompassError

EXAMINE_S = 5.0  # an endpoint that takes longer is one that does not answer


async def examine_endpoint(
    open_embedder: Callable[[Space], Embedder],
    space: Space,
    samples: Sequence[tuple[str, FloatVector]],
    timeout_s: float = EXAMINE_S,
) -> ModelCheck:
    """Check the space's endpoint by what it says and by its vectors of `samples`, (text, stored vector)."""
    name = shown(space.config.embed_endpoint or "")
    try:
        embedder = open_embedder(space)
        try:
            async with asyncio.timeout(timeout_s):
                model = model_of((await embedder.describe())[0])
                rows = await embedder.embed([text for text, _ in samples] or [CONTROL_TEXT])
        finally:
            await embedder.close()
    except CompassError as error:
        return ModelCheck(name, error=error.detail)
    except TimeoutError:
        return ModelCheck(name, error=f"{name} did not answer within {timeout_s:g} s")
    cosines = [cosine(row, stored) for row, (_, stored) in zip(rows, samples, strict=False)]
    return ModelCheck(name, model, min(cosines, default=None))
