"""The least that anybody would write as an embedding endpoint: a few lines of FastAPI that know `inputs` alone."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel, ConfigDict, Field

from compass.domain.embedding.contract import Embedder
from compass.domain.embedding.endpoint_url import EndpointUrl
from compass.domain.space import SpaceConfig
from compass.embedding.builtin import HashingModel
from compass.embedding.fleet.fleet import FleetEmbedder
from compass.embedding.isolate import embed_each
from compass.embedding.pool import PoolEmbedder

DIMS, MOST, LONGEST = 8, 20, 60
CONFIG = SpaceConfig(DIMS, "m")
MODEL = HashingModel("m", DIMS)


class Inputs(BaseModel):
    """A body that may hold nothing else."""

    model_config = ConfigDict(extra="forbid")
    inputs: list[str] = Field(min_length=1, max_length=MOST)


class PlainServer(uvicorn.Server):
    """`POST /` with `inputs`; no /info, no /health; FastAPI's own 422 for what does not fit."""

    def __init__(self) -> None:
        app = FastAPI()
        self.requests: list[str] = []
        self.sent: list[str] = []

        @app.middleware("http")
        async def note(request: Request, call_next: Any) -> Any:
            self.requests.append(f"{request.method} {request.url.path}")
            return await call_next(request)

        @app.post("/models/mine/embed")
        def embed(body: Inputs) -> list[list[float]]:
            if max(map(len, body.inputs)) > LONGEST:
                raise HTTPException(422, "a text is too long")
            self.sent.extend(body.inputs)
            rows: list[list[float]] = MODEL.embed(body.inputs).tolist()
            return rows

        super().__init__(uvicorn.Config(app, port=0, log_level="critical", lifespan="off"))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.servers[0].sockets[0].getsockname()[1]}/models/mine"


@pytest.fixture
def plain() -> Iterator[PlainServer]:
    """The server, in a thread."""
    server = PlainServer()
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        assert thread.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield server
    server.should_exit = server.force_exit = True
    thread.join(10)


def _rebuilds(url: str) -> Embedder:
    return FleetEmbedder([EndpointUrl.parse(url)], CONFIG, timeout_s=60.0, endpoint_timeout_s=60.0)


def _follows(url: str) -> Embedder:
    return PoolEmbedder([EndpointUrl.parse(url)], CONFIG, timeout_s=60.0, retry_s=60.0, kind="document")


@pytest.mark.parametrize("opened", [_rebuilds, _follows])
async def test_a_server_that_knows_inputs_alone_is_enough(
    plain: PlainServer, opened: Callable[[str], Embedder]
) -> None:
    """Every text has its row; the limit that nobody told is found; a poison text fails alone, with the reason."""
    texts = [f"text number {i}" for i in range(150)]
    texts[70] = "a word too many " * 9
    embedder = opened(plain.url)
    try:
        async with asyncio.timeout(120):
            done = await embed_each(embedder, texts)
    finally:
        await embedder.close()
    assert list(done.refused) == [70]
    assert "a text is too long" in done.refused[70]
    assert done.rows == [i for i in range(150) if i != 70]
    np.testing.assert_allclose(done.vectors, MODEL.embed([texts[i] for i in done.rows]), atol=1e-6)
    assert set(texts) - {texts[70]} <= set(plain.sent)
    assert set(plain.requests) == {"GET /models/mine/info", "POST /models/mine/embed"}
