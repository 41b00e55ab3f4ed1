"""Finding out what an endpoint is: what it says of its model, and how it embeds texts whose vectors are known."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from compass.domain.chunk import FloatVector
from compass.domain.embedding.contract import CONTROL_TEXT, Embedder
from compass.domain.embedding.endpoint_url import shown
from compass.domain.embedding.fingerprint import Examined, served_by
from compass.domain.space import BUILTIN, Space, cosine
from compass.errors import CompassError

EXAMINE_S = 5.0  # an endpoint that takes longer is one that does not answer


async def examined(
    open_embedder: Callable[[Space], Embedder], space: Space, samples: Sequence[tuple[str, FloatVector]]
) -> Examined:
    """What the space's endpoint is now, by its word and by its vectors of `samples`, (text, stored vector)."""
    endpoint = space.config.embed_endpoint or ""
    name = endpoint if endpoint == BUILTIN else shown(endpoint)
    try:
        embedder = open_embedder(space)
        try:
            async with asyncio.timeout(EXAMINE_S):
                served = served_by((await embedder.describe())[0])
                rows = await embedder.embed([text for text, _ in samples] or [CONTROL_TEXT])
        finally:
            await embedder.close()
    except CompassError as error:
        return Examined(name, error=error.detail)
    except TimeoutError:
        return Examined(name, error=f"{name} did not answer within {EXAMINE_S:g} s")
    agreements = [cosine(row, stored) for row, (_, stored) in zip(rows, samples, strict=False)]
    return Examined(name, served, min(agreements, default=None))
