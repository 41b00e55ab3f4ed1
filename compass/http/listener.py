"""The gateway's own HTTP listener: a uvicorn socket inside the replica, beside Serve's proxy.

Serve's own path costs several ms of CPU a request. With SO_REUSEPORT the replicas of a node share one port
and the kernel spreads connections; a replica that comes back takes the same port again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from compass.http.reuse_port import BACKLOG, bound, refuse_new

log = logging.getLogger(__name__)

KEEP_ALIVE_S = 75  # longer than clients keep an idle connection: who sends on one must not find it just closed
ARRIVING_S = 0.5  # for handshakes under way when the listener begins to close; clients begin anew after a second
IDLE_S = 2.0  # how long a closing one waits for the next request of a connection, to say goodbye in its answer
DRAIN_S = 10


class Listener:
    """Serves an ASGI application on `host:port` on the running event loop."""

    def __init__(
        self, app: ASGIApp, host: str, port: int, *, arriving_s: float = ARRIVING_S, idle_s: float = IDLE_S
    ) -> None:
        """Bind at once, so that a taken port is an error of the start-up; `open` serves.

        Args:
            app: What answers.
            host: Address to bind.
            port: 0 for a free one.
            arriving_s: How long `close` waits for handshakes that are under way.
            idle_s: How long it then waits for the next request of each connection.

        Raises:
            OSError: the address cannot be bound.
        """
        self._socket = bound(host, port)
        self.host, self.port = self._socket.getsockname()[:2]
        self._app, self._leaving = app, False
        self._arriving_s, self._idle_s = arriving_s, idle_s
        config = uvicorn.Config(
            self._answer,
            lifespan="off",
            interface="asgi3",
            access_log=False,
            log_config=None,
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=DRAIN_S,
        )
        self._server = uvicorn.Server(config)
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Listen at once; serve as a task of the running loop."""
        self._socket.listen(BACKLOG)
        self._task = asyncio.get_running_loop().create_task(self._serve())

    async def close(self) -> None:
        """Accept what has begun to arrive, answer what is asked, release the port.

        Nobody is cut off: clients learn from an answer, by `Connection: close`, that they have to connect anew,
        and find another listener of this port if there is one. A client that keeps a connection without asking
        anything for `idle_s` finds it closed.
        """
        self._leaving = True
        if self._task is not None:
            refuse_new(self._socket)
            await self._drain_connections()
            self._server.should_exit = True
            await self._task
        self._socket.close()

    async def _drain_connections(self) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._arriving_s)
        if self._server.started:
            for listening in self._server.servers:
                listening.close()
        ends = loop.time() + self._idle_s
        while self._server.server_state.connections and loop.time() < ends:  # noqa: ASYNC110 - uvicorn has no event
            await asyncio.sleep(0.05)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_last(message: Message) -> None:
            if self._leaving and message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        await self._app(scope, receive, send_last)

    async def _serve(self) -> None:
        # uvicorn would take over SIGINT and SIGTERM, which belong to Serve's replica
        self._server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
        await self._server.serve(sockets=[self._socket])
