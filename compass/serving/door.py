"""The gateway's own HTTP door: a uvicorn socket inside the replica, beside Serve's proxy.

Serve's own path costs several ms of CPU a request. With SO_REUSEPORT the replicas of a node share one port
and the kernel spreads connections; a replica that comes back takes the same port again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from typing import Any

import uvicorn

log = logging.getLogger(__name__)

DRAIN_S = 10


class Door:
    """Serves an ASGI application on `host:port` on the running event loop."""

    def __init__(self, app: Any, host: str, port: int) -> None:
        """Bind at once, so that a taken port is an error of the start-up; `open` serves.

        Raises:
            OSError: the address cannot be bound.
        """
        self._socket = _listen(host, port)
        self.host, self.port = self._socket.getsockname()[:2]
        config = uvicorn.Config(
            app,
            lifespan="off",
            interface="asgi3",
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=DRAIN_S,
        )
        self._server = uvicorn.Server(config)
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Serve as a task of the running loop."""
        self._task = asyncio.get_running_loop().create_task(self._serve())

    async def close(self) -> None:
        """Stop accepting, finish what is in flight, release the port."""
        self._server.should_exit = True
        if self._task is not None:
            await self._task
        self._socket.close()

    async def _serve(self) -> None:
        # uvicorn would take over SIGINT and SIGTERM, which belong to Serve's replica
        self._server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
        await self._server.serve(sockets=[self._socket])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind((host, port))
    bound.setblocking(False)
    return bound
