"""The progress of a rebuild: a high-water mark that never falls and is 1.0 exactly at the activation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

WINDOW_S = 10.0
ALMOST = 0.9999  # the most that a space which cannot answer yet may claim


@dataclass(frozen=True, slots=True)
class Sample:
    """How many chunks were embedded at a moment."""

    at_s: float
    embedded: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a rebuild is; a value: each observation answers the next one.

    Attributes:
        total: Live chunks of the collection.
        embedded: Live vectors of the space.
        failed: Chunks that are quarantined: they count as done, as no attempt would change them.
        blank: Chunks without text: they have no vector and count as done.
        mark: The greatest fraction shown so far, 0..1.
        active: Whether the space has turned active.
        samples: What the speed is measured by; not stored, as a clock means nothing to another process.
    """

    total: int = 0
    embedded: int = 0
    failed: int = 0
    blank: int = 0
    mark: float = 0.0
    active: bool = False
    samples: tuple[Sample, ...] = ()

    def observe(self, now_s: float, *, embedded: int) -> Progress:
        """What it is once `embedded` vectors are there; `now_s` is any clock that only grows."""
        recent = tuple(s for s in self.samples if s.at_s > now_s - WINDOW_S)
        older = self.samples[len(self.samples) - len(recent) - 1 : len(self.samples) - len(recent)]
        samples = (*older, *recent, Sample(now_s, embedded))
        return replace(self, embedded=embedded, samples=samples)._risen()

    def planned(self, now_s: float, *, total: int, embedded: int, failed: int, blank: int) -> Progress:
        """What it is after a new look at the collection: the counts are taken anew, the mark stays.

        What the look found is no work of this moment, so the speed is measured from here.
        """
        samples = (Sample(now_s, embedded),)
        counted = replace(self, total=total, embedded=embedded, failed=failed, blank=blank, samples=samples)
        return counted._risen()

    def activated(self) -> Progress:
        """What it is from the activation on: 1.0, for good."""
        return replace(self, active=True, mark=1.0)

    @property
    def fraction(self) -> float:
        """The progress, 0..1; never falls, and is 1.0 exactly when the space is active."""
        return self.mark

    def docs_per_s(self, now_s: float) -> float:
        """Chunks embedded per second over the last ten seconds; 0.0 before two observations."""
        if not self.samples:
            return 0.0
        first = next((s for s in reversed(self.samples) if s.at_s <= now_s - WINDOW_S), self.samples[0])
        elapsed_s = now_s - first.at_s
        return max(0.0, (self.embedded - first.embedded) / elapsed_s) if elapsed_s > 0 else 0.0

    def eta_s(self, now_s: float) -> float | None:
        """Seconds until everything known is embedded, at the speed of now; None when nothing moves."""
        if self.active:
            return 0.0
        speed = self.docs_per_s(now_s)
        return self._left() / speed if speed > 0 else None

    def to_json(self) -> dict[str, Any]:
        """What is stored, as plain JSON values."""
        return {
            "total": self.total,
            "embedded": self.embedded,
            "failed": self.failed,
            "blank": self.blank,
            "mark": self.mark,
            "active": self.active,
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Progress:
        """The inverse of `to_json`; the speed begins anew."""
        return Progress(**data)

    def _left(self) -> int:
        return max(0, self.total - self.embedded - self.failed - self.blank)

    def _risen(self) -> Progress:
        if self.active:
            return self
        reached = 1.0 - self._left() / self.total if self.total else 0.0
        return replace(self, mark=max(self.mark, min(reached, ALMOST)))
