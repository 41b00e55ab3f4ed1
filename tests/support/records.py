"""Records of runs, as a test wants them."""

from __future__ import annotations

from typing import Any

from compass.domain.rebuild.order import RebuildOrder
from compass.domain.rebuild.run_record import RunRecord, RunState


def run_record(attempt: str = "a", state: RunState = "running", **fields: Any) -> RunRecord:
    """The record of a run of the built-in model that began long ago."""
    return RunRecord(RebuildOrder(("builtin",), "j"), attempt, state, 1.0, **fields)
