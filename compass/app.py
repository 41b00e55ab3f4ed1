"""Classes become deployments and actors: the only place where they do.

compass.app:build        the Serve application, for `serve run`, `serve deploy` and `compass serve`
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shlex
import socket
import sys
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import ray
from ray.actor import ActorClass
from ray.exceptions import RayError
from starlette.types import ASGIApp, Receive, Scope, Send

from compass.api.calls import call
from compass.clock import boot_clock
from compass.cluster.directory import RayCluster
from compass.control.publisher import Publisher
from compass.control.router import RouterService
from compass.domain.embedding.contract import Embedder
from compass.domain.embedding.endpoint_stats import EndpointStats
from compass.domain.routing.table import RoutingTable
from compass.domain.space import BuiltBy, Space
from compass.embedding.open import open_embedder
from compass.embedding.verified import CheckedEmbedder
from compass.errors import BudgetSpentError, CompassError, UnavailableError
from compass.gateway.batching import BatchedIndex
from compass.gateway.gateway import Gateway
from compass.gateway.routing import RouteTable
from compass.http.app import build_app
from compass.http.listener import Listener
from compass.http.metrics import PrometheusMetrics, fresh_folder
from compass.index.free_memory import open_room
from compass.index.service import SpaceIndex
from compass.rebuild.estimator import Estimator
from compass.rebuild.run import RebuildRun
from compass.rebuild.stage import StageOpener
from compass.settings import Settings
from compass.storage.log import router_epoch as incarnation
from compass.storage.objects import open_objects
from compass.storage.root import Root, hold
from compass.storage.service import CollectionService

if TYPE_CHECKING:
    from ray import serve

APP = "compass"
FOLLOWER_RETRY_S = 10.0  # a follower comes back by itself, so it need not wait long for its endpoint
LEAVE_S = 1.0  # how long an ending gateway tries to say so
JOIN_S = 10.0  # how long a new gateway waits for the router before it shows itself
QUERY_RETRY_S = 2.0  # long enough for a connection that has gone stale
# A rebuild starts a handful of processes, Ray Data's among them, which inherit this: importing everything, each would
# take a core from the queries for a second or two, before it could make itself nice.
NICED = f"nice -n 5 {shlex.quote(sys.executable)}"

log = logging.getLogger(__name__)


def _root(settings: Settings) -> Root:
    return Root(open_objects(settings.data), settings.cache_dir)


class CollectionProcess(CollectionService):
    """The actor `collection:<uuid>`."""

    def __init__(self, settings: dict[str, Any], uuid: str) -> None:
        values = Settings(**settings)
        root = _root(values)
        store = root.open(uuid, grace_s=values.grace_s)
        super().__init__(store, values.checkpoint_s, incarnation.latest(root.objects))


class IndexProcess(SpaceIndex):
    """The actor `index:<space-id>`."""

    def __init__(self, settings: dict[str, Any], uuid: str, space_id: str) -> None:
        values = Settings(**settings)
        root, cluster = _root(values), RayCluster({}, settings)
        view = root.view(uuid)
        view.refresh()
        state = view.state()
        space = state.by_id(space_id)

        def embedder(space: Space) -> Embedder:
            timeout_s = values.embed_timeout_s
            opened = open_embedder(space.config, kind="document", timeout_s=timeout_s, retry_s=FOLLOWER_RETRY_S)
            return CheckedEmbedder(opened, space)

        async def completed() -> None:
            await cluster.router().activate(state.name, space_id)

        async def identified(built_by: BuiltBy) -> None:
            await cluster.router().identified(state.name, space_id, built_by)

        vectors = root.space_vectors(uuid, space_id, space.config.dims)
        room = open_room(values.memory_reserve_bytes)
        super().__init__(space, view, vectors, embedder, completed, identified, room)


class RouterProcess(RouterService):
    """The actor `router`. Ends the whole service when no gateway has asked for a while."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._values = Settings(**settings)
        root = _root(self._values)
        self._service = ray.get_runtime_context().get_session_name()
        self._lock = root.lock(self._service)
        objects = self._objects = root.objects
        self._began, number = boot_clock(), incarnation.claim(objects)
        self._alone = incarnation.follows_nobody(objects, number)
        self._actors = RayCluster(ACTORS, settings)

        async def latest() -> int:
            return await asyncio.to_thread(incarnation.latest, objects)

        lease_s = self._values.lease_s
        publisher = Publisher(number, lease_s, boot_clock, self._alone, RoutingTable(), latest=latest)
        super().__init__(root, self._actors, publisher, self._values.drop_guard_s)
        self._watch = asyncio.get_running_loop().create_task(self._end_when_idle(publisher))

    async def close(self) -> None:
        """End every actor of the service but this one; what they hold is saved first.

        Call it when no gateway is left: the next router will not wait for a lease of theirs.
        """
        self._watch.cancel()
        await super().close()
        await self._actors.stop_all()
        if self._alone or boot_clock() - self._began > self._values.lease_s:  # else a predecessor's may still run
            await asyncio.to_thread(incarnation.release, self._objects, self._number)

    async def _end_when_idle(self, publisher: Publisher) -> None:
        await asyncio.wait([self._opened])  # no poll is answered before, however long that takes
        idle_s, waited_s, renewed = self._values.idle_exit_s, 0, publisher.last_renewal
        while waited_s < idle_s:
            await asyncio.sleep(1)  # counted awake: after a suspension the gateways must have a chance to ask
            await asyncio.to_thread(hold, self._lock, self._service)  # a predecessor may have had it until now
            waited_s = waited_s + 1 if publisher.last_renewal == renewed else 0
            renewed = publisher.last_renewal
            if publisher.superseded or (waited_s >= idle_s and await self._has_successor()):
                os._exit(1)  # by their names the service's actors are the successor's, and so is our own
        log.warning("no gateway for %g s: the service ends", idle_s)
        await super().close()
        await self._actors.stop_all()
        ray.kill(ray.get_runtime_context().current_actor, no_restart=True)

    async def _has_successor(self) -> bool:
        """Whether the gateways are silent because they ask another router; also where nobody can tell."""
        try:
            return await asyncio.to_thread(incarnation.latest, self._objects) > self._number
        except OSError as error:
            log.warning("the claims of routers cannot be read: %s", error)
            return True


class _Tell:
    """Tells the rebuild's actor how a stage's endpoints do; from its own process or another one."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __call__(self, attempt: str, stage: str, endpoints: tuple[EndpointStats, ...]) -> None:
        self._actor.report.remote(attempt, stage, endpoints)


class _ActorMeter:
    """The meter of a rebuild's stage: the account is with the rebuild's actor."""

    def __init__(self, actor: Any, attempt: str) -> None:
        self._actor, self._attempt = actor, attempt

    async def reserve(self, tokens: int) -> int:
        """Hold what a request may cost."""
        try:
            held = int(await self._actor.reserve.remote(self._attempt, tokens))
        except RayError as error:
            raise UnavailableError(f"the account of the rebuild does not answer ({type(error).__name__})") from error
        if not held:
            raise BudgetSpentError("the next request might pass the budget of the rebuild")
        return held

    def settle(self, held: int, tokens: int) -> None:
        """Say what it has cost."""
        self._actor.settle.remote(self._attempt, held, tokens)


class _MeterOpener:
    """Makes the meters of a rebuild's stages, in this process or in another one."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __call__(self, attempt: str) -> _ActorMeter:
        return _ActorMeter(self._actor, attempt)


class RebuildProcess(RebuildRun):
    """The actor `rebuild:<space-id>`."""

    def __init__(self, settings: dict[str, Any], collection: str, uuid: str, space_id: str) -> None:
        values = Settings(**settings)
        root, cluster = _root(values), RayCluster({}, settings)
        view = root.view(uuid)
        view.refresh()
        space = view.state().by_id(space_id)
        here = ray.get_runtime_context().current_actor
        timeout_s, tell, meter = values.embed_timeout_s, _Tell(here), _MeterOpener(here)
        stages = StageOpener(str(values.data), uuid, space_id, space.config, timeout_s, tell, meter)
        super().__init__(
            collection,
            space_id,
            collection=cluster.collection(uuid),
            index=cluster.index(uuid, space),
            router=cluster.router(),
            vectors=root.space_vectors(uuid, space_id, space.config.dims),
            objects=open_objects(values.data),
            open_stage=stages,
            actors=values.rebuild_actors,
            local_rows=values.rebuild_local_rows,
        )


class EstimatorProcess(Estimator):
    """The actor of one dry run of a rebuild; it ends with it."""

    def __init__(self, settings: dict[str, Any], uuid: str, space_id: str) -> None:
        values = Settings(**settings)
        root = _root(values)
        view = root.view(uuid)
        view.refresh()
        space = view.state().by_id(space_id)
        vectors = root.space_vectors(uuid, space_id, space.config.dims)
        embedder = partial(open_embedder, kind="document", timeout_s=values.embed_timeout_s, retry_s=0.0)
        super().__init__(space, view, vectors, embedder)


ACTORS: dict[str, ActorClass[Any]] = {
    "router": ray.remote(RouterProcess),
    "collection": ray.remote(CollectionProcess),
    "index": ray.remote(IndexProcess),
    "rebuild": ray.remote(runtime_env={"py_executable": NICED})(RebuildProcess),
    "estimator": ray.remote(runtime_env={"py_executable": NICED})(EstimatorProcess),
}


class GatewayReplica:
    """A replica of the gateway: one ASGI application behind two doors, and a Python handle."""

    async def __init__(self, settings: dict[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        values = Settings(**settings)
        cluster = RayCluster({"router": ACTORS["router"]}, settings)
        router = cluster.router()
        name = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"  # a pid is not unique among containers
        metrics = PrometheusMetrics(fresh_folder(values.cache_dir, values.port), name)

        def count_epochs(table: RoutingTable) -> None:
            metrics.epochs({route.name: route.epoch for route in table.collections.values()})

        self._table = RouteTable(
            name, lambda ack: router.poll(name, ack), boot_clock, values.lease_s, on_table=count_epochs
        )
        self._polling = asyncio.get_running_loop().create_task(self._table.run())
        self._router, self._name = router, name

        @lru_cache(maxsize=256)
        def index(space_id: str) -> BatchedIndex:
            return BatchedIndex(cluster.find_index(space_id))

        def embedder(space: Space) -> Embedder:
            timeout_s = values.embed_timeout_s
            opened = open_embedder(space.config, kind="query", timeout_s=timeout_s, retry_s=QUERY_RETRY_S)
            return CheckedEmbedder(opened, space)

        self._gateway = Gateway(
            self._table,
            router,
            cluster.collection,
            lambda space: index(space.id),
            embedder,
        )
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


def build(args: dict[str, Any] | None = None) -> serve.Application:
    """The Serve application.

    Args:
        args: Settings by their names (`data`, `port`, …), as `serve_config.yaml` gives them. The API key is
            not among them: it comes from the environment of the cluster's nodes.
    """
    from ray import serve  # here, not above: it takes half a second, and every actor imports this module

    given = {k: v for k, v in (args or {}).items() if k != "api_key"}
    settings = Settings(**given)
    plain = settings.model_dump(mode="json", exclude={"api_key"}, exclude_none=True)
    plain["data"] = str(settings.data.resolve())
    deployment = serve.deployment(
        name="Gateway",
        num_replicas=settings.gateways,
        max_ongoing_requests=settings.max_in_flight,
        health_check_period_s=1,
        max_surge_percent=100,  # a rollout ends an old replica when a new one answers, also where there is one only
        graceful_shutdown_wait_loop_s=0.2,
        graceful_shutdown_timeout_s=15,
        # A byte, so that gateways are spread over the nodes: Ray places at random what reserves nothing at all.
        ray_actor_options={"num_cpus": 0, "memory": 1},
    )(serve.ingress()(GatewayReplica))
    return deployment.bind(plain)
