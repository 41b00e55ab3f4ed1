"""Each class that stands behind a port of the gateway has its methods, by their names, arguments and answers."""

from __future__ import annotations

from compass.control.router import RouterService
from compass.gateway import ports
from compass.gateway.batching import BatchedIndex
from compass.gateway.routing import RouteTable
from compass.index.service import SpaceIndex
from compass.storage.service import CollectionService


def typed(
    table: RouteTable, router: RouterService, collection: CollectionService, index: SpaceIndex, batched: BatchedIndex
) -> tuple[ports.Table, ports.Router, ports.Collection, ports.SpaceIndex, ports.SpaceIndex]:
    """Checked by the type checker: never called."""
    return table, router, collection, index, batched


def test_each_class_has_the_methods_of_its_port() -> None:
    """What the type checker proves of their arguments, this shows of their names."""
    fits: list[tuple[type[object], type[object]]] = [
        (RouteTable, ports.Table),
        (RouterService, ports.Router),
        (CollectionService, ports.Collection),
        (SpaceIndex, ports.SpaceIndex),
        (BatchedIndex, ports.SpaceIndex),
    ]
    for part, port in fits:
        missing = [name for name in vars(port) if not name.startswith("_") and not hasattr(part, name)]
        assert missing == [], part
