"""What each part of a service offers to all who call it: the callers' own ports, put together.

A part is one process that several others call, and each of them asks for little. Here mypy sees that one class can
serve them all, and that the stub of an actor stands for the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from compass.control import ports as control
from compass.domain.rebuild.order import RebuildOrder
from compass.domain.rebuild.report import EstimateReport, Failure
from compass.domain.routing.publication import Ack, Directive
from compass.domain.space import BuiltBy, Space
from compass.gateway import ports as gateway
from compass.rebuild import ports as rebuild


class Collection(control.CollectionPort, gateway.Collection, rebuild.Collection, Protocol):
    """The only writer of a collection: for the router, the gateways and a rebuild."""


class SpaceIndex(control.IndexPort, gateway.SpaceIndex, rebuild.SpaceIndex, Protocol):
    """The index of a space: for the router, the gateways and a rebuild."""


class IndexCallbacks(Protocol):
    """What an index tells the router."""

    async def activate(self, collection: str, space_id: str) -> None:
        """The space has a vector for every live chunk: make it active."""

    async def identified(self, collection: str, space_id: str, built_by: BuiltBy) -> None:
        """Keep what the space's endpoint says of itself."""


class Router(gateway.Router, rebuild.Router, IndexCallbacks, Protocol):
    """The router: for the gateways, the indexes and the rebuilds."""

    async def poll(self, gateway: str, ack: Ack) -> Directive:
        """A gateway's long poll: its acknowledgement and its lease in, the next directive out."""

    async def leave(self, gateway: str) -> None:
        """A gateway has ended in good order: no change has to wait for its lease."""


class Directory(Protocol):
    """Where the parts of a service are."""

    def router(self) -> Router:
        """The router."""

    def collection(self, uuid: str) -> Collection:
        """The writer of a collection."""

    def index(self, uuid: str, space: Space) -> SpaceIndex:
        """The index of a space."""


class GatewayDirectory(Protocol):
    """Where a gateway finds the parts of a service; it starts no index."""

    def router(self) -> Router:
        """The router."""

    def collection(self, uuid: str) -> Collection:
        """The writer of a collection."""

    def find_index(self, space_id: str) -> SpaceIndex:
        """The index of a space, which the router has started."""


class Estimator(Protocol):
    """The process of one estimate."""

    async def estimate(self, order: RebuildOrder, known: Sequence[Failure]) -> EstimateReport:
        """The report on an order of a rebuild; see `Cluster.estimate`."""
