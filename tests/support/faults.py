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


def not_durable(operation: str, part: str) -> Callable[[str, str], None]:
    """An `operation` on keys that contain `part` takes effect and fails, and nothing makes it durable."""

    def hook(called: str, key: str) -> None:
        if called in (operation, "ensure_durable") and part in key:
            raise OSError("the folder's fsync failed")

    return hook
