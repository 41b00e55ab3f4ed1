"""The actor `rebuild:<space-id>`."""

from __future__ import annotations

from typing import Any

import ray

from compass.cluster import wiring
from compass.cluster.directory import RayCluster
from compass.cluster.forwarding import forwards_to
from compass.cluster.stage_callbacks import ActorMeters, ActorReport
from compass.rebuild.run import RebuildRun
from compass.settings import Settings


@forwards_to(RebuildRun)
class RebuildProcess:
    """The process of a space's rebuild; Ray Data's are started from it."""

    def __init__(self, settings: dict[str, Any], collection: str, uuid: str, space_id: str) -> None:
        """Go on with the run that a crash has interrupted, or wait for `start`."""
        values, directory = Settings(**settings), RayCluster({}, settings)
        here = ray.get_runtime_context().current_actor
        report, meters = ActorReport(here), ActorMeters(here)
        root = wiring.open_root(values)
        self.service = wiring.open_rebuild(values, root, collection, uuid, space_id, directory, report, meters)
