"""The view: what a node makes of a collection's log, so that reads are local and cheap."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compass.domain.chunk import Chunk, IntVector, has_text
from compass.domain.collection import CollectionState
from compass.domain.filters import Filter
from compass.domain.history import Event
from compass.domain.space import SpaceConfig
from compass.errors import UnavailableError
from compass.storage.locks import FileLock
from compass.storage.objects import Objects, answering
from compass.storage.snapshot.rows import COLUMNS, chunk_of
from compass.storage.view import filter_sql as filtering
from compass.storage.view import tables
from compass.storage.view.applier import Applier
from compass.storage.view.tables import Tip, integers

_POLL_S = 0.001
_SLOWEST_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Changes:
    """What happened up to commit `seq`: vids that are live and were not, and vids that no longer are; sorted."""

    seq: int
    born: IntVector
    died: IntVector


class View:
    """A reader of this node's view of one collection; thread-safe.

    Whoever holds the flock beside the file applies the log, the others read: in the writer's process and on
    its node the writer does it, elsewhere each reader that refreshes.
    """

    def __init__(self, objects: Objects, uuid: str, cache: Path, *, read_only: bool = False) -> None:
        """A reader of the view below `cache`.

        Args:
            objects: The root.
            uuid: The collection.
            cache: This node's cache.
            read_only: Write nothing below the root, where a refresh finishes what a writer that died has left.
        """
        self.uuid = uuid
        self.path = view_path(cache, uuid)
        self._lock = FileLock(lock_path(cache, uuid))
        self._applier = Applier(objects, uuid, self.path, read_only)
        self._applying = threading.Lock()
        self._idle: deque[tuple[int, sqlite3.Connection]] = deque()
        self._live = threading.Lock()
        self._live_vids: tuple[tuple[str, int], IntVector] | None = None
        self._state: tuple[str, CollectionState] | None = None

    def refresh(self, min_seq: int = 0, timeout_s: float = 10.0) -> int:
        """Bring the view to `min_seq` or beyond and return where it is; 0: as far as can be done at once.

        Raises:
            UnavailableError: it did not get there in time.
            NotFoundError: there is no such collection.
        """
        deadline = time.monotonic() + timeout_s
        pause_s = _POLL_S
        while True:
            seq = self.seq()
            if seq and seq >= min_seq > 0:
                return seq
            seq = self._apply_if_free() or self.seq()
            if seq and seq >= min_seq:
                return seq
            if time.monotonic() >= deadline:
                raise UnavailableError(
                    f"the view of {self.uuid} has reached commit {seq}, not {min_seq}, in {timeout_s:g} s",
                    {"seq": seq, "min_seq": min_seq},
                )
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, _SLOWEST_POLL_S)

    def seq(self) -> int:
        """The commit that the view has applied; 0 before it was built."""
        try:
            with self._read() as db:
                return int(db.execute("select seq from tip").fetchone()[0])
        except (UnavailableError, TypeError):
            return 0

    def state(self) -> CollectionState:
        """The collection's spaces, default and epoch."""
        with self._read() as db:
            text = self._tip(db).state
        known = self._state
        if known is None or known[0] != text:
            known = self._state = (text, CollectionState.from_json(json.loads(text)))
        return known[1]

    def history(self) -> list[Event]:
        """What was done to the collection, oldest first."""
        with self._read() as db:
            return [Event.from_json(event) for event in tables.recall(db)]

    def count(self) -> int:
        """How many chunks are live."""
        with self._read() as db:
            return self._tip(db).count

    def get(self, chunk_id: int) -> Chunk | None:
        """The chunk of this id."""
        with self._read() as db:
            row = db.execute(f"select {COLUMNS} from rows where id=?", (int(chunk_id),)).fetchone()
        return None if row is None else chunk_of(row)

    def page(self, after: int, limit: int) -> list[Chunk]:
        """Up to `limit` chunks whose id is greater than `after`, by id."""
        with self._read() as db:
            sql = f"select {COLUMNS} from rows where id>? order by id limit ?"
            return [chunk_of(row) for row in db.execute(sql, (int(after), int(limit)))]

    def by_vids(self, vids: IntVector | Sequence[int]) -> dict[int, Chunk]:
        """The live chunks of these vids; the others are left out."""
        sql = f"select {COLUMNS} from rows where vid in (select value from json_each(?))"
        with self._read() as db:
            chunks = [chunk_of(row) for row in db.execute(sql, (_json(vids),))]
        return {chunk.vid: chunk for chunk in chunks}

    def texts(self, vids: IntVector | Sequence[int]) -> dict[int, str]:
        """The texts of those of these vids that are live."""
        with self._read() as db:
            sql = "select vid, text from rows where vid in (select value from json_each(?))"
            return dict(db.execute(sql, (_json(vids),)).fetchall())

    def text_lengths(self) -> tuple[IntVector, IntVector]:
        """The vids of the live chunks that have a text, sorted, and how many characters each text has."""
        with self._read() as db:
            sql = "select vid, length(text) from rows where not blank order by vid"
            lengths = np.array(db.execute(sql).fetchall(), np.int64).reshape(-1, 2)
        return lengths[:, 0], lengths[:, 1]

    def texts_to_embed(self, vids: IntVector | Sequence[int], config: SpaceConfig) -> dict[int, str]:
        """What a space embeds of those of these vids that are live and have a text."""
        chunks = self.by_vids(vids).values()
        return {c.vid: config.document_text(c._asdict(), c.metadata) for c in chunks if has_text(c.text)}

    def live_vids(self) -> IntVector:
        """The vids of all live chunks, sorted; read-only. Kept and carried forward from commit to commit."""
        with self._snapshot() as (db, tip):
            return self._live_at(db, tip)

    def embeddable_vids(self) -> IntVector:
        """The live vids whose text is not empty, sorted."""
        with self._snapshot() as (db, tip):
            blank = integers(db, "select vid from rows where blank")
            return np.setdiff1d(self._live_at(db, tip), blank, assume_unique=True)

    def matching(self, where: Filter) -> IntVector:
        """The vids of the live chunks for which `where.matches` holds, sorted."""
        if not where:
            return self.live_vids()
        with self._read() as db:
            return filtering.matching(db, where)

    def changes(self, since_seq: int) -> Changes | None:
        """What happened after commit `since_seq`; None if that is too long ago: take the full difference."""
        with self._snapshot() as (db, tip):
            return _changes(db, tip, since_seq)

    def close(self) -> None:
        """Close the connections that are not in use, and let go of the flock."""
        with self._applying:
            self._applier.close()
            self._lock.release()
        while self._idle:
            self._idle.pop()[1].close()

    def _apply_if_free(self) -> int:
        """Apply the log if nobody else does; 0 if somebody does."""
        if not self._applying.acquire(blocking=False):
            return 0
        try:
            if not self._lock.acquire():
                return 0
            try:
                with answering(f"applying the log of {self.uuid}"):
                    return self._applier.catch_up().seq
            finally:
                self._lock.release()
        finally:
            self._applying.release()

    @contextlib.contextmanager
    def _read(self) -> Iterator[sqlite3.Connection]:
        """A connection that no other thread has; given back afterwards, if the file is still the same."""
        inode = self._inode()
        held, db = 0, None
        with contextlib.suppress(IndexError):
            held, db = self._idle.pop()
        if db is None or held != inode:
            if db is not None:
                db.close()
            held, db = inode, self._connect()
        try:
            yield db
        except sqlite3.DatabaseError as error:
            db.close()
            raise UnavailableError(f"the view of {self.uuid} cannot be read now: {error}") from error
        except BaseException:
            db.close()
            raise
        self._idle.append((held, db))

    @contextlib.contextmanager
    def _snapshot(self) -> Iterator[tuple[sqlite3.Connection, Tip]]:
        """A connection whose reads all see one commit."""
        with self._read() as db:
            db.execute("begin")
            yield db, self._tip(db)
            db.execute("commit")

    def _tip(self, db: sqlite3.Connection) -> Tip:
        tip = tables.read_tip(db)
        if tip is None or tip.seq == 0:
            raise UnavailableError(f"the view of {self.uuid} is not built yet", {"uuid": self.uuid})
        return tip

    def _inode(self) -> int:
        try:
            return os.stat(self.path).st_ino
        except FileNotFoundError:
            raise UnavailableError(f"the view of {self.uuid} is not built yet", {"uuid": self.uuid}) from None

    def _connect(self) -> sqlite3.Connection:
        try:
            return tables.connect(self.path)
        except sqlite3.DatabaseError as error:
            raise UnavailableError(f"the view of {self.uuid} cannot be read now: {error}") from error

    def _live_at(self, db: sqlite3.Connection, tip: Tip) -> IntVector:
        with self._live:
            known = self._live_vids
        if known is not None and known[0] == (tip.nonce, tip.seq):
            return known[1]
        vids = self._carried(db, tip, known) if known is not None else None
        if vids is None:
            vids = np.sort(integers(db, "select vid from rows"))
        vids.flags.writeable = False
        with self._live:
            self._live_vids = (tip.nonce, tip.seq), vids
        return vids

    def _carried(
        self, db: sqlite3.Connection, tip: Tip, known: tuple[tuple[str, int], IntVector]
    ) -> IntVector | None:
        (nonce, since), vids = known
        same_history = db.execute("select 1 from commits where seq=? and nonce=?", (since, nonce)).fetchone()
        changes = _changes(db, tip, since) if same_history else None
        if changes is None:
            return None
        left = np.delete(vids, np.searchsorted(vids, changes.died))  # what died since was live then
        return np.concatenate([left, changes.born])  # what is born is greater than all before: still sorted


def view_path(cache: Path, uuid: str) -> Path:
    """The file of a collection's view."""
    return Path(cache) / uuid / "view.sqlite"


def lock_path(cache: Path, uuid: str) -> Path:
    """The file whose flock its applier holds."""
    return Path(cache) / uuid / "lock"


def _changes(db: sqlite3.Connection, tip: Tip, since: int) -> Changes | None:
    if since > tip.seq or since < tip.horizon:
        return None
    counter = db.execute("select next from commits where seq=?", (since,)).fetchone()
    if counter is None:
        return None
    born = integers(db, "select vid from rows where vid>=? order by vid", counter)
    died = integers(
        db,
        "select distinct vid from deaths where seq>? and vid<? and vid not in (select vid from rows)",
        (since, *counter),
    )
    return Changes(tip.seq, born, np.sort(died))


def _json(vids: IntVector | Sequence[int]) -> str:
    return json.dumps(np.asarray(vids, np.int64).tolist())
