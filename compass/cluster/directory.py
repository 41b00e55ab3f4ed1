"""Where the actors of a service are: named, detached, found or started on demand."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any, cast

import ray
from ray.actor import ActorClass, ActorHandle

from compass.api.operations import NEVER_REPEATED_BY_COLLECTION, NEVER_REPEATED_BY_ROUTER
from compass.cluster import ports
from compass.cluster.stub import NAMESPACE, Remote
from compass.control.ports import RebuildPort
from compass.domain.rebuild.order import RebuildOrder
from compass.domain.rebuild.report import EstimateReport, Failure
from compass.domain.space import Space
from compass.errors import UnavailableError

log = logging.getLogger(__name__)

ROUTER = "router"
CLOSE_S = 20.0
ESTIMATE_S = 120.0  # its process starts, reads the lengths of all texts, and asks the endpoints for some seconds

# Nobody starts such a process a second time, and one that died has nothing left to close.
ESTIMATOR_CALLED_ONCE = frozenset({"estimate"})
CLOSED_ONCE = frozenset({"close"})

OPTIONS: Mapping[str, Any] = {
    "namespace": NAMESPACE,  # named each time: a job has a random one
    "lifetime": "detached",
    "get_if_exists": True,
    "max_restarts": -1,
    "max_task_retries": 0,
    "num_cpus": 0,  # idle actors that hold CPUs starve Ray Data of them, silently
    "max_concurrency": 1_000,
}


class RayCluster:
    """Finds actors by name, and starts those that it has a class for."""

    def __init__(
        self,
        classes: Mapping[str, ActorClass[Any]],
        settings: Mapping[str, Any],
        *,
        close_s: float = CLOSE_S,
        estimate_s: float = ESTIMATE_S,
    ) -> None:
        """Say what may be started from here.

        Args:
            classes: By part ("router", "collection", "index", "rebuild", "estimator"). A part that is left out is
                only looked for: a gateway with an old table must not bring a dropped space's index back.
            settings: The constructor's keyword arguments of `Settings`, without secrets.
            close_s: How long an actor may take to close before its process is ended.
            estimate_s: How long an estimate may take.
        """
        self._classes, self._settings = classes, dict(settings)
        self._close_s, self._estimate_s = close_s, estimate_s
        self._stubs: dict[str, Remote] = {}

    def router(self) -> ports.Router:
        """The router; started if it is not there."""
        return cast(ports.Router, self._stub(ROUTER, "router", (), NEVER_REPEATED_BY_ROUTER))

    def collection(self, uuid: str) -> ports.Collection:
        """The writer of a collection; started if it is not there."""
        stub = self._stub(f"collection:{uuid}", "collection", (uuid,), NEVER_REPEATED_BY_COLLECTION)
        return cast(ports.Collection, stub)

    def index(self, uuid: str, space: Space) -> ports.SpaceIndex:
        """The index of a space; started if it is not there."""
        return cast(ports.SpaceIndex, self._stub(f"index:{space.id}", "index", (uuid, space.id)))

    def find_index(self, space_id: str) -> ports.SpaceIndex:
        """The index of a space; never started from here."""
        name = f"index:{space_id}"
        return cast(ports.SpaceIndex, Remote(lambda: ray.get_actor(name, namespace=NAMESPACE)))

    def rebuild(self, collection: str, uuid: str, space: Space) -> RebuildPort:
        """The rebuild of a space; started if it is not there."""
        return cast(RebuildPort, self._stub(f"rebuild:{space.id}", "rebuild", (collection, uuid, space.id)))

    async def find_rebuild(self, space_id: str) -> RebuildPort | None:
        """The rebuild of a space, or None."""
        handle = await asyncio.to_thread(self._find, f"rebuild:{space_id}")
        return None if handle is None else cast(RebuildPort, Remote(lambda: handle))

    async def estimate(
        self, uuid: str, space: Space, order: RebuildOrder, known: Sequence[Failure]
    ) -> EstimateReport:
        """The estimate of a rebuild, by a process of its own: not detached, so that it never outlives its caller.

        Raises:
            UnavailableError: it was not ready in time.
        """
        actor = await asyncio.to_thread(self._start_estimator, uuid, space.id)
        estimator = cast(ports.Estimator, Remote(lambda: actor, once=ESTIMATOR_CALLED_ONCE))
        try:
            async with asyncio.timeout(self._estimate_s):
                return await estimator.estimate(order, known)
        except TimeoutError:
            raise UnavailableError(
                f"the estimate was not ready within {self._estimate_s:g} s", {"retry_after": 1}
            ) from None
        finally:
            await asyncio.to_thread(ray.kill, actor)

    async def stop_collection(self, uuid: str) -> None:
        """Close a writer and end its process."""
        await self._stop(f"collection:{uuid}")

    async def stop_index(self, space_id: str) -> None:
        """End the process of an index whose space is gone: its graph is not saved once more."""
        await self._stop(f"index:{space_id}", False)

    async def stop_rebuild(self, space_id: str) -> None:
        """End the process of a rebuild."""
        await self._stop(f"rebuild:{space_id}")

    async def stop_all(self) -> None:
        """Close every actor but the router: rebuilds first, writers last."""
        actors = await asyncio.to_thread(ray.util.list_named_actors, all_namespaces=True)
        names = [actor["name"] for actor in actors if actor["namespace"] == NAMESPACE]
        for kind in ("rebuild:", "index:", "collection:"):
            await asyncio.gather(*(self._stop(name) for name in names if name.startswith(kind)))

    async def _stop(self, name: str, *close_arguments: Any) -> None:
        """Close an actor with these arguments, and end its process whether it closes or not."""
        self._stubs.pop(name, None)
        handle = await asyncio.to_thread(self._find, name)
        if handle is None:
            return
        try:
            async with asyncio.timeout(self._close_s):
                await Remote(lambda: handle, once=CLOSED_ONCE).close(*close_arguments)
        except Exception as error:  # noqa: BLE001 - it ends all the same; what it held is in the store
            log.warning("%s does not close, its process is ended: %s", name, error or "timeout")
        with contextlib.suppress(ValueError):
            await asyncio.to_thread(ray.kill, handle, no_restart=True)

    def _start_estimator(self, uuid: str, space_id: str) -> ActorHandle[Any]:
        actor_class: Any = self._classes["estimator"].options(num_cpus=0, max_restarts=0)
        handle: ActorHandle[Any] = actor_class.remote(self._settings, uuid, space_id)
        return handle

    def _find(self, name: str) -> ActorHandle[Any] | None:
        try:
            handle: ActorHandle[Any] = ray.get_actor(name, namespace=NAMESPACE)
        except ValueError:
            return None
        return handle

    def _stub(self, name: str, part: str, args: tuple[Any, ...], once: frozenset[str] = frozenset()) -> Remote:
        if name not in self._stubs:

            def find() -> ActorHandle[Any]:
                if part not in self._classes:
                    return ray.get_actor(name, namespace=NAMESPACE)
                actor_class: Any = self._classes[part].options(name=name, **OPTIONS)
                handle: ActorHandle[Any] = actor_class.remote(self._settings, *args)
                return handle

            self._stubs[name] = Remote(find, once=once)
        return self._stubs[name]
