"""Faults that happen at one named point: hooks for objects that call `before` and `after` each operation."""

from __future__ import annotations

from collections.abc import Callable


def once(operation: str, part: str, do: Callable[[], None]) -> Callable[[str, str], None]:
    """A fault that happens at the first `operation` on a key that contains `part`."""
    left = [True]

    def hook(called: str, key: str) -> None:
        if left and called == operation and part in key:
            left.clear()
            do()

    return hook


def fail() -> None:
    raise TimeoutError("no answer")
