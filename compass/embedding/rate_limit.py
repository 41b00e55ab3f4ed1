"""A speed limit: so many texts a second."""

from __future__ import annotations

import time
from collections.abc import Callable


class Pace:
    """Says when the next texts may go: once those before have had their share of time."""

    def __init__(self, per_s: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        """Limit to `per_s` texts a second, None: no limit; `clock` gives seconds that only grow."""
        self._per_s, self._clock = per_s, clock
        self.free_at = 0.0  # on the clock

    def wait_s(self) -> float:
        """Seconds until the next texts may go; 0 for now."""
        return max(0.0, self.free_at - self._clock()) if self._per_s else 0.0

    def take(self, count: int) -> None:
        """Let `count` texts go."""
        if self._per_s:
            self.free_at = max(self._clock(), self.free_at) + count / self._per_s
