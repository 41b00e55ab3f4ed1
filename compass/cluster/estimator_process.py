"""The actor of one dry run of a rebuild; it has no name and ends with its caller."""

from __future__ import annotations

from typing import Any

from compass.cluster import wiring
from compass.cluster.forwarding import forwards_to
from compass.rebuild.estimator import Estimator
from compass.settings import Settings


@forwards_to(Estimator)
class EstimatorProcess:
    """The process of an estimate."""

    def __init__(self, settings: dict[str, Any], uuid: str, space_id: str) -> None:
        """Read the space."""
        values = Settings(**settings)
        self.service = wiring.open_estimator(values, wiring.open_root(values), uuid, space_id)
