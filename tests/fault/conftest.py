"""The judge of histories: what several clients saw of a collection's default while it was swapped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import pytest


@dataclass(frozen=True, slots=True)
class Seen:
    """An answer, to a query or to a swap: which epoch and space it told, and when it was asked for and had."""

    client: str
    began: float
    ended: float
    epoch: int
    space: str


def violations(history: Iterable[Seen]) -> list[str]:
    """What of a history no single register could have told; empty: it is linearizable.

    The epoch only grows and each epoch has one space, so it is enough that no answer which began after another one
    had ended tells an older epoch. This holds for swaps and queries alike, whoever asked.
    """
    seen = list(history)
    found = [f"epoch {e} was {a} and {b}" for e, a, b in _two_spaces(seen)]
    by_end = sorted(seen, key=lambda one: one.ended)
    newest: Seen | None = None
    at = 0
    for one in sorted(seen, key=lambda one: one.began):
        while at < len(by_end) and by_end[at].ended < one.began:
            if newest is None or by_end[at].epoch > newest.epoch:
                newest = by_end[at]
            at += 1
        if newest is not None and one.epoch < newest.epoch:
            late_ms = 1e3 * (one.began - newest.ended)
            found.append(
                f"{one.client} was told epoch {one.epoch}, {late_ms:.1f} ms after {newest.client} had {newest.epoch}"
            )
    return found


def _two_spaces(seen: Sequence[Seen]) -> list[tuple[int, str, str]]:
    spaces: dict[int, str] = {}
    return [(s.epoch, spaces[s.epoch], s.space) for s in seen if spaces.setdefault(s.epoch, s.space) != s.space]


@pytest.fixture(scope="session")
def seen() -> type[Seen]:
    """The type of an entry of a history."""
    return Seen


@pytest.fixture(scope="session")
def judge() -> Callable[[Iterable[Seen]], list[str]]:
    """What is wrong with a history."""
    return violations
