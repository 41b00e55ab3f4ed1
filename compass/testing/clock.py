"""A clock that a test moves by hand."""

from __future__ import annotations


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
