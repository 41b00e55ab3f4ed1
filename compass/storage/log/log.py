"""The log: one object per group commit, created only if absent.

That one create is the acknowledgement, the order, the compare-and-set and the fence at once.
"""

from __future__ import annotations

import uuid as uuids
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from compass.domain.chunk import FloatMatrix, IntVector
from compass.errors import StorageError
from compass.storage.log.frames import seal, unseal
from compass.storage.log.receipts import Receipt
from compass.storage.objects import Objects, create_mine
from compass.storage.snapshot.rows import Row


class Given(msgspec.Struct, frozen=True):
    """Vectors that callers sent for one space: int64 vids, float32 rows, both little-endian bytes."""

    vids: bytes
    vectors: bytes

    @staticmethod
    def of(vids: IntVector, vectors: FloatMatrix) -> Given:
        """Pack; vectors of shape (len(vids), dims)."""
        return Given(np.asarray(vids, "<i8").tobytes(), np.asarray(vectors, "<f4").tobytes())

    def arrays(self, dims: int) -> tuple[IntVector, FloatMatrix]:
        """Unpack: vids, and vectors of shape (len(vids), dims)."""
        vids = np.frombuffer(self.vids, "<i8").astype(np.int64)
        return vids, np.frombuffer(self.vectors, "<f4").astype(np.float32).reshape(len(vids), dims)


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """One group commit.

    Attributes:
        prev: The nonce of the record before; a view whose last nonce is another is of another history.
        nonce: Unique to this attempt: tells whether a create whose answer was lost was ours.
        next: The counter of ids, vids and rids after this commit.
        rows: Rows born in it.
        dead: Rids of rows that died in it.
        state: `CollectionState.to_json()`, where it changed.
        vectors: Callers' vectors, by space id.
        takeover: {host, pid} of a process that opened the collection for writing.
        events: `Event.to_json()` of what happened in it.
        receipts: What its writes were answered, of those whose caller named the attempt.
    """

    prev: str
    nonce: str
    next: int
    rows: list[Row] = []
    dead: list[int] = []
    state: dict[str, Any] | None = None
    vectors: dict[str, Given] = {}
    takeover: dict[str, Any] | None = None
    events: list[dict[str, Any]] = []
    receipts: list[Receipt] = []


def new_nonce() -> str:
    """A name that no other attempt has."""
    return uuids.uuid4().hex


class Log:
    """The log of one collection."""

    def __init__(self, objects: Objects, uuid: str) -> None:
        self._objects = objects
        self._folder = f"{uuid}/log"
        self.created_bytes = 0

    def key(self, seq: int) -> str:
        """The object of a commit."""
        return f"{self._folder}/{seq:020d}"

    def seqs(self) -> list[int]:
        """The commits whose objects are there; a listing may be older than the log."""
        return [int(key.rsplit("/", 1)[1]) for key in self._objects.list(self._folder)]

    def read(self, seq: int) -> Record | None:
        """The record of a commit; None if it is not there (never was, or pruned).

        Raises:
            StorageError: it is damaged.
        """
        found = self._objects.read(self.key(seq))
        return None if found is None else self._decode(seq, found)

    def create(self, seq: int, record: Record) -> bool:
        """Commit a record as `seq`; False if another record is there. Durable when it returns.

        An answer that was lost is settled by reading the commit and comparing nonces, never bytes: two
        writers may well send the same. See `create_mine` for what else it takes.

        Raises:
            UnavailableError: it is not known whether the record was or will be committed.
        """
        data = seal(_encoder.encode(record))
        created = create_mine(
            self._objects, self.key(seq), data, lambda found: self._decode(seq, found).nonce == record.nonce
        )
        if created:
            self.created_bytes += len(data)
        return created

    def ensure_durable(self, seq: int) -> None:
        """Make the commit durable that was read at `seq`.

        Raises:
            OSError: it may not last.
        """
        if not self._objects.ensure_durable(self.key(seq)):
            raise FileNotFoundError(f"{self.key(seq)} is gone")

    def _decode(self, seq: int, found: pa.Buffer) -> Record:
        try:
            return _decoder.decode(unseal(found, self.key(seq)))
        except msgspec.DecodeError as error:
            raise StorageError(f"{self.key(seq)} is not a log record: {error}", {"key": self.key(seq)}) from error


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Record)
