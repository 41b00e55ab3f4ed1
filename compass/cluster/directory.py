"""Where the actors of a service are: named, detached, found or started on demand."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.actor import ActorClass, ActorHandle

from compass.cluster.stub import NAMESPACE, Remote
from compass.domain.rebuild.order import RebuildOrder
from compass.domain.rebuild.report import EstimateReport, Failure
from compass.domain.space import Space
from compass.errors import UnavailableError

log = logging.getLogger(__name__)

ROUTER = "router"
CLOSE_S = 20.0
ESTIMATOR_S = 120.0  # its process starts, reads the lengths of all texts, and asks the endpoints for some seconds
# A swap is a compare-and-set: sent twice, its second answer would be a conflict with itself.
# A delete by filter, sent twice, would also take what was written in between.
ONCE = frozenset({"change", "delete"})
# Done, they refuse to be done again: whoever asked would be told of a conflict with themselves.
ROUTER_ONCE = frozenset({"create_collection", "delete_collection", "add_space", "drop_space", "start_rebuild"})
OPTIONS: Mapping[str, Any] = {
    "namespace": NAMESPACE,  # said always: a job has a random one
    "lifetime": "detached",
    "get_if_exists": True,
    "max_restarts": -1,
    "max_task_retries": 0,
    "num_cpus": 0,  # idle actors that hold CPUs starve Ray Data of them, silently
    "max_concurrency": 1_000,
}


class RayCluster:
    """Finds actors by name, and starts those that it has a class for."""

    def __init__(self, classes: Mapping[str, ActorClass[Any]], settings: Mapping[str, Any]) -> None:
        """Say what may be started from here.

        Args:
            classes: By part ("router", "collection", "index", "rebuild", "estimator"). A part that is left out is
                only looked for: a gateway with an old table must not bring a dropped space's index back.
            settings: The constructor's keyword arguments of `Settings`, without secrets.
        """
        self._classes, self._settings = classes, dict(settings)
        self._remotes: dict[str, Remote] = {}

    def router(self) -> Any:
        """The router; started if it is not there."""
        return self._remote(ROUTER, "router", (), ROUTER_ONCE)

    def collection(self, uuid: str) -> Any:
        """The writer of a collection; started if it is not there."""
        return self._remote(f"collection:{uuid}", "collection", (uuid,), ONCE)

    def index(self, uuid: str, space: Space) -> Any:
        """The index of a space; started if it is not there."""
        return self._remote(f"index:{space.id}", "index", (uuid, space.id))

    def find_index(self, space_id: str) -> Any:
        """The index of a space; never started from here."""
        name = f"index:{space_id}"
        return Remote(lambda: ray.get_actor(name, namespace=NAMESPACE))

    def rebuild(self, collection: str, uuid: str, space: Space) -> Any:
        """The rebuild of a space; started if it is not there."""
        return self._remote(f"rebuild:{space.id}", "rebuild", (collection, uuid, space.id))

    async def find_rebuild(self, space_id: str) -> Any:
        """The rebuild of a space, or None."""
        handle = await asyncio.to_thread(self._find, f"rebuild:{space_id}")
        return None if handle is None else Remote(lambda: handle)

    async def estimate(
        self, uuid: str, space: Space, order: RebuildOrder, known: Sequence[Failure]
    ) -> EstimateReport:
        """The estimate of a rebuild, by a process of its own: not detached, so that it never outlives its caller."""
        actor = await asyncio.to_thread(self._start_estimator, uuid, space.id)
        try:
            async with asyncio.timeout(ESTIMATOR_S):
                report: EstimateReport = await Remote(lambda: actor, once=frozenset({"estimate"})).estimate(
                    order, known
                )
                return report
        except TimeoutError:
            raise UnavailableError(
                f"the estimate was not ready within {ESTIMATOR_S:g} s", {"retry_after": 1}
            ) from None
        finally:
            await asyncio.to_thread(ray.kill, actor)

    def _start_estimator(self, uuid: str, space_id: str) -> ActorHandle[Any]:
        started: Any = self._classes["estimator"].options(num_cpus=0, max_restarts=0)
        handle: ActorHandle[Any] = started.remote(self._settings, uuid, space_id)
        return handle

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
        names = [a["name"] for a in ray.util.list_named_actors(all_namespaces=True) if a["namespace"] == NAMESPACE]
        for kind in ("rebuild:", "index:", "collection:"):
            await asyncio.gather(*(self._stop(n) for n in names if n.startswith(kind)))

    async def _stop(self, name: str, *how: Any) -> None:
        """Have an actor `close`, as these arguments say, and end its process."""
        self._remotes.pop(name, None)
        handle = await asyncio.to_thread(self._find, name)
        if handle is None:
            return
        try:
            async with asyncio.timeout(CLOSE_S):
                await Remote(lambda: handle, once=frozenset({"close"})).close(*how)
        except Exception as error:  # noqa: BLE001 - it ends all the same; what it held is in the store
            log.warning("%s does not close, its process is ended: %s", name, error or "timeout")
        with contextlib.suppress(ValueError):
            await asyncio.to_thread(ray.kill, handle, no_restart=True)

    def _find(self, name: str) -> ActorHandle[Any] | None:
        try:
            handle: ActorHandle[Any] = ray.get_actor(name, namespace=NAMESPACE)
        except ValueError:
            return None
        return handle

    def _remote(self, name: str, part: str, args: tuple[Any, ...], once: frozenset[str] = frozenset()) -> Remote:
        if name not in self._remotes:

            def find() -> Any:
                if part not in self._classes:
                    return ray.get_actor(name, namespace=NAMESPACE)
                return self._classes[part].options(name=name, **OPTIONS).remote(self._settings, *args)

            self._remotes[name] = Remote(find, once=once)
        return self._remotes[name]
