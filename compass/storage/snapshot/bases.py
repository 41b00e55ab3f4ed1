"""Bases: what a checkpoint leaves behind, and where a cold view begins."""

from __future__ import annotations

from typing import Any

import msgspec
import pyarrow as pa

from compass.errors import StorageError
from compass.storage.log.receipts import Receipt
from compass.storage.objects import Objects, create_mine
from compass.storage.snapshot.parts import PartRef, Snapshot


class Part(msgspec.Struct, frozen=True):
    """A part as a base lists it: rows with rids lo..hi, `rows` in the file, `live` of them not masked."""

    key: str
    lo: int
    hi: int
    rows: int
    live: int
    mask: str | None = None


class Base(msgspec.Struct, frozen=True):
    """A collection as of commit `seq`.

    Attributes:
        nonce: That of the commit.
        next: The counter after it.
        state: `CollectionState.to_json()`.
        parts: By rid, not overlapping.
        takeovers: The commits that pruning must leave alone.
        at: When it was written: unix time, seconds.
        history: `Event.to_json()` of all that happened, oldest first.
        receipts: Those of the last attempts, oldest first, each with its commit.
    """

    uuid: str
    seq: int
    nonce: str
    next: int
    state: dict[str, Any]
    parts: tuple[Part, ...]
    takeovers: tuple[int, ...]
    at: float
    history: tuple[dict[str, Any], ...] = ()
    receipts: tuple[tuple[int, Receipt], ...] = ()

    def snapshot(self) -> Snapshot:
        """What readers of the parts need."""
        refs = (PartRef(part.key, part.mask, part.live) for part in self.parts)
        return Snapshot(self.uuid, self.seq, tuple(refs))

    def objects(self) -> set[str]:
        """The objects that it refers to."""
        return {key for part in self.parts for key in (part.key, part.mask) if key}


def base_key(uuid: str, seq: int) -> str:
    """The object of the base at a commit."""
    return f"{uuid}/base/{seq:020d}.json"


def base_seqs(objects: Objects, uuid: str) -> list[int]:
    """The commits that have a base, ascending."""
    return [int(key.rsplit("/", 1)[1].removesuffix(".json")) for key in objects.list(f"{uuid}/base")]


def newest_base_seq(objects: Objects, uuid: str) -> int:
    """The commit of the newest base, 0 if there is none."""
    return max(base_seqs(objects, uuid), default=0)


def newest_base(objects: Objects, uuid: str) -> Base | None:
    """The newest base; None if there is none."""
    while seq := newest_base_seq(objects, uuid):
        base = read_base(objects, uuid, seq)
        if base is not None:  # else a newer one has replaced it since it was listed
            return base
    return None


def read_base(objects: Objects, uuid: str, seq: int) -> Base | None:
    """The base at a commit; None if it is not there.

    Raises:
        StorageError: it is damaged.
    """
    key = base_key(uuid, seq)
    found = objects.read(key)
    return None if found is None else _decode(key, found)


def create_base(objects: Objects, base: Base) -> Base | None:
    """Publish a base; what is there then, durable. None if it is of another history.

    An earlier try may have left one at this commit, with other parts: it holds the same.

    Raises:
        UnavailableError: it is not known whether a base is there, or whether it will stay.
    """
    key = base_key(base.uuid, base.seq)
    mine = create_mine(objects, key, msgspec.json.encode(base), lambda found: _decode(key, found).nonce == base.nonce)
    return (read_base(objects, base.uuid, base.seq) or base) if mine else None


def _decode(key: str, found: pa.Buffer) -> Base:
    try:
        return msgspec.json.decode(memoryview(found), type=Base)
    except msgspec.DecodeError as error:
        raise StorageError(f"{key} is not a base: {error}", {"key": key}) from error
