"""The state of a collection beside its chunks: its spaces, its default, its epoch; and what may change it.

A change is a value. `apply` checks its precondition against the state of the very commit that carries it
and answers the next state, so a swap that lost a race is refused and not merged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from compass.domain.space import BuiltBy, Space, SpaceConfig, Status
from compass.errors import (
    ConfirmationNeededError,
    DefaultSpaceError,
    EpochMismatchError,
    NotFoundError,
    SpaceExistsError,
    SpaceNotActiveError,
)


@dataclass(frozen=True, slots=True)
class CollectionState:
    """Everything of a collection that is not a chunk or a vector.

    Attributes:
        spaces: By space id, in the order of creation.
        default: The id of the space that answers unnamed queries.
        epoch: Grows by one with each change of the default; 1 at creation.
        tombstones: Ids of dropped spaces; only these are ever deleted.
        defaults_until: By space id, when a space that is still there ceased to be the default: Unix time, seconds.
    """

    uuid: str
    name: str
    created_at: float
    spaces: Mapping[str, Space] = field(default_factory=dict)
    default: str | None = None
    epoch: int = 1
    config: Mapping[str, Any] = field(default_factory=dict)
    tombstones: tuple[str, ...] = ()
    defaults_until: Mapping[str, float] = field(default_factory=dict)

    @property
    def previous_default(self) -> Space | None:
        """The space that was the default last; None if there was none, or it was dropped."""
        last = max(self.defaults_until, key=self.defaults_until.__getitem__, default=None)
        return None if last is None else self.spaces.get(last)

    def by_name(self, name: str) -> Space:
        """The space of this name.

        Raises:
            NotFoundError: there is none; the message lists those that are there.
        """
        for space in self.spaces.values():
            if space.name == name:
                return space
        names = ", ".join(repr(s.name) for s in self.spaces.values()) or "none"
        raise NotFoundError(f"collection {self.name!r} has no vector space {name!r}; it has {names}", {"space": name})

    def by_id(self, space_id: str) -> Space:
        """The space of this id.

        Raises:
            NotFoundError: there is none any more.
        """
        if space_id not in self.spaces:
            raise NotFoundError(f"vector space {space_id!r} is not there any more", {"space_id": space_id})
        return self.spaces[space_id]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "uuid": self.uuid,
            "name": self.name,
            "created_at": self.created_at,
            "spaces": [s.to_json() for s in self.spaces.values()],
            "default": self.default,
            "epoch": self.epoch,
            "config": dict(self.config),
            "tombstones": list(self.tombstones),
            "defaults_until": dict(self.defaults_until),
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> CollectionState:
        """The inverse of `to_json`."""
        spaces = {s["id"]: Space.from_json(s) for s in data["spaces"]}
        return CollectionState(**{**data, "spaces": spaces, "tombstones": tuple(data["tombstones"])})


@dataclass(frozen=True, slots=True)
class AddSpace:
    """Add a space; its name must be free."""

    space: Space


@dataclass(frozen=True, slots=True)
class SetSpace:
    """Replace what is not None of a space's record; its id and name stay. `error` False: none any more."""

    space_id: str
    status: Status | None = None
    follows: bool | None = None
    error: str | Literal[False] | None = None
    config: SpaceConfig | None = None
    built_by: BuiltBy | None = None


@dataclass(frozen=True, slots=True)
class SwapDefault:
    """Make `target` the default, if the default and the epoch still are what the router saw. `at`: Unix time."""

    expected_default: str
    expected_epoch: int
    target: str
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class DropSpace:
    """Leave a tombstone where the space was; never of the default."""

    space_id: str


@dataclass(frozen=True, slots=True)
class RestartSpace:
    """Drop a space and add an empty one of the same name under a new id, in one commit."""

    space_id: str
    replacement: Space


Change = AddSpace | SetSpace | SwapDefault | DropSpace | RestartSpace


def apply(state: CollectionState, change: Change) -> CollectionState:
    """The state after `change`.

    Raises:
        ConflictError, NotFoundError: the precondition does not hold; nothing changes.
    """
    match change:
        case AddSpace(space):
            if any(s.name == space.name for s in state.spaces.values()):
                raise SpaceExistsError(
                    f"collection {state.name!r} has a vector space {space.name!r} already",
                    {"space": space.name},
                )
            return replace(state, spaces={**state.spaces, space.id: space})
        case SetSpace():
            return _set_space(state, change)
        case SwapDefault():
            return _swap(state, change)
        case DropSpace(space_id):
            return _drop(state, space_id)
        case RestartSpace(space_id, replacement):
            dropped = _drop(state, space_id)
            return replace(dropped, spaces={**dropped.spaces, replacement.id: replacement})


def _set_space(state: CollectionState, change: SetSpace) -> CollectionState:
    space = state.by_id(change.space_id)
    space = replace(
        space,
        status=space.status if change.status is None else change.status,
        follows=space.follows if change.follows is None else change.follows,
        error=space.error if change.error is None else change.error or None,
        config=space.config if change.config is None else change.config,
        built_by=space.built_by if change.built_by is None else change.built_by,
    )
    return replace(state, spaces={**state.spaces, space.id: space})


def _swap(state: CollectionState, swap: SwapDefault) -> CollectionState:
    if state.default != swap.expected_default or state.epoch != swap.expected_epoch:
        raise EpochMismatchError(
            f"the default of {state.name!r} has changed meanwhile: epoch {state.epoch}, "
            f"expected {swap.expected_epoch}",
            {"epoch": state.epoch, "expected_epoch": swap.expected_epoch},
        )
    space = state.by_id(swap.target)
    if space.status != "active":
        raise SpaceNotActiveError(
            f"vector space {space.name!r} is {space.status}, not active; rebuild it first",
            {"space": space.name, "space_status": space.status},
        )
    if swap.target == state.default:
        return state
    ceased = {k: v for k, v in state.defaults_until.items() if k != swap.target}
    ceased[swap.expected_default] = swap.at
    return replace(state, default=swap.target, epoch=state.epoch + 1, defaults_until=ceased)


def _drop(state: CollectionState, space_id: str) -> CollectionState:
    space = state.by_id(space_id)
    if state.default == space_id:
        raise DefaultSpaceError(
            f"vector space {space.name!r} is the default of {state.name!r}; swap the default first",
            {"space": space.name},
        )
    spaces = {k: v for k, v in state.spaces.items() if k != space_id}
    ceased = {k: v for k, v in state.defaults_until.items() if k != space_id}
    return replace(state, spaces=spaces, tombstones=(*state.tombstones, space_id), defaults_until=ceased)


def check_drop_guard(state: CollectionState, space: Space, now: float, guard_s: float) -> None:
    """Refuse to drop a space that was the default within the last `guard_s` seconds without a confirmation.

    Raises:
        ConfirmationNeededError: it was.
    """
    until = state.defaults_until.get(space.id)
    if until is not None and (ago_s := now - until) < guard_s:
        raise ConfirmationNeededError(
            f"vector space {space.name!r} was the default {ago_s:.0f} s ago, and dropping it ends "
            f"the way back: confirm with ?confirm={space.name}",
            {"space": space.name, "drop_guard_s": guard_s},
        )


@dataclass(frozen=True, slots=True)
class CollectionSpec:
    """A collection to create; checked already."""

    name: str
    spaces: dict[str, SpaceConfig]
    default: str
    config: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CollectionStats:
    """What a collection's writer knows: its live chunks, and its last commit."""

    chunk_count: int
    seq: int
