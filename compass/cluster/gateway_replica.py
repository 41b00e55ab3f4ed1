"""A replica of the gateway: one ASGI application behind two doors, and a Python handle."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from typing import Any

import ray
from starlette.types import ASGIApp, Receive, Scope, Send

from compass.api.calls import call
from compass.cluster import wiring
from compass.cluster.directory import RayCluster
from compass.cluster.router_process import RouterProcess
from compass.domain.routing.table import RoutingTable
from compass.errors import CompassError
from compass.http.app import build_app
from compass.http.listener import Listener
from compass.http.metrics import PrometheusMetrics, fresh_folder
from compass.settings import Settings

log = logging.getLogger(__name__)

LEAVE_S = 1.0  # how long an ending gateway tries to say so
JOIN_S = 10.0  # how long a new gateway waits for the router before it shows itself


class GatewayReplica:
    """The process of a gateway. It starts the router where there is none, and nothing else."""

    async def __init__(self, settings: dict[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        """Ask the router for the table, then listen."""
        values = Settings(**settings)
        cluster = RayCluster({"router": ray.remote(RouterProcess)}, settings)
        self._name = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"  # containers share pids
        metrics = PrometheusMetrics(fresh_folder(values.cache_dir, values.port), self._name)

        def count_epochs(table: RoutingTable) -> None:
            metrics.epochs({route.name: route.epoch for route in table.collections.values()})

        self._router = cluster.router()
        self._table = wiring.open_table(values, self._name, self._router, count_epochs)
        self._polling = asyncio.get_running_loop().create_task(self._table.run())
        self._gateway = wiring.open_gateway(values, self._table, cluster)
        self._app = build_app(self._gateway, values, metrics)
        self._listener = Listener(self._app, values.host, values.port)
        # Connections come with the first instant of listening, also in a rollout: so not before there are answers.
        # While a service opens for long, the listener says so.
        await self._table.joined(JOIN_S)
        self._listener.open()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """The application behind Serve's door. Its end is the end of our own door too."""

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "lifespan":
                await self._app(scope, receive, send)
                return
            while True:
                stage = (await receive())["type"]
                if stage == "lifespan.shutdown":
                    await self._close()
                await send({"type": f"{stage}.complete"})
                if stage == "lifespan.shutdown":
                    return

        return app

    async def call(self, operation: str, arguments: dict[str, Any]) -> Any:
        """A Python handle's call: one of the gateway's operations by name."""
        return await call(self._gateway, operation, arguments)

    async def check_health(self) -> None:
        """Serve replaces a replica whose polling has ended; a lease that ran out is not its fault."""
        if self._polling.done():
            raise RuntimeError("the gateway has stopped asking the router")

    async def _close(self) -> None:
        """Answer what has been asked, then tell the router, so that the next swap need not wait for our lease."""
        await self._listener.close()
        self._polling.cancel()
        await asyncio.wait([self._polling])
        self._table.leave()
        try:
            async with asyncio.timeout(LEAVE_S):
                await self._router.leave(self._name)
        except (TimeoutError, CompassError) as error:
            log.info("the router does not hear that this gateway ends: %s", error or "timeout")
