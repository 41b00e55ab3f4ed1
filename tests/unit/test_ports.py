"""Each class fits the ports that it stands behind: a type checker proves it, for nobody calls these functions."""

from __future__ import annotations

import inspect
from typing import get_type_hints

from rebuild_world import CountingEmbedder, LocalCollection, LocalRouter, SetIndex
from world import FakeCluster, FakeRebuild, Model

from compass.cluster import ports as cluster_ports
from compass.cluster.directory import RayCluster
from compass.control import ports as control_ports
from compass.control.router import RouterService
from compass.domain.embedding.contract import Embedder
from compass.gateway import ports as gateway_ports
from compass.gateway.routing import RouteTable
from compass.index.service import SpaceIndex
from compass.rebuild import ports as rebuild_ports
from compass.rebuild.estimator import Estimator
from compass.rebuild.run import RebuildRun
from compass.rebuild.stage import EmbedStage, OpenStage, Stage, StageOpener
from compass.storage.service import CollectionService


def router_of_gateways(router: RouterService) -> gateway_ports.Router:
    return router


def router_of_rebuilds(router: RouterService) -> rebuild_ports.Router:
    return router


def collection_of_the_router(collection: CollectionService) -> control_ports.CollectionPort:
    return collection


def collection_of_gateways(collection: CollectionService) -> gateway_ports.Collection:
    return collection


def collection_of_rebuilds(collection: CollectionService) -> rebuild_ports.Collection:
    return collection


def index_of_the_router(index: SpaceIndex) -> control_ports.IndexPort:
    return index


def index_of_gateways(index: SpaceIndex) -> gateway_ports.SpaceIndex:
    return index


def index_of_rebuilds(index: SpaceIndex) -> rebuild_ports.SpaceIndex:
    return index


def table_of_a_gateway(table: RouteTable) -> gateway_ports.Table:
    return table


def collection_of_all(collection: CollectionService) -> cluster_ports.Collection:
    return collection


def index_of_all(index: SpaceIndex) -> cluster_ports.SpaceIndex:
    return index


def router_of_all(router: RouterService) -> cluster_ports.Router:
    return router


def callbacks_of_an_index(router: RouterService) -> cluster_ports.IndexCallbacks:
    return router


def estimator_of_the_router(estimator: Estimator) -> cluster_ports.Estimator:
    return estimator


def directory_of_a_rebuild(cluster: RayCluster) -> cluster_ports.Directory:
    return cluster


def directory_of_a_gateway(cluster: RayCluster) -> cluster_ports.GatewayDirectory:
    return cluster


def rebuild_of_the_router(run: RebuildRun) -> control_ports.RebuildPort:
    return run


def cluster_of_the_router(cluster: RayCluster) -> control_ports.Cluster:
    return cluster


def stage_of_a_pipeline(stage: EmbedStage) -> Stage:
    return stage


def opener_of_a_pipeline(opener: StageOpener) -> OpenStage:
    return opener


# ---- what stands in for them in tests


def fake_cluster(cluster: FakeCluster) -> control_ports.Cluster:
    return cluster


def fake_rebuild(rebuild: FakeRebuild) -> control_ports.RebuildPort:
    return rebuild


def fake_model(model: Model) -> Embedder:
    return model


def counting_embedder(embedder: CountingEmbedder) -> Embedder:
    return embedder


def local_collection(collection: LocalCollection) -> rebuild_ports.Collection:
    return collection


def set_index(index: SetIndex) -> rebuild_ports.SpaceIndex:
    return index


def local_router(router: LocalRouter) -> rebuild_ports.Router:
    return router


def test_every_port_is_shown_to_be_filled() -> None:
    """A port that is added needs its line above."""
    ports = {
        f"{module.__name__}.{name}"
        for module in (cluster_ports, control_ports, gateway_ports, rebuild_ports)
        for name, value in vars(module).items()
        if inspect.isclass(value) and value.__module__ == module.__name__
    }
    functions = (value for value in globals().values() if inspect.isfunction(value) and value.__module__ == __name__)
    filled = {get_type_hints(function)["return"] for function in functions}
    assert ports <= {f"{kind.__module__}.{kind.__qualname__}" for kind in filled if inspect.isclass(kind)}
