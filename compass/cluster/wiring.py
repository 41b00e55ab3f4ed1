"""Opens the parts of a service, each from the settings and the ports that it needs; the same for actors and tests.

Nothing here knows Ray. What is opened runs on the event loop of its caller, who closes it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

from compass.clock import boot_clock
from compass.cluster import ports
from compass.control.ports import Cluster
from compass.control.publisher import Publisher
from compass.control.router import RouterService
from compass.control.timings import RouterTimings, WallClock
from compass.domain.collection import CollectionState
from compass.domain.embedding.contract import Embedder, Kind
from compass.domain.memory import Room
from compass.domain.rebuild.budget import Meter
from compass.domain.routing.publication import DRAIN_S
from compass.domain.routing.table import RoutingTable
from compass.domain.space import BuiltBy, Space
from compass.embedding.open import open_embedder
from compass.embedding.verified import CheckedEmbedder
from compass.gateway import ports as gateway_ports
from compass.gateway.batching import BatchedIndex
from compass.gateway.gateway import Gateway
from compass.gateway.routing import RouteTable
from compass.index.free_memory import open_room
from compass.index.pace import DEFAULT_PACE, Pace
from compass.index.service import SpaceIndex
from compass.rebuild.estimator import Estimator
from compass.rebuild.run import RebuildRun
from compass.rebuild.stage import ReportEndpoints, StageOpener
from compass.settings import Settings
from compass.storage.log import router_epoch
from compass.storage.objects import open_objects
from compass.storage.root import Root
from compass.storage.service import CollectionService
from compass.storage.view.view import View

FOLLOWER_RETRY_S = 10.0  # a follower comes back by itself, so it need not wait long for its endpoint
QUERY_RETRY_S = 2.0  # long enough for a connection that has gone stale
REMEMBERED_INDEXES = 256

Embedders = Callable[[Space], Embedder]


def open_root(settings: Settings) -> Root:
    """The root of the service's data."""
    return Root(open_objects(settings.data), settings.cache_dir)


# ---- a collection and its spaces


def open_collection(settings: Settings, root: Root, uuid: str) -> CollectionService:
    """The writer of a collection, which takes it over."""
    store = root.open(uuid, grace_s=settings.grace_s)
    return CollectionService(store, settings.checkpoint_s, router_epoch.latest(root.objects))


def open_index(
    settings: Settings,
    root: Root,
    uuid: str,
    space_id: str,
    router: Callable[[], ports.IndexCallbacks],
    *,
    embedders: Embedders | None = None,
    room: Room | None = None,
    pace: Pace = DEFAULT_PACE,
) -> SpaceIndex:
    """The index of a space.

    Args:
        settings: Of the service.
        root: Where the space's bytes are.
        uuid: Of its collection.
        space_id: Its id.
        router: Finds the router, each time that the index has something to report to it.
        embedders: Opens the embedder of its documents; None: its endpoint, which must be the model that built it.
        room: The memory that it may take; None: what its node can give.
        pace: How often it looks at the log, and waits.
    """
    view, state, space = _read_space(root, uuid, space_id)

    async def completed() -> None:
        await router().activate(state.name, space_id)

    async def identified(built_by: BuiltBy) -> None:
        await router().identified(state.name, space_id, built_by)

    return SpaceIndex(
        space,
        view,
        root.space_vectors(uuid, space_id, space.config.dims),
        embedders or _embedders(settings, "document", FOLLOWER_RETRY_S),
        completed,
        identified,
        room or open_room(settings.memory_reserve_bytes),
        pace,
    )


def open_rebuild(
    settings: Settings,
    root: Root,
    collection: str,
    uuid: str,
    space_id: str,
    directory: ports.Directory,
    report: ReportEndpoints,
    meter: Callable[[str], Meter],
) -> RebuildRun:
    """The rebuild of a space.

    Args:
        settings: Of the service.
        root: Where the space's bytes are.
        collection: The name of its collection.
        uuid: Of its collection.
        space_id: Its id.
        directory: Where the writer, the index and the router are.
        report: Takes how the endpoints of a stage do. As `meter`, it goes with the stages into other processes.
        meter: Makes the meter of an attempt.
    """
    _, _, space = _read_space(root, uuid, space_id)
    return RebuildRun(
        collection,
        space_id,
        collection=directory.collection(uuid),
        index=directory.index(uuid, space),
        router=directory.router(),
        vectors=root.space_vectors(uuid, space_id, space.config.dims),
        objects=root.objects,
        open_stage=StageOpener(
            str(settings.data), uuid, space_id, space.config, settings.embed_timeout_s, report, meter
        ),
        actors=settings.rebuild_actors,
        local_rows=settings.rebuild_local_rows,
    )


def open_estimator(settings: Settings, root: Root, uuid: str, space_id: str) -> Estimator:
    """What estimates the rebuild of a space; it only reads."""
    view, _, space = _read_space(root, uuid, space_id)
    embedder = partial(open_embedder, kind="document", timeout_s=settings.embed_timeout_s, retry_s=0.0)
    return Estimator(space, view, root.space_vectors(uuid, space_id, space.config.dims), embedder)


# ---- the router


@dataclass(frozen=True, slots=True)
class Claim:
    """A router's right to a root, until a greater number is claimed.

    Attributes:
        number: Its epoch, greater than that of any router before.
        first: Whether no gateway can hold a lease of a predecessor's.
    """

    number: int
    first: bool


@dataclass(frozen=True, slots=True)
class OpenedRouter:
    """A router, and what publishes its table."""

    service: RouterService
    publisher: Publisher


def claim_root(root: Root) -> Claim:
    """Make the caller the newest router of a root."""
    number = router_epoch.claim(root.objects)
    return Claim(number, router_epoch.follows_nobody(root.objects, number))


def release_root(root: Root, claim: Claim) -> None:
    """Say that the router of this claim has ended after all its gateways."""
    router_epoch.release(root.objects, claim.number)


def open_router(
    settings: Settings,
    root: Root,
    claim: Claim,
    cluster: Cluster,
    *,
    drain_s: float = DRAIN_S,
    timings: RouterTimings = RouterTimings(),  # noqa: B008 - a frozen value
    now: WallClock = time.time,
) -> OpenedRouter:
    """The router of a root that was claimed for it; `drain_s` is how long a drop waits for queries in flight."""

    async def latest() -> int:
        return await asyncio.to_thread(router_epoch.latest, root.objects)

    publisher = Publisher(claim.number, settings.lease_s, boot_clock, claim.first, latest=latest, drain_s=drain_s)
    service = RouterService(root, cluster, publisher, settings.drop_guard_s, timings=timings, now=now)
    return OpenedRouter(service, publisher)


# ---- a gateway


def open_table(
    settings: Settings, name: str, router: ports.Router, on_table: Callable[[RoutingTable], None] = lambda table: None
) -> RouteTable:
    """The routing table of the gateway of this name, unique to its process; `on_table` takes each new one."""
    return RouteTable(name, lambda ack: router.poll(name, ack), boot_clock, settings.lease_s, on_table=on_table)


def open_gateway(settings: Settings, table: RouteTable, directory: ports.GatewayDirectory) -> Gateway:
    """A gateway that routes by this table."""

    @lru_cache(maxsize=REMEMBERED_INDEXES)
    def index(space_id: str) -> gateway_ports.SpaceIndex:
        return BatchedIndex(directory.find_index(space_id))

    return Gateway(
        table,
        directory.router(),
        directory.collection,
        lambda space: index(space.id),
        _embedders(settings, "query", QUERY_RETRY_S),
    )


# ---- what the above are made of


def _read_space(root: Root, uuid: str, space_id: str) -> tuple[View, CollectionState, Space]:
    """The node's view of a collection, as new as the log, and a space as the log records it."""
    view = root.view(uuid)
    view.refresh()
    state = view.state()
    return view, state, state.by_id(space_id)


def _embedders(settings: Settings, kind: Kind, retry_s: float) -> Embedders:
    """Opens the embedder of a space, which must be the model that built it."""

    def embedder(space: Space) -> Embedder:
        opened = open_embedder(space.config, kind=kind, timeout_s=settings.embed_timeout_s, retry_s=retry_s)
        return CheckedEmbedder(opened, space)

    return embedder
