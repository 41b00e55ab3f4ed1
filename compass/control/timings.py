"""How long the router waits for what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

WallClock = Callable[[], float]  # Unix time, seconds: what is recorded, and compared over restarts


@dataclass(frozen=True, slots=True)
class RouterTimings:
    """Seconds.

    Attributes:
        open_wait_s: How long a call waits for the router to have opened.
        configure_s: How long an index may take to hear of its space's record, which it also reads by itself.
        settle_s: How often a log that does not answer is asked what became of a change.
        catch_up_s: How long an activation waits for its space to reach the frontier.
        reconcile_s: How often the parts of the service are looked after.
        stop_check_s: How often it is looked whether the run of a rebuild's process has ended.
        cancel_s: How long a run may take to end by itself, before its process is ended.
    """

    open_wait_s: float = 10.0
    configure_s: float = 5.0
    settle_s: float = 1.0
    catch_up_s: float = 5.0
    reconcile_s: float = 10.0
    stop_check_s: float = 2.0
    cancel_s: float = 2.0


DEFAULT_TIMINGS = RouterTimings()
