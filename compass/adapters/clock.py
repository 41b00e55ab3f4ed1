"""The clock that leases are counted on, and one that a test moves by hand."""

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


class ManualClock:
    """A clock that stands still until a test moves it."""

    def __init__(self, now: float = 0.0) -> None:
        self._now = now

    def __call__(self) -> float:
        """Where the test has put it, in seconds."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass.

        Raises:
            ValueError: `seconds` is negative; a clock never goes back.
        """
        if seconds < 0:
            raise ValueError(f"a clock never goes back, got {seconds}")
        self._now += seconds
