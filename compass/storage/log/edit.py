"""What one group commit changes: the rules of identity, worked out inside the view's open transaction."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence

import numpy as np

from compass.domain.chunk import ChunkInput, FloatVector, IntVector
from compass.domain.collection import Change, CollectionState, apply
from compass.domain.filters import Filter
from compass.domain.history import Event, Note
from compass.domain.space import Space, why_unfit
from compass.errors import InvalidRequestError
from compass.storage.log.log import Given, Record, new_nonce
from compass.storage.log.receipts import Receipt
from compass.storage.snapshot.rows import Row, row_of, values_of
from compass.storage.spaces.vectors import SpaceVectors
from compass.storage.view import filter_sql as filtering
from compass.storage.view import tables
from compass.storage.view.tables import Tip

Held = dict[int, FloatVector]


def vectors_to_write(
    given: Mapping[str, FloatVector], held: Mapping[str, FloatVector], embedding: Container[str] = ()
) -> tuple[bool, dict[str, FloatVector]]:
    """Whether an unchanged text needs a new vid, and which vectors, by space, are written under its vid.

    A vector for a space that has none is added. One that differs from what is there cannot replace it, as a
    vid never changes: a new vid gets all vectors, those of the other spaces carried over. So does one for a
    space of `embedding`, whose follower may have this very text at its endpoint now: two vectors under one
    vid would race.
    """

    def collides(space: str, vector: FloatVector) -> bool:
        return not np.array_equal(held[space], vector) if space in held else space in embedding

    if any(collides(space, vector) for space, vector in given.items()):
        return True, {**held, **given}
    return False, {space: vector for space, vector in given.items() if space not in held}


class Edit:
    """The next commit in the making. Each method is one job: it is done as a whole, or raises and changes nothing."""

    def __init__(
        self,
        db: sqlite3.Connection,
        tip: Tip,
        state: CollectionState,
        vectors_of: Callable[[Space], SpaceVectors],
    ) -> None:
        self.seq, self.state = tip.seq + 1, state
        self._db, self._vectors_of = db, vectors_of
        self._tip, self._before = tip, state
        self._next = tip.next
        self._rows: dict[int, Row] = {}
        self._dead: list[int] = []
        self._vectors: dict[str, Held] = {}
        self._touched = False
        self._events: list[Event] = []
        self._receipts: list[Receipt] = []

    @property
    def empty(self) -> bool:
        """Whether there is nothing to commit."""
        return not (self._rows or self._dead or self._touched) and self.state is self._before

    def record(self) -> Record:
        """The commit; vectors of texts that did not outlive it are left out."""
        return Record(
            prev=self._tip.nonce,
            nonce=new_nonce(),
            next=self._next,
            rows=list(self._rows.values()),
            dead=self._dead,
            state=None if self.state is self._before else self.state.to_json(),
            vectors=self._packed(),
            events=[event.to_json() for event in self._events],
            receipts=self._receipts,
        )

    def receipt(self, attempt: str | None) -> tuple[int, Receipt] | None:
        """The commit and the receipt of an attempt; None if it is not known, or too long ago."""
        return None if attempt is None else tables.receipt(self._db, attempt)

    def ingest(self, chunks: Sequence[ChunkInput], attempt: str | None = None) -> list[int]:
        """Write chunks; their ids in the order given. Of a key that is there twice the last counts.

        The attempt's receipt goes into the same commit.

        Raises:
            InvalidRequestError: a vector does not fit its space, or a value cannot be stored.
            NotFoundError: a vector's space is not there (any more).
        """
        latest = {(chunk.file_id, chunk.chunk_index): chunk for chunk in chunks}
        self._check_vectors(latest.values())
        old = {key: self._row(key) for key in latest}
        held = self._held([row[1] for key, row in old.items() if row and self._may_carry(latest[key], row)])
        counter = self._next
        born: list[Row] = []
        written: dict[str, Held] = {}
        for key, chunk in latest.items():
            row, counter, vectors = self._version(chunk, old[key], held, counter)
            born.append(row)
            for space_id, vector in vectors.items():
                written.setdefault(space_id, {})[row[1]] = vector
        replaced = [row for row in old.values() if row is not None]
        with self._whole():
            self._take_out(replaced)
            tables.insert(self._db, born, self.seq)
        self._forget(replaced)
        self._next = counter
        self._rows.update((row[0], row) for row in born)
        for space_id, vectors_by_vid in written.items():
            self._vectors.setdefault(space_id, {}).update(vectors_by_vid)
        ids = {(row[3], row[4]): row[2] for row in born}
        answer = [ids[chunk.file_id, chunk.chunk_index] for chunk in chunks]
        self._keep_receipt(attempt, ids=answer)
        return answer

    def delete(self, ids: Sequence[int], where: Filter | None, attempt: str | None = None) -> int:
        """Delete chunks by id and those that pass a filter; how many there were. `attempt`: as `ingest`.

        Raises:
            InvalidRequestError: an empty filter, which would mean all.
        """
        if where is not None and not where:
            raise InvalidRequestError("an empty filter would delete every chunk")
        rows = {row[0]: row for row in tables.rows_by_id(self._db, list(map(int, ids)))}
        if where is not None:
            vids = filtering.matching(self._db, where)
            rows.update((row[0], row) for row in tables.rows_by_vid(self._db, vids.tolist()))
        with self._whole():
            self._take_out(list(rows.values()))
        self._forget(list(rows.values()))
        self._keep_receipt(attempt, deleted=len(rows))
        return len(rows)

    def change(self, change: Change, note: Note | None = None) -> CollectionState:
        """Change spaces or the default, if the precondition holds in this very commit; the note goes with it.

        Raises:
            ConflictError, NotFoundError: it does not.
        """
        self.state = apply(self.state, change)
        if note is not None:
            self._events.append(Event.of(note, seq=self.seq, at=time.time(), epoch=self.state.epoch))
        return self.state

    def touch(self) -> None:
        """Commit even if nothing changes: who wins the create was the writer until then."""
        self._touched = True

    def _keep_receipt(self, attempt: str | None, ids: Sequence[int] = (), deleted: int = 0) -> None:
        """Keep what an attempt is answered. One that has changed nothing needs none: its repetition is its first."""
        if attempt is not None and (ids or deleted):
            receipt = Receipt(attempt, list(ids), deleted)
            self._receipts.append(receipt)
            tables.keep_receipts(self._db, [(self.seq, receipt)])

    def _version(
        self, chunk: ChunkInput, old: Row | None, held: Mapping[str, Held], counter: int
    ) -> tuple[Row, int, dict[str, FloatVector]]:
        rid, counter = counter, counter + 1
        if old is None:
            return row_of(chunk, rid, counter, counter + 1), counter + 2, dict(chunk.vectors)
        vid, chunk_id = old[1], old[2]
        if chunk.text != old[5]:
            anew, vectors = True, dict(chunk.vectors)
        else:
            there = {space_id: by_vid[vid] for space_id, by_vid in held.items() if vid in by_vid}
            if reads_otherwise := self._spaces_that_read_otherwise(chunk, old):
                kept = {space_id: vector for space_id, vector in there.items() if space_id not in reads_otherwise}
                anew, vectors = True, {**kept, **chunk.vectors}
            else:
                anew, vectors = vectors_to_write(chunk.vectors, there, self._embedding())
        if anew:
            vid, counter = counter, counter + 1
        return row_of(chunk, rid, vid, chunk_id), counter, vectors

    def _may_carry(self, chunk: ChunkInput, old: Row) -> bool:
        """Whether vectors of the old version matter to the new one."""
        return chunk.text == old[5] and bool(chunk.vectors or self._spaces_that_read_otherwise(chunk, old))

    def _spaces_that_read_otherwise(self, chunk: ChunkInput, old: Row) -> set[str]:
        """The spaces whose template makes another text of the same text: other metadata, or other fields.

        The vid stands for what is embedded, so it must change; the other spaces' vectors are carried over.
        """
        templated = {s.id: s.config for s in self.state.spaces.values() if s.config.template is not None}
        if not templated:
            return set()
        (before, was), (after, now) = values_of(old), values_of(row_of(chunk, 0, 0, 0))
        return {i for i, c in templated.items() if c.document_text(before, was) != c.document_text(after, now)}

    def _embedding(self) -> set[str]:
        """The spaces whose vectors are computed as well as sent."""
        return {s.id for s in self.state.spaces.values() if s.config.embed_endpoint is not None}

    def _row(self, key: tuple[str, int]) -> Row | None:
        try:
            return tables.row_by_key(self._db, *key)
        except (UnicodeEncodeError, OverflowError) as error:
            raise InvalidRequestError(f"chunk {key!r} cannot be stored: {error}") from error

    def _check_vectors(self, chunks: Iterable[ChunkInput]) -> None:
        by_space: dict[str, list[FloatVector]] = {}
        for chunk in chunks:
            for space_id, vector in chunk.vectors.items():
                by_space.setdefault(space_id, []).append(vector)
        for space_id, vectors in by_space.items():
            space = self.state.by_id(space_id)
            shapes = {np.shape(vector) for vector in vectors}
            why = f"vectors of shapes {sorted(shapes)}" if len(shapes) > 1 else None
            why = why or why_unfit(np.asarray(vectors, np.float32), space.config.dims)
            if why is not None:
                raise InvalidRequestError(f"vectors for space {space.name!r}: {why}", {"space": space.name})

    def _held(self, vids: Sequence[int]) -> dict[str, Held]:
        """The vectors, by space, that these vids have: in files, and in this commit so far."""
        if not vids:
            return {}
        found: dict[str, Held] = {}
        for space_id, space in self.state.spaces.items():
            have, vectors = self._vectors_of(space).get(vids)
            found[space_id] = dict(zip(have.tolist(), vectors, strict=True))
            fresh = self._vectors.get(space_id, {})
            found[space_id].update((vid, fresh[vid]) for vid in vids if vid in fresh)
        return found

    def _take_out(self, rows: Sequence[Row]) -> None:
        """Take rows out of the view; one that was born in this very commit leaves no trace."""
        tables.remove(self._db, rows)
        tables.bury(self._db, (row for row in rows if row[0] not in self._rows), self.seq)

    def _forget(self, rows: Sequence[Row]) -> None:
        """Take rows out of the record."""
        for row in rows:
            if self._rows.pop(row[0], None) is None:
                self._dead.append(row[0])

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        """A job's rows as a whole: what cannot be stored fails its own job, not the group."""
        self._db.execute("savepoint job")
        try:
            yield
            self._db.execute("release job")
        except (UnicodeEncodeError, OverflowError) as error:
            self._db.execute("rollback to job")
            self._db.execute("release job")
            raise InvalidRequestError(f"a value cannot be stored: {error}") from error

    def _packed(self) -> dict[str, Given]:
        born = {row[1] for row in self._rows.values()}
        packed = {}
        for space_id, by_vid in self._vectors.items():
            kept = [vid for vid in by_vid if vid in born or vid < self._tip.next]
            if kept and space_id in self.state.spaces:
                vids: IntVector = np.asarray(kept, np.int64)
                packed[space_id] = Given.of(vids, np.stack([by_vid[vid] for vid in kept]))
        return packed
