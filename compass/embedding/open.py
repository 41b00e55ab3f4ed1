"""Which embedder a space has."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from compass.domain.embedding.contract import Embedder, Kind
from compass.domain.embedding.endpoint_url import EndpointUrl
from compass.domain.names import check_key_variable
from compass.domain.rebuild.budget import Meter
from compass.domain.space import SpaceConfig
from compass.embedding.builtin import BuiltinEmbedder, HashingModel
from compass.embedding.fleet.fleet import FleetEmbedder
from compass.embedding.pool import PoolEmbedder
from compass.errors import InvalidRequestError


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
    own = config.embed_endpoint
    urls = [EndpointUrl.parse(url) for url in endpoints or ([] if own is None else [own])]
    if not urls:
        raise InvalidRequestError(
            "the space has no embed_endpoint: name one, or send vectors with the chunks and queries",
            {"errors": [{"field": "embed_endpoint", "detail": "is not set"}]},
        )
    if any(url.is_builtin for url in urls):
        if not all(url.is_builtin for url in urls):
            raise InvalidRequestError('embed_endpoint "builtin" cannot be mixed with URLs: they are not one model')
        return BuiltinEmbedder(HashingModel(config.model, config.dims), max_docs_per_s)
    if api_key_env is None and own is not None and set(urls) == {EndpointUrl.parse(own)}:
        api_key_env = config.api_key_env
    api_key = None if api_key_env is None else _key(api_key_env)
    common: dict[str, Any] = {"timeout_s": timeout_s, "batch_size": batch_size, "api_key": api_key, "kind": kind}
    if endpoint_timeout_s is None:
        return PoolEmbedder(urls, config, retry_s=retry_s, **common)
    return FleetEmbedder(
        urls,
        config,
        endpoint_timeout_s=endpoint_timeout_s,
        concurrency=concurrency,
        max_docs_per_s=max_docs_per_s,
        meter=meter,
        **common,
    )


def _key(variable: str) -> str:
    value = os.environ.get(check_key_variable(variable), "").strip()
    if not value:
        raise InvalidRequestError(
            f"the environment variable {variable} is not set where the endpoint is called from; it holds its key",
            {"errors": [{"field": "api_key_env", "detail": f"{variable} is not set"}]},
        )
    return value
