"""Which embedder a space has, and how a text that it refuses is told from those that it takes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from compass.domain.chunk import FloatMatrix, has_text
from compass.domain.embedding.contract import CONTROL_TEXT, Embedded, Embedder, Kind
from compass.domain.embedding.endpoint_url import check_endpoint
from compass.domain.names import check_key_variable
from compass.domain.rebuild.budget import Meter
from compass.domain.space import BUILTIN, SpaceConfig
from compass.embedding.builtin import BuiltinEmbedder, HashingModel
from compass.embedding.fleet.fleet import FleetEmbedder
from compass.embedding.pool import HttpEmbedder
from compass.errors import (
    EmbeddingError,
    EndpointForbiddenError,
    EndpointRefusedError,
    EndpointUnavailableError,
    InvalidRequestError,
)

__all__ = ["Embedded", "embed_each", "open_embedder"]


def open_embedder(
    config: SpaceConfig,
    *,
    kind: Kind,
    timeout_s: float,
    retry_s: float,
    endpoints: Sequence[str] = (),
    batch_size: int | None = None,
    api_key_env: str | None = None,
    endpoint_timeout_s: float | None = None,
    concurrency: int | None = None,
    max_docs_per_s: float | None = None,
    meter: Meter | None = None,
) -> Embedder:
    """The embedder of a space: the built-in model, or its endpoints. Opens no connection yet.

    Args:
        config: dims, metric and prompt names of the space.
        kind: Whether queries or documents will be embedded; decides the prompt name.
        timeout_s: One request.
        retry_s: How long one batch is retried; 0 for queries, that wait for nobody.
        endpoints: Those of a rebuild; empty: the space's own.
        batch_size: Texts a request at most.
        api_key_env: The variable that holds the endpoints' key. Without it the space's own key is sent,
            but to the space's own endpoint alone.
        endpoint_timeout_s: Of a rebuild: how long its work waits while no endpoint gives a good answer;
            `retry_s` counts without it.
        concurrency: Of a rebuild: requests at once at most.
        max_docs_per_s: Of a rebuild: texts a second at most.
        meter: Of a rebuild: asked before each request that embeds; the built-in model costs nothing.

    Raises:
        InvalidRequestError: no endpoint, one that is not to be called, or the variable is not set.
    """
    own = [config.embed_endpoint] if config.embed_endpoint is not None else []
    urls = [check_endpoint(url) for url in endpoints or own]
    if not urls:
        raise InvalidRequestError(
            "the space has no embed_endpoint: name one, or send vectors with the chunks and queries",
            {"errors": [{"field": "embed_endpoint", "detail": "is not set"}]},
        )
    if BUILTIN in urls:
        if set(urls) != {BUILTIN}:
            raise InvalidRequestError('embed_endpoint "builtin" cannot be mixed with URLs: they are not one model')
        return BuiltinEmbedder(HashingModel(config.model, config.dims), max_docs_per_s)
    if api_key_env is None and set(urls) == set(map(check_endpoint, own)):
        api_key_env = config.api_key_env
    api_key = None if api_key_env is None else _key(api_key_env)
    common: dict[str, Any] = {"timeout_s": timeout_s, "batch_size": batch_size, "api_key": api_key, "kind": kind}
    if endpoint_timeout_s is None:
        return HttpEmbedder(urls, config, retry_s=retry_s, **common)
    return FleetEmbedder(
        urls,
        config,
        endpoint_timeout_s=endpoint_timeout_s,
        concurrency=concurrency,
        max_docs_per_s=max_docs_per_s,
        meter=meter,
        **common,
    )


async def embed_each(embedder: Embedder, texts: Sequence[str]) -> Embedded:
    """Embed all that can be embedded: a text that the endpoint refuses fails alone, the rest goes on.

    The list is halved until the refused text stands alone; one poison text among n costs about 3 n inputs, so
    give a few batches at a time, not a corpus. Before a first text is blamed, the endpoint must take a
    harmless one: an endpoint that refuses everything is misconfigured, and no text is to blame.

    Raises:
        EndpointForbiddenError: it refuses everything.
        EndpointUnavailableError: its model fails on everything (424), or it is down.
        EndpointAnswerError: it lied until the retries were over.
    """
    if isinstance(embedder, FleetEmbedder):  # which does it request by request
        return await embedder.embed_each(texts)
    sieve = _Sieve(embedder, texts)
    for start, stop in _runs(texts, sieve.refused):
        await sieve.embed(start, stop)
    return await sieve.result()


class _Sieve:
    """The bisection of `embed_each`."""

    def __init__(self, embedder: Embedder, texts: Sequence[str]) -> None:
        self._embedder, self._texts = embedder, texts
        self._rows: list[int] = []
        self._parts: list[FloatMatrix] = []
        self._trusted = False  # whether it has taken any text
        self.refused: dict[int, str] = {}

    async def embed(self, start: int, stop: int) -> None:
        """Put each text of the range among the rows or the refused."""
        try:
            vectors = await self._embedder.embed(self._texts[start:stop])
        except EndpointRefusedError as error:
            if stop - start == 1:
                await self._ask_control()
                self.refused[start] = error.detail
                return
        else:
            self._trusted = True
            self._rows.extend(range(start, stop))
            self._parts.append(vectors)
            return
        middle = (start + stop) // 2
        await self.embed(start, middle)
        await self.embed(middle, stop)

    async def result(self) -> Embedded:
        """What became of all the texts."""
        parts = self._parts or [await self._embedder.embed([])]
        return Embedded(self._rows, np.concatenate(parts), self.refused)

    async def _ask_control(self) -> None:
        if self._trusted:
            return
        kind: type[EmbeddingError] = EndpointForbiddenError
        try:
            await self._embedder.embed([CONTROL_TEXT])
            self._trusted = True
            return
        except EndpointRefusedError as error:
            if error.fields.get("status") == 424:  # the model is broken now; that may be mended
                kind = EndpointUnavailableError
            detail, fields = f"{error.detail} (it refuses every text, a harmless one too)", error.fields
        raise kind(detail, fields)


def _runs(texts: Sequence[str], refused: dict[int, str]) -> list[tuple[int, int]]:
    """The stretches of texts that are not empty; the empty ones are refused without asking anybody."""
    runs: list[tuple[int, int]] = []
    start = 0
    for i, text in enumerate(texts):
        if not has_text(text):
            refused[i] = "the text is empty: it has no vector"
            runs.append((start, i))
            start = i + 1
    runs.append((start, len(texts)))
    return [(a, b) for a, b in runs if a < b]


def _key(variable: str) -> str:
    value = os.environ.get(check_key_variable(variable), "").strip()
    if not value:
        raise InvalidRequestError(
            f"the environment variable {variable} is not set where the endpoint is called from; it holds its key",
            {"errors": [{"field": "api_key_env", "detail": f"{variable} is not set"}]},
        )
    return value
