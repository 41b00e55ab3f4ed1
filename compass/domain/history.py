"""The history of a collection: what was done to its spaces, when, by whom and why.

An event is committed in the same record as the change that it tells of, so neither is ever there alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Kind = Literal[
    "create", "add", "change", "rebuild", "restart", "cancel", "activate", "fail", "swap", "rollback", "drop"
]


@dataclass(frozen=True, slots=True)
class By:
    """Who asks for a change, and why. `who`: the name of the caller's key; None where the service asks itself."""

    who: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Note:
    """What is to be remembered of a change, by whoever asks for it.

    Attributes:
        space: The name of the space that it is about; None for the collection itself.
        began_at: When it was asked for: Unix time, seconds.
        details: Further plain values, such as {"previous": "gte-small", "forced": true}.
    """

    kind: Kind
    space: str | None
    began_at: float
    by: By = field(default_factory=By)
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Event:
    """What was done, in commit `seq`.

    Attributes:
        at: When it was committed: Unix time, seconds.
        epoch: The collection's epoch after it.
        took_s: Seconds from the request to the commit.
    """

    seq: int
    at: float
    epoch: int
    kind: Kind
    space: str | None
    took_s: float
    who: str | None = None
    reason: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(note: Note, *, seq: int, at: float, epoch: int) -> Event:
        """The event of a change that commit `seq` carries."""
        took_s = round(max(0.0, at - note.began_at), 3)
        return Event(seq, at, epoch, note.kind, note.space, took_s, note.by.who, note.by.reason, dict(note.details))

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Event:
        """The inverse of `to_json`."""
        return Event(**data)
