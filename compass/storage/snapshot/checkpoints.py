"""Checkpoints: what the view knows and the parts lack becomes parts; and what may be deleted afterwards."""

from __future__ import annotations

import contextlib
import itertools
import json
import sqlite3
import time
import uuid as uuids
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from compass.domain.chunk import IntVector
from compass.domain.collection import CollectionState
from compass.errors import TakenOverError
from compass.storage.log.log import Log
from compass.storage.objects import Objects
from compass.storage.snapshot.bases import Base, Part, base_key, base_seqs, create_base, read_base
from compass.storage.snapshot.parts import read_mask, write_mask, write_part
from compass.storage.view import tables
from compass.storage.view.tables import Tip

PART_ROWS = 20_000
DUE_COMMITS = 512


@dataclass(frozen=True, slots=True)
class Plan:
    """Which parts stay (their `live` counted anew) and which ranges of rids are written as new ones."""

    kept: list[Part]
    ranges: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Doomed:
    """Objects that no base within its grace period needs.

    Attributes:
        log_seq: The log is pruned up to this commit, takeover records excepted.
        oldest_base_seq: The oldest base that stays.
    """

    keys: list[str]
    log_seq: int
    oldest_base_seq: int


def state_of(tip: Tip) -> CollectionState:
    """The collection's state at a tip."""
    return CollectionState.from_json(json.loads(tip.state))


def checkpoint(objects: Objects, uuid: str, view: Path, base: Base | None) -> tuple[Base, int]:
    """Publish a base as of now, beside commits; returns it and the commit it stands for.

    A collection whose content is that of the last base needs no other.

    `base` is the newest one, None for none.

    Raises:
        TakenOverError: another writer has published a base at this commit.
        UnavailableError: the base may not last; the next checkpoint publishes it, or another.
    """
    with _snapshot(view) as (db, tip):
        deaths = _deaths_since(db, base.seq if base else 0)
        if base is not None and _same(base, tip, deaths):
            return base, tip.seq
        first = base.next if base else 1
        (fresh,) = db.execute("select count(*) from rows where rid>=?", (first,)).fetchone()
        plan = plan_parts(base.parts if base else (), deaths, first, tip.next - 1, fresh)
        history, receipts = tuple(tables.recall(db)), tuple(tables.receipts(db))
        kept = [_masked(objects, uuid, tip.seq, part, deaths) for part in plan.kept]
        written = [part for lo, hi in plan.ranges for part in _write(objects, uuid, tip.seq, db, lo, hi)]
    new = Base(
        uuid=uuid,
        seq=tip.seq,
        nonce=tip.nonce,
        next=tip.next,
        state=json.loads(tip.state),
        parts=tuple(sorted([*kept, *written], key=lambda part: part.lo)),
        takeovers=tip.takeovers,
        at=time.time(),
        history=history,
        receipts=receipts,
    )
    published = create_base(objects, new)
    if published is None:
        raise TakenOverError(f"another process has written a base of {uuid} at commit {new.seq}", {"seq": new.seq})
    return published, published.seq


def plan_parts(parts: Sequence[Part], deaths: IntVector, first: int, last: int, fresh: int) -> Plan:
    """Keep the work of a checkpoint in proportion to what changed, and the number of parts small.

    The newest parts are written anew together with the fresh rows as long as they are no larger than what
    follows them, so sizes fall geometrically; of the others only those mostly dead. `deaths` are the rids
    that died since the base, sorted; the rids of the `fresh` rows are `first`..`last`.
    """
    kept = [msgspec.structs.replace(p, live=p.live - _count_between(deaths, p.lo, p.hi)) for p in parts]
    while kept and kept[-1].live <= min(fresh, PART_ROWS // 2):
        fresh += kept[-1].live
        first = kept.pop().lo
    ranges = [(p.lo, p.hi) for p in kept if 0 < p.live * 2 < p.rows]
    kept = [p for p in kept if p.live * 2 >= p.rows]
    if fresh:
        ranges.append((first, last))
    return Plan(kept, ranges)


def doomed(objects: Objects, uuid: str, grace_s: float) -> Doomed:
    """What may be deleted once this writer has proved itself.

    A base lives until its successor is older than the grace period, and with it its parts; the log up to the
    newest base that is older. Parts of a later commit than the newest base may be in the making.

    All of this rests on the bases that are listed, and a power cut takes back one that is not durable: so they are
    made durable first, by syncing the folder that they share.

    Raises:
        OSError: they may not last.
    """
    now = time.time()
    bases = [base for seq in base_seqs(objects, uuid) if (base := read_base(objects, uuid, seq)) is not None]
    if not bases or not objects.ensure_durable(base_key(uuid, bases[-1].seq)):
        return Doomed([], 0, 0)
    kept = [b for b, successor in itertools.pairwise(bases) if successor.at > now - grace_s] + [bases[-1]]
    used = {key for base in kept for key in base.objects()}
    parts = [k for k in objects.list(f"{uuid}/parts") if k not in used and part_seq(k) <= bases[-1].seq]
    log_seq = max((base.seq for base in bases if base.at <= now - grace_s), default=0)
    log = Log(objects, uuid)
    pruned = [log.key(seq) for seq in log.seqs() if seq <= log_seq and seq not in set(bases[-1].takeovers)]
    gone = [base_key(uuid, base.seq) for base in bases if base not in kept]
    return Doomed([*gone, *parts, *pruned], log_seq, kept[0].seq)


def part_seq(key: str) -> int:
    """The commit of the checkpoint that wrote a part or a mask."""
    return int(key.rsplit("/", 1)[1].split("-", 1)[0])


@contextlib.contextmanager
def _snapshot(view: Path) -> Iterator[tuple[sqlite3.Connection, Tip]]:
    with contextlib.closing(tables.connect(view)) as db:
        db.execute("begin")
        tip = tables.read_tip(db)
        assert tip is not None, "the writer's view is built"
        yield db, tip


def _same(base: Base, tip: Tip, deaths: IntVector) -> bool:
    unchanged = base.next == tip.next and not len(deaths) and base.state == json.loads(tip.state)
    return base.seq == tip.seq or (unchanged and tip.seq - base.seq < DUE_COMMITS)


def _deaths_since(db: sqlite3.Connection, seq: int) -> IntVector:
    return np.sort(tables.integers(db, "select rid from deaths where seq>?", (seq,)))


def _count_between(rids: IntVector, lo: int, hi: int) -> int:
    return int(np.searchsorted(rids, hi, "right") - np.searchsorted(rids, lo, "left"))


def _masked(objects: Objects, uuid: str, seq: int, part: Part, deaths: IntVector) -> Part:
    """The part with the mask that it has now."""
    died = deaths[np.searchsorted(deaths, part.lo, "left") : np.searchsorted(deaths, part.hi, "right")]
    if not len(died):
        return part
    dead = died if part.mask is None else np.union1d(read_mask(objects, part.mask), died)
    mask = _new_key(uuid, seq, "mask")
    write_mask(objects, mask, dead)
    return msgspec.structs.replace(part, mask=mask)


def _write(objects: Objects, uuid: str, seq: int, db: sqlite3.Connection, lo: int, hi: int) -> Iterator[Part]:
    for table in tables.stored_rows(db, lo, hi, PART_ROWS):
        key = _new_key(uuid, seq, "parquet")
        write_part(objects, key, table)
        rids = table["rid"].to_numpy()
        yield Part(key, int(rids[0]), int(rids[-1]), len(rids), len(rids))


def _new_key(uuid: str, seq: int, suffix: str) -> str:
    return f"{uuid}/parts/{seq:020d}-{uuids.uuid4().hex}.{suffix}"
