"""A query's vector comes from the space's own model, from memory where it is there, and never too late."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from starlette.responses import JSONResponse, Response

from compass.domain.chunk import FloatVector
from compass.domain.embedding.contract import Embedder
from compass.domain.space import BuiltBy, Space, SpaceConfig
from compass.embedding.builtin import HashingModel
from compass.embedding.open import open_embedder
from compass.errors import EndpointRefusedError, EndpointUnavailableError
from compass.gateway.query_embedding import QueryEmbedding
from compass.testing.embed_server import Served, served

DIMS = 8
DEADLINE_S = 60.0


class Endpoint:
    """A real endpoint that fails, refuses or hangs when a test says so, and embeddings that use it."""

    def __init__(self) -> None:
        self.reply: Callable[[list[str]], Response | None] = lambda texts: None
        self.opened = 0

    def space(self, server: Served, **config: Any) -> Space:
        return Space("s-1", "s", SpaceConfig(DIMS, "m", server.url, **config), "active", 0.0, built_by=BuiltBy("m"))

    def open(self, space: Space) -> Embedder:
        self.opened += 1
        return open_embedder(space.config, kind="query", timeout_s=DEADLINE_S, retry_s=0.0)


@pytest.fixture
def endpoint() -> Endpoint:
    return Endpoint()


@pytest.fixture
async def server(endpoint: Endpoint) -> AsyncIterator[Served]:
    with served("m", DIMS, reply=lambda texts: endpoint.reply(texts)) as running:
        yield running


def down(texts: list[str]) -> Response:
    return JSONResponse({"error": "down", "error_type": "Unhealthy"}, 503)


async def test_a_text_is_embedded_once(endpoint: Endpoint, server: Served) -> None:
    """The second time it comes from memory; what another prompt, space or builder makes of it does not."""
    embedding, space = QueryEmbedding(endpoint.open), endpoint.space(server)
    first = await embedding.vector(space, "text", DEADLINE_S)
    np.testing.assert_allclose(first, HashingModel("m", DIMS).embed(["text"])[0], atol=1e-6)
    assert await embedding.vector(replace(space, error="new"), "text", DEADLINE_S) is first
    assert (server.stats()["inputs"], endpoint.opened) == (1, 1)
    others = [
        endpoint.space(server, query_prompt="query: "),
        replace(space, built_by=BuiltBy("m", "sha-2")),
        replace(space, id="s-2"),
    ]
    for n, other in enumerate(others, 2):
        await embedding.vector(other, "text", DEADLINE_S)
        assert (server.stats()["inputs"], endpoint.opened) == (n, n)
    prompted = await embedding.vector(others[0], "text", DEADLINE_S)
    np.testing.assert_allclose(prompted, HashingModel("m", DIMS).embed(["query: text"])[0], atol=1e-6)


async def test_the_memory_is_bounded(endpoint: Endpoint, server: Served) -> None:
    """The text that was asked for the longest ago goes first."""
    embedding, space = QueryEmbedding(endpoint.open, cache_bytes=3 * (4 * DIMS + 500)), endpoint.space(server)
    for text in ("one", "two", "three", "one", "four", "one"):
        await embedding.vector(space, text, DEADLINE_S)
    assert server.stats()["inputs"] == 4
    await embedding.vector(space, "two", DEADLINE_S)
    assert server.stats()["inputs"] == 5


async def test_an_endpoint_that_is_down_is_not_waited_for(endpoint: Endpoint, server: Served) -> None:
    """After three failures it is left alone, with a Retry-After; what is in memory is answered."""
    embedding, space = QueryEmbedding(endpoint.open, open_s=3_600.0), endpoint.space(server)
    known = await embedding.vector(space, "known", DEADLINE_S)
    endpoint.reply = down
    for turn in range(3):
        with pytest.raises(EndpointUnavailableError) as failed:
            await embedding.vector(space, f"text {turn}", DEADLINE_S)
        assert failed.value.fields["retry_after"] == 1
    requests = server.stats()["requests"]
    with pytest.raises(EndpointUnavailableError, match="failed 3 times in a row") as refused:
        await embedding.vector(space, "text", DEADLINE_S)
    assert refused.value.fields["retry_after"] == 3_600.0
    assert server.stats()["requests"] == requests
    assert await embedding.vector(space, "known", DEADLINE_S) is known


async def test_an_endpoint_that_was_down_is_asked_again(endpoint: Endpoint, server: Served) -> None:
    """After a while, and once it answers it is asked as ever."""
    embedding, space = QueryEmbedding(endpoint.open, failures=1, open_s=0.05), endpoint.space(server)
    endpoint.reply = down
    with pytest.raises(EndpointUnavailableError):
        await embedding.vector(space, "text", DEADLINE_S)
    endpoint.reply = lambda texts: None
    vector: FloatVector | None = None
    async with asyncio.timeout(DEADLINE_S):
        while vector is None:
            with suppress(EndpointUnavailableError):
                vector = await embedding.vector(space, "text", DEADLINE_S)
            await asyncio.sleep(0.01)
    assert vector.shape == (DIMS,)
    assert (await embedding.vector(space, "more", DEADLINE_S)).shape == (DIMS,)


async def test_a_text_that_is_refused_is_not_the_endpoints_fault(endpoint: Endpoint, server: Served) -> None:
    """However often one is sent, others are embedded."""
    embedding, space = QueryEmbedding(endpoint.open), endpoint.space(server)
    refusal = {"error": "Input validation error: too long", "error_type": "Validation"}
    endpoint.reply = lambda texts: JSONResponse(refusal, 422) if "poison" in texts[0] else None
    for turn in range(5):
        with pytest.raises(EndpointRefusedError):
            await embedding.vector(space, f"poison {turn}", DEADLINE_S)
    assert (await embedding.vector(space, "text", DEADLINE_S)).shape == (DIMS,)


async def test_a_query_is_given_up_in_time(endpoint: Endpoint, server: Served) -> None:
    """A hanging endpoint costs as long as the caller wanted to wait."""
    released = threading.Event()

    def hang(texts: list[str]) -> None:
        released.wait(DEADLINE_S)

    endpoint.reply = hang
    try:
        with pytest.raises(EndpointUnavailableError, match=r"within 0\.2 s"):
            await QueryEmbedding(endpoint.open).vector(endpoint.space(server), "text", 0.2)
        assert not released.is_set()
    finally:
        released.set()
