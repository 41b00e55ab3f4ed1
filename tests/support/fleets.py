"""Fleets of endpoints over real HTTP, and servers that die and come back."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import numpy as np
import uvicorn
from starlette.responses import JSONResponse, Response

from compass.domain.embedding.endpoint_url import EndpointUrl
from compass.domain.space import SpaceConfig
from compass.embedding.builtin import HashingModel
from compass.embedding.fleet.fleet import FleetEmbedder
from compass.testing.clock import ManualClock
from compass.testing.embed_server import EmbedServer, Served

DIMS = 8
CONFIG = SpaceConfig(DIMS, "m")
MODEL = HashingModel("m", DIMS)
TEXTS = [f"text number {i}" for i in range(200)]
UNTIL_S = 60.0  # the deadline of a state that is waited for
Reply = Callable[[list[str]], Response | None]


@asynccontextmanager
async def fleet(*servers: Served | str, config: SpaceConfig = CONFIG, **options: Any) -> AsyncIterator[FleetEmbedder]:
    urls = [EndpointUrl.parse(server if isinstance(server, str) else server.url) for server in servers]
    embedder = FleetEmbedder(urls, config, **{"timeout_s": 60.0, "endpoint_timeout_s": 60.0, **options})
    try:
        yield embedder
    finally:
        await embedder.close()


def answer(status: int, error: str, error_type: str, **headers: str) -> Callable[[], Response]:
    return lambda: JSONResponse({"error": error, "error_type": error_type}, status, headers=headers)


def refusing(response: Callable[[], Response], when: Callable[[list[str]], bool]) -> Reply:
    return lambda texts: response() if when(texts) else None


def same(rows: Any, texts: Sequence[str]) -> None:
    np.testing.assert_allclose(rows, MODEL.embed(texts), atol=1e-6)


class TickingClock(ManualClock):
    """Moves on a little with each look at it, so that what comes later is later."""

    def __call__(self) -> float:
        self.advance(1e-6)
        return super().__call__()


class Restarted:
    """A server that can die, connections and all, and come back on its port."""

    def __init__(self, **options: Any) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/embed"
        self.server = EmbedServer("m", DIMS, **options)
        self._http: uvicorn.Server | None = None

    def start(self) -> None:
        config = uvicorn.Config(self.server.app, port=self.port, lifespan="off", log_level="critical")
        http = self._http = uvicorn.Server(config)
        threading.Thread(target=http.run, daemon=True).start()
        self._wait(lambda: http.started)

    def die(self) -> None:
        http = self._http
        if http is not None:
            http.should_exit = http.force_exit = True
            for connection in list(http.server_state.connections):
                with suppress(RuntimeError):  # its loop has ended, and the connection with it
                    connection.loop.call_soon_threadsafe(connection.transport.abort)  # uvloop's are of one thread
            self._wait(lambda: not self._listens())

    def _wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@contextmanager
def restarted(**options: Any) -> Iterator[Restarted]:
    server = Restarted(**options)
    server.start()
    try:
        yield server
    finally:
        server.die()
