"""The actor `router`."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Any

import ray

from compass.clock import boot_clock
from compass.cluster import wiring
from compass.cluster.actors import ACTORS
from compass.cluster.directory import RayCluster
from compass.cluster.forwarding import forwards_to
from compass.control.router import RouterService
from compass.domain.routing.idle_exit import Decision, IdleExit, may_release
from compass.settings import Settings
from compass.storage.log import router_epoch
from compass.storage.root import hold

log = logging.getLogger(__name__)

AWAKE_S = 1.0  # how often it is looked whether a gateway has asked


@forwards_to(RouterService)
class RouterProcess:
    """The process of the authority for the routing table; see `IdleExit` for how it ends by itself."""

    def __init__(self, settings: dict[str, Any]) -> None:
        """Become the newest router of the root.

        Raises:
            TakenOverError: another service holds the root.
        """
        self._values = Settings(**settings)
        self._root = wiring.open_root(self._values)
        self._session = ray.get_runtime_context().get_session_name()
        self._lock = self._root.lock(self._session)
        self._began_s = boot_clock()
        self._claim = wiring.claim_root(self._root)
        self._cluster = RayCluster(ACTORS, settings)
        opened = wiring.open_router(self._values, self._root, self._claim, self._cluster)
        self.service, self._publisher = opened.service, opened.publisher
        self._watch = asyncio.get_running_loop().create_task(self._end_when_idle())

    async def close(self) -> None:
        """End every actor of the service but this one; what they hold is saved first.

        Call it when no gateway is left: the next router will not wait for a lease of theirs.
        """
        self._watch.cancel()
        await self._close_service()
        if may_release(self._claim.first, boot_clock() - self._began_s, self._values.lease_s):
            await asyncio.to_thread(wiring.release_root, self._root, self._claim)

    async def _close_service(self) -> None:
        await self.service.close()
        await self._cluster.stop_all()

    async def _end_when_idle(self) -> None:
        await self.service.opened()  # no poll is answered before
        match await self._verdict():
            case Decision.END_ROUTER:
                os._exit(1)
            case Decision.END_SERVICE:
                log.warning("no gateway for %g s: the service ends", self._values.idle_exit_s)
                await self._close_service()
                ray.kill(ray.get_runtime_context().current_actor, no_restart=True)

    async def _verdict(self) -> Decision:
        """How this process is to end, once that is so far."""
        idle = IdleExit(self._values.idle_exit_s, self._claim.number, self._publisher.last_renewal)
        while True:
            await asyncio.sleep(AWAKE_S)
            await asyncio.to_thread(hold, self._lock, self._session)  # a predecessor may have had it until now
            idle, decision = idle.on_awake(AWAKE_S, self._publisher.last_renewal, self._publisher.superseded)
            if decision is Decision.LOOK_FOR_SUCCESSOR:
                decision = idle.on_look(await self._latest())
            if decision is not Decision.GO_ON:
                return decision

    async def _latest(self) -> int | None:
        """The greatest number that a router has claimed; None where the claims cannot be read."""
        try:
            return await asyncio.to_thread(router_epoch.latest, self._root.objects)
        except OSError as error:
            log.warning("the claims of routers cannot be read: %s", error)
            return None
