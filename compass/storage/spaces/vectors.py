"""The vectors of one space: immutable Arrow files whose union is the space."""

from __future__ import annotations

import logging
import threading
import uuid as uuids
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from compass.domain.chunk import FloatMatrix, IntVector
from compass.domain.rebuild.forecast import MERGE_BYTES
from compass.domain.rebuild.run_record import RunRecord
from compass.domain.space import why_unfit
from compass.errors import InvalidRequestError, StorageError
from compass.storage.objects import MissingObjectError, Objects
from compass.storage.spaces import index_files
from compass.storage.spaces.quarantine import Quarantine
from compass.storage.spaces.runs import RunStore

__all__ = ["GIVEN", "MissingObjectError", "SpaceVectors", "space_folder", "stored_bytes"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

GIVEN = "given"  # the run of vectors that callers sent; they win over computed ones of the same vid
_COMPUTED = "model"
_TINY_ROWS = 4096
_RELISTS = 100


def space_folder(uuid: str, space_id: str) -> str:
    """The folder of a space."""
    return f"{uuid}/spaces/{space_id}"


def stored_bytes(dims: int, rows: int) -> int:
    """What the files of so many vectors take, once they are merged: a vid and a vector each."""
    return rows * (8 + dims * 4)


class SpaceVectors:
    """The folder of one space. Any process may append vectors; writing a vid twice is harmless."""

    def __init__(self, objects: Objects, uuid: str, space_id: str, dims: int) -> None:
        self.space_id, self.dims = space_id, dims
        self._objects = objects
        self._folder = space_folder(uuid, space_id)
        self._runs, self._quarantine = RunStore(objects, self._folder), Quarantine(objects, self._folder)
        self._open: dict[str, tuple[IntVector, FloatMatrix]] = {}
        self._lock = threading.Lock()

    def append(
        self, vids: IntVector | Sequence[int], vectors: FloatMatrix, run: str = "live", name: str | None = None
    ) -> str:
        """Write vectors of shape (len(vids), dims) as one file sorted by vid, and return its key.

        Durable when it returns. Of a vid that is there twice the first row counts. `name` is one that nothing
        else is written under, see `find`.

        Raises:
            InvalidRequestError: wrong dims, NaN, infinity, a zero vector; nothing is written.
        """
        kind = GIVEN if run == GIVEN else _COMPUTED
        key = self._key(f"{kind}-{name or uuids.uuid4().hex}")
        self._objects.write(key, self._encode(np.asarray(vids, np.int64), vectors, run))
        return key

    def append_given(self, seq: int, vids: IntVector, vectors: FloatMatrix) -> str:
        """Write what callers sent in commit `seq`, once: whoever comes second changes nothing."""
        key = self._key(f"{GIVEN}-{seq:020d}")
        self._objects.create(key, self._encode(vids, vectors, GIVEN))
        return key

    def find(self, name: str) -> tuple[str, int] | None:
        """What was appended under `name`, (key, vectors); None if nothing was, or a merge has taken it since."""
        key = self._key(f"{_COMPUTED}-{name}")
        try:
            return key, len(self.read(key)[0])
        except MissingObjectError:
            return None

    def files(self) -> list[str]:
        """The keys of the files; those that callers' vectors are in come first and win.

        A listing is no snapshot: while a merge replaces files, one may miss old and new alike. So it is
        repeated until nothing that it named has vanished.
        """
        seen: set[str] | None = None
        for _ in range(_RELISTS):
            keys = self._objects.list(f"{self._folder}/vec")
            if seen is not None and seen.issubset(keys):
                return keys
            seen = set(keys)
        raise StorageError(f"the files of space {self.space_id!r} keep vanishing", {"space_id": self.space_id})

    def read(self, key: str) -> tuple[IntVector, FloatMatrix]:
        """One file: vids sorted, vectors of shape (len(vids), dims); memory-mapped on a local disk.

        Raises:
            MissingObjectError: a merge has replaced it: list again.
            StorageError: it is damaged.
        """
        with self._lock:
            if key in self._open:
                return self._open[key]
        table = self._table(key)
        vids = table["vid"].combine_chunks().to_numpy()
        flat = table["vector"].combine_chunks().flatten().to_numpy()
        arrays = vids, flat.reshape(len(vids), self.dims)
        with self._lock:
            self._open[key] = arrays
        return arrays

    def run_of(self, key: str) -> str:
        """The run that wrote a file."""
        return str((self._table(key).schema.metadata or {}).get(b"run", b"").decode())

    def have(self) -> IntVector:
        """The vids that have a vector, sorted; dead ones may be among them."""
        vids = [vids for _, vids, _ in self._read_all()]
        return np.unique(np.concatenate(vids)) if vids else np.empty(0, np.int64)

    def get(self, vids: IntVector | Sequence[int]) -> tuple[IntVector, FloatMatrix]:
        """The vectors of those vids that have one: (vids, sorted; vectors of shape (len(vids), dims))."""
        wanted = np.unique(np.asarray(vids, np.int64))
        rows = np.empty((len(wanted), self.dims), np.float32)
        missing = np.ones(len(wanted), bool)
        for _, there, vectors in self._read_all():
            if not len(there) or not missing.any():
                continue
            at = np.searchsorted(there, wanted).clip(max=len(there) - 1)
            hit = missing & (there[at] == wanted)
            rows[hit] = vectors[at[hit]]
            missing &= ~hit
        return wanted[~missing], rows[~missing]

    def quarantine(self, reasons: Mapping[int, str]) -> None:
        """See `Quarantine.add`."""
        self._quarantine.add(reasons)

    def quarantined(self) -> dict[int, str]:
        """See `Quarantine.all`."""
        return self._quarantine.all()

    def lift_quarantine(self) -> None:
        """See `Quarantine.lift`."""
        self._quarantine.lift()

    def write_run(self, record: RunRecord) -> None:
        """See `RunStore.write`."""
        self._runs.write(record)

    def read_run(self) -> RunRecord | None:
        """See `RunStore.read`."""
        return self._runs.read()

    def compact(self, live_vids: Callable[[], IntVector]) -> None:
        """Merge small files and leave out dead vids; write the new file first, delete the old ones after.

        `live_vids` is called after the files are listed and must not answer as of an older commit than any
        vid in them was born in: then a vid that is not live is dead, and not merely new.
        """
        keys = self.files()
        notes = self._quarantine.notes()
        if not self.merge_due() and len(notes) < 2:
            return
        live = live_vids()
        for kind in (GIVEN, _COMPUTED):
            mine = [key for key in keys if key.rsplit("/", 1)[1].startswith(f"{kind}-")]
            for group in self._mergeable(mine, live):
                self._merge(group, live, kind)
        self._quarantine.merge(notes, live)

    def merge_due(self) -> bool:
        """Whether a merge is worth a look: some files are small, or there are several."""
        return len(self._objects.list(f"{self._folder}/vec")) > 1

    def file_count(self) -> int:
        """How many vector files there are."""
        return len(self._objects.list(f"{self._folder}/vec"))

    def bytes_on_disk(self) -> int:
        """The bytes of all that the space has: vectors, index, notes."""
        return self._objects.bytes_under(self._folder)

    def drop(self) -> None:
        """Delete every byte of the space. Only for an id that has its tombstone."""
        self._objects.delete_prefix(self._folder)
        with self._lock:
            self._open.clear()

    def save_index(self, write: Callable[[Path], None], meta: Mapping[str, Any]) -> None:
        """Keep a snapshot of the index, which `write` puts into the file it is given; older ones go."""
        index_files.save(self._objects, f"{self._folder}/index", write, meta)

    def load_index(self, read: Callable[[Path], T]) -> tuple[T, dict[str, Any]] | None:
        """What `read` makes of the newest snapshot's file, and its meta; None without a sound one."""
        return index_files.load(self._objects, f"{self._folder}/index", read)

    def _key(self, name: str) -> str:
        return f"{self._folder}/vec/{name}.arrow"

    def _encode(self, vids: IntVector, vectors: FloatMatrix, run: str) -> pa.Buffer:
        rows = np.ascontiguousarray(vectors, np.float32)
        why = why_unfit(rows, self.dims)
        if why is None and len(rows) != len(vids):
            why = f"{len(vids)} vids for {len(rows)} vectors"
        if why is not None:
            raise InvalidRequestError(f"vectors of space {self.space_id!r}: {why}", {"space_id": self.space_id})
        if not (np.diff(vids) > 0).all():
            vids, first = np.unique(vids, return_index=True)
            rows = rows[first]
        batch = pa.record_batch(
            [pa.array(vids), pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), self.dims)],
            schema=_schema(self.dims, run),
        )
        out = pa.BufferOutputStream()
        with pa.ipc.new_file(out, batch.schema) as file:
            file.write_batch(batch)
        return out.getvalue()

    def _table(self, key: str) -> pa.Table:
        stored = self._objects.read(key)
        if stored is None:
            with self._lock:
                self._open.pop(key, None)
            raise MissingObjectError(f"{key} is gone", {"key": key})
        try:
            table = pa.ipc.open_file(stored).read_all()
        except (OSError, pa.ArrowException) as error:
            raise StorageError(f"{key} is damaged: {error}", {"key": key}) from error
        if not table.schema.equals(_schema(self.dims, "")):
            raise StorageError(f"{key} is not of {self.dims} dims: {table.schema}", {"key": key})
        return table

    def _read_all(self) -> list[tuple[str, IntVector, FloatMatrix]]:
        """All files; one that vanishes after the listing means that a merge has replaced it: list again."""
        for _ in range(_RELISTS):
            keys = self.files()
            with self._lock:
                self._open = {key: arrays for key, arrays in self._open.items() if key in set(keys)}
            try:
                return [(key, *self.read(key)) for key in keys]
            except MissingObjectError:
                continue
        raise StorageError(f"the files of space {self.space_id!r} keep vanishing", {"space_id": self.space_id})

    def _mergeable(self, keys: Sequence[str], live: IntVector) -> list[list[str]]:
        """Groups of files to merge: small ones until their sizes fall geometrically, and half-dead ones."""
        alive = {key: int(_among(self.read(key)[0], live).sum()) for key in keys}
        limit = max(1, MERGE_BYTES // (4 * self.dims))
        tail: list[str] = []
        rows = 0
        for key in sorted(keys, key=lambda k: alive[k]):
            if alive[key] > max(rows, _TINY_ROWS) or rows + alive[key] > limit:
                break
            tail.append(key)
            rows += alive[key]
        half_dead = [k for k in keys if k not in tail and 2 * alive[k] < len(self.read(k)[0])]
        tail_due = len(tail) > 1 or any(2 * alive[k] < len(self.read(k)[0]) for k in tail)
        return ([tail] if tail_due else []) + [[key] for key in half_dead]

    def _merge(self, keys: Sequence[str], live: IntVector, kind: str) -> None:
        read = [self.read(key) for key in keys]
        keep = [_among(vids, live) for vids, _ in read]
        vids = np.concatenate([vids[k] for (vids, _), k in zip(read, keep, strict=True)])
        if len(vids):
            rows = np.concatenate([rows[k] for (_, rows), k in zip(read, keep, strict=True)])
            runs = {self.run_of(key) for key in keys}
            self.append(vids, rows, GIVEN if kind == GIVEN else ",".join(sorted(runs)))
        self._objects.delete(keys)
        _log.debug("merged %d vector files of space %s into %d rows", len(keys), self.space_id, len(vids))


def _among(vids: IntVector, live: IntVector) -> npt.NDArray[np.bool_]:
    """Which vids are in the sorted `live`."""
    if not len(live):
        return np.zeros(len(vids), bool)
    at = np.searchsorted(live, vids).clip(max=len(live) - 1)
    return np.asarray(live[at] == vids)


def _schema(dims: int, run: str) -> pa.Schema:
    fields = [
        pa.field("vid", pa.int64(), nullable=False),
        pa.field("vector", pa.list_(pa.float32(), dims), nullable=False),
    ]
    return pa.schema(fields, metadata={"run": run})
