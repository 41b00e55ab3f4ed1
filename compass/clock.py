"""The clock that leases are counted on."""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], float]  # seconds since some instant of this machine's; never falls, means nothing elsewhere

# A suspended machine's CLOCK_MONOTONIC stands still on Linux, and a lease on it would outlive everyone's
# patience; CLOCK_BOOTTIME goes on. Where there is none (macOS), CLOCK_MONOTONIC itself counts sleep.
_CLOCK_ID = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boot_clock() -> float:
    """Seconds since boot, suspension included."""
    return time.clock_gettime(_CLOCK_ID)
