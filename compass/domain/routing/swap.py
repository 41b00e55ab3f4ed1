"""What a swap of the default is asked to do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SwapOrder:
    """A swap to make. `space` None, only with `rollback`: the previous default. `wait_s`: for a space that lags."""

    space: str | None
    rollback: bool = False
    force: bool = False
    expected_epoch: int | None = None
    wait_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Swapped:
    """The default before and after a swap; the epoch is unchanged if it was the default already."""

    previous: str
    current: str
    epoch: int
