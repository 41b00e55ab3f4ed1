"""Brings a view up to its log. Only the process that holds the view's flock may run it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from compass.domain.chunk import FloatMatrix, IntVector
from compass.domain.collection import CollectionState
from compass.errors import NotFoundError, StorageError
from compass.storage.log.log import Log, Record
from compass.storage.objects import MissingObjectError, Objects
from compass.storage.snapshot.bases import Base, newest_base, newest_base_seq, read_base
from compass.storage.snapshot.parts import read_part
from compass.storage.spaces.vectors import SpaceVectors
from compass.storage.view import tables
from compass.storage.view.tables import Tip

_log = logging.getLogger(__name__)


class Applier:
    """The writing end of one view.

    Attributes:
        read_only: Nothing is written below the root: a last record whose callers' vectors are not in their spaces'
            files yet is not applied before somebody else has put them there.
    """

    def __init__(self, objects: Objects, uuid: str, path: Path, read_only: bool = False) -> None:
        self.objects, self.uuid, self.path, self.read_only = objects, uuid, path, read_only
        self.log = Log(objects, uuid)
        self._db: sqlite3.Connection | None = None
        self._inode = 0
        self._checked = False
        self._loaded = False  # from base and log, in this very catch-up

    @property
    def db(self) -> sqlite3.Connection:
        """The one connection that writes; a file that is no database is thrown away."""
        if self._db is None:
            try:
                self._db = tables.connect(self.path, create=True)
                tables.read_tip(self._db)
            except sqlite3.OperationalError as error:  # no space, no permission: the file may well be sound
                raise StorageError(f"the view {self.path} cannot be opened: {error}") from error
            except sqlite3.DatabaseError as error:
                _log.warning("the view %s is damaged and built anew: %s", self.path, error)
                self.close()
                for suffix in ("", "-wal", "-shm"):
                    Path(f"{self.path}{suffix}").unlink(missing_ok=True)
                self._db = tables.connect(self.path, create=True)
            self._inode = os.stat(self.path).st_ino
        return self._db

    def close(self) -> None:
        """Close the connection."""
        db, self._db = self._db, None
        if db is not None:
            db.close()

    def catch_up(self) -> Tip:
        """Apply the log to its end, which is where the next commit is absent and no base is newer.

        Raises:
            NotFoundError: there is no such collection.
            StorageError: the log or a part is damaged.
        """
        self._loaded = False
        self._follow_file()
        tip = self._sound_tip()
        while True:
            record = self.log.read(tip.seq + 1)
            if record is None:
                if newest_base_seq(self.objects, self.uuid) > tip.seq:  # pruned here, it goes on there
                    tip = self._load()
                    continue
                return tip
            if record.prev != tip.nonce:
                if self._loaded:
                    key = self.log.key(tip.seq + 1)
                    raise StorageError(f"{key} does not follow the commit before it", {"key": key})
                _log.warning("the view %s is of another history than its log: it is built anew", self.path)
                tip = self._load()
                continue
            last = self.log.read(tip.seq + 2) is None
            if last and self.read_only and not self._vectors_are_put(tip, record):
                return tip
            tip = self.apply(tip, record, last)

    def apply(self, tip: Tip, record: Record, last: bool) -> Tip:
        """Apply the next record, in one transaction.

        The callers' vectors of the last record may not be in their space's files yet; those of any other
        are, because nobody commits before he has seen to it.
        """
        if last and not self.read_only:
            self.put_vectors(tip, record)
        with transaction(self.db):
            dead = tables.rows_by_rid(self.db, record.dead)
            tables.remove(self.db, dead)
            tables.bury(self.db, dead, tip.seq + 1)
            tables.insert(self.db, record.rows, tip.seq + 1)
            tables.keep_receipts(self.db, [(tip.seq + 1, receipt) for receipt in record.receipts])
            return self.move(tip, record)

    def put_vectors(self, tip: Tip, record: Record) -> None:
        """Write the callers' vectors of the record after `tip` into the files of spaces that are there."""
        for vectors, vids, rows in self._callers_vectors(tip, record):
            vectors.append_given(tip.seq + 1, vids, rows)

    def move(self, tip: Tip, record: Record) -> Tip:
        """Note in the open transaction that the view stands at the record after `tip`."""
        seq = tip.seq + 1
        moved = replace(
            tip,
            seq=seq,
            nonce=record.nonce,
            next=record.next,
            count=tip.count + len(record.rows) - len(record.dead),
            state=json.dumps(record.state) if record.state is not None else tip.state,
            takeovers=(*tip.takeovers, seq) if record.takeover is not None else tip.takeovers,
        )
        tables.write_tip(self.db, moved)
        tables.remember(self.db, record.events)
        return moved

    def trim(self, tip: Tip, horizon: int) -> Tip:
        """Forget deaths and births up to a commit; who asks for older ones takes the full difference."""
        if horizon <= tip.horizon:
            return tip
        trimmed = replace(tip, horizon=horizon)
        with transaction(self.db):
            self.db.execute("delete from deaths where seq<=?", (horizon,))
            self.db.execute("delete from commits where seq<?", (horizon,))
            tables.write_tip(self.db, trimmed)
        return trimmed

    def _callers_vectors(self, tip: Tip, record: Record) -> Iterator[tuple[SpaceVectors, IntVector, FloatMatrix]]:
        """What callers sent in the record after `tip`, for each space that is there."""
        if not record.vectors:
            return
        state = CollectionState.from_json(record.state or json.loads(tip.state))
        for space_id, packed in record.vectors.items():
            if space_id in state.spaces:
                dims = state.spaces[space_id].config.dims
                yield SpaceVectors(self.objects, self.uuid, space_id, dims), *packed.arrays(dims)

    def _vectors_are_put(self, tip: Tip, record: Record) -> bool:
        """Whether the callers' vectors of the record after `tip` are in the files, but for those of dead chunks."""
        dead = {row[1] for row in tables.rows_by_rid(self.db, record.dead)}
        for vectors, vids, _ in self._callers_vectors(tip, record):
            live = set(vids.tolist()) - dead
            if not live.issubset(vectors.get(list(live))[0].tolist()):
                return False
        return True

    def _follow_file(self) -> None:
        """Open the view anew if another process has put another file in its place."""
        if self._db is not None and (not self.path.exists() or os.stat(self.path).st_ino != self._inode):
            self.close()
            self._checked = False

    def _sound_tip(self) -> Tip:
        """Where the view stands, after it is thrown away if the log does not agree (a restored backup)."""
        tip = tables.read_tip(self.db) if tables.is_current(self.db) else None
        if tip is None:
            tip = self._load()
        elif not self._checked and not self._agrees(tip):
            _log.warning("the log does not vouch for the view %s: it is built anew", self.path)
            tip = self._load()
        self._checked = True
        return tip

    def _agrees(self, tip: Tip) -> bool:
        if tip.seq == 0:
            return True
        record = self.log.read(tip.seq)
        if record is not None:
            return record.nonce == tip.nonce
        base = read_base(self.objects, self.uuid, tip.seq)
        return base is not None and base.nonce == tip.nonce

    def _load(self) -> Tip:
        """Build the view from the newest base, or from nothing where there is none."""
        while True:
            base = newest_base(self.objects, self.uuid)
            if base is None and self.log.read(1) is None:
                raise NotFoundError(f"there is no collection {self.uuid}", {"uuid": self.uuid})
            try:
                self._loaded = True
                if base is None:
                    tables.rebuild(self.db, Tip(), ())
                else:
                    tables.rebuild(self.db, _tip_of(base), self._tables(base), base.history, base.receipts)
            except MissingObjectError:
                if base is None or newest_base_seq(self.objects, self.uuid) <= base.seq:
                    raise
                continue  # replaced while it was read
            tip = tables.read_tip(self.db)
            assert tip is not None, "rebuild writes one"
            return tip

    def _tables(self, base: Base) -> Iterator[pa.Table]:
        for ref in base.snapshot().parts:
            yield read_part(self.objects, ref)


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Commit what the block did, or nothing of it."""
    db.execute("begin immediate")
    try:
        yield
        db.execute("commit")
    except BaseException:
        if db.in_transaction:
            db.execute("rollback")
        raise


def _tip_of(base: Base) -> Tip:
    return Tip(base.seq, base.nonce, base.next, 0, json.dumps(base.state), base.takeovers, base.seq)
